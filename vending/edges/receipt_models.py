"""Queries and answers of the receipt route, as the OpenAPI document shows them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from billing.notices.kinds import Language
from vending.edges.act_models import EngineeringAnswer, FaultAnswer, KeyChangeAnswer
from vending.edges.models import AnswerBody, RequestBody, VendAnswer
from vending.slips.facts import SaleState


class ReceiptQuery(RequestBody):
    """The form of a receipt; what is left out is taken from the headers Accept and Accept-Language."""

    form: Literal["json", "text", "html"] | None = Field(default=None, alias="format")
    lang: Literal["en", "hi", "pa"] | None = Field(default=None, description="English, Hindi or Punjabi")
    charset: Literal["utf-8", "ascii"] = Field(
        default="utf-8", description="what the printer has; with ascii a text is English in any language"
    )
    qr: bool = Field(default=False, strict=False, description="draw the QR code at the end of a text, in half blocks")


class PrintedView(AnswerBody):
    """What is true of a slip now, beside what was answered."""

    state: SaleState
    issued_local: str = Field(examples=["2026-11-21T15:45:00+05:30"])
    language: Language
    qr: str | None = Field(description="what the QR code holds: the token's digits", examples=["12345678901234567890"])
    utility: str | None = Field(examples=["Punjab State Power Corporation"])
    utility_help: str | None = Field(examples=["Help: 1912"])
    prints: int = Field(description="how often it was printed as text or HTML; the second is DUPLICATE 1")
    first_printed_at: str | None
    last_printed_at: str | None


class ReceiptAnswer(VendAnswer):
    """The answer of a sale as it stands: without its token where that is not given, with how often it was printed."""

    # A sale that was answered may since have been taken back.
    token_withheld: Literal["until_confirmed", "unknown", "reversed", "cancelled"] | None = Field(  # type: ignore[assignment]
        None, description="why there are no digits"
    )
    printed: PrintedView


class KeyChangeReceipt(KeyChangeAnswer):
    """The answer of a key change, with how often it was printed."""

    printed: PrintedView


class EngineeringReceipt(EngineeringAnswer):
    """The answer of an engineering token, with how often it was printed."""

    printed: PrintedView


class FaultReceipt(FaultAnswer):
    """The answer of a fault report, with how often it was printed."""

    printed: PrintedView


AnyReceipt = ReceiptAnswer | KeyChangeReceipt | EngineeringReceipt | FaultReceipt
