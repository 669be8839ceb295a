"""The past: for random histories, what is told of any moment is what a model says that replays them."""

import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.domain.facts import Action
from service.domain.suppression import DAY, Policy, standing, verdict
from service.flows.past import Basis, State, state_at
from service.store import access
from service.store.database import Database
from service.store.suppressions import Entry, Provenance, Subject, apply, causes_of
from tests.flows.speaking import World

BEGUN = datetime(2026, 1, 1, tzinfo=UTC)
SHORT = Policy(
    soft_bounce_count=2, soft_bounce_window=2 * DAY, soft_bounce_lifetime=3 * DAY, hard_bounce_lifetime=4 * DAY
)
LONG = Policy(soft_bounce_count=3, soft_bounce_window=5 * DAY, soft_bounce_lifetime=6 * DAY)


@dataclass(frozen=True)
class Said:
    """One fact: what happened on which day, and the day on which we heard of it."""

    reason: str
    action: Action
    happened: int
    heard: int


class Model:
    """The rules of the README, told as a story: days in order, and nothing merged. It shares no code with what it
    checks."""

    def __init__(self, told: list[Said], policy: Policy) -> None:
        self._told = told
        self._policy = policy

    def reasons(self, at: int) -> set[str]:
        """Which reasons are in force at this moment (Unix seconds)."""
        return {reason for reason in {one.reason for one in self._told} if self._in_force(reason, at)}

    def _in_force(self, reason: str, at: int) -> bool:
        mine = [one for one in self._told if one.reason == reason]
        cleared = max((seconds(one.happened) for one in mine if one.action == "clear"), default=0)
        stops = sorted(
            {seconds(one.happened) for one in mine if one.action == "suppress" and seconds(one.happened) >= cleared}
        )
        if reason == "soft_bounce":
            return self._bounced_too_often(stops, at)
        if not stops:
            return False
        lifetime = self._policy.hard_bounce_lifetime if reason == "hard_bounce" else None
        return lifetime is None or at < stops[-1] + lifetime

    def _bounced_too_often(self, stops: list[int], at: int) -> bool:
        for last in stops:
            group = [one for one in stops if last - self._policy.soft_bounce_window <= one <= last]
            if len(group) >= self._policy.soft_bounce_count and at < last + self._policy.soft_bounce_lifetime:
                return True
        return False


def moment(day: int) -> datetime:
    return BEGUN + timedelta(days=day)


def seconds(day: int) -> int:
    return int(moment(day).timestamp())


ACTIONS: st.SearchStrategy[Action] = st.sampled_from(["suppress", "suppress", "clear"])
REASONS = st.sampled_from(["unsubscribe", "hard_bounce", "soft_bounce", "soft_bounce", "soft_bounce"])
FACTS = st.builds(Said, REASONS, ACTIONS, st.integers(1, 12), st.integers(1, 14))


async def tell(database: Database, address: str, history: list[Said]) -> None:
    """Applies the facts in the order in which we heard of them."""
    for said in sorted(history, key=lambda one: one.heard):
        entry = Entry(address, address, said.reason, said.action, seconds(said.happened))
        async with database.begin() as connection:
            deed = await access.write_down(connection, access.Deed("tester", "address.told"), moment(said.heard))
            provenance = Provenance("default", "email", "local", "api", moment(said.heard), audit_id=deed)
            await apply(connection, [entry], provenance, LONG)


def active(state: State, at: datetime) -> set[str]:
    """The reasons in force."""
    now = int(at.timestamp())
    return {r.cause.reason for r in state.causes if standing(r.cause, now, state.policy).active}


def first_heard(history: list[Said]) -> list[Said]:
    """The facts without later repetitions, which are no news."""
    known: dict[tuple[Any, ...], Said] = {}
    for one in history:
        key = (one.reason, one.action, one.happened)
        known[key] = min(one, known.get(key, one), key=lambda said: said.heard)
    return list(known.values())


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(history=st.lists(FACTS, min_size=1, max_size=12), changed=st.integers(0, 16))
async def test_the_past_is_what_a_model_says_that_replays_it(world: World, history: list[Said], changed: int) -> None:
    """By both bases, on every day of the history, also where the numbers of the verdict changed on one of them."""
    address = f"{secrets.token_hex(8)}@example.com"
    await world.execute("delete from audit where action = 'policy.set'")
    async with world.database.begin() as connection:
        await access.note_policy(connection, SHORT._asdict(), moment(-1))
        await access.note_policy(connection, LONG._asdict(), moment(changed))
    await tell(world.database, address, history)
    subject = Subject("default", "email", address)
    for day in range(16):
        at = moment(day)
        policy = LONG if day >= changed else SHORT
        recorded = [one for one in first_heard(history) if one.heard <= day]
        occurred = [one for one in history if one.happened <= day]
        cases: list[tuple[Basis, list[Said]]] = [("recorded", recorded), ("occurred", occurred)]
        for basis, known in cases:
            state = await state_at(world.database, subject, at, basis, Policy())
            assert active(state, at) == Model(known, policy).reasons(seconds(day)), (day, basis)


async def test_now_is_the_past_of_a_moment_later(world: World) -> None:
    """What the list says is what the facts say."""
    await world.stop("email", "ann@example.com", "manual")
    await world.callback("email", [{"reason": "unsub", "email": "ann@example.com", "timestamp": 1_700_000_000}])
    subject = Subject("default", "email", "ann@example.com")
    state = await state_at(world.database, subject, world.clock(), "recorded", world.policy)
    async with world.database.read() as connection:
        listed = await causes_of(connection, *subject)
    assert sorted(state.causes) == sorted(listed)


async def test_before_the_first_numbers_were_written_down_they_were_the_first(world: World) -> None:
    async with world.database.begin() as connection:
        assert await access.policy_at(connection, moment(0)) is None
        await access.note_policy(connection, SHORT._asdict(), moment(5))
        await access.note_policy(connection, LONG._asdict(), moment(7))
        for day, expected in ((0, SHORT), (5, SHORT), (6, SHORT), (7, LONG), (9, LONG)):
            assert await access.policy_at(connection, moment(day)) == expected


async def test_without_numbers_in_the_log_those_of_today_are_taken(world: World) -> None:
    state = await state_at(world.database, Subject("default", "email", "a@b"), moment(0), "recorded", SHORT)
    assert state == State([], SHORT)
    assert not verdict({}, 0, state.policy).suppressed
