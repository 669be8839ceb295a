"""Which requests are recorded, and where in a trace they stand."""

import pytest

from service.spans import MOST_LINKS, TRACE, Place, Span, Tracer, places_of, read, trace_id_of

TRACE_ID, SPAN_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED = f"00-{TRACE_ID}-{SPAN_ID}-01"


@pytest.mark.parametrize(
    ("text", "recorded"),
    [
        (SAMPLED, True),
        (f"00-{TRACE_ID}-{SPAN_ID}-00", False),
        (f"00-{TRACE_ID}-{SPAN_ID}-03", True),
        # A version to come may say more.
        (f"cc-{TRACE_ID}-{SPAN_ID}-01-what-the-future-holds", True),
    ],
)
def test_a_traceparent_is_read(text: str, *, recorded: bool) -> None:
    assert read(text) == (Place(int(TRACE_ID, 16), int(SPAN_ID, 16)), recorded)
    assert trace_id_of(text) == TRACE_ID
    assert [place.traceparent for place in places_of([text, None, text])] == ([SAMPLED] if recorded else [])


@pytest.mark.parametrize(
    "text",
    [
        "",
        None,
        SAMPLED.upper(),
        f"{SAMPLED}-more",
        f"ff-{TRACE_ID}-{SPAN_ID}-01",
        f"00-{'0' * 32}-{SPAN_ID}-01",
        f"00-{TRACE_ID}-{'0' * 16}-01",
        f"00-{TRACE_ID}-{SPAN_ID}",
        f" {SAMPLED}\n",
        "ann@example.com",
    ],
)
def test_what_is_no_traceparent_is_none(text: str | None) -> None:
    assert read(text) is None
    assert trace_id_of(text) is None


def test_the_ratio_decides_on_what_begins_here_and_the_sender_on_the_rest() -> None:
    draws = iter([0.0, 0.24, 0.25, 0.9])
    tracer = Tracer(lambda _: None, 0.25, draw=lambda: next(draws))
    begun = [tracer.enter("") for _ in range(4)]
    assert [span is not None for span in begun] == [True, True, False, False]
    # Nothing is drawn for these.
    going_on = tracer.enter(SAMPLED)
    assert going_on is not None
    assert going_on.place.trace_id == int(TRACE_ID, 16)
    assert going_on.parent == int(SPAN_ID, 16)
    assert tracer.enter(SAMPLED[:-1] + "0") is None
    assert tracer.root("push", sure=True) is not None


def test_without_a_taker_nothing_is_recorded_whoever_asks_for_it() -> None:
    tracer = Tracer(ratio=1.0)
    assert not tracer.on
    assert tracer.enter(SAMPLED) is tracer.root("push", sure=True) is tracer.child("apply", SAMPLED) is None


def test_a_block_is_a_part_of_its_span_and_ends_it_whatever_happens() -> None:
    taken: list[Span] = []
    tracer = Tracer(taken.append, 1.0, clock=iter(range(100)).__next__)

    def fail() -> None:
        with tracer.within(tracer.root("outer")) as outer:
            assert outer is not None
            assert TRACE.get() == outer.place.traceparent
            with tracer.within(tracer.child("inner", TRACE.get())):
                pass
            tracer.note("before", TRACE.get(), 7, {"entries": 1})
            raise ValueError("ours")

    with pytest.raises(ValueError, match="ours"):
        fail()
    assert TRACE.get() is None
    inner, before, last = taken
    assert [span.name for span in taken] == ["inner", "before", "outer"]
    assert (last.failed, inner.failed) == (True, False)
    assert inner.parent == before.parent == last.place.span_id
    assert (before.began, before.told) == (7, {"entries": 1})
    with tracer.within(None) as nothing:
        assert nothing is None
        assert TRACE.get() is None


def test_only_so_many_are_linked() -> None:
    several = [Place(1, number).traceparent for number in range(1, 1000)]
    assert len(places_of(several)) == MOST_LINKS
