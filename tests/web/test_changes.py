"""The feed in HTTP words: the document, the cursors that callers hand back, and waiting."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from service.app import build, end_waits
from service.settings import Settings
from service.store import access, changes
from tests.flows.speaking import Clock, until
from tests.web.harness import Headers, Site, is_problem, opened, with_state

STOP = {"email": "ann@example.com", "reason": "unsub", "timestamp": 1_700_000_000}


@pytest.fixture
async def site(settings: Settings) -> AsyncIterator[Site]:
    async with opened(replace(settings, changes_poll_seconds=0.02)) as site:
        yield site


@pytest.fixture
async def reader(site: Site) -> Headers:
    return await site.token("read")


async def feed(site: Site, reader: Headers, **parameters: Any) -> dict[str, Any]:
    answer = await site.client.get("/v1/changes", headers=reader, params=parameters)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def test_a_change_is_told_with_what_is_true_now(site: Site, reader: Headers) -> None:
    await site.deliver("email", [STOP])
    found = await feed(site, reader)
    (change,) = found["changes"]
    assert change == {
        "cursor": change["cursor"],
        "channel": "email",
        "address": "ann@example.com",
        "suppressed": True,
        "until": None,
        "reasons": ["unsubscribe"],
    }
    assert (await feed(site, reader))["changes"] == [change], "the same row has the same cursor"
    assert (await feed(site, reader, after=change["cursor"]))["changes"] == []
    assert (await feed(site, reader, after=found["next"]))["changes"] == []


async def test_the_verdict_is_todays_however_old_the_row(site: Site, reader: Headers) -> None:
    writer = await site.token("write")
    await site.deliver("email", [STOP])
    consent = {"evidence": "a form", "occurred_at": "2026-02-01T00:00:00Z"}
    path = "/v1/suppressions/email/ann@example.com/reactivate"
    assert (await site.client.post(path, headers=writer, json=consent)).status_code == 200
    found = (await feed(site, reader))["changes"]
    assert len(found) > 1
    assert not any(change["suppressed"] or change["reasons"] for change in found)


async def test_what_lapses_by_itself_says_when(site: Site, reader: Headers) -> None:
    at = int(site.clock.now.timestamp())
    bounces = [{"email": "bob@example.com", "reason": "soft_bounce", "timestamp": at - n * 3600} for n in range(3)]
    await site.deliver("email", bounces)
    (change,) = (await feed(site, reader))["changes"]
    assert (change["suppressed"], change["until"], change["reasons"]) == (True, "2026-03-31T12:00:00Z", ["soft_bounce"])


async def test_a_password_reset_ignores_an_unsubscribe(site: Site, reader: Headers) -> None:
    await site.deliver("email", [STOP])
    (change,) = (await feed(site, reader, purpose="transactional"))["changes"]
    assert (change["suppressed"], change["reasons"]) == (False, [])


async def test_a_channel_alone_and_pages(site: Site, reader: Headers) -> None:
    for n in range(3):
        await site.deliver("email", [STOP | {"email": f"a{n}@example.com"}])
        await site.deliver("sms", [{"number": f"1555010000{n}", "timestamp": 1_700_000_000}])
    found: list[str] = []
    page = await feed(site, reader, channel="sms", limit=2)
    while page["changes"]:
        assert len(page["changes"]) <= 2
        found += [change["address"] for change in page["changes"]]
        page = await feed(site, reader, channel="sms", limit=2, after=page["next"])
    assert found == [f"1555010000{n}" for n in range(3)]


async def test_a_cursor_of_another_namespace_is_refused(site: Site, reader: Headers) -> None:
    other = await site.token("read", namespace="other")
    cursor = (await feed(site, other))["next"]
    assert is_problem(
        await site.client.get("/v1/changes", headers=reader, params={"after": cursor}), 422, "invalid-cursor"
    )


@pytest.mark.parametrize(
    ("parameter", "value", "slug"),
    [
        ("after", "nonsense", "invalid-cursor"),
        ("wait", "61", "invalid-parameter"),
        ("wait", "-1", "invalid-parameter"),
        ("wait", "٣", "invalid-parameter"),
        ("limit", "0", "invalid-parameter"),
        ("limit", "1001", "invalid-parameter"),
        ("channel", "fax", "invalid-parameter"),
        ("purpose", "fun", "invalid-parameter"),
    ],
)
async def test_what_cannot_be_meant_is_refused(
    site: Site, reader: Headers, parameter: str, value: str, slug: str
) -> None:
    answer = await site.client.get("/v1/changes", headers=reader, params={parameter: value})
    assert is_problem(answer, 422, slug)


async def test_a_cursor_of_another_life_of_the_database_is_gone(site: Site, reader: Headers) -> None:
    cursor = (await feed(site, reader))["next"]
    async with site.database.begin() as connection:
        await changes.begin_epoch(connection, "tester", site.clock.now)
    answer = await site.client.get("/v1/changes", headers=reader, params={"after": cursor})
    assert is_problem(answer, 410, "cursor-expired")
    assert "export" in answer.json()["detail"]


async def test_it_needs_the_scope_read(site: Site) -> None:
    writer = await site.token("write")
    assert is_problem(await site.client.get("/v1/changes", headers=writer), 403, "missing-scope")


async def test_who_waits_is_answered_by_the_change(site: Site, reader: Headers) -> None:
    start = (await feed(site, reader))["next"]
    asked = asyncio.create_task(feed(site, reader, after=start, wait=60))
    await site.deliver("email", [STOP])
    assert [change["address"] for change in (await asked)["changes"]] == ["ann@example.com"]
    assert "\nkahuna_sync_feed_waiting 0.0\n" in (await site.client.get("/metrics")).text


@pytest.mark.parametrize("ending", ["revoked", "expired"])
async def test_a_token_that_ends_while_it_waits_is_told_nothing(site: Site, ending: str) -> None:
    ends: dict[str, Any] = {"expires_at": site.clock() + timedelta(seconds=20)} if ending == "expired" else {}
    reader = await site.token("read", **ends)
    start = (await feed(site, reader))["next"]
    asked = asyncio.create_task(
        site.client.get("/v1/changes", headers=reader, params={"after": start, "wait": 60, "limit": 1})
    )
    await asyncio.sleep(0.05)
    if ending == "revoked":
        async with site.database.begin() as connection:
            await access.revoke_tokens(connection, "tester", site.clock())
    site.clock.sleep(30)
    await site.deliver("email", [STOP])
    assert is_problem(await asked, 401, "unauthenticated")


async def test_a_wait_is_one_call_of_the_allowance(settings: Settings) -> None:
    async with opened(replace(settings, token_calls_per_second=1)) as site:
        reader = await site.token("read")
        await site.deliver("email", [STOP])
        assert (await feed(site, reader, wait=60))["changes"]


async def test_who_hangs_up_waits_no_longer(settings: Settings) -> None:
    """And who waits still is answered at once when the process is told to end."""
    application = build(settings, Clock())
    async with application.router.lifespan_context(application) as state, opened(settings) as site:
        reader = await site.token("read")
        headers = [(name.lower().encode(), value.encode()) for name, value in reader.items()]
        scope = {"type": "http", "method": "GET", "path": "/v1/changes", "query_string": b"wait=60", "headers": headers}
        served = with_state(application, dict(state or {}))
        hung_up, sent = asyncio.Event(), []

        async def receive() -> dict[str, Any]:
            await hung_up.wait()
            return {"type": "http.disconnect"}

        async def for_ever() -> dict[str, Any]:
            await asyncio.Event().wait()
            raise AssertionError

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        feed = application.state.desk.service.feed
        leaving = asyncio.create_task(served(scope, receive, send))
        staying = asyncio.create_task(served(scope, for_ever, send))
        await until(lambda: feed.waiting == 2)
        hung_up.set()
        await leaving
        assert feed.waiting == 1
        end_waits(application)
        await staying
        assert sent[-1]["body"].startswith(b'{"changes":[],"next":"')
