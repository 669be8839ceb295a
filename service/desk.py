"""Owns the operator's desk in the shell: corrections, circuits, the clock of open stops, and how well callbacks come.

The same questions and decisions as under `/v1/admin`, on the database itself. Refuses to read more of the command line
than each command's own words, and to know how anything is decided, which is the flows' business.
"""

import os
import sys
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import click
import msgspec
from rich.table import Column, Table

from service import settings
from service.domain.addresses import CHANNELS
from service.domain.deadlines import due_at, urgency
from service.errors import RequestError, SettingsError
from service.flows import desk as deeds
from service.flows import ingest, push
from service.flows.desk import Chosen, Desk
from service.loading import load
from service.operation import MOMENT, NAMESPACE, NEEDED_NOTE, print_table, with_database
from service.settings import Settings
from service.store import calls, circuits, deadlines, desk, quality, sampling
from service.store.database import Database
from service.store.desk import Wanted
from service.web import corrections as told
from service.web import figures
from service.web.http import shown

STATES: Final = ("pending", "sending", "sent", "rejected", "dead", "superseded", "unsupported", "discarded")

_CHANNEL: Final = click.option("--channel", type=click.Choice(CHANNELS), help="Of this channel only.")
_WHY: Final = click.option("--why", help="Only those with this reason for their state, such as bad-request.")
_LIMIT: Final = click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="Rows.")
_IDS: Final = click.argument("ids", type=click.IntRange(min=1), nargs=-1)
_ALL: Final = click.option(
    "--all", "state", type=click.Choice((*desk.SETTLEABLE, "discarded")), help="Instead of ids: all in this state."
)


@click.group("corrections")
def corrections_group() -> None:
    """What Kahuna is owed. Show, send again, put aside."""


@corrections_group.command("list")
@click.option("--state", type=click.Choice(STATES), help="Only in this state (default: dead; with the next two, any).")
@click.option("--address", help="Only those of this address.")
@click.option("--request-id", help="Only those that this request caused: reads the whole outbox.")
@_CHANNEL
@_WHY
@_LIMIT
@NAMESPACE
def corrections_list(
    state: str | None,
    address: str | None,
    request_id: str | None,
    channel: Any,
    why: str | None,
    limit: int,
    namespace: str | None,
) -> None:
    """Show corrections, the newest first."""
    spelt = None if address is None else _spelt(address, channel)
    chosen = "dead" if state is None and spelt is None and request_id is None else state
    wanted = Wanted(_namespace(namespace), chosen, channel, reason=why, addresses=spelt, request_id=request_id)

    async def read(database: Database) -> list[Any]:
        rows: list[Any] = []
        before: int | None = None
        async with database.read() as connection:
            while len(rows) < limit:
                page, before = await desk.listed(connection, wanted, before, limit - len(rows))
                rows += page
                if before is None:
                    break
        return rows

    rows = with_database(read)
    which = "in any state" if chosen is None else f"that are {chosen}"
    others = _OTHERS if state is None and chosen is not None else ""
    if not rows:
        click.echo(f"There are no such corrections {which}.{others}", err=True)
        return
    click.echo(f"Corrections of {wanted.namespace} {which}, the newest first.{others}", err=True)
    table = Table(*(Column(title, no_wrap=True) for title in ("id", "state", "why", "channel", "address", "slot")))
    for title in ("action", "stopped", "tries", "note"):
        table.add_column(title)
    for row in rows:
        stopped = _at(row.stopped_at) if row.stopped_at is not None else ""
        where = (row.channel, row.address, row.slot, row.action, stopped)
        table.add_row(str(row.id), row.state, row.reason or "", *where, str(row.attempts), row.note or "")
    print_table(table)


_OTHERS: Final = f" Others: --state {', '.join(STATES)}."


@corrections_group.command("show")
@click.argument("correction_id", type=click.IntRange(min=1, max=10**17))
@NAMESPACE
def corrections_show(correction_id: int, namespace: str | None) -> None:
    """Show one correction with every call that it was sent in."""
    name = _namespace(namespace)

    async def read(database: Database) -> tuple[Any, Sequence[Any], Any]:
        async with database.read() as connection:
            row = await desk.one(connection, correction_id)
            if row is None or row.namespace != name:
                raise SettingsError("There is no such correction; see kahuna-sync corrections list.")
            later = await desk.successor(connection, row) if row.state == "superseded" else None
            return row, await calls.of_correction(connection, row, _now()), later

    row, made, later = with_database(read)
    table = Table("field", "value", show_header=False)
    for field, value in row._asdict().items():
        if value is not None:
            table.add_row(_NAMED.get(field, field.replace("_", " ")), _cell(field, value))
    if later is not None:
        table.add_row("succeeded by", f"{later.id} ({later.state})")
    print_table(table)
    if made:
        _print_calls(made)
    else:
        click.echo("It was not sent yet, or retention has dropped its calls.", err=True)


_NAMED: Final = {"request_id": "caused by request", "trace_id": "caused in trace", "reason": "why"}
"""Fields whose own name would say too little: the request id is ours, not the one that Kahuna got."""


def _print_calls(made: Sequence[Any]) -> None:
    table = Table(title="Calls, the newest first")
    for title in ("answered", "outcome", "status", "entries", "accepted", "rejected"):
        table.add_column(title)
    # What Kahuna's support asks for is of no use when it is cut.
    table.add_column("request id at Kahuna", no_wrap=True)
    table.add_column("worker")
    table.add_column("answer", overflow="fold")
    for one in made:
        counts = (one.status, len(one.corrections), one.accepted, one.rejected)
        cells = ("" if count is None else str(count) for count in counts)
        at = f"{one.answered_at:%Y-%m-%d %H:%M:%S}Z"
        table.add_row(at, one.outcome, *cells, one.id.hex, one.worker, one.answer or "")
    print_table(table)


def _cell(field: str, value: Any) -> str:
    if field in ("occurred_at", "stopped_at"):
        return shown(value) or ""
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%dT%H:%M:%S}Z"
    return msgspec.json.encode(value).decode() if isinstance(value, dict) else str(value)


@corrections_group.command("requeue")
@_IDS
@_ALL
@_CHANNEL
@_WHY
@click.option("--anyway", is_flag=True, help="Also what Kahuna refused for good, or somebody discarded.")
@NAMESPACE
def corrections_requeue(
    ids: tuple[int, ...], state: str | None, channel: Any, why: str | None, anyway: bool, namespace: str | None
) -> None:
    """Send corrections again that are still owed.

    IDS are those that `corrections list` shows; or say --all dead.
    """
    _decide(ids, state, channel, why, namespace, lambda one, chosen: one.requeue(chosen, anyway=anyway))


@corrections_group.command("discard")
@_IDS
@_ALL
@_CHANNEL
@_WHY
@NEEDED_NOTE
@NAMESPACE
def corrections_discard(
    ids: tuple[int, ...], state: str | None, channel: Any, why: str | None, note: str, namespace: str | None
) -> None:
    """Put corrections aside. Kahuna is not told, and the clock of their stops ends.

    IDS are those that `corrections list` shows; or say --all unsupported.
    """
    _decide(ids, state, channel, why, namespace, lambda one, chosen: one.discard(chosen, note))


def _decide(
    ids: tuple[int, ...], state: str | None, channel: Any, why: str | None, namespace: str | None, work: Any
) -> None:
    """Decides about these, however many, and tells what came of each outcome; exit code 1 if nothing came of some."""
    if bool(ids) == (state is not None) or (ids and (channel or why)):
        raise click.UsageError("Say either ids or --all STATE; --channel and --why go with --all.")
    name = _namespace(namespace)
    found: Counter[str] = Counter()
    left: list[str] = []
    waits: list[str] = []

    async def run(database: Database, loaded: Settings) -> None:
        one = Desk(database, name, "shell", ingest.policy_of(loaded), _now)
        chosen = Chosen(ids, None if state is None else Wanted(name, state, channel, reason=why))
        while True:
            decided = await work(one, chosen)
            found.update(result.outcome for result in decided.results)
            left.extend(f"{r.id}: {r.outcome}" for r in decided.results if r.outcome not in _DONE and ids)
            waits.extend(f"{r.id} waits as {r.waits_as}" for r in decided.results if r.waits_as not in (None, r.id))
            if decided.next is None:
                return
            chosen = chosen._replace(after=decided.next)

    with_database(run, quiet=True)
    if not found:
        click.echo("There is none.", err=True)
        return
    table = Table("count", "outcome", "that is")
    for outcome, count in sorted(found.items()):
        table.add_row(str(count), outcome, _MEANS[outcome])
    print_table(table)
    for line in waits if len(waits) <= FEW else ():
        click.echo(line)
    for line in left:
        click.echo(line, err=True)
    sys.exit(0 if set(found) <= _DONE else 1)


FEW: Final = 20
"""Corrections up to which each is told by its id."""

_DONE: Final = {"requeued", "discarded", "not-owed", "sent", "superseded"}
"""After these nothing is left to be done."""

_MEANS: Final = {
    "requeued": "waits to be sent",
    "discarded": "put aside",
    "on-its-way": "claimed by a worker; ask again when it is back",
    "superseded": "a newer one of its slot waits, or took its place",
    "not-owed": "both sides agree by now",
    "sent": "Kahuna has accepted it",
    "refused-for-good": "Kahuna refused the entry; with --anyway it is sent again",
    "discarded-before": "somebody discarded it; with --anyway it is sent again",
    "unsupported": "Kahuna's API has no words for it",
    "not-found": "no correction of this namespace",
}


@click.group("circuits")
def circuits_group() -> None:
    """Whether corrections are sent. Show why not, and begin again."""


@circuits_group.command("list")
@NAMESPACE
def circuits_list(namespace: str | None) -> None:
    """Show the circuit of each channel."""
    name = _namespace(namespace)

    async def read(database: Database) -> Any:
        async with database.read() as connection:
            return await circuits.all_open(connection)

    found = with_database(read)
    table = Table("channel", "state", "why", "since", "next probe", "what to do")
    for channel in CHANNELS:
        one = told.circuit_told(name, channel, found.get((name, channel)), _now())
        times = (f"{at:%Y-%m-%d %H:%M:%S}Z" if at else "" for at in (one.since, one.next_probe_at))
        table.add_row(one.channel, one.state, one.reason or "", *times, push.fix_of(one.reason) if one.reason else "")
    print_table(table)


@circuits_group.command("reset")
@click.option("--channel", type=click.Choice(CHANNELS), required=True, help="Of which channel.")
@NAMESPACE
def circuits_reset(channel: Any, namespace: str | None) -> None:
    """Close a circuit, so that what waits for it goes out at once."""
    name = _namespace(namespace)
    was, released = with_database(
        lambda database: deeds.reset_circuit(database, name, channel, "shell", _now), quiet=True
    )
    if was is None:
        click.echo(f"It was not open: corrections of {channel} are sent as they come.", err=True)
    else:
        click.echo(f"Closed ({was.reason}); corrections that waited for it and are due now: {released}.", err=True)


@click.command("clock")
@click.option(
    "--state",
    type=click.Choice(("overdue", "due_soon", "open")),
    default="overdue",
    show_default=True,
    help="Due by now, due soon, or all that are open.",
)
@_CHANNEL
@_LIMIT
@NAMESPACE
def clock_command(state: str, channel: Any, limit: int, namespace: str | None) -> None:
    """Show stops that Kahuna does not hold yet. Exit code 1 if any is overdue."""
    name, now = _namespace(namespace), int(_now().timestamp())
    calendar = deeds.calendar_of(load(os.environ))
    asked = deadlines.Asked(name, *figures.between(state, now, calendar), channel)

    async def read(database: Database) -> tuple[Any, Any]:
        async with database.read() as connection:
            counts = await figures.counted(connection, now, calendar, name)
            return counts, await deadlines.listed(connection, asked, None, limit)

    counts, rows = with_database(read)
    _print_clock(rows, state, now, calendar)
    for one in counts:
        click.echo(f"{one.channel}: {one.overdue} overdue, {one.due_soon} due soon, {one.open} open", err=True)
    sys.exit(1 if any(one.overdue for one in counts) else 0)


def _print_clock(rows: Sequence[Any], state: str, now: int, calendar: Any) -> None:
    if not rows:
        says = "open: Kahuna holds every stop" if state == "open" else f"{state.replace('_', ' ')}; see --state open"
        click.echo(f"No stop is {says}.", err=True)
        return
    table = Table("due", "stopped", "channel", "address", "slot", "correction", "state", "why", "tries")
    for row in rows:
        due = f"{_at(due_at(row.stopped_at, calendar))} {urgency(row.stopped_at, now, calendar).replace('_', ' ')}"
        where = (row.channel, row.address, row.slot, str(row.id), row.state, row.reason or "")
        table.add_row(due, _at(row.stopped_at), *where, str(row.attempts))
    print_table(table)


@click.command("quality")
@click.option("--since", type=MOMENT, help="Received at this time or later (default: 28 days before).")
@click.option("--until", type=MOMENT, help="Received before this time (default: now).")
@click.option("--format", "form", type=click.Choice(["table", "csv"]), default="table", show_default=True)
@NAMESPACE
def quality_command(since: datetime | None, until: datetime | None, form: str, namespace: str | None) -> None:
    """Show how well Kahuna's callbacks come, week by week. The facts for a support ticket."""
    end = until or _now()
    try:
        window = figures.window_of(_namespace(namespace), since or end - timedelta(days=28), end)
    except RequestError as error:
        raise SettingsError(str(error)) from None

    async def read(database: Database) -> quality.Report:
        advice = "Ask about fewer days, or when there is less to do."
        async with sampling.bounded(database, figures.QUALITY_SECONDS, advice) as connection:
            return await quality.report(connection, window, _now())

    report = with_database(read)
    if form == "csv":
        click.echo(figures.as_csv(report), nl=False)
        return
    table = Table("week", "channel", "callbacks", "entries", "repeated", "no sense", "out of order")
    for title in ("delay p50", "p95", "p99", "most", "days without"):
        table.add_column(title)
    for week in map(figures.week_told, report.weeks):
        shares = (week.duplicate_share, week.malformed_share, week.out_of_order_share)
        delays = [f"{week.delay_seconds[name]:.0f} s" if week.facts else "" for name in ("p50", "p95", "p99", "max")]
        cells = (week.week, week.channel, str(week.callbacks), str(week.entries), *(f"{share:.2%}" for share in shares))
        table.add_row(*cells, *delays, ", ".join(week.missing_days))
    print_table(table)
    if report.estimated:
        click.echo("The tables are large: these are estimates from a share of them.", err=True)


COMMANDS: Final = (corrections_group, circuits_group, clock_command, quality_command)


def _namespace(given: str | None) -> str:
    return settings.chosen(load(os.environ), given).name


def _spelt(address: str, channel: Any) -> tuple[str, ...]:
    try:
        return told.spellings(address, channel)
    except RequestError as error:
        raise SettingsError(str(error)) from None


def _now() -> datetime:
    return datetime.now(UTC)


def _at(seconds: int) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M}Z"
