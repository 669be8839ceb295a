"""docs/kahuna.md is true: its examples print what it says, against the stand-in, and its tables are the code's."""

import asyncio
import dataclasses
import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import uvicorn

from service.kahuna import (
    CampaignConfig,
    CampaignFigures,
    Contract,
    Credentials,
    EmailRecord,
    InAppRecord,
    KahunaClient,
    LogRecord,
    MergeRecord,
    PushConfig,
    PushMessage,
    PushRecord,
    Recipient,
    ServerRequest,
    UserCampaignRecord,
)
from service.kahuna.simulator import SimulatorConfig, build_simulator
from service.settings import Secret
from service.shell import kahuna
from service.shell.printing import EXIT_CODES

from . import blocks

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "kahuna.md"
KEYS = ("demo-secret-key", "demo-api-key")
NOW = 1_500_000_000.0
PROGRAM = """#!/bin/sh
exec {python} -c 'import click, service.shell
click.Group("kahuna-sync", commands={{"kahuna": service.shell.kahuna}})()' "$@"
"""


@pytest.fixture
def environ() -> Iterator[dict[str, str]]:
    """The variables of the page, for a stand-in of this test's own, on a port."""
    config = SimulatorConfig(Secret(KEYS[0]), Secret(KEYS[1]), job_pending_seconds=0.0, job_running_seconds=0.0)
    listening = socket.create_server(("127.0.0.1", 0))
    app = build_simulator(config, lambda: NOW)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    try:
        asyncio.run(know_carl(url))
        yield {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "KAHUNA_BASE_URL": url,
            "KAHUNA_ENV": "s",
            "KAHUNA_SECRET_KEY": KEYS[0],
            "KAHUNA_API_KEY": KEYS[1],
        }
    finally:
        server.should_exit = True
        thread.join()


async def know_carl(url: str) -> None:
    """Carl was two users before, and has been sent to."""
    sandbox = Credentials(url, "s", Secret(KEYS[0]), Secret(KEYS[1]))
    carl = {"username": "carl"}
    async with KahunaClient(sandbox) as client:
        for device, said in (("carl", carl), ("tablet", {"user_id": "42"}), ("tablet", {**carl, "user_id": "42"})):
            await client.server(ServerRequest(f"dev-{device}", "login", credentials=said, push_token=f"token-{device}"))
        job = await client.adaptive_campaign(CampaignConfig(1004, "username"), [Recipient(["carl"])])
        await client.job_status(job.job_id)
    async with KahunaClient(dataclasses.replace(sandbox, env="p")) as client:
        await client.server(ServerRequest("dev-carl", "login", credentials=carl, push_token="token-carl"))
        await client.push([PushMessage(carl, "Hello")], default_config=PushConfig(campaign_name="Orders"))


def compare(examples: list[blocks.Example], printed: list[str]) -> None:
    """Each example printed what the page says."""
    assert len(examples) == len(printed) > 15
    for example, text in zip(examples, printed, strict=True):
        assert text == example.prints, f"the example at line {example.line} of {PAGE.name}"


def test_the_examples_in_python_print_what_the_page_says(environ: dict[str, str], tmp_path: Path) -> None:
    words = [sys.executable, "-m", "tests.docs.blocks", str(PAGE)]
    ended = subprocess.run(words, cwd=tmp_path, env=environ, capture_output=True, check=False, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")
    compare(blocks.examples(PAGE, "python"), json.loads(ended.stdout))


def test_the_examples_of_the_shell_print_what_the_page_says(environ: dict[str, str], tmp_path: Path) -> None:
    program = tmp_path / "bin" / "kahuna-sync"
    program.parent.mkdir()
    # The same commands without the rest of the service, which takes longer to be loaded than they do to run.
    program.write_text(PROGRAM.format(python=sys.executable))
    program.chmod(0o755)
    examples = blocks.examples(PAGE, "sh")
    script = "\necho @@@\n".join(["set -e", *(example.code for example in examples)])
    there = environ | {"PATH": f"{program.parent}:{environ['PATH']}"}
    ended = subprocess.run(["sh", "-c", script], cwd=tmp_path, env=there, capture_output=True, check=False, text=True)
    assert ended.returncode == 0, ended.stderr
    compare(examples, ended.stdout.split("@@@\n")[1:])


ROW = re.compile(r"^\| `(\w+)` \| `(.*?)` \| ([A-Z]+) \| (.+?) \|$", re.MULTILINE)


def test_every_attribute_of_a_record_is_told() -> None:
    page = PAGE.read_text(encoding="utf-8")
    table = page[page.index("| records | attributes |") :].split("\n\n", 1)[0]
    rows = [row.split(" | ") for row in table.splitlines()]
    for record in (PushRecord, InAppRecord, EmailRecord, MergeRecord, UserCampaignRecord, CampaignFigures):
        general = issubclass(record, LogRecord)
        told = {
            name
            for names, attributes, *_ in rows
            if f"`{record.__name__}`" in names or (general and "all log records" in names)
            for name in re.findall(r"`(\w+)`", attributes)
        }
        assert told - {"time", "datetime"} == set(record.__struct_fields__) - {"extra"}


def test_type_checkers_may_read_the_package() -> None:
    assert (ROOT / "service" / "py.typed").is_file()


def test_every_unverified_part_has_its_row() -> None:
    told = {name: tuple(rest) for name, *rest in ROW.findall(PAGE.read_text(encoding="utf-8"))}
    words: dict[object, object] = {True: "yes", False: "no"}
    true = {
        field.name: (words.get(field.default, field.default), field.metadata["evidence"], field.metadata["says"])
        for field in dataclasses.fields(Contract)
    }
    assert told == true
    assert list(told) == list(true)


def test_the_correction_on_the_page_can_be_taken() -> None:
    (text,) = re.findall(r'^export KAHUNA_CONTRACT="(.*)"$', PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert Contract.corrected(text) != Contract()


def test_the_exit_codes_are_those_of_the_help() -> None:
    rows = re.findall(r"^\| (\d+) \| ([^|]+) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert {int(code): says for code, says in rows} == EXIT_CODES


def test_the_table_has_every_api() -> None:
    page = PAGE.read_text(encoding="utf-8")
    rows = [row for line in page.splitlines() if len(row := line.split(" | ")) == 9 and row[0] not in ("| #", "| ---")]
    assert [row[0] for row in rows] == [f"| {number}" for number in range(1, 19)]
    called = [name for row in rows for name in re.findall(r"`(\w+)`", row[3])]
    assert all(callable(getattr(KahunaClient, name)) for name in called)
    commands = {word for row in rows for word in re.findall(r"`(?:logs )?([\w-]+)`", row[4])}
    logs = kahuna.commands["logs"]
    assert isinstance(logs, click.Group)
    assert commands == {*kahuna.commands, *logs.commands} - {"logs"}
    headings = set(re.findall(r"^### (.+)$", page, re.MULTILINE))
    assert {row[1] for row in rows} == headings
