"""Owns a body of lines that is read while it is answered: parts in, groups of whole lines out, never much at once.

Refuses to hold more than a few hundred kilobytes, whatever is sent, and however small gzip has made it.
"""

import asyncio
import codecs
import zlib
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Final

from starlette.requests import ClientDisconnect
from starlette.types import Receive

from service.errors import BadRequest, TooSlow

GROUP: Final = 10_000
"""Lines that are given out at once, at most."""

LONGEST_LINE: Final = 8192
"""Bytes of one line."""

HELD: Final = 256 * 1024
"""Bytes that are held, as received and once decompressed, before no more is taken in."""

MEMBERS: Final = 16
MEMBER: Final = 1024
"""Members of a gzip body that may hold next to nothing, and the bytes that the others hold on an average."""


class Splitter:
    """Whole lines out of the parts of a body: bytes in, lines out."""

    def __init__(self, *, zipped: bool) -> None:
        self._unzip = zlib.decompressobj(wbits=31) if zipped else None
        self._received = bytearray()
        self._text = bytearray()
        self._has_more = False
        self._begun = self._ended = False
        self._members = self._unpacked = 0

    @property
    def is_full(self) -> bool:
        """Whether enough is held."""
        return len(self._received) >= HELD

    def feed(self, part: bytes) -> None:
        """Takes one part in."""
        self._received += part

    def end(self) -> None:
        """There is no more."""
        self._ended = True

    def take(self) -> list[bytes]:
        """The next lines, without their ends; none if more has to be fed first, or if all were given out."""
        while len(self._text) < HELD and (self._received or self._has_more):
            self._unpack()
        if self._ended and not self._received and not self._has_more:
            self._finish()
        if not self._begun and b"\n" in self._text:
            # What spreadsheets put before UTF-8 is no part of the first address, which would be looked for in vain.
            self._text, self._begun = self._text.removeprefix(codecs.BOM_UTF8), True
        cut = self._text.rfind(b"\n") + 1
        if len(self._text) - cut > LONGEST_LINE:
            raise BadRequest(f"A line is over {LONGEST_LINE} bytes; send one address a line.", "line-too-long")
        *lines, rest = bytes(self._text[:cut]).replace(b"\r\n", b"\n").split(b"\n", GROUP)
        self._text[:cut] = rest
        return lines

    def _unpack(self) -> None:
        """Moves some of what was received to the text."""
        if self._unzip is None:
            self._text += self._received
            self._received.clear()
            return
        if self._unzip.eof:
            self._members += 1
            # Each costs a copy of what follows it, so it must hold something.
            if self._members > MEMBERS + self._unpacked // MEMBER:
                raise BadRequest(
                    "The gzip body has very many members with little in them; compress it as one.", "not-gzip"
                )
            self._unzip = zlib.decompressobj(wbits=31)
        try:
            part = self._unzip.decompress(self._received, HELD)
        except zlib.error:
            raise BadRequest("The body is not gzip, as Content-Encoding says.", "not-gzip") from None
        self._text += part
        self._unpacked += len(part)
        # All that it was given may be used up while there is still something to come of it.
        self._has_more = len(part) == HELD and not self._unzip.eof
        self._received = bytearray(self._unzip.unused_data if self._unzip.eof else self._unzip.unconsumed_tail)

    def _finish(self) -> None:
        if self._unzip is not None and not self._unzip.eof:
            raise BadRequest("The gzip body is cut off.", "not-gzip")
        if self._text and not self._text.endswith(b"\n"):
            self._text += b"\n"  # the last line needs no end of its own


class Inlet:
    """The lines of a request, taken in as long as there is room. `fill` runs beside whoever takes them out."""

    def __init__(self, receive: Receive, seconds: float, *, zipped: bool) -> None:
        self._receive = receive
        self._seconds = seconds
        self._splitter = Splitter(zipped=zipped)
        self._arrived = asyncio.Event()
        self._room = asyncio.Event()
        self._ended = False

    async def fill(self) -> None:
        """Takes in what is sent, and then waits for as long as the caller is there. Raises ClientDisconnect."""
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            self._splitter.feed(message.get("body", b""))
            if not message.get("more_body", False) and not self._ended:
                self._splitter.end()
                self._ended = True
            self._arrived.set()
            while self._splitter.is_full:
                self._room.clear()
                await self._room.wait()

    async def group(self) -> list[bytes]:
        """The next lines; none at the end. TooSlow if none came for too long."""
        while True:
            ended = self._ended
            lines = self._splitter.take()
            self._room.set()
            if lines or ended:
                return lines
            self._arrived.clear()
            try:
                async with asyncio.timeout(self._seconds):
                    await self._arrived.wait()
            except TimeoutError:
                raise TooSlow("No line arrived for too long.") from None


@asynccontextmanager
async def beside(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """With the work running beside the block: ended with it, and if it fails, the block fails alike."""
    try:
        async with asyncio.TaskGroup() as group:
            running = group.create_task(work)
            yield
            running.cancel()
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from None
