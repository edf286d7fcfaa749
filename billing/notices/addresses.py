"""Telephone numbers and e-mail addresses in the one form that they are stored and compared in.

Stage: where contacts enter. A number has its country's code; an Indian mobile number may be written without it.

Standard: ITU-T E.164 (plus, country code, at most 15 digits); RFC 5321 lengths of addresses.
"""

from __future__ import annotations

import re

from billing.notices.kinds import Channel, NoticeError

_INDIA = "+91"
_SEPARATORS = re.compile(r"[ ()./-]")
_E164 = re.compile(r"\+[1-9]\d{7,14}", re.ASCII)
# Mobile numbers of India have ten digits and begin with 6 to 9, written alone, after a 0, or after 91.
_INDIAN_MOBILE = re.compile(r"(?:0|\+?91)?([6-9]\d{9})", re.ASCII)
_EMAIL = re.compile(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.)+[A-Za-z0-9-]{2,63}", re.ASCII)
_EMAIL_LENGTH_MAX = 254


class BadAddress(NoticeError):
    """A text that is no address of the channel."""

    code = "bad_address"


def read_address(channel: Channel, text: str) -> str:
    """Read the address of a channel.

    Raises: BadAddress.
    """
    match channel:
        case Channel.SMS:
            return read_phone(text)
        case Channel.EMAIL:
            return read_email(text)
        case Channel.APP:
            raise BadAddress("contact: expected channel sms or email, got app, which has no address")


def read_phone(text: str) -> str:
    """Read a telephone number, e.g. `+919876543210` of `98765 43210`.

    Raises: BadAddress.
    """
    digits = _SEPARATORS.sub("", text)
    mobile = _INDIAN_MOBILE.fullmatch(digits)
    if mobile:
        return _INDIA + mobile[1]
    if digits.startswith("00"):
        digits = "+" + digits[2:]
    if not _E164.fullmatch(digits):
        raise BadAddress("phone: expected + and country code, or an Indian mobile number of 10 digits, got another")
    return digits


def stored_phone(text: str) -> str:
    """Return a number that a register gives in its stored form; one that no SMS can reach, only without blanks."""
    try:
        return read_phone(text)
    except BadAddress:
        return _SEPARATORS.sub("", text)


def read_email(text: str) -> str:
    """Read an e-mail address of plain letters; its domain in small ones.

    Raises: BadAddress.
    """
    local, _, domain = text.strip().rpartition("@")
    address = f"{local}@{domain.lower()}"
    if len(address) > _EMAIL_LENGTH_MAX or not _EMAIL.fullmatch(address):
        raise BadAddress("e-mail: expected an address such as name@example.in, got another")
    return address


def mask_address(address: str) -> str:
    """Return an address of which only the end can be read, e.g. `*********3210` or `g***@example.in`."""
    local, at, domain = address.rpartition("@")
    if at:
        return f"{local[:1]}***@{domain}"
    return "*" * (len(address) - 4) + address[-4:]
