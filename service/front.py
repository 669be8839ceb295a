"""Owns the connections of the web process, up to where a request's head is read: how large it may be and how long it
may take, and what becomes of one that is no HTTP.

The library reads HTTP and bounds neither. Whoever holds a connection without a request under way is watched by one
clock, and whoever takes nothing of an answer by another, so that none stays open for ever. Refuses to know what is
asked: a body's bounds are those of its route.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Final, TypeAlias

import httptools
import msgspec
import uvicorn
from uvicorn._types import ASGI3Application, ASGISendEvent, HTTPResponseBodyEvent, HTTPResponseStartEvent
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from service.telemetry import RequestIds

_REFUSALS: Final = {
    "not-http": (400, "This is no HTTP/1.1 request."),
    "head-too-large": (400, "The request line and the headers are too large, or too many."),
    "head-too-slow": (408, "The request line and the headers did not arrive in time."),
}

KEEP_ALIVE: Final = 75
"""Seconds between two requests: longer than load balancers keep an idle connection, for whoever closes first must not
be us."""

STALLED: Final = 60.0
"""Seconds after which one who has taken nothing of what waits to be sent is given up."""

BESIDE_BODY: Final = 1024 * 1024
FRAMES: Final = 8
"""Bytes that may come beside a body, and for each of its bytes: one a chunk has six."""

PIECE: Final = 16 * 1024
"""Bytes that are taken in at once. Requests that wait in them for their turn cost two hundred times as much."""


Tell: TypeAlias = Callable[[int, bytes, bytes], None]
"""Sends a whole answer: its status, its headers as they are written, each with the end of its line, and its body, if it
may have one. It does nothing for one who has gone, and raises nothing."""

Take: TypeAlias = Callable[[bytes, Mapping[bytes, bytes], Tell], bool]
"""Whether the application takes a request, by its target and its headers, to tell the answer in a later turn of the
loop; else it is served the ordinary way, by a task."""

_CLOSED: Final = b"connection: close\r\n"

_CONTROLS: Final = bytes({*range(0x20), 0x7F} - {ord("\t")})
"""Characters that no header may hold; those that end a line among them."""


class FrontConfig(uvicorn.Config):
    """How the web process listens: request line and headers in at most `head_limit` bytes and `head_seconds`. What may
    be answered without a task is offered to `take` first."""

    def __init__(
        self,
        application: Any,
        host: str,
        port: int,
        *,
        head_limit: int = 64 * 1024,
        head_seconds: float = 15.0,
        take: Take | None = None,
    ) -> None:
        super().__init__(
            application,
            host=host,
            port=port,
            http=_Connection,
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            # Nothing here asks who is behind a proxy, and to find out costs every request a frame.
            proxy_headers=False,
            timeout_graceful_shutdown=10,
            timeout_keep_alive=KEEP_ALIVE,
        )
        self.head_limit = head_limit
        self.head_seconds = head_seconds
        self.take = take
        self.ids = RequestIds()
        self._common: tuple[Sequence[tuple[bytes, bytes]], bytes] = ((), b"")

    def written(self, headers: Sequence[tuple[bytes, bytes]]) -> bytes:
        """The headers that all answers have, as they are written. The library makes a new list of them every second."""
        if headers is not self._common[0]:
            self._common = headers, b"".join([b"%b: %b\r\n" % header for header in headers])
        return self._common[1]


class _Taken:
    """A request under way that the application has taken, where the library looks for one that has a task."""

    __slots__ = ("disconnected", "keep_alive", "more_body", "response_complete")
    scope: ClassVar = {"method": "GET"}

    def __init__(self) -> None:
        self.disconnected = self.response_complete = False
        self.keep_alive = self.more_body = True

    @property
    def message_event(self) -> "_Taken":
        """What the library sets to have the task look around."""
        return self

    def set(self) -> None:
        """There is no task."""


class _Whole:
    """Sends an answer that is whole, as nearly all are, in one piece. The library writes its head apart from its body,
    which wakes whoever waits twice, and searches each header for what could not be sent; here all are looked through at
    once. What is not whole is the library's."""

    __slots__ = ("_cycle", "_head", "_send")

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle
        self._send = cycle.send
        self._head: HTTPResponseStartEvent | None = None

    async def send(self, message: ASGISendEvent) -> None:
        """Takes the head, keeps it if the answer says how long it is, and sends it with the body."""
        if message["type"] == "http.response.start" and _says_its_length(message):
            self._head = message
            return
        head, self._head = self._head, None
        if head is None or message["type"] != "http.response.body" or not self._goes_whole(head, message):
            if head is not None:
                await self._send(head)
            await self._send(message)
        if self._cycle.response_complete:
            # Else the two would hold each other, and what came with the request, until garbage is looked for.
            vars(self._cycle).pop("send", None)

    def _goes_whole(self, head: HTTPResponseStartEvent, body: HTTPResponseBodyEvent) -> bool:
        """Sends both, unless there is more to mind than that."""
        cycle, content = self._cycle, body["body"]
        if body.get("more_body") or cycle.flow.write_paused or cycle.disconnected or cycle.response_started:
            return False
        written = _written(head["status"], (*cycle.default_headers, *head["headers"]), len(content))
        if written is None or not cycle.keep_alive or cycle.scope["method"] == "HEAD":
            return False
        cycle.transport.write(written + content)
        cycle.response_started = cycle.response_complete = True
        cycle.waiting_for_100_continue = False
        cycle.message_event.set()
        cycle.on_response()
        return True


def _says_its_length(head: HTTPResponseStartEvent) -> bool:
    return b"content-length" in dict(head["headers"])


def _written(status: int, headers: Sequence[tuple[bytes, bytes]], length: int) -> bytes | None:
    """The head of an answer of this length; None if it says otherwise, or holds a control character beside the ends of
    its lines."""
    lines = [STATUS_LINE[status]]
    for name, value in headers:
        if name == b"connection" or (name == b"content-length" and int(value) != length):
            return None
        lines += (name, b": ", value, b"\r\n")
    lines.append(b"\r\n")
    written, ends = b"".join(lines), len(headers) + 2
    return written if len(written) - len(written.translate(None, _CONTROLS)) == ends * len(b"\r\n") else None


class _Flow(FlowControl):
    """What a connection reads and writes. The library reads on with every answer, whatever still waits for its turn, so
    that one who asks faster than we answer would fill the memory."""

    def __init__(self, transport: Any, waiting: Collection[object]) -> None:
        super().__init__(transport)
        self._waiting = waiting

    def resume_reading(self) -> None:
        """Reads on, unless requests wait: the one that is under way is whole then."""
        if not self._waiting:
            super().resume_reading()


class _Connection(HttpToolsProtocol):
    """One connection. `_partial`: a message has begun and is not whole; `_reading_head`: nor is its head."""

    config: FrontConfig

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self._partial = self._reading_head = self._refused = self._too_large = self._begun = False
        self._raw_bytes = self._body_bytes = self._chunk = 0
        self._unread = b""
        self._idle_since = 0.0
        self._clock: Any = None
        self._reader_clock: Any = None
        self._answering: RequestResponseCycle | _Taken | None = None

    def connection_made(self, transport: Any) -> None:
        """Somebody has connected, and has so long to ask for something."""
        super().connection_made(transport)
        self.flow = _Flow(transport, self.pipeline)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody is there any more. The library tells it to the request that came last; one before it may still be
        under way."""
        self._stop_clock()
        self._stop_reader_clock()
        if self._answering is not None and not self._answering.response_complete:
            self._answering.disconnected = True
            self._answering.message_event.set()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Reads on. Of a head that does not end, only so much is kept."""
        if self._unread or len(data) > PIECE:
            self._unread += data
            self._read_on()
        elif not self._refused:
            self._take_in(data)

    def _read_on(self) -> None:
        """Takes in what has come, until a request has to wait for its turn: the rest waits as it came."""
        while self._unread and not self.pipeline and not self._refused:
            piece, self._unread = self._unread[:PIECE], self._unread[PIECE:]
            self._take_in(piece)
        if self._refused:
            self._unread = b""

    def _take_in(self, data: bytes) -> None:
        self._chunk, self._begun = len(data), False
        try:
            self._feed(data)
        except httptools.HttpParserError:
            self.send_400_response("")
        if self._partial:
            self._weigh()
        # A request that is under way has its own clocks.
        if self._clock is not None or not self._is_busy():
            self._watch()

    def _weigh(self) -> None:
        """Counts what came of a message that is not whole: what is neither its body nor the frames of its chunks has a
        bound, though the parser has made nothing of it yet."""
        if not self._begun:  # else what came before it, in the same piece, would be counted too
            self._raw_bytes += self._chunk
        allowed = self.config.head_limit if self._reading_head else BESIDE_BODY + FRAMES * self._body_bytes
        if self._raw_bytes > allowed:
            self._refuse_in_turn("head-too-large")

    def _feed(self, data: bytes) -> None:
        while True:
            try:
                return self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as asked:
                data = self._without_upgrade() + data[asked.args[0] :]

    def _without_upgrade(self) -> bytes:
        """The head of a request that offers to go on in another protocol, without the offer: the parser would take its
        body for that protocol. Some clients offer HTTP/2 with every request."""
        lines = [self.parser.get_method() + b" " + self.url + b" HTTP/1.1"]
        for name, value in self.headers:
            if name == b"connection":
                words = (word.strip() for word in value.split(b","))
                lines.append(b"connection: " + b",".join(word for word in words if word.lower() != b"upgrade"))
            elif name != b"upgrade":
                lines.append(name + b": " + value)
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        return b"\r\n".join([*lines, b"", b""])

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """Nothing more will come. A callback that is whole is answered all the same; who listens otherwise is gone."""
        rest, self._unread = self._unread, b""
        if rest:
            self._take_in(rest)
        if not self._is_busy() or self.cycle.more_body or self.cycle.scope["method"] != "POST":
            return None
        self._refused = True
        self.cycle.keep_alive = False
        return True

    def on_message_begin(self) -> None:
        """The first byte of a request, which has a clock and a limit of its own."""
        super().on_message_begin()
        self._partial = self._reading_head = self._begun = True
        self._raw_bytes = self._body_bytes = 0
        self._stop_clock()

    def on_headers_complete(self) -> None:
        """A request is under way, unless its path is none."""
        # What came so far is more than the head; only if that is too much is the head itself weighed.
        came = self._raw_bytes + self._chunk + PIECE  # that it began in is not counted
        if came > self.config.head_limit and self._head_size() > self.config.head_limit:
            self._too_large = True
            # The parser turns it into its own error, and that becomes the refusal.
            raise httptools.HttpParserCallbackError
        if self._offers_upgrade():
            return
        if not self._is_taken():
            super().on_headers_complete()
        self._reading_head = False

    def _is_taken(self) -> bool:
        """Whether the application took the request, which it is offered if it has the connection for itself, and a head
        in which nothing is said twice."""
        take = self.config.take
        if take is None or self.parser.get_method() != b"GET" or self._is_busy() or self.flow.write_paused:
            return False
        headers, taken = dict(self.headers), _Taken()
        if len(headers) < len(self.headers) or not self._is_plain(headers):
            return False
        if not take(self.url, headers, partial(self._tell, taken)):
            return False
        self.cycle = self._answering = taken  # type: ignore[assignment]
        return True

    def _is_plain(self, headers: Mapping[bytes, bytes]) -> bool:
        """Whether the request ends with its head, and the connection may go on after it."""
        return (
            headers.get(b"content-length", b"0") == b"0"
            and b"transfer-encoding" not in headers
            and not self.expect_100_continue
            # The parser's word, as for tasks: there is more than one header that ends a connection.
            and self.parser.should_keep_alive()
            and self.parser.get_http_version() == "1.1"
        )

    def _tell(self, taken: _Taken, status: int, head: bytes, body: bytes) -> None:
        """Sends the answer to what was taken, unless it has one, or nobody is there any more."""
        if taken.response_complete or taken.disconnected or self.transport.is_closing():
            return
        common = self.config.written(self.server_state.default_headers)
        ends = not taken.keep_alive or _CLOSED in common
        if ends and _CLOSED not in common:
            head += _CLOSED
        self.transport.write(b"%b%b%b\r\n%b" % (STATUS_LINE[status], common, head, body))
        taken.response_complete = True
        if ends:
            self.transport.close()
        self.on_response_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        # The library makes its cycles by itself, and gives away what they send by.
        cycle.send = _Whole(cycle).send  # type: ignore[method-assign]
        self._answering = cycle
        super()._start_asgi_task(cycle, app)

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """A request is whole."""
        if self._offers_upgrade():
            return
        self._partial = False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """A request is answered, before the end of its body perhaps. The library would set a clock for each."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        self._read_on()
        self.flow.resume_reading()
        self._watch()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 (the library's words; ours say more)
        """What came is no HTTP."""
        self._refuse_in_turn("head-too-large" if self._too_large else "not-http")

    def _refuse_in_turn(self, slug: str) -> None:
        """Refuses what came last, which is not whole. Requests before it are answered first, the last of them with the
        end of the connection; else a refusal would be taken for their answer."""
        self._refused = True
        if self._is_busy() and self.cycle.more_body and self.pipeline:
            # It has begun behind others, and will never be whole.
            self.pipeline.popleft()
            self.cycle = self.pipeline[0][0] if self.pipeline else self._answering  # type: ignore[assignment]
        if self._is_busy() and not self.cycle.more_body:
            self.cycle.keep_alive = False
            return
        self._refuse(slug)

    def _offers_upgrade(self) -> bool:
        return self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT"

    def _head_size(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def _is_busy(self) -> bool:
        return bool(self.cycle) and not self.cycle.response_complete

    def _watch(self) -> None:
        """One clock, unless a request is under way: until the next request begins, or until this one is whole."""
        if self._is_busy() or self.transport.is_closing():
            self._stop_clock()
        elif self._partial or self.cycle is None:
            if self._clock is None:
                self._clock = self.loop.call_later(self.config.head_seconds, self._on_time_out)
        else:
            self._stop_clock()
            self._idle_since = self.loop.time()
            if self.timeout_keep_alive_task is None:
                self._keep_alive_for(self.config.timeout_keep_alive)

    def _keep_alive_for(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

    def timeout_keep_alive_handler(self) -> None:
        """Ends a connection that has been idle for long enough. The clock is set once and looks then, since to stop it
        for each request and to set it after each answer costs more than all that is told here of both."""
        self.timeout_keep_alive_task = None
        if self._is_busy() or self._partial:
            return
        left = self._idle_since + self.config.timeout_keep_alive - self.loop.time()
        if left > 0:
            self._keep_alive_for(left)
        else:
            self.transport.close()
            self._watch_reader()

    def pause_writing(self) -> None:
        """Much waits to be sent: answers wait until it is taken, but not for one who takes nothing."""
        super().pause_writing()
        self._watch_reader()

    def resume_writing(self) -> None:
        """It was taken, most of it."""
        self._stop_reader_clock()
        super().resume_writing()

    def _watch_reader(self) -> None:
        self._stop_reader_clock()
        waiting = self.transport.get_write_buffer_size()
        if waiting:
            self._reader_clock = self.loop.call_later(STALLED, partial(self._look_at_reader, waiting))

    def _look_at_reader(self, waited: int) -> None:
        # Answers wait meanwhile, so that it grows no more.
        if self.transport.get_write_buffer_size() < waited:
            self._watch_reader()
        else:
            self.transport.abort()

    def _stop_reader_clock(self) -> None:
        if self._reader_clock is not None:
            self._reader_clock.cancel()
            self._reader_clock = None

    def _on_time_out(self) -> None:
        self._clock = None
        if self._reading_head:
            self._refuse("head-too-slow")
        else:
            # Nothing was asked, or what was asked is answered and its body goes on and on.
            self.transport.close()

    def _stop_clock(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None

    def _refuse(self, slug: str) -> None:
        """The problem, and the end of the connection."""
        self._refused = True
        if self.transport.is_closing():
            return
        status, detail = _REFUSALS[slug]
        title = slug.replace("-", " ").capitalize()
        document = msgspec.json.encode({"type": slug, "title": title, "status": status, "detail": detail})
        head = (
            f"content-type: application/problem+json\r\ncontent-length: {len(document)}\r\n"
            f"x-request-id: {self.config.ids.next('')}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(STATUS_LINE[status] + head.encode() + document)
        self.transport.close()
