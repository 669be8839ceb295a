"""Owns the lines of the plans: what each run found, what was decided of it, and what settles it.

Lines that wait for a decision or are approved change only under the lock of their run; those that wait for Kahuna are
closed together with their corrections.
"""

import uuid
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

import msgspec
from sqlalchemy import (
    ColumnElement,
    DateTime,
    Uuid,
    and_,
    bindparam,
    case,
    false,
    func,
    or_,
    select,
    text,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncConnection

from service.domain.drift import Direction
from service.domain.runs import LineState
from service.store.database import SEPARATOR, among
from service.store.reconciliations import Run
from service.store.tables import corrections
from service.store.tables_of_plans import differences

SAMPLES: Final = 3
"""Addresses that are shown of each group of lines."""


_KEY: Final = (differences.c.address, differences.c.slot)


class Line(NamedTuple):
    """One slot on which the two sides differ: what would settle it, both sides' evidence, and how it stands. `why` is
    said of those that cannot be proposed or are settled already; the ids name what settles it."""

    address: str
    slot: str
    kind: str
    action: str | None
    occurred_at: int | None
    evidence: dict[str, Any]
    state: LineState = "proposed"
    reason: str | None = None
    why: str | None = None
    correction_id: int | None = None
    batch_id: uuid.UUID | None = None


class Settled(NamedTuple):
    """What came of carrying a line out."""

    address: str
    slot: str
    state: LineState
    why: str | None = None
    correction_id: int | None = None
    audit_id: uuid.UUID | None = None


class Selection(NamedTuple):
    """Which lines are meant: those that all of this is true of. Without anything, all."""

    kind: str | None = None
    reason: str | None = None
    slot: str | None = None
    action: str | None = None
    state: str | None = None
    direction: Direction | None = None
    lines: tuple[tuple[str, str], ...] | None = None


class Decided(NamedTuple):
    """What is decided about lines, by whom and when."""

    state: LineState
    decided_by: str
    decided_at: datetime


class Undone(NamedTuple):
    """Of the lines of a run that is to be taken back: how many recorded something here, are opt-ins that are withdrawn
    unsent, stand at Kahuna, are on their way there, and are not carried out at all."""

    recorded: int
    withdrawn: int
    told_and_stands: int
    on_the_way: int
    called_off: int


class Part(NamedTuple):
    """Some lines of a run, in the order of their keys: behind which key, and how many (at most)."""

    after: tuple[str, str] = ("", "")
    lines: int = 10_000


def _columns(kind: type, types: dict[str, str]) -> str:
    """The fields of bulk rows as a table, from columns of joined text: bound one by one they stall the event loop."""
    names = kind._fields  # type: ignore[attr-defined]  # a NamedTuple
    arrays = (
        f"string_to_array(:{name}, :separator, ''){f'::{types[name]}[]' if name in types else ''}" for name in names
    )
    return f"unnest({', '.join(arrays)}) as given({', '.join(names)})"


_ADD: Final = text(
    f"""
    insert into differences (run_id, {", ".join(Line._fields)})
    select :run_id, {", ".join(Line._fields)} from {
        _columns(Line, {"occurred_at": "bigint", "evidence": "jsonb", "correction_id": "bigint", "batch_id": "uuid"})
    }
    on conflict (run_id, address, slot) do update set kind = excluded.kind, action = excluded.action,
        occurred_at = excluded.occurred_at, evidence = excluded.evidence, state = excluded.state,
        reason = excluded.reason, why = excluded.why, correction_id = excluded.correction_id,
        batch_id = coalesce(excluded.batch_id, differences.batch_id)
    """  # noqa: S608 (our own words)
).bindparams(bindparam("run_id", type_=Uuid))

_SETTLE: Final = text(
    f"""
    update differences as d set state = given.state, why = given.why, correction_id = given.correction_id,
        audit_id = given.audit_id, closed_at = case when given.state in ('proved', 'moot') then :now end
    from {_columns(Settled, {"correction_id": "bigint", "audit_id": "uuid"})}
    where d.run_id = :run_id and d.address = given.address and d.slot = given.slot
    """  # noqa: S608 (our own words)
).bindparams(bindparam("run_id", type_=Uuid), bindparam("now", type_=DateTime(True)))

_COUNT_DROPPED: Final = """update reconciliations as r
        set counts = r.counts || jsonb_build_object(
            'lines_dropped', coalesce(cast(r.counts ->> 'lines_dropped' as int), 0) + n)
        from (select run_id, count(*) as n from gone group by run_id) as g where r.id = g.run_id"""

# What was decided, recorded or is still waited for stays with its run: guards, undo and proof go by it.
_THIN: Final = text(
    f"""
    with old as materialized (
        select id from (
            select id, state from reconciliations
            where namespace = :namespace and channel = :channel and id <> :run_id and planned_at is not null
            order by created_at desc, id desc offset :kept
        ) as older where state in ('applied', 'proved', 'rejected', 'reverted', 'abandoned')
    ), spent as materialized (
        select d.run_id, d.address, d.slot from old cross join lateral (
            select run_id, address, slot from differences
            where run_id = old.id and decided_by is null and audit_id is null and batch_id is null
              and state in ('proposed', 'proved', 'moot', 'refused', 'unsupported')
            order by address, slot limit :limit
        ) as d limit :limit
    ), gone as (
        delete from differences as d using spent
        where d.run_id = spent.run_id and d.address = spent.address and d.slot = spent.slot
          and d.state in ('proposed', 'proved', 'moot', 'refused', 'unsupported') -- also once it was waited for
        returning d.run_id
    ), noted as (
        {_COUNT_DROPPED}
    )
    select count(*) from gone
    """  # noqa: S608 (our own words)
).bindparams(bindparam("run_id", type_=Uuid))

# Of runs that ended without being carried out. What was recorded stays: undo goes by it. Whoever goes on with a failed
# run at this moment holds it, and keeps its lines.
_DROP_ENDED: Final = text(
    f"""
    with ended as materialized (
        select id from reconciliations as r
        where state in ('failed', 'rejected', 'abandoned') and finished_at < :before
          and exists (select from differences where run_id = r.id and audit_id is null and batch_id is null
                                                and state not in ('applied', 'on_its_way'))
        for update of r skip locked
    ), spent as materialized (
        select d.run_id, d.address, d.slot from ended cross join lateral (
            select run_id, address, slot from differences
            where run_id = ended.id and audit_id is null and batch_id is null
              and state not in ('applied', 'on_its_way')
            order by address, slot limit :limit
        ) as d limit :limit
    ), gone as (
        delete from differences as d using spent
        where d.run_id = spent.run_id and d.address = spent.address and d.slot = spent.slot returning d.run_id
    ), noted as (
        {_COUNT_DROPPED}
    )
    select count(*) from gone
    """  # noqa: S608 (our own words)
).bindparams(bindparam("before", type_=DateTime(True)))

CALLED_OFF: Final = "called-off"
"""Why a line is declined that nobody had decided about when its run was taken back: the next plan proposes it anew."""

# What a person did not want is not done without one.
_UNDONE: Final = f"""
    exists (select from differences as o join reconciliations as r on r.id = o.run_id
            where o.address = d.address and o.slot = d.slot and o.state in ('declined', 'reverted')
              and o.why is distinct from '{CALLED_OFF}'
              and o.kind = d.kind and o.action = d.action and o.run_id <> d.run_id
              and r.namespace = :namespace and r.channel = :channel
              and o.occurred_at is not distinct from d.occurred_at)
"""  # noqa: S608 (our own words)

_HELD: Final = text(
    f"""
    select count(*) filter (where action = 'clear') as permits, count(*) filter (where {_UNDONE}) as decided_before
    from differences as d where run_id = :run_id and state = 'proposed'
    """  # noqa: S608 (our own words)
).bindparams(bindparam("run_id", type_=Uuid))

_NOW: Final = bindparam("now", type_=DateTime(True))

_APPROVE_HARMLESS: Final = text(
    f"""
    update differences as d set state = 'approved', decided_by = :actor, decided_at = :now
    where run_id = :run_id and state = 'proposed' and action = 'suppress' and not {_UNDONE}
    """  # noqa: S608 (our own words)
).bindparams(bindparam("run_id", type_=Uuid), _NOW)

_GROUPS: Final = text(
    """
    select g.kind, g.slot, g.reason, g.action, g.state, g.why, g.lines, s.samples from (
        select kind, slot, reason, action, state, why, count(*) as lines from differences where run_id = :run_id
        group by kind, slot, reason, action, state, why
    ) as g cross join lateral (
        select array_agg(address) as samples from (
            select address from differences as d where d.run_id = :run_id and d.kind = g.kind and d.slot = g.slot
               and d.state = g.state
               and d.reason is not distinct from g.reason and d.action is not distinct from g.action
               and d.why is not distinct from g.why
            order by address limit :samples
        ) as first_ones
    ) as s order by g.kind, g.reason, g.slot, g.action, g.state, g.why
    """
).bindparams(bindparam("run_id", type_=Uuid))

_OPEN: Final = text(
    """
    select run_id, kind, count(*) as lines from differences
    where run_id = any(:run_ids) and state not in ('proved', 'moot') group by run_id, kind
    """
).bindparams(bindparam("run_ids", type_=ARRAY(Uuid)))


async def add(connection: AsyncConnection, run_id: uuid.UUID, lines: Sequence[Line]) -> None:
    """Writes down a page of them."""
    if lines:
        told = [line._replace(evidence=msgspec.json.encode(line.evidence).decode()) for line in lines]  # type: ignore[arg-type]
        await connection.execute(_ADD, _joined(told) | {"run_id": run_id})


async def settle(connection: AsyncConnection, run_id: uuid.UUID, settled: Sequence[Settled], now: datetime) -> None:
    """Writes down what came of approved ones."""
    if settled:
        await connection.execute(_SETTLE, _joined(settled) | {"run_id": run_id, "now": now})


def _joined(rows: Sequence[Any]) -> dict[str, str]:
    columns = zip(*rows, strict=True)
    texts = (SEPARATOR.join("" if value is None else str(value) for value in column) for column in columns)
    return dict(zip(rows[0]._fields, texts, strict=True)) | {"separator": SEPARATOR}


async def counts(connection: AsyncConnection, run_id: uuid.UUID) -> dict[LineState, int]:
    """How many lines of a run are in each state."""
    query = select(differences.c.state, func.count()).where(differences.c.run_id == run_id)
    return {row[0]: row[1] for row in await connection.execute(query.group_by(differences.c.state))}


async def held(connection: AsyncConnection, run: Run) -> tuple[int, int]:
    """Of the proposed ones: how many would permit messages, and how many a person did not want before."""
    row = (await connection.execute(_HELD, _whose(run))).one()
    return row.permits, row.decided_before


async def approve_harmless(connection: AsyncConnection, run: Run, now: datetime) -> int:
    """Approves the proposed ones that protect and that nobody turned down before; returns how many."""
    return (await connection.execute(_APPROVE_HARMLESS, _whose(run) | {"actor": run.actor, "now": now})).rowcount


def _whose(run: Run) -> dict[str, Any]:
    return {"run_id": run.id, "namespace": run.namespace, "channel": run.channel}


async def proposed(connection: AsyncConnection, run_id: uuid.UUID, chosen: Selection) -> int:
    """How many of those that are meant wait for a decision."""
    query = select(func.count()).select_from(differences)
    meant = query.where(*_meant(run_id, chosen), differences.c.state == "proposed")
    return (await connection.execute(meant)).scalar_one()


async def decide(
    connection: AsyncConnection, run_id: uuid.UUID, chosen: Selection, decided: Decided, part: Part
) -> Part:
    """Approves or declines a part of the proposed ones that are meant; returns how many it was, and where it ends."""
    meant = (*_meant(run_id, chosen), differences.c.state == "proposed")
    return await _change_some(connection, meant, decided._asdict(), part)


async def decline_rest(connection: AsyncConnection, run_id: uuid.UUID, actor: str, now: datetime, part: Part) -> Part:
    """Declines a part of what is not carried out yet; returns how many it was, and where it ends. Lines that nobody had
    decided about say so (`CALLED_OFF`): guards do not take that for a decision."""
    rest = (differences.c.run_id == run_id, differences.c.state.in_(["proposed", "approved"]))
    why = case((differences.c.state == "proposed", CALLED_OFF), else_=differences.c.why)
    return await _change_some(connection, rest, Decided("declined", actor, now)._asdict() | {"why": why}, part)


async def _change_some(
    connection: AsyncConnection,
    which: Sequence[ColumnElement[bool]],
    values: dict[str, Any],
    part: Part,
) -> Part:
    """In the order of the keys, so that all parts together read the lines once: a range of them, and no join."""
    some = select(*_KEY).where(*which, tuple_(*_KEY) > part.after).order_by(*_KEY)
    last = (await connection.execute(some.offset(part.lines - 1).limit(1))).first()
    changed = update(differences).where(*which, tuple_(*_KEY) > part.after)
    changed = changed if last is None else changed.where(tuple_(*_KEY) <= tuple(last))
    count = (await connection.execute(changed.values(values))).rowcount
    return Part(part.after if last is None else (last.address, last.slot), count)


async def standing(
    connection: AsyncConnection, run_id: uuid.UUID, keys: Collection[tuple[str, str]]
) -> dict[tuple[str, str], str]:
    """How these lines stand, by address and slot; those that are none of the run's are missing."""
    query = select(differences.c.address, differences.c.slot, differences.c.state)
    chosen = Selection(lines=tuple(keys))
    rows = await connection.execute(query.where(*_meant(run_id, chosen)))
    return {(row.address, row.slot): row.state for row in rows}


async def approved(connection: AsyncConnection, run_id: uuid.UUID, after: tuple[str, str], limit: int) -> Sequence[Any]:
    """The approved ones behind a place, in the order of their keys."""
    query = select(differences).where(differences.c.run_id == run_id, differences.c.state == "approved")
    behind = tuple_(differences.c.address, differences.c.slot) > after
    return (await connection.execute(query.where(behind).order_by(*_KEY).limit(limit))).all()


async def page(
    connection: AsyncConnection, run_id: uuid.UUID, chosen: Selection, after: tuple[str, str], limit: int
) -> Sequence[Any]:
    """Lines behind a place, in the order of their keys, each with how its correction stands: `sent_state`,
    `sent_reason`, `sent_evidence`, `attempts`."""
    correction: list[Any] = [corrections.c.state.label("sent_state"), corrections.c.reason.label("sent_reason")]
    correction += [corrections.c.evidence.label("sent_evidence"), corrections.c.attempts]
    query = select(differences, *correction).outerjoin(corrections, corrections.c.id == differences.c.correction_id)
    behind = tuple_(differences.c.address, differences.c.slot) > after
    return (await connection.execute(query.where(*_meant(run_id, chosen), behind).order_by(*_KEY).limit(limit))).all()


async def groups(connection: AsyncConnection, run_id: uuid.UUID) -> Sequence[Any]:
    """How many lines there are of each kind, slot, reason, action and state, with a few addresses of each."""
    return (await connection.execute(_GROUPS, {"run_id": run_id, "samples": SAMPLES})).all()


async def thin(connection: AsyncConnection, run: Run, kept: int, limit: int) -> int:
    """Drops lines, so many at most, of runs of this list older than this one and the newest `kept` others; returns how
    many. Their runs count them as `lines_dropped`."""
    values = _whose(run) | {"kept": kept, "limit": limit}
    return int((await connection.execute(_THIN, values)).scalar_one())


async def drop_ended(connection: AsyncConnection, before: datetime, limit: int) -> int:
    """Drops lines, so many at most, of runs that failed, were rejected or were given up before a moment; returns how
    many. Their runs count them as `lines_dropped`."""
    return int((await connection.execute(_DROP_ENDED, {"before": before, "limit": limit})).scalar_one())


async def open_by_kind(connection: AsyncConnection, run_ids: Sequence[uuid.UUID]) -> dict[tuple[uuid.UUID, str], int]:
    """How many lines of these runs are not closed, by run and kind."""
    rows = await connection.execute(_OPEN, {"run_ids": list(run_ids)})
    return {(row.run_id, row.kind): row.lines for row in rows}


async def would_revert(connection: AsyncConnection, run_id: uuid.UUID) -> Undone:
    """What taking this run back would do to its lines, as they stand now."""
    columns = differences.c
    here = or_(columns.audit_id.is_not(None), columns.batch_id.is_not(None))
    there = corrections.c.id == columns.correction_id
    unsent = and_(columns.action == "clear", corrections.c.state == "pending", corrections.c.attempts == 0)
    applied = columns.state == "applied"
    counted = (
        func.count().filter(here),
        func.count().filter(applied, unsent),
        func.count().filter(columns.state == "proved", ~here),
        func.count().filter(applied, ~func.coalesce(unsent, false())),
        func.count().filter(columns.state.in_(["proposed", "approved"])),
    )
    query = select(*counted).select_from(differences.outerjoin(corrections, there)).where(columns.run_id == run_id)
    return Undone(*(await connection.execute(query)).one())


async def slots_of(connection: AsyncConnection, run_id: uuid.UUID, address: str) -> list[str]:
    """The slots of an address of which a run has a line."""
    query = select(differences.c.slot).where(differences.c.run_id == run_id, differences.c.address == address)
    return list((await connection.execute(query.order_by(differences.c.slot))).scalars())


async def evidence_of(connection: AsyncConnection, run_id: uuid.UUID) -> list[uuid.UUID]:
    """The rows of the audit log that state what this run recorded."""
    query = select(differences.c.audit_id).where(differences.c.run_id == run_id, differences.c.audit_id.is_not(None))
    return list((await connection.execute(query.distinct())).scalars())


async def unsent_opt_ins(connection: AsyncConnection, run_id: uuid.UUID, limit: int) -> Sequence[Any]:
    """Lines whose correction would permit messages, and that nobody has tried to send: `address`, `correction_id`."""
    query = select(differences.c.address, differences.c.correction_id)
    query = query.join(corrections, corrections.c.id == differences.c.correction_id)
    mine = (differences.c.run_id == run_id, differences.c.state == "applied", differences.c.action == "clear")
    unsent = (corrections.c.state == "pending", corrections.c.attempts == 0)
    return (await connection.execute(query.where(*mine, *unsent).order_by(*_KEY).limit(limit))).all()


async def mark_withdrawn(connection: AsyncConnection, run_id: uuid.UUID, ids: Collection[int], now: datetime) -> None:
    """Says of the lines of these corrections that they were taken back."""
    taken = update(differences).where(differences.c.run_id == run_id, among(differences.c.correction_id, ids))
    await connection.execute(taken.values(state="reverted", why="withdrawn", decided_at=now))


async def revert(connection: AsyncConnection, run_id: uuid.UUID, now: datetime, part: Part) -> Part:
    """Says of a part of the lines that recorded something here that it was taken back; returns how many they are, and
    where it ends."""
    recorded = or_(differences.c.audit_id.is_not(None), differences.c.batch_id.is_not(None))
    values = {"state": "reverted", "why": "retracted", "closed_at": None, "decided_at": now}
    return await _change_some(connection, (differences.c.run_id == run_id, recorded), values, part)


def _meant(run_id: uuid.UUID, chosen: Selection) -> list[ColumnElement[bool]]:
    columns = differences.c
    found: list[ColumnElement[bool]] = [columns.run_id == run_id]
    for name in ("kind", "reason", "slot", "action", "state"):
        value = getattr(chosen, name)
        if value is not None:
            found.append(columns[name] == value)
    if chosen.direction is not None:
        here = columns.kind == "missing_here"
        found.append(here if chosen.direction == "here" else ~here)
    if chosen.lines is not None:
        found.append(_one_of(chosen.lines))
    return found


def _one_of(lines: Sequence[tuple[str, str]]) -> ColumnElement[bool]:
    key = differences.c.address.concat(_BETWEEN).concat(differences.c.slot)
    given = (f"{address}{_BETWEEN}{slot}" for address, slot in lines)
    return and_(among(differences.c.address, {address for address, _ in lines}), among(key, given))


_BETWEEN: Final = "\x1e"
"""Between the parts of a key that travels as one text."""
