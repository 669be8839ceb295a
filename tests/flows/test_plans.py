"""A plan is decided as a whole, by a filter or line by line; what was approved is looked at again before it is done, is
proved in the end, and can be taken back."""

import uuid

import pytest

from service.errors import Conflict, NotFound
from service.flows import approve, prove, reconcile, revert
from service.flows.approve import Verdict
from service.store.differences import Selection
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
    planned,
    pushed,
    reverted,
)
from tests.flows.speaking import World
from tests.flows.test_reconcile import Killed, dying_at, killed

ANN, BOB, CAROL = "ann@example.com", "bob@example.com", "carol@example.com"


async def drifted(world: World) -> uuid.UUID:
    """A plan with two lines for Kahuna, and one for us."""
    await load_behind_our_back(world, [ANN])
    await load_behind_our_back(world, [BOB], "complaint")
    await only_kahuna_knows(world, CAROL, "hard_bounce")
    run: uuid.UUID = (await planned(world)).id
    return run


# Decisions.


async def test_approved_as_a_whole(world: World) -> None:
    run_id = await drifted(world)
    assert (await decided(world, run_id)).lines == 3
    assert (await found(world, run_id)).state == "approved"
    assert await world.corrections() == []
    run = await carried_on(world, run_id)
    assert (run.state, run.decided_by, run.note) == ("applied", "tester", "a note")
    assert await lines(world, run_id) == {ANN: "applied", BOB: "applied", CAROL: "proved (recorded)"}


@pytest.mark.parametrize(
    ("chosen", "whom"),
    [
        ({"kind": "missing_here"}, {CAROL}),
        ({"kind": "missing_there"}, {ANN, BOB}),
        ({"reason": "manual"}, {ANN}),
        ({"slot": "complaint"}, {BOB}),
        ({"action": "suppress"}, {ANN, BOB, CAROL}),
        ({"action": "clear"}, set()),
        ({"kind": "missing_there", "reason": "complaint"}, {BOB}),
    ],
)
async def test_approved_by_a_filter_and_the_rest_still_waits(
    world: World, chosen: dict[str, str], whom: set[str]
) -> None:
    run_id = await drifted(world)
    run = await approved(world, run_id, **chosen)
    waiting = {address for address, state in (await lines(world, run_id)).items() if state == "proposed"}
    assert waiting == {ANN, BOB, CAROL} - whom
    assert run.state == ("planned" if waiting else "applied")


async def test_approved_line_by_line_and_what_cannot_be_is_told(world: World) -> None:
    run_id = await drifted(world)
    named = ((ANN, "unsubscribe"), (ANN, "complaint"), (CAROL, "hard_bounce"))
    first = await decided(world, run_id, lines=named)
    assert (first.lines, first.passed_over) == (2, {(ANN, "complaint"): None})
    await carried_on(world, run_id)
    again = await decided(world, run_id, lines=named)
    told = {(ANN, "unsubscribe"): "applied", (ANN, "complaint"): None, (CAROL, "hard_bounce"): "proved"}
    assert (again.lines, again.passed_over) == (0, told)


async def test_rejected_nothing_moves_and_nothing_can_be_approved_any_more(world: World) -> None:
    run_id = await drifted(world)
    before = await digest(world)
    await decided(world, run_id, decline=True)
    run = await found(world, run_id)
    assert (run.state, set((await lines(world, run_id)).values())) == ("rejected", {"declined"})
    with pytest.raises(Conflict, match="rejected"):
        await decided(world, run_id)
    assert (await digest(world), await world.corrections()) == (before, [])


async def test_a_run_that_failed_while_it_was_carried_out_goes_on_once_it_is_approved_again(world: World) -> None:
    run_id = await drifted(world)
    await decided(world, run_id)
    await world.execute("alter table differences add constraint broken check (state <> 'applied') not valid")
    with pytest.raises(Exception, match="broken"):
        await carried_on(world, run_id)
    assert ((await found(world, run_id)).state, await world.corrections()) == ("failed", [])
    await world.execute("alter table differences drop constraint broken")
    assert (await decided(world, run_id)).lines == 0
    run = await carried_on(world, run_id)
    assert (run.state, run.error) == ("applied", None)
    assert await lines(world, run_id) == {ANN: "applied", BOB: "applied", CAROL: "proved (recorded)"}


async def test_a_run_that_is_no_plan_yet_can_be_called_off_but_not_approved(world: World) -> None:
    run_id = await asked(world)
    with pytest.raises(Conflict, match="queued"):
        await decided(world, run_id)
    await decided(world, run_id, decline=True)
    assert (await carried_on(world, run_id)).state == "rejected"


async def test_nobody_decides_on_another_namespaces_plan(world: World) -> None:
    run_id = await drifted(world)
    verdict = Verdict("tester", "approved", Selection())
    with pytest.raises(NotFound):
        await approve.decide(world.database, run_id, verdict, world.clock, "other")
    with pytest.raises(NotFound):
        await revert.ask(world.database, run_id, "tester", None, world.clock, "other")


async def test_every_decision_is_in_the_audit_log(world: World) -> None:
    run_id = await drifted(world)
    await approved(world, run_id, reason="manual")
    await decided(world, run_id, decline=True)
    rows = await world.query("select action, actor, detail from audit where action like 'reconciliation.%' order by at")
    assert [row.action for row in rows] == [f"reconciliation.{w}" for w in ("requested", "approved", "rejected")]
    assert rows[1].detail["chosen"] == {"reason": "manual"}
    assert {row.detail["run_id"] for row in rows} == {str(run_id)}


# What was approved is looked at again.


async def test_what_has_changed_since_is_moot(world: World) -> None:
    run_id = await drifted(world)
    await decided(world, run_id)
    now = world.clock.seconds
    await world.callback("email", [{"reason": "spam", "email": BOB, "timestamp": now}])
    await world.callback("email", [{"reason": "hard_bounce", "email": CAROL, "timestamp": now - 5}])
    world.clock.sleep(10)
    await world.consent("email", ANN)
    run = await carried_on(world, run_id)
    told = dict.fromkeys((ANN, BOB, CAROL), "moot (settled-meanwhile)")
    assert (await lines(world, run_id), run.state) == (told, "proved")


async def test_a_stop_that_was_approved_is_told_as_of_its_newest_time(world: World) -> None:
    await load_behind_our_back(world, [ANN])
    run = await planned(world)
    await decided(world, run.id)
    world.clock.sleep(60)
    await load_behind_our_back(world, [ANN])
    run = await carried_on(world, run.id)
    assert await lines(world, run.id) == {ANN: "applied"}
    assert [row.occurred_at for row in await world.corrections("pending")] == [world.clock.seconds]


async def test_an_opt_in_is_not_carried_out_on_another_consent_than_the_one_looked_at(world: World) -> None:
    at = world.clock.seconds
    await world.stop("sms", "15550100001", "do_not_call", at - 60)
    await world.push("sms")
    await world.consent("sms", "15550100001", at - 30)
    await world.execute("delete from corrections where state = 'pending'")
    run = await planned(world, "sms")
    await decided(world, run.id)
    await world.consent("sms", "15550100001", at - 10)
    await world.execute("delete from corrections where state = 'pending'")
    run = await carried_on(world, run.id)
    assert await lines(world, run.id) == {"15550100001": "moot (changed-meanwhile)"}
    assert await world.corrections("pending") == []


# What only Kahuna knew.


async def test_what_only_kahuna_knew_is_recorded_as_its_own_word_and_never_told_back(world: World) -> None:
    await only_kahuna_knows(world, ANN)
    await only_kahuna_knows(world, "15550100001", "do_not_call", "sms")
    for channel in ("email", "sms"):
        run = await approved(world, (await planned(world, channel)).id)
        assert run.state == "proved"
    rows = await world.query("select source, origin, audit_id, batch_id from facts")
    assert {(row.source, row.origin, row.batch_id) for row in rows} == {("kahuna", "reconciliation", None)}
    assert await world.corrections() == []
    assert await digest(world)
    assert (await planned(world)).counts == {}


async def test_a_stop_that_kahuna_has_from_us_alone_proves_nothing_about_the_person(world: World) -> None:
    """Its fact was taken back: to record it anew would undo that."""
    await world.stop("email", ANN, "complaint")
    await pushed(world)
    await world.execute("delete from facts")
    await world.execute("update suppressions set stop_at = null, local_stop_at = null")
    run = await planned(world, auto_approve=True)
    assert await lines(world, run.id) == {ANN: "unsupported (taken-back)"}


# Proof.


async def test_a_run_is_proved_once_kahuna_has_accepted_everything(world: World) -> None:
    run_id = await drifted(world)
    await approved(world, run_id)
    await prove.prove(world.database, world.clock)
    assert (await found(world, run_id)).state == "applied"
    await pushed(world)
    assert set((await lines(world, run_id)).values()) == {"proved (accepted)", "proved (recorded)"}
    await prove.prove(world.database, world.clock)
    run = await found(world, run_id)
    assert (run.state, run.closed_at) == ("proved", world.clock())


async def test_what_kahuna_refuses_keeps_a_run_from_being_proved(world: World) -> None:
    run_id = await drifted(world)
    await approved(world, run_id)
    await world.fault(reject=[BOB], times=1)
    await pushed(world)
    await prove.prove(world.database, world.clock)
    run = await found(world, run_id)
    assert (run.state, (await lines(world, run_id))[BOB]) == ("applied", "refused (refused-by-kahuna)")
    assert run.closed_at is not None


async def test_a_later_run_that_does_not_find_it_any_more_closes_a_line(world: World) -> None:
    now = world.clock.seconds
    await world.callback("email", [{"reason": "unsub", "email": ANN, "timestamp": now - 9}])
    await world.consent("email", ANN, at=now)
    first = await planned(world)
    assert await lines(world, first.id) == {ANN: "unsupported (no-words-for-it)"}
    world.clock.sleep(60)
    await world.callback("email", [{"reason": "unsub", "email": ANN, "timestamp": now + 30}])
    second = await planned(world)
    assert await lines(world, first.id) == {ANN: f"proved (run:{second.id})"}
    assert (await found(world, first.id)).state == "proved"


async def test_what_is_on_its_way_is_not_closed_by_a_run_that_does_not_see_it(world: World) -> None:
    await load_behind_our_back(world, [ANN])
    first = await approved(world, (await planned(world)).id)
    await world.execute("update corrections set state = 'sending', lease_id = gen_random_uuid(), lease_until = now()")
    world.clock.sleep(1)
    assert (await planned(world)).counts == {}
    assert await lines(world, first.id) == {ANN: "applied"}


async def test_what_was_on_its_way_when_a_run_looked_and_is_refused_before_its_end_is_not_proved(world: World) -> None:
    """No comparison sees what is on its way, so that it found no difference there shows nothing."""
    await load_behind_our_back(world, [ANN])
    await load_behind_our_back(world, [CAROL], "complaint")
    first = await approved(world, (await planned(world)).id)
    await world.execute(
        f"update corrections set state = 'sending', lease_id = gen_random_uuid() where address = '{ANN}'"
    )
    world.clock.sleep(1)
    second = await asked(world)
    with pytest.raises(Killed):
        await reconcile.run_next(means(world), dying_at(1, "differences"), second)
    refused = f"state = 'rejected', reason = 'bad', settled_at = timestamptz '{world.clock()}'"
    await world.execute(f"update corrections set {refused} where address = '{ANN}'")
    world.clock.sleep(1)
    await carried_on(world, second)
    assert (await lines(world, first.id))[ANN] == "applied"
    await prove.prove(world.database, world.clock)
    assert (await lines(world, first.id))[ANN] == "refused (bad)"


async def test_a_run_that_was_taken_over_closes_nothing_that_came_behind_its_first_pages(world: World) -> None:
    await load_behind_our_back(world, [BOB, CAROL], "complaint")
    slow = await asked(world)
    await killed(world, slow, 2, "differences", silently=True)
    await load_behind_our_back(world, [ANN])
    first = await approved(world, (await planned(world)).id)
    await world.fault(reject=[ANN], times=1)
    await pushed(world)
    assert (await lines(world, first.id))[ANN] == "refused (refused-by-kahuna)"
    world.clock.sleep(60)
    assert (await carried_on(world, slow)).complete_at is not None
    assert (await lines(world, first.id))[ANN] == "refused (refused-by-kahuna)"


async def test_a_line_goes_with_the_correction_that_took_the_place_of_its_own(world: World) -> None:
    await load_behind_our_back(world, [ANN])
    run = await approved(world, (await planned(world)).id)
    world.clock.sleep(60)
    await world.stop("email", ANN, "manual")
    await prove.prove(world.database, world.clock)
    [pending] = await world.corrections("pending")
    [line] = await lines_of(world, run.id)
    assert (line.state, line.correction_id) == ("applied", pending.id)
    world.clock.sleep(60)
    await world.consent("email", ANN)
    await prove.prove(world.database, world.clock)
    assert await lines(world, run.id) == {ANN: "moot (no-longer-owed)"}


# Undo.


async def test_taken_back_the_list_is_what_it_was(world: World) -> None:
    await world.stop("email", "dave@example.com", "manual")
    run_id = await drifted(world)
    before = await digest(world)
    await approved(world, run_id)
    assert await digest(world) != before
    run = await reverted(world, run_id)
    assert (run.state, await digest(world)) == ("reverted", before)
    assert (await lines(world, run_id))[CAROL] == "reverted (retracted)"
    # What Kahuna was to be told follows from the list, and stands.
    assert {row.address for row in await world.corrections("pending")} == {ANN, BOB, "dave@example.com"}


async def test_a_stop_from_between_that_arrives_after_both_still_wins(world: World) -> None:
    await only_kahuna_knows(world, ANN)
    run = await approved(world, (await planned(world)).id)
    world.clock.sleep(60)
    between = world.clock.seconds
    world.clock.sleep(60)
    await reverted(world, run.id)
    [row] = await world.query(f"select stop_at from suppressions where address = '{ANN}'")
    assert row.stop_at is None
    await world.callback("email", [{"reason": "unsub", "email": ANN, "timestamp": between}])
    [row] = await world.query(f"select stop_at, clear_at from suppressions where address = '{ANN}'")
    assert (row.stop_at, row.clear_at) == (between, None)


async def test_what_was_taken_back_is_not_done_again_without_a_person(world: World) -> None:
    await only_kahuna_knows(world, ANN)
    held_at = world.clock.seconds - 100
    await reverted(world, (await approved(world, (await planned(world)).id)).id)
    assert (await planned(world)).counts == {}  # what was taken back proves nothing of Kahuna either
    await world.execute(f"update suppressions set held_stop_at = {held_at}")
    run = await planned(world, auto_approve=True)
    assert (run.state, [one["guard"] for one in run.held_by]) == ("planned", ["decided_before"])


async def test_opt_ins_that_are_not_sent_yet_are_withdrawn(world: World) -> None:
    at = world.clock.seconds
    await world.stop("sms", "15550100001", "do_not_call", at - 60)
    await world.push("sms")
    await world.consent("sms", "15550100001", at - 30)
    await world.execute("delete from corrections where state = 'pending'")
    run = await approved(world, (await planned(world, "sms")).id)
    assert len(await world.corrections("pending")) == 1
    run = await reverted(world, run.id)
    assert (run.outcome["withdrawn"], await world.corrections("pending")) == (1, [])


async def test_what_is_in_the_way_of_taking_back_is_met_again_when_that_is_due_and_not_before(world: World) -> None:
    await only_kahuna_knows(world, ANN)
    run = await approved(world, (await planned(world)).id)
    await revert.ask(world.database, run.id, "tester", None, world.clock, None)
    await world.execute("alter table retracted_facts add constraint broken check (reason = '')")
    for _ in range(3):
        await carried_on(world, run.id)
        world.clock.sleep(1.1)
    [row] = await world.query("select attempts from retractions")
    assert row.attempts == 2
    await world.execute("alter table retracted_facts drop constraint broken")
    world.clock.sleep(60)
    assert (await carried_on(world, run.id)).state == "reverted"


async def test_only_what_may_have_recorded_something_can_be_taken_back(world: World) -> None:
    run_id = await asked(world)
    with pytest.raises(Conflict, match="queued"):
        await revert.ask(world.database, run_id, "tester", None, world.clock, None)
    run = await planned(world)
    await reverted(world, run.id)
    with pytest.raises(Conflict, match="reverted"):
        await revert.ask(world.database, run.id, "tester", None, world.clock, None)
