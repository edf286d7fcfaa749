"""`prepaid supply`: is supply as it should be, what waits and for what, and cut-offs on hold let go.

Stage: the command line's outermost layer, as in `__main__`. Reads what `db.order_control` counts; `release` is the one
command that changes something, and keeps who gave it and why.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeVar

import typer
from psycopg import AsyncConnection

from prepaid import console
from prepaid.arguments import DataDir, Json, run, settings_of
from prepaid.settings import PrepaidError
from prepaid.supply_hold_commands import exempt_app, hold_app

if TYPE_CHECKING:
    from db.order_control import LimitedArea, OrderRow, SupplyStatus

T = TypeVar("T")

supply_app = typer.Typer(help="Supply: desired and reported, orders, holds.", no_args_is_help=True)
supply_app.add_typer(hold_app, name="hold")
supply_app.add_typer(exempt_app, name="exempt")

# What fits a few screens; and what one JSON object may hold.
ROWS_SHOWN, ROWS_SHOWN_MAX = 50, 10_000
HOURS_MAX = 24 * 31
WORDS_LENGTH_MAX = 200
IMPOSSIBLE_SHOWN = "not possible for this make"

Area = Annotated[str | None, typer.Option("--area", help="Only this area.")]
Limit = Annotated[int, typer.Option("--limit", min=1, max=ROWS_SHOWN_MAX, help="Rows at most.")]


class SupplyCommandRefused(PrepaidError):
    """Arguments of a supply command that do not fit."""

    code: ClassVar[str] = "supply_command_refused"


class State(StrEnum):
    """States of an order, as `--state` takes them; `open` is any that no meter has confirmed."""

    OPEN = "open"
    PENDING = "pending"
    HELD = "held"
    SENT = "sent"
    CONFIRMED = "confirmed"
    SUPERSEDED = "superseded"
    IMPOSSIBLE = "impossible"


@supply_app.command(name="status")
def status_command(
    hours: Annotated[int, typer.Option(min=1, max=HOURS_MAX, help="Success by make over so many hours.")] = 24,
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """Supply desired against reported, open orders, the oldest unconfirmed, success by make, areas held back."""
    from db.order_control import read_status

    async def work(conn: AsyncConnection) -> SupplyStatus:
        return await read_status(conn, hours=hours)

    status = run(settings_of(data), work)
    if json_output:
        console.print_json(_status_to_api(status, hours))
        return
    _print_status(status, hours)


@supply_app.command(name="held")
def held_command(area: Area = None, limit: Limit = ROWS_SHOWN, data: DataDir = None, json_output: Json = False) -> None:
    """Areas whose cut-offs a limit holds back, and orders that wait for something else than their meter's answer."""
    from db.order_control import limited_areas, list_held

    async def work(conn: AsyncConnection) -> tuple[list[LimitedArea], list[OrderRow]]:
        areas = [each for each in await limited_areas(conn) if area is None or each.area == area]
        return areas, await list_held(conn, area=area, most=limit)

    areas, orders = run(settings_of(data), work)
    if json_output:
        console.print_json({"areas": [_to_api(each) for each in areas], "orders": [_to_api(each) for each in orders]})
        return
    _print_areas(areas)
    _print_orders(orders)


@supply_app.command(name="orders")
def orders_command(
    meter: Annotated[str | None, typer.Option("--meter", help="Only this meter's.")] = None,
    state: Annotated[State | None, typer.Option("--state", help="Only in this state.")] = None,
    area: Area = None,
    limit: Limit = ROWS_SHOWN,
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """Orders to meters, the newest first."""
    from db.order_control import list_orders

    states = None if state is None else ["pending", "held", "sent"] if state is State.OPEN else [state.value]

    async def work(conn: AsyncConnection) -> list[OrderRow]:
        return await list_orders(conn, serial=meter, states=states, area=area, most=limit)

    orders = run(settings_of(data), work)
    if json_output:
        console.print_json({"orders": [_to_api(each) for each in orders]})
        return
    _print_orders(orders)


@supply_app.command(name="release")
def release_command(
    area: Annotated[str, typer.Option("--area", help="The area whose cut-offs are on hold.")],
    by: Annotated[str, typer.Option("--by", help="Who releases them; kept.")],
    reason: Annotated[str, typer.Option("--reason", help="Why; kept.")],
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """Let the held cut-offs of an area go, at the pace of the minute's limit; the hour's count begins again."""
    from db.order_control import release_area

    name, words = _words("by", by), _words("reason", reason)

    async def work(conn: AsyncConnection) -> int:
        return await release_area(conn, area, by=name, reason=words)

    waiting = run(settings_of(data), work)
    if json_output:
        console.print_json({"area": area, "waiting": waiting, "released_by": name, "reason": words})
    else:
        console.out.print(f"area {area}: {waiting} cut-offs may go", markup=False)


def _words(name: str, text: str) -> str:
    words = " ".join(text.split())
    if not 0 < len(words) <= WORDS_LENGTH_MAX:
        raise SupplyCommandRefused(f"{name}: expected 1 to {WORDS_LENGTH_MAX} characters, got {len(words)}")
    return words


def _to_api(row: Any) -> dict[str, object]:  # Any of the dataclasses of db.order_control.
    return {name: value.isoformat() if isinstance(value, datetime) else value for name, value in asdict(row).items()}


def _status_to_api(status: SupplyStatus, hours: int) -> Mapping[str, object]:
    return {
        "desired_and_reported": status.matrix,
        "differing": status.differing,
        "orders": [_to_api(each) for each in status.orders.counts],
        "orders_differing": status.orders.differing,
        "oldest_unconfirmed": [_to_api(each) for each in status.oldest],
        "success_hours": hours,
        "makes": [_to_api(each) for each in status.makes],
        "areas": [_to_api(each) for each in status.areas],
        "ended": [_to_api(each) for each in status.ended],
    }


def _print_status(status: SupplyStatus, hours: int) -> None:
    _line("desired  reported     accounts")
    for desired, reports in status.matrix.items():
        for reported, count in reports.items():
            _line(f"{desired:<8} {reported:<10} {count:>10}")
    _line(f"accounts whose meter does not report what is desired: {status.differing}")
    _line("")
    _line("open orders")
    for each in status.orders.counts:
        waits = _waits(each.waits_for)
        what = f"{each.kind} {each.relay or ''}".strip()
        _line(f"  {what:<14} {each.state:<8} {each.count:>8}, oldest {_age(each.oldest_s)}{waits}")
    if not status.orders.counts:
        _line("  none")
    for late in status.oldest:
        made = f" ({late.make})" if late.make else ""
        _line(
            f"  oldest unconfirmed: order {late.id}, {late.relay}, meter {late.serial}{made}, {_age(late.age_s)},"
            f" {late.attempts} tries, because of {late.cause}"
        )
    _line("")
    _line(f"supply orders first sent within {hours} h")
    for make in status.makes:
        median = "" if make.median_ms is None else f", half within {make.median_ms} ms, 95 % within {make.p95_ms} ms"
        _line(
            f"  {make.make or '(no make)':<16} sent {make.sent}, confirmed {make.confirmed}, superseded"
            f" {make.superseded}, open {make.open}, {IMPOSSIBLE_SHOWN} {make.impossible},"
            f" ordered again {make.again}{median}"
        )
    _line("")
    _print_areas(status.areas)
    for past in status.ended:
        who = f", released by {past.ended_by}: {past.reason}" if past.ended_by else ""
        _line(f"  {past.area} was {past.kind} from {past.raised_at:%F %T} to {past.ended_at:%F %T} UTC{who}")


def _print_areas(areas: Sequence[LimitedArea]) -> None:
    _line("areas whose cut-offs are held back" if areas else "no area's cut-offs are held back by a limit")
    for each in areas:
        until = "until somebody releases them" if each.kind == "held" else "at the minute's pace"
        _line(
            f"  {each.area or '(no area)'}: {each.kind} since {each.raised_at:%F %T} UTC, {each.sent} of {each.most}"
            f" had left, {each.waiting} wait {until}"
        )


def _print_orders(orders: Iterable[OrderRow]) -> None:
    for order in orders:
        what = f"{order.kind} {order.relay or order.level or ''}".strip()
        waits = _waits("impossible" if order.state == "impossible" else order.waits_for)
        later = f", next try {order.next_try_at:%F %T}" if order.next_try_at else ""
        done = f", confirmed {order.confirmed_at:%F %T}" if order.confirmed_at else ""
        _line(
            f"{order.id:>8}  {order.serial:<16} {what:<14} {order.state:<10} epoch {order.epoch}, {order.attempts}"
            f" tries, ordered {order.created_at:%F %T} because of {order.cause}{done}{waits}{later}"
        )


def _waits(waits_for: str | None) -> str:
    if waits_for is None:
        return ""
    return f", {IMPOSSIBLE_SHOWN}" if waits_for == "impossible" else f", waits for {waits_for}"


def _line(text: str) -> None:
    console.out.print(text, markup=False)


def _age(seconds: int) -> str:
    minutes, rest_s = divmod(max(seconds, 0), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest_s} s" if minutes else f"{rest_s} s"
