"""`kahuna-sync kahuna`: every API from the shell, against the stand-in; exit codes, rehearsals, positions, Ctrl-C."""

import asyncio
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import click
import httpx
import pytest
from click.testing import CliRunner, Result

from service.kahuna import NO_RETRY, KahunaClient, Retry
from service.kahuna.simulator import SimulatorConfig, build_simulator
from service.settings import Secret
from service.shell import Surroundings, items, kahuna
from service.shell.printing import EXIT_CODES

NOW = 1_500_000_000.5  # 2017-07-14 02:40 UTC
SECRETS = ("the-secret-key", "the-api-key")
ENVIRON = {"KAHUNA_SECRET_KEY": SECRETS[0], "KAHUNA_API_KEY": SECRETS[1], "KAHUNA_BASE_URL": "http://kahuna.test"}
MEET_ANN = ["server", "--dev-id", "dev-ann", "--event", "start", "--email", "ann@example.com", "--username", "ann"]
SINCE = ["--since", "2017-07-14"]


class Clock:
    """A clock that only waiting moves."""

    def __init__(self) -> None:
        self.seconds = NOW

    def __call__(self) -> float:
        return self.seconds

    async def sleep(self, seconds: float) -> None:
        self.seconds += seconds


@dataclass
class Shell(httpx.AsyncBaseTransport):
    """A shell before a stand-in. `before` is told of every request that goes out, and may spoil it."""

    environ: dict[str, str] = field(default_factory=lambda: dict(ENVIRON))
    clock: Clock = field(default_factory=Clock)
    retry: Retry = NO_RETRY
    before: Callable[[httpx.Request], None] = lambda _: None
    requests: list[httpx.Request] = field(default_factory=list)
    may_ask: bool = False

    def __post_init__(self) -> None:
        config = SimulatorConfig(Secret(SECRETS[0]), Secret(SECRETS[1]), callback_pause_seconds=0.0)
        self._stand_in = httpx.ASGITransport(build_simulator(config, self.clock))

    def __call__(self, *words: str, given: str | bytes | io.BufferedReader | None = None) -> Result:
        """Runs `kahuna` with these words."""
        connect = partial(
            KahunaClient,
            transport=self,
            retry=self.retry,
            clock=self.clock,
            monotonic=self.clock,
            sleep=self.clock.sleep,
            jitter=lambda: 0.0,
        )
        around = Surroundings(self.environ, connect, self.clock, lambda: self.may_ask)
        result = CliRunner().invoke(kahuna, words, obj=around, input=given)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
        return result

    def done(self, *words: str, given: str | None = None) -> list[Any]:
        """Runs it, which must work; the lines that it printed."""
        result = self(*words, given=given)
        assert (result.exit_code, result.stderr) == (0, "")
        return lines(result)

    def control(self, path: str, body: Any, method: str = "POST") -> None:
        """One call of the stand-in's control endpoints."""

        async def call() -> None:
            async with httpx.AsyncClient(transport=self._stand_in, base_url="http://kahuna.test") as web:
                (await web.request(method, f"/simulator/{path}", json=body)).raise_for_status()

        asyncio.run(call())

    def fail(self, **fault: Any) -> None:
        """From now on it fails like this."""
        self.control("faults", fault, "PUT")

    # What a client needs of a transport.

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        self.before(request)
        return await self._stand_in.handle_async_request(request)


@pytest.fixture
def shell() -> Shell:
    return Shell()


def lines(result: Result) -> list[Any]:
    """What was printed: every line is JSON."""
    return [json.loads(line) for line in result.stdout.splitlines()]


def ndjson(*values: Any) -> str:
    return "".join(json.dumps(value) + "\n" for value in values)


def commands(group: click.Group = kahuna, *before: str) -> Iterator[tuple[str, ...]]:
    """The words of every command."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, *before, name)
        else:
            yield (*before, name)


# Each API.


def test_there_is_a_command_for_each_api() -> None:
    assert len(list(commands())) == 16


def test_what_a_device_did_makes_a_user_that_can_be_asked_for(shell: Shell) -> None:
    assert shell.done(*MEET_ANN, "--attribute", "plan=gold") == [{"success": True}]
    (answer,) = shell.done("user-info", "--email", "ann@example.com")
    assert answer["user"]["credentials"] == {"email": "ann@example.com", "username": "ann"}
    assert answer["user"]["attributes"] == {"plan": "gold"}


def test_devices_may_come_from_a_file(shell: Shell) -> None:
    requests = [{"dev_id": f"dev-{n}", "event": "start", "credentials": {"user_id": str(n)}} for n in range(3)]
    assert shell.done("server", "-", "--skip", "1", given=ndjson(*requests)) == [{"success": True}] * 2
    assert [shell("user-info", "--user-id", str(n)).exit_code for n in range(3)] == [1, 0, 0]


def test_attributes_of_one_user_and_of_many(shell: Shell) -> None:
    shell.done(*MEET_ANN)
    shell.done("user-attributes", "--email", "ann@example.com", "--set", "city=Rome", "--set", "old=1")
    shell.done("user-attributes", "--username", "ann", "--unset", "old", "--set", "visits=5")
    (answer,) = shell.done("user-info", "--credential", "username=ann")
    assert answer["user"]["attributes"] == {"city": "Rome", "visits": "5"}
    users = [{"target": {"username": name}, "attributes": {"n": 1}} for name in ["ann"] * 150 + ["nobody"]]
    result = shell("user-attributes", "-", given=json.dumps(users))
    assert (result.exit_code, result.stderr) == (
        1,
        "kahuna-sync: 1 of 151 users were refused; see the lines printed.\n",
    )
    assert lines(result) == [{"success": True}] * 150 + [
        {"success": False, "error_code": 404, "error": "User not found"}
    ]


def test_pushes(shell: Shell) -> None:
    shell.done(
        "server",
        "-",
        given=ndjson({"dev_id": "d", "event": "start", "credentials": {"user_id": "7"}, "push_token": "t"}),
    )
    assert shell.done("push", "--user-id", "7", "--alert", "Hello", "--campaign-name", "Hi") == [{"success": True}]
    body = json.loads(shell.requests[-1].content)
    assert body["push_array"] == [{"target": {"user_id": "7"}, "notification": {"alert": "Hello"}}]
    assert body["default_config"] == {"campaign_name": "Hi"}
    several = ndjson(
        {"target": {"user_id": "7"}, "alert": "a", "config": {"campaign_name": "Ho"}},
        {"target": {"user_id": "8"}, "alert": "b"},
    )
    result = shell("push", "-", given=several)
    assert (result.exit_code, [line["success"] for line in lines(result)]) == (1, [True, False])
    assert [r["action"] for r in shell.done("logs", "push", *SINCE)] == ["push", "rate_limited"]


def test_a_campaign_is_followed_to_its_end(shell: Shell) -> None:
    shell.done(*MEET_ANN)
    words = ["adaptive-campaign", "-", "--campaign-id", "1002", "--cred-type", "email"]
    result = shell(*words, "--param", "promo=X", "--wait", given=ndjson({"k_to": ["ann@example.com"]}))
    assert result.exit_code == 0
    (status,) = lines(result)
    assert (status["state"], status["complete"], status["processed"]) == ("complete", True, 1)
    job = status["job_id"]
    assert result.stderr.splitlines() == [f"job {job}", f"job {job}: pending, 0 of 1", f"job {job}: complete, 1 of 1"]
    assert shell.done("job-status", job) == [status]
    assert [r["action"] for r in shell.done("logs", "email", *SINCE)] == ["email", "delivered"]


def test_a_campaign_need_not_be_waited_for(shell: Shell) -> None:
    words = [
        "adaptive-campaign",
        "-",
        "--campaign-id",
        "1002",
        "--cred-type",
        "email",
        "--start",
        "2017-07-15T00:00:00Z",
    ]
    (answer,) = shell.done(*words, given=ndjson({"k_to": ["nobody@example.com"], "params": {"promo": "Y"}}))
    body = json.loads(shell.requests[-1].content)
    assert body["default_params"] == {"k_send_ts": 1_500_076_800}
    assert body["recipient_list"] == [{"k_to": ["nobody@example.com"], "promo": "Y"}]
    shell.clock.seconds += 100_000
    result = shell("job-status", answer["job_id"], "--wait")
    assert (result.exit_code, lines(result)[0]["failed"]) == (1, True)


def test_the_syncs_count_and_name_what_was_refused(shell: Shell) -> None:
    entries = [
        {"reason": "unsub", "email": "ann@example.com", "timestamp": 1_499_999_999},
        {"reason": "sneeze", "email": "b"},
    ]
    result = shell("email-sync", "-", given=ndjson(*entries))
    assert (result.exit_code, result.stderr) == (
        1,
        "kahuna-sync: 1 of 2 entries were refused; see the errors printed.\n",
    )
    assert lines(result)[0] | {"errors": 1} == {"accepted": 1, "rejected": 1, "errors": 1}
    assert lines(result)[0]["errors"][0]["email"] == "b"
    numbers = [{"number": "15550100001", "opt-in": True, "timestamp": 1_499_999_999}, {"number": "15550100002"}]
    assert shell.done("sms-sync", "-", given=json.dumps(numbers)) == [{"accepted": 2, "rejected": 0, "errors": []}]


def test_a_user_is_deleted_once(shell: Shell) -> None:
    shell.done(*MEET_ANN)
    assert shell.done("user-delete", "--username", "ann") == [{"found": True, "success": True}]
    again = shell("user-delete", "--username", "ann")
    assert (again.exit_code, lines(again)[0]["found"]) == (1, False)
    asked = shell("user-info", "--username", "ann")
    assert (asked.exit_code, lines(asked)[0]["error"]) == (1, "User not found")


def test_an_event_outside_fires_a_campaign(shell: Shell) -> None:
    (answer,) = shell.done(
        "flex", "-", "--campaign-id", "2001", "--param", "a=b", given=ndjson({"event": "price-drop"})
    )
    assert answer["success"]
    assert answer["job_id"]


def test_records_of_campaigns(shell: Shell) -> None:
    shell.environ["KAHUNA_ENV"] = "p"
    shell.control("seed", {"env": "p", "users": 50, "records": 100, "categories": ["email"]})
    users = shell.done("user-campaign", "--campaign-name", "Newsletter", "--start", "2017-07-13", "--end", "2017-07-15")
    assert len(users) == 50
    assert users[0]["campaigns"][0]["campaign_id"] == 1002
    (one,) = shell.done("user-campaign", "--email", "seeded-p-1@example.com")
    assert one["credentials"]["username"] == "seeded-p-1"
    two = shell.done("user-campaign", "-", given=ndjson({"username": "seeded-p-1"}, {"username": "seeded-p-2"}))
    assert len(two) == 2
    (figures,) = shell.done(
        "campaign-statistics", "--campaign-id", "1002", "--start", "2017-07-13", "--end", "2017-07-14"
    )
    assert figures["stats"]["delivered"] > 0
    assert len(shell.done("campaign-statistics")) == 6


def test_each_kind_of_record_has_its_command(shell: Shell) -> None:
    shell.control("seed", {"users": 2, "records": 30, "categories": ["email", "in_app", "push"]})
    for name in ("push", "in-app", "email"):
        assert len(shell.done("logs", name, *SINCE)) == 10
    shell.done(*MEET_ANN)
    shell.done("server", "--dev-id", "x", "--event", "e", "--user-id", "9")
    shell.done("server", "--dev-id", "x", "--event", "e", "--user-id", "9", "--email", "ann@example.com")
    (merge,) = shell.done("logs", "user-merge", *SINCE)
    assert merge["older_user_credentials"]


def test_a_field_that_nobody_knows_is_printed_too(shell: Shell) -> None:
    shell.environ["KAHUNA_CONTRACT"] = "job_state=mood"
    job = shell.done("adaptive-campaign", "-", "--campaign-id", "1002", "--cred-type", "email", given='{"k_to":["a"]}')[
        0
    ]
    (status,) = shell.done("job-status", job["job_id"])
    assert status["status"] == "pending"
    assert "state" not in status


# Exit codes.

SYNC = ("email-sync", "-")
ONE_ENTRY = ndjson({"reason": "unsub", "email": "ann@example.com"})
PUSH = ("push", "--email", "ann@example.com", "--alert", "Hello")
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
    "refused": (("server", "--dev-id", "", "--event", "e"), {}, 2, "--dev-id"),
}


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
    result = shell("job-status", "x\x1b[2J")
    assert result.exit_code == 4
    assert "\x1b" not in result.stderr


# How far a split call got.


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


def test_a_sync_that_ends_early_prints_what_it_knows(shell: Shell) -> None:
    text = "".join(f'{{"reason":"unsub","email":"{n}@example.com"}}\n' for n in range(100_001)) + "{]\n"
    result = shell("email-sync", "-", given=text)
    assert result.exit_code == 2
    assert lines(result) == [{"accepted": 100_000, "rejected": 0, "errors": []}]
    assert "Line 100002 of the input is not JSON" in result.stderr
    assert "100000 entries were answered; --skip 100000" in result.stderr


class Endless(io.RawIOBase):
    """Standard input that is made as it is read. `lines` is how many were handed out."""

    def __init__(self, count: int, line: Callable[[int], bytes]) -> None:
        self._count = count
        self._line = line
        self.lines = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        pieces = bytearray()
        while self.lines < self._count and len(pieces) + 200 < len(buffer):
            pieces += self._line(self.lines)
            self.lines += 1
        buffer[: len(pieces)] = pieces
        return len(pieces)


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


# Input.


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


# Settings.


@pytest.mark.parametrize("missing", ["KAHUNA_API_KEY", "KAHUNA_SECRET_KEY"])
def test_keys_that_are_missing_are_named(shell: Shell, missing: str) -> None:
    del shell.environ[missing]
    result = shell("user-info", "--email", "a")
    assert result.exit_code == 2
    assert missing in result.stderr


def test_corrections_of_the_contract_count(shell: Shell) -> None:
    shell.environ["KAHUNA_CONTRACT"] = "user_delete_path=/api/v2/delete,user_delete_checksum=no"
    (request,) = shell.done("user-delete", "--email", "a@example.com", "--dry-run")
    assert request["url"] == "http://kahuna.test/api/v2/delete?env=s"
    assert "KAHUNA_API_CHECKSUM" not in request["headers"]
    shell.environ["KAHUNA_CONTRACT"] = "nonsense=1"
    result = shell("user-info", "--email", "a")
    assert result.exit_code == 2
    assert "KAHUNA_CONTRACT" in result.stderr


def test_of_several_namespaces_one_is_chosen(shell: Shell, tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    table = 'secret_key = "{0}-secret"\napi_key = "{0}-new, {0}-old"\nbase_url = "http://{0}.test"\n'
    file.write_text(
        "".join(f"[namespaces.{name}]\n{table.format(name)}" for name in ("shop", "club")) + "[namespaces.bare]\n"
    )
    shell.environ = {"CONFIG_FILE": str(file)}
    assert "--namespace" in shell("user-info", "--email", "a").stderr
    (request,) = shell.done("user-info", "--email", "a", "--namespace", "club", "--dry-run")
    assert request["url"].startswith("http://club.test/")
    assert shell("user-info", "--email", "a", "--namespace", "bare").exit_code == 2


# Rehearsals.

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
    environ = ENVIRON | {"KAHUNA_ENV": "p", "KAHUNA_BASE_URL": f"http://me:{SECRETS[0]}@127.0.0.1:9"}
    # A real client, but for what --dry-run puts behind it: at this port nobody listens.
    result = CliRunner().invoke(kahuna, [*words, *more, "--dry-run"], obj=Surroundings(environ), input=given)
    assert (result.exit_code, result.stderr) == (0, "")
    shown = lines(result)
    assert len(shown) == SENT.get(words, 1)
    for request in shown:
        assert set(request) == {"method", "url", "headers", "body"}
        assert request["url"].startswith("http://***:***@127.0.0.1:9/")
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


# What would hurt.

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


# Positions.


def walk(shell: Shell, file: Path, *more: str) -> tuple[int, list[Any]]:
    """One run with a cursor file: its code, and the records it printed."""
    result = shell("logs", "email", "--cursor-file", str(file), "--page-size", "10", *more)
    return result.exit_code, lines(result)


@pytest.fixture
def seeded(shell: Shell) -> Shell:
    """Ninety-five records of yesterday and today, and no others."""
    shell.control("seed", {"users": 5, "records": 95, "span_seconds": 20_000})
    return shell


@pytest.mark.parametrize("broken", range(1, 11))
def test_after_an_interruption_nothing_is_lost_or_repeated(seeded: Shell, tmp_path: Path, broken: int) -> None:
    since = ["--since", "2017-07-13"]
    everything = seeded.done("logs", "email", *since)
    assert len(everything) == 95
    start = len(seeded.requests)

    def break_one(request: httpx.Request) -> None:
        if len(seeded.requests) == start + broken:
            raise httpx.ReadError("gone", request=request)

    seeded.before = break_one
    code, first = walk(seeded, tmp_path / "position", *since)
    assert (code, len(first) < 95) == (6, True)
    code, second = walk(seeded, tmp_path / "position", *since)
    assert code == 0
    assert first + second == everything
    assert walk(seeded, tmp_path / "position") == (0, [])


def test_later_records_come_with_the_next_run_over_midnight_too(seeded: Shell, tmp_path: Path) -> None:
    file = tmp_path / "position"
    _, printed = walk(seeded, file, "--since", "2017-07-13")
    for _ in range(3):
        seeded.clock.seconds += 40_000
        seeded.control("seed", {"records": 25, "span_seconds": 30_000})
        code, more = walk(seeded, file)
        assert (code, len(more)) == (0, 25)
        printed += more
    assert printed == seeded.done("logs", "email", "--since", "2017-07-13")


def test_an_interrupted_walk_to_a_time_leaves_what_comes_after_it(seeded: Shell, tmp_path: Path) -> None:
    file = tmp_path / "position"
    until = ["--until", "2017-07-14T01:00:00Z"]
    start = len(seeded.requests)

    def third(request: httpx.Request) -> None:
        if len(seeded.requests) == start + 3:
            raise httpx.ReadError("gone", request=request)

    seeded.before = third
    _, first = walk(seeded, file, "--since", "2017-07-13", *until)
    refused = seeded("logs", "email", "--cursor-file", str(file), "--until", "2017-07-14T00:30:00Z")
    assert (refused.exit_code, refused.stdout) == (2, "")
    _, second = walk(seeded, file)
    assert first + second == seeded.done("logs", "email", "--since", "2017-07-13")


def test_a_file_of_something_else_is_left_alone(seeded: Shell, tmp_path: Path) -> None:
    file = tmp_path / "position"
    walk(seeded, file, *SINCE)
    kept = file.read_bytes()
    assert "is of email" in seeded("logs", "push", "--cursor-file", str(file)).stderr
    assert file.read_bytes() == kept
    file.write_text("my diary")
    assert "is not one of this command's" in seeded("logs", "email", "--cursor-file", str(file)).stderr
    assert file.read_text() == "my diary"
    missing = seeded("logs", "email", "--cursor-file", str(tmp_path / "none"))
    assert "--since when it is to begin" in missing.stderr
    both = seeded("logs", "email", "--cursor-file", str(file), "--cursor", "x")
    assert "exclude each other" in both.stderr


def test_without_a_file_the_position_is_told(seeded: Shell) -> None:
    start = len(seeded.requests)

    def second(request: httpx.Request) -> None:
        if len(seeded.requests) == start + 2:
            raise httpx.ReadError("gone", request=request)

    seeded.before = second
    first = seeded("logs", "email", "--since", "2017-07-13", "--page-size", "10")
    words = first.stderr.partition("All before ")[2].partition(" was printed")[0].split()
    assert words[::2] == ["--since", "--cursor"]
    rest = seeded.done("logs", "email", *words)
    assert lines(first) + rest == seeded.done("logs", "email", "--since", "2017-07-13")


# Ctrl-C.


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


# As a process.


def test_the_command_line_has_them(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "service", "kahuna", "sms-sync", "-", "--dry-run"]
    environ = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ} | ENVIRON
    ended = subprocess.run(
        words, env=environ, cwd=Path(__file__).parents[1], input=b'[{"number":"1"}]', capture_output=True, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert json.loads(ended.stdout)["body"] == [{"number": "1"}]
