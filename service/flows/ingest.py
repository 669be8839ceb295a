"""Owns how a verified callback becomes durable and true: recorded and applied in one transaction, or recorded alone.

Nothing that is signed and well-formed is lost to a fault of ours: if applying fails, the batch is recorded by itself
and the sweeper applies it later, with the time of receipt that was stored with it.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, NamedTuple

from service.domain.addresses import ImpossibleAddress, normalise
from service.domain.facts import occurred_at
from service.domain.suppression import DAY, Policy
from service.errors import StorageBusy, StorageOutdated, StorageUnavailable
from service.kahuna import webhook
from service.settings import Namespace, Settings
from service.store import batches, outbox, reviews, suppressions
from service.store.batches import Outcome, Received, Rejected
from service.store.database import Connection, Database, until_settled
from service.store.reviews import Held
from service.store.suppressions import Entry, Provenance
from service.telemetry import logger, told

MANY: Final = 1000
"""Entries up to which a batch is sorted on the spot."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What decides how entries are taken: the numbers of the verdict, and the namespaces' reviews."""

    policy: Policy
    namespaces: dict[str, Namespace]


def rules_of(settings: Settings) -> Rules:
    """The rules that these settings make."""
    return Rules(policy_of(settings), {namespace.name: namespace for namespace in settings.namespaces})


def policy_of(settings: Settings) -> Policy:
    """The numbers of the verdict, in its own units."""
    hard = settings.hard_bounce_lifetime_days
    return Policy(
        settings.soft_bounce_count,
        settings.soft_bounce_window_days * DAY,
        settings.soft_bounce_lifetime_days * DAY,
        None if hard is None else hard * DAY,
    )


class Ingested(NamedTuple):
    """The answer to a callback. `outcome` is None while the batch is only recorded."""

    batch_id: str
    outcome: Outcome | None


class _Sorted(NamedTuple):
    """The entries of a batch by what becomes of them."""

    facts: list[Entry]
    opt_ins: list[Entry]
    untimed: list[Held]
    rejected: dict[int, str]


async def ingest(
    database: Database, batch: Received, callback: webhook.Callback, rules: Rules, clock: Callable[[], datetime]
) -> Ingested:
    """Makes a verified batch durable, and applied unless that fails for a reason of our own."""
    try:
        ingested = await until_settled(
            database, lambda connection: _record_and_apply(connection, batch, callback, rules, clock())
        )
    except Exception as error:  # whatever a bug of ours may raise, the callback must not be lost to it
        if _is_away(error):
            raise
        logger().error("batch.apply_failed", batch_id=str(batch.id), exc_info=error)
        ingested = await _record_alone(database, batch, clock)
    _log(batch, ingested)
    return ingested


async def apply_recorded(database: Database, rules: Rules, clock: Callable[[], datetime]) -> bool:
    """Applies one batch that was recorded alone, if one is due; tells whether there was one."""
    batch: Received | None = None
    try:
        async with database.begin() as connection:
            batch = await batches.next_unapplied(connection, clock())
            if batch is None:
                return False
            outcome = await _apply(connection, batch, webhook.read(batch.body, batch.channel), rules, clock())
            await batches.finish(connection, batch.id, outcome, clock())
    except Exception as error:  # one bad batch must not keep the others waiting
        if batch is None or _is_away(error):
            raise
        logger().error("batch.apply_failed", batch_id=str(batch.id), exc_info=error)
        async with database.begin() as connection:
            await batches.postpone(connection, batch.id, told(error), clock())
        return True
    _log(batch, Ingested(str(batch.id), outcome))
    return True


async def _record_and_apply(
    connection: Connection, batch: Received, callback: webhook.Callback, rules: Rules, now: datetime
) -> Ingested:
    known = await batches.claim_digest(connection, batch)
    if known is None:
        outcome = await _apply(connection, batch, callback, rules, now)
        await batches.archive(connection, batch, outcome, now)
        return Ingested(str(batch.id), outcome)
    if known.outcome is not None:
        return Ingested(str(known.id), _as_redelivery(known.outcome))
    waiting = await batches.lock_unapplied(connection, known.id)
    if waiting is None:  # applied by the sweeper since we looked
        return await _record_and_apply(connection, batch, callback, rules, now)
    outcome = await _apply(connection, waiting, callback, rules, now)
    await batches.finish(connection, known.id, outcome, now)
    return Ingested(str(known.id), outcome)


async def _record_alone(database: Database, batch: Received, clock: Callable[[], datetime]) -> Ingested:
    """The fallback: the body is durable, the rest is for the sweeper. Failing at this too means 503."""
    try:
        async with database.begin() as connection:
            known = await batches.claim_digest(connection, batch)
            if known is None:
                await batches.archive(connection, batch, None, clock())
                return Ingested(str(batch.id), None)
            return Ingested(str(known.id), _as_redelivery(known.outcome) if known.outcome else None)
    except StorageUnavailable:
        raise
    except Exception as error:
        logger().error("batch.record_failed", batch_id=str(batch.id), exc_info=error)
        raise StorageUnavailable("The callback could not be stored; deliver it again.") from error


async def _apply(
    connection: Connection, batch: Received, callback: webhook.Callback, rules: Rules, now: datetime
) -> Outcome:
    """Facts, causes, corrections, feed, quarantine and reviews of one batch, in the caller's transaction."""
    namespace = rules.namespaces[batch.namespace]
    entries = await _sorted_apart(batch, callback, namespace)
    timed_held = await _held(connection, batch, entries.opt_ins, namespace)
    waiting = {held.entry_index for held in timed_held}
    rows = entries.facts + [e._replace(awaits=e.entry_index in waiting) for e in entries.opt_ins]
    provenance = Provenance(batch.namespace, batch.channel, "kahuna", batch.origin, now, batch_id=batch.id)
    new = await suppressions.apply(connection, rows, provenance, rules.policy)
    new += await reviews.hold(connection, batch, entries.untimed + timed_held)
    await batches.quarantine_entries(connection, batch, _with_bytes(batch.body, entries.rejected))
    scope = outbox.Scope(batch.namespace, batch.channel, now, rules.policy)
    await outbox.owe(connection, scope, {e.address for e in rows})
    rejected = len(entries.rejected)
    errors = [{"index": index, "error": error} for index, error in sorted(entries.rejected.items())]
    return Outcome(new, len(callback.entries) - new - rejected, rejected, errors)


async def _sorted_apart(batch: Received, callback: webhook.Callback, namespace: Namespace) -> _Sorted:
    """Sorting many entries must not hold up the other callbacks."""
    if len(callback.values) <= MANY:
        return _sorted(batch, callback.entries, namespace)
    return await asyncio.to_thread(lambda: _sorted(batch, callback.entries, namespace))


def _sorted(batch: Received, entries: Sequence[webhook.Entry], namespace: Namespace) -> _Sorted:
    received_at = int(batch.received_at.timestamp())
    found = _Sorted([], [], [], {})
    for entry in entries:
        if entry.fault is not None or entry.address is None or entry.reason is None or entry.action is None:
            found.rejected[entry.index] = entry.fault or "missing-address"
            continue
        try:
            address = normalise(batch.channel, entry.address)
        except ImpossibleAddress as error:
            found.rejected[entry.index] = error.slug
            continue
        at = occurred_at(entry.action, entry.timestamp, received_at)
        received = entry.address.strip()
        if at is None and namespace.untimed_opt_in == "hold":
            found.untimed.append(Held(entry.index, address, received, entry.reason, None, "untimed"))
            continue
        row = Entry(address, received, entry.reason, entry.action, received_at if at is None else at, entry.index)
        (found.facts if entry.action == "suppress" else found.opt_ins).append(row)
    return found


async def _held(connection: Connection, batch: Received, opt_ins: Sequence[Entry], namespace: Namespace) -> list[Held]:
    """Those opt-ins that a person must see first, or has seen and not approved."""
    if namespace.opt_in_review == "off" or not opt_ins:
        return []
    if namespace.opt_in_review == "all":
        return [_as_held(entry, "all") for entry in opt_ins]
    addresses = {entry.address for entry in opt_ins}
    # A stop of ours that is being written right now counts: it is waited for.
    await suppressions.make_homes(connection, batch.namespace, batch.channel, addresses)
    await suppressions.lock(connection, batch.namespace, batch.channel, addresses)
    stops = await suppressions.local_stops(connection, batch.namespace, batch.channel, addresses)
    seen = await reviews.not_approved(connection, batch.namespace, batch.channel, addresses)
    return [
        _as_held(entry, "local-stop")
        for entry in opt_ins
        if entry.occurred_at > stops.get(entry.address, entry.occurred_at) or (entry.address, entry.occurred_at) in seen
    ]


def _as_held(entry: Entry, why: str) -> Held:
    return Held(entry.entry_index or 0, entry.address, entry.received, entry.reason, entry.occurred_at, why)


def _with_bytes(body: bytes, rejected: dict[int, str]) -> list[Rejected]:
    if not rejected:
        return []
    raw = webhook.raw_entries(body, frozenset(rejected))
    return [Rejected(index, error, raw[index]) for index, error in rejected.items()]


def _as_redelivery(outcome: Outcome) -> Outcome:
    """What a batch that is known says again: nothing new, and the same entries rejected."""
    return outcome._replace(accepted=0, duplicates=outcome.accepted + outcome.duplicates)


def _is_away(error: Exception) -> bool:
    """No database, no archive. One that is merely busy, or lacks a table of the list, can still record."""
    return isinstance(error, StorageUnavailable) and not isinstance(error, StorageBusy | StorageOutdated)


def _log(batch: Received, ingested: Ingested) -> None:
    outcome = ingested.outcome
    counts = {} if outcome is None else {name: n for name, n in outcome._asdict().items() if name != "errors"}
    name = "batch.recorded" if outcome is None else "batch.applied"
    logger().info(name, batch_id=ingested.batch_id, namespace=batch.namespace, channel=batch.channel, **counts)
