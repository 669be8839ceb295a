"""How the stand-in fails on request.

Owns the faults that can be switched on, and the answers that no client should get. Refuses to know what an API does: a
fault is asked for by the name of its API, and applied around it.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

import httpx
import msgspec
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from service.domain.addresses import Channel
from service.kahuna.simulator.contract import Api, error_object, folded

Spoilt = Literal["truncated", "html", "empty", "null", "not_utf8", "wrong_types", "wrong_shape"]
Count = Annotated[int, msgspec.Meta(ge=0)]

REJECTED: Final = "Rejected on request"


class Fault(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How requests are to fail: for `times` requests, or until told otherwise."""

    api: Api | Literal["email_webhook", "sms_webhook", "all"] = "all"
    times: Annotated[int, msgspec.Meta(ge=1)] | None = None
    latency_seconds: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    # Answered instead of doing anything.
    status: Annotated[int, msgspec.Meta(ge=300, le=599)] | None = None
    retry_after: int | str | None = None
    # Refused whatever they say: entries and items with these addresses or credentials, and the first so many others.
    reject: frozenset[str] = frozenset()
    reject_count: Count = 0
    # Whether `errors` says which entries were refused. The contract shows no item, so both kinds must be lived with.
    name_rejected: bool = True
    # Answered in this form; everything was done, unless there is a `status` too.
    body: Spoilt | None = None
    # Cuts the connection before anything is done.
    drop_request: bool = False
    # Does everything, then cuts the connection before the answer.
    drop_answer: bool = False
    # No cursor is known any more.
    expire_cursor: bool = False
    # Of callbacks: each is delivered twice; of those that are due together, the newest goes first.
    duplicate: bool = False
    reorder: bool = False
    # Nobody is ever told of them: only the logs know.
    lose: bool = False


class Faults:
    """The faults that are switched on, by API."""

    def __init__(self) -> None:
        self.by_api: dict[str, Fault] = {}

    def set(self, fault: Fault) -> None:
        """Let an API fail from now on, in this way instead of any other."""
        self.by_api[fault.api] = fault

    def next(self, api: Api) -> Fault:
        """The fault that the next request to this API meets; it is one time nearer to its end then."""
        return self._met(api if api in self.by_api else "all")

    def next_of_webhook(self, channel: Channel) -> Fault:
        """The fault of the next callbacks. One for all APIs is met only if it says something of callbacks."""
        name = f"{channel}_webhook"
        if name in self.by_api:
            return self._met(name)
        everywhere = self.by_api.get("all", Fault())
        says_something = everywhere.duplicate or everywhere.reorder or everywhere.lose
        return self._met("all") if says_something else Fault()

    def _met(self, name: str) -> Fault:
        fault = self.by_api.get(name, Fault())
        if fault.times is not None:
            self.by_api[name] = msgspec.structs.replace(fault, times=fault.times - 1)
            if fault.times <= 1:
                del self.by_api[name]
        return fault


class Rejections:
    """Which items of one request a fault refuses. Asked in the order of the request, sound items only."""

    def __init__(self, fault: Fault) -> None:
        self._unwanted = {folded(address) for address in fault.reject}
        self._left = fault.reject_count

    def take(self, *addresses: str) -> bool:
        """Whether the item with these addresses is refused."""
        if any(folded(address) in self._unwanted for address in addresses):
            return True
        self._left -= 1
        return self._left >= 0


class CutConnection(Response):
    """An answer that never comes. Begun, so that a server cannot send a 500 in its place; then given up.

    In-process there is no connection to cut, so the error is the one that httpx raises for a real one.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's signature
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1")]})
        raise httpx.RemoteProtocolError("the stand-in cut the connection")


def answer(document: Any, fault: Fault, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """The document as an answer, in the form that the fault asks for."""
    if fault.body == "html":
        page = b"<html><body><h1>502 Bad Gateway</h1></body></html>"
        return Response(page, status, headers, media_type="text/html")
    whole = JSONResponse(_wrong(document) if fault.body == "wrong_types" else document, status, headers)
    if fault.body in (None, "wrong_types"):
        return whole
    return Response(_spoilt(bytes(whole.body), document, fault.body), status, headers, media_type="application/json")


def refusal(fault: Fault, status: int) -> Response:
    """The answer of a fault that has a status."""
    wait = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
    return answer(error_object(status, "Failing on request"), fault, status, wait)


def _spoilt(body: bytes, document: Any, form: Spoilt | None) -> bytes:
    match form:
        case "truncated":
            return body[: len(body) // 2]
        case "null":
            return b"null"
        case "not_utf8":
            return b'{"success": "\xff\xfe"}'
        case "wrong_shape":
            return b"{}" if isinstance(document, list) else b"[]"
        case _:
            return b""


def _wrong(value: Any) -> Any:
    """The same names and depth, but no value has the type that it should."""
    match value:
        case dict():
            return {key: _wrong(one) for key, one in value.items()}
        case list():
            return [_wrong(one) for one in value] or {}
        case bool() | None:
            return "perhaps"
        case int() | float():
            return [str(value)]
        case _:
            return 5
