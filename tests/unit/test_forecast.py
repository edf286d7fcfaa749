"""Present use, the day credit ends and the levels to warn at, at their edges."""

from __future__ import annotations

from datetime import date, timedelta
from zoneinfo import ZoneInfo

import pytest

from billing.calendar import LocalCalendar
from billing.forecast import (
    AHEAD_DAYS_MAX,
    WARN_DAYS_MAX,
    BadThreshold,
    PresentUse,
    Threshold,
    ThresholdKind,
    UsedDay,
    forecast,
    idle_day_minor,
    level_minor,
    make_threshold,
    make_thresholds,
    present_use,
)
from billing.running import Point, begin, opening
from billing.tariff_document import builtin_tariff
from billing.terms import one_assignment

CALENDAR = LocalCalendar(ZoneInfo("Asia/Kolkata"))
DAY = date(2026, 11, 20)
HOUR_MS = 3_600_000
# 3,000 a day, of which 700 are fixed.
USE = PresentUse(days=7, energy_wh=28_000, charge_minor=21_000)
FIXED_MINOR = 700


def used(*charges_minor: int) -> list[UsedDay]:
    """Days up to DAY with these charges, the last one first."""
    return [
        UsedDay(day=DAY - timedelta(days=back), energy_wh=4_000, charge_minor=charge_minor)
        for back, charge_minor in enumerate(charges_minor)
    ]


def ends(balance_minor: int, *, hour: int = 12, cut_at_minor: int = 0, use: PresentUse = USE) -> tuple[int, int | None]:
    """Return days left and how many days ahead credit ends, at an hour of DAY."""
    found = forecast(
        use,
        balance_minor=balance_minor,
        cut_at_minor=cut_at_minor,
        fixed_minor=FIXED_MINOR,
        at_ms=CALENDAR.midnight_ms(DAY) + hour * HOUR_MS,
        calendar=CALENDAR,
    )
    assert found is not None
    return found.days_left, None if found.ends_on is None else (found.ends_on - DAY).days


def test_present_use_takes_the_last_seven_of_any_order() -> None:
    """Each weekday counts once, whatever else is known."""
    days = used(1, 2, 3, 4, 5, 6, 7, 800, 900)
    assert present_use(reversed(days)) == PresentUse(days=7, energy_wh=28_000, charge_minor=28)
    assert present_use(days, most=30) == PresentUse(days=9, energy_wh=36_000, charge_minor=1_728)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_present_use_of_fewer_than_three_days_is_not_known(number: int) -> None:
    """Two days are no habit."""
    assert present_use(used(*[100] * number)) is None
    assert present_use(used(100, 100, 100)) is not None


def test_mean_of_a_day_rounds_energy_down_and_charge_up() -> None:
    """A number of days is never promised more than its credit."""
    use = PresentUse(days=3, energy_wh=10_001, charge_minor=100)
    assert (use.day_energy_wh, use.day_charge_minor) == (3_333, 34)


@pytest.mark.parametrize(
    ("balance_minor", "days_left", "ahead"),
    [
        # At noon the rest of today costs half of the 2,300 that are not fixed.
        (-1, 0, 0), (0, 0, 0), (1, 0, 0), (1_150, 0, 0),
        (1_151, 0, 1), (4_150, 1, 1), (4_151, 1, 2), (7_150, 2, 2), (7_151, 2, 3),
    ],
)  # fmt: skip
def test_credit_ends_on_the_day_whose_use_takes_the_last_of_it(balance_minor: int, days_left: int, ahead: int) -> None:
    """A balance that just lasts to a midnight ends on the day before it."""
    assert ends(balance_minor) == (days_left, ahead)


def test_fixed_charge_of_today_is_paid_already() -> None:
    """At midnight a whole day's energy is still to come, at its end nothing is."""
    assert ends(2_300, hour=0) == (0, 0)
    assert ends(2_301, hour=0) == (0, 1)
    assert ends(97, hour=23) == (0, 1)
    assert ends(95, hour=23) == (0, 0)


def test_emergency_credit_counts_as_credit() -> None:
    """What may be owed lasts, too: credit ends where supply would be cut."""
    assert ends(0, cut_at_minor=-4_151) == ends(4_151)


def test_forecast_beyond_a_year_names_no_day() -> None:
    """Days are still counted; the tariff of that day is not known."""
    longest = 1_150 + AHEAD_DAYS_MAX * 3_000
    assert ends(longest) == (AHEAD_DAYS_MAX, AHEAD_DAYS_MAX)
    assert ends(longest + 1) == (AHEAD_DAYS_MAX, None)
    assert ends(10**15, use=PresentUse(days=3, energy_wh=1, charge_minor=1))[1] is None


@pytest.mark.parametrize("use", [None, PresentUse(days=7, energy_wh=1_000, charge_minor=0)])
def test_forecast_without_use_that_costs_is_not_knowable(use: PresentUse | None) -> None:
    """Nothing used up, nothing to forecast and no level by days."""
    at_ms = CALENDAR.midnight_ms(DAY)
    found = forecast(use, balance_minor=1, cut_at_minor=0, fixed_minor=0, at_ms=at_ms, calendar=CALENDAR)
    assert found is None
    days = Threshold(kind=ThresholdKind.DAYS, value=3)
    assert level_minor(days, use=use, last_recharge_minor=100) is None


@pytest.mark.parametrize(
    ("kind", "value", "level"),
    [
        (ThresholdKind.AMOUNT, 0, 0),
        (ThresholdKind.AMOUNT, 12_345, 12_345),
        # 3 x 1,001 / 3 = 1,001 paise are 10.01 rupees, warned at 11.
        (ThresholdKind.DAYS, 3, 1_100),
        (ThresholdKind.DAYS, 1, 400),
        (ThresholdKind.PERCENT, 30, 14_999),
        (ThresholdKind.PERCENT, 100, 49_999),
    ],
)
def test_level_of_a_threshold_is_a_balance(kind: ThresholdKind, value: int, level: int) -> None:
    """Days go up to whole rupees, percent of the last recharge down."""
    use = PresentUse(days=3, energy_wh=3, charge_minor=1_001)
    assert level_minor(Threshold(kind=kind, value=value), use=use, last_recharge_minor=49_999) == level


def test_level_in_percent_without_a_recharge_does_not_apply() -> None:
    """There is nothing to take a percentage of."""
    wish = Threshold(kind=ThresholdKind.PERCENT, value=10)
    assert level_minor(wish, use=None, last_recharge_minor=None) is None


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (ThresholdKind.AMOUNT, -1),
        (ThresholdKind.DAYS, 0),
        (ThresholdKind.DAYS, WARN_DAYS_MAX + 1),
        (ThresholdKind.PERCENT, 0),
        (ThresholdKind.PERCENT, 101),
    ],
)
def test_threshold_out_of_range_is_refused(kind: ThresholdKind, value: int) -> None:
    """The refusal names what was expected and what came."""
    with pytest.raises(BadThreshold, match=f"expected .*, got {value}"):
        make_threshold(kind, value)


def test_threshold_in_range_is_made() -> None:
    """The ends of each range belong to it."""
    for kind, value in ((ThresholdKind.AMOUNT, 0), (ThresholdKind.DAYS, 90), (ThresholdKind.PERCENT, 1)):
        assert make_threshold(kind, value) == Threshold(kind=kind, value=value)


def test_thresholds_of_one_consumer_are_few_and_no_two_equal() -> None:
    """The same number by two kinds is two wishes; more than five, or one twice, is refused."""
    wanted = [Threshold(kind=kind, value=5) for kind in ThresholdKind]
    wanted += [Threshold(kind=ThresholdKind.DAYS, value=value) for value in (6, 7)]
    assert make_thresholds(wanted) == tuple(wanted)
    assert make_thresholds([]) == ()
    with pytest.raises(BadThreshold, match="expected at most 5, got 6"):
        make_thresholds([*wanted, Threshold(kind=ThresholdKind.DAYS, value=8)])
    with pytest.raises(BadThreshold, match="got 7 by days twice"):
        make_thresholds([*wanted[1:], wanted[-1]])


def test_idle_day_is_the_fixed_charge_with_its_levies() -> None:
    """A month without energy, by its days: fixed charge and the duty on it, rounded down."""
    terms = one_assignment(builtin_tariff("punjab-ds-2026-27"), load_w=3_000, opened_on=date(2026, 11, 1))
    at = Point(at_ms=CALENDAR.midnight_ms(date(2026, 11, 1)), energy_wh=0)
    walk = begin(opening(terms, posted_minor=0, at=at), terms)
    lines = walk.lines(date(2026, 11, 30))
    assert set(lines) >= {"fixed"}
    assert idle_day_minor(walk) == sum(lines.values()) // 30
