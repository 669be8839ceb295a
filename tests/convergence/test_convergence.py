"""The short run of what `make converge` does at length: both sides come to agree, whatever happened before."""

from collections import Counter

import pytest

from service.settings import Settings
from service.store.database import Database
from tests.convergence.history import ABREAST, history, in_words, weather
from tests.convergence.judge import judge
from tests.convergence.oracle import DAY, Word, agreed
from tests.convergence.stage import play

SEED = 1
HISTORIES = 500


@pytest.mark.parametrize("world", range(HISTORIES // ABREAST))
async def test_both_sides_agree_in_the_end(database: Database, settings: Settings, world: int) -> None:
    histories = [history(SEED, world * ABREAST + number) for number in range(ABREAST)]
    found = await play(database, settings, SEED, world, histories)
    for one in histories:
        again = f'make converge ARGS="--seed {SEED} --first {one.number} --histories 1" makes it small'
        faults = judge(one, found, Counter())
        assert not faults, "\n".join([*faults, again, in_words(one, weather(SEED, world))])


def test_a_history_is_repeated_by_its_number() -> None:
    assert history(7, 123) == history(7, 123)
    assert history(7, 123).said != history(8, 123).said
    assert weather(7, 2) == weather(7, 2)


def test_every_kind_of_thing_happens_in_the_short_run() -> None:
    said = [one for number in range(HISTORIES) for one in history(SEED, number).said]
    assert {one.kind for one in said} == {"act", "stop", "consent", "import"}
    told = {len(one.arrives) for one in said if one.kind == "act"}
    assert told == {0, 1, 2, 3}
    steps = [step for world in range(HISTORIES // ABREAST) for step in weather(SEED, world)]
    assert {step.pulls for step in steps} == {"no", "yes", "fails", "dies"}
    assert {step.stalled for step in steps} == {None, "email", "sms"}
    assert {step.run_dies for step in steps} == {True, False}
    ways = {name for step in steps for fault in step.faults.values() for name in fault or {}}
    assert ways >= {"status", "retry_after", "drop_request", "drop_answer", "body", "reject_count"}


NOW = 100 * DAY


def stop(at: int, reason: str = "unsubscribe") -> Word:
    return Word(reason, True, at)


def clear(at: int, reason: str = "unsubscribe") -> Word:
    return Word(reason, False, at)


@pytest.mark.parametrize(
    ("words", "suppressed"),
    [
        ([], False),
        ([stop(5)], True),
        ([stop(5), clear(6)], False),
        ([stop(5), clear(5)], True),
        ([clear(6), stop(5), stop(7)], True),
        ([stop(5), clear(6), stop(5, "complaint")], True),
        ([stop(NOW - day * DAY, "soft_bounce") for day in (1, 2)], False),
        ([stop(NOW - day * DAY, "soft_bounce") for day in (1, 2, 15)], True),
        ([stop(NOW - day * DAY, "soft_bounce") for day in (1, 2, 16)], False),
        ([stop(NOW - day * DAY, "soft_bounce") for day in (30, 31, 32)], False),
        ([*(stop(NOW - day * DAY, "soft_bounce") for day in (1, 2, 3)), clear(NOW - 2 * DAY, "soft_bounce")], False),
    ],
)
def test_the_judge_knows_the_rules(words: list[Word], suppressed: bool) -> None:
    assert agreed("email", words, {}, NOW).suppressed is suppressed
