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
NIBBLES = 16
_ROUNDS = 16
_ALL_BITS = (1 << BLOCK_BITS) - 1
_KEY_ROTATION = 12
# The spread tables of one set are 48 rows of 16 numbers, about 30 KB. A station has one set, a check two.
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

    __slots__ = ("_expansion", "_round_keys")

    def __init__(self, key: bytes, tables: StaTables) -> None:
        """Take a 64-bit key and the tables of the meter.

        Raises: InvalidKey unless the key is 8 bytes; the message holds its length only.
        """
        if len(key) != KEY_BYTES:
            raise InvalidKey(f"STA key: expected {KEY_BYTES} bytes, got {len(key)}")
        self._expansion = _expand(tables)
        start = _rotate_left(~int.from_bytes(key, "big") & _ALL_BITS, BLOCK_BITS - _KEY_ROTATION)
        self._round_keys = tuple(_rotate_left(start, turn) for turn in range(_ROUNDS))

    def __repr__(self) -> str:
        return "Sta(key hidden)"

    def encrypt(self, block: int) -> int:
        """Encrypt one 64-bit block.

        Raises: FieldOutOfRange when the block is not 64 bits.
        """
        block = _require_block(block)
        forward = self._expansion.forward
        for key in self._round_keys:
            spread = 0
            for nibble in range(NIBBLES):
                # The top bit of the key's nibble chooses the table.
                spread |= forward[nibble][key >> 4 * nibble + 3 & 1][block >> 4 * nibble & 0xF]
            block = spread
        return block

    def decrypt(self, block: int) -> int:
        """Decrypt one 64-bit block.

        Raises: FieldOutOfRange when the block is not 64 bits.
        """
        block = _require_block(block)
        gathered_by, unsubstituted_by = self._expansion.gather, self._expansion.unsubstitute
        for key in reversed(self._round_keys):
            gathered = 0
            for nibble in range(NIBBLES):
                gathered |= gathered_by[nibble][block >> 4 * nibble & 0xF]
            block = 0
            for nibble in range(NIBBLES):
                table = unsubstituted_by[key >> 4 * nibble + 3 & 1]
                block |= table[gathered >> 4 * nibble & 0xF] << 4 * nibble
        return block


@dataclass(frozen=True, slots=True, kw_only=True)
class _Expansion:
    """The tables worked out once: where each nibble's bits go and come from."""

    forward: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
    gather: tuple[tuple[int, ...], ...]
    unsubstitute: tuple[tuple[int, ...], tuple[int, ...]]


@lru_cache(maxsize=_EXPANSIONS_MAX)
def _expand(tables: StaTables) -> _Expansion:
    inverse_p = _inverse(tables.p)
    forward = tuple(
        (
            tuple(_spread(nibble, value, tables.p) for value in tables.s1),
            tuple(_spread(nibble, value, tables.p) for value in tables.s2),
        )
        for nibble in range(NIBBLES)
    )
    gather = tuple(tuple(_spread(nibble, value, inverse_p) for value in range(16)) for nibble in range(NIBBLES))
    return _Expansion(forward=forward, gather=gather, unsubstitute=(_inverse(tables.s1), _inverse(tables.s2)))


def _spread(nibble: int, value: int, places: tuple[int, ...]) -> int:
    return sum(1 << places[4 * nibble + bit] for bit in range(4) if value >> bit & 1)


def _inverse(table: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(table.index(value) for value in range(len(table)))


def _rotate_left(value: int, places: int) -> int:
    return (value << places | value >> BLOCK_BITS - places) & _ALL_BITS


def _require_block(block: int) -> int:
    if not 0 <= block <= _ALL_BITS:
        raise FieldOutOfRange(f"STA block: expected {BLOCK_BITS} bits, got {block.bit_length()}")
    return block
