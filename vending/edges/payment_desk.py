"""The payment desk: orders to be paid online, and what follows from a gateway's words.

Stage: between routes, gateway and vending desk. An order is stored before its gateway hears of it. Every word of a
gateway, told or asked for, is one transaction: the money's row, the order's state, the vend or its reversal, and the
word itself are stored together or not at all. No gateway is asked while a transaction is open. Never: a payer's name
or number.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final, assert_never

import structlog
from psycopg import AsyncConnection, InterfaceError, OperationalError
from psycopg_pool import AsyncConnectionPool

from billing.calendar import from_ms, to_ms
from billing.notices import Language, PaymentRefunded
from db.money_events import Instruction, MoneyRefused, reverse
from db.notices import write_notices
from db.payments import (
    CaptureRow,
    NewEvent,
    NewPayment,
    PaymentRow,
    add_capture,
    add_event,
    add_payment,
    attach_capture,
    capture_due,
    capture_gone,
    captures_of,
    count_payments,
    end_asked,
    find_capture,
    find_payment,
    is_event_known,
    link_payment,
    lock_capture,
    lock_payment,
    note_taken_back,
    save_payment,
    take_due,
    vend_of,
)
from vending.edges.desk import Desk
from vending.edges.payment_errors import (
    GatewayUnavailable,
    PaymentNotRefundable,
    PaymentUnknown,
    TooManyPayments,
)
from vending.edges.payment_gateway import (
    GatewayAway,
    GatewayRefused,
    LinkOrder,
    OrderStatus,
    PaymentGateway,
    Webhook,
)
from vending.edges.store import sell, system_seller
from vending.edges.token_delivery import push_to_meter
from vending.payments import (
    Attach,
    Capture,
    CaptureState,
    Credit,
    Fact,
    GiveBack,
    Gone,
    Note,
    Order,
    PaymentState,
    Step,
    TakeBack,
    Why,
    judge,
    next_ask_ms,
    state_of_captures,
)
from vending.security import ModuleAbsent
from vending.vends import DeclineReason, Funding, MalformedRequest, VendOrder

# Time to find a card and its password; a payment that was begun in time is credited whenever it comes.
EXPIRES: Final = timedelta(minutes=20)
# A family that tries again and again; a link that somebody has passed on is no tool to flood a gateway with.
ORDERS_AN_HOUR_MAX: Final = 20
# 10 orders, each asked about with two or three requests, are well within the minute for which they are taken.
ASKED_A_STEP: Final = 10
_TAKEN: Final = timedelta(minutes=1)
STEP_S: Final = 5.0
_MS: Final = 1_000
_BY: Final = "payment gateway"
# 80 bits: nobody finds somebody else's order by trying.
_ORDER_BYTES: Final = 10

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Payments:
    """What the payment desk needs beside the vending desk; `public_url` is where consumers reach this interface."""

    desk: Desk
    gateway: PaymentGateway
    public_url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OnlineSettings:
    """What an installation takes money online by.

    `link_secret` signs recharge links; `asks` is whether this process asks the gateway about orders by itself.
    """

    gateway: PaymentGateway
    public_url: str
    link_secret: bytes = field(repr=False)
    asks: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class OnlineRecharge:
    """What an application holds where people pay online."""

    payments: Payments
    link_secret: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Heard:
    """A word with what is stored of its money and its order, both locked. Units: `now_ms` in UTC milliseconds."""

    fact: Fact
    payment: PaymentRow | None
    capture: CaptureRow | None
    now_ms: int


@asynccontextmanager
async def open_online(
    pool: AsyncConnectionPool[AsyncConnection], desk: Desk, settings: OnlineSettings | None
) -> AsyncIterator[OnlineRecharge | None]:
    """Take payments while the context lasts; nothing where they are not set up."""
    if settings is None:
        yield None
        return
    payments = Payments(desk=desk, gateway=settings.gateway, public_url=settings.public_url.rstrip("/"))
    stop = asyncio.Event()
    asking = asyncio.create_task(keep_asking(pool, payments, stop), name="payments") if settings.asks else None
    try:
        yield OnlineRecharge(payments=payments, link_secret=settings.link_secret)
    finally:
        stop.set()
        if asking is not None:
            await asking
        await settings.gateway.close()


async def begin_payment(
    pool: AsyncConnectionPool[AsyncConnection],
    payments: Payments,
    *,
    account_id: int,
    amount_minor: int,
    currency: str,
    language: Language,
    return_url: str,
) -> str:
    """Store an order and have the gateway take it; return its id. `return_url` gets the id as `?order=`.

    Raises: TooManyPayments; GatewayUnavailable, after which nothing can be paid under this order.
    """
    now = from_ms(payments.desk.clock())
    new = NewPayment(
        order_id=f"P{secrets.token_hex(_ORDER_BYTES)}",
        account_id=account_id,
        amount_minor=amount_minor,
        currency=currency,
        language=language.value,
        gateway=payments.gateway.name,
        now=now,
        expires_at=now + EXPIRES,
        # Until then the gateway has answered, or this process has ended.
        next_ask_at=now + _TAKEN,
    )
    async with pool.connection() as conn, conn.transaction():
        if await count_payments(conn, account_id, now - timedelta(hours=1)) >= ORDERS_AN_HOUR_MAX:
            raise TooManyPayments(f"orders: expected at most {ORDERS_AN_HOUR_MAX} an hour and account, got another")
        await add_payment(conn, new)
    order = LinkOrder(
        reference=new.order_id,
        amount_minor=amount_minor,
        currency=currency,
        description=f"Electricity recharge {new.order_id}",
        return_url=f"{return_url}?order={new.order_id}",
        expires_s=to_ms(new.expires_at) // _MS,
    )
    try:
        link = await payments.gateway.create(order)
    except (GatewayAway, GatewayRefused) as error:
        _log.warning("payment_not_begun", order_id=new.order_id, detail=str(error))
        raise GatewayUnavailable("gateway: expected it to take the order, got no good answer; begin again") from None
    async with pool.connection() as conn:
        await link_payment(conn, new.order_id, gateway_order=link.gateway_order, pay_link=link.url)
    return new.order_id


async def hear_webhook(conn: AsyncConnection, payments: Payments, webhook: Webhook, body: bytes) -> str:
    """Store what follows from a gateway's word, once however often it comes; return what it came to."""
    return await _hear(
        conn,
        payments,
        webhook.fact,
        event_id=webhook.event_id,
        source="webhook",
        body_sha256=hashlib.sha256(body).digest(),
    )


async def ask_gateway(pool: AsyncConnectionPool[AsyncConnection], payments: Payments, order_id: str) -> None:
    """Ask the gateway about an order, hear its answer as if it had told by itself, send back what is due.

    Raises: GatewayAway, GatewayRefused.
    """
    async with pool.connection() as conn:
        payment = await _payment(conn, order_id)
        due = [each for each in await captures_of(conn, order_id) if each.state == CaptureState.REFUND_DUE]
    for capture in due:
        await payments.gateway.refund(capture.capture, capture.amount_minor)
    status = await payments.gateway.status(order_id, payment.gateway_order)
    if status is not None:
        await _hear_status(pool, payments, payment, status)
    now_ms = payments.desk.clock()
    async with pool.connection() as conn:
        next_ms = next_ask_ms(
            PaymentState(payment.state), asks=payment.asks + 1, now_ms=now_ms, expires_ms=to_ms(payment.expires_at)
        )
        await end_asked(conn, payment, None if next_ms is None else from_ms(next_ms))


async def ask_due(pool: AsyncConnectionPool[AsyncConnection], payments: Payments) -> int:
    """Ask about some orders whose time has come; return how many were taken."""
    now = from_ms(payments.desk.clock())
    async with pool.connection() as conn:
        due = await take_due(conn, payments.gateway.name, now=now, until=now + _TAKEN, most=ASKED_A_STEP)
    for order_id in due:
        try:
            await ask_gateway(pool, payments, order_id)
        except (GatewayAway, GatewayRefused, ModuleAbsent, MalformedRequest) as error:
            # It comes again after the minute for which it was taken.
            _log.warning("payment_not_asked", order_id=order_id, code=error.code, detail=str(error))
    return len(due)


async def keep_asking(pool: AsyncConnectionPool[AsyncConnection], payments: Payments, stop: asyncio.Event) -> None:
    """Ask about orders until `stop` is set; outages of the database are waited out."""
    while not stop.is_set():
        full = False
        try:
            full = await ask_due(pool, payments) == ASKED_A_STEP
        except (OperationalError, InterfaceError) as error:
            _log.warning("database_away", detail=type(error).__name__)
        if not full:
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), STEP_S)


async def order_refund(conn: AsyncConnection, payments: Payments, order_id: str, *, by: str, reason: str) -> None:
    """Take back what was credited for an order and have its money sent back; harmless twice while that is under way.

    Raises: PaymentUnknown, PaymentNotRefundable.
    """
    now_ms = payments.desk.clock()
    async with conn.transaction():
        await lock_payment(conn, order_id)
        payment = await _payment(conn, order_id)
        captures = await captures_of(conn, order_id)
        if any(each.why == Why.ASKED for each in captures):
            return
        credited = next((each for each in captures if each.state == CaptureState.CREDITED), None)
        if credited is None:
            raise PaymentNotRefundable(f"order {order_id}: expected a recharge that was credited, got {payment.state}")
        await _take_credit_back(conn, payments, payment, by=by, reason=reason, now_ms=now_ms)
        await capture_due(conn, gateway=payment.gateway, capture=credited.capture, by=by, reason=reason)
        await _tell_refund(conn, payment, credited.amount_minor, taken_back_minor=payment.amount_minor)
        # At once: who asked for it waits.
        await save_payment(conn, payment.id, state=PaymentState.REFUND_DUE.value, next_ask_at=from_ms(now_ms))


async def _payment(conn: AsyncConnection, order_id: str) -> PaymentRow:
    payment = await find_payment(conn, order_id)
    if payment is None:
        raise PaymentUnknown(f"order {order_id}: expected a known one")
    return payment


async def _hear_status(
    pool: AsyncConnectionPool[AsyncConnection], payments: Payments, payment: PaymentRow, status: OrderStatus
) -> None:
    """Hear what a gateway answered, each part as a word of its own: heard before, it changes nothing."""
    link = status.link
    async with pool.connection() as conn:
        await link_payment(conn, payment.order_id, gateway_order=link.gateway_order, pay_link=link.url)
        for fact in status.facts:
            event_id = f"asked:{fact.kind.value}:{payment.order_id}:{fact.capture or ''}:{fact.refunded_minor}"
            await _hear(conn, payments, fact, event_id=event_id, source="asked", body_sha256=None)


async def _hear(
    conn: AsyncConnection,
    payments: Payments,
    fact: Fact,
    *,
    event_id: str,
    source: str,
    body_sha256: bytes | None,
) -> str:
    gateway = payments.gateway.name
    async with conn.transaction():
        # The money first, then its order, then the account: everybody in this order.
        if fact.capture is not None:
            await lock_capture(conn, gateway, fact.capture)
        if await is_event_known(conn, gateway, event_id):
            return Note.DUPLICATE.value
        heard = await _look(conn, payments, fact)
        step = judge(fact, _order(heard.payment), _capture(heard.capture))
        outcome = await _take(conn, payments, heard, step)
        event = NewEvent(
            gateway=gateway,
            event_id=event_id,
            source=source,
            kind=fact.kind.value,
            reference=fact.reference,
            capture=fact.capture,
            amount_minor=fact.amount_minor,
            refunded_minor=fact.refunded_minor,
            body_sha256=body_sha256,
            outcome=outcome,
            now=from_ms(heard.now_ms),
        )
        await add_event(conn, event)
    _log.info("payment_heard", order_id=fact.reference, kind=fact.kind.value, source=source, outcome=outcome)
    return outcome


async def _look(conn: AsyncConnection, payments: Payments, fact: Fact) -> _Heard:
    """Lock the order that a word is about, and read it with its money."""
    gateway = payments.gateway.name
    capture = None if fact.capture is None else await find_capture(conn, gateway, fact.capture)
    order_id = capture.order_id if capture is not None and capture.order_id is not None else fact.reference
    payment = None
    if order_id is not None:
        await lock_payment(conn, order_id)
        payment = await find_payment(conn, order_id, gateway=gateway)
        # Read again: whoever held the order may have been sending this money back.
        capture = None if fact.capture is None else await find_capture(conn, gateway, fact.capture)
    return _Heard(fact=fact, payment=payment, capture=capture, now_ms=payments.desk.clock())


def _order(payment: PaymentRow | None) -> Order | None:
    if payment is None:
        return None
    return Order(
        amount_minor=payment.amount_minor,
        currency=payment.currency,
        state=PaymentState(payment.state),
        is_answered=payment.vend_id is not None or payment.refusal is not None,
    )


def _capture(row: CaptureRow | None) -> Capture | None:
    if row is None:
        return None
    return Capture(state=CaptureState(row.state), amount_minor=row.amount_minor, has_order=row.order_id is not None)


async def _take(conn: AsyncConnection, payments: Payments, heard: _Heard, step: Step) -> str:
    """Take a step in the word's transaction; return what it came to, as it is stored."""
    match step:
        case Note.FAILED | Note.EXPIRED:
            await _settle(conn, heard, unpaid=PaymentState(step.value))
            return step.value
        case Note():
            return step.value
        case Credit():
            return await _credit(conn, payments, heard)
        case GiveBack():
            await _add(conn, payments, heard, CaptureState.REFUND_DUE, why=step.why)
            await _settle(conn, heard)
            return step.why.value
        case TakeBack():
            assert heard.payment is not None, "credited money has an order"
            reason = f"online payment {heard.payment.order_id} was sent back by its gateway"
            await _take_credit_back(conn, payments, heard.payment, by=_BY, reason=reason, now_ms=heard.now_ms)
            credited_minor = heard.payment.amount_minor
            await _tell_refund(conn, heard.payment, credited_minor, taken_back_minor=credited_minor)
            await _gone(conn, payments, heard)
            return "taken_back"
        case Gone():
            await _gone(conn, payments, heard)
            return "refunded"
        case Attach():
            assert heard.payment is not None, "money to be attached has an order"
            assert heard.fact.capture is not None, "money has the gateway's id"
            await attach_capture(
                conn, gateway=payments.gateway.name, capture=heard.fact.capture, payment_id=heard.payment.id
            )
            await _settle(conn, heard)
            return "refunded"
        case _:
            assert_never(step)


async def _credit(conn: AsyncConnection, payments: Payments, heard: _Heard) -> str:
    """Sell what was paid for, once under the order's id; a refusal sends the money back."""
    payment = heard.payment
    assert payment is not None, "money to be credited has an order"
    if payment.meter is None:
        await _add(conn, payments, heard, CaptureState.REFUND_DUE, why=Why.VEND_REFUSED)
        await _settle(conn, heard, refusal=DeclineReason.METER_NOT_BILLED.value)
        return Why.VEND_REFUSED.value
    order = VendOrder(message_id=payment.order_id, meter=payment.meter, amount_minor=payment.amount_minor, tender=None)
    answered = await sell(conn, payments.desk, await system_seller(conn, Funding.ONLINE), order)
    if answered.token_id is None:
        await _add(conn, payments, heard, CaptureState.REFUND_DUE, why=Why.VEND_REFUSED)
        await _settle(conn, heard, vend_id=answered.vend_id, refusal=answered.outcome)
        return Why.VEND_REFUSED.value
    # Nobody stands at the meter to type it.
    await push_to_meter(conn, answered.token_id)
    await _add(conn, payments, heard, CaptureState.CREDITED, why=None)
    await _settle(conn, heard, vend_id=answered.vend_id)
    return "credited"


async def _take_credit_back(
    conn: AsyncConnection, payments: Payments, payment: PaymentRow, *, by: str, reason: str, now_ms: int
) -> None:
    """Reverse the vend of an order; the balance may fall below zero, and supply follows its own rules."""
    assert payment.vend_id is not None, "what was credited has a vend"
    vend = await vend_of(conn, payment.vend_id)
    assert vend.journal_id is not None, "what was credited has a journal"
    order = Instruction(reason=reason, by=by, now_ms=now_ms, rules=payments.desk.rules)
    try:
        async with conn.transaction():
            await reverse(conn, vend.journal_id, order)
    except MoneyRefused as refused:
        # The office has taken the vend back by hand already: once is enough.
        _log.warning("vend_taken_back_before", order_id=payment.order_id, detail=str(refused))
    await note_taken_back(conn, vend.id, by=by, reason=reason, now=from_ms(now_ms))


async def _tell_refund(
    conn: AsyncConnection, payment: PaymentRow, amount_minor: int, *, taken_back_minor: int | None = None
) -> None:
    """Tell the account's consumer, where an address is known, that money paid for it goes back."""
    facts = PaymentRefunded(amount_minor=amount_minor, order=payment.order_id, taken_back_minor=taken_back_minor)
    await write_notices(conn, [(payment.account_id, facts)])


async def _gone(conn: AsyncConnection, payments: Payments, heard: _Heard) -> None:
    """Store that money has gone back, whether it was known or not."""
    if heard.capture is None:
        await _add(conn, payments, heard, CaptureState.REFUNDED, why=Why.AT_GATEWAY)
    else:
        await capture_gone(
            conn,
            gateway=payments.gateway.name,
            capture=heard.capture.capture,
            why=Why.AT_GATEWAY.value,
            now=from_ms(heard.now_ms),
        )
    await _settle(conn, heard)


async def _add(
    conn: AsyncConnection, payments: Payments, heard: _Heard, state: CaptureState, *, why: Why | None
) -> None:
    fact = heard.fact
    assert fact.capture is not None, "money has the gateway's id"
    # Of another currency our texts have no words; its gateway tells its payer.
    if why is not None and heard.payment is not None and fact.currency == heard.payment.currency:
        await _tell_refund(conn, heard.payment, fact.amount_minor)
    await add_capture(
        conn,
        gateway=payments.gateway.name,
        capture=fact.capture,
        payment_id=None if heard.payment is None else heard.payment.id,
        amount_minor=fact.amount_minor,
        currency=fact.currency,
        state=state.value,
        why=None if why is None else why.value,
        now=from_ms(heard.now_ms),
    )


async def _settle(
    conn: AsyncConnection,
    heard: _Heard,
    *,
    unpaid: PaymentState | None = None,
    vend_id: int | None = None,
    refusal: str | None = None,
) -> None:
    """Store where the order stands by all its money, and when its gateway is asked again."""
    payment = heard.payment
    if payment is None:
        return
    captures = [CaptureState(each.state) for each in await captures_of(conn, payment.order_id)]
    state = state_of_captures(captures) or unpaid or PaymentState(payment.state)
    next_ms = heard.now_ms if state is PaymentState.REFUND_DUE else None
    if next_ms is None:
        next_ms = next_ask_ms(state, asks=0, now_ms=heard.now_ms, expires_ms=to_ms(payment.expires_at))
    await save_payment(
        conn,
        payment.id,
        state=state.value,
        next_ask_at=None if next_ms is None else from_ms(next_ms),
        vend_id=vend_id,
        refusal=refusal,
    )
