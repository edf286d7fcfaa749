"""Supply rules documents: TOML text to `SupplyRules`, every rule checked, errors that name the line and the rule.

Stage: where supply rules enter. Takes the text of a document, returns the value or refuses it as a whole; the form is
described in docs/supply-policy.md. Never touches accounts or what is in force.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import date, timedelta
from functools import cache
from importlib import resources
from types import MappingProxyType

from billing.money import BillingError
from billing.supply_policy import ANY_TIME, HORIZON_DAYS, Holiday, Scheme, SupplyRules, Window
from billing.tariff import LOAD_W_MAX
from billing.toml_table import Table, clock, is_name, read_document, shown

BUILTIN_SUPPLY_RULES = "punjab"
CATEGORY_LENGTH_MAX = 32
# A month: the longest grace that the field knows (Uttar Pradesh, after a conversion).
EMERGENCY_DAYS_MAX = 30
# Governments publish next year's holidays, not those of a decade.
HOLIDAY_DAYS_MAX = 5 * 366
WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")

_HEAD = {"id", "title", "source", "effective_from", "default", "category", "scheme", "holiday"}
_SCHEME = {"title", "source", "exempt", "window", "not_on_holidays", "not_on_saturdays", "emergency_days", "limit_w"}
_EXEMPT_SCHEME = {"title", "source", "exempt"}
# A month has at most five Saturdays.
_SATURDAYS_MAX = 5


class SupplyRulesError(BillingError):
    """A supply rules document breaks a rule; the message names document, line, table and rule."""

    code = "supply_rules_error"


def parse_supply_rules(text: str) -> SupplyRules:
    """Read a supply rules document.

    Raises: SupplyRulesError naming the line and the rule that is broken.
    """
    name, top = read_document(text, "supply rules", SupplyRulesError)
    top.require_known(_HEAD)
    effective_from = top.effective_from()
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


def _scheme(table: Table, name: str, holidays: Iterable[Holiday]) -> Scheme:
    if not is_name(name):
        table.refuse(f"expected a name of a-z, 0-9 and _, at most 32, got {shown(name)}", name)
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
        emergency_days=own.whole("emergency_days", EMERGENCY_DAYS_MAX, least=1)
        if "emergency_days" in own.fields
        else 0,
        limit_w=own.whole("limit_w", LOAD_W_MAX, least=1) if "limit_w" in own.fields else None,
    )


def _saturdays(scheme: Table) -> tuple[int, ...]:
    if "not_on_saturdays" not in scheme.fields:
        return ()
    return tuple(scheme.several("not_on_saturdays", range(1, _SATURDAYS_MAX + 1), "Saturdays of a month from 1 to 5"))


def _windows(scheme: Table) -> tuple[tuple[Window, ...], ...]:
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


def _holidays(top: Table, effective_from: date) -> tuple[Holiday, ...]:
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


def _require_cut_days(table: Table, scheme: Scheme, effective_from: date, holidays: Iterable[Holiday]) -> None:
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


def _category(table: Table, name: str) -> str:
    if not 0 < len(name) <= CATEGORY_LENGTH_MAX or not name.isprintable():
        table.refuse(f"expected the name of a category, at most {CATEGORY_LENGTH_MAX} long, got {shown(name)}", name)
    return name


def _chosen(table: Table, key: str, schemes: Mapping[str, Scheme]) -> Scheme:
    """Return the scheme that a field names."""
    value = table.fields.get(key)
    if not isinstance(value, str) or value not in schemes:
        table.refuse(f"{key}: expected one of the schemes {', '.join(schemes)}, got {shown(value)}", key)
    return schemes[value]


def _told(window: Window) -> str:
    return f"{clock(window[0])} to {clock(window[1])}"
