"""Titles of bill lines from an account's terms."""

from __future__ import annotations

from dataclasses import replace
from datetime import date

from billing.statement_titles import line_titles
from billing.tariff import Slab, SlabKind, Tariff
from billing.tariff_document import builtin_tariff
from billing.terms import Assignment, Terms

JUNE = date(2026, 6, 1)
TARIFF = builtin_tariff("punjab-ds-2026-27")


def terms_of(*tariffs: Tariff) -> Terms:
    """Return terms under which each tariff holds for ten days of June."""
    return Terms(
        opened_on=JUNE,
        assignments=tuple(
            Assignment(from_day=JUNE.replace(day=1 + 10 * number), tariff=tariff, load_w=3_000)
            for number, tariff in enumerate(tariffs)
        ),
    )


def with_slabs(*limits_wh: int | None, kind: SlabKind = SlabKind.TELESCOPIC) -> Tariff:
    """Return the tariff with other steps of energy."""
    slabs = tuple(Slab(to_wh=limit_wh, rate_milli_per_kwh=1_000) for limit_wh in limits_wh)
    return replace(TARIFF, slab_kind=kind, bands=tuple(replace(band, slabs=slabs) for band in TARIFF.bands))


def test_steps_of_energy_are_titled_by_their_units() -> None:
    """A consumer reads which units a step is about, in the order of the bill."""
    titles = line_titles(terms_of(TARIFF), first=JUNE, last=JUNE)
    assert list(titles.items())[:2] == [("energy_1", "Energy, units 0-300"), ("energy_2", "Energy, units above 300")]
    assert (titles["fixed"], titles["rebate"], titles["duty"]) == ("Fixed charge", "Prepaid rebate", "Electricity duty")
    names = list(titles)
    assert names.index("fixed") < names.index("rebate") < names.index("duty")


def test_one_step_needs_no_units_and_middle_steps_have_two() -> None:
    """Limits that are no whole kWh are printed with decimals; whole-quantity steps say that they are a rate."""
    assert line_titles(terms_of(with_slabs(None)), first=JUNE, last=JUNE)["energy_1"] == "Energy"
    titles = line_titles(terms_of(with_slabs(100_000, 250_500, None)), first=JUNE, last=JUNE)
    assert (titles["energy_2"], titles["energy_3"]) == ("Energy, units 100-250.500", "Energy, units above 250.500")
    whole = with_slabs(100_000, None, kind=SlabKind.WHOLE_QUANTITY)
    assert line_titles(terms_of(whole), first=JUNE, last=JUNE)["energy_1"] == "Energy at the rate of units 0-100"


def test_steps_that_change_within_the_days_keep_their_number_only() -> None:
    """One column over two tariffs with other limits is not titled by either; days of one tariff are."""
    terms = terms_of(TARIFF, with_slabs(100_000, None))
    assert line_titles(terms, first=JUNE, last=JUNE.replace(day=30))["energy_1"] == "Energy, step 1"
    assert line_titles(terms, first=JUNE, last=JUNE.replace(day=10))["energy_1"] == "Energy, units 0-300"
    assert (
        line_titles(terms, first=JUNE.replace(day=11), last=JUNE.replace(day=30))["energy_1"] == "Energy, units 0-100"
    )


def test_days_before_the_opening_have_no_titles() -> None:
    """Nothing can be charged before the account opened."""
    assert line_titles(terms_of(TARIFF), first=date(2026, 5, 1), last=date(2026, 5, 31)) == {}
