"""`prepaid api-keys` and `prepaid audit-trail`: who may call the API, within which limits, and who did what.

Stage: the command line's outermost layer, as in `__main__`. A new key is printed once; what is kept of it opens only
under the master key. Whatever is changed here, every API process goes by within a second.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from billing.money import format_minor, parse_amount
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

    from db.api_access import ListedKey, ListedLimit, TrailRow
    from vending.edges.keys import NewApiKey

api_keys_app = typer.Typer(help="Keys of the API: who may call, and how much.", no_args_is_help=True)

E = TypeVar("E", bound=StrEnum)

_ROWS_MAX = 10_000
_TERMINAL = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_CERTIFICATE_BYTES_MAX = 64 * 1024

KeyId = Annotated[str, typer.Argument(help="The key's id, the part before the dot.")]
Reason = Annotated[str, typer.Option("--reason", help="Why: it is kept.")]


class AccessRefused(PrepaidError):
    """What the desk of keys refuses; the message begins with its own code."""

    code = "access_refused"


@contextmanager
def _refusals() -> Iterator[None]:
    from vending.security import SealBroken
    from vending.vends import VendingError

    try:
        yield
    except (VendingError, SealBroken) as refusal:
        raise AccessRefused(f"{refusal.code}: {refusal}") from None


@api_keys_app.command(name="add")
def add_key(
    role: Annotated[str, typer.Argument(help="vendor, supervisor, engineer, cashier, auditor, reader or consumer.")],
    by: By,
    vendor: Annotated[str | None, typer.Option(help="Of a vendor's key: the vendor's name.")] = None,
    account: Annotated[str | None, typer.Option(help="Of a consumer's key: the account's number.")] = None,
    area: Annotated[str | None, typer.Option(help="Of a reader's key: the one area that it sees.")] = None,
    terminal: Annotated[str | None, typer.Option(help="The one terminal that the key is for.")] = None,
    scope: Annotated[list[str] | None, typer.Option(help="Only this of what the role may; more than once.")] = None,
    label: Annotated[str, typer.Option(help="What the key is for, to tell it from others.")] = "",
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """Make a key; its secret is shown once."""
    from prepaid.administration import known_account
    from prepaid.keys import sealing_master
    from vending.edges.key_desk import give_key
    from vending.roles import Role, Scope

    settings, name = settings_of(data), read_name(by)
    kind = _one_of(Role, "role", role)
    scopes = None if not scope else [_one_of(Scope, "scope", each) for each in scope]
    place = None if terminal is None else _terminal(terminal)

    async def work(conn: AsyncConnection) -> NewApiKey:
        account_id = None if account is None else await known_account(conn, account)
        return await give_key(
            conn,
            await sealing_master(settings, conn),
            kind,
            vendor=vendor,
            account_id=account_id,
            area=None if area is None else read_words("area", area),
            scopes=scopes,
            terminal=place,
            label=label and read_words("label", label),
            by=name,
        )

    with _refusals():
        _print_key(run(settings, work), json_output)


@api_keys_app.command(name="rotate")
def rotate_key_command(
    key_id: KeyId,
    by: By,
    overlap_h: Annotated[int, typer.Option("--overlap-h", min=0, max=720, help="Hours the old key is good yet.")] = 24,
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """Make the key that takes another one's place; both are good until the overlap has passed."""
    from prepaid.keys import sealing_master
    from vending.edges.key_desk import rotate_key

    settings, name, overlap = settings_of(data), read_name(by), timedelta(hours=overlap_h)

    async def work(conn: AsyncConnection) -> NewApiKey:
        master = await sealing_master(settings, conn)
        return await rotate_key(conn, master, key_id, overlap=overlap, by=name, now=datetime.now(UTC))

    with _refusals():
        _print_key(run(settings, work), json_output)


@api_keys_app.command(name="revoke")
def revoke_key_command(key_id: KeyId, by: By, reason: Reason, data: DataDir = None, json_output: Json = False) -> None:
    """Take a key back: nobody is let in with it a second from now."""
    from vending.edges.key_desk import take_key_back

    name, why = read_name(by), read_words("reason", reason)
    with _refusals():
        run(
            settings_of(data),
            lambda conn: take_key_back(conn, key_id, by=name, reason=why, now=datetime.now(UTC)),
        )
    if json_output:
        console.print_json({"key_id": key_id, "revoked_by": name})
    else:
        line(f"key {key_id} taken back")


@api_keys_app.command(name="certificate")
def certificate_command(
    key_id: KeyId,
    by: By,
    file: Annotated[
        Path | None, typer.Argument(help="The client certificate, PEM; none: no certificate any more.")
    ] = None,
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """Let a client certificate call as a key, instead of the one before."""
    from vending.edges.key_desk import bind_certificate_of

    name = read_name(by)
    pem = None if file is None else _read_certificate(file)
    with _refusals():
        digest = run(
            settings_of(data),
            lambda conn: bind_certificate_of(conn, key_id, pem, by=name, now=datetime.now(UTC)),
        )
    told = None if digest is None else digest.hex()
    if json_output:
        console.print_json({"key_id": key_id, "certificate_sha256": told})
    else:
        line(f"key {key_id}: " + ("no certificate" if told is None else f"certificate with SHA-256 {told}"))


@api_keys_app.command(name="list")
def list_keys_command(
    vendor: Annotated[str | None, typer.Option(help="Only this vendor's.")] = None,
    role: Annotated[str | None, typer.Option(help="Only this role.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=_ROWS_MAX, help="Keys at most.")] = 200,
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """Keys without their secrets, the newest first."""
    from db.api_access import list_keys

    settings = settings_of(data)
    keys = run(settings, lambda conn: list_keys(conn, vendor=vendor, role=role, now=datetime.now(UTC), limit=limit))
    if json_output:
        console.print_json({"keys": [_key_shown(each, settings) for each in keys]})
        return
    for each in keys:
        owner = each.vendor or (each.account and f"account {each.account}") or (each.area and f"area {each.area}") or ""
        state = "in force" if each.active else "ended"
        until = f" until {local(each.ends_at, settings)}" if each.active and each.ends_at else ""
        extra = [
            f"terminal {each.terminal}" if each.terminal else "",
            each.label,
            f"only {', '.join(each.scopes)}" if each.scopes else "",
            "" if each.can_sign else "cannot sign",
            "certificate" if each.certificate_sha256 else "",
        ]
        words = ", ".join(text for text in extra if text)
        line(f"{each.key_id}  {each.role:<10} {owner:<24} {state}{until}" + (f"  ({words})" if words else ""))


@api_keys_app.command(name="limit")
def limit_command(
    vendor: Annotated[str, typer.Argument(help="The vendor's name.")],
    by: By,
    reason: Reason,
    terminal: Annotated[str | None, typer.Option(help="Only keys of this terminal.")] = None,
    requests_per_s: Annotated[int | None, typer.Option("--requests-per-s", min=1, help="Requests a second.")] = None,
    vends_per_day: Annotated[int | None, typer.Option("--vends-per-day", min=0, help="Vends a local day.")] = None,
    amount_per_day: Annotated[str | None, typer.Option("--amount-per-day", help="Money a local day.")] = None,
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """Set a vendor's or a terminal's limits from now on, in place of those before; what is not given has none."""
    from db.api_access import NewLimit
    from prepaid.processes import calendar_of
    from vending.edges.key_desk import set_limits

    settings = settings_of(data)
    limit = NewLimit(
        vendor_id=0,
        terminal="" if terminal is None else _terminal(terminal),
        requests_per_s=requests_per_s,
        # Two seconds' worth at once: a station that starts asks several things.
        burst=None if requests_per_s is None else 2 * requests_per_s,
        vends_per_day=vends_per_day,
        amount_per_day=None if amount_per_day is None else parse_amount(amount_per_day),
        set_by=read_name(by),
        reason=read_words("reason", reason),
    )
    with _refusals():
        run(
            settings,
            lambda conn: set_limits(conn, vendor, limit, calendar=calendar_of(settings), now=datetime.now(UTC)),
        )
    if json_output:
        console.print_json({"vendor": vendor, **{k: v for k, v in asdict(limit).items() if k != "vendor_id"}})
    else:
        line(f"limits of {vendor}{(terminal and f', terminal {terminal}') or ''}: in force within a second")


@api_keys_app.command(name="limits")
def limits_command(
    vendor: Annotated[str | None, typer.Option(help="Only this vendor's.")] = None,
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """Limits in force and those before, with who set them and why."""
    from db.api_access import list_limits

    settings = settings_of(data)
    limits = run(settings, lambda conn: list_limits(conn, vendor))
    if json_output:
        console.print_json({"limits": [asdict(each) | {"set_at": local(each.set_at, settings)} for each in limits]})
        return
    for each in limits:
        state = "in force" if each.in_force else "past"
        where = each.vendor + (f", terminal {each.terminal}" if each.terminal else "")
        line(f"{where}: {_limit_words(each)}; {state}, {local(each.set_at, settings)} by {each.set_by}: {each.reason}")


def audit_trail_command(
    key: Annotated[str | None, typer.Option(help="Only this key's id.")] = None,
    actor: Annotated[str | None, typer.Option(help="Only this vendor, or who it was at the command line.")] = None,
    act: Annotated[str | None, typer.Option(help='Only acts that begin so: "POST /v1/vends", "api-keys".')] = None,
    subject: Annotated[str | None, typer.Option(help="Only this meter, account, key.")] = None,
    outcome: Annotated[str | None, typer.Option(help="Only this outcome: vended, not_allowed.")] = None,
    since: Annotated[str | None, typer.Option(help="From a local day or an instant with its zone on.")] = None,
    until: Annotated[str | None, typer.Option(help="Before a local day or an instant with its zone.")] = None,
    before: Annotated[int | None, typer.Option(help="Only before this number: the next page.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=_ROWS_MAX, help="Acts at most.")] = 100,
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """Who did what over the API and with keys and limits, the newest first."""
    from db.api_access import TrailQuestion, read_trail

    settings = settings_of(data)
    question = TrailQuestion(
        key_id=key,
        actor=actor,
        act=act,
        subject=subject,
        outcome=outcome,
        since=read_instant("since", since, settings),
        until=read_instant("until", until, settings),
        before_id=before,
        limit=limit,
    )
    acts = run(settings, lambda conn: read_trail(conn, question))
    if json_output:
        console.print_json({"acts": [_act_shown(each, settings) for each in acts]})
        return
    for each in acts:
        who = " ".join(text for text in (each.actor, each.role, each.key_id, each.terminal, each.operator) if text)
        on = " ".join(text for text in (each.subject, each.reference) if text)
        line(f"{each.id}  {local(each.at, settings)}  {who}: {each.act}  {on}  {each.outcome}")


def _print_key(new: NewApiKey, json_output: bool) -> None:
    if json_output:
        console.print_json({"key_id": new.key_id, "secret": new.secret, "api_key": new.header})
    else:
        line(f"API key (shown once): {new.header}")


def _one_of(kind: type[E], name: str, text: str) -> E:
    try:
        return kind(text)
    except ValueError:
        raise CommandRefused(f"{name}: expected one of {', '.join(kind)}, got {text[:40]!r}") from None


def _terminal(text: str) -> str:
    if not _TERMINAL.fullmatch(text):
        raise CommandRefused(f"terminal: expected 1 to 64 letters, digits, '.', '_', ':' and '-', got {text[:80]!r}")
    return text


def _key_shown(key: ListedKey, settings: Settings) -> dict[str, object]:
    digest = key.certificate_sha256
    return asdict(key) | {
        "created_at": local(key.created_at, settings),
        "ends_at": key.ends_at and local(key.ends_at, settings),
        "certificate_sha256": digest and digest.hex(),
    }


def _act_shown(act: TrailRow, settings: Settings) -> dict[str, object]:
    digest = act.request_digest
    return asdict(act) | {"at": local(act.at, settings), "request_digest": digest and digest.hex()}


def _limit_words(limit: ListedLimit) -> str:
    words = [
        "" if limit.requests_per_s is None else f"{limit.requests_per_s} requests a second, {limit.burst} at once",
        "" if limit.vends_per_day is None else f"{limit.vends_per_day} vends a day",
        "" if limit.amount_per_day is None else f"{format_minor(limit.amount_per_day)} a day",
    ]
    return ", ".join(word for word in words if word) or "none"


def _read_certificate(file: Path) -> bytes:
    with file.open("rb") as opened:
        return opened.read(_CERTIFICATE_BYTES_MAX)
