"""The embedded PostgreSQL comes back after a kill, with what it held, and is never made anew by that."""

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from service import embedded
from service.errors import SettingsError
from service.store.database import single_connection
from tests.acceptance.running import until


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
