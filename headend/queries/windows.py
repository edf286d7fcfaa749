"""Which part of a question's span each meter answers for: by where it stood, and by whole buckets.

Stage: between places of meters and the rows that are read. Values only.

A meter's reading belongs to a place from the meter's installation to before its removal. A bucket (hour, day, month)
belongs to a place that the meter stood at during some of it, unless it stood at another one in the same bucket: energy
of two consumers is given to neither. Whoever asks for the meter itself gets all.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from billing.calendar import LocalCalendar, from_ms, next_period, period_of
from headend.queries.questions import SLOT_MS, Interval

# Beyond every instant that a question may name.
ALWAYS_MS = 2**53


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a meter stood from one instant to before another; `apart_from_ms` and `apart_to_ms` are the end of its
    stay before and the begin of the one after, at other places."""

    meter_id: int
    from_ms: int = -ALWAYS_MS
    to_ms: int = ALWAYS_MS
    apart_from_ms: int = -ALWAYS_MS
    apart_to_ms: int = ALWAYS_MS


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A meter's rows from one instant to before another; `after` is the last part of the key given before, if any."""

    meter_id: int
    from_ms: int
    to_ms: int
    after: int = -1


def reading_window(place: Place, *, since_ms: int, until_ms: int) -> Window | None:
    """Return the part of a span in which readings of a meter are its place's; None for none."""
    return _window(place.meter_id, max(place.from_ms, since_ms), min(place.to_ms, until_ms))


def bucket_window(
    place: Place, interval: Interval, calendar: LocalCalendar, *, since_ms: int, until_ms: int
) -> Window | None:
    """Return from when to before when buckets begin that are a meter's at its place; None for none."""
    # Most meters stood where they stand long before the span, and stand there yet.
    begun_ms = since_ms if place.from_ms <= since_ms else bucket_start(place.from_ms, interval, calendar)
    left_ms = until_ms if place.apart_to_ms >= ALWAYS_MS else bucket_start(place.apart_to_ms, interval, calendar)
    first_ms = max(begun_ms, place.apart_from_ms, since_ms)
    last_ms = min(left_ms, place.to_ms, until_ms)
    return _window(place.meter_id, first_ms, last_ms)


def bucket_start(at_ms: int, interval: Interval, calendar: LocalCalendar) -> int:
    """Return when the local bucket begins that holds an instant."""
    match interval:
        case Interval.DAY:
            return calendar.midnight_ms(calendar.day_of(at_ms))
        case Interval.MONTH | Interval.BILLING:
            return calendar.midnight_ms(period_of(calendar.day_of(at_ms)))
        case _:
            at = from_ms(at_ms).astimezone(calendar.zone)
            step_ms = SLOT_MS.get(interval, 3_600_000)
            since_hour = timedelta(minutes=at.minute, seconds=at.second, microseconds=at.microsecond)
            return at_ms - (since_hour // timedelta(milliseconds=1)) % step_ms


def bucket_end(started_ms: int, interval: Interval, calendar: LocalCalendar) -> int:
    """Return when the bucket ends that begins at an instant."""
    match interval:
        case Interval.DAY:
            return calendar.midnight_ms(calendar.day_of(started_ms) + timedelta(days=1))
        case Interval.MONTH | Interval.BILLING:
            return calendar.midnight_ms(next_period(calendar.day_of(started_ms)))
        case _:
            return started_ms + SLOT_MS.get(interval, 3_600_000)


def first_start(at_ms: int, interval: Interval, calendar: LocalCalendar) -> int:
    """Return when the first bucket begins that begins at or after an instant."""
    started_ms = bucket_start(at_ms, interval, calendar)
    return started_ms if started_ms == at_ms else bucket_end(started_ms, interval, calendar)


def _window(meter_id: int, first_ms: int, last_ms: int) -> Window | None:
    return Window(meter_id=meter_id, from_ms=first_ms, to_ms=last_ms) if first_ms < last_ms else None
