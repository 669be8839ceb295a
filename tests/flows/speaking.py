"""A Kahuna that answers in-process, and the words to speak to the flows as the service does."""

import asyncio
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any

import httpx
import msgspec
from sqlalchemy import text

from service.domain.addresses import Channel
from service.domain.suppression import Policy
from service.flows import push, write
from service.flows.ingest import Ingested, rules_of
from service.flows.intake import Intake
from service.flows.push import Pusher, limits_of
from service.flows.write import Statement
from service.kahuna import NO_RETRY, Credentials, KahunaClient, webhook
from service.kahuna.simulator import SimulatorConfig, build_simulator
from service.settings import Secret, Settings
from service.store import desk
from service.store.batches import Received, new_id
from service.store.database import Database
from service.store.desk import Wanted
from service.telemetry import Metrics

KEYS = SimulatorConfig(Secret("demo-secret-key"), Secret("demo-api-key"))


@dataclass
class Clock:
    """A clock that a test sets."""

    now: datetime = field(default_factory=lambda: datetime(2026, 3, 1, 12, tzinfo=UTC))

    def __call__(self) -> datetime:
        return self.now

    def sleep(self, seconds: float) -> None:
        """Lets time pass."""
        self.now += timedelta(seconds=seconds)

    @property
    def seconds(self) -> int:
        """The time in Unix seconds."""
        return int(self.now.timestamp())


async def until(reached: Callable[[], bool]) -> None:
    """Waits until something that goes on beside the test has come so far; its own time limit ends the wait."""
    while not reached():  # noqa: ASYNC110 (what is asked belongs to the code under test)
        await asyncio.sleep(0.01)


class Wire(httpx.AsyncBaseTransport):
    """A transport that keeps every request, and lets a test answer some itself."""

    def __init__(self, inner: httpx.AsyncBaseTransport) -> None:
        self.inner = inner
        self.bodies: list[list[dict[str, Any]]] = []
        self.answer: Callable[[list[dict[str, Any]]], httpx.Response | None] = lambda _: None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        entries = msgspec.json.decode(await request.aread())
        if isinstance(entries, list):
            self.bodies.append(entries)
            own = self.answer(entries)
            if own is not None:
                return own
        return await self.inner.handle_async_request(request)


class World:
    """One service and one Kahuna, with the steps between them under a test's control."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self.database = database
        self.settings = settings
        self.clock = Clock()
        self.rule_by(settings)
        self.simulator = httpx.ASGITransport(app=build_simulator(KEYS, lambda: self.clock.seconds))
        self.wire = Wire(self.simulator)
        self.control = httpx.AsyncClient(transport=self.simulator, base_url="http://kahuna.test")

    def rule_by(self, settings: Settings) -> None:
        """Takes callbacks by the rules of these settings."""
        self.rules = rules_of(settings)
        self.metrics = Metrics()
        self.intake = Intake(self.database, self.rules, self.clock, self.metrics)

    @property
    def policy(self) -> Policy:
        """The numbers of the verdict."""
        return self.rules.policy

    async def callback(self, channel: Channel, entries: list[Any], namespace: str = "default") -> Ingested:
        """A verified callback of Kahuna's."""
        return await self.raw_callback(channel, msgspec.json.encode(entries), namespace)

    async def raw_callback(self, channel: Channel, body: bytes, namespace: str = "default") -> Ingested:
        """A verified callback, byte for byte."""
        now = self.clock()
        # Not from `random`: hypothesis seeds that alike for each of its examples.
        batch_id = new_id(now, secrets.randbits(74))
        batch = Received(batch_id, namespace, channel, "kahuna_webhook", now, {}, body, sha256(body).digest())
        return await self.intake.ingest(batch, webhook.read(body, channel, self.rules.words[namespace]))

    async def stop(self, channel: Channel, address: str, reason: str, at: int | None = None) -> None:
        """A stop of ours."""
        said = Statement("tester", "default", channel, address, at)
        await write.suppress(self.database, said, reason, None, self.policy, self.clock)

    async def consent(self, channel: Channel, address: str, at: int | None = None) -> None:
        """A new consent that we got."""
        said = Statement("tester", "default", channel, address, at)
        await write.reactivate(self.database, said, "a form", self.policy, self.clock)

    async def push(self, channel: Channel = "email", **limits: Any) -> bool:
        """One round of the worker's push."""
        credentials = Credentials("http://kahuna.test", "s", KEYS.secret_key, KEYS.api_key)
        async with KahunaClient(credentials, transport=self.wire, retry=NO_RETRY) as client:
            return await push.push_due(self.pusher(client, **limits), channel)

    def pusher(self, client: KahunaClient, **limits: Any) -> Pusher:
        """What a push needs, with some limits changed."""
        allowed = replace(limits_of(self.settings), **limits)
        return Pusher(self.database, client, "default", self.policy, allowed, self.clock, lambda: 0.0)

    async def fault(self, **fault: Any) -> None:
        """Lets Kahuna fail in this way."""
        answer = await self.control.put("/simulator/faults", json=fault)
        assert answer.status_code == 204, answer.text

    async def heal(self) -> None:
        """Lets Kahuna work again."""
        await self.control.delete("/simulator/faults")

    async def held(self, channel: Channel, address: str) -> dict[str | None, tuple[str, int]]:
        """What Kahuna holds for an address: by its word, the action and the time."""
        answer = await self.control.get("/simulator/state", params={"channel": channel, "address": address})
        return {slot["word"]: (slot["action"], slot["timestamp"]) for slot in answer.json()["slots"]}

    async def corrections(self, state: str | None = None) -> list[Any]:
        """The corrections, oldest first, of one state or all."""
        every = ["pending", "sending", "sent", "rejected", "dead", "superseded", "unsupported", "discarded"]
        states = [state] if state else every
        async with self.database.read() as connection:
            pages = [await desk.listed(connection, Wanted("default", one), None, 1000) for one in states]
        rows = [row for page, _ in pages for row in page]
        return sorted(rows, key=lambda row: row.id)

    async def execute(self, statement: str) -> None:
        """Changes the database behind the service's back."""
        async with self.database.begin() as connection:
            await connection.execute(text(statement))

    async def query(self, statement: str) -> list[Any]:
        """Rows of the database, as a test sees them."""
        async with self.database.read() as connection:
            return list(await connection.execute(text(statement)))
