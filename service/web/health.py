"""Owns what machines that watch us ask: is it alive, is it ready, and its figures."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime
from itertools import product
from typing import Any, Final, Literal, TypeVar

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.core import GaugeMetricFamily
from starlette.responses import Response

from service.domain.addresses import CHANNELS
from service.domain.deadlines import URGENCIES
from service.errors import StorageUnavailable
from service.flows import push
from service.flows.shelter import Shelter
from service.store import batches, changes, circuits, migrations, outbox, pulls, reviews, spool, violations
from service.store.database import Connection
from service.store.deadlines import Counted
from service.store.spool import Stock
from service.telemetry import logger
from service.web import figures
from service.web.contract import Answer, AnyOperation, Call, Nothing, Operation
from service.web.http import Service, answer

_T = TypeVar("_T")


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
    service = call.service
    try:
        checks, troubles = await _asked(service, lambda connection: _checks(service, connection))
    except StorageUnavailable:
        return await _without_database(service)
    if checks["migrations"] != "ok":
        return _unready(checks)
    if service.shelter is not None:
        checks["spool"], amiss = _told(await _stock(service.shelter))
        troubles |= {"spool": checks["spool"]} if amiss else {}
    return answer(Readiness("degraded" if troubles else "ready", checks | troubles))


async def metrics(call: Call[Nothing, None]) -> Response:
    """Figures for Prometheus. Those that the database knows are left out while it is away."""
    service = call.service
    text = generate_latest(service.metrics.registry)
    followers = GaugeMetricFamily("kahuna_sync_feed_waiting", "Followers of the feed that wait in this process")
    followers.add_metric([], service.feed.waiting)
    text += generate_latest(_Stored([followers]))
    if service.shelter is not None:
        stock = await _stock(service.shelter)
        text += generate_latest(_Stored(_spooled(stock, service.now.timestamp()) if stock else []))
    try:
        text += generate_latest(_Stored(await _asked(service, lambda connection: _stored(service, connection))))
    except StorageUnavailable:
        logger().warning("metrics.incomplete")
    return Response(text, media_type=CONTENT_TYPE_LATEST)


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
    Operation(
        "GET",
        "/metrics",
        metrics,
        scope=None,
        query=Nothing,
        answers=[Answer(200, str, "In Prometheus' text format.", media_type="text/plain")],
    ),
]


async def _asked(service: Service, question: Callable[[Connection], Awaitable[_T]]) -> _T:
    """What the database answers. One that is known to be away is not waited for."""

    async def ask() -> _T:
        async with service.database.read() as connection:
            return await question(connection)

    return await (ask() if service.shelter is None else service.shelter.weather.trusting(ask))


async def _checks(service: Service, connection: Connection) -> tuple[dict[str, str], dict[str, str]]:
    """What readiness takes, and what is amiss beside it."""
    checks = {"database": "ok", "migrations": _judged(service, await migrations.revision_of(connection))}
    broken = await circuits.all_open(connection) if checks["migrations"] == "ok" else {}
    troubles = {f"kahuna/{c.namespace}/{c.channel}": f"{c.reason}: {push.fix_of(c.reason)}" for c in broken.values()}
    return checks, troubles


async def _without_database(service: Service) -> Response:
    """Still ready for callbacks, as long as the spool has room."""
    checks = {"database": "cannot be reached"}
    if service.shelter is None:
        return _unready(checks)
    refusal = await asyncio.to_thread(service.shelter.spool.refusal)
    if refusal is not None:
        return _unready(checks | {"spool": refusal})
    told, _ = _told(await _stock(service.shelter))
    return answer(Readiness("degraded", checks | {"spool": f"takes callbacks; {told}"}))


def _unready(checks: dict[str, str]) -> Response:
    return answer(Readiness("not-ready", checks), 503, {"Retry-After": "5"})


async def _stock(shelter: Shelter) -> Stock | None:
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


def _spooled(stock: Stock, now: float) -> list[GaugeMetricFamily]:
    oldest = now - spool.received_at_of(stock.batches[0]) if stock.batches else 0.0
    figures = (
        ("spool_files", "Callbacks that wait in the spool", len(stock.batches)),
        ("spool_bytes", "Bytes of disk that the spool takes, of SPOOL_LIMIT_BYTES", stock.size),
        ("spool_oldest_seconds", "Seconds since the oldest callback in the spool was received", max(oldest, 0.0)),
        ("spool_set_aside", "Files in the spool that are no whole callback", stock.aside + len(stock.strangers)),
    )
    return [GaugeMetricFamily(f"kahuna_sync_{name}", about, value=value) for name, about, value in figures]


def _judged(service: Service, revision: str | None) -> str:
    """A revision that this code does not know is a newer one: migrations work with the previous release running."""
    behind = revision is None or (revision in service.revisions and revision != service.head)
    return "behind: run kahuna-sync migrate" if behind else "ok"


async def _stored(service: Service, connection: Connection) -> list[GaugeMetricFamily]:
    now = service.now
    unapplied = GaugeMetricFamily("kahuna_sync_unapplied_batches", "Batches recorded but not applied yet")
    unapplied.add_metric([], await batches.unapplied_count(connection))
    waiting = GaugeMetricFamily("kahuna_sync_pending_reviews", "Opt-ins that wait for a person")
    waiting.add_metric([], await reviews.pending_count(connection))
    about = "Corrections that wait, are given up (dead) or were refused by Kahuna"
    depth = GaugeMetricFamily("kahuna_sync_corrections", about, labels=["namespace", "state"])
    for (namespace, state), count in (await outbox.depth(connection)).items():
        depth.add_metric([namespace, state], count)
    broken = GaugeMetricFamily(
        "kahuna_sync_open_circuits", "Channels that nothing is sent of", labels=["namespace", "channel"]
    )
    for namespace, channel in await circuits.all_open(connection):
        broken.add_metric([namespace, channel], 1)
    about = "Seconds since the oldest change was recorded that an older transaction of the server keeps from the feed"
    lag = GaugeMetricFamily("kahuna_sync_feed_lag_seconds", about)
    lag.add_metric([], await changes.lag(connection, now))
    told = [*await _clocked(service, connection), *await _of_logs(connection, now)]
    return [unapplied, waiting, depth, broken, lag, *told]


async def _of_logs(connection: Connection, now: datetime) -> list[GaugeMetricFamily]:
    """How far Kahuna's logs were read, and what they show."""
    about = "Messages that Kahuna sent to an address after a stop was in force, by who knew of it: kahuna or us"
    leaks = GaugeMetricFamily("kahuna_sync_violations", about, labels=["namespace", "known_by"])
    for labels, count in (await violations.counts(connection)).items():
        leaks.add_metric(labels, count)
    about = "Seconds since the moment up to which a log of Kahuna's was read"
    age = GaugeMetricFamily("kahuna_sync_log_age_seconds", about, labels=["namespace", "api"])
    about = "Logs whose last pull or backfill failed, which are tried again"
    failing = GaugeMetricFamily("kahuna_sync_logs_failing", about, labels=["namespace", "api", "walk"])
    for walk in await pulls.standing(connection):
        if walk.walk == pulls.PULL:
            age.add_metric([walk.namespace, walk.api], (now - walk.reached).total_seconds())
        failing.add_metric([walk.namespace, walk.api, walk.walk], int(walk.error is not None))
    return [leaks, age, failing]


async def _clocked(service: Service, connection: Connection) -> list[GaugeMetricFamily]:
    """Stops that Kahuna does not hold, and how long ago the oldest happened; every namespace and channel has them."""
    now, labels = int(service.now.timestamp()), ["namespace", "channel"]
    found = {(one.namespace, one.channel): one for one in await figures.counted(connection, now, service.calendar)}
    open_ = GaugeMetricFamily(
        "kahuna_sync_open_stops", "Stops that Kahuna does not hold, by when they are due", labels=[*labels, "state"]
    )
    age = GaugeMetricFamily(
        "kahuna_sync_oldest_open_stop_seconds", "Seconds since the oldest of them happened, 0 if none", labels=labels
    )
    for name, channel in product((namespace.name for namespace in service.settings.namespaces), CHANNELS):
        one = found.get((name, channel), Counted(name, channel, 0, 0, 0, now))
        on_time = one.open - one.overdue - one.due_soon
        for state, count in zip(URGENCIES, (one.overdue, one.due_soon, on_time), strict=True):
            open_.add_metric([name, channel, state], count)
        age.add_metric([name, channel], max(now - one.oldest, 0))
    return [open_, age]


class _Stored:
    """What `generate_latest` takes for a registry: the families, collected already."""

    def __init__(self, families: list[GaugeMetricFamily]) -> None:
        self._families = families

    def collect(self) -> Any:
        """The families."""
        return iter(self._families)
