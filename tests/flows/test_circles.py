"""Two or three that meet in the one moment in which they could wait for each other in a circle, and do not: each stands
where a third one has stopped it. And an opt-in that a stop of ours comes in between of."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256

import msgspec
import pytest
from sqlalchemy import text

from service.flows import ingest, replay, review
from service.flows.ingest import Member
from service.kahuna import webhook
from service.settings import Settings
from service.store import archive, batches, suppressions
from service.store.batches import Received, new_id
from service.store.database import Connection, Database
from tests.flows.speaking import World
from tests.flows.test_crowds import circles
from tests.flows.test_ingest import NUMBER, suppressed
from tests.flows.test_reviews import start, waiting

OTHER = "15550100777"
LOW, MIDDLE, HIGH = "15550100001", "15550100002", "15550100003"


@asynccontextmanager
async def worlds(settings: Settings) -> AsyncIterator[World]:
    """One whose connections are gone in the end, so that circles can be counted."""
    async with Database.of(settings) as database:
        world = World(database, settings)
        async with world.control:
            yield world


async def stuck(world: World, count: int) -> None:
    """Until so many wait for a lock."""
    for _ in range(500):
        [row] = await world.query("select count(distinct pid) from pg_locks where not granted")
        if row[0] == count:
            return
        await asyncio.sleep(0.01)
    pytest.fail("they do not wait")


def member(world: World, number: str) -> Member:
    """A callback of one opt-in without a time."""
    body = msgspec.json.encode([{"number": number, "opt-in": True}])
    now = world.clock()
    batch_id = new_id(now, secrets.randbits(74))
    batch = Received(batch_id, "default", "sms", "kahuna_webhook", now, {}, body, sha256(body).digest())
    return Member(batch, webhook.read(body, "sms", world.rules.words["default"]))


async def test_a_stop_of_ours_that_comes_in_between_is_not_lifted_unseen(world: World) -> None:
    """The opt-in has asked for stops of ours, and there was none; it is stopped before it is stored."""
    now = world.clock.seconds
    async with world.database.begin() as third:
        await third.execute(text("lock table reviews in access exclusive mode"))
        opting_in = asyncio.ensure_future(world.callback("sms", start(now - 50)))
        await stuck(world, 1)
        await world.stop("sms", NUMBER, "do_not_call", at=now - 100)
        await third.rollback()
    assert (await opting_in).state == "applied"
    assert [row["why"] for row in await waiting(world)] == ["local-stop"]
    assert await suppressed(world, "sms", NUMBER)


@pytest.mark.parametrize("at", [-50, None], ids=["timed", "without a time"])
async def test_a_decision_and_the_same_opt_in_do_not_wait_for_each_other(settings: Settings, at: int | None) -> None:
    async with worlds(settings) as world:
        now = world.clock.seconds
        claimed = None if at is None else now + at
        await world.stop("sms", NUMBER, "do_not_call", at=now - 100)
        await world.callback("sms", start(claimed))
        [asked] = await waiting(world)
        async with world.database.begin() as third:
            await suppressions.lock(third, "default", "sms", [NUMBER])
            told = [*start(claimed), {"number": NUMBER, "timestamp": now - 90}, {"number": OTHER, "opt-in": True}]
            again = asyncio.ensure_future(world.callback("sms", told))
            await stuck(world, 1)
            decided = asyncio.ensure_future(
                review.decide(world.database, asked["id"], "approved", "t", None, world.policy, world.clock, None)
            )
            await stuck(world, 2)
            await third.rollback()
        await asyncio.gather(again, decided)
    assert await circles(settings) == 0


async def test_opt_ins_that_wait_are_written_in_one_order(settings: Settings) -> None:
    """Whichever callback of a group they came in."""
    async with worlds(settings) as world:

        async def apply(connection: Connection, numbers: list[str]) -> None:
            members = [member(world, number) for number in numbers]
            await ingest.apply(connection, members, world.rules, world.clock())

        async def taken(numbers: list[str]) -> None:
            async with world.database.begin() as connection:
                await apply(connection, numbers)

        async with world.database.begin() as third:
            await apply(third, [MIDDLE])
            there = asyncio.ensure_future(taken([LOW, MIDDLE, HIGH]))
            await stuck(world, 1)
            back = asyncio.ensure_future(taken([HIGH, MIDDLE, LOW]))
            await stuck(world, 2)
            await third.rollback()
        await asyncio.gather(there, back, return_exceptions=True)
        assert sorted(row["address"] for row in await waiting(world)) == [LOW, MIDDLE, HIGH]
    assert await circles(settings) == 0


async def test_the_sweeper_that_is_overtaken_tries_again_at_once(world: World) -> None:
    said = [{"number": NUMBER, "timestamp": world.clock.seconds - 100}]
    body = msgspec.json.encode(said)
    one = member(world, NUMBER).batch._replace(body=body, digest=sha256(body).digest())
    async with world.database.begin() as connection:
        await batches.claim_digest(connection, one)
        await batches.archive(connection, [(one, None)], world.clock())
    async with world.database.begin() as third:
        entry = suppressions.Entry(NUMBER, NUMBER, "do_not_call", "suppress", world.clock.seconds - 200)
        provenance = suppressions.Provenance("default", "sms", "kahuna", "kahuna_webhook", world.clock(), (one.id,))
        await suppressions.apply(third, [entry], provenance, world.policy)
        swept = asyncio.ensure_future(ingest.apply_recorded(world.database, world.rules, world.clock))
        await stuck(world, 1)
    assert await swept
    assert [row[0] for row in await world.query("select state from batches")] == ["applied"]


async def test_a_replay_of_both_kinds_of_batches_waits_for_nobody_out_of_turn(settings: Settings) -> None:
    """What was only recorded is applied first; then what was applied, of which the first numbers may come before."""
    async with worlds(settings) as world:
        now = world.clock.seconds
        await world.callback("sms", [{"number": LOW, "timestamp": now - 100}])
        await world.stop("sms", HIGH, "manual", at=now - 200)
        body = msgspec.json.encode([{"number": HIGH, "timestamp": now - 100}])
        one = member(world, HIGH).batch._replace(body=body, digest=sha256(body).digest())
        async with world.database.begin() as connection:
            await batches.claim_digest(connection, one)
            await batches.archive(connection, [(one, None)], world.clock())
        world.clock.sleep(1)
        async with world.database.begin() as third:
            await suppressions.lock(third, "default", "sms", [LOW])
            ours = asyncio.ensure_future(replayed(world))
            await asyncio.sleep(0.1)  # it has the batches by then, and waits if it does
            await archive.hold(third, one.id)
        [step] = await ours
        assert (len(step.replayed), step.failed) == (2, [])
    assert await circles(settings) == 0


async def replayed(world: World) -> list[replay.Step]:
    steps = replay.replay_many(world.database, archive.Asked("default"), world.rules, world.clock, "tester")
    return [step async for step in steps]
