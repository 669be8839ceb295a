"""Owns taking back what an import, a surge or a run has said: never a clear, so a stop that comes late still wins.

Whoever asks is answered at once; one worker at a time carries retractions out, under the lease `evidence`. What is in
the way of one is noted with it, and it is gone on with later.
"""

import uuid
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Final

from service.errors import Conflict, NotFound, StorageBusy, StorageUnavailable
from service.flows.ingest import Rules
from service.flows.surges import only_of
from service.flows.taking_back import AT_ONCE, LEASE, Counts, Course, NotYet, Progress, carry_out
from service.flows.underway import TakenOver
from service.flows.words import words_of
from service.store import access, imports, leases, retractions, withdrawals
from service.store import surges as surge_store
from service.store.database import Connection, Database
from service.store.retractions import Evidence, Retraction
from service.telemetry import logger, told

SILENT: Final = timedelta(minutes=15)
"""After which an import of which nothing more came is taken to have died."""

LONGEST_PAUSE: Final = timedelta(minutes=15)


async def request(connection: Connection, asked: Retraction, evidence: Evidence | None, now: datetime) -> uuid.UUID:
    """Has the word of this evidence taken back by the worker; returns the retraction's id. The evidence of an import or
    a surge is known: None. Asked for the same again, it is the one of before. In the caller's transaction. Conflict
    `batch-gone` if a batch has left the archive: what it said can be told from nothing else."""
    before = await retractions.create(connection, asked, now)
    if before is not None:
        return before
    if evidence is not None:
        await retractions.add_evidence(connection, asked.id, evidence)
    elif asked.kind == "import":
        await retractions.add_chunks(connection, asked)
    else:
        await retractions.add_surge(connection, asked)
    if await retractions.missing(connection, asked.id):
        raise Conflict(_GONE, "batch-gone")
    detail = {"retraction_id": str(asked.id), "of": str(asked.of), "reason": asked.reason}
    deed = access.Deed(asked.actor, f"{asked.kind}.reverted", asked.namespace, asked.channel, detail=detail)
    await access.write_down(connection, deed, now)
    logger().info("retraction.requested", retraction_id=str(asked.id), kind=asked.kind, of=str(asked.of))
    return asked.id


_GONE: Final = (
    "The archive does not keep what was said any more, so it cannot be taken back as one; correct single addresses "
    "with a PUT or a reactivate."
)


async def request_import(
    connection: Connection, import_id: uuid.UUID, actor: str, reason: str, allowed_namespace: str | None, now: datetime
) -> uuid.UUID:
    """The same for an import. NotFound if there is none; Conflict `import-running` while its lines still come in."""
    row = await imports.one(connection, import_id)
    if row is None or allowed_namespace not in (None, row.namespace):
        raise NotFound("There is no such import; list them with GET /v1/admin/imports.")
    asked = Retraction(uuid.uuid4(), row.namespace, row.channel, "import", import_id, actor, reason)
    extent = await imports.chunks_of(connection, row.namespace, import_id)
    if row.state == "running" and max(extent.last_at or row.begun_at, row.begun_at) > now - SILENT:
        still = "This import still takes lines in; wait until it has ended. One that was killed has after 15 minutes."
        raise Conflict(still, "import-running")
    if row.counts.get("accepted") and not extent.chunks:
        raise Conflict(_GONE, "batch-gone")
    return await request(connection, asked, None, now)


async def request_surge(
    connection: Connection, surge_id: uuid.UUID, actor: str, reason: str, allowed_namespace: str | None, now: datetime
) -> uuid.UUID:
    """The same for a surge: its stops of that reason (and domain) alone. A surge that was kept stays decided."""
    row = await surge_store.lock(connection, surge_id)
    if row is None or allowed_namespace not in (None, row.namespace):
        raise NotFound("There is no such surge; list them with GET /v1/admin/surges.")
    if row.state == "kept":
        raise Conflict("This surge is kept already; a decision stands.", "already-decided")
    asked = Retraction(uuid.uuid4(), row.namespace, row.channel, "surge", surge_id, actor, reason, only_of(row))
    if row.state == "flagged":
        await surge_store.decide(connection, surge_id, "reverted", actor, reason, now)
    return await request(connection, asked, None, now)


async def run_next(
    database: Database,
    rules: Rules,
    clock: Callable[[], datetime],
    progress: Progress = lambda _: None,
    retraction_id: uuid.UUID | None = None,
) -> Retraction | None:
    """Carries out the retraction that has waited longest, or the one given; returns it. None if there is none, or
    another worker is at one. What cannot go on now is met again later, ever more rarely."""
    async with database.read() as connection:
        if retraction_id is None and not await retractions.is_any_due(connection, clock()):
            return None
    async with database.begin() as connection:
        lease = await leases.claim(connection, leases.EVIDENCE, clock(), clock() + LEASE)
        found = None if lease is None else await retractions.take_up(connection, clock(), retraction_id)
    if lease is None:
        return None
    try:
        if found is None:
            return None
        await _attempt(Course(database, rules, clock, lease, progress, found))
        return found.retraction
    finally:
        async with database.begin() as connection:
            await leases.hold(connection, lease, clock())


async def preview(
    database: Database, rules: Rules, ask: Callable[[Connection], Awaitable[uuid.UUID]], progress: Progress
) -> Counts:
    """What a request would come to, as far as can be told beforehand: `evidence`, and `facts` that stand on it now.
    Nothing is written."""
    retraction, evidence = await _only_asked(database, ask)
    counts: Counts = Counter()
    for start in range(0, len(evidence), AT_ONCE):
        some = evidence[start : start + AT_ONCE]
        async with database.read() as connection:
            words = await words_of(connection, retraction, some, rules)
            read = {word.evidence for word in words}
            for left in some:  # of large batches, only as many as memory should hold come at a time
                words += [] if left[0] in read else await words_of(connection, retraction, [left], rules)
            for one in words:
                counts["facts"] += await withdrawals.standing(connection, retraction, one.said)
        counts["evidence"] += len(some)
        progress(counts)
    return counts


async def _only_asked(
    database: Database, ask: Callable[[Connection], Awaitable[uuid.UUID]]
) -> tuple[Retraction, list[tuple[uuid.UUID, bool]]]:
    """What a request is about; the request itself is rolled back."""

    async def asked(connection: Connection) -> None:
        row = await retractions.one(connection, await ask(connection))
        retraction = retractions.as_retraction(row)
        raise _Undone(retraction, await retractions.evidence_after(connection, retraction.id, None, 2**31))

    try:
        async with database.begin() as connection:
            await asked(connection)
    except _Undone as undone:
        return undone.retraction, undone.evidence
    raise AssertionError("unreachable")


class _Undone(Exception):
    """What a request would be about, on its way out of the transaction that it rolls back."""

    def __init__(self, retraction: Retraction, evidence: list[tuple[uuid.UUID, bool]]) -> None:
        super().__init__("rolled back, as was asked")
        self.retraction = retraction
        self.evidence = evidence


async def _attempt(course: Course) -> None:
    retraction_id = course.retraction.id
    ids = {"retraction_id": str(retraction_id), "kind": course.retraction.kind}
    try:
        await carry_out(course)
    except TakenOver:
        logger().warning("retraction.taken_over", **ids)
    except Exception as error:
        if isinstance(error, StorageUnavailable) and not isinstance(error, StorageBusy):
            raise
        async with course.database.begin() as connection:
            tried = await retractions.attempts(connection, retraction_id)
            pause = min(timedelta(seconds=2.0 ** min(tried, 20)), LONGEST_PAUSE)
            await retractions.postpone(connection, retraction_id, told(error), course.clock() + pause)
        if isinstance(error, NotYet | StorageBusy):
            logger().info("retraction.postponed", **ids, because=error.slug)
        else:
            logger().error("retraction.failed", **ids, exc_info=error)
    else:
        logger().info("retraction.finished", **ids, **course.counts)
