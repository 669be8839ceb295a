"""The checkpoint is the domain's merge, however the facts are cut up and however often they are taken in."""

import random
from datetime import UTC, datetime
from typing import Any

import pytest

from service.domain.facts import Fact
from service.domain.suppression import Cause, Policy, fold
from service.store import checkpoints, leases
from service.store.database import Database
from service.store.partitions import Month, month_of

POLICY = Policy(soft_bounce_count=2)
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def some_facts(chance: random.Random) -> list[Fact]:
    return [
        Fact(
            chance.choice(("default", "other")),
            "email",
            chance.choice(("a@example.com", "b@example.com")),
            chance.choice(("soft_bounce", "unsubscribe")),
            chance.choice(("suppress", "suppress", "clear")),
            chance.randrange(1, 60) * 86_400,
            "kahuna",
        )
        for _ in range(60)
    ]


async def stored(database: Database) -> dict[tuple[str, str, str], Cause]:
    found: dict[tuple[str, str, str], Cause] = {}
    async with database.begin() as connection:
        async for page in checkpoints.every_cause(connection):
            found |= {(namespace, address, cause.reason): cause for namespace, _, address, cause in page}
    return found


@pytest.mark.parametrize("seed", range(3))
async def test_any_grouping_and_repetition_gives_the_domain_s_causes(database: Database, seed: int) -> None:
    chance = random.Random(seed)
    facts = some_facts(chance)
    shuffled = chance.sample(facts * 2, len(facts) * 2)
    while shuffled:
        size = chance.randint(1, 30)
        async with database.begin() as connection:
            await checkpoints.absorb(connection, shuffled[:size], [], POLICY)
        shuffled = shuffled[size:]
    expected: dict[tuple[str, str, str], Cause] = {}
    for namespace in ("default", "other"):
        for address in ("a@example.com", "b@example.com"):
            causes = fold((f for f in facts if (f.namespace, f.address) == (namespace, address)), POLICY)
            expected |= {(namespace, address, reason): cause for reason, cause in causes.items()}
    assert await stored(database) == expected


async def test_the_months_that_went_are_known_by_the_ids_of_their_batches(database: Database) -> None:
    months = [Month(2025, 12), Month(2026, 1)]
    async with database.begin() as connection:
        for month in (*months, months[0]):
            await checkpoints.note(connection, f"batches_{month.year}_{month.month}", month, 5, NOW)
        gone = await checkpoints.gone(connection)
    bounds = [(at.low.int >> 80, at.high.int >> 80) for at in gone]
    assert bounds == [tuple(int(m.begins_at.timestamp()) * 1000 for m in (one, one.next)) for one in months]


@pytest.mark.parametrize(
    ("moment", "month"),
    [
        ("2026-12-31T23:59:59+00:00", (2026, 12)),
        ("2027-01-01T00:30:00+01:00", (2026, 12)),
        ("2026-01-31T12:00Z", (2026, 1)),
    ],
)
def test_a_month_is_one_of_utc(moment: str, month: Any) -> None:
    assert month_of(datetime.fromisoformat(moment)) == month
    assert Month(2026, 12).next == (2027, 1)


async def test_a_lease_is_one_s_own_until_it_ends(database: Database) -> None:
    later, latest = NOW.replace(hour=1), NOW.replace(hour=2)
    async with database.begin() as connection:
        first = await leases.claim(connection, "work", NOW, later)
        assert first
        assert await leases.claim(connection, "work", NOW, later) is None
        second = await leases.claim(connection, "work", later, latest)
        assert second
        assert second.fence > first.fence
        assert [await leases.hold(connection, lease, latest) for lease in (first, second)] == [False, True]
        assert await leases.claim(connection, "other", NOW, later)
