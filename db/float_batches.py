"""Batches of a vendor's sales: runs of its float's entries, cut while nothing moves the float.

Stage: beside the sales, which know nothing of batches. A sales batch is of one terminal, a shift of one operator, a
bank batch of the whole vendor; each begins where the one before it ended, so that every sale is in exactly one of each
kind. A row is written when a batch is started or ended by somebody; one that only goes on has none. What an ended
batch holds never changes: its report is read again, never stored.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime

from psycopg import AsyncConnection
from psycopg.rows import class_row

from db.errors import DatabaseError
from db.floats import lock_float
from db.named import sql


class BatchUnknown(DatabaseError):
    """A batch that has not begun: its number is above that of the open one."""

    code = "unknown_batch"


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchOf:
    """Whose batches: `scope` is the terminal of `sales`, the operator of a `shift`, empty for `bank`."""

    vendor_id: int
    kind: str
    scope: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """A run of entries from `first_n` to `last_n`, or without an end while it is open.

    `began_at` is when the one before it ended; None for the first. Who started it is None if nobody said so.
    """

    scope: str
    number: int
    first_n: int
    last_n: int | None = None
    began_at: datetime | None
    started_at: datetime | None = None
    started_by: str | None = None
    ended_at: datetime | None = None
    ended_by: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EntrySum:
    """Entries of one terminal, kind and tender together; `amount_minor` is what they added to the float."""

    terminal: str
    kind: str
    tender: str
    count: int
    amount_minor: int
    first_at: datetime


async def open_batch(conn: AsyncConnection, of: BatchOf) -> Batch:
    """Return the batch that the next sale falls into."""
    last = await _batch(conn, of, None)
    if last is None:
        return Batch(scope=of.scope, number=1, first_n=1, began_at=None)
    if last.last_n is None:
        return last
    return Batch(scope=of.scope, number=last.number + 1, first_n=last.last_n + 1, began_at=last.ended_at)


async def find_batch(conn: AsyncConnection, of: BatchOf, number: int) -> Batch:
    """Return a batch by its number, the open one too.

    Raises: BatchUnknown.
    """
    batch = await _batch(conn, of, number) or await open_batch(conn, of)
    if batch.number != number:
        raise BatchUnknown(f"batch of {of.kind} {of.scope}: expected a number up to {batch.number}, got {number}")
    return batch


async def start_batch(conn: AsyncConnection, of: BatchOf, by: str) -> Batch:
    """Note who starts the open batch and when; one that was started stays as it was. In the caller's transaction.

    Raises: UnknownVendor.
    """
    await lock_float(conn, of.vendor_id)
    batch = await open_batch(conn, of)
    if batch.started_at is not None:
        return batch
    await conn.execute(sql("start_batch"), {**asdict(of), "number": batch.number, "first_n": batch.first_n, "by": by})
    return await find_batch(conn, of, batch.number)


async def end_batch(conn: AsyncConnection, of: BatchOf, number: int, by: str) -> Batch:
    """End a batch after the latest sale; again, or by another station at once, the same batch is returned.

    In the caller's transaction. Raises: BatchUnknown, UnknownVendor.
    """
    # Every sale either has its entry by now, or waits for this lock and falls into the next batch.
    entries = await lock_float(conn, of.vendor_id)
    batch = await find_batch(conn, of, number)
    if batch.last_n is not None:
        return batch
    ended = {**asdict(of), "number": number, "first_n": batch.first_n, "last_n": entries, "by": by}
    await conn.execute(sql("end_batch"), ended)
    return await find_batch(conn, of, number)


async def list_batches(conn: AsyncConnection, vendor_id: int, kind: str, *, most: int) -> list[Batch]:
    """Read the latest batches of a kind that somebody has started or ended, the newest first."""
    async with conn.cursor(row_factory=class_row(Batch)) as cursor:
        await cursor.execute(sql("batches_of_kind"), {"vendor_id": vendor_id, "kind": kind, "most": most})
        return await cursor.fetchall()


async def sum_batch(conn: AsyncConnection, of: BatchOf, batch: Batch) -> list[EntrySum]:
    """Sum a batch's sales and reversals; so far, if it is open."""
    parameters = {**asdict(of), "first_n": batch.first_n, "last_n": batch.last_n}
    async with conn.cursor(row_factory=class_row(EntrySum)) as cursor:
        await cursor.execute(sql("sum_batch"), parameters)
        return await cursor.fetchall()


async def _batch(conn: AsyncConnection, of: BatchOf, number: int | None) -> Batch | None:
    """Read a batch that has a row: by its number, or the latest."""
    async with conn.cursor(row_factory=class_row(Batch)) as cursor:
        await cursor.execute(sql("find_batch"), {**asdict(of), "number": number})
        return await cursor.fetchone()
