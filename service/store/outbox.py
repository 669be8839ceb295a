"""Owns the corrections: what Kahuna holds per slot, what it is therefore owed, and how far each correction has come.

Whoever changes a slot holds the lock of its home row in `suppressions` first; rows of the outbox are locked after.
"""

import uuid
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple

from sqlalchemy import (
    ColumnElement,
    DateTime,
    Exists,
    Select,
    bindparam,
    case,
    func,
    insert,
    literal_column,
    select,
    text,
    update,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from service.domain.addresses import Channel
from service.domain.corrections import Correction, Marks, Slot, owed, sayable, slots_of
from service.domain.suppression import Cause, Policy
from service.spans import TRACE
from service.store.database import SEPARATOR, among, plan_anew
from service.store.merging import HOME
from service.store.suppressions import lock
from service.store.tables import corrections, suppressions
from service.telemetry import REQUEST_ID


class Because(NamedTuple):
    """What a correction comes from: the id of a request, and the span of a trace if one was recorded."""

    request_id: str | None = None
    traceparent: str | None = None


class Scope(NamedTuple):
    """What every question about slots shares. `at` is in Unix seconds, `now` our clock, `policy` the verdict's.
    `because` says by address what a correction comes from, where that is not the request that is being answered."""

    namespace: str
    channel: Channel
    now: datetime
    policy: Policy
    because: Mapping[str, Because] = MappingProxyType({})

    @property
    def at(self) -> int:
        """The moment of the verdict."""
        return int(self.now.timestamp())


class Open(NamedTuple):
    """A correction that is not proved: its row, what it says, how far it has come, since when it is there, and when the
    stop happened that it is for."""

    id: int
    correction: Correction
    state: str
    attempts: int
    created_at: datetime
    stopped_at: int


class SlotState(NamedTuple):
    """Both sides of one slot, and what follows."""

    address: str
    received: str
    name: str
    causes: dict[str, Cause]
    slot: Slot
    needed: Correction | None
    pending: Open | None
    given_up: tuple[int, ...]
    refused: bool
    stopped_at: int | None = None


class Claimed(NamedTuple):
    """One correction on its way to Kahuna."""

    id: int
    address: str
    received: str
    slot: str
    correction: Correction
    attempts: int
    because: Because = Because()


class Settlement(NamedTuple):
    """What came of claimed corrections: the state they take, why, with which evidence, and when to try again."""

    state: Literal["sent", "rejected", "dead", "pending"]
    reason: str | None = None
    evidence: dict[str, Any] | None = None
    delay: float = 0.0


# A refusal is of one attempt. An earlier one, or an earlier call of the same bisection, may have been taken unheard.
_UNPROVED: Final = ("pending", "sending", "superseded", "dead", "discarded", "rejected")

_FOR_GOOD: Final = frozenset({"rejected", "unsupported", "discarded"})

_UNMET: Final = frozenset({"pending", "sending", "dead", "rejected"})

UNSETTLED: Final = ("pending", "sending", "dead", "rejected", "unsupported")
"""States that something or somebody has to end."""

# A superset of the slots at odds, cheap enough for the whole list; the domain decides on what it finds.
AT_ODDS: Final = f"""
    select address from suppressions
    where namespace = :namespace and channel = :channel and {{where}}
    group by address, {HOME}
    having coalesce(bool_or(stop_at >= coalesce(clear_at, stop_at)), false)
           is distinct from coalesce(max(held_stop_at) > coalesce(max(held_clear_at), -1), false)
        or max(held_stop_at) = max(held_clear_at)
"""  # noqa: S608 (our own words)

OPEN_HERE: Final = """
    select address from corrections where namespace = :namespace and channel = :channel and {where}
    and state in ('pending', 'sending', 'superseded', 'dead', 'discarded', 'rejected')
"""

_GIVEN: Final = "address = any(string_to_array(:addresses, :separator))"

_AT_ODDS_AMONG: Final = text(f"{AT_ODDS.format(where=_GIVEN)} union {OPEN_HERE.format(where=_GIVEN)}")


# State by state, since each has an index of its own: those that were sent are never looked at.
_DEPTH: Final = text(
    " union all ".join(
        f"select namespace, '{state}' as state, count(*) from corrections where state = '{state}' group by namespace"  # noqa: S608
        for state in UNSETTLED
    )
)


async def owe(connection: AsyncConnection, scope: Scope, addresses: Collection[str], *, again: bool = False) -> int:
    """Brings the outbox in line with both sides of these addresses, whose rows this transaction has locked; returns how
    many corrections were written.

    `again` proposes anew what was given up (never what was refused).
    """
    candidates = await _at_odds_among(connection, scope, addresses) if addresses else []
    if not candidates:
        return 0
    states = await examine(connection, scope, candidates, again=again, first=False)
    return await write(connection, scope, states)


async def examine(
    connection: AsyncConnection, scope: Scope, addresses: Iterable[str], *, again: bool = False, first: bool = True
) -> list[SlotState]:
    """Both sides of every slot of these addresses, in the order of the keys, locked: first, and read only then, since
    a row that another transaction has just made is not seen by the statement that waited for it."""
    given = sorted(addresses)
    await lock(connection, scope.namespace, scope.channel, given, first=first)
    rows = await _rows_by_address(connection, scope, given)
    outbox = await _open_by_slot(connection, scope, given)
    states = []
    for address in given:
        causes = {row.reason: _cause(row) for row in rows[address]}
        states += [
            state_of(scope, address, name, rows[address], outbox[address, name], again=again)
            for name in sorted(slots_of(scope.channel, causes))
        ]
    return states


async def write(connection: AsyncConnection, scope: Scope, states: Sequence[SlotState]) -> int:
    """Withdraws the pending corrections that are no longer what is needed, and writes the ones that are. Those that
    were given up make way for a new one."""
    new = [s for s in states if s.needed is not None and not s.refused and not _is_pending(s)]
    stale = [s.pending.id for s in states if s.pending is not None and s.pending.correction != s.needed]
    stale += [given_up for s in new for given_up in s.given_up]
    if stale:
        unsettled = corrections.c.state.in_(["pending", "dead"])
        withdrawn = update(corrections).where(among(corrections.c.id, stale), unsettled)
        await connection.execute(withdrawn.values(state="superseded", settled_at=scope.now))
    if new:
        rows = [_row(scope, s, s.needed) for s in new if s.needed is not None]
        await connection.execute(insert(corrections), rows)
    return len(new)


async def pending_of(
    connection: AsyncConnection, scope: Scope, addresses: Collection[str]
) -> dict[tuple[str, str], int]:
    """The corrections of these addresses that wait to be sent: their ids, by address and slot."""
    query = select(corrections.c.address, corrections.c.slot, corrections.c.id)
    rows = await connection.execute(
        query.where(*_mine(corrections, scope, addresses), corrections.c.state == "pending")
    )
    return {(row.address, row.slot): row.id for row in rows}


async def withdraw(connection: AsyncConnection, ids: Collection[int], reason: str, now: datetime) -> set[int]:
    """Takes back those of these corrections that nobody has tried to send; returns their ids."""
    unsent = update(corrections).where(among(corrections.c.id, ids), corrections.c.state == "pending")
    unsent = unsent.where(corrections.c.attempts == 0).values(state="superseded", reason=reason, settled_at=now)
    return set((await connection.execute(unsent.returning(corrections.c.id))).scalars())


async def claim(
    connection: AsyncConnection,
    namespace: str,
    channel: Channel,
    limit: int,
    lease: uuid.UUID,
    now: datetime,
    until: datetime,
) -> list[Claimed]:
    """Takes the corrections that are due, oldest first. A slot with one on its way is left alone."""
    busy = _another("sending")
    due = (
        select(corrections.c.id)
        .where(corrections.c.state == "pending", corrections.c.next_attempt_at <= now, ~busy)
        .where(corrections.c.namespace == namespace, corrections.c.channel == channel)
        .order_by(corrections.c.next_attempt_at, corrections.c.id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    taken = update(corrections).where(corrections.c.id.in_(due.scalar_subquery()))
    taken = taken.values(state="sending", lease_id=lease, lease_until=until, attempts=corrections.c.attempts + 1)
    rows = (await connection.execute(taken.returning(corrections))).all()
    return [_claimed(row) for row in sorted(rows, key=lambda row: (row.address, row.slot))]


def _claimed(row: Any) -> Claimed:
    correction, because = Correction(row.action, row.occurred_at), Because(row.request_id, row.traceparent)
    return Claimed(row.id, row.address, row.address_received, row.slot, correction, row.attempts, because)


async def renew(connection: AsyncConnection, lease: uuid.UUID, until: datetime) -> int:
    """Holds a claim for longer; returns how many corrections are still under it. Waits for nobody: a row that somebody
    has locked is being settled or looked at, and has the next renewal."""
    mine = (corrections.c.lease_id == lease, corrections.c.state == "sending")
    free = select(corrections.c.id).where(*mine).with_for_update(skip_locked=True)
    renewed = update(corrections).where(corrections.c.id.in_(free.scalar_subquery()))
    await connection.execute(renewed.values(lease_until=until))
    return (await connection.execute(select(func.count()).select_from(corrections).where(*mine))).scalar_one()


async def release_expired(connection: AsyncConnection, now: datetime) -> int:
    """Frees the corrections of workers that are gone; they may have reached Kahuna, so they are sent again."""
    return await _release(connection, corrections.c.lease_until < now, "lease-expired", now)


async def release(connection: AsyncConnection, lease: uuid.UUID, now: datetime) -> int:
    """Frees what is still under a lease, because its worker cannot go on; sent again for the same cause."""
    return await _release(connection, corrections.c.lease_id == lease, "worker-stopped", now)


async def settle(
    connection: AsyncConnection, scope: Scope, lease: uuid.UUID, claimed: Sequence[Claimed], settlement: Settlement
) -> int:
    """Writes down what came of corrections still under this lease, then what is owed now; returns how many there were.

    An accepted one is what Kahuna holds from now on. One that must be tried again gives way to a newer pending one.
    """
    await lock(connection, scope.namespace, scope.channel, {c.address for c in claimed})
    mine = update(corrections).where(
        among(corrections.c.id, (c.id for c in claimed)),
        corrections.c.lease_id == lease,
        corrections.c.state == "sending",
    )
    values = _settled(settlement, scope.now)
    ids = set((await connection.execute(mine.values(values).returning(corrections.c.id))).scalars())
    settled = [c for c in claimed if c.id in ids]
    if settlement.state == "sent":
        await _hold(connection, scope, settled)
    await owe(connection, scope, {c.address for c in settled})
    return len(settled)


async def depth(connection: AsyncConnection) -> dict[tuple[str, str], int]:
    """How many corrections wait, are given up, were refused or cannot be said, by namespace and state."""
    rows = await connection.execute(_DEPTH)
    return {(row[0], row[1]): row[2] for row in rows}


async def _at_odds_among(connection: AsyncConnection, scope: Scope, addresses: Collection[str]) -> list[str]:
    await plan_anew(connection, len(addresses))
    values = {"namespace": scope.namespace, "channel": scope.channel, "separator": SEPARATOR}
    joined = SEPARATOR.join(addresses)
    return list((await connection.execute(_AT_ODDS_AMONG, values | {"addresses": joined})).scalars())


async def _rows_by_address(connection: AsyncConnection, scope: Scope, addresses: list[str]) -> Mapping[str, list[Any]]:
    rows: defaultdict[str, list[Any]] = defaultdict(list)
    for row in await connection.execute(select(suppressions).where(*_mine(suppressions, scope, addresses))):
        rows[row.address].append(row)
    return rows


async def _open_by_slot(
    connection: AsyncConnection, scope: Scope, addresses: list[str]
) -> Mapping[tuple[str, str], list[Open]]:
    """The corrections that are not proved, locked, so that no claim moves them meanwhile."""
    columns = corrections.c
    query = select(columns.id, columns.address, columns.slot, columns.action, columns.occurred_at, columns.state)
    # Those that were withdrawn unsent, or are proved, say nothing any more.
    matters = (columns.state != "sent") & ((columns.state != "superseded") | (columns.attempts > 0))
    query = query.add_columns(columns.attempts, columns.created_at, columns.stopped_at)
    query = query.where(*_mine(corrections, scope, addresses), matters)
    found: defaultdict[tuple[str, str], list[Open]] = defaultdict(list)
    for row in await connection.execute(query.order_by(columns.address, columns.slot, columns.id).with_for_update()):
        correction = Correction(row.action, row.occurred_at)
        stopped_at = row.occurred_at if row.stopped_at is None else row.stopped_at
        open_ = Open(row.id, correction, row.state, row.attempts, row.created_at, stopped_at)
        found[row.address, row.slot].append(open_)
    return found


def state_of(scope: Scope, address: str, name: str, rows: list[Any], outbox: list[Open], *, again: bool) -> SlotState:
    """One slot, from the rows of its address in the list and the corrections of the slot that are not proved."""
    causes = {row.reason: _cause(row) for row in rows}
    mine = [row for row in rows if row.reason in {c.reason for c in slots_of(scope.channel, causes)[name]}]
    slot = _slot(mine, outbox)
    needed = owed(scope.channel, causes, name, slot, scope.at, scope.policy)
    pending = next((o for o in outbox if o.state == "pending"), None)
    given_up = tuple(o.id for o in outbox if o.state == "dead")
    refused = needed is not None and _was_refused(needed, mine, outbox, again=again)
    received, stopped_at = _received(address, mine), _stopped_at(needed, mine, slot, outbox)
    return SlotState(address, received, name, causes, slot, needed, pending, given_up, refused, stopped_at)


def _stopped_at(needed: Correction | None, rows: list[Any], slot: Slot, outbox: list[Open]) -> int | None:
    """When the stop happened that is to be told: that of the oldest correction that was to tell it and did not, so that
    saying it again does not give anybody more time. None for an opt-in."""
    if needed is None or needed.action != "suppress":
        return None
    causes = [cause for cause in map(_cause, rows) if (cause.decided or ("clear",))[0] == "suppress"]
    lifted_at = min((cause.clear_at or 0 for cause in causes), default=0)
    settled_at = max(lifted_at, slot.held.stop_at or 0)
    unmet = [o.stopped_at for o in outbox if o.state in _UNMET and o.correction.action == "suppress"]
    return min([needed.occurred_at, *(at for at in unmet if at > settled_at)])


def _slot(rows: list[Any], outbox: list[Open]) -> Slot:
    held = sent = Marks()
    for row in rows:
        held = held.join(Marks(row.held_stop_at, row.held_clear_at))
    for unproved in outbox:
        if unproved.attempts and unproved.state in _UNPROVED:
            sent = sent.join(unproved.correction.marks)
    in_flight = next((o.correction for o in outbox if o.state == "sending"), None)
    return Slot(held, sent, in_flight)


def _received(address: str, rows: list[Any]) -> str:
    """The form in which the deciding fact gave the address: the vendor gets it back like that."""
    decided = [row for row in rows if _cause(row).decided is not None]
    newest = max(decided, key=lambda row: _cause(row).decided[1], default=None)  # type: ignore[index]  # filtered above
    return address if newest is None or newest.address_received is None else newest.address_received


def _was_refused(needed: Correction, rows: list[Any], outbox: list[Open], *, again: bool) -> bool:
    """Whether the same came to nothing, and nothing was learnt since. `dead` ones may be proposed again."""
    final = _FOR_GOOD if again else _FOR_GOOD | {"dead"}
    learnt_at = max((row.recorded_at for row in rows if row.recorded_at is not None), default=None)
    return any(
        o.state in final and o.correction.action == needed.action and (learnt_at is None or o.created_at >= learnt_at)
        for o in outbox
    )


def _is_pending(state: SlotState) -> bool:
    return state.pending is not None and state.pending.correction == state.needed


def _row(scope: Scope, state: SlotState, needed: Correction) -> dict[str, Any]:
    can_say = sayable(scope.channel, needed.action)
    because = scope.because.get(state.address) or Because(REQUEST_ID.get(), TRACE.get())
    return {
        "namespace": scope.namespace,
        "channel": scope.channel,
        "address": state.address,
        "slot": state.name,
        "address_received": state.received,
        "action": needed.action,
        "occurred_at": needed.occurred_at,
        "state": "pending" if can_say else "unsupported",
        "reason": None if can_say else "no-words-for-it",
        "next_attempt_at": scope.now,
        "created_at": scope.now,
        "settled_at": None if can_say else scope.now,
        "stopped_at": state.stopped_at,
        **because._asdict(),
    }


async def _release(connection: AsyncConnection, whose: ColumnElement[bool], reason: str, now: datetime) -> int:
    gone = select(corrections.c.id).where(corrections.c.state == "sending", whose).with_for_update(skip_locked=True)
    freed = update(corrections).where(corrections.c.id.in_(gone.scalar_subquery()))
    return (await connection.execute(freed.values(_retried(now, now) | {"reason": reason}))).rowcount


async def _hold(connection: AsyncConnection, scope: Scope, accepted: Sequence[Claimed]) -> None:
    """Notes what Kahuna holds now, in the home row of each slot."""
    if not accepted:
        return
    home = update(suppressions).where(
        suppressions.c.namespace == scope.namespace,
        suppressions.c.channel == scope.channel,
        suppressions.c.address == bindparam("in_address"),
        suppressions.c.reason == bindparam("in_slot"),
    )
    held = home.values(
        held_stop_at=func.greatest(
            suppressions.c.held_stop_at, bindparam("stop", type_=corrections.c.occurred_at.type)
        ),
        held_clear_at=func.greatest(
            suppressions.c.held_clear_at, bindparam("clear", type_=corrections.c.occurred_at.type)
        ),
    )
    marks = [(c, c.correction.marks) for c in accepted]
    rows = [{"in_address": c.address, "in_slot": c.slot, "stop": m.stop_at, "clear": m.clear_at} for c, m in marks]
    await connection.execute(held, rows)


def _settled(settlement: Settlement, now: datetime) -> dict[str, Any]:
    if settlement.state == "pending":
        again_at = now + timedelta(seconds=settlement.delay)
        return _retried(now, again_at) | {"reason": settlement.reason, "evidence": settlement.evidence}
    return {
        "state": settlement.state,
        "reason": settlement.reason,
        "evidence": settlement.evidence,
        "settled_at": now,
        "lease_id": None,
        "lease_until": None,
    }


def _retried(now: datetime, again_at: datetime) -> dict[str, Any]:
    """Back to pending, or out of the way of a newer pending one."""
    newer = _another("pending")
    moment = bindparam(None, now, type_=DateTime(timezone=True))
    return {
        "state": case((newer, "superseded"), else_="pending"),
        "settled_at": case((newer, moment)),
        "next_attempt_at": again_at,
        "lease_id": None,
        "lease_until": None,
    }


def _another(state: str) -> Exists:
    """Whether the slot of a correction has another one in this state: asked slot by slot, whatever is known of the
    table. Those of a state are few one moment and thousands the next. Taken for few, each correction that is due would
    be compared with every one of them: so no index of that state may serve, and nothing may be joined."""
    other = corrections.alias()
    slot = ("address", "channel", "namespace", "slot")
    of_slot: Select[Any] = select(literal_column("1")).where(*(other.c[name] == corrections.c[name] for name in slot))
    return of_slot.where(other.c.state + "" == state).offset(0).exists()


def _mine(table: Any, scope: Scope, addresses: Iterable[str]) -> tuple[Any, ...]:
    return (
        table.c.namespace == scope.namespace,
        table.c.channel == scope.channel,
        among(table.c.address, addresses),
    )


def _cause(row: Any) -> Cause:
    return Cause(row.reason, row.stop_at, row.clear_at, tuple(row.bounces or ()))
