"""A list from elsewhere becomes facts once, however it is cut, repeated or interrupted, and never clears anything."""

import asyncio
import gzip
import random
import secrets
import uuid
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy.exc import IntegrityError

from service.domain.addresses import normalise
from service.domain.facts import Fact
from service.domain.suppression import fold
from service.errors import StorageUnavailable, Unprocessable
from service.flows import replay, upkeep
from service.flows.imports import ERRORS_SHOWN, Import, Order, Tally
from service.flows.upkeep import Retention
from service.store import imports as store
from service.store import outbox, suppressions
from service.store.archive import Asked
from service.store.suppressions import Entry, Provenance
from tests.flows.speaking import World
from tests.flows.test_ingest import unsub
from tests.flows.test_rebuild import disagreements, retire

AT = 1_700_000_000
Row = tuple[str, str, int | None]


class CutOff(Exception):
    """The sender went away."""


async def parts(body: bytes, size: int = 1000, until: int | None = None) -> AsyncIterator[bytes]:
    """A body piece by piece; with `until`, its sender goes away after so many bytes."""
    for start in range(0, len(body) if until is None else until, size):
        yield body[start : start + size]
    if until is not None:
        raise CutOff


def importing(world: World, channel: Any = "email", **said: Any) -> Import:
    """An import that is ready to run."""
    at_once = said.pop("at_once", 5000)
    order = Order("default", channel, "tester", secrets.randbits(50), "list.csv")
    return Import(world.database, order._replace(**said), world.rules, world.clock, at_once)


async def imported(world: World, body: bytes | str, channel: Any = "email", **said: Any) -> Tally:
    """A list, taken in whole."""
    raw = body.encode() if isinstance(body, str) else body
    return await importing(world, channel, **said).run(parts(raw))


def csv(rows: Sequence[Row]) -> bytes:
    """A list of addresses, reasons and times."""
    lines = (f"{address},{reason},{'' if at is None else at}" for address, reason, at in rows)
    return "\n".join(["address,reason,occurred_at", *lines]).encode()


def figures(tally: Tally) -> tuple[int, int, int, int]:
    return tally.accepted, tally.duplicates, tally.rejected, tally.skipped


async def stored(world: World) -> list[Any]:
    """Every fact, as it is."""
    return await world.query("select * from facts order by address, reason, action, occurred_at, source")


async def causes(world: World) -> list[Any]:
    names = "address, channel, reason, stop_at, clear_at, bounces"
    return await world.query(f"select {names} from suppressions where stop_at is not null order by address, reason")


BOXES = ["a@example.com", "A@Example.com ", "b@example.com", "c@exämple.com", "no address", "d@example.com"]
REASONS = ["unsubscribe", "hard_bounce", "soft_bounce", "Spam", "manual", "sneezed"]

rows_of_a_list = st.lists(
    st.tuples(st.sampled_from(BOXES), st.sampled_from(REASONS), st.sampled_from([AT, AT + 1, AT + 86_400, None])),
    min_size=1,
    max_size=25,
)


def model(world: World, rows: Sequence[Row], begun_at: int) -> set[Fact]:
    """The facts that a list states."""
    return {
        Fact(
            "default", "email", normalise("email", box), reason.replace("Spam", "complaint"), "suppress", when, "local"
        )
        for box, reason, at in rows
        if "@" in box and reason != "sneezed" and (when := begun_at if at is None else at)
    }


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=rows_of_a_list, seed=st.integers(0, 2**32))
async def test_any_list_however_it_is_cut_and_repeated_is_what_the_model_says(
    world: World, rows: list[Row], seed: int
) -> None:
    for table in ("facts", "suppressions", "corrections", "changes", "batches", "digests"):
        await world.execute(f"truncate {table}")
    chance = random.Random(seed)
    begun_at = world.clock.seconds
    looked = await imported(world, csv(rows), dry_run=True, at_once=chance.randint(1, 10))
    assert await stored(world) == []
    first = await imported(world, csv(rows), at_once=chance.randint(1, 10))
    facts = model(world, rows, begun_at)
    assert first.accepted == len(facts)
    assert figures(looked) == figures(first)
    assert sum(figures(first)) == first.lines == len(rows)
    wanted = {(fact.address, fact.reason, fact.occurred_at) for fact in facts}
    before = await stored(world)
    assert {(row.address, row.reason, row.occurred_at) for row in before} == wanted
    for address in {fact.address for fact in facts}:
        found = {r.reason: (r.stop_at, tuple(r.bounces or ())) for r in await causes(world) if r.address == address}
        merged = fold({fact for fact in facts if fact.address == address}, world.policy)
        assert found == {reason: (cause.stop_at, cause.bounces) for reason, cause in merged.items()}
    changes = await world.query("select count(*) from changes")
    for _ in range(2):
        world.clock.sleep(100)
        begin = chance.randrange(len(rows))
        again = await imported(world, csv(rows[begin:]), at_once=chance.randint(1, 10))
        assert (again.accepted, again.rejected) == (0, sum("@" not in r[0] or r[1] == "sneezed" for r in rows[begin:]))
        assert (await imported(world, csv(rows[begin:]), dry_run=True)).accepted == 0
    assert await stored(world) == before
    assert await world.query("select count(*) from changes") == changes
    assert await disagreements(world) == []


async def test_a_list_that_is_cut_off_leaves_whole_chunks_and_goes_on_from_there(world: World) -> None:
    rows: list[Row] = [(f"a{n}@example.com", "manual", None) for n in range(100)]
    body = csv(rows)
    one = importing(world, at_once=10)
    with pytest.raises(CutOff):
        await one.run(parts(body, 50, len(body) // 2))
    in_now = one.tally.accepted
    assert 20 <= in_now < 60
    assert in_now % 10 == 0
    assert len(await stored(world)) == in_now
    assert one.tally.reached == in_now + 1
    world.clock.sleep(60)
    again = await imported(world, body, at_once=10)
    assert figures(again) == (100 - in_now, in_now, 0, 0)
    acts = await world.query("select action, detail->>'accepted' as new from audit order by at, action")
    assert [tuple(row) for row in acts] == [
        ("import.begun", None),
        ("import.cut_off", str(in_now)),
        ("import.begun", None),
        ("import.finished", str(100 - in_now)),
    ]
    assert await disagreements(world) == []


async def test_where_each_line_came_from_is_kept(world: World) -> None:
    one = importing(world, file_name="bounces.csv", reason="hard_bounce", at_once=2)
    await one.run(parts(b"email\n\na@example.com\nB@Example.com\nc@example.com\nnobody\n"))
    rows = await world.query(
        "select f.*, b.headers, b.body_bytes, b.received_at from facts f join batches b on b.id = f.batch_id order by 1"
    )
    assert [(row.address, row.address_received, row.source, row.origin, row.entry_index) for row in rows] == [
        ("a@example.com", None, "local", "import", 0),
        ("b@example.com", "B@Example.com", "local", "import", 1),
        ("c@example.com", None, "local", "import", 0),
    ]
    shared = {"import-id": str(one.id), "actor": "tester", "file-name": "bounces.csv"}
    assert [row.headers for row in rows] == [shared | {"lines": lines} for lines in ("3-4", "3-4", "5-6")]
    # Their ids begin with the moment of the import, in the order of the file.
    assert [uuid.UUID(str(row.batch_id)).int >> 80 for row in rows] == [one.id.int >> 80] * 3
    assert rows[0].batch_id < rows[2].batch_id
    assert one.tally.errors == [(6, "not-an-email-address")]
    assert await world.query("select 1 from quarantine") == []


async def test_it_never_clears_or_downgrades(world: World) -> None:
    now = world.clock.seconds
    await world.stop("email", "a@example.com", "unsubscribe", now - 10)
    await world.callback("email", [unsub("b@example.com", timestamp=now - 5)])
    await world.stop("email", "c@example.com", "complaint", now - 50)
    await world.consent("email", "c@example.com", now - 20)
    before = await causes(world)
    rows: list[Row] = [(f"{box}@example.com", "unsubscribe", now - 100) for box in "ab"]
    await imported(world, csv([*rows, ("c@example.com", "complaint", now - 30)]))
    assert [(r.address, r.reason, r.stop_at, r.clear_at) for r in await causes(world) if r.stop_at != now - 30] == [
        (r.address, r.reason, r.stop_at, r.clear_at) for r in before if r.address != "c@example.com"
    ]
    # Older than the consent: it is a fact, and the consent stands.
    assert [(r.stop_at, r.clear_at) for r in await causes(world) if r.address == "c@example.com"] == [
        (now - 30, now - 20)
    ]
    ours = (
        "namespace,channel,address,reason,active,occurred_at,until,origin,recorded_at,address_received\n"
        "default,email,a@example.com,unsubscribe,false,2026-03-01T11:59:59Z,,api,2026-03-01T11:59:59Z,\n"
    )
    before = await stored(world)
    assert figures(await imported(world, ours)) == (0, 0, 0, 1)
    assert await stored(world) == before


async def test_a_line_without_a_time_is_news_once(world: World) -> None:
    """Whatever is imported again does not stop anew whoever has consented since; a list that says as of when does."""
    file = b"a@example.com\nb@example.com\n"
    begun_at = world.clock.seconds
    await imported(world, b"address,occurred_at\na@example.com,1600000000\n", reason="manual")
    assert (await imported(world, file, reason="manual")).accepted == 2
    assert {row.stop_at for row in await causes(world)} == {begun_at}
    world.clock.sleep(3600)
    await world.consent("email", "a@example.com")
    cleared = await causes(world)
    world.clock.sleep(3600)
    for again in (file, b"c@example.com\n" + file, gzip.compress(b"email\n" + file)):
        await imported(world, again, reason="manual")
    assert [row for row in await causes(world) if row.address != "c@example.com"] == cleared
    assert await disagreements(world) == []
    # Another reason is another statement, and a stop with a time is what it says.
    assert (await imported(world, file, reason="complaint")).accepted == 2
    assert (await imported(world, file, reason="manual", as_of=world.clock.seconds)).accepted == 2
    assert (await imported(world, file, reason="manual", as_of=world.clock.seconds)).accepted == 0
    [row] = [r for r in await causes(world) if (r.address, r.reason) == ("a@example.com", "manual")]
    assert row.stop_at > row.clear_at


async def test_a_time_that_cannot_stand_is_that_of_receipt(world: World) -> None:
    now = world.clock.seconds
    times = [now + 300, now + 301, 0, -5, AT * 1000]
    tally = await imported(world, csv([(f"a{n}@example.com", "manual", at) for n, at in enumerate(times)]))
    assert [row.occurred_at for row in await stored(world)] == [now + 300, now, now, now, AT]
    assert tally.untimed == 3
    for bad in (0, now + 301):
        with pytest.raises(Unprocessable):
            importing(world, as_of=bad)


async def test_two_imports_of_one_list_at_a_time_are_one(world: World) -> None:
    """Whoever is later sees what the other has said, though it began at another second."""
    rows: list[Row] = [(f"a{n}@example.com", "manual", None) for n in range(60)]
    orders = [rows, random.Random(1).sample(rows, len(rows)), rows]
    runs = []
    for lines, at_once in zip(orders, (7, 11, 7), strict=True):
        runs.append(importing(world, at_once=at_once).run(parts(csv(lines))))
        world.clock.sleep(1)
    tallies = await asyncio.gather(*runs)
    assert sum(tally.accepted for tally in tallies) == 60
    assert len(await stored(world)) == 60
    assert len(await world.corrections("pending")) == 60
    assert await disagreements(world) == []


async def test_what_it_stops_is_owed_to_kahuna(world: World) -> None:
    now = world.clock.seconds
    await world.callback("email", [unsub("known@example.com", timestamp=now - 5)])
    rows: list[Row] = [("New@Example.com", "manual", now - 9), ("known@example.com", "unsubscribe", now - 9)]
    await imported(world, csv(rows))
    [row] = await world.corrections()
    assert (row.address, row.address_received, row.slot, row.occurred_at, row.state) == (
        "new@example.com", "New@Example.com", "unsubscribe", now - 9, "pending",
    )  # fmt: skip
    assert await world.push()
    assert await world.held("email", "New@Example.com") == {"unsub": ("stop", now - 9)}
    await imported(world, csv(rows))
    assert await world.corrections("pending") == []


_SAID = st.tuples(
    st.sampled_from(["a", "b"]),
    st.sampled_from(["unsubscribe", "manual", "hard_bounce", "soft_bounce"]),
    st.sampled_from(["suppress", "clear"]),
    st.integers(1, 6),
    st.sampled_from(["local", "local", "kahuna"]),
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    before=st.lists(_SAID, max_size=4), new=st.lists(_SAID, min_size=1, max_size=5), lifetime=st.sampled_from([None, 3])
)
@example(before=[], new=[("a", "hard_bounce", "suppress", 5, "local")], lifetime=3)
@example(
    before=[("a", "manual", "suppress", 2, "local")], new=[("a", "unsubscribe", "suppress", 5, "local")], lifetime=None
)
async def test_the_short_way_to_what_is_owed_leads_where_the_long_one_does(
    world: World, before: list[Any], new: list[Any], lifetime: int | None
) -> None:
    policy = world.policy._replace(hard_bounce_lifetime=lifetime and lifetime * 86_400)
    found = []
    for short in (True, False):
        await world.execute("truncate facts, suppressions, corrections")
        async with world.database.begin() as connection:
            scope = outbox.Scope("default", "email", world.clock(), policy)
            for said, through in ((before, False), (new, short)):
                for source in ("kahuna", "local"):
                    entries = [
                        Entry(f"{who}@x.org", f"{who.upper()}@x.org", reason, action, scope.at - at * 86_400, n)
                        for n, (who, reason, action, at, by) in enumerate(said)
                        if by == source
                    ]
                    provenance = Provenance("default", "email", source, "api", world.clock(), (uuid.uuid4(),))
                    await suppressions.apply(connection, entries, provenance, policy)
                others = {f"{who}@x.org" for who, *_ in said}
                if through and others:
                    others = set(await store.owe_first_stops(connection, scope, others))
                await outbox.owe(connection, scope, others)
        names = "address, slot, address_received, action, occurred_at, state"
        found.append(await world.query(f"select {names} from corrections order by 1, 2, 4, 5"))
    assert found[0] == found[1]


async def test_chunks_are_replayed_like_any_batch(world: World) -> None:
    """What was not understood and is by now comes in; what was known and what was lost, as it must."""
    await imported(world, b"a@example.com\n", reason="manual")
    world.clock.sleep(60)
    tally = await imported(world, b"address,reason\na@example.com,manual\nb@example.com,grumpy\nc@example.com,spam\n")
    assert figures(tally) == (1, 1, 1, 0)
    [batch] = await world.query("select * from batches where rejected = 1")
    assert (batch.accepted, batch.duplicates, batch.held, batch.errors) == (
        1, 1, [0], [{"index": 1, "error": "unknown-reason"}],
    )  # fmt: skip
    before = await stored(world)
    done = await replay.replay_one(world.database, batch.id, world.rules, world.clock, "tester", None)
    assert not done.changed
    assert await stored(world) == before
    await world.execute("delete from facts where address = 'c@example.com'")
    assert await disagreements(world) == [("missing_fact", "c@example.com", "complaint")]
    done = await replay.replay_one(world.database, batch.id, world.rules, world.clock, "tester", None)
    assert done.new == 1
    assert [tuple(row)[:7] for row in await stored(world)] == [tuple(row)[:7] for row in before]
    assert await disagreements(world) == []


async def test_what_kahuna_said_and_our_export_repeats_is_no_fact_of_ours_at_a_replay_either(world: World) -> None:
    await world.callback("email", [unsub("a@example.com", AT)])
    row = "default,email,a@example.com,unsubscribe,true,2023-11-14T22:13:20Z,kahuna_webhook"
    tally = await imported(world, f"namespace,channel,address,reason,active,occurred_at,origin\n{row}\n")
    assert figures(tally) == (0, 1, 0, 0)
    before = await stored(world)
    [batch] = await world.query("select id from batches where origin = 'import'")
    done = await replay.replay_one(world.database, batch.id, world.rules, world.clock, "tester", None)
    assert not done.changed
    assert await stored(world) == before
    assert await disagreements(world) == []


async def test_what_retention_leaves_of_an_import_still_verifies(world: World) -> None:
    await upkeep.run_due(world.database, world.rules, Retention(), world.clock)
    rows: list[Row] = [
        ("a@example.com", "manual", None),
        ("b@example.com", "soft_bounce", AT),
        ("c@example.com", "x", 1),
    ]
    await imported(world, csv(rows))
    world.clock.sleep(5)
    await imported(world, csv(rows[::-1]))
    await retire(world)
    assert await world.query("select 1 from batches") == []
    assert await disagreements(world) == []
    again = await imported(world, csv(rows))
    assert figures(again) == (0, 2, 1, 0)
    assert figures(await imported(world, csv(rows[:1]))) == (0, 1, 0, 0)
    assert await disagreements(world) == []


async def test_a_list_that_breaks_tells_how_far_it_came(world: World) -> None:
    whole = gzip.compress(csv([(f"a{n}@example.com", "manual", AT) for n in range(4000)]))
    with pytest.raises(Unprocessable) as refused:
        await importing(world, at_once=100).run(parts(whole[:-100], 500))
    reached = len(await stored(world)) + 1
    assert reached > 1
    assert refused.value.reason == "broken-list"
    assert f"Lines up to {reached} are in" in str(refused.value)


async def test_nothing_is_begun_for_what_is_no_list(world: World) -> None:
    for body in (b"", b"name\nAnn,x\n", b"a@example.com\n"):
        with pytest.raises(Unprocessable):
            await imported(world, body)
    with pytest.raises(Unprocessable):
        importing(world, "sms", reason="complaint")
    assert await world.query("select 1 from audit") == []


async def test_errors_are_counted_fully_and_shown_in_part(world: World) -> None:
    tally = await imported(world, b"address\n" + b"nobody\n" * 250, reason="manual", at_once=40)
    assert (tally.rejected, len(tally.errors)) == (250, ERRORS_SHOWN)
    assert [line for line, _ in tally.errors] == list(range(2, 102))


async def test_a_fault_of_ours_ends_it_without_a_gap(world: World) -> None:
    """A chunk behind the one that failed may be in, but is not told to be: the same file mends it."""
    file = csv([(f"a{n}@example.com", "manual", AT) for n in range(50)])
    one = importing(world, at_once=10)
    await world.execute("alter table facts add constraint of_ours check (address <> 'a3@example.com')")
    with pytest.raises(IntegrityError):
        await one.run(parts(file))
    assert (one.tally.reached, one.tally.lines) == (0, 0)
    await world.execute("alter table facts drop constraint of_ours")
    before = len(await stored(world))
    assert before in (0, 10)
    assert figures(await imported(world, file, at_once=10)) == (50 - before, before, 0, 0)
    await world.execute("alter table digests rename to digests_away")
    with pytest.raises(StorageUnavailable):
        await imported(world, file)
    await world.execute("alter table digests_away rename to digests")


async def test_numbers_are_stopped_alike(world: World) -> None:
    tally = await imported(world, b"phone,reason\n+1 555 010 0001,STOP\n12,STOP\n", "sms")
    assert (figures(tally), tally.reasons) == ((1, 0, 1, 0), {"do_not_call": 1})
    [row] = await stored(world)
    assert (row.address, row.reason) == ("15550100001", "do_not_call")
    assert await world.push("sms")
    assert list((await world.held("sms", "15550100001")).values()) == [("stop", world.clock.seconds)]


async def test_a_consent_after_the_list_was_begun_wins(world: World) -> None:
    """However long it takes: what it says without a time was said when it began."""

    async def slow() -> AsyncIterator[bytes]:
        yield b"a@example.com\n"
        world.clock.now += timedelta(minutes=5)
        await world.consent("email", "a@example.com")
        world.clock.now += timedelta(minutes=5)
        yield b"b@example.com\n"

    await importing(world, reason="manual").run(slow())
    [row] = [row for row in await causes(world) if (row.address, row.reason) == ("a@example.com", "manual")]
    assert row.stop_at < row.clear_at


async def test_a_replay_does_not_take_our_stops_for_kahuna_s_nor_kahuna_s_for_ours(world: World) -> None:
    """In one go with an import, the stops of callbacks would be of its source too: ours, and owed to Kahuna."""
    at = world.clock.seconds - 100
    await imported(world, f"phone,time\n15550100041,{at}\n", "sms", reason="do_not_call")
    world.clock.sleep(1)
    await world.callback("sms", [{"number": "15550100042", "timestamp": at}])
    before = await world.query("select * from facts order by address")
    world.clock.sleep(1)
    steps = replay.replay_many(world.database, Asked("default"), world.rules, world.clock, "tester")
    assert sum([step.counts["new"] async for step in steps]) == 0
    assert await world.query("select * from facts order by address") == before
