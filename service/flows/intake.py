"""Owns how callbacks that come at the same time share a transaction, so that none pays for one alone.

One that cannot be taken in company, whether it is to blame or not, is tried by itself, as a large one is from the
start. Refuses to decide what a callback means: `flows.ingest` does.
"""

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Final

from service.domain.addresses import Channel
from service.errors import StorageUnavailable
from service.flows.ingest import (
    Ingested,
    Member,
    Rules,
    Said,
    Sorted,
    apply,
    because_of,
    count_entries,
    count_facts,
    errors_of,
    facts_of,
    ingest,
    is_away,
    log,
    rejected_of,
    sort,
)
from service.flows.together import Together
from service.kahuna import webhook
from service.spans import Tracer, traceparent_in
from service.store import arrivals, batches, outbox
from service.store.arrivals import Arrival, Group
from service.store.batches import Outcome, Received
from service.store.database import Database
from service.store.suppressions import Provenance
from service.telemetry import Metrics, logger

SMALL: Final = 200
SMALL_BODY: Final = 64 * 1024
"""Entries and bytes up to which a batch shares its transaction: a large one would hold up its companions."""

SHARED: Final = 64
"""Batches that share one transaction at most."""

LEAST: Final = 12
"""Batches up to which a crowd is not parted: a transaction of its own costs about as much as so many more members."""

AT_ONCE: Final = 2
"""Shared transactions of one namespace and channel under way: the second only if the first has to wait for somebody."""

PATIENCE: Final = 30.0
"""Seconds that a shared transaction may take. It is small, so that the database must be away if it takes longer."""

WAITING: Final = 4096
"""Batches of one namespace and channel that may wait for a transaction before the next is told to come again."""


class Intake:
    """Takes the callbacks of one process in: those of one namespace and channel that come together share their
    transactions."""

    def __init__(
        self,
        database: Database,
        rules: Rules,
        clock: Callable[[], datetime],
        metrics: Metrics | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        self._metrics = metrics or Metrics()
        self._tracer = tracer or Tracer()
        self._database = database
        self._rules = rules
        self._clock = clock
        self._logger = logger().bind()
        self._groups: dict[tuple[str, Channel], Together[Member, Ingested | None]] = {}

    async def ingest(self, batch: Received, callback: webhook.Callback) -> Ingested:
        """Makes a verified batch durable, and applied unless that fails for a reason of our own."""
        small = _is_small(batch, callback)
        ingested = await self._in_company(Member(batch, callback)) if small else None
        if ingested is None:
            return await self.ingest_alone(batch, callback)
        log(batch, ingested, self._logger)
        return ingested

    async def ingest_alone(self, batch: Received, callback: Said) -> Ingested:
        """The same, sharing with nobody: for a batch that may be taken in twice at the same time."""
        with self._tracer.within(self._tracer.child("batch.apply", traceparent_in(batch.headers))) as span:
            ingested = await ingest(self._database, batch, callback, self._rules, self._clock, self._metrics)
            if span is not None:
                span.told |= {"kahuna_sync.batch_id": ingested.batch_id, "kahuna_sync.state": ingested.state}
        return ingested

    async def ingest_again(self, member: Member) -> Ingested:
        """The same for one that was read again, in company if it may: none that is taken in twice at the same time is
        taken twice, for its companions are parted then."""
        if isinstance(member.callback, webhook.Callback):
            return await self.ingest(member.batch, member.callback)
        return await self.ingest_alone(member.batch, member.callback)

    def abandon(self) -> None:
        """Ends the shared transactions under way, for the database will not: who waits for them has been told."""
        for group in self._groups.values():
            group.abandon()

    async def _in_company(self, member: Member) -> Ingested | None:
        """What came of it; None if it must be tried by itself, for a fault that may be another's."""
        key = (member.batch.namespace, member.batch.channel)
        if key not in self._groups:
            self._groups[key] = Together(self._take, at_once=AT_ONCE, most=SHARED, waiting=WAITING, least=LEAST)
        try:
            return await self._groups[key].ask(member)
        except Exception as error:  # it will be met again if it is this one's own
            if is_away(error):
                raise
            logger().info("group.parted", batch_id=str(member.batch.id), because=type(error).__name__)
            return None

    async def _take(self, members: Sequence[Member]) -> list[Ingested | None]:
        channel, began = members[0].batch.channel, self._tracer.clock() if self._tracer.on else 0
        taken = await self._take_within(members)
        self._metrics.groups.add(len(members), channel)
        outcomes = [None if one is None else one.outcome for one in taken]
        counts = facts_of((member.callback, outcome) for member, outcome in zip(members, outcomes, strict=True))
        count_facts(self._metrics, channel, counts)
        count_entries(self._metrics, channel, [outcome for outcome in outcomes if outcome is not None])
        if began:
            for member in members:
                told = {"kahuna_sync.batch_id": str(member.batch.id), "kahuna_sync.group_callbacks": len(members)}
                self._tracer.note("batch.apply", traceparent_in(member.batch.headers), began, told)
        return taken

    async def _take_within(self, members: Sequence[Member]) -> list[Ingested | None]:
        # A server that went away without a word would keep these, and all who come after, for ever.
        try:
            async with asyncio.timeout(PATIENCE):
                return await self._take_together(members)
        except TimeoutError:
            raise StorageUnavailable("The database does not answer; deliver it again.") from None

    async def _take_together(self, members: Sequence[Member]) -> list[Ingested | None]:
        """New batches in one transaction. Redeliveries are none of its business."""
        shared = members[0].batch
        untimed_opt_in = self._rules.namespaces[shared.namespace].untimed_opt_in
        found = [sort(member, place, untimed_opt_in) for place, member in enumerate(members)]
        if any(one.opt_ins or one.untimed for one in found):
            return await self._take_opt_ins(members)
        return await self._take_stops(members, found)

    async def _take_stops(self, members: Sequence[Member], found: Sequence[Sorted]) -> list[Ingested | None]:
        """Nobody has to see these first, which makes it a matter of one statement."""
        shared, now = members[0].batch, self._clock()
        told = [
            Arrival(member.batch, len(member.callback.entries) - len(one.rejected), errors_of(one))
            for member, one in zip(members, found, strict=True)
        ]
        ids = tuple([member.batch.id for member in members])
        provenance = Provenance(shared.namespace, shared.channel, "kahuna", shared.origin, now, ids)
        entries = [entry for one in found for entry in one.facts]
        group = Group(told, entries, provenance, self._rules.policy)
        if not any(one.rejected for one in found):
            async with self._database.single() as connection:
                stored = await arrivals.store_apart(connection, group)
            if stored is not None:
                return [_ingested(one, stored.new.get(place)) for place, one in enumerate(told)]
        async with self._database.straight() as connection:
            stored = await arrivals.store(connection, group)
            new = sorted(stored.new)
            rejected = rejected_of([members[place] for place in new], [found[place] for place in new])
            await batches.quarantine_entries(connection, rejected)
            because = because_of(members, found, stored.at_odds) if stored.at_odds else {}
            scope = outbox.Scope(shared.namespace, shared.channel, now, self._rules.policy, because)
            await outbox.owe(connection, scope, stored.at_odds)
        return [_ingested(one, stored.new.get(place)) for place, one in enumerate(told)]

    async def _take_opt_ins(self, members: Sequence[Member]) -> list[Ingested | None]:
        """With what these need on the way: somebody may have to see one before it permits anything."""
        async with self._database.begin() as connection:
            now = self._clock()
            new = await batches.claim_digests(connection, [member.batch for member in members])
            taken = [member for member in members if member.batch.id in new]
            if not taken:
                return [None] * len(members)
            outcomes = await apply(connection, taken, self._rules, now)
            await batches.archive(connection, list(zip((m.batch for m in taken), outcomes, strict=True)), now)
        ingested = {m.batch.id: Ingested(str(m.batch.id), o) for m, o in zip(taken, outcomes, strict=True)}
        return [ingested.get(member.batch.id) for member in members]


def _is_small(batch: Received, callback: webhook.Callback) -> bool:
    return len(callback.values) <= SMALL and len(batch.body) <= SMALL_BODY


def _ingested(arrival: Arrival, facts: int | None) -> Ingested | None:
    """The answer to a callback of which so many facts were new; None if it is a redelivery."""
    if facts is None:
        return None
    outcome = Outcome(facts, arrival.understood - facts, len(arrival.errors), arrival.errors)
    return Ingested(str(arrival.batch.id), outcome)
