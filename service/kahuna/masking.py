"""What Kahuna wrote, as it may be stored and shown: without whatever may be an address, a key, or a part of one.

Owns the judgement, word by word. Refuses to guess what an address looks like: a word is kept only if it is a plain one,
of letters alone, that neither a key nor anything that was sent has in it; all others become `***`.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any, Final

MASK: Final = "***"

LONGEST: Final = 500
"""Characters that are kept of one text."""

_READ: Final = 4_000
"""Characters that are looked at."""

_PLAIN: Final = re.compile(r"[A-Z]?[a-z]{1,15}", re.ASCII)

_LETTERS: Final = re.compile(r"[^\W\d_]+")

_AROUND: Final = ".,;:!?()[]{}\"'"


def masked(text: str, hidden: Iterable[str] = ()) -> str:
    """The text with its plain words alone; none of them occurs in a text that is `hidden`.

    >>> masked("Invalid address: a***@example.com, see item 17", ["ann@example.com"])
    'Invalid address: *** see item ***'
    """
    words = text[:_READ].split()
    secret = {part.lower() for one in hidden for part in _LETTERS.findall(one)} if words else set()
    shown: list[str] = []
    for word in words:
        bare = word.strip(_AROUND)
        kept = word if _PLAIN.fullmatch(bare) and bare.lower() not in secret else MASK
        if not (kept == MASK and shown and shown[-1] == MASK):
            shown.append(kept)
    return " ".join(shown)[:LONGEST]


def texts_in(document: Any, depth: int = 8) -> Iterator[str]:
    """Every text of a JSON document, in its order, as deep as that; the names of fields are the vendor's own and are
    left out."""
    if isinstance(document, str):
        yield document
        return
    items = document.values() if isinstance(document, dict) else document if isinstance(document, list) else ()
    for item in items if depth else ():
        yield from texts_in(item, depth - 1)
