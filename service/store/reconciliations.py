"""Owns the runs that compare both lists, and the differences that each found."""

import uuid
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from service.domain.addresses import Channel
from service.store.tables import differences, reconciliations


class Run(NamedTuple):
    """What a run is to do. `fence` counts the workers that took it: only the last one's word is written."""

    id: uuid.UUID
    namespace: str
    channel: Channel
    source: str
    auto_approve: bool
    actor: str
    fence: int = 0


class Difference(NamedTuple):
    """One slot on which the two sides differ, and what would settle it (nothing, where the API has no words for it)."""

    address: str
    slot: str
    kind: str
    action: str | None
    occurred_at: int | None
    evidence: dict[str, Any]


async def create(connection: AsyncConnection, run: Run, now: datetime) -> None:
    """Queues a run."""
    row = run._asdict() | {"state": "queued", "created_at": now, "counts": {}}
    await connection.execute(insert(reconciliations).values(row))


async def claim(
    connection: AsyncConnection, now: datetime, until: datetime, run_id: uuid.UUID | None = None
) -> Run | None:
    """Takes the oldest run that waits, or whose worker is gone; or the one given, if nobody has it."""
    table = reconciliations.c
    free = or_(table.state == "queued", (table.state == "running") & (table.lease_until < now))
    query = select(reconciliations).where(free).order_by(table.created_at).limit(1).with_for_update(skip_locked=True)
    row = (await connection.execute(query if run_id is None else query.where(table.id == run_id))).first()
    if row is None:
        return None
    fence = row.fence + 1
    taken = update(reconciliations).where(table.id == row.id)
    await connection.execute(taken.values(state="running", lease_until=until, fence=fence))
    await connection.execute(differences.delete().where(differences.c.run_id == row.id))
    return Run(row.id, row.namespace, row.channel, row.source, row.auto_approve, row.actor, fence)


async def hold(connection: AsyncConnection, run: Run, until: datetime) -> bool:
    """Holds the run for longer; False if another worker has taken it over."""
    return await _write(connection, run, {"lease_until": until})


async def add_differences(connection: AsyncConnection, run: Run, found: Sequence[Difference]) -> None:
    """Writes down a page of differences."""
    if found:
        await connection.execute(insert(differences), [{"run_id": run.id} | d._asdict() for d in found])


async def finish(
    connection: AsyncConnection, run: Run, state: str, counts: dict[str, int], now: datetime, error: str | None
) -> bool:
    """Ends a run; False if another worker has taken it over."""
    values = {"state": state, "counts": counts, "finished_at": now, "lease_until": None, "error": error}
    return await _write(connection, run, values)


async def _write(connection: AsyncConnection, run: Run, values: dict[str, Any]) -> bool:
    mine = update(reconciliations).where(reconciliations.c.id == run.id, reconciliations.c.fence == run.fence)
    return (await connection.execute(mine.values(values))).rowcount > 0


async def one(connection: AsyncConnection, run_id: uuid.UUID) -> Any | None:
    """One run."""
    return (await connection.execute(select(reconciliations).where(reconciliations.c.id == run_id))).first()


async def newest(connection: AsyncConnection, namespace: str, limit: int) -> Sequence[Any]:
    """The newest runs of a namespace."""
    query = select(reconciliations).where(reconciliations.c.namespace == namespace)
    return (await connection.execute(query.order_by(reconciliations.c.created_at.desc()).limit(limit))).all()


async def differences_of(connection: AsyncConnection, run_id: uuid.UUID, limit: int) -> Sequence[Any]:
    """What a run found, in the order of the addresses."""
    query = select(differences).where(differences.c.run_id == run_id)
    return (await connection.execute(query.order_by(differences.c.address, differences.c.slot).limit(limit))).all()
