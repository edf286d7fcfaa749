"""Business events as double-entry journals.

Stage: between rating and the database. A closed list of events, each with the ledgers its legs may touch; legs are
in minor units and sum to zero. Above zero is a credit: on ledger `prepaid` the consumer's money, on `revenue` income;
a claim of the utility (`arrears`, `subsidy_receivable`, `vendor_clearing`) stands below zero.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from enum import StrEnum

from billing.rating import SUBSIDY_LINE, Lines, added, total
from billing.running import DayUsage, EdgeQuality, LateUsage


class JournalKind(StrEnum):
    """The closed list of business events."""

    OPENING = "opening"
    VEND = "vend"
    REFUND = "refund"
    REVERSAL = "reversal"
    ADJUSTMENT = "adjustment"
    DAY = "day"
    LATE_USAGE = "late_usage"
    OVERHAUL = "overhaul"
    USAGE_BATCH = "usage_batch"
    SUBSIDY = "subsidy"
    ARREARS_OPENING = "arrears_opening"
    ARREARS_RECOVERY = "arrears_recovery"
    INTEREST = "interest"
    SECURITY_OPENING = "security_opening"
    SECURITY = "security"
    ABSENCE_DEPOSIT = "absence_deposit"
    WRITE_OFF = "write_off"
    VENDOR_DEPOSIT = "vendor_deposit"
    COUPON_SALE = "coupon_sale"


USAGE_KINDS = frozenset({JournalKind.DAY, JournalKind.LATE_USAGE, JournalKind.OVERHAUL})


class Ledger(StrEnum):
    """General-ledger accounts, as a utility's accountant names them; `LEDGER_TITLES` says what each is."""

    PREPAID = "prepaid"
    REVENUE = "revenue"
    LEVIES_PAYABLE = "levies_payable"
    SUBSIDY_RECEIVABLE = "subsidy_receivable"
    USAGE_CLEARING = "usage_clearing"
    VENDOR_CLEARING = "vendor_clearing"
    REFUNDS_PAYABLE = "refunds_payable"
    OPENING = "opening"
    ADJUSTMENTS = "adjustments"
    ARREARS = "arrears"
    SECURITY = "security_deposits"
    ABSENCE = "absence_deposits"
    INTEREST_EXPENSE = "interest_expense"
    BAD_DEBTS = "bad_debts"
    BANK = "bank"
    COUPONS = "coupons"
    GATEWAY_CLEARING = "gateway_clearing"
    FREE_ISSUES = "free_issues"


LEDGER_TITLES = {
    Ledger.PREPAID: "Consumers' prepaid balances (liability)",
    Ledger.REVENUE: "Sale of energy and fixed charges (income), by bill line",
    Ledger.LEVIES_PAYABLE: "Duties, levies and taxes collected (liability), by bill line",
    Ledger.SUBSIDY_RECEIVABLE: "Subsidy due from the government (asset)",
    Ledger.USAGE_CLEARING: "Usage of a sweep on its way to revenue (clearing, zero after each batch)",
    Ledger.VENDOR_CLEARING: "Recharges collected by vendors (asset)",
    Ledger.REFUNDS_PAYABLE: "Refunds to be paid out (liability)",
    Ledger.OPENING: "Balances brought in from the earlier system (equity)",
    Ledger.ADJUSTMENTS: "Adjustments by the billing office (income or expense)",
    Ledger.ARREARS: "Arrears due from consumers (asset)",
    Ledger.SECURITY: "Security deposits of consumers (liability)",
    Ledger.ABSENCE: "Advance deposits for long absence (liability)",
    Ledger.INTEREST_EXPENSE: "Interest paid to consumers (expense)",
    Ledger.BAD_DEBTS: "Debts written off (expense)",
    Ledger.BANK: "Money at the bank (asset)",
    Ledger.COUPONS: "Coupons sold and not yet redeemed (liability)",
    Ledger.GATEWAY_CLEARING: "Recharges collected by payment gateways (asset)",
    Ledger.FREE_ISSUES: "Recharges given free of charge (expense)",
}

# The two ledgers of each money event: where a positive amount is credited, and where it comes from.
_SIDES = {
    JournalKind.OPENING: (Ledger.PREPAID, Ledger.OPENING),
    JournalKind.VEND: (Ledger.PREPAID, Ledger.VENDOR_CLEARING),
    JournalKind.REVERSAL: (Ledger.PREPAID, Ledger.VENDOR_CLEARING),
    JournalKind.REFUND: (Ledger.PREPAID, Ledger.REFUNDS_PAYABLE),
    JournalKind.ADJUSTMENT: (Ledger.PREPAID, Ledger.ADJUSTMENTS),
    JournalKind.SUBSIDY: (Ledger.PREPAID, Ledger.SUBSIDY_RECEIVABLE),
    JournalKind.ARREARS_OPENING: (Ledger.OPENING, Ledger.ARREARS),
    JournalKind.ARREARS_RECOVERY: (Ledger.PREPAID, Ledger.ARREARS),
    JournalKind.INTEREST: (Ledger.PREPAID, Ledger.INTEREST_EXPENSE),
    JournalKind.SECURITY_OPENING: (Ledger.SECURITY, Ledger.OPENING),
    JournalKind.SECURITY: (Ledger.PREPAID, Ledger.SECURITY),
    JournalKind.ABSENCE_DEPOSIT: (Ledger.PREPAID, Ledger.ABSENCE),
    JournalKind.WRITE_OFF: (Ledger.PREPAID, Ledger.BAD_DEBTS),
    JournalKind.VENDOR_DEPOSIT: (Ledger.VENDOR_CLEARING, Ledger.BANK),
    JournalKind.COUPON_SALE: (Ledger.COUPONS, Ledger.VENDOR_CLEARING),
}
# Where the money of a recharge may come from; a reversal gives it back there.
RECHARGE_SOURCES = frozenset(
    {
        Ledger.VENDOR_CLEARING,
        Ledger.COUPONS,
        Ledger.GATEWAY_CLEARING,
        Ledger.FREE_ISSUES,
        Ledger.SUBSIDY_RECEIVABLE,
    }
)
_FURTHER_SOURCES = {JournalKind.VEND: RECHARGE_SOURCES, JournalKind.REVERSAL: RECHARGE_SOURCES}


@dataclass(frozen=True, slots=True, kw_only=True)
class Leg:
    """One side of a journal; `line` names the bill line where there is one."""

    ledger: Ledger
    line: str
    amount_minor: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Journal:
    """A business event, about one account or, for `usage_batch`, about all accounts of a sweep's batch.

    Deposits of vendors and sales of coupons are about no account.

    Invariants: the legs sum to zero; `local_day` only for a day; `period` (the first day of the bill part) and `lines`
    only for usage; `energy_wh` was metered, `assessed_wh` added by a correction; `about_id` is the journal that a
    reversal or correction is about.
    """

    kind: JournalKind
    legs: tuple[Leg, ...]
    local_day: date | None = None
    period: date | None = None
    from_wh: int | None = None
    to_wh: int | None = None
    energy_wh: int = 0
    assessed_wh: int = 0
    edge_quality: EdgeQuality | None = None
    demand_w: int | None = None
    lines: Lines | None = None
    reason: str | None = None
    about_id: int | None = None
    correction_id: int | None = None

    def __post_init__(self) -> None:
        balance = sum(leg.amount_minor for leg in self.legs)
        assert balance == 0, f"journal {self.kind}: expected legs that sum to 0, got {balance}"

    @property
    def prepaid_minor(self) -> int:
        """What the journal adds to the consumer's money."""
        return sum(leg.amount_minor for leg in self.legs if leg.ledger is Ledger.PREPAID)


def money_journal(
    kind: JournalKind,
    amount_minor: int,
    reason: str | None = None,
    *,
    about_id: int | None = None,
    correction_id: int | None = None,
    source: Ledger | None = None,
) -> Journal:
    """Book a money event: above zero credits its first ledger (the consumer's money, mostly), below zero debits it.

    `source` names where the money of a recharge comes from where that is not a vendor.
    """
    to, usual = _SIDES[kind]
    source = source or usual
    assert source is usual or source in _FURTHER_SOURCES.get(kind, ()), f"journal {kind}: not from ledger {source}"
    legs = (
        Leg(ledger=to, line="", amount_minor=amount_minor),
        Leg(ledger=source, line="", amount_minor=-amount_minor),
    )
    return Journal(kind=kind, legs=legs, reason=reason, about_id=about_id, correction_id=correction_id)


def day_journal(usage: DayUsage, levies: frozenset[str]) -> Journal:
    """Book a closed local day; `levies` names the bill lines that are collected for others."""
    return Journal(
        kind=JournalKind.DAY,
        legs=_usage_legs(usage.lines, levies),
        local_day=usage.day,
        period=usage.period,
        from_wh=usage.from_wh,
        to_wh=usage.to_wh,
        energy_wh=usage.to_wh - usage.from_wh,
        edge_quality=usage.quality,
        demand_w=usage.demand_w,
        lines=usage.lines,
    )


def late_journal(usage: LateUsage, levies: frozenset[str]) -> Journal:
    """Book energy found later for a bill part whose days are closed."""
    return Journal(
        kind=JournalKind.LATE_USAGE,
        legs=_usage_legs(usage.lines, levies),
        period=usage.period,
        energy_wh=usage.energy_wh,
        lines=usage.lines,
        reason="readings came after the days were closed",
    )


def overhaul_journal(usage: LateUsage, levies: frozenset[str], *, reason: str, correction_id: int) -> Journal:
    """Book what a correction changes in one bill part."""
    return Journal(
        kind=JournalKind.OVERHAUL,
        legs=_usage_legs(usage.lines, levies),
        period=usage.period,
        energy_wh=usage.energy_wh,
        assessed_wh=usage.assessed_wh,
        lines=usage.lines,
        reason=reason,
        correction_id=correction_id,
    )


def batched_day_legs(lines: Lines) -> tuple[Leg, ...]:
    """Return the legs of a day whose counter-legs are posted once for its whole batch."""
    amount_minor = total(lines)
    return (
        Leg(ledger=Ledger.PREPAID, line="", amount_minor=-amount_minor),
        Leg(ledger=Ledger.USAGE_CLEARING, line="", amount_minor=amount_minor),
    )


def usage_batch_journal(all_lines: Iterable[tuple[Lines, frozenset[str]]]) -> Journal:
    """Book the counter-legs of a batch of days: what usage clearing has gathered goes to the bill lines' ledgers."""
    by_ledger: dict[Ledger, Lines] = {}
    for lines, levies in all_lines:
        for name, amount_minor in lines.items():
            ledger = ledger_of_line(name, levies)
            by_ledger[ledger] = added(by_ledger.get(ledger, {}), {name: amount_minor})
    legs = tuple(
        Leg(ledger=ledger, line=name, amount_minor=amount_minor)
        for ledger, lines in by_ledger.items()
        for name, amount_minor in lines.items()
        if amount_minor
    )
    gathered_minor = sum(leg.amount_minor for leg in legs)
    clearing = Leg(ledger=Ledger.USAGE_CLEARING, line="", amount_minor=-gathered_minor)
    return Journal(kind=JournalKind.USAGE_BATCH, legs=(clearing, *legs))


def ledger_of_line(name: str, levies: frozenset[str]) -> Ledger:
    """Return where a bill line is booked: revenue, a levy owed to others, or the government's subsidy."""
    if name == SUBSIDY_LINE:
        return Ledger.SUBSIDY_RECEIVABLE
    return Ledger.LEVIES_PAYABLE if name in levies else Ledger.REVENUE


def _usage_legs(lines: Lines, levies: frozenset[str]) -> tuple[Leg, ...]:
    bill = tuple(
        Leg(ledger=ledger_of_line(name, levies), line=name, amount_minor=amount)
        for name, amount in lines.items()
        if amount
    )
    return (Leg(ledger=Ledger.PREPAID, line="", amount_minor=-total(lines)), *bill)
