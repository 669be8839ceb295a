"""Owns what somebody who is known by a token may do about tokens: make one that can do no more than their own, and end
one that they may see. Refuses what would outgrow the limits of whoever asks.
"""

import uuid
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

from service.domain.addresses import Channel
from service.errors import Forbidden, NotFound, Unauthenticated, Unprocessable
from service.store import access
from service.store.access import SCOPES, Caller, Deed, TokenPlace
from service.store.database import Connection, Database

LONGEST_NAME: Final = 100
"""Characters of the name of a token."""


class Wanted(NamedTuple):
    """A token that is to be: None leaves a limit out."""

    name: str
    scopes: Sequence[str]
    namespace: str | None
    channel: Channel | None
    expires_at: datetime | None


async def make(database: Database, wanted: Wanted, by: Caller, clock: Callable[[], datetime]) -> str:
    """A new token, which can be read this once. Forbidden if it could do more than the token of whoever asks, and
    Unauthenticated if that one has ended."""
    now = clock()
    _check(wanted, now)
    _check_against(wanted, by)
    async with database.begin() as connection:
        # Whoever revokes a token that was stolen must not be outrun by one that it makes.
        if by.token_id is not None and not await access.stands(connection, by.token_id, now):
            raise Unauthenticated("Your own token has ended meanwhile, so it cannot make another.")
        token = await access.create_token(
            connection,
            wanted.name,
            wanted.scopes,
            wanted.namespace,
            now,
            channel=wanted.channel,
            expires_at=wanted.expires_at,
        )
        ends = wanted.expires_at and wanted.expires_at.isoformat()
        detail = {"name": wanted.name, "scopes": list(wanted.scopes), "channel": wanted.channel, "expires_at": ends}
        await access.write_down(connection, Deed(by.name, "token.created", wanted.namespace, detail=detail), now)
    return token


def _check(wanted: Wanted, now: datetime) -> None:
    if not wanted.name.strip() or len(wanted.name) > LONGEST_NAME:
        raise Unprocessable(
            f"The name must say who will use the token, in at most {LONGEST_NAME} characters.", "invalid-body"
        )
    if not wanted.name.isprintable():
        # It stands in the audit log: what cannot be seen would let one name pass for another.
        raise Unprocessable(
            "The name holds a character that cannot be seen, such as a line break; take it out.", "invalid-body"
        )
    if not wanted.scopes or set(wanted.scopes) - set(SCOPES):
        raise Unprocessable(f"Choose at least one scope, of {', '.join(SCOPES)}.", "invalid-body")
    if wanted.channel is not None and "admin" in wanted.scopes:
        raise Unprocessable(
            "The scope admin is about both channels: take it out, or let the token speak of both.", "invalid-body"
        )
    if wanted.expires_at is not None and wanted.expires_at <= now:
        raise Unprocessable("The token would have ended already; choose a time to come.", "invalid-body")


def _check_against(wanted: Wanted, by: Caller) -> None:
    """Nobody gets more by making a token than they have."""
    more = sorted(set(wanted.scopes) - by.scopes)
    if more:
        raise Forbidden(
            f"Your own token lacks the scope {more[0]}, so it cannot make one that has it.", "missing-scope"
        )
    if by.namespace is not None and wanted.namespace != by.namespace:
        raise Forbidden(
            f"Your own token speaks of the namespace {by.namespace} only; limit the new one to it.", "other-namespace"
        )
    if by.expires_at is not None and (wanted.expires_at is None or wanted.expires_at > by.expires_at):
        ends = f"{by.expires_at:%Y-%m-%d %H:%M}"
        raise Forbidden(
            f"Your own token ends on {ends} UTC, and one that it makes must not outlive it.", "missing-scope"
        )


async def end(database: Database, token_id: uuid.UUID, by: Caller, clock: Callable[[], datetime]) -> str:
    """Revokes a token; its name. NotFound if it does not live, or is none that whoever asks may see."""
    now = clock()
    async with database.begin() as connection:
        name = await access.end_token(connection, token_id, by.namespace, now)
        if name is None:
            raise NotFound("There is no live token of this id; it may have been revoked meanwhile.")
        deed = Deed(by.name, "token.revoked", by.namespace, detail={"name": name, "id": str(token_id)})
        await access.write_down(connection, deed, now)
    return name


async def visible(
    connection: Connection, by: Caller, now: datetime, after: TokenPlace | None, limit: int
) -> Sequence[Any]:
    """Some of the tokens that whoever asks may see: those of their namespace, or all; the living first."""
    return await access.listed_tokens(connection, by.namespace, now, after, limit)
