"""Requests that come at the same time share one piece of work, and none pays for another's company."""

import asyncio
from collections.abc import Sequence

import pytest

from service.errors import StorageUnavailable
from service.flows.together import LATE, Together
from tests.flows.speaking import until


class Work:
    """Doubles numbers when it is let; keeps who shared each piece."""

    def __init__(self) -> None:
        self.shared: list[list[int]] = []
        self.gate = asyncio.Event()

    async def __call__(self, numbers: Sequence[int]) -> list[int]:
        self.shared.append(list(numbers))
        await self.gate.wait()
        if 13 in numbers:
            raise ValueError
        return [number * 2 for number in numbers]


async def asked(together: Together[int, int], *numbers: int) -> list[asyncio.Task[int]]:
    tasks = [asyncio.create_task(together.ask(number)) for number in numbers]
    for _ in range(3):
        await asyncio.sleep(0)
    return tasks


async def test_a_lone_one_waits_for_nobody() -> None:
    work = Work()
    work.gate.set()
    assert await Together(work, at_once=1, most=8, waiting=8).ask(1) == 2


async def test_those_who_come_meanwhile_share_the_next_piece() -> None:
    work = Work()
    together = Together(work, at_once=1, most=3, waiting=8)
    first = await asked(together, 1)
    rest = await asked(together, 2, 3, 4, 5)
    work.gate.set()
    assert await asyncio.gather(*first, *rest) == [2, 4, 6, 8, 10]
    assert work.shared == [[1], [2, 3, 4], [5]]


async def test_another_piece_is_under_way_only_if_one_takes_long_and_no_more_than_are_allowed() -> None:
    work = Work()
    together = Together(work, at_once=2, most=1, waiting=8)
    tasks = await asked(together, 1, 2, 3)
    assert work.shared == [[1]]
    await asyncio.sleep(2.5 * LATE)
    assert work.shared == [[1], [2]]
    work.gate.set()
    assert await asyncio.gather(*tasks) == [2, 4, 6]


async def test_a_crowd_goes_in_two_halves_by_turns() -> None:
    work = Work()
    together = Together(work, at_once=1, most=8, waiting=32, least=2)
    tasks = await asked(together, *range(6))
    work.gate.set()
    assert await asyncio.gather(*tasks) == [0, 2, 4, 6, 8, 10]
    assert work.shared == [[0, 1, 2], [3, 4, 5]]


async def test_in_three_parts_one_is_at_hand_when_another_is_done() -> None:
    work = Work()
    together = Together(work, at_once=1, most=8, waiting=32, least=2, parts=3)
    tasks = await asked(together, *range(6))
    work.gate.set()
    await asyncio.gather(*tasks)
    assert work.shared == [[0, 1], [2, 3], [4, 5]]


async def test_who_asks_again_is_counted_once() -> None:
    work = Work()
    work.gate.set()
    together = Together(work, at_once=1, most=8, waiting=32, least=2)
    await asyncio.gather(*await asked(together, *range(4)))
    await asyncio.gather(*await asked(together, *range(4)))
    assert work.shared == [[0, 1], [2, 3]] * 2


async def test_who_was_told_long_ago_is_not_expected_for_ever() -> None:
    work = Work()
    work.gate.set()
    together = Together(work, at_once=1, most=32, waiting=32, least=1)
    await asyncio.gather(*await asked(together, *range(12)))
    for number in range(3):
        await asyncio.gather(*await asked(together, number))
    work.shared.clear()
    await asyncio.gather(*await asked(together, *range(4)))
    assert work.shared == [[0, 1], [2, 3]]


async def test_a_handful_is_not_parted() -> None:
    work = Work()
    together = Together(work, at_once=1, most=8, waiting=32, least=4)
    tasks = await asked(together, *range(4))
    work.gate.set()
    await asyncio.gather(*tasks)
    assert work.shared == [[0, 1, 2, 3]]


async def test_the_next_piece_begins_before_anybody_hears_of_the_last() -> None:
    work = Work()
    together = Together(work, at_once=1, most=1, waiting=8)
    first, second = await asked(together, 1, 2)
    begun: list[int] = []
    first.add_done_callback(lambda _: begun.extend(number for numbers in work.shared for number in numbers))
    work.gate.set()
    await asyncio.gather(first, second)
    assert begun == [1, 2]


async def test_a_failure_is_told_to_all_who_shared_it_and_to_no_other() -> None:
    work = Work()
    together = Together(work, at_once=1, most=2, waiting=8)
    tasks = await asked(together, 12, 13, 14)
    work.gate.set()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(answer) for answer in answers] == [ValueError, ValueError, int]


async def test_one_who_went_away_is_left_out() -> None:
    work = Work()
    together = Together(work, at_once=1, most=8, waiting=8)
    first = await asked(together, 1)
    gone, *stayed = await asked(together, 2, 3)
    gone.cancel()
    work.gate.set()
    assert await asyncio.gather(*first, *stayed) == [2, 6]
    assert work.shared == [[1], [3]]
    assert gone.cancelled()


async def test_one_who_goes_away_during_the_work_costs_the_others_nothing() -> None:
    work = Work()
    together = Together(work, at_once=1, most=8, waiting=8)
    gone, stayed = await asked(together, 1, 2)
    gone.cancel()
    await asyncio.sleep(0)
    work.gate.set()
    assert await stayed == 4


async def test_too_many_are_told_to_come_again() -> None:
    work = Work()
    together = Together(work, at_once=1, most=1, waiting=2)
    tasks = await asked(together, 1)
    tasks += await asked(together, 2, 3)
    with pytest.raises(StorageUnavailable):
        await together.ask(4)
    work.gate.set()
    assert await asyncio.gather(*tasks) == [2, 4, 6]


class Heard:
    """Somebody who waits without a task; keeps what it was told."""

    def __init__(self) -> None:
        self.told: list[object] = []

    def done(self) -> bool:
        return False

    def set_result(self, answer: int) -> None:
        self.told.append(answer)

    def set_exception(self, error: BaseException) -> None:
        self.told.append(type(error))

    def cancel(self) -> None:
        self.told.append("cancelled")


async def test_who_waits_without_a_task_shares_the_work_and_is_told_once() -> None:
    work, first, last = Work(), Heard(), Heard()
    together = Together(work, at_once=1, most=8, waiting=8, least=8)
    work.gate.set()
    together.enlist(1, first)
    task = asyncio.create_task(together.ask(2))
    together.enlist(3, last)
    assert first.told == []
    assert await task == 4
    assert (first.told, last.told) == ([2], [6])
    assert work.shared == [[1, 3, 2]]


async def test_who_waits_without_a_task_hears_of_a_failure_and_of_an_end() -> None:
    work, failed, ended = Work(), Heard(), Heard()
    together = Together(work, at_once=1, most=1, waiting=8)
    together.enlist(13, failed)
    work.gate.set()
    await until(lambda: bool(failed.told))
    work.gate.clear()
    together.enlist(1, ended)
    await until(lambda: len(work.shared) == 2)
    together.abandon()
    await until(lambda: bool(ended.told))
    assert (failed.told, ended.told) == ([ValueError], ["cancelled"])


class Broken(Heard):
    """One that cannot be told anything."""

    def set_result(self, answer: int) -> None:
        raise LookupError

    def set_exception(self, error: BaseException) -> None:
        raise LookupError

    cancel = set_exception  # type: ignore[assignment]


@pytest.mark.parametrize("question", [1, 13], ids=["an answer", "a failure"])
async def test_behind_one_who_breaks_when_it_is_told_others_hear_all_the_same(question: int) -> None:
    reported: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(type(context["exception"])))
    work, last = Work(), Heard()
    together = Together(work, at_once=1, most=8, waiting=8, least=8)
    work.gate.set()
    for waiter in (Broken(), Broken(), last):
        together.enlist(question, waiter)
    await until(lambda: bool(last.told))
    assert last.told == [2 if question == 1 else ValueError]
    assert reported == [LookupError, LookupError]


async def test_whether_one_more_may_wait_is_known_before() -> None:
    work = Work()
    together = Together(work, at_once=1, most=1, waiting=2)
    await asked(together, 1)
    seen = [together.full]
    for number in (2, 3):
        together.enlist(number, Heard())
        seen.append(together.full)
    assert seen == [False, False, True]
    work.gate.set()


@pytest.mark.parametrize("turns", range(8))
async def test_whenever_work_is_abandoned_nobody_waits_for_ever(turns: int) -> None:
    work = Work()
    together = Together(work, at_once=1, most=8, waiting=8)
    work.gate.set()
    first = asyncio.create_task(together.ask(1))
    for _ in range(turns):
        await asyncio.sleep(0)
    together.abandon()
    async with asyncio.timeout(1):
        await asyncio.wait([first])
        assert first.cancelled() or first.result() == 2
        assert await together.ask(2) == 4
