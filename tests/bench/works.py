"""Owns what is measured: each work once a round, its figures, and the bare row that it stands beside."""

import asyncio
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from service.store.database import driver_of
from tests.bench import bare, questions
from tests.bench.load import Taken, ask, callback, callbacks, forget_peak, memory_of, pump, request

BULK = 100_000
SECONDS = 3.0
SMALL_LIST, LARGE_LIST = 10_000, 10_000_000
ASKED_LIST, LINES = 100_000, 100_000
# Of the list that is made in SQL at once; the callbacks of the load add theirs.
CHUNK = 250_000

Row = dict[str, float]
Rows = dict[str, Row]


class Server(NamedTuple):
    """A process that is asked."""

    port: int
    pid: int


class Bench:
    """The figures of all rounds, and whom to ask."""

    def __init__(self, service: Server, beside: Server, connection: AsyncConnection, token: str) -> None:
        self._service = service
        self._beside = beside
        self._connection = connection
        self._authorization = f"Bearer {token}"
        self._idle = memory_of(service.pid, "VmRSS")  # what it takes before anybody has asked for anything
        self._found: defaultdict[str, defaultdict[str, list[float]]] = defaultdict(lambda: defaultdict(list))

    @property
    def rows(self) -> Rows:
        """The medians of all rounds, and each work's ratio beside its bare row of the same round."""
        return {
            work: {name: statistics.median(values) for name, values in figures.items()}
            for work, figures in self._found.items()
        }

    def _note(self, work: str, **figures: float) -> None:
        for name, value in figures.items():
            self._found[work][name].append(value)

    def _note_load(self, work: str, taken: Taken, facts: int = 1, beside: Taken | None = None) -> None:
        figures = {
            "per_second": taken.per_second,
            "p50_ms": taken.percentile(50),
            "p99_ms": taken.percentile(99),
            "cpu_us_per_fact": taken.cpu_microseconds / facts,
        }
        if beside is not None:
            figures["ratio"] = taken.per_second / beside.per_second
        self._note(work, **figures)

    async def round(self) -> None:
        """Everything once."""
        posts = await self._pump(self._beside, [request("POST", "/", b"x" * 80)] * 200_000)
        self._note_load("bare Starlette POST", posts)
        for entries, count in ((1, 30_000), (10, 10_000), (100, 2_000)):
            taken = await self._pump(self._service, callbacks(count, entries))
            self._note_load(f"callback of {entries}", taken, entries, posts)
        await self._bulk()

    async def questions(self, listed: int, lines: int) -> None:
        """Every question once, to a list of so many addresses, and so many lines."""
        await self._grow(listed)
        gets = await self._pump(self._beside, [request("GET", "/")] * 200_000)
        self._note_load("bare Starlette GET", gets)
        self._note_load("status of one", await self._pump(self._service, self._calls(listed)), 1, gets)
        for _ in range(questions.ROUNDS_OF_CHECK):
            asked = questions.addresses(listed, questions.CHECKED, time.time_ns())
            bare_seconds = await questions.bare_seconds(self._connection, asked)
            seconds = await questions.check_seconds(self._service.port, self._authorization, asked)
            self._note("check of 10,000: time over bare SQL", per_second=1 / seconds, ratio=seconds / bare_seconds)
        figures = await questions.stream(*self._service, self._authorization, self._connection, listed, lines)
        self._note(f"check of {lines:,} lines", **figures)

    async def _pump(self, server: Server, requests: list[bytes], seconds: float = SECONDS) -> Taken:
        return await pump(server.port, server.pid, requests, seconds)

    async def _bulk(self) -> None:
        """One callback of very many entries, alone, beside the bare SQL, and beside small ones."""
        salt = time.time_ns()
        addresses = [f"u{salt}x{n}@example.com" for n in range(BULK)]
        seconds = await bare.store(self._connection, addresses, callback(addresses).partition(b"\r\n\r\n")[2])
        self._note("bare SQL of 100,000", per_second=BULK / seconds)
        with self._memory("memory of web", self._idle):
            ours = await self._callback_of([f"v{address}" for address in addresses])
        self._note("callback of 100,000 (facts)", per_second=BULK / ours, ratio=seconds / ours)
        quiet = await self._pump(self._service, callbacks(20_000, 1))
        bulk = asyncio.create_task(self._callback_of([f"w{address}" for address in addresses]))
        loud = await self._pump(self._service, callbacks(20_000, 1), 2.0)
        await bulk
        slower = loud.percentile(99) / quiet.percentile(99)
        self._note("callback of 1 beside 100,000", p99_ms=loud.percentile(99), ratio=slower)

    async def _callback_of(self, addresses: list[str]) -> float:
        asked = callback(addresses)
        started = time.perf_counter()
        answer = json.loads(await ask(self._service.port, asked))
        if answer.get("accepted") != len(addresses):
            raise SystemExit(f"bulk: {answer}")
        return time.perf_counter() - started

    async def import_of(self, lines: int) -> None:
        """One list of so many new addresses, beside the bare SQL that stores as much."""
        salt = time.time_ns()
        seconds = 0.0
        for start in range(0, lines, BULK):
            addresses = [f"b{salt}x{n}@example.com" for n in range(start, min(start + BULK, lines))]
            seconds += await bare.store(self._connection, addresses, "\n".join(addresses).encode(), bare.IMPORT)
        self._note(f"bare SQL of a list of {lines:,}", per_second=lines / seconds)
        rows = "".join(f"i{salt}x{n}@example.com,1700000000\n" for n in range(lines))
        path = "/v1/suppressions/import?channel=email&reason=unsubscribe"
        more = {"Authorization": self._authorization, "Content_Type": "text/csv"}
        asked = request("POST", path, b"email,created\n" + rows.encode(), **more)
        with self._memory("memory of web, importing"):
            started = time.perf_counter()
            answer = json.loads(await ask(self._service.port, asked))
            ours = time.perf_counter() - started
        if answer.get("accepted") != lines:
            raise SystemExit(f"import: {answer}")
        self._note(f"import of {lines:,} (lines)", per_second=lines / ours, ratio=seconds / ours)

    @contextmanager
    def _memory(self, work: str, idle: float | None = None) -> Iterator[None]:
        pid = self._service.pid
        before = memory_of(pid, "VmRSS") if idle is None else idle
        forget_peak(pid)
        yield
        self._note(work, idle_mb=before, peak_over_idle_mb=memory_of(pid, "VmHWM") - before)

    async def growth(self, addresses: int) -> None:
        """What a callback of one, and a question about one address, cost while the list grows to so many addresses.

        Minutes lie between both, in which a machine's pace changes: each cost is that beside the bare row of its time.
        """
        small = await self._rates_at(SMALL_LIST)
        large = await self._rates_at(addresses)
        for work, before, after in zip(("callback", "status"), small, large, strict=True):
            self._note(f"cost of a {work} at {addresses:,}", ratio=before / after)

    async def _rates_at(self, addresses: int) -> tuple[float, float]:
        """The rates of callbacks and of questions with so many addresses in the list, as shares of the bare rows'."""
        await self._grow(addresses)
        posts, gets = [request("POST", "/", b"x" * 80)] * 200_000, [request("GET", "/")] * 200_000
        calls = self._calls(addresses)
        called = [await self._beside_bare(posts, callbacks(30_000, 1)) for _ in range(3)]
        answered = [await self._beside_bare(gets, calls) for _ in range(3)]
        return statistics.median(called), statistics.median(answered)

    async def _beside_bare(self, plain: list[bytes], asked: list[bytes]) -> float:
        bare_rate = (await self._pump(self._beside, plain)).per_second
        return (await self._pump(self._service, asked)).per_second / bare_rate

    def _calls(self, listed: int) -> list[bytes]:
        """Questions about single addresses, of a list of so many."""
        asked = questions.addresses(listed, 20_000, time.time_ns())
        path = "/v1/suppressions/email/"
        return [request("GET", path + address, Authorization=self._authorization) for address in asked] * 5

    async def _grow(self, addresses: int) -> None:
        await grow(self._connection, addresses)
        await settled(self._connection)


async def grow(connection: AsyncConnection, addresses: int) -> None:
    """Makes the list that long. What stands in it already, made or called in, is left as it is."""
    known = "select count(*) from suppressions where address like 'g%@example.com'"
    have = (await connection.execute(text(known))).scalar_one()
    for start in range(have, addresses, CHUNK):
        await connection.execute(_GROW, {"first": start, "last": min(start + CHUNK, addresses) - 1})
        await connection.commit()


async def settled(connection: AsyncConnection) -> None:
    """What the growing left behind for the server to do is not to be paid by the load."""
    await connection.commit()
    driver = await driver_of(connection)
    for statement in ("vacuum (analyze) suppressions", "vacuum (analyze) facts", "checkpoint"):
        await driver.execute(statement)


_GROW = text(
    """
    with given as (
        select 'g' || md5(n::text) || '@example.com' as address from generate_series(cast(:first as int), :last) as n
        order by address
    ),
    fresh as (
        insert into facts (address, channel, namespace, reason, action, occurred_at, source, origin, batch_id,
                           entry_index, recorded_at)
        select address, 'email', 'default', 'unsubscribe', 'suppress', 1700000000, 'kahuna', 'kahuna_webhook',
               '00000000-0000-0000-0000-000000000000', 0, now() from given on conflict do nothing
    )
    insert into suppressions (address, channel, namespace, reason, stop_at, held_stop_at, origin, batch_id, recorded_at)
    select address, 'email', 'default', 'unsubscribe', 1700000000, 1700000000, 'kahuna_webhook',
           '00000000-0000-0000-0000-000000000000', now() from given on conflict do nothing
    """
)
