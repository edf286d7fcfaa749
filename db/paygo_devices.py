"""OpenPAYGO devices as rows: their makers' settings, and each key as the security module sealed it.

Stage: inside the transactions of vending and administration. Values in, rows out and back. Never: an open key.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from psycopg import AsyncConnection
from psycopg.rows import class_row

from db.named import sql


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredPaygoDevice:
    """A device as stored; the key opens only in the security module that sealed it."""

    serial: str
    starting_code: int = field(repr=False)
    time_divider: int
    restricted_digits: bool
    extended: bool
    sealed_key: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class PaygoMeter:
    """A registered meter; all that a device has is None where it is not known as one."""

    meter_id: int
    serial: str
    starting_code: int | None = field(repr=False)
    time_divider: int | None
    restricted_digits: bool | None
    extended: bool | None
    sealed_key: bytes | None = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class PaygoDeviceRow:
    """A device to be written, and the count of the last token that it has seen."""

    meter_id: int
    starting_code: int = field(repr=False)
    time_divider: int
    restricted_digits: bool
    extended: bool
    sealed_key: bytes = field(repr=False)
    count: int
    written_by: str
    reason: str


async def read_paygo_device(conn: AsyncConnection, meter_id: int) -> StoredPaygoDevice | None:
    """Read the device that a meter is; None for a meter that is none."""
    async with conn.cursor(row_factory=class_row(StoredPaygoDevice)) as cursor:
        await cursor.execute(sql("paygo_device"), {"meter_id": meter_id})
        return await cursor.fetchone()


async def meters_as_paygo(conn: AsyncConnection, serials: Sequence[str]) -> dict[str, PaygoMeter]:
    """Read the registered ones of some meters by serial."""
    async with conn.cursor(row_factory=class_row(PaygoMeter)) as cursor:
        await cursor.execute(sql("meters_as_paygo"), {"serials": list(serials)})
        return {row.serial: row for row in await cursor.fetchall()}


async def write_paygo_devices(conn: AsyncConnection, rows: Sequence[PaygoDeviceRow]) -> None:
    """Write devices; the count of a device's last token is raised to what its list says, never lowered."""
    written = [{name: getattr(row, name) for name in PaygoDeviceRow.__dataclass_fields__} for row in rows]
    async with conn.cursor() as cursor:
        await cursor.executemany(sql("write_paygo_device"), written)
        await cursor.executemany(sql("raise_paygo_count"), written)
