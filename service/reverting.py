"""Owns what an operator takes back from the shell, and shows while it lasts: `kahuna-sync revert`.

Refuses to know how anything is done, which is the flows' business; who may be reverted is in one table.
"""

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final, TypeAlias

import click
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn
from rich.table import Table

from service.errors import RequestError, SettingsError
from service.flows import ingest, retract
from service.flows.taking_back import Counts
from service.operation import print_table, with_database
from service.settings import Settings
from service.store import retractions
from service.store.database import Connection, Database

_Ask: TypeAlias = Callable[[Connection, uuid.UUID, str, str, str | None, datetime], Awaitable[uuid.UUID]]

REVERTIBLE: Final[dict[str, _Ask]] = {"import": retract.request_import, "surge": retract.request_surge}

_SAYS: Final = (
    ("evidence", "batches and actions gone through"),
    ("facts", "facts taken back"),
    ("theirs", "of these, told by Kahuna"),
    ("handed_over", "facts that stay, since others said the same"),
    ("logged", "facts of Kahuna's logs that stand in their place"),
    ("kept", "facts that stay, since dropped months said them too"),
    ("restored", "facts said again meanwhile"),
    ("corrections", "corrections owed to Kahuna for it"),
    ("gone", "batches that are not in the archive any more"),
    ("unclear", "entries that cannot be read any more"),
)


@click.command("revert")
@click.argument("kind", type=click.Choice(list(REVERTIBLE)))
@click.argument("of", metavar="ID", type=click.UUID)
@click.option(
    *("--note", "--reason", "note"), help="Why; kept in the audit log and shown in the history of each address."
)
@click.option("--dry-run", is_flag=True, help="Count what would be taken back, and change nothing.")
def revert_command(kind: str, of: uuid.UUID, note: str | None, dry_run: bool) -> None:
    """Take back all that an import, or a surge, has said. What others have said too stays.

    What a reconciliation recorded is taken back with: kahuna-sync reconcile revert ID
    """
    if not dry_run and not (note or "").strip():
        raise SettingsError("Say why with --note: it is told to whoever asks about one of the addresses.")
    work = _preview if dry_run else _revert
    try:
        counts, row = with_database(lambda database, loaded: work(database, loaded, kind, of, note or "-"), quiet=True)
    except RequestError as error:
        raise SettingsError(str(error)) from None
    click.echo(f"Revert of {kind} {of}{', tried only' if row is None else f': {row.state}'}")
    table = Table("count", "of")
    for name, says in _SAYS:
        if name in counts or name == "facts":
            table.add_row(
                str(counts.get(name, 0)), "facts that stand on it" if row is None and name == "facts" else says
            )
    print_table(table)
    if row is not None:
        click.echo(f"What Kahuna cannot be told of it: kahuna-sync retractions show {row.id}", err=True)


async def _preview(database: Database, loaded: Settings, kind: str, of: uuid.UUID, reason: str) -> tuple[Counts, None]:
    def ask(connection: Connection) -> Awaitable[uuid.UUID]:
        return REVERTIBLE[kind](connection, of, "shell", reason, None, _now())

    with _progress() as progress:
        shown = partial(_show, progress, progress.add_task("counting"))
        return await retract.preview(database, ingest.rules_of(loaded), ask, shown), None


async def _revert(database: Database, loaded: Settings, kind: str, of: uuid.UUID, reason: str) -> tuple[Any, Any]:
    async with database.begin() as connection:
        asked = await REVERTIBLE[kind](connection, of, "shell", reason, None, _now())
    with _progress() as progress:
        shown = partial(_show, progress, progress.add_task("taking back"))
        while True:
            # A worker may be quicker than this process, or at another one: then its result is waited for.
            await retract.run_next(database, ingest.rules_of(loaded), _now, shown, asked)
            async with database.read() as connection:
                row = await retractions.one(connection, asked)
            if row is not None and row.state == "done":
                return row.counts, row
            await asyncio.sleep(0.2)


def _progress() -> Progress:
    columns = (SpinnerColumn(), TextColumn("{task.description}"))
    return Progress(*columns, console=Console(stderr=True), transient=True)


def _show(progress: Progress, task: Any, counts: Counts) -> None:
    progress.update(task, description=f"{counts['facts']} facts of {counts['evidence']} batches")


def _now() -> datetime:
    return datetime.now(UTC)
