"""Two transactions about one address at once: whatever the order, nothing is missed, told twice, or wrongly permitted.

Each test holds one transaction open at the place where the other must wait, and lets both end. That the other does
wait is looked up in the server's own list of locks.
"""

import asyncio
import uuid
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from service.domain.addresses import Channel
from service.flows.ingest import apply_recorded
from service.store import access, batches, outbox, suppressions
from service.store.suppressions import Entry, Provenance
from tests.flows.speaking import World
from tests.flows.test_ingest import NUMBER, counts, suppressed
from tests.flows.test_push import claim, states
from tests.flows.test_reviews import decide, start, waiting


@asynccontextmanager
async def writing(world: World, channel: Channel, address: str, reason: str, at: int) -> AsyncIterator[None]:
    """A stop of ours whose transaction ends with the block."""
    async with world.database.begin() as connection:
        audit_id = await access.write_down(connection, access.Deed("tester", "address.suppress"), world.clock())
        provenance = Provenance("default", channel, "local", "api", world.clock(), audit_id=audit_id)
        await suppressions.apply(
            connection, [Entry(address, address, reason, "suppress", at)], provenance, world.policy
        )
        scope = outbox.Scope("default", channel, world.clock(), world.policy)
        await outbox.owe(connection, scope, {address})
        yield


async def started(world: World, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    """The work, begun and waiting for somebody's lock."""
    task = asyncio.create_task(work)
    for _ in range(500):
        if await world.query("select 1 from pg_locks where not granted") or task.done():
            break
        await asyncio.sleep(0.01)
    assert not task.done(), "it did not wait"
    return task


async def test_a_known_stop_repeated_beside_a_new_one_sends_no_opt_in(world: World) -> None:
    now = world.clock.seconds
    old = {"number": NUMBER, "timestamp": now - 100}
    await world.callback("sms", [old])
    await world.consent("sms", NUMBER, at=now - 50)
    async with writing(world, "sms", NUMBER, "do_not_call", now):
        other = {"number": "15550109999", "timestamp": now - 3}
        task = await started(world, world.callback("sms", [old, other]))
    await task
    while await world.push("sms"):
        pass
    assert (await world.held("sms", NUMBER)).get(None, ("stop", 0))[0] == "stop"
    assert await suppressed(world, "sms", NUMBER)


async def test_a_stop_repeated_while_its_correction_settles_is_told_once(world: World) -> None:
    now = world.clock.seconds
    await world.stop("sms", NUMBER, "do_not_call", at=now - 100)
    claimed, lease = await claim(world)
    scope = outbox.Scope("default", "sms", world.clock(), world.policy)
    async with world.database.begin() as connection:
        await outbox.settle(connection, scope, lease, claimed, outbox.Settlement("sent"))
        task = await started(world, world.stop("sms", NUMBER, "do_not_call", at=now - 100))
    await task
    assert states(await world.corrections()) == ["sent"]


async def test_two_stops_of_one_slot_at_once_leave_one_correction(world: World) -> None:
    now = world.clock.seconds
    await world.callback("sms", [{"number": NUMBER, "timestamp": now - 100, "opt-in": True}])
    await world.stop("sms", NUMBER, "do_not_call", at=now - 60)
    async with writing(world, "sms", NUMBER, "do_not_call", now - 30):
        task = await started(world, world.stop("sms", NUMBER, "do_not_call", at=now - 60))
    await task
    assert states(await world.corrections()) == ["superseded", "pending"]


async def test_a_manual_stop_and_a_start_at_once_do_not_miss_each_other(world: World) -> None:
    """They touch different causes of one slot; the row of the slot's home makes the second one wait."""
    now = world.clock.seconds
    await world.callback("sms", [{"number": NUMBER, "timestamp": now - 200}])
    async with writing(world, "sms", NUMBER, "manual", now - 100):
        task = await started(world, world.callback("sms", start(now - 50)))
    await task
    await world.push("sms")
    assert (await world.held("sms", NUMBER))[None] == ("stop", now - 49)


async def test_an_opt_in_waits_for_a_stop_of_ours_that_is_being_written(world: World) -> None:
    now = world.clock.seconds
    async with writing(world, "sms", NUMBER, "do_not_call", now - 100):
        task = await started(world, world.callback("sms", start(now - 50)))
    await task
    assert [row["why"] for row in await waiting(world)] == ["local-stop"]
    assert await suppressed(world, "sms", NUMBER)


async def test_many_writers_of_one_slot_end_with_one_truth(world: World) -> None:
    now = world.clock.seconds
    work: list[Coroutine[Any, Any, Any]] = []
    for n in range(12):
        work.append(world.stop("sms", NUMBER, ("manual", "do_not_call", "invalid")[n % 3], at=now - 100 + n))
        work.append(world.callback("sms", [{"number": NUMBER, "timestamp": now - 300 + n}]))
        work.append(world.push("sms"))
    await asyncio.gather(*work)
    while await world.push("sms"):
        world.clock.sleep(1)
    # Kahuna tells of stops itself, so there may have been nothing left to send it.
    assert {action for action, _ in (await world.held("sms", NUMBER)).values()} <= {"stop"}
    assert await suppressed(world, "sms", NUMBER)
    [slot] = await world.query("select held_stop_at, held_clear_at from suppressions where reason = 'do_not_call'")
    assert (slot.held_stop_at is not None, slot.held_clear_at) == (True, None)
    assert not {"pending", "sending", "dead"} & set(states(await world.corrections()))


async def test_two_sweepers_apply_a_batch_once(world: World) -> None:
    await world.execute("alter table facts rename to facts_away")
    await world.callback("email", [{"reason": "unsub", "email": "a@example.com"}])
    await world.execute("alter table facts_away rename to facts")
    async with world.database.begin() as connection:
        assert await batches.next_unapplied(connection, world.clock()) is not None
        assert not await apply_recorded(world.database, world.rules, world.clock), "it is left to the one that has it"
    assert await apply_recorded(world.database, world.rules, world.clock)
    assert len(await world.query("select 1 from facts")) == 1


@pytest.mark.parametrize("late_first", [True, False])
async def test_no_order_of_entries_lets_an_opt_in_past_the_review(world: World, late_first: bool) -> None:
    """A stop of Kahuna's after ours does not hide ours."""
    now = world.clock.seconds
    await world.stop("sms", NUMBER, "do_not_call", at=now - 100)
    stop, early = [{"number": NUMBER, "timestamp": now - 50}], start(now - 75)
    for entries in [stop, early] if late_first else [early, stop]:
        await world.callback("sms", entries)
    await world.callback("sms", start(now - 25))
    assert len(await waiting(world)) == 2
    assert await suppressed(world, "sms", NUMBER)


async def test_a_refused_opt_in_never_becomes_a_fact(world: World) -> None:
    now = world.clock.seconds
    await world.stop("sms", NUMBER, "do_not_call", at=now - 100)
    await world.callback("sms", start(now - 50))
    await decide(world, "refused")
    await world.callback("sms", [{"number": NUMBER, "timestamp": now - 40}])
    again = await world.callback("sms", [*start(now - 50), {"number": "15550109999", "timestamp": now}])
    assert counts(again.outcome) == (1, 1, 0)
    assert not await world.query("select 1 from facts where action = 'clear'")


async def test_a_stop_without_a_time_is_not_before_an_opt_in_dated_ahead(world: World) -> None:
    now = world.clock.seconds
    await world.callback("sms", start(now + 120))
    world.clock.sleep(30)
    await world.stop("sms", NUMBER, "do_not_call")
    assert await suppressed(world, "sms", NUMBER)


async def test_nothing_is_known_of_a_lease_that_is_another_s(world: World) -> None:
    """A correction under somebody else's lease is neither settled, renewed nor freed."""
    await world.stop("sms", NUMBER, "do_not_call")
    claimed, lease = await claim(world)
    scope, stranger = outbox.Scope("default", "sms", world.clock(), world.policy), uuid.uuid4()
    async with world.database.begin() as connection:
        assert await outbox.settle(connection, scope, stranger, claimed, outbox.Settlement("rejected")) == 0
        assert await outbox.renew(connection, stranger, world.clock()) == 0
        assert await outbox.release(connection, stranger, world.clock()) == 0
        assert await outbox.release_expired(connection, world.clock()) == 0
        assert await outbox.renew(connection, lease, world.clock()) == 1
    assert states(await world.corrections()) == ["sending"]


async def test_a_refused_opt_in_stays_none_even_when_our_stop_is_over(world: World) -> None:
    now = world.clock.seconds
    await world.stop("sms", NUMBER, "do_not_call", at=now - 100)
    await world.callback("sms", start(now - 50))
    await decide(world, "refused")
    await world.consent("sms", NUMBER, at=now - 40)
    again = await world.callback("sms", [*start(now - 50), {"number": "15550109999", "timestamp": now}])
    assert counts(again.outcome) == (1, 1, 0)
    assert not await world.query("select 1 from facts where action = 'clear' and source = 'kahuna'")


async def test_a_retry_gives_way_to_a_newer_correction(world: World) -> None:
    now = world.clock.seconds
    await world.stop("sms", NUMBER, "do_not_call", at=now - 10)
    claimed, lease = await claim(world)
    await world.consent("sms", NUMBER, at=now - 5)
    scope = outbox.Scope("default", "sms", world.clock(), world.policy)
    async with world.database.begin() as connection:
        await outbox.settle(connection, scope, lease, claimed, outbox.Settlement("pending", "ambiguous"))
    assert [(row.action, row.state) for row in await world.corrections()] == [
        ("suppress", "superseded"),
        ("clear", "pending"),
    ]
