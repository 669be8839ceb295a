"""Very many stops that are copied in come to what the merge makes of them, whoever else is at work, whatever fails."""

import asyncio
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from random import Random
from typing import Any

import asyncpg
import pytest
from sqlalchemy import text

from service.domain.facts import Source
from service.domain.suppression import Policy
from service.errors import StorageUnavailable
from service.store import bulk, suppressions
from service.store.database import MANY, Connection, Database
from service.store.suppressions import Entry, Merged, Provenance

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
POLICY = Policy()
BATCHES = uuid.UUID(int=1), uuid.UUID(int=2)
SIZE = MANY + 200


def provenance(namespace: str = "default", source: Source = "kahuna") -> Provenance:
    return Provenance(namespace, "email", source, "kahuna_webhook" if source == "kahuna" else "import", NOW, BATCHES)


def stop(address: str, at: int = 1_000, reason: str = "unsubscribe", **more: Any) -> Entry:
    return Entry(address, more.pop("received", address), reason, "suppress", at, **more)


def plain(count: int = SIZE) -> list[Entry]:
    return [stop(f"u{n:05d}@example.com", entry_index=n) for n in range(count)]


def odd(chance: Random) -> list[Entry]:
    """Stops of few times and addresses, some of them said twice, with all that an address may hold."""
    reasons = ["unsubscribe", "soft_bounce", "soft_bounce", "complaint", "hard_bounce"]
    names = [f"u{n}@example.com" for n in range(SIZE // 3)] + [r"back\slash@example.com", r"\N@example.com", '"@"@b.c']
    said = []
    for index in range(SIZE):
        name, reason = chance.choice(names), chance.choice(reasons)
        received = name.upper() if chance.random() < 0.1 else name
        at = chance.randrange(1, 12) * 1_000
        said.append(stop(name, at, reason, received=received, entry_index=index, batch=chance.randrange(2)))
    return said


async def everything(connection: Connection, namespace: str) -> list[list[Any]]:
    columns = {
        "facts": "address, reason, action, occurred_at, source, origin, batch_id, audit_id, recorded_at",
        "suppressions": "address, reason, stop_at, clear_at, bounces, local_stop_at, held_stop_at, held_clear_at, "
        "address_received, origin, batch_id, recorded_at",
        "changes": "distinct channel, address, recorded_at",
    }
    found = []
    for table, wanted in columns.items():
        rows = await connection.execute(text(f"select {wanted} from {table} where namespace = '{namespace}'"))
        found.append(sorted(map(str, rows)))
    return found


@pytest.mark.parametrize("source", ["kahuna", "local"])
@pytest.mark.parametrize("seed", range(3))
async def test_it_comes_to_what_the_merge_makes_of_it(database: Database, seed: int, source: Source) -> None:
    chance = Random(seed)
    before, said = odd(chance)[: 50 * seed], odd(chance)
    told = []
    for namespace, apply in (("default", bulk.apply), ("other", suppressions.apply)):
        async with database.begin() as connection:
            await suppressions.apply(connection, before, provenance(namespace, "local"), POLICY)
            merged = await apply(connection, said, provenance(namespace, source), POLICY)
            told.append((merged, await everything(connection, namespace)))
    (ours, list_of_ours), (theirs, list_of_theirs) = told
    assert list_of_ours == list_of_theirs
    assert ours.new == theirs.new
    assert ours.at_odds == theirs.at_odds


async def test_it_is_copied_where_nothing_is_known(database: Database) -> None:
    """Or the merge would be measured with itself: a statement may insert or ignore, a copy may not."""
    async with database.begin() as connection:
        await connection.execute(text("create temp table told (query text) on commit drop"))
        await connection.execute(
            text(
                """create function pg_temp.tell() returns trigger language plpgsql as
                   $$ begin insert into told values (current_query()); return null; end $$"""
            )
        )
        await connection.execute(
            text("create trigger tell after insert on facts for each statement execute function pg_temp.tell()")
        )
        await suppressions.apply(connection, plain(3), provenance(), POLICY)
        await bulk.apply(connection, plain(), provenance(), POLICY)
        copies = (await connection.execute(text("select query ilike 'copy%' from told"))).scalars().all()
        await connection.rollback()
    assert copies == [False, True, False]


@asynccontextmanager
async def held(database: Database, entries: Sequence[Entry]) -> AsyncIterator[Connection]:
    """Another transaction, which has stored these and is not over before the end of the block."""
    async with database.begin() as connection:
        await suppressions.apply(connection, entries, provenance(), POLICY)
        yield connection


async def applied(database: Database, entries: Sequence[Entry]) -> Merged:
    async with database.begin() as connection:
        return await bulk.apply(connection, entries, provenance(), POLICY)


async def waits(database: Database) -> int:
    """The server process that waits for another transaction, once one does."""
    query = text("select pid from pg_locks where not granted and locktype = 'transactionid'")
    async with database.read() as connection:
        for _ in range(500):
            if pid := (await connection.execute(query)).scalar():
                return int(pid)
            await asyncio.sleep(0.01)
    pytest.fail("nobody waits")


async def count(database: Database, what: str) -> int:
    async with database.read() as connection:
        return int((await connection.execute(text(f"select count(*) from {what}"))).scalar_one())


async def test_what_another_brings_meanwhile_is_merged(database: Database) -> None:
    """One fact is the same, one of another time: both addresses were new when the copy began."""
    same, other = plain()[700], plain()[900]._replace(occurred_at=5_000)
    async with held(database, [same, other]):
        ours = asyncio.ensure_future(applied(database, plain()))
        await waits(database)
    merged = await ours
    assert merged.new == {BATCHES[0]: SIZE - 1}
    assert await count(database, "facts") == SIZE + 1
    assert await count(database, "suppressions") == SIZE
    assert await count(database, "suppressions where stop_at = 5000") == 1


async def test_those_in_opposite_orders_do_not_deadlock(database: Database) -> None:
    orders = [plain(), plain()[::-1], plain()[400:], plain()[:1100]]
    merged = await asyncio.gather(*(applied(database, entries) for entries in orders))
    assert sum((Counter(one.new) for one in merged), Counter()) == {BATCHES[0]: SIZE}
    assert await count(database, "suppressions") == SIZE


async def test_one_that_is_cut_short_leaves_nothing(database: Database) -> None:
    async with held(database, [plain()[-1]]):
        ours = asyncio.ensure_future(applied(database, plain()))
        await waits(database)
        ours.cancel()
        with pytest.raises(asyncio.CancelledError):
            await ours
    assert await count(database, "facts") == 1
    assert (await applied(database, plain())).new == {BATCHES[0]: SIZE - 1}


async def test_one_whose_server_went_away_says_so(database: Database) -> None:
    async with held(database, [plain()[-1]]) as other:
        ours = asyncio.ensure_future(applied(database, plain()))
        await other.execute(text(f"select pg_terminate_backend({await waits(database)})"))
        with pytest.raises(StorageUnavailable):
            await ours
    assert (await applied(database, plain())).new == {BATCHES[0]: SIZE - 1}


async def test_a_row_that_cannot_be_stored_leaves_nothing(database: Database) -> None:
    impossible = plain()[500]._replace(occurred_at=2**70)
    entries = [impossible if n == 500 else entry for n, entry in enumerate(plain())]
    with pytest.raises(asyncpg.NumericValueOutOfRangeError):
        await applied(database, entries)
    assert await count(database, "facts") == 0
    assert (await applied(database, plain())).new == {BATCHES[0]: SIZE}


async def test_all_that_is_known_is_merged(database: Database) -> None:
    """Nothing is left to copy then."""
    await applied(database, plain())
    assert (await applied(database, plain())).new == {}
    later = [entry._replace(occurred_at=2_000) for entry in plain()]
    assert (await applied(database, later)).new == {BATCHES[0]: SIZE}
    assert await count(database, "suppressions where stop_at = 2000") == SIZE
