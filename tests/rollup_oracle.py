"""The plain reference of rollups: a meter and a pair of readings at a time, by the rule of the running charge."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from typing import Any

from psycopg import AsyncConnection

from billing.calendar import LocalCalendar, from_ms, to_ms
from billing.running import Point, energy_between

HOUR_MS, HALF_HOUR_MS = 3_600_000, 1_800_000


@dataclass(slots=True, kw_only=True)
class Bucket:
    """One hour, day or month of a meter."""

    readings: int = 0
    import_wh: int = 0
    export_wh: int | None = None
    estimated_wh: int = 0
    demand_w: int | None = None
    voltages: list[int] = field(default_factory=list)
    pfs: list[int] = field(default_factory=list)
    mark: int = 0

    def row(self) -> tuple[int | None, ...]:
        """Return what the database keeps of it, as the views show it."""
        voltage, pf = self.voltages, self.pfs
        return (
            self.readings,
            self.import_wh,
            self.export_wh,
            self.estimated_wh,
            self.demand_w,
            min(voltage, default=None),
            max(voltage, default=None),
            sum(voltage) // len(voltage) if voltage else None,
            sum(pf) // len(pf) if pf else None,
            max(self.mark, 2 if self.estimated_wh else 0),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Curve:
    """Readings of one installation of a meter, each with its row; where it was installed has none."""

    points: tuple[tuple[Point, Any], ...]


# By kind of bucket, meter, and the bucket's own key.
Rollups = dict[tuple[str, int, object], tuple[int | None, ...]]


async def expected_rollups(conn: AsyncConnection, calendar: LocalCalendar) -> Rollups:
    """Compute all rollups from the readings as they hold now."""
    cursor = await conn.execute(b"select distinct meter_id from readings")
    made: Rollups = {}
    for (meter_id,) in await cursor.fetchall():
        readings = await _rows(
            conn,
            b"select read_at, import_wh, export_wh, voltage_mv, pf_milli, edited from current_readings"
            b" where meter_id = %s order by read_at",
            meter_id,
        )
        segments = await _rows(
            conn,
            b"select from_at, register_wh, start_wh, reason from register_segments where meter_id = %s"
            b" order by from_at",
            meter_id,
        )
        flags = await _rows(
            conn,
            b"select at from reading_flags where meter_id = %s and severity <> 'info'"
            b" and rule not in ('clock_drift', 'wrong_interval')",
            meter_id,
        )
        closings = await _rows(conn, b"select at, wh from closing_points where meter_id = %s order by at", meter_id)
        buckets = _meter(readings, segments, closings, {to_ms(row[0]) for row in flags}, calendar)
        made |= {(kind, meter_id, key): bucket.row() for (kind, key), bucket in buckets.items()}
    return made


async def stored_rollups(conn: AsyncConnection) -> Rollups:
    """Read what the views show."""
    found: Rollups = {}
    columns = b"readings, import_wh, export_wh, estimated_wh, demand_w, voltage_min_mv, voltage_max_mv, voltage_avg_mv,"
    for kind, view, key in (("hour", b"hour", b"started_at"), ("day", b"day", b"day"), ("month", b"month", b"month")):
        query = b"select meter_id, %b, %b pf_avg_milli, quality from %b_rollups" % (key, columns, view)
        for meter_id, at, *values in await _rows(conn, query):
            found[kind, meter_id, at] = tuple(values)
    return found


def _meter(
    readings: Sequence[Any],
    segments: Sequence[Any],
    closings: Sequence[Any],
    flagged: set[int],
    calendar: LocalCalendar,
) -> dict[tuple[str, object], Bucket]:
    buckets: dict[tuple[str, object], Bucket] = {}
    for curve in _curves(readings, segments, closings):
        at_wh: dict[int, int] = {}
        for (earlier, _), (later, row) in pairwise([(None, None), *curve.points]):
            if earlier is not None:
                at_wh[earlier.at_ms] = earlier.energy_wh
            if row is None:
                if earlier is not None:
                    _add_pair(buckets, earlier, later, None, calendar)
                continue
            _add_pair(buckets, earlier, later, _export(curve, later), calendar)
            _add_reading(buckets, earlier, later, row, at_wh, flagged, calendar)
    return buckets


def _curves(readings: Sequence[Any], segments: Sequence[Any], closings: Sequence[Any]) -> Iterator[_Curve]:
    """Cut readings into installations; a rollover or reset carries the energy on."""
    begins = [number for number, row in enumerate(segments) if row[3] in ("installed", "swap")]
    opened_ms = to_ms(segments[begins[0]][0]) if begins else None
    early = [row for row in readings if opened_ms is None or to_ms(row[0]) < opened_ms]
    yield _Curve(points=tuple((_point(row, segments), row) for row in early))
    for number, following in pairwise([*begins, len(segments)]):
        opens = Point(at_ms=to_ms(segments[number][0]), energy_wh=segments[number][2])
        end_ms = to_ms(segments[following][0]) if following < len(segments) else None
        points: list[tuple[Point, Any]] = [(opens, None)]
        for row in readings:
            at_ms = to_ms(row[0])
            if at_ms >= opens.at_ms and (end_ms is None or at_ms < end_ms):
                points.append((_point(row, segments), row))
        ends = [Point(at_ms=to_ms(at), energy_wh=wh) for at, wh in closings]
        points += [(end, None) for end in ends if opens.at_ms < end.at_ms and (end_ms is None or end.at_ms <= end_ms)]
        yield _Curve(points=tuple(points))


def _point(row: Any, segments: Sequence[Any]) -> Point:
    """Return a reading's energy to date, by the latest segment at or before it, else by the first there is."""
    at_ms = to_ms(row[0])
    of = next((each for each in reversed(segments) if to_ms(each[0]) <= at_ms), segments[0] if segments else None)
    return Point(at_ms=at_ms, energy_wh=row[1] + (of[2] - of[1] if of is not None else 0))


def _export(curve: _Curve, later: Point) -> tuple[int, int] | None:
    """Return the export registers at both ends of the pair that ends at a point, where they did not fall."""
    place = max(number for number, (point, row) in enumerate(curve.points) if point == later and row is not None)
    before, here = curve.points[place - 1][1] if place else None, curve.points[place][1]
    if before is None or before[2] is None or here[2] is None or here[2] < before[2]:
        return None
    return before[2], here[2]


def _keys(hour_ms: int, calendar: LocalCalendar) -> list[tuple[str, object]]:
    day = calendar.day_of(hour_ms)
    return [("hour", from_ms(hour_ms)), ("day", day), ("month", day.replace(day=1))]


def _hour_of(at_ms: int, calendar: LocalCalendar) -> int:
    """Return the start of the local hour that holds an instant."""
    shown: datetime = from_ms(at_ms).astimezone(calendar.zone)
    return at_ms - (shown.minute * 60 + shown.second) * 1000 - shown.microsecond // 1000


def _add_pair(
    buckets: dict[tuple[str, object], Bucket],
    earlier: Point | None,
    later: Point,
    export: tuple[int, int] | None,
    calendar: LocalCalendar,
) -> None:
    """Share the energy between two points among the buckets it lies in."""
    last_ms = _hour_of(later.at_ms - 1, calendar)
    hour_ms = min(last_ms, last_ms if earlier is None else _hour_of(earlier.at_ms, calendar))
    whole = _keys(last_ms, calendar)
    began = whole if earlier is None else _keys(hour_ms, calendar)
    while hour_ms <= last_ms:
        for place, key in enumerate(_keys(hour_ms, calendar)):
            bucket = buckets.setdefault(key, Bucket())
            if earlier is None:
                continue
            share = _share(earlier, later, hour_ms)
            bucket.import_wh += share
            if began[place] != whole[place]:
                bucket.estimated_wh += share
            if export is not None:
                ends = [Point(at_ms=p.at_ms, energy_wh=wh) for p, wh in zip((earlier, later), export, strict=True)]
                bucket.export_wh = (bucket.export_wh or 0) + _share(*ends, hour_ms)
        hour_ms += HOUR_MS


def _share(earlier: Point, later: Point, hour_ms: int) -> int:
    ends = max(hour_ms, earlier.at_ms), min(hour_ms + HOUR_MS, later.at_ms)
    if later.at_ms == earlier.at_ms:
        return later.energy_wh - earlier.energy_wh
    return energy_between(earlier, later, ends[1]) - energy_between(earlier, later, ends[0])


def _add_reading(
    buckets: dict[tuple[str, object], Bucket],
    earlier: Point | None,
    later: Point,
    row: Any,
    at_wh: dict[int, int],
    flagged: set[int],
    calendar: LocalCalendar,
) -> None:
    """Count a reading in the buckets that its interval ends in."""
    _, _, _, voltage_mv, pf_milli, edited = row
    demands = []
    before_wh = at_wh.get(later.at_ms - HALF_HOUR_MS)
    if before_wh is not None and later.at_ms % HALF_HOUR_MS == 0:
        demands.append(2 * (later.energy_wh - before_wh))
    if earlier is not None and later.at_ms - earlier.at_ms >= HALF_HOUR_MS:
        demands.append((later.energy_wh - earlier.energy_wh) * HOUR_MS // (later.at_ms - earlier.at_ms))
    for key in _keys(_hour_of(later.at_ms - 1, calendar), calendar):
        bucket = buckets[key]
        bucket.readings += 1
        bucket.voltages += [] if voltage_mv is None else [voltage_mv]
        bucket.pfs += [] if pf_milli is None else [pf_milli]
        bucket.mark = max(bucket.mark, 3 if later.at_ms in flagged else 1 if edited else 0)
        found = [*demands, *([] if bucket.demand_w is None else [bucket.demand_w])]
        bucket.demand_w = max((each for each in found if each >= 0), default=None)


async def _rows(conn: AsyncConnection, query: bytes, *parameters: object) -> list[Any]:
    cursor = await conn.execute(query, parameters or None)
    return await cursor.fetchall()
