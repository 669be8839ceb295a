"""A shell before a stand-in: the commands run in this process, and only waiting moves the clock."""

import asyncio
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import click
import httpx
from click.testing import CliRunner, Result

from service.kahuna import NO_RETRY, KahunaClient, Retry
from service.kahuna.simulator import SimulatorConfig, build_simulator
from service.settings import Secret
from service.shell import Surroundings, kahuna

NOW = 1_500_000_000.5  # 2017-07-14 02:40 UTC
SECRETS = ("the-secret-key", "the-api-key")
ENVIRON = {"KAHUNA_SECRET_KEY": SECRETS[0], "KAHUNA_API_KEY": SECRETS[1], "KAHUNA_BASE_URL": "http://kahuna.test"}
MEET_ANN = ["server", "--dev-id", "dev-ann", "--event", "start", "--email", "ann@example.com", "--username", "ann"]
SINCE = ["--since", "2017-07-14"]


class Clock:
    """A clock that only waiting moves."""

    def __init__(self) -> None:
        self.seconds = NOW

    def __call__(self) -> float:
        return self.seconds

    async def sleep(self, seconds: float) -> None:
        self.seconds += seconds


@dataclass
class Shell(httpx.AsyncBaseTransport):
    """A shell before a stand-in. `before` is told of every request that goes out, and may spoil it."""

    environ: dict[str, str] = field(default_factory=lambda: dict(ENVIRON))
    clock: Clock = field(default_factory=Clock)
    retry: Retry = NO_RETRY
    before: Callable[[httpx.Request], None] = lambda _: None
    requests: list[httpx.Request] = field(default_factory=list)
    may_ask: bool = False

    def __post_init__(self) -> None:
        config = SimulatorConfig(Secret(SECRETS[0]), Secret(SECRETS[1]), callback_pause_seconds=0.0)
        self._stand_in = httpx.ASGITransport(build_simulator(config, self.clock))

    def __call__(self, *words: str, given: str | bytes | io.BufferedReader | None = None) -> Result:
        """Runs `kahuna` with these words."""
        connect = partial(
            KahunaClient,
            transport=self,
            retry=self.retry,
            clock=self.clock,
            monotonic=self.clock,
            sleep=self.clock.sleep,
            jitter=lambda: 0.0,
        )
        around = Surroundings(self.environ, connect, self.clock, lambda: self.may_ask)
        result = CliRunner().invoke(kahuna, words, obj=around, input=given)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
        return result

    def done(self, *words: str, given: str | None = None) -> list[Any]:
        """Runs it, which must work; the lines that it printed."""
        result = self(*words, given=given)
        assert (result.exit_code, result.stderr) == (0, "")
        return lines(result)

    def control(self, path: str, body: Any, method: str = "POST") -> None:
        """One call of the stand-in's control endpoints."""

        async def call() -> None:
            async with httpx.AsyncClient(transport=self._stand_in, base_url="http://kahuna.test") as web:
                (await web.request(method, f"/simulator/{path}", json=body)).raise_for_status()

        asyncio.run(call())

    def fail(self, **fault: Any) -> None:
        """From now on it fails like this."""
        self.control("faults", fault, "PUT")

    # What a client needs of a transport.

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        self.before(request)
        return await self._stand_in.handle_async_request(request)


def lines(result: Result) -> list[Any]:
    """What was printed: every line is JSON."""
    return [json.loads(line) for line in result.stdout.splitlines()]


def ndjson(*values: Any) -> str:
    return "".join(json.dumps(value) + "\n" for value in values)


def commands(group: click.Group = kahuna, *before: str) -> Iterator[tuple[str, ...]]:
    """The words of every command."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, *before, name)
        else:
            yield (*before, name)


SYNC = ("email-sync", "-")
PUSH = ("push", "--email", "ann@example.com", "--alert", "Hello")
ONE_ENTRY = ndjson({"reason": "unsub", "email": "ann@example.com"})


class Endless(io.RawIOBase):
    """Standard input that is made as it is read. `lines` is how many were handed out."""

    def __init__(self, count: int, line: Callable[[int], bytes]) -> None:
        self._count = count
        self._line = line
        self.lines = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        pieces = bytearray()
        while self.lines < self._count and len(pieces) + 200 < len(buffer):
            pieces += self._line(self.lines)
            self.lines += 1
        buffer[: len(pieces)] = pieces
        return len(pieces)


def walk(shell: Shell, file: Path, *more: str) -> tuple[int, list[Any]]:
    """One run with a cursor file: its code, and the records it printed."""
    result = shell("logs", "email", "--cursor-file", str(file), "--page-size", "10", *more)
    return result.exit_code, lines(result)
