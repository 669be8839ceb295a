"""Months of the tables of receipt: made ahead, filled from the default partition, dropped when retention says so."""

import asyncio
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from structlog.testing import capture_logs

from service.flows import upkeep
from service.flows.reconcile import TakenOver
from service.flows.upkeep import Retention
from service.store import batches, leases
from service.store import partitions as partition_store
from service.store.database import Connection, Database, single_connection
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


async def rows_astray(world: World, count: int, apart: str) -> None:
    """Rows of the feed in March, from before any partition was made."""
    await world.execute(
        f"""insert into changes (namespace, channel, address, recorded_at)
            select 'default', 'email', 'a' || n, timestamptz '2026-03-01T00:00Z' + n * interval '{apart}'
            from generate_series(1, {count}) as n"""
    )


async def test_a_great_move_goes_slice_by_slice_while_callbacks_come(world: World) -> None:
    """Each slice is a partition, so every row is seen at any moment, and nobody waits for all of them."""
    await rows_astray(world, 45_000, "1 second")
    await world.callback("email", [unsub("first@example.com")])
    moving = asyncio.create_task(tidy(world))
    came = 0
    while not moving.done():
        await world.callback("email", [unsub(f"{came}@example.com")])
        came += 1
        assert (await world.query("select count(*) from changes"))[0][0] == 45_001 + came
    assert await moving
    slices = {"changes_2026_03_1", "changes_2026_03_2", "changes_2026_03"}
    assert await partitions(world, "changes") == slices | {"changes_2026_04", "changes_2026_05"}
    assert await world.query("select 1 from changes_default") == []
    sizes = await world.query("select count(*) as rows from changes group by tableoid order by 1")
    assert max(row.rows for row in sizes) == partition_store.MOVED_AT_ONCE
    world.clock.sleep(120 * 24 * HOUR)
    await tidy(world)
    assert await homes(world, "changes") == []
    assert not slices & await partitions(world, "changes")


async def test_a_move_that_was_cut_short_is_gone_on_with(world: World, database: Database) -> None:
    await rows_astray(world, 20_005, "1 second")
    async with database.begin() as connection:
        moved = await partition_store.make(connection, partition_store.FEED, partition_store.Month(2026, 3))
    assert moved == (20_000, False)
    async with database.read() as connection:
        assert await partition_store.months(connection, partition_store.FEED) == [], "it is not whole yet"
    await tidy(world)
    sizes = await world.query("select tableoid::regclass::text as home, count(*) as rows from changes group by 1")
    assert {row.home: row.rows for row in sizes} == {"changes_2026_03_1": 20_000, "changes_2026_03": 5}


async def test_rows_of_one_moment_are_never_parted(world: World) -> None:
    """As those of one large callback are: a partition could not tell them apart."""
    await rows_astray(world, 20_010, "0 seconds")
    await rows_astray(world, 3, "1 day")
    await tidy(world)
    sizes = await world.query("select tableoid::regclass::text as home, count(*) as rows from changes group by 1")
    assert {row.home: row.rows for row in sizes} == {"changes_2026_03_1": 20_010, "changes_2026_03": 3}


async def test_large_bodies_are_moved_a_few_at_a_time(world: World) -> None:
    for n in range(5):
        world.clock.sleep(1)
        await world.callback("email", [unsub(f"{n}@example.com")])
    await world.execute("update batches set body_bytes = 30 * 1024 * 1024")
    await tidy(world)
    sizes = await world.query("select tableoid::regclass::text as home, count(*) as rows from batches group by 1")
    assert {row.home: row.rows for row in sizes} == {
        "batches_2026_03_1": 2,
        "batches_2026_03_2": 2,
        "batches_2026_03": 1,
    }
    assert await world.callback("email", [unsub("4@example.com", 9)])


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
    assert len([line for line in logs if line["event"] == "partition.made"]) == 9
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


async def test_months_that_cannot_be_made_keep_no_others_from_being_dropped(world: World) -> None:
    await tidy(world)
    await world.callback("email", [unsub("a@example.com")])
    world.clock.sleep(120 * 24 * HOUR)
    for table in ("batches", "changes"):
        await world.execute(f"create table {table}_2026_06 (somebody_else int)")
    with capture_logs() as logs:
        assert await tidy(world)
    assert [line["event"] for line in logs].count("upkeep.failed") == 1
    assert "partition.dropped" in {line["event"] for line in logs}
    assert await homes(world, "batches") == await homes(world, "changes") == []
    for table in ("batches", "changes"):
        await world.execute(f"drop table {table}_2026_06")
    world.clock.sleep(61)
    assert await tidy(world), "soon, not in an hour"
    assert "batches_2026_06" in await partitions(world, "batches")


async def test_nobody_writes_to_a_month_of_the_archive_while_it_goes(world: World, database_url: str) -> None:
    """A replay that came in between would be lost with the month, and what it took would have no evidence."""
    await tidy(world)
    await world.callback("email", [unsub("a@example.com")])
    world.clock.sleep(120 * 24 * HOUR)
    seen: list[str] = []

    async def write() -> str:
        async with single_connection(database_url) as connection:
            await connection.execute(text("set lock_timeout = '5ms'"))
            try:
                await connection.execute(text("update batches_2026_03 set applied_at = now()"))
            except DBAPIError:
                return "refused"
            finally:
                await connection.rollback()
        return "written"

    def clock() -> datetime:
        # The upkeep asks for the time at each of its steps, the last time just before the month goes.
        with ThreadPoolExecutor(1) as pool:
            seen.append(pool.submit(lambda: asyncio.run(write())).result())
        return world.clock()

    assert await upkeep.run_due(world.database, world.rules, Retention(timedelta(days=60)), clock)
    assert await homes(world, "batches") == []
    assert seen.count("written") > 3
    # The table is gone at the very end, where the lease is given back.
    last = [what for what in seen[:-1] if what != "written"]
    assert last == ["refused"]


async def test_a_month_goes_although_somebody_has_just_read_it(world: World, database: Database) -> None:
    await tidy(world)
    await world.callback("email", [unsub("a@example.com")])
    world.clock.sleep(120 * 24 * HOUR)
    async with database.begin() as connection:
        await connection.execute(text("select 1 from batches, changes"))
        going = asyncio.create_task(tidy(world))
        await asyncio.wait([going], timeout=0.1)
        assert not going.done()
    assert await going
    assert await homes(world, "batches") == await homes(world, "changes") == []


async def test_the_first_callback_of_all_has_its_month(world: World) -> None:
    await upkeep.make_ahead(world.database, world.rules, world.clock)
    await world.callback("email", [unsub("a@example.com")])
    assert await homes(world, "batches") == ["batches_2026_03"]
    await upkeep.make_ahead(world.database, world.rules, world.clock)
    with capture_logs() as logs:
        assert await tidy(world), "the worker may go on at once"
    assert logs == []


async def test_a_table_that_somebody_holds_is_met_again_later(world: World, database: Database) -> None:
    async with database.begin() as connection:
        await connection.execute(text("lock table batches_default in access share mode"))
        assert await tidy(world)
    assert await partitions(world, "batches") == set()
    world.clock.sleep(61)
    assert await tidy(world)
    assert len(await partitions(world, "batches")) == 3
