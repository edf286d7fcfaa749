"""`prepaid notices`: what consumers were told, by which way, and what could not be delivered.

Stage: the command line's outermost layer, as in `__main__`. Reads rows and prints them; `retry` gives dead messages
another day of tries.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from billing.notices import Language
from db.notices import (
    DeadDelivery,
    DeliveryRow,
    ListedNotice,
    StateCount,
    dead_deliveries,
    deliveries_of,
    delivery_states,
    list_notices,
    retry_dead,
    unplanned,
)
from prepaid import console
from prepaid.arguments import DataDir, Json, settings_of
from prepaid.settings import Settings

if TYPE_CHECKING:
    from psycopg import AsyncConnection

notices_app = typer.Typer(help="What consumers were told, and what became of each message.", no_args_is_help=True)

Limit = Annotated[int, typer.Option(min=1, max=100_000, help="Rows at most, the newest first.")]


@notices_app.command(name="list")
def list_command(
    number: Annotated[str, typer.Argument(help="The account's number.")],
    language: Annotated[Language, typer.Option(help="In which language they are shown.")] = Language.ENGLISH,
    limit: Limit = 50,
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """What the consumer of an account was told, each with its ways and their states; tokens are masked."""
    notices, ways = run_list(settings_of(data), number, language, limit)
    if json_output:
        rows = [{**_plain(asdict(notice)), "deliveries": _rows(ways[notice.id])} for notice in notices]
        console.print_json({"account": number, "notices": rows})
        return
    for notice in notices:
        console.out.print(f"{notice.id}  {_instant(notice.created_at)}  {notice.kind}: {notice.body}", markup=False)
        for way in ways[notice.id]:
            console.out.print(f"    {_way_line(way)}", markup=False)


@notices_app.command(name="states")
def states_command(data: DataDir = None, json_output: Json = False) -> None:
    """How many messages are in which state by channel, and how many notices wait for their way."""
    counts, (waiting, since) = run_states(settings_of(data))
    if json_output:
        waits = {"count": waiting, "since": None if since is None else since.isoformat()}
        console.print_json({"deliveries": _rows(counts), "without_way": waits})
        return
    for each in counts:
        reason = f" ({each.reason})" if each.reason else ""
        line = f"{each.channel:<6} {each.state + reason:<24} {each.count:>9}  oldest {_instant(each.oldest_at)}"
        console.out.print(line, markup=False)
    since_text = "" if since is None else f", the oldest since {_instant(since)}"
    console.out.print(f"{waiting} notices wait for their way{since_text}", markup=False)


@notices_app.command(name="dead")
def dead_command(limit: Limit = 100, data: DataDir = None, json_output: Json = False) -> None:
    """Messages that could not be delivered, with the last error."""
    dead = run_dead(settings_of(data), limit)
    if json_output:
        console.print_json({"dead": _rows(dead)})
        return
    for each in dead:
        console.out.print(
            f"{each.id}  {_instant(each.created_at)}  account {each.account_number}  {each.kind}  {each.channel}"
            f" {each.address}  {each.attempts} tries: {each.last_error}",
            markup=False,
        )


@notices_app.command(name="retry")
def retry_command(
    ids: Annotated[list[int] | None, typer.Argument(help="Ids of dead messages, as `dead` prints them.")] = None,
    every: Annotated[bool, typer.Option("--all", help="All dead messages, up to 100,000.")] = False,
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """Try dead messages again under the same message ids, for a day; codes are not tried again."""
    if every == bool(ids):
        raise typer.BadParameter("expected ids or --all")
    retried = run_retry(settings_of(data), ids or [], every=every)
    if json_output:
        console.print_json({"retried": retried})
    else:
        console.out.print(f"{len(retried)} messages are tried again")


def run_list(
    settings: Settings, number: str, language: Language, limit: int
) -> tuple[list[ListedNotice], dict[int, list[DeliveryRow]]]:
    """Read an account's notices and their ways.

    Raises: UnknownAccount.
    """
    from prepaid.administration import known_account, on_database
    from prepaid.processes import calendar_of

    async def work(conn: AsyncConnection) -> tuple[list[ListedNotice], dict[int, list[DeliveryRow]]]:
        account_id = await known_account(conn, number)
        calendar = calendar_of(settings)
        notices = await list_notices(conn, account_id, language=language, calendar=calendar, limit=limit)
        return notices, await deliveries_of(conn, [notice.id for notice in notices])

    return on_database(settings, work)


def run_states(settings: Settings) -> tuple[list[StateCount], tuple[int, datetime | None]]:
    """Count messages by state, and notices without a way."""
    from prepaid.administration import on_database

    async def work(conn: AsyncConnection) -> tuple[list[StateCount], tuple[int, datetime | None]]:
        return await delivery_states(conn), await unplanned(conn)

    return on_database(settings, work)


def run_dead(settings: Settings, limit: int) -> list[DeadDelivery]:
    """Read dead messages."""
    from prepaid.administration import on_database

    async def work(conn: AsyncConnection) -> list[DeadDelivery]:
        return await dead_deliveries(conn, limit=limit)

    return on_database(settings, work)


def run_retry(settings: Settings, ids: Sequence[int], *, every: bool) -> list[int]:
    """Try dead messages again; return which."""
    from prepaid.administration import on_database

    async def work(conn: AsyncConnection) -> list[int]:
        chosen = [each.id for each in await dead_deliveries(conn, limit=100_000)] if every else list(ids)
        return await retry_dead(conn, chosen, now_ms=time.time_ns() // 1_000_000)

    return on_database(settings, work)


def _way_line(way: DeliveryRow) -> str:
    reason = f", {way.last_error}" if way.last_error else ""
    end = f" {_instant(way.sent_at)}" if way.sent_at else ""
    if way.state == "pending":
        end = f", next try {_instant(way.next_try_at)}"
    return f"{way.channel} {way.address or '-'}: {way.state}{end}, {way.attempts} tries{reason}"


def _rows(rows: Sequence[DeliveryRow] | Sequence[DeadDelivery] | Sequence[StateCount]) -> list[dict[str, object]]:
    return [_plain(asdict(row)) for row in rows]


def _plain(row: dict[str, Any]) -> dict[str, object]:
    # Columns of several types, instants in ISO form.
    return {name: value.isoformat() if isinstance(value, datetime) else value for name, value in row.items()}


def _instant(at: datetime) -> str:
    return at.isoformat(timespec="seconds")
