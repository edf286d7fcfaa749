"""What processes may do in the database: add to the ledger, never change it."""

from __future__ import annotations

import asyncio
from datetime import date

import psycopg
import pytest

from db.migrate import migrate
from db.pool import APPLICATION_ROLE, connect
from db.readings import ensure_partitions, partition_days

pytestmark = pytest.mark.db


@pytest.mark.parametrize(
    ("table", "change"), [("journals", "reason = ''"), ("legs", "amount_minor = 0"), ("tokens", "digits = ''")]
)
@pytest.mark.parametrize("statement", ["update {table} set {change}", "delete from {table}", "truncate {table}"])
def test_ledger_rows_cannot_be_changed_by_a_process(database_url: str, table: str, change: str, statement: str) -> None:
    """The application's role has no right to update, delete or truncate what money is told by."""

    async def story() -> None:
        async with await connect(database_url, application="owner") as owner:
            await migrate(owner)
        async with await connect(database_url, application="process", role=APPLICATION_ROLE) as conn:
            text = statement.format(table=table, change=change)
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match=f"denied for table {table}"):
                await conn.execute(text.encode())

    asyncio.run(story())


def test_process_makes_partitions_and_reads_the_ledger(database_url: str) -> None:
    """Without the owner's rights a process still makes tomorrow's partition, and reads what is booked."""

    async def story() -> None:
        async with await connect(database_url, application="owner") as owner:
            await migrate(owner)
        async with await connect(database_url, application="process", role=APPLICATION_ROLE) as conn:
            assert await ensure_partitions(conn, [date(2026, 4, 1)]) == 1
            assert date(2026, 4, 1) in await partition_days(conn)
            cursor = await conn.execute("select count(*) from journals join legs on legs.journal_id = journals.id")
            assert await cursor.fetchone() == (0,)
            cursor = await conn.execute("select current_user")
            assert await cursor.fetchone() == (APPLICATION_ROLE,)

    asyncio.run(story())
