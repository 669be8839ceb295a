"""The hottest path's own transactions: whole or not at all, on connections that are used again while they are good."""

import asyncio
from dataclasses import replace
from typing import Any

import asyncpg
import pytest
from sqlalchemy import text

from service.errors import StorageUnavailable
from service.settings import Settings
from service.store.database import BENCH, Database, Straight, driver_of

INSERT = Straight.of(text("insert into noted values (:said)"))
WHO = Straight.of(text("select pg_backend_pid() as pid"))


@pytest.fixture
async def noting(database: Database) -> Database:
    async with database.begin() as connection:
        await connection.execute(text("create table noted (said text primary key)"))
    return database


async def noted(database: Database) -> list[Any]:
    async with database.read() as connection:
        return list((await connection.execute(text("select said from noted order by said"))).scalars())


async def pid_of(database: Database) -> int:
    async with database.straight() as connection:
        return int((await WHO.fetch(connection, {}))[0]["pid"])


async def test_what_is_done_in_one_is_committed_together(noting: Database) -> None:
    async with noting.straight() as connection:
        await INSERT.fetch(connection, {"said": "a"})
        assert await noted(noting) == []
        await connection.execute(text("insert into noted values ('b')"))
    assert await noted(noting) == ["a", "b"]


async def test_a_failure_leaves_nothing_and_the_next_one_works(noting: Database) -> None:
    async def twice() -> None:
        async with noting.straight() as connection:
            await INSERT.fetch(connection, {"said": "a"})
            await INSERT.fetch(connection, {"said": "a"})

    with pytest.raises(asyncpg.UniqueViolationError):
        await twice()
    async with noting.straight() as connection:
        await INSERT.fetch(connection, {"said": "b"})
    assert await noted(noting) == ["b"]


async def test_a_connection_is_used_again(noting: Database) -> None:
    assert len({await pid_of(noting) for _ in range(5)}) == 1


async def test_no_more_are_kept_than_that(noting: Database) -> None:
    begun = asyncio.Barrier(BENCH + 2)

    async def one() -> None:
        async with noting.straight():
            await begun.wait()

    await asyncio.gather(*(one() for _ in range(BENCH + 2)))
    async with noting.read() as connection:
        pids = [await pid_of(noting) for _ in range(3)]
        assert len(set(pids)) == 1
        assert (await connection.execute(text("select 1"))).scalar() == 1


async def test_one_whose_server_went_away_is_replaced(noting: Database) -> None:
    before = await pid_of(noting)
    async with noting.read() as connection:
        await connection.execute(text(f"select pg_terminate_backend({before}, 5000)"))
    # The goodbye may not have been read yet: then the first one meets it, and nothing is lost to that.
    for _ in range(2):
        try:
            assert await pid_of(noting) != before
        except StorageUnavailable:
            continue
    assert await pid_of(noting) != before


async def test_none_is_trusted_that_is_not_to_be(noting: Database) -> None:
    before = await pid_of(noting)
    noting.distrust()
    assert await pid_of(noting) != before


async def test_one_that_is_cancelled_leaves_nothing_open(noting: Database) -> None:
    async def long() -> None:
        async with noting.straight() as connection:
            await INSERT.fetch(connection, {"said": "a"})
            await (await driver_of(connection)).execute("select pg_sleep(60)")

    task = asyncio.create_task(long())
    sleeping = text("select pid from pg_stat_activity where query like 'select pg_sleep%'")
    async with noting.read() as connection:
        for _ in range(500):
            if (await connection.execute(sleeping)).first():
                break
            await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await noted(noting) == []
    async with noting.straight() as connection:
        await INSERT.fetch(connection, {"said": "a"})
    assert await noted(noting) == ["a"]


async def test_a_pool_of_one_is_still_enough_for_all(settings: Settings) -> None:
    async with Database.of(replace(settings, database_pool_size=1)) as database:
        pids = {await pid_of(database) for _ in range(3)}
        async with database.read() as connection:
            pids.add((await connection.execute(text("select pg_backend_pid()"))).scalar_one())
            assert (await connection.execute(text("show enable_seqscan"))).scalar() == "on"
        async with database.look() as connection:
            pids.add(int((await WHO.fetch(connection, {}))[0]["pid"]))
    assert len(pids) == 1
