"""Whatever the meter says and whenever it says it, the money adds up to the bill."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

from hypothesis import HealthCheck, event, example, given, settings
from hypothesis import strategies as st

from billing.calendar import LocalCalendar, days_in, from_ms, next_period, period_of, to_ms
from billing.rating import Lines, added, charge_to_date, difference, total
from billing.running import (
    Checkpoint,
    PeriodPosted,
    Point,
    Terms,
    advance,
    begin,
    bill_by_period,
    close_days,
    late_usage,
    owed_minor,
    running_balance,
)
from billing.supply import Levels, Mode, Raised, Supply, crosses, decide, desired_supply, restores_with_minor
from billing.tariff import builtin_tariff
from tests.properties import oracle

TARIFF = builtin_tariff("punjab-ds-2026-27")
ONE_DAY = timedelta(days=1)
DAY_MS = 86_400_000
# Four months and more: every curve may cross several month ends, a clock change and a February.
SPAN_MS = 130 * DAY_MS
ZONES = ("Asia/Kolkata", "UTC", "Europe/London")
CALENDARS = {zone: LocalCalendar(ZoneInfo(zone)) for zone in ZONES}

BOUNDED = settings(deadline=None, max_examples=120, suppress_health_check=[HealthCheck.too_slow])


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """An account's opening and all that its meter will ever say, in order of time."""

    zone: str
    load_w: int
    credit_minor: int
    points: tuple[Point, ...]

    @property
    def calendar(self) -> LocalCalendar:
        return CALENDARS[self.zone]

    @property
    def terms(self) -> Terms:
        return Terms(tariff=TARIFF, load_w=self.load_w, opened_on=self.calendar.day_of(self.points[0].at_ms))

    def opening(self) -> Checkpoint:
        """Return the posted state of the account on the day it opened."""
        start_wh = self.points[0].energy_wh
        return Checkpoint(
            posted_minor=self.credit_minor,
            through=self.terms.opened_on,
            period_start_wh=start_wh,
            closed_wh=start_wh,
            charged={},
        )

    def judged(
        self, points: list[Point] | tuple[Point, ...], through: date | None = None
    ) -> dict[date, oracle.MonthBill]:
        """Return the oracle's bills of these points of the curve."""
        seen = [(from_ms(point.at_ms), point.energy_wh) for point in points]
        return oracle.bill(seen[0], seen[1:], load_w=self.load_w, zone_name=self.zone, accrued_to=through)


@dataclass(slots=True, kw_only=True)
class Books:
    """An account's journals, kept by the product's functions the way the database keeps them."""

    curve: Curve
    known: list[Point]
    checkpoint: Checkpoint
    energy_wh: dict[date, int] = field(default_factory=dict)
    lines: dict[date, Lines] = field(default_factory=dict)
    journals_minor: int = 0

    @classmethod
    def open(cls, curve: Curve) -> Books:
        return cls(curve=curve, known=[curve.points[0]], checkpoint=curve.opening())

    @property
    def mark(self) -> Point:
        return self.known[-1]

    def book(self, period: date, energy_wh: int, lines: Lines) -> None:
        self.energy_wh[period] = self.energy_wh.get(period, 0) + energy_wh
        self.lines[period] = added(self.lines.get(period, {}), lines)
        self.journals_minor += total(lines)

    def posted(self) -> list[PeriodPosted]:
        """Return what journals have booked, from the opening to the checkpoint's period."""
        periods = [period_of(self.curve.terms.opened_on)]
        while periods[-1] < period_of(self.checkpoint.through):
            periods.append(next_period(periods[-1]))
        return [
            PeriodPosted(period=period, energy_wh=self.energy_wh.get(period, 0), lines=self.lines.get(period, {}))
            for period in periods
        ]

    def read(self, point: Point) -> bool:
        """Take a reading; book the late usage that it brings. Tell whether it brought any."""
        calendar = self.curve.calendar
        closed_edge_ms = calendar.midnight_ms(period_of(self.checkpoint.through))
        # A reading moves a closed edge only if it is late, or the first one after an edge that was closed unread.
        moves = point < self.mark or self.mark.at_ms < closed_edge_ms
        self.known = sorted([*self.known, point])
        self._require_window_enough(point)
        before = self.checkpoint
        found = self.settle()
        assert moves or (found, self.checkpoint) == (False, before)
        return found

    def settle(self) -> bool:
        """Book late usage, and find none left. Tell whether there was any."""
        terms, calendar = self.curve.terms, self.curve.calendar
        found, self.checkpoint = late_usage(self.posted(), self.checkpoint, terms, self.known, calendar)
        for change in found:
            self.book(change.period, change.energy_wh, change.lines)
        again = late_usage(self.posted(), self.checkpoint, terms, self.known, calendar)
        assert again == ([], self.checkpoint)
        return bool(found)

    def _require_window_enough(self, point: Point) -> None:
        """Late usage from the reading's left neighbour on must find what the whole history finds."""
        left = self.known[self.known.index(point) - 1]
        terms, calendar = self.curve.terms, self.curve.calendar
        first = min(calendar.period_at(left.at_ms), period_of(self.checkpoint.through))
        posted = [booked for booked in self.posted() if booked.period >= first]
        points = [known for known in self.known if known >= left]
        part = late_usage(posted, self.checkpoint, terms, points, calendar)
        assert part == late_usage(self.posted(), self.checkpoint, terms, self.known, calendar)

    def close(self, until: date) -> None:
        """Close days one by one."""
        days = close_days(self.checkpoint, self.curve.terms, self.known, until=until, calendar=self.curve.calendar)
        for usage, checkpoint in days:
            assert usage.from_wh == self.checkpoint.closed_wh
            assert usage.to_wh == checkpoint.closed_wh
            assert checkpoint.through == usage.day + ONE_DAY
            self.book(usage.period, usage.to_wh - usage.from_wh, usage.lines)
            self.checkpoint = checkpoint

    def balance(self) -> int:
        return running_balance(self.checkpoint, self.curve.terms, self.known, self.curve.calendar)

    def require_sound(self) -> None:
        """Compare journals, running charge and checkpoint with the oracle's bills."""
        through = self.checkpoint.through
        current = period_of(through)
        bills = self.curve.judged(self.known, through)
        assert self.balance() == self.curve.credit_minor - oracle.total_minor(bills)
        assert self.checkpoint.posted_minor == self.curve.credit_minor - self.journals_minor
        assert self.checkpoint.closed_wh - self.known[0].energy_wh == sum(self.energy_wh.values())
        booked_minor = {period: total(lines) for period, lines in self.lines.items()}
        for period, month in bills.items():
            if period < current:
                assert as_month(self.energy_wh[period], self.lines[period]) == month
        assert total(self.checkpoint.charged) == booked_minor.get(current, 0)
        open_minor = sum(month.total_minor for period, month in bills.items() if period >= current)
        assert self.checkpoint.posted_minor - self.balance() == open_minor - booked_minor.get(current, 0)
        if self.curve.calendar.period_at(self.mark.at_ms) == current:
            unbooked_wh = self.mark.energy_wh - self.checkpoint.closed_wh
            assert self.energy_wh.get(current, 0) + unbooked_wh == bills[current].energy_wh


def as_month(energy_wh: int, lines: Lines) -> oracle.MonthBill:
    """Lay the product's lines out as the oracle prints them."""
    return oracle.MonthBill(
        energy_wh=energy_wh,
        energy_minor=lines.get("energy_1", 0) + lines.get("energy_2", 0),
        fixed_minor=lines.get("fixed", 0),
        rebate_minor=-lines.get("rebate", 0),
        duty_minor=lines.get("duty", 0),
        total_minor=total(lines),
    )


loads_w = st.one_of(st.sampled_from([1, 1999, 2000, 2001, 6999, 7000, 7001]), st.integers(1, 60_000))
steps_wh = st.one_of(st.integers(0, 9), st.integers(0, 30_000), st.sampled_from([299_999, 300_000, 300_001, 900_000]))
# Clock changes of London, month ends, the leap Februaries of 2024 and 2028, a year's end.
opening_days = st.one_of(
    st.sampled_from([date(2024, 2, 1), date(2026, 1, 31), date(2026, 4, 1), date(2026, 10, 25), date(2027, 12, 15)]),
    st.dates(date(2024, 1, 1), date(2028, 6, 30)),
)


@st.composite
def curves(draw: st.DrawFn, *, readings_max: int = 9) -> Curve:
    """Draw an account and a rising register, its instants crowded around midnights and month ends."""
    zone = draw(st.sampled_from(ZONES))
    calendar = CALENDARS[zone]
    opened_on = draw(opening_days)
    opened_ms = calendar.midnight_ms(opened_on) + draw(st.sampled_from([0, 1, DAY_MS // 3, 22 * DAY_MS // 24]))
    edges = [next_period(period_of(opened_on))]
    while len(edges) < 4:
        edges.append(next_period(edges[-1]))
    days = [*edges, *(opened_on + timedelta(days=number) for number in (1, 2, 40, 41))]
    near_edge = st.builds(
        lambda day, shift_ms: calendar.midnight_ms(day) + shift_ms,
        st.sampled_from(days),
        st.sampled_from([-3_600_000, -1, 0, 1, 3_600_000]),
    )
    anywhere = st.integers(1, SPAN_MS).map(lambda after_ms: opened_ms + after_ms)
    instants = st.one_of(anywhere, near_edge).filter(lambda at_ms: at_ms > opened_ms)
    rises = draw(st.dictionaries(instants, steps_wh, max_size=readings_max))
    register_wh = draw(st.sampled_from([0, 123_456_789]))
    points = [Point(at_ms=opened_ms, energy_wh=register_wh)]
    for at_ms in sorted(rises):
        register_wh += rises[at_ms]
        points.append(Point(at_ms=at_ms, energy_wh=register_wh))
    return Curve(
        zone=zone,
        load_w=draw(loads_w),
        credit_minor=draw(st.integers(-100_000, 1_000_000)),
        points=tuple(points),
    )


@st.composite
def stories(draw: st.DrawFn) -> tuple[Curve, list[Point | int]]:
    """Draw a curve, the order in which its readings arrive, and closes between them.

    A whole number closes all days up to that many days after the day of the mark.
    """
    curve = draw(curves(readings_max=7))
    arriving = list(curve.points[1:])
    for point in draw(st.lists(st.sampled_from(arriving), max_size=3, unique=True)) if arriving else []:
        arriving.remove(point)
        arriving.insert(draw(st.integers(0, len(arriving))), point)
    events: list[Point | int] = []
    closes = st.lists(st.one_of(st.integers(-3, 3), st.integers(-40, 70)), max_size=2)
    for point in arriving:
        events.extend(draw(closes))
        events.append(point)
    events.extend(draw(closes))
    return curve, events


@BOUNDED
@given(load_w=loads_w, energy_wh=st.one_of(steps_wh, st.integers(0, 2_000_000)), month=opening_days, data=st.data())
def test_charge_to_date_of_any_energy_and_days_equals_the_oracle(
    load_w: int, energy_wh: int, month: date, data: st.DataObject
) -> None:
    """Every line of a period so far is the bill's, for any number of days."""
    period = period_of(month)
    days = data.draw(st.integers(1, days_in(period)))
    opened = (datetime(period.year, period.month, 1, tzinfo=ZoneInfo("UTC")), 0)
    last = (opened[0] + timedelta(days=days) - timedelta(milliseconds=1), energy_wh)
    bills = oracle.bill(opened, [last], load_w=load_w, zone_name="UTC")
    lines = charge_to_date(TARIFF, load_w=load_w, energy_wh=energy_wh, fixed_days=days, period_days=days_in(period))
    assert as_month(energy_wh, lines) == bills[period]


@BOUNDED
@given(curve=curves())
def test_running_balance_of_any_curve_equals_the_oracle(curve: Curve) -> None:
    """The balance after every reading is the opening credit less the bills so far."""
    for seen in range(1, len(curve.points) + 1):
        points = curve.points[:seen]
        balance = running_balance(curve.opening(), curve.terms, points, curve.calendar)
        assert balance == curve.credit_minor - oracle.total_minor(curve.judged(points))


@BOUNDED
@given(curve=curves())
def test_walk_step_by_step_owes_what_the_whole_curve_owes(curve: Curve) -> None:
    """A walk carried from batch to batch gives, after each step, the balance of all points so far."""
    walk = begin(curve.opening(), curve.points[0])
    for seen, point in enumerate(curve.points[1:], start=2):
        walk = advance(walk, curve.terms, point, curve.calendar)
        owed = owed_minor(walk, curve.terms, through=curve.terms.opened_on, calendar=curve.calendar)
        assert owed == oracle.total_minor(curve.judged(curve.points[:seen]))


@BOUNDED
@given(curve=curves(), data=st.data())
def test_running_balance_with_points_between_two_of_one_period_is_unchanged(curve: Curve, data: st.DataObject) -> None:
    """A point between two others that have no period edge between them changes nothing."""
    more: list[Point] = []
    for left, right in pairwise(curve.points):
        period = curve.calendar.period_at(left.at_ms)
        if right.at_ms - left.at_ms > 1 and right.at_ms <= curve.calendar.midnight_ms(next_period(period)):
            at_ms = data.draw(st.integers(left.at_ms + 1, right.at_ms - 1))
            more.append(Point(at_ms=at_ms, energy_wh=data.draw(st.integers(left.energy_wh, right.energy_wh))))
    event(f"points added: {len(more)}")
    dense = sorted([*curve.points, *more])
    plain = running_balance(curve.opening(), curve.terms, curve.points, curve.calendar)
    assert running_balance(curve.opening(), curve.terms, dense, curve.calendar) == plain


@BOUNDED
@given(curve=curves())
def test_running_balance_of_only_the_points_around_edges_is_unchanged(curve: Curve) -> None:
    """The first point, the latest, and those on both sides of each period edge are enough."""
    periods = [curve.calendar.period_at(point.at_ms) for point in curve.points]
    kept = {0, len(periods) - 1}
    for number, (left, right) in enumerate(pairwise(periods)):
        if left != right:
            kept |= {number, number + 1}
    few = [curve.points[number] for number in sorted(kept)]
    plain = running_balance(curve.opening(), curve.terms, curve.points, curve.calendar)
    assert running_balance(curve.opening(), curve.terms, few, curve.calendar) == plain


@BOUNDED
@given(curve=curves(), data=st.data())
def test_running_balance_with_duplicates_is_unchanged(curve: Curve, data: st.DataObject) -> None:
    """A reading delivered again costs nothing."""
    copies = data.draw(st.lists(st.sampled_from(curve.points), max_size=4))
    twice = sorted([*curve.points, *copies])
    plain = running_balance(curve.opening(), curve.terms, curve.points, curve.calendar)
    assert running_balance(curve.opening(), curve.terms, twice, curve.calendar) == plain


@BOUNDED
@given(curve=curves(), data=st.data())
def test_close_days_between_readings_in_order_adds_up_to_the_oracle(curve: Curve, data: st.DataObject) -> None:
    """Day journals and running charge are the bill, at any pace of closing that passes no unread month end."""
    books = Books.open(curve)
    for point in (None, *curve.points[1:]):
        if point is not None:
            books.read(point)
        # The last day that may be closed: the one before the last of the mark's month.
        limit = next_period(curve.calendar.period_at(books.mark.at_ms)) - 2 * ONE_DAY
        wanted = curve.calendar.day_of(books.mark.at_ms) + timedelta(days=data.draw(st.integers(-40, 25)))
        books.close(min(wanted, limit))
        books.require_sound()


@BOUNDED
@given(curve=curves(), ahead=st.integers(0, 70))
def test_close_days_one_by_one_moves_the_balance_only_by_new_days(curve: Curve, ahead: int) -> None:
    """Closing a day up to money time leaves the balance; closing beyond it adds the days' fixed charge and duty."""
    books = Books.open(curve)
    books.known = list(curve.points)
    mark_day = curve.calendar.day_of(books.mark.at_ms)
    before = books.balance()
    while books.checkpoint.through <= mark_day + timedelta(days=ahead):
        books.close(books.checkpoint.through)
        after = books.balance()
        if books.checkpoint.through <= mark_day:
            assert after == before
        else:
            assert after <= before
            bills = curve.judged(curve.points, books.checkpoint.through)
            assert after == curve.credit_minor - oracle.total_minor(bills)
        before = after
    books.require_sound()


@BOUNDED
@given(curve=curves(), until_days=st.integers(0, 130))
def test_close_days_at_once_equals_closing_each_day_as_it_ends(curve: Curve, until_days: int) -> None:
    """Catching up is the same as never having fallen behind."""
    until = curve.terms.opened_on + timedelta(days=until_days)
    at_once, daily = Books.open(curve), Books.open(curve)
    at_once.known, daily.known = list(curve.points), list(curve.points)
    at_once.close(until)
    while daily.checkpoint.through <= until:
        daily.close(daily.checkpoint.through)
    assert at_once == daily


def _point(curve_day: date, energy_wh: int) -> Point:
    return Point(at_ms=CALENDARS["UTC"].midnight_ms(curve_day), energy_wh=energy_wh)


# A late reading lowers the estimate of a month end when nothing of the new month has been booked.
LOWERED_EDGE = (
    Curve(
        zone="UTC",
        load_w=1000,
        credit_minor=0,
        points=(_point(date(2026, 4, 30), 0), _point(date(2026, 5, 1), 1), _point(date(2026, 5, 2), 4)),
    ),
    [_point(date(2026, 5, 2), 4), -2, _point(date(2026, 5, 1), 1)],
)


@settings(BOUNDED, max_examples=250)
@given(story=stories())
@example(story=LOWERED_EDGE)
def test_late_usage_after_silence_and_late_readings_adds_up_to_the_oracle(
    story: tuple[Curve, list[Point | int]],
) -> None:
    """However readings and closes interleave, every period's journals and the running charge are the bill."""
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
@given(story=stories())
@example(story=LOWERED_EDGE)
def test_late_usage_put_off_until_the_end_adds_up_to_the_oracle(story: tuple[Curve, list[Point | int]]) -> None:
    """An account that was busy when its late readings came, and was closed meanwhile, is set right by one look."""
    curve, events = story
    books = Books.open(curve)
    for happening in events:
        if isinstance(happening, Point):
            books.known = sorted([*books.known, happening])
        else:
            books.close(curve.calendar.day_of(books.mark.at_ms) + timedelta(days=happening))
    books.settle()
    books.require_sound()


@BOUNDED
@given(curve=curves(), later_days=st.integers(0, 70))
def test_bill_by_period_of_any_curve_equals_the_oracle(curve: Curve, later_days: int) -> None:
    """The auditor's bills are the oracle's, also for silent days and months after the latest reading."""
    last_day = curve.calendar.day_of(curve.points[-1].at_ms) + timedelta(days=later_days)
    bills = bill_by_period(curve.terms, curve.points, last_day=last_day, calendar=curve.calendar)
    printed = {period: as_month(energy_wh, lines) for period, (energy_wh, lines) in bills.items()}
    assert printed == curve.judged(curve.points, last_day)


@BOUNDED
@given(curve=curves(), months=st.integers(0, 4))
def test_bill_by_period_up_to_a_month_end_leaves_out_what_came_after(curve: Curve, months: int) -> None:
    """Energy used after `last_day` belongs to no period up to it."""
    period = period_of(curve.terms.opened_on)
    for _ in range(months):
        period = next_period(period)
    last_day = next_period(period) - ONE_DAY
    bills = bill_by_period(curve.terms, curve.points, last_day=last_day, calendar=curve.calendar)
    printed = {month: as_month(energy_wh, lines) for month, (energy_wh, lines) in bills.items()}
    judged = curve.judged(curve.points, last_day)
    assert printed == {month: judged[month] for month in judged if month <= period}


lines_of_a_bill = st.dictionaries(st.sampled_from(["energy_1", "energy_2", "fixed", "rebate", "duty"]), st.integers())


@BOUNDED
@given(charged=lines_of_a_bill, to_date=lines_of_a_bill)
def test_difference_added_to_what_was_charged_gives_the_lines_to_date(charged: Lines, to_date: Lines) -> None:
    """Posting the difference brings every line to date and leaves no empty line behind."""
    change = difference(to_date, charged)
    assert all(change.values())
    booked = added(charged, change)
    assert difference(booked, to_date) == {}
    assert total(booked) == total(to_date)


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


@BOUNDED
@given(at_ms=st.integers(0, 4_000_000_000_000), zone=st.sampled_from(ZONES))
def test_calendar_day_of_any_instant_lies_between_its_midnights(at_ms: int, zone: str) -> None:
    """An instant belongs to the day whose midnight is the last one at or before it."""
    calendar = CALENDARS[zone]
    day = calendar.day_of(at_ms)
    assert calendar.midnight_ms(day) <= at_ms < calendar.midnight_ms(day + ONE_DAY)
    assert calendar.day_of(calendar.midnight_ms(day)) == day
    assert to_ms(from_ms(at_ms)) == at_ms
