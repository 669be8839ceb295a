"""The APIs that make Kahuna send, spoken to from the contract: Adaptive Campaign, Job Status, Flex, Push."""

import asyncio
from typing import Any

import pytest

from . import speaking
from .speaking import ANN, NOW, TODAY, Vendor

PUSH, EMAIL, SMS, IN_APP, TRIGGER = 1001, 1002, 1003, 1004, 2001


async def actions(vendor: Vendor, category: str) -> list[str]:
    return [record["action"] for record in await vendor.logs(category)]


# Adaptive Campaign and Job Status.


async def test_a_job_moves_with_the_clock(vendor: Vendor) -> None:
    await vendor.meet("ann", "bob", "carol", "dan")
    job = await vendor.populate(EMAIL, "ann", "bob", "carol", "nobody", "dan")
    seen = []
    for _ in range(4):
        status = await vendor.job(job)
        seen.append((status["status"], status["processed"], len(status["errors"])))
        vendor.clock.seconds += 5
    assert seen == [("pending", 0, 0), ("running", 0, 0), ("running", 2, 0), ("complete", 5, 1)]
    status = await vendor.job(job)
    assert (status["success"], status["job_id"], status["total"]) == (True, job, 5)
    assert status["errors"] == [
        {"k_to": ["nobody"], "success": False, "error_code": 404, "error": "User not found"},
    ]
    assert await actions(vendor, "email") == ["email", "delivered"] * 4


async def test_a_job_that_adds_nobody_has_failed(vendor: Vendor) -> None:
    job = await vendor.populate(EMAIL, "nobody")
    vendor.clock.seconds += 60
    assert (await vendor.job(job))["status"] == "failed"


async def test_a_new_user_may_be_unknown_for_a_while() -> None:
    async with speaking.vendor(ingestion_seconds=60) as vendor:
        await vendor.meet("ann")
        early = await vendor.populate(EMAIL, "ann")
        vendor.clock.seconds += 50
        late = await vendor.populate(EMAIL, "ann")
        vendor.clock.seconds += 50
        assert [(await vendor.job(job))["status"] for job in (early, late)] == ["failed", "complete"]


@pytest.mark.parametrize(
    ("campaign_id", "category", "left"),
    [
        (PUSH, "push", ["push"]),
        (EMAIL, "email", ["email", "delivered"]),
        (IN_APP, "in_app", ["ia_sent", "ia_delivered"]),
        (IN_APP, "inapp", ["ia_sent", "ia_delivered"]),
    ],
)
async def test_each_channel_leaves_its_records(
    vendor: Vendor, campaign_id: int, category: str, left: list[str]
) -> None:
    await vendor.meet("ann")
    await vendor.populate(campaign_id, "ann")
    vendor.clock.seconds += 60
    assert await actions(vendor, category) == left


async def test_a_push_record_is_as_in_the_recorded_sample(vendor: Vendor) -> None:
    await vendor.meet("ann")
    await vendor.populate(PUSH, "ann")
    vendor.clock.seconds += 60
    [record] = await vendor.logs("push")
    assert set(record) == {
        *("dev_id", "user_id", "campaign", "campaign_id", "timestamp", "action", "action_category"),
        *("action_detail", "push_token", "credentials", "message", "os"),
    }
    assert (record["dev_id"], record["os"], record["campaign_id"]) == ("dev-ann", "ios", PUSH)
    assert record["timestamp"] == "2017-07-14 02:40:15.500000"
    assert "email:ann@example.com" in record["credentials"]


@pytest.mark.parametrize(
    ("path", "entry", "campaign_id", "category"),
    [
        ("emailsync", {"reason": "unsub", "email": "ANN@example.com "}, EMAIL, "email"),
        ("emailsync", {"reason": "blocked", "email": "ann@example.com"}, EMAIL, "email"),
    ],
)
async def test_who_was_stopped_gets_nothing(
    vendor: Vendor, path: str, entry: dict[str, Any], campaign_id: int, category: str
) -> None:
    await vendor.meet("ann", "bob")
    await vendor.call(path, [entry])
    job = await vendor.populate(campaign_id, "ann", "bob")
    vendor.clock.seconds += 60
    assert (await vendor.job(job))["status"] == "complete"
    assert {record["email"] for record in await vendor.logs(category)} == {"bob@example.com"}


async def test_one_soft_bounce_stops_nobody(vendor: Vendor) -> None:
    await vendor.meet("ann")
    await vendor.call("emailsync", [{"reason": "soft_bounce", "email": "ann@example.com"}])
    await vendor.populate(EMAIL, "ann")
    vendor.clock.seconds += 60
    assert await actions(vendor, "email") == ["email", "delivered"]


async def test_a_stopped_number_is_texted_again_after_its_opt_in(vendor: Vendor) -> None:
    await vendor.log({"username": "ann", "mobile_number": "+15550100001"}, env="p")
    query = {"campaign_name": "Sale by text"}
    for entry, texts in [({}, 0), ({"opt-in": True}, 1)]:
        await vendor.call("smssync", [{"number": "15550100001"} | entry], "p")
        await vendor.populate(SMS, "ann", env="p")
        vendor.clock.seconds += 60
        records = (await vendor.call("usercampaign", query, "p"))["records"]
        assert len(records) == texts


async def test_a_recipient_may_wait_for_its_time(vendor: Vendor) -> None:
    await vendor.meet("ann", "bob")
    later = int(NOW) + 3600
    body = {
        "campaign_config": {"campaign_id": str(EMAIL), "cred_type": "email"},
        "default_params": {"k_send_ts": later, "promo": "X"},
        "recipient_list": [
            {"k_to": ["no@example.com", "ann@example.com"]},
            {"k_to": ["bob@example.com"], "k_send_ts": 5},
        ],
    }
    job = (await vendor.call("campaign/populate", body))["job_id"]
    vendor.clock.seconds += 60
    assert (await vendor.job(job))["status"] == "complete"
    assert len(await vendor.logs("email")) == 2
    vendor.clock.seconds += 3600
    assert [record["timestamp"][11:19] for record in await vendor.logs("email")][-1] == "03:40:00"


@pytest.mark.parametrize(
    "change",
    [
        {"campaign_config": {"campaign_id": 9, "cred_type": "email"}},
        {"campaign_config": {"campaign_id": TRIGGER, "cred_type": "email"}},
        {"campaign_config": {"campaign_id": "x", "cred_type": "email"}},
        {"campaign_config": {"campaign_id": EMAIL, "cred_type": "mobile_number"}},
        {"campaign_config": {"campaign_id": EMAIL}},
        {"recipient_list": []},
        {"recipient_list": [{"k_to": []}]},
        {"recipient_list": [{"promo": "X"}]},
        {"recipient_list": [{"k_to": "ann@example.com"}]},
    ],
)
async def test_bad_options_are_refused(vendor: Vendor, change: dict[str, Any]) -> None:
    body = {
        "campaign_config": {"campaign_id": EMAIL, "cred_type": "email"},
        "recipient_list": [{"k_to": ["ann@example.com"]}],
    }
    assert (await vendor.raw("campaign/populate", body)).status_code == 200
    assert (await vendor.raw("campaign/populate", body | change)).status_code == 400


async def test_job_status_is_a_get_of_a_known_job_of_the_same_environment(vendor: Vendor) -> None:
    job = await vendor.populate(EMAIL, "ann")
    path = f"/api/campaign/populate/{job}"
    for method, target in [("POST", path + "?env=s"), ("GET", path + "?env=p"), ("GET", path + "x?env=s")]:
        answer = await vendor.web.request(method, target)
        assert (answer.status_code, answer.json()["success"]) == (400, False)
    assert (await vendor.web.get(path + "?env=s", auth=("x", "y"))).status_code == 401


async def test_polling_may_be_judged_strictly() -> None:
    async with speaking.vendor(strict_polling=True) as vendor:
        path = f"/api/campaign/populate/{await vendor.populate(EMAIL, 'ann')}?env=s"
        seen = []
        for wait in (0, 29, 1):
            vendor.clock.seconds += wait
            seen.append((await vendor.web.get(path)).status_code)
        assert seen == [200, 429, 200]


@pytest.mark.parametrize(("path", "api"), [("campaign/populate", "adaptive_campaign"), ("campaign/flex", "flex")])
async def test_ten_requests_at_once(vendor: Vendor, path: str, api: str) -> None:
    await vendor.fail(api=api, latency_seconds=0.05)
    body = {
        "campaign_config": {"campaign_id": TRIGGER if api == "flex" else EMAIL, "cred_type": "email"},
        "recipient_list": [{"k_to": ["ann@example.com"]}],
        "event_list": [{"event": "drop"}],
    }
    answers = await asyncio.gather(*(vendor.raw(path, body) for _ in range(12)))
    assert sorted(answer.status_code for answer in answers) == [200] * 10 + [429] * 2
    assert (await vendor.raw(path, body)).status_code == 200


# Flex.


async def test_an_external_event_reaches_those_who_had_it(vendor: Vendor) -> None:
    await vendor.meet("ann", "bob")
    await vendor.log({"username": "ann"}, "dev-ann", event="watched-42")
    body = {"campaign_config": {"campaign_id": TRIGGER}, "event_list": [{"event": "watched-42", "params": {}}]}
    job = (await vendor.call("campaign/flex", body))["job_id"]
    vendor.clock.seconds += 60
    assert (await vendor.job(job))["total"] == 1
    assert {record["email"] for record in await vendor.logs("email")} == {"ann@example.com"}


@pytest.mark.parametrize("campaign_id", [EMAIL, 9, str(TRIGGER), None, 1.5])
async def test_flex_wants_the_integer_of_an_external_trigger(vendor: Vendor, campaign_id: object) -> None:
    body = {"campaign_config": {"campaign_id": campaign_id}, "event_list": [{"event": "x"}]}
    assert (await vendor.raw("campaign/flex", body)).status_code == 400


async def test_flex_wants_events(vendor: Vendor) -> None:
    assert (await vendor.raw("campaign/flex", {"campaign_config": {"campaign_id": TRIGGER}})).status_code == 400


# Push.


def a_push(target: object, **config: object) -> dict[str, object]:
    return {"target": target, "notification": {"alert": "Hello"}, "config": config}


async def test_pushes_have_an_item_each(vendor: Vendor) -> None:
    await vendor.meet("ann")
    await vendor.log({"username": "bob"}, "dev-bob")
    pushes = [a_push({"username": name}) for name in ("bob", "ann", "eve")]
    assert await vendor.call("push", {"push_array": pushes}) == [
        {"success": False, "error_code": 409, "error": "User not enabled for push"},
        {"success": True},
        {"success": False, "error_code": 404, "error": "User not found"},
    ]
    [record] = await vendor.logs("push")
    assert (record["campaign"], record["action"]) == ("Push API", "push")


async def test_a_lone_push_may_be_refused_by_status() -> None:
    async with speaking.vendor(lone_push_by_status=True) as vendor:
        answer = await vendor.raw("push", {"push_array": [a_push(ANN)]})
        assert (answer.status_code, answer.json()["error"]) == (404, "User not found")
        assert (await vendor.raw("push", {"push_array": [a_push(ANN)] * 2})).status_code == 200


async def test_the_cooldown_holds_a_push_back(vendor: Vendor) -> None:
    await vendor.meet("ann")
    for config in ({}, {}, {"observe_rate_limiting": False}):
        await vendor.call("push", {"push_array": [a_push(ANN, **config)]})
    vendor.clock.seconds += 7200
    body = {"push_array": [a_push(ANN)], "default_config": {"campaign_name": "Mine"}}
    await vendor.call("push", body)
    records = await vendor.logs("push")
    assert [record["action"] for record in records] == ["push", "rate_limited", "push", "push"]
    assert records[-1]["campaign"] == "Mine"


async def test_a_push_may_wait_for_its_time_of_the_next_seven_days(vendor: Vendor) -> None:
    await vendor.meet("ann")
    week = 7 * 24 * 3600
    pushes = [a_push(ANN, start_time=int(NOW) + 60), a_push(ANN, start_time=int(NOW) + week + 1)]
    items = await vendor.call("push", {"push_array": pushes})
    assert [item.get("error_code") for item in items] == [None, 400]
    assert await vendor.logs("push") == []
    vendor.clock.seconds += 60
    assert len(await vendor.logs("push")) == 1


async def test_no_more_than_a_hundred_pushes(vendor: Vendor) -> None:
    assert (await vendor.raw("push", {"push_array": [a_push(ANN)] * 101})).status_code == 400
    assert (await vendor.raw("push", {"push_array": []})).status_code == 400
    assert (await vendor.call("push", {"push_array": [a_push(ANN, optimal_hours=25)]}))[0]["error_code"] == 400


# Campaigns of one's own.


async def test_a_campaign_can_be_made(vendor: Vendor) -> None:
    await vendor.meet("ann")
    made = await vendor.control("campaigns", {"name": "Mine", "channel": "push"})
    await vendor.populate(made["campaign_id"], "ann")
    vendor.clock.seconds += 60
    assert [record["campaign"] for record in await vendor.logs("push", timestamp=TODAY)] == ["Mine"]
    listed = (await vendor.web.get("/simulator/campaigns?env=s")).json()["campaigns"]
    assert [one["campaign_id"] for one in listed if one["name"] == "Mine"] == [made["campaign_id"]]
    assert (await vendor.web.post("/simulator/campaigns", json={"name": "Mine", "channel": "fax"})).status_code == 400
