"""What each side is owed, and what follows from an answer: nothing twice, nothing too early, nothing for ever."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from service.domain.addresses import CHANNELS, Channel
from service.domain.corrections import (
    Correction,
    Dead,
    Failure,
    Halt,
    Marks,
    Retry,
    RetryPolicy,
    Slot,
    Split,
    after_failure,
    backoff,
    halves,
    owed,
    sayable,
    slots_of,
)
from service.domain.facts import Action, Fact, home_of, reasons_of
from service.domain.suppression import Cause, Policy, fold, verdict

POLICY = Policy()
RETRIES = RetryPolicy()
NOW = 100

MOMENTS = st.integers(1, 60)
MAYBE = st.none() | MOMENTS
MARKS = st.builds(Marks, MAYBE, MAYBE)
ACTIONS: st.SearchStrategy[Action] = st.sampled_from(["suppress", "clear"])
CORRECTIONS = st.builds(Correction, ACTIONS, MOMENTS)
SLOTS = st.builds(Slot, MARKS, MARKS, st.none())
POLICIES = st.builds(
    Policy,
    soft_bounce_count=st.integers(1, 3),
    soft_bounce_window=st.integers(1, 30),
    soft_bounce_lifetime=st.integers(1, 200),
    hard_bounce_lifetime=st.none() | st.integers(1, 200),
)
CHANNEL: st.SearchStrategy[Channel] = st.sampled_from(CHANNELS)


def causes(channel: Channel, *said: tuple[str, Action, int]) -> dict[str, Cause]:
    """What these local statements add up to."""
    return fold((Fact("default", channel, "x", reason, action, at, "local") for reason, action, at in said), POLICY)


@st.composite
def situations(draw: st.DrawFn) -> tuple[Channel, dict[str, Cause], str, Slot, Policy]:
    """A channel, the causes of an address, one of its slots, and what the vendor may hold for that."""
    channel, policy = draw(CHANNEL), draw(POLICIES)
    reasons = st.sampled_from(reasons_of(channel))
    said = draw(st.lists(st.tuples(reasons, ACTIONS, MOMENTS), min_size=1, max_size=12))
    facts = (Fact("default", channel, "x", reason, action, at, "local") for reason, action, at in said)
    name = home_of(channel, draw(st.sampled_from([reason for reason, _, _ in said])))
    return channel, fold(facts, policy), name, draw(SLOTS), policy


def stopped_here(channel: Channel, known: dict[str, Cause], name: str, policy: Policy) -> bool:
    """Whether a cause that is told in this slot is in force."""
    standings = verdict(known, NOW, policy).standings
    return any(s.active and home_of(channel, s.cause.reason) == name for s in standings)


# The vendor's own words are never told back.


@given(st.dictionaries(MOMENTS, ACTIONS, min_size=1), POLICIES)
def test_texts_that_the_vendor_told_us_are_never_echoed(said: dict[int, Action], policy: Policy) -> None:
    facts = [Fact("default", "sms", "1555", "do_not_call", action, at, "kahuna") for at, action in said.items()]
    known = fold(facts, policy)["do_not_call"]
    slot = Slot(held=Marks(known.stop_at, known.clear_at))
    assert owed("sms", {"do_not_call": known}, "do_not_call", slot, NOW, policy) is None


@given(st.lists(st.tuples(st.sampled_from([r for r in reasons_of("email") if r != "manual"]), MOMENTS)), POLICIES)
def test_mail_that_the_vendor_told_us_of_is_never_echoed(said: list[tuple[str, int]], policy: Policy) -> None:
    facts = [Fact("default", "email", "a@b", reason, "suppress", at, "kahuna") for reason, at in said]
    known = fold(facts, policy)
    for name in slots_of("email", known):
        slot = Slot(held=Marks(stop_at=known[name].stop_at))
        assert owed("email", known, name, slot, NOW, policy) is None


def test_a_stop_and_an_opt_in_of_one_second_prove_nothing_so_the_stop_is_told() -> None:
    known = causes("sms", ("do_not_call", "suppress", 10), ("do_not_call", "clear", 10))
    slot = Slot(held=Marks(10, 10))
    assert owed("sms", known, "do_not_call", slot, NOW, POLICY) == Correction("suppress", 11)


# Stops.


@given(situations())
def test_a_stop_is_owed_exactly_where_the_vendor_may_still_send(
    situation: tuple[Channel, dict[str, Cause], str, Slot, Policy],
) -> None:
    channel, known, name, slot, policy = situation
    assume(stopped_here(channel, known, name, policy))
    found = owed(channel, known, name, slot, NOW, policy)
    assert (found is not None and found.action == "suppress") is not slot.surely_stopped


@pytest.mark.parametrize(
    ("held", "sent", "expected"),
    [
        (Marks(), Marks(), 10),
        (Marks(stop_at=10), Marks(), None),
        (Marks(stop_at=5), Marks(), None),
        (Marks(stop_at=50), Marks(), None),
        (Marks(clear_at=5), Marks(), 10),
        (Marks(clear_at=10), Marks(), 11),
        (Marks(clear_at=50), Marks(), 51),
        (Marks(stop_at=10, clear_at=50), Marks(), 51),
        (Marks(stop_at=51, clear_at=50), Marks(), None),
        (Marks(), Marks(stop_at=10), 10),
        (Marks(stop_at=10), Marks(clear_at=50), 51),
        (Marks(stop_at=10), Marks(clear_at=9), None),
    ],
)
def test_a_stop_is_dated_after_every_opt_in_that_the_vendor_may_hold(
    held: Marks, sent: Marks, expected: int | None
) -> None:
    known = causes("sms", ("manual", "suppress", 10))
    stop = None if expected is None else Correction("suppress", expected)
    assert owed("sms", known, "do_not_call", Slot(held, sent), NOW, POLICY) == stop


def test_the_latest_stop_of_a_slot_is_the_one_told() -> None:
    known = causes("sms", ("manual", "suppress", 10), ("invalid", "suppress", 30), ("do_not_call", "suppress", 20))
    assert owed("sms", known, "do_not_call", Slot(), NOW, POLICY) == Correction("suppress", 30)


def test_each_word_of_a_mailbox_is_a_slot_of_its_own() -> None:
    known = causes("email", ("manual", "suppress", 10), ("complaint", "suppress", 20), ("unsubscribe", "suppress", 5))
    assert {name: {c.reason for c in mine} for name, mine in slots_of("email", known).items()} == {
        "unsubscribe": {"manual", "unsubscribe"},
        "complaint": {"complaint"},
    }
    assert owed("email", known, "unsubscribe", Slot(), NOW, POLICY) == Correction("suppress", 10)
    assert owed("email", known, "complaint", Slot(), NOW, POLICY) == Correction("suppress", 20)


def test_too_few_soft_bounces_are_not_told() -> None:
    two = causes("email", ("soft_bounce", "suppress", 10), ("soft_bounce", "suppress", 20))
    assert owed("email", two, "soft_bounce", Slot(), NOW, POLICY) is None
    three = causes("email", *(("soft_bounce", "suppress", at) for at in (10, 20, 30)))
    assert owed("email", three, "soft_bounce", Slot(), NOW, POLICY) == Correction("suppress", 30)


# Opt-ins.


@pytest.mark.parametrize(
    ("held", "sent", "expected"),
    [
        (Marks(), Marks(), None),
        (Marks(stop_at=10), Marks(), 20),
        (Marks(stop_at=10, clear_at=5), Marks(), 20),
        (Marks(stop_at=10, clear_at=10), Marks(), 20),
        (Marks(stop_at=10, clear_at=11), Marks(), None),
        (Marks(stop_at=20), Marks(), 21),
        (Marks(stop_at=51), Marks(), 52),
        (Marks(), Marks(stop_at=10), 20),
        (Marks(), Marks(stop_at=30), 31),
        (Marks(stop_at=10), Marks(clear_at=20), 20),
        (Marks(clear_at=40), Marks(stop_at=30), None),
    ],
)
def test_an_opt_in_is_dated_after_every_stop_that_the_vendor_may_hold(
    held: Marks, sent: Marks, expected: int | None
) -> None:
    known = causes("sms", ("do_not_call", "suppress", 10), ("do_not_call", "clear", 20))
    opt_in = None if expected is None else Correction("clear", expected)
    assert owed("sms", known, "do_not_call", Slot(held, sent), NOW, POLICY) == opt_in


@given(situations())
def test_nothing_opens_while_any_cause_suppresses(
    situation: tuple[Channel, dict[str, Cause], str, Slot, Policy],
) -> None:
    channel, known, name, slot, policy = situation
    found = owed(channel, known, name, slot, NOW, policy)
    assert found is None or found.action == "suppress" or not verdict(known, NOW, policy).suppressed


def test_a_cleared_word_stays_closed_while_another_one_suppresses() -> None:
    held = Slot(held=Marks(stop_at=10))
    cleared = causes("email", ("unsubscribe", "suppress", 10), ("unsubscribe", "clear", 20))
    assert owed("email", cleared, "unsubscribe", held, NOW, POLICY) == Correction("clear", 20)
    complained = cleared | causes("email", ("complaint", "suppress", 5))
    assert owed("email", complained, "unsubscribe", held, NOW, POLICY) is None


def test_a_bounce_that_stops_nobody_is_not_opened_by_an_older_clear() -> None:
    known = causes("email", ("soft_bounce", "clear", 10), ("soft_bounce", "suppress", 20))
    held = Slot(Marks(stop_at=20))
    assert owed("email", known, "soft_bounce", held, NOW, POLICY) is None
    known = causes("email", ("soft_bounce", "suppress", 20), ("soft_bounce", "clear", 30))
    assert owed("email", known, "soft_bounce", held, NOW, POLICY) == Correction("clear", 30)


def test_without_a_clear_of_ours_nothing_opens() -> None:
    # A bounce that lapsed is no consent: the vendor keeps its stop.
    mortal = POLICY._replace(hard_bounce_lifetime=5)
    known = causes("email", ("hard_bounce", "suppress", 10))
    assert owed("email", known, "hard_bounce", Slot(held=Marks(stop_at=10)), NOW, mortal) is None
    assert owed("email", {}, "hard_bounce", Slot(held=Marks(stop_at=10)), NOW, POLICY) is None


@pytest.mark.parametrize(
    ("channel", "action", "said"),
    [("email", "suppress", True), ("email", "clear", False), ("sms", "suppress", True), ("sms", "clear", True)],
)
def test_an_email_opt_in_is_all_that_cannot_be_said(channel: Channel, action: Action, said: bool) -> None:
    assert sayable(channel, action) is said


# Convergence.


@given(situations())
def test_one_accepted_correction_settles_a_slot(
    situation: tuple[Channel, dict[str, Cause], str, Slot, Policy],
) -> None:
    channel, known, name, slot, policy = situation
    first = owed(channel, known, name, slot, NOW, policy)
    assume(first is not None)
    assert first is not None
    told = Slot(slot.held.join(first.marks), slot.sent.join(first.marks))
    assert owed(channel, known, name, told, NOW, policy) is None
    assert told.surely_stopped if first.action == "suppress" else told.surely_open


@given(situations())
def test_a_correction_that_is_on_its_way_is_not_owed_again(
    situation: tuple[Channel, dict[str, Cause], str, Slot, Policy],
) -> None:
    channel, known, name, slot, policy = situation
    first = owed(channel, known, name, slot, NOW, policy)
    assume(first is not None)
    assert first is not None
    sending = Slot(slot.held, slot.sent.join(first.marks), first)
    assert owed(channel, known, name, sending, NOW, policy) is None


@given(situations(), CORRECTIONS)
def test_whatever_is_in_flight_only_delays_what_it_would_settle(
    situation: tuple[Channel, dict[str, Cause], str, Slot, Policy], flying: Correction
) -> None:
    channel, known, name, slot, policy = situation
    sent = slot.sent.join(flying.marks)
    waiting = owed(channel, known, name, Slot(slot.held, sent, flying), NOW, policy)
    lost = owed(channel, known, name, Slot(slot.held, sent), NOW, policy)
    landed = owed(channel, known, name, Slot(slot.held.join(flying.marks), sent), NOW, policy)
    assert waiting == (lost if landed is not None else None)


def test_a_stop_does_not_wait_for_an_opt_in_that_is_in_flight() -> None:
    known = causes("sms", ("do_not_call", "clear", 20), ("do_not_call", "suppress", 30))
    flying = Correction("clear", 40)
    slot = Slot(Marks(stop_at=10), flying.marks, flying)
    assert owed("sms", known, "do_not_call", slot, NOW, POLICY) == Correction("suppress", 41)


def test_a_stop_waits_for_the_stop_that_is_in_flight() -> None:
    known = causes("sms", ("do_not_call", "suppress", 30))
    flying = Correction("suppress", 10)
    assert owed("sms", known, "do_not_call", Slot(Marks(), flying.marks, flying), NOW, POLICY) is None


# Bounds.


@given(SLOTS)
def test_nothing_is_surely_stopped_and_surely_open_at_once(slot: Slot) -> None:
    assert not (slot.surely_stopped and slot.surely_open)


@given(MARKS, MARKS, MARKS)
def test_joining_marks_is_associative_commutative_and_idempotent(a: Marks, b: Marks, c: Marks) -> None:
    assert a.join(b).join(c) == a.join(b.join(c))
    assert a.join(b) == b.join(a)
    assert a.join(a) == a == a.join(Marks())


# Answers that are no result.


@pytest.mark.parametrize(
    ("failure", "size", "attempts", "expected"),
    [
        ("credentials", 1, 1, Halt(60.0)),
        ("credentials", 5000, 99, Halt(60.0)),
        ("body", 2, 1, Split()),
        ("body", 1, 1, Dead("bad-request")),
        ("size", 2, 1, Split()),
        ("size", 1, 1, Dead("too-large")),
        ("busy", 1, 1, Retry(0.5)),
        ("busy", 5000, 10**6, Retry(450.0)),
        ("unproved", 2, 3, Retry(2.0)),
        ("unproved", 1, 10**6, Retry(450.0)),
        ("unreadable", 2, 9, Retry(128.0)),
        ("unreadable", 2, 10, Dead("unreadable-answer")),
        ("unreadable", 1, 11, Dead("unreadable-answer")),
    ],
)
def test_what_follows_from_a_failure(
    failure: Failure, size: int, attempts: int, expected: Retry | Halt | Split | Dead
) -> None:
    assert after_failure(failure, size, attempts, None, 0.0, RETRIES) == expected


ATTEMPTS = st.integers(0, 40) | st.integers(0, 10**9)
JITTERS = st.floats(0, 1, exclude_max=True)
ASKED = st.none() | st.floats(0, 1e9)
PACES = st.builds(RetryPolicy, st.floats(0.01, 60), st.floats(60, 5000))


@given(ATTEMPTS, ASKED, JITTERS, PACES)
def test_a_wait_is_within_its_bounds(attempts: int, asked: float | None, jitter: float, pace: RetryPolicy) -> None:
    delay = backoff(attempts, asked, jitter, pace)
    doubled = pace.first_delay * 2 ** min(max(attempts - 1, 0), 30)
    assert min(doubled, pace.longest_delay) / 2 <= delay <= pace.longest_delay
    if asked is None:
        assert delay <= doubled


@given(ATTEMPTS, st.floats(0, 1e9), JITTERS, PACES)
def test_the_vendor_is_not_asked_before_it_said_within_the_cap(
    attempts: int, asked: float, jitter: float, pace: RetryPolicy
) -> None:
    assert backoff(attempts, asked, jitter, pace) >= min(asked, pace.longest_delay)


@given(st.integers(1, 10**6), JITTERS, PACES)
def test_waits_never_shrink_from_one_attempt_to_the_next(attempts: int, jitter: float, pace: RetryPolicy) -> None:
    assert backoff(attempts, None, jitter, pace) <= backoff(attempts + 1, None, jitter, pace)


def test_jitter_spreads_a_wait_over_its_upper_half() -> None:
    assert [backoff(3, None, jitter, RETRIES) for jitter in (0.0, 0.5, 1.0)] == [2.0, 3.0, 4.0]


@given(st.lists(st.integers(), min_size=2))
def test_both_halves_hold_something_and_together_everything(items: list[int]) -> None:
    left, right = halves(items)
    assert left
    assert right
    assert [*left, *right] == items
