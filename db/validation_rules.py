"""Validation rules as rows: which document holds on a day, and what rules have noted of readings.

Stage: beside ingest and the office's commands. Stores documents, never changes them; knows nothing of what they say.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime

from psycopg import AsyncConnection
from psycopg.rows import class_row

from db.errors import DatabaseError
from db.named import sql


class ValidationRulesRefused(DatabaseError):
    """A validation rules document that cannot be added."""

    code = "validation_rules_refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class FlagRow:
    """One thing noted of a meter. `expected` and `got` are seconds or Wh, as the rule has it."""

    meter_id: int
    day: date
    rule: str
    severity: str
    at: datetime
    expected: int
    got: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NotedFlag:
    """One thing noted of a meter, as it is shown."""

    serial: str
    rule: str
    severity: str
    day: date
    at: datetime
    expected: int
    got: int
    noted_at: datetime


async def validation_document(conn: AsyncConnection, day: date) -> str | None:
    """Return the document in force on a local day; None before the utility's first."""
    cursor = await conn.execute(sql("validation_rules_on"), {"day": day})
    row = await cursor.fetchone()
    return None if row is None else str(row[0])


async def add_validation_document(conn: AsyncConnection, text: str, *, from_day: date, first_open_day: date) -> None:
    """Store a document, checked before, from a local day on; the same document again changes nothing.

    Raises: ValidationRulesRefused for a day before `first_open_day`, or one that has another document.
    """
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    cursor = await conn.execute(sql("validation_rules_at"), {"from_day": from_day})
    row = await cursor.fetchone()
    if row is not None and row[0] == sha256:
        return
    if from_day < first_open_day:
        raise ValidationRulesRefused(f"effective_from: expected {first_open_day} or later, got {from_day}")
    parameters = {"from_day": from_day, "document": text, "sha256": sha256}
    if row is not None or not (await conn.execute(sql("add_validation_rules"), parameters)).rowcount:
        raise ValidationRulesRefused(f"effective_from: expected a day without a document, {from_day} has another")


async def add_flags(conn: AsyncConnection, flags: Sequence[FlagRow]) -> None:
    """Keep what rules noted, once a meter, local day and rule; the first stays."""
    kept: dict[tuple[int, date, str], FlagRow] = {}
    for flag in flags:
        kept.setdefault((flag.meter_id, flag.day, flag.rule), flag)
    if not kept:
        return
    # In the order of the key: of two writers one waits for the other, never both.
    rows = [kept[key] for key in sorted(kept)]
    await conn.execute(
        sql("add_reading_flags"),
        {
            "meter_ids": [row.meter_id for row in rows],
            "days": [row.day for row in rows],
            "rules": [row.rule for row in rows],
            "severities": [row.severity for row in rows],
            "ats": [row.at for row in rows],
            "expecteds": [row.expected for row in rows],
            "gots": [row.got for row in rows],
        },
    )


async def noted_flags(
    conn: AsyncConnection,
    *,
    rule: str | None = None,
    serial: str | None = None,
    since: datetime | None = None,
    most: int,
    skip: int = 0,
) -> list[NotedFlag]:
    """Return what rules have noted, newest first."""
    parameters = {"rule": rule, "serial": serial, "since": since, "most": most, "skip": skip}
    async with conn.cursor(row_factory=class_row(NotedFlag)) as cursor:
        await cursor.execute(sql("reading_flags_noted"), parameters)
        return await cursor.fetchall()


async def permit_export(conn: AsyncConnection, account_id: int, *, may_export: bool) -> bool:
    """Let an account's connection send energy to the grid, or not any more; return whether that changes something."""
    async with conn.transaction():
        await conn.execute(sql("lock_accounts"), {"ids": [account_id]})
        cursor = await conn.execute(sql("permit_export"), {"account_id": account_id, "may_export": may_export})
        row = await cursor.fetchone()
        if row is not None:
            await conn.execute(sql("feed_account"), {"shard": row[0], "id": account_id, "version": row[1]})
        return row is not None
