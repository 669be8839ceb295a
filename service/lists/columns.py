"""Owns what the columns of a list mean, and its words: ours and those of the providers that people come from.

One table of names, one of words. Headers are those of SendGrid's, Mailgun's and Postmark's exports and interfaces, of
Amazon SES, and of our own export. Refuses to judge addresses and times, which the domain does.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final, NamedTuple

import msgspec

from service.domain.addresses import LONGEST_RAW, MAX_DIGITS, Channel, ImpossibleAddress, normalise
from service.domain.facts import reasons_of
from service.lists.unpacking import UNDECODABLE

# In this order: beside a column of e-mail addresses, "address" is where somebody lives.
_ADDRESSES: Final[Mapping[Channel, tuple[str, ...]]] = {
    "email": ("email", "emailaddress", "mail", "address", "recipient"),
    "sms": ("phonenumber", "phone", "mobilenumber", "mobile", "msisdn", "number", "address", "recipient"),
}
_REASONS: Final = ("reason", "suppressionreason")
_TIMES: Final = ("occurredat", "created", "createdat", "lastupdatetime", "timestamp", "time", "date")

_OURS: Final = frozenset({"namespace", "channel", "address", "reason", "active", "occurredat"})
"""The columns that only our own export has together; in other people's files, some of them mean something else."""

_CONDITIONS: Final = ("namespace", "channel", "active")
_THEIRS: Final = ("kahuna_webhook", "kahuna_logs")
"""Origins, in our own export, of what Kahuna said."""

_AS_A_NUMBER: Final = re.compile(r"\+?\d{7,15}\.0")

_ACTIVE: Final[Mapping[str, bool]] = {"true": True, "false": False}

# Of two providers, the columns alone tell why an address is listed.
_TELLING: Final[Sequence[tuple[frozenset[str], str]]] = (
    (frozenset({"address", "code", "error"}), "hard_bounce"),  # Mailgun's bounces
    (frozenset({"address", "tags"}), "unsubscribe"),  # Mailgun's unsubscribes
    (frozenset({"ip", "email", "created"}), "complaint"),  # SendGrid's spam reports
)

_WORDS: Final[Mapping[Channel, Mapping[str, str]]] = {
    "email": {
        "unsubscribed": "unsubscribe",
        "unsub": "unsubscribe",
        "optout": "unsubscribe",
        "optedout": "unsubscribe",
        "bounce": "hard_bounce",  # Amazon SES, which lists hard ones only
        "bounced": "hard_bounce",
        "spam": "complaint",
        "spamreport": "complaint",
        "spamcomplaint": "complaint",  # Postmark
        "abuse": "complaint",
        "invalidemail": "invalid",
        "block": "blocked",
        "reject": "rejected",
        "manualsuppression": "manual",  # Postmark
    },
    "sms": {
        "dnc": "do_not_call",
        "stop": "do_not_call",
        "unsubscribe": "do_not_call",
        "unsubscribed": "do_not_call",
        "optout": "do_not_call",
        "optedout": "do_not_call",
        "invalidnumber": "invalid",
        "manualsuppression": "manual",
    },
}

_NOT_LETTERS: Final = re.compile(r"[^a-z0-9]")
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_NEVER: Final = re.compile(r"\b0001\b")
"""The year of a time that was never set, as Mailgun writes it."""

_DAY: Final = re.compile(r"(19|20)[0-9]{6}")
_BARE: Final = re.compile(r"[+-]?[0-9._]+")
_UNIX: Final = re.compile(r"(-?[0-9]{1,13})(?:\.[0-9]+)?")
_EARLIEST: Final = 10**9
"""September 2001. A number below it is no Unix time of any list: a spreadsheet counts days, and 2026 is a year."""

_MONTH: Final = r"(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)"
_WEEKDAY: Final = r"(?:(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun),? +)?"
_CLOCK: Final = r"[0-9]{1,2}:[0-9]{2}(?::[0-9]{2})?"
_ZONE: Final = r"(?:[+-][0-9]{4}|UTC?|GMT|Z|[ECMP][SD]T)"

# The parser of e-mail headers passes over whatever it does not know, such as PM or +02:00: it sees no other forms.
_RFC_2822: Final = re.compile(
    rf"{_WEEKDAY}[0-9]{{1,2}} +{_MONTH} +(?:[0-9]{{2}}|[0-9]{{4}}) +{_CLOCK}(?: +{_ZONE}(?: +\([A-Z]{{1,5}}\))?)?",
    re.IGNORECASE,
)
_SPOKEN: Final = re.compile(
    rf"{_WEEKDAY}({_MONTH})[a-z]* +([0-9]{{1,2}}),? +([0-9]{{4}}),? +({_CLOCK})(?:\s*([AP]M))?", re.IGNORECASE
)

MOST_DIGITS: Final = 13
LONGEST_WORD: Final = 100


class Line(msgspec.Struct, omit_defaults=True, gc=False):
    """One line that says something: where it stood, and what it says as far as it can be told.

    `at` is in Unix seconds or milliseconds, or the text that is no time; a `fault` is there if the line was no record.
    `word` is the line's own for its reason, where that is not known and another was said beside the list. `origin` is
    there if the line is one of our own export and repeats what Kahuna said.
    """

    line: int
    address: str | None = None
    reason: str | None = None
    at: int | str | None = None
    fault: str | None = None
    word: str | None = None
    origin: str | None = None


class Asked(NamedTuple):
    """What was said of a list beside itself: whose it becomes, the reason of lines that have none, and their time (Unix
    seconds)."""

    namespace: str
    channel: Channel
    reason: str | None = None
    as_of: int | None = None


def folded(text: str) -> str:
    """A name or a word without what people write differently.

    >>> folded("Email Address"), folded("SpamComplaint"), folded("hard_bounce")
    ('emailaddress', 'spamcomplaint', 'hardbounce')
    """
    return _NOT_LETTERS.sub("", text.lower())


def words_of(channel: Channel) -> dict[str, str]:
    """Every word, folded, that says why an address of this channel is listed, with our reason for it."""
    return {folded(reason): reason for reason in reasons_of(channel)} | dict(_WORDS[channel])


def names_an_address(channel: Channel, name: str) -> bool:
    """Whether a column of this name holds addresses."""
    return folded(name) in _ADDRESSES[channel]


def time_in(value: Any) -> int | str | None:
    """When it happened, in Unix seconds or milliseconds; None if it is not said, and a text that is no time as it is.

    >>> time_in("1700000000"), time_in("2023-11-14T22:13:20Z"), time_in("Tue, 14 Nov 2023 22:13:20 UTC")
    (1700000000, 1700000000, 1700000000)
    >>> time_in("soon")
    'soon'
    """
    if value is None:
        return None
    if type(value) is int or isinstance(value, float):
        return int(value) if _is_unix(value) else "no Unix time"
    if not isinstance(value, str):
        return "neither a number nor a text"
    text = value.strip()
    if not text or _NEVER.search(text):
        return None
    # Eight digits are a day: as seconds they would be one of 1970.
    is_number = _BARE.fullmatch(text) and not _DAY.fullmatch(text)
    moment = _unix(text) if is_number else _moment(text)
    return _shown(text) if moment is None else moment


def _unix(text: str) -> int | None:
    found = _UNIX.fullmatch(text)
    return int(found[1]) if found and _is_unix(float(text)) else None


def _is_unix(number: float) -> bool:
    """Zero and less are what programs write for a time they do not know: it cannot stand, but the stop can."""
    return -(10**MOST_DIGITS) < number <= 0 or _EARLIEST <= number < 10**MOST_DIGITS


def _moment(text: str) -> int | None:
    for read in (_iso, _rfc, _spoken):
        try:
            found = read(text)
            return int((found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp())
        except (ValueError, OverflowError, TypeError, IndexError):
            continue
    return None


def _iso(text: str) -> datetime:
    return datetime.fromisoformat(text.removesuffix(" UTC"))


def _rfc(text: str) -> datetime:
    if not _RFC_2822.fullmatch(text):
        raise ValueError
    return parsedate_to_datetime(text)


def _spoken(text: str) -> datetime:
    """As people and spreadsheets write it: Jan 5, 2026 3:04 PM."""
    found = _SPOKEN.fullmatch(text)
    if not found:
        raise ValueError
    month, day, year, clock, half = found.groups()
    seconds = "" if clock.count(":") == 2 else ":00"
    hours = "%I:%M:%S %p" if half else "%H:%M:%S"
    words = f"{month} {day} {year} {clock}{seconds} {half or ''}".strip()
    return datetime.strptime(words, f"%b %d %Y {hours}").replace(tzinfo=UTC)


def _shown(text: str) -> str:
    return _SURROGATE.sub(UNDECODABLE, text[:LONGEST_WORD])


class Columns:
    """Which cell of a record is what: `places` are those of a row, or keys of an object. Says what each record says."""

    def __init__(self, names: Sequence[str], asked: Asked, places: Sequence[Any]) -> None:
        # Of two columns of one name, the first counts.
        given = dict(reversed([(folded(name), place) for name, place in zip(names, places, strict=True)]))
        self.width = len(names)
        is_ours = given.keys() >= _OURS
        self.address = given["address"] if is_ours else _first(given, _ADDRESSES[asked.channel])
        self.reason = _first(given, _REASONS)
        self.at = _first(given, _TIMES)
        self._asked = asked
        self._ours = [given[name] for name in _CONDITIONS] if is_ours else None
        self._received = given.get("addressreceived") if self._ours else None
        self._origin = given.get("origin") if "suppressionreason" in given else None
        self._said_by = given.get("origin") if self._ours else None
        telling = next((reason for header, reason in _TELLING if header <= given.keys()), None)
        self._otherwise = asked.reason or (telling if asked.channel == "email" else None)
        self._words = words_of(asked.channel)

    @property
    def tells_reasons(self) -> bool:
        """Whether there is anything to tell why an address is listed."""
        return self.reason is not None or self._otherwise is not None

    def swallows(self, row: list[str], alone: list[list[str]]) -> bool:
        """Whether a row over several lines took in rows of their own: where each line `alone` would have its address,
        stands another than the row's, or the same in more than one line that has as many cells as the first."""
        own, again = self._address_of(row), 0
        for cells in alone:
            found = self._address_of(cells)
            again += found is not None and found == own and len(cells) >= self.width
            if again > 1 or (found is not None and found != own):
                return True
        return False

    def _address_of(self, row: list[str]) -> str | None:
        if self.address is None or self.address >= len(row):
            return None
        try:
            return normalise(self._asked.channel, row[self.address])
        except ImpossibleAddress:
            return None

    def read_row(self, number: int, row: list[str]) -> Line | None:
        """What a row of CSV says; None if it states no stop."""
        if len(row) < self.width:
            row += [""] * (self.width - len(row))
        elif len(row) > self.width and any(row[self.width :]):
            return Line(number, fault="too-many-cells")
        return self._read(number, row)

    def read_object(self, number: int, found: dict[str, Any]) -> Line | None:
        """What a JSON object says; None if it states no stop."""
        return Line(number, fault="missing-address") if self.address is None else self._read(number, found)

    def _read(self, number: int, cells: Any) -> Line | None:
        address = _address_in(cells[self.address])
        if address is None:
            return Line(number, fault="missing-address")
        if len(address) > LONGEST_RAW:
            return Line(number, fault="address-too-long")
        if self._asked.channel == "sms":
            # As a spreadsheet writes a number that it takes for one; the point would else be a separator.
            address = address[:-2] if _AS_A_NUMBER.fullmatch(address) else address
        if not address.isascii() and (UNDECODABLE in address or _SURROGATE.search(address)):
            return Line(number, fault="undecodable")
        if self._ours is not None:
            namespace, channel, active = (cells[place] for place in self._ours)
            if namespace != self._asked.namespace:
                return Line(number, fault="other-namespace")
            if channel != self._asked.channel:
                return None
            is_active = _ACTIVE.get(str(active).strip().lower())  # a spreadsheet writes TRUE
            if is_active is None:
                return Line(number, fault="bad-active")
            if not is_active:
                return None
            address = self._as_received(address, cells)
        at = None if self.at is None else time_in(cells[self.at])
        reason, word = self._reason(cells)
        origin = cells[self._said_by] if self._said_by is not None else None
        return Line(
            number,
            address,
            reason,
            self._asked.as_of if at is None else at,
            word=word,
            origin=origin if origin in _THEIRS else None,
        )

    def _reason(self, cells: Any) -> tuple[str | None, str | None]:
        """Why the address is listed; and the word for it that is not known, if that is why another reason stands."""
        word = None if self.reason is None else cells[self.reason]
        if not isinstance(word, str) or not (shown := _shown(word.strip())):
            return self._otherwise, None
        found = self._words.get(word) or self._words.get(folded(word))
        if self._origin is not None and found == "manual" and cells[self._origin] == "Recipient":
            return self._words["unsubscribe"], None  # Postmark's word for whoever unsubscribed by themselves
        if found is not None:
            return found, None
        return (shown, None) if self._otherwise is None else (self._otherwise, shown)

    def _as_received(self, address: str, cells: Any) -> str:
        """The form in which the address came, if it is one of this address: the vendor gets it back like that."""
        received = cells[self._received] if self._received is not None else None
        if not isinstance(received, str) or not received or len(received) > LONGEST_RAW:
            return address
        try:
            return received if normalise(self._asked.channel, received) == address else address
        except ImpossibleAddress:
            return address


def _first(given: Mapping[str, Any], names: Iterable[str]) -> Any:
    return next((given[name] for name in names if name in given), None)


def _address_in(value: Any) -> str | None:
    """A number may come as one; an empty cell is no address."""
    if isinstance(value, str):
        return value if value and not value.isspace() else None
    return str(value) if type(value) is int and abs(value) < 10**MAX_DIGITS else None
