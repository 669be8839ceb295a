"""Owns what the evidence about one address adds up to, and whether what is stored agrees with it.

Evidence is what archived batches and rows of the audit log say, and the checkpoint where batches were dropped. Stored
are the facts and the list. Both are folded here by the domain's own merge, not by that of the store which made them.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

from service.domain.addresses import Channel
from service.domain.facts import Fact
from service.domain.suppression import Cause, Policy, cause_of, fold, merge

Kind = Literal["missing_cause", "foreign_cause", "differing_cause", "missing_fact", "foreign_fact"]

KINDS: Final[Mapping[Kind, str]] = {
    "missing_cause": "causes that the evidence makes and the list lacks",
    "foreign_cause": "causes on the list without evidence",
    "differing_cause": "causes that differ from their evidence",
    "missing_fact": "facts that the evidence states and nobody has",
    "foreign_fact": "facts without evidence",
}


class Key(NamedTuple):
    """Whom everything here is about."""

    namespace: str
    channel: Channel
    address: str


@dataclass(slots=True)
class Sides:
    """Both sides of one address. `orphans` are the stored facts whose batch was dropped: the checkpoint answers for
    them. Of the `sayings`, facts with the id of who says them, those that are not `withdrawn` are `said`."""

    said: set[Fact] = field(default_factory=set)
    checkpoint: dict[str, Cause] = field(default_factory=dict)
    facts: set[Fact] = field(default_factory=set)
    orphans: set[Fact] = field(default_factory=set)
    live: dict[str, Cause] = field(default_factory=dict)
    sayings: set[tuple[Fact, str]] = field(default_factory=set)
    withdrawn: set[tuple[Fact, str]] = field(default_factory=set)

    def hear(self) -> None:
        """Takes what was said, and not taken back, for said."""
        self.said |= {fact for fact, _ in self.sayings - self.withdrawn}


def rebuilt(sides: Sides, policy: Policy) -> dict[str, Cause]:
    """The causes, by reason, that the evidence adds up to."""
    causes = fold(sides.said, policy)
    for reason, kept in sides.checkpoint.items():
        causes[reason] = merge(causes.get(reason, kept), kept, policy)
    return {reason: cause for reason, cause in causes.items() if cause.decided is not None}


def disagreements(
    sides: Sides, causes: Mapping[str, Cause], policy: Policy, bounces: int
) -> Iterator[tuple[Kind, str]]:
    """What is stored otherwise than the evidence's `causes` say: the kind, and the reason that it is about. Of the soft
    bounces, the newest so many are compared."""
    for reason in sorted(causes.keys() | sides.live.keys()):
        if reason not in sides.live:
            yield "missing_cause", reason
        elif reason not in causes:
            yield "foreign_cause", reason
        elif _seen(causes[reason], bounces) != _seen(sides.live[reason], bounces):
            yield "differing_cause", reason
    yield from _among_facts(sides, causes, policy, bounces)


def _among_facts(sides: Sides, causes: Mapping[str, Cause], policy: Policy, bounces: int) -> Iterator[tuple[Kind, str]]:
    said = sides.said
    if said == sides.facts and not sides.orphans and not sides.checkpoint:
        return
    missing = said - sides.facts - sides.orphans
    yield from (("missing_fact", fact.reason) for fact in sorted(missing))
    foreign = sides.facts - said | {fact for fact in sides.orphans - said if not _answered_for(fact, sides)}
    yield from (("foreign_fact", fact.reason) for fact in sorted(foreign))
    # Which facts the dropped batches had brought nobody knows any more, but those that decide must be there.
    there = fold(sides.facts | sides.orphans, policy)
    for reason in sorted(sides.checkpoint.keys() & causes.keys()):
        found = there.get(reason)
        if found is None or _seen(found, bounces) != _seen(causes[reason], bounces):
            yield "missing_fact", reason


def _answered_for(fact: Fact, sides: Sides) -> bool:
    """Whether the checkpoint, or what came after, has a word at least as new as this."""
    kept = sides.checkpoint.get(fact.reason)
    if kept is None:
        return False
    alone = cause_of(fact)
    return (kept.stop_at or 0) >= (alone.stop_at or 0) and (kept.clear_at or 0) >= (alone.clear_at or 0)


def line_of(key: Key, cause: Cause, bounces: int) -> bytes:
    """A cause as a digest takes it in."""
    _, stop_at, clear_at, times = _seen(cause, bounces)
    return "\x1f".join((*key, cause.reason, str(stop_at), str(clear_at), *map(str, times))).encode() + b"\n"


def _seen(cause: Cause, bounces: int) -> Cause:
    return cause if len(cause.bounces) <= bounces else cause._replace(bounces=cause.bounces[-bounces:])
