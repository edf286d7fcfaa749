"""Amounts, energy, days and instants as people of the country write them.

Stage: between facts and texts. Takes integers and dates, returns text; never the locale of the machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date

from billing.calendar import LocalCalendar, from_ms
from billing.money import MINOR_PER_MAJOR

_THOUSAND_DIGITS = 3
_GROUP_DIGITS = 2
_W_PER_KW = 1_000


def format_rupees(amount_minor: int, *, sign: str) -> str:
    """Print minor units as rupees with Indian grouping, e.g. `₹1,23,456.78` or `-Rs 120.00`.

    Units: `sign` is what stands before the digits, with its blank.
    """
    major, minor = divmod(abs(amount_minor), MINOR_PER_MAJOR)
    return f"{'-' if amount_minor < 0 else ''}{sign}{group_indian(major)}.{minor:02d}"


def group_indian(number: int) -> str:
    """Print a whole number with commas by thousand, lakh and crore, e.g. `12,34,567`."""
    digits = str(number)
    head, groups = digits[:-_THOUSAND_DIGITS], [digits[-_THOUSAND_DIGITS:]]
    while head:
        groups.append(head[-_GROUP_DIGITS:])
        head = head[:-_GROUP_DIGITS]
    return ",".join(reversed(groups))


def format_kw(power_w: int) -> str:
    """Print a load in kW without idle decimals, e.g. `0.5` or `3`."""
    kw, watts = divmod(power_w, _W_PER_KW)
    return f"{kw}.{watts:03d}".rstrip("0").rstrip(".")


def format_day(day: date, months: Sequence[str] | None) -> str:
    """Print a day, e.g. `22 November 2026` with names of months, `22-11-2026` without."""
    return f"{day:%d-%m-%Y}" if months is None else f"{day.day} {months[day.month - 1]} {day.year}"


def format_instant(at_ms: int, calendar: LocalCalendar, months: Sequence[str] | None) -> str:
    """Print a local day and time, without the parts of a minute."""
    local = from_ms(at_ms).astimezone(calendar.zone)
    day = format_day(local.date(), months)
    return f"{day}, {local:%H:%M}" if months is not None else f"{day} {local:%H:%M}"
