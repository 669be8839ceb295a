"""Owns the explanation of one address: the verdict in a sentence, and everything that was ever noted about it."""

import uuid
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Final, TypeAlias

import msgspec

from service.domain.addresses import Channel
from service.domain.explanation import Explanation, Rule, Teller, explain
from service.domain.suppression import Policy, Purpose, Verdict, verdict
from service.errors import Unprocessable
from service.store import history
from service.store.database import Database
from service.store.history import BEGINNING, Event, Moment
from service.store.suppressions import CauseRow, Subject
from service.web.asking import Walk, cursor_for, place_at
from service.web.contract import Answer, AnyOperation, Call, Operation, Shown
from service.web.http import shown
from service.web.subject import subject_of


class Review(Walk, frozen=True, kw_only=True):
    """What a question about a history may say."""

    purpose: Annotated[Purpose, msgspec.Meta(description="What the message is for that the verdict speaks of.")] = (
        "marketing"
    )


class Reasoned(msgspec.Struct):
    """The verdict of now and the rule that decided it: about which reason (null: nobody ever told us to stop), and in a
    sentence to be read out."""

    suppressed: bool
    since: Shown | None
    until: Shown | None
    rule: Rule
    reason: str | None
    sentence: str


class Batch(msgspec.Struct):
    """The callback that a fact came in. Where `archived` is false, retention has dropped it, and its id is all that is
    left."""

    id: uuid.UUID
    archived: bool
    origin: str | None
    received_at: datetime | None


class ActionTold(msgspec.Struct, tag="action", tag_field="kind"):
    """Somebody did something. `detail` holds the evidence or the note that was given; times in it are RFC 3339 as
    everywhere."""

    at: datetime
    id: uuid.UUID
    actor: str
    action: str
    detail: dict[str, Any]


class ReviewTold(msgspec.Struct, tag="review", tag_field="kind"):
    """An opt-in that waited for a person, or still does."""

    at: datetime
    id: uuid.UUID
    reason: str
    occurred_at: Shown | None
    why: str
    state: str
    decided_at: datetime | None
    decided_by: str | None
    note: str | None
    batch: Batch | None


class FactTold(msgspec.Struct, tag="fact", tag_field="kind"):
    """Somebody said something. Its evidence is a batch, or the action with the id `action_id`. `address_received` is
    how the address was spelt, where that differs. Since `taken_back_at` this word does not count any more."""

    at: datetime
    reason: str
    action: str
    occurred_at: Shown | None
    source: str
    origin: str
    address_received: str | None
    batch: Batch | None
    entry_index: int | None
    action_id: uuid.UUID | None
    taken_back_at: datetime | None


class CorrectionTold(msgspec.Struct, tag="correction", tag_field="kind"):
    """What Kahuna was to be told. Once `sent`, `evidence` holds its acceptance."""

    at: datetime
    id: int
    slot: str
    action: str
    occurred_at: Shown | None
    state: str
    attempts: int
    settled_at: datetime | None
    reason: str | None
    evidence: Any


class MergeTold(msgspec.Struct, tag="merge", tag_field="kind"):
    """Kahuna made one user of two, one or both of which (`older`, `newer`, `common`) had this address. `record` is its
    log record, with the credentials of both."""

    at: datetime
    side: str
    occurred_at: Shown | None
    record: dict[str, Any]


class RetractionTold(msgspec.Struct, tag="retraction", tag_field="kind"):
    """A fact was taken back, as part of an import, a surge or a run (`what`, its id is `of`): the fact with this
    reason, action, time and source. `id` is that of the retraction. `still_known`: others have said it, too."""

    at: datetime
    id: uuid.UUID
    actor: str
    what: str
    of: uuid.UUID
    note: str
    reason: str
    action: str
    occurred_at: Shown | None
    source: str
    batch: Batch | None
    still_known: bool


Told: TypeAlias = ActionTold | ReviewTold | FactTold | CorrectionTold | MergeTold | RetractionTold


class History(msgspec.Struct):
    """Why an address is suppressed or not, and what happened to it, oldest first. `next` is the cursor of the next
    page; null: this is the end."""

    namespace: str
    channel: Channel
    address: str
    verdict: Reasoned
    events: list[Told]
    next: str | None


async def explained(call: Call[Review, None]) -> History:
    """Why is this address suppressed, or why not? And all that we ever noted about it.

    Facts, the batches they came in, opt-ins under review, corrections with Kahuna's acceptance, and who did what on
    which evidence; oldest first, in the order in which we came to know them.
    """
    subject, service = subject_of(call), call.service
    known = await service.lookups.ask(subject)
    return await history_of(service.database, service.rules.policy, service.now, subject, call.query, known)


async def history_of(
    database: Database, policy: Policy, at: datetime, subject: Subject, query: Review, causes: Sequence[CauseRow]
) -> History:
    """The verdict of this moment about an address with these causes, and a page of its history."""
    after = Moment(*place_at(query.cursor, tuple[datetime, int, str])) if query.cursor is not None else BEGINNING
    if "\0" in after.key or not -1 <= after.kind < len(history.KINDS):
        raise Unprocessable("cursor must be the `next` of an earlier page.", "invalid-cursor")
    async with database.read() as connection:
        events = await history.page(connection, subject, after, query.limit)
        waiting = await history.waiting(connection, subject)
        names = await history.names(connection, subject)
    now = int(at.timestamp())
    judged = verdict({row.cause.reason: row.cause for row in causes}, now, policy, query.purpose)
    tellers = {r.cause.reason: Teller(r.origin, names.get((r.cause.reason, r.origin or ""))) for r in causes}
    why = explain(judged, tellers, policy, query.purpose, waiting)
    further = cursor_for(*events[-1].moment) if len(events) == query.limit else None
    return History(*subject, _reasoned(judged, why), [_told(event) for event in events], further)


def _reasoned(judged: Verdict, why: Explanation) -> Reasoned:
    return Reasoned(judged.suppressed, shown(judged.since), shown(judged.until), *why)


_KINDS: Final[dict[str, type[Told]]] = {
    "action": ActionTold,
    "review": ReviewTold,
    "fact": FactTold,
    "correction": CorrectionTold,
    "merge": MergeTold,
    "retraction": RetractionTold,
}


def _told(event: Event) -> Told:
    kind = _KINDS[event.kind]
    batch = None
    if event.batch_id is not None:
        kept = event.batch
        batch = Batch(event.batch_id, kept is not None, kept and kept.origin, kept and kept.received_at)
    more = {"at": event.moment.at, "batch": batch} | dict.fromkeys(
        ("settled_at", "decided_at", "taken_back_at"), event.settled_at
    )
    found = event.told | {"kind": event.kind} | {n: more[n] for n in kind.__struct_fields__ if n in more}
    if "occurred_at" in found:
        found["occurred_at"] = shown(found["occurred_at"])
    if kind is ActionTold and type(at := found["detail"].get("occurred_at")) is int:
        found["detail"] = found["detail"] | {"occurred_at": shown(at)}
    return msgspec.convert(found, kind)


_EXAMPLE: Final = {
    "namespace": "default",
    "channel": "email",
    "address": "ann@example.com",
    "verdict": {
        "suppressed": True,
        "since": "2026-01-31T12:00:00Z",
        "until": None,
        "rule": "until-cleared",
        "reason": "unsubscribe",
        "sentence": "May not be messaged: this person unsubscribed on 31 January 2026 at 12:00 UTC; Kahuna, which "
        "sends our messages, told us so. This stands until a newer consent is recorded.",
    },
    "events": [
        {
            "kind": "fact",
            "at": "2026-01-31T12:00:01.234567Z",
            "reason": "unsubscribe",
            "action": "suppress",
            "occurred_at": "2026-01-31T12:00:00Z",
            "source": "kahuna",
            "origin": "kahuna_webhook",
            "address_received": "Ann@Example.com",
            "batch": {
                "id": "019c13a5-5c80-7000-8000-0123456789ab",
                "archived": True,
                "origin": "kahuna_webhook",
                "received_at": "2026-01-31T12:00:01.234567Z",
            },
            "entry_index": 0,
            "action_id": None,
            "taken_back_at": None,
        }
    ],
    "next": None,
}

OPERATIONS: Final[list[AnyOperation]] = [
    Operation(
        "GET",
        "/v1/suppressions/{channel}/{address:path}/history",
        explained,
        scope="read",
        query=Review,
        answers=[Answer(200, History, "The verdict, and a page of the history.", _EXAMPLE)],
        problems=["invalid-cursor"],
    ),
]
