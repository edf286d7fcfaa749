"""`prepaid accounts statement`: an account's statement on the screen or as a file.

Stage: the command line's outermost layer, as in `__main__`. Reads one snapshot of the database and prints.
"""

from __future__ import annotations

import sys
from datetime import date, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from billing.statement import Statement
from billing.statement_html import render_html
from billing.statement_text import render_csv, render_text
from prepaid import console
from prepaid.arguments import read_day, settings_of
from prepaid.settings import Settings

if TYPE_CHECKING:
    from psycopg import AsyncConnection


class StatementForm(StrEnum):
    """In which form a statement is printed."""

    TEXT = "text"
    CSV = "csv"
    HTML = "html"
    JSON = "json"


def print_statement(
    number: Annotated[str, typer.Argument(help="The account's number.")],
    first: Annotated[
        str | None, typer.Option("--from", help="First day, YYYY-MM-DD; default: the first of the last day's month.")
    ] = None,
    last: Annotated[
        str | None, typer.Option("--to", help="Last day, YYYY-MM-DD; default: up to the running balance.")
    ] = None,
    form: Annotated[StatementForm, typer.Option("--format", help="How to print it.")] = StatementForm.TEXT,
    data: Annotated[
        Path | None, typer.Option("--data", help="Folder of the embedded parts (PREPAID_DATA_DIR).")
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")] = False,
) -> None:
    """Opening balance, each day with its energy and bill lines, payments, corrections, closing balance."""
    # As in `__main__`, what a command needs is loaded when it runs.
    from vending.edges.statement_answers import statement_to_api

    settings = settings_of(data)
    days = (None if text is None else read_day(text) for text in (first, last))
    made = run_statement(settings, number, *days)
    match StatementForm.JSON if json_output else form:
        case StatementForm.JSON:
            console.print_json(statement_to_api(made))
        case StatementForm.CSV:
            sys.stdout.write(render_csv(made))
        case StatementForm.HTML:
            sys.stdout.write(render_html(made))
        case StatementForm.TEXT:
            sys.stdout.write(render_text(made))


def run_statement(settings: Settings, number: str, first: date | None, last: date | None) -> Statement:
    """Read the statement of an account.

    Raises: UnknownAccount, BadPeriod, PeriodTooLong.
    """
    from db.errors import UnknownAccount
    from db.registry import account_id_of
    from db.statements import read_statement
    from prepaid.administration import on_database
    from prepaid.processes import calendar_of

    today = datetime.now(settings.zone).date()

    async def work(conn: AsyncConnection) -> Statement:
        account_id = await account_id_of(conn, number)
        if account_id is None:
            raise UnknownAccount(f"account: expected a known number, got {number!r}")
        return await read_statement(conn, account_id, calendar_of(settings), first=first, last=last, today=today)

    return on_database(settings, work)
