"""Signing in and out, and what a form must bring."""

import re
from dataclasses import replace
from datetime import timedelta

import pytest
from structlog.testing import capture_logs

from service.settings import Settings
from service.store import sessions
from tests.console.browsing import ORIGIN, Seen, browsing, csrf_in, signed_in
from tests.web.harness import Endless, opened


async def test_a_token_is_exchanged_for_a_session_that_no_script_and_no_other_site_can_use(settings: Settings) -> None:
    async with opened(settings) as site, browsing(site) as person:
        assert (await person.get("/console/health")).headers["Location"] == "/console/sign-in?next=/console/health"
        answer = await person.post("/console/sign-in", token=person.token, next="/console/health")
        assert (answer.status_code, answer.headers["Location"]) == (303, "/console/health")
        cookie = answer.headers["Set-Cookie"]
        assert re.match(r"__Host-ks-session=[\w-]{43}; ", cookie)
        attributes = {part.strip().lower() for part in cookie.split(";")[1:]}
        assert attributes >= {"httponly", "secure", "samesite=strict", "path=/", "max-age=43200"}
        assert not any(one.startswith("domain") for one in attributes)
        assert (await person.get("/console/health")).status_code == 200


async def test_a_form_needs_what_its_session_wrote_into_the_page(settings: Settings) -> None:
    async with signed_in(settings) as person:
        assert (await person.post("/console/sign-out", csrf="")).status_code == 403
        assert (await person.post("/console/sign-out", csrf="0" * 64)).status_code == 403
        csrf = csrf_in((await person.get("/console")).text)
        answer = await person.post("/console/sign-out", csrf=csrf)
        assert (answer.status_code, answer.headers["Location"]) == (303, "/console/sign-in")
        assert (await person.get("/console")).status_code == 303


async def test_who_signs_in_again_is_not_told_that_they_are_signed_out(settings: Settings) -> None:
    async with signed_in(settings) as person:
        await person.act("/console/sign-out")
        assert "You are signed out." in (await person.get("/console/sign-in")).text
        await person.sign_in()
        assert "You are signed out." not in (await person.get("/console")).text


@pytest.mark.parametrize("origin", ["https://evil.test", "http://sync.test", "null", ""])
async def test_a_form_of_another_origin_is_refused(settings: Settings, origin: str) -> None:
    async with signed_in(settings) as person:
        csrf = await person.csrf()
        assert (await person.post("/console/sign-out", origin, csrf=csrf)).status_code == 403
        assert (await person.post("/console/sign-in", origin, token=person.token)).status_code == 403
        assert (await person.get("/console")).status_code == 200


@pytest.mark.parametrize("host", ["localhost:8700", "127.0.0.1:8700", "[::1]:8700"])
async def test_on_this_machine_there_need_be_no_tls(settings: Settings, host: str) -> None:
    async with opened(settings) as site, browsing(site) as person:
        headers = {"Origin": f"http://{host}", "Host": host}
        answer = await person.client.post("/console/sign-in", data={"token": person.token}, headers=headers)
        assert answer.status_code == 303
        headers["Origin"] = "http://localhost:1"
        refused = await person.client.post("/console/sign-in", data={"token": person.token}, headers=headers)
        assert refused.status_code == 403


async def test_a_form_from_another_site_is_refused_whatever_its_origin_says(settings: Settings) -> None:
    async with signed_in(settings) as person:
        fields = {"csrf": await person.csrf()}
        for word in ("cross-site", "same-site", "none"):
            headers = {"Origin": "https://sync.test", "Sec-Fetch-Site": word}
            answer = await person.client.post("/console/sign-out", data=fields, headers=headers)
            assert answer.status_code == 403
        assert (await person.get("/console")).status_code == 200


async def test_only_a_living_token_with_the_scope_admin_opens_it(settings: Settings) -> None:
    async with opened(settings) as site:
        async with browsing(site, "read", "write") as person:
            answer = await person.sign_in()
            assert (answer.status_code, "lacks the scope admin" in answer.text) == (403, True)
            assert "set-cookie" not in answer.headers
        ends = site.clock.now + timedelta(hours=1)
        async with browsing(site, expires_at=ends) as person:
            assert (await person.sign_in()).status_code == 303
            site.clock.sleep(3601)
            assert (await person.get("/console")).headers["Location"] == "/console/sign-in"
            answer = await person.sign_in()
            assert (answer.status_code, "unknown, revoked or expired" in answer.text) == (403, True)
            assert person.token not in answer.text


async def test_a_token_that_is_revoked_ends_its_sessions(settings: Settings) -> None:
    async with signed_in(settings) as person:
        csrf = await person.csrf()
        await person.site.execute("update tokens set revoked_at = now()")
        assert (await person.get("/console")).headers["Location"] == "/console/sign-in"
        answer = await person.post("/console/tokens/create", csrf=csrf, name="late")
        assert answer.headers["Location"] == "/console/sign-in"
        assert await person.site.query("select count(*) from tokens where name = 'late'") == [(0,)]


async def test_a_session_has_an_end_and_is_removed_after_it(settings: Settings) -> None:
    async with signed_in(replace(settings, console_session_hours=2.0)) as person:
        person.site.clock.sleep(2 * 3600 - 1)
        assert (await person.get("/console")).status_code == 200
        person.site.clock.sleep(2)
        assert (await person.get("/console")).status_code == 303
        assert (await person.sign_in()).status_code == 303
        assert await person.site.query("select count(*) from sessions") == [(1,)]


async def test_who_signs_in_again_ends_the_session_that_they_had(settings: Settings) -> None:
    async with signed_in(settings) as person:
        old = dict(person.client.cookies)
        await person.sign_in()
        assert await person.site.query("select count(*) from sessions") == [(1,)]
        person.client.cookies.clear()
        person.client.cookies.update(old)
        assert (await person.get("/console")).status_code == 303


async def test_of_a_form_by_nobody_nothing_is_read_and_little_of_a_sign_in(settings: Settings) -> None:
    async with opened(settings) as site, browsing(site) as person:
        headers = {"Origin": ORIGIN, "Content-Type": "application/x-www-form-urlencoded"}
        body = Endless()
        answer = await person.client.post("/console/tokens/create", content=body, headers=headers)
        assert (answer.status_code, body.read) == (303, 0)
        answer = await person.client.post("/console/sign-in", content=body, headers=headers)
        assert (answer.status_code, body.read) == (413, 17_000)


async def test_a_token_has_so_many_sessions_at_most(settings: Settings) -> None:
    async with signed_in(settings) as person:
        oldest = dict(person.client.cookies)
        for _ in range(sessions.MOST_OF_A_TOKEN):
            person.site.clock.sleep(1)
            person.client.cookies.clear()
            assert (await person.sign_in()).status_code == 303
        assert await person.site.query("select count(*) from sessions") == [(sessions.MOST_OF_A_TOKEN,)]
        assert (await person.get("/console")).status_code == 200
        person.client.cookies.clear()
        person.client.cookies.update(oldest)
        assert (await person.get("/console")).status_code == 303


async def test_the_database_holds_nothing_that_opens_a_session(settings: Settings) -> None:
    async with signed_in(settings) as person:
        ((digest,),) = await person.site.query("select digest from sessions")
        key = person.client.cookies["__Host-ks-session"]
        assert key.encode() not in digest
        for wrong in (digest.hex(), key[:-1], ""):
            person.client.cookies.clear()
            person.client.cookies.set("__Host-ks-session", wrong)
            assert (await person.get("/console")).status_code == 303


async def test_who_guesses_has_to_wait_and_whoever_has_a_token_does_not(settings: Settings) -> None:
    async with opened(settings) as site, browsing(site) as person:
        with capture_logs() as log:
            for _ in range(10):
                assert (await person.post("/console/sign-in", token="guess")).status_code == 403
                site.clock.sleep(2)
            answer = await person.post("/console/sign-in", token="guess")
            assert (answer.status_code, answer.headers["Retry-After"]) == (429, "40")
            assert "check it" in answer.text
        assert [line["event"] for line in log].count("console.sign_in_refused") == 10
        # From the same place: behind a proxy that is not trusted that is everybody.
        assert (await person.sign_in()).status_code == 303
        assert (await person.post("/console/sign-in", token="guess")).status_code == 429
        site.clock.sleep(41)
        assert (await person.post("/console/sign-in", token="guess")).status_code == 403


async def test_what_follows_a_sign_in_is_a_page_of_the_console(settings: Settings) -> None:
    async with opened(settings) as site, browsing(site) as person:
        for elsewhere in (
            "https://evil.test/",
            "//evil.test",
            "/v1/changes",
            "/console/../v1",
            "/console/x\\evil",
            f"/console/{'x' * 2000}",
        ):
            answer = await person.post("/console/sign-in", token=person.token, next=elsewhere)
            assert answer.headers["Location"] == "/console"
        deep = "/console/batches?channel=sms&since=2026-01-31T12%3A00"
        person.client.cookies.clear()
        leads = (await person.get(deep)).headers["Location"]
        asked = Seen((await person.get(leads)).text)
        assert [field["value"] for field in asked.of("input") if field["name"] == "next"] == [deep]
        answer = await person.post("/console/sign-in", token=person.token, next=deep)
        assert answer.headers["Location"] == deep


async def test_coming_and_going_is_audited_and_no_secret_is(settings: Settings) -> None:
    async with signed_in(settings) as person:
        await person.act("/console/sign-out")
        query = "select actor, action, detail::text from audit where action like 'console.%' order by at, action"
        rows = await person.site.query(query)
        assert [row[:2] for row in rows] == [("ann", "console.sign_in"), ("ann", "console.sign_out")]
        assert person.token not in str(rows)


async def test_without_a_database_there_is_a_page_that_says_so(settings: Settings) -> None:
    async with signed_in(replace(settings, database_connect_timeout_seconds=0.5)) as person:
        async with person.site.broken("sessions"):
            answer = await person.get("/console")
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
        assert "The database is away" in answer.text


@pytest.mark.parametrize(
    ("kind", "body", "status"),
    [
        ("application/json", b"{}", 400),
        ("application/x-www-form-urlencoded", b"token=\xff", 400),
        ("application/x-www-form-urlencoded", b"token=%FF", 400),
        ("application/x-www-form-urlencoded", b"token=%00", 400),
        ("application/x-www-form-urlencoded", b"&".join(b"a=1" for _ in range(2000)), 400),
        ("application/x-www-form-urlencoded", b"token=" + b"x" * 300_000, 413),
    ],
)
async def test_a_form_that_no_browser_sends_is_refused(settings: Settings, kind: str, body: bytes, status: int) -> None:
    async with opened(settings) as site, browsing(site) as person:
        headers = {"Origin": "https://sync.test", "Content-Type": kind}
        answer = await person.client.post("/console/sign-in", content=body, headers=headers)
        assert answer.status_code == status
        assert answer.headers["Content-Type"].startswith("text/html")
