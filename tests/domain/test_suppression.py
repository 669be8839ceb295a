"""The merge and the verdict: any order, any repetition, any grouping, and never a permission by accident."""

import random
from collections.abc import Iterable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.domain.addresses import Channel
from service.domain.facts import EMAIL_REASONS, SMS_REASONS, Action, Fact, Source
from service.domain.suppression import DAY, Cause, Policy, Purpose, Verdict, fold, merge, retract, verdict

POLICY = Policy()

ACTIONS: st.SearchStrategy[Action] = st.sampled_from(["suppress", "clear"])
SOURCES: st.SearchStrategy[Source] = st.sampled_from(["kahuna", "local"])
MOMENTS = st.integers(1, 60)

# So small that random histories reach every edge of every number.
POLICIES = st.builds(
    Policy,
    soft_bounce_count=st.integers(1, 4),
    soft_bounce_window=st.integers(1, 12),
    soft_bounce_lifetime=st.integers(1, 30),
    hard_bounce_lifetime=st.none() | st.integers(1, 30),
)


def fact(reason: str, action: Action, at: int, source: Source = "local", channel: Channel = "email") -> Fact:
    """A fact about the one address of these tests."""
    return Fact("default", channel, "ann@example.com", reason, action, at, source)


FACTS = st.builds(fact, st.sampled_from(EMAIL_REASONS), ACTIONS, MOMENTS, SOURCES)
BOUNCE_FACTS = st.builds(fact, st.just("soft_bounce"), st.sampled_from(["suppress"] * 6 + ["clear"]), MOMENTS, SOURCES)
HISTORIES = st.lists(FACTS, max_size=25) | st.lists(BOUNCE_FACTS, max_size=40)


def stops(reason: str, *times: int) -> list[Fact]:
    """Stops for one reason."""
    return [fact(reason, "suppress", at) for at in times]


def judged(facts: Iterable[Fact], at: int, purpose: Purpose = "marketing", policy: Policy = POLICY) -> Verdict:
    """The verdict on these facts."""
    return verdict(fold(facts, policy), at, policy, purpose)


def active(facts: Iterable[Fact], at: int, policy: Policy = POLICY) -> set[str]:
    """The reasons in force."""
    return {s.cause.reason for s in judged(facts, at, policy=policy).standings if s.active}


def merged(folds: Iterable[dict[str, Cause]], policy: Policy) -> dict[str, Cause]:
    """Lists that were folded apart, brought together."""
    together: dict[str, Cause] = {}
    for causes in folds:
        for reason, cause in causes.items():
            together[reason] = merge(together[reason], cause, policy) if reason in together else cause
    return together


# The merge.


@given(HISTORIES, st.randoms(), POLICIES)
def test_neither_order_nor_repetition_matters(facts: list[Fact], chance: random.Random, policy: Policy) -> None:
    repeated = facts + [fact for fact in facts if chance.random() < 0.5]
    chance.shuffle(repeated)
    assert fold(repeated, policy) == fold(facts, policy)


@given(HISTORIES, st.randoms(), st.integers(1, 6), POLICIES)
def test_grouping_does_not_matter(facts: list[Fact], chance: random.Random, groups: int, policy: Policy) -> None:
    parts: list[list[Fact]] = [[] for _ in range(groups)]
    for one in facts:
        # A fact may lie in several groups, as when two replicas get the same callback.
        for part in chance.sample(parts, chance.randint(1, groups)):
            part.append(one)
    assert merged((fold(part, policy) for part in parts), policy) == fold(facts, policy)


@given(HISTORIES, HISTORIES, HISTORIES, POLICIES)
def test_the_merge_is_associative_commutative_and_idempotent(
    a: list[Fact], b: list[Fact], c: list[Fact], policy: Policy
) -> None:
    x, y, z = (fold(facts, policy) for facts in (a, b, c))
    left = merged([merged([x, y], policy), z], policy)
    assert left == merged([x, merged([y, z], policy)], policy)
    assert left == merged([z, y, x], policy)
    assert merged([x, x], policy) == x


@given(FACTS)
def test_the_source_does_not_count(one: Fact) -> None:
    other = one._replace(source="local" if one.source == "kahuna" else "kahuna")
    assert fold([one, other], POLICY) == fold([one], POLICY)


# Who wins.


@given(st.sampled_from([r for r in EMAIL_REASONS if r != "soft_bounce"]), st.lists(st.tuples(ACTIONS, MOMENTS)))
def test_an_opt_in_wins_only_if_strictly_newer_than_every_stop(reason: str, said: list[tuple[Action, int]]) -> None:
    facts = [fact(reason, action, at) for action, at in said]
    last_stop = max((at for action, at in said if action == "suppress"), default=0)
    last_clear = max((at for action, at in said if action == "clear"), default=0)
    assert judged(facts, 100).suppressed is (last_stop > 0 and last_stop >= last_clear)


@pytest.mark.parametrize("reason", EMAIL_REASONS)
def test_the_protective_fact_wins_a_tie(reason: str) -> None:
    # Three soft bounces suppress; the last of them shares its second with the clear, and so do the other two.
    policy = POLICY._replace(soft_bounce_count=1)
    facts = [*stops(reason, 10), fact(reason, "clear", 10)]
    assert judged(facts, 11, policy=policy).suppressed
    assert not judged([*facts, fact(reason, "clear", 11)], 11, policy=policy).suppressed


@given(HISTORIES, st.sampled_from(EMAIL_REASONS), MOMENTS, MOMENTS)
def test_a_clear_of_one_reason_leaves_the_others_alone(facts: list[Fact], reason: str, cleared: int, at: int) -> None:
    before = active(facts, at)
    assert active([*facts, fact(reason, "clear", cleared)], at) >= before - {reason}


@given(st.lists(FACTS), st.lists(st.builds(fact, st.sampled_from(["hard_bounce", "soft_bounce"]), st.just("suppress"))))
def test_a_bounce_never_hides_an_unsubscribe(facts: list[Fact], bounces: list[Fact]) -> None:
    unsubscribed = [*facts, fact("unsubscribe", "suppress", 60)]
    assert "unsubscribe" in active([*unsubscribed, *bounces], 61)
    assert fold([*unsubscribed, *bounces], POLICY)["unsubscribe"] == fold(unsubscribed, POLICY)["unsubscribe"]


def test_all_causes_stay_visible_in_the_order_of_their_names() -> None:
    facts = [*stops("unsubscribe", 5), *stops("hard_bounce", 9), *stops("blocked", 7), fact("blocked", "clear", 8)]
    standings = judged(facts, 10).standings
    assert [(s.cause.reason, s.active) for s in standings] == [
        ("blocked", False),
        ("hard_bounce", True),
        ("unsubscribe", True),
    ]


def test_nothing_known_is_no_suppression() -> None:
    assert judged([], 10) == Verdict(suppressed=False, since=None, until=None, standings=())
    assert not judged([fact("unsubscribe", "clear", 5)], 10).suppressed


# Soft bounces.


def model_until(facts: Iterable[Fact], policy: Policy) -> int:
    """The end of the suppression by soft bounces, from every bounce there ever was: 0 if there is none."""
    cleared = max((f.occurred_at for f in facts if f.action == "clear"), default=0)
    bounces = sorted({f.occurred_at for f in facts if f.action == "suppress" and f.occurred_at >= cleared})
    ends = [
        last
        for index, last in enumerate(bounces)
        if len([t for t in bounces[: index + 1] if last - t <= policy.soft_bounce_window]) >= policy.soft_bounce_count
    ]
    return max(ends) + policy.soft_bounce_lifetime if ends else 0


def folded_in_pieces(facts: Sequence[Fact], policy: Policy, chance: random.Random) -> dict[str, Cause]:
    """As the list grows: in any order, a few at a time, so that what is dropped once is never seen again."""
    shuffled = chance.sample(facts, len(facts))
    causes: dict[str, Cause] = {}
    while shuffled:
        size = chance.randint(1, 3)
        causes = merged([causes, fold(shuffled[:size], policy)], policy)
        shuffled = shuffled[size:]
    return causes


@given(st.lists(BOUNCE_FACTS, min_size=1, max_size=60), POLICIES, st.randoms())
def test_the_bounces_kept_decide_as_all_of_them_would(facts: list[Fact], policy: Policy, chance: random.Random) -> None:
    causes = folded_in_pieces(facts, policy, chance)
    until = model_until(facts, policy)
    # Of the past it is the facts of that time that are asked, so the newest fact is the earliest moment there is.
    for at in range(max(f.occurred_at for f in facts), 100):
        assert verdict(causes, at, policy).suppressed is (at < until)


@given(st.lists(BOUNCE_FACTS, max_size=60), MOMENTS, POLICIES)
def test_at_every_moment_the_bounces_until_then_decide(facts: list[Fact], at: int, policy: Policy) -> None:
    by_then = [f for f in facts if f.occurred_at <= at]
    assert verdict(fold(by_then, policy), at, policy).suppressed is (at < model_until(by_then, policy))


def test_nine_bounces_are_kept_with_the_default_numbers() -> None:
    assert POLICY.soft_bounces_kept == 9
    causes = fold(stops("soft_bounce", *range(1, 30)), POLICY)
    assert causes["soft_bounce"].bounces == tuple(range(21, 30))


def test_bounces_before_the_latest_clear_are_not_kept() -> None:
    facts = [*stops("soft_bounce", 1, 2, 3, 4), fact("soft_bounce", "clear", 3)]
    assert fold(facts, POLICY)["soft_bounce"].bounces == (3, 4)


@pytest.mark.parametrize(
    ("days", "suppressed"),
    [((0, 7, 14), True), ((0, 14), False), ((0, 7, 14.00002), False), ((0, 0, 0), False), ((0, 20, 27, 34), True)],
    ids=["within the window", "too few", "a second too far apart", "one and the same", "the last three"],
)
def test_three_soft_bounces_within_14_days_suppress(days: tuple[float, ...], suppressed: bool) -> None:
    times = [DAY + int(day * DAY) for day in days]
    assert judged(stops("soft_bounce", *times), max(times) + 1).suppressed is suppressed


def test_the_suppression_ends_30_days_after_the_last_bounce_that_made_it() -> None:
    facts = stops("soft_bounce", DAY, 2 * DAY, 3 * DAY, 20 * DAY)
    end = 33 * DAY
    assert judged(facts, end - 1).until == end
    assert not judged(facts, end).suppressed


# Hard bounces.


def test_a_hard_bounce_lasts_unless_it_is_given_a_lifetime() -> None:
    assert judged(stops("hard_bounce", 10), 10**10).until is None
    assert judged(stops("hard_bounce", 10), 10**10).suppressed
    mortal = POLICY._replace(hard_bounce_lifetime=5)
    assert judged(stops("hard_bounce", 10), 14, policy=mortal).until == 15
    assert not judged(stops("hard_bounce", 10), 15, policy=mortal).suppressed
    assert judged(stops("hard_bounce", 10, 13), 17, policy=mortal).until == 18


# Since and until.


@given(HISTORIES, MOMENTS, POLICIES)
def test_until_is_the_moment_of_the_change_if_nothing_else_is_said(facts: list[Fact], at: int, policy: Policy) -> None:
    found = judged(facts, at, policy=policy)
    if found.until is not None:
        assert judged(facts, found.until - 1, policy=policy).suppressed
        assert not judged(facts, found.until, policy=policy).suppressed
    assert judged(facts, 10**12, policy=policy).suppressed is (found.suppressed and found.until is None)


def test_until_is_unknown_while_one_cause_has_no_end() -> None:
    mortal = POLICY._replace(hard_bounce_lifetime=5)
    assert judged([*stops("hard_bounce", 10), *stops("complaint", 9)], 11, policy=mortal).until is None


def test_until_is_the_later_of_two_ends() -> None:
    policy = POLICY._replace(hard_bounce_lifetime=5, soft_bounce_count=1, soft_bounce_lifetime=8)
    assert judged([*stops("hard_bounce", 10), *stops("soft_bounce", 10)], 11, policy=policy).until == 18


def test_since_is_the_earliest_cause_in_force() -> None:
    facts = [*stops("complaint", 30), *stops("unsubscribe", 20), *stops("blocked", 10), fact("blocked", "clear", 11)]
    assert judged(facts, 40).since == 20


def test_a_repeated_stop_moves_since_to_the_one_that_decides() -> None:
    assert judged(stops("complaint", 10, 20), 40).since == 20


# What kind of message.


@pytest.mark.parametrize("reason", EMAIL_REASONS)
def test_only_an_unsubscribe_lets_a_transactional_mail_through(reason: str) -> None:
    policy = POLICY._replace(soft_bounce_count=1)
    assert judged(stops(reason, 10), 11, "marketing", policy).suppressed
    assert judged(stops(reason, 10), 11, "transactional", policy).suppressed is (reason != "unsubscribe")


@pytest.mark.parametrize("reason", SMS_REASONS)
def test_no_number_under_a_stop_gets_a_transactional_text(reason: str) -> None:
    assert judged([fact(reason, "suppress", 10, channel="sms")], 11, "transactional").suppressed


def test_since_and_until_are_those_of_the_causes_that_count() -> None:
    policy = POLICY._replace(hard_bounce_lifetime=50)
    facts = [*stops("unsubscribe", 10), *stops("hard_bounce", 20)]
    found = judged(facts, 30, "transactional", policy)
    assert (found.since, found.until) == (20, 70)
    assert {s.cause.reason for s in found.standings if s.active} == {"unsubscribe", "hard_bounce"}


# Nothing but facts.


@given(HISTORIES, st.lists(MOMENTS), MOMENTS, POLICIES, st.randoms())
def test_a_verdict_depends_on_facts_alone(
    facts: list[Fact], asked_before: list[int], at: int, policy: Policy, chance: random.Random
) -> None:
    causes = fold(facts, policy)
    for moment in asked_before:
        verdict(causes, moment, policy)
    grown = folded_in_pieces(facts, policy, chance)
    assert verdict(causes, at, policy) == verdict(grown, at, policy)


# Retraction.


@given(HISTORIES, HISTORIES, POLICIES)
def test_a_retraction_leaves_what_the_other_facts_say(kept: list[Fact], undone: list[Fact], policy: Policy) -> None:
    assert retract(kept + undone, frozenset(undone), policy) == fold([f for f in kept if f not in undone], policy)


@given(HISTORIES, HISTORIES, POLICIES)
def test_a_retraction_is_never_a_clear(facts: list[Fact], undone: list[Fact], policy: Policy) -> None:
    clears = {f.occurred_at for f in facts if f.action == "clear" and f not in undone}
    left = retract(facts + undone, frozenset(undone), policy)
    assert {cause.clear_at for cause in left.values() if cause.clear_at is not None} <= clears


def test_a_stop_that_arrives_after_a_retraction_wins_though_it_is_older() -> None:
    imported, late = stops("unsubscribe", 50), stops("unsubscribe", 20)
    left = retract(imported, frozenset(imported), POLICY)
    assert left == {}
    found = verdict(merged([left, fold(late, POLICY)], POLICY), 60, POLICY)
    assert (found.suppressed, found.since) == (True, 20)
    # A clear in its place would have let the person be messaged.
    assert not judged([*imported, fact("unsubscribe", "clear", 51), *late], 60).suppressed


def test_an_opt_in_can_be_undone_and_the_stop_stands_again() -> None:
    facts = [*stops("complaint", 10), fact("complaint", "clear", 20)]
    assert not judged(facts, 30).suppressed
    assert verdict(retract(facts, frozenset(facts[1:]), POLICY), 30, POLICY).since == 10


def test_undoing_a_clear_brings_back_the_bounces_before_it() -> None:
    facts = [*stops("soft_bounce", 1, 2, 3), fact("soft_bounce", "clear", 9)]
    assert fold(facts, POLICY)["soft_bounce"].bounces == ()
    assert retract(facts, frozenset(facts[3:]), POLICY)["soft_bounce"].bounces == (1, 2, 3)
