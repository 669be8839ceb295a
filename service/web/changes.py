"""Owns the feed in HTTP words: what changed since a cursor, at once or as soon as there is something."""

from typing import Final, get_args

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from service.domain.addresses import CHANNELS
from service.domain.suppression import Policy, Purpose, counts, verdict
from service.errors import Unprocessable
from service.flows.follow import Cursor, Page, Scope, Told, cursor_from
from service.web.asking import choice_in, limit_in
from service.web.http import answer, caller_with, namespace_for, parameters, service_of, shown, unless_gone

LONGEST_WAIT: Final = 60
"""Seconds: many a proxy ends what is silent for longer."""


class Changed(msgspec.Struct):
    """An address whose causes changed, and what is true of it now. `until` is when that ends by itself."""

    cursor: str
    channel: str
    address: str
    suppressed: bool
    until: str | None
    reasons: list[str]


class Changes(msgspec.Struct):
    """Some changes, oldest first, and the cursor for those after them."""

    changes: list[Changed]
    next: str


async def changes(request: Request) -> Response:
    """GET: what changed after a cursor; with `wait`, as soon as there is something."""
    caller = await caller_with(request, "read")
    given = parameters(request, "namespace", "channel", "after", "limit", "wait", "purpose")
    scope = Scope(namespace_for(request, caller, given.get("namespace")), choice_in(given, "channel", CHANNELS))
    purpose: Purpose = choice_in(given, "purpose", get_args(Purpose)) or "marketing"
    after = cursor_from(given["after"], scope) if "after" in given else None
    limit, seconds = limit_in(given), _seconds_in(given)
    service = service_of(request)
    waiting = await unless_gone(request.receive, service.feed.next_page(scope, after, limit, seconds))
    if waiting.cancelled():
        return Response(status_code=204)  # for nobody
    at = int(service.now.timestamp())
    return answer(_document(waiting.result(), scope, at, service.rules.policy, purpose))


ROUTES: Final = [Route("/v1/changes", changes, methods=["GET"])]


def _seconds_in(given: dict[str, str]) -> int:
    text = given.get("wait", "0")
    if not text.isascii() or not text.isdecimal() or len(text) > 3 or int(text) > LONGEST_WAIT:
        raise Unprocessable(f"wait must be whole seconds from 0 to {LONGEST_WAIT}.", "invalid-parameter")
    return int(text)


def _document(page: Page, scope: Scope, at: int, policy: Policy, purpose: Purpose) -> Changes:
    epoch = page.next.epoch
    return Changes([_changed(one, epoch, scope, at, policy, purpose) for one in page.told], page.next.written(scope))


def _changed(told: Told, epoch: str, scope: Scope, at: int, policy: Policy, purpose: Purpose) -> Changed:
    position, _, channel, address = told.change
    judged = verdict({row.cause.reason: row.cause for row in told.causes}, at, policy, purpose)
    reasons = [s.cause.reason for s in judged.standings if s.active and counts(s.cause.reason, purpose)]
    written = Cursor(epoch, position).written(scope)
    return Changed(written, channel, address, judged.suppressed, shown(judged.until), reasons)
