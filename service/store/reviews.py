"""Owns the opt-ins that wait for a person, and what was decided of each."""

import uuid
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Final, NamedTuple

from sqlalchemy import DateTime, RowMapping, Uuid, bindparam, func, literal, select, text, tuple_, update
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncConnection

from service.domain.addresses import Channel
from service.store.batches import Received
from service.store.database import SEPARATOR, among, aside
from service.store.tables import reviews


class Held(NamedTuple):
    """An opt-in that waits: `occurred_at` is None if it came without a time that can stand."""

    entry_index: int
    address: str
    received: str
    reason: str
    occurred_at: int | None
    why: str


_HOLD: Final = text(
    """
    with added as (
    insert into reviews (id, namespace, channel, address, reason, occurred_at, why, address_received, batch_id,
                         entry_index, received_at)
    select gen_random_uuid(), :namespace, :channel, address, reason, occurred_at, why, nullif(received, address),
           (cast(:batches as uuid[]))[batch], index, (cast(:received_at as timestamptz[]))[batch]
    from unnest(string_to_array(:address, :separator), string_to_array(:received, :separator),
                string_to_array(:reason, ','), string_to_array(:why, ','),
                string_to_array(:occurred_at, ',', '')::bigint[], string_to_array(:index, ',')::int[],
                string_to_array(:batch, ',')::int[])
         as held(address, received, reason, why, occurred_at, index, batch)
    order by address collate "C", reason collate "C", occurred_at nulls first, batch, index
    on conflict do nothing returning batch_id
    )
    select batch_id, count(*) from added group by batch_id
    """
).bindparams(bindparam("batches", type_=ARRAY(Uuid)), bindparam("received_at", type_=ARRAY(DateTime(timezone=True))))


async def hold(connection: AsyncConnection, held: Sequence[tuple[Received, Sequence[Held]]]) -> dict[uuid.UUID, int]:
    """Adds those of these batches, all of one namespace and channel, that are new; returns how many were, by batch. A
    decision stands: the same opt-in is not asked about twice. All in the order of their keys, in whichever batch they
    came, or two that bring the same would wait for each other."""
    many = sum(len(mine) for _, mine in held)
    if not many:
        return {}
    shared = held[0][0]
    values = {
        "namespace": shared.namespace,
        "channel": shared.channel,
        "batches": [batch.id for batch, _ in held],
        "received_at": [batch.received_at for batch, _ in held],
        "separator": SEPARATOR,
    }
    rows = await connection.execute(_HOLD, values | await aside(many, _columns, [mine for _, mine in held]))
    return {row[0]: row[1] for row in rows}


def _columns(by_batch: Sequence[Sequence[Held]]) -> dict[str, str]:
    held = [one for mine in by_batch for one in mine]
    return {
        "batch": ",".join(str(place) for place, mine in enumerate(by_batch, 1) for _ in mine),
        "address": SEPARATOR.join(h.address for h in held),
        "received": SEPARATOR.join(h.received for h in held),
        "reason": ",".join(h.reason for h in held),
        "why": ",".join(h.why for h in held),
        "occurred_at": ",".join("" if h.occurred_at is None else str(h.occurred_at) for h in held),
        "index": ",".join(str(h.entry_index) for h in held),
    }


async def not_approved(
    connection: AsyncConnection, namespace: str, channel: Channel, addresses: Iterable[str]
) -> set[tuple[str, int]]:
    """The opt-ins of these addresses, each with its time, that wait or were refused: they may not become facts."""
    table = reviews.c
    query = select(table.address, table.occurred_at).where(
        among(table.address, addresses),
        table.channel == channel,
        table.namespace == namespace,
        table.occurred_at.is_not(None),
        table.state != "approved",
    )
    return {(row.address, row.occurred_at) for row in await connection.execute(query)}


async def seen(
    connection: AsyncConnection, namespace: str, channel: Channel, addresses: Iterable[str]
) -> set[tuple[str, int | None]]:
    """Every opt-in of these addresses that waits or was decided, each with its time: None if it came without one."""
    table = reviews.c
    mine = (among(table.address, addresses), table.channel == channel, table.namespace == namespace)
    rows = await connection.execute(select(table.address, table.occurred_at).where(*mine))
    return {(row.address, row.occurred_at) for row in rows}


class Place(NamedTuple):
    """Where a page of the list of reviews ends."""

    received_at: datetime
    id: uuid.UUID


async def by_state(
    connection: AsyncConnection, namespace: str, state: str, limit: int, after: Place | None = None
) -> Sequence[RowMapping]:
    """The reviews in this state, oldest first, or those after a place."""
    query = select(reviews).where(reviews.c.namespace == namespace, reviews.c.state == state)
    if after is not None:
        place = tuple_(literal(after.received_at, DateTime(timezone=True)), literal(after.id, Uuid))
        query = query.where(tuple_(reviews.c.received_at, reviews.c.id) > place)
    oldest = query.order_by(reviews.c.received_at, reviews.c.id).limit(limit)
    return (await connection.execute(oldest)).mappings().all()


async def one(connection: AsyncConnection, review_id: uuid.UUID) -> RowMapping | None:
    """One review as it is now."""
    return (await connection.execute(select(reviews).where(reviews.c.id == review_id))).mappings().first()


async def lock(connection: AsyncConnection, review_id: uuid.UUID) -> RowMapping | None:
    """One review, locked for a decision: after the rows of its address. To be changed last of all, since whoever brings
    the same opt-in again waits for that."""
    query = select(reviews).where(reviews.c.id == review_id).with_for_update()
    return (await connection.execute(query)).mappings().first()


async def decide(
    connection: AsyncConnection, review_id: uuid.UUID, state: str, actor: str, note: str | None, now: datetime
) -> None:
    """Writes the decision down."""
    decision = {"state": state, "decided_by": actor, "decided_at": now, "note": note}
    await connection.execute(update(reviews).where(reviews.c.id == review_id).values(decision))


async def pending_count(connection: AsyncConnection) -> int:
    """How many opt-ins wait for a person."""
    query = select(func.count()).select_from(reviews).where(reviews.c.state == "pending")
    return (await connection.execute(query)).scalar_one()
