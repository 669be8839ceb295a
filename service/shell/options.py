"""Owns the options that several commands share, and how their texts become values.

Refuses to call anything. A time without a zone is UTC.
"""

from collections.abc import Mapping
from datetime import UTC, date, datetime
from typing import Any, Final

import click


class Moment(click.ParamType[datetime]):
    """A moment: ISO 8601, in UTC unless it has a zone, or Unix seconds."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """The moment, with its zone."""
        try:
            if str(value).isdecimal():
                return datetime.fromtimestamp(int(value), UTC)
            read = datetime.fromisoformat(str(value))
        except (ValueError, OverflowError, OSError):
            self.fail("must be a time such as 2026-11-22T09:30:00Z, or Unix seconds", param, ctx)
        return read if read.tzinfo else read.replace(tzinfo=UTC)


class Day(click.ParamType[date]):
    """A day: YYYY-MM-DD."""

    name = "day"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> date:
        """The day."""
        try:
            return date.fromisoformat(str(value))
        except ValueError:
            self.fail("must be a day such as 2026-11-22", param, ctx)


class Pair(click.ParamType[tuple[str, str]]):
    """A name and a text: NAME=VALUE."""

    name = "name=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        """Both."""
        name, separator, text = str(value).partition("=")
        if not (separator and name):
            self.fail("must be NAME=VALUE", param, ctx)
        return name, text


MOMENT: Final = Moment()


def pairs(flag: str, target: str, says: str) -> click.Option:
    """An option that may be given several times, each with NAME=VALUE; the command gets a dict."""
    return click.Option(
        [flag, target],
        type=Pair(),
        multiple=True,
        metavar="NAME=VALUE",
        callback=lambda _ctx, _param, given: dict(given),
        help=f"{says}; may be repeated.",
    )


_TYPES: Final[Mapping[str, str]] = {
    "--email": "email",
    "--username": "username",
    "--user-id": "user_id",
    "--mobile-number": "mobile_number",
}


def _gather(ctx: click.Context, param: click.Parameter, given: Any) -> None:
    credentials = ctx.params.setdefault("credentials", {})
    if isinstance(given, tuple):
        credentials.update(given)
    elif given is not None:
        credentials[_TYPES[param.opts[0]]] = given


CREDENTIALS: Final = (
    *(
        click.Option([flag], expose_value=False, callback=_gather, metavar="TEXT", help=f"The user's {kind}.")
        for flag, kind in _TYPES.items()
    ),
    click.Option(
        ["--credential"],
        type=Pair(),
        multiple=True,
        expose_value=False,
        callback=_gather,
        metavar="TYPE=VALUE",
        help="A credential of any type, such as fbid=42; may be repeated.",
    ),
)
"""Who is meant; the command gets `credentials`, type -> value."""

FILE: Final = click.Argument(["file"], type=click.File("rb"))
FILE_OR_FLAGS: Final = click.Argument(["file"], type=click.File("rb"), required=False)
SKIP: Final = click.Option(
    ["--skip"],
    type=click.IntRange(min=0),
    default=0,
    metavar="N",
    help="Leave out the first N items, to go on after a failure.",
)
CAMPAIGN: Final = click.Option(["--campaign-id"], type=int, required=True, help="Kahuna's id of the campaign.")
START: Final = click.Option(["--start"], type=MOMENT, help="When it is to begin; at once if left out.")
PARAMS: Final = pairs("--param", "params", "A parameter for all, unless an item has its own")
CURSOR: Final = click.Option(["--cursor"], help="Go on at this cursor of Kahuna's.")


def one(credentials: Mapping[str, str]) -> tuple[str, str]:
    """The only credential; UsageError unless there is one."""
    if len(credentials) != 1:
        raise click.UsageError("Say who is meant by exactly one credential, such as --email.")
    return next(iter(credentials.items()))


def seconds(moment: datetime | None) -> int | None:
    """A moment as Kahuna's APIs want it in JSON: in whole Unix seconds."""
    return None if moment is None else int(moment.timestamp())
