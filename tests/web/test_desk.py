"""The desk over HTTP: corrections searched and settled, circuits, the clock, the overview, and how callbacks come."""

import csv
import io
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from service.errors import StorageBusy
from service.store import quality, sampling
from service.store.quality import Window
from tests.web.harness import Headers, Site, address_path, is_problem

PATH = "/v1/admin/corrections"
DAY = 86_400


@pytest.fixture
async def admin(site: Site) -> Headers:
    """An operator of the default namespace, who may read and write addresses too."""
    return await site.token("admin", "read", "write")


async def get(site: Site, caller: Headers, path: str, **parameters: Any) -> Any:
    answer = await site.client.get(path, headers=caller, params=parameters)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def post(site: Site, caller: Headers, path: str, body: Any) -> httpx.Response:
    return await site.client.post(path, headers=caller, json=body)


async def stop(site: Site, caller: Headers, *addresses: str, at: str | None = None) -> None:
    body = {"reason": "unsubscribe"} | ({"occurred_at": at} if at else {})
    for address in addresses:
        answer = await site.client.put(address_path("email", address), headers=caller, json=body)
        assert answer.status_code == 200, answer.text


async def give_up(site: Site, state: str, reason: str = "bad-request") -> None:
    """All corrections that wait are given up."""
    await site.execute(
        f"update corrections set state = '{state}', reason = '{reason}', attempts = 1, settled_at = created_at "
        "where state = 'pending'"
    )


# Corrections.


async def test_those_of_a_request_are_found_by_its_id_in_any_state(site: Site, admin: Headers) -> None:
    mine, another = {**admin, "X-Request-ID": "mine-1"}, {**admin, "X-Request-ID": "another"}
    await stop(site, mine, "a@example.com")
    await give_up(site, "dead")
    await stop(site, mine, "b@example.com")
    await stop(site, another, "c@example.com")
    page = await get(site, admin, PATH, request_id="mine-1")
    assert [(one["address"], one["state"]) for one in page["corrections"]] == [
        ("b@example.com", "pending"),
        ("a@example.com", "dead"),
    ]
    dead = await get(site, admin, PATH, request_id="mine-1", state="dead")
    assert [one["address"] for one in dead["corrections"]] == ["a@example.com"]
    searched = (await post(site, admin, f"{PATH}/search", {"request_id": "another"})).json()
    assert [one["address"] for one in searched["corrections"]] == ["c@example.com"]


async def test_corrections_are_walked_through_page_by_page(site: Site, admin: Headers) -> None:
    await stop(site, admin, *(f"a{n}@example.com" for n in range(5)))
    found: list[int] = []
    cursor: dict[str, str] = {}
    while True:
        page = await get(site, admin, PATH, limit=2, channel="email", slot="unsubscribe", action="suppress", **cursor)
        found += [row["id"] for row in page["corrections"]]
        if page["next"] is None:
            break
        cursor = {"cursor": page["next"]}
    assert found == sorted(found, reverse=True)
    assert len(found) == 5
    assert (await get(site, admin, PATH, channel="sms"))["corrections"] == []
    assert (await get(site, admin, PATH, since="2027-01-01T00:00:00Z"))["corrections"] == []
    assert (await get(site, admin, PATH, until="2020-01-01T00:00:00Z"))["corrections"] == []


async def test_an_address_is_searched_for_in_a_body(site: Site, admin: Headers) -> None:
    await stop(site, admin, "ann@example.com", "bob@example.com")
    await give_up(site, "dead")
    for more in ({}, {"state": "dead"}, {"channel": "email"}):
        answer = await post(site, admin, f"{PATH}/search", {"address": " Ann@Example.com "} | more)
        [row] = answer.json()["corrections"]
        assert (row["address"], row["state"], row["reason"]) == ("ann@example.com", "dead", "bad-request")
    for more in ({"state": "sent"}, {"channel": "email", "address": "zoe@example.com"}, {"reason": "too-large"}):
        answer = await post(site, admin, f"{PATH}/search", {"address": "ann@example.com"} | more)
        assert answer.json() == {"corrections": [], "next": None}
    impossible = await post(site, admin, f"{PATH}/search", {"address": "nobody"})
    assert is_problem(impossible, 422, "impossible-address")
    assert "nobody" not in impossible.text


async def test_one_correction_tells_its_calls(site: Site, admin: Headers) -> None:
    await stop(site, admin, "ann@example.com")
    [listed] = (await get(site, admin, PATH))["corrections"]
    await site.execute(
        f"""insert into calls select ('0' || substr(md5(''), 1, 31))::uuid, 'default', 'email', 'one/7', now(),
            array[{listed["id"]}, 99], 'bad-request', 400, null, null, 'Entry ***' from corrections"""
    )
    path = f"{PATH}/{listed['id']}"
    assert (await get(site, admin, path))["calls"] == [], "not made while it was open"
    moment = int(site.clock().timestamp() * 1000)
    await site.execute(f"update calls set id = '{moment:012x}70008000000000000000'::uuid")
    whole = await get(site, admin, path)
    [made] = whole.pop("calls")
    assert whole == listed
    assert (made["worker"], made["outcome"], made["status"], made["entries"]) == ("one/7", "bad-request", 400, 2)
    assert made["answer"] == "Entry ***"


@pytest.mark.parametrize("name", ["999", "0", "x", "9" * 40, "-1", "%00"])
async def test_there_is_no_such_correction(site: Site, admin: Headers, name: str) -> None:
    assert is_problem(await site.client.get(f"{PATH}/{name}", headers=admin), 404, "not-found")


async def test_another_namespace_s_corrections_are_nobody_s_business(site: Site, admin: Headers) -> None:
    await stop(site, admin, "ann@example.com")
    [row] = (await get(site, admin, PATH))["corrections"]
    stranger = await site.token("admin", namespace="other")
    assert is_problem(await site.client.get(f"{PATH}/{row['id']}", headers=stranger), 404, "not-found")
    for verb, more in (("requeue", {}), ("discard", {"reason": "x"})):
        answer = await post(site, stranger, f"{PATH}/{verb}", {"ids": [row["id"]]} | more)
        assert answer.json()["counts"] == {"not-found": 1}
    for path in ("/v1/admin/clock", PATH):
        assert is_problem(await site.client.get(f"{path}?namespace=default", headers=stranger), 403, "other-namespace")


async def test_some_or_all_are_requeued_and_each_is_told(site: Site, admin: Headers) -> None:
    await stop(site, admin, "ann@example.com", "bob@example.com", "carol@example.com")
    await give_up(site, "dead")
    rows = (await get(site, admin, PATH, state="dead"))["corrections"]
    answer = (await post(site, admin, f"{PATH}/requeue", {"ids": [rows[0]["id"], 12345]})).json()
    [done, unknown] = answer["corrections"]
    assert (done["outcome"], unknown["outcome"], answer["next"]) == ("requeued", "not-found", None)
    assert answer["counts"] == {"requeued": 1, "not-found": 1}
    everything = {"filter": {"state": "dead", "reason": "bad-request"}}
    answer = (await post(site, admin, f"{PATH}/requeue", everything)).json()
    assert answer["counts"] == {"requeued": 2}
    waiting = (await get(site, admin, PATH, state="pending"))["corrections"]
    assert {row["address"] for row in waiting} == {f"{name}@example.com" for name in ("ann", "bob", "carol")}
    assert done["waits_as"] in {row["id"] for row in waiting}
    actors = await site.query("select distinct actor from audit where action = 'correction.requeued'")
    assert actors == [("tester",)]


async def test_a_refused_one_needs_a_word_more(site: Site, admin: Headers) -> None:
    await stop(site, admin, "ann@example.com")
    await give_up(site, "rejected", "refused-by-kahuna")
    chosen = {"filter": {"state": "rejected", "address": "ann@example.com"}}
    assert (await post(site, admin, f"{PATH}/requeue", chosen)).json()["counts"] == {"refused-for-good": 1}
    answer = await post(site, admin, f"{PATH}/requeue", chosen | {"anyway": True})
    assert answer.json()["counts"] == {"requeued": 1}


async def test_a_discard_needs_a_reason_and_keeps_it(site: Site, admin: Headers) -> None:
    await stop(site, admin, "ann@example.com")
    await give_up(site, "dead")
    [row] = (await get(site, admin, PATH, state="dead"))["corrections"]
    for body in ({"ids": [row["id"]]}, {"ids": [row["id"]], "reason": " "}):
        assert is_problem(await post(site, admin, f"{PATH}/discard", body), 422, "invalid-body")
    answer = await post(site, admin, f"{PATH}/discard", {"ids": [row["id"]], "reason": "our own test"})
    assert answer.json()["counts"] == {"discarded": 1}
    shown = await get(site, admin, f"{PATH}/{row['id']}")
    assert (shown["state"], shown["decided_by"], shown["note"]) == ("discarded", "tester", "our own test")
    told = await get(site, admin, address_path("email", "ann@example.com", "/history"))
    assert "correction.discarded" in {event.get("action") for event in told["events"]}


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"filter": {}},
        {"filter": {"channel": "email"}},
        {"filter": {"state": "sent"}},
        {"ids": [1], "filter": {"state": "dead"}},
        {"ids": [1], "cursor": "WzFd"},
    ],
)
async def test_nobody_decides_about_everything_by_accident(site: Site, admin: Headers, body: Any) -> None:
    for verb, more in (("requeue", {}), ("discard", {"reason": "x"})):
        assert is_problem(await post(site, admin, f"{PATH}/{verb}", body | more), 422, "nothing-chosen")


async def test_the_desk_is_for_operators(site: Site) -> None:
    caller = await site.token("read", "write")
    for path in (PATH, "/v1/admin/circuits", "/v1/admin/clock", "/v1/admin/overview", "/v1/admin/quality"):
        assert is_problem(await site.client.get(path, headers=caller), 403, "missing-scope")


# Circuits.


async def test_circuits_are_told_and_reset(site: Site, admin: Headers) -> None:
    assert [one["state"] for one in (await get(site, admin, "/v1/admin/circuits"))["circuits"]] == ["closed"] * 2
    now = site.clock().isoformat()
    for namespace in ("default", "other"):
        await site.execute(
            f"insert into circuits values ('{namespace}', 'sms', 'not-permitted', '{now}', "
            f"timestamptz '{now}' + interval '60 s')"
        )
    path = "/v1/admin/circuits"
    [_, sms] = (await get(site, admin, path))["circuits"]
    assert (sms["state"], sms["reason"], sms["since"]) == ("open", "not-permitted", "2026-03-01T12:00:00Z")
    assert sms["next_probe_at"] == "2026-03-01T12:01:00Z"
    assert "KAHUNA_SECRET_KEY" in sms["fix"]
    site.clock.sleep(61)
    assert [one["state"] for one in (await get(site, admin, path))["circuits"]] == ["closed", "half-open"]
    for was_open in (True, False):
        answer = await post(site, admin, f"{path}/reset", {"channel": "sms"})
        assert answer.json() == {"namespace": "default", "channel": "sms", "was_open": was_open, "released": 0}
    assert await site.query("select namespace from circuits") == [("other",)]
    assert len(await site.query("select 1 from audit where action = 'circuit.reset' and actor = 'tester'")) == 2


# The clock.


async def test_the_clock_tells_what_is_due_and_when(site: Site, admin: Headers) -> None:
    await stop(site, admin, "ann@example.com", at="2026-02-13T12:00:00Z")  # a Friday: due on Friday, two days ago
    await stop(site, admin, "bob@example.com", at="2026-02-16T13:00:00Z")  # a Monday: due tomorrow
    await stop(site, admin, "carol@example.com", at="2026-02-28T12:00:00Z")
    [overdue] = (await get(site, admin, "/v1/admin/clock"))["stops"]
    assert (overdue["address"], overdue["urgency"]) == ("ann@example.com", "overdue")
    assert (overdue["due_at"], overdue["correction"]) == ("2026-02-27T12:00:00Z", "pending")
    [soon] = (await get(site, admin, "/v1/admin/clock", state="due_soon"))["stops"]
    assert (soon["address"], soon["due_at"], soon["urgency"]) == ("bob@example.com", "2026-03-02T13:00:00Z", "due_soon")
    first = await get(site, admin, "/v1/admin/clock", state="open", limit=2)
    rest = await get(site, admin, "/v1/admin/clock", state="open", limit=2, cursor=first["next"])
    addresses = [one["address"] for one in first["stops"] + rest["stops"]]
    assert addresses == ["ann@example.com", "bob@example.com", "carol@example.com"]
    assert rest["next"] is None
    assert (await get(site, admin, "/v1/admin/clock", state="open", channel="sms"))["stops"] == []
    assert (await get(site, admin, "/v1/admin/clock", state="open", correction="dead"))["stops"] == []


async def test_the_clock_is_in_the_metrics(site: Site, admin: Headers) -> None:
    await stop(site, admin, "ann@example.com", at="2026-02-13T12:00:00Z")
    await stop(site, admin, "bob@example.com", at="2026-02-28T12:00:00Z")
    await give_up(site, "dead")
    text = (await site.client.get("/metrics")).text
    name = 'kahuna_sync_open_stops{channel="email",namespace="default",state='
    assert f'{name}"overdue"}} 1.0' in text
    assert f'{name}"due_soon"}} 0.0' in text
    assert f'{name}"on_time"}} 1.0' in text
    name = "kahuna_sync_oldest_open_stop_seconds"
    assert f'{name}{{channel="email",namespace="default"}} {float(16 * DAY):.4e}' in text
    assert f'{name}{{channel="sms",namespace="other"}} 0.0' in text
    assert "@example" not in text


async def test_a_number_may_be_written_as_json_writes_integers(site: Site, admin: Headers) -> None:
    await stop(site, admin, "ann@example.com")
    for body in (b'{"limit": 1.0}', b'{"limit": 1e0, "state": "pending"}'):
        answer = await site.client.post(f"{PATH}/search", headers=admin, content=body)
        assert (answer.status_code, len(answer.json()["corrections"])) == (200, 1)
    for body in (b'{"limit": 1.5}', b'{"limit": 1e300}', b'{"limit": 0.0}', b'{"limit": "1.0"}'):
        answer = await site.client.post(f"{PATH}/search", headers=admin, content=body)
        assert is_problem(answer, 422, "invalid-body"), body


# The overview.


async def test_the_overview_has_the_figures(site: Site, admin: Headers) -> None:
    now = site.clock.seconds
    await site.deliver("email", [{"email": "old@example.com", "reason": "unsub", "timestamp": now}])
    site.clock.sleep(2 * DAY)
    now = site.clock.seconds
    await site.deliver("email", [{"email": "new@example.com", "reason": "unsub", "timestamp": now}, "no sense"])
    await site.deliver("sms", [{"number": "15550100001", "opt-in": True}])
    async with site.broken("quarantine"):
        await site.deliver("email", ["text"])
    await stop(site, admin, "ann@example.com", at="2026-02-13T12:00:00Z")
    await give_up(site, "dead")
    told = await get(site, admin, "/v1/admin/overview")
    assert told["received"] == {
        "day": {"callbacks": 3, "facts": 2, "rejected": 1},
        "week": {"callbacks": 4, "facts": 3, "rejected": 1},
        "estimated": False,
    }
    [email, sms] = told["size"]["channels"]
    assert (email["causes"], email["stops"], told["size"]["estimated"]) == (3, 3, False)
    assert (sms["causes"], sms["stops"]) == (0, 0)
    assert told["corrections"] == {"pending": 0, "sending": 0, "dead": 1, "rejected": 0, "unsupported": 0}
    [clock, other] = told["clock"]
    assert (clock["overdue"], clock["open"], clock["oldest_due_at"]) == (1, 1, "2026-02-27T12:00:00Z")
    assert (other["open"], other["oldest_stopped_at"]) == (0, None)
    assert (told["quarantine"], told["reviews"], told["unapplied_batches"]) == (1, 1, 1)
    assert [one["state"] for one in told["circuits"]] == ["closed", "closed"]
    assert told["spool"] is None


async def test_large_tables_are_told_as_estimates(site: Site) -> None:
    await site.execute(
        "insert into suppressions (address, channel, namespace, reason, stop_at) select 'a' || n || '@example.com', "
        "'email', 'default', 'unsubscribe', n from generate_series(1, 20000) n"
    )
    async with site.database.read() as connection:
        share = await sampling.share_of(connection, "suppressions", 400_000)
        assert not share.whole
        whole = await sampling.share_of(connection, "suppressions", 2**30)
    assert (whole.whole, whole.scaled(7)) == (True, 7)
    assert share.scaled(10) == round(10 * 100 / share.percent)
    [(seen,)] = await site.query(
        f"select count(*) from suppressions tablesample system ({share.percent}) repeatable (0)"
    )
    assert 0 < seen < 20_000


# How callbacks come.


async def seen(site: Site, admin: Headers, **parameters: str) -> list[Any]:
    weeks: list[Any] = (await get(site, admin, "/v1/admin/quality", **parameters))["weeks"]
    return weeks


async def test_a_week_is_told_with_what_is_wrong_with_it(site: Site, admin: Headers) -> None:
    site.clock.now = datetime(2026, 3, 2, 12, tzinfo=UTC)  # a Monday
    now = site.clock.seconds
    unsub = {"email": "ann@example.com", "reason": "unsub", "timestamp": now - 60}
    await site.deliver("email", [unsub, unsub, "no sense"])
    site.clock.sleep(3 * DAY)
    late = unsub | {"timestamp": now - 120}
    await site.deliver("email", [late])
    site.clock.sleep(DAY)
    [week] = await seen(site, admin)
    assert (week["week"], week["channel"], week["callbacks"], week["entries"]) == ("2026-03-02", "email", 2, 4)
    assert (week["duplicates"], week["duplicate_share"]) == (1, 0.25)
    assert (week["malformed"], week["malformed_share"]) == (1, 0.25)
    assert (week["facts"], week["out_of_order"], week["out_of_order_share"]) == (2, 1, 0.5)
    assert week["delay_seconds"]["p50"] == 60
    assert week["delay_seconds"]["max"] == 3 * DAY + 120
    assert week["missing_days"] == ["2026-03-03", "2026-03-04"]


async def test_weeks_and_channels_stand_apart_and_silence_is_told(site: Site, admin: Headers) -> None:
    site.clock.now = datetime(2026, 3, 5, 12, tzinfo=UTC)
    await site.deliver("sms", [{"number": "15550100001", "timestamp": site.clock.seconds}])
    await site.deliver("email", [{"email": "a@example.com", "reason": "unsub", "timestamp": site.clock.seconds}])
    site.clock.sleep(5 * DAY)
    await site.deliver("sms", [{"number": "15550100002", "timestamp": site.clock.seconds}])
    site.clock.sleep(1)
    weeks = await seen(site, admin)
    assert [(week["week"], week["channel"], week["callbacks"]) for week in weeks] == [
        ("2026-03-02", "email", 1),
        ("2026-03-02", "sms", 1),
        ("2026-03-09", "email", 0),
        ("2026-03-09", "sms", 1),
    ]
    assert [week["missing_days"] for week in weeks][1:3] == [
        ["2026-03-06", "2026-03-07", "2026-03-08"],
        ["2026-03-09"],
    ]
    assert await seen(site, admin, since="2026-03-09", until="2026-03-10") == []
    imported = {"reason": "manual"}
    await site.client.put(address_path("email", "own@example.com"), headers=admin, json=imported)
    assert await seen(site, admin) == weeks, "what is our own says nothing of Kahuna"


async def test_a_day_that_a_share_of_the_archive_lacks_is_looked_up(site: Site) -> None:
    site.clock.now = datetime(2026, 3, 2, 12, tzinfo=UTC)
    for _ in range(3):
        entry = {"email": "a@example.com", "reason": "unsub", "timestamp": site.clock.seconds}
        await site.deliver("email", [entry])
        site.clock.sleep(DAY)
    window = Window("default", datetime(2026, 3, 2, tzinfo=UTC), datetime(2026, 3, 5, tzinfo=UTC))
    async with sampling.bounded(site.database, 20, "") as connection:
        days = [datetime(2026, 3, day, tzinfo=UTC).date() for day in (3, 5)]
        assert [await quality.any_on(connection, window.namespace, "email", day) for day in days] == [True, False]
        assert not await quality.any_on(connection, window.namespace, "sms", days[0])


async def test_the_same_as_a_table(site: Site, admin: Headers) -> None:
    await site.deliver("email", [{"email": "a@example.com", "reason": "unsub", "timestamp": site.clock.seconds - 5}])
    site.clock.sleep(1)
    answer = await site.client.get("/v1/admin/quality?format=csv", headers=admin)
    assert answer.headers["Content-Type"].startswith("text/csv")
    [row] = csv.DictReader(io.StringIO(answer.text))
    assert (row["channel"], row["callbacks"], row["delay_p50_seconds"], row["estimated"]) == (
        "email",
        "1",
        "5.0",
        "false",
    )


@pytest.mark.parametrize(
    "parameters",
    [
        {"since": "2026-02-01", "until": "2026-02-01"},
        {"since": "2026-02-02", "until": "2026-02-01"},
        {"since": "2025-01-01", "until": "2026-02-01"},
    ],
)
async def test_no_report_is_made_of_any_time(site: Site, admin: Headers, parameters: dict[str, str]) -> None:
    answer = await site.client.get("/v1/admin/quality", headers=admin, params=parameters)
    assert is_problem(answer, 422, "impossible-window")


async def test_what_takes_too_long_ends_with_advice(site: Site) -> None:
    async def slow() -> None:
        async with sampling.bounded(site.database, 1, "Ask about less.") as connection:
            await connection.execute(text("set local statement_timeout = '20ms'"))
            await connection.execute(text("select pg_sleep(5)"))

    with pytest.raises(StorageBusy, match=r"longer than 1 seconds\. Ask about less\."):
        await slow()
