"""A stand-in for Kahuna that keeps what it is told, and fails on request.

Owns the two sync APIs as the public contract describes them, a memory of what Kahuna would now hold, faults that can be
switched on, and callbacks that it signs and sends. Refuses to know this service: it is written from the contract alone,
so that an agreement between the two proves something. Where the contract is silent, a comment says what was chosen.

Everything under /simulator is open to whoever can reach the port, and sends requests to any URL it is given: listen on
loopback only.
"""

import asyncio
import hmac
from base64 import b64encode
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal, NamedTuple, TypeVar

import httpx
import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from service.domain.addresses import Channel
from service.kahuna.webhook import sign
from service.settings import Secret

Api = Literal["email_sync", "sms_sync"]

_ADDRESS_KEYS: Final[Mapping[Channel, str]] = MappingProxyType({"email": "email", "sms": "number"})
# Said again and not imported: a word that the client gets wrong must be rejected here.
_EMAIL_WORDS: Final = ("unsub", "hard_bounce", "soft_bounce", "spam", "reject", "invalid", "blocked")


@dataclass(frozen=True, slots=True)
class SimulatorConfig:
    """Whom the stand-in lets in, and what it keeps."""

    secret_key: Secret
    api_key: Secret
    max_body_bytes: int = 10_000_000
    requests_kept: int = 1_000
    # The contract names no time-out for callbacks.
    callback_timeout_seconds: float = 10.0


class Fault(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How requests are to fail: for `times` requests, or until told otherwise."""

    api: Literal["email_sync", "sms_sync", "all"] = "all"
    times: Annotated[int, msgspec.Meta(ge=1)] | None = None
    latency_seconds: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    # Answered instead of doing anything.
    status: Annotated[int, msgspec.Meta(ge=300, le=599)] | None = None
    retry_after: int | str | None = None
    # Refused whatever they say: these addresses, and the first so many of the others.
    reject: frozenset[str] = frozenset()
    reject_count: Annotated[int, msgspec.Meta(ge=0)] = 0
    # Whether `errors` says which entries were refused. The contract shows no item, so both kinds must be lived with.
    name_rejected: bool = True
    # Does everything, then cuts the connection before the answer.
    drop_answer: bool = False


class CallbackOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A callback to be signed and sent. With `remember`, Kahuna has learned the same facts itself."""

    channel: Channel
    entries: list[Any]
    to: str
    remember: bool = False


def build_simulator(
    config: SimulatorConfig, clock: Callable[[], float], *, transport: httpx.AsyncBaseTransport | None = None
) -> Starlette:
    """The stand-in as an application, for a port or for `httpx.ASGITransport`. `transport` carries its callbacks."""
    memory = _Memory(config.requests_kept, clock)
    syncs = _SyncApis(config, memory)
    control = _Control(config, memory, transport)
    return Starlette(
        routes=[
            Route("/api/emailsync", syncs.email, methods=["POST"]),
            Route("/api/smssync", syncs.sms, methods=["POST"]),
            Route("/simulator/state", control.state, methods=["GET"]),
            Route("/simulator/requests", control.requests, methods=["GET"]),
            Route("/simulator/faults", control.faults, methods=["GET"]),
            Route("/simulator/faults", control.set_fault, methods=["PUT"]),
            Route("/simulator/faults", control.clear_faults, methods=["DELETE"]),
            Route("/simulator/callbacks", control.send_callback, methods=["POST"]),
        ],
        exception_handlers={HTTPException: _refusal},
    )


async def _refusal(_request: Request, error: Any) -> Response:
    """The common error object, which the contract gives for some APIs and we assume for all."""
    document = {"success": False, "error_code": error.status_code, "error": error.detail}
    return JSONResponse(document, error.status_code, headers=error.headers)


class _Slot(NamedTuple):
    """What Kahuna holds for an address and word, or for a number."""

    timestamp: int
    action: Literal["stop", "opt-in"]


class _Memory:
    """What Kahuna would know, what it was asked, and how it is to fail."""

    def __init__(self, requests_kept: int, clock: Callable[[], float]) -> None:
        self.slots: dict[tuple[Channel, str, str | None], _Slot] = {}
        self.requests: deque[dict[str, object]] = deque(maxlen=requests_kept)
        self.faults: dict[str, Fault] = {}
        self._clock = clock

    def now(self) -> int:
        return int(self._clock())

    def keep(self, channel: Channel, entry: Mapping[str, Any]) -> None:
        """Remember a sound entry.

        The contract says nothing of order. Assumed: a missing timestamp is the time of receipt, the newest timestamp
        wins, and of two with the same the one that came later.
        """
        key = (channel, _folded(entry[_ADDRESS_KEYS[channel]]), entry["reason"] if channel == "email" else None)
        slot = _Slot(entry.get("timestamp", self.now()), "opt-in" if _opts_in(channel, entry) else "stop")
        if key not in self.slots or self.slots[key].timestamp <= slot.timestamp:
            self.slots[key] = slot

    def next_fault(self, api: Api) -> Fault:
        """The fault that the next request to this API meets; it is one time nearer to its end then."""
        name = api if api in self.faults else "all"
        fault = self.faults.get(name, Fault())
        if fault.times is not None:
            self.faults[name] = msgspec.structs.replace(fault, times=fault.times - 1)
            if fault.times <= 1:
                del self.faults[name]
        return fault


class _SyncApis:
    """The two APIs under test."""

    def __init__(self, config: SimulatorConfig, memory: _Memory) -> None:
        self._config = config
        self._memory = memory
        login = f"{config.secret_key.reveal()}:{config.api_key.reveal()}"
        self._credentials = b64encode(login.encode())

    async def email(self, request: Request) -> Response:
        return await self._answer(request, "email_sync", "email")

    async def sms(self, request: Request) -> Response:
        return await self._answer(request, "sms_sync", "sms")

    async def _answer(self, request: Request, api: Api, channel: Channel) -> Response:
        """Answers, and logs what was answered; a status of None is a connection that was cut."""
        fault = self._memory.next_fault(api)
        log: dict[str, object] = {"api": api, "received_at": self._memory.now(), "entries": None, "status": None}
        self._memory.requests.append(log)
        await asyncio.sleep(fault.latency_seconds)
        try:
            entries = await self._entries(request, fault)
        except HTTPException as refusal:
            log["status"] = refusal.status_code
            raise
        document = self._take(channel, entries, fault)
        log.update(entries=len(entries), accepted=document["accepted"], rejected=document["rejected"])
        if fault.drop_answer:
            return _CutConnection()
        log["status"] = 200
        return JSONResponse(document)

    async def _entries(self, request: Request, fault: Fault) -> list[Any]:
        """The entries of a request that is let in. The order of the checks is our choice."""
        if fault.status is not None:
            wait = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
            raise HTTPException(fault.status, "Failing on request", headers=wait)
        if not self._knows(request.headers.get("Authorization", "")):
            raise HTTPException(401, "Authentication failed")
        if request.query_params.get("env") not in ("p", "s"):
            raise HTTPException(400, "env must be p or s")
        body = await request.body()
        # The contract has the limit, but not the status for what is over it.
        if len(body) >= self._config.max_body_bytes:
            raise HTTPException(413, "Request too large")
        return _decoded(body, list[Any])

    def _knows(self, authorization: str) -> bool:
        scheme, _, credentials = authorization.partition(" ")
        return scheme.lower() == "basic" and hmac.compare_digest(credentials.strip().encode(), self._credentials)

    def _take(self, channel: Channel, entries: Sequence[Any], fault: Fault) -> dict[str, Any]:
        """Keep what is sound, and say what was done. `errors` is left out when there is none, as in the contract."""
        rejections = _rejections(channel, entries, fault)
        for index, entry in enumerate(entries):
            if index not in rejections:
                self._memory.keep(channel, entry)
        document: dict[str, Any] = {"accepted": len(entries) - len(rejections), "rejected": len(rejections)}
        if rejections:
            document["errors"] = [
                _error_item(channel, entries[index], cause) if fault.name_rejected else cause
                for index, cause in rejections.items()
            ]
        return document


class _CutConnection(Response):
    """An answer that never comes. Begun, so that a server cannot send a 500 in its place; then given up.

    In-process there is no connection to cut, so the error is the one that httpx raises for a real one.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's signature
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1")]})
        raise httpx.RemoteProtocolError("the stand-in cut the connection")


def _rejections(channel: Channel, entries: Sequence[Any], fault: Fault) -> dict[int, str]:
    """The indexes of rejected entries in order, each with its cause."""
    problem = _email_problem if channel == "email" else _sms_problem
    unwanted = {_folded(address) for address in fault.reject}
    spared = fault.reject_count
    rejections = {}
    for index, entry in enumerate(entries):
        cause = problem(entry)
        if cause is None and _folded(entry[_ADDRESS_KEYS[channel]]) in unwanted:
            cause = "Rejected on request"
        if cause is None and spared:
            spared, cause = spared - 1, "Rejected on request"
        if cause is not None:
            rejections[index] = cause
    return rejections


def _email_problem(entry: Any) -> str | None:
    """Why an entry of the Email Sync API is rejected. The contract names the fields and words, and no rule for them."""
    if not isinstance(entry, dict):
        return "Not an object"
    if entry.get("reason") not in _EMAIL_WORDS:
        return "Invalid reason"
    email = entry.get("email")
    local, _, domain = email.strip().partition("@") if isinstance(email, str) else ("", "", "")
    if not local or not domain or "@" in domain:
        return "Invalid email"
    return _timestamp_problem(entry)


def _sms_problem(entry: Any) -> str | None:
    """Why an entry of the SMS Sync API is rejected. The contract's samples are digits without a plus sign."""
    if not isinstance(entry, dict):
        return "Not an object"
    number = entry.get("number")
    if not isinstance(number, str) or not number.strip().isascii() or not number.strip().isdigit():
        return "Invalid number"
    return _timestamp_problem(entry)


def _timestamp_problem(entry: Mapping[str, Any]) -> str | None:
    return "Invalid timestamp" if type(entry.get("timestamp", 0)) is not int else None


def _error_item(channel: Channel, entry: Any, cause: str) -> Any:
    """An item of `errors`. The contract says only that there is a list; this is the kindest guess at what is in it."""
    if not isinstance(entry, dict):
        return cause
    named = ("email", "reason") if channel == "email" else ("number",)
    return {key: entry[key] for key in named if key in entry} | {"error": cause}


def _opts_in(channel: Channel, entry: Mapping[str, Any]) -> bool:
    # Anything but true counts as left out; what Kahuna makes of `"opt-in": false` is not known.
    return channel == "sms" and entry.get("opt-in") is True


def _folded(address: str) -> str:
    """How addresses are compared; assumed, since Kahuna does not say."""
    return address.strip().lower()


_T = TypeVar("_T")


def _decoded(body: bytes, shape: type[_T]) -> _T:
    try:
        return msgspec.json.decode(body, type=shape)
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, f"Malformed request: {error}") from None


class _Control:
    """The endpoints that only a stand-in has."""

    def __init__(self, config: SimulatorConfig, memory: _Memory, transport: httpx.AsyncBaseTransport | None) -> None:
        self._config = config
        self._memory = memory
        self._transport = transport

    async def state(self, request: Request) -> Response:
        """What is held, of one channel and one address if they are given."""
        channel, address = request.query_params.get("channel"), request.query_params.get("address")
        slots = [
            {"channel": key[0], "address": key[1], "word": key[2], **slot._asdict()}
            for key, slot in self._memory.slots.items()
            if channel in (None, key[0]) and (address is None or _folded(address) == key[1])
        ]
        return JSONResponse({"slots": slots})

    async def requests(self, request: Request) -> Response:
        """The last requests, oldest first."""
        limit = request.query_params.get("limit", "100")
        if not limit.isdecimal():
            raise HTTPException(400, "limit must be a number")
        kept = list(self._memory.requests)
        return JSONResponse({"requests": kept[len(kept) - min(int(limit), len(kept)) :]})

    async def set_fault(self, request: Request) -> Response:
        """Let an API fail from now on, in this way instead of any other."""
        fault = _decoded(await request.body(), Fault)
        self._memory.faults[fault.api] = fault
        return Response(status_code=204)

    async def faults(self, _request: Request) -> Response:
        """How each API fails now."""
        return Response(msgspec.json.encode(self._memory.faults), media_type="application/json")

    async def clear_faults(self, _request: Request) -> Response:
        """Let everything work again."""
        self._memory.faults.clear()
        return Response(status_code=204)

    async def send_callback(self, request: Request) -> Response:
        """Sign and send, as Kahuna does: once. Whether it redelivers what is refused is not documented."""
        order = _decoded(await request.body(), CallbackOrder)
        if order.remember:
            self._remember(order)
        try:
            answer = await self._deliver(order)
        except (httpx.RequestError, httpx.InvalidURL) as error:
            raise HTTPException(502, f"No answer from the receiver: {type(error).__name__}") from None
        return JSONResponse({"status": answer.status_code, "body": answer.text})

    def _remember(self, order: CallbackOrder) -> None:
        rejections = _rejections(order.channel, order.entries, Fault())
        for index, entry in enumerate(order.entries):
            if index not in rejections:
                self._memory.keep(order.channel, entry)

    async def _deliver(self, order: CallbackOrder) -> httpx.Response:
        key = _ADDRESS_KEYS[order.channel]
        addresses = [
            entry[key] for entry in order.entries if isinstance(entry, dict) and isinstance(entry.get(key), str)
        ]
        headers = {
            "Content-Type": "application/json",
            "Accept-Charset": "UTF-8",
            "X-Kahuna-Signature": sign(addresses, self._config.api_key),
        }
        limit = self._config.callback_timeout_seconds
        async with httpx.AsyncClient(transport=self._transport, timeout=limit) as client:
            return await client.post(order.to, content=msgspec.json.encode(order.entries), headers=headers)
