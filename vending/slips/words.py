"""The words of slips: one TOML document a language, and figures as they are written beside them.

Stage: between data files and slips. Amounts are printed from integers with Indian grouping; never the locale of the
machine.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources

from billing.calendar import LocalCalendar
from billing.money import format_minor
from billing.notices.formats import format_instant, format_rupees, group_indian
from billing.notices.kinds import Language
from billing.statement import format_kwh

_RUPEES = "INR"
_MILLI_PER_RUPEE = 100_000
_RATE_DECIMALS = 5
_RATE_DECIMALS_MIN = 2
_WH_PER_KWH = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """Everything that slips say in one language.

    Invariants: `titles` by kind of slip, `says` by name, `lines` by bill line, `values` by wire value. Every language
    has the same names and the same places in braces.
    """

    language: Language
    rupee: str
    titles: Mapping[str, str]
    says: Mapping[str, str]
    lines: Mapping[str, str]
    values: Mapping[str, str]

    def value(self, wire: str) -> str:
        """Return the word for a wire value; one that has none is shown as it is."""
        return self.values.get(wire, wire)

    def line(self, name: str, title: str) -> str:
        """Return the title of a bill line; a levy that only one tariff knows keeps the given one."""
        stem, _, number = name.rpartition("_")
        if stem == "energy" and number.isdigit():
            return self.lines["energy"].format(number=number)
        return self.lines.get(name, title)

    def money(self, amount_minor: int, currency: str) -> str:
        """Print an amount with the sign of its currency."""
        if currency == _RUPEES:
            return format_rupees(amount_minor, sign=self.rupee)
        return f"{currency} {format_minor(amount_minor)}"

    def instant(self, at_ms: int, calendar: LocalCalendar) -> str:
        """Print a local day and time."""
        return format_instant(at_ms, calendar, None)


@cache
def words_of(language: Language) -> Words:
    """Return the words of a language."""
    file = resources.files("vending.slips").joinpath("texts", f"{language.value}.toml")
    document = tomllib.loads(file.read_text(encoding="utf-8"))
    return Words(
        language=language,
        rupee=document["rupee"],
        titles=document["titles"],
        says=document["says"],
        lines=document["lines"],
        values=document["values"],
    )


def format_rate(rate_milli_per_kwh: int) -> str:
    """Print a rate in currency units per kWh, exactly, e.g. `3.85` or `3.8575`."""
    whole, rest = divmod(abs(rate_milli_per_kwh), _MILLI_PER_RUPEE)
    decimals = f"{rest:0{_RATE_DECIMALS}d}"
    shown = decimals.rstrip("0").ljust(_RATE_DECIMALS_MIN, "0")
    return f"{'-' if rate_milli_per_kwh < 0 else ''}{whole}.{shown}"


def format_units(energy_wh: int) -> str:
    """Print a limit of a step in kWh, without idle decimals."""
    return format_kwh(energy_wh) if energy_wh % _WH_PER_KWH else group_indian(energy_wh // _WH_PER_KWH)
