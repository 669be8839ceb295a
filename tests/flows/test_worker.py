"""The worker as a whole: it does what is due, survives a database that goes away, and stops when told."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from dataclasses import replace
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs

from service import worker
from service.flows import push
from service.kahuna import NO_RETRY, Credentials, KahunaClient
from service.settings import Namespace, Settings
from tests.flows.speaking import KEYS, World
from tests.flows.test_ingest import unsub
from tests.flows.test_replay import unapplied
from tests.web.harness import with_state


@asynccontextmanager
async def working(world: World, show: worker.Show = lambda _: nullcontext()) -> AsyncIterator[None]:
    """A worker beside the test, which is told to stop at the end."""

    def client(namespace: Namespace, _: Settings) -> KahunaClient:
        credentials = Credentials(namespace.base_url, "s", KEYS.secret_key, KEYS.api_key)
        return KahunaClient(credentials, transport=httpx.ASGITransport(app=world.simulator.app), retry=NO_RETRY)

    stop = asyncio.Event()
    running = asyncio.create_task(worker.run(world.settings, stop, client, show=show))
    try:
        yield
    finally:
        stop.set()
        await running


async def settled(world: World, count: int) -> None:
    """Waits until so many corrections are sent."""
    for _ in range(1500):
        if len(await world.corrections("sent")) == count:
            return
        await asyncio.sleep(0.02)
    pytest.fail("the worker did not send in time")


async def test_it_sends_what_is_written_while_it_runs(world: World) -> None:
    async with working(world):
        await world.stop("email", "a@example.com", "manual")
        await world.stop("sms", "15550100001", "manual")
        await settled(world, 2)
    assert (await world.held("sms", "15550100001"))[None][0] == "stop"


async def test_it_applies_what_was_only_recorded(world: World) -> None:
    await world.execute("alter table facts rename to facts_away")
    await world.callback("email", [{"reason": "unsub", "email": "a@example.com"}])
    await world.execute("alter table facts_away rename to facts")
    async with working(world):
        for _ in range(1500):
            if await world.query("select 1 from facts"):
                break
            await asyncio.sleep(0.02)
    assert len(await world.query("select 1 from batches where state = 'applied'")) == 1


async def test_it_pulls_the_logs_of_each_namespace_unless_that_is_off(world: World) -> None:
    walks = "select distinct namespace from log_walks where last_at is not null order by 1"
    world.settings = replace(world.settings, logs_pull="off")
    async with working(world):
        await world.stop("email", "a@example.com", "manual")
        await settled(world, 1)
    assert await world.query(walks) == []
    world.settings = replace(world.settings, logs_pull="on")
    async with working(world):
        for _ in range(1500):
            if len(await world.query(walks)) == 2:
                break
            await asyncio.sleep(0.02)
    assert [row.namespace for row in await world.query(walks)] == ["default", "other"]


async def test_a_loop_that_fails_says_which_it_is(world: World) -> None:
    with capture_logs() as logs:
        await world.execute("alter table batches rename to batches_away")
        async with working(world):
            for _ in range(1500):
                if any(line.get("loop") == "apply" for line in logs):
                    break
                await asyncio.sleep(0.02)
            await world.execute("alter table batches_away rename to batches")
            for _ in range(1500):
                if any(line["event"] == "worker.recovered" and line["loop"] == "apply" for line in logs):
                    break
                await asyncio.sleep(0.02)
    told = {line["loop"] for line in logs if line["event"] in ("worker.step_failed", "database.lost")}
    assert "apply" in told
    assert "apply" in {line["loop"] for line in logs if line["event"] == "worker.recovered"}


async def test_it_comes_back_by_itself_when_its_connections_are_ended(world: World) -> None:
    others = "datname = current_database() and pid <> pg_backend_pid()"
    end_all = f"select pg_terminate_backend(pid) from pg_stat_activity where {others}"
    with capture_logs() as logs:
        async with working(world):
            await world.stop("email", "a@example.com", "manual")
            await settled(world, 1)
            await world.query(end_all)
            await world.stop("email", "b@example.com", "manual")
            await settled(world, 2)
    assert not [line for line in logs if line["event"] == "worker.step_failed"]


async def test_the_policy_in_force_is_written_down_once(world: World) -> None:
    for _ in range(2):
        async with working(world):
            await world.stop("email", "a@example.com", "manual")
            await settled(world, 1)
    assert len(await world.query("select 1 from audit where action = 'policy.set'")) == 1


async def test_it_makes_the_partitions_of_the_months_to_come(world: World) -> None:
    children = "select 1 from pg_inherits where inhparent in ('batches'::regclass, 'changes'::regclass)"
    async with working(world):
        for _ in range(1500):
            if len(await world.query(children)) == 8:
                break
            await asyncio.sleep(0.02)
    assert len(await world.query(children)) == 8, "two default ones, and three months of each"


async def test_a_worker_writes_calls_down_under_its_own_name_and_without_its_keys(world: World) -> None:
    world.wire.answer = lambda _: httpx.Response(503, json={"error": "no demo secret api key here"})
    credentials = Credentials("http://kahuna.test", "s", KEYS.secret_key, KEYS.api_key)
    await world.stop("email", "a@example.com", "manual")
    async with KahunaClient(credentials, transport=world.wire, retry=NO_RETRY) as client:
        await push.push_due(worker.named(world.pusher(client), world.settings.namespaces[0]), "email")
    [call] = await world.query("select worker, answer from calls")
    assert call.worker == f"{socket.gethostname()}/{os.getpid()}"
    assert call.answer == "no *** here"


class Window:
    """Where a worker shows how it is."""

    def __init__(self) -> None:
        self.client: asyncio.Future[httpx.AsyncClient] = asyncio.get_running_loop().create_future()

    @asynccontextmanager
    async def show(self, application: Any) -> AsyncIterator[None]:
        """Serves the application as a server would."""
        async with application.router.lifespan_context(application) as state:
            transport = httpx.ASGITransport(app=with_state(application, dict(state)))
            async with httpx.AsyncClient(transport=transport, base_url="http://worker.test") as client:
                self.client.set_result(client)
                yield

    async def shows(self, path: str, wanted: str) -> bool:
        """Whether this is to be read there before long."""
        client = await self.client
        for _ in range(1500):
            if wanted in (await client.get(path)).text:
                return True
            await asyncio.sleep(0.02)
        return False


async def test_it_counts_what_became_of_corrections_and_how_long_kahuna_took(world: World) -> None:
    window = Window()
    async with working(world, window.show):
        await world.stop("email", "a@example.com", "manual")
        await settled(world, 1)
        sent = 'kahuna_sync_pushed_corrections_total{channel="email",namespace="default",outcome="sent"} 1.0'
        assert await window.shows("/metrics", sent)
        assert await window.shows("/metrics", 'kahuna_sync_push_seconds_count{answer="ok",channel="email"')
        assert await window.shows("/metrics", 'kahuna_sync_worker_steps_total{loop="push",outcome="worked"}')
        assert await window.shows("/metrics", 'kahuna_sync_pool_connections{state="busy"}')


async def test_it_counts_the_facts_that_it_applies(world: World) -> None:
    await unapplied(world, [unsub("a@example.com"), unsub("b@example.com"), 7])
    window = Window()
    async with working(world, window.show):
        facts = 'kahuna_sync_facts_total{channel="email",outcome="new",reason="unsubscribe"} 2.0'
        assert await window.shows("/metrics", facts)
        assert await window.shows("/metrics", 'kahuna_sync_entries_total{channel="email",outcome="rejected"} 1.0')
        assert await window.shows("/metrics", 'kahuna_sync_entries_total{channel="sms",outcome="rejected"} 0.0')


async def test_a_loop_that_fails_makes_it_degraded_until_it_works_again(world: World) -> None:
    window = Window()
    async with working(world, window.show):
        await world.execute("alter table batches rename to batches_away")
        assert await window.shows("/readyz", '"loop/apply":"failed with')
        assert await window.shows("/readyz", '"status":"degraded"')
        await world.execute("alter table batches_away rename to batches")
        assert await window.shows("/readyz", '"status":"ready"')
