"""Owns finding surges: stops of one reason that came in unusual number from one domain or in one minute.

They were applied when they came, as everything that protects is. Behind that, one worker at a time looks over each
stretch of the feed once, flags what is unusual as one group, and a person keeps it or has it taken back.
"""

import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import Any, Final

from service.domain.facts import Fact
from service.errors import Conflict, NotFound
from service.flows.ingest import Rules
from service.flows.underway import TakenOver
from service.flows.words import words_of
from service.settings import Settings
from service.store import access, changes, leases, surges, withdrawals
from service.store.changes import Position
from service.store.database import Connection, Database, until_settled
from service.store.leases import Lease
from service.store.retractions import Only, Retraction
from service.store.surges import Group, Part, Size, Span
from service.telemetry import logger

LEASE: Final = timedelta(minutes=5)

ROWS: Final = 20_000
"""Rows of the feed that one statement looks at."""

MOST_BATCHES: Final = 50
"""Batches of a surge that are read for a page."""

PATIENCE: Final = 3.0
"""Seconds after which no further batch is read for a page."""

MOST_PEOPLE: Final = 100
"""Stops of a surge that one page shows."""

LATE: Final = timedelta(minutes=2)
"""So long before a stretch of the feed what is told there may have been recorded: a transaction takes its time."""


@dataclass(frozen=True, slots=True)
class Limits:
    """From how many stops on it is a surge, and in which window those of a domain are counted."""

    window: timedelta
    domain: int
    minute: int


def limits_of(settings: Settings) -> Limits:
    """The limits that these settings make."""
    window = timedelta(minutes=settings.surge_window_minutes)
    return Limits(window, settings.surge_domain_stops, settings.surge_minute_stops)


async def look(database: Database, limits: Limits, clock: Callable[[], datetime]) -> bool:
    """Looks over the next window of the feed that has ended, if nobody else does; tells whether it did."""
    now = clock()
    async with database.begin() as connection:
        lease = await leases.claim(connection, "surges", now, now + LEASE)
    if lease is None:
        return False
    async with database.read() as connection:
        seen = await _look(connection, limits, now)
    await until_settled(database, lambda connection: _write_down(connection, lease, seen, clock()))
    return seen.whole


@dataclass(frozen=True, slots=True)
class Glance:
    """Who is in a surge, as far as its first batches tell: `looked` of all its `batches` were read. Of what they say,
    `said` is meant, so many facts are `standing` on that now, and the first are among `people`."""

    batches: int
    looked: int
    said: int
    standing: int
    people: list[Fact]

    @property
    def is_all(self) -> bool:
        """Whether nobody is left out."""
        return self.looked == self.batches and len(self.people) == self.said


async def glance(database: Database, rules: Rules, surge_id: uuid.UUID) -> Glance:
    """Reads as many of a surge's batches as a page needs. Nothing is written, nor decided."""
    async with database.read() as connection:
        row = await surges.one(connection, surge_id)
        if row is None:
            raise NotFound("There is no such surge; list them with GET /v1/admin/surges.")
        count, some = await surges.batches_of(connection, surge_id, MOST_BATCHES)
    what = Retraction(uuid.uuid4(), row.namespace, row.channel, "surge", surge_id, "", "", only_of(row))
    looked, standing, said, begun = 0, 0, list[Fact](), monotonic()
    for batch_id in some:
        async with database.read() as connection:
            words = await words_of(connection, what, [(batch_id, True)], rules)
            standing += sum([await withdrawals.standing(connection, what, word.said) for word in words])
        looked += len(words)
        said += [one.fact for word in words for one in word.said]
        if len(said) >= MOST_PEOPLE or monotonic() - begun > PATIENCE:
            break
    return Glance(count, looked, len(said), standing, said[:MOST_PEOPLE])


def only_of(row: Any) -> Only:
    """What a surge means of all that its batches say."""
    return Only(row.reason, row.key if row.kind == "domain" else None)


async def keep(
    database: Database,
    surge_id: uuid.UUID,
    actor: str,
    note: str | None,
    clock: Callable[[], datetime],
    allowed_namespace: str | None,
) -> Any:
    """The stops are genuine: nothing happens to them. Returns the surge."""

    async def transaction(connection: Connection) -> Any:
        row = await surges.lock(connection, surge_id)
        if row is None or allowed_namespace not in (None, row.namespace):
            raise NotFound("There is no such surge; list them with GET /v1/admin/surges.")
        if row.state != "flagged":
            raise Conflict(f"This surge is {row.state} already; a decision stands.", "already-decided")
        now = clock()
        await surges.decide(connection, surge_id, "kept", actor, note, now)
        detail = {"surge_id": str(surge_id), "note": note}
        await access.write_down(
            connection, access.Deed(actor, "surge.kept", row.namespace, row.channel, detail=detail), now
        )
        return await surges.lock(connection, surge_id)

    row = await until_settled(database, transaction)
    logger().info("surge.kept", surge_id=str(surge_id))
    return row


@dataclass(frozen=True, slots=True)
class _Seen:
    """What a look came to: how far the feed is looked over now, the surges with the batches that they came in, when to
    look again, and whether a window was there to be looked over."""

    epoch: str
    place: Position
    surges: list[tuple[Group, Size, list[uuid.UUID]]]
    again_at: datetime
    whole: bool = False


async def _look(connection: Connection, limits: Limits, now: datetime) -> _Seen:
    """Reads only, statement by statement: a long transaction would hold up the feed."""
    epoch, horizon = await changes.horizon(connection)
    after = await surges.place(connection, epoch)
    later = now + timedelta(minutes=1)
    if after is None:  # what was there before is nobody's news
        return _Seen(epoch, horizon, [], later)
    begun = await surges.next_at(connection, after, horizon)
    if begun is None:
        return _Seen(epoch, after, [], later)
    begins_at, ends_at = _window(begun, limits.window)
    if ends_at + LATE > now:
        return _Seen(epoch, after, [], min(ends_at + LATE, later))
    spans = await _spans(connection, after, horizon, begins_at, ends_at)
    parts = [part for span in spans for part in await surges.parts(connection, span) if part.minute < ends_at]
    found = []
    for group, size in _unusual(parts, limits):
        brought = {one for span in spans for one in await surges.evidence(connection, group, span)}
        found.append((group, size, sorted(brought)))
    return _Seen(epoch, spans[-1].up_to, found, now, whole=True)


async def _write_down(connection: Connection, lease: Lease, seen: _Seen, now: datetime) -> None:
    if not await leases.hold(connection, lease, seen.again_at):
        raise TakenOver("Another worker looks for surges.")
    for group, size, brought in seen.surges:
        await _flag(connection, group, size, brought, now)
    await surges.note_place(connection, seen.epoch, seen.place)


def _window(moment: datetime, window: timedelta) -> tuple[datetime, datetime]:
    """The window that a moment is in: they begin with the epoch and follow one another."""
    seconds = int(window.total_seconds())
    begins_at = datetime.fromtimestamp(int(moment.timestamp()) // seconds * seconds, UTC)
    return begins_at, begins_at + window


async def _spans(
    connection: Connection, after: Position, horizon: Position, begins_at: datetime, ends_at: datetime
) -> list[Span]:
    """The stretch of the feed up to the end of a window, in pieces."""
    spans: list[Span] = []
    while (end := await surges.end_of(connection, after, horizon, ends_at, ROWS)) is not None:
        spans.append(Span(after, end, begins_at - LATE))
        after = end
    return spans


def _unusual(parts: Iterable[Part], limits: Limits) -> list[tuple[Group, Size]]:
    """The groups that are surges, each with its size."""
    found: defaultdict[Group, list[Part]] = defaultdict(list)
    for part in parts:
        whose = part[:3]
        if part.channel == "email":
            found[Group(*whose, "domain", part.domain)].append(part)
        found[Group(*whose, "minute", part.minute.astimezone(UTC).isoformat())].append(part)
    sizes = [(group, _size(some)) for group, some in found.items()]
    return [(group, size) for group, size in sizes if size.stops >= getattr(limits, group.kind)]


def _size(parts: list[Part]) -> Size:
    first_at, last_at = min(part.first_at for part in parts), max(part.last_at for part in parts)
    return Size(sum(part.stops for part in parts), first_at, last_at)


async def _flag(connection: Connection, group: Group, size: Size, brought: list[uuid.UUID], now: datetime) -> None:
    surge_id, is_new = await surges.flag(connection, group, size, now)
    await surges.add_evidence(connection, surge_id, brought)
    told = {"surge_id": str(surge_id), "reason": group.reason, "kind": group.kind, "count": size.stops}
    if is_new:
        deed = access.Deed("worker", "surge.flagged", group.namespace, group.channel, detail=told)
        await access.write_down(connection, deed, now)
    logger().warning("surge.flagged", namespace=group.namespace, channel=group.channel, new=is_new, **told)
