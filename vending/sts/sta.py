"""STA, the block cipher behind EA07: one 64-bit block under one 64-bit key and one set of tables.

Enters: a block, a key and the tables, all numbers big-endian. Leaves: a block. Never: tokens, files, or the
tables of real meters: those belong to the STS Association's members, who load their own (see sta_tables).

Standard: IEC 62055-41, standard transfer algorithm, with the sample tables printed there.
"""

from dataclasses import dataclass, field
from functools import lru_cache

from vending.sts.errors import FieldOutOfRange, InvalidCipherTables, InvalidKey

BLOCK_BITS = 64
KEY_BYTES = 8
BLOCK_BYTES = 8
NIBBLES = 16
_ROUNDS = 16
_ALL_BITS = (1 << BLOCK_BITS) - 1
_KEY_ROTATION = 12
# The key bits that choose the tables, one at the top of each nibble, moved to its foot.
_CHOOSERS = 0x1111111111111111
# Where they are found in the key before each of the first eight rounds: in bit 3, then one place lower each round.
_CHOOSER_SHIFTS = tuple(BLOCK_BITS + 3 - turn for turn in range(_ROUNDS // 2))
# A byte of choosers is one of 0, 1, 16, 17; the rows between are never asked for.
_CHOICES = (0x00, 0x01, 0x10, 0x11)
# The worked-out tables of one set are 64 rows of 256 numbers, about 0.7 MB. A station has one set, a check two.
_EXPANSIONS_MAX = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class StaTables:
    """The two substitution tables and the bit permutation of EA07.

    Invariants: `s1` and `s2` are permutations of 0-15, `p` one of 0-63. `name` says where they are from and
    stands in reports; the tables themselves do not show in `repr`.
    """

    name: str
    s1: tuple[int, ...] = field(repr=False)
    s2: tuple[int, ...] = field(repr=False)
    p: tuple[int, ...] = field(repr=False)

    def __post_init__(self) -> None:
        for table, size, whose in ((self.s1, NIBBLES, "s1"), (self.s2, NIBBLES, "s2"), (self.p, BLOCK_BITS, "p")):
            if sorted(table) != list(range(size)):
                raise InvalidCipherTables(
                    f"EA07 table {whose}: expected a permutation of 0-{size - 1}, got another list of {len(table)}"
                )

    @property
    def is_iec_sample(self) -> bool:
        """Tell whether these are the sample tables, which no field meter has."""
        return (self.s1, self.s2, self.p) == (IEC_SAMPLE_TABLES.s1, IEC_SAMPLE_TABLES.s2, IEC_SAMPLE_TABLES.p)


IEC_SAMPLE_TABLES = StaTables(
    name="IEC sample tables, not for field meters",
    s1=(12, 10, 8, 4, 3, 15, 0, 2, 14, 1, 5, 13, 6, 9, 7, 11),
    s2=(6, 9, 7, 4, 3, 10, 12, 14, 2, 13, 1, 15, 0, 11, 8, 5),
    p=(
        *(29, 27, 34, 9, 16, 62, 55, 2, 40, 49, 38, 25, 33, 61, 30, 23),
        *(1, 41, 21, 57, 42, 15, 5, 58, 19, 53, 22, 17, 48, 28, 24, 39),
        *(3, 60, 36, 14, 11, 52, 54, 12, 31, 51, 10, 26, 0, 45, 37, 43),
        *(44, 6, 59, 4, 7, 35, 56, 50, 13, 18, 32, 47, 46, 63, 20, 8),
    ),
)


class Sta:
    """The cipher under one key and one set of tables.

    Invariants: `decrypt(encrypt(block)) == block` for every 64-bit block; the key never shows in `repr`.
    """

    __slots__ = ("_choosers", "_expansion")

    def __init__(self, key: bytes, tables: StaTables) -> None:
        """Take a 64-bit key and the tables of the meter.

        Raises: InvalidKey unless the key is 8 bytes; the message holds its length only.
        """
        if len(key) != KEY_BYTES:
            raise InvalidKey(f"STA key: expected {KEY_BYTES} bytes, got {len(key)}")
        self._expansion = _expand(tables)
        start = _rotate_left(~int.from_bytes(key, "big") & _ALL_BITS, BLOCK_BITS - _KEY_ROTATION)
        # The start twice in a row holds each of its rotations as 64 bits in one place.
        twice = start << BLOCK_BITS | start
        first = [(twice >> shift & _CHOOSERS).to_bytes(BLOCK_BYTES, "little") for shift in _CHOOSER_SHIFTS]
        # Eight turns move every byte on by one.
        self._choosers = (*first, *[octets[-1:] + octets[:-1] for octets in first])

    def __repr__(self) -> str:
        return "Sta(key hidden)"

    def encrypt(self, block: int) -> int:
        """Encrypt one 64-bit block.

        Raises: FieldOutOfRange when the block is not 64 bits.
        """
        return _run(self._expansion.forward, self._choosers, _octets(block))

    def decrypt(self, block: int) -> int:
        """Decrypt one 64-bit block.

        Raises: FieldOutOfRange when the block is not 64 bits.
        """
        # A round undone is the permutation back, then the substitution back. Taking the permutation of the next
        # round into each substitution leaves one at the start, and one too many at the end.
        gathered = _permute(self._expansion.gather, _octets(block))
        surplus = _run(self._expansion.backward, self._choosers[::-1], _octets(gathered))
        return _permute(self._expansion.spread, _octets(surplus))


Row = tuple[int, ...]
# By byte of the block, by chooser byte, by value of the byte: the bits it adds to the outcome.
ChosenRows = tuple[tuple[Row, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Expansion:
    """The tables worked out once: what each byte of a block becomes in a round, and where its bits go."""

    forward: ChosenRows
    backward: ChosenRows
    spread: tuple[Row, ...]
    gather: tuple[Row, ...]


def _run(rows: ChosenRows, choosers: tuple[bytes, ...], octets: bytes) -> int:
    """Run the rounds: each byte with its choosers names a row's entry, and the entries add up to the next block."""
    t0, t1, t2, t3, t4, t5, t6, t7 = rows
    block = 0
    for c0, c1, c2, c3, c4, c5, c6, c7 in choosers:
        x0, x1, x2, x3, x4, x5, x6, x7 = octets
        block = t0[c0][x0] | t1[c1][x1] | t2[c2][x2] | t3[c3][x3] | t4[c4][x4] | t5[c5][x5] | t6[c6][x6] | t7[c7][x7]
        octets = block.to_bytes(BLOCK_BYTES, "little")
    return block


def _permute(rows: tuple[Row, ...], octets: bytes) -> int:
    t0, t1, t2, t3, t4, t5, t6, t7 = rows
    x0, x1, x2, x3, x4, x5, x6, x7 = octets
    return t0[x0] | t1[x1] | t2[x2] | t3[x3] | t4[x4] | t5[x5] | t6[x6] | t7[x7]


@lru_cache(maxsize=_EXPANSIONS_MAX)
def _expand(tables: StaTables) -> _Expansion:
    inverse_p = _inverse(tables.p)
    spread = tuple(_byte_row(byte, tables.p) for byte in range(BLOCK_BYTES))
    gather = tuple(_byte_row(byte, inverse_p) for byte in range(BLOCK_BYTES))
    return _Expansion(
        forward=_chosen_rows(spread, (tables.s1, tables.s2)),
        backward=_chosen_rows(gather, (_inverse(tables.s1), _inverse(tables.s2))),
        spread=spread,
        gather=gather,
    )


def _byte_row(byte: int, places: tuple[int, ...]) -> Row:
    """Return for each value of a byte where its bits go."""
    bits = [1 << place for place in places[8 * byte : 8 * byte + 8]]
    return tuple(sum(bits[bit] for bit in range(8) if value >> bit & 1) for value in range(256))


def _chosen_rows(permuted: tuple[Row, ...], substitutions: tuple[Row, Row]) -> ChosenRows:
    """Join substitution and permutation, for each byte and each choice of the tables of its two nibbles."""
    substituted = {
        choice: [
            substitutions[choice >> 4][value >> 4] << 4 | substitutions[choice & 1][value & 0xF] for value in range(256)
        ]
        for choice in _CHOICES
    }
    return tuple(
        tuple(
            tuple(row[value] for value in substituted[choice]) if choice in substituted else ()
            for choice in range(_CHOICES[-1] + 1)
        )
        for row in permuted
    )


def _inverse(table: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(table.index(value) for value in range(len(table)))


def _rotate_left(value: int, places: int) -> int:
    return (value << places | value >> BLOCK_BITS - places) & _ALL_BITS


def _octets(block: int) -> bytes:
    """Return the bytes of a block, lowest first."""
    if not 0 <= block <= _ALL_BITS:
        raise FieldOutOfRange(f"STA block: expected {BLOCK_BITS} bits, got {block.bit_length()}")
    return block.to_bytes(BLOCK_BYTES, "little")
