"""How far Kahuna's logs were read, and the messages that went out against a stop."""

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest

from service.settings import Settings
from service.store.database import Database
from tests.flows.logs import act, due, filled, mailed, pulled
from tests.flows.speaking import World
from tests.flows.test_ingest import unsub
from tests.web.harness import Headers, Site, address_path, is_problem

A = "a@example.com"
HOUR = 3600


@pytest.fixture
async def admin(site: Site) -> Headers:
    return await site.token("read", "admin")


@pytest.fixture
async def world(database: Database, settings: Settings) -> AsyncIterator[World]:
    """Three messages against an unsubscribe, one against a stop that Kahuna did not know of; all logs read."""
    made = World(database, settings)
    async with made.control:
        await due(made)
        await made.callback("email", [unsub(A, made.clock.seconds)])
        await made.stop("email", "b@example.com", "manual")
        for _ in range(3):
            made.clock.sleep(HOUR)
            await mailed(made, A)
        await mailed(made, "b@example.com")
        made.clock.sleep(HOUR)
        await pulled(made, since=None)
        yield made


async def asked(site: Site, caller: Headers, path: str, **parameters: Any) -> Any:
    answer = await site.client.get(path, headers=caller, params=parameters)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def walked(site: Site, caller: Headers, **parameters: Any) -> list[Any]:
    """All pages of the violations."""
    found: list[Any] = []
    cursor: dict[str, str] = {}
    while True:
        page = await asked(site, caller, "/v1/admin/violations", **parameters, **cursor)
        found += page["violations"]
        if page["next"] is None:
            return found
        cursor = {"cursor": page["next"]}


async def test_the_overview_says_whether_the_past_is_known(site: Site, admin: Headers, world: World) -> None:
    assert (await asked(site, admin, "/v1/admin/overview"))["backfilled_at"] is None
    await filled(world)
    pulls = await asked(site, admin, "/v1/admin/pulls")
    assert (await asked(site, admin, "/v1/admin/overview"))["backfilled_at"] == pulls["backfilled_at"] is not None


async def test_violations_are_listed_newest_first_and_page_by_page(site: Site, admin: Headers, world: World) -> None:
    whole = (await asked(site, admin, "/v1/admin/violations"))["violations"]
    assert [(one["address"], one["known_by"]) for one in whole[-2:]] == [(A, "kahuna")] * 2
    assert {(one["address"], one["known_by"]) for one in whole[:2]} == {(A, "kahuna"), ("b@example.com", "us")}
    for limit in (1, 2, 3):
        assert await walked(site, admin, limit=limit) == whole
    assert await walked(site, admin, known_by="us") == [one for one in whole if one["known_by"] == "us"]
    assert await walked(site, admin, channel="sms") == []
    since = world.clock() - timedelta(seconds=2 * HOUR)
    assert len(await walked(site, admin, since=since.isoformat())) == 3
    message, stop = whole[-1]["message"], whole[-1]["stop"]
    assert (message["campaign"], message["record"]["email"]) == ("Newsletter", A)
    assert (stop["reason"], stop["origin"], stop["correction_id"]) == ("unsubscribe", "kahuna_webhook", None)
    ours = next(one for one in whole if one["known_by"] == "us")["stop"]
    assert (ours["reason"], ours["batch_id"]) == ("manual", None)
    assert ours["action_id"] is not None


@pytest.mark.parametrize("cursor", ["x", "WyJ4Il0", "WyIyMDI2LTAxLTAxVDAwOjAwOjAwWiIsIj8_IiwiYSJd"])
async def test_a_cursor_that_is_none_is_refused(site: Site, admin: Headers, cursor: str) -> None:
    answer = await site.client.get("/v1/admin/violations", headers=admin, params={"cursor": cursor})
    assert is_problem(answer, 422, "invalid-cursor")


async def test_violations_and_pulls_need_the_scope_and_keep_to_their_namespace(site: Site, world: World) -> None:
    reader = await site.token("read")
    other = await site.token("admin", namespace="other")
    for path in ("/v1/admin/violations", "/v1/admin/pulls"):
        assert is_problem(await site.client.get(path, headers=reader), 403, "missing-scope")
    assert await walked(site, other) == []
    assert (await asked(site, other, "/v1/admin/pulls"))["pulls"] == []


async def test_how_far_the_logs_were_read(site: Site, admin: Headers, world: World) -> None:
    before = await asked(site, admin, "/v1/admin/pulls")
    assert (before["backfilled_at"], {one["walk"] for one in before["pulls"]}) == (None, {"pull"})
    await filled(world, since=world.clock() - timedelta(days=2))
    after = await asked(site, admin, "/v1/admin/pulls")
    assert after["backfilled_at"] == world.clock().isoformat().replace("+00:00", "Z")
    assert len(after["pulls"]) == 8
    email = next(one for one in after["pulls"] if (one["api"], one["walk"]) == ("email", "pull"))
    assert (email["counts"]["violations"], email["error"], email["done_at"]) == (4, None, None)
    assert email["reached"] == after["backfilled_at"]


async def test_what_is_in_the_way_of_a_pull_is_told(site: Site, admin: Headers, world: World) -> None:
    await world.fault(api="email_logs", status=401)
    world.clock.sleep(HOUR)
    await pulled(world, since=None)
    [email] = [one for one in (await asked(site, admin, "/v1/admin/pulls"))["pulls"] if one["api"] == "email"]
    assert "Kahuna refuses the Secret Key" in email["error"]
    assert email["error_at"] is not None


async def test_the_figures(site: Site, world: World) -> None:
    site.clock.now = world.clock() + timedelta(seconds=90)
    lines = (await site.client.get("/metrics")).text.splitlines()
    assert 'kahuna_sync_violations{known_by="kahuna",namespace="default"} 3.0' in lines
    assert 'kahuna_sync_log_age_seconds{api="email",namespace="default"} 90.0' in lines
    assert 'kahuna_sync_logs_failing{api="push",namespace="default",walk="pull"} 0.0' in lines


async def test_a_merge_of_users_is_in_the_history_of_their_addresses(site: Site, admin: Headers, world: World) -> None:
    for credentials in (
        '{"email": "m@example.com", "username": "m"}',
        '{"fbid": "7"}',
        '{"email": "m@example.com", "fbid": "7"}',
    ):
        form = {"key": "demo-secret-key", "env": "s", "dev_id": credentials, "event": "start"}
        await world.control.post("/log", data=form | {"credentials": credentials})
    await act(world, "soft_bounce", "m@example.com")
    at = world.clock()
    world.clock.sleep(HOUR)
    await pulled(world, since=None)
    told = await asked(site, admin, address_path("email", "m@example.com", "/history"), limit=1)
    events = told["events"]
    while told["next"] is not None:
        told = await asked(
            site, admin, address_path("email", "m@example.com", "/history"), limit=1, cursor=told["next"]
        )
        events += told["events"]
    [merge] = [one for one in events if one["kind"] == "merge"]
    assert (merge["side"], merge["occurred_at"]) == ("common", at.isoformat().replace("+00:00", "Z"))
    assert "fbid:7" in merge["record"]["common_credentials"]
    assert {one["kind"] for one in events} == {"merge", "fact"}
