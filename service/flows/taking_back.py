"""Owns how a retraction goes its way, step by step: others are asked, what is left is removed, latecomers are heard.

Each step is one short transaction under the lease that writes down how far it came, so whoever is cut short is gone on
from. First the archive and the audit log are asked who else has said the same; such facts stand on that word from then
on. Then facts are removed page by page, the causes follow from those that remain, and what Kahuna is owed is judged
anew. In the end whoever spoke meanwhile is heard again.
"""

import asyncio
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

from service.domain.facts import SOURCES, Fact
from service.errors import KahunaSyncError
from service.flows import ingest
from service.flows.ingest import Rules
from service.flows.underway import TakenOver
from service.flows.words import Word, stated, words_of
from service.store import (
    access,
    archive,
    batches,
    imports,
    leases,
    log_evidence,
    outbox,
    retractions,
    suppressions,
    withdrawals,
)
from service.store.batches import first_id
from service.store.database import Connection, Database, out_of_turn, until_settled
from service.store.leases import Lease
from service.store.outbox import Scope
from service.store.retractions import Open, Place, Retraction
from service.store.suppressions import Entry, Provenance
from service.store.withdrawals import Saying

LEASE: Final = timedelta(minutes=5)

PAGE: Final = 2000
"""Facts that one transaction takes back."""

AT_ONCE: Final = 16
"""Batches that are read at once."""

STRAGGLERS: Final = timedelta(minutes=1)
"""So far behind the newest id batches may still commit: that much is looked at again each time."""

_FIRST: Final = uuid.UUID(int=0)

Counts = Counter[str]
Progress = Callable[[Counts], None]


class NotYet(KahunaSyncError):
    """A batch of the evidence is recorded and waits to be applied: it has said nothing yet."""

    slug = "not-applied-yet"


@dataclass(slots=True)
class Course:
    """One retraction under way. Every transaction first makes sure that the lease is still ours, and notes in its end
    how far it came."""

    database: Database
    rules: Rules
    clock: Callable[[], datetime]
    lease: Lease
    progress: Progress
    found: Open
    place: Place = field(init=False)
    counts: Counts = field(init=False)
    origins: frozenset[str] = frozenset()
    asked: set[uuid.UUID] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.place, self.counts = self.found.place, Counter(self.found.counts)

    @property
    def retraction(self) -> Retraction:
        """What is taken back."""
        return self.found.retraction

    def scope(self) -> Scope:
        """What every question about slots shares, now."""
        return Scope(self.retraction.namespace, self.retraction.channel, self.clock(), self.rules.policy)

    async def do(self, work: Callable[[Connection], Awaitable[tuple[Place, Counts]]]) -> None:
        """One step: all of it, or nothing. TakenOver if another worker has the lease by now."""

        async def fenced(connection: Connection) -> tuple[Place, Counts]:
            if not await leases.hold(connection, self.lease, self.clock() + LEASE):
                raise TakenOver("Another worker takes back what was said.")
            place, found = await work(connection)
            counts = dict(self.counts + found)
            await retractions.note(connection, self.retraction.id, place, counts, self.clock())
            return place, found

        self.place, found = await until_settled(self.database, fenced)
        self.counts.update(found)
        self.progress(self.counts)


async def carry_out(course: Course) -> None:
    """Goes on from where it is, to the end."""
    async with course.database.read() as connection:
        origins, deeds = await retractions.origins(connection, course.retraction.id)
    speaking = {source for origin, source in SOURCES.items() if origin in origins}
    course.origins = frozenset(one for one, source in SOURCES.items() if deeds or source in speaking)
    while course.place.phase == "releasing":
        await course.do(lambda connection: _release(connection, course))
    if course.place.phase == "walking":
        await _ask_others(course)
        await _ask_deeds(course)
        await _turn_to(course, course.place._replace(phase="taking"))
    while course.place.phase == "taking":
        await _ask_others(course)
        await course.do(lambda connection: _page(connection, course))
    if course.place.phase == "looking":
        await _hear_again(course)
        await course.do(lambda connection: _finish(connection, course))


async def _turn_to(course: Course, place: Place) -> None:
    async def noted(_: Connection) -> tuple[Place, Counts]:
        return place, Counter()

    await course.do(noted)


async def _release(connection: Connection, course: Course) -> tuple[Place, Counts]:
    """The bodies of an import are no longer known: sent again from now on, on purpose, they are another import. A
    callback stays known, since it is delivered again by itself."""
    place, retraction = course.place, course.retraction
    walking = Place("walking")
    if retraction.kind != "import":
        return walking, Counter()
    evidence = await retractions.evidence_after(connection, retraction.id, place.reached, AT_ONCE)
    if not evidence:
        return walking, Counter()
    found = await batches.applied_among(connection, [one for one, _ in evidence])
    for one in sorted(found, key=lambda applied: applied.received.digest):
        await retractions.release(connection, one.received.id, one.received.digest)
    whole = sum(len(one.received.body) for one in found) < batches.BYTES_AT_ONCE
    return place._replace(reached=evidence[-1][0] if whole else found[-1].received.id), Counter()


async def _page(connection: Connection, course: Course) -> tuple[Place, Counts]:
    """Takes some facts back. Their addresses are locked first, so whatever is said about them comes before or after."""
    retraction, now = course.retraction, course.clock()
    evidence = await retractions.evidence_after(connection, retraction.id, course.place.reached, AT_ONCE)
    if not evidence:
        return course.place._replace(phase="looking", walked=None, walked_deeds=None), Counter()
    states = await archive.hold_each(connection, [one for one, is_batch in evidence if is_batch])
    if "recorded" in states.values():
        raise NotYet("A batch of it waits to be applied; it is tried again.")
    words = await words_of(connection, retraction, evidence, course.rules)
    place, said, counts = _cut(course.place, evidence, words, states)
    addresses = {one.fact.address for one in said}
    await suppressions.lock(connection, retraction.namespace, retraction.channel, addresses)
    deeds = await retractions.deeds_about(connection, retraction, addresses)
    counts["handed_over"] += await withdrawals.hand_over(connection, retraction, list(stated(deeds)), now)
    taken = await withdrawals.take_back(connection, retraction, said, now)
    scope = course.scope()
    await withdrawals.recompute(connection, *scope[:2], addresses, scope.policy, now)
    counts["logged"] += await _stand_by_logs(connection, scope, retraction, taken.addresses)
    counts["corrections"] += await outbox.owe(connection, scope, taken.addresses)
    counts.update(facts=taken.facts, theirs=taken.theirs, kept=taken.kept)
    return place, +counts


async def _stand_by_logs(connection: Connection, scope: Scope, retraction: Retraction, addresses: Sequence[str]) -> int:
    """What Kahuna's logs had told of the same events was no fact, since callbacks had told it: now it is. A row of the
    audit log states it, since a page of a log without news is in no archive."""
    if scope.channel != "email":
        return 0
    records = await log_evidence.standing(connection, scope.namespace, retraction.id, addresses)
    if not records:
        return 0
    whose = scope.namespace, scope.channel
    facts = [Fact(*whose, one.address, one.reason, "suppress", one.occurred_at, "kahuna") for one in records]
    detail = {"retraction_id": str(retraction.id), "facts": len(facts)}
    deed = access.Deed(retraction.actor, "logs.stood_in", *whose, detail=detail, facts=facts)
    audit_id = await access.write_down(connection, deed, scope.now)
    provenance = Provenance(*whose, "kahuna", "kahuna_logs", scope.now, audit_id=audit_id)
    entries = [Entry(f.address, f.address, f.reason, f.action, f.occurred_at) for f in facts]
    # Rows are changed by now.
    async with out_of_turn(connection):
        await suppressions.apply(connection, entries, provenance, scope.policy, locked=True)
    return len(facts)


def _cut(
    place: Place, evidence: Sequence[tuple[uuid.UUID, bool]], words: Sequence[Word], there: Iterable[uuid.UUID]
) -> tuple[Place, list[Saying], Counts]:
    """As much as one transaction should take: whole words, or the next addresses of one that is too long."""
    said: list[Saying] = []
    counts: Counts = Counter()
    by_id, in_archive = {word.evidence: word for word in words}, set(there)
    for one, is_batch in evidence:
        word = by_id.get(one)
        if word is None and one in in_archive:  # more than memory should hold
            break
        rest = [] if word is None else [s for s in word.said if place.address is None or s.fact.address > place.address]
        if said and len(said) + len(rest) > PAGE:
            break
        if len(rest) > PAGE:
            last = rest[PAGE - 1].fact.address
            some = [saying for saying in rest if saying.fact.address <= last]
            if len(some) < len(rest):
                return place._replace(address=last), some, counts
        said += rest
        place = place._replace(reached=one, address=None)
        counts["evidence"] += 1
        counts["unclear"] += 0 if word is None else word.unclear
        counts["gone"] += is_batch and word is None
    return place, said, counts


async def _ask_others(course: Course) -> None:
    """Goes over the archive behind the last batch that was asked, up to now: who says the same keeps the fact."""
    retraction = course.retraction
    while True:
        after = course.place.walked or _FIRST
        async with course.database.read() as connection:
            last, ids = await retractions.witnesses_after(connection, retraction, course.origins, after)
        new = [one for one in ids if one not in course.asked]
        for start in range(0, len(new), AT_ONCE):
            await _hand_over(course, new[start : start + AT_ONCE])
        course.asked.update(new)
        lately = first_id(course.clock() - STRAGGLERS)
        if last is None or last > lately:
            up_to = min(last or after, lately)
            if course.place.phase == "walking" and up_to > after:
                await _turn_to(course, course.place._replace(walked=up_to))
            return
        course.asked.clear()
        await _turn_to(course, course.place._replace(walked=last))


async def _hand_over(course: Course, ids: Sequence[uuid.UUID]) -> None:
    for words in await _all_words(course, ids):
        async with course.database.read() as connection:
            addresses = await withdrawals.resting(connection, course.retraction, words.said)
            silent = await withdrawals.heard_only_from(connection, course.retraction, words.silent)
        said = [one for one in words.said if one.fact.address in addresses]
        if said:
            await course.do(lambda connection, said=said: _stand_on(connection, course, said))  # type: ignore[misc]
        if silent:
            await course.do(lambda connection, words=words: _speak_up(connection, course, words))  # type: ignore[misc]


async def _all_words(course: Course, ids: Sequence[uuid.UUID]) -> list[Word]:
    """What all of these batches say."""
    words: list[Word] = []
    while ids:
        async with course.database.read() as connection:
            found = await words_of(connection, course.retraction, [(one, True) for one in ids], course.rules)
        words += found
        read = {word.evidence for word in found}
        ids = [one for one in ids if found and one > max(read)]
    return words


async def _stand_on(connection: Connection, course: Course, said: Sequence[Saying]) -> tuple[Place, Counts]:
    """Facts that stood on what is taken back stand on these from now on, and the list names these as origin."""
    retraction, now = course.retraction, course.clock()
    addresses = {one.fact.address for one in said}
    await suppressions.lock(connection, retraction.namespace, retraction.channel, addresses)
    moved = await withdrawals.hand_over(connection, retraction, said, now)
    whose = retraction.namespace, retraction.channel
    await withdrawals.recompute(connection, *whose, addresses, course.rules.policy, now)
    return course.place, Counter(handed_over=moved)


async def _speak_up(connection: Connection, course: Course, word: Word) -> tuple[Place, Counts]:
    """Lines without a time were no news to this import, since what is taken back had said them: now they are."""
    retraction, now, scope = course.retraction, course.clock(), course.scope()
    [archived] = await archive.locked(connection, [word.evidence])
    if archived.outcome is None:
        return course.place, Counter()
    await imports.take_turn(connection, retraction.namespace, retraction.channel, now)
    whose = retraction.namespace, retraction.channel
    await suppressions.lock(connection, *whose, {fact.address for _, fact in word.silent})
    news = set(await withdrawals.heard_only_from(connection, retraction, word.silent)) & set(archived.outcome.held)
    entries = await asyncio.to_thread(_entries, archived.batch, news, course.rules)
    provenance = Provenance(*whose, "local", "import", now, (word.evidence,))
    merged = await suppressions.apply(connection, entries, provenance, scope.policy, locked=True)
    new = merged.new.get(word.evidence, 0)
    was = archived.outcome
    held = tuple(index for index in was.held if index not in news)
    outcome = was._replace(accepted=was.accepted + new, duplicates=was.duplicates - new, held=held)
    await archive.restate(connection, word.evidence, outcome, now)
    owed = await outbox.owe(connection, scope, merged.at_odds)
    return course.place, Counter(handed_over=new, corrections=owed)


def _entries(batch: batches.Received, indexes: set[int], rules: Rules) -> list[Entry]:
    found = ingest.sort(ingest.read(batch, rules.words[batch.namespace]), 0, "hold")
    return [entry for entry in found.facts if entry.entry_index in indexes]


async def _ask_deeds(course: Course, since: datetime | None = None) -> None:
    """Goes over the audit log: rows about many addresses that say the same keep the fact."""
    while True:
        after = course.place.walked_deeds or _FIRST
        async with course.database.read() as connection:
            last, deeds = await retractions.deeds_after(connection, course.retraction, after, since)
        if last is None:
            return
        for deed in deeds:
            said = [one for one in stated([deed]) if course.retraction.only.takes(one.fact)]
            if since is not None:
                await _restore(course, said)
                continue
            async with course.database.read() as connection:
                addresses = await withdrawals.resting(connection, course.retraction, said)
            if addresses:
                mine = [one for one in said if one.fact.address in addresses]
                await course.do(lambda connection, mine=mine: _stand_on(connection, course, mine))  # type: ignore[misc]
        await _turn_to(course, course.place._replace(walked_deeds=last))


async def _hear_again(course: Course) -> None:
    """Whoever said the same while pages went on was told that it is known, and then it was not: it is a fact now."""
    since = course.found.started_at - STRAGGLERS
    while True:
        after = course.place.walked or _FIRST
        async with course.database.read() as connection:
            last, ids = await retractions.witnesses_after(connection, course.retraction, course.origins, after, since)
        for start in range(0, len(ids), AT_ONCE):
            for word in await _all_words(course, ids[start : start + AT_ONCE]):
                await _restore(course, word.said)
        if last is None:
            break
        await _turn_to(course, course.place._replace(walked=last))
    await _ask_deeds(course, since)


async def _restore(course: Course, said: Sequence[Saying]) -> None:
    async with course.database.read() as connection:
        lost = await withdrawals.lost(connection, course.retraction, said)
    if lost:
        await course.do(lambda connection: _store_again(connection, course, lost))


async def _store_again(connection: Connection, course: Course, said: Sequence[Saying]) -> tuple[Place, Counts]:
    """Facts of one piece of evidence, as if it spoke now."""
    scope, whose = course.scope(), (course.retraction.namespace, course.retraction.channel)
    await suppressions.lock(connection, *whose, {one.fact.address for one in said})
    lost = await withdrawals.lost(connection, course.retraction, said)
    if not lost:
        return course.place, Counter()
    for source in sorted({one.fact.source for one in lost}):
        first, *_ = mine = [one for one in lost if one.fact.source == source]
        evidence: dict[str, Any] = {"batches": (first.evidence,)} if first.is_batch else {"audit_id": first.evidence}
        provenance = Provenance(*whose, source, first.origin, scope.now, **evidence)
        entries = [Entry(f.address, f.address, f.reason, f.action, f.occurred_at) for f, *_ in mine]
        # The second source's facts would come after the first one's causes.
        async with out_of_turn(connection):
            await suppressions.apply(connection, entries, provenance, scope.policy, locked=True)
    await outbox.owe(connection, scope, {one.fact.address for one in lost})
    return course.place, Counter(restored=len(lost))


async def _finish(connection: Connection, course: Course) -> tuple[Place, Counts]:
    retraction = course.retraction
    detail = {"retraction_id": str(retraction.id), "kind": retraction.kind, "of": str(retraction.of)}
    deed = access.Deed(retraction.actor, "retraction.finished", *retraction[1:3], detail=detail | dict(course.counts))
    await access.write_down(connection, deed, course.clock())
    return course.place._replace(phase="done"), Counter()
