"""Owns the real thing: a web process as an operator starts it, and what it takes of the machine."""

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from tests.hostile.judge import KEY


class Server(NamedTuple):
    """A web process that listens, and the seconds that it gives heads and bodies."""

    port: int
    pid: int
    time_out: float

    @property
    def memory(self) -> int:
        """What it has of the memory now, in MiB."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) // 256

    @property
    def most_memory(self) -> int:
        """What it ever had of the memory, in MiB."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) // 1024


@asynccontextmanager
async def listening(url: str, time_out: float) -> AsyncIterator[Server]:
    """`kahuna-sync web` on this database, for as long as the block lasts."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    environ = dict(os.environ) | {
        "DATABASE_URL": url,
        "PORT": str(port),
        "LOG_LEVEL": "error",
        "KAHUNA_API_KEY": KEY.reveal(),
        "KAHUNA_SECRET_KEY": "hostile-secret-key",
        "KAHUNA_BASE_URL": "http://127.0.0.1:9",
        "HEAD_TIMEOUT_SECONDS": str(time_out),
        "BODY_TIMEOUT_SECONDS": str(time_out),
    }
    running = await asyncio.create_subprocess_exec(sys.executable, "-m", "service", "web", env=environ)
    try:
        await _listens(port)
        yield Server(port, running.pid, time_out)
    finally:
        running.terminate()
        await asyncio.wait_for(running.wait(), 30)


async def _listens(port: int) -> None:
    for _ in range(400):
        with suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
            return
        await asyncio.sleep(0.05)
    raise SystemExit(f"nobody listens on port {port}")
