"""The slow decoder, for a body that the fast one refuses because of one bad value.

Owns a strict reading of the whole body as JSON that goes on where a decoder must give up: at lone surrogates, numbers
that are none or that no machine number holds, and nesting of any depth. Such a value is the fault of its entry alone,
so that the people in the entries beside it are not messaged again. Refuses everything else that is not JSON, and any
top level but an array. Time and memory grow with the length of the text and with nothing else: no recursion, no
backtracking.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, TypeAlias

MAX_DEPTH: Final = 64
# Where the fast decoder stops reading an integer, and Python's own limit. The same one in both, so that what is a
# fault does not depend on which of the two read the body.
MAX_DIGITS: Final = 4300

# Two and a half times what the vendor puts into a body, and more than its limit of bytes holds of entries with a time.
# The same in both decoders. What is more says nothing but costs as much: each entry would be kept in quarantine.
MAX_ENTRIES: Final = 250_000

# Stands for a nested array or object: a value, but of no type that any field may have.
NESTED: Final = ()


class NotJson(ValueError):
    """The body is not JSON in UTF-8."""

    def __init__(self) -> None:
        super().__init__("the body is not JSON in UTF-8")


class NotAnArray(ValueError):
    """The body is something else than a JSON array."""

    def __init__(self) -> None:
        super().__init__("the body is not a JSON array")


class TooManyEntries(ValueError):
    """The body is an array of more entries than anybody sends."""

    def __init__(self) -> None:
        super().__init__(f"the body has more than {MAX_ENTRIES} entries")


@dataclass(frozen=True, slots=True)
class Salvaged:
    """One entry of the array: its value with nested containers left out, its first fault, and its text as it came."""

    value: object = field(repr=False)
    fault: str | None
    raw: str = field(repr=False)


def salvage(text: str) -> list[Salvaged]:
    """The entries of a JSON array, the good and the bad. NotJson or NotAnArray for anything else, TooManyEntries."""
    entries: list[Salvaged] = []
    draft = _Draft(0)
    for depth, place, symbol, match in _steps(text):
        if symbol in _VALUES:
            if depth == 1:
                draft = _Draft(match.start())
            draft.take(depth, place, symbol, match[0])
        if depth == 1 and symbol not in _UNFINISHED:
            entries.append(Salvaged(draft.value, draft.fault, text[draft.start : match.end()]))
            if len(entries) > MAX_ENTRIES:
                raise TooManyEntries
    return entries


def too_deep(body: bytes) -> frozenset[int]:
    """The entries of a sound JSON array that `salvage` would call nested too deep. By the text and not by the values:
    where a key comes twice, the values have lost what its first one held."""
    depth = index = 0
    found = set()
    for mark in _STRINGS.sub(b"", body).translate(None, delete=_NO_MARKS):
        if mark in b"[{":
            depth += 1
            if depth > MAX_DEPTH + 1:
                found.add(index)
        elif mark in b"]}":
            depth -= 1
        elif depth == 1:
            index += 1
    return frozenset(found)


_STRINGS: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"')
_NO_MARKS: Final = bytes(set(range(256)) - set(b"[]{},"))

# Every quantifier is possessive (`+` after it), so nothing is tried twice. The last branch takes what no other does,
# for otherwise the scan would step over it.
_TOKEN: Final = re.compile(
    r"""(?P<blank>[ \t\n\r]++)
      | (?P<string>"[^"\\\x00-\x1f]*+(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})[^"\\\x00-\x1f]*+)*+")
      | (?P<mark>[\[\]{},:])
      | (?P<number>-?+(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?+(?:[eE][+-]?+[0-9]++)?+)
      | (?P<word>true|false|null|NaN|-?+Infinity)
      | (?P<wrong>.)""",
    re.VERBOSE | re.DOTALL,
)
SURROGATE: Final = re.compile("[\ud800-\udfff]")

_SCALARS: Final = frozenset({"string", "number", "word"})
_OPENING: Final = frozenset({"[", "{"})
_VALUES: Final = _SCALARS | _OPENING
_UNFINISHED: Final = frozenset({"[", "{", ","})

# The grammar: where we are, what comes, where that leads. A place is named after what it stands behind: `[,` is behind
# a comma in an array, `{v` behind a value in an object. A container that is opened leads there once it is closed.
_START: Final = "start"
_END: Final = "end"
_CLOSED: Final = "closed"
_NOWHERE: Final = "nowhere"
_GRAMMAR: Final = MappingProxyType(
    {
        (_START, "["): _END,
        **dict.fromkeys(((place, value) for place in ("[", "[,") for value in _VALUES), "[v"),
        ("[v", ","): "[,",
        ("{", "string"): "{k",
        ("{,", "string"): "{k",
        ("{k", ":"): "{:",
        **dict.fromkeys((("{:", value) for value in _VALUES), "{v"),
        ("{v", ","): "{,",
        **dict.fromkeys((("[", "]"), ("[v", "]"), ("{", "}"), ("{v", "}")), _CLOSED),
    }
)

# How many containers are around a token (around its container, for a bracket), the place it came to, what it is.
_Step: TypeAlias = tuple[int, str, str, re.Match[str]]


def _steps(text: str) -> Iterator[_Step]:
    """The tokens between the outer brackets, each proved to stand where it may."""
    returns: list[str] = []
    place = _START
    for match in _TOKEN.finditer(text):
        kind = match.lastgroup or "wrong"
        if kind == "blank":
            continue
        symbol = match[0] if kind == "mark" else kind
        came_from, depth = place, len(returns)
        place = _GRAMMAR.get((place, symbol), _NOWHERE)
        if place is _NOWHERE:
            raise NotAnArray if came_from == _START and symbol in _VALUES else NotJson
        if symbol in _OPENING:
            returns.append(place)
            place = symbol
        elif place is _CLOSED:
            depth -= 1
            place = returns.pop()
        if depth:
            yield depth, came_from, symbol, match
    if place != _END:
        raise NotJson


class _Draft:
    """One entry while its values go by."""

    __slots__ = ("fault", "key", "start", "value")

    def __init__(self, start: int) -> None:
        self.start = start
        self.value: object = NESTED
        self.fault: str | None = None
        self.key: object = ""

    def take(self, depth: int, place: str, symbol: str, token: str) -> None:
        """Keep a key or value of the entry's own level; of the levels below, only their faults."""
        value, fault = _read(symbol, token) if symbol in _SCALARS else _nested(depth)
        self.fault = self.fault or fault
        if depth == 1:
            self.value = {} if symbol == "{" else value
        elif depth == 2 and isinstance(self.value, dict):
            if place == "{:":
                self.value[self.key] = value
            else:
                self.key = value


_WORDS: Final[Mapping[str, tuple[object, str | None]]] = MappingProxyType(
    {
        "true": (True, None),
        "false": (False, None),
        "null": (None, None),
        "NaN": (math.nan, "not-a-number"),
        "Infinity": (math.inf, "not-a-number"),
        "-Infinity": (-math.inf, "not-a-number"),
    }
)


def _read(symbol: str, token: str) -> tuple[object, str | None]:
    """What a scalar says, and what is wrong with it."""
    if symbol == "string":
        return _string(token)
    return _number(token) if symbol == "number" else _WORDS[token]


def _nested(depth: int) -> tuple[object, str | None]:
    return NESTED, "nested-too-deep" if depth > MAX_DEPTH else None


def _string(token: str) -> tuple[str, str | None]:
    # The standard decoder joins surrogate pairs and passes lone ones through, which is what a signature was made of.
    value = json.loads(token) if "\\" in token else token[1:-1]
    return value, "lone-surrogate" if SURROGATE.search(value) else None


def _number(token: str) -> tuple[int | float, str | None]:
    if not token.lstrip("-").isdigit():
        value = float(token)
        return value, "number-out-of-range" if math.isinf(value) else None
    if len(token) > MAX_DIGITS:
        return math.inf, "number-out-of-range"
    return int(token), None
