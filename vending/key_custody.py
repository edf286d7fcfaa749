"""Vending and device keys at rest: how they are sealed, opened, put together from two people's parts and compared.

Enters: a master key and keys as bytes, components as text. Leaves: sealed bytes for storage, an open key for one
call, check values. Never: storage, a key in a message.

Standard: NIST SP 800-38D (AES-GCM). The sealed form and the check value of 20-byte keys are our own; the check value
of DES keys is the field's.
"""

import hmac
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.decrepit.ciphers.algorithms import TripleDES
from cryptography.hazmat.primitives.ciphers import Cipher, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from vending.openpaygo.siphash import KEY_BYTES as DEVICE_KEY_BYTES
from vending.security import SealBroken
from vending.sts.des import DES_KEY_BYTES
from vending.sts.errors import InvalidKey
from vending.sts.identity import SGC_DIGITS, KeyDerivation, require_digits, require_range
from vending.sts.keys import VENDING_KEY_BYTES_BY_DKGA

MASTER_KEY_BYTES = 32
_SEAL_VERSION = b"\x01"
_NONCE_BYTES = 12
_TAG_BYTES = 16
SEAL_OVERHEAD_BYTES = len(_SEAL_VERSION) + _NONCE_BYTES + _TAG_BYTES
# The length of a vending key says which derivation it is for.
DKGA_BY_KEY_BYTES = {length: dkga for dkga, length in VENDING_KEY_BYTES_BY_DKGA.items()}
_CHECK_VALUE_HEX_DIGITS = 6
_DES_BLOCK_BYTES = 8
_COMPONENT_MARK = b"|component"


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedVendingKey:
    """A vending key at rest.

    Invariants: `sealed` opens only under the same master key, SGC and KRN, and as a key of the same length.
    """

    sgc: str
    krn: int
    sealed: bytes = field(repr=False)


def seal_vending_key(master: bytes, sgc: str, krn: int, key: bytes) -> bytes:
    """Seal a vending key for storage; the same key sealed twice gives the same bytes.

    Shape: version 01, nonce 12, key 8, 16 or 20, tag 16.
    Raises: InvalidKey for a master key that is not 32 bytes or a key of no known length; InvalidIdentity for SGC
        or KRN.
    """
    return _seal(master, key, _associated_data(sgc, krn, dkga_of_key(sgc, krn, key)))


def open_vending_key(master: bytes, sgc: str, krn: int, sealed: bytes) -> bytes:
    """Open a sealed vending key.

    Raises: SealBroken; InvalidKey for a master key that is not 32 bytes; InvalidIdentity for SGC or KRN.
    """
    whose = f"sealed key of SGC {sgc} KRN {krn}"
    return _open(master, sealed, _associated_data(sgc, krn, _dkga_of_sealed(sealed, whose)), whose)


def seal_component(master: bytes, sgc: str, krn: int, component: bytes) -> bytes:
    """Seal the first person's component while it waits for the second; it opens as a component only.

    Raises: as `seal_vending_key`.
    """
    dkga = dkga_of_key(sgc, krn, component)
    return _seal(master, component, _associated_data(sgc, krn, dkga) + _COMPONENT_MARK)


def open_component(master: bytes, sgc: str, krn: int, sealed: bytes) -> bytes:
    """Open a sealed component.

    Raises: as `open_vending_key`.
    """
    whose = f"sealed component of SGC {sgc} KRN {krn}"
    dkga = _dkga_of_sealed(sealed, whose)
    return _open(master, sealed, _associated_data(sgc, krn, dkga) + _COMPONENT_MARK, whose)


def read_component(text: str, whose: str) -> bytes:
    """Read a component as it stands on paper: hexadecimal digits, with blanks between groups or none.

    Raises: InvalidKey for anything but 16, 32 or 40 digits, or for digits that are all zero.
    """
    digits = "".join(text.split())
    try:
        component = bytes.fromhex(digits)
    except ValueError:
        component = b""
    if len(component) not in DKGA_BY_KEY_BYTES:
        raise InvalidKey(f"{whose}: expected 16, 32 or 40 hexadecimal digits, got {len(digits)} characters")
    if not any(component):
        raise InvalidKey(f"{whose}: expected a secret, got zeros only")
    return component


def join_components(first: bytes, second: bytes, whose: str) -> bytes:
    """Put a vending key together: the exclusive or of two components, of which neither alone says anything.

    Raises: InvalidKey for components of two lengths or two equal ones.
    """
    if len(first) != len(second):
        raise InvalidKey(f"{whose}: expected components of one length, got {len(first)} and {len(second)} bytes")
    if hmac.compare_digest(first, second):
        raise InvalidKey(f"{whose}: expected two different components, got the same twice")
    return bytes(a ^ b for a, b in zip(first, second, strict=True))


def seal_device_key(master: bytes, serial: str, key: bytes) -> bytes:
    """Seal the secret key of an OpenPAYGO device for storage; the same key sealed twice gives the same bytes.

    Shape: version 01, nonce 12, key 16, tag 16.
    Raises: InvalidKey for a master key that is not 32 bytes or a device key that is not 16.
    """
    if len(key) != DEVICE_KEY_BYTES:
        raise InvalidKey(f"key of device {serial}: expected {DEVICE_KEY_BYTES} bytes, got {len(key)}")
    return _seal(master, key, _device_data(serial))


def open_device_key(master: bytes, serial: str, sealed: bytes) -> bytes:
    """Open the sealed key of an OpenPAYGO device.

    Raises: SealBroken, for another device's sealed key too; InvalidKey for a master key that is not 32 bytes.
    """
    whose = f"sealed key of device {serial}"
    expected = DEVICE_KEY_BYTES + SEAL_OVERHEAD_BYTES
    if len(sealed) != expected or not sealed.startswith(_SEAL_VERSION):
        raise SealBroken(f"{whose}: expected {expected} bytes in version 1, got {len(sealed)} bytes in all")
    return _open(master, sealed, _device_data(serial), whose)


def seal_api_secret(master: bytes, key_id: str, secret: bytes) -> bytes:
    """Seal the secret of an interface key for storage: whoever checks a signature needs the secret itself.

    Shape: version 01, nonce 12, the secret, tag 16.
    Raises: InvalidKey for a master key that is not 32 bytes.
    """
    return _seal(master, secret, _api_key_data(key_id))


def open_api_secret(master: bytes, key_id: str, sealed: bytes) -> bytes:
    """Open the sealed secret of an interface key.

    Raises: SealBroken, for another key's secret too; InvalidKey for a master key that is not 32 bytes.
    """
    whose = f"sealed secret of interface key {key_id}"
    if len(sealed) <= SEAL_OVERHEAD_BYTES or not sealed.startswith(_SEAL_VERSION):
        raise SealBroken(f"{whose}: expected more than {SEAL_OVERHEAD_BYTES} bytes in version 1, got {len(sealed)}")
    return _open(master, sealed, _api_key_data(key_id), whose)


def digest_key(master: bytes) -> bytes:
    """Return the key under which the audit trail's digests of requests are made.

    Raises: InvalidKey for a master key that is not 32 bytes.
    """
    return _subkey(master, b"request digest")


def dkga_of_key(sgc: str, krn: int, key: bytes) -> KeyDerivation:
    """Tell by its length which derivation a vending key or component is for.

    Raises: InvalidKey.
    """
    dkga = DKGA_BY_KEY_BYTES.get(len(key))
    if dkga is None:
        raise InvalidKey(f"vending key of SGC {sgc} KRN {krn}: expected 8, 16 or 20 bytes, got {len(key)}")
    return dkga


def key_check_value(key: bytes) -> str:
    """Return 6 hexadecimal digits that tell two keys apart and give none away.

    Source: our own definition, HMAC-SHA-256 under the key of a fixed label; a hardware module shows another.
    """
    digest = hmac.digest(key, b"prepaid vending key check value 1", "sha256")
    return digest.hex()[:_CHECK_VALUE_HEX_DIGITS].upper()


def vending_key_check_value(key: bytes) -> str:
    """Return the check value of a vending key or component.

    Source: for DES keys the one that comes with them on paper, eight zero bytes enciphered under the key, which does
    not see the lowest bit of each byte; for 20 bytes `key_check_value`.
    """
    if DKGA_BY_KEY_BYTES.get(len(key)) not in (KeyDerivation.DES, KeyDerivation.TRIPLE_DES):
        return key_check_value(key)
    # Triple DES with one key thrice is single DES; of two keys the first comes again as the third. One block is
    # enciphered, so no mode of chaining comes in.
    encryptor = Cipher(TripleDES((key * 3)[: 3 * DES_KEY_BYTES]), modes.ECB()).encryptor()
    block = encryptor.update(bytes(_DES_BLOCK_BYTES)) + encryptor.finalize()
    return block.hex()[:_CHECK_VALUE_HEX_DIGITS].upper()


def _dkga_of_sealed(sealed: bytes, whose: str) -> KeyDerivation:
    dkga = DKGA_BY_KEY_BYTES.get(len(sealed) - SEAL_OVERHEAD_BYTES)
    if dkga is None or not sealed.startswith(_SEAL_VERSION):
        raise SealBroken(f"{whose}: expected a key of 8, 16 or 20 bytes in version 1, got {len(sealed)} bytes in all")
    return dkga


def _seal(master: bytes, key: bytes, bound_to: bytes) -> bytes:
    # The nonce is a keyed digest of all that is sealed: it repeats only where the whole sealed text does,
    # and this module needs no source of randomness.
    nonce = hmac.digest(_subkey(master, b"nonce"), bound_to + key, "sha256")[:_NONCE_BYTES]
    return _SEAL_VERSION + nonce + AESGCM(_subkey(master, b"seal")).encrypt(nonce, key, bound_to)


def _open(master: bytes, sealed: bytes, bound_to: bytes, whose: str) -> bytes:
    nonce, locked = sealed[1 : 1 + _NONCE_BYTES], sealed[1 + _NONCE_BYTES :]
    try:
        return AESGCM(_subkey(master, b"seal")).decrypt(nonce, locked, bound_to)
    except InvalidTag:
        # Raised afresh, so that no trace carries the cipher's own state.
        raise SealBroken(f"{whose}: expected a seal by this master key, got another or altered one") from None


def _associated_data(sgc: str, krn: int, dkga: KeyDerivation) -> bytes:
    require_digits(sgc, SGC_DIGITS, whose="SGC")
    require_range(krn, 1, 9, whose="KRN")
    # Keys for DKGA04 were the first to be sealed, and the only ones without a mark of their kind.
    kind = "" if dkga is KeyDerivation.HMAC_SHA256 else f"|DKGA{dkga}"
    return f"vending key 1|{sgc}|{krn}{kind}".encode("ascii")


def _device_data(serial: str) -> bytes:
    return f"device key 1|{serial}".encode("ascii")


def _api_key_data(key_id: str) -> bytes:
    return f"interface key 1|{key_id}".encode("ascii")


def _subkey(master: bytes, purpose: bytes) -> bytes:
    if len(master) != MASTER_KEY_BYTES:
        raise InvalidKey(f"master key: expected {MASTER_KEY_BYTES} bytes, got {len(master)}")
    return hmac.digest(master, b"prepaid vending key seal 1: " + purpose, "sha256")
