"""Owns what a fact is: who, why, which way, when and who says so, and which time an untrustworthy one gets."""

from collections.abc import Mapping
from typing import Final, Literal, NamedTuple

from service.domain.addresses import Channel

Action = Literal["suppress", "clear"]
Source = Literal["kahuna", "local"]
Origin = Literal["kahuna_webhook", "kahuna_logs", "api", "import", "operator", "reconciliation"]

SOURCES: Final[Mapping[Origin, Source]] = {"kahuna_webhook": "kahuna", "kahuna_logs": "kahuna", "import": "local"}
"""Who speaks in the archived batches of an origin."""

EMAIL_REASONS: Final = (
    "unsubscribe",
    "hard_bounce",
    "soft_bounce",
    "complaint",
    "invalid",
    "blocked",
    "rejected",
    "manual",
)
SMS_REASONS: Final = ("do_not_call", "invalid", "manual")

REASONS: Final = tuple(dict.fromkeys((*EMAIL_REASONS, *SMS_REASONS)))
"""Those of either channel."""

FUTURE_TOLERANCE: Final = 300
"""Seconds that a claimed time may be ahead of the clock."""

SAME_EVENT: Final = 300
"""Seconds within which a record of the vendor's logs and a callback of the same address and reason are one event."""

_MILLISECONDS: Final = range(10**12, 10**13)


class Fact(NamedTuple):
    """One thing that somebody said about an address. All seven fields together are its identity and its key.

    `occurred_at` is in whole Unix seconds. What is not identity (origin, evidence, when it was recorded) stands beside.
    """

    namespace: str
    channel: Channel
    address: str
    reason: str
    action: Action
    occurred_at: int
    source: Source


def reasons_of(channel: Channel) -> tuple[str, ...]:
    """Every reason that an address of this channel can be suppressed for."""
    return EMAIL_REASONS if channel == "email" else SMS_REASONS


def home_of(channel: Channel, reason: str) -> str:
    """The reason under which the other side files this one.

    The vendor knows one state for a number, and no word for `manual` e-mail stops; those share a slot with this reason.

    >>> home_of("sms", "invalid"), home_of("email", "manual"), home_of("email", "complaint")
    ('do_not_call', 'unsubscribe', 'complaint')
    """
    if channel == "sms":
        return "do_not_call"
    return "unsubscribe" if reason == "manual" else reason


def standing_time(claimed: int | None, received_at: int) -> int | None:
    """The claimed time in whole seconds if it can stand, else None. Thirteen digits are milliseconds.

    Missing, zero, negative, or further ahead of the receipt than `FUTURE_TOLERANCE`: it cannot.
    """
    if claimed is None:
        return None
    seconds = claimed // 1000 if claimed in _MILLISECONDS else claimed
    return seconds if 0 < seconds <= received_at + FUTURE_TOLERANCE else None


def occurred_at(action: Action, claimed: int | None, received_at: int) -> int | None:
    """When the fact happened; None if a person must say so.

    A stop without a time that can stand takes the time of receipt, which is stored with its batch and so is the same
    at every replay. An opt-in does not: with a fresh time at each redelivery it would win over later stops.
    """
    standing = standing_time(claimed, received_at)
    if standing is None and action == "suppress":
        return received_at
    return standing
