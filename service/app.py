"""The composition root of the web process: routes, middleware, error handlers and the lifespan, in one place."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from typing import Final, TypeAlias, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import Route
from starlette.types import ASGIApp

from service.errors import KahunaSyncError, StorageUnavailable
from service.flows import desk
from service.flows.follow import Feed
from service.flows.ingest import Rules, rules_of
from service.flows.intake import Intake
from service.flows.shelter import Shelter
from service.flows.together import Together
from service.flows.weather import Weather
from service.settings import Settings
from service.spans import Tracer
from service.store import access, migrations, suppressions
from service.store.database import Connection, Database
from service.store.spool import Spool
from service.telemetry import Metrics, logger, watch_loop
from service.web import (
    admin,
    archive,
    changes,
    checking,
    contract,
    corrections,
    export,
    figures,
    gauges,
    health,
    history,
    imports,
    listing,
    offhand,
    pulls,
    reconciliations,
    reference,
    undo,
    webhook,
)
from service.web import suppressions as queries
from service.web.bodies import Budget
from service.web.callers import Callers
from service.web.console import frame as console
from service.web.contract import AnyOperation
from service.web.http import Service, Telling, on_error, on_fault, on_http_exception
from service.web.tracing import Tracing

Application: TypeAlias = Starlette
"""What a server runs; the command line knows it by this name only."""


Lifespan: TypeAlias = Callable[[Starlette], AbstractAsyncContextManager[dict[str, Service]]]
"""What is begun before an application serves and ended after."""


OPERATIONS: Final[tuple[AnyOperation, ...]] = (
    *webhook.OPERATIONS,
    *export.OPERATIONS,
    *queries.OPERATIONS,
    *history.OPERATIONS,
    *checking.OPERATIONS,
    *listing.OPERATIONS,
    *changes.OPERATIONS,
    *admin.OPERATIONS,
    *reconciliations.OPERATIONS,
    *corrections.OPERATIONS,
    *figures.OPERATIONS,
    *archive.OPERATIONS,
    *pulls.OPERATIONS,
    *imports.OPERATIONS,
    *undo.OPERATIONS,
    *health.OPERATIONS,
    *gauges.OPERATIONS,
)
"""All that the application answers, but for what describes them."""

Q = TypeVar("Q")
A = TypeVar("A")

IMPORTS_AT_ONCE: Final = 2
"""Lists that one process takes in at the same time; each has a connection of the pool, and a share of its threads."""
BULK_AT_ONCE: Final = 2
"""Large callbacks that are read and stored at the same time."""

LOOKUPS_AT_ONCE: Final = 2
"""Shared lookups under way; each has a connection of the pool."""

LOOKUPS_PARTS: Final = 3
"""Parts in which a crowd of questions goes: of two, none would be at hand where the server takes about as long as this
process, and both would wait by turns."""

LOOKUPS_UNPARTED: Final = 10
"""Questions up to which a crowd is not parted: a statement of its own costs about as much as so many more."""

LOOKUPS_SHARED: Final = 500
"""Questions that share one lookup at most."""

LOOKUPS_WAITING: Final = 10_000
"""Questions that may wait before the next is told to come again."""


CHECKS_AT_ONCE: Final = 2
"""Checks of more than a thousand addresses, or groups of such a stream, under way; the others wait their turn, so that
the memory and the connections that they take have a bound."""


def utc_now() -> datetime:
    """The one clock of the process."""
    return datetime.now(UTC)


def build(
    settings: Settings,
    clock: Callable[[], datetime] = utc_now,
    metrics: Metrics | None = None,
    tracer: Tracer | None = None,
) -> Application:
    """The web application of these settings. With an ADMIN_PORT it answers callbacks alone, and `desk_of` has the
    rest."""
    tracer = tracer or Tracer()
    service = _service(settings, metrics or Metrics(), clock, tracer)
    service.metrics.starts.add()
    desk = _Desk(service)
    receiving = partial(webhook.Shortcut, namespaces=[namespace.name for namespace in settings.namespaces])
    everything = [*OPERATIONS, *reference.operations(OPERATIONS, version("kahuna-sync"))]
    if settings.admin_port is None:
        lifespan = _lifespan(service, desk)
        shortcuts: list[Callable[[ASGIApp], ASGIApp]] = [queries.Shortcut, receiving]
        application = _application(service, everything, shortcuts, lifespan, tracer, console.routes())
    else:
        public = [*webhook.OPERATIONS, *(one for one in health.OPERATIONS if one.path == "/livez")]
        private = [one for one in everything if one not in webhook.OPERATIONS]
        pages = console.routes()
        application = _application(service, public, [receiving], _lifespan(service, desk), tracer)
        desk.application = _application(service, private, [queries.Shortcut], desk.lifespan, tracer, pages)
    application.state.desk = desk
    return application


def desk_of(application: Application) -> Application | None:
    """What belongs on the ADMIN_PORT, if there is one. It may be served once the application itself listens; between
    `desk_is_open` and `desk_is_closed`."""
    desk: Application | None = application.state.desk.application
    return desk


def take_of(application: Application) -> offhand.Take | None:
    """What takes requests from connections that need no task, if this application has any of that kind."""
    take: offhand.Take | None = application.state.take
    return take


def desk_is_open(application: Application) -> None:
    """Somebody is served at the ADMIN_PORT from now on: the application must not end before that does."""
    application.state.desk.closed.clear()


def desk_is_closed(application: Application) -> None:
    """Nobody asks at the ADMIN_PORT any more: the application may end, and its connections with it."""
    application.state.desk.closed.set()


def leave(application: Application) -> None:
    """Has `/readyz` say that the process is about to end."""
    application.state.desk.service.leaving.set()


def end_waits(application: Application) -> None:
    """Has everybody answered who waits for something to happen: the process is about to end."""
    application.state.desk.service.feed.end()


class _Desk:
    """What is asked by others than Kahuna, at the ADMIN_PORT. `closed` is set unless somebody is served there."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.application: Application | None = None
        self.closed = asyncio.Event()
        self.closed.set()

    @asynccontextmanager
    async def lifespan(self, _app: Starlette) -> AsyncIterator[dict[str, Service]]:
        """The service is that of the application beside it, which begins before and ends after."""
        yield {"service": self.service}


def _application(
    service: Service,
    operations: Sequence[AnyOperation],
    shortcuts: Sequence[Callable[[ASGIApp], ASGIApp]],
    lifespan: Lifespan,
    tracer: Tracer,
    pages: Sequence[Route] = (),
) -> Application:
    """What answers these operations, and shows these pages. The last of the shortcuts is asked first."""
    made = Starlette(
        routes=[*contract.routes(operations), *pages],
        exception_handlers={
            KahunaSyncError: on_error,
            HTTPException: on_http_exception,
            Exception: console.on_fault if pages else on_fault,
        },
        lifespan=lifespan,
    )
    # A path with one slash too many is no path of ours: it is told so, not sent elsewhere.
    made.router.redirect_slashes = False
    # Around all of it: it logs what nobody foresaw, and the busiest routes pass by everything else.
    inner = made.build_middleware_stack()
    for shortcut in shortcuts:
        inner = shortcut(inner)
    telling = Telling(inner, service.metrics)
    made.middleware_stack = Tracing(telling, tracer) if tracer.on else telling
    # Whoever follows requests in traces wants to see the ways inside, too.
    made.state.take = offhand.Offhand(service).take if queries.Shortcut in shortcuts and not tracer.on else None
    return made


def _service(settings: Settings, metrics: Metrics, clock: Callable[[], datetime], tracer: Tracer) -> Service:
    database, rules = Database.of(settings), rules_of(settings)
    webhook.count_from_zero(metrics)
    imports.count_from_zero(metrics)
    intake = Intake(database, rules, clock, metrics, tracer)
    patience = settings.database_connect_timeout_seconds
    names = [namespace.name for namespace in settings.namespaces]
    return Service(
        settings=settings,
        database=database,
        intake=intake,
        shelter=_shelter(settings, database, intake, rules),
        lookups=_sharing(database, patience, suppressions.causes_of_each),
        callers=Callers(
            _sharing(database, patience, access.callers_of).ask,
            clock,
            settings.token_cache_seconds,
            settings.token_calls_per_second,
        ),
        rules=rules,
        metrics=metrics,
        clock=clock,
        budget=Budget(settings.body_budget_bytes),
        reading=asyncio.Semaphore(1),
        bulk=asyncio.Semaphore(BULK_AT_ONCE),
        checking=asyncio.Semaphore(CHECKS_AT_ONCE),
        feed=Feed(database, names, settings.changes_poll_seconds, settings.database_direct_url),
        exports=asyncio.Semaphore(export.AT_ONCE),
        importing=asyncio.Semaphore(IMPORTS_AT_ONCE),
        calendar=desk.calendar_of(settings),
        revisions=migrations.revisions(),
        head=migrations.head(),
    )


def _lifespan(service: Service, desk: _Desk) -> Lifespan:
    settings = service.settings

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[dict[str, Service]]:
        spooling = service.shelter is not None
        logger().info(
            "web.started",
            host=settings.host,
            port=settings.port,
            namespaces=len(settings.namespaces),
            spool=spooling,
            traces=settings.traces_to,
        )
        try:
            async with service.feed.running(), _beside(service):
                yield {"service": service}
                await desk.closed.wait()
        finally:
            await service.database.close()
            logger().info("web.stopped")

    return lifespan


def _sharing(
    database: Database, seconds: float, query: Callable[[Connection, Sequence[Q]], Awaitable[Sequence[A]]]
) -> Together[Q, A]:
    """One statement for all who ask at the same time, and so many seconds for an answer."""

    async def look(questions: Sequence[Q]) -> Sequence[A]:
        # A server that went away without a word would keep those who wait, and all who come after, for ever.
        try:
            async with asyncio.timeout(seconds), database.look() as connection:
                return await query(connection, questions)
        except TimeoutError:
            raise StorageUnavailable("The database does not answer; try again.") from None

    return Together(
        look,
        at_once=LOOKUPS_AT_ONCE,
        most=LOOKUPS_SHARED,
        waiting=LOOKUPS_WAITING,
        least=LOOKUPS_UNPARTED,
        parts=LOOKUPS_PARTS,
    )


def _shelter(settings: Settings, database: Database, intake: Intake, rules: Rules) -> Shelter | None:
    """What callbacks are kept in while the database is away, if there is a folder for it."""
    if settings.spool_dir is None:
        return None
    spool = Spool(settings.spool_dir, settings.spool_limit_bytes)
    spool.prepare()

    def on_loss() -> None:
        intake.abandon()
        database.distrust()

    return Shelter(intake, spool, Weather(database.answers, settings.spool_patience_seconds, on_loss), rules)


@asynccontextmanager
async def _beside(service: Service) -> AsyncIterator[None]:
    """With what runs beside the block: the notes of which tokens are used, the look-out for the database, the draining
    of the spool. A drain that is cut short has either committed or not: the file is still there, and at worst a
    redelivery."""
    shelter = service.shelter
    works = [service.callers.keep_noting(service.database), watch_loop(service.metrics.lag)]
    works += [gauges.keep_noting(service)] if service.settings.web_workers > 1 else []
    works += [shelter.weather.watch(), shelter.drain()] if shelter else []
    tasks = [asyncio.create_task(work) for work in works]
    # A task that has not begun would end without its last words.
    await asyncio.sleep(0)
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
