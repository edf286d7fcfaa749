"""`prepaid cases`: disputes of meters and bills from the complaint to the posting; docs/disputes.md walks through it.

Stage: the command line's outermost layer, as in `__main__`. Every step has a name and is kept; what moves money needs
two people.
"""

from __future__ import annotations

import mimetypes
from collections.abc import Awaitable, Callable
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from billing.correction import Fault
from billing.disputes.case import Area, CaseKind, Decision, State, StepKind
from billing.disputes.proposal import Asked
from billing.money import parse_amount
from prepaid import console
from prepaid.arguments import (
    By,
    CommandRefused,
    DataDir,
    Json,
    line,
    local,
    read_day,
    read_instant,
    read_name,
    read_text,
    read_words,
    run,
    settings_of,
)
from prepaid.case_shown import print_bank, print_case, print_report, read_check_readings
from prepaid.settings import Settings
from prepaid.swap_commands import read_closing

if TYPE_CHECKING:
    from psycopg import AsyncConnection

    from billing.calendar import LocalCalendar
    from billing.disputes.banking import BankOverhaul
    from db.case_tests import Report
    from db.cases import CaseFile, Entry, ListedCase

cases_app = typer.Typer(help="Disputes of meters and bills: complaint, tests, decision, posting.", no_args_is_help=True)
case_rules_app = typer.Typer(help="Dated rules of disputes.", no_args_is_help=True)
cases_app.add_typer(case_rules_app, name="rules")

ROWS_SHOWN = 100
WORDS_MAX = 2_000

Id = Annotated[int, typer.Argument(help="The case's number.")]
Note = Annotated[str, typer.Option("--note", help="Words that are kept with the step.")]
At = Annotated[str | None, typer.Option("--at", help="When it was, with its zone; default: now.")]
Class = Annotated[str, typer.Option("--class", help="Accuracy class on the plate, e.g. 1 or 0.5S.")]


@cases_app.command(name="open")
def open_command(
    account: Annotated[str, typer.Argument(help="The account's number.")],
    kind: Annotated[CaseKind, typer.Option(help="What is disputed.")],
    area: Annotated[Area, typer.Option(help="Where the meter stands.")],
    accuracy_class: Class,
    complaint: Annotated[str, typer.Option(help="The complaint in its words.")],
    by: By,
    at: At = None,
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """Open a case about the meter at an account; its clocks run from now on."""
    from db.cases import NewCase, open_case, read_case

    settings = settings_of(data)
    entry = _entry(settings, by, complaint, at)
    new = NewCase(
        account=account,
        kind=kind,
        area=area,
        accuracy_class=accuracy_class,
        complaint=entry.note,
        by=entry.by,
        at=entry.at,
    )

    async def work(conn: AsyncConnection) -> CaseFile:
        return await read_case(conn, await open_case(conn, new, _calendar(settings)))

    _step(settings, work, json_output)


@cases_app.command(name="list")
def list_command(
    state: Annotated[State | None, typer.Option(help="Only those that stand here.")] = None,
    account: Annotated[str | None, typer.Option(help="Only of this account.")] = None,
    overdue: Annotated[bool, typer.Option("--overdue", help="Only those of which a clock has run out.")] = False,
    after: Annotated[int, typer.Option(help="Go on after this number.")] = 0,
    most: Annotated[int, typer.Option(min=1, max=10_000, help="How many at the most.")] = ROWS_SHOWN,
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """Cases by number."""
    from db.cases import list_cases
    from headend.edges.case_answers import listed_to_api

    settings = settings_of(data)
    now = _now()

    async def work(conn: AsyncConnection) -> list[ListedCase]:
        return await list_cases(conn, now=now, state=state, account=account, overdue=overdue, after=after, most=most)

    found = run(settings, work)
    if json_output:
        console.print_json({"cases": [listed_to_api(each) for each in found]})
        return
    for each in found:
        due = "" if each.due_at is None else f"due {local(each.due_at, settings)}"
        late = "  OVERDUE" if each.overdue else ""
        line(f"{each.id:>6}  {each.kind:<13} {each.state:<11} {each.account:<20} {due}{late}")


@cases_app.command(name="show")
def show_command(case_id: Id, data: DataDir = None, json_output: Json = False) -> None:
    """A case whole: where it stands, clocks, trail, documents."""
    from db.cases import read_case

    _step(settings_of(data), lambda conn: read_case(conn, case_id), json_output)


@cases_app.command(name="document")
def document_command(
    case_id: Id,
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="The document, up to 5 MB.")],
    by: By,
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """Keep a document with a case; the same again changes nothing."""
    from db.cases import DOCUMENT_BYTES_MAX, add_document, read_case

    settings = settings_of(data)
    with file.open("rb") as opened:
        content = opened.read(DOCUMENT_BYTES_MAX + 1)
    entry = _entry(settings, by, "document", None)
    media_type = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
    name = read_words("file name", file.name)

    async def work(conn: AsyncConnection) -> CaseFile:
        await add_document(conn, case_id, entry, name=name, media_type=media_type, content=content)
        return await read_case(conn, case_id)

    _step(settings, work, json_output)


@cases_app.command(name="ask")
def ask_command(
    case_id: Id, note: Note, by: By, at: At = None, data: DataDir = None, json_output: Json = False
) -> None:
    """Ask for more information: the clock of a disputed bill stands still."""
    _words(case_id, StepKind.ASK, note, by, at, data, json_output)


@cases_app.command(name="answer")
def answer_command(
    case_id: Id, note: Note, by: By, at: At = None, data: DataDir = None, json_output: Json = False
) -> None:
    """Note that the information is there: the clock begins anew."""
    _words(case_id, StepKind.ANSWER, note, by, at, data, json_output)


@cases_app.command(name="check-meter")
def check_meter_command(
    case_id: Id,
    serial: Annotated[str, typer.Argument(help="Serial of the check meter: registered, and standing nowhere.")],
    accuracy_class: Class,
    note: Note,
    by: By,
    at: At = None,
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """Note that a check meter stands beside the disputed one; it is never charged."""
    from db.case_tests import install_check_meter

    settings = settings_of(data)
    entry, calendar = _entry(settings, by, note, at), _calendar(settings)
    _step(
        settings,
        lambda conn: install_check_meter(conn, case_id, serial, accuracy_class, entry, calendar),
        json_output,
    )


@cases_app.command(name="check-readings")
def check_readings_command(
    case_id: Id,
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="CSV: read_at,import_wh[,export_wh].")],
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """Keep what was read out of a check meter; the same again changes nothing."""
    from db.case_tests import add_check_readings

    readings = read_check_readings(read_text(file))
    added = run(settings_of(data), lambda conn: add_check_readings(conn, case_id, readings))
    if json_output:
        console.print_json({"case": case_id, "received": len(readings), "added": added})
    else:
        line(f"case {case_id}: {added:,} of {len(readings):,} readings are new")


@cases_app.command(name="compare")
def compare_command(
    case_id: Id,
    by: Annotated[str | None, typer.Option("--by", help="Who: the report is kept, with its verdict.")] = None,
    note: Annotated[str, typer.Option("--note", help="Words that are kept with the step.")] = "compared",
    until: Annotated[str | None, typer.Option(help="Up to when; default: the end of the pairing.")] = None,
    at: At = None,
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """Compare a meter with its check meter; without --by nothing is kept."""
    from db.case_tests import compare_meters, comparison_of, report_to_json

    settings = settings_of(data)
    calendar, ends_at = _calendar(settings), read_instant("--until", until, settings)

    async def work(conn: AsyncConnection) -> Report:
        if by is None:
            return await comparison_of(conn, case_id, calendar, now=_now(), until=ends_at)
        entry = _entry(settings, by, note, at)
        return (await compare_meters(conn, case_id, entry, calendar, until=ends_at))[1]

    report = run(settings, work)
    if json_output:
        console.print_json({"case": case_id, **report_to_json(report)})
    else:
        print_report(report, settings)


@cases_app.command(name="test")
def laboratory_command(
    case_id: Id,
    kind: Annotated[str, typer.Argument(help="laboratory or third_party.")],
    error: Annotated[int, typer.Option(help="The error in hundredths of a percent; below zero: the meter is slow.")],
    laboratory: Annotated[str, typer.Option(help="Whose test it is.")],
    note: Note,
    by: By,
    at: At = None,
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """Enter what a laboratory found; the limit of the meter's class makes the verdict."""
    from db.case_tests import enter_test

    if kind not in (StepKind.LABORATORY, StepKind.THIRD_PARTY):
        raise CommandRefused(f"kind: expected laboratory or third_party, got {kind[:40]!r}")
    settings = settings_of(data)
    entry, calendar = _entry(settings, by, note, at), _calendar(settings)
    whose = read_words("laboratory", laboratory)
    _step(settings, lambda conn: enter_test(conn, case_id, StepKind(kind), error, whose, entry, calendar), json_output)


@cases_app.command(name="replace")
def replace_command(
    case_id: Id,
    serial: Annotated[str, typer.Argument(help="Serial of the new meter.")],
    at: Annotated[str, typer.Option(help="When the meters were swapped, with its zone.")],
    closing: Annotated[str, typer.Option(help="Register of the old meter in Wh, or `unread`.")],
    opening: Annotated[int, typer.Option(help="Register of the new meter in Wh.")],
    note: Note,
    by: By,
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """Swap the disputed meter."""
    from db.case_tests import replace_meter
    from db.orders import wall_ms
    from db.swaps import Swap
    from prepaid.processes import rules_of

    settings = settings_of(data)
    instant = read_instant("--at", at, settings)
    assert instant is not None, "an instant that is given is read or refused"
    swap = Swap(
        account_id=0,
        new_serial=serial,
        at=instant,
        closing_wh=read_closing(closing),
        opening_wh=opening,
        reason=read_words("note", note, WORDS_MAX),
        by=read_name(by),
    )

    async def work(conn: AsyncConnection) -> CaseFile:
        return (await replace_meter(conn, case_id, swap, rules=rules_of(settings), now_ms=wall_ms()))[0]

    _step(settings, work, json_output)


@cases_app.command(name="decide")
def decide_command(
    case_id: Id,
    decision: Annotated[Decision, typer.Argument(help="What follows for the account.")],
    note: Note,
    by: By,
    at: At = None,
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """Decide a case; a check meter that still stands there is taken away."""
    from db.cases import decide_case

    settings = settings_of(data)
    entry, calendar = _entry(settings, by, note, at), _calendar(settings)
    _step(settings, lambda conn: decide_case(conn, case_id, decision, entry, calendar), json_output)


@cases_app.command(name="bank")
def bank_command(
    case_id: Id,
    first: Annotated[str, typer.Option("--from", help="A day of the first month.")],
    last: Annotated[str, typer.Option("--until", help="A day of the last month.")],
    import_error: Annotated[int, typer.Option(help="Of the import, in hundredths of a percent.")] = 0,
    export_error: Annotated[int, typer.Option(help="Of the export, in hundredths of a percent.")] = 0,
    opening_wh: Annotated[int, typer.Option(min=0, help="In the bank before the first month, Wh.")] = 0,
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """A net meter's bank, month by month, as counted and with both errors put right; nothing is kept."""
    from db.case_tests import bank_of
    from headend.edges.case_answers import bank_to_api

    settings = settings_of(data)
    days = {"first": read_day(first, "--from"), "last": read_day(last, "--until")}

    async def work(conn: AsyncConnection) -> BankOverhaul:
        return await bank_of(
            conn,
            case_id,
            _calendar(settings),
            **days,
            import_error_basis_points=import_error,
            export_error_basis_points=export_error,
            opening_wh=opening_wh,
        )

    found = run(settings, work)
    if json_output:
        console.print_json({"case": case_id, **bank_to_api(found)})
    else:
        print_bank(found)


@cases_app.command(name="propose")
def propose_command(
    case_id: Id,
    note: Note,
    by: By,
    amount: Annotated[str | None, typer.Option(help="Of a disputed bill: `12.50` is given, `-12.50` taken.")] = None,
    first: Annotated[str | None, typer.Option("--from", help="First local day; default: as the rules permit.")] = None,
    last: Annotated[str | None, typer.Option("--until", help="Last local day; default: the last one billed.")] = None,
    began: Annotated[str | None, typer.Option(help="When the meter's data shows that it began.")] = None,
    fault: Annotated[Fault | None, typer.Option(help="Of a seasonal connection's meter.")] = None,
    same_days_last_year: Annotated[bool, typer.Option(help="As on the same days of last year.")] = False,
    average: Annotated[str | None, typer.Option(help="FIRST..LAST: the average per day of those days.")] = None,
    month_wh: Annotated[int | None, typer.Option(min=0, help="Stated energy a month, in Wh.")] = None,
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """Propose an overhaul with its dry run, or an amount for a disputed bill; nothing is booked."""
    from db.case_money import last_closed_day, propose_money
    from headend.edges.case_bodies import assessment_of
    from prepaid.processes import rules_of

    settings = settings_of(data)
    rules, entry = rules_of(settings), _entry(settings, by, note, None)
    base_first, base_last = (None, None) if average is None else _span(average)
    assessment = assessment_of(same_days_last_year, base_first, base_last, month_wh)

    async def work(conn: AsyncConnection) -> CaseFile:
        if amount is not None:
            return await propose_money(conn, case_id, _amount(amount), entry, rules=rules)
        until = _day("--until", last) or await last_closed_day(conn, case_id, rules=rules)
        if until is None:
            raise CommandRefused("overhaul: expected an account with a closed bill part, got none")
        asked = Asked(
            first=_day("--from", first),
            last=until,
            began_on=_day("--began", began),
            fault=fault,
            assessment=assessment,
        )
        return await propose_money(conn, case_id, asked, entry, rules=rules)

    _step(settings, work, json_output)


@cases_app.command(name="approve")
def approve_command(case_id: Id, note: Note, by: By, data: DataDir = None, json_output: Json = False) -> None:
    """Approve what is proposed, as a second person, with the cut-offs that its dry run reports."""
    from db.case_money import approve_money

    _money(approve_money, case_id, note, by, data, json_output)


@cases_app.command(name="refuse")
def refuse_command(case_id: Id, note: Note, by: By, data: DataDir = None, json_output: Json = False) -> None:
    """Give a proposal up; another one may follow."""
    from db.case_money import refuse_money

    _money(refuse_money, case_id, note, by, data, json_output)


@cases_app.command(name="post")
def post_command(case_id: Id, note: Note, by: By, data: DataDir = None, json_output: Json = False) -> None:
    """Post what was approved, or the fee of a meter that proved right; goes on where it was stopped."""
    from db.case_money import post_money

    _money(post_money, case_id, note, by, data, json_output)


@cases_app.command(name="close")
def close_command(case_id: Id, note: Note, by: By, data: DataDir = None, json_output: Json = False) -> None:
    """Close a case; nothing can be added to it any more."""
    _words(case_id, StepKind.CLOSE, note, by, None, data, json_output)


@case_rules_app.command(name="show")
def rules_show_command(
    name: Annotated[str | None, typer.Argument(help="A built-in document; default: the list of all.")] = None,
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """The built-in document as TOML, or the list of those that hold from their days on."""
    from billing.disputes.rules import builtin_case_documents
    from db.cases import list_rules

    documents = builtin_case_documents()
    if name is not None:
        if name not in documents:
            raise CommandRefused(f"name: expected one of {', '.join(documents)}, got {name[:40]!r}")
        line(documents[name])
        return
    rows = [{key: str(value) for key, value in row.items()} for row in run(settings_of(data), list_rules)]
    if json_output:
        console.print_json({"built_in": sorted(documents), "rules": rows})
        return
    for each in rows:
        line(f"{each['id']:<32} from {each['effective_from']}  by {each['added_by']}")


@case_rules_app.command(name="add")
def rules_add_command(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="The document.")],
    by: By,
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """Keep a document of the utility's own; cases opened from its day on go by it."""
    from db.cases import add_rules

    text, name = read_text(file), read_name(by)
    rules = run(settings_of(data), lambda conn: add_rules(conn, text, by=name, now=_now()))
    if json_output:
        console.print_json({"rules": rules.id, "effective_from": rules.effective_from.isoformat()})
    else:
        line(f"dispute rules {rules.id} hold for cases opened from {rules.effective_from} on")


def _words(
    case_id: int, kind: StepKind, note: str, by: str, at: str | None, data: Path | None, json_output: bool
) -> None:
    from db.cases import enter_step

    settings = settings_of(data)
    entry, calendar = _entry(settings, by, note, at), _calendar(settings)
    _step(settings, lambda conn: enter_step(conn, case_id, kind, entry, calendar), json_output)


def _money(
    change: Callable[..., Awaitable[CaseFile]], case_id: int, note: str, by: str, data: Path | None, json_output: bool
) -> None:
    from prepaid.processes import rules_of

    settings = settings_of(data)
    entry, rules = _entry(settings, by, note, None), rules_of(settings)
    _step(settings, lambda conn: change(conn, case_id, entry, rules=rules), json_output)


def _step(settings: Settings, work: Callable[[AsyncConnection], Awaitable[CaseFile]], json_output: bool) -> None:
    """Do something with a case, and print it."""
    from db.cases import list_documents
    from headend.edges.case_answers import case_to_api

    async def shown(conn: AsyncConnection) -> dict[str, Any]:
        file = await work(conn)
        documents = await list_documents(conn, file.row.id)
        return case_to_api(file, documents, now=_now(), calendar=_calendar(settings))

    found = run(settings, shown)
    if json_output:
        console.print_json(found)
    else:
        print_case(found, settings)


def _entry(settings: Settings, by: str, note: str, at: str | None) -> Entry:
    from db.cases import Entry
    from headend.edges.case_bodies import instant_of

    instant = instant_of(read_instant("--at", at, settings), _now())
    return Entry(by=read_name(by), at=instant, note=read_words("note", note, WORDS_MAX))


def _amount(text: str) -> int:
    size = parse_amount(text.removeprefix("-"))
    return -size if text.startswith("-") else size


def _day(name: str, text: str | None) -> date | None:
    return None if text is None else read_day(text, name)


def _span(text: str) -> tuple[date, date]:
    first, dots, last = text.partition("..")
    if not dots:
        raise CommandRefused(f"--average: expected FIRST..LAST, got {text[:40]!r}")
    return read_day(first, "--average"), read_day(last, "--average")


def _calendar(settings: Settings) -> LocalCalendar:
    from prepaid.processes import calendar_of

    return calendar_of(settings)


def _now() -> datetime:
    from billing.calendar import from_ms
    from db.orders import wall_ms

    return from_ms(wall_ms())
