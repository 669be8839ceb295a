"""Kahuna's logs become facts: what callbacks missed comes in, what they told counts once, and no crash loses any."""

import asyncio
import random
import uuid
from datetime import timedelta
from typing import Any

import httpx
import msgspec
import pytest
from sqlalchemy import text
from structlog.testing import capture_logs

from service.domain.suppression import Policy, fold
from service.flows import bounces, pull
from service.flows.underway import TakenOver
from service.kahuna import KahunaClient, ServerRequest
from service.store import leases, pulls, suppressions
from tests.flows.logs import TODAY, Failing, act, client_of, due, facts, filled, pulled
from tests.flows.speaking import World
from tests.flows.test_ingest import suppressed, unsub
from tests.flows.test_rebuild import disagreements
from tests.flows.test_replay import replayed

HOUR = 3600
DAY = 86_400
A = "a@example.com"


async def bounced(world: World, address: str = A, at: int | None = None) -> None:
    """A callback about a soft bounce."""
    said = {"reason": "soft_bounce", "email": address, "timestamp": at or world.clock.seconds}
    await world.callback("email", [said])


async def times(world: World, address: str = A) -> list[int]:
    """The soft bounces that count."""
    rows = await world.query(f"select bounces from suppressions where address = '{address}' and reason = 'soft_bounce'")
    return list(rows[0].bounces or ()) if rows else []


async def test_what_no_callback_told_becomes_a_fact_of_an_archived_batch(world: World) -> None:
    words = {"unsub": "unsubscribe", "hard_bounce": "hard_bounce", "soft_bounce": "soft_bounce", "spam": "complaint"}
    for number, word in enumerate(words):
        await act(world, word, f"{number}@example.com")
    await act(world, "opened", A, campaign_id=1002)
    at = world.clock.seconds
    world.clock.sleep(HOUR)
    done = await pulled(world)
    expected = [(f"{n}@example.com", reason, at, "kahuna_logs") for n, reason in enumerate(words.values())]
    assert await facts(world) == expected
    assert (done.counts["facts"], done.counts["records"], len(done.batches)) == (4, 5, 1)
    [batch] = await world.query("select id, origin, accepted, state from batches")
    assert tuple(batch) == (done.batches[0], "kahuna_logs", 4, "applied")
    assert await suppressed(world, "email", "0@example.com")
    assert await disagreements(world) == []
    assert (await replayed(world))["changed"] == 0
    assert await world.corrections() == []


async def test_read_again_nothing_is_new_and_nothing_is_archived(world: World) -> None:
    await act(world, "unsub", A)
    world.clock.sleep(HOUR)
    first = await pulled(world)
    again = await pulled(world, page_size=1)
    assert (first.counts["facts"], again.counts["facts"], again.counts["known"]) == (1, 0, 1)
    assert (again.batches, len(await world.query("select 1 from batches"))) == ((), 1)


@pytest.mark.parametrize(("apart", "evidence"), [(0, 0), (300, 1), (-300, 1), (301, 0), (-301, 0)])
async def test_a_callback_within_five_minutes_told_the_same(world: World, apart: int, evidence: int) -> None:
    await act(world, "unsub", A)
    at = world.clock.seconds + apart
    world.clock.sleep(HOUR)
    await world.callback("email", [unsub(A, at)])
    done = await pulled(world)
    # At the very second it is the same fact, and no other.
    assert (done.counts["evidence"], len(await facts(world))) == (evidence, 2 if abs(apart) > 300 else 1)
    assert await disagreements(world) == []


async def test_a_callback_of_another_reason_tells_nothing(world: World) -> None:
    await act(world, "unsub", A)
    await world.callback("email", [unsub(A, reason="spam", timestamp=world.clock.seconds + 1)])
    world.clock.sleep(HOUR)
    assert (await pulled(world)).counts["facts"] == 1


async def test_with_a_consent_between_the_two_the_later_word_stands(world: World) -> None:
    now = world.clock.seconds
    await world.callback("email", [unsub(A, timestamp=now - 100)])
    await world.consent("email", A, now - 50)
    await act(world, "unsub", A)
    world.clock.sleep(HOUR)
    assert not await suppressed(world, "email", A)
    assert (await pulled(world)).counts["facts"] == 1
    assert await suppressed(world, "email", A)


async def test_a_stop_whose_address_is_none_spoils_nothing(world: World) -> None:
    await act(world, "unsub", "no address", A, "b@example.com")
    world.clock.sleep(HOUR)
    done = await pulled(world)
    assert (done.counts["facts"], done.counts["rejected"]) == (2, 1)
    [row] = await world.query("select rejected, errors from batches")
    assert (row.rejected, row.errors[0]["error"]) == (1, "not-an-email-address")
    assert await disagreements(world) == []


async def test_a_stop_without_a_time_is_of_its_receipt_and_no_news_twice(world: World) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        word = msgspec.json.decode(request.content)["categories_to_return"][0]
        record = {"action": "unsub", "email": A, "timestamp": "some day"}
        return httpx.Response(200, json={word: [record] if word == "email" else [], "more_records": False})

    vendor = httpx.MockTransport(answer)
    first = await pulled(world, transport=vendor)
    assert await facts(world) == [(A, "unsubscribe", world.clock.seconds, "kahuna_logs")]
    await world.consent("email", A, world.clock.seconds + 60)
    world.clock.sleep(HOUR)
    again = await pulled(world, transport=vendor)
    assert (first.counts["facts"], again.counts["facts"], again.counts["evidence"]) == (1, 0, 1)
    assert not await suppressed(world, "email", A)


# A soft bounce counts once, whichever came first.


async def test_a_soft_bounce_whose_log_came_first_counts_once_from_the_next_pull_on(world: World) -> None:
    await act(world, "soft_bounce", A)
    at = world.clock.seconds
    world.clock.sleep(HOUR)
    await pulled(world)
    await bounced(world, at=at + 200)
    fed = (await world.query("select count(*) from changes"))[0][0]
    world.clock.sleep(HOUR)
    done = await pulled(world)
    assert (await times(world), done.counts["evidence"]) == ([at + 200], 1)
    assert [row[3] for row in await facts(world)] == ["kahuna_webhook"]
    assert (await world.query("select count(*) from changes"))[0][0] == fed + 1
    [row] = await world.query("select accepted, duplicates, held from batches where origin = 'kahuna_logs'")
    assert tuple(row) == (0, 1, [0])
    [deed] = await world.query("select address, detail from audit where action = 'bounce.taken_back'")
    assert (deed.address, deed.detail["occurred_at"]) == (A, at)
    assert await world.query("select 1 from log_bounces") == []
    assert await disagreements(world) == []
    assert (await replayed(world))["new"] == 0
    assert await times(world) == [at + 200]


async def test_what_decides_the_cause_is_what_is_left(world: World) -> None:
    await act(world, "soft_bounce", A)
    world.clock.sleep(HOUR)
    await pulled(world)
    await bounced(world, at=world.clock.seconds - HOUR - 60)
    await bounces.settle(world.database, "default", world.rules, world.clock)
    [row] = await world.query("select stop_at, origin, held_stop_at from suppressions")
    assert tuple(row) == (world.clock.seconds - HOUR - 60, "kahuna_webhook", world.clock.seconds - HOUR)


async def test_what_a_callback_said_in_the_very_same_second_is_an_event_of_its_own(world: World) -> None:
    await act(world, "soft_bounce", A)
    at = world.clock.seconds
    world.clock.sleep(HOUR)
    await pulled(world)
    await bounced(world, at=at)
    await bounced(world, at=at + 10)
    assert await bounces.settle(world.database, "default", world.rules, world.clock) == 0
    assert await times(world) == [at, at + 10]
    assert await disagreements(world) == []


async def test_a_month_that_is_gone_has_said_it(world: World) -> None:
    await act(world, "soft_bounce", A)
    at = world.clock.seconds
    world.clock.sleep(HOUR)
    await pulled(world)
    await world.execute("delete from batches")
    await bounced(world, at=at + 10)
    assert await bounces.settle(world.database, "default", world.rules, world.clock) == 0
    assert await times(world) == [at, at + 10]


async def test_a_soft_bounce_that_no_verdict_counts_is_not_watched(world: World) -> None:
    await act(world, "soft_bounce", A)
    world.clock.sleep(HOUR)
    await pulled(world)
    assert len(await world.query("select 1 from log_bounces")) == 1
    world.clock.sleep(45 * DAY)
    await bounces.settle(world.database, "default", world.rules, world.clock)
    assert await world.query("select 1 from log_bounces") == []


async def test_two_soft_bounces_that_no_callback_told_are_two(world: World) -> None:
    at = world.clock.seconds
    for _ in range(2):
        await act(world, "soft_bounce", A)
        world.clock.sleep(100)
    world.clock.sleep(HOUR)
    assert [(await pulled(world)).counts["facts"] for _ in range(2)] == [2, 0]
    assert await bounces.settle(world.database, "default", world.rules, world.clock) == 0
    assert await times(world) == [at, at + 100]


class Event:
    """Something that happened to an address: a log has it, and a callback tells of it early, late or never."""

    def __init__(self, chance: random.Random, address: str, at: int) -> None:
        self.address = address
        self.at = at
        self.reason = chance.choice(["soft_bounce", "soft_bounce", "soft_bounce", "hard_bounce", "unsub"])
        self.claimed = at + chance.choice([0, 0, 1, -1, 300, -300, chance.randint(-300, 300)])
        late = chance.choice([0, 0, 60, HOUR, 6 * HOUR, 3 * DAY])
        self.told_at = None if chance.random() < 0.25 else max(at, self.claimed) + late


@pytest.mark.parametrize("seed", range(3))
async def test_every_event_counts_once_in_any_order(world: World, seed: int) -> None:
    chance = random.Random(seed)
    begin = world.clock.seconds
    events = [
        Event(chance, f"{number}@example.com", begin + chance.randint(1, 600) + turn * chance.choice([1300, DAY]))
        for number in range(50)
        for turn in range(chance.randint(1, 4))
    ]
    due: list[tuple[int, int, Any]] = [(event.at, 0, event) for event in events]
    due += [(event.told_at, 1, event) for event in events if event.told_at is not None]
    due += [(begin + chance.randint(1, 8 * DAY), 2, None) for _ in range(6)] + [(begin + 9 * DAY, 2, None)] * 2
    for at, kind, event in sorted(due, key=lambda one: one[:2]):
        world.clock.now += timedelta(seconds=at - world.clock.seconds)
        if kind == 0:
            await act(world, event.reason, event.address)
        elif kind == 1:
            said = {"reason": event.reason, "email": event.address, "timestamp": event.claimed}
            await world.callback("email", [said])
        else:
            await pulled(world, since=None if chance.random() < 0.7 else TODAY)
    await pulled(world)
    wanted = {event.address: 0 for event in events}
    for event in events:
        wanted[event.address] += event.reason == "soft_bounce"
    assert {address: len(await times(world, address)) for address in wanted} == wanted
    assert {(row[0], row[1]) for row in await facts(world)} == {(e.address, REASONS[e.reason]) for e in events}
    await folded_alike(world, set(wanted))
    assert await disagreements(world) == []


REASONS = {"soft_bounce": "soft_bounce", "hard_bounce": "hard_bounce", "unsub": "unsubscribe"}


async def folded_alike(world: World, addresses: set[str]) -> None:
    """The list is what its facts add up to, also where some were taken back."""
    async with world.database.look() as connection:
        for address in addresses:
            told = [row.fact for row in await suppressions.facts_of(connection, "default", "email", address)]
            stored = await suppressions.causes_of(connection, "default", "email", address)
            assert {row.cause.reason: row.cause for row in stored} == fold(told, Policy())


async def test_a_callback_that_is_taken_back_meanwhile_leaves_the_word_of_the_log(world: World) -> None:
    await act(world, "soft_bounce", A)
    at = world.clock.seconds
    world.clock.sleep(HOUR)
    await pulled(world)
    await bounced(world, at=at + 5)
    async with world.database.begin() as connection:
        await suppressions.lock(connection, "default", "email", [A])
        await connection.execute(text("delete from facts where origin = 'kahuna_webhook'"))
        settling = asyncio.create_task(bounces.settle(world.database, "default", world.rules, world.clock))
        waits = "datname = current_database() and wait_event_type = 'Lock'"
        for _ in range(500):
            if await world.query(f"select 1 from pg_stat_activity where {waits}"):
                break
            await asyncio.sleep(0.01)
    assert await settling == 0
    assert [fact[3] for fact in await facts(world)] == ["kahuna_logs"]
    [watched] = await world.query("select occurred_at from log_bounces")
    assert watched.occurred_at == at


# Walks.


async def records_of(world: World, walk: str) -> int:
    rows = await world.query(f"select counts from log_walks where walk = '{walk}' and api = 'email'")
    return int(rows[0].counts.get("records", 0)) if rows else 0


@pytest.mark.parametrize("after", [0, 1, 2, 3])
async def test_a_pull_that_was_cut_short_is_gone_on_with(world: World, after: int) -> None:
    await due(world)
    world.clock.sleep(HOUR)
    for number in range(10):
        await act(world, "unsub", f"{number}@example.com")
        world.clock.sleep(60)
    broken = await pulled(world, since=None, transport=Failing(world.simulator, after), page_size=3)
    assert set(broken.failed) == {"email", "user_merge", "in_app", "push"}
    assert await records_of(world, "pull") == len(await facts(world)) == 3 * after
    whole = await pulled(world, since=None, page_size=3)
    assert (whole.failed, await records_of(world, "pull"), len(await facts(world))) == ({}, 10, 10)
    rows = await world.query("select error, reached from log_walks")
    assert {tuple(row) for row in rows} == {(None, world.clock())}


async def test_a_page_that_could_not_be_stored_is_read_again(world: World) -> None:
    await due(world)
    world.clock.sleep(HOUR)
    await act(world, "unsub", A, "b@example.com")
    world.clock.sleep(60)
    await world.execute("alter table batches rename to batches_away")
    with pytest.raises(Exception, match="migrate"):
        await pulled(world, since=None, page_size=1)
    assert await facts(world) == []
    await world.execute("alter table batches_away rename to batches")
    await pulled(world, since=None, page_size=1)
    assert (len(await facts(world)), await records_of(world, "pull")) == (2, 2)


async def test_a_cursor_that_kahuna_forgot_costs_a_second_reading_and_no_more(world: World) -> None:
    for number in range(7):
        await act(world, "unsub", f"{number}@example.com")
    world.clock.sleep(HOUR)
    await due(world)
    world.clock.sleep(HOUR)
    for number in range(7, 14):
        await act(world, "unsub", f"{number}@example.com")
    world.clock.sleep(HOUR)
    await pulled(world, since=None, transport=Failing(world.simulator, 2), page_size=3)
    await world.fault(api="email_logs", expire_cursor=True, times=1)
    with capture_logs() as logs:
        done = await pulled(world, since=None, page_size=3)
    assert [line["api"] for line in logs if line["event"] == "logs.cursor_expired"] == ["email"]
    assert (done.failed, len(await facts(world))) == ({}, 7)


@pytest.mark.parametrize("status", [400, 404, 410, 422])
async def test_a_cursor_is_forgotten_in_many_words(world: World, status: int) -> None:
    class Forgetful(Failing):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            if b'"cursor"' in request.content:
                return httpx.Response(status)
            return await super().handle_async_request(request)

    await due(world)
    world.clock.sleep(HOUR)
    await act(world, "unsub", *(f"{number}@example.com" for number in range(7)))
    world.clock.sleep(HOUR)
    await pulled(world, since=None, transport=Failing(world.simulator, 1), page_size=3)
    done = await pulled(world, since=None, transport=Forgetful(world.simulator, 100))
    assert (done.failed, len(await facts(world))) == ({}, 7)


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("ahead", [5, 20])
async def test_while_our_clock_was_ahead_nothing_was_missed(world: World, before: bool, ahead: int) -> None:
    await due(world)
    world.clock.sleep(HOUR)
    if before:
        await act(world, "unsub", A)
    world.clock.sleep(ahead * HOUR)
    assert await due(world)
    world.clock.sleep(-ahead * HOUR)
    await act(world, "unsub", "b@example.com")
    world.clock.sleep((ahead + 1) * HOUR)
    assert await due(world)
    assert [row[0] for row in await facts(world)] == [A, "b@example.com"][not before :]


async def test_one_log_that_kahuna_refuses_keeps_nobody_from_the_others(world: World) -> None:
    await act(world, "unsub", A)
    world.clock.sleep(HOUR)
    await world.fault(api="push_logs", status=409)
    with capture_logs() as logs:
        done = await pulled(world)
    assert (done.counts["facts"], set(done.failed)) == (1, {"push"})
    assert "permission" in done.failed["push"]
    [line] = [line for line in logs if line["event"] == "logs.pull_failed"]
    assert (line["api"], line["because"]) == ("push", "not-permitted")
    assert A not in str(logs)


async def test_the_first_pull_marks_where_it_begins_and_the_next_is_due_later(world: World) -> None:
    await act(world, "unsub", A)
    world.clock.sleep(HOUR)
    assert await due(world)
    assert not await due(world)
    await act(world, "unsub", "b@example.com")
    world.clock.sleep(HOUR)
    assert await due(world)
    assert [row[0] for row in await facts(world)] == ["b@example.com"]


async def test_a_pull_stays_behind_the_present(world: World) -> None:
    await due(world)
    world.clock.sleep(HOUR)
    await act(world, "unsub", A)
    world.clock.sleep(60)
    assert await due(world)
    assert await facts(world) == []
    world.clock.sleep(HOUR)
    assert await due(world)
    assert len(await facts(world)) == 1


async def test_one_process_at_a_time_has_a_walk(world: World) -> None:
    now = world.clock()
    async with world.database.begin() as connection:
        assert await leases.claim(connection, "logs/default/pull", now, now + timedelta(minutes=5))
    assert not await due(world)
    world.clock.sleep(HOUR)
    assert await due(world)


async def test_who_was_too_slow_writes_nothing(world: World) -> None:
    await act(world, "unsub", A)
    world.clock.sleep(HOUR)

    class Slow(Failing):
        async def handle_async_request(self, request: Any) -> Any:
            await world.execute("update leases set fence = fence + 1")
            return await super().handle_async_request(request)

    with pytest.raises(TakenOver):
        await pulled(world, transport=Slow(world.simulator, 100))
    assert await facts(world) == []


async def test_a_run_has_all_its_batches_told_also_those_of_before_a_crash(world: World) -> None:
    run_id = uuid.uuid4()
    for number in range(6):
        await act(world, "unsub", f"{number}@example.com")
    world.clock.sleep(HOUR)
    until = world.clock()
    cut = await pulled(world, transport=Failing(world.simulator, 1), page_size=3, run_id=run_id)
    whole = await pulled(world, page_size=3, run_id=run_id, until=until)
    assert (len(cut.batches), len(whole.batches)) == (1, 2)
    assert {row.id for row in await world.query("select id from batches")} == set(whole.batches)
    assert await world.query("select 1 from log_walks") == []


# The backfill.


async def backfilled(world: World) -> Any:
    async with world.database.look() as connection:
        return await pulls.backfilled(connection, "default")


async def test_a_backfill_reads_what_was_before_the_first_pull_and_is_done(world: World) -> None:
    await act(world, "unsub", A)
    world.clock.sleep(2 * DAY)
    await due(world)
    await act(world, "unsub", "b@example.com")
    world.clock.sleep(DAY)
    assert await backfilled(world) is None
    steps: list[pull.Step] = []
    done = await filled(world, since=TODAY - timedelta(days=3), progress=steps.append)
    assert (done.counts["facts"], [row[0] for row in await facts(world)]) == (1, [A])
    assert await backfilled(world) == world.clock()
    assert {step.api for step in steps} == set(pull.APIS)
    assert all(step.begins_at <= step.reached <= step.ends_at for step in steps)
    assert (await filled(world)).counts["records"] == 0
    await due(world)
    assert [row[0] for row in await facts(world)] == [A, "b@example.com"]


async def test_a_backfill_that_was_cut_short_is_gone_on_with_and_may_reach_further_back(world: World) -> None:
    for day in range(4):
        await act(world, "unsub", f"{day}@example.com")
        world.clock.sleep(DAY)

    class Enough(Exception):
        pass

    def stop(_: pull.Step) -> None:
        raise Enough

    with pytest.raises(Enough):
        await filled(world, since=TODAY + timedelta(days=1), progress=stop)
    assert await backfilled(world) is None
    done = await filled(world, since=TODAY)
    assert (done.failed, [row[0][0] for row in await facts(world)]) == ({}, ["0", "1", "2", "3"])
    assert await backfilled(world) is not None
    [row] = await world.query("select begins_at from log_walks where walk = 'backfill' and api = 'email'")
    assert row.begins_at == TODAY


async def test_users_that_became_one_are_noted_on_the_addresses_that_they_had(world: World) -> None:
    old = "old@example.com"
    async with client_of(world, world.simulator) as client:
        for credentials in ({"email": A, "username": "a"}, {"email": old, "fbid": "7"}, {"email": A, "fbid": "7"}):
            await tell(client, credentials)
    world.clock.sleep(HOUR)
    done = await pulled(world)
    again = await pulled(world)
    rows = await world.query("select address, side, occurred_at, record from merges order by 1")
    assert [(row.address, row.side) for row in rows] == [(A, "common"), ("old@example.com", "newer")]
    assert (done.counts["merges"], again.counts["merges"]) == (2, 0)
    assert rows[0].occurred_at == world.clock.seconds - HOUR


async def tell(client: KahunaClient, credentials: dict[str, str]) -> None:
    """A device whose user has these credentials."""
    await client.server(ServerRequest(dev_id=str(credentials), event="start", credentials=credentials))
