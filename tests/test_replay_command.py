"""`kahuna-sync replay`: what it prints, how it ends, and that it may be interrupted and begun again."""

import asyncio
import os
import signal
import sys
import uuid
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from service.settings import Settings
from service.store import archive
from service.store.database import Database
from tests.commands import ended, figures
from tests.flows.speaking import World
from tests.flows.test_ingest import unsub
from tests.flows.test_replay import everything


@pytest.fixture
async def world(database: Database, settings: Settings) -> AsyncIterator[World]:
    """Three batches that wait for a word, an hour and a channel apart."""
    made = World(database, settings)
    made.clock.now = datetime(2026, 3, 1, 12, tzinfo=UTC)
    async with made.control:
        for n in range(3):
            await made.callback("email", [unsub(f"a{n}@example.com", reason="vanished"), n])
            made.clock.sleep(1)  # within a millisecond, the order of batches is left to chance
            await made.callback("sms", [{"number": f"1555010000{n}", "timestamp": 1_700_000_000}])
            made.clock.sleep(3600)
        yield made


async def begun(world: World, *words: str, **more: str) -> Process:
    """The command, started from a shell whose settings know the word."""
    environ = {
        "PATH": os.environ["PATH"],
        "DATABASE_URL": world.settings.database_url or "",
        "EXTRA_REASONS": "vanished=complaint",
        "LOG_LEVEL": "error",
    }
    command = (sys.executable, "-m", "service", "replay", *words)
    return await asyncio.create_subprocess_exec(*command, env=environ | more, stdout=PIPE, stderr=PIPE)


async def requeued(world: World) -> int:
    return len(await world.query("select 1 from quarantine where state = 'requeued'"))


async def test_it_replays_what_is_meant_and_tells_what_came_of_it(world: World) -> None:
    before = await everything(world)
    code, out, _ = await ended(await begun(world, "--dry-run", "--since", "2026-03-01T13:00:00Z"))
    tried = figures(out)
    assert (code, await everything(world)) == (0, before)
    code, out, err = await ended(await begun(world, "--since", "2026-03-01T14:00+01:00"))
    assert (code, err.strip()) == (0, "")
    done = figures(out)
    assert (done["batches replayed"], done["entries understood that were rejected before"]) == (4, 2)
    assert list(tried.values()) == list(done.values())
    assert await requeued(world) == 2
    code, out, _ = await ended(await begun(world, "--channel", "email", "--until", "2026-03-01T12:00:01"))
    assert (code, figures(out)["batches replayed"], await requeued(world)) == (0, 1, 3)
    code, out, _ = await ended(await begun(world))
    assert (figures(out)["batches replayed"], figures(out)["changed by it"]) == (6, 0)
    assert {row.actor for row in await world.query("select actor from audit where action like '%replayed'")} == {
        "shell"
    }


async def test_interrupted_it_ends_after_the_transaction_under_way(world: World) -> None:
    [row] = await world.query("select id from batches where channel = 'email' order by received_at limit 1 offset 1")
    async with world.database.begin() as connection:
        await archive.hold(connection, uuid.UUID(str(row.id)))
        process = await begun(world)
        for _ in range(1000):
            # In this database: the server's list of locks tells those of other tests too.
            waits = "datname = current_database() and wait_event_type = 'Lock'"
            if await world.query(f"select 1 from pg_stat_activity where {waits}") or process.returncode is not None:
                break
            await asyncio.sleep(0.02)
        process.send_signal(signal.SIGINT)
        # It has nothing to do but to hear the signal; a busy machine may take its time to let it.
        for _ in range(20):
            await asyncio.sleep(0.05)
    code, _, err = await ended(process)
    assert code == 1
    assert "Traceback" not in err
    assert 1 <= await requeued(world) < 3
    since = err.rsplit("--since ", 1)[1].strip()
    assert datetime.fromisoformat(since) < world.clock() - timedelta(hours=1)
    code, _, _ = await ended(await begun(world, "--since", since))
    assert (code, await requeued(world)) == (0, 3)


async def test_what_cannot_be_is_one_sentence(world: World) -> None:
    for words, more, said in (
        (["--since", "yesterday"], {}, "2026-01-31"),
        (["--namespace", "nowhere"], {}, "There is no namespace nowhere"),
        ([], {"EXTRA_REASONS": "vanished=grumbling"}, "cannot mean grumbling"),
    ):
        code, _, err = await ended(await begun(world, *words, **more))
        assert code == 2, err
        assert said in err
        assert "Traceback" not in err
