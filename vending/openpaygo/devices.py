"""What a server must know of an OpenPAYGO device, besides its secret key.

Enters: the columns of a maker's device list. Leaves: a checked `PaygoDevice` and the form of its tokens. Never: keys.

Standard: OpenPAYGO Token, general documentation (EnAccess), device setup parameters and restricted digit set mode.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from vending.openpaygo.errors import InvalidPaygoDevice

STARTING_CODE_MAX = 999_999_999
TIME_DIVIDER_MAX = 255
FIRST_COUNT = 1

_SERIAL = re.compile(r"[A-Za-z0-9_-]{1,32}", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class PaygoDevice:
    """A device as its maker set it up.

    Invariants: `serial` as the meters table allows it; `starting_code` has at most 9 digits; `time_divider` is 1-255,
    the parts of a day that one unit of a token's value counts.
    """

    serial: str
    # Not secret by itself, but with a leaked key it is all that is left to guess.
    starting_code: int = field(repr=False)
    time_divider: int = 1
    restricted_digits: bool = False
    extended: bool = False

    def __post_init__(self) -> None:
        if not _SERIAL.fullmatch(self.serial):
            raise InvalidPaygoDevice(f"device: expected a serial of 1-32 letters, digits, dashes, got {self.serial!r}")
        if not 0 <= self.starting_code <= STARTING_CODE_MAX:
            raise InvalidPaygoDevice(f"device {self.serial}: expected a starting code of 9 digits, got another number")
        if not 1 <= self.time_divider <= TIME_DIVIDER_MAX:
            raise InvalidPaygoDevice(
                f"device {self.serial}: expected a time divider of 1 to {TIME_DIVIDER_MAX}, got {self.time_divider}"
            )

    @property
    def plain_digits(self) -> int:
        """The digits of a token before it is written with the digits 1 to 4: 9, or 12 for extended ones."""
        return 12 if self.extended else 9

    @property
    def token_digits(self) -> int:
        """The digits that are typed: 9 or 12, or 15 or 20 on a keypad of four keys."""
        if self.restricted_digits:
            return 20 if self.extended else 15
        return self.plain_digits

    @property
    def value_modulus(self) -> int:
        """How many values the value's last 3 or 6 digits can tell apart."""
        return 1_000_000 if self.extended else 1_000
