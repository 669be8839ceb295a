"""`kahuna-sync rebuild`: what a person at a shell sees, and the exit code."""

import asyncio
from typing import Any

import pytest
import zstandard
from click.testing import CliRunner, Result
from sqlalchemy import text

from service.__main__ import cli
from service.errors import SettingsError
from service.store.database import single_connection

CAUSE = """insert into suppressions (address, channel, namespace, reason, stop_at)
           values ('a@example.com', 'email', 'default', 'manual', 5)"""

BATCH = """insert into batches (id, namespace, channel, origin, received_at, headers, body, body_bytes, state,
                                applied_at, errors, held)
           values ('019fa8ce-6b2f-7a6f-9a3e-1f2f64bb0c11', 'default', 'email', 'kahuna_webhook', now(), '[]',
                   decode('{}', 'hex'), {}, 'applied', now(), '[]', '{{}}')"""


async def execute(url: str, statement: str) -> None:
    async with single_connection(url) as connection:
        await connection.execute(text(statement))
        await connection.commit()


def run(url: str, *arguments: str) -> Result:
    return CliRunner().invoke(cli, ["rebuild", *arguments], env={"DATABASE_URL": url, "LOG_LEVEL": "error"})


def test_a_list_that_agrees_ends_well(database_url: str) -> None:
    result = run(database_url, "--verify")
    assert (result.exit_code, result.stdout.splitlines()[-1]) == (0, "The list is what its evidence says.")


@pytest.mark.parametrize("show", [False, True])
def test_one_that_does_not_is_counted_and_shown_only_if_asked(database_url: str, *, show: bool) -> None:
    asyncio.run(execute(database_url, CAUSE))
    result = run(database_url, "--verify", *(["--show"] if show else []))
    assert result.exit_code == 1
    assert "default, email: causes on the list without evidence: 1" in result.stdout
    assert ("a@example.com" in result.output) == show


def test_words_that_only_the_service_knows_are_not_blamed_on_the_list(database_url: str) -> None:
    body = b'[{"reason": "abuse", "email": "a@example.com", "timestamp": 5}]'
    packed = zstandard.ZstdCompressor().compress(body).hex()
    asyncio.run(execute(database_url, BATCH.format(packed, len(body))))
    result = run(database_url, "--verify")
    assert result.exit_code == 1
    assert "words that these settings do not know: 1\n" in result.stdout
    assert "EXTRA_REASONS" in result.stdout.splitlines()[-1]
    assert "cannot be replayed" not in result.stdout


def test_it_only_verifies(database_url: str) -> None:
    result: Any = run(database_url)
    assert isinstance(result.exception, SettingsError)
    assert "--verify" in str(result.exception)
