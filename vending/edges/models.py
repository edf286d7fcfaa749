"""Bodies of the vending interface, as its OpenAPI document shows them.

Stage: at the border. Requests are checked against these shapes, unknown fields refused; answers are made elsewhere
and documented here.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic.config import JsonDict

from vending.vends import MESSAGE_ID_PATTERN, METER_PATTERN, TERMINAL_PATTERN, UNITS_PATTERN

SupplyState = Literal["on", "limited", "off"]
Money = Annotated[str, Field(pattern=r"^-?\d+\.\d{2}$", examples=["500.00"])]

_TOKEN_GROUPED = "1234 5678 9012 3456 7890"
_VEND_EXAMPLE: JsonDict = {
    "message_id": "T17-20261121-000042",
    "vendor": "Station 17",
    "account_number": "100200300",
    "meter_serial": "PB000123",
    "drn": "01234567897",
    "currency": "INR",
    "issued_at": "2026-11-21T10:15:00.000+00:00",
    "amount": "500.00",
    "amount_minor": 50000,
    "balance_before": "-120.00",
    "balance_before_minor": -12000,
    "balance_after": "380.00",
    "balance_after_minor": 38000,
    "earlier_arrears_paid": "0.00",
    "earlier_arrears_paid_minor": 0,
    "earlier_arrears_left": "0.00",
    "earlier_arrears_left_minor": 0,
    "tid": 6779175,
    "token": {
        "digits": _TOKEN_GROUPED.replace(" ", ""),
        "grouped": _TOKEN_GROUPED,
        "engine": "sts",
        "class": 0,
        "subclass": 4,
        "amount": "500.02624",
        "unit": "currency",
    },
    "supply": {
        "state_before": "off",
        "state_after_desired": "on",
        "restores_with": "0.00",
        "restores_with_minor": 0,
    },
    "energy_wh": 87_600,
    "lines": [
        {"code": "recharge", "text": "Recharge received: INR 500.00", "amount": "500.00", "amount_minor": 50000},
        {"code": "arrears", "text": "Arrears cleared: INR 120.00", "amount": "120.00", "amount_minor": 12000},
        {"code": "credit", "text": "Credit on account: INR 380.00", "amount": "380.00", "amount_minor": 38000},
        {"code": "energy", "text": "About 87.6 kWh at this month's rates, before fixed charges"},
        {"code": "supply_restored", "text": "Supply restored: yes, it returns by itself"},
        {"code": "token", "text": f"Token: {_TOKEN_GROUPED}"},
        {"code": "token_amount", "text": "The token carries: INR 500.02624"},
        {"code": "rebate", "text": "1 % rebate on energy charges is given as the energy is used"},
    ],
}


class RequestBody(BaseModel):
    """A body as a caller sends it: exact types, no unknown fields, no text that cannot be stored."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    @field_validator("*")
    @classmethod
    def _storable(cls, value: object) -> object:
        if isinstance(value, str) and "\0" in value:
            # PostgreSQL has no text with a zero in it.
            raise ValueError("expected text without zero characters")
        return value


def with_example(example: JsonDict) -> ConfigDict:
    """Return the configuration of a request body that the document shows an example of."""
    return ConfigDict(extra="forbid", strict=True, frozen=True, json_schema_extra={"examples": [example]})


class AnswerBody(BaseModel):
    """A body as we send it."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class VendBody(RequestBody):
    """A recharge of one meter's account: `amount` or `units`. The same message id always gets the same answer."""

    model_config = with_example(
        {
            "message_id": "T17-20261121-000042",
            "meter": "PB000123",
            "amount": "500.00",
            "tender": "upi",
            "terminal": "T17",
            "operator": "anu",
        }
    )

    message_id: str = Field(pattern=MESSAGE_ID_PATTERN, examples=["T17-20261121-000042"])
    meter: str = Field(pattern=METER_PATTERN, description="serial or DRN", examples=["PB000123"])
    amount: str | None = Field(
        None, max_length=32, description="currency units, none or two decimals", examples=["500.00"]
    )
    units: str | None = Field(
        None, pattern=UNITS_PATTERN, description="kWh, none or one decimal, at the account's running tariff"
    )
    tender: Literal["cash", "card", "upi", "wallet", "cheque"] = Field("cash", description="how the consumer pays")
    release: Literal["at_once", "on_confirm"] = Field(
        "at_once", description="`on_confirm`: the token is made and held back until the vend is confirmed"
    )
    terminal: str | None = Field(None, pattern=TERMINAL_PATTERN, description="the vendor's own name of it")
    operator: str | None = Field(None, pattern=TERMINAL_PATTERN, description="the vendor's own name of who sells")


class ThresholdBody(RequestBody):
    """The balance at which the consumer is warned; null for no warning before the credit is used up."""

    threshold: str | None = Field(max_length=32, examples=["100.00"])


class VerifyBody(RequestBody):
    """A token to be read under a meter's key; spaces and dashes between groups are allowed."""

    meter: str = Field(pattern=METER_PATTERN, description="serial or DRN", examples=["PB000123"])
    token: str = Field(max_length=64, examples=[_TOKEN_GROUPED])


class Fault(BaseModel):
    """What was refused: a stable code, and expected, got and whose in words."""

    model_config = ConfigDict(extra="allow", frozen=True)

    code: str = Field(examples=["amount_below_minimum"])
    message: str = Field(examples=["amount: expected 10.00 or more, got 0.00"])


class ErrorAnswer(AnswerBody):
    """Every refusal and error has this form."""

    error: Fault


class TokenOfVend(AnswerBody):
    """The token on a receipt; its digits are null while it is held back, and in a trial."""

    digits: str | None
    grouped: str | None
    engine: Literal["sts", "openpaygo"] | None = Field(None, description="absent in answers of before there were two")
    token_class: int | None = Field(alias="class", description="of STS, else null")
    subclass: int | None
    amount: str = Field(description="what the token carries, rounded up to what its field can hold")
    unit: str | None = Field(None, description="currency, kWh, m3, min or days", examples=["currency"])


class SupplyOfVend(AnswerBody):
    """What a vend did to the supply."""

    state_before: SupplyState
    state_after_desired: SupplyState
    restores_with: Money
    restores_with_minor: int


class LineOfVend(AnswerBody):
    """One line to print."""

    code: str
    text: str
    amount: Money | None = None
    amount_minor: int | None = None


class KeyChangeToken(AnswerBody):
    """One section of a key-change set."""

    digits: str
    grouped: str


class StepOfVend(AnswerBody):
    """Energy at one rate of the tariff; `to_wh` is null for the open last step."""

    line: str = Field(examples=["energy_1"])
    from_wh: int
    to_wh: int | None
    energy_wh: int
    rate_milli_per_kwh: int = Field(description="thousandths of a minor unit per kWh")
    amount: Money
    amount_minor: int


class BillLineOfVend(AnswerBody):
    """One line of a bill, as statements name it."""

    line: str = Field(examples=["duty"])
    title: str = Field(examples=["Electricity duty"])
    amount: Money
    amount_minor: int


class PurchaseOfVend(AnswerBody):
    """What the credit buys at this month's rates: steps and lines add up to its cost, at most the credit."""

    energy_wh: int
    steps: list[StepOfVend]
    lines: list[BillLineOfVend]
    cost: Money
    cost_minor: int


class MonthOfVend(AnswerBody):
    """The bill from the first day of the bill part to the account's money time; the lines add up to what is charged."""

    first: str = Field(alias="from", examples=["2026-11-01"])
    energy_wh: int
    lines: list[BillLineOfVend]
    charged: Money
    charged_minor: int


class VendAnswer(AnswerBody):
    """The receipt of a vend."""

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra={"examples": [_VEND_EXAMPLE]})

    message_id: str
    vendor: str
    account_number: str
    meter_serial: str
    drn: str
    currency: str
    issued_at: str
    amount: Money
    amount_minor: int
    balance_before: Money
    balance_before_minor: int
    balance_after: Money
    balance_after_minor: int
    earlier_arrears_paid: Money = Field(description="the share of this recharge that arrears of before prepayment took")
    earlier_arrears_paid_minor: int
    earlier_arrears_left: Money
    earlier_arrears_left_minor: int
    tid: int | None
    token: TokenOfVend
    token_withheld: Literal["until_confirmed", "trial"] | None = Field(None, description="why there are no digits")
    kind: Literal["free_issue", "subsidy"] | None = Field(None, description="of a recharge that nobody paid")
    energy_asked_wh: int | None = Field(None, description="what was asked for, where that was units")
    supply: SupplyOfVend
    energy_wh: int = Field(description="about what the credit left by the recharge pays for at this month's rates")
    lines: list[LineOfVend]
    key_change_tokens: list[KeyChangeToken] = Field([], description="to be entered first, in this order")
    buys: PurchaseOfVend | None = Field(None, description="what the credit buys, by steps of the tariff and lines")
    month: MonthOfVend | None = Field(None, description="the account's bill so far")
    receipt_number: str | None = None
    terminal: str | None = None
    operator: str | None = None
    tender: str | None = Field(None, description="how it was paid", examples=["cash"])


class SupplyView(AnswerBody):
    """Desired supply, what the meter last reported, and the smallest recharge that restores it after recovery."""

    desired: SupplyState
    reported: SupplyState | None
    reported_at: str | None = Field(examples=["2026-11-21T10:00:00.000+00:00"])
    restores_with: Money
    restores_with_minor: int


class Refusal(AnswerBody):
    """Why a vend would be refused now."""

    code: str
    message: str


class MeterAnswer(AnswerBody):
    """What a station confirms with the customer before it sells."""

    meter_serial: str = Field(examples=["PB000123"])
    drn: str | None = Field(examples=["01234567897"])
    make: str
    model: str
    account_number: str
    consumer: str = Field(examples=["G*** S***"])
    mode: Literal["prepaid", "postpaid"]
    currency: str = Field(examples=["INR"])
    arrears: Money = Field(description="what the balance lies below zero")
    arrears_minor: int
    earlier_arrears: Money = Field(description="arrears of before prepayment, which take a share of each recharge")
    earlier_arrears_minor: int
    recovery_share_basis_points: int = Field(description="that share, while there are earlier arrears; 2500 is 25 %")
    recovery_floor: Money = Field(description="what stays with the consumer of every recharge")
    recovery_floor_minor: int
    supply: SupplyView
    vend_min: Money
    vend_min_minor: int
    vend_max: Money
    vend_max_minor: int
    cash_max: Money = Field(description="the most to take in cash; above it digital modes only")
    cash_max_minor: int
    sell_at_least: Money = Field(description="the smallest vend that is accepted and leaves supply on")
    sell_at_least_minor: int
    vendable: bool
    refusal: Refusal | None


class TodayView(AnswerBody):
    """Use of the local day of the latest reading, or of a later day once the one before it is closed."""

    day: str = Field(examples=["2026-11-21"])
    energy_wh: int
    charge: Money
    charge_minor: int


class RechargeView(AnswerBody):
    """The latest recharge."""

    amount: Money
    amount_minor: int
    at: str


class AccountAnswer(AnswerBody):
    """An account at its money time."""

    account_number: str
    meter_serial: str
    mode: Literal["prepaid", "postpaid"]
    currency: str = Field(examples=["INR"])
    balance: Money
    balance_minor: int
    money_time: str = Field(examples=["2026-11-21T10:00:00.000+00:00"])
    latest_reading_at: str | None
    today: TodayView
    supply: SupplyView
    threshold: Money | None
    threshold_minor: int | None
    low_alarm: bool
    emergency_credit: Money
    emergency_credit_minor: int
    earlier_arrears: Money
    earlier_arrears_minor: int
    absent_until: str | None = Field(
        description="long absence with a deposit: not cut off before", examples=["2027-03-01"]
    )
    last_recharge: RechargeView | None


class ThresholdAnswer(AnswerBody):
    """The threshold in force, and whether the balance is at or below it."""

    account_number: str
    currency: str = Field(examples=["INR"])
    threshold: Money | None
    threshold_minor: int | None
    balance: Money
    balance_minor: int
    low_alarm: bool


class TokenAnswer(AnswerBody):
    """What a token says; amount and TID are null for tokens that carry no credit."""

    meter_serial: str
    drn: str | None
    token: str = Field(examples=["...7890"])
    token_class: int | None = Field(alias="class", examples=[0])
    subclass: int | None = Field(examples=[4])
    amount: str | None = Field(examples=["500.02624"])
    unit: str | None = Field(examples=["currency"])
    tid: int | None = Field(examples=[6779175])
    tid_minute: str | None = Field(examples=["2026-11-21T10:15+00:00"])


class HealthAnswer(AnswerBody):
    """Whether this process can answer."""

    status: Literal["ok"]
    database: Literal["ok"]
