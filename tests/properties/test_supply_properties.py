"""Alarms and supply follow the balance, whatever way it goes and whatever the scheme permits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import date
from zoneinfo import ZoneInfo

from hypothesis import given, settings
from hypothesis import strategies as st

from billing.calendar import LocalCalendar
from billing.supply import (
    Decision,
    FurtherLevel,
    Levels,
    Mode,
    Raised,
    Supply,
    crosses,
    decide,
    is_exhausted,
    restores_with_minor,
)
from billing.supply_policy import Scheme, earliest_cut_ms
from billing.supply_rule_document import builtin_supply_documents, parse_supply_rules
from tests.properties.books import EXAMPLES_TIMES

BOUNDED = settings(deadline=None, max_examples=120 * EXAMPLES_TIMES)

KOLKATA = LocalCalendar(ZoneInfo("Asia/Kolkata"))
HOUR_MS, DAY_MS = 3_600_000, 86_400_000
# Two weeks from here have Sundays, a second Saturday, and nights.
FIRST_MS = KOLKATA.midnight_ms(date(2026, 11, 5))
BUILTIN = tuple(scheme for text in builtin_supply_documents().values() for scheme in parse_supply_rules(text).schemes)
ANY_TIME = parse_supply_rules(builtin_supply_documents()["punjab"]).default
SCHEMES = (*BUILTIN, *(replace(scheme, limit_w=500) for scheme in BUILTIN if not scheme.exempt))

balances = st.one_of(st.integers(-12, 12), st.integers(-200_000, 200_000))
schemes = st.sampled_from(SCHEMES)
# Any instant, and often one at which a window or a day begins.
instants = st.one_of(
    st.integers(FIRST_MS, FIRST_MS + 14 * DAY_MS),
    st.integers(0, 14 * 48).map(lambda half_hours: FIRST_MS + half_hours * HOUR_MS // 2),
)


@st.composite
def fresh_levels(draw: st.DrawFn) -> Levels:
    """Draw the levels of an account that has not been looked at."""
    further = draw(st.lists(st.integers(-12, 12), max_size=3))
    return Levels(
        mode=draw(st.sampled_from([Mode.PREPAID, Mode.PREPAID, Mode.PREPAID, Mode.POSTPAID])),
        threshold_minor=draw(st.one_of(st.none(), st.integers(-12, 12))),
        emergency_credit_minor=draw(st.integers(0, 6)),
        low_arm=draw(st.integers(0, 3)),
        low_raised=False,
        exhausted_arm=draw(st.integers(0, 3)),
        exhausted_raised=False,
        desired=Supply.ON,
        can_limit=draw(st.booleans()),
        thresholds=tuple(
            FurtherLevel(n=n, level_minor=level_minor, arm=draw(st.integers(0, 3)), raised=False)
            for n, level_minor in enumerate(further, start=1)
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What comes next to an account: a balance at an instant, after a posting or a reading.

    `keeps` names what keeps supply on after the posting, or nothing; None for as it was.
    """

    balance_minor: int
    at_ms: int
    posting: bool
    keeps: str | None


@st.composite
def steps(draw: st.DrawFn) -> list[Step]:
    """Draw what comes to an account, in the order of time."""
    at_ms = sorted(draw(st.lists(instants, max_size=25)))
    found = []
    for each_ms in at_ms:
        posting = draw(st.booleans())
        keeps = draw(st.sampled_from([None, None, "nothing", "hold", "exempt", "absent"])) if posting else None
        found.append(Step(balance_minor=draw(balances), at_ms=each_ms, posting=posting, keeps=keeps))
    return found


def changed(levels: Levels, step: Step) -> Levels:
    """Return the levels that a step finds."""
    if step.keeps is None:
        return levels
    return replace(levels, hold=step.keeps == "hold", exempt=step.keeps == "exempt", absent=step.keeps == "absent")


def decided(levels: Levels, step: Step, scheme: Scheme) -> Decision:
    return decide(
        levels, step.balance_minor, may_rearm=step.posting, scheme=scheme, now_ms=step.at_ms, calendar=KOLKATA
    )


@BOUNDED
@given(levels=fresh_levels(), sequence=st.lists(balances, max_size=30))
def test_decide_over_any_balances_alarms_once_for_each_crossing_and_arm(levels: Levels, sequence: list[int]) -> None:
    """With rises made by postings, each fall to a level rings once, under an arm of its own."""
    first = levels
    rung: list[Raised] = []
    previous: int | None = None
    falls = 0
    cut_at_minor = first.cut_at_minor if first.mode is Mode.PREPAID else None
    rings_at = (first.threshold_minor, cut_at_minor, *(each.level_minor for each in first.thresholds))
    for balance_minor in sequence:
        rises = previous is not None and balance_minor > previous
        step = Step(balance_minor=balance_minor, at_ms=FIRST_MS, posting=rises, keeps=None)
        decision = decided(levels, step, ANY_TIME)
        for level_minor in rings_at:
            was_above = previous is None or (level_minor is not None and previous > level_minor)
            falls += level_minor is not None and was_above and balance_minor <= level_minor
        rung.extend(decision.raised)
        assert len({(alarm.level, alarm.n, alarm.arm) for alarm in rung}) == len(rung) == falls
        assert decision.supply is (None if decision.levels.desired is levels.desired else decision.levels.desired)
        off = first.mode is Mode.PREPAID and balance_minor <= -first.emergency_credit_minor
        assert decision.levels.desired is (Supply.OFF if off else Supply.ON)
        levels, previous = decision.levels, balance_minor


@BOUNDED
@given(levels=fresh_levels(), sequence=steps(), scheme=schemes)
def test_decide_over_any_balances_and_rearms_never_rings_an_arm_twice(
    levels: Levels, sequence: list[Step], scheme: Scheme
) -> None:
    """(level, threshold, arm) is unique even where readings lift the balance; a decision made twice adds nothing."""
    rung: list[tuple[object, int, int]] = []
    for step in sequence:
        before = changed(levels, step)
        decision = decided(before, step, scheme)
        levels = decision.levels
        rung.extend((alarm.level, alarm.n, alarm.arm) for alarm in decision.raised)
        assert len(set(rung)) == len(rung)
        assert levels.low_arm >= before.low_arm
        assert levels.exhausted_arm >= before.exhausted_arm
        for was, will_be in zip(before.thresholds, levels.thresholds, strict=True):
            assert (will_be.n, will_be.level_minor) == (was.n, was.level_minor)
            assert will_be.arm >= was.arm
        again = decided(levels, step, scheme)
        assert (again.levels, again.raised, again.supply, again.waits) == (levels, (), None, decision.waits)


@BOUNDED
@given(levels=fresh_levels(), sequence=steps(), scheme=schemes, reading_minor=balances, part=st.integers(0, 1000))
def test_crosses_is_true_exactly_where_a_reading_changes_something(
    levels: Levels, sequence: list[Step], scheme: Scheme, reading_minor: int, part: int
) -> None:
    """The batch's cheap test misses no account that a reading would change, and names no other.

    After the instant that the last verdict names the calendar acts, with or without a reading: then it need only name
    the account unless it waits.
    """
    waits, until_ms, at_ms = False, None, FIRST_MS
    for step in sequence:
        decision = decided(changed(levels, step), step, scheme)
        levels, waits, until_ms, at_ms = decision.levels, decision.waits, decision.verdict.until_ms, step.at_ms
    end_ms = FIRST_MS + 20 * DAY_MS if until_ms is None else until_ms
    reading = Step(
        balance_minor=reading_minor, at_ms=at_ms + (end_ms - at_ms - 1) * part // 1000, posting=False, keeps=None
    )
    for each in (reading, replace(reading, at_ms=end_ms)):
        decision = decided(levels, each, scheme)
        changes = decision.levels != levels or decision.raised != () or decision.supply is not None
        named = crosses(levels, each.balance_minor, waits=waits)
        if until_ms is None or each.at_ms < until_ms:
            assert named is changes
        else:
            assert changes if named else waits or not changes


@BOUNDED
@given(levels=fresh_levels(), sequence=steps(), scheme=schemes)
def test_supply_is_cut_only_when_exhausted_and_permitted_and_restored_whatever_the_hour(
    levels: Levels, sequence: list[Step], scheme: Scheme
) -> None:
    """Off or limited begins only in a window after the days of grace; with credit, or kept on, it is on at once."""
    exhausted_since_ms: int | None = None
    for step in sequence:
        before = changed(levels, step)
        decision = decided(before, step, scheme)
        exhausted = is_exhausted(before, step.balance_minor)
        exhausted_since_ms = (exhausted_since_ms or step.at_ms) if exhausted else None
        assert decision.levels.exhausted_at_ms == exhausted_since_ms
        assert decision.waits is (exhausted and decision.levels.desired is Supply.ON)
        kept = before.hold or before.exempt or scheme.exempt
        if kept or not exhausted:
            assert decision.levels.desired is Supply.ON
        elif before.desired is not Supply.ON:
            assert decision.supply is None
        else:
            assert exhausted_since_ms is not None
            permitted = earliest_cut_ms(scheme, exhausted_since_ms, step.at_ms, KOLKATA) == step.at_ms
            limits = scheme.limit_w is not None and before.can_limit
            assert decision.supply is ((Supply.LIMITED if limits else Supply.OFF) if permitted else None)
        levels = decision.levels


@BOUNDED
@given(levels=fresh_levels(), balance_minor=balances, scheme=schemes, at_ms=instants)
def test_restores_with_is_the_least_recharge_that_restores(
    levels: Levels, balance_minor: int, scheme: Scheme, at_ms: int
) -> None:
    """That amount turns supply on under any scheme and at any instant; one minor unit less does not."""
    amount_minor = restores_with_minor(levels, balance_minor)
    assert amount_minor >= 0
    cut = decided(levels, Step(balance_minor=balance_minor, at_ms=FIRST_MS, posting=False, keeps=None), ANY_TIME).levels
    paid = Step(balance_minor=balance_minor + amount_minor, at_ms=at_ms, posting=True, keeps=None)
    assert decided(cut, paid, scheme).levels.desired is Supply.ON
    if amount_minor:
        less = replace(paid, balance_minor=paid.balance_minor - 1)
        assert decided(cut, less, ANY_TIME).levels.desired is cut.desired is not Supply.ON
