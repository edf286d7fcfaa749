"""A sale's round trips: its start, which locks, a look at the account, and all that it writes.

Stage: inside a sale. A statement costs a vend some 0.2 ms of both processes together, so that there are few of them
(2026-11-22: five with begin and commit). Values in, rows out; what is sold or refused is decided by the caller.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import Any

from psycopg import AsyncConnection, AsyncRawCursor
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from billing.calendar import LocalCalendar
from db.accounts import AccountView, views_from_rows
from db.api_access import NewAct
from db.floats import FloatRefused, judge_float
from db.meter_records import RecordRow
from db.named import numbered, sql
from db.posting import Prepared
from db.prepayment import Prepayment, prepayments_from_rows
from db.vends import MessageUse, NamedMeter, NewToken, NewVend, message_use_from_row


@dataclass(frozen=True, slots=True, kw_only=True)
class SaleTerms:
    """What a meter is sold to by on a day: its account's rules, and the record to make tokens by, if there is one."""

    prepayment: Prepayment
    row: RecordRow | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SaleStart:
    """What is known of a message id, a meter's name and a vendor's float: balance, limit, entries; None without one.

    Invariants: `terms` hold on `day`, by the id of each meter that is billed; `new_id` is the number of the vend to be
    where one may be, None for a message id that was answered and in a trial.
    """

    use: MessageUse
    new_id: int | None
    meters: list[NamedMeter]
    day: date
    terms: dict[int, SaleTerms]
    vendor_id: int
    float_row: tuple[int, int | None, int] | None

    def float_refused(self, amount_minor: int) -> FloatRefused | None:
        """Tell whether the float does not reach, as it was seen; a seller without one is never refused."""
        return None if self.float_row is None else judge_float(self.float_row, self.vendor_id, amount_minor)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSale:
    """A sale that is stored, the vend's own journal first.

    Invariants: `took_float` is false where the vendor's float was not to be taken or does not reach.
    """

    journal_ids: tuple[int, ...]
    token_id: int
    took_float: bool


async def start_sale(
    conn: AsyncConnection, vendor_id: int, message_id: str, meter: str, *, day: date, locking: bool = True
) -> SaleStart:
    """Lock a message id and the account that the meter is billed to, and read what to sell by on a local day.

    What is read was committed before the locks. Without `locking` nothing may be sold by it.
    """
    async with conn.cursor(row_factory=dict_row) as cursor:
        what = {"vendor_id": vendor_id, "message_id": message_id, "meter": meter, "day": day, "locking": locking}
        await cursor.execute(sql("start_sale"), what)
        rows = await cursor.fetchall()
    first = rows[0]
    has_float = first["float_minor"] is not None
    return SaleStart(
        use=message_use_from_row({name: first[name] for name in _USE_COLUMNS}),
        new_id=first["new_id"],
        meters=[_meter_from_row(row) for row in rows if row["meter_id"] is not None],
        day=day,
        terms={row["meter_id"]: _terms_from_row(row) for row in rows if row["billed_account_id"] is not None},
        vendor_id=vendor_id,
        float_row=(first["float_minor"], first["float_limit_minor"], first["float_entries"]) if has_float else None,
    )


async def look_at_sale(conn: AsyncConnection, meter: NamedMeter, calendar: LocalCalendar) -> AccountView | None:
    """Read a meter's account; None where no account is billed by the meter."""
    # Anchors only move forward: an older one leaves out no more than may be left out.
    what = {"ids": [meter.account_id], "step": "month", "zone": calendar.zone.key, "since": meter.anchor_at}
    query, names = numbered("look")
    async with AsyncRawCursor(conn, row_factory=dict_row) as cursor:
        await cursor.execute(query, [what[name] for name in names])
        views = await views_from_rows(conn, await cursor.fetchall())
    return next(iter(views.values()), None)


async def post_sale(
    conn: AsyncConnection,
    prepared: Prepared,
    vend_id: int,
    vend: NewVend,
    token: NewToken,
    *,
    act: NewAct | None,
    takes_float: bool,
) -> StoredSale:
    """Book a prepared recharge and store its vend, token, token id as the meter's last, and line of the audit trail.

    With `takes_float` the amount is taken from the vendor's float, whose other sales wait from here to the commit: call
    it last.
    """
    values: dict[str, object] = {name: getattr(vend, name) for name in NewVend.__dataclass_fields__}
    values |= prepared.row
    values |= {"vend_id": vend_id, "answer": Jsonb(vend.answer)}
    values["float_vendor_id"] = vend.vendor_id if takes_float else None
    for name, column in _TOKEN_COLUMNS.items():
        values[name] = getattr(token, column)
    for name, column in _ACT_COLUMNS.items():
        values[name] = None if act is None else getattr(act, column)
    query, names = numbered("post_sale")
    async with AsyncRawCursor(conn) as cursor:
        await cursor.execute(query, [values[name] for name in names])
        row = await cursor.fetchone()
    assert row is not None, "post_sale returns its row"
    return StoredSale(journal_ids=tuple(row[0]), token_id=row[1], took_float=row[2])


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


def _terms_from_row(row: dict[str, Any]) -> SaleTerms:
    dues = (row["billed_account_id"], row["category"], row["document"], row["absent_until"], row["arrears_minor"])
    (prepayment,) = prepayments_from_rows([dues]).values()
    record = None
    if row["record_id"] is not None:
        of_meter = {name: row[name] for name in ("meter_id", "serial", "make", "drn")}
        record = RecordRow(**of_meter, **{name: row[column] for name, column in _RECORD_COLUMNS.items()})
    return SaleTerms(prepayment=prepayment, row=record)


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
# The statement's names of what it stores beside the vend.
_TOKEN_COLUMNS = {
    f"token_{name}": name for name in ("meter_id", "record_id", "engine", "era", "tid", "digits", "subclass")
}
_RECORD_COLUMNS = {
    name: f"record_{name}"
    for name in RecordRow.__dataclass_fields__
    if name not in ("meter_id", "serial", "make", "drn")
}
_ACT_COLUMNS = {f"act_{name}": name for name in NewAct.__dataclass_fields__}
