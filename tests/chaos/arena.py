"""Owns what is broken: a database, two web processes and a worker, each started again when it is gone."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from sqlalchemy import text

from service import embedded
from service.store import migrations
from service.store.database import single_connection
from tests.chaos.load import KEY

PORTS = (8751, 8752)


class Arena:
    """The processes under test. Whatever is killed comes back: the web processes by themselves, the database by
    `start_postgres`."""

    doors: tuple[int, ...] = PORTS
    """Where callbacks are delivered."""

    def __init__(self, folder: Path, seconds: float, **settings: str) -> None:
        self.seconds = seconds
        self._folder = folder
        self._database = ExitStack()
        self._settings = settings
        self._ending = False
        self._keepers: list[asyncio.Task[None]] = []
        self._running: dict[str, asyncio.subprocess.Process] = {}
        self._killed: list[int] = []
        self.url = ""

    @asynccontextmanager
    async def open(self) -> AsyncIterator["Arena"]:
        """Everything, for as long as the block lasts."""
        self.start_postgres()
        try:
            await migrations.upgrade(self.url)
            await self.prepare()
            for port in PORTS:
                self._keepers.append(asyncio.create_task(self._keep(f"web-{port}", ["web"], PORT=str(port))))
            self._keepers.append(asyncio.create_task(self._keep("worker", ["worker"])))
            for port in PORTS:
                await self.ready(port)
            yield self
        finally:
            await self._end()
            await self.dismiss()
            self._database.close()

    async def prepare(self) -> None:
        """What else is to be there before the processes start: nothing, here."""

    async def dismiss(self) -> None:
        """Ends that again."""

    @property
    def roots(self) -> list[int]:
        """The processes under which everything of ours runs: this one, and the database's."""
        return [os.getpid(), int((self._folder / "postgres" / "postmaster.pid").read_text().split()[0])]

    def start_postgres(self) -> None:
        """Starts the database, also after a kill."""
        # A killed postmaster that nobody has reaped yet would be taken for a living one.
        while any(Path(f"/proc/{pid}").exists() for pid in self._killed):
            time.sleep(0.05)
        self._killed.clear()
        self.url = self._database.enter_context(embedded.server(self._folder))

    def kill_postgres(self) -> None:
        """SIGKILL to the postmaster and everything under it: as near to a power loss as a test can come."""
        postmaster = int((self._folder / "postgres" / "postmaster.pid").read_text().split()[0])
        children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
        for pid in (postmaster, *map(int, children)):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                self._killed.append(pid)

    def kill(self, name: str) -> None:
        """SIGKILL to one process."""
        process = self._running.get(name)
        if process is not None and process.returncode is None:
            process.kill()

    async def restart(self, name: str) -> int:
        """Has a process end as an operator would, and waits until that is done and another has begun."""
        process = self._running[name]
        process.terminate()
        code = await process.wait()
        while self._running[name] is process:  # noqa: ASYNC110 (its keeper begins the next one)
            await asyncio.sleep(0.02)
        return code

    async def sql(self, statement: str) -> list[Any]:
        """Rows of the database, as a superuser sees them."""
        async with single_connection(self.url) as connection:
            result = await connection.execute(text(statement))
            rows = list(result) if result.returns_rows else []
            await connection.commit()
            return rows

    async def ready(self, port: int) -> None:
        """Waits until a web process listens."""
        for _ in range(300):
            with suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                return
            await asyncio.sleep(0.1)
        raise SystemExit(f"nobody listens on port {port}")

    async def _keep(self, name: str, command: list[str], **more: str) -> None:
        environ = dict(os.environ) | {
            "DATABASE_URL": self.url,
            "LOG_LEVEL": "error",
            "KAHUNA_API_KEY": KEY.reveal(),
            "KAHUNA_SECRET_KEY": "chaos-secret-key",
            "KAHUNA_BASE_URL": "http://127.0.0.1:9",
            "OPT_IN_REVIEW": "off",
            "SPOOL_DIR": str(self._folder / f"spool-{name}"),
            **self._settings,
            **more,
        }
        with (self._folder / f"{name}.log").open("ab") as log:
            while not self._ending:
                process = await asyncio.create_subprocess_exec(
                    sys.executable, "-m", "service", *command, env=environ, stdout=log, stderr=log
                )
                self._running[name] = process
                await process.wait()
                await asyncio.sleep(0.1)

    async def _end(self) -> None:
        self._ending = True
        for process in self._running.values():
            if process.returncode is None:
                process.terminate()
        for process in self._running.values():
            try:
                await asyncio.wait_for(process.wait(), 20)
            except TimeoutError:
                process.kill()
        await asyncio.gather(*self._keepers)
