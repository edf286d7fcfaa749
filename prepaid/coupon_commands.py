"""`prepaid coupons`: batches made, shown, revalidated, taken out of use, counted; licences of stations without a line.

Stage: the command line's outermost layer, as in `__main__`. PINs go into the print file, which nobody else can read,
and nowhere else: not on the screen, not into the database.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from billing.money import parse_amount
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
from prepaid.settings import PrepaidError, Settings

if TYPE_CHECKING:
    from psycopg import AsyncConnection

    from vending.edges.coupon_office import Issued, OfficeDesk, Printed
    from vending.offline import SerialRange

T = TypeVar("T")

coupons_app = typer.Typer(help="Recharge coupons, and stations that sell them without a line.", no_args_is_help=True)

_SHOWN = 50
_KEY_BYTES = 32
_FILE_BYTES_MAX = 64_000_000
Serial = Annotated[str, typer.Argument(help="The coupon's serial, 12 digits.")]
Reason = Annotated[str, typer.Option("--reason", help="Why; kept for ever.")]
Number = Annotated[int, typer.Argument(min=1, help="The licence's number.")]
Vendor = Annotated[str, typer.Option("--vendor", help="The vendor's name.")]


class CouponCommandRefused(PrepaidError):
    """What the coupon desk refuses; the message begins with its own code."""

    code = "coupon_command_refused"


@coupons_app.command()
def issue(
    amount: Annotated[str, typer.Argument(help="What each is worth, e.g. 500.")],
    count: Annotated[int, typer.Argument(min=1, max=10_000, help="How many.")],
    out: Annotated[Path, typer.Option("--out", help="New file for the printer: serial, PIN, amount.")],
    reference: Annotated[str, typer.Option("--reference", help="The order's own number: it makes one batch.")],
    by: By,
    electronic: Annotated[bool, typer.Option("--electronic", help="For a distributor of electronic coupons.")] = False,
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """Make a batch of coupons and write its print file, once: nobody can read the PINs again."""
    from vending.coupon_pins import coupon_keys
    from vending.edges.coupon_office import CouponOrder, issue_coupons
    from vending.edges.keys import require_master

    settings, name = settings_of(data), read_name(by)
    order = CouponOrder(
        amount_minor=parse_amount(amount),
        coupons=count,
        carrier="electronic" if electronic else "printed",
        reference=read_words("reference", reference, 64),
    )
    if order.amount_minor == 0:
        raise CommandRefused("amount: expected more than 0")
    master = _master(settings)
    keys = coupon_keys(master)

    async def work(conn: AsyncConnection) -> Issued:
        def write(printed: Sequence[Printed]) -> None:
            _write_once(out, _print_lines(printed, order.amount_minor))

        await require_master(conn, master)
        now = datetime.now(UTC)
        return await issue_coupons(conn, keys, order, by=name, now=now, draw=secrets.randbelow, write=write)

    made = _refusing(lambda: run(settings, work))
    told = {"batch": made.batch, "first": made.first, "last": made.last, "coupons": count, "again": made.again}
    if json_output:
        console.print_json(told | {"file": None if made.again else str(out)})
    elif made.again:
        line(f"batch {made.batch}, {made.first} to {made.last}, was made by this order before; its PINs are not known")
    else:
        line(f"batch {made.batch}: {count} coupons {made.first} to {made.last}, print file {out}")
        console.err.print("the PINs are nowhere but in the file: destroy it once they are printed", markup=False)


@coupons_app.command(name="print")
def print_command(
    file: Annotated[Path, typer.Argument(help="The print file of `prepaid coupons issue`.")],
    out: Annotated[Path, typer.Option("--out", help="New file of slips for an 80 mm printer.")],
    language: Annotated[str, typer.Option("--lang", help="en, hi or pa.")] = "en",
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """Write the slips of a batch's coupons, those that can still be redeemed, in the order of the file."""
    from billing.notices.kinds import Language
    from db.coupons import coupons_to_print
    from prepaid.coupon_slips import read_print_file, slips_of, strangers
    from vending.coupon_pins import coupon_keys

    if language not in set(Language):
        raise CommandRefused(f"lang: expected one of {', '.join(Language)}, got {language!r}")
    settings = settings_of(data)
    pins = read_print_file(file)
    keys = coupon_keys(_master(settings))
    found = run(settings, lambda conn: coupons_to_print(conn, list(pins)))
    unknown = strangers(pins, found, keys)
    if unknown:
        raise CommandRefused(
            f"file: expected coupons of this installation with their PINs, got {len(unknown)} others: {unknown[0]}"
        )
    slips = list(slips_of(pins, found, settings, Language(language)))
    _write_once(out, "".join(slips))
    if json_output:
        console.print_json({"slips": len(slips), "left_out": len(pins) - len(slips), "file": str(out)})
        return
    line(f"{len(slips)} slips, {out}; {len(pins) - len(slips)} redeemed or void coupons left out")
    console.err.print("the file has PINs: destroy it once it is printed", markup=False)


@coupons_app.command(name="list")
def list_command(
    batch: Annotated[int | None, typer.Option(help="Of one batch.")] = None,
    state: Annotated[str | None, typer.Option(help="issued, reserved, sold, redeemed or void.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000)] = _SHOWN,
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """Show coupons by serial."""
    from db.coupons import list_coupons

    rows = run(settings_of(data), lambda conn: list_coupons(conn, batch_id=batch, state=state, most=limit))
    shown = [
        {
            "serial": row.serial,
            "batch": row.batch_id,
            "amount_minor": row.amount_minor,
            "state": row.state,
            "sold_on": None if row.sold_on is None else str(row.sold_on),
            "valid_until": None if row.valid_until is None else str(row.valid_until),
            "revalidations": row.revalidations,
        }
        for row in rows
    ]
    if json_output:
        console.print_json({"coupons": shown})
        return
    for row in rows:
        until = "" if row.valid_until is None else f" valid through {row.valid_until}"
        line(f"{row.serial} {console.rupees(row.amount_minor)} {row.state}{until}")


@coupons_app.command()
def show(serial: Serial, data: DataDir = None, json_output: Json = False) -> None:
    """Show a coupon with all that was done to it."""
    from vending.edges.coupon_office import show_coupon

    settings = settings_of(data)
    shown = _at_desk(settings, lambda conn, desk: show_coupon(conn, desk, serial, whole=True))
    _print_coupon(shown, json_output, settings)


@coupons_app.command()
def revalidate(serial: Serial, reason: Reason, by: By, data: DataDir = None, json_output: Json = False) -> None:
    """Give a lapsed coupon a new three months from today."""
    from vending.edges.coupon_office import revalidate_coupon

    settings, name, why = settings_of(data), read_name(by), read_words("reason", reason)
    shown = _at_desk(settings, lambda conn, desk: revalidate_coupon(conn, desk, serial, reason=why, by=name))
    _print_coupon(shown, json_output, settings)


@coupons_app.command()
def void(serial: Serial, reason: Reason, by: By, data: DataDir = None, json_output: Json = False) -> None:
    """Take a lost or stolen coupon out of use; what its vendor paid for it goes back to the vendor's float."""
    from vending.edges.coupon_office import void_coupon

    settings, name, why = settings_of(data), read_name(by), read_words("reason", reason)
    shown = _at_desk(settings, lambda conn, desk: void_coupon(conn, desk, serial, reason=why, by=name))
    _print_coupon(shown, json_output, settings)


@coupons_app.command()
def report(data: DataDir = None, json_output: Json = False) -> None:
    """Show what became of sold coupons by month of sale, and what the ledger owes for them."""
    from vending.edges.coupon_office import coupon_report

    told = _at_desk(settings_of(data), lambda conn, desk: coupon_report(conn, desk.rules.calendar, now_ms=desk.clock()))
    if json_output:
        console.print_json(told)
        return
    names = ("sold", "redeemed", "lapsed", "void", "outstanding", "revalidated")
    line(f"{'month':<8}" + "".join(f"{name:>22}" for name in names))
    for month in [*told["months"], told["total"] | {"month": "total"}]:
        cells = (f"{month[name]['coupons']} / {month[name]['amount']}" for name in names)
        line(f"{month['month']:<8}" + "".join(f"{cell:>22}" for cell in cells))
    ledger = told["ledger"]
    line(
        f"ledger coupons {ledger['coupons']}: sold and not redeemed {ledger['sold_not_redeemed']}, held for licences"
        f" {ledger['held_for_licences']}" + ("" if ledger["agrees"] else "  DOES NOT AGREE")
    )


@coupons_app.command()
def licence(
    station: Annotated[str, typer.Argument(help="The station's name.")],
    key: Annotated[str, typer.Option("--key", help="The station's Ed25519 public key, 64 hexadecimal digits.")],
    vendor: Vendor,
    limit: Annotated[str, typer.Option("--limit", help="What it may sell; taken of the vendor's float.")],
    until: Annotated[str, typer.Option("--until", help="Local day that it ends before, or instant with its zone.")],
    coupons: Annotated[list[str], typer.Option("--coupons", help="FIRST-LAST serials; again for more.")],
    by: By,
    data: DataDir = None,
) -> None:
    """Let a station without a line sell some coupons; print its licence as JSON."""
    from db.floats import find_float
    from vending.coupon_pins import coupon_keys
    from vending.edges.coupon_stations import LicenceAsked, give_licence
    from vending.edges.keys import require_master

    settings, name = settings_of(data), read_name(by)
    ends = read_instant("until", until, settings)
    assert ends is not None, "an instant was given"
    master, station_key, limit_minor = _master(settings), _read_key(key), parse_amount(limit)

    async def work(conn: AsyncConnection, desk: OfficeDesk) -> dict[str, Any]:  # JSON.
        await require_master(conn, master)
        asked = LicenceAsked(
            vendor_id=(await find_float(conn, vendor)).vendor_id,
            station=read_words("station", station, 64),
            station_key=station_key,
            valid_from_ms=desk.clock(),
            valid_until_ms=int(ends.timestamp() * 1000),
            limit_minor=limit_minor,
            ranges=tuple(_read_range(each) for each in coupons),
        )
        return await give_licence(conn, desk, coupon_keys(master), asked, by=name)

    console.print_json(_at_desk(settings, work))


@coupons_app.command()
def licences(data: DataDir = None, json_output: Json = False) -> None:
    """Show licences, what they have sold, and what is odd about their logs."""
    from db.coupon_licences import list_licences

    settings = settings_of(data)
    rows = run(settings, list_licences)
    if json_output:
        told = [{name: _plain(value) for name, value in row.items()} for row in rows]
        console.print_json({"licences": told})
        return
    for row in rows:
        line(
            f"{row['id']} {row['station']} of {row['vendor']}: {row['state']}"
            f" until {local(row['valid_until'], settings)}, limit {console.rupees(row['limit_minor'])},"
            f" sold {console.rupees(row['drawn_minor'])}, log through {row['log_seq']},"
            f" {row['findings']} odd sales, {row['refused_uploads']} uploads refused"
        )


@coupons_app.command()
def revoke(number: Number, reason: Reason, by: By, data: DataDir = None) -> None:
    """Put a lost station's licence out of force."""
    from vending.edges.coupon_stations import revoke_licence

    name, why = read_name(by), read_words("reason", reason)
    _at_desk(settings_of(data), lambda conn, desk: revoke_licence(conn, desk, number, reason=why, by=name))
    line(f"licence {number} revoked; stations hear of it with the next list that they fetch")


@coupons_app.command()
def close(number: Number, reason: Reason, by: By, data: DataDir = None, json_output: Json = False) -> None:
    """Settle a licence after its last log: unsold coupons are in stock again, the rest of its money goes back."""
    from vending.edges.coupon_stations import close_licence

    name, why = read_name(by), read_words("reason", reason)
    rest_minor = _at_desk(settings_of(data), lambda conn, desk: close_licence(conn, desk, number, reason=why, by=name))
    if json_output:
        console.print_json({"licence": number, "given_back_minor": rest_minor})
    else:
        line(f"licence {number} closed, {console.rupees(rest_minor)} given back to its vendor")


@coupons_app.command()
def upload(
    file: Annotated[Path, typer.Argument(help="A station's log as JSON.")],
    vendor: Vendor,
    by: By,
    data: DataDir = None,
) -> None:
    """Take in a log that a station's keeper has brought on a stick; print what was found as JSON."""
    from db.floats import find_float
    from vending.edges.coupon_stations import entries_of, take_log

    name = read_name(by)
    with file.open("rb") as opened:
        content = opened.read(_FILE_BYTES_MAX)

    async def work(conn: AsyncConnection, desk: OfficeDesk) -> dict[str, Any]:  # JSON.
        number, entries = entries_of(content)
        known = await find_float(conn, vendor)
        return await take_log(conn, desk, number, entries, vendor_id=known.vendor_id, by=name)

    console.print_json(_at_desk(settings_of(data), work))


def _at_desk(settings: Settings, work: Callable[[AsyncConnection, OfficeDesk], Awaitable[T]]) -> T:
    """Do some work at the coupon desk: by the wall clock, and with no security module, since nothing is minted."""
    from prepaid.processes import rules_of
    from vending.edges.coupon_office import OfficeDesk

    desk = OfficeDesk(rules=rules_of(settings))
    return _refusing(lambda: run(settings, lambda conn: work(conn, desk)))


def _refusing(work: Callable[[], T]) -> T:
    """Turn what the desk refuses into one line."""
    from vending.sts.errors import StsError
    from vending.vends import VendingError

    try:
        return work()
    except (VendingError, StsError) as error:
        raise CouponCommandRefused(f"{error.code}: {error}") from None


def _master(settings: Settings) -> bytes:
    from prepaid.keys import master_key

    return master_key(settings)


def _print_lines(printed: Sequence[Printed], amount_minor: int) -> str:
    from billing.money import format_minor
    from vending.coupons import grouped

    rows = (f"{each.serial},{grouped(each.pin)},{format_minor(amount_minor)}\n" for each in printed)
    return "serial,pin,amount\n" + "".join(rows)


def _write_once(path: Path, text: str) -> None:
    """Write a new file that nobody else can read; one that is there is never written over."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise CommandRefused(f"out: expected a new file, got one that is there: {path}") from None
    with os.fdopen(descriptor, "w", encoding="utf-8") as opened:
        opened.write(text)
        opened.flush()
        os.fsync(opened.fileno())


def _print_coupon(shown: dict[str, Any], json_output: bool, settings: Settings) -> None:  # JSON.
    if json_output:
        console.print_json(shown)
        return
    until = "" if shown["valid_until"] is None else f", valid through {shown['valid_until']}"
    line(f"{shown['serial']} {shown['amount']} {shown['state']}{until}")
    for each in shown.get("events", []):
        line(f"  {local(each['at'], settings)} {each['event']} by {each['by']}: {each['reason']}")


def _read_key(text: str) -> bytes:
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != _KEY_BYTES:
        raise CommandRefused("key: expected 64 hexadecimal digits")
    return key


def _read_range(text: str) -> SerialRange:
    from vending.coupons import read_serial
    from vending.offline import SerialRange

    first, _, last = text.partition("-")
    return SerialRange(first=read_serial(first), last=read_serial(last or first))


def _plain(value: object) -> object:
    return value.isoformat() if isinstance(value, datetime) else value
