"""The merge in SQL is the merge of the domain: same facts, in any grouping, order and repetition, same causes."""

import random
import uuid
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from service.domain.facts import Action, Fact, Source, reasons_of
from service.domain.suppression import DAY, Policy, fold
from service.store import outbox, suppressions
from service.store.database import Connection, Database
from service.store.suppressions import Entry, Merged, Provenance

POLICY = Policy(soft_bounce_count=2, soft_bounce_window=3 * DAY, soft_bounce_lifetime=4 * DAY)
NOW = datetime(2026, 1, 1, tzinfo=UTC)

Said = tuple[str, Action, int, Source]

_ACTIONS: tuple[Action, ...] = ("suppress", "clear")
_SOURCES: tuple[Source, ...] = ("kahuna", "local")


def said(draw: st.DrawFn) -> Said:
    reason = draw(st.sampled_from(["soft_bounce", "unsubscribe", "manual", "hard_bounce"]))
    return reason, draw(st.sampled_from(_ACTIONS)), draw(st.integers(1, 12)) * DAY, draw(st.sampled_from(_SOURCES))


histories = st.lists(st.composite(said)(), min_size=1, max_size=25)


async def store(connection: Connection, batch: list[Said], address: str) -> int:
    """Applies one group of facts, as one callback or one write would."""
    new = 0
    for source in _SOURCES:
        entries = [Entry(address, address, r, a, at, n) for n, (r, a, at, who) in enumerate(batch) if who == source]
        origin: Any = "kahuna_webhook" if source == "kahuna" else "api"
        provenance = Provenance("default", "email", source, origin, NOW, batches=(uuid.uuid4(),))
        merged = await suppressions.apply(connection, entries, provenance, POLICY)
        new += sum(merged.new.values())
    return new


async def stored(connection: Connection, address: str) -> dict[str, Any]:
    rows = await suppressions.causes_of(connection, "default", "email", address)
    return {row.cause.reason: row.cause for row in rows}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(history=histories, seed=st.integers(0, 2**32))
async def test_any_grouping_order_and_repetition_gives_the_domain_s_causes(
    database: Database, history: list[Said], seed: int
) -> None:
    shuffled = random.Random(seed).sample(history * 2, len(history) * 2)
    address = f"{uuid.uuid4().hex}@example.com"
    async with database.begin() as connection:
        new = 0
        while shuffled:
            cut = random.Random(seed + len(shuffled)).randint(1, len(shuffled))
            new += await store(connection, shuffled[:cut], address)
            shuffled = shuffled[cut:]
        facts = {Fact("default", "email", address, *one) for one in history}
        assert await stored(connection, address) == fold(facts, POLICY)
        assert new == len(facts)


async def test_the_deciding_fact_gives_the_origin(database: Database) -> None:
    """A later fact brings its batch along, an older one does not, and of one second the protective one decides."""
    first, later, older, tied = (uuid.uuid4() for _ in range(4))
    order: list[tuple[uuid.UUID, Action, int]] = [
        (first, "suppress", 100),
        (later, "clear", 200),
        (older, "suppress", 150),
        (tied, "suppress", 200),
    ]
    seen = []
    async with database.begin() as connection:
        for batch_id, action, at in order:
            provenance = Provenance("default", "sms", "kahuna", "kahuna_webhook", NOW, batches=(batch_id,))
            entry = Entry("15550100001", "+15550100001", "do_not_call", action, at, 0)
            await suppressions.apply(connection, [entry], provenance, POLICY)
            seen += [row.batch_id for row in await suppressions.causes_of(connection, "default", "sms", entry.address)]
    assert seen == [first, later, later, tied]


async def test_every_reason_of_both_channels_can_be_stored(database: Database) -> None:
    async with database.begin() as connection:
        for channel, address in (("email", "a@example.com"), ("sms", "15550100001")):
            reasons = reasons_of(channel)  # type: ignore[arg-type]  # the loop's tuple widens the literal
            provenance = Provenance("default", channel, "local", "api", NOW, audit_id=uuid.uuid4())  # type: ignore[arg-type]
            entries = [Entry(address, address, reason, "suppress", 100) for reason in reasons]
            assert await suppressions.apply(connection, entries, provenance, POLICY) == Merged(
                {None: len(reasons)}, {address}
            )
            rows = await suppressions.causes_of(connection, "default", channel, address)  # type: ignore[arg-type]
            assert {row.cause.reason for row in rows} == set(reasons)


@pytest.mark.parametrize(("many", "mode"), [(1000, "auto"), (1001, "force_custom_plan")])
async def test_statements_about_many_are_planned_for_the_tables_as_they_are(
    database: Database, many: int, mode: str
) -> None:
    """Else a plan from when the list was tiny reads all of it once for each address of a large batch."""
    entries = [Entry(f"{n}@example.com", f"{n}@example.com", "manual", "suppress", 1) for n in range(many)]
    provenance = Provenance("default", "email", "local", "api", NOW, audit_id=uuid.uuid4())
    scope = outbox.Scope("default", "email", NOW, POLICY)
    for work in (
        lambda c: suppressions.apply(c, entries, provenance, POLICY),
        lambda c: suppressions.lock(c, "default", "email", [entry.address for entry in entries]),
        lambda c: outbox.owe(c, scope, {entry.address for entry in entries}),
    ):
        async with database.begin() as connection:
            await work(connection)
            assert (await connection.execute(text("show plan_cache_mode"))).scalar_one() == mode
    async with database.begin() as connection:
        assert (await connection.execute(text("show plan_cache_mode"))).scalar_one() == "auto"
