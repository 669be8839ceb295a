"""Starts and ends the service as an operator would: commands, environment, signals. It never imports the service."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import httpx

ROOT = Path(__file__).resolve().parents[2]
INHERITED = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "TZ", "USER", "LOGNAME")
Found = TypeVar("Found")


def until(look: Callable[[], Found], what: str, seconds: float = 45.0) -> Found:
    """Look again and again until something true is seen; the deadline is generous and only there to end."""
    end = time.monotonic() + seconds
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds:.0f} s: {what}; last seen: {found!r}")
        time.sleep(0.1)


def free_port() -> int:
    """A loopback port that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def read_proc(pid: int, name: str) -> str:
    """One file of /proc as text, empty when the pid has gone."""
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def parent_of(pid: int) -> int:
    """The parent's pid, 0 when the pid has gone or is only waiting to be reaped."""
    fields = read_proc(pid, "stat").rpartition(")")[2].split()
    return int(fields[1]) if len(fields) > 1 and fields[0] != "Z" else 0


def pids() -> list[int]:
    """Every pid of the machine."""
    return [int(one.name) for one in Path("/proc").iterdir() if one.name.isdigit()]


def descendants(pid: int) -> list[int]:
    """Children, grandchildren and so on that are alive."""
    parents = {one: parent_of(one) for one in pids()}
    found, front = [], [pid]
    while front:
        front = [child for child, parent in parents.items() if parent in front]
        found += front
    return found


def living_in(folder: Path) -> list[int]:
    """Every pid that works in this folder or was started with it in its environment or command line."""
    return [one for one in pids() if one != os.getpid() and parent_of(one) and _works_in(one, str(folder))]


def _works_in(pid: int, folder: str) -> bool:
    try:
        inside = str(Path(f"/proc/{pid}/cwd").readlink()).startswith(folder)
    except OSError:
        inside = False
    return inside or folder in read_proc(pid, "environ") or folder in read_proc(pid, "cmdline")


def new_folder() -> Path:
    """A short-named folder that another user can enter: an embedded PostgreSQL does not run as root."""
    folder = Path(tempfile.mkdtemp(prefix="ks-acc-"))
    folder.chmod(0o755)
    return folder


class Service:
    """One `up` in its own folder. `stop` is safe to call at any time, and again."""

    def __init__(self, settings: dict[str, str], folder: Path | None = None) -> None:
        self.folder = folder or new_folder()
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
        self.env = {**inherited, "PYTHONUNBUFFERED": "1", "DATA_DIR": str(self.folder / "state"), **settings}
        self.log = self.folder / "up.log"
        self._running: subprocess.Popen[bytes] | None = None
        self._beside: list[subprocess.Popen[bytes]] = []

    @property
    def pid(self) -> int:
        """The pid of `up`."""
        assert self._running is not None
        return self._running.pid

    def start(self) -> Service:
        """Start `up` and wait until it says that it is ready."""
        try:
            self.launch()
            until(self.ready, f"/readyz of {self.url}\n{self.tail()}", 90)
        except BaseException:
            print(self.tail(), file=sys.stderr)
            self.stop()
            raise
        return self

    def launch(self, *more: str) -> None:
        """Start `up` without waiting."""
        self._running = self._begin("up", "--port", str(self.port), *more)

    def replica(self, role: str, port: int | None = None) -> str:
        """Start one more `web` or `worker` on the same database, and say where a `web` listens."""
        port = port or free_port()
        self._beside.append(self._begin(role, PORT=str(port)))
        return f"http://127.0.0.1:{port}"

    def end_replicas(self) -> list[int]:
        """End what `replica` started, and give the exit codes."""
        for one in self._beside:
            one.terminate()
        codes = [one.wait(30) for one in self._beside]
        self._beside.clear()
        return codes

    def _begin(self, *words: str, **more: str) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "service", *words],
                cwd=ROOT,
                env={**self.env, **more},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def ready(self) -> bool:
        """Does /readyz answer 200? An `up` that has ended is an error at once."""
        assert self._running is not None
        assert self._running.poll() is None, f"up ended with {self._running.returncode}: {self.tail()}"
        try:
            return httpx.get(f"{self.url}/readyz", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def tail(self, size: int = 4000) -> str:
        """The last words of the log."""
        return self.log.read_bytes()[-size:].decode(errors="replace") if self.log.exists() else ""

    def run(self, *words: str, seconds: float = 60, **more: str) -> subprocess.CompletedProcess[str]:
        """Run another command of the service in the same environment."""
        return subprocess.run(
            [sys.executable, "-m", "service", *words],
            cwd=ROOT,
            env={**self.env, **more},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )

    def token(self, scopes: str = "read,write,admin") -> str:
        """Create an API token; the command prints it alone."""
        made = self.run("token", "create", "--name", f"acceptance-{time.time_ns()}", "--scopes", scopes)
        assert made.returncode == 0, made.stderr
        return made.stdout.strip()

    def children(self, word: str) -> list[int]:
        """The living descendants of `up` that were started as `... -m service WORD`."""
        return [one for one in descendants(self.pid) if _is_role(read_proc(one, "cmdline").split(), word)]

    def terminate(self, seconds: float = 30) -> int:
        """SIGTERM and the exit code."""
        assert self._running is not None
        self._running.send_signal(signal.SIGTERM)
        return self._running.wait(seconds)

    def stop(self) -> None:
        """End what was started by its pid, then by pid whatever it left behind in its folder."""
        for one in [*self._beside, *([self._running] if self._running else [])]:
            if one.poll() is None:
                end_politely(one)
        for left in living_in(self.folder):
            end_by_pid(left)

    def remove(self) -> None:
        """Stop, and delete the folder."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


def _is_role(words: list[str], role: str) -> bool:
    return role in words and ("service" in words or any(one.endswith("kahuna-sync") for one in words))


def end_politely(one: subprocess.Popen[bytes]) -> None:
    """SIGTERM, some patience, SIGKILL."""
    one.terminate()
    try:
        one.wait(20)
    except subprocess.TimeoutExpired:
        one.kill()
        one.wait(10)


def end_by_pid(pid: int) -> None:
    """SIGKILL one pid, which may have gone already."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
