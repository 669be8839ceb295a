"""Owns the numbers that a process counts, in memory that its siblings may read: what is counted outlives the process.

A board is a piece of memory: records of a name with labels, and their numbers. Several web processes of one host have
one each, and whichever is asked for figures adds all of them up; a process that is started in the place of one that
died goes on with its board, so that no sum ever falls. One process writes a board, any number read it. Refuses to know
what is counted.
"""

import mmap
import os
import struct
import sys
import tempfile
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import accumulate
from typing import Final

import msgspec
from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

SIZE: Final = 4 * 1024 * 1024
"""Bytes of a board; what is not written to takes no memory. Room for ten thousand histograms."""

_WIDTH: Final = 8
_SPARE: Final = 64
"""Numbers at the end that are shown nowhere: what finds no room counts there."""

_HEAD: Final = struct.Struct("=II")

BUCKETS: Final = Histogram.DEFAULT_BUCKETS[:-1]
"""Seconds up to which requests are counted together; the last of the library's is without end."""


def shared() -> int:
    """Memory for one board, as a descriptor that children may inherit; it is gone with the last of them."""
    if sys.platform == "linux":
        descriptor = os.memfd_create("kahuna-sync")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.truncate(descriptor, SIZE)
    return descriptor


class _Sheet:
    """One board. `used` bytes of it are records: the length of a key and how many numbers follow it, the key, padded,
    and the numbers. A record counts once `used` says so, so that none is ever seen half written."""

    def __init__(self, memory: mmap.mmap) -> None:
        self.cells = memoryview(memory).cast("d")
        self._memory = memory
        self._used = memoryview(memory).cast("Q")
        self._read = _WIDTH
        self._places: dict[str, dict[tuple[str, ...], tuple[int, int]]] = {}

    def places(self, name: str) -> dict[tuple[str, ...], tuple[int, int]]:
        """Where the numbers of a name begin and how many they are, by labels."""
        used = self._used[0] or _WIDTH
        while self._read < used:
            length, count = _HEAD.unpack_from(self._memory, self._read)
            begin = self._read + _HEAD.size
            key = msgspec.json.decode(self._memory[begin : begin + length], type=list[str])
            first = begin + _padded(length)
            self._places.setdefault(key[0], {})[tuple(key[1:])] = first // _WIDTH, count
            self._read = first + count * _WIDTH
        return self._places.setdefault(name, {})

    def begin(self, name: str, labels: tuple[str, ...], count: int) -> int:
        """Makes a record whose numbers are 0; returns where they begin."""
        key = msgspec.json.encode([name, *labels])
        used = self._used[0] or _WIDTH
        first = used + _HEAD.size + _padded(len(key))
        end = first + count * _WIDTH
        if end > SIZE - _SPARE * _WIDTH:
            return SIZE // _WIDTH - _SPARE
        # One that was killed in the midst of this has left what it had written of its own.
        self._memory[first:end] = bytes(end - first)
        _HEAD.pack_into(self._memory, used, len(key), count)
        self._memory[used + _HEAD.size : used + _HEAD.size + len(key)] = key
        self._used[0] = end
        return first // _WIDTH


class Board:
    """The numbers of this process, and those of its siblings. With no descriptors, it has memory of its own and no
    siblings. OSError if a descriptor is none of `shared`."""

    def __init__(self, descriptors: Sequence[int] = (), place: int = 0) -> None:
        sheets = [_Sheet(mmap.mmap(one, SIZE)) for one in descriptors] or [_Sheet(mmap.mmap(-1, SIZE))]
        self._own = sheets[place]
        self._sheets = sheets
        self.cells = self._own.cells

    def find(self, name: str, labels: tuple[str, ...], count: int) -> int:
        """Where so many numbers of this name and these labels begin among the cells; they are made if need be."""
        known = self._own.places(name).get(labels)
        return self._own.begin(name, labels, count) if known is None else known[0]

    def clear(self, name: str) -> None:
        """Sets the numbers of this process under a name to 0."""
        for first, count in self._own.places(name).values():
            for place in range(first, first + count):
                self.cells[place] = 0.0

    def sums(self, name: str) -> dict[tuple[str, ...], list[float]]:
        """The numbers of a name by labels, those of all siblings added up."""
        sums: dict[tuple[str, ...], list[float]] = {}
        for sheet in self._sheets:
            for labels, (first, count) in sheet.places(name).items():
                numbers: list[float] = list(sheet.cells[first : first + count])
                known = sums.get(labels)
                sums[labels] = numbers if known is None else [a + b for a, b in zip(known, numbers, strict=True)]
        return sums


class Tally(Collector):
    """A counter by labels from closed lists, never an address. It is part of every callback, on one event loop: a plain
    number is a fifth of the price of the library's own, which is there for threads, too."""

    def __init__(
        self, registry: CollectorRegistry, name: str, meaning: str, *labels: str, board: Board | None = None
    ) -> None:
        self._name = name
        self._board = Board() if board is None else board
        self._family = partial(CounterMetricFamily, name, meaning, labels=labels)
        self._cells, self._places = self._board.cells, dict[tuple[str, ...], int]()
        registry.register(self)

    def add(self, *labels: str, count: float = 1) -> None:
        """Counts so many more; 0 has it shown before there is anything: what appears as 1 is no rise to Prometheus."""
        place = self._places.get(labels)
        if place is None:
            place = self._places[labels] = self._board.find(self._name, labels, 1)
        self._cells[place] += count

    def collect(self) -> Iterator[Metric]:
        """What the library shows."""
        family = self._family()
        for labels, (count,) in self._board.sums(self._name).items():
            family.add_metric(labels, count)
        yield family


class Level(Collector):
    """How much there is of something now in this process; that of several processes is their sum."""

    def __init__(self, registry: CollectorRegistry, name: str, meaning: str, *labels: str, board: Board) -> None:
        self._name = name
        self._board = board
        self._family = partial(GaugeMetricFamily, name, meaning, labels=labels)
        # Of one that died here, nothing is left.
        board.clear(name)
        registry.register(self)

    def set(self, value: float, *labels: str) -> None:
        """It is so much now."""
        self._board.cells[self._board.find(self._name, labels, 1)] = value

    def collect(self) -> Iterator[Metric]:
        """What the library shows."""
        family = self._family()
        for labels, (value,) in self._board.sums(self._name).items():
            family.add_metric(labels, value)
        yield family


class Timings(Collector):
    """A histogram by labels from closed lists, of seconds unless the bounds are others'; plain for the same reason."""

    def __init__(
        self,
        registry: CollectorRegistry,
        name: str,
        meaning: str,
        *labels: str,
        board: Board | None = None,
        bounds: Sequence[float] = BUCKETS,
    ) -> None:
        self._name = name
        self._board = Board() if board is None else board
        self._bounds = bounds
        self._sum = len(bounds) + 1
        self._family = partial(HistogramMetricFamily, name, meaning, labels=labels)
        self._cells, self._places = self._board.cells, dict[tuple[str, ...], int]()
        registry.register(self)

    def add(self, value: float, *labels: str) -> None:
        """Something took so long, or was so large."""
        place = self._places.get(labels)
        if place is None:
            place = self._places[labels] = self._board.find(self._name, labels, self._sum + 1)
        self._cells[place + bisect_left(self._bounds, value)] += 1
        self._cells[place + self._sum] += value

    def collect(self) -> Iterator[Metric]:
        """What the library shows: for each bound how many took no longer."""
        family = self._family()
        bounds = [*(str(float(bound)) for bound in self._bounds), "+Inf"]
        for labels, (*counts, total) in self._board.sums(self._name).items():
            family.add_metric(labels, list(zip(bounds, accumulate(counts), strict=True)), total)
        yield family


def _padded(length: int) -> int:
    return -(-length // _WIDTH) * _WIDTH
