"""Owns what operators decide of opt-ins that wait."""

import uuid
from datetime import datetime
from typing import Annotated, Any, Final, Literal, TypeAlias

import msgspec

from service.domain.addresses import Channel
from service.flows import review
from service.store import reviews
from service.store.reviews import Place
from service.web.asking import Walk, cursor_for, id_in, place_at, told
from service.web.contract import Answer, AnyOperation, Asked, Body, Call, Moment, Operation, Shown, Text
from service.web.http import shown

_Place: TypeAlias = tuple[Moment, uuid.UUID]


class Decision(msgspec.Struct, forbid_unknown_fields=True):
    """A note for the audit log."""

    note: Text | None = None


class Reviews(Walk, frozen=True, kw_only=True):
    """Which reviews."""

    state: Annotated[Literal["pending", "approved", "refused"], msgspec.Meta(description="Opt-ins in this state.")] = (
        "pending"
    )


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
    """Opt-ins, the oldest first; `next` is the cursor of the page after, null if there is none."""

    reviews: list[ReviewShown]
    next: str | None


async def list_reviews(call: Call[Reviews, None]) -> ReviewsShown:
    """Opt-ins that wait for a person, oldest first, or were decided by one."""
    namespace, query = call.namespace, call.query
    after = place_at(query.cursor, _Place)
    async with call.service.database.read() as connection:
        rows = await reviews.by_state(connection, namespace, query.state, query.limit, Place(*after) if after else None)
    cursor = cursor_for(rows[-1]["received_at"], rows[-1]["id"]) if len(rows) == query.limit else None
    return ReviewsShown([review_told(row) for row in rows], cursor)


async def approve_review(call: Call[Asked, Decision]) -> ReviewShown:
    """This opt-in is genuine; it becomes a fact."""
    return await _decide(call, "approved")


async def refuse_review(call: Call[Asked, Decision]) -> ReviewShown:
    """This opt-in is not to be believed."""
    return await _decide(call, "refused")


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
    return review_told(decided)


def review_told(row: Any) -> ReviewShown:
    """An opt-in as it is shown."""
    return told(ReviewShown, row, occurred_at=shown(row["occurred_at"]))


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

_DECIDED: Final = Answer(200, ReviewShown, "The opt-in, as decided.", _REVIEW | {"state": "approved"})

OPERATIONS: Final[list[AnyOperation]] = [
    Operation(
        "GET",
        "/v1/admin/reviews",
        list_reviews,
        scope="admin",
        query=Reviews,
        answers=[Answer(200, ReviewsShown, "A page of them.", {"reviews": [_REVIEW], "next": None})],
        problems=["invalid-cursor"],
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
