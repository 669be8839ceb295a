"""Owns how far a reconciliation has come: the states of a run and of its lines, which may follow which, and what keeps
a plan from being carried out without a person.

A run is a plan. Its lines are the differences that it found; each has a state of its own, and where the run rests
follows from theirs, so that neither can claim what the other does not show.
"""

from collections.abc import Mapping
from typing import Final, Literal, NamedTuple

RunState = Literal[
    "queued",
    "running",
    "planned",
    "approved",
    "applied",
    "proved",
    "rejected",
    "reverting",
    "reverted",
    "failed",
    "abandoned",
]

RUN_STATES: Final[Mapping[RunState, str]] = {
    "queued": "waits for a worker",
    "running": "a worker compares",
    "planned": "lines of it wait for a decision",
    "approved": "a worker carries out what was approved",
    "applied": "what was approved is carried out; proof of some of it is not there yet, or will not come by itself, or "
    "Kahuna did not answer all that was asked",
    "proved": "all that was asked was answered, and every difference is proved, or was no longer so (moot) or declined",
    "rejected": "a person decided that nothing is to be done",
    "reverting": "a worker takes back what the run recorded here",
    "reverted": "what the run recorded here is taken back, the rest is called off",
    "failed": "a fault of ours ended it; the lines say how far it came",
    "abandoned": "it was given up before it was a whole plan, or a newer plan took its place",
}
"""What each state says of a run."""

LineState = Literal[
    "proposed",
    "approved",
    "on_its_way",
    "applied",
    "proved",
    "refused",
    "unsupported",
    "moot",
    "declined",
    "reverted",
]

LINE_STATES: Final[Mapping[LineState, str]] = {
    "proposed": "waits for a decision",
    "approved": "is about to be carried out",
    "on_its_way": "a correction says so already, and waits for Kahuna",
    "applied": "is carried out, and waits for Kahuna",
    "proved": "Kahuna accepted it, or a later check shows it",
    "refused": "Kahuna refused it for good",
    "unsupported": "Kahuna's API has no words for it",
    "moot": "was no longer so when it was to be carried out",
    "declined": "a person decided against it, or took its run back (called-off)",
    "reverted": "was carried out, and taken back",
}
"""What each state says of a line."""

FOLLOWS: Final[Mapping[RunState, frozenset[RunState]]] = {
    "queued": frozenset({"running", "rejected"}),
    "running": frozenset({"planned", "approved", "applied", "proved", "rejected", "failed", "abandoned"}),
    "planned": frozenset({"approved", "applied", "proved", "rejected", "reverting", "failed", "abandoned"}),
    "approved": frozenset({"planned", "applied", "proved", "reverting", "failed"}),
    "applied": frozenset({"proved", "reverting"}),
    "proved": frozenset({"applied", "reverting"}),
    "rejected": frozenset({"reverting"}),
    "reverting": frozenset({"reverted", "failed"}),
    "reverted": frozenset(),
    "failed": frozenset({"approved", "reverting"}),
    "abandoned": frozenset({"reverting"}),
}
"""Which states may follow a state. One may also stay as it is."""

DECIDABLE: Final[frozenset[RunState]] = frozenset({"planned", "approved", "failed"})
"""Runs whose proposed lines may be approved or declined; a failed one only if its plan is whole."""

REVERTIBLE: Final[frozenset[RunState]] = frozenset(
    {"planned", "approved", "applied", "proved", "rejected", "failed", "abandoned"}
)
"""Runs that may have recorded something here: what the logs told is on the list before there is a plan."""

WAITING: Final[frozenset[LineState]] = frozenset({"applied", "on_its_way"})
"""Lines whose proof is still to come."""

CLOSED: Final[frozenset[LineState]] = frozenset({"proved", "moot"})
"""Lines on which both sides agree by now, as far as anybody knows."""

Counts = Mapping[LineState, int]
"""How many lines of a run are in each state."""


UNSEEN: Final = ("logs_unread", "not_looked_up", "without_answer")
"""Counts of a run of what it was to ask Kahuna and got no word about: its lines do not show all that there is."""


def saw_all(counts: Mapping[str, int]) -> bool:
    """Whether the lines of a run with these counts show all that it was asked to look at."""
    return not any(counts.get(name) for name in (*UNSEEN, "lines_dropped"))


def resting(lines: Counts, *, approved: bool, whole: bool = True) -> RunState:
    """Where a run with a whole plan stands: what is still to be done comes first, and `proved` is said only of a run
    whose every line is closed or declined. `approved`: anything of it ever was; `whole`: the lines show all."""
    there = {state for state, count in lines.items() if count}
    if "approved" in there:
        return "approved"
    if "proposed" in there:
        return "planned"
    if "declined" in there and not approved:
        return "rejected"
    return "proved" if whole and there <= CLOSED | {"declined"} else "applied"


class Guards(NamedTuple):
    """What a plan may propose at most without waiting for a person: a share of the list (which does not count up to
    `floor` differences), and so many differences."""

    share: float = 0.05
    floor: int = 20
    most: int = 1000


Guard = Literal["share", "count", "permits", "decided_before"]

GUARDS: Final[Mapping[Guard, str]] = {
    "share": "more differences than this share of the list",
    "count": "more differences than this",
    "permits": "these would permit messages again",
    "decided_before": "a person declined or reverted these before",
}
"""What each guard found."""


class Hold(NamedTuple):
    """A guard that made a plan wait: what it found, and from where on that is too much."""

    guard: Guard
    found: float
    limit: float


def holds(guards: Guards, proposed: int, compared: int, permits: int, decided_before: int) -> list[Hold]:
    """The guards that stand against carrying out a plan of so many proposals, out of a list of so many rows, without
    being asked. The first two hold all of it, the others the lines that they are about."""
    found: list[Hold] = []
    share = proposed / max(compared, 1)
    if proposed > guards.floor and share > guards.share:
        found.append(Hold("share", round(share, 4), guards.share))
    if proposed > guards.most:
        found.append(Hold("count", proposed, guards.most))
    if permits:
        found.append(Hold("permits", permits, 0))
    if decided_before:
        found.append(Hold("decided_before", decided_before, 0))
    return found


def holds_all(found: list[Hold]) -> bool:
    """Whether nothing at all may be carried out."""
    return any(one.guard in ("share", "count") for one in found)
