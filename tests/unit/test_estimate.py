"""What a credit would buy: the largest energy whose price it covers."""

from __future__ import annotations

from datetime import date

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from billing.estimate import energy_bought_wh, purchase_of
from billing.rating import total
from billing.tariff_document import builtin_tariff, parse_tariff
from billing.terms import ONE_DAY, BillPart, one_assignment, part_lines

APRIL = date(2026, 4, 1)
PART = one_assignment(builtin_tariff("punjab-ds-2026-27"), load_w=3_000, opened_on=APRIL).part_at(APRIL)


def price_minor(energy_wh: int, *, before_wh: int = 0, part: BillPart = PART) -> int:
    """Return what energy alone costs in a part, with rebate and duty."""
    no_day = part.first - ONE_DAY
    zone_wh = (0,) * part.zone_count
    return total(part_lines(part, before_wh=before_wh, energy_wh=energy_wh, zone_wh=zone_wh, through_day=no_day))


@pytest.mark.parametrize(
    ("used_wh", "credit_minor", "energy_wh"),
    [
        # 100 kWh of the first slab: 385.00 less 3.85 rebate, 15 % duty 57.17.
        (0, 38_500 - 385 + 5_717, 100_000),
        # 10 kWh above 300 kWh: 70.50 less 0.71 rebate of the sum, duty in step.
        (300_000, price_minor(310_000) - price_minor(300_000), 310_000 - 300_000),
        (0, 0, 0),
        (0, -500, 0),
    ],
)
def test_credit_buys_energy_at_the_slabs_it_falls_into(used_wh: int, credit_minor: int, energy_wh: int) -> None:
    """The estimate follows slabs, rebate and duty; a credit of nothing buys nothing."""
    bought_wh = energy_bought_wh(PART, used_wh=used_wh, credit_minor=credit_minor)
    assert energy_wh <= bought_wh < energy_wh + 3


def test_credit_in_a_later_part_buys_what_the_month_has_left_of_the_cheap_slab() -> None:
    """After 290 kWh in earlier parts only 10 more are cheap: 10 x 3.85 + 10 x 7.05, less 1 %, plus 15 %."""
    credit_minor = 3_850 + 7_050 - 109 + 1_619
    bought_wh = energy_bought_wh(PART, before_wh=290_000, used_wh=0, credit_minor=credit_minor)
    assert 20_000 <= bought_wh < 20_003


def test_credit_with_zones_buys_energy_without_their_surcharge() -> None:
    """Nobody knows when it will be used: Rs 50 buy 10 kWh at Rs 5."""
    document = """
id = "tod"
effective_from = 2026-04-01
[[band]]
energy = [{ rate_milli_per_kwh = 500_000 }]
[zones]
[[zones.zone]]
name = "peak"
surcharge_milli_per_kwh = 100_000
[[zones.hours]]
zone = "peak"
from = "00:00"
to = "24:00"
"""
    part = one_assignment(parse_tariff(document), load_w=1_000, opened_on=APRIL).part_at(APRIL)
    assert energy_bought_wh(part, used_wh=0, credit_minor=5_000) == 10_000


@settings(deadline=None)
@given(used_wh=st.integers(0, 2_000_000), credit_minor=st.integers(1, 5_000_000), before_wh=st.integers(0, 400_000))
def test_credit_covers_what_it_buys_and_not_one_wh_more(used_wh: int, credit_minor: int, before_wh: int) -> None:
    """The price of the energy fits the credit; one Wh more does not."""
    bought_wh = energy_bought_wh(PART, before_wh=before_wh, used_wh=used_wh, credit_minor=credit_minor)
    base_minor = price_minor(used_wh, before_wh=before_wh)
    assert price_minor(used_wh + bought_wh, before_wh=before_wh) - base_minor <= credit_minor
    assert price_minor(used_wh + bought_wh + 1, before_wh=before_wh) - base_minor > credit_minor


def test_purchase_across_a_step_names_each_step_with_its_units_and_rate() -> None:
    """10 of 30 kWh are cheap: 10 x 3.85 and 20 x 7.05, less 1 %, plus 15 %."""
    buys = purchase_of(PART, before_wh=200_000, used_wh=90_000, energy_wh=30_000)
    assert [(step.line, step.from_wh, step.to_wh, step.energy_wh, step.amount_minor) for step in buys.steps] == [
        ("energy_1", 0, 300_000, 10_000, 3_850),
        ("energy_2", 300_000, None, 20_000, 14_100),
    ]
    assert [step.rate_milli_per_kwh for step in buys.steps] == [385_000, 705_000]
    assert buys.cost_minor == 3_850 + 14_100 + sum(buys.lines.values())
    assert set(buys.lines) == {"rebate", "duty"}


def test_purchase_at_the_rate_of_all_units_is_one_step_that_prices_the_earlier_ones_again() -> None:
    """From 90 kWh at 1.00 to 110 kWh at 2.00: the 20 bought cost 220 less the 90 charged."""
    document = """
id = "whole"
effective_from = 2026-04-01
[slabs]
kind = "whole_quantity"
[[band]]
energy = [{ to_kwh = 100, rate_milli_per_kwh = 100_000 }, { rate_milli_per_kwh = 200_000 }]
"""
    part = one_assignment(parse_tariff(document), load_w=1_000, opened_on=APRIL).part_at(APRIL)
    (step,) = purchase_of(part, used_wh=90_000, energy_wh=20_000).steps
    assert (step.line, step.energy_wh, step.amount_minor) == ("energy_2", 20_000, 22_000 - 9_000)
    assert purchase_of(part, used_wh=90_000, energy_wh=0).steps == ()
