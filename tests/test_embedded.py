"""The embedded PostgreSQL comes back after a kill, with what it held, and is never made anew by that."""

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import text

from service import embedded
from service.__main__ import cli
from service.errors import SettingsError
from service.store.database import single_connection
from tests.acceptance.running import until
from tests.test_doctor import KEYS


@pytest.fixture
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="ks-pg-"))
    made.chmod(0o755)  # the server refuses to run as root, and its own user must get in
    yield made
    shutil.rmtree(made, ignore_errors=True)


def kill(folder: Path) -> None:
    """SIGKILL to the postmaster; those under it end by themselves once they see that."""
    postmaster = int((folder / "postgres" / "postmaster.pid").read_text().split()[0])
    children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
    os.kill(postmaster, signal.SIGKILL)
    until(lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in children), "the killed ones are gone")


async def ask(url: str, statement: str) -> None:
    async with single_connection(url) as connection:
        await connection.execute(text(statement))
        await connection.commit()


async def test_a_killed_server_is_started_again_where_it_was(folder: Path) -> None:
    with embedded.server(folder) as url:
        await ask(url, "create table kept ()")
        assert not embedded.revive(folder, url)
        kill(folder)
        assert embedded.revive(folder, url)
        assert not embedded.revive(folder, url)
        await ask(url, "select from kept")
        kill(folder)
        shutil.rmtree(folder / "postgres")
        with pytest.raises(SettingsError, match="gone"):
            embedded.revive(folder, url)
    assert not (folder / "postgres").exists()


def asked(folder: Path, *words: str) -> Result:
    """A command in a shell that names the folder and no database."""
    environ = KEYS | {"DATA_DIR": str(folder), "PATH": os.environ["PATH"]}
    return CliRunner().invoke(cli, words, env=dict.fromkeys(os.environ) | environ)


@pytest.mark.parametrize(
    "words",
    ["corrections list", "clock", "reconcile list", "reconcile --channel email", "quarantine list", "token list"],
)
def test_a_command_that_looks_makes_no_database(folder: Path, words: str) -> None:
    answer = asked(folder, *words.split())
    assert isinstance(answer.exception, SettingsError)
    assert f"no database in {folder}: set DATABASE_URL or DATA_DIR" in str(answer.exception)
    assert list(folder.iterdir()) == []


def test_doctor_looks_at_the_embedded_database_while_it_runs_and_at_the_spool_beside_it(folder: Path) -> None:
    nothing = asked(folder, "doctor", "--offline").stdout
    assert f"no database in {folder}" in nothing
    assert list(folder.iterdir()) == []
    (folder / "spool").mkdir()
    with embedded.server(folder):
        assert embedded.runs(folder)
        seen = asked(folder, "doctor", "--offline").stdout
        assert embedded.runs(folder), "its other users have it still"
    assert ("ok    spool" in seen, "ok    database " in seen, "the database is empty" in seen) == (True, True, True)
    assert "does not run" in asked(folder, "doctor", "--offline").stdout
    assert not embedded.runs(folder)
