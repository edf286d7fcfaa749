"""`prepaid storage` and `prepaid rollup`: where readings lie, what they take, how long they stay, what is rolled up.

Stage: the command line's outermost layer, as in `__main__`. The watch rolls up and retains by itself; these commands
show it, or do it now.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer
from psycopg import AsyncConnection

from prepaid import console
from prepaid.arguments import DataDir, Json, line, run, settings_of

if TYPE_CHECKING:
    from db.storage import Packed, Partition
    from db.storage_retention import RetentionReport

storage_app = typer.Typer(help="Where readings lie, what they take, and what is dropped.", no_args_is_help=True)

DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")]


@storage_app.command()
def status(data: DataDir = None, json_output: Json = False) -> None:
    """Partitions, bytes per reading hot and cold, what is rolled up, and what would be dropped today."""
    from db.rollups import read_behind
    from db.storage import read_sizes, store_of
    from db.storage_classes import parse_retention
    from db.storage_retention import retain
    from prepaid.processes import calendar_of

    settings = settings_of(data)

    async def work(conn: AsyncConnection) -> dict[str, object]:
        store = await store_of(conn)
        partitions = await store.partitions(conn)
        waiting, since = await read_behind(conn)
        would = await retain(
            conn,
            parse_retention(settings.retention),
            now=datetime.now(UTC),
            calendar=calendar_of(settings),
            dry_run=True,
        )
        sizes = await read_sizes(conn)
        return {
            "store": store.name,
            "readings": _summary([each for each in partitions if each.table == "readings"]),
            "rollup_hours": _summary([each for each in partitions if each.table == "rollup_hours"]),
            "rollup_days": _summary([each for each in partitions if each.table == "rollup_days"]),
            "tables": {name: {"rows": rows, "bytes": size} for name, (rows, size) in sizes.items()},
            "rollups_behind": {"spans": waiting, "since": since and since.isoformat()},
            "would_drop": _retention_shown(would),
        }

    shown = run(settings, work)
    if json_output:
        console.print_json(shown)
    else:
        _print_status(shown)


@storage_app.command()
def compress(data: DataDir = None, json_output: Json = False) -> None:
    """Pack readings that nobody writes any more. Plain PostgreSQL does not compress: it only packs."""
    from db.storage import store_of, to_pack

    settings = settings_of(data)

    async def work(conn: AsyncConnection) -> tuple[str, list[Packed]]:
        store = await store_of(conn)
        due = to_pack(await store.partitions(conn), datetime.now(UTC))
        return store.name, [await store.pack(conn, each) for each in due]

    name, packed = run(settings, work)
    if json_output:
        console.print_json(
            {"store": name, "compresses": name != "postgresql", "packed": [asdict(each) for each in packed]}
        )
        return
    if name == "postgresql":
        line("plain PostgreSQL does not compress: older readings are written anew in the order of their key")
    for each in packed:
        if each.bytes_before is None or each.bytes_after is None:
            line(f"{each.name}  in use, left as it is")
        else:
            line(f"{each.name}  {_megabytes(each.bytes_before)} -> {_megabytes(each.bytes_after)}")
    line(f"partitions packed: {sum(1 for each in packed if each.bytes_after is not None)}")


@storage_app.command()
def retain(data: DataDir = None, dry_run: DryRun = False, json_output: Json = False) -> None:
    """Drop what is older than its class is kept and needed by nobody."""
    from db.storage_classes import parse_retention
    from db.storage_retention import retain as drop_old
    from prepaid.processes import calendar_of

    settings = settings_of(data)

    async def work(conn: AsyncConnection) -> RetentionReport:
        return await drop_old(
            conn,
            parse_retention(settings.retention),
            now=datetime.now(UTC),
            calendar=calendar_of(settings),
            dry_run=dry_run,
        )

    report = run(settings, work)
    if json_output:
        console.print_json({"dry_run": dry_run, **_retention_shown(report)})
        return
    verb = "would drop" if dry_run else "dropped"
    for each in report.dropped:
        freed = "" if each.freed_bytes is None else f", {_megabytes(each.freed_bytes)}"
        line(f"{verb} {each.partition or each.kind.value}: {each.rows} rows before {each.before_at:%F}{freed}")
    for stay in report.stays:
        line(f"stays {stay.partition}: {stay.why}")
    if not report.dropped:
        line("nothing is old enough to be dropped")


def rollup_command(data: DataDir = None, json_output: Json = False) -> None:
    """Roll up readings by local hour, day and month now: what is new, and what changed behind it."""
    from db.rollups import RolledUp, RollupSweep
    from prepaid.processes import calendar_of

    settings = settings_of(data)

    async def work(conn: AsyncConnection) -> RolledUp:
        return await RollupSweep(calendar=calendar_of(settings)).run(conn)

    done = run(settings, work)
    if json_output:
        console.print_json(asdict(done))
    else:
        rest = "" if done.whole else "; another sweep has the rest"
        line(f"rolled up {done.hours} hours of {done.blocks} blocks of meters{rest}")


def _summary(partitions: Sequence[Partition]) -> dict[str, object]:
    filled = [each for each in partitions if each.rows]
    return {
        "partitions": len(partitions),
        "packed": sum(1 for each in partitions if each.packed),
        "rows": sum(each.rows for each in filled),
        "bytes": sum(each.total_bytes for each in partitions),
        "oldest": min((each.first_at.date().isoformat() for each in filled), default=None),
        "newest": max((each.first_at.date().isoformat() for each in filled), default=None),
        "bytes_per_row_hot": _per_row(each for each in filled if not each.packed),
        "bytes_per_row_cold": _per_row(each for each in filled if each.packed),
    }


def _per_row(partitions: Iterable[Partition]) -> dict[str, float] | None:
    """Return table and index bytes for each row; None without any."""
    found = list(partitions)
    rows = sum(each.rows for each in found)
    if not rows:
        return None
    return {
        "table": round(sum(each.table_bytes for each in found) / rows, 1),
        "index": round(sum(each.index_bytes for each in found) / rows, 1),
        "total": round(sum(each.total_bytes for each in found) / rows, 1),
    }


def _retention_shown(report: RetentionReport) -> dict[str, object]:
    return {
        "dropped": [
            {
                "class": each.kind.value,
                "partition": each.partition,
                "before": each.before_at.isoformat(),
                "rows": each.rows,
                "bytes": each.freed_bytes,
            }
            for each in report.dropped
        ],
        "stays": [asdict(each) for each in report.stays],
    }


def _print_status(shown: dict[str, object]) -> None:
    line(f"store {shown['store']}")
    for name in ("readings", "rollup_hours", "rollup_days"):
        each = shown[name]
        assert isinstance(each, dict), "a summary is a table"
        line(
            f"{name:<13} {each['rows']} rows in {each['partitions']} partitions, {each['oldest']} to {each['newest']},"
            f" {_megabytes(each['bytes'])}"
        )
        for kind in ("hot", "cold"):
            per = each[f"bytes_per_row_{kind}"]
            told = f"{per['total']} bytes a row ({per['table']} + index {per['index']})" if per else "none"
            line(f"{'':<13} {kind}: {told}")
    tables = shown["tables"]
    assert isinstance(tables, dict), "sizes are a table"
    for name, size in tables.items():
        line(f"{name:<13} {size['rows']} rows, {_megabytes(size['bytes'])}")
    behind = shown["rollups_behind"]
    assert isinstance(behind, dict), "what is behind is a table"
    line(f"changed spans that wait to be rolled up: {behind['spans']}")
    would = shown["would_drop"]
    assert isinstance(would, dict), "what would go is a table"
    line(f"would be dropped today: {len(would['dropped'])}; old enough but needed: {len(would['stays'])}")


def _megabytes(size: int) -> str:
    return f"{size / 1_000_000:.1f} MB"
