"""The list as callers walk through it."""

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any, get_args

import pytest

from service.domain.facts import EMAIL_REASONS, SMS_REASONS
from service.settings import Settings
from service.web.asking import cursor_for
from service.web.listing import Reason
from tests.web.harness import Headers, Site, is_problem, opened

LIST = "/v1/suppressions"


@pytest.fixture
async def site(settings: Settings) -> AsyncIterator[Site]:
    async with opened(settings) as site:
        await site.deliver(
            "email",
            [
                {"reason": "unsub", "email": "ann@example.com", "timestamp": 1_700_000_000},
                {"reason": "soft_bounce", "email": "ann@example.com", "timestamp": 1_700_000_000},
                {"reason": "spam", "email": "bob@example.com", "timestamp": 1_700_000_000},
            ],
        )
        site.clock.sleep(3600)
        await site.deliver("sms", [{"number": "15550100001", "timestamp": 1_700_000_000}])
        yield site


@pytest.fixture
async def reader(site: Site) -> Headers:
    return await site.token("read")


async def keys(site: Site, caller: Headers, **parameters: Any) -> list[tuple[str, str]]:
    answer = await site.client.get(LIST, headers=caller, params=parameters)
    assert answer.status_code == 200, answer.text
    return [(row["address"], row["reason"]) for row in answer.json()["suppressions"]]


def test_every_reason_can_be_asked_for() -> None:
    assert set(get_args(Reason)) == {*EMAIL_REASONS, *SMS_REASONS}


async def test_a_row_is_a_cause_and_whose_it_is(site: Site, reader: Headers) -> None:
    answer = (await site.client.get(LIST, headers=reader, params={"reason": "unsubscribe"})).json()
    assert (answer["namespace"], answer["next"]) == ("default", None)
    [row] = answer["suppressions"]
    status = (await site.client.get(f"{LIST}/email/ann@example.com", headers=reader)).json()
    [cause] = [one for one in status["causes"] if one["reason"] == "unsubscribe"]
    assert row == {"channel": "email", "address": "ann@example.com"} | cause


async def test_each_filter_narrows_the_list(site: Site, reader: Headers) -> None:
    ann, bounced = ("ann@example.com", "unsubscribe"), ("ann@example.com", "soft_bounce")
    bob, number = ("bob@example.com", "complaint"), ("15550100001", "do_not_call")
    assert await keys(site, reader) == [number, bounced, ann, bob]
    assert await keys(site, reader, channel="sms") == [number]
    assert await keys(site, reader, origin="kahuna_webhook", active="false") == [bounced]
    assert await keys(site, reader, active="true") == [number, ann, bob]
    assert await keys(site, reader, since="2026-03-01T13:00:00Z") == [number]
    assert await keys(site, reader, origin="import") == []


async def test_pages_follow_each_other(site: Site, reader: Headers) -> None:
    walked: list[Any] = []
    parameters: dict[str, Any] = {"limit": 1}
    while True:
        answer = (await site.client.get(LIST, headers=reader, params=parameters)).json()
        walked += [(row["address"], row["reason"]) for row in answer["suppressions"]]
        if answer["next"] is None:
            break
        parameters["cursor"] = answer["next"]
    assert walked == await keys(site, reader)


async def test_another_namespace_has_its_own_list(site: Site) -> None:
    assert await keys(site, await site.token("read", namespace="other")) == []


@pytest.mark.parametrize(
    ("parameters", "status", "slug"),
    [
        ({"cursor": "?"}, 422, "invalid-cursor"),
        ({"cursor": cursor_for("a", "b", "c")}, 422, "invalid-cursor"),
        ({"cursor": cursor_for("a\0", "b", "c", "d")}, 422, "invalid-cursor"),
        ({"limit": "1001"}, 422, "invalid-parameter"),
        ({"active": "yes"}, 422, "invalid-parameter"),
        ({"reason": "gone"}, 422, "invalid-parameter"),
        ({"channel": "sms", "reason": "unsubscribe"}, 422, "unknown-reason"),
        ({"channel": "email", "reason": "do_not_call"}, 422, "unknown-reason"),
        ({"since": "2026-02-30"}, 422, "invalid-time"),
        ({"origin": "elsewhere"}, 422, "invalid-parameter"),
        ({"channel": "fax"}, 422, "invalid-parameter"),
        ({"since": "yesterday"}, 422, "invalid-time"),
        ({"page": "2"}, 400, "unknown-parameter"),
    ],
)
async def test_odd_questions_are_refused(
    site: Site, reader: Headers, parameters: dict[str, str], status: int, slug: str
) -> None:
    assert is_problem(await site.client.get(LIST, headers=reader, params=parameters), status, slug)


async def test_since_takes_a_day(site: Site, reader: Headers) -> None:
    today = site.clock().date()
    for day, some in ((today, True), (today + timedelta(days=1), False)):
        answer = await site.client.get(LIST, headers=reader, params={"since": day.isoformat()})
        assert bool(answer.json()["suppressions"]) is some


async def test_the_scope_is_that_of_questions(site: Site) -> None:
    answer = await site.client.get(LIST, headers=await site.token("write", "admin"))
    assert is_problem(answer, 403, "missing-scope")
