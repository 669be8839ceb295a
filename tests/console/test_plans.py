"""Reconciliation plans at the console: started, read, decided line by line, taken back, told."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from service.flows import prove, reconcile
from service.flows.ingest import rules_of
from service.flows.underway import Means
from service.settings import Settings
from tests.console.browsing import Person, browsing, signed_in
from tests.console.pressing import Read, followed, press, walk
from tests.web.harness import address_path

ANN, BOB, EVIL = "ann@example.com", "bob@example.com", "=<script>&'\"@example.com"
PATH = "/console/plans"


@pytest.fixture
async def person(settings: Settings) -> AsyncIterator[Person]:
    async with signed_in(settings) as person:
        yield person


async def work(person: Person) -> None:
    """What the worker does."""
    site = person.site
    means = Means(site.database, rules_of(site.settings), site.clock)
    while await reconcile.run_next(means):
        pass
    await prove.prove(site.database, site.clock)


async def started(person: Person) -> str:
    """Where a new run is."""
    page = await person.get(PATH)
    form, fields = Read(page).form_of("Start it")
    answer = await person.post(form.action, **(fields | {"channel": "email", "source": "ledger"}))
    assert answer.status_code == 303, answer.text
    return str(answer.headers["Location"])


async def drifted(person: Person, *addresses: str) -> str:
    """Where a plan is whose lines are complaints of these, which Kahuna was never told."""
    caller = await person.site.token("write")
    for address in addresses or (ANN,):
        put = address_path("email", address)
        assert (await person.site.client.put(put, headers=caller, json={"reason": "complaint"})).status_code == 200
    await person.site.execute("delete from corrections")
    place = await started(person)
    await work(person)
    return place


async def lines(person: Person) -> dict[str, str]:
    return dict(await person.site.query("select address, state from differences order by address"))


async def audited(person: Person, action: str) -> list[Any]:
    return await person.site.query(f"select actor, detail from audit where action = '{action}'")


async def test_a_run_is_started_planned_and_read(person: Person) -> None:
    place = await started(person)
    page = await person.get(place)
    assert "queued Waits for a worker." in Read(page).text
    assert "There is no plan: nothing is known of the differences." in Read(page).text
    await work(person)
    read = Read(await person.get(place))
    assert "proved" in read.text
    assert "Both sides agree: 0 differences." in read.text
    [(actor, detail)] = await audited(person, "reconciliation.requested")
    assert (actor, detail["source"], detail["auto_approve"]) == ("ann", "ledger", False)
    assert "Asked for (UTC)" in Read(await person.get(PATH)).text


async def test_a_run_that_cannot_be_is_refused_with_a_sentence(person: Person) -> None:
    page = await person.get(PATH)
    for fields, sentence in (
        ({"channel": "sms", "source": "logs"}, "Kahuna's logs tell nothing of texts"),
        ({"channel": "email", "source": "ledger", "since": "2026-01-01T00:00"}, "since is for the source logs"),
        ({"channel": "email", "source": "stars"}, "The form is not filled in as it must be"),
        ({"channel": "email", "source": "logs", "since": "soon"}, "The form is not filled in as it must be"),
    ):
        answer = await press(person, page, "Start it", **fields)
        assert (answer.status_code, sentence in Read(answer).text) == (422, True)
    assert await person.site.query("select 1 from reconciliations") == []


async def test_a_plan_is_approved_as_a_whole_once_its_number_was_seen(person: Person) -> None:
    place = await drifted(person, ANN, BOB)
    page = await person.get(place)
    assert "missing there complaint stop proposed 2" in Read(page).text
    before = await press(person, page, "Decide about all 2 that wait")
    assert "You mean 2 lines of this plan" in Read(before).text
    assert "2 missing there, complaint: Kahuna is told to stop" in Read(before).text
    assert set((await lines(person)).values()) == {"proposed"}
    after = await press(person, before, "Approve 2 lines", note="looked at")
    assert "2 lines are approved; a worker carries them out." in Read(after).text
    await work(person)
    assert set((await lines(person)).values()) == {"applied"}
    [(actor, detail)] = await audited(person, "reconciliation.approved")
    assert (actor, detail["lines"], detail["note"]) == ("ann", 2, "looked at")
    read = Read(await person.get(place))
    [(one,)] = await person.site.query("select correction_id from differences order by address limit 1")
    assert read.links[f"correction {one}"] == f"/console/corrections/{one}?namespace=default"


async def test_a_group_of_a_plan_is_decided_by_its_filter(person: Person) -> None:
    caller = await person.site.token("write")
    await person.site.client.put(address_path("email", BOB), headers=caller, json={"reason": "manual"})
    page = await person.get(await drifted(person))
    before = await press(person, page, "Decide…")
    assert (
        "You mean 1 line of this plan for email: kind missing there, reason complaint, action suppress"
        in Read(before).text
    )
    await press(person, before, "Approve 1 line")
    assert await lines(person) == {ANN: "approved", BOB: "proposed"}


async def test_ticked_lines_are_approved_and_those_that_wait_no_more_passed_over(person: Person) -> None:
    page = await person.get(await drifted(person, ANN, BOB, EVIL))
    values = dict(_boxes(page))
    assert sorted(values.values()) == [f"complaint {EVIL}", f"complaint {ANN}", f"complaint {BOB}"]
    ticked = {name: value for name, value in values.items() if BOB in value or EVIL in value}
    before = await press(person, page, "Decide about those ticked", **ticked)
    assert "You mean 2 lines" in Read(before).text
    assert EVIL in Read(before).text
    assert "<script>&" not in before.text
    await press(person, before, "Approve 2 lines")
    assert await lines(person) == {ANN: "proposed", BOB: "approved", EVIL: "approved"}
    again = await press(person, before, "Reject 2 lines")
    assert "0 lines are rejected" in Read(again).text
    assert "2 of those that were ticked waited for no decision any more" in Read(again).text
    nothing = await press(person, page, "Decide about those ticked")
    assert (nothing.status_code, "Nothing is ticked" in nothing.text) == (422, True)


def _boxes(page: httpx.Response) -> list[tuple[str, str]]:
    """The boxes of a page's lines, each with its value."""
    return [(name, value) for name, value in Read(page).boxes if name.startswith("line-")]


async def test_a_plan_is_rejected_and_stays_so(person: Person) -> None:
    page = await person.get(await drifted(person))
    before = await press(person, page, "Decide about all 1 that wait")
    after = await press(person, before, "Reject 1 line", note="not these")
    assert "1 line is rejected" in Read(after).text
    assert await lines(person) == {ANN: "declined"}
    [(actor, detail)] = await audited(person, "reconciliation.rejected")
    assert (actor, detail["note"]) == ("ann", "not these")
    late = await press(person, before, "Approve 1 line")
    assert (late.status_code, "only lines of a plan can be decided" in late.text) == (409, True)


async def test_a_run_without_a_plan_is_called_off(person: Person) -> None:
    place = await started(person)
    after = await press(person, await person.get(place), "Call this run off", note="too early")
    assert "rejected A person decided that nothing is to be done." in Read(after).text
    assert [actor for actor, _ in await audited(person, "reconciliation.rejected")] == ["ann"]


async def test_a_run_that_has_become_a_plan_is_not_called_off_unseen(person: Person) -> None:
    place = await drifted(person)
    await person.site.execute("update reconciliations set state = 'running', planned_at = null")
    before = await person.get(place)
    await person.site.execute("update reconciliations set state = 'planned', planned_at = created_at")
    answer = await press(person, before, "Call this run off")
    assert (answer.status_code, "There is a plan by now" in answer.text) == (409, True)
    assert await lines(person) == {ANN: "proposed"}


async def test_a_run_is_taken_back_with_its_numbers_told_first(person: Person) -> None:
    page = await person.get(await drifted(person))
    assert "0 lines were recorded" in Read(page).text
    assert "1 line not carried out yet never will be" in Read(page).text
    after = await press(person, page, "Take this run back", note="a mistake")
    assert "A worker takes it back." in Read(after).text
    await work(person)
    assert await lines(person) == {ANN: "declined"}
    [(actor, detail)] = await audited(person, "reconciliation.reverted")
    assert (actor, detail["note"]) == ("ann", "a mistake")
    again = await press(person, page, "Take this run back")
    assert (again.status_code, "nothing to take back" in again.text) == (409, True)


async def test_lines_are_walked_through_and_no_address_is_in_a_url(person: Person) -> None:
    addresses = sorted(f"a{n:03}@example.com" for n in range(120))
    place = await drifted(person, *addresses)
    page = await person.get(f"{place}&state=proposed")
    seen: list[str] = []
    while True:
        seen += [value.partition(" ")[2] for _, value in _boxes(page)]
        if not any(button.label == "Next page" for button in Read(page).buttons):
            break
        page = await press(person, page, "Next page")
        assert page.status_code == 200
        assert "?" not in str(page.url).replace("?namespace=default", "")
    assert seen == addresses
    none = await person.get(f"{place}&state=refused")
    assert "No line is like that." in Read(none).text
    assert (await person.get(f"{place}&state=odd")).status_code == 422


async def test_runs_are_walked_through_and_filtered(person: Person) -> None:
    places = []
    for _ in range(5):
        places.append((await started(person)).partition("?")[0])
        person.site.clock.sleep(1)
    assert await walk(person, f"{PATH}?limit=2", f"{PATH}/") == list(reversed(places))
    assert await walk(person, f"{PATH}?state=queued&channel=email", f"{PATH}/") == list(reversed(places))
    assert "No run is like that" in (await person.get(f"{PATH}?channel=sms")).text


async def test_the_report_is_served_by_the_session_in_every_form(person: Person) -> None:
    place = await drifted(person, EVIL)
    read = Read(await person.get(place))
    forms = {"page": "text/html", "CSV": "text/csv", "JSON": "application/json"}
    for label, kind in forms.items():
        report = await person.get(read.links[label])
        assert (report.status_code, report.headers["Content-Type"].split(";")[0]) == (200, kind)
        assert "<script>&" not in report.text or kind != "text/html"
        assert "default-src 'none'" in report.headers["Content-Security-Policy"]
        assert report.headers["Cache-Control"] == "no-store"
    assert (await person.get(read.links["JSON"])).json()["lines"][0]["address"] == EVIL
    assert (await person.get(read.links["JSON"].replace("json", "pdf"))).status_code == 422


async def test_nothing_of_it_is_seen_or_decided_from_another_namespace(settings: Settings) -> None:
    async with signed_in(settings, namespace="default") as person:
        place = await drifted(person)
        async with browsing(person.site, namespace="other") as other:
            await other.sign_in()
            assert await walk(other, PATH, f"{PATH}/") == []
            assert (await other.get(place)).status_code == 404
            assert (await other.get(f"{place}/report?format=csv")).status_code == 404
            for verb in ("lines", "choose", "approve", "reject", "revert"):
                answer = await followed(other, await other.act(f"{place}/{verb}", which="all"))
                assert answer.status_code == 404, verb
            assert await lines(person) == {ANN: "proposed"}


async def test_the_switch_of_namespaces_leads_to_a_page_that_is_there(person: Person) -> None:
    place = await drifted(person)
    chosen = await press(person, await person.get(place), "Decide about all 1 that wait")
    looked_up = await person.act("/console/address", address=ANN)
    for page, path in ((chosen, PATH), (looked_up, "/console/address"), (await person.get("/console"), "/console")):
        form, _ = Read(page).form_of("Switch")
        assert form.action == path
        assert (await person.get(f"{path}?namespace=other")).status_code == 200
