"""Queries and answers of the statement routes, as the OpenAPI document shows them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from pydantic.config import JsonDict

from vending.edges.models import AnswerBody, Money, RequestBody

_DAY_PATTERN = r"^\d{4}-\d{2}-\d{2}$"
# A plus sign that was not escaped in an address arrives as a blank.
_INSTANT_PATTERN = r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}(:\d{2}(\.\d{1,6})?)?(Z|[-+ ]\d{2}:\d{2})$"

STATEMENT_EXAMPLE: JsonDict = {
    "account_number": "100200300",
    "consumer": "Gurpreet Singh",
    "meter_serial": "PB000123",
    "currency": "INR",
    "time_zone": "Asia/Kolkata",
    "from": "2026-11-20",
    "to": "2026-11-21",
    "opening_balance": "120.00",
    "opening_balance_minor": 12000,
    "opening_month_energy_wh": 84_500,
    "rows": [
        {
            "date": "2026-11-20",
            "kind": "vend",
            "text": "Recharge at Station 17, token ending 7890",
            "posted": True,
            "energy_wh": None,
            "month_energy_wh": None,
            "of_month": None,
            "quality": None,
            "lines": [],
            "charge": None,
            "charge_minor": None,
            "credit": "500.00",
            "credit_minor": 50000,
            "balance": "620.00",
            "balance_minor": 62000,
            "reason": None,
            "vendor": "Station 17",
            "token_tail": "7890",
        },
        {
            "date": "2026-11-20",
            "kind": "day",
            "text": "Use of the day",
            "posted": True,
            "energy_wh": 4_250,
            "month_energy_wh": 88_750,
            "of_month": None,
            "quality": "read",
            "lines": [
                {"line": "energy_1", "title": "Energy, units 0-300", "amount": "16.36", "amount_minor": 1636},
                {"line": "fixed", "title": "Fixed charge", "amount": "7.00", "amount_minor": 700},
                {"line": "rebate", "title": "Prepaid rebate", "amount": "-0.16", "amount_minor": -16},
                {"line": "duty", "title": "Electricity duty", "amount": "3.48", "amount_minor": 348},
            ],
            "charge": "26.68",
            "charge_minor": 2668,
            "credit": None,
            "credit_minor": None,
            "balance": "593.32",
            "balance_minor": 59332,
            "reason": None,
            "vendor": None,
            "token_tail": None,
        },
    ],
    "totals": {
        "energy_wh": 4_250,
        "lines": [
            {"line": "energy_1", "title": "Energy, units 0-300", "amount": "16.36", "amount_minor": 1636},
            {"line": "fixed", "title": "Fixed charge", "amount": "7.00", "amount_minor": 700},
            {"line": "rebate", "title": "Prepaid rebate", "amount": "-0.16", "amount_minor": -16},
            {"line": "duty", "title": "Electricity duty", "amount": "3.48", "amount_minor": 348},
        ],
        "charge": "26.68",
        "charge_minor": 2668,
        "credit": "500.00",
        "credit_minor": 50000,
    },
    "closing_balance": "593.32",
    "closing_balance_minor": 59332,
}


class StatementQuery(RequestBody):
    """Which days, and in which form; by default the month to date as JSON."""

    first: str | None = Field(
        None, alias="from", pattern=_DAY_PATTERN, description="first local day", examples=["2026-11-01"]
    )
    last: str | None = Field(
        None,
        alias="to",
        pattern=_DAY_PATTERN,
        description="last local day; without it the statement ends with the running balance",
        examples=["2026-11-30"],
    )
    form: Literal["json", "csv", "text", "html"] = Field("json", alias="format")


class BalanceQuery(RequestBody):
    """At which instant: ISO 8601 with a zone."""

    at: str = Field(pattern=_INSTANT_PATTERN, examples=["2026-11-21T10:00:00+05:30", "2026-11-21T04:30:00Z"])


class LineOfStatement(AnswerBody):
    """One bill line of a row."""

    line: str
    title: str
    amount: Money
    amount_minor: int


class RowOfStatement(AnswerBody):
    """One row: use of a day, energy found later, a correction, a payment.

    Usage rows have energy, lines and a charge, other rows a credit, below zero for money taken.
    """

    date: str
    kind: str
    text: str
    posted: bool = Field(description="false for days that are not closed yet")
    energy_wh: int | None
    month_energy_wh: int | None = Field(description="energy of the row's month to date")
    of_month: str | None = Field(
        description="the month whose energy is charged, if not the row's", examples=["2026-10"]
    )
    quality: Literal["read", "estimated", "unread"] | None
    lines: list[LineOfStatement]
    charge: Money | None
    charge_minor: int | None
    credit: Money | None
    credit_minor: int | None
    balance: Money
    balance_minor: int
    reason: str | None
    vendor: str | None
    token_tail: str | None = Field(description="the last four digits of a recharge's token")


class TotalsOfStatement(AnswerBody):
    """The sum of each column."""

    energy_wh: int
    lines: list[LineOfStatement]
    charge: Money
    charge_minor: int
    credit: Money
    credit_minor: int


class StatementAnswer(AnswerBody):
    """A statement: closing balance = opening balance - charge + credit, and each total is the sum of its column."""

    account_number: str
    consumer: str
    meter_serial: str
    currency: str
    time_zone: str
    first: str = Field(alias="from")
    last: str = Field(alias="to")
    opening_balance: Money
    opening_balance_minor: int
    opening_month_energy_wh: int
    rows: list[RowOfStatement]
    totals: TotalsOfStatement
    closing_balance: Money
    closing_balance_minor: int


class PastBalanceAnswer(AnswerBody):
    """The balance at an instant: money booked by then, less the charge up to then as known today."""

    account_number: str = Field(examples=["100200300"])
    currency: str = Field(examples=["INR"])
    at: str = Field(examples=["2026-11-21T10:00:00.000+05:30"])
    known_until: str = Field(
        description="the account's money time; later instants are charged as it",
        examples=["2026-11-21T10:00:00.000+00:00"],
    )
    balance: Money
    balance_minor: int
    booked: Money
    booked_minor: int
    charged: Money
    charged_minor: int
