"""`prepaid import`: files of readings into the running system.

Stage: the command line's outermost layer, as in `__main__`. Meters and accounts have imports of their own
(`prepaid meters import`, `prepaid accounts import`); this one is for readings.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import typer

from meter_sim.edges.bulk import FleetError
from prepaid import console
from prepaid.arguments import line, settings_of
from prepaid.reading_files import ReadingsRefused
from prepaid.reading_formats import FIELDS, FormatOptions
from prepaid.system import running_system


def import_command(
    files: Annotated[list[Path], typer.Argument(help="CSV of readings, plain or gzip; see docs/readings-import.md.")],
    serial: Annotated[str | None, typer.Option(help="The meter, where the file names none.")] = None,
    zone: Annotated[str | None, typer.Option(help="Zone of times without one, e.g. Asia/Kolkata.")] = None,
    column: Annotated[
        list[str] | None, typer.Option(help=f"field=name of a column named otherwise; fields: {', '.join(FIELDS)}.")
    ] = None,
    time_format: Annotated[
        str | None, typer.Option(help="Of times that are not ISO 8601, e.g. %d/%m/%Y %H:%M.")
    ] = None,
    interval_min: Annotated[int | None, typer.Option(help="Minutes of intervals whose start is given.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first bad line.")] = False,
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Do not wait for ingest; report only what was sent.")
    ] = False,
    data: Annotated[
        Path | None, typer.Option("--data", help="Folder of the embedded parts (PREPAID_DATA_DIR).")
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")] = False,
) -> None:
    """Import readings through broker, ingest and database; interrupted, the same command goes on where it stood."""
    from prepaid.readings_import import ImportOptions, import_readings

    settings = settings_of(data)
    options = ImportOptions(
        files=tuple(files),
        format=FormatOptions(
            serial=serial,
            zone=None if zone is None else _zone(zone),
            time_pattern=time_format,
            interval_min=interval_min,
            columns=_columns(column or []),
        ),
        strict=strict,
        wait=not no_wait,
    )
    try:
        with console.progress_bars() as bars, running_system(settings, []) as system:
            report = import_readings(system, options, bars)
    except FleetError as error:
        raise ReadingsRefused(f"import: {error}; the same command goes on where it stood") from None
    for bad in report.bad:
        console.err.print(f"bad line: {bad}", markup=False)
    if json_output:
        console.print_json(report.to_json())
    else:
        for name, value in report.to_json().items():
            if name != "bad":
                line(f"{name:<16} {_plain(value)}")
    if report.outcome is not None and report.outcome.lost:
        sys.exit(1)


def _plain(value: object) -> str:
    """Return a figure of the report as a person reads it."""
    match value:
        case dict():
            return ", ".join(f"{name} {number}" for name, number in value.items()) or "none"
        case list():
            return ", ".join(map(str, value))
        case bool():
            return "yes" if value else "no"
        case _:
            return str(value)


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError):
        raise ReadingsRefused(f"zone: expected an IANA zone such as Asia/Kolkata, got {name[:40]!r}") from None


def _columns(pairs: list[str]) -> dict[str, str]:
    columns = {}
    for pair in pairs:
        field, _, name = pair.partition("=")
        if field not in FIELDS or not name:
            raise ReadingsRefused(f"column: expected field=name with one of {', '.join(FIELDS)}, got {pair[:60]!r}")
        columns[field] = name.strip()
    return columns
