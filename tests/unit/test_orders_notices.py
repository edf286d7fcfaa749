"""What consumers are told of decisions, and the recharge that is named to them."""

from __future__ import annotations

from dataclasses import replace
from datetime import date

import pytest

from billing.notices import Cut, Exhausted, Facts, Limited, Low, Restored
from billing.prepayment import builtin_rules_text, parse_rules, recharge_to_keep, split_recharge
from billing.supply import FurtherLevel, Levels, Mode, Supply
from billing.supply_policy import Scheme
from db.orders import notices_of, recharge_to_restore, threatens
from db.prepayment import Prepayment
from tests.unit.test_supply import (
    ANY_TIME,
    EMERGENCY,
    EMPTY,
    ESSENTIAL,
    EVENING_MS,
    HAPPY_HOURS,
    NOON_MS,
    QUIET,
    THURSDAY,
    WEDNESDAY,
    decided,
    local,
)

LIMITING = replace(ANY_TIME, limit_w=500)
WARNED = replace(QUIET, low_raised=True)
WAITING = replace(EMPTY, desired=Supply.ON, exhausted_at_ms=EVENING_MS)
ABLE = replace(WARNED, can_limit=True)
LIMITED_SO_FAR = replace(EMPTY, desired=Supply.LIMITED, can_limit=True)
OPENING_MS = local(THURSDAY, "11:00")
# Three whole days after a Wednesday.
GRACE_ENDS_MS = local(date(2026, 11, 15), "00:00")
RESTORES_MINOR = 777
FURTHER = (
    FurtherLevel(n=1, level_minor=3_000, arm=1, raised=False),
    FurtherLevel(n=2, level_minor=8_000, arm=1, raised=False),
)
SEVERAL = replace(QUIET, thresholds=FURTHER)

LOW = Low(balance_minor=-1_500, threshold_minor=5_000)
EXHAUSTED = Exhausted(balance_minor=-1_500, restores_minor=RESTORES_MINOR)
CUT = Cut(balance_minor=-1_500, restores_minor=RESTORES_MINOR, cut_at_ms=OPENING_MS)
LIMITED = Limited(balance_minor=-1_500, restores_minor=RESTORES_MINOR, limit_w=500)


@pytest.mark.parametrize(
    ("levels", "balance_minor", "scheme", "now_ms", "expected"),
    [
        # Nothing, and warnings.
        (QUIET, 5_001, ANY_TIME, NOON_MS, []),
        (QUIET, 4_000, ANY_TIME, NOON_MS, [Low(balance_minor=4_000, threshold_minor=5_000)]),
        (WARNED, 4_000, ANY_TIME, NOON_MS, []),
        # Several thresholds at once are one warning, of the least that was asked for.
        (SEVERAL, 7_000, ANY_TIME, NOON_MS, [Low(balance_minor=7_000, threshold_minor=8_000)]),
        (SEVERAL, 2_000, ANY_TIME, NOON_MS, [Low(balance_minor=2_000, threshold_minor=3_000)]),
        # Exhausted and cut at once are one notice; with a warning on the way, two.
        (WARNED, -1_500, ANY_TIME, NOON_MS, [EXHAUSTED]),
        (QUIET, -1_500, ANY_TIME, NOON_MS, [LOW, EXHAUSTED]),
        # In protected hours the consumer is told until when, and of the cut at the opening.
        (WARNED, -1_500, HAPPY_HOURS, EVENING_MS, [replace(EXHAUSTED, protected_until_ms=OPENING_MS)]),
        (WAITING, -1_500, HAPPY_HOURS, OPENING_MS - 1, []),
        (WAITING, -1_500, HAPPY_HOURS, OPENING_MS, [CUT]),
        (WARNED, -1_500, EMERGENCY, local(WEDNESDAY, "09:00"),
         [replace(EXHAUSTED, protected_until_ms=GRACE_ENDS_MS)]),
        # A limit in the place of a cut, at once or at the opening.
        (ABLE, -1_500, LIMITING, NOON_MS, [LIMITED]),
        (replace(WAITING, can_limit=True), -1_500, replace(HAPPY_HOURS, limit_w=500), OPENING_MS, [LIMITED]),
        # A limit ends with the scheme that had it: as one that is on, cut in a window and supplied in protected hours.
        (LIMITED_SO_FAR, -1_500, ANY_TIME, OPENING_MS, [CUT]),
        (LIMITED_SO_FAR, -1_500, HAPPY_HOURS, EVENING_MS, [Restored(balance_minor=-1_500)]),
        # Nothing threatens these.
        (replace(WARNED, exempt=True), -1_500, ANY_TIME, NOON_MS, []),
        (replace(WARNED, hold=True), -1_500, ANY_TIME, NOON_MS, []),
        (replace(WARNED, absent=True), -1_500, ANY_TIME, NOON_MS, []),
        (replace(WARNED, mode=Mode.POSTPAID), -1_500, ANY_TIME, NOON_MS, []),
        (WARNED, -1_500, ESSENTIAL, NOON_MS, []),
        # The end of a hold or an exemption cuts one that was told of nothing.
        (WAITING, -1_500, ANY_TIME, OPENING_MS, [CUT]),
        # Back on: by credit at any hour, or by what keeps it on.
        (EMPTY, 10, HAPPY_HOURS, EVENING_MS, [Restored(balance_minor=10)]),
        (LIMITED_SO_FAR, 10, LIMITING, NOON_MS, [Restored(balance_minor=10)]),
        (replace(EMPTY, hold=True), -1_500, ANY_TIME, NOON_MS, [Restored(balance_minor=-1_500)]),
        # Off and still exhausted, or protected and paid in time: nothing has changed for anybody.
        (EMPTY, -1_500, ANY_TIME, NOON_MS, []),
        (WAITING, 10, HAPPY_HOURS, EVENING_MS, []),
    ],
)  # fmt: skip
def test_notices_of_a_decision_tell_what_it_changes_for_the_consumer(
    levels: Levels, balance_minor: int, scheme: Scheme, now_ms: int, expected: list[Facts]
) -> None:
    """One notice for each thing that happens to a consumer, none for what does not touch the supply."""
    decision = decided(levels, balance_minor, scheme=scheme, now_ms=now_ms)
    told = notices_of(
        decision, balance_minor, restores_minor=RESTORES_MINOR, now_ms=now_ms, limit_w=scheme.limit_w or 0
    )
    assert told == expected
    # Whoever writes them looks up what restores only where it is named.
    assert threatens(decision) or not any(isinstance(each, Exhausted | Cut | Limited) for each in told)


def test_evening_exhausted_in_protected_hours_is_told_twice_until_it_is_cut() -> None:
    """Exhausted with the hour of the opening, then the cut at that hour; readings between tell nothing."""
    levels, told = WARNED, []
    for now_ms in (EVENING_MS, EVENING_MS + 60_000, OPENING_MS - 1, OPENING_MS, OPENING_MS + 60_000):
        decision = decided(levels, -1_500, scheme=HAPPY_HOURS, now_ms=now_ms)
        told += notices_of(decision, -1_500, restores_minor=RESTORES_MINOR, now_ms=now_ms, limit_w=0)
        levels = decision.levels
    assert told == [replace(EXHAUSTED, protected_until_ms=OPENING_MS), CUT]


@pytest.mark.parametrize("arrears_minor", [0, 100_000])
def test_recharge_to_restore_leaves_enough_after_arrears(arrears_minor: int) -> None:
    """What is named restores; one paisa less does not. Nothing is named to one who is on."""
    rules = parse_rules(builtin_rules_text()).default
    prepayment = Prepayment(category="DS", rules=rules, arrears_minor=arrears_minor, absent_until=None)
    recharge_minor = recharge_to_restore(EMPTY, -60_000, prepayment)
    assert recharge_minor == recharge_to_keep(59_001, arrears_minor, rules)
    for less_minor, supply in ((0, Supply.ON), (1, Supply.OFF)):
        kept_minor = split_recharge(recharge_minor - less_minor, arrears_minor, rules).kept_minor
        assert decided(EMPTY, -60_000 + kept_minor, may_rearm=True).levels.desired is supply
    assert recharge_to_restore(EMPTY, -999, prepayment) == 0
