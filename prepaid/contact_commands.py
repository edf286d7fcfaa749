"""`prepaid contacts`: where consumers are reached, and who cannot be.

Stage: the command line's outermost layer, as in `__main__`. A contact counts once a code sent to it has come back;
codes are asked for and given back through the API.
"""

from __future__ import annotations

import csv
import os
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from billing.notices import Channel, Language
from billing.notices.addresses import read_address
from db.contacts import (
    ContactRow,
    NewContact,
    Unreachable,
    list_contacts,
    put_contact,
    remove_contact,
    unreachable_accounts,
)
from prepaid import console
from prepaid.arguments import DataDir, Json, settings_of
from prepaid.settings import PrepaidError, Settings

if TYPE_CHECKING:
    from psycopg import AsyncConnection

contacts_app = typer.Typer(help="Where consumers are reached.", no_args_is_help=True)

# What a screen or one JSON object holds; a CSV file has no limit.
ROWS_SHOWN = 1_000
CSV_COLUMNS = ("account", "consumer", "area", "reason", "contacts", "verified", "failing", "stopped")

Number = Annotated[str, typer.Argument(help="The account's number.")]


class ContactRefused(PrepaidError):
    """A contact that cannot be changed as asked; the message is one line."""

    code: ClassVar[str] = "contact_refused"


@contacts_app.command(name="list")
def list_command(number: Number, data: DataDir = None, json_output: Json = False) -> None:
    """Where the consumer of an account is reached."""

    async def work(conn: AsyncConnection, account_id: int) -> list[ContactRow]:
        return await list_contacts(conn, account_id)

    _print(number, _on_account(data, number, work), json_output)


@contacts_app.command(name="add")
def add_command(
    number: Number,
    channel: Annotated[Channel, typer.Argument(help="sms or email.")],
    address: Annotated[str, typer.Argument(help="A telephone number or an e-mail address.")],
    language: Annotated[Language, typer.Option(help="In which language its messages are.")] = Language.ENGLISH,
    priority: Annotated[int, typer.Option(min=1, max=9, help="1 is tried first of a channel.")] = 1,
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """Add a contact, or change the language and priority of one; it counts once it is verified."""
    read = read_address(channel, address)
    contact = NewContact(channel=channel, address=read, language=language, priority=priority)

    async def work(conn: AsyncConnection, account_id: int) -> list[ContactRow]:
        return [await put_contact(conn, account_id, contact)]

    _print(number, _on_account(data, number, work), json_output)


@contacts_app.command(name="remove")
def remove_command(
    number: Number,
    contact: Annotated[int, typer.Argument(help="The contact's id, as `list` prints it.")],
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """Take a contact out of use."""

    async def work(conn: AsyncConnection, account_id: int) -> list[ContactRow]:
        if not await remove_contact(conn, account_id, contact, now_ms=time.time_ns() // 1_000_000):
            raise ContactRefused(f"contact: expected one of account {number}, got id {contact}")
        return await list_contacts(conn, account_id)

    _print(number, _on_account(data, number, work), json_output)


@contacts_app.command(name="unreachable")
def unreachable_command(
    file: Annotated[Path | None, typer.Option("--csv", help="Write all rows to this file.")] = None,
    data: DataDir = None,
    json_output: Json = False,
) -> None:
    """Accounts whose consumer no message can reach: no contact, none verified, all failing, or all stopped."""
    shown: list[Unreachable] = []

    def keep_some(rows: Sequence[Unreachable]) -> None:
        shown.extend(rows[: max(0, ROWS_SHOWN - len(shown))])

    with ExitStack() as open_files:
        keep = keep_some if file is None else open_files.enter_context(_writing_csv(file))
        accounts, reasons = run_unreachable(settings_of(data), keep)
    totals = {"accounts": accounts, "unreachable": reasons.total(), "by_reason": dict(sorted(reasons.items()))}
    if json_output:
        rows = {} if file else {"rows": [dict(zip(CSV_COLUMNS, _cells(row), strict=True)) for row in shown]}
        console.print_json({**totals, **rows})
        return
    if file is None:
        csv.writer(sys.stdout).writerows([CSV_COLUMNS, *map(_cells, shown)] if shown else [])
    by_reason = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items())) or "none"
    console.err.print(f"{reasons.total()} of {accounts} accounts cannot be reached: {by_reason}", markup=False)


def run_unreachable(settings: Settings, keep: Callable[[Sequence[Unreachable]], None]) -> tuple[int, Counter[str]]:
    """Walk over all accounts; hand on those that cannot be reached, and return how many there are and why."""
    from prepaid.administration import on_database

    async def work(conn: AsyncConnection) -> tuple[int, Counter[str]]:
        accounts, reasons = 0, Counter[str]()
        async for count, rows in unreachable_accounts(conn):
            accounts += count
            reasons.update(row.reason for row in rows)
            keep(rows)
        return accounts, reasons

    return on_database(settings, work)


def _on_account(
    data: Path | None, number: str, work: Callable[[AsyncConnection, int], Awaitable[list[ContactRow]]]
) -> list[ContactRow]:
    """Do something with the contacts of an account's consumer.

    Raises: UnknownAccount.
    """
    from prepaid.administration import known_account, on_database

    async def on_known(conn: AsyncConnection) -> list[ContactRow]:
        return await work(conn, await known_account(conn, number))

    return on_database(settings_of(data), on_known)


@contextmanager
def _writing_csv(file: Path) -> Iterator[Callable[[Sequence[Unreachable]], None]]:
    """Write rows beside a file; it takes their place when the context ends well, and is left alone otherwise."""
    if file.is_dir():
        raise ContactRefused(f"csv: expected the name of a file, got the folder {str(file)!r}")
    part = file.with_name(f"{file.name}.part")
    with part.open("w", encoding="utf-8", newline="") as opened:
        try:
            writer = csv.writer(opened)
            writer.writerow(CSV_COLUMNS)
            yield lambda rows: writer.writerows(map(_cells, rows))
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    os.replace(part, file)


def _cells(row: Unreachable) -> tuple[object, ...]:
    return row.number, row.consumer, row.area, row.reason, row.contacts, row.verified, row.failing, row.stopped


def _print(number: str, contacts: Sequence[ContactRow], json_output: bool) -> None:
    if json_output:
        console.print_json({"account": number, "contacts": [contact_to_json(contact) for contact in contacts]})
        return
    for contact in contacts:
        state = "verified" if contact.verified_at else "not verified"
        marks = [", failing" if contact.failed_at else "", ", stopped" if contact.stopped_at else ""]
        console.out.print(
            f"{contact.id}  {contact.channel:<5}  {contact.address}  {contact.language}  priority {contact.priority}"
            f"  {state}{''.join(marks)}",
            markup=False,
        )


def contact_to_json(contact: ContactRow) -> dict[str, object]:
    """Return a contact as the command line prints it."""
    instants = {"verified_at": contact.verified_at, "failed_at": contact.failed_at, "stopped_at": contact.stopped_at}
    return {
        "id": contact.id,
        "channel": contact.channel,
        "address": contact.address,
        "language": contact.language,
        "priority": contact.priority,
        **{name: None if at is None else at.isoformat() for name, at in instants.items()},
    }
