"""Batches, the quarantine and the reviews at the console: seen, walked through, and decided."""

import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
import zstandard

from service.flows.quarantine import BATCHES
from service.settings import Settings
from service.web.console import receipts
from tests.console.browsing import Person, browsing, signed_in
from tests.console.pressing import Read, followed, press, walk
from tests.web.harness import opened

ODD = {"reason": "vanished", "email": "odd@example.com"}
EVIL = "</pre><script>alert('x')</script>"
NUMBER = "15550100001"


@pytest.fixture
async def person(settings: Settings) -> AsyncIterator[Person]:
    async with signed_in(settings) as person:
        yield person


async def delivered(person: Person, *entries: Any, channel: Any = "email") -> str:
    """The id of a new batch, a minute ago by now."""
    answer = await person.site.deliver(channel, list(entries))
    person.site.clock.sleep(60)
    return str(answer.json()["batch_id"])


async def audited(person: Person, action: str) -> list[Any]:
    return await person.site.query(f"select actor, detail from audit where action = '{action}'")


def taught(settings: Settings) -> Settings:
    """The same deployment with one word more."""
    default, other = settings.namespaces
    return replace(settings, namespaces=(replace(default, extra_reasons=(("vanished", "complaint"),)), other))


# Batches.


async def test_a_batch_is_shown_as_it_was_received_with_what_came_of_it(person: Person) -> None:
    batch = await delivered(person, {"email": "ann@example.com", "reason": "unsub", "timestamp": 1_700_000_000}, ODD)
    page = await person.get(f"/console/batches/{batch}")
    read = Read(page)
    assert "1 new, 0 known before, 1 in quarantine" in read.text
    assert '"email":"ann@example.com"' in read.text
    assert "understood" in read.text
    assert "x-kahuna-signature" in read.text.lower() or "content" in read.text.lower()
    entry = read.links["quarantine: unknown-reason"]
    assert "odd@example.com" in (await person.get(entry)).text
    body = await person.get(read.links["Save all of it"])
    assert (body.status_code, body.headers["Content-Disposition"]) == (200, "attachment")
    assert body.json()[1] == ODD


async def test_batches_are_walked_through_without_a_gap(person: Person) -> None:
    ids = [await delivered(person, {"email": f"a{n}@example.com", "reason": "unsub"}) for n in range(7)]
    found = await walk(person, "/console/batches?limit=3", "/console/batches/")
    assert found == [f"/console/batches/{one}" for one in reversed(ids)]


async def test_batches_are_filtered_by_channel_state_and_time(person: Person) -> None:
    email = await delivered(person, {"email": "ann@example.com", "reason": "unsub"})
    sms = await delivered(person, {"number": NUMBER}, channel="sms")
    for query, shown in (
        ("channel=sms&state=&since=", [sms]),
        ("channel=&state=applied", [sms, email]),
        ("state=recorded", []),
        ("since=2026-03-01T12:00:30", [sms]),
        ("until=2026-03-01T12:00:30", [email]),
        ("since=2026-03-02", []),
    ):
        found = await walk(person, f"/console/batches?{query}", "/console/batches/")
        assert found == [f"/console/batches/{one}" for one in shown], query
    assert "No batch is like that" in (await person.get("/console/batches?state=recorded")).text


async def test_a_filter_that_makes_no_sense_gets_a_sentence(person: Person) -> None:
    for query, status, sentence in (
        ("channel=fax", 422, "channel must be one of email, sms"),
        ("since=tomorrow", 422, "since must be an RFC 3339 time"),
        ("colour=red", 400, "Unknown query parameter colour"),
        ("cursor=zzz", 422, "cursor must be the"),
        ("namespace=nowhere", 404, "There is no such namespace"),
    ):
        page = await person.get(f"/console/batches?{query}")
        assert (page.status_code, sentence in Read(page).text) == (status, True), query


async def test_an_empty_list_says_what_would_stand_there(person: Person) -> None:
    for path in ("batches", "quarantine", "reviews", "corrections", "plans"):
        page = await person.get(f"/console/{path}")
        assert page.status_code == 200
        assert "would stand here" in Read(page).text, path


async def test_what_is_not_there_is_a_page_that_says_so(person: Person) -> None:
    for path in ("/console/batches/{}", "/console/plans/{}", "/console/quarantine/{}/0"):
        for name in (str(uuid.UUID(int=7)), "nothing"):
            page = await person.get(path.format(name))
            assert (page.status_code, "There is no" in page.text) == (404, True)


async def test_a_long_or_binary_body_is_shown_in_bounds(person: Person) -> None:
    entries = [{"email": f"a{n}@example.com", "reason": "unsub"} for n in range(2000)]
    page = await person.get(f"/console/batches/{await delivered(person, *entries)}")
    assert f"these are the first {receipts.SHOWN:,} characters" in Read(page).text
    assert len(page.text) < 2 * receipts.SHOWN
    packed = zstandard.ZstdCompressor().compress(b"\xff\xfe\x00").hex()
    await person.site.execute(f"update batches set body = '\\x{packed}', body_bytes = 3")
    page = await person.get(str(page.url))
    assert "shown in base64" in Read(page).text


async def test_a_replay_says_in_numbers_what_it_would_do_before_it_does_it(settings: Settings) -> None:
    async with signed_in(settings) as person:
        batch = await delivered(person, ODD)
    async with opened(taught(settings)) as site, browsing(site, name="bob") as person:
        await person.sign_in()
        page = await person.get(f"/console/batches/{batch}")
        would = await press(person, page, "See what a replay would change")
        assert "1 thing known that nobody knew" in Read(would).text
        assert "1 entry of the quarantine understood" in Read(would).text
        assert await person.site.query("select 1 from facts") == []
        after = await press(person, would, "Replay it")
        assert "Replayed: 1 new, 1 understood by now, 0 still in quarantine." in Read(after).text
        assert await person.site.query("select reason from facts") == [("complaint",)]
        assert [actor for actor, _ in await audited(person, "batch.replayed")] == ["bob"]
        again = await press(person, after, "See what a replay would change")
        assert "So it would change nothing." in Read(again).text


# The quarantine.


async def test_the_quarantine_counts_by_reason_and_shows_each_entry(person: Person) -> None:
    await delivered(person, ODD, {"reason": EVIL, "email": "x@example.com"}, {"reason": "unsub", "email": "nobody"}, 7)
    page = await person.get("/console/quarantine")
    read = Read(page)
    assert "unknown-reason 2" in read.links
    assert EVIL in read.text
    assert "<script>" not in page.text.replace("<script src", "")
    only = await person.get(read.links["unknown-reason 2"])
    assert "not-an-object" not in Read(only).text.partition("Refused for Entry")[2]
    [path] = [
        p for p in await walk(person, "/console/quarantine?channel=email", "/console/quarantine/") if p[-2:] == "/1"
    ]
    entry = await person.get(path)
    assert EVIL in Read(entry).text
    assert "<script>alert" not in entry.text


async def test_entries_are_walked_through_without_a_gap(person: Person) -> None:
    batch = await delivered(person, *[ODD | {"email": f"a{n}@example.com"} for n in range(5)])
    found = await walk(person, "/console/quarantine?limit=2", "/console/quarantine/")
    assert found == [f"/console/quarantine/{batch}/{n}" for n in (4, 3, 2, 1, 0)]


async def test_an_entry_is_discarded_with_a_reason_and_read_again(settings: Settings) -> None:
    async with signed_in(settings) as person:
        batch = await delivered(person, ODD)
        page = await person.get(f"/console/quarantine/{batch}/0")
        refused = await press(person, page, "Discard this entry", note="  ")
        assert (refused.status_code, "Say why it is discarded" in refused.text) == (422, True)
        after = await press(person, page, "Discard this entry", note=EVIL)
        assert "The entry is discarded" in Read(after).text
        assert "Nothing waits here" in Read(after).text
        [(actor, detail)] = await audited(person, "quarantine.discarded")
        assert (actor, detail["reason"]) == ("ann", EVIL)
        listed = await person.get("/console/quarantine?state=discarded")
        assert EVIL in Read(listed).text
        assert "<script>alert" not in listed.text
        # A form of the release before, which a replica of that has shown, and called its note so.
        again = await person.act(f"/console/quarantine/{batch}/0/discard", reason="twice")
        assert (again.status_code, "discarded already" in again.text) == (409, True)
        still = await press(person, await person.get(f"/console/quarantine/{batch}/0"), "Read it again")
        assert "It is still not understood: unknown-reason." in Read(still).text
    async with opened(taught(settings)) as site, browsing(site, name="bob") as person:
        await person.sign_in()
        done = await press(person, await person.get(f"/console/quarantine/{batch}/0"), "Read it again")
        assert "It is understood by now, and applied." in Read(done).text
        assert await person.site.query("select reason from facts") == [("complaint",)]
        with pytest.raises(AssertionError, match="no button"):
            Read(done).form_of("Read it again")


async def test_all_of_a_filter_is_requeued(settings: Settings) -> None:
    async with signed_in(settings) as person:
        for n in range(3):
            await delivered(person, ODD | {"email": f"a{n}@example.com"}, {"reason": "unsub", "email": f"nobody{n}"})
    async with opened(taught(settings)) as site, browsing(site, name="bob") as person:
        await person.sign_in()
        page = await person.get("/console/quarantine?error=unknown-reason")
        assert "Requeue all 3 of this filter" in Read(page).text
        done = await press(person, page, "Read them again")
        assert "3 entries were read again, 3 of them understood (3 new)." in Read(done).text
        assert {actor for actor, _ in await audited(person, "quarantine.requeued")} == {"bob"}
        assert len(await walk(person, "/console/quarantine", "/console/quarantine/")) == 3


async def test_a_requeue_of_very_many_goes_on_where_it_stopped(person: Person) -> None:
    for n in range(BATCHES + 1):
        await delivered(person, ODD | {"email": f"a{n}@example.com"})
    page = await press(person, await person.get("/console/quarantine"), "Read them again")
    assert f"{BATCHES} entries were read again" in Read(page).text
    rest = await press(person, page, "Go on")
    assert "1 entry was read again" in Read(rest).text


# Reviews.


async def held(person: Person, number: str = NUMBER) -> None:
    """An opt-in that would clear a stop of our own."""
    caller = await person.site.token("write")
    await person.site.client.put(f"/v1/suppressions/sms/{number}", headers=caller, json={"reason": "do_not_call"})
    person.site.clock.sleep(60)
    await delivered(person, {"number": number, "timestamp": person.site.clock.seconds, "opt-in": True}, channel="sms")


@pytest.mark.parametrize(
    ("button", "state", "sentence", "suppressed"),
    [("Approve: it is", "approved", "Approved: the opt-in counts", False), ("Refuse:", "refused", "Refused", True)],
)
async def test_a_review_is_decided_with_a_note(
    person: Person, button: str, state: str, sentence: str, suppressed: bool
) -> None:
    await held(person)
    page = await person.get("/console/reviews")
    assert "OPT_IN_REVIEW holds it" in Read(page).text
    after = await press(person, page, button, note=EVIL)
    assert sentence in Read(after).text
    assert "No opt-in waits" in Read(after).text
    [(actor, detail)] = await audited(person, f"review.{state}")
    assert (actor, detail["note"]) == ("ann", EVIL)
    listed = await person.get(f"/console/reviews?state={state}")
    assert EVIL in Read(listed).text
    assert "<script>alert" not in listed.text
    timeline = await press(person, listed, NUMBER)
    assert ("May not be messaged" in Read(timeline).text) is suppressed
    again = await press(person, page, button)
    assert (again.status_code, "a decision stands" in again.text) == (409, True)


async def test_reviews_are_walked_through_without_a_gap(person: Person) -> None:
    for n in range(5):
        await held(person, f"1555010000{n}")
    found = await walk(person, "/console/reviews?limit=2", "/console/batches/")
    batches = await person.site.query("select batch_id from reviews order by received_at, id")
    assert found == [f"/console/batches/{one}" for (one,) in batches]


async def test_a_batch_that_is_too_deep_to_be_read_is_shown_all_the_same(person: Person) -> None:
    deep = b'[{"email": "a@example.com", "reason": "unsub", "x": ' + b"[" * 20_000 + b"]" * 20_000 + b"}]"
    assert (await person.site.deliver_bytes("email", deep)).json()["rejected"] == 1
    [(batch,)] = await person.site.query("select id from batches")
    page = await person.get(f"/console/batches/{batch}")
    assert (page.status_code, "entry 0" in Read(page).links) == (200, True)


# Whose business it is.


async def test_nothing_of_it_is_seen_from_another_namespace(settings: Settings) -> None:
    async with signed_in(settings, namespace="default") as person:
        batch = await delivered(person, ODD)
        await held(person)
        [(review,)] = await person.site.query("select id from reviews")
        async with browsing(person.site, namespace="other") as other:
            await other.sign_in()
            for path in ("batches", "quarantine", "reviews"):
                assert 'class="empty"' in (await other.get(f"/console/{path}")).text
            for path in (f"batches/{batch}", f"batches/{batch}/body", f"quarantine/{batch}/0"):
                assert (await other.get(f"/console/{path}")).status_code == 404
            assert (await other.get("/console/batches?namespace=default")).status_code == 403
            for path in (
                f"batches/{batch}/replay",
                f"batches/{batch}/rehearse",
                f"quarantine/{batch}/0/requeue",
                f"quarantine/{batch}/0/discard",
                f"reviews/{review}/approve",
                f"reviews/{review}/refuse",
            ):
                assert (await other.act(f"/console/{path}", note="x")).status_code == 404, path
            done = await followed(other, await other.act("/console/quarantine/requeue"))
            assert "0 entries were read again" in Read(done).text
            assert await person.site.query("select state from quarantine") == [("open",)]
