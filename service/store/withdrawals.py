"""Owns what taking back does to facts and list: facts are removed by identity and evidence, handed over to other
evidence that states them too, and the causes recomputed from the facts that remain.

Nothing is ever cleared. What was taken back stays known, with who had said it and until when it counted. Whoever
changes anything here holds the rows of the addresses first (`suppressions.lock`); all is found by key.
"""

import uuid
from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

from sqlalchemy import DateTime, TextClause, Uuid, bindparam, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from service.domain.addresses import Channel
from service.domain.facts import Fact, Origin
from service.domain.suppression import Policy
from service.store.database import SEPARATOR, among, aside, note_fed, pages, plan_anew
from service.store.merging import HOME
from service.store.retractions import Retraction
from service.store.suppressions import FactRow, Subject
from service.store.tables_of_undo import retracted_facts


class Saying(NamedTuple):
    """What one piece of evidence says: a batch, or a row of the audit log; `recorded_at` is since when we know it."""

    fact: Fact
    evidence: uuid.UUID
    is_batch: bool
    origin: Origin
    recorded_at: datetime


class TakenBack(NamedTuple):
    """What a page came to: facts that are gone, those of them that Kahuna had told, those that stay because batches
    whose month is dropped said them too, and the addresses that lost one."""

    facts: int
    theirs: int
    kept: int
    addresses: list[str]


class Unsaid(NamedTuple):
    """A slot that Kahuna holds a stop for, which nothing here stands behind any more: nobody has said that it ended,
    so nothing may be told, or the API has no words for it."""

    address: str
    slot: str
    held_stop_at: int


_SAID: Final = """
    with said as materialized (
        select address, reason, action, occurred_at, source, evidence, is_batch, origin, recorded_at, place
        from unnest(string_to_array(:address, :separator), string_to_array(:reason, ','),
                    string_to_array(:action, ','), string_to_array(:occurred_at, ',')::bigint[],
                    string_to_array(:source, ','), string_to_array(:evidence, ',')::uuid[],
                    string_to_array(:is_batch, ',')::bool[], string_to_array(:origin, ','),
                    string_to_array(:recorded_at, ',')::timestamptz[])
             with ordinality as given(address, reason, action, occurred_at, source, evidence, is_batch, origin,
                                      recorded_at, place)
    )
"""

_SAME: Final = """f.address = said.address and f.channel = :channel and f.namespace = :namespace
                and f.reason = said.reason and f.action = said.action and f.occurred_at = said.occurred_at
                and f.source = said.source"""

# Facts that stand on what is taken back, and that others have said, too, whose word still counts.
_RESTING: Final = f"""
    resting as materialized (
        select distinct on (said.address, said.reason, said.action, said.occurred_at, said.source)
               said.*, fact.batch_id as was_batch, fact.audit_id as was_audit, fact.entry_index as was_index,
               fact.origin as was_origin, fact.address_received as was_received, fact.recorded_at as was_recorded
        from said cross join lateral (select f.* from facts as f where {_SAME}) as fact
        where exists (select from retraction_evidence as e
                      where e.retraction_id = :id and e.evidence_id = coalesce(fact.batch_id, fact.audit_id))
          and (cast(:only_reason as text) is null or said.reason = :only_reason)
          and (cast(:only_domain as text) is null or split_part(said.address, '@', 2) = :only_domain)
          and not exists (select from retracted_facts as f where {_SAME} and f.evidence_id = said.evidence)
        order by said.address, said.reason, said.action, said.occurred_at, said.source, said.recorded_at, said.evidence
    )
"""  # noqa: S608 (built from our own words alone)

_COLUMNS: Final = """(address, channel, namespace, reason, action, occurred_at, source, evidence_id, retraction_id,
                      made, origin, address_received, batch_id, entry_index, audit_id, recorded_at, retracted_at)"""

_ADDRESSES: Final = f"{_SAID}, {_RESTING} select distinct address from resting"  # noqa: S608

_HAND_OVER: Final = f"""
    {_SAID}, {_RESTING},
    noted as (
        insert into retracted_facts {_COLUMNS}
        select address, :channel, :namespace, reason, action, occurred_at, source, coalesce(was_batch, was_audit), :id,
               true, was_origin, was_received, was_batch, was_index, was_audit, was_recorded, :now
        from resting on conflict do nothing
    ),
    moved as (
        update facts as f
        set batch_id = case when said.is_batch then said.evidence end,
            audit_id = case when not said.is_batch then said.evidence end,
            entry_index = null, origin = said.origin, recorded_at = said.recorded_at
        from resting as said where {_SAME} returning f.address
    )
    select count(*) from moved
"""  # noqa: S608 (built from our own words alone)

# What dropped months had said, too, is answered for by the checkpoint.
_TAKE_BACK: Final = f"""
    {_SAID},
    met as materialized (
        select said.*, fact.address is not null as made, fact.batch_id as was_batch, fact.audit_id as was_audit,
               fact.entry_index, fact.origin as was_origin, fact.address_received, fact.recorded_at as was_recorded
        from said left join lateral (
            select f.* from facts as f where {_SAME} and coalesce(f.batch_id, f.audit_id) = said.evidence
        ) as fact on true
        where not exists (
            select from checkpoint_causes as c
            where c.address = said.address and c.channel = :channel and c.namespace = :namespace
              and c.reason = said.reason
              and case when said.action = 'clear' then c.clear_at = said.occurred_at
                       else c.stop_at = said.occurred_at or said.occurred_at = any (c.bounces) end
        )
    ),
    noted as (
        insert into retracted_facts {_COLUMNS}
        select address, :channel, :namespace, reason, action, occurred_at, source, evidence, :id, made, was_origin,
               address_received, was_batch, entry_index, was_audit, was_recorded, :now
        from met on conflict do nothing returning address, reason, action, occurred_at, source, made
    ),
    gone as (
        delete from facts as f using noted as said where {_SAME} and said.made returning f.address, f.source
    )
    select (select count(*) from gone) as facts, (select count(*) from gone where source = 'kahuna') as theirs,
           (select count(*) from said) - (select count(*) from met) as kept,
           (select string_agg(distinct address, :separator) from gone) as addresses
"""  # noqa: S608 (built from our own words alone)

_STANDING: Final = f"""
    {_SAID}
    select count(*) from said
    cross join lateral (select f.* from facts as f where {_SAME}) as fact
    where coalesce(fact.batch_id, fact.audit_id) = said.evidence
"""  # noqa: S608 (built from our own words alone)

_LOST: Final = f"""
    {_SAID}
    select place from said
    where exists (select from retracted_facts as f where {_SAME} and f.retraction_id = :id and f.made)
      and not exists (select from facts as f where {_SAME})
      and not exists (select from retracted_facts as f where {_SAME} and f.evidence_id = said.evidence)
"""  # noqa: S608 (built from our own words alone)

# What Kahuna holds is what it told and what it accepted. A stop that it told and that is taken back proves nothing any
# more, or a stop of tomorrow would not be sent; an opt-in that it told it may still hold, so that mark stays.
_RECOMPUTE: Final = """
    with given as materialized (
        select distinct address from unnest(string_to_array(:addresses, :separator)) as address
    ),
    known as materialized (
        select given.address, f.reason, f.action, f.occurred_at, f.source, f.origin, f.address_received, f.batch_id,
               f.audit_id, f.recorded_at
        from given cross join lateral (
            select * from facts where address = given.address and channel = :channel and namespace = :namespace offset 0
        ) as f
    ),
    folded as (
        select address, reason, max(occurred_at) filter (where action = 'suppress') as stop_at,
               max(occurred_at) filter (where action = 'clear') as clear_at,
               array_agg(distinct occurred_at)
                   filter (where action = 'suppress' and reason = 'soft_bounce') as bounces,
               max(occurred_at) filter (where action = 'suppress' and source = 'local') as local_stop_at,
               max(occurred_at) filter (where action = 'suppress' and source = 'kahuna') as told_stop_at
        from known group by address, reason
    ),
    deciding as (
        select distinct on (address, reason) address, reason, address_received, origin, batch_id, recorded_at
        from known
        order by address, reason, occurred_at desc, action desc, recorded_at, coalesce(batch_id, audit_id)
    ),
    accepted as materialized (
        select given.address, c.slot, max(c.occurred_at) as stop_at
        from given cross join lateral (
            select slot, occurred_at from corrections
            where address = given.address and channel = :channel and namespace = :namespace and state = 'sent'
              and action = 'suppress' offset 0
        ) as c group by given.address, c.slot
    ),
    anew as materialized (
        select s.address, s.reason, folded.stop_at, folded.clear_at, folded.local_stop_at,
               (select array_agg(at order by at) from (
                   select at from unnest(folded.bounces) as bounce(at)
                   where at >= coalesce(folded.clear_at, at) order by at desc limit :kept) as newest) as bounces,
               greatest(folded.told_stop_at, accepted.stop_at, c.held_stop_at) as held_stop_at,
               deciding.address_received, deciding.origin, deciding.batch_id, deciding.recorded_at
        from given cross join lateral (
            select address, reason from suppressions
            where address = given.address and channel = :channel and namespace = :namespace offset 0
        ) as s
        left join folded on folded.address = s.address and folded.reason = s.reason
        left join deciding on deciding.address = s.address and deciding.reason = s.reason
        left join accepted on accepted.address = s.address and accepted.slot = s.reason
        left join lateral (
            select held_stop_at from checkpoint_causes
            where address = s.address and channel = :channel and namespace = :namespace and reason = s.reason offset 0
        ) as c on true
    ),
    changed as (
        update suppressions as s
        set stop_at = anew.stop_at, clear_at = anew.clear_at, bounces = anew.bounces,
            local_stop_at = anew.local_stop_at, held_stop_at = anew.held_stop_at,
            address_received = anew.address_received, origin = anew.origin, batch_id = anew.batch_id,
            recorded_at = anew.recorded_at
        from anew
        where s.address = anew.address and s.channel = :channel and s.namespace = :namespace and s.reason = anew.reason
          and (s.stop_at, s.clear_at, s.bounces, s.local_stop_at, s.held_stop_at, s.address_received, s.origin,
               s.batch_id, s.recorded_at)
              is distinct from
              (anew.stop_at, anew.clear_at, anew.bounces, anew.local_stop_at, anew.held_stop_at, anew.address_received,
               anew.origin, anew.batch_id, anew.recorded_at)
        returning s.address
    ),
    fed as (
        insert into changes (namespace, channel, address, recorded_at)
        select distinct :namespace, :channel, address, cast(:now as timestamptz) from changed
    )
    select count(*) from changed
"""

# An import's stop without a time happened when the import began, which its batch's id holds.
_NEWS: Final = """
    select place
    from unnest(string_to_array(:address, :separator), string_to_array(:reason, ','),
                string_to_array(:place, ',')::int[]) as said(address, reason, place)
    cross join lateral (
        select count(*) filter (where going) as going, count(*) filter (where not going) as staying
        from (
            select exists (select from retraction_evidence as e
                           where e.retraction_id = :id and e.evidence_id = f.batch_id) as going
            from facts as f
            where f.address = said.address and f.channel = :channel and f.namespace = :namespace
              and f.reason = said.reason and f.action = 'suppress' and f.source = 'local' and f.origin = 'import'
              and f.occurred_at = ('x' || left(replace(f.batch_id::text, '-', ''), 12))::bit(48)::bigint / 1000
        ) as heard
    ) as counted
    where going > 0 and staying = 0
"""

_UNSAID: Final = text(
    f"""
    select distinct r.address, s.reason as slot, s.held_stop_at
    from retracted_facts as r
    cross join lateral (
        select reason, held_stop_at, held_clear_at from suppressions
        where address = r.address and channel = r.channel and namespace = r.namespace
          and reason = {HOME.replace("reason", "r.reason").replace(":channel", "r.channel")} offset 0
    ) as s
    where r.retraction_id = :id and r.made and s.held_stop_at > coalesce(s.held_clear_at, -1)
      and not exists (select from suppressions as o
                      where o.address = r.address and o.channel = r.channel and o.namespace = r.namespace
                        and o.stop_at >= coalesce(o.clear_at, o.stop_at))
      and not exists (select from corrections as c
                      where c.address = r.address and c.channel = r.channel and c.namespace = r.namespace
                        and c.slot = s.reason and c.action = 'clear' and c.state in ('pending', 'sending'))
    order by r.address, s.reason limit :limit
    """  # noqa: S608 (built from our own words alone)
).bindparams(bindparam("id", type_=Uuid))


def _typed(statement: str) -> TextClause:
    made = text(statement)
    more = [bindparam("now", type_=DateTime(True))] if ":now" in statement else []
    return made.bindparams(bindparam("id", type_=Uuid), *more) if ":id" in statement else made.bindparams(*more)


_ADDRESSES_TYPED, _HAND_OVER_TYPED = _typed(_ADDRESSES), _typed(_HAND_OVER)
_TAKE_BACK_TYPED, _LOST_TYPED = _typed(_TAKE_BACK), _typed(_LOST)
_RECOMPUTE_TYPED, _NEWS_TYPED = _typed(_RECOMPUTE), _typed(_NEWS)
_STANDING_TYPED: Final = _typed(_STANDING)


async def resting(connection: AsyncConnection, retraction: Retraction, said: Sequence[Saying]) -> set[str]:
    """The addresses with facts that stand on what is taken back and that these say, too."""
    if not said:
        return set()
    values = await _values(connection, retraction, said)
    return set((await connection.execute(_ADDRESSES_TYPED, values)).scalars())


async def hand_over(connection: AsyncConnection, retraction: Retraction, said: Sequence[Saying], now: datetime) -> int:
    """Lets such facts stand on these instead, on the first that was recorded; returns how many there were."""
    if not said:
        return 0
    values = await _values(connection, retraction, said)
    moved: int = (await connection.execute(_HAND_OVER_TYPED, values | {"now": now})).scalar_one()
    return moved


async def standing(connection: AsyncConnection, retraction: Retraction, said: Sequence[Saying]) -> int:
    """How many facts stand on these now."""
    if not said:
        return 0
    values = await _values(connection, retraction, said)
    count: int = (await connection.execute(_STANDING_TYPED, values)).scalar_one()
    return count


async def take_back(
    connection: AsyncConnection, retraction: Retraction, said: Sequence[Saying], now: datetime
) -> TakenBack:
    """Counts these for nothing any more: the facts that stand on them are gone. Done twice, it changes nothing."""
    if not said:
        return TakenBack(0, 0, 0, [])
    values = await _values(connection, retraction, said)
    row = (await connection.execute(_TAKE_BACK_TYPED, values | {"now": now})).one()
    return TakenBack(row.facts, row.theirs, row.kept, row.addresses.split(SEPARATOR) if row.addresses else [])


async def lost(connection: AsyncConnection, retraction: Retraction, said: Sequence[Saying]) -> list[Saying]:
    """Those of these that were known when they came, by what was taken back only then: they are facts of nobody now."""
    if not said:
        return []
    values = await _values(connection, retraction, said)
    return [said[place - 1] for place in (await connection.execute(_LOST_TYPED, values)).scalars()]


async def heard_only_from(
    connection: AsyncConnection, retraction: Retraction, silent: Sequence[tuple[int, Fact]]
) -> list[int]:
    """Of these lines without a time, which were no news to an import, those whose news are taken back: their places."""
    if not silent:
        return []
    await plan_anew(connection, len(silent))
    values = {
        "id": retraction.id,
        "namespace": retraction.namespace,
        "channel": retraction.channel,
        "separator": SEPARATOR,
        "address": SEPARATOR.join(fact.address for _, fact in silent),
        "reason": ",".join(fact.reason for _, fact in silent),
        "place": ",".join(str(place) for place, _ in silent),
    }
    return list((await connection.execute(_NEWS_TYPED, values)).scalars())


async def recompute(
    connection: AsyncConnection,
    namespace: str,
    channel: Channel,
    addresses: Collection[str],
    policy: Policy,
    now: datetime,
) -> int:
    """Makes the causes of these addresses anew from their facts, and feeds what changed; returns how many did."""
    if not addresses:
        return 0
    await plan_anew(connection, len(addresses))
    values = {"namespace": namespace, "channel": channel, "separator": SEPARATOR, "now": now}
    values |= {"addresses": SEPARATOR.join(sorted(addresses)), "kept": policy.soft_bounces_kept}
    changed: int = (await connection.execute(_RECOMPUTE_TYPED, values)).scalar_one()
    if changed:
        note_fed(connection)
    return changed


async def of_evidence(connection: AsyncConnection, ids: Iterable[uuid.UUID]) -> set[tuple[uuid.UUID, Fact]]:
    """What of the words of these batches, or rows of the audit log, does not count any more."""
    rows = await connection.execute(_WITHDRAWN.where(among(retracted_facts.c.evidence_id, ids)))
    return {(row.evidence_id, Fact._make(row[1:])) for row in rows}


async def every(connection: AsyncConnection) -> AsyncIterator[list[tuple[uuid.UUID, Fact]]]:
    """All that does not count any more and who had said it, many at a time: needs a transaction."""
    async for page in pages(connection, _WITHDRAWN, 5000):
        yield [(row.evidence_id, Fact._make(row[1:])) for row in page]


async def about(connection: AsyncConnection, subject: Subject) -> list[tuple[FactRow, datetime]]:
    """The facts about one address that were taken back, each with when."""
    table = retracted_facts.c
    query = select(retracted_facts).where(table.address == subject.address, table.channel == subject.channel)
    rows = await connection.execute(query.where(table.namespace == subject.namespace, table.made))
    return [
        (
            FactRow(
                Fact(r.namespace, r.channel, r.address, r.reason, r.action, r.occurred_at, r.source),
                r.recorded_at,
                r.origin,
                r.batch_id,
            ),
            r.retracted_at,
        )
        for r in rows
    ]


async def unsaid(connection: AsyncConnection, retraction_id: uuid.UUID, limit: int) -> list[Unsaid]:
    """What Kahuna holds on from what was taken back, and cannot be told otherwise: the first, by address."""
    rows = await connection.execute(_UNSAID, {"id": retraction_id, "limit": limit})
    return [Unsaid(*row) for row in rows]


_WITHDRAWN: Final = select(retracted_facts.c.evidence_id, *(retracted_facts.c[name] for name in Fact._fields))


async def _values(connection: AsyncConnection, retraction: Retraction, said: Sequence[Saying]) -> dict[str, Any]:
    await plan_anew(connection, len(said))
    shared = {"id": retraction.id, "namespace": retraction.namespace, "channel": retraction.channel}
    only = {"only_reason": retraction.only.reason, "only_domain": retraction.only.domain, "separator": SEPARATOR}
    return shared | only | await aside(len(said), _columns, said)


def _columns(said: Sequence[Saying]) -> dict[str, str]:
    return {
        "address": SEPARATOR.join([one.fact.address for one in said]),
        "reason": ",".join([one.fact.reason for one in said]),
        "action": ",".join([one.fact.action for one in said]),
        "occurred_at": ",".join([str(one.fact.occurred_at) for one in said]),
        "source": ",".join([one.fact.source for one in said]),
        "evidence": ",".join([str(one.evidence) for one in said]),
        "is_batch": ",".join(["t" if one.is_batch else "f" for one in said]),
        "origin": ",".join([one.origin for one in said]),
        "recorded_at": ",".join([one.recorded_at.isoformat() for one in said]),
    }
