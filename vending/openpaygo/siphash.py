"""SipHash-2-4, the keyed hash under every OpenPAYGO token.

Enters: a 16-byte key and a message. Leaves: a 64-bit number. Never: anything of tokens.

Standard: Aumasson and Bernstein, SipHash: a fast short-input PRF (2012), by its published vectors.
"""

from vending.openpaygo.errors import InvalidPaygoKey

KEY_BYTES = 16
_WORD = 0xFFFF_FFFF_FFFF_FFFF
_COMPRESSION_ROUNDS = 2
_FINALIZATION_ROUNDS = 4
_State = tuple[int, int, int, int]


def siphash24(key: bytes, message: bytes) -> int:
    """Return the SipHash-2-4 of a message; bytes of key and message are read little-endian.

    Raises: InvalidPaygoKey for a key that is not 16 bytes.
    """
    if len(key) != KEY_BYTES:
        raise InvalidPaygoKey(f"device key: expected {KEY_BYTES} bytes, got {len(key)}")
    k0, k1 = int.from_bytes(key[:8], "little"), int.from_bytes(key[8:], "little")
    # The paper starts from the ASCII text "somepseudorandomlygeneratedbytes".
    state: _State = (
        k0 ^ 0x736F_6D65_7073_6575,
        k1 ^ 0x646F_7261_6E64_6F6D,
        k0 ^ 0x6C79_6765_6E65_7261,
        k1 ^ 0x7465_6462_7974_6573,
    )
    for word in _words(message):
        v0, v1, v2, v3 = _mix((state[0], state[1], state[2], state[3] ^ word), _COMPRESSION_ROUNDS)
        state = v0 ^ word, v1, v2, v3
    v0, v1, v2, v3 = _mix((state[0], state[1], state[2] ^ 0xFF, state[3]), _FINALIZATION_ROUNDS)
    return v0 ^ v1 ^ v2 ^ v3


def _words(message: bytes) -> list[int]:
    """Cut a message into 64-bit words, its length modulo 256 in the last byte of the last one."""
    padded = message + bytes(-(len(message) + 1) % 8) + bytes([len(message) & 0xFF])
    return [int.from_bytes(padded[at : at + 8], "little") for at in range(0, len(padded), 8)]


def _mix(state: _State, rounds: int) -> _State:
    """Run SipRounds. Written out, not by a rotation function: a token is hashed as often as its count says."""
    v0, v1, v2, v3 = state
    for _ in range(rounds):
        v0 = (v0 + v1) & _WORD
        v2 = (v2 + v3) & _WORD
        v1 = ((v1 << 13) & _WORD | v1 >> 51) ^ v0
        v3 = ((v3 << 16) & _WORD | v3 >> 48) ^ v2
        v0 = (v0 << 32) & _WORD | v0 >> 32
        v2 = (v2 + v1) & _WORD
        v0 = (v0 + v3) & _WORD
        v1 = ((v1 << 17) & _WORD | v1 >> 47) ^ v2
        v3 = ((v3 << 21) & _WORD | v3 >> 43) ^ v0
        v2 = (v2 << 32) & _WORD | v2 >> 32
    return v0, v1, v2, v3
