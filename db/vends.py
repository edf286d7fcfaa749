"""Vends, tokens and interface keys as rows.

Stage: inside the transactions of vending. Values in, rows out and back; what is sold, refused or minted is decided
by the caller.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from psycopg import AsyncConnection
from psycopg.rows import class_row, dict_row
from psycopg.types.json import Jsonb

from db.named import sql


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKeyRow:
    """An interface key: of a vendor, of one account, or of an engineer."""

    key_id: str
    sha256: bytes = field(repr=False)
    role: str
    active: bool
    vendor_id: int | None
    vendor_name: str | None
    vendor_active: bool | None
    account_id: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredAnswer:
    """What a message id is answered, for ever."""

    status: int
    # JSON as stored; its shape is the interface's, not ours.
    answer: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredVend(StoredAnswer):
    """A stored answer with the digest of the request that it belongs to."""

    request_sha256: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedMeter:
    """A meter that a serial or DRN may mean; `account_id` is None where it is not billed."""

    id: int
    serial: str
    drn: str | None
    make: str
    model: str
    account_id: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterStsRow:
    """A meter's STS columns and its latest TID; all of the record is there, or `drn` is None."""

    drn: str | None
    ea: int
    dkga: int
    sgc: str
    key_type: int
    krn: int
    tariff_index: str
    ken: int
    base_year: int
    last_tid: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewVend:
    """A vend to be stored with its final answer; `journal_id` is None for a refusal."""

    vendor_id: int
    message_id: str
    request_sha256: bytes
    account_id: int | None
    amount_minor: int
    journal_id: int | None
    status: int
    answer: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchTotals:
    """Counts of a run of batches; `settled` once no row can still appear among them."""

    settled: bool
    last_id: int
    received: int
    stored: int
    duplicate: int
    rejected: int
    quarantined: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreGauges:
    """What waits in the database now; `newest_batch_age_s` is None before the first batch."""

    quarantine_rows: int
    open_orders: int
    newest_batch_age_s: float | None


async def find_api_key(conn: AsyncConnection, key_id: str) -> ApiKeyRow | None:
    """Read an interface key by its id."""
    async with conn.cursor(row_factory=class_row(ApiKeyRow)) as cursor:
        await cursor.execute(sql("api_key_by_id"), {"key_id": key_id})
        return await cursor.fetchone()


async def lock_message(conn: AsyncConnection, vendor_id: int, message_id: str) -> None:
    """Wait for other requests under the same message id; held to the end of the transaction.

    A statement of its own, and the first: what the other one stored is seen by the next statement.
    """
    await conn.execute(sql("lock_message"), {"vendor_id": vendor_id, "message_id": message_id})


async def find_vend(conn: AsyncConnection, vendor_id: int, message_id: str) -> StoredVend | None:
    """Read what a message id was answered."""
    async with conn.cursor(row_factory=class_row(StoredVend)) as cursor:
        await cursor.execute(sql("vend_by_message"), {"vendor_id": vendor_id, "message_id": message_id})
        return await cursor.fetchone()


async def find_meters(conn: AsyncConnection, meter: str) -> list[NamedMeter]:
    """Read the meters that a serial or DRN may mean: none, one, or one by each name."""
    async with conn.cursor(row_factory=class_row(NamedMeter)) as cursor:
        await cursor.execute(sql("meters_named"), {"meter": meter})
        return await cursor.fetchall()


async def read_meter_sts(conn: AsyncConnection, meter_id: int) -> MeterStsRow | None:
    """Read a meter's STS columns; None for a meter that takes no STS tokens."""
    async with conn.cursor(row_factory=class_row(MeterStsRow)) as cursor:
        await cursor.execute(sql("meter_sts"), {"meter_id": meter_id})
        row = await cursor.fetchone()
    return row if row is not None and row.drn is not None else None


async def take_tid(conn: AsyncConnection, meter_id: int, tid: int) -> None:
    """Remember a meter's latest TID, under its account's lock."""
    cursor = await conn.execute(sql("take_tid"), {"meter_id": meter_id, "tid": tid})
    assert cursor.rowcount == 1, f"TID {tid}: expected one above the last of meter id {meter_id}"


async def add_vend(conn: AsyncConnection, vend: NewVend) -> tuple[int, StoredAnswer]:
    """Store a vend; return its id, and its answer as it will be read back for ever."""
    parameters = {
        "vendor_id": vend.vendor_id,
        "message_id": vend.message_id,
        "request_sha256": vend.request_sha256,
        "account_id": vend.account_id,
        "amount_minor": vend.amount_minor,
        "journal_id": vend.journal_id,
        "status": vend.status,
        "answer": Jsonb(vend.answer),
    }
    cursor = await conn.execute(sql("add_vend"), parameters)
    row = await cursor.fetchone()
    assert row is not None, "add_vend returns its row"
    return row[0], StoredAnswer(status=row[1], answer=row[2])


async def add_token(
    conn: AsyncConnection, *, vend_id: int, meter_id: int, tid: int, digits: str, subclass: int
) -> None:
    """Store the token of a vend."""
    parameters = {"vend_id": vend_id, "meter_id": meter_id, "tid": tid, "digits": digits, "subclass": subclass}
    await conn.execute(sql("add_token"), parameters)


async def is_token_issued(conn: AsyncConnection, meter_id: int, digits: str) -> bool:
    """Tell whether digits were issued here for a meter."""
    cursor = await conn.execute(sql("token_issued"), {"meter_id": meter_id, "digits": digits})
    row = await cursor.fetchone()
    return row is not None and bool(row[0])


async def find_account(conn: AsyncConnection, number: str) -> int | None:
    """Return the id of an account by its number."""
    cursor = await conn.execute(sql("account_by_number"), {"number": number})
    row = await cursor.fetchone()
    return None if row is None else int(row[0])


async def read_consumer_name(conn: AsyncConnection, account_id: int) -> str:
    """Return the name of an account's consumer."""
    cursor = await conn.execute(sql("consumer_name"), {"account_id": account_id})
    row = await cursor.fetchone()
    return "" if row is None else str(row[0])


async def read_last_recharge(conn: AsyncConnection, account_id: int) -> tuple[int, datetime] | None:
    """Return amount (minor units) and instant of an account's latest vend."""
    cursor = await conn.execute(sql("last_recharge"), {"account_id": account_id})
    row = await cursor.fetchone()
    return None if row is None else (int(row[0]), row[1])


async def read_batch_totals(conn: AsyncConnection, after_id: int) -> list[BatchTotals]:
    """Sum the batches after one: a settled run, a young one, or fewer."""
    async with conn.cursor(row_factory=class_row(BatchTotals)) as cursor:
        await cursor.execute(sql("batch_totals_after"), {"after_id": after_id})
        return await cursor.fetchall()


async def read_gauges(conn: AsyncConnection) -> StoreGauges:
    """Read what waits in the database now."""
    async with conn.cursor(row_factory=class_row(StoreGauges)) as cursor:
        await cursor.execute(sql("store_gauges"))
        row = await cursor.fetchone()
    assert row is not None, "store_gauges returns one row"
    return row


async def add_api_key(
    conn: AsyncConnection, *, key_id: str, sha256: bytes, role: str, vendor_id: int | None, account_id: int | None
) -> None:
    """Store an interface key by the digest of its secret."""
    parameters = {
        "key_id": key_id,
        "sha256": sha256,
        "role": role,
        "vendor_id": vendor_id,
        "account_id": account_id,
    }
    await conn.execute(sql("add_api_key"), parameters)


async def end_api_key(conn: AsyncConnection, key_id: str) -> bool:
    """Take an interface key back; False when there is none."""
    cursor = await conn.execute(sql("end_api_key"), {"key_id": key_id})
    return cursor.rowcount == 1


async def read_sealed_keys(conn: AsyncConnection) -> list[tuple[str, int, bytes]]:
    """Read every vending key, sealed: supply group, revision, bytes."""
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(sql("sealed_vending_keys"))
        return [(row["sgc"], row["krn"], bytes(row["sealed"])) async for row in cursor]


async def add_sealed_key(conn: AsyncConnection, *, sgc: str, krn: int, sealed: bytes, check_value: str) -> bytes:
    """Store a sealed vending key unless there is one; return the one that is stored."""
    parameters = {"sgc": sgc, "krn": krn, "sealed": sealed, "check_value": check_value}
    await conn.execute(sql("add_vending_key"), parameters)
    cursor = await conn.execute(sql("vending_key_by_id"), {"sgc": sgc, "krn": krn})
    row = await cursor.fetchone()
    assert row is not None, "a vending key was stored or found"
    return bytes(row[0])
