"""Modbus, whatever the bytes: values survive every map and order, reads split none, frames survive any chopping."""

from __future__ import annotations

import math
import struct
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.errors import FrameError
from protocols.modbus.blocks import decode_block, plan_reads, polled_quantities
from protocols.modbus.frames import Deframer, Frame, Framing, answer_bytes, registers_of, require_echo, wrap
from protocols.modbus.maps import Register, RegisterMap, builtin_maps
from protocols.modbus.plausible import judge
from protocols.modbus.quantities import native_channels
from protocols.modbus.values import Form, RegisterType, WordOrder
from tests.modbus_bank import Bank, household, stored

# The first edition of the SDM72 shows neither voltage nor frequency: by power and energy alone much passes.
BLIND = {"sdm72"}
METERS = [meter for meter in builtin_maps().values() if not meter.is_relay_only]
RANGES = {
    RegisterType.U16: (0, 2**16 - 1),
    RegisterType.I16: (-(2**15), 2**15 - 1),
    RegisterType.U32: (0, 2**32 - 1),
    RegisterType.I32: (-(2**31), 2**31 - 1),
    RegisterType.U64: (0, 2**64 - 1),
    RegisterType.I64: (-(2**63), 2**63 - 1),
}


def raws(entry: Register) -> st.SearchStrategy[float]:
    """Return raw numbers that a register can hold and that mean themselves."""
    if entry.type is RegisterType.F32:
        most = 1.0 if entry.form is Form.FOUR_QUADRANT else 1e7
        return st.floats(-most, most, width=32).filter(lambda raw: raw == 0 or abs(raw) > 1e-9)
    low, high = RANGES[entry.type]
    unsigned = 2 ** (16 * entry.words)
    return st.integers(low, high).filter(lambda raw: raw % unsigned not in entry.invalid)


@pytest.mark.parametrize("meter", METERS, ids=lambda meter: meter.model)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_values_come_back_to_the_last_digit_in_every_order(meter: RegisterMap, data: st.DataObject) -> None:
    """What an independent encoder laid into the registers is what the planned reads bring, in every word order."""
    order = data.draw(st.sampled_from(WordOrder))
    base = data.draw(st.sampled_from([0, 1])) if min(entry.address for entry in meter.registers) else 0
    gap = data.draw(st.sampled_from([None, 0, 7]))
    tried = meter.variant(base=base, word_order=order)
    bank = Bank()
    expected = {}
    for entry in tried.registers:
        raw = data.draw(raws(entry))
        bank.put_raw(tried, entry, raw)
        expected[entry.quantity] = stored(entry, raw)
    got: dict[str, int | None] = {}
    for block in plan_reads(tried, gap_words_max=gap):
        bank.fill(block.function, block.address, block.address + block.count - 1)
        words = bank.read(block.function, block.address, block.count)
        assert words is not None
        got |= decode_block(tried, block, words)
    assert got == expected


@st.composite
def made_maps(draw: st.DrawFn) -> RegisterMap:
    """Return a shipped map with other limits and places, to try the planner on more than the shipped ones."""
    meter = draw(st.sampled_from(METERS))
    at = 0
    placed = []
    for entry in meter.registers:
        at += draw(st.integers(0, 30))
        placed.append(replace(entry, address=at, scale_address=draw(st.sampled_from([None, at + entry.words]))))
        at += entry.words + 1
    return replace(meter, base=0, registers=tuple(placed), words_max=draw(st.integers(5, 125)))


@settings(max_examples=60, deadline=None)
@given(meter=made_maps(), gap=st.integers(0, 40))
def test_plan_covers_every_value_once_whole_and_within_limits(meter: RegisterMap, gap: int) -> None:
    """No read splits a value or parts it from its scale, is longer than allowed, or skips more than allowed."""
    blocks = plan_reads(meter, gap_words_max=gap)
    assert sorted(entry.quantity for block in blocks for entry in block.registers) == sorted(
        entry.quantity for entry in meter.registers
    )
    for block in blocks:
        assert 1 <= block.count <= meter.words_max
        covered: set[int] = set()
        for entry in block.registers:
            assert entry.function == block.function
            words = set(range(entry.address, entry.address + entry.words))
            words |= set() if entry.scale_address is None else {entry.scale_address}
            assert words <= set(range(block.address, block.address + block.count))
            covered |= words
        skipped = [word in covered for word in range(block.address, block.address + block.count)]
        assert skipped[0]
        assert skipped[-1]
        assert max((len(run) for run in "".join(".x"[word] for word in skipped).split("x")), default=0) <= gap


@settings(max_examples=60, deadline=None)
@given(meter=made_maps(), gap=st.integers(0, 40))
def test_plan_has_the_fewest_reads_that_are_possible(meter: RegisterMap, gap: int) -> None:
    """No division of the registers, in their order, into allowed reads is shorter."""
    entries = sorted(meter.registers, key=lambda entry: (entry.function, entry.address))
    ends = [max(entry.address + entry.words, (entry.scale_address or 0) + 1) for entry in entries]
    best = [0.0] + [math.inf] * len(entries)
    for last in range(1, len(entries) + 1):
        for first in range(last, 0, -1):
            joined = all(
                entries[at].address - ends[at - 1] <= gap and entries[at].function == entries[at - 1].function
                for at in range(first, last)
            )
            if joined and ends[last - 1] - entries[first - 1].address <= meter.words_max:
                best[last] = min(best[last], best[first - 1] + 1)
    assert len(plan_reads(meter, gap_words_max=gap)) == best[-1]


def test_polled_plan_asks_no_more_words_than_the_whole() -> None:
    """A poll reads what a native reading needs, and a channel comes of it."""
    for meter in METERS:
        polled = plan_reads(meter, polled_quantities(meter))
        assert sum(block.count for block in polled) <= sum(block.count for block in plan_reads(meter))
        channels = native_channels(dict.fromkeys(polled_quantities(meter), 1))
        assert channels["import_wh"] == 1


@pytest.mark.parametrize(
    "meter", [meter for meter in METERS if meter.model not in BLIND], ids=lambda meter: meter.model
)
@settings(max_examples=25, deadline=None)
@given(
    volts=st.integers(1900, 2600),
    milliamperes=st.integers(300, 20_000),
    factor=st.integers(50, 100),
    import_wh=st.integers(1_000_000, 90_000_000),
)
def test_home_is_plausible_by_its_map_and_never_with_words_turned(
    meter: RegisterMap, volts: int, milliamperes: int, factor: int, import_wh: int
) -> None:
    """Over the range of homes in service the right order passes and the other does not."""
    bank = Bank()
    amperes = str(min(milliamperes, 900 * (meter.rated.current_a or 100)) / 1000)
    home = household(
        meter, volts=str(volts / 10), amperes=amperes, factor=str(factor / 100), import_kwh=str(import_wh / 1000)
    )
    bank.put_values(meter, home)

    def judged(tried: RegisterMap) -> bool:
        values: dict[str, int | None] = {}
        for block in plan_reads(tried, gap_words_max=0):
            values |= decode_block(tried, block, bank.read(block.function, block.address, block.count) or b"")
        return judge(tried, values).is_plausible

    assert judged(meter)
    assert not judged(meter.variant(word_order=meter.word_order.other))


def chopped(stream: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    return [stream[begin:end] for begin, end in pairwise(edges)]


def words_pdu(data: bytes) -> bytes:
    return bytes((4, len(data))) + data


GARBAGE = st.binary(max_size=12)
WORDS = st.integers(1, 4).flatmap(lambda count: st.binary(min_size=2 * count, max_size=2 * count))
CUTS = st.lists(st.integers(0, 300), max_size=12)


@settings(max_examples=100, deadline=None)
@given(parts=st.lists(st.tuples(GARBAGE, st.binary(min_size=8, max_size=8), st.booleans()), max_size=6), cuts=CUTS)
def test_rtu_frames_are_the_same_however_the_stream_is_chopped(
    parts: list[tuple[bytes, bytes, bool]], cuts: list[int]
) -> None:
    """Garbage between, frames joined or split: byte by byte, at once or in any pieces, the same frames leave."""
    stream = b"".join(
        noise + wrap(Framing.RTU, 9, 0, bytes((0x84, words[0])) if refused else words_pdu(words))
        for noise, words, refused in parts
    )

    def frames(pieces: list[bytes]) -> tuple[list[Frame], int]:
        deframer = Deframer(Framing.RTU)
        deframer.expect(9, 4, answer_bytes(4, 4))
        got = [frame for piece in pieces for frame in deframer.feed(piece)]
        deframer.reset()
        return got, deframer.dropped

    whole = frames([stream])
    assert frames(chopped(stream, cuts)) == whole
    assert frames([stream[at : at + 1] for at in range(len(stream))]) == whole
    if not any(noise for noise, _, _ in parts):
        assert len(whole[0]) == len(parts)


@settings(max_examples=100, deadline=None)
@given(parts=st.lists(st.tuples(GARBAGE, WORDS, st.integers(0, 65_535)), max_size=6), cuts=CUTS)
def test_tcp_frames_are_the_same_however_the_stream_is_chopped(
    parts: list[tuple[bytes, bytes, int]], cuts: list[int]
) -> None:
    """The same for the framing with a header; without garbage every frame leaves with its transaction."""
    stream = b"".join(noise + wrap(Framing.TCP, 9, number, words_pdu(words)) for noise, words, number in parts)

    def frames(pieces: list[bytes]) -> tuple[list[Frame], int]:
        deframer = Deframer(Framing.TCP)
        got = [frame for piece in pieces for frame in deframer.feed(piece)]
        deframer.reset()
        return got, deframer.dropped

    whole = frames([stream])
    assert frames(chopped(stream, cuts)) == whole
    assert frames([stream[at : at + 1] for at in range(len(stream))]) == whole
    if not any(noise for noise, _, _ in parts):
        assert [frame.transaction for frame in whole[0]] == [transaction for _, _, transaction in parts]
        assert whole[1] == 0


@settings(max_examples=300, deadline=None)
@given(pdu=st.binary(max_size=300), meter=st.sampled_from(METERS))
def test_hostile_answers_raise_nothing_but_named_errors(pdu: bytes, meter: RegisterMap) -> None:
    """Whatever a line brings is words, or an error of this package."""
    block = plan_reads(meter)[0]
    for answer in (pdu, struct.pack(">BB", 4, len(pdu) % 256) + pdu, bytes((4, 2 * block.count)) + pdu):
        with suppress(FrameError):
            values = decode_block(meter, block, registers_of(answer))
            judge(meter, values)
            native_channels(values)
        with suppress(FrameError):
            require_echo(bytes.fromhex("050001ff00"), answer)


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=600), framing=st.sampled_from(Framing))
def test_deframer_takes_any_bytes(data: bytes, framing: Framing) -> None:
    """No stream makes a deframer fail, and what it counts as dropped never exceeds what came."""
    deframer = Deframer(framing)
    deframer.expect(1, 3, answer_bytes(3, 2))
    deframer.feed(data)
    deframer.reset()
    assert 0 <= deframer.dropped <= len(data)
