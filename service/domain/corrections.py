"""Owns what we owe the other side, and what to do with each of its answers.

A slot is the smallest thing the vendor keeps a state for: a number, or an e-mail address with one of its words (here
named by our reason for it). What it holds is known only within bounds: `held` is what it told us or accepted, `sent`
what we sent without an answer that proves it. A correction is owed when our verdict and either bound disagree.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, TypeVar

from service.domain.addresses import Channel
from service.domain.facts import Action, home_of
from service.domain.suppression import Cause, Policy, latest, standing

_T = TypeVar("_T")


class Marks(NamedTuple):
    """The latest stop and the latest opt-in, in Unix seconds."""

    stop_at: int | None = None
    clear_at: int | None = None

    def join(self, other: "Marks") -> "Marks":
        """Both merged: the vendor keeps the newest time of each kind (ASSUMED)."""
        return Marks(latest(self.stop_at, other.stop_at), latest(self.clear_at, other.clear_at))


class Correction(NamedTuple):
    """What one slot is to be told: a stop or an opt-in, dated in Unix seconds."""

    action: Action
    occurred_at: int

    @property
    def marks(self) -> Marks:
        """What the slot holds once this is accepted."""
        stopped = self.action == "suppress"
        return Marks(stop_at=self.occurred_at) if stopped else Marks(clear_at=self.occurred_at)


class Slot(NamedTuple):
    """What the vendor holds for one slot, as far as we know."""

    held: Marks = Marks()
    sent: Marks = Marks()
    in_flight: Correction | None = None

    @property
    def possible(self) -> Marks:
        """The latest that it may hold."""
        return self.held.join(self.sent)

    @property
    def surely_stopped(self) -> bool:
        """Every state within the bounds suppresses. A tie proves nothing: nobody said which side the vendor takes."""
        stop, opt_in = self.held.stop_at, self.possible.clear_at
        return stop is not None and (opt_in is None or stop > opt_in)

    @property
    def surely_open(self) -> bool:
        """Every state within the bounds permits."""
        stop, opt_in = self.possible.stop_at, self.held.clear_at
        return stop is None or (opt_in is not None and opt_in > stop)


def slots_of(channel: Channel, causes: Mapping[str, Cause]) -> dict[str, list[Cause]]:
    """The causes of one address, grouped by the slot that each is told in."""
    slots: dict[str, list[Cause]] = {}
    for reason, cause in causes.items():
        slots.setdefault(home_of(channel, reason), []).append(cause)
    return slots


def owed(
    channel: Channel, causes: Mapping[str, Cause], slot_name: str, slot: Slot, at: int, policy: Policy
) -> Correction | None:
    """What the slot must be told, if anything.

    While something that would settle it is in flight, nothing: its answer is judged when it comes.
    """
    needed = _needed(channel, causes, slot_name, slot, at, policy)
    if needed is None or slot.in_flight is None:
        return needed
    landed = Slot(slot.held.join(slot.in_flight.marks), slot.sent)
    return needed if _needed(channel, causes, slot_name, landed, at, policy) else None


def _needed(
    channel: Channel, causes: Mapping[str, Cause], slot_name: str, slot: Slot, at: int, policy: Policy
) -> Correction | None:
    mine = slots_of(channel, causes).get(slot_name, [])
    stops = [c.stop_at for c in mine if c.stop_at is not None and standing(c, at, policy).active]
    if stops:
        return None if slot.surely_stopped else _stop(max(stops), slot)
    if slot.surely_open or any(standing(c, at, policy).active for c in causes.values()):
        return None
    # A stop that lapses by itself may be newer than the clear, which then ends nothing.
    clears = [c.decided[1] for c in mine if c.decided is not None and c.decided[0] == "clear"]
    return _opt_in(max(clears), slot) if clears else None


def _stop(stop_at: int, slot: Slot) -> Correction:
    """Dated after any opt-in that the vendor may hold, or it would lose there."""
    opt_in = slot.possible.clear_at
    return Correction("suppress", stop_at if opt_in is None else max(stop_at, opt_in + 1))


def _opt_in(clear_at: int, slot: Slot) -> Correction:
    """Dated after any stop that the vendor may hold. Its own stop is older than our clear, or we would suppress; a
    later one is a stop that we sent, dated past an opt-in."""
    stop = slot.possible.stop_at
    return Correction("clear", clear_at if stop is None else max(clear_at, stop + 1))


def sayable(channel: Channel, action: Action) -> bool:
    """Whether the vendor's API has words for it. There are none for an e-mail re-subscription."""
    return channel == "sms" or action == "suppress"


Failure = Literal["credentials", "body", "size", "busy", "unproved", "unreadable"]
"""Kinds of answer that are no result: 401 or 409; 400; 413; 429, 5xx or unreachable; sent, but no answer came; an
answer that cannot be read."""


class RetryPolicy(NamedTuple):
    """Seconds, and how often. `unreadable_attempts` bounds only answers that waiting will not mend."""

    first_delay: float = 1.0
    longest_delay: float = 900.0
    circuit_probe: float = 60.0
    unreadable_attempts: int = 10


class Retry(NamedTuple):
    """Back to pending, for so many seconds."""

    delay: float


class Halt(NamedTuple):
    """Open the namespace's circuit; the corrections wait for the probe, so many seconds from now."""

    delay: float


class Split(NamedTuple):
    """Send the halves apart."""


class Dead(NamedTuple):
    """Give up, and say why."""

    reason: str


def after_failure(
    failure: Failure, size: int, attempts: int, retry_after: float | None, jitter: float, policy: RetryPolicy
) -> Retry | Halt | Split | Dead:
    """What to do with `size` corrections after a call that gave no result. `jitter` is in [0, 1)."""
    if failure == "credentials":
        return Halt(policy.circuit_probe)
    if failure in ("body", "size") and size > 1:
        return Split()
    if failure == "body":
        return Dead("bad-request")
    if failure == "size":
        return Dead("too-large")
    if failure == "unreadable" and attempts >= policy.unreadable_attempts:
        return Dead("unreadable-answer")
    return Retry(backoff(attempts, retry_after, jitter, policy))


def backoff(attempts: int, retry_after: float | None, jitter: float, policy: RetryPolicy) -> float:
    """Seconds to wait: doubling with each attempt up to the cap, spread by jitter, never less than was asked for
    (within the cap)."""
    doubled = policy.first_delay * 2.0 ** min(max(attempts - 1, 0), 30)
    spread = min(doubled, policy.longest_delay) * (0.5 + jitter / 2)
    return max(spread, min(retry_after or 0.0, policy.longest_delay))


def halves(items: Sequence[_T]) -> tuple[Sequence[_T], Sequence[_T]]:
    """Both halves, neither empty if there are two items or more."""
    middle = len(items) // 2
    return items[:middle], items[middle:]
