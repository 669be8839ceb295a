"""The two webhooks as Kahuna meets them: the checks in their order, the answers in their words, nothing lost."""

import asyncio
import gzip
import tracemalloc
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx
import msgspec
import pytest
from sqlalchemy import text

from service.app import BULK_AT_ONCE
from service.settings import Secret, Settings
from tests.conftest import namespace
from tests.web.harness import Endless, Halting, Site, address_path, away, is_problem, opened, signature

LIMIT = 10_000
STOP = {"email": "ann@example.com", "reason": "unsub", "timestamp": 1_700_000_000}
BAD = {"email": "bob@example.com", "reason": "nonsense", "timestamp": 1_700_000_000}
BODY = msgspec.json.encode([STOP])
PATH = "/webhooks/default/email"


@pytest.fixture
async def site(settings: Settings) -> AsyncIterator[Site]:
    async with opened(settings) as site:
        yield site


@pytest.fixture
async def strict(settings: Settings) -> AsyncIterator[Site]:
    """Small limits, a hurry, and a namespace with a callback token."""
    guarded = namespace("guarded", callback_token=Secret("t0ken"))
    tight = replace(settings, body_limit_bytes=LIMIT, body_timeout_seconds=0.05, namespaces=(guarded,))
    async with opened(tight) as site:
        yield site


async def status(site: Site, address: str = "ann@example.com", **parameters: str) -> dict[str, Any]:
    """The status of a mailbox."""
    answer = await site.client.get(address_path("email", address), headers=await site.token("read"), params=parameters)
    assert answer.status_code == 200, answer.text
    document: dict[str, Any] = answer.json()
    return document


# The ladder: each rung has the faults of all that come after it.

SIGNED = {"X-Kahuna-Signature": "wrong"}
ODD = SIGNED | {"Content-Encoding": "br"}
ZIPPED = SIGNED | {"Content-Encoding": "gzip"}

UNREAD = {
    "method": ("PUT", "/webhooks/nowhere/email/wrong", {"Content-Encoding": "br"}, 405, "method-not-allowed"),
    "namespace": ("POST", "/webhooks/nowhere/email", {"Content-Encoding": "br"}, 404, "unknown-namespace"),
    "no token": ("POST", "/webhooks/guarded/email", {"Content-Encoding": "br"}, 401, "callback-token"),
    "wrong token": ("POST", "/webhooks/guarded/email/wrong", ODD, 401, "callback-token"),
    "no token on the vendor's path": ("POST", "/api/email_callback", ODD, 401, "callback-token"),
    "no signature": ("POST", "/webhooks/guarded/email/t0ken", {"Content-Encoding": "br"}, 401, "signature-missing"),
    "encoding": ("POST", "/webhooks/guarded/email/t0ken", ODD, 415, "unsupported-encoding"),
    "two encodings": (
        "POST",
        "/api/email_callback/t0ken",
        SIGNED | {"Content-Encoding": "gzip, gzip"},
        415,
        "unsupported-encoding",
    ),
    "declared size": (
        "POST",
        "/api/email_callback/t0ken",
        ZIPPED | {"Content-Length": str(LIMIT + 1)},
        413,
        "body-too-large",
    ),
}


@pytest.mark.parametrize(("method", "path", "headers", "code", "slug"), UNREAD.values(), ids=UNREAD)
async def test_the_first_checks_answer_before_any_byte_is_read(
    strict: Site, method: str, path: str, headers: dict[str, str], code: int, slug: str
) -> None:
    body = Endless()
    answer = await strict.client.request(method, path, headers=headers, content=body)
    assert is_problem(answer, code, slug)
    assert body.read == 0
    assert "WWW-Authenticate" not in answer.headers, "no bearer token opens a webhook"


READ: dict[str, tuple[dict[str, str], bytes, int, str]] = {
    "size": (ZIPPED, b"x" * (LIMIT + 1), 413, "body-too-large"),
    "not gzip": (ZIPPED, b"x" * LIMIT, 400, "not-gzip"),
    "size once decompressed": (ZIPPED, gzip.compress(b"x" * (LIMIT + 1)), 413, "body-too-large"),
    "not json": (ZIPPED, gzip.compress(b"x" * LIMIT), 400, "not-json"),
    "empty": (SIGNED, b"", 400, "not-json"),
    "not utf-8": (SIGNED, b'["\xff"]', 400, "not-json"),
    "an object": (SIGNED, b'{"email":"ann@example.com"}', 400, "not-an-array"),
    "null": (SIGNED, b"null", 400, "not-an-array"),
    "signature": (SIGNED, BODY, 401, "signature-wrong"),
    "another key": (
        {"X-Kahuna-Signature": signature(BODY, "email", "other-api-key")},
        BODY,
        401,
        "signature-wrong",
    ),
    "a signature beyond ascii": ({"X-Kahuna-Signature": "sé"}, BODY, 401, "signature-wrong"),
}


@pytest.mark.parametrize(("headers", "body", "code", "slug"), READ.values(), ids=READ)
async def test_then_the_body_is_judged(
    strict: Site, headers: dict[str, str], body: bytes, code: int, slug: str
) -> None:
    raw = {name.encode(): value.encode() for name, value in headers.items()}
    answer = await strict.client.post("/webhooks/guarded/email/t0ken", headers=raw, content=body)
    assert is_problem(answer, code, slug)
    assert await strict.query("select count(*) from batches") == [(0,)]


async def test_a_body_that_does_not_arrive_is_too_slow(strict: Site) -> None:
    answer = await strict.client.post("/api/email_callback/t0ken", headers=ZIPPED, content=Halting(b"xx"))
    assert is_problem(answer, 408, "body-too-slow")


@pytest.mark.parametrize("path", ["/webhooks/guarded/email/t0ken", "/api/email_callback/t0ken"])
async def test_at_the_top_of_the_ladder_it_is_applied(strict: Site, path: str) -> None:
    answer = await strict.deliver("email", [STOP], path=path)
    assert (answer.status_code, answer.json()["state"]) == (200, "applied")


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE"])
@pytest.mark.parametrize("path", [PATH, "/webhooks/default/sms", "/api/email_callback", "/api/sms_callback"])
async def test_any_other_method_is_told_which_one_is_allowed(site: Site, method: str, path: str) -> None:
    answer = await site.client.request(method, path)
    assert answer.status_code == 405
    assert answer.headers["Allow"] == "POST"
    assert answer.headers["X-Request-ID"]


async def test_a_token_where_there_is_none_is_no_path(site: Site) -> None:
    assert is_problem(await site.deliver("email", [STOP], path=f"{PATH}/t0ken"), 404, "unknown-namespace")


async def test_the_vendors_paths_lead_nowhere_without_a_default(settings: Settings) -> None:
    several = replace(settings, namespaces=(namespace("a"), namespace("b")))
    async with opened(several) as site:
        assert is_problem(await site.deliver("email", [STOP], path="/api/email_callback"), 404, "unknown-namespace")


async def test_every_key_of_a_rotation_is_accepted(settings: Settings) -> None:
    rotated = replace(namespace("default"), api_key=(Secret("new"), Secret("old")))
    async with opened(replace(settings, namespaces=(rotated,))) as site:
        for key in ("new", "old"):
            assert (await site.deliver("email", [STOP], key=key)).status_code == 200
        assert is_problem(await site.deliver("email", [STOP], key="older"), 401, "signature-wrong")


@pytest.mark.parametrize("encoding", ["identity", "Identity", ""])
async def test_a_body_may_say_that_it_is_not_encoded(site: Site, encoding: str) -> None:
    headers = {"Content-Encoding": encoding, "X-Kahuna-Signature": f" {signature(BODY, 'email')} "}
    assert (await site.client.post(PATH, content=BODY, headers=headers)).status_code == 200


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
async def test_the_content_type_is_not_judged(site: Site, kind: str) -> None:
    headers = {"Content-Type": kind, "X-Kahuna-Signature": signature(BODY, "email")}
    answer = await site.client.post(PATH, content=BODY, headers=headers)
    assert answer.status_code == 200


# Limits.


async def test_reading_stops_at_the_limit(strict: Site) -> None:
    body = Endless(b" " * 1000)
    answer = await strict.client.post("/api/email_callback/t0ken", headers=SIGNED, content=body)
    assert is_problem(answer, 413, "body-too-large")
    assert LIMIT < body.read <= LIMIT + 1000


async def test_a_body_of_exactly_the_limit_is_taken(strict: Site) -> None:
    for zipped in (False, True):
        body = BODY.ljust(LIMIT if zipped else LIMIT - 1)
        answer = await strict.deliver_bytes("email", body, path="/api/email_callback/t0ken", zipped=zipped)
        assert answer.status_code == 200, answer.text


BOMB = gzip.compress(b"[" + b" " * 6_000_000 + b"]")
BOMBS = {
    "one": BOMB,
    "packed twice": gzip.compress(gzip.compress(b"\0" * 50_000_000)),
    "behind a member of exactly the limit": gzip.compress(b" " * LIMIT) + BOMB,
}


@pytest.mark.parametrize("body", BOMBS.values(), ids=BOMBS)
async def test_a_bomb_is_not_unpacked_beyond_the_limit(strict: Site, body: bytes) -> None:
    assert len(body) < LIMIT
    await strict.deliver("email", [STOP], path="/api/email_callback/t0ken")
    tracemalloc.start()
    try:
        answer = await strict.client.post("/api/email_callback/t0ken", headers=ZIPPED, content=body)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert is_problem(answer, 413, "body-too-large")
    assert peak < 2_000_000


async def test_a_body_in_several_gzip_members_is_one_body(site: Site) -> None:
    members = b"".join(gzip.compress(part) for part in (BODY[:5], b"", BODY[5:]))
    headers = {"X-Kahuna-Signature": signature(BODY, "email"), "Content-Encoding": "GZIP"}
    answer = await site.client.post(PATH, headers=headers, content=members)
    assert answer.json()["accepted"] == 1
    again = await site.deliver_bytes("email", BODY)
    assert (again.json()["batch_id"], again.json()["duplicates"]) == (answer.json()["batch_id"], 1)


async def test_several_members_share_one_limit(strict: Site) -> None:
    members = gzip.compress(b" " * (LIMIT // 2 + 1)) * 2
    answer = await strict.client.post("/api/email_callback/t0ken", headers=ZIPPED, content=members)
    assert is_problem(answer, 413, "body-too-large")


@pytest.mark.parametrize("cut", [1, 5, 9, 12, -1, -8])
async def test_a_cut_gzip_body_is_refused(site: Site, cut: int) -> None:
    body = gzip.compress(BODY)[:cut]
    headers = {"X-Kahuna-Signature": signature(BODY, "email"), "Content-Encoding": "gzip"}
    assert is_problem(await site.client.post(PATH, headers=headers, content=body), 400, "not-gzip")


async def test_a_cut_second_member_spoils_the_body(site: Site) -> None:
    body = gzip.compress(BODY) + gzip.compress(b" ")[:-1]
    headers = {"X-Kahuna-Signature": signature(BODY, "email"), "Content-Encoding": "gzip"}
    assert is_problem(await site.client.post(PATH, headers=headers, content=body), 400, "not-gzip")


async def test_while_the_budget_is_spent_senders_are_asked_to_come_again(settings: Settings) -> None:
    async with opened(replace(settings, body_budget_bytes=len(BODY) + 10)) as site:
        first = Halting(BODY)
        headers = {"X-Kahuna-Signature": signature(BODY, "email")}
        receiving = asyncio.create_task(site.client.post(PATH, headers=headers, content=first))
        await first.half_read.wait()
        refused = await site.deliver("email", [STOP])
        first.go_on.set()
        assert is_problem(refused, 503, "storage-unavailable")
        assert int(refused.headers["Retry-After"]) > 0
        assert (await receiving).json()["accepted"] == 1
        # What was counted in is counted out again, after a refusal too.
        for _ in range(3):
            assert (await site.deliver("email", [STOP])).status_code == 200


async def test_a_refused_body_gives_its_bytes_back(settings: Settings) -> None:
    async with opened(replace(settings, body_budget_bytes=len(BODY) + 10)) as site:
        for _ in range(3):
            answer = await site.client.post(PATH, headers=SIGNED, content=BODY)
            assert is_problem(answer, 401, "signature-wrong")
        assert (await site.deliver_bytes("email", BODY)).status_code == 200


async def test_a_decompressed_body_counts_in_the_budget_too(settings: Settings) -> None:
    body = BODY.ljust(5000)
    async with opened(replace(settings, body_budget_bytes=4000)) as site:
        assert is_problem(await site.deliver_bytes("email", body, zipped=True), 503, "storage-unavailable")


# Answers.


async def test_the_counts_add_up_and_a_bad_entry_spoils_no_other(site: Site) -> None:
    answer = await site.deliver("email", [STOP, BAD, STOP, "text", {"reason": "unsub"}])
    document = answer.json()
    assert set(document) == {"batch_id", "state", "accepted", "duplicates", "rejected", "errors"}
    assert (document["accepted"], document["duplicates"], document["rejected"]) == (1, 1, 3)
    assert [(e["index"], e["error"]) for e in document["errors"]] == [
        (1, "unknown-reason"),
        (3, "not-an-object"),
        (4, "missing-address"),
    ]
    assert (await status(site))["suppressed"]


async def test_an_empty_batch_is_applied(site: Site) -> None:
    document = (await site.deliver("email", [])).json()
    counts = {"accepted": 0, "duplicates": 0, "rejected": 0}
    assert document == {"batch_id": document["batch_id"], "state": "applied", "errors": []} | counts


async def test_errors_are_capped_and_counts_are_not(site: Site) -> None:
    document = (await site.deliver("email", [BAD] * 150)).json()
    assert (document["rejected"], len(document["errors"])) == (150, 100)
    assert [e["index"] for e in document["errors"]] == list(range(100))


async def test_a_redelivery_answers_with_the_first_batch(site: Site) -> None:
    first = (await site.deliver("email", [STOP, BAD])).json()
    site.clock.sleep(3600)
    again = (await site.deliver("email", [STOP, BAD])).json()
    assert again == first | {"accepted": 0, "duplicates": 1}
    assert await site.query("select count(*) from quarantine") == [(1,)]
    assert await site.query("select count(*) from batches") == [(1,)]


async def test_the_vendors_path_and_ours_are_one_webhook(site: Site) -> None:
    entries = [{"number": "15550100001", "timestamp": 1_700_000_000}]
    first = await site.deliver("sms", entries, path="/api/sms_callback")
    assert (await site.deliver("sms", entries)).json()["batch_id"] == first.json()["batch_id"]
    other = await site.deliver("sms", entries, path="/webhooks/other/sms", key="other-api-key")
    assert other.json()["batch_id"] != first.json()["batch_id"]
    assert is_problem(await site.deliver("sms", entries, path="/webhooks/other/sms"), 401, "signature-wrong")


# Faults of our own.


async def test_what_cannot_be_applied_is_recorded_and_applied_with_its_time_of_receipt(site: Site) -> None:
    entries = [{"email": "ann@example.com", "reason": "spam"}, BAD]
    received_at = site.clock.now
    async with site.broken("quarantine"):
        answer = await site.deliver("email", entries)
        again = await site.deliver("email", entries)
    assert answer.status_code == 200
    assert answer.json() == {"batch_id": answer.json()["batch_id"], "state": "recorded", "received": 2}
    assert again.json() == answer.json()
    assert not (await status(site))["suppressed"]
    site.clock.sleep(3600)
    assert await site.sweep()
    document = await status(site)
    (cause,) = document["causes"]
    assert (cause["reason"], cause["active"], cause["batch_id"]) == ("complaint", True, answer.json()["batch_id"])
    assert cause["occurred_at"] == document["since"] == received_at.strftime("%Y-%m-%dT%H:%M:%SZ")
    assert cause["recorded_at"] == site.clock.now.strftime("%Y-%m-%dT%H:%M:%SZ")
    assert not await site.sweep()


async def test_a_redelivery_applies_what_was_only_recorded_with_its_time_of_receipt(site: Site) -> None:
    entries = [{"email": "ann@example.com", "reason": "spam"}, BAD]
    async with site.broken("quarantine"):
        recorded = (await site.deliver("email", entries)).json()
    site.clock.sleep(3600)
    applied = (await site.deliver("email", entries)).json()
    assert applied["batch_id"] == recorded["batch_id"]
    assert (applied["state"], applied["accepted"], applied["rejected"]) == ("applied", 1, 1)
    assert (await status(site))["since"] == "2026-03-01T12:00:00Z"
    assert not await site.sweep()


async def test_a_sweep_that_fails_is_tried_again_later(site: Site) -> None:
    async with site.broken("quarantine"):
        await site.deliver("email", [STOP, BAD])
        assert await site.sweep()
        assert not await site.sweep(), "not due again at once"
    site.clock.sleep(3600)
    assert await site.sweep()
    assert (await status(site))["suppressed"]


async def test_an_address_that_others_hold_is_recorded(settings: Settings) -> None:
    async with opened(replace(settings, lock_timeout_milliseconds=20)) as site:
        await site.deliver("email", [STOP])
        entries = [STOP, STOP | {"timestamp": 1_700_000_100}]
        async with site.database.begin() as connection:
            await connection.exec_driver_sql("select from suppressions for update")
            answer = await site.deliver("email", entries)
        assert answer.json()["state"] == "recorded"
        assert await site.sweep()
        assert (await status(site))["since"] == "2023-11-14T22:15:00Z"


async def test_what_cannot_even_be_recorded_is_asked_for_again(site: Site) -> None:
    async with site.broken("batches"):
        answer = await site.deliver("email", [STOP])
    assert is_problem(answer, 503, "storage-outdated")
    assert int(answer.headers["Retry-After"]) > 0
    assert not (await status(site))["suppressed"]
    assert (await site.deliver("email", [STOP])).json()["accepted"] == 1


async def test_without_a_database_only_what_is_signed_is_asked_for_again(settings: Settings) -> None:
    async with opened(replace(settings, database_url=away())) as site:
        answer = await site.deliver("email", [STOP])
        assert is_problem(answer, 503, "storage-unavailable")
        assert int(answer.headers["Retry-After"]) > 0
        forged = await site.client.post(PATH, headers=SIGNED, content=BODY)
        assert is_problem(forged, 401, "signature-wrong")


# Every answer has an id.


@pytest.mark.parametrize("given", ["", "two words", "x" * 129, "a\tb", "é"])
async def test_an_unfit_request_id_is_replaced(site: Site, given: str) -> None:
    answer = await site.client.post(PATH, headers={b"X-Request-ID": given.encode("latin-1")})
    assert answer.headers["X-Request-ID"] not in ("", given)
    assert len(answer.headers.get_list("X-Request-ID")) == 1


async def test_a_fit_request_id_is_answered(site: Site) -> None:
    answer = await site.client.post(PATH, headers={"X-Request-ID": "trace:1-2.3_4"})
    assert answer.headers["X-Request-ID"] == "trace:1-2.3_4"
    # Of several it is the first, as in what is kept of a batch.
    answer = await site.client.post(PATH, headers=[("X-Request-ID", "first"), ("X-Request-ID", "second")])
    assert answer.headers["X-Request-ID"] == "first"


async def test_two_requests_have_two_ids(site: Site) -> None:
    answers: list[httpx.Response] = [await site.deliver("email", [STOP]) for _ in range(2)]
    assert len({answer.headers["X-Request-ID"] for answer in answers}) == 2


async def test_large_callbacks_are_stored_with_few_others_of_their_size(site: Site) -> None:
    """Each takes many times its size until then, so memory must not hold all that come at the same time."""
    bodies = [[{"number": f"1555{n}{i:06d}"} for i in range(12_000)] for n in range(BULK_AT_ONCE + 2)]
    waiting = "select count(*) from pg_locks where not granted and relation = 'digests'::regclass"
    async with site.database.begin() as connection:
        await connection.execute(text("lock table digests in share mode"))
        delivered = [asyncio.create_task(site.deliver("sms", body)) for body in bodies]
        while (await site.query(waiting))[0][0] < BULK_AT_ONCE:  # noqa: ASYNC110 (the database tells nobody)
            await asyncio.sleep(0.01)
        for _ in range(20):
            await asyncio.sleep(0.01)
            assert (await site.query(waiting))[0][0] == BULK_AT_ONCE
    answers = await asyncio.gather(*delivered)
    assert [(answer.status_code, answer.json()["accepted"]) for answer in answers] == [(200, 12_000)] * len(bodies)
