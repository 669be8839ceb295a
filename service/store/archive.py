"""Owns reading the archive again: its list, one batch as received, and the batches that a replay takes up.

The order is that of the ids, which is the order of receipt to the millisecond, and the one in which batches are stored.

Whoever changes what a batch or its entries in the quarantine say of themselves holds the lock of the batch's row.
"""

import uuid
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

import zstandard
from sqlalchemy import ColumnElement, func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from service.domain.addresses import Channel
from service.domain.facts import Origin
from service.store.batches import Outcome, Received, first_id, outcome_of, received_of
from service.store.database import among
from service.store.tables import batches


class Asked(NamedTuple):
    """Which batches are meant, by their receipt: from `since`, before `until`; None means any."""

    namespace: str
    channel: Channel | None = None
    state: str | None = None
    since: datetime | None = None
    until: datetime | None = None


class Key(NamedTuple):
    """One batch among those that are meant: enough to decide what to take up together. `size` is in bytes."""

    id: uuid.UUID
    received_at: datetime
    channel: Channel
    origin: Origin
    size: int


class Archived(NamedTuple):
    """A batch as received, and what came of it: None while it is only recorded."""

    batch: Received
    outcome: Outcome | None


_LISTED: Final = [column for column in batches.c if column.name != "body"]


async def listed(connection: AsyncConnection, asked: Asked, before: uuid.UUID | None, limit: int) -> Sequence[Any]:
    """The newest of these batches without their bodies; `before` is where an earlier page ended."""
    query = select(*_LISTED).where(*_meant(asked))
    if before is not None:
        query = query.where(batches.c.id < before)
    newest = query.order_by(batches.c.id.desc()).limit(limit)
    return (await connection.execute(newest)).all()


async def one(connection: AsyncConnection, batch_id: uuid.UUID) -> tuple[Any, bytes] | None:
    """The row of a batch, and its body as received."""
    row = (await connection.execute(select(batches).where(batches.c.id == batch_id))).first()
    return None if row is None else (row, _body(row))


async def count(connection: AsyncConnection, asked: Asked) -> int:
    """How many batches are meant."""
    query = select(func.count()).select_from(batches).where(*_meant(asked))
    return (await connection.execute(query)).scalar_one()


async def keys_after(connection: AsyncConnection, asked: Asked, after: uuid.UUID | None, limit: int) -> list[Key]:
    """The next of these batches in the order of their receipt; `after` is where an earlier page ended."""
    columns = (batches.c.id, batches.c.received_at, batches.c.channel, batches.c.origin, batches.c.body_bytes)
    query = select(*columns).where(*_meant(asked))
    if after is not None:
        query = query.where(batches.c.id > after)
    rows = await connection.execute(query.order_by(batches.c.id).limit(limit))
    return [Key(row.id, row.received_at, row.channel, row.origin, row.body_bytes) for row in rows]


async def locked(connection: AsyncConnection, ids: Iterable[uuid.UUID]) -> list[Archived]:
    """These batches, locked and told in the order of their ids. Waits for whoever has one."""
    rows = await connection.execute(
        select(batches).where(among(batches.c.id, ids)).order_by(batches.c.id).with_for_update()
    )
    return [
        Archived(
            received_of(row, _body(row), b""),
            outcome_of(row) if row.state == "applied" else None,
        )
        for row in rows
    ]


async def repeating(
    connection: AsyncConnection, namespace: str, channel: Channel, since: datetime, limit: int
) -> list[uuid.UUID]:
    """Callbacks that were applied since then, and had entries that were known already. One may have been received a
    day before: it was spooled."""
    table = batches.c
    mine = (table.namespace == namespace, table.channel == channel, table.origin == "kahuna_webhook")
    repeats = (table.duplicates > 0, table.applied_at >= since, table.id >= first_id(since - timedelta(days=1)))
    query = select(table.id).where(*mine, *repeats).order_by(table.id).limit(limit)
    return list((await connection.execute(query)).scalars())


async def hold(connection: AsyncConnection, batch_id: uuid.UUID) -> None:
    """Locks the row of a batch, if it is still there."""
    await connection.execute(select(batches.c.id).where(batches.c.id == batch_id).with_for_update())


async def hold_each(connection: AsyncConnection, ids: Iterable[uuid.UUID]) -> dict[uuid.UUID, str]:
    """Locks these batches in the order of their ids; the state of each that is still there."""
    query = select(batches.c.id, batches.c.state).where(among(batches.c.id, ids)).order_by(batches.c.id)
    return {row.id: row.state for row in await connection.execute(query.with_for_update())}


async def restate(connection: AsyncConnection, batch_id: uuid.UUID, outcome: Outcome, now: datetime) -> None:
    """Writes down what an applied batch says of itself from now on, and that it was applied anew: whoever has read it
    meanwhile must read it again."""
    said = outcome._asdict() | {"held": list(outcome.held) or None, "applied_at": now}
    await connection.execute(update(batches).where(batches.c.id == batch_id).values(said))


def _meant(asked: Asked) -> list[ColumnElement[bool]]:
    conditions = [batches.c.namespace == asked.namespace]
    if asked.channel is not None:
        conditions.append(batches.c.channel == asked.channel)
    if asked.state is not None:
        conditions.append(batches.c.state == asked.state)
    if asked.since is not None:
        conditions += [batches.c.received_at >= asked.since, batches.c.id >= first_id(asked.since)]
    if asked.until is not None:
        after_it = first_id(asked.until + timedelta(milliseconds=1))
        conditions += [batches.c.received_at < asked.until, batches.c.id < after_it]
    return conditions


def _body(row: Any) -> bytes:
    return zstandard.decompress(row.body, max_output_size=row.body_bytes)
