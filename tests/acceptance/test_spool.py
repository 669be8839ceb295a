"""PostgreSQL being away does not lose callbacks (design.md 5, promise 3; 2.1 `SPOOL_DIR`; 2.3 `"state":"spooled"`)."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.relay import Relay, relayed

from .conftest import single_settings
from .running import Service, until
from .speaking import Voice, a_number, ago, an_email, seconds_of, started, stopped, told
from .vendor import Vendor


@pytest.fixture
def relay(database_url: str) -> Iterator[Relay]:
    """The way to a database of its own, which can be cut."""
    with relayed(database_url) as made:
        yield made


@pytest.fixture
def cut_off(relay: Relay) -> Iterator[tuple[Service, Voice]]:
    """A deployment on that database, and one who speaks to it."""
    vendor = Vendor({"single-secret": "single-key"}).start()
    service = Service({**single_settings(vendor), "DATABASE_URL": relay.url})
    try:
        service.start()
        voice = Voice(service.url, service.token(), "default", "single-key")
        yield service, voice
        voice.close()
    finally:
        service.remove()
        vendor.stop()


def spooled(voice: Voice, channel: str, entries: list[Any]) -> str:
    """Deliver a callback until it is acknowledged, as spooled; its id."""

    def acknowledged() -> httpx.Response | None:
        try:
            answer = voice.deliver(channel, entries)
        except httpx.TransportError:  # the web process was killed
            return None
        return answer if answer.status_code == 200 else None

    answer = until(acknowledged, "an acknowledgement")
    assert answer is not None
    found: dict[str, Any] = answer.json()
    assert found == {"batch_id": found["batch_id"], "state": "spooled", "received": len(entries)}
    return str(found["batch_id"])


def figure(voice: Voice, name: str) -> float:
    """One figure of /metrics, without labels."""
    (line,) = [one for one in voice.http.get("/metrics").text.splitlines() if one.startswith(f"{name} ")]
    return float(line.split()[1])


def kill_web(service: Service) -> None:
    """SIGKILL the web process, and wait for the next one."""
    (old,) = until(lambda: service.children("web"), "a living web")
    os.kill(old, signal.SIGKILL)

    def again() -> bool:
        try:
            return service.children("web") != [old] and httpx.get(f"{service.url}/livez").status_code == 200
        except httpx.TransportError:
            return False

    until(again, "another web")


def test_callbacks_outlive_an_outage_and_kill_9(cut_off: tuple[Service, Voice], relay: Relay) -> None:
    service, voice = cut_off
    voice.callback("email", [told(an_email(), ago(60))])
    untimed, number, begun = an_email("untimed"), a_number(), ago(600)
    relay.cut()

    since = time.time()
    without_time = [{"reason": "unsub", "email": untimed}]
    first = spooled(voice, "email", without_time)
    before = time.time()
    spooled(voice, "sms", [stopped(number, begun + 20)])
    spooled(voice, "sms", [started(number, begun + 30)])
    spooled(voice, "sms", [stopped(number, begun + 10)])
    assert spooled(voice, "email", without_time) == first, "a redelivery"

    ready = voice.http.get("/readyz")
    assert (ready.status_code, ready.json()["status"]) == (200, "degraded"), ready.text
    assert figure(voice, "kahuna_sync_spool_files") == 4
    assert voice.call("GET", voice.where("email", untimed)).status_code == 503

    mails = [an_email("outage") for _ in range(80)]
    ids: dict[str, str] = {}
    load = threading.Thread(
        target=lambda: ids.update({one: spooled(voice, "email", [told(one, ago(60))]) for one in mails})
    )
    load.start()
    for _ in range(2):
        kill_web(service)
    load.join(60)
    assert len(ids) == len(mails)

    relay.mend()
    until(lambda: figure(voice, "kahuna_sync_spool_files") == 0, "a drained spool")
    assert voice.http.get("/readyz").json()["status"] == "ready"
    assert [path.name for path in (service.folder / "state" / "spool").glob("*.*") if path.suffix != ".lock"] == []

    for address, batch_id in [(untimed, first), *ids.items()]:
        (cause,) = voice.status("email", address)["causes"]
        assert (cause["active"], cause["batch_id"]) == (True, batch_id)
    (cause,) = voice.status("email", untimed)["causes"]
    assert int(since) <= seconds_of(cause["occurred_at"]) <= before < seconds_of(cause["recorded_at"])
    assert not voice.suppressed("sms", number), "the newest of its three was the START"
    again = voice.callback("email", without_time)
    assert (again["batch_id"], again["accepted"], again["duplicates"]) == (first, 0, 1)
    assert voice.callback("email", [told(an_email(), ago(60))])["accepted"] == 1
    hangs(voice, relay)


def hangs(voice: Voice, relay: Relay) -> None:
    """A database that takes connections and does not answer is away too."""
    relay.hang()
    address = an_email("hung")
    batch_id = spooled(voice, "email", [told(address, ago(60))])
    assert voice.http.get("/readyz").status_code == 200
    relay.mend()
    until(lambda: voice.call("GET", voice.where("email", address)).status_code == 200, "answers")
    until(lambda: voice.suppressed("email", address), "the stop")
    (cause,) = voice.status("email", address)["causes"]
    assert cause["batch_id"] == batch_id
