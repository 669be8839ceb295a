"""Owns the way of spans out of the process, by OTLP over HTTP; the only module that knows OpenTelemetry.

That is an extra of the installation, so nobody imports this by its name but `serving`, and only where TRACES_URL is
set. What the collector does not take is dropped and counted: nobody ever waits for it, the end of the process but a
few seconds.
"""

import asyncio
import logging
import os
import socket
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from importlib.metadata import version
from itertools import islice
from typing import Final

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from service.spans import Place, Span, Tracer
from service.telemetry import logger

QUEUE: Final = 4096
"""Spans that wait at most; one more is dropped."""

AT_ONCE: Final = 512
"""Spans in one request."""

BETWEEN: Final = 1.0
"""Seconds between two requests while little is recorded."""

PATIENCE: Final = 3.0
"""Seconds that a request to the collector may take, its repetitions included, and the last words of the process."""

_KINDS: Final = {"server": SpanKind.SERVER, "client": SpanKind.CLIENT, "internal": SpanKind.INTERNAL}


class Outlet:
    """Sends spans from a thread of its own. `count` hears how many were `sent` and how many `dropped`."""

    def __init__(self, exporter: SpanExporter, speaker: str, count: Callable[[str, int], None]) -> None:
        self._exporter = exporter
        self._count = count
        self._waiting: deque[Span] = deque()
        self._ending = asyncio.Event()
        self._failing = False
        instance = f"{socket.gethostname()}/{os.getpid()}"
        self._resource = Resource.create(
            {
                "service.name": "kahuna-sync",
                "service.version": version("kahuna-sync"),
                "service.instance.id": instance,
                "kahuna_sync.process": speaker,
            }
        )
        self._scope = InstrumentationScope("kahuna-sync")

    def put(self, span: Span) -> None:
        """Takes a span to be sent, if there is room."""
        if len(self._waiting) >= QUEUE:
            self._count("dropped", 1)
            return
        self._waiting.append(span)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Sends while the block lasts, and then what is left, for so long as is bearable."""
        with ThreadPoolExecutor(1, "traces") as thread:
            sending = asyncio.create_task(self._send_on(thread))
            try:
                yield
            finally:
                self._ending.set()
                with suppress(TimeoutError):
                    await asyncio.wait_for(sending, PATIENCE)
                if self._waiting:
                    self._count("dropped", len(self._waiting))
                # Cuts a request short that waits to be repeated.
                self._exporter.shutdown()

    async def _send_on(self, thread: ThreadPoolExecutor) -> None:
        while not self._ending.is_set():
            if len(self._waiting) < AT_ONCE:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._ending.wait(), BETWEEN)
            await self._send(thread)
        while self._waiting and not self._failing:
            await self._send(thread)

    async def _send(self, thread: ThreadPoolExecutor) -> None:
        """The spans that have waited longest, in one request."""
        spans = list(islice(self._waiting, AT_ONCE))
        if not spans:
            return
        for _ in spans:
            self._waiting.popleft()
        taken = False
        try:
            taken = await asyncio.get_running_loop().run_in_executor(thread, self._export, spans)
        finally:
            self._count("sent" if taken else "dropped", len(spans))
        if taken == self._failing:
            self._failing = not taken
            told = logger().info if taken else logger().warning
            told("traces.taken_again" if taken else "traces.dropped")

    def _export(self, spans: Sequence[Span]) -> bool:
        try:
            return self._exporter.export([self._readable(span) for span in spans]) is SpanExportResult.SUCCESS
        except Exception:  # noqa: BLE001 (whatever it is, it is about traces alone)
            return False

    def _readable(self, span: Span) -> ReadableSpan:
        """A span as the library knows it once it has ended. It is made here because the library's own way decides what
        is recorded, and costs every callback ten times as much."""
        parent = None if span.parent is None else _context(Place(span.place.trace_id, span.parent))
        return ReadableSpan(
            span.name,
            context=_context(span.place),
            parent=parent,
            resource=self._resource,
            attributes={name: value for name, value in span.told.items() if value is not None},
            links=[Link(_context(place)) for place in span.links],
            kind=_KINDS[span.kind],
            status=Status(StatusCode.ERROR if span.failed else StatusCode.UNSET),
            start_time=span.began,
            end_time=span.ended,
            instrumentation_scope=self._scope,
        )


@asynccontextmanager
async def tracer(url: str, ratio: float, speaker: str, count: Callable[[str, int], None]) -> AsyncIterator[Tracer]:
    """A tracer whose spans go to the collector at `url` while the block lasts."""
    # What becomes of them is counted, and told once by us: the library tells it at each request.
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
    outlet = Outlet(OTLPSpanExporter(endpoint=url, timeout=PATIENCE), speaker, count)
    async with outlet.running():
        yield Tracer(outlet.put, ratio)


def _context(place: Place) -> SpanContext:
    return SpanContext(place.trace_id, place.span_id, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED))
