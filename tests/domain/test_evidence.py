"""What evidence adds up to, wherever it is kept, and what counts as a disagreement."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.domain.evidence import KINDS, Key, Sides, disagreements, line_of, rebuilt
from service.domain.facts import Fact
from service.domain.suppression import Cause, Policy, fold

POLICY = Policy()
KEY = Key("default", "email", "a@example.com")


def fact(reason: str = "unsubscribe", action: Any = "suppress", at: int = 100, source: Any = "kahuna") -> Fact:
    return Fact(*KEY, reason, action, at, source)


facts = st.builds(
    fact,
    st.sampled_from(["unsubscribe", "soft_bounce", "manual"]),
    st.sampled_from(["suppress", "clear"]),
    st.integers(1, 40),
    st.sampled_from(["kahuna", "local"]),
)


def found(sides: Sides, bounces: int = 9) -> list[tuple[str, str]]:
    return list(disagreements(sides, rebuilt(sides, POLICY), POLICY, bounces))


@given(st.sets(facts), st.sets(facts))
def test_it_does_not_matter_which_evidence_the_checkpoint_took_in(kept: set[Fact], dropped: set[Fact]) -> None:
    whole = fold(kept | dropped, POLICY)
    sides = Sides(kept, fold(dropped, POLICY), kept, dropped, whole)
    assert rebuilt(sides, POLICY) == whole
    assert found(sides) == []


@given(st.sets(facts, min_size=1), st.data())
def test_a_fact_that_is_lost_or_made_up_is_found(said: set[Fact], data: st.DataObject) -> None:
    one = data.draw(st.sampled_from(sorted(said)))
    live = fold(said, POLICY)
    assert found(Sides(said, {}, said - {one}, set(), live)) == [("missing_fact", one.reason)]
    assert found(Sides(said - {one}, {}, said, set(), fold(said - {one}, POLICY))) == [("foreign_fact", one.reason)]


@given(st.sets(facts, min_size=1), st.data())
def test_a_cause_that_is_not_what_the_evidence_says_is_found(said: set[Fact], data: st.DataObject) -> None:
    live = fold(said, POLICY)
    reason = data.draw(st.sampled_from(sorted(live)))
    without = {name: cause for name, cause in live.items() if name != reason}
    later = live | {reason: live[reason]._replace(stop_at=(live[reason].stop_at or 0) + 1)}
    assert found(Sides(said, {}, said, set(), without)) == [("missing_cause", reason)]
    assert found(Sides(said, {}, said, set(), later)) == [("differing_cause", reason)]
    assert found(Sides(set(), {}, set(), set(), live)) == [("foreign_cause", reason) for reason in sorted(live)]


def test_a_fact_whose_batch_is_gone_must_not_be_newer_than_the_checkpoint() -> None:
    kept = {"unsubscribe": Cause("unsubscribe", stop_at=100)}
    assert found(Sides(set(), kept, set(), {fact(at=100), fact(at=50)}, kept)) == []
    assert ("foreign_fact", "unsubscribe") in found(Sides(set(), kept, set(), {fact(at=100), fact(at=101)}, kept))
    assert found(Sides(set(), kept, set(), {fact(at=50)}, kept)) == [("missing_fact", "unsubscribe")]
    assert found(Sides(set(), {}, set(), {fact()}, {})) == [("foreign_fact", "unsubscribe")]


def test_only_the_soft_bounces_that_both_sides_are_sure_to_have_count() -> None:
    said = {fact("soft_bounce", at=n) for n in range(1, 13)}
    short = {"soft_bounce": Cause("soft_bounce", 12, None, (10, 11, 12))}
    assert found(Sides(said, {}, said, set(), short), bounces=3) == []
    assert found(Sides(said, {}, said, set(), short), bounces=4) == [("differing_cause", "soft_bounce")]


@pytest.mark.parametrize(
    "other",
    [
        (KEY._replace(address="b@example.com"), Cause("manual", 1, 2)),
        (KEY._replace(channel="sms"), Cause("manual", 1, 2)),
        (KEY, Cause("invalid", 1, 2)),
        (KEY, Cause("manual", 2, 1)),
        (KEY, Cause("manual", 1, None)),
        (KEY, Cause("manual", 1, 2, (1,))),
    ],
)
def test_a_digest_takes_in_everything(other: tuple[Key, Cause]) -> None:
    assert line_of(KEY, Cause("manual", 1, 2), 9) != line_of(*other, 9)


def test_every_kind_has_its_words() -> None:
    assert all(words.split()[0] in ("causes", "facts") for words in KINDS.values())
