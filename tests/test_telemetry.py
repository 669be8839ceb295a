"""The plain counters say what the library's own would."""

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from service.boards import Tally, Timings

LABELS = st.tuples(st.sampled_from(["email", "sms"]), st.sampled_from(["200", "401", 'a"b\\c']))


def lines(registry: CollectorRegistry) -> list[str]:
    """What is shown, but for when each was first seen."""
    return sorted(line for line in generate_latest(registry).decode().splitlines() if "_created" not in line)


@given(st.lists(st.tuples(LABELS, st.integers(1, 9))))
def test_a_tally_is_a_counter(counted: list[tuple[tuple[str, str], int]]) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    tally = Tally(ours, "things", "Some things", "channel", "answer")
    counter = Counter("things", "Some things", ["channel", "answer"], registry=theirs)
    for labels, count in counted:
        tally.add(*labels, count=count)
        counter.labels(*labels).inc(count)
    assert lines(ours) == lines(theirs)


@given(st.lists(st.tuples(LABELS, st.floats(0, 20) | st.sampled_from([0.005, 0.5, 10.0]))))
def test_timings_are_a_histogram(taken: list[tuple[tuple[str, str], float]]) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    timings = Timings(ours, "seconds", "Some seconds", "route", "status")
    histogram = Histogram("seconds", "Some seconds", ["route", "status"], registry=theirs)
    for labels, seconds in taken:
        timings.add(seconds, *labels)
        histogram.labels(*labels).observe(seconds)
    assert lines(ours) == lines(theirs)
