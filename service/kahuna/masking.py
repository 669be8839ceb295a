"""What Kahuna wrote, as it may be stored and shown: without whatever may be an address, a key, or a part of one.

Owns the judgement, word by word. Refuses to guess what an address looks like: a word is kept only if it is a plain one,
of letters alone, that shares nothing with a key or anything that was sent; all others become `***`.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Any, Final

MASK: Final = "***"

LONGEST: Final = 500
"""Characters that are kept of one text."""

PART: Final = 4
"""Letters in a row that tell something. A shorter piece of a name is in too many words to mean it; but whole names, and
letters by themselves, are hidden however short they are."""

_READ: Final = 4_000
"""Characters that are looked at."""

_PLAIN: Final = re.compile(r"[A-Z]?[a-z]{1,15}", re.ASCII)

_LETTERS: Final = re.compile(r"[^\W\d_]+")

_AROUND: Final = ".,;:!?()[]{}\"'"

_ALONE: Final = frozenset("ai")
"""Letters that are words."""


def masked(text: str, hidden: Iterable[str] = ()) -> str:
    """The text with its plain words alone; none of them occurs in a text that is `hidden`, has a name of it inside, or
    is a piece of it.

    >>> masked("Invalid address: a***@example.com, see item 17", ["ann@example.com"])
    'Invalid address: *** see item ***'
    """
    words = text[:_READ].split()
    names, written = _parts(hidden) if words else (frozenset(), "")
    shown: list[str] = []
    for word in words:
        bare = word.strip(_AROUND)
        kept = word if _PLAIN.fullmatch(bare) and not _tells(bare.lower(), names, written) else MASK
        if not (kept == MASK and shown and shown[-1] == MASK):
            shown.append(kept)
    return " ".join(shown)[:LONGEST]


def _parts(hidden: Iterable[str]) -> tuple[frozenset[str], str]:
    """The names in these texts, with and without their accents; and every text in letters alone, one a line."""
    names: set[str] = set()
    written: list[str] = []
    for one in dict.fromkeys(hidden):
        folded = unicodedata.normalize("NFKD", one).encode("ascii", "ignore").decode()
        for spelt in {one.lower(), folded.lower()}:
            found = _LETTERS.findall(spelt)
            names.update(found)
            written.append("".join(found))
    return frozenset(names), "\n".join(dict.fromkeys(written))


def _tells(word: str, names: frozenset[str], written: str) -> bool:
    if len(word) < PART:
        return word in names or (len(word) == 1 and word not in _ALONE)
    if word in written:
        return True
    places = range(len(word) - PART + 1)
    return any(word[start:end] in names for start in places for end in range(start + PART, len(word) + 1))


def texts_in(document: Any, depth: int = 8) -> Iterator[str]:
    """Every text of a JSON document, in its order, as deep as that; the names of fields are the vendor's own and are
    left out."""
    if isinstance(document, str):
        yield document
        return
    items = document.values() if isinstance(document, dict) else document if isinstance(document, list) else ()
    for item in items if depth else ():
        yield from texts_in(item, depth - 1)
