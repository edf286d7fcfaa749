"""`prepaid keys`: vending keys brought in by two people, looked at by their check values, and taken out.

Stage: the command line's outermost layer, as in `__main__`. A component comes from the keyboard without being shown,
from a file that nobody else can read, or from standard input; never from an argument, which every user of the machine
could see. What is printed is check values only.
"""

from __future__ import annotations

import getpass
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from billing.calendar import LocalCalendar
from billing.money import format_minor
from prepaid import console
from prepaid.arguments import By, CommandRefused, DataDir, Json, line, read_name, read_words, run, settings_of
from prepaid.settings import PrepaidError

if TYPE_CHECKING:
    from psycopg import AsyncConnection

    from db.keys import KeyEvent, KeyLoad, KeyRow
    from vending.edges.key_loads import JoinedKey

vending_keys_app = typer.Typer(
    help="Vending keys: two people bring one in; check values, limits.", no_args_is_help=True
)

# Far above 40 hexadecimal digits in groups.
_COMPONENT_CHARACTERS_MAX = 200
_EVENTS_SHOWN = 50
_NAMES = ("tokens", "minor", "tenths")

Sgc = Annotated[str, typer.Argument(help="Supply group code, 6 digits.")]
Krn = Annotated[int, typer.Argument(min=1, max=9, help="Key revision number.")]
ComponentFile = Annotated[
    Path | None,
    typer.Option("--component", help="File with the component, which nobody else can read; else it is asked for."),
]


class KeyCommandRefused(PrepaidError):
    """What key custody refuses; the message begins with its own code."""

    code = "key_command_refused"


@vending_keys_app.command()
def begin(
    sgc: Sgc, krn: Krn, by: By, component: ComponentFile = None, data: DataDir = None, json_output: Json = False
) -> None:
    """Enter the first component of a vending key; it waits, sealed, for a second person for 24 hours."""
    from prepaid.keys import master_key
    from vending.edges.key_loads import begin_load

    settings, name = settings_of(data), read_name(by)
    with _refusals():
        master = master_key(settings)
        part = _read_component(component)

        async def work(conn: AsyncConnection) -> str:
            return await begin_load(
                conn,
                master,
                sgc=sgc,
                krn=krn,
                component=part,
                by=name,
                now=datetime.now(UTC),
                allow_triple_des=settings.allow_dkga03,
            )

        check_value = run(settings, work)
    if json_output:
        console.print_json({"sgc": sgc, "krn": krn, "component_check_value": check_value, "begun_by": name})
    else:
        line(f"component of SGC {sgc} KRN {krn}: check value {check_value}; compare it with yours")
        line("the key is there once another person has completed it, within 24 hours")


@vending_keys_app.command()
def complete(
    sgc: Sgc,
    krn: Krn,
    by: By,
    component: ComponentFile = None,
    confirm: Annotated[
        str | None,
        typer.Option("--confirm", help="The key's check value, as it was given to you; else it is asked for."),
    ] = None,
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """Enter the second component as another person, confirm the key's check value, and store the key."""
    from prepaid.keys import master_key
    from vending.edges.key_loads import complete_load, look_at_load

    settings, name = settings_of(data), read_name(by)
    with _refusals():
        master = master_key(settings)
        part = _read_component(component)

        async def work(conn: AsyncConnection) -> JoinedKey:
            now = datetime.now(UTC)
            joined = await look_at_load(conn, master, sgc=sgc, krn=krn, component=part, by=name, now=now)
            console.err.print(f"your component: check value {joined.component_check_value}", markup=False)
            console.err.print(f"key of SGC {sgc} KRN {krn}: check value {joined.key_check_value}", markup=False)
            confirmed, now = _confirmed(confirm), datetime.now(UTC)
            await complete_load(conn, master, sgc=sgc, krn=krn, component=part, by=name, confirmed=confirmed, now=now)
            return joined

        joined = run(settings, work)
    if json_output:
        told = {"component_check_value": joined.component_check_value, "check_value": joined.key_check_value}
        console.print_json({"sgc": sgc, "krn": krn, **told, "begun_by": joined.begun_by, "completed_by": name})
    else:
        who = f"{joined.begun_by} and {name}"
        line(f"key of SGC {sgc} KRN {krn} stored, check value {joined.key_check_value}, by {who}")


@vending_keys_app.command()
def cancel(sgc: Sgc, krn: Krn, by: By, data: DataDir = None, json_output: Json = False) -> None:
    """Give up a load that waits for its second component, and erase the first."""
    from vending.edges.key_loads import cancel_load

    name = read_name(by)
    with _refusals():
        run(settings_of(data), lambda conn: cancel_load(conn, sgc=sgc, krn=krn, by=name, now=datetime.now(UTC)))
    if json_output:
        console.print_json({"sgc": sgc, "krn": krn, "cancelled_by": name})
    else:
        line(f"load of SGC {sgc} KRN {krn} given up, its component erased")


@vending_keys_app.command()
def retire(
    sgc: Sgc,
    krn: Krn,
    by: By,
    check_value: Annotated[str, typer.Option("--check-value", help="The key's, so that it is not another one.")],
    reason: Annotated[str, typer.Option("--reason", help="Why; kept for ever.")],
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """Take a vending key out, which no meter holds any more; running processes stop using it within seconds."""
    from vending.edges.key_loads import retire_key

    name, why = read_name(by), read_words("reason", reason)

    async def work(conn: AsyncConnection) -> None:
        now = datetime.now(UTC)
        await retire_key(conn, sgc=sgc, krn=krn, check_value=check_value, by=name, reason=why, now=now)

    with _refusals():
        run(settings_of(data), work)
    if json_output:
        console.print_json({"sgc": sgc, "krn": krn, "retired_by": name})
    else:
        line(f"key of SGC {sgc} KRN {krn} retired")


@vending_keys_app.command(name="list")
def list_command(data: DataDir = None, json_output: Json = False) -> None:
    """Show vending keys by their check values, and the loads that wait for a second person."""
    from db.keys import list_keys, list_loads
    from prepaid.keys import sta_tables
    from vending.edges.key_loads import erase_lapsed

    settings = settings_of(data)

    async def work(conn: AsyncConnection) -> tuple[list[KeyRow], list[KeyLoad]]:
        await erase_lapsed(conn, now=datetime.now(UTC))
        return await list_keys(conn), await list_loads(conn)

    with _refusals():
        keys, loads = run(settings, work)
        tables = sta_tables(settings)
    tables_name = None if tables is None else tables.name
    if json_output:
        waiting = [_shown_load(load) for load in loads]
        console.print_json({"keys": [_shown(key) for key in keys], "waiting": waiting, "ea07_tables": tables_name})
        return
    for key in keys:
        people = " and ".join(each for each in (key.loaded_by, key.loaded_beside) if each)
        when = f" {key.loaded_at:%Y-%m-%d %H:%M} UTC" if key.loaded_at else ""
        line(f"SGC {key.sgc} KRN {key.krn} DKGA{key.dkga:02d} {key.check_value} {people}{when}")
    for load in loads:
        line(
            f"SGC {load.sgc} KRN {load.krn} DKGA{load.dkga:02d} waits for a second person, begun by {load.begun_by}, "
            f"lapses {load.lapses_at:%Y-%m-%d %H:%M} UTC"
        )
    line(f"EA07: {tables_name or 'no tables, no tokens'}")


@vending_keys_app.command()
def history(
    limit: Annotated[int, typer.Option(min=1, max=1_000, help="How many, newest first.")] = _EVENTS_SHOWN,
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """Show what was done to vending keys, when and by whom."""
    from db.keys import list_key_events

    events: list[KeyEvent] = run(settings_of(data), lambda conn: list_key_events(conn, limit))
    if json_output:
        console.print_json({"events": [_shown(each) for each in events]})
        return
    for each in events:
        people = " and ".join(name for name in (each.by, each.beside) if name)
        why = f": {each.reason}" if each.reason else ""
        key = f"SGC {each.sgc} KRN {each.krn} {each.check_value}"
        line(f"{each.at:%Y-%m-%d %H:%M} UTC {key} {each.event} by {people}{why}")


@vending_keys_app.command()
def limits(data: DataDir = None, json_output: Json = False) -> None:
    """Show what the security module may make today, and what its processes have taken of it."""
    from db.risk import read_day
    from prepaid.keys import module_name, risk_limits

    settings = settings_of(data)
    name, most = module_name(settings), risk_limits(settings)
    today = LocalCalendar(settings.zone).day_of(int(datetime.now(UTC).timestamp() * 1000))
    taken = run(settings, lambda conn: read_day(conn, name, today))
    rows = {
        quantity: {"limit": limit, "taken": used, "left": None if limit is None else max(0, limit - used)}
        for quantity, limit, used in zip(_NAMES, (most.tokens, most.minor, most.tenths), taken, strict=True)
    }
    if json_output:
        console.print_json({"module": name, "day": str(today), **rows})
        return
    line(f"security module {name}, {today}")
    for quantity, row in rows.items():
        shown = {key: "none" if each is None else _amount(quantity, each) for key, each in row.items()}
        line(f"  {quantity:<7} limit {shown['limit']}, taken {shown['taken']}, left {shown['left']}")


@contextmanager
def _refusals() -> Iterator[None]:
    """Turn what key custody refuses into one line; the errors hold no key, and their traces are left out."""
    from vending.sts.errors import StsError
    from vending.vends import VendingError

    try:
        yield
    except (StsError, VendingError) as error:
        raise KeyCommandRefused(f"{error.code}: {error}") from None


def _read_component(file: Path | None) -> bytes:
    """Read a component from a file of our own, the keyboard or standard input.

    Raises: InvalidKey; CommandRefused for a file that others may read.
    """
    from vending.key_custody import read_component

    if file is not None:
        return read_component(_read_private(file), "component")
    if sys.stdin.isatty():
        return read_component(getpass.getpass("component (not shown): "), "component")
    return read_component(sys.stdin.readline(_COMPONENT_CHARACTERS_MAX), "component")


def _read_private(file: Path) -> str:
    with file.open("rb") as opened:
        about = os.fstat(opened.fileno())
        content = opened.read(_COMPONENT_CHARACTERS_MAX)
    if not stat.S_ISREG(about.st_mode) or about.st_uid != os.geteuid() or about.st_mode & 0o077:
        raise CommandRefused(f"{file.name}: expected a file of your own that nobody else can read (chmod 600)")
    # Anything else than digits is refused by whoever reads them; nothing of it may stand in an error.
    return content.decode("latin-1")


def _confirmed(confirm: str | None) -> str:
    if confirm is not None:
        return confirm
    if not sys.stdin.isatty():
        raise CommandRefused("--confirm: expected the key's check value, got none")
    return input("type the key's check value to confirm: ")


def _shown(row: KeyRow | KeyEvent) -> dict[str, object]:
    return {name: each.isoformat() if isinstance(each, datetime) else each for name, each in asdict(row).items()}


def _shown_load(load: KeyLoad) -> dict[str, object]:
    return {
        "sgc": load.sgc,
        "krn": load.krn,
        "dkga": load.dkga,
        "component_check_value": load.check_value,
        "begun_by": load.begun_by,
        "lapses_at": load.lapses_at.isoformat(),
    }


def _amount(quantity: str, amount: int) -> str:
    match quantity:
        case "minor":
            return format_minor(amount)
        case "tenths":
            return f"{amount // 10}.{amount % 10}"
        case _:
            return str(amount)
