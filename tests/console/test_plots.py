"""Pictures of figures: what is drawn, what is said, and that any figures can be drawn."""

import re
from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from service.web.console.plots import Series, bar, columns, round_top, short

FIGURES = st.integers(min_value=0, max_value=10**12)


def heights(svg: str, name: str) -> list[float]:
    """How high the columns of a colour are, in percent."""
    return [float(one) for one in re.findall(rf'class="{name}" .*?height="([\d.]+)%"', svg)]


def test_columns_stand_on_each_other_and_tell_their_figures() -> None:
    drawn = columns("calls", "Calls <&>", ["mon", "tue"], [Series("email", [4, 0]), Series("sms", [2, 8])])
    assert drawn.axis == ("8", "4", "0")
    assert (heights(drawn.svg, "s1"), heights(drawn.svg, "s2")) == ([50.0], [25.0, 100.0])
    root = ElementTree.fromstring(drawn.svg)  # noqa: S314 (our own)
    told = [one.text for one in root.iter("title")]
    assert told == ["Calls <&>", "mon: 4 email, 2 sms", "tue: 0 email, 8 sms"]
    assert [one.text for one in root.iter("desc")] == ["In all 4 email, 10 sms; at most 8 at tue."]
    assert root.get("aria-labelledby") == "calls-title calls-desc"


def test_nothing_can_be_drawn_too() -> None:
    assert columns("none", "None", [], []).axis == ("2", "1", "0")
    assert 'class="s1"' not in columns("none", "None", ["a"], [Series("email", [0])]).svg
    assert "rect" not in bar([0, 0], 0)


@given(st.lists(st.tuples(FIGURES, FIGURES), min_size=1, max_size=40))
def test_whatever_is_drawn_stays_within_the_picture_and_needs_no_style(figures: list[tuple[int, int]]) -> None:
    series = [Series("one", [one for one, _ in figures]), Series("two", [two for _, two in figures])]
    drawn = columns("x", "X", [f"{at}" for at in range(len(figures))], series)
    ElementTree.fromstring(drawn.svg)  # noqa: S314 (our own)
    assert "style" not in drawn.svg
    assert max([*heights(drawn.svg, "s1"), *heights(drawn.svg, "s2"), 0.0]) <= 100
    assert all(float(y) >= -0.01 for y in re.findall(r' y="(-?[\d.]+)%"', drawn.svg))


@given(st.integers(min_value=0, max_value=10**15))
def test_the_top_of_an_axis_is_round_and_so_is_its_half(most: int) -> None:
    top = round_top(most)
    assert most <= top <= max(2 * most, 2) * 2
    assert top % 2 == 0
    assert len(str(top).rstrip("0")) == 1


def test_a_bar_has_a_part_for_each_figure_and_shows_the_smallest() -> None:
    assert re.findall(r'class="(s\d)" x="([\d.]+)%" width="([\d.]+)%"', bar([1, 0, 3], 8)) == [
        ("s1", "0.00", "12.50"),
        ("s3", "12.50", "37.50"),
    ]
    assert 'width="0.60%"' in bar([1], 10**6)


def test_numbers_of_an_axis_are_short() -> None:
    assert [short(one) for one in (0.5, 12, 1500, 2_000_000, 3e9)] == ["0.5", "12", "1.5k", "2M", "3G"]
