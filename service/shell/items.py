"""Owns how a file or standard input becomes items: a JSON array or one JSON object a line.

Refuses to hold more than one item, and to take a field that no such item has: a misspelt one would be left out in
silence. Faults name the line or the number of the item, and never show what stands there.
"""

import codecs
import itertools
import json
import typing
from collections.abc import Iterator
from functools import cache
from typing import IO, Any, Final, TypeVar

import click
import msgspec

_Shape = TypeVar("_Shape")

LONGEST: Final = 10_000_000
"""Bytes of one item at most: no request of Kahuna's takes more."""

_PIECE: Final = 1 << 20
_BLANK: Final = " \t\r\n"


def read(file: IO[bytes], shape: type[_Shape], skip: int = 0) -> Iterator[_Shape]:
    """The items after the first `skip`, one by one; UsageError for one that is not of this shape."""
    for where, value in itertools.islice(_values(file), skip, None):
        yield item(value, shape, where)


def item(value: Any, shape: type[_Shape], where: str) -> _Shape:
    """A decoded value in this shape; UsageError, which begins with `where`, if it is not."""
    strange = _strange_field(value, shape)
    if strange is not None:
        raise click.UsageError(f"{where} has a field that no {shape.__name__} has: {strange!r}; correct its spelling.")
    try:
        return msgspec.convert(value, shape)
    except msgspec.ValidationError as error:
        raise click.UsageError(f"{where} is no {shape.__name__}: {error}.") from None


def _values(file: IO[bytes]) -> Iterator[tuple[str, Any]]:
    """Each value, with the words for where it stands."""
    for number in itertools.count(1):
        line = file.readline(LONGEST)
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        if not line:
            return
        if line.lstrip().startswith(b"["):
            yield from _array(line.lstrip(), file)
            return
        if len(line) == LONGEST:
            raise click.UsageError(f"Line {number} of the input is too long for any request.")
        if line.strip():
            yield f"Line {number}", _decoded(line, f"Line {number}")


def _decoded(line: bytes, where: str) -> Any:
    try:
        return msgspec.json.decode(line)
    except (ValueError, RecursionError):
        raise click.UsageError(f"{where} of the input is not JSON in UTF-8: correct it.") from None


def _array(begun: bytes, file: IO[bytes]) -> Iterator[tuple[str, Any]]:
    """The values of an array that begins here. After it, nothing may follow."""
    text = _Text(codecs.iterdecode(itertools.chain([begun], iter(lambda: file.read(_PIECE), b"")), "utf-8"))
    where = "Item 1"
    try:
        text.take("[")
        for number in itertools.count(1):
            where = f"Item {number}"
            if number == 1 and text.next_sign() == "]":
                break
            yield where, text.value()
            if text.next_sign() == "]":
                break
            text.take(",")
        text.take("]")
        text.take("")
    except (ValueError, RecursionError):
        raise click.UsageError(f"{where} of the input, or what follows it, is not JSON in UTF-8: correct it.") from None


class _Text:
    """A text of which only the piece at hand is held."""

    def __init__(self, pieces: Iterator[str]) -> None:
        self._pieces = pieces
        self._held = ""
        self._at = 0
        self._decoder = json.JSONDecoder()

    def next_sign(self) -> str:
        """The next sign that is not blank, or nothing at the end."""
        while True:
            while self._at < len(self._held) and self._held[self._at] in _BLANK:
                self._at += 1
            if self._at < len(self._held) or not self._more():
                return self._held[self._at : self._at + 1]

    def take(self, sign: str) -> None:
        """Passes over this sign; nothing stands for the end. ValueError for another."""
        if self.next_sign() != sign:
            raise ValueError
        self._at += 1

    def value(self) -> Any:
        """The value that begins here. ValueError if there is none, or it is longer than any request may be."""
        self.next_sign()
        while True:
            try:
                value, self._at = self._decoder.raw_decode(self._held, self._at)
            except ValueError:
                # Broken, or not all there yet: that shows when there is more.
                if len(self._held) - self._at > LONGEST or not self._more():
                    raise
            else:
                return value

    def _more(self) -> bool:
        piece = next(self._pieces, "")
        self._held, self._at = self._held[self._at :] + piece, 0
        return bool(piece)


def _strange_field(value: Any, hint: Any) -> str | None:
    """A field of the value, or of one in it, that its shape does not have."""
    shape = _shape_in(hint)
    if shape is None:
        return None
    if isinstance(value, list):
        return next((name for one in value if (name := _strange_field(one, shape)) is not None), None)
    if not isinstance(value, dict):
        return None
    fields = _fields(shape)
    for name, inner in value.items():
        if name not in fields:
            return str(name)
        if isinstance(inner, dict | list) and (found := _strange_field(inner, fields[name])) is not None:
            return found
    return None


@cache
def _fields(shape: type) -> dict[str, Any]:
    return {field.encode_name: field.type for field in msgspec.structs.fields(shape)}


@cache
def _shape_in(hint: Any) -> type | None:
    """The structure that a type is, or holds."""
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return hint
    return next((found for part in typing.get_args(hint) if (found := _shape_in(part)) is not None), None)
