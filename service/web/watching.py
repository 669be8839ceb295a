"""Owns the application of a process that has no HTTP of its own: it is asked whether it is alive and ready, and for its
figures, in the words of the web process."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware

from service.domain.deadlines import Calendar
from service.errors import KahunaSyncError
from service.store.database import Database
from service.telemetry import Metrics
from service.web import contract, gauges, health
from service.web.http import Telling, on_error, on_http_exception


@dataclass(frozen=True, slots=True)
class Alone:
    """What such a process knows of itself, as `health.Watched` has it. `troubles` may change at any time."""

    database: Database
    metrics: Metrics
    clock: Callable[[], datetime]
    revisions: frozenset[str]
    head: str
    namespaces: tuple[str, ...]
    calendar: Calendar
    troubles: dict[str, str] = field(default_factory=dict)
    leaving: asyncio.Event = field(default_factory=asyncio.Event)
    seldom: dict[str, Any] = field(default_factory=dict)
    shelter: None = None
    feed: None = None
    lookups: None = None

    @property
    def now(self) -> datetime:
        """The time by our clock."""
        return self.clock()


def application(alone: Alone) -> Starlette:
    """What answers for it."""

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[dict[str, Any]]:
        yield {"service": alone}

    made = Starlette(
        routes=contract.routes([*health.OPERATIONS, *gauges.OPERATIONS]),
        middleware=[Middleware(Telling, metrics=alone.metrics)],
        exception_handlers={KahunaSyncError: on_error, HTTPException: on_http_exception},
        lifespan=lifespan,
    )
    made.router.redirect_slashes = False
    return made
