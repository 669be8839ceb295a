"""Runs the scenarios one after the other, each in an arena of its own, and prints the report."""

import asyncio
import json
import os
import random
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from tests.chaos import machine
from tests.chaos.arena import Arena
from tests.chaos.load import Load, NeverAcknowledged
from tests.chaos.rolling import where
from tests.chaos.scenarios import SCENARIOS

CONNECTIONS = 16
STARTING, BEFORE, AFTER = 2.0, 8.0, 30.0
"""Seconds of load until it counts, before something is broken, and after it is mended."""

ENOUGH = 0.8
"""Of the speed before: what must be back after."""

SETTLING = 60.0
"""Seconds within which everything acknowledged must be applied once the load has ended."""


@dataclass
class Finding:
    """What came of one scenario. `faults` is empty if every promise was kept."""

    scenario: str
    acknowledged: dict[str, int]
    refused: dict[str, int]
    before: float
    after: float
    faults: list[str] = field(default_factory=list)


def left(since: machine.Reading, until: machine.Reading) -> float:
    """The share of this machine that others left to us."""
    return machine.left(since, until, os.cpu_count() or 1)


async def play(name: str, folder: Path, seed: int, seconds: float) -> Finding:
    """One scenario: load, the fault under load, load again; then the promises are checked."""
    scenario = SCENARIOS[name]
    chance = random.Random(f"{name} {seed}")
    async with scenario.arena(folder, seconds, **scenario.settings).open() as arena:
        load = Load(arena.doors, random.Random(f"load {name} {seed}"))
        running = asyncio.create_task(load.run(CONNECTIONS))
        # The first seconds of all are those of processes that have just begun.
        await asyncio.sleep(STARTING)
        begun = machine.read(arena.roots)
        await asyncio.sleep(BEFORE)
        broken = machine.read(arena.roots)
        await scenario.work(arena, chance)
        mended = machine.read(arena.roots)
        await asyncio.sleep(AFTER)
        load.ended.set()
        ended = machine.read(arena.roots)
        faults = []
        try:
            await running
        except* NeverAcknowledged as error:
            faults.append(f"{len(error.exceptions)} callbacks were never acknowledged")
        before, left_before = statistics.median(load.rates(begun.at, broken.at)), left(begun, broken)
        after, left_after = statistics.median(load.rates(mended.at, ended.at)), left(mended, ended)
        faults += await broken_promises(arena, load)
        if scenario.flawless and load.refused:
            faults.append(f"answers other than 200: {dict(load.refused)} (0: no whole answer)")
        # By the share of the machine that there was: nobody promises anything about what else runs on it.
        if after / left_after < ENOUGH * before / left_before:
            shares = f"{left_after:.0%} and {left_before:.0%} of the machine were left to it"
            faults.append(f"the speed did not come back: {after:.0f}/s of {before:.0f}/s ({shares})")
    return Finding(name, dict(load.acknowledged), dict(load.refused), before, after, faults)


async def broken_promises(arena: Arena, load: Load) -> list[str]:
    """What is missing, there twice, or other than the model says."""
    faults = []
    missing = await not_applied(arena, load)
    end = time.monotonic() + SETTLING
    while missing and time.monotonic() < end:
        await asyncio.sleep(0.2)
        missing = await not_applied(arena, load)
    if missing:
        faults.append(f"{len(missing)} acknowledged batches were never applied")
    count = (await arena.sql("select count(*) from batches"))[0][0]
    if count != len(load.bodies):
        faults.append(f"{count} batches for {len(load.bodies)} bodies")
    found = await the_list(arena)
    expected = {
        (*person, reason): (cause.stop_at, cause.clear_at, list(cause.bounces))
        for person, causes in load.expected.items()
        for reason, cause in causes.items()
    }
    different = [key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key)]
    if different:
        faults.append(f"{len(different)} causes differ from the model's")
    return faults


async def not_applied(arena: Arena, load: Load) -> set[str]:
    """The acknowledged batches that are not in the archive, or only recorded there."""
    return load.batches - {str(row[0]) for row in await arena.sql("select id from batches where state = 'applied'")}


async def the_list(arena: Arena) -> dict[tuple[str, str, str], Any]:
    """The list as the database has it."""
    rows = await arena.sql("select channel, address, reason, stop_at, clear_at, bounces from suppressions")
    return {
        (row.channel, row.address, row.reason): (row.stop_at, row.clear_at, list(row.bounces or ()))
        for row in rows
        if row.stop_at is not None or row.clear_at is not None or row.bounces
    }


def table_of(findings: list[Finding], seed: int) -> Table:
    """The report as people read it."""
    table = Table("scenario", "acknowledged", "refused", "per second", "after", "promises", title=f"seed {seed}")
    for one in findings:
        said = "\n".join(one.faults) if one.faults else "kept"
        counts = (", ".join(f"{n} {word}" for word, n in part.items()) for part in (one.acknowledged, one.refused))
        table.add_row(SCENARIOS[one.scenario].says, *counts, f"{one.before:.0f}", f"{one.after:.0f}", said)
    return table


@click.command()
@click.option("--seed", default=1, show_default=True, help="Where all chance comes from.")
@click.option("--only", multiple=True, type=click.Choice(list(SCENARIOS)), help="These scenarios alone.")
@click.option("--seconds", default=60.0, show_default=True, help="How long `rolling` goes on.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False), help="Where the findings are written as JSON.")
def main(seed: int, only: tuple[str, ...], seconds: float, json_file: str | None) -> None:
    """Break the service under load, and check its promises. Exits with 1 if one was broken."""
    findings = []
    console = Console(width=140)
    for name in only or SCENARIOS:
        absent = [program for program in SCENARIOS[name].needs if where(program) is None]
        if absent:
            console.print(f"{name} is passed over: it needs {' and '.join(absent)} (Debian packages of these names)")
            continue
        console.print(f"{SCENARIOS[name].says} …", highlight=False)
        with tempfile.TemporaryDirectory(prefix="ks-chaos-") as folder:
            Path(folder).chmod(0o755)
            findings.append(asyncio.run(play(name, Path(folder), seed, seconds)))
    console.print(table_of(findings, seed))
    if json_file:
        Path(json_file).write_text(json.dumps([asdict(one) for one in findings], indent=2), encoding="utf-8")
    sys.exit(any(one.faults for one in findings))


if __name__ == "__main__":
    main()
