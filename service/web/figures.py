"""Owns `/metrics`: the figures of this process, of its spool, and those that the database knows, for Prometheus.

No label holds an address. What takes a walk over a table is asked once in a while and remembered, so that it does not
matter how many scrape, or how often. Refuses to count: what happens is counted where it happens.
"""

from collections.abc import AsyncIterator, Awaitable, Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, Final

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from starlette.responses import Response

from service.errors import StorageUnavailable
from service.store import batches, changes, figures, outbox, reviews, spool
from service.store.database import Connection, Use
from service.store.figures import Often, Seldom
from service.store.spool import Stock
from service.telemetry import logger
from service.web import health
from service.web.contract import Answer, AnyOperation, Call, Nothing, Operation
from service.web.health import Watched

SELDOM: Final = timedelta(seconds=60)
"""How long figures are believed for which tables are walked over."""

_KINDS: Final = ("missing_here", "missing_there", "differs")


async def metrics(call: Call[Nothing, None]) -> Response:
    """Figures for Prometheus. Those that the database knows are left out while it is away."""
    watched: Watched = call.service
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


async def _beside(watched: Watched) -> AsyncIterator[Iterable[Metric]]:
    """What is no counter of this process."""
    yield _of_connections(watched.database.use)
    if watched.feed is not None:
        yield [_one("feed_waiting", "Followers of the feed that wait in this process", watched.feed.waiting)]
    if watched.lookups is not None:
        yield _of_lookups(watched.lookups.heard, watched.lookups.pieces)
    if watched.shelter is not None:
        stock = await health.stock_of(watched.shelter)
        yield _of_spool(stock, watched.now.timestamp()) if stock else []
    try:
        seldom = await _remembered(watched)
        yield await health.asked(watched, lambda connection: _of_database(connection, watched.now, seldom))
    except StorageUnavailable:
        logger().warning("metrics.incomplete")


async def _remembered(watched: Watched) -> Seldom:
    """The figures that are dear, no older than a minute."""
    known: tuple[datetime, Seldom] | None = watched.seldom.get("figures")
    if known is None or not known[0] <= watched.now < known[0] + SELDOM:
        known = watched.now, await health.asked(watched, figures.seldom)
        watched.seldom["figures"] = known
    return known[1]


def _one(name: str, about: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"kahuna_sync_{name}", about, value=value)


def _of_connections(use: Use) -> Iterable[Metric]:
    about = "Database connections of this process: busy, idle, or free (may still be opened)"
    pool = GaugeMetricFamily("kahuna_sync_pool_connections", about, labels=["state"])
    free = max(use.most - use.busy - use.idle, 0)
    for state, count in (("busy", use.busy), ("idle", use.idle), ("free", free)):
        pool.add_metric([state], count)
    return [pool]


def _of_lookups(heard: int, pieces: int) -> Iterable[Metric]:
    return [
        CounterMetricFamily("kahuna_sync_lookups", "Questions about one address that were looked up", value=heard),
        CounterMetricFamily("kahuna_sync_lookup_statements", "Statements that they shared", value=pieces),
    ]


def _of_spool(stock: Stock, now: float) -> Iterable[Metric]:
    oldest = now - spool.received_at_of(stock.batches[0]) if stock.batches else 0.0
    aside = stock.aside + len(stock.strangers)
    return [
        _one("spool_files", "Callbacks that wait in the spool", len(stock.batches)),
        _one("spool_bytes", "Bytes of disk that the spool takes, of SPOOL_LIMIT_BYTES", stock.size),
        _one("spool_oldest_seconds", "Seconds since the oldest callback in the spool was received", max(oldest, 0.0)),
        _one("spool_set_aside", "Files in the spool that are no whole callback", aside),
    ]


async def _of_database(connection: Connection, now: datetime, seldom: Seldom) -> list[Metric]:
    counts: list[tuple[str, str, Awaitable[float]]] = [
        ("unapplied_batches", "Batches recorded but not applied yet", batches.unapplied_count(connection)),
        ("pending_reviews", "Opt-ins that wait for a person", reviews.pending_count(connection)),
        (
            "feed_lag_seconds",
            "Seconds since the oldest change was recorded that an older transaction of the server keeps from the feed",
            changes.lag(connection, now),
        ),
    ]
    found: list[Metric] = [_one(name, about, await count) for name, about, count in counts]
    circuits = GaugeMetricFamily(
        "kahuna_sync_open_circuits", "Channels that nothing is sent of", labels=["namespace", "channel"]
    )
    for namespace, channel in await outbox.open_circuits(connection):
        circuits.add_metric([namespace, channel], 1)
    often = await figures.often(connection)
    depth = _of_outbox({**seldom.given_up, **often.waiting})
    return [*found, circuits, depth, *_of_often(often, now), *_of_seldom(seldom)]


def _of_outbox(counts: Mapping[tuple[str, str], int]) -> Metric:
    about = "Corrections that wait (pending), are on their way (sending), were given up (dead) or refused (rejected)"
    depth = GaugeMetricFamily("kahuna_sync_corrections", about, labels=["namespace", "state"])
    for (namespace, state), count in counts.items():
        depth.add_metric([namespace, state], count)
    return depth


def _of_often(often: Often, now: datetime) -> Iterable[Metric]:
    about = "Seconds for which the oldest correction of a channel has been due"
    overdue = GaugeMetricFamily("kahuna_sync_corrections_overdue_seconds", about, labels=["namespace", "channel"])
    for (namespace, channel), since in often.due.items():
        overdue.add_metric([namespace, channel], max((now - since).total_seconds(), 0.0))
    skew = now.timestamp() - often.clock
    return [overdue, _one("clock_skew_seconds", "Seconds by which our clock is ahead of the database's", skew)]


def _of_seldom(seldom: Seldom) -> Iterable[Metric]:
    about = "Entries of callbacks that wait in quarantine, as of a minute ago at most"
    quarantine = GaugeMetricFamily("kahuna_sync_quarantine_entries", about, labels=["namespace", "channel"])
    for (namespace, channel), count in seldom.quarantine.items():
        quarantine.add_metric([namespace, channel], count)
    about = "Differences that the newest finished reconciliation found"
    drift = GaugeMetricFamily("kahuna_sync_drift", about, labels=["namespace", "channel", "kind"])
    for (namespace, channel), counts in seldom.drift.items():
        for kind in _KINDS:
            drift.add_metric([namespace, channel, kind], counts.get(kind, 0))
    return [quarantine, drift]


class _Collected:
    """What `generate_latest` takes for a registry: the families, collected already."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Any:
        """The families."""
        return iter(self._families)
