"""Owns the questions and the writes of internal services: the status of one address, a stop, a new consent."""

import hashlib
import re
import uuid
from datetime import datetime
from typing import Annotated, Any, Final, Literal, TypeAlias
from urllib.parse import unquote_to_bytes

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from service.domain.addresses import CHANNELS, Channel
from service.domain.facts import EMAIL_REASONS, SMS_REASONS, Fact
from service.domain.suppression import Policy, Purpose, Standing, Verdict, fold, verdict
from service.errors import BadRequest, NotFound, Unprocessable
from service.flows import write
from service.flows.write import Statement, normalised
from service.store import suppressions
from service.store.suppressions import CauseRow, FactRow, Subject
from service.web.contract import Answer, AnyOperation, Asked, Body, Call, Moment, Operation, Shown, Text
from service.web.http import Service, answer, seconds_from, shown

Reason: TypeAlias = Annotated[str, msgspec.Meta(extra_json_schema={"enum": sorted({*EMAIL_REASONS, *SMS_REASONS})})]
"""A reason of either channel; `write` refuses one of the other, with those that there are."""


class Question(Asked, frozen=True, kw_only=True):
    """What a question about one address may say."""

    at: Annotated[
        Moment | None,
        msgspec.Meta(
            description="Answer as of this moment, which must not be in the future.", examples=["2026-01-31T12:00:00Z"]
        ),
    ] = None
    basis: Annotated[
        Literal["recorded", "occurred"],
        msgspec.Meta(
            description="With `at`: `recorded` is what this call would have said then, `occurred` what was true then "
            "as it is known today."
        ),
    ] = "recorded"
    purpose: Annotated[
        Purpose,
        msgspec.Meta(
            description="What the message is for. An unsubscribe does not stop a `transactional` e-mail, such as a "
            "password reset; everything else does."
        ),
    ] = "marketing"


class Stop(msgspec.Struct, forbid_unknown_fields=True):
    """Why, when it happened (left out: now), and a note for the audit log."""

    reason: Reason
    occurred_at: Shown | None = None
    note: Text | None = None


class Consent(msgspec.Struct, forbid_unknown_fields=True):
    """Where and when the new consent was given."""

    evidence: Annotated[str, msgspec.Meta(extra_json_schema={"pattern": "^[^\\u0000]*[^\\s\\u0000][^\\u0000]*$"})]
    occurred_at: Shown


class Cause(msgspec.Struct):
    """One reason for which the address was ever suppressed, and whether it is in force. `batch_id` names the batch
    that it came in."""

    reason: str
    active: bool
    occurred_at: Shown | None
    recorded_at: datetime | None
    origin: str | None
    batch_id: uuid.UUID | None
    until: Shown | None


class Status(msgspec.Struct):
    """Whether an address is suppressed: since when, until when (null: no end), and for which causes."""

    namespace: str
    channel: Channel
    address: str
    suppressed: bool
    since: Shown | None
    until: Shown | None
    causes: list[Cause]


async def status(call: Call[Question, None]) -> Response:
    """May we message this address, and why not? 200 also for an address never seen."""
    request, service = call.request, call.service
    namespace = call.namespace
    channel, address = _subject(call)
    at = _past(call.query.at, service.now) if call.query.at is not None else None
    if at is None:
        causes = await service.lookups.ask(Subject(namespace, channel, address))
    else:
        async with service.database.read() as connection:
            facts = await suppressions.facts_of(connection, namespace, channel, address)
        causes = _causes_at(facts, at, call.query.basis, service.rules.policy)
    moment = int((at or service.now).timestamp())
    standing = {row.cause.reason: row.cause for row in causes}
    judged = verdict(standing, moment, service.rules.policy, call.query.purpose)
    return _tagged(request, _document(namespace, channel, address, judged, causes))


async def suppress(call: Call[Asked, Stop]) -> Status:
    """Stop messages to this address.

    Saying the same again changes nothing, so a call that got no answer may be repeated with its `occurred_at`.
    """
    namespace, said, service = call.namespace, call.body, call.service
    channel, address = _subject(call)
    occurred_at = seconds_from(said.occurred_at, "occurred_at")
    statement = Statement(call.caller.name, namespace, channel, call.request.path_params["address"], occurred_at)
    policy = service.rules.policy
    causes = await write.suppress(service.database, statement, said.reason, said.note, policy, service.clock)
    return _now(service, namespace, channel, address, causes)


async def reactivate(call: Call[Asked, Consent]) -> Status:
    """A new consent ends every stop of the channel up to its time.

    A stop at or after that time stands, and the answer is 409.
    """
    namespace, consent, service = call.namespace, call.body, call.service
    channel, address = _subject(call)
    if not consent.evidence.strip():
        raise Unprocessable("evidence must say where the new consent was given.", "invalid-body")
    occurred_at = seconds_from(consent.occurred_at, "occurred_at")
    statement = Statement(call.caller.name, namespace, channel, call.request.path_params["address"], occurred_at)
    policy = service.rules.policy
    causes = await write.reactivate(service.database, statement, consent.evidence, policy, service.clock)
    return _now(service, namespace, channel, address, causes)


_EXAMPLE: Final = {
    "namespace": "default",
    "channel": "email",
    "address": "ann@example.com",
    "suppressed": True,
    "since": "2026-01-31T12:00:00Z",
    "until": None,
    "causes": [
        {
            "reason": "unsubscribe",
            "active": True,
            "occurred_at": "2026-01-31T12:00:00Z",
            "recorded_at": "2026-01-31T12:00:01.234567Z",
            "origin": "kahuna_webhook",
            "batch_id": "019c13a5-5c80-7000-8000-0123456789ab",
            "until": None,
        }
    ],
}

_ANSWER: Final = Answer(200, Status, "The status of the address.", _EXAMPLE)

OPERATIONS: Final[list[AnyOperation]] = [
    Operation(
        "POST",
        "/v1/suppressions/{channel}/{address:path}/reactivate",
        reactivate,
        scope="write",
        query=Asked,
        body=Body(Consent, {"evidence": "Sign-up form of 2026-02-01", "occurred_at": "2026-02-01T09:30:00Z"}),
        answers=[_ANSWER],
        problems=["impossible-time", "invalid-time", "newer-stop"],
    ),
    Operation(
        "GET",
        "/v1/suppressions/{channel}/{address:path}",
        status,
        scope="read",
        query=Question,
        headers={"If-None-Match": "The `ETag` of an earlier answer: 304 if nothing has changed."},
        answers=[
            _ANSWER._replace(headers={"ETag": "Names this answer.", "Cache-Control": "`no-store`."}),
            Answer(304, None, "As the `If-None-Match` says.", headers={"ETag": "Names this answer."}),
        ],
        problems=["future-time"],
    ),
    Operation(
        "PUT",
        "/v1/suppressions/{channel}/{address:path}",
        suppress,
        scope="write",
        query=Asked,
        body=Body(Stop, {"reason": "manual", "note": "Asked our support desk to stop"}),
        answers=[_ANSWER],
        problems=["impossible-time", "invalid-time", "unknown-reason"],
    ),
]


def _subject(call: Call[Any, Any]) -> tuple[Channel, str]:
    """The channel and the normal form of the address in the path, which the server has percent-decoded once."""
    request = call.request
    channel = request.path_params["channel"]
    if channel not in CHANNELS:
        raise NotFound("There is no such channel; use email or sms.", "unknown-channel")
    call.channel(channel)
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


def _past(at: datetime, now: datetime) -> datetime:
    if at > now:
        raise Unprocessable("at is in the future; nobody knows yet.", "future-time")
    return at


def _causes_at(facts: list[FactRow], at: datetime, basis: str, policy: Policy) -> list[CauseRow]:
    """The causes of a moment: from what was recorded by then, or from what had happened by then as known today."""
    seconds = int(at.timestamp())
    known = [f for f in facts if (f.recorded_at <= at if basis == "recorded" else f.fact.occurred_at <= seconds)]
    causes = fold((row.fact for row in known), policy)
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


def _now(service: Service, namespace: str, channel: Channel, address: str, causes: list[CauseRow]) -> Status:
    judged = verdict({r.cause.reason: r.cause for r in causes}, int(service.now.timestamp()), service.rules.policy)
    return _document(namespace, channel, address, judged, causes)


def _document(namespace: str, channel: Channel, address: str, judged: Verdict, causes: list[CauseRow]) -> Status:
    rows = {row.cause.reason: row for row in causes}
    told = [_cause(standing, rows[standing.cause.reason]) for standing in judged.standings]
    return Status(namespace, channel, address, judged.suppressed, shown(judged.since), shown(judged.until), told)


def _cause(standing: Standing, row: CauseRow) -> Cause:
    occurred_at = shown(standing.cause.decided[1]) if standing.cause.decided else None
    until = shown(standing.until) if standing.active else None
    return Cause(standing.cause.reason, standing.active, occurred_at, row.recorded_at, row.origin, row.batch_id, until)


def _tagged(request: Request, document: Status) -> Response:
    """The document, or 304 if the caller has it already."""
    tag = f'"{hashlib.sha256(msgspec.json.encode(document)).hexdigest()[:32]}"'
    known = [t.strip().removeprefix("W/") for t in request.headers.get("If-None-Match", "").split(",")]
    if tag in known or "*" in known:
        return Response(status_code=304, headers={"ETag": tag})
    return answer(document, headers={"ETag": tag, "Cache-Control": "no-store"})
