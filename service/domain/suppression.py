"""Owns the merge and the verdict: what all facts about an address add up to, and whether it may be messaged at a time.

A cause is the merge of all facts of one reason. Merging is associative, commutative and idempotent: any order, any
repetition and any grouping give the same cause. The verdict is derived when asked, so nothing ever has to expire.
"""

from collections.abc import Iterable, Mapping
from typing import Final, Literal, NamedTuple

from service.domain.facts import Action, Fact

Purpose = Literal["marketing", "transactional"]

DAY: Final = 86_400


class Policy(NamedTuple):
    """The numbers of the verdict. Times are in seconds; a lifetime of None never ends."""

    soft_bounce_count: int = 3
    soft_bounce_window: int = 14 * DAY
    soft_bounce_lifetime: int = 30 * DAY
    hard_bounce_lifetime: int | None = None

    @property
    def soft_bounces_kept(self) -> int:
        """How many bounce times decide every verdict: the deciding group, and what could still form one around it."""
        windows = -(-self.soft_bounce_lifetime // self.soft_bounce_window)
        return self.soft_bounce_count + (self.soft_bounce_count - 1) * windows


class Cause(NamedTuple):
    """All facts of one reason, merged. Times are Unix seconds; `bounces` (soft bounces only) ascends."""

    reason: str
    stop_at: int | None = None
    clear_at: int | None = None
    bounces: tuple[int, ...] = ()

    @property
    def decided(self) -> tuple[Action, int] | None:
        """The action that won, and its time. At the same second the protective one wins."""
        if self.stop_at is not None and (self.clear_at is None or self.stop_at >= self.clear_at):
            return "suppress", self.stop_at
        return None if self.clear_at is None else ("clear", self.clear_at)


class Standing(NamedTuple):
    """A cause as it stands at a moment. `until` is the second at which it lapses by itself, None if it does not."""

    cause: Cause
    active: bool
    until: int | None


class Verdict(NamedTuple):
    """May we message this address? `since` is the earliest deciding time of the causes in force that count."""

    suppressed: bool
    since: int | None
    until: int | None
    standings: tuple[Standing, ...]


NOTHING_KNOWN: Final = Verdict(suppressed=False, since=None, until=None, standings=())
"""The verdict about most addresses that are asked about."""


def cause_of(fact: Fact) -> Cause:
    """The cause that one fact makes by itself."""
    if fact.action == "clear":
        return Cause(fact.reason, clear_at=fact.occurred_at)
    bounces = (fact.occurred_at,) if fact.reason == "soft_bounce" else ()
    return Cause(fact.reason, stop_at=fact.occurred_at, bounces=bounces)


def merge(a: Cause, b: Cause, policy: Policy) -> Cause:
    """Both causes of one reason in one: the latest of each kind, and the newest bounces since the latest clear."""
    stop_at, clear_at = latest(a.stop_at, b.stop_at), latest(a.clear_at, b.clear_at)
    bounces = sorted({t for t in a.bounces + b.bounces if clear_at is None or t >= clear_at})
    return Cause(a.reason, stop_at, clear_at, tuple(bounces[-policy.soft_bounces_kept :]))


def fold(facts: Iterable[Fact], policy: Policy) -> dict[str, Cause]:
    """The causes, by reason, that these facts of one address add up to."""
    causes: dict[str, Cause] = {}
    for fact in facts:
        cause = cause_of(fact)
        causes[fact.reason] = merge(causes.get(fact.reason, cause), cause, policy)
    return causes


def retract(facts: Iterable[Fact], undone: frozenset[Fact], policy: Policy) -> dict[str, Cause]:
    """The causes without the facts undone. Nothing is cleared: a genuine stop that arrives later still wins."""
    return fold((fact for fact in facts if fact not in undone), policy)


def standing(cause: Cause, at: int, policy: Policy) -> Standing:
    """Whether a cause is in force at a moment, and until when."""
    if cause.reason == "soft_bounce":
        until = _soft_bounces_until(cause.bounces, policy)
        return Standing(cause, until is not None and at < until, until)
    decided = cause.decided
    if decided is None or decided[0] == "clear":
        return Standing(cause, active=False, until=None)
    if cause.reason == "hard_bounce" and policy.hard_bounce_lifetime is not None:
        until = decided[1] + policy.hard_bounce_lifetime
        return Standing(cause, at < until, until)
    return Standing(cause, active=True, until=None)


def _soft_bounces_until(bounces: tuple[int, ...], policy: Policy) -> int | None:
    """The end of the last group of enough bounces within the window, a lifetime later."""
    reach = policy.soft_bounce_count - 1
    ends = [
        end for start, end in zip(bounces, bounces[reach:], strict=False) if end - start <= policy.soft_bounce_window
    ]
    return ends[-1] + policy.soft_bounce_lifetime if ends else None


def verdict(causes: Mapping[str, Cause], at: int, policy: Policy, purpose: Purpose = "marketing") -> Verdict:
    """What the causes of one address say at a moment. A bounce never hides an unsubscribe: all causes stay visible."""
    if not causes:
        return NOTHING_KNOWN
    standings = tuple([standing(causes[reason], at, policy) for reason in sorted(causes)])
    counting = [s for s in standings if s.active and counts(s.cause.reason, purpose)]
    if not counting:
        return Verdict(suppressed=False, since=None, until=None, standings=standings)
    if len(counting) == 1:  # nearly always, and part of every answer
        (one,) = counting
        return Verdict(suppressed=True, since=one.cause.stop_at, until=one.until, standings=standings)
    since = min([s.cause.stop_at for s in counting if s.cause.stop_at is not None])
    ends = [s.until for s in counting]
    until = None if None in ends else max(end for end in ends if end is not None)
    return Verdict(suppressed=True, since=since, until=until, standings=standings)


def counts(reason: str, purpose: Purpose) -> bool:
    """Whether a reason stands against a message of this purpose. Only e-mail has `unsubscribe`."""
    return not (purpose == "transactional" and reason == "unsubscribe")


def latest(a: int | None, b: int | None) -> int | None:
    """The later of two times, of which either may be missing."""
    if a is None or b is None:
        return b if a is None else a
    return max(a, b)
