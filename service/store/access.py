"""Owns who may do what, and who did: API tokens, kept as hashes, and the audit log."""

import hashlib
import re
import secrets
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

from sqlalchemy import (
    LargeBinary,
    Text,
    any_,
    bindparam,
    cast,
    false,
    func,
    insert,
    literal,
    or_,
    select,
    text,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncConnection

from service.domain.addresses import Channel
from service.domain.facts import Fact
from service.domain.suppression import Policy
from service.store.database import pages
from service.store.tables import audit, tokens

SCOPES: Final = ("read", "write", "admin")

_PREFIX: Final = "ks_"

# Built once: it is asked with every request whose caller is not known from a moment ago.
_CALLERS: Final = select(
    tokens.c.hash,
    tokens.c.name,
    tokens.c.scopes,
    tokens.c.namespace,
    tokens.c.channel,
    tokens.c.id,
    tokens.c.expires_at,
).where(tokens.c.hash == any_(bindparam("hashes", type_=ARRAY(LargeBinary))), tokens.c.revoked_at.is_(None))

# In the order of their ids, so that replicas which write at the same time wait for one another, and not in a circle.
_NOTE_USES: Final = text(
    """
    with used as (
        select * from unnest(cast(:ids as uuid[]), cast(:times as timestamptz[])) as given(id, at)
    ), locked as (
        select id from tokens where id in (select id from used) order by id for update
    )
    update tokens set last_used_at = greatest(tokens.last_used_at, used.at)
    from used join locked using (id) where tokens.id = used.id
    """
)


class Caller(NamedTuple):
    """Who a token stands for. `namespace` and `channel` are the only ones it may speak of, or None for all; `token_id`
    is no secret."""

    name: str
    scopes: frozenset[str]
    namespace: str | None
    channel: Channel | None = None
    token_id: uuid.UUID | None = None
    expires_at: datetime | None = None


async def create_token(
    connection: AsyncConnection,
    name: str,
    scopes: Sequence[str],
    namespace: str | None,
    now: datetime,
    *,
    channel: Channel | None = None,
    expires_at: datetime | None = None,
) -> str:
    """A new token: the only time that it can be read. It is random enough for a plain hash. One with the scope admin
    cannot be limited to a channel, since what operators ask is about both."""
    token = _PREFIX + secrets.token_urlsafe(32)
    limits = {"namespace": namespace, "channel": channel, "expires_at": expires_at}
    row = {"id": uuid.uuid4(), "name": name, "hash": digest_of(token), "scopes": list(scopes), "created_at": now}
    await connection.execute(insert(tokens).values(row | limits))
    return token


def digest_of(token: str) -> bytes:
    """What a token is known by: nobody who can read the database, or our memory, can use it."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


async def callers_of(connection: AsyncConnection, digests: Sequence[bytes]) -> list[Caller | None]:
    """Whom the tokens with these digests stand for, in their order. The search sees digests alone, which nobody can
    choose, so its time tells nothing of a token."""
    rows = (await connection.execute(_CALLERS, {"hashes": list(set(digests))})).all()
    callers = {row.hash: Caller(row.name, frozenset(row.scopes), *row[3:]) for row in rows}
    return [callers.get(one) for one in digests]


async def note_uses(connection: AsyncConnection, uses: Mapping[uuid.UUID, datetime]) -> None:
    """Writes down when tokens, by their ids, were last used."""
    await connection.execute(_NOTE_USES, {"ids": list(uses), "times": list(uses.values())})


async def all_tokens(connection: AsyncConnection) -> Sequence[Any]:
    """Every token, without what would let one use it."""
    return (await connection.execute(select(tokens).order_by(tokens.c.created_at))).all()


class TokenPlace(NamedTuple):
    """Where a token stands in the list: those that have ended come last, and all by their names."""

    ended: bool
    name: str
    id: uuid.UUID


async def listed_tokens(
    connection: AsyncConnection, namespace: str | None, now: datetime, after: TokenPlace | None, limit: int
) -> Sequence[Any]:
    """Some tokens in the order of their places, from one on; those that speak of this namespace only, or all."""
    over = func.coalesce(tokens.c.expires_at <= now, false())
    place = (or_(tokens.c.revoked_at.is_not(None), over), func.lower(tokens.c.name), tokens.c.id)
    query = select(tokens, *(one.label(f"in_{name}") for one, name in zip(place, TokenPlace._fields, strict=True)))
    if namespace is not None:
        query = query.where(tokens.c.namespace == namespace)
    if after is not None:
        query = query.where(tuple_(*place) > tuple_(*(literal(one) for one in after)))
    return (await connection.execute(query.order_by(*place).limit(limit))).all()


def place_of(row: Any) -> TokenPlace:
    """Where a token of the list stands."""
    return TokenPlace(row.in_ended, row.in_name, row.in_id)


async def revoke_tokens(connection: AsyncConnection, which: str, now: datetime) -> Sequence[Any]:
    """Ends every token of this name, and the one whose id is this or begins with it (8 digits at least); returns those
    that it ended."""
    meant = tokens.c.name == which
    if re.fullmatch(r"[0-9a-f]{8}[0-9a-f-]{0,28}", which):
        meant = or_(meant, cast(tokens.c.id, Text).startswith(which))
    live = update(tokens).where(meant, tokens.c.revoked_at.is_(None))
    return (await connection.execute(live.values(revoked_at=now).returning(tokens.c.id, tokens.c.name))).all()


async def end_token(
    connection: AsyncConnection, token_id: uuid.UUID, namespace: str | None, now: datetime
) -> str | None:
    """Ends the token of this id, if it lives and, where a namespace is given, speaks of that one only; its name."""
    live = update(tokens).where(tokens.c.id == token_id, tokens.c.revoked_at.is_(None))
    if namespace is not None:
        live = live.where(tokens.c.namespace == namespace)
    name: str | None = (await connection.execute(live.values(revoked_at=now).returning(tokens.c.name))).scalar()
    return name


async def stands(connection: AsyncConnection, token_id: uuid.UUID, now: datetime) -> bool:
    """Whether the token of this id lives; until the commit nobody can end it."""
    alive = (tokens.c.revoked_at.is_(None), or_(tokens.c.expires_at.is_(None), tokens.c.expires_at > now))
    query = select(tokens.c.id).where(tokens.c.id == token_id, *alive).with_for_update(read=True)
    return (await connection.execute(query)).first() is not None


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
    row = _row(deed, now)
    await connection.execute(insert(audit).values(row))
    deed_id: uuid.UUID = row["id"]
    return deed_id


async def write_all_down(connection: AsyncConnection, deeds: Sequence[Deed], now: datetime) -> None:
    """Adds a row for each."""
    if deeds:
        await connection.execute(insert(audit), [_row(deed, now) for deed in deeds])


def _row(deed: Deed, now: datetime) -> dict[str, Any]:
    facts = [[f.address, f.reason, f.action, f.occurred_at, f.source] for f in deed.facts] or None
    return deed._asdict() | {"id": uuid.uuid4(), "at": now, "detail": deed.detail or {}, "facts": facts}


async def stated(connection: AsyncConnection) -> AsyncIterator[list[tuple[uuid.UUID, Fact]]]:
    """Every fact that the audit log states, each with its row there, some at a time: needs a transaction."""
    query = select(audit.c.id, audit.c.namespace, audit.c.channel, audit.c.facts).where(audit.c.facts.is_not(None))
    async for page in pages(connection, query, 1000):
        yield [(row.id, Fact(row.namespace, row.channel, *stated)) for row in page for stated in row.facts]


async def policies(connection: AsyncConnection) -> list[Policy]:
    """The numbers of every verdict so far; what an older release did not write down has its default."""
    details = (await connection.execute(select(audit.c.detail).where(audit.c.action == "policy.set"))).scalars()
    return [_policy_of(detail) for detail in details]


async def policy_at(connection: AsyncConnection, moment: datetime) -> Policy | None:
    """The numbers of the verdict in force at a moment; before anybody wrote them down, the first ones that were. None:
    there are none."""
    is_set = audit.c.action == "policy.set"
    before = select(audit.c.detail).where(is_set, audit.c.at <= moment).order_by(audit.c.at.desc()).limit(1)
    first = select(audit.c.detail).where(is_set).order_by(audit.c.at).limit(1)
    detail = (await connection.execute(before)).scalar() or (await connection.execute(first)).scalar()
    return None if detail is None else _policy_of(detail)


async def note_policy(connection: AsyncConnection, policy: dict[str, Any], now: datetime) -> bool:
    """Writes down the numbers of the verdict if they differ from the last ones; tells whether they did."""
    query = select(audit.c.detail).where(audit.c.action == "policy.set").order_by(audit.c.at.desc()).limit(1)
    if (await connection.execute(query)).scalar() == policy:
        return False
    await write_down(connection, Deed("settings", "policy.set", detail=policy), now)
    return True


def _policy_of(detail: dict[str, Any]) -> Policy:
    return Policy(**{name: detail[name] for name in Policy._fields if name in detail})
