"""Recharge links: an address that opens one account's recharge page, without a login, until an instant.

Stage: between an account and whoever holds its link or QR code. Signed, so that nobody makes a link to a neighbour's
account; what it opens is masked, and all that can be done with it is to pay. Never: an account's number.

Standard: RFC 2104 (HMAC), RFC 4648 section 5 (base64url).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import struct

LINK_PATTERN = r"^[A-Za-z0-9_-]{38}$"
SECRET_LENGTH_MIN = 32
# A QR code on the wall beside a meter is good for a year and a bit; it is renewed when somebody comes by.
DAYS_MAX = 400
_VERSION = b"recharge-link v1"
# Account id and expiry in seconds since 1970, then half of a SHA-256: 128 bits are beyond all guessing.
_FORM = struct.Struct(">QI")
_TAG_BYTES = 16


def make_link(secret: bytes, account_id: int, *, expires_s: int) -> str:
    """Return the signed part of a link's address. Units: `expires_s` in seconds since 1970."""
    told = _FORM.pack(account_id, expires_s)
    return base64.urlsafe_b64encode(told + _tag(secret, told)).rstrip(b"=").decode()


def read_link(secret: bytes, link: str, *, now_s: int) -> int | None:
    """Return the account that a link opens; None for one that is not ours or has expired."""
    try:
        signed = base64.b64decode(link + "=" * (-len(link) % 4), altchars=b"-_", validate=True)
    except (ValueError, binascii.Error):
        return None
    told, tag = signed[: _FORM.size], signed[_FORM.size :]
    if len(told) != _FORM.size or not hmac.compare_digest(tag, _tag(secret, told)):
        return None
    account_id, expires_s = _FORM.unpack(told)
    return int(account_id) if now_s < expires_s else None


def _tag(secret: bytes, told: bytes) -> bytes:
    return hmac.new(secret, _VERSION + told, hashlib.sha256).digest()[:_TAG_BYTES]
