"""Owns the checkpoint: what the batches that retention dropped had said, merged per cause, and which partitions went.

It is made of the evidence and never of the list, so that a rebuild which starts here proves as much as before. Taking
the same batch in twice changes nothing.
"""

import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from service.domain.addresses import Channel
from service.domain.corrections import Correction, Marks
from service.domain.facts import Fact
from service.domain.suppression import Cause, Policy, cause_of, merge
from service.store.batches import first_id
from service.store.database import among, pages
from service.store.partitions import Month, month_of
from service.store.tables import checkpoint_causes, checkpoints


class Gone(NamedTuple):
    """A dropped month of the archive: the ids of its batches, from `low` and below `high`."""

    low: uuid.UUID
    high: uuid.UUID


class _Kept(NamedTuple):
    """One row: a cause, and what Kahuna itself told of its slot."""

    cause: Cause
    held: Marks


async def absorb(connection: AsyncConnection, facts: Sequence[Fact], waiting: Sequence[Fact], policy: Policy) -> None:
    """Merges facts into the checkpoint, and of waiting opt-ins only that Kahuna holds them. One writer at a time."""
    groups: defaultdict[tuple[str, Channel], list[tuple[Fact, bool]]] = defaultdict(list)
    for made, some in ((True, facts), (False, waiting)):
        for fact in some:
            groups[fact.namespace, fact.channel].append((fact, made))
    for (namespace, channel), given in groups.items():
        kept = await _kept(connection, namespace, channel, {fact.address for fact, _ in given})
        for fact, made in given:
            key = fact.address, fact.reason
            kept[key] = _merged(kept.get(key, _Kept(Cause(fact.reason), Marks())), fact, policy, made=made)
        rows = [_row(namespace, channel, address, one) for (address, _), one in sorted(kept.items())]
        written = insert(checkpoint_causes)
        news = {
            name: written.excluded[name] for name in ("stop_at", "clear_at", "bounces", "held_stop_at", "held_clear_at")
        }
        key_columns = ["address", "channel", "namespace", "reason"]
        await connection.execute(written.on_conflict_do_update(index_elements=key_columns, set_=news), rows)


async def note(connection: AsyncConnection, partition: str, month: Month, batches: int, now: datetime) -> None:
    """Writes down that a month of the archive goes; it may go again if late batches came for it."""
    row = {"partition": partition, "ends_at": month.next.begins_at, "batches": batches, "made_at": now}
    written = insert(checkpoints).values(row)
    more = {"batches": checkpoints.c.batches + written.excluded.batches, "made_at": now}
    await connection.execute(written.on_conflict_do_update(index_elements=["partition"], set_=more))


async def gone(connection: AsyncConnection) -> list[Gone]:
    """The months of the archive that were dropped."""
    ends = (await connection.execute(select(checkpoints.c.ends_at).order_by(checkpoints.c.ends_at))).scalars()
    return [Gone(first_id(_month_before(end).begins_at), first_id(end)) for end in ends]


async def every_cause(connection: AsyncConnection) -> AsyncIterator[list[tuple[str, Channel, str, Cause]]]:
    """Every cause of the checkpoint, by namespace, channel and address, many at a time: needs a transaction."""
    async for page in pages(connection, select(checkpoint_causes), 5000):
        yield [(row.namespace, row.channel, row.address, _cause(row)) for row in page]


async def _kept(
    connection: AsyncConnection, namespace: str, channel: Channel, addresses: Iterable[str]
) -> dict[tuple[str, str], _Kept]:
    table = checkpoint_causes.c
    mine = among(table.address, addresses), table.channel == channel, table.namespace == namespace
    rows = await connection.execute(select(checkpoint_causes).where(*mine))
    return {(r.address, r.reason): _Kept(_cause(r), Marks(r.held_stop_at, r.held_clear_at)) for r in rows}


def _merged(kept: _Kept, fact: Fact, policy: Policy, *, made: bool) -> _Kept:
    cause = merge(kept.cause, cause_of(fact), policy) if made else kept.cause
    told = Correction(fact.action, fact.occurred_at).marks if fact.source == "kahuna" else Marks()
    return _Kept(cause, kept.held.join(told))


def _row(namespace: str, channel: Channel, address: str, kept: _Kept) -> dict[str, Any]:
    row = {"namespace": namespace, "channel": channel, "address": address}
    marks = {"held_stop_at": kept.held.stop_at, "held_clear_at": kept.held.clear_at}
    return row | kept.cause._asdict() | marks | {"bounces": list(kept.cause.bounces) or None}


def _cause(row: Any) -> Cause:
    return Cause(row.reason, row.stop_at, row.clear_at, tuple(row.bounces or ()))


def _month_before(end: datetime) -> Month:
    year, month, *_ = month_of(end)
    return Month(year - 1, 12) if month == 1 else Month(year, month - 1)
