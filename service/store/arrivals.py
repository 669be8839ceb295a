"""Owns the way of an ordinary callback into the database: known or new, archived, stored and merged in one statement.

Most callbacks tell of stops alone and were never seen. Those that came together are claimed, merged and archived by the
parts that do it for all others, in one round trip and by the driver itself; and where the list knows nothing of the
addresses but what Kahuna told, nothing can be owed, and the statement is the whole transaction. Refuses opt-ins, which
a person may have to see first, and leaves redeliveries to whoever tells them apart.
"""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import asyncpg
import msgspec
from sqlalchemy import BigInteger, DateTime, LargeBinary, Text, Uuid, bindparam, text

from service.domain.suppression import Policy
from service.store.batches import Received, compressor
from service.store.database import SEPARATOR, Connection, Straight, note_fed
from service.store.faults import Overtaken
from service.store.merging import AT_ODDS, CROSSED, ENTRIES, MERGE, MERGE_ONCE
from service.store.suppressions import Entry, Provenance, columns_of, say_once


class Arrival(NamedTuple):
    """A callback that came in: the batch, how many of its entries were understood, and what was wrong with the rest."""

    batch: Received
    understood: int
    errors: list[dict[str, Any]]


class Stored(NamedTuple):
    """What came of it all: for each batch that is new, by its place, the number of facts that were, and the addresses
    about which something may be owed now."""

    new: dict[int, int]
    at_odds: set[str]


# Texts travel joined and bodies as one, cut apart by their sizes: an array of sixteen costs the driver more than all
# these together.
_GIVEN: Final = f"""
    with given as materialized (
        select place::int, decode(digest, 'hex') as digest, id::uuid, received_at, headers, errors, understood,
               size, substring(:bodies from (sum(stored) over (order by place) - stored + 1)::int for stored) as body
        from unnest(string_to_array(:digests, ','), string_to_array(:ids, ','),
                    string_to_array(:received_at, ',')::timestamptz[], string_to_array(:headers, :separator),
                    string_to_array(:errors, :separator), string_to_array(:understood, ',')::int[],
                    string_to_array(:sizes, ',')::int[], string_to_array(:stored, ',')::int[])
             with ordinality as b(digest, id, received_at, headers, errors, understood, size, stored, place)
    ),
    said as materialized ({ENTRIES}),
"""  # noqa: S608 (built from our own words alone)

# What is known of these addresses, and whether somebody but Kahuna had a part in it.
_MET: Final = """
    met as materialized (
        select address, apart from (select distinct address from said) as given
        cross join lateral (
            select s.local_stop_at is not null or s.clear_at is not null or s.held_clear_at is not null
                   or s.stop_at is distinct from s.held_stop_at as apart
            from suppressions as s
            where s.address = given.address and s.channel = :channel and s.namespace = :namespace
            offset 0 -- or the list might be read whole
        ) as known
    ),
"""

# Digests first, whatever the plan: all locks are taken in one order everywhere.
_CLAIMED: Final = """
    claimed as (
        insert into digests (digest, namespace, channel, batch_id)
        select digest, :namespace, :channel, id from given {where} order by digest, id
        on conflict do nothing returning batch_id
    ),
    entry as materialized (
        select address, received, reason, action, occurred_at, index, awaits, said.place, id as batch_id
        from said join given on given.place = batch
        where (select count(*) from claimed) > 0 and id in (select batch_id from claimed)
    ),
"""

_ARCHIVED: Final = """,
    counted as (select batch_id, count(*)::int as facts from fresh group by batch_id),
    archived as (
        insert into batches (id, namespace, channel, origin, received_at, headers, body, body_bytes, state,
                             applied_at, accepted, duplicates, rejected, errors)
        select id, :namespace, :channel, :origin, received_at, headers::jsonb, body, size, 'applied',
               :recorded_at, coalesce(facts, 0), understood - coalesce(facts, 0),
               jsonb_array_length(errors::jsonb), errors::jsonb
        from claimed join given on id = batch_id left join counted using (batch_id)
    )
    select place, coalesce(facts, 0) as facts, null as at_odds
    from claimed join given on id = batch_id left join counted using (batch_id)
    union all
"""

_STORE: Final = f"""
    {_GIVEN}{_CLAIMED.format(where="")}{{merge}}{_ARCHIVED}
    select null, 0, string_agg(address, :separator) from {AT_ODDS} having count(*) > 0
    union all
    select null, null, null where {CROSSED}
"""  # noqa: S608 (built from our own words alone)

# It may not commit if another had a part in what it changed: no message is worth more than that it ends.
_STORE_APART: Final = f"""
    {_GIVEN}{_MET}{_CLAIMED.format(where="where not exists (select from met where apart)")}{MERGE_ONCE}{_ARCHIVED}
    select null, case when at_odds or met then 'another has changed one of these meanwhile' else '0' end::int, address
    from changed where at_odds or (met and address not in (select address from met))
    union all
    select null, case when crossed then 'another has made one of these meanwhile' else '0' end::int, null
    from (select {CROSSED} as crossed) as way where crossed
    union all
    select null, 0, address from met where apart
"""  # noqa: S608 (built from our own words alone)


def _straight(statement: str) -> Straight:
    texts = ["namespace", "channel", "source", "origin", "separator", "digests", "ids", "received_at", "headers"]
    texts += ["errors", "understood", "sizes", "stored", *columns_of([])]
    return Straight.of(
        text(statement).bindparams(
            bindparam("bodies", type_=LargeBinary),
            bindparam("audit_id", type_=Uuid),
            bindparam("recorded_at", type_=DateTime(timezone=True)),
            *([bindparam("kept", type_=BigInteger)] if ":kept" in statement else []),
            *(bindparam(name, type_=Text) for name in texts),
        )
    )


_IN_COMPANY: Final = _straight(_STORE.format(merge=MERGE))
_ONCE: Final = _straight(_STORE.format(merge=MERGE_ONCE))
_APART: Final = _straight(_STORE_APART)


class Group(NamedTuple):
    """Callbacks of one namespace and channel that came together, and their entries, which are stops."""

    arrivals: Sequence[Arrival]
    entries: Sequence[Entry]
    provenance: Provenance
    policy: Policy


async def store(connection: Connection, group: Group) -> Stored:
    """Takes these callbacks in, in a transaction of `Database.straight`. Those that are known already are left out of
    it all."""
    return await _fetched(connection, _ONCE if say_once(group.entries) else _IN_COMPANY, group)


async def store_apart(connection: Connection, group: Group) -> Stored | None:
    """The same in no transaction but its own, if nothing can be owed for it; None if something might be, and nothing
    was done."""
    if not say_once(group.entries):
        return None
    try:
        stored = await _fetched(connection, _APART, group)
    except asyncpg.InvalidTextRepresentationError:
        return None
    return None if stored.at_odds else stored


async def _fetched(connection: Connection, statement: Straight, group: Group) -> Stored:
    values = columns_of(group.entries) | _columns(group.arrivals) | group.provenance._asdict()
    values |= {"separator": SEPARATOR, "kept": group.policy.soft_bounces_kept}
    rows = await statement.fetch(connection, values)
    if any(row["facts"] is None for row in rows):
        raise Overtaken
    note_fed(connection)
    new = {row["place"] - 1: row["facts"] for row in rows if row["at_odds"] is None}
    at_odds = [row["at_odds"] for row in rows if row["at_odds"] is not None]
    return Stored(new, {address for some in at_odds for address in some.split(SEPARATOR)})


def _columns(arrivals: Sequence[Arrival]) -> dict[str, Any]:
    compress = compressor()
    batches = [arrival.batch for arrival in arrivals]
    bodies = [compress(batch.body) for batch in batches]
    return {
        "digests": ",".join([batch.digest.hex() for batch in batches]),
        "ids": ",".join([str(batch.id) for batch in batches]),
        "received_at": ",".join([batch.received_at.isoformat() for batch in batches]),
        # No control character is left as it is in JSON, so none of theirs is taken for ours.
        "headers": SEPARATOR.join([msgspec.json.encode(batch.headers).decode() for batch in batches]),
        "errors": SEPARATOR.join([msgspec.json.encode(arrival.errors).decode() for arrival in arrivals]),
        "understood": ",".join([str(arrival.understood) for arrival in arrivals]),
        "sizes": ",".join([str(len(batch.body)) for batch in batches]),
        "stored": ",".join([str(len(body)) for body in bodies]),
        "bodies": b"".join(bodies),
    }
