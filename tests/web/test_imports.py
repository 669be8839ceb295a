"""The import of a list as a caller meets it: what may be sent, what is answered, what a slow sender leaves behind."""

import asyncio
import gzip
import json
from dataclasses import replace
from typing import Any

import httpx
import pytest

from service.settings import Settings
from tests.web.harness import Endless, Halting, Headers, Site, address_path, is_problem, opened

LIST = b"email,reason,created\nAnn@example.com,spam,1700000000\nbob@example.com,Bounce,\nnobody,spam,1700000001\n"
STOP = {"reason": "manual", "occurred_at": "2026-01-31T12:00:00Z"}


async def sent(
    site: Site, body: Any, *scopes: str, kind: str = "text/csv", headers: Headers | None = None, **query: str
) -> httpx.Response:
    """The answer to a list."""
    caller = await site.token(*(scopes or ("write",)))
    return await site.client.post(
        "/v1/suppressions/import",
        content=body,
        params={"channel": "email"} | query,
        headers=dict(caller) | {"Content-Type": kind} | dict(headers or {}),
    )


async def test_a_list_is_taken_in_and_told_of(site: Site) -> None:
    looked = await sent(site, LIST, dry_run="true")
    assert looked.status_code == 200, looked.text
    assert await site.query("select 1 from facts union all select 1 from audit") == []
    answer = await sent(site, LIST, file_name="list.csv")
    told = answer.json()
    assert told == {
        "import_id": told["import_id"],
        "state": "imported",
        "kind": "csv",
        "lines": 3,
        "accepted": 2,
        "duplicates": 0,
        "rejected": 1,
        "skipped": 0,
        "untimed": 1,
        "assumed": 0,
        "reasons": {"complaint": 1, "hard_bounce": 1},
        "errors": [{"line": 4, "error": "not-an-email-address"}],
    }
    assert looked.json() == told | {"import_id": looked.json()["import_id"], "state": "previewed"}
    status = await site.client.get(address_path("email", "ann@example.com"), headers=await site.token("read"))
    [cause] = status.json()["causes"]
    assert (cause["reason"], cause["origin"], cause["active"]) == ("complaint", "import", True)
    batch = await site.client.get(f"/v1/admin/batches/{cause['batch_id']}", headers=await site.token("admin"))
    assert batch.json()["headers"] == {
        "import-id": told["import_id"],
        "actor": "tester",
        "file-name": "list.csv",
        "lines": "2-4",
    }
    assert json.loads(batch.json()["body"])[0] == {
        "line": 2,
        "address": "Ann@example.com",
        "reason": "complaint",
        "at": 1700000000,
    }
    again = (await sent(site, LIST)).json()
    assert (again["accepted"], again["duplicates"], again["errors"]) == (0, 2, told["errors"])
    metrics = (await site.client.get("/metrics")).text
    assert 'kahuna_sync_imported_lines_total{channel="email",outcome="accepted"} 2.0' in metrics
    assert 'kahuna_sync_imported_lines_total{channel="sms",outcome="rejected"} 0.0' in metrics


async def test_addresses_alone_are_plain_text_too(site: Site) -> None:
    answer = await sent(site, b"ann@example.com\nbob@example.com\n", kind="text/plain", reason="manual")
    assert (answer.status_code, answer.json()["accepted"]) == (200, 2)


async def test_an_unknown_word_is_counted_and_kept_and_a_line_that_is_refused_is_not_untimed(site: Site) -> None:
    body = b"email,reason\nann@example.com,grumpy\nnobody,grumpy\nbob@example.com,spam\n"
    for state in ("true", "false"):
        told = (await sent(site, body, reason="manual", dry_run=state)).json()
        assert (told["assumed"], told["untimed"], told["rejected"]) == (1, 2, 1)
    [(batch_id,)] = await site.query("select distinct batch_id from facts")
    batch = await site.client.get(f"/v1/admin/batches/{batch_id}", headers=await site.token("admin"))
    first = json.loads(batch.json()["body"])[0]
    assert first == {"line": 2, "address": "ann@example.com", "reason": "manual", "word": "grumpy"}


async def test_our_own_export_read_back_adds_nothing(site: Site) -> None:
    reader, at = await site.token("read"), 1_700_000_000
    await site.deliver("email", [{"email": "Ann@example.com", "reason": "unsub", "timestamp": at}])
    await site.deliver("sms", [{"number": "15550100001", "timestamp": at}])
    put = await site.client.put(address_path("email", "bob@example.com"), headers=await site.token("write"), json=STOP)
    assert put.status_code == 200
    before = await site.query("select * from facts order by address")
    for form, kind in (("csv", "text/csv"), ("ndjson", "application/x-ndjson")):
        whole = await site.client.get("/v1/suppressions/export", headers=reader, params={"format": form})
        for state in ("true", "false"):
            told = (await sent(site, whole.content, kind=kind, dry_run=state)).json()
            assert [told[name] for name in ("accepted", "duplicates", "rejected", "skipped")] == [0, 2, 0, 1]
    assert await site.query("select * from facts order by address") == before
    whole = await site.client.get("/v1/suppressions/export", headers=reader)
    back = [{"number": "15550100001", "timestamp": at + 60, "opt-in": True}]
    assert (await sent(site, whole.content, channel="sms")).json()["duplicates"] == 1
    await site.deliver("sms", back)
    status = await site.client.get(address_path("sms", "15550100001"), headers=reader)
    assert status.json()["suppressed"] is False


async def test_what_elsewhere_was_kahunas_is_ours_where_it_is_not_known(site: Site) -> None:
    row: dict[str, Any] = {"namespace": "default", "channel": "email", "address": "ann@example.com"}
    row |= {"reason": "unsubscribe", "active": True, "occurred_at": "2023-11-14T22:13:20Z", "origin": "kahuna_webhook"}
    told = (await sent(site, json.dumps(row).encode(), kind="application/x-ndjson")).json()
    assert (told["accepted"], told["duplicates"]) == (1, 0)


async def test_as_of_takes_a_day(site: Site) -> None:
    await sent(site, b"ann@example.com\n", reason="manual", as_of="2026-01-31")
    assert await site.query("select to_timestamp(occurred_at) = timestamptz '2026-01-31 00:00Z' from facts") == [
        (True,)
    ]


async def test_it_comes_packed_or_not_and_as_json(site: Site) -> None:
    for body, kind, headers in (
        (gzip.compress(LIST, mtime=0), "text/csv; charset=utf-8", {"Content-Encoding": "gzip"}),
        (gzip.compress(LIST, mtime=0), "application/gzip", {}),
        (b'{"email": "ann@example.com", "reason": "spam", "created": 1700000000}\n', "application/x-ndjson", {}),
        (b'[{"email": "ann@example.com", "reason": "spam", "created": 1700000000}]', "application/json", {}),
    ):
        answer = await sent(site, body, kind=kind, headers=headers)
        assert answer.status_code == 200, answer.text
    assert len(await site.query("select 1 from facts")) == 2


@pytest.mark.parametrize(
    ("more", "status", "slug"),
    [
        ({"kind": "multipart/form-data; boundary=x"}, 415, "unsupported-media-type"),
        ({"headers": {"Content-Encoding": "br"}}, 415, "unsupported-encoding"),
        ({"channel": "fax"}, 422, "invalid-parameter"),
        ({"reason": "do_not_call"}, 422, "unknown-reason"),
        ({"as_of": "2999-01-01T00:00:00Z"}, 422, "impossible-time"),
        ({"as_of": "yesterday"}, 422, "invalid-time"),
        ({"as_of": "2026-02-30"}, 422, "invalid-time"),
        ({"as_of": "2026-01-31T00:00:00"}, 422, "invalid-time"),
        ({"dry_run": "perhaps"}, 422, "invalid-parameter"),
        ({"file_name": "a\nb"}, 422, "invalid-parameter"),
        ({"file": "a"}, 400, "unknown-parameter"),
        ({"namespace": "nowhere"}, 403, "other-namespace"),
        ({"body": b""}, 422, "empty-list"),
        ({"body": b"ann@example.com\n"}, 422, "reason-required"),
        ({"body": b"name,town\nAnn,Rome\n"}, 422, "no-address-column"),
        ({"body": b"ann@example.com,1\n"}, 422, "no-header"),
        ({"body": b"PK\x03\x04...."}, 422, "not-text"),
        ({"body": gzip.compress(LIST, mtime=0)[:-4]}, 422, "broken-list"),
        ({"body": b"{"}, 422, "broken-list"),
    ],
)
async def test_what_cannot_be_taken_in_is_a_problem(site: Site, more: dict[str, Any], status: int, slug: str) -> None:
    answer = await sent(site, more.pop("body", LIST), **more)
    assert is_problem(answer, status, slug)
    assert await site.query("select 1 from facts") == []


async def test_it_needs_the_scope_write(site: Site) -> None:
    assert is_problem(await sent(site, LIST, "read", "admin"), 403, "missing-scope")


async def test_a_list_that_stops_arriving_is_given_up_and_what_came_is_in(site: Site, settings: Settings) -> None:
    body = Halting(b"email\n" + b"".join(b"a%d@example.com\n" % n for n in range(12_000)))
    async with opened(replace(settings, body_timeout_seconds=0.1)) as impatient:
        answer = await sent(impatient, body, reason="manual")
    assert is_problem(answer, 408, "body-too-slow")
    assert "Lines up to 5001 are in" in answer.json()["detail"]
    assert await site.query("select count(*) from facts") == [(5000,)]
    body.go_on.set()
    whole = b"email\n" + b"".join(b"a%d@example.com\n" % n for n in range(12_000))
    again = (await sent(site, whole, reason="manual")).json()
    assert (again["accepted"], again["duplicates"]) == (7000, 5000)


async def test_enough_lists_at_a_time_leave_room_for_the_rest(site: Site) -> None:
    bodies = [Halting(LIST), Halting(LIST)]
    under_way = [asyncio.create_task(sent(site, body)) for body in bodies]
    for body in bodies:
        await body.half_read.wait()
    answer = await sent(site, LIST)
    assert is_problem(answer, 503, "storage-unavailable")
    assert answer.headers["Retry-After"]
    for body in bodies:
        body.go_on.set()
    assert [(await one).status_code for one in under_way] == [200, 200]
    assert (await sent(site, LIST)).status_code == 200


async def test_a_list_without_an_end_is_read_no_faster_than_it_is_stored(site: Site) -> None:
    endless = Endless(b"email\n")
    endless.part = b"a@example.com\n" * 100
    async with site.broken("digests"):
        answer = await sent(site, endless, reason="manual")
    assert is_problem(answer, 503, "storage-outdated")
    assert endless.read < 2_000_000
