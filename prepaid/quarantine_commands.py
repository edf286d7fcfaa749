"""`prepaid quarantine`: what was held, why, and what an engineer does about it.

Stage: the command line's outermost layer, as in `__main__`. Releasing or rejecting needs a reason and a name, which are
kept; a release is planned by the ingest process that owns the shard, within a moment.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from psycopg import AsyncConnection

from headend.rules import Reason
from prepaid import console
from prepaid.settings import PrepaidError, Settings, load_settings

if TYPE_CHECKING:
    from db.quarantine import DeskAction, HeldRow
    from db.validation_rules import NotedFlag

T = TypeVar("T")

quarantine_app = typer.Typer(help="Readings that were held: look, release, reject.", no_args_is_help=True)

WHY_LENGTH_MAX = 200
NAME_LENGTH_MAX = 64
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
Since = Annotated[str | None, typer.Option(help="Only what came since, as 2026-11-22T06:00+05:30 or a day (UTC).")]
By = Annotated[str, typer.Option("--by", help="Who: the name is kept.")]
Why = Annotated[str, typer.Option("--why", help="Why; kept with the row.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
DataDir = Annotated[Path | None, typer.Option("--data", help="Folder of the embedded parts (PREPAID_DATA_DIR).")]


class QuarantineCommandRefused(PrepaidError):
    """Arguments of a quarantine command that do not fit."""

    code = "quarantine_command_refused"


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
    since_at, rule = _instant(since), _rule(reason)

    async def work(conn: AsyncConnection) -> tuple[list[HeldRow], list[tuple[str, str, int, int]]]:
        rows = await list_quarantine(
            conn, state=wanted, reason=rule, serial=serial, since=since_at, before=before, most=ROWS_SHOWN
        )
        return rows, await quarantine_totals(conn)

    rows, totals = _run(data, work)
    if json_output:
        counts = [{"state": s, "reason": r, "rows": number, "times": times} for s, r, number, times in totals]
        console.print_json({"rows": [_shown(row) for row in rows], "totals": counts, "next_before": _next(rows)})
        return
    for row in rows:
        console.out.print(_line(row), markup=False)
    if _next(rows) is not None:
        console.out.print(f"more: --before {_next(rows)}", markup=False)


@quarantine_app.command(name="show")
def show_command(
    row_id: Annotated[int, typer.Argument(help="The row's number.")], data: DataDir = None, json_output: Json = False
) -> None:
    """One row with its bytes and everything that was done to it."""
    from db.quarantine import show_quarantine

    row, raw, actions = _run(data, lambda conn: show_quarantine(conn, row_id))
    if json_output:
        console.print_json({**_shown(row), "raw_hex": raw.hex(), "actions": [_action(each) for each in actions]})
        return
    for name, value in _shown(row).items():
        console.out.print(f"{name:<10} {value}", markup=False)
    console.out.print(f"{'bytes':<10} {len(raw)}: {raw[:RAW_SHOWN]!r}", markup=False)
    for each in actions:
        told = " as reset" if each.as_reset else ""
        console.out.print(f"{each.at:%Y-%m-%d %H:%M:%S} {each.action}{told} {each.by_whom or 'ingest'}: {each.why}")


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
        raise QuarantineCommandRefused(
            "as: expected read or reset, got swap: another meter's register is not this one's energy; reject the"
            " reading, register the meter that stands there under its own serial and install it from that instant"
        )
    name, words, as_reset = _words("by", by, NAME_LENGTH_MAX), _words("why", why, WHY_LENGTH_MAX), as_ is As.RESET
    chosen = _chooser(ids, reason, serial, since)

    async def work(conn: AsyncConnection) -> list[int]:
        return await release(conn, await chosen(conn), by=name, why=words, as_reset=as_reset)

    _print_decided("released", _run(data, work), json_output)


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

    name, words = _words("by", by, NAME_LENGTH_MAX), _words("why", why, WHY_LENGTH_MAX)
    chosen = _chooser(ids, reason, serial, since)

    async def work(conn: AsyncConnection) -> list[int]:
        return await reject(conn, await chosen(conn), by=name, why=words)

    _print_decided("rejected", _run(data, work), json_output)


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

    wanted, since_at = _rule(rule), _instant(since)

    async def work(conn: AsyncConnection) -> list[NotedFlag]:
        return await noted_flags(conn, rule=wanted, serial=serial, since=since_at, most=ROWS_SHOWN, skip=skip)

    found = _run(data, work)
    if json_output:
        console.print_json({"flags": [_flag(each) for each in found]})
        return
    for each in found:
        told = f"expected {each.expected}, got {each.got}"
        console.out.print(f"{each.at:%Y-%m-%d %H:%M} {each.severity:<7} {each.rule:<15} {each.serial:<16} {told}")
    if len(found) == ROWS_SHOWN:
        console.out.print(f"more: --skip {skip + ROWS_SHOWN}", markup=False)


def _chooser(
    ids: list[int] | None, reason: str | None, serial: str | None, since: str | None
) -> Callable[[AsyncConnection], Awaitable[list[int]]]:
    """Return how rows are chosen: by number, or held ones by rule, meter and time; never simply all."""
    from db.quarantine import list_quarantine

    rule, since_at = _rule(reason), _instant(since)
    if bool(ids) == any((rule, serial, since_at)):
        raise QuarantineCommandRefused("rows: expected either numbers or some of --reason, --serial and --since")

    async def chosen(conn: AsyncConnection) -> list[int]:
        if ids:
            return ids
        rows = await list_quarantine(conn, reason=rule, serial=serial, since=since_at, most=ROWS_DECIDED_MAX)
        return [row.id for row in rows]

    return chosen


def _print_decided(state: str, ids: list[int], json_output: bool) -> None:
    if json_output:
        console.print_json({"state": state, "ids": ids})
    else:
        console.out.print(f"{state}: {len(ids)} rows that were held", markup=False)


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


def _line(row: HeldRow) -> str:
    read_at = f"{row.read_at:%Y-%m-%d %H:%M}" if row.read_at else "-"
    whose = f"{row.reason:<19} {row.serial or '-':<16}"
    return f"{row.id:>8} {row.severity:<7} {whose} {read_at:<16} x{row.times} {row.detail}"


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
        raise QuarantineCommandRefused(f"reason: expected one of {', '.join(Reason)}, got {name!r}")
    return name


def _instant(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise QuarantineCommandRefused(f"since: expected a time or day as in ISO 8601, got {text!r}") from None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _words(name: str, text: str, length_max: int) -> str:
    stripped = text.strip()
    if not stripped.isprintable() or not 0 < len(stripped) <= length_max:
        raise QuarantineCommandRefused(f"{name}: expected 1 to {length_max} printable characters, got {len(stripped)}")
    return stripped


def _run(data: Path | None, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
    from prepaid.administration import on_database

    return on_database(_settings(data), work)


def _settings(data: Path | None) -> Settings:
    settings = load_settings()
    if data is not None:
        settings = settings.model_copy(update={"data_dir": data})
    console.configure_logs(settings.log_level)
    return settings
