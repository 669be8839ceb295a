"""Ten business days: the day of the stop does not count, nor do weekends and holidays; a later stop is due later."""

from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.domain.deadlines import Calendar, ImpossibleCalendar, calendar_from, due_at, due_by, urgency

TEN = Calendar()
ZONES = ("UTC", "America/New_York", "Europe/Berlin", "Asia/Tehran", "America/Havana", "Pacific/Apia")
SECONDS = st.integers(0, 2**32)

CALENDARS = st.builds(
    calendar_from,
    days=st.integers(1, 30),
    weekend=st.sampled_from(["saturday,sunday", "friday", "none", "monday,tuesday,wednesday,thursday,friday,saturday"]),
    holidays=st.lists(st.dates(date(1990, 1, 1), date(2060, 1, 1)), max_size=20).map(
        lambda days: ",".join(day.isoformat() for day in days)
    ),
    zone=st.sampled_from(ZONES),
    soon=st.sampled_from([0.0, 3600.0, 200_000.0]),
)


def at(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp())


def day_of(moment: int, calendar: Calendar) -> int:
    return datetime.fromtimestamp(moment, calendar.zone).toordinal()


@pytest.mark.parametrize(
    ("stop", "due"),
    [
        ("2026-03-02T15:00Z", "2026-03-16T15:00Z"),  # Monday to Monday
        ("2026-03-06T23:59Z", "2026-03-20T23:59Z"),  # Friday to Friday
        ("2026-03-07T10:00Z", "2026-03-21T00:00Z"),  # Saturday: as at the end of Friday
        ("2026-03-08T10:00Z", "2026-03-21T00:00Z"),
        ("2026-03-09T00:00Z", "2026-03-23T00:00Z"),
    ],
)
def test_ten_business_days_are_two_weeks(stop: str, due: str) -> None:
    assert due_at(at(stop), TEN) == at(due)


def test_a_holiday_is_no_business_day() -> None:
    holiday = calendar_from(10, "saturday,sunday", "2026-12-25, 2027-01-01", "UTC", 0)
    assert due_at(at("2026-12-18T15:00Z"), holiday) == at("2027-01-05T15:00Z")
    assert due_at(at("2026-12-25T15:00Z"), holiday) == due_at(at("2026-12-24T23:59:59Z"), holiday) + 1


def test_days_begin_where_the_calendar_is() -> None:
    new_york = calendar_from(10, "saturday,sunday", "", "America/New_York", 0)
    # Friday evening there, Saturday already in UTC; clocks are changed in between, and the time of the day stays.
    assert due_at(at("2026-03-06T22:00-05:00"), new_york) == at("2026-03-20T22:00-04:00")


@given(CALENDARS, SECONDS, st.integers(0, 400_000))
def test_a_later_stop_is_never_due_earlier(calendar: Calendar, stop: int, more: int) -> None:
    assert stop < due_at(stop, calendar) <= due_at(stop + more, calendar)


@given(CALENDARS, SECONDS)
def test_exactly_so_many_business_days_lie_between(calendar: Calendar, stop: int) -> None:
    first, due = day_of(stop, calendar), due_at(stop, calendar)
    last = day_of(due - 1, calendar)
    whole = datetime.combine(date.fromordinal(last + 1), time(), calendar.zone).timestamp() == due
    begins = datetime.combine(date.fromordinal(day_of(due, calendar)), time(), calendar.zone).timestamp() == due
    days = [day for day in range(first + 1, last + 1) if calendar.is_business_day(day)]
    if begins and calendar.is_business_day(first):  # a stop of midnight is due at a midnight: before that day
        assert len(days) in (calendar.days, calendar.days - 1)
    else:
        assert len(days) == calendar.days
        assert calendar.is_business_day(last) or whole


@given(CALENDARS, SECONDS)
def test_what_is_due_by_a_moment_is_what_occurred_up_to_another(calendar: Calendar, moment: int) -> None:
    limit = due_by(moment, calendar)
    assert limit < moment
    if limit >= 0:
        assert due_at(limit, calendar) <= moment
    assert due_at(limit + 1, calendar) > moment


@given(CALENDARS, SECONDS, st.integers(0, 5_000_000))
def test_urgency_says_the_same_as_the_moments(calendar: Calendar, stop: int, later: int) -> None:
    now = stop + later
    overdue, soon = (stop <= due_by(moment, calendar) for moment in (now, now + calendar.soon))
    assert urgency(stop, now, calendar) == ("overdue" if overdue else "due_soon" if soon else "on_time")


@given(SECONDS, st.dates(date(1990, 1, 1), date(2060, 1, 1)))
def test_a_holiday_never_brings_a_due_time_forward(stop: int, day: date) -> None:
    with_one = TEN._replace(holidays=frozenset({day.toordinal()}))
    moved = due_at(stop, with_one) - due_at(stop, TEN)
    if day.toordinal() != day_of(stop, TEN):
        assert moved in (0, *(n * 86_400 for n in (1, 3)))
    else:
        assert abs(moved) <= 86_400


def test_what_cannot_be_a_calendar_is_told() -> None:
    for words, says in (
        ((0, "sunday", "", "UTC", 0), "between 1 and 366"),
        ((367, "sunday", "", "UTC", 0), "between 1 and 366"),
        ((10, "sun", "", "UTC", 0), "a weekend is of monday"),
        ((10, "none,sunday", "", "UTC", 0), "a weekend is of monday"),
        ((10, "monday,tuesday,wednesday,thursday,friday,saturday,sunday", "", "UTC", 0), "no weekday is left"),
        ((10, "sunday", "25.12.2026", "UTC", 0), "such as 2026-12-25"),
        ((10, "sunday", "2026-02-30", "UTC", 0), "such as 2026-12-25"),
        ((10, "sunday", "", "Mars/Olympus", 0), "no such time zone"),
        ((10, "sunday", "", "../etc/passwd", 0), "no such time zone"),
    ):
        with pytest.raises(ImpossibleCalendar, match=says):
            calendar_from(*words)


def test_the_words_of_the_settings_make_the_calendar() -> None:
    made = calendar_from(5, " Friday , saturday", "2026-12-25,", "Europe/Berlin", 3600.5)
    assert made == Calendar(
        5, frozenset({4, 5}), frozenset({date(2026, 12, 25).toordinal()}), ZoneInfo("Europe/Berlin"), 3600
    )
    assert made.is_business_day((date(2026, 12, 25) + timedelta(days=2)).toordinal())
    assert calendar_from(10, "none", "", "UTC", 0).zone is UTC
