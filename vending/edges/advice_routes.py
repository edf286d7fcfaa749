"""The routes of what comes before and after a sale: trials, advices, last responses, decisions, errors.

Stage: between HTTP and the desk of advices. Never: a transaction of its own, or an answer other than the desk's.
"""

from __future__ import annotations

from typing import Annotated

import structlog
from fastapi import APIRouter, Path, Query, Request, Response

from vending.advice import Advice
from vending.edges.act_models import (
    AdviceAnswer,
    AdviceBody,
    CatalogueAnswer,
    DecisionBody,
    OpenVendsAnswer,
    StateAnswer,
)
from vending.edges.advice import (
    OPEN_VENDS_SHOWN,
    Advised,
    advise,
    decide,
    last_response,
    open_vends,
    state_of_vend,
)
from vending.edges.auth import require_engineer, require_scope, require_vendor
from vending.edges.models import VendAnswer, VendBody
from vending.edges.refusals import SALE_CODES, refusals
from vending.edges.routes import CallerOf, MessagePath, answer, order_of, seller_of, state_of
from vending.edges.store import trial
from vending.errors_catalogue import CATALOGUE
from vending.receipt import money_to_api
from vending.roles import Scope
from vending.vends import TERMINAL_PATTERN

_log = structlog.get_logger(__name__)
advice_router = APIRouter()

ReceiptPath = Annotated[str, Path(pattern=r"^[1-9][0-9]{0,17}$", description="receipt number", examples=["42"])]
AfterQuery = Annotated[int, Query(ge=0, le=2**62, description="the last number of the page before")]
_ADVICE_CODES = ("unknown_vend", "advice_contradicts", "message_id_reused")


@advice_router.post(
    "/v1/trial-vends",
    summary="Ask what a sale would be answered",
    response_model=VendAnswer,
    responses=refusals(*SALE_CODES),
)
async def post_trial(body: VendBody, request: Request, caller: CallerOf) -> Response:
    """Answer as the sale would be answered now, without token; nothing is stored, and the message id stays free."""
    vendor = require_vendor(caller)
    state = state_of(request)
    async with state.pool.connection() as conn:
        return answer(await trial(conn, state.desk, seller_of(vendor, body.terminal, body.operator), order_of(body)))


@advice_router.post(
    "/v1/vends/{message_id}/confirm",
    summary="Confirm a sale",
    response_model=AdviceAnswer,
    responses=refusals(*_ADVICE_CODES, "never_confirmed"),
)
async def post_confirm(message_id: MessagePath, body: AdviceBody, request: Request, caller: CallerOf) -> Response:
    """Say that the consumer has paid and, of a token held back, let it out. Send it until it is answered."""
    return await _advice(message_id, body, request, caller, Advice.CONFIRM, Scope.SELL)


@advice_router.post(
    "/v1/vends/{message_id}/reverse",
    summary="Take a sale back",
    response_model=AdviceAnswer,
    responses=refusals(*_ADVICE_CODES),
)
async def post_reverse(message_id: MessagePath, body: AdviceBody, request: Request, caller: CallerOf) -> Response:
    """Say that the sale did not come about. Send it until it is answered, also of a sale that was never answered.

    A token held back is taken back with its money at once. One that was given out is `unknown` until its meter shows
    it, or the utility decides.
    """
    return await _advice(message_id, body, request, caller, Advice.REVERSE, Scope.SELL)


@advice_router.post(
    "/v1/vends/{message_id}/cancel",
    summary="Cancel a sale before its token is given out",
    response_model=AdviceAnswer,
    responses=refusals(*_ADVICE_CODES, "released_already"),
)
async def post_cancel(message_id: MessagePath, body: AdviceBody, request: Request, caller: CallerOf) -> Response:
    """Take a held sale back on a supervisor's word; refused once the token was given out."""
    return await _advice(message_id, body, request, caller, Advice.CANCEL, Scope.CANCEL)


@advice_router.get(
    "/v1/vends/{message_id}/state",
    summary="Read where a sale stands",
    response_model=StateAnswer,
    responses=refusals("unknown_vend"),
)
async def get_state(message_id: MessagePath, request: Request, caller: CallerOf) -> Response:
    """Return the state of a sale and every move since its answer."""
    vendor = require_vendor(caller, Scope.READ_OWN)
    async with state_of(request).pool.connection() as conn:
        answered, moves = await state_of_vend(conn, seller_of(vendor), message_id)
    moved = [
        {
            "at": move.at.isoformat(timespec="milliseconds"),
            "from": move.from_state,
            "to": move.to_state,
            "by": move.by,
            "reason": move.reason,
        }
        for move in moves
    ]
    return answer({"message_id": message_id, "state": answered.state.value, "moves": moved})


@advice_router.get(
    "/v1/last-response",
    summary="Read the last answer to a sale again",
    response_model=VendAnswer,
    responses=refusals(*SALE_CODES, "unknown_vend"),
)
async def get_last_response(
    request: Request, caller: CallerOf, terminal: Annotated[str | None, Query(pattern=TERMINAL_PATTERN)] = None
) -> Response:
    """Return what this terminal, or without one this vendor, was answered last to a sale, refusals too."""
    vendor = require_vendor(caller, Scope.READ_OWN)
    async with state_of(request).pool.connection() as conn:
        answered = await last_response(conn, seller_of(vendor, terminal))
    return answer(answered.stored.answer, status=answered.stored.status)


@advice_router.get(
    "/v1/open-vends",
    summary="List sales that wait for a word",
    response_model=OpenVendsAnswer,
    responses=refusals(),
)
async def get_open_vends(request: Request, caller: CallerOf, after: AfterQuery = 0) -> Response:
    """List held and unknown sales, the oldest first, with what their meters say of the tokens."""
    require_scope(caller, Scope.READ_ALL)
    async with state_of(request).pool.connection() as conn:
        found = await open_vends(conn, after=after)
    vends = [
        {
            "receipt_number": str(vend.id),
            "vendor": vend.vendor,
            "message_id": vend.message_id,
            "terminal": vend.terminal,
            "state": vend.state,
            "account_number": vend.account,
            "meter_serial": vend.meter,
            **money_to_api("amount", vend.amount_minor),
            "sold_at": vend.created_at.isoformat(timespec="milliseconds"),
            "since": (vend.moved_at or vend.created_at).isoformat(timespec="milliseconds"),
            "why": vend.why,
            "token": f"...{vend.token_tail}",
            "delivered": vend.delivered,
        }
        for vend in found
    ]
    return answer({"vends": vends, "more": len(vends) == OPEN_VENDS_SHOWN})


@advice_router.post(
    "/v1/open-vends/{receipt_number}/decision",
    summary="Decide about a sale that waits",
    response_model=AdviceAnswer,
    responses=refusals("unknown_vend", "advice_contradicts"),
)
async def post_decision(
    receipt_number: ReceiptPath, body: DecisionBody, request: Request, caller: CallerOf
) -> Response:
    """Let a held or unknown sale stand, or take it back with its money."""
    engineer = require_engineer(caller, Scope.DECIDE)
    state = state_of(request)
    async with state.pool.connection() as conn:
        advised = await decide(
            conn,
            state.desk,
            int(receipt_number),
            Advice(body.verdict),
            by=f"key {engineer.key_id}",
            reason=body.reason,
            act=engineer.act,
        )
    _log.info("vend_decided", vend_id=int(receipt_number), state=advised.state, key_id=engineer.key_id)
    # Whoever decides is not the one who may see the token.
    return answer({"message_id": advised.message_id, "state": advised.state, "vend": None})


@advice_router.get(
    "/v1/errors",
    summary="Read the catalogue of errors",
    response_model=CatalogueAnswer,
    responses=refusals(is_open=True),
)
async def get_errors() -> Response:
    """Return every code with its status, what it means, what to do, and what may be sent after it."""
    rows = [
        {
            "code": entry.code,
            "status": entry.status,
            "stored": entry.is_stored,
            "meaning": entry.meaning,
            "to_do": entry.to_do,
            "repeat": entry.repeat.value,
        }
        for entry in CATALOGUE.values()
    ]
    return answer({"errors": rows})


async def _advice(
    message_id: str, body: AdviceBody, request: Request, caller: CallerOf, advice: Advice, scope: Scope
) -> Response:
    vendor = require_vendor(caller, scope)
    state = state_of(request)
    seller = seller_of(vendor, body.terminal, body.operator)
    by = f"vendor {vendor.name}, key {vendor.key_id}"
    async with state.pool.connection() as conn:
        advised = await advise(conn, state.desk, seller, message_id, advice, by=by, reason=body.reason)
    _log.info(
        "vend_advised", advice=advice.value, state=advised.state, vendor_id=vendor.vendor_id, message_id=message_id
    )
    return answer(_advised_to_api(advised))


def _advised_to_api(advised: Advised) -> dict[str, object]:
    sold = advised.vend is not None and advised.vend.stored.status < 400
    return {
        "message_id": advised.message_id,
        "state": advised.state,
        "vend": advised.vend.stored.answer if advised.vend is not None and sold else None,
    }
