"""Owns what machines that watch us ask: is it alive, is it ready, and its figures."""

from typing import Any, Final

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.core import GaugeMetricFamily
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from service.errors import StorageUnavailable
from service.flows import push
from service.store import batches, migrations, outbox, reviews
from service.store.database import Connection
from service.telemetry import logger
from service.web.http import Service, answer, parameters, service_of


async def livez(request: Request) -> Response:
    """The process answers."""
    parameters(request)
    return answer({"status": "alive"})


async def readyz(request: Request) -> Response:
    """Ready for callbacks: the database is there, with every table that this code needs."""
    parameters(request)
    service = service_of(request)
    try:
        async with service.database.read() as connection:
            revision = await migrations.revision_of(connection)
            checks = {"database": "ok", "migrations": _judged(service, revision)}
            circuits = await outbox.open_circuits(connection) if checks["migrations"] == "ok" else {}
    except StorageUnavailable:
        return answer({"status": "not-ready", "checks": {"database": "cannot be reached"}}, 503, {"Retry-After": "5"})
    for circuit in circuits.values():
        checks[f"kahuna/{circuit.namespace}/{circuit.channel}"] = f"{circuit.reason}: {push.fix_of(circuit.reason)}"
    if checks["migrations"] != "ok":
        return answer({"status": "not-ready", "checks": checks}, 503, {"Retry-After": "5"})
    return answer({"status": "degraded" if circuits else "ready", "checks": checks})


async def metrics(request: Request) -> Response:
    """Figures for Prometheus. Those that the database knows are left out while it is away."""
    parameters(request)
    service = service_of(request)
    text = generate_latest(service.metrics.registry)
    try:
        async with service.database.read() as connection:
            text += generate_latest(_Stored(await _stored(connection)))
    except StorageUnavailable:
        logger().warning("metrics.incomplete")
    return Response(text, media_type=CONTENT_TYPE_LATEST)


ROUTES: Final = [
    Route("/livez", livez, methods=["GET"]),
    Route("/readyz", readyz, methods=["GET"]),
    Route("/metrics", metrics, methods=["GET"]),
]


def _judged(service: Service, revision: str | None) -> str:
    """A revision that this code does not know is a newer one: migrations work with the previous release running."""
    behind = revision is None or (revision in service.revisions and revision != service.head)
    return "behind: run kahuna-sync migrate" if behind else "ok"


async def _stored(connection: Connection) -> list[GaugeMetricFamily]:
    unapplied = GaugeMetricFamily("kahuna_sync_unapplied_batches", "Batches recorded but not applied yet")
    unapplied.add_metric([], await batches.unapplied_count(connection))
    waiting = GaugeMetricFamily("kahuna_sync_pending_reviews", "Opt-ins that wait for a person")
    waiting.add_metric([], await reviews.pending_count(connection))
    about = "Corrections that wait, are given up (dead) or were refused by Kahuna"
    depth = GaugeMetricFamily("kahuna_sync_corrections", about, labels=["namespace", "state"])
    for (namespace, state), count in (await outbox.depth(connection)).items():
        depth.add_metric([namespace, state], count)
    circuits = GaugeMetricFamily(
        "kahuna_sync_open_circuits", "Channels that nothing is sent of", labels=["namespace", "channel"]
    )
    for namespace, channel in await outbox.open_circuits(connection):
        circuits.add_metric([namespace, channel], 1)
    return [unapplied, waiting, depth, circuits]


class _Stored:
    """What `generate_latest` takes for a registry: the families, collected already."""

    def __init__(self, families: list[GaugeMetricFamily]) -> None:
        self._families = families

    def collect(self) -> Any:
        """The families."""
        return iter(self._families)
