"""What happened, written down once and in order.

Owns the shapes of the stand-in's log and the log itself, from which the log APIs, User/Campaign and Campaign Statistics
all read, so that they cannot disagree. Refuses to forget or to reorder: a position in the log stays true for ever.
"""

from bisect import bisect_left
from collections.abc import Collection, Iterator
from typing import Literal, NamedTuple, TypeAlias

import msgspec

from service.kahuna.simulator.contract import Category, Env

CampaignType = Literal["adaptive", "external_trigger", "experience", "push_api"]

MICROSECONDS = 1_000_000


class EmailOfExperience(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What User/Campaign tells of an Experience."""

    title: str
    subject: str


class Campaign(msgspec.Struct, frozen=True, gc=False):
    """A campaign. Only the first two types can be called for through an API."""

    campaign_id: int
    name: str
    type: CampaignType
    channel: Literal["push", "in_app", "email", "sms"]
    env: Env
    suite_id: int | None = None
    emails: tuple[EmailOfExperience, ...] = ()


class Device(msgspec.Struct, frozen=True, gc=False):
    """A device as a user was last seen with it."""

    id: str
    os_name: str | None = None
    push_token: str | None = None
    push_enabled: bool = False
    last_seen: int = 0


class Record(msgspec.Struct, frozen=True, gc=False):
    """Something that happened to a message. `labels` are the user's credentials then; times are in microseconds."""

    category: Category
    at: int
    action: str
    user_id: int
    labels: tuple[str, ...]
    campaign: Campaign | None = None
    address: str = ""
    device: Device | None = None
    message: str = "0"


class MergeRecord(msgspec.Struct, frozen=True, gc=False):
    """Two users became one."""

    at: int
    user_id: int
    common: tuple[str, ...]
    older: tuple[str, ...]
    newer: tuple[str, ...]
    category: Category = "user_merge"


Entry: TypeAlias = Record | MergeRecord


class Page(NamedTuple):
    """Some entries, the position after them, and whether the search would have found more."""

    entries: list[Entry]
    position: int
    more: bool


class Log:
    """The entries of one environment, by time ascending."""

    def __init__(self) -> None:
        self._entries: list[Entry] = []

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries)

    def add(self, entry: Entry) -> None:
        """Write down. A clock that was set back must not put an entry where readers have already been."""
        last = self.last_at
        self._entries.append(entry if entry.at >= last else msgspec.structs.replace(entry, at=last))

    @property
    def last_at(self) -> int:
        """The time of the newest entry; 0 without any."""
        return self._entries[-1].at if self._entries else 0

    def position_of(self, at: int) -> int:
        """Where the entries of this time and later begin."""
        return bisect_left(self._entries, at, key=lambda entry: entry.at)

    def page(self, position: int, until: int | None, wanted: Collection[Category], limit: int) -> Page:
        """The next entries of these categories, up to this time. What is of no interest is passed over for good."""
        found: list[Entry] = []
        entries = self._entries
        for index in range(position, len(entries)):
            entry = entries[index]
            if until is not None and entry.at > until:
                return Page(found, index, more=False)
            if entry.category in wanted:
                if len(found) == limit:
                    return Page(found, index, more=True)
                found.append(entry)
        return Page(found, max(position, len(entries)), more=False)
