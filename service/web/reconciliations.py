"""Owns the reconciliations in HTTP words: asked for, shown, decided as a whole or line by line, taken back, told."""

import uuid
from datetime import datetime
from typing import Annotated, Any, Final, Literal

import msgspec
from starlette.responses import Response

from service.domain.addresses import Channel, ImpossibleAddress, normalise
from service.domain.drift import Direction, Kind, direction_of
from service.domain.runs import LineState, RunState
from service.errors import NotFound, Unprocessable
from service.flows import approve, reconcile, revert
from service.flows.approve import Verdict
from service.store import differences, reconciliations
from service.store.differences import Selection
from service.store.reconciliations import Place, Run
from service.web import report
from service.web.asking import Walk, cursor_for, id_in, in_utc, place_at, told
from service.web.contract import Answer, AnyOperation, Asked, Body, Call, Moment, Operation, Shown, Text
from service.web.http import answer, shown
from service.web.listing import Reason
from service.web.report import REPORT, GroupShown, Report, RunShown

MOST_LINES: Final = 1000
"""Lines that one decision may name."""

MOST_ADDRESSES: Final = 1000
"""Addresses that one spot check may name."""

_Action = Literal["suppress", "clear"]


class RunRequest(msgspec.Struct, forbid_unknown_fields=True):
    """What to compare, and whether what differs is settled without being asked again, as far as the guards let it.

    `since` is for `logs`: from when on they are read again. `addresses` is for `profiles`: a random sample without.
    """

    channel: Channel
    source: Literal["ledger", "logs", "profiles"]
    since: Moment | None = None
    addresses: Annotated[list[Text], msgspec.Meta(min_length=1, max_length=MOST_ADDRESSES)] | None = None
    auto_approve: bool = False


class LineNamed(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """One line of a plan."""

    address: Text
    slot: Reason


class LineDecision(msgspec.Struct, forbid_unknown_fields=True):
    """Which lines, and a note for the audit log. What is left out is not asked about; without anything, all lines that
    wait."""

    kind: Kind | None = None
    reason: Reason | None = None
    slot: Reason | None = None
    action: _Action | None = None
    lines: Annotated[list[LineNamed], msgspec.Meta(min_length=1, max_length=MOST_LINES)] | None = None
    note: Text | None = None


class Undoing(msgspec.Struct, forbid_unknown_fields=True):
    """A note for the audit log."""

    note: Text | None = None


class RunFilters(Walk, frozen=True, kw_only=True):
    """Which runs."""

    channel: Annotated[Channel | None, msgspec.Meta(description="Runs of this channel only.")] = None
    state: Annotated[RunState | None, msgspec.Meta(description="Runs in this state only.")] = None


class LineFilters(Walk, frozen=True, kw_only=True):
    """Which lines."""

    kind: Annotated[Kind | None, msgspec.Meta(description="Lines of this kind only.")] = None
    direction: Annotated[
        Direction | None, msgspec.Meta(description="Lines that are mended here, or there with Kahuna.")
    ] = None
    reason: Annotated[Reason | None, msgspec.Meta(description="Lines about this reason only.")] = None
    slot: Annotated[Reason | None, msgspec.Meta(description="Lines of this slot of Kahuna's only.")] = None
    action: Annotated[_Action | None, msgspec.Meta(description="Lines that would do this only.")] = None
    state: Annotated[LineState | None, msgspec.Meta(description="Lines in this state only.")] = None


class QueuedRun(msgspec.Struct):
    """A reconciliation that a worker will carry out."""

    id: uuid.UUID
    state: Literal["queued"]


class WholeRun(RunShown):
    """A reconciliation with its lines as they stand now, by what they are about."""

    lines: dict[str, int]
    groups: list[GroupShown]


class Runs(msgspec.Struct):
    """Reconciliations, the newest first; `next` is the cursor of the page after, null if there is none."""

    reconciliations: list[RunShown]
    next: str | None


class DifferenceShown(msgspec.Struct):
    """One slot of Kahuna's on which both sides differ: what would settle it, what was decided, and what came of it."""

    address: str
    slot: str
    kind: str
    direction: Direction
    reason: str | None
    action: str | None
    occurred_at: Shown | None
    state: LineState
    why: str | None
    evidence: dict[str, Any]
    correction_id: int | None
    audit_id: uuid.UUID | None
    batch_id: uuid.UUID | None
    decided_by: str | None
    decided_at: datetime | None
    closed_at: datetime | None


class Differences(msgspec.Struct):
    """Lines of a plan, in the order of their addresses; `next` is the cursor of the page after, null at the end."""

    differences: list[DifferenceShown]
    next: str | None


class PassedOver(msgspec.Struct):
    """A line that was named and waits for no decision; without a state, the run has no such line."""

    address: str
    slot: str
    state: LineState | None


class LinesDecided(msgspec.Struct):
    """What was decided: how many lines, which of those named were passed over, and where the run stands. `going_on`: a
    worker still marks the most of them, part by part, and the run says in `deciding` how far it is."""

    id: uuid.UUID
    state: RunState
    lines: int
    passed_over: list[PassedOver]
    going_on: bool


class RunStanding(msgspec.Struct):
    """Where a run stands."""

    id: uuid.UUID
    state: RunState


async def start_run(call: Call[Asked, RunRequest]) -> Response:
    """Queue a reconciliation; the worker carries it out.

    With `ledger` the list is compared with what Kahuna told us and accepted. With `logs`, what Kahuna's logs tell comes
    in first. With `profiles`, some addresses are looked up.
    """
    run = await queue_run(call)
    location = f"/v1/admin/reconciliations/{run.id}"
    return answer(QueuedRun(run.id, "queued"), 202, {"Location": location})


async def queue_run(call: Call[Asked, RunRequest]) -> Run:
    """Queues a reconciliation, if it can be carried out; returns it."""
    wanted, service = call.body, call.service
    asked = _asked(wanted)
    run = Run(uuid.uuid4(), call.namespace, wanted.channel, wanted.source, wanted.auto_approve, call.caller.name)
    await reconcile.queue(service.database, run._replace(asked=asked or None), service.clock)
    return run


def _asked(wanted: RunRequest) -> dict[str, Any]:
    """What else was asked for, as the run keeps it."""
    if wanted.since is not None and wanted.source != "logs":
        raise Unprocessable("since is for the source logs; leave it out.", "not-for-this-source")
    if wanted.source == "logs" and wanted.channel == "sms":
        raise Unprocessable("Kahuna's logs tell nothing of texts; use the source ledger.", "not-for-this-source")
    if wanted.addresses is not None and wanted.source != "profiles":
        raise Unprocessable("addresses are for the source profiles; leave them out.", "not-for-this-source")
    asked: dict[str, Any] = {}
    since = in_utc(wanted.since, "since")
    if since is not None:
        asked["since"] = since.isoformat()
    if wanted.addresses is not None:
        asked["addresses"] = sorted({_normal(wanted.channel, address) for address in wanted.addresses})
    return asked


def _normal(channel: Channel, address: str) -> str:
    try:
        return normalise(channel, address)
    except ImpossibleAddress as error:
        raise Unprocessable(f"One of the addresses cannot be one: {error.slug}.", "impossible-address") from None


async def list_runs(call: Call[RunFilters, None]) -> Runs:
    """The newest reconciliations."""
    query, namespace = call.query, call.namespace
    before = place_at(query.cursor, tuple[datetime, uuid.UUID])
    place = Place(*before) if before else None
    async with call.service.database.read() as connection:
        rows = await reconciliations.newest(
            connection, namespace, query.limit, channel=query.channel, state=query.state, before=place
        )
    cursor = cursor_for(rows[-1].created_at, rows[-1].id) if len(rows) == query.limit else None
    return Runs([told(RunShown, row) for row in rows], cursor)


async def one_run(call: Call[Asked, None]) -> WholeRun:
    """One reconciliation, with what it found by reason and direction, and how that stands now."""
    row = await _run_asked_for(call)
    groups = await report.groups_of(call.service.database, row.id)
    lines: dict[str, int] = {}
    for group in groups:
        lines[group.state] = lines.get(group.state, 0) + group.count
    return told(WholeRun, row, lines=lines, groups=[msgspec.structs.asdict(group) for group in groups])


async def list_differences(call: Call[LineFilters, None]) -> Differences:
    """What a reconciliation found, line by line, and how each line stands."""
    run, query = await _run_asked_for(call), call.query
    chosen = Selection(query.kind, query.reason, query.slot, query.action, query.state, query.direction)
    after = place_at(query.cursor, tuple[str, str]) or ("", "")
    if any("\0" in part for part in after):
        raise Unprocessable("cursor must be the `next` of an earlier page.", "invalid-cursor")
    async with call.service.database.read() as connection:
        rows = await differences.page(connection, run.id, chosen, after, query.limit)
    cursor = cursor_for(rows[-1].address, rows[-1].slot) if len(rows) == query.limit else None
    return Differences([_difference(row) for row in rows], cursor)


def _difference(row: Any) -> DifferenceShown:
    return told(DifferenceShown, row, occurred_at=shown(row.occurred_at), direction=direction_of(row.kind))


async def approve_run(call: Call[Asked, LineDecision]) -> LinesDecided:
    """Approve lines of a plan that wait: all, those of a filter, or those that are named. A worker carries them out."""
    return await _decide(call, "approved")


async def reject_run(call: Call[Asked, LineDecision]) -> LinesDecided:
    """Decide that lines of a plan are not to be carried out: all that wait, those of a filter, or those that are named.

    A run that is not planned yet is called off.
    """
    return await _decide(call, "declined")


async def _decide(call: Call[Asked, LineDecision], decision: Literal["approved", "declined"]) -> LinesDecided:
    service, wanted = call.service, call.body
    named = None if wanted.lines is None else tuple((line.address, line.slot) for line in wanted.lines)
    chosen = Selection(wanted.kind, wanted.reason, wanted.slot, wanted.action, lines=named)
    verdict = Verdict(call.caller.name, decision, chosen, wanted.note)
    limit = call.namespace_limit
    decided = await approve.decide(service.database, id_in(call), verdict, service.clock, limit)
    run = await _run_asked_for(call)
    passed_over = [PassedOver(*key, state) for key, state in decided.passed_over.items()]  # type: ignore[arg-type]
    return LinesDecided(run.id, run.state, decided.lines, passed_over, decided.going_on)


async def revert_run(call: Call[Asked, Undoing]) -> Response:
    """Take back what a run recorded here: a worker retracts its facts by their evidence, so a stop that arrives later
    still wins. Stops that Kahuna was told stand, since they follow from the list."""
    service = call.service
    run_id, limit = id_in(call), call.namespace_limit
    await revert.ask(service.database, run_id, call.caller.name, call.body.note, service.clock, limit)
    location = f"/v1/admin/reconciliations/{run_id}"
    return answer(RunStanding(run_id, "reverting"), 202, {"Location": location})


async def report_run(call: Call[Report, None]) -> Response:
    """The report of a run: what is proved, what is pending, what Kahuna refused and why, and what its API cannot say,
    with what to do by hand."""
    return report.answer(call.service.database, await _run_asked_for(call), call.query.format)


async def _run_asked_for(call: Call[Any, Any]) -> Any:
    limit = call.namespace_limit
    async with call.service.database.read() as connection:
        row = await reconciliations.one(connection, id_in(call))
    if row is None or limit not in (None, row.namespace):
        raise NotFound("There is no such reconciliation; list them with GET /v1/admin/reconciliations.")
    return row


_RUN_ID: Final = "0b6e7b5c-4f0e-4d0a-9d6a-1f2e3d4c5b6a"

_RUN: Final = {
    "id": _RUN_ID,
    "namespace": "default",
    "channel": "email",
    "source": "ledger",
    "auto_approve": False,
    "state": "planned",
    "actor": "support",
    "created_at": "2026-01-31T12:00:00Z",
    "started_at": "2026-01-31T12:00:01Z",
    "planned_at": "2026-01-31T12:00:05Z",
    "approved_at": None,
    "finished_at": "2026-01-31T12:00:05Z",
    "closed_at": None,
    "compared": 120000,
    "counts": {"differences": 1, "missing_there": 1, "proposed": 1},
    "held_by": None,
    "decided_by": None,
    "note": None,
    "outcome": None,
    "error": None,
    "reverted_by": None,
    "revert_note": None,
    "deciding": None,
}

_GROUP: Final = {
    "direction": "there",
    "kind": "missing_there",
    "slot": "unsubscribe",
    "reason": "manual",
    "action": "suppress",
    "state": "proposed",
    "why": None,
    "count": 1,
    "samples": ["ann@example.com"],
}

_DIFFERENCE: Final = {
    "address": "ann@example.com",
    "slot": "unsubscribe",
    "kind": "missing_there",
    "direction": "there",
    "reason": "manual",
    "action": "suppress",
    "occurred_at": "2026-01-31T12:00:00Z",
    "state": "proposed",
    "why": None,
    "evidence": {"there": {"held": {"stop_at": None, "clear_at": None}}},
    "correction_id": None,
    "audit_id": None,
    "batch_id": None,
    "decided_by": None,
    "decided_at": None,
    "closed_at": None,
}

_DECIDED: Final = {"id": _RUN_ID, "state": "approved", "lines": 1, "passed_over": [], "going_on": False}

_RUNS: Final = "/v1/admin/reconciliations"
_ONE: Final = f"{_RUNS}/{{id}}"
_WHERE: Final = {"Location": "Where it is shown."}

OPERATIONS: Final[list[AnyOperation]] = [
    Operation(
        "POST",
        _RUNS,
        start_run,
        scope="admin",
        query=Asked,
        body=Body(RunRequest, {"channel": "email", "source": "ledger"}),
        answers=[Answer(202, QueuedRun, "It is queued.", {"id": _RUN_ID, "state": "queued"}, headers=_WHERE)],
        problems=["impossible-address", "not-for-this-source"],
    ),
    Operation(
        "GET",
        _RUNS,
        list_runs,
        scope="admin",
        query=RunFilters,
        answers=[Answer(200, Runs, "A page of them.", {"reconciliations": [_RUN], "next": None})],
        problems=["invalid-cursor"],
    ),
    Operation(
        "GET",
        _ONE,
        one_run,
        scope="admin",
        query=Asked,
        answers=[Answer(200, WholeRun, "The run.", _RUN | {"lines": {"proposed": 1}, "groups": [_GROUP]})],
        problems=["not-found"],
    ),
    Operation(
        "GET",
        f"{_ONE}/differences",
        list_differences,
        scope="admin",
        query=LineFilters,
        answers=[Answer(200, Differences, "A page of them.", {"differences": [_DIFFERENCE], "next": None})],
        problems=["not-found", "invalid-cursor"],
    ),
    *(
        Operation(
            "POST",
            f"{_ONE}/{verb}",
            handler,
            scope="admin",
            query=Asked,
            body=Body(LineDecision, {"kind": "missing_there", "reason": "manual"}, optional=True),
            answers=[Answer(200, LinesDecided, "What was decided.", _DECIDED | {"state": state})],
            problems=["not-found", "no-plan"],
        )
        for verb, handler, state in (("approve", approve_run, "approved"), ("reject", reject_run, "rejected"))
    ),
    Operation(
        "POST",
        f"{_ONE}/revert",
        revert_run,
        scope="admin",
        query=Asked,
        body=Body(Undoing, {"note": "The logs were those of the sandbox"}, optional=True),
        answers=[Answer(202, RunStanding, "A worker does it.", {"id": _RUN_ID, "state": "reverting"}, headers=_WHERE)],
        problems=["not-found", "not-revertible", "batch-gone"],
    ),
    Operation(
        "GET",
        f"{_ONE}/report",
        report_run,
        scope="admin",
        query=Report,
        answers=REPORT,
        problems=["not-found"],
    ),
]
