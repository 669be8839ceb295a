"""Owns the partitions of the tables of receipt: one for each month (UTC), made ahead of it and dropped by retention.

The default partition takes what has no month of its own, so that a missing partition never loses a callback. A month of
which it holds too much is taken out of it slice by slice, each a partition and a transaction of its own, and every row
is read and written all the while. Nothing here waits long for a lock, since all who come after would wait too.
"""

import asyncio
import re
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final, NamedTuple, TypeAlias

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from service.errors import StorageBusy
from service.store.batches import first_id
from service.store.faults import is_conflict

Key: TypeAlias = datetime | uuid.UUID


class Receipts(NamedTuple):
    """A table of receipt: its name, the column that it is partitioned by, the least that this holds at a moment, and
    what a row weighs, in bytes and in words of SQL."""

    table: str
    column: str
    bound: Callable[[datetime], Key]
    weight: str


class Month(NamedTuple):
    """A month, by which the tables of receipt are partitioned."""

    year: int
    month: int

    @property
    def begins_at(self) -> datetime:
        """Its first moment."""
        return datetime(self.year, self.month, 1, tzinfo=UTC)

    @property
    def next(self) -> "Month":
        """The one after."""
        return Month(self.year + self.month // 12, self.month % 12 + 1)

    def partition_of(self, receipts: Receipts) -> str:
        """The name of its partition."""
        return f"{receipts.table}_{self.year:04}_{self.month:02}"


class Part(NamedTuple):
    """A partition: all of its month, what is left of it behind its slices, or a slice."""

    name: str
    month: Month
    upper: Key


class Moved(NamedTuple):
    """How many rows have left the default partition, and whether the month has all of its own now."""

    rows: int
    whole: bool


ARCHIVE: Final = Receipts("batches", "id", first_id, "body_bytes")
FEED: Final = Receipts("changes", "recorded_at", lambda moment: moment, "100")
CALLS: Final = Receipts("calls", "id", first_id, "200 + 8 * cardinality(corrections)")

ALL: Final = (ARCHIVE, FEED, CALLS)
"""Every table of receipt."""

MOVED_AT_ONCE: Final = 20_000
BYTES_AT_ONCE: Final = 64 * 1024 * 1024
"""Rows and bytes of one slice: the default partition is locked for about half a second while they are moved."""

TRIES: Final = 10
BETWEEN_TRIES: Final = 0.1
"""Seconds. A lock is asked for so often, each time for 50 ms: so long does a callback wait that comes in between."""

_OLDEST: Final = Month(2000, 1)
_NAME: Final = re.compile(r"_(\d{4})_(\d{2})(?:_\d+)?")
_UPPER: Final = re.compile(r"TO \('([^']+)'\)")


def month_of(moment: datetime) -> Month:
    """The month of a moment."""
    utc = moment.astimezone(UTC)
    return Month(utc.year, utc.month)


async def parts(connection: AsyncConnection, receipts: Receipts) -> list[Part]:
    """Every partition but the default one, in the order of what they hold."""
    query = text(
        """select child.relname as name, pg_get_expr(child.relpartbound, child.oid) as bounds
           from pg_inherits join pg_class as child on child.oid = inhrelid
           where inhparent = cast(:parent as regclass)"""
    )
    rows = (await connection.execute(query, {"parent": receipts.table})).all()
    found = ((row, _NAME.fullmatch(row.name.removeprefix(receipts.table))) for row in rows)
    made = [
        Part(row.name, Month(int(name[1]), int(name[2])), _upper(receipts, row.bounds)) for row, name in found if name
    ]
    return sorted(made, key=lambda part: part.upper)


async def months(connection: AsyncConnection, receipts: Receipts) -> list[Month]:
    """The months that have all of their own, oldest first."""
    return [part.month for part in await parts(connection, receipts) if part.upper == _end(receipts, part.month)]


async def astray(connection: AsyncConnection, receipts: Receipts, before: Month) -> Month | None:
    """The oldest month before this one with rows in the default partition; ids without a sane time are left there."""
    meant = _between(receipts, receipts.bound(_OLDEST.begins_at), receipts.bound(before.begins_at))
    column = receipts.column
    query = f"select {column} from {receipts.table}_default where {meant} order by {column} limit 1"  # noqa: S608
    key = (await connection.execute(text(query))).scalar()
    return None if key is None else month_of(_moment(key))


async def make(connection: AsyncConnection, receipts: Receipts, month: Month) -> Moved:
    """Makes a month's partition and moves there what the default one holds of it; if that is too much for once, a slice
    of it, from its beginning: the next call goes on behind it. StorageBusy if others do not let go of the default one.

    All of them are locked meanwhile, the whole table first. Whoever had only the default one to wait for would look
    there with a list of partitions that lacks the new one: for that one statement, the rows would be nowhere.
    """
    parent, partition = receipts.table, month.partition_of(receipts)
    slices = [part for part in await parts(connection, receipts) if part.month == month]
    low = slices[-1].upper if slices else receipts.bound(month.begins_at)
    end = _end(receipts, month)
    split = await _split(connection, receipts, _between(receipts, low, end))
    if split is not None:
        partition = f"{partition}_{len(slices) + 1}"
    mine = _between(receipts, low, split or end)
    await _seize(connection, parent, f"{parent}_default")
    # An identity is the parent's; a check that says the same as the bounds spares the attachment a scan of its own.
    await connection.execute(text(f"create table {partition} (like {parent} including all excluding identity)"))
    await connection.execute(text(f"alter table {partition} add constraint bounds check ({mine})"))
    move = f"with moved as (delete from {parent}_default where {mine} returning *) insert into {partition} table moved"  # noqa: S608
    moved = (await connection.execute(text(move))).rowcount
    bounds = f"from ({_literal(low)}) to ({_literal(split or end)})"
    await connection.execute(text(f"alter table {parent} attach partition {partition} for values {bounds}"))
    await connection.execute(text(f"alter table {partition} drop constraint bounds"))
    return Moved(moved, split is None)


async def drop(connection: AsyncConnection, receipts: Receipts, month: Month) -> None:
    """Drops a month with everything in it. The parent is locked for the moment that this takes; StorageBusy if others
    do not let go of it."""
    mine = [part.name for part in await parts(connection, receipts) if part.month == month]
    await _seize(connection, receipts.table, f"{receipts.table}_default", *mine)
    await connection.execute(text(f"drop table {', '.join(mine)}"))


async def close(connection: AsyncConnection, receipts: Receipts, month: Month) -> None:
    """Lets nobody write to a month until the transaction ends."""
    await connection.execute(text("set local lock_timeout = '500ms'"))
    mine = [part.name for part in await parts(connection, receipts) if part.month == month]
    await connection.execute(text(f"lock table {', '.join(mine)} in share row exclusive mode"))


async def _seize(connection: AsyncConnection, *tables: str) -> None:
    """Has these tables to itself until the transaction ends. Whoever waits for a table makes all who come after wait
    too, so it is a short wait, again and again."""
    for attempt in range(TRIES):
        if attempt:
            await asyncio.sleep(BETWEEN_TRIES)
        try:
            async with connection.begin_nested():
                await connection.execute(text("set local lock_timeout = '50ms'"))
                only = ", ".join(f"only {table}" for table in tables)
                await connection.execute(text(f"lock table {only} in access exclusive mode"))
                return
        except DBAPIError as error:
            if not is_conflict(error):
                raise
    raise StorageBusy(f"Others hold {tables[0]}; it is tried again.")


async def _split(connection: AsyncConnection, receipts: Receipts, mine: str) -> Key | None:
    """Where the first slice of these rows must end, if they are too many for once. Rows of one key are never parted."""
    column, source = receipts.column, f"{receipts.table}_default where {mine}"
    query = f"""
        with few as (
            select {column} as key, {receipts.weight} as weight from {source} order by 1 limit {MOVED_AT_ONCE + 1}
        ), counted as (
            select key, row_number() over up_to as number, sum(weight) over up_to as weight
            from few window up_to as (order by key rows unbounded preceding)
        ), past as (
            select key from counted
            where number > {MOVED_AT_ONCE} or number > 1 and weight > {BYTES_AT_ONCE} order by number limit 1
        )
        select {column} from {source} and {column} >= (select key from past)
        and {column} > (select key from few order by 1 limit 1) order by 1 limit 1
    """  # noqa: S608 (our own words)
    found: Key | None = (await connection.execute(text(query))).scalar()
    return found


def _end(receipts: Receipts, month: Month) -> Key:
    return receipts.bound(month.next.begins_at)


def _between(receipts: Receipts, low: Key, high: Key) -> str:
    return f"{receipts.column} >= {_literal(low)} and {receipts.column} < {_literal(high)}"


def _upper(receipts: Receipts, bounds: str) -> Key:
    match = _UPPER.search(bounds)
    word = match[1] if match else ""
    return uuid.UUID(word) if receipts.column == "id" else datetime.fromisoformat(word)


def _literal(key: Key) -> str:
    """A key in words of SQL: DDL takes no parameters."""
    return f"'{key.isoformat() if isinstance(key, datetime) else key}'"


def _moment(key: Key) -> datetime:
    return key if isinstance(key, datetime) else datetime.fromtimestamp((key.int >> 80) / 1000, UTC)
