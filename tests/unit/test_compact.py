"""The compact payload: the same facts as native JSON in few bytes; what is wrong is refused, nothing crashes."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from protocols.compact import FIRST_BYTE, decode_compact, encode_compact
from protocols.errors import FrameError, IntegrityFailed, Malformed
from protocols.native import (
    MeterEvent,
    Readings,
    Relay,
    TokenEntered,
    Uplink,
    decode_uplink,
    encode_event,
    encode_readings,
    encode_reply,
    encode_token_entered,
)
from tests.unit.test_native import ENTRIES, EVENTS, REPLIES, readings

HALF_HOUR_MS = 1_800_000
T0 = 1_763_730_000_000


def topic_of(uplink: Uplink) -> str:
    return f"amr/{uplink.serial}/{'rd' if isinstance(uplink, Readings) else 'ev'}"


def native(uplink: Uplink) -> bytes:
    if isinstance(uplink, Readings):
        return encode_readings(uplink)
    if isinstance(uplink, TokenEntered):
        return encode_token_entered(uplink)
    return encode_event(uplink) if isinstance(uplink, MeterEvent) else encode_reply(uplink)


def day_of_half_hours(*, full: bool) -> Readings:
    """A household's day: 48 registers, with all channels or alone."""
    registers = [123_456]
    for interval in range(47):
        registers.append(registers[-1] + 90 + 37 * interval % 410)

    def channel(first: int, spread: int) -> list[int | None]:
        return [first + 7919 * interval % spread if full else None for interval in range(48)]

    return Readings(
        serial="PB000001",
        seq=43,
        clock_ms=T0 + 47 * HALF_HOUR_MS + 4_123,
        read_at_ms=[T0 + interval * HALF_HOUR_MS for interval in range(48)],
        import_wh=registers,
        export_wh=[0 if full else None] * 48,
        voltage_mv=channel(226_000, 9_000),
        current_ma=channel(900, 4_000),
        power_w=channel(200, 900),
        pf_milli=channel(930, 60),
        freq_mhz=channel(49_900, 200),
        relay=Relay.ON,
        credit_minor=12_345,
        events=(),
    )


@given(readings() | EVENTS | REPLIES | ENTRIES)
@settings(max_examples=100, deadline=None)
def test_compact_round_trip_equals_native(uplink: Uplink) -> None:
    """Through compact frame and JSON the same facts come out of `decode_uplink`."""
    assert decode_uplink(topic_of(uplink), encode_compact(uplink)) == uplink
    assert decode_uplink(topic_of(uplink), native(uplink)) == uplink


@given(readings(), st.data())
@settings(max_examples=60, deadline=None)
def test_compact_block_with_gaps_equals_native_block_with_null(whole: Readings, data: st.DataObject) -> None:
    """An interval without a register is missing in both forms, whatever its other channels say."""
    count = len(whole.read_at_ms)
    kept = sorted(data.draw(st.sets(st.integers(0, count - 1), min_size=1)))
    columns = ("read_at_ms", "import_wh", "export_wh", "voltage_mv", "current_ma", "power_w", "pf_milli", "freq_mhz")
    holed = replace(whole, **{name: [getattr(whole, name)[index] for index in kept] for name in columns})
    assert decode_uplink(topic_of(holed), encode_compact(holed)) == holed


@given(st.binary(max_size=80) | st.binary(max_size=60).map(lambda rest: bytes((FIRST_BYTE,)) + rest))
@settings(max_examples=400, deadline=None)
def test_compact_any_bytes_are_refused_or_decode_without_a_crash(payload: bytes) -> None:
    """Whatever comes ends as a fact or a frame error."""
    for level in ("rd", "ev"):
        with suppress(FrameError):
            decode_uplink(f"amr/M1/{level}", payload)


@given(st.binary(max_size=60))
@settings(max_examples=400, deadline=None)
def test_compact_any_fields_under_a_right_check_value_do_not_crash(fields: bytes) -> None:
    """A frame that a broken meter signs itself is a fact within all ranges, or refused."""
    from protocols.compact import _crc

    frame = bytes((FIRST_BYTE,)) + fields
    for level in ("rd", "ev"):
        with suppress(FrameError):
            uplink = decode_compact("M1", level, frame + _crc("M1", frame).to_bytes(2))
            assert decode_uplink(f"amr/M1/{level}", native(uplink)) == uplink or isinstance(uplink, Readings)


def test_compact_every_flipped_bit_and_every_prefix_is_refused() -> None:
    """The check value covers each bit of the frame; a part of a frame is none."""
    frame = encode_compact(day_of_half_hours(full=False))
    for bit in range(len(frame) * 8):
        broken = bytearray(frame)
        broken[bit // 8] ^= 1 << bit % 8
        with pytest.raises(FrameError):
            decode_uplink("amr/PB000001/rd", bytes(broken))
    for length in range(len(frame)):
        with pytest.raises(FrameError):
            decode_uplink("amr/PB000001/rd", frame[:length])


def test_compact_frame_on_another_meters_topic_is_refused() -> None:
    """The serial is not sent, but covered: a frame counts for its own meter alone."""
    with pytest.raises(IntegrityFailed):
        decode_uplink("amr/PB000002/rd", encode_compact(day_of_half_hours(full=False)))


def test_compact_readings_on_the_event_topic_are_refused() -> None:
    """Readings come on rd, events and replies on ev."""
    with pytest.raises(Malformed):
        decode_uplink("amr/PB000001/ev", encode_compact(day_of_half_hours(full=False)))


def test_compact_frames_stay_as_version_1_has_them() -> None:
    """Frames of our own encoder, kept; the check value over the digits 1 to 9 is the catalogue's for this CRC."""
    from protocols.compact import _crc

    assert _crc("123", b"456789") == 0x29B1
    event = MeterEvent(serial="PB000001", seq=44, at_ms=T0, code=301)
    assert encode_compact(event).hex() == "a102012c809180b4aa33ad021e95"
    frame = bytes.fromhex("a101cf022a809180b4aa3301f60100f2c00181890fc19c1cec0ed41a")
    one = decode_uplink("amr/PB000001/rd", frame)
    assert isinstance(one, Readings)
    assert (one.seq, one.read_at_ms, one.import_wh, one.credit_minor) == (42, [T0], [123_456], 12_345)
    assert (one.clock_ms, one.relay, one.voltage_mv, one.power_w) == (T0 + 123, Relay.ON, [231_200], [-950])


@pytest.mark.parametrize("times", [[T0, T0 + 1_500], [T0 + 1_000, T0], [T0, T0], [T0, T0 + 1_000, T0 + 97_000]])
def test_compact_readings_without_a_step_of_a_block_are_not_encoded(times: list[int]) -> None:
    """Half seconds, falling or equal instants, and more than 96 intervals are no block."""
    column: list[int | None] = [None] * len(times)
    whole = day_of_half_hours(full=False)
    channels = ("export_wh", "voltage_mv", "current_ma", "power_w", "pf_milli", "freq_mhz")
    apart = replace(whole, read_at_ms=times, import_wh=[1] * len(times), **dict.fromkeys(channels, column))
    with pytest.raises(Malformed):
        encode_compact(apart)


def test_compact_other_version_is_refused() -> None:
    """A later version is no version 1."""
    with pytest.raises(Malformed):
        decode_uplink("amr/M1/rd", bytes.fromhex("a201000000"))


def test_compact_block_of_48_is_far_smaller_than_json() -> None:
    """The sizes that docs/native-protocol.md states, in bytes."""
    alone, full = day_of_half_hours(full=False), day_of_half_hours(full=True)
    one = replace(
        alone,
        read_at_ms=[T0],
        **{
            name: getattr(full, name)[:1]
            for name in ("import_wh", "export_wh", "voltage_mv", "current_ma", "power_w", "pf_milli", "freq_mhz")
        },
    )
    event = MeterEvent(serial="PB000001", seq=44, at_ms=T0, code=301)
    sizes = [(len(native(uplink)), len(encode_compact(uplink))) for uplink in (alone, full, one, event)]
    assert sizes == [(484, 118), (1918, 602), (226, 38), (75, 14)]
