"""Owns the figures of the console's plots: what came over time, and what the list is made of.

Cheap whatever the size of the tables: of a large one only a share is read, and its figures are estimates.
"""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Final, Literal, NamedTuple

from sqlalchemy import REAL, Uuid, bindparam, text
from sqlalchemy.ext.asyncio import AsyncConnection

from service.domain.addresses import Channel
from service.store import differences, reconciliations
from service.store.batches import first_id
from service.store.sampling import share_of

BYTES: Final = 32 * 1024 * 1024
"""Of each large table at most."""

Step = Literal["hour", "day"]

_STEPS: Final[Mapping[Step, timedelta]] = {"hour": timedelta(hours=1), "day": timedelta(days=1)}

_CAME: Final = text(
    """
    select date_trunc(:step, received_at at time zone 'UTC') as at, channel, count(*) as callbacks,
           sum(accepted) as facts, sum(duplicates) as duplicates, sum(rejected) as rejected
    from batches tablesample system (:percent) repeatable (0)
    where id >= :low and namespace = :namespace and origin = 'kahuna_webhook'
    group by 1, 2
    """
).bindparams(bindparam("low", type_=Uuid), bindparam("percent", type_=REAL))

_REASONS: Final = text(
    """
    select channel, reason, count(*) as stops
    from suppressions tablesample system (:percent) repeatable (0)
    where namespace = :namespace and stop_at >= coalesce(clear_at, stop_at)
    group by 1, 2
    """
).bindparams(bindparam("percent", type_=REAL))


class Came(NamedTuple):
    """What callbacks of one channel brought in one step of time: `facts` are new, `rejected` went to quarantine."""

    callbacks: int = 0
    facts: int = 0
    duplicates: int = 0
    rejected: int = 0


class Trend(NamedTuple):
    """Steps of time, the oldest first, each by its beginning in UTC; what came in each, by channel; and whether that is
    an estimate."""

    steps: list[datetime]
    came: dict[tuple[datetime, Channel], Came]
    estimated: bool


class Reasons(NamedTuple):
    """How many stops there are that were not cleared, by channel and reason, and whether that is an estimate."""

    stops: dict[tuple[Channel, str], int]
    estimated: bool


class Checked(NamedTuple):
    """When a whole list was last compared with what Kahuna holds, and how many of its differences are open, by kind."""

    at: datetime
    open: dict[str, int]


async def trend(connection: AsyncConnection, namespace: str, step: Step, count: int, now: datetime) -> Trend:
    """What came in the last so many steps, the current one among them. For a connection of `sampling.bounded`."""
    last = now.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    if step == "day":
        last = last.replace(hour=0)
    steps = [last - _STEPS[step] * back for back in reversed(range(count))]
    share = await share_of(connection, "batches", BYTES, steps[0])
    values = {"step": step, "percent": share.percent, "low": first_id(steps[0]), "namespace": namespace}
    rows = (await connection.execute(_CAME, values)).all()
    came = {(row.at.replace(tzinfo=UTC), row.channel): Came(*(share.scaled(n or 0) for n in row[2:])) for row in rows}
    return Trend(steps, came, not share.whole)


async def reasons(connection: AsyncConnection, namespace: str) -> Reasons:
    """What the list is made of. For a connection of `sampling.bounded`."""
    share = await share_of(connection, "suppressions", BYTES)
    rows = await connection.execute(_REASONS, {"percent": share.percent, "namespace": namespace})
    return Reasons({(row.channel, row.reason): share.scaled(row.stops) for row in rows}, not share.whole)


async def drift(connection: AsyncConnection, namespace: str) -> dict[Channel, Checked]:
    """What the newest comparison of each whole list came to; nothing for a list that was never compared."""
    checks = await reconciliations.last_checks(connection)
    mine = {channel: check for (where, channel), check in checks.items() if where == namespace}
    found = await differences.open_by_kind(connection, [run_id for run_id, _ in mine.values()])
    return {
        channel: Checked(at, {kind: lines for (of, kind), lines in found.items() if of == run_id})
        for channel, (run_id, at) in mine.items()
    }
