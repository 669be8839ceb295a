"""`make bench`: what the service does in a second, beside bare Starlette and the bare SQL in the same run, as ratios.

Machines differ and are noisy, so only ratios within one run mean anything. Everything shares this machine: the service,
PostgreSQL with fsync on, and the load, which is bounded in connections and seconds.
"""

import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx
import uvicorn
from rich.console import Console
from rich.table import Table
from sqlalchemy import text
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from service import embedded
from service.kahuna.webhook import sign
from service.settings import Secret
from service.store import migrations
from service.store.database import single_connection

CONNECTIONS = 32
ROUNDS = 3
SECONDS = 3.0
BULK = 100_000
PORT, BARE_PORT = 8740, 8741
KEY = Secret("bench-api-key")

MakeRequest = Callable[[int], bytes]


class Work(NamedTuple):
    """One row of the table: what is asked, of whom, and which bare row it is compared with."""

    name: str
    port: int
    make: MakeRequest
    beside: str | None = None


def request(method: str, path: str, body: bytes = b"", **headers: str) -> bytes:
    """One HTTP request, byte for byte."""
    lines = [f"{method} {path} HTTP/1.1", "Host: bench", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def callback(count: int, salt: str) -> MakeRequest:
    """Callbacks of so many new addresses each."""

    def make(number: int) -> bytes:
        addresses = [f"u{salt}x{number}x{n}@example.com" for n in range(count)]
        body = json.dumps([{"reason": "unsub", "email": a, "timestamp": 1_700_000_000} for a in addresses]).encode()
        return request("POST", "/api/email_callback", body, X_Kahuna_Signature=sign(addresses, KEY))

    return make


async def pump(work: Work, seconds: float) -> float:
    """Requests a second over all connections; anything but 200 ends the run."""
    end = time.perf_counter() + seconds
    numbers = iter(range(10**9))

    async def talk() -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", work.port)
        count = 0
        while time.perf_counter() < end:
            writer.write(work.make(next(numbers)))
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200"):
                raise SystemExit(f"{work.name}: {head.splitlines()[0].decode()}")
            length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            await reader.readexactly(int(length.split(b":")[1]))
            count += 1
        writer.close()
        await writer.wait_closed()
        return count

    started = time.perf_counter()
    counts = await asyncio.gather(*(talk() for _ in range(CONNECTIONS)))
    return sum(counts) / (time.perf_counter() - started)


async def bulk(url: str) -> tuple[float, float]:
    """Facts a second: one callback of very many entries, and the bare SQL that stores and merges such rows."""
    salt = str(time.time_ns())
    raw = callback(BULK, salt)(0)
    head, _, body = raw.partition(b"\r\n\r\n")
    signature = head.rpartition(b": ")[2].decode()
    async with httpx.AsyncClient(timeout=120) as client:
        started = time.perf_counter()
        answer = await client.post(
            f"http://127.0.0.1:{PORT}/api/email_callback", content=body, headers={"X-Kahuna-Signature": signature}
        )
        ours = time.perf_counter() - started
    if answer.json().get("accepted") != BULK:
        raise SystemExit(f"bulk: {answer.status_code} {answer.text[:200]}")
    return BULK / ours, BULK / await bare_sql(url, salt)


async def bare_sql(url: str, salt: str) -> float:
    """Seconds for one insert-or-ignore with an upsert of what was new, and nothing else."""
    addresses = "\x1f".join(f"u{salt}y{n}@example.com" for n in range(BULK))
    async with single_connection(url) as connection:
        for name, key in (("bare_f", "a, r, t"), ("bare_c", "a, r")):
            columns = f'a text collate "C", r text collate "C", t bigint, primary key ({key})'
            await connection.execute(text(f"create table if not exists {name} ({columns})"))
        await connection.commit()
        started = time.perf_counter()
        statement = """with fresh as (insert into bare_f select a, 'unsubscribe', 1700000000
                           from unnest(string_to_array(:a, :s)) as u(a) order by a
                           on conflict do nothing returning a, r, t)
                       insert into bare_c select a, r, t from fresh order by a, r
                       on conflict (a, r) do update set t = greatest(bare_c.t, excluded.t)"""
        await connection.execute(text(statement), {"a": addresses, "s": "\x1f"})
        await connection.commit()
        return time.perf_counter() - started


async def measure(url: str, token: str) -> dict[str, dict[str, float]]:
    """The medians of all rounds, and each beside its bare row."""
    bearer = f"Bearer {token}"
    known = f"u{time.time_ns()}@example.com"
    works = [
        Work("bare Starlette POST", BARE_PORT, lambda _: request("POST", "/", b"x" * 80)),
        Work("callback of 1", PORT, callback(1, f"a{time.time_ns()}"), "bare Starlette POST"),
        Work("callback of 10", PORT, callback(10, f"b{time.time_ns()}"), "bare Starlette POST"),
        Work("bare Starlette GET", BARE_PORT, lambda _: request("GET", "/")),
        Work(
            "status of one",
            PORT,
            lambda _: request("GET", f"/v1/suppressions/email/{known}", Authorization=bearer),
            "bare Starlette GET",
        ),
    ]
    rates: dict[str, list[float]] = {work.name: [] for work in works}
    bulks: list[tuple[float, float]] = []
    for turn in range(ROUNDS):
        for work in works:
            unique = work._replace(make=renumbered(work.make, turn))
            rates[work.name].append(await pump(unique, SECONDS))
        bulks.append(await bulk(url))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    result = {
        work.name: {"per_second": medians[work.name]}
        | ({"ratio": medians[work.name] / medians[work.beside]} if work.beside else {})
        for work in works
    }
    ours, bare = (statistics.median(column) for column in zip(*bulks, strict=True))
    result["bare SQL, facts"] = {"per_second": bare}
    result[f"callback of {BULK}, facts"] = {"per_second": ours, "ratio": ours / bare}
    return result


def renumbered(make: MakeRequest, turn: int) -> MakeRequest:
    """The same requests with numbers that no other turn has used."""
    return lambda n: make(turn * 10**8 + n)


async def bare(_request: Request) -> Response:
    """What a web framework does at least: reads the body, answers."""
    await _request.body()
    return Response(b'{"ok":true}', media_type="application/json")


def serve_bare() -> None:
    """The bare application, in a process of its own."""
    application = Starlette(routes=[Route("/", bare, methods=["GET", "POST"])])
    uvicorn.run(application, port=BARE_PORT, log_config=None, access_log=False)


@contextmanager
def processes(environ: dict[str, str]) -> Iterator[None]:
    """The service's web process and the bare one, ended at the end."""
    commands = [["-m", "service", "web"], ["-m", "tests.bench", "bare"]]
    running = [subprocess.Popen([sys.executable, *command], env=environ) for command in commands]
    try:
        yield
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait(30)


@asynccontextmanager
async def listening() -> AsyncIterator[None]:
    """Waits until both answer."""
    for port in (PORT, BARE_PORT):
        for _ in range(200):
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                break
            except OSError:
                await asyncio.sleep(0.1)
    yield


async def run(url: str, environ: dict[str, str]) -> dict[str, dict[str, float]]:
    """Makes the database and a token, then measures."""
    await migrations.upgrade(url)
    command = [sys.executable, "-m", "service", "token", "create", "--name", "bench", "--scopes", "read"]
    made = await asyncio.create_subprocess_exec(*command, env=environ, stdout=subprocess.PIPE)
    token = (await made.communicate())[0].decode().strip()
    with processes(environ):
        async with listening():
            return await measure(url, token)


def main() -> None:
    """Prints the table, and writes it as JSON where `BENCH_JSON` says."""
    with tempfile.TemporaryDirectory(prefix="ks-bench-") as folder:
        Path(folder).chmod(0o755)
        with embedded.server(Path(folder)) as url:
            environ = dict(os.environ) | {
                "DATABASE_URL": url,
                "PORT": str(PORT),
                "LOG_LEVEL": "warning",
                "KAHUNA_API_KEY": KEY.reveal(),
                "KAHUNA_SECRET_KEY": "bench-secret-key",
                "KAHUNA_BASE_URL": "http://127.0.0.1:9",
            }
            result = asyncio.run(run(url, environ))
    table = Table("work", "per second", "of the bare", title=f"{CONNECTIONS} connections, medians of {ROUNDS} rounds")
    for name, row in result.items():
        table.add_row(name, f"{row['per_second']:,.0f}", f"{row['ratio']:.2f}" if "ratio" in row else "")
    Console().print(table)
    if "BENCH_JSON" in os.environ:
        Path(os.environ["BENCH_JSON"]).write_text(json.dumps(result, indent=2), encoding="utf-8")


if __name__ == "__main__":
    serve_bare() if sys.argv[1:] == ["bare"] else main()
