"""Owns the questions and the writes of internal services: the status of one address, a stop, a new consent."""

import hashlib
import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final, get_args
from urllib.parse import unquote_to_bytes

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from service.domain.addresses import CHANNELS, Channel
from service.domain.facts import Fact
from service.domain.suppression import Purpose, Verdict, fold, verdict
from service.errors import BadRequest, NotFound, Unprocessable
from service.flows import write
from service.flows.write import Statement, normalised
from service.store import suppressions
from service.store.suppressions import CauseRow, FactRow, Subject
from service.web.http import (
    answer,
    body_of,
    caller_with,
    moment_from,
    namespace_for,
    parameters,
    seconds_from,
    service_of,
    shown,
)


class Stop(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a PUT: why, when it happened (RFC 3339; left out: now), and a note for the audit log."""

    reason: str
    occurred_at: str | None = None
    note: str | None = None


class Consent(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a reactivation: where and when the new consent was given."""

    evidence: str
    occurred_at: str


async def status(request: Request) -> Response:
    """GET and HEAD: may we message this address, and why not? 200 also for an address never seen."""
    caller = await caller_with(request, "read")
    given = parameters(request, "namespace", "at", "basis", "purpose")
    namespace = namespace_for(request, caller, given.get("namespace"))
    channel, address = _subject(request)
    purpose = _choice(given, "purpose", get_args(Purpose), "marketing")
    basis = _choice(given, "basis", ("recorded", "occurred"), "recorded")
    service = service_of(request)
    at = _past(moment_from(given["at"], "at"), service.now) if "at" in given else None
    if at is None:
        causes = await service.lookups.ask(Subject(namespace, channel, address))
    else:
        async with service.database.read() as connection:
            facts = await suppressions.facts_of(connection, namespace, channel, address)
        causes = _causes_at(facts, at, basis, request)
    moment = int((at or service.now).timestamp())
    judged = verdict({row.cause.reason: row.cause for row in causes}, moment, service.rules.policy, purpose)
    return _tagged(request, _document(namespace, channel, address, judged, causes))


async def suppress(request: Request) -> Response:
    """PUT: stop messages to this address."""
    caller = await caller_with(request, "write")
    namespace = namespace_for(request, caller, parameters(request, "namespace").get("namespace"))
    channel, address = _subject(request)
    said = await body_of(request, Stop)
    service = service_of(request)
    occurred_at = seconds_from(said.occurred_at, "occurred_at")
    statement = Statement(caller.name, namespace, channel, request.path_params["address"], occurred_at)
    policy = service.rules.policy
    causes = await write.suppress(service.database, statement, said.reason, said.note, policy, service.clock)
    return _now(request, namespace, channel, address, causes)


async def one(request: Request) -> Response:
    """One route for both, so that a 405 names both."""
    return await (suppress(request) if request.method == "PUT" else status(request))


async def reactivate(request: Request) -> Response:
    """POST: a new consent ends every stop of the channel up to its time."""
    caller = await caller_with(request, "write")
    namespace = namespace_for(request, caller, parameters(request, "namespace").get("namespace"))
    channel, address = _subject(request)
    consent = await body_of(request, Consent)
    if not consent.evidence.strip():
        raise Unprocessable("evidence must say where the new consent was given.", "invalid-body")
    service = service_of(request)
    occurred_at = seconds_from(consent.occurred_at, "occurred_at")
    statement = Statement(caller.name, namespace, channel, request.path_params["address"], occurred_at)
    policy = service.rules.policy
    causes = await write.reactivate(service.database, statement, consent.evidence, policy, service.clock)
    return _now(request, namespace, channel, address, causes)


ROUTES: Final = [
    Route("/v1/suppressions/{channel}/{address:path}/reactivate", reactivate, methods=["POST"]),
    Route("/v1/suppressions/{channel}/{address:path}", one, methods=["GET", "PUT"]),
]


def _subject(request: Request) -> tuple[Channel, str]:
    """The channel and the normal form of the address in the path, which the server has percent-decoded once."""
    channel = request.path_params["channel"]
    if channel not in CHANNELS:
        raise NotFound("There is no such channel; use email or sms.", "unknown-channel")
    _refuse_bad_encoding(request)
    address = request.path_params["address"]
    # A local part may hold a slash, a domain never: what follows one names something that does not exist here.
    if channel == "email" and "/" in address.rpartition("@")[2] and "@" in address:
        raise NotFound("There is nothing at this path below an address.")
    return channel, normalised(channel, address)


def _refuse_bad_encoding(request: Request) -> None:
    """Servers replace what is not UTF-8, and a question about one address would be answered for another."""
    raw: bytes = request.scope.get("raw_path", b"")
    try:
        unquote_to_bytes(raw).decode()
        well_formed = not re.search(rb"%(?![0-9A-Fa-f]{2})", raw)
    except UnicodeDecodeError:
        well_formed = False
    if not well_formed:
        raise BadRequest("The path is not percent-encoded UTF-8; encode the address again.", "bad-encoding")


def _choice(given: dict[str, str], name: str, choices: Sequence[str], default: str) -> Any:
    value = given.get(name, default)
    if value not in choices:
        raise Unprocessable(f"{name} must be one of {', '.join(choices)}.", "invalid-parameter")
    return value


def _past(at: datetime, now: datetime) -> datetime:
    if at > now:
        raise Unprocessable("at is in the future; nobody knows yet.", "future-time")
    return at


def _causes_at(facts: list[FactRow], at: datetime, basis: str, request: Request) -> list[CauseRow]:
    """The causes of a moment: from what was recorded by then, or from what had happened by then as known today."""
    seconds = int(at.timestamp())
    known = [f for f in facts if (f.recorded_at <= at if basis == "recorded" else f.fact.occurred_at <= seconds)]
    causes = fold((row.fact for row in known), service_of(request).rules.policy)
    deciding: dict[Fact, FactRow] = {row.fact: row for row in known}
    return [_with_origin(cause, deciding) for cause in causes.values()]


def _with_origin(cause: Any, rows: dict[Fact, FactRow]) -> CauseRow:
    decided = [
        row
        for fact, row in rows.items()
        if (fact.reason, (fact.action, fact.occurred_at)) == (cause.reason, cause.decided)
    ]
    first = min(decided, key=lambda row: row.recorded_at)
    return CauseRow(cause, first.recorded_at, first.origin, first.batch_id)


def _now(request: Request, namespace: str, channel: Channel, address: str, causes: list[CauseRow]) -> Response:
    service = service_of(request)
    judged = verdict({r.cause.reason: r.cause for r in causes}, int(service.now.timestamp()), service.rules.policy)
    return answer(_document(namespace, channel, address, judged, causes))


def _document(
    namespace: str, channel: Channel, address: str, judged: Verdict, causes: list[CauseRow]
) -> dict[str, Any]:
    rows = {row.cause.reason: row for row in causes}
    return {
        "namespace": namespace,
        "channel": channel,
        "address": address,
        "suppressed": judged.suppressed,
        "since": shown(judged.since),
        "until": shown(judged.until),
        "causes": [
            {
                "reason": standing.cause.reason,
                "active": standing.active,
                "occurred_at": shown(standing.cause.decided[1]) if standing.cause.decided else None,
                "recorded_at": rows[standing.cause.reason].recorded_at,
                "origin": rows[standing.cause.reason].origin,
                "batch_id": rows[standing.cause.reason].batch_id,
                "until": shown(standing.until) if standing.active else None,
            }
            for standing in judged.standings
        ],
    }


def _tagged(request: Request, document: dict[str, Any]) -> Response:
    """The document, or 304 if the caller has it already."""
    tag = f'"{hashlib.sha256(msgspec.json.encode(document)).hexdigest()[:32]}"'
    known = [t.strip().removeprefix("W/") for t in request.headers.get("If-None-Match", "").split(",")]
    if tag in known or "*" in known:
        return Response(status_code=304, headers={"ETag": tag})
    return answer(document, headers={"ETag": tag, "Cache-Control": "no-store"})
