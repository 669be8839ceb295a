"""Runs the migrations on the connection that `service.store.migrations` hands over, or, when alembic is called by
itself, on the database of the service's settings."""

import asyncio
import os
from collections.abc import Callable
from typing import Any

from alembic import context
from sqlalchemy import Connection, text
from sqlalchemy.dialects.postgresql.base import PGDialect

from service.loading import load
from service.store import tables_of_plans, tables_of_undo
from service.store.database import single_connection
from service.store.tables import Xid8

# Whoever asks one module for it has the tables of all.
METADATA = {one.metadata for one in (tables_of_plans.differences, tables_of_undo.retractions)}.pop()

# One number for every process that migrates: the lock lives as long as the transaction, also behind a pooler.
LOCK = 7_015_241_811

IncludeName = Callable[[str | None, str, Any], bool]


def migrate(connection: Connection) -> None:
    """All missing migrations in one transaction, while other processes wait for their turn."""
    # The library does not know this type of PostgreSQL's, and would warn of the column whenever it compares.
    vars(connection.dialect)["ischema_names"] = {**PGDialect.ischema_names, "xid8": Xid8}
    context.configure(
        connection=connection,
        target_metadata=METADATA,
        compare_server_default=True,
        include_name=_all_but(partitions_of(connection)),
    )
    with context.begin_transaction():
        # Waiting for another migrator may take long; waiting for a table that traffic holds must not:
        # `store.migrations` tries again.
        connection.execute(text("select pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
        wait = context.config.attributes.get("wait", 3.0)
        connection.execute(text(f"set local lock_timeout = '{wait * 1000:.0f}ms'"))
        context.run_migrations()


def partitions_of(connection: Connection) -> frozenset[str]:
    """The names of all partitions: the code describes their parents alone."""
    return frozenset(connection.execute(text("select relname from pg_class where relispartition")).scalars())


def _all_but(names: frozenset[str]) -> IncludeName:
    return lambda name, kind, _parents: kind != "table" or name not in names


async def from_settings() -> None:
    """The database that alembic's own command line works on."""
    settings = load(os.environ)
    url = settings.database_direct_url or settings.database_url
    if url is None:
        raise SystemExit("DATABASE_URL is not set: alembic by itself needs it. `kahuna-sync migrate` does not.")
    async with single_connection(url) as connection:
        await connection.run_sync(migrate)
        await connection.commit()


handed_over = context.config.attributes.get("connection")
if handed_over is not None:
    migrate(handed_over)
else:
    asyncio.run(from_settings())
