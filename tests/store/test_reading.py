"""Questions about many: the verdict in SQL is the verdict of the domain, and a walk meets every row once."""

import random
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.domain.facts import Fact
from service.domain.suppression import DAY, Policy, fold, standing
from service.store import reading, suppressions
from service.store.database import SEPARATOR, Connection, Database
from service.store.reading import START, Listed, Place, Wanted
from service.store.suppressions import Entry, Provenance
from tests.store.test_merge import NOW, histories

POLICY = Policy()


async def store(
    connection: Connection, facts: list[Fact], policy: Policy, origin: Any = "api", at: datetime = NOW
) -> None:
    for fact in facts:
        entry = Entry(fact.address, fact.address, fact.reason, fact.action, fact.occurred_at)
        provenance = Provenance(fact.namespace, fact.channel, fact.source, origin, at, audit_id=uuid.uuid4())
        await suppressions.apply(connection, [entry], provenance, policy)


def stop(address: str, reason: str = "manual", **more: Any) -> Fact:
    given: dict[str, Any] = {
        "namespace": "default",
        "channel": "email",
        "action": "suppress",
        "occurred_at": 1000,
    } | more
    return Fact(address=address, reason=reason, source="local", **given)


LIFETIMES = st.integers(1, 6).map(lambda days: days * DAY)
# So short that lifetimes end among the days that are looked at.
POLICIES = st.builds(
    Policy,
    soft_bounce_count=st.integers(1, 3),
    soft_bounce_window=LIFETIMES,
    soft_bounce_lifetime=LIFETIMES,
    hard_bounce_lifetime=st.none() | LIFETIMES,
)
BOUNCES = st.lists(
    st.tuples(
        st.just("soft_bounce"), st.just("suppress"), st.integers(1, 12).map(lambda day: day * DAY), st.just("local")
    ),
    min_size=2,
    max_size=4,
)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(history=histories | BOUNCES, policy=POLICIES)
async def test_what_is_in_force_is_what_the_domain_says(database: Database, history: list[Any], policy: Policy) -> None:
    address = f"{uuid.uuid4().hex}@example.com"
    facts = [Fact("default", "email", address, *one) for one in history]
    causes, expected = fold(facts, policy), set[str]()
    async with database.begin() as connection:
        await store(connection, facts, policy)
        for at in range(0, 19 * DAY, DAY):
            expected = {reason for reason, cause in causes.items() if standing(cause, at, policy).active}
            found = await reading.in_force(connection, "default", "email", [address, "nobody@example.com"], at, policy)
            assert found == dict.fromkeys(expected, address), at
        for active, reasons in ((True, expected), (False, causes.keys() - expected)):
            wanted = Wanted("default", active=active)
            listed, _ = await reading.page(connection, wanted, Place(address, "", "", ""), 20, at, policy)
            assert {one.place.reason for one in listed if one.place.address == address} == reasons


async def test_an_address_is_found_in_its_own_namespace_and_channel_alone(database: Database) -> None:
    async with database.begin() as connection:
        await store(connection, [stop("15550100001@x"), stop("b@example.com", namespace="other")], POLICY)
        for namespace, channel, address in (
            ("default", "sms", "15550100001@x"),
            ("default", "email", "b@example.com"),
            ("other", "email", "15550100001@x"),
        ):
            assert await reading.in_force(connection, namespace, channel, [address], 2000, POLICY) == {}  # type: ignore[arg-type]


async def test_many_are_told_by_reason_and_each_once(database: Database) -> None:
    addresses = [f"u{n}@example.com" for n in range(1500)]
    async with database.begin() as connection:
        entries = [Entry(a, a, "manual", "suppress", 1) for a in addresses[::2]]
        provenance = Provenance("default", "email", "local", "api", NOW, audit_id=uuid.uuid4())
        await suppressions.apply(connection, entries, provenance, POLICY)
        found = await reading.in_force(connection, "default", "email", addresses * 2, 2000, POLICY)
    assert sorted(found["manual"].split(SEPARATOR)) == sorted(addresses[::2])


# The list.


async def walk(connection: Connection, wanted: Wanted, limit: int) -> list[Listed]:
    found: list[Listed] = []
    place: Place | None = START
    while place is not None:
        listed, place = await reading.page(connection, wanted, place, limit, 2000, POLICY)
        assert len(listed) <= limit
        found += listed
    return found


@pytest.fixture
async def listed(database: Database) -> list[Fact]:
    """A list with something of every kind."""
    facts = [
        stop("a@example.com"),
        stop("a@example.com", "unsubscribe"),
        stop("a@example.com", "manual", namespace="other"),
        stop("15550100001", "do_not_call", channel="sms"),
        stop("b@example.com", "complaint"),
        stop("c@example.com", "soft_bounce"),
        stop("d@example.com", "manual", action="clear"),
    ]
    async with database.begin() as connection:
        await store(connection, facts[:3], POLICY)
        await store(connection, facts[3:], POLICY, origin="import", at=NOW + timedelta(days=1))
    return [fact for fact in facts if fact.namespace == "default"]


FILTERS: dict[str, tuple[dict[str, Any], Any]] = {
    "all": ({}, lambda _: True),
    "channel": ({"channel": "sms"}, lambda f: f.channel == "sms"),
    "reason": ({"reason": "manual"}, lambda f: f.reason == "manual"),
    "origin": ({"origin": "import"}, lambda f: f.address[0] != "a"),
    "active": ({"active": True}, lambda f: f.action == "suppress" and f.reason != "soft_bounce"),
    "not active": ({"active": False}, lambda f: f.action == "clear" or f.reason == "soft_bounce"),
    "since": ({"since": NOW + timedelta(hours=1)}, lambda f: f.address[0] != "a"),
    "several": ({"channel": "email", "active": True, "origin": "import"}, lambda f: f.reason == "complaint"),
}


@pytest.mark.parametrize("limit", [1, 2, 100])
@pytest.mark.parametrize(("wanted", "matches"), FILTERS.values(), ids=FILTERS)
async def test_a_walk_meets_what_was_asked_for(
    database: Database, listed: list[Fact], wanted: dict[str, Any], matches: Any, limit: int
) -> None:
    async with database.read() as connection:
        found = await walk(connection, Wanted("default", **wanted), limit)
    expected = sorted((f.address, f.channel, f.namespace, f.reason) for f in listed if matches(f))
    assert [tuple(one.place) for one in found] == expected


async def test_what_only_kahuna_holds_is_no_row_of_the_list(database: Database) -> None:
    async with database.begin() as connection:
        opt_in = Entry("15550100001", "15550100001", "do_not_call", "clear", 1, 0, awaits=True)
        provenance = Provenance("default", "sms", "kahuna", "kahuna_webhook", NOW, (uuid.UUID(int=1),))
        await suppressions.apply(connection, [opt_in], provenance, Policy())
        assert await walk(connection, Wanted("default"), 10) == []


async def test_a_walk_under_writes_neither_skips_nor_repeats(database: Database) -> None:
    """What was there when it began is met once; what comes and changes meanwhile moves nothing."""
    chance = random.Random(7)
    before = {f"{n:03}@example.com" for n in range(60)}
    async with database.begin() as connection:
        await store(connection, [stop(address) for address in sorted(before)], POLICY)
    seen: list[str] = []
    place: Place | None = START
    while place is not None:
        async with database.begin() as connection:
            changed = [
                stop(
                    chance.choice(sorted(before)),
                    occurred_at=1000 + len(seen),
                    action=chance.choice(["suppress", "clear"]),
                )
            ]
            await store(connection, [*changed, stop(f"{chance.randrange(60):03}x@example.com")], POLICY)
        async with database.read() as connection:
            listed, place = await reading.page(connection, Wanted("default"), place, 7, 2000, POLICY)
        seen += [one.place.address for one in listed]
    assert len(seen) == len(set(seen))
    assert before <= set(seen)
    assert seen == sorted(seen)


async def test_a_rare_kind_does_not_make_one_page_read_everything(database: Database) -> None:
    """A page ends after so many rows, with less than was asked for; the walk still meets the last row."""
    async with database.begin() as connection:
        many = [Entry(f"u{n:06}@example.com", "", "unsubscribe", "suppress", 1) for n in range(reading.SCANNED + 5)]
        provenance = Provenance(
            "default", "email", "local", "api", datetime(2026, 1, 1, tzinfo=UTC), audit_id=uuid.uuid4()
        )
        await suppressions.apply(connection, many, provenance, POLICY)
        await store(connection, [stop("z@example.com", "complaint")], POLICY)
        wanted = Wanted("default", reason="complaint")
        first, place = await reading.page(connection, wanted, START, 10, 2000, POLICY)
        assert first == []
        assert place == Place(many[reading.SCANNED - 1].address, "email", "default", "unsubscribe")
        second, end = await reading.page(connection, wanted, place, 10, 2000, POLICY)
        assert [one.place.address for one in second] == ["z@example.com"]
        assert end is None


@pytest.mark.parametrize("wanted", [Wanted("default"), Wanted("other", "sms")], ids=["namespace", "channel"])
async def test_a_page_never_ends_at_an_address_of_elsewhere(database: Database, wanted: Wanted) -> None:
    """The place goes to the caller, who may be somebody whose token speaks of this namespace or channel alone."""
    async with database.begin() as connection:
        many = [Entry(f"u{n:06}@example.com", "", "unsubscribe", "suppress", 1) for n in range(reading.SCANNED + 5)]
        at = datetime(2026, 1, 1, tzinfo=UTC)
        await suppressions.apply(
            connection, many, Provenance("other", "email", "local", "api", at, audit_id=uuid.uuid4()), POLICY
        )
        await store(connection, [stop("z@example.com")], POLICY)
        listed, place = await reading.page(connection, wanted, START, 10, 2000, POLICY)
    assert [one.place.address for one in listed] == ([] if wanted.channel else ["z@example.com"])
    assert place is None
