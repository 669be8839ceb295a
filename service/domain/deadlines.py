"""Owns by when a stop must be honoured everywhere: so many business days after it occurred.

The day of the stop does not count, and the time of the day does: a stop of Monday at 15:00 is due on a Monday at 15:00.
One of a day that is no business day counts as one of the end of the business day before it. Both are stricter than the
usual reading of the law, by which there is time until the end of the last day. So a later stop is never due earlier,
and "due by now" is the same as "occurred up to some moment", which a database can ask.
"""

import re
from collections.abc import Sequence
from datetime import UTC, date, datetime, time, tzinfo
from typing import Final, Literal, NamedTuple
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

Urgency = Literal["overdue", "due_soon", "on_time"]

URGENCIES: Final[tuple[Urgency, ...]] = ("overdue", "due_soon", "on_time")
"""From the worst to the best."""

WEEKDAYS: Final = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")

MOST_DAYS: Final = 366
"""Business days that a deadline may take."""

_MOST_HOLIDAYS: Final = 10_000
_FIRST_DAY: Final = 2
"""No stop is older than the calendar; the day before it is needed too."""


class ImpossibleCalendar(ValueError):
    """A calendar that cannot be; its text says what is wrong."""


class Calendar(NamedTuple):
    """Which days are business days, where days begin, how many there are until a stop is due (`days`), and how many
    seconds before that it counts as due soon. `weekend` has the numbers of weekdays, Monday being 0, `holidays` the
    ordinals of dates."""

    days: int = 10
    weekend: frozenset[int] = frozenset({5, 6})
    holidays: frozenset[int] = frozenset()
    zone: tzinfo = UTC
    soon: int = 2 * 86_400

    def is_business_day(self, ordinal: int) -> bool:
        """Whether offices are open on the day with this ordinal."""
        return (ordinal - 1) % 7 not in self.weekend and ordinal not in self.holidays


def calendar_from(days: int, weekend: str, holidays: str, zone: str, soon: float) -> Calendar:
    """The calendar that these words describe: names of weekdays (or `none`) and dates, both with commas between them,
    and the name of a time zone. ImpossibleCalendar if they do not."""
    if not 1 <= days <= MOST_DAYS:
        raise ImpossibleCalendar(f"between 1 and {MOST_DAYS} days are possible")
    numbers = _weekend(weekend)
    dates = frozenset(map(_ordinal, _words(holidays)))
    if len(dates) > _MOST_HOLIDAYS:
        raise ImpossibleCalendar(f"more than {_MOST_HOLIDAYS} holidays")
    return Calendar(days, numbers, dates, _zone(zone), int(soon))


def due_at(occurred_at: int, calendar: Calendar) -> int:
    """When a stop must be honoured everywhere; both in Unix seconds. Never falls, as the time of the stop rises."""
    day = max(datetime.fromtimestamp(occurred_at, calendar.zone).toordinal(), _FIRST_DAY)
    elapsed = occurred_at - _beginning(day, calendar)
    if not calendar.is_business_day(day):
        day, elapsed = _business_day_before(day, calendar), _LONGEST
    for _ in range(calendar.days):
        day = _business_day_after(day, calendar)
    # Days differ in length where clocks are changed: none reaches into the next.
    return min(_beginning(day, calendar) + elapsed, _beginning(day + 1, calendar))


def due_by(moment: int, calendar: Calendar) -> int:
    """The latest time of a stop that is due at this moment or before: all that occurred up to then are, no other is."""
    # A stop is due after it occurred, and at the latest as if every business day and every holiday took a week.
    low = moment - 7 * (calendar.days + 2 + len(calendar.holidays)) * _LONGEST
    low, high = max(low, 0) - 1, moment
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if due_at(max(middle, 0), calendar) <= moment else (low, middle)
    return low


def urgency(occurred_at: int, now: int, calendar: Calendar) -> Urgency:
    """How a stop stands that is not honoured everywhere yet."""
    due = due_at(occurred_at, calendar)
    if due <= now:
        return "overdue"
    return "due_soon" if due <= now + calendar.soon else "on_time"


_LONGEST: Final = 86_400 + 3 * 3600
"""Seconds that no day is longer than."""


def _beginning(day: int, calendar: Calendar) -> int:
    """The first second of the day with this ordinal, where the calendar is."""
    return int(datetime.combine(date.fromordinal(day), time(), calendar.zone).timestamp())


def _business_day_after(day: int, calendar: Calendar) -> int:
    day += 1
    while not calendar.is_business_day(day):
        day += 1
    return day


def _business_day_before(day: int, calendar: Calendar) -> int:
    while day > 1 and not calendar.is_business_day(day):
        day -= 1
    return day


def _words(text: str) -> Sequence[str]:
    return [word.strip().lower() for word in text.split(",") if word.strip()]


def _weekend(text: str) -> frozenset[int]:
    words = _words(text)
    strange = [word for word in words if word not in (*WEEKDAYS, "none")]
    if strange or ("none" in words and len(words) > 1):
        raise ImpossibleCalendar(f"a weekend is of {', '.join(WEEKDAYS)}, or none")
    numbers = frozenset(WEEKDAYS.index(word) for word in words if word != "none")
    if len(numbers) == len(WEEKDAYS):
        raise ImpossibleCalendar("no weekday is left for business")
    return numbers


def _ordinal(word: str) -> int:
    try:
        if re.fullmatch(r"\d{4}-\d{2}-\d{2}", word, re.ASCII):
            return date.fromisoformat(word).toordinal()
    except ValueError:
        pass
    raise ImpossibleCalendar("a holiday is a date such as 2026-12-25")


def _zone(name: str) -> tzinfo:
    if name == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ImpossibleCalendar(
            "no such time zone is known here; it is a name such as America/New_York, from the system's tzdata"
        ) from None
