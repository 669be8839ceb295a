"""Many addresses at once: each answered in its place, as the question about that one alone would be."""

import pytest

from service.domain.suppression import DAY
from service.flows.check import Asking, Checked, check
from tests.flows.speaking import World

ANN, BOB = "ann@example.com", "bob@example.com"


def asking(world: World, **more: str) -> Asking:
    given = {"namespace": "default", "channel": "email", "purpose": "marketing"} | more
    return Asking(**given, at=world.clock.seconds, policy=world.policy)  # type: ignore[arg-type]


async def test_each_is_answered_in_its_place_as_it_was_spelt(world: World) -> None:
    await world.stop("email", ANN, "manual")
    await world.stop("email", ANN, "complaint")
    spelt = [" Ann@Example.COM ", BOB, "nobody", ANN, BOB, "nobody"]
    found = await check(world.database, asking(world), spelt)
    stopped, free = ("complaint", "manual"), ()
    assert found == [
        Checked(" Ann@Example.COM ", True, stopped),
        Checked(BOB, False, free),
        Checked("nobody", error="not-an-email-address"),
        Checked(ANN, True, stopped),
        Checked(BOB, False, free),
        Checked("nobody", error="not-an-email-address"),
    ]


async def test_only_what_counts_for_the_purpose_is_told(world: World) -> None:
    await world.stop("email", ANN, "unsubscribe")
    await world.stop("email", BOB, "unsubscribe")
    await world.stop("email", BOB, "invalid")
    found = await check(world.database, asking(world, purpose="transactional"), [ANN, BOB])
    assert found == [Checked(ANN, False, ()), Checked(BOB, True, ("invalid",))]


async def test_what_was_cleared_or_has_lapsed_is_no_reason(world: World) -> None:
    await world.stop("sms", "15550100001", "do_not_call", world.clock.seconds - 10)
    await world.consent("sms", "15550100001")
    for day in (1, 2, 3):
        await world.stop("email", ANN, "soft_bounce", world.clock.seconds - day * DAY)
    assert await check(world.database, asking(world, channel="sms"), ["+1 555 010 0001"]) == [
        Checked("+1 555 010 0001", False, ())
    ]
    assert await check(world.database, asking(world), [ANN]) == [Checked(ANN, True, ("soft_bounce",))]
    world.clock.sleep(30 * DAY)
    assert await check(world.database, asking(world), [ANN]) == [Checked(ANN, False, ())]


@pytest.mark.parametrize("count", [0, 1, 1000, 1001, 2500])
async def test_any_number_is_answered(world: World, count: int) -> None:
    await world.stop("email", "u7@example.com", "manual")
    spelt = [f"U{n}@example.com" for n in range(count)]
    found = await check(world.database, asking(world), spelt)
    assert [one.address for one in found] == spelt
    assert [n for n, one in enumerate(found) if one.suppressed] == [7][: count > 7]


async def test_nothing_is_asked_of_the_database_about_what_is_impossible(world: World) -> None:
    await world.database.close()
    await world.execute("alter table suppressions rename to gone")
    found = await check(world.database, asking(world), ["nobody"])
    assert found == [Checked("nobody", error="not-an-email-address")]
