"""What commands say beside their result, for a person who is about to be puzzled."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import text

from service.__main__ import cli
from service.errors import SettingsError, StorageUnavailable
from service.flows import upkeep
from service.store.database import single_connection
from tests.test_serving import a_port


class Refusing(BaseHTTPRequestHandler):
    """Answers 401 to all."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(401)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


@contextmanager
def listening() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Refusing)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def run(*words: str, **environ: str) -> Result:
    quiet = {"LOG_LEVEL": "error", "KAHUNA_API_KEY": "demo-api-key", "KAHUNA_SECRET_KEY": "x", "KAHUNA_ENV": "s"}
    return CliRunner().invoke(cli, words, env=quiet | environ)


def test_a_second_token_of_a_name_is_made_and_told(database_url: str) -> None:
    words = ("token", "create", "--name", "me", "--scopes", "read")
    first, second = (run(*words, DATABASE_URL=database_url) for _ in range(2))
    assert (first.exit_code, second.exit_code) == (0, 0)
    assert "already" not in first.stderr
    assert "already" in second.stderr
    assert len({first.stdout, second.stdout}) == 2


def test_a_taken_port_is_told_with_what_chooses_another(database_url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result: Any = run("up", "--port", str(port), DATABASE_URL=database_url)
    assert isinstance(result.exception, SettingsError)
    assert "--port" in str(result.exception)


@pytest.mark.parametrize(("name", "other"), [("WORKER_PORT", "PORT"), ("WORKER_PORT", "ADMIN_PORT")])
def test_processes_of_one_machine_need_ports_of_their_own(database_url: str, name: str, other: str) -> None:
    first, second = a_port(), a_port()
    ports = {"ADMIN_PORT": str(second), name: str(first if other == "PORT" else second)}
    result: Any = run("up", "--port", str(first), DATABASE_URL=database_url, **ports)
    assert isinstance(result.exception, SettingsError)
    assert f"{name} must be another port than {other}" in str(result.exception)


def test_a_body_sent_to_the_webhook_of_the_other_channel_is_told_so(tmp_path: Path) -> None:
    body = tmp_path / "body.json"
    body.write_text('[{"reason": "unsub", "email": "ann@example.com"}]')
    with listening() as url:
        wrong = run("send", "email", str(body), "--to", f"{url}/webhooks/default/sms/token")
        right = run("send", "email", str(body), "--to", f"{url}/webhooks/default/email")
    assert (wrong.exit_code, right.exit_code) == (1, 1)
    assert "webhook of sms" in wrong.stderr
    assert right.stderr == ""


@pytest.mark.parametrize("words", [(), ("kahuna",)])
def test_no_command_is_told_in_half_a_sentence(words: tuple[str, ...]) -> None:
    lines = run(*words, "--help").stdout.splitlines()[1:]
    assert not [line for line in lines if line.endswith("...")]


def test_migrate_says_where_it_looked_and_no_password() -> None:
    place = f"127.0.0.1:{a_port()}"
    result: Any = run("migrate", DATABASE_URL=f"postgresql://ann:the-password@{place}/nothing")
    assert isinstance(result.exception, StorageUnavailable)
    assert f"looked for at {place}." in str(result.exception)
    assert "the-password" not in str(result.exception)


def test_migrate_makes_the_first_months(database_url: str) -> None:
    """So that not even the first callback goes to the default partitions."""
    for _ in range(2):
        result = CliRunner().invoke(cli, ["migrate"], env={"DATABASE_URL": database_url})
        assert result.exit_code == 0
    query = "select count(*) from pg_inherits where inhparent in ('batches'::regclass, 'changes'::regclass)"
    assert asyncio.run(one_of(database_url, query)) == 2 * (1 + 1 + upkeep.AHEAD)


async def one_of(url: str, query: str) -> Any:
    async with single_connection(url) as connection:
        return (await connection.execute(text(query))).scalar()
