"""Owns what a call prints: answers as JSON on standard output, and one sentence about a failure with its exit code.

Refuses to print anything but JSON on standard output, and a key anywhere. Fields of an answer that the client knows
have its names; the others are printed too, by Kahuna's.
"""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import click
import msgspec

from service.kahuna import errors
from service.kahuna.errors import KahunaError
from service.kahuna.reading import Kept

DONE: Final = 0
NOT_ALL: Final = 1
USAGE: Final = 2
KEYS: Final = 3
REQUEST: Final = 4
LATER: Final = 5
AMBIGUOUS: Final = 6
UNREADABLE: Final = 7
INTERRUPTED: Final = 130

EXIT_CODES: Final[Mapping[int, str]] = MappingProxyType(
    {
        DONE: "done",
        NOT_ALL: "answered, but not all was done: entries or items refused, no such user, a failed job",
        USAGE: "wrong usage, input or settings; how much was sent before a faulty line is said",
        KEYS: "the keys are refused, or not permitted to use this API",
        REQUEST: "Kahuna does not take this request; it will not take it later either",
        LATER: "unavailable, unreachable, rate limited, or a job is not done yet; try again",
        AMBIGUOUS: "the request may have been processed; do not blindly repeat it",
        UNREADABLE: "Kahuna's answer cannot be read; it was probably done",
        INTERRUPTED: "interrupted",
    }
)


class _Ending(NamedTuple):
    code: int
    then: str


_ENDINGS: Final[Mapping[type[KahunaError], _Ending]] = MappingProxyType(
    {
        errors.Refused: _Ending(NOT_ALL, "Change the request, which --dry-run shows."),
        errors.CredentialsRefused: _Ending(KEYS, "Check KAHUNA_SECRET_KEY, KAHUNA_API_KEY and KAHUNA_ENV."),
        errors.NotPermitted: _Ending(KEYS, "Ask Kahuna to permit it for these keys, or use another namespace."),
        errors.BadRequest: _Ending(REQUEST, "Change the request, which --dry-run shows."),
        errors.TooLarge: _Ending(REQUEST, "Send less at once."),
        errors.RateLimited: _Ending(LATER, "Try again later."),
        errors.Unavailable: _Ending(LATER, "Try again later."),
        errors.Unreachable: _Ending(LATER, "Check the network and KAHUNA_BASE_URL, and try again."),
        errors.JobUnfinished: _Ending(LATER, "It goes on at Kahuna."),
        errors.Ambiguous: _Ending(AMBIGUOUS, "Find out whether it was done before you send it again."),
        errors.UnreadableAnswer: _Ending(UNREADABLE, "See what answers at KAHUNA_BASE_URL, and KAHUNA_CONTRACT."),
    }
)
_SET_UP: Final = "Check KAHUNA_BASE_URL: this says rather that nothing of Kahuna's is there."
_SAFE: Final = "It is safe to send it again."


class Ended(click.ClickException):
    """The end of a call that did not succeed: one sentence on standard error, and an exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self._code = code

    @property
    def exit_code(self) -> int:  # type: ignore[override]
        """By the table."""
        return self._code

    def show(self, file: Any = None) -> None:
        """The sentence, under the name of the program."""
        click.echo(f"kahuna-sync: {self.message}", err=True, file=file)


def ended(error: KahunaError, repeatable: bool, notes: Iterable[str]) -> Ended:
    """What happened, what Kahuna says of it, how far it got, and what to do next."""
    code, then = _ENDINGS.get(type(error), _Ending(LATER, "Try again later."))
    if isinstance(error, errors.Ambiguous) and repeatable:
        then = _SAFE
    if isinstance(error, errors.UnreadableAnswer) and not repeatable:
        then = f"{_ENDINGS[errors.Ambiguous].then} {then}"
    if isinstance(error, errors.Unavailable) and error.status is not None and error.status < 500:
        then = _SET_UP
    if error.retry_after is not None:
        then = f"Try again in {error.retry_after:.0f} s."
    said = [f"Kahuna says: {printable(error.detail).rstrip('.')}."] if error.detail else []
    return Ended(" ".join([f"{error}.", *said, *notes, then]), code)


def printable(text: str) -> str:
    """The vendor's text without signs that a terminal would obey."""
    return "".join(sign if sign.isprintable() else " " for sign in text)


def line(value: Any) -> bytes:
    """A value as one line of JSON."""
    return msgspec.json.encode(told(value)) + b"\n"


def told(value: Any) -> Any:
    """An answer as plain values, its `extra` fields beside the known ones; what was not told (None) is left out."""
    if isinstance(value, Kept):
        ours = {field.name: getattr(value, field.name) for field in msgspec.structs.fields(value)}
        # A field in `extra` was not what we know by that name, unless that name is ours alone.
        strange = {name: inner for name, inner in ours.pop("extra").items() if name not in value.derived}
        known = {name: inner for name, inner in ours.items() if inner is not None and name not in strange}
        return told(known) | strange
    if isinstance(value, dict):
        return {name: told(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [told(inner) for inner in value]
    return value
