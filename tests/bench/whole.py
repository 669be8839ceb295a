"""Owns what the whole list costs: an export of every row beside the server's own COPY of the table."""

import asyncio
import socket
import statistics
import time
from collections.abc import Callable, Sequence

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from service.store.database import driver_of
from tests.bench.load import forget_peak, memory_of, request
from tests.bench.works import Rows, Server, grow, settled

WAYS = {
    "export as CSV": "format=csv",
    "export as NDJSON": "format=ndjson",
    "export as CSV, sorted": "format=csv&order=key",
}


async def measured(service: Server, connection: AsyncConnection, token: str, rows: int, rounds: int) -> Rows:
    """The medians of all rounds. A rate is in rows a second, a ratio that of the rates of one round."""
    await grow(connection, rows)
    await settled(connection)
    there = (await connection.execute(text("select count(*) from suppressions"))).scalar_one()
    await connection.commit()
    idle = memory_of(service.pid, "VmRSS")
    forget_peak(service.pid)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ("COPY of the list", *WAYS)}
    for _ in range(rounds):
        bare = await _copy(connection)
        found["COPY of the list"].append((there / bare, 1.0))
        for name, query in WAYS.items():
            seconds = await asyncio.to_thread(_export, service.port, token, query, there)
            found[name].append((there / seconds, bare / seconds))
    figures = {"idle_mb": idle, "peak_over_idle_mb": memory_of(service.pid, "VmHWM") - idle}
    return _rows(found) | {"memory of web, exporting": figures}


def _rows(found: dict[str, list[tuple[float, float]]]) -> Rows:
    medians: Callable[[Sequence[float]], float] = statistics.median
    return {
        name: {"per_second": medians([rate for rate, _ in runs]), "ratio": medians([ratio for _, ratio in runs])}
        for name, runs in found.items()
    }


async def _copy(connection: AsyncConnection) -> float:
    """Seconds that the server takes to send the table as it is."""

    async def drop(_part: bytes) -> None:
        return

    driver = await driver_of(connection)
    started = time.perf_counter()
    await driver.copy_from_table("suppressions", output=drop)
    return time.perf_counter() - started


def _export(port: int, token: str, query: str, rows: int) -> float:
    """Seconds until the last row is there."""
    path = f"/v1/suppressions/export?{query}"
    asked = request("GET", path, Connection="close", Authorization=f"Bearer {token}")
    lines, begin = 0, b""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        started = time.perf_counter()
        connection.sendall(asked)
        while part := connection.recv(1 << 20):
            begin = begin or part[:12]
            lines += part.count(b"\n")
    # The head of the answer, and the lengths of its parts, have a few lines of their own.
    if not begin.endswith(b" 200") or not rows < lines < rows * 1.02 + 20:
        raise SystemExit(f"export: {begin!r}, {lines} lines for {rows} rows")
    return time.perf_counter() - started
