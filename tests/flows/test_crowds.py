"""Everybody at once about the same new numbers: nobody ever waits in a circle, and nobody is put off.

The server breaks such circles after a second, and whoever lost tries again, so that nothing would be lost either: what
is asked here is that there are none. It counts those that it broke.
"""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from random import Random
from typing import Any

import pytest
from sqlalchemy import text

from service.errors import Conflict
from service.settings import Settings
from service.store.database import Database, single_connection
from tests.flows.speaking import World

CROWD = 8
ROUNDS = 8
NUMBERS = 1_400
"""Numbers that a round knows: more than a large callback tells, so that no two tell the same."""


@asynccontextmanager
async def replicas(settings: Settings, count: int) -> AsyncIterator[list[World]]:
    """Some that share a database and nothing else. In the end their connections are gone, and what they did is
    counted."""
    databases = [Database.of(settings) for _ in range(count)]
    try:
        yield [World(database, settings) for database in databases]
    finally:
        for database in databases:
            await database.close()


async def circles(settings: Settings) -> int:
    """How many the server has broken in this database, once nobody else is there."""
    others = "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
    async with single_connection(settings.database_url or "") as connection:
        for _ in range(500):
            if not (await connection.execute(text(others))).scalar_one():
                break
            await connection.commit()
            await asyncio.sleep(0.01)
        found = await connection.execute(
            text("select deadlocks from pg_stat_database where datname = current_database()")
        )
        return int(found.scalar_one())


def said(world: World, numbers: list[str], chance: Random, opt_ins: float) -> list[dict[str, Any]]:
    """Stops of one second, so that many say the same; and opt-ins of the second before and after."""
    at = world.clock.seconds - 1_000
    return [
        {"number": number, "timestamp": at + chance.choice([-1, 1]), "opt-in": True}
        if chance.random() < opt_ins
        else {"number": number, "timestamp": at}
        for number in numbers
    ]


async def speak(world: World, kind: str, chance: Random, numbers: list[str]) -> str:
    """One of a crowd; returns how far its word has come."""
    few = [*numbers[:60], *numbers[900:960]]
    if kind == "ours":
        at = world.clock.seconds - 1_000 + chance.choice([-1, 0, 1])
        with suppress(Conflict):  # a newer stop
            await (
                world.consent("sms", chance.choice(few), at)
                if chance.random() < 0.4
                else world.stop("sms", chance.choice(few), chance.choice(["manual", "do_not_call"]), at)
            )
        return "applied"
    told = chance.sample(numbers, 1_100) if kind == "large" else chance.sample(few, 40)
    entries = said(world, told, chance, 0.3 if kind == "mixed" else 0)
    return (await world.callback("sms", entries)).state


@pytest.mark.parametrize("kinds", [("small", "large"), ("small", "mixed", "ours"), ("small", "large", "mixed", "ours")])
async def test_nobody_waits_in_a_circle(settings: Settings, kinds: tuple[str, ...]) -> None:
    states: list[str] = []
    async with replicas(settings, CROWD) as worlds:
        for turn in range(ROUNDS):
            chance = Random(f"{kinds}, {turn}")
            numbers = [f"1555{turn:04d}{n:04d}" for n in range(NUMBERS)]
            speaking: list[Coroutine[Any, Any, str]] = [
                speak(world, kinds[n % len(kinds)], Random(chance.random()), numbers) for n, world in enumerate(worlds)
            ]
            states += await asyncio.gather(*speaking)
    assert await circles(settings) == 0
    assert set(states) == {"applied"}
