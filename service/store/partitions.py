"""Owns the partitions of the tables of receipt: one for each month (UTC), made ahead of it and dropped by retention.

The default partition takes what has no month of its own, so that a missing partition never loses a callback. Nothing
here waits long for a lock: a month is built aside and attached, and who is in the way is met again at the next run.
"""

import re
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final, NamedTuple

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from service.store.batches import first_id


class Receipts(NamedTuple):
    """A table of receipt: its name, the column that it is partitioned by, and the least that this holds at a moment."""

    table: str
    column: str
    bound: Callable[[datetime], datetime | uuid.UUID]


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


ARCHIVE: Final = Receipts("batches", "id", first_id)
FEED: Final = Receipts("changes", "recorded_at", lambda moment: moment)

MOVED_AT_ONCE: Final = 20_000
"""Rows that may be moved out of the default partition while callbacks still arrive for their month."""

_OLDEST: Final = Month(2000, 1)
_NAME: Final = re.compile(r"_(\d{4})_(\d{2})")


def month_of(moment: datetime) -> Month:
    """The month of a moment."""
    utc = moment.astimezone(UTC)
    return Month(utc.year, utc.month)


async def months(connection: AsyncConnection, receipts: Receipts) -> list[Month]:
    """The months that have a partition, oldest first."""
    query = text(
        """select child.relname from pg_inherits join pg_class as child on child.oid = inhrelid
           where inhparent = cast(:parent as regclass)"""
    )
    names = (await connection.execute(query, {"parent": receipts.table})).scalars()
    found = (_NAME.fullmatch(name.removeprefix(receipts.table)) for name in names)
    return sorted(Month(int(match[1]), int(match[2])) for match in found if match)


async def astray(connection: AsyncConnection, receipts: Receipts, before: Month) -> Month | None:
    """The oldest month before this one with rows in the default partition; ids without a sane time are left there."""
    column = receipts.column
    query = f"""select {column} from {receipts.table}_default where {column} >= {_literal(receipts, _OLDEST)}
                and {column} < {_literal(receipts, before)} order by {column} limit 1"""  # noqa: S608 (our own words)
    key = (await connection.execute(text(query))).scalar()
    return None if key is None else month_of(_moment(key))


async def make(connection: AsyncConnection, receipts: Receipts, month: Month, *, open_now: bool) -> int | None:
    """Makes a month's partition, and moves there what the default one holds of it; returns how many rows. None if that
    is too much to do while callbacks arrive for this month (`open_now`): it waits until the month is over.

    The default partition is locked meanwhile, and only it: the others take rows and are read.
    """
    await _wait_briefly(connection)
    parent, partition = receipts.table, month.partition_of(receipts)
    low, high = _literal(receipts, month), _literal(receipts, month.next)
    mine = f"{receipts.column} >= {low} and {receipts.column} < {high}"
    await connection.execute(text(f"lock table {parent}_default in access exclusive mode"))
    count = f"select count(*) from (select from {parent}_default where {mine} limit {MOVED_AT_ONCE + 1}) as found"  # noqa: S608
    if open_now and (await connection.execute(text(count))).scalar_one() > MOVED_AT_ONCE:
        return None
    # An identity is the parent's; a check that says the same as the bounds spares the attachment a scan of its own.
    await connection.execute(text(f"create table {partition} (like {parent} including all excluding identity)"))
    await connection.execute(text(f"alter table {partition} add constraint bounds check ({mine})"))
    move = f"with moved as (delete from {parent}_default where {mine} returning *) insert into {partition} table moved"  # noqa: S608
    moved = (await connection.execute(text(move))).rowcount
    attach = f"alter table {parent} attach partition {partition} for values from ({low}) to ({high})"
    await connection.execute(text(attach))
    await connection.execute(text(f"alter table {partition} drop constraint bounds"))
    return moved


async def drop(connection: AsyncConnection, receipts: Receipts, month: Month) -> None:
    """Drops a month with everything in it. The parent is locked for the moment that this takes."""
    await _wait_briefly(connection)
    await connection.execute(text(f"drop table {month.partition_of(receipts)}"))


async def close(connection: AsyncConnection, receipts: Receipts, month: Month) -> None:
    """Lets nobody write to a month until the transaction ends."""
    await _wait_briefly(connection)
    await connection.execute(text(f"lock table {month.partition_of(receipts)} in share row exclusive mode"))


async def _wait_briefly(connection: AsyncConnection) -> None:
    """Whoever waits for a table makes all who come after wait too."""
    await connection.execute(text("set local lock_timeout = '500ms'"))


def _literal(receipts: Receipts, month: Month) -> str:
    """The bound in words of SQL: DDL takes no parameters."""
    bound = receipts.bound(month.begins_at)
    return f"'{bound.isoformat() if isinstance(bound, datetime) else bound}'"


def _moment(key: datetime | uuid.UUID) -> datetime:
    return key if isinstance(key, datetime) else datetime.fromtimestamp((key.int >> 80) / 1000, UTC)
