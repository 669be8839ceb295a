"""Owns replay: archived batches applied again, by the rules of today and with the time at which they were received.

What is known is a duplicate. What was rejected and is understood by now becomes a fact and leaves the quarantine; a
batch that was only recorded is applied. Nothing that was taken is ever taken back, a discarded entry stays discarded,
and an opt-in that waits or was decided stays as it is: a decision was a person's, so no replay makes it anew.
"""

import asyncio
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from datetime import datetime
from types import MappingProxyType
from typing import Any, Final, NamedTuple, TypeAlias

from service.domain.addresses import Channel
from service.errors import NotFound, StorageBusy, StorageUnavailable
from service.flows import ingest
from service.flows.ingest import Member, Rules, Sorted, Taken
from service.store import access, archive, batches, quarantine, retractions, reviews, suppressions, withdrawals
from service.store.access import Deed
from service.store.archive import Archived, Asked, Key
from service.store.batches import Outcome, Received
from service.store.database import Connection, Database, out_of_turn, until_settled
from service.store.reviews import Held
from service.store.suppressions import Entry
from service.telemetry import Metrics, logger

PAGE: Final = 1000
"""Batches that are looked up at once."""

SLICE: Final = 50
"""Batches that share one transaction at most."""

SLICE_BYTES: Final = 256 * 1024
"""Bytes of bodies that share one transaction; a larger one is taken up alone."""

PATIENCE: Final = 6
"""How often a slice is tried again while others hold what it needs, after pauses that double from `FIRST_PAUSE`."""

FIRST_PAUSE: Final = 0.05
"""Seconds."""

_NOTHING: Final = Outcome(0, 0, 0, [])


class Replayed(NamedTuple):
    """What a replay did to one batch, or would do. `outcome` is what the batch says of itself afterwards, `new` counts
    its new facts and opt-ins that wait, `requeued` its entries that are understood by now; `reasons` are those of what
    it tells for the first time."""

    batch_id: uuid.UUID
    namespace: str
    channel: Channel
    was: Outcome | None
    outcome: Outcome
    new: int
    requeued: int
    reasons: Mapping[str, int] = MappingProxyType({})

    @property
    def changed(self) -> bool:
        """Whether it did anything at all."""
        return self.new > 0 or self.outcome != self.was


class Step(NamedTuple):
    """How far a replay of many has come: the batches of one transaction, and those that could not be applied."""

    up_to: datetime
    replayed: list[Replayed]
    failed: list[uuid.UUID]

    @property
    def counts(self) -> Counter[str]:
        """The figures of a step, to be added up."""
        return Counter(
            batches=len(self.replayed),
            changed=sum(one.changed for one in self.replayed),
            recorded=sum(one.was is None for one in self.replayed),
            new=sum(one.new for one in self.replayed),
            requeued=sum(one.requeued for one in self.replayed),
            rejected=sum(one.outcome.rejected for one in self.replayed),
            failed=len(self.failed),
        )


class _Case(NamedTuple):
    """One applied batch under replay: what it said of itself, its entries that are taken up, sorted anew, and those of
    its rejected ones that may come in."""

    archived: Archived
    was: Outcome
    found: Sorted
    open: frozenset[int]


class _Undone(Exception):
    """What a dry run found, on its way out of the transaction that it rolls back."""

    def __init__(self, replayed: list[Replayed]) -> None:
        super().__init__("rolled back, as was asked")
        self.replayed = replayed


class _Course(NamedTuple):
    """What every transaction of a replay shares."""

    database: Database
    rules: Rules
    clock: Callable[[], datetime]
    actor: str
    dry_run: bool
    metrics: Metrics | None = None


async def replay_one(
    database: Database,
    batch_id: uuid.UUID,
    rules: Rules,
    clock: Callable[[], datetime],
    actor: str,
    allowed_namespace: str | None,
    *,
    dry_run: bool = False,
    metrics: Metrics | None = None,
) -> Replayed:
    """Replays one batch. NotFound if there is none, or in another namespace than the allowed one (None allows all)."""

    async def work(connection: Connection, now: datetime) -> list[Replayed]:
        found = await archive.locked(connection, [batch_id])
        if not found or not allows(found[0], rules, allowed_namespace):
            raise NotFound("There is no such batch; list them with GET /v1/admin/batches.")
        done = await _apply_again(connection, found, rules, now, actor)
        await _write_down(connection, done, actor, now)
        return done

    [replayed] = await _once(_Course(database, rules, clock, actor, dry_run, metrics), work)
    return replayed


async def replay_many(
    database: Database, asked: Asked, rules: Rules, clock: Callable[[], datetime], actor: str, *, dry_run: bool = False
) -> AsyncIterator[Step]:
    """Replays batches in the order of their receipt, some at a time, and tells after each time how far it is.

    Whoever stops listening ends it; going on from the last `up_to`, or from the start, does nothing twice. A batch
    that cannot be applied is told and passed over. StorageBusy if others hold what is needed for too long.
    """
    course = _Course(database, rules, clock, actor, dry_run)
    asked = asked._replace(until=asked.until or clock())
    if not dry_run:
        await _announce(course, asked)
    after: uuid.UUID | None = None
    while True:
        async with database.read() as connection:
            keys = await archive.keys_after(connection, asked, after, PAGE)
        if not keys:
            return
        for some in _slices(keys):
            yield await _slice(course, some)
        after = keys[-1].id


async def again(
    connection: Connection,
    archived: Sequence[Archived],
    rules: Rules,
    now: datetime,
    actor: str,
    only: frozenset[int] | None = None,
) -> list[Replayed]:
    """Applies batches of one namespace, channel and origin again, in the caller's transaction, their rows locked; of a
    single one perhaps these rejected entries alone. What they say of themselves, and the quarantine, follow."""
    members = [await ingest.read_again(one.batch, rules) for one in archived]
    namespace = rules.namespaces[members[0].batch.namespace]
    given_up = await quarantine.discarded(connection, [one.batch.id for one in archived])
    cases = []
    for place, member in enumerate(members):
        rejected = _rejected(archived[place])
        open_ = frozenset(
            i for i in rejected if (i in only if only is not None else (member.batch.id, i) not in given_up)
        )
        found = await ingest.sort_apart(member, place, namespace)
        cases.append(_case(archived[place], found, rejected, open_, with_taken=only is None))
    cases = await _without_withdrawn(connection, await _without_seen(connection, cases))
    taken = await ingest.take(connection, members, [case.found for case in cases], rules, now)
    done = [_replayed(case, what) for case, what in zip(cases, taken, strict=True)]
    for case, replayed in zip(cases, done, strict=True):
        await _note(connection, case, replayed, actor, now)
    return done


def count(metrics: Metrics, replayed: Replayed) -> None:
    """Adds what a batch tells for the first time to the figures: all of it if it was only recorded, else what is
    understood of it by now."""
    was, outcome = replayed.was or _NOTHING, replayed.outcome
    new, known = outcome.accepted - was.accepted, outcome.duplicates - was.duplicates
    ingest.count_facts(metrics, replayed.channel, ingest.shares_of(replayed.reasons, new, known))
    if replayed.was is None:
        ingest.count_entries(metrics, replayed.channel, [outcome])


def allows(archived: Archived, rules: Rules, allowed_namespace: str | None) -> bool:
    """Whether somebody who may speak of this namespace (None: of all) may have this batch applied."""
    namespace = archived.batch.namespace
    return namespace in rules.namespaces and allowed_namespace in (None, namespace)


async def _slice(course: _Course, keys: Sequence[Key]) -> Step:
    """One transaction. If it fails for a reason of our own, each batch gets its own."""
    ids = [key.id for key in keys]

    async def work(connection: Connection, now: datetime) -> list[Replayed]:
        done = await _apply_again(connection, await archive.locked(connection, ids), course.rules, now, course.actor)
        await _write_down(connection, [one for one in done if one.changed], course.actor, now)
        return done

    try:
        return Step(_moment_of(keys[-1]), await _patiently(course, work), [])
    except StorageUnavailable:
        raise
    except Exception as error:  # noqa: BLE001 (one bad batch must not keep the others from it)
        if len(keys) == 1:
            logger().error("batch.replay_failed", batch_id=str(ids[0]), exc_info=error)
            return Step(_moment_of(keys[-1]), [], ids)
        steps = [await _slice(course, [key]) for key in keys]
        replayed = [one for step in steps for one in step.replayed]
        return Step(_moment_of(keys[-1]), replayed, [one for step in steps for one in step.failed])


_Work: TypeAlias = Callable[[Connection, datetime], Awaitable[list[Replayed]]]


async def _patiently(course: _Course, work: _Work) -> list[Replayed]:
    for attempt in range(PATIENCE):
        try:
            return await _once(course, work)
        except StorageBusy:
            await asyncio.sleep(FIRST_PAUSE * 2.0**attempt)
    return await _once(course, work)


async def _once(course: _Course, work: _Work) -> list[Replayed]:
    """Runs a transaction to its end, or in a dry run to just before it."""

    async def transaction(connection: Connection) -> list[Replayed]:
        replayed = await work(connection, course.clock())
        if course.dry_run:
            raise _Undone(replayed)
        return replayed

    try:
        replayed = await until_settled(course.database, transaction)
    except _Undone as undone:
        return undone.replayed
    for one in replayed:
        if course.metrics is not None:
            count(course.metrics, one)
        if one.changed:
            counts = {"new": one.new, "requeued": one.requeued, "rejected": one.outcome.rejected}
            ids = {"batch_id": str(one.batch_id), "namespace": one.namespace, "channel": one.channel}
            logger().info("batch.replayed", **ids, **counts)
    return replayed


async def _apply_again(
    connection: Connection, archived: Sequence[Archived], rules: Rules, now: datetime, actor: str
) -> list[Replayed]:
    """Each by what it is: one that was only recorded is applied as if it came now, by the time of its receipt."""
    recorded = [await ingest.read_again(one.batch, rules) for one in archived if one.outcome is None]
    done = [] if not recorded else await _apply_first(connection, recorded, rules, now)
    applied = [one for one in archived if one.outcome is not None]
    if not applied or not done:
        return done or await again(connection, applied, rules, now, actor)
    async with out_of_turn(connection):  # what was only recorded has locked, and stored, before
        return done + await again(connection, applied, rules, now, actor)


async def _apply_first(
    connection: Connection, members: Sequence[Member], rules: Rules, now: datetime
) -> list[Replayed]:
    outcomes = await ingest.apply(connection, members, rules, now)
    for member, outcome in zip(members, outcomes, strict=True):
        await batches.finish(connection, member.batch.id, outcome, now)
    return [
        Replayed(*_whose(m.batch), None, outcome, outcome.accepted, 0, ingest.reasons_in(m.callback, outcome))
        for m, outcome in zip(members, outcomes, strict=True)
    ]


def _rejected(archived: Archived) -> dict[int, str]:
    """The entries of a batch that are rejected as yet, each with its error."""
    return {} if archived.outcome is None else {one["index"]: one["error"] for one in archived.outcome.errors}


def _case(
    archived: Archived, found: Sorted, rejected: Mapping[int, str], open_: frozenset[int], *, with_taken: bool
) -> _Case:
    def is_wanted(index: int | None) -> bool:
        return index in open_ or (with_taken and index not in rejected)

    was = archived.outcome or _NOTHING
    return _Case(
        archived,
        was,
        Sorted(
            [entry for entry in found.facts if is_wanted(entry.entry_index) and entry.entry_index not in was.held],
            [entry for entry in found.opt_ins if is_wanted(entry.entry_index)],
            [held for held in found.untimed if is_wanted(held.entry_index)],
            {index: error for index, error in found.rejected.items() if index in open_},
        ),
        open_,
    )


async def _without_seen(connection: Connection, cases: Sequence[_Case]) -> list[_Case]:
    """Leaves out the opt-ins that were taken before and are facts, or wait, or were decided: whatever the reviews are
    set to by now, they stay what they are."""
    batch = cases[0].archived.batch
    addresses = {entry.address for case in cases for entry in case.found.opt_ins}
    addresses |= {held.address for case in cases for held in case.found.untimed}
    if not addresses:
        return list(cases)
    seen = await reviews.seen(connection, batch.namespace, batch.channel, addresses)
    seen |= await suppressions.opt_ins_told(connection, batch.namespace, batch.channel, addresses)

    def is_new(case: _Case, one: Entry | Held) -> bool:
        receipt = int(case.archived.batch.received_at.timestamp())
        at = receipt if one.occurred_at is None else one.occurred_at
        # One without a time waits as such, or took the time of its receipt; the setting may have changed since.
        known = (one.address, at) in seen or (at == receipt and (one.address, None) in seen)
        return one.entry_index in case.open or not known

    return [
        case._replace(
            found=case.found._replace(
                opt_ins=[entry for entry in case.found.opt_ins if is_new(case, entry)],
                untimed=[held for held in case.found.untimed if is_new(case, held)],
            )
        )
        for case in cases
    ]


async def _without_withdrawn(connection: Connection, cases: Sequence[_Case]) -> list[_Case]:
    """Leaves out what was taken back: no replay brings it again. Of a batch that was taken back whole, nothing counts,
    also what is understood by now."""
    ids = [case.archived.batch.id for case in cases]
    out = await retractions.counted_out(connection, ids)
    withdrawn = {(one, *fact[2:6]) for one, fact in await withdrawals.of_evidence(connection, ids)}
    if not out and not withdrawn:
        return list(cases)
    nothing = Sorted([], [], [], {})

    def counts(case: _Case, one: Entry) -> bool:
        key = (case.archived.batch.id, one.address, one.reason, one.action, one.occurred_at)
        return key not in withdrawn

    return [
        case._replace(found=nothing, open=frozenset())
        if case.archived.batch.id in out
        else case._replace(
            found=case.found._replace(
                facts=[one for one in case.found.facts if counts(case, one)],
                opt_ins=[one for one in case.found.opt_ins if counts(case, one)],
            )
        )
        for case in cases
    ]


def _replayed(case: _Case, taken: Taken) -> Replayed:
    """The entries stay as many: those that are understood by now are no longer rejected, but new or known. What the
    batch held once is no fact of its, whatever comes later."""
    batch, was = case.archived.batch, case.was
    errors = _rejected(case.archived) | case.found.rejected
    understood = case.open - case.found.rejected.keys()
    left = [{"index": index, "error": error} for index, error in sorted(errors.items()) if index not in understood]
    # Facts may be new for other reasons, too: those of an entry that was counted as accepted once are not, again.
    accepted = was.accepted + min(taken.new, len(understood))
    total = was.accepted + was.duplicates + was.rejected
    held = tuple(sorted({*was.held, *taken.held}))
    outcome = Outcome(accepted, total - accepted - len(left), len(left), left, held)
    entries: tuple[Entry | Held, ...] = (*case.found.facts, *case.found.opt_ins, *case.found.untimed)
    reasons = Counter(one.reason for one in entries if one.entry_index in understood)
    return Replayed(*_whose(batch), was, outcome, taken.new, len(understood), reasons)


def _whose(batch: Received) -> tuple[uuid.UUID, str, Channel]:
    return batch.id, batch.namespace, batch.channel


async def _note(connection: Connection, case: _Case, replayed: Replayed, actor: str, now: datetime) -> None:
    if replayed.outcome == case.was:
        return
    before = _rejected(case.archived)
    errors = {index: error for index, error in case.found.rejected.items() if error != before[index]}
    understood = case.open - case.found.rejected.keys()
    await archive.restate(connection, replayed.batch_id, replayed.outcome, now)
    await quarantine.settle(connection, replayed.batch_id, understood, errors, actor, now)


async def _announce(course: _Course, asked: Asked) -> None:
    """That somebody replays, and what; the batches that it changes are written down one by one."""
    detail: dict[str, Any] = {"state": asked.state}
    detail |= {name: at and at.isoformat() for name, at in (("since", asked.since), ("until", asked.until))}
    async with course.database.begin() as connection:
        deed = Deed(course.actor, "archive.replayed", asked.namespace, asked.channel, detail=detail)
        await access.write_down(connection, deed, course.clock())


async def _write_down(connection: Connection, done: Sequence[Replayed], actor: str, now: datetime) -> None:
    for one in done:
        counts = {"new": one.new, "requeued": one.requeued, "rejected": one.outcome.rejected}
        detail = {"batch_id": str(one.batch_id), "was": "recorded" if one.was is None else "applied"} | counts
        deed = Deed(actor, "batch.replayed", one.namespace, one.channel, detail=detail)
        await access.write_down(connection, deed, now)


def _moment_of(key: Key) -> datetime:
    """From when to go on: within a millisecond, batches are not in the order of their receipt."""
    return key.received_at.replace(microsecond=key.received_at.microsecond // 1000 * 1000)


def _slices(keys: Sequence[Key]) -> Iterator[list[Key]]:
    """The batches in their order, those of one channel and origin that follow one another together, up to a size."""
    some: list[Key] = []
    for key in keys:
        full = len(some) == SLICE or sum(one.size for one in some) + key.size > SLICE_BYTES
        if some and (full or (some[0].channel, some[0].origin) != (key.channel, key.origin)):
            yield some
            some = []
        some.append(key)
    yield some
