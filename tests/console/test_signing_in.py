"""Signing in and out, and what a form must bring."""

import re

import pytest

from service.settings import Settings
from tests.console.browsing import browsing, csrf_in, signed_in
from tests.web.harness import opened


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


@pytest.mark.parametrize("origin", ["https://evil.test", "http://sync.test", "null", ""])
async def test_a_form_of_another_origin_is_refused(settings: Settings, origin: str) -> None:
    async with signed_in(settings) as person:
        csrf = await person.csrf()
        assert (await person.post("/console/sign-out", origin, csrf=csrf)).status_code == 403
        assert (await person.post("/console/sign-in", origin, token=person.token)).status_code == 403
        assert (await person.get("/console")).status_code == 200
