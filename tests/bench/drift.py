"""Owns what a reconciliation costs: a ledger run over the whole list, beside a bare anti-join of two tables that are as
long, and its memory."""

import asyncio
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from service.store.database import driver_of
from tests.bench.works import Row, Rows, grow, settled

SHARE = 100
"""One of so many addresses is at odds."""

_DRIFT = text(
    f"update suppressions set held_stop_at = null where hashtext(address) % {SHARE} = 0 and held_stop_at is not null"
)

_TABLES = """
    create unlogged table bare_theirs as
        select address, reason, held_stop_at as stop_at from suppressions where held_stop_at is not null
"""

# One side and the other by their key, as somebody would write it who has both as tables.
_ANTI_JOIN = """
    select o.address, o.reason, o.stop_at from suppressions as o
    where not exists (select from bare_theirs as t
                      where t.address = o.address and t.reason = o.reason and t.stop_at >= o.stop_at)
"""


async def measured(connection: AsyncConnection, environ: Mapping[str, str], rows: int, rounds: int) -> Rows:
    """The medians of all rounds. Rates are in rows of the list a second; the ratio is that of the times of a round."""
    await grow(connection, rows)
    await connection.execute(_DRIFT)
    await settled(connection)
    driver = await driver_of(connection)
    for statement in ("drop table if exists bare_theirs", _TABLES, "analyze bare_theirs"):
        await driver.execute(statement)
    there = await driver.fetchval("select count(*) from suppressions")
    found: dict[str, list[tuple[float, float]]] = {"bare SQL anti-join": [], "reconciliation with the ledger": []}
    memory: list[Row] = []
    for _ in range(rounds):
        started = time.perf_counter()
        lines = len(await driver.fetch(_ANTI_JOIN))
        bare = time.perf_counter() - started
        ours, figures = await asyncio.to_thread(_run, dict(environ), lines)
        found["bare SQL anti-join"].append((there / bare, 1.0))
        found["reconciliation with the ledger"].append((there / ours, ours / bare))
        memory.append(figures)
    await driver.execute("drop table bare_theirs")
    return {
        name: {"per_second": statistics.median(r for r, _ in runs), "ratio": statistics.median(r for _, r in runs)}
        for name, runs in found.items()
    } | {"memory of a reconciliation": {name: max(one[name] for one in memory) for name in memory[0]}}


def _run(environ: dict[str, str], lines: int) -> tuple[float, Row]:
    """One run in a process of its own, by the flow that the worker uses: its seconds, and its memory."""
    command = [sys.executable, "-m", "tests.bench.one_run", str(lines)]
    done = subprocess.run(command, env=environ, check=True, capture_output=True, text=True)
    seconds, idle, peak = map(float, done.stdout.split())
    return seconds, {"idle_mb": idle, "peak_over_idle_mb": peak - idle}
