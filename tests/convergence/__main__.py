"""Plays many histories, some worlds at a time, and prints the report. One that ends wrongly is made small and told in
words. Ends with 1 if there was one."""

import asyncio
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from service import embedded
from service.store import migrations
from service.telemetry import set_up_logging
from tests.conftest import administer, url_of
from tests.convergence.running import TEMPLATE, Report, world_report
from tests.convergence.stage import world_of


@contextmanager
def _server() -> Iterator[str]:
    """A PostgreSQL with a migrated database to be cloned. It need not wait for the disk."""
    with tempfile.TemporaryDirectory(prefix="ks-converge-") as folder:
        Path(folder).chmod(0o755)
        with embedded.server(Path(folder)) as url:
            for setting in ("fsync", "autovacuum"):
                asyncio.run(administer(url, f"alter system set {setting} = off", "select pg_reload_conf()"))
            asyncio.run(administer(url, f"create database {TEMPLATE}"))
            asyncio.run(migrations.upgrade(url_of(url, TEMPLATE)))
            yield url


def _table(report: Report, seed: int, seconds: float) -> Table:
    table = Table("what", "how many", title=f"{report.histories:,} histories, seed {seed}, {seconds:.0f} s")
    for what, count in [*sorted(report.counts.items()), *sorted(report.met.items())]:
        table.add_row(what, f"{count:,}")
    table.add_row("histories that ended wrongly", f"{report.wrong:,}")
    return table


@click.command()
@click.option("--seed", default=1, show_default=True, help="Where all chance comes from.")
@click.option("--histories", default=10_000, show_default=True, help="How many.")
@click.option("--first", default=0, show_default=True, help="Number of the first, to repeat some of a run.")
@click.option("--processes", default=2, show_default=True, help="Worlds that play at the same time.")
@click.option("--seconds", default=0, help="No new world is begun after so many seconds; 0: no limit.")
def main(seed: int, histories: int, first: int, processes: int, seconds: int) -> None:
    """Play random histories until both sides must agree. Exits with 1 if they do not."""
    set_up_logging("critical", "console")
    worlds = [(world, list(some)) for world, some in groupby(range(first, first + histories), world_of)]
    whole, begun = Report(), time.monotonic()
    context = multiprocessing.get_context("spawn")
    with _server() as url, ProcessPoolExecutor(processes, context, max_tasks_per_child=20) as pool:
        for start in range(0, len(worlds), processes):
            if seconds and time.monotonic() - begun > seconds:
                break
            some = [pool.submit(world_report, url, seed, *one) for one in worlds[start : start + processes]]
            for one in some:
                whole.add(one.result())
            print(f"{whole.histories:,} histories, {whole.wrong} wrong", file=sys.stderr, flush=True)
    console = Console(width=150)
    for fault in whole.faults[:20]:
        console.print(fault, markup=False, highlight=False)
    console.print(_table(whole, seed, time.monotonic() - begun))
    sys.exit(whole.wrong > 0)


if __name__ == "__main__":
    main()
