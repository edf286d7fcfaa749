"""Accounts with all that their meters will say, and their journals, kept the way the database keeps them.

Stage: shared by the property tests of the running balance. `curves` draws an account with any tariffs and any dated
assignments, `stories` also the order in which its readings arrive; `Books` books them and compares with the oracle.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from billing.calendar import LocalCalendar, from_ms, next_period, period_of
from billing.late_usage import late_usage
from billing.rating import Lines, added, total
from billing.running import (
    Checkpoint,
    PeriodPosted,
    Point,
    charged_lines,
    close_days,
    open_bills,
    opening,
    running_balance,
)
from billing.tariff_document import builtin_documents, parse_tariff
from billing.terms import Assignment, BillPart, Terms
from db.posting import closed_edges_ms, parts_between
from headend.state import RegisterSegment, energy_to_date
from tests.properties import oracle
from tests.properties.tariff_strategies import AREAS, loads_w, tariff_texts

# One core tries the examples of all properties in about a minute; a night may try many times as many.
EXAMPLES_TIMES = int(os.environ.get("EXAMPLES_TIMES", "1"))
BOUNDED = settings(deadline=None, max_examples=40 * EXAMPLES_TIMES, suppress_health_check=[HealthCheck.too_slow])

ONE_DAY = timedelta(days=1)
HOUR_MS, DAY_MS = 3_600_000, 86_400_000
# Two months and more: every curve may cross several month ends, a clock change and a February.
SPAN_DAYS = 75
ZONES = ("Asia/Kolkata", "UTC", "Europe/London")
CALENDARS = {zone: LocalCalendar(ZoneInfo(zone)) for zone in ZONES}
SHIPPED = builtin_documents()["punjab-ds-2026-27"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """An account's opening, its assignments, and all that its meter will ever say, in order of time.

    `points` are what the product makes of the registers, `used` the same as it happened, for the oracle.
    """

    zone: str
    credit_minor: int
    terms: Terms
    assigned: tuple[oracle.Assigned, ...]
    points: tuple[Point, ...]
    used: dict[int, int]
    demands_w: dict[date, int]

    @property
    def calendar(self) -> LocalCalendar:
        return CALENDARS[self.zone]

    @property
    def last_day(self) -> date:
        return self.calendar.day_of(self.points[-1].at_ms)

    def edges_ms(self) -> list[int]:
        """Return every instant at which a bill part or a zone ends, to the end of the last day."""
        end = self.last_day + ONE_DAY
        return closed_edges_ms(parts_between(self.terms, self.terms.opened_on, end), end, self.calendar)

    def opening(self) -> Checkpoint:
        """Return the posted state of the account on the day it opened."""
        return opening(self.terms, posted_minor=self.credit_minor, at=self.points[0])

    def judged(
        self, points: Iterable[Point], through: date | None = None, demands_w: dict[date, int] | None = None
    ) -> dict[date, oracle.Bill]:
        """Return the oracle's bill parts of these points of the curve."""
        seen = [(from_ms(point.at_ms), self.used[point.at_ms]) for point in points]
        return oracle.bill(
            seen[0], seen[1:], assigned=self.assigned, zone_name=self.zone, accrued_to=through, demands_w=demands_w
        )


@dataclass(slots=True, kw_only=True)
class Books:
    """An account's journals."""

    curve: Curve
    known: list[Point]
    checkpoint: Checkpoint
    energy_wh: dict[date, int] = field(default_factory=dict)
    lines: dict[date, Lines] = field(default_factory=dict)
    demand_w: dict[date, int] = field(default_factory=dict)
    journals_minor: int = 0
    unsettled_since_ms: int | None = None

    @classmethod
    def open(cls, curve: Curve) -> Books:
        return cls(curve=curve, known=[curve.points[0]], checkpoint=curve.opening())

    @property
    def mark(self) -> Point:
        return self.known[-1]

    @property
    def open_part(self) -> BillPart:
        return self.curve.terms.part_at(self.checkpoint.through)

    def view(self, *, daily: bool = False) -> list[Point]:
        """Return the points that a look at the account reads: those around the edges since the anchor, and the last.

        `daily` also takes those around each midnight, as to close days.
        """
        terms, calendar, anchor = self.curve.terms, self.curve.calendar, self.checkpoint.anchor
        later = [point for point in self.known if point.at_ms > anchor.at_ms]
        end = max(calendar.day_of(self.mark.at_ms), self.checkpoint.through) + ONE_DAY
        parts = [self.open_part]
        while parts[-1].end < end:
            parts.append(terms.next_part(parts[-1]))
        edges_ms = closed_edges_ms(parts, end, calendar)
        if daily:
            days = (end - self.checkpoint.through).days
            edges_ms += [calendar.midnight_ms(self.checkpoint.through + number * ONE_DAY) for number in range(days)]
        return [anchor, *sorted({*around(later, edges_ms), *later[-1:]})]

    @property
    def silent(self) -> bool:
        """Whether the open part's first edge was closed without a reading after it."""
        part_ms = self.curve.calendar.midnight_ms(self.open_part.first)
        return self.checkpoint.anchor.at_ms < part_ms and self.open_part.first > self.curve.terms.opened_on

    def book(self, period: date, energy_wh: int, lines: Lines) -> None:
        self.energy_wh[period] = self.energy_wh.get(period, 0) + energy_wh
        self.lines[period] = added(self.lines.get(period, {}), lines)
        self.journals_minor += total(lines)

    def posted(self, parts: Iterable[BillPart]) -> list[PeriodPosted]:
        """Return what journals have booked for some parts."""
        return [
            PeriodPosted(
                period=part.first,
                energy_wh=self.energy_wh.get(part.first, 0),
                lines=self.lines.get(part.first, {}),
                demand_w=self.demand_w.get(part.first, 0),
            )
            for part in parts
        ]

    def read(self, point: Point) -> bool:
        """Take a reading; book the late usage that it brings. Tell whether it brought any."""
        late = point < self.mark
        self.known = sorted([*self.known, point])
        # A reading moves a closed edge only if it is late, or the first one after an edge that was closed unread.
        return self.settle(point.at_ms if late else None) if late or self.silent else False

    def settle(self, late_since_ms: int | None = None) -> bool:
        """Book late usage, found with the window of points that the database reads, and find none left."""
        terms, calendar = self.curve.terms, self.curve.calendar
        since_ms = self.checkpoint.anchor.at_ms
        if late_since_ms is not None:
            since_ms = min(since_ms, late_since_ms)
        first = [self.known[0], *(point for point in self.known if point.at_ms < since_ms)][-1]
        parts = parts_between(terms, calendar.day_of(first.at_ms), self.checkpoint.through)
        edges_ms = closed_edges_ms(parts, self.checkpoint.through, calendar)
        points = sorted({self.known[0], *around(self.known, edges_ms)})
        found, checkpoint = late_usage(self.posted(parts), self.checkpoint, terms, points, calendar)
        assert self.unsettled_since_ms is not None or (found, checkpoint) == self._late_usage_of_everything()
        self.checkpoint = checkpoint
        for change in found:
            self.book(change.period, change.energy_wh, change.lines)
        assert self.unsettled_since_ms is not None or self._late_usage_of_everything() == ([], self.checkpoint)
        return bool(found)

    def put_off(self, point: Point) -> None:
        """Take a reading of an account that is busy; what it brings is to be settled later."""
        if point < self.mark:
            self.unsettled_since_ms = min(point.at_ms, self.unsettled_since_ms or point.at_ms)
        self.known = sorted([*self.known, point])

    def catch_up(self) -> None:
        """Settle what was put off."""
        since_ms, self.unsettled_since_ms = self.unsettled_since_ms, None
        if since_ms is not None or self.silent:
            self.settle(since_ms)

    def _late_usage_of_everything(self) -> tuple[object, Checkpoint]:
        terms = self.curve.terms
        parts = parts_between(terms, terms.opened_on, self.checkpoint.through)
        return late_usage(self.posted(parts), self.checkpoint, terms, self.known, self.curve.calendar)

    def close(self, until: date) -> None:
        """Close days as the sweep does: a silent edge that has been read since is settled first."""
        if until >= self.checkpoint.through and self.silent and len(self.view()) > 1:
            self.settle()
        self.close_days(until)

    def close_days(self, until: date) -> None:
        """Close days one by one."""
        curve = self.curve
        days = close_days(
            self.checkpoint,
            curve.terms,
            self.view(daily=True),
            until=until,
            calendar=curve.calendar,
            demands_w=curve.demands_w,
        )
        for usage, checkpoint in days:
            assert usage.from_wh == self.checkpoint.closed_wh
            assert usage.to_wh == checkpoint.closed_wh
            assert checkpoint.through == usage.day + ONE_DAY
            assert usage.demand_w == curve.demands_w.get(usage.day)
            self.book(usage.period, usage.to_wh - usage.from_wh, usage.lines)
            self.demand_w[usage.period] = max(self.demand_w.get(usage.period, 0), usage.demand_w or 0)
            self.checkpoint = checkpoint

    def balance(self) -> int:
        return running_balance(self.checkpoint, self.curve.terms, self.view(), self.curve.calendar)

    def bills(self) -> dict[date, oracle.Bill]:
        """Return the oracle's bill parts of what is known; a day's demand is known once it is closed."""
        through = self.checkpoint.through
        demands_w = {day: demand_w for day, demand_w in self.curve.demands_w.items() if day < through}
        return self.curve.judged(self.known, through, demands_w)

    def require_sound(self) -> None:
        """Compare journals, running charge and checkpoint with the oracle's bills, line by line."""
        checkpoint, part, bills = self.checkpoint, self.open_part, self.bills()
        assert self.balance() == self.curve.credit_minor - oracle.total_minor(bills)
        assert checkpoint.posted_minor == self.curve.credit_minor - self.journals_minor
        assert checkpoint.closed_wh - self.known[0].energy_wh == sum(self.energy_wh.values())
        closed = {first: as_bill(self.energy_wh[first], lines) for first, lines in self.lines.items()}
        booked = closed.pop(part.first, as_bill(0, {}))
        assert closed == {first: bill for first, bill in bills.items() if first < part.first}
        running = open_bills(checkpoint, self.curve.terms, self.view(), self.curve.calendar)
        printed = {first: as_bill(energy_wh, lines) for first, (energy_wh, lines) in running.items()}
        assert printed == {first: bill for first, bill in bills.items() if first >= part.first}
        charged = charged_lines(checkpoint, self.curve.terms)
        assert as_bill(checkpoint.closed_wh - checkpoint.part_start_wh, charged) == booked
        assert total(charged) == checkpoint.charged_minor
        self._require_anchored()

    def _require_anchored(self) -> None:
        """The checkpoint's energy by zone is all of its energy."""
        checkpoint, part = self.checkpoint, self.open_part
        assert checkpoint.anchor.at_ms <= self.curve.calendar.midnight_ms(checkpoint.through) or (
            checkpoint.anchor == self.known[0]
        )
        if part.zone_count:
            assert sum(checkpoint.closed_zones) == checkpoint.closed_wh - checkpoint.part_start_wh
            since_wh = checkpoint.anchor.energy_wh - checkpoint.part_start_wh
            assert sum(checkpoint.anchor_zones) == max(0, since_wh)


def as_bill(energy_wh: int, lines: Lines) -> oracle.Bill:
    """Lay the product's lines out as the oracle prints them."""
    return oracle.Bill(energy_wh=energy_wh, lines={name: amount for name, amount in lines.items() if amount})


def around(points: Sequence[Point], edges_ms: Iterable[int]) -> list[Point]:
    """Return the points next to each edge, on both sides."""
    instants = [point.at_ms for point in points]
    kept: set[int] = set()
    for edge_ms in edges_ms:
        place = bisect_left(instants, edge_ms)
        kept |= {number for number in (place - 1, place) if 0 <= number < len(points)}
    return [points[number] for number in sorted(kept)]


steps_wh = st.one_of(st.integers(0, 9), st.integers(0, 30_000), st.sampled_from([299_999, 300_000, 300_001, 900_000]))
# Clock changes of London, month ends, the leap Februaries of 2024 and 2028, a year's end.
opening_days = st.one_of(
    st.sampled_from(
        [
            date(2024, 2, 1),
            date(2026, 1, 31),
            date(2026, 3, 28),
            date(2026, 4, 1),
            date(2026, 10, 24),
            date(2027, 12, 15),
        ]
    ),
    st.dates(date(2024, 1, 1), date(2028, 6, 30)),
)


def days_near(opened_on: date) -> st.SearchStrategy[date]:
    """Draw days on which things change: month ends, clock changes, the days around, any day of the span."""
    edges = [next_period(period_of(opened_on))]
    while len(edges) < 3:
        edges.append(next_period(edges[-1]))
    shifted = [edge + timedelta(days=shift) for edge in edges for shift in (-1, 0, 1, 14)]
    soon = [opened_on + timedelta(days=number) for number in (1, 2, 3)]
    changes = [day for day in (date(2026, 3, 29), date(2026, 10, 25)) if 0 < (day - opened_on).days < SPAN_DAYS]
    anywhere = st.integers(1, SPAN_DAYS).map(lambda number: opened_on + timedelta(days=number))
    return st.one_of(st.sampled_from([day for day in (*soon, *shifted, *changes) if day > opened_on]), anywhere)


@st.composite
def histories(
    draw: st.DrawFn, opened_on: date, *, zoned: bool | None = None
) -> tuple[Terms, tuple[oracle.Assigned, ...]]:
    """Draw what an account is assigned to from the opening on, for the product and for the oracle."""
    near = days_near(opened_on)
    texts = [draw(tariff_texts(days=near, zoned=zoned))]
    if draw(st.integers(0, 2)) == 2:
        texts.append(draw(tariff_texts(days=near, zoned=zoned)))
    elif not zoned:
        texts.append(SHIPPED)
    tariffs = {text: parse_tariff(text) for text in texts}
    from_days = [opened_on, *sorted(draw(st.lists(near, unique=True, max_size=3)))]
    assigned = tuple(
        oracle.Assigned(
            from_day=from_day,
            text=draw(st.sampled_from(texts)),
            load_w=draw(loads_w),
            area=draw(st.sampled_from(AREAS)),
            meter_rent=draw(st.booleans()),
        )
        for from_day in from_days
    )
    assignments = tuple(
        Assignment(
            from_day=each.from_day,
            tariff=tariffs[each.text],
            load_w=each.load_w,
            area=each.area,
            meter_rent=each.meter_rent,
        )
        for each in assigned
    )
    return Terms(opened_on=opened_on, assignments=assignments), assigned


@st.composite
def curves(draw: st.DrawFn, *, readings_max: int = 9, zoned: bool | None = None) -> Curve:
    """Draw an account and a rising register, its instants crowded around the edges of days, parts and zones."""
    zone = draw(st.sampled_from(ZONES))
    calendar = CALENDARS[zone]
    opened_on = draw(opening_days)
    terms, assigned = draw(histories(opened_on, zoned=zoned))
    opened_ms = calendar.midnight_ms(opened_on) + draw(st.sampled_from([0, 1, DAY_MS // 3, 22 * HOUR_MS]))
    minutes = {0, 60, 120} | {
        minute
        for each in terms.assignments
        if each.tariff.zones is not None
        for minute in each.tariff.zones.edge_minutes
    }
    near_edge = st.builds(
        lambda day, minute, shift_ms: calendar.instant_ms(day, minute) + shift_ms,
        st.one_of(days_near(opened_on), st.sampled_from([each.from_day for each in assigned])),
        st.sampled_from([0, 0, *sorted(minutes)]),
        st.sampled_from([-HOUR_MS, -1, 0, 1, HOUR_MS]),
    )
    anywhere = st.integers(1, SPAN_DAYS * DAY_MS).map(lambda after_ms: opened_ms + after_ms)
    instants = st.one_of(anywhere, near_edge).filter(lambda at_ms: at_ms > opened_ms)
    rises = draw(st.dictionaries(instants, steps_wh, max_size=readings_max))
    used = {opened_ms: draw(st.sampled_from([0, 123_456_789]))}
    for at_ms in sorted(rises):
        used[at_ms] = used[max(used)] + rises[at_ms]
    days = st.one_of(days_near(opened_on), st.just(opened_on))
    return Curve(
        zone=zone,
        credit_minor=draw(st.integers(-100_000, 1_000_000)),
        terms=terms,
        assigned=assigned,
        points=draw(carried(used)),
        used=used,
        demands_w=draw(st.dictionaries(days, st.integers(0, 9_000), max_size=4)),
    )


@st.composite
def carried(draw: st.DrawFn, used: dict[int, int]) -> tuple[Point, ...]:
    """Read energy off a register that rolls over, or starts anew with another meter, and carry it to date again."""
    instants = sorted(used)
    segments = [RegisterSegment(from_ms=instants[0], offset_wh=0)]
    for earlier, later in pairwise(instants):
        if draw(st.integers(0, 4)) == 4:
            # A roll-over or swap lies between two readings; the register begins again at most at what it shows next.
            offset_wh = draw(st.integers(0, used[later]))
            segments.append(RegisterSegment(from_ms=draw(st.integers(earlier + 1, later)), offset_wh=offset_wh))
    points = []
    for at_ms in instants:
        offset_wh = [segment.offset_wh for segment in segments if segment.from_ms <= at_ms][-1]
        register_wh = used[at_ms] - offset_wh
        points.append(Point(at_ms=at_ms, energy_wh=energy_to_date(tuple(segments), at_ms, register_wh)))
    return tuple(points)


# A reading, or how many days after the day of the mark to close.
Story = tuple[Curve, list[Point | int]]


@st.composite
def stories(draw: st.DrawFn, *, zoned: bool | None = None, readings_max: int = 7) -> Story:
    """Draw a curve, the order in which its readings arrive, and closes between them.

    A whole number closes all days up to that many days after the day of the mark.
    """
    curve = draw(curves(readings_max=readings_max, zoned=zoned))
    arriving = list(curve.points[1:])
    late = draw(st.lists(st.sampled_from(arriving), unique=True)) if arriving else []
    for point in late:
        arriving.remove(point)
        arriving.insert(draw(st.integers(0, len(arriving))), point)
    events: list[Point | int] = []
    closes = st.lists(st.one_of(st.integers(-3, 3), st.integers(-40, 70)), max_size=2)
    for point in arriving:
        events.extend(draw(closes))
        events.append(point)
    events.extend(draw(closes))
    return curve, events
