"""The same things at the same time: exactly one effect, whatever the interleaving (design.md 5, promises 4 and 5)."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import httpx

from .conftest import Deployment
from .running import until
from .speaking import Voice, a_number, ago, an_email, started, stopped, told
from .watching import arrived, listed, settled

Result = TypeVar("Result")


def together(works: Sequence[Callable[[], Result]]) -> list[Result]:
    """Do all of this at once."""
    with ThreadPoolExecutor(len(works)) as pool:
        return [one.result() for one in [pool.submit(work) for work in works]]


def test_one_batch_delivered_many_times_at_once(plain: Voice) -> None:
    """design 2.3: a redelivery answers with the first `batch_id`, all entries as duplicates."""
    for _ in range(5):
        entries = [told(an_email(), ago(60)) for _ in range(3)]
        answers = together([partial(plain.callback, "email", entries)] * 8)
        assert len({one["batch_id"] for one in answers}) == 1
        assert sorted((one["accepted"], one["duplicates"]) for one in answers) == [(0, 3)] * 7 + [(3, 0)]


def test_one_fact_in_many_batches_at_once(plain: Voice) -> None:
    """design 2.3: `accepted` are new facts, `duplicates` known ones: across all answers each fact is new once."""
    for turn in range(5):
        facts = [told(an_email(), ago(60)) for _ in range(6)]

        def deliver(place: int, facts: list[dict[str, Any]] = facts, turn: int = turn) -> dict[str, Any]:
            mine = [told(an_email(f"own{turn}"), ago(60)), *facts]
            random.Random(place).shuffle(mine)
            return plain.callback("email", mine)

        answers = together([partial(deliver, place) for place in range(8)])
        assert sum(one["accepted"] for one in answers) == 8 + 6
        assert sum(one["duplicates"] for one in answers) == 8 * 6 - 6


def test_crossing_batches_do_not_lock_each_other_out(plain: Voice) -> None:
    """design 5.5: locks taken in one order: batches over the same addresses in opposite orders are all applied."""
    numbers, begun = [a_number() for _ in range(40)], ago(3600)

    def deliver(place: int) -> dict[str, Any]:
        order = numbers if place % 2 else list(reversed(numbers))
        shape = stopped if place % 3 else started
        return plain.callback("sms", [shape(one, begun + place) for one in order])

    answers = together([partial(deliver, place) for place in range(24)])
    assert all(one["accepted"] == len(numbers) for one in answers)
    assert all(plain.suppressed("sms", one) for one in numbers), "the newest, 23, is a stop"


def test_local_stops_and_starts_at_once(alone: Voice, single: Deployment) -> None:
    """design 3: one `pending` row per slot and one `sending` row: the vendor ends with what the list says."""
    numbers, begun = [a_number() for _ in range(6)], ago(3600)

    def write(number: str, place: int) -> int:
        moment = begun + 10 * place
        if place % 2:
            return alone.reactivate("sms", number, moment).status_code
        return alone.put("sms", number, "do_not_call", moment).status_code

    works = [partial(write, one, place) for place in range(6) for one in numbers]
    assert set(together(works)) <= {200, 409}
    for number in numbers:
        settled(alone, number)
        newest = single.vendor.newest("sms", number)
        told_to_stop = newest is not None and newest.is_stop
        assert told_to_stop is alone.suppressed("sms", number), single.vendor.accepted("sms", number)


def answers(url: str) -> bool:
    """Is a replica ready?"""
    try:
        return httpx.get(f"{url}/readyz", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def test_any_number_of_replicas(alone: Voice, single: Deployment) -> None:
    """design 5.5: any number of replicas of web and worker: each correction is claimed, and sent, once."""
    urls = [single.service.replica("web") for _ in range(2)]
    for _ in range(2):
        single.service.replica("worker")
    voices = [alone, *(Voice(url, alone.token, "default", "single-key") for url in urls)]
    try:
        for url in urls:
            until(partial(answers, url), f"{url}/readyz", 60)
        entries = [told(an_email(), ago(60)) for _ in range(3)]
        found = together([partial(voice.callback, "email", entries) for voice in voices * 4])
        assert len({one["batch_id"] for one in found}) == 1
        assert sum(one["accepted"] for one in found) == 3
        numbers = [a_number() for _ in range(48)]
        moment = ago(60)
        works = [partial(voices[place % 3].stop, "sms", one, "manual", moment) for place, one in enumerate(numbers)]
        for start in range(0, len(works), 12):
            together(works[start : start + 12])
        for one in numbers:
            arrived(single.vendor, "sms", one)
            listed(alone, one, "sent")
        assert [one for one in numbers if len(single.vendor.requests("sms", one)) != 1] == []
    finally:
        for voice in voices[1:]:
            voice.close()
        codes = single.service.end_replicas()
    assert set(codes) <= {0, -signal.SIGTERM}, "ended by the signal, not by a fault"
