"""The web application at a port, for what a caller sees of its connections: with what takes requests offhand, and
without it."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import uvicorn

from service import app
from service.front import FrontConfig, Take, Tell


class Door:
    """A port. `took` says of each request that was offered whether it was taken."""

    def __init__(self, application: app.Application, take: Take | None) -> None:
        self._take = take
        self.took: list[bool] = []
        config = FrontConfig(application, "127.0.0.1", 0, take=take and self._offer)
        config.load()
        self.server = uvicorn.Server(config)
        self.server.lifespan = config.lifespan_class(config)

    def _offer(self, target: bytes, headers: Mapping[bytes, bytes], tell: Tell) -> bool:
        assert self._take
        self.took.append(self._take(target, headers, tell))
        return self.took[-1]

    @property
    def service(self) -> Any:
        """What the application works with."""
        return self.server.lifespan.state["service"]

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection of its own."""
        return await asyncio.open_connection(*self.server.servers[0].sockets[0].getsockname())

    async def ask(self, asked: bytes) -> bytes:
        """What is answered to this, byte for byte."""
        reader, writer = await self.connect()
        writer.write(asked)
        try:
            return await answer_from(reader, headless=asked.startswith(b"HEAD"))
        finally:
            writer.close()


async def answer_from(reader: asyncio.StreamReader, *, headless: bool = False) -> bytes:
    """The next answer of a connection."""
    async with asyncio.timeout(10):
        head = await reader.readuntil(b"\r\n\r\n")
        lengths = [line for line in head.split(b"\r\n") if line.startswith(b"content-length: ")]
        body = b"" if headless or not lengths else await reader.readexactly(int(lengths[0].partition(b": ")[2]))
    return head + body


@asynccontextmanager
async def served(application: app.Application, take: Take | None) -> AsyncIterator[Door]:
    """The application at a port, for as long as the block lasts."""
    door = Door(application, take)
    await door.server.startup()
    try:
        yield door
    finally:
        await door.server.shutdown()


def get(path: str, headers: Mapping[str, str], *more: str, method: str = "GET", version: str = "1.1") -> bytes:
    """A request, byte for byte."""
    lines = [f"{method} {path} HTTP/{version}", "Host: sync.test", *(f"{name}: {v}" for name, v in headers.items())]
    return "\r\n".join([*lines, *more, "", ""]).encode("latin-1")
