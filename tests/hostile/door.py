"""Owns the deliveries to the webhooks: the whole application in this process on a real PostgreSQL, and for each body
the one answer that the contract allows."""

import gzip
import hashlib
import json
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final, NamedTuple

from sqlalchemy import text
from starlette.applications import Starlette

from service.app import build
from service.domain.addresses import Channel, ImpossibleAddress, normalise
from service.flows import rebuild
from service.flows.ingest import rules_of
from service.kahuna import webhook
from service.settings import Settings
from service.store.database import Database
from tests.hostile.bodies import Made
from tests.hostile.judge import KEY, OTHER_KEY, Wrong

ZEROS: Final = gzip.compress(b" " * (10 * 1024 * 1024 + 1))
"""One byte more than may come out of it."""

SHOWN: Final = 100
"""Errors that an answer shows."""


class Sent(NamedTuple):
    """A request, and the status and the problem that must come back."""

    path: str
    method: str
    headers: list[tuple[bytes, bytes]]
    body: bytes
    status: int
    problem: str | None = None


@dataclass
class Door:
    """The application, what it was sent, and what it must therefore hold."""

    application: Starlette
    state: dict[str, Any]
    settings: Settings
    database: Database
    answers: Counter[str] = field(default_factory=Counter)
    first: dict[bytes, tuple[str, int]] = field(default_factory=dict)
    recent: deque[Made] = field(default_factory=lambda: deque(maxlen=200))

    async def deliver(self, made: Made, chance: Random) -> None:
        """One delivery, and whether its answer is the one that it must be."""
        if self.recent and chance.random() < 0.05:
            made = chance.choice(self.recent)
        sent = deliveries(made, chance)
        status, headers, body = await self.ask(sent, chance)
        self.answers[f"{status} {sent.problem or ''}".strip()] += 1
        if status != sent.status or b"Traceback" in body or b"x-request-id" not in headers:
            raise Wrong(f"{status} instead of {sent.status}: {body[:200]!r}")
        document = json.loads(body)
        if status != 200:
            if document["type"] != sent.problem or headers[b"content-type"] != b"application/problem+json":
                raise Wrong(f"{document['type']} instead of {sent.problem}")
            return
        self._counts(made, document)
        self.recent.append(made)

    def _counts(self, made: Made, document: dict[str, Any]) -> None:
        """That the counts add up, and that a second delivery says what the first one said."""
        entries = webhook.read(made.body, made.channel).entries
        errors = rejections(made.channel, entries)
        if document["state"] != "applied" or document["rejected"] != len(errors):
            raise Wrong(f"{document['rejected']} of {len(errors)} rejected, {document['state']}")
        if document["accepted"] + document["duplicates"] + document["rejected"] != len(entries):
            raise Wrong("the counts do not add up")
        if document["errors"] != errors[:SHOWN]:
            raise Wrong("other errors are shown")
        digest = hashlib.sha256(made.channel.encode() + made.body).digest()
        if self.first.setdefault(digest, (document["batch_id"], len(errors)))[0] != document["batch_id"]:
            raise Wrong("the same body is another batch")

    async def ask(self, sent: Sent, chance: Random) -> tuple[int, dict[bytes, bytes], bytes]:
        """One request to the application, its body in parts."""
        parts = [sent.body] if chance.random() < 0.7 else _in_parts(sent.body, chance)
        said: list[Any] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

        async def send(message: Any) -> None:
            said.append(message)

        path = sent.path.encode()
        scope: dict[str, Any] = {
            "type": "http",
            "http_version": "1.1",
            "method": sent.method,
            "path": sent.path,
            "raw_path": path,
        }
        scope |= {"query_string": b"", "headers": sent.headers, "scheme": "http", "root_path": "", "client": None}
        await self.application({**scope, "server": None, "state": dict(self.state)}, receive, send)
        body = b"".join(message.get("body", b"") for message in said[1:])
        return said[0]["status"], dict(said[0]["headers"]), body

    async def settled(self) -> list[str]:
        """What the database holds otherwise than it must."""
        async with self.database.read() as connection:
            batches, rejected, applied = [
                (await connection.execute(text(f"select count(*) from {what}"))).scalar_one()
                for what in ("batches", "quarantine", "batches where state = 'applied'")
            ]
        due = sum(rejected for _, rejected in self.first.values())
        faults = []
        if batches != len(self.first) or applied != batches:
            faults.append(f"{batches} batches, {applied} of them applied, for {len(self.first)} bodies")
        if rejected != due:
            faults.append(f"{rejected} entries in quarantine instead of {due}")
        verified = await rebuild.verify(self.database, rules_of(self.settings), lambda *_: None, lambda _: None)
        if not verified.agrees:
            faults.append("the list is not what its evidence says")
        return faults


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Door]:
    """The door of these settings, for as long as the block lasts."""
    application = build(settings)
    async with application.router.lifespan_context(application) as state, Database.of(settings) as database:
        yield Door(application, dict(state or {}), settings, database)


def deliveries(made: Made, chance: Random) -> Sent:
    """How this body is delivered: in most cases as Kahuna would, signed and all."""
    path = f"/webhooks/default/{made.channel}" if chance.random() < 0.9 else f"/api/{made.channel}_callback"
    try:
        callback = webhook.read(made.body, made.channel)
    except webhook.NotAnArray:
        return _sent(path, made, [], 400, "not-an-array", chance)
    except webhook.NotJson:
        return _sent(path, made, [], 400, "not-json", chance)
    return _sent(path, made, callback.signed_values, 200, None, chance)


def _sent(path: str, made: Made, values: list[str], status: int, problem: str | None, chance: Random) -> Sent:
    headers = [(b"x-kahuna-signature", webhook.sign(values, KEY).encode())]
    sent = Sent(path, "POST", headers, made.body, status, problem)
    return chance.choice(TURNS)(sent, values, chance) if chance.random() < 0.25 else sent


def _zipped(sent: Sent, _values: list[str], chance: Random) -> Sent:
    middle = chance.randrange(len(sent.body) + 1)
    whole = gzip.compress(sent.body, mtime=0)
    members = gzip.compress(sent.body[:middle], mtime=0) + gzip.compress(sent.body[middle:], mtime=0)
    return _gzip(sent, chance.choice((whole, whole, members)))


def _badly_zipped(sent: Sent, _values: list[str], chance: Random) -> Sent:
    whole = gzip.compress(sent.body, mtime=0)
    body = chance.choice((whole[: chance.randrange(len(whole))], whole + b"x", b"[" + whole, b"\x1f\x8b"))
    return _gzip(sent, body)._replace(status=400, problem="not-gzip")


def _bomb(sent: Sent, _values: list[str], chance: Random) -> Sent:
    if chance.random() < 0.98:
        return sent
    return _gzip(sent, ZEROS)._replace(status=413, problem="body-too-large")


def _gzip(sent: Sent, body: bytes) -> Sent:
    return sent._replace(headers=[*sent.headers, (b"content-encoding", b"gzip")], body=body)


def _otherwise_coded(sent: Sent, _values: list[str], chance: Random) -> Sent:
    coding = chance.choice((b"br", b"deflate", b"gzip, gzip", b"zstd", b"\xff", b"identity;q=0"))
    headers = [*sent.headers, (b"content-encoding", coding)]
    return sent._replace(headers=headers, status=415, problem="unsupported-encoding")


def _unsigned(sent: Sent, _values: list[str], chance: Random) -> Sent:
    headers = [] if chance.random() < 0.5 else [(b"x-kahuna-signature", b"")]
    return sent._replace(headers=headers, status=401, problem="signature-missing")


def _signed_wrongly(sent: Sent, values: list[str], chance: Random) -> Sent:
    right = webhook.sign(values, KEY)
    wrong = (webhook.sign(values, OTHER_KEY), right[:-2], right[::-1], "=" * 28, "\xff" * 28, "x" * 5000, right.lower())
    headers = [(b"x-kahuna-signature", chance.choice(wrong).encode("latin-1"))]
    if sent.status == 200:
        return sent._replace(headers=headers, status=401, problem="signature-wrong")
    return sent._replace(headers=headers)


def _misdirected(sent: Sent, _values: list[str], chance: Random) -> Sent:
    odd = ("/webhooks/nobody/email", "/webhooks/\0/sms", "/webhooks/default/email/token", "/webhooks/Default/email")
    return sent._replace(path=chance.choice(odd), status=404, problem="unknown-namespace")


def _otherwise_asked(sent: Sent, _values: list[str], chance: Random) -> Sent:
    method = chance.choice(("GET", "PUT", "DELETE", "PATCH", "OPTIONS", "BREW"))
    return sent._replace(method=method, status=405, problem="method-not-allowed")


def _odd_words(sent: Sent, _values: list[str], chance: Random) -> Sent:
    """With headers that nobody judges."""
    odd = [(b"content-type", b"text/\xff"), (b"user-agent", b"\x80\xff" * 99), (b"x-request-id", b"\xff\n")]
    return sent._replace(headers=[*sent.headers, chance.choice(odd)])


TURNS: Final[tuple[Callable[[Sent, list[str], Random], Sent], ...]] = (
    *(_zipped, _zipped, _zipped, _badly_zipped, _bomb, _otherwise_coded, _unsigned, _signed_wrongly),
    *(_misdirected, _otherwise_asked, _odd_words, _odd_words),
)


def rejections(channel: Channel, entries: list[webhook.Entry]) -> list[dict[str, Any]]:
    """The entries that must be in quarantine."""
    found = []
    for entry in entries:
        fault = entry.fault
        if fault is None:
            try:
                normalise(channel, entry.address or "")
            except ImpossibleAddress as error:
                fault = error.slug
        if fault is not None:
            found.append({"index": entry.index, "error": fault})
    return found


def _in_parts(body: bytes, chance: Random) -> list[bytes]:
    places = sorted(chance.randrange(len(body) + 1) for _ in range(chance.randrange(4)))
    return [body[start:end] for start, end in zip([0, *places], [*places, len(body)], strict=True)]
