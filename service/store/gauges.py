"""Owns the counts that people watch, as far as the database knows them. `often` is answered from small indexes and may
be asked at each scrape; `seldom` reads tables. Refuses to name a metric: `web.gauges` does."""

from datetime import datetime
from typing import Any, Final, NamedTuple

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from service.domain.drift import KINDS
from service.store import differences, reconciliations, reviews, violations

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


class Often(NamedTuple):
    """Since when the oldest correction of a channel waits to be sent, by namespace and channel; and the server's clock
    in Unix seconds."""

    due: dict[tuple[str, str], datetime]
    clock: float


class Seldom(NamedTuple):
    """By namespace and channel: open entries of the quarantine; when the whole list was last compared with what Kahuna
    holds, and what of its differences is not closed, by kind. Messages against a stop, by namespace and who knew; and
    how many opt-ins wait for a person."""

    quarantine: dict[tuple[str, str], int]
    checked: dict[tuple[str, str], datetime]
    drift: dict[tuple[str, str], dict[str, int]]
    violations: dict[tuple[str, str], int]
    reviews: int


async def often(connection: AsyncConnection) -> Often:
    """What indexes of a few rows tell."""
    clock = (await connection.execute(_CLOCK)).scalar_one()
    due = {(one.namespace, one.channel): one.since for one in await connection.execute(_DUE)}
    return Often(due, clock)


async def seldom(connection: AsyncConnection) -> Seldom:
    """What takes a walk over tables that keep what was decided long ago, or the lines of the newest plans."""
    quarantine = await _counted(connection, _QUARANTINE)
    checks = await reconciliations.last_checks(connection)
    found = await differences.open_by_kind(connection, [run_id for run_id, _ in checks.values()])
    checked: dict[tuple[str, str], datetime] = {}
    drift: dict[tuple[str, str], dict[str, int]] = {}
    for whose, (run_id, at) in checks.items():
        checked[whose] = at
        drift[whose] = {kind: found.get((run_id, kind), 0) for kind in KINDS}
    told, waiting = await violations.counts(connection), await reviews.pending_count(connection)
    return Seldom(quarantine, checked, drift, told, waiting)


async def _counted(connection: AsyncConnection, query: Any) -> dict[tuple[str, str], int]:
    return {(row[0], row[1]): row[2] for row in await connection.execute(query)}
