"""Edges in time, day closing and late usage, each rule in the smallest curve that shows it."""

from __future__ import annotations

from datetime import date, timedelta
from zoneinfo import ZoneInfo

import pytest

from billing.calendar import LocalCalendar
from billing.late_usage import late_usage
from billing.rating import total
from billing.running import (
    Checkpoint,
    DayUsage,
    EdgeQuality,
    LateUsage,
    PeriodPosted,
    Point,
    advance,
    begin,
    bill_by_month,
    charged_lines,
    close_days,
    energy_at,
    energy_between,
    open_bills,
    opening,
    owed_minor,
    running_balance,
)
from billing.tariff_document import builtin_tariff, parse_tariff
from billing.terms import Assignment, Terms, one_assignment, part_lines

TARIFF = builtin_tariff("punjab-ds-2026-27")
# Rs 5 a kWh; a rupee more from 6 to 22 o'clock.
ZONED = parse_tariff("""
id = "tod"
effective_from = 2026-01-01
[[band]]
energy = [{ rate_milli_per_kwh = 500_000 }]
[zones]
[[zones.zone]]
name = "day"
surcharge_milli_per_kwh = 100_000
[[zones.zone]]
name = "night"
[[zones.hours]]
zone = "day"
from = "06:00"
to = "22:00"
[[zones.hours]]
zone = "night"
from = "22:00"
to = "06:00"
""")
# Rs 100 per kW and month of demand above the load.
DEMAND = parse_tariff("""
id = "demand"
effective_from = 2026-01-01
[[band]]
demand_milli_per_kw_month = 10_000_000
energy = [{ rate_milli_per_kwh = 500_000 }]
""")
KOLKATA = LocalCalendar(ZoneInfo("Asia/Kolkata"))
LONDON = LocalCalendar(ZoneInfo("Europe/London"))
HOUR_MS = 3_600_000
APRIL, MAY, JUNE = date(2026, 4, 1), date(2026, 5, 1), date(2026, 6, 1)


def at(day: date, energy_wh: int, *, shift_ms: int = 0, calendar: LocalCalendar = KOLKATA) -> Point:
    """Return a point so many milliseconds after a local midnight."""
    return Point(at_ms=calendar.midnight_ms(day) + shift_ms, energy_wh=energy_wh)


def terms_from(opened_on: date, load_w: int = 2000) -> Terms:
    return one_assignment(TARIFF, load_w=load_w, opened_on=opened_on)


def opened(terms: Terms, point: Point, *, credit_minor: int = 100_000) -> Checkpoint:
    return opening(terms, posted_minor=credit_minor, at=point)


def closed(
    checkpoint: Checkpoint,
    terms: Terms,
    points: list[Point],
    until: date,
    calendar: LocalCalendar = KOLKATA,
    demands_w: dict[date, int] | None = None,
) -> tuple[list[DayUsage], Checkpoint]:
    """Return all day usages and the last checkpoint of a close."""
    days = list(close_days(checkpoint, terms, points, until=until, calendar=calendar, demands_w=demands_w))
    return [usage for usage, _ in days], days[-1][1] if days else checkpoint


def posted_by(days: list[DayUsage], *empty: date) -> list[PeriodPosted]:
    """Return what day journals have booked by bill part, and parts in which nothing is."""
    booked = {day: PeriodPosted(period=day, energy_wh=0, lines={}) for day in empty}
    for usage in days:
        before = booked.get(usage.period, PeriodPosted(period=usage.period, energy_wh=0, lines={}))
        lines = {name: before.lines.get(name, 0) + usage.lines.get(name, 0) for name in before.lines | usage.lines}
        energy_wh = before.energy_wh + usage.to_wh - usage.from_wh
        booked[usage.period] = PeriodPosted(period=usage.period, energy_wh=energy_wh, lines=lines)
    return [booked[day] for day in sorted(booked)]


def fixed_with_duty(days: int, period_days: int) -> int:
    """Return what so many days of 2 kW cost without energy."""
    fixed_minor = (2 * 10_000 * days + period_days) // (2 * period_days)
    return fixed_minor + (2 * 15 * fixed_minor + 100) // 200


def charge(terms: Terms, part: date, energy_wh: int, through_day: date, *, before_wh: int = 0) -> int:
    """Return what a part without zones costs up to a day."""
    lines = part_lines(
        terms.part_at(part), before_wh=before_wh, energy_wh=energy_wh, zone_wh=(), through_day=through_day
    )
    return total(lines)


def test_energy_between_leaves_the_remainder_on_the_later_side() -> None:
    """One Wh over two halves falls into the second."""
    earlier, later = Point(at_ms=0, energy_wh=10), Point(at_ms=2, energy_wh=11)
    assert energy_between(earlier, later, 1) == 10
    assert energy_between(Point(at_ms=0, energy_wh=0), Point(at_ms=3, energy_wh=8), 2) == 5


def test_energy_between_at_or_outside_its_ends_takes_the_registers() -> None:
    """At a point its own register holds; before the first one too."""
    earlier, later = Point(at_ms=5, energy_wh=10), Point(at_ms=9, energy_wh=20)
    assert energy_between(earlier, later, 5) == 10
    assert energy_between(earlier, later, 9) == 20
    assert energy_between(earlier, later, 1) == 10


def test_energy_at_tells_how_the_edge_is_known() -> None:
    """Read at a point, estimated between two, unread after the last."""
    points = [Point(at_ms=0, energy_wh=0), Point(at_ms=10, energy_wh=100), Point(at_ms=20, energy_wh=101)]
    assert energy_at(points, 10) == (100, EdgeQuality.READ)
    assert energy_at(points, 4) == (40, EdgeQuality.ESTIMATED)
    assert energy_at(points, 19) == (100, EdgeQuality.ESTIMATED)
    assert energy_at(points, 20) == (101, EdgeQuality.READ)
    assert energy_at(points, 21) == (101, EdgeQuality.UNREAD)


def test_running_balance_of_an_account_just_opened_owes_its_first_day() -> None:
    """The opening day accrues whole, whatever the hour."""
    terms, start = terms_from(APRIL), at(APRIL, 0, shift_ms=20 * HOUR_MS)
    assert running_balance(opened(terms, start), terms, [start], KOLKATA) == 100_000 - fixed_with_duty(1, 30)


def test_running_balance_of_an_account_opened_mid_month_has_the_whole_first_slab() -> None:
    """Slabs are not pro rata; the fixed charge is."""
    day = date(2026, 4, 16)
    terms, start = terms_from(day), at(day, 500, shift_ms=HOUR_MS)
    points = [start, at(date(2026, 4, 30), 300_500)]
    balance = running_balance(opened(terms, start, credit_minor=0), terms, points, KOLKATA)
    # 115,500 + 5,000 - 1,155 = 119,345; duty 17,901.75.
    assert balance == -(115_500 + 5_000 - 1_155 + 17_902)


def test_running_balance_of_a_reading_at_midnight_opens_the_new_day() -> None:
    """Its fixed charge accrues at that instant, not a millisecond before."""
    terms, start = terms_from(APRIL), at(APRIL, 0)
    day = date(2026, 4, 2)
    before = running_balance(opened(terms, start), terms, [start, at(day, 0, shift_ms=-1)], KOLKATA)
    midnight = running_balance(opened(terms, start), terms, [start, at(day, 0)], KOLKATA)
    assert before == 100_000 - fixed_with_duty(1, 30)
    assert midnight == 100_000 - fixed_with_duty(2, 30)


def test_running_balance_of_a_reading_at_the_month_edge_leaves_its_energy_in_the_old_month() -> None:
    """Energy of an interval that ends at midnight belongs to the day that ended."""
    terms = terms_from(APRIL)
    points = [at(APRIL, 0), at(MAY, 300_000), at(MAY, 600_000, shift_ms=HOUR_MS)]
    start = opened(terms, points[0], credit_minor=0)
    april = 142_997
    # 115,500 + 323 - 1,155 = 114,668; duty 17,200.2.
    may = 115_500 + 323 - 1_155 + 17_200
    assert running_balance(start, terms, points, KOLKATA) == -(april + may)
    assert running_balance(start, terms, points[:2], KOLKATA) == -(april + fixed_with_duty(1, 31))


def test_running_balance_over_a_silent_month_splits_each_edge_from_the_same_two_readings() -> None:
    """May lies wholly between 30 April and 2 June: one day, 31 days, one day of 33."""
    terms = terms_from(APRIL)
    points = [at(APRIL, 0), at(date(2026, 4, 30), 0), at(date(2026, 6, 2), 33_000)]
    walk = begin(opened(terms, points[0]), terms)
    for point in points[1:]:
        walk = advance(walk, terms, point, KOLKATA)
    assert (walk.part.first, walk.start_wh) == (JUNE, 32_000)
    expected = (
        charge(terms, APRIL, 1_000, date(2026, 4, 30))
        + charge(terms, MAY, 31_000, date(2026, 5, 31))
        + charge(terms, JUNE, 1_000, date(2026, 6, 2))
    )
    assert owed_minor(walk, through=APRIL, calendar=KOLKATA) == expected


def test_running_balance_over_a_change_of_load_splits_the_month_at_its_midnight() -> None:
    """4 kWh from the 9th to the 13th, 2 of them before the 11th; from there the higher load's fixed charge."""
    eleventh = date(2026, 4, 11)
    terms = Terms(
        opened_on=APRIL,
        assignments=(
            Assignment(from_day=APRIL, tariff=TARIFF, load_w=2_000),
            Assignment(from_day=eleventh, tariff=TARIFF, load_w=3_000),
        ),
    )
    points = [at(APRIL, 0), at(date(2026, 4, 9), 299_000), at(date(2026, 4, 13), 303_000)]
    owed = -running_balance(opened(terms, points[0], credit_minor=0), terms, points, KOLKATA)
    # 301 kWh open the second slab in the first part, by one kWh; the second part's two lie above it too.
    first = charge(terms, APRIL, 301_000, date(2026, 4, 10))
    assert owed == first + charge(terms, eleventh, 2_000, date(2026, 4, 13), before_wh=301_000)
    second = part_lines(
        terms.part_at(eleventh), before_wh=301_000, energy_wh=2_000, zone_wh=(), through_day=date(2026, 4, 13)
    )
    # 2 x 7.05; 3 kW at Rs 70 for 3 of 30 days.
    assert (second["energy_1"], second["energy_2"], second["fixed"]) == (0, 1_410, 2_100)


def test_running_balance_with_zones_splits_an_interval_at_the_edge_of_a_zone() -> None:
    """8 kWh from 20 to 24 o'clock: half by day at Rs 6, half by night at Rs 5."""
    terms = one_assignment(ZONED, load_w=2_000, opened_on=APRIL)
    points = [at(APRIL, 0, shift_ms=20 * HOUR_MS), at(date(2026, 4, 2), 8_000)]
    start = opened(terms, points[0], credit_minor=0)
    assert running_balance(start, terms, points, KOLKATA) == -(4 * 600 + 4 * 500)
    # A reading at the edge makes the split exact.
    points.insert(1, at(APRIL, 7_000, shift_ms=22 * HOUR_MS))
    assert running_balance(start, terms, points, KOLKATA) == -(7 * 600 + 500)


def test_running_balance_from_a_checkpoint_leaves_out_what_was_charged() -> None:
    """The charge to date less the charged to date; a repeated look costs nothing."""
    terms = terms_from(APRIL)
    points = [at(APRIL, 0), at(date(2026, 4, 11), 100_000)]
    start = opened(terms, points[0])
    whole = running_balance(start, terms, points, KOLKATA)
    _, checkpoint = closed(start, terms, points, date(2026, 4, 5))
    assert checkpoint.posted_minor == 100_000 - checkpoint.charged_minor
    assert total(charged_lines(checkpoint, terms)) == checkpoint.charged_minor
    assert running_balance(checkpoint, terms, points, KOLKATA) == whole


def test_running_balance_never_moves_money_time_back_before_the_closed_day() -> None:
    """A silent meter's account accrues the days that were closed, and the one they opened."""
    terms = terms_from(APRIL)
    points = [at(APRIL, 0)]
    _, checkpoint = closed(opened(terms, points[0]), terms, points, date(2026, 4, 9))
    assert running_balance(checkpoint, terms, points, KOLKATA) == 100_000 - fixed_with_duty(10, 30)


def test_close_days_book_each_day_with_its_registers_and_quality() -> None:
    """One journal per local day: read, estimated or unread at its end."""
    terms = terms_from(APRIL)
    points = [at(APRIL, 1_000), at(date(2026, 4, 2), 2_000), at(date(2026, 4, 3), 4_000, shift_ms=24 * HOUR_MS - 1)]
    days, checkpoint = closed(opened(terms, points[0]), terms, points, date(2026, 4, 4))
    assert [(usage.from_wh, usage.to_wh, usage.quality) for usage in days] == [
        (1_000, 2_000, EdgeQuality.READ),
        (2_000, 3_000, EdgeQuality.ESTIMATED),
        (3_000, 4_000, EdgeQuality.UNREAD),
        (4_000, 4_000, EdgeQuality.UNREAD),
    ]
    assert [usage.day for usage in days] == [date(2026, 4, number) for number in (1, 2, 3, 4)]
    assert {usage.period for usage in days} == {APRIL}
    assert (checkpoint.through, checkpoint.closed_wh) == (date(2026, 4, 5), 4_000)
    assert checkpoint.anchor == points[2]


def test_close_days_of_days_already_closed_does_nothing() -> None:
    """A second sweep finds nothing to book."""
    terms = terms_from(APRIL)
    _, checkpoint = closed(opened(terms, at(APRIL, 0)), terms, [at(APRIL, 0)], date(2026, 4, 3))
    assert closed(checkpoint, terms, [at(APRIL, 0)], date(2026, 4, 3)) == ([], checkpoint)
    assert closed(checkpoint, terms, [at(APRIL, 0)], date(2025, 4, 3)) == ([], checkpoint)


def test_close_days_over_a_month_end_opens_the_next_part_at_the_edge() -> None:
    """The new part starts from the register at midnight with nothing charged; the point before it stays the anchor."""
    terms = terms_from(APRIL)
    points = [at(APRIL, 0), at(date(2026, 4, 30), 0), at(date(2026, 5, 2), 2_000)]
    days, checkpoint = closed(opened(terms, points[0]), terms, points, date(2026, 4, 30))
    assert days[-1].to_wh == 1_000
    assert checkpoint == Checkpoint(
        posted_minor=100_000 - sum(total(usage.lines) for usage in days),
        charged_minor=0,
        through=MAY,
        before_wh=0,
        part_start_wh=1_000,
        closed_wh=1_000,
        closed_zones=(),
        demand_w=0,
        anchor=points[1],
        anchor_zones=(),
    )
    assert charged_lines(checkpoint, terms) == {}
    assert sum(total(usage.lines) for usage in days) == charge(terms, APRIL, 1_000, date(2026, 4, 30))


def test_close_days_over_a_change_inside_the_month_carries_what_the_slabs_have_taken() -> None:
    """The second part's journals stand under its own first day and go on above the first part's 10 kWh."""
    eleventh = date(2026, 4, 11)
    terms = Terms(
        opened_on=APRIL,
        assignments=(
            Assignment(from_day=APRIL, tariff=TARIFF, load_w=2_000),
            Assignment(from_day=eleventh, tariff=TARIFF, load_w=3_000),
        ),
    )
    points = [at(APRIL, 0), at(eleventh, 10_000), at(date(2026, 4, 12), 11_000)]
    days, checkpoint = closed(opened(terms, points[0]), terms, points, eleventh)
    assert [usage.period for usage in days] == [APRIL] * 10 + [eleventh]
    assert (checkpoint.before_wh, checkpoint.part_start_wh, checkpoint.closed_wh) == (10_000, 10_000, 11_000)
    assert checkpoint.charged_minor == charge(terms, eleventh, 1_000, eleventh, before_wh=10_000)


def test_close_days_over_a_clock_change_splits_by_hours_not_by_days() -> None:
    """The long Sunday of October 2026 takes 25 of the 49 hours of two London days."""
    day = date(2026, 10, 25)
    terms = terms_from(day)
    points = [at(day, 0, calendar=LONDON), at(date(2026, 10, 27), 4_900, calendar=LONDON)]
    days, _ = closed(opened(terms, points[0]), terms, points, day, LONDON)
    assert (days[0].to_wh, days[0].quality) == (2_500, EdgeQuality.ESTIMATED)


def test_close_days_with_zones_keeps_the_energy_of_each() -> None:
    """24 kWh over a day and 12 over half the next: 16 h by day and 8 by night, then 6 by day and 6 by night."""
    terms = one_assignment(ZONED, load_w=2_000, opened_on=APRIL)
    noon = at(date(2026, 4, 2), 36_000, shift_ms=12 * HOUR_MS)
    points = [at(APRIL, 0), noon, at(date(2026, 4, 3), 36_000)]
    days, checkpoint = closed(opened(terms, points[0]), terms, points, APRIL)
    assert days[0].lines == {"energy_1": 12_000, "zone_day": 1_600}
    assert (checkpoint.closed_zones, checkpoint.anchor, checkpoint.anchor_zones) == ((16_000, 8_000), points[0], (0, 0))
    _, checkpoint = closed(checkpoint, terms, points, date(2026, 4, 2))
    assert (checkpoint.closed_zones, checkpoint.anchor) == ((22_000, 14_000), points[2])


def test_close_days_with_demand_charges_the_greatest_of_the_part_so_far() -> None:
    """3 kW on the 1st above a load of 2: 3.33 a day; 3.5 kW on the 3rd: 3 of 30 days of 150; a lower one nothing."""
    terms = one_assignment(DEMAND, load_w=2_000, opened_on=APRIL)
    demands_w = {APRIL: 3_000, date(2026, 4, 3): 3_500, date(2026, 4, 4): 2_500}
    days, checkpoint = closed(opened(terms, at(APRIL, 0)), terms, [at(APRIL, 0)], date(2026, 4, 4), demands_w=demands_w)
    assert [usage.lines.get("demand", 0) for usage in days] == [333, 334, 1_500 - 667, 500]
    assert [usage.demand_w for usage in days] == [3_000, None, 3_500, 2_500]
    assert checkpoint.demand_w == 3_500
    assert running_balance(checkpoint, terms, [at(APRIL, 0)], KOLKATA) == 100_000 - 2_500


def test_late_usage_of_a_month_end_closed_unread_moves_its_energy_back() -> None:
    """A meter silent over the edge speaks again: April gets its share, May the rest."""
    terms = terms_from(APRIL)
    points = [at(APRIL, 0), at(date(2026, 4, 30), 0)]
    days, checkpoint = closed(opened(terms, points[0]), terms, points, MAY)
    assert days[-1].quality is EdgeQuality.UNREAD
    points.append(at(date(2026, 5, 4), 4_000))
    found, after = late_usage(posted_by(days), checkpoint, terms, points, KOLKATA)
    # 1 kWh: 385 paise of energy, 4 of rebate, duty of 10,381 instead of 10,000: 57.
    assert found == [LateUsage(period=APRIL, energy_wh=1_000, lines={"energy_1": 385, "rebate": -4, "duty": 57})]
    assert (after.part_start_wh, after.closed_wh) == (1_000, 1_000)
    assert after.posted_minor == checkpoint.posted_minor - 438
    assert after.charged_minor == checkpoint.charged_minor
    # The edge is known now, and the curve goes on from it.
    assert after.anchor == at(MAY, 1_000)


def test_late_usage_of_a_silence_over_two_month_ends_keeps_the_point_before_both() -> None:
    """100 Wh over 71 days, 32 of them before May and 63 before June: June's edge is not split from May's whole Wh."""
    opened_on = date(2026, 3, 30)
    terms = terms_from(opened_on)
    points = [at(opened_on, 0)]
    days, checkpoint = closed(opened(terms, points[0]), terms, points, MAY)
    points.append(at(date(2026, 6, 9), 100))
    _, after = late_usage(posted_by(days), checkpoint, terms, points, KOLKATA)
    assert after.part_start_wh == 100 * 32 // 71 == 45
    assert after.anchor == points[0]
    bills = open_bills(after, terms, points, KOLKATA)
    assert [energy_wh for energy_wh, _ in bills.values()] == [100 * 63 // 71 - 45, 100 - 100 * 63 // 71]


def test_late_usage_moves_an_edge_that_it_has_moved_before() -> None:
    """April gets 1 of 4 kWh when the silence ends, and 3 when the reading before it arrives at last."""
    terms = terms_from(APRIL)
    points = [at(APRIL, 0), at(date(2026, 4, 30), 0)]
    days, checkpoint = closed(opened(terms, points[0]), terms, points, date(2026, 4, 30))
    points.append(at(date(2026, 5, 4), 4_000))
    posted = posted_by(days, MAY)
    found, checkpoint = late_usage(posted, checkpoint, terms, points, KOLKATA)
    lines = {name: posted[0].lines.get(name, 0) + amount for name, amount in found[0].lines.items()}
    posted = [PeriodPosted(period=APRIL, energy_wh=1_000, lines=posted[0].lines | lines), posted[1]]
    points.insert(2, at(date(2026, 4, 30), 3_000, shift_ms=24 * HOUR_MS - 1))
    found, after = late_usage(posted, checkpoint, terms, points, KOLKATA)
    assert [(change.period, change.energy_wh) for change in found] == [(APRIL, 2_000)]
    assert after.anchor == at(MAY, 3_000)


def test_late_usage_of_a_raised_edge_takes_booked_energy_across_it() -> None:
    """A late reading shows that more was used in April: May's journals give it back."""
    terms = terms_from(APRIL)
    points = [at(APRIL, 0), at(date(2026, 4, 30), 0), at(date(2026, 5, 2), 2_000)]
    days, checkpoint = closed(opened(terms, points[0]), terms, points, MAY)
    points.insert(2, at(MAY, 1_400))
    found, after = late_usage(posted_by(days), checkpoint, terms, points, KOLKATA)
    assert [(change.period, change.energy_wh) for change in found] == [(APRIL, 400), (MAY, -400)]
    assert [change.lines["energy_1"] for change in found] == [154, -154]
    assert (after.part_start_wh, after.closed_wh) == (1_400, 2_000)
    # A close on the day of the reading books what is left, from what is booked.
    days, _ = closed(after, terms, points[3:], date(2026, 5, 2))
    assert (days[0].from_wh, days[0].to_wh) == (2_000, 2_000)


def test_late_usage_of_an_edge_lowered_before_its_month_is_booked_is_found_once() -> None:
    """What April gives back is not booked as May's either, so the next May day starts from the edge."""
    terms = terms_from(APRIL)
    points = [at(APRIL, 0), at(date(2026, 4, 30), 0), at(date(2026, 5, 2), 2_000)]
    days, checkpoint = closed(opened(terms, points[0]), terms, points, date(2026, 4, 30))
    points.insert(2, at(MAY, 0))
    found, after = late_usage(posted_by(days, MAY), checkpoint, terms, points, KOLKATA)
    assert [(change.period, change.energy_wh) for change in found] == [(APRIL, -1_000)]
    assert (after.part_start_wh, after.closed_wh) == (0, 0)
    days, _ = closed(after, terms, points[2:], MAY)
    assert (days[0].from_wh, days[0].to_wh) == (0, 2_000)


def test_late_usage_where_no_edge_moves_finds_nothing() -> None:
    """A late reading on the straight line, or inside the open part, changes no journal."""
    terms = terms_from(APRIL)
    points = [at(APRIL, 0), at(date(2026, 4, 30), 0), at(date(2026, 5, 2), 2_000)]
    days, checkpoint = closed(opened(terms, points[0]), terms, points, MAY)
    points.insert(2, at(MAY, 1_000))
    points.insert(3, at(MAY, 1_001, shift_ms=23 * HOUR_MS))
    assert late_usage(posted_by(days), checkpoint, terms, points, KOLKATA) == ([], checkpoint)


def test_late_usage_before_a_change_inside_the_month_moves_the_slabs_of_the_part_after_it() -> None:
    """305 kWh, of which a late reading puts 5 more before the 11th: the second part takes 5 less of slab two."""
    eleventh = date(2026, 4, 11)
    terms = Terms(
        opened_on=APRIL,
        assignments=(
            Assignment(from_day=APRIL, tariff=TARIFF, load_w=2_000),
            Assignment(from_day=eleventh, tariff=TARIFF, load_w=3_000),
        ),
    )
    points = [at(APRIL, 0), at(date(2026, 4, 10), 295_000), at(date(2026, 4, 12), 305_000)]
    days, checkpoint = closed(opened(terms, points[0]), terms, points, eleventh)
    assert checkpoint.before_wh == 300_000
    points.insert(2, at(eleventh, 305_000))
    found, after = late_usage(posted_by(days), checkpoint, terms, points, KOLKATA)
    assert [(change.period, change.energy_wh) for change in found] == [(APRIL, 5_000), (eleventh, -5_000)]
    assert [change.lines["energy_2"] for change in found] == [3_525, -3_525]
    assert (after.before_wh, after.part_start_wh) == (305_000, 305_000)


def test_late_usage_with_zones_books_closed_days_by_the_edges_as_they_are_now() -> None:
    """12 kWh from noon to midnight; a late reading shows that all of them were used after 22 o'clock."""
    terms = one_assignment(ZONED, load_w=2_000, opened_on=APRIL)
    points = [at(APRIL, 0, shift_ms=12 * HOUR_MS), at(date(2026, 4, 2), 12_000)]
    days, checkpoint = closed(opened(terms, points[0]), terms, points, APRIL)
    assert days[0].lines == {"energy_1": 6_000, "zone_day": 1_000}
    points.insert(1, at(APRIL, 0, shift_ms=22 * HOUR_MS))
    found, after = late_usage(posted_by(days), checkpoint, terms, points, KOLKATA)
    assert found == [LateUsage(period=APRIL, energy_wh=0, lines={"zone_day": -1_000})]
    assert (after.closed_zones, after.anchor, after.anchor_zones) == ((0, 12_000), points[2], (0, 12_000))


def test_late_usage_with_zones_goes_on_from_the_late_reading() -> None:
    """The day was closed at the register of 18:00; later ones come, and the curve goes on from the last of them."""
    terms = one_assignment(ZONED, load_w=2_000, opened_on=APRIL)
    midnight, eight = at(APRIL, 0), at(APRIL, 4_000, shift_ms=8 * HOUR_MS)
    points = [midnight, eight, at(APRIL, 14_000, shift_ms=18 * HOUR_MS)]
    days, checkpoint = closed(opened(terms, midnight), terms, points, APRIL)
    assert checkpoint.anchor == points[2]
    nine, eleven = at(APRIL, 15_000, shift_ms=21 * HOUR_MS), at(APRIL, 17_000, shift_ms=23 * HOUR_MS)
    one = at(date(2026, 4, 2), 19_000, shift_ms=HOUR_MS)
    # Of the points only those around the edges at 6, 22 and 24 o'clock are looked at: 18:00 is not among them.
    found, after = late_usage(posted_by(days), checkpoint, terms, [midnight, eight, nine, eleven, one], KOLKATA)
    assert [change.energy_wh for change in found] == [4_000]
    # 3 kWh until six, 1 after 22 o'clock by 23:00, and one more by midnight.
    assert (after.anchor, after.anchor_zones) == (eleven, (13_000, 4_000))
    assert after.closed_zones == (13_000, 5_000)


def test_bill_by_month_of_a_silent_month_still_holds_its_fixed_charge() -> None:
    """Every month up to the last day has a bill, with or without a reading in it."""
    bills = bill_by_month(terms_from(APRIL), [at(APRIL, 0)], last_day=date(2026, 5, 1), calendar=KOLKATA)
    assert {period: (wh, total(lines)) for period, (wh, lines) in bills.items()} == {
        APRIL: (0, fixed_with_duty(30, 30)),
        MAY: (0, fixed_with_duty(1, 31)),
    }


@pytest.mark.parametrize("later", [date(2026, 5, 2), date(2026, 6, 2), date(2026, 8, 2)])
def test_bill_by_month_leaves_out_energy_and_months_after_the_last_day(later: date) -> None:
    """A bill for April holds nothing of May, however far the readings go."""
    points = [at(APRIL, 0), at(MAY, 1_000), at(later, 9_000)]
    bills = bill_by_month(terms_from(APRIL), points, last_day=date(2026, 4, 30), calendar=KOLKATA)
    assert {period: wh for period, (wh, _) in bills.items()} == {APRIL: 1_000}


def test_bill_by_month_adds_up_the_parts_of_a_month() -> None:
    """Each part's lines are rounded, and the month is their sum: 10 and 20 days of 2 and 3 kW."""
    terms = Terms(
        opened_on=APRIL,
        assignments=(
            Assignment(from_day=APRIL, tariff=TARIFF, load_w=2_000),
            Assignment(from_day=APRIL + timedelta(days=10), tariff=TARIFF, load_w=3_000),
        ),
    )
    bills = bill_by_month(terms, [at(APRIL, 0)], last_day=date(2026, 4, 30), calendar=KOLKATA)
    # 2 x 50 x 10 / 30 = 33.33; 3 x 70 x 20 / 30 = 140; duty of each 15 %: 5.00 and 21.00.
    assert bills[APRIL] == (
        0,
        {"energy_1": 0, "energy_2": 0, "fixed": 3_333 + 14_000, "rebate": 0, "duty": 500 + 2_100},
    )
