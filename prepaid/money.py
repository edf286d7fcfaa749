"""Money commands of the billing office: each opens the database, does one thing, returns its answer.

Stage: between the command line and db.money_events. Turns texts into amounts, days and an order with reason and name.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

from psycopg import AsyncConnection

from billing.prepayment import PrepaymentRules, RulesError
from db.conversions import (
    Conversion,
    InstalmentsPaid,
    apply_category_credit,
    begin_absence,
    convert,
    end_absence,
    pay_instalments,
)
from db.errors import UnknownAccount
from db.money_events import Event, Instruction, MoneyDone, MoneyRefused, once
from db.prepayment import add_rules, rules_on
from db.registry import account_id_of
from prepaid.administration import on_database
from prepaid.console import progress_bars
from prepaid.processes import calendar_of, rules_of
from prepaid.settings import Settings

REASON_LENGTH_MAX = 200
NAME_LENGTH_MAX = 64


def run_event(
    settings: Settings,
    number: str,
    event: Event,
    *,
    request: Mapping[str, object],
    reason: str,
    by: str,
    reference: str | None,
) -> dict[str, Any]:
    """Do a money event on an account; return its answer, the stored one for a reference that was used before.

    Raises: UnknownAccount; MoneyRefused; ReferenceReused.
    """
    order = _order(settings, reason, by)
    asked = {"account": number, "reason": reason, "by": by, **request}

    async def work(conn: AsyncConnection) -> dict[str, Any]:
        account_id = await account_id_of(conn, number)
        if account_id is None:
            raise UnknownAccount(f"account: expected a known number, got {number!r}")
        return await once(conn, reference, asked, lambda: event(conn, account_id, order))

    return on_database(settings, work)


def run_reverse(
    settings: Settings,
    journal_id: int,
    event: Event,
    *,
    reason: str,
    by: str,
    reference: str | None,
) -> dict[str, Any]:
    """Take a journal back; return the answer.

    Raises: MoneyRefused; ReferenceReused.
    """
    order = _order(settings, reason, by)
    asked = {"command": "reverse", "journal": journal_id, "reason": reason, "by": by}

    async def work(conn: AsyncConnection) -> dict[str, Any]:
        return await once(conn, reference, asked, lambda: event(conn, journal_id, order))

    return on_database(settings, work)


def run_convert(
    settings: Settings, number: str, conversion: Conversion, *, reason: str, by: str, reference: str | None
) -> dict[str, Any]:
    """Turn a postpaid account into a prepaid one; return the answer."""
    request = {
        "command": "convert",
        "arrears_minor": conversion.arrears_minor,
        "security_minor": conversion.security_minor,
        "month_minor": conversion.month_minor,
        "debt_to_arrears": conversion.debt_to_arrears,
    }

    async def event(conn: AsyncConnection, account_id: int, order: Instruction) -> MoneyDone:
        return await convert(conn, account_id, conversion, order)

    return run_event(settings, number, event, request=request, reason=reason, by=by, reference=reference)


def run_absent(
    settings: Settings, number: str, until: date, deposit_minor: int, *, reason: str, by: str, reference: str | None
) -> dict[str, Any]:
    """Begin a long absence; return the answer."""
    request = {"command": "absent", "until": until.isoformat(), "deposit_minor": deposit_minor}

    async def event(conn: AsyncConnection, account_id: int, order: Instruction) -> MoneyDone:
        return await begin_absence(conn, account_id, until, deposit_minor, order)

    return run_event(settings, number, event, request=request, reason=reason, by=by, reference=reference)


def run_return(settings: Settings, number: str, *, reason: str, by: str, reference: str | None) -> dict[str, Any]:
    """End a long absence; return the answer."""
    request = {"command": "return"}
    return run_event(settings, number, end_absence, request=request, reason=reason, by=by, reference=reference)


def run_instalments(settings: Settings, until: date) -> InstalmentsPaid:
    """Pay the instalments of security that are due up to and including a day."""
    rules = rules_of(settings)

    async def work(conn: AsyncConnection) -> InstalmentsPaid:
        done = 0
        with progress_bars() as bars:

            def count(number: int) -> None:
                nonlocal done
                done += number
                bars("accounts paid", done, done)

            return await pay_instalments(conn, until, rules=rules, clock=_now_ms, progress=count)

    return on_database(settings, work)


def run_add_rules(settings: Settings, file: Path) -> PrepaymentRules:
    """Store a rules document from the day it names, today at the earliest."""
    try:
        text = file.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        raise RulesError(f"rules document: expected UTF-8, got other bytes in {file.name}") from None
    today = calendar_of(settings).day_of(_now_ms())
    return on_database(settings, lambda conn: add_rules(conn, text, first_open_day=today))


def run_rules_on(settings: Settings, day: date) -> PrepaymentRules:
    """Read the rules in force on a day."""
    return on_database(settings, lambda conn: rules_on(conn, day))


def run_apply_rules(settings: Settings, day: date) -> int:
    """Give accounts the emergency credit of their category on a day; return how many changed."""
    rules = rules_of(settings)
    return on_database(settings, lambda conn: apply_category_credit(conn, day, rules=rules, clock=_now_ms))


def _order(settings: Settings, reason: str, by: str) -> Instruction:
    return Instruction(
        reason=_words("reason", reason, REASON_LENGTH_MAX),
        by=_words("by", by, NAME_LENGTH_MAX),
        now_ms=_now_ms(),
        rules=rules_of(settings),
    )


def _words(name: str, text: str, length_max: int) -> str:
    stripped = text.strip()
    if not stripped.isprintable() or not 0 < len(stripped) <= length_max:
        raise MoneyRefused(f"{name}: expected 1 to {length_max} printable characters, got {len(stripped)}")
    return stripped


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
