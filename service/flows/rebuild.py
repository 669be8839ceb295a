"""Owns the proof that the list follows from its evidence: everything is read as of one moment, and both sides compared.

The evidence is the archive, the audit log and the checkpoint, without what was taken back; stored are the facts and the
list. All of it goes through
a folder of files, each with a share of the addresses, so that memory holds a share and not the whole. Callbacks go on
meanwhile. Refuses to repair: what is wrong is counted and named, and a person decides.
"""

import asyncio
import hashlib
import tempfile
import uuid
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, NamedTuple

import msgspec

from service.domain.evidence import Key, Kind, Sides, disagreements, line_of, rebuilt
from service.domain.facts import Fact
from service.domain.suppression import Cause, Policy
from service.flows.ingest import Rules
from service.flows.testimony import testimony_of
from service.store import access, batches, checkpoints, suppressions, withdrawals
from service.store.checkpoints import Gone
from service.store.database import Connection, Database
from service.telemetry import logger

SHARES: Final = 64
"""Files that the addresses are spread over: memory holds one of so many parts."""

What = Literal["sayings", "withdrawn", "checkpoint", "facts", "orphans", "live"]


class Disagreement(NamedTuple):
    """One thing that is stored otherwise than the evidence says."""

    kind: Kind
    key: Key
    reason: str


@dataclass(slots=True)
class Compared:
    """One namespace and channel: how many causes, the digests of both sides, and how often they disagree."""

    causes: int = 0
    live: Any = field(default_factory=hashlib.sha256)
    rebuilt: Any = field(default_factory=hashlib.sha256)
    disagreements: Counter[Kind] = field(default_factory=Counter)


class Verified(NamedTuple):
    """What came of it. `unclear` counts entries of the archive that cannot be replayed, `unknown` those of them whose
    word the settings of this process do not know: it may be they that lack it, and not the evidence."""

    compared: dict[tuple[str, str], Compared]
    unclear: int
    unknown: int = 0

    @property
    def agrees(self) -> bool:
        """Whether the list is what its evidence says."""
        return not self.unclear and all(
            not one.disagreements and one.live.digest() == one.rebuilt.digest() for one in self.compared.values()
        )


Progress = Callable[[str, int], None]
"""What is being read, and how many of it so far."""


class _Shares:
    """The folder of files. Every line is one thing known of an address."""

    def __init__(self) -> None:
        self._stack = ExitStack()

    def __enter__(self) -> "_Shares":
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="kahuna-sync-")))
        self._paths = [folder / str(number) for number in range(SHARES)]
        self._files = [self._stack.enter_context(path.open("w+b")) for path in self._paths]
        # Nobody finds them from now on, and however this process ends, nothing of them is left.
        for path in self._paths:
            path.unlink()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._stack.close()

    def add(self, what: What, key: Key, value: Fact | Cause | tuple[Fact, uuid.UUID]) -> None:
        """Notes one thing about an address."""
        share = zlib.crc32(key.address.encode()) % SHARES
        self._files[share].write(msgspec.json.encode((what, key, value)) + b"\n")

    def read(self) -> Iterator[dict[Key, Sides]]:
        """Everything, a share of the addresses at a time."""
        for file in self._files:
            file.seek(0)
            sides: defaultdict[Key, Sides] = defaultdict(Sides)
            for line in file:
                what, key, value = msgspec.json.decode(line)
                _put(sides[Key(*key)], what, value)
            for one in sides.values():
                one.hear()
            yield dict(sorted(sides.items()))


async def verify(
    database: Database, rules: Rules, progress: Progress, tell: Callable[[Disagreement], None]
) -> Verified:
    """Replays all evidence and compares it with what is stored; `tell` hears of each disagreement."""
    with _Shares() as shares:
        async with database.snapshot("batches", "facts") as connection:
            unclear, unknown = await _gather_evidence(connection, shares, rules, progress)
            await _gather_stored(connection, shares, progress)
            bounces = await _bounces_compared(connection, rules.policy)
        verified = Verified({}, unclear, unknown)
        await asyncio.to_thread(_compare, shares, verified, rules.policy, bounces, progress, tell)
    found: Counter[str] = Counter()
    for one in verified.compared.values():
        found.update(one.disagreements)
    outcome = logger().info if verified.agrees else logger().error
    outcome("list.verified", agrees=verified.agrees, unclear=unclear, unknown=unknown, **found)
    return verified


async def _gather_evidence(
    connection: Connection, shares: _Shares, rules: Rules, progress: Progress
) -> tuple[int, int]:
    """What everybody said; returns how many entries cannot be replayed, and how many of them for their word."""
    unclear = unknown = count = 0
    after = uuid.UUID(int=0)
    while page := await batches.applied_after(connection, after, batches.LAST_ID):
        for batch in page:
            said = await asyncio.to_thread(testimony_of, batch, rules)
            unclear, unknown = unclear + said.unclear, unknown + said.unknown
            _add_words(shares, "sayings", [(batch.received.id, fact) for fact in said.facts])
        after = page[-1].received.id
        count += len(page)
        progress("batches", count)
    async for stated in access.stated(connection):
        _add_words(shares, "sayings", stated)
    async for withdrawn in withdrawals.every(connection):
        _add_words(shares, "withdrawn", withdrawn)
    async for causes in checkpoints.every_cause(connection):
        _add_causes(shares, "checkpoint", causes)
    return unclear, unknown


async def _gather_stored(connection: Connection, shares: _Shares, progress: Progress) -> None:
    """What we have made of it."""
    gone = await checkpoints.gone(connection)
    count = 0
    async for facts in suppressions.every_fact(connection):
        for fact, batch_id in facts:
            what: What = "orphans" if _is_gone(batch_id, gone) else "facts"
            shares.add(what, Key(*fact[:3]), fact)
        count += len(facts)
        progress("facts", count)
    count = 0
    async for causes in suppressions.every_cause(connection):
        _add_causes(shares, "live", causes)
        count += len(causes)
        progress("causes", count)


async def _bounces_compared(connection: Connection, policy: Policy) -> int:
    """How many of the newest soft bounces both sides are sure to have, whatever the policy was over time."""
    return min(one.soft_bounces_kept for one in (policy, *await access.policies(connection)))


def _compare(
    shares: _Shares,
    verified: Verified,
    policy: Policy,
    bounces: int,
    progress: Progress,
    tell: Callable[[Disagreement], None],
) -> None:
    count = 0
    for share in shares.read():
        for key, sides in share.items():
            one = verified.compared.setdefault(key[:2], Compared())
            causes = rebuilt(sides, policy)
            one.causes += len(sides.live)
            for digest, side in ((one.rebuilt, causes), (one.live, sides.live)):
                for reason in sorted(side):
                    digest.update(line_of(key, side[reason], bounces))
            for kind, reason in disagreements(sides, causes, policy, bounces):
                one.disagreements[kind] += 1
                tell(Disagreement(kind, key, reason))
        count += len(share)
        progress("addresses compared", count)


def _add_words(shares: _Shares, what: What, words: Sequence[tuple[uuid.UUID, Fact]]) -> None:
    for evidence, fact in words:
        shares.add(what, Key(*fact[:3]), (fact, evidence))


def _add_causes(shares: _Shares, what: What, causes: Sequence[tuple[Any, ...]]) -> None:
    for *key, cause in causes:
        shares.add(what, Key(*key), cause)


def _put(sides: Sides, what: What, value: list[Any]) -> None:
    if what in ("sayings", "withdrawn"):
        getattr(sides, what).add((Fact(*value[0]), value[1]))
        return
    if what in ("facts", "orphans"):
        getattr(sides, what).add(Fact(*value))
        return
    reason, stop_at, clear_at, bounces = value
    getattr(sides, what)[reason] = Cause(reason, stop_at, clear_at, tuple(bounces))


def _is_gone(batch_id: uuid.UUID | None, gone: Sequence[Gone]) -> bool:
    return batch_id is not None and any(month.low <= batch_id < month.high for month in gone)
