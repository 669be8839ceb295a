"""`kahuna-sync import`: what it prints, how it ends, and that it may be interrupted and begun again."""

import asyncio
import gzip
import os
import re
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from service.settings import Settings
from service.store.database import Database
from tests.commands import ended, figures
from tests.flows.speaking import World


@pytest.fixture
async def world(database: Database, settings: Settings) -> AsyncIterator[World]:
    made = World(database, settings)
    async with made.control:
        yield made


async def begun(world: World, *words: str, **more: str) -> Process:
    """The command, started from a shell."""
    environ = {"PATH": os.environ["PATH"], "DATABASE_URL": world.settings.database_url or "", **more}
    command = (sys.executable, "-m", "service", "import", *words)
    return await asyncio.create_subprocess_exec(*command, env=environ, stdin=PIPE, stdout=PIPE, stderr=PIPE)


async def count(world: World) -> int:
    return len(await world.query("select 1 from facts"))


async def test_it_takes_a_file_in_and_tells_what_came_of_it(world: World, tmp_path: Path) -> None:
    file = tmp_path / "bounces.csv.gz"
    file.write_bytes(gzip.compress(b"email,created\na@example.com,1700000000\nnobody,\nb@example.com,\n"))
    words = (str(file), "--channel", "email", "--reason", "hard_bounce", "--as-of", "2023-11-15")
    code, out, err = await ended(await begun(world, *words, "--dry-run"))
    tried = figures(out)
    assert (code, await count(world)) == (1, 0)
    code, out, err = await ended(await begun(world, *words))
    refused, hint = err.strip().splitlines()
    assert (code, refused) == (1, "line 3: not-an-email-address")
    assert re.fullmatch(r"If it was the wrong file: kahuna-sync revert import \S{36} --dry-run", hint)
    assert (
        figures(out)
        == tried
        == {
            "lines read": 3,
            "new stops": 2,
            "known already": 0,
            "not understood": 1,
            "that state no stop here": 0,
            "without a time of their own": 0,
            "whose own word for the reason is not known": 0,
            "understood as hard_bounce": 2,
        }
    )
    rows = await world.query("select occurred_at from facts order by address")
    assert [row.occurred_at for row in rows] == [1700000000, 1700006400]
    [row] = await world.query("select headers->>'file-name' as name, headers->>'actor' as actor from batches")
    assert tuple(row) == ("bounces.csv.gz", "shell")
    process = await begun(world, "-", "--channel", "email", "--reason", "manual", LOG_LEVEL="info")
    out_bytes, logged = await process.communicate(b"c@example.com\n")
    assert b"import.finished" in logged
    assert (process.returncode, figures(out_bytes.decode())["new stops"]) == (0, 1)


async def test_what_cannot_be_is_one_sentence(world: World, tmp_path: Path) -> None:
    file = tmp_path / "list.csv"
    file.write_bytes(b"a@example.com\n")
    for words, said in (
        (["--channel", "email"], "say reason, one of unsubscribe"),
        (["--channel", "sms", "--reason", "spam"], "say one of do_not_call"),
        (["--channel", "email", "--reason", "manual", "--as-of", "2999-01-01"], "as_of is no time"),
        (["--channel", "email", "--namespace", "nowhere"], "There is no namespace nowhere"),
    ):
        code, _, err = await ended(await begun(world, str(file), *words))
        assert code == 2, err
        assert said in err
        assert "Traceback" not in err


async def test_interrupted_it_tells_how_far_it_came_and_goes_on_from_there(world: World) -> None:
    lines = b"".join(b"a%d@example.com\n" % n for n in range(12_000))
    process = await begun(world, "-", "--channel", "email", "--reason", "manual")
    assert process.stdin is not None
    process.stdin.write(lines)
    await process.stdin.drain()
    for _ in range(1000):
        if await count(world) >= 5000 or process.returncode is not None:
            break
        await asyncio.sleep(0.02)
    process.send_signal(signal.SIGINT)
    # The pipe stays open: it is not its end that is waited for.
    assert await asyncio.wait_for(process.wait(), 30) == 1
    out, err = (await process.stdout.read()).decode() if process.stdout else "", await _said(process)
    assert "Traceback" not in err
    done = await count(world)
    assert done in (5000, 10_000)
    assert f"Interrupted after line {done}." in err
    assert figures(out)["new stops"] == done
    process = await begun(world, "-", "--channel", "email", "--reason", "manual")
    out_bytes, _ = await process.communicate(lines)
    assert figures(out_bytes.decode())["new stops"] == 12_000 - done


async def _said(process: Process) -> str:
    return (await process.stderr.read()).decode() if process.stderr else ""
