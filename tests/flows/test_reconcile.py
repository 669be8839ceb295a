"""A reconciliation by the ledger finds what the outbox does not know, repairs it, and then finds nothing."""

import uuid
from typing import Any

from service.domain.addresses import Channel
from service.domain.facts import Fact
from service.flows import reconcile
from service.store import access, reconciliations, suppressions
from service.store.access import Deed
from service.store.reconciliations import Run
from service.store.suppressions import Entry, Provenance
from tests.flows.speaking import World


async def run(world: World, channel: Channel = "email", *, auto_approve: bool = True) -> Any:
    asked = Run(uuid.uuid4(), "default", channel, "ledger", auto_approve, "tester")
    await reconcile.queue(world.database, asked, world.clock)
    await reconcile.run_next(world.database, world.policy, world.clock, run_id=asked.id)
    async with world.database.read() as connection:
        return await reconciliations.one(connection, asked.id)


async def load_behind_our_back(world: World, addresses: list[str], reason: str = "manual") -> None:
    """Facts that got into the list without their corrections, as after a restore of the outbox alone."""
    now = world.clock.seconds
    stated = [Fact("default", "email", a, reason, "suppress", now, "local") for a in addresses]
    async with world.database.begin() as connection:
        deed = Deed("somebody", "list.loaded", "default", "email", facts=stated)
        audit_id = await access.write_down(connection, deed, world.clock())
        provenance = Provenance("default", "email", "local", "operator", world.clock(), audit_id=audit_id)
        entries = [Entry(a, a, reason, "suppress", now) for a in addresses]
        await suppressions.apply(connection, entries, provenance, world.policy)


async def test_drift_is_found_repaired_and_gone(world: World) -> None:
    await load_behind_our_back(world, [f"a{n}@example.com" for n in range(5)])
    found = await run(world)
    assert (found.state, found.counts["missing_there"], found.counts["corrections"]) == ("applied", 5, 5)
    while await world.push():
        pass
    assert (await run(world)).counts == {}
    assert len(await world.corrections("sent")) == 5


async def test_a_run_that_is_not_approved_only_writes_down(world: World) -> None:
    await load_behind_our_back(world, ["a@example.com"])
    found = await run(world, auto_approve=False)
    assert (found.state, found.counts["proposed"]) == ("planned", 1)
    assert await world.corrections() == []
    async with world.database.read() as connection:
        [difference] = await reconciliations.differences_of(connection, found.id, 10)
    assert (difference.kind, difference.action, difference.slot) == ("missing_there", "suppress", "unsubscribe")


async def test_a_consistent_list_has_no_differences(world: World) -> None:
    now = world.clock.seconds
    await world.callback("email", [{"reason": "spam", "email": "a@example.com", "timestamp": now}])
    await world.callback("sms", [{"number": "15550100001", "timestamp": now}])
    await world.stop("email", "b@example.com", "hard_bounce")
    await world.push()
    assert [(await run(world, channel)).counts for channel in ("email", "sms")] == [{}, {}]


async def test_what_is_on_its_way_is_not_proposed_again(world: World) -> None:
    await world.stop("email", "a@example.com", "manual")
    found = await run(world)
    assert (found.counts["on_its_way"], found.counts.get("corrections", 0)) == (1, 0)
    assert len(await world.corrections()) == 1


async def test_dead_corrections_are_proposed_again_and_refused_ones_are_not(world: World) -> None:
    await world.stop("email", "dead@example.com", "manual")
    await world.fault(status=400, times=1)
    await world.push()
    await world.stop("email", "refused@example.com", "manual")
    await world.fault(reject=["refused@example.com"], times=1)
    await world.push()
    found = await run(world)
    assert (found.counts["proposed"], found.counts["refused"], found.counts["corrections"]) == (1, 1, 1)
    await world.push()
    assert [row.address for row in await world.corrections("sent")] == ["dead@example.com"]


async def test_what_the_api_cannot_say_is_reported_apart(world: World) -> None:
    now = world.clock.seconds
    await world.callback("email", [{"reason": "unsub", "email": "a@example.com", "timestamp": now - 9}])
    await world.consent("email", "a@example.com", at=now)
    found = await run(world)
    assert (found.counts["unsupported"], found.counts.get("corrections", 0)) == (1, 0)
    assert len(await world.corrections()) == 1


async def test_many_pages_lose_and_repeat_nothing(world: World) -> None:
    addresses = [f"a{n:04d}@example.com" for n in range(reconcile.PAGE * 2 + 7)]
    await load_behind_our_back(world, addresses, "complaint")
    found = await run(world)
    assert found.counts["corrections"] == len(addresses)
    rows = await world.query("select count(distinct address) as n from differences")
    assert rows[0].n == len(addresses)


async def test_a_run_whose_worker_died_is_taken_over(world: World) -> None:
    await load_behind_our_back(world, ["a@example.com"])
    asked = Run(uuid.uuid4(), "default", "email", "ledger", True, "tester")
    await reconcile.queue(world.database, asked, world.clock)
    async with world.database.begin() as connection:
        await reconciliations.claim(connection, world.clock(), world.clock() + reconcile.LEASE)
    assert await reconcile.run_next(world.database, world.policy, world.clock) is None
    world.clock.sleep(reconcile.LEASE.total_seconds() + 1)
    taken_over = await reconcile.run_next(world.database, world.policy, world.clock)
    assert taken_over == asked._replace(fence=2)


async def test_a_worker_that_was_too_slow_has_no_say_any_more(world: World) -> None:
    asked = Run(uuid.uuid4(), "default", "email", "ledger", True, "tester")
    await reconcile.queue(world.database, asked, world.clock)
    async with world.database.begin() as connection:
        slow = await reconciliations.claim(connection, world.clock(), world.clock() + reconcile.LEASE)
    assert slow is not None
    world.clock.sleep(reconcile.LEASE.total_seconds() + 1)
    await reconcile.run_next(world.database, world.policy, world.clock)
    async with world.database.begin() as connection:
        assert not await reconciliations.hold(connection, slow, world.clock())
        assert not await reconciliations.finish(connection, slow, "failed", {}, world.clock(), None)
        row = await reconciliations.one(connection, asked.id)
    assert row is not None
    assert row.state == "applied"
