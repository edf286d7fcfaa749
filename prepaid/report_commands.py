"""`prepaid report`: lists and sums over the whole installation, or some of its shards.

Stage: the command line's outermost layer, as in `__main__`. Reads in ranges (`db.balances`), prints at the end; a CSV
file is written range by range and takes its name when it is whole. Progress goes to standard error.
"""

from __future__ import annotations

import csv
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from billing.calendar import from_ms
from billing.money import format_minor, parse_amount
from db.balances import Asked, BalanceRow, BalanceTotals, read_balances
from prepaid import console
from prepaid.arguments import DataDir, Json, settings_of
from prepaid.settings import PrepaidError, Settings
from protocols.topics import SHARDS

if TYPE_CHECKING:
    from psycopg import AsyncConnection

report_app = typer.Typer(help="Reports over the whole installation.", no_args_is_help=True)

# What a screen or one JSON object holds; a CSV file has no limit of its own.
ROWS_SHOWN = 1_000
ROWS_SHOWN_MAX = 100_000
# A range of 5,000 accounts keeps one core busy for some tenths of a second; the pause leaves others a turn.
PAUSE_S = 0.02

_SHARDS = re.compile(r"(\d{1,2})(?:-(\d{1,2}))?", re.ASCII)
# Debts by the place of their age (`db.balances.age_place`), whole days since the alarm.
_AGES: dict[int | None, str] = {0: "0-7", 1: "8-30", 2: "31-90", 3: "more than 90", None: "no alarm"}
CSV_COLUMNS = (
    "number",
    "category",
    "mode",
    "currency",
    "balance",
    "days_left",
    "energy_wh_per_day",
    "charge_per_day",
    "supply_desired",
    "supply_reported",
    "latest_reading",
    "phone_verified",
)


class ReportRefused(PrepaidError):
    """A report that cannot be made as asked; the message is one line."""

    code: ClassVar[str] = "report_refused"


@report_app.command(name="balances")
def balances_command(
    below: Annotated[str | None, typer.Option(help="List balances below this amount, e.g. 100 or -50.00.")] = None,
    days_left: Annotated[int | None, typer.Option(help="List accounts with fewer days of credit left.")] = None,
    shards: Annotated[str, typer.Option(help="Shards, e.g. 0-15 or 3,7,16-19.")] = f"0-{SHARDS - 1}",
    category: Annotated[str | None, typer.Option(help="Only accounts of this category, e.g. DS.")] = None,
    limit: Annotated[int | None, typer.Option(help=f"Rows at most; default: {ROWS_SHOWN}, in a file all.")] = None,
    file: Annotated[Path | None, typer.Option("--csv", help="Write the rows to this file instead.")] = None,
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """Running balances, days of credit left, and debts by age, of all accounts or those below an amount."""
    asked = Asked(
        shards=parse_shards(shards),
        category=category,
        below_minor=None if below is None else _amount(below),
        days_left=None if days_left is None else _whole("days-left", days_left, 1, 100_000),
        rows_most=_rows_most(limit, file),
    )
    settings = settings_of(data)
    rows: list[BalanceRow] = []
    with ExitStack() as open_files:
        keep = rows.extend if file is None else open_files.enter_context(_writing_csv(file, settings))
        totals = run_balances(settings, asked, keep)
    if json_output:
        answer = _totals_to_api(totals)
        if file is None:
            answer["rows"] = [_row_to_api(row, settings) for row in rows]
        console.print_json(answer)
        return
    if file is None:
        _print_rows(rows, settings)
    _print_totals(totals)


def run_balances(settings: Settings, asked: Asked, keep: Callable[[Sequence[BalanceRow]], None]) -> BalanceTotals:
    """Walk over all accounts asked for; hand on the rows of each range and return the sums."""
    from prepaid.administration import on_database
    from prepaid.processes import calendar_of

    async def work(conn: AsyncConnection) -> BalanceTotals:
        totals = BalanceTotals()
        with console.progress_bars() as bars:

            def count(done: int, of: int) -> None:
                bars("account ids read", done, of)

            now_ms = time.time_ns() // 1_000_000
            async for found in read_balances(conn, calendar_of(settings), asked, pause_s=PAUSE_S, progress=count):
                totals.add(found, now_ms=now_ms)
                keep(found.rows)
        return totals

    return on_database(settings, work)


def parse_shards(text: str) -> tuple[int, ...]:
    """Read shard numbers and stretches of them, with commas between.

    Raises: ReportRefused.
    """
    found: set[int] = set()
    for piece in text.split(","):
        match = _SHARDS.fullmatch(piece.strip())
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not first <= last < SHARDS:
            raise ReportRefused(f"shards: expected 0 to {SHARDS - 1} such as 0-7,16, got {text[:40]!r}")
        found |= set(range(first, last + 1))
    return tuple(sorted(found))


@contextmanager
def _writing_csv(file: Path, settings: Settings) -> Iterator[Callable[[Sequence[BalanceRow]], None]]:
    """Write rows beside a file; it takes their place when the context ends well, and is left alone otherwise."""
    if file.is_dir():
        raise ReportRefused(f"csv: expected the name of a file, got the folder {str(file)!r}")
    part = file.with_name(f"{file.name}.part")
    with part.open("w", encoding="utf-8", newline="") as opened:
        try:
            writer = csv.writer(opened)
            writer.writerow(CSV_COLUMNS)

            def keep(rows: Sequence[BalanceRow]) -> None:
                writer.writerows(_texts(row, settings) for row in rows)

            yield keep
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    os.replace(part, file)


def _texts(row: BalanceRow, settings: Settings) -> list[str]:
    """Return a row as the file shows it: amounts with two decimals, nothing where nothing is known."""
    charge_minor = row.use.day_charge_minor
    return [
        row.number,
        row.category,
        row.mode.value,
        row.currency,
        format_minor(row.balance_minor),
        "" if row.days_left is None else str(row.days_left),
        "" if row.use.day_energy_wh is None else str(row.use.day_energy_wh),
        "" if charge_minor is None else format_minor(charge_minor),
        row.desired.value,
        row.reported.value if row.reported else "",
        _instant(row.last_reading_ms, settings) or "",
        "yes" if row.phone_verified else "no",
    ]


def _row_to_api(row: BalanceRow, settings: Settings) -> dict[str, object]:
    return {
        "number": row.number,
        "category": row.category,
        "mode": row.mode.value,
        "currency": row.currency,
        "balance_minor": row.balance_minor,
        "days_left": row.days_left,
        "energy_wh_per_day": row.use.day_energy_wh,
        "charge_minor_per_day": row.use.day_charge_minor,
        "supply_desired": row.desired.value,
        "supply_reported": row.reported.value if row.reported else None,
        "latest_reading": _instant(row.last_reading_ms, settings),
        "phone_verified": row.phone_verified,
    }


def _totals_to_api(totals: BalanceTotals) -> dict[str, Any]:
    # Counts and, by currency, debts: of several shapes.
    return {
        "accounts": totals.accounts,
        "without_meter": totals.without_meter,
        "matching": totals.matching,
        "listed": totals.listed,
        "debts": {
            currency: {
                "accounts": sum(each.accounts for each in ages.values()),
                "balance_minor": sum(each.balance_minor for each in ages.values()),
                "days_below": {name: asdict(ages[place]) for place, name in _AGES.items() if place in ages},
            }
            for currency, ages in sorted(totals.debts.items())
        },
    }


def _print_rows(rows: Sequence[BalanceRow], settings: Settings) -> None:
    if not rows:
        return
    table = [CSV_COLUMNS, *(_texts(row, settings) for row in rows)]
    widths = [max(len(texts[column]) for texts in table) for column in range(len(CSV_COLUMNS))]
    for texts in table:
        # Plainly, since a thousand rows would take a second with markup.
        line = "  ".join(text.ljust(width) for text, width in zip(texts, widths, strict=True))
        sys.stdout.write(line.rstrip() + "\n")
    sys.stdout.write("\n")


def _print_totals(totals: BalanceTotals) -> None:
    lines = [f"{totals.accounts} accounts, {totals.matching} as asked for, {totals.listed} of them listed"]
    if totals.without_meter:
        lines.append(f"{totals.without_meter} accounts without a billing meter have no running balance")
    for currency, ages in sorted(totals.debts.items()):
        owing = sum(each.accounts for each in ages.values())
        debt_minor = sum(each.balance_minor for each in ages.values())
        lines.append(
            f"{owing} accounts below zero, {currency} {format_minor(debt_minor)} in all; days since the alarm:"
        )
        lines += [
            f"  {name:<14} {ages[place].accounts:>9} accounts {format_minor(ages[place].balance_minor):>16}"
            for place, name in _AGES.items()
            if place in ages
        ]
    for line in lines:
        console.out.print(line, markup=False)


def _instant(at_ms: int | None, settings: Settings) -> str | None:
    if at_ms is None:
        return None
    return from_ms(at_ms).astimezone(settings.zone).isoformat(timespec="seconds")


def _amount(text: str) -> int:
    """Read an amount, which may be below zero."""
    return -parse_amount(text[1:]) if text.startswith("-") else parse_amount(text)


def _rows_most(limit: int | None, file: Path | None) -> int | None:
    if limit is None:
        return None if file else ROWS_SHOWN
    return _whole("limit", limit, 1, sys.maxsize if file else ROWS_SHOWN_MAX)


def _whole(name: str, number: int, least: int, most: int) -> int:
    if not least <= number <= most:
        raise ReportRefused(f"{name}: expected {least} to {most}, got {number}")
    return number
