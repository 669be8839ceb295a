"""Owns how a route is described, and how it is served. From the one description come the route of the application and
its part of the OpenAPI document, so the two cannot drift.

An `Operation` says its method and path, the scope that its callers need, the shapes of its parameters and its body, and
what it answers. Its handler is called once all of that is read and judged:

    async def count(call: Call[Filter, None]) -> Counted:
        \"\"\"How many addresses are suppressed.\"\"\"
        return Counted(await counted(call.service.database, call.namespace, call.query.channel))

    OPERATIONS = [
        Operation("GET", "/v1/count", count, scope="read", query=Filter, answers=[Answer(200, Counted, "The number.")])
    ]

Refuses to know what any route is for.
"""

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any, Final, Generic, Literal, NamedTuple, TypeAlias, TypeVar
from urllib.parse import parse_qsl

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from service.domain.addresses import Channel
from service.errors import BadRequest, Forbidden, TooLong, Unprocessable, UnsupportedMediaType
from service.store.access import Caller
from service.web.http import API_BODY_LIMIT, Service, answer, body_of, caller_with, namespace_for, service_of

Needs: TypeAlias = Literal["read", "write", "admin", "signature"]
"""What a caller must have: a token with this scope, or the signature of Kahuna's over the body."""

Text: TypeAlias = Annotated[str, msgspec.Meta(extra_json_schema={"pattern": "^[^\\u0000]*$"})]
"""A text that PostgreSQL can keep: `http.body_of` refuses a NUL in any."""

Moment: TypeAlias = Annotated[datetime, msgspec.Meta(tz=True)]
"""An RFC 3339 time with its offset."""

MomentOrDay: TypeAlias = Annotated[datetime, msgspec.Meta(tz=True, extra_json_schema={"x-takes-a-day": True})]
"""The same as a parameter, or a day, which stands for its beginning in UTC."""

Shown: TypeAlias = Annotated[str, msgspec.Meta(extra_json_schema={"format": "date-time"})]
"""A time in an answer, as `http.shown` writes it."""

A_MOMENT: Final = "an RFC 3339 time with an offset, such as 2026-01-31T12:00:00Z"

_DAY: Final = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)

_PLAIN_NAME: Final = re.compile(r"[a-z_]{1,40}")
"""What may be told of a parameter that nobody knows: anything else may be an address."""

LONGEST_PATH: Final = 16_384
"""Characters of a path with its query. The longest address that is judged at all has a tenth of them."""

_NOBODY: Final = Caller("nobody", frozenset(), None)


class Nothing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """No parameters."""


class Asked(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What every call under /v1 may say."""

    namespace: Annotated[
        str | None,
        msgspec.Meta(
            description="The namespace that the call speaks of. Left out: the token's, else the deployment's only one.",
            examples=["default"],
        ),
    ] = None


Q = TypeVar("Q", bound=msgspec.Struct)
B = TypeVar("B", bound=msgspec.Struct | None)


class Call(Generic[Q, B]):
    """One request, read and judged: who calls, what the parameters and the body say.

    `body` is None where the operation describes none; a body that is streamed is read from `request`.
    """

    __slots__ = ("body", "caller", "query", "request", "service")

    def __init__(self, request: Request, service: Service, caller: Caller, query: Q, body: B) -> None:
        self.request = request
        self.service = service
        self.caller = caller
        self.query = query
        self.body = body

    @property
    def namespace(self) -> str:
        """The namespace that the call speaks of: the one named, else the token's, else the only one."""
        return namespace_for(self.service, self.caller, getattr(self.query, "namespace", None))

    @property
    def namespace_limit(self) -> str | None:
        """The only namespace in which something may be found by its id; None if any will do."""
        named = getattr(self.query, "namespace", None)
        return self.caller.namespace if named is None else self.namespace

    def channel(self, named: Channel | None) -> Channel | None:
        """The channel that the call speaks of: the one named, else the only one of the token; None for all."""
        return channel_for(self.caller, named)


def channel_for(caller: Caller, named: Channel | None) -> Channel | None:
    """The channel that a call speaks of: the one named, else the only one of the token; None for all."""
    only = caller.channel
    if only is not None and named not in (None, only):
        raise Forbidden(f"This API token speaks of the channel {only} only.", "other-channel")
    return named or only


class Body(NamedTuple, Generic[B]):
    """A JSON body: its shape, an example of it, and the most bytes it may have. An optional one that was not sent is
    the shape's defaults. `instead` is what else to send, for one whose body is no JSON."""

    kind: type[B]
    example: Any
    limit: int = API_BODY_LIMIT
    optional: bool = False
    instead: str = ""


class Stream(NamedTuple):
    """A body that the handler reads by itself: a sentence, an example, and its JSON Schema if it is JSON."""

    says: str
    example: Any = None
    schema: Mapping[str, Any] = {"type": "string"}


class Answer(NamedTuple):
    """One thing that an operation answers: its shape (of one line, where the media type is one of lines; None for no
    body), a sentence, an example, and the headers that it carries beside X-Request-ID, each with a sentence."""

    status: int
    kind: Any
    says: str
    example: Any = None
    media_type: str = "application/json"
    headers: Mapping[str, str] = {}


Answered: TypeAlias = Response | msgspec.Struct
"""What a handler gives back: the document of the first answer that it describes, or a whole response."""


@dataclass(frozen=True, kw_only=True)
class Operation(Generic[Q, B]):
    """A method on a path. What callers read about it is the docstring of its handler.

    `streams` are the media types of a body that the handler reads by itself, each with what is said of it; two
    operations may share method and path if the `Content-Type` tells them apart. `problems` are slugs of its own:
    those that follow from what it takes (a token, parameters, a body) need not be listed. `headers` are request
    headers. `app` stands in for the handler where an ASGI application answers by itself; `says` then describes it.
    """

    method: str = field(kw_only=False)
    path: str = field(kw_only=False)
    handler: Callable[[Call[Q, B]], Awaitable[Answered]] | None = field(kw_only=False, default=None)
    scope: Needs | None
    query: type[Q]
    body: Body[B] | None = None
    streams: Mapping[str, str | Stream] = field(default_factory=dict)
    answers: Sequence[Answer]
    problems: Sequence[str] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    app: ASGIApp | None = None
    says: str = ""


AnyOperation: TypeAlias = Operation[Any, Any]


def routes(operations: Iterable[AnyOperation]) -> list[Route]:
    """The routes of these operations. Those of one path are one route, so that a 405 names all its methods.

    The router tries one after the other, so the busy ones come first: those of one address, and among them what is
    below an address before what takes whatever follows. The order of the operations does not matter.
    """
    paths: dict[str, list[AnyOperation]] = {}
    for operation in operations:
        paths.setdefault(operation.path, []).append(operation)
    return [_route(path, paths[path]) for path in sorted(paths, key=_turn)]


def _turn(path: str) -> int:
    if ":path}" not in path:
        return 2
    return 1 if path.endswith(":path}") else 0


def _route(path: str, operations: list[AnyOperation]) -> Route:
    (first, *others) = operations
    if first.app is not None and not others:
        return Route(path, first.app, methods=[first.method])
    return Route(path, Endpoint(operations))


class Endpoint:
    """All operations of one path, as an application of its own: the router's shortest way."""

    def __init__(self, operations: Sequence[AnyOperation]) -> None:
        self._doors: dict[str, list[_Door]] = {}
        for operation in operations:
            self._doors.setdefault(operation.method, []).append(_Door(operation))
        if "GET" in self._doors:
            self._doors["HEAD"] = self._doors["GET"]
        self.methods = sorted(self._doors)
        self._allow = ", ".join(self.methods)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        doors = self._doors.get(scope["method"])
        if doors is None:
            raise HTTPException(405, headers={"Allow": self._allow})
        if len(scope["path"]) + len(scope["query_string"]) > LONGEST_PATH:
            raise TooLong(
                f"The path and the query have over {LONGEST_PATH} characters; nothing that long can be meant."
            )
        request = Request(scope, receive)
        door = doors[0] if len(doors) == 1 else _chosen(doors, request)
        response = await door.answer(request)
        await response(scope, receive, send)


class _Door:
    """An operation, made ready to serve."""

    def __init__(self, operation: AnyOperation) -> None:
        if operation.handler is None:
            raise TypeError(f"{operation.method} {operation.path} has no handler")
        self._handler = operation.handler
        self._scope = operation.scope
        self._parameters = Parameters(operation.query)
        self._body = operation.body
        self.streams = operation.streams
        self._status = operation.answers[0].status

    async def answer(self, request: Request) -> Response:
        """The response to this request."""
        service = service_of(request)
        caller = _NOBODY if self._scope is None else await caller_with(request.scope, self._scope)
        query = self._parameters.read(request.scope["query_string"])
        body = None
        if self._body is not None:
            body = await self._json(request, self._body)
        elif self.streams and _media_type(request) not in self.streams:
            raise UnsupportedMediaType(f"Say what the body is: Content-Type: {' or '.join(self.streams)}.")
        answered = await self._handler(Call(request, service, caller, query, body))
        return answered if isinstance(answered, Response) else answer(answered, self._status)

    @staticmethod
    async def _json(request: Request, wanted: Body[Any]) -> Any:
        try:
            return await body_of(request, wanted.kind, wanted.limit, optional=wanted.optional)
        except BadRequest as error:
            if error.reason != "not-json" or not wanted.instead:
                raise
            raise BadRequest(f"{error} {wanted.instead}", "not-json") from None


def _chosen(doors: Sequence[_Door], request: Request) -> _Door:
    """The one that takes a body of this kind, else the one that takes JSON, whatever the body says that it is."""
    media_type = _media_type(request)
    json = next((door for door in doors if not door.streams), doors[0])
    return next((door for door in doors if media_type in door.streams), json)


def _media_type(request: Request) -> str:
    return request.headers.get("Content-Type", "").partition(";")[0].strip().lower()


class Parameters(Generic[Q]):
    """Reads a query string into the struct that describes it. An unknown or a repeated parameter is an error, since
    silence would hide a misspelling."""

    def __init__(self, kind: type[Q]) -> None:
        self._kind = kind
        fields = msgspec.structs.fields(kind)
        self._fields = {one.encode_name: _Parameter(one) for one in fields}
        self._required = [one.encode_name for one in fields if one.required]
        self._silence = None if self._required else kind()

    def read(self, query_string: bytes) -> Q:
        """The parameters; refused with a sentence that says what to send."""
        if not query_string and self._silence is not None:
            return self._silence
        given: dict[str, Any] = {}
        for name, text in parse_qsl(query_string.decode("latin-1"), keep_blank_values=True):
            parameter = self._fields.get(name)
            if parameter is None:
                allowed = ", ".join(self._fields) or "none"
                which = f" {name}" if _PLAIN_NAME.fullmatch(name) else ""
                raise BadRequest(f"Unknown query parameter{which}; allowed: {allowed}.", "unknown-parameter")
            if parameter.name in given:
                raise BadRequest(f"The query parameter {name} is given twice.", "repeated-parameter")
            given[parameter.name] = parameter.read(text)
        for name in self._required:
            if self._fields[name].name not in given:
                wanted = self._fields[name].wanted
                raise Unprocessable(f"The query parameter {name} is missing: {wanted}.", "invalid-parameter")
        return self._kind(**given)


_WHOLE_NUMBER: Final = re.compile(r"-?[0-9]{1,18}", re.ASCII)


class _Parameter:
    """One of them: how its text is read, and what to send."""

    def __init__(self, described: msgspec.structs.FieldInfo) -> None:
        self.name = described.name
        self._shown = described.encode_name
        self._type = described.type
        schema = plain_schema(described.type)
        self._takes = schema.get("format") or schema.get("type")
        self._takes_day = schema.get("x-takes-a-day", False)
        self.wanted = f"{self._shown} must be {_wanted(schema)}"

    def read(self, text: str) -> Any:
        """The value that the text stands for."""
        try:
            return msgspec.convert(self._value(text), self._type)
        except (ValueError, KeyError):
            if self._takes == "date-time":
                raise Unprocessable(f"{self.wanted}.", "invalid-time") from None
            raise Unprocessable(f"{self.wanted}.", "invalid-parameter") from None

    def _value(self, text: str) -> Any:
        if "\0" in text:
            raise ValueError("PostgreSQL cannot keep it")
        if self._takes == "integer":
            return int(text) if _WHOLE_NUMBER.fullmatch(text) else text
        if self._takes == "boolean":
            return {"true": True, "false": False}[text]
        if self._takes_day and _DAY.fullmatch(text):
            return f"{text}T00:00:00Z"
        # An offset's plus sign that nobody escaped has become a space.
        return text.replace(" ", "+") if self._takes == "date-time" and "T" in text else text


def plain_schema(kind: Any) -> dict[str, Any]:
    """The JSON Schema of a parameter's type; that it may be left out is said elsewhere."""
    schema = dict(msgspec.json.schema(kind))
    some = [one for one in schema.pop("anyOf", []) if one != {"type": "null"}]
    if len(some) > 1:
        schema["anyOf"] = some
    return {**some[0], **schema} if len(some) == 1 else schema


def _wanted(schema: Mapping[str, Any]) -> str:
    """What to send, in words."""
    if "enum" in schema:
        return f"one of {', '.join(str(word) for word in schema['enum'] if word is not None)}"
    if schema.get("type") == "integer":
        bounds = [f"{word} {schema[key]}" for word, key in (("from", "minimum"), ("to", "maximum")) if key in schema]
        return " ".join(["a whole number", *bounds])
    if schema.get("x-takes-a-day"):
        return f"{A_MOMENT}, or a day such as 2026-01-31"
    kinds = {"boolean": "true or false", "date-time": A_MOMENT, "uuid": "an id as answers show it"}
    known = kinds.get(schema.get("format") or schema.get("type") or "")
    examples = schema.get("examples")
    return known or (f"a text such as {examples[0]}" if examples else "a text")
