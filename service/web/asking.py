"""Owns what operators' questions have in common: a page of a list, an id in the path, a row as a document."""

import uuid
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Final, TypeVar

import msgspec

from service.errors import NotFound, Unprocessable
from service.web.contract import Asked, Call

DEFAULT_LIMIT: Final = 100
LARGEST_LIMIT: Final = 1000

T = TypeVar("T", bound=msgspec.Struct)


class Page(Asked, frozen=True, kw_only=True):
    """A question whose answer is some rows."""

    limit: Annotated[int, msgspec.Meta(ge=1, le=LARGEST_LIMIT, description="Rows at most.")] = DEFAULT_LIMIT


class Walk(Page, frozen=True, kw_only=True):
    """A question whose answer goes on where an earlier one ended."""

    cursor: Annotated[str | None, msgspec.Meta(description="The `next` of an earlier page, with the same filters.")] = (
        None
    )


def id_in(call: Call[Any, Any], name: str = "id") -> uuid.UUID:
    """The id in the path."""
    try:
        return uuid.UUID(call.request.path_params[name])
    except ValueError:
        raise NotFound("There is nothing with this id.") from None


def told(kind: type[T], row: Any, **more: Any) -> T:
    """A row, or a mapping, as the document that shows it; `more` has the fields that the row has not, or not so."""
    fields = [one.name for one in msgspec.structs.fields(kind) if one.name not in more]
    found = {name: row[name] if isinstance(row, Mapping) else getattr(row, name) for name in fields}
    return msgspec.convert(found | more, kind)


def in_utc(at: datetime | None, name: str) -> datetime | None:
    """A time that was given, as the database takes it."""
    try:
        return None if at is None else at.astimezone(UTC)
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
        raise Unprocessable(
            "cursor must be the `next` of an earlier page; begin without one.", "invalid-cursor"
        ) from None
