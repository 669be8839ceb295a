"""Owns the list as callers walk through it: some causes at a time, in the order of their keys."""

import uuid
from datetime import datetime
from typing import Annotated, Final, Literal

import msgspec

from service.domain.addresses import Channel
from service.domain.facts import Origin, reasons_of
from service.domain.suppression import Policy, standing
from service.errors import Unprocessable
from service.store import reading
from service.store.reading import START, Listed, Place, Wanted
from service.web.asking import Walk, cursor_for, in_utc, place_at
from service.web.contract import Answer, AnyOperation, Call, MomentOrDay, Operation, Shown
from service.web.suppressions import cause_told

Reason = Literal[
    "unsubscribe",
    "hard_bounce",
    "soft_bounce",
    "complaint",
    "invalid",
    "blocked",
    "rejected",
    "manual",
    "do_not_call",
]
"""Every reason of either channel."""


class Filters(Walk, frozen=True, kw_only=True):
    """Which rows of the list are wanted; what is left out is not asked about."""

    channel: Annotated[Channel | None, msgspec.Meta(description="Rows of this channel alone.")] = None
    reason: Annotated[Reason | None, msgspec.Meta(description="Rows with this reason alone.")] = None
    origin: Annotated[Origin | None, msgspec.Meta(description="Where what decided the cause came from.")] = None
    active: Annotated[bool | None, msgspec.Meta(description="Whether the cause is in force now.")] = None
    since: Annotated[
        MomentOrDay | None,
        msgspec.Meta(
            description="Recorded at this moment or later; a day is its beginning in UTC.",
            examples=["2026-01-31T12:00:00Z"],
        ),
    ] = None


class Row(msgspec.Struct):
    """A cause, and whose it is. `batch_id` names the batch that it came in."""

    channel: str
    address: str
    reason: str
    active: bool
    occurred_at: Shown | None
    recorded_at: datetime | None
    origin: str | None
    batch_id: uuid.UUID | None
    until: Shown | None


class Listing(msgspec.Struct):
    """Some rows of the list. `next` is the cursor of the next page; null: this is the end."""

    namespace: str
    suppressions: list[Row]
    next: str | None


async def listed(call: Call[Filters, None]) -> Listing:
    """The list, a page at a time: one row for each address and reason, whether in force or not.

    The order is that of the addresses and never changes, so what is there during a whole walk is met exactly once,
    whatever is written meanwhile. A page may hold fewer rows than its limit, even none: only a `next` of null is the
    end.
    """
    query, service, namespace = call.query, call.service, call.namespace
    since = in_utc(query.since, "since")
    channel = call.channel(query.channel)
    check_reason(channel, query.reason)
    wanted = Wanted(namespace, channel, query.reason, query.origin, query.active, since)
    after = Place(*place_at(query.cursor, tuple[str, str, str, str])) if query.cursor is not None else START
    if any("\0" in part for part in after):
        raise Unprocessable("cursor must be the `next` of an earlier page.", "invalid-cursor")
    now, policy = int(service.now.timestamp()), service.rules.policy
    async with service.database.read() as connection:
        rows, place = await reading.page(connection, wanted, after, query.limit, now, policy)
    told = [_row(one, now, policy) for one in rows]
    return Listing(namespace, told, None if place is None else cursor_for(*place))


def check_reason(channel: Channel | None, reason: str | None) -> None:
    """Refuses a filter that nothing can pass: a reason of the other channel."""
    if channel is not None and reason is not None and reason not in reasons_of(channel):
        allowed = ", ".join(reasons_of(channel))
        raise Unprocessable(f"No {channel} address has this reason; use one of {allowed}.", "unknown-reason")


def _row(one: Listed, now: int, policy: Policy) -> Row:
    cause = cause_told(standing(one.row.cause, now, policy), one.row)
    return Row(one.place.channel, one.place.address, *msgspec.structs.astuple(cause))


_EXAMPLE: Final = {
    "namespace": "default",
    "suppressions": [
        {
            "channel": "email",
            "address": "ann@example.com",
            "reason": "unsubscribe",
            "active": True,
            "occurred_at": "2026-01-31T12:00:00Z",
            "recorded_at": "2026-01-31T12:00:01.234567Z",
            "origin": "kahuna_webhook",
            "batch_id": "019c13a5-5c80-7000-8000-0123456789ab",
            "until": None,
        }
    ],
    "next": None,
}

OPERATIONS: Final[list[AnyOperation]] = [
    Operation(
        "GET",
        "/v1/suppressions",
        listed,
        scope="read",
        query=Filters,
        answers=[Answer(200, Listing, "A page of the list.", _EXAMPLE)],
        problems=["invalid-cursor", "unknown-reason"],
    ),
]
