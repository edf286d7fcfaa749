"""Any valid tariff document, as text, and any quantities that may be charged under it.

Stage: material for every test of rating. `tariff_texts` draws the documents that `parse_tariff` must take, `rates_of`
resolves one, `quantities` draws what a bill part may hold, crowded around the limits of its slabs.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from datetime import date, timedelta

from hypothesis import strategies as st

from billing.rating import Quantities
from billing.tariff import (
    BASIS_POINTS,
    ENERGY_WH_MAX,
    LINE_GROUPS,
    LOAD_W_MAX,
    MONTH_RATE_MILLI_MAX,
    RATE_MILLI_MAX,
    Rates,
    Tariff,
)

AREAS = ("urban", "rural", "hill")
DAYS = st.dates(date(2024, 1, 1), date(2028, 12, 31))
ONE_DAY = timedelta(days=1)

_SHARE_NAMES = ("rebate", "duty", "cess", "surcharge")
_ZONE_NAMES = ("peak", "normal", "night", "solar")
_WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
# Local clocks of London skip 01:00 to 02:00 in March and repeat it in October.
_CLOCKS = st.one_of(
    st.sampled_from([0, 1, 30, 60, 61, 90, 119, 120, 150, 360, 1079, 1080, 1320, 1380, 1439]), st.integers(0, 1439)
)

loads_w = st.one_of(st.sampled_from([1, 999, 1000, 1001, 1999, 2000, 2001, 6999, 7000, 7001]), st.integers(1, 60_000))
rates_milli = st.one_of(
    st.sampled_from([0, 1, 499, 500, 385_000, 705_000, 777_777]),
    st.integers(0, 1_500_000),
    st.just(RATE_MILLI_MAX),
)
month_rates_milli = st.one_of(
    st.sampled_from([0, 500, 15_000, 5_000_000, 7_000_000]), st.integers(0, 20_000_000), st.just(MONTH_RATE_MILLI_MAX)
)
basis_points = st.one_of(st.sampled_from([0, 1, 50, 100, 500, 1_500, BASIS_POINTS]), st.integers(0, BASIS_POINTS))


@st.composite
def tariff_texts(
    draw: st.DrawFn,
    *,
    days: st.SearchStrategy[date] = DAYS,
    zoned: bool | None = None,
    tariff_id: str = "drawn",
    effective_from: date = date(2020, 1, 1),
) -> str:
    """Draw a document; what has dates changes on `days`, `zoned` forces time-of-day zones on or off."""
    lines = [f'id = "{tariff_id}"', f"effective_from = {effective_from}"]
    if draw(st.booleans()):
        lines.append(f"minimum_of = {_names(draw(st.lists(st.sampled_from(LINE_GROUPS), unique=True)))}")
    lines += draw(_slab_tables())
    for to_load_w in draw(_limits(LOAD_W_MAX, [1000, 2000, 7000])):
        lines += draw(_bands(to_load_w))
    shares = draw(st.lists(st.sampled_from(_SHARE_NAMES), unique=True, max_size=3))
    for number, name in enumerate(shares):
        lines += draw(_share_rows(name, (*LINE_GROUPS, *shares[:number]), days))
    lines += draw(_fppca_rows(days))
    if draw(st.booleans()):
        lines += ["[meter_rent]", *draw(_month_rates(""))]
    if draw(st.booleans()):
        lines += draw(_subsidy_tables((*LINE_GROUPS, *shares)))
    if zoned is None:
        zoned = draw(st.booleans())
    if zoned:
        lines += draw(_zone_tables(days))
    return "\n".join(lines) + "\n"


def rates_of(tariff: Tariff, *, days: st.SearchStrategy[date] = DAYS) -> st.SearchStrategy[Rates]:
    """Draw what a tariff says for some load, area, meter ownership and day."""
    return st.builds(
        tariff.rates,
        load_w=st.one_of(loads_w, st.just(LOAD_W_MAX)),
        area=st.sampled_from(AREAS),
        meter_rent=st.booleans(),
        day=days,
    )


@st.composite
def quantities(draw: st.DrawFn, rates: Rates) -> Quantities:
    """Draw what a part of a bill may hold under some rates: energy around slab limits, demand around the load."""
    period_days = draw(st.integers(28, 31))
    slab_days = draw(st.one_of(st.just(period_days), st.integers(1, period_days)))
    limits_wh = [slab.to_wh * slab_days // period_days for slab in rates.slabs if slab.to_wh is not None]
    if rates.subsidy is not None:
        limits_wh.append(rates.subsidy.to_wh * slab_days // period_days)
    total_wh = draw(_around(limits_wh))
    before_wh = min(draw(st.one_of(st.just(0), _around(limits_wh))), total_wh)
    energy_wh = total_wh - before_wh
    cuts = draw(st.lists(st.integers(0, energy_wh), min_size=len(rates.zone_names), max_size=len(rates.zone_names)))
    edges = [0, *sorted(cuts[1:]), energy_wh]
    return Quantities(
        before_wh=before_wh,
        energy_wh=energy_wh,
        zone_wh=tuple(b - a for a, b in itertools.pairwise(edges)) if rates.zone_names else (),
        days=draw(st.integers(0, slab_days)),
        period_days=period_days,
        slab_days=slab_days,
        demand_w=draw(st.one_of(_near(rates.load_w), st.integers(0, LOAD_W_MAX))),
    )


def _around(limits_wh: Sequence[int]) -> st.SearchStrategy[int]:
    """Draw energy next to a limit, or anywhere."""
    anywhere = st.one_of(st.integers(0, 2_000_000), st.integers(0, ENERGY_WH_MAX))
    return st.one_of(*(_near(limit_wh) for limit_wh in limits_wh), st.integers(0, 300), anywhere)


def _near(value: int) -> st.SearchStrategy[int]:
    return st.integers(-2, 2).map(lambda shift: max(0, value + shift))


@st.composite
def _slab_tables(draw: st.DrawFn) -> list[str]:
    if draw(st.booleans()):
        kind = draw(st.sampled_from(["telescopic", "whole_quantity"]))
        return ["[slabs]", f'kind = "{kind}"', f'part_months = "{draw(st.sampled_from(["whole", "pro_rata"]))}"']
    return []


@st.composite
def _limits(draw: st.DrawFn, most: int, usual: Sequence[int]) -> list[int | None]:
    """Draw rising limits, the last one open."""
    value = st.one_of(st.sampled_from(usual), st.integers(1, most))
    return [*sorted(draw(st.lists(value, unique=True, max_size=3))), None]


@st.composite
def _bands(draw: st.DrawFn, to_load_w: int | None) -> list[str]:
    lines = ["[[band]]"]
    if to_load_w is not None:
        lines.append(f"to_load_w = {to_load_w}")
    lines += draw(_month_rates("fixed_")) + draw(st.one_of(st.just([]), _month_rates("minimum_")))
    if draw(st.booleans()):
        lines.append(f"demand_milli_per_kw_month = {draw(month_rates_milli)}")
    slabs = []
    for to_kwh in draw(_limits(1_000, [1, 2, 100, 300])):
        limit = "" if to_kwh is None else f"to_kwh = {to_kwh}, "
        slabs.append(f"{{ {limit}rate_milli_per_kwh = {draw(rates_milli)} }}")
    return [*lines, f"energy = [{', '.join(slabs)}]"]


@st.composite
def _month_rates(draw: st.DrawFn, prefix: str) -> list[str]:
    per = draw(st.sampled_from([None, "per_kw_month", "per_kva_month", "per_month"]))
    return [] if per is None else [f"{prefix}milli_{per} = {draw(month_rates_milli)}"]


@st.composite
def _share_rows(draw: st.DrawFn, name: str, of: Sequence[str], days: st.SearchStrategy[date]) -> list[str]:
    """Draw the rows of one share: one for everybody, or by area, each for all time or for runs of days."""
    kind = draw(st.sampled_from(["rebate", "charge", "levy"]))
    everybody: list[tuple[str, ...]] = [()]
    by_area: list[tuple[str, ...]] = [("urban",), ("rural", "hill")]
    lines: list[str] = []
    for areas in draw(st.sampled_from([everybody, by_area, by_area[:1]])):
        for since, until in draw(_runs(days)):
            taken_of = draw(st.lists(st.sampled_from(of), unique=True, min_size=1, max_size=5))
            lines += ["[[share]]", f'name = "{name}"', f'kind = "{kind}"', f"of = {_names(taken_of)}"]
            lines += [f"basis_points = {draw(basis_points)}", *_dates(since, until)]
            if areas:
                lines.append(f"areas = {_names(areas)}")
    return lines


@st.composite
def _runs(draw: st.DrawFn, days: st.SearchStrategy[date]) -> list[tuple[date | None, date | None]]:
    """Draw runs of days that do not meet: all time, or from and up to some days, with and without gaps."""
    cuts = sorted(draw(st.lists(days, unique=True, max_size=3)))
    edges: list[date | None] = [None, *cuts, None]
    runs = [(since, None if until is None else until - ONE_DAY) for since, until in itertools.pairwise(edges)]
    kept = draw(st.lists(st.booleans(), min_size=len(runs), max_size=len(runs)))
    return [run for run, keep in zip(runs, kept, strict=True) if keep] or runs[:1]


@st.composite
def _fppca_rows(draw: st.DrawFn, days: st.SearchStrategy[date]) -> list[str]:
    lines: list[str] = []
    for since, until in draw(st.one_of(st.just([]), _runs(days))):
        field = draw(st.sampled_from(["rate_milli_per_kwh", "credit_milli_per_kwh"]))
        lines += ["[[fppca]]", f"{field} = {draw(rates_milli)}", *_dates(since, until)]
    return lines


@st.composite
def _subsidy_tables(draw: st.DrawFn, groups: Sequence[str]) -> list[str]:
    covers = draw(st.lists(st.sampled_from(groups), unique=True, min_size=1))
    kwh = draw(st.one_of(st.sampled_from([1, 100, 300]), st.integers(1, 2_000)))
    beyond = draw(st.sampled_from(["excess", "all"]))
    return ["[subsidy]", f"kwh_per_month = {kwh}", f"covers = {_names(covers)}", f'beyond = "{beyond}"']


@st.composite
def _zone_tables(draw: st.DrawFn, days: st.SearchStrategy[date]) -> list[str]:
    names = draw(st.lists(st.sampled_from(_ZONE_NAMES), unique=True, min_size=1))
    weekend = draw(st.lists(st.sampled_from(_WEEKDAYS), unique=True, max_size=2))
    holidays = sorted(draw(st.lists(days, unique=True, max_size=3)))
    lines = ["[zones]", f"weekend = {_names(weekend)}", f"holidays = [{', '.join(map(str, holidays))}]"]
    for name in names:
        lines += ["[[zones.zone]]", f'name = "{name}"']
        sign = draw(st.sampled_from([None, "surcharge_milli_per_kwh", "rebate_milli_per_kwh"]))
        if sign is not None:
            lines.append(f"{sign} = {draw(rates_milli)}")
    seasons, of_seasons = draw(_seasons())
    lines += seasons
    for season in of_seasons:
        for kind in draw(st.sampled_from([("all",), ("working", "holiday")])):
            lines += draw(_hours_rows(names, season, kind))
    return lines


@st.composite
def _seasons(draw: st.DrawFn) -> tuple[list[str], list[str]]:
    """Draw the rows of seasons that share out the year, and the names that hours are given for."""
    starts = sorted(draw(st.lists(st.integers(0, 365), unique=True, max_size=3)))
    if not starts:
        return [], [""]
    lines: list[str] = []
    # Two seasons of one name are two runs of days with the same hours.
    names = draw(st.lists(st.sampled_from(["summer", "winter"]), min_size=len(starts), max_size=len(starts)))
    leap_new_year = date(2000, 1, 1)
    for name, first, following in zip(names, starts, [*starts[1:], starts[0]], strict=True):
        first_day = leap_new_year + timedelta(days=first)
        last_day = leap_new_year + timedelta(days=(following - 1) % 366)
        lines += ["[[zones.season]]", f'name = "{name}"', f'first = "{first_day:%m-%d}"', f'last = "{last_day:%m-%d}"']
    return lines, draw(st.sampled_from([sorted(set(names)), [""]]))


@st.composite
def _hours_rows(draw: st.DrawFn, names: Sequence[str], season: str, kind: str) -> list[str]:
    """Draw the hours of a day, the last run on over midnight to the first."""
    cuts = sorted(draw(st.lists(_CLOCKS, unique=True, min_size=1, max_size=5)))
    lines: list[str] = []
    for first, following in zip(cuts, [*cuts[1:], cuts[0]], strict=True):
        lines += ["[[zones.hours]]", f'zone = "{draw(st.sampled_from(names))}"', f'days = "{kind}"']
        lines += [f'from = "{_clock(first)}"', f'to = "{_clock(following or 1440)}"']
        if season:
            lines.append(f'season = "{season}"')
    return lines


def _clock(minute: int) -> str:
    return f"{minute // 60:02d}:{minute % 60:02d}"


def _dates(since: date | None, until: date | None) -> list[str]:
    return [f"{key} = {day}" for key, day in (("since", since), ("until", until)) if day is not None]


def _names(names: Sequence[str]) -> str:
    return "[" + ", ".join(f'"{name}"' for name in names) + "]"
