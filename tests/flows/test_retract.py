"""What was taken back is gone without a trace on the list, and nothing else is: for random histories, whatever else
happens meanwhile."""

import asyncio
import random
import uuid
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text

from service.domain.facts import Fact
from service.domain.suppression import fold
from service.errors import Conflict, StorageBusy
from service.flows import past, replay, taking_back, testimony, upkeep
from service.flows import retract as undo
from service.flows.imports import Import, Order
from service.flows.upkeep import Retention
from service.store import access, batches, history, retractions, suppressions, withdrawals
from service.store.archive import Asked
from service.store.suppressions import Subject
from tests.flows.speaking import World
from tests.flows.test_rebuild import DAY, disagreements, retire, verify

ANN, BOB = "ann@example.com", "bob@example.com"
T = 1_700_000_000


async def take_in(world: World, text: str, channel: Any = "email", reason: str = "unsubscribe", **more: Any) -> Import:
    """An import of these lines."""

    async def parts() -> AsyncIterator[bytes]:
        yield text.encode()

    order = Order("default", channel, "tester", random.getrandbits(50), "list.csv", reason, **more)
    one = Import(world.database, order, world.rules, world.clock)
    await one.run(parts())
    return one


async def revert(world: World, one: Import) -> uuid.UUID:
    async with world.database.begin() as connection:
        return await undo.request_import(connection, one.id, "tester", "wrong list", None, world.clock())


async def carry_out(world: World) -> dict[str, int]:
    """All that waits is taken back; what the last one counted."""
    counts: dict[str, int] = {}
    while (done := await undo.run_next(world.database, world.rules, world.clock)) is not None:
        async with world.database.read() as connection:
            row = await retractions.one(connection, done.id)
        assert row is not None
        assert (row.state, row.error) == ("done", None)
        counts = row.counts
    return counts


async def undone(world: World, one: Import) -> dict[str, int]:
    await revert(world, one)
    return await carry_out(world)


async def listed(world: World, address: str = ANN, channel: Any = "email") -> dict[str, Any]:
    async with world.database.read() as connection:
        rows = await suppressions.causes_of(connection, "default", channel, address)
    return {row.cause.reason: row.cause for row in rows}


def lines(*rows: tuple[str, int | None]) -> str:
    """A list of addresses and times."""
    return "email,time\n" + "".join(f"{address},{'' if at is None else T + at}\n" for address, at in rows)


async def test_an_import_is_taken_back_whole(world: World) -> None:
    await world.stop("email", BOB, "manual", at=T + 500)
    before = await world.query("select * from suppressions where stop_at is not null order by address")
    one = await take_in(world, lines((ANN, 100), (BOB, 200)))
    assert set(await listed(world)) == {"unsubscribe"}
    counts = await undone(world, one)
    assert (counts["facts"], counts["evidence"]) == (2, 1)
    assert await listed(world) == {}
    kept = await world.query("select * from suppressions where stop_at is not null order by address")
    assert kept == before
    assert await disagreements(world) == []


async def test_asked_for_twice_it_is_the_same(world: World) -> None:
    one = await take_in(world, lines((ANN, 100)))
    first = await revert(world, one)
    assert await revert(world, one) == first
    await carry_out(world)
    assert await revert(world, one) == first
    assert await undo.run_next(world.database, world.rules, world.clock) is None


async def test_a_stop_that_comes_late_wins(world: World) -> None:
    """It is dated before the import was undone, and comes after."""
    one = await take_in(world, lines((ANN, 500)))
    await undone(world, one)
    await world.callback("email", [{"reason": "unsub", "email": ANN, "timestamp": T + 400}])
    assert (await listed(world))["unsubscribe"].stop_at == T + 400
    assert await disagreements(world) == []


async def test_who_else_said_the_same_keeps_the_fact(world: World) -> None:
    """By a list, or by a person: the first witness alone is gone."""
    first = await take_in(world, lines((ANN, 100), (BOB, 100), ("carol@example.com", 100)))
    world.clock.sleep(60)
    second = await take_in(world, lines((ANN, 100)))
    await world.stop("email", BOB, "unsubscribe", at=T + 100)
    counts = await undone(world, first)
    assert (counts["handed_over"], counts["facts"]) == (2, 1)
    assert (await listed(world))["unsubscribe"].stop_at == T + 100
    assert (await listed(world, BOB))["unsubscribe"].stop_at == T + 100
    [told] = await world.query(f"select batch_id, origin, recorded_at from suppressions where address = '{ANN}'")
    assert (told.origin, told.recorded_at) == ("import", world.clock())
    assert await disagreements(world) == []
    assert (await undone(world, second))["facts"] == 1
    assert await listed(world) == {}
    assert await disagreements(world) == []


async def test_a_witness_that_was_taken_back_is_none(world: World) -> None:
    first = await take_in(world, lines((ANN, 100)))
    world.clock.sleep(60)
    second = await take_in(world, lines((ANN, 100), (BOB, 100)))
    assert (await undone(world, second))["facts"] == 1
    assert set(await listed(world)) == {"unsubscribe"}
    counts = await undone(world, first)
    assert (counts["facts"], counts.get("handed_over", 0)) == (1, 0)
    assert await listed(world) == {}
    assert await disagreements(world) == []


async def test_a_line_that_was_no_news_is_heard_when_the_news_are_taken_back(world: World) -> None:
    """Both lists had no times; the second said nothing of Ann since the first had."""
    first = await take_in(world, f"{ANN}\n{BOB}\n")
    world.clock.sleep(DAY)
    second = await take_in(world, f"{ANN}\ncarol@example.com\n")
    assert second.tally.duplicates == 1
    await undone(world, first)
    assert (await listed(world))["unsubscribe"].stop_at == world.clock.seconds
    assert await listed(world, BOB) == {}
    assert await disagreements(world) == []
    [batch] = await world.query(
        f"select accepted, duplicates, held from batches where headers ->> 'import-id' = '{second.id}'"
    )
    assert tuple(batch) == (2, 0, None)
    await undone(world, second)
    assert await listed(world) == {}
    assert await disagreements(world) == []


async def test_a_list_sent_again_on_purpose_counts_again(world: World) -> None:
    text = lines((ANN, 100))
    await undone(world, await take_in(world, text))
    world.clock.sleep(60)
    again = await take_in(world, text)
    assert (again.tally.accepted, again.tally.duplicates) == (1, 0)
    assert set(await listed(world)) == {"unsubscribe"}
    assert await disagreements(world) == []
    await undone(world, again)
    assert await listed(world) == {}


async def test_a_list_that_is_sent_again_while_it_is_taken_back_must_wait(world: World) -> None:
    one = await take_in(world, lines((ANN, 100)))
    await revert(world, one)
    with pytest.raises(StorageBusy):
        await take_in(world, lines((ANN, 100)))
    await carry_out(world)
    assert (await take_in(world, lines((ANN, 100)))).tally.accepted == 1


async def test_a_replay_brings_nothing_back(world: World) -> None:
    one = await take_in(world, lines((ANN, 100)))
    await undone(world, one)
    replayed = [
        step async for step in replay.replay_many(world.database, Asked("default"), world.rules, world.clock, "tester")
    ]
    assert sum(step.counts["changed"] for step in replayed) == 0
    assert await listed(world) == {}
    assert await disagreements(world) == []


async def test_an_import_under_way_is_not_taken_back(world: World) -> None:
    one = await take_in(world, lines((ANN, 100)))
    await world.execute("update imports set state = 'running', ended_at = null")
    with pytest.raises(Conflict, match="still takes lines in"):
        await revert(world, one)
    world.clock.sleep(undo.SILENT.total_seconds())
    assert (await undone(world, one))["facts"] == 1


async def test_soft_bounces_and_clears_are_folded_anew(world: World) -> None:
    times = [(ANN, n * DAY) for n in range(12)]
    await world.callback(
        "email", [{"reason": "soft_bounce", "email": ANN, "timestamp": T + n * DAY + 5} for n in range(3)]
    )
    before = await listed(world)
    one = await take_in(world, lines(*times), reason="soft_bounce")
    assert await listed(world) != before
    await undone(world, one)
    assert await listed(world) == before
    assert await disagreements(world) == []


async def test_what_kahuna_accepted_is_answered_where_its_api_can_say_it(world: World) -> None:
    """Ann consented by text message before the list came; Bob never did, and nobody may say that he did."""
    await world.consent("sms", "15550100001", at=T + 50)
    one = await take_in(world, f"number,time\n15550100001,{T + 100}\n15550100002,{T + 100}\n", "sms", "do_not_call")
    assert await world.push("sms")
    assert set(await world.held("sms", "15550100001")) == {None}
    counts = await undone(world, one)
    assert counts["corrections"] == 1
    [pending] = await world.corrections("pending")
    assert (pending.address, pending.action, pending.occurred_at) == ("15550100001", "clear", T + 101)
    async with world.database.read() as connection:
        [row] = await retractions.newest(connection, "default", 1)
        assert [one.address for one in await withdrawals.unsaid(connection, row.id, 10)] == ["15550100002"]
    await world.push("sms")
    assert (await world.held("sms", "15550100001"))[None][0] == "opt-in"


async def test_what_was_not_sent_yet_is_withdrawn(world: World) -> None:
    one = await take_in(world, lines((ANN, 100)))
    assert len(await world.corrections("pending")) == 1
    await undone(world, one)
    assert [row.state for row in await world.corrections()] == ["superseded"]
    await world.stop("email", ANN, "unsubscribe", at=T + 50)
    assert [row.occurred_at for row in await world.corrections("pending")] == [T + 50]


async def test_the_past_still_knows_what_was_taken_back(world: World) -> None:
    subject, before = Subject("default", "email", ANN), world.clock()
    world.clock.sleep(10)
    one = await take_in(world, lines((ANN, 100)))
    known = world.clock()
    world.clock.sleep(10)
    await undone(world, one)

    async def told(at: Any, basis: Any) -> set[str]:
        state = await past.state_at(world.database, subject, at, basis, world.policy)
        return {row.cause.reason for row in state.causes}

    assert await told(before, "recorded") == set()
    assert await told(known, "recorded") == {"unsubscribe"}
    assert await told(world.clock(), "recorded") == set()
    assert await told(known, "occurred") == set()
    async with world.database.read() as connection:
        events = await history.page(connection, subject, history.BEGINNING, 100)
    assert [event.kind for event in events if event.kind != "correction"] == ["fact", "retraction"]
    assert events[0].settled_at == world.clock()


async def test_a_month_is_not_dropped_while_something_is_taken_back(world: World) -> None:
    await upkeep.run_due(world.database, world.rules, Retention(), world.clock)
    one = await take_in(world, lines((ANN, 100), (BOB, 100)))
    await world.callback("email", [{"reason": "spam", "email": BOB, "timestamp": T}])
    await revert(world, one)
    await retire(world)
    assert len(await world.query("select 1 from batches")) == 2
    await carry_out(world)
    world.clock.sleep(DAY)
    assert await upkeep.run_due(world.database, world.rules, Retention(timedelta(days=1)), world.clock)
    assert await world.query("select 1 from batches") == []
    assert {row.reason for row in await world.query("select reason from checkpoint_causes")} == {"complaint"}
    assert await disagreements(world) == []
    assert await listed(world) == {}
    other = await take_in(world, lines(("dan@example.com", 100)))
    await world.execute(f"delete from batches where headers ->> 'import-id' = '{other.id}'")
    with pytest.raises(Conflict, match="does not keep"):
        await revert(world, other)


# Random histories.

BOXES = ("a@example.com", "b@example.com", "c@example.org")
NUMBERS = ("15550100001", "15550100002")


class Story:
    """Random words of lists, callbacks and people about a few addresses, and who has said what: the model."""

    def __init__(self, world: World, seed: int) -> None:
        self.world = world
        self.chance = random.Random(seed)
        self.imports: list[Import] = []

    def _time(self) -> int:
        return T + self.chance.randrange(1, 8) * DAY

    async def step(self) -> None:
        """Something is said."""
        await self.chance.choice((self.take_in, self.take_in, self.callback, self.callback, self.write, self.push))()
        self.world.clock.sleep(self.chance.choice((0.0, 1.0, 3600.0)))

    async def take_in(self) -> None:
        reason = self.chance.choice(("unsubscribe", "soft_bounce"))
        rows = [(box, self._time()) for box in self.chance.choices(BOXES, k=self.chance.randint(1, 6))]
        text = "".join(f"{box},{at if self.chance.random() < 0.8 else ''}\n" for box, at in rows)
        self.imports.append(await take_in(self.world, f"email,time\n{text}", reason=reason))

    async def callback(self) -> None:
        if self.chance.random() < 0.3:
            number, opts = self.chance.choice(NUMBERS), self.chance.random() < 0.5
            await self.world.callback("sms", [{"number": number, "timestamp": self._time(), "opt-in": opts}])
            return
        words = ("unsub", "soft_bounce", "spam")
        await self.world.callback(
            "email",
            [
                {"reason": self.chance.choice(words), "email": self.chance.choice(BOXES), "timestamp": self._time()}
                for _ in range(self.chance.randint(1, 4))
            ],
        )

    async def write(self) -> None:
        box = self.chance.choice(BOXES)
        try:
            if self.chance.random() < 0.6:
                await self.world.stop("email", box, self.chance.choice(("unsubscribe", "manual")), self._time())
            else:
                await self.world.consent("email", box, self._time())
        except Conflict:
            pass

    async def push(self) -> None:
        await self.world.push(self.chance.choice(("email", "sms")))


async def model(world: World) -> dict[tuple[str, str], Any]:
    """The causes that the facts which were said, and not taken back, add up to, by the rules of the domain: told from
    the bodies and the audit log, not from what is stored."""
    said: set[tuple[uuid.UUID, Fact]] = set()
    async with world.database.begin() as connection:
        for applied in await batches.applied_after(connection, uuid.UUID(int=0), batches.LAST_ID):
            found = testimony.testimony_of(applied, world.rules)
            said |= {(applied.received.id, fact) for fact in found.facts}
        async for some in access.stated(connection):
            said |= set(some)
        reverted = await retractions.counted_out(connection, [one for one, _ in said])
    facts = sorted({fact for one, fact in said if one not in reverted})
    causes: dict[tuple[str, str], Any] = {}
    for address in {fact.address for fact in facts}:
        for reason, cause in fold((fact for fact in facts if fact.address == address), world.policy).items():
            causes[address, reason] = cause
    return causes


async def stored(world: World) -> dict[tuple[str, str], Any]:
    found: dict[tuple[str, str], Any] = {}
    async with world.database.begin() as connection:
        async for causes in suppressions.every_cause(connection):
            found |= {(address, cause.reason): cause for _, _, address, cause in causes}
    return found


@pytest.mark.parametrize("seed", range(4))
async def test_any_history_without_what_was_taken_back_is_what_the_model_says(world: World, seed: int) -> None:
    """Whatever is said before and after, in any order, and whichever imports are taken back."""
    story = Story(world, seed)
    for _ in range(3):
        for _ in range(8):
            await story.step()
        for one in story.chance.sample(story.imports, min(2, len(story.imports))):
            await revert(world, one)
        await carry_out(world)
        assert await stored(world) == await model(world)
        assert await disagreements(world) == []


@pytest.mark.parametrize("seed", range(3))
async def test_when_nothing_else_happened_the_list_and_its_digest_are_those_of_before(world: World, seed: int) -> None:
    story = Story(world, 100 + seed)
    for _ in range(10):
        await story.step()
    before, digest = await stored(world), await digests(world)
    world.clock.sleep(60)
    await story.take_in()
    await undone(world, story.imports[-1])
    assert await stored(world) == before
    assert await digests(world) == digest


async def digests(world: World) -> list[str]:
    verified, found = await verify(world)
    assert found == []
    # One that has no causes any more has the digest of nothing, as one that never had any.
    return sorted(one.live.hexdigest() for one in verified.compared.values() if one.causes)


# Crashes, and company.


async def test_a_worker_that_dies_between_pages_is_gone_on_from(world: World) -> None:
    """Whatever step it dies at, the next one goes on, and the end is the same."""
    many = lines(*((f"a{n:05}@example.com", n) for n in range(taking_back.PAGE * 2 + 500)))
    one = await take_in(world, many)
    await world.stop("email", "a00001@example.com", "unsubscribe", at=T + 1)
    await take_in(world, lines(("a00007@example.com", 7)))
    await revert(world, one)
    deaths, row = 0, None

    def die(_: Any) -> None:
        raise asyncio.CancelledError

    while True:
        try:
            done = await undo.run_next(world.database, world.rules, world.clock, die)
        except asyncio.CancelledError:
            deaths += 1
            async with world.database.read() as connection:
                [row] = await retractions.newest(connection, "default", 1)
            if row.state == "done":
                break
            assert row.state == "running"
            continue
        assert done is not None
    assert deaths > 5
    assert row is not None
    assert (row.counts["facts"], row.counts["handed_over"], row.counts["evidence"]) == (4498, 2, 1)
    left = await world.query("select address from suppressions where stop_at is not null order by address")
    assert [one.address for one in left] == ["a00001@example.com", "a00007@example.com"]
    assert await disagreements(world) == []


async def test_two_workers_do_not_get_in_each_other_s_way(world: World) -> None:
    one = await take_in(world, lines(*((f"a{n}@example.com", n) for n in range(50))))
    await revert(world, one)
    done = await asyncio.gather(*(undo.run_next(world.database, world.rules, world.clock) for _ in range(4)))
    assert [found is not None for found in done].count(True) == 1
    assert await disagreements(world) == []
    assert await stored(world) == {}


async def test_callbacks_pour_in_for_the_same_addresses_meanwhile(world: World) -> None:
    """None of them is lost, those that repeat what the list said the least, and all that stands is theirs."""
    count = 120
    one = await take_in(world, lines(*((f"a{n}@example.com", n + 1) for n in range(count))))
    other = World(world.database, world.settings)
    await revert(world, one)
    again = asyncio.Event()

    async def pour(first: int) -> None:
        for n in range(first, count, 4):
            box = f"a{n}@example.com"
            if n % 8 < 4:
                await take_in(other, lines((box, n + 1)))
            else:
                await other.callback("email", [{"reason": "unsub", "email": box, "timestamp": T + n + 1}])
            again.set()

    pouring = [asyncio.create_task(pour(first)) for first in range(2)]
    await again.wait()
    await carry_out(world)
    await asyncio.gather(*pouring)
    assert await stored(world) == await model(world)
    assert len(await stored(world)) == count // 2
    assert await disagreements(world) == []


async def test_corrections_are_looked_up_once_for_each_address(world: World) -> None:
    """Whoever takes a page back holds its rows meanwhile: looked up for each pair, they were held for half a minute."""
    one = await take_in(world, lines(*((f"u{n}@example.com", n) for n in range(300))))
    addresses = {f"u{n}@example.com" for n in range(300)}
    await world.execute("analyze")
    async with world.database.begin() as connection:
        looks = text("select seq_scan + idx_scan from pg_stat_xact_user_tables where relname = 'corrections'")
        before = (await connection.execute(looks)).scalar_one()
        await withdrawals.recompute(connection, "default", "email", addresses, world.policy, world.clock())
        assert (await connection.execute(looks)).scalar_one() - before <= 2 * len(addresses)
    assert (await undone(world, one))["facts"] == len(addresses)
