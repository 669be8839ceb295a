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
"""Records that a page of the log APIs has at most, and what clients ask for [CODE]."""

_R = TypeVar("_R")
_Logged = TypeVar("_Logged", bound=LogRecord)
_DAY: Final = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Position:
    """Where to go on: Kahuna's opaque cursor, and for a range of days the time that the rest begins at.

    Store both after a page, and give both to the same call, whose `until` may be another. A cursor alone goes on to the
    end of what it belongs to. With neither, all was handed out and Kahuna gave nothing to go on with.
    """

    since: datetime | None = None
    cursor: str | None = None


@dataclass(frozen=True)
class Page(Generic[_R]):
    """Records as Kahuna gave them at once, maybe none, where to go on after them, and whether another page will follow
    in this walk: a day without records is a page too."""

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
            raise unsent(api, "a time needs its zone, and a year that UTC has")
        if not 1 <= self.page_size <= MAX_RECORDS:
            raise unsent(api, f"a page has 1 to {MAX_RECORDS} records")

    def began(self, record: LogRecord) -> bool:
        """Whether a record is not before the span. One without a time is better kept."""
        return self.since is None or record.time is None or self.since <= record.time


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
    """A page whose records are the list under one of these names."""
    document = object_of(answer)
    more, cursor = document.get("more_records"), document.get("cursor")
    if not isinstance(more, bool):
        raise answer.unreadable("it does not say whether there are more records")
    if not (cursor is None or isinstance(cursor, str)):
        raise answer.unreadable("its cursor is no text")
    given = [document[name] for name in dict.fromkeys(names) if document.get(name) is not None]
    lists = [records for records in given if isinstance(records, list)]
    filled = [records for records in lists if records]
    # Records under a name, or in a form, that we do not know must not pass for none.
    if len(lists) < len(given) or len(filled) > 1 or not (filled or _may_be_empty(document, lists, more)):
        raise answer.unreadable("it has no list of records by the names we know, or more than one")
    return RawPage(filled[0] if filled else [], cursor or None, more)


def _may_be_empty(document: dict[str, Any], lists: list[list[Any]], more: bool) -> bool:
    """Whether a page without records is one, and does not have them elsewhere."""
    others = [value for value in document.values() if isinstance(value, list)]
    if lists:
        return not any(isinstance(item, dict) for other in others for item in other)
    return not (more or others)


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
        now, cursor = datetime.fromtimestamp(clock(), UTC), start.cursor
        end = now if span.until is None else min(span.until.astimezone(UTC), now)
        for moment in [None] if start.since is None else days(start.since.astimezone(UTC), end):
            day = _Day(moment, span.until, now, None if cursor is None else start)
            async for raw in chain(api, fetch_from(moment), cursor):
                inside = day.inside(read(raw.items))
                more = (raw.more and not day.is_over) or (moment is not None and next_midnight(moment) < end)
                yield Page([record for record in inside if span.began(record)], day.position(raw), more)
                if day.is_over:
                    break
            cursor = None

    return Pages(Position(span.since, span.cursor), walk)


class _Day:
    """One day's part of a walk, or all of a cursor's: what is of it, and where to go on after each of its pages.

    Its limit is midnight or the end of the walk. Should a cursor lead beyond it, what is there is left to the next day,
    or to a later walk: it would come twice. `start` is the stored position that the day is gone on from, if it is.
    """

    def __init__(self, moment: datetime | None, until: datetime | None, now: datetime, start: Position | None) -> None:
        ends = [end.astimezone(UTC) for end in (moment and next_midnight(moment), until) if end is not None]
        self._moment = moment
        self._limit = min(ends) if ends else None
        self._stays = start if self._limit == until else None
        # A day that is not over has more to come, from now on or, if our clock is behind, from its last record on: that
        # one may come twice, for nothing is to be lost.
        self._latest = now
        self._is_past = False
        self.is_over = False

    def inside(self, records: list[_Logged]) -> list[_Logged]:
        """Those before the limit. Records come in the order of their time [ASSUME], so that a page without any such
        ends the day; one that has both does not, since the order may not be strict."""
        limit = self._limit
        inside = [record for record in records if limit is None or record.time is None or record.time < limit]
        self._latest = max([self._latest, *(record.time for record in inside if record.time is not None)])
        self._is_past = self._is_past or len(inside) < len(records)
        self.is_over = len(inside) < len(records) and not inside
        if inside:
            self._stays = None
        return inside

    def position(self, raw: RawPage) -> Position:
        """Where to go on after a page. A cursor has passed by what was not inside, and what it gives once the day went
        on is not documented; so the time tells where the rest begins, as soon as all before it was handed out."""
        if self.is_over and self._stays is not None:
            # This `until` is before what was handed out by the walk that is gone on with.
            return self._stays
        if self._limit is not None and self._is_past:
            return Position(self._limit)
        if self._limit is not None and self._moment is not None and not raw.more:
            return Position(min(self._limit, self._latest))
        return Position(self._moment, raw.cursor)


def days(since: datetime, until: datetime) -> Iterator[datetime]:
    """The times to ask with for a range: its start, then each midnight (UTC) before its end."""
    while since < until:
        yield since
        since = next_midnight(since)


def next_midnight(moment: datetime) -> datetime:
    """When the UTC day of this moment ends."""
    return datetime.combine(moment.date() + _DAY, time(), UTC)
