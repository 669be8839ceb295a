"""A reconciliation whose process is killed with -9 in the middle of a transaction, whatever its state, is gone on with
by the next, and the list is never half of something."""

import asyncio
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from service.flows import approve, revert
from service.flows.approve import Verdict
from service.settings import Settings
from service.store.database import Database, single_connection
from tests.flows.planning import asked, digest, found, lines, load_behind_our_back, only_kahuna_knows
from tests.flows.speaking import World
from tests.test_processes import Running, running

NAMES = [f"{n}@example.com" for n in range(6)]
HERE = ["here-1@example.com", "here-2@example.com"]
QUIET = {"LOGS_PULL": "off", "WORKER_POLL_SECONDS": "0.05"}

_WAITS = "select 1 from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"


@pytest.fixture
async def world(database: Database, settings: Settings) -> AsyncIterator[World]:
    made = World(database, settings)
    async with made.control:
        yield made


async def until(look: Callable[[], Awaitable[Any]], what: str) -> None:
    """Looks until it is so."""
    for _ in range(1200):
        if await look():
            return
        await asyncio.sleep(0.05)
    raise AssertionError(what)


@asynccontextmanager
async def locked(world: World, table: str) -> AsyncIterator[None]:
    """Nobody writes to a table: whoever is about to stands still within a transaction."""
    async with single_connection(world.settings.database_url or "") as connection:
        await connection.execute(text(f"lock table {table} in exclusive mode"))
        yield
        await connection.rollback()


async def killed(world: World, started: Running, table: str, state: str, run_id: uuid.UUID) -> None:
    """Kills it once it waits for the table with the run in this state. Then its lease has ended."""

    async def stands_still() -> bool:
        assert started.process.poll() is None, started.log.read_text()
        return (await found(world, run_id)).state == state and bool(await world.query(_WAITS))

    await until(stands_still, f"{state} stands still at {table}")
    started.process.kill()
    started.process.wait()
    await until(lambda: _none_waits(world), "the server has seen that it is gone")


async def _none_waits(world: World) -> bool:
    return not await world.query(
        "select 1 from pg_stat_activity where application_name = 'kahuna-sync' and wait_event_type = 'Lock' "
        "and datname = current_database()"
    )


async def forget_the_dead(world: World) -> None:
    """As if the minutes of its leases had passed."""
    await world.execute("update reconciliations set lease_until = now() - interval '1 s' where lease_until is not null")
    await world.execute("update leases set ends_at = now() - interval '1 s'")
    await world.execute("update retractions set next_attempt_at = now() - interval '1 s' where state <> 'done'")


async def in_the_middle(world: World, folder: Path, table: str, state: str, run_id: uuid.UUID, code: str = "") -> None:
    """A process that is killed while it has the run in this state, within a transaction that writes to the table."""
    url = world.settings.database_url or ""
    async with locked(world, table):
        with running("worker", url, folder, ["WORKER_PORT"], code=code, **QUIET) as started:
            await killed(world, started, table, state, run_id)
    await forget_the_dead(world)


async def gone_on_with(world: World, folder: Path, run_id: uuid.UUID, state: str) -> Any:
    """The run once another worker has done what there is to do."""

    async def there() -> bool:
        row = await found(world, run_id)
        return row.state == state and row.deciding is None

    with running("worker", world.settings.database_url or "", folder, ["WORKER_PORT"], **QUIET):
        await until(there, state)
    return await found(world, run_id)


async def test_killed_in_each_state_it_is_gone_on_with(world: World, tmp_path: Path) -> None:
    await load_behind_our_back(world, NAMES)
    for name in HERE:
        await only_kahuna_knows(world, name)
    before = await digest(world)
    run_id = await asked(world)

    await in_the_middle(world, tmp_path, "differences", "running", run_id)
    assert (await found(world, run_id)).state == "running", "never a plan that is not whole"
    await gone_on_with(world, tmp_path, run_id, "planned")
    assert set((await lines(world, run_id)).values()) == {"proposed"}

    # The shell's own process dies within the decision: nothing of it is there.
    code = f"from service.__main__ import cli; cli(['reconcile', 'approve', '{run_id}'])"
    await in_the_middle(world, tmp_path, "differences", "planned", run_id, code)
    assert set((await lines(world, run_id)).values()) == {"proposed"}
    assert await world.query("select 1 from audit where action = 'reconciliation.approved'") == []

    # A decision about many lines: what is marked stays marked, and the run says how far it is.
    verdict = Verdict("tester", "approved")
    await approve.decide(world.database, run_id, verdict, world.clock, None, at_once=3)
    await in_the_middle(world, tmp_path, "differences", "approved", run_id)
    assert (await found(world, run_id)).deciding["done"] == 3
    assert Counter((await lines(world, run_id)).values()) == {"approved": 3, "proposed": 5}

    await in_the_middle(world, tmp_path, "corrections", "approved", run_id)
    assert (await world.corrections(), await digest(world)) == ([], before)
    await gone_on_with(world, tmp_path, run_id, "applied")
    told = Counter((await lines(world, run_id)).values())
    assert told == {"applied": len(NAMES), "proved (recorded)": len(HERE)}
    assert len(await world.corrections()) == len(NAMES)
    assert await digest(world) != before

    await revert.ask(world.database, run_id, "tester", "enough", world.clock, None)
    await in_the_middle(world, tmp_path, "retracted_facts", "reverting", run_id)
    assert await digest(world) != before, "all of it still stands"
    await gone_on_with(world, tmp_path, run_id, "reverted")
    assert await digest(world) == before
