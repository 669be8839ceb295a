"""Opt-ins that wait for a person: which ones do, what Kahuna is told meanwhile, and what a decision does."""

import uuid
from dataclasses import replace
from typing import Any

import pytest

from service.errors import Conflict, NotFound
from service.flows import review
from service.settings import Settings
from service.store import reviews
from tests.flows.speaking import World
from tests.flows.test_ingest import NUMBER, counts, suppressed


async def waiting(world: World) -> list[Any]:
    async with world.database.read() as connection:
        return list(await reviews.by_state(connection, "default", "pending", 100))


async def decide(world: World, decision: str, review_id: uuid.UUID | None = None) -> dict[str, Any]:
    found = review_id or (await waiting(world))[0]["id"]
    return await review.decide(world.database, found, decision, "tester", None, world.policy, world.clock, None)


def start(at: int | None) -> list[dict[str, Any]]:
    return [{"number": NUMBER, "opt-in": True} | ({} if at is None else {"timestamp": at})]


def reviewing(settings: Settings, opt_in_review: Any = "local", untimed_opt_in: Any = "hold") -> Settings:
    changed = replace(settings.namespaces[0], opt_in_review=opt_in_review, untimed_opt_in=untimed_opt_in)
    return replace(settings, namespaces=(changed,))


async def test_an_opt_in_against_our_own_stop_waits_and_is_approved(world: World) -> None:
    now = world.clock.seconds
    await world.stop("sms", NUMBER, "do_not_call", at=now - 100)
    await world.callback("sms", start(now - 50))
    assert [row["why"] for row in await waiting(world)] == ["local-stop"]
    assert await suppressed(world, "sms", NUMBER)
    await decide(world, "approved")
    assert not await suppressed(world, "sms", NUMBER)


async def test_while_it_waits_kahuna_is_told_to_stop_and_after_approval_to_go_on(world: World) -> None:
    now = world.clock.seconds
    await world.stop("sms", NUMBER, "do_not_call", at=now - 100)
    await world.callback("sms", start(now - 50))
    await world.push("sms")
    assert (await world.held("sms", NUMBER))[None] == ("stop", now - 49)
    await decide(world, "approved")
    await world.push("sms")
    assert (await world.held("sms", NUMBER))[None] == ("opt-in", now - 48)


async def test_an_opt_in_against_kahuna_s_own_stop_does_not_wait(world: World) -> None:
    now = world.clock.seconds
    await world.callback("sms", [{"number": NUMBER, "timestamp": now - 100}])
    await world.callback("sms", start(now - 50))
    assert not await waiting(world)
    assert not await suppressed(world, "sms", NUMBER)


async def test_an_opt_in_that_clears_nothing_does_not_wait(world: World) -> None:
    now = world.clock.seconds
    await world.stop("sms", NUMBER, "do_not_call", at=now - 10)
    await world.callback("sms", start(now - 50))
    assert not await waiting(world)
    assert await suppressed(world, "sms", NUMBER)


async def test_a_refused_opt_in_is_not_asked_about_again(world: World) -> None:
    now = world.clock.seconds
    await world.stop("sms", NUMBER, "do_not_call", at=now - 100)
    await world.callback("sms", start(now - 50))
    await decide(world, "refused")
    again = await world.callback("sms", [*start(now - 50), {"number": "15550100009", "timestamp": now}])
    assert counts(again.outcome) == (1, 1, 0)
    assert not await waiting(world)
    assert await suppressed(world, "sms", NUMBER)


async def test_a_decision_stands(world: World) -> None:
    await world.callback("sms", start(None))
    [asked] = await waiting(world)
    await decide(world, "refused", asked["id"])
    with pytest.raises(Conflict):
        await decide(world, "approved", asked["id"])
    with pytest.raises(NotFound):
        await decide(world, "approved", uuid.uuid4())


async def test_an_approved_untimed_opt_in_takes_the_time_of_its_receipt(world: World) -> None:
    await world.callback("sms", start(None))
    world.clock.sleep(10)
    await world.callback("sms", [{"number": NUMBER, "timestamp": world.clock.seconds}])
    world.clock.sleep(10)
    await decide(world, "approved")
    assert await suppressed(world, "sms", NUMBER), "the stop came after it"


async def test_all_opt_ins_wait_if_so_set(world: World) -> None:
    world.rule_by(reviewing(world.settings, opt_in_review="all"))
    await world.callback("sms", start(world.clock.seconds))
    assert [row["why"] for row in await waiting(world)] == ["all"]
    await decide(world, "approved")
    again = await world.callback("sms", [*start(world.clock.seconds), {"number": "15550100009", "timestamp": 1}])
    assert counts(again.outcome) == (1, 1, 0)


async def test_none_waits_if_so_set(world: World) -> None:
    now = world.clock.seconds
    world.rule_by(reviewing(world.settings, opt_in_review="off", untimed_opt_in="receipt"))
    await world.stop("sms", NUMBER, "do_not_call", at=now - 100)
    await world.callback("sms", start(None))
    assert not await suppressed(world, "sms", NUMBER)
    assert not await waiting(world)


async def test_a_refusal_stands_when_reviews_are_switched_off(world: World) -> None:
    now = world.clock.seconds
    await world.stop("sms", NUMBER, "do_not_call", at=now - 100)
    await world.callback("sms", start(now - 50))
    await decide(world, "refused")
    world.rule_by(reviewing(world.settings, opt_in_review="off"))
    again = await world.callback("sms", [*start(now - 50), {"number": "15550100009", "timestamp": now}])
    assert counts(again.outcome) == (1, 1, 0)
    assert await suppressed(world, "sms", NUMBER)
