"""Rating: what a bill for a bill part so far says, line by line.

Stage: the middle of every debit. Takes the rates of a part, its energy and days so far; returns the lines to date.
The plain, exact reference, readable as the tariff order reads: integers only, each line rounded once. Its vectorised
form is `billing.rating_batch`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from billing.money import round_half_up
from billing.tariff import BASIS_POINTS, Beyond, Rates, ShareKind, Slab, Subsidy

# Lines by name, in minor units: energy_1, energy_2, ..., zone_<name>, fppca, fixed, meter_rent, demand, minimum, each
# share by its name (a rebate is negative), subsidy (negative). A tariff has some of them.
Lines = dict[str, int]

SUBSIDY_LINE = "subsidy"
MICRO = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantities:
    """What a bill part is charged for so far.

    Units: `before_wh` is the energy that earlier parts of the month have taken of the slabs; `zone_wh` sums to
    `energy_wh` where the tariff has zones; `days` of the part's days have accrued; of a month with `period_days`
    days, `slab_days` share the slab limits; `demand_w` is the greatest demand read.
    """

    before_wh: int
    energy_wh: int
    zone_wh: tuple[int, ...]
    days: int
    period_days: int
    slab_days: int
    demand_w: int = 0


def charge_to_date(rates: Rates, used: Quantities) -> Lines:
    """Return the lines of a part's bill so far.

    Units: minor units of the tariff's currency.
    Rounds: each line once, half up (of its absolute value); a share is taken of rounded lines.
    Source: tariff document (docs/tariffs.md); rebate on energy only, Supply Code 2024 item 17 (R-17r).
    """
    lines = _bill(rates, used)
    if rates.subsidy is not None:
        lines[SUBSIDY_LINE] = -_subsidised(rates, rates.subsidy, used)
    return lines


def total(lines: Mapping[str, int]) -> int:
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


def slab_limit_wh(slab: Slab, *, slab_days: int, period_days: int) -> int | None:
    """Return a slab's limit; a part that shares the month's limits has them by days, rounded down."""
    return None if slab.to_wh is None else slab.to_wh * slab_days // period_days


def _bill(rates: Rates, used: Quantities) -> Lines:
    """Return all lines but the subsidy."""
    lines = _energy_lines(rates, used)
    groups = {"energy": total(lines)}
    zones = {
        f"zone_{name}": _signed_half_up(wh * milli, MICRO)
        for name, milli, wh in zip(rates.zone_names, rates.zone_milli, used.zone_wh, strict=True)
    }
    groups["zone"] = total(zones)
    single = {
        "fppca": _signed_half_up(used.energy_wh * (rates.fppca_milli or 0), MICRO),
        "fixed": _by_days(rates.fixed_micro, used),
        "meter_rent": _by_days(rates.meter_rent_micro, used),
        "demand": _by_days(rates.demand_milli_per_kw * max(0, used.demand_w - rates.load_w), used),
    }
    groups |= single
    groups["minimum"] = single["minimum"] = _minimum(rates, groups, used)
    lines |= zones | {name: amount for name, amount in single.items() if _charged(rates, name)}
    for share in rates.shares:
        base_minor = max(0, _sum_of(groups, share.of))
        amount_minor = round_half_up(base_minor * share.basis_points, BASIS_POINTS)
        groups[share.name] = lines[share.name] = -amount_minor if share.kind is ShareKind.REBATE else amount_minor
    return lines


def _minimum(rates: Rates, groups: Mapping[str, int], used: Quantities) -> int:
    """Return what tops up the lines a minimum names; a tariff without one tops up nothing, not even a credit."""
    if not rates.minimum_micro:
        return 0
    return max(0, _by_days(rates.minimum_micro, used) - _sum_of(groups, rates.minimum_of))


def _energy_lines(rates: Rates, used: Quantities) -> Lines:
    """Return the slab lines of the energy from `before_wh` on."""
    from_wh, to_wh = used.before_wh, used.before_wh + used.energy_wh
    if rates.whole_quantity:
        return _whole_quantity_lines(rates, from_wh, to_wh, used)
    lines: Lines = {}
    below_wh = 0
    for number, slab in enumerate(rates.slabs, start=1):
        limit_wh = _limit_wh(slab, used)
        upper_wh = to_wh if limit_wh is None else min(to_wh, limit_wh)
        slab_wh = max(0, upper_wh - max(from_wh, below_wh))
        lines[f"energy_{number}"] = round_half_up(slab_wh * slab.rate_milli_per_kwh, MICRO)
        below_wh = below_wh if limit_wh is None else limit_wh
    return lines


def _whole_quantity_lines(rates: Rates, from_wh: int, to_wh: int, used: Quantities) -> Lines:
    """Charge all energy at the rate of the slab reached, less what the slab reached before was charged for."""
    reached, started = _slab_of(rates, to_wh, used), _slab_of(rates, from_wh, used)
    lines = {f"energy_{number}": 0 for number in range(1, len(rates.slabs) + 1)}
    if reached == started:
        rate_milli = rates.slabs[reached].rate_milli_per_kwh
        return {**lines, f"energy_{reached + 1}": round_half_up((to_wh - from_wh) * rate_milli, MICRO)}
    for number, sign, wh in ((reached, 1, to_wh), (started, -1, from_wh)):
        rate_milli = rates.slabs[number].rate_milli_per_kwh
        lines[f"energy_{number + 1}"] = sign * round_half_up(wh * rate_milli, MICRO)
    return lines


def _slab_of(rates: Rates, energy_wh: int, used: Quantities) -> int:
    limits = (_limit_wh(slab, used) for slab in rates.slabs)
    return next(number for number, limit in enumerate(limits) if limit is None or energy_wh <= limit)


def _limit_wh(slab: Slab, used: Quantities) -> int | None:
    return slab_limit_wh(slab, slab_days=used.slab_days, period_days=used.period_days)


def _subsidised(rates: Rates, subsidy: Subsidy, used: Quantities) -> int:
    """Return what the state pays: the covered lines of a bill of the units up to the subsidy's limit."""
    limit_wh = subsidy.to_wh * used.slab_days // used.period_days
    reached_wh = used.before_wh + used.energy_wh
    if reached_wh > limit_wh and subsidy.beyond is Beyond.ALL:
        return 0
    paid_wh = max(0, min(reached_wh, limit_wh) - used.before_wh)
    if paid_wh < used.energy_wh:
        shared = tuple(wh * paid_wh // used.energy_wh for wh in used.zone_wh)
        used = replace(used, energy_wh=paid_wh, zone_wh=shared)
    lines = _bill(rates, used)
    covered = [amount for name, amount in lines.items() if _group_of(name) in subsidy.covers]
    return max(0, sum(covered))


def _group_of(line: str) -> str:
    for group in ("energy", "zone"):
        if line.startswith(f"{group}_"):
            return group
    return line


def _charged(rates: Rates, name: str) -> bool:
    """Tell whether a tariff has a line at all."""
    has = {
        "fppca": rates.fppca_milli is not None,
        "fixed": rates.fixed_micro > 0,
        "meter_rent": rates.meter_rent_micro > 0,
        "demand": rates.demand_milli_per_kw > 0,
        "minimum": rates.minimum_micro > 0,
    }
    return has[name]


def _by_days(micro_a_month: int, used: Quantities) -> int:
    return round_half_up(micro_a_month * used.days, MICRO * used.period_days)


def _sum_of(groups: Mapping[str, int], names: Iterable[str]) -> int:
    return sum(groups.get(name, 0) for name in names)


def _signed_half_up(numerator: int, denominator: int) -> int:
    amount = round_half_up(abs(numerator), denominator)
    return -amount if numerator < 0 else amount
