"""Alarm levels, exhaustion and restoration, at the levels themselves; what keeps an exhausted account supplied."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, datetime
from zoneinfo import ZoneInfo

import pytest

from billing.calendar import LocalCalendar, to_ms
from billing.supply import (
    Decision,
    FurtherLevel,
    LevelName,
    Levels,
    Mode,
    Raised,
    Supply,
    crosses,
    decide,
    is_exhausted,
    restores_with_minor,
)
from billing.supply_policy import Reason, Scheme
from billing.supply_rule_document import builtin_supply_documents, parse_supply_rules

KOLKATA = LocalCalendar(ZoneInfo("Asia/Kolkata"))
PUNJAB = parse_supply_rules(builtin_supply_documents()["punjab"])
ANY_TIME = PUNJAB.of("DS")
ESSENTIAL = PUNJAB.of("HOSPITAL")
HAPPY_HOURS = parse_supply_rules(builtin_supply_documents()["bihar"]).default
EMERGENCY = parse_supply_rules(builtin_supply_documents()["uttar-pradesh"]).default
WEDNESDAY, THURSDAY = date(2026, 11, 11), date(2026, 11, 12)

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


def local(day: date, clock: str) -> int:
    """Return the instant at which the clock in Asia/Kolkata shows a time."""
    return to_ms(datetime.fromisoformat(f"{day}T{clock}").replace(tzinfo=KOLKATA.zone))


NOON_MS, EVENING_MS = local(WEDNESDAY, "12:00"), local(WEDNESDAY, "20:00")
EMPTY = replace(QUIET, low_raised=True, exhausted_raised=True, desired=Supply.OFF, exhausted_at_ms=NOON_MS)
FURTHER = (
    FurtherLevel(n=1, level_minor=3_000, arm=4, raised=False),
    FurtherLevel(n=2, level_minor=8_000, arm=1, raised=False),
)


def decided(
    levels: Levels, balance_minor: int, *, may_rearm: bool = False, scheme: Scheme = ANY_TIME, now_ms: int = NOON_MS
) -> Decision:
    """Decide in Asia/Kolkata, by default on a reading at noon and where the scheme permits a cut-off at any time."""
    return decide(levels, balance_minor, may_rearm=may_rearm, scheme=scheme, now_ms=now_ms, calendar=KOLKATA)


# Exhaustion and supply ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("balance_minor", "supply"),
    [(1, Supply.ON), (0, Supply.ON), (-999, Supply.ON), (-1_000, Supply.OFF), (-1_001, Supply.OFF)],
)
def test_supply_of_a_prepaid_account_is_off_at_the_end_of_emergency_credit(balance_minor: int, supply: Supply) -> None:
    """At the level itself credit is exhausted."""
    assert is_exhausted(QUIET, balance_minor) is (supply is Supply.OFF)
    assert decided(QUIET, balance_minor).levels.desired is supply


def test_supply_without_emergency_credit_is_off_at_zero() -> None:
    """Nothing left is exhausted, one paisa is not."""
    levels = replace(QUIET, emergency_credit_minor=0)
    assert decided(levels, 0).levels.desired is Supply.OFF
    assert decided(levels, 1).levels.desired is Supply.ON


def test_supply_of_a_postpaid_account_is_always_on() -> None:
    """A debt neither exhausts nor cuts one who pays later."""
    decision = decided(replace(QUIET, mode=Mode.POSTPAID), -(10**9))
    assert (decision.raised, decision.supply, decision.waits) == ((LOW,), None, False)
    assert decision.verdict.reason is Reason.POSTPAID
    assert decision.levels.exhausted_at_ms is None


def test_absent_consumer_with_a_deposit_is_never_exhausted() -> None:
    """Supply is not cut during a long absence that fixed charges were deposited for (R-23)."""
    absent = replace(QUIET, absent=True)
    assert not is_exhausted(absent, -(10**9))
    decision = decided(absent, -1_000)
    assert (decision.raised, decision.supply, decision.waits) == ((LOW,), None, False)
    assert restores_with_minor(absent, -(10**9)) == 0


def test_end_of_an_absence_cuts_an_exhausted_account_and_raises_its_alarm() -> None:
    """What the absence held back is decided as soon as it is over."""
    decision = decided(replace(QUIET, low_raised=True), -1_000, may_rearm=True)
    assert (decision.raised, decision.supply) == ((EXHAUSTED,), Supply.OFF)


def test_beginning_of_an_absence_restores_an_account_that_was_cut() -> None:
    """The deposit alone brings supply back, and the exhaustion may ring again afterwards."""
    decision = decided(replace(EMPTY, absent=True), -2_000, may_rearm=True)
    assert (decision.supply, decision.levels.exhausted_raised) == (Supply.ON, False)
    assert decision.levels.exhausted_arm == EMPTY.exhausted_arm + 1


@pytest.mark.parametrize(
    ("change", "scheme", "reason"),
    [
        ({"exempt": True}, ANY_TIME, Reason.EXEMPT_ACCOUNT),
        ({"hold": True}, ANY_TIME, Reason.HELD),
        ({}, ESSENTIAL, Reason.EXEMPT_SCHEME),
    ],
)
def test_exempt_or_held_account_is_exhausted_and_supplied(
    change: dict[str, bool], scheme: Scheme, reason: Reason
) -> None:
    """The alarm rings, since credit is gone; supply stays, comes back if it was cut, and is cut when that ends."""
    kept = replace(QUIET, **change)  # type: ignore[arg-type]  # Each a flag.
    decision = decided(kept, -1_000, scheme=scheme)
    assert (decision.raised, decision.supply, decision.waits) == ((LOW, EXHAUSTED), None, True)
    assert (decision.verdict.reason, decision.verdict.until_ms) == (reason, None)
    back = decided(replace(EMPTY, **change), -1_000, scheme=scheme)  # type: ignore[arg-type]  # Each a flag.
    assert (back.supply, back.raised) == (Supply.ON, ())
    over = decided(replace(decision.levels, exempt=False, hold=False), -1_000)
    assert (over.supply, over.raised, over.verdict.reason) == (Supply.OFF, (), Reason.CUT)


def test_exhausted_account_in_protected_hours_waits_for_the_opening() -> None:
    """The alarm rings in the evening, supply is cut when the scheme permits it, by the clock alone."""
    evening = decided(QUIET, -1_000, scheme=HAPPY_HOURS, now_ms=EVENING_MS)
    opens_ms = local(THURSDAY, "11:00")
    assert (evening.raised, evening.supply, evening.waits) == ((LOW, EXHAUSTED), None, True)
    assert (evening.verdict.reason, evening.verdict.until_ms) == (Reason.PROTECTED, opens_ms)
    before = decided(evening.levels, -9_000, scheme=HAPPY_HOURS, now_ms=opens_ms - 1)
    assert before == replace(evening, raised=())
    opening = decided(evening.levels, -9_000, scheme=HAPPY_HOURS, now_ms=opens_ms)
    assert (opening.raised, opening.supply, opening.waits) == ((), Supply.OFF, False)


def test_protected_account_is_decided_again_after_a_posting_and_not_by_readings() -> None:
    """Too small a recharge at noon finds the window open: the cut-off need not wait for the calendar."""
    evening = decided(QUIET, -1_000, scheme=HAPPY_HOURS, now_ms=EVENING_MS)
    assert not crosses(evening.levels, -5_000, waits=evening.waits)
    paid = decided(evening.levels, -1_000, may_rearm=True, scheme=HAPPY_HOURS, now_ms=EVENING_MS + 60_000)
    assert (paid.levels, paid.supply, paid.waits) == (evening.levels, None, True)
    noon_ms = local(THURSDAY, "12:00")
    assert decided(evening.levels, -1_000, may_rearm=True, scheme=HAPPY_HOURS, now_ms=noon_ms).supply is Supply.OFF


def test_days_of_grace_are_counted_from_the_exhaustion_that_was_found() -> None:
    """Three whole days after Wednesday noon, then the next window, Monday's: later postings do not begin them anew."""
    decision = decided(QUIET, -1_000, scheme=EMERGENCY)
    ends_ms = local(date(2026, 11, 15), "00:00")
    assert (decision.verdict.reason, decision.verdict.until_ms) == (Reason.EMERGENCY_DAYS, ends_ms)
    levels = decided(decision.levels, -2_000, may_rearm=True, scheme=EMERGENCY, now_ms=local(THURSDAY, "09:00")).levels
    assert levels.exhausted_at_ms == NOON_MS
    opens_ms = local(date(2026, 11, 16), "08:00")
    ended = decided(levels, -2_000, scheme=EMERGENCY, now_ms=ends_ms)
    assert (ended.supply, ended.verdict.reason, ended.verdict.until_ms) == (None, Reason.PROTECTED, opens_ms)
    assert decided(ended.levels, -2_000, scheme=EMERGENCY, now_ms=opens_ms).supply is Supply.OFF


def test_days_of_grace_begin_anew_with_each_exhaustion() -> None:
    """Credit ends the grace that ran; the next exhaustion has its own."""
    exhausted = decided(QUIET, -1_000, scheme=EMERGENCY).levels
    paid = decided(exhausted, 0, may_rearm=True, scheme=EMERGENCY, now_ms=NOON_MS + 1).levels
    assert paid.exhausted_at_ms is None
    later_ms = local(date(2026, 11, 20), "12:00")
    again = decided(paid, -1_000, scheme=EMERGENCY, now_ms=later_ms)
    assert again.levels.exhausted_at_ms == later_ms
    assert again.verdict.until_ms == local(date(2026, 11, 24), "00:00")


def test_instant_of_exhaustion_is_set_once_and_cleared_with_credit() -> None:
    """Whoever looks again later leaves it; a reading that lifts the balance clears it as a recharge does."""
    first = decided(QUIET, -1_000).levels
    assert first.exhausted_at_ms == NOON_MS
    for may_rearm in (False, True):
        assert decided(first, -7_000, may_rearm=may_rearm, now_ms=EVENING_MS).levels.exhausted_at_ms == NOON_MS
        assert decided(first, -999, may_rearm=may_rearm, now_ms=EVENING_MS).levels.exhausted_at_ms is None


def test_scheme_with_a_limit_limits_where_the_meter_is_able_to() -> None:
    """A small load stays; credit brings the whole back, and a meter that cannot limit is cut."""
    limiting = replace(ANY_TIME, limit_w=500)
    able = replace(QUIET, can_limit=True)
    decision = decided(able, -1_000, scheme=limiting)
    assert (decision.supply, decision.verdict.reason, decision.waits) == (Supply.LIMITED, Reason.LIMITED, False)
    limited = decision.levels
    assert not crosses(limited, -5_000, waits=False)
    assert decided(limited, -5_000, may_rearm=True, scheme=limiting).supply is None
    assert crosses(limited, -999, waits=False)
    assert decided(limited, -999, scheme=limiting).supply is Supply.ON
    assert decided(QUIET, -1_000, scheme=limiting).supply is Supply.OFF


@pytest.mark.parametrize("scheme", [ANY_TIME, HAPPY_HOURS, EMERGENCY])
@pytest.mark.parametrize("may_rearm", [False, True])
def test_credit_restores_at_any_hour_under_any_scheme(scheme: Scheme, may_rearm: bool) -> None:
    """Windows and days of grace are for cutting, never for restoring."""
    for now_ms in (NOON_MS, EVENING_MS, local(date(2026, 11, 15), "03:00")):
        decision = decided(EMPTY, -999, may_rearm=may_rearm, scheme=scheme, now_ms=now_ms)
        assert (decision.supply, decision.verdict.reason) == (Supply.ON, Reason.CREDIT)


# Alarms ------------------------------------------------------------------------------------------------------------


def test_decide_above_every_level_changes_nothing() -> None:
    """A comfortable balance is silent."""
    decision = decided(QUIET, 5_001, may_rearm=True)
    assert (decision.levels, decision.raised, decision.supply, decision.waits) == (QUIET, (), None, False)


def test_decide_at_the_threshold_raises_the_low_alarm_once() -> None:
    """The level itself counts as low; a second look is silent."""
    first = decided(QUIET, 5_000)
    assert first.raised == (LOW,)
    assert first.levels == replace(QUIET, low_raised=True)
    assert decided(first.levels, 4_000).raised == ()


def test_decide_from_comfort_to_exhaustion_raises_both_and_cuts() -> None:
    """One reading may cross every level."""
    decision = decided(QUIET, -1_000)
    assert decision.raised == (LOW, EXHAUSTED)
    assert decision.supply is Supply.OFF
    assert decision.levels == EMPTY


def test_decide_after_a_recharge_restores_and_rearms_both_levels() -> None:
    """A posting that lifts the balance above a level opens its next arm."""
    decision = decided(EMPTY, 5_001, may_rearm=True)
    assert decision.raised == ()
    assert decision.supply is Supply.ON
    assert decision.levels == replace(QUIET, low_arm=2, exhausted_arm=8)


def test_decide_after_a_small_recharge_restores_but_stays_low() -> None:
    """Between the levels only exhaustion is armed again."""
    decision = decided(EMPTY, -999, may_rearm=True)
    assert decision.supply is Supply.ON
    assert decision.levels == replace(QUIET, low_raised=True, exhausted_arm=8)


def test_decide_after_a_recharge_that_leaves_a_debt_keeps_supply_off() -> None:
    """Not enough is not enough."""
    decision = decided(EMPTY, -1_000, may_rearm=True)
    assert (decision.levels, decision.raised, decision.supply) == (EMPTY, (), None)


def test_decide_on_a_reading_that_lifts_the_balance_restores_without_rearming() -> None:
    """Supply follows the balance; only a posting lets the same alarm ring again."""
    decision = decided(EMPTY, 6_000)
    assert decision.supply is Supply.ON
    assert decision.levels == replace(EMPTY, desired=Supply.ON, exhausted_at_ms=None)
    again = decided(decision.levels, -2_000)
    assert again.raised == ()
    assert again.supply is Supply.OFF


def test_decide_after_rearming_rings_under_the_next_arm() -> None:
    """The key (level, arm) is new for every fall."""
    rearmed = decided(EMPTY, 6_000, may_rearm=True).levels
    decision = decided(rearmed, -1_000)
    assert decision.raised == (replace(LOW, arm=2), replace(EXHAUSTED, arm=8))


def test_decide_with_a_threshold_set_above_the_balance_rings_at_once() -> None:
    """A new threshold is a crossing of its own, even under an alarm that rang for the old one."""
    raised = decided(QUIET, 4_000).levels
    lower = decided(replace(raised, threshold_minor=1_000), 4_000, may_rearm=True)
    assert (lower.raised, lower.levels.low_arm) == ((), 2)
    higher = decided(replace(lower.levels, threshold_minor=4_500), 4_000, may_rearm=True)
    assert higher.raised == (Raised(level=LevelName.LOW, arm=2, level_minor=4_500),)


def test_decide_without_a_threshold_warns_only_of_exhaustion() -> None:
    """None means no warning before."""
    levels = replace(QUIET, threshold_minor=None)
    assert levels.warn_at_minor is None
    assert decided(levels, -999).raised == ()
    assert decided(levels, -1_000).raised == (EXHAUSTED,)


def test_decide_with_a_threshold_taken_away_rearms_the_low_alarm() -> None:
    """One that rang for a threshold that is gone does not silence the next threshold."""
    levels = replace(QUIET, threshold_minor=None, low_raised=True)
    assert decided(levels, 10, may_rearm=True).levels == replace(levels, low_raised=False, low_arm=2)


def test_further_thresholds_ring_each_at_its_own_balance_and_once() -> None:
    """8,000, the meter's 5,000, then 3,000: each rings under its own number and arm, and no other with it."""
    levels, rung = replace(QUIET, thresholds=FURTHER), []
    for balance_minor, warns_next in ((8_001, 8_000), (8_000, 5_000), (6_000, 5_000), (5_000, 3_000), (2_000, None)):
        decision = decided(levels, balance_minor)
        levels = decision.levels
        rung.append(decision.raised)
        assert levels.warn_at_minor == warns_next
    second = Raised(level=LevelName.LOW, arm=1, level_minor=8_000, n=2)
    first = Raised(level=LevelName.LOW, arm=4, level_minor=3_000, n=1)
    assert rung == [(), (second,), (), (LOW,), (first,)]


def test_further_thresholds_are_armed_again_by_a_posting_above_them() -> None:
    """A recharge to 6,000 arms the two below it; a reading that lifts the balance arms none."""
    rung = decided(replace(QUIET, thresholds=FURTHER), 1_000).levels
    assert [each.raised for each in rung.thresholds] == [True, True]
    assert decided(rung, 6_000).levels == rung
    armed = decided(rung, 6_000, may_rearm=True).levels
    assert (armed.low_raised, armed.low_arm) == (False, 2)
    assert armed.thresholds == (replace(FURTHER[0], arm=5), replace(FURTHER[1], raised=True))


# What a batch asks of each account ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("levels", "balance_minor", "waits", "expected"),
    [
        (QUIET, 5_001, False, False),
        (QUIET, 5_000, False, True),
        (replace(QUIET, low_raised=True), 5_000, False, False),
        (replace(QUIET, low_raised=True), -1_000, False, True),
        (replace(QUIET, thresholds=FURTHER), 8_000, False, True),
        (replace(QUIET, thresholds=FURTHER), 8_001, False, False),
        (replace(QUIET, low_raised=True, thresholds=FURTHER[:1]), 3_001, False, False),
        (replace(QUIET, low_raised=True, thresholds=(replace(FURTHER[0], raised=True),)), 3_000, False, False),
        (EMPTY, -1_000, False, False),
        (EMPTY, -999, False, True),
        (replace(EMPTY, desired=Supply.LIMITED), -1_000, False, False),
        (replace(EMPTY, desired=Supply.LIMITED), -999, False, True),
        # Decided to wait: exhausted and on stays; credit ends the exhaustion. Not decided yet: to be looked at.
        (replace(EMPTY, desired=Supply.ON), -1_000, True, False),
        (replace(EMPTY, desired=Supply.ON), -999, True, True),
        (replace(EMPTY, desired=Supply.ON), -1_000, False, True),
        (replace(EMPTY, desired=Supply.ON, thresholds=FURTHER[:1]), -1_000, True, True),
        (replace(EMPTY, mode=Mode.POSTPAID, desired=Supply.ON), -1_000, False, False),
    ],
)
def test_crosses_is_true_only_where_a_reading_would_change_something(
    levels: Levels, balance_minor: int, waits: bool, expected: bool
) -> None:
    """Alarms not yet raised, supply not as desired, an exhaustion not decided; nothing else."""
    assert crosses(levels, balance_minor, waits=waits) is expected


@pytest.mark.parametrize(("balance_minor", "amount_minor"), [(-999, 0), (10, 0), (-1_000, 1), (-5_000, 4_001)])
def test_restores_with_the_least_amount_above_exhaustion(balance_minor: int, amount_minor: int) -> None:
    """One paisa above the level is enough, and nothing is asked of one who is on."""
    assert restores_with_minor(QUIET, balance_minor) == amount_minor


def test_restores_with_nothing_for_a_postpaid_account() -> None:
    """One who pays later is never asked for money to be on."""
    assert restores_with_minor(replace(QUIET, mode=Mode.POSTPAID), -(10**6)) == 0
