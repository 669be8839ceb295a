"""Owns what machines that watch us ask: is it alive, and is it ready? The worker is asked the same as the web process.

`Watched` is what both of them know of themselves. The figures are in `web.gauges`.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any, Final, Literal, Protocol, TypeVar

import msgspec
from starlette.responses import Response

from service.domain.deadlines import Calendar
from service.errors import StorageUnavailable
from service.flows import push
from service.flows.follow import Feed
from service.flows.shelter import Shelter
from service.flows.together import Together
from service.store import circuits, migrations, spool
from service.store.database import Connection, Database
from service.store.spool import Stock
from service.telemetry import Metrics, logger
from service.web.contract import Answer, AnyOperation, Call, Nothing, Operation
from service.web.http import answer

_T = TypeVar("_T")


class Watched(Protocol):
    """What a process knows of itself. `lookups` and `feed` are of the web process alone, `shelter` of one with a spool;
    `leaving` is set once it was told to end, `troubles` says what is amiss in it, and `seldom` keeps figures that are
    dear to find."""

    @property
    def database(self) -> Database: ...
    @property
    def metrics(self) -> Metrics: ...
    @property
    def now(self) -> datetime: ...
    @property
    def namespaces(self) -> Sequence[str]: ...
    @property
    def calendar(self) -> Calendar: ...
    @property
    def shelter(self) -> Shelter | None: ...
    @property
    def feed(self) -> Feed | None: ...
    @property
    def lookups(self) -> Together[Any, Any] | None: ...
    @property
    def leaving(self) -> asyncio.Event: ...
    @property
    def troubles(self) -> dict[str, str]: ...
    @property
    def seldom(self) -> dict[str, Any]: ...
    @property
    def revisions(self) -> frozenset[str]: ...
    @property
    def head(self) -> str: ...


class Alive(msgspec.Struct):
    """The process answers."""

    status: Literal["alive"]


class Readiness(msgspec.Struct):
    """Whether callbacks can be taken; each check in words. `degraded`: they are taken, but a person should look."""

    status: Literal["ready", "degraded", "not-ready"]
    checks: dict[str, str]


async def livez(_call: Call[Nothing, None]) -> Alive:
    """The process answers."""
    return Alive("alive")


async def readyz(call: Call[Nothing, None]) -> Response:
    """Ready for callbacks: the database is there, with every table that this code needs, or a spool in its place."""
    service: Watched = call.service
    if service.leaving.is_set():
        return _unready({"process": "was told to end"})
    try:
        checks, troubles = await asked(service, lambda connection: _checks(service, connection))
    except StorageUnavailable:
        return await _without_database(service)
    if checks["migrations"] != "ok":
        return _unready(checks)
    if service.shelter is not None:
        checks["spool"], amiss = _told(await stock_of(service.shelter))
        troubles |= {"spool": checks["spool"]} if amiss else {}
    troubles |= service.troubles
    return answer(Readiness("degraded" if troubles else "ready", checks | troubles))


_CHECKS: Final = {"database": "ok", "migrations": "ok"}

OPERATIONS: Final[list[AnyOperation]] = [
    Operation(
        "GET",
        "/livez",
        livez,
        scope=None,
        query=Nothing,
        answers=[Answer(200, Alive, "It does.", {"status": "alive"})],
    ),
    Operation(
        "GET",
        "/readyz",
        readyz,
        scope=None,
        query=Nothing,
        answers=[
            Answer(200, Readiness, "Callbacks can be taken.", {"status": "ready", "checks": _CHECKS}),
            Answer(
                503,
                Readiness,
                "They cannot.",
                {"status": "not-ready", "checks": {"database": "cannot be reached"}},
                headers={"Retry-After": "Seconds until the next try."},
            ),
        ],
    ),
]


async def asked(watched: Watched, question: Callable[[Connection], Awaitable[_T]]) -> _T:
    """What the database answers. One that is known to be away is not waited for."""

    async def ask() -> _T:
        async with watched.database.read() as connection:
            return await question(connection)

    return await (ask() if watched.shelter is None else watched.shelter.weather.trusting(ask))


async def _checks(service: Watched, connection: Connection) -> tuple[dict[str, str], dict[str, str]]:
    """What readiness takes, and what is amiss beside it."""
    checks = {"database": "ok", "migrations": _judged(service, await migrations.revision_of(connection))}
    broken = await circuits.all_open(connection) if checks["migrations"] == "ok" else {}
    troubles = {f"kahuna/{c.namespace}/{c.channel}": f"{c.reason}: {push.fix_of(c.reason)}" for c in broken.values()}
    return checks, troubles


async def _without_database(service: Watched) -> Response:
    """Still ready for callbacks, as long as the spool has room."""
    checks = {"database": "cannot be reached"}
    if service.shelter is None:
        return _unready(checks)
    refusal = await asyncio.to_thread(service.shelter.spool.refusal)
    if refusal is not None:
        return _unready(checks | {"spool": refusal})
    told, _ = _told(await stock_of(service.shelter))
    return answer(Readiness("degraded", checks | {"spool": f"takes callbacks; {told}"}))


def _unready(checks: dict[str, str]) -> Response:
    return answer(Readiness("not-ready", checks), 503, {"Retry-After": "5"})


async def stock_of(shelter: Shelter) -> Stock | None:
    """What is in the spool; None if the folder cannot be read."""
    try:
        return await asyncio.to_thread(shelter.spool.look)
    except OSError as error:
        logger().error("spool.unreadable", exc_info=error)
        return None


def _told(stock: Stock | None) -> tuple[str, bool]:
    """The state of the spool in words, and whether a person should look."""
    if stock is None:
        return "cannot be read: check SPOOL_DIR", True
    aside = stock.aside + len(stock.strangers)
    told = [f"{len(stock.batches)} wait to be applied"] if stock.batches else []
    told += [f"{aside} set aside: see *{spool.ASIDE} in SPOOL_DIR"] if aside else []
    return ", ".join(told) or "ok", aside > 0


def _judged(service: Watched, revision: str | None) -> str:
    """A revision that this code does not know is a newer one: migrations work with the previous release running."""
    behind = revision is None or (revision in service.revisions and revision != service.head)
    return "behind: run kahuna-sync migrate" if behind else "ok"
