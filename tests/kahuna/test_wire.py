"""Words, entries, cutting, and what an answer proves."""

import json
from collections.abc import Set
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.domain.facts import EMAIL_REASONS
from service.errors import SettingsError
from service.kahuna.errors import UnreadableAnswer
from service.kahuna.wire import (
    EMAIL_WORDS,
    EmailSyncEntry,
    SmsSyncEntry,
    SyncAnswer,
    culprits,
    cut,
    read_sync_answer,
    word_of,
    words_with,
)

EMAILS = st.builds(EmailSyncEntry, st.sampled_from(sorted(EMAIL_WORDS)), st.text("ab@.é\\", max_size=9), st.none())
NUMBERS = st.builds(SmsSyncEntry, st.text("0123456789", max_size=9), st.none() | st.integers(0, 2**40), st.booleans())

ANN = EmailSyncEntry("unsub", "ann@example.com", 1500000000)
ANN_AGAIN = EmailSyncEntry("spam", "ann@example.com", 1500000001)
BOB = EmailSyncEntry("hard_bounce", "bob@example.com")
SENT = [ANN, ANN_AGAIN, BOB]


# Words.


def test_the_words_are_those_of_the_contract() -> None:
    assert set(EMAIL_WORDS) == {"unsub", "hard_bounce", "soft_bounce", "spam", "invalid", "blocked", "reject"}


@pytest.mark.parametrize("word", sorted(EMAIL_WORDS))
def test_a_word_comes_back_from_its_reason(word: str) -> None:
    assert word_of(EMAIL_WORDS[word]) == word


@pytest.mark.parametrize("reason", EMAIL_REASONS)
def test_every_email_reason_of_ours_has_a_word(reason: str) -> None:
    assert word_of(reason) in EMAIL_WORDS


def test_a_decision_of_ours_goes_out_as_an_unsubscribe() -> None:
    assert word_of("manual") == "unsub"


def test_a_deployment_may_know_more_words() -> None:
    words = words_with([("abuse", "complaint"), ("UNSUB", "unsubscribe")])
    assert dict(words) == dict(EMAIL_WORDS) | {"abuse": "complaint", "UNSUB": "unsubscribe"}
    assert words_with(()) == EMAIL_WORDS


@pytest.mark.parametrize(
    "pairs",
    [
        [("spam", "unsubscribe")],
        [("spam", "complaint")],
        [("abuse", "complaint"), ("abuse", "blocked")],
        [("abuse", "abuse")],
        [("abuse", "manual")],
        [("abuse", "do_not_call")],
    ],
)
def test_a_word_that_cannot_mean_that_is_refused_by_name(pairs: list[tuple[str, str]]) -> None:
    with pytest.raises(SettingsError, match=f"EXTRA_REASONS: {pairs[-1][0]}"):
        words_with(pairs)


# Entries.


def test_entries_are_spelled_as_in_the_contracts_examples() -> None:
    assert json.loads(msgspec.json.encode([ANN, BOB])) == [
        {"reason": "unsub", "email": "ann@example.com", "timestamp": 1500000000},
        {"reason": "hard_bounce", "email": "bob@example.com"},
    ]
    assert json.loads(
        msgspec.json.encode([SmsSyncEntry("15550100001", 1500000000, opt_in=True), SmsSyncEntry("15550100002")])
    ) == [
        {"number": "15550100001", "timestamp": 1500000000, "opt-in": True},
        {"number": "15550100002"},
    ]


def test_no_repr_shows_an_address() -> None:
    assert "ann" not in repr(ANN)
    assert "1555" not in repr(SmsSyncEntry("15550100001"))
    assert "ann" not in repr(SyncAnswer(0, 1, [{"email": "ann@example.com"}]))


# Cutting.


@given(st.lists(EMAILS), st.integers(1, 5), st.integers(2, 200))
def test_cutting_loses_and_reorders_nothing(entries: list[EmailSyncEntry], max_entries: int, max_bytes: int) -> None:
    chunks = list(cut(entries, max_entries, max_bytes))
    assert [entry for chunk in chunks for entry in chunk] == entries
    assert all(0 < len(chunk) <= max_entries for chunk in chunks)
    assert all(len(msgspec.json.encode(chunk)) < max_bytes for chunk in chunks if len(chunk) > 1)


@given(st.lists(NUMBERS), st.integers(1, 5), st.integers(2, 200))
def test_a_chunk_ends_only_where_the_next_entry_does_not_fit(
    entries: list[SmsSyncEntry], max_entries: int, max_bytes: int
) -> None:
    chunks = list(cut(entries, max_entries, max_bytes))
    for chunk, following in pairwise(chunks):
        fuller = [*chunk, following[0]]
        assert len(fuller) > max_entries or len(msgspec.json.encode(fuller)) >= max_bytes


def test_an_entry_too_large_for_any_request_travels_alone() -> None:
    large = EmailSyncEntry("unsub", "x" * 100 + "@example.com")
    assert list(cut([ANN, large, BOB], max_bytes=90)) == [[ANN], [large], [BOB]]


def test_the_vendors_limits_are_the_default() -> None:
    assert [len(chunk) for chunk in cut([BOB] * 100_001)] == [100_000, 1]
    long = EmailSyncEntry("unsub", "x" * 1_000_000)
    assert [len(chunk) for chunk in cut([long] * 10)] == [9, 1]


# Answers.


def test_an_answer_is_its_counts_and_its_errors() -> None:
    body = b'{"accepted": 2, "rejected": 1, "errors": [{"email": "x"}], "more": true}'
    answer = read_sync_answer(body, 3, api="email_sync")
    assert (answer.accepted, answer.rejected, answer.errors) == (2, 1, [{"email": "x"}])


@pytest.mark.parametrize("errors", [None, {}, "none", 0])
def test_errors_that_are_no_list_name_nobody(errors: object) -> None:
    body = json.dumps({"accepted": 0, "rejected": 2, "errors": errors}).encode()
    assert read_sync_answer(body, 2, api="email_sync").errors == []


UNREADABLE: dict[str, bytes] = {
    "empty": b"",
    "no JSON": b"<html>",
    "no UTF-8": b'{"accepted": 1, "rejected": 0, "errors": ["\xff"]}',
    "nested without end": b'{"accepted": 1, "rejected": 0, "errors": ' + b"[" * 100_000,
    "an array": b"[1, 0]",
    "no accepted": b'{"rejected": 1}',
    "no rejected": b'{"accepted": 1}',
    "null": b'{"accepted": 1, "rejected": null}',
    "a text": b'{"accepted": "1", "rejected": 0}',
    "true": b'{"accepted": true, "rejected": 0}',
    "a fraction": b'{"accepted": 0.5, "rejected": 0.5}',
    "negative": b'{"accepted": 2, "rejected": -1}',
    "too few": b'{"accepted": 0, "rejected": 0}',
    "too many": b'{"accepted": 1, "rejected": 1}',
    "the common error object": b'{"success": false, "error_code": 500, "error": "x@example.com"}',
}


@pytest.mark.parametrize("body", UNREADABLE.values(), ids=UNREADABLE.keys())
def test_counts_that_prove_nothing_are_unreadable(body: bytes) -> None:
    with pytest.raises(UnreadableAnswer) as caught:
        read_sync_answer(body, 1, api="email_sync", status=200)
    assert (caught.value.api, caught.value.status) == ("email_sync", 200)
    assert "example.com" not in str(caught.value)


# Culprits.


def named(*items: Any, accepted: int | None = None) -> Set[int] | None:
    """The culprits among SENT, from an answer that rejects as many as it names."""
    rejected = len(items) if accepted is None else len(SENT) - accepted
    return culprits(SyncAnswer(len(SENT) - rejected, rejected, list(items)), SENT)


def test_nobody_rejected_means_no_culprits() -> None:
    assert named() == frozenset()
    assert culprits(SyncAnswer(0, 0), []) == frozenset()


def test_everybody_rejected_needs_no_names() -> None:
    assert named(accepted=0) == {0, 1, 2}
    assert named("opaque", {"x": 1}, None) == {0, 1, 2}


def test_a_culprit_is_named_by_its_address() -> None:
    assert named({"email": "bob@example.com", "error": "Invalid email"}) == {2}


def test_a_reason_tells_two_entries_of_one_address_apart() -> None:
    assert named({"email": "ann@example.com", "reason": "spam"}) == {1}
    both = ({"email": "ann@example.com", "reason": "unsub"}, {"email": "bob@example.com", "reason": "hard_bounce"})
    assert named(*both) == {0, 2}


@pytest.mark.parametrize(
    "item",
    [
        {"email": "ann@example.com"},
        {"email": "ann@example.com", "reason": "Invalid email"},
        {"email": "eve@example.com"},
        {"email": ["bob@example.com"]},
        {"number": "1555"},
        {"error": "bob@example.com"},
        "bob@example.com",
        None,
        [],
    ],
)
def test_an_item_that_means_no_single_entry_names_nobody(item: object) -> None:
    assert named(item) is None


def test_one_doubtful_item_spoils_the_others() -> None:
    assert named({"email": "bob@example.com"}, "opaque") is None


def test_items_that_name_the_same_entry_do_not_add_up() -> None:
    assert named({"email": "bob@example.com"}, {"email": "bob@example.com", "reason": "hard_bounce"}) is None


def test_more_or_fewer_items_than_rejections_name_nobody() -> None:
    assert named({"email": "bob@example.com"}, accepted=1) is None
    assert culprits(SyncAnswer(2, 1, [{"email": "bob@example.com"}] * 2), SENT) is None


def test_a_number_is_named_whatever_the_cause_is_called() -> None:
    sent = [SmsSyncEntry("15550100001"), SmsSyncEntry("abcde")]
    item = {"number": "abcde", "reason": "Invalid number"}
    assert culprits(SyncAnswer(1, 1, [item]), sent) == frozenset({1})


def test_an_entry_that_was_sent_twice_is_never_named() -> None:
    assert culprits(SyncAnswer(2, 1, [{"email": "bob@example.com"}]), [BOB, BOB, ANN]) is None


@given(st.lists(EMAILS, min_size=1), st.data())
def test_a_full_account_of_distinct_entries_names_exactly_the_rejected(
    entries: list[EmailSyncEntry], data: st.DataObject
) -> None:
    distinct = list({(entry.email, entry.reason): entry for entry in entries}.values())
    rejected = data.draw(st.sets(st.sampled_from(range(len(distinct)))))
    items = [{"email": distinct[i].email, "reason": distinct[i].reason, "error": "Invalid"} for i in rejected]
    answer = SyncAnswer(len(distinct) - len(rejected), len(rejected), items)
    assert culprits(answer, distinct) == frozenset(rejected)
