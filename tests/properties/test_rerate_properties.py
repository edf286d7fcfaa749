"""Any correction of any account: what is booked afterwards is a rating from scratch; taken back, it leaves no trace."""

from __future__ import annotations

from datetime import date, timedelta
from itertools import accumulate
from zoneinfo import ZoneInfo

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from billing.assigning import AssignmentRequest
from billing.calendar import LocalCalendar
from billing.rating import Lines, added, difference, total
from billing.rerate import CorrectionRefused, Rerated, State, TermsChange, changed_assignments, rerate
from billing.running import (
    LateUsage,
    PeriodPosted,
    Point,
    charged_lines,
    close_days,
    energy_at,
    open_bills,
    opening,
    with_assessed,
    zones_of,
)
from billing.tariff_document import parse_tariff
from billing.terms import Terms, one_assignment, part_lines
from tests.properties.tariff_strategies import AREAS, loads_w, tariff_texts

# A place whose clock changes on 29 March and 25 October 2026.
LONDON = LocalCalendar(ZoneInfo("Europe/London"))
FIRST = date(2026, 3, 1)
DAYS = 75
ONE_DAY = timedelta(days=1)
HOUR_MS = 3_600_000
CREDIT_MINOR = 10_000_000
drawn_days = st.integers(0, DAYS).map(lambda number: FIRST + number * ONE_DAY)


@st.composite
def curves(draw: st.DrawFn) -> list[Point]:
    """A curve from the opening on: readings hours or weeks apart, some at midnight."""
    start_ms = LONDON.midnight_ms(FIRST)
    steps = draw(st.lists(st.one_of(st.integers(1, 400), st.just(24)), min_size=3, max_size=25))
    use_wh = draw(st.lists(st.integers(0, 60_000), min_size=len(steps), max_size=len(steps)))
    at_ms = accumulate((step * HOUR_MS for step in steps), initial=start_ms)
    energy_wh = accumulate(use_wh, initial=0)
    return [Point(at_ms=at, energy_wh=wh) for at, wh in zip(at_ms, energy_wh, strict=True)]


@st.composite
def changes(draw: st.DrawFn) -> TermsChange:
    """Another tariff, load or area, from a day on or for some days."""
    from_day = draw(drawn_days)
    tariff = parse_tariff(draw(tariff_texts(tariff_id="other"))) if draw(st.booleans()) else None
    request = AssignmentRequest(
        from_day=from_day,
        tariff=tariff,
        load_w=draw(st.one_of(st.none(), loads_w)),
        area=draw(st.one_of(st.none(), st.sampled_from(AREAS))),
    )
    until = draw(st.one_of(st.none(), st.integers(0, 60).map(lambda number: from_day + number * ONE_DAY)))
    return TermsChange(request=request, until_day=until)


def closed(terms: Terms, points: list[Point], until: date) -> tuple[State, dict[date, PeriodPosted]]:
    """An account from its opening on, closed up to a day, with what its journals have booked."""
    checkpoint = opening(terms, posted_minor=CREDIT_MINOR, at=points[0])
    posted: dict[date, PeriodPosted] = {}
    for usage, after in close_days(checkpoint, terms, points, until=until, calendar=LONDON):
        change = LateUsage(period=usage.period, energy_wh=usage.to_wh - usage.from_wh, lines=usage.lines)
        posted = booked(posted, [change])
        checkpoint = after
    anchor = checkpoint.anchor
    later = tuple(point for point in points if point.at_ms > anchor.at_ms)
    return State(checkpoint=checkpoint, terms=terms, points=(anchor, *later)), posted


def booked(posted: dict[date, PeriodPosted], found: list[LateUsage]) -> dict[date, PeriodPosted]:
    """Add journals to what is booked."""
    sums = dict(posted)
    for usage in found:
        before = sums.get(usage.period, PeriodPosted(period=usage.period, energy_wh=0, lines={}))
        sums[usage.period] = PeriodPosted(
            period=usage.period,
            energy_wh=before.energy_wh + usage.energy_wh,
            lines=without_zeros(added(before.lines, usage.lines)),
            assessed_wh=before.assessed_wh + usage.assessed_wh,
        )
    return sums


def without_zeros(lines: Lines) -> Lines:
    return difference(lines, {})


def nonzero(posted: dict[date, PeriodPosted]) -> dict[date, tuple[int, int, Lines]]:
    found = {first: (each.energy_wh, each.assessed_wh, without_zeros(each.lines)) for first, each in posted.items()}
    return {first: each for first, each in found.items() if each[0] or each[1] or each[2]}


def assert_from_scratch(
    rerated: Rerated, posted: dict[date, PeriodPosted], points: list[Point], assessed: dict[date, int]
) -> None:
    """What is booked, and what is running, is what a rating of the whole curve says."""
    checkpoint, terms = rerated.state.checkpoint, rerated.state.terms
    part = terms.part_at(terms.opened_on)
    before_wh = 0
    expected: dict[date, tuple[int, int, Lines]] = {}
    start_wh = points[0].energy_wh
    while part.end <= checkpoint.through:
        end_ms = LONDON.midnight_ms(part.end)
        end_wh, _ = energy_at(points, end_ms)
        energy_wh, start_wh = end_wh - start_wh, end_wh
        before_wh = 0 if part.fresh else before_wh
        billed_wh = energy_wh + assessed.get(part.first, 0)
        lines = part_lines(
            part,
            before_wh=before_wh,
            energy_wh=billed_wh,
            zone_wh=with_assessed(zones_of(part, points, end_ms, LONDON), billed_wh),
            through_day=part.last,
        )
        before_wh += billed_wh
        expected[part.first] = energy_wh, assessed.get(part.first, 0), without_zeros(lines)
        part = terms.next_part(part)
    lines = without_zeros(charged_lines(checkpoint, terms))
    energy_wh = checkpoint.closed_wh - checkpoint.part_start_wh
    expected[part.first] = energy_wh, 0, lines
    expected = {first: each for first, each in expected.items() if each[0] or each[1] or each[2]}
    assert nonzero(posted) == expected
    assert checkpoint.part_start_wh == start_wh
    assert checkpoint.posted_minor == CREDIT_MINOR - sum(total(each.lines) for each in posted.values())


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_other_terms_are_rated_from_scratch_and_taken_back_without_a_trace(data: st.DataObject) -> None:
    """Any change of terms over closed and open days; then the old terms again."""
    points = data.draw(curves())
    tariff = parse_tariff(data.draw(tariff_texts(tariff_id="first")))
    old = one_assignment(tariff, load_w=data.draw(loads_w), opened_on=FIRST, area=data.draw(st.sampled_from(AREAS)))
    before, posted = closed(old, points, data.draw(drawn_days))
    # Silent ends of parts are settled as ingest does, before anybody corrects anything.
    settled = rerate(before, old, points, posted, since=FIRST, calendar=LONDON)
    posted, before = booked(posted, list(settled.found)), settled.state
    new = Terms(opened_on=FIRST, assignments=changed_assignments(old, data.draw(changes())))
    there = rerate(before, new, points, posted, since=FIRST, calendar=LONDON)
    corrected = booked(posted, list(there.found))
    assert_from_scratch(there, corrected, points, {})
    start = opening(new, posted_minor=0, at=points[0])
    bills = open_bills(start, new, points, LONDON, last_day=_money_day(there, points))
    assert there.after_minor == CREDIT_MINOR - sum(total(lines) for _, lines in bills.values())
    back = rerate(there.state, old, points, corrected, since=FIRST, calendar=LONDON)
    assert nonzero(booked(corrected, list(back.found))) == nonzero(posted)
    assert back.after_minor == before.balance_minor(LONDON)
    assert back.state.checkpoint == before.checkpoint


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_assessed_energy_is_rated_from_scratch_and_taken_back_without_a_trace(data: st.DataObject) -> None:
    """Any Wh added to or taken from closed parts; then the opposite."""
    points = data.draw(curves())
    terms = one_assignment(parse_tariff(data.draw(tariff_texts())), load_w=data.draw(loads_w), opened_on=FIRST)
    before, posted = closed(terms, points, data.draw(drawn_days))
    settled = rerate(before, terms, points, posted, since=FIRST, calendar=LONDON)
    posted, before = booked(posted, list(settled.found)), settled.state
    parts = [terms.part_at(FIRST)]
    while parts[-1].end <= before.checkpoint.through:
        parts.append(terms.next_part(parts[-1]))
    assessed = {}
    for part in parts[:-1]:
        metered_wh = posted[part.first].energy_wh if part.first in posted else 0
        assessed[part.first] = data.draw(st.integers(-metered_wh, 200_000))
    there = rerate(before, terms, points, posted, since=FIRST, calendar=LONDON, assessments_wh=assessed)
    corrected = booked(posted, list(there.found))
    assert_from_scratch(there, corrected, points, assessed)
    new = Terms(opened_on=FIRST, assignments=changed_assignments(terms, data.draw(changes())))
    try:
        other = rerate(there.state, new, points, corrected, since=FIRST, calendar=LONDON)
    except CorrectionRefused:
        # Assessed energy may not come into a part that is open, nor more of it away than a part has.
        assume(False)
    termed = booked(corrected, list(other.found))
    same = rerate(other.state, terms, points, termed, since=FIRST, calendar=LONDON)
    assert nonzero(booked(termed, list(same.found))) == nonzero(corrected)
    assert same.state.checkpoint == there.state.checkpoint
    opposite = {first: -wh for first, wh in assessed.items()}
    back = rerate(there.state, terms, points, corrected, since=FIRST, calendar=LONDON, assessments_wh=opposite)
    assert nonzero(booked(corrected, list(back.found))) == nonzero(posted)
    assert back.state.checkpoint == before.checkpoint


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_edited_readings_are_rated_from_scratch_and_taken_back_without_a_trace(data: st.DataObject) -> None:
    """Some readings void, others with another register that still rises; then all as they were."""
    points = data.draw(curves())
    terms = one_assignment(parse_tariff(data.draw(tariff_texts())), load_w=data.draw(loads_w), opened_on=FIRST)
    before, posted = closed(terms, points, data.draw(drawn_days))
    settled = rerate(before, terms, points, posted, since=FIRST, calendar=LONDON, readings_changed=True)
    posted, before = booked(posted, list(settled.found)), settled.state
    edited = [points[0]]
    for number, point in enumerate(points[1:], start=1):
        top_wh = points[number + 1].energy_wh if number + 1 < len(points) else point.energy_wh + 5_000
        fate = data.draw(st.sampled_from(["read", "read", "void", "edited"]))
        if fate == "edited":
            energy_wh = data.draw(st.integers(edited[-1].energy_wh, max(edited[-1].energy_wh, top_wh)))
            edited.append(Point(at_ms=point.at_ms, energy_wh=energy_wh))
        elif fate == "read" and point.energy_wh >= edited[-1].energy_wh:
            edited.append(point)
    there = rerate(before, terms, edited, posted, since=FIRST, calendar=LONDON, readings_changed=True)
    corrected = booked(posted, list(there.found))
    assert_from_scratch(there, corrected, edited, {})
    back = rerate(there.state, terms, points, corrected, since=FIRST, calendar=LONDON, readings_changed=True)
    assert nonzero(booked(corrected, list(back.found))) == nonzero(posted)
    assert back.after_minor == before.balance_minor(LONDON)
    assert back.state.checkpoint == before.checkpoint


def _money_day(rerated: Rerated, points: list[Point]) -> date:
    return max(LONDON.day_of(points[-1].at_ms), rerated.state.checkpoint.through)
