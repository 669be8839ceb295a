"""Owns how well Kahuna's callbacks come, week by week: repetition, disorder, delay, entries without sense, silence.

Counts are from the archive, delay and disorder from the facts. Neither has an index by time of receipt, and neither is
to get one for this: of a large table only a share is read (`sampling`), so that a report costs the same on any list.
"""

from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final, NamedTuple

from sqlalchemy import REAL, DateTime, Uuid, bindparam, text
from sqlalchemy.ext.asyncio import AsyncConnection

from service.domain.addresses import CHANNELS, Channel
from service.store.batches import first_id
from service.store.sampling import Share, share_of

BYTES: Final = 32 * 1024 * 1024
"""Of each table at most: about 150,000 facts."""

_WEEK: Final = "cast(date_trunc('week', {at} at time zone 'UTC') as date)"

_RANGE: Final = (bindparam("low", type_=Uuid), bindparam("high", type_=Uuid))

_BATCHES: Final = text(
    f"""
    select {_WEEK.format(at="received_at")} as week, channel, count(*) as callbacks, sum(accepted) as accepted,
           sum(duplicates) as duplicates, sum(rejected) as rejected,
           array_agg(distinct cast(received_at at time zone 'UTC' as date)) as days
    from batches tablesample system (:percent) repeatable (0)
    where id >= :low and id < :high and namespace = :namespace and origin = 'kahuna_webhook' and state = 'applied'
    group by 1, 2
    """  # noqa: S608 (our own words)
).bindparams(*_RANGE, bindparam("percent", type_=REAL))

_ANY: Final = text(
    """
    select exists (select from batches where id >= :low and id < :high and namespace = :namespace
                                         and channel = :channel and origin = 'kahuna_webhook')
    """
).bindparams(*_RANGE)

# Out of order: something newer of the same address was known before.
_FACTS: Final = text(
    f"""
    select {_WEEK.format(at="recorded_at")} as week, channel, count(*) as facts,
           count(*) filter (where late) as late,
           percentile_disc(array[0.5, 0.95, 0.99, 1.0]) within group (order by delay) as delays
    from (
        select recorded_at, channel, extract(epoch from recorded_at)::float8 - occurred_at as delay, exists (
                   select from facts as known
                   where known.address = f.address and known.channel = f.channel and known.namespace = f.namespace
                     and known.source = 'kahuna' and known.occurred_at > f.occurred_at
                     and known.recorded_at < f.recorded_at
               ) as late
        from facts as f tablesample system (:percent) repeatable (0)
        where namespace = :namespace and origin = 'kahuna_webhook' and recorded_at >= :since and recorded_at < :until
    ) as judged
    group by 1, 2
    """  # noqa: S608
).bindparams(
    bindparam("percent", type_=REAL),
    bindparam("since", type_=DateTime(timezone=True)),
    bindparam("until", type_=DateTime(timezone=True)),
)


class Window(NamedTuple):
    """Whose callbacks, and when they were received: from the first moment up to the second."""

    namespace: str
    since: datetime
    until: datetime


class Week(NamedTuple):
    """The callbacks of a channel in the week that begins with this Monday (UTC). `delays` are the median, the 95th and
    the 99th percentile and the maximum, in seconds between an occurrence and when we had it, of `facts` facts that were
    looked at; `late` of them came after something newer about the same address. `missing` are whole days without any
    callback."""

    week: date
    channel: Channel
    callbacks: int
    accepted: int
    duplicates: int
    rejected: int
    facts: int
    late: int
    delays: tuple[float, ...]
    missing: tuple[date, ...]

    @property
    def entries(self) -> int:
        """Everything that the callbacks said."""
        return self.accepted + self.duplicates + self.rejected


class Report(NamedTuple):
    """The weeks, oldest first, and whether their counts are estimates."""

    weeks: list[Week]
    estimated: bool


async def report(connection: AsyncConnection, window: Window, now: datetime) -> Report:
    """How the callbacks of this time came. For a connection of `sampling.bounded`."""
    share = await share_of(connection, "batches", BYTES, window.since)
    found = {(row.week, row.channel): row for row in await _batches(connection, window, share)}
    seen = {(channel, day) for (_, channel), row in found.items() for day in row.days}
    missing = [(c, day) for c in CHANNELS for day in _silent(c, seen, window, now)]
    if not share.whole:
        missing = [one for one in missing if not await any_on(connection, window.namespace, *one)]
    facts_share = await share_of(connection, "facts", BYTES)
    values = window._asdict() | {"percent": facts_share.percent}
    facts = {(row.week, row.channel): row for row in await connection.execute(_FACTS, values)}
    keys = {*found, *facts, *((_monday(day), channel) for channel, day in missing)}
    weeks = [_week(key, found.get(key), facts.get(key), missing, share) for key in sorted(keys)]
    return Report(weeks, estimated=not (share.whole and facts_share.whole))


async def _batches(connection: AsyncConnection, window: Window, share: Share) -> Sequence[Any]:
    values = {"low": first_id(window.since), "high": first_id(window.until), "percent": share.percent}
    return (await connection.execute(_BATCHES, values | {"namespace": window.namespace})).all()


async def any_on(connection: AsyncConnection, namespace: str, channel: str, day: date) -> bool:
    """Whether a callback came on a day: a share of the archive may have none of it."""
    begins = datetime(day.year, day.month, day.day, tzinfo=UTC)
    values = {"low": first_id(begins), "high": first_id(begins + _DAY), "namespace": namespace, "channel": channel}
    return bool((await connection.execute(_ANY, values)).scalar())


def _silent(channel: str, seen: set[tuple[str, date]], window: Window, now: datetime) -> Iterable[date]:
    """The whole days without a callback since the first one of the window."""
    days = sorted(day for one, day in seen if one == channel)
    end = min(window.until, now).astimezone(UTC).date()
    day = days[0] if days else end
    while day < end:
        if (channel, day) not in seen:
            yield day
        day += _DAY


def _week(
    key: tuple[date, Channel], batches: Any, facts: Any, missing: Iterable[tuple[str, date]], share: Share
) -> Week:
    names = ("callbacks", "accepted", "duplicates", "rejected")
    callbacks, accepted, duplicates, rejected = (
        share.scaled(getattr(batches, name) or 0) if batches else 0 for name in names
    )
    looked_at, late = (facts.facts, facts.late) if facts else (0, 0)
    delays = tuple(facts.delays) if facts else ()
    silent = tuple(day for channel, day in missing if (_monday(day), channel) == key)
    return Week(*key, callbacks, accepted, duplicates, rejected, looked_at, late, delays, silent)


def _monday(day: date) -> date:
    return day - day.weekday() * _DAY


_DAY: Final = timedelta(days=1)
