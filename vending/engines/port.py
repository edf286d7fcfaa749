"""The port that every token engine fills, and what it takes and gives.

Stage: inside a sale, between the record of a meter and the row of its token. An engine chooses the next token id above
the record's last one, rounds what the token can hold in the consumer's favour and has it minted; who calls it stores
id and token in one transaction, under the lock that the record was read under.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from vending.engines.records import Capability, EngineName, MeterRecord
from vending.openpaygo.tokens import PaygoKind
from vending.security import ExtendedSet, TokenRefused
from vending.sts.management import ManagementKind
from vending.sts.tokens import CreditService
from vending.vends import Declined, DeclineReason


class CarriedUnit(StrEnum):
    """What the amount of a token counts, as it is printed and answered."""

    CURRENCY = "currency"
    KWH = "kWh"
    CUBIC_METRES = "m3"
    MINUTES = "min"
    DAYS = "days"


@dataclass(frozen=True, slots=True, kw_only=True)
class Carried:
    """The credit that a token really holds, which is what is printed; never less than was paid for.

    Invariants: the credit is `steps / steps_per_unit` of its unit; `steps_per_unit` is 100,000 for currency, 10 for
    kWh, m3 and minutes, and for days the parts that a device counts.
    """

    steps: int
    steps_per_unit: int
    unit: CarriedUnit

    @property
    def text(self) -> str:
        """The amount in decimals: exact, except parts of days, which are cut after two."""
        if self.unit is CarriedUnit.DAYS:
            return self._of_days()
        decimals = len(str(self.steps_per_unit)) - 1
        whole, rest = divmod(abs(self.steps), self.steps_per_unit)
        return f"{'-' if self.steps < 0 else ''}{whole}.{rest:0{decimals}d}"

    def _of_days(self) -> str:
        whole, hundredths = divmod(self.steps * 100 // self.steps_per_unit, 100)
        return f"{whole}.{hundredths:02d}" if self.steps % self.steps_per_unit else f"{whole}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Credit:
    """What a sale wants to put on a meter: money, and the energy that the money buys.

    Units: `energy_wh` at the rates that the account has come to; for meters that take no currency.
    """

    amount_minor: int
    energy_wh: int
    service: CreditService = CreditService.ELECTRICITY


@dataclass(frozen=True, slots=True, kw_only=True)
class StsManagement:
    """A class 2 token with a TID; what the 16 bits mean follows from the kind."""

    kind: ManagementKind | ExtendedSet
    value16: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PaygoCommand:
    """A token of a device that adds no time: sets it (in parts of a day), ends pay-as-you-go, sets the count."""

    kind: PaygoKind
    value: int | None = None


ManagementOrder = StsManagement | PaygoCommand


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuedToken:
    """A minted token as it is stored and printed.

    Invariants: `tid` is None for a section of a key-change set, and with empty digits for a token that was not minted;
    class and subclass are those of STS, else None; `carried` is set for credit; `repr` shows no digits.
    """

    engine: EngineName
    digits: str = field(repr=False)
    grouped: str = field(repr=False)
    tid: int | None
    token_class: int | None = None
    subclass: int | None = None
    carried: Carried | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenReading:
    """What a token says, without its digits; what it has no place for is None."""

    masked: str
    token_class: int | None
    subclass: int | None
    carried: Carried | None = None
    tid: int | None = None
    tid_minute: datetime | None = None


class TokenEngine(Protocol):
    """What vending needs of the engine of a meter's make.

    Every method raises ModuleAbsent where a security module gives no answer: no refusal to be stored.
    """

    async def judge(self, meter: MeterRecord, *, now_ms: int) -> Declined | None:
        """Tell before a sale, as far as can be told without minting, what would refuse the meter credit."""
        ...

    async def preview_credit(self, meter: MeterRecord, credit: Credit, *, now_ms: int) -> IssuedToken | Declined:
        """Tell what the token of a credit would hold: a token without digits and token id, not minted."""
        ...

    async def issue_credit(self, meter: MeterRecord, credit: Credit, *, now_ms: int) -> IssuedToken | Declined:
        """Mint the token that carries a credit, under the next token id."""
        ...

    async def issue_management(
        self, meter: MeterRecord, order: ManagementOrder, *, now_ms: int
    ) -> IssuedToken | Declined:
        """Mint a token that sets or clears something, under the next token id."""
        ...

    async def issue_key_change(
        self, meter: MeterRecord, new: MeterRecord, *, now_ms: int
    ) -> tuple[IssuedToken, ...] | Declined:
        """Mint the set that moves the meter from one record to another, in the order of its numbers."""
        ...

    async def verify(self, meter: MeterRecord, digits: str) -> TokenReading | TokenRefused | Declined:
        """Read a token as the meter would, whether it was used or not.

        Raises: MalformedToken for anything but the 20 digits of STS.
        """
        ...


def not_capable(meter: MeterRecord, wanted: str) -> Declined:
    """Refuse what the meter's record says it does not take."""
    has = ", ".join(sorted(meter.capabilities)) or "nothing"
    return Declined(
        reason=DeclineReason.METER_NOT_CAPABLE,
        message=f"meter {meter.serial}: expected one that takes {wanted}, got one that takes {has}",
    )


def takes(meter: MeterRecord, capability: Capability) -> bool:
    """Tell whether a meter takes something."""
    return capability in meter.capabilities
