"""Vendors' floats: what each has with the utility, what moved it, and how far below zero it may go.

Stage: the last statement of a vendor's sale, and the whole of a deposit. A float's row is locked by whatever moves it,
to the end of the transaction; each move is one entry beside one journal with a leg on `vendor_clearing`. Never: an
account, a decision about a vend.

Invariants: a float is the sum of its vendor's entries, all floats together are the ledger `vendor_clearing`; no sale
brings a float below its limit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from psycopg import AsyncConnection
from psycopg.rows import class_row

from billing.journals import Journal, JournalKind, Ledger
from db.errors import DatabaseError
from db.named import sql
from db.posting import add_journals


class UnknownVendor(DatabaseError):
    """No vendor of that name or id, or one of the utility's own, which has no float."""

    code = "unknown_vendor"


@dataclass(frozen=True, slots=True, kw_only=True)
class FloatTaken:
    """A float was moved; `n` counts its entries, `balance_minor` is what it holds now."""

    n: int
    balance_minor: int
    booked_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class FloatRefused:
    """A float that does not reach; nothing was moved. Minor units."""

    needed_minor: int
    balance_minor: int
    limit_minor: int

    @property
    def available_minor(self) -> int:
        """What could be sold now."""
        return max(0, self.balance_minor + self.limit_minor)


@dataclass(frozen=True, slots=True, kw_only=True)
class FloatPosted:
    """A journal about a float and about no account."""

    journal_id: int
    taken: FloatTaken


@dataclass(frozen=True, slots=True, kw_only=True)
class FloatState:
    """What a vendor has with the utility; a limit of None is no limit."""

    vendor_id: int
    vendor: str
    active: bool
    balance_minor: int
    limit_minor: int | None
    entries: int

    @property
    def available_minor(self) -> int | None:
        """What could be sold now; None without a limit."""
        return None if self.limit_minor is None else max(0, self.balance_minor + self.limit_minor)


async def take_float(
    conn: AsyncConnection,
    vendor_id: int,
    amount_minor: int,
    *,
    journal_id: int,
    terminal: str | None = None,
    operator: str | None = None,
    tender: str | None = None,
) -> FloatTaken | FloatRefused:
    """Take a recharge from a vendor's float.

    Call it last: the vendor's other sales wait from here to the commit. After a refusal the caller rolls back.
    Raises: UnknownVendor.
    """
    assert amount_minor > 0, f"float of vendor {vendor_id}: expected an amount above 0, got {amount_minor}"
    move = {
        "vendor_id": vendor_id,
        "amount_minor": -amount_minor,
        "journal_id": journal_id,
        "kind": JournalKind.VEND.value,
        "terminal": terminal,
        "operator": operator,
        "tender": tender,
        "bounded": True,
    }
    taken = await _move(conn, move)
    if taken is None:
        # A deposit may have come in since: judged again under the lock, so that what is told is what stands there.
        cursor = await conn.execute(sql("lock_float"), {"vendor_id": vendor_id})
        refused = judge_float(await cursor.fetchone(), vendor_id, amount_minor)
        if refused is not None:
            return refused
        taken = await _move(conn, move)
    assert taken is not None, f"float of vendor {vendor_id}: locked, and gone"
    return taken


async def look_float(conn: AsyncConnection, vendor_id: int, amount_minor: int) -> FloatRefused | None:
    """Tell without a lock whether a sale would be refused now.

    Raises: UnknownVendor.
    """
    cursor = await conn.execute(sql("float_of"), {"vendor_id": vendor_id})
    return judge_float(await cursor.fetchone(), vendor_id, amount_minor)


async def give_back(conn: AsyncConnection, *, about_id: int, journal_id: int) -> FloatTaken | None:
    """Give back what a vend's journal took from a float, beside the journal that reverses it; None if it took nothing.

    What its terminal and its operator sold is less by it from now on.
    """
    async with conn.cursor(row_factory=class_row(FloatTaken)) as cursor:
        await cursor.execute(sql("give_float_back"), {"about_id": about_id, "journal_id": journal_id})
        return await cursor.fetchone()


async def post_float_journal(
    conn: AsyncConnection, vendor_id: int, journal: Journal, *, bounded: bool = True
) -> FloatPosted | FloatRefused:
    """Book a journal about a vendor and no account: a deposit, a sale of coupons; it moves the float by its leg.

    What takes from the float is bounded by its limit, unless the money was never there. A refusal has written nothing.
    Raises: UnknownVendor.
    """
    moved_minor = sum(leg.amount_minor for leg in journal.legs if leg.ledger is Ledger.VENDOR_CLEARING)
    cursor = await conn.execute(sql("lock_float"), {"vendor_id": vendor_id})
    refused = judge_float(await cursor.fetchone(), vendor_id, -moved_minor)
    if refused is not None and bounded and moved_minor < 0:
        return refused
    (journal_id,) = await add_journals(conn, [journal])
    taken = await _move(
        conn,
        {
            "vendor_id": vendor_id,
            "amount_minor": moved_minor,
            "journal_id": journal_id,
            "kind": journal.kind.value,
            "terminal": None,
            "operator": None,
            "tender": None,
            "bounded": False,
        },
    )
    assert taken is not None, f"float of vendor {vendor_id}: locked, and gone"
    return FloatPosted(journal_id=journal_id, taken=taken)


async def lock_float(conn: AsyncConnection, vendor_id: int) -> int:
    """Let no sale of a vendor pass until the transaction ends; return how many entries there are.

    Raises: UnknownVendor.
    """
    cursor = await conn.execute(sql("lock_float"), {"vendor_id": vendor_id})
    row = await cursor.fetchone()
    if row is None:
        raise _unknown(vendor_id)
    return int(row[2])


async def read_float(conn: AsyncConnection, vendor_id: int) -> FloatState:
    """Read what a vendor has with the utility.

    Raises: UnknownVendor.
    """
    found = await _floats(conn, {"vendor_id": vendor_id, "name": None})
    if not found:
        raise _unknown(vendor_id)
    return found[0]


async def find_float(conn: AsyncConnection, name: str) -> FloatState:
    """Read what a vendor has with the utility, by its name.

    Raises: UnknownVendor.
    """
    found = await _floats(conn, {"vendor_id": None, "name": name})
    if not found:
        raise UnknownVendor(f"vendor: expected a known name, got {name[:64]!r}")
    return found[0]


async def list_floats(conn: AsyncConnection) -> list[FloatState]:
    """Read what every vendor has with the utility, by name."""
    return await _floats(conn, {"vendor_id": None, "name": None})


async def _floats(conn: AsyncConnection, question: Mapping[str, object]) -> list[FloatState]:
    async with conn.cursor(row_factory=class_row(FloatState)) as cursor:
        await cursor.execute(sql("floats_listed"), question)
        return await cursor.fetchall()


async def _move(conn: AsyncConnection, move: Mapping[str, object]) -> FloatTaken | None:
    async with conn.cursor(row_factory=class_row(FloatTaken)) as cursor:
        await cursor.execute(sql("move_float"), move)
        return await cursor.fetchone()


def judge_float(row: tuple[int, int | None, int] | None, vendor_id: int, amount_minor: int) -> FloatRefused | None:
    """Tell whether a float (balance, limit, entries) does not reach for an amount."""
    if row is None:
        raise _unknown(vendor_id)
    balance_minor, limit_minor, _ = row
    if limit_minor is None or balance_minor - amount_minor >= -limit_minor:
        return None
    return FloatRefused(needed_minor=amount_minor, balance_minor=balance_minor, limit_minor=limit_minor)


def _unknown(vendor_id: int) -> UnknownVendor:
    return UnknownVendor(f"vendor: expected one that sells for the utility, got id {vendor_id}")
