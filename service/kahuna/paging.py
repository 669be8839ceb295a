"""Answers that come in pages: one loop for all of them, that ends, and can be taken up again where it was left.

Owns cursors, the days that a range of log records is asked by, and positions to resume from. Refuses to hold more than
one page.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, time, timedelta
from typing import Any, Final, Generic, TypeAlias, TypeVar

from service.kahuna import errors
from service.kahuna.calling import Answer, Api, unsent
from service.kahuna.retrieval import LogRecord, zoned

MAX_RECORDS: Final = 1_000
"""Records that a page of the log APIs has at most [DOC clients]."""

_R = TypeVar("_R")
_Logged = TypeVar("_Logged", bound=LogRecord)
_DAY: Final = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Position:
    """Where to go on: Kahuna's opaque cursor, and for a range of days the time that the rest begins at.

    Store both after a page, and give both to the same call. A cursor alone goes on to the end of what it belongs to.
    With neither, all was handed out and Kahuna gave nothing to go on with.
    """

    since: datetime | None = None
    cursor: str | None = None


@dataclass(frozen=True)
class Page(Generic[_R]):
    """Up to 1,000 records, where to go on after them, and whether Kahuna says there is more behind this cursor."""

    records: list[_R] = field(repr=False)
    position: Position
    more: bool


@dataclass(frozen=True, slots=True)
class RawPage:
    """A page as Kahuna gives it. An empty cursor is none."""

    items: list[Any] = field(repr=False)
    cursor: str | None
    more: bool


@dataclass(frozen=True, slots=True)
class Span:
    """Which log records are asked for: from a time on, from a cursor on, or both to go on; before a time; how many a
    page."""

    since: datetime | None
    until: datetime | None
    cursor: str | None
    page_size: int

    def check(self, api: Api) -> None:
        """Refuses what cannot be asked."""
        if self.since is None and self.cursor is None:
            raise unsent(api, "it needs a time or a cursor")
        if not (zoned(self.since) and zoned(self.until)):
            raise unsent(api, "a time needs its zone")
        if not 1 <= self.page_size <= MAX_RECORDS:
            raise unsent(api, f"a page has 1 to {MAX_RECORDS} records")

    def holds(self, record: LogRecord, asked: datetime | None) -> bool:
        """Whether a record is of the span, and of the day that was asked for: should a cursor lead beyond its day, the
        rest would come twice. A record without a time is better kept."""
        time_ = record.time
        if time_ is None:
            return True
        ended = self.until is not None and time_ >= self.until
        tomorrow = asked is not None and time_ >= next_midnight(asked)
        return not ended and not tomorrow and (self.since is None or self.since <= time_)


Fetch: TypeAlias = Callable[[str | None], Awaitable[RawPage]]
"""Asks for a page: the one at a cursor, or the first one for None."""


class Pages(Generic[_R]):
    """Records page by page: `async for record in pages`, or `async for page in pages.pages()`.

    `position` is where to go on after the last page that was wholly handed out. It can be walked again from the start.
    """

    def __init__(self, start: Position, walk: Callable[[Position], AsyncIterator[Page[_R]]]) -> None:
        self.position = start
        self._start = start
        self._walk = walk

    async def pages(self) -> AsyncIterator[Page[_R]]:
        """Page by page; a page without records may come, and has a position as well."""
        async for page in self._walk(self._start):
            yield page
            self.position = page.position

    async def __aiter__(self) -> AsyncIterator[_R]:
        async for page in self.pages():
            for record in page.records:
                yield record


async def chain(api: str, fetch: Fetch, cursor: str | None) -> AsyncIterator[RawPage]:
    """Pages from a cursor, or from the start for None, until Kahuna says that there are no more.

    A cursor that was seen before would go round for ever. One older cursor is remembered, and replaced ever more
    rarely (Brent's way), which finds a circle of any length without keeping them all.
    """
    remembered, steps, patience = cursor, 0, 1
    while True:
        page = await fetch(cursor)
        if page.more and page.cursor in (None, cursor, remembered):
            raise errors.UnreadableAnswer(api, 200, cause="its cursor does not advance")
        yield page
        if not page.more:
            return
        cursor = page.cursor
        steps += 1
        if steps == patience:
            remembered, steps, patience = cursor, 0, patience * 2


def raw_page(answer: Answer, names: tuple[str, ...]) -> RawPage:
    """A page whose records are under the first of these names that has a list."""
    document = object_of(answer)
    more, cursor = document.get("more_records"), document.get("cursor")
    if not isinstance(more, bool):
        raise answer.unreadable("it does not say whether there are more records")
    if not (cursor is None or isinstance(cursor, str)):
        raise answer.unreadable("its cursor is no text")
    for name in names:
        if isinstance(document.get(name), list):
            return RawPage(document[name], cursor or None, more)
    # Records under a name that we do not know must not pass for none.
    if more or any(isinstance(value, list) for value in document.values()):
        raise answer.unreadable("it has no list of records by the names we know")
    return RawPage([], cursor or None, more)


def object_of(answer: Answer) -> dict[str, Any]:
    """The JSON object of a success; every other answer is an error."""
    if not answer.is_success:
        raise answer.failure()
    document = answer.document()
    if not isinstance(document, dict):
        raise answer.unreadable("it is no JSON object")
    if document.get("success") is False:
        raise answer.refused(document)
    return document


def single(api: str, fetch: Fetch, cursor: str | None, read: Callable[[list[Any]], list[_R]]) -> Pages[_R]:
    """The pages of one query."""

    async def walk(start: Position) -> AsyncIterator[Page[_R]]:
        async for raw in chain(api, fetch, start.cursor):
            yield Page(read(raw.items), Position(None, raw.cursor), raw.more)

    return Pages(Position(None, cursor), walk)


def ranged(
    api: str,
    fetch_from: Callable[[datetime | None], Fetch],
    span: Span,
    read: Callable[[list[Any]], list[_Logged]],
    clock: Callable[[], float],
) -> Pages[_Logged]:
    """The pages of a span of time, asked for day by day."""

    async def walk(start: Position) -> AsyncIterator[Page[_Logged]]:
        cursor = start.cursor
        until = span.until or datetime.fromtimestamp(clock(), UTC)
        for moment in [None] if start.since is None else days(start.since.astimezone(UTC), until):
            async for raw in chain(api, fetch_from(moment), cursor):
                records = [record for record in read(raw.items) if span.holds(record, moment)]
                yield Page(records, _after(moment, raw.cursor), raw.more)
            cursor = None

    return Pages(Position(span.since, span.cursor), walk)


def _after(moment: datetime | None, cursor: str | None) -> Position:
    """Where to go on. Without a cursor there was nothing more of this day."""
    if cursor is None and moment is not None:
        return Position(next_midnight(moment))
    return Position(moment, cursor)


def days(since: datetime, until: datetime) -> Iterator[datetime]:
    """The times to ask with for a range: its start, then each midnight (UTC) before its end."""
    while since < until:
        yield since
        since = next_midnight(since)


def next_midnight(moment: datetime) -> datetime:
    """When the UTC day of this moment ends."""
    return datetime.combine(moment.date() + _DAY, time(), UTC)
