"""Owns the users that Kahuna made one, noted on every address that they had. Refuses to draw any conclusion from it:
a stop is of an address, whoever it belongs to."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from service.domain.addresses import Channel
from service.store.forgetting import oldest_of
from service.store.tables import merges

AT_ONCE: Final = 500
"""Rows of one statement: it takes few parameters."""


class Note(NamedTuple):
    """A merge as one address saw it: which of the users it was of (`common` to both, `older`, `newer`), when it
    happened (Unix seconds; None: the record does not say), and the record. The digest tells records apart."""

    channel: Channel
    address: str
    digest: bytes
    side: str
    occurred_at: int | None
    record: dict[str, Any]


async def write(connection: AsyncConnection, namespace: str, notes: Sequence[Note], now: datetime) -> int:
    """Keeps those that are new; returns how many."""
    rows = [note._asdict() | {"namespace": namespace, "recorded_at": now} for note in sorted(notes, key=_key)]
    new = 0
    for start in range(0, len(rows), AT_ONCE):
        some = insert(merges).values(rows[start : start + AT_ONCE])
        new += len((await connection.execute(some.on_conflict_do_nothing().returning(merges.c.address))).all())
    return new


_FORGET: Final = oldest_of(merges, merges.c.recorded_at)


async def forget_before(connection: AsyncConnection, moment: datetime, limit: int) -> int:
    """Drops what was noted before a moment, so many at most; returns how many."""
    count: int = (await connection.execute(_FORGET, {"moment": moment, "limit": limit})).scalar_one()
    return count


def _key(note: Note) -> tuple[str, str, bytes]:
    return note.address, note.channel, note.digest
