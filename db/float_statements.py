"""What moved a vendor's float in a span of time, as a statement reads it.

Stage: reading only, without a lock. Entries are never changed and their times never fall, so that a span that is over
reads the same for ever: opening, each entry, closing.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from psycopg import AsyncConnection
from psycopg.rows import class_row

from db.float_batches import EntrySum
from db.named import sql


@dataclass(frozen=True, slots=True, kw_only=True)
class FloatSpan:
    """The entries of a span: those after `before_n` up to `last_n`, and the float at both ends. Minor units."""

    before_n: int
    last_n: int
    opening_minor: int
    closing_minor: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FloatEntry:
    """One entry. `reference` is the message id of a vend or of what is reversed, or the reference of a deposit."""

    n: int
    booked_at: datetime
    kind: str
    amount_minor: int
    balance_minor: int
    reference: str
    account: str | None
    terminal: str | None
    operator: str | None
    tender: str | None


async def find_span(conn: AsyncConnection, vendor_id: int, from_at: datetime, until_at: datetime) -> FloatSpan:
    """Find the entries booked from one instant to before another."""
    async with conn.cursor(row_factory=class_row(FloatSpan)) as cursor:
        await cursor.execute(sql("float_span"), {"vendor_id": vendor_id, "from_at": from_at, "until_at": until_at})
        span = await cursor.fetchone()
    assert span is not None, "float_span returns one row"
    return span


async def read_entries(
    conn: AsyncConnection, vendor_id: int, *, after_n: int, last_n: int, most: int
) -> list[FloatEntry]:
    """Read entries in their order, so many after one of them."""
    parameters = {"vendor_id": vendor_id, "after_n": after_n, "last_n": last_n, "most": most}
    async with conn.cursor(row_factory=class_row(FloatEntry)) as cursor:
        await cursor.execute(sql("float_entries_of"), parameters)
        return await cursor.fetchall()


async def sum_span(conn: AsyncConnection, vendor_id: int, span: FloatSpan) -> list[EntrySum]:
    """Sum the entries of a span by terminal, kind and tender."""
    parameters = {"vendor_id": vendor_id, "before_n": span.before_n, "last_n": span.last_n}
    async with conn.cursor(row_factory=class_row(EntrySum)) as cursor:
        await cursor.execute(sql("sum_entries"), parameters)
        return await cursor.fetchall()
