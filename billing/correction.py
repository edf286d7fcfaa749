"""Overhaul of an account: how far back it may reach, and what a meter that was wrong should have counted.

Stage: before a correction is rated. Takes a fault, a span of local days, a way of assessment and what the meter
counted; returns the Wh to add to closed bill parts (below zero to take away), or refuses and names the rule. Never
touches money or the readings themselves.

Source: requirements R-20 and R-21 (Supply Code 2024 items 20 and 21), as summarised there. R-21 gives net meters and
seasonal industry an overhaul without a period of its own: the period is that of the meter's fault.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from enum import StrEnum
from typing import assert_never

from billing.calendar import LocalCalendar, days_in, period_of
from billing.money import BillingError, round_half_up
from billing.running import Point, energy_at
from billing.tariff import BASIS_POINTS, ENERGY_WH_MAX
from billing.terms import ONE_DAY, BillPart

# A meter that runs 90 % slow counts a tenth; one that is slower has stopped, which is not an error to be tested.
ERROR_BASIS_POINTS_MIN, ERROR_BASIS_POINTS_MAX = -9_000, 100_000


class OverhaulRefused(BillingError):
    """An overhaul that the rules do not allow; the message names the rule."""

    code = "overhaul_refused"


class Fault(StrEnum):
    """What was wrong with the meter."""

    INACCURATE = "inaccurate"
    DEFECTIVE = "defective"
    BURNT = "burnt"
    STOLEN = "stolen"


class Connection(StrEnum):
    """Kinds of connection for which the code has a rule of its own."""

    ORDINARY = "ordinary"
    NET = "net"
    SEASONAL = "seasonal"


@dataclass(frozen=True, slots=True, kw_only=True)
class Permitted:
    """How far back an overhaul may reach, and where that is laid down."""

    months: int
    source: str


PERMITTED = {
    Fault.INACCURATE: Permitted(months=12, source="R-20, Supply Code 2024 item 20: inaccurate meter, 12 months"),
    Fault.DEFECTIVE: Permitted(months=6, source="R-20, Supply Code 2024 item 20: defective meter, 6 months"),
    Fault.BURNT: Permitted(months=3, source="R-20, Supply Code 2024 item 20: burnt meter, 3 months"),
    Fault.STOLEN: Permitted(months=3, source="R-20, Supply Code 2024 item 20: stolen meter, 3 months"),
}
CONNECTION_SOURCES = {
    Connection.NET: "R-21, Supply Code 2024 item 21: net meter, over the period of its fault",
    Connection.SEASONAL: "R-21, Supply Code 2024 item 21: seasonal industry, over the period of the meter's fault",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PercentError:
    """A tested meter counts so much more (above zero) or less than was used, in hundredths of a percent."""

    basis_points: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SameDaysLastYear:
    """What was used on the same days of the year before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DayAverage:
    """The average per day of a base period, both days included."""

    first: date
    last: date


@dataclass(frozen=True, slots=True, kw_only=True)
class StatedEnergy:
    """So much a month, as stated and agreed; a day takes its share of its month."""

    month_wh: int


Assessment = PercentError | SameDaysLastYear | DayAverage | StatedEnergy


@dataclass(frozen=True, slots=True, kw_only=True)
class Overhaul:
    """What is asked: a fault over a span of local days, both included, and how to assess it.

    Invariants: `began_on` is the day on which the meter's own data shows that the error began, where it does.
    """

    fault: Fault
    connection: Connection = Connection.ORDINARY
    first: date
    last: date
    began_on: date | None = None
    assessment: Assessment

    @property
    def source(self) -> str:
        """The rules that the overhaul stands on."""
        also = CONNECTION_SOURCES.get(self.connection)
        return PERMITTED[self.fault].source + (f"; {also}" if also else "")


def earliest_day(fault: Fault, last: date) -> date:
    """Return the first day that an overhaul up to and including a day may reach back to."""
    end, months = last + ONE_DAY, PERMITTED[fault].months
    year, month = divmod(end.year * 12 + end.month - 1 - months, 12)
    return date(year, month + 1, min(end.day, days_in(date(year, month + 1, 1))))


def require_permitted(overhaul: Overhaul) -> None:
    """Refuse a span that the rules do not permit, or a way of assessment that does not fit.

    Raises: OverhaulRefused.
    """
    first, last = overhaul.first, overhaul.last
    if first > last:
        raise OverhaulRefused(f"overhaul: expected a first day no later than the last, got {first} to {last}")
    earliest = earliest_day(overhaul.fault, last)
    if first < earliest:
        raise OverhaulRefused(f"overhaul: expected days from {earliest} on ({overhaul.source}), got {first}")
    if overhaul.began_on is not None and first < overhaul.began_on:
        raise OverhaulRefused(
            f"overhaul: expected days from {overhaul.began_on} on, when the meter's data shows that it began"
            f" (R-20, Supply Code 2024 item 20), got {first}"
        )
    match overhaul.assessment:
        case PercentError(basis_points=error):
            if overhaul.fault is not Fault.INACCURATE:
                raise OverhaulRefused(f"percent error: expected an inaccurate meter, got a {overhaul.fault} one")
            if not ERROR_BASIS_POINTS_MIN <= error <= ERROR_BASIS_POINTS_MAX or error == 0:
                raise OverhaulRefused(f"percent error: expected -90 % to 1000 % and not 0, got {error} basis points")
        case DayAverage(first=base_first, last=base_last):
            # An average over days would carry the season into the months without one.
            if overhaul.connection is Connection.SEASONAL:
                raise OverhaulRefused("seasonal industry: expected the same days of last year, got an average per day")
            if base_first > base_last or (base_first <= last and first <= base_last):
                raise OverhaulRefused(
                    f"base period: expected days outside of {first} to {last}, got {base_first} to {base_last}"
                )
        case StatedEnergy(month_wh=month_wh):
            if not 0 <= month_wh <= ENERGY_WH_MAX:
                raise OverhaulRefused(f"stated energy: expected 0 to {ENERGY_WH_MAX} Wh a month, got {month_wh}")
        case SameDaysLastYear():
            pass
        case _:
            assert_never(overhaul.assessment)


def edge_days(overhaul: Overhaul, parts: Sequence[BillPart]) -> list[date]:
    """Return the local midnights at which an assessment has to know the account's energy to date."""
    days = [day for first, end in _slices(overhaul, parts) for day in (first, end)]
    match overhaul.assessment:
        case SameDaysLastYear():
            days += [_year_before(day) for day in days]
        case DayAverage(first=base_first, last=base_last):
            days += [base_first, base_last + ONE_DAY]
        case PercentError() | StatedEnergy():
            pass
        case _:
            assert_never(overhaul.assessment)
    return days


def assess(
    overhaul: Overhaul,
    parts: Sequence[BillPart],
    points: Sequence[Point],
    *,
    opened_on: date,
    through: date,
    assessed: Mapping[date, int],
    calendar: LocalCalendar,
) -> dict[date, int]:
    """Return the Wh to add to each closed bill part of the span, by the part's first day.

    `points` are those around `edge_days`; `through` is the first day that is not closed; `assessed` is what earlier
    corrections have added, by part.
    Raises: OverhaulRefused.
    """
    require_permitted(overhaul)
    if overhaul.first < opened_on:
        raise OverhaulRefused(f"overhaul: expected days from the opening on {opened_on} on, got {overhaul.first}")
    inside = [part for part in parts if part.first <= overhaul.last and part.end > overhaul.first]
    if not inside or inside[-1].end > through or inside[-1].end <= overhaul.last:
        raise OverhaulRefused(
            f"overhaul: expected bill parts that are closed, got days to {overhaul.last};"
            f" the part that is open holds {through}"
        )
    before = [part.first for part in inside if assessed.get(part.first)]
    if before:
        raise OverhaulRefused(
            f"overhaul: expected a bill part without an assessment, got {before[0]}; reverse that correction first"
        )
    found: dict[date, int] = {}
    for part, (first, end) in zip(inside, _slices(overhaul, inside), strict=True):
        metered_wh = _energy(points, first, end, calendar)
        found[part.first] = _used_wh(overhaul, points, first, end, metered_wh, opened_on, calendar) - metered_wh
    return {first: wh for first, wh in found.items() if wh}


def _used_wh(
    overhaul: Overhaul,
    points: Sequence[Point],
    first: date,
    end: date,
    metered_wh: int,
    opened_on: date,
    calendar: LocalCalendar,
) -> int:
    """Return what was used on some days as the assessment has it.

    Rounds: half up, to whole Wh.
    """
    days = (end - first).days
    match overhaul.assessment:
        case PercentError(basis_points=error):
            return round_half_up(metered_wh * BASIS_POINTS, BASIS_POINTS + error)
        case SameDaysLastYear():
            base = _year_before(first), _year_before(end)
            return _average_wh(points, *base, days, opened_on, calendar)
        case DayAverage(first=base_first, last=base_last):
            return _average_wh(points, base_first, base_last + ONE_DAY, days, opened_on, calendar)
        case StatedEnergy(month_wh=month_wh):
            return round_half_up(month_wh * days, days_in(period_of(first)))
        case _:
            assert_never(overhaul.assessment)


def _average_wh(
    points: Sequence[Point], first: date, end: date, days: int, opened_on: date, calendar: LocalCalendar
) -> int:
    """Return a base period's energy for so many days.

    Rounds: half up.
    """
    if first < opened_on or calendar.midnight_ms(end) > points[-1].at_ms:
        raise OverhaulRefused(
            f"base period: expected days that were metered, got {first} to {end - ONE_DAY};"
            " state the energy a month instead"
        )
    return round_half_up(_energy(points, first, end, calendar) * days, max(1, (end - first).days))


def _energy(points: Sequence[Point], first: date, end: date, calendar: LocalCalendar) -> int:
    start_wh, _ = energy_at(points, calendar.midnight_ms(first))
    end_wh, _ = energy_at(points, calendar.midnight_ms(end))
    return end_wh - start_wh


def _slices(overhaul: Overhaul, parts: Sequence[BillPart]) -> list[tuple[date, date]]:
    """Return the days [first, end) of the span in each bill part that it touches."""
    end = overhaul.last + ONE_DAY
    return [
        (max(part.first, overhaul.first), min(part.end, end))
        for part in parts
        if part.first < end and part.end > overhaul.first
    ]


def _year_before(day: date) -> date:
    """Return the same day of the year before; that of 29 February is the 28th."""
    if (day.month, day.day) == (2, 29):
        day -= timedelta(days=1)
    return day.replace(year=day.year - 1)
