"""Archived batches applied again: nothing happens twice, what is understood by now comes in, decisions stand."""

import asyncio
import random
import uuid
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from service.domain.addresses import Channel
from service.errors import Conflict, NotFound
from service.flows import ingest, quarantine
from service.flows.ingest import apply_recorded
from service.flows.replay import SLICE, Replayed, Step, replay_many, replay_one
from service.store import archive, batches
from service.store.archive import Asked
from service.store.database import Database
from service.store.quarantine import Asked as Entries
from tests.flows.speaking import World
from tests.flows.test_company import an_entry, poisoned
from tests.flows.test_ingest import NUMBER, counts, suppressed, unsub
from tests.flows.test_races import started
from tests.flows.test_reviews import decide, start, waiting

EVERYTHING = Asked("default")
WORDS = ("vanished", "complaint")


def knowing(world: World, **more: Any) -> None:
    """From now on one word more is understood in the default namespace, and other settings of it may differ."""
    first, *others = world.settings.namespaces
    changed = replace(first, extra_reasons=(WORDS,), **more)
    world.rule_by(replace(world.settings, namespaces=(changed, *others)))


async def replayed(world: World, asked: Asked = EVERYTHING, **more: Any) -> Counter[str]:
    """The figures of a replay of many."""
    return sum([step.counts async for step in steps(world, asked, **more)], Counter())


def steps(world: World, asked: Asked = EVERYTHING, **more: Any) -> Any:
    world.clock.sleep(1)
    return replay_many(world.database, asked, world.rules, world.clock, "tester", **more)


async def once(world: World, batch_id: str, **more: Any) -> Replayed:
    found = uuid.UUID(batch_id)
    return await replay_one(world.database, found, world.rules, world.clock, "tester", "default", **more)


async def everything(world: World) -> list[Any]:
    """All that callbacks and replays leave behind, but for the audit log."""
    tables = ("batches", "facts", "suppressions", "changes", "quarantine", "reviews", "corrections")
    rows = [await world.query(f"select * from {table}") for table in tables]
    return [sorted(map(str, found)) for found in rows]


async def deeds(world: World) -> list[Any]:
    return await world.query(
        "select actor, action, detail from audit where action like '%replayed' order by at, action"
    )


async def unapplied(world: World, entries: list[Any], channel: Channel = "email") -> str:
    """The id of a batch that was only recorded, for a fault of ours."""
    await world.execute("alter table facts rename to facts_away")
    first = await world.callback(channel, entries)
    await world.execute("alter table facts_away rename to facts")
    assert first.outcome is None
    return first.batch_id


async def a_history(world: World, channel: Channel, seed: int) -> None:
    """Callbacks of all kinds, stops and consents of ours between them, and some reviews decided."""
    chance = random.Random(seed)
    for _ in range(25):
        entries = [an_entry(chance, channel, world.clock.seconds) for _ in range(chance.randrange(1, 6))]
        await world.callback(channel, entries)
        if channel == "sms" and chance.random() < 0.3:
            number = f"1555010000{chance.randrange(4)}"
            await world.stop("sms", number, chance.choice(["do_not_call", "manual"]), world.clock.seconds)
        if channel == "sms" and chance.random() < 0.3 and (asked := await waiting(world)):
            await decide(world, chance.choice(["approved", "refused"]), chance.choice(asked)["id"])
        world.clock.sleep(chance.randrange(3))


# Nothing happens twice.


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("channel", ["email", "sms"])
async def test_a_replay_of_anything_in_any_order_changes_nothing(world: World, channel: Channel, seed: int) -> None:
    await a_history(world, channel, seed)
    await world.push(channel)
    before = await everything(world)
    ids = [str(row.id) for row in await world.query("select id from batches")]
    world.clock.sleep(3600)
    chance = random.Random(seed)
    for batch_id in chance.choices(ids, k=12):
        assert not (await once(world, batch_id)).changed
    found = await replayed(world)
    assert (found["batches"], found["changed"], found["new"]) == (len(ids), 0, 0)
    assert await everything(world) == before


@pytest.mark.parametrize(
    ("opt_in_review", "untimed_opt_in"), [("all", "hold"), ("off", "receipt"), ("local", "receipt"), ("off", "hold")]
)
async def test_no_setting_makes_a_replay_decide_about_an_opt_in_anew(
    world: World, opt_in_review: str, untimed_opt_in: str
) -> None:
    """Waiting, refused, approved, or a fact: each stays what it is."""
    await a_history(world, "sms", 7)
    assert len(await waiting(world)) > 0
    assert len(await world.query("select 1 from reviews where state = 'refused'")) > 0
    before = await everything(world)
    knowing(world, opt_in_review=opt_in_review, untimed_opt_in=untimed_opt_in)
    assert (await replayed(world))["changed"] == 0
    assert await everything(world) == before


async def test_opt_ins_that_waited_for_nobody_are_not_held_later(world: World) -> None:
    knowing(world, opt_in_review="off", untimed_opt_in="receipt")
    await world.callback("sms", [*start(None), *start(world.clock.seconds - 5)])
    knowing(world, opt_in_review="all")
    assert (await replayed(world))["changed"] == 0
    assert not await waiting(world)


async def test_a_fact_that_was_lost_is_there_again_and_counted_once(world: World) -> None:
    first = await world.callback("email", [unsub("a@example.com", None), unsub("b@example.com")])
    before = await world.query("select address, occurred_at, batch_id, entry_index from facts order by 1")
    await world.execute("delete from facts")
    world.clock.sleep(50)
    again = await once(world, first.batch_id)
    assert (again.new, counts(again.outcome)) == (2, (2, 0, 0))
    assert await world.query("select address, occurred_at, batch_id, entry_index from facts order by 1") == before


# What is understood by now.


async def test_with_a_new_word_exactly_the_rejected_entry_comes_in(world: World) -> None:
    received_at = world.clock.seconds
    entries = [unsub("a@example.com"), unsub("b@example.com", None, reason="vanished"), 7]
    first = await world.callback("email", entries)
    assert counts(first.outcome) == (1, 0, 2)
    knowing(world)
    world.clock.sleep(900)
    found = await replayed(world)
    assert (found["changed"], found["new"], found["requeued"], found["rejected"]) == (1, 1, 1, 1)
    facts = await world.query("select reason, occurred_at, batch_id, entry_index from facts where address like 'b@%'")
    assert [(r.reason, r.occurred_at, str(r.batch_id), r.entry_index) for r in facts] == [
        ("complaint", received_at, first.batch_id, 1)
    ]
    again = await world.callback("email", entries)
    assert (again.batch_id, counts(again.outcome)) == (first.batch_id, (0, 2, 1))
    assert again.outcome is not None
    assert again.outcome.errors == [{"index": 2, "error": "not-an-object"}]
    states = await world.query("select entry_index, state, decided_by from quarantine order by 1")
    assert [tuple(row) for row in states] == [(1, "requeued", "tester"), (2, "open", None)]
    assert (await replayed(world))["changed"] == 0


@pytest.mark.parametrize("seed", range(3))
async def test_a_word_learnt_late_leaves_the_list_that_it_would_have_made(world: World, seed: int) -> None:
    chance = random.Random(seed)
    bodies: list[list[Any]] = [
        [an_entry(chance, "email", world.clock.seconds) for _ in range(chance.randrange(1, 5))] for _ in range(30)
    ]
    for body in bodies:
        await world.callback("email", body)
    taught = tuple(replace(namespace, extra_reasons=(WORDS,)) for namespace in world.settings.namespaces)
    world.rule_by(replace(world.settings, namespaces=taught))
    for body in bodies:
        await world.callback("email", body, "other")
    assert (await replayed(world))["requeued"] > 0
    for query in (
        "select address, reason, occurred_at from facts",
        "select address, reason, stop_at, clear_at, bounces, held_stop_at from suppressions",
        "select sum(accepted), sum(duplicates), sum(rejected) from batches",
        "select error from (select * from quarantine where state = 'open')",
    ):
        rows = [await world.query(f"{query} where namespace = '{name}'") for name in ("default", "other")]
        assert sorted(map(str, rows[0])) == sorted(map(str, rows[1])), query


async def test_an_entry_that_is_understood_and_known_is_a_duplicate(world: World) -> None:
    await world.callback("email", [unsub("a@example.com", reason="spam")])
    first = await world.callback("email", [unsub("a@example.com", reason="vanished"), unsub("b@example.com")])
    knowing(world)
    again = await once(world, first.batch_id)
    assert (again.requeued, again.new, counts(again.outcome)) == (1, 0, (1, 1, 0))


async def test_a_word_that_is_forgotten_takes_nothing_back(world: World) -> None:
    knowing(world)
    first = await world.callback("email", [unsub("a@example.com", reason="vanished")])
    before = await everything(world)
    world.rule_by(world.settings)
    assert not (await once(world, first.batch_id)).changed
    assert await everything(world) == before


async def test_an_error_that_is_another_by_now_is_told(world: World) -> None:
    first = await world.callback("email", [{"reason": "vanished", "email": "nobody", "timestamp": 5}])
    knowing(world)
    again = await once(world, first.batch_id)
    assert again.outcome.errors == [{"index": 0, "error": "not-an-email-address"}]
    assert counts(again.outcome) == (0, 0, 1)
    rows = await world.query("select error, state from quarantine")
    assert [tuple(row) for row in rows] == [("not-an-email-address", "open")]


async def test_a_batch_that_was_only_recorded_is_applied(world: World) -> None:
    received_at = world.clock.seconds
    batch_id = await unapplied(world, [unsub("a@example.com", None), 7])
    world.clock.sleep(500)
    found = await replayed(world)
    assert (found["recorded"], found["new"], found["rejected"]) == (1, 1, 1)
    assert [row.occurred_at for row in await world.query("select occurred_at from facts")] == [received_at]
    assert not await apply_recorded(world.database, world.rules, world.clock)
    assert counts((await world.callback("email", [unsub("a@example.com", None), 7])).outcome) == (0, 1, 1)
    assert len(await world.query(f"select 1 from quarantine where batch_id = '{batch_id}'")) == 1


async def test_the_sweeper_reads_by_the_words_of_today(world: World) -> None:
    await unapplied(world, [unsub("a@example.com"), unsub("b@example.com", reason="vanished")])
    knowing(world)
    assert await apply_recorded(world.database, world.rules, world.clock)
    assert await suppressed(world, "email", "b@example.com")


async def test_a_discarded_entry_stays_discarded(world: World) -> None:
    first = await world.callback("email", [unsub("a@example.com", reason="vanished")])
    place = uuid.UUID(first.batch_id), 0
    await quarantine.discard(world.database, place, "tester", "a test", world.clock, None)
    knowing(world)
    before = await everything(world)
    assert not (await once(world, first.batch_id)).changed
    assert await everything(world) == before


# Many, and trying only.


async def test_a_dry_run_tells_the_same_and_writes_nothing(world: World) -> None:
    await a_history(world, "email", 3)
    await unapplied(world, [unsub("new@example.com")])
    knowing(world)
    before, deeds_before = await everything(world), await deeds(world)
    tried = await replayed(world, dry_run=True)
    assert await everything(world) == before
    assert await deeds(world) == deeds_before == []
    done = await replayed(world)
    assert done["requeued"] > 1
    # Each transaction is tried by itself; here they all fit into one of each kind.
    assert tried == done


async def test_what_is_meant_is_replayed_in_the_order_of_receipt(world: World) -> None:
    for n in range(5):
        await world.callback("email", [unsub(f"a{n}@example.com")])
        await world.callback("email", [unsub(f"a{n}@example.com")], "other")
        world.clock.sleep(30)
        await world.callback("sms", [{"number": f"1555010000{n}"}])
        world.clock.sleep(30)
    at = [row.received_at for row in await world.query("select distinct received_at from batches order by 1")]
    asked = Asked("default", "email", None, at[2], at[6])
    found = [step async for step in steps(world, asked)]
    wanted = await world.query(
        "select id from batches where namespace = 'default' and channel = 'email' and received_at in "
        f"('{at[2]}', '{at[4]}') order by received_at"
    )
    assert [one.batch_id for step in found for one in step.replayed] == [row.id for row in wanted]
    assert (await replayed(world))["batches"] == 10
    assert [step.up_to for step in [s async for s in steps(world)]] == at, "a step is of one channel"


async def test_many_share_a_transaction_and_one_that_fails_does_not_spoil_them(world: World) -> None:
    names = [*(f"a{n}" for n in range(SLICE)), "poison", "b"]
    for name in names:
        await world.callback("email", [unsub(f"{name}@example.com", reason="vanished")])
        world.clock.sleep(1)
    knowing(world)
    async with poisoned(world, "poison@example.com"):
        found: list[Step] = [step async for step in steps(world)]
    assert [len(step.replayed) for step in found] == [SLICE, 1]
    assert [len(step.failed) for step in found] == [0, 1]
    assert not await suppressed(world, "email", "poison@example.com")
    assert await suppressed(world, "email", "b@example.com")
    assert (await replayed(world))["requeued"] == 1


async def test_it_may_be_left_and_begun_again(world: World) -> None:
    for n in range(3):
        await world.callback("email", [unsub(f"a{n}@example.com", reason="vanished")])
        world.clock.sleep(1)
        await world.callback("sms", [{"number": f"1555010000{n}"}])
        world.clock.sleep(1)
    knowing(world)
    async for step in steps(world):
        assert step.counts["requeued"] == 1
        break
    assert (await replayed(world))["requeued"] == 2


async def test_a_batch_that_somebody_has_is_waited_for(world: World) -> None:
    """Longer than one transaction is retried."""
    first = await world.callback("email", [unsub("a@example.com", reason="vanished")])
    knowing(world)
    impatient = replace(world.settings, lock_timeout_milliseconds=20)
    async with Database.of(impatient) as database:
        async with world.database.begin() as connection:
            await archive.hold(connection, uuid.UUID(first.batch_id))
            world.clock.sleep(1)
            work = replay_many(database, EVERYTHING, world.rules, world.clock, "tester")
            task = asyncio.ensure_future(anext(work))
            waits: set[Any] = set()
            while len(waits) < 6 and not task.done():
                waits |= {
                    row.waitstart for row in await world.query("select waitstart from pg_locks where not granted")
                }
                await asyncio.sleep(0.005)
        assert (await task).counts["requeued"] == 1


async def test_every_change_is_written_down_with_who_asked(world: World) -> None:
    await world.callback("email", [unsub("a@example.com")])
    first = await world.callback("email", [unsub("b@example.com", reason="vanished")])
    knowing(world)
    await replayed(world, Asked("default", "email"))
    request, change = await deeds(world)
    assert (request.actor, request.action, request.detail["since"]) == ("tester", "archive.replayed", None)
    assert (change.actor, change.action) == ("tester", "batch.replayed")
    assert change.detail == {"batch_id": first.batch_id, "was": "applied", "new": 1, "requeued": 1, "rejected": 0}
    await once(world, first.batch_id)
    assert [row.action for row in await deeds(world)].count("batch.replayed") == 2, "one asked for by its id is, always"


async def test_there_is_no_such_batch_in_this_namespace(world: World) -> None:
    other = await world.callback("email", [unsub("a@example.com")], "other")
    for batch_id in (other.batch_id, str(uuid.UUID(int=0))):
        with pytest.raises(NotFound):
            await once(world, batch_id)


# Beside others.


async def test_a_redelivery_waits_for_a_replay_that_applies_its_batch(world: World) -> None:
    batch_id = await unapplied(world, [unsub("a@example.com")])
    async with world.database.begin() as connection:
        [found] = await archive.locked(connection, [uuid.UUID(batch_id)])
        member = await ingest.read_again(found.batch, world.rules)
        task = await started(world, world.callback("email", [unsub("a@example.com")]))
        assert not await apply_recorded(world.database, world.rules, world.clock), "the sweeper passes it over"
        [outcome] = await ingest.apply(connection, [member], world.rules, world.clock())
        await batches.finish(connection, found.batch.id, outcome, world.clock())
    again = await task
    assert (again.batch_id, counts(again.outcome)) == (batch_id, (0, 1, 0))


async def test_a_replay_waits_for_the_sweeper_that_applies_its_batch(world: World) -> None:
    batch_id = await unapplied(world, [unsub("a@example.com")])
    async with world.database.begin() as connection:
        batch = await batches.next_unapplied(connection, world.clock())
        assert batch is not None
        task = await started(world, once(world, batch_id))
        [outcome] = await ingest.apply(
            connection, [await ingest.read_again(batch, world.rules)], world.rules, world.clock()
        )
        await batches.finish(connection, batch.id, outcome, world.clock())
    assert not (await task).changed


async def test_whoever_decides_first_about_an_entry_has_decided(world: World) -> None:
    first = await world.callback("email", [unsub("a@example.com", reason="vanished")])
    batch_id = uuid.UUID(first.batch_id)
    knowing(world)
    async with world.database.begin() as connection:
        await archive.hold(connection, batch_id)
        replaying = await started(world, once(world, first.batch_id))
        discarding = asyncio.create_task(
            quarantine.discard(world.database, (batch_id, 0), "tester", "a test", world.clock, None)
        )
    outcomes = await asyncio.gather(replaying, discarding, return_exceptions=True)
    [state] = await world.query("select state from quarantine")
    assert await suppressed(world, "email", "a@example.com") is (state.state == "requeued")
    assert isinstance(outcomes[1], Conflict) is (state.state == "requeued")


async def test_replays_redeliveries_sweepers_and_requeues_at_once_end_with_one_truth(world: World) -> None:
    bodies: list[list[Any]] = [
        [unsub(f"a{n % 4}@example.com", 100 + n, reason="vanished"), unsub(f"b{n}@example.com")] for n in range(6)
    ]
    ids = [(await world.callback("email", body)).batch_id for body in bodies]
    waits: list[Any] = [unsub("w@example.com", reason="vanished"), 7, unsub("x@example.com")]
    ids.append(await unapplied(world, waits))
    knowing(world)
    world.clock.sleep(5)
    work: list[Any] = []
    for body, batch_id in zip([*bodies, waits], ids, strict=True):
        work += [world.callback("email", body), once(world, batch_id), once(world, batch_id)]
    every = Entries("default", "open")
    work += [quarantine.requeue_many(world.database, every, None, "tester", world.rules, world.clock) for _ in range(2)]
    work += [apply_recorded(world.database, world.rules, world.clock) for _ in range(3)] + [replayed(world)]
    random.Random(5).shuffle(work)
    await asyncio.gather(*work)
    assert (await replayed(world))["changed"] == 0
    assert len(await world.query("select 1 from facts")) == 14
    [row] = await world.query("select sum(accepted), sum(duplicates), sum(rejected) from batches")
    assert tuple(row) == (14, 0, 1)
    assert [r.state for r in await world.query("select state from quarantine where entry_index = 0")] == [
        "requeued"
    ] * 6
    assert NUMBER not in str(await deeds(world))
