"""The words of the desk for tests: a correction that was given up or refused, and what is decided about it."""

import asyncio
from typing import Any

from sqlalchemy import text

from service.flows.desk import Chosen, Desk
from tests.flows.speaking import World

ANN = "ann@example.com"
NUMBER = "15550100001"
DAY = 86_400


def desk_of(world: World, namespace: str = "default") -> Desk:
    return Desk(world.database, namespace, "operator", world.policy, world.clock)


async def requeue(world: World, *ids: int, anyway: bool = False) -> list[str]:
    decided = await desk_of(world).requeue(Chosen(ids), anyway=anyway)
    return [result.outcome for result in decided.results]


async def discard(world: World, *ids: int) -> list[str]:
    return [result.outcome for result in (await desk_of(world).discard(Chosen(ids), "a test of ours")).results]


async def dead(world: World, address: str = ANN, at: int | None = None) -> Any:
    """A stop whose correction was given up."""
    await world.stop("email", address, "unsubscribe", at=at)
    await world.fault(status=400, times=1)
    await world.push()
    await world.heal()
    world.clock.sleep(1)
    return (await world.corrections("dead"))[-1]


async def rejected(world: World, address: str = ANN) -> Any:
    """A stop that Kahuna refused for good."""
    await world.stop("email", address, "unsubscribe")
    await world.fault(reject=[address], times=1)
    await world.push()
    await world.heal()
    world.clock.sleep(1)
    return (await world.corrections("rejected"))[-1]


async def states(world: World) -> list[str]:
    return [row.state for row in await world.corrections()]


async def deeds_done(world: World) -> list[Any]:
    return await world.query("select * from audit where action like 'corr%' or action like 'circ%' order by at")


async def waiting_for_a_lock(world: World) -> None:
    """Until somebody in this database waits for another."""
    query = text("select 1 from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'")
    for _ in range(500):
        async with world.database.read() as connection:
            if (await connection.execute(query)).first() is not None:
                return
        await asyncio.sleep(0.01)
    raise AssertionError("nobody waits")
