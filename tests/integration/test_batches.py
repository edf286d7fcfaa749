"""The statements of a batch, against the real database: sets at a time do what rows one by one do."""

import asyncio
import hashlib
import random
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from psycopg import AsyncConnection
from psycopg.pq import PipelineStatus, TransactionStatus

from db.batches import BatchTransaction, QuarantineRow, add_counts, add_quarantine
from db.errors import LeaseLost
from db.leases import Lease, Owner, take_leases
from db.migrate import migrate
from db.pool import connect

pytestmark = pytest.mark.db

OWNER = Owner(role="ingest", name="test-owner", lease_s=10.0)
SEEN_AT = datetime(2025, 6, 1, tzinfo=UTC)
COUNTS = {
    3: {"messages": 2, "received": 48, "stored": 48},
    None: {"messages": 1, "received": 1, "rejected": 1},
    31: {"messages": 1, "received": 24, "stored": 20, "duplicate": 3, "quarantined": 1},
}


def _run(database_url: str, story: Callable[[AsyncConnection], Awaitable[None]]) -> None:
    async def told() -> None:
        async with await connect(database_url, application=OWNER.name) as conn:
            await migrate(conn)
            await story(conn)

    asyncio.run(told())


def _held(number: int, item: int = 0) -> QuarantineRow:
    raw = f"frame {number}".encode()
    return QuarantineRow(
        shard=None if number % 5 == 0 else number % 32,
        topic=f"amr/M{number}/rd\x00",
        serial=None if number % 3 == 0 else f"M{number}",
        read_at=SEEN_AT if number % 2 else None,
        reason="malformed",
        detail=f"expected JSON, got \x00, number {number}",
        raw=raw if item == 0 else b"",
        sha256=hashlib.sha256(raw).digest(),
        item=item,
        severity="warning",
        stored_at=SEEN_AT,
        rejected=number % 2 == 0,
    )


async def _quarantine(conn: AsyncConnection) -> list[tuple[object, ...]]:
    cursor = await conn.execute(
        "select shard, topic, serial, read_at, reason, detail, raw, sha256, item, times from quarantine order by id"
    )
    return await cursor.fetchall()


async def _batches(conn: AsyncConnection) -> list[tuple[object, ...]]:
    cursor = await conn.execute(
        "select shard, epoch, messages, received, stored, duplicate, rejected, quarantined from batches order by id"
    )
    return await cursor.fetchall()


def test_quarantine_of_a_batch_is_that_of_its_rows_one_by_one(database_url: str) -> None:
    """Frames that come again, in one batch or a later one, are counted up; the first one's bytes and order stay."""
    rng = random.Random(1)
    batches = [[_held(rng.randrange(12), rng.randrange(2)) for _ in range(size)] for size in (30, 0, 1, 20)]

    async def story(conn: AsyncConnection) -> None:
        for rows in batches:
            for row in rows:
                await add_quarantine(conn, [row])
        plainly = await _quarantine(conn)
        assert {row[-1] for row in plainly} > {1}
        await conn.execute("truncate quarantine")
        for rows in batches:
            await add_quarantine(conn, rows)
        assert await _quarantine(conn) == plainly

    _run(database_url, story)


def test_counts_are_one_row_a_shard_in_their_order(database_url: str) -> None:
    """Each shard's row has its lease's epoch, leftovers have none; an outcome that did not happen is 0."""

    async def story(conn: AsyncConnection) -> None:
        leases = {shard: Lease(shard=shard, epoch=10 + shard, feed_from=0) for shard in (3, 31)}
        await add_counts(conn, leases, COUNTS)
        assert await _batches(conn) == [
            (3, 13, 2, 48, 48, 0, 0, 0),
            (None, 0, 1, 1, 0, 0, 1, 0),
            (31, 41, 1, 24, 20, 3, 0, 1),
        ]

    _run(database_url, story)


def test_batch_is_opened_under_its_leases_or_leaves_nothing(database_url: str) -> None:
    """A batch whose shard has another epoch or owner aborts, counts included; one that owns all of them goes on."""

    async def story(conn: AsyncConnection) -> None:
        leases = {lease.shard: lease for lease in await take_leases(conn, OWNER, [3, 31])}

        async def write(owner: Owner, leases: dict[int, Lease], *, counted: bool, fail: bool = False) -> None:
            async with BatchTransaction(conn, owner, leases, COUNTS) as transaction:
                async with transaction.opening(counted=counted):
                    pass
                # Outside of the pipeline that began it: a COPY is possible.
                assert conn.info.pipeline_status == PipelineStatus.OFF
                if fail:
                    raise ZeroDivisionError
                async with transaction.closing():
                    pass

        for stale in (
            {**leases, 31: replace(leases[31], epoch=leases[31].epoch - 1)},
            {**leases, 31: Lease(shard=30, epoch=1, feed_from=0)},
        ):
            with pytest.raises(LeaseLost, match="expected 2 shards to be ours, got 1"):
                await write(OWNER, stale, counted=True)
        with pytest.raises(LeaseLost, match="got 0"):
            await write(replace(OWNER, name="somebody-else"), leases, counted=False)
        with pytest.raises(ZeroDivisionError):
            await write(OWNER, leases, counted=True, fail=True)
        await write(OWNER, leases, counted=False)
        assert await _batches(conn) == []
        await write(OWNER, leases, counted=True)
        assert len(await _batches(conn)) == len(COUNTS)
        assert conn.info.transaction_status is TransactionStatus.IDLE

    _run(database_url, story)
