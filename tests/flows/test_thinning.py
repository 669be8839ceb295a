"""Lines of runs that came to nothing, and merges, go after their time; what undo goes by stays."""

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

from sqlalchemy import text

from service.flows import upkeep
from service.flows.thinning import Doing, Kept, thin
from service.flows.upkeep import Retention
from service.store import differences, merges, reconciliations
from service.store.database import Connection
from service.store.differences import Decided, Part, Selection
from service.store.merges import Note
from tests.flows.desk import waiting_for_a_lock
from tests.flows.planning import approved as carried_out
from tests.flows.planning import (
    asked,
    carried_on,
    decided,
    found,
    lines,
    load_behind_our_back,
    only_kahuna_knows,
    planned,
)
from tests.flows.speaking import World
from tests.flows.test_rebuild import DAY

KEPT = Retention(lines=timedelta(days=30), merges=timedelta(days=30))


async def kept_up(world: World) -> None:
    assert await upkeep.run_due(world.database, world.rules, KEPT, world.clock)


def doing(world: World, steps: list[object] | None = None) -> Doing:
    """Transactions as the upkeep makes them, noted one by one."""

    async def do(work: Callable[[Connection], Awaitable[Any]], /) -> Any:
        if steps is not None:
            steps.append(work)
        async with world.database.begin() as connection:
            return await work(connection)

    return do


async def rejected(world: World, names: list[str]) -> uuid.UUID:
    await load_behind_our_back(world, names)
    run = await carried_on(world, await asked(world))
    await decided(world, run.id, decline=True)
    assert (await found(world, run.id)).state == "rejected"
    run_id: uuid.UUID = run.id
    return run_id


async def test_a_rejected_run_loses_its_lines_and_keeps_its_counts(world: World) -> None:
    run_id = await rejected(world, ["ann@example.com", "bob@example.com"])
    world.clock.sleep(29 * DAY)
    await kept_up(world)
    assert len(await lines(world, run_id)) == 2
    world.clock.sleep(2 * DAY)
    await kept_up(world)
    row = await found(world, run_id)
    assert await lines(world, run_id) == {}
    assert (row.state, row.counts["differences"], row.counts["lines_dropped"]) == ("rejected", 2, 2)


async def test_what_a_failed_run_recorded_stays_and_so_does_one_that_waits(world: World) -> None:
    await only_kahuna_knows(world, "ann@example.com")
    await load_behind_our_back(world, ["bob@example.com", "carol@example.com"])
    run = await carried_on(world, await asked(world))
    await carried_out(world, run.id, lines=(("ann@example.com", "unsubscribe"), ("bob@example.com", "unsubscribe")))
    await world.execute(f"update reconciliations set state = 'failed', finished_at = now() where id = '{run.id}'")
    await world.execute(f"update reconciliations set finished_at = timestamptz '{world.clock()}'")
    world.clock.sleep(31 * DAY)
    await kept_up(world)
    assert set(await lines(world, run.id)) == {"ann@example.com", "bob@example.com"}
    assert (await found(world, run.id)).counts["lines_dropped"] == 1


async def test_slices_are_small_and_all_of_it_goes(world: World) -> None:
    run_id = await rejected(world, [f"{n}@example.com" for n in range(7)])
    world.clock.sleep(31 * DAY)
    steps: list[object] = []
    await thin(doing(world, steps), Kept(lines=timedelta(days=30)), world.clock(), size=3)
    assert (await lines(world, run_id), len(steps)) == ({}, 4)


async def test_a_failed_run_that_is_approved_at_this_moment_keeps_its_lines(world: World) -> None:
    await load_behind_our_back(world, ["ann@example.com"])
    run = await carried_on(world, await asked(world))
    await world.execute(f"update reconciliations set state = 'failed', finished_at = timestamptz '{world.clock()}'")
    world.clock.sleep(31 * DAY)
    async with world.database.begin() as connection:
        await reconciliations.lock(connection, run.id)
        approval = Decided("approved", "tester", world.clock())
        assert (await differences.decide(connection, run.id, Selection(), approval, Part())).lines == 1
        await reconciliations.change(connection, run.id, {"state": "approved"})
        thinned = asyncio.create_task(thin(doing(world), Kept(lines=timedelta(days=30)), world.clock()))
        waits = asyncio.create_task(waiting_for_a_lock(world))
        await asyncio.wait([thinned, waits], return_when="FIRST_COMPLETED")
        waits.cancel()
    await thinned
    assert await lines(world, run.id) == {"ann@example.com": "approved"}


async def test_a_line_that_waits_again_at_this_moment_stays(world: World) -> None:
    await load_behind_our_back(world, ["ann@example.com"])
    old = await carried_out(world, (await planned(world)).id)
    await world.execute("update differences set state = 'refused', decided_by = null")
    newer = reconciliations.as_run(await planned(world))

    async def thinned() -> int:
        async with world.database.begin() as connection:
            return await differences.thin(connection, newer, 0, 10)

    async with world.database.begin() as connection:
        await connection.execute(text("update differences set state = 'applied'"))
        thinning = asyncio.create_task(thinned())
        await waiting_for_a_lock(world)
    assert await thinning == 0
    assert await lines(world, old.id) == {"ann@example.com": "applied"}


async def test_merges_go_after_their_time(world: World) -> None:
    async def write(connection: Connection, name: str) -> int:
        note = Note("email", f"{name}@example.com", name.encode(), "common", None, {"a": 1})
        return await merges.write(connection, "default", [note], world.clock())

    async with world.database.begin() as connection:
        await write(connection, "old")
    world.clock.sleep(31 * DAY)
    async with world.database.begin() as connection:
        await write(connection, "new")
    await kept_up(world)
    assert [row.address for row in await world.query("select address from merges")] == ["new@example.com"]
