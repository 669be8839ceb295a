"""The composition root of the worker: one loop for each thing that is to be done, until it is told to stop.

Each loop survives a database that is away: it says so once, comes back by itself, and says that too. On a stop nothing
new is begun, what is under way may finish, and what cannot is left to its lease.
"""

import asyncio
import os
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, nullcontext
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeAlias

from service.domain.addresses import CHANNELS
from service.errors import SettingsError, StorageUnavailable
from service.flows import follow, ingest, prove, pull, push, reconcile, retract, surges, upkeep
from service.flows.desk import calendar_of
from service.flows.ingest import Rules
from service.flows.push import Pusher
from service.flows.underway import Means, guards_of
from service.kahuna import (
    NO_RETRY,
    Contract,
    Credentials,
    KahunaClient,
    Retry,
    Timeouts,
    WrongCorrection,
    WrongCredentials,
)
from service.settings import Namespace, Settings
from service.spans import TRACE, Tracer
from service.store import access, migrations
from service.store.database import Database
from service.telemetry import Metrics, logger, watch_loop
from service.web import watching
from service.web.watching import Alone

Step = Callable[[], Awaitable[object]]

Show: TypeAlias = Callable[[Any], AbstractAsyncContextManager[None]]
"""Serves an application for as long as the block lasts."""

Trace: TypeAlias = Callable[[Metrics], AbstractAsyncContextManager[Tracer]]
"""Makes spans and sends them for as long as the block lasts; what becomes of them is counted."""

LONGEST_PAUSE: Final = 5.0
"""Seconds between two looks whether the database is back."""

HOUSEKEEPING: Final = 5.0
"""Seconds between two looks at what hardly ever needs doing."""

ONCE: Final = 86_400.0
"""Seconds after which even what is done but once at the start is looked at again."""

GRACE: Final = 8.0
"""Seconds that a step under way may take once the worker was told to stop."""


def client_for(namespace: Namespace, settings: Settings, retry: Retry = NO_RETRY) -> KahunaClient:
    """The client that speaks to Kahuna for a namespace. The worker's retries nothing: what is to be sent again is
    written in the outbox, where it outlives this process, and what is to be read again is due again."""
    if namespace.env is None or namespace.secret_key is None:
        raise SettingsError(f"Namespace {namespace.name} lacks KAHUNA_ENV or KAHUNA_SECRET_KEY.")
    try:
        credentials = Credentials(namespace.base_url, namespace.env, namespace.secret_key, namespace.api_key[0])
    except WrongCredentials as error:
        raise SettingsError(f"KAHUNA_BASE_URL or the keys of namespace {namespace.name}: {error}.") from None
    timeouts = Timeouts(deadline=settings.push_timeout_seconds)
    contract, proxy = contract_of(namespace), settings.kahuna_proxy_url
    return KahunaClient(credentials, timeouts=timeouts, retry=retry, contract=contract, proxy=proxy)


def contract_of(namespace: Namespace) -> Contract:
    """Kahuna's contract with the corrections of a namespace."""
    try:
        return Contract.corrected(namespace.contract or "")
    except WrongCorrection as error:
        raise SettingsError(f"KAHUNA_CONTRACT of namespace {namespace.name}: {error}.") from None


async def run(
    settings: Settings,
    stop: asyncio.Event,
    make_client: Callable[[Namespace, Settings], KahunaClient] = client_for,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    jitter: Callable[[], float] = random.random,
    show: Show = lambda _: nullcontext(),
    trace: Trace = lambda _: nullcontext(Tracer()),
) -> None:
    """Works until `stop` is set. `show` serves what tells of this worker, for as long as it works, and `trace` sends
    its spans."""
    metrics = Metrics()
    async with Database.of(settings) as database, trace(metrics) as tracer:
        names, calendar = tuple(namespace.name for namespace in settings.namespaces), calendar_of(settings)
        alone = Alone(database, metrics, clock, migrations.revisions(), migrations.head(), names, calendar)
        async with show(watching.application(alone)), _steps(alone, settings, make_client, jitter, tracer) as steps:
            logger().info("worker.started", namespaces=len(settings.namespaces))
            metrics.starts.add()
            ingest.count_from_zero(metrics)
            loops = [asyncio.create_task(_repeat(alone, tracer, step, stop)) for step in steps]
            lag = asyncio.create_task(watch_loop(alone.metrics.lag))
            await stop.wait()
            alone.leaving.set()
            _, unfinished = await asyncio.wait(loops, timeout=GRACE)
            for loop in (*unfinished, lag):
                loop.cancel()
            await asyncio.gather(*loops, lag, return_exceptions=True)
    logger().info("worker.stopped", cut_short=len(unfinished))


def means_of(
    settings: Settings,
    database: Database,
    rules: Rules,
    clock: Callable[[], datetime],
    clients: Mapping[str, KahunaClient],
) -> Means:
    """What reconciliations work with, by these settings."""
    numbers: dict[str, Any] = {"sample": settings.reconcile_sample, "budget": settings.reconcile_budget}
    numbers |= {"kept_runs": settings.reconcile_kept_runs}
    delay = timedelta(seconds=settings.logs_delay_seconds)
    return Means(database, rules, clock, guards_of(settings), clients, delay=delay, **numbers)


def named(pusher: Pusher, namespace: Namespace) -> Pusher:
    """The same under the name of this process (host and process id), with the keys that it must write down nowhere."""
    secrets = tuple(key for key in (namespace.secret_key, *namespace.api_key) if key is not None)
    return replace(pusher, worker=f"{socket.gethostname()}/{os.getpid()}", secrets=secrets)


@asynccontextmanager
async def _steps(
    alone: Alone,
    settings: Settings,
    make_client: Callable[[Namespace, Settings], KahunaClient],
    jitter: Callable[[], float],
    tracer: Tracer,
) -> AsyncIterator[list[tuple[str, Step, float]]]:
    """What is to be done again and again: the name in the log, the step, and the seconds between two looks when there
    is nothing to do."""
    rules = ingest.rules_of(settings)
    limits = push.limits_of(settings)
    retention, surge_limits = upkeep.retention_of(settings), surges.limits_of(settings)
    database, clock = alone.database, alone.clock
    async with AsyncExitStack() as stack:
        pushers = []
        clients: dict[str, KahunaClient] = {}
        for namespace in settings.namespaces:
            client = await stack.enter_async_context(make_client(namespace, settings))
            made = Pusher(database, client, namespace.name, rules.policy, limits, clock, jitter, metrics=alone.metrics)
            pushers.append(replace(named(made, namespace), tracer=tracer))
            clients[namespace.name] = client
        means = replace(means_of(settings, database, rules, clock, clients), metrics=alone.metrics)

        async def note_policy() -> None:
            async with database.begin() as connection:
                await access.note_policy(connection, rules.policy._asdict(), clock())

        async def release() -> None:
            await push.release_expired(database, clock)

        def pushing(pusher: Pusher) -> list[Step]:
            return [lambda channel=channel: push.push_due(pusher, channel) for channel in CHANNELS]  # type: ignore[misc]

        telling = [] if settings.database_direct_url is None else [lambda: follow.announce(database)]
        poll = settings.worker_poll_seconds
        yield [
            *(("push", step, poll) for pusher in pushers for step in pushing(pusher)),
            ("apply", lambda: ingest.apply_recorded(database, rules, clock, tracer, alone.metrics), poll),
            *_reconciling(settings, means),
            ("retract", lambda: retract.run_next(database, rules, clock), poll),
            ("surges", lambda: surges.look(database, surge_limits, clock), HOUSEKEEPING),
            *(("announce", step, follow.BETWEEN_ANNOUNCEMENTS) for step in telling),
            *(("logs", step, HOUSEKEEPING) for step in _pulling(settings, means)),
            ("release", release, HOUSEKEEPING),
            ("upkeep", lambda: upkeep.run_due(database, rules, retention, clock), HOUSEKEEPING),
            ("policy", note_policy, ONCE),
        ]


def _reconciling(settings: Settings, means: Means) -> list[tuple[str, Step, float]]:
    """The plans: carried on, proved, and asked for by the schedule of each namespace."""
    database, clock, hours = means.database, means.clock, settings.reconcile_every_hours
    steps: list[tuple[str, Step, float]] = [
        ("reconcile", lambda: reconcile.run_next(means), settings.worker_poll_seconds),
        ("prove", prove.Prover(database, clock).look, HOUSEKEEPING),
    ]
    if hours is None:
        return steps
    every, approve = timedelta(hours=hours), settings.reconcile_auto_approve == "on"
    wanted = {"source": settings.reconcile_source, "auto_approve": approve}

    def scheduled(namespace: str) -> Step:
        return lambda: reconcile.queue_scheduled(database, namespace, every, wanted, clock)

    return steps + [("schedule", scheduled(name), HOUSEKEEPING) for name in means.clients]


def _pulling(settings: Settings, means: Means) -> list[Step]:
    """The pulls of Kahuna's logs, one for each namespace."""
    every, delay = timedelta(seconds=settings.logs_pull_seconds), means.delay

    def pulling(name: str, client: KahunaClient) -> Step:
        shared = (means.database, client, name, means.rules, means.clock)
        return lambda: pull.pull_due(*shared, every=every, delay=delay, metrics=means.metrics)

    return [pulling(*one) for one in means.clients.items()] if settings.logs_pull == "on" else []


async def _repeat(alone: Alone, tracer: Tracer, doing: tuple[str, Step, float], stop: asyncio.Event) -> None:
    """Does a step again and again: at once while there is work, else after a pause."""
    name, step, pause = doing
    failures = 0
    while not stop.is_set():
        try:
            worked = await _traced(tracer, name, step)
        except Exception as error:  # noqa: BLE001 (a loop that ended would be work that is never done)
            failures += 1
            alone.metrics.steps.add(name, "failed")
            alone.troubles[f"loop/{name}"] = f"failed with {type(error).__name__}; the log says where"
            _complain(name, error, failures)
            await _wait(min(pause * 2.0**failures, LONGEST_PAUSE), stop)
            continue
        if failures:
            logger().info("worker.recovered", loop=name, failures=failures)
            alone.troubles.pop(f"loop/{name}", None)
            failures = 0
        alone.metrics.steps.add(name, "worked" if worked else "idle")
        if not worked:
            await _wait(pause, stop)


async def _traced(tracer: Tracer, name: str, step: Step) -> object:
    """Does a step once, as a trace of its own if it is recorded and there was something to do. A push makes its own,
    since it knows whose corrections it sends."""
    span = None if name == "push" else tracer.root(f"worker {name}")
    if span is None:
        return await step()
    token = TRACE.set(span.place.traceparent)
    try:
        worked = await step()
    except Exception:
        span.failed = True
        tracer.end(span)
        raise
    finally:
        TRACE.reset(token)
    if worked:
        tracer.end(span)
    return worked


def _complain(name: str, error: Exception, failures: int) -> None:
    """A database that is away is told once; a fault of ours each time, with its traceback."""
    if not isinstance(error, StorageUnavailable):
        logger().error("worker.step_failed", loop=name, exc_info=error)
    elif failures == 1:
        logger().warning("database.lost", loop=name)


async def _wait(seconds: float, stop: asyncio.Event) -> None:
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        return
