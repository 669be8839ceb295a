"""Makes the bodies, has them judged, and prints the report. Ends with 1 if anything was not as it must be."""

import asyncio
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import click
from rich.console import Console
from rich.table import Table

from service import embedded
from service.settings import Namespace, Secret, Settings
from service.store import migrations
from service.telemetry import set_up_logging
from tests.hostile.bodies import Made, make
from tests.hostile.door import opened
from tests.hostile.judge import KEY, judge
from tests.hostile.server import listening
from tests.hostile.wire import TALKS, fault_of, most_entries, nested

ABREAST = 16
"""Deliveries at the same time."""

TIME_OUT = 1.0
"""Seconds that the web process gives heads and bodies."""

GROWTH = 64
"""MiB by which a process may grow after its first fifth: what it keeps must not depend on how much it was sent."""


@dataclass
class Report:
    """What came of one way to try the bodies. `faults` is empty if all was as it must be."""

    way: str
    bodies: int = 0
    seconds: float = 0.0
    memory: list[int] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def weigh(self) -> None:
        """Fails for a process that grew."""
        early, last = self.memory[len(self.memory) // 5], self.memory[-1]
        if last - early > GROWTH:
            self.faults.append(f"it grew from {early} MiB to {last} MiB")


def memory() -> int:
    """What this process has of the memory, in MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) // 256


class Source:
    """The bodies of a run, each from its own number, so that one is repeated alone."""

    def __init__(self, seed: int, first: int, count: int, report: Report) -> None:
        self._seed = seed
        self._numbers = iter(range(first, first + count))
        self._every = max(count // 50, 1)
        self._report = report

    def __call__(self) -> tuple[int, Made, Random] | None:
        """The next body with its number and what is left of its chance; None at the end."""
        number = next(self._numbers, None)
        if number is None:
            return None
        if self._report.bodies % self._every == 0:
            self._report.memory.append(memory())
            print(f"{self._report.way}: {self._report.bodies:,}", file=sys.stderr, flush=True)
        self._report.bodies += 1
        chance = Random(f"{self._seed} {number}")
        made = make(chance)
        self._report.kinds[made.kind] += 1
        return number, made, chance


def read_all(source: Source, report: Report) -> None:
    """The bodies through the parser alone."""
    while (following := source()) is not None:
        number, made, _ = following
        try:
            report.outcomes[judge(made)] += 1
        except Exception as error:  # noqa: BLE001 (whatever it is, it is what was looked for)
            report.faults.append(f"body {number}: {type(error).__name__}: {str(error)[:200]}")


async def deliver_all(source: Source, report: Report, url: str) -> None:
    """The bodies through the whole application, some at the same time; then what the database has made of them."""
    await migrations.upgrade(url)
    namespace = Namespace(
        name="default", api_key=(KEY,), env="s", secret_key=Secret("x"), base_url="http://127.0.0.1:9"
    )
    async with opened(Settings(database_url=url, namespaces=(namespace,))) as door:

        async def go_on() -> None:
            while (following := source()) is not None:
                number, made, chance = following
                try:
                    await door.deliver(made, chance)
                except Exception as error:  # noqa: BLE001 (see above)
                    report.faults.append(f"body {number}: {type(error).__name__}: {str(error)[:200]}")

        await asyncio.gather(*(go_on() for _ in range(ABREAST)))
        report.faults += await door.settled()
        report.outcomes = door.answers


async def talk_all(report: Report, url: str) -> None:
    """Everything that no client would send, to a real web process; and the most entries that it takes."""
    await migrations.upgrade(url)
    most = {"the most entries that are taken": most_entries()}
    async with listening(url, TIME_OUT) as server:
        report.memory.append(server.memory)
        for name, talk in {**TALKS, **nested(10), **most}.items():
            begun = time.monotonic()
            fault = await fault_of(server.port, talk, TIME_OUT)
            seconds = time.monotonic() - begun
            report.bodies += 1
            report.outcomes["as it must be" if fault is None else "otherwise"] += 1
            report.faults += [] if fault is None else [f"{name}: {fault}"]
            report.memory.append(server.memory)
            print(f"{report.way}: {name}: {seconds:.1f} s, {server.most_memory} MiB at most", file=sys.stderr)
        report.memory.append(server.most_memory)


def table_of(reports: list[Report], seed: int) -> Table:
    """The report as people read it."""
    table = Table("way", "bodies", "seconds", "MiB early, most, last", "came of it", "properties", title=f"seed {seed}")
    for one in reports:
        came = ", ".join(f"{count:,} {word}" for word, count in sorted(one.outcomes.items()))
        weight = f"{one.memory[len(one.memory) // 5]}, {max(one.memory)}, {one.memory[-1]}"
        said = "\n".join(one.faults[:20]) or "hold"
        table.add_row(one.way, f"{one.bodies:,}", f"{one.seconds:.0f}", weight, came, said)
    return table


def tried(report: Report, count: int, work: Callable[[Report], None]) -> Report:
    """The report of one way, with its time and its weight."""
    if count:
        begun = time.monotonic()
        work(report)
        report.seconds = time.monotonic() - begun
        report.memory.append(memory())
        report.weigh()
    return report


@contextmanager
def database(count: int) -> Iterator[str]:
    """A PostgreSQL for as long as the block lasts, if there is something for it."""
    if not count:
        yield ""
        return
    with tempfile.TemporaryDirectory(prefix="ks-hostile-") as folder:
        Path(folder).chmod(0o755)
        with embedded.server(Path(folder)) as url:
            yield url


@click.command()
@click.option("--seed", default=1, show_default=True, help="Where all chance comes from.")
@click.option("--bodies", default=1_000_000, show_default=True, help="How many in all.")
@click.option("--delivered", default=100_000, show_default=True, help="How many of them go through the webhooks.")
@click.option("--talks/--no-talks", default=True, show_default=True, help="Also what only a connection can say.")
@click.option("--first", default=0, show_default=True, help="Number of the first body, to repeat some of a run.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False), help="Where the report is written as JSON.")
def main(seed: int, bodies: int, delivered: int, talks: bool, first: int, json_file: str | None) -> None:
    """Try hostile bodies on the parser, on the webhooks and over connections. Exits with 1 if a property does not
    hold."""
    set_up_logging("critical", "console")
    console = Console(width=150)
    at_once = bodies - delivered
    reports = [tried(Report("parser"), at_once, lambda report: read_all(Source(seed, first, at_once, report), report))]
    with database(delivered) as url:
        reports.append(
            tried(
                Report("webhooks, PostgreSQL"),
                delivered,
                lambda report: asyncio.run(deliver_all(Source(seed, first + at_once, delivered, report), report, url)),
            )
        )
    if talks:
        with database(1) as url:
            report = Report("connections, a web process")
            begun = time.monotonic()
            asyncio.run(talk_all(report, url))
            report.seconds = time.monotonic() - begun
            reports.append(report)
    reports = [report for report in reports if report.bodies]
    console.print()
    console.print(table_of(reports, seed))
    if json_file:
        Path(json_file).write_text(json.dumps([vars(one) for one in reports], indent=2), encoding="utf-8")
    sys.exit(any(one.faults for one in reports))


if __name__ == "__main__":
    main()
