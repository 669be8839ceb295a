"""What a 200 says: the counts, the errors, redelivery and duplicates (design.md 2.3)."""

from __future__ import annotations

import gzip
import json
from typing import Any

from .speaking import Voice, a_number, ago, an_email, sign, started, stopped, told

ANSWER = {"batch_id", "state", "accepted", "duplicates", "rejected", "errors"}


def counts(answer: dict[str, Any]) -> tuple[int, int, int]:
    """accepted, duplicates, rejected."""
    return answer["accepted"], answer["duplicates"], answer["rejected"]


def mixed() -> list[Any]:
    """Two new facts, one of them twice, and two entries that cannot be used, at the places 1 and 3."""
    first, second = told(an_email(), ago(60)), told(an_email(), ago(60), "spam")
    return [first, told(an_email(), ago(60), "vanished"), second, {"reason": "unsub", "timestamp": 1}, first]


def test_the_counts_add_up_to_the_entries(plain: Voice) -> None:
    """design 2.3: the three counts add up to the entries; an entry repeated within the batch is a duplicate."""
    answer = plain.callback("email", mixed())
    assert set(answer) == ANSWER
    assert counts(answer) == (2, 1, 2)
    assert [one["index"] for one in answer["errors"]] == [1, 3]
    assert all(isinstance(one["error"], str) and one["error"] for one in answer["errors"])


def test_a_bad_entry_never_spoils_its_neighbours(plain: Voice) -> None:
    """design 2.3: a bad entry never spoils its neighbours."""
    entries = mixed()
    plain.callback("email", entries)
    assert plain.reasons("email", entries[0]["email"]) == {"unsubscribe"}
    assert plain.reasons("email", entries[2]["email"]) == {"complaint"}
    assert not plain.suppressed("email", entries[1]["email"])


def test_a_redelivery_answers_with_the_first_batch(plain: Voice) -> None:
    """design 2.3: a redelivery answers with the first `batch_id`, all as duplicates but the same rejected ones."""
    entries = mixed()
    first = plain.callback("email", entries)
    for _ in range(3):
        again = plain.callback("email", entries)
        assert again["batch_id"] == first["batch_id"]
        assert counts(again) == (0, 3, 2)
        assert again["errors"] == first["errors"]


def test_a_redelivery_is_known_by_its_decompressed_bytes(plain: Voice) -> None:
    """design 2.3: a redelivery (same namespace, channel and decompressed bytes)."""
    address = an_email()
    raw = json.dumps([told(address, ago(60))]).encode()
    first = plain.deliver_raw("email", raw, [address]).json()
    again = plain.deliver_raw("email", gzip.compress(raw), [address], Content_Encoding="gzip").json()
    assert again["batch_id"] == first["batch_id"]
    assert counts(again) == (0, 1, 0)


def test_the_same_bytes_in_another_namespace_are_another_batch(left: Voice, right: Voice) -> None:
    """design 2.3: a redelivery (same namespace, ...)."""
    entries = [told(an_email(), ago(60))]
    first, second = left.callback("email", entries), right.callback("email", entries)
    assert first["batch_id"] != second["batch_id"]
    assert counts(second) == (1, 0, 0)


def test_a_redelivery_makes_no_new_quarantine_rows(plain: Voice) -> None:
    """design 2.3: makes no new quarantine rows."""
    address = an_email("quarantined")
    entries = [told(address, ago(60), "vanished")]

    def kept() -> int:
        return sum(address in json.dumps(one) for one in plain.listing("/v1/admin/quarantine"))

    first = plain.callback("email", entries)
    before = kept() or sum(first["batch_id"] in json.dumps(one) for one in plain.listing("/v1/admin/quarantine"))
    assert before == 1, "rejected went to quarantine"
    everything = len(plain.listing("/v1/admin/quarantine"))
    plain.callback("email", entries)
    assert len(plain.listing("/v1/admin/quarantine")) == everything


def test_a_known_fact_in_another_batch_is_a_duplicate(plain: Voice) -> None:
    """design 2.3: `duplicates` known ones."""
    known, new = told(an_email(), ago(60)), told(an_email(), ago(60))
    first = plain.callback("email", [known])
    second = plain.callback("email", [new, known])
    assert second["batch_id"] != first["batch_id"]
    assert counts(second) == (1, 1, 0)


def test_facts_that_lose_the_merge_are_accepted(plain: Voice) -> None:
    """design 2.3: `accepted` are new facts (also those that lose the merge or are held)."""
    number = a_number()
    plain.callback("sms", [stopped(number, ago(60))])
    assert counts(plain.callback("sms", [started(number, ago(120)), stopped(number, ago(180))])) == (2, 0, 0)


def test_start_and_stop_of_one_second_are_two_facts(plain: Voice) -> None:
    """design 3: a START and a STOP of the same second are two facts."""
    number, moment = a_number(), ago(60)
    assert counts(plain.callback("sms", [started(number, moment), stopped(number, moment)])) == (2, 0, 0)


def test_two_spellings_of_an_address_are_one_fact(plain: Voice) -> None:
    """design 3: identity is (namespace, channel, address, reason, action, occurred_at, source)."""
    address, moment = an_email(), ago(60)
    answer = plain.callback("email", [told(address, moment), told(address.upper(), moment)])
    assert counts(answer) == (1, 1, 0)


def test_errors_are_capped_and_counts_are_not(plain: Voice) -> None:
    """design 2.3: `errors` is capped at 100, the counts are not."""
    good = told(an_email(), ago(60))
    answer = plain.callback("email", [told(an_email(), ago(60), "vanished") for _ in range(150)] + [good])
    assert counts(answer) == (1, 0, 150)
    assert len(answer["errors"]) == 100


def test_a_batch_of_a_hundred_thousand_is_applied(plain: Voice) -> None:
    """kahuna-api.md 7: body < 10 MB (about 100,000 entries); design 2.3: durable and applied."""
    moment = ago(60)
    entries = [stopped(f"3725{index:07d}", moment) for index in range(100_000)]
    raw = json.dumps(entries, separators=(",", ":")).encode()
    answer = plain.deliver_raw("sms", raw, [str(one["number"]) for one in entries])
    assert answer.status_code == 200, answer.text
    assert counts(answer.json()) == (100_000, 0, 0)
    assert plain.suppressed("sms", "37250099999")


def test_order_and_case_of_the_signed_values_are_those_of_the_body(plain: Voice) -> None:
    """kahuna-api.md 14: sort by Unicode code point, on the values exactly as in the body, UTF-8."""
    addresses = [f"{one}{an_email()}" for one in ("Z", "a", "\u00e9", "\U0001f600", "\uffee")]
    entries = [told(one, ago(60)) for one in addresses]
    raw = json.dumps(entries, ensure_ascii=False).encode()
    answer = plain.post(plain.path("email"), raw, sign(plain.key, addresses))
    assert answer.status_code == 200, answer.text
    assert answer.json()["rejected"] == 0
    assert all(plain.suppressed("email", one) for one in addresses)
