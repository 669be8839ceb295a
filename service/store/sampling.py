"""Owns how figures about large tables stay cheap: pages of a table are drawn, never more than so many bytes of them,
and what is counted there stands for the rest. A table that is not larger is read whole, and its figures are exact.

The same pages are drawn each time, so the same question gets the same answer. Each question has its own time limit.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Final, NamedTuple

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from service.errors import StorageBusy
from service.store.database import Database

_CANCELLED: Final = "57014"

# Every key is looked up by its index: a plan that was made for a small table would read a large one whole.
_LIMITS: Final = text(
    """
    select set_config('statement_timeout', :limit, true), set_config('plan_cache_mode', 'force_custom_plan', true),
           set_config('enable_hashjoin', 'off', true), set_config('enable_mergejoin', 'off', true),
           set_config('enable_seqscan', 'off', true)
    """
)

# Of partitions by month only those that can hold something of that time.
_SIZE: Final = text(
    """
    select coalesce((
        select sum(pg_relation_size(relid)) from pg_partition_tree(cast(:table as regclass))
        where isleaf and (cast(:first as text) is null or relid::text >= :first or relid::text like '%_default')
    ), pg_relation_size(cast(:table as regclass)))
    """
)


class Share(NamedTuple):
    """How much of a table is drawn, in percent."""

    percent: float

    @property
    def whole(self) -> bool:
        """Whether nothing is left out."""
        return self.percent >= 100

    def scaled(self, count: int) -> int:
        """What was counted in the share, for the whole."""
        return round(count * 100 / self.percent)


@asynccontextmanager
async def bounded(database: Database, seconds: int, advice: str) -> AsyncIterator[AsyncConnection]:
    """A transaction that only reads, and no statement in it takes longer; StorageBusy with the advice if one does."""
    try:
        async with database.begin() as connection:
            await connection.execute(text("set transaction read only"))
            await connection.execute(_LIMITS, {"limit": f"{seconds}s"})
            yield connection
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) != _CANCELLED:
            raise
        raise StorageBusy(f"This took longer than {seconds} seconds. {advice}") from error


async def share_of(connection: AsyncConnection, table: str, most: int, since: datetime | None = None) -> Share:
    """How much of a table may be drawn if that is to be so many bytes at most; of one that is partitioned by month only
    what has come since then counts."""
    first = None if since is None else f"{table}_{since:%Y_%m}"
    size = (await connection.execute(_SIZE, {"table": table, "first": first})).scalar_one()
    return Share(100.0 if size <= most else 100.0 * most / float(size))
