"""The least that storing the readings of a run can cost: their rows by bare binary COPY, on the same server.

Stage: after a run, when its ingest has stopped. The rows go into the same table with the same key and day partitions,
in an empty database, in the order in which they arrived: batches of the mean size that ingest made, each sorted by
meter and encoded beforehand. Only COPY and commit are timed.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from statistics import median
from typing import Final
from urllib.parse import urlsplit

from psycopg import AsyncConnection

from billing.calendar import from_ms
from db.binary_copy import encode_readings
from db.migrate import migrate
from db.named import sql
from db.pool import connect
from db.readings import ensure_partitions
from loadtests.flood_frames import Part, Roster, part_columns
from loadtests.ingest_stage import Stage
from loadtests.population import STEP_MS
from protocols.columns import ReadingColumns, concatenate

# A quiet server repeats a bare COPY within 10 percent; the median of three drops one outlier.
REFERENCE_RUNS: Final = 3
# The first ones of a run: 2 to 10 seconds of COPY, and 150 MB in memory.
REFERENCE_READINGS_MAX: Final = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """Rows copied in batches of so many, and the median of the seconds that it took."""

    readings: int
    batch: int
    seconds: float

    @property
    def per_second(self) -> float:
        """Rows a second."""
        return self.readings / self.seconds

    def report(self) -> dict[str, object]:
        """Return it by name."""
        return {
            "readings": self.readings,
            "batch": self.batch,
            "runs": REFERENCE_RUNS,
            "seconds": round(self.seconds, 3),
            "readings_per_second": round(self.per_second),
        }


async def copy_bare(stage: Stage, roster: Roster, part: Part, batch: int) -> Reference:
    """Copy the first readings of a part."""
    each = part.mode.messages_per_write
    count = min(part.count, max(1, REFERENCE_READINGS_MAX // part.intervals // each) * each)
    part = replace(part, count=count)
    batches = [encode_readings(columns.sorted_by_meter()) for columns in _batches(roster, part, batch)]
    async with _database(stage) as conn:
        await conn.execute("drop database if exists bench_reference")
        await conn.execute("create database bench_reference")
    seconds = []
    async with _database(stage, "/bench_reference") as conn:
        await migrate(conn)
        turns = part.turns(roster.meters)
        steps = (*part.steps(turns.start), *part.steps(turns.stop - 1))
        first, last = (from_ms(roster.opened_ms + step * STEP_MS).date() for step in (min(steps), max(steps)))
        await ensure_partitions(conn, {first + timedelta(days=number) for number in range((last - first).days + 1)})
        for _ in range(REFERENCE_RUNS):
            await conn.execute("truncate readings")
            await conn.execute("checkpoint")
            seconds.append(await _copy_all(conn, batches))
        found = await (await conn.execute("select count(*) from readings")).fetchone()
        assert found == (part.readings,), f"reference: expected {part.readings} rows, got {found}"
    return Reference(readings=part.readings, batch=batch, seconds=median(seconds))


def _batches(roster: Roster, part: Part, batch: int) -> Iterator[ReadingColumns]:
    """Yield a part's readings as they arrive, so many at a time."""
    waiting: list[ReadingColumns] = []
    have = 0
    for columns in part_columns(roster, part):
        waiting.append(columns)
        have += len(columns)
        if have >= batch:
            together = concatenate(waiting)
            for first in range(0, have - batch + 1, batch):
                yield together.take(slice(first, first + batch))
            waiting = [together.take(slice(have - have % batch, have))]
            have %= batch
    if have:
        yield concatenate(waiting)


async def _copy_all(conn: AsyncConnection, batches: list[memoryview]) -> float:
    began_s = time.perf_counter()
    for encoded in batches:
        async with conn.transaction(), conn.cursor() as cursor, cursor.copy(sql("copy_readings")) as copy:
            await copy.write(encoded)
    return time.perf_counter() - began_s


@asynccontextmanager
async def _database(stage: Stage, path: str | None = None) -> AsyncIterator[AsyncConnection]:
    url = urlsplit(stage.parts.database_url)
    async with await connect(url._replace(path=path or url.path).geturl(), application="prepaid-bench") as conn:
        await conn.execute("set statement_timeout = 0")
        yield conn
