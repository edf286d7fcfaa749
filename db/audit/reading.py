"""How an audit reads: one snapshot, chunks of bounded size, rows by column name.

Stage: below all checks. Nothing here judges.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from psycopg import AsyncConnection
from psycopg.rows import dict_row

from billing.calendar import LocalCalendar
from db.audit.report import Book
from db.named import sql

# Below every id, and the highest a journal and a meter can have.
FIRST_ID, LAST_ID, LAST_METER_ID = -1, 2**63 - 1, 2**31 - 1

# Phase, how far, of how much.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much is read at a time; what is found does not depend on it.

    `accounts`: 500 of a year are 180,000 day journals, a second of work; only their sums leave the database. `rows`:
    50,000 journals have 100,000 to 300,000 legs, 30 MB in the database while they are summed up.
    """

    accounts: int = 500
    rows: int = 50_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Ids:
    """A range (after, upto] of ids; `only` of them, if given."""

    after: int
    upto: int
    only: list[int] | None = None

    @property
    def parameters(self) -> dict[str, object]:
        """The range as queries take it."""
        return {"after": self.after, "upto": self.upto, "ids": self.only}


@dataclass(slots=True, kw_only=True)
class Audit:
    """One audit under way. `account_ids` is what it is limited to, rising; None for the whole database."""

    book: Book
    calendar: LocalCalendar
    limits: Limits
    clock: datetime
    account_ids: list[int] | None
    accounts: int
    last_journal_id: int
    recent_shards: list[int]
    # Of the few meters that were moved or taken away: where they stood first.
    former_places_ms: dict[int, int]
    progress: Progress
    accounts_done: int = 0
    # Two connections take chunks of accounts in turn.
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    taken_to: int = FIRST_ID
    exhausted: bool = False


async def ranges(conn: AsyncConnection, query: str, *, most: int) -> AsyncIterator[Ids]:
    """Yield ranges of ids that hold at most so many known rows and leave none out."""
    after = FIRST_ID
    while True:
        cursor = await conn.execute(sql(query), {"after": after, "most": most})
        row = await cursor.fetchone()
        upto = row[0] if row else None
        if upto is None:
            yield Ids(after=after, upto=LAST_ID)
            return
        yield Ids(after=after, upto=upto)
        after = upto


async def rows(conn: AsyncConnection, query: str, parameters: Mapping[str, object]) -> list[dict[str, Any]]:
    """Return all rows of a query by column name."""
    # Rows by column name: typed by the query and the migration.
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(sql(query), parameters)
        return await cursor.fetchall()


async def first_row(conn: AsyncConnection, query: str, parameters: Mapping[str, object]) -> tuple[Any, ...]:
    """Return the one row of an aggregate."""
    # Typed by its query.
    cursor = await conn.execute(sql(query), parameters)
    row = await cursor.fetchone()
    assert row is not None, f"{query} returns one row"
    return row


async def column(conn: AsyncConnection, query: str, parameters: Mapping[str, object]) -> list[Any]:
    """Return the first column of all rows."""
    # Typed by its query.
    cursor = await conn.execute(sql(query), parameters)
    return [row[0] for row in await cursor.fetchall()]


def slices(ids: Sequence[int], most: int) -> list[list[int]]:
    """Cut a list into pieces of at most so many."""
    return [list(ids[first : first + most]) for first in range(0, len(ids), most)]
