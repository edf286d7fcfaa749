"""Errors of the OpenPAYGO-Token engine: one base class, one stable code for each kind.

A code is part of the outside contract and never changes; the text may. No message holds a key or a starting code, and
a token is named by its last four digits only.
"""

from typing import ClassVar


class PaygoError(Exception):
    """Anything the OpenPAYGO-Token engine refuses.

    Invariants: `code` is snake_case, unique within the package and stable; the message says expected, got and whose.
    """

    code: ClassVar[str] = "paygo_error"


class InvalidPaygoDevice(PaygoError):
    """A device's serial, starting code or time divider is not of its form."""

    code = "invalid_paygo_device"


class InvalidPaygoKey(PaygoError):
    """A device key has the wrong length."""

    code = "invalid_paygo_key"


class PaygoValueOutOfRange(PaygoError):
    """A value that a token of this kind and length cannot carry."""

    code = "paygo_value_out_of_range"


class PaygoCountRefused(PaygoError):
    """A count that is out of range, or odd or even where the kind of token is the other."""

    code = "paygo_count_refused"


class MalformedPaygoToken(PaygoError):
    """The digits cannot be a token of this device: wrong length, or digits that its keypad does not have."""

    code = "malformed_paygo_token"


class ReservedPaygoValue(PaygoError):
    """The token carries a value that the specification keeps for later."""

    code = "reserved_paygo_value"


class PaygoTokenMismatch(PaygoError):
    """The digits are no token of this device at any count looked at: mistyped, or another device's."""

    code = "paygo_token_mismatch"
