"""`prepaid meters keys`: what a meter holds, since when, and moving it to another key; `prepaid meters token`.

Stage: the command line's outermost layer. Tokens are made by the installation's security module and shown once here;
a key is never an argument and never shown.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, TypeVar

import typer

from billing.money import BadAmount, parse_amount
from prepaid import console
from prepaid.arguments import By, DataDir, Json, line, read_name, read_text, read_words, run, settings_of
from prepaid.settings import PrepaidError, Settings

if TYPE_CHECKING:
    from psycopg import AsyncConnection

    from db.meter_records import RecordFields, RecordRow
    from vending.edges.record_desk import KeyChanged
    from vending.engines.port import IssuedToken, ManagementOrder
    from vending.security import SecurityModule

T = TypeVar("T")

keys_app = typer.Typer(help="Meter records: which key a meter holds, in versions; key changes.", no_args_is_help=True)

Serial = Annotated[str, typer.Argument(help="The meter's serial.")]
Reason = Annotated[str, typer.Option("--reason", help="Why; kept with the version.")]
Sgc = Annotated[str | None, typer.Option("--sgc", help="Supply group code, 6 digits.")]
Krn = Annotated[int | None, typer.Option("--krn", help="Key revision, 1 to 9.")]
Ti = Annotated[str | None, typer.Option("--ti", help="Tariff index, 00 to 99.")]
Ken = Annotated[int | None, typer.Option("--ken", help="Key expiry number, 0 to 255.")]
KeyTypeOption = Annotated[int | None, typer.Option("--key-type", help="1 default, 2 unique, 3 common.")]
BaseYear = Annotated[int | None, typer.Option("--base-year", help="Base date: 1993, 2014 or 2035.")]
# Refused lines of an import that are printed; JSON has all.
REFUSED_SHOWN = 50
_SHOWN_FIELDS = (
    "ea", "dkga", "tct", "sgc", "key_type", "krn", "tariff_index", "ken", "base_year", "key_change_tokens",
    "day_price_minor",
)  # fmt: skip


class MeterRecordRefused(PrepaidError):
    """A record or a token that cannot be made as asked; the message begins with the code of the refusal."""

    code: ClassVar[str] = "meter_record_refused"


@keys_app.command(name="show")
def show_command(serial: Serial, data: DataDir = None, json_output: Json = False) -> None:
    """What a meter holds now, and a key change under way with its tokens."""
    from db.meter_records import key_change_set

    async def work(conn: AsyncConnection) -> tuple[list[RecordRow], list[str]]:
        rows = [row for row in await _rows(conn, serial) if row.state in ("pending", "active")]
        sections = await key_change_set(conn, rows[0].id) if rows and rows[0].state == "pending" else []
        return rows, sections

    rows, sections = run(settings_of(data), work)
    if json_output:
        console.print_json({"meter": serial, "records": [_to_api(row) for row in rows], "key_change_tokens": sections})
        return
    for row in rows:
        _print_row(row)
    for number, digits in enumerate(sections, 1):
        line(f"key-change token {number}   {_grouped(digits)}")


@keys_app.command(name="history")
def history_command(serial: Serial, data: DataDir = None, json_output: Json = False) -> None:
    """Every version of a meter's record, the newest first: what, since when, who and why."""
    rows = run(settings_of(data), lambda conn: _rows(conn, serial))
    if json_output:
        console.print_json({"meter": serial, "records": [_to_api(row) for row in rows]})
        return
    for row in rows:
        _print_row(row)


@keys_app.command(name="set")
def set_command(
    serial: Serial,
    by: By,
    reason: Reason,
    engine: Annotated[str | None, typer.Option(help="sts or openpaygo.")] = None,
    drn: Annotated[str | None, typer.Option(help="DRN, 11 or 13 digits, of a meter that has none yet.")] = None,
    ea: Annotated[int | None, typer.Option(help="Cipher: 7 or 11.")] = None,
    dkga: Annotated[int | None, typer.Option(help="Key derivation: 2 or 4.")] = None,
    tct: Annotated[int | None, typer.Option(help="Token carrier: 1, 2, 7 or 8.")] = None,
    sgc: Sgc = None,
    key_type: KeyTypeOption = None,
    krn: Krn = None,
    ti: Ti = None,
    ken: Ken = None,
    base_year: BaseYear = None,
    key_change_tokens: Annotated[int | None, typer.Option(help="Key-change tokens it takes: 0, 2, 3, 4.")] = None,
    day_price: Annotated[str | None, typer.Option(help="OpenPAYGO: price of a day, such as 12.50.")] = None,
    takes: Annotated[str | None, typer.Option(help="All that it takes, as `electricity units clear_tamper`.")] = None,
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """Write what a meter holds, in force at once: a first record, or one that was wrong. Makes no token."""
    from prepaid.csv_lines import read_capabilities
    from vending.edges.record_desk import Wanted, set_record

    changes = _given(
        engine=engine,
        ea=ea,
        dkga=dkga,
        tct=tct,
        sgc=sgc,
        key_type=key_type,
        krn=krn,
        tariff_index=ti,
        ken=ken,
        base_year=base_year,
        key_change_tokens=key_change_tokens,
        day_price_minor=None if day_price is None else _amount(day_price),
        capabilities=None if takes is None else read_capabilities(takes),
    )
    wanted = Wanted(serial=serial, changes=changes, by=read_name(by), reason=read_words("reason", reason), drn=drn)
    with _refusals():
        version = run(settings_of(data), lambda conn: set_record(conn, wanted, now_ms=_now_ms()))
    if json_output:
        console.print_json({"meter": serial, "version": version, "changed": version is not None})
    else:
        line(f"meter {serial}: " + ("nothing new" if version is None else f"version {version} in force"))


@keys_app.command(name="import")
def import_command(
    file: Annotated[Path, typer.Argument(help="A maker's list, CSV with a header line.")],
    by: By,
    form: Annotated[str, typer.Option("--format", help="generic, delivery-list or code-list.")] = "generic",
    columns: Annotated[
        Path | None, typer.Option(help="A form of your own (TOML) instead; docs/meter-records.md.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Try every line, keep nothing.")] = False,
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """Take over what registered meters hold from a maker's list; good lines go in, bad ones are listed (status 1)."""
    from prepaid.record_formats import form_named, parse_form
    from prepaid.record_import import run_import_records

    read = form_named(form) if columns is None else parse_form(read_text(columns), columns.name)
    outcome = run_import_records(settings_of(data), file, read, by=read_name(by), dry_run=dry_run)
    if json_output:
        console.print_json(
            {
                **{name: value for name, value in asdict(outcome).items() if name != "refused"},
                "dry_run": dry_run,
                "refused": [{"line": number, "why": why} for number, why in outcome.refused],
            }
        )
    else:
        for number, why in outcome.refused[:REFUSED_SHOWN]:
            line(f"{file.name} line {number}: {why}")
        tried = "would be " if dry_run else ""
        line(
            f"{tried}new {outcome.new}, changed {outcome.changed}, as known {outcome.same}, "
            f"refused {len(outcome.refused)}"
        )
        if outcome.ignored_columns:
            line(f"columns not read: {', '.join(outcome.ignored_columns)}")
    if outcome.refused:
        sys.exit(1)


@keys_app.command(name="change")
def change_command(
    serial: Serial,
    by: By,
    reason: Reason,
    sgc: Sgc = None,
    key_type: KeyTypeOption = None,
    krn: Krn = None,
    ti: Ti = None,
    ken: Ken = None,
    base_year: BaseYear = None,
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """Make the tokens that move a meter to another key; its record of it waits until they are known to be entered."""
    from vending.edges.record_desk import Wanted, change_key

    changes = _given(sgc=sgc, key_type=key_type, krn=krn, tariff_index=ti, ken=ken, base_year=base_year)
    wanted = Wanted(serial=serial, changes=changes, by=read_name(by), reason=read_words("reason", reason))

    async def work(conn: AsyncConnection, module: SecurityModule) -> KeyChanged:
        return await change_key(conn, module, wanted, now_ms=_now_ms())

    changed = _with_module(settings_of(data), work)
    if json_output:
        console.print_json(_change_to_api(serial, changed))
    else:
        _print_change(serial, changed)


@keys_app.command(name="confirm")
def confirm_command(serial: Serial, by: By, data: DataDir = None, json_output: Json = False) -> None:
    """The key-change tokens were entered: the pending version is in force."""
    from vending.edges.record_desk import confirm_change

    with _refusals():
        version = run(settings_of(data), lambda conn: confirm_change(conn, serial, by=read_name(by), now_ms=_now_ms()))
    _print_settled(serial, version, "in force", json_output)


@keys_app.command(name="withdraw")
def withdraw_command(serial: Serial, by: By, data: DataDir = None, json_output: Json = False) -> None:
    """The key-change tokens were not and will not be entered: the pending version is given up."""
    from vending.edges.record_desk import withdraw_change

    with _refusals():
        version = run(settings_of(data), lambda conn: withdraw_change(conn, serial, by=read_name(by)))
    _print_settled(serial, version, "withdrawn", json_output)


def token_command(
    serial: Serial,
    kind: Annotated[str, typer.Argument(help="As the record says it: clear_tamper, clear_credit, power_limit, ...")],
    by: By,
    reason: Annotated[str, typer.Option("--reason", help="Why; kept with the token.")],
    value: Annotated[int, typer.Option(help="The token's value: W for the limits, a register, parts of a day.")] = 0,
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """Make a token that sets or clears something in one meter (class 2, or a command of OpenPAYGO)."""
    from vending.edges.record_desk import issue_management
    from vending.engines.orders import read_order

    with _refusals():
        order: ManagementOrder = read_order(kind, value)
    who, why = read_name(by), read_words("reason", reason)

    async def work(conn: AsyncConnection, module: SecurityModule) -> IssuedToken:
        return await issue_management(conn, module, serial, order, by=who, reason=why, now_ms=_now_ms())

    token = _with_module(settings_of(data), work)
    if json_output:
        console.print_json({"meter": serial, "kind": kind, "token": token.digits, "tid": token.tid})
    else:
        line(f"meter {serial}, {kind}: {token.grouped}")


def _with_module(settings: Settings, work: Callable[[AsyncConnection, SecurityModule], Awaitable[T]]) -> T:
    """Do some work with the installation's security module, on its database."""
    from prepaid.keys import module_beside

    async def both(conn: AsyncConnection) -> T:
        return await work(conn, await module_beside(settings, conn))

    with _refusals():
        return run(settings, both)


@contextmanager
def _refusals() -> Iterator[None]:
    from vending.edges.errors import RequestDeclined
    from vending.sts.errors import StsError
    from vending.vends import VendingError

    try:
        yield
    except RequestDeclined as error:
        raise MeterRecordRefused(f"{error.declined.reason.value}: {error}") from None
    except (VendingError, StsError) as error:
        raise MeterRecordRefused(f"{error.code}: {error}") from None


async def _rows(conn: AsyncConnection, serial: str) -> list[RecordRow]:
    from db.meter_records import find_place, records_of_meter

    place = await find_place(conn, serial)
    if place is None:
        raise MeterRecordRefused(f"unknown_meter: expected a registered serial, got {serial[:40]!r}")
    return await records_of_meter(conn, place.id)


def _given(**options: object) -> dict[str, object]:
    return {name: value for name, value in options.items() if value is not None}


def _amount(text: str) -> int:
    try:
        return parse_amount(text)
    except BadAmount as error:
        raise MeterRecordRefused(f"{error.code}: {error}") from None


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _to_api(row: RecordRow) -> dict[str, object]:
    return {
        "version": row.version,
        "state": row.state,
        "drn": row.drn,
        **asdict(row.fields),
        "last_tid": row.last_tid,
        "valid_from": None if row.valid_from is None else row.valid_from.isoformat(),
        "valid_to": None if row.valid_to is None else row.valid_to.isoformat(),
        "written_at": row.written_at.isoformat(),
        "written_by": row.written_by,
        "reason": row.reason,
        "settled_by": row.settled_by,
    }


def _print_row(row: RecordRow) -> None:
    spans = f"from {row.valid_from:%Y-%m-%d %H:%M}" if row.valid_from else f"written {row.written_at:%Y-%m-%d %H:%M}"
    until = f" to {row.valid_to:%Y-%m-%d %H:%M}" if row.valid_to else ""
    line(f"version {row.version}, {row.state}, {spans}{until} UTC, by {row.written_by}: {row.reason}")
    if row.settled_by:
        line(f"  settled by {row.settled_by}")
    line(f"  {row.engine} {_told(row.fields)}" + (f", DRN {row.drn}" if row.drn else ""))
    line(f"  takes {' '.join(sorted(row.capabilities))}; last token id {row.last_tid or 'none'}")


def _told(fields: RecordFields) -> str:
    values = asdict(fields)
    return ", ".join(f"{name} {values[name]}" for name in _SHOWN_FIELDS if values[name] is not None)


def _change_to_api(serial: str, changed: KeyChanged) -> dict[str, object]:
    return {
        "meter": serial,
        "version": changed.version,
        "tokens": [token.digits for token in changed.tokens],
        "before": asdict(changed.before),
        "after": asdict(changed.after),
        "tokens_that_die_unless_entered_before": [
            {"kind": each.kind, "tid": each.tid, "ends_in": each.last_four, "made_at": each.made_at.isoformat()}
            for each in changed.open_tokens
        ],
    }


def _print_change(serial: str, changed: KeyChanged) -> None:
    for number, token in enumerate(changed.tokens, 1):
        line(f"key-change token {number}   {token.grouped}")
    line(f"meter {serial}: version {changed.version} is pending; enter all tokens within ten minutes, then")
    line(f"  prepaid meters keys confirm {serial} --by NAME   (or the meter's first good token confirms it)")
    if changed.open_tokens:
        line(f"{len(changed.open_tokens)} tokens under the old key are lost unless entered BEFORE these; the newest:")
    for each in changed.open_tokens[:5]:
        line(f"  {each.kind} of {each.made_at:%Y-%m-%d %H:%M} UTC, TID {each.tid}, ends in {each.last_four}")


def _print_settled(serial: str, version: int, what: str, json_output: bool) -> None:
    if json_output:
        console.print_json({"meter": serial, "version": version, "state": what.replace("in force", "active")})
    else:
        line(f"meter {serial}: version {version} {what}")


def _grouped(digits: str) -> str:
    return " ".join(digits[at : at + 4] for at in range(0, len(digits), 4))
