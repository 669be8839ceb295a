"""Owns what the service is compared with: an application that only reads and answers, and SQL that only stores."""

import time

import uvicorn
import zstandard
from sqlalchemy import TextClause, bindparam, text
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.types import LargeBinary
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

TABLES = ("batches", "facts", "suppressions", "changes", "corrections")

# The same rows in tables of the same shape: archived, stored, merged and fed, with nothing looked at on the way.
STORE = text(
    """
    with archived as (
        insert into bare_batches (id, namespace, channel, origin, received_at, headers, body, body_bytes, state)
        values (gen_random_uuid(), 'default', 'email', 'kahuna_webhook', now(), '{}', :body, :size, 'applied')
        returning id
    ),
    fresh as (
        insert into bare_facts (address, channel, namespace, reason, action, occurred_at, source, origin, batch_id,
                                entry_index, recorded_at)
        select address, 'email', 'default', 'unsubscribe', 'suppress', 1700000000, 'kahuna', 'kahuna_webhook', id,
               place, now()
        from archived, unnest(string_to_array(:addresses, ',')) with ordinality as given(address, place)
        order by address on conflict do nothing
        returning address, reason, occurred_at, batch_id
    ),
    changed as (
        insert into bare_suppressions as s (address, channel, namespace, reason, stop_at, held_stop_at, origin,
                                            batch_id, recorded_at)
        select address, 'email', 'default', reason, occurred_at, occurred_at, 'kahuna_webhook', batch_id, now()
        from fresh order by address, reason
        on conflict (address, channel, namespace, reason) do update set
            stop_at = greatest(s.stop_at, excluded.stop_at),
            held_stop_at = greatest(s.held_stop_at, excluded.held_stop_at)
        returning address
    ),
    fed as (
        insert into bare_changes (namespace, channel, address, recorded_at)
        select 'default', 'email', address, now() from changed
    )
    select count(*) from fresh
    """
).bindparams(bindparam("body", type_=LargeBinary))

# What an import of new stops comes to: the same, and what Kahuna is owed for them.
IMPORT = text(
    """
    with archived as (
        insert into bare_batches (id, namespace, channel, origin, received_at, headers, body, body_bytes, state)
        values (gen_random_uuid(), 'default', 'email', 'import', now(), '{}', :body, :size, 'applied')
        returning id
    ),
    fresh as (
        insert into bare_facts (address, channel, namespace, reason, action, occurred_at, source, origin, batch_id,
                                entry_index, recorded_at)
        select address, 'email', 'default', 'unsubscribe', 'suppress', 1700000000, 'local', 'import', id, place, now()
        from archived, unnest(string_to_array(:addresses, ',')) with ordinality as given(address, place)
        order by address on conflict do nothing
        returning address, reason, occurred_at, batch_id
    ),
    changed as (
        insert into bare_suppressions as s (address, channel, namespace, reason, stop_at, local_stop_at, origin,
                                            batch_id, recorded_at)
        select address, 'email', 'default', reason, occurred_at, occurred_at, 'import', batch_id, now()
        from fresh order by address, reason
        on conflict (address, channel, namespace, reason) do update set
            stop_at = greatest(s.stop_at, excluded.stop_at),
            local_stop_at = greatest(s.local_stop_at, excluded.local_stop_at)
        returning address
    ),
    fed as (
        insert into bare_changes (namespace, channel, address, recorded_at)
        select 'default', 'email', address, now() from changed
    ),
    owed as (
        insert into bare_corrections (address, channel, namespace, slot, address_received, action, occurred_at, state,
                                      next_attempt_at, created_at)
        select address, 'email', 'default', reason, address, 'suppress', occurred_at, 'pending', now(), now() from fresh
    )
    select count(*) from fresh
    """
).bindparams(bindparam("body", type_=LargeBinary))


async def _answer(asked: Request) -> Response:
    """What a web framework does at least."""
    await asked.body()
    return Response(b'{"ok":true}', media_type="application/json")


def serve(port: int) -> None:
    """The bare application, until it is ended."""
    application = Starlette(routes=[Route("/", _answer, methods=["GET", "POST"])])
    uvicorn.run(application, port=port, log_config=None, access_log=False)


async def make_tables(connection: AsyncConnection) -> None:
    """Tables of the shape of ours, indexes included."""
    for name in TABLES:
        await connection.execute(text(f"create table bare_{name} (like {name} including all)"))
    await connection.commit()


async def store(connection: AsyncConnection, addresses: list[str], body: bytes, statement: TextClause = STORE) -> float:
    """Seconds for one transaction that stores a callback, or a part of a list, of these addresses."""
    values = {"addresses": ",".join(addresses), "body": zstandard.compress(body), "size": len(body)}
    started = time.perf_counter()
    stored = (await connection.execute(statement, values)).scalar_one()
    await connection.commit()
    if stored != len(addresses):
        raise SystemExit(f"the bare SQL stored {stored} of {len(addresses)}")
    return time.perf_counter() - started
