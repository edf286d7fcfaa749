"""A meter's copy of its balance after a token: told the account's truth at the next contact.

Stage: inside the dispatcher, under its leases. A token that a meter took while nobody heard it has moved its copy; its
credit is the account's since the sale. When the meter tells of the token, and of what was used before, it is sent the
account's balance as it then is, by the order that also carries its threshold.
"""

from __future__ import annotations

from collections.abc import Sequence

from psycopg import AsyncConnection

from billing.calendar import LocalCalendar
from db.accounts import look
from db.orders import order_threshold
from db.posting import lock_free
from db.token_deliveries import note_local_credits, take_local_credits

# A look at 200 accounts takes some 30 ms; 40 a second are tokens of ten million households typed in within three days.
SETTLED_A_STEP = 200


async def settle_local_credits(conn: AsyncConnection, shards: Sequence[int], calendar: LocalCalendar) -> int:
    """Order some meters to take their account's balance, in a transaction of its own; return how many."""
    async with conn.transaction():
        found = await take_local_credits(conn, shards, SETTLED_A_STEP)
        accounts = [each.account_id for each in found if each.account_id is not None]
        if not accounts:
            return 0
        free = await lock_free(conn, accounts)
        # Those whose account somebody holds come again.
        await note_local_credits(conn, [each.meter_id for each in found if each.account_id in set(accounts) - free])
        views = await look(conn, sorted(free), calendar)
        for _, view in sorted(views.items()):
            await order_threshold(conn, view, view.levels, view.balance_minor(calendar), cause="token")
    return len(views)
