"""A reconciliation by the ledger finds what the outbox does not know, repairs it once approved, and then finds
nothing."""

import uuid
from datetime import timedelta

import pytest

from service.domain.runs import Guards
from service.flows import prove, reconcile, revert
from service.flows.underway import LEASE, SCHEDULE, Progress
from service.store import reconciliations
from service.store.reconciliations import MOST_ATTEMPTS
from tests.flows.planning import (
    OPEN_DOOR,
    approved,
    asked,
    carried_on,
    decided,
    found,
    lines,
    lines_of,
    load_behind_our_back,
    means,
    only_kahuna_knows,
    planned,
    pushed,
    reverted,
)
from tests.flows.speaking import World


async def test_drift_is_found_repaired_and_gone(world: World) -> None:
    await load_behind_our_back(world, [f"a{n}@example.com" for n in range(5)])
    run = await planned(world, auto_approve=True)
    assert (run.state, run.counts["missing_there"], run.compared) == ("applied", 5, 10)
    await pushed(world)
    again = await planned(world)
    assert (again.state, again.counts) == ("proved", {})
    assert len(await world.corrections("sent")) == 5


async def test_a_run_that_is_not_approved_only_writes_down(world: World) -> None:
    await load_behind_our_back(world, ["a@example.com"])
    run = await planned(world)
    assert (run.state, run.counts["proposed"]) == ("planned", 1)
    assert await world.corrections() == []
    [line] = await lines_of(world, run.id)
    assert (line.kind, line.action, line.slot, line.reason) == ("missing_there", "suppress", "unsubscribe", "manual")
    assert (line.state, line.evidence["here"][0]["origin"]) == ("proposed", "operator")


async def test_a_consistent_list_has_no_differences(world: World) -> None:
    now = world.clock.seconds
    await world.callback("email", [{"reason": "spam", "email": "a@example.com", "timestamp": now}])
    await world.callback("sms", [{"number": "15550100001", "timestamp": now}])
    await world.stop("email", "b@example.com", "hard_bounce")
    await world.stop("sms", "15550100002", "manual")
    await world.push()
    await world.push("sms")
    runs = [await planned(world, channel) for channel in ("email", "sms")]
    assert [(run.state, run.counts) for run in runs] == [("proved", {})] * 2


async def test_what_is_on_its_way_is_not_proposed_again_and_closed_by_its_own_proof(world: World) -> None:
    await world.stop("email", "a@example.com", "manual")
    run = await planned(world, auto_approve=True)
    assert (run.state, await lines(world, run.id)) == ("applied", {"a@example.com": "on_its_way"})
    assert len(await world.corrections()) == 1
    await pushed(world)
    assert await lines(world, run.id) == {"a@example.com": "proved (accepted)"}


async def test_dead_corrections_are_proposed_again_and_refused_ones_are_reported_apart(world: World) -> None:
    await world.stop("email", "dead@example.com", "manual")
    await world.fault(status=400, times=1)
    await world.push()
    await world.stop("email", "refused@example.com", "manual")
    await world.fault(reject=["refused@example.com"], times=1)
    await world.push()
    run = await planned(world, auto_approve=True)
    told = {"dead@example.com": "applied", "refused@example.com": "refused (refused-by-kahuna)"}
    assert await lines(world, run.id) == told
    await world.push()
    assert [row.address for row in await world.corrections("sent")] == ["dead@example.com"]
    # It is never proved as long as Kahuna refuses one of them.
    await prove.prove(world.database, world.clock)
    assert (await found(world, run.id)).state == "applied"


async def test_what_the_api_cannot_say_is_reported_apart(world: World) -> None:
    now = world.clock.seconds
    await world.callback("email", [{"reason": "unsub", "email": "a@example.com", "timestamp": now - 9}])
    await world.consent("email", "a@example.com", at=now)
    run = await planned(world, auto_approve=True)
    assert await lines(world, run.id) == {"a@example.com": "unsupported (no-words-for-it)"}
    assert run.state == "applied"
    assert len(await world.corrections()) == 1


async def test_many_pages_lose_and_repeat_nothing(world: World) -> None:
    addresses = [f"a{n:02d}@example.com" for n in range(17)]
    await load_behind_our_back(world, addresses, "complaint")
    run = await carried_on(world, await asked(world), page=5)
    assert run.counts["differences"] == len(addresses)
    assert [line.address for line in await lines_of(world, run.id)] == addresses


# Workers that die.


class Killed(BaseException):
    """A worker ends here."""


def dying_at(count: int, what: str) -> Progress:
    """What ends the worker once so many lines are planned, or carried out."""

    def tell(doing: str, so_far: int) -> None:
        if doing == what and so_far >= count:
            raise Killed

    return tell


async def killed(world: World, run_id: uuid.UUID, count: int, what: str, *, silently: bool) -> None:
    """A worker takes the run, and ends after so many lines; silently: it cannot even say so."""
    with pytest.raises(Killed):
        await reconcile.run_next(means(world, page=2), dying_at(count, what), run_id)
    if silently:
        await world.execute(f"update reconciliations set lease_until = timestamptz '{world.clock() + LEASE}'")
        assert await reconcile.run_next(means(world), run_id=run_id) is None
        world.clock.sleep(LEASE.total_seconds() + 1)


@pytest.mark.parametrize("silently", [False, True])
async def test_a_plan_whose_worker_dies_is_gone_on_with(world: World, silently: bool) -> None:
    addresses = [f"a{n}@example.com" for n in range(7)]
    await load_behind_our_back(world, addresses, "complaint")
    run_id = await asked(world)
    await killed(world, run_id, 4, "differences", silently=silently)
    halfway = await found(world, run_id)
    assert (halfway.state, halfway.position, len(await lines_of(world, run_id))) == ("running", addresses[3], 4)
    run = await carried_on(world, run_id)
    assert (run.state, run.fence, run.counts["differences"]) == ("planned", 2, 7)
    assert [line.address for line in await lines_of(world, run_id)] == addresses


@pytest.mark.parametrize("silently", [False, True])
async def test_an_approved_plan_whose_worker_dies_is_carried_out_whole(world: World, silently: bool) -> None:
    await load_behind_our_back(world, [f"a{n}@example.com" for n in range(5)], "complaint")
    for n in range(5, 9):
        await only_kahuna_knows(world, f"a{n}@example.com")
    run = await planned(world)
    await decided(world, run.id)
    await killed(world, run.id, 4, "carried out", silently=silently)
    halfway = await lines(world, run.id)
    assert ((await found(world, run.id)).state, list(halfway.values()).count("approved")) == ("approved", 5)
    assert len(await world.corrections()) == 4
    run = await carried_on(world, run.id)
    assert run.state == "applied"
    told = [*["applied"] * 5, *["proved (recorded)"] * 4]
    assert list((await lines(world, run.id)).values()) == told
    assert len(await world.corrections()) == 5
    assert [len(row.facts) for row in await world.query("select facts from audit where facts is not null")] == [5, 4]


async def test_a_run_that_kills_every_worker_is_given_up_and_says_so(world: World) -> None:
    run_id = await asked(world)
    for _ in range(MOST_ATTEMPTS):
        async with world.database.begin() as connection:
            assert await reconciliations.claim(connection, world.clock(), world.clock() + LEASE, run_id)
        world.clock.sleep(LEASE.total_seconds() + 1)
    run = await carried_on(world, run_id)
    assert (run.state, run.error) == ("abandoned", "worker-died")
    assert await reconcile.run_next(means(world)) is None


async def test_a_worker_that_was_too_slow_has_no_say_any_more(world: World) -> None:
    run_id = await asked(world)
    async with world.database.begin() as connection:
        slow = await reconciliations.claim(connection, world.clock(), world.clock() + LEASE)
    assert slow is not None
    world.clock.sleep(LEASE.total_seconds() + 1)
    run = await carried_on(world, run_id)
    async with world.database.begin() as connection:
        assert not await reconciliations.hold(connection, slow, world.clock())
        assert not await reconciliations.write(connection, slow, {"state": "failed"})
    assert (await found(world, run_id)).state == run.state == "proved"


async def test_a_fault_of_ours_ends_a_run_and_says_so(world: World) -> None:
    await load_behind_our_back(world, ["a@example.com"])
    run_id = await asked(world)
    await world.execute("alter table differences add constraint nothing_at_all check (kind = '')")
    with pytest.raises(Exception, match="nothing_at_all"):
        await carried_on(world, run_id)
    run = await found(world, run_id)
    assert (run.state, run.error, await lines(world, run_id)) == ("failed", "IntegrityError", {})


# The schedule.


async def test_the_schedule_asks_once_however_many_workers_there_are(world: World) -> None:
    async def due() -> bool:
        wanted = {"source": "ledger", "auto_approve": False}
        return await reconcile.queue_scheduled(world.database, "default", timedelta(hours=6), wanted, world.clock)

    assert [await due() for _ in range(3)] == [True, False, False]
    rows = await world.query("select channel, actor, state from reconciliations order by channel")
    assert [tuple(row) for row in rows] == [("email", SCHEDULE, "queued"), ("sms", SCHEDULE, "queued")]
    world.clock.sleep(6 * 3600 + 1)
    assert not await due()  # the last ones are still under way
    while await reconcile.run_next(means(world)):
        pass
    world.clock.sleep(6 * 3600 + 1)
    assert await due()


async def test_a_plan_of_the_schedule_that_nobody_looked_at_makes_way(world: World) -> None:
    await load_behind_our_back(world, ["a@example.com"])
    plans = []
    for _ in range(2):
        await reconcile.queue_scheduled(
            world.database, "default", timedelta(hours=1), {"source": "ledger", "auto_approve": False}, world.clock
        )
        world.clock.sleep(3601)
        while run := await reconcile.run_next(means(world)):
            plans += [run.id] if run.channel == "email" else []
    first, second = [await found(world, run_id) for run_id in plans]
    assert (first.state, first.error, second.state) == ("abandoned", f"newer-plan:{second.id}", "planned")


async def test_a_plan_of_the_schedule_that_somebody_has_begun_to_decide_stays(world: World) -> None:
    await load_behind_our_back(world, ["a@example.com", "b@example.com"])
    wanted = {"source": "ledger", "auto_approve": False}
    for _ in range(2):
        await reconcile.queue_scheduled(world.database, "default", timedelta(hours=1), wanted, world.clock)
        world.clock.sleep(3601)
        while run := await reconcile.run_next(means(world)):
            if run.channel == "email":
                lines = (("a@example.com", "unsubscribe"),)
                await decided(world, run.id, decline=True, lines=lines)
    rows = await world.query("select state from reconciliations where channel = 'email'")
    assert [row.state for row in rows] == ["planned", "planned"]


async def test_old_runs_keep_only_what_was_decided_recorded_or_is_waited_for(world: World) -> None:
    now = world.clock.seconds
    for name in "ab":
        await world.callback("email", [{"reason": "unsub", "email": f"{name}@example.com", "timestamp": now - 9}])
        await world.consent("email", f"{name}@example.com", at=now)
    await only_kahuna_knows(world, "c@example.com")
    await load_behind_our_back(world, ["d@example.com", "e@example.com"], "complaint")
    first = await planned(world)
    await decided(world, first.id, lines=(("d@example.com", "complaint"),), decline=True)
    await approved(world, first.id)
    runs = []
    for _ in range(3):
        world.clock.sleep(60)
        runs.append(await carried_on(world, await asked(world), page=1, kept_runs=2))
    kept = {"c@example.com": "proved (recorded)", "d@example.com": "declined", "e@example.com": "applied"}
    assert await lines(world, first.id) == kept
    row = await found(world, first.id)
    assert (row.state, row.counts["lines_dropped"], row.counts["differences"]) == ("applied", 2, 5)
    # A plan that waits for a person keeps all, and so do the newest.
    assert [len(await lines_of(world, run.id)) for run in runs] == [4, 4, 4]
    # What was dropped was open: that the rest is closed proves nothing.
    await pushed(world)
    await prove.prove(world.database, world.clock)
    assert (await found(world, first.id)).state == "applied"


# Guards.


@pytest.mark.parametrize(
    ("guards", "held"),
    [
        (Guards(share=0.1, floor=2, most=1000), ["share"]),
        (Guards(share=1.0, floor=2, most=2), ["count"]),
        (Guards(share=0.1, floor=3, most=1000), []),
    ],
)
async def test_a_plan_that_is_too_large_waits_for_a_person(world: World, guards: Guards, held: list[str]) -> None:
    await load_behind_our_back(world, [f"a{n}@example.com" for n in range(3)])
    run = await planned(world, auto_approve=True, guards=guards)
    assert [one["guard"] for one in run.held_by] == held
    assert run.state == ("planned" if held else "applied")
    assert len(await world.corrections()) == (0 if held else 3)


async def test_what_permits_waits_for_a_person_and_what_protects_does_not(world: World) -> None:
    at = world.clock.seconds
    await world.stop("sms", "15550100001", "do_not_call", at - 60)
    await world.push("sms")
    await world.consent("sms", "15550100001", at - 30)
    await world.stop("sms", "15550100002", "manual", at - 60)
    await world.execute("delete from corrections where state = 'pending'")
    run = await planned(world, "sms", auto_approve=True)
    assert ([one["guard"] for one in run.held_by], run.state) == (["permits"], "planned")
    assert await lines(world, run.id) == {"15550100001": "proposed", "15550100002": "applied"}
    run = await approved(world, run.id)
    assert run.state == "applied"
    await pushed(world, "sms")
    await prove.prove(world.database, world.clock)
    assert (await found(world, run.id)).state == "proved"
    assert (await world.held("sms", "15550100001"))[None][0] == "opt-in"


async def test_what_a_person_declined_is_not_done_without_one(world: World) -> None:
    await load_behind_our_back(world, ["a@example.com", "b@example.com"])
    first = await planned(world)
    await decided(world, first.id, decline=True, lines=(("a@example.com", "unsubscribe"),))
    run = await planned(world, auto_approve=True, guards=OPEN_DOOR)
    assert [one["guard"] for one in run.held_by] == ["decided_before"]
    assert await lines(world, run.id) == {"a@example.com": "proposed", "b@example.com": "applied"}


async def test_lines_that_nobody_decided_about_are_called_off_and_hold_up_nothing_later(world: World) -> None:
    await load_behind_our_back(world, ["a@example.com", "b@example.com"])
    first = await planned(world)
    await decided(world, first.id, decline=True, lines=(("a@example.com", "unsubscribe"),))
    before = await revert.preview(world.database, first.id, None)
    assert (before.called_off, before.recorded, before.told_and_stands) == (1, 0, 0)
    await reverted(world, first.id)
    assert await lines(world, first.id) == {"a@example.com": "declined", "b@example.com": "declined (called-off)"}
    run = await planned(world, auto_approve=True, guards=OPEN_DOOR)
    assert await lines(world, run.id) == {"a@example.com": "proposed", "b@example.com": "applied"}
