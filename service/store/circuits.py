"""Owns the circuits: the channels of which nothing is sent, since Kahuna refuses the credentials or asked to wait."""

from datetime import datetime
from typing import Final, NamedTuple

from sqlalchemy import DateTime, bindparam, delete, select, text, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from service.domain.addresses import Channel
from service.store.tables import circuits


class Circuit(NamedTuple):
    """Why nothing is sent of a channel, when one correction goes ahead to see whether that is over, and since when."""

    namespace: str
    channel: Channel
    reason: str
    probe_at: datetime
    opened_at: datetime | None = None


# Those that wait for what the circuit is open for: what failed by itself keeps its own time.
_RELEASE: Final = text(
    """
    with mine as (
        select id from corrections
        where namespace = :namespace and channel = :channel and state = 'pending' and next_attempt_at > :now
          and reason = :reason
        order by id for update skip locked
    )
    update corrections set next_attempt_at = :now where id in (select id from mine)
    """
).bindparams(bindparam("now", type_=DateTime(timezone=True)))


async def open_one(connection: AsyncConnection, circuit: Circuit, now: datetime) -> None:
    """Nothing is sent of this channel before the probe."""
    again = {"reason": circuit.reason, "probe_at": circuit.probe_at}
    opened = upsert(circuits).values(circuit._asdict() | {"opened_at": now})
    await connection.execute(opened.on_conflict_do_update(index_elements=["namespace", "channel"], set_=again))


async def close_one(connection: AsyncConnection, namespace: str, channel: Channel) -> Circuit | None:
    """Back to normal; returns the circuit as it was, or None if it was not open."""
    closed = delete(circuits).where(circuits.c.namespace == namespace, circuits.c.channel == channel)
    row = (await connection.execute(closed.returning(*_COLUMNS))).first()
    return None if row is None else Circuit(*row)


async def all_open(connection: AsyncConnection) -> dict[tuple[str, Channel], Circuit]:
    """The open circuits, by namespace and channel."""
    rows = await connection.execute(select(*_COLUMNS))
    return {(row.namespace, row.channel): Circuit(*row) for row in rows}


async def may_probe(connection: AsyncConnection, circuit: Circuit, now: datetime) -> bool:
    """Whether this transaction may send the probe: it is due, and nobody else is about to send it."""
    mine = (circuits.c.namespace == circuit.namespace, circuits.c.channel == circuit.channel)
    due = select(circuits.c.reason).where(*mine, circuits.c.probe_at <= now).with_for_update(skip_locked=True)
    return (await connection.execute(due)).first() is not None


async def probing(connection: AsyncConnection, circuit: Circuit, until: datetime) -> None:
    """A probe is on its way: the next one is due when this one has failed, or is lost."""
    mine = update(circuits).where(circuits.c.namespace == circuit.namespace, circuits.c.channel == circuit.channel)
    await connection.execute(mine.values(probe_at=until))


async def release(connection: AsyncConnection, circuit: Circuit, now: datetime) -> int:
    """Makes the corrections due that wait for the probe of this circuit; returns how many. Those that somebody else
    has locked are being looked at right now."""
    values = {"namespace": circuit.namespace, "channel": circuit.channel, "reason": circuit.reason, "now": now}
    return (await connection.execute(_RELEASE, values)).rowcount


_COLUMNS: Final = (
    circuits.c.namespace,
    circuits.c.channel,
    circuits.c.reason,
    circuits.c.probe_at,
    circuits.c.opened_at,
)
