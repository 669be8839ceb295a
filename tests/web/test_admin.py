"""What operators ask and decide: opt-ins that wait, the quarantine, corrections."""

import uuid
from typing import Any

import httpx
import pytest

from tests.web.harness import Headers, Site, address_path, is_problem

NUMBER = address_path("sms", "15550100001")
LISTS = {
    "/v1/admin/reconciliations": "reconciliations",
    "/v1/admin/corrections": "corrections",
    "/v1/admin/quarantine": "entries",
    "/v1/admin/reviews": "reviews",
}


@pytest.fixture
async def admin(site: Site) -> Headers:
    """An operator of the default namespace."""
    return await site.token("admin", "read", "write")


async def listed(site: Site, caller: Headers, path: str, **parameters: str) -> list[dict[str, Any]]:
    """The rows of a list."""
    answer = await site.client.get(path, headers=caller, params=parameters)
    assert answer.status_code == 200, answer.text
    rows: list[dict[str, Any]] = answer.json()[LISTS[path]]
    return rows


async def held(site: Site, caller: Headers) -> str:
    """The id of a review: an opt-in that would clear a stop of our own."""
    await site.client.put(NUMBER, headers=caller, json={"reason": "do_not_call"})
    site.clock.sleep(60)
    await site.deliver("sms", [{"number": "+15550100001", "timestamp": site.clock.seconds, "opt-in": True}])
    (review,) = await listed(site, caller, "/v1/admin/reviews")
    return str(review["id"])


async def suppressed(site: Site, caller: Headers) -> bool:
    """Whether the number may not be texted."""
    return bool((await site.client.get(NUMBER, headers=caller)).json()["suppressed"])


async def decide(site: Site, caller: Headers, review: str, decision: str, **more: Any) -> httpx.Response:
    """An operator's decision."""
    return await site.client.post(f"/v1/admin/reviews/{review}/{decision}", headers=caller, **more)


# Reviews.


async def test_an_opt_in_that_waits_is_shown_with_why(site: Site, admin: Headers) -> None:
    review_id = await held(site, admin)
    (review,) = await listed(site, admin, "/v1/admin/reviews", state="pending")
    batch = (await site.query("select id from batches"))[0][0]
    assert review == {
        "id": review_id,
        "namespace": "default",
        "channel": "sms",
        "address": "15550100001",
        "reason": "do_not_call",
        "why": "local-stop",
        "state": "pending",
        "batch_id": str(batch),
        "received_at": "2026-03-01T12:01:00Z",
        "occurred_at": "2026-03-01T12:01:00Z",
        "decided_by": None,
        "decided_at": None,
        "note": None,
    }
    assert await suppressed(site, admin)


@pytest.mark.parametrize(("decision", "state", "stays"), [("approve", "approved", False), ("refuse", "refused", True)])
async def test_a_decision_takes_effect_and_stands(
    site: Site, admin: Headers, decision: str, state: str, stays: bool
) -> None:
    review = await held(site, admin)
    answer = await decide(site, admin, review, decision, json={"note": "by telephone"})
    assert answer.status_code == 200
    told = {key: answer.json()[key] for key in ("id", "state", "decided_by", "note")}
    assert told == {"id": review, "state": state, "decided_by": "tester", "note": "by telephone"}
    assert await suppressed(site, admin) is stays
    for again in ("approve", "refuse"):
        assert is_problem(await decide(site, admin, review, again), 409, "already-decided")
    assert await suppressed(site, admin) is stays
    assert await listed(site, admin, "/v1/admin/reviews") == []
    assert [row["id"] for row in await listed(site, admin, "/v1/admin/reviews", state=state)] == [review]


async def test_reviews_are_walked_through_page_by_page(site: Site, admin: Headers) -> None:
    numbers = [f"1555010000{n}" for n in range(5)]
    for number in numbers:
        await site.client.put(f"/v1/suppressions/sms/{number}", headers=admin, json={"reason": "do_not_call"})
    site.clock.sleep(60)
    opt_ins = [{"number": n, "timestamp": site.clock.seconds, "opt-in": True} for n in numbers]
    await site.deliver("sms", opt_ins)  # all at one moment: the place of a page is more than a time
    found: list[str] = []
    cursor: dict[str, str] = {}
    while True:
        answer = await site.client.get("/v1/admin/reviews", headers=admin, params={"limit": "2", **cursor})
        found += [row["address"] for row in answer.json()["reviews"]]
        if answer.json()["next"] is None:
            break
        cursor = {"cursor": answer.json()["next"]}
    assert sorted(found) == numbers
    broken = await site.client.get("/v1/admin/reviews", headers=admin, params={"cursor": "zzz"})
    assert is_problem(broken, 422, "invalid-cursor")


async def test_a_decision_needs_no_body(site: Site, admin: Headers) -> None:
    answer = await decide(site, admin, await held(site, admin), "approve")
    assert (answer.status_code, answer.json()["note"]) == (200, None)


@pytest.mark.parametrize(
    ("body", "code", "slug"),
    [(b"no", 400, "not-json"), (b'{"nota":"x"}', 422, "invalid-body"), (b'{"note":5}', 422, "invalid-body")],
)
async def test_a_decision_with_a_body_that_is_not_understood_is_none(
    site: Site, admin: Headers, body: bytes, code: int, slug: str
) -> None:
    review = await held(site, admin)
    assert is_problem(await decide(site, admin, review, "approve", content=body), code, slug)
    assert await suppressed(site, admin)


async def test_a_note_that_no_database_can_hold_is_no_fault_of_ours(site: Site, admin: Headers) -> None:
    answer = await decide(site, admin, await held(site, admin), "refuse", json={"note": "a\0b"})
    assert answer.status_code in (200, 422), answer.text


@pytest.mark.parametrize("review", [str(uuid.UUID(int=0)), "nothing", "%00", "0" * 400])
async def test_there_is_nothing_with_that_id(site: Site, admin: Headers, review: str) -> None:
    for decision in ("approve", "refuse"):
        assert is_problem(await decide(site, admin, review, decision), 404, "not-found")


async def test_a_review_is_decided_in_its_own_namespace_alone(site: Site, admin: Headers) -> None:
    review = await held(site, admin)
    for caller in (await site.token("admin", namespace="other"), await site.token("admin", namespace="nowhere")):
        assert (await decide(site, caller, review, "approve")).status_code in (403, 404)
    assert await suppressed(site, admin)


async def test_a_decision_that_names_another_namespace_is_none(site: Site, admin: Headers) -> None:
    review = await held(site, admin)
    for caller, name in ((admin, "other"), (await site.token("admin", namespace=None), "other")):
        answer = await decide(site, caller, review, "approve", params={"namespace": name})
        assert answer.status_code in (403, 404), answer.text
    assert await suppressed(site, admin)


# Quarantine and corrections.


async def test_the_quarantine_shows_each_entry_as_it_came(site: Site, admin: Headers) -> None:
    body = b'[{"email":"ann@example.com", "reason":"moved", "n":1e400}, "text"]'
    batch = (await site.deliver_bytes("email", body)).json()["batch_id"]
    rows = await listed(site, admin, "/v1/admin/quarantine")
    assert sorted((row["entry_index"], row["error"], row["entry"]) for row in rows) == [
        (0, "undecodable", '{"email":"ann@example.com", "reason":"moved", "n":1e400}'),
        (1, "not-an-object", '"text"'),
    ]
    assert {(row["batch_id"], row["namespace"], row["channel"], row["state"]) for row in rows} == {
        (batch, "default", "email", "open")
    }


async def test_corrections_are_shown_by_their_state(site: Site, admin: Headers) -> None:
    stop = {"reason": "manual", "occurred_at": "2024-01-01T00:00:00Z"}
    await site.client.put(address_path("email", "Ann@Example.com"), headers=admin, json=stop)
    (row,) = await listed(site, admin, "/v1/admin/corrections")
    assert (row["address"], row["slot"], row["action"]) == ("ann@example.com", "unsubscribe", "suppress")
    assert (row["occurred_at"], row["state"], row["attempts"]) == ("2024-01-01T00:00:00Z", "pending", 0)
    for state in ("sending", "sent", "rejected", "dead", "superseded", "unsupported"):
        assert await listed(site, admin, "/v1/admin/corrections", state=state) == []


async def queued(site: Site, caller: Headers, **more: Any) -> str:
    """The id of a new run."""
    asked = {"channel": "email", "source": "ledger"} | more
    answer = await site.client.post("/v1/admin/reconciliations", headers=caller, json=asked)
    assert (answer.status_code, answer.json()["state"]) == (202, "queued")
    assert answer.headers["Location"] == f"/v1/admin/reconciliations/{answer.json()['id']}"
    return str(answer.json()["id"])


# What all of them share.


@pytest.mark.parametrize("path", LISTS)
async def test_a_list_needs_the_scope_admin(site: Site, path: str) -> None:
    assert is_problem(await site.client.get(path), 401, "unauthenticated")
    caller = await site.token("read", "write")
    assert is_problem(await site.client.get(path, headers=caller), 403, "missing-scope")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/admin/reconciliations"),
        ("GET", f"/v1/admin/reconciliations/{uuid.UUID(int=0)}"),
        ("GET", f"/v1/admin/reconciliations/{uuid.UUID(int=0)}/differences"),
        ("GET", f"/v1/admin/reconciliations/{uuid.UUID(int=0)}/report"),
        ("POST", f"/v1/admin/reconciliations/{uuid.UUID(int=0)}/approve"),
        ("POST", f"/v1/admin/reconciliations/{uuid.UUID(int=0)}/reject"),
        ("POST", f"/v1/admin/reconciliations/{uuid.UUID(int=0)}/revert"),
        ("POST", f"/v1/admin/reviews/{uuid.UUID(int=0)}/approve"),
        ("POST", f"/v1/admin/reviews/{uuid.UUID(int=0)}/refuse"),
    ],
)
async def test_a_deed_needs_the_scope_admin(site: Site, method: str, path: str) -> None:
    caller = await site.token("read", "write")
    assert is_problem(await site.client.request(method, path, headers=caller), 403, "missing-scope")


@pytest.mark.parametrize("path", LISTS)
async def test_a_list_shows_its_own_namespace_alone(site: Site, admin: Headers, path: str) -> None:
    await held(site, admin)
    await site.deliver("email", ["text"])
    await queued(site, admin)
    assert len(await listed(site, admin, path)) == 1
    assert await listed(site, await site.token("admin", namespace="other"), path) == []
    everywhere = await site.token("admin", namespace=None)
    assert len(await listed(site, everywhere, path, namespace="default")) == 1
    assert is_problem(await site.client.get(path, headers=everywhere), 400, "namespace-required")


@pytest.mark.parametrize("path", LISTS)
async def test_a_list_is_as_long_as_was_asked(site: Site, admin: Headers, path: str) -> None:
    await site.client.put(address_path("email", "ann@example.com"), headers=admin, json={"reason": "complaint"})
    await site.client.put(address_path("email", "bob@example.com"), headers=admin, json={"reason": "complaint"})
    await site.deliver("email", ["one", "two"])
    await site.deliver("sms", [{"number": f"1555010000{n}", "opt-in": True} for n in (1, 2)])
    for _ in range(2):
        await queued(site, admin)
    assert len(await listed(site, admin, path)) == 2
    assert len(await listed(site, admin, path, limit="1")) == 1
    assert len(await listed(site, admin, path, limit="1000")) == 2


@pytest.mark.parametrize("limit", ["0", "1001", "-1", "1.5", "many", "", "9" * 5000])
@pytest.mark.parametrize("path", LISTS)
async def test_a_limit_is_a_number_within_bounds(site: Site, admin: Headers, path: str, limit: str) -> None:
    answer = await site.client.get(path, headers=admin, params={"limit": limit})
    assert is_problem(answer, 422, "invalid-parameter")


@pytest.mark.parametrize("path", LISTS)
async def test_an_unknown_parameter_is_refused(site: Site, admin: Headers, path: str) -> None:
    answer = await site.client.get(path, headers=admin, params={"sate": "pending"})
    assert is_problem(answer, 400, "unknown-parameter")


@pytest.mark.parametrize("path", ["/v1/admin/corrections", "/v1/admin/reviews"])
async def test_an_unknown_state_is_refused(site: Site, admin: Headers, path: str) -> None:
    answer = await site.client.get(path, headers=admin, params={"state": "lost"})
    assert is_problem(answer, 422, "invalid-parameter")


async def test_another_method_is_told_which_are_allowed(site: Site, admin: Headers) -> None:
    answer = await site.client.delete("/v1/admin/reconciliations", headers=admin)
    assert is_problem(answer, 405, "method-not-allowed")
    assert {"GET", "POST"} <= set(answer.headers["Allow"].split(", "))
