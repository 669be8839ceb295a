"""Owns bringing the schema to its newest revision, and telling whether it is there."""

import asyncio
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from service.errors import StorageBusy
from service.store.database import single_connection

ROOT: Final = Path(__file__).resolve().parents[2]

WAITS: Final = (*[0.25] * 12, 3.0, 3.0, 3.0)
"""Seconds that each try waits for a table. Whoever comes after waits as long, so it is little at first; but a vacuum
lets go of a table only after the second of `deadlock_timeout`."""

BETWEEN_TRIES: Final = 0.5
"""Seconds, for those who came after."""

_HELD: Final = frozenset({"55P03", "40P01"})
"""What the server says of a lock that was not to be had, and of two who wait for each other."""


async def upgrade(url: str, waits: Sequence[float] = WAITS) -> None:
    """Runs every migration that is missing, one process at a time: all or none. StorageBusy if others do not let go of
    a table that is to be changed."""
    for wait in waits:
        try:
            async with single_connection(url) as connection:
                await connection.run_sync(partial(_upgrade, wait=wait))
                await connection.commit()
                return
        except DBAPIError as error:
            if getattr(error.orig, "sqlstate", None) not in _HELD:
                raise
        await asyncio.sleep(BETWEEN_TRIES)
    raise StorageBusy(
        "Another session holds a table that this release changes, and nothing was changed: a backup or a long query "
        "(pg_stat_activity shows it). Run it again when that is done."
    )


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


def _config(connection: Connection | None = None, wait: float = WAITS[-1]) -> Config:
    config = Config(ROOT / "alembic.ini")
    config.set_main_option("script_location", str(ROOT / "migrations"))
    config.attributes |= {"connection": connection, "wait": wait}
    return config


def _upgrade(connection: Connection, wait: float) -> None:
    command.upgrade(_config(connection, wait), "head")


def _check(connection: Connection) -> None:
    command.check(_config(connection))
