"""Owns when a message was a leak: it went out although its address was stopped, and somebody knew that by then.

Fair to both sides: a stop counts from when it was known and not from when it happened, a consent from when it was given
even if nobody had heard of it, and `SAME_EVENT` seconds are left for messages on their way and clocks that disagree.
Soft bounces do not count: they are no wish of a person's, and how many stop a sender is each sender's own policy.
"""

from collections.abc import Iterable, Sequence
from typing import Final, Literal, NamedTuple

from service.domain.facts import SAME_EVENT, Fact
from service.domain.suppression import Policy

KnownBy = Literal["kahuna", "us"]

KNOWN_BY: Final[tuple[KnownBy, ...]] = ("kahuna", "us")


class Told(NamedTuple):
    """A fact, when it was recorded here, and when Kahuna accepted a correction that says it (None: it never did).
    Times are Unix seconds."""

    fact: Fact
    recorded_at: int
    accepted_at: int | None = None

    @property
    def known_to_kahuna(self) -> int | None:
        """Since when Kahuna knew: what it told us itself, from when it happened. Nothing is known before it happens,
        though a clock that is ahead may date it so."""
        if self.fact.source == "kahuna":
            return self.fact.occurred_at
        return None if self.accepted_at is None else max(self.accepted_at, self.fact.occurred_at)


class Leak(NamedTuple):
    """The stop that a message went out against: who knew of it by then, and since when (Unix seconds)."""

    known_by: KnownBy
    known_since: int
    told: Told


def leak(facts: Iterable[Told], sent_at: int, policy: Policy) -> Leak | None:
    """The stop that a message of this moment went out against; None if nobody knew of any.

    One that Kahuna knew is told before one that only we did, and of several the one known for the longest.
    """
    before = [one for one in facts if one.fact.occurred_at <= sent_at and one.fact.reason != "soft_bounce"]
    stops = _in_force(before, sent_at, policy)
    by_kahuna = [Leak("kahuna", at, one) for one in stops if (at := one.known_to_kahuna) is not None]
    by_us = [Leak("us", max(one.recorded_at, one.fact.occurred_at), one) for one in stops]
    for known in (by_kahuna, by_us):
        in_time = [one for one in known if one.known_since + SAME_EVENT < sent_at]
        if in_time:
            return min(in_time, key=lambda one: (one.known_since, one.told.fact))
    return None


def _in_force(facts: Sequence[Told], at: int, policy: Policy) -> list[Told]:
    """The stops that no consent of their reason had ended, and that had not lapsed."""
    cleared: dict[str, int] = {}
    for one in facts:
        if one.fact.action == "clear":
            cleared[one.fact.reason] = max(one.fact.occurred_at, cleared.get(one.fact.reason, 0))
    return [
        one
        for one in facts
        if one.fact.action == "suppress"
        and one.fact.occurred_at >= cleared.get(one.fact.reason, 0)
        and not _lapsed(one.fact, at, policy)
    ]


def _lapsed(fact: Fact, at: int, policy: Policy) -> bool:
    lifetime = policy.hard_bounce_lifetime
    return fact.reason == "hard_bounce" and lifetime is not None and at >= fact.occurred_at + lifetime
