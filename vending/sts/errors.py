"""Errors of the STS engine: one base class, one stable code for each kind.

A code is part of the outside contract (API answers, logs, journals) and never changes; the text may.
No message holds a key, and a token is named by its last four digits only.
"""

from typing import ClassVar


class StsError(Exception):
    """Anything the STS engine refuses.

    Invariants: `code` is snake_case, unique within the package and stable; the message says expected,
    got and whose.
    """

    code: ClassVar[str] = "sts_error"


class InvalidIdentity(StsError):
    """A meter number, supply group or key attribute is not of its form."""

    code = "invalid_identity"


class CheckDigitMismatch(InvalidIdentity):
    """A meter number has the right form but a wrong Luhn digit: most often mistyped."""

    code = "check_digit_mismatch"


class InvalidKey(StsError):
    """A vending, decoder or master key has the wrong length or kind."""

    code = "invalid_key"


class UnsupportedKeyDerivation(StsError):
    """The decoder key algorithm, or the key type under it, is not offered here."""

    code = "unsupported_key_derivation"


class UnsupportedCipher(StsError):
    """The encryption algorithm is not offered here."""

    code = "unsupported_cipher"


class AmountOutOfRange(StsError):
    """An amount does not fit its transfer field, or a field value is not of its width."""

    code = "amount_out_of_range"


class TidOutOfRange(StsError):
    """An instant lies outside the base-date era, or a TID is not 24 bits."""

    code = "tid_out_of_range"


class FieldOutOfRange(StsError):
    """A token field is wider than its place in the token."""

    code = "field_out_of_range"


class MalformedToken(StsError):
    """The digits cannot be a token of any meter."""

    code = "malformed_token"


class TokenCrcMismatch(StsError):
    """The CRC does not agree: mistyped, or another meter, SGC, TI or KRN (they look the same)."""

    code = "token_crc_mismatch"


class UnsupportedToken(StsError):
    """An intact token of a class or subclass that this engine does not make or read."""

    code = "unsupported_token"


class InvalidCipherTables(StsError):
    """EA07 tables are not of their form, are no permutations, or fail their own test."""

    code = "invalid_cipher_tables"


class KeyChangeRefused(StsError):
    """The meter would not take this key change, or would lose something by it."""

    code = "key_change_refused"


class NewKeyExpired(KeyChangeRefused):
    """The key to be moved to has already reached its expiry number."""

    code = "new_key_expired"
