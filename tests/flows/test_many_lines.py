"""A decision about many lines is marked part by part, whoever dies, and what was said of it stays said."""

import uuid
from collections import Counter
from typing import Any

import pytest

from service.domain.runs import LineState
from service.errors import Conflict
from service.flows import approve, reconcile, revert
from service.flows.approve import Verdict
from service.store.differences import Selection
from tests.flows.planning import (
    approved,
    carried_on,
    decided,
    found,
    lines,
    load_behind_our_back,
    means,
    only_kahuna_knows,
    planned,
)
from tests.flows.speaking import World
from tests.flows.test_reconcile import Killed, dying_at

ANN = "ann@example.com"


async def wide(world: World, count: int = 7) -> uuid.UUID:
    """A plan with so many lines."""
    await load_behind_our_back(world, [f"{n}@example.com" for n in range(count)])
    run: uuid.UUID = (await planned(world)).id
    return run


async def decided_wide(world: World, run_id: uuid.UUID, what: LineState = "approved", **chosen: Any) -> approve.Decided:
    verdict = Verdict("tester", what, Selection(**chosen), "a note")
    return await approve.decide(world.database, run_id, verdict, world.clock, None, at_once=2)


async def test_a_decision_about_many_lines_is_marked_part_by_part(world: World) -> None:
    run_id = await wide(world)
    done = await decided_wide(world, run_id)
    assert (done.lines, done.going_on) == (7, True)
    run = await found(world, run_id)
    assert (run.state, run.deciding["done"], run.deciding["lines"]) == ("approved", 2, 7)
    assert Counter((await lines(world, run_id)).values()) == {"approved": 2, "proposed": 5}
    with pytest.raises(Conflict, match="2 of 7 lines are approved so far"):
        await decided_wide(world, run_id)
    told: list[tuple[str, int]] = []
    await reconcile.run_next(means(world, decided_at_once=3), lambda *one: told.append(one), run_id)
    assert told[:2] == [("decided", 5), ("carried out", 7)]
    run = await found(world, run_id)
    assert (run.state, run.deciding, set((await lines(world, run_id)).values())) == ("applied", None, {"applied"})
    [audit] = await world.query("select detail from audit where action = 'reconciliation.approved'")
    assert (audit.detail["lines"], audit.detail["note"]) == (7, "a note")


async def test_one_that_is_cut_short_is_gone_on_with(world: World) -> None:
    run_id = await wide(world)
    await decided_wide(world, run_id, action="suppress")
    with pytest.raises(Killed):
        await reconcile.run_next(means(world, decided_at_once=2), dying_at(1, "decided"), run_id)
    run = await found(world, run_id)
    assert (run.deciding["done"], Counter((await lines(world, run_id)).values())["approved"]) == (4, 4)
    await carried_on(world, run_id)
    assert set((await lines(world, run_id)).values()) == {"applied"}


async def test_one_that_kills_every_worker_is_given_up_and_can_be_made_again(world: World) -> None:
    run_id = await wide(world)
    await decided_wide(world, run_id, "declined")
    await world.execute("update reconciliations set attempts = 5")
    run = await carried_on(world, run_id)
    assert (run.state, run.error, run.deciding) == ("failed", "worker-died", None)
    assert Counter((await lines(world, run_id)).values()) == {"declined": 2, "proposed": 5}
    run = await approved(world, run_id)
    assert Counter((await lines(world, run_id)).values()) == {"declined": 2, "applied": 5}


async def test_a_rejection_of_many_lines_is_gone_on_with_too(world: World) -> None:
    run_id = await wide(world)
    await decided_wide(world, run_id, "declined")
    assert (await found(world, run_id)).state == "planned"
    run = await carried_on(world, run_id)
    assert (run.state, run.deciding, set((await lines(world, run_id)).values())) == ("rejected", None, {"declined"})


async def test_a_revert_cuts_a_decision_short_and_says_so(world: World) -> None:
    run_id = await wide(world)
    await decided_wide(world, run_id)
    await revert.ask(world.database, run_id, "tester", "stop it", world.clock, None)
    run = await carried_on(world, run_id, decided_at_once=2)
    assert (run.state, run.deciding) == ("reverted", None)
    # Two had been approved by then; about the others nobody had decided.
    assert Counter((await lines(world, run_id)).values()) == {"declined": 2, "declined (called-off)": 5}
    [audit] = await world.query("select detail from audit where action = 'reconciliation.reverted'")
    assert audit.detail["decision_cut_short"] == {"decision": "approved", "lines": 7, "done": 2}


async def test_a_run_that_recorded_much_is_taken_back_part_by_part(world: World) -> None:
    names = [f"{n}@example.com" for n in range(5)]
    for name in names:
        await only_kahuna_knows(world, name)
    run = await approved(world, (await planned(world)).id)
    await revert.ask(world.database, run.id, "tester", None, world.clock, None)
    run = await carried_on(world, run.id, decided_at_once=2)
    assert (run.state, set((await lines(world, run.id)).values())) == ("reverted", {"reverted (retracted)"})


# Notes.


async def test_both_notes_stay(world: World) -> None:
    await only_kahuna_knows(world, ANN)
    run = await approved(world, (await planned(world)).id)
    await revert.ask(world.database, run.id, "another", None, world.clock, None)
    run = await carried_on(world, run.id)
    assert (run.note, run.decided_by, run.revert_note, run.reverted_by) == ("a note", "tester", None, "another")
    [audit] = await world.query("select detail from audit where action = 'reconciliation.reverted'")
    assert audit.detail["was"] == {"decided_by": "tester", "note": "a note"}


async def test_a_decision_without_a_note_keeps_the_one_before(world: World) -> None:
    run_id = await wide(world, 2)
    await decided(world, run_id, lines=(("0@example.com", "unsubscribe"),))
    verdict = Verdict("another", "approved", Selection(), None)
    await approve.decide(world.database, run_id, verdict, world.clock, None)
    run = await carried_on(world, run_id)
    assert (run.note, run.decided_by) == ("a note", "another")
    await revert.ask(world.database, run_id, "third", "wrong after all", world.clock, None)
    run = await carried_on(world, run_id)
    assert (run.note, run.revert_note) == ("a note", "wrong after all")
    notes = await world.query("select detail ->> 'note' as note from audit where action like 'reconciliation.%'")
    assert {row.note for row in notes} >= {"a note", "wrong after all"}
