"""Owns what an operator does to the database from the shell and shows while it lasts: import, backfill, export, replay,
rebuild.

Refuses to read arguments, which `__main__` hands over, and to know how anything is done, which is the flows' business.
"""

import asyncio
import dataclasses
import os
import random
import select
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from service import embedded, settings, up, worker
from service.domain.evidence import KINDS
from service.domain.facts import REASONS
from service.errors import RequestError, SettingsError, StorageUnavailable
from service.flows import follow, imports, ingest, pull, rebuild, records, replay
from service.flows.desk import calendar_of
from service.kahuna import Retry
from service.loading import load
from service.settings import Settings
from service.store import access, archive, changes, export
from service.store.database import Database
from service.telemetry import set_up_logging

PART: Final = 64 * 1024
"""Bytes of a file that are read at once."""

NAMESPACE = click.option("--namespace", help="Which namespace; needed only if there are several.")

NOTE = click.option("--note", help="What you say of it; kept with it, and audited.")


def _says_why(_ctx: click.Context, _param: click.Parameter, note: str) -> str:
    if not note.strip():
        raise click.BadParameter("must say why")
    return note


NEEDED_NOTE = click.option(
    *("--note", "--reason", "note"), required=True, callback=_says_why, help="Why; kept with it, and audited."
)
"""For decisions that nobody could understand later without it. `--reason` is its name of old."""


def load_whole(environ: Mapping[str, str]) -> Settings:
    """The settings, for whoever receives and sends by them. SettingsError tells of all that are wrong, whoever reads
    them in the end, and then of all that are missing."""
    loaded = load(environ, _unusable)
    settings.check_namespaces(loaded)
    return loaded


def _unusable(loaded: Settings) -> Iterator[str]:
    """What nobody could work by: words, corrections of the contract, business days."""
    looks: list[tuple[str, Callable[[], object]]] = [("", partial(calendar_of, loaded))]
    for one in loaded.namespaces:
        where = f"[namespaces.{one.name}]: " if len(loaded.namespaces) > 1 else ""
        looks += [(where, partial(ingest.words_of, one)), ("", partial(worker.contract_of, one))]
    for where, look in looks:
        try:
            look()
        except SettingsError as error:
            yield f"{where}{error}"


@contextmanager
def started(
    environ: Any,
    *,
    namespaces: bool = False,
    speaker: str | None = None,
    quiet: bool = False,
    makes_database: bool = True,
) -> Iterator[Settings]:
    """The settings, with a database behind `database_url`: the embedded one if no other is named. `speaker` is what the
    process calls itself in the log. One that is `quiet` logs warnings alone, unless LOG_LEVEL says otherwise. Where
    there is no embedded database yet, one that `makes_database` begins it; others get a SettingsError."""
    loaded = load_whole(environ) if namespaces else load(environ)
    level = "warning" if quiet and not environ.get("LOG_LEVEL") else loaded.log_level
    set_up_logging(level, loaded.log_format, speaker)
    if loaded.database_url is not None:
        yield loaded
        return
    if not makes_database:
        refuse_without_database(loaded)
    with embedded.server(loaded.data_dir) as url:
        yield dataclasses.replace(loaded, database_url=url)


def refuse_without_database(loaded: Settings) -> None:
    """SettingsError if no database is named and there is none in DATA_DIR: a mistyped folder, or a shell without the
    deployment's variables, must not be answered from an empty list."""
    if loaded.database_url is None and not embedded.there_is(loaded.data_dir):
        raise SettingsError(NO_DATABASE.format(loaded.data_dir.absolute()))


NO_DATABASE: Final = "no database in {}: set DATABASE_URL or DATA_DIR (that of `make run` is DATA_DIR=.data/demo)"
"""What a command says that works on a database, where there is none."""


def with_database(work: Any, *, quiet: bool = False) -> Any:
    """Runs a coroutine function on the database, and on the settings if it takes them. `quiet`: what the log would
    tell, the command prints. It never makes a database."""

    async def run(loaded: Settings) -> Any:
        async with Database.of(loaded) as database:
            return await (work(database, loaded) if work.__code__.co_argcount == 2 else work(database))

    with started(os.environ, quiet=quiet, makes_database=False) as loaded:
        return asyncio.run(run(loaded))


def print_table(table: Table) -> None:
    """What reads a file or a pipe wants whole lines: 80 columns would cut addresses and ids in pieces."""
    Console(width=None if sys.stdout.isatty() else 240).print(table)


class Moment(click.ParamType[datetime]):
    """A time, in UTC unless it says otherwise."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """The time, or a refusal."""
        try:
            moment = value if isinstance(value, datetime) else datetime.fromisoformat(value)
            return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
        except (ValueError, OverflowError):
            self.fail("must be a time such as 2026-01-31 or 2026-01-31T12:00:00Z", param, ctx)


MOMENT: Final = Moment()


@click.command("replay")
@click.option("--since", type=MOMENT, help="Only batches received at this time or later.")
@click.option("--until", type=MOMENT, help="Only batches received before this time (default: now).")
@click.option("--channel", type=click.Choice(["email", "sms"]), help="Only batches of this channel.")
@click.option("--dry-run", is_flag=True, help="Say what would change, and change nothing.")
@NAMESPACE
def replay_command(
    since: datetime | None, until: datetime | None, channel: Any, dry_run: bool, namespace: str | None
) -> None:
    """Apply archived batches again, by the rules of today. What is known already stays as it is."""
    chosen = settings.chosen(load(os.environ), namespace).name
    asked = archive.Asked(chosen, channel, None, since, until)
    counts, stopped_at = with_database(lambda database, loaded: _replay(database, loaded, asked, dry_run))
    would = "would be " if dry_run else ""
    click.echo(f"Replay of {chosen}{', tried only' if dry_run else ''}")
    table = Table("count", "of")
    for name, says in (
        ("batches", "batches replayed"),
        ("changed", f"{would}changed by it"),
        ("recorded", f"of these, {would}applied for the first time"),
        ("new", "new facts, and opt-ins that wait"),
        ("requeued", "entries understood that were rejected before"),
        ("rejected", "entries still rejected"),
        ("failed", "batches that could not be applied"),
    ):
        table.add_row(str(counts[name]), says)
    print_table(table)
    if stopped_at is not None:
        click.echo(f"Interrupted. Go on with --since {stopped_at.isoformat()}", err=True)
    sys.exit(1 if counts["failed"] or stopped_at is not None else 0)


async def _replay(
    database: Database, loaded: Settings, asked: archive.Asked, dry_run: bool
) -> tuple[Counter[str], datetime | None]:
    """What came of it, and how far it got if it was interrupted: a signal lets the transaction under way end."""

    def clock() -> datetime:
        return datetime.now(UTC)

    stop = asyncio.Event()
    up.stop_on_signals(stop)
    counts: Counter[str] = Counter()
    async with database.read() as connection:
        total = await archive.count(connection, asked)
    steps = replay.replay_many(database, asked, ingest.rules_of(loaded), clock, "shell", dry_run=dry_run)
    columns = (SpinnerColumn(), TextColumn("replaying"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("replaying", total=total)
        reached: datetime | None = None
        try:
            async for step in steps:
                counts.update(step.counts)
                reached = step.up_to
                progress.update(task, completed=counts["batches"] + counts["failed"])
                if stop.is_set():
                    return counts, reached
        except StorageUnavailable as error:
            where = "" if reached is None else f" Go on with --since {reached.isoformat()}"
            raise StorageUnavailable(f"{error}{where}") from error
    return counts, None


@click.command("rebuild")
@click.option("--verify", is_flag=True, help="Compare what the evidence adds up to with the list; changes nothing.")
@click.option("--show", is_flag=True, help="Print each address on which they disagree.")
def rebuild_command(verify: bool, show: bool) -> None:
    """Prove that the list follows from the archive and the audit log."""
    if not verify:
        raise SettingsError("A rebuild only verifies: say kahuna-sync rebuild --verify. It changes nothing.")
    verified = with_database(lambda database, loaded: _verify(database, loaded, show=show))
    table = Table("namespace", "channel", "causes", "digest of the list", "digest of the evidence", title="Rebuild")
    for (namespace, channel), one in sorted(verified.compared.items()):
        digests = (digest.hexdigest()[:16] for digest in (one.live, one.rebuilt))
        table.add_row(namespace, channel, str(one.causes), *digests)
    print_table(table)
    for (namespace, channel), one in sorted(verified.compared.items()):
        for kind, count in sorted(one.disagreements.items()):
            click.echo(f"{namespace}, {channel}: {KINDS[kind]}: {count}")
    if verified.unclear > verified.unknown:
        click.echo(f"entries of the archive that cannot be replayed: {verified.unclear - verified.unknown}")
    click.echo(_conclusion(verified))
    sys.exit(0 if verified.agrees else 1)


def _conclusion(verified: rebuild.Verified) -> str:
    if verified.unknown:
        return (
            f"entries of the archive with words that these settings do not know: {verified.unknown}\n"
            "What they said is counted as without evidence, so this says nothing of the list yet. Is EXTRA_REASONS, or "
            "CONFIG_FILE, set here as it is for the service? Set it, and verify again."
        )
    return "The list is what its evidence says." if verified.agrees else "The list is not what its evidence says."


async def _verify(database: Database, loaded: Settings, *, show: bool) -> rebuild.Verified:
    columns = (SpinnerColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("reading")

        def tell(found: rebuild.Disagreement) -> None:
            if show:
                click.echo("\t".join((found.kind, *found.key, found.reason)))

        def seen(what: str, count: int) -> None:
            progress.update(task, description=f"{count} {what}")

        return await rebuild.verify(database, ingest.rules_of(loaded), seen, tell)


@click.command("export")
@click.option("--format", "form", type=click.Choice(["csv", "ndjson"]), default="csv", show_default=True)
@click.option("--channel", type=click.Choice(["email", "sms"]), help="Only causes of this channel.")
@click.option("--reason", type=click.Choice(REASONS), help="Only causes of this reason.")
@click.option("--active/--inactive", default=None, help="Only causes that are in force, or only those that are not.")
@click.option("--output", type=click.Path(dir_okay=False), help="The file to write (default: standard output).")
@NAMESPACE
def export_command(
    form: export.Format,
    channel: Any,
    reason: str | None,
    active: bool | None,
    output: str | None,
    namespace: str | None,
) -> None:
    """Write the whole list as of now, a row for each cause."""
    chosen = settings.chosen(load(os.environ), namespace).name
    wanted = export.Wanted(chosen, int(datetime.now(UTC).timestamp()), channel, reason, active)
    with click.open_file(output or "-", "wb") as file:
        cursor = with_database(lambda database, loaded: _export(database, loaded, wanted, form, file))
    click.echo(f"Follow the feed from here: GET /v1/changes?after={cursor}", err=True)


async def _export(database: Database, loaded: Settings, wanted: export.Wanted, form: export.Format, file: Any) -> str:
    columns = (SpinnerColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("exporting")
        lines = 0

        async def write(part: bytes) -> None:
            nonlocal lines
            lines += part.count(b"\n")
            await asyncio.to_thread(file.write, part)
            progress.update(task, description=f"exporting: {lines} lines so far")

        async with database.snapshot(export.TABLE) as connection:
            cursor = follow.Cursor(*await changes.horizon(connection)).written(follow.Scope(wanted.namespace))
            await export.stream(connection, wanted, ingest.policy_of(loaded), form, write)
    return cursor


@click.command("new-epoch")
@click.confirmation_option(prompt="Every follower of the feed will have to begin again with an export. Go on?")
def new_epoch_command() -> None:
    """End all cursors of the feed. For after a restore that the database itself does not show."""

    async def begin(database: Database) -> None:
        now = datetime.now(UTC)
        async with database.begin() as connection:
            await changes.begin_epoch(connection, "shell", now)
            await access.write_down(connection, access.Deed("shell", "epoch.began"), now)

    with_database(begin)
    click.echo("A new epoch has begun: cursors of before are answered with 410 cursor-expired.", err=True)


@click.command("import")
@click.argument("file", type=click.File("rb"))
@click.option("--channel", type=click.Choice(["email", "sms"]), required=True)
@click.option("--reason", help="Why the addresses are listed, for lines that do not tell.")
@click.option("--as-of", type=MOMENT, help="As of when lines without a time are true (default: now).")
@click.option("--dry-run", is_flag=True, help="Say what would come of it, and store nothing.")
@NAMESPACE
def import_command(
    file: Any, channel: Any, reason: str | None, as_of: datetime | None, dry_run: bool, namespace: str | None
) -> None:
    """Suppress the addresses of a list. CSV or JSON, gzip or not; - is standard input."""
    chosen = settings.chosen(load(os.environ), namespace).name
    since = None if as_of is None else int(as_of.timestamp())
    name = None if file.name in ("-", "<stdin>") else os.path.basename(file.name)  # noqa: PTH119 (a name, not a path)
    order = imports.Order(chosen, channel, "shell", random.getrandbits(50), name, reason, since, dry_run)
    try:
        one, finished = with_database(lambda database, loaded: _import(database, loaded, order, file), quiet=True)
    except RequestError as error:
        raise SettingsError(str(error)) from None
    tally = one.tally
    _show(tally, chosen, order)
    if tally.accepted and not dry_run:
        click.echo(f"If it was the wrong file: kahuna-sync revert import {one.id} --dry-run", err=True)
    if not finished:
        click.echo(f"Interrupted after line {tally.reached}. The same command again goes on from there.", err=True)
    sys.exit(1 if tally.rejected or not finished else 0)


def _show(tally: imports.Tally, namespace: str, order: imports.Order) -> None:
    click.echo(f"Import into {namespace}, {order.channel}{', tried only' if order.dry_run else ''}")
    table = Table("count", "of")
    for count, says in (
        (tally.lines, "lines read"),
        (tally.accepted, "new stops"),
        (tally.duplicates, "known already"),
        (tally.rejected, "not understood"),
        (tally.skipped, "that state no stop here"),
        (tally.untimed, "without a time of their own"),
        (tally.assumed, "whose own word for the reason is not known"),
    ):
        table.add_row(str(count), says)
    for reason, count in sorted(tally.reasons.items()):
        table.add_row(str(count), f"understood as {reason}")
    print_table(table)
    for line, error in tally.errors:
        click.echo(f"line {line}: {error}", err=True)
    if tally.rejected > len(tally.errors):
        click.echo(f"and {tally.rejected - len(tally.errors)} more", err=True)


class _Stopped(Exception):
    """Somebody asked the import to end."""


async def _import(database: Database, loaded: Settings, order: imports.Order, file: Any) -> tuple[imports.Import, bool]:
    """How far it came, and whether to the end: a signal lets the chunk under way end."""
    stop = asyncio.Event()
    up.stop_on_signals(stop)
    one = imports.Import(database, order, ingest.rules_of(loaded), lambda: datetime.now(UTC))
    size = os.fstat(file.fileno()).st_size if file.seekable() else None
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("importing", total=size)
        read = 0

        async def parts() -> AsyncIterator[bytes]:
            nonlocal read
            while part := await asyncio.to_thread(_part, file, stop):
                read += len(part)
                yield part

        def show(tally: imports.Tally) -> None:
            progress.update(task, completed=read, description=f"importing: {tally.lines} lines")

        try:
            await one.run(parts(), show)
            return one, True
        except _Stopped:
            return one, False
        except StorageUnavailable as error:
            far = f" Lines up to {one.tally.reached} are in; the same command again goes on from there."
            raise StorageUnavailable(f"{error}{far if one.tally.reached else ''}") from error


def _part(file: Any, stop: asyncio.Event) -> bytes:
    """The next part of a file; _Stopped if a signal came, also while a pipe is silent."""
    while not stop.is_set():
        if select.select([file], [], [], 0.1)[0]:
            return bytes(file.read1(PART))
    raise _Stopped


@click.command("backfill")
@click.option("--since", type=MOMENT, help="From when on (default: a year ago).")
@NAMESPACE
def backfill_command(since: datetime | None, namespace: str | None) -> None:
    """Read what Kahuna's logs say of before this deployment. Interrupted, the same command goes on."""
    loaded = load(os.environ)
    chosen = settings.chosen(loaded, namespace)
    if chosen.secret_key is None or not chosen.api_key or chosen.env is None:
        raise SettingsError(
            "Kahuna's logs need KAHUNA_SECRET_KEY, KAHUNA_API_KEY and KAHUNA_ENV: set them and try again."
        )
    pulled = with_database(lambda database, loaded: _backfill(database, loaded, chosen.name, since), quiet=True)
    if pulled is None:
        click.echo("Interrupted. The same command goes on where it ended.", err=True)
        sys.exit(1)
    click.echo(f"Backfill of {chosen.name}")
    table = Table("count", "of")
    for name, says in zip(records.COUNTED, _BACKFILLED, strict=True):
        table.add_row(str(pulled.counts[name]), says)
    print_table(table)
    for api, why in pulled.failed.items():
        click.echo(f"The log {api} was not read to its end: {why}. The same command goes on there.", err=True)
    sys.exit(1 if pulled.failed else 0)


_BACKFILLED: Final = (
    "records read",
    "new facts",
    "stops that callbacks had told of",
    "stops known before",
    "stops that could not be understood",
    "addresses on which a merge of users was noted",
    "messages sent against a stop",
)


async def _backfill(database: Database, loaded: Settings, namespace: str, since: datetime | None) -> pull.Pulled | None:
    """What came of it; None if a signal ended it, after the page under way."""
    stop = asyncio.Event()
    up.stop_on_signals(stop)
    chosen = settings.chosen(loaded, namespace)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        tasks: dict[str, Any] = {}

        def show(step: pull.Step) -> None:
            span, done = step.ends_at - step.begins_at, step.reached - step.begins_at
            if step.api not in tasks:
                tasks[step.api] = progress.add_task(step.api, total=span.total_seconds())
            progress.update(tasks[step.api], completed=done.total_seconds())
            progress.update(tasks[step.api], description=f"{step.api}: {step.reached:%Y-%m-%d}")
            if stop.is_set():
                raise _Stopped

        async with worker.client_for(chosen, loaded, Retry()) as client:
            given = (database, client, namespace, ingest.rules_of(loaded), lambda: datetime.now(UTC))
            delay = timedelta(seconds=loaded.logs_delay_seconds)
            try:
                return await pull.backfill(*given, since=since, delay=delay, progress=show)
            except _Stopped:
                return None


COMMANDS: Final = (
    backfill_command,
    import_command,
    export_command,
    replay_command,
    rebuild_command,
    new_epoch_command,
)
