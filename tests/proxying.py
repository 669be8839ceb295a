"""A proxy on loopback, as companies have them on the way out: it makes tunnels (`CONNECT`), passes plain requests on,
and keeps every byte that its clients send."""

import asyncio
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

PASSWORD = "pa/s:s@1"
WRITTEN = "pa%2Fs%3As%401"
WANTED = f"Basic {b64encode(f'sync:{PASSWORD}'.encode()).decode()}"


@dataclass
class Proxy:
    """`heads` is what was asked of it, `passed` what clients sent behind that."""

    port: int = 0
    heads: list[str] = field(default_factory=list)
    passed: bytearray = field(default_factory=bytearray)
    lines: set["asyncio.Task[None]"] = field(default_factory=set)

    @property
    def url(self) -> str:
        """Its address, with user and password."""
        return f"http://sync:{WRITTEN}@127.0.0.1:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One line, until both sides have hung up."""
        self.lines.add(asyncio.ensure_future(self._served(reader, writer)))

    async def _served(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError, TimeoutError):
            async with asyncio.timeout(10):
                await self._serve(reader, writer)
        writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        self.heads.append(head)
        method, target, _ = head.split(" ", 2)
        if f"proxy-authorization: {WANTED.lower()}" not in head.lower():
            writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
            await writer.drain()
            return
        place = urlsplit(target if "://" in target else f"//{target}")
        ahead, onward = await asyncio.open_connection(place.hostname, place.port)
        if method == "CONNECT":
            writer.write(b"HTTP/1.1 200 Go ahead\r\n\r\n")
        else:
            onward.write(head.replace(target, place.path + (f"?{place.query}" if place.query else ""), 1).encode())
        await asyncio.gather(self._pass(reader, onward, keep=True), self._pass(ahead, writer, keep=False))

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, keep: bool) -> None:
        while piece := await reader.read(65_536):
            if keep:
                self.passed += piece
            writer.write(piece)
            await writer.drain()
        writer.close()


@asynccontextmanager
async def proxying() -> AsyncIterator[Proxy]:
    """A proxy on a port of its own, which lets the user `sync` through."""
    proxy = Proxy()
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    async with server:
        yield proxy
    await asyncio.gather(*proxy.lines)
