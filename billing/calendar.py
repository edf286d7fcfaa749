"""Local days and billing periods of an account's time zone, as UTC milliseconds.

Stage: between instants (readings) and days (journals, fixed charge). A billing period is a calendar month, named by
its first day. An instant at exactly local midnight opens the new day; energy of an interval ending there belongs to
the old one.
"""

from __future__ import annotations

from calendar import monthrange
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)


def to_ms(instant: datetime) -> int:
    """Return whole UTC milliseconds since 1970 of an aware instant; parts of a millisecond are dropped."""
    return (instant - EPOCH) // _MILLISECOND


def from_ms(at_ms: int) -> datetime:
    """Return the aware UTC instant of milliseconds since 1970."""
    return EPOCH + timedelta(milliseconds=at_ms)


def period_of(day: date) -> date:
    """Return the first day of the day's billing period."""
    return day.replace(day=1)


def next_period(period: date) -> date:
    """Return the first day of the period after this one."""
    return (period + timedelta(days=31)).replace(day=1)


def days_in(period: date) -> int:
    """Return how many days the period has."""
    return monthrange(period.year, period.month)[1]


class LocalCalendar:
    """Days of one time zone.

    Invariants: `midnight_ms` rises with the day; `day_of(midnight_ms(d)) == d`, also across clock changes.
    """

    __slots__ = ("midnight_ms", "zone")

    def __init__(self, zone: ZoneInfo) -> None:
        self.zone = zone
        # A city lives in a few hundred distinct days; 4,096 is eleven years of them.
        self.midnight_ms = lru_cache(maxsize=4096)(self._midnight_ms)

    def instant_ms(self, day: date, minute: int) -> int:
        """Return the instant at which a local clock shows a minute of the day.

        A time that a clock change repeats is its second showing, one that it skips is counted from before the
        change: as PostgreSQL reads local times.
        """
        if minute == 0:
            return self.midnight_ms(day)
        shown = datetime.combine(day, time(minute // 60, minute % 60), tzinfo=self.zone)
        later = shown.replace(fold=1)
        offset, offset_later = shown.utcoffset(), later.utcoffset()
        assert offset is not None, "a zone has an offset"
        assert offset_later is not None, "a zone has an offset"
        return to_ms(later if offset_later < offset else shown)

    def day_of(self, at_ms: int) -> date:
        """Return the local day that holds an instant."""
        return from_ms(at_ms).astimezone(self.zone).date()

    def period_at(self, at_ms: int) -> date:
        """Return the billing period that holds an instant."""
        return period_of(self.day_of(at_ms))

    def _midnight_ms(self, day: date) -> int:
        return to_ms(datetime.combine(day, time(), tzinfo=self.zone))
