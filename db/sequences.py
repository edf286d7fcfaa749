"""Sequence numbers in and out of the database: noted with each batch, counted later, told by meter.

Stage: numbers are noted inside the transaction that stores their messages, a row a shard; an hour later they are taken
together, so that a meter's row changes once for all of them. What they mean is decided by `headend.sequences`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from psycopg import AsyncConnection
from psycopg.rows import class_row

from db.named import array_text, sql

# What came of a meter: number, when it was made in UTC milliseconds, whether any of it was quarantined.
CameOf = tuple[int, int, bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackRow:
    """What is known of a meter's count, see `headend.sequences.Track`; `holes` has epoch, first and last of each."""

    meter_id: int
    epoch: int
    began_ms: int
    last_seq: int
    last_ms: int
    came: int
    duplicate: int
    quarantined: int
    given_up: int
    holes: list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class MissingRow(TrackRow):
    """A meter of which something is missing."""

    serial: str
    since: datetime
    heard_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceTotals:
    """Messages of all meters that count theirs: `sent` = `stored` + `quarantined` + `missing`."""

    meters: int
    meters_missing: int
    sent: int
    stored: int
    duplicate: int
    quarantined: int
    missing: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NumberedMeter:
    """A meter, and since when its messages are counted; None where none was counted yet."""

    id: int
    shard: int
    since: datetime | None
    heard_at: datetime | None


@dataclass(slots=True, kw_only=True)
class Came:
    """What came of one meter, in its order, and when the last of it did."""

    numbers: list[CameOf]
    heard_at: datetime


async def send_arrivals(
    conn: AsyncConnection, numbers: Iterable[tuple[int | None, int, int, int, bytes]], held: Collection[bytes]
) -> None:
    """Note numbers (shard, meter, number, when made, payload) that came with a batch; `held` are quarantined payloads.

    Sends nothing where no meter counts its messages.
    """
    by_shard: defaultdict[int, list[tuple[int, int, int, bytes]]] = defaultdict(list)
    for shard, meter_id, seq, sent_ms, payload in numbers:
        if shard is not None:
            by_shard[shard].append((meter_id, seq, sent_ms, payload))
    if not by_shard:
        return
    found = by_shard.values()
    held = frozenset(held)
    await conn.execute(
        sql("add_arrivals"),
        {
            "shards": list(by_shard),
            "meter_ids": [array_text(each[0] for each in of) for of in found],
            "seqs": [array_text(each[1] for each in of) for of in found],
            "sent_ms": [array_text(each[2] for each in of) for of in found],
            "quarantined": [
                array_text(place for place, each in enumerate(of, start=1) if held and each[3] in held) for of in found
            ],
        },
    )


async def lock_arrivals(conn: AsyncConnection) -> bool:
    """Be the one that counts, up to the end of the transaction; False if another process is."""
    cursor = await conn.execute(sql("lock_arrivals"))
    row = await cursor.fetchone()
    return bool(row and row[0])


async def arrivals_due(conn: AsyncConnection, before: datetime) -> list[int]:
    """Return the shards that have numbers from before an instant."""
    cursor = await conn.execute(sql("arrivals_due"), {"before": before})
    return [row[0] for row in await cursor.fetchall()]


async def take_arrivals(conn: AsyncConnection, shard: int, *, most: int) -> dict[int, Came]:
    """Take the next numbers of a shard, some `most` messages, by meter; they are gone with the transaction."""
    came: dict[int, Came] = {}
    async with conn.cursor(binary=True) as cursor:
        await cursor.execute(sql("take_arrivals"), {"shard": shard, "most": most})
        async for meter_ids, seqs, sent_ms, quarantined, arrived_at in cursor:
            held = set(quarantined)
            for place, (meter_id, seq, made_ms) in enumerate(zip(meter_ids, seqs, sent_ms, strict=True), start=1):
                of = came.get(meter_id)
                if of is None:
                    of = came[meter_id] = Came(numbers=[], heard_at=arrived_at)
                of.numbers.append((seq, made_ms, place in held))
                of.heard_at = arrived_at
    return came


async def arrivals_of(conn: AsyncConnection, meter: NumberedMeter) -> Came | None:
    """Read what came of a meter and is not counted yet."""
    cursor = await conn.execute(sql("arrivals_of_meter"), {"shard": meter.shard, "meter_id": meter.id})
    rows = await cursor.fetchall()
    if not rows:
        return None
    return Came(numbers=[(seq, sent_ms, held) for seq, sent_ms, held, _ in rows], heard_at=rows[-1][3])


async def read_tracks(conn: AsyncConnection, meter_ids: Collection[int]) -> dict[int, TrackRow]:
    """Return what is known of some meters' counts, by meter."""
    async with conn.cursor(row_factory=class_row(TrackRow)) as cursor:
        await cursor.execute(sql("sequence_tracks"), {"meter_ids": list(meter_ids)})
        return {row.meter_id: row for row in await cursor.fetchall()}


async def save_tracks(conn: AsyncConnection, rows: Sequence[tuple[TrackRow, int, datetime]]) -> None:
    """Keep what is known of meters' counts now: row, number missing, when last heard of."""
    tracks = [row for row, _, _ in rows]
    await conn.execute(
        sql("save_tracks"),
        {
            "meter_ids": [row.meter_id for row in tracks],
            "heard_ats": [heard_at for _, _, heard_at in rows],
            "epochs": [row.epoch for row in tracks],
            "began_ms": [row.began_ms for row in tracks],
            "last_seqs": [row.last_seq for row in tracks],
            "last_ms": [row.last_ms for row in tracks],
            "came": [row.came for row in tracks],
            "duplicate": [row.duplicate for row in tracks],
            "quarantined": [row.quarantined for row in tracks],
            "given_up": [row.given_up for row in tracks],
            "missing": [missing for _, missing, _ in rows],
            "holes": [array_text(row.holes) for row in tracks],
        },
    )


async def find_numbered(conn: AsyncConnection, serial: str) -> NumberedMeter | None:
    """Find a meter by its serial."""
    async with conn.cursor(row_factory=class_row(NumberedMeter)) as cursor:
        await cursor.execute(sql("numbered_meter"), {"serial": serial})
        return await cursor.fetchone()


async def read_totals(conn: AsyncConnection) -> SequenceTotals:
    """Sum over all meters that count their messages, as far as they are counted here."""
    async with conn.cursor(row_factory=class_row(SequenceTotals)) as cursor:
        await cursor.execute(sql("sequence_totals"))
        row = await cursor.fetchone()
    assert row is not None, "sequence_totals returns one row"
    return row


async def arrivals_waiting(conn: AsyncConnection) -> tuple[int, datetime | None]:
    """Return how many messages came and are not counted yet, and when the first of them did."""
    cursor = await conn.execute(sql("arrivals_waiting"))
    row = await cursor.fetchone()
    assert row is not None, "arrivals_waiting returns one row"
    return row[0], row[1]


async def meters_missing(conn: AsyncConnection, *, skip: int, most: int) -> list[MissingRow]:
    """List the meters of which most is missing, after the first `skip`."""
    async with conn.cursor(row_factory=class_row(MissingRow)) as cursor:
        await cursor.execute(sql("meters_missing"), {"skip": skip, "most": most})
        return await cursor.fetchall()
