"""The shapes and words of the two sync APIs, both ways.

Owns the one table of vendor words, the entries as they go out, how they are cut into requests, and what an answer
proves. Refuses to guess: an answer whose counts do not add up is unreadable, and culprits are named only beyond doubt.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Any, Final, TypeAlias, TypeVar

import msgspec

from service.errors import SettingsError
from service.kahuna.errors import UnreadableAnswer

MAX_ENTRIES: Final = 100_000
MAX_BYTES: Final = 10_000_000

EMAIL_WORDS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "unsub": "unsubscribe",
        "hard_bounce": "hard_bounce",
        "soft_bounce": "soft_bounce",
        "spam": "complaint",
        "invalid": "invalid",
        "blocked": "blocked",
        "reject": "rejected",
    }
)
# Kahuna has no word for "a person of ours decided so"; an unsubscribe is the closest that stops its mail.
_WORDS_OUT: Final[Mapping[str, str]] = MappingProxyType(
    {reason: word for word, reason in EMAIL_WORDS.items()} | {"manual": "unsub"}
)


def words_with(extra: Iterable[tuple[str, str]]) -> Mapping[str, str]:
    """The table of e-mail words, and those that a deployment has met beside them.

    SettingsError for a word that has a meaning already, and for a reason that Kahuna has no word for: `manual` is ours
    alone.
    """
    words = dict(EMAIL_WORDS)
    for word, reason in extra:
        if word in words:
            raise SettingsError(f"EXTRA_REASONS: {word} means {words[word]} already; take it out.")
        if reason not in EMAIL_WORDS.values():
            known = ", ".join(EMAIL_WORDS.values())
            raise SettingsError(f"EXTRA_REASONS: {word} cannot mean {reason}; choose one of {known}.")
        words[word] = reason
    return MappingProxyType(words)


def word_of(reason: str) -> str:
    """The vendor's word for an e-mail reason of ours; KeyError for a reason that e-mail does not have."""
    return _WORDS_OUT[reason]


class EmailSyncEntry(msgspec.Struct, frozen=True, omit_defaults=True):
    """One e-mail fact for Kahuna, in its own words. `timestamp` is in Unix seconds."""

    reason: str
    email: str
    timestamp: int | None = None

    def __repr__(self) -> str:
        return f"EmailSyncEntry({self.reason})"


class SmsSyncEntry(msgspec.Struct, frozen=True, omit_defaults=True, rename={"opt_in": "opt-in"}):
    """One SMS fact for Kahuna: do not call, or an opt-in. The contract wants `opt-in` left out when it is not true."""

    number: str
    timestamp: int | None = None
    opt_in: bool = False

    def __repr__(self) -> str:
        return f"SmsSyncEntry(opt_in={self.opt_in})"


SyncEntry: TypeAlias = EmailSyncEntry | SmsSyncEntry
_Entry = TypeVar("_Entry", EmailSyncEntry, SmsSyncEntry)


def is_timed(entry: SyncEntry) -> bool:
    """Whether a second receipt means the same: an opt-in without a time would count from then."""
    return isinstance(entry, EmailSyncEntry) or entry.timestamp is not None or not entry.opt_in


def cut(
    entries: Iterable[_Entry], max_entries: int = MAX_ENTRIES, max_bytes: int = MAX_BYTES
) -> Iterator[list[_Entry]]:
    """The entries in order, in chunks whose encoded body stays strictly under `max_bytes`.

    An entry too large for any request travels alone: the vendor is the one to refuse it.
    """
    chunk: list[_Entry] = []
    size = 1
    for entry in entries:
        # Each entry costs itself and one byte more: a comma after it, or the closing bracket.
        cost = len(msgspec.json.encode(entry)) + 1
        if chunk and (len(chunk) == max_entries or size + cost >= max_bytes):
            yield chunk
            chunk, size = [], 1
        chunk.append(entry)
        size += cost
    if chunk:
        yield chunk


class SyncAnswer(msgspec.Struct, frozen=True):
    """What Kahuna says it did with the entries of one request. The shape of an item of `errors` is not documented."""

    accepted: int
    rejected: int
    errors: list[Any] = msgspec.field(default_factory=list)

    def __repr__(self) -> str:
        return f"SyncAnswer(accepted={self.accepted}, rejected={self.rejected})"


class _Counts(msgspec.Struct):
    accepted: Annotated[int, msgspec.Meta(ge=0)]
    rejected: Annotated[int, msgspec.Meta(ge=0)]
    errors: Any = None


def read_sync_answer(body: bytes, sent: int, *, api: str, status: int = 200, errors_name: str = "errors") -> SyncAnswer:
    """What the answer to `sent` entries proves. `errors_name` is the field that lists what was rejected.

    Counts that do not add up to what was sent prove nothing: taking them as they are would either mark an entry as
    delivered that was not, or look for a culprit that does not exist.
    """
    try:
        counts = msgspec.json.decode(body, type=_Counts)
    except (ValueError, RecursionError):
        counts = None
    if counts is None:
        raise UnreadableAnswer(api, status, cause="no counts of accepted and rejected entries")
    if counts.accepted + counts.rejected != sent:
        raise UnreadableAnswer(api, status, cause="its counts do not add up to the entries sent")
    # The contract names a list but shows none, so anything else only means that no culprit is named.
    errors = counts.errors if errors_name == "errors" else msgspec.json.decode(body).get(errors_name)
    return SyncAnswer(counts.accepted, counts.rejected, errors if isinstance(errors, list) else [])


def joined(answers: Sequence[SyncAnswer]) -> SyncAnswer:
    """The answers of several requests as one."""
    errors = [error for answer in answers for error in answer.errors]
    return SyncAnswer(sum(a.accepted for a in answers), sum(a.rejected for a in answers), errors)


def culprits(answer: SyncAnswer, entries: Sequence[SyncEntry]) -> frozenset[int] | None:
    """The indexes of the rejected entries, or None when the answer does not say beyond doubt."""
    if answer.rejected == 0:
        return frozenset()
    if answer.rejected == len(entries):
        return frozenset(range(len(entries)))
    if len(answer.errors) != answer.rejected:
        return None
    places = _places(entries)
    found = [places.get(_name(item), ()) for item in answer.errors]
    indexes = frozenset(place[0] for place in found if len(place) == 1)
    # Fewer indexes than items: an item is opaque, names a stranger or several entries, or repeats another item.
    return indexes if len(indexes) == answer.rejected else None


_Name: TypeAlias = tuple[str, str | None]


def _places(entries: Sequence[SyncEntry]) -> Mapping[_Name | None, Sequence[int]]:
    """Where each address stands among the entries, with its reason and without."""
    places: defaultdict[_Name | None, list[int]] = defaultdict(list)
    for index, entry in enumerate(entries):
        if isinstance(entry, EmailSyncEntry):
            places[entry.email, None].append(index)
            places[entry.email, entry.reason].append(index)
        else:
            places[entry.number, None].append(index)
    return places


def _name(item: object) -> _Name | None:
    """What an error item calls its entry. For a number a `reason` can only be the cause, since SMS has no such word."""
    match item:
        case {"email": str(email), "reason": str(reason)}:
            return email, reason
        case {"email": str(address)} | {"number": str(address)}:
            return address, None
    return None
