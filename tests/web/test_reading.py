"""Bodies are read in time or not at all, whether they come at once or in parts."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from service.errors import TooLarge, TooSlow
from service.web.bodies import read_body


class Sender:
    """Sends parts, each after a pause in seconds."""

    def __init__(self, *parts: tuple[float, bytes]) -> None:
        self._parts: Sequence[tuple[float, bytes]] = parts
        self._sent = 0

    async def __call__(self) -> dict[str, Any]:
        pause, part = self._parts[self._sent]
        self._sent += 1
        for _ in range(3):
            await asyncio.sleep(pause / 3)
        return {"type": "http.request", "body": part, "more_body": self._sent < len(self._parts)}


async def test_what_is_there_is_read_without_a_pause() -> None:
    assert await read_body(Sender((0, b"ab")), "2", 10, 0.05) == b"ab"


async def test_parts_are_put_together() -> None:
    heard: list[int] = []
    assert await read_body(Sender((0, b"a"), (0.01, b"bc"), (0, b"")), "", 10, 5, heard.append) == b"abc"
    assert heard == [1, 2, 0]


async def test_all_parts_together_have_the_time() -> None:
    with pytest.raises(TooSlow):
        await read_body(Sender((0, b"a"), (0.04, b"b"), (0.04, b"c"), (0.04, b"d")), "", 10, 0.06)


async def test_one_that_never_comes_is_not_waited_for() -> None:
    with pytest.raises(TooSlow):
        await read_body(asyncio.get_running_loop().create_future, "", 10, 0.01)


async def test_too_much_is_refused_while_it_comes() -> None:
    with pytest.raises(TooLarge):
        await read_body(Sender((0, b"abc"), (0.01, b"def"), (60, b"never")), "", 5, 5)


async def test_whoever_is_told_to_end_ends_and_says_so() -> None:
    reading = asyncio.create_task(read_body(Sender((60, b"a")), "", 10, 50))
    await asyncio.sleep(0.01)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading


async def test_a_body_that_was_too_slow_does_not_end_what_comes_after() -> None:
    async def careful() -> str:
        with pytest.raises(TooSlow):
            await read_body(Sender((60, b"a")), "", 10, 0.01)
        await asyncio.sleep(0.01)
        return "well"

    assert await asyncio.create_task(careful()) == "well"
