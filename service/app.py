"""The composition root of the web process: routes, middleware, error handlers and the lifespan, in one place."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime
from typing import TypeAlias

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware

from service.errors import KahunaSyncError
from service.flows.ingest import Intake, rules_of
from service.settings import Settings
from service.store import migrations
from service.store.database import Database
from service.telemetry import Metrics, logger
from service.web import admin, archive, health, suppressions, webhook
from service.web.http import Budget, Service, Telling, on_error, on_http_exception

Application: TypeAlias = Starlette
"""What a server runs; the command line knows it by this name only."""


def utc_now() -> datetime:
    """The one clock of the process."""
    return datetime.now(UTC)


def build(settings: Settings, clock: Callable[[], datetime] = utc_now) -> Application:
    """The web application of these settings."""
    metrics = Metrics()
    application = Starlette(
        routes=[*webhook.ROUTES, *suppressions.ROUTES, *admin.ROUTES, *archive.ROUTES, *health.ROUTES],
        middleware=[Middleware(Telling, metrics=metrics)],
        exception_handlers={KahunaSyncError: on_error, HTTPException: on_http_exception},
        lifespan=_lifespan(settings, metrics, clock),
    )
    # A path with one slash too many is no path of ours: it is told so, not sent elsewhere.
    application.router.redirect_slashes = False
    return application


def _lifespan(
    settings: Settings, metrics: Metrics, clock: Callable[[], datetime]
) -> Callable[[Starlette], AbstractAsyncContextManager[dict[str, Service]]]:
    database, rules = Database.of(settings), rules_of(settings)
    service = Service(
        settings=settings,
        database=database,
        intake=Intake(database, rules, clock),
        rules=rules,
        metrics=metrics,
        clock=clock,
        budget=Budget(settings.body_budget_bytes),
        reading=asyncio.Semaphore(1),
        revisions=migrations.revisions(),
        head=migrations.head(),
    )

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[dict[str, Service]]:
        logger().info("web.started", namespaces=len(settings.namespaces))
        try:
            yield {"service": service}
        finally:
            await service.database.close()
            logger().info("web.stopped")

    return lifespan
