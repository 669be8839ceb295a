"""Owns the report of a reconciliation: what is proved, what is pending, what Kahuna refused and why, and what its API
cannot say, with what to do by hand. As JSON and CSV it has every line; the page for people has the figures, and the
first lines of each kind that wants a look.

Whatever stands in it is escaped for its form. The page runs no script and fetches nothing.
"""

import csv
import io
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from typing import Annotated, Any, Final, Literal

import msgspec
from starlette.responses import Response, StreamingResponse

from service.domain.addresses import Channel
from service.domain.drift import Direction, Kind, direction_of
from service.domain.runs import LINE_STATES, RUN_STATES, UNSEEN, LineState, RunState, saw_all
from service.store import differences
from service.store.database import Database
from service.store.differences import Selection
from service.web.asking import told
from service.web.contract import Answer, Asked, Shown
from service.web.http import shown

PAGE: Final = 1000
"""Lines that are read at once."""

ON_THE_PAGE: Final = 200
"""Lines of each state that the page for people shows."""


class Report(Asked, frozen=True, kw_only=True):
    """In which form."""

    format: Annotated[
        Literal["json", "csv", "html"],
        msgspec.Meta(description="`json` and `csv` have every line, `html` is a page for people."),
    ] = "json"


class HeldShown(msgspec.Struct):
    """A guard that kept a plan from being carried out by itself: what it found, and from where on that is too much."""

    guard: str
    says: str
    found: float
    limit: float


class DecidingShown(msgspec.Struct):
    """A decision about so many lines that it is carried on part by part: `done` of `lines` are marked so far."""

    decision: LineState
    actor: str
    lines: int
    done: int


class RunShown(msgspec.Struct):
    """A reconciliation: what it compares, how far it is, and what it counted when it was planned."""

    id: uuid.UUID
    namespace: str
    channel: Channel
    source: str
    auto_approve: bool
    state: RunState
    actor: str
    created_at: datetime
    started_at: datetime | None
    planned_at: datetime | None
    approved_at: datetime | None
    finished_at: datetime | None
    closed_at: datetime | None
    compared: int | None
    counts: dict[str, Any]
    held_by: list[HeldShown] | None
    decided_by: str | None
    note: str | None
    outcome: dict[str, Any] | None
    error: str | None
    reverted_by: str | None
    revert_note: str | None
    deciding: DecidingShown | None


class GroupShown(msgspec.Struct):
    """Lines that are alike, with a few of their addresses."""

    direction: Direction
    kind: Kind
    slot: str
    reason: str | None
    action: str | None
    state: LineState
    why: str | None
    count: int
    samples: list[str]


class LineReported(msgspec.Struct):
    """A line with its proof: how its correction stands, and Kahuna's answer. `to_do` is what a person has to do."""

    address: str
    slot: str
    kind: Kind
    direction: Direction
    reason: str | None
    action: str | None
    occurred_at: Shown | None
    state: LineState
    why: str | None
    to_do: str | None
    correction_id: int | None
    correction_state: str | None
    correction_reason: str | None
    attempts: int | None
    request_id: str | None
    audit_id: uuid.UUID | None
    batch_id: uuid.UUID | None
    decided_by: str | None
    decided_at: datetime | None
    closed_at: datetime | None


class FigureShown(msgspec.Struct):
    """What became of so many lines, and what that means."""

    state: LineState
    lines: int
    says: str


class Reported(msgspec.Struct):
    """The report: the run, what became of its lines, those by what they are about, and each line."""

    run: RunShown
    figures: list[FigureShown]
    groups: list[GroupShown]
    lines: list[LineReported]


TO_DO: Final[Mapping[str, str]] = {
    "no-words-for-it": "Kahuna's API cannot end an e-mail stop: have Kahuna's Customer Success end it.",
    "taken-back": "Kahuna holds a stop that we told it and took back since: have Kahuna's Customer Success end it.",
    "seen-otherwise": "Kahuna's profile says otherwise than we do: ask Kahuna, then tell the stop or consent here.",
    "refused-by-kahuna": "Kahuna refused this entry and may go on messaging: ask Kahuna why, with the request id.",
    "bad-request": "Kahuna cannot read this entry and may go on messaging: ask Kahuna why, with the request id.",
    "changed-meanwhile": "What is needed is another thing by now: the next reconciliation proposes it, if it still is.",
    "dead": "It was given up: mend what its reason names, then ask for another reconciliation.",
}
"""What a person has to do, by why nothing else is done."""


Form = Literal["json", "csv", "html"]


def parts(database: Database, row: Any, form: Form) -> AsyncIterator[bytes]:
    """The report of a run, read while it is written."""
    return {"json": _as_json, "csv": _as_csv, "html": _as_page}[form](database, row)


def answer(database: Database, row: Any, form: Form) -> Response:
    """The report of a run in HTTP words."""
    name = f'filename="reconciliation-{row.id}.{form}"'
    headers = {
        "Content-Disposition": f"{'inline' if form == 'html' else 'attachment'}; {name}",
        "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-store",
    }
    return StreamingResponse(parts(database, row, form), media_type=_TYPES[form], headers=headers)


_TYPES: Final = {"json": "application/json", "csv": "text/csv; charset=utf-8", "html": "text/html; charset=utf-8"}


async def groups_of(database: Database, run_id: uuid.UUID) -> list[GroupShown]:
    """The lines of a run by what they are about, as they stand now."""
    async with database.read() as connection:
        groups = await differences.groups(connection, run_id)
    return [told(GroupShown, group, count=group.lines, direction=direction_of(group.kind)) for group in groups]


def figures_of(groups: Sequence[GroupShown]) -> list[FigureShown]:
    """How many lines are in each state, those first that want a look. `moot` ones stand apart: they prove nothing."""
    counts = Counter[LineState]()
    for group in groups:
        counts[group.state] += group.count
    return [FigureShown(state, counts[state], LINE_STATES[state]) for state, _ in _SECTIONS if counts[state]]


def nothing_found(row: Any) -> str:
    """What a run without a line says."""
    if row.planned_at is None:
        return "There is no plan: nothing is known of the differences."
    if row.counts.get("lines_dropped"):
        return "Its lines were dropped: newer runs have taken the place of this one."
    if not saw_all(row.counts):
        return "No difference was found, but Kahuna did not answer all that it was to be asked."
    return "Both sides agree: 0 differences."


async def _pages(database: Database, run_id: uuid.UUID) -> AsyncIterator[list[LineReported]]:
    """Every line, some at a time: whoever reads slowly holds nothing up."""
    after = ("", "")
    while True:
        rows = await _some(database, run_id, Selection(), after, PAGE)
        if rows:
            yield [_line(row) for row in rows]
        if len(rows) < PAGE:
            return
        after = (rows[-1].address, rows[-1].slot)


async def _some(
    database: Database, run_id: uuid.UUID, chosen: Selection, after: tuple[str, str], limit: int
) -> Sequence[Any]:
    async with database.read() as connection:
        return await differences.page(connection, run_id, chosen, after, limit)


def _line(row: Any) -> LineReported:
    more = {
        "direction": direction_of(row.kind),
        "occurred_at": shown(row.occurred_at),
        "to_do": _to_do(row),
        "correction_state": row.sent_state,
        "correction_reason": row.sent_reason,
        "request_id": (row.sent_evidence or {}).get("request_id"),
    }
    return told(LineReported, row, **more)


def _to_do(row: Any) -> str | None:
    if row.state in ("refused", "unsupported"):
        return TO_DO.get(row.why or "", TO_DO["refused-by-kahuna"])
    if row.state == "moot":
        return TO_DO.get(row.why or "")
    return TO_DO["dead"] if row.state in ("applied", "on_its_way") and row.sent_state == "dead" else None


# JSON.


async def _as_json(database: Database, row: Any) -> AsyncIterator[bytes]:
    groups = await groups_of(database, row.id)
    head = {"run": told(RunShown, row), "figures": figures_of(groups), "groups": groups}
    yield msgspec.json.encode(head)[:-1] + b',"lines":['
    between = b""
    async for lines in _pages(database, row.id):
        yield between + b",".join(map(msgspec.json.encode, lines))
        between = b","
    yield b"]}"


# CSV.

_COLUMNS: Final = [field.name for field in msgspec.structs.fields(LineReported)]


async def _as_csv(database: Database, row: Any) -> AsyncIterator[bytes]:
    yield _csv([_COLUMNS])
    async for lines in _pages(database, row.id):
        yield _csv([_cell(getattr(line, name)) for name in _COLUMNS] for line in lines)


def _csv(rows: Iterable[Sequence[str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


_GUARDED: Final = frozenset("=+-@\t\r'")


def _cell(value: Any) -> str:
    """A value as a spreadsheet shows it: before one that it would take for a formula stands an apostrophe, and before
    one that begins with an apostrophe another, so that whoever drops the first has the value. Times are as in JSON."""
    text = "" if value is None else _moment(value) if isinstance(value, datetime) else str(value)
    return f"'{text}" if text[:1] in _GUARDED else text


def _moment(at: datetime) -> str:
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z")


# The page.

_STYLE: Final = (
    "body{font:16px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem;color:#1b1b1b}"
    "table{border-collapse:collapse;width:100%;margin:.5rem 0 1.5rem}th,td{border-bottom:1px solid #ccc;padding:.3rem "
    ".6rem;text-align:left;vertical-align:top;overflow-wrap:anywhere}td.n{text-align:right}caption{text-align:left}"
    ".note{background:#fff4d6;padding:.5rem 1rem}"
)

_SECTIONS: Final[Sequence[tuple[LineState, str]]] = (
    ("refused", "Refused by Kahuna"),
    ("unsupported", "What Kahuna's API cannot say"),
    ("applied", "Sent or about to be sent, without proof yet"),
    ("on_its_way", "On its way already when the plan was made"),
    ("proposed", "Waits for a decision"),
    ("approved", "Approved, about to be carried out"),
    ("proved", "Proved"),
    ("moot", "No longer so when it was to be carried out"),
    ("declined", "Declined"),
    ("reverted", "Taken back"),
)


async def _as_page(database: Database, row: Any) -> AsyncIterator[bytes]:
    title = f"Reconciliation of {row.namespace}, {row.channel}"
    yield (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head><body><h1>{escape(title)}</h1>"
        f"<p>The run is <strong>{escape(row.state)}</strong>: {escape(RUN_STATES[row.state])}.</p>"
    ).encode()
    yield _facts(row).encode()
    groups = await groups_of(database, row.id)
    yield _figures(row, groups).encode()
    for state, heading in _SECTIONS:
        count = sum(group.count for group in groups if group.state == state)
        if count:
            rows = await _some(database, row.id, Selection(state=state), ("", ""), ON_THE_PAGE)
            yield _section(heading, state, count, [_line(one) for one in rows]).encode()
    yield b"</body></html>"


def _facts(row: Any) -> str:
    """Who, when, and what a guard had to say."""
    known = {
        "Run": row.id,
        "Compared with": row.source,
        "Asked for by": row.actor,
        "Begun": row.started_at,
        "Planned": row.planned_at,
        "Decided by": row.decided_by,
        "Note": row.note,
        "Taken back by": row.reverted_by,
        "Note of that": row.revert_note,
        "Closed": row.closed_at,
        "Rows compared": row.compared,
        "Error": row.error,
    }
    cells = [(name, value) for name, value in known.items() if value is not None]
    cells += [(name.replace("_", " "), row.counts[name]) for name in (*UNSEEN, "lines_dropped") if row.counts.get(name)]
    cells += [(name.replace("_", " "), count) for name, count in (row.outcome or {}).items()]
    table = _table((), cells)
    held = "".join(
        f'<p class="note">It waits for a person: {escape(one["says"])} ({one["found"]:g}; limit {one["limit"]:g}).</p>'
        for one in row.held_by or []
    )
    return table + held


def _figures(row: Any, groups: Sequence[GroupShown]) -> str:
    if not groups:
        return f"<p>{escape(nothing_found(row))}</p>"
    became = _table(("state", "lines", "that is"), [(one.state, one.lines, one.says) for one in figures_of(groups)])
    rows = [
        (group.direction, group.kind, group.slot, group.reason, group.action, group.state, group.why, group.count)
        for group in groups
    ]
    heads = ("mended", "kind", "slot", "reason", "action", "state", "why", "lines")
    return f"<h2>What became of the lines</h2>{became}<h2>By reason and direction</h2>{_table(heads, rows)}"


def _section(heading: str, state: LineState, count: int, lines: Sequence[LineReported]) -> str:
    heads = ("address", "slot", "action", "as of", "why", "to do", "request id")
    rows = [(one.address, one.slot, one.action, one.occurred_at, _why(one), one.to_do, one.request_id) for one in lines]
    more = f"<p>These are the first {len(lines)}; the CSV has all.</p>" if count > len(lines) else ""
    return (
        f"<h2>{escape(heading)}: {count}</h2><p>Of each: {escape(LINE_STATES[state])}.</p>{_table(heads, rows)}{more}"
    )


def _why(line: LineReported) -> str | None:
    return line.correction_reason or line.why


def _table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    head = "".join(f"<th>{escape(one)}</th>" for one in heads)
    body = "".join(f"<tr>{''.join(map(_shown_cell, row))}</tr>" for row in rows)
    return f"<table>{f'<tr>{head}</tr>' if head else ''}{body}</table>"


def _shown_cell(value: Any) -> str:
    if isinstance(value, int):
        return f'<td class="n">{value:,}</td>'
    text = "" if value is None else f"{value:%Y-%m-%d %H:%M:%S} UTC" if isinstance(value, datetime) else str(value)
    return f"<td>{escape(text)}</td>"


_EXAMPLE: Final = {
    "run": {
        "id": "0b6e7b5c-4f0e-4d0a-9d6a-1f2e3d4c5b6a",
        "namespace": "default",
        "channel": "email",
        "source": "ledger",
        "auto_approve": False,
        "state": "proved",
        "actor": "support",
        "created_at": "2026-01-31T12:00:00Z",
        "started_at": "2026-01-31T12:00:01Z",
        "planned_at": "2026-01-31T12:00:05Z",
        "approved_at": "2026-01-31T12:03:00Z",
        "finished_at": "2026-01-31T12:03:09Z",
        "closed_at": "2026-01-31T12:03:09Z",
        "compared": 120000,
        "counts": {"differences": 1, "missing_there": 1, "proposed": 1},
        "held_by": None,
        "decided_by": "support",
        "note": None,
        "outcome": None,
        "error": None,
        "reverted_by": None,
        "revert_note": None,
        "deciding": None,
    },
    "figures": [{"state": "proved", "lines": 1, "says": "Kahuna accepted it, or a later check shows it"}],
    "groups": [
        {
            "direction": "there",
            "kind": "missing_there",
            "slot": "unsubscribe",
            "reason": "manual",
            "action": "suppress",
            "state": "proved",
            "why": "accepted",
            "count": 1,
            "samples": ["ann@example.com"],
        }
    ],
    "lines": [
        {
            "address": "ann@example.com",
            "slot": "unsubscribe",
            "kind": "missing_there",
            "direction": "there",
            "reason": "manual",
            "action": "suppress",
            "occurred_at": "2026-01-31T12:00:00Z",
            "state": "proved",
            "why": "accepted",
            "to_do": None,
            "correction_id": 7,
            "correction_state": "sent",
            "correction_reason": None,
            "attempts": 1,
            "request_id": "6f1d0a52c1a34a7f8a55f3c4b1f0a111",
            "audit_id": None,
            "batch_id": None,
            "decided_by": "support",
            "decided_at": "2026-01-31T12:03:00Z",
            "closed_at": "2026-01-31T12:03:09Z",
        }
    ],
}

_HEADERS: Final = {
    "Content-Disposition": "With a file name.",
    "Content-Security-Policy": "The page runs no script and fetches nothing.",
    "X-Content-Type-Options": "`nosniff`.",
    "Cache-Control": "`no-store`.",
}

REPORT: Final = [
    Answer(200, Reported, "Every line, with its proof.", _EXAMPLE, headers=_HEADERS),
    Answer(200, str, "The lines, under one with their names.", media_type="text/csv", headers=_HEADERS),
    Answer(200, str, "A page for people.", media_type="text/html", headers=_HEADERS),
]
"""What a report may look like."""
