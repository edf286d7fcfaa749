"""The routes of what is asked once besides sales: issues, key changes, engineering tokens, fault reports.

Stage: between HTTP and the desk. Never: a transaction of its own, or an answer other than the desk's.
"""

from __future__ import annotations

from typing import Annotated

import structlog
from fastapi import APIRouter, Path, Request, Response
from psycopg import AsyncConnection

from db.vending_acts import open_fault_reports
from vending.edges.act_models import (
    CloseBody,
    ClosedAnswer,
    EngineeringAnswer,
    EngineeringBody,
    FaultAnswer,
    FaultBody,
    FaultsAnswer,
    KeyChangeAnswer,
    KeyChangeBody,
    KeyConfirmedAnswer,
    TestTokenAnswer,
)
from vending.edges.acts import (
    Asked,
    close_fault,
    confirm_key,
    engineering_token,
    grouped,
    move_to_key,
    report_fault,
)
from vending.edges.advice_routes import AfterQuery
from vending.edges.auth import Caller, EngineerCaller, VendorCaller, require_engineer, require_scope, require_vendor
from vending.edges.errors import NotAllowed
from vending.edges.refusals import METER_CODES, refusals
from vending.edges.routes import CallerOf, MeterPath, answer, seller_of, state_of
from vending.edges.store import Seller, system_seller
from vending.roles import Scope
from vending.sts.tokens import DISPLAY_TESTS_MAX, DisplayTest, display_test_control, encode_token
from vending.vends import Funding

_log = structlog.get_logger(__name__)
act_router = APIRouter()

FAULTS_SHOWN = 100
_MAKER_DIGITS = 2
_RECORD_CODES = ("record_conflict", "record_refused", "message_id_reused")
_ACT_CODES = (*METER_CODES, "message_id_reused", "module_refused", "risk_limit", "meter_not_capable")


@act_router.post(
    "/v1/meters/{serial}/key-change",
    summary="Get the tokens that move a meter to another key",
    response_model=KeyChangeAnswer,
    responses=refusals(*_ACT_CODES, *_RECORD_CODES, "key_change_refused", "key_expired", "vending_key_unknown"),
)
async def post_key_change(serial: MeterPath, body: KeyChangeBody, request: Request, caller: CallerOf) -> Response:
    """Give out the key-change set that waits, or make one; the record stays pending until it is seen at the meter.

    A station asks without saying to which key; an engineer may say it.
    """
    require_scope(caller, Scope.KEY_CHANGE)
    named = {name: getattr(body, name) for name in ("sgc", "krn", "tariff_index", "ken", "base_year")}
    changes = {name: value for name, value in named.items() if value is not None}
    if changes and not isinstance(caller, EngineerCaller):
        raise NotAllowed(f"key {caller.key_id}: expected an engineer's to say to which key, got one of a vendor")
    state = state_of(request)
    asked = Asked(message_id=body.message_id, meter=serial, what={"changes": changes}, by=who_asks(caller))
    reason = body.reason or "asked for by a station"
    async with state.pool.connection() as conn:
        seller = await asking_seller(conn, caller, body.terminal, body.operator)
        given = await move_to_key(conn, state.desk, seller, asked, changes=changes, reason=reason)
    _log.info("key_change_given", meter=serial, key_id=caller.key_id)
    return answer(given.answer, status=given.status)


@act_router.post(
    "/v1/meters/{serial}/key-change/confirm",
    summary="Say that key-change tokens were entered",
    response_model=KeyConfirmedAnswer,
    responses=refusals(*METER_CODES, "record_conflict"),
)
async def post_key_confirm(serial: MeterPath, request: Request, caller: CallerOf) -> Response:
    """Put the pending version of a meter's record in force."""
    require_scope(caller, Scope.KEY_CHANGE)
    state = state_of(request)
    async with state.pool.connection() as conn:
        version = await confirm_key(conn, state.desk, serial, by=who_asks(caller))
    _log.info("key_change_confirmed", meter=serial, version=version, key_id=caller.key_id)
    return answer({"meter": serial, "version": version})


@act_router.post(
    "/v1/meters/{serial}/engineering-tokens",
    summary="Get a token that sets or clears something in a meter",
    response_model=EngineeringAnswer,
    responses=refusals(*_ACT_CODES, "key_expired", "vending_key_unknown", "tid_too_far_ahead", "tid_era_exhausted"),
)
async def post_engineering(serial: MeterPath, body: EngineeringBody, request: Request, caller: CallerOf) -> Response:
    """Make an engineering token: clear credit or tamper, limit power or phase unbalance, and what the record takes."""
    engineer = require_engineer(caller, Scope.ENGINEERING)
    state = state_of(request)
    what = {"kind": body.kind, "value": body.value, "reason": body.reason}
    asked = Asked(message_id=body.message_id, meter=serial, what=what, by=who_asks(engineer))
    async with state.pool.connection() as conn:
        seller = await asking_seller(conn, engineer, None, None)
        given = await engineering_token(
            conn, state.desk, seller, asked, kind=body.kind, value=body.value, reason=body.reason
        )
    _log.info("engineering_token_given", meter=serial, kind=body.kind, key_id=engineer.key_id)
    return answer(given.answer, status=given.status)


@act_router.get(
    "/v1/test-tokens/{test}",
    summary="Get a token that tests any meter",
    response_model=TestTokenAnswer,
    responses=refusals(),
)
async def get_test_token(
    test: Annotated[int, Path(ge=0, le=DISPLAY_TESTS_MAX, description="0: all tests")], caller: CallerOf
) -> Response:
    """Return the token of class 1 that starts a test or display in every meter of every maker; it needs no key."""
    require_scope(caller, Scope.VERIFY)
    return answer({"test": test, **grouped(test_token_digits(test))})


@act_router.post(
    "/v1/fault-reports",
    summary="Report a fault of a meter",
    response_model=FaultAnswer,
    responses=refusals(*METER_CODES, "message_id_reused"),
)
async def post_fault(body: FaultBody, request: Request, caller: CallerOf) -> Response:
    """Store what a consumer tells of; the answer has the number to ask after."""
    vendor = require_vendor(caller)
    state = state_of(request)
    what = {"what": body.what, "note": body.note, "phone": body.phone}
    asked = Asked(message_id=body.message_id, meter=body.meter, what=what, by=who_asks(vendor))
    async with state.pool.connection() as conn:
        seller = seller_of(vendor, body.terminal, body.operator)
        stored = await report_fault(conn, state.desk, seller, asked, what=body.what, note=body.note, phone=body.phone)
    return answer(stored.answer, status=stored.status)


@act_router.get(
    "/v1/fault-reports",
    summary="List faults that nobody has closed",
    response_model=FaultsAnswer,
    responses=refusals(),
)
async def get_faults(request: Request, caller: CallerOf, after: AfterQuery = 0) -> Response:
    """List open fault reports, the oldest first."""
    require_scope(caller, Scope.READ_ALL)
    async with state_of(request).pool.connection() as conn:
        found = await open_fault_reports(conn, after=after, most=FAULTS_SHOWN)
    faults = [
        {
            "fault_number": str(fault.number),
            "meter_serial": fault.meter,
            "vendor": fault.vendor,
            "what": fault.what,
            "note": fault.note,
            "phone": fault.phone,
            "reported_at": fault.reported_at.isoformat(timespec="milliseconds"),
        }
        for fault in found
    ]
    return answer({"faults": faults, "more": len(faults) == FAULTS_SHOWN})


@act_router.post(
    "/v1/fault-reports/{number}/close",
    summary="Close a fault report",
    response_model=ClosedAnswer,
    responses=refusals("unknown_fault_report"),
)
async def post_close_fault(
    number: Annotated[int, Path(ge=1, le=2**62)], body: CloseBody, request: Request, caller: CallerOf
) -> Response:
    """Keep what was done about a fault."""
    engineer = require_engineer(caller, Scope.CHANGE_ACCOUNTS)
    state = state_of(request)
    async with state.pool.connection() as conn:
        await close_fault(conn, state.desk, number, by=who_asks(engineer), outcome=body.outcome)
    return answer({"fault_number": str(number), "closed": True})


def test_token_digits(test: int) -> str:
    """Return the token of class 1 that starts a test or display in every meter; 0 is all tests."""
    control = display_test_control(test, maker_digits=_MAKER_DIGITS)
    return encode_token(DisplayTest(maker_digits=_MAKER_DIGITS, maker_code=0, control=control), None).digits


async def asking_seller(conn: AsyncConnection, caller: Caller, terminal: str | None, operator: str | None) -> Seller:
    """Return under whose message ids a caller asks: the vendor's own, or the utility's."""
    if isinstance(caller, VendorCaller):
        return seller_of(caller, terminal, operator)
    return await utility_seller(conn, caller, Funding.FREE_ISSUE)


async def utility_seller(conn: AsyncConnection, caller: Caller, funding: Funding) -> Seller:
    """Return the utility's own seller, with the key of the person who asks as its operator."""
    seller = await system_seller(conn, funding)
    return Seller(
        vendor_id=seller.vendor_id,
        name=seller.name,
        active=True,
        funding=funding,
        operator=caller.key_id,
        act=caller.act,
    )


def who_asks(caller: Caller) -> str:
    """Return who asks, as it is kept beside what was done."""
    return f"vendor {caller.name}, key {caller.key_id}" if isinstance(caller, VendorCaller) else f"key {caller.key_id}"
