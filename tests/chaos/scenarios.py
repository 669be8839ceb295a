"""Owns the ways to break things. Each gets the arena and the load while both run, and returns when all is mended."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from types import MappingProxyType

from sqlalchemy import text

from service.store.database import single_connection
from tests.chaos import rolling
from tests.chaos.arena import PORTS, Arena
from tests.chaos.load import request_head

Break = Callable[[Arena, random.Random], Awaitable[None]]

KILLS = 100


@dataclass(frozen=True)
class Scenario:
    """One way to break things, what it does in a sentence, and the settings that it needs."""

    says: str
    work: Break
    settings: Mapping[str, str] = field(default_factory=dict)
    arena: type[Arena] = Arena
    needs: tuple[str, ...] = ()
    """Programs that must be installed."""
    flawless: bool = False
    """Whether nothing but 200 may be answered."""


async def kill_web(arena: Arena, chance: random.Random) -> None:
    """SIGKILL at random moments, to either web process."""
    for _ in range(KILLS):
        await asyncio.sleep(chance.uniform(0.1, 1.2))
        arena.kill(f"web-{chance.choice(PORTS)}")
    for port in PORTS:
        await arena.ready(port)


async def kill_worker(arena: Arena, chance: random.Random) -> None:
    """SIGKILL at random moments, to the worker."""
    for _ in range(10):
        await asyncio.sleep(chance.uniform(0.5, 2))
        arena.kill("worker")


async def kill_postgres(arena: Arena, chance: random.Random) -> None:
    """A power loss of the database, three times, a few seconds each."""
    for _ in range(3):
        arena.kill_postgres()
        await asyncio.sleep(chance.uniform(1, 5))
        await asyncio.to_thread(arena.start_postgres)
        await asyncio.sleep(5)


async def terminate_backends(arena: Arena, chance: random.Random) -> None:
    """Every connection is cut by the server, again and again."""
    for _ in range(30):
        await asyncio.sleep(chance.uniform(0.1, 0.5))
        await arena.sql("select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'kahuna-sync'")


async def exhaust_pool(arena: Arena, chance: random.Random) -> None:
    """Somebody locks the list for longer than anybody waits, with two connections in each pool."""
    for _ in range(3):
        async with single_connection(arena.url) as connection:
            await connection.execute(text("lock table suppressions in exclusive mode"))
            await asyncio.sleep(chance.uniform(3, 6))
            await connection.rollback()
        await asyncio.sleep(2)


async def fill_spool(arena: Arena, chance: random.Random) -> None:
    """The database stays away until the spool is full."""
    arena.kill_postgres()
    await asyncio.sleep(chance.uniform(10, 15))
    await asyncio.to_thread(arena.start_postgres)
    await asyncio.sleep(5)


async def cut_bodies(_arena: Arena, chance: random.Random) -> None:
    """Clients that promise a body and go away in the middle of it."""
    for _ in range(500):
        with suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", chance.choice(PORTS))
            length = chance.randrange(100, 100_000)
            writer.write(request_head("email", length, "c2lnbmF0dXJl") + b"[" * chance.randrange(length))
            await asyncio.sleep(chance.uniform(0, 0.02))
            writer.transport.abort()


async def send_slowly(_arena: Arena, chance: random.Random) -> None:
    """Fifty clients that send a byte a second."""

    async def one() -> None:
        with suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", chance.choice(PORTS))
            writer.write(request_head("email", 10_000, "c2lnbmF0dXJl"))
            for _ in range(15):
                writer.write(b"[")
                await asyncio.sleep(1)
            writer.transport.abort()

    await asyncio.gather(*(one() for _ in range(50)))


async def nothing(_arena: Arena, _chance: random.Random) -> None:
    """Two replicas and overlapping people, for ten seconds: what all the others are compared with."""
    await asyncio.sleep(10)


SCENARIOS: Mapping[str, Scenario] = MappingProxyType(
    {
        "overlap": Scenario("two replicas, overlapping addresses", nothing),
        "kill-web": Scenario(f"kill -9 of web, {KILLS} times", kill_web),
        "kill-worker": Scenario("kill -9 of the worker", kill_worker),
        "kill-postgres": Scenario("PostgreSQL killed and started again", kill_postgres),
        "terminate": Scenario("its backends terminated", terminate_backends),
        "pool": Scenario("the pool exhausted behind a lock", exhaust_pool, {"DATABASE_POOL_SIZE": "2"}),
        "spool-full": Scenario("the spool full", fill_spool, {"SPOOL_LIMIT_BYTES": "200000"}),
        "cut": Scenario("clients that cut the connection mid-body", cut_bodies),
        "slow": Scenario("slow senders", send_slowly),
        "rolling": Scenario(
            "a rolling restart of everything, behind nginx and PgBouncer",
            rolling.restart_all,
            rolling.SETTINGS,
            rolling.Behind,
            rolling.NEEDS,
            flawless=True,
        ),
    }
)
