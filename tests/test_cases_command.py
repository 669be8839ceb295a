"""What waits for a person, and what was done to the list as one, in the shell."""

import json
import uuid
from collections.abc import AsyncIterator
from importlib.metadata import version
from typing import Any

import pytest

from service.settings import Settings
from service.store.database import Database
from tests.flows.logs import mailed, pulled
from tests.flows.speaking import World
from tests.flows.test_ingest import unsub
from tests.flows.test_retract import lines, take_in
from tests.test_desk_command import run

GROUPS = ("quarantine", "reviews", "imports", "surges", "retractions")


@pytest.fixture
async def world(database: Database, settings: Settings) -> AsyncIterator[World]:
    made = World(database, settings)
    async with made.control:
        yield made


async def told(world: World, *words: str) -> Any:
    answer = await run(world, *words, "--json")
    assert answer.exit_code == 0, answer.output
    return json.loads(answer.stdout)


@pytest.mark.parametrize("group", GROUPS)
async def test_an_empty_list_says_what_would_stand_there(world: World, group: str) -> None:
    answer = await run(world, group, "list")
    assert (answer.exit_code, answer.stdout) == (0, "")
    assert "stand" in answer.stderr
    assert await told(world, group, "list") == []


@pytest.mark.parametrize(
    "words",
    [("imports", "show"), ("retractions", "show"), ("reviews", "approve"), ("surges", "keep"), ("surges", "show")],
)
async def test_what_is_not_there_names_the_list(world: World, words: tuple[str, str]) -> None:
    answer = await run(world, *words, str(uuid.uuid4()))
    assert f"kahuna-sync {words[0]} list" in str(answer.exception)


async def test_quarantine_from_the_list_to_the_decision(world: World) -> None:
    bored = [{"email": f"{n}@example.com", "reason": "bored", "timestamp": world.clock.seconds} for n in range(3)]
    await world.callback("email", bored)
    shown = await run(world, "quarantine", "list")
    assert "unknown-reason" in shown.stdout
    found = await told(world, "quarantine", "list", "--error", "unknown-reason")
    place = (found[0]["batch_id"], "1")
    assert "1@example.com" in (await told(world, "quarantine", "show", *place))["entry"]
    again = await run(world, "quarantine", "requeue", *place)
    assert again.exit_code == 1, "it is not understood today either"
    assert "still not understood (unknown-reason)" in again.stderr
    assert "EXTRA_REASONS" in again.stderr
    every = await run(world, "quarantine", "requeue", "--all")
    assert (every.exit_code, "Still not understood: 3" in every.stderr) == (1, True)
    gone = await told(world, "quarantine", "discard", *place, "--note", "a test of theirs")
    assert (gone["state"], gone["decided_by"], gone["note"]) == ("discarded", "shell", "a test of theirs")
    twice = await run(world, "quarantine", "discard", *place, "--reason", "again")
    assert "discarded already" in str(twice.exception)
    understood = await run(world, "quarantine", "requeue", "--all", EXTRA_REASONS="bored=unsubscribe")
    assert understood.exit_code == 0, understood.output
    assert {one["state"] for one in await told(world, "quarantine", "list", "--state", "requeued")} == {"requeued"}
    assert (await run(world, "quarantine", "requeue")).exit_code == 2
    assert (await run(world, "quarantine", "discard", *place, "--note", " ")).exit_code == 2


async def test_a_review_is_decided(world: World) -> None:
    await world.stop("sms", "15550100001", "do_not_call", at=world.clock.seconds - 60)
    await world.callback("sms", [{"number": "15550100001", "opt-in": True, "timestamp": world.clock.seconds}])
    [waits] = await told(world, "reviews", "list")
    assert "15550100001" in (await run(world, "reviews", "list")).stdout
    done = await told(world, "reviews", "approve", waits["id"], "--note", "she called")
    assert (done["state"], done["note"], done["decided_by"]) == ("approved", "she called", "shell")
    again = await run(world, "reviews", "refuse", waits["id"])
    assert "approved already" in str(again.exception)


async def test_an_import_and_its_retraction(world: World) -> None:
    one = await take_in(world, lines(("ann@example.com", 100)))
    [listed] = await told(world, "imports", "list")
    assert (listed["id"], listed["counts"]["accepted"], listed["retraction_id"]) == (str(one.id), 1, None)
    assert (await run(world, "revert", "import", str(one.id), "--note", "wrong file")).exit_code == 0
    [undone] = await told(world, "retractions", "list")
    assert (undone["of"], undone["state"], undone["counts"]["facts"]) == (str(one.id), "done", 1)
    assert (await told(world, "imports", "show", str(one.id)))["retraction_id"] == undone["id"]
    assert (await told(world, "retractions", "show", undone["id"]))["unsupported"] == []
    for words in (("imports", "list"), ("retractions", "list"), ("retractions", "show", undone["id"])):
        assert str(one.id) in (await run(world, *words)).stdout


async def test_a_surge_is_kept(world: World) -> None:
    await world.execute(
        "insert into surges (id, namespace, channel, reason, kind, key, count, first_at, last_at, flagged_at) values "
        "(gen_random_uuid(), 'default', 'email', 'unsubscribe', 'domain', 'example.com', 9, now(), now(), now())"
    )
    [flagged] = await told(world, "surges", "list", "--state", "flagged")
    kept = await told(world, "surges", "keep", flagged["id"], "--note", "a campaign")
    assert (kept["state"], kept["note"]) == ("kept", "a campaign")
    assert await told(world, "surges", "show", flagged["id"]) == kept
    assert "campaign" in (await run(world, "surges", "list")).stdout


async def test_messages_against_a_stop_are_listed(world: World) -> None:
    empty = await run(world, "violations")
    assert (empty.stdout, "stand here" in empty.stderr) == ("", True)
    await world.callback("email", [unsub("ann@example.com", world.clock.seconds)])
    world.clock.sleep(3600)
    await mailed(world, "ann@example.com")
    world.clock.sleep(3600)
    await pulled(world)
    [found] = await told(world, "violations", "--known-by", "kahuna")
    assert (found["address"], found["message"]["campaign"], found["stop"]["reason"]) == (
        "ann@example.com",
        "Newsletter",
        "unsubscribe",
    )
    assert await told(world, "violations", "--known-by", "us") == []
    shown = (await run(world, "violations", "--since", "2020-01-01T00:00:00Z")).stdout
    assert all(word in shown for word in ("ann@example.com", "Newsletter", "unsubscribe", "kahuna"))


async def test_the_release_is_told(world: World) -> None:
    answer = await run(world, "--version")
    assert answer.output == f"kahuna-sync {version('kahuna-sync')}\n"
