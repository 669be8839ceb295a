"""What our own people say: stops at once, and new consent that ends them, never a stop that is newer."""

import pytest

from service.errors import Conflict, Unprocessable
from tests.flows.speaking import World
from tests.flows.test_ingest import NUMBER, suppressed


async def test_a_consent_ends_every_stop_of_the_channel_up_to_its_time(world: World) -> None:
    now = world.clock.seconds
    for reason in ("do_not_call", "manual", "invalid"):
        await world.stop("sms", NUMBER, reason, at=now - 100)
    await world.callback("sms", [{"number": NUMBER, "timestamp": now - 90}])
    await world.consent("sms", NUMBER, at=now - 50)
    assert not await suppressed(world, "sms", NUMBER)


@pytest.mark.parametrize("age", [50, 40])
async def test_a_stop_at_or_after_the_consent_refuses_it_and_nothing_stays(world: World, age: int) -> None:
    now = world.clock.seconds
    await world.stop("email", "a@example.com", "complaint", at=now - age)
    with pytest.raises(Conflict, match="complaint") as refusal:
        await world.consent("email", "a@example.com", at=now - 50)
    assert refusal.value.reason == "newer-stop"
    assert len(await world.query("select 1 from facts")) == 1
    assert await world.query("select action from audit") == [("address.suppress",)]


async def test_a_genuine_stop_that_arrives_late_but_is_newer_still_wins(world: World) -> None:
    now = world.clock.seconds
    await world.consent("email", "a@example.com", at=now - 50)
    await world.callback("email", [{"reason": "unsub", "email": "a@example.com", "timestamp": now - 60}])
    assert not await suppressed(world, "email", "a@example.com")
    await world.callback("email", [{"reason": "unsub", "email": "a@example.com", "timestamp": now - 40}])
    assert await suppressed(world, "email", "a@example.com")


async def test_a_kahuna_start_does_not_end_a_manual_stop(world: World) -> None:
    now = world.clock.seconds
    await world.stop("sms", NUMBER, "manual", at=now - 100)
    await world.callback("sms", [{"number": NUMBER, "timestamp": now - 50, "opt-in": True}])
    assert await suppressed(world, "sms", NUMBER)


@pytest.mark.parametrize(
    ("channel", "address", "reason", "slug"),
    [
        ("email", "a@example.com", "do_not_call", "unknown-reason"),
        ("sms", NUMBER, "unsubscribe", "unknown-reason"),
        ("email", "nobody", "manual", "impossible-address"),
        ("sms", "12", "manual", "impossible-address"),
    ],
)
async def test_what_cannot_be_is_refused(world: World, channel: str, address: str, reason: str, slug: str) -> None:
    with pytest.raises(Unprocessable) as refusal:
        await world.stop(channel, address, reason)  # type: ignore[arg-type]  # parameters are plain text
    assert refusal.value.reason == slug
    assert address not in str(refusal.value)


async def test_a_time_in_the_future_is_refused(world: World) -> None:
    with pytest.raises(Unprocessable):
        await world.stop("email", "a@example.com", "manual", at=world.clock.seconds + 301)
    await world.stop("email", "a@example.com", "manual", at=world.clock.seconds + 300)


async def test_each_write_is_in_the_audit_log_and_is_its_fact_s_evidence(world: World) -> None:
    await world.stop("email", "a@example.com", "manual")
    rows = await world.query("select a.actor, f.batch_id from facts f join audit a on a.id = f.audit_id")
    assert rows == [("tester", None)]
