"""Vectorised rating: the lines and totals to date of many accounts of any tariffs at once.

Stage: the hot form of `billing.rating.charge_to_date`, which stays its reference; a property test proves them equal.
Takes the row number of each account's rates (`billing.rate_table`) and its energy and days so far; returns minor
units. 64-bit integers only, and nothing wraps around within the limits of `billing.tariff`:

- energy: at most 10^10 Wh in a part after at most 10^10 Wh before it, at 10^8 thousandths per kWh: 2 * 10^18; a zone
  or an adjustment 10^18; a zone's part of the subsidised units is found in two steps of less than 10^16;
- demand: 10^9 per kW * 2 * 10^8 W * 31 days = 6.2 * 10^18; charges by day were multiplied out when the row was made;
- shares: a base below 9.2 * 10^14 times 10^4 basis points; a wider one, up to 2^62, is divided before it is multiplied.

Half a denominator (at most 1.6 * 10^7) is added to each before it is divided; 2^63 is 9.2 * 10^18. Inputs beyond the
limits are refused. Sums over a batch have room for 10^6 accounts at the very limit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from billing.money import BillingError
from billing.rate_table import DAY_COUNTS, DEMAND_W_MAX, Int64, RateColumns, RateTable
from billing.rating import MICRO, SUBSIDY_LINE, Lines
from billing.tariff import BASIS_POINTS, ENERGY_WH_MAX, Beyond, Share, ShareKind

# Sharing a zone's energy: 10^10 Wh is below 2^34; its upper part times 10^10 is below 2^17 * 2^34.
_LOW_BITS = 17


class BeyondLimits(BillingError):
    """Quantities that 64-bit rating is not proven for."""

    code = "beyond_limits"


@dataclass(frozen=True, slots=True, kw_only=True)
class LineGroup:
    """The bill lines of those accounts of a batch that have the same lines.

    Shape: `amounts_minor` is lines by accounts; `places` are the accounts' places in the batch.
    Invariants: an account has each name at most in one group; a line that its tariff lacks is 0.
    """

    places: npt.NDArray[np.intp]
    names: tuple[str, ...]
    levies: frozenset[str]
    amounts_minor: Int64


@dataclass(frozen=True, slots=True, kw_only=True)
class _Used:
    """What the accounts of one shape have used. `before_wh` None is 0 for all; `zone_wh` is zones by accounts."""

    columns: Int64
    before_wh: Int64 | None
    energy_wh: Int64
    days: Int64
    zone_wh: Int64
    demand_w: Int64 | None


@dataclass(slots=True, kw_only=True)
class _Bill:
    """The lines of one shape: slabs and zones by account, and every group and share by name."""

    slabs_minor: Int64
    zones_minor: Int64
    groups: dict[str, Int64]


def charge_totals(
    table: RateTable,
    rows: Int64,
    before_wh: Int64,
    energy_wh: Int64,
    days: Int64,
    *,
    zone_wh: Int64 | None = None,
    demand_w: Int64 | None = None,
) -> Int64:
    """Return the sum of the lines to date of each account.

    Units: Wh, whole days, W; minor units of each account's currency. Without `demand_w` no demand was read.
    Shape: one number for each account; `zone_wh` is accounts by zones, at least as wide as the most zones of a row.
    Rounds: each line once, half up, as the plain form.
    Raises: BeyondLimits.
    """
    totals = np.zeros(len(rows), dtype=np.int64)
    for shape, places, used in _by_shape(table, rows, before_wh, energy_wh, days, zone_wh, demand_w):
        bill = _full_bill(shape, used)
        names = ("energy", *(("zone",) if shape.shape.zone_names else ()), *shape.single_names)
        totals[places] = _sum_of(bill.groups, names, len(used.columns))
    return totals


def charge_lines(
    table: RateTable,
    rows: Int64,
    before_wh: Int64,
    energy_wh: Int64,
    days: Int64,
    *,
    zone_wh: Int64 | None = None,
    demand_w: Int64 | None = None,
) -> list[LineGroup]:
    """Return the lines to date of each account, in groups of accounts with the same lines.

    Arguments, rounding and refusals are those of `charge_totals`. The same rows always give the same groups.
    """
    everyone = np.arange(len(rows))
    groups = []
    for shape, places, used in _by_shape(table, rows, before_wh, energy_wh, days, zone_wh, demand_w):
        bill = _full_bill(shape, used)
        single = [bill.groups[name] for name in shape.single_names]
        groups.append(
            LineGroup(
                places=everyone[places],
                names=shape.line_names,
                levies=shape.levies,
                amounts_minor=np.vstack([bill.slabs_minor, bill.zones_minor, *single]),
            )
        )
    return groups


def difference_lines(to_date: Sequence[LineGroup], charged: Sequence[LineGroup]) -> list[LineGroup]:
    """Return the lines still to be charged; both are of the same rows.

    Nothing charged yet is a bill of no days and no energy.
    """
    return [
        replace(later, amounts_minor=later.amounts_minor - earlier.amounts_minor)
        for later, earlier in zip(to_date, charged, strict=True)
    ]


def account_lines(groups: Iterable[LineGroup], accounts: int) -> list[Lines]:
    """Return each account's lines that are not zero, in the order of the batch."""
    found: list[Lines] = [{} for _ in range(accounts)]
    for group in groups:
        there = group.amounts_minor != 0
        # A line that no account has is left out at once; most accounts then have all that are left.
        kept = np.flatnonzero(there.any(axis=1))
        names = [group.names[number] for number in kept.tolist()]
        complete = there[kept].all(axis=0).tolist()
        rows = group.amounts_minor[kept].T.tolist()
        for place, has_all, amounts in zip(group.places.tolist(), complete, rows, strict=True):
            pairs = zip(names, amounts, strict=True)
            found[place] = dict(pairs) if has_all else {name: amount for name, amount in pairs if amount}
    return found


def line_sums(groups: Iterable[LineGroup]) -> list[tuple[Lines, frozenset[str]]]:
    """Return the sum of each line over a batch and which lines are levies, as `usage_batch_journal` takes them."""
    return [
        (dict(zip(group.names, group.amounts_minor.sum(axis=1).tolist(), strict=True)), group.levies)
        for group in groups
    ]


def _by_shape(
    table: RateTable,
    rows: Int64,
    before_wh: Int64,
    energy_wh: Int64,
    days: Int64,
    zone_wh: Int64 | None,
    demand_w: Int64 | None,
) -> Iterator[tuple[RateColumns, npt.NDArray[np.intp] | slice, _Used]]:
    """Check a batch and cut it into accounts of one shape: their places and what they used."""
    if not len(rows):
        return
    _require("row", rows, len(table) - 1, len(rows))
    _require("energy_wh", energy_wh, ENERGY_WH_MAX, len(rows))
    _require("days", days, DAY_COUNTS - 1, len(rows))
    before: Int64 | None = before_wh if _require("before_wh", before_wh, ENERGY_WH_MAX, len(rows)) else None
    if zone_wh is None:
        zone_wh = np.zeros((len(rows), 0), dtype=np.int64)
    elif zone_wh.size:
        _require("zone_wh", zone_wh, ENERGY_WH_MAX, len(rows))
    if demand_w is not None:
        _require("demand_w", demand_w, DEMAND_W_MAX, len(rows))
    columns = table.columns_of(rows)
    for number, places in _places_by_shape(table.shapes_of(rows)):
        shape = table.shapes[number]
        zones = len(shape.shape.zone_names)
        if zone_wh.shape[1] < zones:
            raise BeyondLimits(f"zone_wh: expected energy of {zones} zones, got {zone_wh.shape[1]}")
        used = _Used(
            columns=columns[places],
            before_wh=None if before is None else before[places],
            energy_wh=energy_wh[places],
            days=days[places],
            zone_wh=np.ascontiguousarray(zone_wh[places, :zones].T),
            demand_w=None if demand_w is None else demand_w[places],
        )
        yield shape, places, used


def _places_by_shape(shapes: npt.NDArray[np.int16]) -> Iterator[tuple[int, npt.NDArray[np.intp] | slice]]:
    first = int(shapes[0])
    if bool((shapes == first).all()):
        yield first, slice(None)
        return
    order = np.argsort(shapes, kind="stable")
    in_order = shapes[order]
    edges = np.flatnonzero(in_order[1:] != in_order[:-1]) + 1
    for places in np.split(order, edges):
        yield int(shapes[places[0]]), places


def _require(what: str, values: Int64, most: int, accounts: int) -> int:
    """Refuse values that are no 64-bit integers from 0 to `most`; return the largest.

    Raises: BeyondLimits.
    """
    if values.dtype != np.int64 or len(values) != accounts:
        raise BeyondLimits(f"{what}: expected {accounts} of int64, got {len(values)} of {values.dtype}")
    # Read without a sign, a negative number is the largest of all: one pass finds both.
    largest = int(values.view(np.uint64).max())
    if largest > most:
        wrong = int(values.min()) if largest >= 2**63 else largest
        raise BeyondLimits(f"{what}: expected 0 to {most}, got {wrong}")
    return largest


def _full_bill(shape: RateColumns, used: _Used) -> _Bill:
    """Return all lines of accounts of one shape."""
    bill = _bill(shape, used)
    if shape.shape.covers is not None:
        bill.groups[SUBSIDY_LINE] = -_subsidised(shape, used, bill)
    return bill


def _bill(shape: RateColumns, used: _Used) -> _Bill:
    """Return all lines but the subsidy."""
    kind, columns = shape.shape, used.columns
    slabs_minor = _whole_quantity_lines(shape, used) if kind.whole_quantity else _slab_lines(shape, used)
    zones_minor = used.zone_wh
    groups = {
        "energy": slabs_minor.sum(axis=0),
        "fixed": shape.after_days(shape.fixed_by_day, used.days, columns),
        "meter_rent": shape.after_days(shape.rent_by_day, used.days, columns),
    }
    if kind.zone_names:
        zones_minor = _signed_half_up(used.zone_wh * shape.figures(shape.zones_milli, columns))
        groups["zone"] = zones_minor.sum(axis=0)
    if kind.has_fppca:
        groups["fppca"] = _signed_half_up(used.energy_wh * shape.figure(shape.fppca_milli, columns))
    if kind.has_demand:
        groups["demand"] = _demand(shape, used)
    if kind.minimum_of is not None:
        floor_minor = shape.after_days(shape.floor_by_day, used.days, columns)
        groups["minimum"] = np.maximum(floor_minor - _sum_of(groups, kind.minimum_of, len(columns)), 0)
    for share in kind.shares:
        groups[share.name] = _share(share, groups, len(columns), wide=kind.wide)
    return _Bill(slabs_minor=slabs_minor, zones_minor=zones_minor, groups=groups)


def _slab_lines(shape: RateColumns, used: _Used) -> Int64:
    """Return the slab lines of the energy from `before_wh` on, slabs by accounts."""
    kind = shape.shape
    slab_wh = np.empty((kind.slab_count, len(used.columns)), dtype=np.int64)
    if kind.slab_count > 1:
        # First what was used up to each limit; a slab's own is that less the same of the slab below.
        limits_wh = shape.figures(shape.limits_wh, used.columns)
        if used.before_wh is None:
            np.minimum(limits_wh, used.energy_wh, out=slab_wh[:-1])
        else:
            np.minimum(limits_wh, used.before_wh + used.energy_wh, out=slab_wh[:-1])
            slab_wh[:-1] -= np.minimum(limits_wh, used.before_wh)
    slab_wh[-1] = used.energy_wh
    slab_wh[1:] -= slab_wh[:-1]
    slab_wh *= shape.figures(shape.rates_milli, used.columns)
    return _half_up(slab_wh, MICRO)


def _whole_quantity_lines(shape: RateColumns, used: _Used) -> Int64:
    """Charge all energy at the rate of the slab reached, less what the slab reached before was charged for."""
    columns, slabs = used.columns, shape.shape.slab_count
    from_wh = np.zeros_like(used.energy_wh) if used.before_wh is None else used.before_wh
    to_wh = from_wh + used.energy_wh
    limits_wh = shape.figures(shape.limits_wh, columns)
    reached, started = (to_wh > limits_wh).sum(axis=0), (from_wh > limits_wh).sum(axis=0)
    rates_milli = shape.figures(shape.rates_milli, columns)
    accounts = np.arange(len(columns))
    same = reached == started
    lines = np.zeros((slabs, len(columns)), dtype=np.int64)
    lines[reached, accounts] = _half_up(np.where(same, used.energy_wh, to_wh) * rates_milli[reached, accounts], MICRO)
    lines[started, accounts] -= _half_up(np.where(same, 0, from_wh) * rates_milli[started, accounts], MICRO)
    return lines


def _demand(shape: RateColumns, used: _Used) -> Int64:
    if used.demand_w is None:
        return np.zeros_like(used.energy_wh)
    excess_w = np.maximum(used.demand_w - shape.figure(shape.load_w, used.columns), 0)
    micro = excess_w * shape.figure(shape.demand_milli, used.columns) * used.days
    return _half_up(micro, MICRO * shape.figure(shape.period_days, used.columns))


def _share(share: Share, groups: dict[str, Int64], accounts: int, *, wide: bool) -> Int64:
    """Return a share of rounded lines; a base below zero counts as zero."""
    base_minor = np.maximum(_sum_of(groups, share.of, accounts), 0)
    points = share.basis_points
    if wide:
        whole, rest = np.divmod(base_minor, BASIS_POINTS)
        amount_minor = whole * points + _half_up(rest * points, BASIS_POINTS)
    else:
        base_minor *= points
        amount_minor = _half_up(base_minor, BASIS_POINTS)
    return -amount_minor if share.kind is ShareKind.REBATE else amount_minor


def _subsidised(shape: RateColumns, used: _Used, bill: _Bill) -> Int64:
    """Return what the state pays: the covered lines of a bill of the units up to the subsidy's limit."""
    limit_wh = shape.figure(shape.subsidy_wh, used.columns)
    before_wh = np.zeros_like(limit_wh) if used.before_wh is None else used.before_wh
    reached_wh = before_wh + used.energy_wh
    paid_wh = np.maximum(np.minimum(reached_wh, limit_wh) - before_wh, 0)
    beyond = paid_wh < used.energy_wh
    if bool(beyond.any()):
        shared_wh = np.where(beyond, _shared_wh(used.zone_wh, paid_wh, used.energy_wh), used.zone_wh)
        bill = _bill(shape, replace(used, energy_wh=paid_wh, zone_wh=shared_wh))
    charged = {"energy", "zone", *shape.single_names}
    covered = [name for name in shape.shape.covers or () if name in charged]
    covered_minor = np.maximum(_sum_of(bill.groups, covered, len(limit_wh)), 0)
    if shape.shape.beyond is Beyond.ALL:
        covered_minor[reached_wh > limit_wh] = 0
    return covered_minor


def _shared_wh(zone_wh: Int64, paid_wh: Int64, energy_wh: Int64) -> Int64:
    """Return `zone_wh * paid_wh // energy_wh`, whose product may pass 63 bits; where no energy is, anything."""
    whole_wh = np.maximum(energy_wh, 1)
    high, low = paid_wh >> _LOW_BITS, paid_wh & ((1 << _LOW_BITS) - 1)
    quotient, rest = np.divmod(zone_wh * high, whole_wh)
    return (quotient << _LOW_BITS) + ((rest << _LOW_BITS) + zone_wh * low) // whole_wh


def _sum_of(groups: dict[str, Int64], names: Iterable[str], accounts: int) -> Int64:
    """Return a new array with the sum of the named groups; one that a tariff lacks is 0."""
    there = [groups[name] for name in names if name in groups]
    if not there:
        return np.zeros(accounts, dtype=np.int64)
    if len(there) == 1:
        return there[0].copy()
    found = there[0] + there[1]
    for amounts in there[2:]:
        found += amounts
    return found


def _signed_half_up(numerator: Int64) -> Int64:
    """Divide by a million in place.

    Rounds: the absolute value to the nearest integer, a half up.
    """
    below = numerator < 0
    amount = _half_up(np.abs(numerator, out=numerator), MICRO)
    return np.negative(amount, out=amount, where=below)


def _half_up(numerator: Int64, denominator: int | Int64) -> Int64:
    """Divide non-negative integers by an even denominator, in place.

    Rounds: to the nearest integer, a half up: with an even d, (2n + d) // 2d is (n + d/2) // d.
    """
    numerator += denominator // 2
    # Division without signs takes two thirds of the time.
    unsigned = numerator.view(np.uint64)
    unsigned //= denominator.view(np.uint64) if isinstance(denominator, np.ndarray) else denominator
    return numerator
