"""Owns the question that operators are asked most, in the shell: why is this address suppressed, or why not?

The sentence, the causes and the history of `/v1/suppressions/{channel}/{address}/history`, from the database itself.
Refuses to change anything, and to write the address to a log.
"""

import os
import sys
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

import click
import msgspec
from rich.table import Column, Table

from service import settings
from service.domain.addresses import CHANNELS, Channel
from service.domain.suppression import verdict
from service.errors import RequestError, SettingsError
from service.flows import ingest
from service.flows.write import normalised
from service.loading import load
from service.operation import NAMESPACE, print_table, with_database
from service.settings import Settings
from service.store import suppressions
from service.store.database import Database
from service.store.suppressions import Subject
from service.web.history import (
    ActionTold,
    CorrectionTold,
    FactTold,
    History,
    MergeTold,
    RetractionTold,
    Review,
    ReviewTold,
    Told,
    history_of,
)
from service.web.suppressions import Cause, cause_told


class Explained(NamedTuple):
    """The causes of an address, and what was noted about it."""

    causes: list[Cause]
    history: History


@click.command("address")
@click.argument("address")
@click.option("--channel", type=click.Choice(CHANNELS), help="Of which channel (default: email if it has an @).")
@click.option(
    "--purpose",
    type=click.Choice(["marketing", "transactional"]),
    default="marketing",
    show_default=True,
    help="What the message is for.",
)
@click.option(
    "--limit", type=click.IntRange(1, 1000), default=200, show_default=True, help="Entries of its history, at most."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, as the history of the API.")
@NAMESPACE
def address_command(address: str, channel: Any, purpose: Any, limit: int, as_json: bool, namespace: str | None) -> None:
    """Say why an address is suppressed, or why not. The rule, the causes, and all that was noted about it.

    ADDRESS is an e-mail address or a number; - reads it from standard input, which keeps it out of the shell's history.
    """
    given = sys.stdin.readline().strip() if address == "-" else address
    chosen: Channel = channel or ("email" if "@" in given else "sms")
    name = settings.chosen(load(os.environ), namespace).name

    async def read(database: Database, loaded: Settings) -> Explained:
        subject = Subject(name, chosen, normalised(chosen, given))
        return await _explained(database, loaded, subject, Review(purpose=purpose, limit=limit))

    try:
        found = with_database(read, quiet=True)
    except RequestError as error:
        raise SettingsError(str(error)) from None
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(found.history), indent=2))
    else:
        _print(found)
    if found.history.next is not None:
        click.echo(f"These are the oldest {limit}: there is more (--limit).", err=True)


async def _explained(database: Database, loaded: Settings, subject: Subject, query: Review) -> Explained:
    policy, now = ingest.policy_of(loaded), datetime.now(UTC)
    async with database.read() as connection:
        rows = await suppressions.causes_of(connection, *subject)
    by_reason = {row.cause.reason: row for row in rows}
    judged = verdict({reason: row.cause for reason, row in by_reason.items()}, int(now.timestamp()), policy)
    causes = [cause_told(standing, by_reason[standing.cause.reason]) for standing in judged.standings]
    told = await history_of(database, policy, now, subject, query, rows)
    return Explained(sorted(causes, key=lambda one: not one.active), told)


def _print(found: Explained) -> None:
    history = found.history
    click.echo(f"{history.address} ({history.channel}, namespace {history.namespace})")
    click.echo(history.verdict.sentence)
    if found.causes:
        table = Table("cause", "in force", "since", "until", "origin", Column("batch", no_wrap=True), title="Causes")
        for one in found.causes:
            cells = (one.occurred_at, one.until, one.origin, one.batch_id)
            occurred, until, origin, batch = ("" if cell is None else str(cell) for cell in cells)
            table.add_row(one.reason, "yes" if one.active else "no", occurred, until, origin, batch)
        print_table(table)
    if history.events:
        table = Table(Column("noted", no_wrap=True), "kind", Column("what", overflow="fold"), title="History")
        for event in history.events:
            table.add_row(f"{event.at:%Y-%m-%d %H:%M:%S}Z", str(event.__struct_config__.tag), _says(event))
        print_table(table)
    else:
        click.echo("Nothing was ever noted about it.", err=True)


def _says(event: Told) -> str:
    """What was noted, in a line."""
    match event:
        case FactTold():
            said = f"{event.action} {event.reason} of {event.occurred_at}, {event.origin}"
            return said if event.taken_back_at is None else f"{said}; taken back {event.taken_back_at:%Y-%m-%d %H:%M}Z"
        case CorrectionTold():
            why = "" if event.reason is None else f" ({event.reason})"
            return f"correction {event.id}: {event.action} in the slot {event.slot}: {event.state}{why}"
        case ReviewTold():
            by = "" if event.decided_by is None else f" by {event.decided_by}"
            return f"opt-in against {event.reason}, held ({event.why}): {event.state}{by}{_noted(event.note)}"
        case ActionTold():
            return f"{event.actor}: {event.action}{_noted(event.detail.get('note') or event.detail.get('evidence'))}"
        case RetractionTold():
            said = f"{event.actor} took back {event.action} {event.reason}, of the {event.what} {event.of}"
            return said + _noted(event.note)
        case MergeTold():
            return f"Kahuna made one user of two: this was the {event.side}"


def _noted(text: object) -> str:
    return f": {text}" if text else ""


COMMANDS: Final = (address_command,)
