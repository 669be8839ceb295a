"""`kahuna-sync backfill`: what it prints, how it ends, and that it may be interrupted and begun again."""

import asyncio
import os
import signal
import socket
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import httpx
import pytest
import uvicorn

from service.kahuna.simulator import build_simulator
from service.settings import Settings
from service.store.database import Database
from tests.commands import ended, figures
from tests.flows.speaking import KEYS, World

SINCE = f"{datetime.now(UTC) - timedelta(days=1):%Y-%m-%d}"


@pytest.fixture
async def kahuna() -> AsyncIterator[httpx.AsyncClient]:
    """A stand-in on a port, whose log has 2,200 records, 40 of them stops that no callback told of."""
    listening = socket.create_server(("127.0.0.1", 0))
    # Half an hour behind: a backfill ends some minutes ago, where the pull begins.
    app = build_simulator(KEYS, lambda: time.time() - 1800)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", ws="none"))
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    async with httpx.AsyncClient(base_url=url) as client:
        await client.post("/simulator/seed", json={"users": 100, "records": 2200, "stops": 40, "span_seconds": 600})
        yield client
    server.should_exit = True
    await serving


@pytest.fixture
def world(database: Database, settings: Settings) -> World:
    return World(database, settings)


async def begun(world: World, kahuna: httpx.AsyncClient, *words: str, **more: str) -> Process:
    environ = {
        "PATH": os.environ["PATH"],
        "DATABASE_URL": world.settings.database_url or "",
        "KAHUNA_BASE_URL": str(kahuna.base_url),
        "KAHUNA_SECRET_KEY": KEYS.secret_key.reveal(),
        "KAHUNA_API_KEY": KEYS.api_key.reveal(),
    }
    command = (sys.executable, "-m", "service", "backfill", *words)
    return await asyncio.create_subprocess_exec(*command, env=environ | more, stdout=PIPE, stderr=PIPE)


async def stops(world: World) -> int:
    return len(await world.query("select 1 from facts where origin = 'kahuna_logs'"))


async def test_it_reads_what_the_logs_say_and_tells_what_came_of_it(world: World, kahuna: httpx.AsyncClient) -> None:
    code, out, err = await ended(await begun(world, kahuna, "--since", SINCE))
    assert (code, err.strip()) == (0, "")
    told = figures(out)
    assert (told["records read"], told["new facts"], await stops(world)) == (2200, 40, 40)
    code, out, _ = await ended(await begun(world, kahuna, "--since", SINCE))
    assert (code, figures(out)["records read"]) == (0, 0)


async def test_interrupted_it_goes_on_where_it_ended(world: World, kahuna: httpx.AsyncClient) -> None:
    await kahuna.put("/simulator/faults", json={"api": "email_logs", "latency_seconds": 0.3})
    process = await begun(world, kahuna, "--since", SINCE)
    begun_to_read = "select 1 from log_walks where walk = 'backfill' and (counts ->> 'records')::int > 0"
    while not await world.query(begun_to_read):  # noqa: ASYNC110 (another process writes it)
        await asyncio.sleep(0.02)
    process.send_signal(signal.SIGINT)
    code, out, err = await ended(process)
    assert (code, out) == (1, "")
    assert "The same command goes on" in err
    [row] = await world.query("select counts from log_walks where walk = 'backfill' and api = 'email'")
    code, out, _ = await ended(await begun(world, kahuna, "--since", SINCE))
    assert (code, figures(out)["records read"], await stops(world)) == (0, 2200 - row.counts["records"], 40)


async def test_a_log_that_kahuna_does_not_give_is_named(world: World, kahuna: httpx.AsyncClient) -> None:
    await kahuna.put("/simulator/faults", json={"api": "push_logs", "status": 409})
    code, _, err = await ended(await begun(world, kahuna, "--since", SINCE))
    assert code == 1
    assert "The log push was not read to its end: push_logs: these keys have no permission" in err


async def test_without_the_keys_it_says_what_to_set(world: World, kahuna: httpx.AsyncClient) -> None:
    code, _, err = await ended(await begun(world, kahuna, KAHUNA_SECRET_KEY=""))
    assert (code, "KAHUNA_SECRET_KEY" in err) == (2, True)
