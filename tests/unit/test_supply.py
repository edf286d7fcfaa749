"""Alarm levels, exhaustion and restoration, at the levels themselves."""

from __future__ import annotations

from dataclasses import replace

import pytest

from billing.supply import (
    LevelName,
    Levels,
    Mode,
    Raised,
    Supply,
    crosses,
    decide,
    desired_supply,
    restores_with_minor,
)

QUIET = Levels(
    mode=Mode.PREPAID,
    threshold_minor=5_000,
    emergency_credit_minor=1_000,
    low_arm=1,
    low_raised=False,
    exhausted_arm=7,
    exhausted_raised=False,
    desired=Supply.ON,
)
LOW = Raised(level=LevelName.LOW, arm=1, level_minor=5_000)
EXHAUSTED = Raised(level=LevelName.EXHAUSTED, arm=7, level_minor=-1_000)
EMPTY = replace(QUIET, low_raised=True, exhausted_raised=True, desired=Supply.OFF)


@pytest.mark.parametrize(
    ("balance_minor", "supply"),
    [(1, Supply.ON), (0, Supply.ON), (-999, Supply.ON), (-1_000, Supply.OFF), (-1_001, Supply.OFF)],
)
def test_desired_supply_of_a_prepaid_account_is_off_at_the_end_of_emergency_credit(
    balance_minor: int, supply: Supply
) -> None:
    """At the level itself credit is exhausted."""
    assert desired_supply(QUIET, balance_minor) is supply


def test_desired_supply_without_emergency_credit_is_off_at_zero() -> None:
    """Nothing left is exhausted, one paisa is not."""
    levels = replace(QUIET, emergency_credit_minor=0)
    assert desired_supply(levels, 0) is Supply.OFF
    assert desired_supply(levels, 1) is Supply.ON


def test_desired_supply_of_a_postpaid_account_is_always_on() -> None:
    """A debt does not cut one who pays later."""
    assert desired_supply(replace(QUIET, mode=Mode.POSTPAID), -(10**9)) is Supply.ON


def test_desired_supply_of_an_absent_consumer_with_a_deposit_is_on() -> None:
    """Supply is not cut during a long absence that fixed charges were deposited for (R-23)."""
    absent = replace(QUIET, absent=True)
    assert desired_supply(absent, -(10**9)) is Supply.ON
    decision = decide(absent, -1_000, may_rearm=False)
    assert (decision.raised, decision.supply) == ((LOW,), None)
    assert restores_with_minor(absent, -(10**9)) == 0


def test_end_of_an_absence_cuts_an_exhausted_account_and_raises_its_alarm() -> None:
    """What the absence held back is decided as soon as it is over."""
    decision = decide(replace(QUIET, low_raised=True), -1_000, may_rearm=True)
    assert (decision.raised, decision.supply) == ((EXHAUSTED,), Supply.OFF)


def test_beginning_of_an_absence_restores_an_account_that_was_cut() -> None:
    """The deposit alone brings supply back, and the exhaustion may ring again afterwards."""
    decision = decide(replace(EMPTY, absent=True), -2_000, may_rearm=True)
    assert (decision.supply, decision.levels.exhausted_raised) == (Supply.ON, False)
    assert decision.levels.exhausted_arm == EMPTY.exhausted_arm + 1


def test_decide_above_every_level_changes_nothing() -> None:
    """A comfortable balance is silent."""
    decision = decide(QUIET, 5_001, may_rearm=True)
    assert (decision.levels, decision.raised, decision.supply) == (QUIET, (), None)


def test_decide_at_the_threshold_raises_the_low_alarm_once() -> None:
    """The level itself counts as low; a second look is silent."""
    first = decide(QUIET, 5_000, may_rearm=False)
    assert first.raised == (LOW,)
    assert first.levels == replace(QUIET, low_raised=True)
    assert decide(first.levels, 4_000, may_rearm=False).raised == ()


def test_decide_from_comfort_to_exhaustion_raises_both_and_cuts() -> None:
    """One reading may cross every level."""
    decision = decide(QUIET, -1_000, may_rearm=False)
    assert decision.raised == (LOW, EXHAUSTED)
    assert decision.supply is Supply.OFF
    assert decision.levels == EMPTY


def test_decide_after_a_recharge_restores_and_rearms_both_levels() -> None:
    """A posting that lifts the balance above a level opens its next arm."""
    decision = decide(EMPTY, 5_001, may_rearm=True)
    assert decision.raised == ()
    assert decision.supply is Supply.ON
    assert decision.levels == replace(QUIET, low_arm=2, exhausted_arm=8)


def test_decide_after_a_small_recharge_restores_but_stays_low() -> None:
    """Between the levels only exhaustion is armed again."""
    decision = decide(EMPTY, -999, may_rearm=True)
    assert decision.supply is Supply.ON
    assert decision.levels == replace(QUIET, low_raised=True, exhausted_arm=8)


def test_decide_after_a_recharge_that_leaves_a_debt_keeps_supply_off() -> None:
    """Not enough is not enough."""
    decision = decide(EMPTY, -1_000, may_rearm=True)
    assert (decision.levels, decision.raised, decision.supply) == (EMPTY, (), None)


def test_decide_on_a_reading_that_lifts_the_balance_restores_without_rearming() -> None:
    """Supply follows the balance; only a posting lets the same alarm ring again."""
    decision = decide(EMPTY, 6_000, may_rearm=False)
    assert decision.supply is Supply.ON
    assert decision.levels == replace(EMPTY, desired=Supply.ON)
    again = decide(decision.levels, -2_000, may_rearm=False)
    assert again.raised == ()
    assert again.supply is Supply.OFF


def test_decide_after_rearming_rings_under_the_next_arm() -> None:
    """The key (level, arm) is new for every fall."""
    rearmed = decide(EMPTY, 6_000, may_rearm=True).levels
    decision = decide(rearmed, -1_000, may_rearm=False)
    assert decision.raised == (replace(LOW, arm=2), replace(EXHAUSTED, arm=8))


def test_decide_with_a_threshold_set_above_the_balance_rings_at_once() -> None:
    """A new threshold is a crossing of its own, even under an alarm that rang for the old one."""
    raised = decide(QUIET, 4_000, may_rearm=False).levels
    lower = decide(replace(raised, threshold_minor=1_000), 4_000, may_rearm=True)
    assert (lower.raised, lower.levels.low_arm) == ((), 2)
    higher = decide(replace(lower.levels, threshold_minor=4_500), 4_000, may_rearm=True)
    assert higher.raised == (Raised(level=LevelName.LOW, arm=2, level_minor=4_500),)


def test_decide_without_a_threshold_warns_only_of_exhaustion() -> None:
    """None means no warning before."""
    levels = replace(QUIET, threshold_minor=None)
    assert decide(levels, -999, may_rearm=False).raised == ()
    assert decide(levels, -1_000, may_rearm=False).raised == (EXHAUSTED,)


def test_decide_with_a_threshold_taken_away_rearms_the_low_alarm() -> None:
    """One that rang for a threshold that is gone does not silence the next threshold."""
    levels = replace(QUIET, threshold_minor=None, low_raised=True)
    assert decide(levels, 10, may_rearm=True).levels == replace(levels, low_raised=False, low_arm=2)


@pytest.mark.parametrize(
    ("levels", "balance_minor", "expected"),
    [
        (QUIET, 5_001, False),
        (QUIET, 5_000, True),
        (replace(QUIET, low_raised=True), 5_000, False),
        (replace(QUIET, low_raised=True), -1_000, True),
        (EMPTY, -1_000, False),
        (EMPTY, -999, True),
        (replace(EMPTY, desired=Supply.ON), -1_000, True),
        (replace(EMPTY, mode=Mode.POSTPAID, desired=Supply.ON), -1_000, False),
    ],
)
def test_crosses_is_true_only_where_a_reading_would_change_something(
    levels: Levels, balance_minor: int, expected: bool
) -> None:
    """Alarms not yet raised and supply not as desired; nothing else."""
    assert crosses(levels, balance_minor) is expected


@pytest.mark.parametrize(("balance_minor", "amount_minor"), [(-999, 0), (10, 0), (-1_000, 1), (-5_000, 4_001)])
def test_restores_with_the_least_amount_above_exhaustion(balance_minor: int, amount_minor: int) -> None:
    """One paisa above the level is enough, and nothing is asked of one who is on."""
    assert restores_with_minor(QUIET, balance_minor) == amount_minor


def test_restores_with_nothing_for_a_postpaid_account() -> None:
    """One who pays later is never asked for money to be on."""
    assert restores_with_minor(replace(QUIET, mode=Mode.POSTPAID), -(10**6)) == 0
