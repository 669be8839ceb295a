"""Owns how far Kahuna's logs were read: a walk for each log, with its position, its counts and what is in its way.

A position is written in the transaction that took in what was read, so whoever goes on from it misses nothing and takes
nothing twice. Refuses to know what the records say.
"""

import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple, cast

from sqlalchemy import delete, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from service.store.tables import log_walks, run_batches

PULL: Final = "pull"
"""The walk without end, from the first pull of a deployment on."""

BACKFILL: Final = "backfill"
"""The walk through what was before it."""


class Key(NamedTuple):
    """Which walk: through which log of which namespace, and what for."""

    namespace: str
    api: str
    walk: str


class Walk(NamedTuple):
    """How far a walk is. It goes from `begins_at` to `ends_at` (None: it has no end); all before `reached` was read,
    and `since` with `cursor` is where Kahuna is asked next."""

    begins_at: datetime
    ends_at: datetime | None
    since: datetime
    cursor: str | None
    reached: datetime
    counts: Mapping[str, int]
    last_at: datetime | None
    done_at: datetime | None


class Place(NamedTuple):
    """Where a walk is to go on."""

    since: datetime
    cursor: str | None
    reached: datetime


_COLUMNS: Final = [log_walks.c[name] for name in Walk._fields]


async def begin(connection: AsyncConnection, key: Key, begins_at: datetime, ends_at: datetime | None) -> Walk:
    """The walk, begun with these bounds unless it was begun before."""
    row = key._asdict() | {"begins_at": begins_at, "ends_at": ends_at, "since": begins_at, "reached": begins_at}
    await connection.execute(insert(log_walks).values(row | {"counts": {}}).on_conflict_do_nothing())
    found = await one(connection, key)
    if found is None:
        raise LookupError("a walk that was just begun is not there")
    return found


async def one(connection: AsyncConnection, key: Key) -> Walk | None:
    """The walk, if it was begun."""
    row = (await connection.execute(select(*_COLUMNS).where(*_is(key)))).first()
    return None if row is None else Walk(*row)


async def reach_back(connection: AsyncConnection, key: Key, begins_at: datetime) -> bool:
    """Has a walk that is done go on with what is before its beginning, if that is later than this; tells whether it
    is."""
    values = {"begins_at": begins_at, "since": begins_at, "cursor": None, "reached": begins_at, "done_at": None}
    older = update(log_walks).where(*_is(key), log_walks.c.begins_at > begins_at, log_walks.c.done_at.is_not(None))
    return (await connection.execute(older.values(values | {"ends_at": log_walks.c.begins_at}))).rowcount > 0


async def move(connection: AsyncConnection, key: Key, place: Place, counts: Mapping[str, int], now: datetime) -> None:
    """Writes down where to go on, and what was counted on the way there. One process at a time has a walk."""
    walk = await one(connection, key)
    before = {} if walk is None else walk.counts
    total = {name: before.get(name, 0) + counts.get(name, 0) for name in sorted({*before, *counts})}
    values = place._asdict() | {"reached": func.greatest(log_walks.c.reached, place.reached)}
    await connection.execute(update(log_walks).where(*_is(key)).values(values | {"counts": total, "last_at": now}))


async def arrive(connection: AsyncConnection, key: Key, reached: datetime, now: datetime, *, done: bool) -> None:
    """Writes down that all before this moment was read, that nothing is in the way, and whether the walk is over."""
    values = {"reached": func.greatest(log_walks.c.reached, reached), "last_at": now, "error": None, "error_at": None}
    await connection.execute(
        update(log_walks).where(*_is(key)).values(values | ({"done_at": now, "cursor": None} if done else {}))
    )


async def note_error(connection: AsyncConnection, key: Key, error: str, now: datetime) -> None:
    """Writes down what is in the way of a walk."""
    values = {"error": error, "error_at": now, "last_at": now}
    await connection.execute(update(log_walks).where(*_is(key)).values(values))


async def last_at(connection: AsyncConnection, namespace: str, walk: str) -> datetime | None:
    """When the logs of a namespace were last asked on this walk."""
    mine = (log_walks.c.namespace == namespace, log_walks.c.walk == walk)
    asked = (await connection.execute(select(func.max(log_walks.c.last_at)).where(*mine))).scalar()
    return cast("datetime | None", asked)


async def forget(connection: AsyncConnection, namespace: str, walk: str) -> None:
    """Takes a walk out of the way, through all of its logs."""
    await connection.execute(delete(log_walks).where(log_walks.c.namespace == namespace, log_walks.c.walk == walk))


async def note_batch(connection: AsyncConnection, run_id: uuid.UUID, batch_id: uuid.UUID) -> None:
    """Writes down that a run had this batch made."""
    await connection.execute(insert(run_batches).values(run_id=run_id, batch_id=batch_id).on_conflict_do_nothing())


async def batches_of(connection: AsyncConnection, run_id: uuid.UUID) -> list[uuid.UUID]:
    """The batches that a run had made, in the order of their making."""
    query = select(run_batches.c.batch_id).where(run_batches.c.run_id == run_id).order_by(run_batches.c.batch_id)
    return list((await connection.execute(query)).scalars())


async def standing(connection: AsyncConnection, namespace: str | None = None) -> Sequence[Any]:
    """Every walk but those of runs, by namespace, walk and log; of one namespace, or of all."""
    query = select(log_walks).where(log_walks.c.walk.in_([PULL, BACKFILL]))
    if namespace is not None:
        query = query.where(log_walks.c.namespace == namespace)
    return (await connection.execute(query.order_by(log_walks.c.namespace, log_walks.c.walk, log_walks.c.api))).all()


async def backfilled(connection: AsyncConnection, namespace: str) -> datetime | None:
    """When the backfill of a namespace was done, through all logs that it began to read; None: it was not, or never
    began. Until then, opt-outs from before this deployment may be missing."""
    mine = (log_walks.c.namespace == namespace, log_walks.c.walk == BACKFILL)
    query = select(func.max(log_walks.c.done_at), func.bool_and(log_walks.c.done_at.is_not(None))).where(*mine)
    done_at, all_done = (await connection.execute(query)).one()
    return done_at if all_done else None


def _is(key: Key) -> list[Any]:
    return [log_walks.c[name] == value for name, value in key._asdict().items()]
