"""Owns the playing of one world for the long run, in a database and a process of its own, and how a history that ends
wrongly is made small."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from service.store.database import Database
from service.telemetry import set_up_logging
from tests.conftest import administer, settings_for, url_of
from tests.convergence.history import History, history, in_words, weather
from tests.convergence.judge import judge
from tests.convergence.stage import play

TEMPLATE = "template_sync"


@dataclass
class Report:
    """What came of some histories: how many there were, how many ended wrongly, what was counted, and the
    faults in words."""

    histories: int = 0
    wrong: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    met: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def add(self, other: "Report") -> None:
        """Both together."""
        self.histories += other.histories
        self.wrong += other.wrong
        self.counts += other.counts
        self.met += other.met
        self.faults += other.faults


async def _played(server_url: str, seed: int, world: int, histories: Sequence[History]) -> tuple[Report, list[History]]:
    """What came of these, in a database of their own; and those that ended wrongly."""
    name = f"world_{world}"
    await administer(server_url, f"create database {name} template {TEMPLATE} strategy file_copy")
    settings = settings_for(url_of(server_url, name))
    report, wrong = Report(len(histories)), []
    try:
        async with Database.of(settings) as database:
            found = await play(database, settings, seed, world, histories)
        report.met += found.met
        for one in histories:
            faults = judge(one, found, report.counts)
            if faults:
                wrong.append(one)
                report.faults.append("\n".join([*faults, in_words(one, weather(seed, world))]))
    except Exception as error:  # noqa: BLE001 (whatever it is, it is what was looked for)
        wrong += histories
        report.faults.append(f"world {world} with {len(histories)} histories: {type(error).__name__}: {error}"[:2000])
    finally:
        await administer(server_url, f"drop database {name} with (force)")
    report.wrong = len(wrong)
    return report, wrong


async def _small(server_url: str, seed: int, world: int, one: History) -> str | None:
    """The same fault with as little said as possible, in words; None if it needs its neighbours."""
    report, wrong = await _played(server_url, seed, world, [one])
    if not wrong:
        return None
    at = 0
    while at < len(one.said):
        less = one._replace(said=one.said[:at] + one.said[at + 1 :])
        tried, wrong = await _played(server_url, seed, world, [less])
        one, report, at = (less, tried, at) if wrong else (one, report, at + 1)
    return report.faults[0]


def world_report(server_url: str, seed: int, world: int, numbers: Sequence[int]) -> Report:
    """What came of a world; the first of its histories that ended wrongly is made small."""
    set_up_logging("critical", "console")
    histories = [history(seed, number) for number in numbers]
    report, wrong = asyncio.run(_played(server_url, seed, world, histories))
    if wrong:
        small = asyncio.run(_small(server_url, seed, world, wrong[0]))
        report.faults += [] if small is None else [f"made small:\n{small}"]
    return report
