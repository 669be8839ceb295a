"""Owns the surges: stops of one reason that came in unusual number from one domain or in one minute, each one group.

They are found by going over the feed, which has an order of time and is read as any follower reads it: nobody who
writes waits for it, or does anything more for it.
"""

import uuid
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final, Literal, NamedTuple

from sqlalchemy import DateTime, Text, Uuid, bindparam, func, literal, select, text, tuple_, update
from sqlalchemy.dialects.postgresql import ARRAY, insert
from sqlalchemy.ext.asyncio import AsyncConnection

from service.domain.addresses import Channel
from service.store.changes import Position
from service.store.tables_of_undo import surge_evidence, surge_looks, surges

Kind = Literal["domain", "minute"]


class Part(NamedTuple):
    """Stops of one reason that Kahuna told of, from one domain and minute: how many, and since when until when."""

    namespace: str
    channel: Channel
    reason: str
    domain: str
    minute: datetime
    stops: int
    first_at: datetime
    last_at: datetime


class Group(NamedTuple):
    """What is one surge: its key is the domain, or the minute in RFC 3339."""

    namespace: str
    channel: Channel
    reason: str
    kind: Kind
    key: str


class Size(NamedTuple):
    """How many stops a group had in a span of the feed."""

    stops: int
    first_at: datetime
    last_at: datetime


class Span(NamedTuple):
    """A stretch of the feed, after one place and up to another, and between which times its rows were recorded."""

    after: Position
    up_to: Position
    since: datetime


_ROWS: Final = """
    rows as materialized (
        select distinct namespace, channel, address from changes
        where (xid, seq) > (cast(cast(:xid as text) as xid8), :seq)
          and (xid, seq) <= (cast(cast(:to_xid as text) as xid8), :to_seq)
    ),
    stops as materialized (
        select rows.namespace, rows.channel, f.reason, f.batch_id, f.recorded_at,
               case when rows.channel = 'email' then split_part(rows.address, '@', 2) else '' end as domain,
               date_trunc('minute', f.recorded_at, 'UTC') as minute
        from rows cross join lateral (
            select reason, batch_id, recorded_at from facts
            where address = rows.address and channel = rows.channel and namespace = rows.namespace
              and action = 'suppress' and origin in ('kahuna_webhook', 'kahuna_logs') and recorded_at >= :since
              and batch_id is not null offset 0
        ) as f
    )
"""

_PARTS: Final = text(
    f"""
    with {_ROWS}
    select namespace, channel, reason, domain, minute, count(*) as count, min(recorded_at) as first_at,
           max(recorded_at) as last_at
    from stops group by namespace, channel, reason, domain, minute
    """  # noqa: S608 (built from our own words alone)
).bindparams(bindparam("since", type_=DateTime(True)), bindparam("xid", type_=Text), bindparam("to_xid", type_=Text))

_EVIDENCE: Final = text(
    f"""
    with {_ROWS}
    select distinct batch_id from stops
    where namespace = :namespace and channel = :channel and reason = :reason
      and case when :kind = 'domain' then domain = :key else minute = cast(:minute as timestamptz) end
    """  # noqa: S608 (built from our own words alone)
).bindparams(
    bindparam("since", type_=DateTime(True)),
    bindparam("minute", type_=DateTime(True)),
    bindparam("xid", type_=Text),
    bindparam("to_xid", type_=Text),
    bindparam("kind", type_=Text),
    bindparam("key", type_=Text),
)

_END: Final = text(
    """
    select xid, seq, recorded_at from (
        select xid::text::bigint as xid, seq, recorded_at from changes
        where (xid, seq) > (cast(cast(:xid as text) as xid8), :seq)
          and xid < cast(cast(:horizon as text) as xid8) and recorded_at < :before
        order by changes.xid, changes.seq limit :limit
    ) as passed order by xid desc, seq desc limit 1
    """
).bindparams(bindparam("before", type_=DateTime(True)), bindparam("xid", type_=Text), bindparam("horizon", type_=Text))


_NEXT: Final = text(
    """
    select recorded_at from changes
    where (xid, seq) > (cast(cast(:xid as text) as xid8), :seq) and xid < cast(cast(:horizon as text) as xid8)
    order by xid, seq limit 1
    """
).bindparams(bindparam("xid", type_=Text), bindparam("horizon", type_=Text))


async def place(connection: AsyncConnection, epoch: str) -> Position | None:
    """How far the feed of this life of the database has been looked over; None: not at all."""
    row = (await connection.execute(select(surge_looks).where(surge_looks.c.epoch == epoch))).first()
    return None if row is None else Position(row.xid, row.seq)


async def note_place(connection: AsyncConnection, epoch: str, position: Position) -> None:
    """Writes down how far it has been looked over."""
    noted = insert(surge_looks).values(epoch=epoch, xid=position.xid, seq=position.seq)
    again = {"xid": position.xid, "seq": position.seq}
    await connection.execute(noted.on_conflict_do_update(index_elements=["epoch"], set_=again))


async def next_at(connection: AsyncConnection, after: Position, horizon: Position) -> datetime | None:
    """When the next row of the feed was recorded; None if there is none."""
    values = {"xid": str(after.xid), "seq": after.seq, "horizon": str(horizon.xid)}
    found: datetime | None = (await connection.execute(_NEXT, values)).scalar()
    return found


async def end_of(
    connection: AsyncConnection, after: Position, horizon: Position, before: datetime, limit: int
) -> Position | None:
    """Where the next so many rows of the feed end that were recorded before a moment; None if there are none."""
    values = {"xid": str(after.xid), "seq": after.seq, "horizon": str(horizon.xid), "before": before, "limit": limit}
    row = (await connection.execute(_END, values)).first()
    return None if row is None else Position(row.xid, row.seq)


async def parts(connection: AsyncConnection, span: Span) -> list[Part]:
    """What came in a stretch of the feed, counted."""
    return [Part(*row) for row in await connection.execute(_PARTS, _values(span))]


async def flag(connection: AsyncConnection, group: Group, size: Size, now: datetime) -> tuple[uuid.UUID, bool]:
    """Flags a group, or counts more to the one that is flagged already; its id, and whether it is new."""
    given = (
        group._asdict()
        | {"count": size.stops, "first_at": size.first_at, "last_at": size.last_at}
        | {"id": uuid.uuid4(), "flagged_at": now, "state": "flagged"}
    )
    flagged = insert(surges).values(given)
    more = {
        "count": surges.c.count + flagged.excluded.count,
        "first_at": func.least(surges.c.first_at, flagged.excluded.first_at),
        "last_at": func.greatest(surges.c.last_at, flagged.excluded.last_at),
    }
    one = flagged.on_conflict_do_update(
        index_elements=list(Group._fields), index_where=surges.c.state == "flagged", set_=more
    )
    surge_id = (await connection.execute(one.returning(surges.c.id))).scalar_one()
    return surge_id, surge_id == given["id"]


async def evidence(connection: AsyncConnection, group: Group, span: Span) -> list[uuid.UUID]:
    """The batches that brought a group's stops in a stretch of the feed."""
    minute = datetime.fromisoformat(group.key) if group.kind == "minute" else None
    found = await connection.execute(_EVIDENCE, _values(span) | group._asdict() | {"minute": minute})
    return list(found.scalars())


async def add_evidence(connection: AsyncConnection, surge_id: uuid.UUID, batch_ids: Sequence[uuid.UUID]) -> None:
    """Notes the batches that a surge came in."""
    ids = select(literal(surge_id), func.unnest(literal(list(batch_ids), ARRAY(Uuid))))
    noted = insert(surge_evidence).from_select(["surge_id", "batch_id"], ids)
    await connection.execute(noted.on_conflict_do_nothing())


async def newest(
    connection: AsyncConnection,
    namespace: str,
    state: str | None,
    before: tuple[datetime, uuid.UUID] | None,
    limit: int,
) -> Sequence[Any]:
    """The surges of a namespace, the newest first; `before` is where an earlier page ended."""
    query = select(surges).where(surges.c.namespace == namespace)
    if state is not None:
        query = query.where(surges.c.state == state)
    if before is not None:
        query = query.where(tuple_(surges.c.flagged_at, surges.c.id) < tuple_(*map(literal, before)))
    newest_first = query.order_by(surges.c.flagged_at.desc(), surges.c.id.desc())
    return (await connection.execute(newest_first.limit(limit))).all()


async def one(connection: AsyncConnection, surge_id: uuid.UUID) -> Any | None:
    """One surge."""
    return (await connection.execute(select(surges).where(surges.c.id == surge_id))).first()


async def batches_of(connection: AsyncConnection, surge_id: uuid.UUID, limit: int) -> tuple[int, list[uuid.UUID]]:
    """How many batches a surge came in, and the first of them."""
    table = surge_evidence.c
    query = select(table.batch_id, func.count().over()).where(table.surge_id == surge_id)
    rows = (await connection.execute(query.order_by(table.batch_id).limit(limit))).all()
    return (rows[0][1] if rows else 0), [row[0] for row in rows]


async def lock(connection: AsyncConnection, surge_id: uuid.UUID) -> Any | None:
    """One surge, locked for a decision."""
    return (await connection.execute(select(surges).where(surges.c.id == surge_id).with_for_update())).first()


async def decide(
    connection: AsyncConnection, surge_id: uuid.UUID, state: str, actor: str, note: str | None, now: datetime
) -> None:
    """Writes down what a person decided: `kept` or `reverted`."""
    decision = {"state": state, "decided_by": actor, "decided_at": now, "note": note}
    await connection.execute(update(surges).where(surges.c.id == surge_id).values(decision))


async def open_counts(connection: AsyncConnection) -> dict[tuple[str, str], int]:
    """How many surges wait for a person, by namespace and channel."""
    query = select(surges.c.namespace, surges.c.channel, func.count()).where(surges.c.state == "flagged")
    rows = await connection.execute(query.group_by(surges.c.namespace, surges.c.channel))
    return {(row[0], row[1]): row[2] for row in rows}


def _values(span: Span) -> dict[str, Any]:
    values = {"xid": str(span.after.xid), "seq": span.after.seq, "since": span.since}
    return values | {"to_xid": str(span.up_to.xid), "to_seq": span.up_to.seq}
