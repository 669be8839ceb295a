"""The slow decoder, held against the standard one on documents that both can read."""

import json
import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.kahuna.salvage import MAX_DEPTH, MAX_DIGITS, NESTED, NotAnArray, NotJson, Salvaged, salvage

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=9)
# With what only this decoder takes: surrogates, and numbers that are none.
ODD_SCALARS = SCALARS | st.floats() | st.text(st.characters(categories=["Cs", "Ll"]))
ODD_VALUES = st.recursive(ODD_SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=9)


@st.composite
def documents(draw: st.DrawFn, values: st.SearchStrategy[Any]) -> str:
    """A JSON array as some program might print it."""
    indent, escaped = draw(st.sampled_from([None, 0, 3])), draw(st.booleans())
    blank = st.text(" \t\r\n", max_size=3)
    text = json.dumps(draw(st.lists(values)), ensure_ascii=escaped, indent=indent)
    return draw(blank) + text + draw(blank)


@st.composite
def damaged(draw: st.DrawFn) -> str:
    """A JSON array after a slip of the pen."""
    text = draw(documents(ODD_VALUES))
    at, until = sorted(draw(st.tuples(*[st.integers(0, len(text))] * 2)))
    return text[:at] + draw(st.text('[]{},:"\\u0019.eE-+ \t\n\fNaN\x00é', max_size=3)) + text[min(until, at + 2) :]


def flat(value: Any) -> Any:
    """What is expected of a value: its own level, and a mark for what lies below."""
    if isinstance(value, dict):
        return {key: NESTED if isinstance(inner, (dict, list)) else inner for key, inner in value.items()}
    return NESTED if isinstance(value, list) else value


def one(entry: str) -> Salvaged:
    """The salvaged entry, beside two sound ones."""
    before, found, after = salvage(f'["before",{entry},{{"k": "after"}}]')
    assert (before.value, before.fault, after.value, after.fault) == ("before", None, {"k": "after"}, None)
    assert found.raw == entry
    return found


@given(documents(VALUES))
def test_it_reads_ordinary_documents_as_the_standard_decoder_does(text: str) -> None:
    entries = salvage(text)
    # By their repr: 1, 1.0 and true are not the same value here.
    assert repr([entry.value for entry in entries]) == repr([flat(value) for value in json.loads(text)])
    assert [json.loads(entry.raw) for entry in entries] == json.loads(text)
    assert not any(entry.fault for entry in entries)


@given(documents(ODD_VALUES) | damaged())
def test_it_takes_and_refuses_what_the_standard_decoder_does(text: str) -> None:
    try:
        values = json.loads(text)
    except ValueError:
        values = None
    if isinstance(values, list):
        assert repr([entry.value for entry in salvage(text)]) == repr([flat(value) for value in values])
    else:
        with pytest.raises((NotJson, NotAnArray)):
            salvage(text)


def fast_decoder_takes(text: str) -> bool:
    try:
        msgspec.json.decode(text)
    except ValueError:
        return False
    return True


@given(documents(ODD_VALUES) | damaged())
def test_it_finds_a_fault_wherever_the_fast_decoder_stops(text: str) -> None:
    try:
        entries = salvage(text)
    except (NotJson, NotAnArray):
        assert not fast_decoder_takes(text) or not text.strip().startswith("[")
    else:
        assert [entry.fault is None for entry in entries] == [fast_decoder_takes(entry.raw) for entry in entries]


@pytest.mark.parametrize(
    ("entry", "fault"),
    [
        ('"\\ud800"', "lone-surrogate"),
        ('"\\udc00\\ud800"', "lone-surrogate"),
        ('{"\\ud800":1}', "lone-surrogate"),
        ('{"a":["\\ud800"]}', "lone-surrogate"),
        ("NaN", "not-a-number"),
        ('{"a":Infinity}', "not-a-number"),
        ('{"a":[-Infinity]}', "not-a-number"),
        ("1e400", "number-out-of-range"),
        ("-1e400", "number-out-of-range"),
        ("9" * 400 + ".5", "number-out-of-range"),
        ("9" * 5000, "number-out-of-range"),
        ("-" + "9" * MAX_DIGITS, "number-out-of-range"),
        ('{"a":{"b":1e400}}', "number-out-of-range"),
        ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), "nested-too-deep"),
        ('{"a":' * (MAX_DEPTH + 1) + "1" + "}" * (MAX_DEPTH + 1), "nested-too-deep"),
        ("[NaN,1e400]", "not-a-number"),
        ("[1e400,NaN]", "number-out-of-range"),
    ],
)
def test_a_bad_value_is_the_fault_of_its_entry_alone(entry: str, fault: str) -> None:
    assert one(entry).fault == fault


@pytest.mark.parametrize(
    "entry",
    [
        '"\\ud83d\\ude00"',
        "0e999",
        "1e-999",
        "9" * MAX_DIGITS,
        "-" + "9" * (MAX_DIGITS - 1),
        "[" * MAX_DEPTH + "]" * MAX_DEPTH,
    ],
)
def test_what_a_machine_can_hold_is_no_fault(entry: str) -> None:
    assert one(entry).fault is None


def test_the_good_values_of_a_bad_entry_are_kept() -> None:
    entry = one('{"email":"ann@example.com","x":{"email":"eve@example.com"},"timestamp":NaN}')
    assert isinstance(entry.value, dict)
    assert (entry.value["email"], entry.value["x"]) == ("ann@example.com", NESTED)
    assert math.isnan(entry.value["timestamp"])


def test_the_last_of_duplicate_keys_wins() -> None:
    assert one('{"a":1,"b":NaN,"a":{},"\\u0061":"last"}').value == pytest.approx(
        {"a": "last", "b": math.nan}, nan_ok=True
    )


def test_surrogates_pass_through_and_pairs_are_joined() -> None:
    assert one('"x\\ud800\\ud83d\\ude00"').value == "x\ud800\U0001f600"


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "[",
        "]",
        "[]]",
        "[[]",
        "[] []",
        "[}",
        "[{]",
        "[,]",
        "[1,]",
        "[1 2]",
        '["a" "b"]',
        "[:]",
        "[1:2]",
        '[{"a"}]',
        '[{"a":}]',
        '[{"a":1,}]',
        '[{"a" 1}]',
        '[{"a",1}]',
        "[{1:2}]",
        '[{"a":1:2}]',
        "[{,}]",
        "[01]",
        "[-]",
        "[+1]",
        "[1.]",
        "[.5]",
        "[1e]",
        "[0x1]",
        "[١]",
        "[-NaN]",
        "[nan]",
        "[True]",
        "[nullnull]",
        "['a']",
        '["a]',
        '["\n"]',
        '["\x00"]',
        '["\\x"]',
        '["\\u12"]',
        '["\\u+123"]',
        '["\\"]',
        "\ufeff[]",
        "\u00a0[]",
        "[]\x0c",
        "// no\n[]",
        "[1]1",
    ],
)
def test_what_is_not_json_is_refused(text: str) -> None:
    with pytest.raises(NotJson, match=r"^the body is not JSON in UTF-8$"):
        salvage(text)


@pytest.mark.parametrize("text", ["{}", '{"a":NaN}', "null", " 1", '"[]"', "NaN"])
def test_what_is_not_an_array_is_refused(text: str) -> None:
    with pytest.raises(NotAnArray, match=r"^the body is not a JSON array$"):
        salvage(text)


@pytest.mark.parametrize(
    "entry",
    [
        "[" * 100_000 + "]" * 100_000,
        '{"a":' * 100_000 + "1" + "}" * 100_000,
        '[{"a":' * 50_000 + "1" + "}]" * 50_000,
        "9" * 1_000_000,
        "-" + "9" * 1_000_000 + ".5e-7",
        "1e" + "9" * 1_000_000,
        '"' + "\\ud800" * 200_000 + '"',
        '"' + "\\n" * 500_000 + '"',
        "{" + '"a":1,' * 200_000 + '"a":NaN}',
    ],
    ids=["brackets", "braces", "both", "digits", "fraction", "exponent", "surrogates", "escapes", "keys"],
)
@pytest.mark.timeout(20)
def test_a_monstrous_entry_takes_time_by_its_length_alone(entry: str) -> None:
    assert one(entry).raw == entry


@pytest.mark.parametrize(
    "text",
    [
        "[" * 1_000_000,
        '[{"a":' * 200_000,
        '["' + "\\n" * 500_000,
        "[" + " " * 1_000_000,
        '["\\u12' * 200_000,
        " " * 10**6,
    ],
    ids=["brackets", "both", "string", "blanks", "escapes", "nothing"],
)
@pytest.mark.timeout(20)
def test_a_monstrous_body_that_never_ends_is_refused_in_time(text: str) -> None:
    with pytest.raises(NotJson):
        salvage(text)


def test_no_repr_shows_a_value() -> None:
    assert "ann" not in repr(salvage('["ann@example.com"]'))
