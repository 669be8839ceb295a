"""Records page by page: where the next run goes on."""

from pathlib import Path

import httpx
import pytest

from .speaking import SINCE, Shell, lines, walk


@pytest.mark.parametrize("broken", range(1, 11))
def test_after_an_interruption_nothing_is_lost_or_repeated(seeded: Shell, tmp_path: Path, broken: int) -> None:
    since = ["--since", "2017-07-13"]
    everything = seeded.done("logs", "email", *since)
    assert len(everything) == 95
    start = len(seeded.requests)

    def break_one(request: httpx.Request) -> None:
        if len(seeded.requests) == start + broken:
            raise httpx.ReadError("gone", request=request)

    seeded.before = break_one
    code, first = walk(seeded, tmp_path / "position", *since)
    assert (code, len(first) < 95) == (6, True)
    code, second = walk(seeded, tmp_path / "position", *since)
    assert code == 0
    assert first + second == everything
    assert walk(seeded, tmp_path / "position") == (0, [])


def test_later_records_come_with_the_next_run_over_midnight_too(seeded: Shell, tmp_path: Path) -> None:
    file = tmp_path / "position"
    _, printed = walk(seeded, file, "--since", "2017-07-13")
    for _ in range(3):
        seeded.clock.seconds += 40_000
        seeded.control("seed", {"records": 25, "span_seconds": 30_000})
        code, more = walk(seeded, file)
        assert (code, len(more)) == (0, 25)
        printed += more
    assert printed == seeded.done("logs", "email", "--since", "2017-07-13")


@pytest.mark.parametrize("broken", range(2, 9))
def test_an_interrupted_walk_to_a_time_leaves_what_comes_after_it(seeded: Shell, tmp_path: Path, broken: int) -> None:
    file = tmp_path / "position"
    until = ["--until", "2017-07-14T01:00:00Z"]
    start = len(seeded.requests)

    def break_one(request: httpx.Request) -> None:
        if len(seeded.requests) == start + broken:
            raise httpx.ReadError("gone", request=request)

    seeded.before = break_one
    _, first = walk(seeded, file, "--since", "2017-07-13", *until)
    refused = seeded("logs", "email", "--cursor-file", str(file), "--until", "2017-07-14T00:30:00Z")
    assert (refused.exit_code, refused.stdout) == (2, "")
    _, second = walk(seeded, file)
    assert first + second == seeded.done("logs", "email", "--since", "2017-07-13")


def test_a_file_of_something_else_is_left_alone(seeded: Shell, tmp_path: Path) -> None:
    file = tmp_path / "position"
    walk(seeded, file, *SINCE)
    kept = file.read_bytes()
    assert "is of email" in seeded("logs", "push", "--cursor-file", str(file)).stderr
    assert file.read_bytes() == kept
    file.write_text("my diary")
    assert "is not one of this command's" in seeded("logs", "email", "--cursor-file", str(file)).stderr
    assert file.read_text() == "my diary"
    missing = seeded("logs", "email", "--cursor-file", str(tmp_path / "none"))
    assert "--since when it is to begin" in missing.stderr
    both = seeded("logs", "email", "--cursor-file", str(file), "--cursor", "x")
    assert "exclude each other" in both.stderr


def test_without_a_file_the_position_is_told(seeded: Shell) -> None:
    start = len(seeded.requests)

    def second(request: httpx.Request) -> None:
        if len(seeded.requests) == start + 2:
            raise httpx.ReadError("gone", request=request)

    seeded.before = second
    first = seeded("logs", "email", "--since", "2017-07-13", "--page-size", "10")
    words = first.stderr.partition("All before ")[2].partition(" was printed")[0].split()
    assert words[::2] == ["--since", "--cursor"]
    rest = seeded.done("logs", "email", *words)
    assert lines(first) + rest == seeded.done("logs", "email", "--since", "2017-07-13")


def test_a_position_that_cannot_be_kept_ends_the_run(seeded: Shell, tmp_path: Path) -> None:
    code, printed = walk(seeded, tmp_path / "nowhere" / "position", "--since", "2017-07-13")
    assert (code, len(printed)) == (2, 10)
