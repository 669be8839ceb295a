"""Undo over HTTP: imports and surges are listed, taken back by the worker, and told of."""

import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest

from service.flows import ingest, retract, surges
from service.settings import Settings
from tests.web.harness import Headers, Site, address_path, is_problem, opened

LIST = "email,time\nann@example.com,1700000100\nbob@example.com,1700000200\n"


@pytest.fixture
async def site(settings: Settings) -> AsyncIterator[Site]:
    async with opened(settings) as made:
        yield made


async def take_in(site: Site, headers: Headers) -> str:
    sent = {**headers, "Content-Type": "text/csv"}
    answer = await site.client.post(
        "/v1/suppressions/import?channel=email&reason=unsubscribe&file_name=x.csv", content=LIST, headers=sent
    )
    assert answer.status_code == 200, answer.text
    return str(answer.json()["import_id"])


async def work(site: Site) -> None:
    while await retract.run_next(site.database, ingest.rules_of(site.settings), site.clock):
        pass


async def get(site: Site, path: str, headers: Headers) -> Any:
    answer = await site.client.get(path, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_an_import_is_listed_and_taken_back(site: Site) -> None:
    admin = await site.token("admin", "write", "read")
    first = await take_in(site, admin)
    [shown] = (await get(site, "/v1/admin/imports", admin))["imports"]
    assert (shown["id"], shown["state"], shown["file_name"], shown["retraction_id"]) == (
        first,
        "finished",
        "x.csv",
        None,
    )
    assert shown["counts"]["accepted"] == 2
    why = {"reason": "wrong file"}
    answer = await site.client.post(f"/v1/admin/imports/{first}/revert", json=why, headers=admin)
    assert (answer.status_code, answer.json()["state"]) == (202, "queued")
    again = await site.client.post(f"/v1/admin/imports/{first}/revert", json=why, headers=admin)
    assert again.json() == answer.json()
    await work(site)
    told = await get(site, answer.headers["Location"], admin)
    assert (told["state"], told["counts"]["facts"], told["unsupported"], told["of"]) == ("done", 2, [], first)
    assert [one["id"] for one in (await get(site, "/v1/admin/retractions", admin))["retractions"]] == [told["id"]]
    assert (await get(site, f"/v1/admin/imports/{first}", admin))["retraction_id"] == told["id"]
    status = await get(site, address_path("email", "ann@example.com"), admin)
    assert (status["suppressed"], status["causes"]) == (False, [])
    events = (await get(site, address_path("email", "ann@example.com", "/history"), admin))["events"]
    taken, retracted = (next(one for one in events if one["kind"] == kind) for kind in ("fact", "retraction"))
    assert taken["taken_back_at"] == retracted["at"]
    assert (retracted["note"], retracted["what"], retracted["still_known"]) == ("wrong file", "import", False)
    actions = await site.query("select action from audit where action like '%revert%' or action like 'retract%'")
    assert sorted(actions) == [("import.reverted",), ("retraction.finished",)]


async def test_imports_come_page_by_page(site: Site) -> None:
    admin = await site.token("admin", "write")
    for _ in range(3):
        await take_in(site, admin)
        site.clock.sleep(60)
    page = await get(site, "/v1/admin/imports?limit=2", admin)
    rest = await get(site, f"/v1/admin/imports?limit=2&cursor={page['next']}", admin)
    assert [len(page["imports"]), len(rest["imports"]), rest["next"]] == [2, 1, None]


async def test_a_surge_is_kept_or_taken_back(site: Site) -> None:
    admin = await site.token("admin", "read")
    limits = surges.Limits(surges.limits_of(site.settings).window, domain=3, minute=10**6)
    await surges.look(site.database, limits, site.clock)
    site.clock.sleep(60)
    for domain in ("one.example", "two.example"):
        entries = [{"reason": "spam", "email": f"a{n}@{domain}", "timestamp": 1700000000} for n in range(3)]
        await site.deliver("email", entries)
    site.clock.sleep(900)
    assert await surges.look(site.database, limits, site.clock)
    found = (await get(site, "/v1/admin/surges?state=flagged", admin))["surges"]
    assert sorted((one["key"], one["count"]) for one in found) == [("one.example", 3), ("two.example", 3)]
    metrics = (await site.client.get("/metrics")).text
    assert 'kahuna_sync_open_surges{channel="email",namespace="default"} 2.0' in metrics
    one, two = sorted(found, key=lambda surge: surge["key"])
    kept = await site.client.post(f"/v1/admin/surges/{one['id']}/keep", headers=admin)
    assert kept.json()["state"] == "kept"
    refused = await site.client.post(f"/v1/admin/surges/{one['id']}/revert", json={"reason": "no"}, headers=admin)
    assert is_problem(refused, 409, "already-decided")
    reverted = await site.client.post(f"/v1/admin/surges/{two['id']}/revert", json={"reason": "theirs"}, headers=admin)
    assert reverted.status_code == 202
    assert "kahuna_sync_open_retractions 1.0" in (await site.client.get("/metrics")).text
    await work(site)
    assert (await get(site, reverted.headers["Location"], admin))["counts"]["theirs"] == 3
    states = {one["key"]: one["state"] for one in (await get(site, "/v1/admin/surges", admin))["surges"]}
    assert states == {"one.example": "kept", "two.example": "reverted"}
    assert not (await get(site, address_path("email", "a0@two.example"), admin))["suppressed"]
    assert (await get(site, address_path("email", "a0@one.example"), admin))["suppressed"]


async def test_nobody_reverts_what_is_not_theirs(site: Site) -> None:
    admin = await site.token("admin", "write")
    other = await site.token("admin", namespace="other")
    one = await take_in(site, admin)
    why = {"reason": "no"}
    assert is_problem(
        await site.client.post(f"/v1/admin/imports/{one}/revert", json=why, headers=other), 404, "not-found"
    )
    assert is_problem(await site.client.get(f"/v1/admin/imports/{one}", headers=other), 404, "not-found")
    nobody = uuid.uuid4()
    for kind in ("imports", "surges"):
        path = f"/v1/admin/{kind}/{nobody}/revert"
        assert is_problem(await site.client.post(path, json=why, headers=admin), 404, "not-found")
        blank = await site.client.post(path, json={"reason": " "}, headers=admin)
        assert is_problem(blank, 422, "invalid-body")
    assert is_problem(await site.client.get(f"/v1/admin/retractions/{nobody}", headers=admin), 404, "not-found")
