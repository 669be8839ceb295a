"""A crowd over time: who waits for whom, by a clock that stands still while anybody has something to do."""

import asyncio
import random
import selectors
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest

from service.flows.together import LATE, Together

QUICK = LATE / 20
"""Seconds that a piece of work takes if nothing is in its way."""

STUCK = 1.5 * LATE


class Clock(selectors.DefaultSelector):
    """Waits for nobody: what time it would take has passed. `idle` is called whenever it does."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.idle: Callable[[], None] = lambda: None

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout != 0:
            self.idle()
        self.now += max(timeout or 0.0, 0.0)
        return super().select(0)


class Clockwork(asyncio.SelectorEventLoop):
    """An event loop whose hours take no time."""

    def __init__(self) -> None:
        self.clock = Clock()
        super().__init__(self.clock)

    def time(self) -> float:
        return self.clock.now


def in_time(main: Callable[[Clock], Coroutine[Any, Any, None]]) -> None:
    loop = Clockwork()
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(main(loop.clock))


class Work:
    """Takes its time for each piece; keeps how many were under way as each began, itself among them."""

    def __init__(self, takes: Callable[[Sequence[int]], float]) -> None:
        self.takes = takes
        self.under_way = 0
        self.beside: list[int] = []
        self.sizes: list[int] = []

    async def __call__(self, numbers: Sequence[int]) -> list[int]:
        self.under_way += 1
        self.beside.append(self.under_way)
        self.sizes.append(len(numbers))
        try:
            await asyncio.sleep(self.takes(numbers))
        finally:
            self.under_way -= 1
        return [number * 2 for number in numbers]


async def again_and_again(together: Together[int, int], callers: int, times: int) -> None:
    """So many ask, and as soon as they are told, again."""

    async def one(number: int) -> None:
        for _ in range(times):
            assert await together.ask(number) == number * 2

    await asyncio.gather(*map(one, range(callers)))


def test_after_one_that_was_late_a_crowd_goes_one_piece_at_a_time_again() -> None:
    async def main(clock: Clock) -> None:
        chance = random.Random(1)
        times = iter([QUICK, STUCK])
        work = Work(lambda _: next(times, 0.0) or chance.uniform(0.5, 1.5) * QUICK)
        await again_and_again(Together(work, at_once=2, most=64, waiting=64), 32, 50)
        assert max(work.beside) == 2
        assert set(work.beside[-20:]) == {1}

    in_time(main)


def test_where_every_piece_is_late_two_stay_under_way() -> None:
    async def main(clock: Clock) -> None:
        work = Work(lambda _: STUCK)
        await again_and_again(Together(work, at_once=2, most=64, waiting=64), 32, 20)
        assert clock.now < (len(work.sizes) / 2 + 2) * STUCK

    in_time(main)


def test_beside_one_that_is_stuck_a_lone_one_waits_for_nobody() -> None:
    async def main(clock: Clock) -> None:
        work = Work(lambda numbers: 100 * LATE if 0 in numbers else QUICK)
        together = Together(work, at_once=2, most=64, waiting=64)
        stuck = asyncio.create_task(together.ask(0))
        await asyncio.sleep(2 * LATE)
        for number in range(1, 5):
            began = clock.now
            await together.ask(number)
            assert clock.now - began == pytest.approx(QUICK)
        assert await stuck == 0

    in_time(main)


@pytest.mark.parametrize("seed", range(12))
def test_whoever_asks_is_told_once_and_nobody_waits_beside_nothing(seed: int) -> None:
    chance = random.Random(seed)
    at_once, most, least, parts = (chance.choice(some) for some in ([1, 2, 3], [1, 7, 500], [1, 10], [1, 2, 3]))

    async def main(clock: Clock) -> None:
        work = Work(lambda _: chance.choice([0.0, QUICK, QUICK, STUCK, 5 * LATE]))
        together = Together(work, at_once=at_once, most=most, waiting=500, least=least, parts=parts)
        waiting: set[asyncio.Task[int]] = set()
        ended: list[asyncio.Task[int]] = []
        idle: list[bool] = []

        async def pass_some_time() -> None:
            await asyncio.sleep(chance.choice([QUICK, LATE]))

        def look() -> None:
            idle.append(bool(waiting) and not work.under_way)

        async def have_one_go_away() -> None:
            if waiting:
                chance.choice(sorted(waiting, key=asyncio.Task.get_name)).cancel()

        async def give_up() -> None:
            together.abandon()

        clock.idle = look
        for number in range(300):
            task = asyncio.create_task(together.ask(number))
            waiting.add(task)
            task.add_done_callback(waiting.discard)
            task.add_done_callback(ended.append)
            if chance.random() < 0.3:
                await chance.choice([pass_some_time, have_one_go_away, give_up])()
        await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 300 * 5 * LATE)
        assert len(ended) == 300
        assert not any(idle)
        assert all(task.cancelled() or task.exception() is None for task in ended)
        assert max(work.beside) <= at_once
        assert max(work.sizes) <= most

    in_time(main)
