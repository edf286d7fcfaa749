"""Online recharges as rows: orders, the money received for them, what gateways said.

Stage: inside the transactions of the payment desk. Values in, rows out and back; what follows from a gateway's word is
decided by the caller. Lock first, look later: the money by its id, then the order.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from psycopg import AsyncConnection
from psycopg.rows import class_row, dict_row

from db.named import sql


@dataclass(frozen=True, slots=True, kw_only=True)
class NewPayment:
    """An order to be stored before its gateway hears of it. Units: minor units."""

    order_id: str
    account_id: int
    amount_minor: int
    currency: str
    language: str
    gateway: str
    now: datetime
    expires_at: datetime
    next_ask_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentRow:
    """An order as stored; `meter` is the serial that its account is billed by now, None without one."""

    id: int
    order_id: str
    account_id: int
    account_number: str
    amount_minor: int
    currency: str
    language: str
    gateway: str
    state: str
    gateway_order: str | None
    pay_link: str | None
    vend_id: int | None
    refusal: str | None
    created_at: datetime
    expires_at: datetime
    asks: int
    meter: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureRow:
    """Money as stored; `order_id` is None while only its refund is known."""

    id: int
    capture: str
    state: str
    amount_minor: int
    was_credited: bool
    why: str | None
    order_id: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewEvent:
    """A gateway's word to be stored."""

    gateway: str
    event_id: str
    source: str
    kind: str
    reference: str | None
    capture: str | None
    amount_minor: int
    refunded_minor: int
    body_sha256: bytes | None
    outcome: str
    now: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class VendOfPayment:
    """What an order was answered by the vending desk."""

    id: int
    state: str
    journal_id: int | None
    status: int
    # JSON as stored; its shape is the interface's.
    answer: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentSums:
    """All money of gateways. Units: minor units; `for_people` counts words that nobody but people can settle.

    Invariants: paid - refunded - refund due = credited, which is net of what was taken back.
    """

    paid_minor: int
    refunded_minor: int
    refund_due_minor: int
    credited_minor: int
    for_people: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """What a meter said of a token: accepted, or used before."""

    result: str
    entered_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One way of a token: given with the answer, printed, sent by SMS or e-mail, entered by the head-end."""

    way: str
    state: str
    at: datetime
    tries: int
    address: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentException:
    """A gateway's word that nobody but people can settle: about an order not known here, or a refund in part.

    Units: minor units; `refunded_minor` of `amount_minor` has gone back.
    """

    id: int
    received_at: datetime
    outcome: str
    gateway: str
    event_id: str
    reference: str | None
    capture: str | None
    amount_minor: int
    refunded_minor: int


async def add_payment(conn: AsyncConnection, payment: NewPayment) -> None:
    """Store an order."""
    await conn.execute(sql("add_payment"), asdict(payment))


async def count_payments(conn: AsyncConnection, account_id: int, since: datetime) -> int:
    """Count an account's orders since an instant."""
    cursor = await conn.execute(sql("count_payments"), {"account_id": account_id, "since": since})
    row = await cursor.fetchone()
    assert row is not None, "count_payments returns one row"
    return int(row[0])


async def link_payment(conn: AsyncConnection, order_id: str, *, gateway_order: str, pay_link: str) -> None:
    """Store where an order is paid."""
    parameters = {"order_id": order_id, "gateway_order": gateway_order, "pay_link": pay_link}
    await conn.execute(sql("link_payment"), parameters)


async def lock_capture(conn: AsyncConnection, gateway: str, capture: str) -> None:
    """Wait for other words about the same money; held to the end of the transaction."""
    await conn.execute(sql("lock_capture"), {"gateway": gateway, "capture": capture})


async def lock_payment(conn: AsyncConnection, order_id: str) -> None:
    """Wait for other words about the same order."""
    await conn.execute(sql("lock_payment"), {"order_id": order_id})


async def find_payment(conn: AsyncConnection, order_id: str, *, gateway: str | None = None) -> PaymentRow | None:
    """Read an order, of one gateway only where that is given."""
    async with conn.cursor(row_factory=class_row(PaymentRow)) as cursor:
        await cursor.execute(sql("payment_by_order"), {"order_id": order_id, "gateway": gateway})
        return await cursor.fetchone()


async def find_capture(conn: AsyncConnection, gateway: str, capture: str) -> CaptureRow | None:
    """Read some money."""
    async with conn.cursor(row_factory=class_row(CaptureRow)) as cursor:
        await cursor.execute(sql("capture_named"), {"gateway": gateway, "capture": capture})
        return await cursor.fetchone()


async def captures_of(conn: AsyncConnection, order_id: str) -> list[CaptureRow]:
    """Read the money received for an order."""
    async with conn.cursor(row_factory=class_row(CaptureRow)) as cursor:
        await cursor.execute(sql("captures_of_payment"), {"order_id": order_id})
        return await cursor.fetchall()


async def add_capture(
    conn: AsyncConnection,
    *,
    gateway: str,
    capture: str,
    payment_id: int | None,
    amount_minor: int,
    currency: str,
    state: str,
    why: str | None,
    now: datetime,
) -> None:
    """Store money that a gateway received."""
    parameters = {
        "gateway": gateway,
        "capture": capture,
        "payment_id": payment_id,
        "amount_minor": amount_minor,
        "currency": currency,
        "state": state,
        "why": why,
        "now": now,
    }
    await conn.execute(sql("add_capture"), parameters)


async def attach_capture(conn: AsyncConnection, *, gateway: str, capture: str, payment_id: int) -> None:
    """Store which order money is of whose refund came first."""
    await conn.execute(sql("attach_capture"), {"gateway": gateway, "capture": capture, "payment_id": payment_id})


async def capture_gone(conn: AsyncConnection, *, gateway: str, capture: str, why: str, now: datetime) -> None:
    """Store that money has gone back; `why` where that is not known already."""
    await conn.execute(sql("capture_gone"), {"gateway": gateway, "capture": capture, "why": why, "now": now})


async def capture_due(conn: AsyncConnection, *, gateway: str, capture: str, by: str, reason: str) -> None:
    """Store that somebody asked for credited money to be sent back."""
    await conn.execute(sql("capture_due"), {"gateway": gateway, "capture": capture, "by": by, "reason": reason})


async def save_payment(
    conn: AsyncConnection,
    payment_id: int,
    *,
    state: str,
    next_ask_at: datetime | None,
    vend_id: int | None = None,
    refusal: str | None = None,
) -> None:
    """Store where an order stands; its vend and refusal stay once they are set."""
    parameters = {
        "id": payment_id,
        "state": state,
        "next_ask_at": next_ask_at,
        "vend_id": vend_id,
        "refusal": refusal,
    }
    await conn.execute(sql("save_payment"), parameters)


async def is_event_known(conn: AsyncConnection, gateway: str, event_id: str) -> bool:
    """Tell whether a gateway's word was heard before."""
    cursor = await conn.execute(sql("payment_event_known"), {"gateway": gateway, "event_id": event_id})
    row = await cursor.fetchone()
    return row is not None and bool(row[0])


async def add_event(conn: AsyncConnection, event: NewEvent) -> None:
    """Store a gateway's word with what it came to; harmless twice."""
    await conn.execute(sql("add_payment_event"), asdict(event))


async def take_due(conn: AsyncConnection, gateway: str, *, now: datetime, until: datetime, most: int) -> list[str]:
    """Take orders that a gateway is asked about now; other processes leave them alone until an instant."""
    parameters = {"gateway": gateway, "now": now, "until": until, "most": most}
    cursor = await conn.execute(sql("take_payments_to_ask"), parameters)
    return sorted(row[0] for row in await cursor.fetchall())


async def end_asked(conn: AsyncConnection, payment: PaymentRow, next_ask_at: datetime | None) -> None:
    """Store when an order is asked about again, unless it has changed since it was read."""
    parameters = {
        "order_id": payment.order_id,
        "state": payment.state,
        "asks": payment.asks,
        "next_ask_at": next_ask_at,
    }
    await conn.execute(sql("payment_asked"), parameters)


async def vend_of(conn: AsyncConnection, vend_id: int) -> VendOfPayment:
    """Read what an order was answered."""
    async with conn.cursor(row_factory=class_row(VendOfPayment)) as cursor:
        await cursor.execute(sql("vend_of_payment"), {"vend_id": vend_id})
        row = await cursor.fetchone()
    assert row is not None, f"vend id {vend_id} is stored"
    return row


async def note_taken_back(conn: AsyncConnection, vend_id: int, *, by: str, reason: str, now: datetime) -> None:
    """Move a vend to reversed; harmless twice."""
    await conn.execute(sql("payment_vend_taken_back"), {"vend_id": vend_id, "by": by, "reason": reason, "now": now})


async def read_sums(conn: AsyncConnection) -> PaymentSums:
    """Add up all money of gateways, and what was credited for it."""
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(sql("payment_sums"))
        row = await cursor.fetchone()
    assert row is not None, "payment_sums returns one row"
    return PaymentSums(**row)


async def list_exceptions(conn: AsyncConnection, *, after: int, most: int) -> list[PaymentException]:
    """Read words that wait for people, the oldest first, from after a number on."""
    async with conn.cursor(row_factory=class_row(PaymentException)) as cursor:
        await cursor.execute(sql("payment_exceptions"), {"after": after, "most": most})
        return await cursor.fetchall()


async def billing_meter(conn: AsyncConnection, account_id: int) -> str | None:
    """Return the serial of the meter that an account is billed by now."""
    row = await (await conn.execute(sql("billing_meter"), {"account_id": account_id})).fetchone()
    return None if row is None else str(row[0])


async def find_vend(conn: AsyncConnection, vendor_id: int, message_id: str) -> tuple[int, int | None] | None:
    """Return the ids of a vend and of its token, by its vendor's message id."""
    cursor = await conn.execute(sql("vend_by_vendor_message"), {"vendor_id": vendor_id, "message_id": message_id})
    row = await cursor.fetchone()
    return None if row is None else (row[0], row[1])


async def read_delivery(conn: AsyncConnection, vend_id: int) -> Delivery | None:
    """Read what a vend's meter said of its token."""
    async with conn.cursor(row_factory=class_row(Delivery)) as cursor:
        await cursor.execute(sql("delivery_of_vend"), {"vend_id": vend_id})
        return await cursor.fetchone()


async def read_attempts(conn: AsyncConnection, vend_id: int) -> list[Attempt]:
    """Read what was tried to bring a vend's token to its meter or its consumer, oldest first."""
    async with conn.cursor(row_factory=class_row(Attempt)) as cursor:
        await cursor.execute(sql("attempts_of_vend"), {"vend_id": vend_id})
        return await cursor.fetchall()
