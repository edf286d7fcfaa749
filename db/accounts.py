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
class FormerMeter:
    """A billing meter that stood at an account's usage point before: its readings between count for the account.

    Invariants: `segments` as in `MeterView`, of all places where the meter has stood.
    """

    id: int
    from_ms: int
    until_ms: int
    segments: tuple[Segment, ...]

    def energy_to_date(self, at_ms: int, register_wh: int) -> int:
        """Carry a register over roll-overs and swaps, as `MeterView` does."""
        return _energy_to_date(self.segments, at_ms, register_wh)


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterView:
    """The billing meter of an account.

    Invariants: `segments` rise in time and there is at least one, that of the first place where the meter stood;
    `formers` rise in time; `closing` is where the curve ends that the meter is about to hand over, in a swap.
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
    formers: tuple[FormerMeter, ...] = ()
    closing: Point | None = None

    @property
    def installation(self) -> Point:
        """Where the meter's own part of the account's curve begins."""
        return _start_of(self.segments, self.installed_ms)

    @property
    def known(self) -> tuple[Point, ...]:
        """The points of the account's curve that stand without a reading: where its meters took over; rising."""
        starts = [*(_start_of(former.segments, former.from_ms) for former in self.formers), self.installation]
        ends = [
            Point(at_ms=former.until_ms, energy_wh=after.energy_wh)
            for former, after in zip(self.formers, starts[1:], strict=True)
        ]
        return tuple(sorted({*starts, *ends, *((self.closing,) if self.closing else ())}))

    def energy_to_date(self, at_ms: int, register_wh: int) -> int:
        """Carry a register over roll-overs and swaps: energy to date in Wh at a reading."""
        return _energy_to_date(self.segments, at_ms, register_wh)


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
    """Read the points of an account's curve on both sides of given instants, through all its meters."""
    cursor = await conn.execute(sql("points_around"), {"meter_id": meter.id, "edges": list(edges)})
    own = [_point(meter, read_at, register_wh) for read_at, register_wh in await cursor.fetchall()]
    if not meter.formers and meter.closing is None:
        return own
    return through_all_meters(meter, own, await former_points(conn, meter, edges))


async def former_points(conn: AsyncConnection, meter: MeterView, edges: Iterable[datetime]) -> list[Point]:
    """Read the points around given instants from the readings of meters that stood there before."""
    found: list[Point] = []
    asked = list(edges)
    for former in meter.formers:
        inside = [edge for edge in asked if former.from_ms < to_ms(edge) < former.until_ms]
        if not inside:
            continue
        cursor = await conn.execute(sql("points_around"), {"meter_id": former.id, "edges": inside})
        for read_at, register_wh in await cursor.fetchall():
            at_ms = to_ms(read_at)
            if former.from_ms < at_ms < former.until_ms:
                energy_wh = former.energy_to_date(at_ms, register_wh)
                found.append(Point(at_ms=at_ms, energy_wh=energy_wh))
    return found


def through_all_meters(meter: MeterView, own: Iterable[Point], former: Iterable[Point]) -> list[Point]:
    """Put points of a meter and of those before it together; what it read in another place before is left out."""
    return sorted({*meter.known, *former, *(point for point in own if point >= meter.installation)})


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
    for view in by_meter.values():
        await add_former_demands(conn, view.meter, found.setdefault(view.id, {}), parameters)
    return found


async def add_former_demands(
    conn: AsyncConnection, meter: MeterView, demands_w: dict[date, int], parameters: Mapping[str, Any]
) -> None:
    """Add the demand that earlier meters have seen to that of days; `parameters` are those of `day_demands`."""
    for former in meter.formers:
        since, until = from_ms(former.from_ms), from_ms(former.until_ms)
        if until <= parameters["since"] or since >= parameters["until"]:
            continue
        asked = {
            **parameters,
            "meter_ids": [former.id],
            "since": max(since, parameters["since"]),
            "until": min(until, parameters["until"]),
        }
        cursor = await conn.execute(sql("day_demands"), asked)
        for _, day, demand_w in await cursor.fetchall():
            demands_w[day] = max(demand_w, demands_w.get(day, 0))


def _energy_to_date(segments: Sequence[Segment], at_ms: int, register_wh: int) -> int:
    segment = _segment_at(segments, at_ms)
    return segment.start_wh + register_wh - segment.register_wh


def _start_of(segments: Sequence[Segment], installed_ms: int) -> Point:
    return Point(at_ms=installed_ms, energy_wh=_segment_at(segments, installed_ms).start_wh)


def _segment_at(segments: Sequence[Segment], at_ms: int) -> Segment:
    segment = segments[0]
    for later in segments[1:]:
        if later.from_ms > at_ms:
            break
        segment = later
    return segment


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
    if meter.formers:
        seen = through_all_meters(meter, seen, ())
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


def _segments(rows: Iterable[Sequence[int]]) -> tuple[Segment, ...]:
    return tuple(Segment(from_ms=at, register_wh=wh, start_wh=start) for at, wh, start in rows)


def _meter_from_row(row: dict[str, Any]) -> MeterView:
    return MeterView(
        id=row["meter_id"],
        serial=row["serial"],
        area=row["area"],
        rated_w=row["rated_w"],
        register_end_wh=row["register_end_wh"],
        installed_ms=to_ms(row["installed_at"]),
        segments=_segments(row["segments"]),
        relay=Supply(row["relay"]) if row["relay"] else None,
        relay_at_ms=to_ms(row["relay_at"]) if row["relay_at"] else None,
        make=row["make"],
        model=row["model"],
        may_export=row["may_export"],
        formers=tuple(
            FormerMeter(id=meter_id, from_ms=since_ms, until_ms=until_ms, segments=_segments(segments))
            for meter_id, since_ms, until_ms, segments in row["formers"] or ()
        ),
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
