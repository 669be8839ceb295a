"""Callbacks that share a transaction end as if each had one of its own."""

import asyncio
import random
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs

from service.domain.addresses import Channel
from service.flows import write
from service.flows.ingest import apply_recorded
from service.flows.intake import SMALL
from service.flows.write import Statement
from service.store import access, outbox, suppressions
from service.store.database import MANY
from service.store.suppressions import Entry, Provenance
from tests.flows.speaking import World
from tests.flows.test_ingest import counts, suppressed, unsub

WORDS = ("unsub", "hard_bounce", "soft_bounce", "spam", "vanished")


async def transactions(world: World) -> int:
    return int((await world.query("select count(distinct xmin::text) from batches"))[0][0])


@asynccontextmanager
async def poisoned(world: World, address: str) -> AsyncIterator[None]:
    """A fault of our own that only this address meets."""
    await world.execute(
        f"""create function poison() returns trigger language plpgsql as
            $$ begin if new.address = '{address}' then raise 'poison'; end if; return new; end $$"""
    )
    await world.execute("create trigger poison before insert on facts for each row execute function poison()")
    try:
        yield
    finally:
        await world.execute("drop function poison cascade")


async def test_those_that_come_together_share_a_transaction(world: World) -> None:
    answers = await asyncio.gather(*(world.callback("email", [unsub(f"a{n}@example.com")]) for n in range(40)))
    assert [counts(answer.outcome) for answer in answers] == [(1, 0, 0)] * 40
    assert await transactions(world) < 10
    assert len(await world.query("select distinct batch_id from facts")) == 40
    archived = await world.query("select b.id from batches b join facts f on f.batch_id = b.id where accepted = 1")
    assert {str(row.id) for row in archived} == {answer.batch_id for answer in answers}


async def test_a_lone_one_is_applied_by_itself(world: World) -> None:
    for n in range(3):
        await world.callback("email", [unsub(f"a{n}@example.com")])
    assert await transactions(world) == 3


async def test_redeliveries_and_twins_in_one_company(world: World) -> None:
    known = await world.callback("email", [unsub("known@example.com")])
    bodies = [[unsub("known@example.com")], [unsub("new@example.com")], [unsub("new@example.com")]]
    again, *twins = await asyncio.gather(*(world.callback("email", body) for body in bodies))
    assert (again.batch_id, counts(again.outcome)) == (known.batch_id, (0, 1, 0))
    assert twins[0].batch_id == twins[1].batch_id
    assert sorted(counts(twin.outcome) for twin in twins) == [(0, 1, 0), (1, 0, 0)]


async def test_one_fact_in_two_batches_is_new_in_one_of_them(world: World) -> None:
    bodies = [[unsub("a@example.com"), unsub(f"b{n}@example.com")] for n in range(5)]
    answers = await asyncio.gather(*(world.callback("email", body) for body in bodies))
    assert sorted(counts(answer.outcome) for answer in answers) == [(1, 1, 0)] * 4 + [(2, 0, 0)]


async def test_bad_entries_are_counted_where_they_came(world: World) -> None:
    bad = [{"reason": "what", "email": "b@example.com"}, 7]
    answers = await asyncio.gather(
        world.callback("email", [unsub("a@example.com"), *bad]), world.callback("email", [unsub("c@example.com")])
    )
    assert [counts(answer.outcome) for answer in answers] == [(1, 0, 2), (1, 0, 0)]
    kept = await world.query("select batch_id, entry_index, entry from quarantine order by entry_index")
    assert [(str(row.batch_id), row.entry_index) for row in kept] == [
        (answers[0].batch_id, 1),
        (answers[0].batch_id, 2),
    ]
    assert [msgspec.json.decode(row.entry) for row in kept] == bad


async def test_those_without_a_single_good_entry_are_no_exception(world: World) -> None:
    with capture_logs() as lines:
        bodies: list[list[Any]] = [[], *([{"n": n}] for n in range(3))]
        answers = await asyncio.gather(*(world.callback("email", body) for body in bodies))
    assert [counts(answer.outcome) for answer in answers] == [(0, 0, 0)] + [(0, 0, 1)] * 3
    assert "group.parted" not in [line["event"] for line in lines]


async def test_one_that_cannot_be_applied_does_not_spoil_its_company(world: World) -> None:
    async with poisoned(world, "poison@example.com"):
        names = ["a", "poison", "b", "c"]
        answers = await asyncio.gather(*(world.callback("email", [unsub(f"{name}@example.com")]) for name in names))
    assert [answer.outcome is None for answer in answers] == [False, True, False, False]
    assert [await suppressed(world, "email", f"{name}@example.com") for name in names] == [True, False, True, True]


async def test_a_large_one_holds_nobody_up(world: World) -> None:
    large = [unsub(f"l{n}@example.com") for n in range(SMALL + 1)]
    answers = await asyncio.gather(
        world.callback("email", large), *(world.callback("email", [unsub(f"s{n}@example.com")]) for n in range(3))
    )
    assert [counts(answer.outcome)[0] for answer in answers] == [SMALL + 1, 1, 1, 1]
    large_one = f"select xmin from batches where id = '{answers[0].batch_id}'"
    assert len(await world.query(f"select 1 from batches where xmin = ({large_one})")) == 1


async def test_a_very_large_one_is_counted_entry_by_entry(world: World) -> None:
    """Known, new at another time, said twice, and two that are nothing."""
    await world.callback("email", [unsub("a0@example.com"), unsub("a1@example.com", 1_600_000_000)])
    entries = [*(unsub(f"a{n}@example.com") for n in range(MANY + 1)), unsub("a5@example.com"), unsub("nobody")]
    entries.insert(700, {"reason": "what", "email": "b@example.com"})
    first = await world.callback("email", entries)
    again = await world.callback("email", entries)
    assert (counts(first.outcome), counts(again.outcome)) == ((MANY, 2, 2), (0, MANY + 2, 2))
    assert len(await world.query("select 1 from facts")) == MANY + 2
    assert len(await world.query("select 1 from quarantine")) == 2
    assert await world.corrections() == []


async def test_a_very_large_one_that_cannot_be_applied_is_recorded_whole(world: World) -> None:
    entries = [unsub(f"a{n}@example.com") for n in range(MANY + 1)]
    async with poisoned(world, "a700@example.com"):
        assert (await world.callback("email", entries)).outcome is None
    assert await world.query("select 1 from facts") == []
    assert await apply_recorded(world.database, world.rules, world.clock)
    assert len(await world.query("select 1 from facts")) == MANY + 1


def an_entry(chance: random.Random, channel: Channel, now: int) -> Any:
    at = chance.choice([None, now - chance.randrange(5), now - chance.randrange(10**6)])
    timed = {} if at is None else {"timestamp": at}
    if channel == "sms":
        return {"number": f"1555010000{chance.randrange(4)}"} | timed | chance.choice([{}, {"opt-in": True}])
    return {"reason": chance.choice(WORDS), "email": f"u{chance.randrange(6)}@example.com"} | timed


async def state(world: World, namespace: str) -> list[Any]:
    """Everything that callbacks leave behind, but for ids, for which of several batches brought a fact, and for
    corrections that were overtaken before anybody could send them."""
    asked = (
        "select address, reason, action, occurred_at from facts",
        """select address, reason, stop_at, clear_at, bounces, held_stop_at, held_clear_at, origin
           from suppressions""",
        "select address, slot, action, occurred_at, state from (select * from corrections where state <> 'superseded')",
        "select address, reason, occurred_at, why from reviews",
        "select error, convert_from(entry, 'utf8') from quarantine",
        "select sum(accepted), sum(rejected), sum(duplicates) from batches",
    )
    found = [await world.query(f"{query} where namespace = '{namespace}'") for query in asked]
    return [sorted(map(str, rows)) for rows in found]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("channel", ["email", "sms"])
async def test_company_changes_nothing(world: World, channel: Channel, seed: int) -> None:
    chance = random.Random(seed)
    now = world.clock.seconds
    bodies = [[an_entry(chance, channel, now) for _ in range(chance.randrange(1, 6))] for _ in range(30)]
    bodies += chance.sample(bodies, 5)
    for namespace in ("default", "other") if channel == "sms" else ():
        said = Statement("tester", namespace, channel, "15550100001", now - 3)
        await write.suppress(world.database, said, "do_not_call", None, world.policy, world.clock)
    await asyncio.gather(*(world.callback(channel, body) for body in bodies))
    for body in bodies:
        await world.callback(channel, body, "other")
    together, apart = await state(world, "default"), await state(world, "other")
    assert together == apart


@pytest.mark.parametrize("reason", ["unsubscribe", "manual"])
async def test_what_kahuna_tells_in_company_is_not_told_back(world: World, reason: str) -> None:
    await world.stop("email", "ann@example.com", reason, at=1_000)
    [ours] = await world.corrections("pending")
    bodies = [[unsub(address)] for address in ("ann@example.com", "bob@example.com", "dan@example.com")]
    await asyncio.gather(*(world.callback("email", body) for body in bodies))
    assert [row.id for row in await world.corrections("superseded")] == [ours.id]
    assert await world.corrections("pending") == []


async def test_an_opt_in_that_kahuna_holds_is_answered_in_company(world: World) -> None:
    """The stop that comes is older than what Kahuna holds: both sides must end up with it."""
    number = {"number": "15550100001"}
    await world.callback("sms", [{**number, "timestamp": 2_000, "opt-in": True}])
    await world.stop("sms", "15550100001", "do_not_call", at=3_000)
    await world.push("sms")
    await world.callback("sms", [{**number, "timestamp": 9_000, "opt-in": True}])
    others = [{"number": f"1555010001{n}", "timestamp": 5_000} for n in range(3)]
    told = {**number, "timestamp": 5_000}
    await asyncio.gather(*(world.callback("sms", [entry]) for entry in (told, *others)))
    [owed] = await world.corrections("pending")
    assert (owed.address, owed.action, owed.occurred_at) == ("15550100001", "suppress", 9_001)


async def test_what_another_changes_meanwhile_is_not_passed_over(world: World) -> None:
    """The statement has looked at the list already when the stop of ours is committed: nothing may be told back."""
    async with world.database.begin() as connection:
        audit_id = await access.write_down(connection, access.Deed("tester", "stop"), world.clock())
        ours = [Entry("ann@example.com", "ann@example.com", "unsubscribe", "suppress", 1_000)]
        local = Provenance("default", "email", "local", "api", world.clock(), audit_id=audit_id)
        merged = await suppressions.apply(connection, ours, local, world.policy)
        scope = outbox.Scope("default", "email", world.clock(), world.policy)
        await outbox.owe(connection, scope, merged.at_odds)
        told = asyncio.create_task(world.callback("email", [unsub("ann@example.com")]))
        await lock_waited_for(world)
    assert counts((await told).outcome) == (1, 0, 0)
    assert [row.state for row in await world.corrections()] == ["superseded"]


async def lock_waited_for(world: World) -> None:
    """Until somebody waits for what another transaction has not committed."""
    for _ in range(500):
        if await world.query("select 1 from pg_locks where not granted and locktype = 'transactionid'"):
            return
        await asyncio.sleep(0.01)
    pytest.fail("nobody waits")


def without_reviews(world: World) -> None:
    """Opt-ins count as they come."""
    namespaces = tuple(replace(namespace, opt_in_review="off") for namespace in world.settings.namespaces)
    world.rule_by(replace(world.settings, namespaces=namespaces))


@pytest.mark.parametrize("apart", [True, False], ids=["in two callbacks", "in one"])
async def test_a_start_and_a_stop_of_one_second_prove_nothing(world: World, apart: bool) -> None:
    """We suppress; what Kahuna keeps of the two, nobody knows: it is told to stop, one second later."""
    without_reviews(world)
    start = {"number": "15550100001", "timestamp": 1_000, "opt-in": True}
    stop = {"number": "15550100001", "timestamp": 1_000}
    bodies = [[start], [stop]] if apart else [[start, stop]]
    await asyncio.gather(*(world.callback("sms", body) for body in bodies))
    [owed] = await world.corrections("pending")
    assert (owed.action, owed.occurred_at) == ("suppress", 1_001)


async def test_a_consent_that_is_newer_than_such_a_second_is_told(world: World) -> None:
    without_reviews(world)
    await world.consent("sms", "15550100001", at=1_050)
    for entry in ({"opt-in": True}, {}):
        await world.callback("sms", [{"number": "15550100001", "timestamp": 1_000, **entry}])
    assert [(row.action, row.occurred_at) for row in await world.corrections("pending")] == [("clear", 1_050)]


async def test_two_that_say_the_same_do_not_wait_for_each_other(world: World) -> None:
    """Whoever has an address stores its facts; the other waits without having stored any."""
    await world.callback("sms", [{"number": "15550100001", "timestamp": 1_000}])
    same = Entry("15550100001", "15550100001", "do_not_call", "suppress", 2_000, 0)
    provenance = Provenance("default", "sms", "kahuna", "kahuna_webhook", world.clock(), (uuid.uuid4(),))
    with capture_logs() as lines:
        counted = await told_while_held(world, same, provenance)
    assert counted == (0, 1, 0)
    assert "group.parted" not in [line["event"] for line in lines]


async def told_while_held(world: World, same: Entry, provenance: Provenance) -> tuple[int, int, int]:
    """What comes of a callback that says what another transaction says too, which has the address already."""
    async with world.database.begin() as connection:
        await suppressions.lock(connection, "default", "sms", ["15550100001"])
        told = asyncio.create_task(world.callback("sms", [{"number": "15550100001", "timestamp": 2_000}]))
        await lock_waited_for(world)
        assert (await suppressions.apply(connection, [same], provenance, world.policy)).new
    return counts((await told).outcome)
