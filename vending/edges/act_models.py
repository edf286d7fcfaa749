"""Bodies of advices, issues, key changes, engineering tokens and fault reports, as the OpenAPI document shows them.

Stage: at the border, beside `models`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from vending.edges.models import AnswerBody, KeyChangeToken, Money, RequestBody, VendAnswer, with_example
from vending.errors_catalogue import Repeat
from vending.vends import MESSAGE_ID_PATTERN, METER_PATTERN, TERMINAL_PATTERN, UNITS_PATTERN

MessageId = Annotated[str, Field(pattern=MESSAGE_ID_PATTERN, examples=["T17-20261121-000043"])]
Meter = Annotated[str, Field(pattern=METER_PATTERN, description="serial or DRN", examples=["PB000123"])]
Terminal = Annotated[str | None, Field(pattern=TERMINAL_PATTERN, description="the vendor's own name of it")]
Operator = Annotated[str | None, Field(pattern=TERMINAL_PATTERN, description="the vendor's own name of who asks")]
Reason = Annotated[str, Field(min_length=3, max_length=200, pattern=r"\S", examples=["flood relief, order 17"])]
Receipt = Annotated[str, Field(pattern=r"^[1-9][0-9]{0,17}$", examples=["42"])]
VendStateName = Literal["refused", "released", "held", "confirmed", "unknown", "reversed"]


class AdviceBody(RequestBody):
    """What a station says of its vend; may be empty."""

    model_config = with_example(
        {
            "terminal": "T17",
            "reason": "the consumer did not pay",
        }
    )

    terminal: Terminal = None
    operator: Operator = None
    reason: Reason | None = None


class ReprintBody(RequestBody):
    """A sale of this vendor, named in one of three ways."""

    model_config = with_example(
        {
            "receipt_number": "42",
        }
    )

    message_id: MessageId | None = None
    receipt_number: Receipt | None = None
    meter: Meter | None = None
    terminal: Terminal = None

    @model_validator(mode="after")
    def _one_name(self) -> ReprintBody:
        if [self.message_id, self.receipt_number, self.meter].count(None) != 2:
            raise ValueError("expected one of message_id, receipt_number, meter")
        return self


class DecisionBody(RequestBody):
    """What the utility decides about a vend that waits for it."""

    model_config = with_example(
        {
            "verdict": "reverse",
            "reason": "the till roll of the shop shows no sale",
        }
    )

    verdict: Literal["confirm", "reverse"]
    reason: Reason


class IssueBody(RequestBody):
    """A recharge that nobody pays: `amount` or `units`, at the utility's cost or the government's."""

    model_config = with_example(
        {
            "message_id": "I-20261121-1",
            "meter": "PB000123",
            "kind": "free_issue",
            "amount": "500.00",
            "reason": "flood relief, order 17",
        }
    )

    message_id: MessageId
    meter: Meter
    kind: Literal["free_issue", "subsidy"]
    amount: str | None = Field(None, max_length=32, examples=["500.00"])
    units: str | None = Field(None, pattern=UNITS_PATTERN, description="kWh, none or one decimal")
    reason: Reason
    release: Literal["at_once", "on_confirm"] = "at_once"


class KeyChangeBody(RequestBody):
    """A station asks for what the meter needs; an engineer may say to which key."""

    model_config = with_example(
        {
            "message_id": "T17-20261121-000044",
            "terminal": "T17",
        }
    )

    message_id: MessageId
    terminal: Terminal = None
    operator: Operator = None
    sgc: str | None = Field(None, pattern=r"^[0-9]{6}$")
    krn: int | None = Field(None, ge=1, le=9)
    tariff_index: str | None = Field(None, pattern=r"^[0-9]{2}$")
    ken: int | None = Field(None, ge=0, le=255)
    base_year: Literal[1993, 2014, 2035] | None = None
    reason: Reason | None = None


class EngineeringBody(RequestBody):
    """A token that sets or clears something in a meter."""

    model_config = with_example(
        {"message_id": "E-20261121-1", "kind": "power_limit", "value": 5000, "reason": "load sanctioned on 20 November"}
    )

    message_id: MessageId
    kind: Literal[
        "power_limit",
        "clear_credit",
        "tariff_rate",
        "clear_tamper",
        "unbalance_limit",
        "water_factor",
        "extended_set",
        "set_time",
        "disable_payg",
        "counter_sync",
    ]
    value: int = Field(0, ge=0, le=65_535, description="W for limits, register (65535: all) for clear_credit")
    reason: Reason


class FaultBody(RequestBody):
    """What a consumer tells the station of a meter."""

    model_config = with_example(
        {"message_id": "T17-20261121-000045", "meter": "PB000123", "what": "no_supply", "note": "since noon"}
    )

    message_id: MessageId
    meter: Meter
    what: Literal["no_supply", "token_refused", "meter_damaged", "display", "other"]
    note: str = Field("", max_length=500)
    phone: str | None = Field(None, pattern=r"^\+?[0-9 -]{6,20}$")
    terminal: Terminal = None
    operator: Operator = None


class CloseBody(RequestBody):
    """What was done about a fault."""

    model_config = with_example(
        {
            "outcome": "fuse of the pole renewed",
        }
    )

    outcome: Reason


class AdviceAnswer(AnswerBody):
    """Where a vend stands; `vend` is its receipt once it stands and its token may be seen."""

    message_id: str
    state: Literal["refused", "released", "held", "confirmed", "unknown", "reversed", "awaited"] = Field(
        description="`awaited`: confirmed, and not known here yet"
    )
    vend: VendAnswer | None


class MoveOfVend(AnswerBody):
    """A vend that came to stand elsewhere."""

    at: str
    from_state: str = Field(alias="from")
    to_state: str = Field(alias="to")
    by: str
    reason: str | None


class StateAnswer(AnswerBody):
    """Where a vend stands and how it came there."""

    message_id: str
    state: VendStateName
    moves: list[MoveOfVend]


class OpenVendView(AnswerBody):
    """A vend that waits for somebody's word."""

    receipt_number: str
    vendor: str
    message_id: str
    terminal: str | None
    state: Literal["held", "unknown"]
    account_number: str
    meter_serial: str
    amount: Money
    amount_minor: int
    sold_at: str
    since: str
    why: str | None
    token: str = Field(examples=["...7890"])
    delivered: Literal["accepted", "used"] | None = Field(description="what the meter says of the token")


class OpenVendsAnswer(AnswerBody):
    """Vends that wait for somebody's word, the oldest first; `more` when there are later ones."""

    vends: list[OpenVendView]
    more: bool


class UnusedToken(AnswerBody):
    """A token that dies with the old key unless it is entered before."""

    kind: str
    token: str = Field(examples=["...7890"])
    tid: int
    made_at: str


class _ActAnswer(AnswerBody):
    message_id: str
    vendor: str
    meter_serial: str
    drn: str
    issued_at: str
    terminal: str | None
    operator: str | None


class KeyChangeAnswer(_ActAnswer):
    """The tokens that move a meter to another key, in the order in which they are entered."""

    kind: Literal["key_change"]
    version: int
    state: Literal["pending"]
    notice: str
    warning: str
    key_change_tokens: list[KeyChangeToken]
    unused_tokens: list[UnusedToken]


class KeyConfirmedAnswer(AnswerBody):
    """The version of a meter's record that is in force now."""

    meter: str
    version: int


class EngineeringToken(AnswerBody):
    """A token that carries no credit."""

    digits: str
    grouped: str
    engine: Literal["sts", "openpaygo"]
    token_class: int | None = Field(alias="class")
    subclass: int | None


class EngineeringAnswer(_ActAnswer):
    """An engineering token."""

    kind: Literal["engineering"]
    order: str
    value: int
    reason: str
    tid: int
    token: EngineeringToken


class TestTokenAnswer(AnswerBody):
    """A token of class 1, the same for every meter."""

    test: int
    digits: str
    grouped: str


class FaultAnswer(_ActAnswer):
    """A fault that was stored under a number."""

    kind: Literal["fault_report"]
    fault_number: str
    what: str


class FaultView(AnswerBody):
    """A fault that nobody has closed."""

    fault_number: str
    meter_serial: str
    vendor: str
    what: str
    note: str
    phone: str | None
    reported_at: str


class FaultsAnswer(AnswerBody):
    """Faults that nobody has closed, the oldest first; `more` when there are later ones."""

    faults: list[FaultView]
    more: bool


class ClosedAnswer(AnswerBody):
    """A fault that was closed."""

    fault_number: str
    closed: Literal[True]


class CatalogueRow(AnswerBody):
    """One code of a refusal or error, and what to do about it."""

    code: str
    status: int
    stored: bool = Field(description="a vend that is refused so is answered so for ever under its message id")
    meaning: str
    to_do: str
    repeat: Repeat


class CatalogueAnswer(AnswerBody):
    """Every code, in the order of the catalogue."""

    errors: list[CatalogueRow]
