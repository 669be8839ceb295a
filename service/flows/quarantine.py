"""Owns what a person does about entries that could not be understood: have them read again, or discard them.

A requeued entry is applied by itself, as part of its batch and with the time of its receipt; one that is still not
understood stays open, with the error that it has by today's rules.
"""

import uuid
from collections.abc import Callable
from datetime import datetime
from typing import Any, Final, NamedTuple

from service.errors import Conflict, NotFound, StorageUnavailable
from service.flows import replay
from service.flows.ingest import Rules
from service.flows.replay import Replayed
from service.store import access, archive, quarantine
from service.store.access import Deed
from service.store.database import Connection, Database, until_settled
from service.store.quarantine import Asked, Place
from service.telemetry import Metrics, logger

BATCHES: Final = 100
"""Batches whose entries one call requeues at most."""

ENTRIES: Final = 10_000
"""Entries after which one call takes up no further batch."""


class Requeued(NamedTuple):
    """What came of many: `entries` were read again, `requeued` of them understood; `new` counts the facts and opt-ins
    that wait which nobody knew, `failed` the batches that could not be applied. `next` is where to go on, None at the
    end."""

    entries: int
    requeued: int
    new: int
    failed: int
    next: Place | None


async def requeue_one(
    database: Database,
    place: tuple[uuid.UUID, int],
    actor: str,
    rules: Rules,
    clock: Callable[[], datetime],
    allowed_namespace: str | None,
    metrics: Metrics | None = None,
) -> Any:
    """Reads one entry again; returns its row, `open` if it is still not understood. A discard is taken back by it."""
    batch_id, index = place

    async def transaction(connection: Connection) -> tuple[Any, Replayed]:
        row = await _held(connection, place, allowed_namespace)
        if row.state == "requeued":
            raise Conflict("This entry is requeued already.", "already-decided")
        if row.state == "discarded":
            await quarantine.reopen(connection, batch_id, index)
        done = await _requeue(connection, batch_id, frozenset([index]), actor, rules, clock())
        return await quarantine.one(connection, batch_id, index), done

    row, done = await until_settled(database, transaction)
    _count(metrics, done)
    logger().info("quarantine.requeued", batches=1, entries=1, requeued=done.requeued, new=done.new, failed=0)
    return row


async def requeue_many(
    database: Database,
    asked: Asked,
    after: Place | None,
    actor: str,
    rules: Rules,
    clock: Callable[[], datetime],
    metrics: Metrics | None = None,
) -> Requeued:
    """Reads the open entries that are meant again, batch by batch in the order of receipt, each batch in a transaction
    of its own. After some it stops, and tells where to go on."""
    async with database.read() as connection:
        places = await quarantine.batches_after(connection, asked, after, BATCHES)
    told = Requeued(0, 0, 0, 0, None)
    taken = 0
    for place in places:
        if told.entries >= ENTRIES:
            break
        told = _sum(told, await _requeue_open(database, place.batch_id, asked, actor, rules, clock, metrics))
        taken += 1
    logger().info("quarantine.requeued", batches=taken, **{k: n for k, n in told._asdict().items() if k != "next"})
    return told._replace(next=places[taken - 1] if taken and (taken < len(places) or taken == BATCHES) else None)


async def discard(
    database: Database,
    place: tuple[uuid.UUID, int],
    actor: str,
    note: str,
    clock: Callable[[], datetime],
    allowed_namespace: str | None,
) -> Any:
    """Takes one entry out of the way for good, for a reason; returns its row."""
    batch_id, index = place

    async def transaction(connection: Connection) -> Any:
        row = await _held(connection, place, allowed_namespace)
        if row.state != "open":
            raise Conflict(f"This entry is {row.state} already.", "already-decided")
        now = clock()
        await quarantine.discard(connection, batch_id, index, actor, note, now)
        detail = {"batch_id": str(batch_id), "entry_index": index, "reason": note}
        deed = Deed(actor, "quarantine.discarded", row.namespace, row.channel, detail=detail)
        await access.write_down(connection, deed, now)
        return await quarantine.one(connection, batch_id, index)

    row = await until_settled(database, transaction)
    logger().info("quarantine.discarded", batch_id=str(batch_id), entry_index=index, error=row.error)
    return row


async def _held(connection: Connection, place: tuple[uuid.UUID, int], allowed_namespace: str | None) -> Any:
    """The entry's row, which nobody changes any more until the transaction ends."""
    await archive.hold(connection, place[0])
    row = await quarantine.one(connection, *place)
    if row is None or allowed_namespace not in (None, row.namespace):
        raise NotFound("There is no such entry; list them with GET /v1/admin/quarantine.")
    return row


async def _requeue(
    connection: Connection, batch_id: uuid.UUID, indexes: frozenset[int], actor: str, rules: Rules, now: datetime
) -> Replayed:
    found = await archive.locked(connection, [batch_id])
    if not found or not replay.allows(found[0], rules, None):
        sentence = "Its batch is not in the archive any more; if the address must be suppressed, say so with a PUT."
        raise Conflict(sentence, "batch-gone")
    [done] = await replay.again(connection, found, rules, now, actor, indexes)
    detail: dict[str, Any] = {"batch_id": str(batch_id), "entries": len(indexes), "requeued": done.requeued}
    if len(indexes) == 1:
        detail["entry_index"] = min(indexes)
    deed = Deed(actor, "quarantine.requeued", done.namespace, done.channel, detail=detail | {"new": done.new})
    await access.write_down(connection, deed, now)
    return done


async def _requeue_open(
    database: Database,
    batch_id: uuid.UUID,
    asked: Asked,
    actor: str,
    rules: Rules,
    clock: Callable[[], datetime],
    metrics: Metrics | None,
) -> Requeued:
    """The entries of one batch. Whatever is in the way of one must not keep the other batches."""

    async def transaction(connection: Connection) -> tuple[int, Replayed] | None:
        await archive.hold(connection, batch_id)
        indexes = await quarantine.indexes(connection, batch_id, asked)
        if not indexes:  # decided since we looked
            return None
        return len(indexes), await _requeue(connection, batch_id, indexes, actor, rules, clock())

    try:
        taken = await until_settled(database, transaction)
    except StorageUnavailable:
        raise
    except Exception as error:  # noqa: BLE001 (it stays open, and is told)
        logger().error("quarantine.requeue_failed", batch_id=str(batch_id), exc_info=error)
        return Requeued(0, 0, 0, 1, None)
    if taken is None:
        return Requeued(0, 0, 0, 0, None)
    entries, done = taken
    _count(metrics, done)
    return Requeued(entries, done.requeued, done.new, 0, None)


def _count(metrics: Metrics | None, done: Replayed) -> None:
    if metrics is not None:
        replay.count(metrics, done)


def _sum(one: Requeued, other: Requeued) -> Requeued:
    failed = one.failed + other.failed
    return Requeued(one.entries + other.entries, one.requeued + other.requeued, one.new + other.new, failed, None)
