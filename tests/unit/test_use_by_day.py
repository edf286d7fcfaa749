"""Entries of an account by day and by month: where each kind of entry stands."""

from __future__ import annotations

from datetime import date

from billing.journals import JournalKind
from billing.running import EdgeQuality
from billing.statement import Entry
from billing.use_by_day import ConsumerDay, ConsumerMonth, by_day, by_month

OCTOBER, NOVEMBER = date(2026, 10, 1), date(2026, 11, 1)


def used(day: date, charge_minor: int, *, posted: bool = True) -> Entry:
    """A day of 1 kWh, booked long after it."""
    return Entry(
        kind=JournalKind.DAY,
        booked_on=date(2026, 12, 24),
        amount_minor=-charge_minor,
        local_day=day,
        period=day.replace(day=1),
        energy_wh=1_000,
        quality=EdgeQuality.READ,
        lines={"energy_1": charge_minor},
        posted=posted,
    )


def found_later(kind: JournalKind, booked_on: date, period: date, charge_minor: int) -> Entry:
    """Energy of an earlier part, found or corrected on a day."""
    lines = {"energy_1": charge_minor, "duty": 0}
    return Entry(kind=kind, booked_on=booked_on, amount_minor=-charge_minor, period=period, energy_wh=-500, lines=lines)


def money(kind: JournalKind, booked_on: date, amount_minor: int) -> Entry:
    """A money event."""
    return Entry(kind=kind, booked_on=booked_on, amount_minor=amount_minor)


STORY = [
    used(date(2026, 10, 31), 300),
    money(JournalKind.VEND, date(2026, 11, 1), 5_000),
    used(date(2026, 11, 1), 400),
    found_later(JournalKind.LATE_USAGE, date(2026, 11, 2), OCTOBER, -100),
    found_later(JournalKind.OVERHAUL, date(2026, 11, 2), date(2026, 10, 16), -50),
    money(JournalKind.VEND, date(2026, 11, 2), 1_000),
    money(JournalKind.VEND, date(2026, 11, 2), 2_000),
    money(JournalKind.ARREARS_RECOVERY, date(2026, 11, 2), -600),
    money(JournalKind.ADJUSTMENT, date(2026, 11, 3), 7),
    used(date(2026, 11, 2), 500, posted=False),
]


def test_days_have_use_of_their_own_and_what_was_booked_on_them() -> None:
    """Use stands under its day whenever it was booked; everything else under the day of booking."""
    assert by_day(STORY, first=NOVEMBER, last=date(2026, 11, 3)) == (
        ConsumerDay(
            day=date(2026, 11, 1),
            energy_wh=1_000,
            charge_minor=400,
            quality=EdgeQuality.READ,
            posted=True,
            recharged_minor=5_000,
        ),
        ConsumerDay(
            day=date(2026, 11, 2),
            energy_wh=1_000,
            charge_minor=500,
            quality=EdgeQuality.READ,
            later_wh=-1_000,
            later_minor=-150,
            recharged_minor=3_000,
            other_minor=-600,
        ),
        ConsumerDay(day=date(2026, 11, 3), other_minor=7),
    )


def test_months_have_their_bill_as_known_today_and_the_money_booked_in_them() -> None:
    """What was found later goes to the month that used it, whatever part of it."""
    assert by_month(STORY, first=OCTOBER, last=NOVEMBER) == (
        ConsumerMonth(month=OCTOBER, energy_wh=0, charge_minor=150, lines={"energy_1": 150, "duty": 0}),
        ConsumerMonth(
            month=NOVEMBER,
            energy_wh=2_000,
            charge_minor=900,
            lines={"energy_1": 900},
            open_days=1,
            recharged_minor=8_000,
            other_minor=-593,
        ),
    )


def test_days_and_months_together_are_the_same_money() -> None:
    """Whichever way entries are summed up, nothing is lost and nothing counted twice."""
    days = by_day(STORY, first=OCTOBER, last=date(2026, 11, 30))
    months = by_month(STORY, first=OCTOBER, last=NOVEMBER)
    daily = sum(d.recharged_minor + d.other_minor - (d.charge_minor or 0) - d.later_minor for d in days)
    monthly = sum(m.recharged_minor + m.other_minor - m.charge_minor for m in months)
    assert daily == monthly == sum(entry.amount_minor for entry in STORY)


def test_entries_outside_the_span_are_left_out() -> None:
    """A page holds its days and months only."""
    assert [used.day.day for used in by_day(STORY, first=date(2026, 11, 2), last=date(2026, 11, 2))] == [2]
    assert [used.month for used in by_month(STORY, first=NOVEMBER, last=NOVEMBER)] == [NOVEMBER]
    assert by_day([], first=OCTOBER, last=NOVEMBER) == by_month([], first=OCTOBER, last=NOVEMBER) == ()
