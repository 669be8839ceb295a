"""Owns the leases of work that one process at a time may do. Rows and not advisory locks, which a pooler would break.

A lease ends by itself; whoever takes it then raises the fence, and the word of the one before is not written any more.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

from sqlalchemy import DateTime, bindparam, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from service.store.tables import leases

EVIDENCE: Final = "evidence"
"""Held by whoever takes back what the archive says, and by whoever drops a month of it: not both at once."""


class Lease(NamedTuple):
    """Work that is ours until the lease ends, or until another raises the fence."""

    name: str
    fence: int


_CLAIM: Final = text(
    """
    insert into leases as l (name, fence, ends_at) values (:name, 1, :until)
    on conflict (name) do update set fence = l.fence + 1, ends_at = excluded.ends_at where l.ends_at <= :now
    returning fence
    """
).bindparams(bindparam("now", type_=DateTime(True)), bindparam("until", type_=DateTime(True)))


async def claim(connection: AsyncConnection, name: str, now: datetime, until: datetime) -> Lease | None:
    """Takes the work if nobody has it; None if somebody does, or it is not due again yet."""
    fence = (await connection.execute(_CLAIM, {"name": name, "now": now, "until": until})).scalar()
    return None if fence is None else Lease(name, fence)


async def hold(connection: AsyncConnection, lease: Lease, until: datetime) -> bool:
    """Holds it for longer, or until it is due again; False if another has taken it. Locks the row until the commit, so
    that nobody can take it while this transaction writes."""
    mine = update(leases).where(leases.c.name == lease.name, leases.c.fence == lease.fence)
    return (await connection.execute(mine.values(ends_at=until))).rowcount > 0


async def standing(connection: AsyncConnection) -> Sequence[Any]:
    """Every lease that there is or was, by name: `ends_at` is when it ends, or when its work is due again."""
    return (await connection.execute(select(leases).order_by(leases.c.name))).all()
