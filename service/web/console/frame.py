"""Owns the routes of the console: each page and action behind the sign-in, with its errors turned into pages.

Refuses to know what any page shows.
"""

import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeAlias
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import Receive, Scope, Send

from service.errors import Forbidden, KahunaSyncError, NotFound, StorageUnavailable, TooManyCalls
from service.store import access
from service.store.access import Deed
from service.telemetry import REQUEST_ID
from service.web import http
from service.web.console import address, corrections, health, overview, plans, receipts, reviews, tokens, undoing
from service.web.console.signing_in import (
    Failures,
    check_form,
    check_origin,
    form_of,
    inside,
    sign_in,
    sign_in_page,
    sign_out,
    visitor_of,
)
from service.web.console.visiting import (
    FILES,
    HEADERS,
    TEMPLATES,
    Action,
    Page,
    Visit,
    Visitor,
    file,
    guarded,
    note_in,
    sent_to,
)
from service.web.http import namespace_for, service_of

PAGES: Final[Sequence[Page]] = (
    *overview.PAGES,
    *address.PAGES,
    *receipts.PAGES,
    *reviews.PAGES,
    *corrections.PAGES,
    *plans.PAGES,
    *undoing.PAGES,
    *tokens.PAGES,
    *health.PAGES,
)

ACTIONS: Final[Sequence[Action]] = (
    *overview.ACTIONS,
    *address.ACTIONS,
    *receipts.ACTIONS,
    *reviews.ACTIONS,
    *corrections.ACTIONS,
    *plans.ACTIONS,
    *undoing.ACTIONS,
    *tokens.ACTIONS,
    *health.ACTIONS,
)

Handler: TypeAlias = Callable[[Request], Awaitable[Response]]

_ID: Final = re.compile(r"[0-9A-Za-z-]{1,64}", re.ASCII)
"""What may stand in a path where an id does: it is written into the audit log and into the way back, as it came."""

_NO_PAGE: Final = "There is no such page; those that there are stand above."

_OTHER_WAY: Final = (
    "This address is there, but not for what the browser asked it for: pages are opened, and forms are sent from their "
    "page. Begin at the console's first page."
)

_TITLES: Final = {
    400: "That was not understood",
    403: "Not allowed",
    404: "Not found",
    409: "It has changed meanwhile",
    422: "That cannot be",
    429: "Too often",
    503: "The database is away",
}


def routes() -> list[Route]:
    """All of the console's."""
    failures = Failures()

    async def signing(request: Request) -> Response:
        try:
            return await sign_in(request, failures)
        except KahunaSyncError as error:
            return _with_patience(error, sign_in_page(request, fault=str(error), status=error.status))

    known = [
        *(Route(f"/console/{name}", _serving(name), methods=["GET"]) for name in FILES),
        Route("/console/sign-in", _asking, methods=["GET"]),
        Route("/console/sign-in", signing, methods=["POST"]),
        *(Route(page.path, _showing(page), methods=["GET"]) for page in PAGES),
        *(Route(action.path, _doing(action), methods=["POST"]) for action in (*ACTIONS, _SIGN_OUT)),
    ]
    # Whatever the method is: the router's own refusal of one would be no page.
    return [*known, Route("/console", _Otherwise(known)), Route("/console/{rest:path}", _Otherwise(known))]


class _Otherwise:
    """What is asked for in a way that no page and no action is for, or is not there at all."""

    def __init__(self, known: Sequence[Route]) -> None:
        self._known = known

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        here = [route for route in self._known if route.matches(scope)[0] is Match.PARTIAL]
        methods = sorted({method for route in here for method in route.methods or ()})
        response = _other_method(methods) if methods else await _nothing(Request(scope, receive))
        await response(scope, receive, send)


def _other_method(methods: Sequence[str]) -> Response:
    text = TEMPLATES.get_template("alone.html").render(title="Not in this way", sentence=_OTHER_WAY)
    return Response(text, 405, HEADERS | {"Allow": ", ".join(methods)}, "text/html")


async def _out(visit: Visit, _form: object) -> Response:
    return await sign_out(visit.request, visit.visitor)


_SIGN_OUT: Final = Action("/console/sign-out", _out, audited=False)


def _serving(name: str) -> Handler:
    async def serve(request: Request) -> Response:
        return file(name, request.url.query)

    return serve


async def _asking(request: Request) -> Response:
    return sign_in_page(request, inside(request.query_params.get("next", "")))


async def _nothing(request: Request) -> Response:
    async def show(visit: Visit) -> Response:
        return visit.problem(404, "Not found", _NO_PAGE)

    return await _showing(Page("", show))(request)


def _showing(page: Page) -> Handler:
    async def answer(request: Request) -> Response:
        visitor = None
        try:
            visitor = await visitor_of(request)
            if visitor is None:
                return _to_sign_in(request)
            return guarded(await page.show(_visit(request, visitor, page.scope)))
        except KahunaSyncError as error:
            return _told(request, visitor, error)

    return answer


def _doing(action: Action) -> Handler:
    async def answer(request: Request) -> Response:
        visitor = None
        try:
            check_origin(request)
            visitor = await visitor_of(request)
            if visitor is None:
                return sent_to("/console/sign-in", "Your session has ended. Sign in, and do it again.")
            form = await form_of(request)
            check_form(form, visitor)
            visit = _visit(request, visitor, action.scope)
            if action.audited:
                await _audit(visit, action)
            return guarded(await action.do(visit, form))
        except KahunaSyncError as error:
            return _told(request, visitor, error)

    return answer


def _visit(request: Request, visitor: Visitor, scope: str | None) -> Visit:
    service = service_of(request)
    if not all(_ID.fullmatch(value) for value in request.path_params.values()):
        raise NotFound(_NO_PAGE)
    if scope is not None and not visitor.may(scope):
        raise Forbidden(f"Your token lacks the scope {scope}. Sign in with one that has it.", "missing-scope")
    given = request.query_params.get("namespace")
    first = visitor.caller.namespace or service.namespaces[0]
    main = service.settings.main_namespace
    chosen = given or (main.name if main and visitor.caller.namespace in (None, main.name) else first)
    return Visit(request, service, visitor, namespace_for(service, visitor.caller, chosen), note_in(request))


async def _audit(visit: Visit, action: Action) -> None:
    """Notes that somebody asked for it here, and with which token: names may be alike. What came of it, the flow itself
    writes down."""
    detail = {"path": action.path, "token_id": str(visit.visitor.caller.token_id), "request_id": REQUEST_ID.get()}
    detail |= visit.request.path_params
    deed = Deed(visit.actor, "console.action", visit.namespace, detail=detail)
    async with visit.service.database.begin() as connection:
        await access.write_down(connection, deed, visit.service.now)


def _to_sign_in(request: Request) -> Response:
    query = f"?{request.url.query}" if request.url.query else ""
    wanted = inside(request.url.path + query)
    return sent_to("/console/sign-in" if wanted == "/console" else f"/console/sign-in?next={quote(wanted)}")


async def on_fault(request: Request, error: Exception) -> Response:
    """What nobody foresaw, as a page if it was one that was asked for, and else as the problem that it is."""
    if not f"{request.scope['path']}/".startswith("/console/"):
        return await http.on_fault(request, error)
    sentence = "This is a fault of ours. It is in the log of the service, with the id X-Request-ID of this answer."
    text = TEMPLATES.get_template("alone.html").render(title="That did not work", sentence=sentence)
    return Response(text, 500, HEADERS, "text/html")


def _told(request: Request, visitor: Visitor | None, error: KahunaSyncError) -> Response:
    """The page that an error is."""
    status = error.status
    title = _TITLES.get(status, "That did not work")
    if visitor is None:
        text = TEMPLATES.get_template("alone.html").render(title=title, sentence=str(error))
        return _with_patience(error, Response(text, status, HEADERS, "text/html"))
    service = service_of(request)
    visit = Visit(request, service, visitor, visitor.caller.namespace or service.namespaces[0])
    return _with_patience(error, visit.problem(status, title, str(error)))


def _with_patience(error: KahunaSyncError, response: Response) -> Response:
    if isinstance(error, StorageUnavailable | TooManyCalls):
        response.headers["Retry-After"] = str(error.retry_after)
    return response
