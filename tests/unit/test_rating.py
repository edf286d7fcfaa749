"""The lines of a bill, each kind worked out by hand."""

from __future__ import annotations

from datetime import date

import pytest

from billing.rating import Lines, Quantities, added, charge_to_date, difference, total
from billing.tariff import Tariff
from billing.tariff_document import builtin_tariff, parse_tariff

SHIPPED = builtin_tariff("punjab-ds-2026-27")
APRIL = date(2026, 4, 1)
# Rs 1, 2 and 4 a kWh: to 100, to 300, above.
THREE_SLABS = """
[[band]]
energy = [
  { to_kwh = 100, rate_milli_per_kwh = 100_000 },
  { to_kwh = 300, rate_milli_per_kwh = 200_000 },
  { rate_milli_per_kwh = 400_000 },
]
"""
# Rs 5 a kWh, whatever the quantity.
FLAT = """
[[band]]
energy = [{ rate_milli_per_kwh = 500_000 }]
"""
DAY_AND_NIGHT = """
[zones]
[[zones.zone]]
name = "peak"
surcharge_milli_per_kwh = 100_000
[[zones.zone]]
name = "night"
rebate_milli_per_kwh = 50_000
[[zones.hours]]
zone = "peak"
from = "06:00"
to = "22:00"
[[zones.hours]]
zone = "night"
from = "22:00"
to = "06:00"
"""


def tariff(tables: str, top: str = "") -> Tariff:
    """Read a document of some tables."""
    return parse_tariff(f'id = "t"\neffective_from = 2026-04-01\n{top}\n{tables}')


def lines_of(
    held: Tariff = SHIPPED,
    *,
    energy_wh: int,
    before_wh: int = 0,
    zone_wh: tuple[int, ...] = (),
    days: int = 30,
    period_days: int = 30,
    slab_days: int | None = None,
    demand_w: int = 0,
    load_w: int = 2000,
    area: str = "urban",
    meter_rent: bool = True,
    day: date = APRIL,
) -> Lines:
    """Return the lines of a full April of 2 kW unless told."""
    return charge_to_date(
        held.rates(load_w=load_w, area=area, meter_rent=meter_rent, day=day),
        Quantities(
            before_wh=before_wh,
            energy_wh=energy_wh,
            zone_wh=zone_wh,
            days=days,
            period_days=period_days,
            slab_days=period_days if slab_days is None else slab_days,
            demand_w=demand_w,
        ),
    )


def test_charge_of_300_kwh_lies_wholly_in_the_first_slab() -> None:
    """The limit itself is still cheap: 300 x 3.85, 2 x 50, 1 % off the energy, 15 % of the rest."""
    lines = lines_of(energy_wh=300_000)
    assert lines == {"energy_1": 115_500, "energy_2": 0, "fixed": 10_000, "rebate": -1_155, "duty": 18_652}
    assert total(lines) == 142_997


def test_charge_of_one_wh_more_opens_the_second_slab() -> None:
    """The first Wh above costs 0.705 paise, a whole one once rounded."""
    lines = lines_of(energy_wh=300_001)
    assert (lines["energy_1"], lines["energy_2"]) == (115_500, 1)
    assert lines_of(energy_wh=301_000)["energy_2"] == 705
    assert lines_of(energy_wh=299_999)["energy_1"] == 115_500
    assert lines_of(energy_wh=299_997)["energy_1"] == 115_499


def test_charge_of_nothing_on_no_day_is_zero() -> None:
    """Before anything happened nothing is owed, line by line."""
    assert set(lines_of(energy_wh=0, days=0).values()) == {0}


@pytest.mark.parametrize(
    ("load_w", "fixed_minor"),
    [(1, 5), (1_000, 5_000), (2_000, 10_000), (2_001, 14_007), (7_000, 49_000), (7_001, 70_010)],
)
def test_fixed_charge_at_the_edges_of_its_bands_takes_the_whole_load_at_one_rate(load_w: int, fixed_minor: int) -> None:
    """The band's rate holds for every kW of the load, not only those above the limit."""
    assert lines_of(energy_wh=0, load_w=load_w)["fixed"] == fixed_minor


@pytest.mark.parametrize(
    ("days", "period_days", "fixed_minor"),
    [(1, 28, 357), (1, 29, 345), (1, 30, 333), (1, 31, 323), (2, 30, 667), (15, 30, 5_000), (29, 29, 10_000)],
)
def test_fixed_charge_accrues_by_day_over_the_days_of_its_month(days: int, period_days: int, fixed_minor: int) -> None:
    """A day costs more in February, and the whole month always comes to the same."""
    assert lines_of(energy_wh=0, days=days, period_days=period_days)["fixed"] == fixed_minor


@pytest.mark.parametrize(
    ("field", "fixed_minor"), [("per_kw_month", 10_500), ("per_kva_month", 10_500), ("per_month", 3_000)]
)
def test_fixed_charge_is_per_kw_or_kva_of_load_or_per_connection(field: str, fixed_minor: int) -> None:
    """Rs 30 a month: times 3.5 kW (or kVA) Rs 105, or as it is."""
    held = tariff(FLAT + f"fixed_milli_{field} = 3_000_000")
    assert lines_of(held, energy_wh=0, load_w=3_500)["fixed"] == fixed_minor


@pytest.mark.parametrize(("energy_wh", "energy_minor"), [(99, 38), (100, 39), (300, 116), (500, 193), (1, 0), (2, 1)])
def test_energy_of_half_a_paisa_rounds_up(energy_wh: int, energy_minor: int) -> None:
    """100 Wh cost 38.5 paise and are charged 39."""
    assert lines_of(energy_wh=energy_wh, days=0)["energy_1"] == energy_minor


def test_energy_of_half_a_paisa_in_the_second_slab_rounds_up() -> None:
    """100 Wh above the limit cost 70.5 paise and are charged 71."""
    assert lines_of(energy_wh=300_100, days=0)["energy_2"] == 71


def test_fixed_charge_of_half_a_paisa_rounds_up() -> None:
    """1 W for half a month costs 2.5 paise and is charged 3."""
    assert lines_of(energy_wh=0, load_w=1, days=15)["fixed"] == 3


def test_rebate_of_half_a_paisa_rounds_up_for_the_consumer() -> None:
    """1 % of 50 paise takes a whole paisa off; of 49 none."""
    assert lines_of(energy_wh=130, days=0)["energy_1"] == 50
    assert lines_of(energy_wh=130, days=0)["rebate"] == -1
    assert lines_of(energy_wh=127, days=0)["energy_1"] == 49
    assert lines_of(energy_wh=127, days=0)["rebate"] == 0


def test_rebate_is_taken_of_the_energy_alone() -> None:
    """Fixed charge earns none."""
    assert lines_of(energy_wh=0, load_w=7_001)["rebate"] == 0


def test_duty_is_taken_of_the_rounded_lines_after_the_rebate() -> None:
    """95 Wh: 36.575 rounds to 37, whose 15 % is 5.55, charged 6; of the unrounded energy it would be 5."""
    lines = lines_of(energy_wh=95, days=0)
    assert (lines["energy_1"], lines["rebate"], lines["duty"]) == (37, 0, 6)
    rebated = lines_of(energy_wh=5_000, days=0)
    assert (rebated["energy_1"], rebated["rebate"], rebated["duty"]) == (1_925, -19, 286)


def test_telescopic_slabs_take_each_what_lies_between_their_limits() -> None:
    """350 kWh: 100 at Rs 1, 200 at 2, 50 at 4; 50 kWh stay in the first."""
    held = tariff(THREE_SLABS)
    assert lines_of(held, energy_wh=350_000) == {"energy_1": 10_000, "energy_2": 40_000, "energy_3": 20_000}
    assert lines_of(held, energy_wh=50_000) == {"energy_1": 5_000, "energy_2": 0, "energy_3": 0}


def test_telescopic_slabs_of_a_later_part_go_on_where_the_month_stood() -> None:
    """After 90 kWh, 250 more take the last 10 of the first slab, all 200 of the second and 40 of the third."""
    lines = lines_of(tariff(THREE_SLABS), before_wh=90_000, energy_wh=250_000)
    assert lines == {"energy_1": 1_000, "energy_2": 40_000, "energy_3": 16_000}


@pytest.mark.parametrize(
    ("energy_wh", "line", "amount"),
    [
        (100_000, "energy_1", 10_000),
        (100_001, "energy_2", 20_000),
        (300_000, "energy_2", 60_000),
        (350_000, "energy_3", 140_000),
    ],
)
def test_whole_quantity_slabs_charge_all_energy_at_the_rate_reached(energy_wh: int, line: str, amount: int) -> None:
    """100 kWh cost Rs 100; one Wh more puts all of them into the second slab, Rs 200.00 for 100.001 kWh."""
    held = tariff(THREE_SLABS + '[slabs]\nkind = "whole_quantity"')
    lines = lines_of(held, energy_wh=energy_wh)
    assert lines == {"energy_1": 0, "energy_2": 0, "energy_3": 0, line: amount}


def test_whole_quantity_slabs_of_a_later_part_take_back_what_the_slab_before_had_charged() -> None:
    """80 kWh were charged at Rs 1; with 40 more all 120 cost Rs 2: 240 less 80. Inside one slab the rest just adds."""
    held = tariff(THREE_SLABS + '[slabs]\nkind = "whole_quantity"')
    moved = lines_of(held, before_wh=80_000, energy_wh=40_000)
    assert moved == {"energy_1": -8_000, "energy_2": 24_000, "energy_3": 0}
    inside = lines_of(held, before_wh=120_000, energy_wh=30_000)
    assert inside == {"energy_1": 0, "energy_2": 6_000, "energy_3": 0}


@pytest.mark.parametrize(
    ("slab_days", "period_days", "limit_wh"), [(10, 30, 33_333), (30, 30, 100_000), (1, 31, 3_225)]
)
def test_slab_limits_by_days_are_whole_wh_rounded_down(slab_days: int, period_days: int, limit_wh: int) -> None:
    """A third of 100 kWh is 33,333 Wh: 2 kWh more cost Rs 2 each, and a whole-quantity slab ends there."""
    telescopic = lines_of(tariff(THREE_SLABS), energy_wh=limit_wh + 2_000, slab_days=slab_days, period_days=period_days)
    assert telescopic["energy_2"] == 400
    whole = tariff(THREE_SLABS + '[slabs]\nkind = "whole_quantity"')
    at_limit = lines_of(whole, energy_wh=limit_wh, slab_days=slab_days, period_days=period_days)
    above = lines_of(whole, energy_wh=limit_wh + 1, slab_days=slab_days, period_days=period_days)
    assert at_limit["energy_1"] > 0 == at_limit["energy_2"]
    assert above["energy_1"] == 0 < above["energy_2"]


def test_meter_rent_is_charged_only_for_the_utilitys_meter() -> None:
    """Rs 15 a month, half of it for half the days; a consumer's own meter has no line at all."""
    held = tariff(FLAT + "[meter_rent]\nmilli_per_month = 1_500_000")
    assert lines_of(held, energy_wh=0, days=15)["meter_rent"] == 750
    assert "meter_rent" not in lines_of(held, energy_wh=0, meter_rent=False)


@pytest.mark.parametrize(("energy_wh", "minimum_minor"), [(0, 15_000), (10_000, 10_000), (30_000, 0), (40_000, 0)])
def test_minimum_charge_tops_up_the_lines_it_names(energy_wh: int, minimum_minor: int) -> None:
    """Rs 200 at the least, of which Rs 50 are fixed: 0, 10, 30 and 40 kWh at Rs 5 lack 150, 100, 0 and 0."""
    held = tariff(FLAT + "fixed_milli_per_month = 5_000_000\nminimum_milli_per_kw_month = 10_000_000")
    assert lines_of(held, energy_wh=energy_wh)["minimum"] == minimum_minor


def test_minimum_charge_of_half_a_month_names_only_the_lines_it_is_told() -> None:
    """Rs 200 by 15 of 30 days are 100; with only energy named, the fixed Rs 25 do not count."""
    top = 'minimum_of = ["energy"]'
    held = tariff(FLAT + "fixed_milli_per_month = 5_000_000\nminimum_milli_per_month = 20_000_000", top)
    assert lines_of(held, energy_wh=10_000, days=15) == {
        "energy_1": 5_000,
        "fixed": 2_500,
        "minimum": 5_000,
    }


def test_minimum_that_a_tariff_does_not_have_tops_up_no_credit() -> None:
    """An adjustment of -8 Rs per kWh outweighs the energy; no hidden line brings it to zero for a share."""
    held = tariff(
        FLAT
        + "[[fppca]]\ncredit_milli_per_kwh = 800_000\n"
        + '[[share]]\nname = "duty"\nkind = "levy"\nof = ["minimum"]\nbasis_points = 10_000'
    )
    assert lines_of(held, energy_wh=1_000) == {"energy_1": 500, "fppca": -800, "duty": 0}


@pytest.mark.parametrize(
    ("demand_w", "days", "demand_minor"), [(2_000, 30, 0), (2_001, 30, 10), (3_500, 30, 15_000), (3_500, 10, 5_000)]
)
def test_demand_above_the_sanctioned_load_is_charged_by_kw_and_day(demand_w: int, days: int, demand_minor: int) -> None:
    """Rs 100 per kW and month above 2 kW: 1.5 kW cost 150, a third of it for ten days."""
    held = tariff(FLAT + "demand_milli_per_kw_month = 10_000_000")
    assert lines_of(held, energy_wh=0, demand_w=demand_w, days=days)["demand"] == demand_minor


@pytest.mark.parametrize(
    ("field", "energy_wh", "fppca_minor"),
    [
        ("rate_milli_per_kwh", 10_000, 120),
        ("credit_milli_per_kwh", 10_000, -120),
        ("credit_milli_per_kwh", 125, -2),
        ("credit_milli_per_kwh", 124, -1),
    ],
)
def test_fppca_charges_or_credits_every_kwh_and_rounds_away_from_zero(
    field: str, energy_wh: int, fppca_minor: int
) -> None:
    """12 paise a kWh: 10 kWh make 120; of 125 Wh a paisa and a half is credited as 2."""
    assert lines_of(tariff(FLAT + f"[[fppca]]\n{field} = 12_000"), energy_wh=energy_wh)["fppca"] == fppca_minor


def test_fppca_holds_between_its_days_only() -> None:
    """Both days count; outside them the bill has no such line."""
    held = tariff(FLAT + "[[fppca]]\nrate_milli_per_kwh = 12_000\nsince = 2026-04-10\nuntil = 2026-05-09")
    days = [date(2026, 4, 9), date(2026, 4, 10), date(2026, 5, 9), date(2026, 5, 10)]
    assert ["fppca" in lines_of(held, energy_wh=0, day=day) for day in days] == [False, True, True, False]


def test_zones_add_their_surcharge_or_rebate_to_the_energy() -> None:
    """10 kWh at Rs 5; 4 of them at the peak cost Re 1 more, 6 at night 50 paise less."""
    lines = lines_of(tariff(FLAT + DAY_AND_NIGHT), energy_wh=10_000, zone_wh=(4_000, 6_000))
    assert lines == {"energy_1": 5_000, "zone_peak": 400, "zone_night": -300}


def test_share_is_taken_of_named_lines_in_its_areas() -> None:
    """5 % of energy and zones, 52.50 + 1.00; the country pays 2 % of the energy."""
    held = tariff(
        FLAT
        + DAY_AND_NIGHT
        + '[[share]]\nname = "cess"\nkind = "levy"\nof = ["energy", "zone"]\nbasis_points = 500\nareas = ["urban"]\n'
        + '[[share]]\nname = "cess"\nkind = "levy"\nof = ["energy"]\nbasis_points = 200\nareas = ["rural"]\n'
    )
    zone_wh = (4_000, 6_000)
    assert lines_of(held, energy_wh=10_000, zone_wh=zone_wh)["cess"] == 255
    assert lines_of(held, energy_wh=10_000, zone_wh=zone_wh, area="rural")["cess"] == 100
    assert "cess" not in lines_of(held, energy_wh=10_000, zone_wh=zone_wh, area="hill")


def test_share_of_lines_that_sum_below_zero_is_nothing() -> None:
    """A night rebate of Rs 3 without energy charge earns no negative duty, and a rebate never becomes a charge."""
    held = tariff(
        "[[band]]\nenergy = [{ rate_milli_per_kwh = 0 }]\n"
        + DAY_AND_NIGHT
        + '[[share]]\nname = "duty"\nkind = "levy"\nof = ["zone"]\nbasis_points = 1_000\n'
        + '[[share]]\nname = "bonus"\nkind = "rebate"\nof = ["zone"]\nbasis_points = 1_000\n'
    )
    lines = lines_of(held, energy_wh=6_000, zone_wh=(0, 6_000))
    assert lines == {"energy_1": 0, "zone_peak": 0, "zone_night": -300, "duty": 0, "bonus": 0}


def test_share_of_a_share_counts_a_rebate_as_less() -> None:
    """Rs 50 less 10 % are 45, whose surcharge of 20 % is 9; the levy of 10 % is on 50 - 5 + 9 = 54."""
    held = tariff(
        FLAT
        + '[[share]]\nname = "rebate"\nkind = "rebate"\nof = ["energy"]\nbasis_points = 1_000\n'
        + '[[share]]\nname = "late"\nkind = "charge"\nof = ["energy", "rebate"]\nbasis_points = 2_000\n'
        + '[[share]]\nname = "duty"\nkind = "levy"\nof = ["energy", "rebate", "late"]\nbasis_points = 1_000\n'
    )
    assert lines_of(held, energy_wh=10_000) == {"energy_1": 5_000, "rebate": -500, "late": 900, "duty": 540}


def subsidised(beyond: str) -> Tariff:
    """Return Rs 5 a kWh, Rs 50 fixed and 10 % duty, of which the state pays 100 kWh."""
    return tariff(
        FLAT
        + "fixed_milli_per_month = 5_000_000\n"
        + '[[share]]\nname = "duty"\nkind = "levy"\nof = ["energy", "fixed"]\nbasis_points = 1_000\n'
        + f'[subsidy]\nkwh_per_month = 100\ncovers = ["energy", "fixed", "duty"]\nbeyond = "{beyond}"\n'
    )


@pytest.mark.parametrize(
    ("beyond", "energy_wh", "subsidy_minor"),
    [
        # 80 kWh: 400 + 50 and 45 duty. 100 kWh: 500 + 50 and 55. Above, the same or nothing.
        ("excess", 80_000, -49_500),
        ("excess", 100_000, -60_500),
        ("excess", 100_001, -60_500),
        ("excess", 300_000, -60_500),
        ("all", 100_000, -60_500),
        ("all", 100_001, 0),
    ],
)
def test_subsidy_pays_the_covered_lines_of_the_first_units(beyond: str, energy_wh: int, subsidy_minor: int) -> None:
    """The state pays a bill of 100 kWh; beyond that the consumer pays the excess, or all."""
    assert lines_of(subsidised(beyond), energy_wh=energy_wh)["subsidy"] == subsidy_minor


def test_subsidy_of_a_later_part_pays_only_what_the_month_had_left() -> None:
    """90 of the 100 kWh are taken: 10 more are paid for, Rs 50, with Rs 50 fixed and Rs 10 duty."""
    lines = lines_of(subsidised("excess"), before_wh=90_000, energy_wh=30_000)
    assert lines["subsidy"] == -11_000
    taken = lines_of(subsidised("excess"), before_wh=120_000, energy_wh=30_000)
    assert taken["subsidy"] == -5_500


def test_subsidy_of_a_part_that_shares_the_month_has_its_units_by_days() -> None:
    """12 of 30 days have 40 kWh: Rs 200 of energy, 20 fixed, 22 duty."""
    held = subsidised("excess")
    assert lines_of(held, energy_wh=90_000, days=12, slab_days=12)["subsidy"] == -24_200


def test_subsidy_shares_the_zones_as_the_energy_and_never_takes() -> None:
    """1 of 3 kWh is paid for: a third of each zone, 333 Wh at Re 1 and 666 at -0.50 make 33 - 33 = 0, and no less."""
    table = '[subsidy]\nkwh_per_month = 1\ncovers = ["{covers}"]\nbeyond = "excess"\n'
    zones = tariff(FLAT + DAY_AND_NIGHT + table.format(covers="zone"))
    assert lines_of(zones, energy_wh=3_000, zone_wh=(1_000, 2_000))["subsidy"] == 0
    assert lines_of(zones, energy_wh=3_000, zone_wh=(3_000, 0))["subsidy"] == -100
    assert lines_of(zones, energy_wh=3_000, zone_wh=(0, 3_000))["subsidy"] == 0


def test_lines_that_a_tariff_does_not_have_are_not_on_its_bill() -> None:
    """A flat rate without anything else is one line."""
    assert lines_of(tariff(FLAT), energy_wh=1_000, demand_w=9_000) == {"energy_1": 500}


def test_difference_leaves_out_lines_that_did_not_move() -> None:
    """A journal holds no empty leg; a line that is gone is taken back."""
    assert difference({"a": 5, "b": 7, "c": 0}, {"a": 5, "b": 9, "d": 4}) == {"b": -2, "d": -4}
    assert difference({"a": 5}, {"a": 5}) == {}
    assert difference({}, {}) == {}


def test_added_sums_line_by_line() -> None:
    """Lines on one side only stay as they are."""
    assert added({"a": 1, "b": 2}, {"b": -5, "c": 4}) == {"a": 1, "b": -3, "c": 4}
