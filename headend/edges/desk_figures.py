"""Figures of the desk: a consumer's use beside the period before and others like it; a feeder beside its own meter.

Stage: behind two routes. Enters: an account or feeder with local days. Leaves: JSON values, whole numbers. Never: a
figure of so few consumers that one of them could be told from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import date
from typing import Any

from psycopg import AsyncConnection

from billing.calendar import LocalCalendar, from_ms, to_ms
from billing.zones import zone_clock
from db import desk
from db.accounts import AccountView, look
from headend.edges.desk_rows import read_page
from headend.queries.columns import COLUMNS, QUALITIES, TOTALS, Subject
from headend.queries.errors import QueryRefused
from headend.queries.questions import Interval, Question, Whose, behind
from headend.queries.summary import HourUse, UseSummary, ZoneAt, period_before, summarise

# Fewer than so many, and a neighbour could be told from the figures.
SIMILAR_MIN = 10
_HOURS_A_PAGE = 5_000
_HOUR_MS = 3_600_000

Api = dict[str, Any]  # JSON values of any shape.


@dataclass(frozen=True, slots=True, kw_only=True)
class FiguresAsked:
    """Local days [first, last) of an account or a feeder, by somebody who sees one area or all."""

    name: str
    first: date
    last: date
    only_area: str | None


async def use_of_account(conn: AsyncConnection, asked: FiguresAsked, calendar: LocalCalendar) -> Api:
    """Return what an account used on some days.

    Raises: QueryRefused for an account that is not there, has no billing meter, or is not in the caller's area.
    """
    whose = Whose(account=asked.name, only_area=asked.only_area)
    question = _question(whose, Interval.HOUR, calendar, asked.first, asked.last)
    view, area, category = await _account(conn, question, calendar)
    found = await _rows(conn, question, calendar)
    hours = [
        HourUse(
            started_ms=to_ms(row["started_at"]),
            import_wh=row["import_wh"],
            export_wh=row["export_wh"],
            estimated_wh=row["estimated_wh"],
            demand_w=row["demand_w"],
        )
        for row in found
    ]
    use = summarise(hours, _zones_of(view, calendar))
    before = period_before(asked.first, asked.last)
    previous = await _rows(conn, _question(whose, Interval.DAY, calendar, *before), calendar)
    return {
        "account": view.number,
        "from": str(asked.first),
        "to": str(asked.last),
        **_use_to_api(use),
        "final": all(row["final"] for row in found),
        "peak_at": await _peak_at(conn, question, use, calendar),
        "before": {
            "from": str(before[0]),
            "to": str(before[1]),
            "days": len(previous),
            "import_wh": sum(row["import_wh"] for row in previous),
            "peak_w": max((row["demand_w"] for row in previous if row["demand_w"] is not None), default=None),
        },
        "similar": await _similar(conn, view, asked, calendar, area=area, category=category),
    }


async def losses_of_feeder(conn: AsyncConnection, asked: FiguresAsked, calendar: LocalCalendar) -> Api:
    """Return what went into a feeder by its own meter, what its consumers took, and the rest, by day and together.

    Only days that the feeder's own meter has are put together. A feeder of several areas is nobody's who sees one.
    Raises: QueryRefused.
    """
    if not await desk.may_read_feeder(conn, asked.name, asked.only_area):
        raise QueryRefused("unknown_feeder", f"feeder: expected a known name, got {asked.name}")
    whose = Whose(feeder=asked.name, only_area=asked.only_area)
    question = _question(whose, Interval.DAY, calendar, asked.first, asked.last)
    question = replace(question, total=True, columns=TOTALS)
    page = await read_page(conn, question, calendar)
    taken = {row[0].date(): row for row in page.rows}
    days = []
    for day, import_wh, export_wh, quality in await desk.read_feeder_days(conn, asked.name, asked.first, asked.last):
        _, meters, _, taken_wh, given_wh, estimated_wh, *_, final = taken.get(day, (day, 0, 0, 0, None, 0, False))
        into_wh, out_wh = import_wh - (export_wh or 0), taken_wh - (given_wh or 0)
        days.append(
            {
                "day": str(day), "meters": meters, "into_wh": into_wh, "taken_wh": out_wh,
                "losses_wh": into_wh - out_wh, "estimated_wh": estimated_wh, "feeder_quality": QUALITIES[quality],
                "final": final,
            }
        )  # fmt: skip
    into, lost = sum(day["into_wh"] for day in days), sum(day["losses_wh"] for day in days)
    return {
        "feeder": asked.name,
        "from": str(asked.first),
        "to": str(asked.last),
        "days_measured": len(days),
        "into_wh": into,
        "taken_wh": into - lost,
        "losses_wh": lost,
        # Hundredths of a percent would be too fine for what splits at midnight cost.
        "losses_milli": lost * 1_000 // into if into > 0 else None,
        "days": days,
    }


def _question(whose: Whose, interval: Interval, calendar: LocalCalendar, first: date, last: date) -> Question:
    return Question(
        subject=Subject.PROFILES,
        whose=whose,
        from_ms=calendar.midnight_ms(first),
        to_ms=calendar.midnight_ms(last),
        interval=interval,
        columns=COLUMNS[Subject.PROFILES],
        total=False,
        limit=_HOURS_A_PAGE,
        after=None,
    )


async def _rows(conn: AsyncConnection, question: Question, calendar: LocalCalendar) -> list[Mapping[str, Any]]:
    """Read all buckets of an account: at most those of 400 days."""
    names = [column.name for column in question.columns]
    found: list[Mapping[str, Any]] = []
    while True:
        page = await read_page(conn, question, calendar)
        found += [dict(zip(names, row, strict=True)) for row in page.rows]
        if page.after is None:
            return found
        question = behind(question, page.after)


async def _account(
    conn: AsyncConnection, question: Question, calendar: LocalCalendar
) -> tuple[AccountView, str, str | None]:
    """Return an account as it is now, its area and its category."""
    columns = tuple(column for column in COLUMNS[Subject.ACCOUNTS] if column.name in ("area", "category"))
    listed = replace(question, subject=Subject.ACCOUNTS, interval=None, columns=columns, limit=1)
    # Refuses an account that the caller may not see.
    page = await read_page(conn, listed, calendar)
    area, category = page.rows[0]
    ids = await desk.named_accounts(conn, _account_alone(question.whose))
    views = await look(conn, ids or [], calendar)
    if not views:
        raise QueryRefused(
            "unknown_account", f"account: expected one with a billing meter, got {question.whose.account}"
        )
    return next(iter(views.values())), area, category


def _account_alone(whose: Whose) -> desk.DeskWhose:
    return desk.DeskWhose(
        meter=None, consumer=None, account=whose.account, area=None, feeder=None, make=None, only_area=whose.only_area
    )


def _zones_of(view: AccountView, calendar: LocalCalendar) -> ZoneAt:
    """Return the zones of the account's tariffs, each on its days."""

    def zone_at(at_ms: int) -> tuple[str | None, int]:
        zones = view.terms.on(calendar.day_of(at_ms)).tariff.zones
        if zones is None:
            return None, at_ms + _HOUR_MS
        number, until_ms = zone_clock(zones, calendar).zone_at(at_ms)
        return zones.names[number], until_ms

    return zone_at


async def _peak_at(conn: AsyncConnection, question: Question, use: UseSummary, calendar: LocalCalendar) -> str | None:
    """Return when the half hour of the peak begins; of a longer interval, the hour that it ends in."""
    if use.peak_hour_ms is None:
        return None
    hour = replace(question, interval=Interval.HALF_HOUR, from_ms=use.peak_hour_ms, to_ms=use.peak_hour_ms + _HOUR_MS)
    for row in await _rows(conn, hour, calendar):
        if row["demand_w"] == use.peak_w:
            return str(row["started_at"].isoformat())
    return from_ms(use.peak_hour_ms).astimezone(calendar.zone).isoformat()


async def _similar(
    conn: AsyncConnection,
    view: AccountView,
    asked: FiguresAsked,
    calendar: LocalCalendar,
    *,
    area: str,
    category: str | None,
) -> Api | None:
    """Return what consumers of the same category, load band and area used; None where they are too few to tell."""
    terms = view.terms.on(asked.first)
    bands = [band.to_load_w for band in terms.tariff.bands]
    above_w = max((edge for edge in bands if edge is not None and edge < terms.load_w), default=0)
    to_w = terms.tariff.band_of(terms.load_w).to_load_w
    count, quartiles = await desk.read_similar(
        conn,
        {
            "first": asked.first,
            "last": asked.last,
            "first_at": from_ms(calendar.midnight_ms(asked.first)),
            "last_at": from_ms(calendar.midnight_ms(asked.last)),
            "days": (asked.last - asked.first).days,
            "area": area,
            "account_id": view.id,
            "category": category,
            "above_w": above_w,
            "to_w": to_w,
        },
    )
    if count < SIMILAR_MIN or quartiles is None:
        return None
    return {
        "consumers": count, "category": category, "load_above_w": above_w, "load_to_w": to_w,
        "quartile_1_wh": quartiles[0], "median_wh": quartiles[1], "quartile_3_wh": quartiles[2],
    }  # fmt: skip


def _use_to_api(use: UseSummary) -> Api:
    return {
        "hours": use.hours,
        "import_wh": use.import_wh,
        "export_wh": use.export_wh,
        "estimated_wh": use.estimated_wh,
        "peak_w": use.peak_w,
        "load_factor_milli": use.load_factor_milli,
        "zones_wh": dict(use.zones_wh) or None,
    }
