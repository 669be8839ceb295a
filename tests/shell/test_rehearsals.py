"""What is only shown, and what needs a word first."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from click.testing import CliRunner

from service.shell import Surroundings, kahuna

from .speaking import ENVIRON, MEET_ANN, ONE_ENTRY, PUSH, SECRETS, SINCE, Shell, commands, lines, ndjson

SINCE_UNTIL = ("--since", "2017-07-13T10:00:00+02:00", "--until", "2017-07-15")
REHEARSALS: Mapping[tuple[str, ...], tuple[tuple[str, ...], str]] = {
    ("server",): (("--dev-id", "d", "--event", "e", "--email", "ann@example.com"), ""),
    ("user-attributes",): (("-",), ndjson(*[{"target": {"email": "a"}, "attributes": {"b": None}}] * 250)),
    ("adaptive-campaign",): (
        ("-", "--campaign-id", "1", "--cred-type", "email", "--wait"),
        ndjson({"k_to": ["a"]}),
    ),
    ("job-status",): (("job-1", "--wait"), ""),
    ("push",): (("-",), ndjson(*[{"target": {"email": "a"}, "alert": "b"}] * 250)),
    ("email-sync",): (("-",), ONE_ENTRY),
    ("sms-sync",): (("-",), ndjson({"number": "15550100001"})),
    ("user-delete",): (("--email", "ann@example.com"), ""),
    ("flex",): (("-", "--campaign-id", "1"), ndjson({"event": "e"})),
    ("user-campaign",): (("--email", "ann@example.com"), ""),
    ("user-info",): (("--email", "ann@example.com"), ""),
    ("campaign-statistics",): ((), ""),
    **{("logs", name): (SINCE_UNTIL, "") for name in ("push", "in-app", "email", "user-merge")},
}
SENT: Mapping[tuple[str, ...], int] = {("user-attributes",): 3, ("push",): 3} | {
    ("logs", name): 2 for name in ("push", "in-app", "email", "user-merge")
}


@pytest.mark.parametrize("words", list(commands()), ids=" ".join)
def test_a_rehearsal_shows_every_request_without_keys_and_reaches_nobody(words: tuple[str, ...]) -> None:
    more, given = REHEARSALS[words]
    environ = ENVIRON | {"KAHUNA_ENV": "p", "KAHUNA_BASE_URL": "http://127.0.0.1:9"}
    # A real client, but for what --dry-run puts behind it: at this port nobody listens.
    result = CliRunner().invoke(kahuna, [*words, *more, "--dry-run"], obj=Surroundings(environ), input=given)
    assert (result.exit_code, result.stderr) == (0, "")
    shown = lines(result)
    assert len(shown) == SENT.get(words, 1)
    for request in shown:
        assert set(request) == {"method", "url", "headers", "body"}
        assert request["url"].startswith("http://127.0.0.1:9/")
        assert words == ("server",) or request["headers"]["Authorization"] == "***"
    assert not any(secret in result.output for secret in SECRETS)
    checksum = {"user-info", "user-delete"} & {*words}
    assert not checksum or shown[0]["headers"]["KAHUNA_API_CHECKSUM"] == "***"


def test_a_rehearsal_of_the_server_api_masks_the_key_in_its_form(shell: Shell) -> None:
    (request,) = shell.done(*MEET_ANN, "--dry-run")
    assert request["body"]["key"] == "***"
    assert json.loads(request["body"]["credentials"]) == {"email": "ann@example.com", "username": "ann"}


def test_a_rehearsal_keeps_no_position(shell: Shell, tmp_path: Path) -> None:
    shell.done("logs", "email", *SINCE, "--cursor-file", str(tmp_path / "position"), "--dry-run")
    assert list(tmp_path.iterdir()) == []


DANGEROUS = {
    "user-delete": ("user-delete", "--email", "ann@example.com"),
    "push": PUSH,
    "flex": ("flex", "-", "--campaign-id", "2001"),
    "adaptive-campaign": ("adaptive-campaign", "-", "--campaign-id", "1002", "--cred-type", "email"),
}


@pytest.mark.parametrize("name", DANGEROUS)
def test_what_would_hurt_in_production_needs_a_word(shell: Shell, name: str) -> None:
    shell.environ["KAHUNA_ENV"] = "p"
    given = {"flex": '{"event": "e"}', "adaptive-campaign": '{"k_to": ["a"]}'}.get(name, "")
    asked = shell(*DANGEROUS[name], given=given)
    assert (asked.exit_code, shell.requests) == (2, [])
    assert "--yes" in asked.stderr
    shell(*DANGEROUS[name], "--yes", given=given)
    assert len(shell.requests) == 1


@pytest.mark.parametrize(("reply", "code", "sent"), [("y\n", 1, 1), ("n\n", 2, 0), ("", 130, 0)])
def test_somebody_at_a_terminal_is_asked(shell: Shell, reply: str, code: int, sent: int) -> None:
    shell.environ["KAHUNA_ENV"] = "p"
    shell.may_ask = True
    result = shell(*DANGEROUS["user-delete"], given=reply)
    assert (result.exit_code, len(shell.requests)) == (code, sent)
    assert "in production (namespace default)" in result.stderr


def test_the_command_line_has_them(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "service", "kahuna", "sms-sync", "-", "--dry-run"]
    environ = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ} | ENVIRON
    ended = subprocess.run(
        words, env=environ, cwd=Path(__file__).parents[2], input=b'[{"number":"1"}]', capture_output=True, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert json.loads(ended.stdout)["body"] == [{"number": "1"}]
