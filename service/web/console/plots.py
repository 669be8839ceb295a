"""Owns how figures become pictures: series in, SVG out. Nothing but text, so it needs no script and prints as it is.

Colours are the style sheet's, by class, so that they follow dark and light. Sizes across are in percent and type is not
stretched, so a picture fits any width. A picture is one image to a screen reader, with a title and a description; the
page that shows it gives the same figures as a table.
"""

from collections.abc import Sequence
from html import escape
from typing import Final, NamedTuple

HEIGHT: Final = 132
"""Pixels of the columns."""

FOOT: Final = 20
"""Pixels below them, for the labels."""

LABELS: Final = 5
"""Labels below the columns at most."""

_GAP: Final = 0.22
"""Share of a step that stays empty between two columns."""


class Series(NamedTuple):
    """What is drawn in one colour: its name, and its value at each step."""

    name: str
    values: Sequence[int]


class Columns(NamedTuple):
    """A picture, and what to write at its axis from the top down."""

    svg: str
    axis: tuple[str, str, str]


def columns(name: str, title: str, labels: Sequence[str], series: Sequence[Series]) -> Columns:
    """Columns over time, the series on top of each other. `name` is an identifier that no other picture of the page
    has; each column tells its figures when it is pointed at."""
    totals = [sum(values) for values in zip(*(one.values for one in series), strict=True)]
    top = round_top(max(totals, default=0))
    step = 100 / max(len(labels), 1)
    drawn = "".join(_column(at, step, top, label, series) for at, label in enumerate(labels))
    lines = "".join(f'<line x1="0" x2="100%" y1="{share}%" y2="{share}%" class="grid"/>' for share in (0, 50, 100))
    foot = "".join(_foot(at, step, labels[at]) for at in _labelled(len(labels)))
    says = ", ".join(f"{sum(one.values):,} {one.name}" for one in series) or "nothing"
    peak = f"; at most {max(totals):,} at {labels[totals.index(max(totals))]}" if any(totals) else ""
    svg = (
        f'<svg class="plot" role="img" width="100%" height="{HEIGHT + FOOT}"'
        f' aria-labelledby="{name}-title {name}-desc">'
        f'<title id="{name}-title">{escape(title)}</title>'
        f'<desc id="{name}-desc">{escape(f"In all {says}{peak}.")}</desc>'
        f'<svg width="100%" height="{HEIGHT}" class="area">{lines}{drawn}</svg>{foot}</svg>'
    )
    return Columns(svg, (short(top), short(top / 2), "0"))


def bar(parts: Sequence[int], most: int) -> str:
    """One bar, of parts side by side: its length is their share of `most`. For the cell of a table that tells the
    number beside it, so a screen reader passes it by."""
    drawn, left = [], 0.0
    for at, part in enumerate(parts):
        width = 100 * part / most if most else 0.0
        if width:
            # However small its share is, there is something to see.
            drawn.append(f'<rect class="s{at + 1}" x="{left:.2f}%" width="{max(width, 0.6):.2f}%" height="100%"/>')
        left += width
    return f'<svg class="bar" width="100%" height="12" aria-hidden="true">{"".join(drawn)}</svg>'


def round_top(most: int) -> int:
    """The least round number that is not below, and whose half is a whole number."""
    size = 2
    while size < most:
        for factor in (2, 3, 4, 5):
            if size * factor // 2 * 2 >= most and (size * factor) % 2 == 0:
                return size * factor
        size *= 10
    return size


def short(number: float) -> str:
    """A number for an axis: 1.5k is 1,500."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"


def _column(at: int, step: float, top: int, label: str, series: Sequence[Series]) -> str:
    told = ", ".join(f"{one.values[at]:,} {one.name}" for one in series)
    left, width = (at + _GAP / 2) * step, step * (1 - _GAP)
    drawn, below = [], 0.0
    for number, one in enumerate(series, 1):
        height = 100 * one.values[at] / top
        below += height
        if height:
            place = f'x="{left:.2f}%" y="{100 - below:.2f}%" width="{width:.2f}%" height="{height:.2f}%"'
            drawn.append(f'<rect class="s{number}" {place}/>')
    reach = f'<rect class="reach" x="{at * step:.2f}%" y="0" width="{step:.2f}%" height="100%"/>'
    return f"<g><title>{escape(f'{label}: {told}')}</title>{reach}{''.join(drawn)}</g>"


def _labelled(count: int) -> list[int]:
    """Which columns have their label below, the same distance apart."""
    every = -(-count // LABELS) or 1
    return list(range(every // 2, count, every))


def _foot(at: int, step: float, label: str) -> str:
    place = f'x="{(at + 0.5) * step:.2f}%" y="{HEIGHT + FOOT - 5}" text-anchor="middle"'
    return f'<text {place} aria-hidden="true">{escape(label)}</text>'
