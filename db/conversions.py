"""Conversion to prepayment, security refunded in instalments, long absence, emergency credit by category.

Stage: beside db.money_events. What an office orders once for an account is done in the caller's transaction; sweeps
go through all accounts in id order, each account or instalment in a transaction of its own, so that one that was
stopped goes on where it stood and one that runs twice does nothing. An account that has no billing meter just then
cannot be posted to: it is left as it is, and the next sweep meets it again.

Standard: PSERC Supply Code 2024 items 9, 17 and 23 (R-9.7, R-17iii, R-23).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from typing import Any

from psycopg import AsyncConnection
from psycopg.rows import dict_row

from billing.journals import Journal, JournalKind, Ledger, money_journal
from billing.money import format_minor
from billing.prepayment import (
    CategoryRules,
    DuePart,
    absence_ends_at_latest,
    instalment_day,
    parts_oldest_first,
    security_held_minor,
    security_instalments,
)
from billing.supply import Mode
from db.accounts import AccountView, look
from db.errors import UnknownAccount
from db.money_events import Instruction, MoneyDone, MoneyRefused, done_of, post_journals
from db.named import sql
from db.orders import PostingRules
from db.posting import Posted, lock, lock_and_look
from db.prepayment import add_instalment, open_due, pay_dues, prepayment_of, read_dues, rules_on

# One look-up of 100 accounts a round: each is a short transaction of its own, 0.3 s in all.
ACCOUNTS_PER_ROUND = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """What a postpaid account brings with it. Minor units.

    `month_minor` is one average month's charges, by which the security that stays held is found; None refunds all.
    `debt_to_arrears` moves a balance below zero to the arrears, so that the account does not begin cut off.
    """

    arrears_minor: int
    security_minor: int
    month_minor: int | None = None
    debt_to_arrears: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class InstalmentsPaid:
    """What a sweep paid. Minor units."""

    instalments: int
    amount_minor: int


async def convert(conn: AsyncConnection, account_id: int, conversion: Conversion, order: Instruction) -> MoneyDone:
    """Turn a postpaid account into a prepaid one, in the caller's transaction.

    Raises: MoneyRefused for an account that is prepaid.
    """
    view = await lock_and_look(conn, account_id, order.rules)
    if view.levels.mode is Mode.PREPAID:
        raise MoneyRefused(f"account {view.number}: expected a postpaid one to convert, got prepaid")
    prepayment = await prepayment_of(conn, account_id, order.today)
    await _change(conn, "make_prepaid", account_id)
    credit = {"credit_minor": prepayment.rules.emergency_credit_minor}
    await _change(conn, "set_credit", account_id, **credit)
    view = await _look_again(conn, account_id, order.rules)
    journals = await _open_arrears(conn, view, conversion, order)
    if conversion.security_minor:
        await _open_security(conn, view, conversion, prepayment.rules, order)
        journals.append(money_journal(JournalKind.SECURITY_OPENING, conversion.security_minor, order.text))
    posted = await post_journals(conn, view, journals, cause="conversion", rules=order.rules, now_ms=order.now_ms)
    return await done_of(conn, view, posted, event="conversion", amount_minor=conversion.arrears_minor)


async def begin_absence(
    conn: AsyncConnection, account_id: int, until: date, deposit_minor: int, order: Instruction
) -> MoneyDone:
    """Take a deposit for a long absence from the balance; supply is not cut before the day it ends (R-23).

    Raises: MoneyRefused for a postpaid or absent account, a day not ahead or too far, a deposit above the balance.
    """
    view = await lock_and_look(conn, account_id, order.rules)
    prepayment = await prepayment_of(conn, account_id, order.today)
    latest = absence_ends_at_latest(order.today, prepayment.rules)
    balance_minor = view.balance_minor(order.rules.calendar)
    if view.levels.mode is not Mode.PREPAID or prepayment.absent_until is not None:
        state = "postpaid" if prepayment.absent_until is None else f"absent until {prepayment.absent_until}"
        raise MoneyRefused(f"account {view.number}: expected a prepaid one that is not absent, got {state}")
    if not order.today < until <= latest:
        raise MoneyRefused(f"account {view.number}: until: expected a day after {order.today} to {latest}, got {until}")
    if not 0 < deposit_minor <= balance_minor:
        raise MoneyRefused(
            f"account {view.number}: deposit: expected above 0 and no more than the balance of"
            f" {format_minor(balance_minor)}, recharge first, got {format_minor(deposit_minor)}"
        )
    await _change(conn, "set_absence", account_id, until=until)
    view = await _look_again(conn, account_id, order.rules)
    await open_due(conn, account_id, Ledger.ABSENCE, opened_on=order.today, total_minor=deposit_minor, note=order.text)
    journals = [money_journal(JournalKind.ABSENCE_DEPOSIT, -deposit_minor, order.text)]
    posted = await post_journals(conn, view, journals, cause="absence", rules=order.rules, now_ms=order.now_ms)
    return await done_of(conn, view, posted, event="absence", amount_minor=-deposit_minor)


async def end_absence(conn: AsyncConnection, account_id: int, order: Instruction) -> MoneyDone:
    """Give the deposit back to the balance and decide about supply again: the consumer is back.

    Raises: MoneyRefused for an account that is not absent.
    """
    view = await lock_and_look(conn, account_id, order.rules)
    if await _absent_until(conn, account_id) is None:
        raise MoneyRefused(f"account {view.number}: expected an absent one, got one that is not")
    posted, amount_minor = await _end(conn, account_id, order.text, order.rules, order.now_ms)
    return await done_of(conn, view, posted, event="return", amount_minor=amount_minor)


async def end_absences(
    conn: AsyncConnection, today: date, *, rules: PostingRules, clock: Callable[[], int], pause_s: float = 0.0
) -> int:
    """End the absences that are over on a local day, account by account; return how many. Harmless twice.

    `conn` must not be in a transaction.
    """
    ended = after = 0
    while True:
        parameters = {"today": today, "after": after, "most": ACCOUNTS_PER_ROUND}
        cursor = await conn.execute(sql("ended_absences"), parameters)
        ids = [row[0] for row in await cursor.fetchall()]
        if not ids:
            return ended
        for account_id in ids:
            with suppress(UnknownAccount):
                ended += await _end_if_over(conn, account_id, today, rules, clock)
        after = ids[-1]
        await asyncio.sleep(pause_s)


async def pay_instalments(
    conn: AsyncConnection,
    until: date,
    *,
    rules: PostingRules,
    clock: Callable[[], int],
    pause_s: float = 0.0,
    progress: Callable[[int], None] | None = None,
) -> InstalmentsPaid:
    """Pay every instalment of security due on or before a day, one transaction each. Harmless twice.

    `conn` must not be in a transaction.
    """
    number = amount_minor = after = 0
    while True:
        parameters = {"until": until, "after": after, "most": ACCOUNTS_PER_ROUND}
        cursor = await conn.execute(sql("instalments_due"), parameters)
        ids = [row[0] for row in await cursor.fetchall()]
        if not ids:
            return InstalmentsPaid(instalments=number, amount_minor=amount_minor)
        for account_id in ids:
            with suppress(UnknownAccount):
                while (paid_minor := await _pay_next(conn, account_id, until, rules, clock)) is not None:
                    number += 1
                    amount_minor += paid_minor
        after = ids[-1]
        if progress:
            progress(len(ids))
        await asyncio.sleep(pause_s)


async def apply_category_credit(
    conn: AsyncConnection, day: date, *, rules: PostingRules, clock: Callable[[], int], pause_s: float = 0.0
) -> int:
    """Give accounts the emergency credit of their category on a day, and decide about their supply again.

    Returns how many changed. Harmless twice. `conn` must not be in a transaction.
    """
    in_force = await rules_on(conn, day)
    parameters = {
        "day": day,
        "categories": [category.category for category in in_force.categories],
        "credits": [category.emergency_credit_minor for category in in_force.categories],
        "default_minor": in_force.default.emergency_credit_minor,
        "most": ACCOUNTS_PER_ROUND,
    }
    changed = after = 0
    while True:
        cursor = await conn.execute(sql("stale_credit"), {**parameters, "after": after})
        stale = await cursor.fetchall()
        if not stale:
            return changed
        for account_id, credit_minor in stale:
            with suppress(UnknownAccount):
                changed += await _apply_credit(conn, account_id, credit_minor, rules, clock)
        after = stale[-1][0]
        await asyncio.sleep(pause_s)


async def _open_arrears(
    conn: AsyncConnection, view: AccountView, conversion: Conversion, order: Instruction
) -> list[Journal]:
    """Open the dues of what a converted account owes; return their journals."""
    journals: list[Journal] = []
    brought = [(JournalKind.ARREARS_OPENING, conversion.arrears_minor, order.text)]
    debt_minor = max(0, -view.balance_minor(order.rules.calendar))
    if conversion.debt_to_arrears:
        # Above zero a recovery runs the other way: the balance is credited, the claim grows.
        brought.append((JournalKind.ARREARS_RECOVERY, debt_minor, f"unpaid bill moved to arrears: {order.text}"))
    for kind, amount_minor, text in brought:
        if amount_minor:
            await open_due(conn, view.id, Ledger.ARREARS, opened_on=order.today, total_minor=amount_minor, note=text)
            journals.append(money_journal(kind, amount_minor, text))
    return journals


async def _open_security(
    conn: AsyncConnection, view: AccountView, conversion: Conversion, rules: CategoryRules, order: Instruction
) -> None:
    """Open the dues of a converted account's security: what stays held, and what goes back in instalments."""
    total_minor = conversion.security_minor
    month_minor = conversion.month_minor
    held_minor = 0 if month_minor is None else min(total_minor, security_held_minor(month_minor, rules))
    if held_minor:
        await open_due(
            conn,
            view.id,
            Ledger.SECURITY,
            opened_on=order.today,
            total_minor=held_minor,
            note=f"held: {order.text}",
        )
    if total_minor > held_minor:
        await open_due(
            conn,
            view.id,
            Ledger.SECURITY,
            opened_on=order.today,
            total_minor=total_minor - held_minor,
            note=f"refunded in instalments: {order.text}",
            instalments=rules.security_instalments,
            next_on=instalment_day(order.today, 1),
        )


async def _pay_next(
    conn: AsyncConnection, account_id: int, until: date, rules: PostingRules, clock: Callable[[], int]
) -> int | None:
    """Pay an account's next instalment due on or before a day; None when there is none."""
    async with conn.transaction():
        await lock(conn, [account_id])
        row = await _next_instalment(conn, account_id, until)
        if row is None:
            return None
        number, of = row["paid"] + 1, row["instalments"]
        amount_minor: int = min(security_instalments(row["total_minor"], of)[number - 1], row["outstanding_minor"])
        journal_id = None
        if amount_minor:
            view = await _look_again(conn, account_id, rules)
            journal = money_journal(JournalKind.SECURITY, amount_minor, f"security instalment {number} of {of}")
            posted = await post_journals(conn, view, [journal], cause="security", rules=rules, now_ms=clock())
            journal_id = posted.journal_ids[0]
            await pay_dues(conn, [DuePart(due_id=row["id"], amount_minor=amount_minor)])
        await add_instalment(
            conn, due_id=row["id"], n=number, due_on=row["next_on"], amount_minor=amount_minor, journal_id=journal_id
        )
        next_on = instalment_day(row["opened_on"], number + 1) if number < of else None
        await conn.execute(sql("set_next_instalment"), {"due_id": row["id"], "next_on": next_on})
        return amount_minor


async def _end_if_over(
    conn: AsyncConnection, account_id: int, today: date, rules: PostingRules, clock: Callable[[], int]
) -> bool:
    """End an absence in a transaction; False when it is not over, or was ended since the list was read."""
    async with conn.transaction():
        await lock(conn, [account_id])
        until = await _absent_until(conn, account_id)
        if until is None or until > today:
            return False
        await _end(conn, account_id, f"absence ended on {until}", rules, clock())
        return True


async def _apply_credit(
    conn: AsyncConnection, account_id: int, credit_minor: int, rules: PostingRules, clock: Callable[[], int]
) -> bool:
    """Give an account its category's emergency credit in a transaction; False when it has it."""
    async with conn.transaction():
        await lock(conn, [account_id])
        if not await _change(conn, "set_credit", account_id, credit_minor=credit_minor):
            return False
        view = await _look_again(conn, account_id, rules)
        await post_journals(conn, view, [], cause="rules", rules=rules, now_ms=clock())
        return True


async def _next_instalment(conn: AsyncConnection, account_id: int, until: date) -> dict[str, Any] | None:
    # A row by column name, typed by its query and the migration.
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(sql("next_instalment"), {"account_id": account_id, "until": until})
        return await cursor.fetchone()


async def _end(
    conn: AsyncConnection, account_id: int, text: str, rules: PostingRules, now_ms: int
) -> tuple[Posted, int]:
    """End an absence under the account's lock: flag, deposit, supply. Return also the deposit given back."""
    await _change(conn, "set_absence", account_id, until=None)
    view = await _look_again(conn, account_id, rules)
    dues = await read_dues(conn, account_id, Ledger.ABSENCE)
    amount_minor = sum(due.outstanding_minor for due in dues)
    await pay_dues(conn, parts_oldest_first(dues, amount_minor))
    journals = [money_journal(JournalKind.ABSENCE_DEPOSIT, amount_minor, text)] if amount_minor else []
    return await post_journals(conn, view, journals, cause="absence", rules=rules, now_ms=now_ms), amount_minor


async def _absent_until(conn: AsyncConnection, account_id: int) -> date | None:
    cursor = await conn.execute(sql("account_absence"), {"account_id": account_id})
    row = await cursor.fetchone()
    return None if row is None else row[0]


async def _change(conn: AsyncConnection, query: str, account_id: int, **parameters: object) -> bool:
    """Change an account's row and tell its shard's owner; return whether there was something to change."""
    cursor = await conn.execute(sql(query), {"account_id": account_id, **parameters})
    row = await cursor.fetchone()
    if row is not None:
        await conn.execute(sql("feed_account"), {"shard": row[0], "id": account_id, "version": row[1]})
    return row is not None


async def _look_again(conn: AsyncConnection, account_id: int, rules: PostingRules) -> AccountView:
    """Look at an account that this transaction has locked and may have changed.

    Raises: UnknownAccount for one without a billing meter.
    """
    views = await look(conn, [account_id], rules.calendar)
    if account_id not in views:
        raise UnknownAccount(f"account: expected one with a billing meter, got id {account_id}")
    return views[account_id]
