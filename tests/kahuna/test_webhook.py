"""Callbacks: the signature, and each entry turned into our words or into its fault."""

import base64
import hashlib
import hmac
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from service.domain.addresses import Channel
from service.kahuna.salvage import MAX_DEPTH
from service.kahuna.webhook import Entry, NotAnArray, NotJson, raw_entries, read, read_mildly, sign, verify
from service.kahuna.wire import words_with
from service.settings import Secret

KEY = Secret("demo-api-key")
TEXTS = st.text() | st.text("aAbBéÉ@.")

VECTORS = [
    (["bob@example.com", "alice@example.org", "carol@example.net"], "NktNvwVw49jDIIzSzXUhAn0+jlQ="),
    (["15550100002", "15550100001"], "A2kRfFpSyQiU7XbPnqRAu/53r24="),
    (["a@example.com", "B@example.com"], "Wjs4QkGE5K9c+kzwGxPtFgkrPRA="),
    ([], "nCuiV9bhPOzPtuZV6XkgGe0GcDc="),
]


# Signatures.


@pytest.mark.parametrize(("values", "signature"), VECTORS)
def test_the_contracts_vectors(values: list[str], signature: str) -> None:
    assert sign(values, KEY) == signature
    assert verify(values, signature, [KEY])
    assert verify(values, f" {signature}\r\n", [KEY])
    assert not verify(values, signature, [Secret("another key")])
    assert not verify([*values, "eve@example.com"], signature, [KEY])


def signed_over(text: str) -> str:
    """The signature over a text as it stands, made by the letter of the contract."""
    digest = hmac.new(b"demo-api-key", text.encode("utf-8", "surrogatepass"), hashlib.sha1).digest()
    return base64.b64encode(digest).decode()


@given(st.lists(TEXTS | st.text(st.characters(categories=["Cs"]))))
def test_the_order_is_that_of_code_points(values: list[str]) -> None:
    assert sign(values, KEY) == signed_over("".join(sorted(values)))


@given(st.lists(TEXTS), st.randoms())
def test_the_order_of_entries_does_not_matter(values: list[str], chance: Any) -> None:
    signature = sign(values, KEY)
    chance.shuffle(values)
    assert verify(values, signature, [KEY])


def test_repetitions_are_signed() -> None:
    assert sign(["a", "a"], KEY) == signed_over("aa")


def test_an_order_without_letter_case_is_accepted_too() -> None:
    values = ["b@x", "C@x", "A@x", "É@x", "é@x"]
    assert verify(values, signed_over("A@xb@xC@xÉ@xé@x"), [KEY])
    assert verify(values, signed_over("A@xC@xb@xÉ@xé@x"), [KEY])
    assert not verify(values, signed_over("A@xb@xC@xé@xÉ@x"), [KEY])


def test_equals_but_for_case_keep_the_bodys_order() -> None:
    assert verify(["a@x", "A@x", "B@x"], signed_over("a@xA@xB@x"), [KEY])
    assert not verify(["A@x", "a@x", "B@x"], signed_over("a@xA@xB@x"), [KEY])


def test_any_key_of_a_rotation_will_do() -> None:
    values, signature = VECTORS[0]
    assert verify(values, signature, [Secret("new"), KEY])
    assert verify(values, signature, [KEY, Secret("new")])
    assert not verify(values, signature, [])


@given(st.text() | st.text(st.characters(categories=["Cs"]), min_size=1))
def test_a_malformed_signature_is_only_a_wrong_one(signature: str) -> None:
    assert not verify(["ann@example.com"], signature, [KEY])


@pytest.mark.parametrize("signature", ["", "=", "NktNvwVw49jDIIzSzXUhAn0+jlQ", "nktnvwvw49jdiizszxuhan0+jlq=", "é"])
def test_a_signature_that_is_nearly_right_is_wrong(signature: str) -> None:
    assert not verify(VECTORS[0][0], signature, [KEY])


# Entries.


def entries(text: str, channel: Channel = "email") -> list[Entry]:
    return read(text.encode(), channel).entries


def only(entry: object, channel: Channel) -> Entry:
    """The one entry, beside a neighbour with a value that only the slow decoder takes, and without."""
    [fast] = entries(json.dumps([entry]), channel)
    slow, _ = entries(f"[{json.dumps(entry)},NaN]", channel)
    assert fast == slow
    return fast


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("unsub", "unsubscribe"),
        ("hard_bounce", "hard_bounce"),
        ("soft_bounce", "soft_bounce"),
        ("spam", "complaint"),
        ("invalid", "invalid"),
        ("blocked", "blocked"),
        ("reject", "rejected"),
    ],
)
def test_an_email_entry_is_a_stop_in_our_words(word: str, reason: str) -> None:
    found = only({"reason": word, "email": " Ann@Example.com", "timestamp": 1500000000}, "email")
    assert found == Entry(0, " Ann@Example.com", reason, "suppress", 1500000000)


@pytest.mark.parametrize("word", ["vanished", "", "UNSUB", None, 7, True, ["unsub"], {"unsub": 1}])
def test_an_unknown_reason_is_a_fault(word: object) -> None:
    found = only({"reason": word, "email": "ann@example.com"}, "email")
    assert found == Entry(0, "ann@example.com", fault="unknown-reason")


@pytest.mark.parametrize(
    "body", [b'[{"reason":"abuse","email":"a@b.c"}]', b'[{"reason":"abuse","email":"a@b.c"}, 1e400]']
)
def test_a_word_beside_the_contract_s_is_read_with_its_meaning(body: bytes) -> None:
    words = words_with([("abuse", "complaint")])
    assert read(body, "email", words).entries[0] == Entry(0, "a@b.c", "complaint", "suppress")
    assert read(body, "email").entries[0] == Entry(0, "a@b.c", fault="unknown-reason")


def test_a_missing_reason_is_a_fault() -> None:
    assert only({"email": "ann@example.com"}, "email").fault == "unknown-reason"


@pytest.mark.parametrize("flag", [False, None, 1, "true", "yes", [True], {}])
def test_only_true_is_an_opt_in(flag: object) -> None:
    found = only({"number": "15550100001", "timestamp": 5, "opt-in": flag}, "sms")
    assert found == Entry(0, "15550100001", "do_not_call", "suppress", 5)


def test_a_number_stops_unless_it_opts_in() -> None:
    assert only({"number": "15550100001"}, "sms") == Entry(0, "15550100001", "do_not_call", "suppress")
    assert only({"number": "15550100001", "opt-in": True}, "sms") == Entry(0, "15550100001", "do_not_call", "clear")


@pytest.mark.parametrize("address", [None, 15550100001, True, ["ann@example.com"], {"email": "ann@example.com"}])
def test_an_address_that_is_no_text_is_missing_and_not_signed(address: object) -> None:
    for channel, key in (("email", "email"), ("sms", "number")):
        body = json.dumps([{"reason": "unsub", key: address}]).encode()
        callback = read(body, "email" if channel == "email" else "sms")
        assert callback.entries == [Entry(0, fault="missing-address")]
        assert callback.signed_values == []


@pytest.mark.parametrize("entry", [None, 5, 1.5, True, "ann@example.com", ["ann@example.com"], []])
def test_an_entry_that_is_no_object_is_a_fault(entry: object) -> None:
    assert only(entry, "email") == Entry(0, fault="not-an-object")


def test_the_other_channels_key_is_no_address() -> None:
    assert only({"reason": "unsub", "number": "15550100001"}, "email").fault == "missing-address"
    assert only({"email": "ann@example.com"}, "sms").fault == "missing-address"


@pytest.mark.parametrize(
    ("value", "timestamp"),
    [
        (None, None),
        (0, 0),
        (-1, -1),
        (1500000000, 1500000000),
        (1500000000123, 1500000000123),
        (10**400, 10**400),
        (1500000000.9, 1500000000),
        (-1.9, -1),
        ("1500000000", 1500000000),
        ("0007", 7),
    ],
)
def test_a_time_is_a_number_or_digits(value: object, timestamp: int | None) -> None:
    found = only({"number": "15550100001", "timestamp": value}, "sms")
    assert (found.timestamp, found.fault) == (timestamp, None)


@pytest.mark.parametrize(
    "value", [True, False, "", " 5", "5.0", "-5", "²", "٣", "now", "9" * 5000, [], [5], {}, {"a": 1}]
)
def test_another_time_is_a_fault(value: object) -> None:
    found = only({"reason": "spam", "email": "ann@example.com", "timestamp": value}, "email")
    assert found == Entry(0, "ann@example.com", "complaint", "suppress", fault="bad-timestamp")


# Bodies.


def test_entries_keep_their_place() -> None:
    found = entries(
        '[{"reason":"spam","email":"a@x"},5,{"reason":"nonsense","email":"b@x"},{"reason":"unsub","email":"c@x"}]'
    )
    assert [entry.index for entry in found] == [0, 1, 2, 3]
    assert [entry.fault for entry in found] == [None, "not-an-object", "unknown-reason", None]


@pytest.mark.parametrize("value", ["NaN", "-Infinity", "1e400", "9" * 5000, '"\\ud800"', "[" * 100_000 + "]" * 100_000])
def test_one_bad_value_rejects_its_entry_alone(value: str) -> None:
    good = '{"reason":"unsub","email":"ann@example.com","timestamp":5}'
    bad = '{"reason":"unsub","email":"bob@example.com","x":' + value + "}"
    callback = read(f"[{good},{bad},{good}]".encode(), "email")
    assert [entry.fault for entry in callback.entries] == [None, "undecodable", None]
    assert callback.signed_values == ["ann@example.com", "bob@example.com", "ann@example.com"]
    assert callback.entries[1].address == "bob@example.com"


def test_a_lone_surrogate_is_signed_but_shown_to_nobody() -> None:
    callback = read(b'[{"reason":"unsub","email":"x\\ud800@example.com"}]', "email")
    assert callback.signed_values == ["x\ud800@example.com"]
    assert callback.entries == [Entry(0, fault="undecodable")]
    assert verify(callback.signed_values, signed_over("x\ud800@example.com"), [KEY])


@pytest.mark.parametrize("neighbour", ["", ",NaN", ",{}" * 200, ',"[[[["' * 100])
@pytest.mark.parametrize(("depth", "fault"), [(MAX_DEPTH, None), (MAX_DEPTH + 1, "undecodable"), (200, "undecodable")])
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
def test_depth_is_judged_alike_whoever_decodes(
    opening: str, closing: str, depth: int, fault: str | None, neighbour: str
) -> None:
    # The entry itself is the first level.
    below = opening * (depth - 1) + "1" + closing * (depth - 1)
    body = '[{"number":"15550100001","x":' + below + "}" + neighbour + "]"
    assert read(body.encode(), "sms").entries[0].fault == fault


def test_the_last_of_duplicate_keys_is_signed_and_applied() -> None:
    text = '{"email":"first@x","reason":"nonsense","email":"last@x","reason":"spam"}'
    for body in (f"[{text}]", f"[{text},NaN]"):
        callback = read(body.encode(), "email")
        assert callback.signed_values == ["last@x"]
        assert callback.entries[0] == Entry(0, "last@x", "complaint", "suppress")


def test_a_byte_order_mark_is_no_part_of_the_body() -> None:
    body = b'\xef\xbb\xbf[{"number":"15550100001"}]'
    assert read(body, "sms").signed_values == ["15550100001"]
    assert raw_entries(body, {0}) == {0: b'{"number":"15550100001"}'}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"\x00",
        b"[",
        b"[]x",
        b"[1,]",
        b'["\xff"]',
        b'[{"\xc3":NaN}]',
        b"\xff\xfe[\x00]\x00",
        b"['a']",
        b'["\t"]',
    ],
)
def test_what_is_not_json_in_utf8_is_refused(body: bytes) -> None:
    with pytest.raises(NotJson) as caught:
        read(body, "email")
    assert str(caught.value) == "the body is not JSON in UTF-8"
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("body", [b"{}", b"null", b"5", b'"[]"', b"NaN", b'{"a":1e400}'])
def test_what_is_not_an_array_is_refused(body: bytes) -> None:
    with pytest.raises(NotAnArray):
        read(body, "sms")


@given(st.binary() | st.text('[]{},:"\\ud8 number-opti:1eE.NaN', max_size=40).map(str.encode))
def test_any_body_is_read_or_refused(body: bytes) -> None:
    try:
        callback = read(body, "sms")
    except (NotJson, NotAnArray):
        return
    assert len(callback.entries) == len(callback.values)


FIELDS = st.sampled_from(["reason", "email", "number", "timestamp", "opt-in", "more"])
FIELD_VALUES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["unsub", "spam", "ann@example.com", "15550100001", "", "1500000000"])
    | st.text()
    | st.lists(st.none())
)


@given(st.lists(st.dictionaries(FIELDS, FIELD_VALUES)), st.sampled_from(["email", "sms"]))
def test_a_bad_neighbour_changes_nothing(values: list[dict[str, Any]], channel: Channel) -> None:
    body = json.dumps(values).encode()
    fast, slow = read(body, channel), read(b"[1e400," + body[1:] if values else b"[1e400]", channel)
    assert fast.signed_values == slow.signed_values
    assert [replace(entry, index=entry.index + 1) for entry in fast.entries] == slow.entries[1:]


EMAILS = st.fixed_dictionaries(
    {"reason": st.sampled_from(["unsub", "spam", "moved"]) | st.text(), "email": st.text()},
    optional={"timestamp": st.integers(-10, 10**20) | st.none()},
)
NUMBERS = st.fixed_dictionaries(
    {"number": st.text()}, optional={"timestamp": st.integers(-10, 10**20) | st.none(), "opt-in": st.booleans()}
)


@given(
    st.tuples(st.just("email"), st.lists(EMAILS, max_size=4))
    | st.tuples(st.just("sms"), st.lists(NUMBERS, max_size=4)),
    st.sampled_from(["", "1", "1.0", "1.5", "true", "1e400", "null", "NaN", '"12"', "9" * 30, "[]", '"\\ud800"']),
)
def test_what_is_as_documented_is_read_as_everything_else(
    given: tuple[Channel, list[dict[str, Any]]], odd: str
) -> None:
    channel, values = given
    body = json.dumps(values, ensure_ascii=False)
    if odd and values:
        body = body[:-2] + f', "timestamp": {odd}}}]'
    quick, mild = read(body.encode(), channel), read_mildly(body.encode(), channel)
    assert quick.signed_values == mild.signed_values
    assert quick.entries == mild.entries


# The bytes of bad entries.


@given(st.lists(st.recursive(FIELD_VALUES, lambda inner: st.dictionaries(st.text(), inner), max_leaves=5)), st.data())
def test_raw_entries_are_the_bytes_that_came(values: list[Any], data: st.DataObject) -> None:
    texts = [
        json.dumps(value, ensure_ascii=data.draw(st.booleans()), indent=data.draw(st.sampled_from([None, 1]))).encode()
        for value in values
    ]
    texts.insert(data.draw(st.integers(0, len(texts))), data.draw(st.sampled_from([b"0", b"NaN", b'"\\ud800"'])))
    indexes = data.draw(st.sets(st.integers(0, len(texts) - 1)))
    body = b" [ " + b" ,\n".join(texts) + b" ] "
    assert raw_entries(body, indexes) == {index: texts[index] for index in indexes}


def test_no_repr_shows_an_address() -> None:
    callback = read(b'[{"number":"15550100001"}]', "sms")
    assert "1555" not in repr(callback)
    assert "1555" not in repr(callback.entries)
