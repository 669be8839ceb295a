"""Owns what operators ask of Kahuna's logs: how far they were read, and which messages went out against a stop."""

import uuid
from base64 import b64decode, b64encode
from datetime import datetime
from typing import Annotated, Any, Final, Literal, TypeAlias

import msgspec

from service.domain.addresses import Channel
from service.domain.leaks import KnownBy
from service.errors import Unprocessable
from service.store import pulls, violations
from service.store.violations import Place
from service.web.asking import Walk, cursor_for, in_utc, place_at, told
from service.web.contract import Answer, AnyOperation, Asked, Call, Moment, MomentOrDay, Operation, Shown
from service.web.http import shown

_Place: TypeAlias = tuple[Moment, str, str]


class Violations(Walk, frozen=True, kw_only=True):
    """Which violations."""

    channel: Annotated[Channel | None, msgspec.Meta(description="Of this channel only.")] = None
    known_by: Annotated[
        KnownBy | None,
        msgspec.Meta(
            description="`kahuna`: Kahuna itself knew of the stop by then; `us`: it was recorded here, and Kahuna had "
            "not accepted it yet."
        ),
    ] = None
    since: Annotated[
        MomentOrDay | None, msgspec.Meta(description="Of messages sent at this time or later; a day is its beginning.")
    ] = None


class PullShown(msgspec.Struct):
    """How far one of Kahuna's logs was read: all between `begins_at` and `reached` was. `counts` are the figures of the
    whole walk so far; `error` is what was in the way at `error_at`, null once it is overcome."""

    api: Literal["email", "user_merge", "in_app", "push"]
    walk: Literal["pull", "backfill"]
    begins_at: datetime
    ends_at: datetime | None
    reached: datetime
    counts: dict[str, int]
    last_at: datetime | None
    done_at: datetime | None
    error: str | None
    error_at: datetime | None


class PullsShown(msgspec.Struct):
    """Every walk through the logs of a namespace. `backfilled_at` is null until the backfill is done: opt-outs from
    before this deployment may be missing until then."""

    namespace: str
    backfilled_at: datetime | None
    pulls: list[PullShown]


class MessageShown(msgspec.Struct):
    """The message: Kahuna's log record as it was read."""

    sent_at: datetime
    campaign: str | None
    campaign_id: int | None
    record: dict[str, Any]


class BrokenStop(msgspec.Struct):
    """The stop: a fact with its batch and entry, or with the action that it came from; and which correction told Kahuna
    of it, and when that was accepted."""

    reason: str
    source: str
    origin: str
    occurred_at: Shown | None
    recorded_at: datetime
    batch_id: uuid.UUID | None
    entry_index: int | None
    action_id: uuid.UUID | None
    correction_id: int | None
    accepted_at: datetime | None


class ViolationShown(msgspec.Struct):
    """A message that Kahuna sent to an address after a stop was in force: since when who knew, and both pieces of
    evidence."""

    channel: Channel
    address: str
    known_by: KnownBy
    known_since: datetime
    message: MessageShown
    stop: BrokenStop
    found_at: datetime


class ViolationsShown(msgspec.Struct):
    """Violations, that of the newest message first; `next` is the cursor of the page after, null if there is none."""

    violations: list[ViolationShown]
    next: str | None


async def list_pulls(call: Call[Asked, None]) -> PullsShown:
    """How far Kahuna's logs were read, and whether the backfill is done."""
    namespace = call.namespace
    async with call.service.database.read() as connection:
        rows = await pulls.standing(connection, namespace)
        done_at = await pulls.backfilled(connection, namespace)
    return PullsShown(namespace, done_at, [told(PullShown, row) for row in rows])


async def list_violations(call: Call[Violations, None]) -> ViolationsShown:
    """Messages that Kahuna sent to an address after its stop was in force."""
    query = call.query
    wanted = violations.Asked(call.namespace, query.channel, query.known_by, in_utc(query.since, "since"))
    before = _place(query.cursor)
    async with call.service.database.read() as connection:
        rows = await violations.listed(connection, wanted, before, query.limit)
    last = rows[-1] if len(rows) == query.limit else None
    cursor = None if last is None else cursor_for(last.sent_at, b64encode(last.digest).decode(), last.address)
    return ViolationsShown([violation_told(row) for row in rows], cursor)


def _place(cursor: str | None) -> Place | None:
    place = place_at(cursor, _Place)
    if place is None:
        return None
    try:
        digest = b64decode(place[1])
    except ValueError:
        digest = b""
    if not digest or "\0" in place[2]:
        raise Unprocessable("cursor must be the `next` of an earlier page; begin without one.", "invalid-cursor")
    return Place(place[0], digest, place[2])


def violation_told(row: Any) -> ViolationShown:
    """A violation as answers show it."""
    message, stop = row.evidence["message"], row.evidence["stop"]
    return told(
        ViolationShown,
        row,
        message={"sent_at": row.sent_at, "campaign": row.campaign, "campaign_id": row.campaign_id, "record": message},
        stop=stop | {"action_id": stop["audit_id"], "occurred_at": shown(row.occurred_at)},
    )


_COUNTS: Final = {"records": 120_000, "facts": 12, "evidence": 340, "known": 0, "rejected": 0, "violations": 1}

_PULL: Final = {
    "api": "email",
    "walk": "pull",
    "begins_at": "2026-01-01T00:00:00Z",
    "ends_at": None,
    "reached": "2026-01-31T11:50:00Z",
    "counts": _COUNTS,
    "last_at": "2026-01-31T12:00:00Z",
    "done_at": None,
    "error": None,
    "error_at": None,
}

_VIOLATION: Final = {
    "channel": "email",
    "address": "ann@example.com",
    "known_by": "kahuna",
    "known_since": "2026-01-29T08:00:00Z",
    "message": {
        "sent_at": "2026-01-31T09:00:00Z",
        "campaign": "Newsletter",
        "campaign_id": 1002,
        "record": {"action": "email", "email": "ann@example.com", "timestamp": "2026-01-31 09:00:00.000000"},
    },
    "stop": {
        "reason": "unsubscribe",
        "source": "kahuna",
        "origin": "kahuna_webhook",
        "occurred_at": "2026-01-29T08:00:00Z",
        "recorded_at": "2026-01-29T08:00:02Z",
        "batch_id": "019c13a5-5c80-7000-8000-0123456789ab",
        "entry_index": 0,
        "action_id": None,
        "correction_id": None,
        "accepted_at": None,
    },
    "found_at": "2026-01-31T09:20:00Z",
}

OPERATIONS: Final[list[AnyOperation]] = [
    Operation(
        "GET",
        "/v1/admin/pulls",
        list_pulls,
        scope="admin",
        query=Asked,
        answers=[
            Answer(
                200,
                PullsShown,
                "Each walk through each log.",
                {"namespace": "default", "backfilled_at": "2026-01-02T03:00:00Z", "pulls": [_PULL]},
            )
        ],
    ),
    Operation(
        "GET",
        "/v1/admin/violations",
        list_violations,
        scope="admin",
        query=Violations,
        answers=[Answer(200, ViolationsShown, "A page of them.", {"violations": [_VIOLATION], "next": None})],
        problems=["invalid-cursor"],
    ),
]
