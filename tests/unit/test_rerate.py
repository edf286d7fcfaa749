"""What a change of terms does to assignments, what a balance crosses, and where a levy goes back to."""

from __future__ import annotations

from dataclasses import replace
from datetime import date

import pytest

from billing.assigning import AssignmentRequest
from billing.rerate import Crossing, TermsChange, TermsFilter, changed_assignments, crossing_of, levy_split
from billing.running import LateUsage
from billing.supply import FurtherLevel, Levels, Mode, Supply
from billing.tariff_document import builtin_tariff
from billing.terms import Assignment, Terms

TARIFF = builtin_tariff("punjab-ds-2026-27")
APRIL, MAY, JUNE = date(2026, 4, 1), date(2026, 5, 1), date(2026, 6, 1)


def terms(*rows: tuple[date, str, int]) -> Terms:
    assignments = tuple(
        Assignment(from_day=day, tariff=TARIFF, category=category, load_w=load_w) for day, category, load_w in rows
    )
    return Terms(opened_on=APRIL, assignments=assignments)


def changed(old: Terms, change: TermsChange) -> list[tuple[date, str, int]]:
    return [(each.from_day, each.category, each.load_w) for each in changed_assignments(old, change)]


def load(from_day: date, until_day: date | None = None, *, category: str | None = None) -> TermsChange:
    """A load of 5 kW from a day on."""
    request = AssignmentRequest(from_day=from_day, load_w=5_000)
    return TermsChange(request=request, until_day=until_day, only=TermsFilter(category=category))


OLD = terms((APRIL, "DS", 2_000), (MAY, "NRS", 2_000))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (load(date(2026, 4, 10)), [(APRIL, "DS", 2_000), (date(2026, 4, 10), "DS", 5_000), (MAY, "NRS", 5_000)]),
        (load(APRIL), [(APRIL, "DS", 5_000), (MAY, "NRS", 5_000)]),
        (load(date(2026, 3, 1)), [(APRIL, "DS", 5_000), (MAY, "NRS", 5_000)]),
        (load(APRIL, date(2026, 4, 30)), [(APRIL, "DS", 5_000), (MAY, "NRS", 2_000)]),
        (
            load(date(2026, 4, 10), date(2026, 5, 9)),
            [
                (APRIL, "DS", 2_000),
                (date(2026, 4, 10), "DS", 5_000),
                (MAY, "NRS", 5_000),
                (date(2026, 5, 10), "NRS", 2_000),
            ],
        ),
        (load(APRIL, category="NRS"), [(APRIL, "DS", 2_000), (MAY, "NRS", 5_000)]),
        (load(date(2026, 4, 10), category="NRS"), [(APRIL, "DS", 2_000), (MAY, "NRS", 5_000)]),
        (load(date(2026, 4, 10), date(2026, 4, 20), category="NRS"), [(APRIL, "DS", 2_000), (MAY, "NRS", 2_000)]),
        (load(date(2026, 1, 1), date(2026, 3, 31)), [(APRIL, "DS", 2_000), (MAY, "NRS", 2_000)]),
        (load(JUNE), [(APRIL, "DS", 2_000), (MAY, "NRS", 2_000), (JUNE, "NRS", 5_000)]),
    ],
)
def test_change_of_terms_keeps_what_it_does_not_name(
    change: TermsChange, expected: list[tuple[date, str, int]]
) -> None:
    """Days outside the span and assignments that are not meant stay; no day is cut for nothing."""
    assert changed(OLD, change) == expected


def test_change_that_changes_nothing_leaves_the_same_assignments() -> None:
    """The load that is there already is no new row."""
    old = terms((APRIL, "DS", 5_000))
    assert changed_assignments(old, load(MAY)) == old.assignments


def levels(*, threshold_minor: int | None = 500, emergency_credit_minor: int = 100) -> Levels:
    return Levels(
        mode=Mode.PREPAID,
        threshold_minor=threshold_minor,
        emergency_credit_minor=emergency_credit_minor,
        low_arm=1,
        low_raised=False,
        exhausted_arm=1,
        exhausted_raised=False,
        desired=Supply.ON,
    )


@pytest.mark.parametrize(
    ("before_minor", "after_minor", "crossing"),
    [
        (501, 501, Crossing.NONE),
        (501, 500, Crossing.LOW),
        (500, 1, Crossing.NONE),
        (501, -99, Crossing.LOW),
        (501, -100, Crossing.EXHAUSTED),
        (-99, -100, Crossing.EXHAUSTED),
        (-100, -101, Crossing.NONE),
        (-100, -99, Crossing.RESTORED),
        (-100, 1_000, Crossing.RESTORED),
    ],
)
def test_crossing_tells_supply_before_alarm(before_minor: int, after_minor: int, crossing: Crossing) -> None:
    """Emergency credit counts; a balance that was beyond a level before does not cross it again."""
    assert crossing_of(levels(), before_minor, after_minor) is crossing


@pytest.mark.parametrize(
    ("before_minor", "after_minor", "crossing"),
    [(801, 800, Crossing.LOW), (800, 501, Crossing.NONE), (301, 300, Crossing.LOW), (300, 299, Crossing.NONE)],
)
def test_crossing_of_a_further_threshold_is_an_alarm(before_minor: int, after_minor: int, crossing: Crossing) -> None:
    """Whoever approves a correction sees every consumer that it warns."""
    further = (
        FurtherLevel(n=1, level_minor=300, arm=1, raised=False),
        FurtherLevel(n=2, level_minor=800, arm=1, raised=False),
    )
    assert crossing_of(replace(levels(), thresholds=further), before_minor, after_minor) is crossing


def test_line_that_is_a_levy_under_one_tariff_only_is_taken_back_whole() -> None:
    """Duty of 100 booked as a levy becomes 130 of income: 100 go back to the levy, 130 come to income."""
    usage = LateUsage(period=APRIL, energy_wh=5, lines={"duty": 30, "energy_1": 7})
    booked = {"duty": 100, "energy_1": 50}
    (back, old), (there, new) = levy_split(usage, booked, {"duty"}, set())
    assert (back.energy_wh, back.lines, old) == (0, {"duty": -100}, frozenset({"duty"}))
    assert (there.energy_wh, there.lines, new) == (5, {"duty": 130, "energy_1": 7}, frozenset())
    assert levy_split(usage, booked, {"duty"}, {"duty"}) == [(usage, frozenset({"duty"}))]
