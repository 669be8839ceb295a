"""Which time a fact gets, which reasons there are, and where the other side files them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.domain.addresses import CHANNELS, Channel
from service.domain.facts import FUTURE_TOLERANCE, Action, home_of, occurred_at, reasons_of, standing_time

RECEIVED = 1_700_000_000

TRUSTED = {
    "now": (RECEIVED, RECEIVED),
    "the first second": (1, 1),
    "exactly the tolerance ahead": (RECEIVED + 300, RECEIVED + 300),
    "milliseconds": (RECEIVED * 1000, RECEIVED),
    "milliseconds, truncated": (RECEIVED * 1000 + 999, RECEIVED),
    "milliseconds within the tolerance": ((RECEIVED + 300) * 1000 + 999, RECEIVED + 300),
    "the least of thirteen digits": (10**12, 10**9),
}

UNTRUSTED = {
    "missing": None,
    "zero": 0,
    "negative": -1,
    "one second over the tolerance": RECEIVED + 301,
    "milliseconds over the tolerance": (RECEIVED + 301) * 1000,
    "twelve digits are seconds": 10**12 - 1,
    "the last of thirteen digits": 10**13 - 1,
    "fourteen digits": RECEIVED * 10_000,
    "negative milliseconds": -RECEIVED * 1000,
    "beyond any integer of a database": 10**30,
}


@pytest.mark.parametrize(("claimed", "expected"), TRUSTED.values(), ids=TRUSTED)
@pytest.mark.parametrize("action", ["suppress", "clear"])
def test_a_time_that_can_stand_is_the_facts_own(action: Action, claimed: int, expected: int) -> None:
    assert occurred_at(action, claimed, RECEIVED) == expected


@pytest.mark.parametrize("claimed", UNTRUSTED.values(), ids=UNTRUSTED)
def test_a_stop_without_such_a_time_takes_that_of_its_receipt(claimed: int | None) -> None:
    assert standing_time(claimed, RECEIVED) is None
    assert occurred_at("suppress", claimed, RECEIVED) == RECEIVED


@pytest.mark.parametrize("claimed", UNTRUSTED.values(), ids=UNTRUSTED)
def test_an_opt_in_without_such_a_time_waits_for_a_person(claimed: int | None) -> None:
    assert occurred_at("clear", claimed, RECEIVED) is None


@given(st.none() | st.integers(-(10**16), 10**16) | st.integers(RECEIVED - 500, RECEIVED + 500))
def test_no_fact_is_dated_before_the_epoch_or_past_the_tolerance(claimed: int | None) -> None:
    actions: tuple[Action, ...] = ("suppress", "clear")
    for action in actions:
        at = occurred_at(action, claimed, RECEIVED)
        assert at is None or 0 < at <= RECEIVED + FUTURE_TOLERANCE


@given(st.none() | st.integers(-10, 10**14), st.integers(0, 10**6))
def test_a_replay_with_the_stored_receipt_dates_a_stop_as_before(claimed: int | None, waited: int) -> None:
    # However long it waited: the time of receipt is an argument, and nothing else is asked for the time.
    first = occurred_at("suppress", claimed, RECEIVED)
    later = occurred_at("suppress", claimed, RECEIVED + waited)
    assert occurred_at("suppress", claimed, RECEIVED) == first
    assert later == first or standing_time(claimed, RECEIVED) is None


def test_the_reasons_are_those_of_the_contract() -> None:
    words = "unsubscribe, hard_bounce, soft_bounce, complaint, invalid, blocked, rejected, manual"
    assert ", ".join(reasons_of("email")) == words
    assert ", ".join(reasons_of("sms")) == "do_not_call, invalid, manual"


@pytest.mark.parametrize("channel", CHANNELS)
def test_every_reason_is_filed_under_one_that_is_its_own_home(channel: Channel) -> None:
    homes = {home_of(channel, reason) for reason in reasons_of(channel)}
    assert homes == ({"do_not_call"} if channel == "sms" else set(reasons_of("email")) - {"manual"})
    assert all(home_of(channel, home) == home for home in homes)


def test_a_manual_stop_goes_out_as_an_unsubscribe() -> None:
    assert home_of("email", "manual") == "unsubscribe"
