"""Surges, imports and what was taken back, at the console: pointed at, shown in numbers, and decided."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from service.flows import ingest, retract, surges
from service.settings import Settings
from tests.console.browsing import Person, browsing, signed_in
from tests.console.pressing import Read, press
from tests.web.harness import address_path

EVIL = "<script>alert('x')</script>"


@pytest.fixture
async def person(settings: Settings) -> AsyncIterator[Person]:
    async with signed_in(settings) as person:
        yield person


async def flagged(person: Person, *domains: str, stops: int = 3) -> dict[str, str]:
    """The ids of new surges, by domain: each came in two callbacks, among other stops."""
    site = person.site
    limits = surges.Limits(surges.limits_of(site.settings).window, domain=3, minute=10**6)
    await surges.look(site.database, limits, site.clock)
    site.clock.sleep(60)
    for domain in domains:
        many = [{"reason": "spam", "email": f"a{n}@{domain}", "timestamp": 1_700_000_000} for n in range(stops)]
        other = {"reason": "unsub", "email": f"other@{domain}", "timestamp": 1_700_000_000}
        await site.deliver("email", [*many[:2], other])
        await site.deliver("email", many[2:])
    site.clock.sleep(900)
    assert await surges.look(site.database, limits, site.clock)
    return dict(await site.query("select key, id::text from surges where state = 'flagged'"))


async def imported(person: Person, lines: str = "address\nann@example.com\nbob@example.com\n") -> str:
    headers = {**await person.site.token("write"), "Content-Type": "text/csv"}
    path = "/v1/suppressions/import?channel=email&reason=unsubscribe&file_name=x.csv"
    answer = await person.site.client.post(path, content=lines, headers=headers)
    return str(answer.json()["import_id"])


def paths(page: Read) -> dict[str, str]:
    """Where the links of a page lead, without the namespace."""
    return {says: href.partition("?")[0] for says, href in page.links.items()}


async def carried_out(person: Person) -> None:
    site = person.site
    while await retract.run_next(site.database, ingest.rules_of(site.settings), site.clock):
        pass


async def is_suppressed(person: Person, address: str) -> Any:
    headers = await person.site.token("read")
    return (await person.site.client.get(address_path("email", address), headers=headers)).json()["suppressed"]


async def test_an_open_surge_is_pointed_at_until_it_is_decided(person: Person) -> None:
    says = "3 stops of one.example in a burst were flagged: look at it"
    found = await flagged(person, "one.example")
    page = Read(await person.get("/console"))
    place = f"/console/surges/{found['one.example']}"
    assert paths(page)[says] == place
    assert says not in (await person.get("/console?namespace=other")).text
    await press(person, await person.get(f"{place}/decide"), "Keep 3 stops")
    assert says not in (await person.get("/console")).text


async def test_of_many_surges_some_are_pointed_at_and_the_rest_is_said_to_be(person: Person) -> None:
    await flagged(person, *(f"d{n}.example" for n in range(5)))
    text = (await person.get("/console")).text
    assert (text.count("in a burst were flagged"), text.count("More surges wait")) == (3, 1)


async def test_a_surge_of_one_minute_is_pointed_at_and_taken_back_by_its_reason(person: Person) -> None:
    found = await flagged(person, "one.example")
    await person.site.execute("update surges set kind = 'minute', key = '2026-03-01T12:01:00+00:00'")
    page = Read(await person.get("/console"))
    assert "3 stops for complaint within one minute were flagged: look at it" in page.links
    asked = Read(await person.get(f"/console/surges/{found['one.example']}/decide"))
    assert "within the minute 2026-03-01 12:01:00 UTC" in asked.text
    assert "3 stops are meant" in asked.text


async def test_a_surge_shows_who_is_in_it_and_is_taken_back_with_the_numbers_said(person: Person) -> None:
    found = await flagged(person, "one.example")
    listed = await person.get("/console/surges")
    assert "one.example" in Read(listed).text
    shown = await person.get(f"/console/surges/{found['one.example']}")
    assert all(f"a{n}@one.example" in shown.text for n in range(3))
    assert "other@one.example" not in shown.text
    assert "These are all." in shown.text
    asked = await person.get(Read(shown).links["Keep it, or take it back…"])
    assert "You mean 3 stops of email for complaint, of one.example, that came in 2 batches." in Read(asked).text
    assert "In all of them, 3 stops are meant, on which 3 facts stand now." in Read(asked).text
    refused = await press(person, asked, "Take 3 stops back", note=" ")
    assert refused.status_code == 422
    done = await press(person, asked, "Take 3 stops back", note=EVIL)
    assert "a worker takes it up" in done.text
    assert EVIL not in done.text
    assert EVIL in Read(done).text
    await carried_out(person)
    assert not await is_suppressed(person, "a0@one.example")
    assert await is_suppressed(person, "other@one.example")
    assert "in a burst" not in (await person.get("/console")).text


async def test_a_kept_surge_stays_decided(person: Person) -> None:
    found = await flagged(person, "one.example")
    asked = await person.get(f"/console/surges/{found['one.example']}/decide")
    kept = await press(person, asked, "Keep 3 stops", note=EVIL)
    assert "Kept: the 3 stops stand" in Read(kept).text
    again = await press(person, asked, "Take 3 stops back", note="late")
    assert (again.status_code, "a decision stands" in again.text) == (409, True)
    assert "Keep 3 stops" not in (await person.get(f"/console/surges/{found['one.example']}/decide")).text
    assert await is_suppressed(person, "a0@one.example")


async def test_a_page_of_a_large_surge_is_bounded(person: Person) -> None:
    found = await flagged(person, "one.example", stops=surges.MOST_PEOPLE + 30)
    # The larger batch tells enough; the smaller one is not read for it when it comes behind.
    await person.site.execute("delete from surge_evidence where batch_id = (select id from batches where accepted = 3)")
    text = Read(await person.get(f"/console/surges/{found['one.example']}")).text
    assert f"These are the first {surges.MOST_PEOPLE}, from 1 of 1 batch." in text


async def test_what_the_archive_has_dropped_is_said_of_a_surge(person: Person) -> None:
    found = await flagged(person, "one.example")
    await person.site.execute("delete from surge_evidence")
    assert "does not keep" in (await person.get(f"/console/surges/{found['one.example']}")).text


async def test_an_import_is_listed_and_taken_back(person: Person) -> None:
    one = await imported(person)
    listed = await person.get("/console/imports")
    assert "x.csv" in listed.text
    page = await person.get(f"/console/imports/{one}")
    assert "2 lines were new" in Read(page).text
    done = await press(person, page, "Take 2 lines back", note="the wrong file")
    assert "It is being taken back" in Read(done).text
    await carried_out(person)
    [(retraction,)] = await person.site.query("select id from retractions")
    told = await person.get(f"/console/retractions/{retraction}")
    assert "2 facts taken back" in Read(told).text
    assert f"/console/imports/{one}" in paths(Read(told)).values()
    assert "the wrong file" in (await person.get("/console/retractions")).text
    assert f"/console/retractions/{retraction}" in paths(Read(await person.get("/console/imports"))).values()
    assert "Take it back" not in (await person.get(f"/console/imports/{one}")).text
    assert not await is_suppressed(person, "ann@example.com")


async def test_nothing_of_it_is_seen_from_another_namespace(person: Person) -> None:
    surge, one = (await flagged(person, "one.example"))["one.example"], await imported(person)
    await press(person, await person.get(f"/console/imports/{one}"), "Take 2 lines back", note="x")
    [(retraction,)] = await person.site.query("select id from retractions")
    async with browsing(person.site, namespace="other") as other:
        await other.sign_in()
        for path in ("surges", "imports", "retractions"):
            assert 'class="empty"' in (await other.get(f"/console/{path}")).text
        for path in (f"surges/{surge}", f"surges/{surge}/decide", f"imports/{one}", f"retractions/{retraction}"):
            assert (await other.get(f"/console/{path}")).status_code == 404, path
        for path in (f"surges/{surge}/keep", f"surges/{surge}/revert", f"imports/{one}/revert"):
            assert (await other.act(f"/console/{path}", note="x")).status_code == 404, path
        assert await person.site.query("select state from surges") == [("flagged",)]
