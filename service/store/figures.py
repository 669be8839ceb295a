"""Owns the counts that people watch, as far as the database knows them. `often` is answered from small indexes and may
be asked at each scrape; `seldom` reads tables. Refuses to name a metric: `web.figures` does."""

from datetime import datetime
from typing import Any, Final, NamedTuple

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

_OFTEN: Final = text(
    """
    select coalesce(jsonb_object_agg(namespace || ' ' || state, total), '{}') as waiting,
           extract(epoch from clock_timestamp())::float8 as clock
    from (
        select namespace, 'pending' as state, count(*) as total from corrections where state = 'pending' group by 1
        union all
        select namespace, 'sending', count(*) from corrections where state = 'sending' group by 1
    ) as counted
    """
)

# The oldest that is due, by the order of its index: the age says whether anybody pushes.
_DUE: Final = text(
    """
    select namespace, channel, min(next_attempt_at) as since from corrections where state = 'pending' group by 1, 2
    """
)

_GIVEN_UP: Final = text(
    """
    select namespace, state, count(*) as total from corrections where state in ('dead', 'rejected') group by 1, 2
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
    """Corrections that wait or are on their way, by namespace and state; since when the oldest of a channel waits to be
    sent, by namespace and channel; and the server's clock in Unix seconds."""

    waiting: dict[tuple[str, str], int]
    due: dict[tuple[str, str], datetime]
    clock: float


class Seldom(NamedTuple):
    """Corrections that were given up or refused, by namespace and state; open entries of the quarantine, by namespace
    and channel; and what the newest finished reconciliation of each namespace and channel found, by kind."""

    given_up: dict[tuple[str, str], int]
    quarantine: dict[tuple[str, str], int]
    drift: dict[tuple[str, str], dict[str, int]]


async def often(connection: AsyncConnection) -> Often:
    """What indexes of a few rows tell."""
    row = (await connection.execute(_OFTEN)).one()
    waiting: dict[tuple[str, str], int] = {}
    for key, total in row.waiting.items():
        namespace, _, state = key.rpartition(" ")
        waiting[namespace, state] = total
    due = {(one.namespace, one.channel): one.since for one in await connection.execute(_DUE)}
    return Often(waiting, due, row.clock)


async def seldom(connection: AsyncConnection) -> Seldom:
    """What takes a walk over the outbox and the quarantine."""
    given_up = await _counted(connection, _GIVEN_UP)
    quarantine = await _counted(connection, _QUARANTINE)
    runs = await connection.execute(_DRIFT)
    return Seldom(given_up, quarantine, {(run.namespace, run.channel): run.counts for run in runs})


async def _counted(connection: AsyncConnection, query: Any) -> dict[tuple[str, str], int]:
    return {(row[0], row[1]): row[2] for row in await connection.execute(query)}
