"""Owns what operators ask of the archive and the quarantine: the batches as received, replay, requeue, discard."""

import re
import uuid
from base64 import b64encode
from datetime import datetime
from typing import Annotated, Any, Final, TypeAlias

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from service.domain.addresses import CHANNELS, Channel
from service.errors import NotFound, Unprocessable
from service.flows import quarantine as deeds
from service.flows import replay
from service.flows.replay import Replayed
from service.store import archive, quarantine
from service.store.quarantine import Place
from service.web.asking import asked, asked_by_id, choice_in, cursor_for, id_in, limit_in, moment_in, place_at
from service.web.http import answer, body_of, caller_with, namespace_for, parameters, service_of

ERRORS_SHOWN: Final = 100

BATCH_STATES: Final = ("recorded", "applied")
ENTRY_STATES: Final = ("open", "requeued", "discarded")

_Moment: TypeAlias = Annotated[datetime, msgspec.Meta(tz=True)]
_Index: TypeAlias = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]
_Error: TypeAlias = Annotated[str, msgspec.Meta(pattern="^[a-z0-9-]{1,100}$")]


class Requeue(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a call that requeues many: which entries, and where an earlier call stopped."""

    namespace: str | None = None
    channel: Channel | None = None
    error: _Error | None = None
    batch_id: uuid.UUID | None = None
    cursor: str | None = None


class Discard(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a discard: why."""

    reason: Annotated[str, msgspec.Meta(pattern=r"\S")]


async def list_batches(request: Request) -> Response:
    """GET: the newest batches."""
    _, namespace, given = await asked(request, "channel", "state", "since", "until", "limit", "cursor")
    channel, state = choice_in(given, "channel", CHANNELS), choice_in(given, "state", BATCH_STATES)
    wanted = archive.Asked(namespace, channel, state, moment_in(given, "since"), moment_in(given, "until"))
    limit, before = limit_in(given), place_at(given.get("cursor"), tuple[uuid.UUID])
    async with service_of(request).database.read() as connection:
        rows = await archive.listed(connection, wanted, before[0] if before else None, limit)
    cursor = cursor_for(rows[-1].id) if len(rows) == limit else None
    return answer({"batches": [_batch(row) for row in rows], "next": cursor})


async def one_batch(request: Request) -> Response:
    """GET: a batch with its headers and its body, as received."""
    row, body = await _batch_asked_for(request)
    text, encoding = _as_text(body)
    errors = (row.errors or [])[:ERRORS_SHOWN]
    return answer(
        _batch(row) | {"headers": row.headers, "errors": errors, "body": text, "body_encoding": encoding},
    )


async def one_body(request: Request) -> Response:
    """GET: the body of a batch, byte for byte."""
    _, body = await _batch_asked_for(request)
    # Whatever is in it, no browser is to make anything of it.
    headers = {"X-Content-Type-Options": "nosniff", "Content-Disposition": "attachment"}
    return Response(body, headers=headers, media_type="application/octet-stream")


async def replay_batch(request: Request) -> Response:
    """POST: apply a batch again by the rules of today; with `dry_run=true`, only say what that would change."""
    actor, namespace, given = await asked_by_id(request, "dry_run")
    dry_run = choice_in(given, "dry_run", ("true", "false")) == "true"
    service = service_of(request)
    replayed = await replay.replay_one(
        service.database, id_in(request), service.rules, service.clock, actor, namespace, dry_run=dry_run
    )
    return answer(_replayed(replayed) | {"dry_run": dry_run})


async def list_entries(request: Request) -> Response:
    """GET: the newest entries that could not be understood, or what was decided of them."""
    _, namespace, given = await asked(request, "channel", "state", "error", "batch_id", "limit", "cursor")
    wanted = quarantine.Asked(
        namespace,
        choice_in(given, "state", ENTRY_STATES) or "open",
        choice_in(given, "channel", CHANNELS),
        _error_in(given),
        _batch_id_in(given),
    )
    limit, before = limit_in(given), place_at(given.get("cursor"), tuple[_Moment, uuid.UUID, _Index])
    async with service_of(request).database.read() as connection:
        rows = await quarantine.listed(connection, wanted, Place(*before) if before else None, limit)
    cursor = cursor_for(*(getattr(rows[-1], name) for name in Place._fields)) if len(rows) == limit else None
    return answer({"entries": [_entry(row) for row in rows], "next": cursor})


async def one_entry(request: Request) -> Response:
    """GET: an entry that could not be understood, and what was decided of it."""
    _, namespace, _ = await asked_by_id(request)
    async with service_of(request).database.read() as connection:
        row = await quarantine.one(connection, *_place_in(request))
    if row is None or namespace not in (None, row.namespace):
        raise NotFound("There is no such entry; list them with GET /v1/admin/quarantine.")
    return answer(_entry(row))


async def requeue_entry(request: Request) -> Response:
    """POST: read this entry again by the rules of today."""
    actor, namespace, _ = await asked_by_id(request)
    service = service_of(request)
    place = _place_in(request)
    row = await deeds.requeue_one(service.database, place, actor, service.rules, service.clock, namespace)
    return answer(_entry(row))


async def requeue_entries(request: Request) -> Response:
    """POST: read many entries again; `next` says where to go on."""
    caller = await caller_with(request, "admin")
    given = parameters(request, "namespace").get("namespace")
    wanted = await body_of(request, Requeue)
    if given is not None and wanted.namespace not in (None, given):
        raise Unprocessable("The path and the body name two namespaces; name one.", "invalid-parameter")
    namespace = namespace_for(request, caller, given or wanted.namespace)
    service = service_of(request)
    entries = quarantine.Asked(namespace, "open", wanted.channel, wanted.error, wanted.batch_id)
    after = place_at(wanted.cursor, tuple[_Moment, uuid.UUID, _Index])
    done = await deeds.requeue_many(
        service.database, entries, Place(*after) if after else None, caller.name, service.rules, service.clock
    )
    return answer(done._asdict() | {"next": cursor_for(*done.next) if done.next else None})


async def discard_entry(request: Request) -> Response:
    """POST: take this entry out of the way, for a reason."""
    actor, namespace, _ = await asked_by_id(request)
    reason = (await body_of(request, Discard)).reason
    service = service_of(request)
    row = await deeds.discard(service.database, _place_in(request), actor, reason, service.clock, namespace)
    return answer(_entry(row))


_ENTRY: Final = "/v1/admin/quarantine/{batch_id}/{entry_index}"

ROUTES: Final = [
    Route("/v1/admin/batches", list_batches, methods=["GET"]),
    Route("/v1/admin/batches/{id}", one_batch, methods=["GET"]),
    Route("/v1/admin/batches/{id}/body", one_body, methods=["GET"]),
    Route("/v1/admin/batches/{id}/replay", replay_batch, methods=["POST"]),
    Route("/v1/admin/quarantine", list_entries, methods=["GET"]),
    Route("/v1/admin/quarantine/requeue", requeue_entries, methods=["POST"]),
    Route(_ENTRY, one_entry, methods=["GET"]),
    Route(f"{_ENTRY}/requeue", requeue_entry, methods=["POST"]),
    Route(f"{_ENTRY}/discard", discard_entry, methods=["POST"]),
]


async def _batch_asked_for(request: Request) -> tuple[Any, bytes]:
    _, namespace, _ = await asked_by_id(request)
    async with service_of(request).database.read() as connection:
        found = await archive.one(connection, id_in(request))
    if found is None or namespace not in (None, found[0].namespace):
        raise NotFound("There is no such batch; list them with GET /v1/admin/batches.")
    return found


def _place_in(request: Request) -> tuple[uuid.UUID, int]:
    text = request.path_params["entry_index"]
    if not text.isdecimal() or len(text) > 9:
        raise NotFound("There is no such entry; list them with GET /v1/admin/quarantine.")
    return id_in(request, "batch_id"), int(text)


def _error_in(given: dict[str, str]) -> str | None:
    error = given.get("error")
    if error is not None and not re.fullmatch(r"[a-z0-9-]{1,100}", error):
        raise Unprocessable("error must be a slug such as unknown-reason.", "invalid-parameter")
    return error


def _batch_id_in(given: dict[str, str]) -> uuid.UUID | None:
    try:
        return uuid.UUID(given["batch_id"]) if "batch_id" in given else None
    except ValueError:
        raise Unprocessable("batch_id must be the id of a batch.", "invalid-parameter") from None


def _as_text(body: bytes) -> tuple[str, str]:
    """The bytes as JSON can hold them, and how to get them back."""
    try:
        return body.decode(), "utf-8"
    except UnicodeDecodeError:
        return b64encode(body).decode(), "base64"


def _batch(row: Any) -> dict[str, Any]:
    names = ("id", "namespace", "channel", "origin", "state", "received_at", "applied_at", "body_bytes")
    counts = ("accepted", "duplicates", "rejected", "attempts", "next_attempt_at", "last_error")
    return {name: getattr(row, name) for name in (*names, *counts)}


def _replayed(replayed: Replayed) -> dict[str, Any]:
    outcome = replayed.outcome
    counts = {"accepted": outcome.accepted, "duplicates": outcome.duplicates, "rejected": outcome.rejected}
    did = {"new": replayed.new, "requeued": replayed.requeued, "errors": outcome.errors[:ERRORS_SHOWN]}
    return {"batch_id": replayed.batch_id, "state": "applied"} | counts | did


def _entry(row: Any) -> dict[str, Any]:
    names = ("batch_id", "entry_index", "namespace", "channel", "error", "received_at", "state")
    decided = {name: getattr(row, name) for name in ("decided_by", "decided_at", "note")}
    text, encoding = _as_text(row.entry)
    return {name: getattr(row, name) for name in names} | {"entry": text, "entry_encoding": encoding} | decided
