"""Owns `kahuna logs`: a walk over records, and the file that lets the next run go on where this one ended.

The file names a walk that is not at its end by Kahuna's cursor, and one that is by its time: where the next begins.
What Kahuna's cursor gives after the end of a day is not documented, so none is used for longer than its walk. Refuses a
file of another category or namespace, and an `--until` other than the one that an unfinished walk has.
"""

import os
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

import click
import msgspec

from service.kahuna import Pages, Position
from service.shell.options import CURSOR, MOMENT
from service.shell.printing import DONE
from service.shell.running import Session

OPTIONS: Final = (
    click.Option(["--since"], type=MOMENT, help="From this time on; ISO 8601 or Unix seconds, UTC without a zone."),
    click.Option(["--until"], type=MOMENT, help="Before this time; until now if left out."),
    CURSOR,
    click.Option(["--page-size"], type=click.IntRange(1, 1000), default=1000, show_default=True),
    click.Option(
        ["--cursor-file"],
        type=click.Path(dir_okay=False, path_type=Path),
        help="Keeps the position after each page; if it is there, it is gone on from and --since does not count.",
    ),
)


class Mark(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the file holds. With `until`, a walk to that time is under way."""

    category: str
    namespace: str
    since: datetime | None
    cursor: str | None = None
    until: datetime | None = None


async def walk(
    session: Session,
    category: str,
    ask: Callable[..., Pages[Any]],
    *,
    since: datetime | None,
    until: datetime | None,
    cursor: str | None,
    page_size: int,
    cursor_file: Path | None,
) -> int:
    """Prints the records of a category."""
    if cursor_file is None:
        if since is None and cursor is None:
            raise click.UsageError("Say --since when, or --cursor, or --cursor-file.")
        await _print(session, ask(since, until=until, cursor=cursor, page_size=page_size), _told)
        return DONE
    if cursor is not None:
        raise click.UsageError("--cursor and --cursor-file exclude each other.")
    mark = _read(cursor_file, category, session.namespace, until)
    if mark is None and since is None:
        raise click.UsageError("The file of --cursor-file is not there yet: say --since when it is to begin.")
    await _go_on(session, ask, mark or Mark(category, session.namespace, since), until, page_size, cursor_file)
    return DONE


async def _go_on(
    session: Session, ask: Callable[..., Pages[Any]], mark: Mark, until: datetime | None, page_size: int, file: Path
) -> None:
    """Ends the walk that was under way, if there was one, and then makes the new one."""
    now = datetime.fromtimestamp(session.clock(), UTC)
    end = min(until or now, now)
    for goal in [mark.until, end] if mark.until is not None else [end]:
        if mark.since is None or mark.since < goal:
            pages = ask(mark.since, until=goal, cursor=mark.cursor, page_size=page_size)
            await _print(session, pages, partial(_keep, session, mark, goal, file))
            mark = _moved(mark, Position(goal), None)
            _write(file, mark, session.rehearsing)


def _keep(session: Session, mark: Mark, goal: datetime, file: Path, position: Position) -> str:
    _write(file, _moved(mark, position, goal), session.rehearsing)
    return "The same command goes on after what was printed."


async def _print(session: Session, pages: Pages[Any], keep: Callable[[Position], str]) -> None:
    """Each page, then its position: what was printed is not asked for again."""
    async for page in pages.pages():
        session.print(*page.records)
        session.done += len(page.records)
        session.notes[:] = [keep(page.position)]
        session.tell(f"{session.done} records")


def _told(position: Position) -> str:
    since = f"--since {position.since.isoformat()} " if position.since else ""
    cursor = f"--cursor {position.cursor} " if position.cursor else ""
    return f"All before {since}{cursor}was printed; that goes on."


def _moved(mark: Mark, position: Position, until: datetime | None) -> Mark:
    return Mark(mark.category, mark.namespace, position.since, position.cursor, until)


def _read(file: Path, category: str, namespace: str, until: datetime | None) -> Mark | None:
    try:
        mark = msgspec.json.decode(file.read_bytes(), type=Mark)
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        raise click.UsageError("The file of --cursor-file cannot be read, or is not one of this command's.") from None
    if (mark.category, mark.namespace) != (category, namespace):
        raise click.UsageError(f"The file of --cursor-file is of {mark.category}, namespace {mark.namespace}.")
    if mark.until is not None and until is not None and until < mark.until:
        raise click.UsageError(f"A walk until {mark.until.isoformat()} is not at its end: --until must not be earlier.")
    return mark


def _write(file: Path, mark: Mark, rehearsing: bool) -> None:
    """The file is at every moment either the old one or the new one."""
    if rehearsing:
        return
    new = file.with_name(f"{file.name}.new")
    try:
        with new.open("wb") as out:
            out.write(msgspec.json.encode(mark) + b"\n")
            out.flush()
            os.fsync(out.fileno())
        new.replace(file)
    except OSError as error:
        says = f"The file of --cursor-file cannot be written ({error.strerror}): what was printed last will come again."
        raise click.UsageError(says) from None
