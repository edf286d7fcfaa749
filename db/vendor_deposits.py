"""Deposits of vendors: money paid in at the utility's counter or bank, once under its reference.

Stage: one transaction of a cashier. A deposit is a journal `vendor_deposit` and an entry of the vendor's float; one
that turns out not to be money (a cheque that is not honoured) is taken back whole, whatever the float holds by then.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from datetime import datetime

from psycopg import AsyncConnection
from psycopg.rows import class_row

from billing.journals import JournalKind, money_journal
from billing.money import format_minor
from db.errors import DatabaseError
from db.floats import FloatPosted, post_float_journal
from db.money_events import ReferenceReused
from db.named import sql

# As the table's own check has it: what stands on a bank's slip.
REFERENCE_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._:/-]{0,63}$"
_REFERENCE = re.compile(REFERENCE_PATTERN.strip("^$"), re.ASCII)


class DepositRefused(DatabaseError):
    """A deposit that is none; nothing was booked."""

    code = "deposit_refused"


class DepositUnknown(DatabaseError):
    """No deposit of that reference."""

    code = "unknown_deposit"


@dataclass(frozen=True, slots=True, kw_only=True)
class NewDeposit:
    """Money that a vendor paid in; `by` took it, `reference` is what the bank or the counter calls it. Minor units."""

    vendor_id: int
    reference: str
    amount_minor: int
    channel: str
    by: str
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Deposit:
    """A deposit as its receipt has it, now and whenever it is printed again.

    `balance_minor` is the float right after it. The last three say that it was taken back.
    """

    number: int
    reference: str
    vendor_id: int
    vendor: str
    amount_minor: int
    channel: str
    by: str
    note: str
    at: datetime
    balance_minor: int
    journal_id: int
    returned_at: datetime | None
    returned_by: str | None
    return_reason: str | None


async def deposit(conn: AsyncConnection, new: NewDeposit) -> tuple[Deposit, bool]:
    """Book a deposit; True, and under a reference that was used for it before, the first one and False.

    In the caller's transaction. Raises: ReferenceReused for another deposit under the reference; DepositRefused for
    an amount or a reference that is none; UnknownVendor.
    """
    if new.amount_minor <= 0:
        raise DepositRefused(f"deposit: expected an amount above 0, got {format_minor(new.amount_minor)}")
    if not _REFERENCE.fullmatch(new.reference):
        raise DepositRefused(f"reference: expected 1-64 letters, digits and . _ : / -, got {len(new.reference)}")
    # Copies queue here, whichever vendor they name; what the first one stored is seen by the next statement.
    await conn.execute(sql("lock_deposit"), {"reference": new.reference})
    known = await _find(conn, new.reference)
    if known is not None:
        if (known.vendor_id, known.amount_minor, known.channel) != (new.vendor_id, new.amount_minor, new.channel):
            raise ReferenceReused(
                f"deposit {new.reference}: expected the vendor, amount and channel it was first used with, got others"
            )
        return known, False
    journal = money_journal(JournalKind.VENDOR_DEPOSIT, new.amount_minor, f"deposit {new.reference} (by {new.by})")
    posted = await post_float_journal(conn, new.vendor_id, journal)
    assert isinstance(posted, FloatPosted), "what adds to a float is never refused"
    stored = {**asdict(new), "journal_id": posted.journal_id, "at": posted.taken.booked_at}
    await conn.execute(sql("add_deposit"), stored)
    return await find_deposit(conn, new.reference), True


async def find_deposit(conn: AsyncConnection, reference: str) -> Deposit:
    """Read a deposit, to print its receipt again.

    Raises: DepositUnknown.
    """
    found = await _find(conn, reference)
    if found is None:
        raise DepositUnknown(f"deposit: expected a known reference, got {reference[:64]!r}")
    return found


async def take_deposit_back(conn: AsyncConnection, reference: str, *, by: str, reason: str) -> tuple[Deposit, bool]:
    """Take a deposit back that was no money; True, and False if it was taken back before.

    In the caller's transaction. The float may fall below its limit: what it should have held was never there.
    Raises: DepositUnknown.
    """
    await conn.execute(sql("lock_deposit"), {"reference": reference})
    found = await find_deposit(conn, reference)
    if found.returned_at is not None:
        return found, False
    text = f"deposit {reference} taken back: {reason} (by {by})"
    journal = money_journal(JournalKind.VENDOR_DEPOSIT, -found.amount_minor, text, about_id=found.journal_id)
    posted = await post_float_journal(conn, found.vendor_id, journal, bounded=False)
    assert isinstance(posted, FloatPosted), "what is not bounded is never refused"
    returned = {
        "number": found.number,
        "journal_id": posted.journal_id,
        "by": by,
        "reason": reason,
        "at": posted.taken.booked_at,
    }
    await conn.execute(sql("add_deposit_return"), returned)
    return await find_deposit(conn, reference), True


async def _find(conn: AsyncConnection, reference: str) -> Deposit | None:
    async with conn.cursor(row_factory=class_row(Deposit)) as cursor:
        await cursor.execute(sql("find_deposit"), {"reference": reference})
        return await cursor.fetchone()
