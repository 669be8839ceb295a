"""Odd and hostile bodies: decoding is forgiving where people would be hurt (design.md 3, and 5 promise 8)."""

from __future__ import annotations

import json

import pytest

from .speaking import Voice, a_number, ago, an_email, sign, started, stopped, told

# Each is the JSON of one entry; ADDR stands for an unused address. All have a string address, so it is signed.
REJECTED = {
    "unknown reason": '{"reason":"vanished","email":"ADDR","timestamp":1700000000}',
    "missing reason": '{"email":"ADDR","timestamp":1700000000}',
    "reason null": '{"reason":null,"email":"ADDR","timestamp":1700000000}',
    "reason a number": '{"reason":7,"email":"ADDR","timestamp":1700000000}',
    "reason a list": '{"reason":["unsub"],"email":"ADDR","timestamp":1700000000}',
    "reason with NUL": '{"reason":"unsub\\u0000","email":"ADDR","timestamp":1700000000}',
    "time 1e400": '{"reason":"unsub","email":"ADDR","timestamp":1e400}',
    "time NaN": '{"reason":"unsub","email":"ADDR","timestamp":NaN}',
    "time Infinity": '{"reason":"unsub","email":"ADDR","timestamp":-Infinity}',
}
# Entries whose own fate the documents leave open; only their neighbours and the sums are judged.
OPEN = {
    "time a text": '{"reason":"unsub","email":"ADDR","timestamp":"1700000000"}',
    "time a list": '{"reason":"unsub","email":"ADDR","timestamp":[1]}',
    "time true": '{"reason":"unsub","email":"ADDR","timestamp":true}',
    "time null": '{"reason":"unsub","email":"ADDR","timestamp":null}',
    "time a fraction": '{"reason":"unsub","email":"ADDR","timestamp":1700000000.75}',
    "time of 5000 digits": '{"reason":"unsub","email":"ADDR","timestamp":' + "9" * 5000 + "}",
    "another field of 5000 digits": '{"reason":"unsub","email":"ADDR","timestamp":1700000000,"x":' + "9" * 5000 + "}",
    "another field 1e400": '{"reason":"unsub","email":"ADDR","timestamp":1700000000,"x":1e400}',
    "another field with a lone surrogate": '{"reason":"unsub","email":"ADDR","timestamp":1700000000,"x":"\\ud800"}',
    "another field with NUL": '{"reason":"unsub","email":"ADDR","timestamp":1700000000,"x":"\\u0000"}',
    "another key with NUL": '{"reason":"unsub","email":"ADDR","timestamp":1700000000,"\\u0000":1}',
}
NO_STRING_ADDRESS = {
    "missing address": '{"reason":"unsub","timestamp":1700000000}',
    "address null": '{"reason":"unsub","email":null,"timestamp":1700000000}',
    "address a number": '{"reason":"unsub","email":15550100001,"timestamp":1700000000}',
    "address a list": '{"reason":"unsub","email":["a@example.com"],"timestamp":1700000000}',
    "address an object": '{"reason":"unsub","email":{"email":"a@example.com"},"timestamp":1700000000}',
    "entry null": "null",
    "entry a number": "5",
    "entry a text": '"a@example.com"',
    "entry a list": '["a@example.com"]',
    "entry an empty object": "{}",
}
IMPOSSIBLE = {
    "empty": "",
    "blank": "  ",
    "no at": "nobody.example.com",
    "two ats": "a@b@example.com",
    "NUL": "nul\0@example.com",
    "line break inside": "line\nbreak@example.com",
    "escape": "esc\x1b@example.com",
    "321 characters": "x" * 309 + "@example.com",
    "lone high surrogate": "high\ud800@example.com",
    "lone low surrogate": "low\udc00@example.com",
}


def deliver_between(plain: Voice, odd: str, signed: list[str]) -> tuple[dict[str, int], str, str]:
    """Deliver one odd entry between two sound ones, which have to be applied."""
    before, after = an_email("before"), an_email("after")
    raw = f"[{json.dumps(told(before, ago(60)))},{odd},{json.dumps(told(after, ago(60)))}]"
    answer = plain.deliver_raw("email", raw, [before, *signed, after])
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert found["accepted"] + found["duplicates"] + found["rejected"] == 3, found
    assert [one["index"] for one in found["errors"]] == [1] * found["rejected"], found
    assert plain.suppressed("email", before), "the neighbour before it"
    assert plain.suppressed("email", after), "the neighbour after it"
    return found, before, after


@pytest.mark.parametrize("case", REJECTED)
def test_a_bad_value_rejects_its_entry_alone(plain: Voice, case: str) -> None:
    """design 5.8: the bad entry alone goes to quarantine, its bytes kept."""
    address = an_email()
    found, *_ = deliver_between(plain, REJECTED[case].replace("ADDR", address), [address])
    assert found["rejected"] == 1, found
    assert not plain.suppressed("email", address)


@pytest.mark.parametrize("case", OPEN)
def test_an_odd_value_never_spoils_the_batch(plain: Voice, case: str) -> None:
    """design 2.3: a bad entry never spoils its neighbours; the three counts add up to the entries."""
    address = an_email()
    found, *_ = deliver_between(plain, OPEN[case].replace("ADDR", address), [address])
    assert plain.suppressed("email", address) is (found["rejected"] == 0)


@pytest.mark.parametrize("case", NO_STRING_ADDRESS)
def test_an_entry_without_a_string_address_is_not_signed_and_rejected(plain: Voice, case: str) -> None:
    """design 3: an entry without a string address contributing nothing."""
    found, *_ = deliver_between(plain, NO_STRING_ADDRESS[case], [])
    assert found["rejected"] == 1, found


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_an_impossible_address_is_signed_and_rejected(plain: Voice, case: str) -> None:
    """design 3: only what cannot be an address at all (no single `@`, control characters, NUL, over 320) is refused."""
    odd = json.dumps(told(IMPOSSIBLE[case], ago(60)))
    found, *_ = deliver_between(plain, odd, [IMPOSSIBLE[case]])
    assert found["rejected"] == 1, found


@pytest.mark.parametrize(
    "number", ["1234", "1234567890123456", "", "call me", "+", "00", "15550\x0000001", "1555010000\ud800"]
)
def test_an_impossible_number_is_rejected(plain: Voice, number: str) -> None:
    """design 3: under 5 or over 15 digits goes to quarantine."""
    good = a_number()
    answer = plain.callback("sms", [stopped(number, ago(60)), stopped(good, ago(60))])
    assert (answer["accepted"], answer["rejected"]) == (1, 1), answer
    assert plain.suppressed("sms", good)


@pytest.mark.parametrize("value", ["15550100001", "null", '["1"]'])
def test_a_number_that_is_not_a_text_is_rejected(plain: Voice, value: str) -> None:
    """design 3: an entry without a string address contributing nothing."""
    good = a_number()
    raw = f'[{{"number":{value},"timestamp":1700000000}},{json.dumps(stopped(good, ago(60)))}]'
    found = plain.deliver_raw("sms", raw, [good]).json()
    assert (found["accepted"], found["rejected"]) == (1, 1), found


@pytest.mark.parametrize("flag", ["false", "null", '"true"', "1", '"yes"', "[]", "{}", "[true]"])
def test_only_true_is_an_opt_in(plain: Voice, flag: str) -> None:
    """design 3: an SMS entry with `"opt-in": true` clears `do_not_call`; any other entry sets it."""
    number = a_number()
    raw = f'[{{"number":"{number}","timestamp":{ago(60)},"opt-in":{flag}}}]'
    answer = plain.deliver_raw("sms", raw, [number])
    assert answer.status_code == 200, answer.text
    assert answer.json()["accepted"] == 1, answer.text
    assert plain.reasons("sms", number) == {"do_not_call"}


@pytest.mark.parametrize("depth", [200, 100_000])
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
def test_deep_nesting_never_spoils_the_batch(plain: Voice, depth: int, opening: str, closing: str) -> None:
    """design 2.3: nothing else than 200 or 503 may be answered for a well-formed, signed batch."""
    address = an_email()
    deep = opening * depth + "1" + closing * depth
    odd = f'{{"reason":"unsub","email":"{address}","timestamp":1700000000,"x":{deep}}}'
    found, *_ = deliver_between(plain, odd, [address])
    assert plain.suppressed("email", address) is (found["rejected"] == 0)


def test_a_body_of_brackets_alone_is_answered(plain: Voice) -> None:
    """design 2.3: 400 not JSON; whatever is sent, the service answers and lives on."""
    assert plain.deliver_raw("email", "[" * 1_000_000, []).status_code == 400
    whole = plain.deliver_raw("email", "[" * 200_000 + "]" * 200_000, [])
    assert whole.status_code in {200, 400}, whole.text
    assert plain.callback("email", [told(an_email(), ago(60))])["accepted"] == 1


def test_the_last_of_duplicate_keys_wins(plain: Voice) -> None:
    """design 3: one parse serves verifying and applying (last of duplicate keys wins)."""
    first, last = an_email("first"), an_email("last")
    raw = f'[{{"email":"{first}","reason":"vanished","email":"{last}","timestamp":1700000000,"reason":"spam"}}]'
    assert plain.deliver_raw("email", raw, [first]).status_code == 401
    answer = plain.deliver_raw("email", raw, [last])
    assert answer.status_code == 200, answer.text
    assert plain.reasons("email", last) == {"complaint"}
    assert not plain.suppressed("email", first)


def test_the_last_of_duplicate_keys_wins_in_the_slower_decoder_too(plain: Voice) -> None:
    """design 5.8: a body that the fast decoder refuses is decoded again; 3: last of duplicate keys wins."""
    first, last = an_email("first"), an_email("last")
    raw = f'[{{"email":"{first}","reason":"unsub","email":"{last}"}},{{"x":NaN}}]'
    assert plain.deliver_raw("email", raw, [first]).status_code == 401
    assert plain.deliver_raw("email", raw, [last]).json()["accepted"] == 1
    assert plain.suppressed("email", last)


def test_a_duplicated_opt_in_key_is_taken_last(plain: Voice) -> None:
    """design 3: last of duplicate keys wins."""
    number = a_number()
    raw = f'[{{"number":"{number}","opt-in":true,"timestamp":{ago(60)},"opt-in":false}}]'
    assert plain.deliver_raw("sms", raw, [number]).status_code == 200
    assert plain.suppressed("sms", number)


def test_unknown_fields_are_ignored(plain: Voice) -> None:
    """kahuna-api.md 1: unknown extra JSON fields are ignored."""
    email, number = an_email(), a_number()
    more = {"extra": {"a": [1, None, {"b": "c"}]}, "campaign": "x", "": 1, "timestamp ": 5}
    assert plain.callback("email", [{**told(email, ago(60)), **more}])["accepted"] == 1
    assert plain.callback("sms", [{**stopped(number, ago(60)), **more, "reason": "whatever"}])["accepted"] == 1
    assert plain.suppressed("email", email)
    assert plain.suppressed("sms", number)


def test_an_unknown_entry_beside_an_opt_in(plain: Voice) -> None:
    """design 2.3: a bad entry never spoils its neighbours, an opt-in among them."""
    number = a_number()
    plain.callback("sms", [stopped(number, ago(120))])
    plain.callback("sms", [stopped("1", ago(60)), started(number, ago(60))])
    assert not plain.suppressed("sms", number)


@pytest.mark.parametrize(
    "raw", [b"\xff\xfe[\x00]\x00", b'["\xff"]', b"\xef\xbb\xbf[]", b"[]trailing", b"[] []", b"\x00"]
)
def test_bytes_that_are_not_utf8_json_are_answered(plain: Voice, raw: bytes) -> None:
    """design 2.3: 400 not JSON; never a fault of ours."""
    answer = plain.deliver_raw("email", raw, [])
    assert answer.status_code in {200, 400}, answer.text


def test_an_invalid_byte_in_one_entry_is_no_fault_of_ours(plain: Voice) -> None:
    """design 5.8: decoding is forgiving where people would be hurt; never a 5xx."""
    good = an_email()
    raw = b'[{"reason":"unsub","email":"\xff@example.com"},' + json.dumps(told(good, ago(60))).encode() + b"]"
    assert plain.deliver_raw("email", raw, [good]).status_code in {400, 401}


def test_spaces_and_escapes_of_json_do_not_matter(plain: Voice) -> None:
    """design 3: signed values are the decoded strings."""
    address = an_email()
    escaped = "".join(f"\\u{ord(one):04x}" for one in address)
    raw = f' \n[ {{ "reason" : "unsub" ,\t"email" : "{escaped}" , "timestamp" : 1700000000 }} ] \r\n'
    answer = plain.post(plain.path("email"), raw.encode(), sign(plain.key, [address]))
    assert answer.status_code == 200, answer.text
    assert plain.suppressed("email", address)


def test_one_bad_value_among_many_thousands(plain: Voice) -> None:
    """design 5.8: decoded again by a bounded slower one, and the bad entry alone goes to quarantine."""
    moment = ago(60)
    entries = [stopped(f"3726{index:07d}", moment) for index in range(60_000)]
    raw = json.dumps(entries)[:-1] + ',{"number":"37269999999","timestamp":NaN}]'
    answer = plain.deliver_raw("sms", raw, [*(str(one["number"]) for one in entries), "37269999999"])
    assert answer.status_code == 200, answer.text
    assert (answer.json()["accepted"], answer.json()["rejected"]) == (60_000, 1)
    assert answer.json()["errors"][0]["index"] == 60_000
    assert plain.suppressed("sms", "37260059999")
