"""Spot checks: what Kahuna says of single addresses, within a budget of calls."""

import httpx
import pytest

from service.flows import profiles
from service.flows.profiles import Observation
from service.kahuna import NotPermitted
from tests.flows.logs import act, client_of
from tests.flows.speaking import World
from tests.flows.test_ingest import unsub

A, B = "a@example.com", "b@example.com"


async def checked(
    world: World, addresses: list[str] | int, budget: int = 100, transport: httpx.AsyncBaseTransport | None = None
) -> list[Observation]:
    async with client_of(world, transport) as client:
        return await profiles.spot_check(world.database, client, "default", "email", addresses, budget, world.clock)


async def test_kahunas_state_of_given_addresses(world: World) -> None:
    await act(world, "unsub", A)
    await act(world, "soft_bounce", B)
    found = await checked(world, [A, B, "nobody@example.com", A])
    assert [(one.address, one.suppressed) for one in found] == [(A, True), (B, False), ("nobody@example.com", None)]
    assert {one.slot for one in found} == {"unsubscribe"}
    assert found[0].evidence == {"asked_at": world.clock(), "found": True, "field": "email_opt_out", "value": True}


async def test_a_number_is_asked_about_by_its_own_field(world: World) -> None:
    await act(world, "stop", "15550100001")
    async with client_of(world) as client:
        [one] = await profiles.spot_check(world.database, client, "default", "sms", ["15550100001"], 1, world.clock)
    assert (one.slot, one.suppressed) == ("do_not_call", True)


async def test_a_sample_is_of_the_list_and_within_the_budget(world: World) -> None:
    await world.callback("email", [unsub(f"{n}@example.com") for n in range(30)])
    await world.callback("email", [unsub("stranger@example.com")], "other")
    found = await checked(world, 20, budget=12)
    assert len({one.address for one in found}) == 12
    assert "stranger@example.com" not in {one.address for one in await checked(world, 50)}
    assert len(await checked(world, [f"{n}@example.com" for n in range(30)], budget=7)) == 7


async def test_an_address_that_kahuna_fails_to_answer_about_has_no_state(world: World) -> None:
    await act(world, "unsub", A)
    await world.fault(api="user_info", status=500, times=1)
    [one] = await checked(world, [A])
    assert (one.suppressed, one.evidence["failed"]) == (None, "unavailable")


class Saying(httpx.AsyncBaseTransport):
    """A Kahuna that says this in place of that a user is stopped."""

    def __init__(self, world: World, value: str) -> None:
        self._world = world
        self._value = value

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        answer = await self._world.wire.handle_async_request(request)
        body = (await answer.aread()).replace(b'"email_opt_out":true', f'"email_opt_out":{self._value}'.encode())
        return httpx.Response(answer.status_code, content=body)


@pytest.mark.parametrize(("value", "at"), [("1700000000", 1700000000), ("1700000000123", 1700000000)])
async def test_a_time_may_be_in_milliseconds(world: World, value: str, at: int) -> None:
    """Taken for seconds, it would be a stop that no consent ends, dated beyond any calendar."""
    await act(world, "unsub", A)
    [one] = await checked(world, [A], transport=Saying(world, value))
    assert (one.suppressed, one.at) == (True, at)


async def test_keys_without_the_permission_end_it(world: World) -> None:
    await world.fault(api="user_info", status=409)
    with pytest.raises(NotPermitted):
        await checked(world, [A, B])


@pytest.mark.parametrize(
    ("value", "suppressed", "at"),
    [
        (True, True, None),
        (False, False, None),
        (1_700_000_000, True, 1_700_000_000),
        ("yes", None, None),
        (1_700_000_000_123, True, 1_700_000_000),
        (0, None, None),
        (-5, None, None),
        (1 << 34, None, None),
    ],
)
async def test_only_a_field_that_is_clear_is_believed(
    world: World, value: object, suppressed: bool | None, at: int | None
) -> None:
    def answer(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={"success": True, "user": {"attributes": {"email_opt_out": value}}})

    [one] = await checked(world, [A], transport=httpx.MockTransport(answer))
    assert (one.suppressed, one.at) == (suppressed, at)
