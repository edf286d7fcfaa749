"""Tariffs as values: what a tariff document says, and what that means for one load, area and day.

Stage: before rating. Documents are read by `billing.tariff_document`. A tariff version is immutable; `Tariff.rates`
resolves it to the flat `Rates` that both forms of rating work with. Never touches accounts.

Limits: the vectorised rating computes in 64-bit integers. With energy of at most 10^10 Wh in a bill part, rates of at
most 10^8 thousandths of a minor unit per kWh, monthly rates of at most 10^9 per kW and loads of at most 10^8 W no
product exceeds 31 * 10^17, and twice that stays below 2^63 = 92 * 10^17.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date
from enum import StrEnum
from functools import lru_cache

from billing.money import BillingError
from billing.zones import Zones

BASIS_POINTS = 10_000
ENERGY_WH_MAX = 10**10
LOAD_W_MAX = 10**8
RATE_MILLI_MAX = 10**8
MONTH_RATE_MILLI_MAX = 10**9

# Groups of lines that a share, a minimum charge or a subsidy may name; shares may also name earlier shares.
LINE_GROUPS = ("energy", "zone", "fppca", "fixed", "meter_rent", "demand", "minimum")


class TariffError(BillingError):
    """A tariff document breaks a rule."""

    code = "tariff_error"


class SlabKind(StrEnum):
    """How slabs count: each unit at the rate of its own slab, or all units at the rate of the slab reached."""

    TELESCOPIC = "telescopic"
    WHOLE_QUANTITY = "whole_quantity"


class PartMonths(StrEnum):
    """What slab limits are in a part of a month: shared out by days, or those of the whole month carried on."""

    WHOLE = "whole"
    PRO_RATA = "pro_rata"


class ShareKind(StrEnum):
    """Who a share of other lines is for: off the bill, the utility's own, or collected for others."""

    REBATE = "rebate"
    CHARGE = "charge"
    LEVY = "levy"


class Beyond(StrEnum):
    """What a consumer pays whose use exceeds the subsidised units: the excess, or everything."""

    EXCESS = "excess"
    ALL = "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class Slab:
    """One step of monthly energy; `to_wh` None is the open last one."""

    to_wh: int | None
    rate_milli_per_kwh: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MonthRate:
    """A charge per month: thousandths of a minor unit per kW (or kVA) of sanctioned load, or per connection."""

    milli: int
    per_kw: bool

    def micro(self, load_w: int) -> int:
        """Return the charge of a whole month in millionths of a minor unit."""
        return self.milli * (load_w if self.per_kw else 1000)


ZERO_RATE = MonthRate(milli=0, per_kw=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """What holds for sanctioned loads up to `to_load_w`; None is the open last band."""

    to_load_w: int | None
    slabs: tuple[Slab, ...]
    fixed: MonthRate = ZERO_RATE
    minimum: MonthRate = ZERO_RATE
    demand_milli_per_kw: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """A share of other lines' rounded amounts, in areas and between local days (`until` is the last one)."""

    name: str
    kind: ShareKind
    of: tuple[str, ...]
    basis_points: int
    areas: frozenset[str] = frozenset()
    since: date | None = None
    until: date | None = None

    def holds(self, area: str, day: date) -> bool:
        """Tell whether the share is taken in an area on a day."""
        return (not self.areas or area in self.areas) and _between(day, self.since, self.until)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fppca:
    """Fuel and power purchase adjustment per kWh between local days; below zero it is a credit."""

    milli_per_kwh: int
    since: date | None = None
    until: date | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Subsidy:
    """The state pays for the first units of a month: the covered lines of a bill of so many units."""

    to_wh: int
    covers: tuple[str, ...]
    beyond: Beyond


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """A tariff resolved for one load, area, meter ownership and day: everything a bill part is rated by.

    Units: `*_micro` are millionths of a minor unit per month; `demand_milli_per_kw` per kW of excess and month.
    Invariants: amounts are within the limits of this module.
    """

    slabs: tuple[Slab, ...]
    whole_quantity: bool
    zone_names: tuple[str, ...]
    zone_milli: tuple[int, ...]
    fppca_milli: int | None
    load_w: int
    fixed_micro: int
    meter_rent_micro: int
    minimum_micro: int
    minimum_of: tuple[str, ...]
    demand_milli_per_kw: int
    shares: tuple[Share, ...]
    subsidy: Subsidy | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tariff:
    """A tariff version.

    Invariants: bands and slabs rise and only the last of each is open; on any day at most one share of a name holds
    in an area and at most one adjustment; every name a share, minimum or subsidy is taken of stands before it.
    """

    id: str
    title: str
    source: str
    currency: str
    effective_from: date
    slab_kind: SlabKind
    part_months: PartMonths
    bands: tuple[Band, ...]
    shares: tuple[Share, ...] = ()
    fppca: tuple[Fppca, ...] = ()
    zones: Zones | None = None
    meter_rent: MonthRate = ZERO_RATE
    minimum_of: tuple[str, ...] = ()
    subsidy: Subsidy | None = None
    # Days other than a month's first on which something of the tariff changes; a bill part ends before each.
    change_days: tuple[date, ...] = field(default=())

    @property
    def levies(self) -> frozenset[str]:
        """Names of the lines that are collected for others."""
        return frozenset(share.name for share in self.shares if share.kind is ShareKind.LEVY)

    @property
    def rebate_basis_points(self) -> int:
        """The rebate that the tariff names, for a receipt; 0 without one."""
        return next((share.basis_points for share in self.shares if share.kind is ShareKind.REBATE), 0)

    def rates(self, *, load_w: int, area: str, meter_rent: bool, day: date) -> Rates:
        """Resolve the tariff for a sanctioned load (W, or VA where charges are per kVA), an area and a day."""
        return _rates(self, load_w, area, meter_rent, day)

    def band_of(self, load_w: int) -> Band:
        """Return the band of a sanctioned load."""
        for band in self.bands:
            if band.to_load_w is None or load_w <= band.to_load_w:
                return band
        raise AssertionError("a tariff's last band is open")


# A city has some thousand combinations of tariff, load and month.
@lru_cache(maxsize=65_536)
def _rates(tariff: Tariff, load_w: int, area: str, meter_rent: bool, day: date) -> Rates:
    band = tariff.band_of(load_w)
    fppca = next((each.milli_per_kwh for each in tariff.fppca if _between(day, each.since, each.until)), None)
    return Rates(
        slabs=band.slabs,
        whole_quantity=tariff.slab_kind is SlabKind.WHOLE_QUANTITY,
        zone_names=tariff.zones.names if tariff.zones else (),
        zone_milli=tariff.zones.milli_per_kwh if tariff.zones else (),
        fppca_milli=fppca,
        load_w=load_w,
        fixed_micro=band.fixed.micro(load_w),
        meter_rent_micro=tariff.meter_rent.micro(load_w) if meter_rent else 0,
        minimum_micro=band.minimum.micro(load_w),
        minimum_of=tariff.minimum_of,
        demand_milli_per_kw=band.demand_milli_per_kw,
        shares=tuple(share for share in tariff.shares if share.holds(area, day)),
        subsidy=tariff.subsidy,
    )


def _between(day: date, since: date | None, until: date | None) -> bool:
    return (since is None or since <= day) and (until is None or day <= until)
