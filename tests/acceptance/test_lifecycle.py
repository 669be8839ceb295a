"""Start, stop, start again, power loss, and settings that cannot work (design.md 2.1, 2.2, 5)."""

from __future__ import annotations

import os
import re
import signal
import socket
from collections.abc import Iterator

import httpx
import pytest

from .conftest import Deployment, single_settings
from .running import Service, end_by_pid, free_port, living_in, read_proc, until
from .speaking import Voice, a_number, ago, an_email, told
from .vendor import Vendor
from .watching import arrived, listed, seen


@pytest.fixture
def vendor() -> Iterator[Vendor]:
    """A vendor for the services that a test starts and ends."""
    one = Vendor({"single-secret": "single-key"}).start()
    yield one
    one.stop()


@pytest.fixture
def service(vendor: Vendor) -> Iterator[Service]:
    """A service that has not been started. A killed worker's lease ends within the patience of a test."""
    one = Service({**single_settings(vendor), "PUSH_LEASE_SECONDS": "6", "PUSH_TIMEOUT_SECONDS": "3"})
    yield one
    one.remove()


def kill_all(service: Service) -> None:
    """SIGKILL to everything of this service, its database too: as near to a power loss as a test can come."""
    os.kill(service.pid, signal.SIGSTOP)
    found = living_in(service.folder)
    for one in found:
        end_by_pid(one)
    service.stop()
    # A killed postmaster that nobody has reaped yet would be taken for a living one.
    until(lambda: not any(read_proc(one, "stat") for one in found), "the killed ones are gone", 30)


def test_everything_ends_on_sigterm_and_is_found_again(service: Service, vendor: Vendor) -> None:
    """design 2.2: `up`: everything on one machine; 5.1: a 200 is durable, through `kill -9` and power loss."""
    service.start()
    token = service.token()
    voice = Voice(service.url, token, "default", "single-key")
    first, second, third = an_email(), an_email(), an_email()
    voice.callback("email", [told(first, ago(90))])
    assert service.terminate() == 0, service.tail()
    until(lambda: not living_in(service.folder), "nothing is left behind", 15)

    service.start()
    assert voice.suppressed("email", first), "the second `up` finds its data, and the token, again"
    voice.callback("email", [told(second, ago(60))])
    voice.stop("email", third, "manual", ago(60))
    kill_all(service)

    service.start()
    assert all(voice.suppressed("email", one) for one in (first, second, third))
    arrived(vendor, "email", third)
    voice.close()
    assert service.terminate() == 0, service.tail()
    until(lambda: not living_in(service.folder), "nothing is left behind", 15)


def test_no_word_of_the_log_is_a_key_or_an_address(many: Deployment, plain: Voice) -> None:
    """design 4: counts and ids, never an address in clear, never a key."""
    address, odd, number = an_email("secretive"), an_email("rejected"), a_number()
    plain.callback("email", [told(address, ago(60)), told(odd, ago(60), "vanished")])
    plain.status("email", address)
    plain.stop("email", address, "manual", ago(30))
    plain.put("email", address, "nonsense")
    plain.stop("sms", number, "manual", ago(30))
    arrived(many.vendor, "sms", number)
    batch = plain.callback("email", [told(an_email(), ago(60))])["batch_id"]
    until(lambda: batch in many.service.log.read_text(), "one log line per outcome")
    log = many.service.log.read_text()
    for word in (plain.key, "plain-secret", many.token, address, odd, address.replace("@", "%40"), number):
        assert word not in log, next(line for line in log.splitlines() if word in line)


WRONG: dict[str, tuple[dict[str, str | None], str]] = {
    "no API key": ({"KAHUNA_API_KEY": None}, "KAHUNA_API_KEY"),
    "an empty API key": ({"KAHUNA_API_KEY": ""}, "KAHUNA_API_KEY"),
    "no secret key": ({"KAHUNA_SECRET_KEY": None}, "KAHUNA_SECRET_KEY"),
    "no environment for the vendor's own host": ({"KAHUNA_BASE_URL": None, "KAHUNA_ENV": None}, "KAHUNA_ENV"),
    "an unknown environment": ({"KAHUNA_ENV": "production"}, "KAHUNA_ENV"),
    "a number that is none": ({"CIRCUIT_PROBE_SECONDS": "soon"}, "CIRCUIT_PROBE_SECONDS"),
    "a number below its range": ({"CIRCUIT_PROBE_SECONDS": "-1"}, "CIRCUIT_PROBE_SECONDS"),
    "a number that is not a number": ({"CIRCUIT_PROBE_SECONDS": "nan"}, "CIRCUIT_PROBE_SECONDS"),
    "a word that is no choice": ({"OPT_IN_REVIEW": "maybe"}, "OPT_IN_REVIEW"),
    "a file that is not there": ({"CONFIG_FILE": "/nowhere/at/all.toml"}, "CONFIG_FILE"),
    "a URL that is none": ({"KAHUNA_BASE_URL": "kahuna"}, "KAHUNA_BASE_URL"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_setting_ends_the_start_with_one_sentence(service: Service, case: str) -> None:
    """design 2.1: the start fails and names it."""
    changes, name = WRONG[case]
    for key, value in changes.items():
        service.env.pop(key, None)
        if value is not None:
            service.env[key] = value
    done = service.run("up", "--port", str(service.port), seconds=60)
    said = done.stdout + done.stderr
    assert done.returncode != 0, said
    assert "Traceback" not in said, said
    assert name in said or name.lower() in said, said
    assert "single-key" not in said, said
    assert len([line for line in re.split(r"\n", said) if line.strip()]) <= 3, said
    assert not living_in(service.folder)


def test_an_unknown_command_says_how(service: Service) -> None:
    """design 2.2: the commands; a wrong one ends with 2 and no traceback."""
    for words in (["nonsense"], ["up", "--nonsense"], ["token", "create"]):
        done = service.run(*words)
        assert done.returncode != 0
        assert "Traceback" not in done.stdout + done.stderr


def test_the_commands_are_listed(service: Service) -> None:
    """design 2.2: the commands."""
    listed = service.run("--help")
    assert listed.returncode == 0
    for word in ("up", "web", "worker", "migrate", "token", "simulator", "send", "reconcile"):
        assert word in listed.stdout, word


def test_a_taken_port_is_named(service: Service) -> None:
    """design 2.2: `up [--port 8700]`; what a person can mend is said, without a traceback."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", service.port))
        taken.listen()
        done = service.run("up", "--port", str(service.port), seconds=60)
    said = done.stdout + done.stderr
    assert done.returncode != 0
    assert str(service.port) in said
    assert "Traceback" not in said, said


def test_a_worker_that_waits_for_the_vendor_can_be_stopped(service: Service, vendor: Vendor) -> None:
    """design 4: `worker.py`: stop, drain; the cut short correction is sent again and ends as sent."""
    # The claim of a correction whose call was cut short lapses with its lease.
    service.env |= {"PUSH_LEASE_SECONDS": "4", "PUSH_TIMEOUT_SECONDS": "2"}
    service.start()
    voice = Voice(service.url, service.token(), "default", "single-key")
    address = an_email()
    with vendor.slow(20):
        voice.stop("email", address, "manual", ago(60))
        seen(vendor, "email", address, 1)
        assert service.terminate(30) == 0, service.tail()
    until(lambda: not living_in(service.folder), "nothing is left behind", 15)
    service.start()
    listed(voice, address, "sent")
    voice.close()


def test_a_killed_database_is_started_again(service: Service) -> None:
    """design 2.2: `up` runs everything, the embedded PostgreSQL too."""
    service.start()
    voice = Voice(service.url, service.token(), "default", "single-key")
    address = an_email()
    voice.callback("email", [told(address, ago(60))])
    for one in living_in(service.folder):
        if "postgres" in read_proc(one, "comm"):
            end_by_pid(one)
    until(lambda: "postgres.restarted" in service.tail(), "the log says so")
    (restarted,) = [line for line in service.log.read_text().splitlines() if "postgres.restarted" in line]
    assert "process=up" in restarted
    (begun,) = [line for line in service.log.read_text().splitlines() if "web.started" in line]
    assert all(word in begun for word in ("process=web", "host=127.0.0.1", f"port={service.port}"))
    assert f"{service.url}/webhooks/default/email" in service.log.read_text(), "what to do next"
    until(lambda: voice.call("GET", voice.where("email", address)).status_code == 200, "answers")
    assert voice.suppressed("email", address)
    voice.close()
    assert service.terminate(30) == 0, service.tail()
    until(lambda: not living_in(service.folder), "nothing is left behind", 15)


def test_a_callback_that_cannot_be_kept_is_not_acknowledged(service: Service) -> None:
    """design 2.3: 503 + `Retry-After`: cannot be made durable now; nothing else for a well-formed, signed batch."""
    service.env["SPOOL_LIMIT_BYTES"] = "1"
    service.start()
    voice = Voice(service.url, service.token(), "default", "single-key")
    # `up` would start a killed database again.
    (service.folder / "state" / "postgres" / "postgresql.conf").write_text("nonsense")
    for one in living_in(service.folder):
        if "postgres" in read_proc(one, "comm"):
            end_by_pid(one)
    answer = voice.deliver("email", [told(an_email(), ago(60))])
    assert answer.status_code == 503, answer.text
    assert int(answer.headers["retry-after"]) > 0
    assert answer.headers["content-type"].startswith("application/problem+json")
    assert voice.call("GET", voice.where("email", an_email())).status_code == 503
    assert voice.http.get("/livez").status_code == 200
    assert voice.http.get("/readyz").status_code == 503
    for raw, status in ((b"{", 400), (b"[{}]", 401)):
        assert voice.post(voice.path("email"), raw, "wrong").status_code == status, "needs no database"
    voice.close()
    service.terminate(30)


def test_the_demonstration_goes_through_the_whole_loop() -> None:
    """design 2.2: `--demo` sends signed traffic through the whole loop and prints what to open and what to `curl`."""
    service = Service({})
    try:
        service.launch("--demo", "--simulator-port", str(free_port()))
        until(lambda: "curl" in service.tail(9000) and "/readyz" in service.tail(9000), "the demonstration's end", 90)
        token = re.findall(r"TOKEN=(\S+)", service.tail(9000))[-1]
        asked = next(one for one in re.findall(r"http://\S+", service.tail(9000)) if "/v1/suppressions/email/" in one)
        answer = httpx.get(asked.strip("'"), headers={"Authorization": f"Bearer {token}"}, timeout=10)
        assert answer.json()["suppressed"], answer.text
        assert service.terminate() == 0, service.tail()
        until(lambda: not living_in(service.folder), "nothing is left behind", 15)
        assert "Traceback" not in service.tail(20_000)
    finally:
        service.remove()
