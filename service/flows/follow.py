"""Owns how the feed is followed: what a cursor means, what the next page is, and how very many wait for it at once.

Whoever waits shares one look at the database with all others of this process. The looks come at once when another
process tells of changes, and else as often as the settings say; what they found stays in memory for a moment, so that
the crowd which comes back with the next cursor costs no look either. While the database is away,
those who wait are told so.
"""

import asyncio
import struct
import zlib
from base64 import b64decode, urlsafe_b64encode
from bisect import bisect_right
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from service.domain.addresses import CHANNELS, Channel
from service.errors import Expired, StorageUnavailable, Unprocessable
from service.store import changes, suppressions
from service.store.changes import Change, Position, Reading
from service.store.database import Connection, Database
from service.store.suppressions import CauseRow, Subject
from service.telemetry import logger

MOST_WAITING: Final = 10_000
"""Followers that may wait in one process before the next is told to come again."""

AT_ONCE: Final = 1000
"""Changes that one look takes."""

REMEMBERED: Final = 5000
"""Changes that stay in memory while somebody follows."""

LINGERING: Final = 5.0
"""Seconds for which the looks go on once nobody waits: whoever has got a page comes back at once."""

CALM: Final = 10
"""Times longer that the pause between two looks is while others tell of changes."""

RECOVERY: Final = 1.0
"""Seconds before a lost database is looked at again."""

BETWEEN_ANNOUNCEMENTS: Final = 0.25
"""Seconds that lie at least between two times of telling others of changes."""

BEGINNING: Final = Position(0, 0)

_VERSION: Final = 1
_FORM: Final = struct.Struct(">B8sqqB")
_CHECK: Final = struct.Struct(">I")


class Scope(NamedTuple):
    """What a follower follows: a namespace, and in it one channel or all."""

    namespace: str
    channel: Channel | None = None

    def has(self, change: Change) -> bool:
        """Whether this change is a part of it."""
        return change.namespace == self.namespace and self.channel in (None, change.channel)


class Cursor(NamedTuple):
    """A place in the feed of one life of the database."""

    epoch: str
    position: Position

    def written(self, scope: Scope) -> str:
        """As a caller keeps it: opaque, always the same for the same place, good for this scope."""
        channel = 0 if scope.channel is None else 1 + CHANNELS.index(scope.channel)
        said = _FORM.pack(_VERSION, bytes.fromhex(self.epoch), *self.position, channel)
        return urlsafe_b64encode(said + _CHECK.pack(_sum_of(said, scope))).decode()


def cursor_from(written: str, scope: Scope) -> Cursor:
    """The cursor that a caller hands back. Unprocessable for one of another namespace, of fewer channels, or of no feed
    of ours at all."""
    try:
        whole = b64decode(written, altchars=b"-_", validate=True)
        said, check = whole[: -_CHECK.size], whole[-_CHECK.size :]
        version, epoch, xid, seq, channel = _FORM.unpack(said)
    except (ValueError, struct.error):
        raise _unknown_cursor() from None
    if (
        version != _VERSION
        or check != _CHECK.pack(_sum_of(said, scope))
        or min(xid, seq) < 0
        or channel > len(CHANNELS)
    ):
        raise _unknown_cursor()
    if channel and scope.channel != CHANNELS[channel - 1]:
        raise Unprocessable(
            f"This cursor was handed out for the channel {CHANNELS[channel - 1]} alone: add it as ?channel=, or begin "
            "with an export of all channels.",
            "invalid-cursor",
        )
    return Cursor(epoch.hex(), Position(xid, seq))


def _unknown_cursor() -> Unprocessable:
    return Unprocessable(
        "after is no cursor of this namespace's feed: send the `next` of an earlier answer or the X-Changes-Cursor of "
        "an export, or leave it out to begin with the oldest change that is kept.",
        "invalid-cursor",
    )


def _sum_of(said: bytes, scope: Scope) -> int:
    return zlib.crc32(scope.namespace.encode(), zlib.crc32(said))


class Told(NamedTuple):
    """A change as a follower is told of it, with all causes of the address as they were when it was looked at."""

    change: Change
    causes: list[CauseRow]


class Page(NamedTuple):
    """Some changes, and where those after them begin."""

    told: list[Told]
    next: Cursor


@dataclass(slots=True)
class _Memory:
    """What the looks found lately: every change after `begin` and up to `head`."""

    epoch: str
    begin: Position
    head: Position
    told: list[Told] = field(default_factory=list)

    def add(self, found: Sequence[Told], head: Position) -> None:
        self.told += found
        self.head = max(self.head, head)
        if len(self.told) > 2 * REMEMBERED:
            self.begin = self.told[-REMEMBERED - 1].change.position
            del self.told[:-REMEMBERED]

    def page(self, scope: Scope, after: Cursor, limit: int) -> Page | None:
        """The page after this cursor; None if that lies outside of what is remembered."""
        if after.epoch != self.epoch or after.position < self.begin:
            return None
        start = bisect_right(self.told, after.position, key=lambda one: one.change.position)
        told: list[Told] = []
        for one in self.told[start:]:
            if scope.has(one.change):
                told.append(one)
                if len(told) == limit:
                    return Page(told, Cursor(self.epoch, one.change.position))
        return Page(told, Cursor(self.epoch, max(self.head, after.position)))


@dataclass(frozen=True, slots=True, eq=False)
class _Waiter:
    scope: Scope
    after: Position
    news: asyncio.Future[None]


class Feed:
    """The feed as one process offers it."""

    def __init__(
        self,
        database: Database,
        namespaces: Sequence[str],
        poll_seconds: float,
        direct_url: str | None = None,
        *,
        calm: int = CALM,
        most_waiting: int = MOST_WAITING,
    ) -> None:
        self._calm = calm
        self._most_waiting = most_waiting
        self._database = database
        self._namespaces = namespaces
        self._poll_seconds = poll_seconds
        self._direct_url = direct_url
        self._heard = False
        self._waiters: set[_Waiter] = set()
        self._memory: _Memory | None = None
        self._wanted = asyncio.Event()
        self._news = asyncio.Event()
        self._ended = False

    async def page(self, scope: Scope, after: Cursor | None, limit: int) -> Page:
        """The next changes, from the database, at most so many. Expired if some of them are not kept any more."""
        async with self._database.begin() as connection:
            start = BEGINNING if after is None else after.position
            reading = await changes.read(connection, [scope.namespace], scope.channel, start, limit)
            if after is not None:
                _refuse_expired(after, reading)
            told = await _with_causes(connection, reading.rows)
        return Page(told, Cursor(reading.epoch, _end_of(reading, start, limit)))

    async def next_page(self, scope: Scope, after: Cursor | None, limit: int, seconds: float) -> Page:
        """The same, and if there is none yet, the first that comes within so many seconds; an empty page after that, or
        if the process ends."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        # Who does not wait asks for what is true now, not for what was found a moment ago.
        page = None if after is None or seconds <= 0 else self._remembered(scope, after, limit)
        if page is None:
            page = await self.page(scope, after, limit)
        while not page.told and not self._ended and await self._wait(scope, page.next, end - loop.time()):
            remembered = self._remembered(scope, page.next, limit)
            page = await self.page(scope, page.next, limit) if remembered is None else remembered
        return page

    @property
    def waiting(self) -> int:
        """How many wait now."""
        return len(self._waiters)

    def end(self) -> None:
        """Ends every wait now; nobody waits any more."""
        self._ended = True
        self._wake_all()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """With the looks going on beside the block, while somebody waits."""
        works = [self._look()]
        if self._direct_url is not None:
            works += [self._listen(self._direct_url), self._announce()]
        tasks = [asyncio.create_task(work) for work in works]
        try:
            yield
        finally:
            self.end()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _remembered(self, scope: Scope, after: Cursor, limit: int) -> Page | None:
        return None if self._memory is None else self._memory.page(scope, after, limit)

    async def _wait(self, scope: Scope, after: Cursor, seconds: float) -> bool:
        """Whether there may be something new within so many seconds."""
        if seconds <= 0:
            return False
        if len(self._waiters) >= self._most_waiting:
            raise StorageUnavailable("Too many wait for changes already; try again, or without wait.")
        if self._memory is None or self._memory.epoch != after.epoch:
            self._wake_all()  # those of another epoch
            self._memory = _Memory(after.epoch, after.position, after.position)
        since = self._memory.page(scope, after, 1)
        if since is None or since.told:
            return True
        waiter = _Waiter(scope, after.position, asyncio.get_running_loop().create_future())
        self._waiters.add(waiter)
        self._wanted.set()
        try:
            async with asyncio.timeout(seconds):
                await waiter.news
            return True
        except TimeoutError:
            return False
        finally:
            self._waiters.discard(waiter)

    def _wake_all(self) -> None:
        for waiter in self._waiters:
            if not waiter.news.done():
                waiter.news.set_result(None)

    async def _look(self) -> None:
        """Looks for changes for as long as somebody waits, or has waited a moment ago."""
        lost = False
        while True:
            await self._wanted.wait()
            try:
                hidden, more = await self._look_once()
                if lost:
                    logger().info("feed.found")
                lost = False
            except Exception as error:  # noqa: BLE001 (a loop that ended would let everybody wait in vain)
                if not lost:
                    logger().warning("feed.lost", exc_info=error)
                lost, self._memory = True, None
                await asyncio.sleep(RECOVERY)
                self._wake_all()
                continue
            if not more:
                await self._pause(hidden=hidden)

    async def _look_once(self) -> tuple[bool, bool]:
        """One look; tells whether rows wait for older transactions, and whether there is more to read at once."""
        memory = self._memory
        if memory is None:
            self._wake_all()  # they have not been told where the looks begin
            self._wanted.clear()
            return False, False
        self._news.clear()
        async with self._database.begin() as connection:
            reading = await changes.read(connection, self._namespaces, None, memory.head, AT_ONCE)
            told = await _with_causes(connection, reading.rows)
        if reading.epoch != memory.epoch or reading.ahead < memory.head.xid:
            self._memory = None
            self._wake_all()  # what they hold is worth nothing any more, as they will be told
            return False, False
        memory.add(told, _end_of(reading, memory.head, AT_ONCE))
        self._wake_those(reading.rows)
        return reading.hidden, len(reading.rows) == AT_ONCE

    def _wake_those(self, rows: Sequence[Change]) -> None:
        """Those for whom there is something new: thousands may wait."""
        newest: dict[Scope, Position] = {}
        for row in rows:
            newest[Scope(row.namespace)] = newest[Scope(row.namespace, row.channel)] = row.position
        for waiter in self._waiters:
            if newest.get(waiter.scope, BEGINNING) > waiter.after and not waiter.news.done():
                waiter.news.set_result(None)

    async def _pause(self, *, hidden: bool) -> None:
        """Until the next look: when it is time, or when changes are told of. Those that wait for an older transaction
        nobody tells of a second time."""
        if not self._waiters:
            self._wanted.clear()
            try:
                async with asyncio.timeout(LINGERING):
                    await self._wanted.wait()
            except TimeoutError:
                self._memory = None
            return
        seconds = self._poll_seconds * (self._calm if self._heard and not hidden else 1)
        try:
            async with asyncio.timeout(seconds):
                await self._news.wait()
        except TimeoutError:
            return

    async def _announce(self) -> None:
        while True:
            await self._database.news.wait()
            try:
                await announce(self._database)
            except StorageUnavailable:
                logger().info("changes.unannounced")  # others will look for themselves
            await asyncio.sleep(BETWEEN_ANNOUNCEMENTS)

    async def _listen(self, url: str) -> None:
        """Hears of changes; whenever the connection is lost, looks are as frequent as without one."""
        while True:
            async with AsyncExitStack() as stack:
                try:
                    lost = await stack.enter_async_context(changes.listening(url, self._news.set))
                    self._heard = True
                    self._news.set()
                    await lost.wait()
                except Exception as error:  # noqa: BLE001 (it is tried again, and the looks go on meanwhile)
                    logger().warning("feed.unheard", exc_info=error)
                finally:
                    self._heard = False
            await asyncio.sleep(RECOVERY)


async def announce(database: Database) -> None:
    """Tells all processes of the changes that this one has committed since it last did, if there are any."""
    if database.news.is_set():
        database.news.clear()
        async with database.read() as connection:
            await changes.announce(connection)


def _refuse_expired(after: Cursor, reading: Reading) -> None:
    if after.epoch != reading.epoch or after.position.xid > reading.ahead:
        raise Expired(
            "The database is not the one that this cursor was made for: it was restored, or a standby took over. Begin "
            "again with an export, and follow from its X-Changes-Cursor."
        )
    if reading.dropped is not None and after.position < reading.dropped:
        raise Expired(
            "Changes after this cursor are not kept any more. Begin again with an export, and follow from its "
            "X-Changes-Cursor."
        )


def _end_of(reading: Reading, after: Position, limit: int) -> Position:
    """Up to where everything has been read."""
    if len(reading.rows) == limit:
        return reading.rows[-1].position
    return max(after, Position(reading.horizon, 0))


async def _with_causes(connection: Connection, rows: Sequence[Change]) -> list[Told]:
    """In a statement after that of the rows, so the causes are at least as new."""
    subjects = list(dict.fromkeys(Subject(row.namespace, row.channel, row.address) for row in rows))
    if not subjects:
        return []
    causes = dict(zip(subjects, await suppressions.causes_of_each(connection, subjects), strict=True))
    return [Told(row, causes[Subject(row.namespace, row.channel, row.address)]) for row in rows]
