"""Owns the list of imports, and what an import asks of the database about very many stops at once: which are known, and
what they make us owe.

What is owed is decided by `domain.corrections`; here stands the one case of it that a list of new addresses is full of,
in SQL, and a property test holds the two against each other. The rest is left to `store.outbox`.
"""

import uuid
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

from sqlalchemy import DateTime, TextClause, bindparam, func, insert, literal, select, text, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from service.domain.addresses import Channel
from service.store.database import SEPARATOR, aside, plan_anew
from service.store.merging import HOME
from service.store.outbox import Scope
from service.store.suppressions import Entry
from service.store.tables import batches
from service.store.tables_of_undo import imports

_TURN: Final = text(
    """
    insert into leases (name, fence, ends_at) values (:name, 1, :now)
    on conflict (name) do update set ends_at = excluded.ends_at
    """
).bindparams(bindparam("now", type_=DateTime(True)))

# The first 48 bits of a batch's id are its receipt in milliseconds, also once its month of the archive is gone. A
# subquery that counts is asked for one key after another; a join might read the whole table for each chunk.
_SAID_BEFORE: Final = text(
    """
    select place
    from unnest(string_to_array(:address, :separator), string_to_array(:reason, ','),
                string_to_array(:place, ',')::int[])
         as given(address, reason, place)
    where (
        select count(*) from facts as f
        where f.address = given.address and f.channel = :channel and f.namespace = :namespace
          and f.reason = given.reason and f.action = 'suppress' and f.source = 'local' and f.origin = 'import'
          and f.occurred_at = ('x' || left(replace(f.batch_id::text, '-', ''), 12))::bit(48)::bigint / 1000
    ) > 0
    """
)


def _told_by(source: str, found: str) -> TextClause:
    """Which of the given stops that side told at that very time, or did not."""
    return text(
        f"""
        select place
        from unnest(string_to_array(:address, :separator), string_to_array(:reason, ','),
                    string_to_array(:occurred_at, ',')::bigint[], string_to_array(:place, ',')::int[])
             as given(address, reason, occurred_at, place)
        where (
            select count(*) from facts as f
            where f.address = given.address and f.channel = :channel and f.namespace = :namespace
              and f.reason = given.reason and f.action = 'suppress' and f.occurred_at = given.occurred_at
              and f.source = '{source}'
        ) {found}
        """  # noqa: S608 (our own words)
    )


_UNKNOWN: Final = _told_by("local", "= 0")

_KNOWN_OF_KAHUNA: Final = _told_by("kahuna", "> 0")

# Of an address without a correction, of whose slots Kahuna never told or took anything, a stop in force is owed as it
# is, and nothing else is. Soft bounces are left out: whether they are in force takes more than a comparison.
_FIRST_STOPS: Final = text(
    f"""
    with given as materialized (
        select distinct address from unnest(string_to_array(:addresses, :separator)) as address
    ),
    unheard as materialized (
        select address from given
        where (select count(*) from corrections as c where c.address = given.address and c.channel = :channel
                                                       and c.namespace = :namespace) = 0
          and (select count(*) from suppressions as s
               where s.address = given.address and s.channel = :channel and s.namespace = :namespace
                 and (s.held_stop_at is not null or s.held_clear_at is not null or s.reason = 'soft_bounce')) = 0
    ),
    causes as (
        select unheard.address, {HOME} as slot, stop_at, clear_at, address_received,
               stop_at >= coalesce(clear_at, stop_at)
               and (reason <> 'hard_bounce' or cast(:lifetime as bigint) is null or :at < stop_at + :lifetime) as active
        from unheard cross join lateral (
            select s.reason, s.stop_at, s.clear_at, s.address_received from suppressions as s
            where s.address = unheard.address and s.channel = :channel and s.namespace = :namespace
        ) as cause
        where coalesce(stop_at, clear_at) is not null
    ),
    due as (
        select address, slot, max(stop_at) filter (where active) as stop_at,
               (array_agg(address_received order by greatest(stop_at, clear_at) desc))[1] as address_received
        from causes group by address, slot having bool_or(active)
    ),
    written as (
        insert into corrections (address, channel, namespace, slot, address_received, action, occurred_at, state,
                                 next_attempt_at, created_at)
        select address, :channel, :namespace, slot, coalesce(address_received, address), 'suppress', stop_at, 'pending',
               :now, :now
        from due order by address, slot
    )
    select address from given except select address from unheard
    """  # noqa: S608 (built from our own words alone)
).bindparams(bindparam("now", type_=DateTime(True)))


class Begun(NamedTuple):
    """An import as it was asked for. `as_of` is in Unix seconds."""

    id: uuid.UUID
    namespace: str
    channel: Channel
    actor: str
    file_name: str | None
    reason: str | None
    as_of: int | None
    begun_at: datetime


class Extent(NamedTuple):
    """What the archive has of an import: its chunks, and when the last of them was stored."""

    chunks: int
    last_at: datetime | None


async def begin(connection: AsyncConnection, begun: Begun) -> None:
    """Writes down that an import has begun."""
    await connection.execute(insert(imports).values(begun._asdict() | {"state": "running", "counts": {}}))


async def end(
    connection: AsyncConnection, import_id: uuid.UUID, state: str, counts: dict[str, int], now: datetime
) -> None:
    """Writes down how it ended: `finished` or `cut_off`."""
    ended = update(imports).where(imports.c.id == import_id)
    await connection.execute(ended.values(state=state, counts=counts, ended_at=now))


async def one(connection: AsyncConnection, import_id: uuid.UUID) -> Any | None:
    """One import."""
    return (await connection.execute(select(imports).where(imports.c.id == import_id))).first()


async def newest(
    connection: AsyncConnection, namespace: str, before: tuple[datetime, uuid.UUID] | None, limit: int
) -> Sequence[Any]:
    """The newest imports of a namespace; `before` is where an earlier page ended."""
    query = select(imports).where(imports.c.namespace == namespace)
    if before is not None:
        query = query.where(tuple_(imports.c.begun_at, imports.c.id) < tuple_(*map(literal, before)))
    return (await connection.execute(query.order_by(imports.c.begun_at.desc(), imports.c.id.desc()).limit(limit))).all()


async def chunks_of(connection: AsyncConnection, namespace: str, import_id: uuid.UUID) -> Extent:
    """What the archive has of an import: its chunks have ids of the millisecond of its own, and name it."""
    moment = import_id.int >> 80
    low, high = uuid.UUID(int=moment << 80), uuid.UUID(int=(moment + 1) << 80)
    table = batches.c
    query = select(func.count(), func.max(table.applied_at)).where(table.id >= low, table.id < high)
    named = table.headers["import-id"].astext == str(import_id)
    return Extent(*(await connection.execute(query.where(table.namespace == namespace, named))).one())


async def take_turn(connection: AsyncConnection, namespace: str, channel: Channel, now: datetime) -> None:
    """Waits until no other import writes lines without a time here: each must see what the others have said."""
    await connection.execute(_TURN, {"name": f"import/{namespace}/{channel}", "now": now})


async def said_before(
    connection: AsyncConnection, namespace: str, channel: Channel, untimed: Sequence[Entry]
) -> frozenset[int]:
    """Those of these stops without a time, by their index, that an earlier import has said, without one either."""
    return frozenset(await _places(connection, _SAID_BEFORE, namespace, channel, untimed))


async def unknown(
    connection: AsyncConnection, namespace: str, channel: Channel, stops: Sequence[Entry]
) -> frozenset[int]:
    """Those of these stops of our own, by their index, that are no facts yet."""
    return frozenset(await _places(connection, _UNKNOWN, namespace, channel, stops))


async def known_of_kahuna(
    connection: AsyncConnection, namespace: str, channel: Channel, stops: Sequence[Entry]
) -> frozenset[int]:
    """Those of these stops, by their index, that are facts already because Kahuna said so."""
    return frozenset(await _places(connection, _KNOWN_OF_KAHUNA, namespace, channel, stops))


async def owe_first_stops(connection: AsyncConnection, scope: Scope, addresses: Collection[str]) -> list[str]:
    """Writes the corrections of addresses of which Kahuna knows nothing, their stops applied in this transaction;
    returns the other addresses, for `outbox.owe`."""
    await plan_anew(connection, len(addresses))
    values = {
        "namespace": scope.namespace,
        "channel": scope.channel,
        "now": scope.now,
        "at": scope.at,
        "lifetime": scope.policy.hard_bounce_lifetime,
        "addresses": SEPARATOR.join(addresses),
        "separator": SEPARATOR,
    }
    return list((await connection.execute(_FIRST_STOPS, values)).scalars())


async def _places(
    connection: AsyncConnection, query: TextClause, namespace: str, channel: Channel, stops: Sequence[Entry]
) -> list[int]:
    if not stops:
        return []
    await plan_anew(connection, len(stops))
    shared = {"namespace": namespace, "channel": channel, "separator": SEPARATOR}
    columns = await aside(len(stops), _columns, stops)
    return list((await connection.execute(query, shared | columns)).scalars())


def _columns(stops: Sequence[Entry]) -> dict[str, str]:
    return {
        "address": SEPARATOR.join(e.address for e in stops),
        "reason": ",".join(e.reason for e in stops),
        "occurred_at": ",".join(str(e.occurred_at) for e in stops),
        "place": ",".join(str(e.entry_index) for e in stops),
    }
