"""Requests that must be apart are, whoever waits, gives up or is held up; and nobody waits in vain."""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from service import kahuna
from service.kahuna import KahunaClient, Retry
from service.settings import Secret
from tests.kahuna.calls import EVERY
from tests.kahuna.listening import Clock, listening, raw

CREDENTIALS = kahuna.Credentials("http://kahuna.test", "p", Secret("a"), Secret("b"))


@dataclass
class Timeline:
    """Time that passes when everybody sleeps, up to whoever wakes first."""

    now: float = 0.0
    sleepers: list[tuple[float, asyncio.Event]] = field(default_factory=list)

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        sleeper = (self.now + seconds, asyncio.Event())
        self.sleepers.append(sleeper)
        try:
            await sleeper[1].wait()
        finally:
            self.sleepers.remove(sleeper)

    async def until_all_wait(self) -> None:
        for _ in range(100):
            await asyncio.sleep(0)

    async def run(self, *calls: Coroutine[Any, Any, Any]) -> list[Any]:
        """What these come to, all at once."""
        tasks = [asyncio.create_task(call) for call in calls]
        while True:
            await self.until_all_wait()
            if all(task.done() for task in tasks):
                return await asyncio.gather(*tasks, return_exceptions=True)
            self.wake()

    def wake(self) -> None:
        self.now = min(at for at, _ in self.sleepers)
        for at, event in self.sleepers:
            if at == self.now:
                event.set()


@dataclass
class Jobs(httpx.AsyncBaseTransport):
    """A Kahuna whose jobs run for ever. It notes when it was asked for one, and answers nothing else until `gate`."""

    time: Timeline
    at: list[float] = field(default_factory=list)
    gate: asyncio.Event = field(default_factory=asyncio.Event)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if "/populate/" in request.url.path:
            self.at.append(self.time.now)
        else:
            await self.gate.wait()
        return httpx.Response(200, json={"success": True, "status": "running"})


def watching(jobs: Jobs, concurrency: int = 10) -> KahunaClient:
    time = jobs.time
    return KahunaClient(
        CREDENTIALS, transport=jobs, clock=time, monotonic=time, sleep=time.sleep, concurrency=concurrency
    )


async def test_calls_for_one_job_come_apart_and_all_of_them() -> None:
    jobs = Jobs(Timeline())
    async with watching(jobs) as client:
        await jobs.time.run(*(client.job_status("7") for _ in range(5)))
    assert jobs.at == [0.0, 30.0, 60.0, 90.0, 120.0]


async def test_who_gives_up_keeps_no_turn() -> None:
    jobs = Jobs(Timeline())
    async with watching(jobs) as client:
        await client.job_status("7")
        waiting = [asyncio.create_task(client.job_status("7")) for _ in range(20)]
        await jobs.time.until_all_wait()
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        await jobs.time.run(client.job_status("7"))
    assert jobs.at == [0.0, 30.0]


async def test_a_request_that_is_held_up_does_not_come_closer_to_the_next() -> None:
    jobs = Jobs(Timeline())
    async with watching(jobs, concurrency=1) as client:
        other = asyncio.create_task(client.user_info("email", "a"))
        await jobs.time.until_all_wait()
        held_up = [asyncio.create_task(client.job_status("7")) for _ in range(2)]
        await jobs.time.until_all_wait()
        jobs.time.now = 29.0
        jobs.gate.set()
        await jobs.time.run(client.job_status("7"))
        await jobs.time.run(asyncio.wait_for(asyncio.gather(other, *held_up), None))
    assert jobs.at == [29.0, 59.0, 89.0]


async def test_a_wait_for_a_turn_holds_nobody_up() -> None:
    jobs = Jobs(Timeline())
    jobs.gate.set()
    async with watching(jobs, concurrency=1) as client:
        await client.job_status("7")
        waiting = asyncio.create_task(client.job_status("7"))
        await jobs.time.until_all_wait()
        assert (await client.user_info("email", "a")).found
        assert jobs.time.now == 0.0
        waiting.cancel()


async def test_many_who_wait_for_a_job_all_end_in_time() -> None:
    jobs = Jobs(Timeline())
    async with watching(jobs) as client:
        ended = await jobs.time.run(*(client.wait_for_job("7", deadline=60) for _ in range(5)))
    assert [type(error) for error in ended] == [kahuna.JobUnfinished] * 5
    assert (jobs.time.now, jobs.at) == (60.0, [0.0, 30.0, 60.0])


async def test_a_wait_between_attempts_keeps_no_slot() -> None:
    time = Timeline()
    answers = [httpx.Response(503), httpx.Response(200, json={"success": True})]
    transport = httpx.MockTransport(lambda _: answers.pop(0))
    async with KahunaClient(
        CREDENTIALS, transport=transport, clock=time, monotonic=time, sleep=time.sleep, concurrency=1
    ) as client:
        first = asyncio.create_task(client.user_info("email", "a"))
        await time.until_all_wait()
        assert len(time.sleepers) == 1
        assert (await asyncio.wait_for(client.user_info("email", "b"), 5)).found
        first.cancel()


# Waiting as Kahuna asks.


@pytest.mark.parametrize("api", EVERY)
@pytest.mark.parametrize("status", [429, 503])
async def test_a_wait_that_is_too_long_is_the_callers(api: str, status: int) -> None:
    clock = Clock()
    async with listening(lambda _: raw(b"", status, retry_after="3600")) as vendor, vendor.client(time=clock) as client:
        with pytest.raises(kahuna.KahunaError) as caught:
            await EVERY[api](client)
    assert (caught.value.retry_after, clock.slept, len(vendor.seen)) == (3600.0, [], 1)


@pytest.mark.parametrize(
    ("asked", "jitter", "wait"),
    [(10.0, 0.0, 10.0), (10.0, 0.5, 12.5), (60.0, 0.5, 60.0), (60.1, 0.5, None), (0.0, 0.5, 0.75), (None, 0.5, 0.75)],
)
def test_jitter_takes_nothing_of_what_was_asked_for(asked: float | None, jitter: float, wait: float | None) -> None:
    assert Retry().wait(1, asked, jitter) == wait


def test_after_the_last_attempt_there_is_no_wait() -> None:
    assert Retry(attempts=2).wait(2, None, 0.0) is None
