"""Owns how a run becomes a plan: every slot on which the two sides differ, with both sides' evidence and what would
settle it, written down page by page. Nothing else moves.

Killed at any point, the next worker goes on behind the last page. At the end the guards say whether it may be carried
out without a person.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import aclosing
from datetime import datetime
from typing import Any

from service.domain.corrections import sayable
from service.domain.drift import kind_of, only_ours, reason_of
from service.domain.runs import GUARDS, LineState, holds, holds_all
from service.flows.underway import SCHEDULE, Progress, TakenOver, Underway, rest, rested
from service.store import access, differences, drift, proofs, reconciliations
from service.store.access import Deed
from service.store.database import Connection
from service.store.differences import Line
from service.store.drift import Sides
from service.store.outbox import Scope
from service.telemetry import logger


async def compare_list(underway: Underway, progress: Progress | None) -> None:
    """Writes down every difference between the list and the ledger of what Kahuna holds."""
    run, database, page = underway.run, underway.means.database, underway.means.page
    counts, done = Counter(run.counts or {}), run.position
    async with database.snapshot("suppressions", "corrections") as reading:
        compared = await drift.size(reading, underway.scope())
        async with aclosing(drift.candidates(reading, underway.scope(), done, page)) as pages:
            async for addresses in pages:
                counts += await underway.do(_page, underway, addresses, Counter(counts))
                if progress is not None:
                    progress("differences", counts["differences"])
    await underway.do(_note_size, underway, compared)


async def compare_some(underway: Underway, addresses: Sequence[str]) -> None:
    """The same for these addresses alone, in the order of their keys."""
    counts = Counter(underway.run.counts or {})
    page = underway.means.page
    for start in range(0, len(addresses), page):
        counts += await underway.do(_page, underway, addresses[start : start + page], Counter(counts))
    await underway.do(_note_size, underway, len(addresses))


async def _note_size(connection: Connection, underway: Underway, compared: int) -> None:
    await reconciliations.write(connection, underway.run, {"compared": compared})


async def _page(
    connection: Connection, underway: Underway, addresses: Sequence[str], before: Counter[str]
) -> Counter[str]:
    """Writes the differences of these addresses down; returns what was counted."""
    scope, counts = underway.scope(), Counter[str]()
    found = await drift.sides(connection, scope, addresses)
    await differences.add(connection, underway.run.id, list(_lines(scope, found, counts)))
    # Whoever takes the run over goes on from here; that it came so far shows that it is worth another try.
    far = {"position": addresses[-1], "counts": dict(before + counts), "attempts": 0}
    await reconciliations.write(connection, underway.run, far)
    return counts


def _lines(scope: Scope, found: Sequence[Sides], counts: Counter[str]) -> Iterator[Line]:
    for sides in found:
        line = line_of(scope, sides)
        if line is not None:
            counts.update(("differences", line.kind, line.state))
            yield line


def line_of(scope: Scope, sides: Sides) -> Line | None:
    """The difference on a slot, with what would settle it; None if there is none."""
    state = sides.state
    kind = kind_of(state.needed, sides.mine, state.slot)
    if kind is None:
        return None
    standing, why, settles = _standing_of(scope, sides)
    action, at = ("suppress", state.slot.held.stop_at) if state.needed is None else state.needed
    reason = reason_of(state.needed, sides.mine, state.name)
    evidence = _evidence(sides, standing)
    return Line(state.address, state.name, kind, action, at, evidence, standing, reason, why, settles)


def _standing_of(scope: Scope, sides: Sides) -> tuple[LineState, str | None, int | None]:
    """Whether the difference can be settled, is on its way, or is beyond what Kahuna takes or can be told; why; and
    the correction that shows it."""
    state = sides.state
    if state.needed is None:
        accepted = [o.correction for o in sides.outbox if o.state == "sent"]
        return ("unsupported", "taken-back", None) if only_ours(state.slot.held, accepted) else ("proposed", None, None)
    if not sayable(scope.channel, state.needed.action):
        return "unsupported", "no-words-for-it", _newest(sides, "unsupported")
    if state.refused:
        aside = _newest(sides, "discarded")
        if aside is not None and aside > (_newest(sides, "rejected") or 0):
            return "declined", "discarded", aside
        return "refused", "refused-by-kahuna", _newest(sides, "rejected")
    if state.pending is not None and state.pending.correction == state.needed:
        return "on_its_way", None, state.pending.id
    return "proposed", None, None


def _newest(sides: Sides, state: str) -> int | None:
    return max((o.id for o in sides.outbox if o.state == state), default=None)


def _evidence(sides: Sides, standing: LineState) -> dict[str, Any]:
    slot = sides.state.slot
    return {
        "here": [cause._asdict() | origin for cause, origin in zip(sides.mine, sides.origins, strict=True)],
        "there": {"held": slot.held._asdict(), "perhaps": slot.sent._asdict()},
        "correction": standing,
    }


async def thin(underway: Underway) -> None:
    """Runs that newer ones have made old keep only the lines that were decided, recorded something, or wait: a schedule
    would write the same ones down for ever."""
    kept, page = max(underway.means.kept_runs - 1, 0), underway.means.page
    while await underway.do(differences.thin, underway.run, kept, page):
        pass


async def conclude(underway: Underway, *, whole: bool) -> None:
    """The plan is whole: the guards judge it, earlier plans hear of it, and the run says where it stands. `whole`: all
    of the list was compared."""
    held = await underway.do(_conclude, underway, whole=whole)
    run = underway.run
    if run.auto_approve and held:
        logger().warning("reconciliation.held", run_id=str(run.id), guards=[one["guard"] for one in held])


async def _conclude(connection: Connection, underway: Underway, *, whole: bool) -> list[dict[str, Any]]:
    run, now = underway.run, underway.means.clock()
    row = await reconciliations.lock(connection, run.id)
    if row is None:
        raise TakenOver("Somebody has ended this run.")
    lines = await differences.counts(connection, run.id)
    permits, before = await differences.held(connection, run)
    found = holds(underway.means.guards, lines.get("proposed", 0), row.compared or 0, permits, before)
    told = [one._asdict() | {"says": GUARDS[one.guard]} for one in found]
    values: dict[str, Any] = {"planned_at": now, "held_by": told if run.auto_approve else None}
    values |= {"complete_at": now} if whole else {}
    if run.auto_approve and not holds_all(found) and await _approve_harmless(connection, underway, now):
        values |= {"approved_at": now, "decided_by": run.actor}
        lines = await differences.counts(connection, run.id)
    approved = "approved_at" in values
    await reconciliations.write(connection, run, values | rested(lines, row.counts, now, approved=approved))
    if whole:
        # Since the first page, whoever wrote it down: what came later, no page of before has seen.
        await _tell_earlier(connection, underway, row.started_at)
    return told


async def _approve_harmless(connection: Connection, underway: Underway, now: datetime) -> int:
    """What the guards let pass is approved in the name of who asked, and says so."""
    run = underway.run
    count = await differences.approve_harmless(connection, run, now)
    if count:
        detail = {"run_id": str(run.id), "lines": count, "by_itself": True}
        deed = Deed(run.actor, "reconciliation.approved", run.namespace, run.channel, detail=detail)
        await access.write_down(connection, deed, now)
    return count


async def _tell_earlier(connection: Connection, underway: Underway, since: datetime) -> None:
    """What earlier plans still had open and is not found any more is closed by this one. Plans that a schedule made
    and nobody looked at make way."""
    run, now = underway.run, underway.means.clock()
    for run_id in await proofs.close_gone(connection, run, since, now):
        earlier = await reconciliations.lock(connection, run_id)
        if earlier is not None and earlier.state == "applied":
            await rest(connection, earlier, now)
    if run.actor == SCHEDULE:
        await reconciliations.abandon_plans(connection, run, now)
