"""The routes of statements and past balances.

Stage: between HTTP and the database, reading only. Never: an account of somebody else, a cached page.
"""

from __future__ import annotations

from datetime import date, datetime
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from psycopg import AsyncConnection

from billing.calendar import from_ms
from billing.statement import DAY_MAX, DAY_MIN, BadPeriod, Statement
from billing.statement_html import render_html
from billing.statement_text import render_csv, render_text
from db.errors import UnknownAccount
from db.statements import read_balance_at, read_statement
from db.vends import find_account
from vending.edges.auth import Caller, require_account
from vending.edges.errors import AccountUnknown, BadInstant
from vending.edges.refusals import refusals
from vending.edges.routes import AccountPath, CallerOf, answer, state_of
from vending.edges.statement_answers import past_balance_to_api, statement_to_api
from vending.edges.statement_models import (
    STATEMENT_EXAMPLE,
    BalanceQuery,
    PastBalanceAnswer,
    StatementAnswer,
    StatementQuery,
)

statement_router = APIRouter()

# A statement is of one moment and of one person: nobody keeps it. A page of it runs and loads nothing.
_HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
}
_FORMS: dict[str, object] = {
    "application/json": {"example": STATEMENT_EXAMPLE},
    "text/csv": {"schema": {"type": "string"}},
    "text/plain": {"schema": {"type": "string"}},
    "text/html": {"schema": {"type": "string"}},
}


@statement_router.get(
    "/v1/accounts/{id}/statement",
    summary="Read an account's statement",
    response_model=StatementAnswer,
    responses={
        200: {"content": _FORMS},
        **refusals("bad_period", "unknown_account", "period_too_long"),
    },
)
async def get_statement(
    account: AccountPath, query: Annotated[StatementQuery, Query()], request: Request, caller: CallerOf
) -> Response:
    """Return opening balance, each day with its energy and bill lines, payments, corrections and closing balance."""
    first, last = (None if text is None else _day(text) for text in (query.first, query.last))
    state = state_of(request)
    calendar = state.desk.rules.calendar
    today = calendar.day_of(state.desk.clock())
    async with state.pool.connection() as conn:
        account_id = await _own_account(conn, caller, account)
        try:
            statement = await read_statement(conn, account_id, calendar, first=first, last=last, today=today)
        except UnknownAccount:
            raise _without_meter(account) from None
    return _rendered(statement, query.form)


@statement_router.get(
    "/v1/accounts/{id}/balance",
    summary="Read the balance at a past instant",
    response_model=PastBalanceAnswer,
    responses=refusals("bad_instant", "unknown_account"),
)
async def get_balance(
    account: AccountPath, query: Annotated[BalanceQuery, Query()], request: Request, caller: CallerOf
) -> Response:
    """Return money booked by an instant, less the charge of energy and days up to it as known today."""
    state = state_of(request)
    at = _instant(query.at, now=from_ms(state.desk.clock()))
    async with state.pool.connection() as conn:
        account_id = await _own_account(conn, caller, account)
        try:
            past = await read_balance_at(conn, account_id, state.desk.rules.calendar, at=at)
        except UnknownAccount:
            raise _without_meter(account) from None
    return answer(past_balance_to_api(past, at), headers=_HEADERS)


def _rendered(statement: Statement, form: str) -> Response:
    name = f"statement-{statement.head.account_number}-{statement.first}-{statement.last}"
    match form:
        case "csv":
            headers = {**_HEADERS, "content-disposition": f'attachment; filename="{name}.csv"'}
            return Response(
                render_csv(statement), media_type="text/csv; charset=utf-8; header=present", headers=headers
            )
        case "text":
            return Response(render_text(statement), media_type="text/plain; charset=utf-8", headers=_HEADERS)
        case "html":
            return Response(render_html(statement), media_type="text/html; charset=utf-8", headers=_HEADERS)
        case _:
            return answer(statement_to_api(statement), headers=_HEADERS)


async def _own_account(conn: AsyncConnection, caller: Caller, number: str) -> int:
    account_id = await find_account(conn, number)
    require_account(caller, account_id)
    if account_id is None:
        raise AccountUnknown(f"account {number}: expected a known number")
    return account_id


def _without_meter(number: str) -> AccountUnknown:
    return AccountUnknown(f"account {number}: expected one with a billing meter, got none")


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise BadPeriod(f"statement: expected a day YYYY-MM-DD of the calendar, got {text}") from None


def _instant(text: str, *, now: datetime) -> datetime:
    """Read an instant that has passed; its pattern was checked."""
    try:
        at = datetime.fromisoformat(text.replace(" ", "+"))
    except ValueError:
        raise BadInstant(f"at: expected an instant of the calendar with its zone, got {text}") from None
    if not DAY_MIN < at.date() < DAY_MAX or at > now:
        raise BadInstant(f"at: expected an instant that has passed, after {DAY_MIN}, got {text}")
    return at
