"""Owns how a page asks and does what the API answers and does: a visit as a call of the same handler.

Fields of a form are read as the parameters and bodies of the API are, with its sentences for what makes no sense. What
an HTML form says in its own way is put in the API's: an empty field is one that was left out, and a time without an
offset is in UTC. Refuses to decide anything.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final, Generic, NamedTuple, TypeVar
from urllib.parse import urlencode

import msgspec

from service.errors import Forbidden, Unprocessable
from service.web.asking import Walk
from service.web.console.visiting import Form, Visit
from service.web.contract import Call, Needs, Parameters

ROWS: Final = 50
"""Rows of a list on one page."""

TIMES: Final = frozenset({"since", "until", "occurred_at"})
"""Fields that hold a time."""

Q = TypeVar("Q", bound=msgspec.Struct)
B = TypeVar("B", bound=msgspec.Struct | None)

_TIME_OF_A_FIELD: Final = re.compile(r"\d{4}-\d{2}-\d{2}(?:T\d{2}:\d{2}(?::\d{2}(?:\.\d{1,6})?)?)?", re.ASCII)


class Filter(NamedTuple, Generic[Q]):
    """What a list is asked for: as the handler takes it, and as the form said it."""

    query: Q
    said: dict[str, str]

    def of(self, name: str) -> str:
        """What the form said in a field."""
        return self.said.get(name, "")

    @property
    def is_narrowed(self) -> bool:
        """Whether anything was asked for but a state."""
        return bool(self.said.keys() - {"state"})


def filtered(visit: Visit, parameters: Parameters[Q], said: Iterable[tuple[str, str]] | None = None) -> Filter[Q]:
    """The parameters of this visit, or those that a form said, in its namespace."""
    pairs = visit.request.query_params.multi_items() if said is None else said
    kept = [(name, value.strip()) for name, value in pairs if value.strip() and name != "namespace"]
    query = parameters.read(urlencode([(name, _in_api_words(name, value)) for name, value in kept]).encode())
    more: dict[str, Any] = {"namespace": visit.namespace}
    if isinstance(query, Walk) and "limit" not in dict(kept):
        more["limit"] = ROWS
    return Filter(msgspec.structs.replace(query, **more), {name: value for name, value in kept if name != "cursor"})


def _in_api_words(name: str, value: str) -> str:
    """What a field for times says, as RFC 3339 in UTC; anything else as it is."""
    if name not in TIMES or not _TIME_OF_A_FIELD.fullmatch(value):
        return value
    whole = value if "T" in value else f"{value}T00:00"
    return f"{whole}Z" if whole.count(":") > 1 else f"{whole}:00Z"


def as_body(kind: type[B], fields: Mapping[str, Any]) -> B:
    """The body of a call of the API, from a form. Refused with a sentence that says which field is amiss."""
    if any("\0" in value for value in fields.values() if isinstance(value, str)):
        raise Unprocessable("A text of the form holds a NUL; take it out.", "invalid-body")
    try:
        return msgspec.convert(fields, kind)
    except msgspec.ValidationError as error:
        raise Unprocessable(f"The form is not filled in as it must be: {error}.", "invalid-body") from None


def why_of(form: Form, old: str, sentence: str) -> str:
    """The note of a decision that needs one; without it, that sentence is the refusal. `old` is what the field was
    called: while a release rolls out, a replica may be sent a form that the one before it has shown."""
    note = form.get("note", form.get(old, "")).strip()
    if not note:
        raise Unprocessable(sentence)
    return note


def written(form: Form, *names: str) -> dict[str, str]:
    """These fields of a form, as far as something stands in them; a time in the API's words."""
    found = {name: form.get(name, "").strip() for name in names}
    return {name: _in_api_words(name, value) for name, value in found.items() if value}


def call(visit: Visit, query: Q, body: B) -> Call[Q, B]:
    """The visit as the call of a handler."""
    return Call(visit.request, visit.service, visit.visitor.caller, query, body)


def require(visit: Visit, scope: Needs) -> None:
    """Refuses what the visitor's token could not do by the API either."""
    if not visit.visitor.may(scope):
        raise Forbidden(f"Your token lacks the scope {scope}. Sign in with one that has it.", "missing-scope")


def ticked(form: Form, prefix: str) -> list[str]:
    """The names of the boxes that were ticked, without what they all begin with."""
    return [name.removeprefix(prefix) for name in form if name.startswith(prefix)]


def further(visit: Visit, path: str, asked: Filter[Any], cursor: str | None) -> str | None:
    """Where the next page of a list is, if there is one."""
    return None if cursor is None else visit.to(path, **asked.said, cursor=cursor)
