"""Online recharges: each order's money, vend and state go together, and all of it is the ledger of gateways.

Stage: a few set-based statements; only of the whole database.
"""

from __future__ import annotations

from psycopg import AsyncConnection

from db.audit.reading import Audit, first_row, rows
from db.audit.report import LAST_KEY
from db.payments import read_sums


async def check_payments(conn: AsyncConnection, audit: Audit) -> None:
    """Check that money received once is one vend of its amount, that what went back was taken back, and the ledger."""
    if audit.account_ids is not None:
        return
    (orders,) = await first_row(conn, "payment_orders_count", {})
    audit.book.count("payments", orders)
    for number, row in enumerate(await rows(conn, "broken_payments", {})):
        audit.book.fail("payments", f"order {row['order_id']}: {row['broken']}", key=number)
    sums = await read_sums(conn)
    kept_minor = sums.paid_minor - sums.refunded_minor - sums.refund_due_minor
    if kept_minor != sums.credited_minor:
        text = f"ledger gateway_clearing: credits {sums.credited_minor} minor, gateways keep {kept_minor}"
        audit.book.fail("payments", text, key=LAST_KEY)
