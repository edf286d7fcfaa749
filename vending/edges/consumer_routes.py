"""The routes of what a consumer may know of the own account.

Stage: between HTTP and the database, reading only. `me` is the account that the consumer's key is bound to; an engineer
names any. Never: an account of somebody else, a whole token for anybody but its consumer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import date
from functools import partial
from typing import Annotated, TypeVar

from fastapi import APIRouter, Path, Query, Request, Response
from psycopg import AsyncConnection

from billing.notices import Language
from billing.statement import BadPeriod
from db.consumer_facts import (
    ConsumerAccount,
    find_consumer_account,
    read_days,
    read_months,
    read_recharges,
    read_reported_relay,
    read_summary,
    read_supply_orders,
    read_wishes,
)
from db.errors import UnknownAccount
from db.notices import list_notices
from vending.edges.answers import render
from vending.edges.auth import Caller, ConsumerCaller, require_account
from vending.edges.consumer_answers import (
    days_to_api,
    months_to_api,
    notices_to_api,
    recharges_to_api,
    summary_to_api,
    supply_history_to_api,
    thresholds_to_api,
)
from vending.edges.consumer_models import (
    DaysAnswer,
    DaysQuery,
    MonthsAnswer,
    MonthsQuery,
    NoticesAnswer,
    NoticesQuery,
    PageQuery,
    RechargesAnswer,
    RechargesQuery,
    SummaryAnswer,
    SupplyHistoryAnswer,
    ThresholdsAnswer,
)
from vending.edges.errors import AccountUnknown, NotAllowed
from vending.edges.models import ErrorAnswer
from vending.edges.routes import CallerOf, answer, state_of
from vending.vends import METER_PATTERN

ME = "me"
# An entity tag is no secret: 64 bits tell two answers of one account apart.
_TAG_DIGITS = 16
# A phone may keep an answer and ask whether it still holds; nobody between may keep it.
_KEPT = {"cache-control": "private, no-cache", "vary": "X-Api-Key", "x-content-type-options": "nosniff"}
_NOT_KEPT = {"cache-control": "no-store", "x-content-type-options": "nosniff"}

Facts = TypeVar("Facts")

consumer_router = APIRouter(prefix="/v1/consumer", tags=["consumer"])

ConsumerPath = Annotated[
    str,
    Path(
        pattern=METER_PATTERN,
        description="`me`, the account of the consumer's key; engineers give an account number",
        examples=[ME, "100200300"],
    ),
]


def _refusals(described: Mapping[int, str]) -> dict[int | str, dict[str, object]]:
    named: dict[int | str, dict[str, object]] = {
        304: {"description": "the answer is the one that `If-None-Match` names"},
        401: {"model": ErrorAnswer, "description": "`api_key_wrong`"},
        403: {"model": ErrorAnswer, "description": "`not_allowed`: a vendor, another's account, an engineer for `me`"},
        404: {"model": ErrorAnswer, "description": "`unknown_account`"},
    }
    named |= {status: {"model": ErrorAnswer, "description": text} for status, text in described.items()}
    return {**named, "default": {"model": ErrorAnswer, "description": "any other refusal or error"}}


@consumer_router.get(
    "/{account}/summary",
    summary="Read the whole account at a glance",
    response_model=SummaryAnswer,
    responses=_refusals({}),
)
async def get_summary(account: ConsumerPath, request: Request, caller: CallerOf) -> Response:
    """Return balance, use, this month's bill so far, forecast, and supply with its reason, at money time."""
    desk = state_of(request).desk
    calendar = desk.rules.calendar
    read = partial(read_summary, calendar=calendar, now_ms=desk.clock())
    return _kept(request, summary_to_api(await _looked_up(request, caller, account, read), calendar))


@consumer_router.get(
    "/{account}/daily",
    summary="Read use and money day by day",
    response_model=DaysAnswer,
    responses=_refusals({400: "`malformed`, `bad_period`", 422: "`period_too_long`: too many bookings for one page"}),
)
async def get_daily(
    account: ConsumerPath, query: Annotated[DaysQuery, Query()], request: Request, caller: CallerOf
) -> Response:
    """Return energy, charge and recharges of each local day, the latest first, at most 400 a page."""
    first, last = _day(query.first), _day(query.last)
    calendar = state_of(request).desk.rules.calendar
    read = partial(read_days, calendar=calendar, first=first, last=last, most=query.limit)
    return _kept(request, days_to_api(await _looked_up(request, caller, account, read)))


@consumer_router.get(
    "/{account}/months",
    summary="Read use and money month by month",
    response_model=MonthsAnswer,
    responses=_refusals({400: "`malformed`, `bad_period`", 422: "`period_too_long`: too many bookings for one page"}),
)
async def get_months(
    account: ConsumerPath, query: Annotated[MonthsQuery, Query()], request: Request, caller: CallerOf
) -> Response:
    """Return each month's bill as known today and the money booked in it, the latest first."""
    first, last = _month(query.first), _month(query.last)
    calendar = state_of(request).desk.rules.calendar
    read = partial(read_months, calendar=calendar, first=first, last=last, most=query.limit)
    return _kept(request, months_to_api(await _looked_up(request, caller, account, read)))


@consumer_router.get(
    "/{account}/recharges",
    summary="Read the recharges",
    response_model=RechargesAnswer,
    responses=_refusals({400: "`malformed`"}),
)
async def get_recharges(
    account: ConsumerPath, query: Annotated[RechargesQuery, Query()], request: Request, caller: CallerOf
) -> Response:
    """Return recharges, the latest first; whole tokens only to the consumer, and never to be kept by a browser."""
    if query.show_tokens and not isinstance(caller, ConsumerCaller):
        raise NotAllowed(f"key {caller.key_id}: expected the consumer's own for whole tokens, got another")
    async with state_of(request).pool.connection() as conn:
        own = await own_account(conn, caller, account)
        sold = await read_recharges(conn, own.id, before=query.before, most=query.limit + 1)
    following = _following([each.id for each in sold], query.limit)
    body = recharges_to_api(own.number, sold[: query.limit], following, show_tokens=query.show_tokens)
    return answer(body, headers=_NOT_KEPT) if query.show_tokens else _kept(request, body)


@consumer_router.get(
    "/{account}/notices",
    summary="Read what the consumer was told",
    response_model=NoticesAnswer,
    responses=_refusals({400: "`malformed`"}),
)
async def get_notices(
    account: ConsumerPath, query: Annotated[NoticesQuery, Query()], request: Request, caller: CallerOf
) -> Response:
    """Return notices in a language, the latest first."""
    state = state_of(request)
    async with state.pool.connection() as conn:
        own = await own_account(conn, caller, account)
        told = await list_notices(
            conn,
            own.id,
            language=Language(query.language),
            calendar=state.desk.rules.calendar,
            before_id=query.before,
            limit=query.limit + 1,
        )
    following = _following([each.id for each in told], query.limit)
    return _kept(request, notices_to_api(own.number, told[: query.limit], following))


@consumer_router.get(
    "/{account}/thresholds",
    summary="Read when the consumer is warned",
    response_model=ThresholdsAnswer,
    responses=_refusals({}),
)
async def get_thresholds(account: ConsumerPath, request: Request, caller: CallerOf) -> Response:
    """Return each wish to be warned and the balance it comes to now."""
    read = partial(read_wishes, calendar=state_of(request).desk.rules.calendar)
    return _kept(request, thresholds_to_api(await _looked_up(request, caller, account, read)))


@consumer_router.get(
    "/{account}/supply-history",
    summary="Read what was ordered of the meter, and why",
    response_model=SupplyHistoryAnswer,
    responses=_refusals({400: "`malformed`"}),
)
async def get_supply_history(
    account: ConsumerPath, query: Annotated[PageQuery, Query()], request: Request, caller: CallerOf
) -> Response:
    """Return what the meter last said of supply, and the orders it was given, the latest first."""
    async with state_of(request).pool.connection() as conn:
        own = await own_account(conn, caller, account)
        orders = await read_supply_orders(conn, own.id, before=query.before, most=query.limit + 1)
        reported = await read_reported_relay(conn, own.id)
    following = _following([each.id for each in orders], query.limit)
    return _kept(request, supply_history_to_api(own.number, reported, orders[: query.limit], following))


async def _looked_up(
    request: Request, caller: Caller, account: str, read: Callable[[AsyncConnection, int], Awaitable[Facts]]
) -> Facts:
    """Read facts of an account that has a billing meter and that the caller may read.

    Raises: NotAllowed, AccountUnknown.
    """
    async with state_of(request).pool.connection() as conn:
        own = await own_account(conn, caller, account)
        try:
            return await read(conn, own.id)
        except UnknownAccount:
            raise AccountUnknown(f"account {own.number}: expected one with a billing meter, got none") from None


async def own_account(conn: AsyncConnection, caller: Caller, account: str) -> ConsumerAccount:
    """Find the account that a caller means and may read.

    Raises: NotAllowed, AccountUnknown.
    """
    if account == ME:
        if not isinstance(caller, ConsumerCaller):
            raise NotAllowed(f"key {caller.key_id}: expected a consumer's for {ME!r}, got one without an account")
        found = await find_consumer_account(conn, account_id=caller.account_id)
    else:
        found = await find_consumer_account(conn, number=account)
    require_account(caller, None if found is None else found.id)
    if found is None:
        raise AccountUnknown(f"account {account}: expected a known number")
    return found


def _kept(request: Request, body: Mapping[str, object]) -> Response:
    """Send an answer with its entity tag, or only that it has not changed."""
    content = render(body)
    tag = f'"{hashlib.sha256(content).hexdigest()[:_TAG_DIGITS]}"'
    headers = {**_KEPT, "etag": tag}
    known = {each.strip().removeprefix("W/") for each in request.headers.get("if-none-match", "").split(",")}
    if tag in known:
        return Response(status_code=304, headers=headers)
    return Response(content, media_type="application/json", headers=headers)


def _following(ids: Sequence[int], limit: int) -> int | None:
    """Return the cursor of the page after one that was read with one row more than it shows."""
    return ids[limit - 1] if len(ids) > limit else None


def _day(text: str | None) -> date | None:
    """Read a local day; its pattern was checked."""
    try:
        return None if text is None else date.fromisoformat(text)
    except ValueError:
        raise BadPeriod(f"days: expected a day YYYY-MM-DD of the calendar, got {text}") from None


def _month(text: str | None) -> date | None:
    """Read a month as its first day; its pattern was checked."""
    return None if text is None else _day(f"{text}-01")
