"""The routes of coupons: redeemed and sold at any station or over the web, revalidated and counted by the utility.

Stage: between HTTP and the coupon desk. Never: a transaction of its own, a PIN in a log.
"""

from __future__ import annotations

from typing import Annotated

import structlog
from fastapi import APIRouter, Path, Request, Response
from psycopg import AsyncConnection

from vending.coupon_pins import CouponKeys
from vending.coupons import SERIAL_PATTERN, CouponChannel, Redeemer, Refused
from vending.edges.auth import (
    AuditorCaller,
    Caller,
    ConsumerCaller,
    EngineerCaller,
    VendorCaller,
    require_engineer,
    require_scope,
    require_vendor,
)
from vending.edges.coupon_desk import NotVended, read_asked, redeem_coupon, sell_coupons
from vending.edges.coupon_errors import CouponsNotConfigured, error_of
from vending.edges.coupon_models import (
    CouponAnswer,
    CouponReportAnswer,
    CouponSaleAnswer,
    CouponSaleBody,
    LogAnswer,
    LogBody,
    ReasonBody,
    RedeemBody,
    RevocationsAnswer,
)
from vending.edges.coupon_office import coupon_report, revalidate_coupon, show_coupon, void_coupon
from vending.edges.coupon_stations import entry_of, revocations, take_log
from vending.edges.desk import one_meter
from vending.edges.errors import NotAllowed, RequestDeclined
from vending.edges.models import VendAnswer
from vending.edges.refusals import SALE_CODES, refusals
from vending.edges.routes import CallerOf, answer, state_of
from vending.offline import public_key
from vending.roles import Scope
from vending.vends import Declined, judge_vendor

_log = structlog.get_logger(__name__)
coupon_router = APIRouter()

SerialPath = Annotated[str, Path(pattern=SERIAL_PATTERN, examples=["000010000017"])]
_OF_PIN = (
    "coupons_not_configured",
    "coupon_mistyped",
    "coupon_unknown",
    "coupon_redeemed",
    "coupon_lapsed",
    "coupon_void",
    "coupon_not_sold",
    "coupon_on_hold",
    "coupon_locked",
)


@coupon_router.post(
    "/v1/coupons/redeem",
    summary="Redeem a coupon",
    response_model=VendAnswer,
    responses=refusals(*_OF_PIN, *SALE_CODES),
)
async def post_redemption(body: RedeemBody, request: Request, caller: CallerOf) -> Response:
    """Credit the account of a meter with a coupon's amount and answer with the receipt; harmless twice."""
    asked = read_asked(redeemer_of(caller), pin=body.pin, serial=body.serial, meter=body.meter)
    state, keys = state_of(request), _keys(request)
    async with state.pool.connection() as conn:
        await _require_own_meter(conn, caller, asked.meter)
        done = await redeem_coupon(conn, state.desk, keys, asked)
    if isinstance(done, Refused):
        raise error_of(done)
    if isinstance(done, NotVended):
        _log.info("coupon_not_vended", meter=asked.meter, status=done.status, key_id=caller.key_id)
        return answer(done.answer, status=done.status)
    caller.act.reference = done.serial
    _log.info("coupon_redeemed", serial=done.serial, meter=asked.meter, again=done.again, key_id=caller.key_id)
    stored = done.answered.stored
    return answer(stored.answer, status=stored.status)


@coupon_router.post(
    "/v1/coupons/sales",
    summary="Sell coupons to a vendor",
    response_model=CouponSaleAnswer,
    responses=refusals(
        "coupon_mistyped", "vendor_credit", "vendor_inactive", "coupon_not_for_sale", "message_id_reused"
    ),
)
async def post_coupon_sale(body: CouponSaleBody, request: Request, caller: CallerOf) -> Response:
    """Activate coupons: valid for three months from today, paid for by the vendor's float; repeat under the same id."""
    vendor = require_vendor(caller, Scope.SELL)
    state = state_of(request)
    async with state.pool.connection() as conn:
        sold = await sell_coupons(
            conn, state.desk, vendor, message_id=body.message_id, first=body.first, last=body.last
        )
    vendor.act.reference = body.message_id
    _log.info("coupons_sold", first=sold["first"], last=sold["last"], vendor_id=vendor.vendor_id)
    return answer(sold)


@coupon_router.get(
    "/v1/coupons/report",
    summary="Count what became of coupons",
    response_model=CouponReportAnswer,
    responses=refusals(),
)
async def get_report(request: Request, caller: CallerOf) -> Response:
    """Return sold coupons by month of sale, what became of them, and the ledger's liability."""
    require_scope(caller, Scope.READ_ALL)
    state = state_of(request)
    async with state.pool.connection() as conn:
        return answer(await coupon_report(conn, state.desk.rules.calendar, now_ms=state.desk.clock()))


@coupon_router.get(
    "/v1/coupons/revocations",
    summary="Read which stations may sell no more",
    response_model=RevocationsAnswer,
    responses=refusals("coupons_not_configured"),
)
async def get_revocations(request: Request, caller: CallerOf) -> Response:
    """Return the signed list of revoked licences; a station without a line fetches it whenever it has one."""
    state, keys = state_of(request), _keys(request)
    async with state.pool.connection() as conn:
        signed = await revocations(conn, state.desk, keys)
    return answer(signed | {"utility_key": public_key(keys.licence_seed).hex()})


@coupon_router.post(
    "/v1/coupons/logs",
    summary="Hand over what a station without a line has sold",
    response_model=LogAnswer,
    responses=refusals("log_broken", "log_gap", "log_forked", "unknown_licence", "licence_closed"),
)
async def post_log(body: LogBody, request: Request, caller: CallerOf) -> Response:
    """Book the sales that are new and say what is odd about them; entries that are known may come again."""
    vendor = require_vendor(caller, Scope.SELL)
    state = state_of(request)
    entries = [entry_of(each) for each in body.entries]
    async with state.pool.connection() as conn:
        taken = await take_log(conn, state.desk, body.licence, entries, vendor_id=vendor.vendor_id, by=vendor.key_id)
    vendor.act.reference = str(body.licence)
    _log.info("log_taken", licence=body.licence, new=taken["new"], odd=len(taken["findings"]))
    return answer(taken)


@coupon_router.get(
    "/v1/coupons/{serial}",
    summary="Look at a coupon",
    response_model=CouponAnswer,
    response_model_exclude_unset=True,
    responses=refusals("coupon_mistyped", "coupon_unknown"),
)
async def get_coupon(serial: SerialPath, request: Request, caller: CallerOf) -> Response:
    """Return state, amount and validity; engineers and auditors also see who sold it and what it was redeemed for."""
    if not isinstance(caller, EngineerCaller | AuditorCaller):
        require_vendor(caller, Scope.SELL)
    whole = isinstance(caller, EngineerCaller | AuditorCaller)
    state = state_of(request)
    async with state.pool.connection() as conn:
        return answer(await show_coupon(conn, state.desk, serial, whole=whole))


@coupon_router.post(
    "/v1/coupons/{serial}/revalidate",
    summary="Revalidate a lapsed coupon",
    response_model=CouponAnswer,
    responses=refusals("coupon_mistyped", "coupon_unknown", "coupon_not_lapsed", "coupon_on_hold"),
)
async def post_revalidation(serial: SerialPath, body: ReasonBody, request: Request, caller: CallerOf) -> Response:
    """Give a coupon a new three months from today, with the reason."""
    engineer = require_engineer(caller, Scope.ISSUE)
    state = state_of(request)
    async with state.pool.connection() as conn:
        shown = await revalidate_coupon(conn, state.desk, serial, reason=body.reason, by=engineer.key_id)
    _log.info("coupon_revalidated", serial=serial, valid_until=shown["valid_until"], key_id=engineer.key_id)
    return answer(shown)


@coupon_router.post(
    "/v1/coupons/{serial}/void",
    summary="Take a coupon out of use",
    response_model=CouponAnswer,
    responses=refusals("coupon_mistyped", "coupon_unknown", "coupon_not_voidable"),
)
async def post_void(serial: SerialPath, body: ReasonBody, request: Request, caller: CallerOf) -> Response:
    """Void a lost or stolen coupon; what its vendor paid for it goes back to the vendor's float. Harmless twice."""
    engineer = require_engineer(caller, Scope.ISSUE)
    state = state_of(request)
    async with state.pool.connection() as conn:
        shown = await void_coupon(conn, state.desk, serial, reason=body.reason, by=engineer.key_id)
    _log.info("coupon_void", serial=serial, key_id=engineer.key_id)
    return answer(shown)


def redeemer_of(caller: Caller) -> Redeemer:
    """Return who redeems for a caller: a vendor's stations are one, of whom each key's tries are counted apart.

    Raises: NotAllowed for the utility's people, who have no coupons to redeem; RequestDeclined for a stopped vendor.
    """
    match caller:
        case VendorCaller():
            require_scope(caller, Scope.SELL)
            declined = judge_vendor(name=caller.name, active=caller.active)
            if declined is not None:
                raise RequestDeclined(declined)
            who = f"vendor:{caller.vendor_id}"
            return Redeemer(channel=CouponChannel.STATION, who=who, guesser=f"vendor:{caller.key_id}")
        case ConsumerCaller():
            who = f"account:{caller.account_id}"
            return Redeemer(channel=CouponChannel.WEB, who=who, guesser=who)
        case _:
            raise NotAllowed(f"key {caller.key_id}: expected a vendor's or a consumer's, got {caller.role.value}")


async def _require_own_meter(conn: AsyncConnection, caller: Caller, text: str) -> None:
    """Let consumers redeem for their own meter only: the answer tells balance and use. Raises: NotAllowed."""
    if not isinstance(caller, ConsumerCaller):
        return
    meter = await one_meter(conn, text)
    if isinstance(meter, Declined) or meter.account_id != caller.account_id:
        raise NotAllowed(f"key {caller.key_id}: expected a meter of the key's own account")


def _keys(request: Request) -> CouponKeys:
    keys = state_of(request).coupon_keys
    if keys is None:
        raise CouponsNotConfigured("coupons: expected an installation with a master key, got one without")
    return keys
