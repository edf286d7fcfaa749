"""Local days and months as UTC milliseconds."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest

from billing.calendar import LocalCalendar, days_in, from_ms, next_period, period_of, to_ms

KOLKATA = LocalCalendar(ZoneInfo("Asia/Kolkata"))
LONDON = LocalCalendar(ZoneInfo("Europe/London"))
HOUR_MS = 3_600_000


def utc_ms(year: int, month: int, day: int, hour: int = 0, minute: int = 0) -> int:
    """Return the milliseconds of a UTC wall clock."""
    return to_ms(datetime(year, month, day, hour, minute, tzinfo=UTC))


def test_to_ms_of_an_aware_instant_counts_from_1970_in_utc() -> None:
    """The zone an instant is written in does not matter."""
    ist = timezone(timedelta(hours=5, minutes=30))
    assert to_ms(datetime(1970, 1, 1, tzinfo=UTC)) == 0
    assert to_ms(datetime(1970, 1, 1, 5, 30, 1, tzinfo=ist)) == 1000


def test_to_ms_drops_parts_of_a_millisecond() -> None:
    """Microseconds go, downwards, before 1970 too."""
    assert to_ms(datetime(1970, 1, 1, 0, 0, 0, 1999, tzinfo=UTC)) == 1
    assert to_ms(datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)) == -1


def test_from_ms_gives_the_aware_instant_back() -> None:
    """Milliseconds survive the round trip exactly."""
    for at_ms in (0, 1, -1, 1_777_507_199_999, 4_102_444_800_001):
        instant = from_ms(at_ms)
        assert instant.utcoffset() == timedelta(0)
        assert to_ms(instant) == at_ms


@pytest.mark.parametrize(
    ("day", "period"),
    [
        (date(2026, 4, 1), date(2026, 4, 1)),
        (date(2026, 4, 30), date(2026, 4, 1)),
        (date(2028, 2, 29), date(2028, 2, 1)),
        (date(2026, 12, 31), date(2026, 12, 1)),
    ],
)
def test_period_of_any_day_is_the_first_of_its_month(day: date, period: date) -> None:
    """A billing period is a calendar month."""
    assert period_of(day) == period


def test_next_period_of_every_month_is_the_month_after() -> None:
    """January leads to February, December to the next year."""
    period = date(2027, 1, 1)
    for number in range(1, 25):
        period = next_period(period)
        assert period == date(2027 + number // 12, number % 12 + 1, 1)


@pytest.mark.parametrize(
    ("period", "days"),
    [
        (date(2026, 2, 1), 28),
        (date(2028, 2, 1), 29),
        (date(2100, 2, 1), 28),
        (date(2026, 4, 1), 30),
        (date(2026, 12, 1), 31),
    ],
)
def test_days_in_a_month_follows_the_calendar(period: date, days: int) -> None:
    """A leap February has 29 days, that of 2100 has 28."""
    assert days_in(period) == days


def test_day_of_kolkata_changes_at_half_past_six_in_the_evening_utc() -> None:
    """Local midnight opens the new day; the millisecond before belongs to the old one."""
    midnight_ms = utc_ms(2026, 4, 30, 18, 30)
    assert KOLKATA.midnight_ms(date(2026, 5, 1)) == midnight_ms
    assert KOLKATA.day_of(midnight_ms) == date(2026, 5, 1)
    assert KOLKATA.day_of(midnight_ms - 1) == date(2026, 4, 30)
    assert KOLKATA.period_at(midnight_ms) == date(2026, 5, 1)
    assert KOLKATA.period_at(midnight_ms - 1) == date(2026, 4, 1)


@pytest.mark.parametrize(
    ("day", "hours"),
    [(date(2026, 3, 28), 24), (date(2026, 3, 29), 23), (date(2026, 10, 25), 25), (date(2026, 10, 26), 24)],
)
def test_day_of_a_clock_change_has_23_or_25_hours(day: date, hours: int) -> None:
    """In London the last Sundays of March and October are short and long."""
    length_ms = LONDON.midnight_ms(day + timedelta(days=1)) - LONDON.midnight_ms(day)
    assert length_ms == hours * HOUR_MS


def test_day_of_london_in_summer_begins_at_eleven_in_the_evening_utc() -> None:
    """Summer time moves the month end as well."""
    assert LONDON.midnight_ms(date(2026, 7, 1)) == utc_ms(2026, 6, 30, 23)
    assert LONDON.period_at(utc_ms(2026, 6, 30, 23)) == date(2026, 7, 1)
    assert LONDON.midnight_ms(date(2026, 12, 1)) == utc_ms(2026, 12, 1)


@pytest.mark.parametrize("zone", ["America/Sao_Paulo", "Africa/Cairo", "America/Havana", "Asia/Beirut"])
def test_midnight_of_zones_that_change_clocks_at_midnight_is_the_first_instant_of_the_day(zone: str) -> None:
    """Where midnight is skipped or comes twice, the day still begins right after the day before."""
    calendar = LocalCalendar(ZoneInfo(zone))
    day = date(2016, 1, 1)
    while day < date(2019, 1, 1):
        midnight_ms = calendar.midnight_ms(day)
        assert calendar.day_of(midnight_ms) == day
        assert calendar.day_of(midnight_ms - 1) == day - timedelta(days=1)
        day += timedelta(days=1)


@pytest.mark.parametrize(
    ("day", "minute", "hour", "past"),
    [
        (date(2026, 7, 1), 0, -1, 0),
        (date(2026, 7, 1), 60, 0, 0),
        (date(2026, 12, 1), 90, 1, 30),
        # The short Sunday: 00:59, the skipped 01:00 and 01:59 as if the clock had not changed, and 02:00.
        (date(2026, 3, 29), 59, 0, 59),
        (date(2026, 3, 29), 60, 1, 0),
        (date(2026, 3, 29), 119, 1, 59),
        (date(2026, 3, 29), 120, 1, 0),
        # The long Sunday: 00:59 in summer time, 01:00 and 01:59 when they come again, and 02:00.
        (date(2026, 10, 25), 59, -1, 59),
        (date(2026, 10, 25), 60, 1, 0),
        (date(2026, 10, 25), 119, 1, 59),
        (date(2026, 10, 25), 120, 2, 0),
        (date(2026, 10, 25), 1439, 23, 59),
    ],
)
def test_instant_of_a_london_clock_follows_its_changes(day: date, minute: int, hour: int, past: int) -> None:
    """A repeated time is its second showing; a skipped one is counted from before the change."""
    wanted_ms = utc_ms(day.year, day.month, day.day) + hour * HOUR_MS + past * 60_000
    assert LONDON.instant_ms(day, minute) == wanted_ms


@pytest.mark.parametrize("minute", [0, 1, 330, 719, 1439])
def test_instant_of_a_kolkata_clock_is_so_many_minutes_after_midnight(minute: int) -> None:
    """Where clocks never change, every day is as long as the others."""
    day = date(2026, 3, 29)
    assert KOLKATA.instant_ms(day, minute) == KOLKATA.midnight_ms(day) + minute * 60_000
