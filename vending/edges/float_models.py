"""Bodies, queries and answers of the float and batch routes, as the OpenAPI document shows them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from vending.edges.models import AnswerBody, Money, RequestBody
from vending.floats import BatchKind, Channel, EntryKind
from vending.vends import TERMINAL_PATTERN

DAY_PATTERN = r"^\d{4}-\d{2}-\d{2}$"
# As the table of deposits has it.
DEPOSIT_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._:/-]{0,63}$"
# Words of people: a name, a reason. No control characters.
WORDS_PATTERN = r"^[^\x00-\x1f\x7f]{1,200}$"
NAME_PATTERN = r"^[^\x00-\x1f\x7f]{1,64}$"
# As far as entries of one vendor, and batches of one kind, can be counted.
ENTRY_MAX, BATCH_MAX = 2**63 - 1, 2**31 - 1

_BY = "the person; without it the key"


class VendorQuery(RequestBody):
    """Which vendor is meant; a vendor's own key needs none, the utility's people name one."""

    vendor: str | None = Field(None, pattern=WORDS_PATTERN, description="a vendor's name, for cashiers and auditors")


class FloatStatementQuery(VendorQuery):
    """Which days, and in which form; by default the month to date as JSON, 1,000 entries a page."""

    first: str | None = Field(None, alias="from", pattern=DAY_PATTERN, examples=["2026-11-01"])
    last: str | None = Field(None, alias="to", pattern=DAY_PATTERN, examples=["2026-11-30"])
    after: int | None = Field(None, ge=0, le=ENTRY_MAX, strict=False, description="`next_after` of the page before")
    form: Literal["json", "csv"] = Field("json", alias="format", description="csv is never cut into pages")


class OpenBatchesQuery(VendorQuery):
    """Whose sales and whose shift; left out, those of sales that named none."""

    terminal: str | None = Field(None, pattern=TERMINAL_PATTERN)
    operator: str | None = Field(None, pattern=TERMINAL_PATTERN)


class ReportQuery(VendorQuery):
    """Which vendor, and in which form."""

    form: Literal["json", "text", "html"] = Field("json", alias="format", description="text is for an 80 mm printer")
    lang: Literal["en", "hi", "pa"] = Field("en", description="of text and html: English, Hindi or Punjabi")


class BatchQuery(ReportQuery):
    """Whose batch, and in which form."""

    of: str | None = Field(
        None, pattern=TERMINAL_PATTERN, description="the terminal of `sales`, the operator of a `shift`"
    )


class BatchBody(RequestBody):
    """Whose batch is started or ended, and by whom."""

    of: str | None = Field(
        None,
        pattern=TERMINAL_PATTERN,
        description="the terminal of `sales`, the operator of a `shift`",
        examples=["T17"],
    )
    by: str | None = Field(None, pattern=NAME_PATTERN, description=_BY)


class DepositBody(RequestBody):
    """Money that a vendor paid in. The same reference is the same deposit, for ever."""

    vendor: str = Field(pattern=WORDS_PATTERN, examples=["Station 17"])
    reference: str = Field(
        pattern=DEPOSIT_PATTERN, description="what the bank or the counter calls it", examples=["SBI-20261121-7781"]
    )
    amount: str = Field(max_length=32, description="currency units, none or two decimals", examples=["25000.00"])
    channel: Literal["bank", "cash", "cheque"] = Field("bank", description="how it was paid in")
    by: str | None = Field(None, pattern=NAME_PATTERN, description=_BY)
    note: str | None = Field(None, pattern=WORDS_PATTERN)


class DepositReturnBody(RequestBody):
    """Why a deposit was no money."""

    reason: str = Field(pattern=WORDS_PATTERN, examples=["cheque not honoured"])
    by: str | None = Field(None, pattern=NAME_PATTERN, description=_BY)


class FloatAnswer(AnswerBody):
    """What a vendor has with the utility; a limit of null is no limit, and then nothing bounds what is available."""

    vendor: str
    active: bool
    currency: str = Field(examples=["INR"])
    balance: Money
    balance_minor: int
    credit_limit: Money | None
    credit_limit_minor: int | None
    available: Money | None = Field(description="what could be sold now")
    available_minor: int | None


class DepositAnswer(AnswerBody):
    """The receipt of a deposit, the same whenever it is asked for; the last four say that it was taken back."""

    receipt_number: str = Field(examples=["42"])
    reference: str
    vendor: str
    currency: str
    amount: Money
    amount_minor: int
    channel: Channel
    by: str
    note: str
    deposited_at: str
    balance_after: Money
    balance_after_minor: int
    taken_back: bool
    taken_back_at: str | None
    taken_back_by: str | None
    taken_back_because: str | None


class TenderOfTotals(AnswerBody):
    """Sales or reversals paid in one way."""

    tender: str = Field(examples=["cash"], description="cash, card, upi, wallet, cheque; other where none was named")
    count: int
    amount: Money
    amount_minor: int


class TotalsAnswer(AnswerBody):
    """Sales by tender, reversed or not, and reversals apart; the net is the one less the other."""

    sales: list[TenderOfTotals]
    sold: Money
    sold_minor: int
    reversals: list[TenderOfTotals]
    reversed_total: Money = Field(alias="reversed")
    reversed_minor: int
    net: Money
    net_minor: int
    to_bank: Money = Field(description="the net of cash and cheques")
    to_bank_minor: int


class BatchHead(AnswerBody):
    """A run of a vendor's sales; open until it is ended, then it stays as it is."""

    kind: BatchKind
    of: str | None = Field(description="the terminal of `sales`, the operator of a `shift`; null for none, and `bank`")
    number: int
    state: Literal["open", "ended"]
    began_at: str | None = Field(description="when the one before it ended; null for the first")
    started_at: str | None
    started_by: str | None
    ended_at: str | None
    ended_by: str | None


class BatchAnswer(BatchHead):
    """A batch with its totals; those of an open one are so far."""

    vendor: str
    currency: str
    totals: TotalsAnswer


class OpenBatchesAnswer(AnswerBody):
    """All that is open, each with its totals so far."""

    batches: list[BatchAnswer]


class BatchesAnswer(AnswerBody):
    """The latest batches of a kind that somebody started or ended, the newest first, at most 100."""

    batches: list[BatchHead]


class TerminalOfDay(AnswerBody):
    """What one terminal sold on a day."""

    terminal: str | None
    totals: TotalsAnswer


class DayAnswer(AnswerBody):
    """A vendor's end of day; it is final once the local day is over."""

    vendor: str
    day: str = Field(examples=["2026-11-21"])
    final: bool
    currency: str
    opening: Money
    opening_minor: int
    deposits: Money = Field(description="paid in, less what was taken back")
    deposits_minor: int
    coupons: Money = Field(description="coupons bought, below zero, and given back")
    coupons_minor: int
    totals: TotalsAnswer
    terminals: list[TerminalOfDay]
    closing: Money
    closing_minor: int


class EntryOfStatement(AnswerBody):
    """One entry; `reference` is the message id of a sale, the reference of a deposit, or the reason of another one."""

    n: int = Field(description="counts the vendor's entries without a gap")
    booked_at: str
    kind: EntryKind
    reference: str
    account_number: str | None
    terminal: str | None
    operator: str | None
    tender: str | None
    amount: Money
    amount_minor: int
    balance: Money
    balance_minor: int


class FloatStatementAnswer(AnswerBody):
    """Opening, each entry, closing; a page ends with the balance after its last entry and says where to go on."""

    vendor: str
    currency: str
    first: str = Field(alias="from")
    last: str = Field(alias="to")
    opening: Money
    opening_minor: int
    entries: list[EntryOfStatement]
    closing: Money
    closing_minor: int
    next_after: int | None
