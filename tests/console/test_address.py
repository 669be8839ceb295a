"""One address at the console: why it is suppressed, its timeline, and what a person may say about it."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from service.settings import Settings
from tests.console.browsing import Person, browsing, signed_in
from tests.console.pressing import Read, followed, press
from tests.web.harness import address_path

ANN = "ann@example.com"
EVIL = "<script>alert(1)</script>@example.com"


@pytest.fixture
async def person(settings: Settings) -> AsyncIterator[Person]:
    async with signed_in(settings) as person:
        yield person


async def looked_up(person: Person, address: str, **more: str) -> httpx.Response:
    return await person.act("/console/address", address=address, **more)


async def unsubscribed(person: Person, *addresses: str) -> None:
    entries = [{"email": a, "reason": "unsub", "timestamp": person.site.clock.seconds - 60} for a in addresses]
    assert (await person.site.deliver("email", entries)).status_code == 200


async def audited(person: Person, action: str) -> list[Any]:
    return await person.site.query(f"select actor, channel, address, detail from audit where action = '{action}'")


async def test_the_verdict_is_the_sentence_of_the_api_and_the_timeline_has_its_batch(person: Person) -> None:
    await unsubscribed(person, "Ann@Example.com")
    page = await looked_up(person, " ANN@example.com ")
    read = Read(page)
    caller = await person.site.token("read")
    told = (await person.site.client.get(address_path("email", ANN, "/history"), headers=caller)).json()
    assert told["verdict"]["sentence"] in read.text
    [(batch,)] = await person.site.query("select id from batches")
    assert read.text.count("Stop: unsubscribe") == 1
    assert "spelt Ann@Example.com" in read.text
    assert any(f"/console/batches/{batch}" in href for href in read.links.values())
    assert "transactional message, such as a password reset, may be sent" in read.text
    assert ANN not in str(page.url)
    assert (await person.get(next(h for h in read.links.values() if str(batch) in h))).status_code == 200


async def test_an_address_never_seen_says_what_would_stand_there(person: Person) -> None:
    text = Read(await looked_up(person, ANN)).text
    assert "May be messaged: nobody ever told us to stop." in text
    assert "Nothing was ever noted about this address" in text


async def test_the_channel_is_guessed_by_the_form_of_the_address_or_said(person: Person) -> None:
    assert "15550100001 sms" in Read(await looked_up(person, "+1 (555) 010-0001")).text
    assert "ann@example.com email" in Read(await looked_up(person, ANN)).text
    assert "15550100001 sms" in Read(await looked_up(person, "15550100001", channel="sms")).text
    assert (await looked_up(person, ANN, channel="fax")).status_code == 404


@pytest.mark.parametrize("address", ["nobody", "a@b@", "", "ann@example.com\n@x"])
async def test_what_cannot_be_an_address_gets_a_sentence_and_the_form_again(person: Person, address: str) -> None:
    page = await looked_up(person, address)
    assert page.status_code == 422
    assert "This cannot be an address" in Read(page).text
    assert Read(page).form_of("Look it up")


async def test_no_address_can_be_asked_for_in_a_url(person: Person) -> None:
    page = await person.get(f"/console/address?address={ANN}")
    assert ANN not in page.text


async def test_a_stop_by_hand_is_in_force_at_once_and_audited(person: Person) -> None:
    page = await press(
        person, await looked_up(person, "Ann@Example.com"), "Suppress this address", reason="complaint", note="by phone"
    )
    assert page.status_code == 200
    text = Read(page).text
    assert "The stop is recorded: complaint." in text
    assert "May not be messaged" in text
    [(actor, channel, address, detail)] = await audited(person, "address.suppress")
    assert (actor, channel, address, detail["note"]) == ("ann", "email", ANN, "by phone")
    assert "Correction for Kahuna: stop, complaint" in text, "it is owed to Kahuna"
    [(path,)] = await person.site.query("select detail ->> 'path' from audit where action = 'console.action'")
    assert path == "/console/address/suppress"


async def test_a_stop_may_be_dated_in_utc(person: Person) -> None:
    page = await looked_up(person, ANN)
    page = await press(person, page, "Suppress this address", occurred_at="2026-02-01T10:30")
    assert "2026-02-01 10:30:00" in Read(page).text
    assert await person.site.query("select occurred_at from facts") == [(1769941800,)]


@pytest.mark.parametrize(
    ("fields", "status", "sentence"),
    [
        ({"reason": "bored"}, 422, "send one of"),
        ({"occurred_at": "yesterday"}, 422, "must be an RFC 3339 time"),
        ({"occurred_at": "2036-02-01T10:30"}, 422, "no time at which this can have happened"),
        ({"reason": ""}, 422, "reason"),
    ],
)
async def test_a_stop_that_cannot_be_is_refused_on_the_page(
    person: Person, fields: dict[str, str], status: int, sentence: str
) -> None:
    page = await press(person, await looked_up(person, ANN), "Suppress this address", **({"note": "keep me"} | fields))
    assert page.status_code == status
    assert sentence in Read(page).text
    assert 'value="keep me"' in page.text, "what was typed is not lost"
    assert await person.site.query("select 1 from facts") == []


async def test_a_consent_ends_the_stops_up_to_its_time(person: Person) -> None:
    await unsubscribed(person, ANN)
    given = "2026-03-01T11:59:30"
    page = await press(
        person, await looked_up(person, ANN), "Record this consent", evidence="Form 7", occurred_at=given
    )
    text = Read(page).text
    assert "The consent is recorded" in text
    assert "May be messaged" in text
    [(actor, _, _, detail)] = await audited(person, "address.clear")
    assert (actor, detail["evidence"]) == ("ann", "Form 7")
    assert "evidence Form 7" in text


async def test_a_consent_older_than_a_stop_changes_nothing_and_says_what_to_do(person: Person) -> None:
    await unsubscribed(person, ANN)
    page = await press(
        person, await looked_up(person, ANN), "Record this consent", evidence="Form 7", occurred_at="2026-02-01T10:00"
    )
    assert page.status_code == 409
    text = Read(page).text
    assert "Nothing was changed" in text
    assert "only a newer consent ends it" in text
    assert "May not be messaged" in text
    assert 'value="Form 7"' in page.text
    assert await audited(person, "address.clear") == []


@pytest.mark.parametrize("missing", ["evidence", "occurred_at"])
async def test_a_consent_needs_its_evidence_and_its_time(person: Person, missing: str) -> None:
    fields = {"evidence": "Form 7", "occurred_at": "2026-03-01T11:00"} | {missing: " "}
    page = await press(person, await looked_up(person, ANN), "Record this consent", **fields)
    assert page.status_code == 422
    assert "Say where and when the new consent was given" in Read(page).text


async def test_hostile_text_is_text(person: Person) -> None:
    page = await looked_up(person, EVIL)
    note = "</dd><script>x</script>\"'"
    page = await press(person, page, "Suppress this address", note=note)
    assert page.status_code == 200
    assert EVIL in Read(page).text
    assert note in Read(page).text
    assert "<script>alert" not in page.text
    assert "<script>x" not in page.text


async def test_the_timeline_goes_on_page_by_page(person: Person) -> None:
    count = 130
    for n in range(count // 10):
        entries = [
            {"email": ANN, "reason": "unsub", "timestamp": 1_700_000_000 + n * 10 + minute} for minute in range(10)
        ]
        await person.site.deliver("email", entries)
        person.site.clock.sleep(60)
    first = await looked_up(person, ANN)
    second = await press(person, first, "What came after that")
    told = [Read(page).text.count("Stop: unsubscribe") for page in (first, second)]
    assert told == [100, 30]
    with pytest.raises(AssertionError, match="no button"):
        await press(person, second, "What came after that")


async def test_a_token_without_the_scope_write_may_look_and_say_nothing(settings: Settings) -> None:
    async with signed_in(settings, "admin", "read") as person:
        page = await looked_up(person, ANN)
        assert page.status_code == 200
        refused = await press(person, page, "Suppress this address")
        assert refused.status_code == 403
        assert "lacks the scope write" in Read(refused).text
        assert await person.site.query("select 1 from facts") == []
        async with browsing(person.site, "admin") as other:
            await other.sign_in()
            assert (await looked_up(other, ANN)).status_code == 403


async def test_a_token_without_the_scope_read_is_shown_no_address_by_what_it_writes(settings: Settings) -> None:
    async with signed_in(settings, "write", "admin") as person:
        await unsubscribed(person, "ann@example.com")
        for path in ("/console/address", "/console/address/suppress", "/console/address/reactivate"):
            answer = await person.act(path, subject="email ann@example.com")
            assert (answer.status_code, "lacks the scope read" in answer.text) == (403, True)
            assert "Timeline" not in answer.text


async def test_characters_that_turn_or_hide_others_are_marked(person: Person) -> None:
    await unsubscribed(person, "a\u202emoc@example.com", "a\u200bnn@example.com")
    page = await looked_up(person, "a\u202emoc@example.com")
    assert '<strong class="address">a<span class="mark">U+202E</span>moc@example.com</strong>' in page.text
    assert 'name="subject" value="email a\u202emoc@example.com"' in page.text
    page = await looked_up(person, "a\u200bnn@example.com")
    assert "aU+200Bnn@example.com" in page.text.replace('<span class="mark">', "").replace("</span>", "")
    [(batch,)] = await person.site.query("select id from batches limit 1")
    assert "\u202e" not in (await person.get(f"/console/batches/{batch}")).text


async def test_a_token_of_one_namespace_sees_nothing_of_another(settings: Settings) -> None:
    async with signed_in(settings, namespace="default") as person:
        await person.site.deliver("email", [{"email": ANN, "reason": "unsub"}])
        assert "May not be messaged" in Read(await looked_up(person, ANN)).text
        async with browsing(person.site, namespace="other") as other:
            await other.sign_in()
            assert "nobody ever told us to stop" in Read(await looked_up(other, ANN)).text
            csrf = await other.csrf()
            answer = await other.post("/console/address?namespace=default", csrf=csrf, address=ANN)
            assert answer.status_code == 403


async def test_every_way_of_the_timeline_leads_somewhere(person: Person) -> None:
    await unsubscribed(person, ANN)
    page = await press(person, await looked_up(person, ANN), "Suppress this address", reason="complaint")
    for href in Read(page).links.values():
        if href.startswith("/"):
            assert (await followed(person, await person.get(href))).status_code == 200, href
