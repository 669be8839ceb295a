"""What the records of Kahuna's logs say of addresses, in the words that its callbacks have for the same.

Owns which records are stops, which are messages that went out, and whose they are. Refuses to take an opt-in from a
log: no page of Kahuna's says how one would look there, and what permits needs more than a guess.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

import msgspec

from service.domain.addresses import Channel
from service.kahuna.contract import Contract
from service.kahuna.retrieval import CampaignRecord, EmailRecord, LogRecord, MergeRecord

CHANNEL_OF: Final[Mapping[str, Channel]] = {"email": "email", "mobile_number": "sms"}
"""The types of credentials that are addresses [CODE]."""


class Sent(NamedTuple):
    """A message that Kahuna sent by e-mail: the address as it came, when (Unix seconds), and the whole record."""

    address: str
    at: int
    campaign: str | None
    campaign_id: int | None
    record: dict[str, Any]


class Merged(NamedTuple):
    """An address of two users that became one: whose it was (`common`, `older`, `newer`), and the whole record."""

    channel: Channel
    address: str
    side: str
    at: int | None
    record: dict[str, Any]


def stops_of(records: Iterable[CampaignRecord], words: Mapping[str, str]) -> list[dict[str, Any]]:
    """The records that say a stop, as entries of a callback, each with its record whole: so the archive keeps them, and
    whatever reads a callback reads them again. That the logs use the words of the callbacks is [ASSUME]."""
    return [_entry(record) for record in records if record.action in words]


def _entry(record: CampaignRecord) -> dict[str, Any]:
    address, at = address_of(record), _seconds(record)
    said = {"email": address, "reason": record.action, "timestamp": at, "record": plain(record)}
    return {name: value for name, value in said.items() if value is not None}


def sent_in(records: Iterable[LogRecord], names: Contract) -> Iterator[Sent]:
    """The messages that went out by e-mail, of those records that tell to whom and when."""
    for record in records:
        if not isinstance(record, EmailRecord) or record.action != names.email_log_sent:
            continue
        address, at = address_of(record), _seconds(record)
        if address is not None and at is not None:
            campaign_id = record.campaign_id if abs(record.campaign_id or 0) < 1 << 63 else None
            yield Sent(address, at, record.campaign and clean(record.campaign), campaign_id, plain(record))


def merged_in(records: Iterable[MergeRecord]) -> Iterator[Merged]:
    """The addresses that a merge of users touched."""
    for record in records:
        sides = {
            "common": record.common_credentials,
            "older": record.older_user_credentials,
            "newer": record.newer_user_credentials,
        }
        for side, labels in sides.items():
            for kind, _, value in (label.partition(":") for label in labels):
                if kind in CHANNEL_OF:
                    yield Merged(CHANNEL_OF[kind], value, side, _seconds(record), plain(record))


def address_of(record: CampaignRecord) -> str | None:
    """Whose e-mail address a record is about: its own field, or else the only one among the user's credentials."""
    if isinstance(record, EmailRecord) and record.email:
        return str(clean(record.email))
    labels = (label.partition(":") for label in record.credentials)
    found = [value for kind, _, value in labels if kind == "email" and value]
    return str(clean(found[0])) if len(found) == 1 else None


def plain(record: LogRecord) -> dict[str, Any]:
    """All that a record holds, under the names that we know and, for the rest, the vendor's: fit for any store."""
    fields = {name: getattr(record, name) for name in record.__struct_fields__ if name != "extra"}
    held = {name: value for name, value in fields.items() if value is not None and value != ()}
    return {clean(name): clean(value) for name, value in (record.extra | held).items()}


def digest_of(record: Mapping[str, Any]) -> bytes:
    """What a record is known by, whichever page it comes on."""
    return hashlib.sha256(msgspec.json.encode(record, order="deterministic")).digest()


def clean(value: Any) -> Any:
    """The same without what neither JSON nor PostgreSQL can keep: a NUL, half of a character, a number without end."""
    match value:
        case str():
            return value.replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode()
        case dict():
            return {clean(name): clean(one) for name, one in value.items()}
        case list() | tuple():
            return [clean(one) for one in value]
        case int() if abs(value) >= 1 << 63:
            return str(value)
        case _:
            return value


def _seconds(record: LogRecord) -> int | None:
    return None if record.time is None else int(record.time.timestamp())
