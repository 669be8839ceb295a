"""Owns the sentence behind a verdict: which rule decided, in words that a support person can read out.

It explains and never judges: what is said here follows from the verdict of `domain.suppression`.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final, Literal, NamedTuple

from service.domain.suppression import DAY, Policy, Purpose, Standing, Verdict, counts

Rule = Literal[
    "never-stopped",
    "until-cleared",
    "hard-bounce-lifetime",
    "repeated-soft-bounces",
    "cleared",
    "lapsed",
    "too-few-soft-bounces",
    "marketing-only",
]

_SAID: Final = {
    "unsubscribe": "this person unsubscribed",
    "complaint": "this person reported a message as spam",
    "do_not_call": "this number asked for no more messages",
    "manual": "a stop was entered by hand",
    "invalid": "the address was found to be invalid",
    "blocked": "the receiving side blocked our messages",
    "rejected": "a message was refused before it was sent",
    "hard_bounce": "a message came back as undeliverable for good (a hard bounce)",
    "soft_bounce": "a message came back as undeliverable for now (a soft bounce)",
}
"""What happened, by reason. Where several are in force, the first in this order is told."""

_BESIDES: Final = {
    "unsubscribe": "an unsubscribe",
    "complaint": "a report as spam",
    "do_not_call": "a request for no more messages",
    "manual": "a stop entered by hand",
    "invalid": "that the address is invalid",
    "blocked": "a block by the receiving side",
    "rejected": "a message refused before it was sent",
    "hard_bounce": "a hard bounce",
    "soft_bounce": "soft bounces",
}

_WHO: Final = {
    "kahuna_webhook": "Kahuna, which sends our messages, told us so",
    "kahuna_logs": "the logs of Kahuna, which sends our messages, say so",
    "api": "one of our own services said so",
    "import": "a list that was imported said so",
    "operator": "a person here decided so",
    "reconciliation": "a comparison of our list with that of Kahuna, which sends our messages, found it",
}

_WHO_BY_NAME: Final = {
    "api": "our service {} said so",
    "import": "the imported file {} said so",
}

# strftime would say them in the words of the machine's locale.
_MONTHS: Final = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)


class Teller(NamedTuple):
    """Where we know a cause from. `name` is the service's or the file's, None if it has none or none is known."""

    origin: str | None
    name: str | None = None


class Explanation(NamedTuple):
    """The rule that decided, the reason whose cause it decided about (None: there is none), and the sentence."""

    rule: Rule
    reason: str | None
    sentence: str


def explain(
    judged: Verdict, tellers: Mapping[str, Teller], policy: Policy, purpose: Purpose = "marketing", waiting: int = 0
) -> Explanation:
    """Why the verdict is what it is. `tellers` says by reason who told us; `waiting` counts opt-ins under review."""
    against = [s for s in judged.standings if s.active and counts(s.cause.reason, purpose)]
    if against:
        found = _stopped(against, tellers, policy)
    elif judged.standings:
        found = _permitted(judged, tellers, policy)
    else:
        found = Explanation("never-stopped", None, "May be messaged: nobody ever told us to stop.")
    if not waiting:
        return found
    held = "An opt-in waits" if waiting == 1 else f"{waiting} opt-ins wait"
    return found._replace(sentence=f"{found.sentence} {held} for a person's decision.")


def _stopped(against: list[Standing], tellers: Mapping[str, Teller], policy: Policy) -> Explanation:
    """The cause that lasts longest is told: it would be in the way even if all others were gone."""
    first = min(against, key=lambda s: (s.until is not None, -(s.until or 0), list(_SAID).index(s.cause.reason)))
    reason, others = first.cause.reason, sorted(s.cause.reason for s in against if s is not first)
    sentence = f"May not be messaged: {_what(first, tellers, policy)} {_ends(first)}"
    if others:
        sentence += f" Besides, there is {' and '.join(_BESIDES[reason] for reason in others)}."
    return Explanation(_stop_rule(first), reason, sentence)


def _stop_rule(standing: Standing) -> Rule:
    if standing.cause.reason == "soft_bounce":
        return "repeated-soft-bounces"
    return "until-cleared" if standing.until is None else "hard-bounce-lifetime"


def _what(standing: Standing, tellers: Mapping[str, Teller], policy: Policy) -> str:
    cause = standing.cause
    if cause.reason == "soft_bounce" and standing.until is not None:
        days = f"{policy.soft_bounce_window / DAY:g} days"
        happened = f"{policy.soft_bounce_count} or more messages came back as undeliverable for now (soft bounces)"
        last = standing.until - policy.soft_bounce_lifetime
        return f"{happened} within {days}, the last {_when(last)}; {_who(tellers, cause.reason)}."
    return f"{_SAID[cause.reason]} {_when(cause.stop_at)}; {_who(tellers, cause.reason)}."


def _ends(standing: Standing) -> str:
    if standing.until is None:
        return "This stands until a newer consent is recorded."
    return f"This ends by itself {_when(standing.until)}."


def _permitted(judged: Verdict, tellers: Mapping[str, Teller], policy: Policy) -> Explanation:
    exempt = [s for s in judged.standings if s.active]
    # A consent ends every reason at the same second: the one to tell of is whose stop it ended.
    newest = max(exempt or judged.standings, key=lambda s: ((s.cause.decided or ("clear", 0))[1], s.cause.stop_at or 0))
    reason, (action, at) = newest.cause.reason, newest.cause.decided or ("clear", None)
    if exempt:
        said = f"A transactional message may be sent: {_what(newest, tellers, policy)} That counts for marketing alone."
        return Explanation("marketing-only", reason, said)
    if action == "clear":
        stopped = any(s.cause.stop_at is not None for s in judged.standings)
        came = "which ended what came before it" if stopped else "and no stop is known"
        known = f"{_when(at)} a consent was given, {came}"
        return Explanation("cleared", reason, f"May be messaged: {known}; {_who(tellers, reason)}.")
    if newest.until is None:
        said = (
            f"May be messaged: a message came back as undeliverable for now (a soft bounce) {_when(at)}, but never "
            f"{policy.soft_bounce_count} within {policy.soft_bounce_window / DAY:g} days."
        )
        return Explanation("too-few-soft-bounces", reason, said)
    what = _what(newest, tellers, policy)
    return Explanation("lapsed", reason, f"May be messaged: {what} That counted until {_moment(newest.until)} only.")


def _who(tellers: Mapping[str, Teller], reason: str) -> str:
    origin, name = tellers.get(reason, Teller(None))
    if name and origin in _WHO_BY_NAME:
        return _WHO_BY_NAME[origin].format(name)
    return _WHO.get(origin or "", "who said so is not recorded")


def _when(seconds: int | None) -> str:
    return "at an unknown time" if seconds is None else f"on {_moment(seconds)}"


def _moment(seconds: int) -> str:
    at = datetime.fromtimestamp(seconds, UTC)
    return f"{at.day} {_MONTHS[at.month - 1]} {at.year} at {at:%H:%M} UTC"
