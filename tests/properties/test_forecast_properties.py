"""A forecast against exact fractions, and how it moves with the balance."""

from __future__ import annotations

from datetime import timedelta
from fractions import Fraction
from math import floor
from zoneinfo import ZoneInfo

from hypothesis import given, settings
from hypothesis import strategies as st

from billing.calendar import LocalCalendar
from billing.forecast import (
    AHEAD_DAYS_MAX,
    Forecast,
    PresentUse,
    Threshold,
    ThresholdKind,
    forecast,
    level_minor,
)
from tests.properties.books import EXAMPLES_TIMES

BOUNDED = settings(deadline=None, max_examples=200 * EXAMPLES_TIMES)
CALENDARS = [LocalCalendar(ZoneInfo(name)) for name in ("Asia/Kolkata", "Europe/Berlin", "America/St_Johns")]

# Instants of 2026 to 2028: every change of clock is among their days.
instants = st.integers(1_767_225_600_000, 1_861_920_000_000)
balances = st.one_of(st.integers(-1_000, 10_000), st.integers(-10_000_000, 100_000_000))
uses = st.builds(
    PresentUse, days=st.integers(3, 7), energy_wh=st.integers(0, 100_000), charge_minor=st.integers(1, 200_000)
)
calendars = st.sampled_from(CALENDARS)


def made(use: PresentUse, balance_minor: int, fixed_minor: int, at_ms: int, calendar: LocalCalendar) -> Forecast:
    """Forecast without emergency credit."""
    found = forecast(
        use, balance_minor=balance_minor, cut_at_minor=0, fixed_minor=fixed_minor, at_ms=at_ms, calendar=calendar
    )
    assert found is not None
    return found


@BOUNDED
@given(uses, balances, st.integers(0, 30_000), instants, calendars)
def test_forecast_is_what_walking_day_by_day_in_fractions_finds(
    use: PresentUse, balance_minor: int, fixed_minor: int, at_ms: int, calendar: LocalCalendar
) -> None:
    """Today the rest of what is not fixed, each later day the mean: credit ends on the day that leaves nothing."""
    found = made(use, balance_minor, fixed_minor, at_ms, calendar)
    today = calendar.day_of(at_ms)
    begin_ms, end_ms = (calendar.midnight_ms(today + timedelta(days=number)) for number in (0, 1))
    mean = Fraction(use.charge_minor, use.days)
    credit = Fraction(max(0, balance_minor))
    assert found.days_left == floor(credit / mean)
    left = credit - max(0, mean - fixed_minor) * Fraction(end_ms - at_ms, end_ms - begin_ms)
    ahead = 0
    while left > 0 and ahead <= AHEAD_DAYS_MAX:
        left -= mean
        ahead += 1
    if ahead > AHEAD_DAYS_MAX:
        assert found.ends_on is None or found.ends_on == today + timedelta(days=AHEAD_DAYS_MAX)
        return
    assert found.ends_on is not None
    # Rounding up what today still costs may end credit one day earlier, never later.
    assert today + timedelta(days=ahead - 1) <= found.ends_on <= today + timedelta(days=ahead)


@BOUNDED
@given(uses, balances, st.integers(0, 10_000_000), st.integers(0, 30_000), instants, calendars)
def test_forecast_of_more_balance_is_never_shorter(
    use: PresentUse, balance_minor: int, more_minor: int, fixed_minor: int, at_ms: int, calendar: LocalCalendar
) -> None:
    """A recharge never brings the end of credit nearer."""
    less = made(use, balance_minor, fixed_minor, at_ms, calendar)
    more = made(use, balance_minor + more_minor, fixed_minor, at_ms, calendar)
    assert less.days_left <= more.days_left
    assert more.ends_on is None or (less.ends_on is not None and less.ends_on <= more.ends_on)


@BOUNDED
@given(uses, balances, st.integers(0, 30_000), instants, calendars)
def test_forecast_names_a_day_next_to_its_days_left(
    use: PresentUse, balance_minor: int, fixed_minor: int, at_ms: int, calendar: LocalCalendar
) -> None:
    """Never before today, never more than a day beyond the days left."""
    found = made(use, balance_minor, fixed_minor, at_ms, calendar)
    today = calendar.day_of(at_ms)
    if found.ends_on is None:
        assert found.days_left >= AHEAD_DAYS_MAX - 1
    else:
        ahead = (found.ends_on - today).days
        assert max(0, found.days_left - 1) <= ahead <= found.days_left + 1


@BOUNDED
@given(uses, st.integers(1, 90), st.integers(0, 3_000_000))
def test_level_by_days_warns_while_so_many_days_are_left(use: PresentUse, days: int, above_minor: int) -> None:
    """At the level at least that many days are left; a whole rupee below it fewer than that many."""
    level = level_minor(Threshold(kind=ThresholdKind.DAYS, value=days), use=use, last_recharge_minor=None)
    assert level is not None
    assert level % 100 == 0
    assert level * use.days >= days * use.charge_minor > (level - 100) * use.days


@BOUNDED
@given(st.integers(1, 100), st.integers(0, 10**9))
def test_level_in_percent_is_never_above_the_recharge(percent: int, recharge_minor: int) -> None:
    """Rounded down: a hundred percent is the recharge itself."""
    wish = Threshold(kind=ThresholdKind.PERCENT, value=percent)
    level = level_minor(wish, use=None, last_recharge_minor=recharge_minor)
    assert level is not None
    assert 0 <= recharge_minor * percent - level * 100 < 100
