"""Dated changes of terms: what a request means, when it may stand, and what it does to the posted state."""

from __future__ import annotations

from datetime import date

import pytest

from billing.assigning import (
    AssignmentRefused,
    AssignmentRequest,
    assignment_of,
    entered,
    reopened_from,
    require_area,
)
from billing.running import Checkpoint, Point
from billing.tariff import Tariff
from billing.tariff_document import builtin_documents, builtin_tariff, parse_tariff
from billing.terms import Assignment, Terms

DOMESTIC = builtin_tariff("punjab-ds-2026-27")
TIME_OF_DAY = builtin_tariff("punjab-tod-commercial-2026-27")
PRO_RATA = parse_tariff(builtin_documents()["punjab-ds-2026-27"].replace('"whole"', '"pro_rata"'))
APRIL = date(2026, 4, 1)


def day(number: int) -> date:
    """Return a day of April."""
    return APRIL.replace(day=number)


def assignment(from_day: date = APRIL, tariff: Tariff = DOMESTIC, load_w: int = 2_000) -> Assignment:
    return Assignment(from_day=from_day, tariff=tariff, category="DS", load_w=load_w)


def terms(*assignments: Assignment) -> Terms:
    return Terms(opened_on=assignments[0].from_day, assignments=assignments)


def test_blank_fields_are_as_before() -> None:
    """Only what is asked changes, from the assignment that holds before the day."""
    standing = (assignment(), assignment(day(10), load_w=3_000))
    added = assignment_of(AssignmentRequest(from_day=day(20), area="rural"), standing, first_open_day=day(5))
    assert added == Assignment(from_day=day(20), tariff=DOMESTIC, category="DS", load_w=3_000, area="rural")
    own = assignment_of(AssignmentRequest(from_day=day(20), meter_rent=False), standing, first_open_day=day(5))
    assert own is not None
    assert (own.meter_rent, own.area) == (False, "urban")


@pytest.mark.parametrize(
    "request_",
    [
        AssignmentRequest(from_day=day(10), load_w=3_000),
        AssignmentRequest(
            from_day=day(10), tariff=DOMESTIC, category="DS", load_w=3_000, area="urban", meter_rent=True
        ),
        # What holds anyway, on an open day, on a closed one and between two assignments.
        AssignmentRequest(from_day=day(25), load_w=3_000),
        AssignmentRequest(from_day=day(12), load_w=3_000),
        AssignmentRequest(from_day=day(5), load_w=2_000),
        AssignmentRequest(from_day=day(26)),
    ],
)
def test_what_holds_already_adds_nothing(request_: AssignmentRequest) -> None:
    """The same again is no refusal, whenever it comes; an empty assignment would only cut a bill part."""
    standing = (assignment(), assignment(day(10), load_w=3_000))
    assert assignment_of(request_, standing, first_open_day=day(15)) is None


def test_first_open_day_itself_may_have_other_terms() -> None:
    """Nothing of it is booked."""
    added = assignment_of(AssignmentRequest(from_day=day(15), load_w=1), (assignment(),), first_open_day=day(15))
    assert added is not None
    with pytest.raises(AssignmentRefused, match="expected 2026-04-15, the first day that is not closed") as caught:
        assignment_of(AssignmentRequest(from_day=day(14), load_w=1), (assignment(),), first_open_day=day(15))
    assert (caught.value.column, caught.value.code) == ("from_day", "assignment_refused")
    assert "earlier days take a correction" in str(caught.value)


def test_area_that_no_levy_of_a_tariff_names_is_refused_where_levies_go_by_area() -> None:
    """A misspelt area would lose the state's money without a word."""
    require_area(DOMESTIC, "anywhere")
    require_area(TIME_OF_DAY, "rural")
    with pytest.raises(AssignmentRefused, match="one of rural, urban as in punjab-tod"):
        require_area(TIME_OF_DAY, "town")


def test_entered_checkpoint_belongs_to_the_new_part() -> None:
    """Nothing is charged to it yet, the slabs go on, zones begin at 0; the curve and its anchor stay."""
    before = Checkpoint(
        posted_minor=5_000,
        charged_minor=700,
        through=day(11),
        before_wh=40,
        part_start_wh=1_000,
        closed_wh=3_000,
        closed_zones=(),
        demand_w=9,
        anchor=Point(at_ms=5, energy_wh=2_900),
        anchor_zones=(),
    )
    after = entered(before, terms(assignment(), assignment(day(11), TIME_OF_DAY)))
    assert (after.charged_minor, after.before_wh, after.part_start_wh, after.demand_w) == (0, 2_040, 3_000, 0)
    assert (after.closed_zones, after.anchor_zones) == ((0,) * 4, (0,) * 4)
    same = ("posted_minor", "through", "closed_wh", "anchor")
    assert [getattr(after, name) for name in same] == [getattr(before, name) for name in same]
    fresh = entered(before, terms(assignment(), assignment(day(11), PRO_RATA)))
    assert (fresh.before_wh, fresh.anchor_zones) == (0, ())


@pytest.mark.parametrize(
    ("tariff", "open_day", "from_day", "reopened"),
    [
        # A later day of whole limits, the first of a month, and the opening itself leave what is closed alone.
        (DOMESTIC, day(10), day(20), None),
        (PRO_RATA, day(10), date(2026, 5, 1), None),
        (PRO_RATA, APRIL, day(20), None),
        # The part that was open ends with the last closed day: its edge is where readings say.
        (DOMESTIC, day(10), day(10), APRIL),
        # Its limits are those of fewer days.
        (PRO_RATA, day(10), day(10), APRIL),
        (PRO_RATA, day(10), day(20), APRIL),
    ],
)
def test_closed_days_are_looked_at_again_only_where_their_part_changes(
    tariff: Tariff, open_day: date, from_day: date, reopened: date | None
) -> None:
    """From the first day whose slabs start at 0."""
    before = terms(assignment(tariff=tariff))
    after = terms(*before.assignments, assignment(from_day, tariff, load_w=9_000))
    assert reopened_from(before, after, first_open_day=open_day) == reopened
