"""What is read, and what is refused before anything is sent."""

import io

import click
import pytest

from service.shell import items

from .speaking import SYNC, Shell


def entries_of(text: str | bytes, skip: int = 0) -> list[str]:
    """The reasons of these entries."""
    from_text = text.encode() if isinstance(text, str) else text
    return [entry["reason"] for entry in items.read(io.BytesIO(from_text), dict[str, str], skip)]


GOOD = {
    "lines": '{"reason": "a"}\n{"reason": "b"}\n',
    "no last newline": '{"reason": "a"}\n{"reason": "b"}',
    "blank lines": '\n  \n{"reason": "a"}\r\n\n{"reason": "b"}\n\n',
    "byte order mark": '\ufeff{"reason": "a"}\n{"reason": "b"}',
    "array": '[{"reason": "a"}, {"reason": "b"}]',
    "pretty array": '\n [\n  {\n    "reason": "a"\n  } ,\n  {"reason": "b"}\n]\n\n',
}


@pytest.mark.parametrize("text", GOOD.values(), ids=GOOD)
def test_an_array_and_lines_are_the_same(text: str) -> None:
    assert entries_of(text) == ["a", "b"]
    assert entries_of(text, skip=1) == ["b"]
    assert entries_of(text, skip=5) == []


@pytest.mark.parametrize("text", ["", "\n", "[]", " [ ] "])
def test_nothing_is_no_item(text: str) -> None:
    assert entries_of(text) == []


BAD = {
    "no json": ('{"reason": "a"}\n\nnonsense\n', "Line 3"),
    "not utf-8": (b'{"reason": "\xff"}', "Line 1"),
    "no object": ("5", "Line 1"),
    "unfinished array": ('[{"reason": "a"}, {"reas', "Item 2"),
    "no end": ('[{"reason": "a"}', "Item 1"),
    "no comma": ('[{"reason": "a"} {"reason": "b"}]', "Item 1"),
    "a comma too many": ('[{"reason": "a"},]', "Item 2"),
    "something behind": ('[{"reason": "a"}] x', "Item 1"),
    "array not utf-8": (b'[{"reason": "\xff"}]', "Item 1"),
}


@pytest.mark.parametrize(("text", "where"), BAD.values(), ids=BAD)
def test_a_fault_is_named_by_where_it_is(text: str | bytes, where: str) -> None:
    with pytest.raises(click.UsageError, match=where):
        entries_of(text)


@pytest.mark.parametrize(
    ("words", "given", "says"),
    [
        (SYNC, '{"reason": "unsub", "emial": "ann"}', "'emial'"),
        (SYNC, '{"reason": "unsub"}', "Line 1 is no EmailSyncEntry"),
        (SYNC, '{"reason": "unsub", "email": "ann@x", "timestamp": "5"}', "timestamp"),
        (("sms-sync", "-"), '{"number": "1", "opt_in": true}', "'opt_in'"),
        (
            ("push", "-"),
            '{"target": {"email": "a"}, "alert": "b", "config": {"campagin_name": "x"}}',
            "'campagin_name'",
        ),
        (("server", "-"), '{"dev_id": "d", "events": [{"event": "e", "tmie": 1}]}', "'tmie'"),
        (("flex", "-", "--campaign-id", "1"), "", "no events"),
        (("adaptive-campaign", "-", "--campaign-id", "1", "--cred-type", "email"), "[]", "no recipients"),
        (("user-info",), "", "exactly one credential"),
        (("user-info", "--email", "a", "--user-id", "b"), "", "exactly one credential"),
        (("user-attributes", "--email", "a"), "", "--set or --unset"),
        (("push", "-", "--email", "a"), "", "not both"),
        (("logs", "email"), "", "--since"),
        (("logs", "email", "--since", "yesterday"), "", "must be a time"),
        (("campaign-statistics", "--start", "5"), "", "must be a day"),
        (("user-info", "--credential", "fbid"), "", "NAME=VALUE"),
        (("email-sync", "/nowhere/at/all"), "", "No such file"),
        (("user-info", "--email", "a", "--namespace", "pub"), "", "There is no namespace pub"),
    ],
)
def test_wrong_usage_is_told_before_anything_is_sent(
    shell: Shell, words: tuple[str, ...], given: str, says: str
) -> None:
    result = shell(*words, given=given)
    assert (result.exit_code, result.stdout, shell.requests) == (2, "", [])
    assert says in result.stderr
    assert "ann" not in result.stderr
