"""Corrections on their way to Kahuna: sent once, proved, told apart, retried, and never lost."""

import asyncio
import uuid
from datetime import timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import text
from structlog.testing import capture_logs

from service.flows import push
from service.store import outbox
from tests.flows.speaking import World


async def stops(world: World, count: int) -> list[str]:
    """Stops of ours for so many mailboxes."""
    addresses = [f"a{n:03d}@example.com" for n in range(count)]
    for address in addresses:
        await world.stop("email", address, "manual")
    return addresses


def states(rows: list[Any]) -> list[str]:
    return [row.state for row in rows]


async def test_a_local_stop_reaches_kahuna_once_in_its_words_and_the_form_received(world: World) -> None:
    await world.stop("email", " Ann@Example.COM ", "manual", at=1_700_000_000)
    assert await world.push()
    assert not await world.push()
    assert world.wire.bodies == [[{"reason": "unsub", "email": "Ann@Example.COM", "timestamp": 1_700_000_000}]]
    [sent] = await world.corrections()
    assert (sent.state, sent.address, sent.evidence["accepted"]) == ("sent", "ann@example.com", 1)


async def test_saying_the_same_again_sends_nothing_more(world: World) -> None:
    await world.stop("sms", "15550100001", "do_not_call")
    await world.push("sms")
    world.clock.sleep(60)
    await world.stop("sms", "15550100001", "do_not_call")
    await world.stop("sms", "15550100001", "manual")
    assert not await world.push("sms")


async def test_the_vendor_s_own_fact_is_not_echoed(world: World) -> None:
    now = world.clock.seconds
    await world.callback("email", [{"reason": "spam", "email": "a@example.com", "timestamp": now}])
    await world.callback("sms", [{"number": "15550100001", "timestamp": now - 9}])
    await world.callback("sms", [{"number": "15550100001", "timestamp": now, "opt-in": True}])
    assert await world.corrections() == []


async def test_errors_then_success_end_with_one_accepted_correction(world: World) -> None:
    await world.stop("email", "a@example.com", "complaint")
    await world.fault(status=500, times=1)
    await world.push()
    [waiting] = await world.corrections()
    assert (waiting.state, waiting.reason) == ("pending", "unavailable")
    assert not await world.push(), "not before its time"
    world.clock.sleep(60)
    await world.push()
    assert states(await world.corrections()) == ["sent"]
    assert (await world.held("email", "a@example.com"))["spam"][0] == "stop"


async def test_retry_after_is_respected_within_bounds(world: World) -> None:
    await world.stop("email", "a@example.com", "manual")
    await world.fault(status=429, times=1, retry_after=120)
    await world.push()
    world.clock.sleep(119)
    assert not await world.push()
    world.clock.sleep(2)
    await world.push()
    await world.stop("email", "b@example.com", "manual")
    await world.fault(status=503, times=1, retry_after=10**9)
    await world.push()
    world.clock.sleep(world.settings.push_longest_delay_seconds + 1)
    await world.push()
    assert states(await world.corrections()) == ["sent", "sent"]


async def test_an_answer_that_was_lost_is_asked_for_again(world: World) -> None:
    await world.stop("email", "a@example.com", "manual")
    await world.fault(drop_answer=True, times=1)
    await world.push()
    assert (await world.corrections())[0].reason == "ambiguous"
    world.clock.sleep(60)
    await world.push()
    assert states(await world.corrections()) == ["sent"]


async def test_the_named_are_rejected_and_the_rest_sent(world: World) -> None:
    addresses = await stops(world, 4)
    await world.fault(reject=[addresses[2]])
    await world.push()
    assert states(await world.corrections()) == ["sent", "sent", "rejected", "sent"]
    assert len(world.wire.bodies) == 1


async def test_the_unnamed_are_found_by_halves(world: World) -> None:
    addresses = await stops(world, 8)
    await world.fault(reject=[addresses[1], addresses[6]], name_rejected=False)
    await world.push()
    rows = await world.corrections()
    assert [row.address for row in rows if row.state == "rejected"] == [addresses[1], addresses[6]]
    assert states(rows).count("sent") == 6


async def test_what_the_budget_does_not_find_is_dead_and_says_so(world: World) -> None:
    addresses = await stops(world, 8)
    await world.fault(reject=[addresses[0], addresses[7]], name_rejected=False)
    await world.push(requests=4)
    rows = await world.corrections()
    assert len(world.wire.bodies) == 4
    assert {row.reason for row in rows if row.state == "dead"} == {"unattributed"}
    assert all(row.state != "pending" for row in rows)


def refuse(address: str, status: int) -> Any:
    """Kahuna refuses a whole body that holds this address."""

    def answer(entries: list[dict[str, Any]]) -> httpx.Response | None:
        held = any(entry["email"] == address for entry in entries)
        return httpx.Response(status, json={"success": False}) if held else None

    return answer


async def test_a_body_refused_with_400_is_bisected(world: World) -> None:
    addresses = await stops(world, 5)
    world.wire.answer = refuse(addresses[0], 400)
    await world.push()
    rows = await world.corrections()
    assert states(rows) == ["rejected", "sent", "sent", "sent", "sent"]


async def test_when_all_are_refused_with_400_none_is_condemned(world: World) -> None:
    """Then it may be the set-up: they are dead, and a reconciliation may propose them again."""
    await stops(world, 3)
    await world.fault(status=400)
    with capture_logs() as log:
        await world.push()
    assert {(row.state, row.reason) for row in await world.corrections()} == {("dead", "bad-request")}
    [dead] = [line for line in log if line["event"] == "corrections.dead"]
    async with world.database.read() as connection:
        alone = await connection.execute(text("select id from calls where cardinality(corrections) = 1"))
    assert dead["call"] in {one.hex for one in alone.scalars()}


async def test_413_makes_smaller_batches(world: World) -> None:
    await stops(world, 8)
    world.wire.answer = lambda entries: httpx.Response(413) if len(entries) > 2 else None
    await world.push()
    assert set(states(await world.corrections())) == {"sent"}
    assert max(len(body) for body in world.wire.bodies if len(body) <= 2) == 2


@pytest.mark.parametrize(("status", "reason"), [(401, "credentials-refused"), (409, "not-permitted")])
async def test_refused_credentials_open_the_circuit_and_lose_nothing(world: World, status: int, reason: str) -> None:
    await stops(world, 3)
    await world.fault(status=status)
    await world.push()
    assert {(row.state, row.reason) for row in await world.corrections()} == {("pending", reason)}
    await world.stop("email", "later@example.com", "manual")
    assert not await world.push(), "nothing is sent while the circuit is open"
    await world.heal()
    world.clock.sleep(world.settings.circuit_probe_seconds + 1)
    world.wire.bodies.clear()
    await world.push()
    assert [len(body) for body in world.wire.bodies] == [1], "one goes ahead to probe"
    await world.push()
    assert set(states(await world.corrections())) == {"sent"}


async def test_stop_start_stop_while_kahuna_is_slow_ends_with_stop_there(world: World) -> None:
    number, start = "15550100001", world.clock.seconds
    await world.stop("sms", number, "do_not_call", at=start)
    [claimed], lease = await claim(world)
    world.clock.sleep(5)
    await world.consent("sms", number, at=start + 5)
    world.clock.sleep(5)
    await world.stop("sms", number, "do_not_call", at=start + 10)
    scope = outbox.Scope("default", "sms", world.clock(), world.policy)
    async with world.database.begin() as connection:
        await outbox.settle(connection, scope, lease, [claimed], outbox.Settlement("pending", "ambiguous"))
    while await world.push("sms"):
        world.clock.sleep(1)
    assert (await world.held("sms", number))[None][0] == "stop"
    assert not [row for row in await world.corrections() if row.state in ("pending", "sending")]


async def test_a_start_after_a_stop_in_flight_is_sent_when_that_landed(world: World) -> None:
    number, start = "15550100001", world.clock.seconds
    await world.stop("sms", number, "do_not_call", at=start)
    [claimed], lease = await claim(world)
    await world.consent("sms", number, at=start + 5)
    assert not await world.push("sms"), "never two of one slot on their way"
    scope = outbox.Scope("default", "sms", world.clock(), world.policy)
    async with world.database.begin() as connection:
        await outbox.settle(connection, scope, lease, [claimed], outbox.Settlement("sent"))
    await world.push("sms")
    assert (await world.held("sms", number))[None] == ("opt-in", start + 5)


async def test_a_stop_that_may_have_landed_is_answered_by_the_opt_in(world: World) -> None:
    """The first stop may be there or not; the consent since then is told in any case, dated past it."""
    number, start = "15550100001", world.clock.seconds
    await world.stop("sms", number, "do_not_call", at=start)
    await world.fault(drop_answer=True, times=1)
    await world.push("sms")
    await world.consent("sms", number, at=start + 5)
    world.clock.sleep(60)
    await world.push("sms")
    assert (await world.held("sms", number))[None] == ("opt-in", start + 5)
    assert sorted(states(await world.corrections())) == ["sent", "superseded"]


async def test_a_stop_withdrawn_before_it_was_sent_is_not_answered_at_all(world: World) -> None:
    await world.stop("sms", "15550100001", "do_not_call", at=world.clock.seconds - 9)
    await world.consent("sms", "15550100001", at=world.clock.seconds)
    assert not await world.push("sms")
    assert states(await world.corrections()) == ["superseded"]


async def test_an_e_mail_consent_is_unsupported_and_shown_once(world: World) -> None:
    now = world.clock.seconds
    await world.callback("email", [{"reason": "unsub", "email": "a@example.com", "timestamp": now - 9}])
    await world.consent("email", "a@example.com", at=now - 5)
    await world.consent("email", "a@example.com", at=now - 5)
    assert not await world.push()
    assert states(await world.corrections()) == ["unsupported"]


async def test_kahuna_s_start_against_our_manual_stop_is_answered_one_second_later(world: World) -> None:
    number, now = "15550100001", world.clock.seconds
    await world.stop("sms", number, "manual", at=now - 100)
    await world.push("sms")
    await world.callback("sms", [{"number": number, "timestamp": now - 50, "opt-in": True}])
    await world.push("sms")
    assert (await world.held("sms", number))[None] == ("stop", now - 49)


async def test_a_dead_worker_s_corrections_are_free_when_its_lease_ends(world: World) -> None:
    await world.stop("sms", "15550100001", "do_not_call")
    await claim(world)
    assert not await world.push("sms")
    world.clock.sleep(world.settings.push_lease_seconds + 1)
    assert await push.release_expired(world.database, world.clock) == 1
    await world.push("sms")
    assert states(await world.corrections()) == ["sent"]


async def test_a_call_that_takes_longer_than_the_lease_keeps_it(world: World) -> None:
    await stops(world, 3)
    await world.fault(latency_seconds=30)
    task = asyncio.create_task(world.push(lease=timedelta(seconds=0.03)))
    while not await world.corrections("sending"):  # noqa: ASYNC110 (the database tells nobody)
        await asyncio.sleep(0.01)
    for _ in range(2):
        world.clock.sleep(1000)
        while min(row.lease_until for row in await world.corrections("sending")) < world.clock():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert await push.release_expired(world.database, world.clock) == 0
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    world.clock.sleep(1000)
    assert len(await world.corrections("pending")) == 3, "and lets go of it at its end"


async def test_a_renewal_waits_for_nobody(world: World) -> None:
    """What somebody looks at right now is still under the lease, though it is not renewed this time."""
    await world.stop("sms", "15550100001", "do_not_call")
    await world.stop("sms", "15550100002", "do_not_call")
    claimed, lease = await claim(world)
    later = world.clock() + timedelta(days=1)
    async with world.database.begin() as other:
        await other.execute(text(f"select 1 from corrections where id = {claimed[0].id} for update"))
        async with world.database.begin() as connection:
            assert await outbox.renew(connection, lease, later) == 2
    until = {row.id: row.lease_until for row in await world.corrections()}
    assert [until[one.id] == later for one in claimed] == [False, True]


async def test_a_worker_that_lost_its_lease_settles_nothing(world: World) -> None:
    await world.stop("sms", "15550100001", "do_not_call")
    claimed, lease = await claim(world)
    world.clock.sleep(world.settings.push_lease_seconds + 1)
    await push.release_expired(world.database, world.clock)
    scope = outbox.Scope("default", "sms", world.clock(), world.policy)
    async with world.database.begin() as connection:
        assert await outbox.settle(connection, scope, lease, claimed, outbox.Settlement("rejected")) == 0
    assert states(await world.corrections()) == ["pending"]


async def test_two_workers_never_send_the_same_correction(world: World) -> None:
    await stops(world, 40)
    await asyncio.gather(*(world.push(entries=7) for _ in range(6)))
    while await world.push(entries=7):
        pass
    told = [entry["email"] for body in world.wire.bodies for entry in body]
    assert sorted(told) == sorted(set(told))
    assert len(told) == 40


async def claim(world: World) -> tuple[list[outbox.Claimed], uuid.UUID]:
    """Takes what is due, as a worker does that then is slow, or dies."""
    lease = uuid.uuid4()
    until = world.clock() + timedelta(seconds=world.settings.push_lease_seconds)
    async with world.database.begin() as connection:
        return await outbox.claim(connection, "default", "sms", 10, lease, world.clock(), until), lease


async def test_a_404_condemns_nothing(world: World) -> None:
    """A wrong base URL, or a vendor that is being moved: no entry is at fault."""
    await stops(world, 4)
    await world.fault(status=404, times=3)
    for _ in range(4):
        await world.push()
        world.clock.sleep(1000)
    assert set(states(await world.corrections())) == {"sent"}


async def test_one_channel_s_refusal_does_not_hold_up_the_other(world: World) -> None:
    await world.fault(api="sms_sync", status=409)
    await world.stop("sms", "15550100001", "do_not_call")
    await world.stop("email", "a@example.com", "manual")
    await world.push("sms")
    await world.push("email")
    assert [row.channel for row in await world.corrections("sent")] == ["email"]


async def test_what_comes_after_a_retry_after_waits_as_well(world: World) -> None:
    await world.stop("email", "a@example.com", "manual")
    await world.fault(status=429, times=1, retry_after=600)
    await world.push()
    await world.stop("email", "b@example.com", "manual")
    world.clock.sleep(599)
    assert not await world.push()
    world.clock.sleep(2)
    while await world.push():
        pass
    assert states(await world.corrections()) == ["sent", "sent"]


@pytest.mark.parametrize("lost", [{"drop_answer": True}, {"body": "truncated"}])
async def test_what_was_refused_at_the_second_try_may_have_been_taken_at_the_first(
    world: World, lost: dict[str, Any]
) -> None:
    now, number = world.clock.seconds, "15550100001"
    await world.stop("sms", number, "do_not_call", at=now - 10)
    await world.fault(api="sms_sync", times=1, **lost)
    await world.push("sms")
    world.clock.sleep(60)
    await world.fault(api="sms_sync", times=1, reject=[number])
    await world.push("sms")
    assert states(await world.corrections()) == ["rejected"]
    assert (await world.held("sms", number))[None] == ("stop", now - 10), "taken, and nobody heard of it"
    await world.consent("sms", number)
    await world.push("sms")
    assert (await world.held("sms", number))[None][0] == "opt-in"


async def test_a_stop_is_told_past_an_opt_in_that_was_refused_only_at_the_second_try(world: World) -> None:
    now, number = world.clock.seconds, "15550100001"
    await world.callback("sms", [{"number": number, "timestamp": now - 20}])
    await world.consent("sms", number, at=now - 10)
    await world.fault(api="sms_sync", times=1, drop_answer=True)
    await world.push("sms")
    world.clock.sleep(60)
    await world.fault(api="sms_sync", times=1, reject=[number])
    await world.push("sms")
    assert (await world.held("sms", number))[None] == ("opt-in", now - 10), "taken, and nobody heard of it"
    await world.callback("sms", [{"number": number, "timestamp": now - 10}])
    await world.push("sms")
    assert (await world.held("sms", number))[None] == ("stop", now - 9)


async def test_a_new_stop_is_told_even_where_an_older_one_was_refused(world: World) -> None:
    await world.stop("email", "a@example.com", "manual")
    await world.fault(reject=["a@example.com"], times=1)
    await world.push()
    world.clock.sleep(60)
    await world.stop("email", "a@example.com", "unsubscribe")
    await world.push()
    assert states(await world.corrections()) == ["rejected", "sent"]


async def test_a_worker_that_is_stopped_frees_what_it_had_claimed(world: World) -> None:
    await stops(world, 1)
    await world.fault(latency_seconds=30)
    task = asyncio.create_task(world.push())
    while not await world.corrections("sending"):  # noqa: ASYNC110 (the database tells nobody)
        await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert [(row.state, row.reason) for row in await world.corrections()] == [("pending", "worker-stopped")]
