"""The whole web application in this process, on a real database: what a caller sees, without a port."""

import asyncio
import gzip
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx
import msgspec
from sqlalchemy import text
from starlette.applications import Starlette

from service.app import build
from service.domain.addresses import Channel
from service.flows import ingest
from service.kahuna import webhook
from service.settings import Secret, Settings
from service.store import access
from service.store.database import Database
from tests.conftest import API_KEY
from tests.flows.speaking import Clock

Headers = Mapping[str, str]


@dataclass
class Site:
    """A running application, its clock, and the database behind it."""

    client: httpx.AsyncClient
    settings: Settings
    database: Database
    clock: Clock

    async def deliver(self, channel: Channel, entries: object, **more: Any) -> httpx.Response:
        """A signed callback with these entries."""
        return await self.deliver_bytes(channel, msgspec.json.encode(entries), **more)

    async def deliver_bytes(
        self, channel: Channel, body: bytes, *, path: str = "", key: str = API_KEY, zipped: bool = False
    ) -> httpx.Response:
        """A signed callback with this body."""
        headers = {"X-Kahuna-Signature": signature(body, channel, key)}
        if zipped:
            headers["Content-Encoding"] = "gzip"
        return await self.client.post(
            path or f"/webhooks/default/{channel}", content=gzip.compress(body) if zipped else body, headers=headers
        )

    async def token(self, *scopes: str, namespace: str | None = "default", **limits: Any) -> Headers:
        """The headers of a caller whose new token has these scopes."""
        async with self.database.begin() as connection:
            token = await access.create_token(connection, "tester", scopes, namespace, self.clock(), **limits)
        return {"Authorization": f"Bearer {token}"}

    async def execute(self, statement: str) -> None:
        """Changes the database behind the service's back."""
        async with self.database.begin() as connection:
            await connection.execute(text(statement))

    async def query(self, statement: str) -> list[Any]:
        """Rows of the database, as a test sees them."""
        async with self.database.read() as connection:
            return [tuple(row) for row in await connection.execute(text(statement))]

    async def sweep(self) -> bool:
        """What the worker does about batches that were only recorded."""
        return await ingest.apply_recorded(self.database, ingest.rules_of(self.settings), self.clock)

    @asynccontextmanager
    async def broken(self, table: str) -> AsyncIterator[None]:
        """A fault of our own: a table is missing, for as long as the block lasts."""
        await self.execute(f"alter table {table} rename to {table}_away")
        try:
            yield
        finally:
            await self.execute(f"alter table {table}_away rename to {table}")


@asynccontextmanager
async def opened(settings: Settings, **parts: Any) -> AsyncIterator[Site]:
    """The application of these settings, started and stopped as a server would."""
    clock = Clock()
    application = build(settings, clock, **parts)
    async with application.router.lifespan_context(application) as state, Database.of(settings) as database:
        transport = httpx.ASGITransport(app=with_state(application, dict(state or {})))
        async with httpx.AsyncClient(transport=transport, base_url="http://sync.test") as client:
            yield Site(client, settings, database, clock)


def with_state(application: Starlette, state: dict[str, Any]) -> Any:
    """A server hands the state of the lifespan to every request; this transport does not."""

    async def wrapped(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await application({**scope, "state": dict(state)}, receive, send)

    return wrapped


def signature(body: bytes, channel: Channel, key: str = API_KEY) -> str:
    """The signature of a body, whatever it is."""
    try:
        values = webhook.read(body, channel).signed_values
    except ValueError:
        values = []
    return webhook.sign(values, Secret(key))


def address_path(channel: str, address: str, tail: str = "") -> str:
    """Where the status of an address is."""
    return f"/v1/suppressions/{channel}/{quote(address, safe='')}{tail}"


def is_problem(answer: httpx.Response, status: int, slug: str) -> bool:
    """Whether this is that problem, whole and in form. The assertions say what is amiss."""
    assert (answer.status_code, answer.json().get("type")) == (status, slug), answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert set(answer.json()) == {"type", "title", "status", "detail"}
    assert answer.json()["status"] == status
    assert answer.headers["X-Request-ID"]
    return True


def away() -> str:
    """The URL of a database at a port where nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"postgresql://nobody@127.0.0.1:{taken.getsockname()[1]}/nothing"


class Endless:
    """A body that has no end, and counts how much of it was read."""

    def __init__(self, part: bytes = b" " * 1000) -> None:
        self.part = part
        self.read = 0

    def __aiter__(self) -> "Endless":
        return self

    async def __anext__(self) -> bytes:
        self.read += len(self.part)
        return self.part


class Halting:
    """A body that stops on its way until it is told to go on."""

    def __init__(self, body: bytes) -> None:
        self.parts = [body[: len(body) // 2], body[len(body) // 2 :]]
        self.half_read = asyncio.Event()
        self.go_on = asyncio.Event()

    def __aiter__(self) -> "Halting":
        return self

    async def __anext__(self) -> bytes:
        if len(self.parts) == 1:
            self.half_read.set()
            await self.go_on.wait()
        if not self.parts:
            raise StopAsyncIteration
        return self.parts.pop(0)
