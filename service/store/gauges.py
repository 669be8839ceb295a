"""Owns the counts that people watch, as far as the database knows them. `often` is answered from small indexes and may
be asked at each scrape; `seldom` reads tables. Refuses to name a metric: `web.gauges` does."""

from datetime import datetime
from typing import Any, Final, NamedTuple

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

_CLOCK: Final = text("select extract(epoch from clock_timestamp())::float8")

# The oldest that is due, by the order of its index: the age says whether anybody pushes.
_DUE: Final = text(
    """
    select namespace, channel, min(next_attempt_at) as since from corrections where state = 'pending' group by 1, 2
    """
)

_QUARANTINE: Final = text(
    "select namespace, channel, count(*) as total from quarantine where state = 'open' group by 1, 2"
)

_DRIFT: Final = text(
    """
    select distinct on (namespace, channel) namespace, channel, counts from reconciliations
    where state in ('planned', 'applied') order by namespace, channel, created_at desc
    """
)


class Often(NamedTuple):
    """Since when the oldest correction of a channel waits to be sent, by namespace and channel; and the server's clock
    in Unix seconds."""

    due: dict[tuple[str, str], datetime]
    clock: float


class Seldom(NamedTuple):
    """Open entries of the quarantine, by namespace and channel; and what the newest finished reconciliation of each
    namespace and channel found, by kind."""

    quarantine: dict[tuple[str, str], int]
    drift: dict[tuple[str, str], dict[str, int]]


async def often(connection: AsyncConnection) -> Often:
    """What indexes of a few rows tell."""
    clock = (await connection.execute(_CLOCK)).scalar_one()
    due = {(one.namespace, one.channel): one.since for one in await connection.execute(_DUE)}
    return Often(due, clock)


async def seldom(connection: AsyncConnection) -> Seldom:
    """What takes a walk over the quarantine."""
    quarantine = await _counted(connection, _QUARANTINE)
    runs = await connection.execute(_DRIFT)
    return Seldom(quarantine, {(run.namespace, run.channel): run.counts for run in runs})


async def _counted(connection: AsyncConnection, query: Any) -> dict[tuple[str, str], int]:
    return {(row[0], row[1]): row[2] for row in await connection.execute(query)}
