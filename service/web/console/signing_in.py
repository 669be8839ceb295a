"""Owns who may see the console: the sign-in, the session behind a cookie, and whether a form is one of ours.

A session is known by the digest of a random value that only the browser has. Refuses what no page of ours could have
sent: another origin, or a form without the value that belongs to the session.
"""

import hashlib
import hmac
import math
import re
import secrets
from datetime import datetime, timedelta
from typing import Final
from urllib.parse import parse_qsl, urlsplit

from starlette.requests import Request
from starlette.responses import Response

from service.errors import BadRequest, Forbidden, TooManyCalls
from service.store import access, sessions
from service.store.access import Caller, Deed
from service.telemetry import logger
from service.web.bodies import read_body
from service.web.console.visiting import HEADERS, NOTE, TEMPLATES, Form, Visitor, keep, note_in, sent_to
from service.web.http import service_of

COOKIE: Final = "__Host-ks-session"

FORM_LIMIT: Final = 256 * 1024
SIGN_IN_LIMIT: Final = 16 * 1024
"""Bytes of a form, and of the one that anybody may send: reading takes the whole process some time."""

LONGEST_WAY: Final = 2000
"""Characters of the page to go on to."""

MOST_FIELDS: Final = 1000

FAILURES: Final = 10
FAILURE_SECONDS: Final = 60.0
"""So many sign-ins may fail from one place in so many seconds, in each process, until those that fail have to wait. A
token has too many bits to be guessed, and asking about a wrong one costs what it costs under `/v1`: this is for whoever
tries again without an end, and for the log. Who has a right one never waits for others at the same place."""

MOST_PLACES: Final = 1000
"""Places that are remembered."""

_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})

_INSIDE: Final = re.compile(r"/console(/[\w/-]*)?(\?[\w=&%.+~-]*)?", re.ASCII)


class Failures:
    """Sign-ins that failed of late, by where they came from."""

    def __init__(self) -> None:
        self._of: dict[str, list[datetime]] = {}

    def note(self, place: str, now: datetime) -> None:
        """One more failed. Refuses if there were too many before."""
        late = [at for at in self._of.pop(place, []) if timedelta() <= now - at < timedelta(seconds=FAILURE_SECONDS)]
        if len(self._of) >= MOST_PLACES:
            del self._of[next(iter(self._of))]
        self._of[place] = late
        if len(late) >= FAILURES:
            seconds = math.ceil(FAILURE_SECONDS - (now - late[0]).total_seconds())
            raise TooManyCalls(
                "This token is wrong too, as many others from here; check it, or wait a minute.", seconds
            )
        late.append(now)


async def form_of(request: Request, limit: int = FORM_LIMIT) -> Form:
    """The fields of a form, of so many bytes at most. Ask `check_origin` before."""
    kind = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise BadRequest("Send the form as application/x-www-form-urlencoded.")
    declared, seconds = request.headers.get("Content-Length", ""), service_of(request).settings.body_timeout_seconds
    body = await read_body(request.receive, declared, limit, seconds)
    try:
        fields = parse_qsl(body.decode("ascii"), keep_blank_values=True, max_num_fields=MOST_FIELDS, errors="strict")
    except ValueError:
        raise BadRequest("The form is not encoded as browsers encode forms.") from None
    if any("\0" in value for _, value in fields):
        raise BadRequest("A field of the form holds a NUL; take it out.")
    return dict(fields)


def check_origin(request: Request) -> None:
    """Refuses a form of another origin, which browsers tell. It must be this host, by TLS unless it is this machine: a
    proxy may have ended that before us, so our own scheme says nothing."""
    if request.headers.get("Sec-Fetch-Site", "same-origin") != "same-origin":
        raise Forbidden("This form was sent from another site. Open the console itself, and do it there.")
    try:
        origin = urlsplit(request.headers.get("Origin", ""))
        at_home = origin.netloc.lower() == request.headers.get("Host", "").lower() != ""
        safe = origin.scheme == "https" or (origin.scheme == "http" and origin.hostname in _LOOPBACK)
    except ValueError:
        at_home = safe = False
    if not (at_home and safe):
        raise Forbidden(
            "This form does not come from the console's own address. Open the console by https (or on this machine by "
            "http://localhost), and let the proxy before it pass on the Host header."
        )


def check_form(form: Form, visitor: Visitor) -> None:
    """Refuses a form that no page of this session has sent."""
    if not hmac.compare_digest(form.get("csrf", "").encode(), visitor.csrf.encode()):
        raise Forbidden("This form belongs to another session. Open the page again, and send it from there.")


async def visitor_of(request: Request) -> Visitor | None:
    """Who is signed in, as the token says now."""
    key = request.cookies.get(COOKIE, "")
    if not key:
        return None
    service = service_of(request)
    async with service.database.read() as connection:
        caller = await sessions.caller_of(connection, _digest(key), service.now)
    if caller is None or "admin" not in caller.scopes:
        return None
    service.callers.note(caller)
    return Visitor(caller, hmac.new(key.encode(), b"csrf", hashlib.sha256).hexdigest())


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def sign_in_page(request: Request, wanted: str = "", fault: str = "", status: int = 200) -> Response:
    """The form that asks for a token. `wanted` is the page to go on to."""
    values = {"fault": fault, "wanted": wanted, "note": note_in(request)}
    response = Response(TEMPLATES.get_template("sign_in.html").render(values), status, HEADERS, "text/html")
    if values["note"]:
        keep(response, NOTE, "", 0)
    return response


def inside(path: str) -> str:
    """A page of the console to go to: the first, unless this is another."""
    return path if len(path) <= LONGEST_WAY and _INSIDE.fullmatch(path) else "/console"


async def sign_in(request: Request, failures: Failures) -> Response:
    """Exchanges a token for a session, and ends the one that the browser had."""
    check_origin(request)
    service, form = service_of(request), await form_of(request, SIGN_IN_LIMIT)
    place, wanted = request.client.host if request.client else "", inside(form.get("next", ""))
    caller = await service.callers.of(form.get("token", "").strip())
    if caller is None or caller.token_id is None or "admin" not in caller.scopes:
        if caller is None:
            failures.note(place, service.now)
        logger().warning("console.sign_in_refused", known=caller is not None, client=place)
        return sign_in_page(request, wanted, _fault(caller), 403)
    key = secrets.token_urlsafe(32)
    hours = service.settings.console_session_hours
    async with service.database.begin() as connection:
        now = service.now
        await sessions.end(connection, _digest(request.cookies.get(COOKIE, "")))
        await sessions.begin(connection, _digest(key), caller.token_id, now, now + timedelta(hours=hours))
        await access.write_down(connection, Deed(caller.name, "console.sign_in", caller.namespace), now)
    logger().info("console.signed_in", token_id=str(caller.token_id), client=place)
    response = sent_to(wanted)
    keep(response, COOKIE, key, int(hours * 3600))
    return response


def _fault(caller: Caller | None) -> str:
    if caller is None:
        return "This token is unknown, revoked or expired. Check that all of it was copied, or make another."
    return "This token lacks the scope admin. Make one that has it: kahuna-sync token create --scopes read,write,admin"


async def sign_out(request: Request, visitor: Visitor) -> Response:
    """Ends the session, here and in the browser."""
    service = service_of(request)
    async with service.database.begin() as connection:
        await sessions.end(connection, _digest(request.cookies[COOKIE]))
        await access.write_down(
            connection, Deed(visitor.name, "console.sign_out", visitor.caller.namespace), service.now
        )
    logger().info("console.signed_out", token_id=str(visitor.caller.token_id))
    response = sent_to("/console/sign-in", "You are signed out.")
    keep(response, COOKIE, "", 0)
    return response
