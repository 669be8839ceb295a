"""Owns the walk that shows a newcomer the whole loop: real requests between the real processes, told as they happen."""

import asyncio
import json
import secrets
import shlex
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeVar

import httpx
from rich.console import Console

from service.domain.facts import Fact
from service.domain.suppression import Policy
from service.errors import KahunaSyncError
from service.kahuna.webhook import sign
from service.settings import Secret, Settings
from service.store import access, suppressions
from service.store.database import Database
from service.store.suppressions import Entry, Provenance

API_KEY: Final = "demo-api-key"
SECRET_KEY: Final = "demo-secret-key"  # noqa: S105 (the stand-in's, for everybody to see)

FOLDER: Final = "demo"
"""The part of DATA_DIR that is the demonstration's."""

PATIENCE: Final = 30.0
"""Seconds that the walk waits for what another process is to do."""

_T = TypeVar("_T")


class DemoFailed(KahunaSyncError):
    """The walk saw something else than it came to show."""

    slug = "demo-failed"


@dataclass(frozen=True, slots=True)
class Guide:
    """Who walks: a client of the service, one of the stand-in Kahuna, and the screen."""

    service: httpx.AsyncClient
    kahuna: httpx.AsyncClient
    console: Console
    run: str
    url: str

    def say(self, text: str) -> None:
        """One line of the tale."""
        self.console.print(text, highlight=False)

    def step(self, number: int, text: str) -> None:
        """A new chapter."""
        self.console.print(f"\n[bold cyan]{number}[/]  [bold]{text}[/]", highlight=False)

    def mailbox(self, name: str) -> str:
        """An address that no earlier walk has used."""
        return f"{name}.{self.run}@example.com"


def environ_of(environ: Mapping[str, str], simulator_port: int) -> dict[str, str]:
    """The demonstration's own namespace and database, whatever else is set: it must touch nothing real. The folder that
    it printed may stand in DATA_DIR the next time."""
    kept = {k: v for k, v in environ.items() if not k.startswith(("KAHUNA_", "DATABASE_"))}
    for name in ("CONFIG_FILE", "CALLBACK_TOKEN", "OPT_IN_REVIEW", "UNTIMED_OPT_IN", "SPOOL_DIR", "ADMIN_PORT"):
        kept.pop(name, None)
    folder = Path(environ.get("DATA_DIR") or ".data")
    return (
        {"LOG_LEVEL": "warning"}
        | kept
        | {
            "DATA_DIR": str(folder if folder.name == FOLDER else folder / FOLDER),
            "KAHUNA_BASE_URL": f"http://127.0.0.1:{simulator_port}",
            "KAHUNA_API_KEY": API_KEY,
            "KAHUNA_SECRET_KEY": SECRET_KEY,
        }
    )


def simulator(url: str, port: int) -> list[str]:
    """The stand-in as a command of the service: whoever acts there is told to this service."""
    webhooks = (f"--{channel}-webhook={url}/api/{channel}_callback" for channel in ("email", "sms"))
    return ["simulator", "--port", str(port), *webhooks]


async def walk(settings: Settings, url: str, kahuna_url: str) -> None:
    """The walk, from the first callback to a list that is proved to agree; then what to try oneself."""
    async with Database.of(settings) as database:
        async with database.begin() as connection:
            name = f"demo-{secrets.token_hex(3)}"
            token = await access.create_token(connection, name, access.SCOPES, None, datetime.now(UTC))
        headers = {"Authorization": f"Bearer {token}"}
        async with (
            httpx.AsyncClient(base_url=url, headers=headers, timeout=30) as service,
            httpx.AsyncClient(base_url=kahuna_url, timeout=30) as kahuna,
        ):
            guide = Guide(service, kahuna, Console(), secrets.token_hex(2), url)
            await _await("the service and the stand-in", lambda: _ready(guide))
            await _callbacks(guide)
            await _local_opt_out(guide)
            await _conflict(guide)
            await _drift(guide, database)
            _try_yourself(guide, token, settings)


async def _callbacks(guide: Guide) -> None:
    ann, bob = guide.mailbox("ann"), guide.mailbox("bob")
    now = int(time.time())
    guide.step(1, "Kahuna calls: Ann unsubscribed, Bob bounced, and one entry makes no sense")
    entries = [
        {"reason": "unsub", "email": ann, "timestamp": now - 60},
        {"reason": "hard_bounce", "email": bob, "timestamp": now - 30},
        {"reason": "sneezed", "email": bob, "timestamp": now},
    ]
    first = await _deliver(guide, entries)
    guide.say(f"   applied: {first['accepted']} accepted, {first['rejected']} to quarantine (unknown reason)")
    again = await _deliver(guide, entries)
    _expect(again["batch_id"] == first["batch_id"] and again["accepted"] == 0, "a redelivery changes nothing")
    guide.say(f"   delivered again: {again['duplicates']} duplicates, the same batch, nothing changed")
    forged = await guide.service.post(
        "/api/email_callback", content=json.dumps(entries), headers={"X-Kahuna-Signature": sign([ann], Secret("guess"))}
    )
    _expect(forged.status_code == 401, "a wrong signature is refused")
    guide.say("   signed with another key: 401")
    status = await _status(guide, "email", ann)
    _expect(status["suppressed"], "the next query sees it")
    guide.say(f"   may we mail Ann? [red]no[/]: {status['causes'][0]['reason']} since {status['since']}")


async def _local_opt_out(guide: Guide) -> None:
    carol = guide.mailbox("Carol")
    guide.step(2, "Carol tells our support desk to stop; Kahuna must hear of it")
    await _put(guide, "email", carol, {"reason": "manual", "note": "asked on the phone"})
    slot = await _await("Kahuna to take the stop", lambda: _slot(guide, "email", carol))
    guide.say(f"   Kahuna now holds [green]{slot['word']}[/] for her; the outbox keeps the proof")


async def _conflict(guide: Guide) -> None:
    number = f"1555{secrets.randbelow(10**7):07d}"
    guide.step(3, "A conflict: Dan told us to stop texting; then Kahuna says that he sent START")
    await _put(guide, "sms", number, {"reason": "do_not_call", "occurred_at": _ago(3600)})
    await _await("Kahuna to take the stop", lambda: _slot(guide, "sms", number, "stop"))
    said_at = int(time.time()) - 60
    start = {"number": number, "timestamp": said_at, "opt-in": True}
    order = {"channel": "sms", "entries": [start], "to": f"{guide.url}/api/sms_callback", "remember": True}
    await guide.kahuna.post("/simulator/callbacks", json=order)
    status = await _status(guide, "sms", number)
    _expect(status["suppressed"], "what permits waits for a person")
    stop = await _await("Kahuna to stop again meanwhile", lambda: _slot(guide, "sms", number, "stop"))
    _expect(stop["timestamp"] == said_at + 1, "the stop is dated past the opt-in")
    guide.say("   the two contradict each other, so a person decides; until then nobody")
    guide.say("   texts him, and Kahuna was told to stop again, one second after its opt-in")
    listed = await guide.service.get("/v1/admin/reviews")
    review = next(r for r in listed.json()["reviews"] if r["address"] == number)
    decided = await guide.service.post(f"/v1/admin/reviews/{review['id']}/approve", json={"note": "called back"})
    _expect(decided.status_code == 200, "a review can be approved")
    await _await("Kahuna to take the opt-in", lambda: _slot(guide, "sms", number, "opt-in"))
    status = await _status(guide, "sms", number)
    _expect(not status["suppressed"], "an approved opt-in permits")
    guide.say("   approved: both sides may text Dan again")


async def _drift(guide: Guide, database: Database) -> None:
    guide.step(4, "Drift: somebody loads five opt-outs straight into the table")
    strays = [guide.mailbox(f"stray{n}") for n in range(5)]
    now = datetime.now(UTC)
    async with database.begin() as connection:
        at = int(now.timestamp())
        stated = [Fact("default", "email", a, "manual", "suppress", at, "local") for a in strays]
        deed = access.Deed("somebody", "list.loaded", "default", "email", facts=stated)
        audit_id = await access.write_down(connection, deed, now)
        entries = [Entry(a, a, "manual", "suppress", at) for a in strays]
        provenance = Provenance("default", "email", "local", "operator", now, audit_id=audit_id)
        await suppressions.apply(connection, entries, provenance, Policy())
    found = await _reconcile(guide)
    guide.say(f"   a reconciliation finds {found['missing_there']} that Kahuna never heard of, and tells it")
    for stray in strays:
        await _await("Kahuna to take what was missing", lambda stray=stray: _slot(guide, "email", stray))  # type: ignore[misc]
    clean = await _reconcile(guide)
    _expect(not clean.get("differences"), "a second run finds nothing")
    guide.say("   a second run finds nothing: both lists [green]agree[/]")


def _try_yourself(guide: Guide, token: str, settings: Settings) -> None:
    ann = guide.mailbox("ann")
    curl = 'curl -s -H "Authorization: Bearer $TOKEN"'
    guide.console.rule("[bold green]The whole loop works. It stays up: try it[/]")
    kahuna_url = str(guide.kahuna.base_url).rstrip("/")
    folder = shlex.quote(str(Path(sys.executable).parent))
    lines = [
        f"export TOKEN={token} DATA_DIR={shlex.quote(str(settings.data_dir.absolute()))}",
        f"export KAHUNA_BASE_URL={kahuna_url} KAHUNA_API_KEY={API_KEY} KAHUNA_SECRET_KEY={SECRET_KEY}",
        f'export PATH={folder}:"$PATH" SYNC={guide.url} AUTH="Authorization: Bearer $TOKEN"',
        f"{curl} {guide.url}/v1/suppressions/email/{ann}",
        f'{curl} -X PUT -d \'{{"reason":"manual"}}\' {guide.url}/v1/suppressions/email/you.{guide.run}@example.com',
        f"{curl} '{guide.url}/v1/admin/corrections?state=sent'",
        f"curl -s {kahuna_url}/simulator/seed -d '{{\"users\": 10}}'",
        f'curl -s {kahuna_url}/simulator/acts -d \'{{"act": "unsub", "users": [{{"username": "seeded-s-1"}}]}}\'',
        f"{curl} {guide.url}/v1/suppressions/email/seeded-s-1@example.com",
        f"curl -s {guide.url}/readyz",
        "kahuna-sync rebuild --verify",
        f"curl -s {kahuna_url}/simulator/state",
    ]
    for line in lines:
        guide.console.print(line, highlight=False, soft_wrap=True, markup=False)
    guide.say(f"\nOr open {guide.url}/console in a browser, and sign in with that token.")
    guide.say(f"\nCtrl-C ends everything; the data stays in {settings.data_dir.absolute()}.")


async def _deliver(guide: Guide, entries: list[dict[str, Any]]) -> dict[str, Any]:
    signature = sign([entry["email"] for entry in entries], Secret(API_KEY))
    headers = {"X-Kahuna-Signature": signature}
    answer = await guide.service.post("/api/email_callback", content=json.dumps(entries), headers=headers)
    _expect(answer.status_code == 200, "a signed callback is taken")
    document: dict[str, Any] = answer.json()
    return document


async def _status(guide: Guide, channel: str, address: str) -> dict[str, Any]:
    document: dict[str, Any] = (await guide.service.get(f"/v1/suppressions/{channel}/{address}")).json()
    return document


async def _put(guide: Guide, channel: str, address: str, body: dict[str, Any]) -> None:
    answer = await guide.service.put(f"/v1/suppressions/{channel}/{address}", json=body)
    _expect(answer.status_code == 200, "a stop of ours is taken")


async def _slot(guide: Guide, channel: str, address: str, action: str = "stop") -> dict[str, Any] | None:
    """What the stand-in holds, if it is this."""
    answer = await guide.kahuna.get("/simulator/state", params={"channel": channel, "address": address})
    slots: list[dict[str, Any]] = answer.json()["slots"]
    return next((slot for slot in slots if slot["action"] == action), None)


async def _reconcile(guide: Guide) -> dict[str, int]:
    body = {"channel": "email", "source": "ledger", "auto_approve": True}
    queued = await guide.service.post("/v1/admin/reconciliations", json=body)
    _expect(queued.status_code == 202, "a reconciliation can be asked for")

    async def finished() -> dict[str, Any] | None:
        run = (await guide.service.get(queued.headers["Location"])).json()
        _expect(run["state"] not in ("failed", "abandoned"), "a reconciliation succeeds")
        return run["counts"] | {"done": 1} if run["finished_at"] else None

    return await _await("the reconciliation", finished)


async def _ready(guide: Guide) -> bool | None:
    try:
        ready = (await guide.service.get("/readyz")).status_code == 200
        return ready and (await guide.kahuna.get("/simulator/state")).status_code == 200
    except httpx.TransportError:
        return None


async def _await(what: str, look: Callable[[], Awaitable[_T | None]]) -> _T:
    """Looks again and again until there is something to see."""
    for _ in range(int(PATIENCE * 10)):
        seen = await look()
        if seen:
            return seen
        await asyncio.sleep(0.1)
    raise DemoFailed(f"The demonstration waited in vain for {what}; see the log lines above.")


def _expect(holds: bool, what: str) -> None:
    if not holds:
        raise DemoFailed(f"The demonstration expected that {what}, and saw otherwise; see the log lines above.")


def _ago(seconds: int) -> str:
    return datetime.fromtimestamp(int(time.time()) - seconds, UTC).isoformat()
