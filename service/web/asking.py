"""Owns what an operator's question says: who asks, about which namespace, which page, which id."""

import uuid
from base64 import urlsafe_b64decode, urlsafe_b64encode
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

import msgspec
from starlette.requests import Request

from service.errors import NotFound, Unprocessable
from service.store.access import Caller
from service.web.http import caller_with, moment_from, namespace_for, parameters

DEFAULT_LIMIT: Final = 100
LARGEST_LIMIT: Final = 1000

_T = TypeVar("_T")


async def asked(request: Request, *allowed: str) -> tuple[Caller, str, dict[str, str]]:
    """Who asks with the scope admin, the namespace, and the parameters."""
    caller = await caller_with(request, "admin")
    given = parameters(request, "namespace", *allowed)
    return caller, namespace_for(request, caller, given.get("namespace")), given


async def asked_by_id(request: Request, *allowed: str) -> tuple[str, str | None, dict[str, str]]:
    """Who asks for something by its id, the only namespace that it may be in (None if any will do), the parameters."""
    caller = await caller_with(request, "admin")
    given = parameters(request, "namespace", *allowed)
    named = given.get("namespace")
    return caller.name, caller.namespace if named is None else namespace_for(request, caller, named), given


def id_in(request: Request, name: str = "id") -> uuid.UUID:
    """The id in the path."""
    try:
        return uuid.UUID(request.path_params[name])
    except ValueError:
        raise NotFound("There is nothing with this id.") from None


def limit_in(given: dict[str, str]) -> int:
    """How many rows were asked for."""
    text = given.get("limit", str(DEFAULT_LIMIT))
    if not text.isdecimal() or len(text) > 4 or not 1 <= int(text) <= LARGEST_LIMIT:
        raise Unprocessable(f"limit must be a number from 1 to {LARGEST_LIMIT}.", "invalid-parameter")
    return int(text)


def choice_in(given: dict[str, str], name: str, choices: tuple[_T, ...]) -> _T | None:
    """The one of these words that was given; None if the parameter is left out."""
    value = given.get(name)
    if value is None:
        return None
    if value not in choices:
        raise Unprocessable(f"{name} must be one of {', '.join(map(str, choices))}.", "invalid-parameter")
    return choices[choices.index(value)]


def moment_in(given: dict[str, str], name: str) -> datetime | None:
    """The time that was given, in UTC; None if the parameter is left out."""
    try:
        return moment_from(given[name], name).astimezone(UTC) if name in given else None
    except OverflowError:
        raise Unprocessable(f"{name} is beyond all calendars.", "invalid-time") from None


def cursor_for(*place: object) -> str:
    """A place in a list, for the caller to hand back."""
    return urlsafe_b64encode(msgspec.json.encode(place)).decode().rstrip("=")


def place_at(cursor: str | None, kind: Any) -> Any:
    """The place that a cursor of ours stands for, as this kind of tuple; None without one."""
    if cursor is None:
        return None
    try:
        place = msgspec.json.decode(urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)), type=kind)
        return tuple(part.astimezone(UTC) if isinstance(part, datetime) else part for part in place)
    except (ValueError, OverflowError):
        raise Unprocessable("cursor must be the `next` of an earlier page.", "invalid-parameter") from None
