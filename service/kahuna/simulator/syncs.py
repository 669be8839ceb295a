"""The Email Sync and SMS Sync APIs.

Owns the judgement of each entry and the answer's counts. Refuses to spoil an entry's neighbours for its fault.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from service.domain.addresses import Channel
from service.kahuna.simulator.contract import EMAIL_WORDS
from service.kahuna.simulator.door import Answer, Call
from service.kahuna.simulator.faults import REJECTED, Fault, Rejections
from service.kahuna.simulator.stops import ADDRESS_KEYS


def sync_email(call: Call) -> Answer:
    """What the company knows of e-mail addresses."""
    return _take(call, "email")


def sync_sms(call: Call) -> Answer:
    """What the company knows of numbers."""
    return _take(call, "sms")


def rejections(channel: Channel, entries: Sequence[Any], fault: Fault) -> dict[int, str]:
    """The indexes of rejected entries in order, each with its cause."""
    problem = _email_problem if channel == "email" else _sms_problem
    unwanted = Rejections(fault)
    found = {}
    for index, entry in enumerate(entries):
        cause = problem(entry)
        if cause is None and unwanted.take(entry[ADDRESS_KEYS[channel]]):
            cause = REJECTED
        if cause is not None:
            found[index] = cause
    return found


def _take(call: Call, channel: Channel) -> Answer:
    """Keep what is sound, and say what was done. `errors` is left out when there is none, as in the contract."""
    entries = call.read(list[Any])
    rejected = rejections(channel, entries, call.fault)
    now = call.world.seconds()
    for index, entry in enumerate(entries):
        if index not in rejected:
            call.world.stops.keep(channel, entry, now)
    counts = {"accepted": len(entries) - len(rejected), "rejected": len(rejected)}
    named = call.fault.name_rejected
    errors = [_error_item(channel, entries[i], cause) if named else cause for i, cause in rejected.items()]
    return Answer(counts | ({"errors": errors} if errors else {}), len(entries), counts)


def _email_problem(entry: Any) -> str | None:
    """Why an entry of the Email Sync API is rejected. The contract names the fields and words, and no rule for them."""
    if not isinstance(entry, dict):
        return "Not an object"
    if entry.get("reason") not in EMAIL_WORDS:
        return "Invalid reason"
    email = entry.get("email")
    local, _, domain = email.strip().partition("@") if isinstance(email, str) else ("", "", "")
    if not local or not domain or "@" in domain:
        return "Invalid email"
    return _timestamp_problem(entry)


def _sms_problem(entry: Any) -> str | None:
    """Why an entry of the SMS Sync API is rejected. The contract's samples are digits without a plus sign."""
    if not isinstance(entry, dict):
        return "Not an object"
    number = entry.get("number")
    if not isinstance(number, str) or not number.strip().isascii() or not number.strip().isdigit():
        return "Invalid number"
    return _timestamp_problem(entry)


def _timestamp_problem(entry: Mapping[str, Any]) -> str | None:
    return "Invalid timestamp" if type(entry.get("timestamp", 0)) is not int else None


def _error_item(channel: Channel, entry: Any, cause: str) -> Any:
    """An item of `errors`. The contract says only that there is a list; this is the kindest guess at what is in it."""
    if not isinstance(entry, dict):
        return cause
    named = ("email", "reason") if channel == "email" else ("number",)
    return {key: entry[key] for key in named if key in entry} | {"error": cause}
