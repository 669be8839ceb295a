"""What other programs take of the machine is told from what we take."""

import os

import pytest

from tests.chaos.machine import Reading, left, read


@pytest.mark.parametrize(
    ("everybody", "us", "share"),
    [(20.0, 20.0, 1.0), (20.0, 10.0, 0.5), (0.0, 0.0, 1.0), (20.0, 0.0, 0.05), (10.0, 10.2, 1.0)],
)
def test_what_others_take_is_not_left_to_us(everybody: float, us: float, share: float) -> None:
    since, until = Reading(100.0, 1000.0, 50.0), Reading(110.0, 1000.0 + everybody, 50.0 + us)
    assert left(since, until, processors=2) == pytest.approx(share)


def test_what_we_take_is_ours_and_everybody_s() -> None:
    begun = read([os.getpid()])
    while read([os.getpid()]).us <= begun.us + 0.05:
        sum(range(1000))
    ended = read([os.getpid()])
    assert ended.everybody > begun.everybody
    assert 0.0 < left(begun, ended, os.cpu_count() or 1) <= 1.0
