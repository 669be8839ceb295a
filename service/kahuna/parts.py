"""Many items as few requests: JSON arrays of a bounded number of items and bytes, made as they are needed.

Owns the cut, measured on the bytes that are sent. Refuses to hold more than one part, and to know what items mean.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeAlias, TypeVar

from service.kahuna import errors
from service.kahuna.calling import Api, unsent
from service.kahuna.sending import Unencodable, encoded
from service.kahuna.wire import MAX_BYTES

_BREATH: Final = 1_000
"""Items after which others get their turn."""

_T = TypeVar("_T")
_Said = TypeVar("_Said")
_Sum = TypeVar("_Sum")

Stream: TypeAlias = Iterable[_T] | AsyncIterable[_T]
"""Anything that gives items one by one, at once or in its time."""

Progress: TypeAlias = Callable[[int], None]
"""Is told after each request of a call how many items were answered."""


@dataclass(frozen=True, slots=True)
class Part:
    """A JSON array, the number of its items, and whether all of them may be sent again."""

    body: bytes = field(repr=False)
    count: int
    repeatable: bool


@dataclass(frozen=True)
class Cut(Generic[_T]):
    """How items are cut: at most so many, and strictly less than so many bytes with `envelope` bytes around them.

    An item too large for any request travels alone: the vendor is the one to refuse it. `plain` gives what of an item
    is encoded. Without items there is no part, unless it is `at_least_one`.
    """

    max_items: int
    max_bytes: int = MAX_BYTES
    envelope: int = 0
    repeatable: Callable[[_T], bool] = lambda _: True
    plain: Callable[[_T], Any] = lambda item: item
    at_least_one: bool = False

    async def parts(self, items: Stream[_T]) -> AsyncGenerator[Part, None]:
        """The items in order. Unencodable for an item that JSON cannot say."""
        growing = _Growing(self)
        if isinstance(items, AsyncIterable):
            async for item in items:
                if (part := growing.add(item)) is not None:
                    yield part
        else:
            for number, item in enumerate(items, 1):
                if (part := growing.add(item)) is not None:
                    yield part
                if number % _BREATH == 0:
                    # Items that are all there would keep everybody else waiting until the part is full.
                    await asyncio.sleep(0)
        if growing.pieces or (self.at_least_one and not growing.any_cut):
            yield growing.cut()


class _Growing(Generic[_T]):
    """The part that is being filled."""

    def __init__(self, rule: Cut[_T]) -> None:
        self._rule = rule
        self._empty = rule.envelope + 1
        self._size = self._empty
        self._repeatable = True
        self.any_cut = False
        self.pieces: list[bytes] = []

    def add(self, item: _T) -> Part | None:
        """Takes the item in; the part before it if that was full."""
        piece = encoded(self._rule.plain(item))
        # Each item costs itself and one byte more: a comma after it, or the closing bracket.
        cost = len(piece) + 1
        full = len(self.pieces) == self._rule.max_items or self._size + cost >= self._rule.max_bytes
        part = self.cut() if self.pieces and full else None
        self.pieces.append(piece)
        self._size += cost
        self._repeatable = self._repeatable and self._rule.repeatable(item)
        return part

    def cut(self) -> Part:
        """What was gathered, and a new start."""
        part = Part(b"[" + b",".join(self.pieces) + b"]", len(self.pieces), self._repeatable)
        self.pieces, self._size, self._repeatable, self.any_cut = [], self._empty, True, True
        return part


def whole(api: Api, document: Mapping[str, Any]) -> bytes:
    """A body that is not cut, checked before it is sent."""
    try:
        body = encoded(document)
    except Unencodable:
        raise unsent(api, "it cannot be written as JSON") from None
    if len(body) >= MAX_BYTES:
        raise errors.TooLarge(api.name, cause="10 MB at most")
    return body


async def in_parts(
    api: Api,
    parts: AsyncGenerator[Part, None],
    send: Callable[[Part, int], Awaitable[_Said]],
    join: Callable[[Sequence[_Said]], _Sum],
    progress: Progress | None,
) -> _Sum:
    """Sends part by part, in order, and joins what is said of each. An error says in `done` how far it got; whatever
    else ends it, such as the caller's own source of items, does not, and only `progress` was told."""
    said: list[_Said] = []
    index = 0
    try:
        async with aclosing(parts):
            async for part in parts:
                said.append(await send(part, len(said)))
                index += part.count
                if progress is not None:
                    progress(index)
    except errors.KahunaError as error:
        error.done = errors.Done(index, join(said))
        raise
    except Unencodable:
        # The items gathered for the request that it would have been part of were not sent.
        refusal = unsent(api, "an item cannot be written as JSON")
        refusal.done = errors.Done(index, join(said))
        raise refusal from None
    return join(said)
