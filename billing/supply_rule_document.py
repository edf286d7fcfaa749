"""Supply rules documents: TOML text to `SupplyRules`, every rule checked, errors that name the line and the rule.

Stage: where supply rules enter. Takes the text of a document, returns the value or refuses it as a whole; the form is
described in docs/supply-policy.md. Never touches accounts or what is in force.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection, Iterable, Mapping
from datetime import date, timedelta
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Any, NoReturn

from billing.money import BillingError
from billing.supply_policy import ANY_TIME, DAY_MINUTES, HORIZON_DAYS, Holiday, Scheme, SupplyRules, Window
from billing.tariff import LOAD_W_MAX
from billing.toml_lines import Path, lines_by_path

BUILTIN_SUPPLY_RULES = "punjab"
# The order of a whole state has some hundred lines; nothing a person wrote comes near a megabyte.
DOCUMENT_CHARACTERS_MAX = 1_000_000
TEXT_LENGTH_MAX = 300
CATEGORY_LENGTH_MAX = 32
# A month: the longest grace that the field knows (Uttar Pradesh, after a conversion).
EMERGENCY_DAYS_MAX = 30
# Governments publish next year's holidays, not those of a decade.
HOLIDAY_DAYS_MAX = 5 * 366
WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")

_HEAD = {"id", "title", "source", "effective_from", "default", "category", "scheme", "holiday"}
_SCHEME = {"title", "source", "exempt", "window", "not_on_holidays", "not_on_saturdays", "emergency_days", "limit_w"}
_EXEMPT_SCHEME = {"title", "source", "exempt"}
_ID = re.compile(r"[a-z0-9][a-z0-9.-]{0,63}", re.ASCII)
_NAME = re.compile(r"[a-z][a-z_0-9]{0,31}", re.ASCII)
_CLOCK = re.compile(r"(\d\d):(\d\d)", re.ASCII)
_MONTH_DAY = re.compile(r"(\d\d)-(\d\d)", re.ASCII)
# A month has at most five Saturdays.
_SATURDAYS_MAX = 5
# 2000 is a leap year: every month and day exists in it.
_A_LEAP_YEAR = 2000
# Any other is a slip of the finger.
_YEARS = range(2000, 2200)


class SupplyRulesError(BillingError):
    """A supply rules document breaks a rule; the message names document, line, table and rule."""

    code = "supply_rules_error"


def parse_supply_rules(text: str) -> SupplyRules:
    """Read a supply rules document.

    Raises: SupplyRulesError naming the line and the rule that is broken.
    """
    document, lines = _load(text)
    name = document.get("id")
    if not isinstance(name, str) or not _ID.fullmatch(name):
        rule = f"id: expected a-z, 0-9, dots and dashes, at most 64, got {_shown(name)}"
        raise SupplyRulesError(f"supply rules document, line {lines.get(('id',), 1)}: {rule}")
    top = _Table(name, document, (), lines)
    top.require_known(_HEAD)
    effective_from = top.day("effective_from")
    if effective_from.year not in _YEARS:
        top.refuse(f"effective_from: expected a year from 2000 to 2199, got {effective_from}", "effective_from")
    holidays = _holidays(top, effective_from)
    schemes = {each: _scheme(top.table("scheme"), each, holidays) for each in top.table("scheme").fields}
    for scheme in schemes.values():
        _require_cut_days(top.table("scheme").table(scheme.name), scheme, effective_from, holidays)
    category = top.table("category")
    return SupplyRules(
        id=name,
        title=top.text("title"),
        source=top.text("source"),
        effective_from=effective_from,
        default=_chosen(top, "default", schemes),
        schemes=tuple(schemes.values()),
        categories=MappingProxyType(
            {_category(category, each): _chosen(category, each, schemes) for each in category.fields}
        ),
        holidays=holidays,
    )


def builtin_supply_documents() -> dict[str, str]:
    """Return the texts of the documents that ship with the product, by id."""
    folder = resources.files("billing") / "supply_rules"
    files = [entry for entry in folder.iterdir() if entry.name.endswith(".toml")]
    return {entry.name.removesuffix(".toml"): entry.read_text(encoding="utf-8") for entry in files}


@cache
def builtin_supply_rules() -> SupplyRules:
    """Return the rules that hold before the utility's first document."""
    return parse_supply_rules(builtin_supply_documents()[BUILTIN_SUPPLY_RULES])


def _load(text: str) -> tuple[dict[str, Any], Mapping[Path, int]]:
    """Read TOML; return its value, untyped until each field is read, and the lines of its parts."""
    if len(text) > DOCUMENT_CHARACTERS_MAX:
        raise SupplyRulesError(
            f"supply rules document: expected at most {DOCUMENT_CHARACTERS_MAX} characters, got {len(text)}"
        )
    # As TOML reads it, and as editors count lines.
    text = text.replace("\r\n", "\n")
    try:
        return tomllib.loads(text), lines_by_path(text)
    except RecursionError:
        raise SupplyRulesError("supply rules document: expected TOML, got lists nested without end") from None
    except ValueError as error:
        # A number of thousands of digits is a plain ValueError.
        raise SupplyRulesError(f"supply rules document: expected TOML, {error}") from error


class _Table:
    """One table of a document; reads fields and refuses what breaks a rule, with the line of the field."""

    def __init__(self, document: str, fields: dict[str, Any], path: Path, lines: Mapping[Path, int]) -> None:
        self._document = document
        self._path = path
        self._lines = lines
        # Untyped until each field is read.
        self.fields = fields

    def refuse(self, rule: str, key: str | None = None) -> NoReturn:
        """Refuse the document at a field, or at the table."""
        path = self._path if key is None else (*self._path, key)
        while path and path not in self._lines:
            path = path[:-1]
        raise SupplyRulesError(
            f"supply rules {self._document}, line {self._lines.get(path, 1)}, {self._what()}: {rule}"
        )

    def require_known(self, known: Collection[str]) -> None:
        for key in self.fields:
            if key not in known:
                self.refuse(f"expected only {', '.join(sorted(known))}, got {key}", key)

    def rows(self, key: str, known: Collection[str]) -> list[_Table]:
        """Return the tables of an array of tables, none if there is none."""
        rows = self.fields.get(key, [])
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            self.refuse(f"{key}: expected [[{key}]] tables, got {_shown(rows)}", key)
        tables = [_Table(self._document, row, (*self._path, key, n), self._lines) for n, row in enumerate(rows)]
        for table in tables:
            table.require_known(known)
        return tables

    def table(self, key: str) -> _Table:
        """Return a table, an empty one if there is none."""
        fields = self.fields.get(key, {})
        if not isinstance(fields, dict):
            self.refuse(f"{key}: expected a table, got {_shown(fields)}", key)
        return _Table(self._document, fields, (*self._path, key), self._lines)

    def text(self, key: str) -> str:
        """Return a text of one line that must be there."""
        value = self.fields.get(key)
        if not isinstance(value, str) or not 0 < len(value) <= TEXT_LENGTH_MAX or not value.isprintable():
            self.refuse(f"{key}: expected one line of text, at most {TEXT_LENGTH_MAX} long, got {_shown(value)}", key)
        return value

    def flag(self, key: str) -> bool:
        """Return true or false; false if it is not there."""
        value = self.fields.get(key, False)
        if not isinstance(value, bool):
            self.refuse(f"{key}: expected true or false, got {_shown(value)}", key)
        return value

    def whole(self, key: str, most: int) -> int:
        """Return a whole number, 1 or more, that must be there."""
        value = self.fields.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
            self.refuse(f"{key}: expected a whole number from 1 to {most}, got {_shown(value)}", key)
        return value

    def several(self, key: str, allowed: Collection[object], expected: str) -> list[Any]:
        """Return a list of different values, one or more, each out of those allowed."""
        value = self.fields.get(key)
        if not isinstance(value, list) or not value:
            self.refuse(f"{key}: expected a list of {expected}, got {_shown(value)}", key)
        for place, each in enumerate(value):
            # To Python, true is 1.
            if isinstance(each, bool) or each not in allowed or each in value[:place]:
                self.refuse(f"{key}: expected {expected}, each once, got {_shown(each)}", key)
        return value

    def day(self, key: str) -> date:
        """Return a day that must be there."""
        value = self.fields.get(key)
        # A TOML date with a time is read as a datetime, which Python counts among the dates.
        if type(value) is not date:
            self.refuse(f"{key}: expected a date such as 2026-12-25, got {_shown(value)}", key)
        return value

    def minute(self, key: str) -> int:
        """Return a local time as minutes of the day; 24:00 ends it."""
        value = self.fields.get(key)
        match = _CLOCK.fullmatch(value) if isinstance(value, str) else None
        minute = int(match[1]) * 60 + int(match[2]) if match and int(match[2]) < 60 else -1
        if not 0 <= minute <= DAY_MINUTES:
            self.refuse(f"{key}: expected a time from 00:00 to 24:00, got {_shown(value)}", key)
        return minute

    def month_day(self, key: str) -> tuple[int, int]:
        """Return a month and a day of it."""
        value = self.fields.get(key)
        match = _MONTH_DAY.fullmatch(value) if isinstance(value, str) else None
        try:
            day = date(_A_LEAP_YEAR, int(match[1]), int(match[2])) if match else None
        except ValueError:
            day = None
        if day is None:
            self.refuse(f"{key}: expected a month and day such as 12-25, got {_shown(value)}", key)
        return day.month, day.day

    def _what(self) -> str:
        """Name the table as the document writes it: `[scheme.x]`, or `[[holiday]] 2` for the second."""
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
    return "nothing" if value is None else repr(value)[:80]


def _scheme(table: _Table, name: str, holidays: Iterable[Holiday]) -> Scheme:
    if not _NAME.fullmatch(name):
        table.refuse(f"expected a name of a-z, 0-9 and _, at most 32, got {_shown(name)}", name)
    own = table.table(name)
    exempt = own.flag("exempt")
    own.require_known(_EXEMPT_SCHEME if exempt else _SCHEME)
    kept = list(holidays) if own.flag("not_on_holidays") else []
    if own.flag("not_on_holidays") and not kept:
        own.refuse("not_on_holidays: expected [[holiday]] tables beside it, got none", "not_on_holidays")
    return Scheme(
        name=name,
        title=own.text("title"),
        source=own.text("source"),
        exempt=exempt,
        windows=_windows(own),
        holidays=frozenset(each.day for each in kept if each.day is not None),
        yearly_holidays=frozenset(each.month_day for each in kept if each.month_day is not None),
        not_on_saturdays=_saturdays(own),
        emergency_days=own.whole("emergency_days", EMERGENCY_DAYS_MAX) if "emergency_days" in own.fields else 0,
        limit_w=own.whole("limit_w", LOAD_W_MAX) if "limit_w" in own.fields else None,
    )


def _saturdays(scheme: _Table) -> tuple[int, ...]:
    if "not_on_saturdays" not in scheme.fields:
        return ()
    return tuple(scheme.several("not_on_saturdays", range(1, _SATURDAYS_MAX + 1), "Saturdays of a month from 1 to 5"))


def _windows(scheme: _Table) -> tuple[tuple[Window, ...], ...]:
    """Return the windows of each weekday: any time of any day where the scheme names none."""
    if "window" not in scheme.fields:
        return ANY_TIME
    windows: dict[str, list[Window]] = {weekday: [] for weekday in WEEKDAYS}
    for row in scheme.rows("window", {"days", "from", "to"}):
        first, last = row.minute("from"), row.minute("to")
        if last <= first:
            row.refuse(
                f"to: expected a time after {clock(first)}, got {clock(last)}; past midnight is a window of"
                " its own on the day after",
                "to",
            )
        for weekday in row.several("days", WEEKDAYS, f"weekdays out of {', '.join(WEEKDAYS)}"):
            for other in windows[weekday]:
                if first < other[1] and other[0] < last:
                    row.refuse(f"expected no overlap on {weekday}, got {_told((first, last))} and {_told(other)}")
            windows[weekday].append((first, last))
    return tuple(tuple(sorted(windows[weekday])) for weekday in WEEKDAYS)


def _holidays(top: _Table, effective_from: date) -> tuple[Holiday, ...]:
    holidays: list[Holiday] = []
    last_day = effective_from + timedelta(days=HOLIDAY_DAYS_MAX)
    for row in top.rows("holiday", {"name", "day", "each_year"}):
        if ("day" in row.fields) == ("each_year" in row.fields):
            row.refuse("expected either day or each_year")
        day = row.day("day") if "day" in row.fields else None
        month_day = row.month_day("each_year") if day is None else None
        if day is not None and day > last_day:
            row.refuse(f"day: expected {last_day} or before, got {day}", "day")
        holiday = Holiday(name=row.text("name"), day=day, month_day=month_day)
        for other in holidays:
            if _same_day(holiday, other):
                row.refuse(f"expected each holiday once, got {holiday.name} on the day of {other.name}")
        holidays.append(holiday)
    return tuple(holidays)


def _same_day(left: Holiday, right: Holiday) -> bool:
    """Tell whether two holidays fall on a common day."""
    if left.day is not None and right.day is not None:
        return left.day == right.day
    ways = [(each.day.month, each.day.day) if each.day is not None else each.month_day for each in (left, right)]
    return ways[0] == ways[1]


def _require_cut_days(table: _Table, scheme: Scheme, effective_from: date, holidays: Iterable[Holiday]) -> None:
    """Refuse a scheme that is not exempt and yet has no day to cut for too long: its accounts would never be cut."""
    if scheme.exempt:
        return
    dated = [holiday.day for holiday in holidays if holiday.day is not None]
    last_day = max([effective_from + timedelta(days=366), *dated]) + timedelta(days=HORIZON_DAYS)
    closed, day = 0, effective_from
    while day <= last_day:
        closed = 0 if scheme.windows_on(day) else closed + 1
        if closed == HORIZON_DAYS:
            since = day - timedelta(days=HORIZON_DAYS - 1)
            table.refuse(f"expected a day to cut in any {HORIZON_DAYS}, or exempt = true, got none from {since} on")
        day += timedelta(days=1)


def _category(table: _Table, name: str) -> str:
    if not 0 < len(name) <= CATEGORY_LENGTH_MAX or not name.isprintable():
        table.refuse(f"expected the name of a category, at most {CATEGORY_LENGTH_MAX} long, got {_shown(name)}", name)
    return name


def _chosen(table: _Table, key: str, schemes: Mapping[str, Scheme]) -> Scheme:
    """Return the scheme that a field names."""
    value = table.fields.get(key)
    if not isinstance(value, str) or value not in schemes:
        table.refuse(f"{key}: expected one of the schemes {', '.join(schemes)}, got {_shown(value)}", key)
    return schemes[value]


def _told(window: Window) -> str:
    return f"{clock(window[0])} to {clock(window[1])}"


def clock(minute: int) -> str:
    """Return a minute of the day as a local clock shows it."""
    return f"{minute // 60:02d}:{minute % 60:02d}"
