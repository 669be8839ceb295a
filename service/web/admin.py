"""Owns what operators ask and decide: reconciliations, opt-ins that wait."""

import uuid
from datetime import datetime
from typing import Annotated, Any, Final, Literal

import msgspec
from starlette.responses import Response

from service.domain.addresses import Channel
from service.errors import NotFound
from service.flows import reconcile, review
from service.store import reconciliations, reviews
from service.store.reconciliations import Run
from service.web.asking import Page, id_in, told
from service.web.contract import Answer, AnyOperation, Asked, Body, Call, Operation, Shown, Text
from service.web.http import answer, shown


class RunRequest(msgspec.Struct, forbid_unknown_fields=True):
    """What to compare, and whether what differs is settled without being asked again."""

    channel: Channel
    source: Literal["ledger"]
    auto_approve: bool = False


class Decision(msgspec.Struct, forbid_unknown_fields=True):
    """A note for the audit log."""

    note: Text | None = None


class Reviews(Page, frozen=True, kw_only=True):
    """Which reviews."""

    state: Annotated[Literal["pending", "approved", "refused"], msgspec.Meta(description="Opt-ins in this state.")] = (
        "pending"
    )


class QueuedRun(msgspec.Struct):
    """A reconciliation that a worker will carry out."""

    id: uuid.UUID
    state: Literal["queued"]


class RunShown(msgspec.Struct):
    """A reconciliation: what it compares, how far it is, and what it counted."""

    id: uuid.UUID
    namespace: str
    channel: Channel
    source: str
    auto_approve: bool
    state: str
    actor: str
    created_at: datetime
    finished_at: datetime | None
    error: str | None
    counts: dict[str, Any]


class Runs(msgspec.Struct):
    """Reconciliations, the newest first."""

    reconciliations: list[RunShown]


class DifferenceShown(msgspec.Struct):
    """One slot of Kahuna's on which both sides differ, and what would settle it."""

    address: str
    slot: str
    kind: str
    action: str | None
    evidence: dict[str, Any]
    occurred_at: Shown | None


class Differences(msgspec.Struct):
    """What a reconciliation found."""

    differences: list[DifferenceShown]


class ReviewShown(msgspec.Struct):
    """An opt-in that waits for a person, or was decided by one."""

    id: uuid.UUID
    namespace: str
    channel: Channel
    address: str
    reason: str
    why: str
    state: str
    batch_id: uuid.UUID
    received_at: datetime
    occurred_at: Shown | None
    decided_by: str | None
    decided_at: datetime | None
    note: str | None


class ReviewsShown(msgspec.Struct):
    """Opt-ins, the oldest first."""

    reviews: list[ReviewShown]


async def start_run(call: Call[Asked, RunRequest]) -> Response:
    """Queue a reconciliation; the worker carries it out."""
    wanted, service = call.body, call.service
    run = Run(uuid.uuid4(), call.namespace, wanted.channel, wanted.source, wanted.auto_approve, call.caller.name)
    await reconcile.queue(service.database, run, service.clock)
    location = f"/v1/admin/reconciliations/{run.id}"
    return answer(QueuedRun(run.id, "queued"), 202, {"Location": location})


async def list_runs(call: Call[Page, None]) -> Runs:
    """The newest reconciliations."""
    namespace = call.namespace
    async with call.service.database.read() as connection:
        rows = await reconciliations.newest(connection, namespace, call.query.limit)
    return Runs([told(RunShown, row) for row in rows])


async def one_run(call: Call[Asked, None]) -> RunShown:
    """One reconciliation, with what it counted."""
    return told(RunShown, await _run_asked_for(call))


async def list_differences(call: Call[Page, None]) -> Differences:
    """What a reconciliation found."""
    run = await _run_asked_for(call)
    async with call.service.database.read() as connection:
        rows = await reconciliations.differences_of(connection, run.id, call.query.limit)
    return Differences([told(DifferenceShown, row, occurred_at=shown(row.occurred_at)) for row in rows])


async def list_reviews(call: Call[Reviews, None]) -> ReviewsShown:
    """Opt-ins that wait for a person, oldest first, or were decided by one."""
    namespace = call.namespace
    async with call.service.database.read() as connection:
        rows = await reviews.by_state(connection, namespace, call.query.state, call.query.limit)
    return ReviewsShown([_review(row) for row in rows])


async def approve_review(call: Call[Asked, Decision]) -> ReviewShown:
    """This opt-in is genuine; it becomes a fact."""
    return await _decide(call, "approved")


async def refuse_review(call: Call[Asked, Decision]) -> ReviewShown:
    """This opt-in is not to be believed."""
    return await _decide(call, "refused")


async def _run_asked_for(call: Call[Any, None]) -> Any:
    limit = call.namespace_limit
    async with call.service.database.read() as connection:
        row = await reconciliations.one(connection, id_in(call))
    if row is None or limit not in (None, row.namespace):
        raise NotFound("There is no such reconciliation; list them with GET /v1/admin/reconciliations.")
    return row


async def _decide(call: Call[Asked, Decision], decision: str) -> ReviewShown:
    service = call.service
    decided = await review.decide(
        service.database,
        id_in(call),
        decision,
        call.caller.name,
        call.body.note,
        service.rules.policy,
        service.clock,
        allowed_namespace=call.namespace_limit,
    )
    return _review(decided)


def _review(row: Any) -> ReviewShown:
    return told(ReviewShown, row, occurred_at=shown(row["occurred_at"]))


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
    "finished_at": "2026-01-31T12:00:05Z",
    "error": None,
    "counts": {"missing_there": 1},
}

_DIFFERENCE: Final = {
    "address": "ann@example.com",
    "slot": "unsubscribe",
    "kind": "missing_there",
    "action": "suppress",
    "evidence": {},
    "occurred_at": "2026-01-31T12:00:00Z",
}

_REVIEW: Final = {
    "id": "7c9e6679-7425-40de-944b-e07fc1f90ae7",
    "namespace": "default",
    "channel": "sms",
    "address": "15550100001",
    "reason": "do_not_call",
    "why": "local-stop",
    "state": "pending",
    "batch_id": "019c13a5-5c80-7000-8000-0123456789ab",
    "received_at": "2026-01-31T12:00:01Z",
    "occurred_at": "2026-01-31T12:00:00Z",
    "decided_by": None,
    "decided_at": None,
    "note": None,
}

_RUNS: Final = "/v1/admin/reconciliations"

_DECIDED: Final = Answer(200, ReviewShown, "The opt-in, as decided.", _REVIEW | {"state": "approved"})

OPERATIONS: Final[list[AnyOperation]] = [
    Operation(
        "POST",
        _RUNS,
        start_run,
        scope="admin",
        query=Asked,
        body=Body(RunRequest, {"channel": "email", "source": "ledger"}),
        answers=[
            Answer(
                202,
                QueuedRun,
                "It is queued.",
                {"id": _RUN_ID, "state": "queued"},
                headers={"Location": "Where it is shown."},
            )
        ],
    ),
    Operation(
        "GET",
        _RUNS,
        list_runs,
        scope="admin",
        query=Page,
        answers=[Answer(200, Runs, "The newest ones.", {"reconciliations": [_RUN]})],
    ),
    Operation(
        "GET",
        f"{_RUNS}/{{id}}",
        one_run,
        scope="admin",
        query=Asked,
        answers=[Answer(200, RunShown, "The reconciliation.", _RUN)],
        problems=["not-found"],
    ),
    Operation(
        "GET",
        f"{_RUNS}/{{id}}/differences",
        list_differences,
        scope="admin",
        query=Page,
        answers=[Answer(200, Differences, "What it found.", {"differences": [_DIFFERENCE]})],
        problems=["not-found"],
    ),
    Operation(
        "GET",
        "/v1/admin/reviews",
        list_reviews,
        scope="admin",
        query=Reviews,
        answers=[Answer(200, ReviewsShown, "Opt-ins in this state.", {"reviews": [_REVIEW]})],
    ),
    *(
        Operation(
            "POST",
            f"/v1/admin/reviews/{{id}}/{verb}",
            handler,
            scope="admin",
            query=Asked,
            body=Body(Decision, {"note": "Confirmed by telephone"}, optional=True),
            answers=[_DECIDED],
            problems=["not-found", "already-decided"],
        )
        for verb, handler in (("approve", approve_review), ("refuse", refuse_review))
    ),
]
