"""Migrations may be run again, and leave what the code describes."""

from service.store import migrations
from service.store.database import Database


async def test_running_them_again_changes_nothing(database_url: str, database: Database) -> None:
    await migrations.upgrade(database_url)
    async with database.read() as connection:
        assert await migrations.revision_of(connection) == migrations.head()
