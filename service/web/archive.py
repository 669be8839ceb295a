"""Owns what operators ask of the archive and the quarantine: the batches as received, replay, requeue, discard."""

import uuid
from base64 import b64encode
from datetime import datetime
from typing import Annotated, Any, Final, Literal, TypeAlias

import msgspec
from starlette.responses import Response

from service.domain.addresses import Channel
from service.errors import NotFound, Unprocessable
from service.flows import quarantine as deeds
from service.flows import replay
from service.flows.replay import Replayed
from service.store import archive, quarantine
from service.store.quarantine import Place
from service.web.asking import Walk, cursor_for, id_in, in_utc, place_at, told
from service.web.contract import Answer, AnyOperation, Asked, Body, Call, Moment, Operation, Text
from service.web.http import namespace_for

ERRORS_SHOWN: Final = 100

_Index: TypeAlias = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]
_Error: TypeAlias = Annotated[str, msgspec.Meta(pattern="^[a-z0-9-]{1,100}$", examples=["unknown-reason"])]
_Channel: TypeAlias = Annotated[Channel | None, msgspec.Meta(description="Of this channel only.")]
_Place: TypeAlias = tuple[Moment, uuid.UUID, _Index]


class Batches(Walk, frozen=True, kw_only=True):
    """Which batches."""

    channel: _Channel = None
    state: Annotated[Literal["recorded", "applied"] | None, msgspec.Meta(description="Batches in this state only.")] = (
        None
    )
    since: Annotated[Moment | None, msgspec.Meta(description="Received at this time or later.")] = None
    until: Annotated[Moment | None, msgspec.Meta(description="Received before this time.")] = None


class Entries(Walk, frozen=True, kw_only=True):
    """Which entries."""

    channel: _Channel = None
    state: Annotated[Literal["open", "requeued", "discarded"], msgspec.Meta(description="Entries in this state.")] = (
        "open"
    )
    error: Annotated[_Error | None, msgspec.Meta(description="Entries refused for this reason.")] = None
    batch_id: Annotated[uuid.UUID | None, msgspec.Meta(description="Entries of this batch.")] = None


class Replay(Asked, frozen=True, kw_only=True):
    """How to apply a batch again."""

    dry_run: Annotated[bool, msgspec.Meta(description="Only say what it would change.")] = False


class Requeue(msgspec.Struct, forbid_unknown_fields=True):
    """Which entries to read again, and where an earlier call stopped."""

    namespace: Text | None = None
    channel: Channel | None = None
    error: _Error | None = None
    batch_id: uuid.UUID | None = None
    cursor: Text | None = None


class Discard(msgspec.Struct, forbid_unknown_fields=True):
    """Why it is taken out of the way."""

    reason: Annotated[str, msgspec.Meta(pattern="^[^\\x00]*[^\\s\\x00][^\\x00]*$")]


class EntryError(msgspec.Struct):
    """An entry that went to quarantine, by its index in the body, and why."""

    index: int
    error: str


class BatchShown(msgspec.Struct, kw_only=True):
    """A batch as it was received, and what came of it. The counts are null until it was applied."""

    id: uuid.UUID
    namespace: str
    channel: Channel
    origin: str
    state: str
    received_at: datetime
    applied_at: datetime | None
    body_bytes: int
    accepted: int | None
    duplicates: int | None
    rejected: int | None
    attempts: int
    next_attempt_at: datetime | None
    last_error: str | None


class BatchesShown(msgspec.Struct):
    """Batches, the newest first; `next` is the cursor of the page after, null if there is none."""

    batches: list[BatchShown]
    next: str | None


class WholeBatch(BatchShown, kw_only=True):
    """A batch with its headers and its body. A body that is no UTF-8 is shown in base64."""

    headers: dict[str, str]
    errors: list[EntryError]
    body: str
    body_encoding: Literal["utf-8", "base64"]


class ReplayedShown(msgspec.Struct):
    """What a replay did, or would do: `new` counts the facts and opt-ins that wait which nobody knew, `requeued` the
    entries that are understood by now."""

    batch_id: uuid.UUID
    state: Literal["applied"]
    accepted: int
    duplicates: int
    rejected: int
    new: int
    requeued: int
    errors: list[EntryError]
    dry_run: bool


class EntryShown(msgspec.Struct):
    """An entry that could not be understood, and what was decided of it. One that is no UTF-8 is shown in base64."""

    batch_id: uuid.UUID
    entry_index: int
    namespace: str
    channel: Channel
    error: str
    received_at: datetime
    state: str
    entry: str
    entry_encoding: Literal["utf-8", "base64"]
    decided_by: str | None
    decided_at: datetime | None
    note: str | None


class EntriesShown(msgspec.Struct):
    """Entries, the newest first; `next` is the cursor of the page after, null if there is none."""

    entries: list[EntryShown]
    next: str | None


class RequeuedShown(msgspec.Struct):
    """What came of many: `entries` were read again, `requeued` of them understood; `new` counts what nobody knew,
    `failed` the batches that could not be applied. `next` is the cursor for the next call, null at the end."""

    entries: int
    requeued: int
    new: int
    failed: int
    next: str | None


async def list_batches(call: Call[Batches, None]) -> BatchesShown:
    """The newest batches."""
    query = call.query
    since, until = in_utc(query.since, "since"), in_utc(query.until, "until")
    wanted = archive.Asked(call.namespace, query.channel, query.state, since, until)
    before = place_at(query.cursor, tuple[uuid.UUID])
    async with call.service.database.read() as connection:
        rows = await archive.listed(connection, wanted, before[0] if before else None, query.limit)
    cursor = cursor_for(rows[-1].id) if len(rows) == query.limit else None
    return BatchesShown([told(BatchShown, row) for row in rows], cursor)


async def one_batch(call: Call[Asked, None]) -> WholeBatch:
    """A batch with its headers and its body, as received."""
    row, body = await _batch_asked_for(call)
    text, encoding = _as_text(body)
    errors = (row.errors or [])[:ERRORS_SHOWN]
    return told(WholeBatch, row, errors=errors, body=text, body_encoding=encoding)


async def one_body(call: Call[Asked, None]) -> Response:
    """The body of a batch, byte for byte."""
    _, body = await _batch_asked_for(call)
    # Whatever is in it, no browser is to make anything of it.
    headers = {"X-Content-Type-Options": "nosniff", "Content-Disposition": "attachment"}
    return Response(body, headers=headers, media_type="application/octet-stream")


async def replay_batch(call: Call[Replay, None]) -> ReplayedShown:
    """Apply a batch again by the rules of today; with `dry_run=true`, only say what that would change."""
    service, dry_run = call.service, call.query.dry_run
    shared = (service.database, id_in(call), service.rules, service.clock, call.caller.name, call.namespace_limit)
    replayed = await replay.replay_one(*shared, dry_run=dry_run, metrics=service.metrics)
    return _replayed(replayed, dry_run=dry_run)


async def list_entries(call: Call[Entries, None]) -> EntriesShown:
    """The newest entries that could not be understood, or what was decided of them."""
    query = call.query
    wanted = quarantine.Asked(call.namespace, query.state, query.channel, query.error, query.batch_id)
    before = place_at(query.cursor, _Place)
    async with call.service.database.read() as connection:
        rows = await quarantine.listed(connection, wanted, Place(*before) if before else None, query.limit)
    last = (getattr(rows[-1], name) for name in Place._fields) if len(rows) == query.limit else None
    return EntriesShown([entry_told(row) for row in rows], cursor_for(*last) if last else None)


async def one_entry(call: Call[Asked, None]) -> EntryShown:
    """An entry that could not be understood, and what was decided of it."""
    limit = call.namespace_limit
    async with call.service.database.read() as connection:
        row = await quarantine.one(connection, *_place_in(call))
    if row is None or limit not in (None, row.namespace):
        raise NotFound("There is no such entry; list them with GET /v1/admin/quarantine.")
    return entry_told(row)


async def requeue_entry(call: Call[Asked, None]) -> EntryShown:
    """Read this entry again by the rules of today."""
    service, place, actor = call.service, _place_in(call), call.caller.name
    shared = (service.database, place, actor, service.rules, service.clock)
    return entry_told(await deeds.requeue_one(*shared, call.namespace_limit, service.metrics))


async def requeue_entries(call: Call[Asked, Requeue]) -> RequeuedShown:
    """Read many entries again; `next` says where to go on."""
    wanted, service, given = call.body, call.service, call.query.namespace
    if given is not None and wanted.namespace not in (None, given):
        raise Unprocessable("The path and the body name two namespaces; name one.", "two-namespaces")
    namespace = namespace_for(service, call.caller, given or wanted.namespace)
    entries = quarantine.Asked(namespace, "open", wanted.channel, wanted.error, wanted.batch_id)
    after = place_at(wanted.cursor, _Place)
    whose = (Place(*after) if after else None, call.caller.name)
    done = await deeds.requeue_many(service.database, entries, *whose, service.rules, service.clock, service.metrics)
    return told(RequeuedShown, done, next=cursor_for(*done.next) if done.next else None)


async def discard_entry(call: Call[Asked, Discard]) -> EntryShown:
    """Take this entry out of the way, for a reason."""
    service, limit = call.service, call.namespace_limit
    place, actor = _place_in(call), call.caller.name
    return entry_told(await deeds.discard(service.database, place, actor, call.body.reason, service.clock, limit))


async def _batch_asked_for(call: Call[Asked, None]) -> tuple[Any, bytes]:
    limit = call.namespace_limit
    async with call.service.database.read() as connection:
        found = await archive.one(connection, id_in(call))
    if found is None or limit not in (None, found[0].namespace):
        raise NotFound("There is no such batch; list them with GET /v1/admin/batches.")
    return found


def _place_in(call: Call[Any, Any]) -> tuple[uuid.UUID, int]:
    text = call.request.path_params["entry_index"]
    if not (text.isascii() and text.isdecimal()) or len(text) > 9:
        raise NotFound("There is no such entry; list them with GET /v1/admin/quarantine.")
    return id_in(call, "batch_id"), int(text)


def _as_text(body: bytes) -> tuple[str, str]:
    """The bytes as JSON can hold them, and how to get them back."""
    try:
        return body.decode(), "utf-8"
    except UnicodeDecodeError:
        return b64encode(body).decode(), "base64"


def _replayed(replayed: Replayed, *, dry_run: bool) -> ReplayedShown:
    outcome = replayed.outcome
    counts = {"accepted": outcome.accepted, "duplicates": outcome.duplicates, "rejected": outcome.rejected}
    errors = outcome.errors[:ERRORS_SHOWN]
    return told(ReplayedShown, replayed, state="applied", errors=errors, dry_run=dry_run, **counts)


def entry_told(row: Any) -> EntryShown:
    """An entry as it is shown."""
    text, encoding = _as_text(row.entry)
    return told(EntryShown, row, entry=text, entry_encoding=encoding)


_BATCH_ID: Final = "019c13a5-5c80-7000-8000-0123456789ab"

_BATCH: Final = {
    "id": _BATCH_ID,
    "namespace": "default",
    "channel": "email",
    "origin": "kahuna_webhook",
    "state": "applied",
    "received_at": "2026-01-31T12:00:01Z",
    "applied_at": "2026-01-31T12:00:01Z",
    "body_bytes": 78,
    "accepted": 0,
    "duplicates": 0,
    "rejected": 1,
    "attempts": 1,
    "next_attempt_at": None,
    "last_error": None,
}

_ERRORS: Final = {"errors": [{"index": 0, "error": "unknown-reason"}]}

_WHOLE: Final = {
    "headers": {"content-type": "application/json"},
    "body": '[{"email": "ann@example.com", "reason": "bored", "timestamp": 1769860800}]',
    "body_encoding": "utf-8",
}

_REPLAYED: Final = {
    "batch_id": _BATCH_ID,
    "state": "applied",
    "accepted": 1,
    "duplicates": 0,
    "rejected": 0,
    "new": 1,
    "requeued": 1,
    "errors": [],
    "dry_run": True,
}

_ENTRY: Final = {
    "batch_id": _BATCH_ID,
    "entry_index": 0,
    "namespace": "default",
    "channel": "email",
    "error": "unknown-reason",
    "received_at": "2026-01-31T12:00:01Z",
    "state": "open",
    "entry": '{"email": "ann@example.com", "reason": "bored", "timestamp": 1769860800}',
    "entry_encoding": "utf-8",
    "decided_by": None,
    "decided_at": None,
    "note": None,
}

_DECIDED: Final = {"decided_by": "support", "decided_at": "2026-02-01T09:30:00Z"}

_REQUEUED: Final = {"entries": 1, "requeued": 1, "new": 1, "failed": 0, "next": None}

_BATCHES: Final = "/v1/admin/batches"
_ENTRIES: Final = "/v1/admin/quarantine"
_ONE: Final = f"{_ENTRIES}/{{batch_id}}/{{entry_index}}"

OPERATIONS: Final[list[AnyOperation]] = [
    Operation(
        "GET",
        _BATCHES,
        list_batches,
        scope="admin",
        query=Batches,
        answers=[Answer(200, BatchesShown, "A page of them.", {"batches": [_BATCH], "next": None})],
        problems=["invalid-cursor"],
    ),
    Operation(
        "GET",
        f"{_BATCHES}/{{id}}",
        one_batch,
        scope="admin",
        query=Asked,
        answers=[Answer(200, WholeBatch, "The batch.", _BATCH | _ERRORS | _WHOLE)],
        problems=["not-found"],
    ),
    Operation(
        "GET",
        f"{_BATCHES}/{{id}}/body",
        one_body,
        scope="admin",
        query=Asked,
        answers=[
            Answer(
                200,
                bytes,
                "The bytes, decompressed.",
                media_type="application/octet-stream",
                headers={"Content-Disposition": "`attachment`.", "X-Content-Type-Options": "`nosniff`."},
            )
        ],
        problems=["not-found"],
    ),
    Operation(
        "POST",
        f"{_BATCHES}/{{id}}/replay",
        replay_batch,
        scope="admin",
        query=Replay,
        answers=[Answer(200, ReplayedShown, "What it did, or would do.", _REPLAYED)],
        problems=["not-found", "batch-gone"],
    ),
    Operation(
        "GET",
        _ENTRIES,
        list_entries,
        scope="admin",
        query=Entries,
        answers=[Answer(200, EntriesShown, "A page of them.", {"entries": [_ENTRY], "next": None})],
        problems=["invalid-cursor"],
    ),
    Operation(
        "POST",
        f"{_ENTRIES}/requeue",
        requeue_entries,
        scope="admin",
        query=Asked,
        body=Body(Requeue, {"error": "unknown-reason"}),
        answers=[Answer(200, RequeuedShown, "What came of them.", _REQUEUED)],
        problems=["invalid-cursor", "two-namespaces"],
    ),
    Operation(
        "GET",
        _ONE,
        one_entry,
        scope="admin",
        query=Asked,
        answers=[Answer(200, EntryShown, "The entry.", _ENTRY)],
        problems=["not-found"],
    ),
    Operation(
        "POST",
        f"{_ONE}/requeue",
        requeue_entry,
        scope="admin",
        query=Asked,
        answers=[Answer(200, EntryShown, "The entry, understood now.", _ENTRY | _DECIDED | {"state": "requeued"})],
        problems=["not-found", "already-decided", "batch-gone"],
    ),
    Operation(
        "POST",
        f"{_ONE}/discard",
        discard_entry,
        scope="admin",
        query=Asked,
        body=Body(Discard, {"reason": "A test of the sender's"}),
        answers=[
            Answer(
                200,
                EntryShown,
                "The entry, discarded.",
                _ENTRY | _DECIDED | {"state": "discarded", "note": "A test of the sender's"},
            )
        ],
        problems=["not-found", "already-decided"],
    ),
]
