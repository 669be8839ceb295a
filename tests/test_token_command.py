"""Tokens from the shell: made with their limits, listed without what would let one use them, ended by name or id."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select

from service.errors import SettingsError
from service.store.database import single_connection
from service.store.tables import audit
from tests.test_commands import run


def made(database_url: str, *words: str) -> Any:
    return run("token", "create", "--name", "orders", "--scopes", "read", *words, DATABASE_URL=database_url)


def listed(database_url: str) -> str:
    return run("token", "list", DATABASE_URL=database_url).stdout


def id_of(line: str) -> str:
    return line.split()[1]


def lines(database_url: str) -> list[str]:
    return [line for line in listed(database_url).splitlines() if "orders" in line]


def test_a_token_shows_its_limits_and_not_itself(database_url: str) -> None:
    result = made(database_url, "--namespace", "default", "--channel", "sms", "--expires", "90d")
    (line,) = lines(database_url)
    assert (result.exit_code, result.stderr) == (0, f"Its id is {id_of(line)}.\n")
    ends = datetime.now(UTC) + timedelta(days=90)
    assert all(word in line for word in ("orders", "read", "default", "sms", f"{ends:%Y-%m-%d}", "live"))
    assert result.stdout.strip() not in line


@pytest.mark.parametrize(
    "expires", ["90", "0d", "tomorrow", "2020-01-01T00:00:00Z", "9999999d", "2099-01-31", "-1d", "2099-01-31T12:00:00"]
)
def test_an_end_that_makes_no_sense_is_refused_with_what_to_say(database_url: str, expires: str) -> None:
    result = made(database_url, "--expires", expires)
    assert result.exit_code == 2
    assert "90d, 12h or 2027-01-31T12:00:00Z" in result.stderr
    assert lines(database_url) == []


def test_an_end_may_be_a_time_with_its_offset(database_url: str) -> None:
    made(database_url, "--expires", "2099-01-31T13:00:00+01:00")
    (line,) = lines(database_url)
    assert "2099-01-31 12:00Z" in line


def test_an_operators_token_cannot_be_of_one_channel(database_url: str) -> None:
    words = ("token", "create", "--name", "me", "--scopes", "read,admin", "--channel", "sms")
    result = run(*words, DATABASE_URL=database_url)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "--channel" in result.stderr


def test_a_token_is_replaced_by_a_second_and_ended_by_its_id(database_url: str) -> None:
    made(database_url)
    second = made(database_url)
    (old, _) = map(id_of, lines(database_url))
    assert f"kahuna-sync token revoke {old}" in second.stderr
    result = run("token", "revoke", old, DATABASE_URL=database_url)
    assert (result.exit_code, result.stderr) == (0, "Revoked 1: orders.\n")
    first, newer = lines(database_url)
    assert "revoked" in first
    assert "live" in newer
    assert made(database_url).stderr != ""


def test_a_name_ends_all_its_tokens(database_url: str) -> None:
    made(database_url)
    made(database_url)
    assert run("token", "revoke", "orders", DATABASE_URL=database_url).stderr == "Revoked 2: orders, orders.\n"
    assert "already" not in made(database_url).stderr


@pytest.mark.parametrize("which", ["nobody", "", "a", "%", "________"])
def test_what_is_no_name_and_no_id_ends_nothing(database_url: str, which: str) -> None:
    made(database_url)
    result = run("token", "revoke", which, DATABASE_URL=database_url)
    assert isinstance(result.exception, SettingsError)
    assert "token list" in str(result.exception)
    assert "live" in lines(database_url)[0]


def test_what_is_done_to_tokens_is_in_the_audit_log(database_url: str) -> None:
    made(database_url, "--channel", "email")
    run("token", "revoke", "orders", DATABASE_URL=database_url)
    created, revoked = asyncio.run(audited(database_url))
    assert (created.actor, created.action, created.detail["name"]) == ("shell", "token.created", "orders")
    assert (created.detail["scopes"], created.detail["channel"]) == (["read"], "email")
    assert (revoked.action, revoked.detail["name"]) == ("token.revoked", "orders")


async def audited(database_url: str) -> Sequence[Any]:
    async with single_connection(database_url) as connection:
        return (await connection.execute(select(audit).order_by(audit.c.at))).all()
