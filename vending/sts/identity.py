"""Who a meter is and which key it holds: numbers, check digits, and the two blocks a key is derived from.

Enters: digits as typed, imported or stored. Leaves: validated values, and the PANBlock and CONTROLBlock.
Never: keys of any kind. Everything a point of sale must know of a meter to sell to it is a `MeterKeyRecord`.

Standard: IEC 62055-41 (numbers, PANBlock, CONTROLBlock), ISO/IEC 7812 (Luhn digit).
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from enum import IntEnum, StrEnum
from typing import Self

from vending.sts.errors import CheckDigitMismatch, InvalidIdentity

PAN_DIGITS = 18
SGC_DIGITS = 6
# An 11-digit DRN goes with a 6-digit IIN and a 13-digit one with the 4-digit IIN 0000: 17 digits either way.
DRN_DIGITS = (11, 13)
IIN_OF_13_DIGIT_DRN = "0000"


class EncryptionAlgorithm(StrEnum):
    """The cipher of a meter, by its EA code."""

    STA = "07"
    MISTY1 = "11"


class KeyDerivation(StrEnum):
    """How a decoder key comes from a vending key, by its DKGA code."""

    LEGACY = "01"
    DES = "02"
    TRIPLE_DES = "03"
    HMAC_SHA256 = "04"


class KeyType(IntEnum):
    """What the decoder key in a meter is for, by its KT code."""

    INITIALISATION = 0
    DEFAULT = 1
    UNIQUE = 2
    COMMON = 3


class BaseDate(StrEnum):
    """The instant a meter counts TID minutes from, by the code used in key derivation."""

    Y1993 = "93"
    Y2014 = "14"
    Y2035 = "35"

    @property
    def starts_at(self) -> datetime:
        """The first minute of the era, in UTC."""
        return _ERA_STARTS[self]


_ERA_STARTS = {
    BaseDate.Y1993: datetime(1993, 1, 1, tzinfo=UTC),
    BaseDate.Y2014: datetime(2014, 1, 1, tzinfo=UTC),
    BaseDate.Y2035: datetime(2035, 1, 1, tzinfo=UTC),
}


# Twice a digit, the two digits of the product added.
_DOUBLED = (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)


def luhn_check_digit(digits: str) -> int:
    """Return the Luhn mod 10 digit that follows these digits.

    Raises: InvalidIdentity unless every character is one of 0-9 and there is at least one.
    """
    require_digits(digits, None, whose="Luhn input")
    # Every second digit counts double, from the last data digit leftwards.
    doubled = sum([_DOUBLED[int(digit)] for digit in digits[::-2]])
    return -(doubled + sum([int(digit) for digit in digits[-2::-2]])) % 10


def is_luhn_valid(digits: str) -> bool:
    """Tell whether the last digit is the Luhn digit of those before it.

    Raises: InvalidIdentity unless there are at least two digits.
    """
    require_digits(digits, None, whose="Luhn input")
    return luhn_check_digit(digits[:-1]) == int(digits[-1])


@dataclass(frozen=True, slots=True)
class Drn:
    """A decoder reference number, the number printed on the meter: maker code, serial, Luhn digit.

    Invariants: 11 digits (2-digit maker code) or 13 digits (4-digit maker code); the Luhn digit agrees.
    """

    digits: str

    def __post_init__(self) -> None:
        if len(self.digits) not in DRN_DIGITS:
            raise InvalidIdentity(f"DRN: expected 11 or 13 digits, got {len(self.digits)}")
        require_digits(self.digits, None, whose="DRN")
        _require_check_digit(self.digits, whose="DRN")

    def __str__(self) -> str:
        return self.digits

    @property
    def maker_code(self) -> str:
        """The maker's code: 2 digits, or 4 in a 13-digit DRN."""
        return self.digits[:-9]


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterPan:
    """A meter's primary account number: issuer, DRN and a Luhn digit over both.

    Invariants: IIN of 6 digits with an 11-digit DRN, or IIN 0000 with a 13-digit one; 18 digits in all.
    """

    iin: str
    drn: Drn

    def __post_init__(self) -> None:
        require_digits(self.iin, None, whose=f"IIN of meter {self.drn}")
        drn_digits = len(self.drn.digits)
        # Only an IIN that is found again in the 18 digits can be told from its DRN by whoever reads them.
        if len(self.iin) + drn_digits != PAN_DIGITS - 1 or split_pan(f"{self.iin}{self.drn}0")[0] != self.iin:
            expected = "6 digits other than 0000xx" if drn_digits == 11 else IIN_OF_13_DIGIT_DRN
            raise InvalidIdentity(
                f"IIN of meter {self.drn}: expected {expected} before a {drn_digits}-digit DRN, got {self.iin}"
            )

    @classmethod
    def parse(cls, digits: str) -> Self:
        """Read the 18 digits of a PAN.

        Raises: InvalidIdentity for a wrong form, CheckDigitMismatch for a wrong Luhn digit.
        """
        iin, iain = split_pan(digits)
        _require_check_digit(digits, whose="MeterPAN")
        return cls(iin=iin, drn=Drn(iain))

    @property
    def digits(self) -> str:
        """The 18 digits."""
        number = self.iin + self.drn.digits
        return f"{number}{luhn_check_digit(number)}"

    def __str__(self) -> str:
        return self.digits


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterKeyRecord:
    """What a point of sale holds of one meter to mint for it; it names the vending key and never holds one.

    Invariants: `iin` and `drn` form a valid MeterPAN; `sgc` is 6 digits; `krn` 1-9; `tariff_index` 0-99;
    `ken` 0-255.
    """

    iin: str
    drn: Drn
    ea: EncryptionAlgorithm
    dkga: KeyDerivation
    sgc: str
    kt: KeyType
    krn: int
    tariff_index: int
    ken: int
    base_date: BaseDate

    def __post_init__(self) -> None:
        whose = f"meter {self.pan.drn}"
        require_digits(self.sgc, SGC_DIGITS, whose=f"SGC of {whose}")
        require_range(self.krn, 1, 9, whose=f"KRN of {whose}")
        require_range(self.tariff_index, 0, 99, whose=f"TI of {whose}")
        require_range(self.ken, 0, 255, whose=f"KEN of {whose}")

    @property
    def pan(self) -> MeterPan:
        """The MeterPAN of this meter."""
        return MeterPan(iin=self.iin, drn=self.drn)

    @property
    def pan_digits(self) -> str:
        """The 18 digits of the MeterPAN, which was found valid when the record was made."""
        number = self.iin + self.drn.digits
        return f"{number}{luhn_check_digit(number)}"


def split_pan(digits: str) -> tuple[str, str]:
    """Cut a PAN into IIN and IAIN without looking at its check digits.

    Raises: InvalidIdentity unless there are 18 digits.
    """
    require_digits(digits, PAN_DIGITS, whose="MeterPAN")
    iin_digits = 4 if digits.startswith(IIN_OF_13_DIGIT_DRN) else 6
    return digits[:iin_digits], digits[iin_digits:-1]


def pan_block(iin: str, iain: str, kt: KeyType) -> bytes:
    """Pack the meter's number for key derivation: the rightmost 16 digits of IIN and IAIN, as BCD.

    A common key is shared by a group of meters, so the IAIN counts as zeros under it.
    Raises: InvalidIdentity unless IIN and IAIN are 17 digits together.
    """
    require_digits(iin + iain, PAN_DIGITS - 1, whose="IIN and IAIN")
    number = iin + "0" * len(iain) if kt is KeyType.COMMON else iin + iain
    return bytes.fromhex(number[1:])


def control_block(*, kt: KeyType, sgc: str, tariff_index: int, krn: int) -> bytes:
    """Pack the key's attributes for key derivation; the tariff index goes in as two decimal digits.

    Raises: InvalidIdentity when an attribute is out of its range.
    """
    require_digits(sgc, SGC_DIGITS, whose="SGC")
    require_range(tariff_index, 0, 99, whose="TI")
    require_range(krn, 1, 9, whose="KRN")
    return bytes.fromhex(f"{kt:d}{sgc}{tariff_index:02d}{krn:d}FFFFFF")


def require_digits(text: str, length: int | None, *, whose: str) -> None:
    """Refuse anything but ASCII digits, of the given length when there is one.

    Raises: InvalidIdentity.
    """
    if length is not None and len(text) != length:
        raise InvalidIdentity(f"{whose}: expected {length} digits, got {len(text)} characters")
    # str.isdigit alone lets digits of other scripts through, which int() would then accept.
    if not (text.isascii() and text.isdigit()):
        raise InvalidIdentity(f"{whose}: expected digits 0-9 only, got {text[:24]!r}")


def require_range(number: int, lowest: int, highest: int, *, whose: str) -> None:
    """Refuse a number outside its closed range.

    Raises: InvalidIdentity.
    """
    if not lowest <= number <= highest:
        raise InvalidIdentity(f"{whose}: expected {lowest}-{highest}, got {number}")


def _require_check_digit(digits: str, *, whose: str) -> None:
    expected = luhn_check_digit(digits[:-1])
    if int(digits[-1]) != expected:
        raise CheckDigitMismatch(f"{whose} {digits}: expected check digit {expected}, got {digits[-1]}")
