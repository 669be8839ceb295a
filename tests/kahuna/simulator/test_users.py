"""The APIs about users, spoken to from the contract: Server, User Attribute, User Info, User Delete."""

import json

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from service.kahuna.simulator.people import People
from service.kahuna.simulator.records import Device, Log, MergeRecord

from . import speaking
from .speaking import ANN, AUTH, NOW, Vendor, checksum

NOT_FOUND = {"success": False, "error_code": 404, "error": "User not found"}


async def test_an_event_makes_a_user(vendor: Vendor) -> None:
    said = await vendor.log(
        ANN | {"user_id": 42},
        event="purchase",
        user_info=json.dumps({"first_name": "Ann"}),
        push_token="t",
        os_name="ios",
    )
    assert said == {"success": True}
    user = (await vendor.user("email", "ann@example.com"))["user"]
    assert user["credentials"] == {"email": "ann@example.com", "user_id": "42"}
    assert user["attributes"] == {"first_name": "Ann"}
    assert user["events"] == [{"event": "purchase", "time": int(NOW)}]
    assert user["devices"] == [
        {"id": "dev-1", "os_name": "ios", "push_enabled": True, "push_token": "t", "last_seen": int(NOW)}
    ]
    assert (await vendor.user("user_id", "42"))["user"] == user


async def test_a_batch_of_events_and_the_old_fields(vendor: Vendor) -> None:
    events = [
        {"event": "buy", "time": 5, "count": 2, "value": 1999, "properties": {"sku": ["a", "b"]}},
        {"event": "view", "credentials": {"fbid": "7"}, "user_info": {"age": 30}},
    ]
    await vendor.log(None, username="ann", user_email="Ann@Example.com", first_name="Ann", events=json.dumps(events))
    user = (await vendor.user("fbid", "7"))["user"]
    assert user["credentials"] == {"username": "ann", "email": "Ann@Example.com", "fbid": "7"}
    assert user["attributes"] == {"first_name": "Ann", "age": 30}
    assert [event["event"] for event in user["events"]] == ["start", "buy", "view"]
    assert user["events"][1] == events[0]


async def test_a_device_alone_is_its_last_user(vendor: Vendor) -> None:
    await vendor.log(ANN)
    await vendor.log(None, event="look")
    await vendor.log({"username": "ann"}, event="log in")
    user = (await vendor.user("username", "ann"))["user"]
    assert [event["event"] for event in user["events"]] == ["start", "look", "log in"]
    await vendor.log({"email": "bob@example.com"}, event="borrow")
    assert len((await vendor.user("username", "ann"))["user"]["events"]) == 3
    assert (await vendor.user("username", "ann"))["user"]["devices"] == []


@pytest.mark.parametrize(
    "fields",
    [
        {"key": "wrong"},
        {"env": "x"},
        {"env": ""},
        {"dev_id": ""},
        {"event": ""},
        {"events": "[{}]"},
        {"events": "{"},
        {"events": '[{"event": "a", "properties": {"b": null}}]'},
        {"credentials": "[]"},
        {"credentials": '{"shoe": "44"}'},
        {"credentials": '{"email": ""}'},
        {"user_info": '{"a": {"b": "nested"}}'},
        {"events": '[{"event": "a", "credentials": {"shoe": "44"}}]'},
        {"events": '[{"event": "a", "user_info": {"b": {}}}]'},
    ],
)
async def test_a_failure_is_said_with_a_200(vendor: Vendor, fields: dict[str, str]) -> None:
    said = await vendor.log(None, **fields)
    assert said["success"] is False
    assert said["error_message"]
    assert (await vendor.web.get("/simulator/users")).json() == {"count": 0, "users": []}


async def test_a_failure_may_be_said_with_a_400() -> None:
    async with speaking.vendor(server_refusal_status=400) as vendor:
        answer = await vendor.web.post("/log", data={"key": "wrong"})
        assert (answer.status_code, answer.json()["error_message"]) == (400, "Authentication failed")


async def test_a_form_that_is_none_is_refused(vendor: Vendor) -> None:
    answer = await vendor.web.post("/log", content=b"\xff\xfe")
    assert (answer.status_code, answer.json()["success"]) == (200, False)


async def test_the_environments_are_two_worlds(vendor: Vendor) -> None:
    await vendor.meet("ann", env="p")
    assert await vendor.user("username", "ann", "s") == NOT_FOUND
    assert (await vendor.user("username", "ann", "p"))["success"] is True
    assert (await vendor.web.get("/simulator/users?env=s")).json()["count"] == 0


# Merges.


async def test_users_who_share_a_credential_are_merged(vendor: Vendor) -> None:
    await vendor.log({"username": "ann"}, "dev-1", user_info='{"name": "Ann", "age": 30}')
    vendor.clock.seconds += 1
    await vendor.log({"fbid": "7"}, "dev-2", user_info='{"name": "Anna", "shoe": 38}')
    vendor.clock.seconds += 1
    await vendor.log({"username": "ann", "fbid": "7"}, "dev-3")
    user = (await vendor.user("fbid", "7"))["user"]
    assert user == (await vendor.user("username", "ann"))["user"]
    assert user["created"] == int(NOW)
    assert user["attributes"] == {"name": "Ann", "age": 30, "shoe": 38}
    assert {device["id"] for device in user["devices"]} == {"dev-1", "dev-2", "dev-3"}
    assert len(user["events"]) == 3
    assert (await vendor.web.get("/simulator/users")).json()["count"] == 1
    [merge] = await vendor.logs("user_merge")
    assert merge == {
        "timestamp": "2017-07-14 02:40:02.500000",
        "user_id": user["user_id"],
        "common_credentials": ["username:ann", "fbid:7"],
        "older_user_credentials": [],
        "newer_user_credentials": [],
    }


async def test_a_merge_tells_what_each_had_alone(vendor: Vendor) -> None:
    await vendor.log({"username": "a", "twtr": "t"}, "dev-1")
    await vendor.log({"email": "a@example.com", "fbid": "42"}, "dev-2")
    await vendor.log({"twtr": "t", "email": "A@example.com"}, "dev-3")
    [merge] = await vendor.logs("user_merges")
    assert merge["older_user_credentials"] == ["username:a"]
    assert merge["newer_user_credentials"] == ["email:a@example.com", "fbid:42"]


@hypothesis_settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.dictionaries(st.sampled_from(["username", "email", "fbid"]), st.sampled_from("abcd"), min_size=1),
        max_size=12,
    )
)
def test_a_credential_is_always_one_persons(said: list[dict[str, str]]) -> None:
    log = Log()
    people = People(log)
    for at, credentials in enumerate(said):
        person = people.meet(credentials, at, f"dev-{at % 3}")
        people.keep_device(person, Device(f"dev-{at % 3}"))
        assert all(people.of(kind, value) is person for kind, value in credentials.items())
    held = [item for person in people for item in person.credentials.items()]
    assert len(held) == len(set(held))
    assert all(people.find(person.credentials) == [person] for person in people)
    devices = [device for person in people for device in person.devices]
    assert len(devices) == len(set(devices))
    assert all(isinstance(entry, MergeRecord) for entry in log)


# User Attribute.


async def test_attributes_are_added_changed_and_deleted(vendor: Vendor) -> None:
    await vendor.meet("ann")
    update = {"target": ANN, "attributes": {"visits": "5", "tags": ["a"], "vip": True, "score": 1.5, "gone": None}}
    assert await vendor.call("userattributes", {"user_attributes_array": [update]}) == [{"success": True}]
    later = {"target": {"username": "ann"}, "attributes": {"visits": 6, "vip": None}}
    await vendor.call("userattributes", {"user_attributes_array": [later]})
    attributes = (await vendor.user("username", "ann"))["user"]["attributes"]
    assert attributes == {"visits": 6, "tags": ["a"], "score": 1.5}


async def test_each_update_has_its_item_in_order(vendor: Vendor) -> None:
    await vendor.meet("ann", "bob")
    targets: list[dict[str, str]] = [{"username": "bob"}, {"username": "eve"}, {"shoe": "44"}, ANN]
    updates: list[dict[str, object]] = [{"target": target, "attributes": {"a": "b"}} for target in targets]
    updates.append({"target": ANN, "attributes": {"a": {"b": "c"}}})
    items = await vendor.call("userattributes", {"user_attributes_array": updates})
    assert [item.get("error_code") for item in items] == [None, 404, 400, None, 400]
    assert items[1] == NOT_FOUND


async def test_no_more_than_a_hundred_updates(vendor: Vendor) -> None:
    update = {"target": ANN, "attributes": {}}
    assert (await vendor.raw("userattributes", {"user_attributes_array": [update] * 100})).status_code == 200
    assert (await vendor.raw("userattributes", {"user_attributes_array": [update] * 101})).status_code == 400


# User Info and User Delete.


def test_the_checksum_is_the_documented_one() -> None:
    assert checksum("dana@example.com") == "065e58b672d230042a64d2f63188e444"


@pytest.mark.parametrize("path", ["userinfo", "userdelete"])
async def test_the_checksum_is_asked_for(vendor: Vendor, path: str) -> None:
    await vendor.meet("ann")
    wrong: list[dict[str, str]] = [
        {},
        {"KAHUNA_API_CHECKSUM": checksum("x")},
        {"KAHUNA_API_CHECKSUM": checksum("ann").upper()},
    ]
    for headers in wrong:
        assert (await vendor.raw(path, {"target_user": {"username": "ann"}}, **headers)).status_code == 401


@pytest.mark.parametrize("path", ["userinfo", "userdelete"])
@pytest.mark.parametrize("target", [{}, ANN | {"username": "ann"}, {"shoe": "44"}, {"email": None}, [], None])
async def test_exactly_one_credential(vendor: Vendor, path: str, target: object) -> None:
    assert (await vendor.raw(path, {"target_user": target})).status_code == 400


async def test_a_deleted_user_is_unknown(vendor: Vendor) -> None:
    await vendor.meet("ann")
    body, headers = {"target_user": ANN}, {"KAHUNA_API_CHECKSUM": checksum("ann@example.com")}
    assert await vendor.call("userdelete", body, **headers) == {"success": True}
    assert await vendor.call("userdelete", body, **headers) == NOT_FOUND
    assert await vendor.user("username", "ann") == NOT_FOUND
    await vendor.meet("ann")
    assert len((await vendor.user("username", "ann"))["user"]["events"]) == 1


@pytest.mark.parametrize("path", ["userattributes", "userinfo", "userdelete", "push", "campaign/populate"])
async def test_who_is_refused(vendor: Vendor, path: str) -> None:
    answers = [
        await vendor.web.post(f"/api/{path}?env=s", json={}, auth=("x", "y")),
        await vendor.web.post(f"/api/{path}?env=x", json={}),
        await vendor.web.post(f"/api/{path}?env=s", content=b"{"),
        await vendor.web.put(f"/api/{path}?env=s", json={}, auth=AUTH),
    ]
    assert [answer.status_code for answer in answers] == [401, 400, 400, 405]
    assert all(answer.json()["success"] is False for answer in answers)
