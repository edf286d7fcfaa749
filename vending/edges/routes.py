"""The routes of the vending interface: one call of the desk each.

Stage: between HTTP and the vending desk. Never: a transaction of its own, or an answer other than the desk's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, cast

import psycopg
import structlog
from fastapi import APIRouter, Depends, Path, Request, Response, Security
from fastapi.security import APIKeyHeader
from prometheus_client import CONTENT_TYPE_LATEST
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from vending.edges.answers import render
from vending.edges.auth import Caller, authenticate, require_vendor
from vending.edges.metrics import VendingMetrics
from vending.edges.models import (
    AccountAnswer,
    ErrorAnswer,
    HealthAnswer,
    MeterAnswer,
    ThresholdAnswer,
    ThresholdBody,
    TokenAnswer,
    VendAnswer,
    VendBody,
    VerifyBody,
)
from vending.edges.store import (
    Desk,
    confirm_meter,
    read_account,
    set_threshold,
    stored_vend,
    vend,
    verify_token,
)
from vending.vends import MESSAGE_ID_PATTERN, METER_PATTERN, read_request

# What watches a process should hear "no" before it loses patience; a scrape may take 10 s.
PROBE_TIMEOUT_S = 2.0

_log = structlog.get_logger(__name__)
_API_KEY = APIKeyHeader(name="X-Api-Key", scheme_name="ApiKey", description="<key id>.<secret>", auto_error=False)
router = APIRouter()


@dataclass(frozen=True, slots=True, kw_only=True)
class AppState:
    """What an application holds between its start and its stop."""

    desk: Desk
    pool: AsyncConnectionPool[AsyncConnection]
    metrics: VendingMetrics
    # Shared with the SMS gateway; None where people cannot ask by SMS.
    sms_secret: bytes | None = field(default=None, repr=False)


def state_of(request: Request) -> AppState:
    """Return the state of the application that serves a request."""
    # Starlette keeps application state untyped; the lifespan is its only writer.
    return cast(AppState, request.app.state.vending)


async def caller_of(request: Request, api_key: Annotated[str | None, Security(_API_KEY)]) -> Caller:
    """Authenticate the caller of a request."""
    async with state_of(request).pool.connection() as conn:
        return await authenticate(conn, api_key)


CallerOf = Annotated[Caller, Depends(caller_of)]
MeterPath = Annotated[str, Path(pattern=METER_PATTERN, description="serial or DRN", examples=["PB000123"])]
MessagePath = Annotated[str, Path(pattern=MESSAGE_ID_PATTERN, examples=["T17-20261121-000042"])]
AccountPath = Annotated[
    str, Path(alias="id", pattern=METER_PATTERN, description="account number", examples=["100200300"])
]

# OpenAPI wants a mapping of statuses to untyped documents.
_Responses = dict[int | str, dict[str, object]]


def _refusals(described: Mapping[int, str]) -> _Responses:
    """Describe the refusals of a route by status, all of one form."""
    named: _Responses = {status: {"model": ErrorAnswer, "description": text} for status, text in described.items()}
    return {**named, "default": {"model": ErrorAnswer, "description": "any other refusal or error"}}


@router.post(
    "/v1/vends",
    summary="Sell a recharge",
    response_model=VendAnswer,
    responses=_refusals(
        {
            400: "`malformed`, `bad_amount`, `drn_check_digit`: not stored, the message id may be used again",
            404: "`unknown_meter`: stored as the answer of this message id",
            409: "`message_id_reused`; or a stored refusal such as `postpaid_account`, `key_expired`",
            413: "`body_too_large`",
            422: "`amount_below_minimum`, `amount_above_maximum`: stored",
            503: "`database_busy`: try again under the same message id",
        }
    ),
)
async def post_vend(body: VendBody, request: Request, caller: CallerOf) -> Response:
    """Credit the account of a meter, mint its token, answer with the receipt; repeat freely under the same id."""
    vendor = require_vendor(caller)
    asked = read_request(message_id=body.message_id, meter=body.meter, amount=body.amount)
    state = state_of(request)
    async with state.pool.connection() as conn:
        answered = await vend(conn, state.desk, vendor, asked)
    state.metrics.vend_answered(answered.outcome)
    _log.info(
        "vend_answered",
        outcome=answered.outcome,
        vendor_id=vendor.vendor_id,
        message_id=asked.message_id,
        meter=asked.meter,
        amount_minor=asked.amount_minor,
        tid=answered.stored.answer.get("tid"),
    )
    return answer(answered.stored.answer, status=answered.stored.status)


@router.get(
    "/v1/vends/{message_id}",
    summary="Read what a vend was answered",
    response_model=VendAnswer,
    responses=_refusals({404: "`unknown_vend`; or the stored refusal `unknown_meter`"}),
)
async def get_vend(message_id: MessagePath, request: Request, caller: CallerOf) -> Response:
    """Return the stored answer, refusals too, with its status, waiting for a vend that is under way."""
    vendor = require_vendor(caller)
    async with state_of(request).pool.connection() as conn:
        stored = await stored_vend(conn, vendor, message_id)
    return answer(stored.answer, status=stored.status)


@router.get(
    "/v1/meters/{serial}",
    summary="Confirm the consumer before selling",
    response_model=MeterAnswer,
    responses=_refusals({404: "`unknown_meter`"}),
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
    responses=_refusals({404: "`unknown_account`"}),
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
    responses=_refusals({404: "`unknown_account`"}),
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
    responses=_refusals(
        {
            400: "`malformed_token`: not 20 digits",
            422: "`token_not_issued` (vendors), `token_crc_mismatch`, `unsupported_token`",
        }
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
    responses=_refusals({503: "`database_busy`"}),
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


def answer(body: Mapping[str, object], *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Send an answer in its one rendering."""
    return Response(render(body), status_code=status, media_type="application/json", headers=dict(headers or {}))
