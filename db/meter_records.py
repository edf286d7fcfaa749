"""The record of a meter in versions: what its tokens are made by, since when, why, and on whose word.

Stage: inside the transactions of vending and administration. Values in, rows out and back. What a record may be and
what a token of it is, the caller decides; here is what may follow upon what: one version in force, at most one pending
beside it, none ever rewritten.

Who changes a meter's record locks the account it is billed to, as a vend does, and then the meter's state row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from psycopg import AsyncConnection
from psycopg.errors import UniqueViolation
from psycopg.rows import class_row

from db.errors import DatabaseError
from db.named import sql


class RecordConflict(DatabaseError):
    """A change of a meter's record that does not fit what is there."""

    code = "record_conflict"


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordFields:
    """What a version says; the fields of other engines than its own are None."""

    engine: str
    capabilities: tuple[str, ...]
    ea: int | None = None
    tct: int | None = None
    dkga: int | None = None
    sgc: str | None = None
    key_type: int | None = None
    krn: int | None = None
    tariff_index: str | None = None
    ken: int | None = None
    base_year: int | None = None
    key_change_tokens: int | None = None
    day_price_minor: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordRow:
    """A version as stored, with what names its meter and the last token id of its era."""

    id: int
    meter_id: int
    serial: str
    make: str
    drn: str | None
    version: int
    state: str
    engine: str
    capabilities: list[str]
    ea: int | None
    tct: int | None
    dkga: int | None
    sgc: str | None
    key_type: int | None
    krn: int | None
    tariff_index: str | None
    ken: int | None
    base_year: int | None
    key_change_tokens: int | None
    day_price_minor: int | None
    last_tid: int | None
    written_at: datetime
    written_by: str
    reason: str
    settled_by: str | None
    valid_from: datetime | None
    valid_to: datetime | None

    @property
    def era(self) -> int:
        """What the meter's token ids count from: the base year, or 0 for a plain count."""
        return self.base_year or 0

    @property
    def fields(self) -> RecordFields:
        """What the version says."""
        values: dict[str, Any] = {name: getattr(self, name) for name in RecordFields.__dataclass_fields__}
        return RecordFields(**{**values, "capabilities": tuple(sorted(self.capabilities))})


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterPlace:
    """A meter by name, and the account that is billed by it."""

    id: int
    serial: str
    drn: str | None
    account_id: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenToken:
    """A token made under a version, without its digits."""

    id: int
    kind: str
    era: int
    tid: int
    last_four: str
    made_at: datetime


async def record_to_mint(conn: AsyncConnection, meter_id: int) -> RecordRow | None:
    """Read the version that a meter's next token is made under: the pending one, else the one in force."""
    return await _one(conn, "record_to_mint", {"meter_id": meter_id})


async def record_in_force(conn: AsyncConnection, meter_id: int) -> RecordRow | None:
    """Read the version that a meter is known to hold."""
    return await _one(conn, "record_in_force", {"meter_id": meter_id})


async def settled_record(conn: AsyncConnection, meter_id: int) -> RecordRow | None:
    """Read the version in force of a meter that is about to get another one. The record must be locked.

    Raises: RecordConflict while a key change is pending.
    """
    latest = await record_to_mint(conn, meter_id)
    if latest is not None and latest.state == "pending":
        raise RecordConflict(
            f"meter {latest.serial}: expected no key change under way, got version {latest.version} pending; "
            "confirm or withdraw it first"
        )
    return latest


async def record_of_token(conn: AsyncConnection, meter_id: int, digits: str) -> RecordRow | None:
    """Read the version that some digits were made under; None for digits not made here."""
    return await _one(conn, "record_of_token", {"meter_id": meter_id, "digits": digits})


async def records_of_meter(conn: AsyncConnection, meter_id: int) -> list[RecordRow]:
    """Read every version of a meter's record, the newest first."""
    async with conn.cursor(row_factory=class_row(RecordRow)) as cursor:
        await cursor.execute(sql("records_of_meter"), {"meter_id": meter_id})
        return await cursor.fetchall()


async def find_place(conn: AsyncConnection, serial: str) -> MeterPlace | None:
    """Find a meter by its serial."""
    async with conn.cursor(row_factory=class_row(MeterPlace)) as cursor:
        await cursor.execute(sql("meter_and_account"), {"serial": serial})
        return await cursor.fetchone()


async def lock_record(conn: AsyncConnection, place: MeterPlace) -> None:
    """Keep vends and other changes of a meter's record out until the transaction ends."""
    if place.account_id is not None:
        await conn.execute(sql("lock_accounts"), {"ids": [place.account_id]})
    await conn.execute(sql("lock_meter_state"), {"meter_id": place.id})


async def name_meter(conn: AsyncConnection, place: MeterPlace, drn: str) -> None:
    """Give a meter its DRN, or another one while no token was made by the one it has.

    Raises: RecordConflict when tokens bear its DRN, or another meter has this one.
    """
    if place.drn == drn:
        return
    try:
        async with conn.transaction():
            cursor = await conn.execute(sql("name_meter"), {"meter_id": place.id, "drn": drn})
    except UniqueViolation:
        raise RecordConflict(f"meter {place.serial}: expected a DRN that no other meter has, got {drn}") from None
    if cursor.rowcount != 1:
        raise RecordConflict(f"meter {place.serial}: expected its DRN {place.drn}, which has tokens, got {drn}")


async def write_record(
    conn: AsyncConnection, meter_id: int, record: RecordFields, *, by: str, reason: str, at: datetime
) -> int:
    """Write the next version and put it in force at once; return its number. Locked, and none pending."""
    await conn.execute(sql("end_active_record"), {"meter_id": meter_id, "at": at})
    _, version = await _add(conn, meter_id, record, "active", by=by, reason=reason, valid_from=at)
    return version


async def propose_record(
    conn: AsyncConnection, meter_id: int, record: RecordFields, *, by: str, reason: str
) -> tuple[int, int]:
    """Write the next version as pending beside the one in force; return its id and number. Locked, and none pending."""
    return await _add(conn, meter_id, record, "pending", by=by, reason=reason, valid_from=None)


async def begin_pending(conn: AsyncConnection, meter_id: int, *, by: str, at: datetime) -> int | None:
    """Put the pending version in force; return its number, or None where none is pending. The record must be locked."""
    pending = await record_to_mint(conn, meter_id)
    if pending is None or pending.state != "pending":
        return None
    await conn.execute(sql("end_active_record"), {"meter_id": meter_id, "at": at})
    cursor = await conn.execute(sql("begin_pending_record"), {"meter_id": meter_id, "by": by, "at": at})
    row = await cursor.fetchone()
    assert row is not None, f"meter id {meter_id}: expected its pending record to stay while it is locked"
    return int(row[0])


async def withdraw_pending(conn: AsyncConnection, meter_id: int, *, by: str) -> int | None:
    """Give the pending version up; return its number, or None where none is pending."""
    cursor = await conn.execute(sql("withdraw_pending_record"), {"meter_id": meter_id, "by": by})
    row = await cursor.fetchone()
    return None if row is None else int(row[0])


async def token_accepted(conn: AsyncConnection, meter_id: int, token_id: int) -> int | None:
    """Take note that a meter has accepted a token: the first one under its pending version puts that in force.

    Returns the version now in force because of it, or None where nothing changed. Waits for no account: it is called
    where readings are committed, and locks the pending version alone.
    """
    cursor = await conn.execute(sql("lock_pending_of_token"), {"meter_id": meter_id, "token_id": token_id})
    row = await cursor.fetchone()
    if row is None:
        return None
    version, at, tid = row
    await conn.execute(sql("end_active_record"), {"meter_id": meter_id, "at": at})
    by = f"the meter, which took token {tid}"
    await conn.execute(sql("begin_pending_record"), {"meter_id": meter_id, "by": by, "at": at})
    return int(version)


async def key_change_set(conn: AsyncConnection, record_id: int) -> list[str]:
    """Read the digits of the tokens that bring a version, in the order of their numbers."""
    cursor = await conn.execute(sql("key_change_set"), {"record_id": record_id})
    return [row[0] for row in await cursor.fetchall()]


async def open_tokens(conn: AsyncConnection, record: RecordRow, *, most: int) -> list[OpenToken]:
    """Read the newest credit and management tokens under a version: those not entered yet die with its key."""
    async with conn.cursor(row_factory=class_row(OpenToken)) as cursor:
        await cursor.execute(sql("open_tokens"), {"meter_id": record.meter_id, "record_id": record.id, "most": most})
        return await cursor.fetchall()


async def _add(
    conn: AsyncConnection,
    meter_id: int,
    record: RecordFields,
    state: str,
    *,
    by: str,
    reason: str,
    valid_from: datetime | None,
) -> tuple[int, int]:
    parameters: Mapping[str, object] = {
        **asdict(record),
        "capabilities": sorted(record.capabilities),
        "meter_id": meter_id,
        "state": state,
        "written_by": by,
        "reason": reason,
        "valid_from": valid_from,
    }
    cursor = await conn.execute(sql("add_record"), parameters)
    row = await cursor.fetchone()
    assert row is not None, "add_record returns its row"
    return int(row[0]), int(row[1])


async def _one(conn: AsyncConnection, query: str, parameters: Mapping[str, object]) -> RecordRow | None:
    async with conn.cursor(row_factory=class_row(RecordRow)) as cursor:
        await cursor.execute(sql(query), parameters)
        return await cursor.fetchone()
