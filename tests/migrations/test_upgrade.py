"""Migrations may be run again, leave what the code describes, and give way to whoever holds a table."""

import asyncio

import pytest
from sqlalchemy import text

from service.errors import StorageBusy
from service.store import migrations
from service.store.database import Database, single_connection

BEFORE = ("alter table batches drop column request_id", "update alembic_version set version_num = '0010'")
"""What takes the newest revision back by hand: it adds a column to a table that all traffic writes to."""


async def test_running_them_again_changes_nothing(database_url: str, database: Database) -> None:
    await migrations.upgrade(database_url)
    async with database.read() as connection:
        assert await migrations.revision_of(connection) == migrations.head()


async def test_a_table_that_others_hold_is_asked_for_again(database_url: str, database: Database) -> None:
    async with single_connection(database_url) as other:
        for statement in BEFORE:
            await other.execute(text(statement))
        await other.commit()
        await other.execute(text("select from batches"))
        with pytest.raises(StorageBusy, match="Run it again"):
            await migrations.upgrade(database_url, waits=(0.02,))
        upgrading = asyncio.create_task(migrations.upgrade(database_url, waits=(0.02, 3.0)))
        done, _ = await asyncio.wait([upgrading], timeout=0.1)
        assert not done
        await other.rollback()
        await upgrading
    async with database.read() as connection:
        assert await migrations.revision_of(connection) == migrations.head()
        await connection.execute(text("select request_id from batches"))
