"""The endpoints that only a stand-in has.

Owns what can be seen of it, switched on, and let happen. Refuses what means nothing with a 400, since a scenario that
is misspelt proves nothing.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Final, TypeVar

import httpx
import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from service.domain.addresses import Channel
from service.kahuna.simulator import acts
from service.kahuna.simulator.acts import Act, Deed, SeedOrder
from service.kahuna.simulator.campaigns import CampaignOrder
from service.kahuna.simulator.contract import ENVS, Env, decoded, folded
from service.kahuna.simulator.door import environment
from service.kahuna.simulator.faults import Fault
from service.kahuna.simulator.people import Person, profile
from service.kahuna.simulator.records import Campaign
from service.kahuna.simulator.syncs import rejections
from service.kahuna.simulator.webhooks import Webhooks
from service.kahuna.simulator.world import Kahuna, World

_Row = TypeVar("_Row")
_LIMIT_DIGITS: Final = 9


class CallbackOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A callback to be signed and sent, `to` whoever is registered if nothing else is said. With `remember`, Kahuna
    has learned the same facts itself."""

    channel: Channel
    entries: list[Any]
    to: str | None = None
    remember: bool = False
    env: Env = "s"


class WebhookOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where callbacks of a channel go; null for nowhere. Without `env`, of both environments."""

    channel: Channel
    url: str | None
    env: Env | None = None


class _ActOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    act: Act
    env: Env = "s"
    campaign_id: int | None = None
    # What the callback says; else the time of the act.
    timestamp: int | None = None
    # Else the callbacks wait for `POST /simulator/deliveries`.
    deliver: bool = True


class ActOrder(_ActOrder, frozen=True, kw_only=True):
    """These users do this: by credentials, or by address."""

    users: list[dict[str, str]] = []
    addresses: list[str] = []


class ShareOrder(_ActOrder, frozen=True, kw_only=True):
    """A part of all users who could do this."""

    share: Annotated[float, msgspec.Meta(ge=0, le=1)]


class Control:
    """Everything under /simulator."""

    def __init__(self, kahuna: Kahuna, webhooks: Webhooks) -> None:
        self._kahuna = kahuna
        self._webhooks = webhooks

    def routes(self) -> list[Route]:
        """The endpoints."""
        return [
            Route("/simulator/state", self.state, methods=["GET"]),
            Route("/simulator/users", self.users, methods=["GET"]),
            Route("/simulator/requests", self.requests, methods=["GET"]),
            Route("/simulator/faults", self.faults, methods=["GET"]),
            Route("/simulator/faults", self.set_fault, methods=["PUT"]),
            Route("/simulator/faults", self.clear_faults, methods=["DELETE"]),
            Route("/simulator/callbacks", self.send_callback, methods=["POST"]),
            Route("/simulator/campaigns", self.campaigns, methods=["GET"]),
            Route("/simulator/campaigns", self.make_campaign, methods=["POST"]),
            Route("/simulator/webhooks", self.webhooks, methods=["GET"]),
            Route("/simulator/webhooks", self.register, methods=["PUT"]),
            Route("/simulator/deliveries", self.pending, methods=["GET"]),
            Route("/simulator/deliveries", self.deliver, methods=["POST"]),
            Route("/simulator/acts", self.act, methods=["POST"]),
            Route("/simulator/acts/share", self.act_share, methods=["POST"]),
            Route("/simulator/seed", self.seed, methods=["POST"]),
        ]

    # What is held.

    async def state(self, request: Request) -> Response:
        """What is held of addresses; of one environment, channel or address if they are given."""
        query = request.query_params
        channel, address = query.get("channel"), query.get("address")
        slots = [
            {"env": env, "channel": key[0], "address": key[1], "word": key[2], **slot._asdict()}
            for env, world in self._worlds(query.get("env")).items()
            for key, slot in world.stops.slots.items()
            if channel in (None, key[0]) and (address is None or folded(address) == key[1])
        ]
        return JSONResponse({"slots": slots})

    async def users(self, request: Request) -> Response:
        """How many users there are, and the last of them."""
        limit = _limit(request)
        worlds = self._worlds(request.query_params.get("env")).values()
        people = [person for world in worlds for person in world.people]
        return JSONResponse({"count": len(people), "users": [profile(one) for one in _last(people, limit)]})

    async def requests(self, request: Request) -> Response:
        """The last requests, oldest first."""
        limit = _limit(request)
        return JSONResponse({"requests": _last(list(self._kahuna.requests), limit)})

    # Faults.

    async def set_fault(self, request: Request) -> Response:
        """Let an API fail from now on, in this way instead of any other."""
        self._kahuna.faults.set(decoded(await request.body(), Fault))
        return Response(status_code=204)

    async def faults(self, _request: Request) -> Response:
        """How each API fails now."""
        return Response(msgspec.json.encode(self._kahuna.faults.by_api), media_type="application/json")

    async def clear_faults(self, _request: Request) -> Response:
        """Let everything work again."""
        self._kahuna.faults.by_api.clear()
        return Response(status_code=204)

    # Campaigns.

    async def campaigns(self, request: Request) -> Response:
        """The campaigns that there are."""
        found = [one for world in self._worlds(request.query_params.get("env")).values() for one in world.campaigns]
        return Response(msgspec.json.encode({"campaigns": found}), media_type="application/json")

    async def make_campaign(self, request: Request) -> Response:
        """Make a campaign, as a person would in the vendor's own screens."""
        order = decoded(await request.body(), CampaignOrder)
        campaign = self._kahuna.worlds[order.env].campaigns.make(order)
        return JSONResponse({"campaign_id": campaign.campaign_id}, 201)

    # Callbacks.

    async def send_callback(self, request: Request) -> Response:
        """Sign and send, once."""
        order = decoded(await request.body(), CallbackOrder)
        to = order.to or self._webhooks.targets.get((order.env, order.channel))
        if to is None:
            raise HTTPException(400, "nobody is registered for this channel: say `to`, or PUT /simulator/webhooks")
        if order.remember:
            self._remember(order)
        try:
            answer = await self._webhooks.send_once(order.channel, order.entries, to)
        except (httpx.RequestError, httpx.InvalidURL) as error:
            raise HTTPException(502, f"No answer from the receiver: {type(error).__name__}") from None
        return JSONResponse({"status": answer.status_code, "body": answer.text})

    async def webhooks(self, _request: Request) -> Response:
        """Who is called."""
        targets = self._webhooks.targets.items()
        return JSONResponse({"webhooks": [{"env": e, "channel": c, "url": url} for (e, c), url in targets]})

    async def register(self, request: Request) -> Response:
        """Call this address from now on."""
        order = decoded(await request.body(), WebhookOrder)
        if order.url is not None and not _is_url(order.url):
            raise HTTPException(400, "url must be an http or https address")
        for env in ENVS:
            if order.env in (None, env):
                self._webhooks.register(env, order.channel, order.url)
        return Response(status_code=204)

    async def pending(self, _request: Request) -> Response:
        """The callbacks that nobody took yet."""
        return JSONResponse({"undelivered": [callback.told() for callback in self._webhooks.pending]})

    async def deliver(self, _request: Request) -> Response:
        """Deliver what waits, and again what nobody took."""
        return JSONResponse(await self._delivered())

    # Users.

    async def act(self, request: Request) -> Response:
        """Let these users do something."""
        order = decoded(await request.body(), ActOrder)
        world = self._kahuna.worlds[order.env]
        campaign = _campaign(world, order)
        people, unknown = _people(world, order)
        deed = acts.let_act(world, order.act, people, campaign, order.timestamp)
        deed.skipped.extend(unknown)
        return await self._done(order, deed)

    async def act_share(self, request: Request) -> Response:
        """Let a part of all users do something."""
        order = decoded(await request.body(), ShareOrder)
        world = self._kahuna.worlds[order.env]
        campaign = _campaign(world, order)
        world.now()
        people = acts.share(world, order.act, order.share)
        return await self._done(order, acts.let_act(world, order.act, people, campaign, order.timestamp))

    async def seed(self, request: Request) -> Response:
        """Make many users and records."""
        order = decoded(await request.body(), SeedOrder)
        users, records = acts.seed(self._kahuna.worlds[order.env], order)
        return JSONResponse({"users": users, "records": records})

    def _worlds(self, env: str | None) -> dict[Env, World]:
        """One world or both, with everything done that is due."""
        chosen = ENVS if env is None else (environment(env),)
        worlds = {one: self._kahuna.worlds[one] for one in chosen}
        for world in worlds.values():
            world.now()
        return worlds

    def _remember(self, order: CallbackOrder) -> None:
        world = self._kahuna.worlds[order.env]
        rejected = rejections(order.channel, order.entries, Fault())
        for index, entry in enumerate(order.entries):
            if index not in rejected:
                world.stops.keep(order.channel, entry, world.seconds())

    async def _done(self, order: _ActOrder, deed: Deed) -> Response:
        if deed.channel is not None:
            self._webhooks.queue(order.env, deed.channel, deed.entries)
        told = await self._delivered() if order.deliver else self._undelivered([])
        return JSONResponse({"acted": deed.acted, "skipped": deed.skipped} | told)

    async def _delivered(self) -> dict[str, Any]:
        return self._undelivered([callback.told() for callback in await self._webhooks.deliver()])

    def _undelivered(self, deliveries: list[dict[str, Any]]) -> dict[str, Any]:
        return {"deliveries": deliveries, "undelivered": len(self._webhooks.pending)}


def _campaign(world: World, order: _ActOrder) -> Campaign | None:
    if order.campaign_id is None:
        return None
    campaign = world.campaigns.get(order.campaign_id)
    if campaign is None:
        raise HTTPException(400, "campaign_id does not exist")
    return campaign


def _people(world: World, order: ActOrder) -> tuple[list[Person], list[Any]]:
    """Who is meant, each once and in order, and whom nobody knows."""
    world.now()
    found: dict[int, Person] = {}
    unknown: list[Any] = []
    named = [(user, next(iter(world.people.find(user)), None)) for user in order.users]
    for said, person in named + [(one, acts.person_at(world, order.act, one)) for one in order.addresses]:
        if person is None:
            unknown.append(said)
        else:
            found[person.id] = person
    return list(found.values()), unknown


def _limit(request: Request) -> int:
    limit = request.query_params.get("limit", "100")
    if not limit.isdecimal() or len(limit) > _LIMIT_DIGITS:
        raise HTTPException(400, "limit must be a number")
    return int(limit)


def _last(rows: Sequence[_Row], limit: int) -> Sequence[_Row]:
    """As many from the end; all, if they are fewer."""
    return rows[max(0, len(rows) - limit) :]


def _is_url(text: str) -> bool:
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL:
        return False
    return url.scheme in ("http", "https") and bool(url.host)
