"""Owns a reconciliation: what Kahuna holds as far as the ledger knows, compared with the list, page by page.

Each page is one transaction: differences are written down and, if the run approves itself, turned into corrections.
A run whose worker dies is taken over and starts anew; corrections that it wrote already are not written twice.
"""

import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Final

from service.domain.corrections import sayable, slots_of
from service.domain.drift import kind_of
from service.domain.suppression import Policy
from service.errors import KahunaSyncError
from service.store import access, outbox, reconciliations
from service.store.access import Deed
from service.store.database import Connection, Database, until_settled
from service.store.outbox import Scope, SlotState
from service.store.reconciliations import Difference, Run
from service.telemetry import logger

PAGE: Final = 5000
"""Rows of the list that one transaction looks at."""

LEASE: Final = timedelta(minutes=5)

Counts = Counter[str]
Progress = Callable[[Counts], None]


class TakenOver(KahunaSyncError):
    """This worker was too slow: its lease ended, and the run is another's now."""

    slug = "taken-over"


async def queue(database: Database, run: Run, clock: Callable[[], datetime]) -> None:
    """Writes a run down for the worker."""
    now = clock()
    detail = {"run_id": str(run.id), "source": run.source, "auto_approve": run.auto_approve}
    async with database.begin() as connection:
        await reconciliations.create(connection, run, now)
        deed = Deed(run.actor, "reconciliation.requested", run.namespace, run.channel, detail=detail)
        await access.write_down(connection, deed, now)


async def run_next(
    database: Database,
    policy: Policy,
    clock: Callable[[], datetime],
    progress: Progress | None = None,
    run_id: uuid.UUID | None = None,
) -> Run | None:
    """Carries out the next run that waits, or the one given; returns it, or None if there is none."""
    async with database.begin() as connection:
        run = await reconciliations.claim(connection, clock(), clock() + LEASE, run_id)
    if run is None:
        return None
    counts: Counts = Counter()
    try:
        await _compare(database, run, policy, clock, counts, progress)
    except Exception as error:
        await _finish(database, run, "failed", counts, clock, type(error).__name__)
        raise
    await _finish(database, run, "applied" if run.auto_approve else "planned", counts, clock)
    return run


async def _compare(
    database: Database,
    run: Run,
    policy: Policy,
    clock: Callable[[], datetime],
    counts: Counts,
    progress: Progress | None,
) -> None:
    after: str | None = ""
    while after is not None:
        scope = Scope(run.namespace, run.channel, clock(), policy)

        async def page(connection: Connection, scope: Scope = scope, after: str = after) -> tuple[str | None, Counts]:
            return await _page(connection, run, scope, after)

        after, found = await until_settled(database, page)
        counts.update(found)
        if progress is not None:
            progress(counts)


async def _page(connection: Connection, run: Run, scope: Scope, after: str) -> tuple[str | None, Counts]:
    """One page of the list; returns the last address of it, None at the end, and what was counted."""
    if not await reconciliations.hold(connection, run, scope.now + LEASE):
        raise TakenOver("Another worker has taken this run over.")
    counts: Counts = Counter()
    up_to = await outbox.page_end(connection, scope, after, PAGE)
    addresses = await outbox.at_odds_between(connection, scope, after, up_to)
    if addresses:
        states = await outbox.examine(connection, scope, addresses, again=True)
        await reconciliations.add_differences(connection, run, list(_differences(scope, states, counts)))
        if run.auto_approve:
            counts["corrections"] += await outbox.write(connection, scope, states)
    return up_to, counts


def _differences(scope: Scope, states: list[SlotState], counts: Counts) -> Iterator[Difference]:
    for state in states:
        mine = slots_of(scope.channel, state.causes)[state.name]
        kind = kind_of(state.needed, mine, state.slot)
        if kind is None:
            continue
        counts["differences"] += 1
        counts[kind] += 1
        what = _standing_of(scope, state)
        counts[what] += 1
        needed = state.needed
        evidence = {
            "here": [cause._asdict() for cause in mine],
            "there": {"held": state.slot.held._asdict(), "perhaps": state.slot.sent._asdict()},
            "correction": what,
        }
        action, at = (None, None) if needed is None else needed
        yield Difference(state.address, state.name, kind, action, at, evidence)


def _standing_of(scope: Scope, state: SlotState) -> str:
    """Whether the difference is repairable, on its way, or beyond what Kahuna takes or can be told."""
    if state.needed is None or not sayable(scope.channel, state.needed.action):
        return "unsupported"
    if state.refused:
        return "refused"
    on_its_way = state.pending is not None and state.pending.correction == state.needed
    return "on_its_way" if on_its_way else "proposed"


async def _finish(
    database: Database, run: Run, state: str, counts: Counts, clock: Callable[[], datetime], error: str | None = None
) -> None:
    async with database.begin() as connection:
        mine = await reconciliations.finish(connection, run, state, dict(counts), clock(), error)
    if mine:
        told = {"differences": 0, "corrections": 0, **counts}
        logger().info("reconciliation.finished", run_id=str(run.id), state=state, **told)
    else:
        logger().warning("reconciliation.taken_over", run_id=str(run.id))
