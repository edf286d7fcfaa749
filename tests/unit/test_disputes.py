"""Cases, their clocks and rules, comparisons and proposals of disputes, as pure values."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.calendar import LocalCalendar, to_ms
from billing.correction import Fault, PercentError, SameDaysLastYear, StatedEnergy, require_permitted
from billing.disputes.banking import MonthFlow, bank, overhaul_bank
from billing.disputes.case import (
    HOUR_MS,
    Area,
    Case,
    CaseKind,
    CaseRefused,
    Decision,
    State,
    Step,
    StepKind,
    Verdict,
    clocks,
    due_ms,
    opened,
    paired_until_ms,
    taken,
)
from billing.disputes.comparison import Pairing, compare, error_of, percent_text, verdict_of
from billing.disputes.proposal import Asked, overhaul_of
from billing.disputes.rules import CaseRulesError, builtin_case_documents, builtin_case_rules, parse_case_rules
from billing.running import Point

CALENDAR = LocalCalendar(ZoneInfo("Asia/Kolkata"))
RULES = builtin_case_rules()
T0 = to_ms(datetime(2026, 4, 1, 6, tzinfo=UTC))
HALF_HOUR = 1_800_000
TEXT = builtin_case_documents()["punjab"]


def step(kind: StepKind, hours: int = 1, by: str = "R. Kaur", **more: object) -> Step:
    return Step(kind=kind, at_ms=T0 + hours * HOUR_MS, by=by, **more)  # type: ignore[arg-type]  # As each test says.


def case(kind: CaseKind, *steps: Step, area: Area = Area.URBAN) -> Case:
    found = opened(kind, area, at_ms=T0, by="R. Kaur")
    for each in steps:
        found = taken(found, each)
    return found


def test_tested_meter_goes_from_complaint_to_closed_by_way_of_all_tests() -> None:
    """Check meter, comparison, laboratory, third party; the last test decides; proposed by one, approved by another."""
    walk = [
        (step(StepKind.INSTALL_CHECK, 48), State.PAIRED),
        (step(StepKind.COMPARE, 3_000, verdict=Verdict.RIGHT), State.COMPARED),
        (step(StepKind.LABORATORY, 3_100, verdict=Verdict.RIGHT), State.LABORATORY),
        (step(StepKind.THIRD_PARTY, 3_200, verdict=Verdict.FAST), State.THIRD_PARTY),
        (step(StepKind.DECIDE, 3_201, decision=Decision.OVERHAUL), State.DECIDED),
        (step(StepKind.REPLACE, 3_202), State.DECIDED),
        (step(StepKind.PROPOSE, 3_203), State.PROPOSED),
        (step(StepKind.REFUSE, 3_204, by="S. Gill"), State.DECIDED),
        (step(StepKind.PROPOSE, 3_205), State.PROPOSED),
        (step(StepKind.APPROVE, 3_206, by="S. Gill"), State.APPROVED),
        (step(StepKind.POST, 3_207), State.POSTED),
        (step(StepKind.CLOSE, 3_208), State.CLOSED),
    ]
    found = case(CaseKind.INACCURATE)
    for each, state in walk:
        found = taken(found, each)
        assert found.state is state, each
    assert (found.verdict, found.decision) == (Verdict.FAST, Decision.OVERHAUL)
    with pytest.raises(CaseRefused, match="nothing in a case that is closed"):
        taken(found, step(StepKind.CLOSE, 3_300))


TESTED = (step(StepKind.INSTALL_CHECK, 1), step(StepKind.COMPARE, 2, verdict=Verdict.RIGHT))
SLOW = (TESTED[0], step(StepKind.COMPARE, 2, verdict=Verdict.SLOW))
DECIDED = (*SLOW, step(StepKind.DECIDE, 3, decision=Decision.OVERHAUL))
REFUSED = {
    "decision_without_a_test": (CaseKind.INACCURATE, (), step(StepKind.DECIDE, decision=Decision.OVERHAUL)),
    "overhaul_of_a_right_meter": (CaseKind.INACCURATE, TESTED, step(StepKind.DECIDE, 3, decision=Decision.OVERHAUL)),
    "fee_for_a_wrong_meter": (CaseKind.INACCURATE, SLOW, step(StepKind.DECIDE, 3, decision=Decision.METER_RIGHT)),
    "laboratory_before_the_comparison": (CaseKind.INACCURATE, TESTED[:1], step(StepKind.LABORATORY, 3)),
    "third_party_before_the_laboratory": (CaseKind.INACCURATE, TESTED, step(StepKind.THIRD_PARTY, 3)),
    "check_meter_beside_a_burnt_one": (CaseKind.BURNT, (), step(StepKind.INSTALL_CHECK)),
    "overhaul_before_the_replacement": (CaseKind.BURNT, (), step(StepKind.DECIDE, decision=Decision.OVERHAUL)),
    "meter_swapped_for_a_disputed_bill": (CaseKind.DISPUTED_BILL, (), step(StepKind.REPLACE)),
    "answer_that_nobody_asked_for": (CaseKind.DISPUTED_BILL, (), step(StepKind.ANSWER)),
    "overhaul_of_a_disputed_bill": (CaseKind.DISPUTED_BILL, (), step(StepKind.DECIDE, decision=Decision.OVERHAUL)),
    "step_before_the_latest": (CaseKind.INACCURATE, TESTED, step(StepKind.DECIDE, 1, decision=Decision.METER_RIGHT)),
    "approval_by_who_proposed": (
        CaseKind.INACCURATE, (*DECIDED, step(StepKind.PROPOSE, 4)), step(StepKind.APPROVE, 5, by="r. kaur")
    ),
    "posting_before_the_approval": (
        CaseKind.INACCURATE, (*DECIDED, step(StepKind.PROPOSE, 4)), step(StepKind.POST, 5)
    ),
    "posting_without_a_proposal": (CaseKind.INACCURATE, DECIDED, step(StepKind.POST, 5)),
    "closing_before_the_posting": (CaseKind.INACCURATE, DECIDED, step(StepKind.CLOSE, 5)),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "steps", "next_step"), REFUSED.values(), ids=REFUSED)
def test_step_that_does_not_fit_is_refused(kind: CaseKind, steps: tuple[Step, ...], next_step: Step) -> None:
    """No step is skipped, no decision goes against the test, and nobody approves what they proposed."""
    with pytest.raises(CaseRefused):
        taken(case(kind, *steps), next_step)


def test_fee_is_posted_only_for_a_meter_that_proved_right() -> None:
    """A meter found right is posted at once, since the fee is the rules'; one without consequence is closed at once."""
    right = case(CaseKind.INACCURATE, *TESTED, step(StepKind.DECIDE, 3, decision=Decision.METER_RIGHT))
    assert taken(right, step(StepKind.POST, 4)).state is State.POSTED
    with pytest.raises(CaseRefused):
        taken(right, step(StepKind.PROPOSE, 4))
    nothing = case(CaseKind.DISPUTED_BILL, step(StepKind.DECIDE, 2, decision=Decision.NOTHING))
    assert taken(nothing, step(StepKind.CLOSE, 3)).state is State.CLOSED


def test_clocks_run_from_the_complaint_and_end_with_their_step() -> None:
    """5 days for a check meter, 24 h in town and 72 h in the country for a replacement, 24 h for a bill."""
    pending = case(CaseKind.INACCURATE)
    (clock,) = clocks(pending, RULES, CALENDAR)
    assert (clock.name, clock.due_ms - T0) == ("check_meter", 5 * 24 * HOUR_MS)
    assert not clock.overdue(clock.due_ms)
    assert clock.overdue(clock.due_ms + 1)
    paired = taken(pending, step(StepKind.INSTALL_CHECK, 121))
    late, comparison = clocks(paired, RULES, CALENDAR)
    assert late.overdue(0)
    assert comparison.since_ms == to_ms(datetime(2026, 7, 6, 7, tzinfo=UTC))
    assert due_ms(paired, RULES, CALENDAR) == comparison.due_ms
    for area, hours in ((Area.URBAN, 24), (Area.RURAL, 72)):
        burnt = case(CaseKind.BURNT, area=area)
        assert due_ms(burnt, RULES, CALENDAR) == T0 + hours * HOUR_MS
        assert due_ms(taken(burnt, step(StepKind.REPLACE, 20)), RULES, CALENDAR) is None
    bill = case(CaseKind.DISPUTED_BILL)
    assert due_ms(bill, RULES, CALENDAR) == T0 + 24 * HOUR_MS
    waiting = taken(bill, step(StepKind.ASK, 3))
    assert due_ms(waiting, RULES, CALENDAR) is None
    assert due_ms(taken(waiting, step(StepKind.ANSWER, 50)), RULES, CALENDAR) == T0 + 74 * HOUR_MS


def test_pairing_ends_on_the_same_day_three_months_on_or_on_the_last() -> None:
    """From 30 November the same day of February is not there: its last day is."""
    at = datetime(2025, 11, 30, 9, 30, tzinfo=CALENDAR.zone)
    ends = datetime(2026, 2, 28, 9, 30, tzinfo=CALENDAR.zone)
    assert paired_until_ms(to_ms(at), RULES, CALENDAR) == to_ms(ends)


# Comparison ----------------------------------------------------------------------------------------------------------


def registers(whs: list[int], *, start_wh: int = 0, first_ms: int = T0) -> list[Point]:
    total, found = start_wh, [Point(at_ms=first_ms, energy_wh=start_wh)]
    for number, wh in enumerate(whs, start=1):
        total += wh
        found.append(Point(at_ms=first_ms + number * HALF_HOUR, energy_wh=total))
    return found


def pairing(until: int, **changes: object) -> Pairing:
    known = Pairing(
        from_ms=T0, until_ms=T0 + until * HALF_HOUR, interval_ms=HALF_HOUR, limit_basis_points=100,
        coverage_percent=90, too_short=False,
    )  # fmt: skip
    return replace(known, **changes)  # type: ignore[arg-type]  # As each test says.


def test_error_is_weighted_by_energy_and_loses_nothing_to_missing_pairs() -> None:
    """A gap on either side is one stretch: totals are the registers' ends; instants are named, and who lacks them."""
    used = [100 + 7 * (n % 48) for n in range(480)]
    check = registers(used)
    meter = registers([wh * 103 // 100 for wh in used], start_wh=5_000)
    gone_meter, gone_check = {T0 + n * HALF_HOUR for n in (10, 11, 12)}, {T0 + n * HALF_HOUR for n in (12, 13, 300)}
    found = compare(
        [p for p in meter if p.at_ms not in gone_meter], [p for p in check if p.at_ms not in gone_check], pairing(480),
        CALENDAR,
    )  # fmt: skip
    assert (found.meter_wh, found.check_wh) == (meter[-1].energy_wh - 5_000, check[-1].energy_wh)
    assert found.error_basis_points == error_of(found.meter_wh, found.check_wh)
    assert (found.verdict, found.expected, found.pairs, found.missing_instants) == (Verdict.FAST, 481, 476, 5)
    assert [(each.instants, each.meter, each.check) for each in found.missing] == [
        (2, True, False), (1, True, True), (1, False, True), (1, False, True),
    ]  # fmt: skip
    assert sum(each.meter_wh for each in found.months.values()) == found.meter_wh
    assert found.outside > 0
    assert len(found.worst) == 10


@given(st.lists(st.integers(0, 3_000), min_size=96, max_size=200), st.integers(-500, 500))
def test_months_and_stretches_add_up_to_the_registers_ends(used: list[int], error: int) -> None:
    """Whatever was used and however wrong the meter is, no Wh is lost or counted twice."""
    meter = registers([wh * (10_000 + error) // 10_000 for wh in used])
    found = compare(meter, registers(used), pairing(len(used)), CALENDAR)
    assert (found.meter_wh, found.check_wh) == (meter[-1].energy_wh, sum(used))
    assert sum(each.check_wh for each in found.months.values()) == sum(used)
    assert found.missing_instants == 0


def test_verdict_needs_time_pairs_and_energy() -> None:
    """Less than three months, less than 90 % of the pairs, or too little energy: no verdict, and no fee."""
    used = [500] * 480
    meter, check = registers(used), registers(used)
    assert compare(meter, check, pairing(480), CALENDAR).verdict is Verdict.RIGHT
    for found in (
        compare(meter, check, pairing(480, too_short=True), CALENDAR),
        compare(meter[:400], check, pairing(480), CALENDAR),
        compare(registers([1] * 480), registers([1] * 480), pairing(480), CALENDAR),
        compare([], [], pairing(480), CALENDAR),
    ):
        assert found.verdict is Verdict.INCONCLUSIVE, found.reason
    with pytest.raises(CaseRefused, match="only rise"):
        compare([*meter[:-1], Point(at_ms=meter[-1].at_ms, energy_wh=0)], check, pairing(480), CALENDAR)


def test_error_rounds_half_away_from_zero_and_the_limit_itself_is_right() -> None:
    """12345 beside 12345 is 0; 0.005 % is 0.01 % in both directions; a class 1 meter may be wrong by 1.00 %."""
    pairs = ((12_345, 12_345), (20_001, 20_000), (19_999, 20_000), (5, 0))
    assert [error_of(*each) for each in pairs] == [0, 1, -1, None]
    assert [verdict_of(error, 100) for error in (100, -100, 101, -101)] == [
        Verdict.RIGHT, Verdict.RIGHT, Verdict.FAST, Verdict.SLOW,
    ]  # fmt: skip
    assert (percent_text(-425), percent_text(7), percent_text(-7)) == ("-4.25", "0.07", "-0.07")


# Proposals and banking -----------------------------------------------------------------------------------------------


def test_overhaul_reaches_back_as_far_as_the_rules_and_no_further() -> None:
    """12, 6 and 3 months; less where the account is younger or the data shows when it began; by permitted ways only."""
    last, young = date(2026, 5, 31), date(2020, 1, 1)

    def span(kind: CaseKind, **more: object) -> date:
        asked = Asked(last=last, **more)  # type: ignore[arg-type]  # As each line says.
        overhaul = overhaul_of(kind, RULES, asked, opened_on=young, error_basis_points=300)
        require_permitted(overhaul)
        return overhaul.first

    stated = {"assessment": StatedEnergy(month_wh=200_000)}
    assert span(CaseKind.INACCURATE) == date(2025, 6, 1)
    assert span(CaseKind.INACCURATE, began_on=date(2026, 2, 3)) == date(2026, 2, 3)
    assert span(CaseKind.DEFECTIVE, **stated) == date(2025, 12, 1)
    assert span(CaseKind.BURNT, **stated) == span(CaseKind.STOLEN, **stated) == date(2026, 3, 1)
    assert span(CaseKind.NET_METER) == date(2025, 6, 1)
    assert span(CaseKind.SEASONAL, fault=Fault.DEFECTIVE, assessment=SameDaysLastYear()) == date(2025, 12, 1)
    for kind, more in (
        (CaseKind.BURNT, {"first": date(2026, 2, 28), **stated}),
        (CaseKind.BURNT, {}),
        (CaseKind.BURNT, {"assessment": PercentError(basis_points=300)}),
        (CaseKind.INACCURATE, stated),
        (CaseKind.SEASONAL, stated),
        (CaseKind.DISPUTED_BILL, stated),
    ):
        with pytest.raises(CaseRefused):
            span(kind, **more)
    with pytest.raises(CaseRefused, match="a test with an error"):
        overhaul_of(CaseKind.INACCURATE, RULES, Asked(last=last), opened_on=young, error_basis_points=None)


FLOWS = [
    MonthFlow(month=date(2026, 1, 1), import_wh=100_000, export_wh=150_000),
    MonthFlow(month=date(2026, 2, 1), import_wh=120_000, export_wh=40_000),
    MonthFlow(month=date(2026, 3, 1), import_wh=10_000, export_wh=60_000),
    MonthFlow(month=date(2026, 4, 1), import_wh=90_000, export_wh=10_000),
]


def test_export_is_banked_until_the_banking_year_ends() -> None:
    """What was sent is set off against later months, and lapses at the end of March."""
    found = bank(FLOWS, year_ends_month=3)
    assert [each.billed_wh for each in found] == [0, 30_000, 0, 80_000]
    assert [each.bank_wh for each in found] == [50_000, 0, 0, 0]
    assert [each.lapsed_wh for each in found] == [0, 0, 50_000, 0]


def test_overhaul_of_a_bank_bills_what_both_registers_should_have_counted() -> None:
    """An export register 25 % fast has set off too much: the months that used it up were billed short."""
    found = overhaul_bank(FLOWS, import_error_basis_points=0, export_error_basis_points=2_500, year_ends_month=3)
    assert [each.export_wh for each in found.corrected] == [120_000, 32_000, 48_000, 8_000]
    assert list(found.short_wh.values()) == [0, 38_000, 0, 2_000]


@given(
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)), min_size=1, max_size=24), st.integers(0, 10**6)
)
def test_bank_neither_makes_nor_loses_energy(whs: list[tuple[int, int]], opening_wh: int) -> None:
    """What came in was set off, has lapsed, or is still there."""
    months = [date(2024 + n // 12, n % 12 + 1, 1) for n in range(len(whs))]
    flows = [MonthFlow(month=month, import_wh=a, export_wh=b) for month, (a, b) in zip(months, whs, strict=True)]
    found = bank(flows, opening_wh=opening_wh, year_ends_month=3)
    out_wh = sum(each.set_off_wh + each.lapsed_wh for each in found) + found[-1].bank_wh
    assert out_wh == opening_wh + sum(flow.export_wh for flow in flows)
    assert all(each.billed_wh >= 0 and each.bank_wh >= 0 for each in found)


# Rules ---------------------------------------------------------------------------------------------------------------

BROKEN = {
    "a_longer_overhaul_than_the_code_permits": ("months = 6\n", "months = 7\n", "at most 6"),
    "an_unknown_way": ('"stated_energy"]', '"guess"]', "names out of"),
    "a_fault_without_its_table": ('fault = "burnt"', 'fault = "stolen"', "each fault once"),
    "a_class_twice": ('class = "2"', 'class = "1"', "each class once"),
    "a_field_that_nobody_knows": ("due_days = 5", "due_days = 5\ndue_hours = 3", "due_hours"),
    "no_time_to_replace": ("urban_hours = 24", "urban_hours = 0", "from 1"),
}


@pytest.mark.parametrize(("text", "by", "named"), BROKEN.values(), ids=BROKEN)
def test_rules_document_that_breaks_a_rule_is_refused_with_its_line(text: str, by: str, named: str) -> None:
    """The message names document, line and rule."""
    with pytest.raises(CaseRulesError, match=rf"dispute rules punjab, line \d+.*{named}"):
        parse_case_rules(TEXT.replace(text, by, 1))


def test_builtin_rules_hold_the_periods_of_the_requirements() -> None:
    """R-18: 5 days and three months; R-19: 24 and 72 hours; R-20: 12, 6, 3 and 3 months; R-28: 24 hours."""
    assert (RULES.check_meter_days, RULES.paired_months) == (5, 3)
    assert (RULES.urban_hours, RULES.rural_hours, RULES.settle_hours) == (24, 72, 24)
    assert [RULES.overhauls[fault].months for fault in Fault] == [12, 6, 3, 3]
    assert RULES.effective_from < date(2026, 1, 1) - timedelta(days=365)
