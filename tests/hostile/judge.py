"""Owns what must be true of the reading of any body at all: by properties, and beside the standard decoder."""

import json
import re
from typing import Any, Final

from service.domain.addresses import Channel
from service.kahuna import webhook
from service.kahuna.webhook import Callback, Entry, NotAnArray, NotJson
from service.settings import Secret
from tests.hostile.bodies import Made

KEY: Final = Secret("hostile-api-key")
OTHER_KEY: Final = Secret("another-api-key")
FAULTS: Final = frozenset({"not-an-object", "missing-address", "unknown-reason", "bad-timestamp", "undecodable"})
BLANK: Final = b" \t\r\n"
SHALLOW: Final = 500
"""Brackets up to which the standard decoder is asked: it would run out of stack."""

_LONG_NUMBER: Final = re.compile(r"[0-9]{4000}")


class Wrong(AssertionError):
    """A property that does not hold."""


def judge(made: Made) -> str:
    """What came of reading it, in a word. Wrong if anything about that is not as it must be."""
    try:
        callback = webhook.read(made.body, made.channel)
    except (NotJson, NotAnArray) as error:
        _is_rightly_refused(made.body, error)
        return "not-json" if isinstance(error, NotJson) else "not-an-array"
    raws = webhook.raw_entries(made.body, range(len(callback.values)))
    _is_whole(callback, raws)
    _is_signed(callback)
    _stands_alone(callback, raws)
    _is_read_alike_by_both(made, callback)
    _is_what_the_standard_decoder_reads(made, callback)
    return "faulty" if any(entry.fault for entry in callback.entries) else "sound"


def _is_whole(callback: Callback, raws: dict[int, bytes]) -> None:
    count = len(callback.values)
    _hold(len(callback.entries) == len(raws) == count, "an entry is missing")
    for index, entry in enumerate(callback.entries):
        _hold(entry.index == index, "an entry is out of its place")
        if entry.fault is not None:
            _hold(entry.fault in FAULTS, f"an unknown fault: {entry.fault}")
            continue
        _hold(entry.address is not None and entry.reason is not None and entry.action is not None, "half an entry")
        _hold(entry.timestamp is None or type(entry.timestamp) is int, "a time that is no number")
    for entry in callback.entries:
        (entry.address or "").encode()  # what is neither stored nor sent must not be here


def _is_signed(callback: Callback) -> None:
    values = callback.signed_values
    signature = webhook.sign(values, KEY)
    _hold(webhook.verify(values, signature, [OTHER_KEY, KEY]), "its own signature is refused")
    _hold(webhook.verify(values[::-1], signature, [KEY]), "the order of the entries counts")
    _hold(not webhook.verify(values, signature, [OTHER_KEY]), "another key's signature is taken")
    _hold(not webhook.verify([*values, "x"], signature, [KEY]), "one address more is taken")


def _stands_alone(callback: Callback, raws: dict[int, bytes]) -> None:
    """No entry changes how another is read."""
    for entry in callback.entries:
        alone = webhook.read(b"[" + raws[entry.index] + b"]", callback.channel).entries
        _hold(len(alone) == 1 and _same(alone[0], entry), f"entry {entry.index} is another one when it is alone")


def _is_read_alike_by_both(made: Made, callback: Callback) -> None:
    """A value that the fast decoder refuses is put beside the entries, so that the slow one reads them; and those that
    it refuses are taken out, so that the fast one does. Nor does it matter whether the quickest one, which takes what
    is documented and nothing else, was asked before."""
    mild = webhook.read_mildly(made.body, made.channel)
    _hold(all(map(_same, mild.entries, callback.entries)), "the quickest decoder reads it in another way")
    _hold(mild.signed_values == callback.signed_values, "the quickest decoder signs other addresses")
    body = made.body.rstrip(BLANK)
    slow = body[:-1] + (b",NaN]" if callback.values else b"NaN]")
    read = webhook.read(slow, made.channel)
    _hold(all(map(_same, read.entries, callback.entries)), "the slow decoder reads it in another way")
    _hold(read.signed_values == callback.signed_values, "the slow decoder signs other addresses")
    _hold(len(read.entries) == len(callback.entries) + 1, "the slow decoder loses entries")
    bad = {entry.index for entry in callback.entries if entry.fault == "undecodable"}
    raws = webhook.raw_entries(made.body, range(len(callback.values)))
    fast = b"[" + b",".join(b"0" if index in bad else raw for index, raw in raws.items()) + b"]"
    entries = webhook.read(fast, made.channel).entries
    same = (_same(*pair) for index, pair in enumerate(zip(entries, callback.entries, strict=True)) if index not in bad)
    _hold(all(same), "a bad entry spoils its neighbours")


def _is_what_the_standard_decoder_reads(made: Made, callback: Callback) -> None:
    values = _standard(made.body)
    if values is None:
        return
    _hold(isinstance(values, list) and len(values) == len(callback.values), "it is no such array")
    key = "email" if made.channel == "email" else "number"
    addresses = [value[key] for value in values if isinstance(value, dict) and isinstance(value.get(key), str)]
    _hold(addresses == callback.signed_values, "other addresses are signed")
    for value, entry in zip(values, callback.entries, strict=True):
        if entry.fault is None:
            _hold(_says(value, made.channel) == (entry.address, entry.action), "an entry says something else")


def _says(value: Any, channel: Channel) -> tuple[str, str]:
    if channel == "email":
        return value["email"], "suppress"
    return value["number"], "clear" if value.get("opt-in") is True else "suppress"


def _is_rightly_refused(body: bytes, error: ValueError) -> None:
    values = _standard(body)
    if isinstance(error, NotJson):
        _hold(values is None, "an array is refused")
    else:
        _hold(not isinstance(values, list), "an array is taken for something else")


def _standard(body: bytes) -> Any:
    """What the standard decoder reads; None if it cannot, for whatever reason."""
    try:
        text = body.removeprefix(b"\xef\xbb\xbf").decode()
        if text.count("[") + text.count("{") > SHALLOW or _LONG_NUMBER.search(text):
            return None
        return json.loads(text)
    except ValueError:
        return None


def _same(one: Entry, other: Entry) -> bool:
    """Whether two entries say the same, wherever they stand."""
    words = ("address", "reason", "action", "timestamp", "fault")
    return all(getattr(one, word) == getattr(other, word) for word in words)


def _hold(true: bool, what: str) -> None:
    if not true:
        raise Wrong(what)
