"""The rules of merging, of time and of reviews, seen from outside (design.md 3)."""

from __future__ import annotations

import random
import time
from typing import Any

import pytest

from .speaking import DAY, Voice, a_number, ago, an_email, seconds_of, started, stopped, told
from .test_status import assert_problem

MAIL_WORDS = [
    "unsub",
    "hard_bounce",
    "soft_bounce",
    "soft_bounce",
    "soft_bounce",
    "spam",
    "invalid",
    "blocked",
    "reject",
]


def facts_of(random_one: random.Random, emails: list[str], numbers: list[str]) -> list[tuple[str, dict[str, Any]]]:
    """Facts at few distinct times, so that ties are frequent."""
    newest = ago(DAY)
    found: list[tuple[str, dict[str, Any]]] = []
    for _ in range(180):
        moment = newest - random_one.randrange(40) * (DAY // 2)
        if random_one.random() < 0.5:
            found.append(("email", told(random_one.choice(emails), moment, random_one.choice(MAIL_WORDS))))
        else:
            shape = random_one.choice([started, stopped])
            found.append(("sms", shape(random_one.choice(numbers), moment)))
    return found


def deliver_shuffled(voice: Voice, random_one: random.Random, facts: list[tuple[str, dict[str, Any]]]) -> None:
    """Deliver all facts in a random order and random groups, some of them again."""
    order = facts + random_one.sample(facts, len(facts) // 3)
    random_one.shuffle(order)
    while order:
        size = random_one.randrange(1, 12)
        group, order = order[:size], order[size:]
        for channel in ("email", "sms"):
            entries = [entry for one, entry in group if one == channel]
            if entries:
                voice.callback(channel, entries)


def comparable(status: dict[str, Any]) -> dict[str, Any]:
    """A status without what depends on when and in which batch a fact came."""
    causes = [
        {key: one[key] for key in ("reason", "active", "occurred_at", "origin", "until")} for one in status["causes"]
    ]
    kept = {key: status[key] for key in ("channel", "address", "suppressed", "since", "until")}
    return {**kept, "causes": sorted(causes, key=lambda one: str(one["reason"]))}


@pytest.mark.parametrize("seed", [1, 2])
def test_any_order_and_any_grouping_give_the_same_list(left: Voice, right: Voice, seed: int) -> None:
    """design 3: any order, any repetition, same list; 5.4: exactly one effect."""
    random_one = random.Random(seed)
    emails, numbers = [an_email("shuffle") for _ in range(6)], [a_number() for _ in range(8)]
    facts = facts_of(random_one, emails, numbers)
    deliver_shuffled(left, random_one, facts)
    deliver_shuffled(right, random_one, facts)
    asked = [("email", one) for one in emails] + [("sms", one) for one in numbers]
    for channel, address in asked:
        expected = [entry for one, entry in facts if one == channel and address in entry.values()]
        found = comparable(left.status(channel, address))
        assert found == comparable(right.status(channel, address)), sorted(expected, key=str)
        if channel == "sms":
            newest = max(entry["timestamp"] for entry in expected)
            stop_stands = any(entry["timestamp"] == newest and "opt-in" not in entry for entry in expected)
            assert found["suppressed"] is stop_stands, sorted(expected, key=str)


@pytest.mark.parametrize("stop_first", [True, False])
@pytest.mark.parametrize(("later", "suppressed"), [(-30, True), (0, True), (30, False)])
def test_the_latest_fact_wins_and_at_one_second_the_protective(
    plain: Voice, stop_first: bool, later: int, suppressed: bool
) -> None:
    """design 3: the latest fact wins; at the same second the protective one."""
    number, moment = a_number(), ago(3600)
    facts = [stopped(number, moment), started(number, moment + later)]
    for fact in facts if stop_first else reversed(facts):
        plain.callback("sms", [fact])
    assert plain.suppressed("sms", number) is suppressed


def test_stop_and_start_of_one_batch(plain: Voice) -> None:
    """design 3: at the same second the protective one, in one batch in either order."""
    for facts in ([stopped, started], [started, stopped]):
        number, moment = a_number(), ago(60)
        plain.callback("sms", [shape(number, moment) for shape in facts])
        assert plain.suppressed("sms", number)


@pytest.mark.parametrize("stamp", [None, 0, -5, "ahead", "far ahead"])
def test_an_untimed_stop_takes_the_time_of_receipt(plain: Voice, stamp: object) -> None:
    """design 3: missing, zero, negative or further ahead: a *stop* takes the receipt time stored with its batch."""
    number, begun = a_number(), int(time.time())
    entry: dict[str, Any] = {"number": number}
    if stamp is not None:
        entry["timestamp"] = {"ahead": begun + 900, "far ahead": 10**30}.get(str(stamp), stamp)
    assert plain.callback("sms", [entry])["accepted"] == 1
    occurred = seconds_of(plain.cause("sms", number, "do_not_call")["occurred_at"])
    assert begun - 1 <= occurred <= time.time() + 1
    again = plain.callback("sms", [entry])
    assert (again["accepted"], again["duplicates"]) == (0, 1)
    assert seconds_of(plain.cause("sms", number, "do_not_call")["occurred_at"]) == occurred


def test_a_clock_slightly_ahead_is_believed(plain: Voice) -> None:
    """design 3: up to 300 s ahead of the clock the claimed time stands."""
    number, moment = a_number(), ago(-200)
    plain.callback("sms", [stopped(number, moment)])
    assert seconds_of(plain.cause("sms", number, "do_not_call")["occurred_at"]) == moment
    assert plain.suppressed("sms", number)


def test_milliseconds_are_understood(plain: Voice) -> None:
    """design 3: Unix seconds, 13 digits are milliseconds, truncated to whole seconds at the door."""
    address, moment = an_email(), ago(60)
    plain.callback("email", [told(address, moment * 1000 + 999)])
    assert seconds_of(plain.cause("email", address, "unsubscribe")["occurred_at"]) == moment
    assert plain.callback("email", [told(address, moment)])["duplicates"] == 1


def test_an_untimed_opt_in_is_held_and_never_clears(plain: Voice) -> None:
    """design 3: an *opt-in* is held for review, since a fresh receipt time would make it win over later stops."""
    number = a_number()
    plain.callback("sms", [stopped(number, ago(600))])
    entries = [{"number": number, "opt-in": True}]
    assert plain.callback("sms", entries)["accepted"] == 1, "`accepted` are new facts (also those that are held)"
    assert plain.suppressed("sms", number)
    assert plain.reviews(number)
    plain.callback("sms", [stopped(number, ago(300))])
    assert plain.callback("sms", entries)["duplicates"] == 1
    assert plain.suppressed("sms", number)


@pytest.mark.parametrize("stamp", [0, -1, 10**11])
def test_an_opt_in_with_an_unusable_time_is_held(plain: Voice, stamp: int) -> None:
    """design 3: missing, zero, negative or further ahead: an *opt-in* is held for review."""
    number = a_number()
    plain.callback("sms", [stopped(number, ago(600))])
    plain.callback("sms", [started(number, stamp)])
    assert plain.suppressed("sms", number)
    assert plain.reviews(number)


def test_untimed_opt_ins_may_be_trusted(receipt: Voice) -> None:
    """design 2.1: `UNTIMED_OPT_IN`: `receipt` (trust the time of receipt)."""
    number = a_number()
    receipt.callback("sms", [stopped(number, ago(600))])
    receipt.callback("sms", [{"number": number, "opt-in": True}])
    assert not receipt.suppressed("sms", number)


def review_of(voice: Voice, number: str) -> str:
    """The id of the one held opt-in."""
    (found,) = voice.reviews(number)
    return str(found["id"])


def hold(voice: Voice) -> str:
    """A number that we stopped and whose START is held."""
    number = a_number()
    voice.stop("sms", number, "do_not_call", ago(600))
    assert voice.callback("sms", [started(number, ago(300))])["accepted"] == 1
    assert voice.suppressed("sms", number), "held"
    return number


def test_an_approved_opt_in_clears(plain: Voice) -> None:
    """design 2.1: `local` (hold an opt-in that would clear a stop which did not come from Kahuna); 2.3 approve."""
    number = hold(plain)
    answer = plain.call("POST", f"/v1/admin/reviews/{review_of(plain, number)}/approve")
    assert answer.is_success, answer.text
    assert not plain.suppressed("sms", number)
    assert not plain.reviews(number)


def test_a_refused_opt_in_does_not_clear(plain: Voice) -> None:
    """design 2.3: `GET /v1/admin/reviews` (held opt-ins), `POST /{id}/approve|refuse`."""
    number = hold(plain)
    answer = plain.call("POST", f"/v1/admin/reviews/{review_of(plain, number)}/refuse")
    assert answer.is_success, answer.text
    assert plain.suppressed("sms", number)
    assert not plain.reviews(number)
    plain.callback("sms", [started(number, ago(300))])
    assert plain.suppressed("sms", number), "redelivered, it is known and stays refused"


def test_an_approved_opt_in_does_not_clear_a_later_stop(plain: Voice) -> None:
    """design 3: what permits needs a time strictly newer than the stop."""
    number = hold(plain)
    plain.callback("sms", [stopped(number, ago(60))])
    for review in plain.reviews(number):
        plain.call("POST", f"/v1/admin/reviews/{review['id']}/approve")
    assert plain.suppressed("sms", number)


def test_opt_ins_over_kahunas_own_stops_are_not_held(plain: Voice) -> None:
    """design 2.1: `local` holds an opt-in that would clear a stop which did not come from Kahuna, no other."""
    number = a_number()
    plain.callback("sms", [stopped(number, ago(60))])
    plain.callback("sms", [started(number, ago(30))])
    assert not plain.suppressed("sms", number)
    assert not plain.reviews(number)


def test_every_opt_in_may_be_held(review_all: Voice) -> None:
    """design 2.1: `OPT_IN_REVIEW`: `all`."""
    number = a_number()
    review_all.callback("sms", [stopped(number, ago(60))])
    review_all.callback("sms", [started(number, ago(30))])
    assert review_all.suppressed("sms", number)
    review_all.call("POST", f"/v1/admin/reviews/{review_of(review_all, number)}/approve")
    assert not review_all.suppressed("sms", number)


def test_no_opt_in_may_be_held(review_off: Voice) -> None:
    """design 2.1: `OPT_IN_REVIEW`: `off`."""
    number = a_number()
    review_off.stop("sms", number, "do_not_call", ago(60))
    review_off.callback("sms", [started(number, ago(30))])
    assert not review_off.suppressed("sms", number)


@pytest.mark.parametrize("first", ["manual", "invalid"])
def test_a_start_clears_do_not_call_alone(review_off: Voice, first: str) -> None:
    """design 3: an SMS entry with `"opt-in": true` clears `do_not_call`."""
    number = a_number()
    review_off.stop("sms", number, first, ago(90))
    review_off.callback("sms", [stopped(number, ago(80)), started(number, ago(60))])
    assert review_off.reasons("sms", number) == {first}
    assert review_off.suppressed("sms", number)


@pytest.mark.parametrize("channel", ["email", "sms"])
def test_a_reactivation_clears_every_reason_of_the_channel(plain: Voice, channel: str) -> None:
    """design 2.3: clears every reason of the channel up to that time."""
    address = an_email() if channel == "email" else a_number()
    plain.callback(channel, [told(address, ago(90)) if channel == "email" else stopped(address, ago(90))])
    plain.stop(channel, address, "manual", ago(80))
    plain.stop(channel, address, "invalid", ago(70))
    answer = plain.reactivate(channel, address, ago(60))
    assert answer.is_success, answer.text
    assert not plain.suppressed(channel, address)
    assert plain.reasons(channel, address) == set()


def test_a_late_older_stop_does_not_undo_a_reactivation(plain: Voice) -> None:
    """design 3: the latest fact wins, whatever the source."""
    address = an_email()
    plain.callback("email", [told(address, ago(90))])
    plain.reactivate("email", address, ago(60))
    plain.callback("email", [told(address, ago(80))])
    assert not plain.suppressed("email", address)
    plain.callback("email", [told(address, ago(30))])
    assert plain.suppressed("email", address)


@pytest.mark.parametrize("later", [0, 30])
def test_a_newer_stop_forbids_a_reactivation(plain: Voice, later: int) -> None:
    """design 2.3: a stop at or after it: 409 `newer-stop`."""
    address, moment = an_email(), ago(60)
    plain.callback("email", [told(address, moment + later)])
    assert_problem(plain.reactivate("email", address, moment), 409, "newer-stop")
    assert plain.suppressed("email", address)


@pytest.mark.parametrize("missing", ["evidence", "occurred_at"])
def test_a_reactivation_needs_evidence_and_a_time(plain: Voice, missing: str) -> None:
    """design 2.3: `{"evidence","occurred_at"}`: both required, else 422."""
    address = an_email()
    plain.callback("email", [told(address, ago(60))])
    body = {"evidence": "ticket", "occurred_at": "2026-01-01T00:00:00Z"}
    del body[missing]
    assert_problem(plain.call("POST", plain.where("email", address) + "/reactivate", json=body), 422)
    assert_problem(plain.call("POST", plain.where("email", address) + "/reactivate", json={**body, missing: ""}), 422)
    assert plain.suppressed("email", address)


@pytest.mark.parametrize(
    ("channel", "reason"),
    [
        ("email", "do_not_call"),
        ("sms", "unsubscribe"),
        ("sms", "hard_bounce"),
        ("sms", "complaint"),
        ("email", "unsub"),
        ("email", "spam"),
        ("email", ""),
        ("email", "Manual"),
    ],
)
def test_a_reason_of_the_other_channel_is_unprocessable(plain: Voice, channel: str, reason: str) -> None:
    """design 3: another pair is 422."""
    address = an_email() if channel == "email" else a_number()
    assert_problem(plain.put(channel, address, reason), 422)
    assert not plain.suppressed(channel, address)


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b'{"reason":5}', b"{}", b'{"reason":"manual","occurred_at":"soon"}']
)
def test_a_write_that_makes_no_sense_is_a_problem(plain: Voice, body: bytes) -> None:
    """design 2.3: errors as RFC 9457 `application/problem+json`."""
    address = an_email()
    headers = {"Content-Type": "application/json"}
    answer = plain.call("PUT", plain.where("email", address), content=body, headers=headers)
    assert answer.status_code in {400, 422}, answer.text
    assert_problem(answer, answer.status_code)
    assert not plain.suppressed("email", address)


@pytest.mark.parametrize(
    ("channel", "reasons"),
    [
        ("email", "unsubscribe hard_bounce complaint invalid blocked rejected manual"),
        ("sms", "do_not_call invalid manual"),
    ],
)
def test_every_reason_can_be_written(plain: Voice, channel: str, reasons: str) -> None:
    """design 2.3: `PUT` → 200 with the status document; 3: the reasons of each channel; origin `api`."""
    address = an_email() if channel == "email" else a_number()
    for reason in reasons.split():
        found = plain.stop(channel, address, reason, ago(60))
        assert found["suppressed"]
    assert plain.reasons(channel, address) == set(reasons.split())
    assert {one["origin"] for one in plain.status(channel, address)["causes"]} == {"api"}


def test_a_local_stop_without_a_time_counts_from_now(plain: Voice) -> None:
    """design 2.3: `{"reason","occurred_at"?,"note"?}`."""
    address, begun = an_email(), int(time.time())
    plain.stop("email", address, "manual")
    occurred = seconds_of(plain.cause("email", address, "manual")["occurred_at"])
    assert begun - 1 <= occurred <= time.time() + 1


def test_three_soft_bounces_within_the_window_suppress_for_a_while(plain: Voice) -> None:
    """design 3: soft_bounce while any 3 within 14 days ended less than 30 days ago."""
    address, newest = an_email(), ago(DAY)
    plain.callback("email", [told(address, newest - 10 * DAY, "soft_bounce"), told(address, newest, "soft_bounce")])
    assert not plain.suppressed("email", address)
    plain.callback("email", [told(address, newest - 5 * DAY, "soft_bounce")])
    found = plain.status("email", address)
    assert found["suppressed"]
    assert seconds_of(found["until"]) == newest + 30 * DAY


@pytest.mark.parametrize("days", [(1, 10, 20), (40, 42, 44), (1, 1, 2)])
def test_other_soft_bounces_do_not_suppress(plain: Voice, days: tuple[int, ...]) -> None:
    """design 3: any 3 (distinct times) within 14 days ended less than 30 days ago."""
    address, now = an_email(), ago(0)
    plain.callback("email", [told(address, now - day * DAY, "soft_bounce") for day in days])
    assert not plain.suppressed("email", address)


def test_soft_bounces_after_a_clear_are_counted_anew(plain: Voice) -> None:
    """design 3: soft bounces keep the newest distinct times after the latest clear."""
    address, now = an_email(), ago(0)
    plain.callback("email", [told(address, now - day * DAY, "soft_bounce") for day in (9, 8, 7)])
    assert plain.suppressed("email", address)
    assert plain.reactivate("email", address, now - 6 * DAY).is_success
    plain.callback("email", [told(address, now - day * DAY, "soft_bounce") for day in (5, 4)])
    assert not plain.suppressed("email", address)
    plain.callback("email", [told(address, now - 3 * DAY, "soft_bounce")])
    assert plain.suppressed("email", address)
