"""Owns the taking back of a run: the facts that it recorded here are retracted by their evidence, opt-ins of it that
are not sent yet are withdrawn, and the rest of its plan is declined.

A stop that it had Kahuna told stands: it follows from the list, not from the run. What Kahuna accepted and cannot be
told back is counted in the outcome.
"""

import uuid
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any, Final

from service.domain.runs import REVERTIBLE, RUN_STATES
from service.errors import Conflict, NotFound
from service.flows import retract, sources
from service.flows.approve import locked
from service.flows.underway import NotYet, Progress, Underway
from service.store import access, differences, outbox, reconciliations, retractions, suppressions
from service.store.access import Deed
from service.store.database import Connection, Database, until_settled
from service.store.differences import Part
from service.store.retractions import Evidence, Retraction
from service.telemetry import logger

PAGE: Final = 1000
"""Corrections that one transaction withdraws."""


async def ask(
    database: Database,
    run_id: uuid.UUID,
    actor: str,
    note: str | None,
    clock: Callable[[], datetime],
    allowed_namespace: str | None,
) -> None:
    """Has a worker take back what a run recorded; whatever of it is not carried out yet never will be."""
    now = clock()

    async def transaction(connection: Connection) -> None:
        row = await locked(connection, run_id, allowed_namespace)
        _refuse_unless_revertible(row)
        await differences.decline_rest(connection, run_id, actor, now, Part())
        # What was said when it was approved stays beside what is said now.
        values = {"state": "reverting", "reverted_by": actor, "revert_note": note, "attempts": 0, "lease_until": None}
        # A worker that is at it finds the fence raised.
        more = {"fence": row.fence + 1, "finished_at": None, "error": None, "deciding": None}
        outcome = await _ask_to_retract(connection, row, actor, note, now)
        await reconciliations.change(connection, run_id, values | more | {"outcome": outcome})
        detail: dict[str, Any] = {"run_id": str(run_id), "note": note}
        if row.decided_by is not None:
            detail["was"] = {"decided_by": row.decided_by, "note": row.note}
        if row.deciding is not None:
            detail["decision_cut_short"] = {name: row.deciding[name] for name in ("decision", "lines", "done")}
        deed = Deed(actor, "reconciliation.reverted", row.namespace, row.channel, detail=detail)
        await access.write_down(connection, deed, now)

    await until_settled(database, transaction)
    logger().info("reconciliation.revert_asked", run_id=str(run_id))


async def preview(database: Database, run_id: uuid.UUID, allowed_namespace: str | None) -> differences.Undone:
    """What taking a run back would do now; it changes nothing. Conflict `not-revertible`."""
    async with database.read() as connection:
        row = await reconciliations.one(connection, run_id)
        if row is None or allowed_namespace not in (None, row.namespace):
            raise NotFound("There is no such reconciliation; list them with GET /v1/admin/reconciliations.")
        _refuse_unless_revertible(row)
        return await differences.would_revert(connection, run_id)


def _refuse_unless_revertible(row: Any) -> None:
    if row.state not in REVERTIBLE:
        meaning = RUN_STATES[row.state]
        raise Conflict(f"This run is {row.state} ({meaning}); there is nothing to take back.", "not-revertible")


async def _ask_to_retract(
    connection: Connection, row: Any, actor: str, note: str | None, now: datetime
) -> dict[str, Any]:
    """Has the facts of the run taken back, by the batches and the rows of the audit log that state them."""
    evidence = Evidence(await sources.batches_of(connection, row.id), await differences.evidence_of(connection, row.id))
    if not evidence.batches and not evidence.audits:
        return {}
    asked = Retraction(uuid.uuid4(), row.namespace, row.channel, "run", row.id, actor, note or "run reverted")
    return {"retraction_id": str(await retract.request(connection, asked, evidence, now))}


async def carry_out(underway: Underway, progress: Progress | None) -> None:
    """Takes it back. Cut short anywhere, the next worker does what is left."""
    await _part_by_part(underway, _decline_some)
    withdrawn = await _withdraw(underway)
    retracted = await _retract(underway, progress)
    outcome = {"withdrawn": withdrawn} | retracted
    lines = await _part_by_part(underway, _revert_some)
    await underway.do(_conclude, underway, outcome)
    logger().info("reconciliation.reverted", run_id=str(underway.run.id), lines=lines, **outcome)


async def _part_by_part(underway: Underway, work: Callable[[Connection, Underway, Part], Awaitable[Part]]) -> int:
    """Goes over all lines, each part in a transaction of its own; returns how many it changed."""
    size, total = underway.means.decided_at_once, 0
    part = Part(lines=size)
    while True:
        part = await underway.do(work, underway, part)
        total += part.lines
        if part.lines < size:
            return total
        part = part._replace(lines=size)


async def _decline_some(connection: Connection, underway: Underway, part: Part) -> Part:
    row = await reconciliations.lock(connection, underway.run.id)
    actor = underway.run.actor if row is None or row.reverted_by is None else row.reverted_by
    return await differences.decline_rest(connection, underway.run.id, actor, underway.means.clock(), part)


async def _revert_some(connection: Connection, underway: Underway, part: Part) -> Part:
    return await differences.revert(connection, underway.run.id, underway.means.clock(), part)


async def _withdraw(underway: Underway) -> int:
    total = 0
    while True:
        count = await underway.do(_withdraw_some, underway)
        if not count:
            return total
        total += count


async def _withdraw_some(connection: Connection, underway: Underway) -> int:
    scope = underway.scope()
    lines = await differences.unsent_opt_ins(connection, underway.run.id, PAGE)
    if not lines:
        return 0
    await suppressions.lock(connection, scope.namespace, scope.channel, sorted({line.address for line in lines}))
    ids = {line.correction_id for line in lines}
    withdrawn = await outbox.withdraw(connection, ids, "run-reverted", scope.now)
    await differences.mark_withdrawn(connection, underway.run.id, withdrawn, scope.now)
    return len(withdrawn)


async def _retract(underway: Underway, progress: Progress | None) -> dict[str, Any]:
    """Waits for the retraction that was asked for, and lends a hand with it; NotYet if another is at one."""
    means, named = underway.means, (underway.run.outcome or {}).get("retraction_id")
    if named is None:
        return {}

    def tell(counts: Counter[str]) -> None:
        if progress is not None:
            progress("facts taken back", counts["facts"])

    async with means.database.read() as connection:
        row = await retractions.one(connection, uuid.UUID(named))
    # What was in the way of it is met again when that is due, not each time somebody looks.
    if row is not None and row.next_attempt_at <= means.clock():
        await retract.run_next(means.database, means.rules, means.clock, tell, row.id)
    async with means.database.read() as connection:
        row = await retractions.one(connection, uuid.UUID(named))
    if row is None or row.state != "done":
        raise NotYet("Facts of it are being taken back, or others are first.")
    return {"retraction_id": named} | {name: count for name, count in row.counts.items() if count}


async def _conclude(connection: Connection, underway: Underway, outcome: dict[str, Any]) -> None:
    run, now = underway.run, underway.means.clock()
    lines = await differences.counts(connection, run.id)
    stands = {"told_and_stands": lines.get("proved", 0), "on_the_way": lines.get("applied", 0)}
    values = {"state": "reverted", "finished_at": now, "closed_at": now, "lease_until": None}
    await reconciliations.write(connection, run, values | {"outcome": outcome | stands})
