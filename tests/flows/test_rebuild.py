"""The list follows from its evidence after any history, and whatever does not follow is found."""

import asyncio
import random
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from service.domain.suppression import Policy
from service.errors import Conflict
from service.flows import rebuild, review, upkeep
from service.flows.ingest import apply_recorded
from service.flows.rebuild import Disagreement, Verified
from service.flows.upkeep import Retention
from service.store import access
from service.store.database import Database
from tests.flows.planning import load_behind_our_back
from tests.flows.speaking import World
from tests.flows.test_ingest import NUMBER, unsub
from tests.flows.test_replay import knowing, replayed
from tests.flows.test_reviews import decide, reviewing, start, waiting

DAY = 86_400
WORDS = ("unsub", "hard_bounce", "soft_bounce", "soft_bounce", "spam", "sneezed")
Found = list[tuple[str, str, str]]


async def verify(world: World, policy: Policy | None = None) -> tuple[Verified, Found]:
    """What a rebuild says: the whole, and each disagreement with its address and reason."""
    found: list[Disagreement] = []
    rules = replace(world.rules, policy=policy or world.policy)
    verified = await rebuild.verify(world.database, rules, lambda *_: None, found.append)
    return verified, [(one.kind, one.key.address, one.reason) for one in found]


async def disagreements(world: World, policy: Policy | None = None) -> Found:
    verified, found = await verify(world, policy)
    assert verified.agrees == (not found)
    return found


async def retire(world: World, days: int = 40) -> None:
    """Lets so many days pass; then every month that is over is dropped."""
    world.clock.sleep(days * DAY)
    assert await upkeep.run_due(world.database, world.rules, Retention(timedelta(days=1)), world.clock)


class History:
    """Random things that happen to a few addresses."""

    def __init__(self, world: World, seed: int) -> None:
        self.world = world
        self.chance = random.Random(seed)
        self.bodies: list[tuple[Any, list[Any]]] = []

    async def step(self) -> None:
        steps = (self.email, self.email, self.sms, self.sms, self.again, self.write, self.write, self.decide, self.push)
        await self.chance.choice(steps)()
        self.world.clock.sleep(self.chance.choice((0.0, 1.0, 3600.0, 2.0 * DAY)))

    def time(self) -> dict[str, Any]:
        now = self.world.clock.seconds
        at = self.chance.choice(
            (now, now - 50, now - 3 * DAY, now - self.chance.randrange(30 * DAY), now + 10**6, None)
        )
        return {} if at is None else {"timestamp": at}

    async def email(self) -> None:
        boxes = ["a@example.com", "B@Example.com ", "c@exämple.com", "no address", "d@example.com"]
        await self.deliver("email", [self.mail(self.chance.choice(boxes)) for _ in range(self.chance.randint(1, 6))])

    def mail(self, box: str) -> dict[str, Any]:
        return {"reason": self.chance.choice(WORDS), "email": box} | self.time()

    async def sms(self) -> None:
        numbers = ["15550100001", "+1 555 010 0002", "12", "15550100003"]
        entries = [{"number": self.chance.choice(numbers)} | self.time() for _ in range(self.chance.randint(1, 4))]
        await self.deliver("sms", [entry | {"opt-in": self.chance.random() < 0.5} for entry in entries])

    async def deliver(self, channel: Any, entries: list[Any]) -> None:
        self.bodies.append((channel, entries))
        await self.world.callback(channel, entries)

    async def again(self) -> None:
        if self.bodies:
            channel, entries = self.chance.choice(self.bodies)
            await self.world.callback(channel, entries)

    async def write(self) -> None:
        channel, address, reasons = self.chance.choice(
            (("email", "a@example.com", ("manual", "soft_bounce")), ("sms", "15550100001", ("do_not_call", "manual")))
        )
        at = self.chance.choice((None, self.world.clock.seconds - self.chance.randrange(10 * DAY)))
        try:
            if self.chance.random() < 0.5:
                await self.world.stop(channel, address, self.chance.choice(reasons), at)  # type: ignore[arg-type]
            else:
                await self.world.consent(channel, address, at)  # type: ignore[arg-type]
        except Conflict:
            pass

    async def decide(self) -> None:
        if pending := await waiting(self.world):
            chosen = self.chance.choice(pending)["id"]
            await decide(self.world, self.chance.choice(("approved", "refused")), chosen)

    async def push(self) -> None:
        await self.world.push(self.chance.choice(("email", "sms")))


@pytest.mark.parametrize("seed", range(4))
async def test_any_history_verifies_and_so_does_what_retention_leaves_of_it(world: World, seed: int) -> None:
    if seed % 2:
        world.rule_by(reviewing(world.settings, opt_in_review="all", untimed_opt_in="receipt"))
    history = History(world, seed)
    await upkeep.run_due(world.database, world.rules, Retention(), world.clock)
    for turn in range(2):
        for _ in range(25):
            await history.step()
        assert await disagreements(world) == []
        before = await world.query("select count(*) from batches")
        await world.execute("update quarantine set state = 'discarded'")
        await retire(world)
        assert await disagreements(world) == [], turn
        assert (await world.query("select count(*) from batches"))[0][0] < before[0][0]


async def test_a_word_that_means_another_thing_by_now_keeps_its_month(world: World) -> None:
    knowing(world)
    await upkeep.run_due(world.database, world.rules, Retention(), world.clock)
    await world.callback("email", [{"reason": "vanished", "email": "a@example.com"}])
    first, *others = world.settings.namespaces
    changed = replace(first, extra_reasons=(("vanished", "invalid"),))
    world.rule_by(replace(world.settings, namespaces=(changed, *others)))
    await retire(world)
    assert len(await world.query("select 1 from batches")) == 1
    assert await world.query("select 1 from checkpoint_causes") == []
    knowing(world)
    assert await disagreements(world) == []


async def test_what_was_written_without_a_batch_verifies(world: World) -> None:
    await load_behind_our_back(world, ["a@example.com", "b@example.com"])
    assert await disagreements(world) == []


async def test_a_batch_that_is_only_recorded_is_no_evidence_yet(world: World) -> None:
    await world.execute("alter table facts rename to facts_away")
    await world.callback("email", [unsub("a@example.com")])
    await world.execute("alter table facts_away rename to facts")
    assert await disagreements(world) == []


async def test_what_was_recorded_and_applied_later_verifies(world: World) -> None:
    await world.execute("alter table facts rename to facts_away")
    await world.callback("sms", [{"number": "15550100009"}, *start(None)])
    await world.execute("alter table facts_away rename to facts")
    world.clock.sleep(100)
    assert await apply_recorded(world.database, world.rules, world.clock)
    assert await disagreements(world) == []
    assert [row.held for row in await world.query("select held from batches")] == [[1]]


async def test_it_verifies_while_callbacks_pour_in(world: World) -> None:
    async def pour() -> None:
        for n in range(60):
            await world.callback("email", [unsub(f"a{n}@example.com")])

    pouring = asyncio.create_task(pour())
    while not pouring.done():
        assert await disagreements(world) == []
    await pouring


@pytest.mark.parametrize("retired", [False, True])
@pytest.mark.parametrize(
    ("tampering", "found"),
    [
        ("update suppressions set stop_at = stop_at + 1", [("differing_cause", "a@example.com", "unsubscribe")]),
        ("update suppressions set clear_at = stop_at - 9", [("differing_cause", "a@example.com", "unsubscribe")]),
        ("delete from suppressions", [("missing_cause", "a@example.com", "unsubscribe")]),
        ("delete from facts", [("missing_fact", "a@example.com", "unsubscribe")]),
        (
            """insert into suppressions (address, channel, namespace, reason, stop_at)
               values ('b@example.com', 'email', 'default', 'manual', 5)""",
            [("foreign_cause", "b@example.com", "manual")],
        ),
        (
            """insert into facts select 'b@example.com', channel, namespace, reason, action, occurred_at, source,
               origin, null, batch_id, 1, null, recorded_at from facts""",
            [("foreign_fact", "b@example.com", "unsubscribe")],
        ),
        (
            "update facts set occurred_at = occurred_at + 1",
            [("foreign_fact", "a@example.com", "unsubscribe"), ("missing_fact", "a@example.com", "unsubscribe")],
        ),
    ],
)
async def test_what_was_tampered_with_is_found(world: World, tampering: str, found: Found, *, retired: bool) -> None:
    await upkeep.run_due(world.database, world.rules, Retention(), world.clock)
    await world.callback("email", [unsub("a@example.com")])
    if retired:
        await retire(world)
        assert await world.query("select 1 from batches") == []
    assert await disagreements(world) == []
    await world.execute(tampering)
    assert sorted(await disagreements(world)) == found


async def test_a_soft_bounce_more_or_less_is_found(world: World) -> None:
    now = world.clock.seconds
    bounces = [{"reason": "soft_bounce", "email": "a@example.com", "timestamp": now - n * DAY} for n in range(12)]
    await world.callback("email", bounces)
    assert await disagreements(world) == []
    await world.execute("update suppressions set bounces = bounces[2:]")
    assert await disagreements(world) == [("differing_cause", "a@example.com", "soft_bounce")]


async def test_another_policy_since_is_no_disagreement(world: World) -> None:
    """The list keeps as many soft bounces as the policy of the time needs: only those that it must have count."""
    now, small = world.clock.seconds, Policy(soft_bounce_count=2)
    async with world.database.begin() as connection:
        await access.note_policy(connection, small._asdict(), world.clock())
    world.rules = replace(world.rules, policy=small)
    world.intake = type(world.intake)(world.database, world.rules, world.clock)
    bounces = [{"reason": "soft_bounce", "email": "a@example.com", "timestamp": now - n * DAY} for n in range(12)]
    await world.callback("email", bounces)
    assert await disagreements(world, Policy(soft_bounce_count=5)) == []


async def test_a_write_that_is_taken_from_the_audit_log_leaves_a_foreign_cause(world: World) -> None:
    await world.stop("sms", NUMBER, "manual")
    await world.execute("delete from audit where action = 'address.suppress'")
    assert await disagreements(world) == [("foreign_cause", NUMBER, "manual"), ("foreign_fact", NUMBER, "manual")]


async def test_an_opt_in_that_nobody_approved_is_foreign(world: World) -> None:
    now = world.clock.seconds
    await world.stop("sms", NUMBER, "do_not_call", at=now - 100)
    await world.callback("sms", start(now - 50))
    await decide(world, "refused")
    assert await disagreements(world) == []
    await world.execute(f"update suppressions set clear_at = {now - 50} where reason = 'do_not_call'")
    assert await disagreements(world) == [("differing_cause", NUMBER, "do_not_call")]


async def test_an_opt_in_that_waits_is_approved_when_its_batch_is_gone(world: World) -> None:
    await upkeep.run_due(world.database, world.rules, Retention(), world.clock)
    await world.callback("sms", start(None))
    await retire(world)
    [asked] = await waiting(world)
    await review.decide(world.database, asked["id"], "approved", "tester", None, world.policy, world.clock, None)
    assert await disagreements(world) == []
    [kept] = await world.query("select held_clear_at from checkpoint_causes") or [None]
    assert kept is None, "an opt-in without a time says nothing of what Kahuna holds"


async def test_the_checkpoint_keeps_what_kahuna_told_us(world: World) -> None:
    now = world.clock.seconds
    await upkeep.run_due(world.database, world.rules, Retention(), world.clock)
    await world.stop("sms", NUMBER, "do_not_call", at=now - 100)
    await world.callback("sms", start(now - 50))
    await world.callback("sms", [{"number": NUMBER, "timestamp": now - 70}])
    await retire(world)
    [kept] = await world.query("select stop_at, clear_at, held_stop_at, held_clear_at from checkpoint_causes")
    assert tuple(kept) == (now - 70, None, now - 70, now - 50)


async def test_an_entry_that_cannot_be_replayed_is_counted(world: World) -> None:
    await world.callback("email", ["no entry", unsub("b@example.com")])
    await world.execute("update batches set errors = '[]'")
    verified, found = await verify(world)
    assert (verified.agrees, verified.unclear, verified.unknown, found) == (False, 1, 0, [])


async def test_an_entry_whose_word_only_other_settings_know_is_told_apart(world: World) -> None:
    plain = world.rules
    knowing(world)
    await world.callback("email", [{"reason": "vanished", "email": "a@example.com"}, unsub("b@example.com")])
    assert await disagreements(world) == []
    world.rules = plain
    verified, _ = await verify(world)
    assert (verified.agrees, verified.unclear, verified.unknown) == (False, 1, 1)


async def test_both_digests_are_of_the_same_things(world: World) -> None:
    await world.callback("email", [unsub("a@example.com")])
    (first, _), digest = await verify(world), {}
    for channel in ("email", "sms"):
        await world.callback(channel, [unsub("b@example.com")] if channel == "email" else [{"number": NUMBER}])
        verified, _ = await verify(world)
        digest[channel] = verified.compared["default", channel]
    assert first.compared["default", "email"].live.digest() != digest["email"].live.digest()
    assert all(one.live.digest() == one.rebuilt.digest() for one in digest.values())
    assert (digest["email"].causes, digest["sms"].causes) == (2, 1)


async def test_it_works_behind_a_pooler(world: World) -> None:
    """No named statement, no setting that outlives a transaction."""
    async with Database.of(replace(world.settings, database_pooler="transaction")) as pooled:
        behind = World(pooled, world.settings)
        await upkeep.run_due(pooled, world.rules, Retention(), behind.clock)
        await behind.callback("email", [unsub("a@example.com")])
        await behind.stop("email", "b@example.com", "manual")
        assert await disagreements(behind) == []
        await retire(behind)
        assert await disagreements(behind) == []
    assert await world.query("select 1 from batches") == []


async def test_a_month_is_not_dropped_under_a_verification(world: World) -> None:
    """What goes is gone for every snapshot, also for one that does not see yet that the checkpoint has it."""
    await upkeep.run_due(world.database, world.rules, Retention(), world.clock)
    await world.callback("email", [unsub("a@example.com")])
    async with world.database.snapshot("batches", "facts"):
        await retire(world)
        assert len(await world.query("select 1 from batches")) == 1
    await retire(world, 1)
    assert len(await world.query("select 1 from batches")) == 0
    assert await disagreements(world) == []


async def test_batches_that_come_late_for_a_month_that_goes_are_not_lost(world: World) -> None:
    """As from a spool that is drained after weeks: the ids are those of the receipt."""
    await upkeep.run_due(world.database, world.rules, Retention(), world.clock)
    late = World(world.database, world.settings)
    world.clock.sleep(40 * DAY)

    async def pour() -> None:
        for n in range(60):
            await late.callback("email", [unsub(f"a{n}@example.com")])

    pouring = asyncio.create_task(pour())
    while not pouring.done():
        await retire(world, 1)
    await pouring
    assert await disagreements(world) == []
    await retire(world, 1)
    assert await world.query("select 1 from batches") == []
    assert len(await world.query("select 1 from checkpoint_causes")) == 60
    assert await disagreements(world) == []


async def test_what_a_replay_understood_is_evidence_too(world: World) -> None:
    await world.callback("email", [{"reason": "vanished", "email": "a@example.com"}, unsub("b@example.com")])
    assert await disagreements(world) == []
    knowing(world)
    assert (await replayed(world))["requeued"] == 1
    assert await disagreements(world) == []
    await world.execute("delete from facts where address = 'a@example.com'")
    assert await disagreements(world) == [("missing_fact", "a@example.com", "complaint")]
