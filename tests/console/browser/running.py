"""Owns the deployment that is looked at: a PostgreSQL, a site that has lived for a month, web, worker and stand-in."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import httpx

from service import embedded
from service.settings import Namespace, Secret, Settings
from service.store import access, migrations
from service.store.database import Database
from tests.acceptance.running import free_port
from tests.console.seeding import seed
from tests.web.harness import Site, opened

KEYS = {"KAHUNA_API_KEY": "demo-api-key", "KAHUNA_SECRET_KEY": "demo-secret-key"}

TROUBLES = (
    """update corrections set state = 'dead', reason = 'bad-request', attempts = 3, settled_at = now()
       where id in (select id from corrections order by id desc limit 3)""",
    """insert into circuits (namespace, channel, reason, opened_at, probe_at)
       values ('default', 'email', 'credentials-refused', now(), now() + interval '1 hour')""",
    """update suppressions set held_stop_at = null where address in (
           select address from suppressions where channel = 'email' and held_stop_at = stop_at order by 1 limit 120)""",
    *(
        f"""with one as (
                insert into surges (id, namespace, channel, reason, kind, key, count, first_at, last_at, flagged_at)
                values (gen_random_uuid(), 'default', 'email', 'unsubscribe', '{kind}', '{key}', 611,
                        now() - interval '1 hour', now() - interval '50 minutes', now() - interval '40 minutes')
                returning id)
            insert into surge_evidence (surge_id, batch_id)
            select one.id, newest.id
            from one, (select id from batches where channel = 'email' and state = 'applied' order by id desc limit 3)
                as newest"""
        for kind, key in (("domain", "example.com"), ("minute", "2026-01-31T12:00:00+00:00"))
    ),
)
"""What is amiss on this site, so that every page has something to show and every action something to do."""

PATIENCE = 300
"""Tenths of a second that a process may take to answer."""


class Deployment(NamedTuple):
    """Where the console is, and a token that opens it."""

    url: str
    token: str


@asynccontextmanager
async def deployment(folder: Path) -> AsyncIterator[Deployment]:
    """Everything, for as long as the block lasts."""
    async with AsyncExitStack() as stack:
        database_url = stack.enter_context(embedded.server(folder))
        await migrations.upgrade(database_url)
        port, vendor = free_port(), free_port()
        environ = KEYS | {"DATABASE_URL": database_url, "KAHUNA_BASE_URL": f"http://127.0.0.1:{vendor}"}
        token = await _furnish(database_url)
        await stack.enter_async_context(_running(environ, "simulator", "--port", str(vendor)))
        for command in ("web", "worker"):
            await stack.enter_async_context(_running(environ | {"PORT": str(port)}, command))
        await _answering(f"http://127.0.0.1:{port}/readyz")
        yield Deployment(f"http://127.0.0.1:{port}", token)


async def _furnish(database_url: str) -> str:
    """A month of traffic, through the real application with a clock of its own; and a token."""
    namespace = Namespace(
        base_url="http://kahuna.test",
        env="s",
        api_key=(Secret(KEYS["KAHUNA_API_KEY"]),),
        secret_key=Secret(KEYS["KAHUNA_SECRET_KEY"]),
    )
    settings = Settings(database_url=database_url, namespaces=(namespace,))
    async with opened(settings) as site:
        site.clock.now = datetime.now(UTC)
        await seed(site, days=28, callbacks=6)
        await _import(site)
        for statement in TROUBLES:
            await site.execute(statement)
    async with Database.of(settings) as database, database.begin() as connection:
        return await access.create_token(connection, "visitor", access.SCOPES, None, datetime.now(UTC))


async def _import(site: Site) -> None:
    """A list that can be taken back."""
    path = "/v1/suppressions/import?channel=email&reason=unsubscribe&file_name=bounces.csv"
    headers = {**await site.token("write"), "Content-Type": "text/csv"}
    answer = await site.client.post(path, content="address\nlisted@example.com\n", headers=headers)
    assert answer.status_code == 200, answer.text


@asynccontextmanager
async def _running(environ: dict[str, str], *command: str) -> AsyncIterator[None]:
    """A command of the service, as a process of its own."""
    given = {"PATH": os.environ["PATH"], "LOG_LEVEL": "error"} | environ
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "service", *command, env=given)
    try:
        yield
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        await process.wait()


async def _answering(url: str) -> None:
    async with httpx.AsyncClient() as client:
        for _ in range(PATIENCE):
            try:
                if (await client.get(url)).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.1)
    raise SystemExit("The service did not start; its log is above.")
