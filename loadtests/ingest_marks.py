"""What became of the messages of a burst, asked of the database: stored, when committed, lost, and what it cost.

Stage: after a burst, when the stream is empty. Reads only.

When a message was committed is the instant that PostgreSQL notes with a commit (`track_commit_timestamp`), in
microseconds of the clock that the flood uses, too: both are processes of one machine. It is taken as the commit record
is written, right before its sync; the mean time of the syncs stands beside it in the report.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from psycopg import AsyncConnection

from billing.calendar import from_ms, to_ms
from db.binary_copy import HEAD, TAIL
from db.reports import BatchTotals, batch_totals
from loadtests.flood_frames import Part, Roster, turn_ms
from loadtests.flood_process import Sent
from loadtests.population import SERIAL_PREFIX, STEP_MS
from protocols.columns import Int64Column

_MS: Final = b"(date_part('epoch', read_at) * 1000)::bigint"
# One row a message: how many of its readings are stored, and when its last one was committed.
_STORED: Final = (
    b"copy (select meter_id, ((" + _MS + b" - %(first_ms)s) / %(turn_ms)s)::integer, count(*)::integer,"
    b" coalesce(max((date_part('epoch', pg_xact_commit_timestamp(xmin)) * 1000000)::bigint)"
    b" filter (where (" + _MS + b" - %(first_ms)s) %% %(turn_ms)s = %(turn_ms)s - %(step_ms)s), -1)"
    b" from readings where read_at between %(from_at)s and %(to_at)s and meter_id <= %(meters)s group by 1, 2)"
    b" to stdout (format binary)"
)
_STORED_ROW: Final = np.dtype(
    [("fields", ">i2")]
    + [
        part
        for name, width in (("meter_id", 4), ("turn", 4), ("readings", 4), ("committed_us", 8))
        for part in ((f"{name}_length", ">i4"), (name, f">i{width}"))
    ]
)
# Held back for an engineer, and not stored in another message's name.
_HELD: Final = b"""
select distinct q.serial, q.read_at from quarantine q
where q.read_at between %(from_at)s and %(to_at)s and q.serial like %(prefix)s and not exists (
    select 1 from readings r join meters m on m.id = r.meter_id where m.serial = q.serial and r.read_at = q.read_at)
"""
_COUNTERS: Final = b"""
select pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint,
       (select coalesce(sum(pg_total_relation_size(inhrelid)), 0)::bigint from pg_inherits
        where inhparent = 'readings'::regclass),
       (select num_done from pg_stat_checkpointer),
       (select count(distinct xmin::text) from batches),
       (select coalesce(sum(fsyncs), 0)::bigint from pg_stat_io where object = 'wal'),
       (select coalesce(sum(fsync_time), 0)::float8 from pg_stat_io where object = 'wal'),
       (select count(*) from alarms),
       (select coalesce(deadlocks, 0) from pg_stat_database where datname = current_database())
"""
_PERCENTS: Final = (50, 95, 99)


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """What the database has counted so far; `sync_ms` is the time of all syncs of its log."""

    totals: BatchTotals
    wal_bytes: int
    readings_bytes: int
    checkpoints: int
    transactions: int
    syncs: int
    sync_ms: float
    alarms: int
    deadlocks: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stored:
    """What the database has of a part.

    Shape: one value a message. Units: microseconds since 1970, -1 for a message whose last reading is not stored.
    """

    readings: Int64Column
    committed_us: Int64Column
    held: Int64Column


async def read_counters(conn: AsyncConnection) -> Counters:
    """Read all counters."""
    row = await (await conn.execute(_COUNTERS)).fetchone()
    assert row is not None, "the counters are one row"
    wal_bytes, readings_bytes, checkpoints, transactions, syncs, sync_ms, alarms, deadlocks = row
    return Counters(
        totals=await batch_totals(conn),
        wal_bytes=wal_bytes,
        readings_bytes=readings_bytes,
        checkpoints=checkpoints,
        transactions=transactions,
        syncs=syncs,
        sync_ms=sync_ms,
        alarms=alarms,
        deadlocks=deadlocks,
    )


async def read_stored(conn: AsyncConnection, roster: Roster, part: Part) -> Stored:
    """Read what is stored of a part's messages, and what is in quarantine."""
    first_ms = roster.opened_ms + part.steps(0)[0] * STEP_MS
    turns = part.turns(roster.meters)
    span = {
        "from_at": from_ms(first_ms + turns.start * turn_ms(part)),
        "to_at": from_ms(first_ms + turns.stop * turn_ms(part) - STEP_MS),
    }
    known = {"first_ms": first_ms, "turn_ms": turn_ms(part), "step_ms": STEP_MS, "meters": roster.meters}
    chunks = []
    async with conn.cursor() as cursor, cursor.copy(_STORED, span | known) as copy:
        async for chunk in copy:
            chunks.append(bytes(chunk))
    body = b"".join(chunks)[len(HEAD) : -len(TAIL)]
    rows = np.frombuffer(body, dtype=_STORED_ROW)
    readings, committed_us = np.zeros(part.count, dtype=np.int64), np.full(part.count, -1, dtype=np.int64)
    messages, mine = _numbered(roster, part, rows["meter_id"].astype(np.int64), rows["turn"].astype(np.int64))
    readings[messages] = rows["readings"][mine]
    committed_us[messages] = rows["committed_us"][mine]
    held = np.zeros(part.count, dtype=np.int64)
    cursor = await conn.execute(_HELD, span | {"prefix": f"{SERIAL_PREFIX}%"})
    for serial, read_at in await cursor.fetchall():
        turn = (to_ms(read_at) - first_ms) // turn_ms(part)
        number = np.array([int(serial.removeprefix(SERIAL_PREFIX))], dtype=np.int64)
        held[_numbered(roster, part, number, np.array([turn], dtype=np.int64))[0]] += 1
    return Stored(readings=readings, committed_us=committed_us, held=held)


def _numbered(
    roster: Roster, part: Part, meters: Int64Column, turns: Int64Column
) -> tuple[Int64Column, npt.NDArray[np.bool_]]:
    """Return the places in a part of messages by meter and turn, and which of them are the part's."""
    place_of = np.empty(roster.meters + 1, dtype=np.int64)
    place_of[roster.order()] = np.arange(roster.meters)
    messages = turns * roster.meters + place_of[meters] - part.first
    mine = (messages >= 0) & (messages < part.count)
    return messages[mine], mine


def lost_readings(sent: Sent, stored: Stored) -> int:
    """Count the readings of acknowledged messages that are neither stored nor in quarantine."""
    missing = np.maximum(sent.part.intervals - stored.readings - stored.held, 0)
    return int(missing[sent.acked_ns >= 0].sum())


def to_puback_ms(sent: Sent) -> dict[str, float | int]:
    """Return percentiles of the time from when a message was due to its PUBACK."""
    there = sent.acked_ns >= 0
    return percentiles_ms((sent.acked_ns - sent.due_ns)[there] / 1e6)


def to_commit_ms(sent: Sent, stored: Stored) -> dict[str, float | int]:
    """Return percentiles of the time from when a message was due to the commit of its readings."""
    return percentiles_ms(_committed_after_ms(sent, stored))


def left_late_ms(sent: Sent) -> dict[str, float | int]:
    """Return percentiles of how late messages left: the flood's own doing, or a full window's."""
    there = sent.sent_ns >= 0
    return percentiles_ms((sent.sent_ns - sent.due_ns)[there] / 1e6)


def lag_at_end_ms(sent: Sent, stored: Stored, last_s: float = 1.0) -> float:
    """Return how long the messages of the last second took to their commit, by the 95th of 100 of them."""
    last = sent.due_ns >= sent.due_ns.max(initial=0) - last_s * 1e9
    took_ms = _committed_after_ms(sent, stored, last)
    return float(np.percentile(took_ms, 95)) if len(took_ms) else float("inf")


def percentiles_ms(took_ms: npt.NDArray[np.float64]) -> dict[str, float | int]:
    """Return percentiles by nearest rank, rounded to a tenth."""
    if not len(took_ms):
        return {"of": 0}
    values = np.percentile(took_ms, (*_PERCENTS, 100), method="inverted_cdf")
    names = (*(f"p{percent}" for percent in _PERCENTS), "max")
    return {"of": len(took_ms), **{name: round(float(value), 1) for name, value in zip(names, values, strict=True)}}


def _committed_after_ms(
    sent: Sent, stored: Stored, only: npt.NDArray[np.bool_] | None = None
) -> npt.NDArray[np.float64]:
    there = stored.committed_us >= 0
    if only is not None:
        there &= only
    took_ns = stored.committed_us[there] * 1_000 - (sent.began_at_ns + sent.due_ns[there])
    return took_ns / 1e6
