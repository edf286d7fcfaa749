"""`prepaid counts`, `reconcile`, `completeness`, `silent`: what came, what is missing, who is not heard of.

Stage: the command line's outermost layer, as in `__main__`. Each reads and prints; `reconcile` and `silent` first let
what has come since be counted, as the watch does.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Any, ClassVar, TypeVar

import typer
from psycopg import AsyncConnection

from prepaid import console
from prepaid.arguments import DataDir, Json, line, read_day, read_instant, run, settings_of
from prepaid.report_commands import parse_shards
from prepaid.settings import PrepaidError
from protocols.topics import SHARDS

T = TypeVar("T")

# What fits a few screens; and what one JSON object may hold.
ROWS_SHOWN, ROWS_SHOWN_MAX = 50, 10_000
RANGES_SHOWN = 5

Limit = Annotated[int, typer.Option("--limit", min=1, max=ROWS_SHOWN_MAX, help="Rows at most.")]
Skip = Annotated[int, typer.Option("--skip", min=0, help="Rows of the pages before.")]
Area = Annotated[str | None, typer.Option("--area", help="Only this area.")]


class CountingRefused(PrepaidError):
    """Arguments that do not fit; the message is one line."""

    code: ClassVar[str] = "counting_refused"


def add_counting_commands(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command(name="counts")(counts_command)
    app.command(name="reconcile")(reconcile_command)
    app.command(name="completeness")(completeness_command)
    app.command(name="silent")(silent_command)
    app.command(name="engineer-key")(engineer_key_command)


def counts_command(
    since: Annotated[str | None, typer.Option("--from", help="Day or instant with zone; default: all.")] = None,
    until: Annotated[str | None, typer.Option("--to", help="Day or instant before which; default: all.")] = None,
    shards: Annotated[str, typer.Option("--shard", help="Shards, e.g. 0-15 or 3,7,16-19.")] = f"0-{SHARDS - 1}",
    again: Annotated[bool, typer.Option("--recount", help="Read everything again; status 1 where it differs.")] = False,
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """Readings received over a span, and what became of them; status 1 where that does not add up."""
    from db.counting import read_counts, recount, total_of
    from headend.edges.engineer_answers import counts_to_api, recount_to_api

    settings = settings_of(data)
    asked = parse_shards(shards)

    async def work(conn: AsyncConnection) -> tuple[Any, Any]:  # Counts by shard, and everything read again.
        found = await read_counts(
            conn,
            since=read_instant("from", since, settings),
            until=read_instant("to", until, settings),
            shards=None if len(asked) == SHARDS else asked,
        )
        return found, await recount(conn) if again else None

    found, counted = run(settings, work)
    everything = total_of(found)
    shown = counts_to_api(everything)
    if json_output:
        by_shard = [{"shard": each.shard} | counts_to_api(each) for each in found]
        console.print_json(shown | {"shards": by_shard, "recount": recount_to_api(counted) if counted else None})
    else:
        for name in ("messages", "received", "stored", "duplicate", "quarantined", "rejected"):
            line(f"{name:<12} {shown[name]:>14}")
        line("received = stored + duplicate + quarantined + rejected" if everything.adds_up else _broken(found))
        if counted:
            line(f"read again: {_recounted(recount_to_api(counted))}")
    if not everything.adds_up or (counted and not counted.adds_up):
        raise typer.Exit(1)


def reconcile_command(
    meter: Annotated[str | None, typer.Option("--meter", help="Only this meter, up to the last batch.")] = None,
    limit: Limit = ROWS_SHOWN,
    skip: Skip = 0,
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """Messages that meters have sent by their own count, and what became of them; meters with most missing first."""
    from headend.edges.engineer_answers import reconciled_to_api, totals_to_api
    from headend.edges.reconcile import count_arrivals, reconcile_all, reconcile_meter

    async def of_one(conn: AsyncConnection) -> dict[str, Any]:
        found = await reconcile_meter(conn, str(meter))
        if found is None:
            raise CountingRefused(f"meter: expected a known serial, got {meter!r}")
        return reconciled_to_api(found)

    async def of_all(conn: AsyncConnection) -> dict[str, Any]:
        await count_arrivals(conn, before=datetime.now(UTC))
        return totals_to_api(await reconcile_all(conn, skip=skip, most=limit))

    shown = run(settings_of(data), of_one if meter else of_all)
    if json_output:
        console.print_json(shown)
        return
    for name in ("sent", "stored", "quarantined", "missing", "duplicate"):
        line(f"{name:<12} {shown[name]:>14}")
    if meter:
        _print_missing([shown])
        return
    line(f"{shown['meters']} meters count their messages, of {shown['meters_missing']} some are missing")
    _print_missing(shown["meters_with_missing"])


def completeness_command(
    day: Annotated[str | None, typer.Option("--day", help="A local day, YYYY-MM-DD; default: yesterday.")] = None,
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """Share of a day's intervals that are stored, by area: 8, 12 and 24 hours after its end, and now."""
    from db.completeness import intervals_of_day, taken_intervals
    from headend.edges.engineer_answers import area_intervals_to_api
    from prepaid.processes import calendar_of

    settings = settings_of(data)
    today = datetime.now(settings.zone).date()
    asked = read_day(day) if day else today - timedelta(days=1)
    if not date(2000, 1, 1) <= asked <= today:
        raise CountingRefused(f"day: expected 2000-01-01 to {today}, got {asked}")

    async def work(conn: AsyncConnection) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        taken = [area_intervals_to_api(each) for each in await taken_intervals(conn, asked)]
        now = await intervals_of_day(conn, asked, calendar_of(settings))
        return taken, [area_intervals_to_api(each) for each in now]

    taken, now = run(settings, work)
    if json_output:
        console.print_json({"day": str(asked), "taken": taken, "now": now})
        return
    line(f"{asked}  after  area                     meters   whole     expected      present   percent")
    for each in [*taken, *now]:
        after = f"{each['hour']} h" if "hour" in each else "now"
        line(
            f"{'':<10}  {after:<5}  {each['area'] or '(no area)':<20} {each['meters']:>10} {each['meters_whole']:>7}"
            f" {each['expected']:>12} {each['present']:>12} {each['percent']:>9}"
        )


def silent_command(
    hours: Annotated[
        int | None, typer.Option(min=1, max=8_784, help="For so many hours (PREPAID_SILENT_AFTER_H).")
    ] = None,
    area: Area = None,
    after: Annotated[int, typer.Option("--after", min=0, help="`next` of the page before.")] = 0,
    limit: Limit = ROWS_SHOWN,
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """Meters that are not heard of: last reading, last word, supply, since when their balance is not known."""
    from db.silence import list_silent, silent_by_area
    from headend.edges.engineer_answers import silent_to_api
    from headend.edges.watch import look_for_silence

    settings = settings_of(data)
    now = datetime.now(UTC)
    cutoff = now - timedelta(hours=hours or settings.silent_after_h)

    async def work(conn: AsyncConnection) -> dict[str, Any]:
        now_ms = time.time_ns() // 1_000_000
        await look_for_silence(conn, now_ms=now_ms, silent_after_h=settings.silent_after_h)
        found = await list_silent(conn, now=now, cutoff=cutoff, area=area, after=after, most=limit)
        return {
            "hours": hours or settings.silent_after_h,
            "areas_hours": settings.silent_after_h,
            "areas": [{"area": each.area, "meters": each.meters} for each in await silent_by_area(conn)],
            "meters": [silent_to_api(each) for each in found],
            "next": found[-1].meter_id if len(found) == limit else None,
        }

    shown = run(settings, work)
    if json_output:
        console.print_json(shown)
        return
    for each in shown["areas"]:
        line(f"{each['area'] or '(no area)':<24} {each['meters']:>8} silent for {shown['areas_hours']} h")
    if not shown["meters"]:
        line(f"no meter is silent for {shown['hours']} h")
    for each in shown["meters"]:
        supply = f"supply {each['supply_reported'] or 'not known'}, should be {each['supply_desired']}"
        unknown = each["balance_unknown_since"]
        line(
            f"{each['meter']:<16} {each['area'] or '(no area)':<16} last reading {each['last_reading'] or 'none'}, last"
            f" word {each['last_word'] or 'none'}, {supply}"
            + (f", balance not known since {unknown}" if unknown else "")
        )
    if shown["next"]:
        line(f"more with --after {shown['next']}")


def engineer_key_command(data: DataDir = None, json_output: Json = False) -> None:
    """Give an engineer an API key, which may look at every account and meter; shown once and not kept."""
    from prepaid.engineers import run_engineer_key

    key = run_engineer_key(settings_of(data))
    if json_output:
        console.print_json({"api_key": key})
    else:
        line(f"engineer, API key (shown once): {key}")


def _broken(found: Iterable[Any]) -> str:  # Counts of shards.
    wrong = ", ".join(str(each.shard) for each in found if not each.adds_up)
    return f"DOES NOT ADD UP in shards {wrong}"


def _recounted(shown: dict[str, Any]) -> str:
    parts = (f"{name} {shown[name]['counted']} counted, {shown[name]['there']} there" for name in list(shown)[1:])
    return "; ".join(parts) + ("" if shown["adds_up"] else ": DOES NOT ADD UP")


def _print_missing(meters: Iterable[dict[str, Any]]) -> None:
    for each in meters:
        if each["since"] is None:
            line(f"{each['meter']:<16} has sent no numbered message")
            continue
        ranges = [f"{span['first']}-{span['last']}" for span in each["missing_ranges"]]
        more = f" and {len(ranges) - RANGES_SHOWN} more ranges" if len(ranges) > RANGES_SHOWN else ""
        old = f", {each['missing_not_named']} long ago" if each["missing_not_named"] else ""
        line(
            f"{each['meter']:<16} sent {each['sent']} since {each['since']}, missing {each['missing']}"
            + (f": {' '.join(ranges[-RANGES_SHOWN:])}" if ranges else "")
            + more
            + old
        )
