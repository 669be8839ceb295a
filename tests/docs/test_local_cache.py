"""docs/local-cache.md is true: a cache built by its program equals the list while callbacks pour in."""

import asyncio
import random
import socket
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import uvicorn

from service.app import build
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


def cache_of(url: str, token: str) -> Any:
    """What the program on the page makes, without its own loop."""
    (example,) = blocks.examples(PAGE, "python")
    names: dict[str, Any] = {"__name__": "the program"}
    exec(compile(example.code, str(PAGE), "exec"), names)  # noqa: S102 (the example of our own documentation)
    return names["Cache"](url, token)


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
