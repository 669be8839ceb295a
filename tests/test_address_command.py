"""Why an address is suppressed, in the shell."""

import json
import os
from collections.abc import AsyncIterator
from functools import partial

import anyio
import pytest
from click.testing import CliRunner

from service.__main__ import SECTIONS, cli
from service.errors import SettingsError
from service.settings import Settings
from service.store.database import Database
from tests.flows.desk import ANN, dead
from tests.flows.speaking import World
from tests.flows.test_retract import lines, take_in
from tests.test_desk_command import run


@pytest.fixture
async def world(database: Database, settings: Settings) -> AsyncIterator[World]:
    made = World(database, settings)
    async with made.control:
        yield made


async def test_the_sentence_the_causes_and_what_was_noted(world: World) -> None:
    row = await dead(world)
    answer = await run(world, "address", ANN)
    assert answer.exit_code == 0, answer.output
    assert answer.stdout.startswith(f"{ANN} (email, namespace default)\nMay not be messaged: ")
    for word in (
        "Causes",
        "unsubscribe",
        "yes",
        f"correction {row.id}",
        "dead (bad-request)",
        "suppress unsubscribe of",
    ):
        assert word in answer.stdout, word


async def test_it_is_the_history_of_the_api_and_may_come_from_standard_input(world: World) -> None:
    await world.callback("sms", [{"number": "15550100001", "timestamp": world.clock.seconds}])
    environ = dict.fromkeys(os.environ) | {"DATABASE_URL": world.settings.database_url, "PATH": os.environ["PATH"]}
    invoke = partial(CliRunner().invoke, cli, ["address", "-", "--json"], env=environ, input="+1 555 010 0001\n")
    answer = await anyio.to_thread.run_sync(invoke)
    told = json.loads(answer.stdout)
    assert (told["channel"], told["address"], told["verdict"]["suppressed"]) == ("sms", "15550100001", True)
    assert [event["kind"] for event in told["events"]] == ["fact"]


async def test_what_was_taken_back_and_who_asked_is_told(world: World) -> None:
    one = await take_in(world, lines(("ann@example.com", 100)))
    assert (await run(world, "revert", "import", str(one.id), "--note", "wrong file")).exit_code == 0
    answer = await run(world, "address", "ann@example.com")
    assert "taken back" in answer.stdout
    assert f"of the import {one.id}: wrong file" in answer.stdout
    assert "there is more (--limit)" in (await run(world, "address", "ann@example.com", "--limit", "1")).stderr


async def test_nobody_knows_it_or_it_cannot_be_one(world: World) -> None:
    answer = await run(world, "address", "nobody@example.com")
    assert (answer.exit_code, "Nothing was ever noted" in answer.stderr) == (0, True)
    wrong = await run(world, "address", "nobody", "--channel", "email")
    assert isinstance(wrong.exception, SettingsError)
    assert "cannot be an address" in str(wrong.exception)


def test_every_command_is_in_one_section_of_the_help() -> None:
    assert sorted(name for names in SECTIONS.values() for name in names) == sorted(cli.commands)
    shown = CliRunner().invoke(cli, ["--help"]).stdout
    assert [line[:-1] for line in shown.splitlines() if line.endswith(":")][1:] == list(SECTIONS)
    assert "Others" not in shown
