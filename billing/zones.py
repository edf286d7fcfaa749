"""Time-of-day zones: which zone of a tariff an instant falls into, by season, kind of day and local clock.

Stage: between instants and time-of-day rating. Values and a calendar in; edges and integer Wh out. A zone begins at
a wall-clock minute of the account's local day; energy of an interval across an edge is split there in proportion to
time (see `billing.running.energy_between`).
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from datetime import date, timedelta
from functools import lru_cache

from billing.calendar import LocalCalendar

DAY_MINUTES = 1440


@dataclass(frozen=True, slots=True, kw_only=True)
class Season:
    """A part of every year, from a month and day to another, both included; it may run over the year's end."""

    name: str
    first: tuple[int, int]
    last: tuple[int, int]

    def holds(self, day: date) -> bool:
        """Tell whether a day is in the season."""
        at = (day.month, day.day)
        if self.first <= self.last:
            return self.first <= at <= self.last
        return at >= self.first or at <= self.last


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Zones:
    """The zones of a tariff.

    Units: `milli_per_kwh` is added to the energy charge of the zone's kWh, thousandths of a minor unit, below zero a
    rebate. Invariants: `hours` has, for each (season, holiday), the zones of a whole day as (minute, zone number)
    with rising minutes from 0; without seasons the season is "".
    """

    names: tuple[str, ...]
    milli_per_kwh: tuple[int, ...]
    seasons: tuple[Season, ...]
    weekend: frozenset[int]
    holidays: frozenset[date]
    hours: dict[tuple[str, bool], tuple[tuple[int, int], ...]]

    def of_day(self, day: date) -> tuple[tuple[int, int], ...]:
        """Return the zones of a local day as (minute from midnight, zone number)."""
        season = next((each.name for each in self.seasons if each.holds(day)), "")
        holiday = day.weekday() in self.weekend or day in self.holidays
        return self.hours[season, holiday]

    @property
    def edge_minutes(self) -> tuple[int, ...]:
        """Every minute of the day at which a zone begins on some day."""
        return tuple(sorted({minute for rows in self.hours.values() for minute, _ in rows}))


class ZoneClock:
    """The zones of one tariff on one calendar."""

    __slots__ = ("_calendar", "_zones", "count")

    def __init__(self, zones: Zones, calendar: LocalCalendar) -> None:
        self._zones = zones
        self._calendar = calendar
        self.count = len(zones.names)

    def zone_at(self, at_ms: int) -> tuple[int, int]:
        """Return the zone's number at an instant and the instant at which it ends."""
        day = self._calendar.day_of(at_ms)
        starts, numbers, end_ms = _day_edges(self._zones, self._calendar, day)
        place = bisect_right(starts, at_ms) - 1
        following_ms = starts[place + 1] if place + 1 < len(starts) else end_ms
        return numbers[place], following_ms

    def edges_between(self, from_ms: int, to_ms: int) -> list[int]:
        """Return the instants after `from_ms` and before `to_ms` at which a zone ends."""
        edges: list[int] = []
        at_ms = from_ms
        while (at_ms := self.zone_at(at_ms)[1]) < to_ms:
            edges.append(at_ms)
        return edges


@lru_cache(maxsize=1024)
def zone_clock(zones: Zones, calendar: LocalCalendar) -> ZoneClock:
    """Return the clock of a tariff's zones on a calendar; made once."""
    return ZoneClock(zones, calendar)


# Two years of days for a few time-of-day tariffs.
@lru_cache(maxsize=8192)
def _day_edges(zones: Zones, calendar: LocalCalendar, day: date) -> tuple[list[int], list[int], int]:
    rows = zones.of_day(day)
    starts = [calendar.instant_ms(day, minute) for minute, _ in rows]
    # Where clocks skip an hour, a zone due in it may be counted to begin after the next one: it gets no time.
    for number in range(len(starts) - 1, 0, -1):
        starts[number - 1] = min(starts[number - 1], starts[number])
    return starts, [number for _, number in rows], calendar.midnight_ms(day + timedelta(days=1))
