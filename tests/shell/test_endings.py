"""How a call ends: exit codes, how far it got, Ctrl-C."""

import io
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import httpx
import pytest
from click.testing import CliRunner

from service.kahuna import Retry
from service.shell import items, kahuna
from service.shell.printing import EXIT_CODES

from .speaking import MEET_ANN, ONE_ENTRY, PUSH, SECRETS, SYNC, Endless, Shell, commands, lines, ndjson, walk

ENDINGS: Mapping[str, tuple[tuple[str, ...], dict[str, Any], int, str]] = {
    "keys": (SYNC, {"status": 401}, 3, "Check KAHUNA_SECRET_KEY"),
    "permission": (SYNC, {"status": 409}, 3, "Ask Kahuna to permit it"),
    "request": (SYNC, {"status": 400}, 4, "Kahuna says: Failing on request. Change the request"),
    "size": (SYNC, {"status": 413}, 4, "Send less at once"),
    "limit": (SYNC, {"status": 429, "retry_after": 7}, 5, "Try again in 7 s"),
    "unavailable": (SYNC, {"status": 503}, 5, "Try again later"),
    "elsewhere": (SYNC, {"status": 404}, 5, "Check KAHUNA_BASE_URL"),
    "safe": (SYNC, {"drop_answer": True}, 6, "It is safe to send it again"),
    "ambiguous": (PUSH, {"drop_answer": True}, 6, "Find out whether it was done"),
    "half done": (PUSH, {"status": 500}, 6, "Find out whether it was done"),
    "unreadable": (SYNC, {"body": "html"}, 7, "See what answers at KAHUNA_BASE_URL"),
    "unreadable and not safe": (
        PUSH,
        {"body": "html"},
        7,
        "Find out whether it was done before you send it again. See",
    ),
    "refused": (("server", "--dev-id", "", "--event", "e"), {}, 2, "--dev-id"),
}


@pytest.mark.parametrize(("timestamp", "says"), [(5, "safe to send it again"), (None, "Find out whether it was done")])
def test_an_opt_in_without_a_time_is_not_safe_to_repeat(shell: Shell, timestamp: int | None, says: str) -> None:
    shell.fail(drop_answer=True)
    entries = [{"number": "15550100001"}, {"number": "15550100002", "opt-in": True, "timestamp": timestamp}]
    result = shell("sms-sync", "-", given=ndjson(*entries))
    assert result.exit_code == 6
    assert says in result.stderr


@pytest.mark.parametrize("name", ENDINGS)
def test_an_ending_has_a_code_and_says_what_to_do_next(shell: Shell, name: str) -> None:
    words, fault, code, says = ENDINGS[name]
    if fault:
        shell.fail(**fault)
    result = shell(*words, given=ONE_ENTRY)
    assert result.exit_code == code
    assert says in result.stderr
    assert result.stdout == ""
    assert not any(secret in result.output for secret in SECRETS)


def test_success_false_is_a_refusal(shell: Shell) -> None:
    shell.environ["KAHUNA_SECRET_KEY"] = "another"
    result = shell(*MEET_ANN)
    assert result.exit_code == 1
    assert "Kahuna says: Authentication failed." in result.stderr


def test_nobody_there_is_no_harm() -> None:
    shell = Shell(retry=Retry(attempts=3))

    def refuse(request: httpx.Request) -> None:
        raise httpx.ConnectError("refused", request=request)

    shell.before = refuse
    result = shell(*PUSH)
    assert (result.exit_code, len(shell.requests)) == (5, 3)
    assert "Check the network" in result.stderr


def test_a_job_that_takes_too_long_is_told_by_its_code(shell: Shell) -> None:
    words = ["adaptive-campaign", "-", "--campaign-id", "1002", "--cred-type", "email", "--wait", "--deadline", "20"]
    result = shell(*words, given=ndjson({"k_to": ["nobody"]}))
    assert result.exit_code == 5
    assert "kahuna job-status asks for it" in result.stderr


def test_every_code_is_in_every_help() -> None:
    for words in [(), ("logs",), *commands()]:
        shown = CliRunner().invoke(kahuna, [*words, "--help"])
        assert shown.exit_code == 0
        for code, says in EXIT_CODES.items():
            assert f"{code}  {says}" in shown.output


def test_the_vendors_text_cannot_command_a_terminal(shell: Shell) -> None:
    result = shell("user-info", "--credential", "x\x1b[2J=5")
    assert result.exit_code == 4
    assert "Kahuna says: Invalid credential x [2J." in result.stderr


def test_a_failure_says_how_far_it_got_and_skip_goes_on(shell: Shell) -> None:
    shell.done(*MEET_ANN)
    text = ndjson(*({"target": {"username": "ann"}, "attributes": {"n": str(n)}} for n in range(250)))
    sent = len(shell.requests)

    def third(request: httpx.Request) -> None:
        if len(shell.requests) == sent + 3:
            raise httpx.ConnectError("gone", request=request)

    shell.before = third
    first = shell("user-attributes", "-", given=text)
    assert (first.exit_code, len(lines(first))) == (5, 200)
    assert "200 users were answered; --skip 200 goes on after them." in first.stderr
    rest = shell.done("user-attributes", "-", "--skip", "200", given=text)
    assert len(rest) == 50
    assert shell.done("user-info", "--username", "ann")[0]["user"]["attributes"] == {"n": "249"}


def test_requests_cut_by_their_size_are_counted_too(shell: Shell) -> None:
    text = "".join(f'{{"reason":"unsub","email":"{n:0600}@example.com"}}\n' for n in range(20_000))

    def second(request: httpx.Request) -> None:
        if len(shell.requests) == 2:
            raise httpx.ConnectError("gone", request=request)

    shell.before = second
    first = shell("email-sync", "-", given=text)
    done = lines(first)[0]["accepted"]
    assert (first.exit_code, 10_000 < done < 20_000) == (5, True)
    assert f"--skip {done} goes on" in first.stderr
    assert shell.done("email-sync", "-", "--skip", str(done), given=text)[0]["accepted"] == 20_000 - done


def test_a_sync_that_ends_early_prints_what_it_knows(shell: Shell) -> None:
    text = "".join(f'{{"reason":"unsub","email":"{n}@example.com"}}\n' for n in range(100_001)) + "{]\n"
    result = shell("email-sync", "-", given=text)
    assert result.exit_code == 2
    assert lines(result) == [{"accepted": 100_000, "rejected": 0, "errors": []}]
    assert "Line 100002 of the input is not JSON" in result.stderr
    assert "100000 entries were answered; --skip 100000" in result.stderr


def test_a_long_input_is_sent_as_it_is_read(shell: Shell) -> None:
    source = Endless(250_000, lambda n: b'{"reason":"unsub","email":"%d@example.com"}\n' % n)
    ahead: list[int] = []
    answered = 0

    def note(request: httpx.Request) -> None:
        nonlocal answered
        ahead.append(source.lines - answered)
        answered += request.content.count(b"reason")

    shell.before = note
    result = shell("email-sync", "-", given=io.BufferedReader(source))
    assert lines(result) == [{"accepted": 250_000, "rejected": 0, "errors": []}]
    assert len(ahead) == 3
    assert max(ahead) < 101_000


def test_an_array_is_read_piece_by_piece() -> None:
    source = Endless(60_000, lambda n: (b"[" if n == 0 else b", \n") + b'{"reason": "unsub", "email": "%d"}' % n)

    entries = items.read(io.BufferedReader(source), dict[str, str])
    assert next(entries) == {"reason": "unsub", "email": "0"}
    assert source.lines < 59_000
    with pytest.raises(click.UsageError, match="Item 60000"):
        assert sum(1 for _ in entries) == 59_999


def interrupt(shell: Shell, *numbers: int) -> None:
    """Ctrl-C while these requests are under way."""
    shell.before = lambda _: signal.raise_signal(signal.SIGINT) if len(shell.requests) in numbers else None


def test_a_request_that_sends_comes_to_its_end_first(shell: Shell) -> None:
    interrupt(shell, 2)
    text = ndjson(*[{"target": {"username": "ann"}, "attributes": {}}] * 250)
    result = shell("user-attributes", "-", given=text)
    assert (result.exit_code, len(shell.requests), len(lines(result))) == (130, 2, 200)
    assert "Ending after the request that is under way" in result.stderr
    assert "200 users were answered; --skip 200 goes on after them." in result.stderr
    assert "may have been processed" not in result.stderr


def test_a_second_one_ends_at_once(shell: Shell) -> None:
    def twice(_: httpx.Request) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    shell.before = twice
    result = shell(*PUSH)
    assert result.exit_code == 130
    assert "may have been processed: find out before you send it again" in result.stderr


def test_reading_ends_at_once_and_keeps_its_place(seeded: Shell, tmp_path: Path) -> None:
    since = ["--since", "2017-07-13"]
    everything = seeded.done("logs", "email", *since)
    interrupt(seeded, len(seeded.requests) + 3)
    code, first = walk(seeded, tmp_path / "position", *since)
    assert (code, len(first) < 95) == (130, True)
    assert first + walk(seeded, tmp_path / "position")[1] == everything


def test_input_that_never_comes_can_be_left(shell: Shell) -> None:
    def line(number: int) -> bytes:
        if number == 1000:
            signal.raise_signal(signal.SIGINT)
        return ONE_ENTRY.encode()

    result = shell("email-sync", "-", given=io.BufferedReader(Endless(2000, line)))
    assert (result.exit_code, result.stdout, shell.requests) == (130, "", [])
    assert "Interrupted." in result.stderr
