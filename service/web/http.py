"""Owns what all routes share: who is calling, which namespace, what the body says, how answers and problems look."""

import asyncio
import json
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from time import perf_counter
from typing import Any, Final, Self, TypeVar

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.domain.deadlines import Calendar
from service.errors import (
    BadRequest,
    Forbidden,
    KahunaSyncError,
    NotFound,
    RequestError,
    StorageUnavailable,
    TooManyCalls,
    Unauthenticated,
    Unprocessable,
    UnsupportedEncoding,
)
from service.flows.follow import Feed
from service.flows.ingest import Rules
from service.flows.intake import Intake
from service.flows.shelter import Shelter
from service.flows.together import Together
from service.settings import Settings
from service.store.access import Caller
from service.store.database import Database
from service.store.suppressions import CauseRow, Subject
from service.telemetry import REQUEST_ID, Metrics, RequestIds, logger
from service.web.bodies import Budget, decompressed, read_body
from service.web.callers import Callers, token_in
from service.web.problems import PROBLEMS, document

_T = TypeVar("_T", bound=msgspec.Struct)
_W = TypeVar("_W")

API_BODY_LIMIT: Final = 1024 * 1024
"""Bytes of a JSON body under /v1, unless its route says otherwise."""

SMALL_BODY: Final = 64 * 1024
"""Bytes of JSON that are decoded on the spot."""


@dataclass(frozen=True, slots=True)
class Service:
    """What handlers work with: made by the composition root, found on every request. `shelter` is there if there is a
    spool. `leaving` is set once the process was told to end; `seldom` keeps figures that are dear to find."""

    settings: Settings
    database: Database
    intake: Intake
    lookups: Together[Subject, list[CauseRow]]
    callers: Callers
    shelter: Shelter | None
    rules: Rules
    metrics: Metrics
    clock: Callable[[], datetime]
    budget: Budget
    reading: asyncio.Semaphore
    bulk: asyncio.Semaphore
    checking: asyncio.Semaphore
    feed: Feed
    exports: asyncio.Semaphore
    importing: asyncio.Semaphore
    calendar: Calendar = field(default=Calendar())
    revisions: frozenset[str] = field(default=frozenset())
    head: str = ""
    leaving: asyncio.Event = field(default_factory=asyncio.Event)
    seldom: dict[str, Any] = field(default_factory=dict)

    @property
    def now(self) -> datetime:
        """The time by our clock."""
        return self.clock()

    @property
    def namespaces(self) -> Sequence[str]:
        """The names of the namespaces, for which there are figures even where nothing is."""
        return [namespace.name for namespace in self.settings.namespaces]

    @property
    def troubles(self) -> dict[str, str]:
        """What is amiss in this process beside what is looked at: nothing that it would know of."""
        return {}

    @property
    def door(self) -> Intake | Shelter:
        """Where callbacks go in."""
        return self.shelter or self.intake


def service_of(request: Request) -> Service:
    """The service that this request came to."""
    service: Service = request.scope["state"]["service"]
    return service


def answer(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON answer."""
    return Response(msgspec.json.encode(content), status, headers, "application/json")


def problem(status: int, slug: str, detail: str, headers: Mapping[str, str] | None = None) -> Response:
    """An RFC 9457 answer; `type` is a stable slug."""
    return Response(msgspec.json.encode(document(slug, detail, status)), status, headers, "application/problem+json")


class Ready(Response):
    """An answer whose headers are spelt out: working them out takes longer than sending it."""

    def __init__(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes = b"") -> None:
        self.status_code = status
        self.raw_headers = headers
        self.body = body
        self.background = None

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        """Sends it, by the shortest way."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body})


async def send_json(send: Send, document: Any) -> None:
    """A JSON answer of 200, by the shortest way."""
    body = msgspec.json.encode(document)
    headers = [(b"content-length", b"%d" % len(body)), (b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def on_error(_request: Request, error: Exception) -> Response:
    """The problem that an error of ours is. Any other is raised again."""
    return problem_of(error)


def problem_of(error: Exception) -> Response:
    """The problem that an error of ours is. Any other is raised again."""
    if isinstance(error, RequestError):
        return problem(error.status, error.reason, str(error), _headers_of(error))
    if isinstance(error, StorageUnavailable):
        return problem(503, error.slug, str(error), {"Retry-After": str(error.retry_after)})
    if isinstance(error, KahunaSyncError):
        return problem(error.status, error.slug, str(error))
    raise error


def _headers_of(error: RequestError) -> dict[str, str] | None:
    if isinstance(error, TooManyCalls):
        return {"Retry-After": str(error.retry_after)}
    return {"WWW-Authenticate": "Bearer"} if type(error) is Unauthenticated else None


async def on_http_exception(_request: Request, error: Exception) -> Response:
    """The problem that a refusal of the router is."""
    if not isinstance(error, HTTPException):
        raise error
    known = {404: ("not-found", "There is nothing at this path; /docs shows those that there are.")}
    known[405] = ("method-not-allowed", PROBLEMS["method-not-allowed"].says)
    slug, detail = known.get(error.status_code, ("refused", error.detail))
    return problem(error.status_code, slug, detail, error.headers)


async def on_fault(_request: Request, _error: Exception) -> Response:
    """The problem that a fault of ours is. Whoever called it raises the fault again, so that it is logged."""
    return problem(500, "internal-error", PROBLEMS["internal-error"].says)


LEFT: Final = 204
"""The status under which a request counts whose caller went away before there was an answer."""


class Telling:
    """Outermost: gives every request its id, every answer the header, and notes how long it took by route.

    Answers for anything that nobody foresaw, too, so that even that carries the id and no traceback. What is answered
    offhand does not come here, and sees to all of it by itself.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics
        self._ids = RequestIds()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = self._ids.next(header_in(scope, b"x-request-id"))
        token = REQUEST_ID.set(request_id)
        started = perf_counter()
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except ClientDisconnect:
            logger().info("request.abandoned", client=_client_of(scope))
            status = LEFT if status in (0, 500) else status  # 500 was said to nobody, and is no fault of ours
        except Exception:  # noqa: BLE001 (the last one to see it: it is logged, and answered without a traceback)
            logger().exception("request.failed", route=_route_of(scope), client=_client_of(scope))
            if status == 0:
                await problem(500, "internal-error", PROBLEMS["internal-error"].says)(scope, receive, send_with_id)
        finally:
            REQUEST_ID.reset(token)
            self._metrics.requests.add(perf_counter() - started, _route_of(scope), str(status))


def _client_of(scope: Scope) -> str | None:
    """From where the request came: the proxy's word for it, if that is one of TRUSTED_PROXIES."""
    client = scope.get("client")
    return client[0] if client else None


def _route_of(scope: Scope) -> str:
    """The route's pattern: the path itself may hold an address."""
    return getattr(scope.get("route"), "path", None) or "none"


_NOBODYS: Final = "This API token is unknown, revoked or expired; ask for another."


async def caller_with(asked: Scope, needed: str) -> Caller:
    """Who is calling, if the token carries the scope that is needed."""
    token = _bearer(asked)
    if not token:
        raise Unauthenticated("Send an API token as `Authorization: Bearer <token>`.")
    service: Service = asked["state"]["service"]
    caller = await service.callers.of(token)
    if caller is None:
        raise Unauthenticated(_NOBODYS)
    if needed not in caller.scopes:
        has = ", ".join(sorted(caller.scopes))
        raise Forbidden(
            f"This API token lacks the scope {needed} (it has {has}); use one that has it.", "missing-scope"
        )
    return caller


async def check_again(request: Request) -> None:
    """Refuses a call that has waited, if its token has ended meanwhile."""
    if not await service_of(request).callers.still_knows(_bearer(request.scope)):
        raise Unauthenticated(_NOBODYS)


def header_in(scope: Scope, wanted: bytes) -> str:
    """The first header of this name, or nothing. Part of every call, so the headers are not made into a mapping."""
    for name, value in scope["headers"]:
        if name == wanted:
            text: str = value.decode("latin-1")
            return text
    return ""


def _bearer(scope: Scope) -> str:
    """The token that was sent, if any."""
    return token_in(header_in(scope, b"authorization"))


def namespace_for(service: Service, caller: Caller, given: str | None) -> str:
    """The namespace that the call speaks of: the one given, else the token's, else the only one."""
    settings = service.settings
    only = settings.namespaces[0].name if len(settings.namespaces) == 1 else None
    name = given or caller.namespace or only
    if name is None:
        raise BadRequest(f"Say which namespace with ?namespace=; there are {_all(settings)}.", "namespace-required")
    if caller.namespace not in (None, name):
        raise Forbidden(f"This API token speaks of the namespace {caller.namespace} only.", "other-namespace")
    if settings.namespace(name) is None:
        raise NotFound(f"There is no such namespace; there are {_all(settings)}.", "unknown-namespace")
    return name


def _all(settings: Settings) -> str:
    return ", ".join(namespace.name for namespace in settings.namespaces)


async def body_of(request: Request, kind: type[_T], limit: int = API_BODY_LIMIT, *, optional: bool = False) -> _T:
    """The JSON body, as the shape that the route takes. Without an optional one: the shape's defaults."""
    encoding = request.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("identity", "gzip", ""):
        raise UnsupportedEncoding("Send the body as it is, or with Content-Encoding: gzip.")
    declared, seconds = request.headers.get("Content-Length", ""), service_of(request).settings.body_timeout_seconds
    body = await read_body(request.receive, declared, limit, seconds)
    if encoding == "gzip":
        body = await asyncio.to_thread(decompressed, body, limit)
    if not body.strip():
        if optional:
            return kind()
        raise BadRequest(f"There is no body. Send a JSON object with {_fields_of(kind)}.", "not-json")
    try:
        small = len(body) <= SMALL_BODY
        return _storable(_document(body, kind) if small else await asyncio.to_thread(_document, body, kind))
    except msgspec.ValidationError as error:
        raise Unprocessable(f"The body is not what this call takes: {error}.", "invalid-body") from None
    except (ValueError, RecursionError):
        raise BadRequest("The body is not JSON.", "not-json") from None


class Mendable(msgspec.Struct):
    """The shape of a body in which one bad text is not to spoil the others."""

    @classmethod
    def mended(cls, document: Any) -> "Self | None":
        """The body, without what is no text, if that alone was wrong with it: half of a surrogate pair, which JSON can
        write and UTF-8 cannot."""


def _document(body: bytes, kind: type[_T]) -> _T:
    """To JSON Schema, in whose words our document says what is taken, 1.0 is an integer."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        if "got `float`" not in str(error):
            raise
    except msgspec.DecodeError:
        mended = kind.mended(json.loads(body)) if issubclass(kind, Mendable) else None
        if mended is None:
            raise
        return mended
    return msgspec.convert(_with_integers(msgspec.json.decode(body)), kind)


def _with_integers(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _with_integers(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_with_integers(one) for one in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _fields_of(kind: Any) -> str:
    """What a body may say, for one who sent none."""
    fields = msgspec.structs.fields(kind)
    return ", ".join(f"{one.encode_name}{' (required)' if one.required else ''}" for one in fields)


def _storable(document: _T) -> _T:
    """The document, if PostgreSQL can keep its texts."""
    if any("\0" in value for value in msgspec.structs.astuple(document) if isinstance(value, str)):
        raise Unprocessable("A text of the body holds a NUL; take it out.", "invalid-body")
    return document


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, _W]) -> asyncio.Task[_W]:
    """The work's task, ended: it is done, or was cancelled since the caller went away first."""

    async def leave() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.create_task(work), asyncio.create_task(leave())
    try:
        await asyncio.wait([working, leaving], return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)
    return working


@lru_cache(maxsize=4096)  # an answer tells most of its times twice, and those of one minute are told in many
def shown(seconds: int | None) -> str | None:
    """Unix seconds as RFC 3339 in UTC."""
    # isoformat takes a third of the time of strftime, and its last six characters are the offset.
    return None if seconds is None else f"{datetime.fromtimestamp(seconds, UTC).isoformat()[:-6]}Z"


def moment_from(text: str, name: str) -> datetime:
    """An RFC 3339 time with an offset."""
    try:
        moment = datetime.fromisoformat(text.replace(" ", "+") if "T" in text else text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise Unprocessable(f"{name} must be an RFC 3339 time such as 2026-01-31T12:00:00Z.", "invalid-time")
    return moment


def seconds_from(text: str | None, name: str) -> int | None:
    """An RFC 3339 time in Unix seconds."""
    return None if text is None else int(moment_from(text, name).timestamp())
