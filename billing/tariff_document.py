"""Tariff documents: TOML text to a `Tariff`, every rule checked, errors that name the line and the rule.

Stage: where tariffs enter. Takes the text of a document, returns the value or refuses it as a whole; the form is
described in docs/tariffs.md. Never touches accounts or dates of assignment.
"""

from __future__ import annotations

import itertools
import re
import tomllib
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import date, timedelta
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
from billing.toml_lines import Path, lines_by_path
from billing.zones import DAY_MINUTES, Season, Zones

E = TypeVar("E", bound=Enum)

_FIELDS = {
    "id", "title", "source", "currency", "effective_from", "slabs", "band", "share", "fppca", "zones", "meter_rent",
    "minimum_of", "subsidy",
}  # fmt: skip
_NAME = re.compile(r"[a-z][a-z_0-9]{0,31}", re.ASCII)
_AREA = re.compile(r"[a-z_]{1,32}", re.ASCII)
_ID = re.compile(r"[a-z0-9][a-z0-9.-]{0,63}", re.ASCII)
_CURRENCY = re.compile(r"[A-Z]{3}", re.ASCII)
# ISO 4217 currencies whose minor unit is no hundredth; amounts here always have two decimals (billing.money).
_NOT_IN_HUNDREDTHS = {
    "BHD", "BIF", "CLP", "DJF", "GNF", "IQD", "ISK", "JOD", "JPY", "KMF", "KRW", "KWD", "LYD", "OMR", "PYG", "RWF",
    "TND", "UGX", "VND", "VUV", "XAF", "XOF", "XPF",
}  # fmt: skip
# The order of a whole state has some hundred lines; nothing a person wrote comes near a megabyte.
DOCUMENT_CHARACTERS_MAX = 1_000_000
TEXT_LENGTH_MAX = 300
_CLOCK = re.compile(r"(\d\d):(\d\d)", re.ASCII)
_MONTH_DAY = re.compile(r"(\d\d)-(\d\d)", re.ASCII)
_WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_MONTH_RATES = {"per_kw_month": True, "per_kva_month": True, "per_month": False}
_DEFAULT_MINIMUM_OF = ("energy", "zone", "fppca", "fixed")
# 2000 is a leap year: every month and day of a season exists in it.
_A_LEAP_YEAR = 2000


def parse_tariff(text: str) -> Tariff:
    """Read a tariff document.

    Raises: TariffError naming the line and the rule that is broken.
    """
    document, lines = _load(text)
    name = document.get("id")
    if not isinstance(name, str) or not _ID.fullmatch(name):
        rule = f"id: expected a-z, 0-9, dots and dashes, at most 64, got {_shown(name)}"
        raise TariffError(f"tariff document, line {lines.get(('id',), 1)}: {rule}")
    top = _Table(name, document, (), lines, _FIELDS)
    slabs = top.table("slabs", {"kind", "part_months"})
    shares = _shares(top)
    fppca = _fppca(top)
    return Tariff(
        id=name,
        title=top.text("title", name),
        source=top.text("source", ""),
        currency=_currency(top),
        effective_from=top.day("effective_from"),
        slab_kind=slabs.choice("kind", SlabKind, SlabKind.TELESCOPIC),
        part_months=slabs.choice("part_months", PartMonths, PartMonths.WHOLE),
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


def _load(text: str) -> tuple[dict[str, Any], Mapping[Path, int]]:
    """Read TOML; return its value, untyped until each field is read, and the lines of its parts."""
    if len(text) > DOCUMENT_CHARACTERS_MAX:
        raise TariffError(f"tariff document: expected at most {DOCUMENT_CHARACTERS_MAX} characters, got {len(text)}")
    # As TOML reads it, and as editors count lines.
    text = text.replace("\r\n", "\n")
    try:
        return tomllib.loads(text), lines_by_path(text)
    except RecursionError:
        raise TariffError("tariff document: expected TOML, got tables or lists nested without end") from None
    except ValueError as error:
        # A number of thousands of digits is a plain ValueError.
        raise TariffError(f"tariff document: expected TOML, {error}") from error


class _Table:
    """One table of a document; reads fields and refuses what breaks a rule, with the line of the field."""

    def __init__(
        self,
        tariff: str,
        fields: dict[str, Any],
        path: Path,
        lines: Mapping[Path, int],
        known: Collection[str],
    ) -> None:
        self._tariff = tariff
        self._path = path
        self._lines = lines
        self.fields = fields
        for key in fields:
            if key not in known:
                self.refuse(f"expected only {', '.join(sorted(known))}, got {key}", key)

    def refuse(self, rule: str, key: str | None = None) -> NoReturn:
        """Refuse the document at a field, or at the table."""
        path = self._path if key is None else (*self._path, key)
        while path and path not in self._lines:
            path = path[:-1]
        raise TariffError(f"tariff {self._tariff}, line {self._lines.get(path, 1)}, {self._what()}: {rule}")

    def rows(self, key: str, known: Collection[str]) -> list[_Table]:
        """Return the tables of an array of tables, none if there is none."""
        rows = self.fields.get(key, [])
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            self.refuse(f"{key}: expected [[{key}]] tables, got {_shown(rows)}", key)
        return [
            _Table(self._tariff, row, (*self._path, key, number), self._lines, known) for number, row in enumerate(rows)
        ]

    def table(self, key: str, known: Collection[str]) -> _Table:
        """Return a table, an empty one if there is none."""
        fields = self.fields.get(key, {})
        if not isinstance(fields, dict):
            self.refuse(f"{key}: expected one [{key}] table, got {_shown(fields)}", key)
        return _Table(self._tariff, fields, (*self._path, key), self._lines, known)

    def whole(self, key: str, most: int, *, least: int = 0) -> int:
        """Return a whole number that must be there."""
        value = self.fields.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            self.refuse(f"{key}: expected a whole number from {least} to {most}, got {_shown(value)}", key)
        return value

    def text(self, key: str, default: str) -> str:
        """Return a text of one line."""
        value = self.fields.get(key, default)
        if not isinstance(value, str) or len(value) > TEXT_LENGTH_MAX or not value.isprintable():
            self.refuse(
                f"{key}: expected one line of text of at most {TEXT_LENGTH_MAX} characters, got {_shown(value)}", key
            )
        return value

    def name(self, key: str) -> str:
        """Return a name of a line, zone or season."""
        value = self.text(key, "")
        if not _NAME.fullmatch(value):
            self.refuse(f"{key}: expected a name of a-z, 0-9 and _, at most 32, got {_shown(value)}", key)
        return value

    def names(self, key: str, allowed: Sequence[str], default: tuple[str, ...] = ()) -> tuple[str, ...]:
        """Return a list of names, each out of those allowed and given once."""
        value = self.fields.get(key, list(default))
        if not isinstance(value, list) or len(set(map(str, value))) != len(value):
            self.refuse(f"{key}: expected a list of different names, got {_shown(value)}", key)
        unknown = [each for each in value if each not in allowed]
        if unknown:
            self.refuse(f"{key}: expected names out of {', '.join(allowed)}, got {_shown(unknown[0])}", key)
        return tuple(value)

    def choice(self, key: str, of: type[E], default: E | None = None) -> E:
        """Return one of a closed set."""
        value = self.fields.get(key, None if default is None else default.value)
        try:
            return of(value)
        except ValueError:
            allowed = ", ".join(str(each.value) for each in of)
            self.refuse(f"{key}: expected one of {allowed}, got {_shown(value)}", key)

    def day(self, key: str) -> date:
        """Return a day that must be there."""
        value = self.fields.get(key)
        # A TOML date with a time is read as a datetime, which Python counts among the dates.
        if type(value) is not date:
            self.refuse(f"{key}: expected a date such as 2026-04-01, got {_shown(value)}", key)
        return value

    def days(self) -> tuple[date | None, date | None]:
        """Return the first and last day of what holds for a time."""
        since = self.day("since") if "since" in self.fields else None
        until = self.day("until") if "until" in self.fields else None
        if since is not None and until is not None and until < since:
            self.refuse(f"until: expected {since} or later, got {until}", "until")
        return since, until

    def one_field(self, keys: Collection[str], *, required: bool) -> str | None:
        """Return which one of several fields is given."""
        given = [key for key in self.fields if key in keys]
        if len(given) > 1 or (required and not given):
            many = "exactly" if required else "at most"
            got = " and ".join(given) or "none"
            self.refuse(f"expected {many} one of {', '.join(keys)}, got {got}", given[-1] if given else None)
        return given[0] if given else None

    def _what(self) -> str:
        """Name the table as the document writes it: `[zones]`, or `[[band]] 2` for the second."""
        names = ".".join(str(part) for part in self._path if isinstance(part, str))
        if not names:
            return "the document"
        last = self._path[-1]
        return f"[[{names}]] {last + 1}" if isinstance(last, int) else f"[{names}]"


def _shown(value: object) -> str:
    """Return a value as an error message shows it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, list):
        return f"[{', '.join(map(_shown, value))}]"[:80]
    return "none" if value is None else repr(value)[:80]


def _currency(top: _Table) -> str:
    value = top.text("currency", "INR")
    if not _CURRENCY.fullmatch(value):
        top.refuse(f"currency: expected an ISO 4217 code such as INR, got {value!r}", "currency")
    if value in _NOT_IN_HUNDREDTHS:
        top.refuse(f"currency: expected one that has hundredths, got {value!r}", "currency")
    return value


def _bands(top: _Table) -> tuple[Band, ...]:
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


def _slabs(band: _Table) -> tuple[Slab, ...]:
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


def _require_rising(rows: Sequence[_Table], key: str, limits: Sequence[int | None]) -> None:
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


def _month_rate(table: _Table, prefix: str) -> MonthRate:
    key = table.one_field(_rate_fields(prefix), required=False)
    if key is None:
        return ZERO_RATE
    per = key.removeprefix(f"{prefix}milli_")
    return MonthRate(milli=table.whole(key, MONTH_RATE_MILLI_MAX), per_kw=_MONTH_RATES[per])


def _shares(top: _Table) -> tuple[Share, ...]:
    shares: list[Share] = []
    for row in top.rows("share", {"name", "kind", "of", "basis_points", "areas", "since", "until"}):
        name = row.name("name")
        if name in (*LINE_GROUPS, "subsidy") or name.startswith(("energy_", "zone_")):
            row.refuse(f"name: expected one that no other line has, got {name!r}", "name")
        since, until = row.days()
        share = Share(
            name=name,
            kind=row.choice("kind", ShareKind),
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


def _require_apart(row: _Table, share: Share, earlier: Sequence[Share]) -> None:
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


def _areas(row: _Table) -> frozenset[str]:
    if "areas" not in row.fields:
        return frozenset()
    areas = row.fields["areas"]
    good = isinstance(areas, list) and all(isinstance(each, str) and _AREA.fullmatch(each) for each in areas)
    if not good or not areas or len(set(areas)) != len(areas):
        row.refuse(f"areas: expected a list of different area types such as urban, got {_shown(areas)}", "areas")
    return frozenset(areas)


def _fppca(top: _Table) -> tuple[Fppca, ...]:
    found: list[Fppca] = []
    signs = {"rate_milli_per_kwh": 1, "credit_milli_per_kwh": -1}
    for row in top.rows("fppca", {*signs, "since", "until"}):
        key = row.one_field(signs, required=True)
        assert key is not None, "a required field is there"
        since, until = row.days()
        each = Fppca(milli_per_kwh=signs[key] * row.whole(key, RATE_MILLI_MAX), since=since, until=until)
        if any(_meet(each, other) for other in found):
            row.refuse("overlaps another adjustment on the same days")
        found.append(each)
    return tuple(found)


def _subsidy(top: _Table, shares: Sequence[str]) -> Subsidy | None:
    if "subsidy" not in top.fields:
        return None
    table = top.table("subsidy", {"kwh_per_month", "covers", "beyond"})
    covers = table.names("covers", (*LINE_GROUPS, *dict.fromkeys(shares)))
    if not covers:
        table.refuse("covers: expected the lines that the state pays, got none", "covers")
    to_wh = table.whole("kwh_per_month", ENERGY_WH_MAX // 1000, least=1) * 1000
    return Subsidy(to_wh=to_wh, covers=covers, beyond=table.choice("beyond", Beyond))


def _zones(top: _Table) -> Zones | None:
    if "zones" not in top.fields:
        return None
    table = top.table("zones", {"zone", "season", "hours", "weekend", "holidays"})
    names, milli = _zone_rates(table)
    seasons = _seasons(table)
    holidays = table.fields.get("holidays", [])
    if not isinstance(holidays, list) or not all(type(each) is date for each in holidays):
        table.refuse(f"holidays: expected a list of dates, got {_shown(holidays)}", "holidays")
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


def _zone_rates(table: _Table) -> tuple[tuple[str, ...], tuple[int, ...]]:
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


def _seasons(table: _Table) -> tuple[Season, ...]:
    seasons: list[Season] = []
    covered: dict[date, str] = {}
    for row in table.rows("season", {"name", "first", "last"}):
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
            table.refuse(f"season: expected one for every day, got none on {missing:%m-%d}: a gap", "season")
    return tuple(seasons)


def _hours(
    table: _Table, names: Sequence[str], seasons: Sequence[str]
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
                    row.refuse(f"overlaps other hours at {_clock(minute)} on {_named(key)}")
                minutes[key][minute] = names.index(zone)
    return {key: _as_starts(table, key, row) for key, row in minutes.items()}


def _as_starts(table: _Table, key: tuple[str, bool], minutes: Sequence[int | None]) -> tuple[tuple[int, int], ...]:
    starts: list[tuple[int, int]] = []
    for minute, number in enumerate(minutes):
        if number is None:
            rule = f"expected a zone for every minute, got none at {_clock(minute)} on {_named(key)}: a gap"
            table.refuse(f"hours: {rule}", "hours")
        if not starts or starts[-1][1] != number:
            starts.append((minute, number))
    return tuple(starts)


def _span(row: _Table) -> Sequence[int]:
    """Return the minutes of a day between two clocks; past midnight it goes on in the morning of the same day."""
    first, last = _minute(row, "from", DAY_MINUTES - 1), _minute(row, "to", DAY_MINUTES)
    return range(first, last) if first < last else (*range(first, DAY_MINUTES), *range(last))


def _minute(row: _Table, key: str, most: int) -> int:
    match = _CLOCK.fullmatch(row.text(key, ""))
    minute = int(match[1]) * 60 + int(match[2]) if match and int(match[2]) < 60 else -1
    if not 0 <= minute <= most:
        row.refuse(f"{key}: expected a time from 00:00 to {_clock(most)}, got {_shown(row.fields.get(key))}", key)
    return minute


def _clock(minute: int) -> str:
    return f"{minute // 60:02d}:{minute % 60:02d}"


def _named(key: tuple[str, bool]) -> str:
    season, holiday = key
    return f"{'holidays' if holiday else 'working days'}{f' of {season}' if season else ''}"


def _month_day(row: _Table, key: str) -> tuple[int, int]:
    match = _MONTH_DAY.fullmatch(row.text(key, ""))
    try:
        day = date(_A_LEAP_YEAR, int(match[1]), int(match[2])) if match else None
    except ValueError:
        day = None
    if day is None:
        row.refuse(f"{key}: expected a month and day such as 04-01, got {_shown(row.fields.get(key))}", key)
    return day.month, day.day


def _days_of_a_year() -> Iterator[date]:
    return (date(_A_LEAP_YEAR, 1, 1) + timedelta(days=number) for number in range(366))


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
