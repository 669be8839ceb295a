"""Owns the page of the API tokens: what there is, a new one (shown once), and the end of one."""

import uuid
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple, TypeAlias

from starlette.responses import Response

from service.domain.addresses import CHANNELS
from service.errors import NotFound, Unprocessable
from service.flows import tokens as flow
from service.flows.tokens import Wanted
from service.store.access import SCOPES, TokenPlace, place_of
from service.web.asking import Walk, cursor_for, place_at
from service.web.console.asking import ROWS, filtered
from service.web.console.visiting import Action, Form, Page, Visit
from service.web.contract import Parameters

_TOKENS: Final = Parameters(Walk)
_Place: TypeAlias = tuple[bool, str, uuid.UUID]

LIVES: Final = {"30": "in 30 days", "90": "in 90 days", "365": "in a year", "": "never"}
"""After how many days a token may end."""


class Shown(NamedTuple):
    """A token in the list."""

    row: Any
    state: str
    mine: bool


async def tokens(visit: Visit) -> Response:
    """The tokens that the visitor may see, the living first."""
    asked = filtered(visit, _TOKENS)
    return await _page(visit, asked.query)


async def create(visit: Visit, form: Form) -> Response:
    """Makes a token, and shows it this once: going back here will not."""
    wanted = _wanted(visit, form)
    token = await flow.make(visit.service.database, wanted, visit.visitor.caller, visit.service.clock)
    return await _page(visit, Walk(limit=ROWS), token=token, name=wanted.name)


async def revoke(visit: Visit, form: Form) -> Response:
    """Ends a token."""
    try:
        token_id = uuid.UUID(form.get("id", ""))
    except ValueError:
        raise NotFound("There is no such token.") from None
    name = await flow.end(visit.service.database, token_id, visit.visitor.caller, visit.service.clock)
    seconds = visit.service.settings.token_cache_seconds
    return visit.back("/console/tokens", f"Revoked {name}. Every process knows it within {seconds:g} seconds.")


async def _page(visit: Visit, asked: Walk, token: str = "", name: str = "") -> Response:
    now, mine = visit.service.now, visit.visitor.caller
    after = place_at(asked.cursor, _Place)
    async with visit.service.database.read() as connection:
        rows = await flow.visible(connection, mine, now, TokenPlace(*after) if after else None, asked.limit + 1)
    shown = rows[: asked.limit]
    more = cursor_for(*place_of(shown[-1])) if len(rows) > len(shown) else None
    return visit.page(
        "tokens.html",
        title="Tokens",
        tokens=[Shown(row, state_of(row, now), row.id == mine.token_id) for row in shown],
        further=None if more is None else visit.to("/console/tokens", cursor=more),
        made=token,
        made_for=name,
        scopes=[scope for scope in SCOPES if scope in mine.scopes],
        channels=CHANNELS,
        lives=LIVES if mine.expires_at is None else {days: says for days, says in LIVES.items() if days},
        anywhere=mine.namespace is None,
    )


def state_of(row: Any, now: datetime) -> str:
    """Whether it lives."""
    if row.revoked_at is not None:
        return "revoked"
    return "expired" if row.expires_at is not None and row.expires_at <= now else "live"


def _wanted(visit: Visit, form: Form) -> Wanted:
    namespace, channel, days = form.get("namespace") or None, form.get("channel") or None, form.get("days", "")
    if namespace not in (None, *visit.namespaces):
        raise Unprocessable("There is no such namespace; choose one of the list.")
    if channel not in (None, *CHANNELS):
        raise Unprocessable("There is no such channel; choose one of the list.")
    if days not in LIVES:
        raise Unprocessable("Choose one of the times after which the token ends.")
    ends = visit.service.now + timedelta(days=int(days)) if days else None
    scopes = [scope for scope in SCOPES if form.get(f"scope-{scope}")]
    return Wanted(form.get("name", "").strip(), scopes, namespace, channel, ends)


PAGES: Final = (Page("/console/tokens", tokens),)

ACTIONS: Final = (Action("/console/tokens/create", create), Action("/console/tokens/revoke", revoke))
