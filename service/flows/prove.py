"""Owns the proof: a line is closed once Kahuna accepted its correction, and a run is proved once all its lines are.

The push closes the lines whose corrections it settles; what is left is done here from time to time.
"""

from collections.abc import Callable
from datetime import datetime
from typing import Final

from service.flows.underway import rest
from service.store import differences, reconciliations
from service.store.database import Connection, Database, until_settled
from service.telemetry import logger

AT_ONCE: Final = 100
"""Runs that are looked at before others have their turn."""


async def prove(database: Database, clock: Callable[[], datetime]) -> bool:
    """Closes what has its proof by now; tells whether there was anything."""
    now = clock()
    followed = await until_settled(database, lambda connection: differences.follow(connection, now))
    closed = await until_settled(database, lambda connection: differences.close_settled(connection, now))
    async with database.read() as connection:
        waiting = await reconciliations.unproved(connection, AT_ONCE)

    for run_id in waiting:

        async def settle(connection: Connection, run_id: object = run_id) -> str | None:
            row = await reconciliations.lock(connection, run_id)  # type: ignore[arg-type]
            return await rest(connection, row, now) if row is not None and row.state == "applied" else None

        if await until_settled(database, settle) == "proved":
            logger().info("reconciliation.proved", run_id=str(run_id))
    return bool(followed or closed)
