"""Owns the calls in which corrections were sent: who made each, with which corrections in it, and what Kahuna answered.

They decide nothing; what came of a correction stands in the outbox. So retention may drop old months of them.
"""

import uuid
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from service.domain.addresses import Channel
from service.store.batches import first_id
from service.store.tables import calls

MOST: Final = 1000
"""Calls that are shown of one correction: the newest."""

SKEW: Final = timedelta(minutes=5)
"""By which the clocks of two processes may differ."""


class Made(NamedTuple):
    """A call that was answered, or failed. `answer` holds no address and no key."""

    id: uuid.UUID
    namespace: str
    channel: Channel
    worker: str
    answered_at: datetime
    corrections: list[int]
    outcome: str
    status: int | None = None
    accepted: int | None = None
    rejected: int | None = None
    answer: str | None = None


async def note(connection: AsyncConnection, made: Made) -> None:
    """Writes a call down."""
    await connection.execute(insert(calls).values(made._asdict()))


async def of_correction(connection: AsyncConnection, correction: Any, now: datetime) -> Sequence[Any]:
    """The calls that a correction was sent in, newest first. Asked by time: only those of its channel, made while it
    was open, are looked at."""
    table = calls.c
    low, high = first_id(correction.created_at - SKEW), first_id((correction.settled_at or now) + SKEW)
    query = select(calls).where(table.id >= low, table.id < high)
    query = query.where(table.namespace == correction.namespace, table.channel == correction.channel)
    held = table.corrections.contains([correction.id])
    return (await connection.execute(query.where(held).order_by(table.id.desc()).limit(MOST))).all()
