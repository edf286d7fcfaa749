"""The charge up to an instant: before and after what is closed, at midnights, and at money time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import date, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

from hypothesis import given, settings
from hypothesis import strategies as st

from billing.calendar import LocalCalendar
from billing.past_balance import BookedBefore, charge_in_closed_part, owed_at
from billing.rating import total
from billing.running import Checkpoint, DayUsage, Point, close_days, energy_at, opening, running_balance, zones_of
from billing.tariff import Tariff
from billing.tariff_document import builtin_tariff
from billing.terms import ONE_DAY, Assignment, Terms, part_lines
from billing.zones import Zones

KOLKATA = LocalCalendar(ZoneInfo("Asia/Kolkata"))
TARIFF = builtin_tariff("punjab-ds-2026-27")
MAY = date(2026, 5, 1)
HOUR_MS = 3_600_000
DAY_HOURS = ((0, 1), (6 * 60, 0), (22 * 60, 1))
BY_HOURS = replace(
    TARIFF,
    zones=Zones(
        names=("day", "night"),
        milli_per_kwh=(200_000, -100_000),
        seasons=(),
        weekend=frozenset(),
        holidays=frozenset(),
        hours={("", False): DAY_HOURS, ("", True): DAY_HOURS},
    ),
)


def terms_of(first: Tariff, second: Tariff) -> Terms:
    """Return terms that change in mid May, so that May has two bill parts and June one."""
    return Terms(
        opened_on=MAY,
        assignments=(
            Assignment(from_day=MAY, tariff=first, load_w=2_000),
            Assignment(from_day=MAY.replace(day=12), tariff=second, load_w=5_000),
        ),
    )


TERMS = terms_of(TARIFF, TARIFF)
ANY_TERMS = st.sampled_from([TERMS, terms_of(TARIFF, BY_HOURS), terms_of(BY_HOURS, TARIFF)])
CURVES = st.lists(st.tuples(st.integers(1, 120), st.integers(0, 60_000)), min_size=2, max_size=25)


def curve_of(steps: Sequence[tuple[int, int]]) -> list[Point]:
    """Make a curve from the opening on: steps of hours and Wh."""
    points = [Point(at_ms=KOLKATA.midnight_ms(MAY), energy_wh=0)]
    for hours, energy_wh in steps:
        last = points[-1]
        points.append(Point(at_ms=last.at_ms + hours * HOUR_MS, energy_wh=last.energy_wh + energy_wh))
    return points


def charge_by_definition(terms: Terms, points: Sequence[Point], at_ms: int) -> int:
    """Bill every part up to an instant from the whole curve, part by part."""
    day, charge_minor, before_wh = MAY, 0, 0
    until = KOLKATA.day_of(at_ms)
    while day <= until:
        part = terms.part_at(day)
        start_wh, _ = energy_at(points, KOLKATA.midnight_ms(part.first))
        end_wh, _ = energy_at(points, min(at_ms, KOLKATA.midnight_ms(part.end)))
        before_wh = 0 if part.fresh else before_wh
        lines = part_lines(
            part,
            before_wh=before_wh,
            energy_wh=end_wh - start_wh,
            zone_wh=zones_of(part, points, at_ms, KOLKATA),
            through_day=min(until, part.last),
        )
        charge_minor += total(lines)
        before_wh += end_wh - start_wh
        day = part.end
    return charge_minor


def closed_to(terms: Terms, points: list[Point], until: date) -> tuple[list[DayUsage], Checkpoint]:
    """Close the days from the opening up to and including one."""
    checkpoint = opening(terms, posted_minor=0, at=points[0])
    days = []
    for usage, after in close_days(checkpoint, terms, points, until=until, calendar=KOLKATA):
        days.append(usage)
        checkpoint = after
    return days, checkpoint


def booked_before(days: Sequence[DayUsage], part: date, fresh: date) -> BookedBefore:
    """Sum what day journals have booked before a part, as the database does."""
    earlier = [usage for usage in days if usage.period < part]
    return BookedBefore(
        charged_minor=sum(total(usage.lines) for usage in earlier),
        start_wh=sum(usage.to_wh - usage.from_wh for usage in earlier),
        before_wh=sum(usage.to_wh - usage.from_wh for usage in earlier if usage.period >= fresh),
        demand_w=0,
    )


@settings(deadline=None)
@given(ANY_TERMS, CURVES, st.integers(0, 10**9), st.integers(0, 60))
def test_charge_up_to_any_instant_is_the_bill_so_far_wherever_days_are_closed(
    terms: Terms, steps: list[tuple[int, int]], part_of_time: int, closed_days: int
) -> None:
    """From journals before the checkpoint, from readings after it: the same bill by its definition."""
    points = curve_of(steps)
    last_ms = points[-1].at_ms
    at_ms = points[0].at_ms + (last_ms - points[0].at_ms) * part_of_time // 10**9
    until = min(MAY + (closed_days - 1) * ONE_DAY, KOLKATA.day_of(last_ms) - ONE_DAY)
    days, checkpoint = closed_to(terms, points, until)
    if at_ms < KOLKATA.midnight_ms(checkpoint.through):
        day = KOLKATA.day_of(at_ms)
        booked = booked_before(days, terms.part_at(day).first, terms.fresh_part_at(day).first)
        # With zones the points around each of their edges are needed, which may be all.
        around = points if terms.part_at(day).zone_count else around_of(points, at_ms)
        charged = charge_in_closed_part(terms, booked, around, at_ms=at_ms, calendar=KOLKATA)
    else:
        posted = sum(total(usage.lines) for usage in days)
        known = [checkpoint.anchor, *(point for point in points if point.at_ms > checkpoint.anchor.at_ms)]
        charged = posted + owed_at(checkpoint, terms, known, at_ms=at_ms, calendar=KOLKATA)
    assert charged == charge_by_definition(terms, points, at_ms)


def around_of(points: Sequence[Point], at_ms: int) -> list[Point]:
    """Return the points on both sides of an instant, as the database finds them."""
    for earlier, later in pairwise(points):
        if at_ms <= later.at_ms:
            return [earlier, later]
    return [points[-1]]


@settings(deadline=None)
@given(ANY_TERMS, CURVES, st.integers(0, 60))
def test_charge_at_money_time_and_later_is_the_running_charge(
    terms: Terms, steps: list[tuple[int, int]], closed_days: int
) -> None:
    """After the latest reading nothing is known, so the balance stays that of money time."""
    points = curve_of(steps)
    until = min(MAY + (closed_days - 1) * ONE_DAY, KOLKATA.day_of(points[-1].at_ms) - ONE_DAY)
    _, checkpoint = closed_to(terms, points, until)
    known = [checkpoint.anchor, *(point for point in points if point.at_ms > checkpoint.anchor.at_ms)]
    running_minor = running_balance(checkpoint, terms, known, KOLKATA)
    for later_ms in (0, HOUR_MS, 1_000 * HOUR_MS):
        at_ms = max(points[-1].at_ms, KOLKATA.midnight_ms(checkpoint.through)) + later_ms
        owed_minor = owed_at(checkpoint, terms, known, at_ms=at_ms, calendar=KOLKATA)
        assert checkpoint.posted_minor - owed_minor == running_minor


def test_charge_before_the_opening_is_nothing() -> None:
    """A day before the first one owes neither energy nor a fixed charge."""
    booked = BookedBefore(charged_minor=0, start_wh=0, before_wh=0, demand_w=0)
    points = curve_of([(24, 5_000)])
    at_ms = KOLKATA.midnight_ms(MAY) - 1
    assert charge_in_closed_part(TERMS, booked, points, at_ms=at_ms, calendar=KOLKATA) == 0


def test_midnight_begins_the_fixed_charge_of_the_new_day() -> None:
    """A millisecond before midnight one day is touched, at midnight two."""
    points = curve_of([(72, 0)])
    booked = BookedBefore(charged_minor=0, start_wh=0, before_wh=0, demand_w=0)
    midnight_ms = KOLKATA.midnight_ms(MAY + timedelta(days=1))
    before, after = (
        charge_in_closed_part(TERMS, booked, points, at_ms=at_ms, calendar=KOLKATA)
        for at_ms in (midnight_ms - 1, midnight_ms)
    )
    # 2 kW at 50 rupees a kW and month of 31 days: 3.23 and 6.45 rupees, with 15 % duty of each.
    assert (before, after) == (323 + 48, 645 + 97)
