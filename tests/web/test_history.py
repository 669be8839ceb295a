"""The explanation of one address: what a support person can read out, and everything behind it, oldest first."""

import uuid
from typing import Any

import pytest

from tests.web.harness import Headers, Site, address_path, is_problem

ANN = address_path("email", "ann@example.com")
HISTORY = f"{ANN}/history"
STOP = {"email": "Ann@Example.com", "reason": "unsub", "timestamp": 1_700_000_000}
NUMBER = address_path("sms", "15550100001")
START: dict[str, object] = {"number": "15550100001", "opt-in": True}


@pytest.fixture
async def everything(site: Site) -> Headers:
    return await site.token("read", "write", "admin")


async def history(site: Site, caller: Headers, path: str = HISTORY, **parameters: Any) -> dict[str, Any]:
    answer = await site.client.get(path, headers=caller, params=parameters)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def test_of_an_address_never_seen_there_is_nothing_but_the_verdict(site: Site, everything: Headers) -> None:
    assert await history(site, everything) == {
        "namespace": "default",
        "channel": "email",
        "address": "ann@example.com",
        "verdict": {
            "suppressed": False,
            "since": None,
            "until": None,
            "rule": "never-stopped",
            "reason": None,
            "sentence": "May be messaged: nobody ever told us to stop.",
        },
        "events": [],
        "next": None,
    }


async def test_a_callback_is_told_with_its_batch(site: Site, everything: Headers) -> None:
    batch = (await site.deliver("email", [STOP])).json()["batch_id"]
    found = await history(site, everything)
    assert found["verdict"]["rule"] == "until-cleared"
    assert found["verdict"]["sentence"] == (
        "May not be messaged: this person unsubscribed on 14 November 2023 at 22:13 UTC; Kahuna, which sends "
        "our messages, told us so. This stands until a newer consent is recorded."
    )
    assert found["events"] == [
        {
            "kind": "fact",
            "at": "2026-03-01T12:00:00Z",
            "reason": "unsubscribe",
            "action": "suppress",
            "occurred_at": "2023-11-14T22:13:20Z",
            "source": "kahuna",
            "origin": "kahuna_webhook",
            "address_received": "Ann@Example.com",
            "batch": {
                "id": batch,
                "archived": True,
                "origin": "kahuna_webhook",
                "received_at": "2026-03-01T12:00:00Z",
            },
            "entry_index": 0,
            "action_id": None,
            "taken_back_at": None,
        }
    ]


async def test_an_import_is_told_with_the_name_of_its_file(site: Site, everything: Headers) -> None:
    await site.client.post(
        "/v1/suppressions/import?channel=email&reason=complaint&file_name=old%20list.csv",
        headers={**everything, "Content-Type": "text/csv"},
        content=b"email\nann@example.com\n",
    )
    said = (await history(site, everything))["verdict"]["sentence"]
    assert "the imported file old list.csv said so" in said


async def test_what_our_people_did_is_told_with_actor_and_evidence(site: Site, everything: Headers) -> None:
    """And the correction that it owed Kahuna, with Kahuna's acceptance."""
    await site.client.put(ANN, headers=everything, json={"reason": "complaint", "note": "by phone"})
    site.clock.sleep(60)
    consent = {"evidence": "form 7", "occurred_at": "2026-03-01T12:00:30Z"}
    await site.client.post(f"{ANN}/reactivate", headers=everything, json=consent)
    accepted = """{"answer": {"success": true}, "request_id": "r1"}"""
    await site.execute(f"update corrections set state = 'sent', settled_at = created_at, evidence = '{accepted}'")
    found = await history(site, everything)
    assert found["verdict"]["rule"] == "cleared"
    assert found["verdict"]["sentence"].endswith("which ended what came before it; our service tester said so.")
    kinds = [(one["kind"], one.get("actor"), one.get("action")) for one in found["events"]]
    assert kinds[:3] == [
        ("action", "tester", "address.suppress"),
        ("fact", None, "suppress"),
        ("correction", None, "suppress"),
    ]
    assert kinds[3] == ("action", "tester", "address.clear")
    action, fact, correction, second = found["events"][:4]
    assert action["detail"]["note"] == "by phone"
    assert second["detail"]["evidence"] == "form 7"
    assert second["detail"]["occurred_at"] == consent["occurred_at"]
    assert (fact["batch"], fact["action_id"]) == (None, action["id"])
    assert (correction["slot"], correction["state"]) == ("complaint", "sent")
    assert correction["evidence"]["request_id"] == "r1"
    assert correction["settled_at"] == "2026-03-01T12:00:00Z"


@pytest.mark.parametrize("timed", [True, False])
async def test_an_opt_in_that_waited_is_told_before_and_after(site: Site, everything: Headers, timed: bool) -> None:
    await site.client.put(
        NUMBER, headers=everything, json={"reason": "do_not_call", "occurred_at": "2026-02-01T00:00:00Z"}
    )
    start = START | ({"timestamp": site.clock.seconds} if timed else {})
    batch = (await site.deliver("sms", [start])).json()["batch_id"]
    found = await history(site, everything, f"{NUMBER}/history")
    assert found["verdict"]["suppressed"]
    assert found["verdict"]["sentence"].endswith("An opt-in waits for a person's decision.")
    [waiting] = [one for one in found["events"] if one["kind"] == "review"]
    assert (waiting["state"], waiting["batch"]["id"]) == ("pending", batch)
    site.clock.sleep(60)
    note = {"note": "called back"}
    await site.client.post(f"/v1/admin/reviews/{waiting['id']}/approve", headers=everything, json=note)
    found = await history(site, everything, f"{NUMBER}/history")
    assert not found["verdict"]["suppressed"]
    [decided] = [one for one in found["events"] if one["kind"] == "review"]
    assert (decided["state"], decided["decided_by"], decided["note"]) == ("approved", "tester", "called back")
    assert [one["action"] for one in found["events"] if one["kind"] == "action"] == [
        "address.suppress",
        "review.approved",
    ]


async def test_of_a_batch_that_retention_dropped_the_id_is_left(site: Site, everything: Headers) -> None:
    batch = (await site.deliver("email", [STOP])).json()["batch_id"]
    await site.execute("delete from batches")
    [fact] = (await history(site, everything))["events"]
    assert fact["batch"] == {"id": batch, "archived": False, "origin": None, "received_at": None}


async def test_a_walk_through_the_pages_is_the_whole_history(site: Site, everything: Headers) -> None:
    for _ in range(4):
        await site.client.put(ANN, headers=everything, json={"reason": "soft_bounce"})
        await site.deliver("email", [STOP | {"timestamp": site.clock.seconds, "reason": "spam"}])
        site.clock.sleep(3600)
    whole = (await history(site, everything))["events"]
    assert [one["at"] for one in whole] == sorted(one["at"] for one in whole)
    walked: list[Any] = []
    cursor: dict[str, str] = {}
    while True:
        page = await history(site, everything, limit=2, **cursor)
        walked += page["events"]
        if page["next"] is None:
            break
        cursor = {"cursor": page["next"]}
    assert walked == whole
    assert len({str(one) for one in whole}) == len(whole) >= 12


async def test_the_purpose_is_part_of_the_verdict(site: Site, everything: Headers) -> None:
    await site.deliver("email", [STOP])
    found = await history(site, everything, purpose="transactional")
    assert (found["verdict"]["suppressed"], found["verdict"]["rule"]) == (False, "marketing-only")


async def test_others_histories_are_not_told(site: Site, everything: Headers) -> None:
    await site.client.put(address_path("email", "bob@example.com"), headers=everything, json={"reason": "manual"})
    other = await site.token("read", "write", namespace="other")
    await site.client.put(ANN, headers=other, json={"reason": "manual"})
    assert (await history(site, everything))["events"] == []


@pytest.mark.parametrize(
    ("parameters", "status", "slug"),
    [
        ({"cursor": "x"}, 422, "invalid-cursor"),
        ({"cursor": "WyIyMDI2LTAxLTAxVDAwOjAwOjAwWiIsOSwiIl0"}, 422, "invalid-cursor"),
        ({"limit": "0"}, 422, "invalid-parameter"),
        ({"purpose": "fun"}, 422, "invalid-parameter"),
        ({"at": "2026-01-01T00:00:00Z"}, 400, "unknown-parameter"),
    ],
)
async def test_odd_questions_are_refused(
    site: Site, everything: Headers, parameters: dict[str, str], status: int, slug: str
) -> None:
    assert is_problem(await site.client.get(HISTORY, headers=everything, params=parameters), status, slug)


async def test_an_address_that_ends_like_the_path_has_a_history(site: Site, everything: Headers) -> None:
    odd = address_path("email", "a/history@example.com")
    await site.client.put(odd, headers=everything, json={"reason": "manual"})
    assert (await history(site, everything, f"{odd}/history"))["verdict"]["suppressed"]
    assert (await site.client.get(odd, headers=everything)).json()["suppressed"]
    unknown = await site.client.get(f"/v1/admin/batches/{uuid.uuid4()}/history", headers=everything)
    assert unknown.status_code == 404
