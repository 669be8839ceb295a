"""Owns what operators ask about undoing: imports, surges, and the retractions that take back what they said.

A revert is answered at once with 202; the worker carries it out, and `/v1/admin/retractions/{id}` tells how far it is.
"""

import uuid
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Annotated, Any, Final, Literal, TypeAlias

import msgspec
from starlette.responses import Response

from service.domain.addresses import Channel
from service.errors import NotFound
from service.flows import retract, surges
from service.store import imports, retractions, withdrawals
from service.store import surges as surge_store
from service.store.database import Connection, until_settled
from service.web.asking import Page, Walk, cursor_for, id_in, place_at, told
from service.web.contract import Answer, AnyOperation, Asked, Body, Call, Moment, Operation, Shown, Text
from service.web.http import answer, shown

_Place: TypeAlias = tuple[Moment, uuid.UUID]


class Revert(msgspec.Struct, forbid_unknown_fields=True):
    """Why it is taken back: for the audit log, and for whoever asks about one of the addresses."""

    reason: Annotated[str, msgspec.Meta(pattern="^[^\\x00]*[^\\s\\x00][^\\x00]*$")]


class Judgement(msgspec.Struct, forbid_unknown_fields=True):
    """A note for the audit log."""

    note: Text | None = None


class Surges(Walk, frozen=True, kw_only=True):
    """Which surges."""

    state: Annotated[
        Literal["flagged", "kept", "reverted"] | None, msgspec.Meta(description="Surges in this state only.")
    ] = None


class Reverting(msgspec.Struct):
    """What the worker will do, or has done: asked for twice, it is the same."""

    id: uuid.UUID
    state: Literal["queued", "running", "done"]


class ImportShown(msgspec.Struct):
    """A list that was taken in. `counts` are those of its lines, once it has ended; `retraction_id` says that it is
    taken back, and where that is told."""

    id: uuid.UUID
    namespace: str
    channel: Channel
    state: str
    actor: str
    file_name: str | None
    reason: str | None
    as_of: Shown | None
    begun_at: datetime
    ended_at: datetime | None
    counts: dict[str, int]
    retraction_id: uuid.UUID | None


class ImportsShown(msgspec.Struct):
    """Imports, the newest first; `next` is the cursor of the page after, null if there is none."""

    imports: list[ImportShown]
    next: str | None


class SurgeShown(msgspec.Struct):
    """Stops of one reason in unusual number: `key` is the `domain`, or the `minute` in which they were recorded."""

    id: uuid.UUID
    namespace: str
    channel: Channel
    reason: str
    kind: Literal["domain", "minute"]
    key: str
    count: int
    first_at: datetime
    last_at: datetime
    flagged_at: datetime
    state: str
    decided_by: str | None
    decided_at: datetime | None
    note: str | None
    retraction_id: uuid.UUID | None


class SurgesShown(msgspec.Struct):
    """Surges, the newest first; `next` is the cursor of the page after, null if there is none."""

    surges: list[SurgeShown]
    next: str | None


class RetractionShown(msgspec.Struct):
    """What is taken back: `kind` and `of` name the import, surge or run. `phase` tells how far it is, `error` what is
    in the way just now.

    Of `counts`: `evidence` are the batches and actions that are through; `facts` are gone, `theirs` of them Kahuna had
    told; `handed_over` stay, since others said the same; `kept` stay, since dropped months said them too;
    `logged` are facts of Kahuna's logs that stand in the place of callbacks that were taken back;
    `corrections` were owed to Kahuna anew; `restored` were said again meanwhile; `gone` batches and `unclear` entries
    could not be read any more.
    """

    id: uuid.UUID
    namespace: str
    channel: Channel
    kind: Literal["import", "surge", "run"]
    of: uuid.UUID
    actor: str
    reason: str
    state: Literal["queued", "running", "done"]
    phase: str
    counts: dict[str, int]
    error: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


class Retractions(msgspec.Struct):
    """Retractions, the newest first."""

    retractions: list[RetractionShown]


class UnsaidShown(msgspec.Struct):
    """Kahuna holds a stop for this slot that nothing here stands behind any more, and it cannot be told so: nobody has
    said that the person may be messaged, or its API has no words for it."""

    address: str
    slot: str
    held_stop_at: Shown | None


class WholeRetraction(RetractionShown):
    """A retraction, with the first of what Kahuna cannot be told (`unsupported`), as of now."""

    unsupported: list[UnsaidShown]


async def list_imports(call: Call[Walk, None]) -> ImportsShown:
    """The lists that were taken in."""
    namespace, before = call.namespace, place_at(call.query.cursor, _Place)
    async with call.service.database.read() as connection:
        rows = await imports.newest(connection, namespace, before, call.query.limit)
        undone = await retractions.of_each(connection, "import", [row.id for row in rows])
    further = cursor_for(rows[-1].begun_at, rows[-1].id) if len(rows) == call.query.limit else None
    return ImportsShown([import_told(row, undone) for row in rows], further)


async def one_import(call: Call[Asked, None]) -> ImportShown:
    """One list that was taken in."""
    limit = call.namespace_limit
    async with call.service.database.read() as connection:
        row = await imports.one(connection, id_in(call))
        undone = await retractions.of_each(connection, "import", [id_in(call)])
    if row is None or limit not in (None, row.namespace):
        raise NotFound("There is no such import; list them with GET /v1/admin/imports.")
    return import_told(row, undone)


async def revert_import(call: Call[Asked, Revert]) -> Response:
    """Take back all that a list has said. What others have said too stays, and stops that come later count.

    The lines of the list count for nothing any more; sent again, it is another import, and counts.
    """
    return await _revert(call, retract.request_import)


async def list_surges(call: Call[Surges, None]) -> SurgesShown:
    """Groups of stops in unusual number. They are in force, as all stops are, until somebody takes them back."""
    namespace, query, before = call.namespace, call.query, place_at(call.query.cursor, _Place)
    async with call.service.database.read() as connection:
        rows = await surge_store.newest(connection, namespace, query.state, before, query.limit)
        undone = await retractions.of_each(connection, "surge", [row.id for row in rows])
    further = cursor_for(rows[-1].flagged_at, rows[-1].id) if len(rows) == query.limit else None
    return SurgesShown([surge_told(row, undone) for row in rows], further)


async def keep_surge(call: Call[Asked, Judgement]) -> SurgeShown:
    """These stops are genuine."""
    service, limit = call.service, call.namespace_limit
    row = await surges.keep(
        service.database, id_in(call), call.caller.name, call.body.note, service.clock, allowed_namespace=limit
    )
    return surge_told(row, {})


async def revert_surge(call: Call[Asked, Revert]) -> Response:
    """Take back the stops of this group. What others have said too stays, and stops that come later count."""
    return await _revert(call, retract.request_surge)


async def list_retractions(call: Call[Page, None]) -> Retractions:
    """What was taken back, or is being."""
    namespace = call.namespace
    async with call.service.database.read() as connection:
        rows = await retractions.newest(connection, namespace, call.query.limit)
    return Retractions([retraction_told(row) for row in rows])


def retraction_told(row: Any) -> RetractionShown:
    """A retraction as it is shown in a list."""
    return told(RetractionShown, row)


async def one_retraction(call: Call[Page, None]) -> WholeRetraction:
    """How far a retraction is, what it came to, and what Kahuna cannot be told of it."""
    limit = call.namespace_limit
    async with call.service.database.read() as connection:
        row = await retractions.one(connection, id_in(call))
        if row is None or limit not in (None, row.namespace):
            raise NotFound("There is no such retraction; list them with GET /v1/admin/retractions.")
        return await whole_retraction(connection, row, call.query.limit)


async def whole_retraction(connection: Connection, row: Any, limit: int) -> WholeRetraction:
    """A retraction as it is shown by itself, with so many addresses at most that Kahuna cannot be told about."""
    unsaid = await withdrawals.unsaid(connection, row.id, limit)
    cannot = [UnsaidShown(one.address, one.slot, shown(one.held_stop_at)) for one in unsaid]
    return told(WholeRetraction, row, unsupported=cannot)


_Request: TypeAlias = Callable[[Connection, uuid.UUID, str, str, str | None, datetime], Awaitable[uuid.UUID]]


async def _revert(call: Call[Asked, Revert], ask: _Request) -> Response:
    service, limit, of = call.service, call.namespace_limit, id_in(call)

    async def transaction(connection: Connection) -> Any:
        asked = await ask(connection, of, call.caller.name, call.body.reason, limit, service.now)
        return await retractions.one(connection, asked)

    row = await until_settled(service.database, transaction)
    return answer(Reverting(row.id, row.state), 202, {"Location": f"/v1/admin/retractions/{row.id}"})


def import_told(row: Any, undone: dict[uuid.UUID, uuid.UUID]) -> ImportShown:
    """An import as it is shown; `undone` are the retractions of imports, by the id of each."""
    return told(ImportShown, row, as_of=shown(row.as_of), retraction_id=undone.get(row.id))


def surge_told(row: Any, undone: dict[uuid.UUID, uuid.UUID]) -> SurgeShown:
    """The same for a surge."""
    # A row is a tuple, which has a `count` of its own.
    return told(SurgeShown, row._mapping, retraction_id=undone.get(row.id))  # noqa: SLF001 (the library's public name)


_ID: Final = "019c13a5-5c80-7000-8000-0123456789ab"
_RETRACTION_ID: Final = "7c9e6679-7425-40de-944b-e07fc1f90ae7"
_REASON: Final = {"reason": "The wrong file"}

_IMPORT: Final = {
    "id": _ID,
    "namespace": "default",
    "channel": "email",
    "state": "finished",
    "actor": "support",
    "file_name": "bounces.csv",
    "reason": "hard_bounce",
    "as_of": None,
    "begun_at": "2026-01-31T12:00:00Z",
    "ended_at": "2026-01-31T12:00:02Z",
    "counts": {"lines": 1204, "accepted": 1180, "duplicates": 21, "rejected": 3, "skipped": 0},
    "retraction_id": None,
}

_SURGE: Final = {
    "id": "0b6e7b5c-4f0e-4d0a-9d6a-1f2e3d4c5b6a",
    "namespace": "default",
    "channel": "email",
    "reason": "hard_bounce",
    "kind": "domain",
    "key": "example.com",
    "count": 1811,
    "first_at": "2026-01-31T12:00:03Z",
    "last_at": "2026-01-31T12:08:41Z",
    "flagged_at": "2026-01-31T12:12:00Z",
    "state": "flagged",
    "decided_by": None,
    "decided_at": None,
    "note": None,
    "retraction_id": None,
}

_DECIDED: Final = {"state": "kept", "decided_by": "support", "decided_at": "2026-01-31T13:00:00Z"}

_RETRACTION: Final = {
    "id": _RETRACTION_ID,
    "namespace": "default",
    "channel": "email",
    "kind": "import",
    "of": _ID,
    "actor": "support",
    "reason": "The wrong file",
    "state": "done",
    "phase": "done",
    "counts": {"evidence": 1, "facts": 1178, "handed_over": 2, "corrections": 0},
    "error": None,
    "created_at": "2026-01-31T12:30:00Z",
    "started_at": "2026-01-31T12:30:00Z",
    "finished_at": "2026-01-31T12:30:01Z",
}

_UNSAID: Final = {"address": "ann@example.com", "slot": "hard_bounce", "held_stop_at": "2026-01-30T08:00:00Z"}

_REVERTING: Final = Answer(
    202,
    Reverting,
    "The worker takes it back.",
    {"id": _RETRACTION_ID, "state": "queued"},
    headers={"Location": "Where it is shown."},
)

_IMPORTS: Final = "/v1/admin/imports"
_SURGES: Final = "/v1/admin/surges"
_RETRACTIONS: Final = "/v1/admin/retractions"

OPERATIONS: Final[list[AnyOperation]] = [
    Operation(
        "GET",
        _IMPORTS,
        list_imports,
        scope="admin",
        query=Walk,
        answers=[Answer(200, ImportsShown, "A page of them.", {"imports": [_IMPORT], "next": None})],
        problems=["invalid-cursor"],
    ),
    Operation(
        "GET",
        f"{_IMPORTS}/{{id}}",
        one_import,
        scope="admin",
        query=Asked,
        answers=[Answer(200, ImportShown, "The import.", _IMPORT)],
        problems=["not-found"],
    ),
    Operation(
        "POST",
        f"{_IMPORTS}/{{id}}/revert",
        revert_import,
        scope="admin",
        query=Asked,
        body=Body(Revert, _REASON),
        answers=[_REVERTING],
        problems=["not-found", "batch-gone", "import-running"],
    ),
    Operation(
        "GET",
        _SURGES,
        list_surges,
        scope="admin",
        query=Surges,
        answers=[Answer(200, SurgesShown, "A page of them.", {"surges": [_SURGE], "next": None})],
        problems=["invalid-cursor"],
    ),
    Operation(
        "POST",
        f"{_SURGES}/{{id}}/keep",
        keep_surge,
        scope="admin",
        query=Asked,
        body=Body(Judgement, {"note": "The provider confirmed it"}, optional=True),
        answers=[Answer(200, SurgeShown, "The surge, as decided.", _SURGE | _DECIDED)],
        problems=["not-found", "already-decided"],
    ),
    Operation(
        "POST",
        f"{_SURGES}/{{id}}/revert",
        revert_surge,
        scope="admin",
        query=Asked,
        body=Body(Revert, {"reason": "A fault of the provider's"}),
        answers=[_REVERTING],
        problems=["not-found", "already-decided", "batch-gone"],
    ),
    Operation(
        "GET",
        _RETRACTIONS,
        list_retractions,
        scope="admin",
        query=Page,
        answers=[Answer(200, Retractions, "The newest ones.", {"retractions": [_RETRACTION]})],
    ),
    Operation(
        "GET",
        f"{_RETRACTIONS}/{{id}}",
        one_retraction,
        scope="admin",
        query=Page,
        answers=[Answer(200, WholeRetraction, "The retraction.", _RETRACTION | {"unsupported": [_UNSAID]})],
        problems=["not-found"],
    ),
]
