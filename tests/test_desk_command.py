"""The desk in the shell: what it prints, what it decides, and how it ends."""

import os
import re
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import anyio
import pytest
from click.testing import CliRunner, Result

from service.__main__ import cli
from service.errors import KahunaSyncError
from service.settings import Settings
from service.store.database import Database
from tests.flows.desk import ANN, dead, rejected
from tests.flows.speaking import World


@pytest.fixture
async def world(database: Database, settings: Settings) -> AsyncIterator[World]:
    made = World(database, settings)
    async with made.control:
        yield made


async def run(world: World, *words: str, **environ: str) -> Result:
    """A command, as an operator's shell runs it."""
    given = {"DATABASE_URL": world.settings.database_url or "", "PATH": os.environ["PATH"]} | environ
    invoke = partial(CliRunner().invoke, cli, words, env=dict.fromkeys(os.environ) | given)
    return await anyio.to_thread.run_sync(invoke)


async def states(world: World) -> list[str]:
    return [row.state for row in await world.corrections()]


async def test_a_correction_died_what_now(world: World) -> None:
    row = await dead(world)
    listed = await run(world, "corrections", "list")
    assert listed.exit_code == 0, listed.output
    assert "that are dead, the newest first. Others: --state pending" in listed.stderr
    nobody = await run(world, "corrections", "list", "--request-id", "nobody-s")
    assert (nobody.stdout, nobody.stderr) == ("", "There are no such corrections in any state.\n")
    none = await run(world, "corrections", "list", "--state", "sent")
    assert (none.stdout, none.stderr.splitlines()[-1]) == ("", "There are no such corrections that are sent.")
    for word in (str(row.id), "dead", "bad-request", ANN, "unsubscribe"):
        assert word in listed.stdout
    shown = await run(world, "corrections", "show", str(row.id))
    assert "bad-request" in shown.stdout
    assert "400" in shown.stdout
    [call] = await world.query("select id from calls")
    assert call.id.hex in shown.stdout, "what Kahuna's support is asked about"
    again = await run(world, "corrections", "requeue", str(row.id))
    assert (again.exit_code, await states(world)) == (0, ["superseded", "pending"])
    assert "waits to be sent" in again.stdout
    newer = (await world.corrections())[-1].id
    assert f"{row.id} waits as {newer}" in again.stdout
    after = await run(world, "corrections", "show", str(row.id))
    assert re.search(rf"succeeded by .* {newer} \(pending\)", after.stdout)
    assert "It was not sent yet" in (await run(world, "corrections", "show", str(newer))).stderr
    actors = await world.query("select actor from audit where action = 'correction.requeued'")
    assert [one.actor for one in actors] == ["shell"]


async def test_all_of_a_state_and_what_needs_a_word_more(world: World) -> None:
    row = await rejected(world)
    refused = await run(world, "corrections", "requeue", "--all", "rejected")
    assert (refused.exit_code, await states(world)) == (1, ["rejected"])
    assert "--anyway" in refused.stdout
    named = await run(world, "corrections", "requeue", str(row.id), "99999")
    assert named.exit_code == 1
    assert named.stderr.splitlines()[-2:] == [f"{row.id}: refused-for-good", "99999: not-found"]
    meant = await run(world, "corrections", "requeue", "--all", "rejected", "--channel", "email", "--anyway")
    assert (meant.exit_code, await states(world)) == (0, ["superseded", "pending"])
    none = await run(world, "corrections", "requeue", "--all", "rejected")
    assert (none.exit_code, none.stdout, none.stderr.splitlines()[-1]) == (0, "", "There is none.")


async def test_a_discard_says_why(world: World) -> None:
    row = await dead(world)
    assert (await run(world, "corrections", "discard", str(row.id))).exit_code == 2
    assert (await run(world, "corrections", "discard", str(row.id), "--note", " ")).exit_code == 2
    done = await run(world, "corrections", "discard", str(row.id), "--note", "our own test")
    assert (done.exit_code, await states(world)) == (0, ["discarded"])
    listed = await run(world, "corrections", "list", "--address", ANN)
    assert "our own test" in listed.stdout


@pytest.mark.parametrize(
    "words",
    [
        ("corrections", "requeue"),
        ("corrections", "requeue", "1", "--all", "dead"),
        ("corrections", "requeue", "1", "--why", "too-large"),
        ("corrections", "requeue", "--all", "sent"),
        ("corrections", "requeue", "zero"),
        ("circuits", "reset"),
    ],
)
async def test_what_is_not_meant_is_not_done(world: World, words: tuple[str, ...]) -> None:
    result = await run(world, *words)
    assert (result.exit_code, "Usage" in result.stderr) == (2, True)


async def test_refusals_are_one_sentence(world: World) -> None:
    for words, says in (
        (("corrections", "show", "7"), "There is no such correction"),
        (("corrections", "list", "--address", "nobody"), "cannot be an address"),
        (("corrections", "list", "--namespace", "nowhere"), "There is no namespace nowhere"),
        (("quality", "--since", "2026-02-01", "--until", "2026-01-01"), "since must come before until"),
    ):
        result: Any = await run(world, *words)
        assert isinstance(result.exception, KahunaSyncError), result.output
        assert says in str(result.exception)
    wrong: Any = await run(world, "clock", BUSINESS_HOLIDAYS="Christmas")
    assert "BUSINESS_HOLIDAYS" in str(wrong.exception)


async def test_circuits_are_listed_and_reset(world: World) -> None:
    await world.stop("email", ANN, "manual")
    await world.fault(status=401)
    await world.push()
    listed = await run(world, "circuits", "list")
    assert "credentials-refused" in listed.stdout
    assert "KAHUNA_SECRET_KEY" in listed.stdout
    reset = await run(world, "circuits", "reset", "--channel", "email")
    assert "Closed (credentials-refused)" in reset.stderr
    assert "It was not open" in (await run(world, "circuits", "reset", "--channel", "email")).stderr
    assert "credentials-refused" not in (await run(world, "circuits", "list")).stdout


async def test_the_clock_ends_with_one_while_anything_is_overdue(world: World) -> None:
    quiet = await run(world, "clock")
    assert (quiet.exit_code, quiet.stdout, quiet.stderr) == (0, "", "No stop is overdue; see --state open.\n")
    await world.stop("email", ANN, "unsubscribe", at=1_700_000_000)
    late = await run(world, "clock")
    assert (late.exit_code, "2023-11-14" in late.stdout, ANN in late.stdout) == (1, True, True)
    assert "email: 1 overdue, 0 due soon, 1 open" in late.stderr
    patient = await run(world, "clock", STOP_DUE_BUSINESS_DAYS="366", BUSINESS_WEEKEND="none")
    assert patient.exit_code == 1
    assert "2024-11-14" in patient.stdout


async def test_the_quality_of_callbacks_is_a_table(world: World) -> None:
    entry = {"email": ANN, "reason": "unsub", "timestamp": world.clock.seconds - 60}
    await world.callback("email", [entry, entry])
    words = ("quality", "--since", "2026-03-01", "--until", "2026-03-02")
    table = await run(world, *words)
    assert table.exit_code == 0, table.output
    for word in ("2026-02-23", "email", "50.00%", "60 s"):
        assert word in table.stdout
    rows = (await run(world, *words, "--format", "csv")).stdout.splitlines()
    assert rows[0].startswith("week,channel,callbacks,entries")
    assert rows[1].startswith("2026-02-23,email,1,2,1,0.5")
