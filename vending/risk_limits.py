"""What a security module may make on one local day, and how processes share it without asking each time.

Enters: the day's limits, what all processes have taken of them, what is needed now. Leaves: how much more to take.
Never: a clock, a database.

A process takes an allotment of a hundredth of the day's limit and uses it up by itself. What it has not used when it
stops is lost for the day: the limit may be reached up to one allotment a process early, and is never passed.
"""

from dataclasses import astuple, dataclass
from typing import Final, NamedTuple

from vending.sts.amounts import CurrencyField, decode_unit_amount

# A hundred allotments a day cost a hundred short transactions.
_ALLOTMENTS_A_DAY: Final = 100
_E5_PER_MINOR: Final = 1_000


class Amounts(NamedTuple):
    """What is counted.

    Units: `minor` in minor units of the currency; `tenths` in 0.1 kWh, 0.1 m3 or 0.1 minute, as the token has it.
    """

    tokens: int = 0
    minor: int = 0
    tenths: int = 0

    def plus(self, other: "Amounts") -> "Amounts":
        """Add up, one by one."""
        return Amounts(*(a + b for a, b in zip(self, other, strict=True)))

    def minus(self, other: "Amounts") -> "Amounts":
        """Take off, one by one."""
        return Amounts(*(a - b for a, b in zip(self, other, strict=True)))

    def lacking(self, need: "Amounts") -> "Amounts":
        """Return what is missing to a need."""
        return Amounts(*(max(0, b - a) for a, b in zip(self, need, strict=True)))


@dataclass(frozen=True, slots=True, kw_only=True)
class RiskLimits:
    """The most that one module may make on a local day, all processes together; None is no limit.

    Units: as `Amounts`.
    """

    tokens: int | None = None
    minor: int | None = None
    tenths: int | None = None

    @property
    def unlimited(self) -> bool:
        """Tell whether nothing is limited."""
        return not any(each is not None for each in astuple(self))

    def left(self, taken: Amounts) -> tuple[int | None, ...]:
        """Return what is left of each limit."""
        limits: tuple[int | None, ...] = astuple(self)
        return tuple(None if most is None else max(0, most - used) for most, used in zip(limits, taken, strict=True))

    def counted(self, need: Amounts) -> Amounts:
        """Leave out what is not limited."""
        return Amounts(*(0 if most is None else each for most, each in zip(astuple(self), need, strict=True)))

    def over(self, taken: Amounts, need: Amounts) -> str | None:
        """Name the first limit that a need would pass; None where it fits."""
        for name, left, each in zip(Amounts._fields, self.left(taken), need, strict=True):
            if left is not None and each > left:
                return name
        return None

    def allot(self, taken: Amounts, need: Amounts) -> Amounts:
        """Return what a process takes to meet a need: an allotment of each, the need if that is more, or what is left.

        Nothing at all when the need does not fit.
        """
        if self.over(taken, need) is not None:
            return Amounts()
        shares = (0 if most is None else max(1, most // _ALLOTMENTS_A_DAY) for most in astuple(self))
        return Amounts(
            *(
                0 if left is None or not each else min(left, max(each, share))
                for left, each, share in zip(self.left(taken), need, shares, strict=True)
            )
        )


def currency_risk(amount: CurrencyField) -> Amounts:
    """Return what a currency token counts as; one that takes credit away counts as much as one that gives it.

    Rounds: up to the minor unit.
    """
    return Amounts(tokens=1, minor=-(-abs(amount.amount_e5) // _E5_PER_MINOR))


def unit_risk(amount16: int) -> Amounts:
    """Return what a unit token counts as.

    Raises: AmountOutOfRange when the field is not 16 bits.
    """
    return Amounts(tokens=1, tenths=decode_unit_amount(amount16))
