"""A list from elsewhere becomes facts once, however it is cut, repeated or interrupted, and never clears anything."""

import gzip
import random
from collections.abc import AsyncIterator, Iterable
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.domain.facts import Fact, reasons_of
from service.domain.suppression import fold
from service.errors import BadRequest, StorageUnavailable, Unprocessable
from service.flows import imports as flow
from service.flows import replay, upkeep
from service.flows.imports import Import, Order, Tally
from service.flows.upkeep import Retention
from service.store import archive, outbox
from tests.flows.speaking import World
from tests.flows.test_rebuild import disagreements, retire

AT = 1_700_000_000
HOUR = 3600


class CutOff(Exception):
    """The sender went away."""


async def parts(body: bytes, size: int = 1000, until: int | None = None) -> AsyncIterator[bytes]:
    """A body piece by piece; with `until`, its sender goes away after so many bytes."""
    for start in range(0, len(body) if until is None else until, size):
        yield body[start : start + size]
    if until is not None:
        raise CutOff


def importing(world: World, channel: Any = "email", **said: Any) -> Import:
    """An import that is ready to run."""
    order = Order("default", channel, "tester", random.SystemRandom().getrandbits(50), "list.csv")
    return Import(world.database, order._replace(**said), world.rules, world.clock)


async def imported(world: World, body: bytes | str, channel: Any = "email", **said: Any) -> Tally:
    """A list, taken in whole."""
    raw = body.encode() if isinstance(body, str) else body
    return await importing(world, channel, **said).run(parts(raw))


def figures(tally: Tally) -> tuple[int, int, int, int]:
    return tally.accepted, tally.duplicates, tally.rejected, tally.skipped


async def stored(world: World) -> list[Any]:
    """Every fact, as it is."""
    return await world.query("select * from facts order by address, reason, action, occurred_at, source")


async def causes(world: World) -> list[Any]:
    names = "address, channel, reason, stop_at, clear_at, bounces"
    return await world.query(f"select {names} from suppressions where stop_at is not null order by address, reason")


def small(monkeypatch: pytest.MonkeyPatch, lines: int) -> None:
    raise NotImplementedError
