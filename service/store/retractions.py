"""Owns the retractions: what is to be taken back, on whose word, how far it is, and which evidence it is about.

A retraction names evidence (archived batches, rows of the audit log), perhaps only what it says for one reason or of
one domain. What it did to the facts is `store.withdrawals`' business.
"""

import uuid
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from sqlalchemy import DateTime, Uuid, bindparam, delete, func, insert, select, text, update
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from service.domain.addresses import Channel
from service.domain.facts import Fact
from service.store.database import among
from service.store.tables import audit, batches, digests
from service.store.tables_of_undo import retraction_evidence, retractions

Kind: TypeAlias = Literal["import", "surge", "run"]
Phase: TypeAlias = Literal["releasing", "walking", "taking", "looking", "done"]

WINDOW: Final = 20_000
"""Rows of the archive, or of the audit log, that one look passes over."""


class Only(NamedTuple):
    """Of what the evidence says, only this counts; None means any. The domain is that of an e-mail address."""

    reason: str | None = None
    domain: str | None = None

    def takes(self, fact: Fact) -> bool:
        """Whether a fact is meant."""
        return self.reason in (None, fact.reason) and self.domain in (None, fact.address.rpartition("@")[2])


class Retraction(NamedTuple):
    """What is to be taken back: all that an import, a surge or a run (`of`, its id) has said. Who wants it, and why."""

    id: uuid.UUID
    namespace: str
    channel: Channel
    kind: Kind
    of: uuid.UUID
    actor: str
    reason: str
    only: Only = Only()

    @property
    def whole(self) -> bool:
        """Whether its evidence counts for nothing any more, also where it is understood later."""
        return self.only == Only()


class Place(NamedTuple):
    """How far a retraction is: `reached` is the last evidence that is done, `address` where it stopped within the next
    one, `walked` and `walked_deeds` the last batch and row of the audit log that were asked for what else they say."""

    phase: Phase = "releasing"
    reached: uuid.UUID | None = None
    address: str | None = None
    walked: uuid.UUID | None = None
    walked_deeds: uuid.UUID | None = None


class Open(NamedTuple):
    """A retraction under way."""

    retraction: Retraction
    place: Place
    counts: dict[str, int]
    started_at: datetime


class Evidence(NamedTuple):
    """Whose word is taken back: batches of the archive, and rows of the audit log."""

    batches: Sequence[uuid.UUID] = ()
    audits: Sequence[uuid.UUID] = ()


# The batches of an import begin with the millisecond of its own id, and name it.
_CHUNKS: Final = text(
    """
    insert into retraction_evidence (retraction_id, evidence_id, is_batch)
    select :id, id, true from batches
    where id >= :low and id < :high and namespace = :namespace and headers ->> 'import-id' = cast(:import as text)
    on conflict do nothing
    """
).bindparams(*(bindparam(name, type_=Uuid) for name in ("id", "low", "high")))

_SURGED: Final = text(
    """
    insert into retraction_evidence (retraction_id, evidence_id, is_batch)
    select :id, batch_id, true from surge_evidence where surge_id = :surge on conflict do nothing
    """
).bindparams(bindparam("id", type_=Uuid), bindparam("surge", type_=Uuid))


async def create(connection: AsyncConnection, asked: Retraction, now: datetime) -> uuid.UUID | None:
    """Writes a retraction down; None if it is new, else the id of the one that was asked for before."""
    row = asked._asdict() | {"only_reason": asked.only.reason, "only_domain": asked.only.domain, "counts": {}}
    del row["only"]
    new = upsert(retractions).values(row | {"created_at": now, "next_attempt_at": now}).on_conflict_do_nothing()
    if (await connection.execute(new.returning(retractions.c.id))).scalar() is not None:
        return None
    same = select(retractions.c.id).where(retractions.c.kind == asked.kind, retractions.c.of == asked.of)
    before: uuid.UUID = (await connection.execute(same)).scalar_one()
    return before


async def add_evidence(connection: AsyncConnection, retraction_id: uuid.UUID, evidence: Evidence) -> int:
    """Notes whose word it takes back; returns how many of the batches are not in the archive any more."""
    rows = [(one, True) for one in dict.fromkeys(evidence.batches)]
    rows += [(one, False) for one in dict.fromkeys(evidence.audits)]
    if rows:
        await connection.execute(
            insert(retraction_evidence),
            [{"retraction_id": retraction_id, "evidence_id": one, "is_batch": is_batch} for one, is_batch in rows],
        )
    return await missing(connection, retraction_id)


async def add_chunks(connection: AsyncConnection, asked: Retraction) -> int:
    """Notes every chunk of an import; returns how many there are."""
    moment = asked.of.int >> 80
    low, high = uuid.UUID(int=moment << 80), uuid.UUID(int=(moment + 1) << 80)
    values = {"id": asked.id, "low": low, "high": high, "namespace": asked.namespace, "import": str(asked.of)}
    return (await connection.execute(_CHUNKS, values)).rowcount


async def add_surge(connection: AsyncConnection, asked: Retraction) -> int:
    """Notes the batches of a surge; returns how many there are."""
    return (await connection.execute(_SURGED, {"id": asked.id, "surge": asked.of})).rowcount


async def missing(connection: AsyncConnection, retraction_id: uuid.UUID) -> int:
    """How many batches of a retraction are not in the archive any more."""
    mine = retraction_evidence.c
    there = select(batches.c.id).where(batches.c.id == mine.evidence_id).exists()
    query = select(func.count()).select_from(retraction_evidence)
    query = query.where(mine.retraction_id == retraction_id, mine.is_batch, ~there)
    return (await connection.execute(query)).scalar_one()


async def is_any_due(connection: AsyncConnection, now: datetime) -> bool:
    """Whether there is something to take back now."""
    due = select(retractions.c.id).where(retractions.c.state != "done", retractions.c.next_attempt_at <= now).limit(1)
    return (await connection.execute(due)).first() is not None


async def is_any_open(connection: AsyncConnection) -> bool:
    """Whether something is to be taken back, now or later."""
    return (await connection.execute(select(retractions.c.id).where(retractions.c.state != "done"))).first() is not None


async def take_up(connection: AsyncConnection, now: datetime, retraction_id: uuid.UUID | None) -> Open | None:
    """The retraction that has waited longest, or the one given, if it is not done; it is running from now on. Whoever
    asks holds the lease."""
    table = retractions.c
    due = select(retractions).where(table.state != "done").order_by(table.created_at, table.id).limit(1)
    due = due.where(table.next_attempt_at <= now) if retraction_id is None else due.where(table.id == retraction_id)
    row = (await connection.execute(due.with_for_update())).first()
    if row is None:
        return None
    started_at = row.started_at or now
    running = update(retractions).where(table.id == row.id)
    await connection.execute(running.values(state="running", started_at=started_at, error=None))
    place = Place(row.phase, row.reached, row.reached_address, row.walked, row.walked_deeds)
    return Open(as_retraction(row), place, dict(row.counts), started_at)


async def note(
    connection: AsyncConnection, retraction_id: uuid.UUID, place: Place, counts: dict[str, int], now: datetime
) -> None:
    """Writes down how far it is, in the transaction that brought it there."""
    values: dict[str, Any] = {
        "phase": place.phase,
        "reached": place.reached,
        "reached_address": place.address,
        "walked": place.walked,
        "walked_deeds": place.walked_deeds,
        "counts": counts,
        "attempts": 0,
    }
    if place.phase == "done":
        values |= {"state": "done", "finished_at": now}
    await connection.execute(update(retractions).where(retractions.c.id == retraction_id).values(values))


async def postpone(connection: AsyncConnection, retraction_id: uuid.UUID, error: str, until: datetime) -> None:
    """Notes what is in the way, and when it is tried again."""
    values = {"error": error, "next_attempt_at": until, "attempts": retractions.c.attempts + 1}
    await connection.execute(update(retractions).where(retractions.c.id == retraction_id).values(values))


async def attempts(connection: AsyncConnection, retraction_id: uuid.UUID) -> int:
    """How often in a row it could not go on."""
    query = select(retractions.c.attempts).where(retractions.c.id == retraction_id)
    tried: int = (await connection.execute(query)).scalar_one()
    return tried


async def evidence_after(
    connection: AsyncConnection, retraction_id: uuid.UUID, after: uuid.UUID | None, limit: int
) -> list[tuple[uuid.UUID, bool]]:
    """The next of its evidence, in the order of the ids: each with whether it is a batch."""
    table = retraction_evidence.c
    query = select(table.evidence_id, table.is_batch).where(table.retraction_id == retraction_id)
    if after is not None:
        query = query.where(table.evidence_id > after)
    rows = await connection.execute(query.order_by(table.evidence_id).limit(limit))
    return [(row.evidence_id, row.is_batch) for row in rows]


async def origins(connection: AsyncConnection, retraction_id: uuid.UUID) -> tuple[set[str], bool]:
    """The origins of its batches, and whether it is also about rows of the audit log."""
    table = retraction_evidence.c
    mine = select(batches.c.origin).join_from(retraction_evidence, batches, batches.c.id == table.evidence_id)
    found = (
        await connection.execute(mine.where(table.retraction_id == retraction_id, table.is_batch).distinct())
    ).all()
    deeds = select(table.evidence_id).where(table.retraction_id == retraction_id, ~table.is_batch).limit(1)
    return {row.origin for row in found}, (await connection.execute(deeds)).first() is not None


async def release(connection: AsyncConnection, batch_id: uuid.UUID, digest: bytes) -> None:
    """Forgets that a body is known: sent again, it is another batch."""
    known = delete(digests).where(digests.c.digest == digest, digests.c.batch_id == batch_id)
    await connection.execute(known)


async def counted_out(connection: AsyncConnection, batch_ids: Iterable[uuid.UUID]) -> set[uuid.UUID]:
    """Those of these batches, or rows of the audit log, of which nothing counts any more."""
    table, mine = retraction_evidence.c, retractions.c
    query = select(table.evidence_id).join_from(retraction_evidence, retractions, mine.id == table.retraction_id)
    whole = query.where(mine.only_reason.is_(None), mine.only_domain.is_(None))
    return set((await connection.execute(whole.where(among(table.evidence_id, batch_ids)))).scalars())


_WITNESSES: Final = text(
    """
    with passed as materialized (
        select id, namespace, channel, origin, duplicates, applied_at, held from batches
        where id > :after order by id limit :window
    )
    select (select id from passed order by id desc limit 1) as last,
           array(select id from passed
                 where namespace = :namespace and channel = :channel and duplicates > 0
                   and origin = any (string_to_array(:origins, ','))
                   and (cast(:since as timestamptz) is null or applied_at >= :since)
                   and not exists (select from retraction_evidence as e
                                   where e.retraction_id = :id and e.evidence_id = passed.id)
                 order by id) as ids
    """
).bindparams(bindparam("after", type_=Uuid), bindparam("since", type_=DateTime(True)), bindparam("id", type_=Uuid))
_WITNESSES_TYPED: Final = _WITNESSES.columns(last=Uuid, ids=ARRAY(Uuid))


async def witnesses_after(
    connection: AsyncConnection,
    retraction: Retraction,
    origins: Iterable[str],
    after: uuid.UUID,
    since: datetime | None = None,
) -> tuple[uuid.UUID | None, list[uuid.UUID]]:
    """Of the next batches of the archive, those of these origins that may say what the retraction takes back: one that
    says what is known counts duplicates. Also the last batch that was looked at; None at the end."""
    mine = {"id": retraction.id, "namespace": retraction.namespace, "channel": retraction.channel}
    values = mine | {"origins": ",".join(sorted(origins)), "after": after, "since": since, "window": WINDOW}
    row = (await connection.execute(_WITNESSES_TYPED, values)).one()
    return row.last, list(row.ids)


_DEEDS: Final = text(
    """
    with passed as materialized (
        select id, at, action, namespace, channel, address, facts from audit where id > :after order by id limit :window
    )
    select id, at, action, facts, last
    from (select id as last from passed order by id desc limit 1) as ending
    left join (
        select * from passed
        where namespace = :namespace and channel = :channel and facts is not null and address is null
          and (cast(:since as timestamptz) is null or at >= :since)
          and not exists (select from retraction_evidence as e
                          where e.retraction_id = :id and e.evidence_id = passed.id)
    ) as stating on true
    """
).bindparams(bindparam("after", type_=Uuid), bindparam("since", type_=DateTime(True)), bindparam("id", type_=Uuid))
_DEEDS_TYPED: Final = _DEEDS.columns(id=Uuid, at=DateTime(True), facts=JSONB, last=Uuid)


class Deed(NamedTuple):
    """A row of the audit log that states facts."""

    id: uuid.UUID
    at: datetime
    action: str
    facts: list[Fact]


async def deeds_after(
    connection: AsyncConnection, retraction: Retraction, after: uuid.UUID, since: datetime | None = None
) -> tuple[uuid.UUID | None, list[Deed]]:
    """The same for the rows of the audit log that state facts of many addresses; those of one are found by it."""
    mine = {"id": retraction.id, "namespace": retraction.namespace, "channel": retraction.channel}
    values = mine | {"after": after, "since": since, "window": WINDOW}
    rows = (await connection.execute(_DEEDS_TYPED, values)).all()
    last = rows[0].last if rows else None
    return last, [_deed(retraction, row) for row in rows if row.id is not None]


async def deeds_about(connection: AsyncConnection, retraction: Retraction, addresses: Iterable[str]) -> list[Deed]:
    """The rows of the audit log that state facts of one of these addresses alone."""
    table = audit.c
    query = select(table.id, table.at, table.action, table.facts).where(
        among(table.address, addresses),
        table.channel == retraction.channel,
        table.namespace == retraction.namespace,
        table.facts.is_not(None),
    )
    mine = select(retraction_evidence.c.evidence_id).where(
        retraction_evidence.c.retraction_id == retraction.id, retraction_evidence.c.evidence_id == table.id
    )
    return [_deed(retraction, row) for row in await connection.execute(query.where(~mine.exists()))]


async def deeds_among(connection: AsyncConnection, retraction: Retraction, ids: Sequence[uuid.UUID]) -> list[Deed]:
    """These rows of the audit log, those that state facts."""
    table = audit.c
    query = select(table.id, table.at, table.action, table.facts).where(among(table.id, ids), table.facts.is_not(None))
    return [_deed(retraction, row) for row in await connection.execute(query)]


async def one(connection: AsyncConnection, retraction_id: uuid.UUID) -> Any | None:
    """One retraction."""
    return (await connection.execute(select(retractions).where(retractions.c.id == retraction_id))).first()


async def newest(connection: AsyncConnection, namespace: str, limit: int) -> Sequence[Any]:
    """The newest retractions of a namespace."""
    query = select(retractions).where(retractions.c.namespace == namespace)
    return (await connection.execute(query.order_by(retractions.c.created_at.desc()).limit(limit))).all()


async def of_each(connection: AsyncConnection, kind: Kind, ids: Iterable[uuid.UUID]) -> dict[uuid.UUID, uuid.UUID]:
    """The retractions of these imports, surges or runs, by the id of each."""
    query = select(retractions.c.of, retractions.c.id).where(retractions.c.kind == kind, among(retractions.c.of, ids))
    return {row.of: row.id for row in await connection.execute(query)}


async def open_count(connection: AsyncConnection) -> int:
    """How many retractions are not done."""
    query = select(func.count()).select_from(retractions).where(retractions.c.state != "done")
    return (await connection.execute(query)).scalar_one()


def as_retraction(row: Any) -> Retraction:
    """The retraction of a row."""
    only = Only(row.only_reason, row.only_domain)
    return Retraction(row.id, row.namespace, row.channel, row.kind, row.of, row.actor, row.reason, only)


def _deed(retraction: Retraction, row: Any) -> Deed:
    whose = retraction.namespace, retraction.channel
    return Deed(row.id, row.at, row.action, [Fact(*whose, *stated) for stated in row.facts])
