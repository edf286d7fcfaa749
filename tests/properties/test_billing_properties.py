"""Whatever the meter says and whenever it says it, under whatever tariff, the money adds up to the bill."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, timedelta
from itertools import pairwise

from hypothesis import event, example, given, settings
from hypothesis import strategies as st

from billing.calendar import from_ms, next_period, period_of, to_ms
from billing.late_usage import late_usage
from billing.running import (
    PeriodPosted,
    Point,
    advance,
    begin,
    bill_by_month,
    follow,
    owed_minor,
    running_balance,
)
from billing.tariff_document import parse_tariff
from billing.terms import one_assignment
from db.accounts import MeterView, Segment
from db.posting import parts_between
from headend.state import RegisterSegment, energy_to_date
from tests.properties import oracle
from tests.properties.books import (
    BOUNDED,
    CALENDARS,
    ONE_DAY,
    SHIPPED,
    ZONES,
    Books,
    Curve,
    Story,
    around,
    as_bill,
    curves,
    histories,
    stories,
)

STORIES = settings(BOUNDED, max_examples=3 * BOUNDED.max_examples)


def balance_of(curve: Curve, points: list[Point] | tuple[Point, ...]) -> int:
    return running_balance(curve.opening(), curve.terms, points, curve.calendar)


@BOUNDED
@given(curve=curves())
def test_running_balance_of_any_curve_equals_the_oracle(curve: Curve) -> None:
    """The balance after every reading is the opening credit less the bills so far."""
    for seen in range(1, len(curve.points) + 1):
        points = curve.points[:seen]
        assert balance_of(curve, points) == curve.credit_minor - oracle.total_minor(curve.judged(points))


@BOUNDED
@given(curve=curves(), data=st.data())
def test_walk_by_step_or_by_batch_owes_what_the_whole_curve_owes(curve: Curve, data: st.DataObject) -> None:
    """A walk carried from batch to batch gives, after each, the balance of all points so far."""
    terms, calendar = curve.terms, curve.calendar
    stepped = batched = begin(curve.opening(), terms)
    points = list(curve.points[1:])
    while points:
        batch = points[: data.draw(st.integers(1, len(points)))]
        points = points[len(batch) :]
        for point in batch:
            stepped = advance(stepped, terms, point, calendar)
        batched = follow(batched, terms, batch, calendar)
        assert batched == stepped
        seen = [point for point in curve.points if point <= batch[-1]]
        owed = owed_minor(batched, through=terms.opened_on, calendar=calendar)
        assert curve.credit_minor - owed == balance_of(curve, seen)


@BOUNDED
@given(curve=curves(), data=st.data())
def test_running_balance_with_points_between_two_without_an_edge_is_unchanged(
    curve: Curve, data: st.DataObject
) -> None:
    """A point between two others that have no edge of a bill part or zone between them changes nothing."""
    edges_ms = curve.edges_ms()
    more: list[Point] = []
    for left, right in pairwise(curve.points):
        split = any(left.at_ms < edge_ms < right.at_ms for edge_ms in edges_ms)
        if right.at_ms - left.at_ms > 1 and not split:
            at_ms = data.draw(st.integers(left.at_ms + 1, right.at_ms - 1))
            more.append(Point(at_ms=at_ms, energy_wh=data.draw(st.integers(left.energy_wh, right.energy_wh))))
    event(f"points added: {len(more)}")
    assert balance_of(curve, sorted([*curve.points, *more])) == balance_of(curve, curve.points)


@BOUNDED
@given(curve=curves())
def test_running_balance_of_only_the_points_around_edges_is_unchanged(curve: Curve) -> None:
    """The first point, the latest, and those on both sides of each edge are enough."""
    few = sorted({curve.points[0], *around(curve.points, curve.edges_ms()), curve.points[-1]})
    assert balance_of(curve, few) == balance_of(curve, curve.points)


@BOUNDED
@given(curve=curves(), data=st.data())
def test_running_balance_with_duplicates_is_unchanged(curve: Curve, data: st.DataObject) -> None:
    """A reading delivered again costs nothing."""
    copies = data.draw(st.lists(st.sampled_from(curve.points), max_size=4))
    assert balance_of(curve, sorted([*curve.points, *copies])) == balance_of(curve, curve.points)


@BOUNDED
@given(curve=curves(), data=st.data())
def test_close_days_between_readings_in_order_adds_up_to_the_oracle(curve: Curve, data: st.DataObject) -> None:
    """Day journals and running charge are the bill; no pace of closing that passes no unread edge needs more."""
    books = Books.open(curve)
    for point in (None, *curve.points[1:]):
        if point is not None:
            assert not books.read(point)
        mark_day = curve.calendar.day_of(books.mark.at_ms)
        wanted = mark_day + timedelta(days=data.draw(st.integers(-40, 25)))
        # The last day that may be closed: the one before the last of the mark's part.
        books.close(min(wanted, curve.terms.part_at(mark_day).last - ONE_DAY))
        books.require_sound()


@BOUNDED
@given(curve=curves(), ahead=st.integers(0, 40))
def test_close_days_one_by_one_up_to_money_time_leaves_the_balance(curve: Curve, ahead: int) -> None:
    """A closed day moves the balance only if it is beyond money time: by what its days accrue."""
    curve = replace(curve, demands_w={})
    books = Books.open(curve)
    books.known = list(curve.points)
    before = books.balance()
    while books.checkpoint.through <= curve.last_day + timedelta(days=ahead):
        books.close(books.checkpoint.through)
        if books.checkpoint.through <= curve.last_day:
            assert books.balance() == before
        else:
            bills = curve.judged(curve.points, books.checkpoint.through)
            assert books.balance() == curve.credit_minor - oracle.total_minor(bills)
    books.require_sound()


@BOUNDED
@given(curve=curves(), until_days=st.integers(0, 100))
def test_close_days_at_once_equals_closing_each_day_as_it_ends(curve: Curve, until_days: int) -> None:
    """Catching up is the same as never having fallen behind."""
    until = curve.terms.opened_on + timedelta(days=until_days)
    at_once, daily = Books.open(curve), Books.open(curve)
    at_once.known, daily.known = list(curve.points), list(curve.points)
    at_once.close_days(until)
    while daily.checkpoint.through <= until:
        daily.close_days(daily.checkpoint.through)
    assert at_once == daily


def _plain_story(days: list[tuple[date, int]], events: list[int | tuple[date, int]]) -> Story:
    """Tell a story of midnight readings in UTC under the shipped tariff."""

    def point(at: tuple[date, int]) -> Point:
        return Point(at_ms=CALENDARS["UTC"].midnight_ms(at[0]), energy_wh=at[1])

    opened_on = days[0][0]
    points = tuple(point(at) for at in days)
    curve = Curve(
        zone="UTC",
        credit_minor=0,
        terms=one_assignment(parse_tariff(SHIPPED), load_w=1000, opened_on=opened_on),
        assigned=(oracle.Assigned(from_day=opened_on, text=SHIPPED, load_w=1000, area="urban", meter_rent=True),),
        points=points,
        used={each.at_ms: each.energy_wh for each in points},
        demands_w={},
    )
    return curve, [happening if isinstance(happening, int) else point(happening) for happening in events]


# A late reading lowers the estimate of a month end when nothing of the new month has been booked.
LOWERED_EDGE = _plain_story(
    [(date(2026, 4, 30), 0), (date(2026, 5, 1), 1), (date(2026, 5, 2), 4)],
    [(date(2026, 5, 2), 4), -2, (date(2026, 5, 1), 1)],
)
# A silent month end is settled, and then a late reading moves the edge that had been settled.
MOVED_EDGE = _plain_story(
    [(date(2026, 4, 1), 0), (date(2026, 4, 30), 1000), (date(2026, 5, 3), 1000)],
    [30, (date(2026, 5, 3), 1000), (date(2026, 4, 30), 1000)],
)
# A silence over two month ends: the second is split between the readings around it, not from the first end.
TWO_EDGES = _plain_story(
    [(date(2026, 3, 30), 0), (date(2026, 6, 9), 100)],
    [33, (date(2026, 6, 9), 100), 0],
)


@STORIES
@given(story=stories())
@example(story=LOWERED_EDGE)
@example(story=MOVED_EDGE)
@example(story=TWO_EDGES)
def test_late_usage_after_silence_and_late_readings_adds_up_to_the_oracle(story: Story) -> None:
    """However readings and closes interleave, every part's journals and the running charge are the bill."""
    curve, events = story
    books = Books.open(curve)
    moved = 0
    for happening in events:
        if isinstance(happening, Point):
            moved += books.read(happening)
        else:
            books.close(curve.calendar.day_of(books.mark.at_ms) + timedelta(days=happening))
        books.require_sound()
    event(f"closed edges moved: {moved}")


@BOUNDED
@given(story=stories(zoned=True))
def test_late_usage_under_zones_adds_up_to_the_oracle(story: Story) -> None:
    """With time-of-day zones, every edge of a zone is one that late readings move."""
    curve, events = story
    books = Books.open(curve)
    for happening in events:
        if isinstance(happening, Point):
            books.read(happening)
        else:
            books.close(curve.calendar.day_of(books.mark.at_ms) + timedelta(days=happening))
        books.require_sound()


@BOUNDED
@given(story=stories())
@example(story=LOWERED_EDGE)
def test_late_usage_put_off_until_the_end_adds_up_to_the_oracle(story: Story) -> None:
    """An account that was busy when its late readings came, and was closed meanwhile, is set right by one look."""
    curve, events = story
    books = Books.open(curve)
    for happening in events:
        if isinstance(happening, Point):
            books.put_off(happening)
        else:
            books.close(curve.calendar.day_of(books.mark.at_ms) + timedelta(days=happening))
    books.catch_up()
    books.require_sound()


@BOUNDED
@given(curve=curves(), until_days=st.integers(0, 75), data=st.data())
def test_late_usage_under_other_terms_adds_up_to_the_oracle(curve: Curve, until_days: int, data: st.DataObject) -> None:
    """Closed days rated again under other assignments are booked as if those had always held."""
    opened_on = curve.terms.opened_on
    books = Books.open(replace(curve, demands_w={}))
    books.known = list(curve.points)
    books.close(opened_on + timedelta(days=until_days))
    terms, assigned = data.draw(histories(opened_on))
    firsts = [part.first for part in parts_between(terms, opened_on, books.checkpoint.through)]
    posted = [
        PeriodPosted(period=period, energy_wh=books.energy_wh.get(period, 0), lines=books.lines.get(period, {}))
        for period in sorted({*books.lines, *firsts})
    ]
    anchor = max(point for point in books.known if point.at_ms <= books.checkpoint.anchor.at_ms)
    known = replace(books.checkpoint, anchor=anchor)
    found, books.checkpoint = late_usage(posted, known, terms, books.known, curve.calendar)
    for change in found:
        books.book(change.period, change.energy_wh, change.lines)
    books.curve = replace(books.curve, terms=terms, assigned=assigned)
    # What is left of parts that the terms no longer have is nothing.
    gone = books.lines.keys() - set(firsts)
    assert all(as_bill(books.energy_wh[period], books.lines[period]) == as_bill(0, {}) for period in gone)
    books.lines = {first: books.lines.get(first, {}) for first in firsts}
    books.energy_wh = {first: books.energy_wh.get(first, 0) for first in firsts}
    books.require_sound()


@BOUNDED
@given(curve=curves(), later_days=st.integers(0, 40))
def test_bill_by_month_of_any_curve_equals_the_oracle(curve: Curve, later_days: int) -> None:
    """The bills of a whole curve are the oracle's, also for silent days and months after the latest reading."""
    last_day = curve.last_day + timedelta(days=later_days)
    demands_w = {day: demand_w for day, demand_w in curve.demands_w.items() if day <= last_day}
    bills = bill_by_month(curve.terms, curve.points, last_day=last_day, calendar=curve.calendar, demands_w=demands_w)
    printed = {month: as_bill(energy_wh, lines) for month, (energy_wh, lines) in bills.items()}
    assert printed == oracle.by_month(curve.judged(curve.points, last_day, demands_w))


@BOUNDED
@given(curve=curves(), months=st.integers(0, 2))
def test_bill_by_month_up_to_a_month_end_leaves_out_what_came_after(curve: Curve, months: int) -> None:
    """Energy used after `last_day` belongs to no month up to it."""
    period = period_of(curve.terms.opened_on)
    for _ in range(months):
        period = next_period(period)
    last_day = next_period(period) - ONE_DAY
    bills = bill_by_month(curve.terms, curve.points, last_day=last_day, calendar=curve.calendar)
    printed = {month: as_bill(energy_wh, lines) for month, (energy_wh, lines) in bills.items()}
    judged = oracle.by_month(curve.judged(curve.points, last_day))
    assert printed == {month: judged[month] for month in judged if month <= period}


@BOUNDED
@given(curve=curves(), starts=st.lists(st.integers(0, 10**9), max_size=4), data=st.data())
def test_energy_to_date_over_rollovers_and_swaps_is_what_was_used(
    curve: Curve, starts: list[int], data: st.DataObject
) -> None:
    """Both ways of carrying a register give energy to date, whatever it shows after each roll-over or swap."""
    instants = [point.at_ms for point in curve.points]
    cuts = sorted(data.draw(st.lists(st.sampled_from(instants), unique=True, max_size=len(starts))))
    segments = [Segment(from_ms=instants[0], register_wh=curve.used[instants[0]], start_wh=curve.used[instants[0]])]
    for cut_ms, register_wh in zip(cuts, starts, strict=False):
        # Some of the energy up to the next reading had been used when the register began again.
        start_wh = curve.used[cut_ms] - data.draw(st.integers(0, register_wh))
        segments.append(Segment(from_ms=cut_ms, register_wh=register_wh, start_wh=start_wh))
    view = MeterView(
        id=1,
        serial="1",
        area="",
        rated_w=1,
        register_end_wh=10**9,
        installed_ms=instants[0],
        segments=tuple(segments),
        relay=None,
        relay_at_ms=None,
    )
    offsets = tuple(
        RegisterSegment(from_ms=each.from_ms, offset_wh=each.start_wh - each.register_wh) for each in segments
    )
    for at_ms in instants:
        held = [each for each in segments if each.from_ms <= at_ms][-1]
        shown_wh = held.register_wh + curve.used[at_ms] - held.start_wh
        assert view.energy_to_date(at_ms, shown_wh) == curve.used[at_ms]
        assert energy_to_date(offsets, at_ms, shown_wh) == curve.used[at_ms]


@BOUNDED
@given(at_ms=st.integers(0, 4_000_000_000_000), zone=st.sampled_from(ZONES))
def test_calendar_day_of_any_instant_lies_between_its_midnights(at_ms: int, zone: str) -> None:
    """An instant belongs to the day whose midnight is the last one at or before it."""
    calendar = CALENDARS[zone]
    day = calendar.day_of(at_ms)
    assert calendar.midnight_ms(day) <= at_ms < calendar.midnight_ms(day + ONE_DAY)
    assert calendar.day_of(calendar.midnight_ms(day)) == day
    assert to_ms(from_ms(at_ms)) == at_ms
