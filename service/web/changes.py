"""Owns the feed in HTTP words: what changed since a cursor, at once or as soon as there is something."""

from typing import Annotated, Final

import msgspec
from starlette.responses import Response

from service.domain.addresses import Channel
from service.domain.suppression import Policy, Purpose, counts, verdict
from service.flows.follow import Cursor, Page, Scope, Told, cursor_from
from service.web import asking
from service.web.contract import Answer, AnyOperation, Call, Operation, Shown
from service.web.http import answer, check_again, shown, unless_gone

LONGEST_WAIT: Final = 60
"""Seconds: many a proxy ends what is silent for longer."""


class Following(asking.Page, frozen=True, kw_only=True):
    """What a follower may say."""

    channel: Annotated[Channel | None, msgspec.Meta(description="Changes of this channel only.")] = None
    after: Annotated[
        str | None,
        msgspec.Meta(
            description="The `next`, or the `cursor` of a change, of an earlier answer, or the X-Changes-Cursor of an "
            "export. Left out: begin with the oldest change that is kept."
        ),
    ] = None
    wait: Annotated[
        int,
        msgspec.Meta(
            ge=0, le=LONGEST_WAIT, description="Seconds to wait for a change if there is none yet. It may be fewer."
        ),
    ] = 0
    purpose: Annotated[
        Purpose,
        msgspec.Meta(description="What messages are for: an unsubscribe does not stop a `transactional` e-mail."),
    ] = "marketing"


class Changed(msgspec.Struct):
    """An address whose causes changed, and what is true of it now. `until` is when that ends by itself."""

    cursor: str
    channel: Channel
    address: str
    suppressed: bool
    until: Shown | None
    reasons: list[str]


class Changes(msgspec.Struct):
    """Some changes, oldest first, and the cursor for those after them."""

    changes: list[Changed]
    next: str


async def changes(call: Call[Following, None]) -> Response:
    """What changed after a cursor.

    No change is missed, whatever order transactions commit in; one may come twice. Each is told with what is true of
    its address today. With `wait`, the answer comes as soon as there is a change: 401 if the token has ended by then.
    """
    query, service = call.query, call.service
    scope = Scope(call.namespace, call.channel(query.channel))
    after = None if query.after is None else cursor_from(query.after, scope)
    seconds = min(query.wait, service.settings.changes_longest_wait_seconds)
    following = service.feed.next_page(scope, after, query.limit, seconds)
    waiting = await unless_gone(call.request.receive, following)
    if waiting.cancelled():
        return Response(status_code=204)  # for nobody
    if seconds:
        await check_again(call.request)
    at = int(service.now.timestamp())
    return answer(_document(waiting.result(), scope, at, service.rules.policy, query.purpose))


def _document(page: Page, scope: Scope, at: int, policy: Policy, purpose: Purpose) -> Changes:
    epoch = page.next.epoch
    return Changes([_changed(one, epoch, scope, at, policy, purpose) for one in page.told], page.next.written(scope))


def _changed(told: Told, epoch: str, scope: Scope, at: int, policy: Policy, purpose: Purpose) -> Changed:
    position, _, channel, address = told.change
    judged = verdict({row.cause.reason: row.cause for row in told.causes}, at, policy, purpose)
    reasons = [s.cause.reason for s in judged.standings if s.active and counts(s.cause.reason, purpose)]
    written = Cursor(epoch, position).written(scope)
    return Changed(written, channel, address, judged.suppressed, shown(judged.until), reasons)


_CHANGE: Final = {
    "cursor": "ATkTn1LZrMgKAAAAAAAAAvcAAAAAAAAABgCZGGEl",
    "channel": "email",
    "address": "ann@example.com",
    "suppressed": True,
    "until": None,
    "reasons": ["unsubscribe"],
}

OPERATIONS: Final[list[AnyOperation]] = [
    Operation(
        "GET",
        "/v1/changes",
        changes,
        scope="read",
        query=Following,
        answers=[Answer(200, Changes, "A page of them.", {"changes": [_CHANGE], "next": _CHANGE["cursor"]})],
        problems=["invalid-cursor", "cursor-expired"],
    )
]
