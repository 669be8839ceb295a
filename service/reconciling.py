"""Owns the reconciliations from the shell: ask for one and watch it, list them, look at a plan, decide, take back, and
write the report.

Refuses to know how anything is done, which is the flows' business; a decision made here is carried out here, unless a
worker is quicker.
"""

import asyncio
import os
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from typing import Any, Final

import click
import msgspec
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn
from rich.table import Column, Table

from service import settings, worker
from service.domain.addresses import Channel, ImpossibleAddress, normalise
from service.domain.drift import KINDS
from service.domain.facts import REASONS
from service.domain.runs import RUN_STATES
from service.errors import RequestError, SettingsError
from service.flows import approve, ingest, reconcile, revert
from service.flows.approve import Verdict
from service.flows.underway import UNFINISHED, Means
from service.loading import load
from service.operation import MOMENT, NAMESPACE, NOTE, print_table, with_database
from service.settings import Settings
from service.store import differences, reconciliations
from service.store.database import Database
from service.store.differences import Selection
from service.store.reconciliations import Run
from service.web import report
from service.web.asking import told
from service.web.reconciliations import PassedOver
from service.web.report import GroupShown, RunShown

CHANNEL: Final = click.Choice(["email", "sms"])

ACTOR: Final = "shell"

FEW: Final = 20
"""Lines up to which each is told of by its name."""

_JSON: Final = click.option("--json", "as_json", is_flag=True, help="Print JSON, as the report has it.")

Work = Callable[[Database, Settings], Awaitable[Any]]


def _now() -> datetime:
    return datetime.now(UTC)


@click.group("reconcile", invoke_without_command=True)
@click.option("--channel", type=CHANNEL, help="Which list to compare; needed, unless a command follows.")
@click.option("--source", type=click.Choice(["ledger", "logs", "profiles"]), default="ledger", show_default=True)
@click.option("--since", type=MOMENT, help="With logs: from when on they are read again.")
@click.option("--address", "addresses", multiple=True, help="With profiles: look this one up; repeatable.")
@click.option("--auto-approve", is_flag=True, help="Carry out what the guards let pass, at once.")
@_JSON
@NAMESPACE
@click.pass_context
def reconcile_command(ctx: click.Context, /, channel: Any, source: str, auto_approve: bool, **more: Any) -> None:
    """Compare the list with that of Kahuna, and decide on the plan."""
    if ctx.invoked_subcommand is not None:
        return
    if channel is None:
        raise SettingsError("Say which list: kahuna-sync reconcile --channel email, or --channel sms.")
    asked = _asked(channel, source, more["since"], more["addresses"])
    run = Run(uuid.uuid4(), _namespace(more["namespace"]), channel, source, auto_approve, ACTOR, asked=asked)

    async def work(database: Database, loaded: Settings) -> Any:
        await reconcile.queue(database, run, _now)
        return await _watched(database, loaded, run.id)

    _tell(*with_database(work, quiet=True), as_json=more["as_json"])


def _asked(channel: Channel, source: str, since: datetime | None, addresses: Sequence[str]) -> dict[str, Any] | None:
    if since is not None and source != "logs":
        raise SettingsError("--since is for --source logs.")
    if source == "logs" and channel == "sms":
        raise SettingsError("Kahuna's logs tell nothing of texts; use --source ledger.")
    if addresses and source != "profiles":
        raise SettingsError("--address is for --source profiles.")
    try:
        named = sorted({normalise(channel, address) for address in addresses})
    except ImpossibleAddress as error:
        raise SettingsError(f"One of the addresses cannot be one: {error.slug}.") from None
    asked: dict[str, Any] = {} if since is None else {"since": since.isoformat()}
    return asked | ({"addresses": named} if named else {}) or None


@reconcile_command.command("list")
@click.option("--state", type=click.Choice(sorted(RUN_STATES)), help="Only runs in this state.")
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="Runs at most.")
@_JSON
@NAMESPACE
def list_command(state: str | None, limit: int, as_json: bool, namespace: str | None) -> None:
    """The newest runs."""
    chosen = _namespace(namespace)

    async def work(database: Database, _: Settings) -> Any:
        async with database.read() as connection:
            return await reconciliations.newest(connection, chosen, limit, state=state)

    rows = with_database(work, quiet=True)
    if as_json:
        _print_json([told(RunShown, row) for row in rows])
        return
    if not rows:
        click.echo("There is no such run: kahuna-sync reconcile --channel email asks for one.", err=True)
        return
    # An id that is cut is of no use to who wants to copy it.
    whole = Column("id", no_wrap=True, min_width=36)
    others = [Column(name, overflow="fold") for name in ("compares", "asked for", "by", "lines", "state")]
    table = Table(whole, *others, title=f"Runs of {chosen}")
    for row in rows:
        count = str(row.counts.get("differences", 0))
        asked_at = f"{row.created_at:%Y-%m-%d %H:%M}Z"
        table.add_row(str(row.id), f"{row.channel} {row.source}", asked_at, row.actor, count, row.state)
    print_table(table)


@reconcile_command.command("show")
@click.argument("run_id", type=click.UUID)
@_JSON
def show_command(run_id: uuid.UUID, as_json: bool) -> None:
    """One run: where it stands, and its plan as a table."""

    async def work(database: Database, _: Settings) -> Any:
        return await _found(database, run_id)

    _tell(*with_database(work, quiet=True), as_json=as_json)


def _tell(row: Any, groups: Sequence[GroupShown], *, as_json: bool, **more: Any) -> None:
    """A run and its plan, and what else a decision came to: as one document, or for people."""
    if as_json:
        _print_json(more | {"run": told(RunShown, row), "groups": groups})
    else:
        _show(row, groups)


def _print_json(found: Any) -> None:
    click.echo(msgspec.json.format(msgspec.json.encode(found), indent=2))


def _deciding(command: Any) -> Any:
    """The options by which lines are chosen, and what is said of the decision."""
    for option in (
        _JSON,
        NOTE,
        click.option("--line", "lines", nargs=2, multiple=True, metavar="ADDRESS SLOT", help="This line; repeatable."),
        click.option("--action", type=click.Choice(["suppress", "clear"]), help="Lines that would do this."),
        click.option("--slot", type=click.Choice(REASONS), help="Lines of this slot of Kahuna's."),
        click.option("--reason", type=click.Choice(REASONS), help="Lines about this reason."),
        click.option("--kind", type=click.Choice(KINDS), help="Lines of this kind."),
    ):
        command = option(command)
    return click.argument("run_id", type=click.UUID)(command)


@reconcile_command.command("approve")
@_deciding
def approve_command(run_id: uuid.UUID, note: str | None, as_json: bool, **chosen: Any) -> None:
    """Approve lines of a plan: all that wait, or those that the options choose."""
    _decide(run_id, Verdict(ACTOR, "approved", _selection(**chosen), note), as_json=as_json)


@reconcile_command.command("reject")
@_deciding
def reject_command(run_id: uuid.UUID, note: str | None, as_json: bool, **chosen: Any) -> None:
    """Decide that lines of a plan are not to be carried out."""
    _decide(run_id, Verdict(ACTOR, "declined", _selection(**chosen), note), as_json=as_json)


def _selection(lines: Sequence[tuple[str, str]], **filters: Any) -> Selection:
    return Selection(**filters, lines=tuple(lines) or None)


def _decide(run_id: uuid.UUID, verdict: Verdict, *, as_json: bool) -> None:
    async def work(database: Database, loaded: Settings) -> Any:
        decided = await approve.decide(database, run_id, verdict, _now, None)
        missed = await _passed_over(database, run_id, decided.passed_over)
        return decided, missed, await _watched(database, loaded, run_id)

    decided, missed, (row, groups) = _refusals_told(work)
    if not as_json:
        click.echo(f"{decided.lines} {'line' if decided.lines == 1 else 'lines'} {verdict.decision}")
    for sentence in missed:
        click.echo(sentence, err=True)
    passed_over = [PassedOver(address, slot, state) for (address, slot), state in decided.passed_over.items()]
    _tell(row, groups, as_json=as_json, lines=decided.lines, passed_over=passed_over)
    if None in decided.passed_over.values():
        raise SystemExit(1)


async def _passed_over(database: Database, run_id: uuid.UUID, lines: Mapping[tuple[str, str], str | None]) -> list[str]:
    """Why lines that were named were not decided about: to the one who typed them."""
    found = []
    async with database.read() as connection:
        for (address, slot), state in list(lines.items())[:FEW]:
            if state is not None:
                found.append(f"{address} / {slot} waits for no decision: it is {state}")
                continue
            slots = ", ".join(await differences.slots_of(connection, run_id, address))
            others = f"its slots are {slots}" if slots else "nor is any of this address"
            found.append(f"no line of this plan is {address} / {slot}; {others}")
    more = len(lines) - len(found)
    return [*found, f"and {more} more wait for no decision"] if more else found


@reconcile_command.command("revert")
@click.argument("run_id", type=click.UUID)
@NOTE
@click.option("--dry-run", is_flag=True, help="Count what would come of it, and change nothing.")
@_JSON
def revert_command(run_id: uuid.UUID, note: str | None, dry_run: bool, as_json: bool) -> None:
    """Take back what a run recorded here. A stop that Kahuna accepted stands: it follows from the list."""
    if dry_run:
        would = _refusals_told(lambda database, _: revert.preview(database, run_id, None))
        if as_json:
            _print_json({"would": would._asdict()})
            return
        click.echo(f"Revert of {run_id}, tried only: it would change nothing but this")
        table = Table("lines", "of")
        for count, says in zip(would, WOULD, strict=True):
            table.add_row(str(count), says)
        print_table(table)
        return

    async def work(database: Database, loaded: Settings) -> Any:
        await revert.ask(database, run_id, ACTOR, note, _now, None)
        return await _watched(database, loaded, run_id)

    _tell(*_refusals_told(work), as_json=as_json)


@reconcile_command.command("report")
@click.argument("run_id", type=click.UUID)
@click.option("--format", "form", type=click.Choice(["json", "csv", "html"]), default="html", show_default=True)
@click.option("--output", type=click.Path(dir_okay=False), help="The file to write (default: standard output).")
def report_command(run_id: uuid.UUID, form: report.Form, output: str | None) -> None:
    """Write the report of a run."""
    with click.open_file(output or "-", "wb") as file:

        async def work(database: Database, _: Settings) -> None:
            row, _groups = await _found(database, run_id)
            async for part in report.parts(database, row, form):
                await asyncio.to_thread(file.write, part)

        with_database(work, quiet=True)


def _refusals_told(work: Work) -> Any:
    try:
        return with_database(work, quiet=True)
    except RequestError as error:
        raise SettingsError(str(error)) from None


def _namespace(named: str | None) -> str:
    return settings.chosen(load(os.environ), named).name


async def _found(database: Database, run_id: uuid.UUID) -> tuple[Any, list[GroupShown]]:
    async with database.read() as connection:
        row = await reconciliations.one(connection, run_id)
    if row is None:
        raise SettingsError("There is no such run; list them with kahuna-sync reconcile list.")
    return row, await report.groups_of(database, run_id)


async def _watched(database: Database, loaded: Settings, run_id: uuid.UUID) -> tuple[Any, list[GroupShown]]:
    """Carries a run on, and shows how far it is, until it waits for somebody else. A worker may be quicker than this
    process: then its result is waited for."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("waiting for a worker")

        def show(what: str, count: int) -> None:
            progress.update(task, description=f"{what}: {count} so far")

        async with _means(database, loaded) as means:
            while True:
                await reconcile.run_next(means, show, run_id)
                row, groups = await _found(database, run_id)
                if row.state not in UNFINISHED and row.deciding is None:
                    return row, groups
                await asyncio.sleep(0.2)


@asynccontextmanager
async def _means(database: Database, loaded: Settings) -> AsyncIterator[Means]:
    """What a reconciliation works with here. The ledger needs no keys, so a shell without them can compare with it."""
    async with AsyncExitStack() as stack:
        clients = {}
        for namespace in loaded.namespaces:
            if namespace.secret_key is not None and namespace.api_key and namespace.env is not None:
                clients[namespace.name] = await stack.enter_async_context(worker.client_for(namespace, loaded))
        yield worker.means_of(loaded, database, ingest.rules_of(loaded), _now, clients)


WOULD: Final = (
    "recorded something here, which would be taken back",
    "opt-ins that would be withdrawn before they are sent",
    "accepted by Kahuna: they stand",
    "on their way to Kahuna: they are still sent",
    "not carried out: they would be called off, and a later plan may propose them again",
)

REVERTED: Final = (
    ("facts", "Facts taken back here"),
    ("withdrawn", "Opt-ins withdrawn before they were sent"),
    ("told_and_stands", "Lines that Kahuna accepted, which stand"),
    ("on_the_way", "Lines on their way to Kahuna, which are still sent"),
)


def _show(row: Any, groups: Sequence[GroupShown]) -> None:
    click.echo(f"Reconciliation of {row.namespace}, {row.channel}: {row.state} ({_meaning(row)})")
    for one in row.held_by or []:
        click.echo(f"It waits for a person: {one['says']} ({one['found']:g}; limit {one['limit']:g})")
    if row.error is not None:
        click.echo(f"What was in its way: {row.error}", err=True)
    if groups:
        names = [
            Column(name, overflow="fold") for name in ("mended", "kind", "slot", "reason", "action", "state", "why")
        ]
        table = Table(*names, "lines", Column("for example", overflow="fold"))
        for group in groups:
            texts = (group.direction, group.kind, group.slot, group.reason, group.action, group.state, group.why)
            table.add_row(*(one or "" for one in texts), str(group.count), ", ".join(group.samples))
        print_table(table)
    else:
        click.echo(report.nothing_found(row))
    if row.state == "reverted":
        for name, says in REVERTED:
            if count := (row.outcome or {}).get(name):
                click.echo(f"{says}: {count}", err=True)
    if row.state == "planned":
        click.echo(
            f"Decide: kahuna-sync reconcile approve {row.id}, or reject; each line: report --format csv", err=True
        )


def _meaning(row: Any) -> str:
    """What its state says, or of a run that is taken back, what there was to take."""
    outcome = row.outcome or {}
    if row.state != "reverted" or outcome.get("facts"):
        return RUN_STATES[row.state]
    count = outcome.get("told_and_stands", 0)
    return f"nothing was recorded here; {count} {'stands' if count == 1 else 'stand'} at Kahuna"


COMMANDS: Final = (reconcile_command,)
