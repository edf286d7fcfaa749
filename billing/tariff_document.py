"""Tariff documents: TOML text to a `Tariff`, every rule checked, errors that name the line and the rule.

Stage: where tariffs enter. Takes the text of a document, returns the value or refuses it as a whole; the form is
described in docs/tariffs.md. Never touches accounts or dates of assignment.
"""

from __future__ import annotations

import itertools
import re
import tomllib
from collections.abc import Collection, Iterator
from datetime import date, datetime, timedelta
from enum import Enum
from functools import lru_cache
from importlib import resources
from typing import Any, NoReturn, TypeVar

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
from billing.zones import DAY_MINUTES, Season, Zones

E = TypeVar("E", bound=Enum)

_FIELDS = {
    "id", "title", "source", "currency", "effective_from", "slabs", "band", "share", "fppca", "zones", "meter_rent",
    "minimum_of", "subsidy",
}  # fmt: skip
_HEADER = re.compile(r"\s*\[\[?\s*([a-z_.]+)\s*\]\]?\s*(#.*)?$")
_NAME = re.compile(r"[a-z][a-z_0-9]{0,31}", re.ASCII)
_ID = re.compile(r"[a-z0-9][a-z0-9.-]{0,63}", re.ASCII)
_CLOCK = re.compile(r"(\d\d):(\d\d)", re.ASCII)
_MONTH_DAY = re.compile(r"(\d\d)-(\d\d)", re.ASCII)
_WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_MONTH_RATES = {"per_kw_month": True, "per_kva_month": True, "per_month": False}
_DEFAULT_MINIMUM_OF = ("energy", "zone", "fppca", "fixed")
_SUBSIDY_MAY_COVER = (*LINE_GROUPS,)
# 2000 is a leap year: every month and day of a season exists in it.
_A_LEAP_YEAR = 2000


def parse_tariff(text: str) -> Tariff:
    """Read a tariff document.

    Raises: TariffError naming the line and the rule that is broken.
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise TariffError(f"tariff document: expected TOML, {error}") from error
    name = document.get("id")
    if not isinstance(name, str) or not _ID.fullmatch(name):
        raise TariffError(f"tariff document: id: expected a-z, 0-9, dots and dashes, at most 64, got {name!r}")
    top = _Table(name, "the document", document, 1, _FIELDS)
    lines = _header_lines(text)
    slabs = top.table("slabs", lines, {"kind", "part_months"})
    shares = _shares(top, lines)
    zones = _zones(top, lines)
    fppca = _fppca(top, lines)
    return Tariff(
        id=name,
        title=top.text("title", name),
        source=top.text("source", ""),
        currency=top.text("currency", "INR"),
        effective_from=top.day("effective_from"),
        slab_kind=slabs.choice("kind", SlabKind, SlabKind.TELESCOPIC),
        part_months=slabs.choice("part_months", PartMonths, PartMonths.WHOLE),
        bands=_bands(top, lines),
        shares=shares,
        fppca=fppca,
        zones=zones,
        meter_rent=_month_rate(top.table("meter_rent", lines, _rate_fields("")), ""),
        minimum_of=top.names("minimum_of", LINE_GROUPS, _DEFAULT_MINIMUM_OF),
        subsidy=_subsidy(top, lines, {share.name for share in shares}),
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


class _Table:
    """One table of a document; reads fields and refuses what breaks a rule, with the line of its header."""

    # TOML values are untyped until each is read.
    def __init__(self, tariff: str, what: str, fields: dict[str, Any], line: int, known: Collection[str]) -> None:
        self._tariff = tariff
        self._what = what
        self.fields = fields
        self.line = line
        unknown = sorted(fields.keys() - set(known))
        if unknown:
            self.refuse(f"expected only {', '.join(sorted(known))}, got {', '.join(unknown)}")

    def refuse(self, rule: str) -> NoReturn:
        """Refuse the document."""
        raise TariffError(f"tariff {self._tariff}, line {self.line}, {self._what}: {rule}")

    def rows(self, key: str, lines: dict[tuple[str, int], int], known: Collection[str]) -> list[_Table]:
        """Return the tables of an array of tables, none if there is none."""
        rows = self.fields.get(key, [])
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            self.refuse(f"expected [[{key}]] tables, got {type(rows).__name__}")
        path = key if self._what == "the document" else f"{self._what.split()[0].strip('[]')}.{key}"
        return [
            _Table(self._tariff, f"[[{path}]] {number + 1}", row, lines.get((path, number), self.line), known)
            for number, row in enumerate(rows)
        ]

    def table(self, key: str, lines: dict[tuple[str, int], int], known: Collection[str]) -> _Table:
        """Return a table, an empty one if there is none."""
        fields = self.fields.get(key, {})
        if not isinstance(fields, dict):
            self.refuse(f"expected one [{key}] table, got {type(fields).__name__}")
        return _Table(self._tariff, f"[{key}]", fields, lines.get((key, 0), self.line), known)

    def whole(self, key: str, most: int, *, least: int = 0) -> int:
        """Return a whole number that must be there."""
        value = self.fields.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            self.refuse(f"{key}: expected a whole number from {least} to {most}, got {value!r}")
        return value

    def text(self, key: str, default: str) -> str:
        """Return a text."""
        value = self.fields.get(key, default)
        if not isinstance(value, str):
            self.refuse(f"{key}: expected a text, got {value!r}")
        return value

    def name(self, key: str) -> str:
        """Return a name of a line, zone or season."""
        value = self.text(key, "")
        if not _NAME.fullmatch(value):
            self.refuse(f"{key}: expected a name of a-z, 0-9 and _, got {value!r}")
        return value

    def names(self, key: str, allowed: Collection[str], default: tuple[str, ...] = ()) -> tuple[str, ...]:
        """Return a list of names, each out of those allowed and given once."""
        value = self.fields.get(key, list(default))
        if not isinstance(value, list) or len(set(map(str, value))) != len(value):
            self.refuse(f"{key}: expected a list of different names, got {value!r}")
        unknown = [each for each in value if each not in allowed]
        if unknown:
            self.refuse(f"{key}: expected names out of {', '.join(allowed)}, got {unknown[0]!r}")
        return tuple(value)

    def choice(self, key: str, of: type[E], default: E | None = None) -> E:
        """Return one of a closed set."""
        value = self.fields.get(key, None if default is None else default.value)
        try:
            return of(value)
        except ValueError:
            self.refuse(f"{key}: expected one of {', '.join(str(each.value) for each in of)}, got {value!r}")

    def day(self, key: str) -> date:
        """Return a day that must be there."""
        value = self.fields.get(key)
        # A TOML date with a time is read as a datetime, which Python counts among the dates.
        if not isinstance(value, date) or isinstance(value, datetime):
            self.refuse(f"{key}: expected a date, got {value!r}")
        return value

    def days(self) -> tuple[date | None, date | None]:
        """Return the first and last day of what holds for a time."""
        since = self.day("since") if "since" in self.fields else None
        until = self.day("until") if "until" in self.fields else None
        if since is not None and until is not None and until < since:
            self.refuse(f"until: expected {since} or later, got {until}")
        return since, until


def _bands(top: _Table, lines: dict[tuple[str, int], int]) -> tuple[Band, ...]:
    known = {"to_load_w", "energy", "demand_milli_per_kw_month", *_rate_fields("fixed_"), *_rate_fields("minimum_")}
    rows = top.rows("band", lines, known)
    if not rows:
        top.refuse("expected one or more [[band]] tables, got none")
    bands = []
    for row in rows:
        to_load_w = row.whole("to_load_w", LOAD_W_MAX, least=1) if "to_load_w" in row.fields else None
        slabs = tuple(_slabs(row, lines))
        _require_rising(row, "energy slabs", [slab.to_wh for slab in slabs])
        demand = "demand_milli_per_kw_month"
        bands.append(
            Band(
                to_load_w=to_load_w,
                slabs=slabs,
                fixed=_month_rate(row, "fixed_"),
                minimum=_month_rate(row, "minimum_"),
                demand_milli_per_kw=row.whole(demand, MONTH_RATE_MILLI_MAX) if demand in row.fields else 0,
            )
        )
    _require_rising(rows[-1], "load bands", [band.to_load_w for band in bands])
    return tuple(bands)


def _slabs(band: _Table, lines: dict[tuple[str, int], int]) -> Iterator[Slab]:
    rows = band.rows("energy", lines, {"to_kwh", "rate_milli_per_kwh"})
    if not rows:
        band.refuse("expected one or more energy slabs, got none")
    for row in rows:
        to_wh = row.whole("to_kwh", ENERGY_WH_MAX // 1000, least=1) * 1000 if "to_kwh" in row.fields else None
        yield Slab(to_wh=to_wh, rate_milli_per_kwh=row.whole("rate_milli_per_kwh", RATE_MILLI_MAX))


def _require_rising(table: _Table, what: str, limits: list[int | None]) -> None:
    closed = [limit for limit in limits[:-1] if limit is not None]
    if limits[-1] is not None or len(closed) != len(limits) - 1:
        table.refuse(f"{what}: expected only the last to be open, got limits {limits}: a gap")
    if any(a >= b for a, b in itertools.pairwise(closed)):
        table.refuse(f"{what}: expected rising limits, got {limits}: an overlap")


def _rate_fields(prefix: str) -> set[str]:
    return {f"{prefix}milli_{per}" for per in _MONTH_RATES}


def _month_rate(table: _Table, prefix: str) -> MonthRate:
    given = [per for per in _MONTH_RATES if f"{prefix}milli_{per}" in table.fields]
    if not given:
        return ZERO_RATE
    if len(given) > 1:
        table.refuse(f"expected one of {', '.join(sorted(_rate_fields(prefix)))}, got {len(given)}")
    milli = table.whole(f"{prefix}milli_{given[0]}", MONTH_RATE_MILLI_MAX)
    return MonthRate(milli=milli, per_kw=_MONTH_RATES[given[0]])


def _shares(top: _Table, lines: dict[tuple[str, int], int]) -> tuple[Share, ...]:
    shares: list[tuple[Share, _Table]] = []
    for row in top.rows("share", lines, {"name", "kind", "of", "basis_points", "areas", "since", "until"}):
        name = row.name("name")
        if name in (*LINE_GROUPS, "subsidy") or name.startswith(("energy_", "zone_")):
            row.refuse(f"name: expected one that no line group has, got {name!r}")
        before = {share.name for share, _ in shares} - {name}
        since, until = row.days()
        share = Share(
            name=name,
            kind=row.choice("kind", ShareKind),
            of=row.names("of", (*LINE_GROUPS, *sorted(before))),
            basis_points=row.whole("basis_points", BASIS_POINTS),
            areas=frozenset(_areas(row)),
            since=since,
            until=until,
        )
        if not share.of:
            row.refuse("of: expected the lines that the share is taken of, got none")
        for other, _ in shares:
            if other.name != name:
                continue
            same_area = not share.areas or not other.areas or share.areas & other.areas
            if same_area and _meet(share, other):
                row.refuse(f"overlaps another share {name!r} on the same days and areas")
            if other.kind is not share.kind:
                row.refuse(f"kind: expected {other.kind.value} as the other share {name!r}, got {share.kind.value}")
        shares.append((share, row))
    return tuple(share for share, _ in shares)


def _areas(row: _Table) -> list[str]:
    areas = row.fields.get("areas", [])
    if not isinstance(areas, list) or not all(isinstance(each, str) and _NAME.fullmatch(each) for each in areas):
        row.refuse(f"areas: expected a list of area types such as urban, got {areas!r}")
    return areas


def _fppca(top: _Table, lines: dict[tuple[str, int], int]) -> tuple[Fppca, ...]:
    found: list[Fppca] = []
    rates = {"rate_milli_per_kwh": 1, "credit_milli_per_kwh": -1}
    for row in top.rows("fppca", lines, {*rates, "since", "until"}):
        given = [key for key in rates if key in row.fields]
        if len(given) != 1:
            row.refuse(f"expected one of {' or '.join(rates)}, got {len(given)}")
        since, until = row.days()
        each = Fppca(milli_per_kwh=rates[given[0]] * row.whole(given[0], RATE_MILLI_MAX), since=since, until=until)
        if any(_meet(each, other) for other in found):
            row.refuse("overlaps another adjustment on the same days")
        found.append(each)
    return tuple(found)


def _subsidy(top: _Table, lines: dict[tuple[str, int], int], shares: set[str]) -> Subsidy | None:
    if "subsidy" not in top.fields:
        return None
    table = top.table("subsidy", lines, {"kwh_per_month", "covers", "beyond"})
    covers = table.names("covers", (*_SUBSIDY_MAY_COVER, *sorted(shares)))
    if not covers:
        table.refuse("covers: expected the lines that the state pays, got none")
    to_wh = table.whole("kwh_per_month", ENERGY_WH_MAX // 1000, least=1) * 1000
    return Subsidy(to_wh=to_wh, covers=covers, beyond=table.choice("beyond", Beyond))


def _zones(top: _Table, lines: dict[tuple[str, int], int]) -> Zones | None:
    if "zones" not in top.fields:
        return None
    table = top.table("zones", lines, {"zone", "season", "hours", "weekend", "holidays"})
    names, milli = _zone_rates(table, lines)
    seasons = _seasons(table, lines)
    holidays = table.fields.get("holidays", [])
    if not isinstance(holidays, list) or not all(type(each) is date for each in holidays):
        table.refuse(f"holidays: expected a list of dates, got {holidays!r}")
    return Zones(
        names=names,
        milli_per_kwh=milli,
        seasons=seasons,
        weekend=frozenset(_WEEKDAYS.index(day) for day in table.names("weekend", _WEEKDAYS)),
        holidays=frozenset(holidays),
        # Two runs of days in a year may be one season: its hours are read once.
        hours=_hours(table, lines, names, list(dict.fromkeys(season.name for season in seasons)) or [""]),
    )


def _zone_rates(table: _Table, lines: dict[tuple[str, int], int]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    signs = {"surcharge_milli_per_kwh": 1, "rebate_milli_per_kwh": -1}
    found: dict[str, int] = {}
    for row in table.rows("zone", lines, {"name", *signs}):
        given = [key for key in signs if key in row.fields]
        if len(given) > 1:
            row.refuse(f"expected at most one of {' or '.join(signs)}, got {len(given)}")
        name = row.name("name")
        if name in found:
            row.refuse(f"name: expected a new zone, got {name!r} again")
        found[name] = signs[given[0]] * row.whole(given[0], RATE_MILLI_MAX) if given else 0
    if not found:
        table.refuse("expected one or more [[zones.zone]] tables, got none")
    return tuple(found), tuple(found.values())


def _seasons(table: _Table, lines: dict[tuple[str, int], int]) -> tuple[Season, ...]:
    seasons: list[Season] = []
    covered: dict[date, str] = {}
    for row in table.rows("season", lines, {"name", "first", "last"}):
        season = Season(name=row.name("name"), first=_month_day(row, "first"), last=_month_day(row, "last"))
        for day in _days_of_a_year():
            if season.holds(day):
                if day in covered:
                    row.refuse(f"overlaps season {covered[day]!r} on {day:%m-%d}")
                covered[day] = season.name
        seasons.append(season)
    if seasons:
        missing = next((day for day in _days_of_a_year() if day not in covered), None)
        if missing is not None:
            table.refuse(f"seasons: expected every day of the year to be in one, got none on {missing:%m-%d}: a gap")
    return tuple(seasons)


def _hours(
    table: _Table, lines: dict[tuple[str, int], int], names: tuple[str, ...], seasons: list[str]
) -> dict[tuple[str, bool], tuple[tuple[int, int], ...]]:
    minutes: dict[tuple[str, bool], list[int | None]] = {
        (season, holiday): [None] * DAY_MINUTES for season in seasons for holiday in (False, True)
    }
    kinds = {"all": (False, True), "working": (False,), "holiday": (True,)}
    for row in table.rows("hours", lines, {"zone", "season", "days", "from", "to"}):
        zone, days = row.text("zone", ""), row.text("days", "all")
        if zone not in names:
            row.refuse(f"zone: expected one of {', '.join(names)}, got {zone!r}")
        if days not in kinds:
            row.refuse(f"days: expected one of {', '.join(kinds)}, got {days!r}")
        season = row.text("season", "")
        if season and season not in seasons:
            row.refuse(f"season: expected one of {', '.join(seasons)}, got {season!r}")
        first, last = _minute(row, "from"), _minute(row, "to")
        span = range(first, last) if first < last else (*range(first, DAY_MINUTES), *range(last))
        for key in itertools.product([season] if season else seasons, kinds[days]):
            for minute in span:
                if minutes[key][minute] is not None:
                    row.refuse(f"overlaps other hours at {minute // 60:02d}:{minute % 60:02d} on {_named(key)}")
                minutes[key][minute] = names.index(zone)
    return {key: _as_starts(table, key, row) for key, row in minutes.items()}


def _as_starts(table: _Table, key: tuple[str, bool], minutes: list[int | None]) -> tuple[tuple[int, int], ...]:
    starts: list[tuple[int, int]] = []
    for minute, number in enumerate(minutes):
        if number is None:
            clock = f"{minute // 60:02d}:{minute % 60:02d}"
            table.refuse(f"hours: expected a zone for every minute, got none at {clock} on {_named(key)}: a gap")
        if not starts or starts[-1][1] != number:
            starts.append((minute, number))
    return tuple(starts)


def _named(key: tuple[str, bool]) -> str:
    season, holiday = key
    return f"{'holidays' if holiday else 'working days'}{f' of {season}' if season else ''}"


def _minute(row: _Table, key: str) -> int:
    match = _CLOCK.fullmatch(row.text(key, ""))
    minute = int(match[1]) * 60 + int(match[2]) if match and int(match[2]) < 60 else -1
    if not 0 <= minute <= DAY_MINUTES:
        row.refuse(f"{key}: expected a time from 00:00 to 24:00, got {row.fields.get(key)!r}")
    return minute


def _month_day(row: _Table, key: str) -> tuple[int, int]:
    match = _MONTH_DAY.fullmatch(row.text(key, ""))
    try:
        day = date(_A_LEAP_YEAR, int(match[1]), int(match[2])) if match else None
    except ValueError:
        day = None
    if day is None:
        row.refuse(f"{key}: expected a month and day such as 04-01, got {row.fields.get(key)!r}")
    return day.month, day.day


def _days_of_a_year() -> Iterator[date]:
    return (date(_A_LEAP_YEAR, 1, 1) + timedelta(days=number) for number in range(366))


def _meet(left: Share | Fppca, right: Share | Fppca) -> bool:
    """Tell whether two things hold on a common day."""
    return (left.since or date.min) <= (right.until or date.max) and (right.since or date.min) <= (
        left.until or date.max
    )


def _change_days(shares: tuple[Share, ...], fppca: tuple[Fppca, ...]) -> tuple[date, ...]:
    days: set[date] = set()
    holding: tuple[Share | Fppca, ...] = (*shares, *fppca)
    for each in holding:
        if each.since is not None:
            days.add(each.since)
        if each.until is not None and each.until < date.max:
            days.add(each.until + timedelta(days=1))
    return tuple(sorted(day for day in days if day.day > 1))


def _header_lines(text: str) -> dict[tuple[str, int], int]:
    """Return the line of each table header, by its name and number among those of the same name."""
    found: dict[tuple[str, int], int] = {}
    for line, content in enumerate(text.splitlines(), start=1):
        match = _HEADER.match(content)
        if match:
            number = 0
            while (match[1], number) in found:
                number += 1
            found[match[1], number] = line
    return found
