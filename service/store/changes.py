"""Owns the feed: which changes may be shown, from where, how late they are, and who is told that there are more.

A row is shown only below the snapshot's xmin, when no older transaction can still commit: so whoever reads in the order
of (xid, seq) misses nothing, whatever order the writers commit in. A transaction of any database of the server that has
an xid holds this back; then the feed is late, never gapped. Refuses to judge what a cursor stands for: that is the
follower's flow.
"""

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Final, NamedTuple

from sqlalchemy import DateTime, Text, bindparam, insert, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncConnection

from service.domain.addresses import Channel
from service.store import partitions
from service.store.database import driver_of, plan_anew, single_connection
from service.store.partitions import FEED, Month
from service.store.tables import epochs

LISTENED: Final = "kahuna_sync_changes"
"""The name under which processes of one database tell each other that there are changes."""


class Position(NamedTuple):
    """A place in the feed: all rows up to it were seen. Seqs begin at 1, so (xid, 0) is before all rows of an xid."""

    xid: int
    seq: int


class Change(NamedTuple):
    """One row of the feed."""

    position: Position
    namespace: str
    channel: Channel
    address: str


class Reading(NamedTuple):
    """What the feed holds at one moment.

    `epoch` says which life of the database this is, `horizon` below which xid everything may be shown, `ahead` below
    which xid anything can be at all. `dropped` is the last row of this epoch that is not kept any more. `hidden` tells
    whether there are committed rows that may not be shown yet.
    """

    epoch: str
    horizon: int
    ahead: int
    dropped: Position | None
    hidden: bool
    rows: list[Change]


# The server, its timeline (a standby that took over, or a recovery to a point in time, begins another), the database
# and the table in it (a dump makes them anew), and what operators said. Nothing is stored that a restore could bring
# back.
_EPOCH: Final = """(
    select left(encode(sha256(convert_to(concat_ws(
        ' ', system_identifier, left(pg_walfile_name(pg_current_wal_lsn()), 8),
        (select oid from pg_database where datname = current_database()), cast(cast('changes' as regclass) as oid),
        (select string_agg(cast(id as text), ' ' order by id) from epochs)
    ), 'UTF8')), 'hex'), 16) from pg_control_system()
)"""

_READ: Final = text(
    f"""
    with moment as materialized (
        select {_EPOCH} as epoch, pg_snapshot_xmin(pg_current_snapshot()) as horizon,
               pg_snapshot_xmax(pg_current_snapshot()) as ahead
    )
    select moment.epoch, cast(cast(moment.horizon as text) as bigint) as horizon,
           cast(cast(moment.ahead as text) as bigint) as ahead,
           cast(cast(dropped.xid as text) as bigint) as dropped_xid, dropped.seq as dropped_seq,
           exists (select from changes as c where c.xid >= moment.horizon and c.xid < moment.ahead) as hidden,
           cast(cast(shown.xid as text) as bigint) as xid, shown.seq, shown.namespace, shown.channel, shown.address
    from moment
    left join lateral (
        select d.xid, d.seq from changes_dropped as d where d.epoch = moment.epoch
        order by d.xid desc, d.seq desc limit 1
    ) as dropped on true
    left join lateral (
        select c.xid, c.seq, c.namespace, c.channel, c.address from changes as c
        where (c.xid, c.seq) > (cast(cast(:xid as text) as xid8), cast(:seq as bigint)) and c.xid < moment.horizon
          and c.namespace = any (cast(:namespaces as text[]))
          and (cast(:channel as text) is null or c.channel = :channel)
        order by c.xid, c.seq limit :limit
    ) as shown on true
    order by shown.xid, shown.seq
    """  # noqa: S608 (built from our own words alone)
).bindparams(bindparam("namespaces", type_=ARRAY(Text)), bindparam("channel", type_=Text), bindparam("xid", type_=Text))

_HORIZON: Final = text(
    f"select {_EPOCH} as epoch, cast(cast(pg_snapshot_xmin(pg_current_snapshot()) as text) as bigint) as horizon"
)

_LAG: Final = text(
    """
    select min(recorded_at) from changes
    where xid >= pg_snapshot_xmin(pg_current_snapshot()) and xid < pg_snapshot_xmax(pg_current_snapshot())
    """
)


async def read(
    connection: AsyncConnection, namespaces: Sequence[str], channel: Channel | None, after: Position, limit: int
) -> Reading:
    """The next changes of these namespaces, oldest first, at most so many: needs a transaction."""
    await plan_anew(connection)
    values = {"namespaces": list(namespaces), "channel": channel, "limit": limit, "seq": after.seq}
    found = (await connection.execute(_READ, values | {"xid": str(after.xid)})).all()
    first = found[0]
    rows = [Change(Position(r.xid, r.seq), r.namespace, r.channel, r.address) for r in found if r.xid is not None]
    dropped = None if first.dropped_xid is None else Position(first.dropped_xid, first.dropped_seq)
    return Reading(first.epoch, first.horizon, first.ahead, dropped, first.hidden, rows)


async def horizon(connection: AsyncConnection) -> tuple[str, Position]:
    """The epoch, and the place from which to follow on what this snapshot shows: nothing before it is missing there."""
    row = (await connection.execute(_HORIZON)).one()
    return row.epoch, Position(row.horizon, 0)


async def lag(connection: AsyncConnection, now: datetime) -> float:
    """Seconds since the oldest change was recorded that may not be shown yet; 0 if there is none."""
    oldest: datetime | None = (await connection.execute(_LAG)).scalar()
    return 0.0 if oldest is None else max((now - oldest).total_seconds(), 0.0)


async def drop(connection: AsyncConnection, month: Month, now: datetime) -> None:
    """Drops a month of the feed, and notes what its last row was. Rows of another life of the database, which may lie
    ahead of all xids of this one, are none that anybody could have read."""
    partition = month.partition_of(FEED)
    await partitions.close(connection, FEED, month)
    note = f"""
        insert into changes_dropped as d (epoch, partition, xid, seq, dropped_at)
        select {_EPOCH}, :partition, xid, seq, :now from {partition}
        where xid < pg_snapshot_xmax(pg_current_snapshot()) order by xid desc, seq desc limit 1
        on conflict (epoch, partition) do update
            set xid = excluded.xid, seq = excluded.seq, dropped_at = excluded.dropped_at
        where (excluded.xid, excluded.seq) > (d.xid, d.seq)
        """  # noqa: S608 (our own words, and the name of a partition of ours)
    statement = text(note).bindparams(bindparam("now", type_=DateTime(True)))
    await connection.execute(statement, {"partition": partition, "now": now})
    await partitions.drop(connection, FEED, month)


async def begin_epoch(connection: AsyncConnection, actor: str, now: datetime) -> None:
    """Ends every cursor that was ever handed out."""
    await connection.execute(insert(epochs), {"id": uuid.uuid4(), "began_at": now, "actor": actor})


async def announce(connection: AsyncConnection) -> None:
    """Tells every process that listens that there are changes."""
    await connection.execute(text(f"select pg_notify('{LISTENED}', '')"))


@asynccontextmanager
async def listening(url: str, on_news: Callable[[], None]) -> AsyncIterator[asyncio.Event]:
    """Calls `on_news` at each announcement, for as long as the block lasts or until the connection is lost, which sets
    the event. Not through a pooler: the session must stay ours."""
    lost = asyncio.Event()
    async with single_connection(url) as connection:
        driver = await driver_of(connection)
        driver.add_termination_listener(lambda _: lost.set())
        await driver.add_listener(LISTENED, lambda *_: on_news())
        yield lost
