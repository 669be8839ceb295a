"""The four log APIs, which are one endpoint.

Owns dates as requests write them, pages, and how a record is printed. Refuses to filter by anything but category and
time, which is all the contract has.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final

import msgspec
from starlette.exceptions import HTTPException

from service.kahuna.simulator.contract import LOG_WORDS, MAX_RECORDS
from service.kahuna.simulator.cursors import cursor, place_of
from service.kahuna.simulator.door import Answer, Call
from service.kahuna.simulator.records import MICROSECONDS, Entry, MergeRecord, Record

# "Most common formats work." The documented one has a 12-hour hour and nothing that tells the half of the day apart,
# so without AM or PM it is read as of 24 hours; assumed.
_FORMATS: Final = tuple(
    f"{day}{time}"
    for day in ("%m/%d/%Y", "%m/%d/%y", "%Y-%m-%d")
    for time in (" %H:%M", " %I:%M %p", " %H:%M:%S", " %I:%M:%S %p", " %H:%M:%S %p", " %H:%M:%S.%f", "")
)
_EPOCH: Final = datetime.fromtimestamp(0, UTC)
_DAY: Final = 24 * 3600 * MICROSECONDS


class _Query(msgspec.Struct):
    timestamp: str | None = None
    cursor: str | None = None
    number_of_records: Annotated[int, msgspec.Meta(ge=1)] = MAX_RECORDS
    categories_to_return: tuple[str, ...] = ("push", "in_app", "email", "user_merge")


class _Place(msgspec.Struct, frozen=True, tag="logs", array_like=True):
    """Before the record at this position, not before and not past these times."""

    position: int
    since: int
    until: int | None


def read_logs(call: Call) -> Answer:
    """One page. The cursor has precedence over the timestamp; clients assume that it has."""
    query = call.read(_Query)
    categories = _categories(query.categories_to_return)
    call.world.now()
    place = _place(call, query)
    log, wanted = call.world.log, {LOG_WORDS[word] for word in categories}
    position = max(place.position, log.position_of(place.since))
    page = log.page(position, place.until, wanted, min(query.number_of_records, MAX_RECORDS))
    # Once a day is read to its end, the cursor leads on to whatever is newer: that is how clients poll.
    until = place.until if page.more else None
    document: dict[str, Any] = {word: [] for word in categories}
    for entry in page.entries:
        document[next(word for word in categories if LOG_WORDS[word] == entry.category)].append(printed(entry))
    document |= {"more_records": page.more, "cursor": cursor(call, _Place(page.position, place.since, until))}
    return Answer(document, len(page.entries))


def moment(text: str) -> int:
    """The time that a request names, in microseconds, or a 400."""
    for form in _FORMATS:
        try:
            found = datetime.strptime(text.strip(), form).replace(tzinfo=UTC)
        except ValueError:
            continue
        return (found - _EPOCH) // timedelta(microseconds=1)
    try:
        # Must already be UTC: an offset is not converted.
        found = datetime.fromisoformat(text.strip()).replace(tzinfo=UTC)
    except ValueError:
        raise HTTPException(400, "Unknown format of a date") from None
    return (found - _EPOCH) // timedelta(microseconds=1)


def end_of_day(at: int) -> int:
    """The last moment of the same date."""
    return at // _DAY * _DAY + _DAY - 1


def printed_time(at: int) -> str:
    """A time as the logs print it."""
    return (_EPOCH + timedelta(microseconds=at)).strftime("%Y-%m-%d %H:%M:%S.%f")


def printed(entry: Entry) -> dict[str, Any]:
    """A record as its log API prints it."""
    if isinstance(entry, MergeRecord):
        return {
            "timestamp": printed_time(entry.at),
            "user_id": entry.user_id,
            "common_credentials": entry.common,
            "older_user_credentials": entry.older,
            "newer_user_credentials": entry.newer,
        }
    record: dict[str, Any] = {
        "user_id": entry.user_id,
        "timestamp": printed_time(entry.at),
        "action": entry.action,
        "credentials": entry.labels,
    }
    return record | _of_channel(entry) | ({} if entry.action == "more engaged" else _of_campaign(entry))


def _of_channel(record: Record) -> dict[str, Any]:
    """Push as in the recorded sample; the others after the assumptions."""
    if record.category in ("email", "sms"):
        return {"email": record.address}
    device = record.device
    if device is None:
        return {}
    told = {"dev_id": device.id, "os": device.os_name}
    return told | ({"push_token": device.push_token} if record.category == "push" else {})


def _of_campaign(record: Record) -> dict[str, Any]:
    if record.campaign is None:
        return {}
    told = {
        "campaign": record.campaign.name,
        "campaign_id": record.campaign.campaign_id,
        "message": record.message,
    }
    return told | ({} if record.category == "email" else {"action_category": record.category, "action_detail": ""})


def _categories(words: Sequence[str]) -> list[str]:
    """The words as requested, one for each category. None at all means all, which is assumed."""
    unknown = [word for word in words if word not in LOG_WORDS]
    if unknown or not words:
        raise HTTPException(400, f"Unknown category {unknown[0]}" if unknown else "No category")
    return list({LOG_WORDS[word]: word for word in words}.values())


def _place(call: Call, query: _Query) -> _Place:
    if query.cursor is not None:
        return place_of(call, query.cursor, _Place)
    if query.timestamp is None:
        raise HTTPException(400, "timestamp or cursor is required")
    at = moment(query.timestamp)
    return _Place(0, at, end_of_day(at))
