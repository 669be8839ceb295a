"""The desk: corrections sent again or put aside by a person, their lists, and the lines of plans that they are of."""

import asyncio
import uuid
from dataclasses import replace
from datetime import timedelta

from service.domain.addresses import Channel
from service.flows import prove, reconcile
from service.flows.desk import Chosen
from service.store import desk, outbox
from service.store.desk import Wanted
from service.store.outbox import Scope, Settlement
from service.store.reconciliations import Run
from tests.flows.desk import (
    ANN,
    NUMBER,
    dead,
    deeds_done,
    desk_of,
    discard,
    rejected,
    requeue,
    states,
    waiting_for_a_lock,
)
from tests.flows.planning import approved, found, lines, lines_of, load_behind_our_back, means, planned, pushed
from tests.flows.speaking import World

# Sending again.


async def test_a_dead_correction_is_sent_again_as_a_new_one(world: World) -> None:
    row = await dead(world)
    decided = await desk_of(world).requeue(Chosen((row.id,)))
    [result] = decided.results
    assert (result.outcome, decided.next) == ("requeued", None)
    assert result.waits_as is not None
    assert result.waits_as > row.id
    assert await world.push()
    assert await states(world) == ["superseded", "sent"]
    assert "unsub" in await world.held("email", ANN)
    [deed] = await deeds_done(world)
    assert (deed.actor, deed.action, deed.address) == ("operator", "correction.requeued", ANN)
    assert (deed.detail["correction_id"], deed.detail["waits_as"]) == (row.id, result.waits_as)
    assert (deed.detail["was"], deed.detail["because"]) == ("dead", "bad-request")


async def test_twice_asked_is_once_sent(world: World) -> None:
    row = await dead(world)
    assert await requeue(world, row.id, row.id) == ["requeued"]
    assert await requeue(world, row.id) == ["superseded"]
    assert await states(world) == ["superseded", "pending"]


async def test_what_is_not_owed_any_more_is_not_sent(world: World) -> None:
    row = await dead(world)
    await world.callback("email", [{"reason": "unsub", "email": ANN, "timestamp": world.clock.seconds}])
    assert await requeue(world, row.id) == ["not-owed"]
    assert not await world.push()
    assert (await states(world), await deeds_done(world)) == (["superseded"], [])


async def test_a_pending_correction_goes_out_at_once(world: World) -> None:
    await world.stop("email", ANN, "unsubscribe")
    await world.fault(drop_answer=True, times=1)
    await world.push()
    [waiting] = await world.corrections("pending")
    await world.execute("update corrections set next_attempt_at = next_attempt_at + interval '1 day'")
    assert not await world.push()
    assert await requeue(world, waiting.id) == ["requeued"]
    assert await world.push()
    assert await states(world) == ["sent"]
    assert await requeue(world, waiting.id) == ["sent"]


async def test_what_kahuna_refused_is_sent_only_if_it_is_meant(world: World) -> None:
    row = await rejected(world)
    assert await requeue(world, row.id) == ["refused-for-good"]
    assert (await states(world), await deeds_done(world)) == (["rejected"], [])
    assert await requeue(world, row.id, anyway=True) == ["requeued"]
    await world.push()
    assert await states(world) == ["superseded", "sent"]


async def test_what_has_no_words_is_not_requeued(world: World) -> None:
    await world.callback("email", [{"reason": "unsub", "email": ANN, "timestamp": world.clock.seconds - 60}])
    await world.consent("email", ANN)
    [row] = await world.corrections("unsupported")
    assert await requeue(world, row.id, anyway=True) == ["unsupported"]
    assert await states(world) == ["unsupported"]


async def test_what_is_on_its_way_is_left_alone(world: World) -> None:
    await world.stop("sms", NUMBER, "do_not_call")
    [claimed], lease = await claim(world)
    assert await requeue(world, claimed.id) == ["on-its-way"]
    assert await discard(world, claimed.id) == ["on-its-way"]
    async with world.database.begin() as connection:
        scope = Scope("default", "sms", world.clock(), world.policy)
        assert await outbox.settle(connection, scope, lease, [claimed], Settlement("sent")) == 1
    assert await states(world) == ["sent"]


async def test_a_requeue_waits_for_a_claim_under_way_and_then_leaves_it_alone(world: World) -> None:
    """The claim has the row's lock and has not committed yet: what it says then is what counts."""
    await world.stop("sms", NUMBER, "do_not_call")
    [row] = await world.corrections()
    async with world.database.begin() as connection:
        until = world.clock() + timedelta(minutes=1)
        [claimed] = await outbox.claim(connection, "default", "sms", 10, uuid.uuid4(), world.clock(), until)
        asked = asyncio.create_task(requeue(world, row.id))
        await waiting_for_a_lock(world)
    assert await asked == ["on-its-way"]
    assert (claimed.id, await states(world)) == (row.id, ["sending"])


async def test_a_requeue_tells_what_a_worker_has_just_learnt(world: World) -> None:
    await world.stop("sms", NUMBER, "do_not_call")
    [claimed], lease = await claim(world)
    scope = Scope("default", "sms", world.clock(), world.policy)
    async with world.database.begin() as connection:
        await outbox.settle(connection, scope, lease, [claimed], Settlement("sent"))
        asked = asyncio.create_task(requeue(world, claimed.id))
        await waiting_for_a_lock(world)
    assert (await asked, await states(world)) == (["sent"], ["sent"])


async def test_requeues_and_claims_at_the_same_time_send_each_stop_once(world: World) -> None:
    addresses = [f"a{n:02d}@example.com" for n in range(20)]
    for address in addresses:
        await world.stop("email", address, "manual")
    await world.fault(status=400)
    await world.push()
    await world.heal()
    world.wire.bodies.clear()
    ids = [row.id for row in await world.corrections("dead")]
    assert len(ids) == 20
    await asyncio.gather(*(requeue(world, *ids) for _ in range(3)), *(world.push(entries=3) for _ in range(3)))
    while await world.push(entries=7):
        pass
    told = [entry["email"] for body in world.wire.bodies for entry in body]
    assert sorted(told) == addresses
    assert sorted(await states(world)) == ["sent"] * 20 + ["superseded"] * 20


async def test_strangers_and_other_namespaces_are_not_found(world: World) -> None:
    row = await dead(world)
    assert [r.outcome for r in (await desk_of(world, "other").requeue(Chosen((row.id, 9**9)))).results] == [
        "not-found"
    ] * 2
    assert [r.outcome for r in (await desk_of(world, "other").discard(Chosen((row.id,)), "x")).results] == ["not-found"]
    assert await states(world) == ["dead"]


async def test_all_that_a_filter_means_are_decided_some_at_a_time(world: World) -> None:
    for n in range(5):
        await dead(world, f"a{n}@example.com")
    await world.stop("sms", NUMBER, "do_not_call")
    small = replace(desk_of(world), most=3, at_once=2)
    chosen = Chosen(wanted=Wanted("default", "dead", "email", reason="bad-request"))
    first = await small.requeue(chosen)
    assert (len(first.results), first.next) == (3, first.results[-1].id)
    second = await small.requeue(chosen._replace(after=first.next or 0))
    assert (len(second.results), second.next) == (2, None)
    assert sorted(await states(world)) == ["pending"] * 6 + ["superseded"] * 5
    assert len(await deeds_done(world)) == 5


# Putting aside.


async def test_a_discard_keeps_its_reason_and_is_not_proposed_again(world: World) -> None:
    row = await dead(world)
    assert await discard(world, row.id) == ["discarded"]
    [after] = await world.corrections("discarded")
    assert (after.decided_by, after.note, after.reason) == ("operator", "a test of ours", "bad-request")
    [deed] = await deeds_done(world)
    assert (deed.action, deed.detail["reason"], deed.detail["was"]) == (
        "correction.discarded",
        "a test of ours",
        "dead",
    )
    run = Run(uuid.uuid4(), "default", "email", "ledger", True, "operator")
    await reconcile.queue(world.database, run, world.clock)
    await reconcile.run_next(means(world))
    assert await states(world) == ["discarded"]
    assert await discard(world, row.id) == ["discarded-before"]


async def test_a_new_stop_after_a_discard_is_told_again(world: World) -> None:
    row = await dead(world)
    await discard(world, row.id)
    world.clock.sleep(60)
    await world.stop("email", ANN, "unsubscribe")
    assert await states(world) == ["discarded", "pending"]


async def test_a_discard_is_taken_back_if_it_is_meant(world: World) -> None:
    row = await dead(world)
    await discard(world, row.id)
    assert await requeue(world, row.id) == ["discarded-before"]
    assert await requeue(world, row.id, anyway=True) == ["requeued"]
    await world.push()
    assert await states(world) == ["superseded", "sent"]


async def test_what_is_settled_cannot_be_discarded(world: World) -> None:
    await world.stop("email", ANN, "unsubscribe")
    await world.push()
    [row] = await world.corrections()
    assert await discard(world, row.id) == ["sent"]
    assert await states(world) == ["sent"]


# Lists.


async def test_the_outbox_is_listed_by_every_filter(world: World) -> None:
    row = await dead(world)
    await world.stop("sms", NUMBER, "do_not_call")
    now = world.clock()
    wanted = Wanted("default", "dead", "email", "unsubscribe", "suppress", "bad-request", row.created_at, now, (ANN,))
    assert await ids(world, wanted) == [row.id]
    for other in (
        wanted._replace(namespace="other"),
        wanted._replace(state="pending"),
        wanted._replace(channel="sms"),
        wanted._replace(slot="complaint"),
        wanted._replace(action="clear"),
        wanted._replace(reason="too-large"),
        wanted._replace(since=now),
        wanted._replace(until=row.created_at),
        wanted._replace(addresses=("bob@example.com",)),
    ):
        assert await ids(world, other) == [], other
    assert len(await ids(world, Wanted("default"))) == 2


async def test_a_rare_kind_is_found_behind_many_others(world: World) -> None:
    await world.stop("sms", NUMBER, "do_not_call")
    await world.push("sms")
    [first] = await world.corrections("sent")
    for n in range(9):
        await world.stop("email", f"a{n}@example.com", "complaint")
    await world.push()
    assert await ids(world, Wanted("default", "sent", "sms"), scanned=3) == [first.id]
    assert len(await ids(world, Wanted("default", "sent"), scanned=3)) == 10


async def ids(world: World, wanted: Wanted, **more: int) -> list[int]:
    """All of them, page by page."""
    found: list[int] = []
    before: int | None = None
    while True:
        async with world.database.read() as connection:
            rows, before = await desk.listed(connection, wanted, before, 2, **more)
        found += [row.id for row in rows]
        if before is None:
            return found


async def claim(world: World, channel: Channel = "sms") -> tuple[list[outbox.Claimed], uuid.UUID]:
    """Takes what is due, as a worker does."""
    lease, until = uuid.uuid4(), world.clock() + timedelta(minutes=1)
    async with world.database.begin() as connection:
        return await outbox.claim(connection, "default", channel, 10, lease, world.clock(), until), lease


# Lines of a plan.


async def refused_run(world: World) -> uuid.UUID:
    """A run whose only line Kahuna refused."""
    await load_behind_our_back(world, [ANN])
    run = await approved(world, (await planned(world)).id)
    await world.fault(reject=[ANN], times=1)
    await pushed(world)
    await prove.prove(world.database, world.clock)
    row = await found(world, run.id)
    assert (row.state, row.closed_at is None) == ("applied", False)
    run_id: uuid.UUID = run.id
    return run_id


async def test_a_refused_line_that_is_requeued_and_accepted_is_proved(world: World) -> None:
    run_id = await refused_run(world)
    [refused] = await world.corrections("rejected")
    assert await requeue(world, refused.id, anyway=True) == ["requeued"]
    [line] = await lines_of(world, run_id)
    [pending] = await world.corrections("pending")
    assert (line.state, line.why, line.correction_id) == ("applied", None, pending.id)
    assert (await found(world, run_id)).closed_at is None
    await pushed(world)
    await prove.prove(world.database, world.clock)
    assert await lines(world, run_id) == {ANN: "proved (accepted)"}
    assert (await found(world, run_id)).state == "proved"


async def test_a_refused_line_on_which_both_agree_by_now_is_moot(world: World) -> None:
    run_id = await refused_run(world)
    [refused] = await world.corrections("rejected")
    world.clock.sleep(60)
    await world.callback("email", [{"reason": "unsub", "email": ANN, "timestamp": world.clock.seconds}])
    assert await requeue(world, refused.id) == ["not-owed"]
    assert await lines(world, run_id) == {ANN: "moot (settled-meanwhile)"}


async def test_a_discarded_line_is_declined_at_once_and_waits_again_when_requeued(world: World) -> None:
    await load_behind_our_back(world, [ANN])
    run = await approved(world, (await planned(world)).id)
    [pending] = await world.corrections("pending")
    assert await discard(world, pending.id) == ["discarded"]
    assert await lines(world, run.id) == {ANN: "declined (discarded)"}
    assert await requeue(world, pending.id, anyway=True) == ["requeued"]
    await pushed(world)
    await prove.prove(world.database, world.clock)
    assert await lines(world, run.id) == {ANN: "proved (accepted)"}


async def test_a_run_is_not_proved_while_a_discarded_line_waits_again(world: World) -> None:
    await load_behind_our_back(world, [ANN])
    run = await approved(world, (await planned(world)).id)
    [pending] = await world.corrections("pending")
    await discard(world, pending.id)
    await prove.prove(world.database, world.clock)
    assert (await found(world, run.id)).state == "proved"
    await requeue(world, pending.id, anyway=True)
    row = await found(world, run.id)
    assert (row.state, row.closed_at) == ("applied", None)
    await world.fault(reject=[ANN], times=1)
    await pushed(world)
    await prove.prove(world.database, world.clock)
    assert (await found(world, run.id)).state == "applied"
    assert await lines(world, run.id) == {ANN: "refused (refused-by-kahuna)"}


async def test_a_small_look_goes_round_over_all_that_waits(world: World) -> None:
    names = [f"{n}@example.com" for n in range(7)]
    await load_behind_our_back(world, names)
    run = await approved(world, (await planned(world)).id)
    prover = prove.Prover(world.database, world.clock, page=3)
    assert [await prover.look() for _ in range(3)] == [False] * 3
    assert prover.place == 0 or not await prover.look()
    # Behind the push's back, as after a crash between the two.
    await world.execute("update corrections set state = 'sent', settled_at = now()")
    assert [await prover.look() for _ in range(3)] == [True] * 3
    assert set((await lines(world, run.id)).values()) == {"proved (accepted)"}
    assert (await found(world, run.id)).state == "proved"
