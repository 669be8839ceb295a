"""What users do: the log records it leaves, the callbacks it causes."""

import asyncio
import base64
import hashlib
import hmac
from typing import Any

import httpx
import pytest

from service.kahuna.simulator import SimulatorConfig
from service.kahuna.simulator.faults import Faults
from service.kahuna.simulator.webhooks import Webhooks
from service.settings import Secret

from . import speaking
from .speaking import NOW, TODAY, Vendor, checksum

EMAIL = 1002
EMAIL_HOOK, SMS_HOOK = "https://us.test/api/email_callback", "https://us.test/api/sms_callback"
HOOKS = {"email_webhook": EMAIL_HOOK, "sms_webhook": SMS_HOOK}


def signature(values: list[str]) -> str:
    """As the contract's section 14 says it."""
    joined = "".join(sorted(values)).encode()
    return base64.b64encode(hmac.new(b"demo-api-key", joined, hashlib.sha1).digest()).decode()


async def slots(vendor: Vendor, **query: str) -> list[Any]:
    found: list[Any] = (await vendor.web.get("/simulator/state", params=query)).json()["slots"]
    return found


def test_the_signature_is_the_documented_one() -> None:
    assert signature(["15550100002", "15550100001"]) == "A2kRfFpSyQiU7XbPnqRAu/53r24="


# One act and all that follows.


@pytest.mark.parametrize("word", ["unsub", "hard_bounce", "soft_bounce", "spam"])
async def test_an_email_act_is_kept_logged_and_told(word: str) -> None:
    async with speaking.vendor(**HOOKS) as vendor:
        await vendor.meet("bob", "ann")
        await vendor.populate(EMAIL, "ann")
        vendor.clock.seconds += 60
        said = await vendor.act(word, "bob", "ann")
        entries = [
            {"reason": word, "email": f"{name}@example.com", "timestamp": int(NOW) + 60} for name in ("bob", "ann")
        ]
        assert vendor.receiver.bodies == [entries]
        [request] = vendor.receiver.requests
        assert (request.method, str(request.url)) == ("POST", EMAIL_HOOK)
        assert request.headers["X-Kahuna-Signature"] == signature(["bob@example.com", "ann@example.com"])
        assert request.headers["Content-Type"] == "application/json"
        assert [slot["word"] for slot in await slots(vendor, env="s")] == [word, word]
        assert await slots(vendor, env="p") == []
        acted = [record for record in await vendor.logs("email") if record["action"] == word]
        assert [(record["email"], record.get("campaign_id")) for record in acted] == [
            ("bob@example.com", None),
            ("ann@example.com", EMAIL),
        ]
        delivery = {"env": "s", "channel": "email", "to": EMAIL_HOOK, "entries": 2}
        assert said == {
            "acted": 2,
            "skipped": [],
            "deliveries": [delivery | {"attempts": 1, "status": 200, "error": None}],
            "undelivered": 0,
        }


async def test_a_stop_and_a_start_by_text() -> None:
    async with speaking.vendor(**HOOKS) as vendor:
        await vendor.control("acts", {"act": "stop", "addresses": ["+15550100001"], "env": "p", "timestamp": 5})
        await vendor.control("acts", {"act": "start", "addresses": ["+15550100001"], "env": "p"})
        assert vendor.receiver.bodies == [
            [{"number": "15550100001", "timestamp": 5}],
            [{"number": "15550100001", "timestamp": int(NOW), "opt-in": True}],
        ]
        assert vendor.receiver.requests[0].headers["X-Kahuna-Signature"] == signature(["15550100001"])
        assert [slot["action"] for slot in await slots(vendor, env="p")] == ["opt-in"]
        await vendor.control("acts", {"act": "stop", "addresses": ["15550100001"], "env": "p"})
        assert (await vendor.web.get("/simulator/users?env=p")).json()["count"] == 1


async def test_nobody_opens_what_was_never_sent(vendor: Vendor) -> None:
    await vendor.meet("ann", "bob")
    await vendor.populate(EMAIL, "ann")
    vendor.clock.seconds += 60
    body = {"act": "opened", "users": [{"username": "ann"}, {"username": "bob"}, {"username": "eve"}]}
    said = await vendor.control("acts", body)
    assert said["acted"] == 1
    assert [one["username"] for one in said["skipped"]] == ["bob", "eve"]
    assert vendor.receiver.requests == []


async def test_who_unsubscribed_gets_no_more_mail(vendor: Vendor) -> None:
    await vendor.meet("ann")
    await vendor.act("unsub", "ann")
    await vendor.populate(EMAIL, "ann")
    vendor.clock.seconds += 60
    assert [record["action"] for record in await vendor.logs("email")] == ["unsub"]


async def test_who_uninstalled_gets_no_push(vendor: Vendor) -> None:
    await vendor.meet("ann")
    push = {"push_array": [{"target": {"username": "ann"}, "notification": {"alert": "!"}}]}
    await vendor.call("push", push)
    await vendor.act("more engaged", "ann")
    await vendor.act("uninstalled", "ann")
    assert (await vendor.call("push", push))[0]["error_code"] == 409
    records = await vendor.logs("push")
    assert [record["action"] for record in records] == ["push", "more engaged", "uninstalled"]
    assert "campaign_id" not in records[1]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"act": "sneezed"},
        {"act": "unsub", "campaign_id": 9},
        {"act": "unsub", "env": "x"},
        {"act": "unsub", "x": 1},
    ],
)
async def test_an_act_that_means_nothing_is_refused(vendor: Vendor, body: dict[str, Any]) -> None:
    assert (await vendor.web.post("/simulator/acts", json=body)).status_code == 400
    assert (await vendor.web.post("/simulator/acts/share", json=body | {"share": 2})).status_code == 400


async def test_a_share_of_the_users_acts() -> None:
    async with speaking.vendor(**HOOKS, callback_entries=8) as vendor:
        await vendor.control("seed", {"users": 100})
        said = await vendor.control("acts/share", {"act": "unsub", "share": 0.2})
        assert said["acted"] == 20
        assert [len(body) for body in vendor.receiver.bodies] == [8, 8, 4]
        told = [entry["email"] for body in vendor.receiver.bodies for entry in body]
        assert len(set(told)) == 20
        assert {slot["address"] for slot in await slots(vendor)} == set(told)


# Delivery.


async def test_a_webhook_can_be_registered_and_taken_back(vendor: Vendor) -> None:
    await vendor.meet("ann")
    await vendor.act("unsub", "ann")
    await vendor.control("webhooks", {"channel": "email", "url": EMAIL_HOOK, "env": "s"}, "PUT")
    await vendor.act("spam", "ann")
    await vendor.control("acts", {"act": "spam", "addresses": ["ann@example.com"], "env": "p"})
    assert (await vendor.web.get("/simulator/webhooks")).json() == {
        "webhooks": [{"env": "s", "channel": "email", "url": EMAIL_HOOK}]
    }
    await vendor.control("webhooks", {"channel": "email", "url": None}, "PUT")
    await vendor.act("hard_bounce", "ann")
    assert [body[0]["reason"] for body in vendor.receiver.bodies] == ["spam"]


@pytest.mark.parametrize("url", ["us.test", "ftp://us.test", "https://us.test:port", "https://", 5])
async def test_what_is_no_url_is_not_registered(vendor: Vendor, url: object) -> None:
    answer = await vendor.web.put("/simulator/webhooks", json={"channel": "email", "url": url})
    assert answer.status_code == 400


async def test_what_is_refused_is_delivered_again() -> None:
    async with speaking.vendor(**HOOKS) as vendor:
        vendor.receiver.answers = [503, httpx.ConnectError("refused"), 204]
        [delivery] = (await vendor.control("acts", {"act": "unsub", "addresses": ["a@b.c"]}))["deliveries"]
        assert (delivery["attempts"], delivery["status"], delivery["error"]) == (3, 204, None)
        assert len({request.content for request in vendor.receiver.requests}) == 1


async def test_what_nobody_takes_waits_to_be_delivered() -> None:
    async with speaking.vendor(**HOOKS, callback_attempts=2) as vendor:
        vendor.receiver.answers = [500, httpx.ReadTimeout("slow")]
        said = await vendor.control("acts", {"act": "unsub", "addresses": ["a@b.c"]})
        assert (said["undelivered"], said["deliveries"][0]["error"]) == (1, "ReadTimeout")
        waiting = (await vendor.web.get("/simulator/deliveries")).json()["undelivered"]
        assert waiting == said["deliveries"]
        said = await vendor.control("deliveries", {})
        assert (said["undelivered"], said["deliveries"][0]["status"]) == (0, 200)
        assert len(vendor.receiver.requests) == 3


async def test_what_waits_goes_to_whoever_is_registered_by_then() -> None:
    async with speaking.vendor(**HOOKS) as vendor:
        await vendor.control("acts", {"act": "unsub", "addresses": ["a@b.c"], "deliver": False})
        await vendor.control("webhooks", {"channel": "email", "url": None}, "PUT")
        said = await vendor.control("deliveries", {})
        assert (said["undelivered"], said["deliveries"][0]["error"]) == (1, "NobodyRegistered")
        await vendor.control("webhooks", {"channel": "email", "url": "https://moved.test/"}, "PUT")
        [delivery] = (await vendor.control("deliveries", {}))["deliveries"]
        assert (delivery["to"], delivery["status"]) == ("https://moved.test/", 200)
        assert [str(request.url) for request in vendor.receiver.requests] == ["https://moved.test/"]


async def test_a_callback_goes_to_whoever_is_registered_unless_it_says_otherwise(vendor: Vendor) -> None:
    order = {"channel": "sms", "entries": [{"number": "15550100001"}], "remember": True}
    refused = await vendor.web.post("/simulator/callbacks", json=order)
    assert (refused.status_code, await slots(vendor)) == (400, [])
    await vendor.control("webhooks", {"channel": "sms", "url": SMS_HOOK}, "PUT")
    await vendor.control("callbacks", order)
    await vendor.control("callbacks", order | {"to": EMAIL_HOOK})
    assert [str(request.url) for request in vendor.receiver.requests] == [SMS_HOOK, EMAIL_HOOK]


@pytest.mark.parametrize(
    ("path", "verb", "body"),
    [("acts", "POST", {"act": "unsubscribe"}), ("faults", "PUT", {"api": "emails"}), ("seed", "POST", {"env": "x"})],
)
async def test_a_word_that_is_no_choice_is_answered_with_the_choices(
    vendor: Vendor, path: str, verb: str, body: dict[str, Any]
) -> None:
    answer = await vendor.web.request(verb, f"/simulator/{path}", json=body)
    assert answer.status_code == 400
    assert {"acts": "unsub, hard_bounce, soft_bounce", "faults": "email_sync", "seed": "p, s"}[path] in answer.text


async def test_what_was_being_delivered_is_not_lost_with_whoever_asked_for_it() -> None:
    class Silent(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            await asyncio.Event().wait()
            raise AssertionError(request)

    config = SimulatorConfig(Secret("a"), Secret("b"), email_webhook=EMAIL_HOOK)
    webhooks = Webhooks(config, Faults(), Silent())
    for address in ("a@b.c", "d@e.f"):
        webhooks.queue("s", "email", [{"email": address, "reason": "unsub"}])
    delivery = asyncio.create_task(webhooks.deliver())
    await asyncio.sleep(0.01)
    delivery.cancel()
    await asyncio.gather(delivery, return_exceptions=True)
    assert [callback.entries[0]["email"] for callback in webhooks.pending] == ["a@b.c", "d@e.f"]


async def test_an_address_that_is_no_url_is_shown() -> None:
    async with speaking.vendor(email_webhook="https://us.test:port") as vendor:
        [delivery] = (await vendor.control("acts", {"act": "unsub", "addresses": ["a@b.c"]}))["deliveries"]
        assert (delivery["status"], delivery["error"]) == (None, "InvalidURL")


async def told(vendor: Vendor, *words: str) -> list[str]:
    """Acts whose callbacks are held back, then delivered together; in which order they arrived."""
    for word in words:
        held = await vendor.control("acts", {"act": word, "addresses": ["a@b.c"], "deliver": False})
        assert held["deliveries"] == []
    await vendor.control("deliveries", {})
    return [body[0]["reason"] for body in vendor.receiver.bodies]


async def test_callbacks_can_be_doubled_and_turned_round() -> None:
    async with speaking.vendor(**HOOKS) as vendor:
        await vendor.fail(api="email_webhook", duplicate=True, reorder=True, times=1)
        assert await told(vendor, "unsub", "spam") == ["spam", "spam", "unsub", "unsub"]
        vendor.receiver.requests.clear()
        assert await told(vendor, "unsub", "spam") == ["unsub", "spam"]


async def test_a_callback_can_be_lost_and_the_log_still_knows() -> None:
    async with speaking.vendor(**HOOKS) as vendor:
        await vendor.fail(api="email_webhook", lose=True, times=1)
        assert await told(vendor, "unsub") == []
        assert await told(vendor, "spam") == ["spam"]
        assert (await vendor.control("deliveries", {}))["undelivered"] == 0
        assert [record["action"] for record in await vendor.logs("email", timestamp=TODAY)] == ["unsub", "spam"]
        await vendor.fail(lose=True)
        assert await told(vendor, "hard_bounce") == ["spam"]


async def test_kahuna_may_be_made_to_mail_whom_it_should_not(vendor: Vendor) -> None:
    await vendor.control("acts", {"act": "unsub", "addresses": ["a@b.c"]})
    sent = await vendor.control("acts", {"act": "email", "addresses": ["a@b.c"], "campaign_id": 1002})
    assert sent["acted"] == 1
    last = (await vendor.logs("email", timestamp=TODAY))[-1]
    assert (last["action"], last["email"], last["campaign"]) == ("email", "a@b.c", "Newsletter")


async def test_an_opt_out_is_seen_in_the_profile(vendor: Vendor) -> None:
    for act in ("unsub", "stop", "start"):
        address = "a@b.c" if act == "unsub" else "15550100001"
        await vendor.control("acts", {"act": act, "addresses": [address]})
    mail, number = await vendor.user("email", "a@b.c"), await vendor.user("mobile_number", "15550100001")
    assert mail["user"]["email_opt_out"] is True
    assert "sms_opt_out" not in mail["user"]
    assert number["user"]["sms_opt_out"] is False


async def test_a_fault_of_all_that_says_nothing_of_callbacks_is_not_used_up() -> None:
    async with speaking.vendor(**HOOKS) as vendor:
        await vendor.fail(status=500, times=1)
        assert await told(vendor, "unsub") == ["unsub"]
        assert (await vendor.raw("emailsync", [])).status_code == 500
        await vendor.fail(duplicate=True)
        assert await told(vendor, "spam") == ["unsub", "spam", "spam"]


# Many at once.


async def test_a_deleted_user_leaves_no_gap_to_be_seeded_into(vendor: Vendor) -> None:
    await vendor.control("seed", {"users": 3})
    email = "seeded-s-1@example.com"
    await vendor.call("userdelete", {"target_user": {"email": email}}, KAHUNA_API_CHECKSUM=checksum(email))
    assert await vendor.control("seed", {"users": 3}) == {"users": 5, "records": 0}


async def test_many_users_and_records_can_be_seeded() -> None:
    async with speaking.vendor(email_webhook=EMAIL_HOOK) as vendor:
        categories = ["email", "push", "in_app"]
        body = {"users": 50, "records": 5000, "stops": 10, "categories": categories, "span_seconds": 3600}
        assert await vendor.control("seed", body) == {"users": 50, "records": 5000}
        emails, pushes = await vendor.logs("email"), await vendor.logs("push")
        assert len(emails) + len(pushes) + len(await vendor.logs("in_app")) == 5000
        stamps = [record["timestamp"] for record in emails]
        assert stamps == sorted(stamps)
        stops = [record["email"] for record in emails if record["action"] in ("unsub", "hard_bounce", "spam")]
        assert len(set(stops)) == 10
        assert {slot["address"] for slot in await slots(vendor)} == set(stops)
        assert vendor.receiver.requests == []
        await vendor.control("seed", {"users": 1, "records": 5})
        stamps = [record["timestamp"] for record in await vendor.logs("email")]
        assert stamps == sorted(stamps)


async def test_so_many_of_the_last_are_shown() -> None:
    async with speaking.vendor() as vendor:
        await vendor.control("seed", {"users": 15, "records": 0})
        for limit, shown in ((20, 15), (15, 15), (4, 4), (0, 0)):
            told = (await vendor.web.get("/simulator/users", params={"limit": limit})).json()
            assert (told["count"], len(told["users"])) == (15, shown)
        for wrong in ("-1", "9" * 5000, "²", ""):
            for path in ("users", "requests"):
                assert (await vendor.web.get(f"/simulator/{path}", params={"limit": wrong})).status_code == 400


async def test_what_is_held_says_of_which_environment() -> None:
    async with speaking.vendor() as vendor:
        for env in ("p", "s"):
            await vendor.control("acts", {"act": "unsub", "addresses": ["a@b.c"], "env": env})
        assert [slot["env"] for slot in await slots(vendor)] == ["p", "s"]
