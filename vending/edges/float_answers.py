"""Floats, batches, days and statements as the interface answers them.

Stage: the last step before JSON or a slip. Never: a sum of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from billing.calendar import LocalCalendar, from_ms, to_ms
from db.float_batches import Batch
from db.floats import FloatState
from db.vendor_deposits import Deposit
from vending.edges.float_desk import BatchReport
from vending.floats import CURRENCY, BatchKind, Day, FloatStatement, StatementEntry, Totals
from vending.receipt import money_to_api
from vending.slips.batch import BatchFacts, TenderTotal
from vending.slips.batch import BatchKind as SlipKind


def float_to_api(owner: FloatState) -> dict[str, object]:
    """Answer what a vendor has with the utility."""
    return {
        "vendor": owner.vendor,
        "active": owner.active,
        "currency": CURRENCY,
        **money_to_api("balance", owner.balance_minor),
        **_money_or_none("credit_limit", owner.limit_minor),
        **_money_or_none("available", owner.available_minor),
    }


def deposit_to_api(deposit: Deposit) -> dict[str, object]:
    """Answer the receipt of a deposit."""
    return {
        "receipt_number": str(deposit.number),
        "reference": deposit.reference,
        "vendor": deposit.vendor,
        "currency": CURRENCY,
        **money_to_api("amount", deposit.amount_minor),
        "channel": deposit.channel,
        "by": deposit.by,
        "note": deposit.note,
        "deposited_at": _instant(deposit.at),
        **money_to_api("balance_after", deposit.balance_minor),
        "taken_back": deposit.returned_at is not None,
        "taken_back_at": _instant(deposit.returned_at),
        "taken_back_by": deposit.returned_by,
        "taken_back_because": deposit.return_reason,
    }


def batch_to_api(report: BatchReport) -> dict[str, object]:
    """Answer a batch with its totals."""
    return {
        "vendor": report.vendor,
        **batch_head_to_api(report.kind, report.batch),
        "currency": CURRENCY,
        "totals": totals_to_api(report.totals),
    }


def batch_head_to_api(kind: BatchKind, batch: Batch) -> dict[str, object]:
    """Answer a batch without its totals."""
    return {
        "kind": kind.value,
        "of": batch.scope or None,
        "number": batch.number,
        "state": "open" if batch.last_n is None else "ended",
        "began_at": _instant(batch.began_at),
        "started_at": _instant(batch.started_at),
        "started_by": batch.started_by,
        "ended_at": _instant(batch.ended_at),
        "ended_by": batch.ended_by,
    }


def totals_to_api(totals: Totals) -> dict[str, object]:
    """Answer sales and reversals by tender."""
    return {
        "sales": _tenders_to_api(totals.sales),
        **money_to_api("sold", totals.sold_minor),
        "reversals": _tenders_to_api(totals.reversals),
        **money_to_api("reversed", totals.reversed_minor),
        **money_to_api("net", totals.net_minor),
        **money_to_api("to_bank", totals.to_bank_minor),
    }


def day_to_api(vendor: str, day: Day) -> dict[str, object]:
    """Answer a vendor's end of day."""
    return {
        "vendor": vendor,
        "day": day.day.isoformat(),
        "final": day.is_over,
        "currency": CURRENCY,
        **money_to_api("opening", day.opening_minor),
        **money_to_api("deposits", day.deposits_minor),
        **money_to_api("coupons", day.coupons_minor),
        "totals": totals_to_api(day.totals),
        "terminals": [{"terminal": name or None, "totals": totals_to_api(each)} for name, each in day.terminals],
        **money_to_api("closing", day.closing_minor),
    }


def float_statement_to_api(statement: FloatStatement) -> dict[str, object]:
    """Answer a vendor's statement, or a page of it."""
    return {
        "vendor": statement.vendor,
        "currency": CURRENCY,
        "from": statement.first.isoformat(),
        "to": statement.last.isoformat(),
        **money_to_api("opening", statement.opening_minor),
        "entries": [_entry_to_api(entry) for entry in statement.entries],
        **money_to_api("closing", statement.closing_minor),
        "next_after": statement.next_after,
    }


def batch_facts(report: BatchReport, *, now_ms: int) -> BatchFacts:
    """Return what the slip of a batch says; a first batch that nobody started begins with its first sale."""
    batch = report.batch
    begins = batch.began_at or batch.started_at or report.first_at
    return BatchFacts(
        kind=SlipKind(report.kind.value),
        number=str(batch.number),
        vendor=report.vendor,
        terminal=(batch.scope or None) if report.kind is BatchKind.SALES else None,
        operator=(batch.scope or None) if report.kind is BatchKind.SHIFT else None,
        currency=CURRENCY,
        from_ms=now_ms if begins is None else to_ms(begins),
        until_ms=None if batch.ended_at is None else to_ms(batch.ended_at),
        sales=report.totals.sales,
        reversed_sales=report.totals.reversals,
        total_minor=report.totals.net_minor,
    )


def day_facts(vendor: str, day: Day, *, calendar: LocalCalendar) -> BatchFacts:
    """Return what the slip of a vendor's end of day says."""
    return BatchFacts(
        kind=SlipKind.DAY,
        number=day.day.isoformat(),
        vendor=vendor,
        terminal=None,
        operator=None,
        currency=CURRENCY,
        from_ms=calendar.midnight_ms(day.day),
        until_ms=calendar.midnight_ms(day.day + timedelta(days=1)) if day.is_over else None,
        sales=day.totals.sales,
        reversed_sales=day.totals.reversals,
        total_minor=day.totals.net_minor,
    )


def _tenders_to_api(totals: Sequence[TenderTotal]) -> list[Mapping[str, object]]:
    return [
        {"tender": each.tender, "count": each.count, **money_to_api("amount", each.amount_minor)} for each in totals
    ]


def _entry_to_api(entry: StatementEntry) -> dict[str, object]:
    return {
        "n": entry.n,
        "booked_at": _instant(entry.booked_at),
        "kind": entry.kind.value,
        "reference": entry.reference,
        "account_number": entry.account,
        "terminal": entry.terminal,
        "operator": entry.operator,
        "tender": entry.tender,
        **money_to_api("amount", entry.amount_minor),
        **money_to_api("balance", entry.balance_minor),
    }


def _money_or_none(name: str, amount_minor: int | None) -> dict[str, object]:
    return {name: None, f"{name}_minor": None} if amount_minor is None else money_to_api(name, amount_minor)


def _instant(at: datetime | None) -> str | None:
    """Print an instant as answers have them: UTC, to the millisecond."""
    return None if at is None else from_ms(to_ms(at)).isoformat(timespec="milliseconds")
