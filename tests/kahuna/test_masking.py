"""What Kahuna wrote is kept without anything that may be an address or a key."""

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
