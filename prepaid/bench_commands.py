"""The `bench` commands: measured figures, each beside the reference run of the same call.

Stage: the command line's outermost layer, as in `__main__`. Measuring is done in `loadtests`; here only arguments
and printing. Status 1 if anything was lost or came out wrong.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from prepaid import console
from prepaid.settings import load_settings

bench_app = typer.Typer(help="Measured figures, each beside a reference run.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
DataDir = Annotated[
    Path | None, typer.Option("--data", help="Folder in which the scratch folder is made (PREPAID_DATA_DIR).")
]


class ModeChoice(Enum):
    """How meters report; ALL is each way in turn."""

    SINGLE = "single"
    GATEWAY = "gateway"
    BLOCK48 = "block48"
    ALL = "all"


@bench_app.command()
def ingest(
    mode: Annotated[
        ModeChoice,
        typer.Option(help="One reading a message, ten such publishes a write, or 48 intervals a message."),
    ] = ModeChoice.ALL,
    rate: Annotated[
        float | None, typer.Option(help="Messages a second; without it, what each mode is asked for.")
    ] = None,
    as_fast: Annotated[
        bool, typer.Option("--max", help="Publish as fast as acknowledgements come, without a schedule.")
    ] = False,
    seconds: Annotated[int, typer.Option(help="How long each burst lasts.")] = 60,
    meters: Annotated[int, typer.Option(help="How many meters report, each with its account.")] = 100_000,
    connections: Annotated[int, typer.Option(help="MQTT connections that they share.")] = 2_000,
    ingest_processes: Annotated[int, typer.Option(help="Ingest processes.")] = 1,
    knee: Annotated[
        bool, typer.Option("--knee", help="Look for the highest rate at which lag stays bounded; run at half of it.")
    ] = False,
    overload: Annotated[
        bool, typer.Option("--overload", help="With --knee: run at twice the knee, then drain.")
    ] = False,
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """Readings per second from meters' publishes to charged and durable; status 1 if one was lost or not charged."""
    from loadtests.bench_ingest import IngestLoad, bench_ingest
    from loadtests.flood_frames import Mode

    settings = load_settings()
    if data is not None:
        settings = settings.model_copy(update={"data_dir": data})
    console.configure_logs("warning" if settings.log_level == "info" else settings.log_level)
    load = IngestLoad(
        modes=tuple(Mode) if mode is ModeChoice.ALL else (Mode(mode.value),),
        rate=rate,
        as_fast=as_fast,
        seconds=seconds,
        meters=meters,
        connections=connections,
        processes=ingest_processes,
        knee=knee,
        overload=overload,
    )
    with console.progress_bars() as bars:
        report = bench_ingest(settings, load, bars)
    _print(report, json_output=json_output)
    if report["lost"] or not report["complete"]:
        sys.exit(1)


@bench_app.command()
def sts(
    tokens: Annotated[int, typer.Option(help="Tokens of a pass, each of another meter.")] = 5_000,
    fuzz: Annotated[int, typer.Option(help="Random strings of 20 digits to decode under each cipher.")] = 1_000_000,
    fuzz_seconds: Annotated[float, typer.Option(help="How long the random strings may take.")] = 60.0,
    json_output: Json = False,
) -> None:
    """Tokens issued and decoded per second by cipher, and random digits; status 1 if one came out wrong."""
    from loadtests.bench_sts import bench_sts

    with console.progress_bars() as bars:
        report = bench_sts(tokens, fuzz_strings=fuzz, fuzz_seconds_max=fuzz_seconds, on_step=bars)
    _print(report, json_output=json_output)
    fuzzed = report["fuzz"]
    if report["wrong"] or not (isinstance(fuzzed, Mapping) and fuzzed["sound"]):
        sys.exit(1)


@bench_app.command()
def rating(json_output: Json = False) -> None:
    """Accounts rated per second and core beside the plain form; status 1 if one came out wrong."""
    from loadtests.bench_rating import bench_rating

    report = bench_rating()
    _print(report, json_output=json_output)
    if report["wrong"]:
        sys.exit(1)


@bench_app.command()
def charge(
    accounts: Annotated[int, typer.Option(help="How many accounts there are.")] = 1_000_000,
    readings: Annotated[int, typer.Option(help="Readings of a run, at most one an account.")] = 1_000_000,
    pairs: Annotated[int, typer.Option(help="Pairs of runs, bare COPY and charge, of each figure.")] = 5,
    day_accounts: Annotated[int, typer.Option(help="Accounts that are read whole days, with close-day.")] = 100_000,
    quick: Annotated[
        bool, typer.Option("--quick", help="A small load that shows no rate, only that it works.")
    ] = False,
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """Readings charged per second beside a bare COPY; status 1 if one was not charged or a deadlock happened."""
    from loadtests.bench_charge import QUICK, ChargeLoad, bench_charge

    settings = load_settings()
    if data is not None:
        settings = settings.model_copy(update={"data_dir": data})
    console.configure_logs("warning" if settings.log_level == "info" else settings.log_level)
    load = ChargeLoad(accounts=accounts, readings=readings, pairs=pairs, day_accounts=day_accounts)
    with console.progress_bars() as bars:
        report = bench_charge(settings, QUICK if quick else load, bars)
    _print(report, json_output=json_output)
    if report["deadlocks"] or not report["complete"]:
        sys.exit(1)


@bench_app.command()
def supply(
    accounts: Annotated[int, typer.Option(help="How many accounts there are.")] = 100_000,
    per_second: Annotated[int, typer.Option(help="Readings a second, each of another meter.")] = 5_000,
    seconds: Annotated[int, typer.Option(help="How long the measured load lasts.")] = 60,
    quick: Annotated[
        bool, typer.Option("--quick", help="A small load that shows no time, only that it works.")
    ] = False,
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """How soon meters are cut off and restored under a load; status 1 if a reading was lost or an order went astray."""
    from loadtests.bench_supply import FULL, QUICK, bench_supply

    settings = load_settings()
    if data is not None:
        settings = settings.model_copy(update={"data_dir": data})
    console.configure_logs("warning" if settings.log_level == "info" else settings.log_level)
    load = QUICK if quick else replace(FULL, accounts=accounts, per_second=per_second, seconds=seconds)
    with console.progress_bars() as bars:
        report = bench_supply(settings, load, bars)
    _print(report, json_output=json_output)
    if report["lost"] or report["unpublished"] or not report["complete"]:
        sys.exit(1)


@bench_app.command()
def vend(
    rate: Annotated[int, typer.Option(help="Vends a second of many vendors.")] = 400,
    hot_rate: Annotated[int, typer.Option(help="Vends a second of one vendor alone.")] = 200,
    seconds: Annotated[int, typer.Option(help="How long many vendors sell.")] = 60,
    accounts: Annotated[int, typer.Option(help="How many meters buy, each with its account.")] = 20_000,
    vendors: Annotated[int, typer.Option(help="How many vendors sell.")] = 100,
    quick: Annotated[
        bool, typer.Option("--quick", help="A small load that shows no rate, only that it works.")
    ] = False,
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """Vends per second of one API process beside a bare endpoint; status 1 if one was lost or not answered."""
    from loadtests.bench_vend import FULL, QUICK, bench_vend

    settings = load_settings()
    if data is not None:
        settings = settings.model_copy(update={"data_dir": data})
    console.configure_logs("warning" if settings.log_level == "info" else settings.log_level)
    asked = replace(FULL, rate=rate, hot_rate=hot_rate, seconds=seconds, accounts=accounts, vendors=vendors)
    with console.progress_bars() as bars:
        report = bench_vend(settings, QUICK if quick else asked, bars)
    _print(report, json_output=json_output)
    if report["lost"] or not report["complete"]:
        sys.exit(1)


@bench_app.command()
def gateway(
    meters: Annotated[int, typer.Option(help="How many simulated Modbus meters are polled, a multiple of 20.")] = 2_000,
    poll_s: Annotated[int, typer.Option("--poll-s", help="Seconds between two polls of a meter.")] = 60,
    seconds: Annotated[int, typer.Option(help="How long each of the two rounds lasts.")] = 180,
    profile: Annotated[
        Path | None, typer.Option(help="Recorded minutes or hours that the homes draw; without one, a formula.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A small load that shows no rate, only that it works.")
    ] = False,
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """Modbus meters polled on time, stored and charged, and raw polls beside pymodbus; status 1 if one was lost."""
    from loadtests.bench_gateway import FULL, QUICK, bench_gateway

    settings = load_settings()
    if data is not None:
        settings = settings.model_copy(update={"data_dir": data})
    console.configure_logs("warning" if settings.log_level == "info" else settings.log_level)
    load = QUICK if quick else replace(FULL, meters=meters, poll_s=poll_s, seconds=seconds)
    with console.progress_bars() as bars:
        report = bench_gateway(settings, load, bars, profile=profile)
    _print(report, json_output=json_output)
    if report["lost"] or not report["complete"]:
        sys.exit(1)


def _print(report: Mapping[str, object], *, json_output: bool) -> None:
    if json_output:
        console.print_json(report)
    else:
        _print_plain(report, indent=0)


def _print_plain(report: Mapping[str, object], *, indent: int) -> None:
    """Print a report for a person: nested parts below their name."""
    for name, value in report.items():
        label = " " * indent + name
        if isinstance(value, Mapping):
            console.out.print(label, markup=False)
            _print_plain(value, indent=indent + 2)
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            for part in value:
                console.out.print(label, markup=False)
                _print_plain(part, indent=indent + 2)
        else:
            shown = "; ".join(map(str, value)) if isinstance(value, list) else value
            console.out.print(f"{label:<38} {shown}", markup=False)
