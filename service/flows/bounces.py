"""Owns that a soft bounce counts once when its log record came before its callback: what the log made is taken back.

Of all other reasons a second fact changes nothing, since the latest decides; soft bounces are counted. Refuses to take
back what the archive no longer has (a month that was dropped has said it, and its word stands), and what a callback has
said in the very same second: that one came to a fact that was there, and is no less of an event for it.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Final

from service.domain.suppression import Policy
from service.flows.ingest import Rules
from service.flows.testimony import testimony_of
from service.store import access, archive, batches, log_evidence, logs, outbox, suppressions
from service.store.access import Deed
from service.store.archive import Archived
from service.store.batches import Outcome
from service.store.database import Connection, Database, until_settled
from service.store.logs import Bounce
from service.telemetry import logger

AT_ONCE: Final = 500
"""Soft bounces that one look takes up."""


REPEATING: Final = 200
"""Callbacks that are asked whether they have said the same. If there are more, what the log told stays: one bounce too
many stops somebody a little early, one too few lets him be mailed."""


async def settle(database: Database, namespace: str, rules: Rules, clock: Callable[[], datetime]) -> int:
    """Goes through the soft bounces that only a log had told of, and takes back those that a callback has told of
    since; returns how many. Ends the watch over those that no verdict counts any more."""
    policy = rules.policy
    oldest = int(clock().timestamp()) - policy.soft_bounce_window - policy.soft_bounce_lifetime
    async with database.begin() as connection:
        await logs.unwatch_before(connection, namespace, oldest)
    taken, after = 0, None
    while True:
        async with database.begin() as connection:
            page = await logs.watched(connection, namespace, after, AT_ONCE)
        if not page:
            return taken
        if any(told for _, told in page):
            taken += await _settle(database, namespace, after, rules, clock)
        after = page[-1][0]


async def _settle(
    database: Database, namespace: str, after: Bounce | None, rules: Rules, clock: Callable[[], datetime]
) -> int:
    async def transaction(connection: Connection) -> int:
        told = [one for one, told in await logs.watched(connection, namespace, after, AT_ONCE) if told]
        archived = await archive.locked(connection, {one.batch_id for one in told})
        there = {one.batch.id for one in archived}
        # Locked first, and asked again only then: the callback's word may have been taken back meanwhile.
        await suppressions.lock(connection, namespace, "email", {one.address for one in told})
        still = {one for one, is_told in await logs.watched(connection, namespace, after, AT_ONCE) if is_told}
        told = [one for one in told if one in still]
        said = await _said_by_callbacks(connection, namespace, archived, rules)
        doubled = [one for one in told if one.batch_id in there and said is not None and _key(one) not in said]
        taken = [] if not doubled else await _take_back(connection, namespace, doubled, archived, rules.policy, clock())
        await logs.unwatch(connection, namespace, told)
        return len(taken)

    taken = await until_settled(database, transaction)
    if taken:
        logger().info("bounces.settled", namespace=namespace, taken_back=taken)
    return taken


def _key(bounce: Bounce) -> tuple[str, int]:
    return bounce.address, bounce.occurred_at


async def _said_by_callbacks(
    connection: Connection, namespace: str, archived: Sequence[Archived], rules: Rules
) -> set[tuple[str, int]] | None:
    """The soft bounces that callbacks have told of since these log records came in; None if too many would have to be
    asked."""
    if not archived:
        return set()
    since = min(one.batch.received_at for one in archived)
    ids = await archive.repeating(connection, namespace, "email", since, REPEATING + 1)
    if len(ids) > REPEATING:
        return None
    said = set()
    for batch_id in ids:
        for applied in await batches.applied_among(connection, [batch_id]):
            testimony = await asyncio.to_thread(testimony_of, applied, rules)
            said |= {(fact.address, fact.occurred_at) for fact in testimony.facts if fact.reason == "soft_bounce"}
    return said


async def _take_back(
    connection: Connection,
    namespace: str,
    doubled: Sequence[Bounce],
    archived: Sequence[Archived],
    policy: Policy,
    now: datetime,
) -> list[Bounce]:
    addresses = {one.address for one in doubled}
    taken = await logs.take_back(connection, namespace, doubled, policy, now)
    # Evidence from now on: should that callback be taken back, the record stands again.
    noted = [log_evidence.Record(one.address, "soft_bounce", one.occurred_at) for one in taken]
    await log_evidence.note(connection, namespace, noted, now)
    by_batch: defaultdict[object, list[Bounce]] = defaultdict(list)
    for bounce in taken:
        by_batch[bounce.batch_id].append(bounce)
        detail = {"occurred_at": bounce.occurred_at, "batch_id": str(bounce.batch_id), "because": "a callback told it"}
        deed = Deed("logs", "bounce.taken_back", namespace, "email", bounce.address, detail)
        await access.write_down(connection, deed, now)
    for one in archived:
        if one.outcome is not None and by_batch[one.batch.id]:
            outcome = _without(one.outcome, by_batch[one.batch.id])
            await archive.restate(connection, one.batch.id, outcome, now)
    await outbox.owe(connection, outbox.Scope(namespace, "email", now, policy), addresses)
    return taken


def _without(outcome: Outcome, bounces: Sequence[Bounce]) -> Outcome:
    """What the batch says from now on: these entries are evidence, and no facts of its."""
    gone = {one.entry_index for one in bounces} - set(outcome.held)
    return outcome._replace(
        accepted=outcome.accepted - len(gone),
        duplicates=outcome.duplicates + len(gone),
        held=tuple(sorted({*outcome.held, *gone})),
    )
