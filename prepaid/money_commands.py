"""The `money` and `rules` commands, and those of `accounts` that move money: conversion and long absence.

Stage: the command line's outermost layer, as in `__main__`. Every event needs a reason and the name of who orders it;
under `--reference` it is done once, however often the command is given.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from psycopg import AsyncConnection

from billing.money import parse_amount
from billing.prepayment import CategoryRules
from db.money_events import (
    Event,
    Instruction,
    MoneyDone,
    MoneyRefused,
    add_arrears,
    add_security,
    adjust,
    pay_interest,
    pay_interest_on_advance,
    refund,
    return_security,
    reverse,
    subsidise,
    write_off,
)
from prepaid import console
from prepaid.arguments import DataDir, Json, read_day, settings_of

money_app = typer.Typer(help="Money events that the billing office orders.", no_args_is_help=True)
rules_app = typer.Typer(help="Prepayment rules by category.", no_args_is_help=True)

Number = Annotated[str, typer.Argument(help="The account's number.")]
Amount = Annotated[str, typer.Argument(help="An amount such as 500 or 500.25.")]
Reason = Annotated[str, typer.Option("--reason", help="Why; kept with the journal.")]
By = Annotated[str, typer.Option("--by", help="Who orders it; kept with the journal.")]
Reference = Annotated[
    str | None, typer.Option("--reference", help="Done once under this name; again, the first answer is shown.")
]


class SecurityAction(StrEnum):
    """What is done with a security deposit."""

    OPENING = "opening"
    COLLECT = "collect"
    RETURN = "return"


def add_account_commands(accounts_app: typer.Typer) -> None:
    """Put conversion and absence among the `accounts` commands."""
    accounts_app.command(name="convert")(convert_command)
    accounts_app.command(name="absent")(absent_command)
    accounts_app.command(name="return")(return_command)


@money_app.command(name="refund")
def refund_command(
    number: Number,
    amount: Amount,
    reason: Reason,
    by: By,
    reference: Reference = None,
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """Pay out some of a prepaid balance; never more than it holds."""
    amount_minor = parse_amount(amount)

    async def event(conn: AsyncConnection, account_id: int, order: Instruction) -> MoneyDone:
        return await refund(conn, account_id, amount_minor, order)

    request = {"command": "refund", "amount_minor": amount_minor}
    _run(data, number, event, request, reason, by, reference, json_output)


@money_app.command(name="adjust")
def adjust_command(
    number: Number,
    amount: Amount,
    reason: Reason,
    by: By,
    debit: Annotated[bool, typer.Option("--debit", help="Take the amount instead of giving it.")] = False,
    reference: Reference = None,
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """Credit an account, or with --debit debit it."""
    amount_minor = parse_amount(amount)
    amount_minor = -amount_minor if debit else amount_minor

    async def event(conn: AsyncConnection, account_id: int, order: Instruction) -> MoneyDone:
        return await adjust(conn, account_id, amount_minor, order)

    request = {"command": "adjust", "amount_minor": amount_minor}
    _run(data, number, event, request, reason, by, reference, json_output)


@money_app.command(name="write-off")
def write_off_command(
    number: Number,
    amount: Amount,
    reason: Reason,
    by: By,
    arrears: Annotated[bool, typer.Option("--arrears", help="Of the arrears, not of the balance.")] = False,
    reference: Reference = None,
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """Give up a debt: of a balance below zero, or with --arrears of the arrears."""
    amount_minor = parse_amount(amount)

    async def event(conn: AsyncConnection, account_id: int, order: Instruction) -> MoneyDone:
        return await write_off(conn, account_id, amount_minor, order, arrears=arrears)

    request = {"command": "write-off", "amount_minor": amount_minor, "arrears": arrears}
    _run(data, number, event, request, reason, by, reference, json_output)


@money_app.command(name="arrears")
def arrears_command(
    number: Number,
    amount: Amount,
    reason: Reason,
    by: By,
    reference: Reference = None,
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """Bring in arrears from before prepayment; each recharge works some of them off."""
    amount_minor = parse_amount(amount)

    async def event(conn: AsyncConnection, account_id: int, order: Instruction) -> MoneyDone:
        return await add_arrears(conn, account_id, amount_minor, order)

    request = {"command": "arrears", "amount_minor": amount_minor}
    _run(data, number, event, request, reason, by, reference, json_output)


@money_app.command(name="security")
def security_command(
    number: Number,
    amount: Amount,
    action: Annotated[SecurityAction, typer.Option(help="Bring in, take from the balance, or give back to it.")],
    reason: Reason,
    by: By,
    reference: Reference = None,
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """Hold a security deposit, or return some of it to the balance."""
    amount_minor = parse_amount(amount)

    async def event(conn: AsyncConnection, account_id: int, order: Instruction) -> MoneyDone:
        if action is SecurityAction.RETURN:
            return await return_security(conn, account_id, amount_minor, order)
        return await add_security(conn, account_id, amount_minor, order, collect=action is SecurityAction.COLLECT)

    request = {"command": "security", "amount_minor": amount_minor, "action": action.value}
    _run(data, number, event, request, reason, by, reference, json_output)


@money_app.command(name="interest")
def interest_command(
    number: Number,
    reason: Reason,
    by: By,
    amount: Annotated[str | None, typer.Option(help="Interest that was worked out elsewhere.")] = None,
    advance: Annotated[str | None, typer.Option(help="An advance payment that earns the category's rate.")] = None,
    days: Annotated[int | None, typer.Option(min=1, max=3660, help="Days that the advance was held.")] = None,
    reference: Reference = None,
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """Credit interest: --amount as given, or --advance and --days at the category's rate."""
    if (amount is None) == (advance is None) or (advance is None) != (days is None):
        raise MoneyRefused("interest: expected either --amount, or --advance with --days")
    given_minor = parse_amount(amount or advance or "")

    async def event(conn: AsyncConnection, account_id: int, order: Instruction) -> MoneyDone:
        if days is None:
            return await pay_interest(conn, account_id, given_minor, order)
        return await pay_interest_on_advance(conn, account_id, given_minor, days, order)

    request = {"command": "interest", "amount_minor": given_minor, "days": days}
    _run(data, number, event, request, reason, by, reference, json_output)


@money_app.command(name="subsidy")
def subsidy_command(
    number: Number,
    amount: Amount,
    reason: Reason,
    by: By,
    reference: Reference = None,
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """Credit a government's subsidy, apart from the consumer's own money."""
    amount_minor = parse_amount(amount)

    async def event(conn: AsyncConnection, account_id: int, order: Instruction) -> MoneyDone:
        return await subsidise(conn, account_id, amount_minor, order)

    request = {"command": "subsidy", "amount_minor": amount_minor}
    _run(data, number, event, request, reason, by, reference, json_output)


@money_app.command(name="reverse")
def reverse_command(
    journal: Annotated[int, typer.Argument(help="The id of the journal to take back.")],
    reason: Reason,
    by: By,
    reference: Reference = None,
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """Take a journal back, once; with a vend also what arrears took of it. Usage is corrected, never reversed."""
    from prepaid.money import run_reverse

    answer = run_reverse(settings_of(data), journal, reverse, reason=reason, by=by, reference=reference)
    _print(answer, json_output)


@money_app.command(name="instalments")
def instalments_command(
    until: Annotated[str | None, typer.Option(help="Last day due, YYYY-MM-DD; default: today.")] = None,
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """Pay back the instalments of security that are due; resumable, harmless twice."""
    from prepaid.money import run_instalments

    settings = settings_of(data)
    today = datetime.now(settings.zone).date()
    day = read_day(until) if until else today
    if day > today:
        raise MoneyRefused(f"until: expected {today} or before, got {day}")
    paid = run_instalments(settings, day)
    if json_output:
        report = {"until": str(day), "instalments": paid.instalments, "amount_minor": paid.amount_minor}
        console.print_json(report)
    else:
        console.out.print(f"paid {paid.instalments} instalments up to {day}: {console.rupees(paid.amount_minor)}")


@rules_app.command(name="add")
def add_rules_command(
    file: Annotated[Path, typer.Argument(help="A rules document; see docs/prepayment-rules.md.")],
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """Put a rules document in force from the day it names; documents are never changed."""
    from prepaid.money import run_add_rules

    rules = run_add_rules(settings_of(data), file)
    if json_output:
        console.print_json({"id": rules.id, "from_day": str(rules.effective_from)})
    else:
        console.out.print(f"rules {rules.id} hold from {rules.effective_from}", markup=False)


@rules_app.command(name="show")
def show_rules_command(
    day: Annotated[str | None, typer.Option(help="Day in question, YYYY-MM-DD; default: today.")] = None,
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """Show the rules in force on a day, category by category."""
    from prepaid.money import run_rules_on

    settings = settings_of(data)
    rules = run_rules_on(settings, read_day(day) if day else datetime.now(settings.zone).date())
    categories = {each.category: asdict(each) for each in (rules.default, *rules.categories)}
    if json_output:
        head = {"id": rules.id, "title": rules.title, "source": rules.source, "from_day": str(rules.effective_from)}
        console.print_json({**head, "categories": categories})
        return
    console.out.print(f"{rules.id}, from {rules.effective_from}: {rules.title}", markup=False)
    for each in (rules.default, *rules.categories):
        console.out.print(_category_line(each), markup=False)


@rules_app.command(name="apply")
def apply_rules_command(
    day: Annotated[str | None, typer.Option(help="Day whose rules count, YYYY-MM-DD; default: today.")] = None,
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """Give every account the emergency credit of its category; resumable, harmless twice."""
    from prepaid.money import run_apply_rules

    settings = settings_of(data)
    changed = run_apply_rules(settings, read_day(day) if day else datetime.now(settings.zone).date())
    if json_output:
        console.print_json({"changed": changed})
    else:
        console.out.print(f"changed the emergency credit of {changed} accounts")


def convert_command(
    number: Number,
    reason: Reason,
    by: By,
    arrears: Annotated[str, typer.Option(help="Arrears brought in, e.g. 1500.00.")] = "0",
    security: Annotated[str, typer.Option(help="Security deposit brought in.")] = "0",
    month_charges: Annotated[
        str | None, typer.Option(help="An average month's charges: the security that stays held; else all goes back.")
    ] = None,
    debt_to_arrears: Annotated[
        bool, typer.Option("--debt-to-arrears", help="Move a balance below zero to the arrears.")
    ] = False,
    reference: Reference = None,
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """Turn a postpaid account into a prepaid one, with the arrears and the security that it brings."""
    from db.conversions import Conversion
    from prepaid.money import run_convert

    conversion = Conversion(
        arrears_minor=parse_amount(arrears),
        security_minor=parse_amount(security),
        month_minor=None if month_charges is None else parse_amount(month_charges),
        debt_to_arrears=debt_to_arrears,
    )
    answer = run_convert(settings_of(data), number, conversion, reason=reason, by=by, reference=reference)
    _print(answer, json_output)


def absent_command(
    number: Number,
    until: Annotated[str, typer.Option(help="The day the absence ends, YYYY-MM-DD.")],
    deposit: Annotated[str, typer.Option(help="Fixed charges and rentals in advance, taken from the balance.")],
    reason: Reason,
    by: By,
    reference: Reference = None,
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """Begin a long absence: with its deposit supply is not cut until the day it ends."""
    from prepaid.money import run_absent

    day, deposit_minor = read_day(until), parse_amount(deposit)
    answer = run_absent(settings_of(data), number, day, deposit_minor, reason=reason, by=by, reference=reference)
    _print(answer, json_output)


def return_command(
    number: Number,
    reason: Reason,
    by: By,
    reference: Reference = None,
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """End a long absence: the deposit goes back to the balance, supply follows the balance again."""
    from prepaid.money import run_return

    _print(run_return(settings_of(data), number, reason=reason, by=by, reference=reference), json_output)


def _run(
    data: Path | None,
    number: str,
    event: Event,
    request: Mapping[str, object],
    reason: str,
    by: str,
    reference: str | None,
    json_output: bool,
) -> None:
    from prepaid.money import run_event

    answer = run_event(settings_of(data), number, event, request=request, reason=reason, by=by, reference=reference)
    _print(answer, json_output)


def _print(answer: Mapping[str, object], json_output: bool) -> None:
    if json_output:
        console.print_json(answer)
        return
    for name, value in answer.items():
        text = console.rupees(value) if name.endswith("_minor") and isinstance(value, int) else value
        console.out.print(f"{name.removesuffix('_minor'):<16} {text}", markup=False)


def _category_line(rules: CategoryRules) -> str:
    return (
        f"  {rules.category:<8} emergency credit {console.rupees(rules.emergency_credit_minor)}, recharge"
        f" {console.rupees(rules.recharge_min_minor)} to {console.rupees(rules.recharge_max_minor)}, arrears take"
        f" {rules.recovery_share_basis_points} basis points above {console.rupees(rules.recovery_floor_minor)}"
    )
