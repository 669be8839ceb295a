"""What machines ask: is it alive, is it ready, and its figures, with the database there, away, behind or ahead."""

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from service.settings import Settings
from service.store import migrations
from tests.web.harness import Site, away, is_problem, opened

STOP = {"email": "ann@example.com", "reason": "unsub", "timestamp": 1_700_000_000}
CHECKS = ["/livez", "/readyz", "/metrics"]
OUTCOMES = ("accepted", "duplicates", "rejected")


@pytest.fixture
async def site(settings: Settings) -> AsyncIterator[Site]:
    async with opened(settings) as site:
        yield site


async def figures(site: Site) -> dict[str, float]:
    """The samples of /metrics by their names with labels."""
    answer = await site.client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].startswith("text/plain")
    lines = [line for line in answer.text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


# Alive and ready.


async def test_all_is_well(site: Site) -> None:
    assert (await site.client.get("/livez")).json() == {"status": "alive"}
    ready = await site.client.get("/readyz")
    assert (ready.status_code, ready.json()["status"]) == (200, "ready")
    assert ready.json()["checks"] == {"database": "ok", "migrations": "ok"}


async def test_without_a_database_it_is_alive_and_not_ready(settings: Settings) -> None:
    async with opened(replace(settings, database_url=away())) as site:
        assert (await site.client.get("/livez")).status_code == 200
        ready = await site.client.get("/readyz")
        assert (ready.status_code, ready.json()["status"]) == (503, "not-ready")
        assert int(ready.headers["Retry-After"]) > 0
        assert ready.json()["checks"]["database"] != "ok"


@pytest.mark.parametrize("statement", ["delete from alembic_version", "drop table alembic_version"])
async def test_an_empty_database_is_not_ready_and_says_what_to_do(site: Site, statement: str) -> None:
    await site.execute(statement)
    ready = await site.client.get("/readyz")
    assert (ready.status_code, ready.json()["status"]) == (503, "not-ready")
    assert "migrate" in ready.json()["checks"]["migrations"]


async def test_every_older_revision_is_behind(site: Site) -> None:
    older = migrations.revisions() - {migrations.head()}
    for revision in older:
        await site.execute(f"update alembic_version set version_num = '{revision}'")
        assert (await site.client.get("/readyz")).status_code == 503
    await site.execute(f"update alembic_version set version_num = '{migrations.head()}'")
    assert (await site.client.get("/readyz")).status_code == 200


async def test_a_newer_revision_is_ready_since_migrations_run_before_the_release(site: Site) -> None:
    await site.execute("update alembic_version set version_num = '9999_newer'")
    ready = await site.client.get("/readyz")
    assert (ready.status_code, ready.json()["checks"]["migrations"]) == (200, "ok")


async def test_refused_keys_are_told_and_callbacks_go_on(site: Site) -> None:
    await site.execute("insert into circuits values ('other', 'email', 'credentials-refused', now(), now())")
    ready = await site.client.get("/readyz")
    assert (ready.status_code, ready.json()["status"]) == (200, "degraded")
    assert "KAHUNA_SECRET_KEY" in ready.json()["checks"]["kahuna/other/email"]
    assert (await site.deliver("email", [STOP])).status_code == 200


@pytest.mark.parametrize("path", CHECKS)
async def test_a_check_takes_no_parameters_and_only_get(site: Site, path: str) -> None:
    assert is_problem(await site.client.get(f"{path}?verbose=1"), 400, "unknown-parameter")
    assert is_problem(await site.client.post(path), 405, "method-not-allowed")
    assert (await site.client.head(path)).status_code == 200
    assert (await site.client.get(path)).headers["X-Request-ID"]


# Figures.


async def test_callbacks_are_counted_by_answer_and_entries_by_outcome(site: Site) -> None:
    await site.deliver("email", [STOP, STOP, "text"])
    await site.deliver("email", [STOP, STOP, "text"])
    await site.deliver("email", [STOP], key="wrong")
    await site.deliver("sms", [{"number": "15550100001"}])
    found = await figures(site)
    assert found['kahuna_sync_callbacks_total{answer="applied",channel="email"}'] == 2
    assert found['kahuna_sync_callbacks_total{answer="401",channel="email"}'] == 1
    assert found['kahuna_sync_callbacks_total{answer="applied",channel="sms"}'] == 1
    by_outcome = [found[f'kahuna_sync_entries_total{{channel="email",outcome="{o}"}}'] for o in OUTCOMES]
    assert by_outcome == [1, 3, 2]


async def test_counts_of_callbacks_begin_at_zero_or_the_first_would_be_no_rise(site: Site) -> None:
    found = await figures(site)
    for answer in ("applied", "recorded", "spooled", "401", "500", "503"):
        assert found[f'kahuna_sync_callbacks_total{{answer="{answer}",channel="sms"}}'] == 0
    assert found['kahuna_sync_entries_total{channel="email",outcome="rejected"}'] == 0


async def test_where_there_is_nothing_a_figure_is_0_and_not_missing(site: Site) -> None:
    found = await figures(site)
    for namespace in ("default", "other"):
        for state in ("pending", "sending", "dead", "rejected", "unsupported"):
            assert found[f'kahuna_sync_corrections{{namespace="{namespace}",state="{state}"}}'] == 0
        for channel in ("email", "sms"):
            for name in ("corrections_overdue_seconds", "open_circuits", "quarantine_entries", "open_surges"):
                assert found[f'kahuna_sync_{name}{{channel="{channel}",namespace="{namespace}"}}'] == 0
        assert found[f'kahuna_sync_violations{{known_by="us",namespace="{namespace}"}}'] == 0


async def test_a_callback_that_meets_a_fault_of_ours_is_counted_too(site: Site) -> None:
    now, site.clock.now = site.clock.now, datetime.min.replace(tzinfo=UTC)
    assert is_problem(await site.deliver("email", [STOP]), 500, "internal-error")
    site.clock.now = now
    assert (await figures(site))['kahuna_sync_callbacks_total{answer="500",channel="email"}'] == 1


async def test_what_waits_is_counted_in_the_database(site: Site) -> None:
    await site.client.put(
        "/v1/suppressions/sms/15550100001", headers=await site.token("write"), json={"reason": "do_not_call"}
    )
    site.clock.sleep(60)
    opt_in = {"number": "15550100001", "timestamp": site.clock.seconds, "opt-in": True}
    assert (await site.deliver("sms", [opt_in])).json()["accepted"] == 1
    async with site.broken("quarantine"):
        await site.deliver("email", ["text"])
    await site.execute("insert into circuits values ('other', 'email', 'credentials-refused', now(), now())")
    found = await figures(site)
    assert found["kahuna_sync_unapplied_batches"] == 1
    assert found["kahuna_sync_pending_reviews"] == 1
    assert found['kahuna_sync_corrections{namespace="default",state="pending"}'] == 1
    assert found['kahuna_sync_open_circuits{channel="email",namespace="other"}'] == 1


async def test_what_was_given_up_is_counted_each_time_and_what_takes_a_walk_once_a_minute(site: Site) -> None:
    async def stop(number: str) -> None:
        headers = await site.token("write")
        await site.client.put(f"/v1/suppressions/sms/{number}", headers=headers, json={"reason": "do_not_call"})

    await stop("15550100001")
    await site.execute("update corrections set state = 'dead'")
    await stop("15550100002")
    await site.deliver("email", ["text"])
    await site.execute(
        "with run as (insert into reconciliations "
        "(id, namespace, channel, source, auto_approve, state, actor, created_at, complete_at, counts) values "
        "(gen_random_uuid(), 'other', 'email', 'ledger', false, 'planned', 'x', now(), now(), '{}') returning id) "
        "insert into differences (run_id, address, slot, kind, evidence, state) "
        "select id, n::text, 'complaint', 'missing_there', '{}', case n when 4 then 'proved' else 'proposed' end "
        "from run, generate_series(1, 4) as n"
    )
    found = await figures(site)
    assert found['kahuna_sync_corrections{namespace="default",state="dead"}'] == 1
    assert found['kahuna_sync_corrections{namespace="default",state="pending"}'] == 1
    assert found['kahuna_sync_quarantine_entries{channel="email",namespace="default"}'] == 1
    assert found['kahuna_sync_drift{channel="email",kind="missing_there",namespace="other"}'] == 3
    await site.execute("update corrections set state = 'dead'")
    await site.execute("update quarantine set state = 'discarded'")
    site.clock.sleep(30)
    soon = await figures(site)
    assert soon['kahuna_sync_corrections{namespace="default",state="pending"}'] == 0
    assert soon['kahuna_sync_corrections{namespace="default",state="dead"}'] == 2
    assert soon['kahuna_sync_quarantine_entries{channel="email",namespace="default"}'] == 1
    site.clock.sleep(31)
    assert (await figures(site))['kahuna_sync_quarantine_entries{channel="email",namespace="default"}'] == 0


async def test_reviews_are_kept_for_good_and_so_counted_once_a_minute(site: Site) -> None:
    await site.deliver("sms", [{"number": "15550100001", "opt-in": True}])
    assert (await figures(site))["kahuna_sync_pending_reviews"] == 1
    await site.execute("update reviews set state = 'refused'")
    site.clock.sleep(30)
    assert (await figures(site))["kahuna_sync_pending_reviews"] == 1
    site.clock.sleep(31)
    assert (await figures(site))["kahuna_sync_pending_reviews"] == 0


async def test_the_oldest_correction_that_is_due_has_an_age(site: Site) -> None:
    headers = await site.token("write")
    await site.client.put("/v1/suppressions/sms/15550100001", headers=headers, json={"reason": "do_not_call"})
    site.clock.sleep(90)
    found = await figures(site)
    assert found['kahuna_sync_corrections_overdue_seconds{channel="sms",namespace="default"}'] == 90


async def test_lookups_and_connections_are_counted(site: Site) -> None:
    await site.client.get("/v1/suppressions/email/ann@example.com", headers=await site.token("read"))
    found = await figures(site)
    assert found["kahuna_sync_lookups_total"] == found["kahuna_sync_lookup_statements_total"] == 1
    states = [found[f'kahuna_sync_pool_connections{{state="{state}"}}'] for state in ("busy", "idle", "free")]
    assert (states[0], sum(states)) == (0, site.settings.database_pool_size)


async def test_requests_are_timed_by_their_route_and_never_by_an_address(site: Site) -> None:
    await site.deliver("email", [STOP])
    await site.client.get("/v1/suppressions/email/ann@example.com", headers=await site.token("read"))
    await site.client.get("/ann@example.com")
    text = (await site.client.get("/metrics")).text
    assert 'route="/v1/suppressions/{channel}/{address:path}",status="200"' in text
    assert 'route="/webhooks/{namespace}/email",status="200"' in text
    assert 'route="none",status="404"' in text
    assert "ann@" not in text


async def test_without_a_database_its_own_figures_are_still_there(settings: Settings) -> None:
    async with opened(replace(settings, database_url=away())) as site:
        await site.deliver("email", [STOP])
        found = await figures(site)
        assert found['kahuna_sync_callbacks_total{answer="503",channel="email"}'] == 1
        assert "kahuna_sync_unapplied_batches" not in found
