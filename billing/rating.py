"""Rating: what a bill for the period so far says, line by line.

Stage: the middle of every debit. Takes a tariff, a load, the energy and the days of one period so far; returns the
lines to date. The plain, exact reference: integers only, each line rounded once.
"""

from __future__ import annotations

from billing.money import round_half_up
from billing.tariff import BASIS_POINTS, Tariff

# Lines by name, in minor units: energy_1, energy_2, ..., fixed, rebate (negative), duty.
Lines = dict[str, int]

MILLI = 1000
WH_PER_KWH = 1000
W_PER_KW = 1000


def charge_to_date(tariff: Tariff, *, load_w: int, energy_wh: int, fixed_days: int, period_days: int) -> Lines:
    """Return the lines of a period's bill so far.

    Units: minor units of the tariff's currency.
    Rounds: each energy slab and the fixed charge once, half up; rebate and duty half up of the rounded lines they
    are shares of.
    Source: tariff document; rebate on energy only, Supply Code 2024 item 17 (R-17r).
    """
    lines: Lines = {}
    energy_minor = 0
    below_wh = 0
    for number, slab in enumerate(tariff.slabs, start=1):
        upper_wh = energy_wh if slab.to_wh is None else min(energy_wh, slab.to_wh)
        slab_wh = max(0, upper_wh - below_wh)
        amount_minor = round_half_up(slab_wh * slab.rate_milli_per_kwh, WH_PER_KWH * MILLI)
        lines[f"energy_{number}"] = amount_minor
        energy_minor += amount_minor
        below_wh = slab.to_wh if slab.to_wh is not None else below_wh
    fixed_minor = round_half_up(tariff.fixed_rate_milli(load_w) * load_w * fixed_days, MILLI * W_PER_KW * period_days)
    rebate_minor = round_half_up(energy_minor * tariff.rebate_basis_points, BASIS_POINTS)
    duty_base_minor = energy_minor + fixed_minor - rebate_minor
    lines["fixed"] = fixed_minor
    lines["rebate"] = -rebate_minor
    lines["duty"] = round_half_up(duty_base_minor * tariff.duty_basis_points, BASIS_POINTS)
    return lines


def total(lines: Lines) -> int:
    """Return the sum of the lines in minor units."""
    return sum(lines.values())


def difference(to_date: Lines, charged: Lines) -> Lines:
    """Return the lines still to be charged, leaving out those that are zero."""
    names = [*to_date, *(name for name in charged if name not in to_date)]
    deltas = {name: to_date.get(name, 0) - charged.get(name, 0) for name in names}
    return {name: amount for name, amount in deltas.items() if amount}


def added(left: Lines, right: Lines) -> Lines:
    """Return the sum of two sets of lines, name by name."""
    return {name: left.get(name, 0) + right.get(name, 0) for name in {**left, **right}}
