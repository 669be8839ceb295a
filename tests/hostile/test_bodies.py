"""The short run of what `make fuzz` does at length."""

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.settings import Settings
from tests.hostile.__main__ import Report, Source, deliver_all
from tests.hostile.bodies import make
from tests.hostile.judge import judge


@settings(max_examples=300, deadline=None)
@given(st.randoms(use_true_random=False))
def test_every_body_is_read_as_it_must_be_or_refused(chance: Random) -> None:
    judge(make(chance))


@pytest.mark.parametrize("seed", range(20))
def test_the_long_run_begins_well(seed: int) -> None:
    for number in range(30):
        judge(make(Random(f"{seed} {number}")))


def test_a_body_is_repeated_by_its_number() -> None:
    report = Report("parser")
    [[_, *first], [_, *again]] = [next(iter(Source(7, 123, 1, report), None)) for _ in range(2)]
    assert first[0] == again[0]


async def test_every_delivery_is_answered_as_the_contract_says(settings: Settings) -> None:
    report = Report("webhooks")
    await deliver_all(Source(5, 0, 400, report), report, settings.database_url or "")
    assert report.faults == []
    assert report.bodies == 400
    assert report.outcomes["200"] > 200
    assert len(report.outcomes) > 6
