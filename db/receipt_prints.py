"""Prints of slips as rows: the original, and each duplicate after it.

Stage: inside the transaction that reads a sale to print it. What is printed is decided by the caller.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg import AsyncConnection
from psycopg.rows import class_row

from db.named import sql


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSlip:
    """What a message id was answered, as it stands now.

    Invariants: `first_at` and `last_at` are None exactly while `prints` is 0; `cancelled` is a vend that was reversed
    before its token was given out.
    """

    status: int
    # JSON as stored; its shape is the interface's, not ours.
    answer: dict[str, Any]
    state: str
    cancelled: bool
    prints: int
    first_at: datetime | None
    last_at: datetime | None


async def read_slip(conn: AsyncConnection, vendor_id: int, message_id: str) -> StoredSlip | None:
    """Read what a vendor's message id was answered."""
    async with conn.cursor(row_factory=class_row(StoredSlip)) as cursor:
        await cursor.execute(sql("slip_of_message"), {"vendor_id": vendor_id, "message_id": message_id})
        return await cursor.fetchone()


async def add_print(
    conn: AsyncConnection,
    vendor_id: int,
    message_id: str,
    *,
    at: datetime,
    key_id: str,
    form: str,
    language: str,
    least: int,
) -> tuple[int, datetime]:
    """Count one more print, under number `least` or a later one; return its number and instant.

    The caller holds the lock of the message id.
    """
    parameters = {
        "vendor_id": vendor_id,
        "message_id": message_id,
        "at": at,
        "key_id": key_id,
        "form": form,
        "language": language,
        "least": least,
    }
    cursor = await conn.execute(sql("add_print"), parameters)
    row = await cursor.fetchone()
    assert row is not None, "add_print returns its row"
    return int(row[0]), row[1]
