"""What Kahuna wrote is kept without anything that may be an address or a key."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.kahuna.masking import LONGEST, masked, texts_in


def test_plain_words_stay() -> None:
    assert masked("Invalid reason: not supported") == "Invalid reason: not supported"


def test_what_may_be_an_address_or_a_key_does_not() -> None:
    for text in (
        "ann@example.com",
        "a***@example.com",
        "<ann@example.com>",
        "+1 555 010 0001",
        "15550100001",
        "example.com",
        '{"email":"ann@example.com"}',
        "demo-api-key",
        "kX93jd",
        "AKIAIOSFODNN",
        "m\u00fcller",
        "averyveryverylongwordindeed",
    ):
        assert masked(f"unknown {text}") == "unknown ***", text


def test_words_of_what_was_sent_are_masked_too() -> None:
    assert masked("the user Ann at example is unknown", ["ann.smith@example.com"]) == "the user *** at *** is unknown"
    assert masked("key demo is wrong", ["demo-api-key"]) == "*** is wrong"


@pytest.mark.parametrize(
    "piece",
    [
        "annasmi...",  # cut off
        "nasmith",
        "Annasmith,",
        "annasmithexample",  # run together
        "mailexample",
        "xannasmith",
        "a n n a s m i t h",  # spelt out
        "jose",  # without its accent
        "lverthor",
    ],
)
def test_pieces_of_what_was_sent_tell_nothing(piece: str) -> None:
    hidden = ["annasmith@example.com", "jos\u00e9@example.org", "silverthorn-key"]
    letters = {word for word in masked(f"unknown {piece}", hidden).split() if word not in ("unknown", "***")}
    assert letters <= {"a", "i"}


def test_many_addresses_hide_no_common_words() -> None:
    hidden = [f"user{n}@shop{n}.example" for n in range(5000)]
    assert masked("Invalid address: not a member of this list", hidden) == "Invalid address: not a member of this list"


def test_it_is_short() -> None:
    assert len(masked("word " * 10_000)) <= LONGEST


@given(st.text(), st.lists(st.from_regex(r"[a-z]{1,8}\.[a-z]{1,8}@[a-z]{2,8}\.[a-z]{2,3}", fullmatch=True)))
def test_nothing_hidden_survives(text: str, addresses: list[str]) -> None:
    shown = masked(" ".join([text, *addresses, *(part for one in addresses for part in one.split("@"))]), addresses)
    words = set(shown.lower().replace("*", " ").split())
    assert not any(one in shown for one in addresses)
    assert not any(part in words for one in addresses for part in one.partition("@")[0].split("."))


def test_the_texts_of_a_document_are_found_to_some_depth() -> None:
    document = {"a": ["one", {"b": "two", "c": 3}], "d": None, "e": "three"}
    assert list(texts_in(document)) == ["one", "two", "three"]
    nested: object = "deep"
    for _ in range(900):
        nested = [nested]
    assert list(texts_in(nested)) == []
