"""`prepaid corrections`: ask for a correction, look at its dry run, approve it, apply it, take it back.

Stage: the command line's outermost layer, as in `__main__`. A proposal and its approval need two people; `show` prints
line by line what would change, and how many supplies would be cut, before anything is posted.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from rich.table import Table

from billing.correction import (
    Assessment,
    Connection,
    DayAverage,
    Fault,
    Overhaul,
    PercentError,
    SameDaysLastYear,
    StatedEnergy,
)
from billing.money import format_minor
from prepaid import console
from prepaid.arguments import By, DataDir, Json, settings_of
from prepaid.settings import PrepaidError

if TYPE_CHECKING:
    from psycopg import AsyncConnection

    from db.corrections import AccountRow, Correction, Progress, Summary
    from db.orders import PostingRules

T = TypeVar("T")

corrections_app = typer.Typer(
    help="Corrections: overhaul, edited readings, other terms; dry run, second person, posting.", no_args_is_help=True
)

# What fits a few screens; `--after` goes on.
ROWS_SHOWN = 50
CORRECTIONS_SHOWN = 50
# 100 accounts in 0.3 s, then a breath for vends and batches.
PAUSE_S = 0.05

Id = Annotated[int, typer.Argument(help="The correction's number.")]
Reason = Annotated[str, typer.Option("--reason", help="Why: kept with every journal.")]
Accounts = Annotated[list[str] | None, typer.Option("--account", help="An account's number; more than once for more.")]


class ArgumentsRefused(PrepaidError):
    """Options of a correction that do not fit."""

    code = "arguments_refused"


@corrections_app.command(name="propose-terms")
def propose_terms_command(
    from_day: Annotated[str, typer.Option("--from", help="First local day, YYYY-MM-DD; may be closed already.")],
    reason: Reason,
    by: By,
    until_day: Annotated[str | None, typer.Option("--until", help="Last local day; then what held before.")] = None,
    account: Accounts = None,
    category: Annotated[str | None, typer.Option(help="Only where an account is in this category.")] = None,
    tariff: Annotated[str | None, typer.Option(help="Only where an account has this tariff.")] = None,
    area: Annotated[str | None, typer.Option(help="Only accounts of this area.")] = None,
    new_tariff: Annotated[str | None, typer.Option(help="The tariff that is to hold.")] = None,
    new_category: Annotated[str | None, typer.Option(help="The category that is to hold.")] = None,
    new_load_w: Annotated[int | None, typer.Option(help="The sanctioned load that is to hold, in W.")] = None,
    new_area_type: Annotated[str | None, typer.Option(help="The type of area that is to hold.")] = None,
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """Other terms from a day on: a wrong category, a back-dated tariff order; for accounts or by a filter."""
    from db.correction_scope import TermsScope
    from db.corrections import propose_terms

    scope = TermsScope(
        from_day=_day("--from", from_day),
        until_day=None if until_day is None else _day("--until", until_day),
        numbers=tuple(account) if account else None,
        category=category,
        tariff_id=tariff,
        area=area,
        new_tariff_id=new_tariff,
        new_category=new_category,
        new_load_w=new_load_w,
        new_area_type=new_area_type,
    )
    _proposed(data, lambda conn: propose_terms(conn, scope, reason=reason, by=by), json_output)


@corrections_app.command(name="propose-edit")
def propose_edit_command(
    edit: Annotated[
        list[str], typer.Option("--edit", help="SERIAL,INSTANT,WH: the register to put there; `void` for none.")
    ],
    reason: Reason,
    by: By,
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """Other registers in the place of stored readings, which themselves are never changed."""
    from db.corrections import propose_edits

    edits = [_edit(text) for text in edit]
    _proposed(data, lambda conn: propose_edits(conn, edits, reason=reason, by=by), json_output)


@corrections_app.command(name="propose-overhaul")
def propose_overhaul_command(
    account: Annotated[list[str], typer.Option("--account", help="An account's number; more than once for more.")],
    fault: Annotated[Fault, typer.Option(help="What was wrong with the meter.")],
    first: Annotated[str, typer.Option("--from", help="First local day of the span.")],
    last: Annotated[str, typer.Option("--until", help="Last local day of the span; its bill part must be closed.")],
    reason: Reason,
    by: By,
    connection: Annotated[Connection, typer.Option(help="Net meters and seasonal industry.")] = Connection.ORDINARY,
    began: Annotated[str | None, typer.Option(help="When the meter's data shows that it began.")] = None,
    percent_error: Annotated[
        str | None, typer.Option(help="Error of the tested meter in percent, e.g. -4.25 if it counts too little.")
    ] = None,
    same_days_last_year: Annotated[bool, typer.Option(help="As on the same days of last year.")] = False,
    average: Annotated[str | None, typer.Option(help="FIRST..LAST: the average per day of those days.")] = None,
    month_wh: Annotated[int | None, typer.Option(help="Stated energy a month, in Wh.")] = None,
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """Overhaul of an account for an inaccurate, defective, burnt or stolen meter (R-20, R-21)."""
    from db.corrections import propose_overhaul

    overhaul = Overhaul(
        fault=fault,
        connection=connection,
        first=_day("--from", first),
        last=_day("--until", last),
        began_on=None if began is None else _day("--began", began),
        assessment=_assessment(percent_error, same_days_last_year, average, month_wh),
    )
    _proposed(data, lambda conn: propose_overhaul(conn, account, overhaul, reason=reason, by=by), json_output)


@corrections_app.command(name="reverse")
def reverse_command(correction_id: Id, reason: Reason, by: By, data: DataDir = None, json_output: Json = False) -> None:
    """Ask for everything that a correction did to be taken back: a new correction, with its own dry run."""
    from db.corrections import propose_reversal

    _proposed(data, lambda conn: propose_reversal(conn, correction_id, reason=reason, by=by), json_output)


@corrections_app.command(name="compute")
def compute_command(correction_id: Id, data: DataDir = None, json_output: Json = False) -> None:
    """The dry run: what each account would pay or get, and what would cross; writes nothing of an account."""
    from db.corrections import compute

    async def work(conn: AsyncConnection, rules: PostingRules, progress: Progress) -> Summary:
        return await compute(conn, correction_id, rules=rules, progress=progress)

    _print_summary(correction_id, _with_progress(data, "accounts looked at", work), json_output)


@corrections_app.command(name="approve")
def approve_command(
    correction_id: Id,
    by: By,
    cut_offs: Annotated[int, typer.Option(help="How many supplies the dry run says will be cut.")],
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """Approve a dry run as a second person, stating how many supplies it will cut."""
    from db.corrections import approve

    _run(data, lambda conn, _: approve(conn, correction_id, by=by, cut_offs=cut_offs))
    if json_output:
        console.print_json({"correction": correction_id, "approved_by": by, "cut_offs": cut_offs})
    else:
        console.out.print(f"correction {correction_id} approved by {by}, with {cut_offs} cut-offs", markup=False)


@corrections_app.command(name="apply")
def apply_command(
    correction_id: Id,
    pause_s: Annotated[float, typer.Option(help="Seconds between ranges of accounts.")] = PAUSE_S,
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """Post an approved correction, each account once; goes on where it stood, stops before an unseen cut-off."""
    from db.corrections import apply

    async def work(conn: AsyncConnection, rules: PostingRules, progress: Progress) -> Summary:
        return await apply(conn, correction_id, rules=rules, pause_s=pause_s, progress=progress)

    _print_summary(correction_id, _with_progress(data, "accounts corrected", work), json_output)


@corrections_app.command(name="cancel")
def cancel_command(correction_id: Id, by: By, data: DataDir = None, json_output: Json = False) -> None:
    """Give a correction up; accounts it was applied to stay so until it is reversed."""
    from db.corrections import cancel

    _run(data, lambda conn, _: cancel(conn, correction_id, by=by))
    if json_output:
        console.print_json({"correction": correction_id, "state": "cancelled"})
    else:
        console.out.print(f"correction {correction_id} cancelled by {by}", markup=False)


@corrections_app.command(name="show")
def show_command(
    correction_id: Id,
    account: Annotated[str | None, typer.Option(help="Only this account.")] = None,
    crossing: Annotated[bool, typer.Option("--crossing", help="Only accounts that cross a level.")] = False,
    after: Annotated[int, typer.Option(help="Go on after this account id.")] = 0,
    most: Annotated[int, typer.Option(help="How many accounts at the most.")] = ROWS_SHOWN,
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """What would change, or has changed: line by line for each account and bill part, and what crosses."""
    from db.corrections import account_rows, read_correction, summary_of

    async def work(conn: AsyncConnection, _: PostingRules) -> tuple[Correction, Summary, list[AccountRow]]:
        correction = await read_correction(conn, correction_id)
        found = await account_rows(conn, correction_id, most=most, after=after, number=account, crossing=crossing)
        return correction, await summary_of(conn, correction_id), found

    correction, summary, found = _run(data, work)
    if json_output:
        head = {name: _plain(value) for name, value in asdict(correction).items()}
        console.print_json({**head, "summary": asdict(summary), "accounts": [_row_to_json(row) for row in found]})
        return
    console.out.print(
        f"correction {correction.id}, {correction.kind}, {correction.state}: {correction.reason}"
        f" (asked by {correction.asked_by}, approved by {correction.approved_by or 'nobody yet'})",
        markup=False,
    )
    console.out.print(_table(found))
    _print_counts(summary, correction.cut_offs)


@corrections_app.command(name="list")
def list_command(
    most: Annotated[int, typer.Option(help="How many at the most.")] = CORRECTIONS_SHOWN,
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """The latest corrections."""
    from db.corrections import list_corrections

    found = _run(data, lambda conn, _: list_corrections(conn, most=most))
    if json_output:
        rows = [{name: _plain(value) for name, value in row.items()} for row in found]
        console.print_json({"corrections": rows})
        return
    for row in found:
        console.out.print(
            f"{row['id']:>6}  {row['kind']:<9} {row['state']:<10} {row['applied']:>9,} of"
            f" {row['applied'] + row['computed']:,}  {format_minor(row['difference_minor']):>14}  {row['reason']}",
            markup=False,
        )


def _proposed(data: Path | None, propose: Callable[[AsyncConnection], Awaitable[int]], json_output: bool) -> None:
    correction_id = _run(data, lambda conn, _: propose(conn))
    if json_output:
        console.print_json({"correction": correction_id, "state": "proposed"})
    else:
        console.out.print(f"correction {correction_id} proposed; next: corrections compute {correction_id}")


def _run(data: Path | None, work: Callable[[AsyncConnection, PostingRules], Awaitable[T]]) -> T:
    from prepaid.administration import on_database
    from prepaid.processes import rules_of

    settings = settings_of(data)
    rules = rules_of(settings)
    return on_database(settings, lambda conn: work(conn, rules))


def _with_progress(
    data: Path | None, title: str, work: Callable[[AsyncConnection, PostingRules, Progress], Awaitable[Summary]]
) -> Summary:
    with console.progress_bars() as bars:

        def progress(done: int, most: int) -> None:
            bars(title, done, most)

        return _run(data, lambda conn, rules: work(conn, rules, progress))


def _print_summary(correction_id: int, summary: Summary, json_output: bool) -> None:
    if json_output:
        console.print_json({"correction": correction_id, **asdict(summary)})
    else:
        _print_counts(summary, None)


def _print_counts(summary: Summary, cut_offs: int | None) -> None:
    console.out.print(
        f"accounts: {summary.computed:,} to correct, {summary.applied:,} corrected, {summary.refused:,} refused"
    )
    console.out.print(
        f"money: {summary.debited:,} pay {format_minor(-summary.debited_minor)},"
        f" {summary.credited:,} get {format_minor(summary.credited_minor)}"
    )
    done = "" if cut_offs is None else f" ({cut_offs:,} cut so far)"
    console.out.print(
        f"still to cross: {summary.to_cut:,} cut off{done}, {summary.to_restore:,} restored, {summary.to_warn:,} warned"
    )


def _table(found: list[AccountRow]) -> Table:
    table = Table("account", "bill part", "line", "change", "balance before", "after", "crosses")
    for row in found:
        before, after = (
            None if minor is None else format_minor(minor) for minor in (row.before_minor, row.after_minor)
        )
        table.add_row(row.number, "", row.detail or "", _money(row.difference_minor), before, after, row.crosses)
        for first, part in row.parts.items():
            for name, energy_wh in (("metered", part.energy_wh), ("assessed", part.assessed_wh)):
                if energy_wh:
                    table.add_row("", str(first), name, f"{energy_wh:+,} Wh")
            for name, amount_minor in part.lines.items():
                # A line of the bill that grows takes from the balance.
                table.add_row("", str(first), name, _money(-amount_minor))
    return table


def _money(amount_minor: int | None) -> str:
    if amount_minor is None:
        return ""
    return ("+" if amount_minor > 0 else "") + format_minor(amount_minor)


def _row_to_json(row: AccountRow) -> dict[str, object]:
    parts = {str(first): asdict(part) for first, part in row.parts.items()}
    return {**asdict(row), "parts": parts}


def _plain(value: object) -> object:
    return value.isoformat() if isinstance(value, date | datetime) else _plain_mapping(value)


def _plain_mapping(value: object) -> object:
    return dict(value) if isinstance(value, Mapping) else value


def _day(option: str, text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise ArgumentsRefused(f"{option}: expected YYYY-MM-DD, got {text!r}") from None


def _edit(text: str) -> tuple[str, datetime, int | None]:
    match text.split(","):
        case [serial, at_text, register]:
            try:
                at = datetime.fromisoformat(at_text)
            except ValueError:
                at = None
            known = register == "void" or (register.isascii() and register.isdecimal())
            if at is not None and at.tzinfo is not None and known:
                return serial, at, None if register == "void" else int(register)
    raise ArgumentsRefused(
        f"--edit: expected SERIAL,INSTANT with its offset,WH or void, e.g. M1,2026-04-30T18:30:00Z,1200, got {text!r}"
    )


def _assessment(
    percent_error: str | None, same_days_last_year: bool, average: str | None, month_wh: int | None
) -> Assessment:
    chosen: list[Assessment] = []
    if percent_error is not None:
        chosen.append(PercentError(basis_points=_basis_points(percent_error)))
    if same_days_last_year:
        chosen.append(SameDaysLastYear())
    if average is not None:
        first, _, last = average.partition("..")
        chosen.append(DayAverage(first=_day("--average", first), last=_day("--average", last)))
    if month_wh is not None:
        chosen.append(StatedEnergy(month_wh=month_wh))
    if len(chosen) != 1:
        raise ArgumentsRefused(
            "expected one of --percent-error, --same-days-last-year, --average and --month-wh,"
            f" got {len(chosen)} of them"
        )
    return chosen[0]


def _basis_points(text: str) -> int:
    """Read a percentage with up to two decimals, without a float."""
    sign = -1 if text.startswith("-") else 1
    whole, _, part = text.lstrip("+-").partition(".")
    digits = whole + part.ljust(2, "0")
    if not (digits.isascii() and digits.isdecimal() and whole and len(part) <= 2):
        raise ArgumentsRefused(f"--percent-error: expected a percentage such as -4.25, got {text!r}")
    return sign * int(digits)
