"""A sale's round trips: what is looked up before the account's lock, what under it, and what is stored.

Stage: inside a sale. A statement costs a vend some 0.2 ms of both processes together, so that there are few of them
(2026-11-22: ten with begin and commit). Values in, rows out; what is sold or refused is decided by the caller.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import Any

from psycopg import AsyncConnection, AsyncCursor
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from billing.calendar import LocalCalendar
from db.accounts import AccountView, views_from_rows
from db.floats import FloatRefused, judge_float
from db.meter_records import RecordRow
from db.named import sql
from db.prepayment import Prepayment, prepayments_from_rows
from db.vends import MessageUse, NamedMeter, NewToken, NewVend, find_meters, message_use_from_row


@dataclass(frozen=True, slots=True, kw_only=True)
class SaleStart:
    """What is known of a message id, a meter's name and a vendor's float: balance, limit, entries; None without one."""

    use: MessageUse
    meters: list[NamedMeter]
    vendor_id: int
    float_row: tuple[int, int | None, int] | None

    def float_refused(self, amount_minor: int) -> FloatRefused | None:
        """Tell whether the float does not reach, as it was seen; a seller without one is never refused."""
        return None if self.float_row is None else judge_float(self.float_row, self.vendor_id, amount_minor)


@dataclass(frozen=True, slots=True, kw_only=True)
class SaleSight:
    """What a sale has to know of an account and its meter; `row` is the record to make tokens by, None without one."""

    view: AccountView
    prepayment: Prepayment
    row: RecordRow | None


async def begin_sale(conn: AsyncConnection, vendor_id: int, message_id: str, meter: str) -> SaleStart:
    """Lock a message id and the account that the meter is billed to; what is read was committed before the locks."""
    async with conn.cursor(row_factory=dict_row) as cursor:
        what = {"vendor_id": vendor_id, "message_id": message_id, "meter": meter}
        await cursor.execute(sql("begin_sale"), what)
        rows = await cursor.fetchall()
    first = rows[0]
    use = message_use_from_row({name: first[name] for name in _USE_COLUMNS})
    has_float = first["float_minor"] is not None
    return SaleStart(
        use=use,
        meters=[_meter_from_row(row) for row in rows if row["meter_id"] is not None],
        vendor_id=vendor_id,
        float_row=(first["float_minor"], first["float_limit_minor"], first["float_entries"]) if has_float else None,
    )


async def begin_trial(conn: AsyncConnection, vendor_id: int, meter: str) -> SaleStart:
    """Read the same without a lock; nothing may be sold by it."""
    meters = await find_meters(conn, meter)
    float_row = await (await conn.execute(sql("float_of"), {"vendor_id": vendor_id})).fetchone()
    unused = MessageUse(vend=None, is_act=False, confirmed_early=False)
    return SaleStart(use=unused, meters=meters, vendor_id=vendor_id, float_row=float_row)


async def look_at_sale(
    conn: AsyncConnection, meter: NamedMeter, calendar: LocalCalendar, day: date
) -> SaleSight | None:
    """Read a meter's account, the prepayment rules of a local day, and the record to make tokens by.

    None where no account is billed by the meter.
    """
    ids = [meter.account_id]
    async with conn.cursor(row_factory=dict_row) as cursor:
        # Anchors only move forward: an older one leaves out no more than may be left out.
        what = {"ids": ids, "step": "month", "zone": calendar.zone.key, "since": meter.anchor_at}
        await cursor.execute(sql("look"), what)
        views = await views_from_rows(conn, await cursor.fetchall())
        await cursor.execute(sql("sale_terms"), {"account_id": meter.account_id, "day": day, "meter_id": meter.id})
        terms = await cursor.fetchone()
    if not views or terms is None:
        return None
    (view,) = views.values()
    dues = (view.id, *(terms.pop(name) for name in ("category", "document", "absent_until", "arrears_minor")))
    return SaleSight(
        view=view,
        prepayment=prepayments_from_rows([dues])[view.id],
        row=None if terms["id"] is None else RecordRow(**terms),
    )


async def add_sale(conn: AsyncConnection, vend: NewVend, token: NewToken) -> tuple[int, int]:
    """Store a vend with its token, and the token's id as the meter's last; return the ids of both.

    The answer is stored with the vend's own number as that of the receipt.
    """
    of_vend = {name: getattr(vend, name) for name in NewVend.__dataclass_fields__} | {"answer": Jsonb(vend.answer)}
    of_token = {f"token_{name}": getattr(token, name) for name in _TOKEN_COLUMNS}
    cursor: AsyncCursor[tuple[int, int]] = await conn.execute(sql("add_sale"), of_vend | of_token)
    row = await cursor.fetchone()
    assert row is not None, "add_sale returns its row"
    return row


def _meter_from_row(row: dict[str, Any]) -> NamedMeter:
    return NamedMeter(
        id=row["meter_id"],
        serial=row["serial"],
        drn=row["drn"],
        make=row["make"],
        model=row["model"],
        account_id=row["billed_account_id"],
        anchor_at=row["anchor_at"],
    )


_USE_COLUMNS = (
    "id",
    "state",
    "request_sha256",
    "status",
    "answer",
    "account_id",
    "journal_id",
    "amount_minor",
    "funding",
    "token_id",
    "is_act",
    "confirmed_early",
)
_TOKEN_COLUMNS = ("meter_id", "record_id", "engine", "era", "tid", "digits", "subclass")
