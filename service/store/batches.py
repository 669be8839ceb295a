"""Owns the archive: every signed body as received, what came of it, and which of its entries are in quarantine."""

import hashlib
import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

import zstandard
from asyncpg.pgproto import pgproto
from sqlalchemy import (
    BigInteger,
    DateTime,
    Integer,
    LargeBinary,
    Text,
    Uuid,
    any_,
    bindparam,
    cast,
    func,
    literal,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY, insert
from sqlalchemy.ext.asyncio import AsyncConnection

from service.domain.addresses import Channel
from service.domain.facts import Origin
from service.store.database import aside
from service.store.tables import batches, digests
from service.telemetry import sane_request_id

MOST_AT_ONCE: Final = 1000
BYTES_AT_ONCE: Final = 16 * 1024 * 1024
"""Batches of the archive that are read at once, and the bytes of their bodies after which no other is begun."""

TOO_SMALL: Final = 127
"""Bytes of a body up to which it is not worth compressing: one entry."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

LAST_ID: Final = uuid.UUID(int=(1 << 128) - 1)


class Received(NamedTuple):
    """A verified body as it came in: everything that applying it needs, now or at any later replay. `request_id` is
    that of the request that brought it, as it was answered; what was archived with others has kept none."""

    id: uuid.UUID
    namespace: str
    channel: Channel
    origin: Origin
    received_at: datetime
    headers: dict[str, str]
    body: bytes
    digest: bytes
    request_id: str | None = None

    @property
    def brought_by(self) -> str | None:
        """The id of the request that brought it, as far as it is known: an own one of the sender's stands in the
        headers, too."""
        return self.request_id or sane_request_id(self.headers.get("x-request-id"))


class Outcome(NamedTuple):
    """What came of a batch. The counts add up to its entries; `errors` holds all rejected ones, and `held` the indexes
    of the opt-ins that it made no facts of, since they waited for a person or had been refused."""

    accepted: int
    duplicates: int
    rejected: int
    errors: list[dict[str, Any]]
    held: tuple[int, ...] = ()


class Known(NamedTuple):
    """A batch that is archived already. `outcome` is None until it was applied, and once its month is `gone`."""

    id: uuid.UUID
    outcome: Outcome | None
    gone: bool = False


class Rejected(NamedTuple):
    """An entry that could not be understood: where it stood, why, and its bytes."""

    entry_index: int
    error: str
    entry: bytes


class Extent(NamedTuple):
    """Some batches as a whole: how many they are, and the sum of the times at which they were applied, in microseconds.
    It differs if one is new, or was applied anew, in whatever order such transactions commit."""

    batches: int = 0
    applied_at: int = 0

    def with_more(self, applied: Sequence["Applied"]) -> "Extent":
        """The same with these."""
        moments = sum((batch.applied_at - _EPOCH) // timedelta(microseconds=1) for batch in applied)
        return Extent(self.batches + len(applied), self.applied_at + moments)


class Applied(NamedTuple):
    """An applied batch as a rebuild needs it: what was received, and the indexes of entries that became no facts."""

    received: Received
    applied_at: datetime
    rejected: frozenset[int]
    held: frozenset[int]


def new_id(now: datetime, chance: int) -> uuid.UUID:
    """The id of a batch received now: version 7, so that those of one moment lie together in every index, and those of
    one month in one partition. It is no secret: `chance` may be any 74 random bits."""
    number = _milliseconds(now) << 80 | 7 << 76 | (chance >> 62) << 64 | 2 << 62 | chance & (1 << 62) - 1
    return pgproto.UUID(number.to_bytes(16, "big"))


def first_id(moment: datetime) -> uuid.UUID:
    """What no batch received before this moment has an id above of, and none after it one below. Before 1970 there are
    no ids, and no batches."""
    return uuid.UUID(int=max(_milliseconds(moment), 0) << 80)


def _milliseconds(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)


# Built once: they are part of every callback. Digests are locked in their order, whatever that of the callbacks.
_CLAIM: Final = text(
    """
    insert into digests (digest, namespace, channel, batch_id)
    select digest, :namespace, :channel, batch_id
    from unnest(cast(:digests as bytea[]), cast(:ids as uuid[])) as given(digest, batch_id)
    order by digest, batch_id
    on conflict do nothing returning batch_id
    """
).bindparams(bindparam("digests", type_=ARRAY(LargeBinary)), bindparam("ids", type_=ARRAY(Uuid)))

_ARCHIVE: Final = insert(batches)


_QUARANTINE: Final = text(
    """
    insert into quarantine (batch_id, entry_index, namespace, channel, error, entry, received_at)
    select batch_id, entry_index, :namespace, :channel, error, entry, received_at
    from unnest(cast(:batch_id as uuid[]), cast(:entry_index as int[]), cast(:error as text[]),
                cast(:entry as bytea[]), cast(:received_at as timestamptz[]))
         as rejected(batch_id, entry_index, error, entry, received_at)
    on conflict do nothing
    """
).bindparams(
    bindparam("batch_id", type_=ARRAY(Uuid)),
    bindparam("entry_index", type_=ARRAY(Integer)),
    bindparam("error", type_=ARRAY(Text)),
    bindparam("entry", type_=ARRAY(LargeBinary)),
    bindparam("received_at", type_=ARRAY(DateTime(timezone=True))),
)

BYTES_A_ROW: Final = 100
"""Bytes of a body that are as much work as a row is."""

SLICE: Final = 2000
"""Rows with bytes that one statement binds: more would hold up the event loop."""


async def claim_digests(connection: AsyncConnection, received: Sequence[Received]) -> set[uuid.UUID]:
    """Takes the digests for these batches of one namespace and channel; the ids of those that are new. Waits for a
    batch that is being recorded right now."""
    values = {
        "namespace": received[0].namespace,
        "channel": received[0].channel,
        "digests": [batch.digest for batch in received],
        "ids": [batch.id for batch in received],
    }
    return set((await connection.execute(_CLAIM, values)).scalars())


async def claim_digest(connection: AsyncConnection, batch: Received) -> Known | None:
    """Takes the digest for this batch, or tells which batch has it. Waits for one that is being recorded right now."""
    if await claim_digests(connection, [batch]):
        return None
    # The other transaction has committed, or the insert would still wait: this sees its rows.
    query = (
        select(digests.c.batch_id, batches.c.state, batches.c.accepted, batches.c.duplicates)
        .add_columns(batches.c.rejected, batches.c.errors, batches.c.held)
        .join_from(digests, batches, batches.c.id == digests.c.batch_id, isouter=True)
        .where(digests.c.digest == batch.digest)
        .where(digests.c.namespace == batch.namespace, digests.c.channel == batch.channel)
    )
    found = (await connection.execute(query)).one()
    outcome = outcome_of(found) if found.state == "applied" else None
    return Known(found.batch_id, outcome, gone=found.state is None)


async def archive(connection: AsyncConnection, rows: Sequence[tuple[Received, Outcome | None]], now: datetime) -> None:
    """Stores new batches: each applied if there is an outcome, else recorded for the sweeper."""
    await connection.execute(_ARCHIVE, await aside(sum(len(b.body) for b, _ in rows) // BYTES_A_ROW, _rows, rows, now))


def _rows(rows: Sequence[tuple[Received, Outcome | None]], now: datetime) -> list[dict[str, Any]]:
    compress = compressor()
    return [_archived(batch, outcome, compress(batch.body), now) for batch, outcome in rows]


def compressor() -> Callable[[bytes], bytes]:
    """What makes a body fit for the archive: a zstandard frame. One for all bodies of a transaction, made when the
    first body needs it, since making it costs more than a small body."""
    made: list[zstandard.ZstdCompressor] = []

    def compress(body: bytes) -> bytes:
        if len(body) <= TOO_SMALL:
            return _stored(body)
        if not made:
            made.append(zstandard.ZstdCompressor())
        return made[0].compress(body)

    return compress


def _stored(body: bytes) -> bytes:
    """The frame of a body that nothing can be gained from, which holds it as it is: what the library says of nearly
    every small one, after a search. (RFC 8878: magic, one segment of a size of one byte, one last block, raw.)"""
    size = len(body)
    return b"\x28\xb5\x2f\xfd\x20" + bytes((size,)) + (size << 3 | 1).to_bytes(3, "little") + body


async def finish(connection: AsyncConnection, batch_id: uuid.UUID, outcome: Outcome, now: datetime) -> None:
    """Turns a recorded batch into an applied one."""
    await connection.execute(update(batches).where(batches.c.id == batch_id).values(_applied(outcome, now)))


async def lock_unapplied(connection: AsyncConnection, batch_id: uuid.UUID) -> Received | None:
    """The batch, locked, if it is still waiting to be applied."""
    return await _one(connection, select(batches).where(batches.c.id == batch_id), skip_locked=False)


async def next_unapplied(connection: AsyncConnection, now: datetime) -> Received | None:
    """One batch that waits to be applied and is due, locked; those that another worker holds are passed over."""
    due = select(batches).where(batches.c.next_attempt_at <= now).order_by(batches.c.next_attempt_at).limit(1)
    return await _one(connection, due, skip_locked=True)


async def postpone(connection: AsyncConnection, batch_id: uuid.UUID, error: str, now: datetime) -> None:
    """Notes why a batch could not be applied, and tries it again ever more rarely, up to every 4,096 seconds."""
    delay = func.make_interval(0, 0, 0, 0, 0, 0, func.power(2, func.least(batches.c.attempts, 12)))
    values = {"attempts": batches.c.attempts + 1, "last_error": error, "next_attempt_at": literal(now) + delay}
    waiting = update(batches).where(batches.c.id == batch_id, batches.c.state == "recorded")
    await connection.execute(waiting.values(values))


async def quarantine_entries(connection: AsyncConnection, rejected: Sequence[tuple[Received, Rejected]]) -> None:
    """Keeps the entries of one namespace and channel that could not be understood, each with its batch, its reason and
    its bytes."""
    for start in range(0, len(rejected), SLICE):
        part = rejected[start : start + SLICE]
        values = {
            "namespace": part[0][0].namespace,
            "channel": part[0][0].channel,
            "received_at": [batch.received_at for batch, _ in part],
            "batch_id": [batch.id for batch, _ in part],
            "entry_index": [entry.entry_index for _, entry in part],
            "error": [entry.error for _, entry in part],
            "entry": [entry.entry for _, entry in part],
        }
        await connection.execute(_QUARANTINE, values)


async def applied_after(connection: AsyncConnection, after: uuid.UUID, below: uuid.UUID) -> list[Applied]:
    """The next applied batches in the order of their ids, as many as memory should hold; none at the end."""
    columns = [batches.c[name] for name in ("id", "namespace", "channel", "origin", "received_at", "headers")]
    columns += [batches.c[name] for name in ("body", "body_bytes", "applied_at", "errors", "held", "request_id")]
    bytes_before = func.sum(batches.c.body_bytes).over(order_by=batches.c.id) - batches.c.body_bytes
    query = select(*columns, bytes_before.label("bytes_before")).where(batches.c.state == "applied")
    query = query.where(batches.c.id > after, batches.c.id < below).order_by(batches.c.id).limit(MOST_AT_ONCE)
    page = query.subquery()
    small_enough = select(page).where(page.c.bytes_before < BYTES_AT_ONCE).order_by(page.c.id)
    return [_applied_batch(row) for row in await connection.execute(small_enough)]


async def applied_among(connection: AsyncConnection, ids: Sequence[uuid.UUID]) -> list[Applied]:
    """The applied ones of these batches in the order of their ids, from the first on as many as memory should hold."""
    columns = [batches.c[name] for name in ("id", "namespace", "channel", "origin", "received_at", "headers")]
    columns += [batches.c[name] for name in ("body", "body_bytes", "applied_at", "errors", "held", "request_id")]
    bytes_before = func.sum(batches.c.body_bytes).over(order_by=batches.c.id) - batches.c.body_bytes
    wanted = batches.c.id == any_(literal(list(ids), ARRAY(Uuid)))
    page = select(*columns, bytes_before.label("bytes_before")).where(wanted, batches.c.state == "applied").subquery()
    small_enough = select(page).where(page.c.bytes_before < BYTES_AT_ONCE).order_by(page.c.id)
    return [_applied_batch(row) for row in await connection.execute(small_enough)]


async def any_unapplied(connection: AsyncConnection, since: uuid.UUID, below: uuid.UUID) -> bool:
    """Whether a batch with an id in this range waits to be applied."""
    waiting = select(batches.c.id).where(batches.c.state == "recorded", batches.c.id >= since, batches.c.id < below)
    return (await connection.execute(waiting.limit(1))).first() is not None


async def extent(connection: AsyncConnection, since: uuid.UUID, below: uuid.UUID) -> Extent:
    """What there is with ids in this range."""
    microseconds = cast(func.extract("epoch", batches.c.applied_at) * 1_000_000, BigInteger)
    query = select(func.count(), func.sum(microseconds)).where(batches.c.id >= since, batches.c.id < below)
    count, total = (await connection.execute(query)).one()
    return Extent(count, int(total or 0))


async def unapplied_count(connection: AsyncConnection) -> int:
    """How many batches are recorded and wait to be applied."""
    query = select(func.count()).select_from(batches).where(batches.c.state == "recorded")
    return (await connection.execute(query)).scalar_one()


async def _one(connection: AsyncConnection, query: Any, *, skip_locked: bool) -> Received | None:
    waiting = query.where(batches.c.state == "recorded").with_for_update(skip_locked=skip_locked)
    row = (await connection.execute(waiting)).first()
    if row is None:
        return None
    body = zstandard.decompress(row.body, max_output_size=row.body_bytes)
    return received_of(row, body, b"")


def _applied_batch(row: Any) -> Applied:
    body = zstandard.decompress(row.body, max_output_size=row.body_bytes)
    digest = hashlib.sha256(body).digest()
    return Applied(
        received_of(row, body, digest),
        row.applied_at,
        frozenset(error["index"] for error in row.errors or ()),
        frozenset(row.held or ()),
    )


def _archived(batch: Received, outcome: Outcome | None, body: bytes, now: datetime) -> dict[str, Any]:
    return {
        "id": batch.id,
        "namespace": batch.namespace,
        "channel": batch.channel,
        "origin": batch.origin,
        "received_at": batch.received_at,
        "headers": batch.headers,
        "body": body,
        "body_bytes": len(batch.body),
        "request_id": batch.request_id,
    } | (_applied(outcome, now) if outcome else {"state": "recorded", "next_attempt_at": now})


def _applied(outcome: Outcome, now: datetime) -> dict[str, Any]:
    held = list(outcome.held) or None
    return outcome._asdict() | {
        "held": held,
        "state": "applied",
        "applied_at": now,
        "next_attempt_at": None,
        "last_error": None,
    }


def received_of(row: Any, body: bytes, digest: bytes) -> Received:
    """The batch in this row, whose body is this."""
    whose = (row.id, row.namespace, row.channel, row.origin, row.received_at, row.headers)
    return Received(*whose, body, digest, row.request_id)


def outcome_of(row: Any) -> Outcome:
    """What came of the applied batch in this row."""
    return Outcome(row.accepted, row.duplicates, row.rejected, row.errors, tuple(row.held or ()))
