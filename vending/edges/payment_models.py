"""Bodies and answers of online recharges and of the delivery of tokens, for checks and for the OpenAPI document."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from vending.edges.float_models import WORDS_PATTERN
from vending.edges.models import RequestBody
from vending.recharge_links import DAYS_MAX

Language = Annotated[Literal["en", "hi", "pa"], Field(description="in which the payer is told")]
OrderId = Annotated[str, Field(examples=["P0123456789abcdef0123"])]


class PaymentBody(RequestBody):
    """A recharge to be paid online."""

    amount: Annotated[str, Field(max_length=32, description="none or two decimals", examples=["500.00"])]
    language: Language = "en"


class RechargeLinkBody(RequestBody):
    """How long a link is to open the page."""

    days: Annotated[int, Field(ge=1, le=DAYS_MAX, description="days until it expires")] = 30


class RefundBody(RequestBody):
    """Why a recharge is taken back and its money sent back."""

    reason: Annotated[str, Field(pattern=WORDS_PATTERN, examples=["paid for the wrong account"])]


class RechargeLinkAnswer(BaseModel):
    """A link for its consumer alone, to be sent or printed as a QR code."""

    url: Annotated[str, Field(examples=["https://power.example/r/AAAAAAAAAAFqX4..."])]
    expires_at: str


class AttemptAnswer(BaseModel):
    """One way of a token. Addresses are masked."""

    way: Annotated[str, Field(description="answer, receipt, sms, email, meter")]
    state: str
    at: str
    tries: int
    address: str | None


class DeliveryAnswer(BaseModel):
    """Whether a token has reached its meter; one that was used there counts as delivered."""

    state: Annotated[str, Field(description="none, given_out, under_way, delivered")]
    delivered_at: str | None
    result: Annotated[str | None, Field(description="accepted, or used: it was typed before")]
    attempts: list[AttemptAnswer]


class ReceivedAnswer(BaseModel):
    """Money received for an order."""

    state: Annotated[str, Field(description="credited, refund_due, refunded")]
    amount: str
    amount_minor: int
    why: Annotated[str | None, Field(description="amount_mismatch, paid_twice, vend_refused, asked, at_gateway")]


class PaymentAnswer(BaseModel):
    """An online recharge."""

    order_id: OrderId
    state: Annotated[str, Field(description="created, open, failed, expired, credited, refund_due, refunded")]
    amount: str
    amount_minor: int
    currency: str
    created_at: str
    expires_at: str
    pay_link: Annotated[str | None, Field(description="where it is paid; null once that is over")]
    refusal: Annotated[str | None, Field(description="why a paid recharge was not sold: a code of a vend")]
    received: list[ReceivedAnswer]
    token: Annotated[str | None, Field(description="in groups, once credited")]
    balance_after: str | None
    supply_after: str | None
    receipt_number: str | None
    delivery: DeliveryAnswer | None


class RechargeAnswer(BaseModel):
    """What the holder of a link sees of the account: name and number masked."""

    account_number: Annotated[str, Field(examples=["******300"])]
    consumer: Annotated[str, Field(examples=["G*** S***"])]
    currency: str
    time_zone: str
    balance: str
    balance_minor: int
    money_time: str
    supply: str
    restores_with: str
    restores_with_minor: int
    vend_min: str
    vend_min_minor: int
    vend_max: str
    vend_max_minor: int
    suggested_minor: list[int]


class WebhookAnswer(BaseModel):
    """What a gateway's word came to."""

    outcome: Annotated[str, Field(examples=["credited"])]
