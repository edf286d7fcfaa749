"""Tariff documents: what is read, and what is refused with the rule it breaks."""

from __future__ import annotations

import re
from dataclasses import FrozenInstanceError
from datetime import date

import pytest

from billing.tariff import FixedBand, Slab, TariffError, builtin_documents, builtin_tariff, parse_tariff

SHIPPED = "punjab-ds-2026-27"
SMALLEST = """
id = "flat"
effective_from = 2026-04-01
[[energy]]
rate_milli_per_kwh = 500_000
[[fixed]]
rate_milli_per_kw_month = 0
"""


def changed(old: str, new: str) -> str:
    """Return the shipped document with one place changed."""
    document = builtin_documents()[SHIPPED]
    assert old in document
    return document.replace(old, new, 1)


def test_builtin_tariff_of_punjab_holds_the_published_figures() -> None:
    """3.85 Rs to 300 kWh, 7.05 above; 50, 70, 100 Rs per kW; 1 % rebate; 15 % duty."""
    tariff = builtin_tariff(SHIPPED)
    assert tariff.id == SHIPPED
    assert tariff.currency == "INR"
    assert tariff.effective_from == date(2026, 4, 1)
    assert tariff.slabs == (
        Slab(to_wh=300_000, rate_milli_per_kwh=385_000),
        Slab(to_wh=None, rate_milli_per_kwh=705_000),
    )
    assert tariff.fixed == (
        FixedBand(to_load_w=2_000, rate_milli_per_kw_month=5_000_000),
        FixedBand(to_load_w=7_000, rate_milli_per_kw_month=7_000_000),
        FixedBand(to_load_w=None, rate_milli_per_kw_month=10_000_000),
    )
    assert (tariff.rebate_basis_points, tariff.duty_basis_points) == (100, 1_500)


def test_builtin_documents_each_parse_under_their_file_name() -> None:
    """A document's id is its file's name."""
    documents = builtin_documents()
    assert SHIPPED in documents
    for tariff_id, text in documents.items():
        assert parse_tariff(text).id == tariff_id


def test_builtin_tariff_unknown_is_refused_with_those_that_exist() -> None:
    """The message helps the one who mistyped."""
    with pytest.raises(TariffError, match=SHIPPED) as caught:
        builtin_tariff("punjab")
    assert caught.value.code == "tariff_error"


@pytest.mark.parametrize(
    ("load_w", "rate_milli"),
    [
        (1, 5_000_000),
        (2_000, 5_000_000),
        (2_001, 7_000_000),
        (7_000, 7_000_000),
        (7_001, 10_000_000),
        (10**6, 10_000_000),
    ],
)
def test_fixed_rate_at_the_edges_of_its_bands_includes_the_upper_limit(load_w: int, rate_milli: int) -> None:
    """Up to 2 kW means 2,000 W too."""
    assert builtin_tariff(SHIPPED).fixed_rate_milli(load_w) == rate_milli


def test_tariff_once_read_cannot_be_changed() -> None:
    """Versions are immutable."""
    tariff = builtin_tariff(SHIPPED)
    with pytest.raises(FrozenInstanceError):
        tariff.duty_basis_points = 0  # type: ignore[misc]  # the assignment is what the test refuses


def test_parse_tariff_of_one_open_slab_and_band_has_no_shares() -> None:
    """Rebate and duty are optional."""
    tariff = parse_tariff(SMALLEST)
    assert tariff.slabs == (Slab(to_wh=None, rate_milli_per_kwh=500_000),)
    assert (tariff.rebate_basis_points, tariff.duty_basis_points) == (0, 0)
    assert (tariff.title, tariff.source, tariff.currency) == ("flat", "", "INR")


REFUSED = {
    "not TOML": ("[[energy]]", "[[energy", "expected TOML"),
    "energy one table and a list": ("[[energy]]\nto_kwh = 300", "[energy]\nto_kwh = 300", "expected TOML"),
    "first slab open": ("to_kwh = 300", "", "energy slabs: expected only the last to be open"),
    "last slab closed": ("rate_milli_per_kwh = 705_000", "to_kwh = 900\nrate_milli_per_kwh = 1", "only the last"),
    "slab limit zero": ("to_kwh = 300", "to_kwh = 0", "expected rising limits above 0"),
    "slab limit negative": ("to_kwh = 300", "to_kwh = -1", "-1"),
    "bands fall": ("to_load_w = 2_000", "to_load_w = 7_001", "fixed bands: expected rising"),
    "bands repeat": ("to_load_w = 2_000", "to_load_w = 7_000", "fixed bands: expected rising"),
    "rate missing": ("rate_milli_per_kwh = 385_000", "", "rate_milli_per_kwh: expected a whole number"),
    "rate a float": ("= 385_000", "= 385.5", "expected a whole number of 0 or more, got 385.5"),
    "rate a text": ("= 385_000", '= "385"', "expected a whole number"),
    "rate a truth value": ("= 385_000", "= true", "expected a whole number"),
    "rate negative": ("= 385_000", "= -1", "expected a whole number of 0 or more, got -1"),
    "fixed rate negative": ("= 5_000_000", "= -1", "rate_milli_per_kw_month: expected"),
    "share above all": ("= 1_500", "= 10_001", "duty_basis_points: expected at most 10000"),
    "share negative": ("rebate_basis_points = 100", "rebate_basis_points = -1", "rebate_basis_points: expected"),
    "share a float": ("= 1_500", "= 15.0", "duty_basis_points: expected a whole number"),
    "date missing": ("effective_from = 2026-04-01", "", "effective_from: expected a date"),
    "date a text": ("= 2026-04-01", '= "2026-04-01"', "effective_from: expected a date"),
}


@pytest.mark.parametrize(("old", "new", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_parse_tariff_with_a_broken_rule_is_refused_by_name(old: str, new: str, message: str) -> None:
    """Each rule that is broken is named, and so is the tariff."""
    with pytest.raises(TariffError, match=message):
        parse_tariff(changed(old, new))


@pytest.mark.parametrize("table", ["energy", "fixed"])
def test_parse_tariff_without_a_table_is_refused(table: str) -> None:
    """Both energy slabs and fixed bands are required."""
    with pytest.raises(TariffError, match=rf"expected one or more \[\[{table}\]\] tables"):
        parse_tariff(re.sub(rf"\[\[{table}\]\]\n.*\n", "", SMALLEST))


MUST_BE_REFUSED = {
    "slab limit a float": ("to_kwh = 300", "to_kwh = 300.5"),
    "slab limit a text": ("to_kwh = 300", 'to_kwh = "300"'),
    "slab limit a truth value": ("to_kwh = 300", "to_kwh = true"),
    "band limit a float": ("to_load_w = 2_000", "to_load_w = 2000.5"),
    "band limit a text": ("to_load_w = 2_000", 'to_load_w = "2000"'),
    "band limit a truth value": ("to_load_w = 2_000", "to_load_w = true"),
    "date with a time": ("= 2026-04-01", "= 2026-04-01T00:00:00"),
    "id missing": (f'id = "{SHIPPED}"', ""),
    "id empty": (f'id = "{SHIPPED}"', 'id = ""'),
    "id a number": (f'id = "{SHIPPED}"', "id = 7"),
    "share misspelt": ("duty_basis_points", "duty_basis_point"),
    "shares misspelt": ("[shares]", "[share]"),
    "unknown field": ('currency = "INR"', 'currency = "INR"\nminimum_charge = 5'),
    "unknown field of a slab": ("to_kwh = 300", "to_kwh = 300\nper_kw = 1"),
    "shares not a table": ("[shares]\nrebate_basis_points = 100\nduty_basis_points = 1_500", "[[shares]]"),
}


@pytest.mark.parametrize(("old", "new"), MUST_BE_REFUSED.values(), ids=MUST_BE_REFUSED.keys())
def test_parse_tariff_with_a_field_of_the_wrong_type_or_name_is_refused(old: str, new: str) -> None:
    """A slip of the pen never becomes a float limit, a lost duty or a crash."""
    with pytest.raises(TariffError):
        parse_tariff(changed(old, new))


def test_parse_tariff_with_numbers_for_tables_is_refused() -> None:
    """Rows that are not tables are refused, not stumbled over."""
    with pytest.raises(TariffError):
        parse_tariff('id = "x"\neffective_from = 2026-04-01\nenergy = [1]\nfixed = [1]\n')
