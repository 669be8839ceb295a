"""A way to PostgreSQL that a test can cut, mend or let hang: a port of this machine, with the server's behind it."""

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs, urlsplit


class Relay:
    """Runs in a thread of its own, so that it serves tests with and without an event loop."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        (folder,) = parse_qs(parts.query)["host"]
        self._socket = f"{folder}/.s.PGSQL.{parts.port or 5432}"
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._open = asyncio.Event()
        self._open.set()
        self._server: asyncio.Server | None = None
        self._lines: set[asyncio.Task[None]] = set()
        self.port = 0
        self._thread.start()
        self.mend()
        self.url = f"postgresql://{parts.username}:@127.0.0.1:{self.port}{parts.path}"

    def mend(self) -> None:
        """Lets everything through, and connections in."""
        self._do(self._mend())

    def cut(self) -> None:
        """Ends every connection; new ones are refused."""
        self._do(self._cut())

    def hang(self) -> None:
        """Lets nothing through, and tells nobody: connections stay, and new ones are taken."""
        self._do(self._hang())

    def replace(self) -> None:
        """Lets new connections through. Those from before stay silent, and nobody tells them."""
        self._do(self._replace())

    def end(self) -> None:
        """Cuts, and ends the thread."""
        self.cut()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _do(self, step: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(step, self._loop).result(30)

    async def _mend(self) -> None:
        self._open.set()
        if self._server is None:
            self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)
            self.port = self._server.sockets[0].getsockname()[1]

    async def _replace(self) -> None:
        self._open = asyncio.Event()
        self._open.set()

    async def _hang(self) -> None:
        self._open.clear()

    async def _cut(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for line in self._lines:
            line.cancel()
        await asyncio.gather(*self._lines, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._server is None:  # cut, while this one was on its way in
            writer.transport.abort()
            return
        line = asyncio.create_task(self._line(reader, writer))
        self._lines.add(line)
        line.add_done_callback(self._lines.discard)
        # Also of one that is cut before it has reached the server, or has begun at all.
        line.add_done_callback(lambda _: writer.transport.abort())

    async def _line(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_unix_connection(self._socket)
        ways = [
            asyncio.create_task(self._pump(reader, far_writer, self._open)),
            asyncio.create_task(self._pump(far_reader, writer, self._open)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            far_writer.transport.abort()

    @staticmethod
    async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, is_open: asyncio.Event) -> None:
        while part := await reader.read(65536):
            await is_open.wait()
            writer.write(part)
            await writer.drain()


@contextmanager
def relayed(url: str) -> Iterator[Relay]:
    """A relay for as long as the block lasts."""
    relay = Relay(url)
    try:
        yield relay
    finally:
        relay.end()
