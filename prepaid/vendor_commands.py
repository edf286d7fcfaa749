"""`prepaid vendors`: who sells recharges, and what each has with the utility.

Stage: the command line's outermost layer, as in `__main__`. Whatever changes money or a limit names who did it and why.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from datetime import date, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from psycopg import AsyncConnection

from billing.money import format_minor, parse_amount
from prepaid import console
from prepaid.arguments import (
    By,
    CommandRefused,
    DataDir,
    Json,
    line,
    local,
    read_day,
    read_name,
    read_words,
    run,
    settings_of,
)
from prepaid.csv_lines import Errors, Fields, amount_field, read_lines, refuse_repeated, text_field
from prepaid.settings import Settings

if TYPE_CHECKING:
    from db.floats import FloatState
    from db.vend_states import NeverConfirmed, OpenVend
    from db.vendor_deposits import Deposit

vendors_app = typer.Typer(help="Vendors: their keys, floats, credit limits, deposits.", no_args_is_help=True)

# Who a limit is said to be set by that came with the vendor.
_REGISTRATION, _AS_REGISTERED = "registration", "as registered"
# One listing: more is no list for people.
_HELD_SHOWN = 10_000

Vendor = Annotated[str, typer.Argument(help="The vendor's name.")]
Reason = Annotated[str, typer.Option("--reason", help="Why; it is kept.")]
Reference = Annotated[str, typer.Argument(help="What the bank or the counter calls the deposit.")]


class StatementForm(StrEnum):
    """In which form a vendor's statement is printed."""

    TEXT = "text"
    CSV = "csv"
    JSON = "json"


class PaidBy(StrEnum):
    """How a deposit was paid in."""

    BANK = "bank"
    CASH = "cash"
    CHEQUE = "cheque"


@vendors_app.command(name="add")
def add_command(
    name: Vendor,
    credit_limit: Annotated[
        str | None,
        typer.Option(help="How far sales may go beyond deposits, e.g. 0 or 5000; without it there is no limit."),
    ] = None,
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """Register a vendor and give it an API key; the key is shown once and not kept."""
    from prepaid.keys import login_name, sealing_master
    from vending.edges.key_desk import give_key
    from vending.roles import Role
    from vending.security import SealBroken

    settings = settings_of(data)
    limit_minor = None if credit_limit is None else parse_amount(credit_limit)
    words = read_words("name", name)

    async def work(conn: AsyncConnection) -> str:
        async with conn.transaction():
            await _register(conn, words, limit_minor)
            master = await sealing_master(settings, conn)
            return (await give_key(conn, master, Role.VENDOR, vendor=words, by=login_name())).header

    try:
        key = run(settings, work)
    except SealBroken as error:
        raise CommandRefused(f"master key: {error}") from None
    if json_output:
        console.print_json({"vendor": words, "api_key": key, "credit_limit_minor": limit_minor})
        return
    line(f"vendor {words}, API key (shown once): {key}")
    if limit_minor is None:
        console.err.print("it sells without a limit; `prepaid vendors limit` sets one", markup=False)


@vendors_app.command(name="list")
def list_command(data: DataDir = None, json_output: Json = False) -> None:
    """Show every vendor with its float, its credit limit and what it could sell now."""
    from db.floats import list_floats

    found = run(settings_of(data), list_floats)
    if json_output:
        console.print_json({"vendors": [_float_to_json(each) for each in found]})
        return
    for each in found:
        line(_float_line(each))


@vendors_app.command(name="import")
def import_command(
    file: Annotated[Path, typer.Argument(help="CSV with the columns name and, if wished, credit_limit.")],
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """Register vendors from a file, all or none; known ones stay as they are. Keys: `prepaid api-keys add`."""
    from db.floats import UnknownVendor, find_float

    wanted = _read_vendors(file)

    async def work(conn: AsyncConnection) -> int:
        added = 0
        async with conn.transaction():
            for name, limit_minor in wanted:
                try:
                    await find_float(conn, name)
                except UnknownVendor:
                    await _register(conn, name, limit_minor)
                    added += 1
        return added

    added = run(settings_of(data), work)
    if json_output:
        console.print_json({"lines": len(wanted), "added": added})
    else:
        line(f"added {added} of {len(wanted)} vendors")


@vendors_app.command(name="limit")
def limit_command(
    name: Vendor,
    by: By,
    reason: Reason,
    amount: Annotated[str | None, typer.Argument(help="How far sales may go beyond deposits; 0 is prepaid.")] = None,
    no_limit: Annotated[bool, typer.Option("--no-limit", help="Let sales go as far as they will.")] = False,
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """Set a vendor's credit limit from now on; a vendor that owes more already sells nothing until it has paid."""
    from db.floats import find_float
    from db.vendors import set_limit

    if (amount is None) != no_limit:
        raise CommandRefused("limit: expected either an amount or --no-limit")
    limit_minor = None if amount is None else parse_amount(amount)
    who, why = read_name(by), read_words("reason", reason)

    async def work(conn: AsyncConnection) -> FloatState:
        async with conn.transaction():
            found = await find_float(conn, name)
            await set_limit(conn, found.vendor_id, limit_minor, by=who, reason=why)
            return await find_float(conn, name)

    _print_float(run(settings_of(data), work), json_output)


@vendors_app.command(name="stop")
def stop_command(name: Vendor, by: By, reason: Reason, data: DataDir = None, json_output: Json = False) -> None:
    """Let a vendor sell nothing more; what it was answered it can still read."""
    _set_active(name, False, by, reason, data, json_output)


@vendors_app.command(name="resume")
def resume_command(name: Vendor, by: By, reason: Reason, data: DataDir = None, json_output: Json = False) -> None:
    """Let a vendor sell again that was stopped."""
    _set_active(name, True, by, reason, data, json_output)


@vendors_app.command(name="show")
def show_command(name: Vendor, data: DataDir = None, json_output: Json = False) -> None:
    """Show a vendor's float and who changed its limit or stopped it, the newest first."""
    from db.floats import find_float
    from db.vendors import VendorChange, read_changes

    settings = settings_of(data)

    async def work(conn: AsyncConnection) -> tuple[FloatState, list[VendorChange]]:
        found = await find_float(conn, name)
        return found, await read_changes(conn, found.vendor_id)

    found, changes = run(settings, work)
    if json_output:
        told = [
            {
                "at": local(each.at, settings),
                "act": each.act,
                "limit_minor": each.limit_minor,
                "by": each.by,
                "reason": each.reason,
            }
            for each in changes
        ]
        console.print_json({**_float_to_json(found), "changes": told})
        return
    line(_float_line(found))
    for each in changes:
        limit = f" {_limit_text(each.limit_minor)}" if each.act == "limit" else ""
        line(f"  {local(each.at, settings)} {each.act}{limit}, by {each.by}: {each.reason}")


@vendors_app.command(name="deposit")
def deposit_command(
    name: Vendor,
    amount: Annotated[str, typer.Argument(help="An amount such as 25000 or 25000.00.")],
    reference: Annotated[
        str, typer.Option("--reference", help="What the bank or the counter calls it; once, for ever.")
    ],
    by: By,
    channel: Annotated[PaidBy, typer.Option(help="How it was paid in.")] = PaidBy.BANK,
    note: Annotated[str, typer.Option(help="Anything to be kept with it.")] = "",
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """Add a vendor's deposit to its float; again under the same reference, the first receipt is shown."""
    from db.floats import find_float
    from db.vendor_deposits import NewDeposit, deposit

    settings = settings_of(data)
    amount_minor, who = parse_amount(amount), read_name(by)

    async def work(conn: AsyncConnection) -> Deposit:
        async with conn.transaction():
            new = NewDeposit(
                vendor_id=(await find_float(conn, name)).vendor_id,
                reference=reference,
                amount_minor=amount_minor,
                channel=channel.value,
                by=who,
                note=read_words("note", note) if note else "",
            )
            taken, _ = await deposit(conn, new)
            return taken

    _print_deposit(run(settings, work), settings, json_output)


@vendors_app.command(name="receipt")
def receipt_command(reference: Reference, data: DataDir = None, json_output: Json = False) -> None:
    """Print the receipt of a deposit again."""
    from db.vendor_deposits import find_deposit

    settings = settings_of(data)
    _print_deposit(run(settings, lambda conn: find_deposit(conn, reference)), settings, json_output)


@vendors_app.command(name="deposit-return")
def return_command(
    reference: Reference, by: By, reason: Reason, data: DataDir = None, json_output: Json = False
) -> None:
    """Take a deposit back that was no money, such as a cheque that is not honoured; whole, and once."""
    from db.vendor_deposits import take_deposit_back

    settings = settings_of(data)
    who, why = read_name(by), read_words("reason", reason)

    async def work(conn: AsyncConnection) -> Deposit:
        async with conn.transaction():
            returned, _ = await take_deposit_back(conn, reference, by=who, reason=why)
            return returned

    _print_deposit(run(settings, work), settings, json_output)


@vendors_app.command(name="statement")
def statement_command(
    name: Vendor,
    first: Annotated[
        str | None, typer.Option("--from", help="First day, YYYY-MM-DD; default: the first of the last day's month.")
    ] = None,
    last: Annotated[str | None, typer.Option("--to", help="Last day, YYYY-MM-DD; default: today.")] = None,
    form: Annotated[StatementForm, typer.Option("--format", help="How to print it.")] = StatementForm.TEXT,
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """Opening balance, every sale, reversal and deposit with the balance it left, closing balance."""
    settings = settings_of(data)
    to_day = read_day(last, "to") if last else datetime.now(settings.zone).date()
    from_day = read_day(first, "from") if first else to_day.replace(day=1)
    if json_output or form is StatementForm.JSON:
        console.print_json(_statement_json(settings, name, from_day, to_day))
    elif form is StatementForm.CSV:
        _write_csv(settings, name, from_day, to_day)
    else:
        _print_statement(_statement_json(settings, name, from_day, to_day), settings)


@vendors_app.command(name="day")
def day_command(
    name: Vendor,
    day: Annotated[str | None, typer.Option(help="Local day, YYYY-MM-DD; default: today.")] = None,
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """A vendor's end of day: float at both ends, deposits, sales and reversals by terminal and tender."""
    from billing.calendar import to_ms
    from db.floats import find_float
    from prepaid.processes import calendar_of
    from vending.edges.float_answers import day_to_api
    from vending.edges.float_desk import end_of_day

    settings = settings_of(data)
    now = datetime.now(settings.zone)
    asked = read_day(day) if day else now.date()

    async def work(conn: AsyncConnection) -> dict[str, object]:
        owner = await find_float(conn, name)
        found = await end_of_day(conn, owner, asked, calendar=calendar_of(settings), now_ms=to_ms(now))
        return day_to_api(owner.vendor, found)

    told = run(settings, work)
    if json_output:
        console.print_json(told)
        return
    line(f"{told['vendor']}, {told['day']}{'' if told['final'] else ', so far'}")
    for each in ("opening", "deposits", "coupons"):
        line(f"  {each:<24} {told[each]:>14}")
    # The answer's own parts, as `totals_to_api` made them.
    _print_totals(told["totals"])  # type: ignore[arg-type]
    line(f"  {'closing':<24} {told['closing']:>14}")


@vendors_app.command(name="held")
def held_command(
    days: Annotated[int, typer.Option(min=1, max=3_660, help="Taken back within so many days.")] = 30,
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """Sales that are held for a confirmation, and those taken back since none came."""
    from db.vend_states import never_confirmed_vends, read_open_vends

    settings = settings_of(data)
    since = datetime.now(settings.zone) - timedelta(days=days)

    async def work(conn: AsyncConnection) -> tuple[list[OpenVend], list[NeverConfirmed]]:
        waiting = await read_open_vends(conn, after=0, most=_HELD_SHOWN)
        taken_back = await never_confirmed_vends(conn, since=since, most=_HELD_SHOWN)
        return [vend for vend in waiting if vend.state == "held"], taken_back

    held, taken_back = run(settings, work)
    if json_output:
        console.print_json({
            "held": [_held_to_json(vend) for vend in held],
            "never_confirmed": [
                _held_to_json(vend) | {"taken_back_at": vend.taken_back_at.isoformat()} for vend in taken_back
            ],
        })  # fmt: skip
        return
    for vend in held:
        line(f"{_held_line(vend, settings)}, held")
    for each in taken_back:
        line(f"{_held_line(each, settings)}, never confirmed, taken back {local(each.taken_back_at, settings)}")


def _held_to_json(vend: OpenVend | NeverConfirmed) -> dict[str, object]:
    return {
        "message_id": vend.message_id,
        "receipt_number": str(vend.id),
        "vendor": vend.vendor,
        "terminal": vend.terminal,
        "amount_minor": vend.amount_minor,
        "sold_at": vend.created_at.isoformat(),
    }


def _held_line(vend: OpenVend | NeverConfirmed, settings: Settings) -> str:
    amount = console.rupees(vend.amount_minor)
    return f"{vend.message_id} {vend.vendor} {vend.terminal or ''} {amount}, sold {local(vend.created_at, settings)}"


def _print_totals(totals: Mapping[str, Any]) -> None:
    for kind in ("sales", "reversals"):
        for each in totals[kind]:
            line(f"  {kind} {each['tender']}, {each['count']:<6} {each['amount']:>14}")
    line(f"  {'sales less reversals':<24} {totals['net']:>14}")


def _statement_json(settings: Settings, name: str, first: date, last: date) -> dict[str, object]:
    """Return a whole statement, its pages put together."""
    from db.floats import find_float
    from prepaid.processes import calendar_of
    from vending.edges.float_answers import float_statement_to_api
    from vending.edges.float_desk import statement

    calendar = calendar_of(settings)

    async def work(conn: AsyncConnection) -> dict[str, object]:
        owner = await find_float(conn, name)
        pages = [await statement(conn, owner, first, last, after=None, calendar=calendar)]
        while pages[-1].next_after is not None:
            pages.append(await statement(conn, owner, first, last, after=pages[-1].next_after, calendar=calendar))
        entries = [entry for page in pages for entry in page.entries]
        whole = replace(pages[0], entries=entries, closing_minor=pages[-1].closing_minor, next_after=None)
        return float_statement_to_api(whole)

    return run(settings, work)


def _write_csv(settings: Settings, name: str, first: date, last: date) -> None:
    from db.floats import find_float
    from prepaid.processes import calendar_of
    from vending.edges.float_desk import statement_csv

    async def work(conn: AsyncConnection) -> None:
        owner = await find_float(conn, name)
        calendar = calendar_of(settings)
        async for page in await statement_csv(lambda: nullcontext(conn), owner, first, last, calendar=calendar):
            sys.stdout.write(page)

    run(settings, work)


def _print_statement(told: Mapping[str, Any], settings: Settings) -> None:
    line(f"{told['vendor']}, {told['from']} to {told['to']}")
    line(f"{'opening':<84} {told['opening']:>14}")
    for each in told["entries"]:
        at = local(each["booked_at"], settings)
        about = f"{each['reference'][:28]:<28} {each['terminal'] or '':<10.10}"
        line(f"{at} {each['kind']:<14} {about} {each['amount']:>14} {each['balance']:>14}")
    line(f"{'closing':<84} {told['closing']:>14}")


def _set_active(name: str, active: bool, by: str, reason: str, data: Path | None, json_output: bool) -> None:
    from db.floats import find_float
    from db.vendors import set_active

    who, why = read_name(by), read_words("reason", reason)

    async def work(conn: AsyncConnection) -> FloatState:
        async with conn.transaction():
            found = await find_float(conn, name)
            await set_active(conn, found.vendor_id, active=active, by=who, reason=why)
            return await find_float(conn, name)

    _print_float(run(settings_of(data), work), json_output)


async def _register(conn: AsyncConnection, name: str, limit_minor: int | None) -> int:
    from db.registry import add_vendor
    from db.vendors import set_limit

    vendor_id = await add_vendor(conn, name)
    if limit_minor is not None:
        await set_limit(conn, vendor_id, limit_minor, by=_REGISTRATION, reason=_AS_REGISTERED)
    return vendor_id


def _read_vendors(file: Path) -> list[tuple[str, int | None]]:
    """Read names and limits. Raises: ImportRefused with the places of all errors."""
    errors = Errors(file)
    lines = read_lines(file, ("name",), ("credit_limit",), errors)
    refuse_repeated(lines, ("name",), errors)
    wanted: list[tuple[str, int | None]] = []
    for number, texts in lines:
        fields = Fields(number, texts, errors)
        name = fields.require("name", text_field, "")
        limit_minor = fields.read("credit_limit", amount_field, 0) if fields.has("credit_limit") else None
        wanted.append((name, limit_minor))
    errors.refuse_any()
    return wanted


def _print_float(found: FloatState, json_output: bool) -> None:
    if json_output:
        console.print_json(_float_to_json(found))
    else:
        line(_float_line(found))


def _float_to_json(found: FloatState) -> dict[str, object]:
    from vending.edges.float_answers import float_to_api

    return float_to_api(found)


def _float_line(found: FloatState) -> str:
    stopped = "" if found.active else ", STOPPED"
    return (
        f"{found.vendor:<32} float {format_minor(found.balance_minor):>14}, {_limit_text(found.limit_minor)}{stopped}"
    )


def _limit_text(limit_minor: int | None) -> str:
    return "no limit" if limit_minor is None else f"credit limit {format_minor(limit_minor)}"


def _print_deposit(found: Deposit, settings: Settings, json_output: bool) -> None:
    if json_output:
        from vending.edges.float_answers import deposit_to_api

        console.print_json(deposit_to_api(found))
        return
    line(f"receipt {found.number}: {found.vendor} paid in {console.rupees(found.amount_minor)} by {found.channel}")
    line(f"  reference {found.reference}, {local(found.at, settings)}, taken by {found.by}")
    line(f"  float after it {console.rupees(found.balance_minor)}")
    if found.returned_at is not None:
        line(f"  TAKEN BACK {local(found.returned_at, settings)} by {found.returned_by}: {found.return_reason}")
