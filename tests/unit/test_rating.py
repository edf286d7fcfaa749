"""The lines of a bill, at every boundary of the tariff."""

from __future__ import annotations

from dataclasses import replace

import pytest

from billing.rating import Lines, added, charge_to_date, difference, total
from billing.tariff import Slab, builtin_tariff

TARIFF = builtin_tariff("punjab-ds-2026-27")


def lines_of(*, energy_wh: int, load_w: int = 2000, fixed_days: int = 30, period_days: int = 30) -> Lines:
    """Return the lines under the shipped tariff, a full April of 2 kW unless told."""
    return charge_to_date(TARIFF, load_w=load_w, energy_wh=energy_wh, fixed_days=fixed_days, period_days=period_days)


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
    assert set(lines_of(energy_wh=0, fixed_days=0).values()) == {0}


@pytest.mark.parametrize(
    ("load_w", "fixed_minor"),
    [(1, 5), (1_000, 5_000), (2_000, 10_000), (2_001, 14_007), (7_000, 49_000), (7_001, 70_010)],
)
def test_fixed_charge_at_the_edges_of_its_bands_takes_the_whole_load_at_one_rate(load_w: int, fixed_minor: int) -> None:
    """The band's rate holds for every kW of the load, not only those above the limit."""
    assert lines_of(energy_wh=0, load_w=load_w)["fixed"] == fixed_minor


@pytest.mark.parametrize(
    ("fixed_days", "period_days", "fixed_minor"),
    [(1, 28, 357), (1, 29, 345), (1, 30, 333), (1, 31, 323), (2, 30, 667), (15, 30, 5_000), (29, 29, 10_000)],
)
def test_fixed_charge_accrues_by_day_over_the_days_of_its_month(
    fixed_days: int, period_days: int, fixed_minor: int
) -> None:
    """A day costs more in February, and the whole month always comes to the same."""
    assert lines_of(energy_wh=0, fixed_days=fixed_days, period_days=period_days)["fixed"] == fixed_minor


@pytest.mark.parametrize(("energy_wh", "energy_minor"), [(99, 38), (100, 39), (300, 116), (500, 193), (1, 0), (2, 1)])
def test_energy_of_half_a_paisa_rounds_up(energy_wh: int, energy_minor: int) -> None:
    """100 Wh cost 38.5 paise and are charged 39."""
    assert lines_of(energy_wh=energy_wh, fixed_days=0)["energy_1"] == energy_minor


def test_energy_of_half_a_paisa_in_the_second_slab_rounds_up() -> None:
    """100 Wh above the limit cost 70.5 paise and are charged 71."""
    assert lines_of(energy_wh=300_100, fixed_days=0)["energy_2"] == 71


def test_fixed_charge_of_half_a_paisa_rounds_up() -> None:
    """1 W for half a month costs 2.5 paise and is charged 3."""
    assert lines_of(energy_wh=0, load_w=1, fixed_days=15)["fixed"] == 3


def test_rebate_of_half_a_paisa_rounds_up_for_the_consumer() -> None:
    """1 % of 50 paise takes a whole paisa off; of 49 none."""
    assert lines_of(energy_wh=130, fixed_days=0)["energy_1"] == 50
    assert lines_of(energy_wh=130, fixed_days=0)["rebate"] == -1
    assert lines_of(energy_wh=127, fixed_days=0)["energy_1"] == 49
    assert lines_of(energy_wh=127, fixed_days=0)["rebate"] == 0


def test_rebate_is_taken_of_the_energy_alone() -> None:
    """Fixed charge earns none."""
    assert lines_of(energy_wh=0, load_w=7_001)["rebate"] == 0


def test_duty_of_half_a_paisa_rounds_up() -> None:
    """15 % of 10 paise is 1.5, charged 2."""
    lines = lines_of(energy_wh=26, fixed_days=0)
    assert (lines["energy_1"], lines["rebate"], lines["duty"]) == (10, 0, 2)


def test_duty_is_taken_of_the_rounded_lines_after_the_rebate() -> None:
    """95 Wh: 36.575 rounds to 37, whose 15 % is 5.55, charged 6; of the unrounded energy it would be 5."""
    lines = lines_of(energy_wh=95, fixed_days=0)
    assert (lines["energy_1"], lines["rebate"], lines["duty"]) == (37, 0, 6)
    rebated = lines_of(energy_wh=5_000, fixed_days=0)
    assert (rebated["energy_1"], rebated["rebate"], rebated["duty"]) == (1_925, -19, 286)


def test_charge_with_three_slabs_fills_them_in_order() -> None:
    """Each slab takes what lies between its limits."""
    slabs = (
        Slab(to_wh=100_000, rate_milli_per_kwh=1_000_000),
        Slab(to_wh=300_000, rate_milli_per_kwh=2_000_000),
        Slab(to_wh=None, rate_milli_per_kwh=4_000_000),
    )
    tariff = replace(TARIFF, slabs=slabs, rebate_basis_points=0, duty_basis_points=0)
    lines = charge_to_date(tariff, load_w=1000, energy_wh=350_000, fixed_days=0, period_days=31)
    assert (lines["energy_1"], lines["energy_2"], lines["energy_3"]) == (100_000, 400_000, 200_000)
    below = charge_to_date(tariff, load_w=1000, energy_wh=50_000, fixed_days=0, period_days=31)
    assert (below["energy_1"], below["energy_2"], below["energy_3"]) == (50_000, 0, 0)


def test_difference_leaves_out_lines_that_did_not_move() -> None:
    """A journal holds no empty leg; a line that is gone is taken back."""
    assert difference({"a": 5, "b": 7, "c": 0}, {"a": 5, "b": 9, "d": 4}) == {"b": -2, "d": -4}
    assert difference({"a": 5}, {"a": 5}) == {}
    assert difference({}, {}) == {}


def test_added_sums_line_by_line() -> None:
    """Lines on one side only stay as they are."""
    assert added({"a": 1, "b": 2}, {"b": -5, "c": 4}) == {"a": 1, "b": -3, "c": 4}
