"""What holds for every page: its headers, its fields, and that it shows words as words."""

import re
from dataclasses import replace

import httpx
import pytest

from service.app import build, desk_of
from service.settings import Settings
from service.web.console.frame import PAGES
from service.web.console.visiting import NAVIGATION
from tests.console.browsing import ORIGIN, Seen, browsing, signed_in
from tests.console.seeding import seed
from tests.flows.speaking import Clock
from tests.web.harness import is_problem, opened, with_state

PLAIN = sorted({page.path for page in PAGES if "{" not in page.path})


def check(answer: httpx.Response) -> Seen:
    """Asserts what holds for every page."""
    headers = answer.headers
    policy = dict(part.strip().split(" ", 1) for part in headers["Content-Security-Policy"].split(";"))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert {policy[name] for name in ("script-src", "style-src", "img-src", "form-action")} == {"'self'"}
    assert (headers["Cache-Control"], headers["X-Content-Type-Options"]) == ("no-store", "nosniff")
    assert headers["Referrer-Policy"] == "same-origin"
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    seen = Seen(answer.text)
    for tag, attributes in seen.tags:
        assert not any(name == "style" or name.startswith("on") for name in attributes), (tag, attributes)
        assert tag != "style"
        assert tag != "script" or attributes["src"].startswith("/console/keys.js?")
    labelled = {label["for"] for label in seen.of("label") if "for" in label}
    for field in seen.of("input", "select", "textarea"):
        assert field.get("type") in ("hidden", "checkbox", "radio") or field.get("id") in labelled, field
    ids = [attributes["id"] for _, attributes in seen.tags if "id" in attributes]
    assert len(ids) == len(set(ids)), [one for one in ids if ids.count(one) > 1]
    assert len(seen.of("main")) == len(seen.of("h1")) == 1
    return seen


@pytest.mark.parametrize("path", PLAIN)
async def test_every_page_is_well_made_on_an_empty_site(settings: Settings, path: str) -> None:
    async with signed_in(settings) as person:
        answer = await person.get(path)
        assert answer.status_code == 200, answer.text
        check(answer)


async def test_every_page_is_well_made_on_a_site_that_has_lived_and_shows_words_as_words(settings: Settings) -> None:
    async with signed_in(settings, name="<script>alert(4)</script>") as person:
        await seed(person.site)
        for path in PLAIN:
            answer = await person.get(path)
            assert answer.status_code == 200, answer.text
            forms = [form for form in check(answer).of("form") if form.get("method") == "post"]
            assert answer.text.count('name="csrf"') == len(forms)
            assert "<script>alert" not in answer.text
            assert "<img src=x" not in answer.text
            assert "&lt;script&gt;alert(4)" in answer.text


async def test_pages_for_those_outside_are_well_made_too(settings: Settings) -> None:
    async with signed_in(settings) as person:
        person.client.cookies.clear()
        check(await person.get("/console/sign-in"))
        check(await person.post("/console/sign-in", token="<script>"))
        check(await person.post("/console/tokens/create", origin="https://evil.test"))


async def test_an_error_is_a_page_that_says_what_to_do(settings: Settings) -> None:
    async with signed_in(settings) as person:
        for path, status, says in (
            ("/console/nothing", 404, "There is no such page"),
            ("/console?namespace=unknown", 404, "namespace"),
        ):
            answer = await person.get(path)
            assert (answer.status_code, says in answer.text) == (status, True), answer.text
            check(answer)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("POST", "/console", "GET, HEAD"),
        ("PUT", "/console/tokens", "GET, HEAD"),
        ("GET", "/console/tokens/revoke", "POST"),
        ("BREW", "/console/sign-in", "GET, HEAD, POST"),
        ("DELETE", "/console/style.css", "GET, HEAD"),
    ],
)
async def test_another_method_is_refused_on_a_page_that_keeps_the_console_s_promises(
    settings: Settings, method: str, path: str, allowed: str
) -> None:
    async with opened(settings) as site:
        answer = await site.client.request(method, path)
        assert (answer.status_code, answer.headers["Allow"]) == (405, allowed)
        check(answer)
        assert (await site.client.request(method, "/console/nothing")).status_code == 303, (
            "whoever it is signs in first"
        )


async def test_the_files_of_a_page_are_there_for_everybody_and_are_kept(settings: Settings) -> None:
    async with signed_in(settings) as person:
        seen = Seen((await person.get("/console/health")).text)
        paths = [link["href"] for link in seen.of("link")] + [script["src"] for script in seen.of("script")]
        person.client.cookies.clear()
        kinds = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
        assert len(paths) == len(kinds)
        for path in paths:
            answer = await person.get(path)
            assert answer.status_code == 200
            assert answer.headers["Content-Type"].startswith(kinds[path.partition("?")[0].rpartition(".")[2]])
            assert "immutable" in answer.headers["Cache-Control"]


async def test_a_file_of_another_release_is_not_kept_under_its_name(settings: Settings) -> None:
    async with opened(settings) as site:
        for query in ("", "?0123456789ab"):
            answer = await site.client.get(f"/console/style.css{query}")
            assert (answer.status_code, answer.headers["Cache-Control"]) == (200, "no-store")


async def test_what_a_page_saves_is_kept_by_no_cache(settings: Settings) -> None:
    async with signed_in(settings) as person:
        await person.site.deliver("email", [{"email": "ann@example.com", "reason": "unsub"}])
        ((batch_id,),) = await person.site.query("select id from batches")
        answer = await person.get(f"/console/batches/{batch_id}/body")
        assert b"ann@example.com" in answer.content
        assert answer.headers["Content-Disposition"] == "attachment"
        assert (answer.headers["Cache-Control"], answer.headers["X-Content-Type-Options"]) == ("no-store", "nosniff")
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]


@pytest.mark.parametrize("word", ["%00", "x" * 65, "%EF%BC%91", "%0Aa"])
async def test_what_can_be_no_id_is_not_found_and_not_written_down(settings: Settings, word: str) -> None:
    async with signed_in(settings) as person:
        for path in (f"/console/batches/{word}/replay", f"/console/quarantine/{word}/0/requeue"):
            answer = await person.act(path)
            assert (answer.status_code, "There is no such page" in answer.text) == (404, True)
        assert await person.site.query("select count(*) from audit where action = 'console.action'") == [(0,)]


async def test_a_fault_of_ours_is_a_page_without_a_detail_and_a_problem_elsewhere(settings: Settings) -> None:
    async with signed_in(settings) as person:
        headers = await person.site.token("admin")
        start = {"number": "15550100001", "timestamp": 0, "opt-in": True}
        assert (await person.site.deliver("sms", [start])).status_code == 200
        await person.site.execute("alter table reviews alter column why type integer using 0")
        answer = await person.get("/console/reviews")
        assert (answer.status_code, "fault of ours" in answer.text) == (500, True)
        assert "why" not in answer.text
        check(answer)
        answer = await person.site.client.get("/v1/admin/reviews", headers=headers)
        assert is_problem(answer, 500, "internal-error")


async def test_what_was_done_is_said_once(settings: Settings) -> None:
    async with signed_in(settings) as person:
        await person.act("/console/tokens/create", name="Jürgen <b>", **{"scope-read": "yes"})
        ((token_id,),) = await person.site.query("select id from tokens where name like 'J%'")
        answer = await person.act("/console/tokens/revoke", id=token_id)
        assert answer.headers["Location"] == "/console/tokens?namespace=default"
        assert "Revoked Jürgen &lt;b&gt;." in (await person.get("/console/tokens")).text
        assert "Revoked" not in (await person.get("/console/tokens")).text


async def test_a_note_that_we_did_not_write_does_no_harm(settings: Settings) -> None:
    async with signed_in(settings) as person:
        for word in ("%%%", "_w==", "PHNjcmlwdD4="):
            person.client.cookies.set("__Host-ks-note", word, domain="sync.test", path="/")
            answer = await person.get("/console/health")
            assert answer.status_code == 200
            check(answer)


async def test_an_action_is_audited_before_it_is_done_with_the_page_that_it_came_from(settings: Settings) -> None:
    async with signed_in(settings) as person:
        await person.act("/console/tokens/create", name="x" * 300)
        query = "select actor, action, namespace, detail ->> 'path' from audit where action = 'console.action'"
        assert await person.site.query(query) == [("ann", "console.action", "default", "/console/tokens/create")]
        query = "select 1 from audit join tokens on tokens.id::text = detail ->> 'token_id' and tokens.name = actor"
        assert await person.site.query(query) == [(1,)]


async def test_a_namespace_is_chosen_among_those_that_the_token_may_see(settings: Settings) -> None:
    async with signed_in(settings) as person:
        text = (await person.get("/console?namespace=other")).text
        assert re.findall(r'<option value="(\w+)"( selected)?>', text) == [("default", ""), ("other", " selected")]
        assert 'href="/console/health?namespace=other"' in text
    async with signed_in(settings, namespace="other") as person:
        text = (await person.get("/console")).text
        assert "<select" not in text
        answer = await person.get("/console?namespace=default")
        assert answer.status_code == 403
        assert "default" not in Seen(answer.text).of("a")[1]["href"]


async def test_with_an_admin_port_the_public_one_has_no_console(settings: Settings) -> None:
    async with opened(replace(settings, admin_port=8709)) as site, browsing(site) as person:
        assert (await person.get("/console")).status_code == 404
        assert (await person.get("/console/sign-in")).status_code == 404


async def test_with_an_admin_port_the_console_is_there(settings: Settings) -> None:
    application = build(replace(settings, admin_port=8709), Clock())
    async with application.router.lifespan_context(application) as state:
        desk = desk_of(application)
        assert desk is not None
        transport = httpx.ASGITransport(app=with_state(desk, dict(state or {})))
        async with httpx.AsyncClient(transport=transport, base_url=ORIGIN) as client:
            check(await client.get("/console/sign-in"))
            assert (await client.get("/console")).headers["Location"] == "/console/sign-in"


def test_the_navigation_leads_to_pages_that_there_are() -> None:
    assert {path for path, _ in NAVIGATION} >= {path for path in PLAIN if path.count("/") < 3}
