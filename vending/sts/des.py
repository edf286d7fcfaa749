"""The DES steps of the older decoder key derivations, DKGA02 and DKGA03.

Enters: a vending key and the 64-bit block made of PANBlock and CONTROLBlock. Leaves: 8 bytes of decoder key.
Never: a choice of the derivation (see keys).

Standard: IEC 62055-41, DKGA02 and DKGA03, as read in public sources. DKGA02 is confirmed by published vectors
whose vending keys have eight equal bytes: that an unequal key goes in big-endian as written is by reading
only. DKGA03 has no published vector at all and is withdrawn from edition 3.
"""

from cryptography.hazmat.decrepit.ciphers.algorithms import TripleDES
from cryptography.hazmat.primitives.ciphers import Cipher, modes

DES_KEY_BYTES = 8
TRIPLE_DES_KEY_BYTES = 16


def dkga02_key(vending_key: bytes, block: bytes) -> bytes:
    """Return DES(block) under the vending key, with block and key added by exclusive or.

    The parity bits of the key take part in the addition as they stand.
    """
    # Triple DES with one key thrice is single DES, the only form the library still offers.
    return _xor(_encrypt(vending_key * 3, block), _xor(block, vending_key))


def dkga03_key(vending_key: bytes, block: bytes) -> bytes:
    """Return two-key triple DES (EDE) of the block, with the block added by exclusive or."""
    return _xor(_encrypt(vending_key + vending_key[:DES_KEY_BYTES], block), block)


def _encrypt(key24: bytes, block: bytes) -> bytes:
    # One block is all a derivation enciphers, so no mode of chaining comes in.
    encryptor = Cipher(TripleDES(key24), modes.ECB()).encryptor()
    return encryptor.update(block) + encryptor.finalize()


def _xor(one: bytes, other: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(one, other, strict=True))
