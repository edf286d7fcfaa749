"""What a credit would buy: the largest energy whose price it covers."""

from __future__ import annotations

from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.estimate import energy_bought_wh
from billing.rating import charge_to_date, total
from billing.running import Terms
from billing.tariff import builtin_tariff

TERMS = Terms(tariff=builtin_tariff("punjab-ds-2026-27"), load_w=3_000, opened_on=date(2026, 4, 1))


def price_minor(energy_wh: int) -> int:
    """Return what energy alone costs in a month, with rebate and duty."""
    return total(charge_to_date(TERMS.tariff, load_w=3_000, energy_wh=energy_wh, fixed_days=0, period_days=30))


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
    bought_wh = energy_bought_wh(TERMS, used_wh=used_wh, credit_minor=credit_minor)
    assert energy_wh <= bought_wh < energy_wh + 3


@given(used_wh=st.integers(0, 2_000_000), credit_minor=st.integers(1, 5_000_000))
def test_credit_covers_what_it_buys_and_not_one_wh_more(used_wh: int, credit_minor: int) -> None:
    """The price of the energy fits the credit; one Wh more does not."""
    bought_wh = energy_bought_wh(TERMS, used_wh=used_wh, credit_minor=credit_minor)
    base_minor = price_minor(used_wh)
    assert price_minor(used_wh + bought_wh) - base_minor <= credit_minor
    assert price_minor(used_wh + bought_wh + 1) - base_minor > credit_minor
