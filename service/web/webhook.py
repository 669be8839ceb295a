"""Owns the two webhooks: the checks in the contract's order, and the answers in its words."""

import asyncio
import hashlib
import hmac
import random
import uuid
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from typing import Any, Final, Literal, NamedTuple

import msgspec
from starlette.requests import ClientDisconnect
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from service.domain.addresses import CHANNELS, Channel
from service.errors import (
    BadRequest,
    NotFound,
    RequestError,
    SignatureRefused,
    StorageUnavailable,
    TooLarge,
    UnsupportedEncoding,
)
from service.flows.ingest import Ingested
from service.flows.ingest import count_from_zero as count_entries_from_zero
from service.kahuna import webhook
from service.kahuna.webhook import Callback
from service.settings import Namespace
from service.spans import TRACE
from service.store.batches import Received, new_id
from service.telemetry import REQUEST_ID, Metrics
from service.web import contract
from service.web.bodies import decompressed, read_body
from service.web.contract import Answer, AnyOperation, Nothing, Operation, Stream
from service.web.http import Service, problem_of, send_json

ERRORS_SHOWN: Final = 100

BULK_BODY: Final = 256 * 1024
"""Bytes from which on a body is read and stored only with few others of its size."""

SMALL_BODY: Final = 16 * 1024
"""Bytes up to which a body is read on the spot."""

_KEPT_HEADERS: Final = {
    name.encode(): name
    for name in ("content-type", "content-encoding", "user-agent", "x-kahuna-signature", "x-request-id")
}
_READ_HEADERS: Final = _KEPT_HEADERS | {b"content-length": "content-length"}


class Call(NamedTuple):
    """A request to a webhook. `headers` are those that we read, of each the first."""

    service: Service
    headers: dict[str, str]
    parameters: Mapping[str, str]
    receive: Receive


_PROBLEMS: Final = (
    "unknown-namespace",
    "signature-missing",
    "callback-token",
    "signature-wrong",
    "unsupported-encoding",
    "body-too-large",
    "too-many-entries",
    "body-too-slow",
    "not-gzip",
    "not-json",
    "not-an-array",
    "storage-unavailable",
    "storage-outdated",
    "storage-busy",
)


class Webhook:
    """An Email or SMS Sync Webhook, as an application of its own: the busiest routes go the shortest way."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        call = Call(scope["state"]["service"], _headers(scope), scope.get("path_params") or {}, receive)
        metrics = call.service.metrics
        try:
            document, state = await _receive(call, self._channel)
        except (RequestError, StorageUnavailable) as error:
            metrics.callbacks.add(self._channel, str(error.status))
            await problem_of(error)(scope, receive, send)
            return
        except ClientDisconnect:
            raise
        except Exception:
            metrics.callbacks.add(self._channel, "500")
            raise
        metrics.callbacks.add(self._channel, state)
        await send_json(send, document)


ANSWERS: Final = ("applied", "recorded", "spooled", "400", "401", "404", "408", "413", "415", "500", "503")
"""What `kahuna_sync_callbacks_total` may say of a callback."""


def count_from_zero(metrics: Metrics) -> None:
    """Has the counts of callbacks shown from the start, so that the first of each is seen to come, and none as well."""
    for channel in CHANNELS:
        for word in ANSWERS:
            metrics.callbacks.add(channel, word, count=0)
    count_entries_from_zero(metrics)


class Rejected(msgspec.Struct):
    """An entry that went to quarantine, by its index in the body, and why."""

    index: int
    error: str


class Applied(msgspec.Struct):
    """Durable and applied. The three counts add up to the entries; `errors` is capped at 100, the counts are not."""

    batch_id: uuid.UUID
    state: Literal["applied"]
    accepted: int
    duplicates: int
    rejected: int
    errors: list[Rejected]


class Kept(msgspec.Struct):
    """Durable, to be applied soon: counts do not exist yet."""

    batch_id: uuid.UUID
    state: Literal["recorded", "spooled"]
    received: int


_EXAMPLE: Final = {
    "batch_id": "019c13a5-5c80-7000-8000-0123456789ab",
    "state": "applied",
    "accepted": 1,
    "duplicates": 0,
    "rejected": 0,
    "errors": [],
}

_EMAIL: Final = {"email": "ann@example.com", "reason": "unsub", "timestamp": 1769860800}
_SMS: Final = {"number": "15550100001", "opt-in": False, "timestamp": 1769860800}


def _stream(entry: Mapping[str, Any]) -> Stream:
    says = "Entries, signed. Neither the Content-Type nor an entry that cannot be understood refuses the others."
    return Stream(says, [entry], {"type": "array", "items": {}})


OPERATIONS: Final[list[AnyOperation]] = [
    Operation(
        "POST",
        path + token,
        scope="signature",
        query=Nothing,
        app=endpoint,
        says=f"{name} Sync Webhook of Kahuna's. The signature is the key: no API token is needed.",
        streams={"application/json": stream},
        answers=[Answer(200, Applied | Kept, "Every entry is durable.", _EXAMPLE)],
        problems=_PROBLEMS,
    )
    for name, endpoint, stream, paths in (
        ("The Email", Webhook("email"), _stream(_EMAIL), ("/webhooks/{namespace}/email", "/api/email_callback")),
        ("The SMS", Webhook("sms"), _stream(_SMS), ("/webhooks/{namespace}/sms", "/api/sms_callback")),
    )
    for path in paths
    for token in ("", "/{token}")
]

ROUTES: Final = contract.routes(OPERATIONS)


class Shortcut:
    """Takes a callback at one of the paths without a variable part straight to its webhook, past the router and what
    stands around it. Everything else goes on."""

    def __init__(self, app: ASGIApp, namespaces: Iterable[str]) -> None:
        self._app = app
        self._ends: dict[str, tuple[Route, dict[str, str]]] = {}
        for route in ROUTES:
            if "{token}" in route.path:
                continue
            for name in namespaces if "{namespace}" in route.path else ("",):
                self._ends[route.path.format(namespace=name)] = route, {"namespace": name} if name else {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        end = self._ends.get(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        if end is None:
            await self._app(scope, receive, send)
            return
        scope["route"], scope["path_params"] = end
        await end[0].endpoint(scope, receive, send)


def _headers(scope: Scope) -> dict[str, str]:
    headers: dict[str, str] = {}
    for name, value in scope["headers"]:
        if name in _READ_HEADERS:
            headers.setdefault(_READ_HEADERS[name], value.decode("latin-1"))
    return headers


async def _receive(call: Call, channel: Channel) -> tuple[dict[str, Any], str]:
    """The answer to a callback, and the state of its batch."""
    service, headers = call.service, call.headers
    namespace = _namespace(call)
    _check_token(call, namespace)
    signature = headers.get("x-kahuna-signature")
    if not signature:
        raise SignatureRefused("The header X-Kahuna-Signature is missing.", "signature-missing")
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", "gzip", ""):
        raise UnsupportedEncoding("Send the body as it is, or with Content-Encoding: gzip.")
    taken = 0

    def take(count: int) -> None:
        nonlocal taken
        service.budget.take(count)
        taken += count

    try:
        limit, seconds = service.settings.body_limit_bytes, service.settings.body_timeout_seconds
        body = await read_body(call.receive, headers.get("content-length", ""), limit, seconds, take)
        if encoding == "gzip":
            # However small it is: what comes out of it may be as large as the limit.
            body = await asyncio.to_thread(decompressed, body, limit)
            take(len(body))
        # A large one takes many times its size in memory until it is stored.
        async with service.bulk if len(body) > BULK_BODY else nullcontext():
            callback, digest = await _read(service, namespace, channel, body, signature)
            ingested = await service.door.ingest(_batch(call, namespace, channel, body, digest), callback)
    finally:
        service.budget.give_back(taken)
    return _answer(ingested, len(callback.values)), ingested.state


async def _read(
    service: Service, namespace: Namespace, channel: Channel, body: bytes, signature: str
) -> tuple[Callback, bytes]:
    """What the body says, once it is known to be signed, and its digest."""
    words = service.rules.words[namespace.name]
    if len(body) <= SMALL_BODY:
        return _verified(body, channel, signature, namespace, words), _digest(body)
    # It must not hold up the others; and one at a time, since it takes many times its size.
    async with service.reading:
        return await asyncio.to_thread(lambda: (_verified(body, channel, signature, namespace, words), _digest(body)))


def _digest(body: bytes) -> bytes:
    return hashlib.sha256(body).digest()


def _namespace(call: Call) -> Namespace:
    name, service = call.parameters.get("namespace"), call.service
    namespace = service.settings.main_namespace if name is None else service.rules.namespaces.get(name)
    if namespace is None or ("token" in call.parameters and namespace.callback_token is None):
        raise NotFound("There is no webhook at this path; check the namespace in it.", "unknown-namespace")
    return namespace


def _check_token(call: Call, namespace: Namespace) -> None:
    if namespace.callback_token is None:
        return
    given = call.parameters.get("token", "").encode("utf-8", "surrogatepass")
    if not hmac.compare_digest(given, namespace.callback_token.reveal().encode()):
        raise SignatureRefused("The callback token at the end of the path is missing or wrong.", "callback-token")


def _verified(
    body: bytes, channel: Channel, signature: str, namespace: Namespace, words: Mapping[str, str]
) -> Callback:
    try:
        callback = webhook.read(body, channel, words)
    except webhook.NotAnArray:
        raise BadRequest("The body is JSON, but not an array of entries.", "not-an-array") from None
    except webhook.NotJson:
        raise BadRequest("The body is not JSON.", "not-json") from None
    except webhook.TooManyEntries as error:
        raise TooLarge(f"Send fewer at a time: {error}.", "too-many-entries") from None
    if not webhook.verify(callback.signed_values, signature, namespace.api_key):
        raise SignatureRefused(
            "The signature is not that of these addresses with this namespace's key.", "signature-wrong"
        )
    return callback


def _batch(call: Call, namespace: Namespace, channel: Channel, body: bytes, digest: bytes) -> Received:
    headers = call.headers
    headers.pop("content-length", None)
    trace = TRACE.get()
    if trace is not None:
        headers["traceparent"] = trace
    now = call.service.clock()
    batch_id = new_id(now, random.getrandbits(74))
    return Received(batch_id, namespace.name, channel, "kahuna_webhook", now, headers, body, digest, REQUEST_ID.get())


def _answer(ingested: Ingested, received: int) -> dict[str, Any]:
    outcome = ingested.outcome
    if outcome is None:
        return {"batch_id": ingested.batch_id, "state": ingested.state, "received": received}
    return {
        "batch_id": ingested.batch_id,
        "state": ingested.state,
        "accepted": outcome.accepted,
        "duplicates": outcome.duplicates,
        "rejected": outcome.rejected,
        "errors": outcome.errors[:ERRORS_SHOWN],
    }
