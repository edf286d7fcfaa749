"""Tariff documents: what is read, and what is refused with the line and the rule that it breaks."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import FrozenInstanceError
from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.tariff import (
    ZERO_RATE,
    Band,
    Beyond,
    Fppca,
    MonthRate,
    PartMonths,
    Share,
    ShareKind,
    Slab,
    SlabKind,
    Subsidy,
    TariffError,
)
from billing.tariff_document import builtin_documents, builtin_tariff, parse_tariff
from billing.toml_table import DOCUMENT_CHARACTERS_MAX

SHIPPED = "punjab-ds-2026-27"
SMALLEST = """
id = "flat"
effective_from = 2026-04-01
[[band]]
energy = [{ rate_milli_per_kwh = 500_000 }]
"""
# Everything a document can say, each thing on a line of its own.
FULL = """\
id = "full"
title = "All there is"
source = "nowhere"
currency = "KES"
effective_from = 2026-04-01
minimum_of = ["energy", "fixed"]

[slabs]
kind = "whole_quantity"
part_months = "pro_rata"

[[band]]
to_load_w = 2_000
fixed_milli_per_kw_month = 5_000_000
minimum_milli_per_month = 4_000_000
[[band.energy]]
to_kwh = 100
rate_milli_per_kwh = 300_000
[[band.energy]]
rate_milli_per_kwh = 400_000

[[band]]
fixed_milli_per_kva_month = 7_000_000
demand_milli_per_kw_month = 9_000_000
energy = [
    { to_kwh = 100, rate_milli_per_kwh = 500_000 },
    { to_kwh = 300, rate_milli_per_kwh = 600_000 },
    { rate_milli_per_kwh = 700_000 },
]

[meter_rent]
milli_per_month = 1_000_000

[[fppca]]
rate_milli_per_kwh = 12_000
since = 2026-04-01
until = 2026-06-14

[[fppca]]
credit_milli_per_kwh = 5_000
since = 2026-06-15

[[share]]
name = "rebate"
kind = "rebate"
of = ["energy", "zone"]
basis_points = 100

[[share]]
name = "duty"
kind = "levy"
of = ["energy", "fixed", "rebate"]
basis_points = 1_300
areas = ["urban"]
until = 2026-09-30

[[share]]
name = "duty"
kind = "levy"
of = ["energy", "fixed", "rebate"]
basis_points = 1_500
areas = ["urban", "rural"]
since = 2026-10-01

[[share]]
name = "surcharge"
kind = "charge"
of = ["duty"]
basis_points = 1_000

[subsidy]
kwh_per_month = 50
covers = ["energy", "duty"]
beyond = "all"

[zones]
weekend = ["saturday", "sunday"]
holidays = [2026-08-15, 2026-10-02]

[[zones.zone]]
name = "day"

[[zones.zone]]
name = "night"
rebate_milli_per_kwh = 150_000

[[zones.zone]]
name = "peak"
surcharge_milli_per_kwh = 200_000

[[zones.season]]
name = "summer"
first = "04-01"
last = "09-30"

[[zones.season]]
name = "winter"
first = "10-01"
last = "03-31"

[[zones.hours]]
zone = "night"
from = "22:00"
to = "06:00"

[[zones.hours]]
zone = "day"
from = "06:00"
to = "18:00"

[[zones.hours]]
zone = "peak"
season = "summer"
days = "working"
from = "18:00"
to = "22:00"

[[zones.hours]]
zone = "day"
season = "summer"
days = "holiday"
from = "18:00"
to = "22:00"

[[zones.hours]]
zone = "day"
season = "winter"
from = "18:00"
to = "22:00"
"""


def refusal(text: str) -> str:
    """Read a document that must be refused; return the message."""
    with pytest.raises(TariffError) as caught:
        parse_tariff(text)
    return str(caught.value)


def test_full_document_is_read_field_by_field() -> None:
    """Every table and field arrives where it belongs."""
    tariff = parse_tariff(FULL)
    assert (tariff.id, tariff.title, tariff.source, tariff.currency) == ("full", "All there is", "nowhere", "KES")
    assert (tariff.effective_from, tariff.minimum_of) == (date(2026, 4, 1), ("energy", "fixed"))
    assert (tariff.slab_kind, tariff.part_months) == (SlabKind.WHOLE_QUANTITY, PartMonths.PRO_RATA)
    assert tariff.bands == (
        Band(
            to_load_w=2_000,
            slabs=(Slab(to_wh=100_000, rate_milli_per_kwh=300_000), Slab(to_wh=None, rate_milli_per_kwh=400_000)),
            fixed=MonthRate(milli=5_000_000, per_kw=True),
            minimum=MonthRate(milli=4_000_000, per_kw=False),
        ),
        Band(
            to_load_w=None,
            slabs=(
                Slab(to_wh=100_000, rate_milli_per_kwh=500_000),
                Slab(to_wh=300_000, rate_milli_per_kwh=600_000),
                Slab(to_wh=None, rate_milli_per_kwh=700_000),
            ),
            fixed=MonthRate(milli=7_000_000, per_kw=True),
            demand_milli_per_kw=9_000_000,
        ),
    )
    assert tariff.meter_rent == MonthRate(milli=1_000_000, per_kw=False)
    assert tariff.fppca == (
        Fppca(milli_per_kwh=12_000, since=date(2026, 4, 1), until=date(2026, 6, 14)),
        Fppca(milli_per_kwh=-5_000, since=date(2026, 6, 15)),
    )
    assert tariff.shares[0] == Share(name="rebate", kind=ShareKind.REBATE, of=("energy", "zone"), basis_points=100)
    assert [(share.name, share.basis_points, sorted(share.areas)) for share in tariff.shares[1:]] == [
        ("duty", 1_300, ["urban"]),
        ("duty", 1_500, ["rural", "urban"]),
        ("surcharge", 1_000, []),
    ]
    assert (tariff.levies, tariff.rebate_basis_points) == (frozenset({"duty"}), 100)
    assert tariff.subsidy == Subsidy(to_wh=50_000, covers=("energy", "duty"), beyond=Beyond.ALL)
    # The quarter changes within June; October begins with a month.
    assert tariff.change_days == (date(2026, 6, 15),)


def test_zones_of_a_full_document_follow_season_weekend_and_holiday() -> None:
    """Saturdays and the named days have no peak; past midnight a night goes on in the same day's morning."""
    zones = parse_tariff(FULL).zones
    assert zones is not None
    assert (zones.names, zones.milli_per_kwh) == (("day", "night", "peak"), (0, -150_000, 200_000))
    day, night, peak = 0, 1, 2
    plain = ((0, night), (360, day), (1320, night))
    assert zones.of_day(date(2026, 7, 1)) == ((0, night), (360, day), (1080, peak), (1320, night))
    assert zones.of_day(date(2026, 7, 4)) == plain
    assert zones.of_day(date(2026, 8, 14)) == ((0, night), (360, day), (1080, peak), (1320, night))
    assert zones.of_day(date(2026, 8, 15)) == plain
    assert zones.of_day(date(2026, 12, 1)) == plain
    assert zones.of_day(date(2027, 3, 31)) == plain
    assert zones.of_day(date(2028, 2, 29)) == plain


def test_smallest_document_has_no_charge_but_energy() -> None:
    """Everything but id, first day and one band is optional."""
    tariff = parse_tariff(SMALLEST)
    assert tariff.bands == (Band(to_load_w=None, slabs=(Slab(to_wh=None, rate_milli_per_kwh=500_000),)),)
    assert (tariff.shares, tariff.fppca, tariff.zones, tariff.subsidy) == ((), (), None, None)
    assert (tariff.title, tariff.source, tariff.currency, tariff.meter_rent) == ("flat", "", "INR", ZERO_RATE)
    assert (tariff.slab_kind, tariff.part_months) == (SlabKind.TELESCOPIC, PartMonths.WHOLE)
    assert (tariff.levies, tariff.rebate_basis_points, tariff.change_days) == (frozenset(), 0, ())


def test_shipped_domestic_tariff_holds_the_figures_that_bench_and_history_rest_on() -> None:
    """3.85 Rs to 300 kWh, 7.05 above; 50, 70, 100 Rs per kW; 1 % rebate; 15 % duty."""
    tariff = builtin_tariff(SHIPPED)
    slabs = (Slab(to_wh=300_000, rate_milli_per_kwh=385_000), Slab(to_wh=None, rate_milli_per_kwh=705_000))
    assert [(band.to_load_w, band.slabs, band.fixed.milli) for band in tariff.bands] == [
        (2_000, slabs, 5_000_000),
        (7_000, slabs, 7_000_000),
        (None, slabs, 10_000_000),
    ]
    assert tariff.shares == (
        Share(name="rebate", kind=ShareKind.REBATE, of=("energy",), basis_points=100),
        Share(name="duty", kind=ShareKind.LEVY, of=("energy", "fixed", "rebate"), basis_points=1_500),
    )


def test_unknown_builtin_is_refused_with_those_that_exist() -> None:
    """The message helps the one who mistyped."""
    with pytest.raises(TariffError, match=SHIPPED) as caught:
        builtin_tariff("punjab")
    assert caught.value.code == "tariff_error"


@pytest.mark.parametrize(
    ("load_w", "fixed_milli"),
    [(1, 5_000_000), (2_000, 5_000_000), (2_001, 7_000_000), (7_000, 7_000_000), (7_001, 10_000_000)],
)
def test_band_of_a_load_includes_its_upper_limit(load_w: int, fixed_milli: int) -> None:
    """Up to 2 kW means 2,000 W too."""
    assert builtin_tariff(SHIPPED).band_of(load_w).fixed.milli == fixed_milli


def test_shares_and_adjustments_hold_from_their_first_to_their_last_day_and_in_their_areas() -> None:
    """Both days count, and an area that no levy names pays none."""
    tariff = parse_tariff(FULL)

    def held(area: str, day: date) -> list[tuple[str, int]]:
        rates = tariff.rates(load_w=1_000, area=area, meter_rent=True, day=day)
        return [(share.name, share.basis_points) for share in rates.shares]

    assert held("urban", date(2026, 9, 30)) == [("rebate", 100), ("duty", 1_300), ("surcharge", 1_000)]
    assert held("urban", date(2026, 10, 1)) == [("rebate", 100), ("duty", 1_500), ("surcharge", 1_000)]
    assert held("rural", date(2026, 9, 30)) == [("rebate", 100), ("surcharge", 1_000)]
    assert held("hill", date(2026, 10, 1)) == [("rebate", 100), ("surcharge", 1_000)]
    days = {date(2026, 3, 31): None, date(2026, 4, 1): 12_000, date(2026, 6, 14): 12_000, date(2026, 6, 15): -5_000}
    for day, milli in days.items():
        assert tariff.rates(load_w=1_000, area="urban", meter_rent=True, day=day).fppca_milli == milli


def test_meter_rent_is_not_charged_for_a_meter_of_the_consumers_own() -> None:
    """Rent is for the licensee's meter."""
    tariff = parse_tariff(FULL)
    day = date(2026, 4, 1)
    assert tariff.rates(load_w=1_000, area="urban", meter_rent=True, day=day).meter_rent_micro == 10**9
    assert tariff.rates(load_w=1_000, area="urban", meter_rent=False, day=day).meter_rent_micro == 0


def test_tariff_once_read_cannot_be_changed() -> None:
    """Versions are immutable."""
    with pytest.raises(FrozenInstanceError):
        builtin_tariff(SHIPPED).currency = "USD"  # type: ignore[misc]  # The assignment is what the test refuses.


# What breaks each rule: the text replaced, by what, the line that the refusal names, and the rule.
REFUSED = {
    # Numbers, texts, names, dates: wrong types.
    "rate missing": ("rate_milli_per_kwh = 300_000", "", 16, "got none"),
    "rate float": ("= 300_000", "= 385.5", 18, "rate_milli_per_kwh: expected a whole number from 0 to 100000000"),
    "rate text": ("= 300_000", '= "385"', 18, "expected a whole number"),
    "rate true": ("= 300_000", "= true", 18, "expected a whole number"),
    "rate negative": ("= 300_000", "= -1", 18, "rate_milli_per_kwh: expected a whole number from 0"),
    "rate too high": ("= 300_000", "= 100_000_001", 18, "to 100000000, got 100000001"),
    "inline rate negative": ("= 600_000", "= -6", 27, "[[band.energy]] 2: rate_milli_per_kwh"),
    "fixed negative": ("= 5_000_000", "= -5", 14, "[[band]] 1: fixed_milli_per_kw_month"),
    "fixed too high": ("= 5_000_000", "= 1_000_000_001", 14, "to 1000000000"),
    "minimum negative": ("= 4_000_000", "= -4", 15, "minimum_milli_per_month"),
    "demand negative": ("= 9_000_000", "= -9", 24, "[[band]] 2: demand_milli_per_kw_month"),
    "rent negative": ("= 1_000_000", "= -1", 32, "[meter_rent]: milli_per_month"),
    "limit float": ("to_load_w = 2_000", "to_load_w = 2000.5", 13, "to_load_w: expected a whole number from 1"),
    "load limit too high": ("to_load_w = 2_000", "to_load_w = 200_000_000", 13, "to 100000000"),
    "load limit zero": ("to_load_w = 2_000", "to_load_w = 0", 13, "from 1 to 100000000, got 0"),
    "slab limit zero": ("to_kwh = 300", "to_kwh = 0", 27, "to_kwh: expected a whole number from 1"),
    "id missing": ('id = "full"\n', "", 1, "id: expected a-z, 0-9, dots and dashes"),
    "id capital": ('"full"', '"Full"', 1, "id: expected a-z"),
    "id number": ('id = "full"', "id = 7", 1, "id: expected a-z"),
    "title list": ('"All there is"', '["All"]', 2, "title: expected one line of text"),
    "title of two lines": ('"All there is"', '"All\\nthere"', 2, "title: expected one line of text"),
    "source number": ('"nowhere"', "5", 3, "source: expected one line of text"),
    "currency word": ('"KES"', '"rupees"', 4, "currency: expected an ISO 4217 code"),
    "currency without hundredths": ('"KES"', '"JPY"', 4, "currency: expected one that has hundredths"),
    "first day missing": ("effective_from = 2026-04-01\n", "", 1, "effective_from: expected a date"),
    "first day text": ("from = 2026-04-01\nmin", 'from = "2026-04-01"\nmin', 5, "effective_from"),
    "first day with time": ("from = 2026-04-01\nmin", "from = 2026-04-01T00:00:00\nmin", 5, "effective_from"),
    "kind unknown": ('"whole_quantity"', '"stepped"', 9, "kind: expected one of telescopic, whole_quantity"),
    "part months unknown": ('"pro_rata"', '"halves"', 10, "part_months: expected one of whole, pro_rata"),
    # Unknown fields and tables, wrong shapes.
    "unknown field": ('currency = "KES"', 'curency = "KES"', 4, "the document: expected only band, currency"),
    "unknown table": ("[meter_rent]", "[meter_rents]", 31, "expected only"),
    "unknown field of a slab": ("to_kwh = 300", "to_kwh = 300, per_day = 1", 27, "expected only rate_milli"),
    "unknown field of hours": ('days = "working"', 'day = "working"', 114, "expected only days, from"),
    "subsidy twice": ("[subsidy]", "[[subsidy]]", 71, "subsidy: expected a table"),
    "shares one table": ('[[share]]\nname = "rebate"', '[share]\nname = "rebate"', 49, "expected TOML"),
    # Bands and slabs: gaps and overlaps.
    "band open first": ("to_load_w = 2_000\n", "", 12, "only the last may be open, got none"),
    "band closed last": ("fixed_milli_per_kva", "to_load_w = 9_000\nfixed_milli_per_kva", 23, "a gap above it"),
    "slab open first": ("to_kwh = 100\n", "", 16, "only the last may be open"),
    "slabs repeat": ("to_kwh = 300", "to_kwh = 100", 27, "rising limits, above 100, got 100: an overlap"),
    "slabs fall": ("to_kwh = 300", "to_kwh = 99", 27, "rising limits, above 100, got 99: an overlap"),
    "slab closed last": ("{ rate_milli_per_kwh = 700_000", "{ to_kwh = 900, rate_milli_per_kwh = 700_000", 28, "a gap"),
    "slabs none": ("energy = [\n", "energy = []\nx = [\n", 26, "expected only"),
    "two fixed charges": (
        "fixed_milli_per_kw_month = 5_000_000",
        "fixed_milli_per_kw_month = 5\nfixed_milli_per_month = 6",
        15,
        "expected at most one of fixed_milli_per_kw_month",
    ),
    "minimum of unknown": ('["energy", "fixed"]\n\n', '["energy", "duty"]\n\n', 6, "got 'duty'"),
    "minimum of twice": ('["energy", "fixed"]\n\n', '["energy", "energy"]\n\n', 6, "different names"),
    # Shares.
    "share of unknown": ('of = ["energy", "zone"]', 'of = ["power"]', 46, "of: expected names out of energy, zone"),
    "share of a later one": ('of = ["energy", "zone"]', 'of = ["duty"]', 46, "'duty'"),
    "share of itself": ('of = ["duty"]', 'of = ["surcharge"]', 68, "got 'surcharge'"),
    "share of nothing": ('of = ["duty"]', "of = []", 68, "of: expected the lines that the share is taken of"),
    "share above all": ("basis_points = 1_300", "basis_points = 10_001", 53, "from 0 to 10000, got 10001"),
    "share negative": ("basis_points = 1_300", "basis_points = -1", 53, "from 0 to 10000, got -1"),
    "share kind": ('kind = "charge"', 'kind = "tax"', 67, "kind: expected one of rebate, charge, levy"),
    "share kind missing": ('kind = "charge"\n', "", 65, "kind: expected one of"),
    "share kinds differ": ('kind = "levy"', 'kind = "charge"', 59, "kind: expected charge as the other 'duty'"),
    "share name a line": ('name = "surcharge"', 'name = "fixed"', 66, "expected one that no other line has"),
    "share name a slab": ('name = "surcharge"', 'name = "energy_9"', 66, "expected one that no other line has"),
    "share name a zone": ('name = "surcharge"', 'name = "zone_x"', 66, "expected one that no other line has"),
    "share name": ('name = "surcharge"', 'name = "Sur charge"', 66, "name: expected a name of a-z"),
    "share name missing": ('name = "surcharge"\n', "", 65, "name: expected a name of a-z"),
    "share areas empty": ('areas = ["urban"]', "areas = []", 54, "areas: expected a list of different"),
    "share areas text": ('areas = ["urban"]', 'areas = "urban"', 54, "areas: expected a list"),
    "share area capital": ('areas = ["urban"]', 'areas = ["Urban"]', 54, "areas: expected a list"),
    "share area twice": ('areas = ["urban"]', 'areas = ["urban", "urban"]', 54, "areas: expected"),
    "share days overlap": ("since = 2026-10-01", "since = 2026-09-30", 57, "overlaps another share 'duty'"),
    "share everywhere overlaps": ('areas = ["urban", "rural"]\nsince = 2026-10-01', "", 57, "overlaps another share"),
    "share days fall": ("until = 2026-09-30", "until = 2026-09-30\nsince = 2027-01-01", 55, "or later"),
    "share date": ("until = 2026-09-30", 'until = "September"', 55, "until: expected a date such as"),
    "no such date": ("until = 2026-09-30", "until = 2026-09-31", 55, "expected TOML"),
    # Adjustment.
    "fppca overlaps": ("until = 2026-06-14", "until = 2026-06-15", 39, "[[fppca]] 2: overlaps another adjustment"),
    "fppca for ever": ("since = 2026-04-01\nuntil = 2026-06-14", "", 38, "overlaps another adjustment"),
    "fppca both": ("credit_milli", "rate_milli_per_kwh = 1\ncredit_milli", 41, "exactly one of"),
    "fppca none": ("credit_milli_per_kwh = 5_000\n", "", 39, "exactly one of"),
    "fppca negative": ("rate_milli_per_kwh = 12_000", "rate_milli_per_kwh = -12", 35, "from 0 to 100000000"),
    # Subsidy.
    "subsidy of nothing": ('covers = ["energy", "duty"]', "covers = []", 73, "the lines that the state pays"),
    "subsidy of unknown": ('covers = ["energy", "duty"]', 'covers = ["vat"]', 73, "covers: expected names out of"),
    "subsidy without units": ("kwh_per_month = 50\n", "", 71, "kwh_per_month: expected a whole number from 1"),
    "subsidy beyond": ('beyond = "all"', 'beyond = "some"', 74, "beyond: expected one of excess, all"),
    "subsidy beyond missing": ('beyond = "all"\n', "", 71, "beyond: expected one of excess, all, got none"),
    # Zones, seasons, hours.
    "zone twice": ('name = "peak"', 'name = "day"', 88, "name: expected a new zone, got 'day' again"),
    "zone both signs": (
        "rebate_milli_per_kwh = 150_000",
        "rebate_milli_per_kwh = 1\nsurcharge_milli_per_kwh = 1\n",
        86,
        "expected at most one of surcharge_milli_per_kwh, rebate_milli_per_kwh",
    ),
    "zone rate negative": ("= 150_000", "= -1", 85, "rebate_milli_per_kwh: expected a whole number from 0"),
    "zone unknown": ('zone = "night"', 'zone = "dusk"', 102, "zone: expected one of day, night, peak, got 'dusk'"),
    "weekend": ('"saturday"', '"satday"', 77, "weekend: expected names out of monday"),
    "weekend twice": ('"saturday"', '"sunday"', 77, "weekend: expected a list of different names"),
    "holiday text": ("2026-08-15", '"15 August"', 78, "holidays: expected a list of dates"),
    "holiday time": ("2026-08-15", "2026-08-15T00:00:00", 78, "holidays: expected a list of dates"),
    "holiday twice": ("2026-08-15", "2026-10-02", 78, "holidays: expected each date once"),
    "season gap": ('first = "10-01"', 'first = "10-02"', 91, "season: expected one for every day, got none on 10-01"),
    "season gap on a leap day": ('last = "03-31"', 'last = "02-28"', 91, "got none on 02-29: a gap"),
    "season overlap": ('first = "10-01"', 'first = "09-30"', 96, "overlaps season 'summer' on 09-30"),
    "season date": ('first = "10-01"', 'first = "10-32"', 98, "first: expected a month and day such as 04-01"),
    "season date form": ('first = "10-01"', 'first = "1 Oct"', 98, "first: expected a month and day"),
    "season unknown": ('season = "winter"', 'season = "rains"', 127, "season: expected one of summer, winter"),
    "hours gap": ('to = "18:00"', 'to = "17:59"', 101, "got none at 17:59 on working days of summer: a gap"),
    "hours gap on holidays": ('days = "holiday"', 'days = "working"', 118, "overlaps other hours at 18:00"),
    "hours overlap": ('to = "18:00"', 'to = "18:01"', 111, "overlaps other hours at 18:00 on working days of summer"),
    "hours clock": ('from = "06:00"', 'from = "6:00"', 108, "from: expected a time from 00:00 to 23:59"),
    "hours minute": ('from = "06:00"', 'from = "06:60"', 108, "from: expected a time from 00:00 to 23:59"),
    "hours from 24:00": ('from = "22:00"', 'from = "24:00"', 103, "from: expected a time from 00:00 to 23:59"),
    "hours to 24:01": ('to = "06:00"', 'to = "24:01"', 104, "to: expected a time from 00:00 to 24:00"),
    "hours without end": ('to = "06:00"\n', "", 101, "to: expected a time"),
    "hours days": ('days = "working"', 'days = "weekday"', 114, "days: expected one of all, working, holiday"),
}


@pytest.mark.parametrize(("old", "new", "line", "rule"), REFUSED.values(), ids=REFUSED.keys())
def test_document_that_breaks_a_rule_is_refused_by_line_and_rule(old: str, new: str, line: int, rule: str) -> None:
    """The first place of the full document is changed; the message says line, table, field, expected and got."""
    assert old in FULL
    message = refusal(FULL.replace(old, new, 1))
    assert rule in message
    assert re.search(rf"line {line}[,:]", message)


EXACT = {
    "an inline slab has the line it stands on": (
        ("to_kwh = 300", "to_kwh = 50"),
        "tariff full, line 27, [[band.energy]] 2: to_kwh: expected rising limits, above 100, got 50: an overlap",
    ),
    "a slab table is counted within its band": (
        ("to_kwh = 100\nrate_milli_per_kwh = 300_000", "rate_milli_per_kwh = 300_000"),
        "tariff full, line 16, [[band.energy]] 1: to_kwh: expected a limit, for only the last may be open, got none:"
        " an overlap",
    ),
    "a missing field has its table's line": (
        ("kwh_per_month = 50\n", ""),
        "tariff full, line 71, [subsidy]: kwh_per_month: expected a whole number from 1 to 10000000, got none",
    ),
    "an unknown field has its own line": (
        ("[zones]\n", "[zones]\nweekends = []\n"),
        "tariff full, line 77, [zones]: expected only holidays, hours, season, weekend, zone, got weekends",
    ),
    "the second row of a share": (
        ("since = 2026-10-01", "since = 2026-09-30"),
        "tariff full, line 57, [[share]] 3: overlaps another share 'duty' on the same days and areas",
    ),
    "an hour": (
        ('to = "18:00"', 'to = "18:01"'),
        "tariff full, line 111, [[zones.hours]] 3: overlaps other hours at 18:00 on working days of summer",
    ),
}


@pytest.mark.parametrize(("change", "message"), EXACT.values(), ids=EXACT.keys())
def test_refusal_reads_tariff_line_table_field_expected_got(change: tuple[str, str], message: str) -> None:
    """Whole messages, for the form of them."""
    assert refusal(FULL.replace(*change, 1)) == message


def test_rows_of_a_share_stand_before_every_share_taken_of_them() -> None:
    """A cess on duty must not lose the duty of October because that row comes after it."""
    rows = [f"[[share]]{row}" for row in FULL.split("[[share]]")[1:]]
    cess, october = rows[3].split("[subsidy]")[0], rows[2]
    text = FULL.replace(october + cess, cess + october)
    assert "expected all rows of 'duty' before 'surcharge', which is taken of it" in refusal(text)


def test_seasons_of_one_name_have_the_same_hours() -> None:
    """Two runs of days may be one season; hours without a season are for all."""
    text = FULL.replace('name = "winter"', 'name = "summer"').split("[[zones.hours]]")
    hours = '[[zones.hours]]\nzone = "day"\nfrom = "00:00"\nto = "24:00"\n'
    zones = parse_tariff(text[0] + hours).zones
    assert zones is not None
    assert zones.hours == {("summer", False): ((0, 0),), ("summer", True): ((0, 0),)}


@pytest.mark.parametrize(("start", "end"), [("00:00", "24:00"), ("00:00", "00:00"), ("06:30", "06:30")])
def test_hours_from_a_time_to_itself_are_a_whole_day(start: str, end: str) -> None:
    """A day goes once around the clock."""
    text = f'{SMALLEST}[[zones.zone]]\nname = "all"\n[[zones.hours]]\nzone = "all"\nfrom = "{start}"\nto = "{end}"\n'
    zones = parse_tariff(text).zones
    assert zones is not None
    assert zones.of_day(date(2026, 4, 1)) == ((0, 0),)


def test_season_named_by_hours_without_seasons_is_refused() -> None:
    """The message says that there are none."""
    text = (
        SMALLEST
        + '[[zones.zone]]\nname = "a"\n[[zones.hours]]\nzone = "a"\nseason = "s"\nfrom = "00:00"\nto = "24:00"\n'
    )
    assert "line 10, [[zones.hours]] 1: season: expected one of no seasons, got 's'" in refusal(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (SMALLEST.split("[[band]]")[0], "expected one or more [[band]] tables, got none"),
        (SMALLEST.split("energy")[0], "energy: expected one or more slabs, got none"),
        (
            SMALLEST.replace("[{ rate_milli_per_kwh = 500_000 }]", "[]"),
            "line 5, [[band]] 1: energy: expected one or more",
        ),
        (SMALLEST.replace("[[band]]", "band = [1]\n[x]"), "band: expected [[band]] tables, got [1]"),
        (
            SMALLEST.replace("[{ rate_milli_per_kwh = 500_000 }]", "5"),
            "line 5, [[band]] 1: energy: expected [[energy]]",
        ),
        (SMALLEST + "slabs = 5", "[[band]] 1: expected only"),
        ("slabs = 5" + SMALLEST, "line 1, the document: slabs: expected a table, got 5"),
        (SMALLEST + "[zones]\n", "line 6, [zones]: expected one or more [[zones.zone]] tables"),
        (
            SMALLEST + '[[zones.zone]]\nname = "a"\n',
            "[zones]: hours: expected a zone for every minute, got none at 00:00",
        ),
    ],
)
def test_document_of_the_wrong_shape_is_refused(text: str, says: str) -> None:
    """Tables that are missing or something else are refused, not stumbled over."""
    message = refusal(text)
    assert says in message or "expected only" in message, message


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("id = ", "expected TOML, Invalid value (at end of document)"),
        ("id = 'a'\nid = 'b'", "expected TOML, Cannot overwrite a value"),
        ("a = " + "[" * 100_000, "nested without end"),
        ("a = " + "9" * 10_000, "expected TOML"),
        ("#" * (DOCUMENT_CHARACTERS_MAX + 1), "expected at most 1000000 characters, got 1000001"),
        ("", "line 1: id: expected a-z"),
    ],
)
def test_text_that_is_no_document_is_refused(text: str, says: str) -> None:
    """Broken TOML, endless nesting, endless digits and endless text all end in one refusal."""
    assert says in refusal(text)


def test_lines_end_as_on_any_machine() -> None:
    """A document saved with CR LF is the same document, and its lines are counted the same."""
    assert parse_tariff(FULL.replace("\n", "\r\n")).bands == parse_tariff(FULL).bands
    broken = FULL.replace("to_kwh = 300", "to_kwh = 50")
    assert refusal(broken.replace("\n", "\r\n")) == refusal(broken)


@given(st.data())
def test_document_with_any_characters_changed_is_read_or_refused(data: st.DataObject) -> None:
    """No text, however broken, ends in anything but a tariff or a refusal."""
    start = data.draw(st.integers(0, len(FULL)))
    length = data.draw(st.integers(0, 40))
    put = data.draw(st.one_of(st.text(max_size=10), st.text("[]{}=,.\"'\n#-_0123456789 abtf", max_size=20)))
    text = FULL[:start] + put + FULL[start + length :]
    with suppress(TariffError):
        assert parse_tariff(text).id


def test_builtin_documents_each_parse_under_their_file_name() -> None:
    """A document's id is its file's name, and its title and source say that it is illustrative and whence it is."""
    documents = builtin_documents()
    assert len(documents) == 9
    for tariff_id, text in documents.items():
        tariff = parse_tariff(text)
        assert tariff.id == tariff_id
        assert "illustrative" in tariff.title
        assert re.search(r"20\d\d", tariff.source)
        assert text.startswith("#")
