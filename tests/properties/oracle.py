"""A second opinion on a bill, from the words of the tariff document alone.

Stage: the judge of the property tests. Takes the opening, the readings as instants and energy, what the account was
assigned to from which day (documents as text), a zone and the days' demands; returns the bill of each bill part.
Exact fractions and wall-clock datetimes; it shares no code, no data and no way of working with the product it judges.

The rules. Days are local days; a new bill part begins with each month, each assignment, and each day on which a share
or adjustment of the document in force begins or has ended. What was used until an instant between two readings is
shared by time between those two, whole Wh, the remainder later; after the last reading nothing more is known. Every
line of a part is rounded once, a half away from zero; shares are taken of rounded lines.

Slabs: under `part_months = "whole"` the limits are the month's and a part goes on where the part before it in the
month stood. Under `"pro_rata"` each assignment's days of a month begin at 0 with that share of the limits, whole Wh.
"""

from __future__ import annotations

import tomllib
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from fractions import Fraction
from functools import lru_cache
from math import floor
from typing import Any
from zoneinfo import ZoneInfo

ONE_DAY = timedelta(days=1)
MILLI = Fraction(1, 1000)
WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")

# An instant and the energy to date at it.
Seen = tuple[datetime, int]
# A tariff document as TOML has it.
Document = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Assigned:
    """What an account is charged by from a day on; `text` is the tariff document."""

    from_day: date
    text: str
    load_w: int
    area: str
    meter_rent: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Used:
    """What one part of a bill is for. `limits_share` of the month's slab limits hold."""

    before_wh: int
    energy_wh: int
    zone_wh: dict[str, int]
    days: int
    month_days: int
    limits_share: Fraction
    demand_w: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Bill:
    """Energy and the lines that are not zero, in minor units."""

    energy_wh: int
    lines: dict[str, int]

    @property
    def total_minor(self) -> int:
        return sum(self.lines.values())


def bill(
    opened: Seen,
    readings: Iterable[Seen],
    *,
    assigned: Sequence[Assigned],
    zone_name: str,
    accrued_to: date | None = None,
    demands_w: Mapping[date, int] | None = None,
) -> dict[date, Bill]:
    """Return each bill part by its first day.

    `accrued_to` is a local day up to which days accrue although no reading has been taken on it.
    """
    zone = ZoneInfo(zone_name)
    curve = _Curve(opened, readings)
    first_day, last_day = (_utc(at).astimezone(zone).date() for at in (curve.instants[0], curve.instants[-1]))
    if accrued_to is not None:
        last_day = max(last_day, accrued_to)
    bills: dict[date, Bill] = {}
    before_wh = 0
    for days in _parts(first_day, last_day, assigned):
        held = _held_on(days[0], assigned)
        document = _document(held.text)
        month = _month_days(days[0])
        whole = document.get("slabs", {}).get("part_months", "whole") == "whole"
        stretch = [day for day in month if day >= first_day and (whole or _held_on(day, assigned) is held)]
        if days[0] == stretch[0]:
            before_wh = 0
        used = Used(
            before_wh=before_wh,
            energy_wh=curve.at(_midnight(days[-1] + ONE_DAY, zone)) - curve.at(_midnight(days[0], zone)),
            zone_wh=_zone_wh(curve, days, held.text, zone_name),
            days=sum(day <= last_day for day in days),
            month_days=len(month),
            limits_share=Fraction(1) if whole else Fraction(len(stretch), len(month)),
            demand_w=max((demands_w or {}).get(day, 0) for day in days),
        )
        bills[days[0]] = Bill(energy_wh=used.energy_wh, lines=rate(held, days[0], used))
        before_wh += used.energy_wh
    return bills


def by_month(bills: Mapping[date, Bill]) -> dict[date, Bill]:
    """Add up parts to months, leaving out lines that come to zero."""
    months: dict[date, Bill] = {}
    for first, part in bills.items():
        month = date(first.year, first.month, 1)
        lines = dict(months[month].lines) if month in months else {}
        for name, amount in part.lines.items():
            lines[name] = lines.get(name, 0) + amount
        energy_wh = part.energy_wh + (months[month].energy_wh if month in months else 0)
        months[month] = Bill(energy_wh=energy_wh, lines={name: amount for name, amount in lines.items() if amount})
    return months


def total_minor(bills: Mapping[date, Bill]) -> int:
    """Return what all parts together cost, in minor units."""
    return sum(part.total_minor for part in bills.values())


def rate(held: Assigned, day: date, used: Used) -> dict[str, int]:
    """Return the lines of one part, those that are zero left out."""
    document = _document(held.text)
    lines = _lines_before_subsidy(document, held, day, used)
    if "subsidy" in document:
        lines["subsidy"] = -_subsidised(document, held, day, used)
    return {name: amount for name, amount in lines.items() if amount}


def day_zones(text: str, zone_name: str, day: date) -> tuple[tuple[datetime, str], ...]:
    """Return when each zone of a local day begins, those without any time left out.

    A time that the clock shows twice is the second showing; one that it skips is counted from before the change.
    """
    return _day_zones(text, zone_name, day)


def _lines_before_subsidy(document: Document, held: Assigned, day: date, used: Used) -> dict[str, int]:
    kw = Fraction(held.load_w, 1000)
    band = next(row for row in document["band"] if held.load_w <= row.get("to_load_w", held.load_w))
    of_month = Fraction(used.days, used.month_days)
    kwh = Fraction(used.energy_wh, 1000)
    lines = _slab_lines(document, band, used)
    for row in document.get("zones", {}).get("zone", []):
        milli = row.get("surcharge_milli_per_kwh", -row.get("rebate_milli_per_kwh", 0))
        lines[f"zone_{row['name']}"] = _rounded(Fraction(used.zone_wh[row["name"]], 1000) * milli * MILLI)
    for row in document.get("fppca", []):
        if _holds(row, day):
            milli = row.get("rate_milli_per_kwh", -row.get("credit_milli_per_kwh", 0))
            lines["fppca"] = _rounded(kwh * milli * MILLI)
    lines["fixed"] = _rounded(_a_month(band, "fixed_", kw) * of_month)
    if held.meter_rent:
        lines["meter_rent"] = _rounded(_a_month(document.get("meter_rent", {}), "", kw) * of_month)
    excess_kw = max(Fraction(used.demand_w, 1000) - kw, Fraction(0))
    lines["demand"] = _rounded(band.get("demand_milli_per_kw_month", 0) * MILLI * excess_kw * of_month)
    least = _a_month(band, "minimum_", kw)
    if least:
        tops_up = document.get("minimum_of", ["energy", "zone", "fppca", "fixed"])
        lines["minimum"] = max(0, _rounded(least * of_month) - _sum_of(lines, tops_up))
    for row in document.get("share", []):
        if _holds(row, day) and held.area in row.get("areas", [held.area]):
            amount = _rounded(Fraction(row["basis_points"], 10_000) * max(0, _sum_of(lines, row["of"])))
            lines[row["name"]] = -amount if row["kind"] == "rebate" else amount
    return lines


def _slab_lines(document: Document, band: Document, used: Used) -> dict[str, int]:
    limits = [floor(row["to_kwh"] * 1000 * used.limits_share) if "to_kwh" in row else None for row in band["energy"]]
    prices = [row["rate_milli_per_kwh"] * MILLI / 1000 for row in band["energy"]]
    after_wh = used.before_wh + used.energy_wh
    if document.get("slabs", {}).get("kind", "telescopic") == "telescopic":
        # What lies below a slab's limit counts for it, less what lies below the limit before.
        below = [(after_wh if limit is None else min(after_wh, limit)) for limit in limits]
        was = [(used.before_wh if limit is None else min(used.before_wh, limit)) for limit in limits]
        taken = [new - old for new, old in zip(below, was, strict=True)]
        inside = [wh - less for wh, less in zip(taken, [0, *taken], strict=False)]
        priced = zip(inside, prices, strict=True)
        return {f"energy_{number}": _rounded(wh * price) for number, (wh, price) in enumerate(priced, start=1)}

    def reached(energy_wh: int) -> int:
        return sum(limit is not None and energy_wh > limit for limit in limits)

    new, old = reached(after_wh), reached(used.before_wh)
    if new == old:
        return {f"energy_{new + 1}": _rounded(used.energy_wh * prices[new])}
    return {
        f"energy_{old + 1}": -_rounded(used.before_wh * prices[old]),
        f"energy_{new + 1}": _rounded(after_wh * prices[new]),
    }


def _subsidised(document: Document, held: Assigned, day: date, used: Used) -> int:
    """Return what the state pays: the lines it covers, of a bill of no more than the units it pays for."""
    row = document["subsidy"]
    limit_wh = floor(row["kwh_per_month"] * 1000 * used.limits_share)
    if row["beyond"] == "all" and used.before_wh + used.energy_wh > limit_wh:
        return 0
    paid_wh = min(used.energy_wh, max(0, limit_wh - used.before_wh))
    zone_wh = {name: wh * paid_wh // used.energy_wh if used.energy_wh else wh for name, wh in used.zone_wh.items()}
    capped = Used(
        before_wh=used.before_wh,
        energy_wh=paid_wh,
        zone_wh=zone_wh,
        days=used.days,
        month_days=used.month_days,
        limits_share=used.limits_share,
        demand_w=used.demand_w,
    )
    return max(0, _sum_of(_lines_before_subsidy(document, held, day, capped), row["covers"]))


def _sum_of(lines: Mapping[str, int], names: Iterable[str]) -> int:
    """Add up lines by their own names or the names of their groups."""
    wanted = set(names)
    groups = {"energy", "zone"} & wanted
    return sum(amount for name, amount in lines.items() if name in wanted or name.split("_")[0] in groups)


def _a_month(table: Mapping[str, int], prefix: str, kw: Fraction) -> Fraction:
    for per, times in (("per_kw_month", kw), ("per_kva_month", kw), ("per_month", Fraction(1))):
        if f"{prefix}milli_{per}" in table:
            return table[f"{prefix}milli_{per}"] * MILLI * times
    return Fraction(0)


def _rounded(exact: Fraction) -> int:
    # A half goes away from zero.
    amount = floor(abs(exact) + Fraction(1, 2))
    return amount if exact >= 0 else -amount


def _holds(row: Mapping[str, Any], day: date) -> bool:
    since, until = row.get("since", day), row.get("until", day)
    return bool(since <= day <= until)


def _parts(first_day: date, last_day: date, assigned: Sequence[Assigned]) -> Iterator[list[date]]:
    """Yield the days of each bill part, to the end of the part that holds the last day."""
    days = [first_day]
    while True:
        day = days[-1] + ONE_DAY
        held = _held_on(day, assigned)
        edges = {held.from_day, day.replace(day=1)}
        for row in (*_document(held.text).get("share", []), *_document(held.text).get("fppca", [])):
            edges |= {row[key] + shift for key, shift in (("since", 0 * ONE_DAY), ("until", ONE_DAY)) if key in row}
        if day in edges:
            yield days
            days = []
            if day > last_day:
                return
        days.append(day)


def _held_on(day: date, assigned: Sequence[Assigned]) -> Assigned:
    return max((each for each in assigned if each.from_day <= day), key=lambda each: each.from_day)


def _month_days(day: date) -> list[date]:
    first = date(day.year, day.month, 1)
    return [first + number * ONE_DAY for number in range(31) if (first + number * ONE_DAY).month == day.month]


def _zone_wh(curve: _Curve, days: Sequence[date], text: str, zone_name: str) -> dict[str, int]:
    """Add up the energy of each zone, from each of its edges to the next."""
    used = {row["name"]: 0 for row in _document(text).get("zones", {}).get("zone", [])}
    if not used:
        return {}
    edges = [edge for day in days for edge in _day_zones(text, zone_name, day)]
    ends = [at for at, _ in edges[1:]] + [_midnight(days[-1] + ONE_DAY, ZoneInfo(zone_name))]
    for (start, name), end in zip(edges, ends, strict=True):
        used[name] += curve.at(end) - curve.at(start)
    return used


# A story is judged after each of its events: its documents and days are the same ones again and again.
@lru_cache(maxsize=512)
def _document(text: str) -> Document:
    return tomllib.loads(text)


@lru_cache(maxsize=16_384)
def _day_zones(text: str, zone_name: str, day: date) -> tuple[tuple[datetime, str], ...]:
    zone = ZoneInfo(zone_name)
    shown = _zone_of_each_minute(text, day)
    changes = [minute for minute in range(1440) if minute == 0 or shown[minute] != shown[minute - 1]]
    found: list[tuple[datetime, str]] = []
    for minute in changes:
        at = _midnight(day, zone) if minute == 0 else _clock(day, minute, zone)
        # Where clocks skip, a zone may be due only after the next one has begun: it is left out.
        found = [edge for edge in found if edge[0] < at]
        found.append((at, shown[minute]))
    return tuple(found)


def _zone_of_each_minute(text: str, day: date) -> list[str]:
    zones = _document(text)["zones"]
    month_day = f"{day:%m-%d}"
    season = ""
    for row in zones.get("season", []):
        inside = (row["first"] <= month_day, month_day <= row["last"])
        if all(inside) or (row["last"] < row["first"] and any(inside)):
            season = row["name"]
    off = day in zones.get("holidays", []) or WEEKDAYS[day.weekday()] in zones.get("weekend", [])
    shown = [""] * 1440
    for row in zones["hours"]:
        if row.get("season", season) == season and row.get("days", "all") in ("all", "holiday" if off else "working"):
            start, end = (int(row[key][:2]) * 60 + int(row[key][3:]) for key in ("from", "to"))
            for number in range((end - start) % 1440 or 1440):
                shown[(start + number) % 1440] = row["zone"]
    return shown


def _clock(day: date, minute: int, zone: ZoneInfo) -> datetime:
    """Return the instant of a clock time, found by looking at clocks."""
    wanted = datetime.combine(day, time(minute // 60, minute % 60))
    near = wanted.replace(tzinfo=UTC)
    offsets = [(near + side * ONE_DAY).astimezone(zone).utcoffset() or timedelta() for side in (-1, 1)]
    showing = [near - offset for offset in offsets if (near - offset).astimezone(zone).replace(tzinfo=None) == wanted]
    return max(showing) if showing else near - offsets[0]


def _midnight(day: date, zone: ZoneInfo) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=zone).astimezone(UTC)


class _Curve:
    """Energy to date at any instant."""

    def __init__(self, opened: Seen, readings: Iterable[Seen]) -> None:
        seen = {_microseconds(at): energy_wh for at, energy_wh in [opened, *readings]}
        self.instants = sorted(seen)
        self._energy_wh = [seen[at] for at in self.instants]

    def at(self, at: datetime) -> int:
        """Before the opening nothing had been used; after the latest reading nothing more is known."""
        instant = _microseconds(at)
        number = bisect_right(self.instants, instant)
        if number == 0:
            return self._energy_wh[0]
        start, start_wh = self.instants[number - 1], self._energy_wh[number - 1]
        if number == len(self.instants) or start == instant:
            return start_wh
        share = Fraction(instant - start, self.instants[number] - start)
        return start_wh + floor((self._energy_wh[number] - start_wh) * share)


def _microseconds(at: datetime) -> int:
    return (at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def _utc(microseconds: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=microseconds)
