"""Online recharges and recharge links as answers: read, masked, put into plain values.

Stage: between the routes and the database, reading only. Never: more of an account than the holder of a link needs.
"""

from __future__ import annotations

from psycopg import AsyncConnection

from billing.calendar import from_ms
from db.accounts import look
from db.payments import PaymentRow, captures_of, find_payment, vend_of
from db.vends import read_consumer_name
from vending.edges.answers import mask_name, supply_state, supply_to_api
from vending.edges.desk import Desk, prepayment_at
from vending.edges.payment_errors import LinkWrong, PaymentUnknown
from vending.edges.token_delivery import read_token_delivery
from vending.payments import UNPAID, PaymentState
from vending.receipt import money_to_api
from vending.vends import VendState, category_limits

# What families pay at a time, beside what restores supply; in whole units of the currency.
_SUGGESTED_MINOR = (10_000, 20_000, 50_000, 100_000)
_STEP_MINOR = 1_000
_SHOWN_OF_NUMBER = 3


async def payment_to_api(
    conn: AsyncConnection, order_id: str, *, account_id: int | None = None, with_token: bool = True
) -> dict[str, object]:
    """Return an order, of one account only where that is given.

    Raises: PaymentUnknown.
    """
    payment = await find_payment(conn, order_id)
    if payment is None or account_id not in (None, payment.account_id):
        raise PaymentUnknown(f"order {order_id}: expected a known one")
    received = await captures_of(conn, order_id)
    is_payable = PaymentState(payment.state) in UNPAID - {PaymentState.EXPIRED}
    return {
        "order_id": payment.order_id,
        "state": payment.state,
        **money_to_api("amount", payment.amount_minor),
        "currency": payment.currency,
        "created_at": payment.created_at.isoformat(timespec="seconds"),
        "expires_at": payment.expires_at.isoformat(timespec="seconds"),
        "pay_link": payment.pay_link if is_payable else None,
        "refusal": payment.refusal,
        "received": [
            {"state": each.state, **money_to_api("amount", each.amount_minor), "why": each.why} for each in received
        ],
        **await _sale_to_api(conn, payment, with_token=with_token),
    }


async def recharge_to_api(conn: AsyncConnection, desk: Desk, account_id: int) -> dict[str, object]:
    """Return what the holder of a link sees of its account.

    Raises: LinkWrong for an account that no meter is billed to any more.
    """
    calendar = desk.rules.calendar
    views = await look(conn, [account_id], calendar)
    if account_id not in views:
        raise LinkWrong("recharge link: expected one of an account with a meter, got none now")
    view = views[account_id]
    prepayment = await prepayment_at(conn, desk, view, desk.clock())
    limits = category_limits(desk.limits, prepayment.rules)
    balance_minor = view.balance_minor(calendar)
    supply = supply_to_api(view, prepayment, balance_minor)
    restores_minor = int(str(supply["restores_with_minor"]))
    money_time_ms = max(view.points[-1].at_ms, calendar.midnight_ms(view.checkpoint.through))
    least_minor = max(limits.min_minor, -(-restores_minor // _STEP_MINOR) * _STEP_MINOR)
    first = [least_minor] if restores_minor else []
    return {
        "account_number": "*" * max(0, len(view.number) - _SHOWN_OF_NUMBER) + view.number[-_SHOWN_OF_NUMBER:],
        "consumer": mask_name(await read_consumer_name(conn, account_id)),
        "currency": view.terms.tariff.currency,
        "time_zone": str(calendar.zone),
        **money_to_api("balance", balance_minor),
        "money_time": from_ms(money_time_ms).isoformat(timespec="seconds"),
        "supply": supply_state(view).value,
        **money_to_api("restores_with", restores_minor),
        **money_to_api("vend_min", limits.min_minor),
        **money_to_api("vend_max", limits.max_minor),
        "suggested_minor": [
            *first,
            *(each for each in _SUGGESTED_MINOR if max(least_minor + 1, limits.min_minor) <= each <= limits.max_minor),
        ],
    }


async def _sale_to_api(conn: AsyncConnection, payment: PaymentRow, *, with_token: bool) -> dict[str, object]:
    """Return what an order was sold as, once it was and while that stands."""
    nothing: dict[str, object] = dict.fromkeys(("token", "balance_after", "supply_after", "receipt_number", "delivery"))
    if payment.vend_id is None or payment.state != PaymentState.CREDITED:
        return nothing
    vend = await vend_of(conn, payment.vend_id)
    if vend.journal_id is None or vend.state == VendState.REVERSED:
        return nothing
    return {
        "token": vend.answer["token"]["grouped"] if with_token else None,
        "balance_after": vend.answer["balance_after"],
        "supply_after": vend.answer["supply"]["state_after_desired"],
        "receipt_number": vend.answer["receipt_number"],
        "delivery": await read_token_delivery(conn, vend.id),
    }
