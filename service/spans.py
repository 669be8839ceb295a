"""Owns traces as this service sees them: which requests are recorded, where in a trace a piece of work stands, and what
is told of it. Refuses to know who takes the spans: `service.tracing` sends them.

A trace goes on through the database: what a callback causes carries its `traceparent`, in the headers of its batch and
in the outbox. Nothing is ever told in a span that may not be told in a log line: no address, key or token.
"""

import random
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple, TypeAlias

TRACE: Final[ContextVar[str | None]] = ContextVar("trace", default=None)
"""The `traceparent` of the span under way, if it is recorded."""

MOST_LINKS: Final = 128
"""Links of one span, and spans that one call of Kahuna's adds to other traces."""

_TRACEPARENT: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_SAMPLED: Final = 1

Kind: TypeAlias = Literal["server", "client", "internal"]


class Place(NamedTuple):
    """A span of a trace."""

    trace_id: int
    span_id: int

    @property
    def traceparent(self) -> str:
        """As W3C writes it, of one that is recorded."""
        return f"00-{self.trace_id:032x}-{self.span_id:016x}-01"


@dataclass(slots=True)
class Span:
    """A piece of work: where it stands, what it is part of, when it began and ended in nanoseconds, and what is told of
    it. `links` are spans of other traces that had a part in it."""

    name: str
    place: Place
    parent: int | None
    kind: Kind
    began: int
    ended: int = 0
    links: Sequence[Place] = ()
    told: dict[str, Any] = field(default_factory=dict)
    failed: bool = False


def read(text: str | None) -> tuple[Place, bool] | None:
    """Where a `traceparent` stands and whether it is recorded; None if it is none."""
    match = _TRACEPARENT.fullmatch(text or "")
    if match is None or match[1] == "ff" or (match[1] == "00" and match[5]):
        return None
    place = Place(int(match[2], 16), int(match[3], 16))
    return (place, bool(int(match[4], 16) & _SAMPLED)) if place.trace_id and place.span_id else None


def trace_id_of(text: str | None) -> str | None:
    """The trace's id in hex, of a `traceparent`."""
    found = read(text)
    return None if found is None else f"{found[0].trace_id:032x}"


def places_of(texts: Sequence[str | None]) -> list[Place]:
    """Where these stand, each once, and no more than may be linked."""
    places: dict[Place, None] = {}
    for text in texts:
        found = None if text is None else read(text)
        if found is not None and found[1]:
            places.setdefault(found[0])
        if len(places) == MOST_LINKS:
            break
    return list(places)


class Tracer:
    """Makes the spans of one process and hands those that are recorded to `take`, which must not wait. A trace that
    begins here is recorded if `draw` gives less than `ratio`; one that came with a request, as whoever sent it says."""

    def __init__(
        self,
        take: Callable[[Span], None] | None = None,
        ratio: float = 0.0,
        draw: Callable[[], float] = random.random,
        draw_bits: Callable[[int], int] = random.getrandbits,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self.on = take is not None
        self._take = take or (lambda _: None)
        self._ratio = ratio
        self._draw = draw
        self._draw_bits = draw_bits
        self.clock = clock

    def enter(self, received: str | None) -> Span | None:
        """The span of a request that came with this `traceparent`; None if it is not recorded."""
        found = read(received) if received else None
        if found is None:
            return self.root("request", "server")
        return self._span("request", found[0], "server") if found[1] and self.on else None

    def root(self, name: str, kind: Kind = "internal", *, sure: bool = False) -> Span | None:
        """The first span of a new trace; None if it is not recorded. `sure`: it is, since another that is had a part in
        it."""
        if not self.on or not (sure or self._draw() < self._ratio):
            return None
        return Span(name, Place(self._id(128), self._id(64)), None, kind, self.clock())

    def child(self, name: str, of: str | None, kind: Kind = "internal") -> Span | None:
        """A span that is part of one that is recorded, else None."""
        found = read(of) if self.on and of else None
        return self._span(name, found[0], kind) if found is not None and found[1] else None

    def note(self, name: str, of: str | None, began: int, told: Mapping[str, Any], links: Sequence[Place] = ()) -> None:
        """Tells of work that began then and ends now, as a part of what is recorded."""
        span = self.child(name, of)
        if span is not None:
            span.began, span.links = began, links
            span.told.update(told)
            self.end(span)

    @contextmanager
    def within(self, span: Span | None) -> Iterator[Span | None]:
        """What is done in the block is part of this span, which ends with it."""
        if span is None:
            yield None
            return
        token = TRACE.set(span.place.traceparent)
        try:
            yield span
        except BaseException:
            span.failed = True
            raise
        finally:
            TRACE.reset(token)
            self.end(span)

    def end(self, span: Span) -> None:
        """It has ended now, and is told of."""
        span.ended = self.clock()
        self._take(span)

    def _span(self, name: str, parent: Place, kind: Kind) -> Span:
        return Span(name, Place(parent.trace_id, self._id(64)), parent.span_id, kind, self.clock())

    def _id(self, bits: int) -> int:
        return self._draw_bits(bits) or 1


def traceparent_in(headers: Mapping[str, str]) -> str | None:
    """The span that took a batch in, if it was recorded: we wrote it there."""
    return headers.get("traceparent")
