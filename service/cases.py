"""Owns what waits for a person, and what people did to the list as one: entries in quarantine, opt-ins under review,
imports, surges, retractions and messages against a stop. Listed, looked at and decided in the shell.

The same questions and decisions as under `/v1/admin`, on the database itself; with `--json` the same documents. Refuses
to know how anything is decided, which is the flows' business.
"""

import os
import re
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

import click
import msgspec
from rich.table import Column, Table

from service import settings
from service.domain.addresses import CHANNELS
from service.errors import RequestError, SettingsError
from service.flows import ingest, review
from service.flows import quarantine as deeds
from service.flows import surges as judging
from service.loading import load
from service.operation import MOMENT, NAMESPACE, NEEDED_NOTE, NOTE, print_table, with_database
from service.settings import Settings
from service.store import imports, quarantine, retractions, reviews, surges, violations
from service.store.database import Connection, Database
from service.web import admin, archive, pulls, undo

ACTOR: Final = "shell"

_CHANNEL: Final = click.option("--channel", type=click.Choice(CHANNELS), help="Of this channel only.")
_LIMIT: Final = click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="Rows.")
_JSON: Final = click.option("--json", "as_json", is_flag=True, help="Print JSON, as the API answers.")
_ID: Final = click.argument("chosen", metavar="ID", type=click.UUID)
_PLACE: Final = (
    click.argument("batch_id", type=click.UUID),
    click.argument("entry_index", type=click.IntRange(0, 10**9 - 1)),
)


def _placed(command: Any) -> Any:
    """The arguments that name an entry of a batch."""
    for argument in reversed(_PLACE):
        command = argument(command)
    return command


@click.group("quarantine")
def quarantine_group() -> None:
    """Entries of callbacks that could not be understood."""


@quarantine_group.command("list")
@click.option("--state", type=click.Choice(["open", "requeued", "discarded"]), default="open", show_default=True)
@click.option("--error", help="Only those with this error, such as unknown-reason.")
@_CHANNEL
@_LIMIT
@_JSON
@NAMESPACE
def quarantine_list(
    state: str, error: str | None, channel: Any, limit: int, as_json: bool, namespace: str | None
) -> None:
    """Show entries, the newest first."""
    wanted = quarantine.Asked(_namespace(namespace), state, channel, error)
    rows = _read(lambda connection: quarantine.listed(connection, wanted, None, limit))
    found = [archive.entry_told(row) for row in rows]
    nothing = f"No entry is {state}: what callbacks say and cannot be understood would stand here."
    titles = {"batch_id": "batch", "entry_index": "index", "error": "error", "channel": "channel"}
    _list(found, titles | {"received_at": "received", "state": "state", "note": "note"}, nothing, as_json=as_json)


@quarantine_group.command("show")
@_placed
@_JSON
def quarantine_show(batch_id: uuid.UUID, entry_index: int, as_json: bool) -> None:
    """Show one entry with its text."""
    row = _read(lambda connection: quarantine.one(connection, batch_id, entry_index))
    _show(_there(row, "entry", "quarantine", archive.entry_told), as_json=as_json)


@quarantine_group.command("requeue")
@click.argument("batch_id", type=click.UUID, required=False)
@click.argument("entry_index", type=click.IntRange(0, 10**9 - 1), required=False)
@click.option("--all", "every", is_flag=True, help="All that are open, or those of --error and --channel.")
@click.option("--error", help="With --all: only those with this error.")
@_CHANNEL
@_JSON
@NAMESPACE
def quarantine_requeue(
    batch_id: uuid.UUID | None, entry_index: int | None, every: bool, as_json: bool, namespace: str | None, **more: Any
) -> None:
    """Read entries again by the rules of today. Exit code 1 if some are still not understood."""
    if every == (entry_index is not None) or (not every and any(more.values())):
        raise click.UsageError("Say either BATCH_ID and ENTRY_INDEX or --all; --error and --channel go with --all.")
    if every:
        _requeue_all(quarantine.Asked(_namespace(namespace), "open", more["channel"], more["error"]), as_json=as_json)
        return
    place = (batch_id or uuid.UUID(int=0), entry_index or 0)

    async def again(database: Database, loaded: Settings) -> Any:
        return await deeds.requeue_one(database, place, ACTOR, ingest.rules_of(loaded), _now, None)

    told = archive.entry_told(_decided(again))
    _show(told, as_json=as_json)
    if told.state == "open":
        click.echo(f"It is still not understood ({told.error}). {_to_do(told.error)}", err=True)
        raise SystemExit(1)


def _to_do(error: str) -> str:
    """What to do about an entry with this error."""
    if error == "unknown-reason":
        return (
            "If its word is a new one of Kahuna's, give it a meaning, as EXTRA_REASONS=WORD=REASON, here and where the "
            "service runs, and requeue it again; else: kahuna-sync quarantine discard"
        )
    return (
        "Another release may understand it. If somebody must be stopped by it, say so with PUT /v1/suppressions; then: "
        "kahuna-sync quarantine discard"
    )


def _requeue_all(wanted: quarantine.Asked, *, as_json: bool) -> None:
    async def again(database: Database, loaded: Settings) -> dict[str, int]:
        counts = dict.fromkeys(("entries", "requeued", "new", "failed"), 0)
        after: quarantine.Place | None = None
        while True:
            done = await deeds.requeue_many(database, wanted, after, ACTOR, ingest.rules_of(loaded), _now)
            counts = {name: count + getattr(done, name) for name, count in counts.items()}
            after = done.next
            if after is None:
                return counts

    counts = _decided(again)
    _show(counts, as_json=as_json)
    if counts["failed"] or counts["requeued"] < counts["entries"]:
        left = counts["entries"] - counts["requeued"]
        failed = f"; batches that could not be applied: {counts['failed']} (see the log)" if counts["failed"] else ""
        says = "kahuna-sync quarantine list says why. For a new word of Kahuna's set EXTRA_REASONS=WORD=REASON"
        click.echo(f"Still not understood: {left}{failed}. {says}.", err=True)
        raise SystemExit(1)


@quarantine_group.command("discard")
@_placed
@NEEDED_NOTE
@_JSON
def quarantine_discard(batch_id: uuid.UUID, entry_index: int, note: str, as_json: bool) -> None:
    """Take one entry out of the way, for good or until somebody requeues it."""
    place = (batch_id, entry_index)
    row = _decided(lambda database: deeds.discard(database, place, ACTOR, note, _now, None))
    _show(archive.entry_told(row), as_json=as_json)


@click.group("reviews")
def reviews_group() -> None:
    """Opt-ins that wait for a person, or were decided by one."""


@reviews_group.command("list")
@click.option("--state", type=click.Choice(["pending", "approved", "refused"]), default="pending", show_default=True)
@_LIMIT
@_JSON
@NAMESPACE
def reviews_list(state: str, limit: int, as_json: bool, namespace: str | None) -> None:
    """Show opt-ins, the oldest first."""
    name = _namespace(namespace)
    rows = _read(lambda connection: reviews.by_state(connection, name, state, limit))
    titles = dict.fromkeys(("id", "channel", "address", "reason", "why", "state"))
    titles |= {"occurred_at": "occurred", "received_at": "received", "note": "note"}
    nothing = f"No opt-in is {state}: those that OPT_IN_REVIEW holds for a person would stand here."
    _list([admin.review_told(row) for row in rows], titles, nothing, as_json=as_json)


@reviews_group.command("approve")
@_ID
@NOTE
@_JSON
def reviews_approve(chosen: uuid.UUID, note: str | None, as_json: bool) -> None:
    """Say that an opt-in is genuine. The address may be messaged again, if nothing else stops it."""
    _review(chosen, "approved", note, as_json=as_json)


@reviews_group.command("refuse")
@_ID
@NOTE
@_JSON
def reviews_refuse(chosen: uuid.UUID, note: str | None, as_json: bool) -> None:
    """Say that an opt-in is not to be believed."""
    _review(chosen, "refused", note, as_json=as_json)


def _review(chosen: uuid.UUID, decision: str, note: str | None, *, as_json: bool) -> None:
    async def decide(database: Database, loaded: Settings) -> Any:
        return await review.decide(database, chosen, decision, ACTOR, note, ingest.policy_of(loaded), _now, None)

    _show(admin.review_told(_decided(decide)), as_json=as_json)


@click.group("imports")
def imports_group() -> None:
    """Lists that were taken in. One is taken back with: kahuna-sync revert import ID"""


@imports_group.command("list")
@_LIMIT
@_JSON
@NAMESPACE
def imports_list(limit: int, as_json: bool, namespace: str | None) -> None:
    """Show imports, the newest first."""
    name = _namespace(namespace)

    async def read(connection: Connection) -> list[Any]:
        rows = await imports.newest(connection, name, None, limit)
        undone = await retractions.of_each(connection, "import", [row.id for row in rows])
        return [undo.import_told(row, undone) for row in rows]

    titles = {"id": "id", "begun_at": "begun", "state": "state", "channel": "channel", "actor": "by"}
    titles |= {"file_name": "file", "reason": "reason", "counts": "counts", "retraction_id": "taken back by"}
    nothing = "No list was taken in yet: those of kahuna-sync import and of the API would stand here."
    _list(_read(read), titles, nothing, as_json=as_json)


@imports_group.command("show")
@_ID
@_JSON
def imports_show(chosen: uuid.UUID, as_json: bool) -> None:
    """Show one import with its counts."""
    _show(_with_undone("import", chosen, imports.one, undo.import_told), as_json=as_json)


@click.group("surges")
def surges_group() -> None:
    """Stops in unusual number. They are in force; take them back with: kahuna-sync revert surge ID"""


@surges_group.command("list")
@click.option("--state", type=click.Choice(["flagged", "kept", "reverted"]), help="Only in this state.")
@_LIMIT
@_JSON
@NAMESPACE
def surges_list(state: str | None, limit: int, as_json: bool, namespace: str | None) -> None:
    """Show surges, the newest first."""
    name = _namespace(namespace)

    async def read(connection: Connection) -> list[Any]:
        rows = await surges.newest(connection, name, state, None, limit)
        undone = await retractions.of_each(connection, "surge", [row.id for row in rows])
        return [undo.surge_told(row, undone) for row in rows]

    titles = dict.fromkeys(("id", "state", "channel", "reason", "kind", "key", "count"))
    titles |= {"first_at": "first", "last_at": "last", "note": "note", "retraction_id": "taken back by"}
    nothing = "No surge: stops of one reason that come from one domain, or in one minute, in unusual number stand here."
    _list(_read(read), titles, nothing, as_json=as_json)


@surges_group.command("show")
@_ID
@_JSON
def surges_show(chosen: uuid.UUID, as_json: bool) -> None:
    """Show one surge, and what was decided about it."""
    _show(_with_undone("surge", chosen, surges.one, undo.surge_told), as_json=as_json)


@surges_group.command("keep")
@_ID
@NOTE
@_JSON
def surges_keep(chosen: uuid.UUID, note: str | None, as_json: bool) -> None:
    """Say that these stops are genuine. A decision stands."""
    row = _decided(lambda database: judging.keep(database, chosen, ACTOR, note, _now, None))
    _show(undo.surge_told(row, {}), as_json=as_json)


@click.group("retractions")
def retractions_group() -> None:
    """What was taken back, or is being. Of imports, surges and reconciliations."""


@retractions_group.command("list")
@_LIMIT
@_JSON
@NAMESPACE
def retractions_list(limit: int, as_json: bool, namespace: str | None) -> None:
    """Show retractions, the newest first."""
    name = _namespace(namespace)
    rows = _read(lambda connection: retractions.newest(connection, name, limit))
    titles = {"id": "id", "created_at": "asked", "kind": "kind", "of": "of", "actor": "by", "reason": "note"}
    titles |= {"state": "state", "counts": "counts", "error": "in the way"}
    nothing = (
        "No fact was taken back yet: those that kahuna-sync revert and reconcile revert take back would stand here. "
        "A reconciliation that recorded nothing here has none; see kahuna-sync reconcile show."
    )
    _list([undo.retraction_told(row) for row in rows], titles, nothing, as_json=as_json)


@retractions_group.command("show")
@_ID
@_LIMIT
@_JSON
def retractions_show(chosen: uuid.UUID, limit: int, as_json: bool) -> None:
    """Show how far a retraction is, and what Kahuna cannot be told of it."""

    async def read(connection: Connection) -> Any:
        row = _there(await retractions.one(connection, chosen), "retraction", "retractions", lambda found: found)
        return await undo.whole_retraction(connection, row, limit)

    _show(_read(read), as_json=as_json)


@click.command("violations")
@click.option("--known-by", type=click.Choice(["kahuna", "us"]), help="Only of stops that this side knew of by then.")
@click.option("--since", type=MOMENT, help="Only of messages sent at this time or later.")
@_CHANNEL
@_LIMIT
@_JSON
@NAMESPACE
def violations_command(
    known_by: str | None, since: datetime | None, channel: Any, limit: int, as_json: bool, namespace: str | None
) -> None:
    """Show messages that Kahuna sent against a stop."""
    wanted = violations.Asked(_namespace(namespace), channel, known_by, since)
    rows = _read(lambda connection: violations.listed(connection, wanted, None, limit))
    nothing = "None was found: a message in Kahuna's logs to an address with a stop in force would stand here."
    if as_json or not rows:
        _list([pulls.violation_told(row) for row in rows], {}, nothing, as_json=as_json)
        return
    titles = {"sent_at": "sent", "channel": "channel", "address": "address", "campaign": "campaign"}
    titles |= {"known_by": "known by", "known_since": "since", "reason": "reason", "occurred_at": "stop of"}
    _list([_Violation.of(row) for row in rows], titles, nothing, as_json=False)


class _Violation(NamedTuple):
    """One as a row of the table; the whole evidence is in the document."""

    sent_at: datetime
    channel: str
    address: str
    campaign: str | None
    known_by: str
    known_since: datetime
    reason: str
    occurred_at: Any

    @staticmethod
    def of(row: Any) -> "_Violation":
        told = pulls.violation_told(row)
        who = (told.address, told.message.campaign, told.known_by, told.known_since)
        return _Violation(told.message.sent_at, told.channel, *who, told.stop.reason, told.stop.occurred_at)


COMMANDS: Final = (
    *(quarantine_group, reviews_group, imports_group, surges_group, retractions_group),
    violations_command,
)


def _read(work: Callable[[Connection], Awaitable[Any]]) -> Any:
    async def read(database: Database) -> Any:
        async with database.read() as connection:
            return await work(connection)

    return with_database(read, quiet=True)


def _with_undone(
    kind: retractions.Kind,
    chosen: uuid.UUID,
    one: Callable[[Connection, uuid.UUID], Awaitable[Any]],
    told: Callable[[Any, dict[uuid.UUID, uuid.UUID]], Any],
) -> Any:
    """What is told of one of this kind, with what took it back, if anything did."""

    async def read(connection: Connection) -> Any:
        row = await one(connection, chosen)
        undone = await retractions.of_each(connection, kind, [chosen])
        return _there(row, kind, f"{kind}s", lambda found: told(found, undone))

    return _read(read)


def _decided(work: Callable[..., Awaitable[Any]]) -> Any:
    """What came of a decision; a refusal names the command instead of the call."""
    try:
        return with_database(work, quiet=True)
    except RequestError as error:
        raise SettingsError(re.sub(r"GET /v1/admin/(\w+)", r"kahuna-sync \1 list", str(error))) from None


def _there(row: Any, what: str, group: str, told: Callable[[Any], Any]) -> Any:
    if row is None:
        raise SettingsError(f"There is no such {what}; list them with kahuna-sync {group} list.")
    return told(row)


def _list(found: Sequence[Any], titles: Mapping[str, str | None], nothing: str, *, as_json: bool) -> None:
    """These as a table, or as a JSON array; without any, what would stand there."""
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(found), indent=2))
        return
    if not found:
        click.echo(nothing, err=True)
        return
    table = Table(*(Column(title or name, no_wrap=name in _WHOLE, overflow="fold") for name, title in titles.items()))
    for one in found:
        table.add_row(*(_cell(getattr(one, name)) for name in titles))
    print_table(table)


_WHOLE: Final = frozenset({"id", "batch_id", "of", "address"})
"""What is of no use when it is cut."""


def _show(found: Any, *, as_json: bool) -> None:
    told = msgspec.to_builtins(found)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(told), indent=2))
        return
    table = Table("field", "value", show_header=False)
    for name, value in told.items():
        if value is not None:
            table.add_row(name.replace("_", " "), _cell(value))
    print_table(table)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, datetime):
        return f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%S}Z"
    if isinstance(value, Mapping):
        return ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in value.items())
    return msgspec.json.encode(value).decode() if isinstance(value, list) else str(value)


def _namespace(given: str | None) -> str:
    return settings.chosen(load(os.environ), given).name


def _now() -> datetime:
    return datetime.now(UTC)
