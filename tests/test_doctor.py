"""What `doctor` says of deployments that are not well: each line names what to do."""

import asyncio
import re
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner
from sqlalchemy import text

from service import embedded
from service.__main__ import cli
from service.doctor import examine
from service.flows.examine import Check
from service.settings import Settings
from service.store import access, migrations, pulls
from service.store.database import Database
from tests.conftest import administer
from tests.kahuna.listening import listening as listening_vendor
from tests.kahuna.listening import said
from tests.proxying import WRITTEN, proxying
from tests.test_commands import listening
from tests.web.harness import away

KEYS = {"KAHUNA_API_KEY": "demo-api-key", "KAHUNA_SECRET_KEY": "demo-secret-key", "KAHUNA_ENV": "s"}


async def found(
    database_url: str, public_url: str | None = None, *, offline: bool = True, **more: str
) -> dict[str, Check]:
    """Every check, by its name."""
    environ = KEYS | {"DATABASE_URL": database_url} | more
    return {one.name: one async for one in examine(environ, public_url=public_url, offline=offline)}


async def test_a_good_deployment_is_told_so_with_what_was_not_looked_at(database: Database, settings: Settings) -> None:
    checks = await found(settings.database_url or "")
    # The server of the tests need not wait for the disk, and that is seen.
    assert [one.name for one in checks.values() if one.level == "fail"] == ["database/fsync"]
    assert {checks[name].level for name in ("database", "migrations", "clock", "signature/default")} == {"ok"}
    assert "no CALLBACK_TOKEN" in checks["settings/default"].says
    assert "--public-url" in checks["webhooks"].do
    assert all(one.do for one in checks.values() if one.level != "ok")


@pytest.fixture
def own_folder() -> Iterator[Path]:
    """Where the server's own user gets in."""
    with tempfile.TemporaryDirectory(prefix="ks-doctor-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


async def test_a_list_that_outgrew_what_the_server_was_given_is_told(own_folder: Path) -> None:
    small = "alter system set shared_buffers = '256kB'"
    stops = """
        insert into suppressions (address, channel, namespace, reason, stop_at)
        select 'a' || n || '@example.com', 'email', 'default', 'unsubscribe', 1 from generate_series(1, :n) as n
    """
    with embedded.server(own_folder) as url:
        await migrations.upgrade(url)
        await administer(url, small)
        assert "database/memory" not in await found(url)  # it counts from the next start on
    with embedded.server(own_folder) as url:
        assert "database/memory" not in await found(url)
        await administer(url, stops.replace(":n", "3000"))
        await administer(url, "analyze suppressions")
        check = (await found(url))["database/memory"]
    assert (check.level, check.says) == ("warn", "shared_buffers are 0 MiB, the list and its index 1 MiB")
    assert "shared_buffers" in check.do


async def test_it_waits_for_nobody_who_alters_the_list(database: Database, settings: Settings) -> None:
    async with database.begin() as altering:
        await altering.execute(text("lock table suppressions in access exclusive mode"))
        checks = await found(settings.database_url or "")
    assert (checks["database"].level, checks["tokens"].level) == ("ok", "warn")


async def test_a_missing_setting_ends_it_with_its_name() -> None:
    (check,) = [one async for one in examine({"KAHUNA_API_KEY": "x"}, public_url=None, offline=True)]
    assert (check.name, check.level) == ("settings", "fail")
    assert "KAHUNA_SECRET_KEY" in check.says


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"PORT": "99999", "LOG_LEVEL": "loud", "KAHUNA_ENV": "q"}, ["PORT", "LOG_LEVEL", "KAHUNA_ENV"]),
        ({"KAHUNA_CONTRACT": "x=y"}, ["KAHUNA_CONTRACT"]),
        ({"EXTRA_REASONS": "gone=nowhere"}, ["EXTRA_REASONS"]),
    ],
)
async def test_whatever_would_end_a_start_is_told_at_once(wrong: dict[str, str], says: list[str]) -> None:
    (check,) = [one async for one in examine(KEYS | wrong, public_url=None, offline=True)]
    assert (check.name, check.level) == ("settings", "fail")
    assert all(name in check.says for name in says)


async def test_a_spool_that_could_take_nothing_is_told(tmp_path: Path) -> None:
    checks = await found(away(), SPOOL_DIR=str(tmp_path), SPOOL_LIMIT_BYTES="4096")
    assert (checks["spool/limit"].level, checks["spool"].level) == ("fail", "ok")


async def test_a_callback_that_could_never_be_taken_is_told_and_ends_no_start() -> None:
    checks = await found(away(), BODY_LIMIT_BYTES="2000", BODY_BUDGET_BYTES="1999")
    assert (checks["settings"].level, checks["settings/bodies"].level) == ("ok", "fail")
    assert "settings/bodies" not in await found(away(), BODY_LIMIT_BYTES="2000", BODY_BUDGET_BYTES="2000")


async def test_an_unreachable_database_is_told_without_its_url() -> None:
    checks = await found(away())
    assert checks["database"].level == "fail"
    assert "nobody" not in repr(checks)


async def test_a_database_behind_names_the_command(database: Database, settings: Settings) -> None:
    async with database.begin() as connection:
        await connection.exec_driver_sql("update alembic_version set version_num = '0001'")
    checks = await found(settings.database_url or "")
    assert (checks["migrations"].level, checks["migrations"].do) == ("fail", "run kahuna-sync migrate")


async def test_a_past_that_was_not_read_is_told(database: Database, settings: Settings) -> None:
    check = (await found(settings.database_url or ""))["backfill/default"]
    assert (check.level, check.do) == ("warn", "run kahuna-sync backfill --namespace default")
    async with database.begin() as connection:
        now = datetime.now(UTC)
        email, push = (pulls.Key("default", api, pulls.BACKFILL) for api in ("email", "push"))
        for key in (email, push):
            await pulls.begin(connection, key, now, now)
        await pulls.arrive(connection, email, now, now, done=True)
    assert (await found(settings.database_url or ""))["backfill/default"].level == "warn"
    async with database.begin() as connection:
        await pulls.arrive(connection, push, now, now, done=True)
    assert (await found(settings.database_url or ""))["backfill/default"].level == "ok"


async def test_months_that_are_not_made_are_told(database: Database, settings: Settings) -> None:
    checks = await found(settings.database_url or "")
    assert {name: checks[f"partitions/{name}"].level for name in ("batches", "changes", "calls")} == {
        "batches": "warn",
        "changes": "warn",
        "calls": "warn",
    }


@pytest.mark.parametrize(("namespace", "level"), [("default", "ok"), ("gone", "warn")])
async def test_tokens_are_looked_at(database: Database, settings: Settings, namespace: str, level: str) -> None:
    async with database.begin() as connection:
        await access.create_token(connection, "orders", ["read"], namespace, datetime.now(UTC))
    checks = await found(settings.database_url or "")
    assert checks["tokens"].level == "ok"
    assert checks.get("tokens/orders", Check("", "ok", "")).level == level


async def test_keys_that_are_refused_fail_and_a_stranger_at_the_webhook_too(settings: Settings) -> None:
    with listening() as url:
        checks = await found(settings.database_url or "", url, offline=False, KAHUNA_BASE_URL=url)
    assert checks["kahuna/default"].level == "fail"
    assert "KAHUNA_SECRET_KEY" in checks["kahuna/default"].do
    assert checks["webhooks/default"].level == "fail"
    assert "401" in checks["webhooks/default"].says


async def test_what_nobody_hears_and_what_everybody_reads_on_the_way_is_told(settings: Settings) -> None:
    nobody = away().replace("postgresql://nobody@", "http://").removesuffix("/nothing")
    checks = await found(settings.database_url or "", nobody, offline=False, KAHUNA_BASE_URL=nobody)
    assert (checks["kahuna/default"].level, checks["webhooks/default"].level) == ("fail", "fail")
    plain = await found(settings.database_url or "", "ftp://sync.example.com")
    assert plain["webhooks"].level == "fail"


async def test_the_proxy_on_the_way_is_told_without_its_password() -> None:
    async with listening_vendor(lambda _: said({"success": True})) as vendor, proxying() as proxy:
        more = {"KAHUNA_BASE_URL": vendor.url, "KAHUNA_PROXY_URL": proxy.url}
        good = (await found(away(), offline=False, **more))["kahuna/default"]
        more["KAHUNA_PROXY_URL"] = proxy.url.replace("sync:", "nobody:")
        bad = (await found(away(), offline=False, **more))["kahuna/default"]
        more["KAHUNA_BASE_URL"] = vendor.url.replace("http:", "https:")
        shut = (await found(away(), offline=False, **more))["kahuna/default"]
        where = proxy.url.rpartition("@")[2]
    assert (good.level, f"by the proxy {where}" in good.says, len(vendor.seen)) == ("ok", True, 1)
    for one in (bad, shut):
        assert (one.level, "407" in one.says, "KAHUNA_PROXY_URL" in one.do) == ("fail", True, True)
        assert WRITTEN not in repr(one)


async def test_a_proxy_that_hangs_up_without_a_word_is_what_stands_in_the_way() -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as server:
        proxy = f"http://sync:{WRITTEN}@127.0.0.1:{server.sockets[0].getsockname()[1]}"
        more = {"KAHUNA_BASE_URL": "https://kahuna.test", "KAHUNA_PROXY_URL": proxy}
        one = (await found(away(), offline=False, **more))["kahuna/default"]
    assert (one.level, "by the proxy 127.0.0.1" in one.says, "KAHUNA_PROXY_URL" in one.do) == ("fail", True, True)
    assert WRITTEN not in repr(one)


def test_it_exits_with_what_it_found() -> None:
    result = CliRunner().invoke(cli, ["doctor", "--offline"], env=KEYS | {"DATABASE_URL": away()})
    assert result.exit_code == 1
    assert "fail  database" in result.stdout
    assert "-> check host, port, firewall" in result.stdout


def test_what_hints_name_is_in_the_guide() -> None:
    root = Path(__file__).parent.parent
    headings = set(re.findall(r"^#+ (.+)$", (root / "docs/operating.md").read_text(), re.MULTILINE))
    texts = [file.read_text() for file in (root / "service").rglob("*.py")]
    named = [name for text in texts for name in re.findall(r"see docs/operating\.md, ([^\"]+)\"", text)]
    assert named
    assert set(named) <= headings
