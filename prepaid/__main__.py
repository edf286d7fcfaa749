"""The `prepaid` command line: our stable contract with operators and scripts.

Stage: the outermost layer. Reads settings, calls one function, prints. `--json` prints one JSON object on standard
output; everything else for a person goes to standard error or is plain lines. Every refusal is one line.
"""

from __future__ import annotations

import asyncio
import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated

import psycopg
import typer

from billing.money import BillingError, parse_amount
from billing.rating import total
from billing.tariff_document import builtin_tariff
from db.errors import DatabaseError
from headend.edges.stream import StreamError
from meter_sim.recorded import ProfileError, parse_profile
from prepaid import console
from prepaid.access_commands import api_keys_app, audit_trail_command
from prepaid.account_commands import print_statement
from prepaid.arguments import CommandRefused, DataDir, Json, read_day, settings_of
from prepaid.bench_commands import bench_app
from prepaid.case_commands import cases_app
from prepaid.contact_commands import contacts_app
from prepaid.correction_commands import corrections_app
from prepaid.counting_commands import add_counting_commands
from prepaid.coupon_commands import coupons_app
from prepaid.event_commands import alarms_app, events_app
from prepaid.exception_commands import exceptions_app
from prepaid.export_commands import export_answer_command
from prepaid.feeder_commands import feeders_app
from prepaid.gap_commands import gaps_app
from prepaid.gateway_commands import gateway_app
from prepaid.import_commands import import_command
from prepaid.key_commands import vending_keys_app
from prepaid.meter_record_commands import keys_app, token_command
from prepaid.module_commands import module_app
from prepaid.money_commands import add_account_commands, money_app, rules_app
from prepaid.notice_commands import notices_app
from prepaid.paygo_commands import paygo_app
from prepaid.payments import payments_app
from prepaid.processes import calendar_of
from prepaid.quarantine_commands import quarantine_app
from prepaid.report_commands import report_app
from prepaid.settings import PrepaidError
from prepaid.storage_commands import rollup_command, storage_app
from prepaid.sts_commands import sts_app
from prepaid.supply_commands import supply_app
from prepaid.supply_rule_commands import supply_rules_app
from prepaid.swap_commands import swap_command
from prepaid.system import running_system
from prepaid.tariff_commands import tariffs_app
from prepaid.threshold_commands import thresholds_command
from prepaid.validation_commands import export_command, validation_rules_app
from prepaid.vendor_commands import vendors_app
from prepaid.worker_commands import workers_command
from protocols.modbus.maps import MapError

app = typer.Typer(
    name="prepaid",
    help="Prepaid smart-meter head-end and vending.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
bill_app = typer.Typer(help="Bills.", no_args_is_help=True)
meters_app = typer.Typer(help="Meters.", no_args_is_help=True)
accounts_app = typer.Typer(help="Accounts.", no_args_is_help=True)
app.add_typer(bill_app, name="bill")
app.add_typer(sts_app, name="sts")
app.add_typer(meters_app, name="meters")
meters_app.add_typer(keys_app, name="keys")
meters_app.command(name="token")(token_command)
meters_app.command(name="swap")(swap_command)
app.add_typer(paygo_app, name="paygo")
app.add_typer(vending_keys_app, name="keys")
app.add_typer(module_app, name="module")
app.add_typer(accounts_app, name="accounts")
accounts_app.command(name="statement")(print_statement)
accounts_app.command(name="thresholds")(thresholds_command)
accounts_app.command(name="export")(export_command)
add_account_commands(accounts_app)
app.add_typer(money_app, name="money")
app.add_typer(corrections_app, name="corrections")
app.add_typer(cases_app, name="cases")
app.add_typer(exceptions_app, name="exceptions")
app.add_typer(rules_app, name="rules")
app.add_typer(supply_rules_app, name="supply-rules")
app.add_typer(vendors_app, name="vendors")
app.add_typer(coupons_app, name="coupons")
app.add_typer(notices_app, name="notices")
app.add_typer(payments_app, name="payments")
app.add_typer(contacts_app, name="contacts")
app.add_typer(tariffs_app, name="tariffs")
app.add_typer(bench_app, name="bench")
app.add_typer(report_app, name="report")
app.command(name="export")(export_answer_command)
app.add_typer(feeders_app, name="feeders")
app.add_typer(quarantine_app, name="quarantine")
app.add_typer(validation_rules_app, name="validation-rules")
app.add_typer(gaps_app, name="gaps")
app.add_typer(gateway_app, name="gateway")
app.command(name="import")(import_command)
app.add_typer(supply_app, name="supply")
app.add_typer(events_app, name="events")
app.add_typer(alarms_app, name="alarms")
add_counting_commands(app)
app.command(name="workers")(workers_command)
app.add_typer(storage_app, name="storage")
app.command(name="rollup")(rollup_command)
app.add_typer(api_keys_app, name="api-keys")
app.command(name="audit-trail")(audit_trail_command)

DEFAULT_TARIFF = "punjab-ds-2026-27"
# What a wrong invocation or unusable input ends with, as with most commands; 1 is a check that failed.
_EXIT_REFUSED = 2

CsvFile = Annotated[Path, typer.Argument(help="CSV with a header line; see docs/imports.md.")]


UNUSABLE_FILES = (FileNotFoundError, IsADirectoryError, PermissionError)
REFUSALS = (
    PrepaidError,
    BillingError,
    DatabaseError,
    StreamError,
    ProfileError,
    MapError,
    psycopg.OperationalError,
    *UNUSABLE_FILES,
)


def main() -> None:
    """Run the command line; refusals end it with one line and status 2."""
    try:
        app()
    except REFUSALS as refusal:
        code, told = getattr(refusal, "code", None) or type(refusal).__name__, str(refusal)
        if isinstance(refusal, UNUSABLE_FILES):
            code, told = "file_unusable", f"{refusal.filename}: {refusal.strerror}"
        console.err.print(f"prepaid: {code}: {' '.join(told.split())}", markup=False)
        sys.exit(_EXIT_REFUSED)


@app.command()
def up(
    data: DataDir = None,
    ingest_processes: Annotated[
        int | None, typer.Option("--ingest", min=1, max=32, help="Ingest processes (PREPAID_INGEST_PROCESSES).")
    ] = None,
) -> None:
    """Start database, broker, ingest, dispatcher and API; stop cleanly on Ctrl-C."""
    from prepaid.up import run_up

    settings = settings_of(data)
    if ingest_processes is not None:
        settings = settings.model_copy(update={"ingest_processes": ingest_processes})
    run_up(settings)


@app.command()
def demo(data: DataDir = None, json_output: Json = False) -> None:
    """Tell the whole story on a scratch folder: readings, alarm, cut-off, recharge, restore, statement."""
    from prepaid.demo import run_demo

    sys.exit(run_demo(settings_of(None), data, json_output=json_output))


@app.command()
def ingest() -> None:
    """Run one ingest process."""
    from prepaid.processes import run_ingest

    run_ingest(settings_of(None))


@app.command()
def dispatch() -> None:
    """Run one dispatcher process."""
    from prepaid.processes import run_dispatch

    run_dispatch(settings_of(None))


@app.command()
def notify() -> None:
    """Run one notifier process."""
    from prepaid.processes import run_notify

    run_notify(settings_of(None))


@app.command()
def bridge() -> None:
    """Run one bridge process: meters of other makes and brokers, handed over to ours."""
    from prepaid.processes import run_bridge

    run_bridge(settings_of(None))


@app.command()
def watch() -> None:
    """Run one watch process: completeness, silent meters, counts of what meters have sent."""
    from prepaid.processes import run_watch

    run_watch(settings_of(None))


@app.command()
def api() -> None:
    """Run one API process."""
    from prepaid.processes import run_api

    run_api(settings_of(None))


@app.command()
def migrate(data: DataDir = None, json_output: Json = False) -> None:
    """Apply missing migrations."""
    from prepaid.administration import run_migrate

    applied = run_migrate(settings_of(data))
    if json_output:
        console.print_json({"applied": applied})
    else:
        console.out.print("applied: " + (", ".join(applied) or "nothing, all migrations are there"))


@app.command(name="close-day")
def close_day_command(
    until: Annotated[str | None, typer.Option(help="Last day to close, YYYY-MM-DD; default: yesterday.")] = None,
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """Post usage per account and local day up to a day that has ended; resumable, harmless twice."""
    from prepaid.administration import run_close_day

    settings = settings_of(data)
    today = datetime.now(settings.zone).date()
    day = read_day(until) if until else today - timedelta(days=1)
    if day >= today:
        raise CommandRefused(f"close-day: expected a day before {today}, which has not ended, got {day}")
    closed = run_close_day(settings, day)
    if json_output:
        console.print_json({"until": str(day), "accounts": closed.accounts, "days": closed.days})
    else:
        console.out.print(f"closed {closed.days} days of {closed.accounts} accounts up to {day}")


@app.command()
def replay(
    files: Annotated[list[Path], typer.Argument(help="Recorded profiles: start,value CSV (gz) or UCI text.")],
    meters: Annotated[int, typer.Option(help="How many simulated meters.")] = 10,
    speed: Annotated[str, typer.Option(help="A time factor, or max.")] = "max",
    shift_days: Annotated[int, typer.Option(help="Move recorded times by whole days.")] = 0,
    block: Annotated[int, typer.Option(help="Readings in a message, 1 to 96.")] = 24,
    credit: Annotated[str | None, typer.Option(help="Opening credit of each account, e.g. 500.00.")] = None,
    threshold: Annotated[str | None, typer.Option(help="Balance at which each account is warned.")] = None,
    tariff: Annotated[str, typer.Option(help="Built-in tariff of every account.")] = DEFAULT_TARIFF,
    detail: Annotated[bool, typer.Option(help="With --json: also each meter and month.")] = False,
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """Send recorded readings through broker, ingest and database; report counts and money."""
    from prepaid.replay import ENOUGH_CREDIT_MINOR, ReplayOptions, make_meters
    from prepaid.replay import replay as run_replay

    settings = settings_of(data)
    builtin_tariff(tariff)
    options = ReplayOptions(
        files=tuple(files),
        meters=meters,
        speed=_speed(speed),
        shift_days=shift_days,
        block=block,
        credit_minor=ENOUGH_CREDIT_MINOR if credit is None else parse_amount(credit),
        threshold_minor=None if threshold is None else parse_amount(threshold),
        tariff_id=tariff,
    )
    homes = make_meters(options)
    with console.progress_bars() as bars, running_system(settings, ["ingest"]) as system:
        report = asyncio.run(run_replay(system, options, homes, calendar_of(settings), bars))
    if json_output:
        console.print_json(report.to_json(detail=detail))
    else:
        for name, value in report.to_json(detail=False).items():
            console.out.print(f"{name:<20} {value}")
    if report.lost:
        sys.exit(1)


@app.command()
def audit(
    sample: Annotated[int | None, typer.Option(min=1, help="Only so many accounts, spread over all.")] = None,
    account: Annotated[list[str] | None, typer.Option(help="Only this account, by number; may be repeated.")] = None,
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """Check the invariants on the live database, which stays as it is; status 1 if one is broken."""
    from db.audit import Scope, shown_lines
    from prepaid.administration import run_audit

    if sample is not None and account:
        raise CommandRefused("audit: expected --sample or --account, got both")
    findings = run_audit(settings_of(data), Scope(numbers=tuple(account or ()), sample=sample))
    if json_output:
        console.print_json(findings.to_json())
    else:
        shown = shown_lines(findings.first_offender) if findings.first_offender else []
        for line in [f"audit of the {findings.scope}", *findings.lines(), *shown]:
            console.out.print(line, markup=False)
    if not findings.clean:
        sys.exit(1)


@bill_app.command()
def preview(
    file: Annotated[Path, typer.Argument(help="A recorded profile.")],
    load_kw: Annotated[str, typer.Option(help="Sanctioned load in kW, e.g. 3 or 4.5.")],
    tariff: Annotated[str, typer.Option(help="Built-in tariff, or the file of a document.")] = DEFAULT_TARIFF,
    area: Annotated[str, typer.Option(help="Type of area, by which levies differ.")] = "urban",
    own_meter: Annotated[bool, typer.Option("--own-meter", help="The meter is the consumer's: no rent.")] = False,
    month: Annotated[str | None, typer.Option(help="Only this month, YYYY-MM.")] = None,
    json_output: Json = False,
) -> None:
    """What a load profile would cost, month by month and line by line, without a database."""
    from prepaid.preview import preview as make_preview
    from prepaid.preview import tariff_of

    settings = settings_of(None)
    load_w = _load_w(load_kw)
    profile = parse_profile(file.name, file.read_bytes())
    known = tariff_of(tariff)
    calendar = calendar_of(settings)
    bills = make_preview(profile, known, load_w=load_w, calendar=calendar, area=area, meter_rent=not own_meter)
    if month is not None:
        bills = [bill for bill in bills if f"{bill.period:%Y-%m}" == month]
    if json_output:
        console.print_json(
            {
                "tariff": known.id,
                "currency": known.currency,
                "area": area,
                "meter_rent": not own_meter,
                "load_w": load_w,
                "time_zone": settings.time_zone,
                "energy_wh": sum(bill.energy_wh for bill in bills),
                "total_minor": sum(total(bill.lines) for bill in bills),
                "months": [bill.to_json() for bill in bills],
            }
        )
        return
    for bill in bills:
        console.print_lines(f"{bill.period:%Y-%m}  {bill.energy_wh / 1000:.3f} kWh", bill.lines)


@meters_app.command(name="import")
def import_meters(
    file: Annotated[Path, typer.Argument(help="CSV with a header line.")],
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """Register meters from a CSV file; serials that are there are left as they are."""
    from prepaid.imports import run_import_meters

    _print_import(run_import_meters(settings_of(data), file), json_output)


@accounts_app.command(name="import")
def import_accounts(
    file: Annotated[Path, typer.Argument(help="CSV with a header line.")],
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """Open accounts from a CSV file; numbers that are there are left as they are."""
    from prepaid.imports import run_import_accounts

    _print_import(run_import_accounts(settings_of(data), file), json_output)


@accounts_app.command()
def key(
    number: Annotated[str, typer.Argument(help="The account's number.")],
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """Give the consumer of an account an API key: its balance, its threshold; shown once and not kept."""
    from prepaid.administration import run_consumer_key

    secret = run_consumer_key(settings_of(data), number)
    if json_output:
        console.print_json({"account": number, "api_key": secret})
    else:
        console.out.print(f"account {number}, API key (shown once): {secret}", markup=False)


def _print_import(result: tuple[int, int], json_output: bool) -> None:
    added, known = result
    if json_output:
        console.print_json({"added": added, "known": known})
    else:
        console.out.print(f"added {added}, already there {known}")


def _speed(text: str) -> float | None:
    if text == "max":
        return None
    try:
        speed = float(text)
    except ValueError:
        speed = 0.0
    if speed <= 0:
        raise CommandRefused(f"speed: expected a factor above 0 or max, got {text!r}")
    return speed


def _load_w(text: str) -> int:
    """Read a load in kW with up to three decimals into W, without a float."""
    whole, _, part = text.partition(".")
    digits = whole + part.ljust(3, "0")
    if not (whole.isascii() and digits.isdecimal() and len(part) <= 3) or int(digits) == 0:
        raise CommandRefused(f"load: expected kW above 0 with up to three decimals, got {text!r}")
    return int(digits)


if __name__ == "__main__":
    main()
