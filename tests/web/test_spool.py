"""What a caller sees of the spool: honest answers, readiness, figures, and 503 where nothing can be kept."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from service.app import build
from service.errors import SettingsError
from service.settings import Settings
from service.store.spool import BLOCK
from tests.relay import Relay, relayed
from tests.web.harness import Headers, Site, address_path, away, is_problem, opened
from tests.web.test_health import figures

STOP = {"email": "ann@example.com", "reason": "unsub", "timestamp": 1_700_000_000}
UNTIMED = {"email": "bob@example.com", "reason": "spam"}
PATIENCE = 20.0


@pytest.fixture(autouse=True)
def log() -> Iterator[list[Any]]:
    with capture_logs() as lines:
        yield lines


@pytest.fixture
def relay(database_url: str) -> Iterator[Relay]:
    with relayed(database_url) as made:
        yield made


@pytest.fixture
def spooling(settings: Settings, relay: Relay, tmp_path: Path) -> Settings:
    return replace(settings, database_url=relay.url, spool_dir=tmp_path / "spool", spool_patience_seconds=PATIENCE)


@pytest.fixture
async def site(spooling: Settings) -> AsyncIterator[Site]:
    async with opened(spooling) as site:
        yield site


def waiting(folder: Path | None) -> list[Path]:
    """The batches in the spool."""
    assert folder is not None
    return sorted(folder.glob("*.batch"))


async def drained(site: Site) -> None:
    while waiting(site.settings.spool_dir):  # noqa: ASYNC110 (a folder tells nobody)
        await asyncio.sleep(0.02)


async def status(site: Site, token: Headers, address: str) -> dict[str, Any]:
    answer = await site.client.get(address_path("email", address), headers=token)
    assert answer.status_code == 200, answer.text
    document: dict[str, Any] = answer.json()
    return document


async def test_without_a_database_the_answer_is_spooled_and_later_it_is_true(site: Site, relay: Relay) -> None:
    token = await site.token("read")
    received_at = site.clock.now
    relay.cut()
    answer = await site.deliver("email", [STOP, UNTIMED, "text"])
    assert answer.status_code == 200
    assert answer.json() == {"batch_id": answer.json()["batch_id"], "state": "spooled", "received": 3}
    again = await site.deliver("email", [STOP, UNTIMED, "text"], zipped=True)
    assert again.json() == answer.json()
    site.clock.sleep(3600)
    relay.mend()
    await drained(site)
    document = await status(site, token, "bob@example.com")
    (cause,) = document["causes"]
    assert (document["suppressed"], cause["batch_id"]) == (True, answer.json()["batch_id"])
    assert cause["occurred_at"] == received_at.strftime("%Y-%m-%dT%H:%M:%SZ")
    assert cause["recorded_at"] == site.clock.now.strftime("%Y-%m-%dT%H:%M:%SZ")
    applied = (await site.deliver("email", [STOP, UNTIMED, "text"])).json()
    assert applied["batch_id"] == answer.json()["batch_id"]
    assert (applied["state"], applied["duplicates"], applied["rejected"]) == ("applied", 2, 1)


async def test_nothing_unsigned_is_spooled_and_queries_are_refused(site: Site, relay: Relay) -> None:
    token = await site.token("read")
    relay.cut()
    assert is_problem(await site.deliver("email", [STOP], key="wrong"), 401, "signature-wrong")
    asked = await site.client.get(address_path("email", "ann@example.com"), headers=token)
    assert is_problem(asked, 503, "storage-unavailable")
    assert waiting(site.settings.spool_dir) == []


async def test_a_full_spool_asks_for_it_again_and_is_not_ready(spooling: Settings, relay: Relay) -> None:
    async with opened(replace(spooling, spool_limit_bytes=BLOCK)) as site:
        relay.cut()
        assert (await site.deliver("email", [STOP])).json()["state"] == "spooled"
        refused = await site.deliver("email", [UNTIMED])
        assert is_problem(refused, 503, "storage-unavailable")
        assert int(refused.headers["Retry-After"]) > 0
        ready = await site.client.get("/readyz")
        assert (ready.status_code, ready.json()["status"]) == (503, "not-ready")
        assert "SPOOL_LIMIT_BYTES" in ready.json()["checks"]["spool"]


async def test_a_spool_that_is_gone_asks_for_it_again_and_says_so(site: Site, relay: Relay) -> None:
    folder = site.settings.spool_dir
    assert folder is not None
    shutil.rmtree(folder)
    assert (await site.client.get("/readyz")).json()["status"] == "degraded"
    relay.cut()
    assert is_problem(await site.deliver("email", [STOP]), 503, "storage-unavailable")
    ready = await site.client.get("/readyz")
    assert (ready.status_code, ready.json()["status"]) == (503, "not-ready")
    assert "SPOOL_DIR" in ready.json()["checks"]["spool"]
    assert (await site.client.get("/metrics")).status_code == 200


async def test_it_is_ready_for_callbacks_while_the_spool_has_room(site: Site, relay: Relay) -> None:
    ready = await site.client.get("/readyz")
    assert (ready.status_code, ready.json()["status"]) == (200, "ready")
    assert ready.json()["checks"] == {"database": "ok", "migrations": "ok", "spool": "ok"}
    relay.cut()
    await site.deliver("email", [STOP])
    ready = await site.client.get("/readyz")
    assert (ready.status_code, ready.json()["status"]) == (200, "degraded")
    assert ready.json()["checks"]["database"] != "ok"
    assert "1 wait" in ready.json()["checks"]["spool"]


async def test_a_file_set_aside_is_told_until_it_is_taken_away(site: Site) -> None:
    assert site.settings.spool_dir is not None
    letter = site.settings.spool_dir / "letter"
    letter.write_text("dear spool")
    ready = await site.client.get("/readyz")
    assert (ready.status_code, ready.json()["status"]) == (200, "degraded")
    assert "1 set aside" in ready.json()["checks"]["spool"]
    assert (await figures(site))["kahuna_sync_spool_set_aside"] == 1
    for left in site.settings.spool_dir.glob("letter*"):
        left.unlink()
    assert (await site.client.get("/readyz")).json()["status"] == "ready"


async def test_its_figures_are_there_while_the_database_is_not(site: Site, relay: Relay) -> None:
    empty = await figures(site)
    assert empty["kahuna_sync_spool_files"] == empty["kahuna_sync_spool_oldest_seconds"] == 0
    relay.cut()
    await site.deliver("email", [STOP])
    site.clock.sleep(90)
    await site.deliver("email", [UNTIMED])
    found = await figures(site)
    assert found['kahuna_sync_callbacks_total{answer="spooled",channel="email"}'] == 2
    assert found["kahuna_sync_spool_files"] == 2
    assert found["kahuna_sync_spool_bytes"] == 2 * BLOCK
    assert found["kahuna_sync_spool_oldest_seconds"] == 90
    assert "kahuna_sync_unapplied_batches" not in found


async def test_a_deployment_without_a_spool_has_no_figures_of_one(settings: Settings) -> None:
    async with opened(settings) as site:
        assert not [name for name in await figures(site) if name.startswith("kahuna_sync_spool")]


async def test_a_database_that_was_never_there_is_no_reason_not_to_start(spooling: Settings) -> None:
    async with opened(replace(spooling, database_url=away())) as site:
        answers = await asyncio.gather(*(site.deliver("email", [STOP | {"timestamp": n}]) for n in range(1, 40)))
        assert {answer.json()["state"] for answer in answers} == {"spooled"}
        assert len(waiting(site.settings.spool_dir)) == 39


def test_a_spool_that_cannot_be_written_to_ends_the_start(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="SPOOL_DIR"):
        build(replace(settings, spool_dir=tmp_path / "file" / "spool"))
