"""The clock of open stops: from when to when a stop that Kahuna has to learn of counts as open."""

from typing import Any

import pytest

from service.domain.deadlines import Calendar, due_by
from service.store import deadlines
from tests.flows.desk import ANN, DAY, NUMBER, dead, discard, rejected
from tests.flows.speaking import World


async def open_stops(world: World, **asked: Any) -> list[Any]:
    async with world.database.read() as connection:
        return list(await deadlines.listed(connection, deadlines.Asked("default", **asked), None, 100))


async def counts(world: World) -> list[tuple[str, int, int, int]]:
    now, ten = world.clock.seconds, Calendar()
    async with world.database.read() as connection:
        found = await deadlines.counted(connection, due_by(now, ten), due_by(now + ten.soon, ten))
    return [(one.channel, one.overdue, one.due_soon, one.open) for one in found]


async def test_a_stop_is_open_until_kahuna_accepts_it(world: World) -> None:
    await world.stop("email", ANN, "unsubscribe", at=world.clock.seconds - DAY)
    [stop] = await open_stops(world)
    assert (stop.address, stop.state, stop.stopped_at) == (ANN, "pending", world.clock.seconds - DAY)
    assert await counts(world) == [("email", 0, 0, 1)]
    world.clock.sleep(12 * DAY)
    assert await counts(world) == [("email", 0, 1, 1)]
    world.clock.sleep(3 * DAY)
    assert await counts(world) == [("email", 1, 0, 1)]
    await world.push()
    assert (await open_stops(world), await counts(world)) == ([], [])


async def test_what_kahuna_told_us_was_never_open(world: World) -> None:
    await world.callback("email", [{"reason": "unsub", "email": ANN, "timestamp": world.clock.seconds}])
    assert await open_stops(world) == []


@pytest.mark.parametrize("given_up", [dead, rejected])
async def test_a_stop_that_was_given_up_stays_open_until_it_is_settled(world: World, given_up: Any) -> None:
    await given_up(world)
    [stop] = await open_stops(world)
    await discard(world, stop.id)
    assert await open_stops(world) == []


@pytest.mark.parametrize("given_up", [dead, rejected])
async def test_kahuna_may_learn_of_it_in_another_way(world: World, given_up: Any) -> None:
    await given_up(world)
    await world.callback("email", [{"reason": "unsub", "email": ANN, "timestamp": world.clock.seconds}])
    assert await open_stops(world) == []


@pytest.mark.parametrize("given_up", [dead, rejected])
async def test_a_consent_ends_it(world: World, given_up: Any) -> None:
    await given_up(world)
    await world.consent("email", ANN)
    assert await open_stops(world) == []


async def test_saying_it_again_gives_nobody_more_time(world: World) -> None:
    first = world.clock.seconds
    await dead(world, at=first)
    world.clock.sleep(5 * DAY)
    await world.stop("email", ANN, "unsubscribe")
    world.clock.sleep(5 * DAY)
    await world.stop("email", ANN, "manual")
    [stop] = await open_stops(world)
    assert (stop.state, stop.stopped_at) == ("pending", first)
    await world.push()
    world.clock.sleep(DAY)
    await world.stop("email", ANN, "manual")
    assert await open_stops(world) == [], "Kahuna holds it already"


async def test_a_stop_after_a_consent_begins_anew(world: World) -> None:
    await dead(world)
    world.clock.sleep(DAY)
    await world.consent("email", ANN)
    world.clock.sleep(DAY)
    await world.stop("email", ANN, "unsubscribe")
    [stop] = await open_stops(world)
    assert stop.stopped_at == world.clock.seconds


async def test_a_start_against_our_stop_counts_from_the_start(world: World) -> None:
    now = world.clock.seconds
    await world.stop("sms", NUMBER, "manual", at=now - 9 * DAY)
    await world.push("sms")
    await world.callback("sms", [{"number": NUMBER, "timestamp": now - 50, "opt-in": True}])
    [stop] = await open_stops(world)
    assert stop.stopped_at == now - 49


async def test_two_refusals_of_one_slot_are_one_stop(world: World) -> None:
    first = (await rejected(world)).occurred_at
    world.clock.sleep(DAY)
    await rejected(world)
    assert len(await world.corrections("rejected")) == 2
    [stop] = await open_stops(world)
    assert stop.stopped_at == first


async def test_the_clock_is_read_page_by_page_and_narrowed(world: World) -> None:
    now = world.clock.seconds
    for n in range(5):
        await world.stop("email", f"a{n}@example.com", "complaint", at=now - n // 2)
    await world.stop("sms", NUMBER, "do_not_call", at=now)
    found: list[int] = []
    after: deadlines.Place | None = None
    asked = deadlines.Asked("default", channel="email")
    while True:
        async with world.database.read() as connection:
            rows = await deadlines.listed(connection, asked, after, 2)
        found += [row.id for row in rows]
        if len(rows) < 2:
            break
        after = deadlines.Place(rows[-1].stopped_at, rows[-1].id)
    everything = await open_stops(world, channel="email")
    assert found == [row.id for row in everything]
    assert len(set(found)) == 5
    assert len(await open_stops(world, channel="email", slot="complaint", state="pending")) == 5
    assert await open_stops(world, slot="invalid") == []
    assert len(await open_stops(world, above=now - 1, up_to=now)) == 3
