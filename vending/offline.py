"""Stations without a line: the utility's licence, the station's signed log of sales, and what an upload shows.

Enters: keys, licences and logs as JSON values, what is known of a log so far. Leaves: signed values; an upload's new
entries with what is odd about them, or why it is refused. Never: a database, a clock, a socket, a vending key: a
station sells coupons that were printed for it, and mints nothing.

A licence names the station's key, an end, the most it may sell, and ranges of coupons. Each sale is an entry with a
number, the digest of the entry before it and a signature: nothing can be left out, put in or altered once a later
entry is known. Signatures are Ed25519 (RFC 8032) over canonical JSON: keys sorted, no blanks.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from vending.coupons import BadCoupon, read_serial, serials_between
from vending.vends import VendingError

# A station's clock may run so far ahead of the utility's before it is told of.
CLOCK_SLACK_MS = 300_000
# An entry is some 400 bytes, a body at most 64 kB.
ENTRIES_MAX = 100


class LicenceWrong(VendingError):
    """A licence or list that is not of the form, or that its utility did not sign."""

    code = "licence_wrong"


class LogBroken(VendingError):
    """An upload that does not hang together: an altered entry, a wrong signature, a hole in it. Nothing is kept."""

    code = "log_broken"


class LogGap(VendingError):
    """Entries are missing between what is known and what came; `expected_seq` is the first to send."""

    code = "log_gap"

    def __init__(self, message: str, expected_seq: int) -> None:
        super().__init__(message)
        self.expected_seq = expected_seq


class LogForked(VendingError):
    """An entry that is known came again with other contents: the station's log was rewritten."""

    code = "log_forked"


class Finding(StrEnum):
    """What is odd about a sale that was logged in good form."""

    NOT_IN_RANGE = "not_in_range"
    SOLD_TWICE = "sold_twice"
    OTHER_AMOUNT = "other_amount"
    OVER_LIMIT = "over_limit"
    NOT_PAID = "not_paid"
    CLOCK_SET_BACK = "clock_set_back"
    CLOCK_AHEAD = "clock_ahead"
    OUTSIDE_LICENCE = "outside_licence"
    AFTER_REVOCATION = "after_revocation"
    COUPON_VOID = "coupon_void"


# A sale with one of these counts as none: the coupon is no money of this licence's, or nobody has paid for it.
FATAL = frozenset(
    {
        Finding.NOT_IN_RANGE,
        Finding.SOLD_TWICE,
        Finding.NOT_PAID,
        Finding.AFTER_REVOCATION,
        Finding.COUPON_VOID,
    }
)
_CLOCK = frozenset({Finding.CLOCK_SET_BACK, Finding.CLOCK_AHEAD, Finding.OUTSIDE_LICENCE})


@dataclass(frozen=True, slots=True, kw_only=True)
class SerialRange:
    """Coupons of one batch from one serial to another, both included."""

    first: str
    last: str

    def holds(self, serial: str) -> bool:
        """Tell whether a coupon is one of them."""
        return self.first[:5] == serial[:5] and self.first[5:11] <= serial[5:11] <= self.last[5:11]


@dataclass(frozen=True, slots=True, kw_only=True)
class Licence:
    """What a station may sell without a line.

    Units: instants in UTC milliseconds; `valid_until_ms` is not part of it any more. `limit_minor` in minor units.
    Invariants: `station_key` is an Ed25519 public key in hexadecimal digits; at least one range.
    """

    number: int
    station: str
    vendor_id: int
    station_key: str
    valid_from_ms: int
    valid_until_ms: int
    limit_minor: int
    ranges: tuple[SerialRange, ...]

    def holds(self, serial: str) -> bool:
        """Tell whether a coupon is of this licence."""
        return any(each.holds(serial) for each in self.ranges)

    def to_json(self) -> dict[str, Any]:  # JSON: texts, numbers, lists of objects.
        """Return what is signed."""
        return asdict(self) | {"ranges": [asdict(each) for each in self.ranges]}


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedSale:
    """One sale of a station. `previous` is the digest of the entry before it, of the licence for the first."""

    licence: int
    seq: int
    serial: str
    amount_minor: int
    sold_at_ms: int
    previous: str

    @property
    def digest(self) -> str:
        """What the next entry repeats."""
        return hashlib.sha256(_canonical(asdict(self))).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedSale:
    """A sale with the station's signature in hexadecimal digits."""

    sale: LoggedSale
    signature: str

    def to_json(self) -> dict[str, Any]:  # JSON: texts and numbers.
        """Return the entry as it is uploaded."""
        return asdict(self.sale) | {"signature": self.signature}


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """How far a licence's log is known: the last number, its digest, and the latest instant in it."""

    seq: int
    digest: str
    latest_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A new entry, and what its own clock shows of it."""

    signed: SignedSale
    findings: tuple[Finding, ...]


def sign_licence(seed: bytes, licence: Licence) -> dict[str, Any]:  # JSON, as `Licence.to_json`.
    """Sign a licence for its station."""
    return {"licence": licence.to_json(), "signature": _sign(seed, licence.to_json())}


def read_licence(signed: Mapping[str, Any], utility_key: bytes) -> Licence:  # JSON of somebody else.
    """Read a licence as its station does.

    Raises: LicenceWrong.
    """
    try:
        told = dict(signed["licence"])
        _require_signature(utility_key, told, str(signed["signature"]))
        ranges = tuple(
            SerialRange(first=read_serial(each["first"]), last=read_serial(each["last"])) for each in told["ranges"]
        )
        for each in ranges:
            serials_between(each.first, each.last)
        return Licence(**(told | {"ranges": ranges}))
    except (KeyError, TypeError, ValueError, InvalidSignature, BadCoupon):
        raise LicenceWrong("licence: expected one signed by the utility, got another or an altered one") from None


def sign_revocations(seed: bytes, numbers: Sequence[int], *, at_ms: int) -> dict[str, Any]:  # JSON, as above.
    """Sign the list of licences that are in force no more; the newest list counts."""
    told = {"revoked": sorted(numbers), "at_ms": at_ms}
    return {"revocations": told, "signature": _sign(seed, told)}


def read_revocations(signed: Mapping[str, Any], utility_key: bytes) -> tuple[frozenset[int], int]:  # JSON.
    """Read which licences are revoked, as of when.

    Raises: LicenceWrong.
    """
    try:
        told = dict(signed["revocations"])
        _require_signature(utility_key, told, str(signed["signature"]))
        return frozenset(int(each) for each in told["revoked"]), int(told["at_ms"])
    except (KeyError, TypeError, ValueError, InvalidSignature):
        raise LicenceWrong("revocations: expected a list signed by the utility, got another") from None


def public_key(seed: bytes) -> bytes:
    """Return the 32 bytes that a seed's signatures are checked with."""
    return Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()


def first_digest(licence: Licence) -> str:
    """Return what the first entry of a licence's log repeats."""
    return hashlib.sha256(_canonical(licence.to_json())).hexdigest()


def sign_sale(station_seed: bytes, sale: LoggedSale) -> SignedSale:
    """Sign an entry as the station does."""
    return SignedSale(sale=sale, signature=_sign(station_seed, asdict(sale)))


def judge_upload(
    licence: Licence,
    known: Known,
    digests: Mapping[int, str],
    entries: Sequence[SignedSale],
    *,
    now_ms: int,
) -> list[Judged]:
    """Return the new entries of an upload, each with what its clock shows; those that are known are passed over.

    `digests` are those of known entries among the uploaded numbers.
    Raises: LogBroken, LogGap, LogForked.
    """
    new: list[Judged] = []
    for signed in entries:
        sale = signed.sale
        _require_of_licence(licence, signed)
        if sale.seq <= known.seq:
            if digests.get(sale.seq) != sale.digest:
                raise LogForked(f"licence {licence.number}, entry {sale.seq}: expected it as it is known, got another")
            continue
        if sale.seq != known.seq + 1:
            message = f"licence {licence.number}: expected entry {known.seq + 1}, got {sale.seq}: entries are missing"
            raise LogGap(message, known.seq + 1)
        if sale.previous != known.digest:
            raise LogForked(f"licence {licence.number}, entry {sale.seq}: it does not follow upon the one before it")
        new.append(Judged(signed=signed, findings=_clock_findings(licence, known, sale, now_ms)))
        known = Known(seq=sale.seq, digest=sale.digest, latest_ms=max(known.latest_ms, sale.sold_at_ms))
    return new


def sold_at_ms(licence: Licence, judged: Judged, *, now_ms: int) -> int:
    """Return when a logged sale counts as made.

    Where the station's clock cannot be believed it is the latest instant that it can have been: the buyer, who could
    see no clock, gets the longer validity.
    """
    if _CLOCK.isdisjoint(judged.findings):
        return judged.signed.sale.sold_at_ms
    return max(licence.valid_from_ms, min(licence.valid_until_ms - 1, now_ms))


def _clock_findings(licence: Licence, known: Known, sale: LoggedSale, now_ms: int) -> tuple[Finding, ...]:
    found = []
    if sale.sold_at_ms < known.latest_ms:
        found.append(Finding.CLOCK_SET_BACK)
    if sale.sold_at_ms > now_ms + CLOCK_SLACK_MS:
        found.append(Finding.CLOCK_AHEAD)
    if not licence.valid_from_ms <= sale.sold_at_ms < licence.valid_until_ms:
        found.append(Finding.OUTSIDE_LICENCE)
    return tuple(found)


def _require_of_licence(licence: Licence, signed: SignedSale) -> None:
    sale = signed.sale
    if sale.licence != licence.number:
        raise LogBroken(f"entry {sale.seq}: expected one of licence {licence.number}, got one of {sale.licence}")
    try:
        _require_signature(bytes.fromhex(licence.station_key), asdict(sale), signed.signature)
    except (ValueError, InvalidSignature):
        raise LogBroken(
            f"licence {licence.number}, entry {sale.seq}: expected the station's signature, got a wrong one"
        ) from None


def _sign(seed: bytes, told: Mapping[str, Any]) -> str:  # JSON.
    return Ed25519PrivateKey.from_private_bytes(seed).sign(_canonical(told)).hex()


def _require_signature(key: bytes, told: Mapping[str, Any], signature: str) -> None:  # JSON.
    Ed25519PublicKey.from_public_bytes(key).verify(bytes.fromhex(signature), _canonical(told))


def _canonical(told: Mapping[str, Any]) -> bytes:  # JSON.
    return json.dumps(told, sort_keys=True, separators=(",", ":")).encode()
