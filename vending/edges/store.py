"""The vending desk: a sale, whoever asks for it, as one transaction.

Stage: between the HTTP routes (and coupons, payments, adapters) and the database. A sale is one transaction under READ
COMMITTED: message id, account lock, TID, token, journal, the seller's float, stored answer; it is answered after its
commit or not at all. What was asked under a message id is answered the same for ever. Never: HTTP, or an answer made
from a view that another transaction has since changed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import date

from psycopg import AsyncConnection

from billing.supply import decide
from db.floats import FloatRefused, take_float
from db.money_events import book_recovery, prepare_recharge
from db.posting import Prepared
from db.sales import SaleStart, StoredSale, post_sale, start_sale
from db.vends import (
    NewToken,
    NewVend,
    StoredAnswer,
    StoredVend,
    add_vend,
    find_message,
    lock_message,
    read_system_vendor,
)
from vending.edges.answers import declined_to_api, without_token
from vending.edges.desk import Answered, Desk, Seller, not_billed, one_meter, prepayment_at, without_record
from vending.edges.errors import RequestDeclined, VendUnknown
from vending.edges.limits import count_vend
from vending.edges.quotes import Quote, asking_for_key_change, float_short, quote_sale, receipt_of, sale_to_api
from vending.engines.choice import engine_of
from vending.engines.port import IssuedToken
from vending.errors_catalogue import status_of
from vending.receipt import Receipt
from vending.vends import (
    LEDGER_OF_FUNDING,
    Declined,
    DeclineReason,
    Funding,
    MessageIdReused,
    Release,
    VendOrder,
    VendState,
    order_digest,
)

__all__ = [
    "REPEATED",
    "VENDED",
    "Answered",
    "Desk",
    "Seller",
    "answered_again",
    "not_billed",
    "one_meter",
    "prepayment_at",
    "sell",
    "stored_vend",
    "system_seller",
    "taken_back",
    "trial",
    "without_record",
]

VENDED = "vended"
STATUS_VENDED = 200
REPEATED = "repeated"
UNTIL_CONFIRMED = "until_confirmed"
TRIAL = "trial"
# The sellers of the utility's own, under whose message ids recharges without a vendor are.
_SYSTEM_VENDORS = {
    Funding.COUPON: "coupons",
    Funding.ONLINE: "online",
    Funding.FREE_ISSUE: "utility",
    Funding.SUBSIDY: "utility",
}


class _FloatShort(Exception):
    """The vendor's float does not reach: whatever the transaction has written is to be undone."""

    def __init__(self, declined: Declined) -> None:
        super().__init__(declined.message)
        self.declined = declined


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sale:
    quote: Quote
    token: IssuedToken
    receipt: Receipt
    prepared: Prepared


async def sell(conn: AsyncConnection, desk: Desk, seller: Seller, order: VendOrder) -> Answered:
    """Sell once: the first request under a message id sells or is refused, every later one reads that answer.

    On a connection without a transaction it is one of its own, committed when this returns. Inside the caller's, it is
    a part of that: coupon, payment and vend are stored together or not at all.
    Raises: MessageIdReused for another request under the id; DrnCheckDigit; ModuleAbsent; VendDayFull; each leaves
        nothing stored.
    """
    try:
        return await _once(conn, desk, seller, order)
    except _FloatShort as short:
        # Others took the last of the float meanwhile: token and journal are undone, and the refusal is stored instead.
        return await _once(conn, desk, seller, order, refusal=short.declined)


async def system_seller(conn: AsyncConnection, funding: Funding) -> Seller:
    """Return the utility's own seller of a kind of recharge that no vendor sells."""
    vendor_id, name = await read_system_vendor(conn, _SYSTEM_VENDORS[funding])
    return Seller(vendor_id=vendor_id, name=name, active=True, funding=funding)


async def trial(conn: AsyncConnection, desk: Desk, seller: Seller, order: VendOrder) -> dict[str, object]:
    """Answer as the sale would be answered now, without a token; nothing is stored, locked or minted.

    Raises: RequestDeclined with what would refuse the sale; DrnCheckDigit; ModuleAbsent.
    """
    start = await start_sale(conn, seller.vendor_id, order.message_id, order.meter, day=_today(desk), locking=False)
    quote = await quote_sale(conn, desk, seller, order, start)
    if isinstance(quote, Declined):
        raise RequestDeclined(quote)
    token = await engine_of(quote.record, desk.security_module).preview_credit(
        quote.record, quote.credit, now_ms=quote.now_ms
    )
    if isinstance(token, Declined):
        raise RequestDeclined(asking_for_key_change(token))
    balance_minor = quote.view.balance_minor(desk.rules.calendar) + quote.split.kept_minor
    decision = decide(
        quote.view.levels,
        balance_minor,
        may_rearm=True,
        scheme=quote.view.scheme,
        now_ms=quote.now_ms,
        calendar=desk.rules.calendar,
    )
    receipt = receipt_of(desk, seller, order, quote, token, levels=decision.levels, balance_minor=balance_minor)
    return without_token(sale_to_api(seller, order, receipt), TRIAL)


async def stored_vend(conn: AsyncConnection, seller: Seller, message_id: str) -> Answered:
    """Read what a message id is answered, waiting for a vend under it that is under way.

    Raises: VendUnknown.
    """
    async with conn.transaction():
        await lock_message(conn, seller.vendor_id, message_id)
        use = await find_message(conn, seller.vendor_id, message_id)
    if use.vend is None:
        raise VendUnknown(
            f"message_id {message_id}: expected one that was answered, got none of vendor {seller.name}; "
            "send the vend again under the same id"
        )
    return answered_again(use.vend)


def answered_again(vend: StoredVend) -> Answered:
    """Return what a stored vend is answered now: as it was, unless its token is held back or it was taken back."""
    state = VendState(vend.state)
    stored = StoredAnswer(status=vend.status, answer=vend.answer)
    if state is VendState.HELD:
        stored = replace(stored, answer=without_token(vend.answer, UNTIL_CONFIRMED))
    elif state is VendState.REVERSED and vend.journal_id is not None:
        stored = taken_back(str(vend.answer["message_id"]))
    return Answered(
        stored=stored,
        outcome=REPEATED,
        vend_id=vend.id,
        state=state,
        token_id=vend.token_id,
        journal_id=vend.journal_id,
        amount_minor=vend.amount_minor,
    )


def taken_back(message_id: str) -> StoredAnswer:
    """Return the answer of a vend that was taken back, before it came or after."""
    declined = Declined(
        reason=DeclineReason.VEND_REVERSED,
        message=f"message_id {message_id}: expected a vend that stands, got one that was taken back; use a new id",
    )
    return StoredAnswer(status=status_of(declined.reason.value), answer=declined_to_api(declined))


def _today(desk: Desk) -> date:
    return desk.rules.calendar.day_of(desk.clock())


def _repeated(vend: StoredVend | None, seller: Seller, order: VendOrder) -> Answered:
    """Answer a message id again. Raises: MessageIdReused."""
    if vend is None or (vend.request_sha256 is not None and bytes(vend.request_sha256) != order_digest(order)):
        raise MessageIdReused(
            f"message_id {order.message_id}: expected what it was first used with, got something else, "
            f"vendor {seller.name}"
        )
    return answered_again(vend)


async def _once(
    conn: AsyncConnection, desk: Desk, seller: Seller, order: VendOrder, *, refusal: Declined | None = None
) -> Answered:
    """Answer in a transaction, or in a savepoint of the caller's: as before, by a sale, or by a refusal."""
    async with conn.transaction():
        # Copies of one request queue here; each but the first finds the first one's committed answer.
        start = await start_sale(conn, seller.vendor_id, order.message_id, order.meter, day=_today(desk))
        if start.use.vend is not None or start.use.is_act:
            answered = _repeated(start.use.vend, seller, order)
            await _note_act(conn, seller, order, answered.stored.status, answered.outcome)
            return answered
        sale = refusal or await _sell(conn, desk, seller, order, start)
        if isinstance(sale, Declined):
            answered = await _store_refusal(conn, desk, seller, order, sale)
            await _note_act(conn, seller, order, answered.stored.status, answered.outcome)
            return answered
        return await _store_sale(conn, desk, seller, order, start, sale)


async def _note_act(conn: AsyncConnection, seller: Seller, order: VendOrder, status: int, outcome: str) -> None:
    """Write the request's line of the audit trail beside what it did."""
    if seller.act is not None:
        await seller.act.write(conn, outcome=outcome, status=status, subject=order.meter, reference=order.message_id)


async def _require_float(conn: AsyncConnection, seller: Seller, order: VendOrder, sale: _Sale, journal_id: int) -> None:
    """Take what the float did not give as it was seen: a deposit may have come in since.

    Raises: _FloatShort.
    """
    taken = await take_float(
        conn,
        seller.vendor_id,
        sale.quote.amount_minor,
        journal_id=journal_id,
        terminal=seller.terminal,
        operator=seller.operator,
        tender=order.tender.value if order.tender else None,
    )
    if isinstance(taken, FloatRefused):
        raise _FloatShort(float_short(seller, taken))


async def _sell(
    conn: AsyncConnection, desk: Desk, seller: Seller, order: VendOrder, start: SaleStart
) -> _Sale | Declined:
    """Look, mint and decide; what is refused has written nothing."""
    quote = await quote_sale(conn, desk, seller, order, start)
    if isinstance(quote, Declined):
        return quote
    # The one call to a security module inside a transaction, under the lock of one account (decision 0003).
    token = await engine_of(quote.record, desk.security_module).issue_credit(
        quote.record, quote.credit, now_ms=quote.now_ms
    )
    if isinstance(token, Declined):
        return asking_for_key_change(token)
    assert token.tid is not None, f"meter {quote.row.serial}: a credit token has a token id"
    source = LEDGER_OF_FUNDING[seller.funding]
    # What is held back is told to nobody yet.
    told = token.grouped if order.release is Release.AT_ONCE else None
    prepared = await prepare_recharge(
        conn, quote.view, quote.split, rules=desk.rules, now_ms=quote.now_ms, source=source, token=told
    )
    receipt = receipt_of(
        desk, seller, order, quote, token, levels=prepared.decision.levels, balance_minor=prepared.balance_minor
    )
    return _Sale(quote=quote, token=token, receipt=receipt, prepared=prepared)


async def _store_sale(
    conn: AsyncConnection, desk: Desk, seller: Seller, order: VendOrder, start: SaleStart, sale: _Sale
) -> Answered:
    state = VendState.HELD if order.release is Release.ON_CONFIRM else VendState.RELEASED
    state = VendState.CONFIRMED if start.use.confirmed_early else state
    assert start.new_id is not None, f"vend {order.message_id}: nothing was answered under its message id"
    quote, row, token = sale.quote, sale.quote.row, sale.token
    new = replace(
        _new_vend(seller, order),
        account_id=quote.view.id,
        amount_minor=quote.amount_minor,
        status=STATUS_VENDED,
        answer=sale_to_api(seller, order, sale.receipt) | {"receipt_number": str(start.new_id)},
        state=state.value,
    )
    new_token = NewToken(
        meter_id=row.meter_id,
        record_id=row.id,
        engine=token.engine.value,
        kind="credit",
        era=row.era,
        tid=token.tid,
        digits=token.digits,
        subclass=token.subclass,
    )
    stored = await _post_sale(conn, seller, order, sale, start.new_id, new, new_token)
    journal_id = stored.journal_ids[0]
    if seller.funding is Funding.VENDOR and not stored.took_float:
        await _require_float(conn, seller, order, sale, journal_id)
    await count_vend(
        conn,
        seller.vendor_id,
        seller.day_limits,
        amount_minor=quote.amount_minor,
        calendar=desk.rules.calendar,
        now_ms=quote.now_ms,
    )
    answer = without_token(new.answer, UNTIL_CONFIRMED) if state is VendState.HELD else new.answer
    return Answered(
        stored=StoredAnswer(status=new.status, answer=answer),
        outcome=VENDED,
        vend_id=start.new_id,
        state=state,
        token_id=stored.token_id,
        journal_id=journal_id,
        amount_minor=quote.amount_minor,
    )


async def _post_sale(
    conn: AsyncConnection,
    seller: Seller,
    order: VendOrder,
    sale: _Sale,
    vend_id: int,
    vend: NewVend,
    token: NewToken,
) -> StoredSale:
    """Book and store a sale with its line of the audit trail, and take it from the vendor's float last of all."""
    act = None
    if seller.act is not None:
        act = seller.act.ended(outcome=VENDED, status=vend.status, subject=order.meter, reference=order.message_id)
    stored = await post_sale(
        conn, sale.prepared, vend_id, vend, token, act=act, takes_float=seller.funding is Funding.VENDOR
    )
    if seller.act is not None:
        seller.act.written = True
    await book_recovery(conn, sale.quote.split, stored.journal_ids)
    return stored


async def _store_refusal(
    conn: AsyncConnection, desk: Desk, seller: Seller, order: VendOrder, declined: Declined
) -> Answered:
    new = replace(_new_vend(seller, order), status=status_of(declined.reason.value), answer=declined_to_api(declined))
    vend_id, stored = await add_vend(conn, new)
    return Answered(
        stored=stored, outcome=declined.reason.value, vend_id=vend_id, state=VendState.REFUSED, token_id=None
    )


def _new_vend(seller: Seller, order: VendOrder) -> NewVend:
    """Return the row of a refused order, which a sale fills."""
    return NewVend(
        vendor_id=seller.vendor_id,
        message_id=order.message_id,
        request_sha256=order_digest(order),
        account_id=None,
        amount_minor=order.amount_minor or 0,
        journal_id=None,
        status=0,
        answer={},
        state=VendState.REFUSED.value,
        funding=seller.funding.value,
        tender=order.tender.value if order.tender else None,
        terminal=seller.terminal,
        operator=seller.operator,
        reason=order.reason,
    )
