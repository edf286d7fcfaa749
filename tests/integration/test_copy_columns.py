"""The vectorised COPY beside the row-by-row one, into the real table."""

import asyncio
import random
from datetime import UTC, datetime, timedelta

import pytest
from psycopg import AsyncConnection
from psycopg.errors import UniqueViolation

from db.binary_copy import encode_readings
from db.migrate import migrate
from db.pool import connect
from db.readings import columns_from_rows, copy_encoded, copy_readings, ensure_partitions
from protocols.rows import ReadingRow

pytestmark = pytest.mark.db

START = datetime(2025, 6, 1, tzinfo=UTC)
METERS, STEPS = 40, 50
INT32_MAX, INT64_MAX = 2**31 - 1, 2**63 - 1


def _rows(rng: random.Random) -> list[ReadingRow]:
    """Make readings of two days; of each channel a share of its own is null, from none to all."""
    shares = [rng.choice((0.0, 0.1, 0.5, 1.0)) for _ in range(6)]

    def channel(number: int, low: int, high: int) -> int | None:
        return None if rng.random() < shares[number] else rng.randint(low, high)

    return [
        ReadingRow(
            meter_id,
            START + timedelta(milliseconds=step * 3_600_000 + meter_id % 1000),
            rng.choice((0, rng.randint(0, INT64_MAX), INT64_MAX)),
            channel(0, 0, INT64_MAX),
            *(channel(number, -INT32_MAX - 1, INT32_MAX) for number in range(1, 6)),
        )
        for meter_id in (*range(1, METERS), INT32_MAX)
        for step in range(STEPS)
    ]


async def _stored(conn: AsyncConnection) -> list[ReadingRow]:
    cursor = await conn.execute("select * from readings order by meter_id, read_at")
    return [ReadingRow(*row) for row in await cursor.fetchall()]


@pytest.mark.parametrize("seed", range(8))
def test_columns_store_what_rows_store(database_url: str, seed: int) -> None:
    """With nulls at random, both ways of COPY leave the same table, and it holds what was sent."""
    rows = _rows(random.Random(seed))

    async def story() -> None:
        async with await connect(database_url, application="test") as conn:
            await migrate(conn)
            await ensure_partitions(conn, {(START + timedelta(days=day)).date() for day in range(4)})
            await copy_encoded(conn, encode_readings(columns_from_rows(rows)))
            by_columns = await _stored(conn)
            await conn.execute("truncate readings")
            await copy_readings(conn, rows)
            assert by_columns == await _stored(conn) == rows

    asyncio.run(story())


def test_columns_with_a_stored_key_are_refused_whole(database_url: str) -> None:
    """A reading that is there already fails the statement and leaves no row of the batch."""
    rows = _rows(random.Random(0))

    async def story() -> None:
        async with await connect(database_url, application="test") as conn:
            await migrate(conn)
            await ensure_partitions(conn, {(START + timedelta(days=day)).date() for day in range(4)})
            await copy_encoded(conn, encode_readings(columns_from_rows(rows[:1])))
            with pytest.raises(UniqueViolation):
                await copy_encoded(conn, encode_readings(columns_from_rows(rows)))
            assert await _stored(conn) == rows[:1]
            await copy_encoded(conn, encode_readings(columns_from_rows([])))
            assert await _stored(conn) == rows[:1]

    asyncio.run(story())
