"""Who opted out by the word of Kahuna's logs, too, stays suppressed when the callback's word is taken back."""

import uuid
from datetime import timedelta
from typing import Any

import pytest

from service.flows import bounces as soft
from service.flows import retract, upkeep
from service.flows.surges import Limits
from service.flows.upkeep import Retention
from service.store.retractions import Evidence, Retraction
from tests.flows.logs import act, facts, pulled
from tests.flows.speaking import World
from tests.flows.test_rebuild import DAY, disagreements
from tests.flows.test_replay import replayed
from tests.flows.test_retract import carry_out, listed
from tests.flows.test_surges import begin, bounces, look, revert

HOUR = 3600
DOMAIN = "mail.example.com"
A = f"a1@{DOMAIN}"
LIMITS = Limits(timedelta(minutes=10), domain=5, minute=100)


async def surged(world: World, reason: str = "unsub") -> Any:
    """Callbacks of seven people, flagged as one group."""
    await world.callback("email", bounces(world, DOMAIN, *range(7), reason=reason))
    [surge] = await look(world, LIMITS)
    return surge


@pytest.mark.parametrize("apart", [0, 5, 200])
async def test_a_record_stands_when_its_callback_is_taken_back(world: World, apart: int) -> None:
    await begin(world)
    await act(world, "unsub", A)
    at = world.clock.seconds
    world.clock.sleep(5 + apart)
    surge = await surged(world)
    assert (await pulled(world)).counts["facts"] == 0
    await revert(world, surge.id)
    assert await listed(world, f"a2@{DOMAIN}") == {}
    assert await facts(world) == [(A, "unsubscribe", at, "kahuna_logs")]
    cause = (await listed(world, A))["unsubscribe"]
    assert (cause.stop_at, cause.clear_at) == (at, None)
    [row] = await world.query("select counts from retractions")
    assert (row.counts["facts"], row.counts["logged"]) == (7, 1)
    assert await disagreements(world) == []
    assert (await replayed(world))["changed"] == 0
    assert (await pulled(world)).counts["facts"] == 0, "read again, it is known"
    assert await world.corrections() == [], "Kahuna told it, and is told nothing back"


async def test_without_a_record_nothing_stands(world: World) -> None:
    """Also with one of another reason, or of another time: that is another event, and a fact of its own."""
    await begin(world)
    await act(world, "spam", A)
    world.clock.sleep(400)
    surge = await surged(world)
    await pulled(world)
    await revert(world, surge.id)
    assert set(await listed(world, A)) == {"complaint"}
    assert [one[0] for one in await facts(world)] == [A]
    assert await disagreements(world) == []


async def test_as_long_as_another_callback_told_it_the_record_is_evidence(world: World) -> None:
    await begin(world)
    await act(world, "unsub", A)
    await world.callback("email", bounces(world, "else.example.com", 1))
    surge = await surged(world)
    told = {"reason": "unsub", "email": A, "timestamp": world.clock.seconds - 800}
    await world.callback("email", [told])
    await pulled(world)
    await revert(world, surge.id)
    assert [one[2:] for one in await facts(world) if one[0] == A] == [(told["timestamp"], "kahuna_webhook")]
    assert await disagreements(world) == []


async def test_a_soft_bounce_that_made_way_for_its_callback_comes_back(world: World) -> None:
    await begin(world)
    await act(world, "soft_bounce", A)
    at = world.clock.seconds
    world.clock.sleep(20)
    await pulled(world)
    surge = await surged(world, "soft_bounce")
    assert await soft.settle(world.database, "default", world.rules, world.clock) == 1
    await revert(world, surge.id)
    assert (await listed(world, A))["soft_bounce"].bounces == (at,)
    assert await disagreements(world) == []


async def test_a_record_whose_own_word_was_taken_back_does_not(world: World) -> None:
    """First the run that had read it is undone, then the callback of the same event."""
    await begin(world)
    await act(world, "unsub", A)
    world.clock.sleep(20)
    done = await pulled(world)
    assert done.counts["facts"] == 1
    surge = await surged(world)
    await pulled(world)
    asked = Retraction(uuid.uuid4(), "default", "email", "run", uuid.uuid4(), "tester", "wrong")
    async with world.database.begin() as connection:
        await retract.request(connection, asked, Evidence(done.batches), world.clock())
    await carry_out(world)
    await pulled(world)
    await revert(world, surge.id)
    assert await facts(world) == []
    assert await disagreements(world) == []


async def test_records_go_with_the_archive_of_their_callbacks(world: World) -> None:
    await act(world, "unsub", A)
    await world.callback("email", bounces(world, DOMAIN, 1, reason="unsub"))
    world.clock.sleep(20)
    await pulled(world)
    assert await world.query("select address, timed from log_evidence") == [(A, True)]
    kept = Retention(archive=timedelta(days=40))
    for days, left in ((1, 1), (80, 0)):
        world.clock.sleep(days * DAY)
        await upkeep.run_due(world.database, world.rules, kept, world.clock)
        world.clock.sleep(2 * HOUR)
        await upkeep.run_due(world.database, world.rules, kept, world.clock)
        assert len(await world.query("select 1 from log_evidence")) == left
