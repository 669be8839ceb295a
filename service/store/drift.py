"""Owns what a reconciliation reads: the addresses of a list on which both sides may differ, and both sides of each.

The candidates come from one pass over the list, as of one moment; nothing is locked, and nothing is written.
"""

from collections import defaultdict
from collections.abc import AsyncGenerator, Iterable, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

from sqlalchemy import text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncConnection

from service.domain.corrections import Correction, slots_of
from service.domain.suppression import Cause
from service.store.database import SEPARATOR, plan_anew
from service.store.outbox import AT_ODDS, OPEN_HERE, Open, Scope, SlotState, state_of
from service.store.suppressions import cause_from

# A slot at odds has a row that is at odds with what Kahuna holds by that row alone, and of a slot without one nothing
# needs to be added up: a pass over the table, instead of a sort of it.
_ROW_AT_ODDS: Final = """address > :after and (
        coalesce(stop_at >= coalesce(clear_at, stop_at), false)
        is distinct from coalesce(held_stop_at > coalesce(held_clear_at, -1), false)
        or held_stop_at = held_clear_at)
"""

_CANDIDATES: Final = text(
    f"""
    {AT_ODDS.format(where=_ROW_AT_ODDS)}
    union
    {OPEN_HERE.format(where="address > :after")} and attempts > 0
    order by address
    """
)

_SIZE: Final = text("select count(*) from suppressions where namespace = :namespace and channel = :channel")

# Both sides in one statement: as of one moment, so that a correction which is settled meanwhile shows on neither or on
# both.
_SIDES: Final = text(
    """
    select s.address, s.reason, s.stop_at, s.clear_at, s.bounces, s.held_stop_at, s.held_clear_at,
           s.address_received, s.origin, s.batch_id, s.recorded_at, o.outbox
    from unnest(string_to_array(:addresses, :separator)) as given(address)
    cross join lateral (
        select * from suppressions as held
        where held.address = given.address and held.channel = :channel and held.namespace = :namespace
    ) as s
    left join lateral (
        select jsonb_agg(jsonb_build_array(c.id, c.slot, c.action, c.occurred_at, c.state, c.attempts, c.created_at,
                                           coalesce(c.stopped_at, c.occurred_at))
                         order by c.id) as outbox
        from corrections as c
        where c.address = given.address and c.channel = :channel and c.namespace = :namespace
          and (c.state <> 'superseded' or c.attempts > 0)
    ) as o on true
    order by s.address, s.reason
    """
).columns(outbox=JSONB)


class Sides(NamedTuple):
    """One slot: both sides and what follows, where each of our causes came from, and every correction of it that says
    anything, proved ones too, oldest first."""

    state: SlotState
    mine: list[Cause]
    origins: list[dict[str, Any]]
    outbox: list[Open]


async def size(connection: AsyncConnection, scope: Scope) -> int:
    """How many rows the list of this channel has."""
    values = {"namespace": scope.namespace, "channel": scope.channel}
    return int((await connection.execute(_SIZE, values)).scalar_one())


async def candidates(
    connection: AsyncConnection, scope: Scope, after: str, at_once: int
) -> AsyncGenerator[Sequence[str], None]:
    """The addresses behind `after` with a slot that may be at odds, in order, so many at a time: needs a transaction
    that may last as long as the plan does."""
    values = {"namespace": scope.namespace, "channel": scope.channel, "after": after}
    found = await connection.stream(_CANDIDATES, values, execution_options={"yield_per": at_once})
    async for part in found.scalars().partitions(at_once):
        yield part


async def sides(connection: AsyncConnection, scope: Scope, addresses: Sequence[str]) -> list[Sides]:
    """Both sides of every slot of these addresses, in the order of the keys."""
    await plan_anew(connection, len(addresses))
    values = {"namespace": scope.namespace, "channel": scope.channel, "separator": SEPARATOR}
    rows = await connection.execute(_SIDES, values | {"addresses": SEPARATOR.join(addresses)})
    by_address: defaultdict[str, list[Any]] = defaultdict(list)
    for row in rows:
        by_address[row.address].append(row)
    return [one for address, mine in by_address.items() for one in _slots(scope, address, mine)]


def _slots(scope: Scope, address: str, rows: list[Any]) -> Iterable[Sides]:
    corrections = _by_slot(rows[0].outbox or [])
    for name, mine in sorted(slots_of(scope.channel, {row.reason: cause_from(row) for row in rows}).items()):
        outbox = corrections.get(name, [])
        # What is proved stands in the list; withdrawn ones that were never sent are not even read.
        state = state_of(scope, address, name, rows, [o for o in outbox if o.state != "sent"], again=True)
        reasons = {cause.reason for cause in mine}
        origins = [_origin(row) for row in rows if row.reason in reasons]
        yield Sides(state, mine, origins, outbox)


def _origin(row: Any) -> dict[str, Any]:
    return {"origin": row.origin, "batch_id": row.batch_id, "recorded_at": row.recorded_at}


def _by_slot(rows: list[list[Any]]) -> dict[str, list[Open]]:
    found: defaultdict[str, list[Open]] = defaultdict(list)
    for key, slot, action, occurred_at, state, attempts, created_at, stopped_at in rows:
        moment = datetime.fromisoformat(created_at)
        found[slot].append(Open(key, Correction(action, occurred_at), state, attempts, moment, stopped_at))
    return found
