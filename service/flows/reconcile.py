"""Owns the way of a reconciliation from the request to its end: queued, taken by one worker at a time, planned, and
carried out as far as it was approved.

A run whose worker dies is taken over by another, which goes on behind the last page; one that kills every worker is
given up, and says so.
"""

import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any, Final

from service.domain.addresses import CHANNELS, Channel
from service.errors import StorageBusy, StorageUnavailable
from service.flows import approve, plan, revert, sources
from service.flows.underway import LEASE, SCHEDULE, UNFINISHED, Means, NotYet, Progress, TakenOver, Underway
from service.store import access, leases, reconciliations
from service.store.access import Deed
from service.store.database import Connection, Database, until_settled
from service.store.reconciliations import Run
from service.telemetry import logger

Work = Callable[[Underway, Progress | None], Awaitable[None]]


SOON: Final = timedelta(seconds=1)
"""Until a run that waits for other work is looked at again."""

LATER: Final = timedelta(seconds=10)
"""The same if others held what it needs."""


async def queue(database: Database, run: Run, clock: Callable[[], datetime]) -> None:
    """Writes a run down for the worker."""
    now = clock()
    async with database.begin() as connection:
        await _queue(connection, run, now)


async def _queue(connection: Connection, run: Run, now: datetime) -> None:
    asked = {name: value for name, value in (run.asked or {}).items() if name != "addresses"}
    detail = {"run_id": str(run.id), "source": run.source, "auto_approve": run.auto_approve} | asked
    await reconciliations.create(connection, run, now)
    deed = Deed(run.actor, "reconciliation.requested", run.namespace, run.channel, detail=detail)
    await access.write_down(connection, deed, now)


async def queue_scheduled(
    database: Database, namespace: str, every: timedelta, wanted: Mapping[str, Any], clock: Callable[[], datetime]
) -> bool:
    """Queues the runs that are due by the schedule, unless the last one is under way still; tells whether it did. One
    worker of all does it: the lease lasts until the next is due."""
    queued = False
    for channel in CHANNELS:
        now = clock()

        async def transaction(connection: Connection, channel: Channel = channel, now: datetime = now) -> bool:
            name = f"reconcile/{namespace}/{channel}"
            if await leases.claim(connection, name, now, now + every) is None:
                return False
            if await reconciliations.any_of(connection, namespace, channel, sorted(UNFINISHED)):
                return False
            # Kahuna's logs tell of e-mail alone.
            source = wanted["source"] if channel == "email" else "ledger"
            run = Run(uuid.uuid4(), namespace, channel, source, wanted["auto_approve"], SCHEDULE)
            await _queue(connection, run, now)
            return True

        queued |= await until_settled(database, transaction)
    return queued


async def run_next(means: Means, progress: Progress | None = None, run_id: uuid.UUID | None = None) -> Run | None:
    """Carries the next run on as far as it goes by itself, or the one given; returns it, or None if there is none."""
    clock = means.clock
    async with means.database.begin() as connection:
        run = await reconciliations.claim(connection, clock(), clock() + LEASE, run_id)
    if run is None:
        return None
    if run.state not in UNFINISHED and run.deciding is None:
        logger().error("reconciliation.given_up", run_id=str(run.id), state=run.state)
        return run
    try:
        await _carry_on(Underway(means, run), progress)
    except TakenOver:
        logger().warning("reconciliation.taken_over", run_id=str(run.id))
    except NotYet:
        await _let_go(means, run, until=clock() + SOON, attempts=0)
    except StorageBusy as error:
        # Nobody died of it: others are at what it needs.
        logger().info("reconciliation.postponed", run_id=str(run.id), because=error.slug)
        await _let_go(means, run, until=clock() + LATER, attempts=0)
    except StorageUnavailable:
        await _let_go(means, run)
        raise
    except Exception as error:
        await _fail(means, run, type(error).__name__)
        raise
    except BaseException:
        await _let_go(means, run)
        raise
    return run


async def _carry_on(underway: Underway, progress: Progress | None) -> None:
    """One step after the other, until a person or Kahuna is to be waited for."""
    steps: Mapping[str, Work] = {"running": _plan, "approved": approve.carry_out, "reverting": revert.carry_out}
    state, counts, deciding = str(underway.run.state), Counter[str](), underway.run.deciding
    while state in steps or deciding is not None:
        await (steps[state] if deciding is None else approve.decide_rest)(underway, progress)
        async with underway.means.database.read() as connection:
            row = await reconciliations.one(connection, underway.run.id)
        if row is None or row.fence != underway.run.fence:
            raise TakenOver("Another worker has taken this run over.")
        state, counts, deciding = row.state, Counter(row.counts), row.deciding
    told = {"differences": 0, **counts}
    logger().info("reconciliation.finished", run_id=str(underway.run.id), state=state, **told)


async def _plan(underway: Underway, progress: Progress | None) -> None:
    """What Kahuna is asked itself comes first; whoever takes a run over within the comparison does not ask again."""
    run = underway.run
    if run.source == "profiles":
        await sources.look_up(underway)
        await plan.conclude(underway, whole=False)
        return
    if run.source == "logs" and not run.position:
        await sources.pull_logs(underway, progress)
        underway = await underway.anew()
    await plan.compare_list(underway, progress)
    await plan.thin(underway)
    await plan.conclude(underway, whole=True)


async def _let_go(means: Means, run: Run, until: datetime | None = None, **more: int) -> None:
    """Told to stop, or the database is away: the next worker need not wait for the lease, if this can still be said."""
    with suppress(StorageUnavailable):
        async with means.database.begin() as connection:
            await reconciliations.write(connection, run, {"lease_until": until} | more)


async def _fail(means: Means, run: Run, error: str) -> None:
    values: dict[str, Any] = {"state": "failed", "error": error, "finished_at": means.clock()}
    values |= {"lease_until": None, "deciding": None}
    async with means.database.begin() as connection:
        await reconciliations.write(connection, run, values)
    logger().error("reconciliation.failed", run_id=str(run.id), reason=error)
