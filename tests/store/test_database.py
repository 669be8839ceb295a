"""What the database refuses is told apart: tried again, waited for, or a fault of ours."""

import asyncio
from dataclasses import replace
from typing import Literal

import asyncpg
import pytest
import sqlalchemy.exc
from sqlalchemy import text

from service.errors import StorageBusy, StorageUnavailable
from service.settings import Settings
from service.store.database import Database, copy_out, fetch
from service.store.faults import is_conflict


@pytest.mark.parametrize(
    ("statement", "again"),
    [
        pytest.param("insert into rest values (3)", True, id="the row's own partition was made meanwhile"),
        pytest.param("insert into parted values (100)", False, id="a check of ours"),
        pytest.param("insert into parted values (3), (3)", True, id="a key that another took meanwhile"),
        pytest.param("insert into parted values (null)", False, id="a value that must not be missing"),
    ],
)
async def test_what_is_tried_again(database: Database, statement: str, again: bool) -> None:
    async with database.begin() as connection:
        for made in (
            "create table parted (a int primary key, check (a < 100)) partition by range (a)",
            "create table rest partition of parted default",
            "create table few partition of parted for values from (1) to (5)",
        ):
            await connection.execute(text(made))
    with pytest.raises(sqlalchemy.exc.IntegrityError) as refusal:
        async with database.begin() as connection:
            await connection.execute(text(statement))
    assert is_conflict(refusal.value) == again


LIMITS = ("statement_timeout", "transaction_timeout", "idle_in_transaction_session_timeout")


async def test_a_snapshot_may_take_as_long_as_it_takes(database: Database) -> None:
    names = ", ".join(f"'{name}'" for name in LIMITS)
    query = text(f"select name from pg_settings where name in ({names}) and setting <> '0'")
    async with database.read() as connection:
        limited = list((await connection.execute(query)).scalars())
    assert {"statement_timeout", "idle_in_transaction_session_timeout"} <= set(limited), "elsewhere they hold"
    async with database.snapshot("facts") as connection:
        assert list((await connection.execute(query)).scalars()) == []


async def test_a_snapshot_of_what_others_hold_says_so(database: Database) -> None:
    async with database.begin() as connection:
        await connection.execute(text("lock table facts in access exclusive mode"))
        with pytest.raises(StorageBusy, match="facts"):
            async with database.snapshot("facts", patience=0.02):
                pytest.fail("it is held")
    async with database.snapshot("facts", patience=0.02):
        pass


async def test_a_copy_that_is_cut_off_costs_its_connection_alone(settings: Settings) -> None:
    """Rows are still under way then, and whoever asked for something behind them would be told that it is no time."""
    begun = asyncio.Event()

    async def sink(_part: bytes) -> None:
        begun.set()
        await asyncio.Event().wait()

    async with Database.of(replace(settings, database_pool_size=1)) as database:
        async with database.snapshot("facts") as connection:
            rows = "select repeat('x', 10000) from generate_series(1, 10000)"
            copying = asyncio.create_task(copy_out(connection, rows, sink, as_csv=True))
            await begun.wait()
            copying.cancel()
            await asyncio.gather(copying, return_exceptions=True)
            assert copying.cancelled()
            assert connection.invalidated
        async with database.read() as connection:
            assert (await connection.execute(text("select 1"))).scalar() == 1


# Rows straight from the driver.


async def backend(database: Database) -> int:
    async with database.read() as connection:
        [[pid]] = await fetch(connection, "select pg_backend_pid()")
    return int(pid)


async def test_a_statement_that_fails_leaves_its_connection_in_use(database: Database) -> None:
    before = await backend(database)
    with pytest.raises(asyncpg.PostgresError):
        async with database.read() as connection:
            await fetch(connection, "select 1 / $1::int", 0)
    assert await backend(database) == before


async def test_a_connection_that_was_cut_is_told_as_such_and_replaced(database: Database) -> None:
    before = await backend(database)
    with pytest.raises(StorageUnavailable):
        async with database.read() as connection:
            await fetch(connection, "select pg_terminate_backend(pg_backend_pid())")
    assert await backend(database) != before


async def test_a_connection_that_was_not_waited_for_is_not_used_again(database: Database) -> None:
    """Its answer may still come, and would be taken for that of another question."""
    before = await backend(database)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05), database.read() as connection:
            await fetch(connection, "select pg_sleep(60)")
    assert await backend(database) != before


POOLERS: list[Literal["none", "transaction"]] = ["none", "transaction"]


async def test_no_transaction_of_ours_holds_the_feed_up(settings: Settings) -> None:
    """The server ends it, whether the limit is that of the session or, behind a pooler, of the transaction."""

    async def outstay(pooler: Literal["none", "transaction"]) -> None:
        async with Database.of(replace(settings, database_pooler=pooler, transaction_timeout_seconds=1)) as database:
            with pytest.raises(StorageUnavailable):
                async with database.begin() as connection:
                    await connection.execute(text("select pg_sleep(30)"))

    await asyncio.gather(*map(outstay, POOLERS))


@pytest.mark.parametrize("pooler", POOLERS)
async def test_a_snapshot_may_take_as_long_as_it_likes(
    settings: Settings, pooler: Literal["none", "transaction"]
) -> None:
    async with Database.of(replace(settings, database_pooler=pooler)) as database:
        async with database.begin() as connection:
            assert (await connection.execute(text("show transaction_timeout"))).scalar() == "2min"
        async with database.straight() as connection:
            assert (await connection.execute(text("show transaction_timeout"))).scalar() == "2min"
        async with database.snapshot("facts") as connection:
            assert (await connection.execute(text("show transaction_timeout"))).scalar() == "0"
        async with database.read() as connection:
            left = (await connection.execute(text("show transaction_timeout"))).scalar()
            assert left == ("0" if pooler == "transaction" else "2min")
