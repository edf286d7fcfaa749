"""Tokens as a meter takes them apart: 20 digits to bits, bits to an opened block, a block to its fields.

Enters: digits, and the meter's cipher. Leaves: class, subclass, a body of 44 bits, numbers out of it. Never: whether
a token is taken, a key, a clock.

Written from the meter's side of the standard, apart from the vending engine, so that the two check each other.
Standard: IEC 62055-41, tokens of class 0, 1 and 2.
"""

from dataclasses import dataclass
from typing import Protocol

TOKEN_DIGITS = 20
CREDIT_CLASS, TEST_CLASS, MANAGEMENT_CLASS, RESERVED_CLASS = 0, 1, 2, 3
# Credit of the currency subclasses counts 10^-5 of the base currency; its CRC is the other one.
MONEY_SUBCLASSES = range(4, 8)


class Cipher(Protocol):
    """The meter's block cipher under its decoder key."""

    def decrypt(self, block: int) -> int:
        """Decrypt one 64-bit block."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A token opened: `body` is its 44 bits between subclass and CRC as text, `intact` whether the CRC agrees."""

    token_class: int
    subclass: int
    body: str
    intact: bool


def bits_of(digits: str) -> str | None:
    """Return the 66 bits of 20 digits; nothing for what no token can be."""
    if len(digits) != TOKEN_DIGITS or any(digit not in "0123456789" for digit in digits):
        return None
    bits = f"{int(digits):066b}"
    return bits if len(bits) == 66 else None


def class_of(bits: str) -> int:
    """Return the class, which is readable without any key."""
    # Places 28 and 27 counted from the right, of 66.
    return int(bits[37:39], 2)


def open_block(bits: str, cipher: Cipher) -> Opened:
    """Put the displaced bits back, decrypt what is encrypted and check the CRC."""
    token_class = class_of(bits)
    # The class displaced two bits of the block to the very top.
    block = bits[2:37] + bits[:2] + bits[39:]
    if token_class != TEST_CLASS:
        block = f"{cipher.decrypt(int(block, 2)):064b}"
    subclass = int(block[:4], 2)
    money = token_class == CREDIT_CLASS and subclass in MONEY_SUBCLASSES
    crc = _checksum(f"{token_class:02b}" + block[:48], money=money)
    return Opened(token_class=token_class, subclass=subclass, body=block[4:48], intact=crc == int(block[48:], 2))


def number(body: str, first: int, bits: int) -> int:
    """Return the number that stands in some bits of a body, the leftmost bit being 0."""
    return int(body[first : first + bits], 2)


def tid_of(body: str) -> int:
    """Return the TID of a credit, or of a management token other than a key change section."""
    return number(body, 4, 24)


def credit_of(subclass: int, body: str) -> int:
    """Return what a credit counts: tenths of its service's unit, or 10^-5 of the base currency, negative ones too."""
    exponent, mantissa = number(body, 28, 2), number(body, 30, 14)
    if subclass not in MONEY_SUBCLASSES:
        return _expand(exponent, mantissa)
    magnitude = _expand(number(body, 1, 3) << 2 | exponent, mantissa)
    return -magnitude if body[0] == "1" else magnitude


def limit_of(body: str) -> int:
    """Return the watts of a limit."""
    return _expand(number(body, 28, 2), number(body, 30, 14))


def _expand(exponent: int, mantissa: int) -> int:
    """Undo the amount coding: each exponent goes on, ten times coarser, where the last one ended."""
    amount, step = 0, 1
    for _ in range(exponent):
        amount += 16384 * step
        step *= 10
    return amount + mantissa * step


def _checksum(bits50: str, *, money: bool) -> int:
    """CRC-16 of 0x8005 by shifting bits in, least significant bit of each byte first, 7 bytes."""
    padded = "0" * 6 + bits50
    message = [padded[i : i + 8] for i in range(0, 56, 8)]
    if money:
        message.append("00000001")
    register = 0xFFFF
    for byte in message:
        for bit in reversed(byte):
            carry = register & 1 ^ int(bit)
            register >>= 1
            if carry:
                register ^= 0xA001
    low, high = register & 0xFF, register >> 8
    return low * 256 + high
