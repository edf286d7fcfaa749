"""The routes of vendors' floats and batches.

Stage: between HTTP and the float desk. Vendors ask about their own, the utility's people name one; a cashier takes
deposits, a supervisor starts and ends batches. Never: a sale, a transaction of its own.
"""

from __future__ import annotations

from datetime import date
from typing import Annotated

import structlog
from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import StreamingResponse

from billing.calendar import from_ms
from billing.money import parse_amount
from billing.notices.kinds import Language
from billing.statement import DAY_MAX, DAY_MIN, BadPeriod
from db.vendor_deposits import NewDeposit
from vending.edges import float_desk
from vending.edges.auth import Caller, VendorCaller, require_scope, terminal_of
from vending.edges.float_answers import (
    batch_facts,
    batch_head_to_api,
    batch_to_api,
    day_facts,
    day_to_api,
    deposit_to_api,
    float_statement_to_api,
    float_to_api,
)
from vending.edges.float_models import (
    BATCH_MAX,
    DAY_PATTERN,
    DEPOSIT_PATTERN,
    BatchAnswer,
    BatchBody,
    BatchesAnswer,
    BatchQuery,
    DayAnswer,
    DepositAnswer,
    DepositBody,
    DepositReturnBody,
    FloatAnswer,
    FloatStatementAnswer,
    FloatStatementQuery,
    OpenBatchesAnswer,
    OpenBatchesQuery,
    ReportQuery,
    VendorQuery,
)
from vending.edges.refusals import Responses, refusals
from vending.edges.routes import AppState, CallerOf, answer, state_of
from vending.floats import BatchKind, ScopeRefused
from vending.roles import Scope
from vending.slips.batch import BatchFacts, batch_slip
from vending.slips.html import render_html
from vending.slips.text import render_text
from vending.slips.words import words_of

float_router = APIRouter(prefix="/v1", tags=["float and batches"])

_log = structlog.get_logger(__name__)
_NO_STORE = {"cache-control": "no-store"}
# A page of it runs and loads nothing.
_PAGE = {
    **_NO_STORE,
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
}
_OF_VENDOR = ("vendor_required", "unknown_vendor")

KindPath = Annotated[BatchKind, Path(description="a terminal's sales, an operator's shift, what goes to the bank")]
NumberPath = Annotated[int, Path(ge=1, le=BATCH_MAX, description="counts the batches of a kind and terminal from 1")]
ReferencePath = Annotated[str, Path(pattern=DEPOSIT_PATTERN, examples=["SBI-20261121-7781"])]
DayPath = Annotated[str, Path(pattern=DAY_PATTERN, examples=["2026-11-21"])]


def _forms(*forms: str) -> Responses:
    """Say in which forms an answer is given besides JSON."""
    return {200: {"content": {"application/json": {}, **{form: {"schema": {"type": "string"}} for form in forms}}}}


@float_router.get(
    "/float", summary="Read a vendor's float", response_model=FloatAnswer, responses=refusals(*_OF_VENDOR)
)
async def get_float(query: Annotated[VendorQuery, Query()], request: Request, caller: CallerOf) -> Response:
    """Return what a vendor has with the utility, its credit limit, and what it could sell now."""
    async with state_of(request).pool.connection() as conn:
        owner = await float_desk.vendor_of(conn, caller, query.vendor, Scope.FLOAT)
    return answer(float_to_api(owner), headers=_NO_STORE)


@float_router.get(
    "/float/statement",
    summary="Read a vendor's statement",
    response_model=FloatStatementAnswer,
    responses=_forms("text/csv") | refusals("bad_period", *_OF_VENDOR),
)
async def get_float_statement(
    query: Annotated[FloatStatementQuery, Query()], request: Request, caller: CallerOf
) -> Response:
    """Return opening balance, each entry with what it is about, closing balance; by local days, at most 400."""
    state = state_of(request)
    calendar = state.desk.rules.calendar
    today = calendar.day_of(state.desk.clock())
    last = today if query.last is None else _day(query.last)
    first = last.replace(day=1) if query.first is None else _day(query.first)
    async with state.pool.connection() as conn:
        owner = await float_desk.vendor_of(conn, caller, query.vendor, Scope.FLOAT)
        if query.form == "json":
            found = await float_desk.statement(conn, owner, first, last, after=query.after, calendar=calendar)
            return answer(float_statement_to_api(found), headers=_NO_STORE)
    pages = await float_desk.statement_csv(state.pool.connection, owner, first, last, calendar=calendar)
    name = f"float-{owner.vendor_id}-{first}-{last}.csv"
    headers = {**_NO_STORE, "content-disposition": f'attachment; filename="{name}"'}
    return StreamingResponse(pages, media_type="text/csv; charset=utf-8; header=present", headers=headers)


@float_router.get(
    "/float/days/{day}",
    summary="Read a vendor's end of day",
    response_model=DayAnswer,
    responses=_forms("text/plain", "text/html") | refusals("bad_period", *_OF_VENDOR),
)
async def get_day(day: DayPath, query: Annotated[ReportQuery, Query()], request: Request, caller: CallerOf) -> Response:
    """Return a local day: float at both ends, deposits, coupons, sales and reversals by terminal and tender."""
    state = state_of(request)
    calendar, now_ms = state.desk.rules.calendar, state.desk.clock()
    async with state.pool.connection() as conn:
        owner = await float_desk.vendor_of(conn, caller, query.vendor, Scope.FLOAT)
        found = await float_desk.end_of_day(conn, owner, _day(day), calendar=calendar, now_ms=now_ms)
    if query.form == "json":
        return answer(day_to_api(owner.vendor, found), headers=_NO_STORE)
    return _slip(state, day_facts(owner.vendor, found, calendar=calendar), query)


@float_router.post(
    "/float/deposits",
    summary="Take a vendor's deposit",
    response_model=DepositAnswer,
    responses=refusals("bad_amount", "deposit_refused", "reference_reused", "unknown_vendor"),
)
async def post_deposit(body: DepositBody, request: Request, caller: CallerOf) -> Response:
    """Book money that a vendor paid in; again under the same reference, the same receipt and no second booking."""
    require_scope(caller, Scope.DEPOSIT)
    amount_minor = parse_amount(body.amount)
    async with state_of(request).pool.connection() as conn:
        owner = await float_desk.named_vendor(conn, body.vendor)
        new = NewDeposit(
            vendor_id=owner.vendor_id,
            reference=body.reference,
            amount_minor=amount_minor,
            channel=body.channel,
            by=body.by or _key(caller),
            note=body.note or "",
        )
        taken, is_new = await float_desk.take_deposit(conn, caller, new)
    _log.info(
        "deposit_taken", vendor_id=owner.vendor_id, reference=body.reference, amount_minor=amount_minor, new=is_new
    )
    return answer(deposit_to_api(taken))


# A reference may hold slashes, as banks write them: what is done to a deposit stands before it.
@float_router.post(
    "/float/deposit-returns/{reference:path}",
    summary="Take a deposit back",
    response_model=DepositAnswer,
    responses=refusals("unknown_deposit"),
)
async def post_return(
    reference: ReferencePath, body: DepositReturnBody, request: Request, caller: CallerOf
) -> Response:
    """Take back a deposit that was no money, whole and once; the float may fall below its limit by it."""
    require_scope(caller, Scope.DEPOSIT)
    async with state_of(request).pool.connection() as conn:
        returned, is_new = await float_desk.return_deposit(
            conn, caller, reference, by=body.by or _key(caller), reason=body.reason
        )
    _log.info("deposit_taken_back", reference=reference, vendor_id=returned.vendor_id, new=is_new)
    return answer(deposit_to_api(returned))


@float_router.get(
    "/float/deposits/{reference:path}",
    summary="Print the receipt of a deposit again",
    response_model=DepositAnswer,
    responses=refusals("unknown_deposit"),
)
async def get_deposit(reference: ReferencePath, request: Request, caller: CallerOf) -> Response:
    """Return the receipt as it was given, and whether the deposit was taken back since."""
    async with state_of(request).pool.connection() as conn:
        return answer(deposit_to_api(await float_desk.deposit_receipt(conn, caller, reference)))


@float_router.get(
    "/batches",
    summary="Read the totals of all that is open",
    response_model=OpenBatchesAnswer,
    responses=refusals(*_OF_VENDOR),
)
async def get_open_batches(query: Annotated[OpenBatchesQuery, Query()], request: Request, caller: CallerOf) -> Response:
    """Return the open sales batch of a terminal, the open shift of an operator and the open bank batch."""
    async with state_of(request).pool.connection() as conn:
        owner = await float_desk.vendor_of(conn, caller, query.vendor, Scope.FLOAT)
        found = await float_desk.open_totals(conn, owner, query.terminal or "", query.operator or "")
    return answer({"batches": [batch_to_api(each) for each in found]}, headers=_NO_STORE)


@float_router.get(
    "/batches/{kind}/ended",
    summary="List batches of a kind",
    response_model=BatchesAnswer,
    responses=refusals(*_OF_VENDOR),
)
async def get_batches(
    kind: KindPath, query: Annotated[VendorQuery, Query()], request: Request, caller: CallerOf
) -> Response:
    """Return the latest batches that somebody started or ended, of every terminal or operator."""
    async with state_of(request).pool.connection() as conn:
        owner = await float_desk.vendor_of(conn, caller, query.vendor, Scope.FLOAT)
        found = await float_desk.recent_batches(conn, owner, kind)
    return answer({"batches": [batch_head_to_api(kind, each) for each in found]}, headers=_NO_STORE)


@float_router.get(
    "/batches/{kind}/open",
    summary="Read the totals of an open batch",
    response_model=BatchAnswer,
    responses=_forms("text/plain", "text/html") | refusals("bad_scope_of_batch", *_OF_VENDOR),
)
async def get_open_batch(
    kind: KindPath, query: Annotated[BatchQuery, Query()], request: Request, caller: CallerOf
) -> Response:
    """Return what the batch holds so far, and its number, which ends it."""
    return await _batch(kind, None, query, request, caller)


@float_router.get(
    "/batches/{kind}/{number}",
    summary="Read or reprint a batch",
    response_model=BatchAnswer,
    responses=_forms("text/plain", "text/html") | refusals("bad_scope_of_batch", "unknown_batch", *_OF_VENDOR),
)
async def get_batch(
    kind: KindPath, number: NumberPath, query: Annotated[BatchQuery, Query()], request: Request, caller: CallerOf
) -> Response:
    """Return a batch by its number: the same report as when it was ended, or the totals so far."""
    return await _batch(kind, number, query, request, caller)


@float_router.post(
    "/batches/{kind}/start",
    summary="Start a batch",
    response_model=BatchAnswer,
    responses=refusals("bad_scope_of_batch", "unknown_vendor"),
)
async def post_start(kind: KindPath, body: BatchBody, request: Request, caller: CallerOf) -> Response:
    """Note who starts the open batch, and return it; again, nothing changes. Sales before that are in it, too."""
    state = state_of(request)
    scope = _scope_of(kind, body.of, caller)
    async with state.pool.connection() as conn:
        vendor = await float_desk.who_counts(conn, caller, now=from_ms(state.desk.clock()))
        started = await float_desk.start(conn, vendor, kind, scope, body.by or _key(caller))
    _log.info("batch_started", vendor_id=vendor.vendor_id, kind=kind.value, of=scope, number=started.batch.number)
    return answer(batch_to_api(started))


@float_router.post(
    "/batches/{kind}/{number}/end",
    summary="End a batch",
    response_model=BatchAnswer,
    responses=refusals("bad_scope_of_batch", "unknown_batch", "unknown_vendor"),
)
async def post_end(kind: KindPath, number: NumberPath, body: BatchBody, request: Request, caller: CallerOf) -> Response:
    """End a batch after the latest sale and return its report; again, or by two at once, the same report."""
    state = state_of(request)
    scope = _scope_of(kind, body.of, caller)
    async with state.pool.connection() as conn:
        vendor = await float_desk.who_counts(conn, caller, now=from_ms(state.desk.clock()))
        ended = await float_desk.end(conn, vendor, kind, scope, number, body.by or _key(caller))
    _log.info("batch_ended", vendor_id=vendor.vendor_id, kind=kind.value, of=scope, number=number)
    return answer(batch_to_api(ended))


async def _batch(kind: BatchKind, number: int | None, query: BatchQuery, request: Request, caller: Caller) -> Response:
    state = state_of(request)
    scope = _scope_of(kind, query.of, caller)
    async with state.pool.connection() as conn:
        owner = await float_desk.vendor_of(conn, caller, query.vendor, Scope.FLOAT)
        found = await float_desk.report(conn, owner, kind, scope, number)
    if query.form == "json":
        return answer(batch_to_api(found), headers=_NO_STORE)
    return _slip(state, batch_facts(found, now_ms=state.desk.clock()), query)


def _slip(state: AppState, facts: BatchFacts, query: ReportQuery) -> Response:
    slip = batch_slip(
        facts,
        words=words_of(Language(query.lang)),
        utility=state.utility,
        calendar=state.desk.rules.calendar,
    )
    headers = {**_PAGE, "content-language": query.lang}
    if query.form == "html":
        return Response(render_html(slip), media_type="text/html; charset=utf-8", headers=headers)
    return Response(render_text(slip), media_type="text/plain; charset=utf-8", headers=headers)


def _scope_of(kind: BatchKind, named: str | None, caller: Caller) -> str:
    """Return whose batch is meant; a key that is for one terminal means that terminal's sales.

    Raises: ScopeRefused where a bank batch names one; NotAllowed for another terminal than the key's.
    """
    if kind is BatchKind.BANK and named is not None:
        raise ScopeRefused("of: expected nothing for a bank batch, which is the whole vendor's, got a name")
    if kind is BatchKind.SALES and isinstance(caller, VendorCaller):
        return terminal_of(caller, named) or ""
    return named or ""


def _key(caller: Caller) -> str:
    return f"key {caller.key_id}"


def _day(text: str) -> date:
    try:
        day = date.fromisoformat(text)
    except ValueError:
        raise BadPeriod(f"statement: expected a day YYYY-MM-DD of the calendar, got {text}") from None
    if not DAY_MIN <= day <= DAY_MAX:
        raise BadPeriod(f"statement: expected a day from {DAY_MIN} to {DAY_MAX}, got {text}")
    return day
