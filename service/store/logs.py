"""Owns what a log page asks of the facts: which of its stops a callback told of, and which are news; and the soft
bounces that a log told of before a callback did, until one is sure to count once.

Locks are taken as everywhere: batches, then causes in the order of their keys.
"""

import uuid
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

from sqlalchemy import DateTime, TextClause, Uuid, bindparam, delete, text
from sqlalchemy.ext.asyncio import AsyncConnection

from service.domain.facts import SAME_EVENT
from service.domain.suppression import Policy
from service.store.database import SEPARATOR, note_fed, plan_anew
from service.store.suppressions import Entry
from service.store.tables import log_bounces

ANY_TIME: Final = (0, 1 << 62)
"""Within which an untimed record says what is known already: nobody knows when it happened, and it is no news twice."""


class Stop(NamedTuple):
    """A stop of a log page. Callbacks from `low` to `high` (Unix seconds) tell of the same event."""

    entry: Entry
    low: int
    high: int

    @classmethod
    def of(cls, entry: Entry, *, timed: bool) -> "Stop":
        """A stop and the callbacks that would be the same event."""
        at = entry.occurred_at
        return cls(entry, at - SAME_EVENT, at + SAME_EVENT) if timed else cls(entry, *ANY_TIME)


class Bounce(NamedTuple):
    """A soft bounce that is a fact because a log told of it: which entry of which batch."""

    address: str
    occurred_at: int
    batch_id: uuid.UUID
    entry_index: int


def told(low: str, high: str, alias: str) -> str:
    """In SQL, whether a callback told of the same event. Not if a consent came between the two: then only the later
    word stops this person, and it is not to be lost. Subqueries that count are asked for one key after another; as
    joins, they might read the whole table."""
    return f"""(
        select count(*) from facts as f
        where f.address = {alias}.address and f.channel = 'email' and f.namespace = :namespace
          and f.reason = {alias}.reason and f.action = 'suppress' and f.occurred_at between {low} and {high}
          and f.source = 'kahuna' and ({low} = 0 or f.origin = 'kahuna_webhook' and (
              select count(*) from facts as c
              where c.address = f.address and c.channel = 'email' and c.namespace = :namespace and c.reason = f.reason
                and c.action = 'clear' and c.occurred_at > f.occurred_at and c.occurred_at <= {alias}.occurred_at) = 0)
    ) > 0"""  # noqa: S608 (built from our own words alone)


_EVIDENCE: Final = text(
    f"""
    select place
    from unnest(string_to_array(:address, :separator), string_to_array(:reason, ','),
                string_to_array(:occurred_at, ',')::bigint[], string_to_array(:low, ',')::bigint[],
                string_to_array(:high, ',')::bigint[], string_to_array(:place, ',')::int[])
         as given(address, reason, occurred_at, low, high, place)
    where {told("given.low", "given.high", "given")}
    """  # noqa: S608 (built from our own words alone)
)

# The same record again is no news once its word was taken back; another time is another event. What a callback tells is
# asked of the facts alone.
_TAKEN_BACK: Final = text(
    """
    select place
    from unnest(string_to_array(:address, :separator), string_to_array(:reason, ','),
                string_to_array(:occurred_at, ',')::bigint[], string_to_array(:low, ',')::bigint[],
                string_to_array(:high, ',')::bigint[], string_to_array(:place, ',')::int[])
         as given(address, reason, occurred_at, low, high, place)
    where (
        select count(*) from retracted_facts as f
        where f.address = given.address and f.channel = 'email' and f.namespace = :namespace
          and f.reason = given.reason and f.action = 'suppress' and f.source = 'kahuna' and f.origin = 'kahuna_logs'
          and (given.low = 0 or f.occurred_at = given.occurred_at)
    ) > 0
    """
)

_WATCH: Final = text(
    """
    insert into log_bounces (address, namespace, occurred_at, batch_id, entry_index)
    select f.address, f.namespace, f.occurred_at, f.batch_id, f.entry_index
    from unnest(string_to_array(:address, :separator), string_to_array(:occurred_at, ',')::bigint[])
         as given(address, occurred_at)
    cross join lateral (
        select address, namespace, occurred_at, batch_id, entry_index from facts
        where facts.address = given.address and channel = 'email' and namespace = :namespace
          and reason = 'soft_bounce' and action = 'suppress' and facts.occurred_at = given.occurred_at
          and source = 'kahuna' and batch_id = :batch_id
    ) as f
    order by f.address, f.occurred_at
    on conflict (address, namespace, occurred_at) do update set
        batch_id = excluded.batch_id, entry_index = excluded.entry_index
    """
).bindparams(bindparam("batch_id", type_=Uuid))

_DOUBTFUL: Final = text(
    f"""
    select page.*, {told(f"page.occurred_at - {SAME_EVENT}", f"page.occurred_at + {SAME_EVENT}", "page")} as told
    from (
        select address, occurred_at, batch_id, entry_index, 'soft_bounce' as reason from log_bounces
        where namespace = :namespace and (address, occurred_at) > (:after_address, :after_at)
        order by address, occurred_at limit :limit
    ) as page
    order by page.address, page.occurred_at
    """  # noqa: S608 (built from our own words alone)
)

_TAKE_BACK: Final = text(
    """
    delete from facts using unnest(string_to_array(:address, :separator),
                                   string_to_array(:occurred_at, ',')::bigint[]) as given(address, occurred_at)
    where facts.address = given.address and channel = 'email' and namespace = :namespace and reason = 'soft_bounce'
      and action = 'suppress' and facts.occurred_at = given.occurred_at and source = 'kahuna'
      and origin = 'kahuna_logs'
    returning facts.address, facts.occurred_at
    """
)

# The cause as its facts make it; what Kahuna holds stays, for it said so.
_RECOUNT: Final = text(
    """
    with left_over as materialized (
        select given.address,
               max(f.occurred_at) filter (where f.action = 'suppress') as stop_at,
               max(f.occurred_at) filter (where f.action = 'clear') as clear_at,
               (array_agg(f.occurred_at order by f.occurred_at desc) filter (where f.action = 'suppress')) as bounces
        from (select distinct address from unnest(string_to_array(:address, :separator)) as address) as given
        join facts as f on f.address = given.address and f.channel = 'email' and f.namespace = :namespace
                       and f.reason = 'soft_bounce'
        group by given.address
    ),
    recounted as (
        update suppressions as s set
            stop_at = n.stop_at,
            bounces = (select array_agg(at order by at) from (
                select distinct at from unnest(n.bounces) as bounce(at)
                where at >= coalesce(n.clear_at, at) order by at desc limit :kept) as newest),
            (origin, batch_id, recorded_at, address_received) = (
                select f.origin, f.batch_id, f.recorded_at, f.address_received from facts as f
                where f.address = s.address and f.channel = 'email' and f.namespace = :namespace
                  and f.reason = 'soft_bounce'
                order by f.occurred_at desc, f.action desc limit 1)
        from left_over as n
        where s.address = n.address and s.channel = 'email' and s.namespace = :namespace
          and s.reason = 'soft_bounce'
        returning s.address
    )
    insert into changes (namespace, channel, address, recorded_at)
    select :namespace, 'email', address, :now from recounted
    """
).bindparams(bindparam("now", type_=DateTime(True)))


async def told_by_callbacks(connection: AsyncConnection, namespace: str, stops: Sequence[Stop]) -> frozenset[int]:
    """Those of these stops, by their index, that a callback told of: they are evidence for it, and no facts."""
    if not stops:
        return frozenset()
    columns = _columns(stops) | {"namespace": namespace, "separator": SEPARATOR}
    return frozenset((await _asked(connection, _EVIDENCE, columns)).scalars())


async def taken_back(connection: AsyncConnection, namespace: str, stops: Sequence[Stop]) -> frozenset[int]:
    """Those of these stops, by their index, that a log told of before, and that were taken back since."""
    if not stops:
        return frozenset()
    columns = _columns(stops) | {"namespace": namespace, "separator": SEPARATOR}
    return frozenset((await _asked(connection, _TAKEN_BACK, columns)).scalars())


async def watch(connection: AsyncConnection, namespace: str, batch_id: uuid.UUID, bounces: Sequence[Entry]) -> None:
    """Notes those of these soft bounces that became facts by this batch: a callback may still tell of them."""
    if not bounces:
        return
    columns = {
        "address": SEPARATOR.join(one.address for one in bounces),
        "occurred_at": ",".join(str(one.occurred_at) for one in bounces),
    }
    shared = {"namespace": namespace, "separator": SEPARATOR, "batch_id": batch_id}
    await _asked(connection, _WATCH, columns | shared)


async def watched(
    connection: AsyncConnection, namespace: str, after: Bounce | None, limit: int
) -> list[tuple[Bounce, bool]]:
    """The next soft bounces that are watched, by address and time, each with whether a callback has told of it."""
    address, at = ("", 0) if after is None else (after.address, after.occurred_at)
    values = {"namespace": namespace, "after_address": address, "after_at": at, "limit": limit}
    rows = await _asked(connection, _DOUBTFUL, values)
    return [(Bounce(row.address, row.occurred_at, row.batch_id, row.entry_index), row.told) for row in rows]


async def take_back(
    connection: AsyncConnection, namespace: str, bounces: Sequence[Bounce], policy: Policy, now: datetime
) -> list[Bounce]:
    """Takes these facts back and counts their causes anew, which the caller has locked; returns those that were there
    to be taken back."""
    shared = {"address": SEPARATOR.join(one.address for one in bounces), "separator": SEPARATOR}
    shared |= {"namespace": namespace}
    times = ",".join(str(one.occurred_at) for one in bounces)
    gone = {tuple(row) for row in await _asked(connection, _TAKE_BACK, shared | {"occurred_at": times})}
    kept = policy.soft_bounces_kept
    await _asked(connection, _RECOUNT, shared | {"kept": kept, "now": now})
    note_fed(connection)
    return [one for one in bounces if (one.address, one.occurred_at) in gone]


async def unwatch(connection: AsyncConnection, namespace: str, bounces: Sequence[Bounce]) -> None:
    """Ends the watch over these."""
    for one in bounces:
        mine = (log_bounces.c.address == one.address, log_bounces.c.occurred_at == one.occurred_at)
        await connection.execute(delete(log_bounces).where(*mine, log_bounces.c.namespace == namespace))


async def unwatch_before(connection: AsyncConnection, namespace: str, moment: int) -> None:
    """Ends the watch over those that are too old to count in any verdict."""
    old = (log_bounces.c.namespace == namespace, log_bounces.c.occurred_at < moment)
    await connection.execute(delete(log_bounces).where(*old))


async def _asked(connection: AsyncConnection, query: TextClause, values: dict[str, Any]) -> Any:
    await plan_anew(connection)
    return await connection.execute(query, values)


def _columns(stops: Sequence[Stop]) -> dict[str, object]:
    return {
        "address": SEPARATOR.join(one.entry.address for one in stops),
        "reason": ",".join(one.entry.reason for one in stops),
        "occurred_at": ",".join(str(one.entry.occurred_at) for one in stops),
        "low": ",".join(str(one.low) for one in stops),
        "high": ",".join(str(one.high) for one in stops),
        "place": ",".join(str(one.entry.entry_index) for one in stops),
    }
