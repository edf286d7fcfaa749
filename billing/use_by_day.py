"""An account's use and money by local day and by month, as a consumer follows them.

Stage: beside `billing.statement`, from the same entries. Enters: journals of one account and its open days. Leaves: one
row a day, one row a month. Never: rating, the database, a clock.

Both add up to the statement. By day, everything stands where the statement puts it: use under its day, all else under
the local day of booking. By month, energy and charge stand under the month that used them, whenever they were found, so
that a row is the month's bill as known today; money stands under the month of booking.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import date

from billing.calendar import period_of
from billing.journals import JournalKind
from billing.rating import Lines, added
from billing.running import EdgeQuality
from billing.statement import Entry


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerDay:
    """One local day of an account.

    Invariants: of a day that its account's money time has not reached, `energy_wh`, `charge_minor` and `quality` are
    None; `later_wh` and `later_minor` are what was booked on this day for days closed before (late readings,
    corrections); the balance changes by `recharged_minor + other_minor - charge_minor - later_minor`.
    """

    day: date
    energy_wh: int | None = None
    charge_minor: int | None = None
    quality: EdgeQuality | None = None
    posted: bool = False
    later_wh: int = 0
    later_minor: int = 0
    recharged_minor: int = 0
    other_minor: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerMonth:
    """One local month of an account, the sum of `lines` being its charge.

    Invariants: `open_days` of it are not posted yet.
    """

    month: date
    energy_wh: int = 0
    charge_minor: int = 0
    lines: Lines = field(default_factory=dict)
    open_days: int = 0
    recharged_minor: int = 0
    other_minor: int = 0


def by_day(entries: Iterable[Entry], *, first: date, last: date) -> tuple[ConsumerDay, ...]:
    """Return the days from `first` to `last` that have an entry, in order."""
    days: dict[date, ConsumerDay] = {}
    for entry in entries:
        if first <= entry.day <= last:
            days[entry.day] = _with_entry(days.get(entry.day, ConsumerDay(day=entry.day)), entry)
    return tuple(days[day] for day in sorted(days))


def by_month(entries: Sequence[Entry], *, first: date, last: date) -> tuple[ConsumerMonth, ...]:
    """Return the months from that of `first` to that of `last` that have an entry, in order."""
    begin, end = period_of(first), period_of(last)
    months: dict[date, ConsumerMonth] = {}
    for entry in entries:
        month = entry.energy_month or period_of(entry.booked_on)
        if begin <= month <= end:
            months[month] = _with_money(months.get(month, ConsumerMonth(month=month)), entry)
    return tuple(months[month] for month in sorted(months))


def _with_entry(day: ConsumerDay, entry: Entry) -> ConsumerDay:
    if entry.kind is JournalKind.DAY:
        return replace(
            day,
            energy_wh=entry.energy_wh,
            charge_minor=-entry.amount_minor,
            quality=entry.quality,
            posted=entry.posted,
        )
    if entry.lines is not None:
        return replace(day, later_wh=day.later_wh + entry.energy_wh, later_minor=day.later_minor - entry.amount_minor)
    if entry.kind is JournalKind.VEND:
        return replace(day, recharged_minor=day.recharged_minor + entry.amount_minor)
    return replace(day, other_minor=day.other_minor + entry.amount_minor)


def _with_money(month: ConsumerMonth, entry: Entry) -> ConsumerMonth:
    if entry.lines is not None:
        return replace(
            month,
            energy_wh=month.energy_wh + entry.energy_wh,
            charge_minor=month.charge_minor - entry.amount_minor,
            lines=added(month.lines, entry.lines),
            open_days=month.open_days + (not entry.posted),
        )
    if entry.kind is JournalKind.VEND:
        return replace(month, recharged_minor=month.recharged_minor + entry.amount_minor)
    return replace(month, other_minor=month.other_minor + entry.amount_minor)
