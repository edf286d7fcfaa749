"""Edges in time, day closing and late usage, each rule in the smallest curve that shows it."""

from __future__ import annotations

from datetime import date, timedelta
from zoneinfo import ZoneInfo

import pytest

from billing.calendar import LocalCalendar
from billing.rating import total
from billing.running import (
    Checkpoint,
    DayUsage,
    EdgeQuality,
    LateUsage,
    PeriodPosted,
    Point,
    Terms,
    advance,
    begin,
    bill_by_period,
    close_days,
    energy_at,
    energy_between,
    late_usage,
    owed_minor,
    period_lines,
    running_balance,
)
from billing.tariff import builtin_tariff

TARIFF = builtin_tariff("punjab-ds-2026-27")
KOLKATA = LocalCalendar(ZoneInfo("Asia/Kolkata"))
LONDON = LocalCalendar(ZoneInfo("Europe/London"))
HOUR_MS = 3_600_000
APRIL, MAY, JUNE = date(2026, 4, 1), date(2026, 5, 1), date(2026, 6, 1)


def at(day: date, energy_wh: int, *, shift_ms: int = 0, calendar: LocalCalendar = KOLKATA) -> Point:
    """Return a point so many milliseconds after a local midnight."""
    return Point(at_ms=calendar.midnight_ms(day) + shift_ms, energy_wh=energy_wh)


def terms_from(opened_on: date, load_w: int = 2000) -> Terms:
    return Terms(tariff=TARIFF, load_w=load_w, opened_on=opened_on)


def opening(day: date, *, register_wh: int = 0, credit_minor: int = 100_000) -> Checkpoint:
    return Checkpoint(
        posted_minor=credit_minor, through=day, period_start_wh=register_wh, closed_wh=register_wh, charged={}
    )


def closed(
    checkpoint: Checkpoint, terms: Terms, points: list[Point], until: date, calendar: LocalCalendar = KOLKATA
) -> tuple[list[DayUsage], Checkpoint]:
    """Return all day usages and the last checkpoint of a close."""
    days = list(close_days(checkpoint, terms, points, until=until, calendar=calendar))
    return [usage for usage, _ in days], days[-1][1] if days else checkpoint


def fixed_with_duty(days: int, period_days: int) -> int:
    """Return what so many days of 2 kW cost without energy."""
    fixed_minor = (2 * 10_000 * days + period_days) // (2 * period_days)
    return fixed_minor + (2 * 15 * fixed_minor + 100) // 200


@pytest.mark.parametrize(
    ("opened_on", "through_day", "days"),
    [
        (APRIL, APRIL, 1),
        (APRIL, date(2026, 4, 30), 30),
        (APRIL, date(2026, 5, 20), 30),
        (date(2026, 4, 16), date(2026, 4, 16), 1),
        (date(2026, 4, 16), date(2026, 4, 30), 15),
        (date(2025, 1, 9), date(2026, 4, 2), 2),
        (date(2026, 4, 16), date(2026, 4, 15), 0),
    ],
)
def test_period_lines_accrue_whole_days_from_the_opening_to_the_end_of_the_month(
    opened_on: date, through_day: date, days: int
) -> None:
    """Both ends count; no day before the opening or after the period does."""
    lines = period_lines(terms_from(opened_on), period=APRIL, energy_wh=0, through_day=through_day)
    assert total(lines) == fixed_with_duty(days, 30)


def test_period_lines_of_a_leap_february_spread_over_29_days() -> None:
    """A day of February 2028 costs a 29th."""
    period = date(2028, 2, 1)
    lines = period_lines(terms_from(period), period=period, energy_wh=0, through_day=period)
    assert lines["fixed"] == 345
    whole = period_lines(terms_from(period), period=period, energy_wh=0, through_day=date(2028, 2, 29))
    assert whole["fixed"] == 10_000


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
    balance = running_balance(opening(APRIL), terms_from(APRIL), [at(APRIL, 0, shift_ms=20 * HOUR_MS)], KOLKATA)
    assert balance == 100_000 - fixed_with_duty(1, 30)


def test_running_balance_of_an_account_opened_mid_month_has_the_whole_first_slab() -> None:
    """Slabs are not pro rata; the fixed charge is."""
    day = date(2026, 4, 16)
    points = [at(day, 500, shift_ms=HOUR_MS), at(date(2026, 4, 30), 300_500)]
    balance = running_balance(opening(day, register_wh=500, credit_minor=0), terms_from(day), points, KOLKATA)
    # 115,500 + 5,000 - 1,155 = 119,345; duty 17,901.75.
    assert balance == -(115_500 + 5_000 - 1_155 + 17_902)


def test_running_balance_of_a_reading_at_midnight_opens_the_new_day() -> None:
    """Its fixed charge accrues at that instant, not a millisecond before."""
    terms = terms_from(APRIL)
    day = date(2026, 4, 2)
    before = running_balance(opening(APRIL), terms, [at(APRIL, 0), at(day, 0, shift_ms=-1)], KOLKATA)
    midnight = running_balance(opening(APRIL), terms, [at(APRIL, 0), at(day, 0)], KOLKATA)
    assert before == 100_000 - fixed_with_duty(1, 30)
    assert midnight == 100_000 - fixed_with_duty(2, 30)


def test_running_balance_of_a_reading_at_the_month_edge_leaves_its_energy_in_the_old_month() -> None:
    """Energy of an interval that ends at midnight belongs to the day that ended."""
    terms = terms_from(APRIL)
    points = [at(APRIL, 0), at(MAY, 300_000), at(MAY, 600_000, shift_ms=HOUR_MS)]
    balance = running_balance(opening(APRIL, credit_minor=0), terms, points, KOLKATA)
    april = 142_997
    # 115,500 + 323 - 1,155 = 114,668; duty 17,200.2.
    may = 115_500 + 323 - 1_155 + 17_200
    assert balance == -(april + may)
    assert running_balance(opening(APRIL, credit_minor=0), terms, points[:2], KOLKATA) == -(
        april + fixed_with_duty(1, 31)
    )


def test_running_balance_over_a_silent_month_splits_each_edge_from_the_same_two_readings() -> None:
    """May lies wholly between 30 April and 2 June: one day, 31 days, one day of 33."""
    terms = terms_from(APRIL)
    points = [at(APRIL, 0), at(date(2026, 4, 30), 0), at(date(2026, 6, 2), 33_000)]
    walk = begin(opening(APRIL), points[0])
    for point in points[1:]:
        walk = advance(walk, terms, point, KOLKATA)
    assert (walk.period, walk.period_start_wh) == (JUNE, 32_000)
    expected = sum(
        total(period_lines(terms, period=period, energy_wh=energy_wh, through_day=day))
        for period, energy_wh, day in [
            (APRIL, 1_000, date(2026, 4, 30)),
            (MAY, 31_000, date(2026, 5, 31)),
            (JUNE, 1_000, date(2026, 6, 2)),
        ]
    )
    assert owed_minor(walk, terms, through=APRIL, calendar=KOLKATA) == expected


def test_running_balance_from_a_checkpoint_leaves_out_what_was_charged() -> None:
    """The charge to date less the charged to date; a repeated look costs nothing."""
    terms = terms_from(APRIL)
    points = [at(APRIL, 0), at(date(2026, 4, 11), 100_000)]
    whole = running_balance(opening(APRIL), terms, points, KOLKATA)
    _, checkpoint = closed(opening(APRIL), terms, points, date(2026, 4, 5))
    assert checkpoint.posted_minor == 100_000 - total(checkpoint.charged)
    assert running_balance(checkpoint, terms, points, KOLKATA) == whole


def test_running_balance_never_moves_money_time_back_before_the_closed_day() -> None:
    """A silent meter's account accrues the days that were closed, and the one they opened."""
    terms = terms_from(APRIL)
    points = [at(APRIL, 0)]
    _, checkpoint = closed(opening(APRIL), terms, points, date(2026, 4, 9))
    assert running_balance(checkpoint, terms, points, KOLKATA) == 100_000 - fixed_with_duty(10, 30)


def test_close_days_book_each_day_with_its_registers_and_quality() -> None:
    """One journal per local day: read, estimated or unread at its end."""
    terms = terms_from(APRIL)
    points = [at(APRIL, 1_000), at(date(2026, 4, 2), 2_000), at(date(2026, 4, 3), 4_000, shift_ms=24 * HOUR_MS - 1)]
    days, checkpoint = closed(opening(APRIL, register_wh=1_000), terms, points, date(2026, 4, 4))
    assert [(usage.from_wh, usage.to_wh, usage.quality) for usage in days] == [
        (1_000, 2_000, EdgeQuality.READ),
        (2_000, 3_000, EdgeQuality.ESTIMATED),
        (3_000, 4_000, EdgeQuality.UNREAD),
        (4_000, 4_000, EdgeQuality.UNREAD),
    ]
    assert [usage.day for usage in days] == [date(2026, 4, number) for number in (1, 2, 3, 4)]
    assert {usage.period for usage in days} == {APRIL}
    assert (checkpoint.through, checkpoint.closed_wh) == (date(2026, 4, 5), 4_000)


def test_close_days_of_days_already_closed_does_nothing() -> None:
    """A second sweep finds nothing to book."""
    terms = terms_from(APRIL)
    _, checkpoint = closed(opening(APRIL), terms, [at(APRIL, 0)], date(2026, 4, 3))
    assert closed(checkpoint, terms, [at(APRIL, 0)], date(2026, 4, 3)) == ([], checkpoint)
    assert closed(checkpoint, terms, [at(APRIL, 0)], date(2025, 4, 3)) == ([], checkpoint)


def test_close_days_over_a_month_end_opens_the_next_period_at_the_edge() -> None:
    """The new period starts from the register at midnight with nothing charged."""
    terms = terms_from(APRIL)
    points = [at(APRIL, 0), at(date(2026, 4, 30), 0), at(date(2026, 5, 2), 2_000)]
    days, checkpoint = closed(opening(APRIL), terms, points, date(2026, 4, 30))
    assert days[-1].to_wh == 1_000
    assert checkpoint == Checkpoint(
        posted_minor=100_000 - sum(total(usage.lines) for usage in days),
        through=MAY,
        period_start_wh=1_000,
        closed_wh=1_000,
        charged={},
    )
    bill = period_lines(terms, period=APRIL, energy_wh=1_000, through_day=date(2026, 4, 30))
    assert sum(total(usage.lines) for usage in days) == total(bill)


def test_close_days_over_a_clock_change_splits_by_hours_not_by_days() -> None:
    """The long Sunday of October 2026 takes 25 of the 49 hours of two London days."""
    day = date(2026, 10, 25)
    points = [at(day, 0, calendar=LONDON), at(date(2026, 10, 27), 4_900, calendar=LONDON)]
    days, _ = closed(opening(day), terms_from(day), points, day, LONDON)
    assert (days[0].to_wh, days[0].quality) == (2_500, EdgeQuality.ESTIMATED)


def test_late_usage_of_a_month_end_closed_unread_moves_its_energy_back() -> None:
    """A meter silent over the edge speaks again: April gets its share, May the rest."""
    terms = terms_from(APRIL)
    points = [at(APRIL, 0), at(date(2026, 4, 30), 0)]
    days, checkpoint = closed(opening(APRIL), terms, points, MAY)
    assert days[-1].quality is EdgeQuality.UNREAD
    april = period_lines(terms, period=APRIL, energy_wh=0, through_day=date(2026, 4, 30))
    posted = [
        PeriodPosted(period=APRIL, energy_wh=0, lines=april),
        PeriodPosted(period=MAY, energy_wh=0, lines=checkpoint.charged),
    ]
    points.append(at(date(2026, 5, 4), 4_000))
    found, after = late_usage(posted, checkpoint, terms, points, KOLKATA)
    # 1 kWh: 385 paise of energy, 4 of rebate, duty of 10,381 instead of 10,000: 57.
    assert found == [LateUsage(period=APRIL, energy_wh=1_000, lines={"energy_1": 385, "rebate": -4, "duty": 57})]
    assert (after.period_start_wh, after.closed_wh) == (1_000, 1_000)
    assert after.posted_minor == checkpoint.posted_minor - 438
    assert after.charged == checkpoint.charged


def test_late_usage_of_a_raised_edge_takes_booked_energy_across_it() -> None:
    """A late reading shows that more was used in April: May's journals give it back."""
    terms = terms_from(APRIL)
    points = [at(APRIL, 0), at(date(2026, 4, 30), 0), at(date(2026, 5, 2), 2_000)]
    days, checkpoint = closed(opening(APRIL), terms, points, MAY)
    april = period_lines(terms, period=APRIL, energy_wh=1_000, through_day=date(2026, 4, 30))
    posted = [
        PeriodPosted(period=APRIL, energy_wh=1_000, lines=april),
        PeriodPosted(period=MAY, energy_wh=1_000, lines=days[-1].lines),
    ]
    points.insert(2, at(MAY, 1_400))
    found, after = late_usage(posted, checkpoint, terms, points, KOLKATA)
    assert [(change.period, change.energy_wh) for change in found] == [(APRIL, 400), (MAY, -400)]
    assert [change.lines["energy_1"] for change in found] == [154, -154]
    assert (after.period_start_wh, after.closed_wh) == (1_400, 2_000)
    # A close on the day of the reading books what is left, from what is booked.
    days, _ = closed(after, terms, points, date(2026, 5, 2))
    assert (days[0].from_wh, days[0].to_wh) == (2_000, 2_000)


def test_late_usage_of_an_edge_lowered_before_its_month_is_booked_is_found_once() -> None:
    """What April gives back is not booked as May's either, so the next May day starts from the edge."""
    terms = terms_from(APRIL)
    points = [at(APRIL, 0), at(date(2026, 4, 30), 0), at(date(2026, 5, 2), 2_000)]
    _, checkpoint = closed(opening(APRIL), terms, points, date(2026, 4, 30))
    april = period_lines(terms, period=APRIL, energy_wh=1_000, through_day=date(2026, 4, 30))
    points.insert(2, at(MAY, 0))
    found, after = late_usage(
        [PeriodPosted(period=APRIL, energy_wh=1_000, lines=april), PeriodPosted(period=MAY, energy_wh=0, lines={})],
        checkpoint,
        terms,
        points,
        KOLKATA,
    )
    assert [(change.period, change.energy_wh) for change in found] == [(APRIL, -1_000)]
    assert (after.period_start_wh, after.closed_wh) == (0, 0)
    days, _ = closed(after, terms, points, MAY)
    assert (days[0].from_wh, days[0].to_wh) == (0, 2_000)


def test_late_usage_where_no_edge_moves_finds_nothing() -> None:
    """A late reading on the straight line, or inside the open period, changes no journal."""
    terms = terms_from(APRIL)
    points = [at(APRIL, 0), at(date(2026, 4, 30), 0), at(date(2026, 5, 2), 2_000)]
    days, checkpoint = closed(opening(APRIL), terms, points, MAY)
    posted = [
        PeriodPosted(
            period=APRIL,
            energy_wh=1_000,
            lines=period_lines(terms, period=APRIL, energy_wh=1_000, through_day=date(2026, 4, 30)),
        ),
        PeriodPosted(period=MAY, energy_wh=1_000, lines=days[-1].lines),
    ]
    points.insert(2, at(MAY, 1_000))
    points.insert(3, at(MAY, 1_001, shift_ms=23 * HOUR_MS))
    assert late_usage(posted, checkpoint, terms, points, KOLKATA) == ([], checkpoint)


def test_bill_by_period_of_a_silent_month_still_holds_its_fixed_charge() -> None:
    """Every month up to the last day has a bill, with or without a reading in it."""
    terms = terms_from(APRIL)
    bills = bill_by_period(terms, [at(APRIL, 0)], last_day=date(2026, 5, 1), calendar=KOLKATA)
    assert {period: (wh, total(lines)) for period, (wh, lines) in bills.items()} == {
        APRIL: (0, fixed_with_duty(30, 30)),
        MAY: (0, fixed_with_duty(1, 31)),
    }


def test_bill_by_period_leaves_out_energy_after_the_last_day() -> None:
    """A bill for April holds nothing of May."""
    terms = terms_from(APRIL)
    points = [at(APRIL, 0), at(MAY, 1_000), at(MAY + timedelta(days=1), 9_000)]
    bills = bill_by_period(terms, points, last_day=date(2026, 4, 30), calendar=KOLKATA)
    assert {period: wh for period, (wh, _) in bills.items()} == {APRIL: 1_000}
