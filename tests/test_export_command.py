"""`kahuna-sync export` and `new-epoch`: the rows of the HTTP API, and cursors that end."""

import asyncio
import os
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from service.errors import Expired
from service.flows.follow import Feed, Scope, cursor_from
from service.settings import Settings
from tests.flows.speaking import World
from tests.flows.test_ingest import unsub
from tests.web.harness import opened

HERE = Scope("default")


@pytest.fixture
async def world(database: object, settings: Settings) -> AsyncIterator[World]:
    """Two addresses on the list."""
    made = World(database, settings)  # type: ignore[arg-type]
    async with made.control:
        await made.callback("email", [unsub("Ann@example.com"), unsub("bob@example.com", reason="spam")])
        yield made


async def run(world: World, *words: str, given: bytes = b"") -> tuple[int, str, str]:
    """The command's exit code and what it said."""
    environ = {"PATH": os.environ["PATH"], "DATABASE_URL": world.settings.database_url or "", "LOG_LEVEL": "error"}
    command = (sys.executable, "-m", "service", *words)
    process = await asyncio.create_subprocess_exec(*command, env=environ, stdin=PIPE, stdout=PIPE, stderr=PIPE)
    out, err = await process.communicate(given)
    return process.returncode or 0, out.decode(), err.decode()


async def test_it_writes_what_the_http_api_does(world: World, tmp_path: Path) -> None:
    async with opened(world.settings) as site:
        site.clock.now = datetime.now(UTC)
        reader = await site.token("read")
        path = "/v1/suppressions/export"
        expected = (await site.client.get(path, headers=reader)).text
        only = (await site.client.get(path, headers=reader, params={"format": "ndjson", "reason": "complaint"})).text
    code, out, err = await run(world, "export", "--output", str(tmp_path / "list.csv"))
    assert (code, out) == (0, "")
    assert (tmp_path / "list.csv").read_text() == expected
    cursor = cursor_from(err.rpartition("after=")[2].strip(), HERE)
    assert (await Feed(world.database, ["default"], 1).page(HERE, cursor, 10)).told == []
    code, out, _ = await run(world, "export", "--format", "ndjson", "--reason", "complaint", "--active")
    assert (code, out) == (0, only)
    assert only.count("\n") == 1


async def test_a_reason_that_there_is_not_is_refused(world: World) -> None:
    code, out, err = await run(world, "export", "--reason", "boredom")
    assert (code, out) == (2, "")
    assert "complaint" in err


async def test_a_new_epoch_ends_every_cursor(world: World) -> None:
    feed = Feed(world.database, ["default"], 1)
    here = (await feed.page(HERE, None, 10)).next
    code, _, _ = await run(world, "new-epoch", given=b"n\n")
    assert code == 1
    assert (await feed.page(HERE, here, 10)).told == []
    code, _, err = await run(world, "new-epoch", "--yes")
    assert (code, "410 cursor-expired" in err) == (0, True)
    with pytest.raises(Expired):
        await feed.page(HERE, here, 10)
    assert [row.action for row in await world.query("select action from audit")] == ["epoch.began"]
