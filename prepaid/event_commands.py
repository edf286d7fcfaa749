"""`prepaid events` and `prepaid alarms`: what meters noticed, and what somebody has to look at.

Stage: the command line's outermost layer, as in `__main__`. `alarms acknowledge` is the one command that changes
something, and keeps who gave it.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any

import typer
from psycopg import AsyncConnection

from prepaid import console
from prepaid.arguments import CommandRefused, DataDir, Json, line, local, read_name, run, settings_of
from prepaid.counting_commands import ROWS_SHOWN, Area, Limit, Skip

events_app = typer.Typer(help="Events of meters.", no_args_is_help=True)
alarms_app = typer.Typer(help="Alarms of events.", no_args_is_help=True)


class Grave(StrEnum):
    """Severities, as `--severity` takes them."""

    INFO = "info"
    WARNING = "warning"
    ALARM = "alarm"


Severe = Annotated[Grave | None, typer.Option("--severity", help="Only of this severity.")]
Code = Annotated[int | None, typer.Option("--code", min=0, help="Only this code.")]
Meter = Annotated[str | None, typer.Option("--meter", help="Only this meter's.")]
Days = Annotated[int, typer.Option("--days", min=1, max=3_660, help="Of so many days.")]


@events_app.command(name="list")
def list_command(
    severity: Severe = None,
    code: Code = None,
    meter: Meter = None,
    days: Days = 30,
    limit: Limit = ROWS_SHOWN,
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """Events of meters, those that came last first."""
    from db.event_alarms import EventsAsked, list_events
    from headend.edges.engineer_answers import event_to_api
    from headend.events import Severity, codes_of

    codes = None if severity is None else codes_of(Severity(severity.value))
    if code is not None:
        codes = {code} if codes is None else codes & {code}
    asked = EventsAsked(
        serial=meter,
        codes=None if codes is None else sorted(codes),
        since=datetime.now(UTC) - timedelta(days=days),
        until=datetime.max.replace(tzinfo=UTC),
    )

    async def work(conn: AsyncConnection) -> list[dict[str, Any]]:
        return [event_to_api(each) for each in await list_events(conn, asked, most=limit)]

    settings = settings_of(data)
    events = run(settings, work)
    if json_output:
        console.print_json({"events": events})
        return
    if not events:
        line(f"no such event within {days} days")
    for each in events:
        at = local(each["at"], settings)
        line(f"{at}  {each['meter']:<16} {each['severity']:<8} {each['code']:>5}  {each['title']}")


@alarms_app.command(name="list")
def alarms_command(
    severity: Severe = None,
    code: Code = None,
    meter: Meter = None,
    area: Area = None,
    ended: Annotated[bool, typer.Option("--ended", help="Those that ended, too.")] = False,
    days: Days = 30,
    limit: Limit = ROWS_SHOWN,
    skip: Skip = 0,
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """Alarms, the gravest and latest first; one code at many meters of an area is one line."""
    from db.event_alarms import AlarmsAsked, list_alarms
    from headend.edges.engineer_answers import alarm_to_api
    from headend.event_alarms import GROUP_FROM

    asked = AlarmsAsked(
        severity=severity.value if severity else None,
        code=code,
        serial=meter,
        area=area,
        ended=ended,
        since=datetime.now(UTC) - timedelta(days=days),
        group_from=GROUP_FROM,
    )

    async def work(conn: AsyncConnection) -> list[dict[str, Any]]:
        return [alarm_to_api(each) for each in await list_alarms(conn, asked, skip=skip, most=limit)]

    settings = settings_of(data)
    alarms = run(settings, work)
    if json_output:
        console.print_json({"alarms": alarms})
        return
    if not alarms:
        line("no such alarm")
    for each in alarms:
        whose = each["meter"] or f"{each['meters']} meters of {each['area'] or '(no area)'}"
        until = f", over {local(each['ended_at'], settings)}" if each["ended_at"] else ""
        seen = f", seen by {each['acknowledged_by']}" if each["acknowledged_by"] else ""
        line(
            f"{each['id']:>8}  {each['severity']:<8} {each['code']:>5}  {each['title']}: {whose}, {each['times']} times"
            f" from {local(each['first_at'], settings)} to {local(each['last_at'], settings)}{until}{seen}"
        )


@alarms_app.command(name="acknowledge")
def acknowledge_command(
    by: Annotated[str, typer.Option("--by", help="Who has seen it; kept.")],
    number: Annotated[int | None, typer.Argument(min=1, help="The alarm's number.")] = None,
    area: Annotated[str | None, typer.Option("--area", help="Instead: all alarms of --code in this area.")] = None,
    code: Code = None,
    note: Annotated[str | None, typer.Option("--note", help="What was found; kept.")] = None,
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """Note who has seen an alarm; one that no event can end is over by it."""
    from db.event_alarms import acknowledge_alarm, acknowledge_area
    from headend.events import ended_codes

    if (number is None) == (area is None or code is None):
        raise CommandRefused("acknowledge: expected an alarm's number, or --area and --code, got neither or both")
    name = read_name(by)

    async def work(conn: AsyncConnection) -> int:
        if number is not None:
            await acknowledge_alarm(conn, number, by=name, note=note or None, ending=ended_codes())
            return 1
        assert area is not None, "checked above"
        assert code is not None, "checked above"
        return await acknowledge_area(conn, area, code, by=name, note=note or None, ending=ended_codes())

    seen = run(settings_of(data), work)
    if json_output:
        console.print_json({"acknowledged": seen, "acknowledged_by": name})
    else:
        line(f"{seen} acknowledged by {name}")
