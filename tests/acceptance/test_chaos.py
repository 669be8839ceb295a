"""kill -9 under load: what was acknowledged stays, once, and what we owe arrives (design.md 5, promises 1, 4, 5)."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from .conftest import Deployment, single_settings
from .running import Service, end_by_pid, living_in, read_proc, until
from .speaking import Voice, a_number, ago, an_email, started, stopped, told
from .vendor import Vendor
from .watching import arrived

KILLS = 8
SEED = 20261122


@pytest.fixture(scope="module")
def victim() -> Iterator[Deployment]:
    """A deployment of its own, since its children are killed."""
    vendor = Vendor({"single-secret": "single-key"}).start()
    # A correction that a killed worker had claimed is free again when its lease ends: sooner here than by default.
    service = Service({**single_settings(vendor), "PUSH_LEASE_SECONDS": "6", "PUSH_TIMEOUT_SECONDS": "3"})
    try:
        service.start()
        yield Deployment(service, vendor, service.token())
    finally:
        service.remove()
        vendor.stop()


class Load:
    """Signed callbacks and local stops, each repeated until it is acknowledged, and the model of what they mean."""

    def __init__(self, victim: Deployment) -> None:
        self.victim = victim
        self.ended = threading.Event()
        self.emails: set[str] = set()
        self.numbers: dict[str, dict[str, Any]] = {}
        self.local: set[str] = set()
        self.refusals: list[str] = []
        self._threads = [
            threading.Thread(target=self._write, args=(one, place))
            for place, one in enumerate((self._callback, self._callback, self._local_stop))
        ]

    def start(self) -> None:
        """Begin."""
        for one in self._threads:
            one.start()

    def stop(self) -> None:
        """Finish what is under way, and end."""
        self.ended.set()
        for one in self._threads:
            one.join(90)
            assert not one.is_alive(), "a delivery was never acknowledged"

    def _write(self, deliver: Callable[[Voice, random.Random], None], place: int) -> None:
        voice, random_one = self.victim.voice("default", "single-key"), random.Random(SEED + place)
        while not self.ended.is_set():
            deliver(voice, random_one)
            time.sleep(0.02)
        voice.close()

    def _until_acknowledged(self, send: Callable[[], httpx.Response]) -> None:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            try:
                answer = send()
            except httpx.TransportError:
                time.sleep(0.1)
                continue
            if answer.status_code == 200:
                return
            self.refusals.append(f"{answer.status_code} {answer.text[:200]}")
            time.sleep(0.1)
        raise AssertionError(f"never acknowledged; refusals: {self.refusals[-3:]}")

    def _callback(self, voice: Voice, random_one: random.Random) -> None:
        if random_one.random() < 0.5:
            mails = [an_email("chaos") for _ in range(random_one.randrange(1, 6))]
            self._until_acknowledged(lambda: voice.deliver("email", [told(one, ago(60)) for one in mails]))
            self.emails.update(mails)
            return
        number, begun = a_number(), ago(3600)
        shapes = [
            random_one.choice([started, stopped])(number, begun + step) for step in random_one.sample(range(9), 3)
        ]
        for entry in shapes:
            self._until_acknowledged(lambda entry=entry: voice.deliver("sms", [entry]))  # type: ignore[misc]
        self.numbers[number] = max(shapes, key=lambda one: one["timestamp"])

    def _local_stop(self, voice: Voice, random_one: random.Random) -> None:
        address, moment = an_email("local"), ago(60)
        self._until_acknowledged(lambda: voice.put("email", address, "manual", moment))
        self.local.add(address)
        time.sleep(random_one.random() * 0.1)


def kill_one(service: Service, role: str) -> None:
    """SIGKILL one child of a role; `up` is given time to have one first."""
    found = until(lambda: service.children(role), f"a living {role}", 30)
    os.kill(found[0], signal.SIGKILL)


def test_nothing_acknowledged_is_lost_when_children_are_killed(victim: Deployment) -> None:
    """design 5.1: a 200 is durable, through `kill -9`; 5.4: exactly one effect; 5.6: the worker is back in seconds;
    5.7: the list is what its evidence says."""
    random_one, load = random.Random(SEED), Load(victim)
    load.start()
    try:
        for turn in range(KILLS):
            time.sleep(0.8 + random_one.random())
            kill_one(victim.service, ("web", "worker")[turn % 2])
    finally:
        load.stop()
    until(victim.service.ready, "/readyz after the last kill", 60)
    voice = victim.voice("default", "single-key")
    try:
        model_holds(voice, load)
        everything_owed_arrives(victim, load)
    finally:
        voice.close()
    verified = victim.service.run("rebuild", "--verify")
    assert verified.returncode == 0, verified.stdout
    assert not [one for one in load.refusals if not one.startswith("503")], load.refusals[:5]


def model_holds(voice: Voice, load: Load) -> None:
    """Every acknowledged stop is in force, and every verdict is the model's."""
    assert len(load.emails) > 20, "there was a load"
    mails = dict.fromkeys(load.emails | load.local, True)
    numbers = {one: "opt-in" not in newest for one, newest in load.numbers.items()}

    def wrong() -> list[str]:
        wrongly = [one for one in mails if voice.suppressed("email", one) is not mails[one]]
        return wrongly + [one for one in numbers if voice.suppressed("sms", one) is not numbers[one]]

    until(lambda: not wrong(), f"the list is the model; {wrong()[:5]} differ", 60)
    mine = [one for one in mails if one in load.emails]
    assert all(len(voice.status("email", one)["causes"]) == 1 for one in mine), "one fact each, however often it came"


def everything_owed_arrives(victim: Deployment, load: Load) -> None:
    """Every local stop that was acknowledged reaches the vendor, and nothing of Kahuna's own is told back."""
    voice = victim.voice("default", "single-key")
    try:

        def missing() -> set[str]:
            return load.local - {one.address for one in list(victim.vendor.taken)}

        until(lambda: not missing(), f"all local stops at the vendor; {len(missing())} missing", 90)
        until(lambda: not voice.listing("/v1/admin/corrections", state="pending"), "none pending", 60)
        until(lambda: not voice.listing("/v1/admin/corrections", state="sending"), "none sending", 90)
    finally:
        voice.close()
    assert not {one.address for one in victim.vendor.taken} & (load.emails | set(load.numbers))


def test_the_service_outlives_a_crash_of_the_database(victim: Deployment) -> None:
    """design 5.6: after a database restart the worker is back at work in seconds; callbacks are taken again."""
    ours = [one for one in living_in(victim.service.folder) if read_proc(one, "comm").startswith("postgres")]
    crashing = next(one for one in ours if "checkpointer" in read_proc(one, "cmdline"))
    end_by_pid(crashing)
    voice = victim.voice("default", "single-key")
    try:
        told_one, owed = an_email("crash"), an_email("crash")
        entries = [told(told_one, ago(60))]
        until(lambda: voice.deliver("email", entries).status_code == 200, "callbacks are taken again", 60)
        until(lambda: voice.put("email", owed, "manual", ago(60)).status_code == 200, "writes are taken again", 60)
        until(lambda: voice.suppressed("email", told_one), "what was spooled meanwhile is applied", 60)
        arrived(victim.vendor, "email", owed)
        until(victim.service.ready, "/readyz", 60)
    finally:
        voice.close()
