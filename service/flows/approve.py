"""Owns the decision on a plan, and the carrying out of what was approved.

A decision only marks lines. It is written down as a whole, with its row of the audit log, in the transaction that marks
the first of them; if there are more, a worker marks those part by part. Then it carries them out page by page:
each slot is looked at again under its locks, and what is no longer so is moot. What is recorded here has a row of the
audit log that states it, in the transaction that records it.
"""

import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

from service.domain.corrections import slots_of
from service.domain.drift import direction_of, still_meant
from service.domain.facts import Fact
from service.domain.runs import DECIDABLE, RUN_STATES, LineState
from service.errors import Conflict, NotFound
from service.flows.underway import Progress, Underway, rest
from service.store import access, differences, outbox, reconciliations, suppressions
from service.store.access import Deed
from service.store.database import Connection, Database, out_of_turn, until_settled
from service.store.differences import Selection, Settled
from service.store.outbox import Scope, SlotState
from service.store.suppressions import Entry, Provenance
from service.telemetry import logger

AT_ONCE: Final = 10_000
"""Lines that one transaction marks: a fraction of a second."""


CARRIED_AT_ONCE: Final = 500
"""Lines that one transaction carries out at most: callbacks about these addresses wait as long."""


class Verdict(NamedTuple):
    """Who decides what about which lines, and a note for the audit log."""

    actor: str
    decision: LineState
    chosen: Selection = Selection()
    note: str | None = None


class Decided(NamedTuple):
    """How many lines were decided, and how those stand that were named one by one and could not be. `going_on`: a
    worker still marks the most of them."""

    lines: int
    passed_over: dict[tuple[str, str], str | None]
    going_on: bool = False


async def decide(
    database: Database,
    run_id: uuid.UUID,
    verdict: Verdict,
    clock: Callable[[], datetime],
    allowed_namespace: str | None,
    at_once: int = AT_ONCE,
) -> Decided:
    """Approves (`approved`) or declines (`declined`) proposed lines of a plan. Approved ones are a worker's from here.
    A run that is not planned yet can be declined as a whole. Conflict `being-decided` while a decision about more than
    `at_once` lines goes on."""
    now = clock()

    async def transaction(connection: Connection) -> Decided:
        row = await locked(connection, run_id, allowed_namespace)
        if verdict.decision == "declined" and row.state in ("queued", "running"):
            await _call_off(connection, row, verdict, now)
            return Decided(0, {})
        _refuse_unless_plan(row)
        before = await _passed_over(connection, run_id, verdict.chosen)
        lines = await differences.proposed(connection, run_id, verdict.chosen)
        deciding = _deciding(verdict, lines, now)
        after = await _mark(connection, run_id, deciding, at_once)
        if lines or await _goes_on(connection, row, verdict):
            await _note(connection, row, verdict, lines, after, now)
        return Decided(lines, before, going_on=after is not None)

    decided = await until_settled(database, transaction)
    logger().info(f"reconciliation.{_WORDS[verdict.decision]}", run_id=str(run_id), lines=decided.lines)
    return decided


_WORDS: Final[Mapping[str, str]] = {"approved": "approved", "declined": "rejected"}


async def locked(connection: Connection, run_id: uuid.UUID, allowed_namespace: str | None) -> Any:
    """The row of a run, locked; NotFound if there is none in this namespace."""
    row = await reconciliations.lock(connection, run_id)
    if row is None or allowed_namespace not in (None, row.namespace):
        raise NotFound("There is no such reconciliation; list them with GET /v1/admin/reconciliations.")
    return row


def _refuse_unless_plan(row: Any) -> None:
    if row.deciding is not None:
        said = f"{row.deciding['done']} of {row.deciding['lines']} lines are {row.deciding['decision']} so far"
        raise Conflict(f"A decision about this run goes on ({said}); ask again when it is through.", "being-decided")
    if row.state in DECIDABLE and row.planned_at is not None:
        return
    meaning = RUN_STATES[row.state]
    raise Conflict(f"This run is {row.state} ({meaning}); only lines of a plan can be decided.", "no-plan")


async def _goes_on(connection: Connection, row: Any, verdict: Verdict) -> bool:
    """Whether this has a run carried out further that failed in the middle of what was approved."""
    if row.state != "failed" or verdict.decision != "approved":
        return False
    return bool((await differences.counts(connection, row.id)).get("approved"))


async def _call_off(connection: Connection, row: Any, verdict: Verdict, now: datetime) -> None:
    """Ends a run before it is a plan: a worker that has it finds the fence raised."""
    values = {"state": "rejected", "fence": row.fence + 1, "lease_until": None, "finished_at": now}
    await reconciliations.change(connection, row.id, values | {"decided_by": verdict.actor, "note": verdict.note})
    await _write_down(connection, row, verdict, 0, now)


def _deciding(verdict: Verdict, lines: int, now: datetime) -> dict[str, Any]:
    """A decision as it is written down with its run: whoever goes on with it needs nothing else."""
    chosen = {name: value for name, value in verdict.chosen._asdict().items() if value is not None}
    what = {"decision": verdict.decision, "actor": verdict.actor, "at": now.isoformat(), "chosen": chosen}
    return what | {"lines": lines, "done": 0, "after": ["", ""]}


async def _mark(
    connection: Connection, run_id: uuid.UUID, deciding: Mapping[str, Any], at_once: int
) -> dict[str, Any] | None:
    """Marks the next lines of a decision; returns how it goes on, None if it is through."""
    chosen = dict(deciding["chosen"])
    if "lines" in chosen:
        chosen["lines"] = tuple((address, slot) for address, slot in chosen["lines"])
    decided = differences.Decided(deciding["decision"], deciding["actor"], datetime.fromisoformat(deciding["at"]))
    address, slot = deciding["after"]
    some = differences.Part((address, slot), at_once)
    part = await differences.decide(connection, run_id, Selection(**chosen), decided, some)
    done = deciding["done"] + part.lines
    if part.lines < at_once or done >= deciding["lines"]:
        return None
    return {**deciding, "done": done, "after": list(part.after)}


async def decide_rest(underway: Underway, progress: Progress | None) -> None:
    """Goes on with a decision about many lines, to its end: each part is a transaction that holds nothing but the run
    and these lines."""
    while (done := await underway.do(_decide_more, underway)) is not None:
        if progress is not None:
            progress("decided", done)


async def _decide_more(connection: Connection, underway: Underway) -> int | None:
    row = await reconciliations.lock(connection, underway.run.id)
    if row is None or row.deciding is None:
        return None
    deciding = await _mark(connection, row.id, row.deciding, underway.means.decided_at_once)
    await reconciliations.change(connection, row.id, {"deciding": deciding, "attempts": 0})
    if deciding is not None:
        return int(deciding["done"])
    await rest(connection, row, underway.means.clock())
    verb, lines = _WORDS[row.deciding["decision"]], row.deciding["lines"]
    logger().info("reconciliation.decision_through", run_id=str(row.id), decision=verb, lines=lines)
    return None


async def _note(
    connection: Connection, row: Any, verdict: Verdict, count: int, deciding: dict[str, Any] | None, now: datetime
) -> None:
    values: dict[str, Any] = {"decided_by": verdict.actor, "note": verdict.note or row.note, "deciding": deciding}
    if verdict.decision == "approved":
        values |= {"approved_at": row.approved_at or now, "attempts": 0}
        values |= {"error": None} if row.state == "failed" else {}  # what else it says stays true
    await reconciliations.change(connection, row.id, values)
    if row.state != "approved":
        # One that is being carried out is brought to rest by who does it.
        await rest(connection, await reconciliations.lock(connection, row.id), now)
    await _write_down(connection, row, verdict, count, now)


async def _write_down(connection: Connection, row: Any, verdict: Verdict, count: int, now: datetime) -> None:
    chosen = {name: value for name, value in verdict.chosen._asdict().items() if value is not None}
    detail = {"run_id": str(row.id), "lines": count, "chosen": chosen, "note": verdict.note}
    action = f"reconciliation.{_WORDS[verdict.decision]}"
    await access.write_down(connection, Deed(verdict.actor, action, row.namespace, row.channel, detail=detail), now)


async def _passed_over(
    connection: Connection, run_id: uuid.UUID, chosen: Selection
) -> dict[tuple[str, str], str | None]:
    """The lines that were named and wait for no decision, with how they stand; None: the run has no such line."""
    if chosen.lines is None:
        return {}
    known = await differences.standing(connection, run_id, chosen.lines)
    return {key: known.get(key) for key in chosen.lines if known.get(key) != "proposed"}


async def carry_out(underway: Underway, progress: Progress | None) -> None:
    """Carries the approved lines out, page by page, and brings the run to rest."""
    after, done = ("", ""), Counter[str]()
    while True:
        page = await underway.do(_page, underway, after)
        if page is None:
            break
        after, counts = page
        done += counts
        if progress is not None:
            progress("carried out", sum(done.values()))
    state = await underway.do(_rest, underway)
    logger().info("reconciliation.carried_out", run_id=str(underway.run.id), state=state, **done)


async def _rest(connection: Connection, underway: Underway) -> str:
    row = await reconciliations.lock(connection, underway.run.id)
    return await rest(connection, row, underway.means.clock())


async def _page(
    connection: Connection, underway: Underway, after: tuple[str, str]
) -> tuple[tuple[str, str], Counter[str]] | None:
    """Some lines, in the order of their keys; the last of them, and what came of them; None if there were none."""
    run, scope = underway.run, underway.scope()
    lines = await differences.approved(connection, run.id, after, min(underway.means.page, CARRIED_AT_ONCE))
    if not lines:
        return None
    found = await outbox.examine(connection, scope, {line.address for line in lines}, again=True)
    states = {(state.address, state.name): state for state in found}
    here = [line for line in lines if direction_of(line.kind) == "here"]
    there = [line for line in lines if direction_of(line.kind) == "there"]
    settled = await _tell(connection, scope, there, states) + await _record(connection, underway, here, states)
    await differences.settle(connection, run.id, settled, scope.now)
    await reconciliations.write(connection, run, {"attempts": 0})
    return (lines[-1].address, lines[-1].slot), Counter(one.state for one in settled)


async def _tell(
    connection: Connection, scope: Scope, lines: Sequence[Any], states: Mapping[tuple[str, str], SlotState]
) -> list[Settled]:
    """Writes the corrections that are still owed."""
    judged = {(line.address, line.slot): _why_not(scope, line, states) for line in lines}
    owed = [states[key] for key, why in judged.items() if why is None]
    await outbox.write(connection, scope, owed)
    pending = await outbox.pending_of(connection, scope, {state.address for state in owed}) if owed else {}
    return [
        Settled(*key, "applied", None, pending.get(key)) if why is None else Settled(*key, *why)
        for key, why in judged.items()
    ]


def _why_not(scope: Scope, line: Any, states: Mapping[tuple[str, str], SlotState]) -> tuple[LineState, str] | None:
    """Why a correction is not to be written after all; None if it is."""
    state = states.get((line.address, line.slot))
    if state is None or state.needed is None:
        return "moot", "settled-meanwhile"
    if not still_meant(scope.channel, line.action, line.occurred_at, state.needed):
        return "moot", "changed-meanwhile"
    return ("refused", "refused-by-kahuna") if state.refused else None


async def _record(
    connection: Connection, underway: Underway, lines: Sequence[Any], states: Mapping[tuple[str, str], SlotState]
) -> list[Settled]:
    """Makes facts of what only Kahuna knew, a row of the audit log for each who approved some of it."""
    settled = [
        Settled(line.address, line.slot, "moot", "settled-meanwhile")
        for line in lines
        if _known(underway.scope(), line, states)
    ]
    moot = {(one.address, one.slot) for one in settled}
    by_actor: defaultdict[str, list[Any]] = defaultdict(list)
    for line in lines:
        if (line.address, line.slot) not in moot:
            by_actor[line.decided_by or underway.run.actor].append(line)
    for actor, approved in by_actor.items():
        audit_id = await _make_facts(connection, underway, actor, approved)
        settled += [Settled(line.address, line.slot, "proved", "recorded", audit_id=audit_id) for line in approved]
    return settled


def _known(scope: Scope, line: Any, states: Mapping[tuple[str, str], SlotState]) -> bool:
    """Whether somebody has said something about this slot since the plan was made."""
    state = states.get((line.address, line.slot))
    if state is None:
        return False
    mine = slots_of(scope.channel, state.causes).get(line.slot, [])
    return any(cause.decided is not None for cause in mine)


async def _make_facts(connection: Connection, underway: Underway, actor: str, lines: Sequence[Any]) -> uuid.UUID:
    """Kahuna says so, and knows it: the facts are its own, so it is never told them back."""
    run, scope = underway.run, underway.scope()
    stated = [
        Fact(run.namespace, run.channel, line.address, line.slot, "suppress", line.occurred_at, "kahuna")
        for line in lines
    ]
    detail = {"run_id": str(run.id), "lines": len(lines)}
    deed = Deed(actor, "reconciliation.recorded", run.namespace, run.channel, detail=detail, facts=stated)
    audit_id = await access.write_down(connection, deed, scope.now)
    provenance = Provenance(run.namespace, run.channel, "kahuna", "reconciliation", scope.now, audit_id=audit_id)
    entries = [Entry(fact.address, fact.address, fact.reason, fact.action, fact.occurred_at) for fact in stated]
    # What another approved, and what is told Kahuna, has been written before.
    async with out_of_turn(connection):
        await suppressions.apply(connection, entries, provenance, scope.policy, locked=True)
    await outbox.owe(connection, scope, {fact.address for fact in stated})
    return audit_id
