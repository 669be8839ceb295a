"""Owns the records of Kahuna's logs that made no fact, since a callback had told of the same event: what they say
stands in place of the callback's word if that is taken back.

Whoever writes or asks here holds the rows of the addresses first (`suppressions.lock`). A record whose own word was
taken back is not among them, and does not come back.
"""

import uuid
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Final, NamedTuple

from sqlalchemy import DateTime, Uuid, bindparam, text
from sqlalchemy.ext.asyncio import AsyncConnection

from service.domain.facts import SAME_EVENT
from service.store.database import SEPARATOR, plan_anew
from service.store.forgetting import oldest_of
from service.store.logs import ANY_TIME, told
from service.store.tables import log_evidence


class Record(NamedTuple):
    """A stop of a log record; an untimed one has the time at which it was read."""

    address: str
    reason: str
    occurred_at: int
    timed: bool = True


# A fact of the record's own says it already. Without a time it is read again and again, each time at another.
_NOTE: Final = text(
    """
    insert into log_evidence (address, namespace, reason, occurred_at, timed, noted_at)
    select address, :namespace, reason, occurred_at, timed, :now
    from unnest(string_to_array(:address, :separator), string_to_array(:reason, ','),
                string_to_array(:occurred_at, ',')::bigint[], string_to_array(:timed, ',')::bool[])
         as given(address, reason, occurred_at, timed)
    where (select count(*) from facts as f
           where f.address = given.address and f.channel = 'email' and f.namespace = :namespace
             and f.reason = given.reason and f.action = 'suppress' and f.source = 'kahuna'
             and f.origin = 'kahuna_logs' and (not timed or f.occurred_at = given.occurred_at)) = 0
      and (timed or (select count(*) from log_evidence as e
                     where e.address = given.address and e.namespace = :namespace and e.reason = given.reason
                       and not e.timed) = 0)
    order by address, reason, occurred_at
    on conflict do nothing
    """
).bindparams(bindparam("now", type_=DateTime(True)))

_STANDING: Final = text(
    f"""
    select e.address, e.reason, e.occurred_at, e.timed
    from unnest(string_to_array(:addresses, :separator)) as given(address)
    cross join lateral (
        select *, case when timed then occurred_at - {SAME_EVENT} else {ANY_TIME[0]} end as low,
               case when timed then occurred_at + {SAME_EVENT} else {ANY_TIME[1]} end as high
        from log_evidence where address = given.address and namespace = :namespace offset 0
    ) as e
    where (select count(*) from retracted_facts as r
           where r.address = e.address and r.channel = 'email' and r.namespace = :namespace and r.reason = e.reason
             and r.action = 'suppress' and r.source = 'kahuna' and r.made and r.retraction_id = :id
             and r.occurred_at between e.low and e.high) > 0
      and (select count(*) from retracted_facts as r
           where r.address = e.address and r.channel = 'email' and r.namespace = :namespace and r.reason = e.reason
             and r.action = 'suppress' and r.source = 'kahuna' and r.origin = 'kahuna_logs'
             and (not e.timed or r.occurred_at = e.occurred_at)) = 0
      and (select count(*) from facts as f
           where f.address = e.address and f.channel = 'email' and f.namespace = :namespace and f.reason = e.reason
             and f.action = 'suppress' and f.occurred_at = e.occurred_at and f.source = 'kahuna') = 0
      and not {told("e.low", "e.high", "e")}
    order by e.address, e.reason, e.occurred_at
    """  # noqa: S608 (built from our own words alone)
).bindparams(bindparam("id", type_=Uuid))

_FORGET: Final = oldest_of(log_evidence, log_evidence.c.noted_at)


async def note(connection: AsyncConnection, namespace: str, records: Sequence[Record], now: datetime) -> None:
    """Keeps records that made no fact; one that is kept already, or is a fact, changes nothing."""
    if not records:
        return
    await plan_anew(connection)
    columns = {
        "address": SEPARATOR.join(one.address for one in records),
        "reason": ",".join(one.reason for one in records),
        "occurred_at": ",".join(str(one.occurred_at) for one in records),
        "timed": ",".join("t" if one.timed else "f" for one in records),
    }
    await connection.execute(_NOTE, columns | {"namespace": namespace, "separator": SEPARATOR, "now": now})


async def standing(
    connection: AsyncConnection, namespace: str, retraction_id: uuid.UUID, addresses: Collection[str]
) -> list[Record]:
    """The records about these addresses that nothing says any more, now that this retraction has taken back what Kahuna
    had told of the same event."""
    if not addresses:
        return []
    await plan_anew(connection)
    values = {"addresses": SEPARATOR.join(sorted(addresses)), "separator": SEPARATOR}
    rows = await connection.execute(_STANDING, values | {"namespace": namespace, "id": retraction_id})
    return [Record(*row) for row in rows]


async def forget_before(connection: AsyncConnection, moment: datetime, limit: int) -> int:
    """Drops records that were noted before a moment, so many at most; returns how many."""
    count: int = (await connection.execute(_FORGET, {"moment": moment, "limit": limit})).scalar_one()
    return count
