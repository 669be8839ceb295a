"""Owns the way of an ordinary callback into the database: known or new, archived, stored and merged in one statement.

Most callbacks tell of stops alone and were never seen. Those that came together are claimed, merged and archived by the
parts that do it for all others, in one round trip and by the driver itself. Refuses opt-ins, which a person may have to
see first, and leaves redeliveries to whoever tells them apart.
"""

import uuid
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import msgspec
from sqlalchemy import BigInteger, DateTime, Integer, LargeBinary, Text, Uuid, bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY

from service.domain.suppression import Policy
from service.store.batches import Received, compressor
from service.store.database import SEPARATOR, Connection, Straight
from service.store.suppressions import ENTRIES, MERGE, Entry, Provenance, columns_of


class Arrival(NamedTuple):
    """A callback that came in: the batch, how many of its entries were understood, and what was wrong with the rest."""

    batch: Received
    understood: int
    errors: list[dict[str, Any]]


class Stored(NamedTuple):
    """What came of it all: for each batch that is new the number of facts that were, and the addresses about which
    something may be owed now."""

    new: dict[uuid.UUID, int]
    at_odds: set[str]


_STORE: Final = Straight.of(
    text(
        f"""
        with given as materialized (
            select * from unnest(:digests, :batches, :received_at, :headers, :bodies, :sizes, :understood, :errors)
                with ordinality as b(digest, id, received_at, headers, body, size, understood, errors, place)
        ),
        claimed as (
            insert into digests (digest, namespace, channel, batch_id)
            select digest, :namespace, :channel, id from given order by digest, id
            on conflict do nothing returning batch_id
        ),
        -- Digests first, whatever the plan: all locks are taken in one order everywhere.
        entry as materialized (
            select entry.address, entry.received, reason, action, occurred_at, index, awaits, id as batch_id
            from {ENTRIES} join given on place = batch
            where (select count(*) from claimed) > 0 and id in (select batch_id from claimed)
        ),
        {MERGE},
        counted as (select batch_id, count(*)::int as facts from fresh group by batch_id),
        archived as (
            insert into batches (id, namespace, channel, origin, received_at, headers, body, body_bytes, state,
                                 applied_at, accepted, duplicates, rejected, errors)
            select id, :namespace, :channel, :origin, received_at, headers::jsonb, body, size, 'applied',
                   :recorded_at, coalesce(facts, 0), understood - coalesce(facts, 0),
                   jsonb_array_length(errors::jsonb), errors::jsonb
            from claimed join given on id = batch_id left join counted using (batch_id)
        )
        select batch_id, coalesce(facts, 0) as facts, null as at_odds from claimed left join counted using (batch_id)
        union all
        select null, 0, address from changed where at_odds
        """  # noqa: S608 (built from our own words alone)
    ).bindparams(
        bindparam("digests", type_=ARRAY(LargeBinary)),
        bindparam("batches", type_=ARRAY(Uuid)),
        bindparam("received_at", type_=ARRAY(DateTime(timezone=True))),
        bindparam("headers", type_=ARRAY(Text)),
        bindparam("bodies", type_=ARRAY(LargeBinary)),
        bindparam("sizes", type_=ARRAY(Integer)),
        bindparam("understood", type_=ARRAY(Integer)),
        bindparam("errors", type_=ARRAY(Text)),
        bindparam("audit_id", type_=Uuid),
        bindparam("recorded_at", type_=DateTime(timezone=True)),
        bindparam("kept", type_=BigInteger),
        *(bindparam(name, type_=Text) for name in ("namespace", "channel", "source", "origin", "separator")),
        *(bindparam(name, type_=Text) for name in columns_of([])),
    )
)


async def store(
    connection: Connection,
    arrivals: Sequence[Arrival],
    entries: Sequence[Entry],
    provenance: Provenance,
    policy: Policy,
) -> Stored:
    """Takes in callbacks of one namespace and channel, whose entries are stops, in a transaction of
    `Database.straight`. Those that are known already are left out of it all."""
    values = columns_of(entries) | _columns(arrivals) | provenance._asdict()
    rows = await _STORE.fetch(connection, values | {"separator": SEPARATOR, "kept": policy.soft_bounces_kept})
    new = {row["batch_id"]: row["facts"] for row in rows if row["at_odds"] is None}
    return Stored(new, {row["at_odds"] for row in rows if row["at_odds"] is not None})


def _columns(arrivals: Sequence[Arrival]) -> dict[str, list[Any]]:
    compress = compressor()
    batches = [arrival.batch for arrival in arrivals]
    return {
        "digests": [batch.digest for batch in batches],
        "received_at": [batch.received_at for batch in batches],
        "headers": [msgspec.json.encode(batch.headers).decode() for batch in batches],
        "bodies": [compress(batch.body) for batch in batches],
        "sizes": [len(batch.body) for batch in batches],
        "understood": [arrival.understood for arrival in arrivals],
        "errors": [msgspec.json.encode(arrival.errors).decode() for arrival in arrivals],
    }
