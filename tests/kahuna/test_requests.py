"""What each API is sent, byte for byte as a server sees it, and what its answer becomes."""

from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from enum import StrEnum
from hashlib import md5
from types import MappingProxyType
from typing import Any
from urllib.parse import parse_qsl
from uuid import UUID

import pytest

from service import kahuna
from service.kahuna import KahunaClient
from service.kahuna.calling import checksum
from tests.kahuna.listening import API_KEY, SECRET_KEY, Clock, Seen, listening, raw, said

BASIC = f"Basic {b64encode(f'{SECRET_KEY}:{API_KEY}'.encode()).decode()}"
EMPTY = {"more_records": False, "cursor": ""}
ANN = {"email": "änn@example.com"}


async def all_of(pages: kahuna.Pages[Any]) -> list[Any]:
    return [record async for record in pages]


@dataclass(frozen=True)
class Case:
    """One call: what is to be on the wire, and what comes of the answer."""

    name: str
    call: Callable[[KahunaClient], Awaitable[Any]]
    line: str
    body: str
    answer: Any
    result: Any
    headers: tuple[tuple[str, str], ...] = ()


SENDING = [
    Case(
        "user_attributes",
        lambda k: k.user_attributes(
            [
                kahuna.UserAttributes(ANN, {"first_name": "Änn", "visits": "5"}),
                kahuna.UserAttributes({"user_id": "7"}, {"old": None}),
            ]
        ),
        "POST /api/userattributes?env=p HTTP/1.1",
        '{"user_attributes_array":['
        '{"target":{"email":"änn@example.com"},"attributes":{"first_name":"Änn","visits":"5"}},'
        '{"target":{"user_id":"7"},"attributes":{"old":null}}]}',
        [{"success": True}, {"success": False, "error_code": 404, "error": "User not found", "more": 1}],
        (
            kahuna.Outcome(success=True),
            kahuna.Outcome(success=False, error_code=404, error="User not found", extra={"more": 1}),
        ),
    ),
    Case(
        "adaptive_campaign",
        lambda k: k.adaptive_campaign(
            kahuna.CampaignConfig(1234, "email"),
            [kahuna.Recipient(["a@example.com"], {"promo": "Y2"})],
            default_params={"promo": "é"},
            start=1500000000,
        ),
        "POST /api/campaign/populate?env=p HTTP/1.1",
        '{"campaign_config":{"campaign_id":1234,"cred_type":"email","target_global_control":false,'
        '"observe_rate_limiting":false},"default_params":{"promo":"é","k_send_ts":1500000000},'
        '"recipient_list":[{"promo":"Y2","k_to":["a@example.com"]}]}',
        {"success": True, "job_id": 77, "queue": "slow"},
        kahuna.AdaptiveAnswer(job_id="77", success=True, extra={"queue": "slow"}),
    ),
    Case(
        "push",
        lambda k: k.push(
            [
                kahuna.PushMessage(ANN, "Grüße", params={"to": "shop"}, config=kahuna.PushConfig(optimal_hours=3)),
                kahuna.PushMessage({"user_id": "7"}, "Hi", notification={"sound": "x"}),
            ],
            default_params={"a": "b"},
            default_config=kahuna.PushConfig(start_time=1500000000, campaign_name="spring"),
        ),
        "POST /api/push?env=p HTTP/1.1",
        '{"push_array":[{"target":{"email":"änn@example.com"},"notification":{"alert":"Grüße"},"params":{"to":"shop"},'
        '"config":{"optimal_hours":3}},{"target":{"user_id":"7"},"notification":{"alert":"Hi","sound":"x"}}],'
        '"default_params":{"a":"b"},"default_config":{"start_time":1500000000,"campaign_name":"spring"}}',
        [{"success": True}, {"success": False, "error_code": 409}],
        (kahuna.Outcome(success=True), kahuna.Outcome(success=False, error_code=409)),
    ),
    Case(
        "email_sync",
        lambda k: k.email_sync(
            [
                kahuna.EmailSyncEntry("unsub", "ann@example.com", 1500000000),
                kahuna.EmailSyncEntry("hard_bounce", "böb@example.com"),
            ]
        ),
        "POST /api/emailsync?env=p HTTP/1.1",
        '[{"reason":"unsub","email":"ann@example.com","timestamp":1500000000},'
        '{"reason":"hard_bounce","email":"böb@example.com"}]',
        {"accepted": 1, "rejected": 1, "errors": ["no"]},
        kahuna.SyncAnswer(1, 1, ["no"]),
    ),
    Case(
        "sms_sync",
        lambda k: k.sms_sync(
            [kahuna.SmsSyncEntry("15550100001", 1500000000, opt_in=True), kahuna.SmsSyncEntry("15550100002")]
        ),
        "POST /api/smssync?env=p HTTP/1.1",
        '[{"number":"15550100001","timestamp":1500000000,"opt-in":true},{"number":"15550100002"}]',
        {"accepted": 2, "rejected": 0},
        kahuna.SyncAnswer(2, 0),
    ),
    Case(
        "flex",
        lambda k: k.flex(
            kahuna.FlexConfig(9, 1500000000), [kahuna.FlexEvent("sëlf", {"x": 1})], default_params={"y": 2}
        ),
        "POST /api/campaign/flex?env=p HTTP/1.1",
        '{"campaign_config":{"campaign_id":9,"k_send_ts":1500000000},"event_list":[{"event":"sëlf","params":{"x":1}}],'
        '"default_params":{"y":2}}',
        {"success": True},
        kahuna.FlexAnswer(success=True),
    ),
    Case(
        "user_delete",
        lambda k: k.user_delete("email", "änn@example.com"),
        "POST /api/userdelete?env=p HTTP/1.1",
        '{"target_user":{"email":"änn@example.com"}}',
        {"success": False, "error_code": 404, "error": "User not found"},
        kahuna.DeleteAnswer(found=False, extra={"success": False, "error_code": 404, "error": "User not found"}),
        (("kahuna_api_checksum", md5("yek-ipa-ehtänn@example.com".encode(), usedforsecurity=False).hexdigest()),),
    ),
    Case(
        "user_info",
        lambda k: k.user_info("user_id", "7"),
        "POST /api/userinfo?env=p HTTP/1.1",
        '{"target_user":{"user_id":"7"}}',
        {"success": True, "user": {"credentials": {"user_id": "7"}, "devices": "none", "created": "2017"}},
        kahuna.UserInfoAnswer(
            user=kahuna.UserProfile(credentials={"user_id": "7"}, extra={"devices": "none", "created": "2017"}),
            extra={"success": True},
        ),
        (("kahuna_api_checksum", md5(b"yek-ipa-eht7", usedforsecurity=False).hexdigest()),),
    ),
]

SINCE = datetime(2017, 5, 6, 15, 4, 5, 999, tzinfo=timezone(timedelta(hours=2)))
UNTIL = datetime(2017, 5, 6, 23, tzinfo=UTC)


def logs(category: str, since: str = "05/06/2017 01:04:05 PM", size: int = 1000) -> str:
    return f'{{"categories_to_return":["{category}"],"number_of_records":{size},"timestamp":"{since}"}}'


RECORD = {"action": "push", "timestamp": "2017-05-06 14:00:00.000001", "credentials": ["email:a@example.com"]}

RETRIEVAL = [
    Case(
        "user_campaign",
        lambda k: all_of(
            k.user_campaign(
                kahuna.CampaignQuery(
                    campaign_name="Sömmer", suite_id=1, start=SINCE, action="more engaged", credentials=[ANN]
                )
            )
        ),
        "POST /api/usercampaign?env=p HTTP/1.1",
        '{"campaign_name":"Sömmer","suite_id":1,"start_date":"05/06/2017 01:04:05 PM","action":"more engaged",'
        '"credentials_list":[{"email":"änn@example.com"}]}',
        EMPTY | {"records": [{"credentials": {"email": "a"}, "campaigns": [{"campaign_id": 1, "x": 2}, 3], "y": 4}, 5]},
        [
            kahuna.UserCampaignRecord(
                credentials={"email": "a"},
                campaigns=(
                    kahuna.CampaignRecord(campaign_id=1, extra={"x": 2}),
                    kahuna.CampaignRecord(extra={"value": 3}),
                ),
                extra={"y": 4},
            ),
            kahuna.UserCampaignRecord(extra={"value": 5}),
        ],
    ),
    Case(
        "user_merge_logs",
        lambda k: all_of(k.user_merge_logs(SINCE, until=UNTIL)),
        "POST /api/kahunalogs?env=p HTTP/1.1",
        logs("user_merge"),
        EMPTY | {"user_merges": [{"user_id": 1, "common_credentials": ["email:a@example.com"]}]},
        [kahuna.MergeRecord(user_id=1, common_credentials=("email:a@example.com",))],
    ),
    Case(
        "push_logs",
        lambda k: all_of(k.push_logs(SINCE, until=UNTIL, page_size=10)),
        "POST /api/kahunalogs?env=p HTTP/1.1",
        logs("push", size=10),
        EMPTY | {"push": [RECORD | {"ghost": True, "os": "ios"}, RECORD | {"user_id": "seven"}]},
        [
            kahuna.PushRecord(
                action="push",
                timestamp="2017-05-06 14:00:00.000001",
                credentials=("email:a@example.com",),
                ghost=True,
                os="ios",
            ),
            kahuna.PushRecord(
                action="push",
                timestamp="2017-05-06 14:00:00.000001",
                credentials=("email:a@example.com",),
                extra={"user_id": "seven"},
            ),
        ],
    ),
    Case(
        "in_app_logs",
        lambda k: all_of(k.in_app_logs(SINCE, until=UNTIL)),
        "POST /api/kahunalogs?env=p HTTP/1.1",
        logs("in_app"),
        EMPTY | {"inapp": [{"action": "ia_new_word"}]},
        [kahuna.InAppRecord(action="ia_new_word")],
    ),
    Case(
        "email_logs",
        lambda k: all_of(k.email_logs(SINCE, until=UNTIL)),
        "POST /api/kahunalogs?env=p HTTP/1.1",
        logs("email"),
        EMPTY | {"email": [{"email": "ü@example.com", "action": "opened", "extra": 1}]},
        [kahuna.EmailRecord(email="ü@example.com", action="opened", extra={"extra": 1})],
    ),
    Case(
        "campaign_statistics",
        lambda k: all_of(k.campaign_statistics(1234, date(2017, 5, 6), date(2017, 12, 31))),
        "POST /api/campaignstats?env=p HTTP/1.1",
        '{"campaign_id":1234,"start_date":"05/06/2017","end_date":"12/31/2017"}',
        EMPTY | {"campaigns": [{"campaign_id": 1234, "channel": "email", "stats": {"opens": 3}}]},
        [kahuna.CampaignFigures(campaign_id=1234, channel="email", stats={"opens": 3})],
    ),
]


@pytest.mark.parametrize("case", [*SENDING, *RETRIEVAL], ids=lambda case: case.name)
async def test_a_request_is_the_contracts_to_the_byte(case: Case) -> None:
    async with listening(lambda _: said(case.answer)) as vendor, vendor.client() as client:
        assert await case.call(client) == case.result
    [seen] = vendor.seen
    assert (seen.line, seen.body.decode()) == (case.line, case.body)
    assert seen.headers["authorization"] == BASIC
    assert seen.headers["content-type"] == "application/json"
    assert dict(case.headers).items() <= seen.headers.items()
    assert ("kahuna_api_checksum" in seen.headers) == bool(case.headers)


async def test_job_status_is_a_get_without_a_body() -> None:
    answer = {"success": True, "job_id": "a/b", "status": "resting", "processed": 3, "total": "many", "complete": 7}
    async with listening(lambda _: said(answer)) as vendor, vendor.client(env="s") as client:
        status = await client.job_status("a/b")
    assert vendor.seen[0].line == "GET /api/campaign/populate/a%2Fb?env=s HTTP/1.1"
    assert (vendor.seen[0].body, vendor.seen[0].headers["authorization"]) == (b"", BASIC)
    assert (status.state, status.processed, status.total, status.finished) == ("resting", 3, None, False)
    assert status.extra == {"total": "many", "complete": 7}


async def test_the_server_api_is_a_form_without_authentication() -> None:
    request = kahuna.ServerRequest(
        dev_id="dev-1",
        event="start",
        events=[kahuna.ServerEvent("buy", 1500000000, 1, 250, {"colour": ["grün"]})],
        credentials={"email": "a@example.com"},
        extra={"c": "1", "key": "mine"},
    )
    async with listening(lambda _: said({"success": True, "do": 1})) as vendor, vendor.client(env="s") as client:
        assert await client.server(request) == kahuna.ServerAnswer(success=True, extra={"do": 1})
    [seen] = vendor.seen
    assert seen.line == "POST /log HTTP/1.1"
    assert "authorization" not in seen.headers
    assert seen.headers["content-type"] == "application/x-www-form-urlencoded"
    assert seen.body.startswith(
        b"key=the-secret-key&env=s&dev_id=dev-1&event=start&credentials=%7B%22email%22%3A%22a%40example.com%22%7D&"
    )
    assert parse_qsl(seen.body.decode(), strict_parsing=True)[5:] == [
        ("events", '[{"event":"buy","time":1500000000,"count":1,"value":250,"properties":{"colour":["grün"]}}]'),
        ("c", "1"),
    ]


async def test_the_documented_example_of_the_server_api() -> None:
    request = kahuna.ServerRequest(dev_id="dev-1", event="start", credentials={"email": "a@example.com"})
    async with listening(lambda _: said({"success": True})) as vendor, vendor.client(env="s") as client:
        await client.server(request)
    example = "env=s&dev_id=dev-1&event=start&credentials=%7B%22email%22%3A%22a%40example.com%22%7D"
    assert vendor.seen[0].body.decode() == f"key={SECRET_KEY}&{example}"


@pytest.mark.parametrize("status", [200, 400])
async def test_the_server_api_refuses_in_the_body(status: int) -> None:
    body = {"success": False, "error_message": "no ann@example.com"}
    async with listening(lambda _: said(body, status)) as vendor, vendor.client() as client:
        with pytest.raises(kahuna.Refused) as caught:
            await client.server(kahuna.ServerRequest(dev_id="d", event="start"))
    assert (caught.value.status, caught.value.detail) == (status, "no ann@example.com")
    assert "ann@" not in f"{caught.value} {caught.value!r}"


def test_the_checksum_is_that_of_the_contract() -> None:
    from_contract = "065e58b672d230042a64d2f63188e444"
    assert checksum("demo-api-key", "dana@example.com") == from_contract


async def test_a_corrected_contract_is_what_is_spoken() -> None:
    contract = kahuna.Contract.corrected(
        "user_delete_path=/api/deleteuser, user_delete_target=user,user_delete_checksum=no,sync_errors=faults"
    )

    def answer(seen: Any) -> bytes:
        deleting = seen.target == "/api/deleteuser?env=p"
        return said({"success": True} if deleting else {"accepted": 0, "rejected": 1, "faults": [1]})

    async with listening(answer) as vendor, vendor.client(contract=contract) as client:
        assert (await client.user_delete("email", "a")).found
        assert (await client.email_sync([kahuna.EmailSyncEntry("unsub", "a")])).errors == [1]
    assert vendor.seen[0].json() == {"user": {"email": "a"}}
    assert "kahuna_api_checksum" not in vendor.seen[0].headers


# Splitting by users.


def hundreds(body: dict[str, list[Any]]) -> bytes:
    [items] = body.values()
    return said([{"success": True, "n": item["target"]["user_id"]} for item in items])


async def users(count: int) -> AsyncIterator[kahuna.UserAttributes]:
    for n in range(count):
        yield kahuna.UserAttributes({"user_id": str(n)}, {})


async def test_users_go_by_the_hundred_and_outcomes_come_in_order() -> None:
    async with listening(lambda seen: hundreds(seen.json())) as vendor, vendor.client() as client:
        outcomes = await client.user_attributes(users(250))
        pushed = await client.push(kahuna.PushMessage({"user_id": str(n)}, "Hi") for n in range(101))
        assert await client.user_attributes([]) == ()
    assert [outcome.extra["n"] for outcome in outcomes] == [str(n) for n in range(250)]
    assert len(pushed) == 101
    sizes = [len(next(iter(seen.json().values()))) for seen in vendor.seen]
    assert sizes == [100, 100, 50, 100, 1]


ONE = kahuna.PushMessage({"email": "ann@example.com"}, "Hi")
NOT_FOUND = {"success": False, "error_code": 404, "error": "User not found"}


@pytest.mark.parametrize(("status", "document"), [(200, NOT_FOUND), (404, NOT_FOUND), (200, [NOT_FOUND])])
async def test_a_push_to_one_may_fail_in_three_ways(status: int, document: Any) -> None:
    async with listening(lambda _: said(document, status)) as vendor, vendor.client() as client:
        [outcome] = await client.push([ONE])
        [other] = await client.user_attributes([kahuna.UserAttributes({"user_id": "1"}, {})])
    assert (outcome.success, outcome.error_code) == (other.success, other.error_code) == (False, 404)
    assert "not found" not in repr(outcome)


async def test_not_enabled_for_push_is_an_outcome_but_not_permitted_is_an_error() -> None:
    document = {"success": False, "error_code": 409, "error": "User not enabled for push"}
    async with listening(lambda _: said(document, 409)) as vendor, vendor.client() as client:
        assert [outcome.error_code for outcome in await client.push([ONE])] == [409]
        with pytest.raises(kahuna.NotPermitted):
            await client.push([ONE, ONE])
        with pytest.raises(kahuna.NotPermitted):
            await client.user_attributes([kahuna.UserAttributes({"user_id": "1"}, {})])


async def test_an_object_for_several_speaks_of_all() -> None:
    answers = [said({"success": True}), said({"success": False, "error": "off"}), said([{"success": True}])]
    async with listening(lambda _: answers.pop(0)) as vendor, vendor.client() as client:
        assert await client.push([ONE, ONE]) == (kahuna.Outcome(success=True),) * 2
        with pytest.raises(kahuna.Refused):
            await client.push([ONE, ONE])
        with pytest.raises(kahuna.UnreadableAnswer):
            await client.push([ONE, ONE])


async def test_a_failure_half_way_says_how_far_it_got() -> None:
    def answer(seen: Seen) -> bytes:
        return hundreds(seen.json()) if len(seen.json()["user_attributes_array"]) == 100 else said({}, 400)

    async with listening(answer) as vendor, vendor.client() as client:
        with pytest.raises(kahuna.BadRequest) as caught:
            await client.user_attributes(users(250))
    done = caught.value.done
    assert done is not None
    assert (done.index, len(done.answer)) == (200, 200)
    assert "target" not in repr(done)


# Requests that are not sent.


CYCLE: list[Any] = []
CYCLE.append(CYCLE)

UNSENT: list[Callable[[KahunaClient], Awaitable[Any]]] = [
    lambda k: k.user_info("email", "ann\ud800@example.com"),
    lambda k: k.user_delete("email", "ann\ud800@example.com"),
    lambda k: k.email_sync([kahuna.EmailSyncEntry("unsub", "ann\ud800@example.com")]),
    lambda k: k.user_attributes([kahuna.UserAttributes({"a": "b"}, {"ann@example.com": object()})]),
    lambda k: k.user_attributes([kahuna.UserAttributes({"a": "b"}, {"visits": float("nan")})]),
    *(
        lambda k, value=value: k.user_attributes([kahuna.UserAttributes({"a": "b"}, {"all": value})])
        for value in (
            *([float("nan")], {"a": (1, [float("inf")])}, b"ann@", [{1}], {"at": datetime(2017, 1, 1, tzinfo=UTC)}),
            *({1: "a"}, date(2017, 1, 1), Decimal(1), UUID(int=0), [frozenset("a")], CYCLE),
        )
    ),
    lambda k: k.push([kahuna.PushMessage({"a": "b"}, "Hi", params={"price": float("nan")})]),
    lambda k: k.push([kahuna.PushMessage({"a": "b"}, "Hi")], default_params={"price": float("nan")}),
    lambda k: k.server(kahuna.ServerRequest(dev_id="d", user_info={"age": float("nan")})),
    lambda k: k.adaptive_campaign(
        kahuna.CampaignConfig(1, "email"), [kahuna.Recipient(["a"], {"price": float("-inf")})]
    ),
    lambda k: k.sms_sync([kahuna.SmsSyncEntry("1", float("nan"))]),  # type: ignore[arg-type]
    lambda k: k.email_sync([kahuna.EmailSyncEntry("unsub", b"ann@example.com")]),  # type: ignore[arg-type]
    lambda k: k.email_sync([], request_id="ann@\u20ac"),
    lambda k: k.email_sync([], request_id="a\r\nX-Evil: 1"),
    lambda k: k.sms_sync([], request_id="a\x00"),
    lambda k: k.flex(kahuna.FlexConfig(7), [kahuna.FlexEvent("e", {"a": object()})]),
    lambda k: k.server(kahuna.ServerRequest(dev_id="ann\ud800@example.com")),
    lambda k: k.server(kahuna.ServerRequest(dev_id="d", credentials={"email": "ann\ud800@example.com"})),
    lambda k: k.job_status(".."),
    lambda k: k.job_status(""),
    lambda k: all_of(k.push_logs()),
    lambda k: all_of(k.push_logs(datetime(2017, 1, 1))),  # noqa: DTZ001 - that is what is refused
    lambda k: all_of(k.push_logs(SINCE, page_size=1001)),
    lambda k: all_of(k.user_campaign()),
    lambda k: all_of(k.user_campaign(kahuna.CampaignQuery(start=datetime(2017, 1, 1)))),  # noqa: DTZ001 - as above
    lambda k: all_of(k.user_campaign(kahuna.CampaignQuery(credentials=[ANN] * 101))),
]


@pytest.mark.parametrize("call", UNSENT)
async def test_what_cannot_be_taken_is_not_sent(call: Callable[[KahunaClient], Awaitable[Any]]) -> None:
    async with listening(lambda _: said({})) as vendor, vendor.client() as client:
        with pytest.raises(kahuna.BadRequest) as caught:
            await call(client)
    assert (vendor.seen, caught.value.status) == ([], None)
    assert "ann@" not in str(caught.value)
    assert caught.value.__cause__ is None


async def test_whatever_json_has_is_sent_as_it_is() -> None:
    values = {"a": [1, 2.5, True, None, "é"], "b": ("x", {"c": Answered.YES}), "d": MappingProxyType({"e": 2**63 - 1})}
    async with listening(lambda _: said([{"success": True}])) as vendor, vendor.client() as client:
        await client.user_attributes([kahuna.UserAttributes({"email": "a"}, values)])
    [item] = vendor.seen[0].json()["user_attributes_array"]
    assert item["attributes"] == {"a": [1, 2.5, True, None, "é"], "b": ["x", {"c": "yes"}], "d": {"e": 2**63 - 1}}


class Answered(StrEnum):
    YES = "yes"


async def test_the_sandbox_has_no_user_campaign() -> None:
    async with listening(lambda _: said({})) as vendor, vendor.client(env="s") as client:
        with pytest.raises(kahuna.BadRequest, match="sandbox"):
            client.user_campaign(kahuna.CampaignQuery(campaign_name="a"))


async def test_a_campaign_of_ten_megabytes_is_not_sent() -> None:
    recipients = [kahuna.Recipient(["x" * 1_000_000])] * 10
    async with listening(lambda _: said({})) as vendor, vendor.client() as client:
        with pytest.raises(kahuna.TooLarge):
            await client.adaptive_campaign(kahuna.CampaignConfig(1, "email"), recipients)
    assert vendor.seen == []


# Jobs.


async def test_a_job_is_asked_for_every_thirty_seconds_until_it_is_done() -> None:
    clock, words, told = Clock(), ["pending", "running", "complete"], []
    async with listening(lambda _: said({"status": words.pop(0)})) as vendor, vendor.client(time=clock) as client:
        status = await client.wait_for_job("7", progress=lambda status: told.append(status.state))
    assert status.complete
    assert (told, clock.slept) == (["pending", "running", "complete"], [30.0, 30.0])


async def test_each_job_has_a_pace_of_its_own() -> None:
    clock = Clock()
    async with listening(lambda _: said({"status": "failed"})) as vendor, vendor.client(time=clock) as client:
        assert (await client.job_status("7")).failed
        await client.job_status("8")
        assert clock.slept == []
        await client.job_status("7")
    assert clock.slept == [30.0]


async def test_waiting_for_a_job_has_an_end() -> None:
    clock = Clock()
    async with listening(lambda _: said({"status": "running"})) as vendor, vendor.client(time=clock) as client:
        with pytest.raises(kahuna.JobUnfinished):
            await client.wait_for_job("7", deadline=100)
    assert (len(vendor.seen), clock.slept) == (4, [30.0, 30.0, 30.0])


# Where the contract was guessed wrong.


@pytest.mark.parametrize("place", ["default_params", "campaign_config", "recipient_list", "somewhere"])
async def test_a_start_is_sent_wherever_it_belongs(place: str) -> None:
    names = kahuna.Contract(adaptive_start_place=place)
    people = [kahuna.Recipient(["a"]), kahuna.Recipient(["b"], {"k_send_ts": 7})]
    answer = said({"success": True, "job_id": "1"})
    async with listening(lambda _: answer) as vendor, vendor.client(contract=names) as client:
        await client.adaptive_campaign(kahuna.CampaignConfig(1, "email"), people, start=5)
    holder = vendor.seen[0].json()[place]
    starts = [one["k_send_ts"] for one in (holder if isinstance(holder, list) else [holder])]
    assert starts == ([5, 7] if place == "recipient_list" else [5])


@pytest.mark.parametrize(
    "document", [{"status": "complete", "state": "archived"}, {"state": "archived", "status": "complete"}]
)
async def test_two_fields_that_might_be_one_are_both_kept(document: dict[str, str]) -> None:
    async with listening(lambda _: said(document)) as vendor, vendor.client() as client:
        status = await client.job_status("7")
    assert (status.state, status.complete, status.extra) == ("complete", True, {"state": "archived"})


@pytest.mark.parametrize("status", [200, 404])
async def test_a_user_who_is_not_there_is_no_error_under_either_status(status: int) -> None:
    async with listening(lambda _: said(NOT_FOUND, status)) as vendor, vendor.client() as client:
        assert not (await client.user_info("email", "a")).found
        assert not (await client.user_delete("email", "a")).found


@pytest.mark.parametrize("body", [b"<html>", b"", b"{}", b'{"success":false}', b'{"success":false,"error_code":500}'])
async def test_a_404_that_speaks_of_no_user_is_about_the_set_up(body: bytes) -> None:
    async with listening(lambda _: raw(body, 404)) as vendor, vendor.client() as client:
        for call in (client.user_info, client.user_delete):
            with pytest.raises(kahuna.Unavailable):
                await call("email", "a")
