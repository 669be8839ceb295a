"""Where a run stands follows from its lines, in one direction, and never claims more than they show."""

import typing

from hypothesis import given
from hypothesis import strategies as st

from service.domain.runs import (
    CLOSED,
    DECIDABLE,
    FOLLOWS,
    LINE_STATES,
    REVERTIBLE,
    RUN_STATES,
    WAITING,
    Guards,
    LineState,
    RunState,
    holds,
    holds_all,
    resting,
)

LINES = st.lists(st.sampled_from(typing.get_args(LineState)), max_size=8)

# What may become of a line, by whom: a person, the worker that carries out, Kahuna or a later check, the way back.
MOVES: dict[LineState, list[LineState]] = {
    "proposed": ["approved", "declined"],
    "approved": ["applied", "proved", "moot", "refused", "declined"],
    "applied": ["proved", "refused", "moot"],
    "on_its_way": ["proved", "refused", "moot"],
    "refused": ["proved"],
    "unsupported": ["proved"],
}


def counted(lines: list[LineState]) -> dict[LineState, int]:
    return {state: lines.count(state) for state in lines}


def test_every_state_is_explained_and_has_its_place() -> None:
    assert set(RUN_STATES) == set(FOLLOWS) == set(typing.get_args(RunState))
    assert set(LINE_STATES) == set(typing.get_args(LineState))
    assert not CLOSED & WAITING


def test_every_run_comes_to_an_end() -> None:
    ends = {state for state, after in FOLLOWS.items() if not after}
    assert ends == {"reverted"}
    for state in FOLLOWS:
        assert "reverted" in reachable(state), state


def reachable(state: RunState) -> set[RunState]:
    seen: set[RunState] = set()
    found = [state]
    while found:
        one = found.pop()
        if one not in seen:
            seen.add(one)
            found += FOLLOWS[one]
    return seen


@given(LINES, st.booleans(), st.booleans())
def test_proved_is_said_only_of_what_is_closed_or_declined_and_all_there_is(
    lines: list[LineState], approved: bool, whole: bool
) -> None:
    state = resting(counted(lines), approved=approved, whole=whole)
    if state == "proved":
        assert whole
        assert set(lines) <= CLOSED | {"declined"}
    if state == "rejected":
        assert not approved
    assert (state == "approved") == ("approved" in lines)
    assert (state == "planned") == ("proposed" in lines and "approved" not in lines)


@given(LINES.filter(lambda lines: "reverted" not in lines), st.data())
def test_whatever_happens_to_its_lines_a_run_moves_as_it_may(lines: list[LineState], data: st.DataObject) -> None:
    """Moves of persons, workers and Kahuna in any order, from any plan: no step but those that are allowed."""
    was_approved = "approved" in lines
    state = resting(counted(lines), approved=was_approved)
    for _ in range(12):
        movable = [place for place, line in enumerate(lines) if line in MOVES]
        if not movable:
            break
        place = data.draw(st.sampled_from(movable))
        if lines[place] == "proposed" and state not in DECIDABLE:
            continue
        lines[place] = data.draw(st.sampled_from(MOVES[lines[place]]))
        was_approved = was_approved or lines[place] == "approved"
        after = resting(counted(lines), approved=was_approved)
        assert after == state or after in FOLLOWS[state], (state, after, lines)
        assert after in REVERTIBLE
        state = after


@given(st.integers(0, 100), st.integers(0, 1000), st.integers(0, 3), st.integers(0, 3))
def test_guards_hold_from_their_limits_on(proposed: int, compared: int, permits: int, before: int) -> None:
    guards = Guards(share=0.1, floor=5, most=50)
    found = holds(guards, proposed, compared, permits, before)
    names = {one.guard for one in found}
    assert ("share" in names) == (proposed > 5 and proposed > 0.1 * max(compared, 1))
    assert ("count" in names) == (proposed > 50)
    assert ("permits" in names, "decided_before" in names) == (permits > 0, before > 0)
    assert holds_all(found) == bool(names & {"share", "count"})
