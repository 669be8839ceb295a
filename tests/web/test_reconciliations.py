"""Reconciliations as an operator sees them: asked for, looked at, decided, taken back, reported."""

import csv
import io
import uuid
from typing import Any

import httpx
import pytest

from service.flows import prove, reconcile
from service.flows.ingest import rules_of
from service.flows.underway import Means
from tests.web.harness import Headers, Site, address_path, is_problem

RUNS = "/v1/admin/reconciliations"
ANN, EVIL = "ann@example.com", "=<script>&'\"@example.com"


@pytest.fixture
async def admin(site: Site) -> Headers:
    """An operator of the default namespace."""
    return await site.token("admin", "read", "write")


async def queued(site: Site, caller: Headers, **more: Any) -> str:
    """Where a new run is."""
    asked = {"channel": "email", "source": "ledger"} | more
    answer = await site.client.post(RUNS, headers=caller, json=asked)
    assert (answer.status_code, answer.json()["state"]) == (202, "queued")
    assert answer.headers["Location"] == f"{RUNS}/{answer.json()['id']}"
    return str(answer.headers["Location"])


async def work(site: Site) -> None:
    """What the worker does."""
    means = Means(site.database, rules_of(site.settings), site.clock)
    while await reconcile.run_next(means):
        pass
    await prove.prove(site.database, site.clock)


async def drifted(site: Site, caller: Headers, *addresses: str) -> str:
    """Where a plan is whose lines are complaints of these, which Kahuna was never told."""
    for address in addresses or (ANN,):
        put = await site.client.put(address_path("email", address), headers=caller, json={"reason": "complaint"})
        assert put.status_code == 200, put.text
    await site.execute("delete from corrections")
    place = await queued(site, caller)
    await work(site)
    return place


async def told(site: Site, caller: Headers, place: str, **parameters: Any) -> Any:
    """The document at a place."""
    answer = await site.client.get(place, headers=caller, params=parameters)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def decide(site: Site, caller: Headers, place: str, verb: str, body: Any = None) -> httpx.Response:
    """A decision, with a body or without."""
    return await site.client.post(f"{place}/{verb}", headers=caller, **({} if body is None else {"json": body}))


async def test_a_run_is_queued_planned_and_told(site: Site, admin: Headers) -> None:
    await site.client.put(address_path("email", ANN), headers=admin, json={"reason": "complaint"})
    await site.execute("delete from corrections")
    place = await queued(site, admin)
    assert (await told(site, admin, place))["state"] == "queued"
    await work(site)
    run = await told(site, admin, place)
    assert (run["state"], run["actor"], run["compared"], run["lines"]) == ("planned", "tester", 1, {"proposed": 1})
    group = {"direction": "there", "kind": "missing_there", "reason": "complaint", "action": "suppress"}
    group["slot"] = "complaint"
    assert run["groups"] == [group | {"state": "proposed", "why": None, "count": 1, "samples": [ANN]}]
    [listed] = (await told(site, admin, RUNS))["reconciliations"]
    assert listed == {name: value for name, value in run.items() if name not in ("lines", "groups")}
    [line] = (await told(site, admin, f"{place}/differences"))["differences"]
    assert (line["address"], line["slot"], line["state"], line["direction"]) == (ANN, "complaint", "proposed", "there")
    assert line["evidence"]["here"][0]["reason"] == "complaint"


async def test_a_plan_is_approved_and_its_proof_reported(site: Site, admin: Headers) -> None:
    place = await drifted(site, admin)
    answer = await decide(site, admin, place, "approve", {"reason": "complaint", "note": "seen"})
    assert (answer.status_code, answer.json()["state"], answer.json()["lines"]) == (200, "approved", 1)
    await work(site)
    assert (await told(site, admin, place))["state"] == "applied"
    await site.execute("update corrections set state = 'sent', evidence = '{\"request_id\": \"r1\"}'")
    await work(site)
    run = await told(site, admin, place)
    assert (run["state"], run["decided_by"], run["note"]) == ("proved", "tester", "seen")
    report = await told(site, admin, f"{place}/report")
    assert [(line["state"], line["request_id"]) for line in report["lines"]] == [("proved", "r1")]


async def test_named_lines_that_wait_for_no_decision_are_told(site: Site, admin: Headers) -> None:
    place = await drifted(site, admin, ANN, "bob@example.com")
    named = [{"address": ANN, "slot": "complaint"}, {"address": "nobody@example.com", "slot": "complaint"}]
    answer = (await decide(site, admin, place, "approve", {"lines": named})).json()
    assert (answer["lines"], answer["passed_over"]) == (1, [named[1] | {"state": None}])
    rest = (await decide(site, admin, place, "reject")).json()
    assert rest["lines"] == 1


async def test_a_plan_is_rejected_for_good(site: Site, admin: Headers) -> None:
    place = await drifted(site, admin)
    assert (await decide(site, admin, place, "reject")).json()["state"] == "rejected"
    assert is_problem(await decide(site, admin, place, "approve"), 409, "no-plan")


async def test_a_run_is_taken_back(site: Site, admin: Headers) -> None:
    place = await drifted(site, admin)
    answer = await decide(site, admin, place, "revert", {"note": "a mistake"})
    assert (answer.status_code, answer.json()["state"], answer.headers["Location"]) == (202, "reverting", place)
    await work(site)
    run = await told(site, admin, place)
    assert (run["state"], run["lines"]) == ("reverted", {"declined": 1})
    assert is_problem(await decide(site, admin, place, "revert"), 409, "not-revertible")


async def test_lines_are_walked_through_and_filtered(site: Site, admin: Headers) -> None:
    addresses = [f"a{n}@example.com" for n in range(5)]
    place = f"{await drifted(site, admin, *addresses)}/differences"
    seen: list[str] = []
    cursor: dict[str, str] = {}
    while True:
        page = await told(site, admin, place, limit=2, **cursor)
        seen += [line["address"] for line in page["differences"]]
        if page["next"] is None:
            break
        cursor = {"cursor": page["next"]}
    assert seen == addresses
    for chosen, count in (({"kind": "differs"}, 0), ({"direction": "there"}, 5), ({"direction": "here"}, 0)):
        assert len((await told(site, admin, place, **chosen))["differences"]) == count
    for wrong in ({"cursor": "x"}, {"cursor": "WyJhXHUwMDAwIiwiYiJd"}):
        answer = await site.client.get(place, headers=admin, params=wrong)
        assert is_problem(answer, 422, "invalid-cursor")


async def test_runs_are_walked_through_and_filtered(site: Site, admin: Headers) -> None:
    places = []
    for _ in range(3):
        places.append(await queued(site, admin))
        site.clock.sleep(1)
    await queued(site, admin, channel="sms")
    first = await told(site, admin, RUNS, limit=2, channel="email")
    rest = await told(site, admin, RUNS, limit=2, channel="email", cursor=first["next"])
    ids = [f"{RUNS}/{run['id']}" for page in (first, rest) for run in page["reconciliations"]]
    assert ids == places[::-1]
    assert (await told(site, admin, RUNS, state="planned"))["reconciliations"] == []


async def test_profiles_and_logs_take_what_is_theirs(site: Site, admin: Headers) -> None:
    place = await queued(site, admin, source="profiles", addresses=["Ann@Example.com", ANN])
    [row] = await site.query(f"select asked from reconciliations where id = '{place.rpartition('/')[2]}'")
    assert row[0] == {"addresses": [ANN]}
    await queued(site, admin, source="logs", since="2026-02-01T00:00:00+01:00")
    for wrong, slug in (
        ({"source": "ledger", "since": "2026-02-01T00:00:00Z"}, "not-for-this-source"),
        ({"source": "logs", "addresses": [ANN]}, "not-for-this-source"),
        ({"source": "profiles", "addresses": ["nobody"]}, "impossible-address"),
    ):
        answer = await site.client.post(RUNS, headers=admin, json={"channel": "email"} | wrong)
        assert is_problem(answer, 422, slug)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"channel": "fax", "source": "ledger"},
        {"channel": "email", "source": "rumours"},
        {"channel": "email", "source": "ledger", "auto_approve": "yes"},
        {"channel": "email", "source": "ledger", "approve": True},
        {"channel": "email", "source": "profiles", "addresses": []},
    ],
)
async def test_a_run_that_cannot_be_is_refused(site: Site, admin: Headers, body: object) -> None:
    answer = await site.client.post(RUNS, headers=admin, json=body)
    assert is_problem(answer, 422, "invalid-body")
    assert (await told(site, admin, RUNS))["reconciliations"] == []


@pytest.mark.parametrize("run", [str(uuid.UUID(int=0)), "nothing"])
async def test_there_is_no_such_run(site: Site, admin: Headers, run: str) -> None:
    for tail in ("", "/differences", "/report"):
        assert is_problem(await site.client.get(f"{RUNS}/{run}{tail}", headers=admin), 404, "not-found")
    for verb in ("approve", "reject", "revert"):
        assert is_problem(await decide(site, admin, f"{RUNS}/{run}", verb), 404, "not-found")


async def test_a_run_is_told_and_decided_in_its_own_namespace_alone(site: Site, admin: Headers) -> None:
    place = await drifted(site, admin)
    other = await site.token("admin", namespace="other")
    everywhere = await site.token("admin", namespace=None)
    for tail in ("", "/differences", "/report"):
        answer = await site.client.get(f"{place}{tail}", headers=other)
        assert answer.status_code in (403, 404), answer.text
        answer = await site.client.get(f"{place}{tail}", headers=everywhere, params={"namespace": "other"})
        assert answer.status_code == 404, answer.text
    for verb in ("approve", "reject", "revert"):
        assert (await decide(site, other, place, verb)).status_code in (403, 404)
    assert (await told(site, admin, place))["state"] == "planned"


# The report.


async def reported(site: Site, caller: Headers, place: str, form: str) -> httpx.Response:
    """The report in a form."""
    answer = await site.client.get(f"{place}/report", headers=caller, params={"format": form})
    assert answer.status_code == 200, answer.text
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    return answer


async def test_the_page_escapes_whatever_is_in_it_and_runs_nothing(site: Site, admin: Headers) -> None:
    place = await drifted(site, admin, EVIL)
    await decide(site, admin, place, "approve", {"note": "<b>bold</b>"})
    await work(site)
    answer = await reported(site, admin, place, "html")
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert "<script" not in answer.text
    assert "=&lt;script&gt;&amp;&#x27;&quot;@example.com" in answer.text
    assert "&lt;b&gt;bold&lt;/b&gt;" in answer.text
    assert "Sent or about to be sent" in answer.text


async def test_the_csv_has_every_line_and_no_formula(site: Site, admin: Headers) -> None:
    """One apostrophe less, and each address is what it was."""
    evil = [EVIL, "+a@example.com", "-a@example.com", "'=a@example.com"]
    place = await drifted(site, admin, *evil, ANN)
    answer = await reported(site, admin, place, "csv")
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert sorted(row["address"] for row in rows) == sorted([ANN, *(f"'{one}" for one in evil)])
    report = await told(site, admin, f"{place}/report")
    said = {line["address"]: line["occurred_at"] for line in report["lines"]}
    assert {row["address"].removeprefix("'"): row["occurred_at"] for row in rows} == said
    assert all(at.endswith("Z") for at in said.values())
    await decide(site, admin, place, "reject")
    answer = await reported(site, admin, place, "csv")
    decided = {row["decided_at"] for row in csv.DictReader(io.StringIO(answer.text))}
    assert all(at.endswith("Z") and "+" not in at for at in decided), decided


async def test_moot_lines_have_a_figure_of_their_own(site: Site, admin: Headers) -> None:
    place = await drifted(site, admin, ANN, "bob@example.com")
    await site.execute(f"update differences set state = 'moot', why = 'changed-meanwhile' where address = '{ANN}'")
    await site.execute(f"update differences set state = 'proved', why = 'accepted' where address <> '{ANN}'")
    report = await told(site, admin, f"{place}/report")
    assert {one["state"]: one["lines"] for one in report["figures"]} == {"moot": 1, "proved": 1}
    [moot] = [one for one in report["figures"] if one["state"] == "moot"]
    assert moot["says"] == "was no longer so when it was to be carried out"
    [line] = [one for one in report["lines"] if one["state"] == "moot"]
    assert "next reconciliation" in line["to_do"]
    page = (await reported(site, admin, place, "html")).text
    assert "What became of the lines" in page
    assert '<td>moot</td><td class="n">1</td>' in page


async def test_what_cannot_be_said_and_what_was_refused_says_what_to_do(site: Site, admin: Headers) -> None:
    place = await drifted(site, admin, "a@example.com", "b@example.com", "c@example.com")
    await decide(site, admin, place, "approve")
    await work(site)
    for address, state, reason in (("a", "rejected", "refused-by-kahuna"), ("b", "dead", "too-large")):
        await site.execute(
            f"update corrections set state = '{state}', reason = '{reason}' where address = '{address}@example.com'"
        )
    await work(site)
    report = await told(site, admin, f"{place}/report")
    lines = {line["address"][0]: line for line in report["lines"]}
    assert [lines[name]["state"] for name in "abc"] == ["refused", "applied", "applied"]
    assert "ask Kahuna why" in lines["a"]["to_do"]
    assert "mend what its reason names" in lines["b"]["to_do"]
    assert (lines["b"]["correction_reason"], lines["c"]["to_do"]) == ("too-large", None)
    page = (await reported(site, admin, place, "html")).text
    assert page.index("Refused by Kahuna: 1") < page.index("without proof yet: 2")


async def test_a_run_without_differences_says_that_both_sides_agree(site: Site, admin: Headers) -> None:
    place = await queued(site, admin)
    await work(site)
    assert (await told(site, admin, f"{place}/report"))["lines"] == []
    assert "Both sides agree" in (await reported(site, admin, place, "html")).text


# Drift as a gauge.


async def test_drift_is_a_gauge_with_the_time_of_the_last_check(site: Site, admin: Headers) -> None:
    def figures(text: str) -> list[str]:
        return sorted(line for line in text.splitlines() if line.startswith(("kahuna_sync_drift", "kahuna_sync_last")))

    assert figures((await site.client.get("/metrics")).text) == []
    place, checked_at = await drifted(site, admin, ANN, EVIL), site.clock.seconds
    labels = 'channel="email",kind="{}",namespace="default"'
    checked = 'kahuna_sync_last_check_timestamp_seconds{channel="email",namespace="default"}'
    for there in (2.0, 0.0):
        site.clock.sleep(61)  # these figures are remembered for a minute
        shown = figures((await site.client.get("/metrics")).text)
        assert [line.rsplit(" ", 1)[0] for line in shown[3:]] == [checked]
        assert float(shown[3].rsplit(" ", 1)[1]) == checked_at
        assert shown[:3] == [
            f"kahuna_sync_drift{{{labels.format('differs')}}} 0.0",
            f"kahuna_sync_drift{{{labels.format('missing_here')}}} 0.0",
            f"kahuna_sync_drift{{{labels.format('missing_there')}}} {there}",
        ]
        await decide(site, admin, place, "approve")
        await work(site)
        await site.execute("update corrections set state = 'sent'")
        await work(site)


async def test_a_report_says_that_both_sides_agree_only_of_what_was_compared(site: Site, admin: Headers) -> None:
    place = await queued(site, admin)
    assert "There is no plan" in (await reported(site, admin, place, "html")).text
    await work(site)
    await site.execute("update reconciliations set counts = jsonb_build_object('logs_unread', 1)")
    page = (await reported(site, admin, place, "html")).text
    assert "Both sides agree" not in page
    assert "logs unread" in page
