"""Tokens: typed contents to 20 digits and back.

Enters: a token's contents, or 20 digits, with the meter's decoder key where the class is encrypted. Leaves:
20 digits, or typed contents. Never: amounts to be rounded (see amounts), the choice of a TID (see tid), the
decision to sell; class 2, whose contents management adds to these.

Standard: IEC 62055-41: class 0 subclasses 0-7 and class 1 subclasses 0-2; the CRC of the currency subclasses
is confirmed by published vectors, its wording was not at hand.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import assert_never

from vending.sts.amounts import CurrencyField
from vending.sts.errors import (
    FieldOutOfRange,
    InvalidKey,
    MalformedToken,
    TokenCrcMismatch,
    UnsupportedToken,
)
from vending.sts.keys import DecoderKey

TOKEN_DIGITS = 20
TOKEN_BITS = 66
DISPLAY_TESTS_MAX = 18
_BODY_BITS = 44
# The two class bits travel in the clear at these places; the block's own bits go to the top instead.
_CLASS_SHIFT = 27
_CLASS_MASK = 0b11 << _CLASS_SHIFT
_CLEAR_CLASSES = (1,)
_CURRENCY_SUBCLASS_FIRST = 4


class CreditService(IntEnum):
    """What a credit is for; the value is the subclass of its unit token."""

    ELECTRICITY = 0
    WATER = 1
    GAS = 2
    TIME = 3


@dataclass(frozen=True, slots=True)
class TokenNumber:
    """The 20 digits a customer types.

    Invariants: 20 ASCII digits below 2^66; `repr` and `str` show the last four only.
    """

    digits: str

    def __post_init__(self) -> None:
        if len(self.digits) != TOKEN_DIGITS or not (self.digits.isascii() and self.digits.isdigit()):
            raise MalformedToken(
                f"token: expected {TOKEN_DIGITS} digits, got {len(self.digits)} characters, "
                f"{sum(c not in '0123456789' for c in self.digits)} of them not digits"
            )
        if int(self.digits) >> TOKEN_BITS:
            raise MalformedToken(f"token {self.masked}: expected a number below 2^{TOKEN_BITS}, got a larger one")

    @property
    def masked(self) -> str:
        """The token as it may stand in a log."""
        return f"...{self.digits[-4:]}"

    @property
    def grouped(self) -> str:
        """The token as it is printed: five groups of four."""
        return " ".join(self.digits[i : i + 4] for i in range(0, TOKEN_DIGITS, 4))

    def __str__(self) -> str:
        return self.masked

    def __repr__(self) -> str:
        return f"TokenNumber({self.masked})"


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitCredit:
    """Class 0, subclass 0-3: a credit in units, by its 16-bit amount field."""

    service: CreditService
    rnd: int
    tid: int
    amount16: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CurrencyCredit:
    """Class 0, subclass 4-7: a credit in currency. It has no RND."""

    service: CreditService
    tid: int
    amount: CurrencyField


@dataclass(frozen=True, slots=True, kw_only=True)
class DisplayTest:
    """Class 1, subclass 0 or 1: ask the meter for a test or display.

    Invariants: `maker_digits` is 2 (36 control bits) or 4 (28); `maker_code` is the field as it stands in the
    token, 8 or 16 bits; 0 addresses every maker.
    """

    maker_digits: int
    maker_code: int
    control: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtendedRead:
    """Class 1, subclass 2: ask the meter for one item of its extended list, 0-63."""

    index: int


Token = UnitCredit | CurrencyCredit | DisplayTest | ExtendedRead


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenFrame:
    """A token taken apart as far as every class allows.

    Invariants: `field44` is 44 bits; `crc` is as carried, `crc_ok` whether it agrees.
    """

    token_class: int
    subclass: int
    field44: int
    crc: int
    crc_ok: bool

    @property
    def block(self) -> int:
        """The 64-bit block before encryption: subclass, body and CRC."""
        return self.subclass << 60 | self.field44 << 16 | self.crc


def encode_token(token: Token, decoder_key: DecoderKey | None) -> TokenNumber:
    """Write a token as 20 digits.

    Raises: FieldOutOfRange when a field does not fit; InvalidKey when an encrypted class comes without key;
        UnsupportedCipher when the meter's cipher is not offered.
    """
    token_class, subclass, field44 = pack_fields(token)
    return seal_frame(token_class, subclass, field44, decoder_key)


def decode_token(number: TokenNumber, decoder_key: DecoderKey | None) -> Token:
    """Read 20 digits.

    Raises: TokenCrcMismatch, UnsupportedToken; InvalidKey when an encrypted class comes without key.
    """
    return unpack_fields(open_intact(number, decoder_key), number)


def pack_fields(token: Token) -> tuple[int, int, int]:
    """Return class, subclass and the 44 bits between subclass and CRC.

    Raises: FieldOutOfRange when a field does not fit its place.
    """
    match token:
        case UnitCredit():
            head = _fit(token.rnd, 4, "RND") << 40 | _fit(token.tid, 24, "TID") << 16
            return 0, token.service, head | _fit(token.amount16, 16, "amount")
        case CurrencyCredit():
            head = token.amount.sign_exponent << 40 | _fit(token.tid, 24, "TID") << 16
            return 0, token.service + _CURRENCY_SUBCLASS_FIRST, head | token.amount.amount16
        case DisplayTest():
            maker_bits = 4 * _maker_digits(token.maker_digits)
            control = _fit(token.control, _BODY_BITS - maker_bits, "control")
            subclass = 0 if token.maker_digits == 2 else 1
            return 1, subclass, control << maker_bits | _fit(token.maker_code, maker_bits, "maker code")
        case ExtendedRead():
            return 1, 2, _fit(token.index, 6, "index") << 38
        case _:
            assert_never(token)


def display_test_control(test: int, *, maker_digits: int) -> int:
    """Return the control field of a test number: one bit a test, all bits for test 0.

    Raises: FieldOutOfRange for a number the standard reserves.
    """
    if not 0 <= test <= DISPLAY_TESTS_MAX:
        raise FieldOutOfRange(f"test number: expected 0-{DISPLAY_TESTS_MAX}, got {test}")
    control_bits = _BODY_BITS - 4 * _maker_digits(maker_digits)
    return 1 << test - 1 if test else (1 << control_bits) - 1


def seal_frame(token_class: int, subclass: int, field44: int, decoder_key: DecoderKey | None) -> TokenNumber:
    """Add the CRC, encrypt where the class asks for it, place the class bits and write the digits.

    Raises: FieldOutOfRange, InvalidKey, UnsupportedCipher.
    """
    crc = crc_of(token_class, subclass, field44)
    block = subclass << 60 | field44 << 16 | crc
    if token_class not in _CLEAR_CLASSES:
        block = _need_key(decoder_key, token_class).cipher().encrypt(block)
    return join_class(token_class, block)


def join_class(token_class: int, block: int) -> TokenNumber:
    """Put the class bits into the 64-bit block as it travels, and write the digits.

    Raises: FieldOutOfRange.
    """
    _fit(block, 64, "block")
    moved_bits = block >> _CLASS_SHIFT & 0b11
    bits66 = moved_bits << 64 | block & ~_CLASS_MASK | _fit(token_class, 2, "class") << _CLASS_SHIFT
    return TokenNumber(f"{bits66:0{TOKEN_DIGITS}d}")


def split_class(number: TokenNumber) -> tuple[int, int]:
    """Return the class and the 64-bit block as it travels, encrypted where the class is."""
    bits66 = bits66_of(number)
    block = bits66 & (1 << 64) - 1 & ~_CLASS_MASK | bits66 >> 64 << _CLASS_SHIFT
    return bits66 >> _CLASS_SHIFT & 0b11, block


def open_frame(number: TokenNumber, decoder_key: DecoderKey | None) -> TokenFrame:
    """Take 20 digits apart without judging the contents.

    Raises: UnsupportedToken for class 3; InvalidKey when an encrypted class comes without key.
    """
    token_class, block = split_class(number)
    if token_class == 3:
        raise UnsupportedToken(f"token {number}: expected class 0-2, got the reserved class 3")
    if token_class not in _CLEAR_CLASSES:
        block = _need_key(decoder_key, token_class).cipher().decrypt(block)
    subclass, field44, crc = block >> 60, block >> 16 & (1 << _BODY_BITS) - 1, block & 0xFFFF
    return TokenFrame(
        token_class=token_class,
        subclass=subclass,
        field44=field44,
        crc=crc,
        crc_ok=crc == crc_of(token_class, subclass, field44),
    )


def open_intact(number: TokenNumber, decoder_key: DecoderKey | None) -> TokenFrame:
    """Take 20 digits apart whose CRC agrees.

    Raises: TokenCrcMismatch; UnsupportedToken for class 3; InvalidKey when an encrypted class comes without key.
    """
    frame = open_frame(number, decoder_key)
    if not frame.crc_ok:
        raise TokenCrcMismatch(
            f"token {number}: expected the CRC of its contents, got another: "
            "mistyped, or made for another meter, SGC, TI or KRN"
        )
    return frame


def bits66_of(number: TokenNumber) -> int:
    """Return the 66 bits behind the digits."""
    return int(number.digits)


def crc_of(token_class: int, subclass: int, field44: int) -> int:
    """Return the CRC of a token's first 50 bits as it is carried.

    Raises: FieldOutOfRange when a field does not fit.
    """
    bits50 = _fit(token_class, 2, "class") << 48 | _fit(subclass, 4, "subclass") << 44
    return crc16(bits50 | _fit(field44, _BODY_BITS, "body"), currency=is_currency_subclass(token_class, subclass))


def is_currency_subclass(token_class: int, subclass: int) -> bool:
    """Tell whether tokens of this kind carry currency, and so CRC_C."""
    return token_class == 0 and subclass in range(_CURRENCY_SUBCLASS_FIRST, 8)


def crc16(bits50: int, *, currency: bool = False) -> int:
    """Return the CRC over 50 bits: CRC-16/MODBUS, low byte first.

    Shape: fed as 7 bytes big-endian; CRC_C (currency) feeds one byte 01 after them.
    """
    crc = 0xFFFF
    for byte in bits50.to_bytes(7, "big") + (b"\x01" if currency else b""):
        crc = crc >> 8 ^ _CRC_OF_BYTE[crc & 0xFF ^ byte]
    return (crc & 0xFF) << 8 | crc >> 8


def _crc_of_byte(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (0xA001 if byte & 1 else 0)
    return byte


_CRC_OF_BYTE = tuple(_crc_of_byte(byte) for byte in range(256))


def unpack_fields(frame: TokenFrame, number: TokenNumber) -> Token:
    """Read the contents of an opened token of class 0 or 1; the number serves the message only.

    Raises: UnsupportedToken for a subclass that is reserved or a maker's own.
    """
    body = frame.field44
    match frame.token_class, frame.subclass:
        case 0, (0 | 1 | 2 | 3) as subclass:
            return UnitCredit(
                service=CreditService(subclass),
                rnd=body >> 40,
                tid=body >> 16 & 0xFFFFFF,
                amount16=body & 0xFFFF,
            )
        case 0, (4 | 5 | 6 | 7) as subclass:
            return CurrencyCredit(
                service=CreditService(subclass - _CURRENCY_SUBCLASS_FIRST),
                tid=body >> 16 & 0xFFFFFF,
                amount=CurrencyField(sign_exponent=body >> 40, amount16=body & 0xFFFF),
            )
        case 1, 0:
            return DisplayTest(maker_digits=2, maker_code=body & 0xFF, control=body >> 8)
        case 1, 1:
            return DisplayTest(maker_digits=4, maker_code=body & 0xFFFF, control=body >> 16)
        case 1, 2 if not body & (1 << 38) - 1:
            return ExtendedRead(index=body >> 38)
    raise UnsupportedToken(
        f"token {number}: expected class 0 subclass 0-7 or class 1 subclass 0-2, "
        f"got class {frame.token_class} subclass {frame.subclass}"
    )


def _fit(field: int, bits: int, whose: str) -> int:
    if not 0 <= field < 1 << bits:
        raise FieldOutOfRange(f"token field {whose}: expected {bits} bits, got {field}")
    return field


def _maker_digits(maker_digits: int) -> int:
    if maker_digits not in (2, 4):
        raise FieldOutOfRange(f"maker code: expected 2 or 4 digits, got {maker_digits}")
    return maker_digits


def _need_key(decoder_key: DecoderKey | None, token_class: int) -> DecoderKey:
    if decoder_key is None:
        raise InvalidKey(f"token of class {token_class}: expected a decoder key, got none")
    return decoder_key
