"""Vendors' floats: their entries against the ledger, their limits, their batches.

Stage: one pass over the journals that move a float, in id order, then one row per vendor. Only of the whole database:
a float belongs to no account.
"""

from __future__ import annotations

from psycopg import AsyncConnection

from db.audit.reading import Audit, first_row, ranges, rows
from db.audit.report import LAST_KEY


async def check_floats(conn: AsyncConnection, audit: Audit) -> None:
    """Check that floats, entries and journals agree, and that no sale has passed a limit."""
    if audit.account_ids is not None:
        return
    ledger_minor = 0
    async for ids in ranges(conn, "audit_next_vendor_legs", most=audit.limits.rows):
        parameters = {"after": ids.after, "upto": ids.upto}
        entries, amount_minor, broken = await first_row(conn, "audit_entries", parameters)
        ledger_minor += amount_minor
        audit.book.count("I7", entries)
        for journal_id, vendor_id, n, why in broken:
            entry = "" if n is None else f", entry {n} of vendor id {vendor_id}"
            audit.book.fail("I7", f"journal {journal_id}{entry}: {why}", key=journal_id, journal_id=journal_id)
    floats_minor = await _check_balances(conn, audit)
    if floats_minor != ledger_minor:
        text = f"floats sum to {floats_minor} minor, ledger vendor_clearing to {ledger_minor}"
        audit.book.fail("I7-floats", text, key=LAST_KEY)
    await _check_batches(conn, audit)


async def _check_balances(conn: AsyncConnection, audit: Audit) -> int:
    floats_minor = 0
    for row in await rows(conn, "audit_floats", {}):
        audit.book.count("I7-floats")
        floats_minor += row["balance_minor"]
        if (row["balance_minor"], row["entries"]) != (row["last_minor"], row["last_n"]):
            text = (
                f"vendor {row['name']}: float of {row['balance_minor']} minor after {row['entries']} entries,"
                f" the last is {row['last_n']} and left {row['last_minor']}"
            )
            audit.book.fail("I7-floats", text, key=row["vendor_id"])
    return floats_minor


async def _check_batches(conn: AsyncConnection, audit: Audit) -> None:
    audit.book.count("I7-batches", (await first_row(conn, "audit_batches_count", {}))[0])
    for row in await rows(conn, "audit_batches_of_vendors", {}):
        text = f"vendor id {row['vendor_id']}, {row['kind']} {row['scope']}: batch {row['number']} does not join"
        audit.book.fail("I7-batches", text, key=row["vendor_id"])
