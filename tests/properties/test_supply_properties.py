"""Alarms and supply follow the balance, whatever way it goes."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from billing.supply import Levels, Mode, Raised, Supply, crosses, decide, desired_supply, restores_with_minor
from tests.properties.books import EXAMPLES_TIMES

BOUNDED = settings(deadline=None, max_examples=120 * EXAMPLES_TIMES)

balances = st.one_of(st.integers(-12, 12), st.integers(-200_000, 200_000))


@st.composite
def fresh_levels(draw: st.DrawFn) -> Levels:
    """Draw the levels of an account that has not been looked at."""
    return Levels(
        mode=draw(st.sampled_from(Mode)),
        threshold_minor=draw(st.one_of(st.none(), st.integers(-12, 12))),
        emergency_credit_minor=draw(st.integers(0, 6)),
        low_arm=draw(st.integers(0, 3)),
        low_raised=False,
        exhausted_arm=draw(st.integers(0, 3)),
        exhausted_raised=False,
        desired=Supply.ON,
    )


@BOUNDED
@given(levels=fresh_levels(), sequence=st.lists(balances, max_size=30))
def test_decide_over_any_balances_alarms_once_for_each_crossing_and_arm(levels: Levels, sequence: list[int]) -> None:
    """With rises made by postings, each fall to a level rings once, under an arm of its own."""
    first = levels
    rung: list[Raised] = []
    previous: int | None = None
    falls = 0
    for balance_minor in sequence:
        rises = previous is not None and balance_minor > previous
        decision = decide(levels, balance_minor, may_rearm=rises)
        cut_at_minor = first.cut_at_minor if first.mode is Mode.PREPAID else None
        for level_minor in (first.threshold_minor, cut_at_minor):
            was_above = previous is None or (level_minor is not None and previous > level_minor)
            falls += level_minor is not None and was_above and balance_minor <= level_minor
        rung.extend(decision.raised)
        assert len({(alarm.level, alarm.arm) for alarm in rung}) == len(rung) == falls
        assert decision.supply is (None if decision.levels.desired is levels.desired else decision.levels.desired)
        exhausted = balance_minor <= -first.emergency_credit_minor
        off = first.mode is Mode.PREPAID and exhausted
        assert decision.levels.desired is (Supply.OFF if off else Supply.ON)
        levels, previous = decision.levels, balance_minor


@BOUNDED
@given(levels=fresh_levels(), sequence=st.lists(st.tuples(balances, st.booleans()), max_size=30))
def test_decide_over_any_balances_and_rearms_never_rings_an_arm_twice(
    levels: Levels, sequence: list[tuple[int, bool]]
) -> None:
    """(level, arm) is unique even where readings lift the balance, and doing it twice changes nothing more."""
    rung: list[tuple[object, int]] = []
    for balance_minor, may_rearm in sequence:
        before = levels
        decision = decide(levels, balance_minor, may_rearm=may_rearm)
        levels = decision.levels
        rung.extend((alarm.level, alarm.arm) for alarm in decision.raised)
        assert len(set(rung)) == len(rung)
        assert levels.low_arm >= before.low_arm
        assert levels.exhausted_arm >= before.exhausted_arm
        again = decide(levels, balance_minor, may_rearm=may_rearm)
        assert (again.levels, again.raised, again.supply) == (levels, (), None)


@BOUNDED
@given(levels=fresh_levels(), flags=st.tuples(st.booleans(), st.booleans()), off=st.booleans(), balance_minor=balances)
def test_crosses_is_true_exactly_where_a_reading_changes_something(
    levels: Levels, flags: tuple[bool, bool], off: bool, balance_minor: int
) -> None:
    """The batch's cheap test misses no account that a reading would change, and names no other."""
    state = replace(levels, low_raised=flags[0], exhausted_raised=flags[1], desired=Supply.OFF if off else Supply.ON)
    decision = decide(state, balance_minor, may_rearm=False)
    changes = decision.levels != state or decision.raised != () or decision.supply is not None
    assert crosses(state, balance_minor) is changes


@BOUNDED
@given(levels=fresh_levels(), balance_minor=balances)
def test_restores_with_is_the_least_recharge_that_restores(levels: Levels, balance_minor: int) -> None:
    """That amount turns supply on, one minor unit less does not."""
    amount_minor = restores_with_minor(levels, balance_minor)
    assert amount_minor >= 0
    assert desired_supply(levels, balance_minor + amount_minor) is Supply.ON
    if amount_minor:
        assert desired_supply(levels, balance_minor + amount_minor - 1) is Supply.OFF
