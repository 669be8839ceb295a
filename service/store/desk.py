"""Owns what operators ask of the outbox and decide there: which corrections, and those that are taken out of the way.

Whoever decides holds the locks of `outbox.examine`, or at least those of the list, and reads the rows under them.
"""

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

from sqlalchemy import ColumnElement, Select, String, and_, bindparam, func, select, true, update
from sqlalchemy.ext.asyncio import AsyncConnection

from service.store.database import among
from service.store.outbox import Scope
from service.store.tables import corrections

SCANNED: Final = 20_000
"""Rows of the outbox that one page looks at, at most: a page of a rare kind may be shorter than asked, even empty."""

SETTLEABLE: Final = ("pending", "dead", "rejected", "unsupported")
"""States that a person may end. What is on its way has to come back first."""

_LARGEST: Final = 2**63 - 1

_INDEXED: Final = frozenset({"sending", "dead", "rejected", "unsupported", "discarded"})
"""States that are few, and have an index."""


class Wanted(NamedTuple):
    """Which corrections of a namespace; None leaves a choice open. Times are when they were written. `addresses` are
    spellings of one: its normal form in each channel. `request_id` has no index: whoever asks by it reads all the
    others."""

    namespace: str
    state: str | None = None
    channel: str | None = None
    slot: str | None = None
    action: str | None = None
    reason: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    addresses: tuple[str, ...] | None = None
    request_id: str | None = None


async def listed(
    connection: AsyncConnection, wanted: Wanted, before: int | None, limit: int, scanned: int = SCANNED
) -> tuple[Sequence[Any], int | None]:
    """The newest of these corrections, and before which id to go on; None: there is nothing more."""
    upper = _LARGEST if before is None else before
    floor = 0
    if wanted.addresses is None and wanted.state not in _INDEXED:
        below = select(corrections.c.id).where(corrections.c.id < upper).order_by(corrections.c.id.desc())
        floor = (await connection.execute(below.offset(scanned - 1).limit(1))).scalar() or 0
    query = _meant(wanted).where(corrections.c.id < upper, corrections.c.id >= floor)
    rows = (await connection.execute(query.order_by(corrections.c.id.desc()).limit(limit))).all()
    return rows, rows[-1].id if len(rows) == limit else floor or None


async def tallied(connection: AsyncConnection, wanted: Wanted, scanned: int = SCANNED) -> tuple[int, bool]:
    """How many of these corrections in a state there are, and whether these are all: so many rows are looked at."""
    state = select(corrections).where(corrections.c.namespace == wanted.namespace, _is(wanted.state or ""))
    some = state.limit(scanned).subquery()
    meant = func.count().filter(and_(true(), *_asked(wanted, some.c)))
    row = (await connection.execute(select(meant, func.count()).select_from(some))).one()
    return row[0], row[1] < scanned


async def one(connection: AsyncConnection, correction_id: int) -> Any:
    """One correction, or None."""
    return (await connection.execute(select(corrections).where(corrections.c.id == correction_id))).first()


async def successor(connection: AsyncConnection, row: Any) -> Any:
    """The next correction of the slot of this one (`id`, `state`), which took its place; None if there is none."""
    table = corrections.c
    same = [table[name] == getattr(row, name) for name in ("namespace", "channel", "address", "slot")]
    query = select(table.id, table.state).where(*same, table.id > row.id).order_by(table.id).limit(1)
    return (await connection.execute(query)).first()


async def oldest(connection: AsyncConnection, wanted: Wanted, after: int, limit: int) -> list[int]:
    """The ids of the oldest of these corrections after one."""
    query = _meant(wanted).with_only_columns(corrections.c.id).where(corrections.c.id > after)
    return list((await connection.execute(query.order_by(corrections.c.id).limit(limit))).scalars())


async def rows_of(connection: AsyncConnection, namespace: str, ids: Collection[int]) -> Sequence[Any]:
    """These corrections of a namespace, in the order of their ids."""
    mine = (among(corrections.c.id, ids), corrections.c.namespace == namespace)
    return (await connection.execute(select(corrections).where(*mine).order_by(corrections.c.id))).all()


async def waiting(connection: AsyncConnection, scope: Scope, addresses: Collection[str]) -> dict[tuple[str, str], int]:
    """The ids of the corrections of these addresses that wait to be sent, by address and slot."""
    table = corrections.c
    mine = (among(table.address, addresses), table.channel == scope.channel, table.namespace == scope.namespace)
    rows = await connection.execute(select(table.address, table.slot, table.id).where(*mine, _is("pending")))
    return {(row.address, row.slot): row.id for row in rows}


async def hasten(connection: AsyncConnection, ids: Collection[int], now: datetime) -> None:
    """Has these sent as soon as somebody can."""
    late = (among(corrections.c.id, ids), _is("pending"), corrections.c.next_attempt_at > now)
    await connection.execute(update(corrections).where(*late).values(next_attempt_at=now))


async def retire(connection: AsyncConnection, ids: Collection[int], now: datetime) -> None:
    """Notes that these, which were given up, are replaced or no longer owed."""
    given_up = corrections.c.state.in_(["dead", "rejected", "unsupported", "discarded"])
    mine = update(corrections).where(among(corrections.c.id, ids), given_up)
    await connection.execute(mine.values(state="superseded", settled_at=now))


async def discard(
    connection: AsyncConnection, ids: Collection[int], actor: str, note: str, now: datetime
) -> frozenset[int]:
    """Takes these out of the way, unless one is on its way or settled; returns those that it took."""
    mine = update(corrections).where(among(corrections.c.id, ids), corrections.c.state.in_(SETTLEABLE))
    values = {"state": "discarded", "settled_at": now, "decided_by": actor, "note": note}
    return frozenset((await connection.execute(mine.values(values).returning(corrections.c.id))).scalars())


def _meant(wanted: Wanted) -> Select[Any]:
    conditions: list[ColumnElement[bool]] = [corrections.c.namespace == wanted.namespace]
    if wanted.state is not None:
        conditions.append(_is(wanted.state))
    return select(corrections).where(*conditions, *_asked(wanted, corrections.c))


def _asked(wanted: Wanted, table: Any) -> list[ColumnElement[bool]]:
    """What else is asked of the columns of this table."""
    equal = ("channel", "slot", "action", "reason", "request_id")
    conditions = [table[name] == getattr(wanted, name) for name in equal if getattr(wanted, name) is not None]
    if wanted.since is not None:
        conditions.append(table.created_at >= wanted.since)
    if wanted.until is not None:
        conditions.append(table.created_at < wanted.until)
    if wanted.addresses is not None:
        conditions.append(among(table.address, wanted.addresses))
    return conditions


def _is(state: str) -> ColumnElement[bool]:
    """Written into the statement: the indexes are of single states, and a plan for any state could use none."""
    return corrections.c.state == bindparam(None, state, String, literal_execute=True)
