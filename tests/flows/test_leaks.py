"""Messages that Kahuna sent against a stop: found once, with both pieces of evidence, and nobody is blamed wrongly."""

from typing import Any

from structlog.testing import capture_logs

from tests.flows.logs import act, mailed, pulled
from tests.flows.speaking import World
from tests.flows.test_ingest import unsub

A = "a@example.com"
HOUR = 3600


async def violations(world: World) -> list[Any]:
    return await world.query("select * from violations order by sent_at, address")


async def test_a_message_after_an_unsubscribe_is_found_once_with_both_pieces_of_evidence(world: World) -> None:
    done = await world.callback("email", [unsub(A, world.clock.seconds)])
    stopped_at = world.clock.seconds
    world.clock.sleep(HOUR)
    await mailed(world, A, "other@example.com")
    sent_at = world.clock()
    world.clock.sleep(HOUR)
    with capture_logs() as logs:
        counts = (await pulled(world)).counts
    assert counts["violations"] == 1
    assert (await pulled(world, page_size=1)).counts["violations"] == 0
    [row] = await violations(world)
    assert (row.address, row.reason, row.occurred_at, row.known_by) == (A, "unsubscribe", stopped_at, "kahuna")
    assert (row.sent_at, row.campaign, row.campaign_id) == (sent_at, "Newsletter", 1002)
    assert row.evidence["message"]["action"] == "email"
    assert row.evidence["stop"]["batch_id"] == done.batch_id
    [line] = [line for line in logs if line["event"] == "violations.found"]
    assert (line["known_to_kahuna"], line["known_to_us"]) == (1, 0)
    assert A not in str(logs)


async def test_a_stop_of_the_same_page_counts_and_a_message_on_its_way_does_not(world: World) -> None:
    await act(world, "unsub", A)
    world.clock.sleep(300)
    await mailed(world, A)
    world.clock.sleep(1)
    await mailed(world, A)
    world.clock.sleep(HOUR)
    assert (await pulled(world)).counts["violations"] == 1


async def test_a_message_before_the_stop_or_after_a_consent_is_none(world: World) -> None:
    await mailed(world, A)
    world.clock.sleep(HOUR)
    await act(world, "unsub", A)
    world.clock.sleep(HOUR)
    await world.consent("email", A, world.clock.seconds)
    world.clock.sleep(HOUR)
    await mailed(world, A)
    world.clock.sleep(HOUR)
    assert (await pulled(world)).counts["violations"] == 0


async def test_what_kahuna_had_not_accepted_yet_is_not_its_fault(world: World) -> None:
    await world.stop("email", A, "manual")
    world.clock.sleep(HOUR)
    await mailed(world, A)
    await world.push("email")
    world.clock.sleep(HOUR)
    await mailed(world, A)
    world.clock.sleep(HOUR)
    await pulled(world)
    [first, second] = await violations(world)
    assert (first.known_by, second.known_by) == ("us", "kahuna")
    assert second.evidence["stop"]["correction_id"] is not None
    assert second.known_since == first.sent_at


async def test_what_kahuna_refused_it_does_not_know(world: World) -> None:
    await world.stop("email", A, "manual")
    await world.fault(api="email_sync", reject=[A])
    await world.push("email")
    assert len(await world.corrections("rejected")) == 1
    world.clock.sleep(HOUR)
    await mailed(world, A)
    world.clock.sleep(HOUR)
    await pulled(world)
    assert [row.known_by for row in await violations(world)] == ["us"]


async def test_what_came_to_us_after_the_message_is_nobodys_fault(world: World) -> None:
    await mailed(world, A)
    world.clock.sleep(HOUR)
    await world.stop("email", A, "manual", world.clock.seconds - 10 * HOUR)
    world.clock.sleep(HOUR)
    assert (await pulled(world)).counts["violations"] == 0
