"""The transfer amount fields: a credit squeezed into 16 bits (units) or 20 bits (currency) and back.

Enters: an exact integer credit. Leaves: the field of the token, and the value that field really carries,
which is what must be billed and printed. Never: prices, tariffs, accounts.

Standard: IEC 62055-41, transfer amount and currency transfer amount fields. Both use one series: exponent e
and 14-bit mantissa m stand for 10^e * m + 2^14 * (10^e - 1) / 9.
"""

from dataclasses import dataclass
from typing import Self

from vending.sts.errors import AmountOutOfRange

MANTISSA_VALUES = 1 << 14
UNIT_EXPONENT_MAX = 3
CURRENCY_EXPONENT_MAX = 31
# Exponent 3 and mantissa 16383, in 0.1 kWh (0.1 m3, 0.1 minute): 1,820,162.4 kWh.
UNIT_TENTHS_MAX = 18_201_624
# A currency credit counts hundred-thousandths of the meter's base currency.
CURRENCY_STEPS_PER_UNIT = 100_000

_STEP: tuple[int, ...] = tuple(10**e for e in range(CURRENCY_EXPONENT_MAX + 1))
# The smallest amount of each exponent: 0, 16384, 180224, 1818624, ...
_START: tuple[int, ...] = tuple(MANTISSA_VALUES * (step - 1) // 9 for step in _STEP)


@dataclass(frozen=True, slots=True, kw_only=True)
class CurrencyField:
    """The currency credit as it stands in the token: sign and upper exponent bits, then the 16-bit amount.

    Invariants: `sign_exponent` is 4 bits (sign, exponent bits 4-2); `amount16` is 16 bits (exponent bits
    1-0, mantissa).
    """

    sign_exponent: int
    amount16: int

    def __post_init__(self) -> None:
        if not 0 <= self.sign_exponent <= 0xF:
            raise AmountOutOfRange(f"sign and exponent: expected 4 bits, got {self.sign_exponent}")
        if not 0 <= self.amount16 <= 0xFFFF:
            raise AmountOutOfRange(f"currency amount field: expected 16 bits, got {self.amount16}")

    @classmethod
    def encode(cls, amount_e5: int) -> Self:
        """Squeeze a signed currency amount into the field.

        Units: 10^-5 of the base currency.
        Rounds: up, towards the customer: a credit grows, a debit (negative) shrinks.
        Raises: AmountOutOfRange beyond exponent 31.
        """
        if amount_e5 < 0:
            sign, (exponent, mantissa) = 8, _squeeze_down(-amount_e5)
        else:
            sign, (exponent, mantissa) = 0, _squeeze_up(amount_e5, CURRENCY_EXPONENT_MAX)
        return cls(sign_exponent=sign | exponent >> 2, amount16=(exponent & 3) << 14 | mantissa)

    @property
    def amount_e5(self) -> int:
        """The signed amount this field carries, in 10^-5 of the base currency."""
        exponent = (self.sign_exponent & 7) << 2 | self.amount16 >> 14
        magnitude = _series_value(exponent, self.amount16 & 0x3FFF)
        return -magnitude if self.sign_exponent & 8 else magnitude


def encode_unit_amount(amount_tenths: int) -> int:
    """Squeeze a credit in units into the 16-bit transfer amount.

    Units: 0.1 kWh, 0.1 m3 or 0.1 minute.
    Rounds: up, so the customer never gets less than was paid for.
    Raises: AmountOutOfRange below 0 or above 18_201_624.
    """
    if amount_tenths < 0:
        raise AmountOutOfRange(f"unit credit: expected 0-{UNIT_TENTHS_MAX} tenths, got {amount_tenths}")
    exponent, mantissa = _squeeze_up(amount_tenths, UNIT_EXPONENT_MAX)
    return exponent << 14 | mantissa


def decode_unit_amount(amount16: int) -> int:
    """Return the credit that a 16-bit transfer amount carries, in tenths of a unit.

    Raises: AmountOutOfRange when the field is not 16 bits.
    """
    if not 0 <= amount16 <= 0xFFFF:
        raise AmountOutOfRange(f"transfer amount field: expected 16 bits, got {amount16}")
    return _series_value(amount16 >> 14, amount16 & 0x3FFF)


def _series_value(exponent: int, mantissa: int) -> int:
    return _STEP[exponent] * mantissa + _START[exponent]


def _squeeze_up(amount: int, exponent_max: int) -> tuple[int, int]:
    for exponent in range(exponent_max + 1):
        # An amount in the gap below this exponent's start rounds up to the start itself, mantissa 0.
        mantissa = max(0, -(-(amount - _START[exponent]) // _STEP[exponent]))
        if mantissa < MANTISSA_VALUES:
            return exponent, mantissa
    highest = _series_value(exponent_max, MANTISSA_VALUES - 1)
    raise AmountOutOfRange(f"credit: expected at most {highest} steps, got {amount}")


def _squeeze_down(amount: int) -> tuple[int, int]:
    highest = _series_value(CURRENCY_EXPONENT_MAX, MANTISSA_VALUES - 1)
    if amount > highest:
        raise AmountOutOfRange(f"debit: expected at most {highest} steps, got {amount}")
    # Each exponent begins 16384 steps after the one below, so under the next start the mantissa always fits.
    exponent = max(e for e, start in enumerate(_START) if start <= amount)
    return exponent, (amount - _START[exponent]) // _STEP[exponent]
