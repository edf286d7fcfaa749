"""Vends, tokens and interface keys as rows.

Stage: inside the transactions of vending. Values in, rows out and back; what is sold, refused or minted is decided
by the caller.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

from psycopg import AsyncConnection
from psycopg.rows import class_row, dict_row
from psycopg.types.json import Jsonb

from db.named import sql


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredAnswer:
    """What a message id is answered, for ever."""

    status: int
    # JSON as stored; its shape is the interface's, not ours.
    answer: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredVend(StoredAnswer):
    """A vend with the digest of the request that it belongs to, and where it stands.

    Invariants: `request_sha256` is None for one taken back before it came: it belongs to whatever comes.
    """

    id: int
    state: str
    request_sha256: bytes | None
    account_id: int | None
    journal_id: int | None
    amount_minor: int
    funding: str
    token_id: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageUse:
    """What a vendor's message id has been used for so far; `is_act` for something else than a vend."""

    vend: StoredVend | None
    is_act: bool
    confirmed_early: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedMeter:
    """A meter that a serial or DRN may mean; `account_id` is None where it is not billed."""

    id: int
    serial: str
    drn: str | None
    make: str
    model: str
    account_id: int | None
    # No reading of before it matters to the account's money.
    anchor_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewToken:
    """A token to be stored, under the version of its meter's record that it was made by.

    Invariants: `kind` is credit, management or key_change; `vend_id` is set for credit, `tid` for all but sections of a
    key change, `section` for those; `record_id` of a key change is the version it brings; `asked_by` and `reason` are
    set for management. `era` is the base year that the TID counts from, 0 for a plain count.
    """

    meter_id: int
    record_id: int
    engine: str
    kind: str
    era: int
    tid: int | None
    digits: str = field(repr=False)
    subclass: int | None
    vend_id: int | None = None
    section: int | None = None
    asked_by: str | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewVend:
    """A vend to be stored with its final answer; `journal_id` is None for a refusal.

    Invariants: `state` and `funding` are those of vending.vends; `request_sha256` as in `StoredVend`.
    """

    vendor_id: int
    message_id: str
    request_sha256: bytes | None
    account_id: int | None
    amount_minor: int
    journal_id: int | None
    status: int
    answer: dict[str, Any]
    state: str
    funding: str
    tender: str | None = None
    terminal: str | None = None
    operator: str | None = None
    reason: str | None = None


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


async def lock_message(conn: AsyncConnection, vendor_id: int, message_id: str) -> None:
    """Wait for other requests under the same message id; held to the end of the transaction.

    A statement of its own, and the first: what the other one stored is seen by the next statement.
    """
    await conn.execute(sql("lock_message"), {"vendor_id": vendor_id, "message_id": message_id})


async def find_message(conn: AsyncConnection, vendor_id: int, message_id: str) -> MessageUse:
    """Read what a message id was used for."""
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(sql("vend_by_message"), {"vendor_id": vendor_id, "message_id": message_id})
        return message_use_from_row(await cursor.fetchone())


def message_use_from_row(row: dict[str, Any] | None) -> MessageUse:
    """Return what a row of `vend_by_message` says."""
    assert row is not None, "vend_by_message returns one row"
    is_act, confirmed_early = row.pop("is_act"), row.pop("confirmed_early")
    vend = None if row["id"] is None else StoredVend(**row)
    return MessageUse(vend=vend, is_act=is_act, confirmed_early=confirmed_early)


async def read_system_vendor(conn: AsyncConnection, system: str) -> tuple[int, str]:
    """Return id and name of a seller of the utility's own: `coupons`, `online` or `utility`."""
    row = await (await conn.execute(sql("system_vendor"), {"system": system})).fetchone()
    assert row is not None, f"vendor: expected the system's own {system}"
    return int(row[0]), str(row[1])


async def find_meters(conn: AsyncConnection, meter: str) -> list[NamedMeter]:
    """Read the meters that a serial or DRN may mean: none, one, or one by each name."""
    async with conn.cursor(row_factory=class_row(NamedMeter)) as cursor:
        await cursor.execute(sql("meters_named"), {"meter": meter})
        return await cursor.fetchall()


async def take_tid(conn: AsyncConnection, meter_id: int, era: int, tid: int) -> None:
    """Remember a meter's latest token id in an era, under its account's lock; the database refuses one that falls."""
    await conn.execute(sql("take_tid"), {"meter_id": meter_id, "era": era, "tid": tid})


async def add_vend(conn: AsyncConnection, vend: NewVend) -> tuple[int, StoredAnswer]:
    """Store a vend; return its id, and its answer as it will be read back for ever."""
    parameters = {name: getattr(vend, name) for name in NewVend.__dataclass_fields__} | {"answer": Jsonb(vend.answer)}
    cursor = await conn.execute(sql("add_vend"), parameters)
    row = await cursor.fetchone()
    assert row is not None, "add_vend returns its row"
    return row[0], StoredAnswer(status=row[1], answer=row[2])


async def add_token(conn: AsyncConnection, token: NewToken) -> int:
    """Store a token; return its id."""
    row = await (await conn.execute(sql("add_token"), asdict(token))).fetchone()
    assert row is not None, "add_token returns its row"
    return int(row[0])


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


async def end_api_key(conn: AsyncConnection, key_id: str) -> bool:
    """Take an interface key back; False when there is none."""
    cursor = await conn.execute(sql("end_api_key"), {"key_id": key_id})
    return cursor.rowcount == 1
