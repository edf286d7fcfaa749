"""Decoder key derivation: from a vending key and a meter's identity to the key inside that meter.

Enters: a vending key and the meter's record. Leaves: a decoder key, whose text form is masked, and its
cipher. Never: storage of keys, which is the security module's part.

Standard: IEC 62055-41 Ed 3, DKGA04 (KDF-HMAC-SHA-256, one block). The layout of the message is confirmed by
published vectors for key type 2 only.
"""

import hmac
from dataclasses import dataclass, field
from typing import Protocol, assert_never

from vending.sts.errors import InvalidKey, UnsupportedCipher, UnsupportedKeyDerivation
from vending.sts.identity import EncryptionAlgorithm, KeyDerivation, KeyType, MeterKeyRecord
from vending.sts.misty1 import Misty1

# DKGA04 takes a 160-bit vending key.
VENDING_KEY_BYTES = 20
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

    Invariants: as long as its cipher takes; the bytes never show in `repr`.
    """

    ea: EncryptionAlgorithm
    key: bytes = field(repr=False)

    def __post_init__(self) -> None:
        expected = DECODER_KEY_BYTES[self.ea]
        if len(self.key) != expected:
            raise InvalidKey(f"decoder key for EA{self.ea}: expected {expected} bytes, got {len(self.key)}")

    def cipher(self) -> BlockCipher:
        """Return the meter's cipher under this key.

        Raises: UnsupportedCipher for EA07.
        """
        match self.ea:
            case EncryptionAlgorithm.MISTY1:
                return Misty1(self.key)
            case EncryptionAlgorithm.STA:
                raise UnsupportedCipher("EA07 is not implemented: expected EA11")
            case _:
                assert_never(self.ea)


def derive_decoder_key(vending_key: bytes, meter: MeterKeyRecord) -> DecoderKey:
    """Derive the key that sits in this meter.

    Raises: UnsupportedKeyDerivation for a DKGA other than 04 and for key types that no published vector
        covers; InvalidKey for a vending key of another length.
    """
    match meter.dkga:
        case KeyDerivation.HMAC_SHA256:
            return _derive_by_dkga04(vending_key, meter)
        case KeyDerivation.LEGACY | KeyDerivation.DES | KeyDerivation.TRIPLE_DES:
            raise UnsupportedKeyDerivation(f"DKGA{meter.dkga} is not implemented: expected DKGA04, meter {meter.drn}")
        case _:
            assert_never(meter.dkga)


def _derive_by_dkga04(vending_key: bytes, meter: MeterKeyRecord) -> DecoderKey:
    # With a common key the PAN in the message probably has a zero IAIN, and what an initialisation key takes
    # is not known here: a refusal costs a sale, a wrong key costs the customer a token that never works.
    if meter.kt not in (KeyType.DEFAULT, KeyType.UNIQUE):
        raise UnsupportedKeyDerivation(
            f"DKGA04 is not implemented for key type {meter.kt:d}: expected 1 or 2, meter {meter.drn}"
        )
    if len(vending_key) != VENDING_KEY_BYTES:
        raise InvalidKey(
            f"vending key of SGC {meter.sgc} KRN {meter.krn}: expected {VENDING_KEY_BYTES} bytes, "
            f"got {len(vending_key)}"
        )
    derived = hmac.digest(vending_key, dkga04_message(meter), "sha256")
    return DecoderKey(ea=meter.ea, key=derived[: DECODER_KEY_BYTES[meter.ea]])


def dkga04_message(meter: MeterKeyRecord) -> bytes:
    """Write the message that DKGA04 feeds to HMAC-SHA-256 under the vending key.

    Shape: item count, tagged label; zero; item count, tagged context; bits wanted as 4 bytes.
    """
    label = (meter.dkga, meter.base_date, meter.ea, f"{meter.tariff_index:02d}")
    context = (meter.sgc, f"{meter.kt:d}", f"{meter.krn:d}", meter.pan.digits)
    bits_wanted = 8 * DECODER_KEY_BYTES[meter.ea]
    return _tagged(label) + b"\x00" + _tagged(context) + bits_wanted.to_bytes(4, "big")


def _tagged(items: tuple[str, ...]) -> bytes:
    parts = b"".join(bytes([len(item)]) + item.encode("ascii") for item in items)
    return bytes([len(items)]) + parts
