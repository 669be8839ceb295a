"""Owns the span of a request. It stands around everything else, but only where traces are sent at all: without them no
request passes here."""

from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.spans import Tracer
from service.web.http import header_in

_PROBES: Final = frozenset({"/livez", "/readyz", "/metrics"})


class Tracing:
    """Goes on with the trace that a request comes with, or begins one. A request that is not recorded costs a look at
    its headers, and a random number."""

    def __init__(self, app: ASGIApp, tracer: Tracer) -> None:
        self._app = app
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        span = None
        if scope["type"] == "http" and scope["path"] not in _PROBES:
            span = self._tracer.enter(header_in(scope, b"traceparent"))
        if span is None:
            await self._app(scope, receive, send)
            return
        with self._tracer.within(span):
            told = span.told

            async def listen(message: Message) -> None:
                if message["type"] == "http.response.start":
                    told["http.response.status_code"] = message["status"]
                    for name, value in message["headers"]:
                        if name == b"x-request-id":
                            told["kahuna_sync.request_id"] = value.decode("latin-1")
                await send(message)

            await self._app(scope, receive, listen)
            # The route's pattern: the path itself may hold an address.
            route = getattr(scope.get("route"), "path", None) or "none"
            span.name = f"{scope['method']} {route}"
            span.failed = told.get("http.response.status_code", 500) >= 500
            told |= {"http.request.method": scope["method"], "http.route": route}
