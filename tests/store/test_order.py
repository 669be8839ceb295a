"""Locks are taken in one order: two replicas with the same callbacks, each in an order of its own, never deadlock."""

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from service.domain.suppression import Policy
from service.store import arrivals, batches
from service.store.arrivals import Arrival, Group
from service.store.batches import Received
from service.store.database import SEPARATOR, Connection, Database
from service.store.suppressions import RUN, Entry, Provenance, columns_of

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
LOW, MIDDLE, HIGH = (bytes([n]) * 32 for n in (1, 2, 3))


def received(digest: bytes) -> Received:
    return Received(uuid.uuid4(), "default", "email", "kahuna_webhook", NOW, {}, b"[]", digest)


async def claimed(database: Database, digests: list[bytes]) -> int:
    async with database.begin() as connection:
        return len(await batches.claim_digests(connection, [received(one) for one in digests]))


async def stored(database: Database, digests: list[bytes]) -> int:
    told = [Arrival(received(one), 1, []) for one in digests]
    said = [Entry("a@example.com", "a@example.com", "manual", "suppress", 1, 0, batch=n) for n in range(len(told))]
    ids = tuple(one.batch.id for one in told)
    provenance = Provenance("default", "email", "kahuna", "kahuna_webhook", NOW, batches=ids)
    async with database.straight() as connection:
        return len((await arrivals.store(connection, Group(told, said, provenance, Policy()))).new)


async def stored_apart(database: Database, digests: list[bytes]) -> int:
    told = [Arrival(received(one), 0, []) for one in digests]
    ids = tuple(one.batch.id for one in told)
    provenance = Provenance("default", "email", "kahuna", "kahuna_webhook", NOW, batches=ids)
    async with database.single() as connection:
        done = await arrivals.store_apart(connection, Group(told, [], provenance, Policy()))
    assert done is not None
    return len(done.new)


async def waiting(connection: Connection, count: int) -> None:
    """Until so many transactions wait for another."""
    query = text("select count(*) from pg_locks where not granted and locktype = 'transactionid'")
    for _ in range(200):
        if (await connection.execute(query)).scalar_one() == count:
            return
        await asyncio.sleep(0.01)
    pytest.fail("they do not wait")


@pytest.mark.parametrize("way", [claimed, stored, stored_apart], ids=["by itself", "in company", "in one statement"])
async def test_digests_are_claimed_in_their_order(
    database: Database, way: Callable[[Database, list[bytes]], Awaitable[int]]
) -> None:
    """A third one holds the middle until both are on their way: unordered, each would have what the other needs."""
    async with database.read() as looking, database.begin() as third:
        await batches.claim_digests(third, [received(MIDDLE)])
        there = asyncio.ensure_future(way(database, [LOW, MIDDLE, HIGH]))
        await waiting(looking, 1)
        back = asyncio.ensure_future(way(database, [HIGH, MIDDLE, LOW]))
        await waiting(looking, 2)
        await third.rollback()
    assert (await there, await back) == (3, 0)


@given(st.integers(0, 2**32), st.sampled_from([1, 3, 50_000]))
@settings(max_examples=6, deadline=None)
def test_many_entries_are_in_the_order_of_their_keys_too(seed: int, of_each: int) -> None:
    chance = Random(seed)
    said = [
        Entry(f"u{chance.randrange(2 * RUN // of_each + 1)}@example.com", "", reason, "suppress", chance.randrange(9))
        for _ in range(2 * RUN + 7)
        for reason in [chance.choice(["complaint", "unsubscribe"])]
    ]
    columns = columns_of(said)
    told = zip(
        columns["address"].split(SEPARATOR),
        columns["reason"].split(","),
        map(int, columns["occurred_at"].split(",")),
        strict=True,
    )
    assert list(told) == sorted((entry.address, entry.reason, entry.occurred_at) for entry in said)
