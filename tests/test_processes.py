"""The processes as an init system sees them: their ports, how they end, and what `doctor` says of them."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from service.kahuna import webhook
from service.settings import Secret
from tests.acceptance.running import free_port, until

KEY = "process-api-key"
BODY = b'[{"email": "ann@example.com", "reason": "unsub", "timestamp": 1700000000}]'
SIGNATURE = webhook.sign(["ann@example.com"], Secret(KEY))
TOKEN = "a-callback-token"


@dataclass
class Running:
    """A process of ours, where it listens, and what it says."""

    process: "subprocess.Popen[bytes]"
    log: Path
    environ: dict[str, str]
    ports: dict[str, int] = field(default_factory=dict)

    def get(self, path: str, port: str = "ADMIN_PORT") -> httpx.Response:
        """What is answered there."""
        return httpx.get(f"http://127.0.0.1:{self.ports[port]}{path}", timeout=10)

    def answers(self, path: str, port: str, status: int) -> bool:
        """Whether that is the status; not yet, while nobody listens."""
        assert self.process.poll() is None, self.log.read_text()
        try:
            return self.get(path, port).status_code == status
        except httpx.TransportError:
            return False

    def callback(self, body: bytes = BODY, path: str = f"/webhooks/default/email/{TOKEN}") -> httpx.Response:
        """A signed callback at the public port."""
        url = f"http://127.0.0.1:{self.ports['PORT']}{path}"
        return httpx.post(url, content=body, headers={"X-Kahuna-Signature": SIGNATURE}, timeout=10)

    def end(self) -> int:
        """Waits for its end."""
        return self.process.wait(30)


@contextmanager
def running(
    command: str, database_url: str, folder: Path, ports: list[str], *, code: str = "", **settings: str
) -> Iterator[Running]:
    """A process for as long as the block lasts, with ports of its own behind these settings: the command, or code."""
    chosen = {name: free_port() for name in ports}
    environ = {
        "PATH": os.environ["PATH"],
        "DATABASE_URL": database_url,
        "KAHUNA_API_KEY": KEY,
        "KAHUNA_SECRET_KEY": "process-secret-key",
        "KAHUNA_BASE_URL": "http://127.0.0.1:9",
        "CALLBACK_TOKEN": TOKEN,
        "SPOOL_DIR": str(folder / "spool"),
        "LOG_FORMAT": "json",
        **{name: str(port) for name, port in chosen.items()},
        **settings,
    }
    log = folder / f"{command}.log"
    with log.open("ab") as file:
        process = subprocess.Popen(
            [sys.executable, *(["-c", code] if code else ["-m", "service", command])], env=environ, stderr=file
        )
    try:
        yield Running(process, log, environ, chosen)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


@pytest.fixture
def web(database_url: str, tmp_path: Path) -> Iterator[Running]:
    """A web process with two ports, that trusts this machine to speak for others."""
    settings = {"STOP_DELAY_SECONDS": "2", "TRUSTED_PROXIES": "127.0.0.1"}
    with running("web", database_url, tmp_path, ["PORT", "ADMIN_PORT"], **settings) as started:
        until(lambda: started.answers("/readyz", "ADMIN_PORT", 200), "ready")
        yield started


def test_the_public_port_carries_callbacks_alone_and_the_other_one_everything_else(web: Running) -> None:
    for path in ("/readyz", "/metrics", "/openapi.json", "/docs", "/v1/suppressions/email/ann@example.com"):
        assert web.get(path, "PORT").status_code == 404, path
    assert web.get("/livez", "PORT").status_code == web.get("/livez").status_code == 200
    assert web.callback().json()["accepted"] == 1
    assert httpx.post(f"http://127.0.0.1:{web.ports['ADMIN_PORT']}/webhooks/default/email").status_code == 404
    assert web.get("/v1/suppressions/email/ann@example.com").status_code == 401
    figures = web.get("/metrics").text
    # One process, one set of figures, whichever port was called.
    assert 'kahuna_sync_callbacks_total{answer="applied",channel="email"} 1.0' in figures
    until(lambda: "kahuna_sync_loop_lag_seconds_count" in web.get("/metrics").text, "a look at the event loop")
    # What doctor says of it, as a person and a machine hear it.
    url = f"http://127.0.0.1:{web.ports['PORT']}"
    words = [sys.executable, "-m", "service", "doctor", "--offline", "--json", "--public-url", url]
    told = subprocess.run(words, env=web.environ, capture_output=True, text=True, check=False)
    found = {check["name"]: check for check in json.loads(told.stdout)["checks"]}
    for name in (
        "webhooks/default",
        "webhooks/default/large",
        "webhooks/public",
        "database",
        "migrations",
        "clock",
        "spool",
    ):
        assert found[name]["level"] == "ok", found[name]
    assert found["tokens"]["level"] == "warn"
    # The database of the tests need not wait for the disk, and doctor sees that.
    assert [name for name, check in found.items() if check["level"] == "fail"] == ["database/fsync"]
    assert told.returncode == 1
    assert TOKEN not in told.stdout + told.stderr


def test_told_to_end_it_is_first_not_ready_then_drains_then_ends(web: Running) -> None:
    half = socket.create_connection(("127.0.0.1", web.ports["PORT"]), timeout=20)
    gone = socket.create_connection(("127.0.0.1", web.ports["PORT"]), timeout=20)
    head = f"POST /webhooks/default/email/{TOKEN} HTTP/1.1\r\nHost: t\r\nContent-Length: {len(BODY)}\r\n"
    half.sendall(f"{head}X-Kahuna-Signature: {SIGNATURE}\r\n\r\n".encode() + BODY[:10])
    gone.sendall(f"{head}X-Kahuna-Signature: x\r\nX-Forwarded-For: 192.0.2.7\r\n\r\n".encode() + BODY[:10])
    until(lambda: web.callback().status_code == 200, "callbacks")
    web.process.send_signal(signal.SIGTERM)
    until(lambda: web.answers("/readyz", "ADMIN_PORT", 503), "not ready")
    assert web.get("/readyz").json()["checks"] == {"process": "was told to end"}
    assert web.callback().status_code == 200
    # Before the end every answer ends its connection, so that none is cut while somebody asks.
    until(lambda: web.callback().headers.get("Connection") == "close", "connections that end")
    gone.close()
    # This one goes on beyond the end of the delay, when nobody new is let in.
    until(lambda: _refused(web.ports["PORT"]), "nobody new")
    half.sendall(BODY[10:])
    assert half.recv(4096).startswith(b"HTTP/1.1 200")
    half.close()
    assert web.end() == 0
    told = [json.loads(line) for line in web.log.read_text().splitlines()]
    assert [line["client"] for line in told if line["event"] == "request.abandoned"] == ["192.0.2.7"]
    assert [line["event"] for line in told][-1] == "web.stopped"


def _refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except OSError:
        return True
    return False


def test_a_worker_answers_at_its_port_and_ends_well(database_url: str, tmp_path: Path) -> None:
    with running("worker", database_url, tmp_path, ["WORKER_PORT"]) as worker:
        until(lambda: worker.answers("/readyz", "WORKER_PORT", 200), "ready")
        until(lambda: 'loop="upkeep"' in worker.get("/metrics", "WORKER_PORT").text, "turns of its loops")
        assert worker.get("/livez", "WORKER_PORT").json() == {"status": "alive"}
        assert worker.get("/v1/changes", "WORKER_PORT").status_code == 404
        worker.process.send_signal(signal.SIGTERM)
        assert worker.end() == 0


def test_a_taken_port_of_administration_is_told(database_url: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with running("web", database_url, tmp_path, ["PORT"], ADMIN_PORT=port) as web:
            assert web.end() == 2
            assert f"127.0.0.1:{port} is taken: choose another with ADMIN_PORT" in web.log.read_text()


BETWEEN = """
import asyncio, os, socket
from service import app, serving
from service.loading import load

loaded = load(os.environ)
taken = socket.create_server((loaded.host, getattr(loaded, os.environ["TAKEN"])))
asyncio.run(serving.web(loaded, app.build(loaded), None))
"""
"""Another process takes a port after it was looked at and before it is listened on."""


@pytest.mark.parametrize("taken", ["port", "admin_port"])
def test_a_port_that_is_taken_at_the_last_moment_ends_the_process(
    database_url: str, tmp_path: Path, taken: str
) -> None:
    with running("web", database_url, tmp_path, ["PORT", "ADMIN_PORT"], TAKEN=taken, code=BETWEEN) as started:
        assert started.end() == 3


@pytest.fixture
def shared(database_url: str, tmp_path: Path) -> Iterator[Running]:
    """Two web processes behind two ports."""
    settings = {"WEB_WORKERS": "2", "STOP_DELAY_SECONDS": "1"}
    with running("web", database_url, tmp_path, ["PORT", "ADMIN_PORT"], **settings) as started:
        until(lambda: started.answers("/readyz", "ADMIN_PORT", 200), "ready")
        until(lambda: figure(started, "process_starts_total") == 2, "both")
        yield started


def figure(running: Running, name: str) -> float:
    """What is shown of a figure; 0 if it is not."""
    lines = running.get("/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"kahuna_sync_{name}"))


def children_of(running: Running) -> list[int]:
    """The processes that it has started and that live."""
    told = Path(f"/proc/{running.process.pid}/task/{running.process.pid}/children").read_text()
    return [int(one) for one in told.split()]


def lives(process: int) -> bool:
    """Whether it does; one that waits only for somebody to hear of its end does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def entries(number: int) -> tuple[bytes, str]:
    """A body of its own, and its signature."""
    address = f"p{number}@example.com"
    body = json.dumps([{"email": address, "reason": "unsub", "timestamp": 1700000000}]).encode()
    return body, webhook.sign([address], Secret(KEY))


def call(running: Running, number: int) -> int:
    """The answer to a callback that comes on a connection of its own."""
    body, signature = entries(number)
    url = f"http://127.0.0.1:{running.ports['PORT']}/webhooks/default/email/{TOKEN}"
    return httpx.post(url, content=body, headers={"X-Kahuna-Signature": signature}, timeout=10).status_code


APPLIED = 'callbacks_total{answer="applied"'


def test_several_processes_share_the_ports_and_their_figures_add_up(shared: Running) -> None:
    assert [call(shared, number) for number in range(20)] == [200] * 20
    assert {figure(shared, APPLIED) for _ in range(10)} == {20}
    assert figure(shared, 'facts_total{channel="email",outcome="new",reason="unsubscribe"') == 20
    # Each has a pool of its own.
    until(lambda: figure(shared, "pool_connections") == 40, "the connections of both")
    first, second = children_of(shared)
    os.kill(first, signal.SIGKILL)
    # The other one goes on, and what the dead one has counted is not forgotten.
    assert call(shared, 20) == 200
    assert figure(shared, APPLIED) == 21
    until(lambda: figure(shared, "process_starts_total") == 3, "another in its place")
    assert second in children_of(shared)
    assert first not in children_of(shared)
    assert [call(shared, number) for number in range(21, 41)] == [200] * 20
    assert {figure(shared, APPLIED) for _ in range(10)} == {41}
    told = [json.loads(line) for line in shared.log.read_text().splitlines()]
    assert {line["process"] for line in told if line["event"] == "batch.applied"} <= {"web-1", "web-2"}
    (restarted,) = [line for line in told if line["event"] == "process.restarted"]
    assert (restarted["command"], restarted["pid"], restarted["code"]) == ("web", first, -signal.SIGKILL)
    assert restarted["child"] in (1, 2)
    assert {line["traces"] for line in told if line["event"] == "web.sharing"} == {"off"}


def test_told_to_end_all_of_them_drain(shared: Running) -> None:
    answers: list[int] = []
    ended = threading.Event()

    def ask() -> None:
        number = 0
        while not ended.is_set():
            number += 1
            try:
                answers.append(call(shared, number))
            except httpx.TransportError:  # nobody is there any more
                return

    asking = threading.Thread(target=ask)
    asking.start()
    until(lambda: len(answers) > 10, "callbacks")
    children = children_of(shared)
    shared.process.send_signal(signal.SIGTERM)
    until(lambda: shared.answers("/readyz", "ADMIN_PORT", 503), "not ready")
    assert shared.end() == 0
    asking.join(20)
    ended.set()
    assert set(answers) == {200}
    assert not any(lives(child) for child in children)
    told = [json.loads(line)["event"] for line in shared.log.read_text().splitlines()]
    assert told.count("web.stopped") == 2


def test_when_the_parent_is_killed_the_others_end_too(shared: Running) -> None:
    children = children_of(shared)
    shared.process.kill()
    shared.end()
    until(lambda: not any(lives(child) for child in children), "their end")
