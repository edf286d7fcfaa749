"""What the contact desk and the SMS desk refuse: one class and one stable code for each."""

from __future__ import annotations

from billing.notices.signing import SignatureFault
from vending.vends import VendingError


class AddressRefused(VendingError):
    """A text that is no telephone number or e-mail address."""

    code = "bad_address"


class ContactUnknown(VendingError):
    """No contact of that id of this account's consumer."""

    code = "unknown_contact"


class TooManyContacts(VendingError):
    """A consumer has as many contacts as can be."""

    code = "too_many_contacts"


class TooManyCodes(VendingError):
    """As many codes were sent as may be for now."""

    code = "too_many_codes"


class NoCode(VendingError):
    """No code was asked for, or it was used."""

    code = "no_code"


class CodeExpired(VendingError):
    """The code has come too late."""

    code = "code_expired"


class CodeSpent(VendingError):
    """The code was guessed at too often."""

    code = "code_spent"


class CodeWrong(VendingError):
    """Another code than the one that was sent."""

    code = "code_wrong"


class SmsNotConfigured(VendingError):
    """Nobody can ask by SMS here."""

    code = "sms_not_configured"


class SignatureMissing(VendingError):
    """A message without a signature, or with one that is not of the form."""

    code = "signature_missing"


class SignatureExpired(VendingError):
    """A signature of some time ago: perhaps a message that somebody has recorded."""

    code = "signature_expired"


class SignatureWrong(VendingError):
    """A signature under another secret, or of another message."""

    code = "signature_wrong"


ERROR_OF_FAULT = {
    SignatureFault.MISSING: SignatureMissing,
    SignatureFault.EXPIRED: SignatureExpired,
    SignatureFault.WRONG: SignatureWrong,
}
