"""How requests to and from an SMS gateway are signed.

Stage: beside the adapters at both ends. Takes a request and the secret that both sides share; returns headers, or
says what is wrong with those received. HMAC-SHA256 over version, time, nonce, method, path and digest of the body, so
that no part can be changed, no request moved to another path, and none sent again after five minutes. Never logs or
returns the secret.

Standard: RFC 2104 (HMAC).
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from enum import StrEnum

TIMESTAMP_HEADER = "X-Prepaid-Timestamp"
NONCE_HEADER = "X-Prepaid-Nonce"
SIGNATURE_HEADER = "X-Prepaid-Signature"
# Two clocks kept by NTP differ by less than a second; a request on its way and tried again takes some more.
AGE_S_MAX = 300
SECRET_LENGTH_MIN = 32
_VERSION = "v1"
_TIMESTAMP = re.compile(r"\d{1,12}", re.ASCII)
_NONCE = re.compile(r"[A-Za-z0-9_-]{8,64}", re.ASCII)


class SignatureFault(StrEnum):
    """What is wrong with a request's signature."""

    MISSING = "signature_missing"
    EXPIRED = "signature_expired"
    WRONG = "signature_wrong"


def sign(*, secret: bytes, method: str, path: str, body: bytes, at_s: int, nonce: str) -> dict[str, str]:
    """Return the headers of a request; `path` is with its query, as it stands in the request line."""
    signature = _signature(secret, str(at_s), nonce, method, path, body)
    return {TIMESTAMP_HEADER: str(at_s), NONCE_HEADER: nonce, SIGNATURE_HEADER: f"{_VERSION}={signature}"}


def judge_signature(
    headers: Mapping[str, str], *, secret: bytes, method: str, path: str, body: bytes, now_s: int
) -> SignatureFault | None:
    """Return what is wrong with a request, None for one signed under the secret within the last minutes.

    `headers` are looked up by the names above, whatever the case they came in.
    """
    at, nonce, signature = (headers.get(name) for name in (TIMESTAMP_HEADER, NONCE_HEADER, SIGNATURE_HEADER))
    if at is None or nonce is None or signature is None:
        return SignatureFault.MISSING
    if not (_TIMESTAMP.fullmatch(at) and _NONCE.fullmatch(nonce)):
        return SignatureFault.MISSING
    expected = f"{_VERSION}={_signature(secret, at, nonce, method, path, body)}"
    if not hmac.compare_digest(signature.encode(), expected.encode()):
        return SignatureFault.WRONG
    return SignatureFault.EXPIRED if abs(now_s - int(at)) > AGE_S_MAX else None


def _signature(secret: bytes, at: str, nonce: str, method: str, path: str, body: bytes) -> str:
    signed = "\n".join((_VERSION, at, nonce, method.upper(), path, hashlib.sha256(body).hexdigest()))
    return hmac.new(secret, signed.encode(), hashlib.sha256).hexdigest()
