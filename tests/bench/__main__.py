"""Starts what is measured and what it is measured beside, runs the rounds, prints the table, writes the JSON."""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import click
from rich.console import Console
from rich.table import Table

from service import embedded
from service.store import migrations
from service.store.database import driver_of, single_connection
from tests.bench import bare, drift, whole
from tests.bench.load import CONNECTIONS, KEY
from tests.bench.works import ASKED_LIST, LARGE_LIST, LINES, Bench, Rows, Server

PORT, BARE_PORT = 8740, 8741
LOG_FILES = 60
WORKS = ("callbacks", "questions", "import", "export", "reconcile", "growth")

COLUMNS = {
    "per_second": ("per second", "{:,.0f}"),
    "p50_ms": ("p50 ms", "{:.1f}"),
    "p99_ms": ("p99 ms", "{:.1f}"),
    "cpu_us_per_fact": ("CPU µs a fact", "{:.0f}"),
    "idle_mb": ("idle MB", "{:.0f}"),
    "peak_over_idle_mb": ("peak over idle MB", "{:.0f}"),
    "ratio": ("ratio", "{:.2f}"),
}


@contextmanager
def started(command: list[str], environ: dict[str, str], port: int) -> Iterator[Server]:
    """A process that listens, ended at the end."""
    running = subprocess.Popen([sys.executable, *command], env=environ)
    try:
        yield Server(port, running.pid)
    finally:
        running.terminate()
        running.wait(30)


async def listens(server: Server) -> None:
    """Waits until somebody answers."""
    for _ in range(200):
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        except OSError:
            await asyncio.sleep(0.1)
            continue
        writer.close()
        return
    raise SystemExit(f"nobody listens on port {server.port}")


async def token_of(environ: dict[str, str]) -> str:
    """A token that may read and import."""
    command = [sys.executable, "-m", "service", "token", "create", "--name", "bench", "--scopes", "read,write"]
    made = await asyncio.create_subprocess_exec(*command, env=environ, stdout=subprocess.PIPE)
    return (await made.communicate())[0].decode().strip()


def memory(groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes of the machine's memory, or of the container's, if that may have less."""
    allowed = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):  # there is none, or it is no number
            allowed.append(int((groups / name).read_text()))
    return min(allowed)


async def give_room(url: str) -> None:
    """Gives the server what anybody's has: a quarter of the memory, from its next start on, and files of its log at
    hand. To make a new one of 16 MB holds every commit up, and a server that has run for a day makes none."""
    megabytes = memory() // 4 // 2**20
    async with single_connection(url) as connection:
        driver = await driver_of(connection)
        await driver.execute(f"alter system set shared_buffers = '{megabytes}MB'")
        await driver.execute("alter system set min_wal_size = '1GB'")
        await driver.execute("select pg_reload_conf()")
        for _ in range(LOG_FILES):
            await driver.execute("select pg_logical_emit_message(false, 'bench', 'x'), pg_switch_wal()")
        await driver.execute("checkpoint")  # those that were filled are kept, to be filled again


class Course(NamedTuple):
    """What is measured: which works, how often, on lists of how many addresses, with how many lines, and the export and
    import of how many."""

    works: tuple[str, ...]
    rounds: int
    grow_to: int
    listed: int
    lines: int
    export: int
    import_lines: int
    reconcile: int


async def measure(url: str, environ: dict[str, str], course: Course) -> Rows:
    """The rounds, the export, then the growth of the list."""
    await migrations.upgrade(url)
    token = await token_of(environ)
    with (
        started(["-m", "service", "web"], environ, PORT) as service,
        started(["-m", "tests.bench", "--bare"], environ, BARE_PORT) as beside,
    ):
        await listens(service)
        await listens(beside)
        async with single_connection(url) as connection:
            await bare.make_tables(connection)
            bench = Bench(service, beside, connection, token)
            for _ in range(course.rounds):
                if "callbacks" in course.works:
                    await bench.round()
                if "questions" in course.works:
                    await bench.questions(course.listed, course.lines)
                if course.import_lines and "import" in course.works:
                    await bench.import_of(course.import_lines)
            exported: Rows = {}
            if course.export and "export" in course.works:
                exported = await whole.measured(service, connection, token, course.export, max(course.rounds, 3))
            if course.reconcile and "reconcile" in course.works:
                exported |= await drift.measured(connection, environ, course.reconcile, max(course.rounds, 3))
            if course.grow_to and "growth" in course.works:
                await bench.growth(course.grow_to)
            return bench.rows | exported


def table_of(rows: Rows, rounds: int) -> Table:
    """The figures as people read them."""
    table = Table("work", title=f"{CONNECTIONS} connections, medians of {rounds} rounds; ratios are of the bare row")
    for title, _ in COLUMNS.values():
        table.add_column(title, justify="right")
    for work, figures in rows.items():
        cells = (form.format(figures[name]) if name in figures else "" for name, (_, form) in COLUMNS.items())
        table.add_row(work, *cells)
    return table


@click.command()
@click.option("--rounds", default=3, show_default=True, help="How often each work is measured.")
@click.option("--export", default=1_000_000, show_default=True, help="Rows of the list to export; 0 leaves it out.")
@click.option("--grow-to", default=LARGE_LIST, show_default=True, help="Addresses of the large list; 0 leaves it out.")
@click.option("--work", "works", type=click.Choice(WORKS), multiple=True, default=WORKS, help="Only this; repeatable.")
@click.option("--list", "listed", default=ASKED_LIST, show_default=True, help="Addresses in the list that is asked.")
@click.option("--lines", default=LINES, show_default=True, help="Lines of the streamed check.")
@click.option("--import-lines", default=50_000, show_default=True, help="Lines of the imported list; 0 leaves it out.")
@click.option("--reconcile", default=1_000_000, show_default=True, help="Rows to reconcile; 0 leaves it out.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False), help="Where the figures are written as JSON.")
@click.option("--bare", "only_bare", is_flag=True, hidden=True)
def main(json_file: str | None, only_bare: bool, **course: Any) -> None:
    """Measure the service beside bare Starlette and bare SQL, as ratios within this run."""
    if only_bare:
        bare.serve(BARE_PORT)
        return
    with tempfile.TemporaryDirectory(prefix="ks-bench-") as folder:
        Path(folder).chmod(0o755)
        with embedded.server(Path(folder)) as url:
            asyncio.run(give_room(url))
        with embedded.server(Path(folder)) as url:
            environ = dict(os.environ) | {
                "DATABASE_URL": url,
                "PORT": str(PORT),
                "LOG_LEVEL": "warning",
                "KAHUNA_API_KEY": KEY.reveal(),
                "KAHUNA_SECRET_KEY": "bench-secret-key",
                "KAHUNA_BASE_URL": "http://127.0.0.1:9",
            }
            rows = asyncio.run(measure(url, environ, Course(**course)))
    Console(width=120).print(table_of(rows, course["rounds"]))
    if json_file:
        Path(json_file).write_text(json.dumps(rows, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
