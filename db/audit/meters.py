"""Meters and what they sent: each meter's whole curve read once, from the readings alone.

Stage: beside the accounts of the same meters, which need their curves at the edges of their bill parts. A curve is
one row of the database, 16 bytes a reading, taken apart by numpy: rows one by one took four times as long (100,000
meters of 50 readings, 2026-11-22). Money is made of readings as edits have left them; only the counts are of what
was sent.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt
from psycopg import AsyncConnection

from billing.calendar import from_ms, to_ms
from billing.running import Point
from db.audit.reading import Audit, Ids, first_row, rows
from db.audit.report import EXAMPLES_MAX
from db.named import sql

Int64 = npt.NDArray[np.int64]

# PostgreSQL sends an instant as microseconds since this one.
_EPOCH_MS = to_ms(datetime(2000, 1, 1, tzinfo=UTC))


@dataclass(frozen=True, slots=True, kw_only=True)
class Meter:
    """A meter as its curve is judged: where it stood first, and its register segments."""

    id: int
    serial: str
    account_id: int | None
    from_ms: int | None
    segments_ms: Int64
    offsets_wh: Int64
    start_wh: int
    # When it took over from another meter, after it had stood somewhere else.
    moved_ms: Int64


@dataclass(slots=True, kw_only=True)
class Curve:
    """A meter's energy to date by instant, rising in time."""

    at_ms: Int64
    energy_wh: Int64

    @property
    def last(self) -> Point | None:
        """The latest point."""
        return self._point(len(self.at_ms) - 1) if len(self.at_ms) else None

    def around(self, edges_ms: Sequence[int]) -> list[Point]:
        """Return the points on both sides of some instants, rising."""
        after = np.searchsorted(self.at_ms, np.array(edges_ms, dtype=np.int64))
        places = np.unique(np.concatenate((after - 1, after)))
        return [self._point(place) for place in places[(places >= 0) & (places < len(self.at_ms))].tolist()]

    def latest(self, most: int) -> list[Point]:
        """Return the last points, rising."""
        return [self._point(place) for place in range(max(0, len(self.at_ms) - most), len(self.at_ms))]

    def _point(self, place: int) -> Point:
        return Point(at_ms=int(self.at_ms[place]), energy_wh=int(self.energy_wh[place]))


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownCurve:
    """What is kept of a meter's curve: the points around some edges, and the last one."""

    around: list[Point] = field(default_factory=list)
    last: Point | None = None


async def former_places(conn: AsyncConnection) -> dict[int, int]:
    """Return since when (ms) meters stood that have been taken away from somewhere: a few in a hundred."""
    cursor = await conn.execute(sql("audit_former_places"))
    return {meter_id: to_ms(from_at) for meter_id, from_at in await cursor.fetchall()}


async def check_curves(
    conn: AsyncConnection, audit: Audit, ids: Ids, edges_ms: Mapping[int, Sequence[int]]
) -> dict[int, KnownCurve]:
    """Check the curves of some meters; return by meter what is known around the edges that are asked for."""
    meters = {
        row["id"]: _meter(row, audit.former_places_ms) for row in await rows(conn, "audit_meters", ids.parameters)
    }
    edits: defaultdict[int, dict[int, int | None]] = defaultdict(dict)
    for row in await rows(conn, "audit_edits", ids.parameters):
        edits[row["meter_id"]][to_ms(row["read_at"])] = row["import_wh"]
    estimates: defaultdict[int, dict[int, int]] = defaultdict(dict)
    for row in await rows(conn, "audit_estimates", ids.parameters):
        estimates[row["meter_id"]][to_ms(row["read_at"])] = row["import_wh"]
    known = {}
    async with conn.cursor(binary=True) as cursor:
        # One meter at a time leaves the database; a year of half-hours is 280 kB.
        async for meter_id, packed in cursor.stream(sql("audit_readings"), ids.parameters, binary=True):
            meter = meters.get(meter_id) or _unknown(meter_id)
            at_ms, registers_wh = unpacked(packed)
            _check_sent(audit, meter, at_ms)
            curve = curve_of(meter, at_ms, registers_wh, edits.get(meter_id), estimates.get(meter_id))
            _check_rising(audit, meter, curve)
            if meter_id in edges_ms:
                known[meter_id] = KnownCurve(around=curve.around(edges_ms[meter_id]), last=curve.last)
    return known


async def curve_of_meter(conn: AsyncConnection, meter_id: int) -> Curve | None:
    """Read the whole curve of one meter, without judging it."""
    ids = Ids(after=meter_id - 1, upto=meter_id)
    found = await rows(conn, "audit_meters", ids.parameters)
    edits = {to_ms(row["read_at"]): row["import_wh"] for row in await rows(conn, "audit_edits", ids.parameters)}
    made = {to_ms(row["read_at"]): row["import_wh"] for row in await rows(conn, "audit_estimates", ids.parameters)}
    async with conn.cursor(binary=True) as cursor:
        await cursor.execute(sql("audit_readings"), ids.parameters)
        row = await cursor.fetchone()
    return curve_of(_meter(found[0], {}), *unpacked(row[1]), edits, made) if row and found else None


def unpacked(packed: bytes) -> tuple[Int64, Int64]:
    """Take the readings of a meter apart: instants in ms, registers in Wh."""
    pairs = np.frombuffer(packed, dtype=">i8").reshape(-1, 2).astype(np.int64)
    return pairs[:, 0] // 1000 + _EPOCH_MS, pairs[:, 1]


def curve_of(
    meter: Meter,
    at_ms: Int64,
    registers_wh: Int64,
    edits: Mapping[int, int | None] | None,
    estimates: Mapping[int, int] | None = None,
) -> Curve:
    """Carry registers over roll-overs and swaps, with edits in the place of what was read and estimates in gaps."""
    if edits:
        kept = np.array([edits.get(at, 0) is not None for at in at_ms.tolist()], dtype=np.bool_)
        registers = [edits.get(at, wh) for at, wh in zip(at_ms.tolist(), registers_wh.tolist(), strict=True)]
        registers_wh = np.array([wh for wh in registers if wh is not None], dtype=np.int64)
        at_ms = at_ms[kept]
    if estimates:
        both_ms = np.concatenate((at_ms, np.array(list(estimates), dtype=np.int64)))
        registers_wh = np.concatenate((registers_wh, np.array(list(estimates.values()), dtype=np.int64)))
        order = np.argsort(both_ms, kind="stable")
        at_ms, registers_wh = both_ms[order], registers_wh[order]
    if not len(meter.offsets_wh):
        return Curve(at_ms=at_ms, energy_wh=registers_wh)
    stretch = np.maximum(np.searchsorted(meter.segments_ms, at_ms, side="right") - 1, 0)
    return Curve(at_ms=at_ms, energy_wh=registers_wh + meter.offsets_wh[stretch])


async def check_orders(conn: AsyncConnection, audit: Audit, ids: Ids) -> None:
    """Check the orders of some meters."""
    for row in await rows(conn, "audit_orders", ids.parameters):
        audit.book.count("I8-orders", row["orders"])
        who = f"meter {row['serial']} (id {row['meter_id']})"
        breaks = (
            (row["open_supply"] - 1, f"{row['open_supply']} open supply orders"),
            (row["fallen"], f"{row['fallen']} orders whose epoch does not rise"),
            (
                int(row["epoch"] > row["order_epoch"]),
                f"epoch {row['epoch']} was ordered, the meter's last is {row['order_epoch']}",
            ),
            (row["postpaid_cut"], f"{row['postpaid_cut']} cut-offs of a postpaid account"),
        )
        for number, text in breaks:
            if number > 0:
                audit.book.fail(
                    "I8-orders", f"{who}: {text}", key=row["meter_id"], number=number, account_id=row["account_id"]
                )


async def check_batches(conn: AsyncConnection, audit: Audit) -> None:
    """Check what batches counted; only of the whole database, once all curves have been read."""
    if audit.account_ids is not None:
        return
    book = audit.book
    batches, stored, broken = await first_row(conn, "audit_batches", {})
    book.count("I3-batches", batches)
    for row in await rows(conn, "audit_broken_batches", {"most": EXAMPLES_MAX}) if broken else ():
        text = (
            f"batch {row['id']} of shard {row['shard']}: received {row['received']}, stored {row['stored']},"
            f" duplicate {row['duplicate']}, rejected {row['rejected']}, quarantined {row['quarantined']}"
        )
        book.fail("I3-batches", text, key=row["id"], number=0)
    book.add_broken("I3-batches", broken)
    # The meters' curves have been read: every row was counted there.
    rows_stored = book.counted("I3")
    book.count("I3-rows", rows_stored)
    if stored != rows_stored:
        text = f"batches stored {stored:,} readings, the table holds {rows_stored:,}"
        book.fail("I3-rows", text, key=0, number=abs(stored - rows_stored))


def _meter(row: Mapping[str, Any], former_places_ms: Mapping[int, int]) -> Meter:
    places_ms = [to_ms(row["from_at"])] if row["from_at"] else []
    if row["id"] in former_places_ms:
        places_ms.append(former_places_ms[row["id"]])
    ats = [to_ms(at) for at in row["segment_ats"] or ()]
    registers, starts = row["registers_wh"] or (), row["starts_wh"] or ()
    return Meter(
        id=row["id"],
        serial=row["serial"],
        account_id=row["account_id"],
        from_ms=min(places_ms, default=None),
        segments_ms=np.array(ats, dtype=np.int64),
        offsets_wh=np.array([start - at for start, at in zip(starts, registers, strict=True)], dtype=np.int64),
        start_wh=starts[0] if starts else 0,
        moved_ms=np.array([at for at in map(to_ms, row["moved_ats"] or ()) if at > ats[0]], dtype=np.int64),
    )


def _unknown(meter_id: int) -> Meter:
    """Return what is known of a meter id that nobody registered: readings of it are outside everything."""
    none = np.array([], dtype=np.int64)
    return Meter(
        id=meter_id,
        serial="?",
        account_id=None,
        from_ms=None,
        segments_ms=none,
        offsets_wh=none,
        start_wh=0,
        moved_ms=none,
    )


def _check_sent(audit: Audit, meter: Meter, at_ms: Int64) -> None:
    """Count what was sent; nothing may come from before the installation."""
    book = audit.book
    book.count("I3", len(at_ms))
    outside = len(at_ms) if meter.from_ms is None else int(np.searchsorted(at_ms, meter.from_ms))
    if outside:
        text = f"{_who(meter)}: {outside} from {from_ms(int(at_ms[0])).isoformat()} on"
        book.fail("I3", text, key=meter.id, number=outside, account_id=meter.account_id)


def _check_rising(audit: Audit, meter: Meter, curve: Curve) -> None:
    """Energy to date must not fall, nor begin below the installation."""
    audit.book.count("I4", len(curve.at_ms))
    if not len(meter.offsets_wh) or not len(curve.at_ms):
        return
    fell = np.diff(curve.energy_wh, prepend=np.int64(meter.start_wh)) < 0
    # In another place the meter counts another account's energy.
    first = np.searchsorted(curve.at_ms, meter.moved_ms)
    fell[first[first < len(fell)]] = False
    falls = np.flatnonzero(fell)
    if len(falls):
        text = f"{_who(meter)}: falls {len(falls)} times, first at {from_ms(int(curve.at_ms[falls[0]])).isoformat()}"
        audit.book.fail("I4", text, key=meter.id, number=len(falls), account_id=meter.account_id)


def _who(meter: Meter) -> str:
    return f"meter {meter.serial} (id {meter.id})"
