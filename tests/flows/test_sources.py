"""A run may ask Kahuna itself: its logs, whose stops are lines that are done already, or the profiles of some."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from service.flows import prove, reconcile
from service.flows.sources import NoClient
from service.flows.underway import LEASE
from service.store import leases
from service.store.reconciliations import MOST_ATTEMPTS
from tests.flows.logs import act, client_of, facts, filled
from tests.flows.planning import (
    approved,
    asked,
    carried_on,
    decided,
    digest,
    found,
    lines,
    lines_of,
    load_behind_our_back,
    means,
    only_kahuna_knows,
    pushed,
    reverted,
)
from tests.flows.speaking import World
from tests.flows.test_ingest import suppressed, unsub

A, B = "a@example.com", "b@example.com"
TODAY: dict[str, Any] = {"since": datetime(2026, 3, 1, tzinfo=UTC).isoformat()}


async def ran(world: World, source: str, *, auto_approve: bool = False, **asks: Any) -> Any:
    """The row of a new run that may ask Kahuna."""
    run_id = await asked(world, source=source, auto_approve=auto_approve, asked=asks)
    async with client_of(world) as client:
        return await carried_on(world, run_id, clients={"default": client}, sample=50, budget=50)


async def test_what_the_logs_tell_is_a_line_that_is_done_and_the_ledger_is_compared_after_it(world: World) -> None:
    await act(world, "unsub", A)
    await load_behind_our_back(world, [B], "complaint")
    world.clock.sleep(3600)
    run = await ran(world, "logs", **TODAY)
    assert await lines(world, run.id) == {A: "proved (from-logs)", B: "proposed"}
    assert (run.state, run.counts["missing_here"], run.counts["missing_there"]) == ("planned", 1, 1)
    assert await suppressed(world, "email", A)
    [line] = [one for one in await lines_of(world, run.id) if one.address == A]
    [batch] = await world.query("select id from batches")
    assert (line.kind, line.batch_id) == ("missing_here", batch.id)
    assert await world.corrections() == []


async def test_what_the_logs_told_is_taken_back_with_the_run(world: World) -> None:
    await world.callback("email", [unsub("before@example.com", world.clock.seconds)])
    before = await digest(world)
    await act(world, "unsub", A, B)
    world.clock.sleep(3600)
    run = await ran(world, "logs", **TODAY)
    assert (run.state, await digest(world) == before) == ("proved", False)
    run = await reverted(world, run.id)
    assert (run.state, run.outcome["facts"], run.outcome["theirs"]) == ("reverted", 2, 2)
    assert await digest(world) == before
    assert set((await lines(world, run.id)).values()) == {"reverted (retracted)"}


async def test_what_was_taken_back_does_not_come_back_when_its_page_is_read_again_but_a_new_event_does(
    world: World,
) -> None:
    before = await digest(world)
    await act(world, "unsub", A, B)
    at = world.clock.seconds
    world.clock.sleep(3600)
    await reverted(world, (await ran(world, "logs", **TODAY)).id)
    again = await ran(world, "logs", **TODAY)
    assert (again.state, again.counts, await digest(world)) == ("proved", {}, before)
    await act(world, "unsub", A)
    await world.callback("email", [unsub(B, at)])
    world.clock.sleep(3600)
    await ran(world, "logs", **TODAY)
    told = [(A, at + 3600, "kahuna_logs"), (B, at, "kahuna_webhook")]
    assert [(address, when, origin) for address, _, when, origin in await facts(world)] == told
    assert await digest(world)


async def test_a_log_that_kahuna_does_not_give_is_told_and_the_run_goes_on(world: World) -> None:
    await load_behind_our_back(world, [B], "complaint")
    await world.fault(api="push_logs", status=500)
    world.clock.sleep(3600)
    run = await ran(world, "logs", **TODAY)
    assert (run.state, run.error) == ("planned", "logs-unread:push")


async def test_a_run_stays_as_far_behind_the_present_as_the_pull_since_records_may_be_late(world: World) -> None:
    delay = timedelta(hours=1)
    await filled(world, delay=delay)
    world.clock.sleep(1800)
    run_id = await asked(world, source="logs")
    async with client_of(world) as client:
        await carried_on(world, run_id, clients={"default": client}, delay=delay)
    rows = await world.query("select walk, reached from log_walks where api = 'email'")
    assert {row.walk: world.clock() - row.reached for row in rows} == {"pull": delay, "backfill": delay * 1.5}


class Meanwhile(httpx.AsyncBaseTransport):
    """A Kahuna while which answers, something else happens."""

    def __init__(self, world: World, happens: Callable[[int], Awaitable[object]]) -> None:
        self._world = world
        self._happens = happens
        self._asked = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self._asked += 1
        await self._happens(self._asked)
        return await self._world.wire.handle_async_request(request)


async def test_a_run_that_reads_logs_for_long_stays_with_its_worker(world: World) -> None:
    others = []

    async def another_worker_looks(_: int) -> None:
        world.clock.sleep(LEASE.total_seconds() * 0.7)
        others.append(await reconcile.run_next(means(world)))

    await act(world, "unsub", A)
    world.clock.sleep(3600)
    run_id = await asked(world, source="logs", asked=TODAY)
    async with client_of(world, Meanwhile(world, another_worker_looks)) as client:
        run = await carried_on(world, run_id, clients={"default": client})
    assert (run.state, run.fence, set(others)) == ("proved", 1, {None})
    assert len(others) > 2


async def test_a_run_that_looks_many_up_stays_with_its_worker(world: World) -> None:
    others = []

    async def another_worker_looks(_: int) -> None:
        world.clock.sleep(LEASE.total_seconds() * 0.07)
        others.append(await reconcile.run_next(means(world)))

    run_id = await asked(world, source="profiles", asked={"addresses": [f"{n}@example.com" for n in range(30)]})
    async with client_of(world, Meanwhile(world, another_worker_looks)) as client:
        run = await carried_on(world, run_id, clients={"default": client})
    assert (run.state, run.fence, others) == ("applied", 1, [None] * 30)


async def test_called_off_a_run_takes_no_further_page_in_and_what_it_took_can_be_taken_back(world: World) -> None:
    async def called_off(request: int) -> None:
        if request == 2:
            await decided(world, run_id, decline=True)

    await act(world, "unsub", A)
    world.clock.sleep(86_400)
    await act(world, "unsub", B)
    world.clock.sleep(3600)
    before = await digest(world)
    run_id = await asked(world, source="logs", asked=TODAY)
    async with client_of(world, Meanwhile(world, called_off)) as client:
        run = await carried_on(world, run_id, clients={"default": client})
    assert (run.state, [row[0] for row in await facts(world)]) == ("rejected", [A])
    assert (await reverted(world, run_id)).state == "reverted"
    assert (await digest(world), await facts(world)) == (before, [])


async def test_a_run_waits_for_who_reads_the_logs_however_long_that_takes(world: World) -> None:
    now = world.clock()
    async with world.database.begin() as connection:
        lease = await leases.claim(connection, "logs/default/pull", now, now + timedelta(hours=1))
    run_id = await asked(world, source="logs")
    async with client_of(world) as client:
        for _ in range(MOST_ATTEMPTS + 1):
            assert (await carried_on(world, run_id, clients={"default": client})).state == "running"
            world.clock.sleep(60)
        assert lease is not None
        async with world.database.begin() as connection:
            assert await leases.hold(connection, lease, world.clock())
        assert (await carried_on(world, run_id, clients={"default": client})).state == "proved"


async def test_without_keys_nobody_can_ask(world: World) -> None:
    run_id = await asked(world, source="logs")
    with pytest.raises(NoClient, match="KAHUNA_SECRET_KEY"):
        await carried_on(world, run_id)
    run = await found(world, run_id)
    assert (run.state, run.error) == ("failed", "NoClient")


async def test_a_profile_that_is_stopped_and_unknown_here_is_proposed_and_recorded_once_approved(world: World) -> None:
    await act(world, "unsub", A)
    run = await ran(world, "profiles", addresses=[A])
    assert (run.counts["looked_up"], await lines(world, run.id)) == (1, {A: "proposed"})
    assert run.complete_at is None
    run = await approved(world, run.id)
    assert (run.state, await suppressed(world, "email", A)) == ("proved", True)
    assert await world.corrections() == []


async def test_a_profile_that_says_otherwise_than_its_own_acceptance_is_for_a_person(world: World) -> None:
    await act(world, "soft_bounce", A)
    await world.callback("email", [unsub(A, world.clock.seconds)])
    run = await ran(world, "profiles", auto_approve=True, addresses=[A, "nobody@example.com"])
    assert await lines(world, run.id) == {A: "unsupported (seen-otherwise)"}
    assert (run.state, run.counts["without_answer"]) == ("applied", 1)


async def test_profiles_that_agree_prove_so(world: World) -> None:
    await act(world, "unsub", A)
    await world.callback("email", [unsub(A, world.clock.seconds)])
    run = await ran(world, "profiles")
    assert (run.state, run.compared, await lines(world, run.id)) == ("proved", 1, {})
    await pushed(world)


async def test_a_run_whose_log_could_not_be_read_is_never_called_proved(world: World) -> None:
    await world.fault(api="push_logs", status=500)
    world.clock.sleep(3600)
    run = await ran(world, "logs", **TODAY)
    assert (run.state, run.error, run.counts) == ("applied", "logs-unread:push", {"logs_unread": 1})
    await prove.prove(world.database, world.clock)
    assert (await found(world, run.id)).state == "applied"


async def test_approved_the_run_still_says_which_log_was_not_read(world: World) -> None:
    await only_kahuna_knows(world, B)
    await world.fault(api="push_logs", status=500)
    world.clock.sleep(3600)
    run = await approved(world, (await ran(world, "logs", **TODAY)).id)
    assert (await lines(world, run.id), run.state) == ({B: "proved (recorded)"}, "applied")
    assert run.error == "logs-unread:push"


@pytest.mark.parametrize(
    ("fault", "budget", "counts"),
    [
        ({"api": "user_info", "status": 500}, 50, {"looked_up": 2, "without_answer": 2}),
        (None, 1, {"looked_up": 1, "not_looked_up": 1}),
    ],
)
async def test_profiles_that_nobody_saw_prove_nothing(
    world: World, fault: dict[str, Any] | None, budget: int, counts: dict[str, int]
) -> None:
    await act(world, "unsub", A, B)
    await world.callback("email", [unsub(A, world.clock.seconds), unsub(B, world.clock.seconds)])
    if fault is not None:
        await world.fault(**fault)
    run_id = await asked(world, source="profiles", asked={"addresses": [A, B]})
    async with client_of(world) as client:
        run = await carried_on(world, run_id, clients={"default": client}, budget=budget)
    assert (run.state, run.counts) == ("applied", counts)
