"""Sent against stored: the numbers that meters give their messages, counted and told.

Stage: beside ingest, which only notes the numbers with its batches. An hour's numbers are counted together: a meter's
row then changes once an hour and not with every message. One process counts at a time, a shard a transaction.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from psycopg import AsyncConnection

from db.named import sql
from db.sequences import (
    Came,
    MissingRow,
    SequenceTotals,
    TrackRow,
    arrivals_due,
    arrivals_of,
    arrivals_waiting,
    find_numbered,
    lock_arrivals,
    meters_missing,
    read_totals,
    read_tracks,
    save_tracks,
    take_arrivals,
)
from headend.sequences import Arrival, Track

# A shard of ten million meters has 300,000 messages a quarter of an hour: 20 bytes each in the database, some 150 here.
MESSAGES_A_TURN: Final = 300_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconciled:
    """What a meter has sent by its own count, and what became of it.

    Invariants: sent = stored + quarantined + missing; `ranges` (epoch, first, last) name what is missing but for
    `given_up` of them.
    """

    serial: str
    since: datetime | None
    heard_at: datetime | None
    epoch: int
    last_seq: int | None
    sent: int
    stored: int
    duplicate: int
    quarantined: int
    missing: int
    given_up: int
    ranges: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AllReconciled:
    """The same of all meters that count their messages; `waiting` messages came and are not in it yet."""

    totals: SequenceTotals
    waiting: int
    waiting_since: datetime | None
    meters: list[Reconciled]


async def count_arrivals(conn: AsyncConnection, *, before: datetime) -> int:
    """Count the numbers of every shard that has any from before an instant; return how many messages.

    What came after it of the same shards is counted too. Another process that is counting is left to it.
    """
    counted = 0
    for shard in await arrivals_due(conn, before):
        taken = 1
        while taken:
            taken = await _count_turn(conn, shard)
            counted += taken
    return counted


async def reconcile_meter(conn: AsyncConnection, serial: str) -> Reconciled | None:
    """Tell of one meter up to the last batch; None where there is no such meter."""
    async with conn.transaction():
        # One snapshot: what is not counted yet must not be counted between two looks.
        await conn.execute(sql("look_once"))
        meter = await find_numbered(conn, serial)
        if meter is None:
            return None
        rows = await read_tracks(conn, [meter.id])
        came = await arrivals_of(conn, meter)
    track = _track(rows.get(meter.id))
    if came:
        track.follow(_arrivals(came))
    heard_at = came.heard_at if came else meter.heard_at
    return _reconciled(track, serial, since=meter.since or heard_at, heard_at=heard_at)


async def reconcile_all(conn: AsyncConnection, *, skip: int = 0, most: int) -> AllReconciled:
    """Sum over all meters and list those of which most is missing, as far as is counted."""
    async with conn.transaction():
        await conn.execute(sql("look_once"))
        totals = await read_totals(conn)
        waiting, since = await arrivals_waiting(conn)
        missing = await meters_missing(conn, skip=skip, most=most)
    return AllReconciled(totals=totals, waiting=waiting, waiting_since=since, meters=[_of_row(row) for row in missing])


async def _count_turn(conn: AsyncConnection, shard: int) -> int:
    async with conn.transaction():
        if not await lock_arrivals(conn):
            return 0
        came = await take_arrivals(conn, shard, most=MESSAGES_A_TURN)
        known = await read_tracks(conn, came)
        saved = []
        for meter_id, of in sorted(came.items()):
            track = _track(known.get(meter_id))
            track.follow(_arrivals(of))
            saved.append((_row(meter_id, track), track.missing, of.heard_at))
        if saved:
            await save_tracks(conn, saved)
    return sum(len(of.numbers) for of in came.values())


def _arrivals(came: Came) -> list[Arrival]:
    return [Arrival(seq=seq, sent_ms=sent_ms, quarantined=held) for seq, sent_ms, held in came.numbers]


def _track(row: TrackRow | None) -> Track:
    if row is None:
        return Track()
    return Track(
        epoch=row.epoch,
        began_ms=row.began_ms,
        last_seq=row.last_seq,
        last_ms=row.last_ms,
        came=row.came,
        duplicate=row.duplicate,
        quarantined=row.quarantined,
        given_up=row.given_up,
        holes=list(zip(row.holes[::3], row.holes[1::3], row.holes[2::3], strict=True)),
    )


def _row(meter_id: int, track: Track) -> TrackRow:
    return TrackRow(
        meter_id=meter_id,
        epoch=track.epoch,
        began_ms=track.began_ms,
        last_seq=track.last_seq,
        last_ms=track.last_ms,
        came=track.came,
        duplicate=track.duplicate,
        quarantined=track.quarantined,
        given_up=track.given_up,
        holes=[number for hole in track.holes for number in hole],
    )


def _of_row(row: MissingRow) -> Reconciled:
    return _reconciled(_track(row), row.serial, since=row.since, heard_at=row.heard_at)


def _reconciled(track: Track, serial: str, *, since: datetime | None, heard_at: datetime | None) -> Reconciled:
    return Reconciled(
        serial=serial,
        since=since,
        heard_at=heard_at,
        epoch=track.epoch,
        last_seq=track.last_seq if track.came else None,
        sent=track.sent,
        stored=track.stored,
        duplicate=track.duplicate,
        quarantined=track.quarantined,
        missing=track.missing,
        given_up=track.given_up,
        ranges=tuple(track.holes),
    )
