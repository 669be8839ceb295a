"""Owns the reading of Kahuna's logs: page by page, each taken in and its position written down in one transaction.

Three walks read them: one without end from the first pull on, the backfill of what was before, and one for each
reconciliation that asks for a span. One process at a time has a walk, under a lease with a fence. Whatever ends it,
whoever goes on misses nothing and takes nothing twice. Refuses opt-ins: a log only ever stops.
"""

import asyncio
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple, TypeAlias

from service.errors import StorageBusy
from service.flows import bounces, ingest, records
from service.flows.ingest import Rules
from service.flows.underway import TakenOver
from service.kahuna import BadRequest, KahunaClient, KahunaError, Page, Refused
from service.kahuna.paging import MAX_RECORDS
from service.store import leases, pulls
from service.store.database import Connection, Database, until_settled
from service.store.leases import Lease
from service.store.pulls import BACKFILL, PULL, Key, Place, Walk
from service.telemetry import Metrics, logger

APIS: Final = ("email", "user_merge", "in_app", "push")
"""Kahuna's logs, in the order in which they are read: that of what they are worth here."""

DELAY: Final = timedelta(minutes=10)
"""How far a pull stays behind the present: a record may be written down late, and a callback is usually quicker."""

BACKFILLED: Final = timedelta(days=365)
"""How far a backfill goes back unless it is said. How long Kahuna keeps its logs is not known."""

OVERLAP: Final = timedelta(days=1)
"""A walk without end begins again at the newest record that it has seen, but so far back at most: while our clock was
ahead of Kahuna's, where it ended is no moment that Kahuna's logs had come to."""

_GONE: Final = frozenset({404, 410})

LEASE: Final = timedelta(minutes=5)
BETWEEN_TRIES: Final = 0.1
"""Seconds between two looks whether another process has let go of a walk."""

PATIENCE: Final = 100
"""Looks, at most."""


class Step(NamedTuple):
    """How far the walk through one log is, once a page of it is in: all from `begins_at` to `reached` was read, of what
    goes to `ends_at`; `counts` are those of that page."""

    api: str
    begins_at: datetime
    reached: datetime
    ends_at: datetime
    counts: Counter[str]


class Pulled(NamedTuple):
    """What came of a pull. `counts`: `records` read, `facts` new, `evidence` for what callbacks had told, `known`
    before, `rejected` stops that could not be understood, `merges`, `violations`. `batches` are those with the new
    facts, for a run all that it ever had made. `failed` are logs that Kahuna did not give, each with why."""

    counts: Counter[str]
    batches: tuple[uuid.UUID, ...]
    failed: dict[str, str]


Progress: TypeAlias = Callable[[Step], None]

Holding: TypeAlias = Callable[[Connection], Awaitable[None]]
"""Makes sure, in the transaction that takes a page in, that whoever asked for it still wants it."""


@dataclass(frozen=True, slots=True)
class _Course:
    """What every page of a walk shares."""

    database: Database
    client: KahunaClient
    namespace: str
    rules: Rules
    clock: Callable[[], datetime]
    walk: str
    lease: Lease
    progress: Progress
    run_id: uuid.UUID | None
    page_size: int
    holding: Holding | None = None
    metrics: Metrics | None = None

    def key(self, api: str) -> Key:
        """Which walk through which log."""
        return Key(self.namespace, api, self.walk)


async def pull(  # noqa: PLR0913 - the last seven may be left out
    database: Database,
    client: KahunaClient,
    namespace: str,
    rules: Rules,
    clock: Callable[[], datetime],
    *,
    since: datetime | None = None,
    until: datetime | None = None,
    delay: timedelta = DELAY,
    progress: Progress | None = None,
    run_id: uuid.UUID | None = None,
    page_size: int = MAX_RECORDS,
    holding: Holding | None = None,
    metrics: Metrics | None = None,
) -> Pulled:
    """Reads the logs on from where the last pull ended, or those from `since`, before `until` (`delay` ago).

    The same `run_id` goes on with a span that was cut short, and has all batches of it told. StorageBusy if another
    process is reading the same for too long, TakenOver if one took it from this one. What `holding` raises ends it: no
    page comes in without it.
    """
    walk = PULL if since is None else f"run/{run_id or uuid.uuid4()}"
    # Whoever can come back later does not wait here.
    lease = await _taken(database, namespace, walk, clock, PATIENCE if holding is None else 1)
    shared = (database, client, namespace, rules, clock, walk, lease)
    course = _Course(*shared, progress or _silent, run_id, page_size, holding, metrics)
    end = until or clock() - delay
    pulled = await _read_all(course, since or end, None if since is None else end, end)
    async with database.begin() as connection:
        if since is not None and not pulled.failed:
            await pulls.forget(connection, namespace, walk)
        if run_id is not None:
            pulled = pulled._replace(batches=tuple(await pulls.batches_of(connection, run_id)))
    return pulled


async def pull_due(
    database: Database,
    client: KahunaClient,
    namespace: str,
    rules: Rules,
    clock: Callable[[], datetime],
    *,
    every: timedelta,
    delay: timedelta = DELAY,
    metrics: Metrics | None = None,
) -> bool:
    """Reads the logs on, if that is due and nobody else does it; tells whether it did. The first pull of a deployment
    only marks where it begins: what was before is the backfill's."""
    now = clock()
    if not await _is_due(database, namespace, now, every):
        return False
    async with database.begin() as connection:
        lease = await leases.claim(connection, _lease_of(namespace, PULL), now, now + LEASE)
    if lease is None:
        return False
    shared = (database, client, namespace, rules, clock, PULL, lease)
    course = _Course(*shared, _silent, None, MAX_RECORDS, metrics=metrics)
    if not await _is_due(database, namespace, now, every):  # another was quicker, and is done
        await _let_go(course)
        return False
    try:
        await _read_all(course, now - delay, None, now - delay)
    except TakenOver:
        logger().warning("logs.taken_over", namespace=namespace, walk=PULL)
    return True


async def _is_due(database: Database, namespace: str, now: datetime, every: timedelta) -> bool:
    async with database.read() as connection:
        last = await pulls.last_at(connection, namespace, PULL)
    return last is None or now >= last + every


async def backfill(  # noqa: PLR0913 - the last four may be left out
    database: Database,
    client: KahunaClient,
    namespace: str,
    rules: Rules,
    clock: Callable[[], datetime],
    *,
    since: datetime | None = None,
    delay: timedelta = DELAY,
    progress: Progress | None = None,
    page_size: int = MAX_RECORDS,
) -> Pulled:
    """Reads what was in the logs before the first pull, from `since` (`BACKFILLED` ago) on; one that was cut short is
    gone on with, and one that is done is done unless `since` is earlier than it began."""
    shared = (database, client, namespace, rules, clock, BACKFILL)
    pulled = await _backfill(shared, since, delay, progress or _silent, page_size)
    if since is not None and not pulled.failed and await _reach_back(database, namespace, since):
        older = await _backfill(shared, since, delay, progress or _silent, page_size)
        return Pulled(pulled.counts + older.counts, (*pulled.batches, *older.batches), older.failed)
    return pulled


_Shared: TypeAlias = tuple[Database, KahunaClient, str, Rules, Callable[[], datetime], str]


async def _backfill(
    shared: _Shared, since: datetime | None, delay: timedelta, progress: Progress, page_size: int
) -> Pulled:
    database, _, namespace, _, clock, walk = shared
    now = clock()
    lease = await _taken(database, namespace, walk, clock)
    course = _Course(*shared, lease, progress, None, page_size)
    begins_at = since or now - BACKFILLED
    async with database.begin() as connection:
        for api in APIS:
            # Where the pull begins, so that nothing is between the two; it may not have begun yet.
            first = await pulls.begin(connection, Key(namespace, api, PULL), now - delay, None)
            await pulls.begin(connection, course.key(api), min(begins_at, first.begins_at), first.begins_at)
    return await _read_all(course, begins_at, now, now)


async def _reach_back(database: Database, namespace: str, since: datetime) -> bool:
    """Whether there is something before what the backfill went through, to be gone through now."""
    async with database.begin() as connection:
        keys = [Key(namespace, api, BACKFILL) for api in APIS]
        return any([await pulls.reach_back(connection, key, since) for key in keys])


async def _taken(
    database: Database, namespace: str, walk: str, clock: Callable[[], datetime], patience: int = PATIENCE
) -> Lease:
    for _ in range(patience):
        async with database.begin() as connection:
            lease = await leases.claim(connection, _lease_of(namespace, walk), clock(), clock() + LEASE)
        if lease is not None:
            return lease
        if patience > 1:
            await asyncio.sleep(BETWEEN_TRIES)
    raise StorageBusy("Another process reads these logs; try again when it is done, or some minutes after it died.")


def _lease_of(namespace: str, walk: str) -> str:
    return f"logs/{namespace}/{walk}"


async def _let_go(course: _Course) -> None:
    async with course.database.begin() as connection:
        await leases.hold(connection, course.lease, course.clock())


async def _read_all(course: _Course, begins_at: datetime, ends_at: datetime | None, until: datetime) -> Pulled:
    """Every log in turn; one that fails keeps nobody from the next. Lets go of the walk however it ends."""
    pulled = Pulled(Counter(), (), {})
    try:
        await bounces.settle(course.database, course.namespace, course.rules, course.clock)
        for api in APIS:
            made = await _read(course, api, begins_at, ends_at, until, pulled)
            pulled = pulled._replace(batches=(*pulled.batches, *made))
    finally:
        await _let_go(course)
    told = {name: pulled.counts[name] for name in records.COUNTED}
    logger().info("logs.pulled", namespace=course.namespace, walk=course.walk, failed=len(pulled.failed), **told)
    return pulled


async def _read(
    course: _Course, api: str, begins_at: datetime, ends_at: datetime | None, until: datetime, pulled: Pulled
) -> list[uuid.UUID]:
    """One log, to its end or to what keeps it from it."""
    made: list[uuid.UUID] = []
    async with course.database.begin() as connection:
        walk = await pulls.begin(connection, course.key(api), begins_at, ends_at)
    if walk.done_at is not None:
        return made
    end = walk.ends_at or until
    try:
        async for taken in _pages(course, api, walk, end):
            pulled.counts.update(taken.counts)
            made += taken.batches
        await _arrive(course, api, end, done=walk.ends_at is not None)
    except KahunaError as error:
        # Its message holds no address and no key.
        pulled.failed[api] = str(error)
        await _note_error(course, api, error)
    return made


async def _pages(course: _Course, api: str, walk: Walk, end: datetime) -> AsyncIterator[records.Taken]:
    """Takes in page after page. A cursor that Kahuna does not know any more, however it says so, is done without, once:
    what comes twice by that is known."""
    try:
        async for taken in _pages_from(course, api, walk, end):
            yield taken
    except KahunaError as error:
        if not isinstance(error, BadRequest | Refused) and error.status not in _GONE:
            raise
        async with course.database.begin() as connection:
            left = await pulls.one(connection, course.key(api))
        if left is None or left.cursor is None:
            raise
        logger().warning("logs.cursor_expired", namespace=course.namespace, api=api)
        async for taken in _pages_from(course, api, left._replace(cursor=None), end):
            yield taken


async def _pages_from(course: _Course, api: str, walk: Walk, end: datetime) -> AsyncIterator[records.Taken]:
    asked = getattr(course.client, f"{api}_logs")
    pages = asked(walk.since, until=end, cursor=walk.cursor, page_size=course.page_size)
    newest = None if walk.ends_at is not None else walk.since
    async for page in pages.pages():
        if newest is not None:
            newest = max([newest, *(record.time for record in page.records if record.time is not None)])
        taken, place = await _take_in(course, api, page, newest)
        course.progress(Step(api, walk.begins_at, min(place.reached, end), end, taken.counts))
        yield taken


async def _take_in(course: _Course, api: str, page: Page[Any], newest: datetime | None) -> tuple[records.Taken, Place]:
    """One page and where to go on after it, in one transaction."""

    async def transaction(connection: Connection) -> tuple[records.Taken, Place]:
        now = course.clock()
        if course.holding is not None:
            await course.holding(connection)
        if not await leases.hold(connection, course.lease, now + LEASE):
            raise TakenOver("Another process reads these logs by now.")
        headers = {"api": f"{api}_logs", "walk": course.walk}
        taken = await records.take(
            connection, course.client.contract, course.namespace, course.rules, page.records, headers, now
        )
        if course.run_id is not None:
            for batch_id in taken.batches:
                await pulls.note_batch(connection, course.run_id, batch_id)
        place = _place(page, newest, now)
        await pulls.move(connection, course.key(api), place, taken.counts, now)
        return taken, place

    taken, place = await until_settled(course.database, transaction)
    if course.metrics is not None:
        ingest.count_facts(course.metrics, "email", taken.told)
    return taken, place


def _place(page: Page[Any], newest: datetime | None, now: datetime) -> Place:
    """Where to go on: for a part of a day by its cursor; all before the newest record of it was read, since they come
    in the order of their time [ASSUME]. `newest` is the newest record of a walk without end."""
    position = page.position
    since = position.since or now
    times = [record.time for record in page.records if record.time is not None]
    reached = since if position.cursor is None else max([since, *times])
    if newest is not None and position.cursor is None and not page.more:
        since = min(since, max(newest, since - OVERLAP))
    return Place(since, position.cursor, reached)


async def _arrive(course: _Course, api: str, end: datetime, *, done: bool) -> None:
    async with course.database.begin() as connection:
        if await leases.hold(connection, course.lease, course.clock() + LEASE):
            await pulls.arrive(connection, course.key(api), end, course.clock(), done=done)


async def _note_error(course: _Course, api: str, error: KahunaError) -> None:
    logger().warning("logs.pull_failed", namespace=course.namespace, api=api, walk=course.walk, because=error.slug)
    async with course.database.begin() as connection:
        await pulls.note_error(connection, course.key(api), str(error), course.clock())


def _silent(_: Step) -> None:
    """Nobody looks on."""
