"""Locks are taken in one order: two replicas with the same callbacks, each in an order of its own, never deadlock."""

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from random import Random

import asyncpg
import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text

from service.domain.suppression import Policy
from service.errors import StorageBusy
from service.settings import Settings
from service.store import arrivals, batches, bulk, outbox, suppressions
from service.store.arrivals import Arrival, Group
from service.store.batches import Received
from service.store.database import (
    MANY,
    SEPARATOR,
    Connection,
    Database,
    out_of_turn,
    until_settled,
)
from service.store.faults import Overtaken, is_conflict
from service.store.merging import ENTRIES, MERGE_ONCE, PARTITION
from service.store.suppressions import RUN, Entry, Merged, Provenance, columns_of
from tests.flows.test_crowds import circles
from tests.store.test_bulk import POLICY, held, plain, provenance, stop

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
LOW, MIDDLE, HIGH = (bytes([n]) * 32 for n in (1, 2, 3))


def received(digest: bytes) -> Received:
    return Received(uuid.uuid4(), "default", "email", "kahuna_webhook", NOW, {}, b"[]", digest)


async def claimed(database: Database, digests: list[bytes]) -> int:
    async with database.begin() as connection:
        return len(await batches.claim_digests(connection, [received(one) for one in digests]))


async def stored(database: Database, digests: list[bytes]) -> int:
    told = [Arrival(received(one), 1, []) for one in digests]
    said = [Entry("a@example.com", "a@example.com", "manual", "suppress", 1, 0, batch=n) for n in range(len(told))]
    ids = tuple(one.batch.id for one in told)
    provenance = Provenance("default", "email", "kahuna", "kahuna_webhook", NOW, batches=ids)
    async with database.straight() as connection:
        return len((await arrivals.store(connection, Group(told, said, provenance, Policy()))).new)


async def stored_apart(database: Database, digests: list[bytes]) -> int:
    told = [Arrival(received(one), 0, []) for one in digests]
    ids = tuple(one.batch.id for one in told)
    provenance = Provenance("default", "email", "kahuna", "kahuna_webhook", NOW, batches=ids)
    async with database.single() as connection:
        done = await arrivals.store_apart(connection, Group(told, [], provenance, Policy()))
    assert done is not None
    return len(done.new)


async def waiting(connection: Connection, count: int) -> None:
    """Until so many transactions wait for another."""
    query = text("select count(*) from pg_locks where not granted and locktype = 'transactionid'")
    for _ in range(200):
        if (await connection.execute(query)).scalar_one() == count:
            return
        await asyncio.sleep(0.01)
    pytest.fail("they do not wait")


@pytest.mark.parametrize("way", [claimed, stored, stored_apart], ids=["by itself", "in company", "in one statement"])
async def test_digests_are_claimed_in_their_order(
    database: Database, way: Callable[[Database, list[bytes]], Awaitable[int]]
) -> None:
    """A third one holds the middle until both are on their way: unordered, each would have what the other needs."""
    async with database.read() as looking, database.begin() as third:
        await batches.claim_digests(third, [received(MIDDLE)])
        there = asyncio.ensure_future(way(database, [LOW, MIDDLE, HIGH]))
        await waiting(looking, 1)
        back = asyncio.ensure_future(way(database, [HIGH, MIDDLE, LOW]))
        await waiting(looking, 2)
        await third.rollback()
    assert (await there, await back) == (3, 0)


@given(st.integers(0, 2**32), st.sampled_from([1, 3, 50_000]))
@hypothesis.settings(max_examples=6, deadline=None)
def test_many_entries_are_in_the_order_of_their_keys_too(seed: int, of_each: int) -> None:
    chance = Random(seed)
    said = [
        Entry(f"u{chance.randrange(2 * RUN // of_each + 1)}@example.com", "", reason, "suppress", chance.randrange(9))
        for _ in range(2 * RUN + 7)
        for reason in [chance.choice(["complaint", "unsubscribe"])]
    ]
    columns = columns_of(said)
    told = zip(
        columns["address"].split(SEPARATOR),
        columns["reason"].split(","),
        map(int, columns["occurred_at"].split(",")),
        strict=True,
    )
    assert list(told) == sorted((entry.address, entry.reason, entry.occurred_at) for entry in said)


async def partitions(connection: Connection, entries: list[Entry]) -> dict[str, str]:
    """The partition of the facts in which each of these addresses is, as the server says."""
    await suppressions.apply(connection, entries, provenance(), POLICY)
    rows = (await connection.execute(text("select address, tableoid::regclass::text as place from facts"))).all()
    return {row.address: row.place for row in rows}


async def test_addresses_are_numbered_as_the_server_parts_them(database: Database) -> None:
    odd = [stop(f"{name}@example.com") for name in ("ü", "💌", "a" * 300, "+", "'")]
    async with database.begin() as connection:
        places = await partitions(connection, [*plain(200), *odd])
        numbers = await connection.execute(text(f"select address, {PARTITION} as number from facts"))
        pairs = {(places[row.address], row.number) for row in numbers}
    assert len(pairs) == len({place for place, _ in pairs}) == len({number for _, number in pairs}) == 8


async def crossing(database: Database) -> tuple[list[Entry], list[Entry], Entry]:
    """What two tell, and what holds the first one up. By their keys alone the second would store what the first has
    still to store, and then wait for it: `COPY` stores a partition's rows together, those that it met first."""
    some = plain(200)
    async with database.begin() as connection:
        await suppressions.apply(connection, some, provenance(), POLICY)
        rows = (await connection.execute(text(f"select address, {PARTITION} as number from facts"))).all()
        await connection.rollback()
    number = {row.address: row.number for row in rows}
    begins, middle, late = (next(e for e in some[n:] if number[e.address] == p) for n, p in ((0, 0), (50, 3), (100, 6)))
    both = next(e for e in some[150:] if number[e.address] == 0)
    ours = [stop(f"y{n:05d}@example.com") for n in range(MANY)]
    return [begins, middle, late, both, *ours], [late, both], middle


async def applied(database: Database, entries: list[Entry]) -> Merged:
    async with database.begin() as connection:
        return await bulk.apply(connection, entries, provenance(), POLICY)


@pytest.mark.parametrize("more", [0, MANY], ids=["merged", "copied"])
async def test_facts_are_stored_partition_by_partition(settings: Settings, more: int) -> None:
    """A third one holds one of the first's facts, until the second waits for the first."""
    async with Database.of(settings) as database:
        one, other, middle = await crossing(database)
        async with database.read() as looking, held(database, [middle]) as third:
            first = asyncio.ensure_future(applied(database, one))
            await waiting(looking, 1)
            second = asyncio.ensure_future(
                applied(database, [*other, *(stop(f"z{n:05d}@example.com") for n in range(more))])
            )
            await waiting(looking, 2)
            await third.rollback()
        await asyncio.gather(first, second)
    assert await circles(settings) == 0


async def test_a_row_that_turned_up_meanwhile_is_not_waited_for(database: Database) -> None:
    """It may be locked by somebody who waits for a fact of ours. The next attempt finds it there, in its order."""
    first, second = stop("a@example.com", 1_000), stop("a@example.com", 2_000)

    async def transaction(connection: Connection) -> Merged:
        attempts.append(1)
        return await suppressions.apply(connection, [second], provenance(), POLICY)

    for run, ends_well in ((until_settled, True), (_once, False)):
        attempts: list[int] = []
        async with database.read() as looking, held(database, [first]):
            ours = asyncio.ensure_future(run(database, transaction))
            await waiting(looking, 1)
        if ends_well:
            assert (await ours).new
            assert len(attempts) == 2
        else:
            with pytest.raises(Overtaken):
                await ours
        async with database.begin() as connection:
            await connection.execute(text("delete from facts"))
            await connection.execute(text("delete from suppressions"))


@pytest.mark.parametrize(("lost", "attempts"), [(Overtaken, 6), (asyncpg.LockNotAvailableError, 4)])
async def test_who_was_overtaken_tries_more_often_than_who_has_waited(
    database: Database, lost: type[Exception], attempts: int
) -> None:
    """Each wait may be as long as the whole `lock_timeout`, and whoever delivers waits for all of them."""
    tried: list[int] = []

    async def transaction(_: Connection) -> int:
        tried.append(1)
        if len(tried) < 6:
            raise lost
        return len(tried)

    if lost is Overtaken:
        assert await until_settled(database, transaction) == 6
    else:
        with pytest.raises(StorageBusy):
            await until_settled(database, transaction)
    assert len(tried) == attempts


async def _once(database: Database, transaction: Callable[[Connection], Awaitable[Merged]]) -> Merged:
    async with database.begin() as connection:
        return await transaction(connection)


@pytest.mark.parametrize("way", ["merged", "copied"])
async def test_nor_is_it_while_it_is_changed(settings: Settings, way: str) -> None:
    """An insert that does nothing on a conflict waits all the same for whoever changes the row: for one that may wait
    for our new rows."""
    many = [stop(f"b{n:05d}@example.com") for n in range(MANY if way == "copied" else 0)]
    a, middle, x = (stop(f"{name}@example.com") for name in ("a", "m", "x"))
    async with Database.of(settings) as database:
        async with database.read() as looking, held(database, [middle._replace(occurred_at=2_000)]) as third:
            first = asyncio.ensure_future(applied(database, [a, *many, middle, x]))
            await waiting(looking, 1)
            await applied(database, [x._replace(occurred_at=3_000)])
            later = [a._replace(occurred_at=4_000), x._replace(occurred_at=4_000)]
            second = asyncio.ensure_future(applied(database, later))
            await waiting(looking, 2)
            await third.rollback()
        came = await asyncio.gather(first, second, return_exceptions=True)
    assert [type(one) for one in came] in ([Overtaken, Merged], [Merged, Overtaken], [Merged, Merged])
    assert await circles(settings) == 0


@pytest.mark.parametrize("way", ["in company", "in one statement"])
async def test_callbacks_do_not_wait_for_it_either(database: Database, way: str) -> None:
    batch = received(LOW)
    said = [Entry("a@example.com", "a@example.com", "unsubscribe", "suppress", 2, 0)]
    group = Group([Arrival(batch, 1, [])], said, provenance()._replace(batches=(batch.id,)), Policy())

    async def store() -> object:
        if way == "in company":
            async with database.straight() as connection:
                return await arrivals.store(connection, group)
        async with database.single() as connection:
            return await arrivals.store_apart(connection, group)

    async with database.read() as looking, held(database, [stop("a@example.com")]):
        ours = asyncio.ensure_future(store())
        await waiting(looking, 1)
    if way == "in company":
        with pytest.raises(Overtaken):
            await ours
    else:
        assert await ours is None
    async with database.read() as connection:
        assert (await connection.execute(text("select count(*) from facts"))).scalar_one() == 1
        assert (await connection.execute(text("select count(*) from digests"))).scalar_one() == 0


async def test_what_is_owed_is_not_judged_under_a_row_that_another_holds(database: Database) -> None:
    """All of an address were locked by then, so this one turned up since."""
    async with database.begin() as connection:
        await suppressions.apply(connection, [stop("a@example.com")], provenance(source="local"), POLICY)
    scope = outbox.Scope("default", "email", NOW, POLICY)
    async with database.begin() as holding, database.begin() as connection:
        await suppressions.lock(holding, "default", "email", ["a@example.com"])
        with pytest.raises(Exception) as failed:  # noqa: PT011 (the driver's own)
            await outbox.owe(connection, scope, {"a@example.com"})
        assert is_conflict(failed.value)
        await connection.rollback()


async def test_out_of_turn_nobody_is_waited_for(database: Database) -> None:
    async with database.begin() as connection:
        before = (await connection.execute(text("show lock_timeout"))).scalar_one()
        async with out_of_turn(connection):
            pass
        assert (await connection.execute(text("show lock_timeout"))).scalar_one() == before
    async with held(database, [stop("a@example.com")]), database.begin() as connection:
        with pytest.raises(Exception) as failed:  # noqa: PT011 (the driver's own)
            async with out_of_turn(connection):
                await suppressions.apply(connection, [stop("a@example.com")], provenance(), POLICY)
        assert is_conflict(failed.value)
        await connection.rollback()


@pytest.mark.parametrize(("memory", "many"), [("4MB", 120_000), ("64kB", 2_000)])
async def test_rows_that_are_held_are_looked_up_in_a_hash(database: Database, memory: str, many: int) -> None:
    """A planner that sees too little memory for it compares each with each, which takes minutes for so many."""
    mine = provenance()
    values = columns_of([stop(f"u{n:06d}@example.com", entry_index=n) for n in range(many)]) | {"separator": SEPARATOR}
    values |= {"namespace": mine.namespace, "channel": mine.channel, "source": mine.source, "origin": mine.origin}
    entry = f"select *, null::uuid as batch_id from ({ENTRIES}) as given"
    merge = MERGE_ONCE.replace(":recorded_at", "now()").replace(":audit_id", "null").replace(":kept", "9")
    statement = text(f"explain (verbose) with entry as materialized ({entry}), {merge} select count(*) from changed")
    async with database.begin() as connection:
        await connection.execute(text(f"set local work_mem = '{memory}'"))
        written = statement.bindparams(**values).compile(
            dialect=connection.dialect, compile_kwargs={"literal_binds": True}
        )
        plan = "\n".join((await connection.exec_driver_sql(str(written))).scalars())
    assert "hashed SubPlan" in plan
