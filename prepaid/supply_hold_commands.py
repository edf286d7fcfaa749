"""`prepaid supply hold` and `prepaid supply exempt`: what keeps supply on whatever the credit.

Stage: the command line's outermost layer, as in `__main__`. A hold needs a reason and two people; an entry of the
exempt list needs a reason and a name.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from psycopg import AsyncConnection

from billing.calendar import from_ms
from prepaid import console
from prepaid.arguments import By, DataDir, Json, read_day, read_name, read_words, run, settings_of

if TYPE_CHECKING:
    from db.supply_holds import Exemption, Hold

T = TypeVar("T")

hold_app = typer.Typer(help="Holds that keep an account's supply on: two people.", no_args_is_help=True)
exempt_app = typer.Typer(help="The exempt list: accounts that are never cut.", no_args_is_help=True)

# What fits a few screens.
ROWS_SHOWN = 100

Number = Annotated[str, typer.Argument(help="The account's number.")]
HoldId = Annotated[int, typer.Argument(help="The hold's number.")]
Reason = Annotated[str, typer.Option("--reason", help="Why; kept with the row.")]


@hold_app.command(name="ask")
def ask_command(
    number: Number,
    reason: Reason,
    by: By,
    until: Annotated[str | None, typer.Option(help="The day the hold ends, YYYY-MM-DD; else it has no end.")] = None,
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """Ask for a hold; it keeps supply on once another person has approved it."""
    from db.supply_holds import ask_hold
    from prepaid.administration import known_account
    from prepaid.processes import calendar_of

    settings = settings_of(data)
    words, name = read_words("reason", reason), read_name(by)
    ends_at = None if until is None else from_ms(calendar_of(settings).midnight_ms(read_day(until)))

    async def work(conn: AsyncConnection) -> int:
        account_id = await known_account(conn, number)
        return await ask_hold(conn, account_id, reason=words, by=name, until=ends_at, now=datetime.now(UTC))

    hold_id = run(settings, work)
    if json_output:
        console.print_json({"hold": hold_id, "account": number, "asked_by": name})
    else:
        console.out.print(f"hold {hold_id} on account {number} waits for approval by another person", markup=False)


@hold_app.command(name="approve")
def approve_command(hold_id: HoldId, by: By, data: DataDir = None, json_output: Json = False) -> None:
    """Put a hold in force as a second person."""
    from db.supply_holds import approve_hold

    name = read_name(by)
    hold = run(settings_of(data), lambda conn: approve_hold(conn, hold_id, by=name, now=datetime.now(UTC)))
    _print_hold(hold, json_output)


@hold_app.command(name="release")
def release_command(hold_id: HoldId, by: By, data: DataDir = None, json_output: Json = False) -> None:
    """End a hold, or give it up before its approval."""
    from db.supply_holds import release_hold

    name = read_name(by)
    hold = run(settings_of(data), lambda conn: release_hold(conn, hold_id, by=name, now=datetime.now(UTC)))
    _print_hold(hold, json_output)


@hold_app.command(name="list")
def list_command(
    number: Annotated[str | None, typer.Argument(help="All holds of this account, also those released.")] = None,
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """The holds that are not released, newest first."""
    from db.supply_holds import list_holds
    from prepaid.administration import known_account

    async def work(conn: AsyncConnection) -> list[Hold]:
        account_id = None if number is None else await known_account(conn, number)
        return await list_holds(conn, account_id=account_id, most=ROWS_SHOWN)

    holds = run(settings_of(data), work)
    if json_output:
        console.print_json({"holds": [_hold_shown(hold) for hold in holds]})
    else:
        for hold in holds:
            console.out.print(_hold_line(hold), markup=False)


@exempt_app.command(name="set")
def set_command(number: Number, reason: Reason, by: By, data: DataDir = None, json_output: Json = False) -> None:
    """Put an account on the exempt list: it is not cut for lack of credit, and charged as before."""
    from db.supply_holds import set_exemption

    _change_exemption(set_exemption, number, reason, by, data, json_output, exempt=True)


@exempt_app.command(name="clear")
def clear_command(number: Number, reason: Reason, by: By, data: DataDir = None, json_output: Json = False) -> None:
    """Take an account off the exempt list."""
    from db.supply_holds import clear_exemption

    _change_exemption(clear_exemption, number, reason, by, data, json_output, exempt=False)


@exempt_app.command(name="list")
def list_exempt_command(
    after: Annotated[int, typer.Option(help="Go on after this account id.")] = 0,
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """The exempt list, with reason and who put the account there."""
    from db.supply_holds import list_exemptions

    found = run(settings_of(data), lambda conn: list_exemptions(conn, after=after, most=ROWS_SHOWN))
    if json_output:
        console.print_json({"exempt": [_exemption_shown(each) for each in found]})
        return
    for each in found:
        by = f", by {each.set_by}" if each.set_by else ""
        console.out.print(f"{each.number:<16} {each.reason}{by}", markup=False)
    if len(found) == ROWS_SHOWN:
        console.out.print(f"more: --after {found[-1].account_id}", markup=False)


def _change_exemption(
    change: Callable[..., Awaitable[None]],  # set_exemption or clear_exemption: keywords only.
    number: str,
    reason: str,
    by: str,
    data: Path | None,
    json_output: bool,
    *,
    exempt: bool,
) -> None:
    from prepaid.administration import known_account

    words, name = read_words("reason", reason), read_name(by)

    async def work(conn: AsyncConnection) -> None:
        await change(conn, await known_account(conn, number), reason=words, by=name, now=datetime.now(UTC))

    run(settings_of(data), work)
    if json_output:
        console.print_json({"account": number, "exempt": exempt, "reason": words, "by": name})
    else:
        told = "exempt" if exempt else "exempt no more"
        console.out.print(f"account {number} is {told}: {words}", markup=False)


def _print_hold(hold: Hold, json_output: bool) -> None:
    if json_output:
        console.print_json(_hold_shown(hold))
    else:
        console.out.print(_hold_line(hold), markup=False)


def _hold_shown(hold: Hold) -> dict[str, object]:
    instants = ("asked_at", "until_at", "approved_at", "released_at")
    return {
        "hold": hold.id,
        "account": hold.number,
        "state": hold.state(datetime.now(UTC)).value,
        "reason": hold.reason,
        "asked_by": hold.asked_by,
        "approved_by": hold.approved_by,
        "released_by": hold.released_by,
        **{name: at.isoformat() if (at := getattr(hold, name)) is not None else None for name in instants},
    }


def _hold_line(hold: Hold) -> str:
    people = f"asked by {hold.asked_by}"
    people += f", approved by {hold.approved_by}" if hold.approved_by else ""
    people += f", released by {hold.released_by}" if hold.released_by else ""
    ends = f", until {hold.until_at.isoformat(timespec='minutes')}" if hold.until_at else ""
    return f"{hold.id:>6} {hold.number:<16} {hold.state(datetime.now(UTC)):<9} {people}{ends}: {hold.reason}"


def _exemption_shown(each: Exemption) -> dict[str, object]:
    return {
        "account": each.number,
        "account_id": each.account_id,
        "reason": each.reason,
        "set_by": each.set_by,
        "set_at": each.set_at.isoformat() if each.set_at else None,
    }
