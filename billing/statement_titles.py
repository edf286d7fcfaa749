"""Titles of bill lines as a consumer reads them on a statement.

Stage: between an account's terms and `billing.statement`. Enters: dated terms. Leaves: a title by line name, in the
order in which a bill lists them.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date

from billing.statement import format_kwh, line_title
from billing.tariff import Rates
from billing.terms import ONE_DAY, BillPart, Terms

_WH_PER_KWH = 1000


def line_titles(terms: Terms, *, first: date, last: date) -> dict[str, str]:
    """Return the titles of the lines that an account may be charged between two local days.

    A step of energy whose limits change within these days keeps its number only.
    """
    titles: dict[str, str] = {}
    for part in _parts(terms, first, last):
        for name, title in _titles_of(part.rates):
            same = titles.get(name, title) == title
            titles[name] = title if same else line_title(name, {})
    return titles


def _parts(terms: Terms, first: date, last: date) -> Iterator[BillPart]:
    day = max(first, terms.opened_on)
    while day <= last:
        part = terms.part_at(day)
        yield part
        day = part.last + ONE_DAY


def _titles_of(rates: Rates) -> Iterator[tuple[str, str]]:
    below_wh = 0
    at_rate_of = "Energy at the rate of units" if rates.whole_quantity else "Energy, units"
    for number, slab in enumerate(rates.slabs, start=1):
        if slab.to_wh is None:
            limits = f" above {_units(below_wh)}" if below_wh else ""
        else:
            limits, below_wh = f" {_units(below_wh)}-{_units(slab.to_wh)}", slab.to_wh
        yield f"energy_{number}", f"{at_rate_of}{limits}" if limits else "Energy"
    names = [f"zone_{name}" for name in rates.zone_names]
    names += ["fppca", "fixed", "meter_rent", "demand", "minimum"]
    for name in (*names, *(share.name for share in rates.shares), "subsidy"):
        yield name, line_title(name, {})


def _units(energy_wh: int) -> str:
    return format_kwh(energy_wh) if energy_wh % _WH_PER_KWH else str(energy_wh // _WH_PER_KWH)
