"""What security modules have made on a day, as taken by the processes that use them.

Stage: a short transaction of its own, apart from any vend. How much may be taken is decided by the caller.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import date

from psycopg import AsyncConnection

from db.named import sql

# Tokens, credit in currency (minor units), credit in units (tenths).
Amounts = tuple[int, int, int]


async def take_of_day(
    conn: AsyncConnection, module: str, day: date, grant: Callable[[Amounts], Amounts]
) -> tuple[Amounts, Amounts]:
    """Take more of a module's day; return what had been taken before, and what was taken now.

    Processes queue at the module's row for the time of two statements, and each sees what the others took.
    """
    parameters = {"module": module, "day": day}
    async with conn.transaction():
        await conn.execute(sql("ensure_risk_day"), parameters)
        cursor = await conn.execute(sql("lock_risk_day"), parameters)
        row = await cursor.fetchone()
        assert row is not None, "the row of the day was made before"
        before: Amounts = row[0], row[1], row[2]
        tokens, minor, tenths = taken = grant(before)
        if any(taken):
            amounts = {"tokens": tokens, "minor": minor, "tenths": tenths}
            await conn.execute(sql("take_risk"), parameters | amounts)
    return before, taken


async def read_day(conn: AsyncConnection, module: str, day: date) -> Amounts:
    """Read what has been taken of a module's day."""
    cursor = await conn.execute(sql("risk_day"), {"module": module, "day": day})
    row = await cursor.fetchone()
    return (0, 0, 0) if row is None else (row[0], row[1], row[2])
