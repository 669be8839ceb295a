"""Owns the proof of lines: which of those that wait for Kahuna have their answer, which go on with another correction,
and which a later comparison does not find any more.

What waits is walked in the order of its corrections, a page at a time, so that a look costs the same however much
waits. Lines are changed in the order of their keys, under the locks of whoever settled their corrections, if any.
"""

import uuid
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Final, NamedTuple

from sqlalchemy import BigInteger, DateTime, Uuid, bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncConnection

from service.store.reconciliations import Run


class Ended(NamedTuple):
    """What one page of the corrections that lines wait for has shown: those that are settled, or gone, and the last one
    that was looked at; None: there are no more."""

    ids: Sequence[int]
    last: int | None


_NOW: Final = bindparam("now", type_=DateTime(True))
_IDS: Final = bindparam("ids", type_=ARRAY(BigInteger))

# Asked for one key after another: as a join, it might read the whole outbox.
_ENDED: Final = text(
    """
    with page as materialized (
        select correction_id as id from differences
        where state in ('applied', 'on_its_way') and correction_id > :after
        group by correction_id order by correction_id limit :limit
    )
    select (select max(id) from page) as last, array(
        select page.id from page left join lateral (
            select state from corrections where id = page.id offset 0
        ) as c on true
        where c.state is null or c.state in ('sent', 'rejected', 'unsupported', 'discarded', 'superseded')
        order by page.id
    ) as ids
    """
).columns(last=BigInteger, ids=ARRAY(BigInteger))

_CLOSE: Final = text(
    """
    with closed as (
        select d.run_id, d.address, d.slot, c.state, c.reason from differences as d
        join corrections as c on c.id = d.correction_id
        where d.state in ('applied', 'on_its_way') and c.state in ('sent', 'rejected', 'unsupported', 'discarded')
          and d.correction_id = any(:ids)
        order by d.run_id, d.address, d.slot for update of d
    )
    update differences as d set closed_at = case when closed.state = 'sent' then :now end,
        state = case closed.state when 'sent' then 'proved' when 'rejected' then 'refused'
                when 'discarded' then 'declined' else 'unsupported' end,
        why = case closed.state when 'sent' then 'accepted' when 'discarded' then 'discarded' else closed.reason end
    from closed where d.run_id = closed.run_id and d.address = closed.address and d.slot = closed.slot
    """
).bindparams(_NOW, _IDS)

# A correction that made way for another: the line goes with that one if it says the same, and is moot without one.
_FOLLOW: Final = """
    with stray as (
        select d.run_id, d.address, d.slot,
               (select max(n.id) from corrections as n
                where n.address = d.address and n.slot = d.slot and n.channel = r.channel and n.namespace = r.namespace
                  and n.action = d.action and n.state <> 'superseded' and n.id > coalesce(d.correction_id, 0)) as next
        from differences as d join reconciliations as r on r.id = d.run_id
        left join corrections as c on c.id = d.correction_id
        where d.state in ('applied', 'on_its_way') and {which} and (c.id is null or c.state = 'superseded')
        order by d.run_id, d.address, d.slot limit 5000 for update of d
    )
    update differences as d set correction_id = coalesce(stray.next, d.correction_id),
        state = case when stray.next is null then 'moot' else d.state end,
        why = case when stray.next is null then 'no-longer-owed' else d.why end,
        closed_at = case when stray.next is null then cast(:now as timestamptz) end
    from stray where d.run_id = stray.run_id and d.address = stray.address and d.slot = stray.slot
    returning coalesce(d.correction_id, 0)
"""
_FOLLOW_THESE: Final = text(_FOLLOW.format(which="d.correction_id = any(:ids)")).bindparams(_NOW, _IDS)
_FOLLOW_NONE: Final = text(_FOLLOW.format(which="d.correction_id is null")).bindparams(_NOW)

# Lines that Kahuna or a person had turned down, and whose correction was examined anew since.
_TURNED_DOWN: Final = """d.correction_id = any(:ids) and (
        d.state in ('refused', 'unsupported') or (d.state = 'declined' and d.why = 'discarded'))"""

_RUNS_OF: Final = text(
    f"""
    select id from reconciliations
    where id in (select d.run_id from differences as d where d.correction_id is not null and {_TURNED_DOWN})
    order by id for update
    """  # noqa: S608 (our own words)
).bindparams(_IDS)

_REOPEN: Final = text(
    f"""
    with again as (
        select d.run_id, d.address, d.slot, given.waits_as
        from unnest(cast(:ids as bigint[]), cast(:waits_as as bigint[])) as given(id, waits_as)
        join differences as d on d.correction_id = given.id and d.correction_id is not null and {_TURNED_DOWN}
        left join corrections as n on n.id = given.waits_as
        where given.waits_as is null or n.action = d.action
        order by d.run_id, d.address, d.slot for update of d
    ), changed as (
        update differences as d set correction_id = coalesce(again.waits_as, d.correction_id),
            state = case when again.waits_as is null then 'moot' else 'applied' end,
            why = case when again.waits_as is null then 'settled-meanwhile' end,
            closed_at = case when again.waits_as is null then cast(:now as timestamptz) end
        from again where d.run_id = again.run_id and d.address = again.address and d.slot = again.slot
        returning d.run_id
    )
    update reconciliations as r set closed_at = null, state = 'applied'
    where r.id in (select run_id from changed) and r.state in ('applied', 'proved')
    """  # noqa: S608 (our own words)
).bindparams(_NOW, _IDS, bindparam("waits_as", type_=ARRAY(BigInteger)))

# A slot with a correction on its way is no difference meanwhile: that it is gone from a plan proves nothing as long as
# one of its corrections is open, or was when the plan was begun.
_SHOWN_GONE: Final = text(
    """
    with gone as (
        select d.run_id, d.address, d.slot from differences as d join reconciliations as r on r.id = d.run_id
        where r.namespace = :namespace and r.channel = :channel and r.id <> :run_id and r.planned_at < :since
          and d.state in ('applied', 'on_its_way', 'refused', 'unsupported')
          and not exists (select from corrections as c
                          where c.address = d.address and c.slot = d.slot and c.channel = :channel
                            and c.namespace = :namespace
                            and (c.state in ('pending', 'sending') or c.settled_at >= :since))
          and not exists (select from differences as n
                          where n.run_id = :run_id and n.address = d.address and n.slot = d.slot)
        order by d.run_id, d.address, d.slot for update of d
    ), closed as (
        update differences as d set state = 'proved', why = :why, closed_at = :now from gone
        where d.run_id = gone.run_id and d.address = gone.address and d.slot = gone.slot returning d.run_id
    )
    select distinct run_id from closed order by run_id
    """
).bindparams(
    bindparam("run_id", type_=Uuid), bindparam("since", type_=DateTime(True)), bindparam("now", type_=DateTime(True))
)


async def ended(connection: AsyncConnection, after: int, limit: int) -> Ended:
    """Looks at the next corrections that lines wait for, behind this id: so many at most."""
    row = (await connection.execute(_ENDED, {"after": after, "limit": limit})).one()
    return Ended(row.ids, row.last)


async def close_settled(connection: AsyncConnection, now: datetime, ids: Collection[int]) -> int:
    """Closes the lines that wait for these corrections and have Kahuna's answer, or a person's; returns how many."""
    return (await connection.execute(_CLOSE, {"now": now, "ids": list(ids)})).rowcount


async def follow(connection: AsyncConnection, now: datetime, ids: Collection[int]) -> list[int]:
    """Hands lines whose correction, one of these, made way for another on to that one; returns what they wait for, for
    each of them."""
    return list((await connection.execute(_FOLLOW_THESE, {"now": now, "ids": list(ids)})).scalars())


async def follow_none(connection: AsyncConnection, now: datetime) -> list[int]:
    """The same for lines without any correction."""
    return list((await connection.execute(_FOLLOW_NONE, {"now": now})).scalars())


async def lock_runs_of(connection: AsyncConnection, ids: Collection[int]) -> None:
    """Locks the runs with lines that were turned down with these corrections: before any address, as always."""
    await connection.execute(_RUNS_OF, {"ids": list(ids)})


async def reopen(connection: AsyncConnection, waits_as: Mapping[int, int | None], now: datetime) -> None:
    """Has lines that were turned down with a correction wait again, for the correction that says it now; None: both
    sides agree by now, and the line is moot. Their runs, locked before, are looked at again: none is proved meanwhile,
    as one may be whose line was discarded."""
    if waits_as:
        values = {"ids": list(waits_as), "waits_as": list(waits_as.values()), "now": now}
        await connection.execute(_REOPEN, values)


async def close_gone(connection: AsyncConnection, run: Run, since: datetime, now: datetime) -> list[uuid.UUID]:
    """Closes the lines of earlier plans that this run, begun at `since`, does not find any more; returns whose they
    are."""
    values = {"run_id": run.id, "namespace": run.namespace, "channel": run.channel}
    values |= {"since": since, "now": now, "why": f"run:{run.id}"}
    return list((await connection.execute(_SHOWN_GONE, values)).scalars())
