"""Coupons as rows: batches, sales, states, tries of guessers, PINs typed at meters, and what the ledger owes for them.

Stage: inside the transactions of the coupon desk. Values in, rows out and back; what may be done is decided by the
caller, under the lock of `lock_coupon`. A coupon's money moves by the journals of its sale and of its vend.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date, datetime
from typing import Any

from psycopg import AsyncConnection
from psycopg.rows import class_row, dict_row
from psycopg.types.json import Jsonb

from billing.calendar import from_ms
from db.named import sql
from protocols.native import CouponEntered


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRow:
    """Coupons that were made in one go."""

    id: int
    carrier: str
    amount_minor: int
    coupons: int
    reference: str
    issued_at: datetime
    issued_by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CouponRow:
    """A coupon under its lock; see migration 0027 for what goes with what."""

    id: int
    serial: str
    batch_id: int
    amount_minor: int
    state: str
    licence_id: int | None
    sale_id: int | None
    sold_on: date | None
    valid_until: date | None
    revalidations: int
    redeemed_by: str | None
    channel: str | None
    meter_id: int | None
    vend_id: int | None
    redeemed_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CouponStory:
    """A coupon as it is shown, with who sold it and which meter it was redeemed for."""

    id: int
    serial: str
    batch_id: int
    carrier: str
    amount_minor: int
    state: str
    sold_on: date | None
    valid_until: date | None
    revalidations: int
    channel: str | None
    redeemed_at: datetime | None
    licence_id: int | None
    vendor: str | None
    meter: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedCoupon:
    """A coupon in a list."""

    serial: str
    batch_id: int
    amount_minor: int
    state: str
    sold_on: date | None
    valid_until: date | None
    revalidations: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CouponEvent:
    """Something that was done by hand: to a batch, a coupon, the coupons of a sale, a licence."""

    at: datetime
    event: str
    by: str
    reason: str | None = None
    batch_id: int | None = None
    coupon_id: int | None = None
    sale_id: int | None = None
    licence_id: int | None = None
    detail: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewSale:
    """Coupons that a vendor pays for."""

    vendor_id: int
    message_id: str
    request_sha256: bytes
    amount_minor: int
    journal_id: int
    sold_at: datetime
    sold_by: str
    answer: Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Redemption:
    """What a coupon's redemption leaves in its row."""

    id: int
    redeemed_by: str
    channel: str
    meter_id: int
    vend_id: int
    redeemed_at: datetime
    sold_on: date
    valid_until: date


@dataclass(frozen=True, slots=True, kw_only=True)
class MonthOfSale:
    """Coupons sold in a month, and what became of them. Minor units.

    Invariants: sold = redeemed + void + lapsed + outstanding; revalidated ones are among these.
    """

    month: date
    sold: int
    sold_minor: int
    redeemed: int
    redeemed_minor: int
    void: int
    void_minor: int
    lapsed: int
    lapsed_minor: int
    outstanding: int
    outstanding_minor: int
    revalidated: int
    revalidated_minor: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Liability:
    """What the ledger owes for coupons, and what it should: coupons sold and not redeemed, money held for licences."""

    ledger_minor: int
    coupons_minor: int
    held_minor: int
    coupons: int

    @property
    def agrees(self) -> bool:
        """Tell whether ledger and coupons agree to the last minor unit."""
        return self.ledger_minor == self.coupons_minor + self.held_minor


@dataclass(frozen=True, slots=True, kw_only=True)
class KeypadEntry:
    """A PIN that was typed at a meter; the digits show in no `repr`."""

    id: int
    meter_id: int
    meter: str
    pin: str = field(repr=False)
    received_at: datetime


async def lock_order(conn: AsyncConnection, reference: str) -> BatchRow | None:
    """Wait for others with the same order; return the batch that it made already."""
    await conn.execute(sql("lock_coupon_order"), {"reference": reference})
    async with conn.cursor(row_factory=class_row(BatchRow)) as cursor:
        await cursor.execute(sql("coupon_batch_of_order"), {"reference": reference})
        return await cursor.fetchone()


async def add_batch(
    conn: AsyncConnection, *, carrier: str, amount_minor: int, coupons: int, reference: str, at: datetime, by: str
) -> int:
    """Store a batch without its coupons; return its number."""
    parameters = {
        "carrier": carrier,
        "amount_minor": amount_minor,
        "coupons": coupons,
        "reference": reference,
        "issued_at": at,
        "issued_by": by,
    }
    return await _number(conn, "add_coupon_batch", parameters)


async def add_coupons(
    conn: AsyncConnection, batch_id: int, amount_minor: int, coupons: Iterable[tuple[str, bytes]]
) -> None:
    """Store the coupons of a batch: serial and digest of the PIN.

    Raises: psycopg.errors.UniqueViolation for a PIN that another coupon has.
    """
    rows = list(coupons)
    parameters = {
        "batch_id": batch_id,
        "amount_minor": amount_minor,
        "serials": [serial for serial, _ in rows],
        "digests": [digest for _, digest in rows],
    }
    await conn.execute(sql("add_coupons"), parameters)


async def lock_guesser(conn: AsyncConnection, guesser: str) -> None:
    """Wait for other tries of a guesser; held to the end of the transaction. A statement of its own, look later."""
    await conn.execute(sql("lock_coupon_guesser"), {"guesser": guesser})


async def read_tries(conn: AsyncConnection, guessers: Sequence[str]) -> dict[str, tuple[int, datetime]]:
    """Read how many wrong PINs guessers have tried, and when last."""
    cursor = await conn.execute(sql("coupon_tries"), {"guessers": list(guessers)})
    return {guesser: (wrong, at) for guesser, wrong, at in await cursor.fetchall()}


async def count_tries(
    conn: AsyncConnection, guesser: str, *, wrong: int, at: datetime, everybody_forgets_before: datetime
) -> None:
    """Store a guesser's wrong PINs, and count one more of everybody."""
    await conn.execute(sql("count_coupon_tries"), {"guessers": [guesser], "wrong": [wrong], "last_ats": [at]})
    await conn.execute(sql("count_coupon_tries_of_all"), {"at": at, "forget_before": everybody_forgets_before})


async def find_by_pin(conn: AsyncConnection, digest: bytes) -> int | None:
    """Find the coupon of a PIN by its digest."""
    return await _found(conn, "coupon_by_pin", {"digest": digest})


async def find_by_serial(conn: AsyncConnection, serial: str) -> int | None:
    """Find the coupon of a serial."""
    return await _found(conn, "coupon_by_serial", {"serial": serial})


async def lock_coupon(conn: AsyncConnection, coupon_id: int) -> CouponRow:
    """Lock a coupon and read it."""
    async with conn.cursor(row_factory=class_row(CouponRow)) as cursor:
        await cursor.execute(sql("lock_coupon"), {"id": coupon_id})
        row = await cursor.fetchone()
    assert row is not None, f"coupon id {coupon_id}: coupons are never deleted"
    return row


async def licence_of_coupon(conn: AsyncConnection, coupon_id: int) -> int | None:
    """Return the licence that a coupon is reserved for, without a lock."""
    return await _found(conn, "licence_of_coupon", {"id": coupon_id})


async def read_story(conn: AsyncConnection, serial: str) -> CouponStory | None:
    """Read a coupon as it is shown."""
    async with conn.cursor(row_factory=class_row(CouponStory)) as cursor:
        await cursor.execute(sql("coupon_story"), {"serial": serial})
        return await cursor.fetchone()


async def read_events(conn: AsyncConnection, coupon_id: int) -> list[dict[str, Any]]:  # Columns as the query says.
    """Read what was done to a coupon by hand, oldest first."""
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(sql("coupon_events_of"), {"coupon_id": coupon_id})
        return await cursor.fetchall()


async def list_coupons(
    conn: AsyncConnection, *, batch_id: int | None, state: str | None, most: int
) -> list[ListedCoupon]:
    """Read coupons of a batch, a state, both or all, by serial."""
    async with conn.cursor(row_factory=class_row(ListedCoupon)) as cursor:
        await cursor.execute(sql("list_coupons"), {"batch_id": batch_id, "state": state, "most": most})
        return await cursor.fetchall()


async def add_event(conn: AsyncConnection, event: CouponEvent) -> None:
    """Keep what was done by hand."""
    told = {name: getattr(event, name) for name in CouponEvent.__dataclass_fields__}
    await conn.execute(sql("add_coupon_event"), told | {"detail": Jsonb(dict(event.detail))})


async def lock_sale(conn: AsyncConnection, vendor_id: int, message_id: str) -> tuple[bytes, dict[str, Any]] | None:
    """Wait for others under the same message id; return digest and answer of the sale that it made already."""
    parameters = {"vendor_id": vendor_id, "message_id": message_id}
    await conn.execute(sql("lock_coupon_sale"), parameters)
    cursor = await conn.execute(sql("coupon_sale_by_message"), parameters)
    row = await cursor.fetchone()
    return None if row is None else (bytes(row[0]), dict(row[1]))


async def lock_range(conn: AsyncConnection, *, batch_id: int, first: str, last: str) -> list[tuple[int, str, str, int]]:
    """Lock the coupons of a batch from one serial to another: id, serial, state, amount, by serial."""
    cursor = await conn.execute(sql("lock_coupons_between"), {"batch_id": batch_id, "first": first, "last": last})
    return await cursor.fetchall()


async def add_sale(
    conn: AsyncConnection, sale: NewSale, coupon_ids: Sequence[int], *, sold_on: date, valid_until: date
) -> int:
    """Store a sale and activate its coupons, which are locked; return its id."""
    told = {name: getattr(sale, name) for name in NewSale.__dataclass_fields__}
    sale_id = await _number(conn, "add_coupon_sale", told | {"answer": Jsonb(dict(sale.answer))})
    parameters = {"sale_id": sale_id, "ids": list(coupon_ids), "sold_on": sold_on, "valid_until": valid_until}
    cursor = await conn.execute(sql("sell_coupons"), parameters)
    assert cursor.rowcount == len(coupon_ids), "coupons of a sale are locked and issued"
    return sale_id


async def redeem(conn: AsyncConnection, redemption: Redemption) -> None:
    """Mark a locked coupon as redeemed."""
    cursor = await conn.execute(sql("redeem_coupon"), asdict(redemption))
    assert cursor.rowcount == 1, f"coupon id {redemption.id}: it is locked and redeemable"


async def revalidate(conn: AsyncConnection, coupon_id: int, *, sold_on: date, valid_until: date) -> None:
    """Make a locked coupon valid again; `sold_on` counts for one that no log has told of."""
    parameters = {"id": coupon_id, "sold_on": sold_on, "valid_until": valid_until}
    cursor = await conn.execute(sql("revalidate_coupon"), parameters)
    assert cursor.rowcount == 1, f"coupon id {coupon_id}: it is locked and sold"


async def void(conn: AsyncConnection, coupon_id: int, *, journal_id: int | None) -> None:
    """Take a locked coupon out of use; `journal_id` gave its vendor the money back."""
    cursor = await conn.execute(sql("void_coupon"), {"id": coupon_id, "journal_id": journal_id})
    assert cursor.rowcount == 1, f"coupon id {coupon_id}: it is locked and not redeemed"


async def is_taken_back(conn: AsyncConnection, vend_id: int) -> bool:
    """Tell whether the vend that a coupon became was reversed."""
    return await _found(conn, "vend_taken_back", {"vend_id": vend_id}) is not None


async def vendor_of_coupon(conn: AsyncConnection, coupon_id: int) -> int | None:
    """Return the vendor that a coupon was sold to, or is licensed to; None for one in stock."""
    return await _found(conn, "coupon_vendor", {"id": coupon_id})


async def read_report(conn: AsyncConnection, today: date) -> tuple[list[MonthOfSale], Liability]:
    """Read months and liability as of one instant; the first thing in its transaction."""
    await conn.execute(sql("one_snapshot"))
    return await read_months(conn, today), await read_liability(conn)


async def read_months(conn: AsyncConnection, today: date) -> list[MonthOfSale]:
    """Read sold coupons by month of sale, and what became of them by a day."""
    async with conn.cursor(row_factory=class_row(MonthOfSale)) as cursor:
        await cursor.execute(sql("coupon_months"), {"today": today})
        return await cursor.fetchall()


async def read_liability(conn: AsyncConnection) -> Liability:
    """Read what the ledger owes for coupons, and what it should."""
    async with conn.cursor(row_factory=class_row(Liability)) as cursor:
        await cursor.execute(sql("coupon_liability"))
        row = await cursor.fetchone()
    assert row is not None, "coupon_liability returns one row"
    return row


async def note_coupon_entries(conn: AsyncConnection, entries: Iterable[tuple[int, CouponEntered]]) -> None:
    """Keep PINs that were typed at meters, each once, until they are redeemed or refused."""
    rows = list(entries)
    if not rows:
        return
    parameters = {
        "meter_ids": [meter_id for meter_id, _ in rows],
        "ats": [from_ms(entered.at_ms) for _, entered in rows],
        "pins": [entered.pin for _, entered in rows],
    }
    await conn.execute(sql("add_coupon_entries"), parameters)


async def take_coupon_entry(conn: AsyncConnection) -> KeypadEntry | None:
    """Lock the oldest PIN typed at a meter that nobody else is dealing with."""
    async with conn.cursor(row_factory=class_row(KeypadEntry)) as cursor:
        await cursor.execute(sql("take_coupon_entry"))
        return await cursor.fetchone()


async def meter_of_account(conn: AsyncConnection, account_id: int) -> str | None:
    """Return the serial of the meter that an account is billed by now."""
    row = await (await conn.execute(sql("meter_of_account"), {"account_id": account_id})).fetchone()
    return None if row is None else str(row[0])


async def settle_coupon_entry(conn: AsyncConnection, entry_id: int, *, outcome: str, at: datetime) -> None:
    """Forget the digits of a PIN that was redeemed or refused."""
    await conn.execute(sql("settle_coupon_entry"), {"id": entry_id, "outcome": outcome, "at": at})


async def _found(conn: AsyncConnection, name: str, parameters: Mapping[str, object]) -> int | None:
    row = await (await conn.execute(sql(name), parameters)).fetchone()
    return None if row is None or row[0] is None else int(row[0])


async def _number(conn: AsyncConnection, name: str, parameters: Mapping[str, object]) -> int:
    found = await _found(conn, name, parameters)
    assert found is not None, f"{name} returns an id"
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class CouponToPrint:
    """A coupon as its slip says it; `vendor` has sold it or holds it for sale."""

    serial: str
    pin_digest: bytes = field(repr=False)
    amount_minor: int
    state: str
    valid_until: date | None
    issued_at: datetime
    vendor: str | None


async def coupons_to_print(conn: AsyncConnection, serials: Sequence[str]) -> dict[str, CouponToPrint]:
    """Read coupons by serial; those that are not known are left out."""
    async with conn.cursor(row_factory=class_row(CouponToPrint)) as cursor:
        await cursor.execute(sql("coupons_to_print"), {"serials": list(serials)})
        return {row.serial: row for row in await cursor.fetchall()}
