"""Owns everything that was ever noted about one address: facts, opt-ins under review, corrections, merges of users, and
who did what. Facts that were taken back are among them, and so is that they were.

Each table is asked by its index on the address, and together they are one list in the order in which we came to know
them. What retention has dropped is said to be gone, and nothing is made up for it.
"""

import uuid
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Final, Literal, NamedTuple

from sqlalchemy import BigInteger, DateTime, Uuid, bindparam, select, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncConnection

from service.store.database import among
from service.store.suppressions import Subject
from service.store.tables import batches

Kind = Literal["action", "review", "fact", "correction", "merge", "retraction"]

KINDS: Final[tuple[Kind, ...]] = ("action", "review", "fact", "correction", "merge", "retraction")
"""In the order in which one transaction brings them about."""

# An untimed opt-in that was decided has no index but that of the decision in the audit log.
_EVENTS: Final = text(
    """
    with mine as materialized (
        select id, at, actor, action, detail from audit
        where address = :address and channel = :channel and namespace = :namespace
    ),
    judged as (
        select * from reviews where address = :address and channel = :channel and namespace = :namespace
                                and occurred_at is not null
        union all
        select * from reviews where address = :address and channel = :channel and namespace = :namespace
                                and occurred_at is null and state = 'pending'
        union all
        select * from reviews where id in (select cast(detail ->> 'review_id' as uuid) from mine
                                           where action in ('review.approved', 'review.refused'))
                                and occurred_at is null
    ),
    events (at, kind, key, told, settled_at, batch_id) as (
        select at, 0, id::text, jsonb_build_object('id', id, 'actor', actor, 'action', action, 'detail', detail),
               null::timestamptz, null::uuid
        from mine
        union all
        select received_at, 1, id::text,
               jsonb_build_object('id', id, 'reason', reason, 'occurred_at', occurred_at, 'why', why, 'state', state,
                                  'decided_by', decided_by, 'note', note),
               decided_at, batch_id
        from judged
        union all
        select recorded_at, 2, concat_ws(' ', reason, action, lpad(occurred_at::text, 20, '0'), source),
               jsonb_build_object('reason', reason, 'action', action, 'occurred_at', occurred_at, 'source', source,
                                  'origin', origin, 'address_received', address_received, 'entry_index', entry_index,
                                  'action_id', audit_id),
               null, batch_id
        from facts where address = :address and channel = :channel and namespace = :namespace
        union all
        select recorded_at, 2,
               concat_ws(' ', reason, action, lpad(occurred_at::text, 20, '0'), source, evidence_id),
               jsonb_build_object('reason', reason, 'action', action, 'occurred_at', occurred_at, 'source', source,
                                  'origin', origin, 'address_received', address_received, 'entry_index', entry_index,
                                  'action_id', audit_id),
               retracted_at, batch_id
        from retracted_facts where address = :address and channel = :channel and namespace = :namespace and made
        union all
        select r.retracted_at, 5,
               concat_ws(' ', r.reason, r.action, lpad(r.occurred_at::text, 20, '0'), r.source, r.evidence_id),
               jsonb_build_object('id', t.id, 'actor', t.actor, 'what', t.kind, 'of', t."of", 'note', t.reason,
                                  'reason', r.reason, 'action', r.action, 'occurred_at', r.occurred_at,
                                  'source', r.source, 'still_known', exists (
                                      select from facts as f
                                      where f.address = r.address and f.channel = r.channel
                                        and f.namespace = r.namespace and f.reason = r.reason and f.action = r.action
                                        and f.occurred_at = r.occurred_at and f.source = r.source)),
               null, r.batch_id
        from retracted_facts as r join retractions as t on t.id = r.retraction_id
        where r.address = :address and r.channel = :channel and r.namespace = :namespace and r.made
        union all
        select created_at, 3, lpad(id::text, 20, '0'),
               jsonb_build_object('id', id, 'slot', slot, 'action', action, 'occurred_at', occurred_at, 'state', state,
                                  'attempts', attempts, 'reason', reason, 'evidence', evidence),
               settled_at, null
        from corrections where address = :address and channel = :channel and namespace = :namespace
        union all
        select recorded_at, 4, encode(digest, 'hex'),
               jsonb_build_object('side', side, 'occurred_at', occurred_at, 'record', record),
               null, null
        from merges where address = :address and channel = :channel and namespace = :namespace
    )
    select at, kind, key, told, settled_at, batch_id from events
    where (at, kind, key collate "C") > (:after_at, :after_kind, cast(:after_key as text) collate "C")
    order by at, kind, key collate "C" limit :limit
    """
).bindparams(bindparam("after_at", type_=DateTime(timezone=True)), bindparam("after_kind", type_=BigInteger))
_EVENTS_TYPED: Final = _EVENTS.columns(told=JSONB, batch_id=Uuid)

# What decided a cause is its latest fact; at the same second the stop.
_NAMES: Final = text(
    """
    select newest.reason, newest.origin, coalesce(a.actor, b.headers ->> 'file-name') as name
    from (
        select distinct on (reason) reason, origin, batch_id, audit_id from facts
        where address = :address and channel = :channel and namespace = :namespace
        order by reason, occurred_at desc, action desc
    ) as newest
    left join audit a on a.id = newest.audit_id
    left join batches b on b.id = newest.batch_id
    where newest.origin in ('api', 'import')
    """
)

_WAITING: Final = text(
    """
    select (select count(*) from reviews where address = :address and channel = :channel and namespace = :namespace
                                           and occurred_at is not null and state = 'pending')
         + (select count(*) from reviews where address = :address and channel = :channel and namespace = :namespace
                                           and occurred_at is null and state = 'pending')
    """
)


class Moment(NamedTuple):
    """Where a page of the history ends and the next begins."""

    at: datetime
    kind: int
    key: str


BEGINNING: Final = Moment(datetime(1, 1, 2, tzinfo=UTC), -1, "")


class Receipt(NamedTuple):
    """A batch of the archive: where it came from, and when."""

    origin: str
    received_at: datetime


class Event(NamedTuple):
    """One thing that was noted. `told` holds its own words; `batch` is None where there is none, or none any more."""

    moment: Moment
    told: dict[str, Any]
    settled_at: datetime | None
    batch_id: uuid.UUID | None
    batch: Receipt | None

    @property
    def kind(self) -> Kind:
        """What it is."""
        return KINDS[self.moment.kind]


async def page(connection: AsyncConnection, subject: Subject, after: Moment, limit: int) -> list[Event]:
    """What was noted about an address after a moment, oldest first."""
    begin = {f"after_{name}": value for name, value in after._asdict().items()}
    rows = (await connection.execute(_EVENTS_TYPED, subject._asdict() | begin | {"limit": limit})).all()
    receipts = await _receipts(connection, {row.batch_id for row in rows if row.batch_id is not None})
    return [
        Event(Moment(r.at, r.kind, r.key), r.told, r.settled_at, r.batch_id, receipts.get(r.batch_id)) for r in rows
    ]


async def names(connection: AsyncConnection, subject: Subject) -> dict[tuple[str, str], str]:
    """Who stands behind a reason and an origin: the service that called, or the file that was imported."""
    rows = await connection.execute(_NAMES, subject._asdict())
    return {(row.reason, row.origin): row.name for row in rows if row.name is not None}


async def waiting(connection: AsyncConnection, subject: Subject) -> int:
    """How many opt-ins of an address wait for a person."""
    return int((await connection.execute(_WAITING, subject._asdict())).scalar_one())


async def _receipts(connection: AsyncConnection, ids: Iterable[uuid.UUID]) -> dict[uuid.UUID, Receipt]:
    wanted = list(ids)
    if not wanted:
        return {}
    query = select(batches.c.id, batches.c.origin, batches.c.received_at).where(among(batches.c.id, wanted))
    return {row.id: Receipt(row.origin, row.received_at) for row in await connection.execute(query)}
