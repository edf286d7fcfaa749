"""Accounts as the database holds them, turned into the values that billing works with.

Stage: between rows and pure money. `look` reads account and readings in one statement, so that even without a lock
a balance is never made of two different moments.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from psycopg import AsyncConnection
from psycopg.rows import dict_row

from billing.calendar import LocalCalendar, from_ms, to_ms
from billing.running import Checkpoint, PeriodPosted, Point, Walk, begin, follow, owed_minor
from billing.supply import FurtherLevel, Levels, Mode, Supply
from billing.supply_policy import Scheme, SupplyRules
from billing.tariff import Tariff
from billing.terms import ONE_DAY, Assignment, Terms
from db.named import sql
from db.supply_rules import rules_by_checksum
from db.tariffs import tariffs_by_checksum


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A stretch of a meter's register: energy to date at a register value, from an instant on."""

    from_ms: int
    register_wh: int
    start_wh: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterView:
    """The billing meter of an account.

    Invariants: `segments` rise in time and there is at least one, the installation.
    """

    id: int
    serial: str
    area: str
    rated_w: int
    register_end_wh: int
    installed_ms: int
    segments: tuple[Segment, ...]
    relay: Supply | None
    relay_at_ms: int | None
    make: str = ""
    model: str = ""
    may_export: bool = False

    def energy_to_date(self, at_ms: int, register_wh: int) -> int:
        """Carry a register over roll-overs and swaps: energy to date in Wh at a reading."""
        segment = self.segments[0]
        for later in self.segments[1:]:
            if later.from_ms > at_ms:
                break
            segment = later
        return segment.start_wh + register_wh - segment.register_wh


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenOrder:
    """The supply order a meter has not confirmed yet."""

    id: int
    relay: Supply
    held: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountView:
    """One account at one moment.

    Invariants: `asks_demand` says that a tariff of the terms charges demand; `points` rise in time, begin with the
    anchor (the last point at or before the checkpoint) and end with the latest accepted reading; `mark_ms` and
    `mark_register_wh` are that reading's, None before the first; `scheme` is that of the category and rules of today.
    """

    id: int
    number: str
    shard: int
    version: int
    terms: Terms
    asks_demand: bool
    checkpoint: Checkpoint
    levels: Levels
    scheme: Scheme
    meter: MeterView
    points: tuple[Point, ...]
    mark_ms: int | None
    mark_register_wh: int | None
    open_order: OpenOrder | None
    # Whether a level to be warned at is a share of the last recharge.
    warns_by_recharge: bool = True

    def walk(self, calendar: LocalCalendar) -> Walk:
        """Follow the curve from the checkpoint to the latest point."""
        return follow(begin(self.checkpoint, self.terms), self.terms, self.points[1:], calendar)

    def balance_minor(self, calendar: LocalCalendar) -> int:
        """Return the running balance at money time."""
        owed = owed_minor(self.walk(calendar), through=self.checkpoint.through, calendar=calendar)
        return self.checkpoint.posted_minor - owed


async def look(
    conn: AsyncConnection, ids: Sequence[int], calendar: LocalCalendar, *, step: str = "month"
) -> dict[int, AccountView]:
    """Read accounts and the points of their curves; ids that do not exist are left out.

    `step` is `month` for balances, `day` to close days: which local edges the points must surround.
    """
    cursor = await conn.execute(sql("look_since"), {"ids": list(ids)})
    since = await cursor.fetchone()
    # The bound lets the planner leave out partitions of days that cannot matter.
    parameters = {"ids": list(ids), "step": step, "zone": calendar.zone.key, "since": since[0] if since else None}
    async with conn.cursor(row_factory=dict_row) as rows:
        await rows.execute(sql("look"), parameters)
        found = await rows.fetchall()
    return await views_from_rows(conn, found)


async def views_from_rows(conn: AsyncConnection, found: Sequence[dict[str, Any]]) -> dict[int, AccountView]:
    """Return the accounts of rows with the columns of `look`."""
    tariffs = await tariffs_by_checksum(conn, {checksum for row in found for checksum in row["tariffs"]})
    rules = {sha256: await rules_by_checksum(conn, sha256) for sha256 in {row["supply_rules"] for row in found}}
    return {row["id"]: _view_from_row(row, tariffs, rules[row["supply_rules"]]) for row in found}


async def points_around(conn: AsyncConnection, meter: MeterView, edges: Sequence[datetime]) -> list[Point]:
    """Read the points of a meter's curve on both sides of given instants."""
    cursor = await conn.execute(sql("points_around"), {"meter_id": meter.id, "edges": list(edges)})
    return [_point(meter, read_at, register_wh) for read_at, register_wh in await cursor.fetchall()]


async def posted_periods(conn: AsyncConnection, account_id: int, since: date) -> dict[date, PeriodPosted]:
    """Read what journals have booked for an account, by bill part, from one part on."""
    cursor = await conn.execute(sql("posted_periods"), {"account_id": account_id, "since": since})
    return {
        period: PeriodPosted(
            period=period, energy_wh=energy_wh, lines=lines or {}, demand_w=demand_w, assessed_wh=assessed_wh
        )
        for period, energy_wh, demand_w, assessed_wh, lines in await cursor.fetchall()
    }


async def day_demands(
    conn: AsyncConnection, views: Iterable[AccountView], until: date, calendar: LocalCalendar
) -> dict[int, dict[date, int]]:
    """Read the greatest half-hour demand (W) of each local day still open up to `until`, by account."""
    by_meter = {view.meter.id: view for view in views if view.asks_demand}
    if not by_meter:
        return {}
    first = min(view.checkpoint.through for view in by_meter.values())
    parameters = {
        "meter_ids": list(by_meter),
        "since": from_ms(calendar.midnight_ms(first)),
        "until": from_ms(calendar.midnight_ms(until + ONE_DAY)),
        "zone": calendar.zone.key,
    }
    found: dict[int, dict[date, int]] = {}
    cursor = await conn.execute(sql("day_demands"), parameters)
    for meter_id, day, demand_w in await cursor.fetchall():
        found.setdefault(by_meter[meter_id].id, {})[day] = demand_w
    return found


def _point(meter: MeterView, read_at: datetime, register_wh: int) -> Point:
    at_ms = to_ms(read_at)
    return Point(at_ms=at_ms, energy_wh=meter.energy_to_date(at_ms, register_wh))


def _view_from_row(row: dict[str, Any], tariffs: Mapping[str, Tariff], rules: SupplyRules) -> AccountView:
    # A row of `look`: its columns are typed by the migration.
    meter = _meter_from_row(row)
    checkpoint = _checkpoint_from_row(row)
    anchor = checkpoint.anchor
    terms = _terms_from_row(row, tariffs)
    seen = [_point(meter, at, wh) for at, wh in zip(row["ats"] or (), row["registers"] or (), strict=True)]
    order = None
    if row["open_order_id"] is not None:
        order = OpenOrder(
            id=row["open_order_id"],
            relay=Supply(row["open_order_relay"]),
            held=row["open_order_state"] == "held",
        )
    return AccountView(
        id=row["id"],
        number=row["number"],
        shard=row["shard"],
        version=row["version"],
        terms=terms,
        asks_demand=row["asks_demand"],
        checkpoint=checkpoint,
        levels=_levels_from_row(row),
        scheme=rules.of(terms.on(row["today"]).category),
        meter=meter,
        points=(anchor, *(point for point in seen if point.at_ms > anchor.at_ms)),
        mark_ms=to_ms(row["mark_at"]) if row["mark_at"] else None,
        mark_register_wh=row["mark_register_wh"],
        open_order=order,
        warns_by_recharge=row["by_recharge"],
    )


def _terms_from_row(row: dict[str, Any], tariffs: Mapping[str, Tariff]) -> Terms:
    columns = ("from_days", "tariffs", "categories", "loads_w", "area_types", "meter_rents")
    assignments = tuple(
        Assignment(
            from_day=from_day,
            tariff=tariffs[checksum],
            category=category,
            load_w=load_w,
            area=area_type,
            meter_rent=meter_rent,
        )
        for from_day, checksum, category, load_w, area_type, meter_rent in zip(
            *(row[name] for name in columns), strict=True
        )
    )
    return Terms(opened_on=row["opened_on"], assignments=assignments)


def _checkpoint_from_row(row: dict[str, Any]) -> Checkpoint:
    return Checkpoint(
        posted_minor=row["posted_minor"],
        charged_minor=row["charged_minor"],
        through=row["through"],
        before_wh=row["before_wh"],
        part_start_wh=row["part_start_wh"],
        closed_wh=row["closed_wh"],
        closed_zones=tuple(row["closed_zones"] or ()),
        demand_w=row["demand_w"],
        anchor=Point(at_ms=to_ms(row["anchor_at"]), energy_wh=row["anchor_wh"]),
        anchor_zones=tuple(row["anchor_zones"] or ()),
    )


def _meter_from_row(row: dict[str, Any]) -> MeterView:
    return MeterView(
        id=row["meter_id"],
        serial=row["serial"],
        area=row["area"],
        rated_w=row["rated_w"],
        register_end_wh=row["register_end_wh"],
        installed_ms=to_ms(row["installed_at"]),
        segments=tuple(Segment(from_ms=at, register_wh=wh, start_wh=start) for at, wh, start in row["segments"]),
        relay=Supply(row["relay"]) if row["relay"] else None,
        relay_at_ms=to_ms(row["relay_at"]) if row["relay_at"] else None,
        make=row["make"],
        model=row["model"],
        may_export=row["may_export"],
    )


def _levels_from_row(row: dict[str, Any]) -> Levels:
    return Levels(
        mode=Mode(row["mode"]),
        threshold_minor=row["threshold_minor"],
        emergency_credit_minor=row["emergency_credit_minor"],
        low_arm=row["low_arm"],
        low_raised=row["low_raised"],
        exhausted_arm=row["exhausted_arm"],
        exhausted_raised=row["exhausted_raised"],
        desired=Supply(row["desired"]),
        # From the deposit to the posting that ends the absence, whatever day it is (db.conversions.end_absences).
        absent=row["absent_until"] is not None,
        exempt=row["exempt"],
        hold=row["hold"],
        can_limit=row["can_limit"],
        exhausted_at_ms=to_ms(row["exhausted_at"]) if row["exhausted_at"] else None,
        thresholds=tuple(
            FurtherLevel(n=n, level_minor=level_minor, arm=arm, raised=raised)
            for n, level_minor, arm, raised in row["thresholds"] or ()
        ),
    )
