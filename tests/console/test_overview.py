"""What the first page tells: figures over time, and what somebody should look at."""

import re

from service.settings import Settings
from service.store import pulls
from tests.console.browsing import Person, Seen, signed_in
from tests.console.seeding import seed
from tests.web.harness import address_path


async def told(person: Person, path: str) -> dict[str, int]:
    """What the title of each column says, figure by figure."""
    text = (await person.get(path)).text
    return {
        f"{at} {name}": int(n)
        for at, all_of in re.findall(r"<title>([\w: ]+?): (.+?)</title>", text)
        for n, name in re.findall(r"([\d,]+) ([a-z ]+)", all_of)
    }


async def test_callbacks_and_their_entries_are_drawn_by_the_hour_and_by_the_day(settings: Settings) -> None:
    async with signed_in(settings) as person:
        await seed(person.site)
        hours, days = await told(person, "/console"), await told(person, "/console?window=month")
        ((email, sms, new, known, odd),) = await person.site.query(
            """select count(*) filter (where channel = 'email'), count(*) filter (where channel = 'sms'), sum(accepted),
                      sum(duplicates), sum(rejected) from batches where received_at >= '2026-03-01'"""
        )
        assert (hours["12:00 email"], hours["12:00 sms"]) == (email, sms)
        assert (hours["12:00 new"], hours["12:00 known"], hours["12:00 to quarantine"]) == (new, known, odd)
        assert len([one for one in hours if one.endswith(" new")]) == 24
        assert len([one for one in days if one.endswith(" new")]) == 28
        assert (days["Mar 01 email"], days["Mar 01 new"]) == (email, new)
        ((all_of_them,),) = await person.site.query("select count(*) from batches where origin = 'kahuna_webhook'")
        assert sum(n for name, n in days.items() if name.endswith((" email", " sms"))) == all_of_them
        assert (await person.get("/console?window=%22%3E")).status_code == 200


async def test_reasons_are_those_of_the_list_in_this_namespace(settings: Settings) -> None:
    async with signed_in(settings) as person:
        await seed(person.site)
        text = (await person.get("/console")).text
        ((stops,),) = await person.site.query(
            "select count(*) from suppressions where reason = 'unsubscribe' and stop_at > 0"
        )
        row = re.search(r'<tr><th scope="row">unsubscribe</th>.*?</tr>', text, re.DOTALL)
        assert row
        assert re.findall(r'<td class="number[^"]*">([\d,]+)</td>', row[0]) == [str(stops), "0"]
        assert "unsubscribe" not in (await person.get("/console?namespace=other")).text


async def test_what_waits_for_somebody_is_pointed_at(settings: Settings) -> None:
    async with signed_in(settings) as person:
        async with person.site.database.begin() as connection:
            key, now = pulls.Key("default", "email", pulls.BACKFILL), person.site.clock()
            await pulls.begin(connection, key, now, now)
            await pulls.arrive(connection, key, now, now, done=True)
        assert "Nothing waits for anybody." in (await person.get("/console")).text
        headers = await person.site.token("write")
        await person.client.put(address_path("email", "ann@example.com"), json={"reason": "manual"}, headers=headers)
        await person.site.execute("update corrections set state = 'dead', stopped_at = 1")
        seen = (await person.get("/console")).text
        assert "Overdue at Kahuna: 1 email" in seen
        assert "1 correction was given up" in seen
        assert Seen(seen).of("ul")


async def test_health_tells_of_a_worker_that_is_gone_and_of_what_is_amiss(settings: Settings) -> None:
    async with signed_in(settings) as person:
        assert "No worker has run yet" in (await person.get("/console/health")).text
        insert = "insert into leases (name, fence, ends_at) values ('upkeep', 7, '{}'), ('logs/other/pull', 1, now())"
        await person.site.execute(insert.format("2026-03-01 12:30+00"))
        assert ">works<" in (await person.get("/console/health")).text
        await person.site.execute("update leases set ends_at = '2026-03-01 11:00+00'")
        text = (await person.get("/console/health")).text
        assert "seems not to run" in text
        assert "no CALLBACK_TOKEN" in text


async def test_health_tells_whoever_may_see_one_namespace_of_that_one(settings: Settings) -> None:
    async with signed_in(settings, namespace="default") as person:
        await person.site.execute("insert into leases (name, fence, ends_at) values ('logs/other/pull', 1, now())")
        text = (await person.get("/console/health")).text
        assert "settings/default" in text
        for other in ("settings/other", "backfill/other", "logs/other"):
            assert other not in text
