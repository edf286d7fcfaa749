"""The auditor: every invariant that the database alone can tell, checked on a live installation.

Stage: after the fact, whenever an operator asks. Reads everything in one repeatable-read, read-only snapshot, in
chunks of bounded size; what the pure functions say of the stored rows is compared with what posts have written. It
never writes, locks an account or looks at a clock. While it runs, its snapshot keeps old row versions from being
vacuumed away.

`ledger` reads journals and legs in id order, `accounts` and `meters` read accounts with their meters, `vends` what was
sold, `floats` what vendors have, `coupons` what is owed for coupons, `payments` what was paid online; `offender` shows
the first account that breaks something.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from psycopg import AsyncConnection
from psycopg import sql as compose

from billing.calendar import LocalCalendar
from db.audit.accounts import SETTLE_S, check_accounts, check_unmetered
from db.audit.coupons import check_coupons
from db.audit.floats import check_floats
from db.audit.ledger import check_all_dues, check_ledger
from db.audit.meters import check_batches, former_places
from db.audit.offender import shown_in_full, shown_lines
from db.audit.payments import check_payments
from db.audit.reading import Audit, Limits, Progress, column, first_row, rows
from db.audit.report import AuditReport, Book, Check
from db.audit.vends import check_vends
from db.errors import UnknownAccount
from db.migrate import migrations
from db.named import sql

__all__ = ["AuditReport", "Check", "Limits", "Scope", "missing_migrations", "run_checks", "shown_lines"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """What to look at: some accounts by number, or so many of all, or the whole database."""

    numbers: tuple[str, ...] = ()
    sample: int | None = None


async def missing_migrations(conn: AsyncConnection) -> list[str]:
    """Return the migrations that a database lacks; an auditor does not apply them."""
    (begun,) = await first_row(conn, "audit_migrations_begun", {})
    applied = await column(conn, "audit_migrations", {}) if begun else []
    return [migration.name for migration in migrations() if migration.name not in applied]


async def run_checks(
    conn: AsyncConnection,
    calendar: LocalCalendar,
    *,
    scope: Scope | None = None,
    limits: Limits | None = None,
    second: AsyncConnection | None = None,
    progress: Progress | None = None,
) -> AuditReport:
    """Check every invariant on one snapshot. The connections must not be in a transaction.

    A `second` connection halves the time: one reads the ledger while the other begins with the accounts.

    Raises: UnknownAccount.
    """
    scope = scope or Scope()
    async with conn.transaction():
        await conn.execute(sql("audit_snapshot"))
        snapshot, audit = await _begin(conn, calendar, scope, limits or Limits(), progress or _silent)
        if second is None:
            await _check_what_is_one(conn, audit)
            await check_accounts(conn, audit)
        else:
            await _check_on_both(conn, second, snapshot, audit)
        await check_batches(conn, audit)
        offence = audit.book.offence
        offender = await shown_in_full(conn, offence, calendar) if offence else None
    return audit.book.report(_name(scope, audit), offender)


async def _begin(
    conn: AsyncConnection, calendar: LocalCalendar, scope: Scope, limits: Limits, progress: Progress
) -> tuple[str, Audit]:
    snapshot, clock = await first_row(conn, "audit_export", {})
    account_ids = await _account_ids(conn, scope)
    accounts, last_journal_id = await first_row(conn, "audit_extent", {})
    audit = Audit(
        book=Book(),
        calendar=calendar,
        limits=limits,
        clock=clock,
        account_ids=account_ids,
        accounts=accounts if account_ids is None else len(account_ids),
        last_journal_id=last_journal_id,
        recent_shards=await column(conn, "audit_recent_shards", {"settle_s": SETTLE_S, "clock": clock}),
        former_places_ms=await former_places(conn),
        progress=progress,
    )
    return snapshot, audit


async def _account_ids(conn: AsyncConnection, scope: Scope) -> list[int] | None:
    """Return the accounts that an audit is limited to, rising; None for all."""
    if scope.numbers:
        found = await rows(conn, "audit_numbers", {"numbers": list(scope.numbers)})
        unknown = sorted({*scope.numbers} - {row["number"] for row in found})
        if unknown:
            raise UnknownAccount(f"account: expected a known number, got {unknown[0]!r}")
        return sorted(row["id"] for row in found)
    return None if scope.sample is None else await column(conn, "audit_sample", {"most": scope.sample})


async def _check_on_both(conn: AsyncConnection, second: AsyncConnection, snapshot: str, audit: Audit) -> None:
    """Check on two connections at once; whichever is through with its own goes on with the accounts."""
    async with second.transaction():
        await second.execute(sql("audit_snapshot"))
        await second.execute(compose.SQL("set transaction snapshot {}").format(compose.Literal(snapshot)))
        try:
            async with asyncio.TaskGroup() as lanes:
                lanes.create_task(_check_all(conn, audit))
                lanes.create_task(check_accounts(second, audit))
        except BaseExceptionGroup as failed:
            # Callers know the errors of one connection.
            raise failed.exceptions[0] from None


async def _check_all(conn: AsyncConnection, audit: Audit) -> None:
    await _check_what_is_one(conn, audit)
    await check_accounts(conn, audit)


async def _check_what_is_one(conn: AsyncConnection, audit: Audit) -> None:
    await check_ledger(conn, audit)
    await check_vends(conn, audit)
    await check_floats(conn, audit)
    await check_coupons(conn, audit)
    await check_payments(conn, audit)
    await check_all_dues(conn, audit)
    await check_unmetered(conn, audit)


def _name(scope: Scope, audit: Audit) -> str:
    if scope.numbers:
        return f"accounts {', '.join(sorted(scope.numbers))}"
    return "whole database" if audit.account_ids is None else f"sample of {len(audit.account_ids)} accounts"


def _silent(_phase: str, _done: int, _of: int) -> None:
    """Report progress to nobody."""
