"""Owns the whole list as text: one row for each cause, written by the server itself and handed on as it comes.

A million rows are too many to be made here one by one, so the verdict of a cause stands a second time in this module,
in SQL; a test holds it against `domain.suppression`. Every text is exactly what is stored: nothing is put before a cell
that a spreadsheet would take for a formula, since then the import could not tell it from a part of the address.
"""

from collections.abc import Callable, Coroutine
from typing import Any, Final, Literal, NamedTuple

from sqlalchemy import text

from service.domain.addresses import Channel
from service.domain.suppression import Policy
from service.store.database import Connection, copy_out, plan_anew, settle

Format = Literal["csv", "ndjson"]

COLUMNS: Final = (
    "namespace",
    "channel",
    "address",
    "reason",
    "active",
    "occurred_at",
    "until",
    "origin",
    "recorded_at",
    "address_received",
)

_SPELT: Final = text("select set_config('timezone', 'UTC', true), set_config('datestyle', 'ISO', true)")
"""How the server writes times, whatever the role, the database or the server has it do otherwise."""

TABLE: Final = "suppressions"
"""What a snapshot of an export must keep from being dropped."""


class Key(NamedTuple):
    """A cause in the order of the keys."""

    address: str
    channel: Channel
    reason: str


class Wanted(NamedTuple):
    """Which causes, as of which second. `ordered`: in the order of the keys; `begin`: from this one on, itself
    included, since the last row that somebody has may be one of several."""

    namespace: str
    at: int
    channel: Channel | None = None
    reason: str | None = None
    active: bool | None = None
    ordered: bool = False
    begin: Key | None = None


def _given(name: str) -> str:
    # As a query of its own it is looked up once, and not for each row.
    return f"(select current_setting('kahuna_sync.{name}'))"


def _moment(timestamp: str) -> str:
    """A timestamp as RFC 3339 without its Z, in a session that is `_SPELT`: to name the zone costs as much again for
    each, and `to_char` twice that."""
    return f"replace(cast(cast({timestamp} as timestamp) as text), ' ', 'T')"


_OCCURRED: Final = _moment("to_timestamp(at)")
_UNTIL: Final = _moment("to_timestamp(until)")
_RECORDED: Final = _moment("recorded_at")

_CSV: Final = f"""namespace, channel, address, reason, case when active then 'true' else 'false' end as active,
    {_OCCURRED} || 'Z' as occurred_at, {_UNTIL} || 'Z' as until, origin, {_RECORDED} || 'Z' as recorded_at,
    address_received"""

# A normal form has no control character, so these two are all that JSON would escape; as received, it may have any.
_ESCAPED: Final = r"""replace(replace(address, '\', '\\'), '"', '\"')"""

# Each part costs a call, so constant text goes along with what stands beside it.
_NDJSON_PARTS: Final = (
    f"""(select concat('{{"namespace":', to_json({_given("namespace")}), ',"channel":"')), channel""",
    f"""'","address":"', {_ESCAPED}, '","reason":"', reason""",
    """case when active then '","active":true,"occurred_at":"' else '","active":false,"occurred_at":"' end""",
    f"""{_OCCURRED}, coalesce('Z","until":"' || {_UNTIL} || 'Z","origin":', 'Z","until":null,"origin":')""",
    """coalesce('"' || origin || '","recorded_at":', 'null,"recorded_at":')""",
    f"""coalesce('"' || {_RECORDED} || 'Z"', 'null'), ',"address_received":', to_json(address_received), '}}'""",
)
_NDJSON: Final = f"concat({', '.join(_NDJSON_PARTS)})"


def _causes(policy: Policy, where: str) -> str:
    """The causes as they stand at a second: until when, and whether in force.

    A soft bounce is a row for each time that still counts, so that none is lost on the way back. What was cleared ends
    at the very second of its clear. Most causes are none, and to unfold only those that are is a fifth of all.
    """
    enough = f"bounces[place + {policy.soft_bounce_count - 1}]"
    soft = f"""(select max({enough}) + {policy.soft_bounce_lifetime} from generate_subscripts(bounces, 1) as place
                where {enough} - bounces[place] <= {policy.soft_bounce_window})"""  # noqa: S608 (our own words, numbers)
    hard = "null" if policy.hard_bounce_lifetime is None else f"stop_at + {policy.hard_bounce_lifetime}"
    stopped = "stop_at is not null and (clear_at is null or stop_at >= clear_at)"
    bounced = "reason = 'soft_bounce' and coalesce(cardinality(bounces), 0) > 0"
    now = f"(select cast({_given('at')} as bigint))"
    told = """namespace, channel, address, reason, origin, recorded_at,
              coalesce(address_received, address) as address_received"""
    known = f"suppressions where namespace = {_given('namespace')} and coalesce(stop_at, clear_at) is not null{where}"
    return f"""
        select {told}, greatest(stop_at, clear_at) as at, until,
               {stopped} and reason <> 'soft_bounce' and (until is null or until > {now}) as active
        from (
            select *, case when not ({stopped}) then clear_at when reason = 'hard_bounce' then {hard} end as until
            from {known} and not ({bounced})
        ) as cause
        union all
        select {told}, at, until, coalesce(until > {now}, false) as active
        from (select *, unnest(bounces) as at, {soft} as until from {known} and {bounced}) as bounce
        """  # noqa: S608 (our own words and numbers; what is given is read by current_setting)


async def stream(
    connection: Connection,
    wanted: Wanted,
    policy: Policy,
    form: Format,
    sink: Callable[[bytes], Coroutine[Any, Any, None]],
) -> None:
    """Hands on all rows, as of the snapshot that the connection is in; the first line of a CSV names the columns. Lines
    end in a line feed."""
    begin = wanted.begin or Key("", "email", "")
    await settle(
        connection,
        namespace=wanted.namespace,
        at=str(wanted.at),
        channel=wanted.channel or "",
        reason=wanted.reason or "",
        address=begin.address,
        begin_channel=begin.channel,
        begin_reason=begin.reason,
    )
    await plan_anew(connection)
    await connection.execute(_SPELT)
    if form == "csv":
        await sink(",".join(COLUMNS).encode() + b"\n")
    await copy_out(connection, _query(wanted, policy, form), sink, as_csv=form == "csv")


def _query(wanted: Wanted, policy: Policy, form: Format) -> str:
    filters = [f" and {name} = {_given(name)}" for name in ("channel", "reason") if getattr(wanted, name) is not None]
    if wanted.begin is not None:
        key = ", ".join(_given(name) for name in ("address", "begin_channel", "begin_reason"))
        filters.append(f" and (address, channel, reason) >= ({key})")
    chosen = "" if wanted.active is None else f" where {'' if wanted.active else 'not '}active"
    order = " order by address, channel, reason, at" if wanted.ordered or wanted.begin else ""
    # The fence keeps the server from working everything out once for each place where it stands.
    causes = f"select * from ({_causes(policy, ''.join(filters))}) as standing{chosen} offset 0"  # noqa: S608
    return f"select {_CSV if form == 'csv' else _NDJSON} from ({causes}) as shown{order}"  # noqa: S608
