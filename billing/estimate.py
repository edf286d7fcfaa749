"""What a credit would buy: an estimate to print, never a promise and never a debit.

Stage: beside receipts and account views. Takes an account's bill part and where it stands in it; returns energy.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from billing.rating import Lines, difference, slab_limit_wh, total
from billing.terms import ONE_DAY, BillPart, part_lines

# No credit that a vend may bring buys more than a million kWh.
ENERGY_WH_MAX = 1_000_000_000
# Above most recharges; a larger one takes a step or two more.
_FIRST_GUESS_WH = 100_000
_GUESS_GROWS = 16
_ENERGY_LINE = "energy_"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Energy that is charged at one rate.

    Units: `from_wh` and `to_wh` (None: open) are the month's energy between which the rate holds.
    """

    line: str
    from_wh: int
    to_wh: int | None
    energy_wh: int
    rate_milli_per_kwh: int
    amount_minor: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Purchase:
    """Energy with its price, step by step.

    Invariants: the steps add up to `energy_wh`; `lines` are the others that follow from energy, such as adjustment,
    rebate, duty and subsidy, without those that are zero.
    """

    energy_wh: int
    steps: tuple[Step, ...]
    lines: Lines

    @property
    def cost_minor(self) -> int:
        """What the energy costs in all."""
        return sum(step.amount_minor for step in self.steps) + total(self.lines)


def energy_bought_wh(part: BillPart, *, before_wh: int = 0, used_wh: int, credit_minor: int) -> int:
    """Return the energy that a credit would pay for if it were used at once, at this month's slabs.

    Units: Wh; `used_wh` is the bill part's energy so far, `before_wh` what earlier parts took of the slabs. Shares
    such as rebate and duty are counted, further fixed charges and time-of-day surcharges are not.
    Rounds: down to whole Wh.
    """
    if credit_minor <= 0:
        return 0

    spent_minor = _price_minor(part, before_wh, used_wh)
    limit_minor = spent_minor + credit_minor
    # The price is a line with some bends: where the chord meets the limit is near. What is paid for lies at or above
    # low, below high; each step halves at the worst, and mostly some six do (30 by halving alone).
    low_wh, low_minor = 0, spent_minor
    high_wh, high_minor = _too_much_wh(part, before_wh, used_wh, limit_minor)
    halve, past_minor = False, 1
    while high_wh - low_wh > 1:
        middle_wh = (low_wh + high_wh) // 2
        if not halve:
            aim_minor = limit_minor + past_minor - low_minor
            chord_wh = low_wh + aim_minor * (high_wh - low_wh) // max(1, high_minor - low_minor)
            middle_wh = min(max(chord_wh, low_wh + 1), high_wh - 1)
        width_wh = high_wh - low_wh
        price_minor = _price_minor(part, before_wh, used_wh + middle_wh)
        if price_minor <= limit_minor:
            # Then aim a little past the limit, so that the other end comes near, too.
            low_wh, low_minor, past_minor = middle_wh, price_minor, 2
        else:
            high_wh, high_minor, past_minor = middle_wh, price_minor, 0
        halve = high_wh - low_wh > width_wh // 2
    return low_wh


def _too_much_wh(part: BillPart, before_wh: int, used_wh: int, limit_minor: int) -> tuple[int, int]:
    """Return more energy than a limit pays for, not far above it, and its price; more than can be where none is."""
    energy_wh = _FIRST_GUESS_WH
    while energy_wh < ENERGY_WH_MAX:
        price_minor = _price_minor(part, before_wh, used_wh + energy_wh)
        if price_minor > limit_minor:
            return energy_wh, price_minor
        energy_wh *= _GUESS_GROWS
    return ENERGY_WH_MAX + 1, limit_minor + 1


def purchase_of(part: BillPart, *, before_wh: int = 0, used_wh: int, energy_wh: int) -> Purchase:
    """Return what energy costs after what the bill part has used already, by steps and lines.

    Units: as `energy_bought_wh`. Where the step reached prices all energy of the month, the one step's amount has the
    new price of the energy before it.
    """
    if energy_wh <= 0:
        return Purchase(energy_wh=0, steps=(), lines={})
    after = _lines_of_energy(part, before_wh, used_wh + energy_wh)
    lines = difference(after, _lines_of_energy(part, before_wh, used_wh))
    from_wh = before_wh + used_wh
    steps = tuple(_steps(part, lines, from_wh, from_wh + energy_wh))
    others = {name: amount for name, amount in lines.items() if not name.startswith(_ENERGY_LINE)}
    return Purchase(energy_wh=energy_wh, steps=steps, lines=others)


def energy_price_minor(part: BillPart, *, before_wh: int = 0, used_wh: int, energy_wh: int) -> int:
    """Return the credit that some energy would take if it were used at once: what `energy_bought_wh` is the inverse of.

    Units: minor units; Wh as there. 0 or less where the subsidy pays for it.
    """
    return _price_minor(part, before_wh, used_wh + energy_wh) - _price_minor(part, before_wh, used_wh)


def _lines_of_energy(part: BillPart, before_wh: int, energy_wh: int) -> Lines:
    # The fixed charge of the days so far is left out on both sides of every difference.
    no_day, zones = part.first - ONE_DAY, (0,) * part.zone_count
    return part_lines(part, before_wh=before_wh, energy_wh=energy_wh, zone_wh=zones, through_day=no_day)


def _steps(part: BillPart, lines: Lines, from_wh: int, to_wh: int) -> Iterator[Step]:
    """Yield the steps that the month's energy passes on its way."""
    below_wh = 0
    for number, slab in enumerate(part.rates.slabs, start=1):
        limit_wh = slab_limit_wh(slab, slab_days=part.slab_days, period_days=part.period_days)
        name = f"{_ENERGY_LINE}{number}"
        reached = limit_wh is None or to_wh <= limit_wh
        if part.rates.whole_quantity:
            energy_wh = to_wh - from_wh if reached else 0
            amount_minor = sum(amount for line, amount in lines.items() if line.startswith(_ENERGY_LINE))
        else:
            energy_wh = (to_wh if limit_wh is None else min(to_wh, limit_wh)) - max(from_wh, below_wh)
            amount_minor = lines.get(name, 0)
        if energy_wh > 0:
            yield Step(
                line=name,
                from_wh=below_wh,
                to_wh=limit_wh,
                energy_wh=energy_wh,
                rate_milli_per_kwh=slab.rate_milli_per_kwh,
                amount_minor=amount_minor,
            )
        if reached:
            return
        below_wh = below_wh if limit_wh is None else limit_wh


def _price_minor(part: BillPart, before_wh: int, energy_wh: int) -> int:
    return total(_lines_of_energy(part, before_wh, energy_wh))
