"""Owns the reading of a list from its first byte to its last: what kind of file it is, and what each line says.

The kind is told by the beginning of the file, whatever it is called: JSON, or CSV with a first line that names the
columns, or addresses alone. Refuses a file that does not tell which column holds the addresses, or why they are listed.
"""

import re
from collections.abc import Iterator
from typing import Final, Literal

from service.domain.addresses import ImpossibleAddress, normalise
from service.domain.facts import reasons_of
from service.errors import Unprocessable
from service.lists.columns import Asked, Columns, Line, names_an_address
from service.lists.records import LONGEST, Csv, JsonDocument, JsonLines, Record, Records, object_in
from service.lists.unpacking import UNDECODABLE, Text

DELIMITERS: Final = (",", ";", "\t")
MOST_SHAPES: Final = 100

_QUOTED: Final = re.compile(r'"[^"]*"')

Kind = Literal["csv", "ndjson", "json"]

_CONTROL: Final = re.compile(r"[\x00-\x08\x0e-\x1f]")
"""What no first line of a list has in it."""

_NO_ROWS: Final = (
    "There is a first line that names the columns, and no line after it. If curl sent this, use -T or --data-binary: "
    "-d takes out the line ends."
)

_NAMES: Final = "Name the columns in its first line, such as address,reason,occurred_at"


class Reading:
    """A list while it is read. `kind` is known once the first line was, `skipped` counts records that state no stop."""

    def __init__(self, asked: Asked) -> None:
        self.kind: Kind | None = None
        self.skipped = 0
        self._asked = asked
        self._text = Text()
        self._start = ""
        self._first = 1
        self._headers = 0
        self._has_rows = False
        self._is_telling = False
        self._records: Records | None = None
        self._columns: Columns | None = None
        self._shapes: dict[tuple[str, ...], Columns] = {}

    def feed(self, part: bytes) -> Iterator[list[Line]]:
        """What the next part of the file says, some lines at a time. Unprocessable if it cannot be read on."""
        for text in self._text.feed(part):
            yield self._lines(text, last=False)

    def end(self) -> Iterator[list[Line]]:
        """What the last lines say. The same errors, and Unprocessable if there was nothing at all."""
        for text in self._text.end():
            yield self._lines(text, last=True)
        if self._records is None:
            raise Unprocessable("There is nothing in this file.", "empty-list")
        if self.kind == "csv" and not self._has_rows:
            raise Unprocessable(_NO_ROWS, "empty-list")

    def _lines(self, text: str, *, last: bool) -> list[Line]:
        if self._records is None:
            text = self._start + text
            if not text or text.isspace():  # nothing yet: only the number of the line is of use
                self._first += text.count("\n")
                return []
            if "\n" not in text.lstrip() and len(text) <= LONGEST and not last:
                self._start = text
                return []
            self._records, self._start = self._records_of(text.lstrip().partition("\n")[0]), ""
        lines = [self._line(number, record) for number, record in self._records.feed(text, last=last)]
        found = [line for line in lines if line is not None]
        self.skipped += len(lines) - len(found) - self._headers
        self._headers = 0
        return found

    def _records_of(self, first: str) -> Records:
        if first.startswith(("{", "[")):
            found = object_in(first)
            by_lines = isinstance(found, dict) and self._of_keys(tuple(found)).address is not None
            self.kind = "ndjson" if by_lines else "json"
            return JsonLines(self._first) if by_lines else JsonDocument(self._first)
        self.kind = "csv"
        outside = _QUOTED.sub("", first)
        return Csv(self._first, max(DELIMITERS, key=outside.count), self._swallows)

    def _line(self, number: int, record: Record) -> Line | None:
        """What a record says; None if it states no stop."""
        if isinstance(record, str):
            self._has_rows = True
            return Line(number, fault=record)
        if isinstance(record, dict):
            return self._checked(self._of_keys(tuple(record))).read_object(number, record)
        if self._columns is None:
            self._columns = self._of_header(record)
            if self._headers:
                return None
        self._has_rows = True
        return self._columns.read_row(number, record)

    def _swallows(self, row: list[str], alone: list[list[str]]) -> bool:
        """Whether this row over several lines took in others. If it is the first one, any address tells."""
        if self._columns is None:
            return any(self._is_address(cell) for cells in alone for cell in cells)
        return self._columns.swallows(row, alone)

    def _of_header(self, row: list[str]) -> Columns:
        """The columns that the first row names; if it is an address itself, those of a list of addresses alone."""
        if not any(names_an_address(self._asked.channel, name) for name in row):
            if any(_CONTROL.search(cell) or (UNDECODABLE in cell and "@" not in cell) for cell in row):
                raise Unprocessable("This is no text; save the list as CSV in UTF-8, and send that.", "not-text")
            if len(row) == 1:
                return self._checked(Columns(["address"], self._asked, [0]))
            if any(self._is_address(cell) for cell in row):
                raise Unprocessable(f"The first line of this file names no columns. {_NAMES}.", "no-header")
            sentence = f"No column of this file is known to hold {self._asked.channel} addresses. {_NAMES}."
            raise Unprocessable(sentence, "no-address-column")
        self._headers = 1
        return self._checked(Columns(row, self._asked, range(len(row))))

    def _of_keys(self, keys: tuple[str, ...]) -> Columns:
        """The columns of the objects with these keys: most files have one kind of them, or a few."""
        if keys not in self._shapes:
            if len(self._shapes) >= MOST_SHAPES:
                self._shapes.clear()
            self._shapes[keys] = Columns(keys, self._asked, keys)
        return self._shapes[keys]

    def _checked(self, columns: Columns) -> Columns:
        """These columns, unless not even the first of them could tell why an address is listed."""
        if not self._is_telling:
            if not columns.tells_reasons:
                allowed = ", ".join(reasons_of(self._asked.channel))
                sentence = f"Nothing in this file tells why its addresses are listed: say reason, one of {allowed}."
                raise Unprocessable(sentence, "reason-required")
            self._is_telling = True
        return columns

    def _is_address(self, cell: str) -> bool:
        try:
            return bool(normalise(self._asked.channel, cell))
        except ImpossibleAddress:
            return False
