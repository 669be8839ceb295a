"""Owns running everything on one machine: the embedded database, the migrations, and web and worker as processes.

A child that dies is started again, and so is the database; a child that cannot start ends it all. Children end with
their parent, even if that is killed, since they watch for it.
"""

import asyncio
import fcntl
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Final

from service.errors import SettingsError
from service.telemetry import logger

GRACE: Final = 15.0
"""Seconds that a child may take to end before it is killed."""

QUICK_DEATHS: Final = 5
"""How often in a row a child may die young before it is given up."""

YOUNG: Final = 3.0
"""Seconds of life below which a death counts as young."""

LOOK: Final = 1.0
"""Seconds between two looks whether the embedded PostgreSQL lives."""


@dataclass(slots=True)
class Child:
    """One process of ours: its command of the service, and the process that runs it now."""

    command: Sequence[str]
    fds: Sequence[int] = ()
    grace: float = GRACE
    number: int = 1
    process: asyncio.subprocess.Process | None = field(default=None)


async def run(
    commands: Sequence[Sequence[str]],
    environ: Mapping[str, str],
    stop: asyncio.Event,
    *,
    fds: Sequence[int] = (),
    grace: float = GRACE,
) -> int:
    """Runs these commands of the service until `stop` is set; returns the exit code. The children inherit `fds`, and
    are killed if they have not ended `grace` seconds after they were told to."""
    children = [Child(command, fds, grace, number) for number, command in enumerate(commands, 1)]
    keepers = [asyncio.create_task(_keep(child, environ, stop)) for child in children]
    stopped = asyncio.create_task(stop.wait())
    await asyncio.wait([stopped, *keepers], return_when=asyncio.FIRST_COMPLETED)
    gave_up = not stop.is_set()
    stop.set()
    await asyncio.gather(*(_end(child) for child in children))
    await asyncio.gather(stopped, *keepers)
    return 1 if gave_up else 0


async def look_after(revive: Callable[[], bool], stop: asyncio.Event) -> None:
    """Has the embedded PostgreSQL started again when it has died, until `stop` is set. `revive` says whether it had."""
    failed = False
    while not stop.is_set():
        try:
            if await asyncio.to_thread(revive):
                logger().warning("postgres.restarted")
            failed = False
        except SettingsError as error:
            if not failed:
                logger().error("postgres.restart_failed", because=str(error))
            failed = True
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), LOOK)


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Refuses a second `up` on one folder: two workers with settings of their own would share one outbox."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "up.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SettingsError("Another `up` runs in this DATA_DIR: end it, or set another DATA_DIR.") from None
        yield


def stop_on_signals(stop: asyncio.Event) -> None:
    """Sets the event when the process is told to end."""
    loop = asyncio.get_running_loop()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signal_number, stop.set)


async def watch_parent(parent: int | None, stop: Callable[[], object]) -> None:
    """Stops this process once its parent is gone: a killed parent cannot end its children."""
    while parent is not None and os.getppid() == parent:  # noqa: ASYNC110 (nobody tells a child that its parent died)
        await asyncio.sleep(0.5)
    if parent is not None:
        stop()


async def _keep(child: Child, environ: Mapping[str, str], stop: asyncio.Event) -> None:
    deaths = 0
    while not stop.is_set():
        born = monotonic()
        child.process = await _start(child, environ)
        if stop.is_set():  # while it was started: nobody else has told it
            return await _end(child)
        code = await child.process.wait()
        if stop.is_set():
            return None
        ids = {"command": child.command[0], "child": child.number, "pid": child.process.pid, "code": code}
        deaths = deaths + 1 if monotonic() - born < YOUNG else 1
        if deaths >= QUICK_DEATHS:
            logger().error("process.given_up", **ids)
            return None
        logger().warning("process.restarted", **ids)
        await asyncio.sleep(0.1 * deaths)
    return None


async def _start(child: Child, environ: Mapping[str, str]) -> asyncio.subprocess.Process:
    """In a session of its own, so that Ctrl-C at a terminal reaches the parent alone, which then ends the children."""
    argv = [sys.executable, "-m", "service", *child.command, "--parent", str(os.getpid())]
    return await asyncio.create_subprocess_exec(
        *argv, env=dict(environ), stdin=asyncio.subprocess.DEVNULL, start_new_session=True, pass_fds=child.fds
    )


async def _end(child: Child) -> None:
    process = child.process
    if process is None or process.returncode is not None:
        return
    process.terminate()
    try:
        async with asyncio.timeout(child.grace):
            await process.wait()
    except TimeoutError:
        logger().error(
            "process.killed", command=child.command[0], child=child.number, pid=process.pid, after=child.grace
        )
        process.kill()
        await process.wait()
