"""What is asked of the vending desk once besides vends, as rows: key changes, engineering tokens, fault reports.

Stage: inside the transactions of the desk, under the lock of a message id. Values in, rows out and back.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg import AsyncConnection
from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from db.named import sql


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredAct:
    """What a message id was answered, and the digest of the request that it belongs to."""

    id: int
    act: str
    request_sha256: bytes
    status: int
    # JSON as stored; its shape is the interface's, not ours.
    answer: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class NewStoredAct:
    """An answer to be stored; `act` is key_change, engineering or fault_report."""

    vendor_id: int
    message_id: str
    act: str
    request_sha256: bytes
    meter_id: int | None
    status: int
    answer: dict[str, Any]
    by: str
    terminal: str | None
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultReport:
    """A fault that a consumer told a station of."""

    number: int
    meter: str
    vendor: str
    what: str
    note: str
    phone: str | None
    reported_at: datetime


async def find_act(conn: AsyncConnection, vendor_id: int, message_id: str) -> StoredAct | None:
    """Read what a message id was answered where it is no vend's."""
    async with conn.cursor(row_factory=class_row(StoredAct)) as cursor:
        await cursor.execute(sql("act_by_message"), {"vendor_id": vendor_id, "message_id": message_id})
        return await cursor.fetchone()


async def add_act(conn: AsyncConnection, act: NewStoredAct) -> int:
    """Store an answer; return its id."""
    parameters = {name: getattr(act, name) for name in NewStoredAct.__dataclass_fields__}
    cursor = await conn.execute(sql("add_act"), parameters | {"answer": Jsonb(act.answer)})
    row = await cursor.fetchone()
    assert row is not None, "add_act returns its row"
    return int(row[0])


async def key_change_to_give(conn: AsyncConnection, record_id: int) -> tuple[list[str], bool]:
    """Return the tokens that bring a version, in order, and whether somebody has taken them to the meter."""
    row = await (await conn.execute(sql("key_change_to_give"), {"record_id": record_id})).fetchone()
    assert row is not None, "key_change_to_give returns one row"
    return row[0] or [], row[1]


async def hand_out_key_change(conn: AsyncConnection, record_id: int, *, at: datetime, by: str) -> None:
    """Keep that somebody takes a key-change set to its meter; the first one counts."""
    await conn.execute(sql("hand_out_key_change"), {"record_id": record_id, "at": at, "by": by})


async def latest_key_revision(conn: AsyncConnection, sgc: str, dkga: int) -> int | None:
    """Return the highest revision of a supply group's vending keys; None where none is stored here."""
    row = await (await conn.execute(sql("latest_key_revision"), {"sgc": sgc, "dkga": dkga})).fetchone()
    return None if row is None else row[0]


async def add_fault_report(
    conn: AsyncConnection,
    *,
    meter_id: int,
    vendor_id: int,
    what: str,
    note: str,
    phone: str | None,
    reported_at: datetime,
) -> int:
    """Store a fault; return its number."""
    parameters = {
        "meter_id": meter_id,
        "vendor_id": vendor_id,
        "what": what,
        "note": note,
        "phone": phone,
        "reported_at": reported_at,
    }
    row = await (await conn.execute(sql("add_fault_report"), parameters)).fetchone()
    assert row is not None, "add_fault_report returns its row"
    return int(row[0])


async def open_fault_reports(conn: AsyncConnection, *, after: int, most: int) -> list[FaultReport]:
    """Read faults that nobody has closed, the oldest first, from after a number on."""
    async with conn.cursor(row_factory=class_row(FaultReport)) as cursor:
        await cursor.execute(sql("open_fault_reports"), {"after": after, "most": most})
        return await cursor.fetchall()


async def close_fault_report(conn: AsyncConnection, number: int, *, at: datetime, by: str, outcome: str) -> bool:
    """Keep what was done about a fault; False where none of that number is open."""
    parameters = {"number": number, "at": at, "by": by, "outcome": outcome}
    cursor = await conn.execute(sql("close_fault_report"), parameters)
    return cursor.rowcount == 1
