"""What several processes count adds up, also after one of them was killed; the processes are real elsewhere."""

import mmap
import os
import struct
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from service.boards import SIZE, Board, Level, Tally, Timings, shared


@pytest.fixture
def memory() -> Iterator[list[int]]:
    """Two boards of memory."""
    descriptors = [shared(), shared()]
    yield descriptors
    for one in descriptors:
        os.close(one)


def shown(registry: CollectorRegistry) -> list[str]:
    """What is shown of the figures, without their meaning."""
    return [line for line in generate_latest(registry).decode().splitlines() if not line.startswith("#")]


def test_what_siblings_count_is_added_whoever_is_asked(memory: list[int]) -> None:
    registries = []
    for place in range(2):
        registry, board = CollectorRegistry(), Board(memory, place)
        tally = Tally(registry, "things", "Some", "channel", board=board)
        tally.add("email", count=place + 1)
        sizes = Timings(registry, "sizes", "Some", board=board, bounds=(1, 2))
        sizes.add(2 + place)
        Level(registry, "used", "Some", "state", board=board).set(5, "busy")
        if place:
            tally.add("sms", count=0)
        registries.append(registry)
    assert shown(registries[0]) == shown(registries[1])
    assert shown(registries[0]) == [
        'things_total{channel="email"} 3.0',
        'things_total{channel="sms"} 0.0',
        'sizes_bucket{le="1.0"} 0.0',
        'sizes_bucket{le="2.0"} 1.0',
        'sizes_bucket{le="+Inf"} 2.0',
        "sizes_count 2.0",
        "sizes_sum 5.0",
        'used{state="busy"} 10.0',
    ]


def test_who_comes_after_goes_on_with_what_was_counted_but_not_with_what_there_was(memory: list[int]) -> None:
    for lives in range(1, 4):
        registry, board = CollectorRegistry(), Board(memory, 1)
        tally, level = Tally(registry, "things", "Some", board=board), Level(registry, "used", "Some", board=board)
        assert shown(registry) == ([] if lives == 1 else [f"things_total {lives - 1}.0", "used 0.0"])
        tally.add()
        level.set(7)
    beside = CollectorRegistry()
    Tally(beside, "things", "Some", board=Board(memory, 0))
    assert shown(beside) == ["things_total 3.0"]


def test_what_finds_no_room_spoils_nothing(memory: list[int]) -> None:
    registry, board = CollectorRegistry(), Board(memory, 0)
    first, last = (
        Tally(registry, "things", "Some", "which", board=board),
        Timings(registry, "sizes", "Some", board=board),
    )
    first.add("first")
    for number in range(SIZE // 64):
        first.add(f"{number:030d}")
    last.add(1.0)
    assert 'things_total{which="first"} 1.0' in shown(registry)
    assert len(shown(registry)) > SIZE // 200
    assert not any(line.startswith("sizes") for line in shown(registry))


def test_what_one_began_that_was_killed_is_not_counted(memory: list[int]) -> None:
    """A record whose key was written, and that was not yet said to be there."""
    Tally(CollectorRegistry(), "things", "Some", board=Board(memory, 0)).add()
    with mmap.mmap(memory[0], SIZE) as cells:
        (used,) = struct.unpack_from("Q", cells)
        cells[used : used + 200] = b"k" * 200
    registry = CollectorRegistry()
    tally = Tally(registry, "others", "Some", board=Board(memory, 0))
    tally.add()
    assert shown(registry) == ["others_total 1.0"]
