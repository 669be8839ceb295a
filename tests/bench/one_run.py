"""One ledger run in a process of its own: `python -m tests.bench.one_run LINES` prints its seconds, and the megabytes
before and at most."""

import asyncio
import os
import sys
import time
import uuid
from datetime import UTC, datetime

from service.flows import ingest, reconcile
from service.flows.underway import Means
from service.loading import load
from service.store import reconciliations
from service.store.database import Database
from service.store.reconciliations import Run
from service.telemetry import set_up_logging
from tests.bench.load import memory_of


def _now() -> datetime:
    return datetime.now(UTC)


async def main(lines: int) -> None:
    """Plans once, and sees to it that so many lines were found."""
    loaded = load(os.environ)
    set_up_logging("warning", "console")
    async with Database.of(loaded) as database:
        means = Means(database, ingest.rules_of(loaded), _now)
        run = Run(uuid.uuid4(), "default", "email", "ledger", False, "bench")
        await reconcile.queue(database, run, _now)
        idle = memory_of(os.getpid(), "VmRSS")
        started = time.perf_counter()
        await reconcile.run_next(means, run_id=run.id)
        seconds = time.perf_counter() - started
        async with database.read() as connection:
            row = await reconciliations.one(connection, run.id)
    if row is None or row.counts.get("differences") != lines:
        raise SystemExit(f"{lines} lines expected: {row and row.counts}")
    print(seconds, idle, memory_of(os.getpid(), "VmHWM"))


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
