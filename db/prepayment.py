"""Prepayment rules and dues as rows: which rules hold for an account, and what it still works off.

Stage: beside posting. Reads rules and dues, and moves dues in the transaction of the journal that moves them, under
the account's lock; `check_dues` tells the auditor where the two differ. Posts nothing itself (see db.money_events).

Sign: a due's outstanding amount is never below zero; on ledger `arrears`, a claim, the account's legs sum to minus
the outstanding, on `security_deposits` and `absence_deposits`, liabilities, to plus the outstanding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from typing import Any

from psycopg import AsyncConnection
from psycopg.rows import class_row, dict_row

from billing.journals import Ledger
from billing.prepayment import CategoryRules, Due, DuePart, PrepaymentRules, builtin_rules_text, parse_rules
from db.errors import DatabaseError
from db.named import sql

DUE_LEDGERS = (Ledger.ARREARS, Ledger.SECURITY, Ledger.ABSENCE)


class RulesRefused(DatabaseError):
    """A rules document that cannot be added."""

    code = "rules_refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepayment:
    """What prepayment means for one account on a day: its category's rules and its arrears left."""

    category: str
    rules: CategoryRules
    arrears_minor: int
    absent_until: date | None


async def add_rules(conn: AsyncConnection, text: str, *, first_open_day: date) -> PrepaymentRules:
    """Store a rules document from the day it names; the same document again changes nothing.

    Raises: RulesError for a broken document; RulesRefused for a day before `first_open_day`, or one that has another.
    """
    rules = parse_rules(text)
    cursor = await conn.execute(sql("prepayment_rules_at"), {"from_day": rules.effective_from})
    row = await cursor.fetchone()
    if row is not None and row[0] == _sha256(text):
        return rules
    if rules.effective_from < first_open_day:
        raise RulesRefused(
            f"rules {rules.id}: effective_from: expected {first_open_day} or later, what is past is sold already,"
            f" got {rules.effective_from}"
        )
    if row is not None or not await _insert_rules(conn, rules.effective_from, text):
        raise RulesRefused(
            f"rules {rules.id}: effective_from: expected a day without a document, {rules.effective_from} has another"
        )
    return rules


async def rules_on(conn: AsyncConnection, day: date) -> PrepaymentRules:
    """Return the rules in force on a local day: those that ship with the product before the utility's first."""
    cursor = await conn.execute(sql("prepayment_rules_on"), {"day": day})
    row = await cursor.fetchone()
    return _parsed(None if row is None else row[0])


async def prepayment_of(conn: AsyncConnection, account_id: int, day: date) -> Prepayment:
    """Return what holds for an account on a local day."""
    found = await prepayments_of(conn, {account_id: day})
    assert account_id in found, f"prepayment: expected an account, got id {account_id}"
    return found[account_id]


async def prepayments_of(conn: AsyncConnection, days: Mapping[int, date | None]) -> dict[int, Prepayment]:
    """Return what holds for accounts, each on a local day, by default its first open one; ids that do not exist are
    left out."""
    cursor = await conn.execute(sql("prepayments_of"), {"ids": list(days), "days": list(days.values())})
    return prepayments_from_rows(await cursor.fetchall())


def prepayments_from_rows(rows: Iterable[tuple[Any, ...]]) -> dict[int, Prepayment]:
    """Return what holds for the accounts of rows of `prepayments_of`."""
    return {
        account_id: Prepayment(
            category=category or "",
            rules=_parsed(document).of(category or ""),
            arrears_minor=arrears_minor,
            absent_until=absent_until,
        )
        for account_id, category, document, absent_until, arrears_minor in rows
    }


async def read_dues(conn: AsyncConnection, account_id: int, ledger: Ledger) -> list[Due]:
    """Read what an account works off on one ledger, settled ones too, oldest first."""
    async with conn.cursor(row_factory=class_row(Due)) as cursor:
        await cursor.execute(sql("dues_of_account"), {"account_id": account_id, "ledger": ledger.value})
        return await cursor.fetchall()


async def dues_outstanding(conn: AsyncConnection, account_id: int) -> dict[Ledger, int]:
    """Return what is outstanding of an account, by ledger, in minor units."""
    cursor = await conn.execute(sql("dues_outstanding"), {"account_id": account_id})
    found = {Ledger(ledger): int(amount_minor) for ledger, amount_minor in await cursor.fetchall()}
    return {ledger: found.get(ledger, 0) for ledger in DUE_LEDGERS}


async def open_due(
    conn: AsyncConnection,
    account_id: int,
    ledger: Ledger,
    *,
    opened_on: date,
    total_minor: int,
    note: str,
    instalments: int | None = None,
    next_on: date | None = None,
) -> None:
    """Begin to work off a sum; in the transaction of the journal that books it, under the account's lock."""
    parameters = {
        "account_id": account_id,
        "ledger": ledger.value,
        "opened_on": opened_on,
        "total_minor": total_minor,
        "instalments": instalments,
        "next_on": next_on,
        "note": note,
    }
    await conn.execute(sql("open_due"), parameters)


async def pay_dues(conn: AsyncConnection, parts: Sequence[DuePart]) -> None:
    """Lower what is outstanding; in the transaction of the journal that moves it, under the account's lock."""
    await _move_dues(conn, parts, sign=-1)


async def owe_again(conn: AsyncConnection, parts: Sequence[DuePart]) -> None:
    """Raise what is outstanding again; in the transaction of the journal that moves it, under the account's lock."""
    await _move_dues(conn, parts, sign=1)


async def add_recovery(conn: AsyncConnection, *, cause_id: int, journal_id: int) -> None:
    """Remember which recovery of arrears a journal brought with it."""
    await conn.execute(sql("add_recovery"), {"cause_id": cause_id, "journal_id": journal_id})


async def add_instalment(
    conn: AsyncConnection, *, due_id: int, n: int, due_on: date, amount_minor: int, journal_id: int | None
) -> None:
    """Remember that an instalment is paid; its key refuses a second time."""
    parameters = {
        "due_id": due_id,
        "n": n,
        "due_on": due_on,
        "amount_minor": amount_minor,
        "journal_id": journal_id,
    }
    await conn.execute(sql("add_instalment"), parameters)


async def check_dues(conn: AsyncConnection) -> list[str]:
    """Return where dues, instalments, absences and reversals do not agree with the journals; none when all do.

    One snapshot's worth only inside a repeatable-read transaction, as the auditor's.
    """
    found = [
        f"account {row['number']}: ledger {row['ledger']}: journals sum to {row['booked_minor']} minor,"
        f" dues say {row['kept_minor']}"
        for row in await _rows(conn, "broken_dues")
    ]
    found += [
        f"account {row['number']}: due {row['id']}: {row['total_minor'] - row['outstanding_minor']} minor have left it,"
        f" its instalments say {row['paid_minor']}, their journals {row['booked_minor']}"
        for row in await _rows(conn, "broken_instalments")
    ]
    found += [
        f"account {row['number']}: absent until {row['absent_until']}, deposit of {row['deposit_minor']} minor"
        for row in await _rows(conn, "broken_absences")
    ]
    found += [
        f"account {row['number']}: journal {row['id']} takes back {row['taken_minor']} minor of journal"
        f" {row['about_id']}, which did {row['done_minor']}"
        for row in await _rows(conn, "broken_reversals")
    ]
    return found


@lru_cache(maxsize=64)
def _parsed(document: str | None) -> PrepaymentRules:
    return parse_rules(builtin_rules_text() if document is None else document)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


async def _insert_rules(conn: AsyncConnection, from_day: date, text: str) -> bool:
    parameters = {"from_day": from_day, "document": text, "sha256": _sha256(text)}
    cursor = await conn.execute(sql("add_prepayment_rules"), parameters)
    return cursor.rowcount == 1


async def _move_dues(conn: AsyncConnection, parts: Sequence[DuePart], *, sign: int) -> None:
    if parts:
        parameters = {
            "ids": [part.due_id for part in parts],
            "changes": [sign * part.amount_minor for part in parts],
        }
        await conn.execute(sql("move_dues"), parameters)


async def _rows(conn: AsyncConnection, query: str) -> list[dict[str, Any]]:
    # Rows by column name: typed by the query and the migration.
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(sql(query))
        return await cursor.fetchall()
