"""Block reads: which words to ask for so that few requests fetch many values, and the values out of their answers.

Stage: between a map and the frames. A read never splits a value nor parts it from the register of its scale, and skips
no more words than the map allows.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from protocols.errors import Malformed
from protocols.modbus.maps import Register, RegisterMap
from protocols.modbus.quantities import CHANNELS, PHASES_OF_CHANNEL

# A scale register holds a power of ten; beyond this it is none, 8000 hex among others (SunSpec: not implemented).
_EXPONENTS: Final = range(-10, 11)


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockRead:
    """One read request.

    Invariants: `address` is the wire address; every word of `registers`, and of their scales, lies within.
    """

    function: int
    address: int
    count: int
    registers: tuple[Register, ...]


def polled_quantities(meter: RegisterMap) -> tuple[str, ...]:
    """Return what has to be read for a native reading: the channels, and phases where a channel is made of them."""
    named = {entry.quantity for entry in meter.registers}
    wanted: list[str] = []
    for channel in CHANNELS:
        if channel in named:
            wanted.append(channel)
        else:
            wanted += [quantity for quantity in PHASES_OF_CHANNEL.get(channel, ()) if quantity in named]
    return tuple(wanted)


def plan_reads(
    meter: RegisterMap,
    quantities: Iterable[str] | None = None,
    *,
    gap_words_max: int | None = None,
    confirmed: bool = False,
) -> tuple[BlockRead, ...]:
    """Plan the fewest reads that fetch these quantities, or all.

    Doubtful registers are left out unless the map is `confirmed` by a probe. `gap_words_max` replaces the map's own:
    0 for a meter that refuses reads across words it does not know.
    """
    wanted = None if quantities is None else frozenset(quantities)
    gap = meter.gap_words_max if gap_words_max is None else gap_words_max
    chosen = [
        entry
        for entry in meter.registers
        if (wanted is None or entry.quantity in wanted) and (confirmed or not entry.doubtful)
    ]
    blocks: list[BlockRead] = []
    open_block: list[Register] = []
    # Taking on as much as fits, in the order of beginnings, gives the fewest blocks that cover all.
    for entry in sorted(chosen, key=lambda entry: (entry.function, _span(entry))):
        if open_block and not _fits(meter, open_block, entry, gap):
            blocks.append(_block(meter, open_block))
            open_block = []
        open_block.append(entry)
    if open_block:
        blocks.append(_block(meter, open_block))
    return tuple(blocks)


def decode_block(meter: RegisterMap, block: BlockRead, data: bytes) -> dict[str, int | None]:
    """Take the values out of the words that a read was answered with; None where the meter says it has none.

    Raises: Malformed when the words are not as many as were asked for.
    """
    if len(data) != 2 * block.count:
        raise Malformed(
            f"read of {block.count} words from 0x{block.address:04X}: expected {2 * block.count} bytes, "
            f"got {len(data)}, model {meter.model}"
        )
    first = block.address + meter.base
    values: dict[str, int | None] = {}
    for entry in block.registers:
        at = 2 * (entry.address - first)
        exponent = 0
        if entry.scale_address is not None:
            scale_at = 2 * (entry.scale_address - first)
            exponent = int.from_bytes(data[scale_at : scale_at + 2], "big", signed=True)
        if exponent in _EXPONENTS:
            values[entry.quantity] = meter.value(entry, data[at : at + 2 * entry.words], exponent=exponent)
        else:
            values[entry.quantity] = None
    return values


def _span(entry: Register) -> tuple[int, int]:
    """Return the first word of a register and the one after its last, its scale included."""
    scale = entry.address if entry.scale_address is None else entry.scale_address
    return min(entry.address, scale), max(entry.address + entry.words, scale + 1)


def _fits(meter: RegisterMap, block: list[Register], entry: Register, gap: int) -> bool:
    if block[0].function != entry.function:
        return False
    begins, ends = _span(block[0])[0], max(_span(each)[1] for each in block)
    entry_begins, entry_ends = _span(entry)
    return entry_begins - ends <= gap and max(ends, entry_ends) - begins <= meter.words_max


def _block(meter: RegisterMap, registers: list[Register]) -> BlockRead:
    begins, ends = _span(registers[0])[0], max(_span(each)[1] for each in registers)
    return BlockRead(
        function=registers[0].function,
        address=begins - meter.base,
        count=ends - begins,
        registers=tuple(registers),
    )
