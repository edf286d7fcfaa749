"""Vending keys, the loads that bring them in, and what was done to them, as rows; keys and components are sealed.

Stage: inside the transactions of key custody. Values in, rows out and back; what may be loaded or retired is decided
by the caller.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from psycopg import AsyncConnection
from psycopg.rows import class_row, dict_row

from db.named import sql


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRow:
    """A vending key without its secret; the last three are None for one from before custody was recorded."""

    sgc: str
    krn: int
    dkga: int
    check_value: str
    loaded_at: datetime | None
    loaded_by: str | None
    loaded_beside: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyLoad:
    """A load that waits for its second component; `check_value` is that of the first."""

    id: int
    sgc: str
    krn: int
    dkga: int
    component: bytes = field(repr=False)
    check_value: str
    begun_by: str
    begun_at: datetime
    lapses_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyEvent:
    """Something that was done to a vending key; `beside` is the second person."""

    at: datetime
    event: str
    sgc: str
    krn: int
    dkga: int
    check_value: str
    by: str
    beside: str | None = None
    reason: str | None = None


async def read_sealed_keys(conn: AsyncConnection) -> list[tuple[str, int, bytes]]:
    """Read every vending key, sealed: supply group, revision, bytes."""
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(sql("sealed_vending_keys"))
        return [(row["sgc"], row["krn"], bytes(row["sealed"])) async for row in cursor]


async def add_sealed_key(
    conn: AsyncConnection, *, sgc: str, krn: int, dkga: int, sealed: bytes, check_value: str
) -> bytes | None:
    """Store a sealed vending key; if there is one, return that and change nothing."""
    parameters = {"sgc": sgc, "krn": krn, "dkga": dkga, "sealed": sealed, "check_value": check_value}
    cursor = await conn.execute(sql("add_vending_key"), parameters)
    if cursor.rowcount == 1:
        return None
    cursor = await conn.execute(sql("vending_key_by_id"), {"sgc": sgc, "krn": krn})
    row = await cursor.fetchone()
    assert row is not None, "a vending key was stored or found"
    return bytes(row[0])


async def list_keys(conn: AsyncConnection) -> list[KeyRow]:
    """Read every vending key without its secret."""
    async with conn.cursor(row_factory=class_row(KeyRow)) as cursor:
        await cursor.execute(sql("vending_keys_loaded"))
        return await cursor.fetchall()


async def lock_key(conn: AsyncConnection, sgc: str, krn: int) -> None:
    """Wait for other loads and retirements of a key; held to the end of the transaction. A statement of its own."""
    await conn.execute(sql("lock_vending_key"), {"sgc": sgc, "krn": krn})


async def drop_key(conn: AsyncConnection, *, sgc: str, krn: int, check_value: str) -> int | None:
    """Delete a vending key of this check value; return its DKGA, or None where there is none."""
    cursor = await conn.execute(sql("retire_vending_key"), {"sgc": sgc, "krn": krn, "check_value": check_value})
    row = await cursor.fetchone()
    return None if row is None else int(row[0])


async def count_meters_under_key(conn: AsyncConnection, sgc: str, krn: int) -> int:
    """Count the meters whose record, active or pending, names a key."""
    cursor = await conn.execute(sql("meters_under_key"), {"sgc": sgc, "krn": krn})
    row = await cursor.fetchone()
    return 0 if row is None else int(row[0])


async def add_load(
    conn: AsyncConnection,
    *,
    sgc: str,
    krn: int,
    dkga: int,
    component: bytes,
    check_value: str,
    by: str,
    now: datetime,
    lapses_at: datetime,
) -> None:
    """Store a sealed component that waits for the second one."""
    parameters = {
        "sgc": sgc,
        "krn": krn,
        "dkga": dkga,
        "component": component,
        "check_value": check_value,
        "by": by,
        "now": now,
        "lapses_at": lapses_at,
    }
    await conn.execute(sql("begin_key_load"), parameters)


async def find_load(conn: AsyncConnection, sgc: str, krn: int) -> KeyLoad | None:
    """Read the load of a key that waits, lapsed or not."""
    async with conn.cursor(row_factory=class_row(KeyLoad)) as cursor:
        await cursor.execute(sql("waiting_key_load"), {"sgc": sgc, "krn": krn})
        return await cursor.fetchone()


async def list_loads(conn: AsyncConnection) -> list[KeyLoad]:
    """Read every load that waits, lapsed or not."""
    async with conn.cursor(row_factory=class_row(KeyLoad)) as cursor:
        await cursor.execute(sql("waiting_key_loads"))
        return await cursor.fetchall()


async def end_load(conn: AsyncConnection, load_id: int, state: str) -> None:
    """End a load as complete, cancelled or lapsed, and erase its component."""
    cursor = await conn.execute(sql("end_key_load"), {"id": load_id, "state": state})
    assert cursor.rowcount == 1, f"key load {load_id}: expected one that waits, under the key's lock"


async def add_key_event(conn: AsyncConnection, event: KeyEvent) -> None:
    """Record what was done to a vending key."""
    parameters = {
        "at": event.at,
        "event": event.event,
        "sgc": event.sgc,
        "krn": event.krn,
        "dkga": event.dkga,
        "check_value": event.check_value,
        "by": event.by,
        "beside": event.beside,
        "reason": event.reason,
    }
    await conn.execute(sql("add_key_event"), parameters)


async def list_key_events(conn: AsyncConnection, limit: int) -> list[KeyEvent]:
    """Read the latest things that were done to vending keys, newest first."""
    async with conn.cursor(row_factory=class_row(KeyEvent)) as cursor:
        await cursor.execute(sql("key_events_latest"), {"limit": limit})
        return await cursor.fetchall()


async def last_key_event(conn: AsyncConnection) -> int:
    """Return the number of the latest event that changed which keys there are; 0 for none."""
    cursor = await conn.execute(sql("last_key_event"))
    row = await cursor.fetchone()
    return 0 if row is None else int(row[0])
