"""Owns how a verified callback becomes durable and true: recorded and applied in one transaction, or recorded alone.

Each callback by itself here; `flows.intake` takes them in company. Nothing that is signed and well-formed is lost to a
fault of ours: if applying fails, the batch is recorded alone and the sweeper applies it later, with the time of receipt
that was stored with it.
"""

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from service.domain.addresses import CHANNELS, Channel, ImpossibleAddress, normalise
from service.domain.corrections import Marks
from service.domain.facts import SOURCES, occurred_at
from service.domain.suppression import DAY, Policy
from service.errors import StorageBusy, StorageOutdated, StorageUnavailable
from service.kahuna import webhook, wire
from service.lists import chunks
from service.settings import Namespace, Settings
from service.spans import Tracer, traceparent_in
from service.store import batches, bulk, outbox, reviews, suppressions
from service.store.batches import Outcome, Received, Rejected
from service.store.database import Connection, Database, aside, until_settled
from service.store.faults import Overtaken
from service.store.outbox import Because
from service.store.reviews import Held
from service.store.suppressions import Entry, Provenance
from service.telemetry import REQUEST_ID, FilteringBoundLogger, Metrics, logger, told

ENTRIES: Final = ("accepted", "duplicates", "rejected")
"""What may come of the entries of a callback."""

SMALL_BODY: Final = 16 * 1024
"""Bytes up to which an archived body is read on the spot."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What decides how entries are taken: the numbers of the verdict, and the namespaces' reviews and words."""

    policy: Policy
    namespaces: dict[str, Namespace]
    words: dict[str, Mapping[str, str]]


def rules_of(settings: Settings) -> Rules:
    """The rules that these settings make. SettingsError for a word that cannot mean what they say."""
    namespaces = {namespace.name: namespace for namespace in settings.namespaces}
    words = {name: wire.words_with(namespace.extra_reasons) for name, namespace in namespaces.items()}
    return Rules(policy_of(settings), namespaces, words)


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
    """The answer to a callback. `outcome` is None while the batch is only recorded or spooled."""

    batch_id: str
    outcome: Outcome | None
    spooled: bool = False

    @property
    def state(self) -> str:
        """How far the batch has come, in the contract's word."""
        return "spooled" if self.spooled else "recorded" if self.outcome is None else "applied"


Said: TypeAlias = webhook.Callback | chunks.Chunk
"""What a batch says, by its origin."""


class Member(NamedTuple):
    """One callback, or chunk of an import, among those that share a transaction: its batch, and what it says."""

    batch: Received
    callback: Said


class Sorted(NamedTuple):
    """The entries of a batch by what becomes of them."""

    facts: list[Entry]
    opt_ins: list[Entry]
    untimed: list[Held]
    rejected: dict[int, str]


class Taken(NamedTuple):
    """What came of the entries of a batch that were understood: how many were new, facts and opt-ins that wait, and the
    indexes of the opt-ins that became no facts."""

    new: int
    held: tuple[int, ...]


async def ingest(
    database: Database,
    batch: Received,
    callback: Said,
    rules: Rules,
    clock: Callable[[], datetime],
    metrics: Metrics | None = None,
) -> Ingested:
    """Makes a verified batch durable by itself, and applied unless that fails for a reason of our own."""
    member = Member(batch, callback)
    try:
        ingested = await until_settled(
            database, lambda connection: _record_and_apply(connection, member, rules, clock())
        )
    except Exception as error:  # whatever a bug of ours may raise, the callback must not be lost to it
        if is_away(error):
            raise
        logger().error("batch.apply_failed", batch_id=str(batch.id), exc_info=error)
        ingested = await _record_alone(database, member, clock)
    if metrics is not None:
        await _count(metrics, member, ingested.outcome)
    log(batch, ingested)
    return ingested


async def apply_recorded(
    database: Database,
    rules: Rules,
    clock: Callable[[], datetime],
    tracer: Tracer | None = None,
    metrics: Metrics | None = None,
) -> bool:
    """Applies one batch that was recorded alone, if one is due; tells whether there was one."""
    batch: Received | None = None
    tracer = tracer or Tracer()
    began = tracer.clock()

    async def transaction(connection: Connection) -> tuple[Member, Outcome] | None:
        nonlocal batch
        batch = await batches.next_unapplied(connection, clock())
        if batch is None:
            return None
        member = await read_again(batch, rules)
        [outcome] = await apply(connection, [member], rules, clock())
        await batches.finish(connection, batch.id, outcome, clock())
        return member, outcome

    try:
        applied = await until_settled(database, transaction)
    except Exception as error:  # one bad batch must not keep the others waiting
        if batch is None or is_away(error):
            raise
        logger().error("batch.apply_failed", batch_id=str(batch.id), exc_info=error)
        async with database.begin() as connection:
            await batches.postpone(connection, batch.id, told(error), clock())
        return True
    if batch is None or applied is None:
        return False
    member, outcome = applied
    tracer.note("batch.apply", traceparent_in(batch.headers), began, {"kahuna_sync.batch_id": str(batch.id)})
    if metrics is not None:
        await _count(metrics, member, outcome)
    log(batch, Ingested(str(batch.id), outcome))
    return True


def facts_of(told: Iterable[tuple[Said, Outcome | None]]) -> dict[tuple[str, str], int]:
    """How many facts applied batches told, by reason and outcome. How many were new is known of each batch as a
    whole."""
    counts: dict[tuple[str, str], int] = {}
    for said, outcome in told:
        if outcome is None:
            continue
        for key, count in shares_of(reasons_in(said, outcome), outcome.accepted, outcome.duplicates).items():
            counts[key] = counts.get(key, 0) + count
    return counts


def shares_of(reasons: Mapping[str, int], new: int, known: int) -> dict[tuple[str, str], int]:
    """Facts of these reasons, of which so many were new and so many known, by reason and outcome: `mixed` where it
    cannot be told which."""
    outcomes = (("mixed", new + known),) if new and known and len(reasons) > 1 else (("new", new), ("known", known))
    return {(reason, word): min(share, count) for word, share in outcomes if share for reason, count in reasons.items()}


def count_facts(metrics: Metrics, channel: Channel, counts: Mapping[tuple[str, str], int]) -> None:
    """Adds them to the figures, once they are committed; on the event loop alone, as all figures are."""
    for (reason, word), count in counts.items():
        metrics.facts.add(channel, reason, word, count=count)


def count_entries(metrics: Metrics, channel: Channel, outcomes: Collection[Outcome]) -> None:
    """Adds what came of the entries of callbacks to the figures."""
    for word in ENTRIES:
        count = sum([getattr(outcome, word) for outcome in outcomes])
        if count:
            metrics.entries.add(channel, word, count=count)


def count_from_zero(metrics: Metrics) -> None:
    """Has those figures shown from the start, so that the first of each is seen to come, and none as well."""
    for channel in CHANNELS:
        for word in ENTRIES:
            metrics.entries.add(channel, word, count=0)


async def _count(metrics: Metrics, member: Member, outcome: Outcome | None) -> None:
    if outcome is not None:
        channel = member.batch.channel
        counts = await aside(len(member.callback.values), facts_of, [(member.callback, outcome)])
        count_facts(metrics, channel, counts)
        count_entries(metrics, channel, [outcome])


def reasons_in(said: Said, outcome: Outcome) -> dict[str, int]:
    """How many entries there are of each reason, but for those that were rejected."""
    rejected = {error["index"] for error in outcome.errors} if outcome.rejected else ()
    reasons: dict[str, int] = {}
    for entry in said.entries:
        if entry.reason is not None and entry.index not in rejected:
            reasons[entry.reason] = reasons.get(entry.reason, 0) + 1
    return reasons


async def _record_and_apply(connection: Connection, member: Member, rules: Rules, now: datetime) -> Ingested:
    batch = member.batch
    known = await batches.claim_digest(connection, batch)
    if known is None:
        [outcome] = await apply(connection, [member], rules, now)
        await batches.archive(connection, [(batch, outcome)], now)
        return Ingested(str(batch.id), outcome)
    if known.gone:
        return Ingested(str(known.id), await _as_long_known(member, rules))
    if known.outcome is not None:
        return Ingested(str(known.id), _as_redelivery(known.outcome))
    waiting = await batches.lock_unapplied(connection, known.id)
    if waiting is None:  # applied by the sweeper since we looked
        return await _record_and_apply(connection, member, rules, now)
    # What follows from it was caused by the request that brought it first, if that is known.
    first = waiting._replace(request_id=waiting.brought_by or batch.brought_by)
    [outcome] = await apply(connection, [member._replace(batch=first)], rules, now)
    await batches.finish(connection, known.id, outcome, now)
    return Ingested(str(known.id), outcome)


async def _record_alone(database: Database, member: Member, clock: Callable[[], datetime]) -> Ingested:
    """The fallback: the body is durable, the rest is for the sweeper. Failing at this too means 503."""
    batch = member.batch
    try:
        async with database.begin() as connection:
            known = await batches.claim_digest(connection, batch)
            if known is None:
                await batches.archive(connection, [(batch, None)], clock())
                return Ingested(str(batch.id), None)
            if known.gone:
                return Ingested(str(known.id), Outcome(0, len(member.callback.values), 0, []))
            return Ingested(str(known.id), _as_redelivery(known.outcome) if known.outcome else None)
    except StorageUnavailable:
        raise
    except Exception as error:
        logger().error("batch.record_failed", batch_id=str(batch.id), exc_info=error)
        raise StorageUnavailable("The callback could not be stored; deliver it again.") from error


async def read_again(batch: Received, rules: Rules) -> Member:
    """A stored batch and what it says by the rules of today. A large body does not hold up anybody else."""
    if len(batch.body) <= SMALL_BODY:
        return read(batch, rules.words[batch.namespace])
    return await asyncio.to_thread(read, batch, rules.words[batch.namespace])


def read(batch: Received, words: Mapping[str, str]) -> Member:
    """A stored batch and what it says, by its origin: a new one needs a reader here. ValueError if it cannot be
    read."""
    if batch.origin == "import":
        return Member(batch, chunks.read(batch.body, batch.channel))
    return Member(batch, webhook.read(batch.body, batch.channel, words))


async def apply(connection: Connection, members: Sequence[Member], rules: Rules, now: datetime) -> list[Outcome]:
    """Facts, causes, corrections, feed, quarantine and reviews of these batches, all of one namespace, channel and
    origin, in the caller's transaction."""
    namespace = rules.namespaces[members[0].batch.namespace]
    found = [await sort_apart(member, place, namespace) for place, member in enumerate(members)]
    taken = await take(connection, members, found, rules, now)
    many = sum(len(member.callback.values) for member in members)
    await batches.quarantine_entries(connection, await aside(many, rejected_of, members, found))
    outcomes = zip(members, found, taken, strict=True)
    return await aside(many, lambda: [_outcome(member, one, what) for member, one, what in outcomes])


async def take(
    connection: Connection, members: Sequence[Member], found: Sequence[Sorted], rules: Rules, now: datetime
) -> list[Taken]:
    """What follows from the entries that were understood, each batch's at its place."""
    shared = members[0].batch
    namespace = rules.namespaces[shared.namespace]
    many = sum(len(member.callback.values) for member in members)
    locked = namespace.opt_in_review == "local" and any(one.opt_ins for one in found)
    stops = await _stops_of_ours(connection, shared, found, lock=True) if locked else {}
    held = await _held(connection, shared.channel, found, namespace, stops)
    rows = await aside(many, _rows, found, held)
    ids = tuple(member.batch.id for member in members)
    source = SOURCES[shared.origin]
    provenance = Provenance(shared.namespace, shared.channel, source, shared.origin, now, ids)
    merged = await bulk.apply(connection, rows, provenance, rules.policy, locked=locked)
    if locked and _stopped_at(await _stops_of_ours(connection, shared, found)) != _stopped_at(stops):
        raise Overtaken
    waits = [one.untimed + [review for key, review in held.items() if key[0] == n] for n, one in enumerate(found)]
    added = await reviews.hold(connection, list(zip((member.batch for member in members), waits, strict=True)))
    taken = [
        Taken(merged.new.get(batch_id, 0) + added.get(batch_id, 0), tuple(sorted(one.entry_index for one in mine)))
        for batch_id, mine in zip(ids, waits, strict=True)
    ]
    because = await aside(many, because_of, members, found, merged.at_odds) if merged.at_odds else {}
    scope = outbox.Scope(shared.namespace, shared.channel, now, rules.policy, because)
    await outbox.owe(connection, scope, merged.at_odds)
    return taken


def because_of(members: Sequence[Member], found: Sequence[Sorted], at_odds: Set[str]) -> dict[str, Because]:
    """What is owed about these addresses comes from which request."""
    because: dict[str, Because] = {}
    for member, one in zip(members, found, strict=True):
        mine = Because(member.batch.brought_by, traceparent_in(member.batch.headers))
        because |= {e.address: mine for e in (*one.facts, *one.opt_ins) if e.address in at_odds}
    return because


def _rows(found: Sequence[Sorted], held: Collection[tuple[int, int | None]]) -> list[Entry]:
    """What is stored of these batches: facts, and opt-ins that wait."""
    rows = [entry for one in found for entry in one.facts]
    return rows + [e._replace(awaits=True) if _place(e) in held else e for one in found for e in one.opt_ins]


def rejected_of(members: Sequence[Member], found: Sequence[Sorted]) -> list[tuple[Received, Rejected]]:
    """What goes to quarantine, with the bytes of each entry."""
    parts = ((member.batch, one.rejected) for member, one in zip(members, found, strict=True))
    return [(batch, rejected) for batch, errors in parts for rejected in _with_bytes(batch, errors)]


def errors_of(found: Sorted) -> list[dict[str, Any]]:
    """What was wrong with the entries of a batch, as its outcome tells it."""
    if not found.rejected:
        return []
    return [{"index": index, "error": error} for index, error in sorted(found.rejected.items())]


def _outcome(member: Member, found: Sorted, taken: Taken) -> Outcome:
    rejected, errors = len(found.rejected), errors_of(found)
    known = len(member.callback.entries) - taken.new - rejected
    return Outcome(taken.new, known, rejected, errors, taken.held)


async def sort_apart(member: Member, place: int, namespace: Namespace) -> Sorted:
    """The entries of a batch by what becomes of them. Sorting many must not hold up the other callbacks."""
    return await aside(len(member.callback.values), sort, member, place, namespace.untimed_opt_in)


def sort(member: Member, place: int, untimed_opt_in: Literal["hold", "receipt"]) -> Sorted:
    """The entries of a batch by what becomes of them, as far as the batch alone can tell. A replay sorts alike."""
    channel = member.batch.channel
    received_at = int(member.batch.received_at.timestamp())
    # A number goes out in digits unless Kahuna itself has written it otherwise.
    goes_out_plain = channel == "sms" and SOURCES.get(member.batch.origin) == "local"
    found = Sorted([], [], [], {})
    for entry in member.callback.entries:
        if entry.fault is not None or entry.address is None or entry.reason is None or entry.action is None:
            found.rejected[entry.index] = entry.fault or "missing-address"
            continue
        try:
            address = normalise(channel, entry.address)
        except ImpossibleAddress as error:
            found.rejected[entry.index] = error.slug
            continue
        at = occurred_at(entry.action, entry.timestamp, received_at)
        received = address if goes_out_plain else entry.address.strip()
        if at is None and untimed_opt_in == "hold":
            found.untimed.append(Held(entry.index, address, received, entry.reason, None, "untimed"))
            continue
        at = received_at if at is None else at
        row = Entry(address, received, entry.reason, entry.action, at, entry.index, batch=place)
        (found.facts if entry.action == "suppress" else found.opt_ins).append(row)
    return found


async def _stops_of_ours(
    connection: Connection, shared: Received, found: Sequence[Sorted], *, lock: bool = False
) -> dict[str, Marks]:
    """The numbers that opt in and that we have stopped. Locked, a stop that is being written right now is waited for.
    One that is the first of its number has no row to wait for: so they are asked for once more when all is stored."""
    many = sum(len(one.facts) + len(one.opt_ins) for one in found)
    addresses = await aside(many, lambda: {e.address for one in found for e in one.opt_ins})
    if lock:
        # Everyone else of the group is locked with these: taken later, they would be out of the order of all others.
        everyone = await aside(many, lambda: addresses.union(e.address for one in found for e in one.facts))
        await suppressions.lock(connection, shared.namespace, shared.channel, everyone)
    return await suppressions.local_stops(connection, shared.namespace, shared.channel, addresses)


def _stopped_at(stops: Mapping[str, Marks]) -> dict[str, int | None]:
    return {address: marks.stop_at for address, marks in stops.items()}


async def _held(
    connection: Connection,
    channel: Channel,
    found: Sequence[Sorted],
    namespace: Namespace,
    stops: Mapping[str, Marks],
) -> dict[tuple[int, int | None], Held]:
    """Those opt-ins that a person must see first, or has seen and not approved: by batch and index."""
    many = sum(len(one.opt_ins) for one in found)
    if not many:
        return {}
    if namespace.opt_in_review == "all":
        return await aside(many, lambda: {_place(e): _as_held(e, "all") for one in found for e in one.opt_ins})
    addresses = await aside(many, lambda: {e.address for one in found for e in one.opt_ins})
    seen = await reviews.not_approved(connection, namespace.name, channel, addresses)
    return await aside(many, _late, found, stops, seen)


def _late(
    found: Sequence[Sorted], stops: Mapping[str, Marks], seen: Set[tuple[str, int]]
) -> dict[tuple[int, int | None], Held]:
    """The opt-ins after a stop of ours, and those that a person has not approved."""
    late = {}
    for entry in (entry for one in found for entry in one.opt_ins):
        stopped_at, cleared_at = stops.get(entry.address, Marks())
        stands = stopped_at is not None and (cleared_at is None or cleared_at <= stopped_at)
        if (stands and entry.occurred_at > (stopped_at or 0)) or (entry.address, entry.occurred_at) in seen:
            late[_place(entry)] = _as_held(entry, "local-stop")
    return late


def _place(entry: Entry) -> tuple[int, int | None]:
    return entry.batch, entry.entry_index


def _as_held(entry: Entry, why: str) -> Held:
    return Held(entry.entry_index or 0, entry.address, entry.received, entry.reason, entry.occurred_at, why)


def _with_bytes(batch: Received, rejected: dict[int, str]) -> list[Rejected]:
    if not rejected:
        return []
    raw = webhook.raw_entries(batch.body, frozenset(rejected))
    return [Rejected(index, error, raw[index]) for index, error in rejected.items()]


async def _as_long_known(member: Member, rules: Rules) -> Outcome:
    """What a batch says again whose month of the archive is gone: as far as its body tells."""
    found = await sort_apart(member, 0, rules.namespaces[member.batch.namespace])
    return _outcome(member, found, Taken(0, ()))


def _as_redelivery(outcome: Outcome) -> Outcome:
    """What a batch that is known says again: nothing new, and the same entries rejected."""
    return outcome._replace(accepted=0, duplicates=outcome.accepted + outcome.duplicates)


def is_away(error: Exception) -> bool:
    """No database, no archive. One that is merely busy, or lacks a table of the list, can still record."""
    return isinstance(error, StorageUnavailable) and not isinstance(error, StorageBusy | StorageOutdated)


def log(batch: Received, ingested: Ingested, speaker: FilteringBoundLogger | None = None) -> None:
    """The one line about a batch that came in. A `speaker` at hand costs less than a new one."""
    speaker = speaker or logger()
    said: dict[str, str | None] = {
        "batch_id": ingested.batch_id,
        "namespace": batch.namespace,
        "channel": batch.channel,
    }
    if REQUEST_ID.get() is None:  # nobody waits for it now; it was answered long ago
        said["request_id"] = batch.brought_by
    outcome = ingested.outcome
    if outcome is None:
        speaker.info("batch.recorded", **said)
    else:
        counts = {"accepted": outcome.accepted, "duplicates": outcome.duplicates, "rejected": outcome.rejected}
        speaker.info("batch.applied", **said, **counts)
