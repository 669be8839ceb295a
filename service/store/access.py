"""Owns who may do what, and who did: API tokens, kept as hashes, and the audit log."""

import hashlib
import secrets
import uuid
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

from sqlalchemy import LargeBinary, any_, bindparam, insert, select, update
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncConnection

from service.domain.addresses import Channel
from service.domain.facts import Fact
from service.domain.suppression import Policy
from service.store.database import pages
from service.store.tables import audit, tokens

SCOPES: Final = ("read", "write", "admin")

_PREFIX: Final = "ks_"

# Built once: it is asked with every request.
_CALLERS: Final = select(tokens.c.hash, tokens.c.name, tokens.c.scopes, tokens.c.namespace).where(
    tokens.c.hash == any_(bindparam("hashes", type_=ARRAY(LargeBinary))), tokens.c.revoked_at.is_(None)
)


class Caller(NamedTuple):
    """Who a token stands for. `namespace` and `channel` are the only ones it may speak of, or None for all."""

    name: str
    scopes: frozenset[str]
    namespace: str | None
    channel: Channel | None = None


async def create_token(
    connection: AsyncConnection, name: str, scopes: Sequence[str], namespace: str | None, now: datetime
) -> str:
    """A new token: the only time that it can be read. It is random enough for a plain hash."""
    token = _PREFIX + secrets.token_urlsafe(32)
    row = {"id": uuid.uuid4(), "name": name, "hash": _hash(token), "scopes": list(scopes)}
    await connection.execute(insert(tokens).values(row | {"namespace": namespace, "created_at": now}))
    return token


async def callers_of(connection: AsyncConnection, given: Sequence[str]) -> list[Caller | None]:
    """Whom these tokens stand for, in their order. Found by their hashes, so its time tells nothing of them."""
    hashes = [_hash(token) for token in given]
    rows = await connection.execute(_CALLERS, {"hashes": list(set(hashes))})
    callers = {row.hash: Caller(row.name, frozenset(row.scopes), row.namespace) for row in rows}
    return [callers.get(one) for one in hashes]


async def all_tokens(connection: AsyncConnection) -> Sequence[Any]:
    """Every token, without what would let one use it."""
    return (await connection.execute(select(tokens).order_by(tokens.c.created_at))).all()


async def revoke_token(connection: AsyncConnection, name: str, now: datetime) -> int:
    """Ends every token of this name; returns how many there were."""
    live = update(tokens).where(tokens.c.name == name, tokens.c.revoked_at.is_(None))
    return (await connection.execute(live.values(revoked_at=now))).rowcount


class Deed(NamedTuple):
    """What somebody did. `detail` may hold evidence and notes, never a key.

    `facts` are those that the deed itself is the evidence of: all of them, for the list is rebuilt from here.
    """

    actor: str
    action: str
    namespace: str | None = None
    channel: str | None = None
    address: str | None = None
    detail: dict[str, Any] | None = None
    facts: Sequence[Fact] = ()


async def write_down(connection: AsyncConnection, deed: Deed, now: datetime) -> uuid.UUID:
    """Adds a row to the audit log; its id is the evidence of what the deed changed."""
    deed_id = uuid.uuid4()
    facts = [[f.address, f.reason, f.action, f.occurred_at, f.source] for f in deed.facts] or None
    row = deed._asdict() | {"id": deed_id, "at": now, "detail": deed.detail or {}, "facts": facts}
    await connection.execute(insert(audit).values(row))
    return deed_id


async def stated(connection: AsyncConnection) -> AsyncIterator[list[Fact]]:
    """Every fact that the audit log states, some at a time: needs a transaction."""
    query = select(audit.c.namespace, audit.c.channel, audit.c.facts).where(audit.c.facts.is_not(None))
    async for page in pages(connection, query, 1000):
        yield [Fact(row.namespace, row.channel, *stated) for row in page for stated in row.facts]


async def policies(connection: AsyncConnection) -> list[Policy]:
    """The numbers of every verdict so far; what an older release did not write down has its default."""
    details = (await connection.execute(select(audit.c.detail).where(audit.c.action == "policy.set"))).scalars()
    return [Policy(**{name: d[name] for name in Policy._fields if name in d}) for d in details]


async def note_policy(connection: AsyncConnection, policy: dict[str, Any], now: datetime) -> bool:
    """Writes down the numbers of the verdict if they differ from the last ones; tells whether they did."""
    query = select(audit.c.detail).where(audit.c.action == "policy.set").order_by(audit.c.at.desc()).limit(1)
    if (await connection.execute(query)).scalar() == policy:
        return False
    await write_down(connection, Deed("settings", "policy.set", detail=policy), now)
    return True


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
