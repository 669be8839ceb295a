"""A server on loopback that knows HTTP and nothing else: it keeps what it is sent, byte for byte, and says what it is
told to say."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from service import kahuna
from service.settings import Secret

SECRET_KEY = "the-secret-key"
API_KEY = "the-api-key"


@dataclass
class Seen:
    """One request as it came."""

    line: str
    headers: dict[str, str]
    body: bytes

    @property
    def target(self) -> str:
        return self.line.split(" ")[1]

    def json(self) -> Any:
        return json.loads(self.body)


Answering = Callable[[Seen], bytes | None]


def said(document: Any, status: int = 200, **headers: str) -> bytes:
    """An answer of JSON."""
    return raw(json.dumps(document).encode(), status, content_type="application/json", **headers)


def raw(body: bytes, status: int = 200, **headers: str) -> bytes:
    """An answer of anything."""
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    head = "\r\n".join([f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}", *lines, "", ""])
    return head.encode() + body


class Half(bytes):
    """An answer after which the connection is cut."""

    __slots__ = ()


@dataclass
class Vendor:
    """A Kahuna whose answers a test decides. None cuts the connection."""

    answering: Answering
    keep: bool = True
    seen: list[Seen] = field(default_factory=list)
    url: str = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                request = await _read(reader)
                if self.keep:
                    self.seen.append(request)
                answer = self.answering(request)
                if answer is None:
                    break
                writer.write(answer)
                await writer.drain()
                if isinstance(answer, Half):
                    break
        writer.close()

    def client(self, **settings: Any) -> kahuna.KahunaClient:
        """A client of this vendor whose time is `Clock`'s, unless the test brings its own."""
        env = settings.pop("env", "p")
        credentials = kahuna.Credentials(self.url, env, Secret(SECRET_KEY), Secret(API_KEY))
        clock = settings.pop("time", None) or Clock()
        times: dict[str, Any] = {"clock": clock, "monotonic": clock, "sleep": clock.sleep, "jitter": lambda: 0.0}
        return kahuna.KahunaClient(credentials, **(times | settings))


@dataclass
class Clock:
    """Time that passes when somebody sleeps."""

    now: float = 1_500_000_000.0
    slept: list[float] = field(default_factory=list)

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)


async def _read(reader: asyncio.StreamReader) -> Seen:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    line, *rest = head[:-4].split("\r\n")
    headers = {name.lower(): value for name, _, value in (one.partition(": ") for one in rest)}
    return Seen(line, headers, await reader.readexactly(int(headers.get("content-length", "0"))))


@asynccontextmanager
async def listening(answering: Answering, *, keep: bool = True) -> AsyncIterator[Vendor]:
    """A vendor on a port of its own."""
    vendor = Vendor(answering, keep)
    server = await asyncio.start_server(vendor.serve, "127.0.0.1", 0, limit=2**24)
    vendor.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        yield vendor
