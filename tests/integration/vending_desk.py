"""The vending desk without HTTP: a database of its own, one home, one vendor as a seller, a clock that stands still."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from psycopg import AsyncConnection

from billing.journals import JournalKind
from db.audit import run_checks
from db.migrate import migrate
from db.pool import connect
from db.posting import lock_and_look, post_money
from db.registry import add_vendor
from tests.integration.vending_shop import (
    CALENDAR,
    MASTER,
    RULES,
    SGC,
    VENDING_KEY,
    Clock,
    Home,
    add_home,
)
from vending.edges.keys import add_vending_key, load_security_module
from vending.edges.store import Answered, Desk, Seller, sell
from vending.vends import Tender, VendLimits, VendOrder


@dataclass(slots=True, kw_only=True)
class Counter:
    """Who sells at the desk, to whom."""

    conn: AsyncConnection
    desk: Desk
    clock: Clock
    home: Home
    seller: Seller

    async def sell(self, message_id: str, amount_minor: int = 50_000, **changes: Any) -> Answered:
        """Sell to the home; fields of an order and `seller` may be given otherwise."""
        seller = changes.pop("seller", self.seller)
        order = VendOrder(
            **{"message_id": message_id, "meter": self.home.serial, "amount_minor": amount_minor, "tender": Tender.UPI}
            | changes
        )
        return await sell(self.conn, self.desk, seller, order)

    async def balance(self) -> int:
        """Return the home's running balance in minor units."""
        async with self.conn.transaction():
            return (await lock_and_look(self.conn, self.home.account_id, RULES)).balance_minor(CALENDAR)

    async def set_balance(self, balance_minor: int) -> None:
        """Adjust the home's account to a balance."""
        async with self.conn.transaction():
            view = await lock_and_look(self.conn, self.home.account_id, RULES)
            change_minor = balance_minor - view.balance_minor(CALENDAR)
            await post_money(
                self.conn, view, JournalKind.ADJUSTMENT, change_minor, rules=RULES, now_ms=self.clock.now_ms
            )

    async def rows(self, query: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Read rows; for what only tests ask."""
        return await (await self.conn.execute(query.encode(), parameters)).fetchall()

    async def one(self, query: str, *parameters: object) -> Any:  # A column of any type.
        """Read one value."""
        ((value,),) = await self.rows(query, *parameters)
        return value

    async def legs(self, journal_id: int) -> dict[str, int]:
        """Return a journal's amounts by ledger."""
        return dict(await self.rows("select ledger, amount_minor from legs where journal_id = %s", journal_id))

    async def audit(self) -> dict[str, list[str]]:
        """Return the examples of the checks that the auditor finds broken."""
        report = await run_checks(self.conn, CALENDAR)
        return {check.id: check.examples for check in report.checks if check.broken}


@asynccontextmanager
async def open_counter(database_url: str) -> AsyncIterator[Counter]:
    """Open the desk on a database without rows."""
    async with await connect(database_url, application="test") as conn:
        await migrate(conn)
        await add_vending_key(conn, MASTER, sgc=SGC, krn=1, key=VENDING_KEY)
        clock = Clock()
        desk = Desk(
            rules=RULES,
            limits=VendLimits(min_minor=1_000, max_minor=5_000_000),
            security_module=await load_security_module(conn, MASTER),
            clock=clock,
        )
        home = await add_home(conn, "PB000123", "100200300")
        seller = Seller(vendor_id=await add_vendor(conn, "Station 17"), name="Station 17", active=True)
        yield Counter(conn=conn, desk=desk, clock=clock, home=home, seller=seller)
