"""How requests to the vending interface are signed.

Stage: at both ends of a line between a vendor's system and us. Takes a request and the secret of its key; returns
headers, or says what is wrong with those received. The lines that are signed are those of an SMS gateway's requests
(billing.notices.signing): version, time, nonce, method, path with query, digest of the body. The key is named beside
them; each key has a secret of its own, so naming another breaks the signature. Never logs or returns the secret.

Standard: RFC 2104 (HMAC).
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass

from billing.notices.signing import AGE_S_MAX, NONCE_HEADER, SignatureFault, judge_signature, sign

__all__ = ["KEY_HEADER", "NONCE_KEPT_S", "SignatureFault", "SignedBy", "judge_request", "sign_request", "signed_by"]

KEY_HEADER = "X-Prepaid-Key"
# A request may be dated AGE_S_MAX ahead and is good for as long after its date; a minute more costs little.
NONCE_KEPT_S = 2 * AGE_S_MAX + 60
_KEY_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedBy:
    """Who says to have signed a request, and its number for once; nothing of it is proven yet."""

    key_id: str
    nonce: str


def sign_request(
    *, key_id: str, secret: str, method: str, path: str, body: bytes, at_s: int, nonce: str
) -> dict[str, str]:
    """Return the headers of a request; `path` is with its query, as it stands in the request line.

    Units: `at_s` seconds since 1970. `nonce`: 8 to 64 letters, digits, `_` and `-`, never used before.
    """
    signed = sign(secret=secret.encode(), method=method, path=path, body=body, at_s=at_s, nonce=nonce)
    return {KEY_HEADER: key_id, **signed}


def signed_by(headers: Mapping[str, str]) -> SignedBy | None:
    """Return who says to have signed; None where no key is named, or not one of the form."""
    key_id = headers.get(KEY_HEADER)
    if key_id is None or not _KEY_ID.fullmatch(key_id):
        return None
    return SignedBy(key_id=key_id, nonce=headers.get(NONCE_HEADER) or "")


def judge_request(
    headers: Mapping[str, str], *, secret: bytes, method: str, path: str, body: bytes, now_s: int
) -> SignatureFault | None:
    """Return what is wrong with a request, None for one signed under the secret within the last minutes."""
    return judge_signature(headers, secret=secret, method=method, path=path, body=body, now_s=now_s)


def digest_request(key: bytes, *, method: str, path: str, body: bytes) -> bytes:
    """Return the digest of a request that the audit trail keeps.

    Under a key, since the digest of a short body with a PIN in it could be found by trying all of them.
    """
    head = f"{method.upper()}\n{path}\n".encode("utf-8", "surrogateescape")
    return hmac.digest(key, head + hashlib.sha256(body).digest(), "sha256")
