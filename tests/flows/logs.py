"""What tests of Kahuna's logs share: a Kahuna whose users act, and the walks that read of it."""

from datetime import UTC, datetime, timedelta
from typing import Any

import httpx

from service.flows import pull
from service.flows.pull import Pulled
from service.kahuna import NO_RETRY, Credentials, KahunaClient
from tests.flows.speaking import KEYS, World

TODAY = datetime(2026, 3, 1, tzinfo=UTC)
CAMPAIGN = 1002


class Failing(httpx.AsyncBaseTransport):
    """A transport that answers 500 from some request on."""

    def __init__(self, inner: httpx.AsyncBaseTransport, after: int) -> None:
        self._inner = inner
        self._left = after

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self._left -= 1
        return httpx.Response(500) if self._left < 0 else await self._inner.handle_async_request(request)


def client_of(world: World, transport: httpx.AsyncBaseTransport | None = None) -> KahunaClient:
    """A client that lives by the world's clock."""

    def now() -> float:
        return world.clock().timestamp()

    credentials = Credentials("http://kahuna.test", "s", KEYS.secret_key, KEYS.api_key)
    return KahunaClient(credentials, transport=transport or world.wire, retry=NO_RETRY, clock=now)


async def act(world: World, what: str, *addresses: str, **more: Any) -> None:
    """Lets these do something at Kahuna. No webhook is registered: the logs alone know."""
    order = {"act": what, "addresses": list(addresses)} | more
    answer = await world.control.post("/simulator/acts", json=order)
    assert answer.json()["acted"] == len(addresses), answer.text


async def mailed(world: World, *addresses: str) -> None:
    """Lets Kahuna send them an e-mail, whatever they said."""
    await act(world, "email", *addresses, campaign_id=CAMPAIGN)


async def pulled(
    world: World, since: datetime | None = TODAY, transport: httpx.AsyncBaseTransport | None = None, **more: Any
) -> Pulled:
    """All that the logs say from some time until now, or where the last pull ended until now."""
    async with client_of(world, transport) as client:
        until = world.clock()
        given = (world.database, client, "default", world.rules, world.clock)
        return await pull.pull(*given, **({"since": since, "until": until} | more))


async def filled(world: World, **more: Any) -> Pulled:
    """The backfill."""
    async with client_of(world) as client:
        return await pull.backfill(world.database, client, "default", world.rules, world.clock, **more)


async def due(world: World, every: float = 900.0, **more: Any) -> bool:
    """One look of the worker."""
    async with client_of(world) as client:
        given = (world.database, client, "default", world.rules, world.clock)
        return await pull.pull_due(*given, every=timedelta(seconds=every), **more)


async def facts(world: World) -> list[tuple[str, str, int, str]]:
    """Address, reason, time and origin of every fact."""
    rows = await world.query("select address, reason, occurred_at, origin from facts order by 1, 2, 3")
    return [(row.address, row.reason, row.occurred_at, row.origin) for row in rows]
