"""Whoever needs the database is told as soon as it is known to be away, and nobody is while it works."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from service.errors import StorageUnavailable
from service.flows.weather import Weather

PATIENCE = 0.04


class Sky:
    """A database that is there or not, asked as the weather does."""

    def __init__(self) -> None:
        self.there = True
        self.asked = 0
        self.asked_thrice = asyncio.Event()
        self.losses = 0
        self.weather = Weather(self.answers, PATIENCE, self.lose, look=0.01)

    async def answers(self, seconds: float) -> bool:
        assert seconds == PATIENCE
        self.asked += 1
        if self.asked == 3:
            self.asked_thrice.set()
        await asyncio.sleep(0)
        return self.there

    def lose(self) -> None:
        self.losses += 1

    async def fail(self) -> str:
        raise StorageUnavailable("gone")

    async def hang(self) -> str:
        await asyncio.Event().wait()
        return "never"

    async def work(self) -> str:
        return "done"


@asynccontextmanager
async def watched(sky: Sky) -> AsyncIterator[Weather]:
    watch = asyncio.create_task(sky.weather.watch())
    try:
        yield sky.weather
    finally:
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)


async def test_work_that_succeeds_asks_nothing() -> None:
    sky = Sky()
    assert await sky.weather.trusting(sky.work) == "done"
    assert sky.asked == 0


async def test_work_that_fails_while_the_database_is_there_is_done_again() -> None:
    sky = Sky()
    attempts = [sky.work, sky.fail]

    async def work() -> str:
        return await attempts.pop()()

    assert await sky.weather.trusting(work) == "done"
    assert not sky.weather.away


async def test_work_that_fails_twice_has_failed_and_the_database_is_still_there() -> None:
    sky = Sky()
    with pytest.raises(StorageUnavailable, match="gone"):
        await sky.weather.trusting(sky.fail)
    assert (sky.weather.away, sky.losses) == (False, 0)


async def test_once_it_is_away_nothing_is_tried_until_it_is_back() -> None:
    sky = Sky()
    sky.there = False
    async with watched(sky) as weather:
        for work in (sky.fail, sky.work):
            with pytest.raises(StorageUnavailable):
                await weather.trusting(work)
        assert (weather.away, sky.losses) == (True, 1)
        sky.there = True
        await weather.back()
        assert await weather.trusting(sky.work) == "done"


async def test_those_who_doubt_together_ask_once() -> None:
    sky = Sky()
    sky.there = False
    assert await asyncio.gather(*(sky.weather.doubt() for _ in range(20))) == [True] * 20
    assert (sky.asked, sky.losses) == (1, 1)


async def test_those_who_wait_in_vain_are_told_once_the_silence_was_looked_into() -> None:
    sky = Sky()
    sky.there = False
    async with watched(sky) as weather:
        answers = await asyncio.gather(*(weather.trusting(sky.hang) for _ in range(5)), return_exceptions=True)
    assert [type(answer) for answer in answers] == [StorageUnavailable] * 5
    assert sky.losses == 1


async def test_a_slow_answer_of_a_database_that_is_there_is_waited_for() -> None:
    sky = Sky()
    slow = asyncio.Event()

    async def work() -> str:
        await slow.wait()
        return "done"

    async with watched(sky) as weather:
        asking = asyncio.create_task(weather.trusting(work))
        await sky.asked_thrice.wait()
        slow.set()
        assert await asking == "done"
        assert not weather.away


async def test_a_caller_who_went_away_is_forgotten() -> None:
    sky = Sky()
    sky.there = False
    async with watched(sky) as weather:
        gone = asyncio.create_task(weather.trusting(sky.hang))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        await asyncio.sleep(PATIENCE * 2)
        assert (gone.cancelled(), sky.asked) == (True, 0)
