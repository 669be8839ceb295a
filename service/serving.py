"""Owns how applications are served: by this process until it is told to end, or by several that share the ports.

Told to end, a web process is first not ready, then finishes what is under way, then ends; with several, each of them
does. Their parent holds the sockets at which they all accept and the boards on which they count, so that one that dies
loses neither a connection that waits nor a number, and another is started in its place. Refuses to know what is served.
"""

import asyncio
import errno
import importlib
import socket
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, nullcontext
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import uvicorn

from service import app, boards, up
from service.boards import Board
from service.errors import SettingsError
from service.front import FrontConfig, Take
from service.settings import Settings
from service.spans import Tracer
from service.telemetry import Metrics, logger
from service.worker import Trace

DRAIN: Final = 15.0
"""Seconds, beyond the delay of a stop, after which a process that has not ended by itself is killed."""

BACKLOG: Final = 2048
"""Connections that wait to be accepted at most, as many as the library's servers have by themselves."""

_NOT_HERE: Final = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT})

MARGIN: Final = 2.0
"""Seconds that whoever watches over a parent of several gives it to see the last of them killed."""


class Inherited(NamedTuple):
    """What one of several web processes got from their parent: descriptors of the sockets of each port and of all their
    boards, and which of these is its own."""

    place: int
    listening: tuple[tuple[int, ...], ...]
    counting: tuple[int, ...]

    @classmethod
    def read(cls, text: str) -> "Inherited":
        """From what `text` wrote."""
        place, listening, counting = text.split(":")
        return cls(int(place), tuple(_numbers(port) for port in listening.split("/")), _numbers(counting))

    @property
    def text(self) -> str:
        """As an argument of a command."""
        listening, counting = "/".join(map(_text, self.listening)), _text(self.counting)
        return f"{self.place}:{listening}:{counting}"

    @property
    def speaker(self) -> str:
        """What the process calls itself in the log."""
        return f"web-{self.place + 1}"

    def sockets(self) -> list[list[socket.socket]]:
        """Those of each port."""
        return [[socket.socket(fileno=one) for one in port] for port in self.listening]

    def board(self) -> Board:
        """The one of this process, beside the others."""
        return Board(self.counting, self.place)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))


def _text(numbers: Sequence[int]) -> str:
    return ",".join(map(str, numbers))


def listening_at(found: Sequence[tuple[socket.AddressFamily, Any]]) -> list[socket.socket]:
    """Sockets at which connections wait to be accepted, one for each of these addresses. A name may have some of a
    family that this machine does without, as `localhost` often does: those are left out, if others are there. OSError
    if one is taken, or there is none."""
    made: list[socket.socket] = []
    missing: OSError | None = None
    for family, address in dict.fromkeys(found):
        try:
            made.append(socket.create_server(address, family=family, backlog=BACKLOG))
        except OSError as error:
            if error.errno not in _NOT_HERE:
                for one in made:
                    one.close()
                raise
            missing = error
    if missing is not None and not made:
        raise missing
    return made


def grace_of(loaded: Settings) -> float:
    """Seconds that a web process may take to end once it was told to, with all that it has to wait for."""
    return DRAIN + (loaded.stop_delay_seconds or 0.0)


async def several(
    loaded: Settings, environ: Mapping[str, str], ports: Sequence[Sequence[socket.socket]], parent: int | None
) -> int:
    """Runs as many web processes as WEB_WORKERS says until a signal, or until the parent is gone; returns the exit
    code."""
    counting = tuple(boards.shared() for _ in range(loaded.web_workers))
    sockets = [one for port in ports for one in port]
    listening = tuple(tuple(one.fileno() for one in port) for port in ports)
    commands = [["web", "--one-of", Inherited(place, listening, counting).text] for place in range(len(counting))]
    stop = asyncio.Event()
    up.stop_on_signals(stop)
    watch = asyncio.create_task(up.watch_parent(parent, stop.set))
    closing = asyncio.create_task(_close_after(stop, sockets))
    logger().info("web.sharing", workers=len(counting), host=loaded.host, port=loaded.port, traces=loaded.traces_to)
    inherited = (*(one.fileno() for one in sockets), *counting)
    code = await up.run(commands, environ, stop, fds=inherited, grace=grace_of(loaded))
    for task in (watch, closing):
        task.cancel()
    return code


def spans_of(loaded: Settings, speaker: str) -> Trace:
    """What sends the spans of a process. Without TRACES_URL nothing of OpenTelemetry is ever imported; with it, but
    without the extra, SettingsError says what to install."""
    if loaded.traces_url is None:
        return lambda _: nullcontext(Tracer())
    try:
        tracing = importlib.import_module("service.tracing")
    except ModuleNotFoundError:
        raise SettingsError(
            "TRACES_URL is set, but OpenTelemetry is not installed: install requirements-traces.lock instead of "
            "requirements-production.lock (pip: the extra `traces`), or leave TRACES_URL out."
        ) from None
    bare = urlsplit(loaded.traces_url).path in ("", "/")
    url = f"{loaded.traces_url.rstrip('/')}/v1/traces" if bare else loaded.traces_url

    def trace(metrics: Metrics) -> AbstractAsyncContextManager[Tracer]:
        for outcome in ("sent", "dropped"):
            metrics.spans.add(outcome, count=0)
        made: AbstractAsyncContextManager[Tracer] = tracing.tracer(
            url, loaded.traces_sample_ratio, speaker, lambda outcome, count: metrics.spans.add(outcome, count=count)
        )
        return made

    return trace


async def _close_after(stop: asyncio.Event, sockets: Sequence[socket.socket]) -> None:
    """Lets go of the ports with the last process that listens there: whoever connects after that is refused at once,
    and does not wait for nobody."""
    await stop.wait()
    for one in sockets:
        one.close()


class _Server(uvicorn.Server):
    """A server that ends well when it is told to: the library's own would end by the signal that it caught."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begins to listen, and says so."""
        await super().startup(sockets)
        self.listening.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leaves the signals to us."""
        yield

    def end(self) -> None:
        """Drains and ends."""
        self.should_exit = True

    def part_with_callers(self) -> None:
        """Has every connection end with its next answer, so that few are left when the end comes. Known to be so within
        a second, when the library looks."""
        self.config.encoded_headers.append((b"connection", b"close"))


async def web(
    loaded: Settings, application: app.Application, parent: int | None, inherited: Inherited | None = None
) -> None:
    """Serves callbacks and, at their port, the other calls until a signal, or until the parent is gone. Not ready comes
    first, then what is under way may finish."""
    parts = [(application, loaded.port), (app.desk_of(application), loaded.admin_port or 0)]
    servers = [_Server(_config_of(loaded, one, port, app.take_of(one))) for one, port in parts if one is not None]
    stop = asyncio.Event()
    up.stop_on_signals(stop)
    ending = asyncio.create_task(_end_after(stop, loaded, application, servers))
    watch = asyncio.create_task(up.watch_parent(parent, stop.set))
    sockets = inherited.sockets() if inherited else [None, None]
    serving = [asyncio.create_task(servers[0].serve(sockets[0]))]
    # Not before: where the public port cannot be listened on, the application has to end at once.
    if len(servers) > 1 and await _first(servers[0].listening.wait(), serving[0]):
        app.desk_is_open(application)
        serving.append(asyncio.create_task(servers[1].serve(sockets[1])))
        serving[1].add_done_callback(lambda _: app.desk_is_closed(application))
    # None is of use without the other: if one cannot go on, the process ends, and is started again.
    await asyncio.wait(serving, return_when=asyncio.FIRST_COMPLETED)
    for server in servers:
        server.end()
    app.end_waits(application)
    await asyncio.gather(*serving)
    for task in (ending, watch):
        task.cancel()


async def _first(one: Coroutine[Any, Any, object], other: asyncio.Task[None]) -> bool:
    """Waits for either, and tells whether the first was the first."""
    waiting = asyncio.create_task(one)
    await asyncio.wait([waiting, other], return_when=asyncio.FIRST_COMPLETED)
    return waiting.done() or not waiting.cancel()


async def _end_after(
    stop: asyncio.Event, loaded: Settings, application: app.Application, servers: Sequence[_Server]
) -> None:
    """What a signal begins: not ready, then no new connections once the load balancer had its time."""
    await stop.wait()
    app.leave(application)
    if loaded.stop_delay_seconds is not None:
        logger().info("web.leaving", seconds=loaded.stop_delay_seconds)
        for server in servers:
            server.part_with_callers()
        await asyncio.sleep(loaded.stop_delay_seconds)
    app.end_waits(application)
    for server in servers:
        server.end()


def _config_of(loaded: Settings, application: Any, port: int, take: Take | None = None) -> FrontConfig:
    """How a web process listens. Without trusted proxies nobody's word is taken for where a request came from."""
    limit, seconds = loaded.head_limit_bytes, loaded.head_timeout_seconds
    config = FrontConfig(application, loaded.host, port, head_limit=limit, head_seconds=seconds, take=take)
    config.proxy_headers = bool(loaded.trusted_proxies)
    config.forwarded_allow_ips = list(loaded.trusted_proxies)
    return config


@asynccontextmanager
async def shown(loaded: Settings, port: int, application: Any) -> AsyncIterator[None]:
    """Serves an application beside the block."""
    server = _Server(_config_of(loaded, application, port))
    serving = asyncio.create_task(server.serve())
    try:
        yield
    finally:
        server.end()
        await serving


async def serve(config: uvicorn.Config, parent: int | None) -> None:
    """Serves until a signal, or until the parent is gone. What is under way may finish first."""
    server = _Server(config)
    stop = asyncio.Event()
    up.stop_on_signals(stop)
    watches = [asyncio.create_task(up.watch_parent(parent, stop.set)), asyncio.create_task(_end_on(stop, server))]
    await server.serve()
    for watch in watches:
        watch.cancel()


async def _end_on(stop: asyncio.Event, server: _Server) -> None:
    await stop.wait()
    server.end()
