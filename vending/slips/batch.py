"""The slip of a sales batch, a shift, what goes to the bank, or a day: sales by tender, what was reversed, and the sum.

Stage: between the totals of a batch and the renderers. Never: adding up sales; it checks that the sums given agree.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from billing.calendar import LocalCalendar
from vending.slips.blocks import Amount, Block, Fact, Notice, Section, Sentence, Slip, Utility
from vending.slips.words import Words


class BatchKind(StrEnum):
    """What is closed."""

    SALES = "sales"
    SHIFT = "shift"
    BANK = "bank"
    DAY = "day"


@dataclass(frozen=True, slots=True, kw_only=True)
class TenderTotal:
    """How many sales were paid in one way, and their sum."""

    tender: str
    count: int
    amount_minor: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchFacts:
    """The totals of a batch.

    Invariants: `sales` holds what was sold, reversed or not; `reversed_sales` what of it was reversed; `total_minor` is
    the one less the other. `until_ms` is None while the batch is open.
    """

    kind: BatchKind
    number: str
    vendor: str
    terminal: str | None
    operator: str | None
    currency: str
    from_ms: int
    until_ms: int | None
    sales: tuple[TenderTotal, ...]
    reversed_sales: tuple[TenderTotal, ...]
    total_minor: int

    def __post_init__(self) -> None:
        sold_minor = sum(each.amount_minor for each in self.sales)
        net_minor = sold_minor - sum(each.amount_minor for each in self.reversed_sales)
        assert net_minor == self.total_minor, f"batch {self.number}: total differs from its tenders"


def batch_slip(facts: BatchFacts, *, words: Words, utility: Utility, calendar: LocalCalendar) -> Slip:
    """Return the slip of a batch."""
    return Slip(
        words=words,
        title=words.titles[facts.kind.value],
        reference=facts.number,
        currency=facts.currency,
        utility=utility,
        blocks=tuple(_blocks(facts, words, calendar)),
    )


def _blocks(facts: BatchFacts, words: Words, calendar: LocalCalendar) -> Iterator[Block]:
    says = words.says
    if facts.until_ms is None:
        yield Notice(head=says["batch_open"], text=says["batch_open_text"])
    values = {
        "batch_number": facts.number,
        "vendor": facts.vendor,
        "terminal": facts.terminal,
        "operator": facts.operator,
        "batch_from": words.instant(facts.from_ms, calendar),
        "batch_until": None if facts.until_ms is None else words.instant(facts.until_ms, calendar),
    }
    for name, value in values.items():
        if value:
            yield Fact(label=says[name], value=value)
    yield Section(text=says["batch_sales"])
    if not facts.sales:
        yield Sentence(text=says["batch_none"])
    yield from _rows(facts.sales, words)
    if facts.reversed_sales:
        yield Section(text=says["batch_reversed"])
        yield from _rows(facts.reversed_sales, words)
    yield Section(text="")
    yield Amount(label=says["batch_total"], amount_minor=facts.total_minor, strong=True)


def _rows(totals: tuple[TenderTotal, ...], words: Words) -> Iterator[Block]:
    for each in totals:
        form = words.says["batch_row_one" if each.count == 1 else "batch_row"]
        label = form.format(tender=words.value(each.tender), count=each.count)
        yield Amount(label=label, amount_minor=each.amount_minor)
