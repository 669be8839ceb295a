"""Owns the way of very many stops into the list: those of addresses that nobody has heard of are copied in.

Of a large batch most addresses are new, and then there is nothing to merge with and nothing to be owed: `COPY` stores
facts, causes and what is fed of them for two thirds of what a statement costs the server, and the next rows are written
out while it works on the last. Who is in the list already is merged as everybody is. Refuses whatever is no plain stop;
and if others bring one of these addresses meanwhile, nothing was copied, and all are merged.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from itertools import chain, groupby, islice
from operator import attrgetter, eq
from typing import Final, NamedTuple

import asyncpg
from sqlalchemy import text

from service.domain.addresses import Channel
from service.domain.facts import home_of
from service.domain.suppression import Policy
from service.store import suppressions
from service.store.database import (
    MANY,
    SEPARATOR,
    Connection,
    driver_of,
    note_fed,
    out_of_turn,
    plan_anew,
)
from service.store.faults import Overtaken
from service.store.merging import PARTITION
from service.store.suppressions import Entry, Merged, Provenance, in_order

SLICE: Final = 10_000
"""Rows that are written out at once."""

# Locked in the order of the keys before any fact is stored, as the merge does it.
_KNOWN: Final = text(
    f"""
    with given as materialized (
        select address, place
        from unnest(string_to_array(:addresses, :separator)) with ordinality as a(address, place)
        order by place
    ), known as materialized (
        select given.address from given
        cross join lateral (
            select from suppressions as s
            where s.address = given.address and s.channel = :channel and s.namespace = :namespace
            order by s.reason for update
        ) as held
    )
    select (select string_agg(address, :separator) from known) as known,
           (select string_agg({PARTITION}::text, '' order by place) from given) as partitions
    """  # noqa: S608 (built from our own words alone)
)


_FACTS: Final = (
    *("address", "reason", "occurred_at", "address_received", "batch_id", "entry_index"),
    *("channel", "namespace", "action", "source", "origin", "audit_id", "recorded_at"),
)
_CAUSES: Final = (
    *("address", "reason", "stop_at", "{side}_stop_at", "bounces", "address_received", "batch_id"),
    *("channel", "namespace", "origin", "recorded_at"),
)
_CHANGES: Final = ("address", "channel", "namespace", "recorded_at")


class News(NamedTuple):
    """What is said of addresses that nobody has heard of, in the order of their keys: each fact once, for each cause
    the fact that decides it, and the times of the bounces where there are several."""

    facts: Sequence[Entry]
    causes: Sequence[Entry]
    bounces: Mapping[tuple[str, str], Sequence[int]]


async def apply(
    connection: Connection, entries: Sequence[Entry], provenance: Provenance, policy: Policy, *, locked: bool = False
) -> Merged:
    """What `suppressions.apply` does, for however many entries."""
    if len(entries) <= MANY or locked or not await asyncio.to_thread(_are_plain_stops, entries, provenance.channel):
        return await suppressions.apply(connection, entries, provenance, policy, locked=locked)
    # What is locked from here on is let go if this fails: the merge takes its locks in their order from the start.
    with suppress(Overtaken, asyncpg.UniqueViolationError, asyncpg.DeadlockDetectedError):
        async with connection.begin_nested():
            return await _apply(connection, entries, provenance, policy)
    return await suppressions.apply(connection, entries, provenance, policy)


def _are_plain_stops(entries: Sequence[Entry], channel: Channel) -> bool:
    """Whether all of them are stops, of slots that have no other home."""
    if any(home_of(channel, reason) != reason for reason in {entry.reason for entry in entries}):
        return False
    return {(entry.action, entry.awaits) for entry in entries} == {("suppress", False)}


async def _apply(connection: Connection, entries: Sequence[Entry], provenance: Provenance, policy: Policy) -> Merged:
    ordered = await asyncio.to_thread(in_order, entries)
    known, partitions = await _lock_known(connection, ordered, provenance)
    news = await asyncio.to_thread(news_in, ordered, known, policy)
    lines = _Lines(provenance, news.bounces)
    side = "local" if provenance.source == "local" else "held"
    facts = await asyncio.to_thread(_by_partition, news.facts, ordered, partitions)
    await _copy(connection, "facts", _FACTS, facts, lines.of_facts)
    await _copy(connection, "suppressions", [c.format(side=side) for c in _CAUSES], news.causes, lines.of_causes)
    await _copy(connection, "changes", _CHANGES, news.causes, lines.of_changes)
    note_fed(connection)
    merged = Merged({}, set())
    if known:
        rest = await asyncio.to_thread(lambda: [e for e in ordered if e.address in known])
        # Their facts come after the new causes, out of the order of all others, so nobody is waited for.
        async with out_of_turn(connection):
            merged = await suppressions.apply(connection, rest, provenance, policy, locked=True)
    return await asyncio.to_thread(_with_news, merged, news, provenance)


async def _lock_known(
    connection: Connection, ordered: Sequence[Entry], provenance: Provenance
) -> tuple[Collection[str], str]:
    """Those of these addresses that are in the list, with their rows locked; and the partition of each entry."""
    addresses = await asyncio.to_thread(lambda: SEPARATOR.join([entry.address for entry in ordered]))
    values = {"addresses": addresses, "channel": provenance.channel, "namespace": provenance.namespace}
    await plan_anew(connection)
    row = (await connection.execute(_KNOWN, values | {"separator": SEPARATOR})).one()
    known: str | None = row.known
    told = () if known is None else await asyncio.to_thread(lambda: frozenset(known.split(SEPARATOR)))
    return told, row.partitions


def _by_partition(facts: Sequence[Entry], ordered: Sequence[Entry], partitions: str) -> list[Entry]:
    """These facts, in the order in which the merge stores them: partition by partition, each by key. `COPY` gathers the
    rows of each partition before it stores them, so that in any other order two that bring the same would deadlock."""
    partition_of = dict(zip((entry.address for entry in ordered), partitions, strict=True))
    parts: dict[str, list[Entry]] = {partition: [] for partition in sorted(set(partitions))}
    for fact in facts:
        parts[partition_of[fact.address]].append(fact)
    return list(chain.from_iterable(parts.values()))


def news_in(ordered: Sequence[Entry], known: Collection[str], policy: Policy) -> News:
    """What these stops, in the order of their keys, say of addresses that are not known."""
    new = [entry for entry in ordered if entry.address not in known] if known else ordered
    addresses = [entry.address for entry in new]
    if not any(map(eq, addresses, islice(addresses, 1, None))):
        return News(new, new, {})
    said: dict[tuple[str, str, int], Entry] = {}
    for entry in new:
        said.setdefault((entry.address, entry.reason, entry.occurred_at), entry)
    causes, bounces = [], {}
    for (address, reason), same in groupby(said.values(), key=attrgetter("address", "reason")):
        facts = list(same)
        causes.append(facts[-1])  # the latest
        bounces[address, reason] = [fact.occurred_at for fact in facts[-policy.soft_bounces_kept :]]
    return News(list(said.values()), causes, bounces)


def _with_news(merged: Merged, news: News, provenance: Provenance) -> Merged:
    """What came of both. What Kahuna says of an address that is new is nothing that it could be owed."""
    new = Counter(merged.new)
    for place, facts in Counter([fact.batch for fact in news.facts]).items():
        new[provenance.batches[place] if provenance.batches else None] += facts
    owed = {cause.address for cause in news.causes} if provenance.source == "local" else set()
    return Merged(dict(new), merged.at_odds | owed)


class _Lines:
    """Rows as `COPY` reads them: a line each, nothing for null. What all rows share comes last."""

    def __init__(self, provenance: Provenance, bounces: Mapping[tuple[str, str], Sequence[int]]) -> None:
        whose, source, origin = f"{provenance.channel}\t{provenance.namespace}", provenance.source, provenance.origin
        recorded_at = provenance.recorded_at.isoformat()
        self._bounces = bounces
        self._batches = [str(batch) for batch in provenance.batches] or [""]
        self._of_fact = f"{whose}\tsuppress\t{source}\t{origin}\t{provenance.audit_id or ''}\t{recorded_at}\n"
        self._of_cause = f"{whose}\t{origin}\t{recorded_at}\n"
        self._of_change = f"{whose}\t{recorded_at}\n"

    def of_facts(self, entries: Sequence[Entry]) -> str:
        """The facts that these entries are."""
        batches, shared = self._batches, self._of_fact
        return "".join(
            [
                f"{address}\t{reason}\t{at}\t{'' if received == address else received}\t{batches[batch]}"
                f"\t{'' if index is None else index}\t{shared}"
                for address, received, reason, _, at, index, _, batch in entries
            ]
        )

    def of_causes(self, entries: Sequence[Entry]) -> str:
        """The causes that these entries decide."""
        batches, shared = self._batches, self._of_cause
        return "".join(
            [
                f"{address}\t{reason}\t{at}\t{at}\t{self._times(address, reason, at)}"
                f"\t{'' if received == address else received}\t{batches[batch]}\t{shared}"
                for address, received, reason, _, at, _, _, batch in entries
            ]
        )

    def of_changes(self, entries: Sequence[Entry]) -> str:
        """What is fed of these causes."""
        shared = self._of_change
        return "".join([f"{entry.address}\t{shared}" for entry in entries])

    def _times(self, address: str, reason: str, at: int) -> str:
        if reason != "soft_bounce":
            return ""
        return f"{{{','.join(map(str, self._bounces.get((address, reason), (at,))))}}}"


async def _copy(
    connection: Connection,
    table: str,
    columns: Sequence[str],
    entries: Sequence[Entry],
    lines: Callable[[Sequence[Entry]], str],
) -> None:
    if not entries:  # all are known
        return
    driver = await driver_of(connection)
    await driver.copy_to_table(table, source=_ahead(entries, lines), columns=columns, format="text", null="")


async def _ahead(entries: Sequence[Entry], lines: Callable[[Sequence[Entry]], str]) -> AsyncIterator[bytes]:
    """The lines, some at a time: the next are written while the server works on the last."""
    parts = [entries[start : start + SLICE] for start in range(0, len(entries), SLICE)]
    coming = [asyncio.ensure_future(asyncio.to_thread(_written, part, lines)) for part in parts[:1]]
    try:
        for part in [*parts[1:], None]:
            written = await coming.pop()
            if part is not None:
                coming.append(asyncio.ensure_future(asyncio.to_thread(_written, part, lines)))
            yield written
    finally:
        for one in coming:
            one.cancel()


def _written(entries: Sequence[Entry], lines: Callable[[Sequence[Entry]], str]) -> bytes:
    # Of what an address may hold, only this means something else to `COPY`.
    return lines(entries).replace("\\", "\\\\").encode()
