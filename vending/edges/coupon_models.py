"""Bodies of coupons and of stations without a line, as the OpenAPI document shows them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field

from vending.coupons import SERIAL_PATTERN
from vending.edges.models import AnswerBody, Money, RequestBody
from vending.offline import ENTRIES_MAX
from vending.vends import MESSAGE_ID_PATTERN, METER_PATTERN

_INT64_MAX = 2**63 - 1
_INT32_MAX = 2**31 - 1
# What people type: digits with blanks or dashes between groups.
_TYPED_MAX = 40
_REASON = Field(
    min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$", examples=["lapsed during a hospital stay"]
)
_SERIAL = "000010000017"
StateName = Literal["issued", "reserved", "sold", "lapsed", "redeemed", "void"]


class RedeemBody(RequestBody):
    """A coupon to be redeemed for a meter of any make. The serial helps where a PIN alone has to wait."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        json_schema_extra={"examples": [{"pin": "4821 0937 5566 1208", "meter": "PB000123"}]},
    )

    pin: str = Field(max_length=_TYPED_MAX, description="16 digits, in groups or not")
    meter: str = Field(pattern=METER_PATTERN, description="serial or DRN")
    serial: str | None = Field(default=None, max_length=_TYPED_MAX, description="12 digits, in groups or not")


class CouponSaleBody(RequestBody):
    """Coupons of one batch that a vendor pays for; one coupon has the same serial twice."""

    message_id: str = Field(pattern=MESSAGE_ID_PATTERN, examples=["T17-20261130-000007"])
    first: str = Field(max_length=_TYPED_MAX, examples=[_SERIAL])
    last: str = Field(max_length=_TYPED_MAX, examples=[_SERIAL])


class CouponSaleAnswer(AnswerBody):
    """Coupons that are active from now on."""

    message_id: str
    first: str = Field(examples=[_SERIAL])
    last: str = Field(examples=[_SERIAL])
    coupons: int
    amount: Money
    amount_minor: int
    sold_on: str = Field(examples=["2026-11-30"])
    valid_until: str = Field(description="the last local day on which they are redeemed", examples=["2027-02-28"])
    float_balance: Money
    float_balance_minor: int


class ReasonBody(RequestBody):
    """Why; kept for ever with who asked."""

    reason: str = _REASON


class CouponEventAnswer(AnswerBody):
    """What was done to a coupon by hand."""

    at: str
    event: str
    by: str
    reason: str | None
    detail: dict[str, Any]  # JSON: what it changed.


class CouponAnswer(AnswerBody):
    """A coupon as it stands. The last eight are for engineers and auditors alone."""

    serial: str = Field(examples=[_SERIAL])
    state: StateName
    amount: Money
    amount_minor: int
    sold_on: str | None = Field(examples=["2026-11-30"])
    valid_until: str | None = Field(examples=["2027-02-28"])
    revalidations: int
    batch: int | None = None
    carrier: Literal["printed", "electronic"] | None = None
    licence: int | None = None
    vendor: str | None = None
    meter: str | None = None
    channel: Literal["station", "web", "sms", "keypad"] | None = None
    redeemed_at: str | None = None
    events: list[CouponEventAnswer] | None = None


class CouponSum(AnswerBody):
    """A number of coupons and what they come to."""

    coupons: int
    amount: Money
    amount_minor: int


class CouponSums(AnswerBody):
    """Sold coupons and what became of them: sold = redeemed + lapsed + void + outstanding."""

    sold: CouponSum
    redeemed: CouponSum
    lapsed: CouponSum
    void: CouponSum
    outstanding: CouponSum
    revalidated: CouponSum


class CouponMonth(CouponSums):
    """Coupons sold in a month."""

    month: str = Field(examples=["2026-11"])


class CouponLedger(AnswerBody):
    """The liability: what the ledger owes, what sold coupons come to, and what is held for stations without a line."""

    coupons: Money
    coupons_minor: int
    sold_not_redeemed: Money
    sold_not_redeemed_minor: int
    held_for_licences: Money
    held_for_licences_minor: int
    agrees: bool


class CouponReportAnswer(AnswerBody):
    """What became of sold coupons by month of sale, as of a local day."""

    day: str
    months: list[CouponMonth]
    total: CouponSums
    ledger: CouponLedger


class LogEntryBody(RequestBody):
    """One sale of a station without a line, signed by its key."""

    licence: int = Field(ge=1, le=_INT32_MAX, examples=[1])
    seq: int = Field(ge=1, le=_INT32_MAX, examples=[1])
    serial: str = Field(pattern=SERIAL_PATTERN, examples=[_SERIAL])
    amount_minor: int = Field(ge=0, le=_INT64_MAX, examples=[50_000])
    sold_at_ms: int = Field(
        ge=0,
        le=253_402_300_799_999,
        description="by the station's clock, UTC milliseconds",
        examples=[1_795_293_406_000],
    )
    previous: str = Field(
        pattern=r"^[0-9a-f]{64}$", description="digest of the entry before, or of the licence", examples=["0" * 64]
    )
    signature: str = Field(pattern=r"^[0-9a-f]{128}$", examples=["0" * 128])


class LogBody(RequestBody):
    """Entries of a licence's log in their order; known ones may come again."""

    licence: int = Field(ge=1, le=_INT32_MAX, examples=[1])
    entries: list[LogEntryBody] = Field(max_length=ENTRIES_MAX)


class LogFindings(AnswerBody):
    """What is odd about a sale."""

    seq: int
    serial: str
    findings: list[str] = Field(examples=[["clock_set_back"]])


class LogAnswer(AnswerBody):
    """How far the log is known now."""

    licence: int
    state: Literal["in_force", "revoked"]
    known_through: int
    new: int
    findings: list[LogFindings]


class RevokedLicences(AnswerBody):
    """What is signed."""

    revoked: list[int]
    at_ms: int


class RevocationsAnswer(AnswerBody):
    """Licences that are in force no more, signed by the utility; stations keep the newest list."""

    revocations: RevokedLicences
    signature: str
    utility_key: str = Field(description="Ed25519 public key, hexadecimal; compare it with the one given on paper")
