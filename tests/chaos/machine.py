"""Owns how much of the machine was left to what is tested: what other programs take of its processors is no fault of
the service, and would be taken for one where two speeds are compared."""

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

TICKS: Final = os.sysconf("SC_CLK_TCK")
PROC: Final = Path("/proc")


class Reading(NamedTuple):
    """Seconds of processor that were taken until a moment: by everybody on the machine, and by us."""

    at: float
    everybody: float
    us: float


def read(roots: Iterable[int]) -> Reading:
    """How things stand. We are these processes, all that they have begun, and what ended under them."""
    # user nice system idle iowait irq softirq steal
    taken = [int(word) for word in (PROC / "stat").read_text().split("\n", 1)[0].split()[1:9]]
    us = sum(_ticks(pid) for root in roots for pid in _tree(root))
    return Reading(time.monotonic(), (sum(taken) - taken[3] - taken[4]) / TICKS, us / TICKS)


def left(since: Reading, until: Reading, processors: int) -> float:
    """The share of the machine that others left to us between two readings, above 0."""
    others = (until.everybody - since.everybody) - (until.us - since.us)
    return min(max(1 - others / (processors * (until.at - since.at)), 0.05), 1.0)


def _tree(pid: int) -> Iterator[int]:
    yield pid
    for tasks in (PROC / str(pid) / "task").glob("*/children"):
        with suppress(OSError):  # it has just ended
            for child in tasks.read_text().split():
                yield from _tree(int(child))


def _ticks(pid: int) -> int:
    with suppress(OSError):
        # Behind the name, which may hold anything: utime, stime, and those of children that ended.
        return sum(int(word) for word in (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[11:15])
    return 0
