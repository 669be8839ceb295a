"""Owns the proof: a line is closed once Kahuna accepted its correction, and a run is proved once all its lines are.

The push closes the lines whose corrections it settles, and the desk those that it decides about; what is left is found
here. A look goes over a page of what waits, so it costs the same however much waits, and is taken again at once after
one that found something.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from service.flows.underway import rest
from service.store import proofs, reconciliations
from service.store.database import Connection, Database, until_settled
from service.telemetry import logger

PAGE: Final = 2000
"""Corrections that lines wait for, of which one look asks how they stand."""

AT_ONCE: Final = 100
"""Runs that are looked at before others have their turn."""


@dataclass(slots=True)
class Prover:
    """Goes round and round over what waits for Kahuna; `place` is the last correction that it looked at."""

    database: Database
    clock: Callable[[], datetime]
    page: int = PAGE
    place: int = 0

    async def look(self) -> bool:
        """Closes what has its proof by now, of one page; tells whether there was anything."""
        now = self.clock()
        async with self.database.read() as connection:
            found = await proofs.ended(connection, self.place, self.page)
        changed = await until_settled(self.database, lambda connection: self._close(connection, found, now))
        proved = await self._rest_runs(now)
        self.place = found.last or 0
        return bool(changed or proved)

    async def _close(self, connection: Connection, found: proofs.Ended, now: datetime) -> int:
        followed = [] if found.last is not None else await proofs.follow_none(connection, now)
        followed += await proofs.follow(connection, now, found.ids) if found.ids else []
        ids = {*found.ids, *followed}
        return len(followed) + (await proofs.close_settled(connection, now, ids) if ids else 0)

    async def _rest_runs(self, now: datetime) -> int:
        """Says of runs for which nothing waits any more how they stand."""
        async with self.database.read() as connection:
            waiting = await reconciliations.unproved(connection, AT_ONCE)
        for run_id in waiting:

            async def settle(connection: Connection, run_id: object = run_id) -> str | None:
                row = await reconciliations.lock(connection, run_id)  # type: ignore[arg-type]
                return await rest(connection, row, now) if row is not None and row.state == "applied" else None

            if await until_settled(self.database, settle) == "proved":
                logger().info("reconciliation.proved", run_id=str(run_id))
        return len(waiting)


async def prove(database: Database, clock: Callable[[], datetime], page: int = PAGE) -> bool:
    """Goes once over all that waits; tells whether anything was closed."""
    prover = Prover(database, clock, page)
    closed = await prover.look()
    while prover.place:
        closed |= await prover.look()
    return closed
