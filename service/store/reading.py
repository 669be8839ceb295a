"""Owns the questions about many: which of these addresses are stopped now, and the list, page by page.

The verdict stands twice, here for many rows at once and in `domain.suppression` for one address; a property test holds
the two against each other. Refuses to judge of another moment than now's list: the past is folded from the facts.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

from sqlalchemy import BigInteger, DateTime, Float, Text, bindparam, text
from sqlalchemy.ext.asyncio import AsyncConnection

from service.domain.addresses import Channel
from service.domain.facts import Origin
from service.domain.suppression import Policy
from service.store.database import SEPARATOR, by_key
from service.store.suppressions import CauseRow, cause_from

SCANNED: Final = 10_000
"""Rows of the list that one page looks at, at most: a page of a rare kind may be shorter than asked, even empty.
Those of other namespaces and channels are passed over in the index and do not count."""

_ACTIVE: Final = """
    coalesce(s.stop_at >= coalesce(s.clear_at, s.stop_at), false) and case s.reason
        when 'soft_bounce' then exists (
            select from generate_subscripts(s.bounces, 1) as n
            where s.bounces[n + :reach] - s.bounces[n] <= :window and s.bounces[n + :reach] + :soft_lifetime > :at)
        when 'hard_bounce' then :hard_lifetime is null or s.stop_at + :hard_lifetime > :at
        else true end
"""
"""`domain.suppression.standing` in SQL: whether a cause is in force."""

# Thirty times as much as is wanted: other namespaces and channels are in the table, too.
_SHARE: Final = text(
    """
    select least(100.0, 3000.0 * :size / greatest(reltuples, 1))::float8 from pg_class
    where oid = 'suppressions'::regclass
    """
).bindparams(bindparam("size", type_=BigInteger))

_SAMPLE: Final = text(
    """
    select address from (
        select distinct address from suppressions tablesample system (:share)
        where namespace = :namespace and channel = :channel and coalesce(stop_at, clear_at) is not null
    ) as drawn
    order by random() limit :size
    """
).bindparams(bindparam("share", type_=Float), bindparam("size", type_=BigInteger))

_NUMBERS: Final = [bindparam(name, type_=BigInteger) for name in ("window", "soft_lifetime", "hard_lifetime", "at")]

# One row for each reason, however many addresses: what travels as one text need not be decoded row by row.
_IN_FORCE: Final = text(
    f"""
    select s.reason, string_agg(s.address, :separator) as addresses
    from suppressions as s
    where s.address = any(string_to_array(:addresses, :separator)) and s.channel = :channel
      and s.namespace = :namespace and {_ACTIVE}
    group by s.reason
    """  # noqa: S608 (our own words)
).bindparams(*_NUMBERS)

_KEY: Final = "(s.address, s.channel, s.namespace, s.reason)"
_AFTER: Final = f"{_KEY} > (:after_address, :after_channel, :after_namespace, :after_reason)"

_THERE: Final = "s.namespace = :namespace and (cast(:channel as text) is null or s.channel = :channel)"

# By the index alone, before the rows are read; to a row that may be asked about, since the caller is told of it.
_REACH: Final = text(
    f"""
    select s.address, s.channel, s.namespace, s.reason from suppressions as s where {_AFTER} and {_THERE}
    order by s.address, s.channel, s.namespace, s.reason offset :scanned limit 1
    """  # noqa: S608 (our own words)
)

_PAGE: Final = text(
    f"""
    select s.address, s.channel, s.namespace, s.reason, s.stop_at, s.clear_at, s.bounces, s.recorded_at, s.origin,
           s.batch_id
    from suppressions as s
    where {_AFTER}
      and (cast(:to_address as text) is null or {_KEY} <= (:to_address, :to_channel, :to_namespace, :to_reason))
      and {_THERE} and coalesce(s.stop_at, s.clear_at) is not null
      and (cast(:reason as text) is null or s.reason = :reason)
      and (cast(:origin as text) is null or s.origin = :origin)
      and (:since is null or s.recorded_at >= :since)
      and (cast(:active as boolean) is null or ({_ACTIVE}) = :active)
    order by s.address, s.channel, s.namespace, s.reason limit :limit
    """  # noqa: S608 (our own words)
).bindparams(
    *_NUMBERS,
    bindparam("since", type_=DateTime(timezone=True)),
    *(bindparam(f"to_{name}", type_=Text) for name in ("address", "channel", "namespace", "reason")),
)


class Place(NamedTuple):
    """A row's key: where a page ends and the next begins."""

    address: str
    channel: str
    namespace: str
    reason: str


START: Final = Place("", "", "", "")


class Wanted(NamedTuple):
    """Which rows of a namespace: None leaves a choice open. `since` is about when we recorded what decided."""

    namespace: str
    channel: Channel | None = None
    reason: str | None = None
    origin: Origin | None = None
    active: bool | None = None
    since: datetime | None = None


class Listed(NamedTuple):
    """One row of the list: a cause, and whose it is."""

    place: Place
    row: CauseRow


async def in_force(
    connection: AsyncConnection, namespace: str, channel: Channel, addresses: Sequence[str], at: int, policy: Policy
) -> dict[str, str]:
    """By reason, which of these addresses have a cause in force: each once, in texts that `SEPARATOR` joins. Needs a
    transaction."""
    await by_key(connection)
    values: dict[str, Any] = {"namespace": namespace, "channel": channel, "separator": SEPARATOR}
    values |= {"addresses": SEPARATOR.join(addresses)}
    rows = await connection.execute(_IN_FORCE, values | _numbers(at, policy))
    return {row.reason: row.addresses for row in rows}


async def page(
    connection: AsyncConnection, wanted: Wanted, after: Place, limit: int, at: int, policy: Policy
) -> tuple[list[Listed], Place | None]:
    """The next rows in the order of their keys, and after which place to go on; None: there is nothing more.

    A key never changes, so whatever is there during a whole walk is met exactly once. The place is always one of this
    namespace, and of this channel if one is wanted: who may not see the others is not told their addresses.
    """
    begin = {f"after_{name}": value for name, value in after._asdict().items()}
    where = {"namespace": wanted.namespace, "channel": wanted.channel, "scanned": SCANNED - 1}
    reached = (await connection.execute(_REACH, begin | where)).first()
    to = Place(*reached) if reached else None
    end = {f"to_{name}": getattr(to, name, None) for name in Place._fields}
    values = begin | end | wanted._asdict() | _numbers(at, policy) | {"limit": limit}
    rows = (await connection.execute(_PAGE, values)).all()
    listed = [
        Listed(Place(*row[:4]), CauseRow(cause_from(row), row.recorded_at, row.origin, row.batch_id)) for row in rows
    ]
    return listed, listed[-1].place if len(listed) == limit else to


def _numbers(at: int, policy: Policy) -> dict[str, Any]:
    return {
        "at": at,
        "reach": policy.soft_bounce_count - 1,
        "window": policy.soft_bounce_window,
        "soft_lifetime": policy.soft_bounce_lifetime,
        "hard_lifetime": policy.hard_bounce_lifetime,
    }


async def sample(connection: AsyncConnection, namespace: str, channel: Channel, size: int) -> list[str]:
    """So many addresses of the list at random, or all if there are fewer: of parts of the table that are drawn by
    chance, so that not all of it is read. Needs a transaction."""
    share = (await connection.execute(_SHARE, {"size": size})).scalar_one()
    values = {"namespace": namespace, "channel": channel, "size": size}
    found = list((await connection.execute(_SAMPLE, values | {"share": share})).scalars())
    if len(found) < size and share < 100:
        found = list((await connection.execute(_SAMPLE, values | {"share": 100.0})).scalars())
    return found
