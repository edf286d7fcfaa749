"""`bill preview`: what a load profile would cost, line by line, without a database.

Stage: beside the READ story; the same curve and the same rating as every account. A day touched by the profile
carries its fixed charge, so the bill ends with the local day of the last interval.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

from billing.calendar import LocalCalendar
from billing.rating import Lines, total
from billing.running import Point, bill_by_month
from billing.tariff import Tariff
from billing.terms import one_assignment
from meter_sim.recorded import Profile


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


def preview(profile: Profile, tariff: Tariff, *, load_w: int, calendar: LocalCalendar) -> list[PeriodBill]:
    """Bill a profile month by month, in the local months of the calendar."""
    points = curve_of(profile)
    opened_on = calendar.day_of(points[0].at_ms)
    # The last interval ends before the instant of its end: a profile to midnight does not open the next day.
    last_day = calendar.day_of(points[-1].at_ms - 1)
    terms = one_assignment(tariff, load_w=load_w, opened_on=opened_on)
    bills = bill_by_month(terms, points, last_day=last_day, calendar=calendar)
    return [
        PeriodBill(period=period, energy_wh=energy_wh, lines=lines)
        for period, (energy_wh, lines) in sorted(bills.items())
    ]
