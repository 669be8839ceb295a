"""docs/local-cache.md is true: a cache built by its program equals the list while callbacks pour in."""

import asyncio
import os
import random
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import uvicorn

from service.app import build
from service.domain.addresses import Channel, normalise
from service.settings import Settings
from service.store import access, changes
from service.store.database import Database
from tests.conftest import API_KEY
from tests.docs import blocks
from tests.web.harness import signature

PAGE = Path(__file__).parents[2] / "docs" / "local-cache.md"
NUMBERS = [f"155501000{n:02}" for n in range(40)]


@pytest.fixture
def url(settings: Settings) -> Iterator[str]:
    """Where the service listens."""
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(build(settings), log_config=None, access_log=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    server.should_exit = True
    thread.join()


def program() -> dict[str, Any]:
    """What the program on the page defines, without its own loop."""
    names: dict[str, Any] = {"__name__": "the program"}
    exec(compile(source(), str(PAGE), "exec"), names)  # noqa: S102 (the example of our own documentation)
    return names


def source() -> str:
    """The program as it stands on the page."""
    (example,) = blocks.examples(PAGE, "python")
    return example.code


def cache_of(url: str, token: str) -> Any:
    """The cache of the program."""
    return program()["Cache"](url, token)


@contextmanager
def running(url: str, token: str) -> Iterator[subprocess.Popen[str]]:
    """The program as somebody starts it who copied it from the page."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    environment = {**os.environ, "SYNC": url, "TOKEN": token}
    with subprocess.Popen([sys.executable, "-c", source()], text=True, env=environment, **pipes) as process:  # type: ignore[call-overload]
        yield process
        process.kill()


async def pour(url: str, chance: random.Random, count: int) -> None:
    """Callbacks that stop and start the same few numbers, and bounce."""
    async with httpx.AsyncClient(base_url=url) as client:
        for n in range(count):
            entries: list[dict[str, Any]] = [
                {"number": chance.choice(NUMBERS), "timestamp": 1_700_000_000 + n, "opt-in": chance.random() < 0.5}
                for _ in range(chance.randrange(1, 4))
            ]
            body = msgspec.json.encode(entries)
            headers = {"X-Kahuna-Signature": signature(body, "sms", API_KEY)}
            answer = await client.post("/webhooks/default/sms", content=body, headers=headers)
            assert answer.status_code == 200, answer.text


async def test_the_cache_is_the_list_while_callbacks_pour_in(url: str, database: Database) -> None:
    async with database.begin() as connection:
        now = datetime.now(UTC)
        token = await access.create_token(connection, "cache", ["read"], "default", now)
    cache = cache_of(url, token)
    await pour(url, random.Random(1), 20)
    pouring = [asyncio.create_task(pour(url, random.Random(seed), 40)) for seed in (2, 3)]
    await asyncio.to_thread(cache.bootstrap)
    while not all(one.done() for one in pouring):
        await asyncio.to_thread(cache.follow, 1)
    await asyncio.gather(*pouring)
    before = None
    while before != cache.cursor:
        before = cache.cursor
        await asyncio.to_thread(cache.follow, 0)
    async with httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {token}"}) as client:
        for number in NUMBERS:
            status = (await client.get(f"/v1/suppressions/sms/{number}")).json()
            assert cache.may_message("sms", number) is not status["suppressed"]
    assert {cache.may_message("sms", number) for number in NUMBERS} == {True, False}
    await begins_again(cache, database, now)


async def begins_again(cache: Any, database: Database, now: datetime) -> None:
    """After a restore, the same loop comes to the same cache."""
    known = dict(cache.until)
    async with database.begin() as connection:
        await changes.begin_epoch(connection, "tester", now)
    cache.until.clear()
    await asyncio.to_thread(cache.follow, 0)
    assert cache.until == known


def test_a_token_that_is_refused_is_said_and_tried_again(url: str) -> None:
    with running(url, "ks_nobody") as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("Not up to date: 401 ")
        assert process.poll() is None


async def test_it_says_that_it_begins_and_takes_addresses_as_people_write_them(url: str, database: Database) -> None:
    async with database.begin() as connection:
        token = await access.create_token(connection, "cache", ["read", "write"], "default", datetime.now(UTC))
    async with httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {token}"}) as client:
        stopped = await client.put("/v1/suppressions/email/ann@example.com", json={"reason": "manual"})
        assert stopped.status_code == 200, stopped.text

    def asked() -> tuple[str, list[str]]:
        with running(url, token) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stderr is not None
            begun = process.stderr.readline()
            process.stdin.write(" Ann@Example.com \nbob@example.com\n")
            process.stdin.close()
            return begun, process.stdout.read().split()

    begun, said = await asyncio.to_thread(asked)
    assert begun == "The whole list is here: 1 addresses.\n"
    assert said == ["False", "True"]


@pytest.mark.parametrize(
    ("channel", "address"),
    [
        ("email", " Ann@EXAMPLE.com\n"),
        ("email", "J\u00d6RG@EXAMPLE.com"),
        ("email", "jo\u0308rg@example.com"),
        ("sms", "+1 (555) 010-0001"),
        ("sms", "001.555.010/0001"),
    ],
)
def test_its_normal_form_is_that_of_the_list(channel: Channel, address: str) -> None:
    assert program()["normal"](channel, address) == normalise(channel, address)


@pytest.mark.parametrize(
    ("channel", "address"), [("email", "ann@m\u00fcller.example"), ("email", "nobody"), ("sms", "call me"), ("sms", "")]
)
def test_what_it_cannot_read_is_not_messaged(channel: Channel, address: str) -> None:
    cache = cache_of("http://127.0.0.1:9", "none")
    cache.cursor = "some"
    assert cache.may_message("sms", "15550100001") is True
    assert cache.may_message(channel, address) is False


def test_nobody_is_messaged_before_the_list_is_there() -> None:
    assert cache_of("http://127.0.0.1:9", "none").may_message("email", "ann@example.com") is False
