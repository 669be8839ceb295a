"""Owns the runs that compare both lists: who asked, how far each is, and which worker has it.

Whoever changes a run locks its row first, and the rows of the list and of its differences after it. A worker's word
counts as long as nobody has raised the fence.
"""

import uuid
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

from sqlalchemy import and_, insert, or_, select, text, update
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.ext.asyncio import AsyncConnection

from service.domain.addresses import Channel
from service.domain.runs import WAITING, RunState
from service.store.tables_of_plans import reconciliations

MOST_ATTEMPTS: Final = 5
"""Workers that may take a run one after the other without any of them getting further."""

_UNDER_WAY: Final = ("running", "approved", "reverting")


class Run(NamedTuple):
    """What a run is to do, and how far it is. `fence` counts the workers that took it: only the last one's word is
    written. `asked` holds what else was asked for; `position` is the last address that is compared,
    `deciding` a decision about so many lines that it is carried on part by part."""

    id: uuid.UUID
    namespace: str
    channel: Channel
    source: str
    auto_approve: bool
    actor: str
    fence: int = 0
    state: RunState = "queued"
    asked: dict[str, Any] | None = None
    position: str = ""
    counts: dict[str, int] | None = None
    outcome: dict[str, Any] | None = None
    deciding: dict[str, Any] | None = None


async def create(connection: AsyncConnection, run: Run, now: datetime) -> None:
    """Queues a run."""
    row = {name: getattr(run, name) for name in ("id", "namespace", "channel", "source", "auto_approve", "actor")}
    new = {"state": "queued", "created_at": now, "counts": {}, "asked": run.asked}
    await connection.execute(insert(reconciliations).values(row | new))


async def claim(
    connection: AsyncConnection, now: datetime, until: datetime, run_id: uuid.UUID | None = None
) -> Run | None:
    """Takes the oldest run on which there is work that nobody does; or the one given, if nobody has it.

    One that has been taken too often in vain is given up: then the state says so, and nothing is to be done.
    """
    table = reconciliations.c
    free = or_(table.lease_until.is_(None), table.lease_until < now)
    going_on = or_(table.state.in_(_UNDER_WAY), and_(table.state == "planned", table.deciding.is_not(None)))
    due = or_(table.state == "queued", and_(going_on, free))
    query = select(reconciliations).where(due).order_by(table.created_at).limit(1).with_for_update(skip_locked=True)
    row = (await connection.execute(query if run_id is None else query.where(table.id == run_id))).first()
    if row is None:
        return None
    taken: dict[str, Any] = {"lease_until": until, "fence": row.fence + 1, "attempts": row.attempts + 1}
    if row.attempts >= MOST_ATTEMPTS:
        state = "abandoned" if row.state == "running" else "failed"
        taken |= {"state": state, "error": "worker-died", "finished_at": now, "lease_until": None, "deciding": None}
    elif row.state == "queued":
        taken |= {"state": "running", "started_at": now}
    await connection.execute(update(reconciliations).where(table.id == row.id).values(taken))
    deciding = None if "deciding" in taken else row.deciding
    return as_run(row)._replace(fence=row.fence + 1, state=taken.get("state", row.state), deciding=deciding)


async def hold(connection: AsyncConnection, run: Run, until: datetime) -> bool:
    """Holds the run for longer, and locks its row until the commit; False if another worker has taken it over, or
    somebody has ended it."""
    return await write(connection, run, {"lease_until": until})


async def write(connection: AsyncConnection, run: Run, values: dict[str, Any]) -> bool:
    """Writes down how far it is; False if it is not this worker's any more."""
    mine = update(reconciliations).where(reconciliations.c.id == run.id, reconciliations.c.fence == run.fence)
    return (await connection.execute(mine.values(values))).rowcount > 0


async def change(connection: AsyncConnection, run_id: uuid.UUID, values: dict[str, Any]) -> None:
    """Writes to a run whose row is locked."""
    await connection.execute(update(reconciliations).where(reconciliations.c.id == run_id).values(values))


async def lock(connection: AsyncConnection, run_id: uuid.UUID) -> Any | None:
    """One run, locked until the end of the transaction."""
    query = select(reconciliations).where(reconciliations.c.id == run_id)
    return (await connection.execute(query.with_for_update())).first()


async def one(connection: AsyncConnection, run_id: uuid.UUID) -> Any | None:
    """One run."""
    return (await connection.execute(select(reconciliations).where(reconciliations.c.id == run_id))).first()


class Place(NamedTuple):
    """Where a page of the list of runs ends."""

    created_at: datetime
    id: uuid.UUID


async def newest(
    connection: AsyncConnection,
    namespace: str,
    limit: int,
    *,
    channel: str | None = None,
    state: str | None = None,
    before: Place | None = None,
) -> Sequence[Any]:
    """The newest runs of a namespace, or those before a place."""
    table = reconciliations.c
    query = select(reconciliations).where(table.namespace == namespace)
    for column, value in ((table.channel, channel), (table.state, state)):
        query = query if value is None else query.where(column == value)
    if before is not None:
        older = and_(table.created_at == before.created_at, table.id < before.id)
        query = query.where(or_(table.created_at < before.created_at, older))
    return (await connection.execute(query.order_by(table.created_at.desc(), table.id.desc()).limit(limit))).all()


async def any_of(connection: AsyncConnection, namespace: str, channel: Channel, states: Sequence[str]) -> bool:
    """Whether a run of this list is in one of these states."""
    table = reconciliations.c
    query = select(table.id).where(table.namespace == namespace, table.channel == channel, table.state.in_(states))
    return (await connection.execute(query.limit(1))).first() is not None


async def abandon_plans(connection: AsyncConnection, run: Run, now: datetime) -> int:
    """Gives up the plans of this list and actor that nobody has touched: this run has a newer one. Returns how many."""
    table = reconciliations.c
    stale = update(reconciliations).where(
        table.namespace == run.namespace,
        table.channel == run.channel,
        table.actor == run.actor,
        table.state == "planned",
        table.decided_by.is_(None),
        table.id != run.id,
    )
    given_up = stale.values(state="abandoned", error=f"newer-plan:{run.id}", finished_at=now)
    return (await connection.execute(given_up)).rowcount


async def unproved(connection: AsyncConnection, limit: int) -> list[uuid.UUID]:
    """Applied runs of which no line waits for Kahuna any more, but which do not say so yet."""
    return list((await connection.execute(_UNPROVED, {"limit": limit})).scalars())


# The states stand in the statement, so that the index of what waits is used, however often it runs.
_UNPROVED: Final = text(
    f"""
    select r.id from reconciliations as r
    where r.state = 'applied' and r.closed_at is null
      and not exists (select from differences as d
                      where d.run_id = r.id and d.state in ({", ".join(f"'{one}'" for one in sorted(WAITING))}))
    order by r.created_at limit :limit
    """  # noqa: S608 (our own words)
)


async def last_checks(connection: AsyncConnection) -> dict[tuple[str, Channel], tuple[uuid.UUID, datetime]]:
    """The newest run that compared a whole list, and when it did, by namespace and channel."""
    table = reconciliations.c
    query = select(table.namespace, table.channel, table.id, table.complete_at)
    whole = query.ext(distinct_on(table.namespace, table.channel)).where(table.complete_at.is_not(None))
    rows = await connection.execute(whole.order_by(table.namespace, table.channel, table.complete_at.desc()))
    return {(row.namespace, row.channel): (row.id, row.complete_at) for row in rows}


def as_run(row: Any) -> Run:
    """The run of a row."""
    given = {name: getattr(row, name) for name in Run._fields}
    return Run(**given | {"position": row.position or ""})
