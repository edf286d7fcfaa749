"""Coupons: what the ledger owes for them, and that each redeemed one is one vend.

Stage: a few set-based statements; only of the whole database.
"""

from __future__ import annotations

from psycopg import AsyncConnection

from db.audit.reading import Audit, rows
from db.audit.report import LAST_KEY
from db.coupons import read_liability


async def check_coupons(conn: AsyncConnection, audit: Audit) -> None:
    """Check that coupons sold and not redeemed, and money held for licences, are the ledger `coupons`."""
    if audit.account_ids is not None:
        return
    liability = await read_liability(conn)
    audit.book.count("coupons", liability.coupons)
    if not liability.agrees:
        text = (
            f"ledger coupons: owes {liability.ledger_minor} minor, coupons sold and not redeemed come to "
            f"{liability.coupons_minor}, {liability.held_minor} are held for licences"
        )
        audit.book.fail("coupons", text, key=LAST_KEY)
    for number, row in enumerate(await rows(conn, "broken_coupons", {})):
        text = (
            f"coupon {row['serial']} of {row['amount_minor']} minor: its vend has message {row['message_id']} "
            f"and {row['vend_minor']} minor"
        )
        audit.book.fail("coupons", text, key=number)
