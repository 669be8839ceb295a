"""How answers leave a connection, and when one that nobody uses ends: without a port, on a clock of our own."""

import asyncio
import gc
import inspect
import re
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from service.front import KEEP_ALIVE, PIECE, STALLED, FrontConfig, Take, Tell

Header = tuple[bytes, bytes]
ASKED = b"GET / HTTP/1.1\r\nhost: sync.test\r\n\r\n"
LENGTH = (b"content-length", b"2")


class Transport:
    """Keeps what is written, piece by piece."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.closed = self.aborted = False
        self.reading = True
        self.waiting = 0

    def get_write_buffer_size(self) -> int:
        return self.waiting

    def abort(self) -> None:
        self.closed = self.aborted = True

    def get_extra_info(self, _name: str, default: Any = None) -> Any:
        return default

    def write(self, piece: bytes) -> None:
        self.pieces.append(piece)

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True


class Timer:
    """Something that is to happen, unless it is cancelled."""

    def __init__(self, at: float, act: Callable[[], None]) -> None:
        self.at = at
        self.act = act
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Loop:
    """The event loop, but for the time, which passes when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[Timer] = []
        self.create_task = asyncio.get_running_loop().create_task

    def time(self) -> float:
        return self.now

    def call_later(self, seconds: float, act: Callable[[], None]) -> Timer:
        self.timers.append(Timer(self.now + seconds, act))
        return self.timers[-1]

    def pass_by(self, seconds: float) -> None:
        """So much later: what was due by then has happened."""
        until = self.now + seconds
        while due := [one for one in self.timers if not one.cancelled and one.at <= until]:
            first = min(due, key=lambda one: one.at)
            self.timers.remove(first)
            self.now = first.at
            first.act()
        self.now = until


class Line:
    """A connection to an application that answers by these messages, or to one that is given."""

    def __init__(self, *messages: dict[str, Any], application: Any = None, take: Take | None = None) -> None:
        self.messages = messages
        self.transport = Transport()
        self.loop = Loop()
        config = FrontConfig(application or self, "127.0.0.1", 80, take=take)
        config.load()
        made: Any = config.http_protocol_class
        self.connection = made(config=config, server_state=ServerState(), app_state={}, _loop=self.loop)
        self.connection.connection_made(self.transport)

    async def __call__(self, _scope: Any, _receive: Any, send: Any) -> None:
        for message in self.messages:
            await send(message)

    async def ask(self, asked: bytes = ASKED) -> list[bytes]:
        """What was written by when the application was done."""
        self.connection.data_received(asked)
        while self.connection.tasks:
            await asyncio.wait(self.connection.tasks)
        return self.transport.pieces


def start(*headers: Header, status: int = 200) -> dict[str, Any]:
    return {"type": "http.response.start", "status": status, "headers": list(headers)}


def part(body: bytes, *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": body, "more_body": more}


async def test_a_whole_answer_is_one_piece() -> None:
    line = Line(start(LENGTH, (b"etag", b'"a"')), part(b"ok"))
    assert await line.ask() == [b'HTTP/1.1 200 OK\r\ncontent-length: 2\r\netag: "a"\r\n\r\nok']
    await line.ask()
    assert line.transport.pieces[0] == line.transport.pieces[1]
    assert not line.transport.closed


@pytest.mark.parametrize(
    ("messages", "asked", "written"),
    [
        (
            [start(), part(b"o", more=True), part(b"k")],
            ASKED,
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\no\r\n1\r\nk\r\n0\r\n\r\n",
        ),
        (
            [start(LENGTH), part(b"o", more=True), part(b"k")],
            ASKED,
            b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
        ),
        (
            [start(LENGTH), part(b"ok")],
            ASKED.replace(b"GET", b"HEAD"),
            b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n",
        ),
        ([start((b"etag", b'"a"'), status=304), part(b"")], ASKED, b'HTTP/1.1 304 Not Modified\r\netag: "a"\r\n\r\n'),
    ],
    ids=["of no known length", "in parts", "to HEAD", "without a body"],
)
async def test_any_other_is_the_librarys(messages: list[dict[str, Any]], asked: bytes, written: bytes) -> None:
    assert b"".join(await Line(*messages).ask(asked)) == written


@pytest.mark.parametrize("asked", [ASKED.replace(b"1.1", b"1.0"), ASKED[:-2] + b"connection: close\r\n\r\n"])
async def test_who_asks_for_the_end_is_told_of_it(asked: bytes) -> None:
    line = Line(start(LENGTH), part(b"ok"))
    written = b"".join(await line.ask(asked))
    assert written == b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok"
    assert line.transport.closed


@pytest.mark.parametrize(
    "messages",
    [
        [start(LENGTH, (b"x", b"a\r\nset-cookie: b")), part(b"ok")],
        [start(LENGTH, (b"x", b"a\nb")), part(b"ok")],
        [start(LENGTH, (b"x", b"a\0cookie")), part(b"ok")],
        [start(LENGTH), part(b"")],
        [start(LENGTH), part(b"more")],
        [start(LENGTH)],
    ],
    ids=["a header within a header", "a line that ends early", "a NUL", "too short", "too long", "a head alone"],
)
async def test_what_is_no_answer_is_not_sent_as_one(messages: list[dict[str, Any]]) -> None:
    line = Line(*messages)
    written = b"".join(await line.ask())
    assert b"cookie" not in written
    assert not written.startswith(b"HTTP/1.1 200") or line.transport.closed


async def test_requests_in_one_piece_are_answered_one_after_the_other() -> None:
    line = Line(start(LENGTH), part(b"ok"))
    pieces = await line.ask(ASKED * 3)
    assert pieces == [b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"] * 3


async def test_while_others_wait_for_their_turn_nothing_more_is_read() -> None:
    reading: list[bool] = []

    async def answer(_scope: Any, receive: Any, send: Any) -> None:
        await receive()
        reading.append(made.transport.reading)
        for message in (start(LENGTH), part(b"ok")):
            await send(message)

    made = Line(application=answer)
    for _ in range(2):
        assert len(await made.ask(ASKED * 3)) % 3 == 0
    assert reading == [False, False, True] * 2
    assert made.transport.reading


async def test_of_many_requests_that_come_at_once_few_wait_and_all_are_answered() -> None:
    waiting: list[int] = []

    async def answer(_scope: Any, _receive: Any, send: Any) -> None:
        waiting.append(len(made.connection.pipeline))
        for message in (start(LENGTH), part(b"ok")):
            await send(message)

    made = Line(application=answer)
    count = 20 * PIECE // len(ASKED)
    assert len(await made.ask(ASKED * count)) == count == len(waiting)
    assert max(waiting) <= 1 + PIECE // len(ASKED)
    assert len(await made.ask()) == count + 1


async def test_of_many_that_come_at_once_with_the_end_a_callback_is_answered_last() -> None:
    line = Line(start(LENGTH), part(b"ok"))
    body = b"a" * (3 * PIECE)
    sent = b"POST / HTTP/1.1\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
    line.connection.data_received(ASKED * 1000 + sent)
    assert line.connection.eof_received()
    assert len(await line.ask(b"")) >= 1001
    assert line.transport.pieces[-1].endswith(b"ok")
    assert line.transport.closed


async def test_who_asks_again_and_again_is_kept_and_who_does_not_is_let_go() -> None:
    line = Line(start(LENGTH), part(b"ok"))
    for _ in range(5):
        await line.ask()
        line.loop.pass_by(KEEP_ALIVE - 1)
    assert not line.transport.closed
    line.loop.pass_by(1)
    assert line.transport.closed


async def test_the_clock_of_the_idle_ends_no_request() -> None:
    line = Line(start(LENGTH), part(b"ok"))
    await line.ask()
    line.loop.pass_by(KEEP_ALIVE - 1)
    line.connection.data_received(ASKED[:-2])
    line.loop.pass_by(2)
    assert not line.transport.closed
    await line.ask(ASKED[-2:])
    line.loop.pass_by(KEEP_ALIVE - 1)
    assert not line.transport.closed
    line.loop.pass_by(1)
    assert line.transport.closed


@pytest.mark.parametrize(
    "messages", [[start(LENGTH), part(b"ok")], [start(), part(b"o", more=True), part(b"k")]], ids=["whole", "in parts"]
)
async def test_nothing_of_a_request_stays_behind_its_answer(messages: list[dict[str, Any]]) -> None:
    line = Line(*messages)
    gc.collect()
    gc.disable()
    try:
        await line.ask()
        first = weakref.ref(line.connection.cycle)
        await line.ask()
        assert first() is None
    finally:
        gc.enable()


async def test_after_its_answer_nobody_is_told_to_go_on() -> None:
    """What reads on then hears that it is over, and the next answer begins where this one ended."""
    heard: list[str] = []

    async def refuse(_scope: Any, receive: Any, send: Any) -> None:
        await send(start(LENGTH))
        await send(part(b"no"))
        heard.append((await receive())["type"])

    line = Line(application=refuse)
    pieces = await line.ask(ASKED.replace(b"GET", b"POST")[:-2] + b"expect: 100-continue\r\ncontent-length: 2\r\n\r\n")
    assert pieces == [b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nno"]
    assert heard == ["http.disconnect"]


async def test_who_takes_nothing_is_given_up_and_who_takes_little_is_not() -> None:
    line = Line(start(LENGTH), part(b"ok"))
    line.transport.waiting = 100_000
    line.connection.pause_writing()
    asking = asyncio.create_task(line.ask())
    await asyncio.sleep(0)
    for taken in (1, 1, 1, 0):
        line.transport.waiting -= taken
        line.loop.pass_by(STALLED)
        assert line.transport.aborted is (taken == 0)
    line.connection.connection_lost(None)
    assert await asking == []


async def test_who_takes_it_in_the_end_is_answered() -> None:
    line = Line(start(LENGTH), part(b"ok"))
    line.transport.waiting = 100_000
    line.connection.pause_writing()
    asking = asyncio.create_task(line.ask())
    await asyncio.sleep(0)
    line.connection.resume_writing()
    assert b"".join(await asking).endswith(b"ok")
    line.loop.pass_by(STALLED)
    assert not line.transport.aborted


async def test_what_nobody_takes_keeps_no_idle_connection() -> None:
    line = Line(start(LENGTH), part(b"ok"))
    await line.ask()
    line.transport.waiting = 10
    line.loop.pass_by(KEEP_ALIVE)
    assert (line.transport.closed, line.transport.aborted) == (True, False)
    line.loop.pass_by(STALLED)
    assert (line.transport.closed, line.transport.aborted) == (True, True)


async def test_when_the_caller_goes_it_is_the_request_under_way_that_hears_of_it() -> None:
    heard: list[str] = []

    async def wait(_scope: Any, receive: Any, _send: Any) -> None:
        while not heard or heard[-1] != "http.disconnect":
            heard.append((await receive())["type"])

    line = Line(application=wait)
    asking = asyncio.create_task(line.ask(ASKED * 2))
    await asyncio.sleep(0)
    line.connection.connection_lost(None)
    async with asyncio.timeout(5):
        await asking
    assert heard[-1] == "http.disconnect"
    assert heard.count("http.disconnect") == 1


class Offhand:
    """Takes whatever it is offered, and tells when it is let."""

    def __init__(self) -> None:
        self.waiting: list[tuple[bytes, Mapping[bytes, bytes], Tell]] = []

    def take(self, target: bytes, headers: Mapping[bytes, bytes], tell: Tell) -> bool:
        self.waiting.append((target, headers, tell))
        return True

    def tell(self, body: bytes = b"ok", status: int = 200) -> None:
        """Answers the one that waits."""
        tell = self.waiting.pop(0)[2]
        for _ in range(2):  # the second time, nobody waits for it
            tell(status, b"content-length: %d\r\n" % len(body), body)


TOLD = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


@pytest.fixture
def offhand() -> Offhand:
    return Offhand()


@pytest.fixture
async def line(offhand: Offhand) -> Line:
    """A connection whose requests are taken where they may be; the others are told "task" by a task."""
    return Line(start((b"content-length", b"4")), part(b"task"), take=offhand.take)


async def test_what_is_taken_has_no_task_and_is_answered_in_one_piece(line: Line, offhand: Offhand) -> None:
    for number in (1, 2):
        line.connection.data_received(ASKED)
        assert not line.connection.tasks
        assert offhand.waiting[0][:2] == (b"/", {b"host": b"sync.test"})
        offhand.tell()
        assert line.transport.pieces == [TOLD] * number
    assert line.connection.server_state.total_requests == 2


async def test_what_comes_behind_one_that_was_taken_waits_for_it(line: Line, offhand: Offhand) -> None:
    line.connection.data_received(ASKED * 2)
    assert len(offhand.waiting) == 1
    offhand.tell()
    assert [piece[-4:] for piece in await line.ask(ASKED)] == [TOLD[-4:], b"task", b"task"]
    line.connection.data_received(ASKED)
    assert len(offhand.waiting) == 1


async def test_where_much_waits_to_be_sent_nothing_is_taken(line: Line, offhand: Offhand) -> None:
    line.connection.pause_writing()
    line.connection.data_received(ASKED)
    line.connection.resume_writing()
    assert (await line.ask(b""))[0].endswith(b"task")
    assert not offhand.waiting


async def test_one_who_has_gone_is_told_nothing(line: Line, offhand: Offhand) -> None:
    line.connection.data_received(ASKED)
    line.connection.connection_lost(None)
    offhand.tell()
    assert not line.transport.pieces


async def test_before_the_end_what_was_taken_is_answered_and_then_its_connection_ends(
    line: Line, offhand: Offhand
) -> None:
    line.connection.data_received(ASKED)
    line.connection.shutdown()
    assert not line.transport.closed
    offhand.tell()
    assert line.transport.pieces == [TOLD[:-6] + b"\r\nconnection: close\r\n\r\nok"]
    assert line.transport.closed


async def test_the_headers_of_all_answers_are_those_of_the_moment(line: Line, offhand: Offhand) -> None:
    for headers in ([(b"date", b"now")], [(b"date", b"then"), (b"connection", b"close")]):
        line.connection.server_state.default_headers = headers
        line.connection.data_received(ASKED)
        offhand.tell()
    said = [piece.split(b"\r\n")[1:3] for piece in line.transport.pieces]
    assert said == [[b"date: now", b"content-length: 2"], [b"date: then", b"connection: close"]]
    assert line.transport.pieces[-1].count(b"connection") == 1
    assert line.transport.closed


async def test_no_clock_ends_what_was_taken_and_one_that_is_idle_after_it_ends(line: Line, offhand: Offhand) -> None:
    line.connection.data_received(ASKED)
    line.loop.pass_by(10 * KEEP_ALIVE)
    offhand.tell()
    line.loop.pass_by(KEEP_ALIVE - 1)
    assert not line.transport.closed
    line.loop.pass_by(1)
    assert line.transport.closed


async def test_what_is_no_http_behind_one_that_was_taken_ends_the_connection_after_it(
    line: Line, offhand: Offhand
) -> None:
    line.connection.data_received(ASKED + b"\0\r\n")
    assert not line.transport.pieces
    offhand.tell()
    assert line.transport.pieces[0].startswith(TOLD[:15])
    assert line.transport.closed


async def test_what_was_taken_has_all_that_the_library_asks_of_a_request(line: Line) -> None:
    line.connection.data_received(ASKED)
    asked = set(re.findall(r"(?:self.|existing_)cycle\.(\w+)", inspect.getsource(HttpToolsProtocol)))
    assert {one for one in asked if not hasattr(line.connection.cycle, one)} == {"body"}, "and it has none"


@pytest.mark.parametrize("taken", [True, False], ids=["one that was taken", "one with a task"])
async def test_a_head_that_is_too_large_is_not_told_before_the_answer_of(taken: bool, offhand: Offhand) -> None:
    line = Line(start(LENGTH), part(b"ok"), take=offhand.take if taken else None)
    line.connection.data_received(ASKED + b"GET / HTTP/1.1\r\n")
    line.connection.data_received(b"x: " + b"a" * 70_000)
    assert not line.transport.pieces
    if taken:
        offhand.tell()
    told = b"".join(await line.ask(b""))
    assert told == TOLD[:-6] + b"\r\nconnection: close\r\n\r\nok"
    assert line.transport.closed


@pytest.mark.parametrize("before", [1, 2])
async def test_a_body_that_is_none_is_not_refused_before_the_answers_of_others(
    before: int, line: Line, offhand: Offhand
) -> None:
    chunked = b"POST / HTTP/1.1\r\nhost: sync.test\r\ntransfer-encoding: chunked\r\n\r\n"
    line.connection.data_received(ASKED * before + chunked)
    line.connection.data_received(b"no size\r\n")
    assert not line.transport.pieces
    offhand.tell()
    told = b"".join(await line.ask(b""))
    assert [told.count(one) for one in (b"HTTP/1.1 ", b"200 OK", b"connection: close")] == [before, before, 1]
    assert line.transport.closed
