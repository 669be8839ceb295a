"""Entries that could not be understood: read again by themselves, or discarded, each with who did it."""

import uuid
from dataclasses import replace
from typing import Any

import pytest
import zstandard

from service.errors import Conflict, NotFound
from service.flows import quarantine
from service.flows.quarantine import BATCHES, Requeued
from service.store.quarantine import Asked, Place
from tests.flows.speaking import World
from tests.flows.test_company import poisoned
from tests.flows.test_ingest import counts, suppressed, unsub
from tests.flows.test_replay import knowing, once

OPEN = Asked("default", "open")


def vanished(address: str, at: int | None = None) -> dict[str, Any]:
    return unsub(address, at, reason="vanished")


async def requeue(world: World, batch_id: str, index: int = 0, allowed: str | None = None) -> Any:
    place = uuid.UUID(batch_id), index
    return await quarantine.requeue_one(world.database, place, "tester", world.rules, world.clock, allowed)


async def requeue_all(world: World, asked: Asked = OPEN, after: Place | None = None) -> Requeued:
    return await quarantine.requeue_many(world.database, asked, after, "tester", world.rules, world.clock)


async def discard(world: World, batch_id: str, index: int = 0, allowed: str | None = None) -> Any:
    place = uuid.UUID(batch_id), index
    return await quarantine.discard(world.database, place, "tester", "of no use", world.clock, allowed)


async def deeds(world: World) -> list[Any]:
    return await world.query("select actor, action, namespace, detail from audit where action like 'quarantine.%'")


async def test_a_requeued_entry_becomes_a_fact_of_its_own_batch_and_time(world: World) -> None:
    received_at = world.clock.seconds
    first = await world.callback(
        "email", [unsub("a@example.com"), vanished("b@example.com"), vanished("c@example.com")]
    )
    knowing(world)
    world.clock.sleep(700)
    row = await requeue(world, first.batch_id, 1)
    assert (row.state, row.decided_by, row.decided_at) == ("requeued", "tester", world.clock())
    facts = await world.query("select occurred_at, batch_id, entry_index from facts where address = 'b@example.com'")
    assert [(r.occurred_at, str(r.batch_id), r.entry_index) for r in facts] == [(received_at, first.batch_id, 1)]
    assert not await suppressed(world, "email", "c@example.com"), "its neighbour was not asked for"
    [deed] = await deeds(world)
    assert (deed.actor, deed.action, deed.namespace) == ("tester", "quarantine.requeued", "default")
    counted = {"entries": 1, "requeued": 1, "new": 1}
    assert deed.detail == {"batch_id": first.batch_id, "entry_index": 1} | counted


async def test_a_redelivery_after_a_requeue_rejects_the_rest_alone(world: World) -> None:
    entries = [vanished("a@example.com"), 7]
    first = await world.callback("email", entries)
    knowing(world)
    await requeue(world, first.batch_id)
    again = await world.callback("email", entries)
    assert (again.batch_id, counts(again.outcome)) == (first.batch_id, (0, 1, 1))
    assert again.outcome is not None
    assert again.outcome.errors == [{"index": 1, "error": "not-an-object"}]


async def test_one_that_is_not_understood_yet_stays_open_with_its_new_error(world: World) -> None:
    first = await world.callback("email", [unsub("nobody", reason="vanished")])
    assert (await requeue(world, first.batch_id)).error == "unknown-reason"
    knowing(world)
    row = await requeue(world, first.batch_id)
    assert (row.state, row.error, row.decided_by) == ("open", "not-an-email-address", None)
    [batch] = await world.query("select errors, rejected from batches")
    assert (batch.errors, batch.rejected) == ([{"index": 0, "error": "not-an-email-address"}], 1)


async def test_a_decision_is_made_once(world: World) -> None:
    first = await world.callback("email", [vanished("a@example.com"), vanished("b@example.com")])
    knowing(world)
    await requeue(world, first.batch_id, 0)
    await discard(world, first.batch_id, 1)
    for deed in (
        requeue(world, first.batch_id, 0),
        discard(world, first.batch_id, 0),
        discard(world, first.batch_id, 1),
    ):
        with pytest.raises(Conflict):
            await deed
    assert not await suppressed(world, "email", "b@example.com")


async def test_a_discard_keeps_the_reason_and_who_it_was(world: World) -> None:
    first = await world.callback("email", [7])
    row = await discard(world, first.batch_id)
    assert (row.state, row.decided_by, row.note) == ("discarded", "tester", "of no use")
    [deed] = await deeds(world)
    assert (deed.actor, deed.action) == ("tester", "quarantine.discarded")
    assert deed.detail == {"batch_id": first.batch_id, "entry_index": 0, "reason": "of no use"}


async def test_a_discard_is_taken_back_by_a_requeue_of_that_entry_alone(world: World) -> None:
    first = await world.callback("email", [vanished("a@example.com"), 7])
    await discard(world, first.batch_id, 0)
    await discard(world, first.batch_id, 1)
    knowing(world)
    assert (await requeue_all(world)).entries == 0
    assert (await requeue(world, first.batch_id, 0)).state == "requeued"
    row = await requeue(world, first.batch_id, 1)
    assert (row.state, row.note) == ("open", None)
    assert await suppressed(world, "email", "a@example.com")


async def test_many_are_requeued_by_what_they_have_in_common(world: World) -> None:
    first = await world.callback("email", [vanished("a@example.com"), 7, unsub("b@example.com")])
    await world.callback("sms", [{"number": "1"}])
    other = await world.callback("email", [vanished("a@example.com")], "other")
    knowing(world)
    assert await requeue_all(world, OPEN._replace(error="not-an-object")) == Requeued(1, 0, 0, 0, None)
    assert await requeue_all(world, OPEN._replace(channel="sms")) == Requeued(1, 0, 0, 0, None)
    assert await requeue_all(world, OPEN._replace(batch_id=uuid.UUID(other.batch_id))) == Requeued(0, 0, 0, 0, None)
    assert await requeue_all(world, OPEN._replace(batch_id=uuid.UUID(first.batch_id))) == Requeued(2, 1, 1, 0, None)
    assert await requeue_all(world) == Requeued(2, 0, 0, 0, None)
    assert [row.state for row in await world.query("select state from quarantine where namespace = 'other'")] == [
        "open"
    ]


async def test_more_than_one_call_takes_go_on_where_it_stopped(world: World) -> None:
    for n in range(BATCHES + 2):
        await world.callback("email", [vanished(f"a{n}@example.com", 5), n])
    knowing(world)
    first = await requeue_all(world)
    assert (first.entries, first.requeued) == (2 * BATCHES, BATCHES)
    second = await requeue_all(world, after=first.next)
    assert (second.entries, second.requeued, second.next) == (4, 2, None)


async def test_a_batch_that_cannot_be_applied_does_not_keep_the_others(world: World) -> None:
    for name in ("a", "poison", "b"):
        await world.callback("email", [vanished(f"{name}@example.com")])
        world.clock.sleep(1)
    knowing(world)
    async with poisoned(world, "poison@example.com"):
        assert await requeue_all(world) == Requeued(2, 2, 2, 1, None)
    assert await requeue_all(world) == Requeued(1, 1, 1, 0, None)


async def test_a_requeued_opt_in_passes_the_review(world: World) -> None:
    """The time that was wrong is told rightly by a rule of ours that is corrected."""
    now = world.clock.seconds
    await world.stop("sms", "15550100001", "do_not_call", at=now - 100)
    body = b'[{"number":"15550100001","opt-in":true,"timestamp":"soon"}]'
    first = await world.raw_callback("sms", body)
    assert counts(first.outcome) == (0, 0, 1)
    later = body.replace(b'"soon"', str(now - 50).encode())
    await corrected(world, first.batch_id, later)
    assert (await requeue(world, first.batch_id)).state == "requeued"
    assert [row.why for row in await world.query("select why from reviews")] == ["local-stop"]
    assert await suppressed(world, "sms", "15550100001")
    assert [counts(r.outcome) for r in [await once(world, first.batch_id)]] == [(1, 0, 0)]


async def corrected(world: World, batch_id: str, body: bytes) -> None:
    """As if a rule were corrected: the body reads otherwise than it did."""
    packed = zstandard.ZstdCompressor().compress(body).hex()
    await world.execute(f"update batches set body = '\\x{packed}', body_bytes = {len(body)} where id = '{batch_id}'")


async def test_an_entry_without_its_batch_cannot_be_requeued(world: World) -> None:
    first = await world.callback("email", [vanished("a@example.com")])
    await world.execute("delete from batches")
    knowing(world)
    with pytest.raises(Conflict, match="PUT"):
        await requeue(world, first.batch_id)
    assert (await requeue_all(world)).failed == 1
    assert (await discard(world, first.batch_id)).state == "discarded"


async def test_there_is_no_such_entry_in_this_namespace(world: World) -> None:
    first = await world.callback("email", [7])
    for batch_id, index, allowed in (
        (first.batch_id, 1, None),
        (first.batch_id, 0, "other"),
        (str(uuid.UUID(int=0)), 0, None),
    ):
        for deed in (requeue, discard):
            with pytest.raises(NotFound):
                await deed(world, batch_id, index, allowed)


async def test_a_namespace_that_is_gone_from_the_settings_is_no_fault_of_ours(world: World) -> None:
    first = await world.callback("email", [7], "other")
    world.rule_by(replace(world.settings, namespaces=world.settings.namespaces[:1]))
    with pytest.raises(Conflict):
        await requeue(world, first.batch_id)
