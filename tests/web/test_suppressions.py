"""Questions and writes of internal services: the status document, who may ask, and what is refused in which words."""

import gzip
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx
import pytest

from service.settings import Settings
from tests.conftest import namespace
from tests.web.harness import Headers, Site, address_path, away, is_problem, opened

ANN = address_path("email", "ann@example.com")
STOP = {"email": "ann@example.com", "reason": "unsub", "timestamp": 1_700_000_000}


@pytest.fixture
async def site(settings: Settings) -> AsyncIterator[Site]:
    async with opened(settings) as site:
        yield site


@pytest.fixture
async def everything(site: Site) -> Headers:
    """A caller who may do everything in the default namespace."""
    return await site.token("read", "write", "admin")


async def document(answer: httpx.Response) -> dict[str, Any]:
    """The body of a good answer."""
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


# The document.


async def test_an_address_never_seen_may_be_messaged(site: Site, everything: Headers) -> None:
    found = await document(await site.client.get(address_path("email", "Bob@Example.com"), headers=everything))
    assert found == {
        "namespace": "default",
        "channel": "email",
        "address": "bob@example.com",
        "suppressed": False,
        "since": None,
        "until": None,
        "causes": [],
    }


async def test_a_stop_is_told_with_its_cause(site: Site, everything: Headers) -> None:
    batch = (await site.deliver("email", [STOP])).json()["batch_id"]
    found = await document(await site.client.get(ANN, headers=everything))
    assert (found["suppressed"], found["since"], found["until"]) == (True, "2023-11-14T22:13:20Z", None)
    assert found["causes"] == [
        {
            "reason": "unsubscribe",
            "active": True,
            "occurred_at": "2023-11-14T22:13:20Z",
            "recorded_at": "2026-03-01T12:00:00Z",
            "origin": "kahuna_webhook",
            "batch_id": batch,
            "until": None,
        }
    ]


async def test_a_write_answers_with_the_same_document_as_a_question(site: Site, everything: Headers) -> None:
    said = await document(await site.client.put(ANN, headers=everything, json={"reason": "complaint"}))
    assert said == await document(await site.client.get(ANN, headers=everything))
    (cause,) = said["causes"]
    assert (cause["reason"], cause["origin"], cause["batch_id"]) == ("complaint", "api", None)


@pytest.mark.parametrize(
    ("channel", "spelt", "normal"),
    [
        ("email", "Ann+Tag/x%y@Example.com", "ann+tag/x%y@example.com"),
        ("email", '"a@b c"@example.com', '"a@b c"@example.com'),
        ("email", "josé@bücher.example", "josé@xn--bcher-kva.example"),
        ("email", "a?b#c&d=e@example.com", "a?b#c&d=e@example.com"),
        ("sms", "+1 (555) 010-0001", "15550100001"),
    ],
)
async def test_any_address_fits_into_the_path(
    site: Site, everything: Headers, channel: str, spelt: str, normal: str
) -> None:
    said = await site.client.put(address_path(channel, spelt), headers=everything, json={"reason": "manual"})
    assert (await document(said))["address"] == normal
    found = await document(await site.client.get(address_path(channel, normal), headers=everything))
    assert (found["address"], found["suppressed"]) == (normal, True)


async def test_a_password_reset_ignores_an_unsubscribe(site: Site, everything: Headers) -> None:
    await site.client.put(ANN, headers=everything, json={"reason": "unsubscribe"})
    for purpose, suppressed in (("marketing", True), ("transactional", False)):
        answer = await site.client.get(ANN, headers=everything, params={"purpose": purpose})
        assert (await document(answer))["suppressed"] is suppressed


async def test_the_past_is_told_as_it_was_known_or_as_it_is_known_now(site: Site, everything: Headers) -> None:
    await site.deliver("email", [STOP])
    recorded_at = site.clock.now
    site.clock.sleep(86_400)

    async def suppressed(at: str, **basis: str) -> bool:
        answer = await site.client.get(ANN, headers=everything, params={"at": at} | basis)
        return bool((await document(answer))["suppressed"])

    assert not await suppressed("2023-11-14T22:13:20Z")
    assert not await suppressed("2023-11-14T22:13:19Z", basis="occurred")
    assert await suppressed("2023-11-14T22:13:20Z", basis="occurred")
    assert await suppressed("2023-11-14T23:13:20+01:00", basis="occurred")
    assert not await suppressed("2026-03-01T11:59:59Z", basis="recorded")
    assert await suppressed(recorded_at.isoformat(), basis="recorded")


# HEAD, ETag, 304.


async def test_head_tells_what_get_would(site: Site, everything: Headers) -> None:
    got, head = [await ask(ANN, headers=everything) for ask in (site.client.get, site.client.head)]
    assert head.status_code == got.status_code == 200
    for name in ("ETag", "Content-Type", "Content-Length", "Cache-Control"):
        assert head.headers[name] == got.headers[name]


@pytest.mark.parametrize("form", ["{}", "W/{}", '"other", {}', "*"])
async def test_what_the_caller_has_is_not_sent_again(site: Site, everything: Headers, form: str) -> None:
    tag = (await site.client.get(ANN, headers=everything)).headers["ETag"]
    again = await site.client.get(ANN, headers={**everything, "If-None-Match": form.format(tag)})
    assert (again.status_code, again.content, again.headers["ETag"]) == (304, b"", tag)
    assert again.headers["Cache-Control"] == "no-store"
    assert again.headers["X-Request-ID"]


async def test_the_tag_changes_with_the_answer_and_with_nothing_else(site: Site, everything: Headers) -> None:
    async def tag(**parameters: str) -> str:
        return str((await site.client.get(ANN, headers=everything, params=parameters)).headers["ETag"])

    unknown = await tag()
    await site.deliver("email", [STOP])
    known = await tag()
    site.clock.sleep(60)
    assert unknown != known == await tag()
    assert await tag(purpose="transactional") != known
    fresh = await site.client.get(ANN, headers={**everything, "If-None-Match": unknown})
    assert fresh.status_code == 200


# Writes.


async def test_a_consent_ends_what_came_before_it(site: Site, everything: Headers) -> None:
    await site.deliver("email", [STOP])
    consent = {"evidence": "form 7", "occurred_at": "2024-01-01T00:00:00Z"}
    said = await document(await site.client.post(f"{ANN}/reactivate", headers=everything, json=consent))
    assert not said["suppressed"]
    assert {cause["active"] for cause in said["causes"]} == {False}


@pytest.mark.parametrize("occurred_at", ["2023-11-14T22:13:20Z", "2023-11-14T22:13:19Z"])
async def test_a_stop_at_or_after_the_consent_refuses_it(site: Site, everything: Headers, occurred_at: str) -> None:
    await site.deliver("email", [STOP])
    before = await document(await site.client.get(ANN, headers=everything))
    consent = {"evidence": "form 7", "occurred_at": occurred_at}
    answer = await site.client.post(f"{ANN}/reactivate", headers=everything, json=consent)
    assert is_problem(answer, 409, "newer-stop")
    assert await document(await site.client.get(ANN, headers=everything)) == before


@pytest.mark.parametrize(
    "body",
    [
        {"evidence": "form 7"},
        {"occurred_at": "2024-01-01T00:00:00Z"},
        {"evidence": " ", "occurred_at": "2024-01-01T00:00:00Z"},
        {"evidence": None, "occurred_at": "2024-01-01T00:00:00Z"},
        {"evidence": "form 7", "occurred_at": "2024-01-01T00:00:00Z", "extra": 1},
    ],
)
async def test_a_consent_needs_its_evidence_and_its_time(site: Site, everything: Headers, body: object) -> None:
    answer = await site.client.post(f"{ANN}/reactivate", headers=everything, json=body)
    assert is_problem(answer, 422, "invalid-body")


REFUSED_STOPS: dict[str, tuple[str, bytes, int, str]] = {
    "no json": (ANN, b"reason=manual", 400, "not-json"),
    "no body": (ANN, b"", 400, "not-json"),
    "no object": (ANN, b"[]", 422, "invalid-body"),
    "no reason": (ANN, b"{}", 422, "invalid-body"),
    "unknown field": (ANN, b'{"reason":"manual","reasno":1}', 422, "invalid-body"),
    "unknown reason": (ANN, b'{"reason":"do_not_call"}', 422, "unknown-reason"),
    "a mail's reason for a number": (
        address_path("sms", "15550100001"),
        b'{"reason":"unsubscribe"}',
        422,
        "unknown-reason",
    ),
    "no time": (ANN, b'{"reason":"manual","occurred_at":"yesterday"}', 422, "invalid-time"),
    "no offset": (ANN, b'{"reason":"manual","occurred_at":"2024-01-01T00:00:00"}', 422, "invalid-time"),
    "the future": (ANN, b'{"reason":"manual","occurred_at":"2026-03-01T12:05:01Z"}', 422, "impossible-time"),
    "before all time": (ANN, b'{"reason":"manual","occurred_at":"1969-12-31T23:59:59Z"}', 422, "impossible-time"),
    "no address": (address_path("email", "ann"), b'{"reason":"manual"}', 422, "impossible-address"),
    "no number": (address_path("sms", "1234"), b'{"reason":"manual"}', 422, "impossible-address"),
    "no channel": (address_path("fax", "15550100001"), b'{"reason":"manual"}', 404, "unknown-channel"),
    "too large": (ANN, b'{"reason":"' + b"x" * 1024 * 1024 + b'"}', 413, "body-too-large"),
    "half a character": (ANN, b'{"reason":"manual","note":"\\ud800"}', 400, "not-json"),
}


@pytest.mark.parametrize(("path", "body", "code", "slug"), REFUSED_STOPS.values(), ids=REFUSED_STOPS)
async def test_a_stop_that_cannot_be_is_refused(
    site: Site, everything: Headers, path: str, body: bytes, code: int, slug: str
) -> None:
    answer = await site.client.put(path, headers=everything, content=body)
    assert is_problem(answer, code, slug)
    assert "ann@" not in answer.text
    assert await site.query("select count(*) from facts") == [(0,)]


@pytest.mark.parametrize("ahead", ["2026-03-01T12:05:00Z", "2026-03-01T13:05:00+01:00"])
async def test_a_clock_may_be_five_minutes_ahead(site: Site, everything: Headers, ahead: str) -> None:
    answer = await site.client.put(ANN, headers=everything, json={"reason": "manual", "occurred_at": ahead})
    assert (await document(answer))["since"] == "2026-03-01T12:05:00Z"


async def test_a_note_that_no_database_can_hold_does_not_break_the_stop(site: Site, everything: Headers) -> None:
    answer = await site.client.put(ANN, headers=everything, json={"reason": "manual", "note": "a\0b"})
    assert answer.status_code in (200, 422), answer.text


async def test_evidence_that_no_database_can_hold_is_no_fault_of_ours(site: Site, everything: Headers) -> None:
    consent = {"evidence": "a\0b", "occurred_at": "2024-01-01T00:00:00Z"}
    answer = await site.client.post(f"{ANN}/reactivate", headers=everything, json=consent)
    assert answer.status_code in (200, 422), answer.text


async def test_an_address_that_others_hold_is_busy(settings: Settings) -> None:
    async with opened(replace(settings, lock_timeout_milliseconds=20)) as site:
        await site.deliver("email", [STOP])
        caller = await site.token("write")
        async with site.database.begin() as connection:
            await connection.exec_driver_sql("select from suppressions for update")
            answer = await site.client.put(ANN, headers=caller, json={"reason": "unsubscribe"})
        assert is_problem(answer, 503, "storage-busy")
        assert int(answer.headers["Retry-After"]) > 0


# Who may ask.


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer ", "Basic abc", "Bearer unknown", "Bearer \xff"])
async def test_without_a_token_that_is_known_nothing_is_told(site: Site, header: str) -> None:
    answer = await site.client.get(ANN, headers={b"Authorization": header.encode("latin-1")})
    assert is_problem(answer, 401, "unauthenticated")
    assert answer.headers["WWW-Authenticate"] == "Bearer"


async def test_a_revoked_token_is_unknown(site: Site, everything: Headers) -> None:
    await site.execute("update tokens set revoked_at = now()")
    site.clock.sleep(site.settings.token_cache_seconds)
    assert is_problem(await site.client.get(ANN, headers=everything), 401, "unauthenticated")


@pytest.mark.parametrize("scope", ["read", "write", "admin"])
async def test_each_scope_opens_its_own_calls_alone(site: Site, scope: str) -> None:
    caller = await site.token(scope)
    consent = {"evidence": "form 7", "occurred_at": "2024-01-01T00:00:00Z"}
    answers = {
        "read": [await site.client.get(ANN, headers=caller), await site.client.head(ANN, headers=caller)],
        "write": [
            await site.client.put(
                ANN, headers=caller, json={"reason": "manual", "occurred_at": "2023-01-01T00:00:00Z"}
            ),
            await site.client.post(f"{ANN}/reactivate", headers=caller, json=consent),
        ],
        "admin": [await site.client.get("/v1/admin/reviews", headers=caller)],
    }
    for needed, given in answers.items():
        assert {answer.status_code for answer in given} == ({200} if needed == scope else {403})


async def test_a_missing_scope_is_named(site: Site) -> None:
    answer = await site.client.put(ANN, headers=await site.token("read", "admin"), json={"reason": "manual"})
    assert is_problem(answer, 403, "missing-scope")
    assert "write" in answer.json()["detail"]


async def test_a_scheme_is_spelt_in_any_case(site: Site, everything: Headers) -> None:
    lower = {"Authorization": everything["Authorization"].replace("Bearer", "bearer")}
    assert (await site.client.get(ANN, headers=lower)).status_code == 200


# Of which namespace.


@pytest.mark.parametrize(
    ("tokens", "asked", "code", "told"),
    [
        ("default", None, 200, "default"),
        ("other", None, 200, "other"),
        ("other", "other", 200, "other"),
        ("other", "default", 403, "other-namespace"),
        ("other", "nowhere", 403, "other-namespace"),
        (None, "other", 200, "other"),
        (None, None, 400, "namespace-required"),
        (None, "nowhere", 404, "unknown-namespace"),
        ("nowhere", None, 404, "unknown-namespace"),
    ],
)
async def test_a_call_speaks_of_one_namespace(
    site: Site, tokens: str | None, asked: str | None, code: int, told: str
) -> None:
    caller = await site.token("read", "write", namespace=tokens)
    parameters = {} if asked is None else {"namespace": asked}
    stop = {"reason": "manual", "occurred_at": "2024-01-01T00:00:00Z"}
    consent = {"evidence": "form 7", "occurred_at": "2024-02-01T00:00:00Z"}
    for answer in (
        await site.client.get(ANN, headers=caller, params=parameters),
        await site.client.put(ANN, headers=caller, params=parameters, json=stop),
        await site.client.post(f"{ANN}/reactivate", headers=caller, params=parameters, json=consent),
    ):
        if code == 200:
            assert (await document(answer))["namespace"] == told
        else:
            assert is_problem(answer, code, told)


async def test_the_only_namespace_need_not_be_named(settings: Settings) -> None:
    async with opened(replace(settings, namespaces=(namespace("only"),))) as site:
        answer = await site.client.get(ANN, headers=await site.token("read", namespace=None))
        assert (await document(answer))["namespace"] == "only"


async def test_facts_do_not_cross_namespaces(site: Site, everything: Headers) -> None:
    await site.client.put(ANN, headers=everything, json={"reason": "manual"})
    elsewhere = await site.client.get(ANN, headers=await site.token("read", namespace="other"))
    assert (await document(elsewhere))["causes"] == []


# Questions that are not understood.

REFUSED_QUESTIONS = {
    "unknown": ({"porpose": "marketing"}, 400, "unknown-parameter"),
    "purpose": ({"purpose": "fun"}, 422, "invalid-parameter"),
    "basis": ({"basis": "guessed"}, 422, "invalid-parameter"),
    "basis of no moment": ({"basis": "occurred"}, 422, "at-required"),
    "time": ({"at": "noon"}, 422, "invalid-time"),
    "a day": ({"at": "2024-01-01"}, 422, "invalid-time"),
    "no offset": ({"at": "2024-01-01T00:00:00"}, 422, "invalid-time"),
    "the future": ({"at": "2026-03-01T12:00:01Z"}, 422, "future-time"),
    "a namespace with a nul": ({"namespace": "a\0b"}, 422, "invalid-parameter"),
}


@pytest.mark.parametrize(("parameters", "code", "slug"), REFUSED_QUESTIONS.values(), ids=REFUSED_QUESTIONS)
async def test_a_question_that_is_not_understood_is_refused(
    site: Site, everything: Headers, parameters: dict[str, str], code: int, slug: str
) -> None:
    assert is_problem(await site.client.get(ANN, headers=everything, params=parameters), code, slug)


@pytest.mark.parametrize("at", ["2026-03-01T13:00:00+01:00", "2026-03-01T13:00:00 01:00", "0001-01-01T00:00:00+14:00"])
async def test_an_offset_need_not_be_escaped_and_any_past_will_do(site: Site, everything: Headers, at: str) -> None:
    assert (await site.client.get(f"{ANN}?at={at}", headers=everything)).status_code == 200


async def test_a_parameter_given_twice_is_refused(site: Site, everything: Headers) -> None:
    answer = await site.client.get(f"{ANN}?purpose=marketing&purpose=transactional", headers=everything)
    assert is_problem(answer, 400, "repeated-parameter")


@pytest.mark.parametrize("method", ["PUT", "POST"])
async def test_a_write_takes_no_parameter_but_its_namespace(site: Site, everything: Headers, method: str) -> None:
    path = ANN if method == "PUT" else f"{ANN}/reactivate"
    answer = await site.client.request(method, path, headers=everything, params={"dry_run": "1"}, json={})
    assert is_problem(answer, 400, "unknown-parameter")


async def test_an_unknown_channel_and_an_impossible_address_are_told_apart(site: Site, everything: Headers) -> None:
    assert is_problem(await site.client.get("/v1/suppressions/fax/1", headers=everything), 404, "unknown-channel")
    for path in (address_path("email", "ann"), address_path("sms", "STOP"), "/v1/suppressions/email/"):
        assert is_problem(await site.client.get(path, headers=everything), 422, "impossible-address")


async def test_another_method_is_told_which_are_allowed(site: Site, everything: Headers) -> None:
    answer = await site.client.delete(ANN, headers=everything)
    assert is_problem(answer, 405, "method-not-allowed")
    assert {"GET", "HEAD", "PUT"} == set(answer.headers["Allow"].split(", "))


async def test_there_is_nothing_elsewhere(site: Site, everything: Headers) -> None:
    for path in ("/", "/v1", "/v2/suppressions/email/a@b", "/webhooks/default/fax", "/livez/", f"{ANN}/nothing"):
        assert is_problem(await site.client.get(path, headers=everything), 404, "not-found")


async def test_what_is_below_an_address_is_not_taken_for_an_address(site: Site, everything: Headers) -> None:
    answer = await site.client.get(f"{ANN}/reactivate", headers=everything)
    assert is_problem(answer, 405, "method-not-allowed")
    assert answer.headers["Allow"] == "POST"


async def test_a_stop_with_the_path_of_a_consent_makes_no_fact(site: Site, everything: Headers) -> None:
    answer = await site.client.put(f"{ANN}/reactivate", headers=everything, json={"reason": "manual"})
    assert answer.status_code in (404, 405)
    assert await site.query("select count(*) from facts") == [(0,)]


# Faults of our own.


async def test_a_fault_of_ours_is_a_problem_with_an_id_and_no_detail(site: Site, everything: Headers) -> None:
    await site.execute("alter table suppressions alter column address type bytea using address::bytea")
    answer = await site.client.get(ANN, headers={**everything, "X-Request-ID": "trace-1"})
    assert is_problem(answer, 500, "internal-error")
    assert answer.headers["X-Request-ID"] == "trace-1"
    assert "bytea" not in answer.text


async def test_a_missing_table_says_what_to_run_and_passes(site: Site, everything: Headers) -> None:
    async with site.broken("suppressions"):
        answer = await site.client.get(ANN, headers=everything)
    assert is_problem(answer, 503, "storage-outdated")
    assert "kahuna-sync migrate" in answer.text
    assert (await site.client.get(ANN, headers=everything)).status_code == 200


@pytest.mark.parametrize("encoded", ["jos%E9@example.com", "%FF@example.com", "a%2@example.com", "a%zz@example.com"])
async def test_a_path_that_is_not_utf_8_is_not_answered_for_another_address(
    site: Site, everything: Headers, encoded: str
) -> None:
    answer = await site.client.get(f"/v1/suppressions/email/{encoded}", headers=everything)
    assert is_problem(answer, 400, "bad-encoding")


async def test_without_a_database_there_is_no_answer_yet(settings: Settings) -> None:
    async with opened(replace(settings, database_url=away())) as site:
        answer = await site.client.get(ANN, headers={"Authorization": "Bearer any"})
        assert is_problem(answer, 503, "storage-unavailable")
        assert int(answer.headers["Retry-After"]) > 0


# Bodies that are compressed, and paths that are too long.


async def put_zipped(site: Site, headers: Headers, body: bytes, encoding: str = "gzip") -> httpx.Response:
    return await site.client.put(ANN, headers={**headers, "Content-Encoding": encoding}, content=body)


async def test_a_body_may_be_compressed(site: Site, everything: Headers) -> None:
    answer = await put_zipped(site, everything, gzip.compress(b'{"reason": "manual"}'))
    assert (await document(answer))["suppressed"] is True


async def test_a_body_that_is_not_what_its_encoding_says_is_refused(site: Site, everything: Headers) -> None:
    whole = gzip.compress(b'{"reason": "manual"}')
    for body in (b'{"reason": "manual"}', whole[:-5]):
        assert is_problem(await put_zipped(site, everything, body), 400, "not-gzip")
    assert is_problem(await put_zipped(site, everything, whole, "br"), 415, "unsupported-encoding")


async def test_a_small_body_may_not_become_a_large_one(site: Site, everything: Headers) -> None:
    bomb = gzip.compress(b" " * (2 * 1024 * 1024))
    assert is_problem(await put_zipped(site, everything, bomb), 413, "body-too-large")


async def test_a_path_that_nothing_can_mean_is_not_judged(site: Site, everything: Headers) -> None:
    for path in (f"/v1/suppressions/email/{'a' * 17_000}@example.com", f"{ANN}?purpose={'a' * 17_000}"):
        assert is_problem(await site.client.get(path, headers=everything), 414, "path-too-long")
