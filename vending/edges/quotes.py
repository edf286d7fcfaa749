"""What a sale comes to before anything of it is written, and the receipt of one that was.

Stage: inside a sale, between the locked account and the engine that mints. Enters: an order, the account as it was
seen. Leaves: the amount, its split, what the token has to carry, or what refuses it. Never: a write.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from psycopg import AsyncConnection

from billing.estimate import energy_bought_wh, energy_price_minor, purchase_of
from billing.money import format_minor
from billing.prepayment import Split, recharge_to_keep, split_recharge
from billing.running import Walk
from billing.supply import Levels, restores_with_minor
from db.accounts import AccountView
from db.floats import FloatRefused
from db.meter_records import RecordRow
from db.prepayment import Prepayment
from db.sales import SaleStart, look_at_sale
from db.vending_acts import key_change_to_give
from db.vends import NamedMeter
from vending.edges.answers import money_day, supply_state
from vending.edges.desk import Desk, Seller, not_billed, prepayment_at, the_one, without_record
from vending.edges.record_desk import load_record
from vending.engines.port import Credit, IssuedToken, takes
from vending.engines.records import Capability, MeterRecord
from vending.receipt import MonthSoFar, Receipt, receipt_to_api
from vending.vends import (
    Declined,
    DeclineReason,
    Funding,
    VendOrder,
    category_limits,
    judge_amount,
    judge_cash,
    judge_mode,
    judge_vendor,
)

# What an engine refuses and a key change helps.
NEEDS_KEY_CHANGE = frozenset({DeclineReason.KEY_EXPIRED})


@dataclass(frozen=True, slots=True, kw_only=True)
class Quote:
    """What a sale comes to, before anything of it is written. Units: minor units; UTC milliseconds."""

    view: AccountView
    row: RecordRow
    record: MeterRecord
    prepayment: Prepayment
    split: Split
    walk: Walk
    amount_minor: int
    credit: Credit
    key_change: list[str]
    now_ms: int


async def quote_sale(
    conn: AsyncConnection, desk: Desk, seller: Seller, order: VendOrder, start: SaleStart
) -> Quote | Declined:
    """Work out what a sale comes to, or what refuses it; it may be sold by what was seen under the account's lock."""
    declined = judge_vendor(name=seller.name, active=seller.active)
    if declined is None and order.amount_minor is not None:
        declined = judge_amount(order.amount_minor, desk.limits)
    meter = declined or the_one(start.meters, order.meter)
    if isinstance(meter, Declined):
        return meter
    if meter.account_id is None:
        return not_billed(meter)
    calendar, terms = desk.rules.calendar, start.terms[meter.id]
    view, prepayment = await look_at_sale(conn, meter, calendar), terms.prepayment
    # It may have been swapped since it was looked up.
    if view is None or view.meter.id != meter.id:
        return not_billed(meter)
    now_ms = desk.clock()
    if calendar.day_of(now_ms) != start.day:
        prepayment = await prepayment_at(conn, desk, view, now_ms)
    walk = view.walk(calendar)
    amount_minor = _amount_minor(order, walk, prepayment)
    declined = _judge(desk, seller, order, start, view, prepayment, amount_minor)
    if declined:
        return declined
    return await _quote(conn, seller, meter, terms.row, view, prepayment, walk, amount_minor, now_ms)


async def _quote(
    conn: AsyncConnection,
    seller: Seller,
    meter: NamedMeter,
    row: RecordRow | None,
    view: AccountView,
    prepayment: Prepayment,
    walk: Walk,
    amount_minor: int,
    now_ms: int,
) -> Quote | Declined:
    """Split an amount that may be sold, and say what its token has to carry."""
    if row is None:
        return without_record(meter)
    record = await load_record(conn, row)
    if isinstance(record, Declined):
        return record
    key_change, handed_out = await key_change_to_give(conn, row.id) if row.state == "pending" else ([], True)
    if not handed_out and seller.funding is Funding.VENDOR:
        return key_change_under_way(row)
    split = split_recharge(amount_minor, prepayment.arrears_minor, prepayment.rules)
    return Quote(
        view=view,
        row=row,
        record=record,
        prepayment=prepayment,
        split=split,
        walk=walk,
        amount_minor=amount_minor,
        # The token carries what the account keeps: a meter that counts down on its own must not give more than that.
        credit=Credit(amount_minor=split.kept_minor, energy_wh=_energy_wh(record, walk, split.kept_minor)),
        key_change=key_change,
        now_ms=now_ms,
    )


def _judge(
    desk: Desk,
    seller: Seller,
    order: VendOrder,
    start: SaleStart,
    view: AccountView,
    prepayment: Prepayment,
    amount_minor: int,
) -> Declined | None:
    """Hold an amount against the account's mode, the category's limits, and the vendor's float as it was seen.

    The float is taken last, under its lock; by the look what it does not reach is mostly not minted at all.
    """
    declined = (
        judge_mode(view.levels.mode, view.number)
        or judge_amount(amount_minor, category_limits(desk.limits, prepayment.rules))
        or judge_cash(amount_minor, order.tender, prepayment.rules.cash_monthly_minor)
    )
    short = start.float_refused(amount_minor) if seller.funding is Funding.VENDOR else None
    return declined or (None if short is None else float_short(seller, short))


def _amount_minor(order: VendOrder, walk: Walk, prepayment: Prepayment) -> int:
    """Return the amount of an order: as asked, or the smallest of which what is kept buys the units asked for.

    Units are those of the running tariff with its shares (duty, rebate, subsidy), after the energy used so far; a debt
    is not in it.
    """
    if order.amount_minor is not None:
        return order.amount_minor
    assert order.energy_wh is not None, f"vend {order.message_id}: has an amount or units"
    used_wh = walk.last.energy_wh - walk.start_wh
    price_minor = energy_price_minor(walk.part, before_wh=walk.before_wh, used_wh=used_wh, energy_wh=order.energy_wh)
    return recharge_to_keep(price_minor, prepayment.arrears_minor, prepayment.rules)


def _energy_wh(record: MeterRecord, walk: Walk, credit_minor: int) -> int:
    """Return what a credit buys at the rates that the account has come to, for a meter that needs to be told."""
    if takes(record, Capability.CURRENCY) or not takes(record, Capability.UNITS):
        return 0
    used_wh = walk.last.energy_wh - walk.start_wh
    return energy_bought_wh(walk.part, before_wh=walk.before_wh, used_wh=used_wh, credit_minor=credit_minor)


def asking_for_key_change(declined: Declined) -> Declined:
    """Say what helps: a meter whose key has expired needs a key change first."""
    if declined.reason not in NEEDS_KEY_CHANGE:
        return declined
    return replace(declined, reason=DeclineReason.KEY_CHANGE_NEEDED)


def key_change_under_way(row: RecordRow) -> Declined:
    """Refuse a sale while the key-change tokens of the office have not been given to anybody."""
    return Declined(
        reason=DeclineReason.KEY_CHANGE_NEEDED,
        message=f"meter {row.serial}: expected no key change under way, got version {row.version} pending; "
        "ask for its key-change tokens and give them to the consumer first",
    )


def float_short(seller: Seller, refused: FloatRefused) -> Declined:
    """Refuse a sale that a vendor's float does not reach."""
    return Declined(
        reason=DeclineReason.VENDOR_CREDIT,
        message=f"vendor {seller.name}: expected a float of {format_minor(refused.needed_minor)} or more, got "
        f"{format_minor(refused.available_minor)} left",
    )


def receipt_of(
    desk: Desk,
    seller: Seller,
    order: VendOrder,
    quote: Quote,
    token: IssuedToken,
    *,
    levels: Levels,
    balance_minor: int,
) -> Receipt:
    """Return the receipt of a quote with its token; `levels` and `balance_minor` are those after the sale."""
    view, walk, split, prepayment = quote.view, quote.walk, quote.split, quote.prepayment
    calendar = desk.rules.calendar
    # What clears arrears was used before: only the credit that is left buys energy.
    credit_minor = min(split.kept_minor, max(0, balance_minor))
    left_minor = prepayment.arrears_minor - split.recovered_minor
    needed_minor = restores_with_minor(levels, balance_minor)
    used_wh = walk.last.energy_wh - walk.start_wh
    energy_wh = energy_bought_wh(walk.part, before_wh=walk.before_wh, used_wh=used_wh, credit_minor=credit_minor)
    return Receipt(
        message_id=order.message_id,
        vendor=seller.name,
        account_number=view.number,
        meter_serial=view.meter.serial,
        drn=quote.row.drn or "",
        currency=view.terms.tariff.currency,
        amount_minor=quote.amount_minor,
        balance_before_minor=view.balance_minor(calendar),
        balance_after_minor=balance_minor,
        token=token,
        supply_before=supply_state(view),
        supply_after=levels.desired,
        restores_with_minor=recharge_to_keep(needed_minor, left_minor, prepayment.rules),
        rebate_basis_points=view.terms.tariff.rebate_basis_points,
        energy_wh=energy_wh,
        buys=purchase_of(walk.part, before_wh=walk.before_wh, used_wh=used_wh, energy_wh=energy_wh),
        month=MonthSoFar(first=walk.part.first, energy_wh=used_wh, lines=walk.lines(money_day(view, calendar))),
        issued_ms=quote.now_ms,
        earlier_arrears_paid_minor=split.recovered_minor,
        earlier_arrears_left_minor=left_minor,
        key_change_first=len(quote.key_change),
        key_change_tokens=tuple(quote.key_change),
        terminal=seller.terminal,
        operator=seller.operator,
        tender=order.tender.value if order.tender else _tender_word(seller.funding),
    )


def _tender_word(funding: Funding) -> str | None:
    return funding.value if funding in (Funding.COUPON, Funding.ONLINE) else None


def sale_to_api(seller: Seller, order: VendOrder, receipt: Receipt) -> dict[str, object]:
    """Return the answer to a sale: its receipt, and what was asked for where that was not an amount."""
    answer = receipt_to_api(receipt)
    if order.energy_wh is not None:
        answer["energy_asked_wh"] = order.energy_wh
    if seller.funding in (Funding.FREE_ISSUE, Funding.SUBSIDY):
        answer["kind"] = seller.funding.value
    return answer
