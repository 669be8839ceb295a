"""`kahuna-sync reconcile`: what it prints, and how a plan is decided from the shell."""

import asyncio
import json
import os
import re
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from service.settings import Settings
from service.store.database import Database
from tests.flows.planning import load_behind_our_back
from tests.flows.speaking import World


@pytest.fixture
async def world(database: Database, settings: Settings) -> AsyncIterator[World]:
    made = World(database, settings)
    async with made.control:
        await load_behind_our_back(made, ["a@example.com", "b@example.com"], "complaint")
        yield made


async def ran(world: World, *words: str) -> tuple[int, str, str]:
    """The command's exit code, and what it said."""
    environ = {"PATH": os.environ["PATH"], "DATABASE_URL": world.settings.database_url or "", "LOG_LEVEL": "error"}
    command = (sys.executable, "-m", "service", "reconcile", *words)
    process = await asyncio.create_subprocess_exec(*command, env=environ, stdout=PIPE, stderr=PIPE)
    out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()


async def test_a_plan_from_the_shell_from_its_table_to_its_report(world: World, tmp_path: Path) -> None:
    code, out, err = await ran(world, "--channel", "email")
    assert (code, "planned" in out, "complaint" in out, "a@example.com, b@example.com" in out) == (0, True, True, True)
    listed = json.loads((await ran(world, "list", "--json"))[1])
    shown = json.loads((await ran(world, "show", listed[0]["id"], "--json"))[1])
    assert (shown["run"]["state"], [group["slot"] for group in shown["groups"]]) == ("planned", ["complaint"])
    assert "There is no such run" in (await ran(world, "list", "--state", "failed"))[2]
    run_id = re.findall(r"approve (\S+),", err)[0]
    code, out, err = await ran(world, "approve", run_id, "--line", "a@example.com", "manual")
    says = "no line of this plan is a@example.com / manual; its slots are complaint"
    assert (code, "0 lines approved" in out, says in err) == (1, True, True), err
    code, out, err = await ran(world, "approve", run_id, "--line", "a@example.com", "complaint", "--note", "seen")
    assert (code, "1 line approved" in out, "planned" in out) == (0, True, True), err
    assert [row.address for row in await world.corrections()] == ["a@example.com"]
    code, out, err = await ran(world, "reject", run_id, "--line", "a@example.com", "complaint", "--json")
    [passed_over] = json.loads(out)["passed_over"]
    assert (code, passed_over["state"], "a@example.com / complaint waits for no" in err) == (0, "applied", True), err
    code, out, err = await ran(world, "reject", run_id, "--json")
    done = json.loads(out)
    assert (code, done["lines"], done["passed_over"], done["run"]["state"]) == (0, 1, [], "applied"), err
    file = tmp_path / "report.json"
    code, out, err = await ran(world, "report", run_id, "--format", "json", "--output", str(file))
    assert code == 0, err
    assert [line["state"] for line in json.loads(file.read_text())["lines"]] == ["applied", "declined"]
    code, out, err = await ran(world, "list")
    assert (code, run_id in out, "applied" in out) == (0, True, True), err
    code, out, err = await ran(world, "revert", run_id, "--dry-run")
    assert (code, re.findall(r"│ (\d) ", out)) == (0, ["0", "0", "0", "1", "0"]), err
    would = json.loads((await ran(world, "revert", run_id, "--dry-run", "--json"))[1])["would"]
    assert list(would.values()) == [0, 0, 0, 1, 0]
    code, out, err = await ran(world, "revert", run_id)
    assert (code, "reverted" in out, "still sent: 1" in err) == (0, True, True), err
    assert "nothing was recorded here; 0 stand at Kahuna" in out
    code, out, err = await ran(world, "approve", run_id)
    assert (code, "only lines of a plan can be decided" in err) == (2, True)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "Say which list"),
        (("--channel", "sms", "--source", "logs"), "nothing of texts"),
        (("--channel", "email", "--address", "a@example.com"), "--source profiles"),
        (("--channel", "email", "--source", "profiles", "--address", "nobody"), "cannot be one"),
        (("show", "00000000-0000-0000-0000-000000000000"), "no such run"),
    ],
)
async def test_what_cannot_be_is_said_in_a_sentence(world: World, words: tuple[str, ...], says: str) -> None:
    code, _, err = await ran(world, *words)
    assert (code, says in err, "Traceback" in err) == (2, True, False), err
