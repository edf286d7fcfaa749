"""Tariff documents: TOML text to a `Tariff`, every rule checked, errors that name the line and the rule.

Stage: where tariffs enter. Takes the text of a document, returns the value or refuses it as a whole; the form is
described in docs/tariffs.md. Never touches accounts or dates of assignment.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from datetime import date, timedelta
from enum import Enum
from functools import lru_cache
from importlib import resources
from typing import TypeVar

from billing.tariff import (
    BASIS_POINTS,
    ENERGY_WH_MAX,
    LINE_GROUPS,
    LOAD_W_MAX,
    MONTH_RATE_MILLI_MAX,
    RATE_MILLI_MAX,
    ZERO_RATE,
    Band,
    Beyond,
    Fppca,
    MonthRate,
    PartMonths,
    Share,
    ShareKind,
    Slab,
    SlabKind,
    Subsidy,
    Tariff,
    TariffError,
)
from billing.toml_table import Table, clock, read_document, shown
from billing.zones import DAY_MINUTES, Season, Zones

E = TypeVar("E", bound=Enum)

_FIELDS = {
    "id", "title", "source", "currency", "effective_from", "slabs", "band", "share", "fppca", "zones", "meter_rent",
    "minimum_of", "subsidy",
}  # fmt: skip
_AREA = re.compile(r"[a-z_]{1,32}", re.ASCII)
_CURRENCY = re.compile(r"[A-Z]{3}", re.ASCII)
# ISO 4217 currencies whose minor unit is no hundredth; amounts here always have two decimals (billing.money).
_NOT_IN_HUNDREDTHS = {
    "BHD", "BIF", "CLP", "DJF", "GNF", "IQD", "ISK", "JOD", "JPY", "KMF", "KRW", "KWD", "LYD", "OMR", "PYG", "RWF",
    "TND", "UGX", "VND", "VUV", "XAF", "XOF", "XPF",
}  # fmt: skip
_WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_MONTH_RATES = {"per_kw_month": True, "per_kva_month": True, "per_month": False}
_DEFAULT_MINIMUM_OF = ("energy", "zone", "fppca", "fixed")
# 2000 is a leap year: every month and day of a season exists in it.
_A_LEAP_YEAR = 2000


def parse_tariff(text: str) -> Tariff:
    """Read a tariff document.

    Raises: TariffError naming the line and the rule that is broken.
    """
    name, top = read_document(text, "tariff", TariffError)
    top.require_known(_FIELDS)
    slabs = top.table("slabs", {"kind", "part_months"})
    shares = _shares(top)
    fppca = _fppca(top)
    return Tariff(
        id=name,
        title=top.text("title", name),
        source=top.text("source", ""),
        currency=_currency(top),
        effective_from=top.day("effective_from"),
        slab_kind=slabs.choice("kind", tuple(SlabKind), SlabKind.TELESCOPIC),
        part_months=slabs.choice("part_months", tuple(PartMonths), PartMonths.WHOLE),
        bands=_bands(top),
        shares=shares,
        fppca=fppca,
        zones=_zones(top),
        meter_rent=_month_rate(top.table("meter_rent", _rate_fields("")), ""),
        minimum_of=top.names("minimum_of", LINE_GROUPS, _DEFAULT_MINIMUM_OF),
        subsidy=_subsidy(top, [share.name for share in shares]),
        change_days=_change_days(shares, fppca),
    )


def builtin_documents() -> dict[str, str]:
    """Return the texts of the tariffs that ship with the product, by id."""
    folder = resources.files("billing") / "tariffs"
    files = [entry for entry in folder.iterdir() if entry.name.endswith(".toml")]
    return {entry.name.removesuffix(".toml"): entry.read_text(encoding="utf-8") for entry in files}


@lru_cache(maxsize=64)
def builtin_tariff(tariff_id: str) -> Tariff:
    """Return a tariff that ships with the product.

    Raises: TariffError naming those that exist.
    """
    documents = builtin_documents()
    if tariff_id not in documents:
        raise TariffError(f"tariff: expected one of {', '.join(sorted(documents))}, got {tariff_id!r}")
    return parse_tariff(documents[tariff_id])


def _currency(top: Table) -> str:
    value = top.text("currency", "INR")
    if not _CURRENCY.fullmatch(value):
        top.refuse(f"currency: expected an ISO 4217 code such as INR, got {value!r}", "currency")
    if value in _NOT_IN_HUNDREDTHS:
        top.refuse(f"currency: expected one that has hundredths, got {value!r}", "currency")
    return value


def _bands(top: Table) -> tuple[Band, ...]:
    demand = "demand_milli_per_kw_month"
    known = {"to_load_w", "energy", demand, *_rate_fields("fixed_"), *_rate_fields("minimum_")}
    rows = top.rows("band", known)
    if not rows:
        top.refuse("expected one or more [[band]] tables, got none")
    bands = []
    for row in rows:
        bands.append(
            Band(
                to_load_w=row.whole("to_load_w", LOAD_W_MAX, least=1) if "to_load_w" in row.fields else None,
                slabs=_slabs(row),
                fixed=_month_rate(row, "fixed_"),
                minimum=_month_rate(row, "minimum_"),
                demand_milli_per_kw=row.whole(demand, MONTH_RATE_MILLI_MAX) if demand in row.fields else 0,
            )
        )
    _require_rising(rows, "to_load_w", [band.to_load_w for band in bands])
    return tuple(bands)


def _slabs(band: Table) -> tuple[Slab, ...]:
    rows = band.rows("energy", {"to_kwh", "rate_milli_per_kwh"})
    if not rows:
        band.refuse("energy: expected one or more slabs, got none", "energy")
    limits = [row.whole("to_kwh", ENERGY_WH_MAX // 1000, least=1) if "to_kwh" in row.fields else None for row in rows]
    _require_rising(rows, "to_kwh", limits)
    return tuple(
        Slab(
            to_wh=None if to_kwh is None else to_kwh * 1000,
            rate_milli_per_kwh=row.whole("rate_milli_per_kwh", RATE_MILLI_MAX),
        )
        for row, to_kwh in zip(rows, limits, strict=True)
    )


def _require_rising(rows: Sequence[Table], key: str, limits: Sequence[int | None]) -> None:
    below = 0
    for row, limit in zip(rows[:-1], limits[:-1], strict=True):
        if limit is None:
            row.refuse(f"{key}: expected a limit, for only the last may be open, got none: an overlap")
        if limit <= below:
            row.refuse(f"{key}: expected rising limits, above {below}, got {limit}: an overlap", key)
        below = limit
    if limits[-1] is not None:
        rows[-1].refuse(f"{key}: expected none in the last, which is open, got {limits[-1]}: a gap above it", key)


def _rate_fields(prefix: str) -> tuple[str, ...]:
    return tuple(f"{prefix}milli_{per}" for per in _MONTH_RATES)


def _month_rate(table: Table, prefix: str) -> MonthRate:
    key = table.one_field(_rate_fields(prefix), required=False)
    if key is None:
        return ZERO_RATE
    per = key.removeprefix(f"{prefix}milli_")
    return MonthRate(milli=table.whole(key, MONTH_RATE_MILLI_MAX), per_kw=_MONTH_RATES[per])


def _shares(top: Table) -> tuple[Share, ...]:
    shares: list[Share] = []
    for row in top.rows("share", {"name", "kind", "of", "basis_points", "areas", "since", "until"}):
        name = row.name("name")
        if name in (*LINE_GROUPS, "subsidy") or name.startswith(("energy_", "zone_")):
            row.refuse(f"name: expected one that no other line has, got {name!r}", "name")
        since, until = _since_until(row)
        share = Share(
            name=name,
            kind=row.choice("kind", tuple(ShareKind)),
            of=row.names("of", (*LINE_GROUPS, *dict.fromkeys(before.name for before in shares if before.name != name))),
            basis_points=row.whole("basis_points", BASIS_POINTS),
            areas=_areas(row),
            since=since,
            until=until,
        )
        if not share.of:
            row.refuse("of: expected the lines that the share is taken of, got none", "of")
        _require_apart(row, share, shares)
        shares.append(share)
    return tuple(shares)


def _require_apart(row: Table, share: Share, earlier: Sequence[Share]) -> None:
    """Refuse a share that an earlier one contradicts."""
    for other in earlier:
        if share.name in other.of:
            row.refuse(f"name: expected all rows of {share.name!r} before {other.name!r}, which is taken of it", "name")
        if other.name != share.name:
            continue
        if other.kind is not share.kind:
            row.refuse(f"kind: expected {other.kind} as the other {share.name!r}, got {share.kind}", "kind")
        same_area = not share.areas or not other.areas or share.areas & other.areas
        if same_area and _meet(share, other):
            row.refuse(f"overlaps another share {share.name!r} on the same days and areas")


def _areas(row: Table) -> frozenset[str]:
    if "areas" not in row.fields:
        return frozenset()
    areas = row.fields["areas"]
    good = isinstance(areas, list) and all(isinstance(each, str) and _AREA.fullmatch(each) for each in areas)
    if not good or not areas or len(set(areas)) != len(areas):
        row.refuse(f"areas: expected a list of different area types such as urban, got {shown(areas)}", "areas")
    return frozenset(areas)


def _fppca(top: Table) -> tuple[Fppca, ...]:
    found: list[Fppca] = []
    signs = {"rate_milli_per_kwh": 1, "credit_milli_per_kwh": -1}
    for row in top.rows("fppca", {*signs, "since", "until"}):
        key = row.one_field(signs, required=True)
        assert key is not None, "a required field is there"
        since, until = _since_until(row)
        each = Fppca(milli_per_kwh=signs[key] * row.whole(key, RATE_MILLI_MAX), since=since, until=until)
        if any(_meet(each, other) for other in found):
            row.refuse("overlaps another adjustment on the same days")
        found.append(each)
    return tuple(found)


def _subsidy(top: Table, shares: Sequence[str]) -> Subsidy | None:
    if "subsidy" not in top.fields:
        return None
    table = top.table("subsidy", {"kwh_per_month", "covers", "beyond"})
    covers = table.names("covers", (*LINE_GROUPS, *dict.fromkeys(shares)))
    if not covers:
        table.refuse("covers: expected the lines that the state pays, got none", "covers")
    to_wh = table.whole("kwh_per_month", ENERGY_WH_MAX // 1000, least=1) * 1000
    return Subsidy(to_wh=to_wh, covers=covers, beyond=table.choice("beyond", tuple(Beyond)))


def _zones(top: Table) -> Zones | None:
    if "zones" not in top.fields:
        return None
    table = top.table("zones", {"zone", "season", "hours", "weekend", "holidays"})
    names, milli = _zone_rates(table)
    seasons = _seasons(table)
    holidays = table.fields.get("holidays", [])
    if not isinstance(holidays, list) or not all(type(each) is date for each in holidays):
        table.refuse(f"holidays: expected a list of dates, got {shown(holidays)}", "holidays")
    if len(set(holidays)) != len(holidays):
        table.refuse("holidays: expected each date once, got one twice", "holidays")
    return Zones(
        names=names,
        milli_per_kwh=milli,
        seasons=seasons,
        weekend=frozenset(_WEEKDAYS.index(day) for day in table.names("weekend", _WEEKDAYS)),
        holidays=frozenset(holidays),
        hours=_hours(table, names, list(dict.fromkeys(season.name for season in seasons))),
    )


def _zone_rates(table: Table) -> tuple[tuple[str, ...], tuple[int, ...]]:
    signs = {"surcharge_milli_per_kwh": 1, "rebate_milli_per_kwh": -1}
    found: dict[str, int] = {}
    for row in table.rows("zone", {"name", *signs}):
        key = row.one_field(signs, required=False)
        name = row.name("name")
        if name in found:
            row.refuse(f"name: expected a new zone, got {name!r} again", "name")
        found[name] = signs[key] * row.whole(key, RATE_MILLI_MAX) if key else 0
    if not found:
        table.refuse("expected one or more [[zones.zone]] tables, got none")
    return tuple(found), tuple(found.values())


def _seasons(table: Table) -> tuple[Season, ...]:
    seasons: list[Season] = []
    covered: dict[date, str] = {}
    for row in table.rows("season", {"name", "first", "last"}):
        season = Season(name=row.name("name"), first=row.month_day("first"), last=row.month_day("last"))
        for day in _days_of_a_year():
            if season.holds(day):
                if day in covered:
                    row.refuse(f"overlaps season {covered[day]!r} on {day:%m-%d}")
                covered[day] = season.name
        seasons.append(season)
    if seasons:
        missing = next((day for day in _days_of_a_year() if day not in covered), None)
        if missing is not None:
            table.refuse(f"season: expected one for every day, got none on {missing:%m-%d}: a gap", "season")
    return tuple(seasons)


def _hours(
    table: Table, names: Sequence[str], seasons: Sequence[str]
) -> dict[tuple[str, bool], tuple[tuple[int, int], ...]]:
    minutes: dict[tuple[str, bool], list[int | None]] = {
        (season, holiday): [None] * DAY_MINUTES for season in seasons or ("",) for holiday in (False, True)
    }
    kinds = {"all": (False, True), "working": (False,), "holiday": (True,)}
    for row in table.rows("hours", {"zone", "season", "days", "from", "to"}):
        zone, days, season = row.text("zone", ""), row.text("days", "all"), row.text("season", "")
        if zone not in names:
            row.refuse(f"zone: expected one of {', '.join(names)}, got {zone!r}", "zone")
        if days not in kinds:
            row.refuse(f"days: expected one of {', '.join(kinds)}, got {days!r}", "days")
        if season and season not in seasons:
            row.refuse(f"season: expected one of {', '.join(seasons) or 'no seasons'}, got {season!r}", "season")
        span = _span(row)
        for key in itertools.product([season] if season else seasons or ("",), kinds[days]):
            for minute in span:
                if minutes[key][minute] is not None:
                    row.refuse(f"overlaps other hours at {clock(minute)} on {_named(key)}")
                minutes[key][minute] = names.index(zone)
    return {key: _as_starts(table, key, row) for key, row in minutes.items()}


def _as_starts(table: Table, key: tuple[str, bool], minutes: Sequence[int | None]) -> tuple[tuple[int, int], ...]:
    starts: list[tuple[int, int]] = []
    for minute, number in enumerate(minutes):
        if number is None:
            rule = f"expected a zone for every minute, got none at {clock(minute)} on {_named(key)}: a gap"
            table.refuse(f"hours: {rule}", "hours")
        if not starts or starts[-1][1] != number:
            starts.append((minute, number))
    return tuple(starts)


def _span(row: Table) -> Sequence[int]:
    """Return the minutes of a day between two clocks; past midnight it goes on in the morning of the same day."""
    first, last = row.minute("from", DAY_MINUTES - 1), row.minute("to", DAY_MINUTES)
    return range(first, last) if first < last else (*range(first, DAY_MINUTES), *range(last))


def _named(key: tuple[str, bool]) -> str:
    season, holiday = key
    return f"{'holidays' if holiday else 'working days'}{f' of {season}' if season else ''}"


def _days_of_a_year() -> Iterator[date]:
    return (date(_A_LEAP_YEAR, 1, 1) + timedelta(days=number) for number in range(366))


def _since_until(row: Table) -> tuple[date | None, date | None]:
    """Return the first and last day of what holds for a time."""
    since = row.day("since") if "since" in row.fields else None
    until = row.day("until") if "until" in row.fields else None
    if since is not None and until is not None and until < since:
        row.refuse(f"until: expected {since} or later, got {until}", "until")
    return since, until


def _meet(left: Share | Fppca, right: Share | Fppca) -> bool:
    """Tell whether two things hold on a common day."""
    return (left.since or date.min) <= (right.until or date.max) and (right.since or date.min) <= (
        left.until or date.max
    )


def _change_days(shares: Sequence[Share], fppca: Sequence[Fppca]) -> tuple[date, ...]:
    days: set[date] = set()
    holding: tuple[Share | Fppca, ...] = (*shares, *fppca)
    for each in holding:
        if each.since is not None:
            days.add(each.since)
        if each.until is not None and each.until < date.max:
            days.add(each.until + timedelta(days=1))
    return tuple(sorted(day for day in days if day.day > 1))
