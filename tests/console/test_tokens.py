"""Tokens on the console: made, shown once, ended; and never more than whoever makes them has."""

import asyncio
import re
from datetime import timedelta

import pytest

from service.errors import Unauthenticated
from service.flows.tokens import Wanted, make
from service.settings import Settings
from service.store import access
from service.store.access import Caller
from tests.console.browsing import Person, Seen, signed_in


async def made_by(person: Person, **fields: str) -> str:
    """The token that this form makes, as the page shows it."""
    answer = await person.act("/console/tokens/create", **fields)
    assert answer.status_code == 200, answer.text
    (field,) = [one for one in Seen(answer.text).of("input") if one.get("id") == "made"]
    return field["value"]


async def test_a_token_is_shown_once_and_works(settings: Settings) -> None:
    async with signed_in(settings) as person:
        token = await made_by(person, name="orders", namespace="default", days="30", **{"scope-read": "yes"})
        answer = await person.client.get(
            "/v1/suppressions/email/ann@example.com", headers={"Authorization": f"Bearer {token}"}
        )
        assert answer.status_code == 200
        page = (await person.get("/console/tokens")).text
        assert "orders" in page
        assert token not in page
        ((scopes, namespace, channel, lasts),) = await person.site.query(
            "select scopes, namespace, channel, expires_at - created_at from tokens where name = 'orders'"
        )
        assert (scopes, namespace, channel, lasts) == (["read"], "default", None, timedelta(days=30))
        ((actor, detail),) = await person.site.query(
            "select actor, detail::text from audit where action = 'token.created'"
        )
        assert actor == "ann"
        assert "orders" in detail
        assert token not in detail


async def test_a_token_ends_and_the_list_tells_who_uses_which(settings: Settings) -> None:
    async with signed_in(settings) as person:
        token = await made_by(person, name="orders", days="", **{"scope-read": "yes"})
        ((token_id,),) = await person.site.query("select id from tokens where name = 'orders'")
        assert (await person.act("/console/tokens/revoke", id=token_id)).status_code == 303
        page = (await person.get("/console/tokens")).text
        assert "revoked" in page
        assert "yours" in page
        person.site.clock.sleep(10)
        headers = {"Authorization": f"Bearer {token}"}
        assert (await person.client.get("/v1/changes?namespace=default", headers=headers)).status_code == 401
        rows = await person.site.query("select actor, detail ->> 'name' from audit where action = 'token.revoked'")
        assert rows == [("ann", "orders")]
        again = await person.act("/console/tokens/revoke", id=token_id)
        assert (again.status_code, "no live token" in again.text) == (404, True)
        assert (await person.act("/console/tokens/revoke", id="x")).status_code == 404


@pytest.mark.parametrize(
    ("fields", "status", "says"),
    [
        ({"name": " ", "scope-read": "yes", "days": ""}, 422, "who will use"),
        ({"name": "x" * 101, "scope-read": "yes", "days": ""}, 422, "who will use"),
        ({"name": "a\u202eb", "scope-read": "yes", "days": ""}, 422, "cannot be seen"),
        ({"name": "a\nb", "scope-read": "yes", "days": ""}, 422, "cannot be seen"),
        ({"name": "x", "days": ""}, 422, "at least one scope"),
        ({"name": "x", "scope-admin": "yes", "channel": "sms", "days": ""}, 422, "about both channels"),
        ({"name": "x", "scope-read": "yes", "channel": "fax", "days": ""}, 422, "no such channel"),
        ({"name": "x", "scope-read": "yes", "namespace": "fax", "days": ""}, 422, "no such namespace"),
        ({"name": "x", "scope-read": "yes", "days": "7"}, 422, "one of the times"),
    ],
)
async def test_a_form_that_makes_no_sense_gets_a_sentence(
    settings: Settings, fields: dict[str, str], status: int, says: str
) -> None:
    async with signed_in(settings) as person:
        answer = await person.act("/console/tokens/create", **fields)
        assert (answer.status_code, says in answer.text) == (status, True), answer.text
        assert await person.site.query("select count(*) from tokens") == [(1,)]


async def test_nobody_gets_more_by_making_a_token_than_they_have(settings: Settings) -> None:
    read, days = {"name": "x", "scope-read": "yes"}, {"days": "365"}
    async with signed_in(settings, "read", "admin") as person:
        answer = await person.act("/console/tokens/create", **read, **days, **{"scope-write": "yes"})
        assert (answer.status_code, "lacks the scope write" in answer.text) == (403, True)
        assert "scope-write" not in (await person.get("/console/tokens")).text
    async with signed_in(settings, namespace="default") as person:
        for namespace in ("", "other"):
            answer = await person.act("/console/tokens/create", **read, **days, namespace=namespace)
            assert answer.status_code in (403, 422)
        await made_by(person, **read, **days, namespace="default")
    async with signed_in(settings, name="bob") as person:
        await person.site.execute("update tokens set expires_at = '2026-03-05' where name = 'bob'")
        for lasts in ("", "30"):
            answer = await person.act("/console/tokens/create", **read, days=lasts)
            assert (answer.status_code, "must not outlive it" in answer.text) == (403, True)


async def test_a_token_that_is_revoked_meanwhile_makes_no_other(settings: Settings) -> None:
    async with signed_in(settings) as person:
        ((token_id,),) = await person.site.query("select id from tokens")
        by = Caller("ann", frozenset({"read"}), None, None, token_id)
        wanted = Wanted("late", ["read"], None, None, None)
        async with person.site.database.begin() as ending:
            await access.end_token(ending, token_id, None, person.site.clock())
            making = asyncio.create_task(make(person.site.database, wanted, by, person.site.clock))
            await asyncio.sleep(0.05)
            assert not making.done()
        with pytest.raises(Unauthenticated, match="has ended meanwhile"):
            await making
        assert await person.site.query("select name from tokens") == [("ann",)]


async def test_who_may_see_one_namespace_sees_and_ends_its_tokens_only(settings: Settings) -> None:
    async with signed_in(settings, namespace="default") as person:
        async with person.site.database.begin() as connection:
            for name, namespace in (("everywhere", None), ("elsewhere", "other"), ("here", "default")):
                await access.create_token(connection, name, ["read"], namespace, person.site.clock())
        page = (await person.get("/console/tokens")).text
        assert ("everywhere" in page, "elsewhere" in page, ">here" in page) == (False, False, True)
        ids = dict(await person.site.query("select name, id from tokens"))
        for name in ("everywhere", "elsewhere"):
            assert (await person.act("/console/tokens/revoke", id=ids[name])).status_code == 404
        assert (await person.act("/console/tokens/revoke", id=ids["here"])).status_code == 303


async def test_many_tokens_come_page_by_page_the_living_first(settings: Settings) -> None:
    async with signed_in(settings) as person:
        await person.site.execute(
            "insert into tokens (id, name, hash, scopes, created_at, revoked_at, expires_at) "
            "select gen_random_uuid(), case when n % 2 = 0 then 'Same' else 'service-' || n end, n::text::bytea, "
            "'{read}', now(), case when n % 5 = 0 then now() end, "
            "case when n % 7 = 0 then '2026-01-01'::timestamptz end "
            "from generate_series(1, 120) as n"
        )
        seen: list[tuple[str, str]] = []
        sizes: list[int] = []
        path: str | None = "/console/tokens"
        while path is not None:
            page = await person.get(path)
            assert page.status_code == 200, page.text
            rows = page.text.split("<tbody>")[1].split("</tbody>")[0].split("<tr")[1:]
            seen += [
                (re.findall(r'"id">(\w+)<', row)[0], "ended" if 'class="ended"' in row else "live") for row in rows
            ]
            sizes.append(len(rows))
            path = next((one["href"] for one in Seen(page.text).of("a") if one.get("rel") == "next"), None)
        assert sizes == [50, 50, 21]
        assert len({token_id for token_id, _ in seen}) == 121
        states = [state for _, state in seen]
        assert (states, set(states)) == (sorted(states, reverse=True), {"ended", "live"})
        assert (await person.get("/console/tokens?cursor=x")).status_code == 422


async def test_who_revokes_their_own_token_is_out(settings: Settings) -> None:
    async with signed_in(settings) as person:
        ((token_id,),) = await person.site.query("select id from tokens")
        assert (await person.act("/console/tokens/revoke", id=token_id)).status_code == 303
        assert (await person.get("/console/tokens")).headers["Location"].startswith("/console/sign-in")
