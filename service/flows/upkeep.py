"""Owns the upkeep of the tables of receipt: months made ahead, strays put into place, old months dropped.

One worker at a time does it, under a lease with a fence, in many short transactions: nothing of it holds up a callback
or the feed. Before a month of the archive goes, what its batches said is merged into the checkpoint. Refuses to drop
what a rebuild could not replay. Whatever is in the way is met again at the next run.
"""

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Concatenate, Final, ParamSpec, TypeVar

from service.errors import StorageBusy, StorageUnavailable
from service.flows.ingest import Rules
from service.flows.testimony import Testimony, testimony_of
from service.flows.thinning import Kept, thin
from service.flows.underway import TakenOver
from service.settings import Settings
from service.store import (
    batches,
    changes,
    checkpoints,
    leases,
    partitions,
    quarantine,
    retractions,
    suppressions,
    withdrawals,
)
from service.store.batches import Applied, Extent
from service.store.database import Connection, Database, until_settled
from service.store.faults import is_forbidden
from service.store.leases import Lease
from service.store.partitions import ARCHIVE, CALLS, FEED, Month, Receipts
from service.telemetry import logger

EVERY: Final = timedelta(hours=1)
LEASE: Final = timedelta(minutes=5)
SOON: Final = timedelta(minutes=1)

AHEAD: Final = 2
"""Months after the current one that have their partition already."""

ABSORBED_AT_ONCE: Final = 5000
"""Facts that one transaction merges into the checkpoint."""

T = TypeVar("T")
P = ParamSpec("P")


@dataclass(frozen=True, slots=True)
class Retention:
    """How long what was received is kept; None: for ever."""

    archive: timedelta | None = None
    feed: timedelta | None = None
    calls: timedelta | None = None
    lines: timedelta | None = None
    merges: timedelta | None = None


def retention_of(settings: Settings) -> Retention:
    """The retention that these settings ask for."""
    archive, feed = settings.archive_retention_days, settings.changes_retention_days
    lines, merges = settings.reconcile_lines_retention_days, settings.merges_retention_days
    return Retention(*map(_days, (archive, feed, settings.calls_retention_days, lines, merges)))


def _days(count: int | None) -> timedelta | None:
    return None if count is None else timedelta(days=count)


@dataclass(frozen=True, slots=True)
class Upkeep:
    """One run of the upkeep. Every transaction first makes sure that the lease is still ours."""

    database: Database
    rules: Rules
    clock: Callable[[], datetime]
    lease: Lease
    also: Lease | None = None

    async def do(self, work: Callable[Concatenate[Connection, P], Awaitable[T]], *args: P.args, **more: P.kwargs) -> T:
        """One short transaction; TakenOver if another worker has the lease by now."""

        async def fenced(connection: Connection) -> T:
            for lease in (self.lease, self.also):
                if lease is not None and not await leases.hold(connection, lease, self.clock() + LEASE):
                    raise TakenOver("Another worker has taken the upkeep over.")
            return await work(connection, *args, **more)

        return await until_settled(self.database, fenced, attempts=2)


async def run_due(database: Database, rules: Rules, retention: Retention, clock: Callable[[], datetime]) -> bool:
    """Does the upkeep if it is due and nobody else does it; tells whether it did."""
    now = clock()
    async with database.begin() as connection:
        lease = await leases.claim(connection, "upkeep", now, now + LEASE)
    if lease is None:
        return False
    upkeep = Upkeep(database, rules, clock, lease)
    again_in = await _attempt(upkeep, retention)
    async with database.begin() as connection:
        await leases.hold(connection, lease, clock() + again_in)
    return True


async def make_ahead(database: Database, rules: Rules, clock: Callable[[], datetime]) -> None:
    """Makes the months of now and soon, before the first callback comes, unless a worker is at it already; leaves the
    rest to the worker, at once."""
    now = clock()
    async with database.begin() as connection:
        lease = await leases.claim(connection, "upkeep", now, now + LEASE)
    if lease is None:
        return
    upkeep = Upkeep(database, rules, clock, lease)
    for receipts in partitions.ALL:
        error = await _failure_of(partial(_make_ahead, upkeep, receipts))
        if error is not None:
            _tell(error)
    async with database.begin() as connection:
        await leases.hold(connection, lease, clock())


async def _attempt(upkeep: Upkeep, retention: Retention) -> timedelta:
    """One run; returns when to look again. What fails keeps nothing else from being done."""
    steps: list[Callable[[], Awaitable[None]]] = [partial(_make_months, upkeep, one) for one in partitions.ALL]
    unparted = Kept(retention.lines, retention.merges, retention.archive)
    steps.append(partial(thin, upkeep.do, unparted, upkeep.clock()))
    for receipts, kept in ((FEED, retention.feed), (CALLS, retention.calls), (ARCHIVE, retention.archive)):
        if kept is not None:
            oldest = partitions.month_of(upkeep.clock() - kept)
            steps.append(partial(_drop_months, upkeep, receipts, oldest))
    failures = [error for step in steps if (error := await _failure_of(step)) is not None]
    for error in {type(error): error for error in failures}.values():
        _tell(error)
    return SOON if any(not isinstance(error, TakenOver) and not is_forbidden(error) for error in failures) else EVERY


async def _failure_of(step: Callable[[], Awaitable[None]]) -> Exception | None:
    try:
        await step()
    except StorageUnavailable as error:
        if not isinstance(error, StorageBusy):
            raise
        return error
    except Exception as error:  # noqa: BLE001 (months that cannot be made must not keep others from being dropped)
        return error
    return None


def _tell(error: Exception) -> None:
    if isinstance(error, TakenOver):
        logger().warning("upkeep.taken_over")
    elif isinstance(error, StorageBusy):
        logger().info("upkeep.postponed", because="others hold the tables")
    elif is_forbidden(error):
        logger().error("upkeep.refused", fix="let the worker's database role own the tables; callbacks go on meanwhile")
    else:
        logger().error("upkeep.failed", exc_info=error)


async def _make_months(upkeep: Upkeep, receipts: Receipts) -> None:
    """The current month and those ahead; then the past ones that the default partition has rows of."""
    await _make_ahead(upkeep, receipts)
    current = partitions.month_of(upkeep.clock())
    last: Month | None = None
    while astray := await upkeep.do(partitions.astray, receipts, current):
        if astray == last:  # others put more there, who do not know the partition yet
            return
        last = astray
        await _make(upkeep, receipts, astray)


async def _make_ahead(upkeep: Upkeep, receipts: Receipts) -> None:
    month = partitions.month_of(upkeep.clock())
    there = set(await upkeep.do(partitions.months, receipts))
    for _ in range(AHEAD + 1):
        if month not in there:
            await _make(upkeep, receipts, month)
        month = month.next


async def _make(upkeep: Upkeep, receipts: Receipts, month: Month) -> None:
    """All of a month, slice by slice: whoever is cut short is gone on from by the next."""
    moved = 0
    while True:
        part = await upkeep.do(partitions.make, receipts, month)
        moved += part.rows
        if part.whole:
            break
    logger().info("partition.made", partition=month.partition_of(receipts), moved=moved)


async def _drop_months(upkeep: Upkeep, receipts: Receipts, oldest_kept: Month) -> None:
    for month in await upkeep.do(partitions.months, receipts):
        if month >= oldest_kept:
            return
        if receipts is ARCHIVE:
            await _retire_alone(upkeep, month)
            continue
        if receipts is FEED:
            await upkeep.do(changes.drop, month, upkeep.clock())
        else:
            await upkeep.do(partitions.drop, receipts, month)
        logger().info("partition.dropped", partition=month.partition_of(receipts))


async def _retire_alone(upkeep: Upkeep, month: Month) -> None:
    """What the month says is not taken back meanwhile: the checkpoint could not be told any more."""
    now, partition = upkeep.clock(), month.partition_of(ARCHIVE)
    evidence = await upkeep.do(leases.claim, leases.EVIDENCE, now, now + LEASE)
    if evidence is None or await upkeep.do(retractions.is_any_open):
        logger().info("partition.kept", partition=partition, because="something is being taken back")
    else:
        await _retire(replace(upkeep, also=evidence), month)
    if evidence is not None:
        await upkeep.do(leases.hold, evidence, upkeep.clock())


async def _retire(upkeep: Upkeep, month: Month) -> None:
    """Drops a month of the archive, once the checkpoint has what it said."""
    partition = month.partition_of(ARCHIVE)
    low, high = batches.first_id(month.begins_at), batches.first_id(month.next.begins_at)
    if await upkeep.do(batches.any_unapplied, low, high):
        logger().warning("partition.kept", partition=partition, because="a batch waits to be applied")
        return
    if await upkeep.do(quarantine.any_open, low, high):
        logger().warning("partition.kept", partition=partition, because="entries of it wait in quarantine")
        return
    absorbed = await _absorb(upkeep, low, high)
    if absorbed is None:
        logger().error("partition.kept", partition=partition, because="a batch cannot be replayed")
        return

    async def drop(connection: Connection) -> bool:
        await partitions.close(connection, ARCHIVE, month)
        if await batches.extent(connection, low, high) != absorbed:
            return False
        await checkpoints.note(connection, partition, month, absorbed.batches, upkeep.clock())
        await partitions.drop(connection, ARCHIVE, month)
        return True

    if await upkeep.do(drop):
        logger().info("partition.dropped", partition=partition, batches=absorbed.batches)
    else:
        logger().info("partition.kept", partition=partition, because="a batch came late, or was applied anew")


async def _absorb(upkeep: Upkeep, low: uuid.UUID, high: uuid.UUID) -> Extent | None:
    """Merges what these batches said into the checkpoint; returns what they were, or None if one of them cannot be
    replayed, or says today what it did not say then. Done twice, it changes nothing."""
    absorbed, after = Extent(), uuid.UUID(int=low.int - 1)
    while True:
        page = await upkeep.do(batches.applied_after, after, high)
        if not page:
            return absorbed
        said = await upkeep.do(
            _counting, [await asyncio.to_thread(testimony_of, one, upkeep.rules) for one in page], page
        )
        if any(one.unclear for one in said):
            return None
        if await upkeep.do(suppressions.any_unknown, [fact for one in said for fact in one.facts]):
            return None
        await _merge(upkeep, said)
        absorbed, after = absorbed.with_more(page), page[-1].received.id


async def _counting(connection: Connection, said: list[Testimony], page: list[Applied]) -> list[Testimony]:
    """What these batches say, without what was taken back of it."""
    ids = [batch.received.id for batch in page]
    withdrawn = await withdrawals.of_evidence(connection, ids)
    if not withdrawn:
        return said
    return [
        one._replace(facts=[fact for fact in one.facts if (batch_id, fact) not in withdrawn])
        for batch_id, one in zip(ids, said, strict=True)
    ]


async def _merge(upkeep: Upkeep, said: list[Testimony]) -> None:
    facts = [fact for one in said for fact in one.facts]
    waiting = [fact for one in said for fact in one.waiting]
    for start in range(0, max(len(facts), len(waiting)), ABSORBED_AT_ONCE):
        some = slice(start, start + ABSORBED_AT_ONCE)
        await upkeep.do(checkpoints.absorb, facts[some], waiting[some], upkeep.rules.policy)
