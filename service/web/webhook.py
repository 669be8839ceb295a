"""Owns the two webhooks: the checks in the contract's order, and the answers in its words."""

import asyncio
import hashlib
import hmac
import random
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from service.domain.addresses import Channel
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
from service.kahuna import webhook
from service.kahuna.webhook import Callback
from service.settings import Namespace
from service.store.batches import Received, new_id
from service.web.http import Service, answer, read_body, service_of

ERRORS_SHOWN: Final = 100

MOST_MEMBERS: Final = 16
"""Members of one gzip body: each costs a copy of what follows it, before anything is verified."""

SMALL_BODY: Final = 16 * 1024
"""Bytes up to which a body is read on the spot."""

_KEPT_HEADERS: Final = ("content-type", "content-encoding", "user-agent", "x-kahuna-signature", "x-request-id")


class Webhook:
    """An Email or SMS Sync Webhook, as an application of its own: the busiest routes go the shortest way."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = await _counted(Request(scope, receive), self._channel)
        await response(scope, receive, send)


ROUTES: Final = [
    Route(path + token, endpoint, methods=["POST"])
    for endpoint, paths in (
        (Webhook("email"), ("/webhooks/{namespace}/email", "/api/email_callback")),
        (Webhook("sms"), ("/webhooks/{namespace}/sms", "/api/sms_callback")),
    )
    for path in paths
    for token in ("", "/{token}")
]


async def _counted(request: Request, channel: Channel) -> Response:
    metrics = service_of(request).metrics
    try:
        response, state = await _receive(request, channel)
    except (RequestError, StorageUnavailable) as error:
        metrics.callbacks.labels(channel, str(error.status)).inc()
        raise
    metrics.callbacks.labels(channel, state).inc()
    return response


async def _receive(request: Request, channel: Channel) -> tuple[Response, str]:
    """The answer to a callback, and the state of its batch."""
    service = service_of(request)
    namespace = _namespace(request, service)
    _check_token(request, namespace)
    signature = request.headers.get("X-Kahuna-Signature")
    if not signature:
        raise SignatureRefused("The header X-Kahuna-Signature is missing.", "signature-missing")
    encoding = request.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("identity", "gzip", ""):
        raise UnsupportedEncoding("Send the body as it is, or with Content-Encoding: gzip.")
    taken = 0

    def take(count: int) -> None:
        nonlocal taken
        service.budget.take(count)
        taken += count

    try:
        settings = service.settings
        body = await read_body(request, settings.body_limit_bytes, settings.body_timeout_seconds, take)
        if encoding == "gzip":
            # However small it is: what comes out of it may be as large as the limit.
            body = await asyncio.to_thread(_decompressed, body, settings.body_limit_bytes)
            take(len(body))
        words = service.rules.words[namespace.name]
        callback = await _read_apart(service, partial(_verified, body, channel, signature, namespace, words), len(body))
        batch = _batch(request, service, namespace, channel, body)
        ingested = await service.door.ingest(batch, callback)
    finally:
        service.budget.give_back(taken)
    return _answer(service, channel, ingested, len(callback.values)), ingested.state


def _namespace(request: Request, service: Service) -> Namespace:
    name = request.path_params.get("namespace")
    namespace = service.settings.main_namespace if name is None else service.settings.namespace(name)
    if namespace is None or ("token" in request.path_params and namespace.callback_token is None):
        raise NotFound("There is no webhook at this path; check the namespace in it.", "unknown-namespace")
    return namespace


def _check_token(request: Request, namespace: Namespace) -> None:
    if namespace.callback_token is None:
        return
    given = str(request.path_params.get("token", "")).encode("utf-8", "surrogatepass")
    if not hmac.compare_digest(given, namespace.callback_token.reveal().encode()):
        raise SignatureRefused("The callback token at the end of the path is missing or wrong.", "callback-token")


def _decompressed(body: bytes, limit: int) -> bytes:
    """The body behind gzip, of which never more than the limit is made."""
    parts = bytearray()
    rest = body
    try:
        for _ in range(MOST_MEMBERS):
            unzip = zlib.decompressobj(wbits=31)
            parts += unzip.decompress(rest, limit + 1 - len(parts))
            if len(parts) > limit or unzip.unconsumed_tail:
                raise TooLarge(f"The decompressed body is over {limit} bytes.")
            if not unzip.eof:
                raise BadRequest("The gzip body is cut off.", "not-gzip")
            rest = unzip.unused_data
            if not rest:
                return bytes(parts)
    except zlib.error:
        raise BadRequest("The body is not gzip, as Content-Encoding says.", "not-gzip") from None
    raise BadRequest(f"The gzip body has more than {MOST_MEMBERS} members; compress it as one.", "not-gzip")


async def _read_apart(service: Service, read: Callable[[], Callback], size: int) -> Callback:
    """Reading a large body must not hold up the others; and one at a time, since it takes many times its size."""
    if size <= SMALL_BODY:
        return read()
    async with service.reading:
        return await asyncio.to_thread(read)


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


def _batch(request: Request, service: Service, namespace: Namespace, channel: Channel, body: bytes) -> Received:
    headers = {name: request.headers[name] for name in _KEPT_HEADERS if name in request.headers}
    digest = hashlib.sha256(body).digest()
    now = service.now
    batch_id = new_id(now, random.getrandbits(74))
    return Received(batch_id, namespace.name, channel, "kahuna_webhook", now, headers, body, digest)


def _answer(service: Service, channel: Channel, ingested: Ingested, received: int) -> Response:
    outcome = ingested.outcome
    if outcome is None:
        return answer({"batch_id": ingested.batch_id, "state": ingested.state, "received": received})
    counts = {"accepted": outcome.accepted, "duplicates": outcome.duplicates, "rejected": outcome.rejected}
    for name, count in counts.items():
        if count:
            service.metrics.entries.labels(channel, name).inc(count)
    errors = outcome.errors[:ERRORS_SHOWN]
    return answer({"batch_id": ingested.batch_id, "state": ingested.state} | counts | {"errors": errors})
