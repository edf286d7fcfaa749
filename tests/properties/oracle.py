"""A second opinion on a bill, from the words of the tariff alone.

Stage: the judge of the property tests. Takes the opening, the readings as instants and registers, a load and a zone;
returns the bill of each local month. Exact fractions and wall-clock datetimes throughout; it shares no code, no data
and no way of working with the product it judges.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from fractions import Fraction
from itertools import pairwise
from math import floor
from zoneinfo import ZoneInfo

PAISE = 100
RATE_TO_300_KWH = Fraction("3.85") * PAISE
RATE_ABOVE = Fraction("7.05") * PAISE
LIMIT_KWH = Fraction(300)
REBATE = Fraction(1, 100)
DUTY = Fraction(15, 100)

# An instant and the register seen at it.
Seen = tuple[datetime, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class MonthBill:
    """One local month's bill in paise; `rebate_minor` is the positive amount taken off."""

    energy_wh: int
    energy_minor: int
    fixed_minor: int
    rebate_minor: int
    duty_minor: int
    total_minor: int


def bill(
    opened: Seen, readings: Iterable[Seen], *, load_w: int, zone_name: str, accrued_to: date | None = None
) -> dict[date, MonthBill]:
    """Return each month's bill, by the month's first day.

    `accrued_to` is a local day up to which days accrue although no reading has been taken on it.
    """
    zone = ZoneInfo(zone_name)
    curve = _curve(opened, readings)
    first_day = curve[0][0].astimezone(zone).date()
    last_day = curve[-1][0].astimezone(zone).date()
    if accrued_to is not None:
        last_day = max(last_day, accrued_to)
    bills: dict[date, MonthBill] = {}
    for month in _months(first_day, last_day):
        following = _following(month)
        energy_wh = _register(curve, _midnight(following, zone)) - _register(curve, _midnight(month, zone))
        touched = min(last_day, following - timedelta(days=1)) - max(first_day, month)
        bills[month] = _month_bill(energy_wh, load_w, touched.days + 1, (following - month).days)
    return bills


def total_minor(bills: dict[date, MonthBill]) -> int:
    """Return what all months together cost, in paise."""
    return sum(month.total_minor for month in bills.values())


def _month_bill(energy_wh: int, load_w: int, touched_days: int, month_days: int) -> MonthBill:
    kwh = Fraction(energy_wh, 1000)
    kw = Fraction(load_w, 1000)
    if kw <= 2:
        rupees = 50
    elif kw <= 7:
        rupees = 70
    else:
        rupees = 100
    energy = _paise(min(kwh, LIMIT_KWH) * RATE_TO_300_KWH + max(kwh - LIMIT_KWH, Fraction(0)) * RATE_ABOVE)
    fixed = _paise(rupees * PAISE * kw * Fraction(touched_days, month_days))
    rebate = _paise(REBATE * energy)
    duty = _paise(DUTY * (energy + fixed - rebate))
    return MonthBill(
        energy_wh=energy_wh,
        energy_minor=energy,
        fixed_minor=fixed,
        rebate_minor=rebate,
        duty_minor=duty,
        total_minor=energy + fixed - rebate + duty,
    )


def _paise(exact: Fraction) -> int:
    # A half goes up.
    return floor(exact + Fraction(1, 2))


def _curve(opened: Seen, readings: Iterable[Seen]) -> list[Seen]:
    registers = {at.astimezone(UTC): register_wh for at, register_wh in [opened, *readings]}
    return sorted(registers.items())


def _register(curve: Sequence[Seen], at: datetime) -> int:
    # Before the opening nothing had been used; after the latest reading nothing more is known.
    if at <= curve[0][0]:
        return curve[0][1]
    for (start, start_wh), (end, end_wh) in pairwise(curve):
        if start <= at <= end:
            share = Fraction((at - start) // timedelta(microseconds=1), (end - start) // timedelta(microseconds=1))
            return start_wh + floor((end_wh - start_wh) * share)
    return curve[-1][1]


def _months(first_day: date, last_day: date) -> list[date]:
    months = [date(first_day.year, first_day.month, 1)]
    while (following := _following(months[-1])) <= last_day:
        months.append(following)
    return months


def _following(month: date) -> date:
    if month.month == 12:
        return date(month.year + 1, 1, 1)
    return date(month.year, month.month + 1, 1)


def _midnight(day: date, zone: ZoneInfo) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=zone).astimezone(UTC)
