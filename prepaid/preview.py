"""`bill preview`: what a load profile would cost, line by line, without a database.

Stage: beside the READ story; the same curve and the same rating as every account. A day touched by the profile
carries its fixed charge, so the bill ends with the local day of the last interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from billing.assigning import require_area
from billing.calendar import LocalCalendar
from billing.rating import Lines, total
from billing.running import Point, bill_by_month
from billing.tariff import Tariff
from billing.tariff_document import builtin_documents, builtin_tariff
from billing.terms import Terms, one_assignment
from meter_sim.recorded import Profile

HALF_HOUR_MS = 1_800_000


@dataclass(frozen=True, slots=True, kw_only=True)
class PeriodBill:
    """One month of a preview. Energy in Wh, lines in minor units."""

    period: date
    energy_wh: int
    lines: Lines

    def to_json(self) -> dict[str, object]:
        """Return the bill as the `--json` output shows it."""
        return {
            "period": f"{self.period:%Y-%m}",
            "energy_wh": self.energy_wh,
            "lines": self.lines,
            "total_minor": total(self.lines),
        }


def curve_of(profile: Profile, register_wh: int = 0) -> list[Point]:
    """Return a recorded profile as the points a meter would report: the end of each interval.

    After a gap in the record the meter also reports where the next interval starts, so that no energy is spread
    over time in which none was recorded.
    """
    points = [Point(at_ms=profile.start_ms[0], energy_wh=register_wh)]
    for start_ms, end_ms, energy_wh in zip(profile.start_ms, profile.end_ms, profile.energy_wh, strict=True):
        if start_ms > points[-1].at_ms:
            points.append(Point(at_ms=start_ms, energy_wh=register_wh))
        register_wh += energy_wh
        points.append(Point(at_ms=end_ms, energy_wh=register_wh))
    return points


def tariff_of(name: str) -> Tariff:
    """Return a tariff that ships with the product, or the one of a document file.

    Raises: TariffError; DocumentRefused.
    """
    from prepaid.tariff_commands import read_document

    if name not in builtin_documents() and Path(name).is_file():
        return read_document(Path(name))[0]
    return builtin_tariff(name)


def demands_of(points: Sequence[Point], calendar: LocalCalendar) -> dict[date, int]:
    """Return the greatest half-hour demand (W) of each local day, from registers read on the half hour.

    As the database finds it: half hours of the clock in UTC, both ends read, on the day in which they begin.
    """
    registers = {point.at_ms: point.energy_wh for point in points if point.at_ms % HALF_HOUR_MS == 0}
    found: dict[date, int] = {}
    for at_ms, energy_wh in registers.items():
        begins_ms = at_ms - HALF_HOUR_MS
        if begins_ms in registers:
            day = calendar.day_of(begins_ms)
            found[day] = max(found.get(day, 0), 2 * (energy_wh - registers[begins_ms]))
    return found


def preview(
    profile: Profile,
    tariff: Tariff,
    *,
    load_w: int,
    calendar: LocalCalendar,
    area: str = "urban",
    meter_rent: bool = True,
) -> list[PeriodBill]:
    """Bill a profile month by month, in the local months of the calendar.

    Raises: AssignmentRefused for a type of area that the tariff does not know.
    """
    require_area(tariff, area)
    points = curve_of(profile)
    opened_on = calendar.day_of(points[0].at_ms)
    terms = one_assignment(tariff, load_w=load_w, opened_on=opened_on, area=area, meter_rent=meter_rent)
    return preview_curve(points, terms, calendar)


def preview_curve(points: Sequence[Point], terms: Terms, calendar: LocalCalendar) -> list[PeriodBill]:
    """Bill a whole curve month by month, from where the meter was installed to its last reading."""
    # The last interval ends before the instant of its end: a profile to midnight does not open the next day.
    last_day = calendar.day_of(points[-1].at_ms - 1)
    # The first point is no reading.
    demands_w = demands_of(points[1:], calendar)
    bills = bill_by_month(terms, points, last_day=last_day, calendar=calendar, demands_w=demands_w)
    return [
        PeriodBill(period=period, energy_wh=energy_wh, lines=lines)
        for period, (energy_wh, lines) in sorted(bills.items())
    ]
