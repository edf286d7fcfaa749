"""Decoder key derivation: from a vending key and a meter's identity to the key inside that meter.

Enters: a vending key and the meter's record. Leaves: a decoder key, whose text form is masked, and its
cipher. Never: storage of keys, which is the security module's part.

Standard: IEC 62055-41 Ed 3, DKGA04 (KDF-HMAC-SHA-256, one block). The layout of the message is confirmed by
published vectors for key type 2 only. DKGA02 and DKGA03 of the earlier editions: see des for how far they are
confirmed.
"""

import hmac
from dataclasses import dataclass, field
from typing import Protocol, assert_never

from vending.sts.des import DES_KEY_BYTES, TRIPLE_DES_KEY_BYTES, dkga02_key, dkga03_key
from vending.sts.errors import InvalidKey, UnsupportedCipher, UnsupportedKeyDerivation
from vending.sts.identity import (
    EncryptionAlgorithm,
    KeyDerivation,
    KeyType,
    MeterKeyRecord,
    control_block,
    pan_block,
)
from vending.sts.misty1 import Misty1
from vending.sts.sta import Sta, StaTables

# DKGA04 takes a 160-bit vending key.
VENDING_KEY_BYTES = 20
VENDING_KEY_BYTES_BY_DKGA = {
    KeyDerivation.DES: DES_KEY_BYTES,
    KeyDerivation.TRIPLE_DES: TRIPLE_DES_KEY_BYTES,
    KeyDerivation.HMAC_SHA256: VENDING_KEY_BYTES,
}
DECODER_KEY_BYTES = {EncryptionAlgorithm.STA: 8, EncryptionAlgorithm.MISTY1: 16}


class BlockCipher(Protocol):
    """A 64-bit block cipher under one key."""

    def encrypt(self, block: int) -> int:
        """Encrypt one 64-bit block."""
        ...

    def decrypt(self, block: int) -> int:
        """Decrypt one 64-bit block."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderKey:
    """The key of one meter and the cipher it is for.

    Invariants: as long as its cipher takes; the bytes never show in `repr`. `sta_tables` matter to EA07 only.
    No table is assumed for a meter: a token under the sample tables would never work in the field.
    """

    ea: EncryptionAlgorithm
    key: bytes = field(repr=False)
    sta_tables: StaTables | None = None

    def __post_init__(self) -> None:
        expected = DECODER_KEY_BYTES[self.ea]
        if len(self.key) != expected:
            raise InvalidKey(f"decoder key for EA{self.ea}: expected {expected} bytes, got {len(self.key)}")

    def cipher(self) -> BlockCipher:
        """Return the meter's cipher under this key.

        Raises: UnsupportedCipher for EA07 without tables.
        """
        match self.ea:
            case EncryptionAlgorithm.MISTY1:
                return Misty1(self.key)
            case EncryptionAlgorithm.STA:
                if self.sta_tables is None:
                    raise UnsupportedCipher("EA07: expected the operator's cipher tables, got none")
                return Sta(self.key, self.sta_tables)
            case _:
                assert_never(self.ea)


def derive_decoder_key(
    vending_key: bytes,
    meter: MeterKeyRecord,
    *,
    sta_tables: StaTables | None = None,
    allow_unconfirmed: bool = False,
) -> DecoderKey:
    """Derive the key that sits in this meter.

    DKGA03 has no published vector: it is derived only for a caller who allows the unconfirmed.
    Raises: UnsupportedKeyDerivation for DKGA01, for DKGA02 and DKGA03 with a cipher other than EA07, and for
        key types whose rule is not known here; InvalidKey for a vending key of another length.
    """
    match meter.dkga:
        case KeyDerivation.HMAC_SHA256:
            key = _derive_by_dkga04(vending_key, meter)
        case KeyDerivation.DES:
            block = _des_block(vending_key, meter)
            key = dkga02_key(vending_key, block)
        case KeyDerivation.TRIPLE_DES if allow_unconfirmed:
            block = _des_block(vending_key, meter)
            key = dkga03_key(vending_key, block)
        case KeyDerivation.LEGACY | KeyDerivation.TRIPLE_DES:
            raise UnsupportedKeyDerivation(
                f"DKGA{meter.dkga} is not implemented: expected DKGA02 or DKGA04, meter {meter.drn}"
            )
        case _:
            assert_never(meter.dkga)
    return DecoderKey(ea=meter.ea, key=key, sta_tables=sta_tables if meter.ea is EncryptionAlgorithm.STA else None)


def _des_block(vending_key: bytes, meter: MeterKeyRecord) -> bytes:
    """Return PANBlock and CONTROLBlock added by exclusive or, once the record and the key fit the derivation."""
    if meter.ea is not EncryptionAlgorithm.STA:
        raise UnsupportedKeyDerivation(
            f"DKGA{meter.dkga} gives a 64-bit key: expected EA07, got EA{meter.ea}, meter {meter.drn}"
        )
    if meter.kt is KeyType.INITIALISATION:
        raise UnsupportedKeyDerivation(
            f"DKGA{meter.dkga} is not implemented for key type {meter.kt:d}: expected 1-3, meter {meter.drn}"
        )
    _require_vending_key(vending_key, meter)
    numbers = pan_block(meter.iin, meter.drn.digits, meter.kt)
    attributes = control_block(kt=meter.kt, sgc=meter.sgc, tariff_index=meter.tariff_index, krn=meter.krn)
    return bytes(a ^ b for a, b in zip(numbers, attributes, strict=True))


def _derive_by_dkga04(vending_key: bytes, meter: MeterKeyRecord) -> bytes:
    # With a common key the PAN in the message probably has a zero IAIN, and what an initialisation key takes
    # is not known here: a refusal costs a sale, a wrong key costs the customer a token that never works.
    if meter.kt not in (KeyType.DEFAULT, KeyType.UNIQUE):
        raise UnsupportedKeyDerivation(
            f"DKGA04 is not implemented for key type {meter.kt:d}: expected 1 or 2, meter {meter.drn}"
        )
    _require_vending_key(vending_key, meter)
    derived = hmac.digest(vending_key, dkga04_message(meter), "sha256")
    return derived[: DECODER_KEY_BYTES[meter.ea]]


def _require_vending_key(vending_key: bytes, meter: MeterKeyRecord) -> None:
    expected = VENDING_KEY_BYTES_BY_DKGA[meter.dkga]
    if len(vending_key) != expected:
        raise InvalidKey(
            f"vending key of SGC {meter.sgc} KRN {meter.krn}: expected {expected} bytes, got {len(vending_key)}"
        )


def dkga04_message(meter: MeterKeyRecord) -> bytes:
    """Write the message that DKGA04 feeds to HMAC-SHA-256 under the vending key.

    Shape: item count, tagged label; zero; item count, tagged context; bits wanted as 4 bytes.
    """
    # Every item has a fixed length, so counts and tags stand as they are: 04 items; 02, 06, 01 or 12 bytes.
    label = f"\x04\x02{meter.dkga}\x02{meter.base_date}\x02{meter.ea}\x02{meter.tariff_index:02d}"
    context = f"\x04\x06{meter.sgc}\x01{meter.kt:d}\x01{meter.krn:d}\x12{meter.pan_digits}"
    bits_wanted = 8 * DECODER_KEY_BYTES[meter.ea]
    return f"{label}\x00{context}".encode("ascii") + bits_wanted.to_bytes(4, "big")
