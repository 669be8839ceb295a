"""Facts are counted by reason as far as they are told apart, each once by whoever applied it, and callbacks by how many
shared a transaction."""

import asyncio
import secrets
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest

from service.flows import quarantine
from service.flows.imports import Import, Order
from service.flows.ingest import apply_recorded
from service.store.quarantine import Asked
from service.telemetry import Metrics
from tests.flows.logs import act, due, pulled
from tests.flows.speaking import World, until
from tests.flows.test_imports import parts
from tests.flows.test_replay import knowing, once, unapplied


def shown(metrics: Metrics) -> dict[tuple[str, str], float]:
    """The facts by reason and outcome."""
    [family] = metrics.facts.collect()
    return {
        (sample.labels["reason"], sample.labels["outcome"]): sample.value
        for sample in family.samples
        if sample.name.endswith("_total")
    }


def entry(number: int, reason: str = "unsub") -> dict[str, Any]:
    return {"email": f"a{number}@example.com", "reason": reason, "timestamp": 1_700_000_000}


async def test_new_ones_and_known_ones(world: World) -> None:
    await world.callback("email", [entry(1), entry(2), entry(3, "spam"), entry(4, "unheard-of"), entry(5)])
    assert shown(world.metrics) == {("unsubscribe", "new"): 3, ("complaint", "new"): 1}
    # The same again is known as a whole; of one reason both are told, of several they are not told apart.
    await world.callback("email", [entry(1), entry(2), entry(3, "spam"), entry(4, "unheard-of"), entry(5)])
    await world.callback("email", [entry(1), entry(6)])
    await world.callback("email", [entry(1), entry(7, "spam")])
    assert shown(world.metrics) == {
        ("unsubscribe", "new"): 4,
        ("unsubscribe", "known"): 4,
        ("unsubscribe", "mixed"): 1,
        ("complaint", "new"): 1,
        ("complaint", "known"): 1,
        ("complaint", "mixed"): 1,
    }


async def test_a_large_one_counts_as_well_and_a_group_by_its_size(world: World) -> None:
    await world.callback("email", [entry(number, "blocked") for number in range(300)])
    assert shown(world.metrics) == {("blocked", "new"): 300}
    await world.callback("email", [entry(1)])
    [sizes] = world.metrics.groups.collect()
    assert {sample.value for sample in sizes.samples if sample.name.endswith("_count")} == {1}


def entries_shown(metrics: Metrics) -> dict[str, float]:
    """The entries of callbacks by outcome."""
    [family] = metrics.entries.collect()
    return {sample.labels["outcome"]: sample.value for sample in family.samples if sample.name.endswith("_total")}


async def test_what_was_only_recorded_is_counted_by_who_applies_it(world: World) -> None:
    said = [entry(1), entry(2, "spam"), entry(3, "unheard-of")]
    await unapplied(world, said)
    assert (shown(world.metrics), entries_shown(world.metrics)) == ({}, {})
    sweeping = Metrics()
    assert await apply_recorded(world.database, world.rules, world.clock, metrics=sweeping)
    assert shown(sweeping) == {("unsubscribe", "new"): 1, ("complaint", "new"): 1}
    assert entries_shown(sweeping) == {"accepted": 2, "rejected": 1}
    assert (shown(world.metrics), entries_shown(world.metrics)) == ({}, {})
    assert not await apply_recorded(world.database, world.rules, world.clock, metrics=sweeping)
    assert entries_shown(sweeping) == {"accepted": 2, "rejected": 1}


async def test_what_cannot_be_applied_is_not_counted(world: World) -> None:
    await unapplied(world, [entry(1)])
    await world.execute("alter table facts rename to facts_away")
    sweeping = Metrics()
    assert await apply_recorded(world.database, world.rules, world.clock, metrics=sweeping)
    assert (shown(sweeping), entries_shown(sweeping)) == ({}, {})


async def test_a_replay_counts_what_it_tells_first_and_nothing_twice(world: World) -> None:
    recorded = await unapplied(world, [entry(1), entry(2, "spam")])
    applied = await world.callback("email", [entry(3), entry(4, "vanished"), entry(3, "vanished"), entry(5, "odd")])
    knowing(world)
    replaying = Metrics()
    for batch_id in (recorded, applied.batch_id):
        await once(world, batch_id, metrics=replaying, dry_run=True)
    assert shown(replaying) == {}
    for batch_id in (recorded, applied.batch_id, recorded, applied.batch_id):
        await once(world, batch_id, metrics=replaying)
    assert shown(replaying) == {("unsubscribe", "new"): 1, ("complaint", "new"): 3}
    assert entries_shown(replaying) == {"accepted": 2}, "those of the other were counted as rejected when they came"


async def test_what_is_requeued_is_counted(world: World) -> None:
    first = await world.callback("email", [entry(1), entry(2, "vanished")])
    await world.callback("email", [entry(2, "vanished"), entry(3, "vanished"), entry(4, "odd")])
    knowing(world)
    deciding = Metrics()
    shared = ("tester", world.rules, world.clock)
    place = uuid.UUID(first.batch_id), 1
    await quarantine.requeue_one(world.database, place, *shared, None, deciding)
    assert shown(deciding) == {("complaint", "new"): 1}
    for _ in range(2):
        await quarantine.requeue_many(world.database, Asked("default", "open"), None, *shared, deciding)
    assert shown(deciding) == {("complaint", "new"): 2, ("complaint", "known"): 1}


async def test_lines_of_a_list_are_counted_by_reason_unless_it_is_a_dry_run(world: World) -> None:
    body = b"email,reason,created\na1@example.com,bounce,1700000000\nb@example.com,bounce,1700000000\nx,bounce,1\n"
    counting = Metrics()

    async def taken_in(*, dry_run: bool = False) -> None:
        order = Order("default", "email", "tester", secrets.randbits(50), dry_run=dry_run)
        await Import(world.database, order, world.rules, world.clock, metrics=counting).run(parts(body))

    await taken_in(dry_run=True)
    assert shown(counting) == {}
    await taken_in()
    assert shown(counting) == {("hard_bounce", "new"): 2}
    await taken_in()
    assert shown(counting) == {("hard_bounce", "new"): 2, ("hard_bounce", "known"): 2}
    assert entries_shown(counting) == {}, "no callback brought them"


async def test_lines_that_are_in_are_counted_also_if_the_list_is_cut_off_before_its_end(world: World) -> None:
    counting = Metrics()

    async def source() -> AsyncIterator[bytes]:
        yield b"email,reason\n" + b"".join(b"a%d@example.com,bounce\n" % number for number in range(20))
        await asyncio.Event().wait()

    order = Order("default", "email", "tester", secrets.randbits(50))
    one = Import(world.database, order, world.rules, world.clock, 10, counting)
    running = asyncio.create_task(one.run(source()))
    # The last chunk waits for more to come, and is in all the same.
    async with asyncio.timeout(20):
        await until(lambda: shown(counting) == {("hard_bounce", "new"): 20})
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert one.tally.lines < 20
    assert len(await world.query("select 1 from facts")) == 20


@pytest.mark.parametrize("reading", ["pull", "worker"])
async def test_pages_of_the_logs_are_counted_by_reason(world: World, reading: str) -> None:
    counting = Metrics()
    if reading == "worker":
        await due(world)
    at = world.clock.seconds
    for word, name in (("unsub", "a1"), ("spam", "a2"), ("spam", "a3")):
        await act(world, word, f"{name}@example.com")
    await world.callback("email", [entry(2, "spam") | {"timestamp": at}])
    world.clock.sleep(3600)
    for _ in range(2):
        await (due(world, 0, metrics=counting) if reading == "worker" else pulled(world, metrics=counting))
    # What a callback had told is known; read again, the page tells nothing and is not kept.
    assert shown(counting) == {("unsubscribe", "new"): 1, ("complaint", "new"): 1, ("complaint", "known"): 1}
