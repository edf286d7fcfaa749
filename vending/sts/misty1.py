"""MISTY1, the block cipher behind EA11: one 64-bit block under one 128-bit key.

Enters: a block and a key, both big-endian. Leaves: a block. Never: modes, padding, I/O. The simulated
meter imports this module too, so it knows nothing of tokens.

Standard: RFC 2994 (ISO/IEC 18033-3), eight rounds. The steps are written from a summary of it and proven by
the vectors of its appendix. The inner function FI is looked up in two tables of 65,536 entries, so that a block
takes 48 look-ups; the plain form stays in the tests, which prove both equal.
"""

from array import array
from collections.abc import Callable
from operator import itemgetter
from struct import Struct

from vending.sts.errors import FieldOutOfRange, InvalidKey

BLOCK_BITS = 64
KEY_BYTES = 16

_S7_HEX = """
1b 32 33 5a 3b 10 17 54 5b 1a 72 73 6b 2c 66 49 1f 24 13 6c 37 2e 3f 4a 5d 0f 40 56 25 51 1c 04
0b 46 20 0d 7b 35 44 42 2b 1e 41 14 4b 79 15 6f 0e 55 09 36 74 0c 67 53 28 0a 7e 38 02 07 60 29
19 12 65 2f 30 39 08 68 5f 78 2a 4c 64 45 75 3d 59 48 03 57 7c 4f 62 3c 1d 21 5e 27 6a 70 4d 3a
01 6d 6e 63 18 77 23 05 26 76 00 31 2d 7a 7f 61 50 22 11 06 47 16 52 4e 71 3e 69 43 34 5c 58 7d
"""
_S9_HEX = """
1c3 0cb 153 19f 1e3 0e9 0fb 035 181 0b9 117 1eb 133 009 02d 0d3 0c7 14a 037 07e 0eb 164 193 1d8
0a3 11e 055 02c 01d 1a2 163 118 14b 152 1d2 00f 02b 030 13a 0e5 111 138 18e 063 0e3 0c8 1f4 01b
001 09d 0f8 1a0 16d 1f3 01c 146 07d 0d1 082 1ea 183 12d 0f4 19e 1d3 0dd 1e2 128 1e0 0ec 059 091
011 12f 026 0dc 0b0 18c 10f 1f7 0e7 16c 0b6 0f9 0d8 151 101 14c 103 0b8 154 12b 1ae 017 071 00c
047 058 07f 1a4 134 129 084 15d 19d 1b2 1a3 048 07c 051 1ca 023 13d 1a7 165 03b 042 0da 192 0ce
0c1 06b 09f 1f1 12c 184 0fa 196 1e1 169 17d 031 180 10a 094 1da 186 13e 11c 060 175 1cf 067 119
065 068 099 150 008 007 17c 0b7 024 019 0de 127 0db 0e4 1a9 052 109 090 19c 1c1 028 1b3 135 16a
176 0df 1e5 188 0c5 16e 1de 1b1 0c3 1df 036 0ee 1ee 0f0 093 049 09a 1b6 069 081 125 00b 05e 0b4
149 1c7 174 03e 13b 1b7 08e 1c6 0ae 010 095 1ef 04e 0f2 1fd 085 0fd 0f6 0a0 16f 083 08a 156 09b
13c 107 167 098 1d0 1e9 003 1fe 0bd 122 089 0d2 18f 012 033 06a 142 0ed 170 11b 0e2 14f 158 131
147 05d 113 1cd 079 161 1a5 179 09e 1b4 0cc 022 132 01a 0e8 004 187 1ed 197 039 1bf 1d7 027 18b
0c6 09c 0d0 14e 06c 034 1f2 06e 0ca 025 0ba 191 0fe 013 106 02f 1ad 172 1db 0c0 10b 1d6 0f5 1ec
10d 076 114 1ab 075 10c 1e4 159 054 11f 04b 0c4 1be 0f7 029 0a4 00e 1f0 077 04d 17a 086 08b 0b3
171 0bf 10e 104 097 15b 160 168 0d7 0bb 066 1ce 0fc 092 1c5 06f 016 04a 0a1 139 0af 0f1 190 00a
1aa 143 17b 056 18d 166 0d4 1fb 14d 194 19a 087 1f8 123 0a7 1b8 141 03c 1f9 140 02a 155 11a 1a1
198 0d5 126 1af 061 12e 157 1dc 072 18a 0aa 096 115 0ef 045 07b 08d 145 053 05f 178 0b2 02e 020
1d5 03f 1c9 1e7 1ac 044 038 014 0b1 16b 0ab 0b5 05a 182 1c8 1d4 018 177 064 0cf 06d 100 199 130
15a 005 120 1bb 1bd 0e0 04f 0d6 13f 1c4 12a 015 006 0ff 19b 0a6 043 088 050 15f 1e8 121 073 17e
0bc 0c2 0c9 173 189 1f5 074 1cc 1e6 1a8 195 01f 041 00d 1ba 032 03d 1d1 080 0a8 057 1b9 162 148
0d9 105 062 07a 021 1ff 112 108 1c0 0a9 11d 1b0 1a6 0cd 0f3 05c 102 05b 1d9 144 1f6 0ad 0a5 03a
1cb 136 17f 046 0e1 01e 1dd 0e6 137 1fa 185 08c 08f 040 1b5 0be 078 000 0ac 110 15e 124 002 1bc
0a2 0ea 070 1fc 116 15c 04c 1c2
"""

_S7 = tuple(int(entry, 16) for entry in _S7_HEX.split())
_S9 = tuple(int(entry, 16) for entry in _S9_HEX.split())

# Both tables are bijections in the RFC, so a slip in a single entry shows here before any token is made.
assert sorted(_S7) == list(range(128))
assert sorted(_S9) == list(range(512))

# FI(x, k) is TAIL[HEAD[x] ^ k]: the first half of its steps needs no key, and the key then comes in by one exclusive
# or. 128 KB each, made in some 10 ms.
_HEAD = array("H", bytes(2 << 16))
for _nine, _substituted in enumerate(_S9):
    _HEAD[_nine << 7 : _nine + 1 << 7] = array(
        "H", [(_S7[seven] ^ ((_substituted ^ seven) & 0x7F)) << 9 | _substituted ^ seven for seven in range(128)]
    )
_TAIL = array("H", [seven << 9 | substituted ^ seven for seven in range(128) for substituted in _S9])

_WORDS = Struct(">8H")

RoundKeys = tuple[int, ...]
_ROUNDS = (0, 2, 4, 6)


class Misty1:
    """The cipher under one key.

    Invariants: `decrypt(encrypt(block)) == block` for every 64-bit block; the key never shows in `repr`, and
    no expanded key outlives its cipher.
    """

    __slots__ = ("_last", "_rounds")

    def __init__(self, key: bytes) -> None:
        """Take a 128-bit key.

        Raises: InvalidKey unless the key is 16 bytes; the message holds its length only.
        """
        if len(key) != KEY_BYTES:
            raise InvalidKey(f"MISTY1 key: expected {KEY_BYTES} bytes, got {len(key)}")
        schedule = _key_schedule(key)
        self._rounds: tuple[RoundKeys, ...] = tuple([take(schedule) for take in _TAKE_ROUNDS])
        self._last: RoundKeys = _TAKE_LAST(schedule)

    def __repr__(self) -> str:
        return "Misty1(key hidden)"

    def encrypt(self, block: int) -> int:
        """Encrypt one 64-bit block.

        Raises: FieldOutOfRange when the block is not 64 bits.
        """
        # Halves of 16 bits: l1 l0 are the left word, r1 r0 the right one.
        l1, l0, r1, r0 = _quarters(block)
        head, tail = _HEAD, _TAIL
        for and0, or0, and1, or1, o1, i1, o2, i2, o3, i3, o4, p1, j1, p2, j2, p3, j3, p4 in self._rounds:
            l0 ^= l1 & and0
            l1 ^= l0 | or0
            r0 ^= r1 & and1
            r1 ^= r0 | or1
            a = tail[head[l1 ^ o1] ^ i1] ^ l0
            b = tail[head[l0 ^ o2] ^ i2] ^ a
            r0 ^= tail[head[a ^ o3] ^ i3] ^ b
            r1 ^= b ^ o4
            a = tail[head[r1 ^ p1] ^ j1] ^ r0
            b = tail[head[r0 ^ p2] ^ j2] ^ a
            l0 ^= tail[head[a ^ p3] ^ j3] ^ b
            l1 ^= b ^ p4
        and0, or0, and1, or1 = self._last
        l0 ^= l1 & and0
        r0 ^= r1 & and1
        return (r1 ^ (r0 | or1)) << 48 | r0 << 32 | (l1 ^ (l0 | or0)) << 16 | l0

    def decrypt(self, block: int) -> int:
        """Decrypt one 64-bit block.

        Raises: FieldOutOfRange when the block is not 64 bits.
        """
        r1, r0, l1, l0 = _quarters(block)
        head, tail = _HEAD, _TAIL
        and0, or0, and1, or1 = self._last
        l1 ^= l0 | or0
        l0 ^= l1 & and0
        r1 ^= r0 | or1
        r0 ^= r1 & and1
        for and0, or0, and1, or1, o1, i1, o2, i2, o3, i3, o4, p1, j1, p2, j2, p3, j3, p4 in self._rounds[::-1]:
            a = tail[head[r1 ^ p1] ^ j1] ^ r0
            b = tail[head[r0 ^ p2] ^ j2] ^ a
            l0 ^= tail[head[a ^ p3] ^ j3] ^ b
            l1 ^= b ^ p4
            a = tail[head[l1 ^ o1] ^ i1] ^ l0
            b = tail[head[l0 ^ o2] ^ i2] ^ a
            r0 ^= tail[head[a ^ o3] ^ i3] ^ b
            r1 ^= b ^ o4
            r1 ^= r0 | or1
            r0 ^= r1 & and1
            l1 ^= l0 | or0
            l0 ^= l1 & and0
        return l1 << 48 | l0 << 32 | r1 << 16 | r0


def _quarters(block: int) -> tuple[int, int, int, int]:
    if not 0 <= block < 1 << BLOCK_BITS:
        raise FieldOutOfRange(f"MISTY1 block: expected {BLOCK_BITS} bits, got {block.bit_length()}")
    return block >> 48, block >> 32 & 0xFFFF, block >> 16 & 0xFFFF, block & 0xFFFF


def _key_schedule(key: bytes) -> tuple[int, ...]:
    """Expand a key to K1..K8 followed by K'1..K'8."""
    words = _WORDS.unpack(key)
    return words + tuple([_TAIL[_HEAD[word] ^ after] for word, after in zip(words, words[1:] + words[:1], strict=True)])


def _fl_places(r: int) -> tuple[int, int]:
    """Return where in the schedule the two keys of FL number r stand."""
    half = r >> 1
    return (8 + (half + 2) % 8, (half + 4) % 8) if r & 1 else (half, 8 + (half + 6) % 8)


def _fo_places(r: int) -> tuple[int, ...]:
    """Return where in the schedule the seven keys of FO number r stand, in the order of use."""
    return (r, 8 + (r + 5) % 8, (r + 2) % 8, 8 + (r + 1) % 8, (r + 7) % 8, 8 + (r + 3) % 8, (r + 4) % 8)


def _taker(places: tuple[int, ...]) -> Callable[[tuple[int, ...]], RoundKeys]:
    return itemgetter(*places)


_TAKE_ROUNDS = tuple(_taker(_fl_places(r) + _fl_places(r + 1) + _fo_places(r) + _fo_places(r + 1)) for r in _ROUNDS)
_TAKE_LAST = _taker(_fl_places(8) + _fl_places(9))
