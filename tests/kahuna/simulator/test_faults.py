"""Every API failing in every way, and the same seed giving the same world."""

import asyncio
import json
from typing import Any

import httpx
import pytest

from . import speaking
from .speaking import ANN, AUTH, TODAY, Vendor, checksum

LOGS = {"timestamp": TODAY}
SUMMED = {"KAHUNA_API_CHECKSUM": checksum("ann@example.com")}
CAMPAIGN = {"campaign_id": 1002, "cred_type": "email"}
# One good request for each API: path, query, body.
GOOD: dict[str, tuple[str, str, Any]] = {
    "user_attributes": ("userattributes", "s", {"user_attributes_array": [{"target": ANN, "attributes": {"a": "b"}}]}),
    "adaptive_campaign": ("campaign/populate", "s", {"campaign_config": CAMPAIGN, "recipient_list": [{"k_to": ["a"]}]}),
    "push": ("push", "s", {"push_array": [{"target": ANN, "notification": {"alert": "!"}}]}),
    "email_sync": ("emailsync", "s", [{"reason": "unsub", "email": "ann@example.com"}]),
    "sms_sync": ("smssync", "s", [{"number": "15550100001"}]),
    "user_delete": ("userdelete", "s", {"target_user": ANN}),
    "flex": ("campaign/flex", "s", {"campaign_config": {"campaign_id": 2001}, "event_list": [{"event": "x"}]}),
    "user_campaign": ("usercampaign", "p", {"campaign_name": "Newsletter"}),
    "user_info": ("userinfo", "s", {"target_user": ANN}),
    "user_merge_logs": ("kahunalogs", "s", LOGS | {"categories_to_return": ["user_merge", "push"]}),
    "push_logs": ("kahunalogs", "s", LOGS | {"categories_to_return": ["push", "email"]}),
    "in_app_logs": ("kahunalogs", "s", LOGS | {"categories_to_return": ["inapp"]}),
    "email_logs": ("kahunalogs", "s", LOGS | {"categories_to_return": ["email"]}),
    "campaign_statistics": ("campaignstats", "s", {}),
}
APIS = ["server", "job_status", *GOOD]


async def ask(vendor: Vendor, api: str) -> httpx.Response:
    """A good request to this API."""
    if api == "server":
        return await vendor.web.post("/log", data={"key": AUTH[0], "env": "s", "dev_id": "d", "event": "start"})
    if api == "job_status":
        return await vendor.web.get(f"/api/campaign/populate/{await vendor.populate(1002, 'ann')}?env=s")
    path, env, body = GOOD[api]
    return await vendor.raw(path, body, env, **SUMMED)


@pytest.mark.parametrize("api", APIS)
async def test_each_api_fails_by_its_own_name(vendor: Vendor, api: str) -> None:
    await vendor.meet("ann")
    assert (await ask(vendor, api)).status_code == 200
    await vendor.meet("ann")
    await vendor.fail(api=api, status=503, retry_after=7, times=1)
    for other in APIS:
        # The one would leave nobody to ask about; the other begins with the request of a job.
        if other not in (api, "user_delete", "job_status"):
            assert (await ask(vendor, other)).status_code == 200
    answer = await ask(vendor, api)
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "7")
    assert answer.json() == {"success": False, "error_code": 503, "error": "Failing on request"}
    assert (await ask(vendor, api)).status_code == 200
    logged = (await vendor.web.get("/simulator/requests?limit=2")).json()["requests"]
    named = [entry for entry in logged if entry["api"] == api]
    assert [entry["status"] for entry in named][-1] == 200


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("form", ["truncated", "html", "empty", "null", "not_utf8", "wrong_types", "wrong_shape"])
async def test_each_api_can_answer_nonsense(vendor: Vendor, api: str, form: str) -> None:
    await vendor.meet("ann")
    right = (await ask(vendor, api)).json()
    await vendor.meet("ann")
    await vendor.fail(api=api, body=form)
    answer = await ask(vendor, api)
    assert answer.status_code == 200
    if form in ("truncated", "html", "empty", "not_utf8"):
        with pytest.raises(ValueError):  # noqa: PT011 - UnicodeDecodeError and JSONDecodeError
            json.loads(answer.content)
    elif form == "null":
        assert answer.json() is None
    elif form == "wrong_shape":
        assert type(answer.json()) is not type(right)
    else:
        assert answer.json() != right
    assert ("text/html" in answer.headers["Content-Type"]) == (form == "html")


async def test_a_status_may_come_with_nonsense(vendor: Vendor) -> None:
    await vendor.fail(status=502, body="html", times=1)
    answer = await ask(vendor, "email_sync")
    assert (answer.status_code, answer.text[:6]) == (502, "<html>")


async def held(vendor: Vendor) -> int:
    return len((await vendor.web.get("/simulator/state")).json()["slots"])


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("fault", ["drop_request", "drop_answer"])
async def test_each_api_can_cut_the_connection(vendor: Vendor, api: str, fault: str) -> None:
    await vendor.meet("ann")
    await vendor.fail(api=api, times=1, **{fault: True})
    with pytest.raises(httpx.RemoteProtocolError):
        await ask(vendor, api)
    logged = (await vendor.web.get("/simulator/requests")).json()["requests"]
    assert [entry["status"] for entry in logged if entry["api"] == api][-1] is None


async def test_a_cut_request_did_nothing_and_a_cut_answer_everything(vendor: Vendor) -> None:
    for fault, slots in (("drop_request", 0), ("drop_answer", 1)):
        await vendor.fail(times=1, **{fault: True})
        with pytest.raises(httpx.RemoteProtocolError):
            await ask(vendor, "email_sync")
        assert await held(vendor) == slots


@pytest.mark.parametrize("api", APIS)
async def test_each_api_can_be_slow(vendor: Vendor, api: str) -> None:
    await vendor.meet("ann")
    await vendor.fail(api=api, latency_seconds=60)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(ask(vendor, api), 0.02)


@pytest.mark.parametrize(
    ("path", "name", "more"),
    [
        ("userattributes", "user_attributes_array", {"attributes": {"a": "b"}}),
        ("push", "push_array", {"notification": {"alert": "!"}}),
    ],
)
async def test_items_are_refused_by_name_and_by_count(vendor: Vendor, path: str, name: str, more: Any) -> None:
    await vendor.meet("ann", "bob", "carol")
    body = {name: [{"target": {"username": who}} | more for who in ("ann", "bob", "carol")]}
    for fault, codes in (
        ({"reject": ["BOB"]}, [None, 400, None]),
        ({"reject": ["bob"], "reject_count": 1}, [400, 400, None]),
        ({"reject_count": 9}, [400, 400, 400]),
    ):
        await vendor.fail(times=1, **fault)
        items = await vendor.call(path, body)
        assert [item.get("error_code") for item in items] == codes


@pytest.mark.parametrize(
    ("api", "path", "env", "body"),
    [
        (
            "push_logs",
            "kahunalogs",
            "s",
            {"timestamp": TODAY, "number_of_records": 1, "categories_to_return": ["push"]},
        ),
        ("user_campaign", "usercampaign", "p", {"campaign_name": "Welcome"}),
        ("campaign_statistics", "campaignstats", "p", {}),
    ],
)
async def test_a_cursor_expires_on_request(api: str, path: str, env: str, body: dict[str, Any]) -> None:
    async with speaking.vendor(page_size=1) as vendor:
        await vendor.meet("ann", "bob", env=env)
        await vendor.populate(1001, "ann", "bob", env=env)
        vendor.clock.seconds += 60
        answer = await vendor.call(path, body, env)
        assert answer["more_records"] is True
        following = {name: body[name] for name in ("categories_to_return",) if name in body} | {
            "cursor": answer["cursor"]
        }
        await vendor.fail(api=api, expire_cursor=True, times=1)
        refused = await vendor.raw(path, following, env)
        assert (refused.status_code, refused.json()["error"]) == (400, "Cursor expired")
        assert (await vendor.raw(path, following, env)).status_code == 200


async def test_a_logs_request_that_cannot_be_read_meets_the_fault_of_push(vendor: Vendor) -> None:
    await vendor.fail(api="push_logs", status=503)
    for body in (b"{", b"{}", b'{"categories_to_return": ["fax"]}', b'{"categories_to_return": []}'):
        assert (await vendor.web.post("/api/kahunalogs?env=s", content=body)).status_code == 503


# Determinism.


async def story(seed: int) -> list[bytes]:
    """All answers of the same requests."""
    answers: list[bytes] = []

    async def keep(response: httpx.Response) -> None:
        answers.append(await response.aread())

    async with speaking.vendor(seed=seed, page_size=1, email_webhook="https://us.test/x") as vendor:
        vendor.web.event_hooks["response"].append(keep)
        await vendor.control("seed", {"users": 20, "records": 200, "stops": 3, "categories": ["email", "push"]})
        await vendor.meet("ann", "bob")
        for api in APIS:
            await ask(vendor, api)
            vendor.clock.seconds += 7
        await vendor.control("acts/share", {"act": "unsub", "share": 0.3})
        await vendor.control("acts/share", {"act": "clicked", "share": 0.5})
        await vendor.logs("email", size=50)
        await ask(vendor, "campaign_statistics")
        answers.extend(request.content for request in vendor.receiver.requests)
    return answers


async def test_the_same_seed_and_clock_give_the_same_answers() -> None:
    first, second, other = await story(1), await story(1), await story(2)
    assert first == second
    assert first != other
