"""Owns what is asked and decided of the entries that could not be understood; `batches` keeps them first.

Whoever decides holds the lock of the batch's row (`archive.hold`, `archive.locked`): a replay of the batch may be
deciding the same.
"""

import uuid
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, DateTime, Integer, Update, Uuid, bindparam, func, literal, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from service.store.database import among
from service.store.tables import quarantine


class Asked(NamedTuple):
    """Which entries are meant; None means any."""

    namespace: str
    state: str
    channel: str | None = None
    error: str | None = None
    batch_id: uuid.UUID | None = None


class Place(NamedTuple):
    """Where an entry stands: in the order of receipt, then in its batch."""

    received_at: datetime
    batch_id: uuid.UUID
    entry_index: int


async def listed(connection: AsyncConnection, asked: Asked, before: Place | None, limit: int) -> Sequence[Any]:
    """The newest of these entries; `before` is where an earlier page ended."""
    table = quarantine.c
    query = select(quarantine).where(*_meant(asked))
    if before is not None:
        place = tuple_(table.received_at, table.batch_id, table.entry_index)
        query = query.where(place < tuple_(*_moment_and_id(before), literal(before.entry_index, Integer)))
    newest = query.order_by(table.received_at.desc(), table.batch_id.desc(), table.entry_index.desc())
    return (await connection.execute(newest.limit(limit))).all()


async def tallied(connection: AsyncConnection, asked: Asked, most: int) -> tuple[dict[str, int], bool]:
    """How many of these entries there are by the reason for which they were refused, the most frequent first, and
    whether these are all: the newest `most` in their state are looked at."""
    table = quarantine.c
    # A rare channel or reason must not make a search of it.
    there = select(table.error, table.channel).where(*_meant(asked._replace(channel=None, error=None)))
    newest = there.order_by(table.received_at.desc()).limit(most).subquery()
    query = select(newest.c.error, newest.c.channel, func.count().label("entries")).group_by(*newest.c)
    rows = (await connection.execute(query)).all()
    found: Counter[str] = Counter()
    for row in rows:
        if asked.channel in (None, row.channel):
            found[row.error] += row.entries
    return dict(found.most_common()), sum(row.entries for row in rows) < most


async def one(connection: AsyncConnection, batch_id: uuid.UUID, entry_index: int) -> Any:
    """One entry with everything known of it, or None."""
    query = select(quarantine).where(quarantine.c.batch_id == batch_id, quarantine.c.entry_index == entry_index)
    return (await connection.execute(query)).first()


async def batches_after(connection: AsyncConnection, asked: Asked, after: Place | None, limit: int) -> list[Place]:
    """The next batches, in the order of receipt, that have such entries. The places are those of whole batches."""
    table = quarantine.c
    query = select(table.received_at, table.batch_id).where(*_meant(asked)).distinct()
    if after is not None:
        query = query.where(tuple_(table.received_at, table.batch_id) > tuple_(*_moment_and_id(after)))
    rows = await connection.execute(query.order_by(table.received_at, table.batch_id).limit(limit))
    return [Place(row.received_at, row.batch_id, 0) for row in rows]


async def indexes(connection: AsyncConnection, batch_id: uuid.UUID, asked: Asked) -> frozenset[int]:
    """Where the entries of a batch that are meant stand in it."""
    # By the key alone: with more conditions, a plan made for any batch would look through all that is open.
    columns = (quarantine.c.entry_index, quarantine.c.state, quarantine.c.error)
    rows = await connection.execute(select(*columns).where(quarantine.c.batch_id == batch_id))
    return frozenset(r.entry_index for r in rows if r.state == asked.state and asked.error in (None, r.error))


async def discarded(connection: AsyncConnection, batch_ids: Collection[uuid.UUID]) -> set[tuple[uuid.UUID, int]]:
    """The entries of these batches that somebody has discarded."""
    query = select(quarantine.c.batch_id, quarantine.c.entry_index)
    query = query.where(among(quarantine.c.batch_id, batch_ids), quarantine.c.state == "discarded")
    return {(row.batch_id, row.entry_index) for row in await connection.execute(query)}


async def settle(
    connection: AsyncConnection,
    batch_id: uuid.UUID,
    understood: Collection[int],
    errors: Mapping[int, str],
    actor: str,
    now: datetime,
) -> None:
    """Notes which entries are understood by now, and which have another error than before."""
    if understood:
        requeued = {"state": "requeued", "decided_by": actor, "decided_at": now, "note": None}
        among_them = _of(batch_id).where(among(quarantine.c.entry_index, understood))
        await connection.execute(among_them.values(requeued))
    if errors:
        changed = _of(batch_id).where(quarantine.c.entry_index == bindparam("at")).values(error=bindparam("now"))
        await connection.execute(changed, [{"at": index, "now": error} for index, error in errors.items()])


async def discard(
    connection: AsyncConnection, batch_id: uuid.UUID, entry_index: int, actor: str, note: str, now: datetime
) -> None:
    """Notes that an entry is of no use, and why."""
    decision = {"state": "discarded", "decided_by": actor, "decided_at": now, "note": note}
    await connection.execute(_of(batch_id).where(quarantine.c.entry_index == entry_index).values(decision))


async def reopen(connection: AsyncConnection, batch_id: uuid.UUID, entry_index: int) -> None:
    """Takes a discard back."""
    nothing = {"state": "open", "decided_by": None, "decided_at": None, "note": None}
    await connection.execute(_of(batch_id).where(quarantine.c.entry_index == entry_index).values(nothing))


def _of(batch_id: uuid.UUID) -> Update:
    return update(quarantine).where(quarantine.c.batch_id == batch_id)


def _meant(asked: Asked) -> list[ColumnElement[bool]]:
    conditions = [quarantine.c.namespace == asked.namespace, quarantine.c.state == asked.state]
    if asked.channel is not None:
        conditions.append(quarantine.c.channel == asked.channel)
    if asked.error is not None:
        conditions.append(quarantine.c.error == asked.error)
    if asked.batch_id is not None:
        conditions.append(quarantine.c.batch_id == asked.batch_id)
    return conditions


def _moment_and_id(place: Place) -> tuple[ColumnElement[Any], ColumnElement[Any]]:
    return literal(place.received_at, DateTime(timezone=True)), literal(place.batch_id, Uuid)


async def any_open(connection: AsyncConnection, since: uuid.UUID, below: uuid.UUID) -> bool:
    """Whether an entry waits of a batch with an id in this range: to be taken later, it needs the batch."""
    mine = (quarantine.c.state == "open", quarantine.c.batch_id >= since, quarantine.c.batch_id < below)
    return (await connection.execute(select(quarantine.c.batch_id).where(*mine).limit(1))).first() is not None
