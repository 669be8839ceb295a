"""The whole list as text: every cause as it stands, as of one moment, and what becomes of an export that breaks off."""

import asyncio
import csv
import gzip
import io
import random
from dataclasses import replace
from datetime import datetime
from typing import Any

import msgspec
import pytest
from sqlalchemy import insert, text

from service.app import build
from service.domain.facts import reasons_of
from service.domain.suppression import Cause, merge, standing
from service.flows.ingest import policy_of
from service.settings import Settings
from service.store.database import single_connection
from service.store.export import COLUMNS, Format, Wanted, stream
from service.store.tables import suppressions
from tests.flows.speaking import Clock
from tests.web.harness import Headers, Site, is_problem, opened, with_state

PATH = "/v1/suppressions/export"
AT = 1_700_000_000
ODD = [
    '"a,b"@example.com',
    '"say ""hi"""@example.com',
    "=1+1@example.com",
    "+ann@example.com",
    "-x@example.com",
    "@home@example.com",
    "o'hara\\n@example.com",
    "josé@xn--bcher-kva.example",
    "😀@example.com",
]
Row = dict[str, Any]


@pytest.fixture
async def reader(site: Site) -> Headers:
    return await site.token("read")


async def exported(site: Site, reader: Headers, **parameters: str) -> list[Row]:
    """The rows, which both forms agree on."""
    csv_text, ndjson = [
        (await site.client.get(PATH, headers=reader, params={**parameters, "format": form})).text
        for form in ("csv", "ndjson")
    ]
    rows = [msgspec.json.decode(line) for line in ndjson.splitlines()]
    header, *cells = list(csv.reader(io.StringIO(csv_text)))
    assert tuple(header) == COLUMNS
    told = [[{True: "true", False: "false", None: ""}.get(cell, cell) for cell in row.values()] for row in rows]
    assert cells == told
    return rows


async def held(site: Site, causes: list[Cause], namespace: str = "default") -> None:
    """Puts causes on the list, each of an address of its own."""
    rows = [
        {
            "namespace": namespace,
            "channel": "email",
            "address": f"a{place:05}@example.com",
            "reason": cause.reason,
            "stop_at": cause.stop_at,
            "clear_at": cause.clear_at,
            "bounces": list(cause.bounces) or None,
            "origin": "import",
            "recorded_at": site.clock.now,
        }
        for place, cause in enumerate(causes)
    ]
    async with site.database.begin() as connection:
        await connection.execute(insert(suppressions), rows)


def seconds(shown: str | None) -> int | None:
    return None if shown is None else int(datetime.fromisoformat(shown).timestamp())


async def test_a_cause_is_a_row(site: Site, reader: Headers) -> None:
    await site.deliver("email", [{"email": "Ann@Example.com", "reason": "unsub", "timestamp": AT}])
    assert await exported(site, reader) == [
        {
            "namespace": "default",
            "channel": "email",
            "address": "ann@example.com",
            "reason": "unsubscribe",
            "active": True,
            "occurred_at": "2023-11-14T22:13:20Z",
            "until": None,
            "origin": "kahuna_webhook",
            "recorded_at": "2026-03-01T12:00:00Z",
            "address_received": "Ann@Example.com",
        }
    ]


async def test_the_answer_says_what_it_is_and_where_to_follow_from(site: Site, reader: Headers) -> None:
    answer = await site.client.get(PATH, headers=reader)
    assert answer.headers["Content-Type"] == "text/csv; charset=utf-8"
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.text == ",".join(COLUMNS) + "\n"
    assert (await site.client.head(PATH, headers=reader)).status_code == 200
    follow = {"after": answer.headers["X-Changes-Cursor"]}
    await site.deliver("email", [{"email": "ann@example.com", "reason": "unsub", "timestamp": AT}])
    found = (await site.client.get("/v1/changes", headers=reader, params=follow)).json()["changes"]
    assert [change["address"] for change in found] == ["ann@example.com"]
    lines = await site.client.get(PATH, headers=reader, params={"format": "ndjson"})
    assert lines.headers["Content-Type"] == "application/x-ndjson"


async def test_what_commits_while_it_is_read_is_in_it_or_in_the_feed(site: Site, reader: Headers) -> None:
    async with single_connection(site.settings.database_url or "") as slow:
        await slow.execute(
            text(
                """insert into changes (namespace, channel, address, recorded_at)
                   values ('default', 'email', 'slow@example.com', now())"""
            )
        )
        answer = await site.client.get(PATH, headers=reader)
        await slow.commit()
    follow = {"after": answer.headers["X-Changes-Cursor"]}
    found = (await site.client.get("/v1/changes", headers=reader, params=follow)).json()["changes"]
    assert [change["address"] for change in found] == ["slow@example.com"]


@pytest.mark.parametrize("limits", [{}, {"hard_bounce_lifetime_days": 20, "soft_bounce_count": 1}])
async def test_every_cause_stands_as_the_rules_say(settings: Settings, limits: dict[str, int]) -> None:
    """The verdict stands twice, in the domain and in SQL: random causes hold the two against each other."""
    settings = replace(settings, **limits)  # type: ignore[arg-type]
    policy, chance = policy_of(settings), random.Random(11)
    async with opened(settings) as site:
        now = int(site.clock.now.timestamp())

        def moment() -> int:
            return now - chance.randrange(0, 60) * 86_400

        causes = []
        for _ in range(600):
            reason = chance.choice(reasons_of("email"))
            clear_at, stop_at = (moment() if chance.random() < odds else None for odds in (0.4, 0.9))
            bounces = tuple(sorted({moment() for _ in range(chance.randrange(1, 9))})) if stop_at else ()
            stops = [*bounces] if reason == "soft_bounce" and stop_at else [stop_at]
            cause = Cause(reason, stops[-1], clear_at, bounces if reason == "soft_bounce" else ())
            causes.append(merge(cause, cause, policy))
        await held(site, causes)
        rows: dict[str, list[Row]] = {}
        for row in await exported(site, await site.token("read"), order="key"):
            rows.setdefault(row["address"], []).append(row)
        for place, cause in enumerate(causes):
            found = rows.get(f"a{place:05}@example.com", [])
            if cause.decided is None:
                assert found == []
                continue
            stands = standing(cause, now, policy)
            assert {row["active"] for row in found} == {stands.active}, cause
            assert [seconds(row["occurred_at"]) for row in found] == list(cause.bounces or (cause.decided[1],))
            cleared = cause.decided[0] == "clear" and not cause.bounces
            assert {seconds(row["until"]) for row in found} == {cause.decided[1] if cleared else stands.until}, cause


async def test_a_bounce_that_was_cleared_a_moment_ahead_of_our_clock_is_no_cause(site: Site, reader: Headers) -> None:
    now = int(site.clock.now.timestamp())
    await held(site, [Cause("soft_bounce", None, now + 200), Cause("hard_bounce", now, now + 200)])
    rows = await exported(site, reader)
    assert [(row["active"], seconds(row["until"])) for row in rows] == [(False, now + 200)] * 2


@pytest.mark.parametrize("form", ["csv", "ndjson"])
async def test_times_are_spelt_alike_however_the_server_spells_them(site: Site, reader: Headers, form: Format) -> None:
    await held(site, [Cause("manual", AT), Cause("manual", AT, AT + 1), Cause("soft_bounce", AT, None, (AT - 1, AT))])
    wanted, policy = Wanted("default", AT, ordered=True), policy_of(site.settings)
    parts: list[bytes] = []

    async def keep(part: bytes) -> None:
        parts.append(part)

    async with site.database.snapshot("suppressions") as connection:
        for name, value in (("timezone", "Asia/Kolkata"), ("datestyle", "SQL, DMY")):
            await connection.execute(text(f"set local {name} = '{value}'"))
        await stream(connection, wanted, policy, form, keep)
    asked = {"format": form, "order": "key"}
    assert b"".join(parts) == (await site.client.get(PATH, headers=reader, params=asked)).content


async def test_addresses_come_out_as_they_are(site: Site, reader: Headers) -> None:
    """Also those that a spreadsheet would take for formulas: an import could not tell what was put before them."""
    entries = [{"email": address, "reason": "spam", "timestamp": AT} for address in ODD]
    answer = await site.deliver("email", entries)
    taken = [address for n, address in enumerate(ODD) if n not in {one["index"] for one in answer.json()["errors"]}]
    assert len(taken) >= 8
    assert {row["address_received"] for row in await exported(site, reader)} == set(taken)


async def test_what_was_loaded_past_the_service_has_gaps(site: Site, reader: Headers) -> None:
    await held(site, [Cause("manual", AT)])
    await site.execute("update suppressions set origin = null, recorded_at = null")
    (row,) = await exported(site, reader)
    assert (row["origin"], row["recorded_at"]) == (None, None)


async def test_namespaces_never_mix(site: Site, reader: Headers) -> None:
    await held(site, [Cause("manual", AT)], "other")
    assert await exported(site, reader) == []
    assert len(await exported(site, await site.token("read", namespace="other"))) == 1


async def test_some_of_it(site: Site, reader: Headers) -> None:
    await held(site, [Cause("manual", AT), Cause("complaint", AT), Cause("manual", AT, AT + 1)])
    await site.deliver("sms", [{"number": "15550100001", "timestamp": AT}])

    async def some(**parameters: str) -> list[str]:
        return sorted(row["address"][:6] for row in await exported(site, reader, **parameters))

    assert await some(channel="sms") == ["155501"]
    assert await some(reason="manual") == ["a00000", "a00002"]
    assert await some(reason="manual", active="true") == ["a00000"]
    assert await some(active="false") == ["a00002"]
    assert await some(reason="manual", channel="sms") == []


async def test_it_goes_on_from_the_last_row(site: Site, reader: Headers) -> None:
    await held(site, [Cause("manual", AT) for _ in range(5)])
    whole = await exported(site, reader, order="key")
    assert [row["address"] for row in whole] == sorted(row["address"] for row in whole)
    last = whole[2]
    rest = await exported(site, reader, **{"from": f"email,{last['reason']},{last['address']}"})
    assert whole[:2] + rest == whole


@pytest.mark.parametrize(
    ("parameter", "value"),
    [
        ("format", "xlsx"),
        ("channel", "fax"),
        ("reason", "boredom"),
        ("active", "yes"),
        ("order", "time"),
        ("from", "ann@example.com"),
        ("from", "email,manual,"),
        ("from", "email,manual,a\0b"),
    ],
)
async def test_what_cannot_be_meant_is_refused(site: Site, reader: Headers, parameter: str, value: str) -> None:
    answer = await site.client.get(PATH, headers=reader, params={parameter: value})
    assert is_problem(answer, 422, "invalid-parameter")


async def test_a_reason_of_the_other_channel_is_refused(site: Site, reader: Headers) -> None:
    asked = {"channel": "sms", "reason": "unsubscribe"}
    assert is_problem(await site.client.get(PATH, headers=reader, params=asked), 422, "unknown-reason")


@pytest.mark.parametrize("accepted", ["gzip", "br, gzip;q=0.5", "*"])
async def test_it_is_compressed_for_those_who_take_that(site: Site, reader: Headers, accepted: str) -> None:
    await held(site, [Cause("manual", AT) for _ in range(50)])
    plain = await site.client.get(PATH, headers={**reader, "Accept-Encoding": "gzip;q=0, identity"})
    assert "Content-Encoding" not in plain.headers
    async with site.client.stream("GET", PATH, headers={**reader, "Accept-Encoding": accepted}) as answer:
        assert answer.headers["Content-Encoding"] == "gzip"
        packed = b"".join([part async for part in answer.aiter_raw()])
    assert gzip.decompress(packed) == plain.content
    assert len(packed) < len(plain.content) / 4


async def test_it_cannot_be_begun_without_a_database_or_while_others_go_on(site: Site, reader: Headers) -> None:
    async with site.broken("suppressions"):
        assert is_problem(await site.client.get(PATH, headers=reader), 503, "storage-outdated")


async def asked(settings: Settings, site: Site, receive: Any, send: Any, count: int = 1) -> None:
    """So many exports at a server of their own, as the protocol would ask for them."""
    application = build(settings, Clock())
    reader = await site.token("read")
    headers = [(name.lower().encode(), value.encode()) for name, value in reader.items()]
    scope = {"type": "http", "method": "GET", "path": PATH, "query_string": b"", "headers": headers}
    async with application.router.lifespan_context(application) as state:
        served = with_state(application, dict(state or {}))
        await asyncio.gather(*(served(scope, receive, send) for _ in range(count)))
        # The connection that it had is good for others again.
        await served(scope | {"path": "/readyz"}, receive, send)


async def test_who_hangs_up_ends_it(site: Site, settings: Settings) -> None:
    """With a single connection in the pool, the next one gets an answer only if this was given back."""
    await held(site, [Cause("manual", AT) for _ in range(20_000)])
    hung_up, sent = asyncio.Event(), []

    async def receive() -> dict[str, Any]:
        await hung_up.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)
        if message.get("more_body"):
            hung_up.set()
            await asyncio.sleep(0.1)

    await asked(replace(settings, database_pool_size=1), site, receive, send)
    assert sum(len(message.get("body", b"")) for message in sent) < 20_000 * 60
    statuses = [message["status"] for message in sent if message["type"] == "http.response.start"]
    assert statuses == [200, 200]
    assert [message.get("more_body", False) for message in sent if "body" in message][-2:] == [True, False]


async def test_one_that_breaks_off_is_not_ended_in_form(site: Site, settings: Settings) -> None:
    """Or what was sent would look like the whole list."""
    await held(site, [Cause("manual", AT) for _ in range(20_000)])
    sent: list[dict[str, Any]] = []
    served: list[str] = []

    async def receive() -> dict[str, Any]:
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)
        if b"example.com" in message.get("body", b"") and not served:
            served.append("cut")
            await site.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where query like 'COPY (select %'"
            )

    await asked(settings, site, receive, send)
    export = sent[: next(n for n, one in enumerate(sent) if n and one["type"] == "http.response.start")]
    assert export[0]["status"] == 200
    assert all(message["more_body"] for message in export[1:])


async def test_too_many_at_once_are_told_to_come_again(site: Site, settings: Settings) -> None:
    await held(site, [Cause("manual", AT) for _ in range(20_000)])
    go_on, statuses = asyncio.Event(), []

    async def receive() -> dict[str, Any]:
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])
        if message.get("more_body"):
            await go_on.wait()
        if 503 in statuses:
            go_on.set()

    await asked(settings, site, receive, send, 3)
    assert sorted(statuses) == [200, 200, 200, 503]
