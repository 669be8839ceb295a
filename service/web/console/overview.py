"""Owns the first page of the console: how everything stands, and how it came to that, at a glance."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

from markupsafe import Markup
from starlette.responses import Response

from service.domain.addresses import CHANNELS
from service.domain.drift import KINDS
from service.store import sampling, surges, trends
from service.store.trends import Came, Checked, Reasons, Trend
from service.web import figures
from service.web.console import plots
from service.web.console.plots import Series
from service.web.console.visiting import Action, Page, Visit
from service.web.contract import Asked, Call
from service.web.figures import ClockShown, Overview

WINDOWS: Final = {"day": ("24 hours", "hour", 24, "%H:%M"), "month": ("28 days", "day", 28, "%b %d")}
"""What may be looked back at: its name, its steps, how many of them, and how each is called."""

SURGES: Final = 3
"""Surges that are pointed at one by one."""

_LATER: Final = "Look again when there is less to do."


class Pointer(NamedTuple):
    """Something that a person should look at, and where."""

    says: str
    path: str
    grave: bool = False


class Plot(NamedTuple):
    """A picture over time, with its figures as a table: a row for each step."""

    name: str
    title: str
    svg: Markup
    axis: tuple[str, str, str]
    legend: list[str]
    rows: list[tuple[str, list[int]]]


class Row(NamedTuple):
    """A line of a table with a bar in it."""

    name: str
    parts: list[int]
    bar: Markup

    @property
    def total(self) -> int:
        """All of its parts."""
        return sum(self.parts)


async def overview(visit: Visit) -> Response:
    """The figures of a namespace, over a day or a month."""
    service, asked = visit.service, visit.request.query_params.get("window", "day")
    chosen = asked if asked in WINDOWS else "day"
    _, step, count, _ = WINDOWS[chosen]
    asked_for = Asked(namespace=visit.namespace)
    now = await figures.overview(Call(visit.request, service, visit.visitor.caller, asked_for, None))
    async with sampling.bounded(service.database, figures.OVERVIEW_SECONDS, _LATER) as connection:
        trend = await trends.trend(connection, visit.namespace, step, count, service.now)  # type: ignore[arg-type]
        reasons = await trends.reasons(connection, visit.namespace)
        drift = await trends.drift(connection, visit.namespace)
        flagged = await surges.newest(connection, visit.namespace, "flagged", None, SURGES + 1)
    return visit.page(
        "overview.html",
        title="Overview",
        now=now,
        pointers=pointers(now, flagged),
        windows=[(name, says, name == chosen) for name, (says, *_) in WINDOWS.items()],
        plots=plots_of(trend, WINDOWS[chosen][3]),
        estimated=trend.estimated or reasons.estimated or now.size.estimated,
        reasons=reason_rows(reasons),
        outbox=rows((state, [total]) for state, total in now.corrections.items()),
        clock=clock_rows(now.clock),
        drift=drift_rows(drift),
        checked=drift,
        kinds=[kind.replace("_", " ") for kind in KINDS],
        waiting=_waiting(now),
    )


def _waiting(now: Overview) -> list[tuple[str, int, str]]:
    """What waits for somebody: its name, how many, and where to see it."""
    return [
        ("In quarantine", now.quarantine, "/console/quarantine"),
        ("Opt-ins to review", now.reviews, "/console/reviews"),
        ("Batches not applied", now.unapplied_batches, "/console/batches"),
    ]


def pointers(now: Overview, flagged: Sequence[Any]) -> list[Pointer]:
    """What a person should look at, the gravest first."""
    desk, given_up = "/console/corrections", sum(now.corrections.get(state, 0) for state in ("dead", "rejected"))
    overdue = [f"Overdue at Kahuna: {one.overdue:,} {one.channel}" for one in now.clock if one.overdue]
    broken = [f"Nothing is sent of {c.channel}: {c.fix}" for c in now.circuits if c.state != "closed"]
    dead = [f"{given_up:,} correction{'s were' if given_up > 1 else ' was'} given up"] if given_up else []
    soon = [f"Due soon at Kahuna: {one.due_soon:,} {one.channel}" for one in now.clock if one.due_soon]
    unread = ["Kahuna's logs of before this deployment were not read: run kahuna-sync backfill"]
    return [
        *(Pointer(says, desk, grave=True) for says in (*overdue, *broken, *dead)),
        *(_surge(row._mapping) for row in flagged[:SURGES]),  # noqa: SLF001 (a row has a `count` of its own)
        *(Pointer("More surges wait", "/console/surges") for _ in flagged[SURGES:]),
        *(Pointer(says, desk) for says in soon),
        *(Pointer(f"{name}: {count:,}", path) for name, count, path in _waiting(now) if count),
        *(Pointer(says, "/console/health") for says in unread if now.backfilled_at is None),
    ]


def _surge(row: Mapping[str, Any]) -> Pointer:
    """A surge that waits, where it can be decided."""
    stops, reason = f"{row['count']:,} stops", row["reason"].replace("_", " ")
    of = f"of {row['key']} in a burst" if row["kind"] == "domain" else f"for {reason} within one minute"
    return Pointer(f"{stops} {of} were flagged: look at it", f"/console/surges/{row['id']}")


def plots_of(trend: Trend, form: str) -> list[Plot]:
    """Callbacks by channel, and what their entries came to."""
    by_channel = [Series(c, [trend.came.get((at, c), Came()).callbacks for at in trend.steps]) for c in CHANNELS]
    came = [[trend.came.get((at, channel), Came()) for channel in CHANNELS] for at in trend.steps]
    outcomes = [
        Series("new", [sum(one.facts for one in some) for some in came]),
        Series("known", [sum(one.duplicates for one in some) for some in came]),
        Series("to quarantine", [sum(one.rejected for one in some) for some in came]),
    ]
    labels = _labels(trend.steps, form)
    return [
        _plot("callbacks", "Callbacks", labels, by_channel),
        _plot("entries", "Entries of callbacks", labels, outcomes),
    ]


def _labels(steps: Iterable[datetime], form: str) -> list[str]:
    return [f"{step:{form}}" for step in steps]


def _plot(name: str, title: str, labels: list[str], series: list[Series]) -> Plot:
    drawn = plots.columns(name, title, labels, series)
    table = [(label, [one.values[at] for one in series]) for at, label in enumerate(labels)]
    return Plot(name, title, Markup(drawn.svg), drawn.axis, [one.name for one in series], table)  # noqa: S704 (escaped)


def rows(given: Iterable[tuple[str, list[int]]]) -> list[Row]:
    """Lines of a table with bars that can be compared."""
    listed = list(given)
    most = max((sum(parts) for _, parts in listed), default=0)
    return [Row(name, parts, Markup(plots.bar(parts, most))) for name, parts in listed]  # noqa: S704 (numbers)


def reason_rows(found: Reasons) -> list[Row]:
    """The causes by reason, the most frequent first, with a part for each channel."""
    names = {reason for _, reason in found.stops}
    parts = {name: [found.stops.get((channel, name), 0) for channel in CHANNELS] for name in names}
    return rows(sorted(parts.items(), key=lambda one: (-sum(one[1]), one[0])))


def clock_rows(clock: Iterable[ClockShown]) -> list[Row]:
    """The open stops of each channel: in time, due soon, overdue."""
    return rows((one.channel, [one.open - one.overdue - one.due_soon, one.due_soon, one.overdue]) for one in clock)


def drift_rows(drift: dict[Any, Checked]) -> list[Row]:
    """The open differences of each channel, with a part for each kind."""
    return rows((channel, [check.open.get(kind, 0) for kind in KINDS]) for channel, check in sorted(drift.items()))


PAGES: Final = (Page("/console", overview),)

ACTIONS: Final[tuple[Action, ...]] = ()
