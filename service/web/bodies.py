"""Owns how a body is read: within its size, its time, its encoding, and the room that all bodies have together. Refuses
to know what it says.
"""

import asyncio
import zlib
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Final, cast

from starlette.requests import ClientDisconnect
from starlette.types import Receive

from service.errors import BadRequest, StorageUnavailable, TooLarge, TooSlow

MOST_MEMBERS: Final = 16
"""Members of one gzip body: each costs a copy of what follows it, before anything is verified."""


class Budget:
    """Bytes of bodies that one process holds at once. Past the limit a sender is asked to come again."""

    def __init__(self, limit: int) -> None:
        self._left = limit

    def take(self, count: int) -> None:
        """Counts bytes in."""
        if count > self._left:
            raise StorageUnavailable("Too many callbacks are being received at once; deliver it again.", 1)
        self._left -= count

    def give_back(self, count: int) -> None:
        """Counts bytes out."""
        self._left += count


async def read_body(
    receive: Receive, declared: str, limit: int, seconds: float, take: Callable[[int], None] | None = None
) -> bytes:
    """The body as sent, refused while it is read if it grows over `limit` bytes or takes over `seconds`.

    `declared` is the Content-Length, if any. `take` hears of every part before it is kept.
    """
    if declared.isdecimal() and int(declared) > limit:
        raise TooLarge(f"The body is over {limit} bytes.")
    return await _InTime(_whole(receive, limit, take), seconds)


async def _whole(receive: Receive, limit: int, take: Callable[[int], None] | None) -> bytes:
    parts: list[bytes] = []
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        part, more = message.get("body", b""), message.get("more_body", False)
        size += len(part)
        if size > limit:
            raise TooLarge(f"The body is over {limit} bytes.")
        if take is not None:
            take(len(part))
        parts.append(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


class _InTime:
    """Work on a body, which is given so many seconds once it has to wait for some of it. Nearly all bodies are there
    from the start, and a clock that is set and stopped for nothing costs as much as reading one."""

    def __init__(self, work: Coroutine[Any, Any, bytes], seconds: float) -> None:
        self._work = work
        self._seconds = seconds

    def __await__(self) -> Generator[Any, Any, bytes]:
        try:
            first = self._work.send(None)
        except StopIteration as done:
            return cast(bytes, done.value)
        return (yield from self._wait(first))

    def _wait(self, asked: Any) -> Generator[Any, Any, bytes]:
        with _Deadline(self._seconds):
            while True:
                try:
                    try:
                        heard = yield asked
                    except BaseException as error:  # noqa: BLE001 (whatever it is, it is for the work)
                        asked = self._work.throw(error)
                    else:
                        asked = self._work.send(heard)
                except StopIteration as done:
                    return cast(bytes, done.value)


class _Deadline:
    """`asyncio.timeout`, for what is no coroutine of its own."""

    __slots__ = ("_over", "_seconds", "_task", "_timer")

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._over = False

    def __enter__(self) -> None:
        loop = asyncio.get_running_loop()
        self._task = asyncio.current_task(loop)
        self._timer = loop.call_later(self._seconds, self._expire)

    def _expire(self) -> None:
        self._over = True
        if self._task is not None:
            self._task.cancel()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._timer.cancel()
        # Somebody else may want the task to end, too: that goes first.
        if self._over and self._task is not None and not self._task.uncancel() and kind is asyncio.CancelledError:
            raise TooSlow("The body did not arrive in time.") from None


def decompressed(body: bytes, limit: int) -> bytes:
    """The body behind gzip, of which never more than the limit is made."""
    parts = bytearray()
    rest = body
    try:
        for _ in range(MOST_MEMBERS):
            unzip = zlib.decompressobj(wbits=31)
            parts += unzip.decompress(rest, limit + 1 - len(parts))
            if len(parts) > limit or unzip.unconsumed_tail:
                raise TooLarge(f"The decompressed body is over {limit} bytes.")
            if not unzip.eof:
                raise BadRequest("The gzip body is cut off.", "not-gzip")
            rest = unzip.unused_data
            if not rest:
                return bytes(parts)
    except zlib.error:
        raise BadRequest("The body is not gzip, as Content-Encoding says.", "not-gzip") from None
    raise BadRequest(f"The gzip body has more than {MOST_MEMBERS} members; compress it as one.", "not-gzip")
