"""Owns what a page of the console is given, and how it answers: one visit, by one person, to one namespace.

    async def corrections(visit: Visit) -> Response:
        return visit.page("corrections.html", title="Corrections", rows=...)

    PAGES: Final = (Page("/console/corrections", corrections),)

Every template escapes whatever it is given, and fails on a name that it was not given. Refuses to know any page.
"""

import base64
import hashlib
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import urlencode

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from starlette.requests import Request
from starlette.responses import Response

from service.store.access import Caller
from service.web.contract import Needs
from service.web.http import Service

NAVIGATION: Final = (
    ("/console", "Overview"),
    ("/console/address", "Address"),
    ("/console/batches", "Batches"),
    ("/console/quarantine", "Quarantine"),
    ("/console/reviews", "Reviews"),
    ("/console/corrections", "Corrections"),
    ("/console/plans", "Plans"),
    ("/console/surges", "Surges"),
    ("/console/imports", "Imports"),
    ("/console/retractions", "Taken back"),
    ("/console/tokens", "Tokens"),
    ("/console/health", "Health"),
)

HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    # With no-referrer a browser would say `Origin: null` of our own forms, and the origin could not be judged.
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""What every page is sent with."""

NOTE: Final = "__Host-ks-note"
"""The cookie of what the next page says once."""

LONGEST_NOTE: Final = 2000
"""Bytes of it."""

_HERE: Final = Path(__file__).parent

FILES: Final = {"style.css": "text/css", "keys.js": "text/javascript", "icon.svg": "image/svg+xml"}
"""What pages load, and its media type."""

# Read once: what is served must be what its version says, also while the files of a release are being replaced.
_CONTENTS: Final = {name: (_HERE / name).read_bytes() for name in FILES}
_VERSIONS: Final = {name: hashlib.sha256(content).hexdigest()[:12] for name, content in _CONTENTS.items()}

_UNSEEN: Final = re.compile("[\u00ad\u061c\u115f\u1160\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164\ufeff\uffa0]")

_KEPT: Final = "public, max-age=31536000, immutable"


def _when(moment: datetime | int | str | None) -> Markup:
    """A time of ours or of the world (Unix seconds, or RFC 3339), to the second in UTC."""
    if moment is None:
        return Markup('<span class="faint">–</span>')
    if isinstance(moment, str):
        moment = datetime.fromisoformat(moment)
    if isinstance(moment, int):
        moment = datetime.fromtimestamp(moment, UTC)
    told = moment.astimezone(UTC)
    return Markup('<time datetime="{}" title="UTC">{}</time>').format(
        told.isoformat(timespec="seconds"), f"{told:%Y-%m-%d %H:%M:%S}"
    )


def _seen(text: str) -> Markup:
    """A text of others, with a mark for each character that would have a browser write what follows backwards, or that
    cannot be seen: one address must not look like another."""
    return Markup(_UNSEEN.sub(_mark, str(escape(text))))  # noqa: S704 (escaped)


def _mark(found: re.Match[str]) -> str:
    return f'<span class="mark">U+{ord(found[0]):04X}</span>'


def _count(number: float) -> str:
    """A number with its thousands apart."""
    return f"{number:,.0f}" if float(number).is_integer() else f"{number:,.2f}"


def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(_HERE / "pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    made.filters |= {"when": _when, "count": _count, "seen": _seen}
    made.globals |= {"navigation": NAVIGATION, "files": {name: f"/console/{name}?{_VERSIONS[name]}" for name in FILES}}
    return made


TEMPLATES: Final = _environment()


class Visitor(NamedTuple):
    """Who is signed in. `namespace` and `channel` are the only ones that may be spoken of, or None for all; `csrf` is
    what each form of this session must bring back."""

    caller: Caller
    csrf: str

    @property
    def name(self) -> str:
        """The token's name, which is the actor of what is done."""
        return self.caller.name

    def may(self, scope: str) -> bool:
        """Whether the token has this scope."""
        return scope in self.caller.scopes


class Visit(NamedTuple):
    """One request of somebody who is signed in. `note` is what is to be said once, of what was done before."""

    request: Request
    service: Service
    visitor: Visitor
    namespace: str
    note: str = ""

    @property
    def actor(self) -> str:
        """Who does what this visit does, for the audit log."""
        return self.visitor.name

    @property
    def namespaces(self) -> list[str]:
        """Those that the visitor may see."""
        limit = self.visitor.caller.namespace
        return [name for name in self.service.namespaces if limit in (None, name)]

    def to(self, path: str, **query: Any) -> str:
        """The address of another page, in the same namespace."""
        if len(self.namespaces) > 1:
            query = {"namespace": self.namespace} | query
        given = {name: value for name, value in query.items() if value not in (None, "")}
        return f"{path}?{urlencode(given)}" if given else path

    def page(self, template: str, *, title: str, status: int = 200, **values: Any) -> Response:
        """The page that this template makes of the values."""
        csrf_field = Markup('<input type="hidden" name="csrf" value="{}">').format(self.visitor.csrf)
        text = TEMPLATES.get_template(template).render(
            values | {"title": title, "visit": self, "to": self.to, "csrf_field": csrf_field}
        )
        response = Response(text, status, HEADERS, "text/html")
        if self.note:
            keep(response, NOTE, "", 0)
        return response

    def back(self, path: str, message: str, **query: Any) -> Response:
        """To another page after something was done; it says the message, once."""
        return sent_to(self.to(path, **query), message)

    def problem(self, status: int, title: str, sentence: str) -> Response:
        """A page that says what is amiss and what to do."""
        return self.page("problem.html", title=title, status=status, sentence=sentence)


Form = Mapping[str, str]
"""What a form said, field by field; of a field that was sent twice, the last."""


@dataclass(frozen=True, slots=True)
class Page:
    """Something to look at. `scope` is what the token must have, as for the call of the API that shows the same."""

    path: str
    show: Callable[[Visit], Awaitable[Response]]
    scope: Needs = "admin"


@dataclass(frozen=True, slots=True)
class Action:
    """Something that a form asks for. One that only looks is not audited."""

    path: str
    do: Callable[[Visit, Form], Awaitable[Response]]
    scope: Needs = "admin"
    audited: bool = True


def keep(response: Response, name: str, value: str, seconds: int) -> None:
    """Has the browser keep a cookie, for so long: it goes back to this host alone, and no script reads it."""
    response.set_cookie(name, value, seconds, path="/", secure=True, httponly=True, samesite="strict")


def sent_to(address: str, message: str = "") -> Response:
    """An answer that leads to another page, which says the message."""
    response = Response(None, 303, HEADERS | {"Location": address})
    if message:
        kept = message.encode()[:LONGEST_NOTE].decode(errors="ignore")
        keep(response, NOTE, base64.urlsafe_b64encode(kept.encode()).decode(), 60)
    return response


def note_in(request: Request) -> str:
    """What is to be said once."""
    try:
        return base64.urlsafe_b64decode(request.cookies.get(NOTE, "")).decode()
    except ValueError:
        return ""


def guarded(response: Response) -> Response:
    """The same, with what every page is sent with, as far as it says nothing of its own: a handler of the API that made
    it need not know that a browser is to be told not to keep it."""
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    return response


def file(name: str, version: str) -> Response:
    """A file that pages load. Its address changes with it, so it may be kept; but not if another version is asked for:
    while a release goes out, a page of the one may ask a replica of the other."""
    kept = {"Cache-Control": _KEPT if version == _VERSIONS[name] else "no-store", "X-Content-Type-Options": "nosniff"}
    return Response(_CONTENTS[name], 200, kept, FILES[name])
