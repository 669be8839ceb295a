"""Owns what operators ask and decide: reconciliations, corrections, opt-ins that wait."""

import uuid
from typing import Any, Final, Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from service.domain.addresses import Channel
from service.errors import NotFound, Unprocessable
from service.flows import reconcile, review
from service.store import outbox, reconciliations, reviews
from service.store.reconciliations import Run
from service.web.asking import asked, asked_by_id, id_in, limit_in
from service.web.http import answer, body_of, service_of, shown

STATES: Final = ("pending", "sending", "sent", "rejected", "dead", "superseded", "unsupported")


class RunRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a new reconciliation."""

    channel: Channel
    source: Literal["ledger"]
    auto_approve: bool = False


class Decision(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a decision: a note for the audit log."""

    note: str | None = None


async def start_run(request: Request) -> Response:
    """POST: queue a reconciliation; the worker carries it out."""
    caller, namespace, _ = await asked(request)
    wanted = await body_of(request, RunRequest)
    service = service_of(request)
    run = Run(uuid.uuid4(), namespace, wanted.channel, wanted.source, wanted.auto_approve, caller.name)
    await reconcile.queue(service.database, run, service.clock)
    location = f"/v1/admin/reconciliations/{run.id}"
    return answer({"id": run.id, "state": "queued"}, 202, {"Location": location})


async def list_runs(request: Request) -> Response:
    """GET: the newest reconciliations."""
    _, namespace, given = await asked(request, "limit")
    async with service_of(request).database.read() as connection:
        rows = await reconciliations.newest(connection, namespace, limit_in(given))
    return answer({"reconciliations": [_run(row) for row in rows]})


async def runs(request: Request) -> Response:
    """One route for both, so that a 405 names both."""
    return await (start_run(request) if request.method == "POST" else list_runs(request))


async def one_run(request: Request) -> Response:
    """GET: one reconciliation, with what it counted."""
    run, _ = await _run_asked_for(request)
    return answer(_run(run))


async def differences(request: Request) -> Response:
    """GET: what a reconciliation found."""
    run, given = await _run_asked_for(request, "limit")
    async with service_of(request).database.read() as connection:
        rows = await reconciliations.differences_of(connection, run.id, limit_in(given))
    return answer({"differences": [_difference(row) for row in rows]})


async def corrections(request: Request) -> Response:
    """GET: the newest corrections in a state."""
    _, namespace, given = await asked(request, "state", "limit")
    state = given.get("state", "pending")
    if state not in STATES:
        raise Unprocessable(f"state must be one of {', '.join(STATES)}.", "invalid-parameter")
    async with service_of(request).database.read() as connection:
        rows = await outbox.by_state(connection, namespace, state, limit_in(given))
    return answer({"corrections": [_correction(row) for row in rows]})


async def list_reviews(request: Request) -> Response:
    """GET: opt-ins that wait for a person, oldest first, or were decided by one."""
    _, namespace, given = await asked(request, "state", "limit")
    state = given.get("state", "pending")
    if state not in ("pending", "approved", "refused"):
        raise Unprocessable("state must be one of pending, approved, refused.", "invalid-parameter")
    async with service_of(request).database.read() as connection:
        rows = await reviews.by_state(connection, namespace, state, limit_in(given))
    return answer({"reviews": [_review(row) for row in rows]})


async def approve_review(request: Request) -> Response:
    """POST: this opt-in is genuine; it becomes a fact."""
    return await _decide(request, "approved")


async def refuse_review(request: Request) -> Response:
    """POST: this opt-in is not to be believed."""
    return await _decide(request, "refused")


ROUTES: Final = [
    Route("/v1/admin/reconciliations", runs, methods=["GET", "POST"]),
    Route("/v1/admin/reconciliations/{id}", one_run, methods=["GET"]),
    Route("/v1/admin/reconciliations/{id}/differences", differences, methods=["GET"]),
    Route("/v1/admin/corrections", corrections, methods=["GET"]),
    Route("/v1/admin/reviews", list_reviews, methods=["GET"]),
    Route("/v1/admin/reviews/{id}/approve", approve_review, methods=["POST"]),
    Route("/v1/admin/reviews/{id}/refuse", refuse_review, methods=["POST"]),
]


async def _run_asked_for(request: Request, *allowed: str) -> tuple[Any, dict[str, str]]:
    _, namespace, given = await asked_by_id(request, *allowed)
    async with service_of(request).database.read() as connection:
        row = await reconciliations.one(connection, id_in(request))
    if row is None or namespace not in (None, row.namespace):
        raise NotFound("There is no such reconciliation.")
    return row, given


async def _decide(request: Request, decision: str) -> Response:
    actor, namespace, _ = await asked_by_id(request)
    has_body = request.headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in request.headers
    note = (await body_of(request, Decision)).note if has_body else None
    service = service_of(request)
    policy, clock = service.rules.policy, service.clock
    decided = await review.decide(
        service.database, id_in(request), decision, actor, note, policy, clock, allowed_namespace=namespace
    )
    return answer(_review(decided))


def _run(row: Any) -> dict[str, Any]:
    names = ("id", "namespace", "channel", "source", "auto_approve", "state", "actor", "created_at", "finished_at")
    return {name: getattr(row, name) for name in names} | {"error": row.error, "counts": row.counts}


def _difference(row: Any) -> dict[str, Any]:
    names = ("address", "slot", "kind", "action", "evidence")
    return {name: getattr(row, name) for name in names} | {"occurred_at": shown(row.occurred_at)}


def _correction(row: Any) -> dict[str, Any]:
    names = ("id", "namespace", "channel", "address", "slot", "action", "state", "attempts", "reason", "evidence")
    times = {name: getattr(row, name) for name in ("created_at", "next_attempt_at", "settled_at")}
    return {name: getattr(row, name) for name in names} | {"occurred_at": shown(row.occurred_at)} | times


def _review(row: Any) -> dict[str, Any]:
    names = ("id", "namespace", "channel", "address", "reason", "why", "state", "batch_id", "received_at")
    decided = {name: row[name] for name in ("decided_by", "decided_at", "note")}
    return {name: row[name] for name in names} | {"occurred_at": shown(row["occurred_at"])} | decided
