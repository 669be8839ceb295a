"""Owns the questions and the writes of internal services: the status of one address, a stop, a new consent."""

import hashlib
import uuid
from datetime import datetime
from typing import Annotated, Final, Literal, TypeAlias

import msgspec
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from service.domain.addresses import CHANNELS, LONGEST_RAW, Channel
from service.domain.facts import EMAIL_REASONS, SMS_REASONS
from service.domain.suppression import Purpose, Standing, Verdict, verdict
from service.errors import KahunaSyncError, Unprocessable
from service.flows import write
from service.flows.past import state_at
from service.flows.write import Statement
from service.store.suppressions import CauseRow, Subject
from service.web import contract
from service.web.contract import Answer, AnyOperation, Asked, Body, Call, Moment, Operation, Shown, Text
from service.web.http import (
    Ready,
    Service,
    caller_with,
    header_in,
    namespace_for,
    problem_of,
    seconds_from,
    shown,
)
from service.web.subject import subject_in, subject_of

PREFIX: Final = "/v1/suppressions/"
STATUS_PATH: Final = "/v1/suppressions/{channel}/{address:path}"

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
    service, query = call.service, call.query
    subject = subject_of(call)
    if query.at is None:
        if query.basis != "recorded":
            raise Unprocessable("basis is about an earlier moment; say which with at.", "at-required")
        moment, policy = service.now, service.rules.policy
        causes = await service.lookups.ask(subject)
    else:
        moment = _past(query.at, service.now)
        causes, policy = await state_at(service.database, subject, moment, query.basis, service.rules.policy)
    judged = verdict({row.cause.reason: row.cause for row in causes}, int(moment.timestamp()), policy, query.purpose)
    return tagged(header_in(call.request.scope, b"if-none-match"), _document(subject, judged, causes))


async def _answer_usual(asked: Scope, receive: Receive, send: Send) -> None:
    """The same for a question without parameters, which is nearly every one: past what reads and judges those."""
    service: Service = asked["state"]["service"]
    caller = await caller_with(asked, "read")
    subject = subject_in(asked, caller, namespace_for(service, caller, None))
    document = status_now(service, subject, await service.lookups.ask(subject))
    response = tagged(header_in(asked, b"if-none-match"), document)
    await response(asked, receive, send)


async def suppress(call: Call[Asked, Stop]) -> Status:
    """Stop messages to this address.

    Saying the same again changes nothing, so a call that got no answer may be repeated with its `occurred_at`.
    """
    subject, said, service = subject_of(call), call.body, call.service
    occurred_at = seconds_from(said.occurred_at, "occurred_at")
    statement = Statement(call.caller.name, *subject[:2], call.request.path_params["address"], occurred_at)
    policy = service.rules.policy
    causes = await write.suppress(service.database, statement, said.reason, said.note, policy, service.clock)
    return status_now(service, subject, causes)


async def reactivate(call: Call[Asked, Consent]) -> Status:
    """A new consent ends every stop of the channel up to its time.

    A stop at or after that time stands, and the answer is 409.
    """
    subject, consent, service = subject_of(call), call.body, call.service
    if not consent.evidence.strip():
        raise Unprocessable("evidence must say where the new consent was given.", "invalid-body")
    occurred_at = seconds_from(consent.occurred_at, "occurred_at")
    statement = Statement(call.caller.name, *subject[:2], call.request.path_params["address"], occurred_at)
    policy = service.rules.policy
    causes = await write.reactivate(service.database, statement, consent.evidence, policy, service.clock)
    return status_now(service, subject, causes)


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
        STATUS_PATH,
        status,
        scope="read",
        query=Question,
        headers={"If-None-Match": "The `ETag` of an earlier answer: 304 if nothing has changed."},
        answers=[
            _ANSWER._replace(headers={"ETag": "Names this answer.", "Cache-Control": "`no-store`."}),
            Answer(
                304,
                None,
                "As the `If-None-Match` says.",
                headers={"ETag": "Names this answer.", "Cache-Control": "`no-store`."},
            ),
        ],
        problems=["at-required", "future-time"],
    ),
    Operation(
        "PUT",
        STATUS_PATH,
        suppress,
        scope="write",
        query=Asked,
        body=Body(Stop, {"reason": "manual", "note": "Asked our support desk to stop"}),
        answers=[_ANSWER],
        problems=["impossible-time", "invalid-time", "unknown-reason"],
    ),
]


def place_in(path: str) -> tuple[str, str] | None:
    """The channel and the address, if this is the path of one address. None if the address has a slash, since what
    follows that may be a path of its own."""
    if not path.startswith(PREFIX):
        return None
    channel, _, address = path[len(PREFIX) :].partition("/")
    return (channel, address) if channel in CHANNELS and address and "/" not in address else None


class Shortcut:
    """Answers the question about one address past the router, which tries the patterns of all routes, and what stands
    around it. Everything else goes on."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._route = next(route for route in contract.routes(OPERATIONS) if route.path == STATUS_PATH)
        self._endpoint = self._route.endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        place = place_in(scope["path"]) if scope["type"] == "http" and scope["method"] == "GET" else None
        if place is None:
            await self._app(scope, receive, send)
            return
        channel, address = place
        scope["route"], scope["path_params"] = self._route, {"channel": channel, "address": address}
        unusual = scope["query_string"] or len(address) > LONGEST_RAW
        try:
            await (self._endpoint if unusual else _answer_usual)(scope, receive, send)
        except KahunaSyncError as error:
            await problem_of(error)(scope, receive, send)


def _past(at: datetime, now: datetime) -> datetime:
    if at > now:
        raise Unprocessable("at is in the future; nobody knows yet.", "future-time")
    return at


def status_now(service: Service, subject: Subject, causes: list[CauseRow]) -> Status:
    """The status of an address by these causes, at this moment."""
    judged = verdict({r.cause.reason: r.cause for r in causes}, int(service.now.timestamp()), service.rules.policy)
    return _document(subject, judged, causes)


def _document(subject: Subject, judged: Verdict, causes: list[CauseRow]) -> Status:
    if not causes:  # most addresses that are asked about
        return Status(*subject, False, None, None, [])
    rows = {row.cause.reason: row for row in causes}
    told = [cause_told(standing, rows[standing.cause.reason]) for standing in judged.standings]
    return Status(*subject, judged.suppressed, shown(judged.since), shown(judged.until), told)


def cause_told(standing: Standing, row: CauseRow) -> Cause:
    """A cause as answers show it."""
    cause, active, until = standing
    decided = cause.decided
    occurred_at = shown(decided[1]) if decided else None
    ends_at = shown(until) if active else None
    return Cause(cause.reason, active, occurred_at, row.recorded_at, row.origin, row.batch_id, ends_at)


_NO_STORE: Final = (b"cache-control", b"no-store")


def tagged(given: str, document: Status) -> Ready:
    """The document, or 304 if the caller has it already, as the `If-None-Match` that was given says (empty if none).
    The tag names the bytes, so every replica gives the same."""
    body = msgspec.json.encode(document)
    tag = f'"{hashlib.blake2b(body, digest_size=16).hexdigest()}"'
    etag = (b"etag", tag.encode())
    if given and not {"*", tag}.isdisjoint(one.strip().removeprefix("W/") for one in given.split(",")):
        return Ready(304, [etag, _NO_STORE])
    headers = [(b"content-length", b"%d" % len(body)), (b"content-type", b"application/json")]
    return Ready(200, [*headers, etag, _NO_STORE], body)
