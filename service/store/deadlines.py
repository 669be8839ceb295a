"""Owns the stops that are not honoured on both sides yet: those that Kahuna does not hold, as far as is proved.

They are few, and all of them are in the outbox, which is written with each fact: the list itself is only looked at for
corrections that were given up, by their keys, since Kahuna may have learnt of those stops in another way.
"""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import BigInteger, Text, bindparam, text
from sqlalchemy.ext.asyncio import AsyncConnection

from service.domain.addresses import Channel
from service.store.merging import HOME

_MINE: Final = """
    select c.id, c.namespace, c.channel, c.address, c.slot, c.state, c.attempts, c.reason, c.created_at,
           coalesce(c.stopped_at, c.occurred_at) as stopped_at
    from corrections as c where c.action = 'suppress'
"""

# One slot is one stop: of several corrections the newest tells, which knows the time of the oldest.
_NEWEST: Final = """
    and not exists (
        select from corrections as n
        where n.address = c.address and n.channel = c.channel and n.namespace = c.namespace and n.slot = c.slot
          and n.id > c.id and n.action = 'suppress'
          and n.state in ('pending', 'sending', 'dead', 'rejected', 'discarded')
    )
"""

_STILL_OWED: Final = f"""
    and (
        select bool_or(s.stop_at >= coalesce(s.clear_at, s.stop_at))
               and not coalesce(max(s.held_stop_at) > coalesce(max(s.held_clear_at), -1), false)
        from suppressions as s
        where s.address = c.address and s.channel = c.channel and s.namespace = c.namespace
          and {HOME.replace(":channel", "c.channel").replace("reason", "s.reason")} = c.slot
    )
"""  # noqa: S608 (our own words)

# State by state, since each has an index of its own.
_OPEN: Final = f"""
    {_MINE} and c.state = 'pending'
    union all {_MINE} and c.state = 'sending' {_NEWEST}
    union all {_MINE} and c.state = 'dead' {_NEWEST} {_STILL_OWED}
    union all {_MINE} and c.state = 'rejected' {_NEWEST} {_STILL_OWED}
"""

_PAGE: Final = text(
    f"""
    select * from ({_OPEN}) as stops
    where namespace = :namespace and stopped_at > :above and stopped_at <= :up_to
      and (stopped_at, id) > (:after_stop, :after_id)
      and (:channel is null or channel = :channel) and (:slot is null or slot = :slot)
      and (:state is null or state = :state)
    order by stopped_at, id limit :limit
    """  # noqa: S608
).bindparams(
    *(bindparam(name, type_=BigInteger) for name in ("above", "up_to", "after_stop", "after_id")),
    *(bindparam(name, type_=Text) for name in ("channel", "slot", "state")),
)

_COUNTS: Final = text(
    f"""
    select namespace, channel, count(*) filter (where stopped_at <= :overdue) as overdue,
           count(*) filter (where stopped_at > :overdue and stopped_at <= :soon) as due_soon, count(*) as open,
           min(stopped_at) as oldest
    from ({_OPEN}) as stops
    where :namespace is null or namespace = :namespace
    group by namespace, channel order by namespace, channel
    """  # noqa: S608
).bindparams(
    bindparam("overdue", type_=BigInteger), bindparam("soon", type_=BigInteger), bindparam("namespace", type_=Text)
)

_LAST: Final = 2**62


class Asked(NamedTuple):
    """Which stops: those that happened after one second and up to another; None leaves a choice open. `state` is that
    of the correction."""

    namespace: str
    above: int = -1
    up_to: int = _LAST
    channel: str | None = None
    slot: str | None = None
    state: str | None = None


class Place(NamedTuple):
    """Where a page ends: the time of a stop, and the id of its correction."""

    stopped_at: int
    id: int


class Counted(NamedTuple):
    """The open stops of a namespace and channel. `oldest` is in Unix seconds."""

    namespace: str
    channel: Channel
    overdue: int
    due_soon: int
    open: int
    oldest: int


async def listed(connection: AsyncConnection, asked: Asked, after: Place | None, limit: int) -> Sequence[Any]:
    """The oldest of these stops, each with the correction that is to tell it."""
    begin = Place(-1, 0) if after is None else after
    values = asked._asdict() | {"after_stop": begin.stopped_at, "after_id": begin.id, "limit": limit}
    return (await connection.execute(_PAGE, values)).all()


async def counted(connection: AsyncConnection, overdue: int, soon: int, namespace: str | None = None) -> list[Counted]:
    """How many are open, where there are any: `overdue` is the latest time of a stop that is due by now, `soon` that of
    one that will be soon."""
    values = {"overdue": overdue, "soon": soon, "namespace": namespace}
    return [Counted(*row) for row in await connection.execute(_COUNTS, values)]
