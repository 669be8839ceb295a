"""Owns the merge in SQL, as parts of one statement: the rules of `domain.suppression` for many rows at once, and the
order of the locks. Refuses to run anything: `suppressions` and `arrivals` do.

A property test holds it against the domain's merge of one address.
"""

from typing import Final

HOME: Final = """case when :channel = 'sms' then 'do_not_call'
              when reason = 'manual' then 'unsubscribe' else reason end"""
"""`domain.facts.home_of` in SQL."""

_MERGED_HOME: Final = HOME.replace("reason", "merged.reason")

# Bulk columns travel as joined text: binding 100,000 values apart stalls the event loop. A column of one value travels
# as that value, which `unnest` fills up with nulls.
ENTRIES: Final = """
    select address, coalesce(received, address) as received,
           coalesce(reason, split_part(:reason, ',', 1)) as reason,
           coalesce(action, split_part(:action, ',', 1)) as action,
           coalesce(occurred_at, nullif(split_part(:occurred_at, ',', 1), '')::bigint) as occurred_at, index,
           coalesce(awaits, false) as awaits,
           coalesce(batch, nullif(split_part(:batch, ',', 1), '')::int) as batch, place
    from unnest(string_to_array(:address, :separator), string_to_array(:received, :separator),
                string_to_array(:reason, ','), string_to_array(:action, ','),
                string_to_array(:occurred_at, ',')::bigint[], string_to_array(:index, ',', '')::int[],
                string_to_array(:awaits, ',')::bool[], string_to_array(:batch, ',')::int[])
         with ordinality as given(address, received, reason, action, occurred_at, index, awaits, batch, place)
"""
"""The entries of a group as rows, in the order of the keys: from the columns of `columns_of`."""


def _kept(times: str, clear_at: str) -> str:
    """The newest distinct bounce times since the latest clear, ascending: `domain.suppression.merge` in SQL."""
    return f"""case when {times} is not null then (select array_agg(at order by at) from (
        select distinct at from unnest({times}) as bounce(at)
        where at >= coalesce({clear_at}, at) order by at desc limit :kept) as newest) end"""  # noqa: S608 (our own words)


PARTITION: Final = "(hashtextextended(address, 8816678312871386365) & 7)"
"""The partition of the facts that an address belongs to: a number of eight, though not the one in its name. The server
hashes with this seed, and counts from elsewhere."""

# Every row of these addresses, in the order of the keys, also where the facts turn out to be known: what is owed is
# judged after this, and nobody may change it meanwhile.
_LOCKED: Final = """
    locked as materialized (
        select given.address, held.reason from (select address from entry order by place) as given
        cross join lateral (
            select s.reason from suppressions as s
            where s.address = given.address and s.channel = :channel and s.namespace = :namespace
            order by s.reason for update {patience}
        ) as held
    ),
"""

# Then the facts, partition by partition, as `COPY` cannot but store them.
_STORED: Final = f"""
    fresh as (
        insert into facts (address, channel, namespace, reason, action, occurred_at, source, origin,
                           address_received, batch_id, entry_index, audit_id, recorded_at)
        select address, :channel, :namespace, reason, action, occurred_at, :source, :origin,
               nullif(received, address), batch_id, index, :audit_id, :recorded_at
        from entry where not awaits and (select count(*) from locked) >= 0
        order by {PARTITION}, place
        on conflict do nothing
        returning address, reason, action, occurred_at, address_received, batch_id
    ),
"""  # noqa: S608 (built from our own words alone)

_TOUCHED: Final = f"""
    stated as (
        select address, reason, action, occurred_at, address_received, batch_id, false as awaits from fresh
        union all
        select address, reason, action, occurred_at, nullif(received, address), batch_id, true from entry where awaits
    ),
    merged as (
        select address, reason,
               max(occurred_at) filter (where action = 'suppress' and not awaits) as stop_at,
               max(occurred_at) filter (where action = 'clear' and not awaits) as clear_at,
               array_agg(occurred_at) filter (where action = 'suppress' and reason = 'soft_bounce') as bounces,
               max(occurred_at) filter (where action = 'suppress' and :source = 'local') as local_stop_at,
               max(occurred_at) filter (where action = 'suppress' and :source = 'kahuna') as held_stop_at,
               max(occurred_at) filter (where action = 'clear' and :source = 'kahuna') as held_clear_at,
               (array_agg(address_received order by occurred_at desc, action desc))[1] as address_received,
               (array_agg(batch_id order by occurred_at desc, action desc) filter (where not awaits))[1] as batch_id
        from stated group by address, reason
    ),
    touched as (
        select address, reason, stop_at, clear_at, {_kept("bounces", "clear_at")} as bounces, local_stop_at,
               held_stop_at, held_clear_at, address_received, batch_id
        from merged
        union all
        -- The row of the slot's home, without news: whoever changes a slot locks it, so that none misses another.
        select distinct address, {HOME}, null::bigint, null::bigint, null::bigint[], null::bigint,
               null::bigint, null::bigint, null, null::uuid
        from merged where reason <> {HOME}
          and not exists (select from merged as m where m.address = merged.address and m.reason = {_MERGED_HOME})
    ),
"""  # noqa: S608 (built from our own words alone)

# The same where there is nothing to merge within the group: each fact is a cause of its own.
_TOUCHED_ONCE: Final = """
    touched as (
        select address, reason, case when action = 'suppress' then occurred_at end as stop_at,
               case when action = 'clear' then occurred_at end as clear_at,
               case when action = 'suppress' and reason = 'soft_bounce' then array[occurred_at] end as bounces,
               case when action = 'suppress' and :source = 'local' then occurred_at end as local_stop_at,
               case when action = 'suppress' and :source = 'kahuna' then occurred_at end as held_stop_at,
               case when action = 'clear' and :source = 'kahuna' then occurred_at end as held_clear_at,
               address_received, batch_id
        from fresh
    ),
"""

_COLUMNS: Final = """(address, channel, namespace, reason, stop_at, clear_at, bounces, local_stop_at, held_stop_at,
                     held_clear_at, address_received, origin, batch_id, recorded_at)
        select address, :channel, :namespace, reason, stop_at, clear_at, bounces, local_stop_at,
               held_stop_at, held_clear_at, address_received,
               case when coalesce(stop_at, clear_at) is not null then :origin end,
               batch_id,
               case when coalesce(stop_at, clear_at) is not null then :recorded_at end"""

_AT_ODDS: Final = "stop_at is distinct from held_stop_at or held_clear_at is not null or clear_at is not null"

# Last the causes: new rows, in the order of the keys, then those of rows that are locked by now. A row that turned up
# since the first were locked may be locked by somebody who waits for our facts: it is not waited for. It would be if it
# were changed already, whatever is to be done on a conflict: so nobody changes a row and waits for anything after that.
# The planner takes arrays for short and looks rows up in a hash, however many there are and however little memory.
_CHANGED: Final = f"""
    shown as materialized (
        select touched.*, (address, reason) in (
            select * from unnest(array(select address from locked), array(select reason from locked))
        ) as held from touched
    ),
    made as (
        insert into suppressions {_COLUMNS}
        from shown where not held order by address, reason
        on conflict do nothing
        returning address, {_AT_ODDS} as at_odds
    ),
    updated as (
        insert into suppressions as s {_COLUMNS}
        from shown where held and (select count(*) from made) >= 0
        on conflict (address, channel, namespace, reason) do update set
            stop_at = greatest(s.stop_at, excluded.stop_at),
            clear_at = greatest(s.clear_at, excluded.clear_at),
            bounces = {_kept("s.bounces || excluded.bounces", "greatest(s.clear_at, excluded.clear_at)")},
            local_stop_at = greatest(s.local_stop_at, excluded.local_stop_at),
            held_stop_at = greatest(s.held_stop_at, excluded.held_stop_at),
            held_clear_at = greatest(s.held_clear_at, excluded.held_clear_at),
            (address_received, origin, batch_id, recorded_at) = (
                select case when wins then excluded.address_received else s.address_received end,
                       case when wins then excluded.origin else s.origin end,
                       case when wins then excluded.batch_id else s.batch_id end,
                       case when wins then excluded.recorded_at else s.recorded_at end
                from (select coalesce(greatest(excluded.stop_at, excluded.clear_at), -1)
                             > coalesce(greatest(s.stop_at, s.clear_at), -1)
                          or (excluded.stop_at = s.clear_at and excluded.stop_at >= coalesce(excluded.clear_at, 0)
                              and s.clear_at > coalesce(s.stop_at, -1)) as wins) as duel)
        where greatest(s.stop_at, excluded.stop_at) is distinct from s.stop_at
           or greatest(s.clear_at, excluded.clear_at) is distinct from s.clear_at
           or greatest(s.local_stop_at, excluded.local_stop_at) is distinct from s.local_stop_at
           or greatest(s.held_stop_at, excluded.held_stop_at) is distinct from s.held_stop_at
           or greatest(s.held_clear_at, excluded.held_clear_at) is distinct from s.held_clear_at
           or excluded.bounces is not null
        returning address, {_AT_ODDS} as at_odds
    ),
    changed as (
        select address, at_odds, false as met from made union all select address, at_odds, true from updated
    ),
    -- An address of two reasons is fed twice: nobody minds, and to find those out costs more than all of them.
    fed as (
        insert into changes (namespace, channel, address, recorded_at)
        select :namespace, :channel, address, cast(:recorded_at as timestamptz) from changed
    )
"""  # noqa: S608 (built from our own words alone)

CROSSED: Final = "(select count(*) from shown where not held) > (select count(*) from made)"
"""Whether a row that was to be made turned up meanwhile: nothing of this may be committed."""


def merge(*, once: bool, locked: bool) -> str:
    """The parts for entries that `say_once` or not; `locked`: for whoever has locked all rows of their addresses. It
    holds more than what may be waited for here: a row that turned up since is taken if it is free."""
    touched = _TOUCHED_ONCE if once else _TOUCHED
    return _LOCKED.format(patience="skip locked" if locked else "") + _STORED + touched + _CHANGED


MERGE: Final = merge(once=False, locked=False)
MERGE_ONCE: Final = merge(once=True, locked=False)
"""From the rows `entry` to facts that are `fresh`, causes that are `changed` and what is fed of them, as further parts
of one statement: for any entries, and for those that `say_once`. What may be owed now is among the `AT_ODDS`; what is
`CROSSED` must be undone.

No two wait for each other, since everybody takes locks in one order, and each kind in the order of keys: rows that are
there, facts, new rows."""

AT_ODDS: Final = "changed where at_odds or met or :source = 'local'"
"""A slot that the two sides may see differently now, or about which there was more to know than what was said. Where
Kahuna holds an opt-in, the domain decides: at the second of a stop, it proves nothing."""
