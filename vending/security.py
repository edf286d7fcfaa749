"""The security module: the only place where a vending key is open, and the port to it.

Enters: a meter's record, a coded amount and a TID. Leaves: 20 digits. The caller chooses the amount and the
TID and decides to sell; the module holds the vending keys, adds RND and CRC and encrypts, the cut of the
STS 600-8-6 messages, so that a hardware module fits behind the same port. Never: a key or a whole token in a
message; credit under an expired key.

`SoftSecurityModule` is for tests and small systems: its keys lie sealed and are open for the time of one call.
Standard: IEC 62055-41 (tokens, KEN); NIST SP 800-38D (AES-GCM). The sealed form and the check value are our
own.
"""

import hmac
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from vending.sts.amounts import CurrencyField
from vending.sts.errors import InvalidKey, StsError
from vending.sts.identity import SGC_DIGITS, KeyType, MeterKeyRecord, require_digits, require_range
from vending.sts.keys import VENDING_KEY_BYTES, DecoderKey, derive_decoder_key
from vending.sts.tid import is_key_expired, require_tid
from vending.sts.tokens import (
    CreditService,
    CurrencyCredit,
    Token,
    TokenNumber,
    UnitCredit,
    decode_token,
    encode_token,
)

MASTER_KEY_BYTES = 32
_SEAL_VERSION = b"\x01"
_NONCE_BYTES = 12
_TAG_BYTES = 16
SEALED_KEY_BYTES = len(_SEAL_VERSION) + _NONCE_BYTES + VENDING_KEY_BYTES + _TAG_BYTES
_CHECK_VALUE_HEX_DIGITS = 6


class SecurityModuleError(StsError):
    """Anything the security module refuses by itself."""

    code = "security_module_error"


class VendingKeyUnknown(SecurityModuleError):
    """The module holds no vending key for this supply group and key revision."""

    code = "vending_key_unknown"


class VendingKeyConflict(SecurityModuleError):
    """Two different sealed keys are given for one supply group and key revision."""

    code = "vending_key_conflict"


class VendingKeyExpired(SecurityModuleError):
    """The TID lies beyond the key's expiry number: the meter needs a key change before any credit."""

    code = "vending_key_expired"


class CreditKeyTypeRefused(SecurityModuleError):
    """The meter still holds an initialisation or default key, under which it takes no credit."""

    code = "credit_key_type_refused"


class SealBroken(SecurityModuleError):
    """A sealed key does not open: another master key, another SGC or KRN, or altered bytes."""

    code = "seal_broken"


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedVendingKey:
    """A vending key at rest.

    Invariants: `sealed` opens only under the same master key, SGC and KRN.
    """

    sgc: str
    krn: int
    sealed: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRefused:
    """The answer of `verify` when the digits are no token of this meter; `code` is that of the error."""

    code: str
    reason: str


class SecurityModule(Protocol):
    """What vending needs of any module, soft or hardware."""

    def mint_unit_credit(
        self, meter: MeterKeyRecord, *, service: CreditService, amount16: int, tid: int
    ) -> TokenNumber:
        """Make a class 0 subclass 0-3 token of an encoded amount."""
        ...

    def mint_currency_credit(
        self, meter: MeterKeyRecord, *, service: CreditService, amount: CurrencyField, tid: int
    ) -> TokenNumber:
        """Make a class 0 subclass 4-7 token of an encoded amount."""
        ...

    def verify(self, meter: MeterKeyRecord, number: TokenNumber) -> Token | TokenRefused:
        """Read a token as this meter would, without regard to whether it was used."""
        ...

    def key_check_value(self, *, sgc: str, krn: int) -> str:
        """Return the check value by which two people compare a vending key without seeing it."""
        ...


class SoftSecurityModule:
    """A security module in software.

    Invariants: holds its vending keys sealed; minting the same thing twice gives other digits only by RND;
    `repr` and every error are free of keys.
    """

    __slots__ = ("_master", "_rnd_nibble", "_sealed")

    def __init__(
        self, master: bytes, sealed_keys: Iterable[SealedVendingKey], *, rnd_nibble: Callable[[], int]
    ) -> None:
        """Take the master key, the sealed keys and the source of RND, a CSPRNG giving 0-15.

        Raises: SealBroken when any of the keys does not open, so that a wrong master key shows at start;
            VendingKeyConflict for two different keys of one SGC and KRN.
        """
        self._master = master
        self._rnd_nibble = rnd_nibble
        self._sealed: dict[tuple[str, int], bytes] = {}
        for each in sealed_keys:
            if self._sealed.setdefault((each.sgc, each.krn), each.sealed) != each.sealed:
                raise VendingKeyConflict(
                    f"vending key: expected one for SGC {each.sgc} KRN {each.krn}, got two different ones"
                )
            self._vending_key(each.sgc, each.krn)

    def __repr__(self) -> str:
        return f"SoftSecurityModule({len(self._sealed)} sealed keys)"

    def mint_unit_credit(
        self, meter: MeterKeyRecord, *, service: CreditService, amount16: int, tid: int
    ) -> TokenNumber:
        """Make a class 0 subclass 0-3 token of an encoded amount.

        Raises: VendingKeyExpired, CreditKeyTypeRefused, VendingKeyUnknown, and what the engine refuses.
        """
        key = self._credit_key(meter, tid)
        rnd = self._rnd_nibble()
        return encode_token(UnitCredit(service=service, rnd=rnd, tid=tid, amount16=amount16), key)

    def mint_currency_credit(
        self, meter: MeterKeyRecord, *, service: CreditService, amount: CurrencyField, tid: int
    ) -> TokenNumber:
        """Make a class 0 subclass 4-7 token of an encoded amount.

        Raises: VendingKeyExpired, CreditKeyTypeRefused, VendingKeyUnknown, and what the engine refuses.
        """
        key = self._credit_key(meter, tid)
        return encode_token(CurrencyCredit(service=service, tid=tid, amount=amount), key)

    def verify(self, meter: MeterKeyRecord, number: TokenNumber) -> Token | TokenRefused:
        """Read a token as this meter would; an expired key still reads, it only credits no more.

        Raises: VendingKeyUnknown, and UnsupportedKeyDerivation or UnsupportedCipher for the meter's record.
        """
        key = derive_decoder_key(self._vending_key(meter.sgc, meter.krn), meter)
        # Asked here, so that a cipher not offered is an error of the record and not a refusal of the token.
        key.cipher()
        try:
            return decode_token(number, key)
        except StsError as error:
            return TokenRefused(code=error.code, reason=str(error))

    def key_check_value(self, *, sgc: str, krn: int) -> str:
        """Return the check value of a vending key.

        Raises: VendingKeyUnknown.
        """
        return key_check_value(self._vending_key(sgc, krn))

    def _credit_key(self, meter: MeterKeyRecord, tid: int) -> DecoderKey:
        require_tid(tid)
        if is_key_expired(tid, meter.ken):
            raise VendingKeyExpired(
                f"key of SGC {meter.sgc} KRN {meter.krn}: expected TID block up to KEN {meter.ken}, "
                f"got {tid >> 16}, meter {meter.drn}"
            )
        if meter.kt in (KeyType.INITIALISATION, KeyType.DEFAULT):
            raise CreditKeyTypeRefused(f"credit: expected key type 2 or 3, got {meter.kt:d}, meter {meter.drn}")
        return derive_decoder_key(self._vending_key(meter.sgc, meter.krn), meter)

    def _vending_key(self, sgc: str, krn: int) -> bytes:
        sealed = self._sealed.get((sgc, krn))
        if sealed is None:
            raise VendingKeyUnknown(f"vending key: expected one for SGC {sgc} KRN {krn}, got none")
        return open_vending_key(self._master, sgc, krn, sealed)


def seal_vending_key(master: bytes, sgc: str, krn: int, key: bytes) -> bytes:
    """Seal a vending key for storage; the same key sealed twice gives the same bytes.

    Shape: version 01, nonce 12, key 20, tag 16; 49 bytes.
    Raises: InvalidKey for a length other than 32 (master) or 20 (key); InvalidIdentity for SGC or KRN.
    """
    if len(key) != VENDING_KEY_BYTES:
        raise InvalidKey(f"vending key of SGC {sgc} KRN {krn}: expected {VENDING_KEY_BYTES} bytes, got {len(key)}")
    bound_to = _associated_data(sgc, krn)
    # The nonce is a keyed digest of all that is sealed: it repeats only where the whole sealed text does,
    # and this module needs no source of randomness.
    nonce = hmac.digest(_subkey(master, b"nonce"), bound_to + key, "sha256")[:_NONCE_BYTES]
    return _SEAL_VERSION + nonce + AESGCM(_subkey(master, b"seal")).encrypt(nonce, key, bound_to)


def open_vending_key(master: bytes, sgc: str, krn: int, sealed: bytes) -> bytes:
    """Open a sealed vending key.

    Raises: SealBroken; InvalidKey for a master key that is not 32 bytes; InvalidIdentity for SGC or KRN.
    """
    whose = f"sealed key of SGC {sgc} KRN {krn}"
    if len(sealed) != SEALED_KEY_BYTES or not sealed.startswith(_SEAL_VERSION):
        raise SealBroken(
            f"{whose}: expected {SEALED_KEY_BYTES} bytes of version 1, got {len(sealed)} of {sealed[:1].hex()}"
        )
    bound_to = _associated_data(sgc, krn)
    nonce, locked = sealed[1 : 1 + _NONCE_BYTES], sealed[1 + _NONCE_BYTES :]
    try:
        return AESGCM(_subkey(master, b"seal")).decrypt(nonce, locked, bound_to)
    except InvalidTag:
        # Raised afresh, so that no trace carries the cipher's own state.
        raise SealBroken(f"{whose}: expected a seal by this master key, got another or altered one") from None


def key_check_value(key: bytes) -> str:
    """Return 6 hexadecimal digits that tell two vending keys apart and give none away.

    Source: our own definition, HMAC-SHA-256 under the key of a fixed label; a hardware module shows another.
    """
    digest = hmac.digest(key, b"prepaid vending key check value 1", "sha256")
    return digest.hex()[:_CHECK_VALUE_HEX_DIGITS].upper()


def _associated_data(sgc: str, krn: int) -> bytes:
    require_digits(sgc, SGC_DIGITS, whose="SGC")
    require_range(krn, 1, 9, whose="KRN")
    return f"vending key 1|{sgc}|{krn}".encode("ascii")


def _subkey(master: bytes, purpose: bytes) -> bytes:
    if len(master) != MASTER_KEY_BYTES:
        raise InvalidKey(f"master key: expected {MASTER_KEY_BYTES} bytes, got {len(master)}")
    return hmac.digest(master, b"prepaid vending key seal 1: " + purpose, "sha256")
