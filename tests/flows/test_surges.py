"""Stops in unusual number are applied like any, flagged as one group behind that, and taken back as one."""

import uuid
from datetime import timedelta
from typing import Any

import pytest
from structlog.testing import capture_logs

from service.errors import Conflict
from service.flows import retract, surges
from service.flows.surges import Limits
from service.store.database import Connection
from tests.flows.speaking import World
from tests.flows.test_rebuild import disagreements
from tests.flows.test_retract import carry_out, listed

LIMITS = Limits(timedelta(minutes=10), domain=5, minute=8)


def bounces(world: World, domain: str, *numbers: int, reason: str = "hard_bounce") -> list[dict[str, Any]]:
    return [{"reason": reason, "email": f"a{n}@{domain}", "timestamp": world.clock.seconds - 5} for n in numbers]


async def look(world: World, limits: Limits = LIMITS) -> list[Any]:
    """What is flagged once every window that has ended was looked over."""
    world.clock.sleep(15 * 60)
    while await surges.look(world.database, limits, world.clock):
        pass
    return await world.query("select * from surges order by kind, key, reason")


async def begin(world: World) -> None:
    """The first look finds where the feed is."""
    assert not await surges.look(world.database, LIMITS, world.clock)
    world.clock.sleep(60)


async def revert(world: World, surge_id: uuid.UUID) -> None:
    async with world.database.begin() as connection:
        await retract.request_surge(connection, surge_id, "tester", "a fault of the provider's", None, world.clock())
    await carry_out(world)


async def test_a_domain_in_unusual_number_is_one_group_and_taken_back_as_one(world: World) -> None:
    await world.callback("email", bounces(world, "old.example.com", *range(9)))
    await begin(world)
    genuine = bounces(world, "mail.example.com", 7, reason="unsub")
    for n in range(6):
        await world.callback(
            "email", [*bounces(world, "mail.example.com", n), *bounces(world, "else.example.com", n // 2)]
        )
    await world.callback("email", genuine + bounces(world, "mail.example.com", 7))
    with capture_logs() as logs:
        [found] = await look(world, Limits(timedelta(minutes=10), domain=5, minute=100))
    assert (found.kind, found.key, found.reason, found.count, found.state) == (
        "domain",
        "mail.example.com",
        "hard_bounce",
        7,
        "flagged",
    )
    [line] = [one for one in logs if one["event"] == "surge.flagged"]
    assert "mail.example.com" not in str(line)
    assert set(await listed(world, "a0@mail.example.com")) == {"hard_bounce"}
    await revert(world, found.id)
    assert await listed(world, "a0@mail.example.com") == {}
    assert set(await listed(world, "a0@else.example.com")) == {"hard_bounce"}
    assert set(await listed(world, "a7@mail.example.com")) == {"unsubscribe"}
    assert set(await listed(world, "a0@old.example.com")) == {"hard_bounce"}
    assert await disagreements(world) == []
    await world.callback("email", genuine + bounces(world, "mail.example.com", 7))
    await world.callback("email", bounces(world, "mail.example.com", 0))
    assert set(await listed(world, "a0@mail.example.com")) == {"hard_bounce"}, "a new word counts again"
    assert await disagreements(world) == []


async def test_a_trial_counts_what_large_batches_say_too(world: World) -> None:
    await begin(world)
    for n in range(6):
        await world.callback("email", bounces(world, "mail.example.com", n))
    await world.execute("update batches set body_bytes = 20000000")
    [found] = await look(world)

    async def ask(connection: Connection) -> uuid.UUID:
        return await retract.request_surge(connection, found.id, "tester", "tried only", None, world.clock())

    counts = await retract.preview(world.database, world.rules, ask, lambda _: None)
    assert counts["facts"] == 6


async def test_a_minute_in_unusual_number_is_one_group(world: World) -> None:
    await begin(world)
    numbers = [{"number": f"1555010{n:04}", "timestamp": world.clock.seconds} for n in range(8)]
    await world.callback("sms", numbers)
    world.clock.sleep(60)
    await world.callback("sms", [{"number": "15550109999", "timestamp": world.clock.seconds}])
    [found] = await look(world)
    assert (found.kind, found.key, found.count) == ("minute", "2026-03-01T12:01:00+00:00", 8)
    await revert(world, found.id)
    assert await listed(world, "15550100001", "sms") == {}
    assert set(await listed(world, "15550109999", "sms")) == {"do_not_call"}
    assert await disagreements(world) == []


async def test_what_is_usual_is_not_flagged_and_nothing_is_looked_at_twice(world: World) -> None:
    await begin(world)
    await world.callback("email", bounces(world, "mail.example.com", *range(4)))
    for n in range(9):  # our own people's, however many
        await world.stop("email", f"b{n}@mail.example.com", "hard_bounce")
    assert await look(world) == []
    await world.callback("email", bounces(world, "mail.example.com", *range(10, 14)))
    assert await look(world) == []


async def test_one_that_goes_on_is_one_group_until_it_is_decided(world: World) -> None:
    await begin(world)
    await world.callback("email", bounces(world, "mail.example.com", *range(5)))
    [first] = await look(world)
    await world.callback("email", bounces(world, "mail.example.com", *range(10, 16)))
    [more] = await look(world)
    assert (more.id, more.count) == (first.id, 11)
    kept = await surges.keep(world.database, first.id, "tester", "genuine", world.clock, None)
    assert (kept.state, kept.decided_by, kept.note) == ("kept", "tester", "genuine")
    with pytest.raises(Conflict):
        await surges.keep(world.database, first.id, "tester", None, world.clock, None)
    with pytest.raises(Conflict):
        await revert(world, first.id)
    await world.callback("email", bounces(world, "mail.example.com", *range(20, 26)))
    assert [one.count for one in await look(world)] in ([11, 6], [6, 11])


async def test_one_worker_at_a_time_looks(world: World) -> None:
    await begin(world)
    await world.callback("email", bounces(world, "mail.example.com", *range(5)))
    world.clock.sleep(15 * 60)
    await world.execute("update leases set ends_at = '2100-01-01' where name = 'surges'")
    assert not await surges.look(world.database, LIMITS, world.clock)
    await world.execute("update leases set ends_at = '2000-01-01' where name = 'surges'")
    assert await surges.look(world.database, LIMITS, world.clock)
