"""Owns bringing the schema to its newest revision, and telling whether it is there."""

from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection

from service.store.database import single_connection

ROOT: Final = Path(__file__).resolve().parents[2]


async def upgrade(url: str) -> None:
    """Runs every migration that is missing, one process at a time."""
    async with single_connection(url) as connection:
        await connection.run_sync(_upgrade)
        await connection.commit()


async def check(url: str) -> None:
    """Fails if the tables that the migrations make are not the ones that `tables.py` describes."""
    async with single_connection(url) as connection:
        await connection.run_sync(_check)


def head() -> str:
    """The newest revision that this code knows."""
    revision = ScriptDirectory.from_config(_config()).get_current_head()
    if revision is None:
        raise RuntimeError("The migrations folder holds no revision.")
    return revision


def revisions() -> frozenset[str]:
    """Every revision that this code knows."""
    return frozenset(script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions())


async def revision_of(connection: AsyncConnection) -> str | None:
    """The revision that the database is at, or None if it is empty."""
    return await connection.run_sync(lambda sync: MigrationContext.configure(sync).get_current_revision())


def _config(connection: Connection | None = None) -> Config:
    config = Config(ROOT / "alembic.ini")
    config.set_main_option("script_location", str(ROOT / "migrations"))
    config.attributes["connection"] = connection
    return config


def _upgrade(connection: Connection) -> None:
    command.upgrade(_config(connection), "head")


def _check(connection: Connection) -> None:
    command.check(_config(connection))
