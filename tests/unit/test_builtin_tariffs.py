"""A bill of each tariff that ships with the product, worked by hand from its document."""

from __future__ import annotations

from datetime import date

import pytest

from billing.rating import Lines, Quantities, charge_to_date, total
from billing.tariff_document import builtin_documents, builtin_tariff

APRIL, JUNE, OCTOBER = date(2026, 4, 1), date(2026, 6, 1), date(2026, 10, 1)
NORMAL, NIGHT, SOLAR, PEAK = range(4)


def bill(
    tariff_id: str,
    *,
    load_kw: int,
    kwh: int,
    area: str = "urban",
    month: date = APRIL,
    days: int = 30,
    own_meter: bool = False,
    zone_kwh: tuple[int, ...] = (),
    demand_kw: int = 0,
) -> Lines:
    """Return the bill of a whole month, lines of 0 left out."""
    rates = builtin_tariff(tariff_id).rates(load_w=load_kw * 1000, area=area, meter_rent=not own_meter, day=month)
    used = Quantities(
        before_wh=0,
        energy_wh=kwh * 1000,
        zone_wh=tuple(each * 1000 for each in zone_kwh) or (0,) * len(rates.zone_names),
        days=days,
        period_days=days,
        slab_days=days,
        demand_w=demand_kw * 1000,
    )
    return {name: amount for name, amount in charge_to_date(rates, used).items() if amount}


def test_punjab_domestic_2023_24_in_town() -> None:
    """5 kW, 350 units: 100 x 4.44 + 200 x 6.64 + 50 x 7.75 = 2,159.50; fixed 5 x 75 = 375; rebate 21.595, up to 21.60.

    Levies of 2,159.50 + 375 - 21.60 = 2,512.90: 13 % 326.677, 2 % 50.258, 5 % 125.645 (a half, up). Sum 3,015.49.
    """
    lines = bill("punjab-ds-2023-24", load_kw=5, kwh=350)
    assert lines == {
        "energy_1": 44_400, "energy_2": 132_800, "energy_3": 38_750, "fixed": 37_500, "rebate": -2_160,
        "duty": 32_668, "municipal": 5_026, "infrastructure": 12_565,
    }  # fmt: skip
    assert total(lines) == 301_549


def test_punjab_domestic_2023_24_in_a_village() -> None:
    """The same bill: 15 % duty of 2,512.90 is 376.935, up to 376.94, and nothing else. Sum 2,889.84."""
    lines = bill("punjab-ds-2023-24", load_kw=5, kwh=350, area="rural")
    assert (lines["duty"], lines.keys() & {"municipal", "infrastructure"}) == (37_694, set())
    assert total(lines) == 288_984


@pytest.mark.parametrize(
    ("load_kw", "energy_minor", "fixed_minor"),
    [
        # 100 x 4.19 + 200 x 6.64 + 700 x 7.75, 2 x 50.
        (2, 717_200, 10_000),
        # 100 x 4.44 + 200 x 6.64 + 700 x 7.75, 7 x 75.
        (7, 719_700, 52_500),
        # 100 x 5.34 + 200 x 7.15 + 700 x 7.75, 50 x 110.
        (50, 738_900, 550_000),
        # 1,000 x 6.75, 100 x 130.
        (100, 675_000, 1_300_000),
        # 1,000 x 6.96, 101 x 140.
        (101, 696_000, 1_414_000),
    ],
)
def test_punjab_domestic_2023_24_in_each_band(load_kw: int, energy_minor: int, fixed_minor: int) -> None:
    """1,000 units in each of the five bands, at its upper limit."""
    lines = bill("punjab-ds-2023-24", load_kw=load_kw, kwh=1_000)
    assert sum(amount for name, amount in lines.items() if name.startswith("energy_")) == energy_minor
    assert lines["fixed"] == fixed_minor


def test_punjab_domestic_2025_26() -> None:
    """2 kW, 400 units: 300 x 5.40 + 100 x 7.75 = 2,395; fixed 100; rebate 23.95.

    Levies of 2,471.05: 321.2365, 49.421, 123.5525. Sum 2,965.26.
    """
    lines = bill("punjab-ds-2025-26", load_kw=2, kwh=400)
    assert lines == {
        "energy_1": 162_000, "energy_2": 77_500, "fixed": 10_000, "rebate": -2_395,
        "duty": 32_124, "municipal": 4_942, "infrastructure": 12_355,
    }  # fmt: skip
    assert total(lines) == 296_526


@pytest.mark.parametrize(("load_kw", "energy_minor"), [(2, 162_000), (7, 171_600), (20, 193_200), (60, 202_500)])
def test_punjab_domestic_2025_26_first_300_units_of_each_band(load_kw: int, energy_minor: int) -> None:
    """300 x 5.40, 5.72, 6.44 and 6.75: in the second band Rs 56 and in the third Rs 32 below 2023-24's 300 units."""
    assert bill("punjab-ds-2025-26", load_kw=load_kw, kwh=300)["energy_1"] == energy_minor


def test_punjab_domestic_2026_27() -> None:
    """2 kW, 300 units: 300 x 3.85 = 1,155; fixed 100; rebate 11.55; 15 % of 1,243.45 is 186.5175. Sum 1,429.97."""
    lines = bill("punjab-ds-2026-27", load_kw=2, kwh=300)
    assert lines == {"energy_1": 115_500, "fixed": 10_000, "rebate": -1_155, "duty": 18_652}
    assert total(lines) == 142_997


def test_punjab_domestic_2026_27_above_300_units() -> None:
    """5 kW, 400 units in May: 1,155 + 100 x 7.05 = 1,860; fixed 350; rebate 18.60; 15 % of 2,191.40 is 328.71."""
    lines = bill("punjab-ds-2026-27", load_kw=5, kwh=400, month=date(2026, 5, 1), days=31)
    assert lines == {"energy_1": 115_500, "energy_2": 70_500, "fixed": 35_000, "rebate": -1_860, "duty": 32_871}


def test_punjab_subsidy_pays_the_whole_bill_of_250_units() -> None:
    """2 kW: 962.50 + 100 - 9.63 = 1,052.87, duty 157.93: the state pays 1,210.80, the household nothing."""
    lines = bill("punjab-ds-2026-27-subsidy", load_kw=2, kwh=250)
    assert lines == {"energy_1": 96_250, "fixed": 10_000, "rebate": -963, "duty": 15_793, "subsidy": -121_080}
    assert total(lines) == 0


def test_punjab_subsidy_leaves_what_units_above_300_add() -> None:
    """2 kW, 350 units: 1,155 + 352.50 + 100 - 15.08 = 1,592.42, duty 238.863, in all 1,831.28.

    The state pays the bill of 300 units, 1,429.97; the household pays 401.31.
    """
    lines = bill("punjab-ds-2026-27-subsidy", load_kw=2, kwh=350)
    assert lines == {
        "energy_1": 115_500, "energy_2": 35_250, "fixed": 10_000, "rebate": -1_508, "duty": 23_886,
        "subsidy": -142_997,
    }  # fmt: skip
    assert total(lines) == 40_131


def test_punjab_non_residential_2023_24() -> None:
    """5 kW, 600 units: 100 x 6.90 + 400 x 7.10 + 100 x 7.70 = 4,300; fixed 300; rebate 43.

    Levies of 4,557: 592.41, 91.14, 227.85. Sum 5,468.40.
    """
    lines = bill("punjab-nrs-2023-24", load_kw=5, kwh=600)
    assert lines == {
        "energy_1": 69_000, "energy_2": 284_000, "energy_3": 77_000, "fixed": 30_000, "rebate": -4_300,
        "duty": 59_241, "municipal": 9_114, "infrastructure": 22_785,
    }  # fmt: skip
    assert total(lines) == 546_840


def test_punjab_non_residential_2025_26() -> None:
    """10 kW in a village, 600 units: 500 x 7.26 + 100 x 7.70 = 4,400; fixed 900; rebate 44; 15 % of 5,256 is 788.40."""
    lines = bill("punjab-nrs-2025-26", load_kw=10, kwh=600, area="rural")
    assert lines == {"energy_1": 363_000, "energy_2": 77_000, "fixed": 90_000, "rebate": -4_400, "duty": 78_840}
    assert total(lines) == 604_440


def test_punjab_non_residential_2026_27() -> None:
    """25 kW, 1,000 units: 6,210; fixed 3,000; rebate 62.10.

    Levies of 9,147.90: 1,189.227, 182.958, 457.395 (a half, up). Sum 10,977.49.
    """
    lines = bill("punjab-nrs-2026-27", load_kw=25, kwh=1_000)
    assert lines == {
        "energy_1": 621_000, "fixed": 300_000, "rebate": -6_210,
        "duty": 118_923, "municipal": 18_296, "infrastructure": 45_740,
    }  # fmt: skip
    assert total(lines) == 1_097_749


def test_punjab_time_of_day_in_june() -> None:
    """200 kVA, 10,000 units: 3,000 normal, 2,500 night, 3,000 solar, 1,500 peak; greatest demand 210 kVA.

    Energy 70,000; zones -3,750 - 4,200 + 3,000; adjustment 10,000 x 0.12 = 1,200; fixed 200 x 210 = 42,000; rent 50;
    demand 10 x 750 = 7,500; rebate 1 % of 65,050 = 650.50. Levies of 65,050 + 1,200 + 42,000 + 7,500 - 650.50 =
    115,099.50: 14,962.935, 2,301.99, 5,754.975 (halves, up). Sum 138,169.41.
    """
    zone_kwh = (3_000, 2_500, 3_000, 1_500)
    lines = bill("punjab-tod-commercial-2026-27", load_kw=200, kwh=10_000, month=JUNE, zone_kwh=zone_kwh, demand_kw=210)
    assert lines == {
        "energy_1": 7_000_000, "zone_night": -375_000, "zone_solar": -420_000, "zone_peak": 300_000, "fppca": 120_000,
        "fixed": 4_200_000, "meter_rent": 5_000, "demand": 750_000, "rebate": -65_050,
        "duty": 1_496_294, "municipal": 230_199, "infrastructure": 575_498,
    }  # fmt: skip
    assert total(lines) == 13_816_941


def test_punjab_time_of_day_in_october_with_a_meter_of_ones_own() -> None:
    """50 kVA in a village, 1,000 units, all solar: 7,000 - 1,400; 5 paise back a unit; 50 x 130 = 6,500; no rent.

    Rebate 56; 15 % of 5,600 - 50 + 6,500 - 56 = 11,994 is 1,799.10. Sum 13,793.10.
    """
    lines = bill(
        "punjab-tod-commercial-2026-27",
        load_kw=50,
        kwh=1_000,
        area="rural",
        month=OCTOBER,
        days=31,
        own_meter=True,
        zone_kwh=(0, 0, 1_000, 0),
        demand_kw=50,
    )
    assert lines == {
        "energy_1": 700_000, "zone_solar": -140_000, "fppca": -5_000, "fixed": 650_000, "rebate": -5_600,
        "duty": 179_910,
    }  # fmt: skip
    assert total(lines) == 1_379_310


@pytest.mark.parametrize(
    ("day", "zones"),
    [
        # A Wednesday of summer, a Sunday, Independence Day, a Tuesday of winter.
        (date(2026, 6, 3), {0: NIGHT, 6: NORMAL, 9: SOLAR, 17: NORMAL, 18: PEAK, 22: NIGHT}),
        (date(2026, 6, 7), {0: NIGHT, 6: NORMAL, 9: SOLAR, 17: NORMAL, 22: NIGHT}),
        (date(2026, 8, 15), {0: NIGHT, 6: NORMAL, 9: SOLAR, 17: NORMAL, 22: NIGHT}),
        (date(2026, 12, 1), {0: NIGHT, 6: PEAK, 9: SOLAR, 17: NORMAL, 22: NIGHT}),
    ],
)
def test_punjab_time_of_day_zones_of_a_day(day: date, zones: dict[int, int]) -> None:
    """Night 22 to 6, solar 9 to 17; the peak is in summer's evenings and winter's mornings, never on a holiday."""
    known = builtin_tariff("punjab-tod-commercial-2026-27").zones
    assert known is not None
    assert known.names == ("normal", "night", "solar", "peak")
    assert known.of_day(day) == tuple((hour * 60, zone) for hour, zone in zones.items())


def test_kenya_domestic_within_the_lifeline() -> None:
    """100 units: 1,000; fuel 250; levy 5 % = 50; VAT 16 % of 1,250 = 200. Sum 1,500."""
    lines = bill("kenya-domestic-2018-19", load_kw=1, kwh=100)
    assert lines == {"energy_1": 100_000, "fppca": 25_000, "rural_levy": 5_000, "vat": 20_000}
    assert total(lines) == 150_000


def test_kenya_domestic_one_unit_above_pays_the_ordinary_rate_for_all() -> None:
    """101 units: 101 x 15.80 = 1,595.80; fuel 252.50; levy 79.79; VAT 16 % of 1,848.30 = 295.728. Sum 2,223.82."""
    lines = bill("kenya-domestic-2018-19", load_kw=1, kwh=101)
    assert lines == {"energy_2": 159_580, "fppca": 25_250, "rural_levy": 7_979, "vat": 29_573}
    assert total(lines) == 222_382


def test_levies_are_collected_for_others_and_named_so() -> None:
    """Duty, taxes and VAT never are the utility's income."""
    towns = {"duty", "municipal", "infrastructure"}
    named = {tariff_id: builtin_tariff(tariff_id).levies for tariff_id in builtin_documents()}
    assert named.pop("kenya-domestic-2018-19") == {"rural_levy", "vat"}
    assert named.pop("punjab-ds-2026-27") == named.pop("punjab-ds-2026-27-subsidy") == {"duty"}
    assert set(named.values()) == {frozenset(towns)}
