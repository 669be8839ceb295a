"""Owns `kahuna-sync doctor`: looks at a deployment from end to end, and says line by line what is well, what deserves a
look and what is broken, and what to do about it.

It changes nothing: Kahuna is asked about a user whom nobody knows, and the webhooks are sent a signature that they must
refuse. Refuses to show a key, a token or an address.
"""

import asyncio
import dataclasses
import os
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import urlsplit

import click
import httpx
import msgspec

from service import embedded, serving, worker
from service.errors import SettingsError, StorageUnavailable
from service.flows.examine import BODY, WRONG, Check, Release, of_connection, of_settings, of_signatures, of_spool
from service.kahuna import Ambiguous, CredentialsRefused, KahunaError, NotPermitted, Unreachable
from service.operation import load_whole
from service.settings import Namespace, Secret, Settings
from service.store import examining, migrations
from service.store.database import Database, single_connection
from service.telemetry import set_up_logging

PATIENCE: Final = 15.0
"""Seconds that one look may take."""

PROXY_WANTS_A_USER: Final = 407

LARGE: Final = 9 * 1024 * 1024
"""Bytes of a body that something before the service may refuse."""
NOBODY: Final = "doctor@kahuna-sync.invalid"
"""A name that can belong to nobody: `.invalid` is reserved for that."""

Checks = AsyncIterator[Check]


@click.command("doctor")
@click.option("--public-url", help="Where Kahuna reaches us, such as https://sync.example.com: the webhooks are tried.")
@click.option("--offline", is_flag=True, help="Do not ask Kahuna anything.")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def doctor_command(public_url: str | None, offline: bool, as_json: bool) -> None:
    """Look at this deployment from end to end. Exits with 1 if something is broken; warnings exit with 0."""
    set_up_logging("error", "console")
    checks = asyncio.run(_all(os.environ, public_url, offline, None if as_json else _print))
    worst = next((level for level in ("fail", "warn") if any(c.level == level for c in checks)), "ok")
    if as_json:
        document = {"result": worst, "checks": [c._asdict() for c in checks]}
        click.echo(msgspec.json.format(msgspec.json.encode(document)))
    else:
        counts = ", ".join(f"{sum(c.level == level for c in checks)} {level}" for level in ("ok", "warn", "fail"))
        click.echo(f"\n{counts}")
    sys.exit(1 if worst == "fail" else 0)


def _print(check: Check) -> None:
    click.echo(f"{check.level:<5} {check.name:<22} {check.says}")
    if check.do:
        click.echo(f"{'':<28} -> {check.do}")


async def _all(
    environ: Mapping[str, str], public_url: str | None, offline: bool, show: Callable[[Check], object] | None
) -> list[Check]:
    checks = []
    async for check in examine(environ, public_url=public_url, offline=offline):
        checks.append(check)
        if show is not None:
            show(check)
    return checks


async def examine(environ: Mapping[str, str], *, public_url: str | None, offline: bool) -> Checks:
    """Every look, in the order in which things depend on each other."""
    try:
        loaded = load_whole(environ)
        serving.spans_of(loaded, "doctor")
    except SettingsError as error:
        yield Check("settings", "fail", str(error), "correct it in the environment or in CONFIG_FILE")
        return
    loaded = _as_up_has_it(loaded)
    for check in (*of_settings(loaded), *of_spool(loaded), *of_signatures(loaded)):
        yield check
    async for check in _of_embedded(loaded) if loaded.database_url is None else _of_database(loaded):
        yield check
    if not offline:
        for namespace in loaded.namespaces:
            yield await _of_vendor(loaded, namespace)
    if public_url is None:
        yield Check("webhooks", "warn", "were not tried", "give --public-url https://... as Kahuna has it")
        return
    async for check in _of_webhooks(loaded, public_url.rstrip("/")):
        yield check


def _as_up_has_it(loaded: Settings) -> Settings:
    """`up` keeps its spool beside the embedded database, without a setting."""
    spool = loaded.data_dir / "spool"
    if loaded.database_url is None and loaded.spool_dir is None and spool.is_dir():
        return dataclasses.replace(loaded, spool_dir=spool)
    return loaded


async def _of_embedded(loaded: Settings) -> Checks:
    """The database of `up`, if it runs: one that does not is not started, since nothing is changed here."""
    if not embedded.there_is(loaded.data_dir):
        says = f"no DATABASE_URL, and no database in {loaded.data_dir.absolute()}"
        do = "set DATABASE_URL or DATA_DIR (that of `make run` is DATA_DIR=.data/demo)"
        yield Check("database", "warn", says, do)
    elif not embedded.runs(loaded.data_dir):
        says = f"the embedded one in {loaded.data_dir.absolute()} does not run, so it is not looked at"
        yield Check("database", "warn", says, "look again while kahuna-sync up (or make run) runs")
    else:
        says = f"no DATABASE_URL: this is the embedded one in {loaded.data_dir.absolute()}, which is for trying"
        yield Check("database/embedded", "warn", says, "set DATABASE_URL, once this is more than a trial")
        with embedded.server(loaded.data_dir) as url:
            async for check in _of_database(dataclasses.replace(loaded, database_url=url)):
                yield check


async def _of_database(loaded: Settings) -> Checks:
    try:
        release = Release(migrations.head(), migrations.revisions())
        async with asyncio.timeout(PATIENCE), Database.of(loaded) as database, database.read() as connection:
            for check in await of_connection(loaded, connection, release, datetime.now(UTC)):
                yield check
        if loaded.database_direct_url is not None:
            async with asyncio.timeout(PATIENCE), single_connection(loaded.database_direct_url) as connection:
                await examining.server_of(connection)
                yield Check("database/direct", "ok", "DATABASE_DIRECT_URL can be reached")
        elif loaded.database_pooler == "transaction":
            do = "set DATABASE_DIRECT_URL to the server itself, for migrations and prompt news"
            yield Check("database/direct", "warn", "no way past the pooler: the feed is polled", do)
    except (StorageUnavailable, SettingsError, TimeoutError) as error:
        do = "check host, port, firewall, role and password; behind PgBouncer set DATABASE_POOLER=transaction"
        yield Check("database", "fail", str(error) or "The database does not answer.", do)


async def _of_vendor(loaded: Settings, namespace: Namespace) -> Check:
    """Asks about a user who cannot exist. What Kahuna says to that does not matter, if only it answers."""
    name = f"kahuna/{namespace.name}"
    by = "" if loaded.kahuna_proxy_url is None else f", by the proxy {_place(loaded.kahuna_proxy_url)}"
    try:
        async with asyncio.timeout(PATIENCE), worker.client_for(namespace, loaded) as client:
            await client.user_info("email", NOBODY)
    except CredentialsRefused as error:
        return Check(name, "fail", str(error), "check KAHUNA_SECRET_KEY and KAHUNA_API_KEY, and KAHUNA_ENV")
    except NotPermitted as error:
        return Check(name, "warn", f"{error}{by}", "the keys are right; have Kahuna permit the Sync APIs, at least")
    except Unreachable as error:
        return Check(name, "fail", *_on_the_way(loaded, namespace, str(error)))
    except KahunaError as error:
        # By a proxy, a line that breaks off is the proxy's first of all: it may have refused the tunnel without a word.
        broke = isinstance(error, Ambiguous) and error.status is None and loaded.kahuna_proxy_url is not None
        if broke or error.status == PROXY_WANTS_A_USER:
            return Check(name, "fail", *_on_the_way(loaded, namespace, str(error)))
        if error.status in (200, 400, 404, 422):
            says = f"answers{by}, and did not refuse the keys; the answer itself is not the contract's"
            return Check(name, "ok", says)
        return Check(name, "warn", f"{error}{by}", "try again; if it stays, ask Kahuna's support")
    except (SettingsError, TimeoutError) as error:
        return Check(name, "fail", *_on_the_way(loaded, namespace, str(error) or "no answer in time"))
    return Check(name, "ok", f"{_host(namespace.base_url)} takes the keys ({namespace.env}){by}")


def _on_the_way(loaded: Settings, namespace: Namespace, says: str) -> tuple[str, str]:
    """That Kahuna was not reached, and what to look at: of a proxy host and port alone are told."""
    if loaded.kahuna_proxy_url is None:
        return says, "check KAHUNA_BASE_URL, DNS and the firewall on the way out"
    proxy, vendor = _place(loaded.kahuna_proxy_url), _host(namespace.base_url)
    asks = f"is {proxy} reached from here, does it take the user and password, may we go on to {vendor}?"
    return f"{says}, by the proxy {proxy}", f"check KAHUNA_PROXY_URL: {asks}"


def _place(proxy: Secret) -> str:
    """Host and port of a proxy, without its user and password."""
    return urlsplit(proxy.reveal()).netloc.rpartition("@")[2]


def _host(url: str) -> str:
    return urlsplit(url).hostname or ""


async def _of_webhooks(loaded: Settings, url: str) -> Checks:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        yield Check("webhooks", "fail", "--public-url is no URL", "write it as https://sync.example.com")
        return
    if parts.scheme == "http" and parts.hostname not in ("localhost", "127.0.0.1", "::1"):
        do = "end TLS at the load balancer: without it anybody on the way can alter a callback"
        yield Check("webhooks", "fail", "--public-url is not https", do)
    async with httpx.AsyncClient(timeout=PATIENCE) as client:
        paths = {namespace.name: f"{url}{_path_of(namespace)}" for namespace in loaded.namespaces}
        for name, path in paths.items():
            check = await _of_path(client, f"webhooks/{name}", path)
            yield check
            # Where a small body does not come through, a large one would say nothing.
            if check.level == "ok":
                yield await _of_large(client, f"webhooks/{name}/large", path)
        yield await _of_metrics(client, url)


def _path_of(namespace: Namespace) -> str:
    token = "" if namespace.callback_token is None else f"/{namespace.callback_token.reveal()}"
    return f"/webhooks/{namespace.name}/email{token}"


async def _of_path(client: httpx.AsyncClient, name: str, path: str) -> Check:
    """Only our own refusal of a wrong signature shows that path, token, header and body came through."""
    status, slug = await _posted(client, path, BODY)
    if (status, slug) == (401, "signature-wrong"):
        return Check(name, "ok", "the path, the signature's header and the body come through")
    fixes = {
        "signature-missing": "a proxy drops the header X-Kahuna-Signature: have it passed on",
        "callback-token": "the replicas have another CALLBACK_TOKEN than this shell, or a proxy cuts the path",
        "unknown-namespace": "the replicas have other namespaces than this shell",
        "not-found": "a proxy alters the path: it must arrive as it was sent",
    }
    seen = f"answered {status} {slug}".rstrip() if status else "cannot be reached"
    return Check(name, "fail", seen, fixes.get(slug, "check DNS, certificate, and what answers at --public-url"))


async def _of_large(client: httpx.AsyncClient, name: str, path: str) -> Check:
    status, slug = await _posted(client, path, b"[" + b" " * LARGE + b"]")
    if (status, slug) == (401, "signature-wrong"):
        return Check(name, "ok", "bodies of 9 MiB come through; Kahuna's have up to 10")
    says = f"a body of 9 MiB was answered with {status}" if status else "a body of 9 MiB did not come through"
    do = "raise the proxy's limits: nginx client_max_body_size 11m and client_body_timeout 60s"
    return Check(name, "fail", says, do)


async def _of_metrics(client: httpx.AsyncClient, url: str) -> Check:
    try:
        answer = await client.get(f"{url}/metrics")
    except httpx.HTTPError:
        return Check("webhooks/public", "warn", "could not be asked for /metrics", "try again")
    if answer.is_success and "kahuna_sync_" in answer.text:
        do = "let the load balancer pass /webhooks/ alone, or set ADMIN_PORT"
        return Check("webhooks/public", "warn", "everybody can read /metrics", do)
    return Check("webhooks/public", "ok", "/metrics is not open to everybody")


async def _posted(client: httpx.AsyncClient, path: str, body: bytes) -> tuple[int, str]:
    """The status and the slug of the problem; 0 if nobody answered."""
    headers = {"Content-Type": "application/json", "X-Kahuna-Signature": WRONG}
    try:
        answer = await client.post(path, content=body, headers=headers)
    except httpx.HTTPError:
        return 0, ""
    try:
        slug: Any = answer.json().get("type", "")
    except (ValueError, AttributeError):
        return answer.status_code, ""
    return answer.status_code, slug if isinstance(slug, str) else ""
