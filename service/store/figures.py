"""Owns the figures of the overview: one cheap question for each, whatever the size of the tables behind it."""

from datetime import datetime, timedelta
from typing import Final, NamedTuple

from sqlalchemy import REAL, Uuid, bindparam, text
from sqlalchemy.ext.asyncio import AsyncConnection

from service.store.batches import first_id
from service.store.sampling import share_of

BYTES: Final = 64 * 1024 * 1024
"""Of each large table at most."""

_RECEIVED: Final = text(
    """
    select count(*) filter (where id >= :day) as callbacks, sum(accepted) filter (where id >= :day) as facts,
           sum(rejected) filter (where id >= :day) as rejected,
           count(*) as week_callbacks, sum(accepted) as week_facts, sum(rejected) as week_rejected
    from batches tablesample system (:percent) repeatable (0)
    where id >= :week and namespace = :namespace and origin = 'kahuna_webhook'
    """
).bindparams(bindparam("day", type_=Uuid), bindparam("week", type_=Uuid), bindparam("percent", type_=REAL))

_LISTED: Final = text(
    """
    select channel, count(*) as causes, count(*) filter (where stop_at >= coalesce(clear_at, stop_at)) as stops
    from suppressions tablesample system (:percent) repeatable (0)
    where namespace = :namespace and coalesce(stop_at, clear_at) is not null
    group by channel
    """
).bindparams(bindparam("percent", type_=REAL))

_WAITING: Final = text(
    """
    select (select count(*) from quarantine where namespace = :namespace and state = 'open') as quarantine,
           (select count(*) from reviews where namespace = :namespace and state = 'pending') as reviews,
           (select count(*) from batches where namespace = :namespace and state = 'recorded') as unapplied
    """
)


class Received(NamedTuple):
    """What Kahuna's callbacks brought in some time: `facts` are new ones, `rejected` entries in quarantine."""

    callbacks: int
    facts: int
    rejected: int


class Traffic(NamedTuple):
    """The last 24 hours, and the last seven days."""

    day: Received
    week: Received
    estimated: bool


class Size(NamedTuple):
    """The causes of a channel, and those among them that were not cleared."""

    causes: int
    stops: int


class Waiting(NamedTuple):
    """What waits for a person or the worker: entries, opt-ins, batches."""

    quarantine: int
    reviews: int
    unapplied: int


async def traffic(connection: AsyncConnection, namespace: str, now: datetime) -> Traffic:
    """The callbacks of late."""
    week = now - timedelta(days=7)
    share = await share_of(connection, "batches", BYTES, week)
    values = {"day": first_id(now - timedelta(days=1)), "week": first_id(week), "percent": share.percent}
    row = (await connection.execute(_RECEIVED, values | {"namespace": namespace})).one()
    counts = [share.scaled(count or 0) for count in row]
    return Traffic(Received(*counts[:3]), Received(*counts[3:]), not share.whole)


async def sizes(connection: AsyncConnection, namespace: str) -> tuple[dict[str, Size], bool]:
    """How long the list is, by channel, and whether that is an estimate."""
    share = await share_of(connection, "suppressions", BYTES)
    rows = await connection.execute(_LISTED, {"namespace": namespace, "percent": share.percent})
    found = {row.channel: Size(share.scaled(row.causes), share.scaled(row.stops)) for row in rows}
    return found, not share.whole


async def waiting(connection: AsyncConnection, namespace: str) -> Waiting:
    """What waits, exactly."""
    return Waiting(*(await connection.execute(_WAITING, {"namespace": namespace})).one())
