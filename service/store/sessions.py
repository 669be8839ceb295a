"""Owns who is signed in at the console: sessions, known by the digest of what the browser keeps.

A session stands for its token: what the token may do, it may, and it ends when the token ends. Refuses to know cookies.
"""

import uuid
from datetime import datetime
from typing import Final

from sqlalchemy import delete, insert, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from service.store.access import Caller
from service.store.tables import sessions, tokens

MOST_OF_A_TOKEN: Final = 50
"""Sessions that one token has at a time; the oldest ends when one more begins."""


async def begin(
    connection: AsyncConnection, digest: bytes, token_id: uuid.UUID, now: datetime, ends_at: datetime
) -> None:
    """A new session of this token. Those that are over are removed, and the oldest of a token that has too many."""
    newest = select(sessions.c.digest).where(sessions.c.token_id == token_id)
    kept = newest.order_by(sessions.c.began_at.desc()).limit(MOST_OF_A_TOKEN - 1)
    surplus = (sessions.c.token_id == token_id) & sessions.c.digest.not_in(kept)
    await connection.execute(delete(sessions).where(or_(sessions.c.ends_at <= now, surplus)))
    row = {"digest": digest, "token_id": token_id, "began_at": now, "ends_at": ends_at}
    await connection.execute(insert(sessions).values(row))


async def caller_of(connection: AsyncConnection, digest: bytes, now: datetime) -> Caller | None:
    """Whom the session stands for, as its token says now; None if either has ended."""
    query = (
        select(tokens.c.name, tokens.c.scopes, tokens.c.namespace, tokens.c.channel, tokens.c.id, tokens.c.expires_at)
        .join(sessions, sessions.c.token_id == tokens.c.id)
        .where(
            sessions.c.digest == digest,
            sessions.c.ends_at > now,
            tokens.c.revoked_at.is_(None),
            or_(tokens.c.expires_at.is_(None), tokens.c.expires_at > now),
        )
    )
    row = (await connection.execute(query)).one_or_none()
    return None if row is None else Caller(row.name, frozenset(row.scopes), *row[2:])


async def end(connection: AsyncConnection, digest: bytes) -> None:
    """Ends the session, if there is one."""
    await connection.execute(delete(sessions).where(sessions.c.digest == digest))
