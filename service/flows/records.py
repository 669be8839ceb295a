"""Owns what becomes of the records of a log page, in the caller's transaction: stops become facts of one archived
batch, messages are held against the stops, and merges of users are noted.

What a callback told of within `SAME_EVENT` seconds is evidence for it and no second fact. Refuses to keep a page
without a new fact: what it says is in the archive already.
"""

import hashlib
import secrets
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

import msgspec

from service.domain.addresses import ImpossibleAddress, normalise
from service.domain.facts import standing_time
from service.flows import ingest, leaks
from service.flows.ingest import Member, Rules
from service.kahuna import CampaignRecord, Contract, LogRecord, MergeRecord, logs
from service.store import batches, imports, log_evidence, merges, outbox, suppressions
from service.store import logs as stored
from service.store.batches import Outcome, Received
from service.store.database import Connection
from service.store.merges import Note
from service.store.suppressions import Entry, Provenance

COUNTED: Final = ("records", "facts", "evidence", "known", "rejected", "merges", "violations")


class Taken(NamedTuple):
    """What came of a page: its figures, the batch with its new facts, if there were any, and what facts that told, by
    reason and outcome."""

    counts: Counter[str]
    batches: list[uuid.UUID]
    told: dict[tuple[str, str], int]


async def take(
    connection: Connection,
    contract: Contract,
    namespace: str,
    rules: Rules,
    page: Sequence[LogRecord],
    headers: dict[str, str],
    now: datetime,
) -> Taken:
    """Takes in the records of one page of one log. Whatever it is, a second time changes nothing."""
    campaigns = [record for record in page if isinstance(record, CampaignRecord)]
    entries = logs.stops_of(campaigns, rules.words[namespace])
    taken = Taken(Counter(records=len(page)), [], {})
    if entries:
        batch = _batch(namespace, entries, headers, now)
        taken.counts.update(await _stop(connection, batch, rules, now, taken.told))
        taken.batches.extend([batch.id] if taken.counts["facts"] else [])
    # After the stops of the page itself: a message that it has may have gone out against one of them.
    taken.counts.update(await leaks.note(connection, namespace, logs.sent_in(page, contract), rules.policy, now))
    merged = [record for record in page if isinstance(record, MergeRecord)]
    taken.counts.update(merges=await merges.write(connection, namespace, _notes(merged), now))
    return taken


def _batch(namespace: str, entries: list[dict[str, Any]], headers: dict[str, str], now: datetime) -> Received:
    body = msgspec.json.encode(entries)
    digest = hashlib.sha256(body).digest()
    batch_id = batches.new_id(now, secrets.randbits(74))
    return Received(batch_id, namespace, "email", "kahuna_logs", now, headers, body, digest)


async def _stop(
    connection: Connection, batch: Received, rules: Rules, now: datetime, told_facts: dict[tuple[str, str], int]
) -> Mapping[str, int]:
    """Applies the stops of a page that are news, and archives it if there are any."""
    member = ingest.read(batch, rules.words[batch.namespace])
    found = ingest.sort(member, 0, "hold")
    news = _first_of_each(found.facts)
    # Locked first and read only then: a callback that is being applied right now is waited for.
    await suppressions.lock(connection, batch.namespace, "email", {entry.address for entry in news})
    judged = _judged(member, news)
    told = await stored.told_by_callbacks(connection, batch.namespace, judged)
    known = await imports.known_of_kahuna(connection, batch.namespace, "email", news)
    gone = await stored.taken_back(connection, batch.namespace, judged) - told
    silent = [_record(one) for one in judged if one.entry.entry_index in (told | known) - gone]
    await log_evidence.note(connection, batch.namespace, silent, now)
    known |= gone
    rows = [entry for entry in news if entry.entry_index not in told | known]
    provenance = Provenance(batch.namespace, "email", "kahuna", batch.origin, now, (batch.id,))
    merged = await suppressions.apply(connection, rows, provenance, rules.policy, locked=True)
    await outbox.owe(connection, outbox.Scope(batch.namespace, "email", now, rules.policy), merged.at_odds)
    new, rejected = merged.new.get(batch.id, 0), len(found.rejected)
    if new:
        await stored.watch(connection, batch.namespace, batch.id, [e for e in rows if e.reason == "soft_bounce"])
        made_facts = {entry.entry_index for entry in rows}
        held = tuple(sorted(e.entry_index or 0 for e in found.facts if e.entry_index not in made_facts))
        outcome = Outcome(new, len(found.facts) - new, rejected, ingest.errors_of(found), held)
        await batches.archive(connection, [(batch, outcome)], now)
        told_facts |= _told(found.facts, rows, new)
    evidence = len(told - known)
    return {
        "facts": new,
        "evidence": evidence,
        "known": len(found.facts) - new - evidence,
        "rejected": rejected,
    }


def _told(facts: Sequence[Entry], rows: Sequence[Entry], new: int) -> dict[tuple[str, str], int]:
    """The facts of a page by reason and outcome: of these rows so many were new, and the rest is known."""
    fresh = Counter(entry.reason for entry in rows)
    told = Counter(ingest.shares_of(fresh, new, len(rows) - new))
    told.update({(reason, "known"): n for reason, n in (Counter(entry.reason for entry in facts) - fresh).items()})
    return dict(told)


def _first_of_each(entries: Sequence[Entry]) -> list[Entry]:
    """Without those that say what another of the page has said."""
    return list({(e.address, e.reason, e.occurred_at): e for e in reversed(entries)}.values())[::-1]


def _judged(member: Member, news: Sequence[Entry]) -> list[stored.Stop]:
    received_at = int(member.batch.received_at.timestamp())
    claimed = {entry.index: entry.timestamp for entry in member.callback.entries}
    return [
        stored.Stop.of(one, timed=standing_time(claimed[one.entry_index or 0], received_at) is not None) for one in news
    ]


def _record(stop: stored.Stop) -> log_evidence.Record:
    entry = stop.entry
    return log_evidence.Record(entry.address, entry.reason, entry.occurred_at, stop.low != stored.ANY_TIME[0])


def _notes(page: Sequence[MergeRecord]) -> list[Note]:
    """The addresses that merges touched, each once for each merge; what cannot be an address has no history."""
    found: dict[tuple[str, str, bytes], Note] = {}
    for one in logs.merged_in(page):
        digest = logs.digest_of(one.record)
        try:
            address = normalise(one.channel, one.address)
        except ImpossibleAddress:
            continue
        note = Note(one.channel, address, digest, one.side, one.at, one.record)
        found.setdefault((one.channel, address, digest), note)
    return list(found.values())
