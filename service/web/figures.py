"""Owns what operators watch: the overview, the clock of stops that are not honoured everywhere yet, and how well
Kahuna's callbacks come."""

import asyncio
import csv
import io
from datetime import datetime, timedelta
from typing import Annotated, Any, Final, Literal

import msgspec
from starlette.responses import Response

from service.domain.addresses import CHANNELS, Channel
from service.domain.deadlines import Calendar, Urgency, due_at, due_by, urgency
from service.errors import Unprocessable
from service.flows.shelter import Shelter
from service.store import circuits, deadlines, figures, outbox, pulls, quality, sampling, spool
from service.store.deadlines import Counted, Place
from service.store.figures import Received, Size
from service.store.quality import Report, Week, Window
from service.web.asking import Walk, cursor_for, in_utc, place_at, told
from service.web.contract import Answer, AnyOperation, Asked, Call, MomentOrDay, Operation, Shown
from service.web.corrections import CircuitShown, circuit_told
from service.web.http import answer, shown
from service.web.listing import Reason

OVERVIEW_SECONDS: Final = 5
QUALITY_SECONDS: Final = 20
"""Seconds that one question of these may take of the database."""

MOST_DAYS: Final = 92
"""Days of one report on quality."""

_FEWER: Final = "Ask about fewer days, or when there is less to do."
_LATER: Final = "Ask again when there is less to do."


class Clocked(Walk, frozen=True, kw_only=True):
    """Which stops."""

    state: Annotated[
        Literal["overdue", "due_soon", "open"],
        msgspec.Meta(description="Due by now, due soon (STOP_DUE_SOON_DAYS), or all that are open."),
    ] = "overdue"
    channel: Annotated[Channel | None, msgspec.Meta(description="Of this channel only.")] = None
    slot: Annotated[Reason | None, msgspec.Meta(description="Of this slot of Kahuna's, by our reason for it.")] = None
    correction: Annotated[
        Literal["pending", "sending", "dead", "rejected"] | None,
        msgspec.Meta(description="Stops whose correction is in this state."),
    ] = None


class Qualified(Asked, frozen=True, kw_only=True):
    """Which callbacks, and in which form."""

    since: Annotated[
        MomentOrDay | None, msgspec.Meta(description="Received at this moment or later (default: 28 days before).")
    ] = None
    until: Annotated[MomentOrDay | None, msgspec.Meta(description="Received before this moment (default: now).")] = None
    format: Annotated[Literal["json", "csv"], msgspec.Meta(description="The form of the answer.")] = "json"


class StopShown(msgspec.Struct):
    """A stop that Kahuna does not hold, as far as is proved. It is closed by Kahuna's acceptance or its own word, by
    being cleared, or by a person who discards the correction with a reason."""

    correction_id: int
    channel: Channel
    address: str
    slot: str
    stopped_at: Shown
    due_at: Shown
    urgency: Urgency
    correction: str
    attempts: int
    reason: str | None


class StopsShown(msgspec.Struct):
    """Stops, the oldest first; `next` is the cursor of the page after, null if there is none."""

    stops: list[StopShown]
    next: str | None


class ClockShown(msgspec.Struct):
    """The stops of a channel that Kahuna does not hold: how many are due by now, how many will be soon, and all; when
    the oldest happened, and when it is due."""

    channel: Channel
    overdue: int
    due_soon: int
    open: int
    oldest_stopped_at: Shown | None
    oldest_due_at: Shown | None


class ReceivedShown(msgspec.Struct):
    """What callbacks brought: `facts` are new, `rejected` are entries in quarantine. A body that is delivered again is
    counted once."""

    callbacks: int
    facts: int
    rejected: int


class ReceivedOfLate(msgspec.Struct):
    """The last 24 hours and the last seven days. `estimated`: only a share of the archive was counted."""

    day: ReceivedShown
    week: ReceivedShown
    estimated: bool


class SizeShown(msgspec.Struct):
    """The causes of a channel, and those among them that were not cleared."""

    channel: Channel
    causes: int
    stops: int


class ListSize(msgspec.Struct):
    """How long the list is. `estimated`: only a share of it was counted."""

    channels: list[SizeShown]
    estimated: bool


class SpoolShown(msgspec.Struct):
    """The spool of the process that answers: what waits in it, and since when; what was set aside."""

    files: int
    bytes: int
    oldest_at: Shown | None
    set_aside: int


class Overview(msgspec.Struct, kw_only=True):
    """How everything stands at a moment. `backfilled_at` is null until the backfill is done: opt-outs from before this
    deployment may be missing. `corrections` counts by their state those that are not settled. `spool` is null where
    there is none, or it cannot be read."""

    namespace: str
    at: datetime
    backfilled_at: datetime | None
    received: ReceivedOfLate
    size: ListSize
    corrections: dict[str, int]
    clock: list[ClockShown]
    circuits: list[CircuitShown]
    quarantine: int
    reviews: int
    unapplied_batches: int
    spool: SpoolShown | None


class WeekShown(msgspec.Struct, kw_only=True):
    """The callbacks of one channel in the week that begins with this Monday (UTC). Shares are of all entries;
    `out_of_order_share` and `delay_seconds` (between an occurrence and when we had it) are of the `facts` that were
    looked at. `missing_days` are whole days without a callback."""

    week: str
    channel: Channel
    callbacks: int
    entries: int
    duplicates: int
    duplicate_share: float
    malformed: int
    malformed_share: float
    facts: int
    out_of_order: int
    out_of_order_share: float
    delay_seconds: dict[str, float]
    missing_days: list[str]


class QualityShown(msgspec.Struct):
    """How Kahuna's callbacks came, week by week. `estimated`: the tables are large, and only a share was counted."""

    namespace: str
    since: datetime
    until: datetime
    estimated: bool
    weeks: list[WeekShown]


async def clock(call: Call[Clocked, None]) -> StopsShown:
    """The stops that are not proved on both sides yet, by when they are due.

    Each stop is due some business days after it happened (STOP_DUE_BUSINESS_DAYS), and open until Kahuna holds it, too:
    it told us, or it accepted our correction. One whose correction is dead or was refused stays open until a person
    settles it.
    """
    query, service = call.query, call.service
    now, calendar = int(service.now.timestamp()), service.calendar
    after = place_at(query.cursor, tuple[_Second, _Number])
    asked = deadlines.Asked(call.namespace, *between(query.state, now, calendar), query.channel, query.slot)
    async with service.database.read() as connection:
        rows = await deadlines.listed(
            connection, asked._replace(state=query.correction), Place(*after) if after else None, query.limit
        )
    further = cursor_for(rows[-1].stopped_at, rows[-1].id) if len(rows) == query.limit else None
    return StopsShown([_stop(row, now, calendar) for row in rows], further)


_Second = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
_Number = Annotated[int, msgspec.Meta(ge=1, le=10**17)]


def between(state: str, now: int, calendar: Calendar) -> tuple[int, int]:
    """The times of the stops in this state: after the first, up to the second."""
    overdue = due_by(now, calendar)
    if state == "overdue":
        return -1, overdue
    return (overdue, due_by(now + calendar.soon, calendar)) if state == "due_soon" else (-1, 2**62)


async def counted(connection: Any, now: int, calendar: Calendar, namespace: str | None = None) -> list[Counted]:
    """The figures of the clock, where there are any."""
    overdue, soon = due_by(now, calendar), due_by(now + calendar.soon, calendar)
    return await deadlines.counted(connection, overdue, soon, namespace)


async def overview(call: Call[Asked, None]) -> Overview:
    """The figures of a namespace at a glance.

    Callbacks and the length of the list are estimated where their tables are large; all others are exact.
    """
    service, namespace = call.service, call.namespace
    now, calendar = service.now, service.calendar
    stock = None if service.shelter is None else await _stock(service.shelter)
    async with sampling.bounded(service.database, OVERVIEW_SECONDS, _LATER) as connection:
        late = await figures.traffic(connection, namespace, now)
        sizes, estimated = await figures.sizes(connection, namespace)
        waiting = await figures.waiting(connection, namespace)
        depth = await outbox.depth(connection)
        clocks = {one.channel: one for one in await counted(connection, int(now.timestamp()), calendar, namespace)}
        broken = await circuits.all_open(connection)
        backfilled_at = await pulls.backfilled(connection, namespace)
    return Overview(
        namespace=namespace,
        at=now,
        backfilled_at=backfilled_at,
        received=ReceivedOfLate(_received(late.day), _received(late.week), late.estimated),
        size=ListSize([SizeShown(channel, *sizes.get(channel, Size(0, 0))) for channel in CHANNELS], estimated),
        corrections={state: depth.get((namespace, state), 0) for state in outbox.UNSETTLED},
        clock=[clock_told(channel, clocks.get(channel), calendar) for channel in CHANNELS],
        circuits=[circuit_told(namespace, one, broken.get((namespace, one)), now) for one in CHANNELS],
        quarantine=waiting.quarantine,
        reviews=waiting.reviews,
        unapplied_batches=waiting.unapplied,
        spool=stock,
    )


async def callback_quality(call: Call[Qualified, None]) -> Response:
    """How well Kahuna's callbacks come: the facts for a support ticket.

    Repeated entries, entries that make no sense, what comes after something newer of the same address, how long after
    the occurrence, and days without any callback. At most 32 MiB are read of each table and 20 seconds are taken for
    each question, however long the list is: beyond that the counts are estimates from a share of it.
    """
    service, query = call.service, call.query
    now = service.now
    until = in_utc(query.until, "until") or now
    since = in_utc(query.since, "since") or until - timedelta(days=28)
    window = window_of(call.namespace, since, until)
    async with sampling.bounded(service.database, QUALITY_SECONDS, _FEWER) as connection:
        found = await quality.report(connection, window, now)
    if query.format == "csv":
        return Response(as_csv(found), media_type="text/csv")
    weeks = [week_told(week) for week in found.weeks]
    return answer(QualityShown(window.namespace, since, until, found.estimated, weeks))


def window_of(namespace: str, since: datetime, until: datetime) -> Window:
    """The time of a report, if one can be made of it."""
    if not since < until or until - since > timedelta(days=MOST_DAYS):
        raise Unprocessable(f"since must come before until, and at most {MOST_DAYS} days.", "impossible-window")
    return Window(namespace, since, until)


def week_told(week: Week) -> WeekShown:
    """A week of the report."""
    names = ("p50", "p95", "p99", "max")
    return WeekShown(
        week=week.week.isoformat(),
        channel=week.channel,
        callbacks=week.callbacks,
        entries=week.entries,
        duplicates=week.duplicates,
        duplicate_share=_share(week.duplicates, week.entries),
        malformed=week.rejected,
        malformed_share=_share(week.rejected, week.entries),
        facts=week.facts,
        out_of_order=week.late,
        out_of_order_share=_share(week.late, week.facts),
        delay_seconds={name: round(delay, 3) for name, delay in zip(names, week.delays, strict=False)},
        missing_days=[day.isoformat() for day in week.missing],
    )


def as_csv(found: Report) -> str:
    """The weeks as rows; days that are missing are joined by spaces."""
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    plain = [one.name for one in msgspec.structs.fields(WeekShown) if one.name not in ("delay_seconds", "missing_days")]
    delays = ("p50", "p95", "p99", "max")
    writer.writerow([*plain, *(f"delay_{name}_seconds" for name in delays), "missing_days", "estimated"])
    for week in map(week_told, found.weeks):
        cells = [getattr(week, name) for name in plain] + [week.delay_seconds.get(name, "") for name in delays]
        writer.writerow([*cells, " ".join(week.missing_days), str(found.estimated).lower()])
    return written.getvalue()


def clock_told(channel: Channel, found: Counted | None, calendar: Calendar) -> ClockShown:
    """The clock of a channel, in figures."""
    if found is None:
        return ClockShown(channel, 0, 0, 0, None, None)
    due = shown(due_at(found.oldest, calendar))
    return ClockShown(channel, found.overdue, found.due_soon, found.open, shown(found.oldest), due)


def _stop(row: Any, now: int, calendar: Calendar) -> StopShown:
    return told(
        StopShown,
        row,
        correction_id=row.id,
        correction=row.state,
        stopped_at=shown(row.stopped_at),
        due_at=shown(due_at(row.stopped_at, calendar)),
        urgency=urgency(row.stopped_at, now, calendar),
    )


def _received(one: Received) -> ReceivedShown:
    return ReceivedShown(*one)


def _share(part: int, whole: int) -> float:
    return round(part / whole, 6) if whole else 0.0


async def _stock(shelter: Shelter) -> SpoolShown | None:
    """What is in the spool; None if its folder cannot be read, which `/readyz` tells."""
    try:
        stock = await asyncio.to_thread(shelter.spool.look)
    except OSError:
        return None
    oldest = shown(int(spool.received_at_of(stock.batches[0]))) if stock.batches else None
    return SpoolShown(len(stock.batches), stock.size, oldest, stock.aside + len(stock.strangers))


_STOP: Final = {
    "correction_id": 17,
    "channel": "email",
    "address": "ann@example.com",
    "slot": "unsubscribe",
    "stopped_at": "2026-01-31T12:00:00Z",
    "due_at": "2026-02-14T00:00:00Z",
    "urgency": "overdue",
    "correction": "dead",
    "attempts": 1,
    "reason": "bad-request",
}

_CLOCK: Final = {
    "channel": "email",
    "overdue": 1,
    "due_soon": 0,
    "open": 1,
    "oldest_stopped_at": "2026-01-31T12:00:00Z",
    "oldest_due_at": "2026-02-14T00:00:00Z",
}

_RECEIVED: Final = {"callbacks": 12, "facts": 30, "rejected": 1}

_OVERVIEW: Final = {
    "namespace": "default",
    "backfilled_at": "2026-01-02T03:00:00Z",
    "at": "2026-02-16T12:00:00Z",
    "received": {"day": _RECEIVED, "week": _RECEIVED, "estimated": False},
    "size": {"channels": [{"channel": "email", "causes": 120, "stops": 100}], "estimated": False},
    "corrections": {"pending": 0, "sending": 0, "dead": 1, "rejected": 0, "unsupported": 0},
    "clock": [_CLOCK],
    "circuits": [
        {
            "namespace": "default",
            "channel": "email",
            "state": "closed",
            "reason": None,
            "since": None,
            "next_probe_at": None,
            "fix": None,
        }
    ],
    "quarantine": 1,
    "reviews": 0,
    "unapplied_batches": 0,
    "spool": {"files": 0, "bytes": 0, "oldest_at": None, "set_aside": 0},
}

_QUALITY: Final = {
    "namespace": "default",
    "since": "2026-01-26T00:00:00Z",
    "until": "2026-02-02T00:00:00Z",
    "estimated": False,
    "weeks": [
        {
            "week": "2026-01-26",
            "channel": "email",
            "callbacks": 12,
            "entries": 40,
            "duplicates": 8,
            "duplicate_share": 0.2,
            "malformed": 2,
            "malformed_share": 0.05,
            "facts": 30,
            "out_of_order": 3,
            "out_of_order_share": 0.1,
            "delay_seconds": {"p50": 2.1, "p95": 60.5, "p99": 610.0, "max": 86400.0},
            "missing_days": ["2026-01-29"],
        }
    ],
}

OPERATIONS: Final[list[AnyOperation]] = [
    Operation(
        "GET",
        "/v1/admin/overview",
        overview,
        scope="admin",
        query=Asked,
        answers=[Answer(200, Overview, "The figures.", _OVERVIEW)],
    ),
    Operation(
        "GET",
        "/v1/admin/clock",
        clock,
        scope="admin",
        query=Clocked,
        answers=[Answer(200, StopsShown, "A page of them.", {"stops": [_STOP], "next": None})],
        problems=["invalid-cursor"],
    ),
    Operation(
        "GET",
        "/v1/admin/quality",
        callback_quality,
        scope="admin",
        query=Qualified,
        answers=[
            Answer(200, QualityShown, "The report.", _QUALITY),
            Answer(200, str, "The same as a table.", media_type="text/csv"),
        ],
        problems=["impossible-window"],
    ),
]
