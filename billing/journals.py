"""Business events as double-entry journals.

Stage: between rating and the database. A closed list of events, each with the ledgers its legs may touch; legs are
in minor units and sum to zero. On ledger `prepaid` above zero is the consumer's money.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date
from enum import StrEnum

from billing.rating import Lines, total
from billing.running import DayUsage, EdgeQuality, LateUsage

PREPAID = "prepaid"


class JournalKind(StrEnum):
    """The closed list of business events."""

    OPENING = "opening"
    VEND = "vend"
    REVERSAL = "reversal"
    ADJUSTMENT = "adjustment"
    DAY = "day"
    LATE_USAGE = "late_usage"


# The other ledger of each money event; usage books to the revenue lines instead.
_AGAINST = {
    JournalKind.OPENING: "opening",
    JournalKind.VEND: "vendor_clearing",
    JournalKind.REVERSAL: "vendor_clearing",
    JournalKind.ADJUSTMENT: "adjustments",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Leg:
    """One side of a journal; `line` names the bill line for revenue."""

    ledger: str
    line: str
    amount_minor: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Journal:
    """A business event about one account.

    Invariants: the legs sum to zero; `local_day` only for a day, `period` only for usage.
    """

    kind: JournalKind
    legs: tuple[Leg, ...]
    local_day: date | None = None
    period: date | None = None
    from_wh: int | None = None
    to_wh: int | None = None
    energy_wh: int = 0
    edge_quality: EdgeQuality | None = None
    reason: str | None = field(default=None)

    def __post_init__(self) -> None:
        balance = sum(leg.amount_minor for leg in self.legs)
        assert balance == 0, f"journal {self.kind}: expected legs that sum to 0, got {balance}"

    @property
    def prepaid_minor(self) -> int:
        """What the journal adds to the consumer's money."""
        return sum(leg.amount_minor for leg in self.legs if leg.ledger == PREPAID)


def money_journal(kind: JournalKind, amount_minor: int, reason: str | None = None) -> Journal:
    """Book money to (above zero) or from (below) the consumer's account."""
    against = _AGAINST[kind]
    legs = (
        Leg(ledger=PREPAID, line="", amount_minor=amount_minor),
        Leg(ledger=against, line="", amount_minor=-amount_minor),
    )
    return Journal(kind=kind, legs=legs, reason=reason)


def day_journal(usage: DayUsage) -> Journal:
    """Book a closed local day."""
    return Journal(
        kind=JournalKind.DAY,
        legs=_usage_legs(usage.lines),
        local_day=usage.day,
        period=usage.period,
        from_wh=usage.from_wh,
        to_wh=usage.to_wh,
        energy_wh=usage.to_wh - usage.from_wh,
        edge_quality=usage.quality,
    )


def late_journal(usage: LateUsage) -> Journal:
    """Book energy found later for a period whose days are closed."""
    return Journal(
        kind=JournalKind.LATE_USAGE,
        legs=_usage_legs(usage.lines),
        period=usage.period,
        energy_wh=usage.energy_wh,
        reason="readings came after the period's days were closed",
    )


def _usage_legs(lines: Lines) -> tuple[Leg, ...]:
    revenue = tuple(Leg(ledger="revenue", line=name, amount_minor=amount) for name, amount in lines.items() if amount)
    return (Leg(ledger=PREPAID, line="", amount_minor=-total(lines)), *revenue)
