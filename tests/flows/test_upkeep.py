"""Months of the tables of receipt: made ahead, filled from the default partition, dropped when retention says so."""

import asyncio
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text
from structlog.testing import capture_logs

from service.flows import upkeep
from service.flows.reconcile import TakenOver
from service.flows.upkeep import Retention
from service.store import batches, leases
from service.store.database import Connection, Database
from tests.flows.speaking import World
from tests.flows.test_ingest import NUMBER, suppressed, unsub
from tests.flows.test_reviews import decide, reviewing, start

HOUR = 3600.0
KEPT = Retention(timedelta(days=60), timedelta(days=60))


async def tidy(world: World, retention: Retention = KEPT) -> bool:
    return await upkeep.run_due(world.database, world.rules, retention, world.clock)


async def partitions(world: World, parent: str) -> set[str]:
    rows = await world.query(
        f"""select relname from pg_inherits join pg_class on oid = inhrelid
            where inhparent = '{parent}'::regclass and relname <> '{parent}_default'"""
    )
    return {row.relname for row in rows}


async def homes(world: World, table: str) -> list[str]:
    """The partition of every row."""
    return [row.home for row in await world.query(f"select tableoid::regclass::text as home from {table} order by 1")]


async def test_the_current_month_and_two_more_are_made_ahead(world: World) -> None:
    assert await tidy(world)
    expected = {"2026_03", "2026_04", "2026_05"}
    assert await partitions(world, "batches") == {f"batches_{month}" for month in expected}
    assert await partitions(world, "changes") == {f"changes_{month}" for month in expected}
    await world.callback("email", [unsub("a@example.com")])
    assert await homes(world, "batches") == ["batches_2026_03"]
    assert await homes(world, "changes") == ["changes_2026_03"]


async def test_the_last_moment_of_a_year_is_in_its_december(world: World) -> None:
    world.clock.now = datetime(2026, 12, 31, 23, 59, 59, 999_000, tzinfo=UTC)
    assert await tidy(world)
    await world.callback("email", [unsub("a@example.com")])
    world.clock.sleep(0.001)
    await world.callback("email", [unsub("b@example.com")])
    assert await homes(world, "batches") == ["batches_2026_12", "batches_2027_01"]
    assert await homes(world, "changes") == ["changes_2026_12", "changes_2027_01"]


async def test_what_has_no_month_is_taken_and_put_into_place_later(world: World) -> None:
    entries = [unsub("a@example.com")]
    first = await world.callback("email", entries)
    world.clock.sleep(40 * 24 * HOUR)
    await world.callback("email", [unsub("b@example.com")])
    assert await homes(world, "batches") == ["batches_default"] * 2
    with capture_logs() as logs:
        await tidy(world)
    assert await homes(world, "batches") == ["batches_2026_03", "batches_2026_04"]
    assert await homes(world, "changes") == ["changes_2026_03", "changes_2026_04"]
    assert sum(line["moved"] for line in logs if line["event"] == "partition.made") == 4
    again = await world.callback("email", entries)
    assert (again.batch_id, again.outcome and again.outcome.duplicates) == (first.batch_id, 1)


async def test_an_id_without_a_sane_time_stays_in_the_default_partition(world: World) -> None:
    await world.callback("email", [unsub("a@example.com")])
    await world.execute("update batches set id = 'ffffffff-ffff-4fff-bfff-ffffffffffff'")
    assert await tidy(world)
    assert await homes(world, "batches") == ["batches_default"]


async def test_a_month_in_use_is_not_held_up_by_a_great_move(world: World) -> None:
    await world.execute(
        """insert into changes (namespace, channel, address, recorded_at)
           select 'default', 'email', 'a@example.com', '2026-03-01T12:00Z' from generate_series(1, 20001)"""
    )
    with capture_logs() as logs:
        await tidy(world)
    assert "partition.postponed" in {line["event"] for line in logs}
    assert await partitions(world, "changes") == {"changes_2026_04", "changes_2026_05"}
    world.clock.sleep(31 * 24 * HOUR)
    await tidy(world, Retention())
    assert set(await homes(world, "changes")) == {"changes_2026_03"}


async def test_without_retention_everything_is_kept(world: World) -> None:
    await tidy(world)
    await world.callback("email", [unsub("a@example.com")])
    world.clock.sleep(4000 * 24 * HOUR)
    await tidy(world, Retention())
    assert await homes(world, "batches") == ["batches_2026_03"]
    assert await homes(world, "changes") == ["changes_2026_03"]


async def test_retention_drops_whole_months_and_leaves_the_list(world: World) -> None:
    await tidy(world)
    entries = [unsub("a@example.com")]
    first = await world.callback("email", entries)
    world.clock.now = datetime(2026, 5, 30, 23, tzinfo=UTC)
    await tidy(world)
    assert await homes(world, "batches") == ["batches_2026_03"], "an hour of March is within the 60 days"
    world.clock.sleep(2 * HOUR)
    await tidy(world)
    assert await homes(world, "batches") == await homes(world, "changes") == []
    assert "batches_2026_03" not in await partitions(world, "batches")
    assert await suppressed(world, "email", "a@example.com")
    again = await world.callback("email", entries)
    assert again.batch_id == first.batch_id
    assert again.outcome
    assert (again.outcome.accepted, again.outcome.duplicates) == (0, 1)
    assert await homes(world, "batches") == []


async def test_an_old_start_that_is_delivered_again_after_its_month_clears_no_newer_stop(world: World) -> None:
    world.rule_by(reviewing(world.settings, opt_in_review="off", untimed_opt_in="receipt"))
    await tidy(world)
    untimed = [{"number": NUMBER, "opt-in": True}]
    await world.callback("sms", untimed)
    world.clock.sleep(HOUR)
    await world.callback("sms", [{"number": NUMBER, "timestamp": world.clock.seconds}, {"number": "15550100002"}])
    world.clock.sleep(120 * 24 * HOUR)
    await tidy(world)
    assert await homes(world, "batches") == []
    await world.callback("sms", untimed)
    assert await suppressed(world, "sms", NUMBER)


async def test_a_batch_that_waits_to_be_applied_keeps_its_month(world: World) -> None:
    await tidy(world)
    await world.execute("alter table facts rename to facts_away")
    await world.callback("email", [unsub("a@example.com")])
    await world.execute("alter table facts_away rename to facts")
    world.clock.sleep(120 * 24 * HOUR)
    with capture_logs() as logs:
        await tidy(world)
    assert [line["because"] for line in logs if line["event"] == "partition.kept"] == ["a batch waits to be applied"]
    assert await homes(world, "batches") == ["batches_2026_03"]


async def test_a_batch_that_cannot_be_replayed_keeps_its_month(world: World) -> None:
    await tidy(world)
    await world.callback("email", [{"reason": "sneezed", "email": "a@example.com"}])
    await world.execute("update batches set errors = '[]'")
    await world.execute("delete from quarantine")
    world.clock.sleep(120 * 24 * HOUR)
    with capture_logs() as logs:
        await tidy(world)
    assert [line["because"] for line in logs if line["event"] == "partition.kept"] == ["a batch cannot be replayed"]
    assert await homes(world, "batches") == ["batches_2026_03"]


async def test_a_batch_that_was_applied_anew_is_seen_before_its_month_goes(world: World) -> None:
    everything = batches.first_id(datetime(2000, 1, 1, tzinfo=UTC)), batches.LAST_ID
    ingested = await world.callback("email", [unsub("a@example.com")])
    assert ingested.outcome
    async with world.database.begin() as connection:
        read = batches.Extent().with_more(await batches.applied_after(connection, *everything))
        assert read == await batches.extent(connection, *everything)
        assert read.batches == 1
        world.clock.sleep(1)
        await batches.finish(connection, uuid.UUID(ingested.batch_id), ingested.outcome, world.clock())
        assert read != await batches.extent(connection, *everything)


async def test_a_review_outlives_its_batch(world: World) -> None:
    """It holds all that a decision needs."""
    await tidy(world)
    await world.callback("sms", start(None))
    world.clock.sleep(120 * 24 * HOUR)
    await tidy(world)
    assert await homes(world, "batches") == []
    decided = await decide(world, "approved")
    assert decided["state"] == "approved"


async def test_what_waits_in_quarantine_keeps_its_month(world: World) -> None:
    """A stop that is understood one day is taken from its batch."""
    await tidy(world)
    await world.callback("sms", [{"number": "x"}])
    world.clock.sleep(120 * 24 * HOUR)
    with capture_logs() as logs:
        await tidy(world)
    kept = [line["because"] for line in logs if line["event"] == "partition.kept"]
    assert kept == ["entries of it wait in quarantine"]
    await world.execute("update quarantine set state = 'discarded'")
    world.clock.sleep(2 * HOUR)
    await tidy(world)
    assert await homes(world, "batches") == []


async def test_two_workers_do_it_once(world: World) -> None:
    with capture_logs() as logs:
        did = await asyncio.gather(*(tidy(world) for _ in range(4)))
    assert sorted(did) == [False, False, False, True]
    assert len([line for line in logs if line["event"] == "partition.made"]) == 6
    assert not await tidy(world), "not before an hour has passed"
    world.clock.sleep(HOUR)
    assert await tidy(world)


async def test_a_worker_that_was_too_slow_changes_nothing_more(world: World, database: Database) -> None:
    async with database.begin() as connection:
        lease = await leases.claim(connection, "upkeep", world.clock(), world.clock())
    assert lease
    slow = upkeep.Upkeep(database, world.rules, world.clock, lease)
    assert await tidy(world), "another worker takes over"

    async def work(_: Connection) -> Any:
        pytest.fail("it is not its work any more")

    with pytest.raises(TakenOver):
        await slow.do(work)


async def test_without_the_right_to_make_tables_callbacks_go_on(world: World) -> None:
    await world.execute("create role visitor")
    for table in ("batches", "changes", "leases"):
        await world.execute(f"grant all on {table}, {table if table == 'leases' else table + '_default'} to visitor")
    await world.execute("alter role visitor set lock_timeout = '1s'")
    with capture_logs() as logs:
        await as_visitor(world)
    await world.execute("drop owned by visitor")
    await world.execute("drop role visitor")
    assert [line["event"] for line in logs] == ["upkeep.refused"]
    assert "own the tables" in logs[0]["fix"]


async def as_visitor(world: World) -> None:
    """The upkeep of a worker whose role may write, and no more."""
    role = (await world.query("select current_user as me, current_database() as here"))[0]
    await world.execute(f"alter role {role.me} in database {role.here} set role = visitor")
    async with Database.of(world.settings) as database:
        await upkeep.run_due(database, world.rules, KEPT, world.clock)
    await world.execute(f"alter role {role.me} in database {role.here} reset role")


async def test_a_table_that_somebody_holds_is_met_again_later(world: World, database: Database) -> None:
    async with database.begin() as connection:
        await connection.execute(text("lock table batches_default in access share mode"))
        assert await tidy(world)
    assert await partitions(world, "batches") == set()
    world.clock.sleep(61)
    assert await tidy(world)
    assert len(await partitions(world, "batches")) == 3
