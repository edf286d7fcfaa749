"""When a day's completeness is taken: 8, 12 and 24 hours after its end, by the local calendar.

Stage: asked by the watch. Pure; the clock is given.
"""

from __future__ import annotations

from datetime import date
from typing import Final

from billing.calendar import LocalCalendar
from billing.terms import ONE_DAY

# Hours by which service levels ask for a day's readings.
HOURS: Final = (8, 12, 24)
# What is taken an hour later says nothing of the hour any more: it is left out, and seen to be missing.
TAKEN_WITHIN_MS: Final = 3_600_000


def due_marks(now_ms: int, calendar: LocalCalendar) -> list[tuple[date, int]]:
    """Return the days and hours whose time has come within `TAKEN_WITHIN_MS`."""
    today = calendar.day_of(now_ms)
    marks = [(today - ONE_DAY, 8), (today - ONE_DAY, 12), (today - 2 * ONE_DAY, 24)]
    return [(day, hour) for day, hour in marks if 0 <= now_ms - mark_ms(day, hour, calendar) < TAKEN_WITHIN_MS]


def mark_ms(day: date, hour: int, calendar: LocalCalendar) -> int:
    """Return the instant so many hours after a day's end, as a local clock shows it."""
    days, minutes = divmod(hour * 60, 24 * 60)
    return calendar.instant_ms(day + (1 + days) * ONE_DAY, minutes)
