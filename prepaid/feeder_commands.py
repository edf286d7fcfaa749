"""`prepaid feeders`: which meter measures a feeder, and what is lost between it and the consumers.

Stage: the command line's outermost layer, as in `__main__`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from headend.queries.errors import QueryRefused
from prepaid import console
from prepaid.arguments import By, CommandRefused, DataDir, Json, line, read_day, read_name, run, settings_of

if TYPE_CHECKING:
    from psycopg import AsyncConnection

feeders_app = typer.Typer(help="Feeders and their own meters.", no_args_is_help=True)

Feeder = Annotated[str, typer.Argument(help="The feeder, as usage points name it.")]


@feeders_app.command(name="meter")
def set_meter_command(
    feeder: Feeder,
    meter: Annotated[str, typer.Argument(help="Serial of the meter at its head.")],
    from_day: Annotated[str, typer.Option("--from", help="Local day from which on it measures the feeder.")],
    by: By,
    data: DataDir = None,
) -> None:
    """Say which meter measures what goes into a feeder, from a day on."""
    from db.desk import set_feeder_meter

    name, day = read_name(by), read_day(from_day, "from")

    async def work(conn: AsyncConnection) -> bool:
        return await set_feeder_meter(conn, feeder, meter, day, by=name)

    if not run(settings_of(data), work):
        raise CommandRefused(f"meter: expected a known serial and a day without another meter, got {meter} from {day}")
    line(f"feeder {feeder}: measured by {meter} from {day}")


@feeders_app.command(name="losses")
def losses_command(
    feeder: Feeder,
    since: Annotated[str, typer.Option("--from", help="Local day.")],
    until: Annotated[str, typer.Option("--to", help="Local day; excluded.")],
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """What went into a feeder by its own meter, what its consumers took, and the rest, day by day."""
    from headend.edges.desk_figures import FiguresAsked, losses_of_feeder
    from headend.queries.questions import read_days
    from prepaid.processes import calendar_of

    settings = settings_of(data)

    async def work(conn: AsyncConnection) -> dict[str, object]:
        first, last = read_days({"from": since, "to": until})
        asked = FiguresAsked(name=feeder, first=first, last=last, only_area=None)
        return await losses_of_feeder(conn, asked, calendar_of(settings))

    try:
        found = run(settings, work)
    except QueryRefused as refusal:
        raise CommandRefused(f"{refusal.code}: {refusal}") from None
    if json_output:
        console.print_json(found)
        return
    line(f"{feeder}: {found['days_measured']} days, {found['into_wh']} Wh in, {found['taken_wh']} Wh taken, "
         f"{found['losses_wh']} Wh lost")  # fmt: skip
