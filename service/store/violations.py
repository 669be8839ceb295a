"""Owns the messages that went out although their address was stopped, and what judging one takes: the facts about many
addresses, each with what Kahuna accepted of it."""

from collections import defaultdict
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

from sqlalchemy import func, literal, select, text, tuple_
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from service.domain.addresses import Channel
from service.domain.facts import Fact
from service.domain.leaks import KnownBy, Told
from service.store.database import SEPARATOR, plan_anew
from service.store.tables import violations


class Proved(NamedTuple):
    """A fact about an address as evidence: how the domain judges it, and where it can be looked up."""

    told: Told
    where: dict[str, Any]


class Violation(NamedTuple):
    """A message against a stop. `evidence` holds both sides: the record of the message, and the stop. The digest is
    that of the record: read again, it adds nothing."""

    address: str
    digest: bytes
    sent_at: datetime
    campaign: str | None
    campaign_id: int | None
    known_by: KnownBy
    known_since: datetime
    reason: str
    occurred_at: int
    evidence: dict[str, Any]


class Place(NamedTuple):
    """Where a page of the list ends."""

    sent_at: datetime
    digest: bytes
    address: str


class Asked(NamedTuple):
    """Which violations: of messages sent at `since` or later, of one channel, that one side knew of; None for any."""

    namespace: str
    channel: Channel | None = None
    known_by: str | None = None
    since: datetime | None = None


# Most addresses of a page were never stopped, and are done with after a look at the list. What Kahuna accepted of a
# fact is the first correction of its slot that says as much.
_PROOFS: Final = text(
    """
    with stopped as materialized (
        select address from unnest(string_to_array(:addresses, :separator)) as given(address)
        where (select count(*) from suppressions as s
               where s.address = given.address and s.channel = 'email' and s.namespace = :namespace
                 and s.stop_at is not null and s.reason <> 'soft_bounce') > 0
    )
    select f.address, f.reason, f.action, f.occurred_at, f.source, f.origin, f.recorded_at, f.batch_id, f.entry_index,
           f.audit_id, taken.id as correction_id, taken.settled_at
    from stopped
    cross join lateral (
        select f.* from facts as f
        where f.address = stopped.address and f.channel = 'email' and f.namespace = :namespace
          and f.reason <> 'soft_bounce'
    ) as f
    left join lateral (
        select c.id, c.settled_at from corrections as c
        where c.address = f.address and c.channel = 'email' and c.namespace = :namespace
          and c.slot = case when f.reason = 'manual' then 'unsubscribe' else f.reason end
          and c.state = 'sent' and c.action = 'suppress' and c.occurred_at >= f.occurred_at
          and f.action = 'suppress' and f.source = 'local'
        order by c.settled_at limit 1
    ) as taken on true
    """
)

_COUNTS: Final = select(violations.c.namespace, violations.c.known_by, func.count()).group_by(
    violations.c.namespace, violations.c.known_by
)


async def proofs(connection: AsyncConnection, namespace: str, addresses: Collection[str]) -> dict[str, list[Proved]]:
    """Every fact, soft bounces aside, about those of these e-mail addresses that were ever stopped."""
    found: defaultdict[str, list[Proved]] = defaultdict(list)
    if not addresses:
        return found
    await plan_anew(connection)
    values = {"namespace": namespace, "addresses": SEPARATOR.join(sorted(addresses)), "separator": SEPARATOR}
    for row in await connection.execute(_PROOFS, values):
        fact = Fact(namespace, "email", row.address, row.reason, row.action, row.occurred_at, row.source)
        accepted = None if row.settled_at is None else int(row.settled_at.timestamp())
        names = ("origin", "recorded_at", "batch_id", "entry_index", "audit_id", "correction_id")
        where = {name: getattr(row, name) for name in names} | {"accepted_at": row.settled_at}
        found[row.address].append(Proved(Told(fact, int(row.recorded_at.timestamp()), accepted), where))
    return found


async def write(
    connection: AsyncConnection, namespace: str, found: Sequence[Violation], now: datetime
) -> list[KnownBy]:
    """Keeps those that are new; returns who knew, for each of them."""
    if not found:
        return []
    shared = {"namespace": namespace, "channel": "email", "found_at": now}
    rows = [one._asdict() | shared for one in sorted(found, key=lambda one: (one.address, one.digest))]
    added = insert(violations).values(rows).on_conflict_do_nothing().returning(violations.c.known_by)
    return list((await connection.execute(added)).scalars())


async def listed(connection: AsyncConnection, asked: Asked, before: Place | None, limit: int) -> Sequence[Any]:
    """The newest of these, by the time of the message; `before` is where an earlier page ended."""
    table = violations.c
    query = select(violations).where(table.namespace == asked.namespace)
    for column, wanted in ((table.channel, asked.channel), (table.known_by, asked.known_by)):
        if wanted is not None:
            query = query.where(column == wanted)
    if asked.since is not None:
        query = query.where(table.sent_at >= asked.since)
    order = (table.sent_at, table.digest, table.address)
    if before is not None:
        place = (literal(value, column.type) for value, column in zip(before, order, strict=True))
        query = query.where(tuple_(*order) < tuple_(*place))
    return (await connection.execute(query.order_by(*(c.desc() for c in order)).limit(limit))).all()


async def counts(connection: AsyncConnection) -> dict[tuple[str, str], int]:
    """How many there are, by namespace and who knew."""
    return {(namespace, known_by): count for namespace, known_by, count in await connection.execute(_COUNTS)}
