"""Callbacks outlive a database that is away: spooled at once, and applied once when it is back, whatever happens."""

import asyncio
import itertools
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs

from service.app import build
from service.domain.addresses import Channel
from service.errors import StorageUnavailable
from service.flows.ingest import Ingested, rules_of
from service.flows.intake import AT_ONCE, SMALL, SMALL_BODY, Intake
from service.flows.shelter import TOGETHER, Shelter
from service.flows.weather import Weather
from service.kahuna import webhook
from service.settings import Settings
from service.store.batches import Received
from service.store.database import Database
from service.store.spool import ASIDE, BLOCK, Spool
from tests.conftest import namespace
from tests.flows.speaking import World
from tests.flows.test_ingest import counts, unsub
from tests.relay import Relay, relayed

PATIENCE = 20.0
"""Longer than any stall of a busy machine: a database that refuses is known to be away at once all the same."""

SHORT = 0.3
"""For a database that hangs."""


@pytest.fixture(autouse=True)
def log() -> Iterator[list[Any]]:
    """What is logged, and not printed: that of an exception would take seconds."""
    with capture_logs() as lines:
        yield lines


def events(log: list[Any], *names: str) -> list[str]:
    """The events of these names, in their order."""
    return [line["event"] for line in log if line["event"] in names]


@pytest.fixture
def relay(database_url: str) -> Iterator[Relay]:
    with relayed(database_url) as made:
        yield made


@dataclass
class House:
    """A replica with a spool, whose way to the database a test can cut; `world` sees the database all the same."""

    world: World
    relay: Relay
    folder: Path
    shelter: Shelter
    database: Database

    async def callback(
        self, entries: list[Any], channel: Channel = "email", name: str = "default", request_id: str | None = None
    ) -> Ingested:
        """A verified callback that came to this replica."""
        return await self.shelter.ingest(*spoken(self, entries, channel, name, request_id))

    def files(self) -> list[str]:
        """What waits, in order of receipt."""
        return self.shelter.spool.look().batches

    async def drained(self) -> None:
        """Mends the way, and lets the spool be drained once."""
        self.relay.mend()
        await self.shelter.weather.back()
        assert await self.shelter.drain_once()


def spoken(
    house: House, entries: list[Any], channel: Channel = "email", name: str = "default", request_id: str | None = None
) -> tuple[Received, webhook.Callback]:
    """A verified callback, and what it says."""
    body = msgspec.json.encode(entries)
    now, digest = house.world.clock(), sha256(body).digest()
    batch = Received(uuid.uuid4(), name, channel, "kahuna_webhook", now, {}, body, digest, request_id)
    return batch, webhook.read(body, channel)


@asynccontextmanager
async def housed(
    world: World,
    relay: Relay,
    folder: Path,
    limit: int = 2**20,
    patience: float = PATIENCE,
    settings: Settings | None = None,
) -> AsyncIterator[House]:
    given = replace(settings or world.settings, database_url=relay.url, database_connect_timeout_seconds=2.0)
    rules = rules_of(given)
    async with Database.of(given) as database:
        intake = Intake(database, rules, world.clock)
        spool = Spool(folder, limit)
        spool.prepare()

        def on_loss() -> None:
            intake.abandon()
            database.distrust()

        weather = Weather(database.answers, patience, on_loss, look=0.02)
        watch = asyncio.create_task(weather.watch())
        yield House(world, relay, folder, Shelter(intake, spool, weather, rules), database)
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)


@pytest.fixture
async def house(world: World, relay: Relay, tmp_path: Path) -> AsyncIterator[House]:
    async with housed(world, relay, tmp_path / "spool") as made:
        yield made


@pytest.fixture
async def hasty(world: World, relay: Relay, tmp_path: Path) -> AsyncIterator[House]:
    async with housed(world, relay, tmp_path / "spool", patience=SHORT) as made:
        yield made


async def times(world: World) -> list[tuple[str, int]]:
    """The facts, by the order in which they were applied."""
    rows = await world.query("select address, occurred_at from facts join batches b on b.id = batch_id order by b.id")
    return [(row.address, row.occurred_at) for row in rows]


async def applied_in_order(world: World) -> list[str]:
    """By transaction; within one nothing has an order but that of receipt."""
    rows = await world.query("select id from batches order by applied_at, xmin::text::bigint, received_at")
    return [str(row.id) for row in rows]


# While it is there.


async def test_what_the_database_can_take_is_never_spooled(house: House) -> None:
    answers = await asyncio.gather(*(house.callback([unsub(f"a{n}@example.com")]) for n in range(20)))
    assert {answer.state for answer in answers} == {"applied"}
    assert house.files() == []


async def test_a_connection_that_broke_is_no_reason_to_spool(house: House) -> None:
    await house.callback([unsub("a@example.com")])
    await house.world.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity"
        " where pid <> pg_backend_pid() and datname = current_database()"
    )
    assert (await house.callback([unsub("b@example.com")])).state == "applied"
    assert house.files() == []


# While it is away.


async def test_a_burst_is_spooled_and_applied_in_order_when_it_is_back(house: House, log: list[Any]) -> None:
    world = house.world
    await house.callback([unsub("before@example.com")])
    house.relay.cut()
    answers = []
    for n in range(10):
        answers.append(await house.callback([unsub(f"a{n}@example.com", None)]))
        world.clock.sleep(1)
    more = await asyncio.gather(*(house.callback([unsub(f"b{n}@example.com")]) for n in range(50)))
    assert {answer.state for answer in [*answers, *more]} == {"spooled"}
    assert len(house.files()) == 60
    world.clock.sleep(3600)
    await house.drained()
    assert house.files() == []
    drained = await applied_in_order(world)
    assert drained[1:11] == [answer.batch_id for answer in answers]
    assert len(drained) == 61
    assert events(log, "database.lost", "database.found", "spool.drained") == [
        "database.lost",
        "database.found",
        "spool.drained",
    ]
    assert len(events(log, "batch.spooled")) == 60
    assert "example.com" not in str(log)


async def test_what_is_drained_is_traced_to_the_request_that_brought_it(house: House, log: list[Any]) -> None:
    now = house.world.clock.seconds
    for number in ("15550100001", "15550100002"):
        await house.world.stop("sms", number, "do_not_call", at=now - 100)
    await house.world.push("sms")
    house.relay.cut()
    opt_in: Any = {"number": "15550100001", "timestamp": now - 50, "opt-in": True}
    many = [opt_in | {"number": "15550100002"}, *({"number": str(15550200000 + n)} for n in range(SMALL))]
    await house.callback([opt_in], "sms", request_id="first")
    await house.callback([opt_in], "sms", request_id="delivered-again")
    await house.callback(many, "sms", request_id="large")
    await house.drained()
    waiting = await house.world.corrections("pending")
    # Both are drained at the same time.
    assert {(row.address[-1], row.request_id) for row in waiting} == {("1", "first"), ("2", "large")}
    assert sorted(line["request_id"] for line in log if line["event"] == "batch.applied") == ["first", "large"]


async def test_what_an_older_release_spooled_is_traced_to_the_redelivery_at_least(house: House) -> None:
    now = house.world.clock.seconds
    await house.world.stop("sms", "15550100001", "do_not_call", at=now - 100)
    await house.world.push("sms")
    house.relay.cut()
    opt_in: Any = {"number": "15550100001", "timestamp": now - 50, "opt-in": True}
    await house.callback([opt_in], "sms")
    house.relay.mend()
    await house.shelter.weather.back()
    assert (await house.callback([opt_in], "sms", request_id="delivered-again")).state == "applied"
    assert [row.request_id for row in await house.world.corrections("pending")] == ["delivered-again"]


@pytest.mark.parametrize("busy", [False, True], ids=["alone", "beside others"])
async def test_a_drain_rests_while_others_are_served(house: House, busy: bool) -> None:
    """Else what waited would take the place of what comes, until the last of it is applied."""
    rests: list[float] = []
    done = asyncio.Event()

    async def rest(seconds: float) -> None:
        rests.append(seconds)

    async def others() -> None:
        for n in itertools.takewhile(lambda _: not done.is_set(), itertools.count()):
            await shelter.ingest(*spoken(house, [unsub(f"b{n}@example.com")]))

    intake = Intake(house.database, house.world.rules, house.world.clock)
    shelter = Shelter(intake, house.shelter.spool, house.shelter.weather, house.world.rules, rest)
    house.relay.cut()
    await asyncio.gather(*(house.callback([unsub(f"a{n}@example.com")]) for n in range(5 * TOGETHER)))
    house.relay.mend()
    await shelter.weather.back()
    beside = [asyncio.create_task(others()) for _ in range(busy)]
    assert await shelter.drain_once()
    done.set()
    await asyncio.gather(*beside)
    assert bool(rests) is busy
    assert all(seconds > 0 for seconds in rests)


async def test_what_is_drained_shares_transactions(house: House) -> None:
    house.relay.cut()
    await asyncio.gather(*(house.callback([unsub(f"a{n}@example.com")]) for n in range(2 * TOGETHER)))
    await house.drained()
    rows = await house.world.query("select xmin::text from batches")
    assert len(rows) == 2 * TOGETHER
    assert len(set(rows)) <= TOGETHER / 4


class Weighed(Spool):
    """Notes how many bytes of bodies were taken out, and not let go of yet, each time that one more was."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, 2**20)
        self.held: dict[str, int] = {}
        self.weights: list[int] = []
        self.largest = 0

    def load(self, name: str) -> Received:
        batch = super().load(name)
        self.held[name] = len(batch.body)
        self.largest = max(self.largest, len(batch.body))
        self.weights.append(sum(self.held.values()))
        return batch

    def remove(self, name: str) -> None:
        super().remove(name)
        self.held.pop(name)


async def test_large_ones_are_drained_one_after_the_other(house: House) -> None:
    """Dozens of ten megabytes, read and understood at once, would not fit."""
    house.relay.cut()
    for n in range(6):
        await house.callback([unsub(f"a{n}-{m}@example.com") for m in range(1 if n == 2 else 1500)])
    spool = house.shelter.spool = Weighed(house.folder)
    await house.drained()
    assert [row[0] for row in await house.world.query("select count(*) from facts")] == [5 * 1500 + 1]
    assert SMALL_BODY < max(spool.weights) < 1.5 * spool.largest


async def test_an_untimed_stop_keeps_its_time_of_receipt(house: House) -> None:
    received_at = house.world.clock.seconds
    house.relay.cut()
    spooled = await house.callback([unsub("a@example.com", None)])
    house.world.clock.sleep(7200)
    await house.drained()
    rows = await house.world.query(
        "select f.occurred_at, b.id, b.received_at, b.applied_at from facts f join batches b on b.id = f.batch_id"
    )
    assert [(row.occurred_at, str(row.id)) for row in rows] == [(received_at, spooled.batch_id)]
    assert (int(rows[0].received_at.timestamp()), rows[0].applied_at) == (received_at, house.world.clock.now)


async def test_a_database_that_hangs_is_not_waited_for(hasty: House) -> None:
    house = hasty
    await house.callback([unsub("before@example.com")])
    house.relay.hang()
    answers = await asyncio.gather(
        *(house.callback([unsub(f"a{n}@example.com")]) for n in range(5)),
        house.callback([unsub(f"large{n}@example.com") for n in range(500)]),
    )
    assert {answer.state for answer in answers} == {"spooled"}
    assert (await house.callback([unsub("at.once@example.com")])).state == "spooled"
    await house.drained()
    facts = await house.world.query("select distinct address from facts")
    assert len(facts) == 507
    assert (await house.callback([unsub("after@example.com")])).state == "applied"


async def test_connections_that_died_without_a_word_are_not_used_again(hasty: House) -> None:
    house = hasty
    async with AsyncExitStack() as stack:
        for _ in range(AT_ONCE * 3):
            await (await stack.enter_async_context(house.database.read())).exec_driver_sql("select 1")
    house.relay.hang()
    waiting = []
    for n in range(AT_ONCE):
        waiting.append(asyncio.create_task(house.callback([unsub(f"b{n}@example.com")])))
        await asyncio.sleep(0.02)
    assert {answer.state for answer in await asyncio.gather(*waiting)} == {"spooled"}
    house.relay.replace()
    await house.shelter.weather.back()
    answers = await asyncio.gather(*(house.callback([unsub(f"c{n}@example.com")]) for n in range(8)))
    assert {answer.state for answer in answers} == {"applied"}


# Redeliveries.


async def test_a_redelivery_while_spooled_gets_the_first_id_and_one_file(house: House) -> None:
    house.relay.cut()
    first = await house.callback([unsub("a@example.com")])
    house.world.clock.sleep(60)
    again = await asyncio.gather(*(house.callback([unsub("a@example.com")]) for _ in range(5)))
    assert {answer.batch_id for answer in again} == {first.batch_id}
    assert len(house.files()) == 1
    await house.drained()
    later = await house.callback([unsub("a@example.com")])
    assert (later.batch_id, counts(later.outcome)) == (first.batch_id, (0, 1, 0))


async def test_a_redelivery_before_it_is_drained_applies_the_first_with_its_time(house: House) -> None:
    received_at = house.world.clock.seconds
    house.relay.cut()
    first = await house.callback([unsub("a@example.com", None)])
    house.relay.mend()
    await house.shelter.weather.back()
    house.world.clock.sleep(60)
    answers = await asyncio.gather(*(house.callback([unsub("a@example.com", None)]) for _ in range(3)))
    assert {answer.batch_id for answer in answers} == {first.batch_id}
    assert sorted(counts(answer.outcome) for answer in answers) == [(0, 1, 0), (0, 1, 0), (1, 0, 0)]
    assert await times(house.world) == [("a@example.com", received_at)]
    await house.drained()
    assert house.files() == []
    assert await times(house.world) == [("a@example.com", received_at)]


async def test_what_was_applied_before_the_outage_is_a_redelivery_afterwards(house: House) -> None:
    first = await house.callback([unsub("a@example.com")])
    house.relay.cut()
    spooled = await house.callback([unsub("a@example.com")])
    await house.drained()
    assert spooled.state == "spooled"
    assert house.files() == []
    assert await applied_in_order(house.world) == [first.batch_id]


async def test_a_crash_between_commit_and_removal_is_a_redelivery(house: House) -> None:
    house.relay.cut()
    await house.callback([unsub("a@example.com", None)])
    (name,) = house.files()
    content = (house.folder / name).read_bytes()
    await house.drained()
    (house.folder / name).write_bytes(content)
    assert await house.shelter.drain_once()
    assert house.files() == []
    assert len(await house.world.query("select 1 from batches")) == 1
    assert len(await house.world.query("select 1 from facts")) == 1


# What is in the way.


async def test_torn_and_foreign_files_are_set_aside_and_block_nobody(house: House, log: list[Any]) -> None:
    house.relay.cut()
    for n in range(3):
        await house.callback([unsub(f"a{n}@example.com")])
        house.world.clock.sleep(1)
    torn = house.folder / house.files()[0]
    torn.write_bytes(torn.read_bytes()[:-1])
    (house.folder / "letter").write_text("dear spool")
    (house.folder / ".killed.part").write_text("half")
    await house.drained()
    left = sorted(path.name for path in house.folder.iterdir())
    assert left == sorted([".drain.lock", f"{torn.name}{ASIDE}", f"letter{ASIDE}"])
    assert len(await house.world.query("select 1 from facts")) == 2
    assert events(log, "spool.torn") == ["spool.torn"] * 2
    assert "letter" not in str(log)


async def test_a_poisoned_batch_is_recorded_and_blocks_nobody(house: House) -> None:
    house.relay.cut()
    first = await house.callback([unsub("a@example.com"), {"reason": "what"}])
    await house.callback([unsub("b@example.com")])
    await house.world.execute("alter table quarantine rename to quarantine_away")
    await house.drained()
    rows = await house.world.query("select id, state from batches order by received_at, state desc")
    assert {(str(row.id), row.state) for row in rows} >= {(first.batch_id, "recorded")}
    assert sorted(row.state for row in rows) == ["applied", "recorded"]
    assert house.files() == []
    await house.world.execute("alter table quarantine_away rename to quarantine")


async def test_one_that_cannot_even_be_recorded_waits_and_blocks_nobody(house: House) -> None:
    house.relay.cut()
    bad = [(await house.callback([unsub(f"bad{n}@example.com")])).batch_id for n in range(TOGETHER + 1)]
    house.world.clock.sleep(1)
    await house.callback([unsub("good@example.com")])
    quoted = ", ".join(f"'{one}'" for one in bad)
    await house.world.execute(f"alter table batches add constraint poison check (id not in ({quoted}))")
    house.relay.mend()
    await house.shelter.weather.back()
    assert not await house.shelter.drain_once(), "so many failures in a row end it"
    assert not await house.shelter.drain_once(), "those that did not fail go first"
    assert len(house.files()) == TOGETHER + 1
    assert await times(house.world) == [("good@example.com", 1_700_000_000)]
    await house.world.execute("alter table batches drop constraint poison")
    assert await house.shelter.drain_once()
    assert house.files() == []


async def test_what_the_database_cannot_store_is_spooled_though_it_is_there(house: House) -> None:
    await house.world.execute("alter table batches add constraint poison check (headers <> '{}')")
    assert (await house.callback([unsub("a@example.com")])).state == "spooled"
    assert not house.shelter.weather.away
    assert (await house.callback([unsub("a@example.com")])).state == "spooled"
    await house.world.execute("alter table batches drop constraint poison")
    assert len(house.files()) == 1
    await house.drained()
    assert house.files() == []


async def test_files_of_a_namespace_that_is_gone_stay_and_block_nobody(
    world: World, relay: Relay, tmp_path: Path, log: list[Any]
) -> None:
    async with housed(world, relay, tmp_path) as house:
        relay.cut()
        await house.callback([unsub("a@example.com")], name="other")
        await house.callback([unsub("b@example.com")], name="other")
        await house.callback([unsub("c@example.com")])
    fewer = replace(world.settings, namespaces=(namespace("default"),))
    async with housed(world, relay, tmp_path, settings=fewer) as house:
        await house.drained()
        await house.drained()
        assert len(house.files()) == 2
        assert events(log, "spool.stranded") == ["spool.stranded"], "told once"
        assert [row.address for row in await world.query("select address from facts")] == ["c@example.com"]
    async with housed(world, relay, tmp_path) as house:
        await house.drained()
        assert house.files() == []


async def test_over_its_limit_the_sender_keeps_it(world: World, relay: Relay, tmp_path: Path) -> None:
    async with housed(world, relay, tmp_path, limit=2 * BLOCK) as house:
        relay.cut()
        answers = await asyncio.gather(
            *(house.callback([unsub(f"a{n}@example.com")]) for n in range(5)), return_exceptions=True
        )
        refused = [answer for answer in answers if isinstance(answer, StorageUnavailable)]
        assert (len(refused), len(house.files())) == (3, 2)


async def test_one_replica_drains_a_shared_folder_at_a_time(world: World, relay: Relay, tmp_path: Path) -> None:
    async with housed(world, relay, tmp_path) as house, housed(world, relay, tmp_path) as other:
        relay.cut()
        await house.callback([unsub("a@example.com")])
        relay.mend()
        await house.shelter.weather.back()
        with other.shelter.spool.draining():
            assert await house.shelter.drain_once()
            assert len(house.files()) == 1
        await asyncio.gather(house.shelter.drain_once(), other.shelter.drain_once())
        assert house.files() == []
        assert len(await world.query("select 1 from batches")) == 1


async def test_a_restart_drains_what_the_one_before_had_spooled(world: World, relay: Relay, tmp_path: Path) -> None:
    async with housed(world, relay, tmp_path) as house:
        relay.cut()
        spooled = await house.callback([unsub("a@example.com")])
    relay.mend()
    application = build(replace(world.settings, database_url=relay.url, spool_dir=tmp_path), world.clock)
    async with application.router.lifespan_context(application):
        while not await world.query("select 1 from facts"):  # noqa: ASYNC110 (the database tells nobody)
            await asyncio.sleep(0.02)
    assert await applied_in_order(world) == [spooled.batch_id]


async def test_a_stop_does_not_wait_for_the_database(world: World, relay: Relay, tmp_path: Path) -> None:
    async with housed(world, relay, tmp_path) as house:
        relay.cut()
        await house.callback([unsub("a@example.com")])
        relay.mend()
    relay.hang()
    application = build(replace(world.settings, database_url=relay.url, spool_dir=tmp_path), world.clock)
    async with application.router.lifespan_context(application):
        await asyncio.sleep(0.05)
    assert len(Spool(tmp_path, BLOCK).look().batches) == 1


async def test_what_was_spooled_is_read_by_the_words_of_this_deployment(
    world: World, relay: Relay, tmp_path: Path
) -> None:
    taught = tuple(replace(one, extra_reasons=(("abuse", "complaint"),)) for one in world.settings.namespaces)
    settings = replace(world.settings, namespaces=taught)
    async with housed(world, relay, tmp_path / "spool", settings=settings) as house:
        relay.cut()
        assert (
            await house.callback([{"reason": "abuse", "email": "a@example.com", "timestamp": 1}])
        ).state == "spooled"
        await house.drained()
    assert [row.reason for row in await world.query("select reason from facts")] == ["complaint"]
