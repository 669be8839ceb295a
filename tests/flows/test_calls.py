"""Every call that sent corrections is kept, masked; and the circuits, which stop calls that would be refused."""

import asyncio
from datetime import timedelta
from typing import Any

import httpx

from service.flows import desk as deeds
from service.flows import upkeep
from service.flows.upkeep import Retention
from service.store import calls, circuits
from tests.flows.desk import ANN, DAY, dead, deeds_done, states
from tests.flows.speaking import World

# Every call is kept.


async def calls_of(world: World, row: Any) -> list[Any]:
    async with world.database.read() as connection:
        return list(await calls.of_correction(connection, row, world.clock()))


async def test_every_call_is_kept_with_its_masked_answer(world: World) -> None:
    await world.stop("email", ANN, "unsubscribe")
    answers: list[httpx.Response | None] = [
        httpx.Response(503, json={"error": "Database of ann@example.com is away, key demo-api-key"}),
        httpx.Response(200, content=b"<html>"),
        httpx.Response(400, json={"error_detail": "Entry a***@example.com is invalid"}),
    ]
    world.wire.answer = lambda _: answers.pop(0)
    for _ in range(3):
        await world.push()
        world.clock.sleep(1000)
    [row] = await world.corrections("dead")
    kept = await calls_of(world, row)
    assert [(one.status, one.outcome, one.answer) for one in kept] == [
        (400, "bad-request", "Entry *** is invalid"),
        (200, "unreadable-answer", None),
        (503, "unavailable", "Database of *** is away, key ***"),
    ]
    assert {(one.worker, one.channel, tuple(one.corrections)) for one in kept} == {("worker", "email", (row.id,))}
    assert row.attempts == len(kept) == 3


async def test_no_address_and_no_key_is_in_any_call(world: World) -> None:
    addresses = [f"{name}@{name}.example" for name in ("alpha", "bravo", "charlie", "delta")]
    for address in addresses:
        await world.stop("email", address, "manual")
    errors = [{"email": addresses[0], "error": f"unknown mailbox alpha of {addresses[0]}, see charlie"}]
    answer = {"accepted": 3, "rejected": 1, "errors": errors}
    world.wire.answer = lambda _: httpx.Response(200, json=answer)
    await world.push()
    [kept] = await world.query("select * from calls")
    assert (kept.outcome, kept.accepted, kept.rejected, len(kept.corrections)) == ("answered", 3, 1, 4)
    assert kept.answer == "*** unknown mailbox *** of *** see ***"
    for secret in (*addresses, "alpha", "charlie", "demo-api-key"):
        assert secret not in str(kept)


async def test_the_calls_of_a_bisection_are_those_that_an_entry_was_in(world: World) -> None:
    for n in range(4):
        await world.stop("email", f"a{n}@example.com", "manual")
    await world.fault(reject=["a2@example.com"], name_rejected=False)
    await world.push()
    [refused] = await world.corrections("rejected")
    kept = await calls_of(world, refused)
    assert sorted(len(one.corrections) for one in kept) == [1, 2, 4]
    assert len(await world.query("select 1 from calls")) == len(world.wire.bodies)


async def test_calls_have_months_and_their_own_retention(world: World) -> None:
    await dead(world)
    world.clock.sleep(40 * DAY)
    await upkeep.run_due(world.database, world.rules, Retention(), world.clock)
    parts = "select relname from pg_class where relname like 'calls_2%' and relkind = 'r' order by 1"
    assert [row.relname for row in await world.query(parts)] == [f"calls_2026_0{n}" for n in (3, 4, 5, 6)]
    world.clock.sleep(40 * DAY)
    await upkeep.run_due(world.database, world.rules, Retention(calls=timedelta(days=20)), world.clock)
    assert await world.query("select 1 from calls") == []
    assert len(await world.corrections("dead")) == 1


# Circuits.


async def test_exactly_one_probe_goes_out_however_many_workers_look(world: World) -> None:
    for n in range(6):
        await world.stop("email", f"a{n}@example.com", "manual")
    await world.fault(status=401)
    await world.push()
    world.clock.sleep(world.settings.circuit_probe_seconds + 1)
    world.wire.bodies.clear()
    await world.fault(status=401, latency_seconds=0.05)
    await asyncio.gather(*(world.push() for _ in range(4)))
    assert [len(body) for body in world.wire.bodies] == [1]
    assert not await world.push(), "the next one when its time has come"


async def test_a_probe_that_is_lost_is_followed_by_another(world: World) -> None:
    await world.stop("email", ANN, "manual")
    await world.stop("email", "bob@example.com", "manual")
    await world.fault(status=401)
    await world.push()
    await world.heal()
    world.clock.sleep(world.settings.circuit_probe_seconds + 1)
    async with world.database.begin() as connection:
        [circuit] = (await circuits.all_open(connection)).values()
        assert await circuits.may_probe(connection, circuit, world.clock())
        await circuits.probing(connection, circuit, world.clock() + timedelta(seconds=60))
    assert not await world.push()
    world.clock.sleep(61)
    assert await world.push()
    while await world.push():
        pass
    assert await states(world) == ["sent", "sent"]


async def test_a_reset_sends_at_once_what_waited_for_the_circuit(world: World) -> None:
    await world.stop("email", ANN, "manual")
    await world.fault(status=401)
    await world.push()
    await world.heal()
    assert not await world.push()
    was, released = await deeds.reset_circuit(world.database, "default", "email", "operator", world.clock)
    assert was is not None
    assert (was.reason, was.opened_at, released) == ("credentials-refused", world.clock(), 1)
    assert await world.push()
    assert await states(world) == ["sent"]
    [deed] = await deeds_done(world)
    assert (deed.actor, deed.action, deed.channel) == ("operator", "circuit.reset", "email")
    assert deed.detail == {"was_open": True, "released": 1, "because": "credentials-refused"}
    assert await deeds.reset_circuit(world.database, "default", "email", "operator", world.clock) == (None, 0)
