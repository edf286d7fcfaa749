"""Readings by local hour, day and month of each meter, kept exactly equal to the readings as they hold now.

Stage: behind ingest, in a sweep of its own. New readings are found by a mark a meter: those of a meter become visible
in the order of their instants, except late ones, which say so in `stale_buckets`, as edits and registers that began
again do. What changed is computed anew from the curve of energy to date, never added to; so a block that is rolled up
twice is the same, and one that was stopped loses nothing. The hot transaction of ingest writes nothing for it.

The rule of edges is that of the running charge (`billing.running.energy_between`): energy between two readings is split
at an edge in proportion to time, the remainder on the later side. A reading at an edge ends the earlier bucket.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Collection, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Final

from psycopg import AsyncConnection
from psycopg.rows import class_row

from billing.calendar import LocalCalendar
from db.errors import DatabaseError
from db.named import sql

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

# A block is a transaction: 1,000 meters with a day of quarter hours are 100,000 readings, some 2 s.
METERS_A_BLOCK: Final = 1_000
# Arrears, as after an import of years, are taken in spans of this, a block of which is 700,000 quarter hours at most.
SPAN_DAYS_MAX: Final = 7
# A bulk of late data; what is left waits for the block's next turn.
STALE_A_BLOCK: Final = 20_000
# Between blocks others have their turn.
PAUSE_S: Final = 0.02
_MILLISECOND: Final = timedelta(milliseconds=1)
_HALF_HOUR: Final = timedelta(minutes=30)
_PARTITION = re.compile(r"rollup_(?:hours|days)_\d{4,6}")


class ZoneChanged(DatabaseError):
    """The buckets in the database are of another time zone."""

    code = "rollup_zone_changed"


@dataclass(frozen=True, slots=True, kw_only=True)
class RolledUp:
    """What a sweep did: blocks of meters with something to do, hours written; `whole` when no block was left out."""

    blocks: int
    hours: int
    whole: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stale:
    """A span of a meter's curve that changed behind its mark."""

    id: int
    meter_id: int
    from_at: datetime
    # 'infinity' has no datetime: everything after `from_at`.
    to_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Due:
    """A meter to be rolled up: to `latest`, from its mark, or from its very beginning."""

    meter_id: int
    latest: datetime | None
    upto: datetime | None
    first_at: datetime | None
    opened_at: datetime | None

    @property
    def begins_at(self) -> datetime | None:
        """Where its new readings change the curve from; None without new readings."""
        if self.first_at is None:
            return None
        # A first reading at an edge ends the hour before.
        return self.upto or (self.opened_at or self.first_at) - _MILLISECOND


@dataclass(frozen=True, slots=True, kw_only=True)
class _Span:
    """Hours of a meter to be computed anew, and the points of its curve on both sides; the mark where that is one."""

    meter_id: int
    first_at: datetime
    last_at: datetime
    before_at: datetime
    after_at: datetime
    upto: datetime | None
    upto_wh: int | None
    upto_export_wh: int | None


class _PartitionMissing(Exception):
    """Rows would fall outside what is made: made apart, since a partition is not made inside a block's snapshot."""

    def __init__(self, first: date, last: date) -> None:
        super().__init__(f"{first} to {last}")
        self.first = first
        self.last = last


async def note_late(conn: AsyncConnection, readings: Collection[tuple[int, datetime]]) -> None:
    """Note that readings (meter, instant) came behind later ones, in the transaction that stores them."""
    await conn.execute(
        sql("note_late"), {"meter_ids": [each[0] for each in readings], "read_ats": [each[1] for each in readings]}
    )


async def read_behind(conn: AsyncConnection) -> tuple[int, datetime | None]:
    """Return how many changed spans wait to be rolled up again, and since when the oldest of them."""
    cursor = await conn.execute(sql("rollup_behind"))
    row = await cursor.fetchone()
    assert row is not None, "rollup_behind returns one row"
    return row[0], row[1]


@dataclass(slots=True, kw_only=True)
class RollupSweep:
    """Rolls up what is new and what changed, block by block of meters; any number of them at once share the blocks.

    The connection has to be in autocommit mode and is the sweep's own while it runs.
    """

    calendar: LocalCalendar
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep
    meters_a_block: int = METERS_A_BLOCK
    span_days_max: int = SPAN_DAYS_MAX
    _made: set[str] = field(default_factory=set)

    async def run(self, conn: AsyncConnection, *, stop: asyncio.Event | None = None) -> RolledUp:
        """Bring all buckets up to what is stored; stopped, it leaves the rest to the next sweep.

        Raises: ZoneChanged when the buckets are of another time zone.
        """
        began_at = await self._begin(conn)
        cursor = await conn.execute(sql("rollup_last_meter"))
        row = await cursor.fetchone()
        last_block = 0 if row is None else (row[0] - 1) // self.meters_a_block
        busy: list[int] = []
        blocks = hours = 0
        for again in (False, True):
            # Those that another sweep had are looked at once more in the end.
            numbers, busy = (busy, []) if again else (list(range(last_block + 1)), [])
            for block in numbers:
                if stop is not None and stop.is_set():
                    return RolledUp(blocks=blocks, hours=hours, whole=False)
                written = await self._roll_block(conn, block)
                if written is None:
                    busy.append(block)
                elif written:
                    blocks, hours = blocks + 1, hours + written
                    await self.pause(PAUSE_S)
        if not busy:
            await conn.execute(sql("rollup_swept"), {"swept_at": began_at})
        return RolledUp(blocks=blocks, hours=hours, whole=not busy)

    async def _begin(self, conn: AsyncConnection) -> datetime:
        zone = self.calendar.zone.key
        cursor = await conn.execute(sql("rollup_zone"), {"zone": zone})
        row = await cursor.fetchone()
        assert row is not None, "rollup_state has one row"
        if row[0] != zone:
            raise ZoneChanged(f"rollups: expected the time zone they were begun with, {row[0]}, got {zone}")
        return datetime.now(UTC)

    async def _roll_block(self, conn: AsyncConnection, block: int) -> int | None:
        """Roll up a block until nothing of it is left; return how many hours, or None where another sweep has it."""
        async with _locked(conn, block) as held:
            if not held:
                return None
            hours = 0
            while (written := await self._roll_up(conn, block)) is not None:
                hours += written
                await self.pause(PAUSE_S)
        return hours

    async def _roll_up(self, conn: AsyncConnection, block: int) -> int | None:
        """Roll up a block's next spans in one transaction; None when there are none."""
        try:
            async with conn.transaction():
                await conn.execute(sql("rollup_snapshot"))
                return await self._roll_snapshot(conn, block)
        except _PartitionMissing as missing:
            await self._make_partitions(conn, missing.first, missing.last)
            return 0

    async def _roll_snapshot(self, conn: AsyncConnection, block: int) -> int | None:
        after = block * self.meters_a_block
        parameters = {"after": after, "last": after + self.meters_a_block}
        stale = await _read_stale(conn, parameters)
        due = await _read_due(conn, {**parameters, "most_days": self.span_days_max}, {each.meter_id for each in stale})
        if not due:
            return None
        zone = self.calendar.zone.key
        kept_from = await _kept_from(conn)
        spans = await _read_spans(conn, stale, due, zone=zone, kept_from=kept_from)
        hours = 0
        if spans:
            self._require_partitions(spans)
            hours = await _write_buckets(conn, spans, zone=zone)
        await _save_marks(conn, due)
        await conn.execute(sql("drop_stale"), {"ids": [each.id for each in stale]})
        return hours

    def _require_partitions(self, spans: Collection[_Span]) -> None:
        # A local day may begin or end in another month by UTC.
        first = (min(span.first_at for span in spans).astimezone(UTC) - timedelta(days=1)).date()
        last = (max(span.last_at for span in spans).astimezone(UTC) + timedelta(days=1)).date()
        if not self._made.issuperset(name for name, *_ in _partitions(first, last)):
            raise _PartitionMissing(first, last)

    async def _make_partitions(self, conn: AsyncConnection, first: date, last: date) -> None:
        cursor = await conn.execute(sql("rollup_partitions"))
        self._made = {row[0] for row in await cursor.fetchall() if _PARTITION.fullmatch(row[0])}
        for name, parent, begins, ends in _partitions(first, last):
            if name not in self._made:
                parameters = {"parent": parent, "name": name, "first": begins, "next": ends}
                await conn.execute(sql("make_rollup_partition"), parameters)
                self._made.add(name)


def _partitions(first: date, last: date) -> list[tuple[str, str, date, date]]:
    """Name the partitions that days fall into: name, table, first day, first day after."""
    found = []
    month = first.replace(day=1)
    while month <= last:
        following = (month + timedelta(days=31)).replace(day=1)
        found.append((f"rollup_hours_{month:%Y%m}", "rollup_hours", month, following))
        month = following
    found += [
        (f"rollup_days_{year:04}", "rollup_days", date(year, 1, 1), date(year + 1, 1, 1))
        for year in range(first.year, last.year + 1)
    ]
    return found


@asynccontextmanager
async def _locked(conn: AsyncConnection, block: int) -> AsyncIterator[bool]:
    cursor = await conn.execute(sql("lock_rollup_block"), {"block": block})
    row = await cursor.fetchone()
    held = bool(row and row[0])
    try:
        yield held
    finally:
        # A broken connection has lost its locks.
        if held and not conn.broken:
            await conn.execute(sql("unlock_rollup_block"), {"block": block})


async def _kept_from(conn: AsyncConnection) -> str:
    """Return before when readings have been dropped, as PostgreSQL writes it: the beginning has no datetime."""
    cursor = await conn.execute(sql("readings_kept_from"))
    row = await cursor.fetchone()
    assert row is not None, "readings_kept_from returns one row"
    return str(row[0])


async def _read_stale(conn: AsyncConnection, block: dict[str, int]) -> list[_Stale]:
    cursor = await conn.execute(sql("rollup_stale"), {**block, "most": STALE_A_BLOCK})
    return [
        _Stale(id=number, meter_id=meter_id, from_at=from_at, to_at=to_at)
        for number, meter_id, from_at, to_at in await cursor.fetchall()
    ]


async def _read_due(conn: AsyncConnection, block: dict[str, int], stale: Collection[int]) -> list[_Due]:
    cursor = await conn.execute(sql("rollup_latest"), {**block, "stale": sorted(stale)}, prepare=True)
    return [
        _Due(meter_id=meter_id, latest=latest, upto=upto, first_at=first_at, opened_at=opened_at)
        for meter_id, latest, upto, first_at, opened_at in await cursor.fetchall()
    ]


async def _read_spans(
    conn: AsyncConnection, stale: Collection[_Stale], due: Iterable[_Due], *, zone: str, kept_from: str
) -> list[_Span]:
    of_meter = {each.meter_id: each for each in due}
    fresh = [(each.meter_id, each.begins_at, each.latest) for each in of_meter.values() if each.begins_at is not None]
    parameters = {
        "zone": zone,
        "kept_from": kept_from,
        "stale_meters": [each.meter_id for each in stale],
        "from_ats": [each.from_at for each in stale],
        "to_ats": [each.to_at for each in stale],
        "uptos": [of_meter[each.meter_id].upto for each in stale],
        "latests": [of_meter[each.meter_id].latest for each in stale],
        "new_meters": [meter_id for meter_id, _, _ in fresh],
        "lefts": [left for _, left, _ in fresh],
        "rights": [right for _, _, right in fresh],
    }
    async with conn.cursor(row_factory=class_row(_Span)) as cursor:
        await cursor.execute(sql("rollup_spans"), parameters, prepare=True)
        return await cursor.fetchall()


async def _write_buckets(conn: AsyncConnection, spans: Collection[_Span], *, zone: str) -> int:
    """Compute the hours of some spans, then their days, then their months; return how many hours were written."""
    parameters = {
        "zone": zone,
        "meter_ids": [span.meter_id for span in spans],
        **{f"{name}s": [getattr(span, name) for span in spans] for name in _Span.__slots__ if name != "meter_id"},
        "first": min(span.first_at for span in spans),
        "last": max(span.last_at for span in spans),
        # A half hour that ends in a bucket may begin before it.
        "since": min(min(span.before_at, span.first_at - _HALF_HOUR) for span in spans),
        "until": max(span.after_at for span in spans),
    }
    await conn.execute(sql("rollup_plan_by_span"))
    cursor = await conn.execute(sql("rollup_hours_of"), parameters)
    for name in ("rollup_days_of", "rollup_months_of"):
        await conn.execute(sql(name), parameters)
    return cursor.rowcount


async def _save_marks(conn: AsyncConnection, due: Collection[_Due]) -> None:
    latest = [each.latest for each in due if each.latest is not None]
    parameters = {
        "meter_ids": [each.meter_id for each in due],
        "uptos": [each.latest for each in due],
        "since": min(latest, default=None),
        "until": max(latest, default=None),
    }
    await conn.execute(sql("save_rollup_marks"), parameters)
