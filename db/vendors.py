"""Vendors as the utility deals with them: their credit limits, and whether they may sell.

Stage: administration. Every change is dated, with who and why, and holds from the moment it is committed: a sale that
is under way is judged by what stands when it takes from the float.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from psycopg import AsyncConnection
from psycopg.rows import class_row

from db.named import sql


@dataclass(frozen=True, slots=True, kw_only=True)
class VendorChange:
    """Something that was changed of a vendor: `limit` (None is no limit), `stop` or `resume`."""

    at: datetime
    act: str
    limit_minor: int | None
    by: str
    reason: str


async def set_limit(conn: AsyncConnection, vendor_id: int, limit_minor: int | None, *, by: str, reason: str) -> None:
    """Set how far below zero a vendor's float may go; None is no limit.

    A vendor that owes more than that already sells nothing until it has paid.
    """
    change = {"vendor_id": vendor_id, "limit_minor": limit_minor, "by": by, "reason": reason}
    cursor = await conn.execute(sql("set_vendor_limit"), change)
    assert cursor.rowcount == 1, f"vendor {vendor_id}: expected one with a float"


async def set_active(conn: AsyncConnection, vendor_id: int, *, active: bool, by: str, reason: str) -> None:
    """Stop a vendor from selling, or let it sell again; what it was answered it can always read."""
    change = {"vendor_id": vendor_id, "active": active, "by": by, "reason": reason}
    cursor = await conn.execute(sql("set_vendor_active"), change)
    assert cursor.rowcount == 1, f"vendor {vendor_id}: expected one that is registered"


async def read_changes(conn: AsyncConnection, vendor_id: int) -> list[VendorChange]:
    """Read who changed what of a vendor, the newest first."""
    async with conn.cursor(row_factory=class_row(VendorChange)) as cursor:
        await cursor.execute(sql("vendor_changes_of"), {"vendor_id": vendor_id})
        return await cursor.fetchall()
