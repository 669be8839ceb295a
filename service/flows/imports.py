"""Owns how a list from elsewhere becomes facts: read piece by piece, cut into chunks, each archived and applied in one
transaction, while the next is read.

An import only ever stops, and whatever is imported again, whole, in part or cut otherwise, makes no other list. One
that ends early has left whole chunks; the same file again goes on from there. A dry run counts by looking.
"""

import array
import asyncio
import tempfile
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import blake2b, sha256
from types import TracebackType
from typing import Any, Final, NamedTuple

from service.domain.addresses import Channel
from service.domain.facts import SOURCES, reasons_of, standing_time
from service.errors import RequestError, StorageBusy, Unprocessable
from service.flows import ingest
from service.flows.ingest import Member, Rules, Sorted
from service.lists.chunks import LINES, Chunk
from service.lists.columns import Asked, Line
from service.lists.reading import Reading
from service.store import access, batches, bulk, imports, outbox, retractions
from service.store.access import Deed
from service.store.batches import Known, Outcome, Received, new_id
from service.store.database import Connection, Database, until_settled
from service.store.imports import Begun
from service.store.suppressions import Entry, Provenance
from service.telemetry import Metrics, logger

ERRORS_SHOWN: Final = 100

AT_ONCE: Final = 2
"""Chunks that are stored at the same time, each on a connection of its own, while the next is made."""

PATIENCE: Final = 6
"""How often a chunk is tried again while others hold what it needs, after pauses that double from `FIRST_PAUSE`."""

FIRST_PAUSE: Final = 0.05
"""Seconds."""

SHARES: Final = 64
"""Files that a dry run spreads the facts over: memory holds one of so many parts."""

_CHANCE_BITS: Final = 50


class Order(NamedTuple):
    """What is asked: whose list it becomes, who asks, the file's name, and what is said of its lines beside them:
    the `reason` of those without one, and as of when (Unix seconds) those without a time are true. `chance` is any
    number of 50 random bits."""

    namespace: str
    channel: Channel
    actor: str
    chance: int
    file_name: str | None = None
    reason: str | None = None
    as_of: int | None = None
    dry_run: bool = False


@dataclass(slots=True)
class Tally:
    """How far an import is. The four counts add up to the lines: `accepted` are new facts, `duplicates` known ones,
    `rejected` could not be understood, `skipped` state no stop of this channel. Of those understood, `untimed` had no
    time that can stand, and `assumed` a word for their reason that is not known, so that the one said beside the list
    was taken. `reached` is the last line of the file that is counted; of the `errors`, the first are kept, each with
    its line."""

    lines: int = 0
    accepted: int = 0
    duplicates: int = 0
    rejected: int = 0
    skipped: int = 0
    untimed: int = 0
    assumed: int = 0
    reached: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    errors: list[tuple[int, str]] = field(default_factory=list)

    @property
    def counts(self) -> dict[str, int]:
        """The figures, for a log or an audit row."""
        names = ("lines", "accepted", "duplicates", "rejected", "skipped")
        return {name: getattr(self, name) for name in names}


class _Made(NamedTuple):
    """One chunk, ready to be stored."""

    batch: Received
    chunk: Chunk
    found: Sorted
    untimed: frozenset[int]
    theirs: frozenset[int]

    @property
    def reasons(self) -> Counter[str]:
        """How many of its facts have which reason."""
        return Counter(entry.reason for entry in self.found.facts)


class Import:
    """One list on its way in. `tally` tells how far it is, at any time and however it ends."""

    def __init__(
        self,
        database: Database,
        order: Order,
        rules: Rules,
        clock: Callable[[], datetime],
        lines_at_once: int = LINES,
        metrics: Metrics | None = None,
    ) -> None:
        if order.reason is not None and order.reason not in reasons_of(order.channel):
            allowed = ", ".join(reasons_of(order.channel))
            raise Unprocessable(f"No {order.channel} address has this reason; say one of {allowed}.", "unknown-reason")
        # One receipt for all of it: what it says without a time was said when it began.
        self.begun_at = clock()
        if order.as_of is not None and standing_time(order.as_of, int(self.begun_at.timestamp())) is None:
            raise Unprocessable("as_of is no time at which this can have been true.", "impossible-time")
        self._database = database
        self._order = order
        self._rules = rules
        self._clock = clock
        self._lines_at_once = lines_at_once
        self._metrics = metrics
        self._reading = Reading(Asked(order.namespace, order.channel, order.reason, order.as_of))
        self._waiting: list[Line] = []
        self._under_way: deque[tuple[_Made, asyncio.Task[Outcome]]] = deque()
        self._chunks = 0
        self._distinct: _Distinct | None = None
        self.id = new_id(self.begun_at, order.chance)
        self.tally = Tally()

    @property
    def kind(self) -> str | None:
        """What kind of file it is: `csv`, `ndjson` or `json`."""
        return self._reading.kind

    async def run(self, source: AsyncIterator[bytes], tell: Callable[[Tally], None] = lambda _: None) -> Tally:
        """Takes all of it in; `tell` hears of each chunk. Whatever the source raises ends it after the chunk under way.
        RequestError if the file cannot be read on, StorageUnavailable if the database cannot take it."""
        with _Distinct() as self._distinct:
            try:
                await self._read(source, tell)
            except asyncio.CancelledError:
                await self._abandon()
                raise
            except Exception as error:
                await self._cut_off(tell)
                if isinstance(error, RequestError) and self.tally.reached and not self._order.dry_run:
                    far = f"Lines up to {self.tally.reached} are in; send the mended file whole, nothing counts twice."
                    raise type(error)(f"{error} {far}", error.reason) from None
                raise
            if self._order.dry_run:
                self.tally.accepted = await asyncio.to_thread(self._distinct.count)
                self.tally.duplicates = self.tally.lines - self.tally.accepted - self.tally.rejected
        self.tally.skipped = self._reading.skipped
        self.tally.lines += self.tally.skipped
        await self._write_down("import.finished")
        return self.tally

    async def _read(self, source: AsyncIterator[bytes], tell: Callable[[Tally], None]) -> None:
        async for part in source:
            await self._take_in(self._reading.feed(part), tell)
        await self._take_in(self._reading.end(), tell)
        if self._waiting:
            await self._hand_over(self._waiting, tell)
        await self._settle(tell)

    async def _take_in(self, pieces: Iterator[list[Line]], tell: Callable[[Tally], None]) -> None:
        while (lines := await asyncio.to_thread(next, pieces, None)) is not None:
            self._waiting += lines
            while len(self._waiting) >= (size := self._lines_at_once):
                some, self._waiting = self._waiting[:size], self._waiting[size:]
                await self._hand_over(some, tell)

    async def _hand_over(self, lines: list[Line], tell: Callable[[Tally], None]) -> None:
        """Makes a chunk while the one before is stored, and has it stored next."""
        if not self._chunks:
            await self._write_down("import.begun")
        self._chunks += 1
        made = await asyncio.to_thread(self._make, lines)
        await self._settle(tell, AT_ONCE - 1)
        work = self._look(made) if self._order.dry_run else self._store(made)
        self._under_way.append((made, asyncio.create_task(work)))

    def _make(self, lines: list[Line]) -> _Made:
        order = self._order
        chunk = Chunk(order.channel, lines)
        body = chunk.body
        batch_id = new_id(self.begun_at, self._chunks << _CHANCE_BITS | order.chance)
        headers = {"import-id": str(self.id), "actor": order.actor}
        headers |= {"lines": f"{lines[0].line}-{lines[-1].line}"} | (
            {} if order.file_name is None else {"file-name": order.file_name}
        )
        digest = sha256(body).digest()
        batch = Received(batch_id, order.namespace, order.channel, "import", self.begun_at, headers, body, digest)
        found = ingest.sort(Member(batch, chunk), 0, "hold")
        received_at = int(self.begun_at.timestamp())
        timestamps = {e.index: e.timestamp for e in chunk.entries if e.index not in found.rejected}
        untimed = (index for index, claimed in timestamps.items() if standing_time(claimed, received_at) is None)
        theirs = (index for index, line in enumerate(lines) if line.origin is not None)
        return _Made(batch, chunk, found, frozenset(untimed), frozenset(theirs))

    async def _settle(self, tell: Callable[[Tally], None], left: int = 0) -> None:
        """Waits, in their order, until so many chunks at most are under way, and counts the others."""
        while len(self._under_way) > left:
            made, task = self._under_way.popleft()
            try:
                outcome = await task
            except Exception:
                # Those behind it may end, but are not counted: what is told to be in, is in without a gap.
                await asyncio.gather(*(later for _, later in self._under_way), return_exceptions=True)
                self._under_way.clear()
                raise
            self._count(made, outcome)
            tell(self.tally)

    async def _abandon(self) -> None:
        """Ends what is under way: it has committed or it has not."""
        tasks = [task for _, task in self._under_way]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _count(self, made: _Made, outcome: Outcome) -> None:
        tally, lines = self.tally, made.chunk.values
        tally.lines += len(lines)
        tally.accepted += outcome.accepted
        tally.duplicates += outcome.duplicates
        tally.rejected += outcome.rejected
        tally.untimed += len(made.untimed)
        tally.assumed += sum(
            lines[e.entry_index].word is not None for e in made.found.facts if e.entry_index is not None
        )
        tally.reached = lines[-1].line
        tally.reasons.update(made.reasons)
        room = ERRORS_SHOWN - len(tally.errors)
        tally.errors += [(lines[error["index"]].line, error["error"]) for error in outcome.errors[:room]]

    async def _cut_off(self, tell: Callable[[Tally], None]) -> None:
        """Lets the chunk under way end, and tells how far it came."""
        try:
            await self._settle(tell)
            await self._write_down("import.cut_off")
        except Exception as error:  # noqa: BLE001 (what ended the import is what is told)
            logger().warning("import.lost", import_id=str(self.id), because=type(error).__name__)

    async def _store(self, made: _Made) -> Outcome:
        """Archives and applies a chunk, and counts its facts: they are in, also if the list is cut off before it comes
        to the tally."""
        outcome = await self._patiently(made)
        if self._metrics is not None:
            told = ingest.shares_of(made.reasons, outcome.accepted, outcome.duplicates)
            ingest.count_facts(self._metrics, self._order.channel, told)
        return outcome

    async def _patiently(self, made: _Made) -> Outcome:
        """A chunk that others keep from what it needs is tried again for a while."""
        for attempt in range(PATIENCE):
            try:
                return await until_settled(self._database, lambda connection: self._apply(connection, made))
            except StorageBusy:
                await asyncio.sleep(FIRST_PAUSE * 2.0**attempt)
        return await until_settled(self._database, lambda connection: self._apply(connection, made))

    async def _apply(self, connection: Connection, made: _Made) -> Outcome:
        batch, now = made.batch, self._clock()
        known = await batches.claim_digest(connection, batch)
        if known is not None:
            if await retractions.counted_out(connection, [known.id]):
                raise StorageBusy("This list is being taken back; send it again when that is done.")
            return _as_known(made, known)
        said = await self._said_before(connection, made, now)
        stops = [entry for entry in made.found.facts if entry.entry_index not in said]
        scope = outbox.Scope(batch.namespace, batch.channel, now, self._rules.policy)
        source = SOURCES[batch.origin]
        provenance = Provenance(batch.namespace, batch.channel, source, batch.origin, now, (batch.id,))
        merged = await bulk.apply(connection, stops, provenance, scope.policy)
        if merged.at_odds:
            await outbox.owe(connection, scope, await imports.owe_first_stops(connection, scope, merged.at_odds))
        outcome = _outcome(made, merged.new.get(batch.id, 0), said)
        await batches.archive(connection, [(batch, outcome)], now)
        return outcome

    async def _said_before(self, connection: Connection, made: _Made, now: datetime) -> frozenset[int]:
        """The lines that are no news: see `_no_news`."""
        if _among(made.found.facts, made.untimed):
            await imports.take_turn(connection, made.batch.namespace, made.batch.channel, now)
        return await _no_news(connection, made)

    async def _look(self, made: _Made) -> Outcome:
        """What storing a chunk would come to, as far as can be told of it alone: which facts would be new is counted at
        the end, since lines may say the same far apart."""
        batch = made.batch
        async with self._database.read() as connection:
            said = await _no_news(connection, made)
            stops = [entry for entry in made.found.facts if entry.entry_index not in said]
            new = await imports.unknown(connection, batch.namespace, batch.channel, stops)
        if self._distinct is not None:
            await asyncio.to_thread(self._distinct.add, _among(stops, new))
        return _outcome(made, 0, said)

    async def _write_down(self, what: str) -> None:
        """Tells of the import as a whole, in the log and, unless nothing was to be stored, in the audit log."""
        order, tally = self._order, self.tally
        ids = {"import_id": str(self.id), "namespace": order.namespace, "channel": order.channel}
        logger().info(what, **ids, dry_run=order.dry_run, **tally.counts)
        if order.dry_run or (self._chunks == 0 and what != "import.begun"):
            return
        detail: dict[str, Any] = {"import_id": str(self.id), "file_name": order.file_name, "reason": order.reason}
        detail |= {"as_of": order.as_of} | (tally.counts if what != "import.begun" else {})
        async with self._database.begin() as connection:
            deed = Deed(order.actor, what, order.namespace, order.channel, detail=detail)
            await access.write_down(connection, deed, self._clock())
            if what == "import.begun":
                said = (order.file_name, order.reason, order.as_of)
                await imports.begin(
                    connection, Begun(self.id, order.namespace, order.channel, order.actor, *said, self.begun_at)
                )
            else:
                await imports.end(connection, self.id, what.removeprefix("import."), tally.counts, self._clock())


async def _no_news(connection: Connection, made: _Made) -> frozenset[int]:
    """The lines without a time that an import has said before, however often they come; and those of our own export
    that repeat what Kahuna has said: as ours, they would stand against a later opt-in of Kahuna's."""
    whose = made.batch.namespace, made.batch.channel
    untimed, theirs = _among(made.found.facts, made.untimed), _among(made.found.facts, made.theirs)
    said = await imports.said_before(connection, *whose, untimed)
    return said | await imports.known_of_kahuna(connection, *whose, theirs)


def _among(entries: Iterable[Entry], indexes: Collection[int]) -> list[Entry]:
    return [entry for entry in entries if entry.entry_index in indexes]


def _outcome(made: _Made, new: int, said: frozenset[int]) -> Outcome:
    rejected = made.found.rejected
    errors = [{"index": index, "error": error} for index, error in sorted(rejected.items())]
    known = len(made.chunk.values) - new - len(rejected)
    return Outcome(new, known, len(rejected), errors, tuple(sorted(said)))


def _as_known(made: _Made, known: Known) -> Outcome:
    """What a chunk that is archived already says again: nothing new, and the same lines rejected, or those that today
    are, if its month is gone."""
    if known.outcome is None:
        return _outcome(made, 0, frozenset())
    was = known.outcome
    return was._replace(accepted=0, duplicates=was.accepted + was.duplicates)


class _Distinct:
    """How many different facts there are among very many, in flat memory: each is a hash in one of some files."""

    def __init__(self) -> None:
        self._files: list[Any] = []

    def __enter__(self) -> "_Distinct":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        for file in self._files:
            file.close()

    def add(self, entries: Sequence[Entry]) -> None:
        """Notes these facts."""
        while len(self._files) < SHARES:
            self._files.append(tempfile.TemporaryFile())  # noqa: SIM115 (closed at the end of the block)
        for entry in entries:
            key = "\0".join((entry.address, entry.reason, str(entry.occurred_at)))
            mark = blake2b(key.encode(), digest_size=8).digest()
            self._files[mark[0] % SHARES].write(mark)

    def count(self) -> int:
        """How many of those noted differ."""
        return sum(len(set(self._marks(file))) for file in self._files)

    def _marks(self, file: Any) -> Iterable[int]:
        file.seek(0)
        marks = array.array("Q")  # eight bytes each
        marks.frombytes(file.read())
        return marks
