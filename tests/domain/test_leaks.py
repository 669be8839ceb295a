"""When a message was a leak: somebody knew of a stop in force when it went out."""

from hypothesis import given
from hypothesis import strategies as st

from service.domain.facts import SAME_EVENT, Action, Fact, Source
from service.domain.leaks import Told, leak
from service.domain.suppression import Policy

POLICY = Policy()
SENT = 1_000_000


def told(
    at: int,
    reason: str = "unsubscribe",
    action: Action = "suppress",
    source: Source = "kahuna",
    recorded: int = SENT,
    accepted: int | None = None,
) -> Told:
    return Told(Fact("default", "email", "a@example.com", reason, action, at, source), recorded, accepted)


def known_by(*facts: Told, policy: Policy = POLICY) -> str | None:
    found = leak(facts, SENT, policy)
    return None if found is None else found.known_by


def test_what_kahuna_told_it_knew_from_when_it_happened() -> None:
    assert known_by(told(SENT - 301)) == "kahuna"
    assert known_by(told(SENT - 300)) is None
    assert known_by(told(SENT + 1)) is None


def test_what_we_told_it_knew_from_when_it_accepted_that() -> None:
    ours = told(10, source="local", recorded=20, accepted=SENT - 301)
    assert known_by(ours) == "kahuna"
    assert known_by(ours._replace(accepted_at=SENT - 300)) == "us"
    assert known_by(ours._replace(accepted_at=SENT + 5, recorded_at=SENT - 300)) is None


def test_nobody_is_blamed_for_what_nobody_knew() -> None:
    assert known_by(told(10, source="local", recorded=SENT)) is None


def test_a_consent_counts_from_when_it_was_given_whoever_heard_of_it() -> None:
    consent = told(SENT - 1000, action="clear", source="local", recorded=SENT + 99)
    assert known_by(told(SENT - 2000), consent) is None
    assert known_by(told(SENT - 1000), consent) == "kahuna"
    assert known_by(told(SENT - 2000, reason="complaint"), consent) == "kahuna"


def test_soft_bounces_are_no_wish_and_a_hard_one_may_lapse() -> None:
    assert known_by(*(told(SENT - 1000 - n, reason="soft_bounce") for n in range(5))) is None
    hard = told(SENT - 5000, reason="hard_bounce")
    assert known_by(hard) == "kahuna"
    assert known_by(hard, policy=Policy(hard_bounce_lifetime=5000)) is None


def test_the_one_known_for_the_longest_is_told() -> None:
    found = leak([told(SENT - 400), told(SENT - 900), told(SENT - 100)], SENT, POLICY)
    assert found is not None
    assert found.known_since == SENT - 900


FACTS = st.builds(
    told,
    st.integers(SENT - 2000, SENT + 500),
    st.sampled_from(["unsubscribe", "hard_bounce", "soft_bounce", "manual"]),
    st.sampled_from(["suppress", "clear"]),
    st.sampled_from(["kahuna", "local"]),
    st.integers(SENT - 2000, SENT + 500),
    st.none() | st.integers(SENT - 2000, SENT + 500),
)


@given(st.lists(FACTS, max_size=12, unique_by=lambda one: one.fact))
def test_the_order_of_the_facts_does_not_matter_and_what_is_told_is_true(facts: list[Told]) -> None:
    found = leak(facts, SENT, POLICY)
    assert leak(reversed(facts), SENT, POLICY) == found
    if found is not None:
        stop = found.told.fact
        assert stop.action == "suppress"
        assert max(found.known_since, stop.occurred_at) + SAME_EVENT < SENT
        consents = [f.fact.occurred_at for f in facts if (f.fact.action, f.fact.reason) == ("clear", stop.reason)]
        assert not any(stop.occurred_at < at <= SENT for at in consents)
