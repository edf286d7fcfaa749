"""Queries and answers of the consumer's routes, as the OpenAPI document shows them.

Stage: at the border. Every amount is printed and in minor units, energy in Wh, instants in ISO 8601 with a zone, days
are local ones of the account.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.config import JsonDict

from billing.forecast import PERCENT_MAX, THRESHOLDS_MAX, WARN_DAYS_MAX
from db.consumer_facts import PAGE_DAYS_MAX, PAGE_MONTHS_MAX
from vending.edges.models import AnswerBody, Money, RequestBody, SupplyState
from vending.edges.statement_models import LineOfStatement

# A phone shows some twenty lines; a hundred rows are 30 kB.
PAGE_ROWS_DEFAULT, PAGE_ROWS_MAX = 20, 100
# Ids are 64-bit integers of the database.
_ID_MAX = 2**63 - 1
_DAYS_DEFAULT = 31
_DAY_PATTERN = r"^\d{4}-\d{2}-\d{2}$"
_MONTH_PATTERN = r"^\d{4}-\d{2}$"

Day = Annotated[str, Field(pattern=_DAY_PATTERN, examples=["2026-11-21"])]
Month = Annotated[str, Field(pattern=_MONTH_PATTERN, examples=["2026-11"])]
Instant = Annotated[str, Field(examples=["2026-11-21T10:00:00.000+00:00"])]


class DaysQuery(RequestBody):
    """Which days, the latest first; by default the last 31 up to that of money time."""

    first: Day | None = Field(None, alias="from", description="first local day")
    last: Day | None = Field(
        None, alias="to", description="last local day; `next` of an answer gives the page after it"
    )
    limit: int = Field(_DAYS_DEFAULT, ge=1, le=PAGE_DAYS_MAX, description="days of a page", strict=False)


class MonthsQuery(RequestBody):
    """Which months, the latest first; by default the last 13 up to that of money time."""

    first: Month | None = Field(None, alias="from", description="first month")
    last: Month | None = Field(None, alias="to", description="last month; `next` of an answer gives the page after it")
    limit: int = Field(PAGE_MONTHS_MAX, ge=1, le=PAGE_MONTHS_MAX, description="months of a page", strict=False)


class PageQuery(RequestBody):
    """Which rows, the latest first."""

    before: int = Field(_ID_MAX, ge=1, le=_ID_MAX, description="`next` of the page before", strict=False)
    limit: int = Field(PAGE_ROWS_DEFAULT, ge=1, le=PAGE_ROWS_MAX, description="rows of a page", strict=False)


class NoticesQuery(PageQuery):
    """Which notices, the latest first, and in which language."""

    language: Literal["en", "hi", "pa"] = Field("en", description="English, Hindi or Punjabi")


class RechargesQuery(PageQuery):
    """Which recharges, the latest first; whole tokens only for the consumer."""

    show_tokens: bool = Field(False, description="all 20 digits, with the consumer's own key only", strict=False)


class UseOfDay(AnswerBody):
    """Energy and charge of one local day."""

    day: Day
    energy_wh: int = Field(examples=[4250])
    charge: Money
    charge_minor: int


class UseOfMonth(AnswerBody):
    """The month of money time so far: what its bill says, and what was paid in."""

    month: Month
    energy_wh: int
    lines: list[LineOfStatement]
    charge: Money = Field(description="the sum of the lines")
    charge_minor: int
    earlier_energy_wh: int = Field(description="found or corrected this month for months before it")
    earlier_charge: Money
    earlier_charge_minor: int
    recharged: Money
    recharged_minor: int


class AverageUse(AnswerBody):
    """Present use: the mean of the last complete days."""

    days: int = Field(description="how many: 7, or 3 to 6 of a young account", examples=[7])
    energy_wh: int
    charge: Money
    charge_minor: int


class ForecastView(AnswerBody):
    """How long the balance lasts at present use."""

    days_left: int = Field(examples=[12])
    ends_on: Day | None = Field(description="the local day credit ends; null where that is more than a year ahead")


class WhyView(AnswerBody):
    """Why supply is as it is wanted."""

    code: str = Field(examples=["credit"])
    text: str = Field(examples=["You have credit."])
    until: Instant | None = Field(description="when this may change by time alone")


class ConsumerSupply(AnswerBody):
    """Supply as it is wanted and as the meter reports it, why, and the smallest recharge that brings it back."""

    desired: SupplyState
    reported: SupplyState | None
    reported_at: Instant | None
    restores_with: Money
    restores_with_minor: int
    why: WhyView
    waiting: bool = Field(description="the meter was told and has not confirmed yet")


class ThresholdOfConsumer(AnswerBody):
    """One wish to be warned, and the balance it comes to now."""

    kind: Literal["amount", "days", "percent"]
    amount: Money | None = Field(description="of kind amount")
    amount_minor: int | None
    days: int | None = Field(description="of kind days: days left at present use")
    percent: int | None = Field(description="of kind percent: of the last recharge")
    warns_at: Money | None = Field(description="the balance in force for it; null while it cannot be known")
    warns_at_minor: int | None
    rung: bool = Field(description="the warning is out, until the balance is above the level again")


class AmountWish(RequestBody):
    """To be warned at a balance."""

    kind: Literal["amount"]
    amount: str = Field(max_length=32, examples=["100.00"])


class DaysWish(RequestBody):
    """To be warned so many days before the credit ends, at present use."""

    kind: Literal["days"]
    days: int = Field(examples=[3], json_schema_extra={"minimum": 1, "maximum": WARN_DAYS_MAX})


class PercentWish(RequestBody):
    """To be warned when so much of the last recharge is left."""

    kind: Literal["percent"]
    percent: int = Field(examples=[20], json_schema_extra={"minimum": 1, "maximum": PERCENT_MAX})


class ThresholdsBody(RequestBody):
    """All wishes to be warned, in the place of those before; an empty list ends the warnings."""

    thresholds: list[Annotated[AmountWish | DaysWish | PercentWish, Field(discriminator="kind")]] = Field(
        max_length=THRESHOLDS_MAX,
        description="no two equal; the first amount is kept in the meter",
        examples=[
            [{"kind": "amount", "amount": "100.00"}, {"kind": "days", "days": 3}, {"kind": "percent", "percent": 20}]
        ],
    )


class LastRecharge(AnswerBody):
    """The latest recharge."""

    amount: Money
    amount_minor: int
    at: Instant


SUMMARY_EXAMPLE: JsonDict = {
    "account_number": "100200300",
    "meter_serial": "PB000123",
    "mode": "prepaid",
    "currency": "INR",
    "time_zone": "Asia/Kolkata",
    "balance": "380.00",
    "balance_minor": 38000,
    "money_time": "2026-11-21T10:00:00.000+00:00",
    "latest_reading_at": "2026-11-21T10:00:00.000+00:00",
    "today": {"day": "2026-11-21", "energy_wh": 2100, "charge": "16.60", "charge_minor": 1660},
    "yesterday": {"day": "2026-11-20", "energy_wh": 4250, "charge": "26.68", "charge_minor": 2668},
    "month": {
        "month": "2026-11",
        "energy_wh": 84500,
        "lines": [
            {"line": "energy_1", "title": "Energy, units 0-300", "amount": "325.33", "amount_minor": 32533},
            {"line": "fixed", "title": "Fixed charge", "amount": "147.00", "amount_minor": 14700},
            {"line": "rebate", "title": "Prepaid rebate", "amount": "-3.25", "amount_minor": -325},
            {"line": "duty", "title": "Electricity duty", "amount": "70.36", "amount_minor": 7036},
        ],
        "charge": "539.44",
        "charge_minor": 53944,
        "earlier_energy_wh": 0,
        "earlier_charge": "0.00",
        "earlier_charge_minor": 0,
        "recharged": "500.00",
        "recharged_minor": 50000,
    },
    "average": {"days": 7, "energy_wh": 4100, "charge": "26.10", "charge_minor": 2610},
    "forecast": {"days_left": 14, "ends_on": "2026-12-05"},
    "supply": {
        "desired": "on",
        "reported": "on",
        "reported_at": "2026-11-18T07:12:41.000+00:00",
        "restores_with": "0.00",
        "restores_with_minor": 0,
        "why": {"code": "credit", "text": "You have credit.", "until": None},
        "waiting": False,
    },
    "low_alarm": False,
    "emergency_credit": "0.00",
    "emergency_credit_minor": 0,
    "earlier_arrears": "0.00",
    "earlier_arrears_minor": 0,
    "absent_until": None,
    "last_recharge": {"amount": "500.00", "amount_minor": 50000, "at": "2026-11-18T07:12:40.000+00:00"},
}


class SummaryAnswer(AnswerBody):
    """An account at its money time, as its consumer wants to know it."""

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra={"examples": [SUMMARY_EXAMPLE]})

    account_number: str
    meter_serial: str
    mode: Literal["prepaid", "postpaid"]
    currency: str
    time_zone: str = Field(description="whose midnight ends a local day")
    balance: Money
    balance_minor: int
    money_time: Instant
    latest_reading_at: Instant | None
    today: UseOfDay
    yesterday: UseOfDay | None
    month: UseOfMonth
    average: AverageUse | None = Field(description="null while fewer than three days are complete")
    forecast: ForecastView | None = Field(description="null where it is not knowable, and for postpaid accounts")
    supply: ConsumerSupply
    low_alarm: bool
    emergency_credit: Money
    emergency_credit_minor: int
    earlier_arrears: Money
    earlier_arrears_minor: int
    absent_until: str | None
    last_recharge: LastRecharge | None


class DayRow(AnswerBody):
    """One local day: the balance changes by recharges + other - charge - later charge."""

    day: Day
    energy_wh: int | None = Field(description="null where money time has not come to this day")
    charge: Money | None
    charge_minor: int | None
    quality: Literal["read", "estimated", "unread"] | None = Field(description="how the energy at its end is known")
    posted: bool
    later_energy_wh: int = Field(description="booked on this day for days before: late readings, corrections")
    later_charge: Money
    later_charge_minor: int
    recharged: Money
    recharged_minor: int
    other: Money = Field(description="other money booked on this day, below zero where it was taken")
    other_minor: int


class DaysAnswer(AnswerBody):
    """Days, the latest first; those without any entry are left out."""

    account_number: str
    currency: str
    first: Day = Field(alias="from")
    last: Day = Field(alias="to")
    days: list[DayRow]
    next: Day | None = Field(description="`to` of the page after this one; null at the end")


class MonthRow(AnswerBody):
    """One local month: its bill as known today, and the money booked in it."""

    month: Month
    energy_wh: int
    lines: list[LineOfStatement]
    charge: Money = Field(description="the sum of the lines")
    charge_minor: int
    open_days: int = Field(description="days of it that are not posted yet")
    recharged: Money
    recharged_minor: int
    other: Money
    other_minor: int


class MonthsAnswer(AnswerBody):
    """Months, the latest first."""

    account_number: str
    currency: str
    first: Month = Field(alias="from")
    last: Month = Field(alias="to")
    months: list[MonthRow]
    next: Month | None = Field(description="`to` of the page after this one; null at the end")


class RechargeRow(AnswerBody):
    """One recharge."""

    id: int
    at: Instant
    amount: Money
    amount_minor: int
    earlier_arrears_paid: Money = Field(description="the share that arrears of before prepayment took")
    earlier_arrears_paid_minor: int
    vendor: str | None
    message_id: str | None
    token: str | None = Field(examples=["...7890"])
    reversed_at: Instant | None


class RechargesAnswer(AnswerBody):
    """Recharges, the latest first."""

    account_number: str
    recharges: list[RechargeRow]
    next: int | None = Field(description="`before` of the page after this one; null at the end")


class NoticeRow(AnswerBody):
    """One notice."""

    id: int
    at: Instant
    kind: str = Field(examples=["low"])
    subject: str
    text: str = Field(description="tokens in it are masked")


class NoticesAnswer(AnswerBody):
    """Notices, the latest first."""

    account_number: str
    notices: list[NoticeRow]
    next: int | None = Field(description="`before` of the page after this one; null at the end")


class ThresholdsAnswer(AnswerBody):
    """When the consumer is warned, and what each wish comes to now."""

    account_number: str
    currency: str
    balance: Money
    balance_minor: int
    low_alarm: bool
    thresholds: list[ThresholdOfConsumer]


class SupplyChange(AnswerBody):
    """One order to change supply, and what became of it."""

    id: int
    ordered_at: Instant
    meter_serial: str
    supply: SupplyState
    cause: str = Field(examples=["vend"])
    cause_text: str = Field(examples=["a recharge was received"])
    balance: Money = Field(description="at the time of the order")
    balance_minor: int
    state: str = Field(examples=["confirmed"])
    state_text: str = Field(examples=["the meter confirmed it"])
    confirmed_at: Instant | None


class ReportedSupply(AnswerBody):
    """What the meter last said."""

    meter_serial: str
    supply: SupplyState | None
    since: Instant | None


class SupplyHistoryAnswer(AnswerBody):
    """What the meter last said, and the orders it was given, the latest first."""

    account_number: str
    reported: ReportedSupply | None
    orders: list[SupplyChange]
    next: int | None = Field(description="`before` of the page after this one; null at the end")
