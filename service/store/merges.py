"""Owns the users that Kahuna made one, noted on every address that they had. Refuses to draw any conclusion from it:
a stop is of an address, whoever it belongs to."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

from sqlalchemy import DateTime, bindparam, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from service.domain.addresses import Channel
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


_FORGET: Final = text(
    """
    with old as materialized (
        select address, channel, namespace, digest from merges where recorded_at < :moment limit :limit
    ), gone as (
        delete from merges as m using old
        where m.address = old.address and m.channel = old.channel and m.namespace = old.namespace
          and m.digest = old.digest returning 1
    )
    select count(*) from gone
    """
).bindparams(bindparam("moment", type_=DateTime(True)))


async def forget_before(connection: AsyncConnection, moment: datetime, limit: int) -> int:
    """Drops what was noted before a moment, so many at most; returns how many."""
    count: int = (await connection.execute(_FORGET, {"moment": moment, "limit": limit})).scalar_one()
    return count


def _key(note: Note) -> tuple[str, str, bytes]:
    return note.address, note.channel, note.digest
