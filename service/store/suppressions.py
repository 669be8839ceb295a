"""Owns the list: stores facts and merges them into causes, locks what is to be judged, and tells what is held of whom.
Refuses to judge: `domain.suppression` does. How it merges stands in `merging`.
"""

import uuid
from collections.abc import AsyncIterator, Iterable, Sequence
from datetime import datetime
from itertools import chain, groupby, islice
from operator import attrgetter, eq
from typing import Any, Final, NamedTuple

from sqlalchemy import DateTime, TextClause, Uuid, bindparam, func, select, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncConnection

from service.domain.addresses import CHANNELS, Channel
from service.domain.corrections import Marks
from service.domain.facts import Action, Fact, Origin, Source, home_of, reasons_of
from service.domain.suppression import Cause, Policy
from service.store.database import SEPARATOR, among, aside, fetch, note_fed, pages, plan_anew
from service.store.faults import Overtaken, is_conflict
from service.store.merging import AT_ODDS, CROSSED, ENTRIES, merge
from service.store.tables import facts, suppressions

_AWAY_FROM_HOME: Final = frozenset(
    reason for channel in CHANNELS for reason in reasons_of(channel) if home_of(channel, reason) != reason
)


class Entry(NamedTuple):
    """One fact to store, without what all facts of its group share. `entry_index` is its place in its batch, and
    `batch` the place of that batch among those of the group.

    `awaits` marks an opt-in that waits for review: what it says of the vendor's side is noted, the fact is not made.
    """

    address: str
    received: str
    reason: str
    action: Action
    occurred_at: int
    entry_index: int | None = None
    awaits: bool = False
    batch: int = 0


# What locks go by, and what decides between two that say the same; the rest of a key is the same for all of a group.
_KEY: Final = attrgetter("address", "reason", "action", "occurred_at", "batch")
_ADDRESS: Final = attrgetter("address")


class Provenance(NamedTuple):
    """What the facts of one group share: who says so, by which evidence (batches, or else one audit row), applied
    when."""

    namespace: str
    channel: Channel
    source: Source
    origin: Origin
    recorded_at: datetime
    batches: tuple[uuid.UUID, ...] = ()
    audit_id: uuid.UUID | None = None


class CauseRow(NamedTuple):
    """A cause and where its deciding fact came from."""

    cause: Cause
    recorded_at: datetime | None
    origin: str | None
    batch_id: uuid.UUID | None


class FactRow(NamedTuple):
    """A stored fact and where it came from."""

    fact: Fact
    recorded_at: datetime
    origin: str
    batch_id: uuid.UUID | None


RUN: Final = 10_000
"""Entries that are sorted in one go."""

MANY: Final = 5000
"""Rows that are read at once where all are read."""


def _apply_with(parts: str) -> TextClause:
    statement = f"""
        with entry as materialized (
            select address, received, reason, action, occurred_at, index, awaits, place,
                   (cast(:batches as uuid[]))[batch] as batch_id
            from ({ENTRIES}) as given
        ),
        {parts}
        select batch_id, count(*) as facts, null as at_odds from fresh group by batch_id
        union all
        select null, 0, string_agg(address, :separator) from {AT_ODDS} having count(*) > 0
        union all
        select null, null, null where {CROSSED}
        """  # noqa: S608 (built from our own words alone)
    return text(statement).bindparams(
        bindparam("batches", type_=ARRAY(Uuid)),
        bindparam("audit_id", type_=Uuid),
        bindparam("recorded_at", type_=DateTime(True)),
    )


_APPLY: Final = {
    (locked, once): _apply_with(merge(once=once, locked=locked)) for locked in (False, True) for once in (False, True)
}


class Merged(NamedTuple):
    """What came of the entries of a group: how many facts were new, by batch (None for those of an audit row), and the
    addresses about which something may be owed now."""

    new: dict[uuid.UUID | None, int]
    at_odds: set[str]


class Subject(NamedTuple):
    """Whom a question is about: the key of the list without the reason."""

    namespace: str
    channel: Channel
    address: str


# The hot question, for many at once. By key whatever the planner knows of the list: one index range for each.
_CAUSES: Final = """
    select place, reason, stop_at, clear_at, bounces, recorded_at, origin, batch_id
    from unnest(string_to_array($1::text, $4::text), string_to_array($2::text, $4::text),
                string_to_array($3::text, $4::text)) with ordinality as given(namespace, channel, address, place)
    cross join lateral (
        select s.reason, s.stop_at, s.clear_at, s.bounces, s.recorded_at, s.origin, s.batch_id
        from suppressions as s
        where s.address = given.address and s.channel = given.channel and s.namespace = given.namespace
          and coalesce(s.stop_at, s.clear_at) is not null
    ) as held
"""

_UNKNOWN: Final = text(
    """
    select exists (
        select from unnest(string_to_array(:namespace, :separator), string_to_array(:channel, :separator),
                           string_to_array(:address, :separator), string_to_array(:reason, :separator),
                           string_to_array(:action, :separator), string_to_array(:occurred_at, :separator)::bigint[],
                           string_to_array(:source, :separator))
             as given(namespace, channel, address, reason, action, occurred_at, source)
        where not exists (
            select from facts as f
            where f.address = given.address and f.channel = given.channel and f.namespace = given.namespace
              and f.reason = given.reason and f.action = given.action and f.occurred_at = given.occurred_at
              and f.source = given.source
        )
    )
    """
)


async def apply(
    connection: AsyncConnection,
    entries: Sequence[Entry],
    provenance: Provenance,
    policy: Policy,
    *,
    locked: bool = False,
) -> Merged:
    """Stores the facts that are new, merges them, feeds the changes. One statement. `locked`: this transaction has
    locked every row of these addresses. Overtaken if somebody made one of these rows meanwhile."""
    if not entries:
        return Merged({}, set())
    await plan_anew(connection, len(entries))
    once, columns = await aside(len(entries), lambda: (say_once(entries), columns_of(entries)))
    values = columns | provenance._asdict() | {"separator": SEPARATOR, "kept": policy.soft_bounces_kept}
    rows = (await connection.execute(_APPLY[locked, once], values)).all()
    if any(row.facts is None for row in rows):
        raise Overtaken
    note_fed(connection)
    new = {row.batch_id: row.facts for row in rows if row.at_odds is None}
    told = [row.at_odds for row in rows if row.at_odds is not None]
    return Merged(new, await aside(len(entries), lambda: {a for some in told for a in some.split(SEPARATOR)}))


def say_once(entries: Sequence[Entry]) -> bool:
    """Whether each of these says one thing of its own: no two are of one cause, none waits, and none is of a slot whose
    home is elsewhere."""
    if any(e.awaits or e.reason in _AWAY_FROM_HOME for e in entries):
        return False
    return len({(e.address, e.reason) for e in entries}) == len(entries)


def columns_of(entries: Sequence[Entry]) -> dict[str, str]:
    """These entries as the columns of `ENTRIES`, in the order of their keys, which is that of all locks. The place of a
    batch counts from 1 there."""
    entries = in_order(entries)
    odd = any(e.received != e.address for e in entries)
    return {
        "address": SEPARATOR.join([e.address for e in entries]),
        "received": SEPARATOR.join([e.received for e in entries]) if odd else "",
        "reason": _joined([e.reason for e in entries]),
        "action": _joined([e.action for e in entries]),
        "occurred_at": _joined([e.occurred_at for e in entries]),
        "index": ",".join(["" if e.entry_index is None else str(e.entry_index) for e in entries]),
        "awaits": ",".join(["t" if e.awaits else "f" for e in entries]) if any(e.awaits for e in entries) else "",
        "batch": _joined([e.batch + 1 for e in entries]),
    }


def in_order(entries: Sequence[Entry]) -> list[Entry]:
    """By their keys. Of many, most have an address of their own, which decides alone in a third of the time."""
    if len(entries) <= RUN:
        return sorted(entries, key=_KEY)
    ordered: list[Entry] = _in_runs(entries, _ADDRESS)
    addresses = [entry.address for entry in ordered]
    if not any(map(eq, addresses, islice(addresses, 1, None))):
        return ordered
    return [entry for _, same in groupby(ordered, key=_ADDRESS) for entry in sorted(same, key=_KEY)]


def _in_runs(values: Sequence[Any], key: Any = None) -> list[Any]:
    """Sorted. During a sort no other thread has its turn, so that it goes in runs, which merge in no time."""
    runs = [sorted(values[start : start + RUN], key=key) for start in range(0, len(values), RUN)]
    return sorted(chain.from_iterable(runs), key=key)


def _joined(values: Sequence[str | int]) -> str:
    """These values; once, if they are all the same."""
    if values and values.count(values[0]) == len(values):
        return str(values[0])
    return ",".join(map(str, values))


async def lock(
    connection: AsyncConnection, namespace: str, channel: Channel, addresses: Iterable[str], *, first: bool = True
) -> None:
    """Locks every row of these addresses, in the order of the keys. Where this is not the `first` that a transaction
    does about them, it holds all that there were: a row that turned up since is not waited for, but Overtaken."""
    given = list(addresses)
    await plan_anew(connection, len(given))
    table = suppressions.c
    mine = (among(table.address, given), table.channel == channel, table.namespace == namespace)
    query = select(table.reason).where(*mine).order_by(table.address, table.reason)
    # One row comes back, not all: to read those would hold the event loop up.
    locking = select(func.count()).select_from(query.with_for_update(nowait=not first).subquery())
    try:
        await connection.execute(locking)
    except Exception as error:
        if first or not is_conflict(error):
            raise
        raise Overtaken from error


async def causes_of(connection: AsyncConnection, namespace: str, channel: Channel, address: str) -> list[CauseRow]:
    """Every cause of one address, whether in force or not."""
    [causes] = await causes_of_each(connection, [Subject(namespace, channel, address)])
    return causes


async def causes_of_each(connection: AsyncConnection, subjects: Sequence[Subject]) -> list[list[CauseRow]]:
    """The causes of many, in their order."""
    found: list[list[CauseRow]] = [[] for _ in subjects]
    given = [SEPARATOR.join(values) for values in zip(*subjects, strict=True)]
    rows = await fetch(connection, _CAUSES, *given, SEPARATOR)
    for place, reason, stop_at, clear_at, bounces, recorded_at, origin, batch_id in rows:
        cause = Cause(reason, stop_at, clear_at, tuple(bounces) if bounces else ())
        found[place - 1].append(CauseRow(cause, recorded_at, origin, batch_id))
    return found


async def facts_of(connection: AsyncConnection, namespace: str, channel: Channel, address: str) -> list[FactRow]:
    """Every fact about one address, oldest first."""
    query = select(facts).where(facts.c.address == address, facts.c.channel == channel)
    rows = await connection.execute(query.where(facts.c.namespace == namespace).order_by(facts.c.occurred_at))
    return [
        FactRow(
            Fact(r.namespace, r.channel, r.address, r.reason, r.action, r.occurred_at, r.source),
            r.recorded_at,
            r.origin,
            r.batch_id,
        )
        for r in rows
    ]


async def opt_ins_told(
    connection: AsyncConnection, namespace: str, channel: Channel, addresses: Iterable[str]
) -> set[tuple[str, int]]:
    """Every opt-in of these addresses that Kahuna told us and that is a fact, each with its time."""
    query = select(facts.c.address, facts.c.occurred_at).where(
        among(facts.c.address, addresses),
        facts.c.channel == channel,
        facts.c.namespace == namespace,
        facts.c.action == "clear",
        facts.c.source == "kahuna",
    )
    return {(row.address, row.occurred_at) for row in await connection.execute(query)}


async def any_unknown(connection: AsyncConnection, given: Sequence[Fact]) -> bool:
    """Whether one of these is not among the facts."""
    for start in range(0, len(given), MANY):
        part = given[start : start + MANY]
        await plan_anew(connection, len(part))
        by_column = zip(Fact._fields, zip(*part, strict=True), strict=True)
        columns = {name: SEPARATOR.join(map(str, values)) for name, values in by_column}
        if (await connection.execute(_UNKNOWN, columns | {"separator": SEPARATOR})).scalar_one():
            return True
    return False


async def every_fact(connection: AsyncConnection) -> AsyncIterator[list[tuple[Fact, uuid.UUID | None]]]:
    """Every fact there is and the batch that it came in, many at a time: needs a transaction."""
    query = select(*(facts.c[name] for name in Fact._fields), facts.c.batch_id)
    async for page in pages(connection, query, MANY):
        yield [(Fact._make(row[:-1]), row.batch_id) for row in page]


async def every_cause(connection: AsyncConnection) -> AsyncIterator[list[tuple[str, Channel, str, Cause]]]:
    """Every cause there is, by namespace, channel and address, many at a time: needs a transaction."""
    table = suppressions.c
    query = select(table.namespace, table.channel, table.address)
    query = query.add_columns(table.reason, table.stop_at, table.clear_at, table.bounces)
    decided = func.coalesce(table.stop_at, table.clear_at).is_not(None)
    async for page in pages(connection, query.where(decided), MANY):
        yield [(r.namespace, r.channel, r.address, cause_from(r)) for r in page]


async def local_stops(
    connection: AsyncConnection, namespace: str, channel: Channel, addresses: Iterable[str]
) -> dict[str, Marks]:
    """The addresses of which we have said a stop that an opt-in may end, each with its latest, and the latest clear."""
    given = list(addresses)
    if not given:
        return {}
    table = suppressions.c
    query = select(table.address, table.local_stop_at, table.clear_at).where(
        among(table.address, given),
        table.channel == channel,
        table.namespace == namespace,
        table.reason == "do_not_call",
        table.local_stop_at.is_not(None),
    )
    return {row.address: Marks(row.local_stop_at, row.clear_at) for row in await connection.execute(query)}


def cause_from(row: Any) -> Cause:
    """The cause of a row of the list."""
    return Cause(row.reason, row.stop_at, row.clear_at, tuple(row.bounces or ()))
