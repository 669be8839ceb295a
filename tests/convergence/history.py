"""Owns what happens in a history: what people and the company say, which callbacks tell of it and when, and how Kahuna
and the workers fail meanwhile. All of it follows from a seed and a number, so that any history can be had again.

Histories share a world, some at a time: what is said is each one's own, the weather is the world's. Refuses to know
what any of it should lead to.
"""

from collections.abc import Sequence
from random import Random
from typing import Any, Final, Literal, NamedTuple

from service.domain.addresses import Channel

TICKS: Final = 9
"""Steps of a history before the faults end; what arrives at this step arrives after them."""

ABREAST: Final = 50
"""Histories in one world."""

Kind = Literal["act", "stop", "consent", "import"]

ACTS: Final[dict[Channel, Sequence[str]]] = {
    "email": ("unsub", "unsub", "hard_bounce", "soft_bounce", "soft_bounce", "spam"),
    "sms": ("stop", "stop", "start"),
}
REASONS: Final[dict[Channel, Sequence[str]]] = {
    "email": ("unsubscribe", "manual", "complaint", "hard_bounce", "soft_bounce", "invalid", "blocked", "rejected"),
    "sms": ("do_not_call", "manual", "invalid"),
}
_PAUSES: Final = (0, 1, 1, 2, 40, 200, 400, 3_000, 90_000, 700_000)
_AGES: Final = (None, None, 0, 1, 2, 100, 250, 400, 3_000, 100_000)
_NAMES: Final = ("anna", "bob.lee", "c+d", "dora", "emil")
_SPELT: Final = (str, str, str.upper, str.title)


class Said(NamedTuple):
    """One thing that somebody says at a step about an address, spelt in some way: a user of Kahuna's (`act`) or the
    company. `age` is how many seconds ago it happened by what is said; None: nothing is said of it. `arrives` are the
    steps at which a callback tells of it; none: it is lost."""

    tick: int
    channel: Channel
    address: str
    spelt: str
    kind: Kind
    word: str
    age: int | None = None
    arrives: tuple[int, ...] = ()

    def __str__(self) -> str:
        who = {"act": "user", "stop": "company", "consent": "company", "import": "list"}[self.kind]
        told = f", callbacks arrive at {list(self.arrives)}" if self.arrives else ", the callback is lost"
        age = "" if self.age is None else f" as of {self.age} s ago"
        return f"step {self.tick}: {who} says {self.word} for {self.spelt}{age}" + (told if self.kind == "act" else "")


class History(NamedTuple):
    """What is said, in order; whom Kahuna will not take, and which opt-ins that wait a person will approve."""

    number: int
    said: tuple[Said, ...]
    unwanted: frozenset[str]
    approves: bool


class Step(NamedTuple):
    """How the world is at a step: the seconds that pass first, how each channel's push fails (as the stand-in's faults
    say it), the limits of the pushes, and where workers die or stall."""

    pause: int
    faults: dict[Channel, dict[str, Any] | None]
    limits: dict[str, int]
    stalled: Channel | None
    answered: bool
    run: Channel | None
    run_dies: bool
    pulls: Literal["no", "yes", "fails", "dies"]
    cut: int
    """Entries in one callback, at most."""


def history(seed: int, number: int) -> History:
    """The history of this number."""
    chance = Random(f"{seed} history {number}")
    boxes = [f"{name}.{number}@example.com" for name in chance.sample(_NAMES, chance.randint(1, 2))]
    numbers = [f"1555{number:07d}{n}" for n in range(chance.randint(1, 2))]
    about: list[tuple[Channel, str]] = [*(("email", one) for one in boxes), *(("sms", one) for one in numbers)]
    said = sorted(
        (_said(chance, *chance.choice(about)) for _ in range(chance.randint(3, 10))), key=lambda one: one.tick
    )
    unwanted = frozenset(address for _, address in about if chance.random() < 0.08)
    return History(number, tuple(said), unwanted, chance.random() < 0.6)


def _said(chance: Random, channel: Channel, address: str) -> Said:
    tick = chance.randrange(TICKS)
    spelt = chance.choice(_SPELT)(address) if channel == "email" else address
    age = chance.choice(_AGES)
    share = chance.random()
    if share < 0.55:
        word = chance.choice(ACTS[channel])
        return Said(tick, channel, address, spelt, "act", word, None, _arrivals(chance, tick))
    if share < 0.75:
        return Said(tick, channel, address, spelt, "consent", "consent", age)
    return Said(
        tick, channel, address, spelt, "stop" if share < 0.9 else "import", chance.choice(REASONS[channel]), age
    )


def _arrivals(chance: Random, tick: int) -> tuple[int, ...]:
    """Lost, at once, late, or several times."""
    fate = chance.random()
    if fate < 0.25:
        return ()
    if fate < 0.55:
        return (tick,)
    return tuple(sorted(chance.choices(range(tick, TICKS + 1), k=chance.randint(1, 3))))


def weather(seed: int, world: int) -> list[Step]:
    """How the world of this number is, step by step."""
    chance = Random(f"{seed} world {world}")
    return [_step(chance) for _ in range(TICKS)]


def _step(chance: Random) -> Step:
    channels: tuple[Channel, Channel] = ("email", "sms")
    return Step(
        chance.choice(_PAUSES),
        {channel: _fault(chance) for channel in channels},
        {"entries": chance.choice((3, 10, 5000)), "requests": chance.choice((3, 64))},
        chance.choice((None, None, *channels)),
        chance.random() < 0.5,
        chance.choice((None, None, *channels)),
        chance.random() < 0.5,
        chance.choice(("no", "no", "yes", "fails", "dies")),
        chance.choice((3, 10, 100)),
    )


def _fault(chance: Random) -> dict[str, Any] | None:
    """Some way to fail, for some calls."""
    times = {"times": chance.choice((1, 1, 2, 3, 8))}
    refusing = {"reject_count": chance.choice((1, 2)), "name_rejected": chance.random() < 0.5}
    busy = {"status": chance.choice((429, 503)), "retry_after": chance.choice((1, 30))}
    ways: list[dict[str, Any] | None] = [
        None,
        None,
        None,
        {"status": chance.choice((500, 502, 503, 429))},
        busy,
        {"status": chance.choice((401, 409))},
        {"status": chance.choice((400, 413))},
        {"drop_request": True},
        {"drop_answer": True},
        {"drop_answer": True},
        {"body": chance.choice(("truncated", "html", "empty", "null", "not_utf8", "wrong_types", "wrong_shape"))},
        refusing,
        refusing,
        refusing | {"drop_answer": True},
    ]
    way = chance.choice(ways)
    return None if way is None else way | times


def in_words(one: History, steps: Sequence[Step]) -> str:
    """A history as people read it, with its weather."""
    refusing = ", ".join(sorted(one.unwanted)) or "nobody"
    decides = "approves" if one.approves else "refuses"
    lines = [f"history {one.number}: Kahuna refuses {refusing}; a person {decides} the opt-ins that wait"]
    for tick, step in enumerate(steps):
        faults = {channel: fault for channel, fault in step.faults.items() if fault}
        notes = [f"{step.pause} s pass", f"pulls: {step.pulls}"]
        notes += [f"faults {faults}"] if faults else []
        notes += [f"a push of {step.stalled} stalls {'after' if step.answered else 'before'} Kahuna took it"] * (
            step.stalled is not None
        )
        notes += [f"a run of {step.run}{' whose worker dies' if step.run_dies else ''}"] * (step.run is not None)
        lines.append(f"step {tick}: " + "; ".join(notes))
        lines += [f"    {said}" for said in one.said if said.tick == tick]
    return "\n".join(lines)
