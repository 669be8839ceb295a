"""Owns `kahuna-sync doctor`: looks at a deployment from end to end, and says line by line what is well, what deserves a
look and what is broken, and what to do about it.

It changes nothing: Kahuna is asked about a user whom nobody knows, and the webhooks are sent a signature that they must
refuse. Refuses to show a key, a token or an address.
"""

import asyncio
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple
from urllib.parse import urlsplit

import click
import httpx
import msgspec

from service import settings, worker
from service.errors import SettingsError, StorageUnavailable
from service.flows import ingest, push
from service.kahuna import CredentialsRefused, KahunaError, NotPermitted, Unreachable, webhook
from service.settings import Namespace, Settings
from service.store import access, circuits, examining, migrations, outbox, partitions
from service.store.database import Connection, Database, single_connection
from service.telemetry import set_up_logging

Level = Literal["ok", "warn", "fail"]

OLDEST, NEWEST = 15, 18
"""Versions of PostgreSQL that this release is tried with."""

SKEW_WARN, SKEW_FAIL = 2.0, 60.0
"""Seconds between our clock and the database's. From 300 on, stops of now would lose their own time."""

AHEAD: Final = timedelta(days=31)
"""For how long from now on there should be partitions."""

SHORT_TOKEN: Final = 12
"""Characters below which a callback token can be guessed in time."""

UNUSED: Final = timedelta(days=90)
PATIENCE: Final = 15.0
"""Seconds that one look may take."""

BODY: Final = b'[{"email": "doctor@kahuna-sync.invalid", "reason": "unsub", "timestamp": 1}]'
LARGE: Final = 9 * 1024 * 1024
"""Bytes of a body that something before the service may refuse."""
WRONG: Final = "bm90IGEgc2lnbmF0dXJlIG9mIHRoaXM="
NOBODY: Final = "doctor@kahuna-sync.invalid"
"""A name that can belong to nobody: `.invalid` is reserved for that."""

Checks = AsyncIterator["Check"]


class Check(NamedTuple):
    """What came of one look: its name, how it is, and in a sentence what was seen; `do` is what to do about it."""

    name: str
    level: Level
    says: str
    do: str = ""


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
        loaded = settings.load(environ)
        settings.check_namespaces(loaded)
        ingest.rules_of(loaded)
    except SettingsError as error:
        yield Check("settings", "fail", str(error), "correct it in the environment or in CONFIG_FILE")
        return
    for check in (*_of_settings(loaded), *_of_spool(loaded), *_of_signatures(loaded)):
        yield check
    async for check in _of_database(loaded):
        yield check
    if not offline:
        for namespace in loaded.namespaces:
            yield await _of_vendor(loaded, namespace)
    if public_url is None:
        yield Check("webhooks", "warn", "were not tried", "give --public-url https://... as Kahuna has it")
        return
    async for check in _of_webhooks(loaded, public_url.rstrip("/")):
        yield check


def _of_settings(loaded: Settings) -> Iterator[Check]:
    names = ", ".join(namespace.name for namespace in loaded.namespaces)
    yield Check("settings", "ok", f"can be read; namespaces: {names}")
    for namespace in loaded.namespaces:
        name, token = f"settings/{namespace.name}", namespace.callback_token
        if token is None:
            do = "set CALLBACK_TOKEN, and have Kahuna call the URLs that end with it (docs/threat-model.md)"
            yield Check(name, "warn", "no CALLBACK_TOKEN: the signature alone covers neither reason nor time", do)
        elif len(token.reveal()) < SHORT_TOKEN:
            do = "make one with: openssl rand -hex 16"
            yield Check(name, "warn", f"CALLBACK_TOKEN has under {SHORT_TOKEN} characters", do)
        if namespace.opt_in_review == "off":
            do = "OPT_IN_REVIEW=local, unless somebody else decides what a forged START may clear"
            yield Check(name, "warn", "OPT_IN_REVIEW is off: a callback may end a stop of ours", do)
        if namespace.secret_key in namespace.api_key:
            do = "copy both anew from Settings > Configuration at Kahuna"
            yield Check(name, "fail", "KAHUNA_SECRET_KEY and KAHUNA_API_KEY are the same", do)


def _of_spool(loaded: Settings) -> Iterator[Check]:
    folder = loaded.spool_dir
    if folder is None:
        do = "set SPOOL_DIR to a folder on a disk that outlives the replica"
        yield Check("spool", "warn", "no SPOOL_DIR: while the database is away, callbacks get 503", do)
        return
    try:
        free = _room(folder)
    except OSError as error:
        do = "let the user of the web process write to it"
        yield Check("spool", "fail", f"SPOOL_DIR cannot be written to ({type(error).__name__})", do)
        return
    if free < loaded.spool_limit_bytes:
        do = "make room, or lower SPOOL_LIMIT_BYTES"
        yield Check("spool", "warn", f"{free // 2**20} MiB are free, less than SPOOL_LIMIT_BYTES", do)
    else:
        yield Check("spool", "ok", f"can be written to, {free // 2**20} MiB free")


def _room(folder: Path) -> int:
    """Bytes that are free in a folder that can be written to."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".doctor-"):
        return os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize


def _of_signatures(loaded: Settings) -> Iterator[Check]:
    values = webhook.read(BODY, "email").signed_values
    for namespace in loaded.namespaces:
        signed = all(webhook.verify(values, webhook.sign(values, key), [key]) for key in namespace.api_key)
        refused = not webhook.verify(values, WRONG, namespace.api_key)
        name, count = f"signature/{namespace.name}", len(namespace.api_key)
        odd = any(key.reveal() != key.reveal().strip() or " " in key.reveal() for key in namespace.api_key)
        if not (signed and refused):
            yield Check(name, "fail", "what is signed here is not verified here", "this is a bug: report it")
        elif odd:
            yield Check(name, "warn", "an API Key has a space in it", "copy it anew, without quotes")
        else:
            yield Check(name, "ok", f"{count} API {'Key verifies' if count == 1 else 'Keys verify'} what it signs")


async def _of_database(loaded: Settings) -> Checks:
    if loaded.database_url is None:
        yield Check(
            "database",
            "warn",
            "no DATABASE_URL: the embedded one is for trying, and is not looked at",
            "set DATABASE_URL",
        )
        return
    try:
        async with asyncio.timeout(PATIENCE), Database.of(loaded) as database, database.read() as connection:
            for check in await _of_connection(loaded, connection):
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


async def _of_connection(loaded: Settings, connection: Connection) -> list[Check]:
    server = await examining.server_of(connection)
    skew = (datetime.now(UTC) - server.clock).total_seconds()
    checks = [*_of_server(loaded, server), _of_clock(skew)]
    revision, head = await migrations.revision_of(connection), migrations.head()
    if revision is None or (revision in migrations.revisions() and revision != head):
        says = "the database is empty" if revision is None else f"the database is at {revision}, this release at {head}"
        return [*checks, Check("migrations", "fail", says, "run kahuna-sync migrate")]
    newer = "" if revision == head else f", newer than this release's {head}: fine while a release goes out"
    checks.append(Check("migrations", "ok", f"at {revision}{newer}"))
    checks += [one async for one in _of_partitions(connection)]
    return [*checks, *await _of_outbox(connection), *await _of_tokens(loaded, connection)]


def _of_server(loaded: Settings, server: examining.Server) -> Iterator[Check]:
    major = server.version // 10_000
    seen = f"PostgreSQL {major}.{server.version % 10_000}"
    if server.read_only:
        yield Check("database", "fail", f"{seen} takes no writes", "point DATABASE_URL at the primary, not a standby")
    elif not OLDEST <= major <= NEWEST:
        level: Level = "fail" if major < OLDEST else "warn"
        yield Check("database", level, f"{seen} is none of {OLDEST} to {NEWEST}", "use one of these versions")
    elif server.encoding != "UTF8":
        yield Check("database", "fail", f"its texts are {server.encoding}", "create the database with encoding UTF8")
    else:
        yield Check("database", "ok", seen)
    if not server.fsync:
        yield Check("database/fsync", "fail", "fsync is off: a 200 would not be durable", "set fsync = on")
    if loaded.database_pooler == "none" and loaded.database_pool_size * 3 > server.most_connections:
        do = "lower DATABASE_POOL_SIZE, raise max_connections, or put PgBouncer in between"
        says = f"the server takes {server.most_connections} connections; each process opens {loaded.database_pool_size}"
        yield Check("database/connections", "warn", says, do)


def _of_clock(skew: float) -> Check:
    if abs(skew) < SKEW_WARN:
        return Check("clock", "ok", "agrees with the database's")
    level: Level = "fail" if abs(skew) >= SKEW_FAIL else "warn"
    says = f"is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} the database's"
    return Check("clock", level, says, "let both follow NTP: which of a stop and a START is newer depends on it")


async def _of_partitions(connection: Connection) -> Checks:
    wanted = partitions.month_of(datetime.now(UTC) + AHEAD)
    for receipts in (partitions.ARCHIVE, partitions.FEED, partitions.CALLS):
        name = f"partitions/{receipts.table}"
        months = await partitions.months(connection, receipts)
        if wanted in months:
            yield Check(name, "ok", f"made up to {max(months).year}-{max(months).month:02}")
        else:
            yield Check(name, "warn", "end within a month", "run kahuna-sync migrate, and see that a worker runs")
    if not await examining.may_make_partitions(connection):
        do = "let the worker's role own the tables, or run kahuna-sync migrate each month"
        yield Check("partitions/role", "warn", "our role may not make partitions", do)


async def _of_outbox(connection: Connection) -> list[Check]:
    checks = [
        Check(f"corrections/{one.namespace}/{one.channel}", "warn", f"wait: {one.reason}", push.fix_of(one.reason))
        for one in (await circuits.all_open(connection)).values()
    ]
    for (namespace, state), count in (await outbox.depth(connection)).items():
        if state not in ("dead", "rejected"):
            continue
        do = "see docs/operating.md, A correction is given up"
        checks.append(Check(f"corrections/{namespace}", "warn", f"{count} are {state}", do))
    return checks or [Check("corrections", "ok", "none was given up, and nothing is in their way")]


async def _of_tokens(loaded: Settings, connection: Connection) -> list[Check]:
    now = datetime.now(UTC)
    every = await access.all_tokens(connection)
    live = [t for t in every if t.revoked_at is None and (t.expires_at is None or t.expires_at > now)]
    if not live:
        do = "kahuna-sync token create --name orders --scopes read"
        return [Check("tokens", "warn", "there is none, so no service can ask", do)]
    known = {namespace.name for namespace in loaded.namespaces}
    checks = [Check("tokens", "ok", f"{len(live)} live")]
    for token in live:
        name, which = f"tokens/{token.name}", str(token.id)[:8]
        if token.namespace not in (None, *known):
            says = "speaks of a namespace that is not configured"
            checks.append(Check(name, "warn", says, f"kahuna-sync token revoke {which}"))
        elif "admin" in token.scopes and (token.last_used_at or token.created_at) < now - UNUSED:
            says = f"has the scope admin, unused for {UNUSED.days} days"
            checks.append(Check(name, "warn", says, f"kahuna-sync token revoke {which}"))
    return checks


async def _of_vendor(loaded: Settings, namespace: Namespace) -> Check:
    """Asks about a user who cannot exist. What Kahuna says to that does not matter, if only it answers."""
    name = f"kahuna/{namespace.name}"
    try:
        async with asyncio.timeout(PATIENCE), worker.client_for(namespace, loaded) as client:
            await client.user_info("email", NOBODY)
    except CredentialsRefused as error:
        return Check(name, "fail", str(error), "check KAHUNA_SECRET_KEY and KAHUNA_API_KEY, and KAHUNA_ENV")
    except NotPermitted as error:
        return Check(name, "warn", str(error), "the keys are right; have Kahuna permit the Sync APIs, at least")
    except Unreachable as error:
        return Check(name, "fail", str(error), "check KAHUNA_BASE_URL, DNS and the firewall on the way out")
    except KahunaError as error:
        if error.status in (200, 400, 404, 422):
            return Check(name, "ok", "answers, and did not refuse the keys; the answer itself is not the contract's")
        return Check(name, "warn", str(error), "try again; if it stays, ask Kahuna's support")
    except (SettingsError, TimeoutError) as error:
        return Check(name, "fail", str(error) or "no answer in time", "check KAHUNA_BASE_URL and the way out")
    return Check(name, "ok", f"{urlsplit(namespace.base_url).hostname} takes the keys ({namespace.env})")


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
