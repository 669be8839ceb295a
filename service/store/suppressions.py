"""Owns the list: stores facts and merges them into causes, in SQL, by the rules of `domain.suppression`.

The merge stands twice, here for many rows at once and in the domain for one address; a property test holds the two
against each other. Locks are taken in one order: causes that are there, facts, causes that are new.
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

HOME: Final = """case when :channel = 'sms' then 'do_not_call'
              when reason = 'manual' then 'unsubscribe' else reason end"""
"""`domain.facts.home_of` in SQL."""

_MERGED_HOME: Final = HOME.replace("reason", "merged.reason")

# Bulk columns travel as joined text: binding 100,000 values apart stalls the event loop. A column of one value travels
# as that value, which `unnest` fills up with nulls.
ENTRIES: Final = """
    select address, coalesce(received, address) as received,
           coalesce(reason, split_part(:reason, ',', 1)) as reason,
           coalesce(action, split_part(:action, ',', 1)) as action,
           coalesce(occurred_at, nullif(split_part(:occurred_at, ',', 1), '')::bigint) as occurred_at, index,
           coalesce(awaits, false) as awaits,
           coalesce(batch, nullif(split_part(:batch, ',', 1), '')::int) as batch, place
    from unnest(string_to_array(:address, :separator), string_to_array(:received, :separator),
                string_to_array(:reason, ','), string_to_array(:action, ','),
                string_to_array(:occurred_at, ',')::bigint[], string_to_array(:index, ',', '')::int[],
                string_to_array(:awaits, ',')::bool[], string_to_array(:batch, ',')::int[])
         with ordinality as given(address, received, reason, action, occurred_at, index, awaits, batch, place)
"""
"""The entries of a group as rows, in the order of the keys: from the columns of `columns_of`."""


def _kept(times: str, clear_at: str) -> str:
    """The newest distinct bounce times since the latest clear, ascending: `domain.suppression.merge` in SQL."""
    return f"""case when {times} is not null then (select array_agg(at order by at) from (
        select distinct at from unnest({times}) as bounce(at)
        where at >= coalesce({clear_at}, at) order by at desc limit :kept) as newest) end"""  # noqa: S608 (our own words)


PARTITION: Final = "(hashtextextended(address, 8816678312871386365) & 7)"
"""The partition of the facts that an address belongs to: a number of eight, though not the one in its name. The server
hashes with this seed, and counts from elsewhere."""

# Every row of these addresses, in the order of the keys, also where the facts turn out to be known: what is owed is
# judged after this, and nobody may change it meanwhile.
_LOCKED: Final = """
    locked as materialized (
        select given.address, held.reason from (select address from entry order by place) as given
        cross join lateral (
            select s.reason from suppressions as s
            where s.address = given.address and s.channel = :channel and s.namespace = :namespace
            order by s.reason for update {patience}
        ) as held
    ),
"""

# Then the facts, partition by partition, as `COPY` cannot but store them.
_STORED: Final = f"""
    fresh as (
        insert into facts (address, channel, namespace, reason, action, occurred_at, source, origin,
                           address_received, batch_id, entry_index, audit_id, recorded_at)
        select address, :channel, :namespace, reason, action, occurred_at, :source, :origin,
               nullif(received, address), batch_id, index, :audit_id, :recorded_at
        from entry where not awaits and (select count(*) from locked) >= 0
        order by {PARTITION}, place
        on conflict do nothing
        returning address, reason, action, occurred_at, address_received, batch_id
    ),
"""  # noqa: S608 (built from our own words alone)

_TOUCHED: Final = f"""
    stated as (
        select address, reason, action, occurred_at, address_received, batch_id, false as awaits from fresh
        union all
        select address, reason, action, occurred_at, nullif(received, address), batch_id, true from entry where awaits
    ),
    merged as (
        select address, reason,
               max(occurred_at) filter (where action = 'suppress' and not awaits) as stop_at,
               max(occurred_at) filter (where action = 'clear' and not awaits) as clear_at,
               array_agg(occurred_at) filter (where action = 'suppress' and reason = 'soft_bounce') as bounces,
               max(occurred_at) filter (where action = 'suppress' and :source = 'local') as local_stop_at,
               max(occurred_at) filter (where action = 'suppress' and :source = 'kahuna') as held_stop_at,
               max(occurred_at) filter (where action = 'clear' and :source = 'kahuna') as held_clear_at,
               (array_agg(address_received order by occurred_at desc, action desc))[1] as address_received,
               (array_agg(batch_id order by occurred_at desc, action desc) filter (where not awaits))[1] as batch_id
        from stated group by address, reason
    ),
    touched as (
        select address, reason, stop_at, clear_at, {_kept("bounces", "clear_at")} as bounces, local_stop_at,
               held_stop_at, held_clear_at, address_received, batch_id
        from merged
        union all
        -- The row of the slot's home, without news: whoever changes a slot locks it, so that none misses another.
        select distinct address, {HOME}, null::bigint, null::bigint, null::bigint[], null::bigint,
               null::bigint, null::bigint, null, null::uuid
        from merged where reason <> {HOME}
          and not exists (select from merged as m where m.address = merged.address and m.reason = {_MERGED_HOME})
    ),
"""  # noqa: S608 (built from our own words alone)

# The same where there is nothing to merge within the group: each fact is a cause of its own.
_TOUCHED_ONCE: Final = """
    touched as (
        select address, reason, case when action = 'suppress' then occurred_at end as stop_at,
               case when action = 'clear' then occurred_at end as clear_at,
               case when action = 'suppress' and reason = 'soft_bounce' then array[occurred_at] end as bounces,
               case when action = 'suppress' and :source = 'local' then occurred_at end as local_stop_at,
               case when action = 'suppress' and :source = 'kahuna' then occurred_at end as held_stop_at,
               case when action = 'clear' and :source = 'kahuna' then occurred_at end as held_clear_at,
               address_received, batch_id
        from fresh
    ),
"""

_COLUMNS: Final = """(address, channel, namespace, reason, stop_at, clear_at, bounces, local_stop_at, held_stop_at,
                     held_clear_at, address_received, origin, batch_id, recorded_at)
        select address, :channel, :namespace, reason, stop_at, clear_at, bounces, local_stop_at,
               held_stop_at, held_clear_at, address_received,
               case when coalesce(stop_at, clear_at) is not null then :origin end,
               batch_id,
               case when coalesce(stop_at, clear_at) is not null then :recorded_at end"""

_AT_ODDS: Final = "stop_at is distinct from held_stop_at or held_clear_at is not null or clear_at is not null"

# Last the causes: new rows, in the order of the keys, then those of rows that are locked by now. A row that turned up
# since the first were locked may be locked by somebody who waits for our facts: it is not waited for. It would be if it
# were changed already, whatever is to be done on a conflict: so nobody changes a row and waits for anything after that.
# The planner takes arrays for short and looks rows up in a hash, however many there are and however little memory.
_CHANGED: Final = f"""
    shown as materialized (
        select touched.*, (address, reason) in (
            select * from unnest(array(select address from locked), array(select reason from locked))
        ) as held from touched
    ),
    made as (
        insert into suppressions {_COLUMNS}
        from shown where not held order by address, reason
        on conflict do nothing
        returning address, {_AT_ODDS} as at_odds
    ),
    updated as (
        insert into suppressions as s {_COLUMNS}
        from shown where held and (select count(*) from made) >= 0
        on conflict (address, channel, namespace, reason) do update set
            stop_at = greatest(s.stop_at, excluded.stop_at),
            clear_at = greatest(s.clear_at, excluded.clear_at),
            bounces = {_kept("s.bounces || excluded.bounces", "greatest(s.clear_at, excluded.clear_at)")},
            local_stop_at = greatest(s.local_stop_at, excluded.local_stop_at),
            held_stop_at = greatest(s.held_stop_at, excluded.held_stop_at),
            held_clear_at = greatest(s.held_clear_at, excluded.held_clear_at),
            (address_received, origin, batch_id, recorded_at) = (
                select case when wins then excluded.address_received else s.address_received end,
                       case when wins then excluded.origin else s.origin end,
                       case when wins then excluded.batch_id else s.batch_id end,
                       case when wins then excluded.recorded_at else s.recorded_at end
                from (select coalesce(greatest(excluded.stop_at, excluded.clear_at), -1)
                             > coalesce(greatest(s.stop_at, s.clear_at), -1)
                          or (excluded.stop_at = s.clear_at and excluded.stop_at >= coalesce(excluded.clear_at, 0)
                              and s.clear_at > coalesce(s.stop_at, -1)) as wins) as duel)
        where greatest(s.stop_at, excluded.stop_at) is distinct from s.stop_at
           or greatest(s.clear_at, excluded.clear_at) is distinct from s.clear_at
           or greatest(s.local_stop_at, excluded.local_stop_at) is distinct from s.local_stop_at
           or greatest(s.held_stop_at, excluded.held_stop_at) is distinct from s.held_stop_at
           or greatest(s.held_clear_at, excluded.held_clear_at) is distinct from s.held_clear_at
           or excluded.bounces is not null
        returning address, {_AT_ODDS} as at_odds
    ),
    changed as (
        select address, at_odds, false as met from made union all select address, at_odds, true from updated
    ),
    -- An address of two reasons is fed twice: nobody minds, and to find those out costs more than all of them.
    fed as (
        insert into changes (namespace, channel, address, recorded_at)
        select :namespace, :channel, address, cast(:recorded_at as timestamptz) from changed
    )
"""  # noqa: S608 (built from our own words alone)

CROSSED: Final = "(select count(*) from shown where not held) > (select count(*) from made)"
"""Whether a row that was to be made turned up meanwhile: nothing of this may be committed."""


def _merge(touched: str, patience: str = "") -> str:
    return _LOCKED.format(patience=patience) + _STORED + touched + _CHANGED


MERGE: Final = _merge(_TOUCHED)
MERGE_ONCE: Final = _merge(_TOUCHED_ONCE)
"""From the rows `entry` to facts that are `fresh`, causes that are `changed` and what is fed of them, as further parts
of one statement: for any entries, and for those that `say_once`. What may be owed now is among the `AT_ODDS`; what is
`CROSSED` must be undone.

No two wait for each other, since everybody takes locks in one order, and each kind in the order of keys: rows that are
there, facts, new rows."""

AT_ODDS: Final = "changed where at_odds or met or :source = 'local'"
"""A slot that the two sides may see differently now, or about which there was more to know than what was said. Where
Kahuna holds an opt-in, the domain decides: at the second of a stop, it proves nothing."""


def _apply_with(merge: str) -> TextClause:
    statement = f"""
        with entry as materialized (
            select address, received, reason, action, occurred_at, index, awaits, place,
                   (cast(:batches as uuid[]))[batch] as batch_id
            from ({ENTRIES}) as given
        ),
        {merge}
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


# By whether the rows are locked already, and whether the entries say one thing each. Whoever has locked them holds more
# than what may be waited for here; one that turned up since is left to the next attempt.
_APPLY: Final = {
    (locked, once): _apply_with(_merge(touched, "skip locked" if locked else ""))
    for locked in (False, True)
    for once, touched in ((False, _TOUCHED), (True, _TOUCHED_ONCE))
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
