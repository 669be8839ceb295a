"""Owns what operators ask and decide: reconciliations, corrections, opt-ins that wait, the quarantine."""

import uuid
from typing import Any, Final, Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from service.domain.addresses import Channel
from service.errors import NotFound, Unprocessable
from service.flows import reconcile, review
from service.store import batches, outbox, reconciliations, reviews
from service.store.reconciliations import Run
from service.web.http import answer, body_of, caller_with, namespace_for, parameters, service_of, shown

STATES: Final = ("pending", "sending", "sent", "rejected", "dead", "superseded", "unsupported")

DEFAULT_LIMIT: Final = 100
LARGEST_LIMIT: Final = 1000


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
    caller = await caller_with(request, "admin")
    namespace = namespace_for(request, caller, parameters(request, "namespace").get("namespace"))
    asked = await body_of(request, RunRequest)
    service = service_of(request)
    run = Run(uuid.uuid4(), namespace, asked.channel, asked.source, asked.auto_approve, caller.name)
    await reconcile.queue(service.database, run, service.clock)
    location = f"/v1/admin/reconciliations/{run.id}"
    return answer({"id": run.id, "state": "queued"}, 202, {"Location": location})


async def list_runs(request: Request) -> Response:
    """GET: the newest reconciliations."""
    namespace, given = await _asked(request, "limit")
    async with service_of(request).database.read() as connection:
        rows = await reconciliations.newest(connection, namespace, _limit(given))
    return answer({"reconciliations": [_run(row) for row in rows]})


async def runs(request: Request) -> Response:
    """One route for both, so that a 405 names both."""
    return await (start_run(request) if request.method == "POST" else list_runs(request))


async def one_run(request: Request) -> Response:
    """GET: one reconciliation, with what it counted."""
    return answer(_run(await _run_asked_for(request)))


async def differences(request: Request) -> Response:
    """GET: what a reconciliation found."""
    run = await _run_asked_for(request, "limit")
    limit = _limit(parameters(request, "namespace", "limit"))
    async with service_of(request).database.read() as connection:
        rows = await reconciliations.differences_of(connection, run.id, limit)
    return answer({"differences": [_difference(row) for row in rows]})


async def corrections(request: Request) -> Response:
    """GET: the newest corrections in a state."""
    namespace, given = await _asked(request, "state", "limit")
    state = given.get("state", "pending")
    if state not in STATES:
        raise Unprocessable(f"state must be one of {', '.join(STATES)}.", "invalid-parameter")
    async with service_of(request).database.read() as connection:
        rows = await outbox.by_state(connection, namespace, state, _limit(given))
    return answer({"corrections": [_correction(row) for row in rows]})


async def quarantine(request: Request) -> Response:
    """GET: the newest entries that could not be understood."""
    namespace, given = await _asked(request, "limit")
    async with service_of(request).database.read() as connection:
        rows = await batches.quarantined(connection, namespace, _limit(given))
    return answer({"entries": [_quarantined(row) for row in rows]})


async def list_reviews(request: Request) -> Response:
    """GET: opt-ins that wait for a person, oldest first, or were decided by one."""
    namespace, given = await _asked(request, "state", "limit")
    state = given.get("state", "pending")
    if state not in ("pending", "approved", "refused"):
        raise Unprocessable("state must be one of pending, approved, refused.", "invalid-parameter")
    async with service_of(request).database.read() as connection:
        rows = await reviews.by_state(connection, namespace, state, _limit(given))
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
    Route("/v1/admin/quarantine", quarantine, methods=["GET"]),
    Route("/v1/admin/reviews", list_reviews, methods=["GET"]),
    Route("/v1/admin/reviews/{id}/approve", approve_review, methods=["POST"]),
    Route("/v1/admin/reviews/{id}/refuse", refuse_review, methods=["POST"]),
]


async def _asked(request: Request, *allowed: str) -> tuple[str, dict[str, str]]:
    """The namespace and the parameters of an admin's question."""
    caller = await caller_with(request, "admin")
    given = parameters(request, "namespace", *allowed)
    return namespace_for(request, caller, given.get("namespace")), given


async def _namespace_asked_for(request: Request, *allowed: str) -> tuple[str, str | None]:
    """Who asks for something by its id, and the only namespace that it may be in: None if any will do."""
    caller = await caller_with(request, "admin")
    given = parameters(request, "namespace", *allowed).get("namespace")
    return caller.name, caller.namespace if given is None else namespace_for(request, caller, given)


async def _run_asked_for(request: Request, *allowed: str) -> Any:
    _, namespace = await _namespace_asked_for(request, *allowed)
    async with service_of(request).database.read() as connection:
        row = await reconciliations.one(connection, _id(request))
    if row is None or namespace not in (None, row.namespace):
        raise NotFound("There is no such reconciliation.")
    return row


async def _decide(request: Request, decision: str) -> Response:
    actor, namespace = await _namespace_asked_for(request)
    has_body = request.headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in request.headers
    note = (await body_of(request, Decision)).note if has_body else None
    service = service_of(request)
    policy, clock = service.rules.policy, service.clock
    decided = await review.decide(
        service.database, _id(request), decision, actor, note, policy, clock, allowed_namespace=namespace
    )
    return answer(_review(decided))


def _id(request: Request) -> uuid.UUID:
    try:
        return uuid.UUID(request.path_params["id"])
    except ValueError:
        raise NotFound("There is nothing with this id.") from None


def _limit(given: dict[str, str]) -> int:
    text = given.get("limit", str(DEFAULT_LIMIT))
    if not text.isdecimal() or len(text) > 4 or not 1 <= int(text) <= LARGEST_LIMIT:
        raise Unprocessable(f"limit must be a number from 1 to {LARGEST_LIMIT}.", "invalid-parameter")
    return int(text)


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


def _quarantined(row: Any) -> dict[str, Any]:
    names = ("batch_id", "entry_index", "namespace", "channel", "error", "received_at", "state")
    return {name: getattr(row, name) for name in names} | {"entry": row.entry.decode("utf-8", "replace")}


def _review(row: Any) -> dict[str, Any]:
    names = ("id", "namespace", "channel", "address", "reason", "why", "state", "batch_id", "received_at")
    decided = {name: row[name] for name in ("decided_by", "decided_at", "note")}
    return {name: row[name] for name in names} | {"occurred_at": shown(row["occurred_at"])} | decided
