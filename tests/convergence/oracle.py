"""Owns the rules of the design, section 3, said once more: what the two sides must hold about an address, given all
that was said of it. Written from the design alone; shares nothing with `service/domain`.
"""

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

DAY: Final = 86_400
EVENT: Final = 300
"""Seconds within which a record of the logs and a callback are one event."""

OF_WORD: Final = {
    "unsub": "unsubscribe",
    "hard_bounce": "hard_bounce",
    "soft_bounce": "soft_bounce",
    "spam": "complaint",
    "invalid": "invalid",
    "blocked": "blocked",
    "reject": "rejected",
}
"""What Kahuna's words mean."""

WORD_OF: Final = {reason: word for word, reason in OF_WORD.items()} | {"manual": "unsub"}
ALL: Final = {
    "email": (*OF_WORD.values(), "manual"),
    "sms": ("do_not_call", "invalid", "manual"),
}


class Word(NamedTuple):
    """One thing said of an address: a stop for a reason or a clear of it, when (Unix seconds), and whether Kahuna said
    it. `heard`: a callback told us of it."""

    reason: str
    stops: bool
    at: int
    kahuna: bool = False
    heard: bool = True


class Agreed(NamedTuple):
    """What must hold: whether both sides suppress (either will do if `doubtful`), the words of Kahuna's slots that must
    be stopped (None for a number), and those in which it holds a stop that nobody can tell it to drop."""

    suppressed: bool
    doubtful: bool
    stopped: frozenset[str | None]
    unsayable: frozenset[str | None]


def agreed(channel: str, words: Iterable[Word], held: Mapping[str | None, str], now: int) -> Agreed:
    """What these words add up to, where Kahuna holds `held`: a slot's word with `stop` or `opt-in`."""
    said = list(words)
    least = _active(channel, [one for one in said if not _maybe_evidence(one, said)], now)
    most = _active(channel, said, now)
    stopped = frozenset(WORD_OF[reason] if channel == "email" else None for reason in least)
    cleared = _cleared(channel, said)
    unsayable: set[str | None] = set()
    if channel == "email" and not most:
        unsayable = {word for word, action in held.items() if action == "stop" and word in cleared}
    return Agreed(bool(least), bool(least) != bool(most), stopped, frozenset(unsayable))


def _cleared(channel: str, words: list[Word]) -> set[str | None]:
    """The words of Kahuna's slots about which our last word is a clear."""
    last = {one.reason: one for one in sorted(words, key=lambda one: (one.at, one.stops))}
    return {WORD_OF[one.reason] if channel == "email" else None for one in last.values() if not one.stops}


def _active(channel: str, words: Iterable[Word], now: int) -> set[str]:
    """The reasons in force."""
    by_reason: dict[str, list[Word]] = {reason: [] for reason in ALL[channel]}
    for one in words:
        by_reason[one.reason].append(one)
    return {
        reason
        for reason, mine in by_reason.items()
        if (_bounced_enough(mine, now) if reason == "soft_bounce" else _stops(mine))
    }


def _stops(words: list[Word]) -> bool:
    """The latest wins; at the same second the protective one."""
    last = max(words, key=lambda one: (one.at, one.stops), default=None)
    return last is not None and last.stops


def _bounced_enough(words: list[Word], now: int) -> bool:
    """Three distinct times within 14 days since the latest clear, of which the last was less than 30 days ago."""
    cleared = max((one.at for one in words if not one.stops), default=0)
    times = sorted({one.at for one in words if one.stops and one.at >= cleared})
    return any(
        third - first <= 14 * DAY and now < third + 30 * DAY for first, third in zip(times, times[2:], strict=False)
    )


def _maybe_evidence(one: Word, words: list[Word]) -> bool:
    """A soft bounce that only the logs tell of may count as the same event as a callback's near it."""
    if not (one.reason == "soft_bounce" and one.kahuna and not one.heard):
        return False
    return any(
        other.reason == one.reason and other.kahuna and other.heard and abs(other.at - one.at) <= EVENT
        for other in words
        if other.stops
    )
