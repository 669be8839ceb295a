"""What users do with what they get, and the seeding of many users and records at once.

Owns the vendor's word for each act and all that follows from it inside Kahuna. Refuses to call anybody: what a webhook
should be told is handed back.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Final, Literal, NamedTuple

import msgspec

from service.domain.addresses import Channel
from service.kahuna.simulator.campaigns import ADDRESS_CREDENTIALS
from service.kahuna.simulator.contract import Category, Env
from service.kahuna.simulator.people import Person
from service.kahuna.simulator.records import MICROSECONDS, Campaign, Device, Record
from service.kahuna.simulator.world import World

Act = Literal[
    "unsub",
    "hard_bounce",
    "soft_bounce",
    "spam",
    "email",
    "opened",
    "clicked",
    "email_goal",
    "stop",
    "start",
    "click",
    "goal",
    "more engaged",
    "uninstalled",
    "ia_click",
    "ia_goal",
]
# Kahuna tells of the first two groups by a webhook, and they may be done without a message before.
_TELLING_OF: Final[Mapping[Channel, tuple[Act, ...]]] = {
    "email": ("unsub", "hard_bounce", "soft_bounce", "spam"),
    "sms": ("stop", "start"),
}
_ENGAGEMENT_OF: Final[Mapping[Category, tuple[Act, ...]]] = {
    # The first is Kahuna's own: it mails them whatever they said, as it never should.
    "email": ("email", "opened", "clicked", "email_goal"),
    "push": ("click", "goal", "more engaged", "uninstalled"),
    "in_app": ("ia_click", "ia_goal"),
}
_TOLD: Final[Mapping[Act, Channel]] = {word: channel for channel, words in _TELLING_OF.items() for word in words}
_CATEGORIES: Final[Mapping[Act, Category]] = {
    word: category for groups in (_TELLING_OF, _ENGAGEMENT_OF) for category, words in groups.items() for word in words
}

_Count = Annotated[int, msgspec.Meta(ge=0, le=1_000_000)]


class SeedOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """So many new users, and so many records of theirs over this time until now, of which the last are stops."""

    env: Env = "s"
    users: _Count = 0
    records: _Count = 0
    stops: _Count = 0
    categories: Annotated[tuple[Literal["push", "in_app", "email"], ...], msgspec.Meta(min_length=1)] = ("email",)
    span_seconds: Annotated[int, msgspec.Meta(ge=0)] = 3600


class Deed(NamedTuple):
    """What was done by how many; what a webhook is to be told of it; and who could not do it."""

    acted: int
    channel: Channel | None
    entries: list[dict[str, Any]]
    skipped: list[Any]


def let_act(
    world: World, act: Act, people: Iterable[Person], campaign: Campaign | None = None, timestamp: int | None = None
) -> Deed:
    """Let these people do this: remembered, written down, and handed back for the webhook."""
    now = world.now()
    deed = Deed(0, _TOLD.get(act), [], [])
    acted = 0
    for person in people:
        if _write(world, person, act, now, campaign):
            acted += 1
            deed.entries.extend(_tell(world, person, act, timestamp))
        else:
            deed.skipped.append(person.credentials)
    return deed._replace(acted=acted)


def person_at(world: World, act: Act, address: str) -> Person | None:
    """Who has this address; somebody new if nobody has, since only a user can act. None for acts without address."""
    channel = _TOLD.get(act) or ("email" if _CATEGORIES[act] == "email" else None)
    if channel is None:
        return None
    now, kind = world.now(), ADDRESS_CREDENTIALS[channel]
    return world.people.of(kind, address) or world.people.meet({kind: address}, now)


def share(world: World, act: Act, part: float) -> list[Person]:
    """A random part of those who could do this; the seed decides who."""
    able = [person for person in world.people if _able(world, person, act)]
    return world.random.sample(able, round(len(able) * part))


def seed(world: World, order: SeedOrder) -> tuple[int, int]:
    """Many users and records, cheaply; returns how many there are now."""
    now = world.now()
    for _ in range(order.users):
        _seed_person(world, now)
    stops = min(order.stops, order.records) if "email" in order.categories else 0
    begins = max(now - order.span_seconds * MICROSECONDS, world.log.last_at)
    step = max(now - begins, 0) / max(order.records, 1)
    _seed_records(world, order, order.records - stops, begins, step)
    _seed_stops(world, stops, begins + int((order.records - stops) * step), step)
    return len(world.people), len(world.log)


def _write(world: World, person: Person, act: Act, at: int, campaign: Campaign | None) -> bool:
    if not _able(world, person, act, campaign):
        return False
    category = _CATEGORIES[act]
    chosen = campaign or person.last_campaigns.get(category)
    device = next(iter(person.devices.values()), None) if category in ("push", "in_app") else None
    if act == "uninstalled":
        for one in [*person.devices.values()]:
            world.people.keep_device(person, msgspec.structs.replace(one, push_enabled=False))
    address = _address(world, person, category) or ""
    world.log.add(Record(category, at, act, person.id, person.labels, chosen, address, device))
    return True


def _able(world: World, person: Person, act: Act, campaign: Campaign | None = None) -> bool:
    """Nobody opens what was never sent; but stopping, and starting again, needs no more than an address."""
    category = _CATEGORIES[act]
    if act in _TOLD:
        return _address(world, person, category) is not None
    return campaign is not None or category in person.last_campaigns


def _address(world: World, person: Person, category: Category) -> str | None:
    return world.address(person, category) if category in {"email", "sms"} else None


def _tell(world: World, person: Person, act: Act, timestamp: int | None) -> list[dict[str, Any]]:
    channel = _TOLD.get(act)
    if channel is None:
        return []
    address = world.address(person, channel) or ""
    # Kahuna's numbers are digits without a plus sign, in its samples.
    email, number = {"reason": act, "email": address}, {"number": address.removeprefix("+")}
    entry: dict[str, Any] = {**(email if channel == "email" else number)}
    entry["timestamp"] = world.seconds() if timestamp is None else timestamp
    if act == "start":
        entry["opt-in"] = True
    world.stops.keep(channel, entry, world.seconds())
    return [entry]


def _seed_person(world: World, now: int) -> None:
    number = next(world.seeded)
    name = f"seeded-{world.env}-{number}"
    credentials = {"username": name, "email": f"{name}@example.com", "mobile_number": f"1555{number:07d}"}
    person = world.people.meet(credentials, now)
    os_name = "ios" if number % 2 else "android"
    world.people.keep_device(person, Device(f"dev-{name}", os_name, f"token-{name}", True, now // MICROSECONDS))


_SEEDED: Final[Mapping[str, Sequence[str]]] = {
    "push": ("push", "push", "push", "click", "goal"),
    "in_app": ("ia_sent", "ia_delivered", "ia_click"),
    "email": ("email", "delivered", "email", "delivered", "opened", "clicked"),
}


def _seed_records(world: World, order: SeedOrder, count: int, begins: int, step: float) -> None:
    """Records of those who can be reached, one after the other, each of a kind that the seed decides."""
    reachable = [one for one in world.people if world.stops.reachable("email", world.address(one, "email"))]
    sources = [_source(world, category, reachable) for category in order.categories]
    if not reachable:
        return
    choose = world.random.choice
    for number, person in zip(range(count), itertools.cycle(reachable), strict=False):
        category, campaign = sources[number % len(sources)]
        device = None if category == "email" else next(iter(person.devices.values()), None)
        address = person.credentials["email"] if category == "email" else ""
        at, action = begins + int(number * step), choose(_SEEDED[category])
        world.log.add(Record(category, at, action, person.id, person.labels, campaign, address, device))


def _source(world: World, category: Category, reachable: Sequence[Person]) -> tuple[Category, Campaign]:
    """The campaign that the records of a category are of."""
    campaign = next(one for one in world.campaigns if one.channel == category and one.type == "adaptive")
    for person in reachable:
        person.last_campaigns[category] = campaign
    return category, campaign


def _seed_stops(world: World, count: int, begins: int, step: float) -> None:
    """Stops of so many people, the last ones first; only the logs tell of them, no webhook."""
    reachable = [one for one in world.people if world.stops.reachable("email", world.address(one, "email"))]
    words: Sequence[Act] = ("unsub", "hard_bounce", "spam")
    for number, person in enumerate(reachable[::-1][:count]):
        at = begins + int(number * step)
        act = words[number % len(words)]
        _write(world, person, act, at, None)
        _tell(world, person, act, at // MICROSECONDS)
