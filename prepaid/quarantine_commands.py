"""`prepaid quarantine`: what was held, why, and what an engineer does about it.

Stage: the command line's outermost layer, as in `__main__`. Releasing or rejecting needs a reason and a name, which are
kept; a release is planned by the ingest process that owns the shard, within a moment.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer
from psycopg import AsyncConnection

from headend.rules import Reason
from prepaid import console
from prepaid.arguments import (
    By,
    CommandRefused,
    DataDir,
    Json,
    line,
    local,
    read_instant,
    read_name,
    read_words,
    run,
    settings_of,
)
from prepaid.settings import Settings

if TYPE_CHECKING:
    from db.quarantine import DeskAction, HeldRow
    from db.validation_rules import NotedFlag

quarantine_app = typer.Typer(help="Readings that were held: look, release, reject.", no_args_is_help=True)

# What fits a few screens.
ROWS_SHOWN = 100
# One transaction; the owner of a shard stores 500 at a time.
ROWS_DECIDED_MAX = 10_000
# Of a frame of up to 64 kB, what a person looks at.
RAW_SHOWN = 2_000


class As(StrEnum):
    """How a register that fell is accepted."""

    READ = "read"
    RESET = "reset"
    SWAP = "swap"


Ids = Annotated[list[int] | None, typer.Argument(help="Numbers of rows; or choose by the options.")]
Rule = Annotated[str | None, typer.Option("--reason", help="Only rows held for this rule.")]
Serial = Annotated[str | None, typer.Option(help="Only this meter.")]
Since = Annotated[str | None, typer.Option(help="Only what came since: a day, or as 2026-11-22T06:00+05:30.")]
Why = Annotated[str, typer.Option("--why", help="Why; kept with the row.")]


@quarantine_app.command(name="list")
def list_command(
    reason: Rule = None,
    serial: Serial = None,
    since: Since = None,
    state: Annotated[str, typer.Option(help="held, released, stored, duplicate, rejected or all.")] = "held",
    before: Annotated[int | None, typer.Option(help="Go on before this number.")] = None,
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """Rows, newest first, and how many stand in each state."""
    from db.quarantine import list_quarantine, quarantine_totals

    wanted = None if state == "all" else state
    settings, rule = settings_of(data), _rule(reason)
    since_at = read_instant("since", since, settings)

    async def work(conn: AsyncConnection) -> tuple[list[HeldRow], list[tuple[str, str, int, int]]]:
        rows = await list_quarantine(
            conn, state=wanted, reason=rule, serial=serial, since=since_at, before=before, most=ROWS_SHOWN
        )
        return rows, await quarantine_totals(conn)

    rows, totals = run(settings, work)
    if json_output:
        counts = [{"state": s, "reason": r, "rows": number, "times": times} for s, r, number, times in totals]
        console.print_json({"rows": [_shown(row) for row in rows], "totals": counts, "next_before": _next(rows)})
        return
    for row in rows:
        line(_line(row, settings))
    if _next(rows) is not None:
        line(f"more: --before {_next(rows)}")
    line(f"{'state':<10}{'rule':<20}{'rows':>8}{'times':>8}" if totals else "nothing was ever held")
    for row_state, row_reason, number, times in totals:
        line(f"{row_state:<10}{row_reason:<20}{number:>8}{times:>8}")


@quarantine_app.command(name="show")
def show_command(
    row_id: Annotated[int, typer.Argument(help="The row's number.")], data: DataDir = None, json_output: Json = False
) -> None:
    """One row with its bytes and everything that was done to it."""
    from db.quarantine import show_quarantine

    settings = settings_of(data)
    row, raw, actions = run(settings, lambda conn: show_quarantine(conn, row_id))
    if json_output:
        console.print_json({**_shown(row), "raw_hex": raw.hex(), "actions": [_action(each) for each in actions]})
        return
    for name, value in _shown(row).items():
        line(f"{name:<10} {value}")
    line(f"{'bytes':<10} {len(raw)}: {raw[:RAW_SHOWN]!r}")
    for each in actions:
        told = " as reset" if each.as_reset else ""
        line(f"{local(each.at, settings)} {each.action}{told} {each.by_whom or 'ingest'}: {each.why}")


@quarantine_app.command(name="release")
def release_command(
    by: By,
    why: Why,
    ids: Ids = None,
    as_: Annotated[As, typer.Option("--as", help="How a register that fell is accepted.")] = As.READ,
    reason: Rule = None,
    serial: Serial = None,
    since: Since = None,
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """Let held readings be stored and charged as if they had come in time, passing the rule they were held for."""
    from db.quarantine import release

    if as_ is As.SWAP:
        raise CommandRefused(
            "as: expected read or reset, got swap: another meter's register is not this one's energy; reject the"
            " reading, register the meter that stands there under its own serial and install it from that instant"
        )
    settings, as_reset = settings_of(data), as_ is As.RESET
    name, words = read_name(by), read_words("why", why)
    chosen = _chooser(ids, reason, serial, read_instant("since", since, settings))

    async def work(conn: AsyncConnection) -> list[int]:
        return await release(conn, await chosen(conn), by=name, why=words, as_reset=as_reset)

    _print_decided("released", run(settings, work), json_output)


@quarantine_app.command(name="reject")
def reject_command(
    by: By,
    why: Why,
    ids: Ids = None,
    reason: Rule = None,
    serial: Serial = None,
    since: Since = None,
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """Close held rows for good; their bytes stay."""
    from db.quarantine import reject

    settings = settings_of(data)
    name, words = read_name(by), read_words("why", why)
    chosen = _chooser(ids, reason, serial, read_instant("since", since, settings))

    async def work(conn: AsyncConnection) -> list[int]:
        return await reject(conn, await chosen(conn), by=name, why=words)

    _print_decided("rejected", run(settings, work), json_output)


@quarantine_app.command(name="flags")
def flags_command(
    rule: Annotated[str | None, typer.Option("--rule", help="Only what this rule noted.")] = None,
    serial: Serial = None,
    since: Since = None,
    skip: Annotated[int, typer.Option(min=0, help="Leave out so many.")] = 0,
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """What rules noted of readings that are stored, newest first: once a meter, rule and local day."""
    from db.validation_rules import noted_flags

    settings, wanted = settings_of(data), _rule(rule)
    since_at = read_instant("since", since, settings)

    async def work(conn: AsyncConnection) -> list[NotedFlag]:
        return await noted_flags(conn, rule=wanted, serial=serial, since=since_at, most=ROWS_SHOWN, skip=skip)

    found = run(settings, work)
    if json_output:
        console.print_json({"flags": [_flag(each) for each in found]})
        return
    for each in found:
        told = f"expected {each.expected}, got {each.got}"
        line(f"{local(each.at, settings)} {each.severity:<7} {each.rule:<15} {each.serial:<16} {told}")
    if len(found) == ROWS_SHOWN:
        line(f"more: --skip {skip + ROWS_SHOWN}")


def _chooser(
    ids: list[int] | None, reason: str | None, serial: str | None, since: datetime | None
) -> Callable[[AsyncConnection], Awaitable[list[int]]]:
    """Return how rows are chosen: by number, or held ones by rule, meter and time; never simply all."""
    from db.quarantine import list_quarantine

    rule = _rule(reason)
    if bool(ids) == any((rule, serial, since)):
        raise CommandRefused("rows: expected either numbers or some of --reason, --serial and --since")

    async def chosen(conn: AsyncConnection) -> list[int]:
        if ids:
            return ids
        rows = await list_quarantine(conn, reason=rule, serial=serial, since=since, most=ROWS_DECIDED_MAX)
        return [row.id for row in rows]

    return chosen


def _print_decided(state: str, ids: list[int], json_output: bool) -> None:
    if json_output:
        console.print_json({"state": state, "ids": ids})
    else:
        line(f"{state}: {len(ids)} of what was held")


def _shown(row: HeldRow) -> dict[str, object]:
    return {
        "id": row.id,
        "state": row.state,
        "reason": row.reason,
        "severity": row.severity,
        "serial": row.serial,
        "topic": row.topic,
        "read_at": row.read_at.isoformat() if row.read_at else None,
        "item": row.item,
        "detail": row.detail,
        "times": row.times,
        "first_at": row.first_at.isoformat(),
        "last_at": row.last_at.isoformat(),
        "shard": row.shard,
        "as_reset": row.as_reset,
    }


def _line(row: HeldRow, settings: Settings) -> str:
    read_at = local(row.read_at, settings) if row.read_at else "-"
    whose = f"{row.reason:<19} {row.serial or '-':<16}"
    return f"{row.id:>8} {row.severity:<7} {whose} {read_at:<25} x{row.times} {row.detail}"


def _action(each: DeskAction) -> dict[str, object]:
    return {
        "action": each.action,
        "by": each.by_whom,
        "why": each.why,
        "as_reset": each.as_reset,
        "at": each.at.isoformat(),
    }


def _flag(each: NotedFlag) -> dict[str, object]:
    return {
        "serial": each.serial,
        "rule": each.rule,
        "severity": each.severity,
        "day": str(each.day),
        "at": each.at.isoformat(),
        "expected": each.expected,
        "got": each.got,
    }


def _next(rows: list[HeldRow]) -> int | None:
    return rows[-1].id if len(rows) == ROWS_SHOWN else None


def _rule(name: str | None) -> str | None:
    if name is not None and name not in {reason.value for reason in Reason}:
        raise CommandRefused(f"reason: expected one of {', '.join(Reason)}, got {name!r}")
    return name
