"""The feed: nothing is missed whoever commits when, and very many wait for it with one look."""

import asyncio
import os
import random
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import text
from structlog.testing import capture_logs

from service.errors import Conflict, Expired, StorageUnavailable, Unprocessable
from service.flows import upkeep
from service.flows.follow import Cursor, Feed, Page, Scope, announce, cursor_from
from service.flows.upkeep import Retention
from service.settings import Settings
from service.store import changes
from service.store.changes import Position
from service.store.database import Connection, Database, single_connection
from tests.flows.speaking import World, until
from tests.flows.test_ingest import unsub

HERE = Scope("default")
LONG = float(os.environ.get("FEED_SECONDS", "1.5"))
"""Seconds for which the writers of the longest test write."""

WRITE = text(
    "insert into changes (namespace, channel, address, recorded_at) values (:namespace, :channel, :address, now())"
)


def feed_of(world: World, poll_seconds: float = 0.02, direct_url: str | None = None) -> Feed:
    return Feed(world.database, ["default", "other"], poll_seconds, direct_url)


@pytest.fixture
async def feed(world: World) -> AsyncIterator[Feed]:
    made = feed_of(world)
    async with made.running():
        yield made


async def write(connection: Connection, address: str, namespace: str = "default", channel: str = "email") -> None:
    await connection.execute(WRITE, {"namespace": namespace, "channel": channel, "address": address})


def addresses(page: Page) -> list[str]:
    return [one.change.address for one in page.told]


async def start(feed: Feed, scope: Scope = HERE) -> Cursor:
    """Where the feed ends now."""
    page = await feed.page(scope, None, 1000)
    return page.next


@asynccontextmanager
async def another_transaction(url: str) -> AsyncIterator[Connection]:
    """A transaction with an xid, on a connection of its own; rolled back at the end of the block."""
    async with single_connection(url) as connection:
        await connection.execute(text("select pg_current_xact_id()"))
        yield connection
        await connection.rollback()


# Gap-free.


async def test_a_change_waits_for_every_older_transaction(world: World, feed: Feed) -> None:
    here = await start(feed)
    async with another_transaction(world.settings.database_url or "") as slow:
        await write(slow, "slow@example.com")
        async with world.database.begin() as quick:
            await write(quick, "quick@example.com")
        early = await feed.page(HERE, here, 10)
        assert (addresses(early), early.next) == ([], here)
        await slow.commit()
    assert addresses(await feed.page(HERE, early.next, 10)) == ["slow@example.com", "quick@example.com"]


async def test_what_is_rolled_back_is_not_shown_and_leaves_no_gap(world: World, feed: Feed) -> None:
    here = await start(feed)
    async with another_transaction(world.settings.database_url or "") as undone:
        await write(undone, "undone@example.com")
        async with world.database.begin() as kept:
            await write(kept, "kept@example.com")
    assert addresses(await feed.page(HERE, here, 10)) == ["kept@example.com"]


async def test_another_database_of_the_server_makes_the_feed_late_but_not_gapped(
    world: World, feed: Feed, server_url: str
) -> None:
    """PostgreSQL numbers the transactions of all databases together, and a snapshot's xmin is that of all."""
    here = await start(feed)
    async with another_transaction(server_url):
        await world.callback("email", [unsub("ann@example.com")])
        assert addresses(await feed.page(HERE, here, 10)) == []
        world.clock.sleep(300)
        async with world.database.read() as connection:
            assert await changes.lag(connection, world.clock.now) == 300
    assert addresses(await feed.page(HERE, here, 10)) == ["ann@example.com"]
    async with world.database.read() as connection:
        assert await changes.lag(connection, world.clock.now) == 0


async def test_who_only_reads_holds_nothing_back(world: World, feed: Feed) -> None:
    here = await start(feed)
    async with world.database.snapshot("suppressions"):
        await world.callback("email", [unsub("ann@example.com")])
        assert addresses(await feed.page(HERE, here, 10)) == ["ann@example.com"]


async def test_a_followers_copy_is_the_table_with_eight_writers(world: World, feed: Feed) -> None:
    """Writers that commit, roll back and linger, in any order; `FEED_SECONDS=60` for the long form."""
    chance = random.Random(5)
    ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    end = time.monotonic() + LONG

    async def writer(number: int) -> None:
        async with single_connection(world.settings.database_url or "") as connection:
            count = 0
            while time.monotonic() < end:
                for _ in range(chance.randrange(1, 6)):
                    await write(connection, f"w{number}-{count}@example.com")
                    count += 1
                await asyncio.sleep(chance.choice([0, 0, 0.002, 0.05]))
                await (connection.rollback() if chance.random() < 0.2 else connection.commit())

    copy: list[str] = []

    async def follower() -> None:
        page = await feed.page(HERE, None, 7)
        while page.told or not ended.done() or page.next.position.xid < ended.result():
            copy.extend(addresses(page))
            page = await feed.next_page(HERE, page.next, chance.choice([1, 7, 1000]), 0.05)

    following = asyncio.create_task(follower())
    await asyncio.gather(*(writer(number) for number in range(8)))
    [(last,)] = await world.query("select cast(cast(pg_snapshot_xmax(pg_current_snapshot()) as text) as bigint)")
    ended.set_result(last)
    await following
    assert sorted(copy) == sorted(row.address for row in await world.query("select address from changes"))
    assert len(copy) > 100


# Pages and cursors.


async def test_pages_go_on_where_the_last_one_ended(world: World, feed: Feed) -> None:
    for n in range(5):
        await world.callback("email", [unsub(f"a{n}@example.com")])
    found: list[str] = []
    page = await feed.page(HERE, None, 2)
    while page.told:
        found += addresses(page)
        page = await feed.page(HERE, page.next, 2)
    assert found == [f"a{n}@example.com" for n in range(5)]


async def test_namespaces_and_channels_never_mix(world: World, feed: Feed) -> None:
    async with world.database.begin() as connection:
        await write(connection, "ann@example.com")
        await write(connection, "15550100001", channel="sms")
        await write(connection, "bob@example.com", "other")
    for scope, expected in (
        (HERE, ["ann@example.com", "15550100001"]),
        (Scope("default", "sms"), ["15550100001"]),
        (Scope("other"), ["bob@example.com"]),
        (Scope("other", "sms"), []),
    ):
        assert addresses(await feed.page(scope, None, 10)) == expected


async def test_a_quiet_followers_cursor_moves_on(world: World, feed: Feed) -> None:
    """Or it would grow older than what is kept, though nothing was missed."""
    here = await start(feed)
    await world.callback("email", [unsub("ann@example.com")], "other")
    assert (await feed.page(HERE, here, 10)).next.position > here.position


SOME = Cursor("0123456789abcdef", Position(2**40, 7))


def test_a_cursor_comes_back_as_it_was() -> None:
    assert cursor_from(SOME.written(HERE), HERE) == SOME
    email = Scope("default", "email")
    assert cursor_from(SOME.written(HERE), email) == SOME
    assert cursor_from(SOME.written(email), email) == SOME
    assert SOME.written(HERE) == SOME.written(HERE)


@pytest.mark.parametrize(
    "written",
    ["", "x", "null", "é" * 40, "=" * 40, "A" * 40, "A" * 4000, SOME.written(HERE)[:-4], SOME.written(HERE)[::-1]],
)
def test_what_is_no_cursor_of_ours_is_refused(written: str) -> None:
    with pytest.raises(Unprocessable, match="leave it out"):
        cursor_from(written, HERE)


def test_a_cursor_is_good_for_its_namespace_and_channels_alone() -> None:
    with pytest.raises(Unprocessable, match="leave it out"):
        cursor_from(SOME.written(Scope("other")), HERE)
    for wider in (HERE, Scope("default", "sms")):
        with pytest.raises(Unprocessable, match="the channel email alone"):
            cursor_from(SOME.written(Scope("default", "email")), wider)


def test_every_altered_character_is_noticed() -> None:
    written = SOME.written(HERE)
    for place, old in enumerate(written):
        altered = written[:place] + ("A" if old != "A" else "B") + written[place + 1 :]
        with pytest.raises(Unprocessable):
            cursor_from(altered, HERE)


# What a cursor outlives.


async def test_who_missed_what_retention_dropped_is_told(world: World, feed: Feed) -> None:
    kept = Retention(feed=timedelta(days=60))

    async def tidy() -> None:
        assert await upkeep.run_due(world.database, world.rules, kept, world.clock)

    await tidy()
    before = await start(feed)
    await world.callback("email", [unsub("old@example.com")])
    after = await start(feed)
    world.clock.sleep(95 * 86_400)
    await world.callback("email", [unsub("new@example.com")])
    await tidy()
    with pytest.raises(Expired) as caught:
        await feed.page(HERE, before, 10)
    assert caught.value.reason == "cursor-expired"
    assert addresses(await feed.page(HERE, after, 10)) == ["new@example.com"]
    assert addresses(await feed.page(HERE, None, 10)) == ["new@example.com"]


async def test_an_epoch_that_an_operator_begins_ends_all_cursors(world: World, feed: Feed) -> None:
    before = await start(feed)
    waiting = asyncio.create_task(feed.next_page(HERE, before, 10, 30))
    await until(lambda: feed.waiting > 0)
    async with world.database.begin() as connection:
        await changes.begin_epoch(connection, "tester", world.clock.now)
    with pytest.raises(Expired, match="restored"):
        await waiting
    assert (await feed.page(HERE, None, 10)).next.epoch != before.epoch


async def test_a_copy_of_the_database_is_another_epoch(world: World, feed: Feed, server_url: str) -> None:
    before = await start(feed)
    async with single_connection(server_url) as connection:
        autocommit = await connection.execution_options(isolation_level="AUTOCOMMIT")
        await autocommit.execute(text("create database restored template template_sync strategy file_copy"))
        try:
            url = server_url.replace("/postgres?", "/restored?")
            async with Database.of(replace(world.settings, database_url=url)) as restored:
                with pytest.raises(Expired, match="restored"):
                    await Feed(restored, ["default"], 0.02).page(HERE, before, 10)
        finally:
            await autocommit.execute(text("drop database restored with (force)"))


async def test_a_cursor_from_after_the_servers_own_time_is_expired(feed: Feed) -> None:
    """The files of the server were put back, which it cannot know."""
    here = await start(feed)
    with pytest.raises(Expired, match="restored"):
        await feed.page(HERE, Cursor(here.epoch, Position(here.position.xid + 1000, 0)), 10)


# Waiting.


async def test_who_waits_is_told_as_soon_as_there_is_something(world: World, feed: Feed) -> None:
    here = await start(feed)
    waiting = asyncio.create_task(feed.next_page(HERE, here, 10, 30))
    elsewhere = asyncio.create_task(feed.next_page(Scope("other"), here, 10, 30))
    await until(lambda: feed.waiting == 2)
    await world.callback("email", [unsub("ann@example.com")])
    page = await waiting
    assert addresses(page) == ["ann@example.com"]
    assert [cause.cause.reason for cause in page.told[0].causes] == ["unsubscribe"]
    assert not elsewhere.done()
    feed.end()
    assert addresses(await elsewhere) == []


async def test_a_wait_ends_with_its_time(feed: Feed) -> None:
    page = await feed.next_page(HERE, await start(feed), 10, 0.03)
    assert (page.told, feed.waiting) == ([], 0)


async def test_nobody_waits_once_the_process_ends(feed: Feed) -> None:
    here = await start(feed)
    waiting = [asyncio.create_task(feed.next_page(HERE, here, 10, 600)) for _ in range(3)]
    await until(lambda: feed.waiting == 3)
    feed.end()
    assert all(not page.told for page in await asyncio.gather(*waiting))
    assert not (await feed.next_page(HERE, here, 10, 600)).told


class Counting(Database):
    """A database that counts its transactions."""

    begun = 0

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[Connection]:
        self.begun += 1
        async with super().begin() as connection:
            yield connection


async def test_a_crowd_shares_the_looks_and_comes_back_without_one(world: World) -> None:
    """A thousand followers at the head of the feed, for whom three changes come: not some thousand looks."""
    async with Counting.of(world.settings) as database:
        assert isinstance(database, Counting)
        feed = Feed(database, ["default"], 0.1)
        here = await start(feed)

        async def follower() -> list[str]:
            found: list[str] = []
            cursor = here
            while len(found) < 3:
                page = await feed.next_page(HERE, cursor, 10, 30)
                found += addresses(page)
                cursor = page.next
            return found

        async with feed.running():
            crowd = [asyncio.create_task(follower()) for _ in range(1000)]
            await until(lambda: feed.waiting == 1000)
            joined = database.begun
            for n in range(3):
                await world.callback("email", [unsub(f"a{n}@example.com")])
                await feed.next_page(HERE, here, 10, 30)
            expected = [f"a{n}@example.com" for n in range(3)]
            assert all(found == expected for found in await asyncio.gather(*crowd))
        assert database.begun - joined < 1000


async def test_those_behind_what_is_remembered_ask_the_database(world: World, feed: Feed) -> None:
    here = await start(feed)
    async with world.database.begin() as connection:
        await connection.execute(
            text(
                """insert into changes (namespace, channel, address, recorded_at)
                   select 'default', 'email', 'a' || n || '@example.com', now() from generate_series(1, 11000) as n"""
            )
        )
    waiting = asyncio.create_task(feed.next_page(Scope("other"), here, 1, 30))
    found: list[str] = []
    page = await feed.next_page(HERE, here, 1000, 5)
    while page.told:
        found += addresses(page)
        page = await feed.next_page(HERE, page.next, 1000, 0.1)
    assert found == [f"a{n}@example.com" for n in range(1, 11_001)]
    waiting.cancel()


async def test_too_many_are_told_to_come_again(world: World) -> None:
    feed = Feed(world.database, ["default"], 0.02, most_waiting=1)
    here = await start(feed)
    first = asyncio.create_task(feed.next_page(HERE, here, 10, 30))
    await until(lambda: feed.waiting > 0)
    with pytest.raises(StorageUnavailable, match="Too many"):
        await feed.next_page(HERE, here, 10, 30)
    feed.end()
    await first


# Being told.


async def test_one_process_tells_another(world: World, settings: Settings) -> None:
    """The looks alone would come far too late."""
    async with AsyncExitStack() as stack:
        there = await stack.enter_async_context(Database.of(settings))
        feed = Feed(there, ["default"], 60, settings.database_url)
        await stack.enter_async_context(feed.running())
        here = await start(feed)
        waiting = asyncio.create_task(feed.next_page(HERE, here, 10, 600))
        await until(lambda: feed.waiting > 0)
        await world.callback("email", [unsub("ann@example.com")])
        assert world.database.news.is_set()
        while not waiting.done():  # the listener may still be on its way
            world.database.news.set()
            await announce(world.database)
            await asyncio.sleep(0.02)
        assert addresses(await waiting) == ["ann@example.com"]


async def test_only_what_feeds_the_changes_is_news(world: World) -> None:
    async with world.database.begin() as connection:
        await connection.execute(text("select 1"))
    assert not world.database.news.is_set()
    for say in (
        world.callback("email", [unsub("ann@example.com")]),
        world.callback("email", [unsub(f"a{n}@example.com") for n in range(300)]),
        world.stop("email", "ann@example.com", "manual", world.clock.seconds),
    ):
        await say
        assert world.database.news.is_set()
        await announce(world.database)
        assert not world.database.news.is_set()
    with pytest.raises(Conflict):
        await world.consent("email", "ann@example.com", world.clock.seconds - 1)
    async with world.database.begin() as connection:
        await connection.execute(text("select 1"))
    assert not world.database.news.is_set()


async def test_who_is_told_looks_often_while_an_older_transaction_hides_something(
    world: World, settings: Settings
) -> None:
    """Nobody tells of those changes a second time."""
    feed = Feed(world.database, ["default"], 0.02, settings.database_url, calm=100_000)
    async with feed.running():
        here = await start(feed)
        waiting = asyncio.create_task(feed.next_page(HERE, here, 10, 600))
        async with another_transaction(settings.database_url or ""):
            await world.callback("email", [unsub("ann@example.com")])
            await until(lambda: not world.database.news.is_set())
        assert addresses(await waiting) == ["ann@example.com"]


async def test_without_a_listener_the_looks_are_enough(world: World) -> None:
    feed = feed_of(world, 0.02, "postgresql://127.0.0.1:1/nothing")
    with capture_logs() as logs:
        async with feed.running():
            here = await start(feed)
            waiting = asyncio.create_task(feed.next_page(HERE, here, 10, 600))
            await world.callback("email", [unsub("ann@example.com")])
            assert addresses(await waiting) == ["ann@example.com"]
    assert "feed.unheard" in [line["event"] for line in logs]
