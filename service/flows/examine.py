"""Owns what can be told of a deployment by its settings, its spool and its database: what is well, what deserves a
look and what is broken, each with what to do about it. `doctor` prints it, and the console shows it.

Reads only. Refuses to ask Kahuna, and to show a key, a token or an address.
"""

import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final, Literal, NamedTuple

from service.flows import push
from service.kahuna import webhook
from service.settings import Settings
from service.store import access, circuits, examining, migrations, outbox, partitions, pulls
from service.store.database import Connection

Level = Literal["ok", "warn", "fail"]

OLDEST: Final = 15
NEWEST: Final = 18
"""Versions of PostgreSQL that this release is tried with."""

UNTOUCHED: Final = 128 * 2**20
"""Bytes of shared_buffers that a server has by default, however large its machine is."""

SKEW_WARN: Final = 2.0
SKEW_FAIL: Final = 60.0
"""Seconds between our clock and the database's. From 300 on, stops of now would lose their own time."""

AHEAD: Final = timedelta(days=31)
"""For how long from now on there should be partitions."""

SHORT_TOKEN: Final = 12
"""Characters below which a callback token can be guessed in time."""

UNUSED: Final = timedelta(days=90)

BODY: Final = b'[{"email": "doctor@kahuna-sync.invalid", "reason": "unsub", "timestamp": 1}]'
WRONG: Final = "bm90IGEgc2lnbmF0dXJlIG9mIHRoaXM="
"""A body, and a signature that is not of it."""


class Check(NamedTuple):
    """What came of one look: its name, how it is, and in a sentence what was seen; `do` is what to do about it."""

    name: str
    level: Level
    says: str
    do: str = ""


class Release(NamedTuple):
    """The revisions of the database that this release knows, and the newest of them."""

    head: str
    revisions: frozenset[str]


def of_settings(loaded: Settings) -> Iterator[Check]:
    """The settings, and what in each namespace deserves a look."""
    names = ", ".join(namespace.name for namespace in loaded.namespaces)
    yield Check("settings", "ok", f"can be read; namespaces: {names}")
    if loaded.body_budget_bytes < loaded.body_limit_bytes:
        says = "BODY_BUDGET_BYTES is less than one callback may have: one of that size gets 503 each time"
        yield Check("settings/bodies", "fail", says, "raise BODY_BUDGET_BYTES to several times BODY_LIMIT_BYTES")
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


def of_spool(loaded: Settings) -> Iterator[Check]:
    """The folder that keeps callbacks while the database is away. Reads and writes the disk."""
    folder = loaded.spool_dir
    if folder is None:
        do = "set SPOOL_DIR to a folder on a disk that outlives the replica"
        yield Check("spool", "warn", "no SPOOL_DIR: while the database is away, callbacks get 503", do)
        return
    if loaded.spool_limit_bytes < loaded.body_limit_bytes:
        do = "raise SPOOL_LIMIT_BYTES: a gibibyte holds some hours of callbacks"
        yield Check("spool/limit", "fail", "SPOOL_LIMIT_BYTES is less than one callback may have", do)
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


def of_signatures(loaded: Settings) -> Iterator[Check]:
    """The keys, as far as that can be told without Kahuna: what is signed here is verified here."""
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


async def of_connection(
    loaded: Settings, connection: Connection, release: Release, now: datetime, only: str | None = None
) -> list[Check]:
    """The server, the tables, and what waits in them; of one namespace `only`, or of all."""
    server = await examining.server_of(connection)
    skew = (now - server.clock).total_seconds()
    checks = [*_of_server(loaded, server), _of_clock(skew)]
    revision, head = await migrations.revision_of(connection), release.head
    if revision is None or (revision in release.revisions and revision != head):
        says = "the database is empty" if revision is None else f"the database is at {revision}, this release at {head}"
        return [*checks, Check("migrations", "fail", says, "run kahuna-sync migrate")]
    newer = "" if revision == head else f", newer than this release's {head}: fine while a release goes out"
    checks.append(Check("migrations", "ok", f"at {revision}{newer}"))
    checks += [one async for one in _of_partitions(connection, now)]
    names = [namespace.name for namespace in loaded.namespaces if only in (None, namespace.name)]
    checks += [await _of_past(connection, name) for name in names]
    return [*checks, *await _of_outbox(connection, only), *await _of_tokens(loaded, connection, now, only)]


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
    if server.buffers <= UNTOUCHED and server.list_bytes > server.buffers:
        do = "give the server memory: shared_buffers at a quarter of its machine's, by postgresql.conf or its provider"
        says = (
            f"shared_buffers are {_mebibytes(server.buffers)}, the list and its index {_mebibytes(server.list_bytes)}"
        )
        yield Check("database/memory", "warn", says, do)


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"


def _of_clock(skew: float) -> Check:
    if abs(skew) < SKEW_WARN:
        return Check("clock", "ok", "agrees with the database's")
    level: Level = "fail" if abs(skew) >= SKEW_FAIL else "warn"
    says = f"is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} the database's"
    return Check("clock", level, says, "let both follow NTP: which of a stop and a START is newer depends on it")


async def _of_partitions(connection: Connection, now: datetime) -> AsyncIterator[Check]:
    wanted = partitions.month_of(now + AHEAD)
    for receipts in partitions.ALL:
        name = f"partitions/{receipts.table}"
        months = await partitions.months(connection, receipts)
        if wanted in months:
            yield Check(name, "ok", f"made up to {max(months).year}-{max(months).month:02}")
        else:
            yield Check(name, "warn", "end within a month", "run kahuna-sync migrate, and see that a worker runs")
    if not await examining.may_make_partitions(connection):
        do = "let the worker's role own the tables, or run kahuna-sync migrate each month"
        yield Check("partitions/role", "warn", "our role may not make partitions", do)


async def _of_past(connection: Connection, namespace: str) -> Check:
    """Whether what Kahuna knew before this deployment is known here."""
    name, done_at = f"backfill/{namespace}", await pulls.backfilled(connection, namespace)
    if done_at is not None:
        return Check(name, "ok", f"Kahuna's logs of before this deployment were read by {done_at:%Y-%m-%d}")
    do = f"run kahuna-sync backfill --namespace {namespace}"
    return Check(name, "warn", "was not done: opt-outs from before this deployment may be missing", do)


async def _of_outbox(connection: Connection, only: str | None) -> list[Check]:
    checks = [
        Check(f"corrections/{one.namespace}/{one.channel}", "warn", f"wait: {one.reason}", push.fix_of(one.reason))
        for one in (await circuits.all_open(connection)).values()
        if only in (None, one.namespace)
    ]
    for (namespace, state), count in (await outbox.depth(connection)).items():
        if state not in ("dead", "rejected") or only not in (None, namespace):
            continue
        do = "see docs/operating.md, A correction is dead, or rejected"
        says = f"{count} {'is' if count == 1 else 'are'} {state}"
        checks.append(Check(f"corrections/{namespace}", "warn", says, do))
    return checks or [Check("corrections", "ok", "none was given up, and nothing is in their way")]


async def _of_tokens(loaded: Settings, connection: Connection, now: datetime, only: str | None) -> list[Check]:
    every = [token for token in await access.all_tokens(connection) if only in (None, token.namespace)]
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
