"""A callback of Kahuna's: is it signed, and what does it say?

Pure functions of the body. Owns the signature and the reading of entries: the vendor's words turned into ours, each
entry with its own fault, so that a bad one never spoils its neighbours. Refuses to judge addresses and times, which
the domain does, and to trust: the signature covers the addresses alone, so reason, time and opt-in are only claims.
"""

import hmac
from binascii import b2a_base64
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Final, TypeAlias

import msgspec

from service.domain.addresses import Channel
from service.domain.facts import Action
from service.kahuna.salvage import (
    MAX_DEPTH,
    MAX_DIGITS,
    MAX_ENTRIES,
    SURROGATE,
    NotAnArray,
    NotJson,
    TooManyEntries,
    salvage,
    too_deep,
)
from service.kahuna.wire import EMAIL_WORDS
from service.settings import Secret

__all__ = [
    "Callback",
    "Entry",
    "NotAnArray",
    "NotJson",
    "TooManyEntries",
    "raw_entries",
    "read",
    "sign",
    "verify",
]

_BOM: Final = b"\xef\xbb\xbf"


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One entry in our words; beside a `fault`, only what could be read. `timestamp` is as claimed, in any unit."""

    index: int
    address: str | None = None
    reason: str | None = None
    action: Action | None = None
    timestamp: int | None = None
    fault: str | None = None

    def __repr__(self) -> str:
        return f"Entry({self.index}, {self.reason}, {self.action}, fault={self.fault})"


class _EmailEntry(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """What an entry holds by the documentation: most hold nothing else, and are read without a look at each value."""

    email: str
    reason: str
    timestamp: int | None = None


class _SmsEntry(msgspec.Struct, gc=False, forbid_unknown_fields=True, rename={"opt_in": "opt-in"}):
    """The same for a number."""

    number: str
    timestamp: int | None = None
    opt_in: bool = False


_EMAIL_ENTRIES: Final = msgspec.json.Decoder(list[_EmailEntry])
_SMS_ENTRIES: Final = msgspec.json.Decoder(list[_SmsEntry])


class Callback:
    """A body that was read once: first for its signature, then, if that is right, for its entries. `values` are as many
    as its entries, `signed_values` the addresses exactly as in the body, in its order, repetitions kept, those of bad
    entries among them. `words` are what an e-mail entry may say, with our reason for each."""

    __slots__ = ("_entries", "channel", "signed_values", "undecodable", "values", "words")

    def __init__(
        self,
        channel: Channel,
        values: Sequence[object],
        signed_values: list[str],
        undecodable: Collection[int],
        words: Mapping[str, str],
    ) -> None:
        self.channel = channel
        self.values = values
        self.signed_values = signed_values
        self.undecodable = undecodable
        self.words = words
        self._entries: list[Entry] | None = None

    @property
    def entries(self) -> list[Entry]:
        """Every entry in the body's order. Made only when asked, so that a forged body costs no more than its parse."""
        if self._entries is None:
            self._entries = self._read()
        return self._entries

    def _read(self) -> list[Entry]:
        first, words = self.values[0] if self.values else None, self.words
        if isinstance(first, _EmailEntry):
            return [_email_entry(index, value, words) for index, value in enumerate(self.values)]
        if isinstance(first, _SmsEntry):
            return [_sms_entry(index, value) for index, value in enumerate(self.values)]
        key, claim = _KEYS[self.channel], _CLAIMS[self.channel]
        return [
            _undecodable(index, value, key) if index in self.undecodable else _entry(index, value, key, claim, words)
            for index, value in enumerate(self.values)
        ]


def read(body: bytes, channel: Channel, words: Mapping[str, str] = EMAIL_WORDS) -> Callback:
    """The callback in this body. NotJson or NotAnArray if there is none, TooManyEntries if it has more than anybody
    sends."""
    body = body.removeprefix(_BOM)
    try:
        known = _documented(body, channel, words)
    except (ValueError, RecursionError):
        return read_mildly(body, channel, words)
    _bound(known.values)
    return known


def _documented(body: bytes, channel: Channel, words: Mapping[str, str]) -> Callback:
    if channel == "email":
        emails = _EMAIL_ENTRIES.decode(body)
        return Callback(channel, emails, [entry.email for entry in emails], (), words)
    numbers = _SMS_ENTRIES.decode(body)
    return Callback(channel, numbers, [entry.number for entry in numbers], (), words)


def _bound(values: Sequence[object]) -> None:
    if len(values) > MAX_ENTRIES:
        raise TooManyEntries


def read_mildly(body: bytes, channel: Channel, words: Mapping[str, str] = EMAIL_WORDS) -> Callback:
    """The same for a body that may hold anything: a bad entry never spoils its neighbours."""
    body = body.removeprefix(_BOM)
    try:
        values = msgspec.json.decode(body)
    except (ValueError, RecursionError):
        salvaged = salvage(_text(body))
        bad = frozenset(index for index, entry in enumerate(salvaged) if entry.fault)
        return _callback(channel, [entry.value for entry in salvaged], bad, words)
    if not isinstance(values, list):
        raise NotAnArray
    _bound(values)
    return _callback(channel, values, _too_deep(body, values), words)


def _callback(channel: Channel, values: Sequence[object], bad: Collection[int], words: Mapping[str, str]) -> Callback:
    key = _KEYS[channel]
    signed = [address for value in values if (address := _text_at(value, key)) is not None]
    return Callback(channel, values, signed, bad, words)


def raw_entries(body: bytes, indexes: Collection[int]) -> dict[int, bytes]:
    """The bytes of these entries exactly as they came, to be kept with what was wrong with them. `body` was read."""
    body = body.removeprefix(_BOM)
    try:
        raws: Iterable[bytes] = map(bytes, msgspec.json.decode(body, type=list[msgspec.Raw]))
    except (ValueError, RecursionError):
        raws = (entry.raw.encode() for entry in salvage(_text(body)))
    return {index: raw for index, raw in enumerate(raws) if index in indexes}


def sign(values: Iterable[str], key: Secret) -> str:
    """The signature that Kahuna puts on a callback with these addresses."""
    return _signature(b"".join(sorted(map(_utf8, values))), key).decode()


def verify(values: Iterable[str], signature: str, keys: Sequence[Secret]) -> bool:
    """Whether one of the keys made this signature. A malformed signature is only a wrong one.

    "Alphabetically" is all that Kahuna says about the order. Code points come first; where letter case could matter, an
    order that ignores it is accepted too.
    """
    encoded = [value.encode("utf-8", "surrogatepass") for value in values]
    # The order of UTF-8 bytes is the order of code points.
    joined = b"".join(sorted(encoded))
    if _signed(joined, signature, keys):
        return True
    if joined == joined.lower():
        return False
    folded: list[bytes] = sorted(encoded, key=lambda value: value.lower())
    return _signed(b"".join(folded), signature, keys)


def _signed(message: bytes, signature: str, keys: Sequence[Secret]) -> bool:
    claimed = signature.strip().encode(errors="replace")
    signed = False
    for key in keys:  # all of them, whichever it is
        signed |= hmac.compare_digest(_signature(message, key), claimed)
    return signed


def _signature(message: bytes, key: Secret) -> bytes:
    return b2a_base64(hmac.digest(key.reveal().encode(), message, "sha1"), newline=False)


def _utf8(value: str) -> bytes:
    return value.encode("utf-8", "surrogatepass")


def _text(body: bytes) -> str:
    try:
        return body.decode()
    except UnicodeDecodeError:
        # Its message would show the body.
        raise NotJson from None


def _too_deep(body: bytes, values: list[object]) -> Collection[int]:
    """The entries that `salvage` would call nested too deep, so that one body has one reading whoever decodes it."""
    brackets = body.count(b"[") + body.count(b"{") - 1
    if brackets <= MAX_DEPTH:
        return ()
    # Each container entry has a bracket of its own. Ordinary entries are flat and leave none over, which ends it here.
    if brackets - sum(isinstance(value, (dict, list)) for value in values) < MAX_DEPTH:
        return ()
    return too_deep(body)


def _text_at(value: object, key: str) -> str | None:
    text = value.get(key) if isinstance(value, dict) else None
    return text if isinstance(text, str) else None


_Claim: TypeAlias = Callable[[Mapping[str, Any], Mapping[str, str]], tuple[str | None, Action]]


def _email_claim(value: Mapping[str, Any], words: Mapping[str, str]) -> tuple[str | None, Action]:
    word = value.get("reason")
    return words.get(word) if isinstance(word, str) else None, "suppress"


def _sms_claim(value: Mapping[str, Any], _words: Mapping[str, str]) -> tuple[str | None, Action]:
    # Only the documented form permits anything. Whatever else is there, the person is left alone.
    return "do_not_call", "clear" if value.get("opt-in") is True else "suppress"


_KEYS: Final[Mapping[Channel, str]] = MappingProxyType({"email": "email", "sms": "number"})
_CLAIMS: Final[Mapping[Channel, _Claim]] = MappingProxyType({"email": _email_claim, "sms": _sms_claim})


def _entry(index: int, value: object, key: str, claim: _Claim, words: Mapping[str, str]) -> Entry:
    if not isinstance(value, dict):
        return Entry(index, fault="not-an-object")
    address = value.get(key)
    if not isinstance(address, str):
        return Entry(index, fault="missing-address")
    reason, action = claim(value, words)
    if reason is None:
        return Entry(index, address, fault="unknown-reason")
    try:
        timestamp = _timestamp(value.get("timestamp"))
    except (ValueError, OverflowError):
        return Entry(index, address, reason, action, fault="bad-timestamp")
    return Entry(index, address, reason, action, timestamp)


def _email_entry(index: int, value: Any, words: Mapping[str, str]) -> Entry:
    reason = words.get(value.reason)
    if reason is None:
        return Entry(index, value.email, fault="unknown-reason")
    return Entry(index, value.email, reason, "suppress", value.timestamp)


def _sms_entry(index: int, value: Any) -> Entry:
    return Entry(index, value.number, "do_not_call", "clear" if value.opt_in else "suppress", value.timestamp)


def _undecodable(index: int, value: object, key: str) -> Entry:
    # An address that UTF-8 cannot hold could be neither stored nor sent on; its raw bytes can.
    address = _text_at(value, key)
    shown = None if address is None or SURROGATE.search(address) else address
    return Entry(index, shown, fault="undecodable")


def _timestamp(value: object) -> int | None:
    """A number, a text of digits, or the UTC text of the vendor's log records, truncated. A missing one is no fault;
    ValueError or OverflowError otherwise."""
    # `type` and not `isinstance`: true is an int to Python.
    if type(value) is int or value is None:
        return value
    if isinstance(value, float):
        return int(value)
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= MAX_DIGITS:
        return int(value)
    if isinstance(value, str):
        moment = datetime.fromisoformat(value.strip())
        return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
    raise ValueError
