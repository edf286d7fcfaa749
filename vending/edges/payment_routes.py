"""The routes of online recharges, recharge links and the delivery of tokens.

Stage: between HTTP and the payment desk. A webhook is answered after the commit of what follows from it, or not with
success, so that the gateway tells again. Never: a body or a link in a log.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

import structlog
from fastapi import APIRouter, Path, Request, Response
from psycopg import AsyncConnection

from billing.calendar import from_ms
from billing.money import parse_amount
from billing.notices import Language
from billing.notices.signing import SignatureFault
from db.payments import billing_meter, find_payment, find_vend
from db.vends import find_account
from vending.edges.auth import Caller, require_account, require_engineer, require_vendor
from vending.edges.contact_errors import ERROR_OF_FAULT
from vending.edges.errors import AccountUnknown, VendUnknown
from vending.edges.payment_answers import payment_to_api, recharge_to_api
from vending.edges.payment_desk import OnlineRecharge, begin_payment, hear_webhook, order_refund
from vending.edges.payment_errors import LinkWrong, PaymentsNotConfigured
from vending.edges.payment_models import (
    DeliveryAnswer,
    PaymentAnswer,
    PaymentBody,
    RechargeAnswer,
    RechargeLinkAnswer,
    RechargeLinkBody,
    RefundBody,
    WebhookAnswer,
)
from vending.edges.refusals import SALE_CODES, refusals
from vending.edges.routes import AccountPath, AppState, CallerOf, MessagePath, answer, state_of
from vending.edges.store import system_seller, trial
from vending.edges.token_delivery import push_to_meter, read_token_delivery
from vending.recharge_links import LINK_PATTERN, make_link, read_link
from vending.roles import Scope
from vending.vends import Funding, VendOrder

ORDER_PATTERN = r"^P[0-9a-f]{20}$"
_MS = 1_000
# Long enough to pay and to come back for the token later the same evening.
_RETURN_DAYS = 1
# What names an account stays with its reader.
_NOT_KEPT = {"cache-control": "no-store", "referrer-policy": "no-referrer", "x-content-type-options": "nosniff"}

OrderPath = Annotated[str, Path(pattern=ORDER_PATTERN, examples=["P0123456789abcdef0123"])]
LinkPath = Annotated[str, Path(pattern=LINK_PATTERN, description="the last part of a recharge link")]

_log = structlog.get_logger(__name__)
payment_router = APIRouter()


@payment_router.post(
    "/v1/payments/webhooks/{gateway}",
    summary="Hear a payment gateway",
    response_model=WebhookAnswer,
    responses=refusals(
        "signature_missing",
        "signature_expired",
        "signature_wrong",
        "payments_not_configured",
        "module_absent",
        is_open=True,
    ),
    openapi_extra={"requestBody": {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}}},
)
async def post_webhook(gateway: Annotated[str, Path(examples=["razorpay"])], request: Request) -> Response:
    """Store what a gateway signed and what follows from it, once however often it comes."""
    state = state_of(request)
    payments = _online(state).payments
    if gateway != payments.gateway.name:
        raise PaymentsNotConfigured("gateway: expected the one that payments are taken by here, got another")
    body = await request.body()
    heard = payments.gateway.read_webhook(request.headers, body, now_s=state.desk.clock() // _MS)
    if isinstance(heard, SignatureFault):
        raise ERROR_OF_FAULT[heard]("webhook: expected a signature under the gateway's secret, made lately")
    async with state.pool.connection() as conn:
        outcome = await hear_webhook(conn, payments, heard, body)
    return answer({"outcome": outcome})


@payment_router.post(
    "/v1/accounts/{id}/payments",
    summary="Begin an online recharge",
    response_model=PaymentAnswer,
    responses=refusals(
        *SALE_CODES, "unknown_account", "payments_not_configured", "too_many_payments", "gateway_unavailable"
    ),
)
async def post_payment(account: AccountPath, body: PaymentBody, request: Request, caller: CallerOf) -> Response:
    """Check that it would be sold, store the order, return where it is paid; for its consumer or an engineer."""
    state = state_of(request)
    async with state.pool.connection() as conn:
        account_id = await _own_account(conn, caller, account)
    return await _begin(state, account_id, body)


@payment_router.get(
    "/v1/payments/{order_id}",
    summary="Read an online recharge",
    response_model=PaymentAnswer,
    responses=refusals("unknown_payment"),
)
async def get_payment(order_id: OrderPath, request: Request, caller: CallerOf) -> Response:
    """Return an order with what was received and what it was sold as; its consumer, an engineer or an auditor."""
    async with state_of(request).pool.connection() as conn:
        payment = await find_payment(conn, order_id)
        require_account(caller, None if payment is None else payment.account_id)
        told = await payment_to_api(conn, order_id)
    return answer(told, headers=_NOT_KEPT)


@payment_router.post(
    "/v1/payments/{order_id}/refund",
    summary="Take an online recharge back",
    response_model=PaymentAnswer,
    responses=refusals("unknown_payment", "payment_not_refundable", "payments_not_configured"),
)
async def post_refund(order_id: OrderPath, body: RefundBody, request: Request, caller: CallerOf) -> Response:
    """Reverse the vend and have the gateway send the money back; the balance may fall below zero. Harmless twice."""
    engineer = require_engineer(caller, Scope.CHANGE_ACCOUNTS)
    state = state_of(request)
    payments = _online(state).payments
    async with state.pool.connection() as conn:
        await order_refund(conn, payments, order_id, by=engineer.key_id, reason=body.reason)
        told = await payment_to_api(conn, order_id)
    _log.info("refund_ordered", order_id=order_id, key_id=engineer.key_id)
    return answer(told, headers=_NOT_KEPT)


@payment_router.post(
    "/v1/accounts/{id}/recharge-link",
    summary="Make a recharge link",
    response_model=RechargeLinkAnswer,
    responses=refusals("unknown_account", "payments_not_configured"),
)
async def post_link(account: AccountPath, body: RechargeLinkBody, request: Request, caller: CallerOf) -> Response:
    """Return an address that opens the account's recharge page without a login: for SMS, e-mail or a QR code."""
    state = state_of(request)
    online = _online(state)
    async with state.pool.connection() as conn:
        account_id = await _own_account(conn, caller, account)
    expires_s = state.desk.clock() // _MS + int(timedelta(days=body.days).total_seconds())
    link = make_link(online.link_secret, account_id, expires_s=expires_s)
    told = {
        "url": f"{online.payments.public_url}/r/{link}",
        "expires_at": from_ms(expires_s * _MS).isoformat(timespec="seconds"),
    }
    return answer(told, headers=_NOT_KEPT)


@payment_router.get(
    "/v1/recharge/{link}",
    summary="Open a recharge link",
    response_model=RechargeAnswer,
    responses=refusals("recharge_link_wrong", "payments_not_configured", is_open=True),
)
async def get_recharge(link: LinkPath, request: Request) -> Response:
    """Return what the holder of a link sees: balance, what restores supply, what can be paid."""
    state = state_of(request)
    account_id = _opened(state, link)
    async with state.pool.connection() as conn:
        told = await recharge_to_api(conn, state.desk, account_id)
    return answer(told, headers=_NOT_KEPT)


@payment_router.post(
    "/v1/recharge/{link}/payments",
    summary="Begin an online recharge by link",
    response_model=PaymentAnswer,
    responses=refusals(
        *SALE_CODES,
        "recharge_link_wrong",
        "payments_not_configured",
        "too_many_payments",
        "gateway_unavailable",
        is_open=True,
    ),
)
async def post_link_payment(link: LinkPath, body: PaymentBody, request: Request) -> Response:
    """Begin a recharge of the link's account; whoever pays need not be its consumer."""
    state = state_of(request)
    return await _begin(state, _opened(state, link), body, link=link)


@payment_router.get(
    "/v1/recharge/{link}/payments/{order_id}",
    summary="Read an online recharge by link",
    response_model=PaymentAnswer,
    responses=refusals("recharge_link_wrong", "payments_not_configured", "unknown_payment", is_open=True),
)
async def get_link_payment(link: LinkPath, order_id: OrderPath, request: Request) -> Response:
    """Return an order of the link's account, with its token once it is credited."""
    state = state_of(request)
    account_id = _opened(state, link)
    async with state.pool.connection() as conn:
        told = await payment_to_api(conn, order_id, account_id=account_id)
    return answer(told, headers=_NOT_KEPT)


@payment_router.get(
    "/v1/vends/{message_id}/delivery",
    summary="Read how a token was delivered",
    response_model=DeliveryAnswer,
    responses=refusals("unknown_vend"),
)
async def get_delivery(message_id: MessagePath, request: Request, caller: CallerOf) -> Response:
    """Say whether the token has reached its meter, and each attempt: answer, receipt, SMS, e-mail, head-end."""
    vendor = require_vendor(caller, Scope.READ_OWN)
    async with state_of(request).pool.connection() as conn:
        vend_id, _ = await _vend(conn, vendor.vendor_id, message_id)
        return answer(await read_token_delivery(conn, vend_id), headers=_NOT_KEPT)


@payment_router.post(
    "/v1/vends/{message_id}/delivery",
    summary="Have the head-end enter a token",
    response_model=DeliveryAnswer,
    responses=refusals("unknown_vend"),
)
async def post_delivery(message_id: MessagePath, request: Request, caller: CallerOf) -> Response:
    """Order the token to be entered at its meter over the air; nothing happens where it is there or on its way."""
    vendor = require_vendor(caller)
    async with state_of(request).pool.connection() as conn:
        vend_id, token_id = await _vend(conn, vendor.vendor_id, message_id)
        if token_id is not None:
            await push_to_meter(conn, token_id)
        return answer(await read_token_delivery(conn, vend_id), headers=_NOT_KEPT)


def _online(state: AppState) -> OnlineRecharge:
    if state.online is None:
        raise PaymentsNotConfigured("payments: expected an installation that takes them online, got another")
    return state.online


def _opened(state: AppState, link: str) -> int:
    account_id = read_link(_online(state).link_secret, link, now_s=state.desk.clock() // _MS)
    if account_id is None:
        raise LinkWrong("recharge link: expected one that was made here and has not expired, got another")
    return account_id


async def _begin(state: AppState, account_id: int, body: PaymentBody, *, link: str | None = None) -> Response:
    """Begin a recharge that would be sold now. Its payer comes back to the page of the link."""
    online = _online(state)
    amount_minor = parse_amount(body.amount)
    if link is None:
        expires_s = state.desk.clock() // _MS + int(timedelta(days=_RETURN_DAYS).total_seconds())
        link = make_link(online.link_secret, account_id, expires_s=expires_s)
    async with state.pool.connection() as conn:
        currency = await _judge_sale(conn, state, account_id, amount_minor)
    order_id = await begin_payment(
        state.pool,
        online.payments,
        account_id=account_id,
        amount_minor=amount_minor,
        currency=currency,
        language=Language(body.language),
        return_url=f"{online.payments.public_url}/r/{link}",
    )
    async with state.pool.connection() as conn:
        return answer(await payment_to_api(conn, order_id), headers=_NOT_KEPT)


async def _judge_sale(conn: AsyncConnection, state: AppState, account_id: int, amount_minor: int) -> str:
    """Refuse before money is taken what would be refused after it; return the account's currency.

    Raises: RequestDeclined, AccountUnknown.
    """
    meter = await billing_meter(conn, account_id)
    if meter is None:
        raise AccountUnknown("account: expected one with a billing meter, got none now")
    order = VendOrder(message_id="trial", meter=meter, amount_minor=amount_minor, tender=None)
    told = await trial(conn, state.desk, await system_seller(conn, Funding.ONLINE), order)
    return str(told["currency"])


async def _own_account(conn: AsyncConnection, caller: Caller, number: str) -> int:
    account_id = await find_account(conn, number)
    require_account(caller, account_id)
    if account_id is None:
        raise AccountUnknown(f"account {number}: expected a known number")
    return account_id


async def _vend(conn: AsyncConnection, vendor_id: int, message_id: str) -> tuple[int, int | None]:
    found = await find_vend(conn, vendor_id, message_id)
    if found is None:
        raise VendUnknown(f"message_id {message_id}: expected one that was answered, got none of this vendor")
    return found
