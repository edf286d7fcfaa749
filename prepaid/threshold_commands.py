"""`prepaid accounts thresholds`: when the consumer of an account is warned, and other wishes in its place.

Stage: the command line's outermost layer, as in `__main__`. The same as the consumer's own interface.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from billing.forecast import PERCENT_MAX, WARN_DAYS_MAX, Threshold, ThresholdKind, make_threshold, make_thresholds
from billing.money import format_minor, parse_amount
from prepaid import console
from prepaid.settings import PrepaidError, Settings, load_settings

if TYPE_CHECKING:
    from psycopg import AsyncConnection

    from db.consumer_facts import ConsumerWishes, Wish


class ThresholdsRefused(PrepaidError):
    """Wishes that contradict each other; the message is one line."""

    code: ClassVar[str] = "thresholds_refused"


def thresholds_command(
    number: Annotated[str, typer.Argument(help="The account's number.")],
    amount: Annotated[list[str] | None, typer.Option(help="Warn at this balance; again for more.")] = None,
    days: Annotated[
        list[int] | None, typer.Option(help=f"Warn so many days before the end of credit, 1 to {WARN_DAYS_MAX}.")
    ] = None,
    percent: Annotated[
        list[int] | None, typer.Option(help=f"Warn at this share of the last recharge, 1 to {PERCENT_MAX}.")
    ] = None,
    none: Annotated[bool, typer.Option("--none", help="End all warnings.")] = False,
    data: Annotated[
        Path | None, typer.Option("--data", help="Folder of the embedded parts (PREPAID_DATA_DIR).")
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")] = False,
) -> None:
    """Show when the consumer is warned; with wishes, put them in the place of all before."""
    # As in `__main__`, what a command needs is loaded when it runs.
    from vending.edges.consumer_answers import thresholds_to_api

    wanted = make_thresholds(
        [
            *(make_threshold(ThresholdKind.AMOUNT, parse_amount(each)) for each in amount or ()),
            *(make_threshold(ThresholdKind.DAYS, each) for each in days or ()),
            *(make_threshold(ThresholdKind.PERCENT, each) for each in percent or ()),
        ]
    )
    if wanted and none:
        raise ThresholdsRefused(f"thresholds: expected either wishes or --none, got {len(wanted)} with it")
    settings = load_settings()
    if data is not None:
        settings = settings.model_copy(update={"data_dir": data})
    console.configure_logs(settings.log_level)
    found = run_thresholds(settings, number, wanted if wanted or none else None)
    if json_output:
        console.print_json(thresholds_to_api(found))
        return
    console.out.print(f"balance {console.rupees(found.balance_minor)}", markup=False)
    for wish in found.wishes:
        console.out.print(_line(wish), markup=False)


def run_thresholds(settings: Settings, number: str, wanted: Sequence[Threshold] | None) -> ConsumerWishes:
    """Warn the consumer of an account by these, None for as before; return what is in force.

    Raises: UnknownAccount.
    """
    from db.consumer_facts import read_wishes
    from db.posting import lock_and_look
    from db.thresholds import set_thresholds
    from prepaid.administration import known_account, on_database
    from prepaid.processes import rules_of

    rules = rules_of(settings)

    async def work(conn: AsyncConnection) -> ConsumerWishes:
        account_id = await known_account(conn, number)
        if wanted is not None:
            async with conn.transaction():
                view = await lock_and_look(conn, account_id, rules)
                await set_thresholds(conn, view, wanted, rules=rules, now_ms=rules.clock())
        return await read_wishes(conn, account_id, rules.calendar)

    return on_database(settings, work)


def _line(wish: Wish) -> str:
    kind, value = wish.threshold.kind, wish.threshold.value
    asked = {
        ThresholdKind.AMOUNT: f"amount {format_minor(value)}",
        ThresholdKind.DAYS: f"{value} days left",
        ThresholdKind.PERCENT: f"{value} % of the last recharge",
    }[kind]
    warns_at = "not known yet" if wish.warns_at_minor is None else f"warns at {console.rupees(wish.warns_at_minor)}"
    return f"{asked}: {warns_at}{', has rung' if wish.rung else ''}"
