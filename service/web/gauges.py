"""Owns `/metrics`: the figures of this process, of its spool, and those that the database knows, for Prometheus.

No label holds an address. What takes a walk over a table is asked once in a while and remembered, so that it does not
matter how many scrape, or how often. Refuses to count: what happens is counted where it happens.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterable, Mapping
from datetime import datetime, timedelta
from itertools import product
from typing import Any, Final, NamedTuple

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from starlette.responses import Response

from service.domain.addresses import CHANNELS
from service.domain.deadlines import URGENCIES
from service.errors import StorageUnavailable
from service.store import (
    batches,
    changes,
    circuits,
    gauges,
    outbox,
    pulls,
    retractions,
    spool,
    surges,
)
from service.store.database import Connection
from service.store.deadlines import Counted
from service.store.gauges import Often, Seldom
from service.store.spool import Stock
from service.telemetry import BEAT, logger
from service.web import figures, health
from service.web.contract import Answer, AnyOperation, Call, Nothing, Operation
from service.web.health import Watched

SELDOM: Final = timedelta(seconds=60)
"""How long figures are believed for which tables are walked over."""


class Dear(NamedTuple):
    """What takes a walk over tables, and the clock of the stops that Kahuna did not hold `at` some Unix second."""

    seldom: Seldom
    at: int
    stops: list[Counted]


async def metrics(call: Call[Nothing, None]) -> Response:
    """Figures for Prometheus. Those that the database knows are left out while it is away."""
    watched: Watched = call.service
    note(watched)
    text = generate_latest(watched.metrics.registry)
    async for families in _beside(watched):
        text += generate_latest(_Collected(families))
    return Response(text, media_type=CONTENT_TYPE_LATEST)


OPERATIONS: Final[list[AnyOperation]] = [
    Operation(
        "GET",
        "/metrics",
        metrics,
        scope=None,
        query=Nothing,
        answers=[Answer(200, str, "In Prometheus' text format.", media_type="text/plain")],
    ),
]


def note(watched: Watched) -> None:
    """Writes down what is not counted where it happens: how much there is of something in this process now."""
    use, metrics = watched.database.use, watched.metrics
    free = max(use.most - use.busy - use.idle, 0)
    for state, count in (("busy", use.busy), ("idle", use.idle), ("free", free)):
        metrics.pool.set(count, state)
    if watched.feed is not None:
        metrics.feed_waiting.set(watched.feed.waiting)
    if watched.lookups is not None:
        now = watched.lookups.heard, watched.lookups.pieces
        heard, pieces = watched.seldom.get("lookups", (0, 0))
        metrics.lookups.add(count=now[0] - heard)
        metrics.lookup_statements.add(count=now[1] - pieces)
        watched.seldom["lookups"] = now


async def keep_noting(watched: Watched) -> None:
    """Does so twice a second, until it is cancelled, for siblings that are asked instead of this process."""
    while True:
        note(watched)
        await asyncio.sleep(BEAT)


async def _beside(watched: Watched) -> AsyncIterator[Iterable[Metric]]:
    """What is no counter of this process."""
    if watched.shelter is not None:
        stock = await health.stock_of(watched.shelter)
        yield _of_spool(stock, watched.now.timestamp()) if stock else []
    try:
        dear = await _remembered(watched)
        yield _of_stops(watched.namespaces, dear)
        yield await health.asked(watched, lambda connection: _of_database(connection, watched, dear.seldom))
    except StorageUnavailable:
        logger().warning("metrics.incomplete")


async def _remembered(watched: Watched) -> Dear:
    """The figures that are dear, no older than a minute."""
    known: tuple[datetime, Dear] | None = watched.seldom.get("figures")
    if known is None or not known[0] <= watched.now < known[0] + SELDOM:
        known = watched.now, await health.asked(watched, lambda connection: _dear(watched, connection))
        watched.seldom["figures"] = known
    return known[1]


async def _dear(watched: Watched, connection: Connection) -> Dear:
    now = int(watched.now.timestamp())
    return Dear(await gauges.seldom(connection), now, await figures.counted(connection, now, watched.calendar))


def _whole(counts: Mapping[Any, float], first: Iterable[str], second: Iterable[str]) -> dict[tuple[str, str], float]:
    """The counts, and 0 where there is nothing: what is missing could be a figure that nobody has."""
    return dict.fromkeys(product(first, second), 0.0) | dict(counts)


def _one(name: str, about: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"kahuna_sync_{name}", about, value=value)


def _of_spool(stock: Stock, now: float) -> Iterable[Metric]:
    oldest = now - spool.received_at_of(stock.batches[0]) if stock.batches else 0.0
    aside = stock.aside + len(stock.strangers)
    return [
        _one("spool_files", "Callbacks that wait in the spool", len(stock.batches)),
        _one("spool_bytes", "Bytes of disk that the spool takes, of SPOOL_LIMIT_BYTES", stock.size),
        _one("spool_oldest_seconds", "Seconds since the oldest callback in the spool was received", max(oldest, 0.0)),
        _one("spool_set_aside", "Files in the spool that are no whole callback", aside),
    ]


async def _of_database(connection: Connection, watched: Watched, seldom: Seldom) -> list[Metric]:
    now, names = watched.now, watched.namespaces
    # First of all: the clocks are compared, and what takes its time would be taken for a difference between them.
    often = await gauges.often(connection)
    counts: list[tuple[str, str, Awaitable[float]]] = [
        ("unapplied_batches", "Batches recorded but not applied yet", batches.unapplied_count(connection)),
        (
            "feed_lag_seconds",
            "Seconds since the oldest change was recorded that an older transaction of the server keeps from the feed",
            changes.lag(connection, now),
        ),
    ]
    found: list[Metric] = [_one(name, about, await count) for name, about, count in counts]
    broken = GaugeMetricFamily(
        "kahuna_sync_open_circuits", "Channels that nothing is sent of", labels=["namespace", "channel"]
    )
    refused = dict.fromkeys(await circuits.all_open(connection), 1)
    for whose, count in _whole(refused, names, CHANNELS).items():
        broken.add_metric(whose, count)
    depth = _of_outbox(_whole(await outbox.depth(connection), names, outbox.UNSETTLED))
    more = [*await _of_undoing(connection, names), *await _of_logs(connection, now)]
    return [*found, broken, depth, *_of_often(often, now, names), *_of_seldom(seldom, names), *more]


def _of_outbox(counts: Mapping[tuple[str, str], float]) -> Metric:
    about = (
        "Corrections that wait (pending), are on their way (sending), were given up (dead) or refused (rejected), or "
    )
    about += "say what no API can (unsupported)"
    depth = GaugeMetricFamily("kahuna_sync_corrections", about, labels=["namespace", "state"])
    for (namespace, state), count in counts.items():
        depth.add_metric([namespace, state], count)
    return depth


def _of_often(often: Often, now: datetime, names: Iterable[str]) -> Iterable[Metric]:
    about = "Seconds for which the oldest correction of a channel has been due"
    overdue = GaugeMetricFamily("kahuna_sync_corrections_overdue_seconds", about, labels=["namespace", "channel"])
    late = {whose: max((now - since).total_seconds(), 0.0) for whose, since in often.due.items()}
    for whose, seconds in _whole(late, names, CHANNELS).items():
        overdue.add_metric(whose, seconds)
    skew = now.timestamp() - often.clock
    return [overdue, _one("clock_skew_seconds", "Seconds by which our clock is ahead of the database's", skew)]


def _of_seldom(seldom: Seldom, names: Iterable[str]) -> Iterable[Metric]:
    about = "Entries of callbacks that wait in quarantine, as of a minute ago at most"
    quarantine = GaugeMetricFamily("kahuna_sync_quarantine_entries", about, labels=["namespace", "channel"])
    for whose, waiting_there in _whole(seldom.quarantine, names, CHANNELS).items():
        quarantine.add_metric(whose, waiting_there)
    about = (
        "Differences that the newest check of the whole list found and that are not closed, as of a minute ago at most"
    )
    drift = GaugeMetricFamily("kahuna_sync_drift", about, labels=["namespace", "channel", "kind"])
    for (namespace, channel), counts in seldom.drift.items():
        for kind, count in counts.items():
            drift.add_metric([namespace, channel, kind], count)
    about = "When the whole list was last compared with what Kahuna holds"
    checked = GaugeMetricFamily("kahuna_sync_last_check_timestamp_seconds", about, labels=["namespace", "channel"])
    for (namespace, channel), at in seldom.checked.items():
        checked.add_metric([namespace, channel], at.timestamp())
    about = "Messages that Kahuna sent to an address after a stop was in force, by who knew of it: kahuna or us"
    leaks = GaugeMetricFamily("kahuna_sync_violations", about, labels=["namespace", "known_by"])
    for labels, known in _whole(seldom.violations, names, ("kahuna", "us")).items():
        leaks.add_metric(labels, known)
    waiting = _one("pending_reviews", "Opt-ins that wait for a person, as of a minute ago at most", seldom.reviews)
    return [quarantine, drift, checked, leaks, waiting]


async def _of_undoing(connection: Connection, names: Iterable[str]) -> list[Metric]:
    """What was unusual, and what is being taken back."""
    about = "Surges that wait for a person"
    unusual = GaugeMetricFamily("kahuna_sync_open_surges", about, labels=["namespace", "channel"])
    for whose, count in _whole(await surges.open_counts(connection), names, CHANNELS).items():
        unusual.add_metric(whose, count)
    return [
        unusual,
        _one("open_retractions", "Retractions that are not done", await retractions.open_count(connection)),
    ]


async def _of_logs(connection: Connection, now: datetime) -> list[Metric]:
    """How far Kahuna's logs were read."""
    about = "Seconds since the moment up to which a log of Kahuna's was read"
    age = GaugeMetricFamily("kahuna_sync_log_age_seconds", about, labels=["namespace", "api"])
    about = "Logs whose last pull or backfill failed, which are tried again"
    failing = GaugeMetricFamily("kahuna_sync_logs_failing", about, labels=["namespace", "api", "walk"])
    for walk in await pulls.standing(connection):
        if walk.walk == pulls.PULL:
            age.add_metric([walk.namespace, walk.api], (now - walk.reached).total_seconds())
        failing.add_metric([walk.namespace, walk.api, walk.walk], int(walk.error is not None))
    return [age, failing]


def _of_stops(namespaces: Iterable[str], dear: Dear) -> Iterable[Metric]:
    """Stops that Kahuna does not hold, and how long ago the oldest happened; every namespace and channel has them."""
    found, labels = {(one.namespace, one.channel): one for one in dear.stops}, ["namespace", "channel"]
    open_ = GaugeMetricFamily(
        "kahuna_sync_open_stops", "Stops that Kahuna does not hold, by when they are due", labels=[*labels, "state"]
    )
    age = GaugeMetricFamily(
        "kahuna_sync_oldest_open_stop_seconds", "Seconds since the oldest of them happened, 0 if none", labels=labels
    )
    for name, channel in product(namespaces, CHANNELS):
        one = found.get((name, channel), Counted(name, channel, 0, 0, 0, dear.at))
        on_time = one.open - one.overdue - one.due_soon
        for state, count in zip(URGENCIES, (one.overdue, one.due_soon, on_time), strict=True):
            open_.add_metric([name, channel, state], count)
        age.add_metric([name, channel], max(dear.at - one.oldest, 0))
    return [open_, age]


class _Collected:
    """What `generate_latest` takes for a registry: the families, collected already."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Any:
        """The families."""
        return iter(self._families)
