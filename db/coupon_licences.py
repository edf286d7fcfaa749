"""Licences of stations without a line, and the logs of what these sold, as rows.

Stage: inside the transactions of the coupon desk, under the lock of `lock_licence`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from psycopg import AsyncConnection
from psycopg.rows import class_row, dict_row
from psycopg.types.json import Jsonb

from db.named import sql


@dataclass(frozen=True, slots=True, kw_only=True)
class LicenceRow:
    """A licence under its lock; `held_minor` of its vendor's money, of which its coupons have drawn `drawn_minor`."""

    id: int
    vendor_id: int
    station: str
    station_key: bytes
    valid_from: datetime
    valid_until: datetime
    limit_minor: int
    held_minor: int
    drawn_minor: int
    ranges: list[dict[str, str]]
    signed: dict[str, Any] | None
    state: str
    revoked_at: datetime | None
    log_seq: int
    log_digest: str
    log_latest: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewLicence:
    """A licence before it has its number."""

    vendor_id: int
    station: str
    station_key: bytes
    valid_from: datetime
    valid_until: datetime
    limit_minor: int
    ranges: Sequence[Mapping[str, str]]
    given_at: datetime
    given_by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LicensedCoupon:
    """A coupon of a licence under its lock."""

    id: int
    serial: str
    state: str
    amount_minor: int
    sold_on: date | None
    vend_id: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LogEntry:
    """An entry of a station's log with what is odd about it."""

    seq: int
    serial: str
    amount_minor: int
    sold_at: datetime
    digest: str
    signature: str
    findings: Sequence[str]


async def add_licence(conn: AsyncConnection, new: NewLicence) -> int:
    """Store a licence, its whole limit held of its vendor's money; return its number."""
    told = {name: getattr(new, name) for name in NewLicence.__dataclass_fields__}
    cursor = await conn.execute(sql("add_licence"), told | {"ranges": Jsonb([dict(each) for each in new.ranges])})
    row = await cursor.fetchone()
    assert row is not None, "add_licence returns its id"
    return int(row[0])


async def keep_signed(
    conn: AsyncConnection,
    licence_id: int,
    signed: Mapping[str, Any],
    *,
    log_digest: str,  # JSON.
) -> None:
    """Keep a licence as its station gets it, and what its log begins with."""
    parameters = {"id": licence_id, "signed": Jsonb(dict(signed)), "log_digest": log_digest}
    await conn.execute(sql("sign_licence"), parameters)


async def lock_licence(conn: AsyncConnection, licence_id: int) -> LicenceRow | None:
    """Lock a licence and read it."""
    async with conn.cursor(row_factory=class_row(LicenceRow)) as cursor:
        await cursor.execute(sql("lock_licence"), {"id": licence_id})
        return await cursor.fetchone()


async def list_licences(conn: AsyncConnection) -> list[dict[str, Any]]:  # Columns as the query says.
    """Read all licences and how far their logs are known."""
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(sql("list_licences"))
        return await cursor.fetchall()


async def reserve(conn: AsyncConnection, licence_id: int, coupon_ids: Sequence[int]) -> None:
    """Set locked coupons in stock aside for a licence."""
    cursor = await conn.execute(sql("reserve_coupons"), {"licence_id": licence_id, "ids": list(coupon_ids)})
    assert cursor.rowcount == len(coupon_ids), "coupons of a licence are locked and issued"


async def draw(conn: AsyncConnection, licence_id: int, amount_minor: int) -> bool:
    """Take a coupon of the money held for its licence; False when not so much is left."""
    cursor = await conn.execute(sql("draw_licence"), {"id": licence_id, "amount_minor": amount_minor})
    return cursor.rowcount == 1


async def hold_more(conn: AsyncConnection, licence_id: int, amount_minor: int) -> None:
    """Add what a licence's vendor has paid beyond its limit."""
    await conn.execute(sql("hold_more"), {"id": licence_id, "amount_minor": amount_minor})


async def revoke(conn: AsyncConnection, licence_id: int, at: datetime) -> bool:
    """Put a licence out of force; False when it was not in force."""
    return (await conn.execute(sql("revoke_licence"), {"id": licence_id, "at": at})).rowcount == 1


async def close(conn: AsyncConnection, licence_id: int) -> None:
    """End a locked licence: nothing is held for it any more, its unsold coupons are in stock again."""
    await conn.execute(sql("close_licence"), {"id": licence_id})
    await conn.execute(sql("release_reserved"), {"licence_id": licence_id})


async def read_revoked(conn: AsyncConnection) -> list[int]:
    """Read the numbers of licences on the revocation list."""
    return [row[0] for row in await (await conn.execute(sql("revoked_licences"))).fetchall()]


async def read_known(conn: AsyncConnection, licence_id: int, seqs: Sequence[int]) -> dict[int, str]:
    """Read the digests of known entries by number."""
    cursor = await conn.execute(sql("known_log_digests"), {"licence_id": licence_id, "seqs": list(seqs)})
    return dict(await cursor.fetchall())


async def read_logged(conn: AsyncConnection, licence_id: int, serials: Sequence[str]) -> set[str]:
    """Read which coupons the log of a licence has told of as sold."""
    cursor = await conn.execute(sql("logged_serials"), {"licence_id": licence_id, "serials": list(serials)})
    return {row[0] for row in await cursor.fetchall()}


async def lock_licensed(conn: AsyncConnection, licence_id: int, serials: Sequence[str]) -> dict[str, LicensedCoupon]:
    """Lock coupons of a licence, by serial."""
    async with conn.cursor(row_factory=class_row(LicensedCoupon)) as cursor:
        await cursor.execute(sql("lock_licensed_coupons"), {"licence_id": licence_id, "serials": list(serials)})
        return {row.serial: row for row in await cursor.fetchall()}


async def sell_licensed(conn: AsyncConnection, sold: Mapping[int, tuple[date, date]]) -> None:
    """Mark locked coupons as sold: by id, on which day, valid until which."""
    if not sold:
        return
    parameters = {
        "ids": list(sold),
        "sold_ons": [sold_on for sold_on, _ in sold.values()],
        "untils": [until for _, until in sold.values()],
    }
    await conn.execute(sql("sell_licensed"), parameters)


async def add_entries(
    conn: AsyncConnection, licence_id: int, entries: Sequence[LogEntry], *, at: datetime, latest: datetime
) -> None:
    """Append entries to a locked licence's log. At least one, the last one being the latest by number."""
    parameters = {
        "licence_id": licence_id,
        "uploaded_at": at,
        "seqs": [each.seq for each in entries],
        "serials": [each.serial for each in entries],
        "amounts": [each.amount_minor for each in entries],
        "sold_ats": [each.sold_at for each in entries],
        "digests": [each.digest for each in entries],
        "signatures": [each.signature for each in entries],
        "findings": [Jsonb(list(each.findings)) for each in entries],
    }
    await conn.execute(sql("add_log_entries"), parameters)
    advance = {"id": licence_id, "seq": entries[-1].seq, "digest": entries[-1].digest, "latest": latest}
    await conn.execute(sql("advance_log"), advance)


async def add_refusal(conn: AsyncConnection, licence_id: int, *, at: datetime, code: str, message: str) -> None:
    """Keep an upload that was refused."""
    parameters = {"licence_id": licence_id, "at": at, "code": code, "message": message}
    await conn.execute(sql("add_log_refusal"), parameters)


async def read_findings(conn: AsyncConnection, licence_id: int) -> list[dict[str, Any]]:  # Columns as the query says.
    """Read the sales of a licence with something odd about them."""
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(sql("log_findings"), {"licence_id": licence_id})
        return await cursor.fetchall()
