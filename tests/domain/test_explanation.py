"""The sentence behind a verdict: it names the rule that decided, and never says another thing than the verdict."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.domain.explanation import Rule, Teller, explain
from service.domain.suppression import DAY, Cause, Policy, Purpose, fold, verdict
from tests.domain.test_suppression import HISTORIES, MOMENTS, POLICIES

POLICY = Policy(hard_bounce_lifetime=30 * DAY)
NOW = 100 * DAY

STORIES: dict[str, tuple[list[Cause], Purpose, Rule, str]] = {
    "nothing": ([], "marketing", "never-stopped", "May be messaged: nobody ever told us to stop."),
    "a stop": (
        [Cause("unsubscribe", 90 * DAY)],
        "marketing",
        "until-cleared",
        (
            "May not be messaged: this person unsubscribed on 1 April 1970 at 00:00 UTC; Kahuna, which sends "
            "our messages, told us so. This stands until a newer consent is recorded."
        ),
    ),
    "the lasting one of two": (
        [Cause("hard_bounce", 90 * DAY), Cause("complaint", 80 * DAY)],
        "marketing",
        "until-cleared",
        (
            "May not be messaged: this person reported a message as spam on 22 March 1970 at 00:00 UTC; Kahuna, "
            "which sends our messages, told us so. This stands until a newer consent is recorded. Besides, there is a "
            "hard bounce."
        ),
    ),
    "a bounce that counts": (
        [Cause("hard_bounce", 90 * DAY)],
        "marketing",
        "hard-bounce-lifetime",
        (
            "May not be messaged: a message came back as undeliverable for good (a hard bounce) on 1 April "
            "1970 at 00:00 UTC; Kahuna, which sends our messages, told us so. "
            "This ends by itself on 1 May 1970 at 00:00 UTC."
        ),
    ),
    "a bounce that counted": (
        [Cause("hard_bounce", 10 * DAY)],
        "marketing",
        "lapsed",
        (
            "May be messaged: a message came back as undeliverable for good (a hard bounce) on 11 January "
            "1970 at 00:00 UTC; Kahuna, which sends our messages, told us so. "
            "That counted until 10 February 1970 at 00:00 UTC only."
        ),
    ),
    "soft bounces": (
        [Cause("soft_bounce", 99 * DAY, None, (80 * DAY, 81 * DAY, 82 * DAY, 99 * DAY))],
        "marketing",
        "repeated-soft-bounces",
        (
            "May not be messaged: 3 or more messages came back as undeliverable for now (soft bounces) within 14 days, "
            "the last on 24 March 1970 at 00:00 UTC; Kahuna, which sends our messages, told us so. "
            "This ends by itself on 23 April 1970 at 00:00 UTC."
        ),
    ),
    "two soft bounces": (
        [Cause("soft_bounce", 90 * DAY, None, (89 * DAY, 90 * DAY))],
        "marketing",
        "too-few-soft-bounces",
        (
            "May be messaged: a message came back as undeliverable for now (a soft bounce) on 1 April 1970 at "
            "00:00 UTC, but never 3 within 14 days."
        ),
    ),
    "a consent": (
        [Cause("unsubscribe", 90 * DAY, 95 * DAY)],
        "marketing",
        "cleared",
        (
            "May be messaged: on 6 April 1970 at 00:00 UTC a consent was given, which ended what came before it; "
            "Kahuna, which sends our messages, told us so."
        ),
    ),
    "a consent and nothing else": (
        [Cause("unsubscribe", None, 95 * DAY)],
        "marketing",
        "cleared",
        (
            "May be messaged: on 6 April 1970 at 00:00 UTC a consent was given, and no stop is known; "
            "Kahuna, which sends our messages, told us so."
        ),
    ),
    "a password reset": (
        [Cause("unsubscribe", 90 * DAY), Cause("soft_bounce", 95 * DAY, None, (95 * DAY,))],
        "transactional",
        "marketing-only",
        (
            "A transactional message may be sent: this person unsubscribed on 1 April 1970 at 00:00 UTC; Kahuna, "
            "which sends our messages, told us so. That counts for marketing alone."
        ),
    ),
}


@pytest.mark.parametrize(("causes", "purpose", "rule", "sentence"), STORIES.values(), ids=STORIES)
def test_the_rule_that_decided_is_told(causes: list[Cause], purpose: Purpose, rule: Rule, sentence: str) -> None:
    judged = verdict({one.reason: one for one in causes}, NOW, POLICY, purpose)
    found = explain(judged, {one.reason: Teller("kahuna_webhook") for one in causes}, POLICY, purpose)
    assert (found.rule, found.sentence) == (rule, sentence)


@pytest.mark.parametrize(("waiting", "told"), [(0, "to stop."), (1, "An opt-in waits"), (2, "2 opt-ins wait")])
def test_an_opt_in_that_waits_is_told_along(waiting: int, told: str) -> None:
    assert told in explain(verdict({}, NOW, POLICY), {}, POLICY, waiting=waiting).sentence


@pytest.mark.parametrize(
    ("teller", "told"),
    [
        (Teller("api", "orders"), "our service orders said so"),
        (Teller("api"), "one of our own services said so"),
        (Teller("import", "old.csv"), "the imported file old.csv said so"),
        (Teller("import"), "a list that was imported said so"),
    ],
)
def test_who_said_so_has_a_name_if_one_is_known(teller: Teller, told: str) -> None:
    judged = verdict({"manual": Cause("manual", 1)}, NOW, POLICY)
    assert told in explain(judged, {"manual": teller}, POLICY).sentence


def test_who_said_so_may_be_unknown() -> None:
    judged = verdict({"manual": Cause("manual", 1)}, NOW, POLICY)
    assert "who said so is not recorded" in explain(judged, {"manual": Teller(None)}, POLICY).sentence


@given(HISTORIES, MOMENTS, POLICIES, st.sampled_from(["marketing", "transactional"]))
def test_the_sentence_says_what_the_verdict_says(history: list, at: int, policy: Policy, purpose: Purpose) -> None:  # type: ignore[type-arg]
    judged = verdict(fold(history, policy), at, policy, purpose)
    found = explain(judged, {}, policy, purpose)
    assert found.sentence.startswith("May not be messaged") == judged.suppressed
    assert (found.reason is None) == (not judged.standings)


def test_of_the_reasons_that_a_consent_ended_the_one_that_stopped_is_named() -> None:
    causes = [
        Cause("blocked", None, 95 * DAY),
        Cause("manual", 90 * DAY, 95 * DAY),
        Cause("unsubscribe", None, 95 * DAY),
    ]
    found = explain(verdict({one.reason: one for one in causes}, NOW, POLICY), {}, POLICY)
    assert (found.rule, found.reason) == ("cleared", "manual")
