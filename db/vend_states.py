"""Where vends stand after their answers: moves with who and why, and what waits for somebody's word.

Stage: inside the transactions of advices and decisions. Values in, rows out; which move is right is decided by the
caller. Every move is a row for ever; money moves by `db.money_events.reverse`, which moves the vend, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from psycopg import AsyncConnection
from psycopg.rows import class_row

from db.named import sql

# The reason of a held sale that was taken back since nobody confirmed it; `db/queries/held_vends.sql` asks for it.
NEVER_CONFIRMED = "never_confirmed"


@dataclass(frozen=True, slots=True, kw_only=True)
class VendMove:
    """A vend that came to stand elsewhere."""

    at: datetime
    from_state: str
    to_state: str
    by: str
    reason: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenVend:
    """A vend that waits for a word; `delivered` is what the meter says of its token, None while it says nothing."""

    id: int
    vendor: str
    message_id: str
    terminal: str | None
    state: str
    amount_minor: int
    created_at: datetime
    account: str
    meter: str
    token_id: int
    token_tail: str
    delivered: str | None
    moved_at: datetime | None
    why: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NeverConfirmed:
    """A sale that was held and taken back, since nobody confirmed it in time."""

    id: int
    vendor: str
    message_id: str
    terminal: str | None
    amount_minor: int
    created_at: datetime
    taken_back_at: datetime


async def is_delivered(conn: AsyncConnection, vend_id: int) -> bool:
    """Tell whether the meter of a vend has accepted its token."""
    row = await (await conn.execute(sql("vend_delivered"), {"vend_id": vend_id})).fetchone()
    return row is not None and bool(row[0])


async def move_vend(
    conn: AsyncConnection, vend_id: int, *, from_state: str, to_state: str, at: datetime, by: str, reason: str | None
) -> bool:
    """Let a vend stand elsewhere; False when it stood elsewhere already."""
    parameters = {
        "vend_id": vend_id,
        "from_state": from_state,
        "to_state": to_state,
        "at": at,
        "by": by,
        "reason": reason,
    }
    cursor = await conn.execute(sql("move_vend"), parameters)
    return cursor.rowcount == 1


async def note_early_confirmation(
    conn: AsyncConnection, vendor_id: int, message_id: str, *, at: datetime, by: str
) -> None:
    """Keep the confirmation of a vend that is not known here yet."""
    parameters = {"vendor_id": vendor_id, "message_id": message_id, "at": at, "by": by}
    await conn.execute(sql("add_early_confirmation"), parameters)


async def moves_of(conn: AsyncConnection, vend_id: int) -> list[VendMove]:
    """Read what became of a vend after its answer."""
    async with conn.cursor(row_factory=class_row(VendMove)) as cursor:
        await cursor.execute(sql("vend_moves"), {"vend_id": vend_id})
        return await cursor.fetchall()


async def read_open_vends(conn: AsyncConnection, *, after: int, most: int) -> list[OpenVend]:
    """Read vends that wait for somebody's word, the oldest first, from after a vend on."""
    async with conn.cursor(row_factory=class_row(OpenVend)) as cursor:
        await cursor.execute(sql("open_vends"), {"after": after, "most": most})
        return await cursor.fetchall()


async def held_before(conn: AsyncConnection, before: datetime, *, most: int) -> list[int]:
    """Return some sales that are held since before an instant, the oldest first."""
    cursor = await conn.execute(sql("held_before"), {"before": before, "most": most})
    return [row[0] for row in await cursor.fetchall()]


async def never_confirmed_vends(conn: AsyncConnection, *, since: datetime, most: int) -> list[NeverConfirmed]:
    """Read sales that were taken back since an instant because nobody confirmed them."""
    async with conn.cursor(row_factory=class_row(NeverConfirmed)) as cursor:
        await cursor.execute(sql("never_confirmed_vends"), {"since": since, "most": most})
        return await cursor.fetchall()


async def vend_by_id(conn: AsyncConnection, vend_id: int) -> tuple[int, str] | None:
    """Return the vendor and message id of a vend."""
    row = await (await conn.execute(sql("vend_by_id"), {"vend_id": vend_id})).fetchone()
    return None if row is None else (int(row[0]), str(row[1]))


async def last_vend(conn: AsyncConnection, vendor_id: int, terminal: str | None) -> int | None:
    """Return the latest vend of a vendor, of one of its terminals where one is named."""
    row = await (await conn.execute(sql("last_answer"), {"vendor_id": vendor_id, "terminal": terminal})).fetchone()
    return None if row is None else int(row[0])


async def last_vend_of_meter(conn: AsyncConnection, vendor_id: int, meter_id: int) -> int | None:
    """Return the latest sale of a vendor to a meter."""
    cursor = await conn.execute(sql("last_sale_of_meter"), {"vendor_id": vendor_id, "meter_id": meter_id})
    row = await cursor.fetchone()
    return None if row is None else int(row[0])
