"""The routes of the vending interface: one call of the desk each.

Stage: between HTTP and the vending desk. Never: a transaction of its own, or an answer other than the desk's.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Annotated, cast

import psycopg
import structlog
from fastapi import APIRouter, Depends, Path, Request, Response, Security
from fastapi.routing import APIRoute
from fastapi.security import APIKeyHeader
from prometheus_client import CONTENT_TYPE_LATEST
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool
from pydantic import ValidationError

from vending.coupon_pins import CouponKeys
from vending.edges.answers import render
from vending.edges.auth import Caller, VendorCaller, require_vendor, terminal_of
from vending.edges.gate import Gate
from vending.edges.meter_desk import confirm_meter, read_account, set_threshold, verify_token
from vending.edges.metrics import VendingMetrics
from vending.edges.models import (
    AccountAnswer,
    HealthAnswer,
    MeterAnswer,
    ThresholdAnswer,
    ThresholdBody,
    TokenAnswer,
    VendAnswer,
    VendBody,
    VerifyBody,
)
from vending.edges.payment_desk import OnlineRecharge
from vending.edges.refusals import METER_CODES, SALE_CODES, refusals
from vending.edges.store import Desk, Seller, sell, stored_vend
from vending.roles import Scope
from vending.signatures import KEY_HEADER
from vending.slips.blocks import NO_UTILITY, Utility
from vending.vends import MESSAGE_ID_PATTERN, METER_PATTERN, Release, Tender, VendOrder, read_order, read_terminal

# What watches a process should hear "no" before it loses patience; a scrape may take 10 s.
PROBE_TIMEOUT_S = 2.0

_log = structlog.get_logger(__name__)
_PLAIN_KEY = "X-Api-Key"
_API_KEY = APIKeyHeader(name=_PLAIN_KEY, scheme_name="ApiKey", description="<key id>.<secret>", auto_error=False)
_SIGNED = APIKeyHeader(
    name=KEY_HEADER,
    scheme_name="Signature",
    description="key id of a signed request, beside X-Prepaid-Timestamp, X-Prepaid-Nonce and X-Prepaid-Signature",
    auto_error=False,
)
router = APIRouter()


class _SaleRoute(APIRoute):
    """The route of a sale, which takes a tenth of its time if the framework looks up what it depends on.

    Invariants: a body that is not plainly well formed goes the framework's way and is refused there.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[object, object, Response]]:
        """Return what answers a request."""
        by_framework = super().get_route_handler()

        async def sell_or_refuse(request: Request) -> Response:
            body = await _well_formed(request)
            if body is None:
                return await by_framework(request)
            return await post_vend(body, request, await caller_of(request, request.headers.get(_PLAIN_KEY) or None))

        return sell_or_refuse


sale_router = APIRouter(route_class=_SaleRoute)


@dataclass(frozen=True, slots=True, kw_only=True)
class AppState:
    """What an application holds between its start and its stop."""

    desk: Desk
    pool: AsyncConnectionPool[AsyncConnection]
    metrics: VendingMetrics
    gate: Gate
    # Shared with the SMS gateway; None where people cannot ask by SMS.
    sms_secret: bytes | None = field(default=None, repr=False)
    # What PINs of coupons are recognised by; None without a master key.
    coupon_keys: CouponKeys | None = None
    # Whose name and help line receipts carry.
    utility: Utility = NO_UTILITY
    # None where nobody pays online.
    online: OnlineRecharge | None = None


def state_of(request: Request) -> AppState:
    """Return the state of the application that serves a request."""
    # Starlette keeps application state untyped; the lifespan is its only writer.
    return cast(AppState, request.app.state.vending)


async def caller_of(
    request: Request,
    api_key: Annotated[str | None, Security(_API_KEY)],
    _: Annotated[str | None, Security(_SIGNED)] = None,
) -> Caller:
    """Let a caller in; the gate looks for a signature before the header, and for a client certificate after it."""
    state = state_of(request)
    return await state.gate.admit(state.pool, request, api_key)


CallerOf = Annotated[Caller, Depends(caller_of)]
MeterPath = Annotated[str, Path(pattern=METER_PATTERN, description="serial or DRN", examples=["PB000123"])]
MessagePath = Annotated[str, Path(pattern=MESSAGE_ID_PATTERN, examples=["T17-20261121-000042"])]
AccountPath = Annotated[
    str, Path(alias="id", pattern=METER_PATTERN, description="account number", examples=["100200300"])
]


@sale_router.post(
    "/v1/vends",
    summary="Sell a recharge",
    response_model=VendAnswer,
    responses=refusals(*SALE_CODES, "message_id_reused", "vend_day_full"),
)
async def post_vend(body: VendBody, request: Request, caller: CallerOf) -> Response:
    """Credit the account of a meter, mint its token, answer with the receipt; repeat freely under the same id."""
    vendor = require_vendor(caller)
    asked = order_of(body)
    state = state_of(request)
    async with state.pool.connection() as conn:
        answered = await sell(conn, state.desk, seller_of(vendor, body.terminal, body.operator), asked)
    state.metrics.vend_answered(answered.outcome)
    _log.info(
        "vend_answered",
        outcome=answered.outcome,
        vendor_id=vendor.vendor_id,
        message_id=asked.message_id,
        meter=asked.meter,
        amount_minor=answered.stored.answer.get("amount_minor"),
        tid=answered.stored.answer.get("tid"),
    )
    return answer(answered.stored.answer, status=answered.stored.status)


async def _well_formed(request: Request) -> VendBody | None:
    """Read a vend sent as JSON; None for anything else."""
    if request.headers.get("content-type") != "application/json":
        return None
    try:
        return VendBody.model_validate_json(await request.body())
    except ValidationError:
        return None


@router.get(
    "/v1/vends/{message_id}",
    summary="Read what a vend was answered",
    response_model=VendAnswer,
    responses=refusals(*SALE_CODES, "unknown_vend"),
)
async def get_vend(message_id: MessagePath, request: Request, caller: CallerOf) -> Response:
    """Return the stored answer, refusals too, with its status, waiting for a vend that is under way."""
    vendor = require_vendor(caller, Scope.READ_OWN)
    async with state_of(request).pool.connection() as conn:
        answered = await stored_vend(conn, seller_of(vendor), message_id)
    return answer(answered.stored.answer, status=answered.stored.status)


@router.get(
    "/v1/meters/{serial}",
    summary="Confirm the consumer before selling",
    response_model=MeterAnswer,
    responses=refusals(*METER_CODES),
)
async def get_meter(serial: MeterPath, request: Request, caller: CallerOf) -> Response:
    """Say whose meter it is, what restores its supply, and whether a vend would be refused."""
    state = state_of(request)
    async with state.pool.connection() as conn:
        return answer(await confirm_meter(conn, state.desk, caller, serial))


@router.get(
    "/v1/accounts/{id}",
    summary="Read an account",
    response_model=AccountAnswer,
    responses=refusals("unknown_account", "bad_amount"),
)
async def get_account(account: AccountPath, request: Request, caller: CallerOf) -> Response:
    """Return balance, today's use, supply and last recharge at the account's money time."""
    state = state_of(request)
    async with state.pool.connection() as conn:
        return answer(await read_account(conn, state.desk, caller, account))


@router.put(
    "/v1/accounts/{id}/threshold",
    summary="Choose when to be warned",
    response_model=ThresholdAnswer,
    responses=refusals("unknown_account", "bad_amount"),
)
async def put_threshold(account: AccountPath, body: ThresholdBody, request: Request, caller: CallerOf) -> Response:
    """Set the balance at which the meter sounds its alarm; one at or above the balance alarms at once."""
    state = state_of(request)
    async with state.pool.connection() as conn:
        changed = await set_threshold(conn, state.desk, caller, account, body.threshold)
    _log.info("threshold_set", account=account, key_id=caller.key_id, threshold_minor=changed["threshold_minor"])
    return answer(changed)


@router.post(
    "/v1/tokens/verify",
    summary="Read a token",
    response_model=TokenAnswer,
    responses=refusals(
        *METER_CODES,
        "malformed_token",
        "token_not_issued",
        "token_crc_mismatch",
        "unsupported_token",
        "malformed_paygo_token",
        "paygo_token_mismatch",
    ),
)
async def post_verify(body: VerifyBody, request: Request, caller: CallerOf) -> Response:
    """Say class, subclass, amount and TID of a token; vendors may ask about tokens issued here for the meter."""
    state = state_of(request)
    async with state.pool.connection() as conn:
        read = await verify_token(conn, state.desk, caller, meter=body.meter, token=body.token)
    _log.info("token_read", meter=read["meter_serial"], token=read["token"], key_id=caller.key_id)
    return answer(read)


@router.get(
    "/health",
    summary="Tell whether this process can answer",
    response_model=HealthAnswer,
    responses=refusals(is_open=True),
)
async def get_health(request: Request) -> Response:
    """Ask the database for one answer."""
    async with state_of(request).pool.connection(timeout=PROBE_TIMEOUT_S) as conn:
        await conn.execute("select 1")
    return answer({"status": "ok", "database": "ok"})


@router.get("/metrics", summary="Figures for Prometheus", response_class=Response)
async def get_metrics(request: Request) -> Response:
    """Return counters of this process and totals of the database."""
    state = state_of(request)
    try:
        async with state.pool.connection(timeout=PROBE_TIMEOUT_S) as conn:
            await state.metrics.figures.refresh(conn)
    except psycopg.OperationalError:
        # The counters of this process are worth most while the database is away.
        state.metrics.figures.forget()
    return Response(state.metrics.render(), media_type=CONTENT_TYPE_LATEST)


def seller_of(vendor: VendorCaller, terminal: str | None = None, operator: str | None = None) -> Seller:
    """Return the seller behind a vendor's call. Raises: MalformedRequest; NotAllowed for another key's terminal."""
    vendor.act.operator = read_terminal(operator)
    vendor.act.terminal = terminal_of(vendor, read_terminal(terminal))
    return Seller(
        vendor_id=vendor.vendor_id,
        name=vendor.name,
        active=vendor.active,
        terminal=vendor.act.terminal,
        operator=vendor.act.operator,
        day_limits=vendor.day_limits,
        act=vendor.act,
    )


def order_of(body: VendBody) -> VendOrder:
    """Read a vend as it was asked for. Raises: MalformedRequest, BadAmount."""
    return read_order(
        message_id=body.message_id,
        meter=body.meter,
        amount=body.amount,
        units=body.units,
        tender=Tender(body.tender),
        release=Release(body.release),
    )


def answer(body: Mapping[str, object], *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Send an answer in its one rendering."""
    return Response(render(body), status_code=status, media_type="application/json", headers=dict(headers or {}))
