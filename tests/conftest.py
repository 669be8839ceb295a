"""What every test may ask for: a PostgreSQL of this run, a migrated database of its own, and closed sockets."""

import asyncio
import ipaddress
import itertools
import shutil
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog
from sqlalchemy import text

from service import embedded
from service.settings import Namespace, Secret, Settings
from service.store import migrations
from service.store.database import Database, single_connection

API_KEY = "demo-api-key"

_NUMBERS = itertools.count(1)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def logging_as_found() -> Iterator[None]:
    """A command that a test runs in this process sets the log up for the process; the next test knows nothing of it."""
    found = structlog.get_config()
    yield
    structlog.configure(**found)


@pytest.fixture(scope="session", autouse=True)
def only_loopback() -> None:
    """No test may speak to anything but this machine."""

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event != "socket.connect" or arguments[0].family == socket.AF_UNIX:
            return
        if not ipaddress.ip_address(arguments[1][0]).is_loopback:
            raise AssertionError("a test tried to reach another machine")

    # The interpreter itself tells of every connection; a hook cannot be taken away again, and need not be.
    sys.addaudithook(watch)


@pytest.fixture(scope="session")
def server_url() -> Iterator[str]:
    """A PostgreSQL for this run. Power loss is not what these tests are about, so it need not wait for the disk."""
    folder = Path(tempfile.mkdtemp(prefix="ks-pg-"))
    folder.chmod(0o755)  # the server refuses to run as root, and its own user must get in
    with embedded.server(folder) as url:
        # A vacuum of any database takes an xid at times, and holds the feed back for a moment.
        for setting in ("fsync", "autovacuum"):
            asyncio.run(administer(url, f"alter system set {setting} = off", "select pg_reload_conf()"))
        yield url
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def template(server_url: str) -> str:
    """The name of a migrated database, to be cloned."""
    asyncio.run(administer(server_url, "create database template_sync"))
    asyncio.run(migrations.upgrade(url_of(server_url, "template_sync")))
    return "template_sync"


@pytest.fixture
def database_url(server_url: str, template: str) -> Iterator[str]:
    """A database of the test's own, at head and empty."""
    with cloned(server_url, template) as url:
        yield url


@contextmanager
def cloned(server_url: str, template: str) -> Iterator[str]:
    """A database like the template, as long as the block lasts."""
    name = f"test_{next(_NUMBERS)}"
    asyncio.run(administer(server_url, f"create database {name} template {template} strategy file_copy"))
    yield url_of(server_url, name)
    asyncio.run(administer(server_url, f"drop database {name} with (force)"))


@pytest.fixture
def settings(database_url: str) -> Settings:
    """Settings of a service with two namespaces, on a database of its own."""
    return settings_for(database_url)


def settings_for(database_url: str) -> Settings:
    """Settings of a service with two namespaces."""
    return Settings(
        database_url=database_url,
        namespaces=(namespace("default"), namespace("other", "other-api-key")),
        push_first_delay_seconds=0.01,
        worker_poll_seconds=0.02,
    )


@pytest.fixture
async def database(settings: Settings) -> AsyncIterator[Database]:
    async with Database.of(settings) as opened:
        yield opened


def namespace(name: str, api_key: str = API_KEY, **more: Any) -> Namespace:
    """A namespace whose stand-in is only reached through a transport."""
    given: dict[str, Any] = {
        "base_url": "http://kahuna.test",
        "env": "s",
        "secret_key": Secret("demo-secret-key"),
    } | more
    return Namespace(name=name, api_key=(Secret(api_key),), **given)


def url_of(server_url: str, name: str) -> str:
    """The same server, another database."""
    return server_url.replace("/postgres?", f"/{name}?")


async def administer(url: str, *statements: str) -> None:
    """Runs these as the server's administrator, each by itself."""
    async with single_connection(url) as connection:
        autocommit = await connection.execution_options(isolation_level="AUTOCOMMIT")
        for statement in statements:
            await autocommit.execute(text(statement))
