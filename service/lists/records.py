"""Owns the way from text to records: CSV, JSON by lines, and the JSON documents that providers answer with.

A record is a row of cells, an object, or the fault that makes it neither; with each comes the line of the file at which
it begins. A fault costs its own line, whatever it is. Refuses to know what a cell means.
"""

import csv
import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple, Protocol, TypeAlias

import msgspec

from service.errors import Unprocessable

LONGEST: Final = 64 * 1024
"""Characters of one record: a longer one is a fault."""

MOST_LINES: Final = 100
"""Lines that one record may have."""

Record: TypeAlias = list[str] | dict[str, Any] | str
"""Cells, an object, or the slug of a fault. A line without anything in it is no record."""

Numbered: TypeAlias = tuple[int, Record]

Swallows: TypeAlias = Callable[[list[str], list[list[str]]], bool]
"""Whether a row over several lines took in rows of their own: its cells, and what may be those of each line alone."""

_BETWEEN: Final = re.compile(r"[\s,]*")


class Records(Protocol):
    """Text in, records out."""

    def feed(self, text: str, *, last: bool = False) -> Iterator[Numbered]:
        """The records that end in this text, the `last` one of the file or not."""


class _Run(NamedTuple):
    """Whole lines that follow one another, and the number of the first; None: one that is too long."""

    first: int
    lines: list[str] | None


class _Lines:
    """Text in, whole lines out. Of a line that is too long nothing is kept."""

    def __init__(self, first: int) -> None:
        self._rest = ""
        self._is_cutting = False
        self._next = first

    def feed(self, text: str, last: bool) -> Iterator[_Run]:
        """The lines that end in this text."""
        *lines, rest = (self._rest + text).split("\n")
        if last and rest:
            lines.append(rest)
            rest = ""
        if self._is_cutting and lines:
            self._is_cutting = False
            del lines[0]  # the end of what was too long, and was told then
        if max(map(len, lines), default=0) <= LONGEST:
            yield self._run(lines)
        else:
            for line in lines:
                yield self._run([line] if len(line) <= LONGEST else None)
        if len(rest) > LONGEST and not self._is_cutting:
            self._is_cutting = True
            yield self._run(None)
        self._rest = "" if self._is_cutting else rest

    def _run(self, lines: list[str] | None) -> _Run:
        run = _Run(self._next, lines)
        self._next += 1 if lines is None else len(lines)
        return run


class Csv:
    """Rows of cells. A quoted cell may hold line ends; a quote that nobody closes costs its own line alone, and so does
    one that only another stray quote closes, if the row `swallows` others. That is asked when all rows before it
    were given."""

    def __init__(self, first: int, delimiter: str, swallows: Swallows) -> None:
        self._lines = _Lines(first)
        self._delimiter = delimiter
        self._swallows = swallows
        self._open: list[str] = []
        self._opened_at = 0

    def feed(self, text: str, *, last: bool = False) -> Iterator[Numbered]:
        """The rows that end in this text."""
        for first, lines in self._lines.feed(text, last):
            if lines is None:
                yield from self._closed("unclosed-quote")
                yield first, "line-too-long"
            elif not self._open and '"' not in "".join(lines):
                yield from self._rows(range(first, first + len(lines)), lines)
            else:
                yield from self._with_quotes(first, lines)
        if last:
            yield from self._closed("unclosed-quote")

    def _with_quotes(self, first: int, lines: Sequence[str]) -> Iterator[Numbered]:
        """A row goes on while a quote is open."""
        numbers: list[int] = []
        whole: list[str] = []
        for number, line in enumerate(lines, first):
            self._opened_at = self._opened_at if self._open else number
            self._open.append(line)
            is_whole = self._is_whole(line)
            is_too_long = len(self._open) > MOST_LINES or sum(map(len, self._open)) > LONGEST
            if len(self._open) > 1 and (is_whole or is_too_long):
                yield from self._rows(numbers, whole)
                numbers, whole = [], []
                if not is_whole or self._has_swallowed():
                    if is_whole:  # or the address before it would end with it
                        self._open[-1] = "".join(line.rsplit('"', 1))
                    yield from self._closed("stray-quote" if is_whole else "unclosed-quote")
                    continue
            if is_whole:
                numbers.append(self._opened_at)
                whole.append("\n".join(self._open))
                self._open = []
        yield from self._rows(numbers, whole)

    def _is_whole(self, newest: str) -> bool:
        """Whether the row ends with its newest line. Only an odd number of quotes opens or closes a cell, and some of
        those stand for themselves: a reader that goes on takes the next line for a part of this row."""
        if newest.count('"') % 2 == 0:
            return len(self._open) == 1
        try:
            return len(list(csv.reader(["\n".join(self._open), ""], delimiter=self._delimiter))) == 2
        except csv.Error:
            return False

    def _has_swallowed(self) -> bool:
        cells = self._row("\n".join(self._open))
        # Within a stray quote, those of the line mean nothing.
        alone = [line.replace('"', "").split(self._delimiter) for line in self._open]
        return isinstance(cells, list) and self._swallows(cells, alone)

    def _closed(self, fault: str) -> Iterator[Numbered]:
        """Gives up on a quote: the line that has it is a fault, those after it are rows by themselves."""
        if self._open:
            yield self._opened_at, fault
            lines, self._open = self._open[1:], []
            yield from self._rows(range(self._opened_at + 1, self._opened_at + 1 + len(lines)), lines)

    def _rows(self, numbers: Sequence[int], whole: list[str]) -> Iterator[Numbered]:
        try:
            rows = list(csv.reader(whole, delimiter=self._delimiter))
        except csv.Error:
            rows = []
        # A quote within a cell may swallow what follows: then each is read apart.
        numbered = zip(numbers, rows if len(rows) == len(whole) else map(self._row, whole), strict=True)
        # A row of nothing but delimiters, as spreadsheets leave them, is as empty as a blank line.
        return (one for one in numbered if any(one[1]) and (len(one[1]) > 1 or not one[1][0].isspace()))

    def _row(self, line: str) -> list[str] | str:
        try:
            return next(csv.reader([line], delimiter=self._delimiter), [])
        except csv.Error:
            return "not-csv"


class JsonLines:
    """One JSON object a line."""

    def __init__(self, first: int) -> None:
        self._lines = _Lines(first)

    def feed(self, text: str, *, last: bool = False) -> Iterator[Numbered]:
        """The objects that end in this text."""
        for first, lines in self._lines.feed(text, last):
            if lines is None:
                yield first, "line-too-long"
                continue
            for number, line in enumerate(lines, first):
                if line and not line.isspace():
                    yield number, object_in(line)


def object_in(line: str) -> Record:
    """The JSON object that this line is."""
    try:
        value = msgspec.json.decode(line)
    except (ValueError, RecursionError):
        return "not-json"
    return value if isinstance(value, dict) else "not-an-object"


class JsonDocument:
    """The objects of every list in a JSON document, such as `{"Suppressions": [{…}, …]}` or `[{…}, …]`. What stands
    around the lists is passed over. After a fault it cannot be read on: Unprocessable."""

    def __init__(self, first: int) -> None:
        self._rest = ""
        self._line = first
        self._is_inside = self._has_list = False
        self._decode = json.JSONDecoder().raw_decode

    def feed(self, text: str, *, last: bool = False) -> Iterator[Numbered]:
        """The objects that end in this text."""
        text, place = self._rest + text, 0
        while (start := self._start(text, place)) is not None:
            self._line += text.count("\n", place, start)
            try:
                value, end = self._decode(text, start)
            except (ValueError, RecursionError):  # not whole yet, or never: then the rest grows too long
                place = start
                break
            if end - start > LONGEST:
                place = start
                break
            yield self._line, value if isinstance(value, dict) else "not-an-object"
            self._line += text.count("\n", start, end)
            place = end
        else:
            self._line += text.count("\n", place)
            place = len(text)
        self._rest = text[place:]
        if len(self._rest) > LONGEST or (last and (self._rest or self._is_inside)):
            raise Unprocessable(f"The JSON document is damaged or cut off at line {self._line}.", "broken-list")
        if last and not self._has_list:
            raise Unprocessable("There is no list in this JSON document.", "broken-list")

    def _start(self, text: str, place: int) -> int | None:
        """Where the next value of a list begins; None if there is none in this text."""
        while place < len(text):
            if not self._is_inside:
                opens = text.find("[", place)
                if opens < 0:
                    return None
                self._is_inside = self._has_list = True
                place = opens + 1
            place = _BETWEEN.match(text, place).end()  # type: ignore[union-attr]  # it may be nothing, but matches
            if text[place : place + 1] != "]":
                return place if place < len(text) else None
            self._is_inside, place = False, place + 1
        return None
