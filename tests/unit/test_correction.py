"""How far back an overhaul may reach and what each way of assessment says, to the Wh."""

from __future__ import annotations

from datetime import date
from zoneinfo import ZoneInfo

import pytest

from billing.calendar import LocalCalendar
from billing.correction import (
    Assessment,
    Connection,
    DayAverage,
    Fault,
    Overhaul,
    OverhaulRefused,
    PercentError,
    SameDaysLastYear,
    StatedEnergy,
    assess,
    earliest_day,
    edge_days,
    require_permitted,
)
from billing.running import Point
from billing.tariff_document import builtin_tariff
from billing.terms import BillPart, one_assignment

KOLKATA = LocalCalendar(ZoneInfo("Asia/Kolkata"))
OPENED = date(2025, 1, 1)
JUNE, JULY, AUGUST = date(2026, 6, 1), date(2026, 7, 1), date(2026, 8, 1)
TERMS = one_assignment(builtin_tariff("punjab-ds-2026-27"), load_w=2_000, opened_on=OPENED)


def overhaul(
    assessment: Assessment, *, first: date = JUNE, last: date = date(2026, 7, 31), **named: object
) -> Overhaul:
    """An overhaul of June and July 2026 for a defective meter, unless said otherwise."""
    chosen: dict[str, object] = {"fault": Fault.DEFECTIVE, "first": first, "last": last, "assessment": assessment}
    return Overhaul(**(chosen | named))  # type: ignore[arg-type]


def at(day: date, energy_wh: int) -> Point:
    return Point(at_ms=KOLKATA.midnight_ms(day), energy_wh=energy_wh)


# 10 kWh a day until 1 June 2026; 3 kWh a day in June, nothing in July, 10 kWh a day from August.
CURVE = [
    at(OPENED, 0),
    at(JUNE, 5_160_000),
    at(JULY, 5_250_000),
    at(AUGUST, 5_250_000),
    at(date(2026, 8, 11), 5_350_000),
]


def parts() -> list[BillPart]:
    found = [TERMS.part_at(JUNE)]
    while found[-1].first < AUGUST:
        found.append(TERMS.next_part(found[-1]))
    return found


def assessed(
    order: Overhaul, *, through: date = date(2026, 8, 11), before: dict[date, int] | None = None
) -> dict[date, int]:
    return assess(order, parts(), CURVE, opened_on=OPENED, through=through, assessed=before or {}, calendar=KOLKATA)


@pytest.mark.parametrize(
    ("fault", "last", "earliest"),
    [
        (Fault.INACCURATE, date(2026, 7, 31), date(2025, 8, 1)),
        (Fault.DEFECTIVE, date(2026, 7, 31), date(2026, 2, 1)),
        (Fault.BURNT, date(2026, 7, 31), date(2026, 5, 1)),
        (Fault.STOLEN, date(2026, 5, 30), date(2026, 2, 28)),
        (Fault.INACCURATE, date(2028, 2, 28), date(2027, 2, 28)),
        (Fault.STOLEN, date(2026, 1, 14), date(2025, 10, 15)),
    ],
)
def test_overhaul_reaches_back_so_many_months_from_its_end(fault: Fault, last: date, earliest: date) -> None:
    """Twelve, six and three months (R-20), counted from the day after the last; a month's end stays one."""
    assert earliest_day(fault, last) == earliest
    named = {"fault": fault, "last": last, "assessment": StatedEnergy(month_wh=1)}
    require_permitted(Overhaul(**named, first=earliest))  # type: ignore[arg-type]
    with pytest.raises(OverhaulRefused, match=rf"days from {earliest} on \(R-20"):
        require_permitted(Overhaul(**named, first=date.fromordinal(earliest.toordinal() - 1)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("order", "message"),
    [
        (overhaul(StatedEnergy(month_wh=1), first=AUGUST), "no later than the last"),
        (overhaul(StatedEnergy(month_wh=1), began_on=JULY), "when the meter's data shows"),
        (overhaul(PercentError(basis_points=-500)), "expected an inaccurate meter"),
        (overhaul(PercentError(basis_points=0), fault=Fault.INACCURATE), "not 0"),
        (overhaul(PercentError(basis_points=-9_001), fault=Fault.INACCURATE), "-90 %"),
        (overhaul(StatedEnergy(month_wh=-1)), "stated energy"),
        (overhaul(DayAverage(first=date(2026, 5, 1), last=JUNE)), "days outside"),
        (
            overhaul(DayAverage(first=date(2026, 5, 1), last=date(2026, 5, 31)), connection=Connection.SEASONAL),
            "same days of last year",
        ),
    ],
)
def test_overhaul_that_the_rules_do_not_permit_is_refused(order: Overhaul, message: str) -> None:
    """Each refusal names what was expected."""
    with pytest.raises(OverhaulRefused, match=message):
        require_permitted(order)


def test_source_of_a_net_meter_names_both_rules() -> None:
    """R-21 gives the overhaul, R-20 its period."""
    source = overhaul(StatedEnergy(month_wh=1), connection=Connection.NET).source
    assert "R-20" in source
    assert "R-21" in source


@pytest.mark.parametrize(
    ("assessment", "fault", "expected"),
    [
        # 90 kWh counted at 95 % are 94,736.84 used; at 110 % 81,818.18.
        (PercentError(basis_points=-500), Fault.INACCURATE, {JUNE: 4_737}),
        (PercentError(basis_points=1_000), Fault.INACCURATE, {JUNE: -8_182}),
        (SameDaysLastYear(), Fault.DEFECTIVE, {JUNE: 210_000, JULY: 310_000}),
        (DayAverage(first=date(2026, 5, 1), last=date(2026, 5, 31)), Fault.DEFECTIVE, {JUNE: 210_000, JULY: 310_000}),
        (DayAverage(first=AUGUST, last=date(2026, 8, 10)), Fault.DEFECTIVE, {JUNE: 210_000, JULY: 310_000}),
        (StatedEnergy(month_wh=240_000), Fault.DEFECTIVE, {JUNE: 150_000, JULY: 240_000}),
    ],
)
def test_assessment_adds_what_the_meter_should_have_counted(
    assessment: Assessment, fault: Fault, expected: dict[date, int]
) -> None:
    """By test, by last year, by an average and by statement: used less counted, rounded half up."""
    assert assessed(overhaul(assessment, fault=fault)) == expected


def test_assessment_of_part_of_a_month_takes_its_days_only() -> None:
    """11 days of June and 10 of July at 8 kWh a day and its 31st share."""
    order = overhaul(StatedEnergy(month_wh=240_000), first=date(2026, 6, 20), last=date(2026, 7, 10))
    with pytest.raises(OverhaulRefused, match="bill parts that are closed"):
        assessed(order, through=date(2026, 7, 20))
    assert assessed(order) == {JUNE: 88_000 - 33_000, JULY: 77_419}
    assert set(edge_days(order, parts())) == {date(2026, 6, 20), JULY, date(2026, 7, 11)}


def test_assessment_of_open_days_is_refused() -> None:
    """August is not closed: it cannot be assessed, nor can July while it is open."""
    order = overhaul(StatedEnergy(month_wh=1), last=date(2026, 8, 5))
    with pytest.raises(OverhaulRefused, match="the part that is open holds 2026-08-11"):
        assessed(order)


def test_assessment_on_top_of_another_is_refused() -> None:
    """Two corrections of one month would count the same energy twice."""
    order = overhaul(StatedEnergy(month_wh=240_000))
    with pytest.raises(OverhaulRefused, match="reverse that correction first"):
        assessed(order, before={JULY: 1})


@pytest.mark.parametrize(
    "assessment",
    [DayAverage(first=date(2024, 12, 1), last=date(2025, 1, 31)), DayAverage(first=AUGUST, last=date(2026, 8, 31))],
)
def test_base_period_without_metering_is_refused(assessment: Assessment) -> None:
    """Days before the opening or after the latest reading say nothing."""
    with pytest.raises(OverhaulRefused, match="days that were metered"):
        assessed(overhaul(assessment))
