"""A vendor's float on paper: totals of batches and days, statements, receipts of deposits.

Stage: between the entries of a float and whoever reads them. Enters: entries, alone or summed up by the database.
Leaves: totals by tender with reversals apart, a statement that adds up. Never: a database, a clock, a rounding.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from enum import StrEnum
from typing import ClassVar
from zoneinfo import ZoneInfo

from billing.money import format_minor
from vending.slips.batch import TenderTotal
from vending.vends import Tender, VendingError

# The ledger has one currency: that of its tariffs.
CURRENCY = "INR"
# What a vendor carries to the bank; the rest arrives there by itself.
_BANKED = frozenset({Tender.CASH.value, Tender.CHEQUE.value})
# What a spreadsheet would take for a formula if a cell began with it.
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


class FloatError(VendingError):
    """Something asked about a float that is not as it should be."""


class VendorUnknown(FloatError):
    """No vendor of that name."""

    code: ClassVar[str] = "unknown_vendor"


class VendorRequired(FloatError):
    """The utility's people say which vendor they ask about; a vendor's key asks about its own."""

    code: ClassVar[str] = "vendor_required"


class ScopeRefused(FloatError):
    """A terminal or operator named for a batch that is of the whole vendor."""

    code: ClassVar[str] = "bad_scope_of_batch"


class NoSuchBatch(FloatError):
    """A batch that has not begun."""

    code: ClassVar[str] = "unknown_batch"


class NoSuchDeposit(FloatError):
    """No deposit of that reference, or another vendor's."""

    code: ClassVar[str] = "unknown_deposit"


class DepositReferenceReused(FloatError):
    """A reference that belongs to another deposit."""

    code: ClassVar[str] = "reference_reused"


class DepositInvalid(FloatError):
    """A deposit without an amount."""

    code: ClassVar[str] = "deposit_refused"


class BatchKind(StrEnum):
    """What a vendor closes: the sales of a terminal, the shift of an operator, what goes to the bank."""

    SALES = "sales"
    SHIFT = "shift"
    BANK = "bank"


class Channel(StrEnum):
    """How a deposit was paid in."""

    BANK = "bank"
    CASH = "cash"
    CHEQUE = "cheque"


class EntryKind(StrEnum):
    """What moves a float; the values of its journals' kinds."""

    VEND = "vend"
    REVERSAL = "reversal"
    DEPOSIT = "vendor_deposit"
    COUPONS = "coupon_sale"


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """Entries of one terminal, kind and tender together: how many, and what they added to the float. Minor units."""

    terminal: str = ""
    kind: EntryKind
    tender: str = ""
    count: int = 1
    amount_minor: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """What was sold and what was reversed, each by tender in the order of their names; amounts above zero."""

    sales: tuple[TenderTotal, ...] = ()
    reversals: tuple[TenderTotal, ...] = ()

    @property
    def sold_minor(self) -> int:
        """All sales, reversed or not."""
        return sum(each.amount_minor for each in self.sales)

    @property
    def reversed_minor(self) -> int:
        """What was given back."""
        return sum(each.amount_minor for each in self.reversals)

    @property
    def net_minor(self) -> int:
        """What is left of the sales."""
        return self.sold_minor - self.reversed_minor

    @property
    def to_bank_minor(self) -> int:
        """What is left of the sales for cash and cheques."""
        taken = sum(each.amount_minor for each in self.sales if each.tender in _BANKED)
        return taken - sum(each.amount_minor for each in self.reversals if each.tender in _BANKED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Day:
    """A vendor's end of day: its float from midnight to midnight, and its sales by terminal. Minor units.

    Invariants: the float at the start, deposits and sales of coupons (as they moved it), less what is left of the sales
    of all terminals, is the float at the end.
    """

    day: date
    is_over: bool
    opening_minor: int
    deposits_minor: int
    coupons_minor: int
    totals: Totals
    terminals: tuple[tuple[str, Totals], ...]
    closing_minor: int

    def __post_init__(self) -> None:
        reached_minor = self.opening_minor + self.deposits_minor + self.coupons_minor - self.totals.net_minor
        assert reached_minor == self.closing_minor, f"day {self.day}: {reached_minor} and {self.closing_minor} minor"
        apart_minor = sum(totals.net_minor for _, totals in self.terminals)
        assert apart_minor == self.totals.net_minor, f"day {self.day}: terminals sum to {apart_minor} minor"


@dataclass(frozen=True, slots=True, kw_only=True)
class StatementEntry:
    """One line of a vendor's statement; `amount_minor` is what it added to the float, `balance_minor` what it left."""

    n: int
    booked_at: datetime
    kind: EntryKind
    amount_minor: int
    balance_minor: int
    reference: str
    account: str | None = None
    terminal: str | None = None
    operator: str | None = None
    tender: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FloatStatement:
    """A vendor's statement from one local day to another, or a page of it: it goes on after entry `next_after`.

    Invariants: opening and all entries add up to the closing; each entry's balance follows from the one before it.
    """

    vendor: str
    first: date
    last: date
    opening_minor: int
    entries: Sequence[StatementEntry]
    closing_minor: int
    next_after: int | None = None

    def __post_init__(self) -> None:
        balance_minor = self.opening_minor
        for entry in self.entries:
            balance_minor += entry.amount_minor
            assert balance_minor == entry.balance_minor, f"entry {entry.n} of {self.vendor}: expected {balance_minor}"
        assert balance_minor == self.closing_minor, f"statement of {self.vendor}: closes at {self.closing_minor}"


def totals_of(moved: Iterable[Moved]) -> Totals:
    """Add sales and reversals up by tender; whatever else moved the float is left out."""
    sums: dict[EntryKind, dict[str, tuple[int, int]]] = {EntryKind.VEND: {}, EntryKind.REVERSAL: {}}
    for each in moved:
        if each.kind in sums:
            count, amount_minor = sums[each.kind].get(each.tender, (0, 0))
            sums[each.kind][each.tender] = count + each.count, amount_minor + abs(each.amount_minor)
    return Totals(sales=_by_tender(sums[EntryKind.VEND]), reversals=_by_tender(sums[EntryKind.REVERSAL]))


def day_of(day: date, moved: Sequence[Moved], *, is_over: bool, opening_minor: int, closing_minor: int) -> Day:
    """Return a vendor's end of day from all that moved its float on it."""
    sold = [each for each in moved if each.kind in (EntryKind.VEND, EntryKind.REVERSAL)]
    terminals = sorted({each.terminal for each in sold})
    return Day(
        day=day,
        is_over=is_over,
        opening_minor=opening_minor,
        deposits_minor=sum(each.amount_minor for each in moved if each.kind is EntryKind.DEPOSIT),
        coupons_minor=sum(each.amount_minor for each in moved if each.kind is EntryKind.COUPONS),
        totals=totals_of(sold),
        terminals=tuple((name, totals_of(each for each in sold if each.terminal == name)) for name in terminals),
        closing_minor=closing_minor,
    )


def csv_head(vendor: str, first: date, last: date, opening_minor: int) -> str:
    """Return the first lines of a statement as CSV."""
    columns = ("n", "booked_at", "kind", "reference", "account", "terminal", "operator", "tender", "amount", "balance")
    opening = ("", first.isoformat(), "opening", vendor, "", "", "", "", "", format_minor(opening_minor))
    return _csv([columns, opening])


def csv_lines(entries: Iterable[StatementEntry], zone: ZoneInfo) -> str:
    """Return entries as lines of CSV, instants by the local clock."""
    return _csv(
        (
            str(entry.n),
            entry.booked_at.astimezone(zone).isoformat(timespec="milliseconds"),
            entry.kind.value,
            entry.reference,
            entry.account or "",
            entry.terminal or "",
            entry.operator or "",
            entry.tender or "",
            format_minor(entry.amount_minor),
            format_minor(entry.balance_minor),
        )
        for entry in entries
    )


def csv_tail(last: date, closing_minor: int) -> str:
    """Return the last line of a statement as CSV."""
    return _csv([("", last.isoformat(), "closing", "", "", "", "", "", "", format_minor(closing_minor))])


def _csv(rows: Iterable[Sequence[str]]) -> str:
    written = io.StringIO()
    # The two last columns are amounts, which may be below zero; the others are words of people.
    csv.writer(written).writerows([*map(_as_text, row[:-2]), *row[-2:]] for row in rows)
    return written.getvalue()


def _as_text(cell: str) -> str:
    return f"'{cell}" if cell.startswith(_FORMULA_STARTS) else cell


def _by_tender(sums: dict[str, tuple[int, int]]) -> tuple[TenderTotal, ...]:
    return tuple(
        TenderTotal(tender=tender, count=count, amount_minor=amount_minor)
        for tender, (count, amount_minor) in sorted(sums.items())
    )
