"""`prepaid meters swap`: another meter in the place of an account's, with both registers at one instant.

Stage: the command line's outermost layer, as in `__main__`.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from billing.money import format_minor
from prepaid import console
from prepaid.arguments import (
    By,
    CommandRefused,
    DataDir,
    Json,
    line,
    read_instant,
    read_name,
    read_words,
    run,
    settings_of,
)

if TYPE_CHECKING:
    from psycopg import AsyncConnection

    from db.swaps import Swapped

UNREAD = "unread"


def swap_command(
    account: Annotated[str, typer.Argument(help="The account's number.")],
    new_serial: Annotated[str, typer.Argument(help="Serial of the registered meter that stands there from now on.")],
    at: Annotated[str, typer.Option(help="When: an instant with its zone, e.g. 2026-05-20T14:30:00+05:30.")],
    closing: Annotated[str, typer.Option(help="Register of the old meter in Wh; `unread` if nobody could read it.")],
    opening: Annotated[int, typer.Option(help="Register of the new meter in Wh.")],
    reason: Annotated[str, typer.Option("--reason", help="Why; kept with the swap.")],
    by: By,
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """Swap a meter: days before are closed from the old one's readings, from then on the new one counts."""
    from db.orders import wall_ms
    from db.swaps import Swap, swap_meter
    from prepaid.administration import known_account
    from prepaid.processes import rules_of

    settings = settings_of(data)
    rules = rules_of(settings)
    words, name = read_words("reason", reason), read_name(by)
    instant, closing_wh = read_instant("--at", at, settings), read_closing(closing)
    assert instant is not None, "an instant that is given is read or refused"

    async def work(conn: AsyncConnection) -> Swapped:
        async with conn.transaction():
            swap = Swap(
                account_id=await known_account(conn, account),
                new_serial=new_serial,
                at=instant,
                closing_wh=closing_wh,
                opening_wh=opening,
                reason=words,
                by=name,
            )
            return await swap_meter(conn, swap, rules=rules, now_ms=wall_ms())

    done = run(settings, work)
    if json_output:
        console.print_json({**asdict(done), "at": done.at.isoformat()})
        return
    line(f"swap {done.id}: {done.new_serial} stands in the place of {done.old_serial} at account {done.account}")
    line(f"energy to date {done.energy_wh:,} Wh, {done.since_reading_wh:,} Wh of it after the last reading")
    line(f"balance {format_minor(done.balance_minor)}")


def read_closing(text: str) -> int | None:
    """Read the register of a meter that is taken away; None where nobody could.

    Raises: CommandRefused.
    """
    if text == UNREAD:
        return None
    if not (text.isascii() and text.isdigit()) or len(text) > 15:
        raise CommandRefused(f"--closing: expected a register in Wh or `{UNREAD}`, got {text[:40]!r}")
    return int(text)
