"""The composition root of the web process: routes, middleware, error handlers and the lifespan, in one place."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime
from typing import Final, TypeAlias, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware

from service.errors import KahunaSyncError
from service.flows.ingest import Intake, rules_of
from service.flows.together import Together
from service.settings import Settings
from service.store import access, migrations, suppressions
from service.store.database import Connection, Database
from service.telemetry import Metrics, logger
from service.web import admin, health, webhook
from service.web import suppressions as queries
from service.web.http import Budget, Service, Telling, on_error, on_http_exception

Application: TypeAlias = Starlette
"""What a server runs; the command line knows it by this name only."""


Q = TypeVar("Q")
A = TypeVar("A")

LOOKUPS_AT_ONCE: Final = 2
"""Shared lookups under way; each has a connection of the pool."""

LOOKUPS_SHARED: Final = 500
"""Questions that share one lookup at most."""

LOOKUPS_WAITING: Final = 10_000
"""Questions that may wait before the next is told to come again."""


def utc_now() -> datetime:
    """The one clock of the process."""
    return datetime.now(UTC)


def build(settings: Settings, clock: Callable[[], datetime] = utc_now) -> Application:
    """The web application of these settings."""
    metrics = Metrics()
    application = Starlette(
        routes=[*webhook.ROUTES, *queries.ROUTES, *admin.ROUTES, *health.ROUTES],
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
        lookups=_sharing(database, suppressions.causes_of_each),
        callers=_sharing(database, access.callers_of),
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


def _sharing(database: Database, query: Callable[[Connection, Sequence[Q]], Awaitable[Sequence[A]]]) -> Together[Q, A]:
    """One statement for all who ask at the same time."""

    async def look(questions: Sequence[Q]) -> Sequence[A]:
        async with database.read() as connection:
            return await query(connection, questions)

    return Together(look, at_once=LOOKUPS_AT_ONCE, most=LOOKUPS_SHARED, waiting=LOOKUPS_WAITING)
