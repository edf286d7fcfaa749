"""Days of credit left, ages of debts, and what a report of balances refuses to begin with."""

from __future__ import annotations

import pytest

from db.balances import AgeSum, BalanceRange, BalanceTotals, Debt, Use, age_place, days_left
from prepaid.report_commands import ReportRefused, parse_shards

DAY_MS = 86_400_000


@pytest.mark.parametrize(
    ("balance_minor", "cut_at_minor", "days", "charge_minor", "left"),
    [
        (7_000, 0, 7, 7_000, 7),
        (6_999, 0, 7, 7_000, 6),
        (999, 0, 7, 7_000, 0),
        (1_000, 0, 3, 1_000, 3),
        (0, 0, 7, 7_000, 0),
        (-5_000, 0, 7, 7_000, 0),
        (-5_000, -6_000, 7, 7_000, 1),
        (10**15, 0, 1, 1, 10**15),
    ],
)
def test_days_left_are_whole_days_of_average_charge_above_the_cut_off_level(
    balance_minor: int, cut_at_minor: int, days: int, charge_minor: int, left: int
) -> None:
    """Rounded down, never below zero, and without the rounding of an average in between."""
    use = Use(days=days, energy_wh=0, charge_minor=charge_minor)
    assert days_left(balance_minor, cut_at_minor, use) == left


@pytest.mark.parametrize(("days", "charge_minor"), [(0, 0), (7, 0), (7, -100)])
def test_days_left_are_unknown_without_use(days: int, charge_minor: int) -> None:
    """No closed day, no charge, or one that a subsidy turns into a credit: nothing says when credit ends."""
    assert days_left(50_000, 0, Use(days=days, energy_wh=0, charge_minor=charge_minor)) is None


def test_use_of_a_day_is_the_average_rounded_down() -> None:
    """Before the first closed day there is no average."""
    week = Use(days=7, energy_wh=20, charge_minor=-1)
    assert (week.day_energy_wh, week.day_charge_minor) == (2, -1)
    assert Use(days=0, energy_wh=0, charge_minor=0).day_energy_wh is None


def test_ages_of_debts_meet_without_gap_or_overlap() -> None:
    """Day 7 is the last of the first stretch, day 8 the first of the second, and so on; the clock may stand back."""
    assert [age_place(days) for days in (-1, 0, 7, 8, 30, 31, 90, 91, 4_000)] == [0, 0, 0, 1, 1, 2, 2, 3, 3]


def test_totals_add_debts_by_currency_and_age() -> None:
    """Amounts of two currencies are never one sum; a debt without an alarm has no age."""
    now_ms = 100 * DAY_MS
    ages_ms = {"INR": [now_ms, now_ms - 8 * DAY_MS + 1, now_ms - 8 * DAY_MS, None], "KES": [0]}
    debts = [
        Debt(currency=currency, balance_minor=-10, exhausted_ms=at_ms)
        for currency, instants in ages_ms.items()
        for at_ms in instants
    ]
    totals = BalanceTotals()
    for _ in range(2):
        found = BalanceRange(accounts=9, without_meter=1, plain=2, matching=3, rows=(), debts=tuple(debts))
        totals.add(found, now_ms=now_ms)
    assert (totals.accounts, totals.without_meter, totals.plain, totals.matching, totals.listed) == (18, 2, 4, 6, 0)
    assert totals.debts == {
        "INR": {0: AgeSum(4, -40), 1: AgeSum(2, -20), None: AgeSum(2, -20)},
        "KES": {3: AgeSum(2, -20)},
    }


def test_shards_are_read_as_numbers_and_stretches() -> None:
    """In any order, each once."""
    assert parse_shards("0-31") == tuple(range(32))
    assert parse_shards("16, 3,2-4") == (2, 3, 4, 16)


@pytest.mark.parametrize("text", ["", "32", "0-32", "5-3", "-1", "1-", "1;2", "a", "1,,2", "٣"])
def test_shards_that_are_none_are_refused_in_one_line(text: str) -> None:
    """The message names what was given."""
    with pytest.raises(ReportRefused, match="shards: expected 0 to 31") as refused:
        parse_shards(text)
    assert "\n" not in str(refused.value)
