"""Owns the dropping of what grows by traffic and has no partition: lines of runs that ended without being carried out,
merges of users, and records of logs whose callbacks the archive has dropped.

Done by the upkeep, in slices that are transactions of their own. Refuses to drop what undo goes by: a line that
recorded something stays with its run, and so do the run and its counts.
"""

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from functools import partial
from typing import Final, NamedTuple, Protocol, TypeVar

from service.store import differences, log_evidence, merges, partitions
from service.store.database import Connection
from service.store.partitions import ARCHIVE
from service.telemetry import logger

SLICE: Final = 5000
"""Rows that one transaction drops."""

T = TypeVar("T")


class Kept(NamedTuple):
    """How long what has no partition is kept; None: for ever. `archive` is how long the callbacks are."""

    lines: timedelta | None = None
    merges: timedelta | None = None
    archive: timedelta | None = None


class Doing(Protocol):
    """One short transaction, as the upkeep makes them."""

    async def __call__(self, work: Callable[[Connection], Awaitable[T]], /) -> T:
        """Does the work, all of it or nothing."""


async def thin(do: Doing, kept: Kept, now: datetime, size: int = SLICE) -> None:
    """Drops what is older, slice by slice; whoever is cut short is gone on from by the next."""
    if kept.lines is not None:
        await _all(do, "lines", partial(differences.drop_ended, before=now - kept.lines, limit=size))
    if kept.merges is not None:
        await _all(do, "merges", partial(merges.forget_before, moment=now - kept.merges, limit=size))
    if kept.archive is not None:
        # A callback whose month is gone cannot be taken back any more, so nothing would stand in its place.
        months = await do(_months)
        oldest = min([partitions.month_of(now - kept.archive), *months]).begins_at
        await _all(do, "log_evidence", partial(log_evidence.forget_before, moment=oldest, limit=size))


async def _months(connection: Connection) -> list[partitions.Month]:
    return await partitions.months(connection, ARCHIVE)


async def _all(do: Doing, what: str, work: Callable[[Connection], Awaitable[int]]) -> None:
    dropped = 0
    while count := await do(work):
        dropped += count
    if dropped:
        logger().info("rows.dropped", table=what, rows=dropped)
