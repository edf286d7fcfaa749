"""Statements and past balances as plain JSON values.

Stage: last before bytes leave, for the interface and the command line. Enters: a statement or balance. Leaves:
dictionaries of strings, integers, booleans, lists and nulls. Never: the database, an HTTP status.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from billing.calendar import from_ms
from billing.rating import Lines
from billing.statement import Statement, StatementRow
from db.statements import PastBalance
from vending.receipt import money_to_api


def statement_to_api(statement: Statement) -> dict[str, object]:
    """Return a statement; amounts printed and in minor units, energy in Wh."""
    head, totals = statement.head, statement.totals
    return {
        "account_number": head.account_number,
        "consumer": head.consumer,
        "meter_serial": head.meter_serial,
        "currency": head.currency,
        "time_zone": head.time_zone,
        "from": statement.first.isoformat(),
        "to": statement.last.isoformat(),
        **money_to_api("opening_balance", statement.opening.balance_minor),
        "opening_month_energy_wh": statement.opening.month_wh,
        "rows": [_row_to_api(statement, row) for row in statement.rows],
        "totals": {
            "energy_wh": totals.energy_wh,
            "lines": list(_lines_to_api(statement, totals.lines)),
            **money_to_api("charge", totals.charge_minor),
            **money_to_api("credit", totals.credit_minor),
        },
        **money_to_api("closing_balance", statement.closing_minor),
    }


def past_balance_to_api(past: PastBalance, at: datetime) -> dict[str, object]:
    """Return a balance at an instant, and the two sums that it is the difference of."""
    return {
        "account_number": past.account_number,
        "currency": past.currency,
        "at": at.isoformat(timespec="milliseconds"),
        "known_until": from_ms(past.known_until_ms).isoformat(timespec="milliseconds"),
        **money_to_api("balance", past.balance_minor),
        **money_to_api("booked", past.booked_minor),
        **money_to_api("charged", past.charged_minor),
    }


def _row_to_api(statement: Statement, row: StatementRow) -> dict[str, object]:
    return {
        "date": row.day.isoformat(),
        "kind": row.kind.value,
        "text": row.text,
        "posted": row.posted,
        "energy_wh": row.energy_wh,
        "month_energy_wh": row.month_wh,
        "of_month": None if row.month is None else f"{row.month:%Y-%m}",
        "quality": None if row.quality is None else row.quality.value,
        "lines": list(_lines_to_api(statement, row.lines)),
        **_money_or_null("charge", row.charge_minor),
        **_money_or_null("credit", row.credit_minor),
        **money_to_api("balance", row.balance_minor),
        "reason": row.reason,
        "vendor": row.vendor,
        "token_tail": row.token_tail,
    }


def _lines_to_api(statement: Statement, lines: Lines) -> Iterator[dict[str, object]]:
    for name, title in statement.columns:
        if name in lines:
            yield {"line": name, "title": title, **money_to_api("amount", lines[name])}


def _money_or_null(name: str, amount_minor: int | None) -> dict[str, object]:
    return {name: None, f"{name}_minor": None} if amount_minor is None else money_to_api(name, amount_minor)
