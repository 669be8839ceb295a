"""The corrections desk at the console: what is owed, what became of it, and what a person decides of it."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from service.settings import Settings
from service.store import desk, quarantine
from service.store.desk import Wanted
from tests.console.browsing import Person, browsing, signed_in
from tests.console.pressing import Read, press, walk
from tests.web.harness import address_path

EVIL = "<img src=x onerror=alert(1)>"
PATH = "/console/corrections"


@pytest.fixture
async def person(settings: Settings) -> AsyncIterator[Person]:
    async with signed_in(settings) as person:
        yield person


async def stopped(person: Person, *addresses: str) -> list[int]:
    """The ids of the corrections of new stops."""
    caller = await person.site.token("write")
    for address in addresses:
        put = address_path("email", address)
        await person.site.client.put(put, headers=caller, json={"reason": "unsubscribe"})
    return [row[0] for row in await person.site.query("select id from corrections order by id")]


async def given_up(person: Person, state: str = "dead", reason: str = "bad-request") -> None:
    await person.site.execute(
        f"update corrections set state = '{state}', reason = '{reason}', attempts = 1, settled_at = created_at "
        "where state = 'pending'"
    )


async def states(person: Person) -> dict[int, str]:
    return {row[0]: row[1] for row in await person.site.query("select id, state from corrections order by id")}


async def audited(person: Person, action: str) -> list[Any]:
    return await person.site.query(f"select actor, detail from audit where action = '{action}' order by address")


async def chosen(person: Person, page: httpx.Response, *ids: int) -> httpx.Response:
    """The page that tells how many the ticked ones are."""
    return await press(person, page, "Decide about those ticked", **{f"id-{one}": "on" for one in ids})


async def test_corrections_are_shown_by_state_with_their_numbers(person: Person) -> None:
    await stopped(person, "ann@example.com", "bob@example.com")
    await given_up(person)
    await stopped(person, "cat@example.com")
    read = Read(await person.get(PATH))
    assert {"pending 1", "sending 0", "dead 2", "rejected 0", "unsupported 0", "sent"} <= set(read.links)
    assert "cat@example.com" in read.text
    assert "ann@example.com" not in read.text
    dead = Read(await person.get(read.links["dead 2"]))
    assert "ann@example.com" in dead.text
    assert "2 match" in dead.text
    narrowed = Read(await person.get(f"{PATH}?state=dead&reason=too-large&channel=&since="))
    assert "No dead correction is like that" in narrowed.text
    timeline = await press(person, await person.get(read.links["dead 2"]), "ann@example.com")
    assert "May not be messaged" in Read(timeline).text


async def test_corrections_are_walked_through_without_a_gap(person: Person) -> None:
    ids = await stopped(person, *(f"a{n}@example.com" for n in range(7)))
    found = await walk(person, f"{PATH}?limit=3", f"{PATH}/")
    assert found == [f"{PATH}/{one}" for one in reversed(ids)]


async def test_one_correction_tells_every_attempt(person: Person) -> None:
    [one] = await stopped(person, "ann@example.com")
    moment = int(person.site.clock().timestamp() * 1000)
    await person.site.execute(
        f"""insert into calls values ('{moment:012x}70008000000000000000'::uuid, 'default', 'email', 'one/7', now(),
            array[{one}, 99], 'bad-request', 400, null, null, '{EVIL} ***')"""
    )
    await given_up(person)
    page = await person.get(f"{PATH}/{one}")
    text = Read(page).text
    assert "bad-request 400 2" in text
    assert f"{EVIL} ***" in text
    assert "<img" not in page.text
    assert "dead" in text
    for name in ("999", "x", "0"):
        assert (await person.get(f"{PATH}/{name}")).status_code == 404


async def test_one_is_requeued_if_it_is_still_owed(person: Person) -> None:
    [one] = await stopped(person, "ann@example.com")
    await given_up(person)
    done = await press(person, await person.get(f"{PATH}/{one}"), "Requeue it")
    assert "1 wait to be sent now" in Read(done).text
    assert await states(person) == {one: "superseded", one + 1: "pending"}
    [(actor, detail)] = await audited(person, "correction.requeued")
    assert (actor, detail["correction_id"]) == ("ann", one)
    assert Read(done).links[str(one + 1)] == f"{PATH}/{one + 1}?namespace=default"


async def test_one_that_kahuna_refused_needs_the_word_anyway(person: Person) -> None:
    [one] = await stopped(person, "ann@example.com")
    await given_up(person, "rejected")
    page = await person.get(f"{PATH}/{one}")
    refused = await press(person, page, "Requeue it")
    assert "1 were refused by Kahuna for good" in Read(refused).text
    assert "1 wait to be sent now" in Read(await press(person, page, "Requeue it", anyway="yes")).text


async def test_a_form_that_the_release_before_has_shown_is_understood(person: Person) -> None:
    [one] = await stopped(person, "ann@example.com")
    await given_up(person)
    asked = {"which": "all", "state": "dead", "reason": "bad-request"}
    silent = await person.act(f"{PATH}/discard", **asked)
    assert (silent.status_code, "Say why they are put aside" in silent.text) == (422, True)
    done = await person.act(f"{PATH}/discard", because="our own", **{f"id-{one}": "on"})
    assert "1 are put aside" in Read(done).text


async def test_those_ticked_are_counted_before_anything_is_done(person: Person) -> None:
    first, second, third = await stopped(person, "a@example.com", "b@example.com", "c@example.com")
    await given_up(person)
    page = await person.get(f"{PATH}?state=dead")
    assert len(Read(page).boxes) == 3
    before = await chosen(person, page, first, third)
    assert "You mean 2 dead." in Read(before).text
    assert await states(person) == dict.fromkeys((first, second, third), "dead")
    refused = await press(person, before, "Discard 2 corrections", note=" ")
    assert (refused.status_code, "Say why they are put aside" in refused.text) == (422, True)
    done = await press(person, before, "Discard 2 corrections", note=EVIL)
    assert "2 are put aside" in Read(done).text
    assert await states(person) == {first: "discarded", second: "dead", third: "discarded"}
    assert [(actor, detail["reason"]) for actor, detail in await audited(person, "correction.discarded")] == [
        ("ann", EVIL),
        ("ann", EVIL),
    ]
    listed = await person.get(f"{PATH}?state=discarded")
    assert EVIL in Read(listed).text
    assert "<img" not in listed.text


async def test_all_of_a_filter_are_decided_about(person: Person) -> None:
    ids = await stopped(person, *(f"a{n}@example.com" for n in range(5)))
    await given_up(person)
    await person.site.execute(f"update corrections set reason = 'too-large' where id = {ids[0]}")
    page = await person.get(f"{PATH}?state=dead&reason=bad-request&limit=2&since=2026-01-01T00:00")
    before = await press(person, page, "Decide about all 4")
    assert "You mean 4 dead, all of the filter" in Read(before).text
    assert "reason bad-request" in Read(before).text
    done = await press(person, before, "Requeue 4 corrections")
    assert "4 wait to be sent now" in Read(done).text
    assert (await states(person))[ids[0]] == "dead"
    assert len(await audited(person, "correction.requeued")) == 4


async def test_as_many_as_are_counted_at_most_are_told_as_so_many_at_least(person: Person) -> None:
    await stopped(person, *(f"a{n}@example.com" for n in range(4)))
    wanted = Wanted("default", "pending", channel="email")
    async with person.site.database.read() as connection:
        assert await desk.tallied(connection, wanted) == (4, True)
        assert await desk.tallied(connection, wanted._replace(channel="sms")) == (0, True)
        assert await desk.tallied(connection, wanted, 3) == (3, False)
        meant = quarantine.Asked("default", "open", "sms")
        assert await quarantine.tallied(connection, meant, 1) == ({}, True)


async def test_a_decision_without_anything_meant_is_refused(person: Person) -> None:
    await stopped(person, "ann@example.com")
    page = await person.get(PATH)
    nothing = await chosen(person, page)
    assert (nothing.status_code, "Nothing is ticked" in nothing.text) == (422, True)
    for verb in ("choose", "requeue", "discard"):
        answer = await person.act(f"{PATH}/{verb}", which="all", state="sent", note="x")
        assert (answer.status_code, "can be decided about" in answer.text) == (422, True)
        answer = await person.act(f"{PATH}/{verb}", which="all", note="x")
        assert answer.status_code == 422
    assert set((await states(person)).values()) == {"pending"}


async def test_what_is_settled_meanwhile_is_told_so(person: Person) -> None:
    [one] = await stopped(person, "ann@example.com")
    before = await chosen(person, await person.get(PATH), one)
    await person.site.execute("update corrections set state = 'sent', settled_at = created_at")
    done = await press(person, before, "Discard 1 correction", note="a test")
    assert "1 were accepted by Kahuna already" in Read(done).text
    assert await audited(person, "correction.discarded") == []


async def test_an_open_circuit_is_told_with_what_to_do_and_reset(person: Person) -> None:
    await stopped(person, "ann@example.com")
    now = person.site.clock().isoformat()
    await person.site.execute(
        f"insert into circuits values ('default', 'email', 'not-permitted', '{now}', "
        f"'{now}'::timestamptz + interval '1 minute')"
    )
    page = await person.get(PATH)
    assert "Nothing is sent of email" in Read(page).text
    assert "KAHUNA_SECRET_KEY" in Read(page).text
    done = await press(person, page, "Reset the circuit of email")
    assert "The circuit of email is closed" in Read(done).text
    assert await person.site.query("select 1 from circuits") == []
    [(actor, detail)] = await audited(person, "circuit.reset")
    assert (actor, detail["was_open"]) == ("ann", True)
    assert "was not open" in Read(await press(person, page, "Reset the circuit of email")).text


async def test_so_many_are_counted_and_no_more(person: Person) -> None:
    await person.site.execute(
        "insert into corrections (namespace, channel, address, slot, address_received, action, occurred_at, state, "
        "next_attempt_at, created_at) select 'default', 'email', n, 'manual', n, 'suppress', 1, 'dead', now(), now() "
        f"from (select n::text from generate_series(1, {desk.SCANNED + 5}) as n) as many"
    )
    assert f"dead at least {desk.SCANNED:,}" in Read(await person.get(PATH)).links


async def test_what_can_be_no_id_means_nothing_and_never_all(person: Person) -> None:
    [one] = await stopped(person, "ann@example.com")
    await given_up(person)
    for verb in ("choose", "requeue", "discard"):
        for name in ("id-", "id-abc", "id-1234567890123456789"):
            answer = await person.act(f"{PATH}/{verb}", state="dead", note="x", **{name: "on"})
            assert (answer.status_code, "Nothing is ticked" in answer.text) == (422, True), (verb, name)
    assert await states(person) == {one: "dead"}


async def test_nothing_of_it_is_seen_or_decided_from_another_namespace(settings: Settings) -> None:
    async with signed_in(settings, namespace="default") as person:
        [one] = await stopped(person, "ann@example.com")
        await given_up(person)
        async with browsing(person.site, namespace="other") as other:
            await other.sign_in()
            assert "ann@example.com" not in (await other.get(f"{PATH}?state=dead")).text
            assert "dead 0" in Read(await other.get(PATH)).links
            assert (await other.get(f"{PATH}/{one}")).status_code == 404
            assert (await other.get(f"{PATH}?namespace=default")).status_code == 403
            assert "none" in Read(await other.act(f"{PATH}/choose", **{f"id-{one}": "on"})).text
            done = await other.act(f"{PATH}/discard", note="x", **{f"id-{one}": "on"})
            assert "1 are not to be found" in Read(done).text
            await other.act(f"{PATH}/requeue", which="all", state="dead")
            assert await states(person) == {one: "dead"}
