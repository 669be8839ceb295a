"""Owns the body of an import's chunk: some lines of a list as the archive keeps them, readable by any later rules.

A JSON array of objects with the line's number, the address as received, the reason and the time. What was understood
stands there in our words, what was not as it came; so reading it again needs neither the file nor its columns.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

import msgspec

from service.domain.addresses import Channel
from service.domain.facts import Action
from service.lists.columns import Line, folded, time_in, words_of

LINES: Final = 5000
"""Lines of one chunk. Another number makes other chunks of the same file, and with them no other facts."""

_DECODE: Final = msgspec.json.Decoder(list[Line])


class NotAChunk(ValueError):
    """The body is none of ours."""


class Entry(msgspec.Struct, frozen=True, gc=False):
    """What one line says by the rules of today; beside a `fault`, only what could be read. `timestamp` is as
    claimed."""

    index: int
    address: str | None = None
    reason: str | None = None
    action: Action = "suppress"
    timestamp: int | None = None
    fault: str | None = None


@dataclass(frozen=True)
class Chunk:
    """Some lines of a list, in its order. A list only ever stops."""

    channel: Channel
    values: Sequence[Line] = field(repr=False)

    @property
    def body(self) -> bytes:
        """What the archive keeps."""
        return msgspec.json.encode(self.values)

    @cached_property
    def entries(self) -> list[Entry]:
        """Every line, as it is understood today."""
        words = words_of(self.channel)
        return [_entry(index, line, words) for index, line in enumerate(self.values)]


def read(body: bytes, channel: Channel) -> Chunk:
    """The chunk in this body. NotAChunk if there is none."""
    try:
        return Chunk(channel, _DECODE.decode(body))
    except ValueError:
        # Its message may show the body.
        raise NotAChunk from None


def _entry(index: int, line: Line, words: Mapping[str, str]) -> Entry:
    if line.fault is not None or line.address is None:
        return Entry(index, fault=line.fault or "missing-address")
    if line.reason is None:
        return Entry(index, line.address, fault="missing-reason")
    reason = words.get(line.reason) or words.get(folded(line.reason))
    if reason is None:
        return Entry(index, line.address, fault="unknown-reason")
    at = line.at if type(line.at) is int else time_in(line.at)
    if isinstance(at, str):
        return Entry(index, line.address, reason, fault="bad-timestamp")
    return Entry(index, line.address, reason, "suppress", at)
