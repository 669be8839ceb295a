"""Callbacks become durable and true once, whatever the order, the repetition and the company they come in."""

import asyncio
import random
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from service.domain.suppression import verdict
from service.flows.ingest import apply_recorded
from service.store import suppressions
from service.store.batches import Outcome
from tests.flows.speaking import World

NUMBER = "15550100001"


def counts(outcome: Outcome | None) -> tuple[int, int, int]:
    assert outcome is not None
    return outcome.accepted, outcome.duplicates, outcome.rejected


async def suppressed(world: World, channel: Any, address: str, namespace: str = "default") -> bool:
    async with world.database.read() as connection:
        rows = await suppressions.causes_of(connection, namespace, channel, address)
    return verdict({row.cause.reason: row.cause for row in rows}, world.clock.seconds, world.policy).suppressed


def unsub(address: str, at: int | None = 1_700_000_000, **more: Any) -> dict[str, Any]:
    timed = {} if at is None else {"timestamp": at}
    return {"reason": "unsub", "email": address} | timed | more


async def test_a_redelivery_answers_with_the_first_batch_and_changes_nothing(world: World) -> None:
    entries = [unsub("a@example.com"), unsub("A@example.com "), {"reason": "what", "email": "b@example.com"}]
    first = await world.callback("email", entries)
    again = await world.callback("email", entries)
    assert counts(first.outcome) == (1, 1, 1)
    assert (again.batch_id, counts(again.outcome)) == (first.batch_id, (0, 2, 1))
    assert again.outcome is not None
    assert first.outcome is not None
    assert again.outcome.errors == first.outcome.errors == [{"index": 2, "error": "unknown-reason"}]
    assert len(await world.query("select 1 from quarantine")) == 1
    assert len(await world.query("select 1 from changes")) == 1
    assert len(await world.query("select 1 from facts")) == 1


async def test_a_fact_that_another_batch_brought_is_a_duplicate(world: World) -> None:
    await world.callback("email", [unsub("a@example.com")])
    again = await world.callback("email", [unsub("a@example.com"), unsub("b@example.com")])
    assert counts(again.outcome) == (1, 1, 0)


async def test_the_same_bytes_for_another_namespace_are_another_batch(world: World) -> None:
    first = await world.callback("email", [unsub("a@example.com")])
    other = await world.callback("email", [unsub("a@example.com")], "other")
    assert counts(other.outcome) == (1, 0, 0)
    assert other.batch_id != first.batch_id


async def test_concurrent_deliveries_of_one_body_are_applied_once(world: World) -> None:
    body = msgspec.json.encode([unsub(f"a{n}@example.com") for n in range(50)])
    answers = await asyncio.gather(*(world.raw_callback("email", body) for _ in range(8)))
    assert len({answer.batch_id for answer in answers}) == 1
    assert sorted(counts(a.outcome) for a in answers) == [(0, 50, 0)] * 7 + [(50, 0, 0)]


async def test_overlapping_batches_in_opposite_orders_do_not_deadlock(world: World) -> None:
    entries = [unsub(f"a{n:03d}@example.com") for n in range(200)]
    shuffled = [random.Random(n).sample(entries, len(entries)) for n in range(8)]
    answers = await asyncio.gather(*(world.callback("email", batch) for batch in shuffled))
    assert sum(counts(answer.outcome)[0] for answer in answers) == 200


@pytest.mark.parametrize("opt_in_at", [99, 100, 101])
@pytest.mark.parametrize("opt_in_first", [True, False])
async def test_an_opt_in_wins_only_if_strictly_newer(world: World, opt_in_at: int, opt_in_first: bool) -> None:
    base = world.clock.seconds - 1000
    stop = {"number": NUMBER, "timestamp": base + 100}
    start = {"number": NUMBER, "timestamp": base + opt_in_at, "opt-in": True}
    for entry in [start, stop] if opt_in_first else [stop, start]:
        await world.callback("sms", [entry])
    assert await suppressed(world, "sms", NUMBER) is (opt_in_at <= 100)


async def test_an_untimed_opt_in_waits_and_never_clears_a_later_stop(world: World) -> None:
    start = [{"number": NUMBER, "opt-in": True}]
    first = await world.callback("sms", start)
    assert counts(first.outcome) == (1, 0, 0)
    world.clock.sleep(60)
    await world.callback("sms", [{"number": NUMBER, "timestamp": world.clock.seconds}])
    world.clock.sleep(60)
    await world.callback("sms", start)
    again = await world.callback("sms", [*start, {"number": "15550100002", "timestamp": 1_700_000_000}])
    assert counts(again.outcome) == (1, 1, 0)
    assert await suppressed(world, "sms", NUMBER)
    assert len(await world.query("select 1 from reviews")) == 1


async def test_untimed_and_future_stops_take_the_time_of_receipt(world: World) -> None:
    now = world.clock.seconds
    entries = [unsub("a@example.com", None), unsub("b@example.com", now + 301), unsub("c@example.com", now + 300)]
    await world.callback("email", [*entries, unsub("d@example.com", 0), unsub("e@example.com", 1_700_000_000_123)])
    rows = await world.query("select address, occurred_at from facts order by address")
    assert [row.occurred_at for row in rows] == [now, now, now + 300, now, 1_700_000_000]


async def test_a_bad_entry_never_spoils_its_neighbours(world: World) -> None:
    body = (
        b'[{"reason":"unsub","email":"good@example.com","timestamp":1700000000},'
        b'{"reason":"unsub","email":"inf@example.com","timestamp":1e400},'
        b'{"reason":"unsub","email":"sur\\ud800@example.com"},'
        b'{"reason":"unsub","email":"nul\\u0000@example.com"},'
        b'7, {"reason":"unsub"}, {"reason":"unsub","email":["x"]},'
        b'{"email":"no-reason@example.com"}]'
    )
    answer = await world.raw_callback("email", body)
    assert counts(answer.outcome) == (1, 0, 7)
    rows = await world.query("select entry_index, error, entry from quarantine order by entry_index")
    assert [row.entry_index for row in rows] == [1, 2, 3, 4, 5, 6, 7]
    assert rows[0].entry == b'{"reason":"unsub","email":"inf@example.com","timestamp":1e400}'


async def test_what_cannot_be_applied_is_recorded_and_applied_later(world: World) -> None:
    received_at = world.clock.seconds
    await world.execute("alter table facts rename to facts_away")
    first = await world.callback("email", [unsub("a@example.com", None)])
    assert first.outcome is None
    world.clock.sleep(1)
    assert await apply_recorded(world.database, world.rules, world.clock), "it is tried"
    assert not await apply_recorded(world.database, world.rules, world.clock), "and then left for a while"
    await world.execute("alter table facts_away rename to facts")
    world.clock.sleep(100)
    assert await apply_recorded(world.database, world.rules, world.clock)
    assert [row.occurred_at for row in await world.query("select occurred_at from facts")] == [received_at]
    again = await world.callback("email", [unsub("a@example.com", None)])
    assert (again.batch_id, counts(again.outcome)) == (first.batch_id, (0, 1, 0))


async def test_a_redelivery_applies_a_batch_that_was_only_recorded(world: World) -> None:
    await world.execute("alter table facts rename to facts_away")
    first = await world.callback("email", [unsub("a@example.com", None)])
    await world.execute("alter table facts_away rename to facts")
    received_at = world.clock.seconds
    world.clock.sleep(50)
    again = await world.callback("email", [unsub("a@example.com", None)])
    assert (again.batch_id, counts(again.outcome)) == (first.batch_id, (1, 0, 0))
    assert [row.occurred_at for row in await world.query("select occurred_at from facts")] == [received_at]


numbers = st.sampled_from(["15550100001", "15550100002"])
entries = st.builds(
    lambda number, at, opt_in: (
        {"number": number, "timestamp": 1_700_000_000 + at} | ({"opt-in": True} if opt_in else {})
    ),
    numbers,
    st.integers(0, 6),
    st.booleans(),
)


@hypothesis_settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(history=st.lists(entries, min_size=1, max_size=12), seed=st.integers(0, 2**32), salt=st.integers(0, 2**40))
async def test_shuffled_and_regrouped_batches_give_equal_lists(
    world: World, history: list[dict[str, Any]], seed: int, salt: int
) -> None:
    """One history to two namespaces, in other orders and groups, some batches delivered twice: the same list."""
    renamed = [entry | {"number": f"{salt:012d}{entry['number'][-2:]}"} for entry in history]
    chance = random.Random(seed)
    for namespace in ("default", "other"):
        left = chance.sample(renamed, len(renamed))
        while left:
            size = chance.randint(1, len(left))
            for _ in range(chance.randint(1, 2)):
                await world.callback("sms", left[:size], namespace)
            left = left[size:]
    columns = "address, reason, stop_at, clear_at"
    lists = [
        [
            tuple(row)
            for row in await world.query(f"select {columns} from suppressions where namespace='{n}' order by 1")
        ]
        for n in ("default", "other")
    ]
    assert lists[0] == lists[1]
