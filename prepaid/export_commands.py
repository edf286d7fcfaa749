"""`prepaid export`: what the billing engineers' desk answers, as one whole file.

Stage: the command line's outermost layer, as in `__main__`. The same questions as over HTTP, without its limits.
"""

from __future__ import annotations

import resource
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headend.queries.columns import Subject
from headend.queries.errors import QueryRefused
from prepaid import console
from prepaid.arguments import DataDir, Json, line, run, settings_of
from prepaid.settings import PrepaidError

if TYPE_CHECKING:
    from psycopg import AsyncConnection

    from headend.edges.desk_export import Exported


class ExportRefused(PrepaidError):
    """An export that cannot be made as asked; the message begins with its own code."""

    code = "export_refused"


def export_answer_command(
    subject: Annotated[Subject, typer.Argument(help="What is exported.")],
    file: Annotated[Path, typer.Argument(help="The file; it has this name when it is whole.")],
    since: Annotated[str | None, typer.Option("--from", help="Local day, local time or instant with its zone.")] = None,
    until: Annotated[str | None, typer.Option("--to", help="The same; excluded.")] = None,
    form: Annotated[str, typer.Option("--format", help="csv, arrow or parquet.")] = "parquet",
    interval: Annotated[str | None, typer.Option(help="Of profiles and charges: hour, day, month, ...")] = None,
    meter: Annotated[str | None, typer.Option(help="Only this meter's, by serial.")] = None,
    consumer: Annotated[str | None, typer.Option(help="Only this consumer's, by number.")] = None,
    account: Annotated[str | None, typer.Option(help="Only this account's.")] = None,
    area: Annotated[str | None, typer.Option(help="Only this area's.")] = None,
    feeder: Annotated[str | None, typer.Option(help="Only this feeder's.")] = None,
    make: Annotated[str | None, typer.Option(help="Only meters of this make.")] = None,
    fields: Annotated[str | None, typer.Option(help="Columns, with commas between; default: all.")] = None,
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """Write readings, profiles, charges, events, meters or accounts into a file; the same command again goes on."""
    from headend.edges.desk_export import export_file
    from headend.edges.desk_formats import Format
    from headend.queries.questions import read_question
    from prepaid.processes import calendar_of

    settings = settings_of(data)
    calendar = calendar_of(settings)
    asked = {
        "from": since, "to": until, "interval": interval, "meter": meter, "consumer": consumer, "account": account,
        "area": area, "feeder": feeder, "make": make, "fields": fields,
    }  # fmt: skip
    if form not in (Format.CSV, Format.ARROW, Format.PARQUET):
        raise ExportRefused(f"bad_format: format: expected csv, arrow or parquet, got {form[:20]!r}")
    began_s = time.monotonic()
    try:
        question = read_question(subject, asked, calendar)

        async def work(conn: AsyncConnection) -> Exported:
            with console.progress_bars() as bars:
                return await export_file(
                    conn, question, calendar, form=Format(form), file=file,
                    progress=lambda _, share: bars("span written", share, 1_000),
                )  # fmt: skip

        done = run(settings, work)
    except QueryRefused as refusal:
        raise ExportRefused(f"{refusal.code}: {refusal}") from None
    _print(done, file, time.monotonic() - began_s, json_output)


def _print(done: Exported, file: Path, seconds: float, json_output: bool) -> None:
    written = done.rows - done.rows_before
    figures = {
        "file": str(file),
        "rows": done.rows,
        "rows_of_before": done.rows_before,
        "file_bytes": done.file_bytes,
        "seconds": round(seconds, 2),
        "rows_per_s": round(written / seconds),
        # Kilobytes on Linux.
        "memory_peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }
    if json_output:
        console.print_json(figures)
        return
    line(
        f"{file}: {done.rows} rows, {done.file_bytes} bytes; {written} rows in {figures['seconds']} s, "
        f"{figures['rows_per_s']} rows/s, at most {figures['memory_peak_mb']} MB of memory"
    )
