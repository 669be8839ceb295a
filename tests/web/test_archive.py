"""What operators ask of the archive and the quarantine: lists, a batch as received, replay, requeue, discard."""

import base64
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
import zstandard

from service.settings import Settings
from tests.web.harness import Headers, Site, address_path, is_problem, opened, signature

NOWHERE = str(uuid.UUID(int=0))
BATCHES, QUARANTINE = "/v1/admin/batches", "/v1/admin/quarantine"
ANN = {"reason": "unsub", "email": "ann@example.com", "timestamp": 1_700_000_000}
ODD = {"reason": "vanished", "email": "odd@example.com"}


@pytest.fixture
async def taught(settings: Settings) -> AsyncIterator[Site]:
    """The same deployment after a restart with one word more."""
    default, other = settings.namespaces
    words = (("vanished", "complaint"),)
    async with opened(replace(settings, namespaces=(replace(default, extra_reasons=words), other))) as site:
        yield site


@pytest.fixture
async def admin(site: Site) -> Headers:
    """An operator of the default namespace."""
    return await site.token("admin", "read")


async def asked(site: Site, caller: Headers, path: str, **parameters: str) -> dict[str, Any]:
    """What a question is answered with."""
    answer = await site.client.get(path, headers=caller, params=parameters)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def done(site: Site, caller: Headers, path: str, **more: Any) -> dict[str, Any]:
    """What a deed is answered with."""
    answer = await site.client.post(path, headers=caller, **more)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def delivered(site: Site, *entries: Any) -> str:
    """The id of a new batch."""
    answer = await site.deliver("email", list(entries))
    site.clock.sleep(60)
    return str(answer.json()["batch_id"])


async def suppressed(site: Site, caller: Headers, address: str) -> bool:
    found = await asked(site, caller, address_path("email", address))
    return bool(found["suppressed"])


# The archive.


async def test_a_batch_is_told_with_its_headers_its_counts_and_its_body(site: Site, admin: Headers) -> None:
    body = b'[ {"reason":"unsub", "email":"ann@example.com"},\n 7 ]'
    headers = {"X-Kahuna-Signature": signature(body, "email"), "User-Agent": "Kahuna", "Authorization": "Bearer secret"}
    delivered = await site.client.post("/webhooks/default/email", content=body, headers=headers)
    batch_id = delivered.json()["batch_id"]
    found = await asked(site, admin, f"{BATCHES}/{batch_id}")
    assert found.pop("headers") == {"x-kahuna-signature": headers["X-Kahuna-Signature"], "user-agent": "Kahuna"}
    assert found == {
        "id": batch_id,
        "namespace": "default",
        "channel": "email",
        "origin": "kahuna_webhook",
        "state": "applied",
        "received_at": "2026-03-01T12:00:00Z",
        "applied_at": "2026-03-01T12:00:00Z",
        "body_bytes": len(body),
        "accepted": 1,
        "duplicates": 0,
        "rejected": 1,
        "attempts": 0,
        "next_attempt_at": None,
        "last_error": None,
        "errors": [{"index": 1, "error": "not-an-object"}],
        "body": body.decode(),
        "body_encoding": "utf-8",
    }
    raw = await site.client.get(f"{BATCHES}/{batch_id}/body", headers=admin)
    assert (raw.content, raw.headers["Content-Type"]) == (body, "application/octet-stream")
    assert raw.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("zipped", [True, False])
async def test_whatever_was_received_is_told_to_the_byte(site: Site, admin: Headers, zipped: bool) -> None:
    body = '\ufeff[{"reason":"unsub","email":"é\\u0000@example.com"},"\\ud800"]'.encode()
    batch_id = (await site.deliver_bytes("email", body, zipped=zipped)).json()["batch_id"]
    found = await asked(site, admin, f"{BATCHES}/{batch_id}")
    assert (found["body"].encode(), found["body_encoding"]) == (body, "utf-8")


async def test_a_body_that_no_text_can_hold_is_told_in_base64(site: Site, admin: Headers) -> None:
    batch_id = await delivered(site, ANN)
    # No callback of ours comes so; other sources of batches may.
    packed = zstandard.ZstdCompressor().compress(b"\xff\xfe\x00").hex()
    await site.execute(f"update batches set body = '\\x{packed}', body_bytes = 3")
    found = await asked(site, admin, f"{BATCHES}/{batch_id}")
    assert (base64.b64decode(found["body"]), found["body_encoding"]) == (b"\xff\xfe\x00", "base64")


async def test_the_batches_are_listed_page_by_page(site: Site, admin: Headers) -> None:
    ids = [await delivered(site, ANN | {"timestamp": n}) for n in range(5)]
    await site.deliver("email", [ANN], path="/webhooks/other/email", key="other-api-key")
    pages, cursor = [], None
    while True:
        found = await asked(site, admin, BATCHES, limit="2", **({"cursor": cursor} if cursor else {}))
        pages.append([row["id"] for row in found["batches"]])
        assert not any("body" in row or "headers" in row for row in found["batches"])
        cursor = found["next"]
        if cursor is None:
            break
    assert pages == [[ids[4], ids[3]], [ids[2], ids[1]], [ids[0]]]


async def test_the_batches_are_listed_by_what_they_have_in_common(site: Site, admin: Headers) -> None:
    ids = [await delivered(site, ANN | {"timestamp": n}) for n in range(3)]
    sms = (await site.deliver("sms", [{"number": "15550100001"}])).json()["batch_id"]
    async with site.broken("facts"):
        recorded = (await site.deliver("email", [ANN | {"timestamp": 9}])).json()["batch_id"]
    at = [f"2026-03-01T12:0{n}:00Z" for n in range(4)]
    for parameters, wanted in (
        ({"channel": "sms"}, [sms]),
        ({"state": "recorded"}, [recorded]),
        ({"since": at[1], "until": at[3]}, [ids[2], ids[1]]),
        ({"channel": "email", "state": "applied", "until": at[1]}, [ids[0]]),
    ):
        found = await asked(site, admin, BATCHES, **parameters)
        assert [row["id"] for row in found["batches"]] == wanted, parameters


@pytest.mark.parametrize(
    ("path", "parameter", "value", "slug"),
    [
        (BATCHES, "channel", "fax", "invalid-parameter"),
        (BATCHES, "state", "lost", "invalid-parameter"),
        (BATCHES, "since", "yesterday", "invalid-time"),
        (BATCHES, "until", "0001-01-01T00:00:00+12:00", "invalid-time"),
        (BATCHES, "limit", "0", "invalid-parameter"),
        (BATCHES, "cursor", "a", "invalid-cursor"),
        (BATCHES, "cursor", "é", "invalid-cursor"),
        (BATCHES, "cursor", base64.b64encode(b'["2026-01-01T00:00:00","x"]').decode(), "invalid-cursor"),
        (QUARANTINE, "state", "lost", "invalid-parameter"),
        (QUARANTINE, "channel", "fax", "invalid-parameter"),
        (QUARANTINE, "error", "a\0b", "invalid-parameter"),
        (QUARANTINE, "batch_id", "7", "invalid-parameter"),
        (QUARANTINE, "cursor", base64.b64encode(b"[]").decode(), "invalid-cursor"),
    ],
)
async def test_a_parameter_that_makes_no_sense_is_refused(
    site: Site, admin: Headers, path: str, parameter: str, value: str, slug: str
) -> None:
    assert is_problem(await site.client.get(path, headers=admin, params={parameter: value}), 422, slug)


# Replay.


async def test_a_replay_tells_what_it_changed_and_once_only(site: Site, taught: Site, admin: Headers) -> None:
    batch_id = await delivered(site, ANN, ODD, 7)
    path = f"{BATCHES}/{batch_id}/replay"
    outcome = {"batch_id": batch_id, "state": "applied", "accepted": 2, "duplicates": 0, "rejected": 1}
    outcome["errors"] = [{"index": 2, "error": "not-an-object"}]
    tried = await done(taught, admin, path, params={"dry_run": "true"})
    assert tried == outcome | {"new": 1, "requeued": 1, "dry_run": True}
    assert not await suppressed(taught, admin, "odd@example.com")
    assert await done(taught, admin, path) == outcome | {"new": 1, "requeued": 1, "dry_run": False}
    assert await suppressed(taught, admin, "odd@example.com")
    assert await done(taught, admin, path) == outcome | {"new": 0, "requeued": 0, "dry_run": False}
    again = await taught.deliver("email", [ANN, ODD, 7])
    assert again.json() == outcome | {"accepted": 0, "duplicates": 2}
    deeds = await site.query("select actor, action, namespace from audit where action = 'batch.replayed'")
    assert deeds == [("tester", "batch.replayed", "default")] * 2


async def test_a_replay_applies_what_was_only_recorded(site: Site, admin: Headers) -> None:
    async with site.broken("facts"):
        answer = await site.deliver("email", [ANN])
    found = await done(site, admin, f"{BATCHES}/{answer.json()['batch_id']}/replay")
    assert (found["state"], found["accepted"], found["new"]) == ("applied", 1, 1)
    assert not await site.sweep()


async def test_a_word_that_was_taught_is_understood_at_the_door(taught: Site) -> None:
    answer = await taught.deliver("email", [ODD])
    assert (answer.json()["accepted"], answer.json()["rejected"]) == (1, 0)
    elsewhere = await taught.deliver("email", [ODD], path="/webhooks/other/email", key="other-api-key")
    assert (elsewhere.json()["accepted"], elsewhere.json()["rejected"]) == (0, 1)


# The quarantine.


async def test_an_entry_is_told_as_it_came(site: Site, admin: Headers) -> None:
    body = b'[{"reason":"gone", "email":"\\ud800", "n":1e400}]'
    batch_id = (await site.deliver_bytes("email", body)).json()["batch_id"]
    found = await asked(site, admin, f"{QUARANTINE}/{batch_id}/0")
    assert found == {
        "batch_id": batch_id,
        "entry_index": 0,
        "namespace": "default",
        "channel": "email",
        "error": "undecodable",
        "received_at": "2026-03-01T12:00:00Z",
        "state": "open",
        "entry": body[1:-1].decode(),
        "entry_encoding": "utf-8",
        "decided_by": None,
        "decided_at": None,
        "note": None,
    }
    await site.execute("update quarantine set entry = '\\xff00'")
    found = await asked(site, admin, f"{QUARANTINE}/{batch_id}/0")
    assert (base64.b64decode(found["entry"]), found["entry_encoding"]) == (b"\xff\0", "base64")


async def test_the_entries_are_listed_page_by_page(site: Site, admin: Headers) -> None:
    first, second = await delivered(site, 1, 2, 3), await delivered(site, 4, 5)
    found = await asked(site, admin, QUARANTINE, limit="3")
    rest = await asked(site, admin, QUARANTINE, limit="3", cursor=found["next"])
    places = [(row["batch_id"], row["entry_index"]) for row in found["entries"] + rest["entries"]]
    assert places == [(second, 1), (second, 0), (first, 2), (first, 1), (first, 0)]
    assert rest["next"] is None


async def test_the_entries_are_listed_by_what_they_have_in_common(site: Site, admin: Headers) -> None:
    first, second = await delivered(site, ODD, 7), await delivered(site, 8)
    await site.deliver("sms", ["x"])
    await done(site, admin, f"{QUARANTINE}/{second}/0/discard", json={"reason": "noise"})
    for parameters, wanted in (
        ({"error": "unknown-reason"}, [(first, 0)]),
        ({"state": "discarded"}, [(second, 0)]),
        ({"channel": "email"}, [(first, 1), (first, 0)]),
        ({"batch_id": first, "error": "not-an-object"}, [(first, 1)]),
        ({"state": "requeued"}, []),
    ):
        rows = (await asked(site, admin, QUARANTINE, **parameters))["entries"]
        assert [(row["batch_id"], row["entry_index"]) for row in rows] == wanted, parameters


async def test_an_entry_is_requeued_or_discarded_once(site: Site, taught: Site, admin: Headers) -> None:
    batch_id = await delivered(site, ODD, 7)
    odd, noise = (f"{QUARANTINE}/{batch_id}/{index}" for index in (0, 1))
    assert (await done(site, admin, f"{odd}/requeue"))["state"] == "open"
    requeued = await done(taught, admin, f"{odd}/requeue")
    assert (requeued["state"], requeued["decided_by"]) == ("requeued", "tester")
    assert await suppressed(taught, admin, "odd@example.com")
    discarded = await done(taught, admin, f"{noise}/discard", json={"reason": "noise"})
    assert (discarded["state"], discarded["note"]) == ("discarded", "noise")
    for path in (f"{odd}/requeue", f"{odd}/discard", f"{noise}/discard"):
        answer = await taught.client.post(path, headers=admin, json={"reason": "again"})
        assert is_problem(answer, 409, "already-decided")
    assert await site.query("select action from audit where action like 'quarantine.%' order by action") == [
        ("quarantine.discarded",),
        ("quarantine.requeued",),
        ("quarantine.requeued",),
    ]


@pytest.mark.parametrize("body", [{}, {"reason": ""}, {"reason": " "}, {"reason": 7}, {"reason": "x", "by": "y"}])
async def test_a_discard_says_why(site: Site, admin: Headers, body: object) -> None:
    batch_id = await delivered(site, 7)
    answer = await site.client.post(f"{QUARANTINE}/{batch_id}/0/discard", headers=admin, json=body)
    assert is_problem(answer, 422, "invalid-body")


async def test_many_are_requeued_with_their_counts(site: Site, taught: Site, admin: Headers) -> None:
    await delivered(site, ODD, ODD, 7)
    path = f"{QUARANTINE}/requeue"
    body = {"namespace": "default", "error": "unknown-reason"}
    counts = {"entries": 2, "requeued": 2, "new": 1, "failed": 0, "next": None}
    assert await done(taught, admin, path, json=body) == counts
    assert await done(taught, admin, path, json={"channel": "email"}) == counts | {
        "entries": 1,
        "requeued": 0,
        "new": 0,
    }
    everywhere = await taught.token("admin", namespace=None)
    assert is_problem(await taught.client.post(path, headers=everywhere, json={}), 400, "namespace-required")


@pytest.mark.parametrize("body", [{"error": "Öh"}, {"batch_id": "x"}, {"state": "open"}, {"cursor": "x"}, []])
async def test_a_requeue_of_who_knows_what_is_refused(site: Site, admin: Headers, body: object) -> None:
    answer = await site.client.post(f"{QUARANTINE}/requeue", headers=admin, json=body)
    assert answer.status_code == 422, answer.text


async def test_a_requeue_speaks_of_one_namespace(site: Site, admin: Headers) -> None:
    path, body = f"{QUARANTINE}/requeue", {"namespace": "other"}
    assert is_problem(await site.client.post(path, headers=admin, json=body), 403, "other-namespace")
    everywhere = await site.token("admin", namespace=None)
    answer = await site.client.post(path, headers=everywhere, json=body, params={"namespace": "default"})
    assert is_problem(answer, 422, "two-namespaces")


# What all of them share.


def deeds(batch_id: str) -> list[tuple[str, str]]:
    """Every route about one batch or one entry."""
    batch, entry = f"{BATCHES}/{batch_id}", f"{QUARANTINE}/{batch_id}/0"
    asked = [("GET", batch), ("GET", f"{batch}/body"), ("GET", entry)]
    return [*asked, ("POST", f"{batch}/replay"), ("POST", f"{entry}/requeue"), ("POST", f"{entry}/discard")]


async def call(site: Site, caller: Headers, method: str, path: str, **more: Any) -> httpx.Response:
    body = {"reason": "a test"} if path.endswith("discard") else None
    return await site.client.request(method, path, headers=caller, json=body, **more)


async def test_all_of_it_needs_the_scope_admin(site: Site) -> None:
    caller = await site.token("read", "write")
    routes = [*deeds(NOWHERE), ("GET", BATCHES), ("GET", QUARANTINE), ("POST", f"{QUARANTINE}/requeue")]
    for method, path in routes:
        assert is_problem(await call(site, caller, method, path), 403, "missing-scope")
        assert is_problem(await call(site, {}, method, path), 401, "unauthenticated")


async def test_all_of_it_stays_in_its_own_namespace(site: Site, admin: Headers) -> None:
    batch_id = await delivered(site, ODD)
    other, everywhere = await site.token("admin", namespace="other"), await site.token("admin", namespace=None)
    for method, path in deeds(batch_id):
        assert is_problem(await call(site, other, method, path), 404, "not-found")
        answer = await call(site, everywhere, method, path, params={"namespace": "other"})
        assert is_problem(answer, 404, "not-found")
    assert (await asked(site, other, BATCHES))["batches"] == (await asked(site, other, QUARANTINE))["entries"] == []
    assert await site.query("select state from quarantine") == [("open",)]


@pytest.mark.parametrize("batch_id", [NOWHERE, "nothing", "%00"])
async def test_there_is_nothing_with_this_id(site: Site, admin: Headers, batch_id: str) -> None:
    for method, path in deeds(batch_id):
        assert is_problem(await call(site, admin, method, path), 404, "not-found")


@pytest.mark.parametrize("index", ["1", "-1", "x", "9" * 20, "9" * 5000])
async def test_there_is_no_such_entry(site: Site, admin: Headers, index: str) -> None:
    batch_id = await delivered(site, 7)
    for method, tail in (("GET", ""), ("POST", "/requeue"), ("POST", "/discard")):
        answer = await call(site, admin, method, f"{QUARANTINE}/{batch_id}/{index}{tail}")
        assert is_problem(answer, 404, "not-found")


async def test_an_unknown_parameter_is_refused(site: Site, admin: Headers) -> None:
    for method, path in [*deeds(NOWHERE), ("GET", BATCHES), ("GET", QUARANTINE), ("POST", f"{QUARANTINE}/requeue")]:
        answer = await call(site, admin, method, path, params={"sate": "open"})
        assert is_problem(answer, 400, "unknown-parameter")


async def test_times_before_all_batches_are_times(site: Site, admin: Headers) -> None:
    answer = await site.client.get(BATCHES, headers=admin, params={"since": "0357-08-25T05:54:09Z"})
    assert answer.status_code == 200
    answer = await site.client.get(BATCHES, headers=admin, params={"until": "0357-08-25T05:54:09Z"})
    assert answer.json() == {"batches": [], "next": None}
