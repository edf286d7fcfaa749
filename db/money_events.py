"""Money events that the billing office orders: each one transaction, with a reason and a name.

Stage: between the command line and posting. Each function locks the account, looks, refuses or books, and moves the
dues that go with the journals; the caller has opened the transaction. Usage is never touched here: what readings got
wrong is put right by a correction.

A journal is taken back by the same kind of journal with the opposite sign, a vend by a `reversal`; either names the
journal it is about, and there is one at the most.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import Any

from psycopg import AsyncConnection
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from billing.calendar import from_ms
from billing.journals import Journal, JournalKind, Ledger, money_journal
from billing.money import format_minor
from billing.prepayment import Split, interest_minor, parts_given_back, parts_oldest_first
from db.accounts import AccountView
from db.errors import DatabaseError
from db.floats import give_back
from db.named import sql
from db.orders import PostingRules
from db.posting import Change, Posted, Prepared, lock_and_look, prepare_change, write_change
from db.prepayment import add_recovery, dues_outstanding, open_due, owe_again, pay_dues, prepayment_of, read_dues

# As the table's own check has it.
_REFERENCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,63}", re.ASCII)
REVERSIBLE = frozenset(
    {
        JournalKind.OPENING,
        JournalKind.VEND,
        JournalKind.REFUND,
        JournalKind.ADJUSTMENT,
        JournalKind.SUBSIDY,
        JournalKind.INTEREST,
        JournalKind.WRITE_OFF,
    }
)


class MoneyRefused(DatabaseError):
    """A money event that the account, the journal or the rules do not allow; nothing was booked."""

    code = "money_refused"


class ReferenceReused(DatabaseError):
    """A reference that belongs to another command."""

    code = "reference_reused"


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruction:
    """Who orders a money event, why, and when by the clock of the office.

    Units: `now_ms` in UTC milliseconds; it dates dues, never a charge.
    """

    reason: str
    by: str
    now_ms: int
    rules: PostingRules

    @property
    def text(self) -> str:
        """What the journal keeps as its reason."""
        return f"{self.reason} (by {self.by})"

    @property
    def today(self) -> date:
        """The local day of the order."""
        return self.rules.calendar.day_of(self.now_ms)


@dataclass(frozen=True, slots=True, kw_only=True)
class MoneyDone:
    """What a money event did, and where it left the account. Minor units."""

    account_number: str
    kind: str
    amount_minor: int
    journal_ids: tuple[int, ...]
    balance_minor: int
    supply: str
    outstanding: Mapping[Ledger, int]

    def to_json(self) -> dict[str, object]:
        """Return the answer as `--json` prints it and a reference keeps it."""
        return {
            "account": self.account_number,
            "event": self.kind,
            "amount_minor": self.amount_minor,
            "journals": list(self.journal_ids),
            "balance_minor": self.balance_minor,
            "supply": self.supply,
            "arrears_minor": self.outstanding[Ledger.ARREARS],
            "security_minor": self.outstanding[Ledger.SECURITY],
            "absence_deposit_minor": self.outstanding[Ledger.ABSENCE],
        }


# A money event on a connection that is in a transaction, about an account or journal, as ordered.
Event = Callable[[AsyncConnection, int, Instruction], Awaitable[MoneyDone]]


async def once(
    conn: AsyncConnection,
    reference: str | None,
    request: Mapping[str, object],
    work: Callable[[], Awaitable[MoneyDone]],
) -> dict[str, Any]:
    """Do a money command in a transaction of its own; under a reference once, its answer is read ever after.

    Raises: ReferenceReused for another command under the reference; whatever `work` refuses, which stores nothing.
    """
    if reference is not None and not _REFERENCE.fullmatch(reference):
        raise MoneyRefused(f"reference: expected 1-64 letters, digits and . _ : / -, got {len(reference)} characters")
    digest = hashlib.sha256(json.dumps(request, sort_keys=True, separators=(",", ":")).encode()).digest()
    async with conn.transaction():
        if reference is None:
            return (await work()).to_json()
        await conn.execute(sql("lock_money_command"), {"reference": reference})
        cursor = await conn.execute(sql("money_command"), {"reference": reference})
        row = await cursor.fetchone()
        if row is not None:
            if bytes(row[0]) != digest:
                raise ReferenceReused(
                    f"reference {reference}: expected the command it was first used with, got another"
                )
            return dict(row[1])
        answer = (await work()).to_json()
        stored = {"reference": reference, "request_sha256": digest, "answer": Jsonb(answer)}
        await conn.execute(sql("add_money_command"), stored)
        return answer


async def post_journals(
    conn: AsyncConnection,
    view: AccountView,
    journals: Sequence[Journal],
    *,
    cause: str,
    rules: PostingRules,
    now_ms: int,
) -> Posted:
    """Book money events that belong together as one: alarms and supply follow only from the balance after all.

    Without a journal, decide again after a change of the account's own row.
    """
    return await write_change(conn, view, _change(view, journals, cause), rules, now_ms)


async def prepare_recharge(
    conn: AsyncConnection,
    view: AccountView,
    split: Split,
    *,
    rules: PostingRules,
    now_ms: int,
    source: Ledger = Ledger.VENDOR_CLEARING,
    token: str | None = None,
) -> Prepared:
    """Decide a recharge: the vend in full, and of it what arrears take, oldest first. Under the account's lock.

    The caller writes the row, then calls `book_recovery`. `token` is told to the consumer: its digits in groups.
    """
    amount_minor = split.recovered_minor + split.kept_minor
    journals = [money_journal(JournalKind.VEND, amount_minor, source=source)]
    if split.recovered_minor:
        journals.append(money_journal(JournalKind.ARREARS_RECOVERY, -split.recovered_minor, "share of a recharge"))
        # Before the post: what it tells the consumer counts what is still owed after this recharge.
        dues = await read_dues(conn, view.id, Ledger.ARREARS)
        await pay_dues(conn, parts_oldest_first(dues, split.recovered_minor))
    change = replace(_change(view, journals, "vend"), recharge_minor=amount_minor, recharge_token=token)
    return await prepare_change(conn, view, change, rules, now_ms)


async def book_recovery(conn: AsyncConnection, split: Split, journal_ids: Sequence[int]) -> None:
    """Note of a recharge that is booked which of its journals took what arrears got, if they got anything."""
    if split.recovered_minor:
        await add_recovery(conn, cause_id=journal_ids[0], journal_id=journal_ids[1])


def _change(view: AccountView, journals: Sequence[Journal], cause: str) -> Change:
    before = view.checkpoint
    added_minor = sum(journal.prepaid_minor for journal in journals)
    return Change(
        journals=tuple(journals),
        checkpoint=replace(before, posted_minor=before.posted_minor + added_minor),
        levels=view.levels,
        cause=cause,
        may_rearm=True,
    )


async def refund(conn: AsyncConnection, account_id: int, amount_minor: int, order: Instruction) -> MoneyDone:
    """Pay out some of a balance.

    Raises: MoneyRefused above the balance.
    """
    view = await _locked(conn, account_id, amount_minor, order)
    _require_balance(view, amount_minor, order, "to refund")
    return await _book(conn, view, [money_journal(JournalKind.REFUND, -amount_minor, order.text)], order)


async def adjust(conn: AsyncConnection, account_id: int, amount_minor: int, order: Instruction) -> MoneyDone:
    """Credit an account, or debit it below zero, on the office's word. Signed."""
    view = await _locked(conn, account_id, abs(amount_minor), order)
    return await _book(conn, view, [money_journal(JournalKind.ADJUSTMENT, amount_minor, order.text)], order)


async def subsidise(conn: AsyncConnection, account_id: int, amount_minor: int, order: Instruction) -> MoneyDone:
    """Credit a government's subsidy, apart from the consumer's own money."""
    view = await _locked(conn, account_id, amount_minor, order)
    return await _book(conn, view, [money_journal(JournalKind.SUBSIDY, amount_minor, order.text)], order)


async def write_off(
    conn: AsyncConnection, account_id: int, amount_minor: int, order: Instruction, *, arrears: bool
) -> MoneyDone:
    """Give up a debt: of the balance below zero, or of the arrears.

    Arrears are written off by way of the balance: credited as a bad debt, and taken at once by a recovery.
    Raises: MoneyRefused above the debt.
    """
    view = await _locked(conn, account_id, amount_minor, order)
    if not arrears:
        debt_minor = max(0, -view.balance_minor(order.rules.calendar))
        _require_at_most(view, amount_minor, debt_minor, "a balance below zero")
        return await _book(conn, view, [money_journal(JournalKind.WRITE_OFF, amount_minor, order.text)], order)
    dues = await read_dues(conn, account_id, Ledger.ARREARS)
    _require_at_most(view, amount_minor, sum(due.outstanding_minor for due in dues), "arrears")
    journals = [
        money_journal(JournalKind.WRITE_OFF, amount_minor, order.text),
        money_journal(JournalKind.ARREARS_RECOVERY, -amount_minor, order.text),
    ]
    await pay_dues(conn, parts_oldest_first(dues, amount_minor))
    done = await _book(conn, view, journals, order)
    await add_recovery(conn, cause_id=done.journal_ids[0], journal_id=done.journal_ids[1])
    return done


async def add_arrears(conn: AsyncConnection, account_id: int, amount_minor: int, order: Instruction) -> MoneyDone:
    """Bring in arrears of the earlier system; recharges work them off."""
    view = await _locked(conn, account_id, amount_minor, order)
    await open_due(conn, account_id, Ledger.ARREARS, opened_on=order.today, total_minor=amount_minor, note=order.text)
    return await _book(conn, view, [money_journal(JournalKind.ARREARS_OPENING, amount_minor, order.text)], order)


async def add_security(
    conn: AsyncConnection, account_id: int, amount_minor: int, order: Instruction, *, collect: bool
) -> MoneyDone:
    """Hold a security deposit: brought in from the earlier system, or collected from the balance.

    Raises: MoneyRefused when the balance does not hold what is to be collected.
    """
    view = await _locked(conn, account_id, amount_minor, order)
    journal = money_journal(JournalKind.SECURITY_OPENING, amount_minor, order.text)
    if collect:
        _require_balance(view, amount_minor, order, "to collect as security")
        journal = money_journal(JournalKind.SECURITY, -amount_minor, order.text)
    await open_due(conn, account_id, Ledger.SECURITY, opened_on=order.today, total_minor=amount_minor, note=order.text)
    return await _book(conn, view, [journal], order)


async def return_security(conn: AsyncConnection, account_id: int, amount_minor: int, order: Instruction) -> MoneyDone:
    """Give back some of a security deposit to the balance, the oldest deposit first.

    Raises: MoneyRefused above what is held.
    """
    view = await _locked(conn, account_id, amount_minor, order)
    dues = await read_dues(conn, account_id, Ledger.SECURITY)
    _require_at_most(view, amount_minor, sum(due.outstanding_minor for due in dues), "security held")
    await pay_dues(conn, parts_oldest_first(dues, amount_minor))
    return await _book(conn, view, [money_journal(JournalKind.SECURITY, amount_minor, order.text)], order)


async def pay_interest(conn: AsyncConnection, account_id: int, amount_minor: int, order: Instruction) -> MoneyDone:
    """Credit interest of an amount that the office worked out, as that on security (R-27)."""
    view = await _locked(conn, account_id, amount_minor, order)
    return await _book(conn, view, [money_journal(JournalKind.INTEREST, amount_minor, order.text)], order)


async def pay_interest_on_advance(
    conn: AsyncConnection, account_id: int, advance_minor: int, days: int, order: Instruction
) -> MoneyDone:
    """Credit interest on an advance payment held for some days, at the category's rate (R-27).

    Raises: MoneyRefused where the category pays none, which is so for an ordinary prepaid balance.
    """
    prepayment = await prepayment_of(conn, account_id, order.today)
    if not prepayment.rules.interest_on_advance:
        raise MoneyRefused(
            f"interest: category {prepayment.category}: expected rules that pay interest on an advance, got none"
        )
    amount_minor = interest_minor(advance_minor, days, prepayment.rules.interest_basis_points)
    return await pay_interest(conn, account_id, amount_minor, order)


async def reverse(conn: AsyncConnection, journal_id: int, order: Instruction) -> MoneyDone:
    """Take back a journal, and the recovery of arrears that it brought with it.

    Raises: MoneyRefused for a journal of usage or of dues, one that is a reversal itself, and one taken back before.
    """
    row = await _journal(conn, journal_id)
    kind = JournalKind(row["kind"])
    if kind not in REVERSIBLE or row["about_id"] is not None or row["correction_id"] is not None:
        allowed = ", ".join(sorted(REVERSIBLE))
        raise MoneyRefused(
            f"journal {journal_id}: expected one of {allowed} that takes back no other and is of no correction,"
            f" got {kind.value}; usage is put right by a correction"
        )
    view = await lock_and_look(conn, row["account_id"], order.rules)
    row = await _journal(conn, journal_id)
    if row["reversed_by"] is not None:
        raise MoneyRefused(
            f"journal {journal_id}: expected one not taken back yet, got one that {row['reversed_by']} took"
        )
    taken = JournalKind.REVERSAL if kind is JournalKind.VEND else kind
    source = Ledger(row["source"]) if kind is JournalKind.VEND else None
    journals = [money_journal(taken, -row["prepaid_minor"], order.text, about_id=journal_id, source=source)]
    if row["recovery_id"] is not None:
        recovered_minor = row["recovered_minor"]
        dues = await read_dues(conn, view.id, Ledger.ARREARS)
        await owe_again(conn, parts_given_back(dues, recovered_minor))
        about_id = row["recovery_id"]
        journals.append(money_journal(JournalKind.ARREARS_RECOVERY, recovered_minor, order.text, about_id=about_id))
    done = await _book(conn, view, journals, order, event="reversal")
    if kind is JournalKind.VEND:
        what = {"journal_id": journal_id, "at": from_ms(order.now_ms), "by": order.by, "reason": order.reason}
        await conn.execute(sql("reverse_vend_of"), what)
    # After the account, last of all: the vendor's sales wait for it.
    await give_back(conn, about_id=journal_id, journal_id=done.journal_ids[0])
    return done


async def done_of(
    conn: AsyncConnection, view: AccountView, posted: Posted, *, event: str, amount_minor: int
) -> MoneyDone:
    """Describe what was posted, with what is outstanding now."""
    return MoneyDone(
        account_number=view.number,
        kind=event,
        amount_minor=amount_minor,
        journal_ids=posted.journal_ids,
        balance_minor=posted.balance_minor,
        supply=posted.decision.levels.desired.value,
        outstanding=await dues_outstanding(conn, view.id),
    )


async def _locked(conn: AsyncConnection, account_id: int, amount_minor: int, order: Instruction) -> AccountView:
    if amount_minor <= 0:
        raise MoneyRefused(f"amount: expected above 0, got {format_minor(amount_minor)}")
    return await lock_and_look(conn, account_id, order.rules)


async def _book(
    conn: AsyncConnection,
    view: AccountView,
    journals: Sequence[Journal],
    order: Instruction,
    *,
    event: str | None = None,
) -> MoneyDone:
    kind = journals[0].kind.value
    posted = await post_journals(conn, view, journals, cause=kind, rules=order.rules, now_ms=order.now_ms)
    amount_minor = journals[0].legs[0].amount_minor
    return await done_of(conn, view, posted, event=event or kind, amount_minor=amount_minor)


async def _journal(conn: AsyncConnection, journal_id: int) -> dict[str, Any]:
    # A row by column name, typed by its query; read again under the lock, which another reversal may have held.
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(sql("journal_to_reverse"), {"journal_id": journal_id})
        row = await cursor.fetchone()
    if row is None:
        raise MoneyRefused(f"journal: expected a known id, got {journal_id}")
    return row


def _require_balance(view: AccountView, amount_minor: int, order: Instruction, what: str) -> None:
    balance_minor = view.balance_minor(order.rules.calendar)
    if amount_minor > balance_minor:
        raise MoneyRefused(
            f"account {view.number}: expected a balance of {format_minor(amount_minor)} {what},"
            f" got {format_minor(balance_minor)}"
        )


def _require_at_most(view: AccountView, amount_minor: int, most_minor: int, what: str) -> None:
    if amount_minor > most_minor:
        raise MoneyRefused(
            f"account {view.number}: expected {what} of {format_minor(amount_minor)} or more,"
            f" got {format_minor(most_minor)}"
        )
