"""Frames of the ingest benchmark's meters: real payloads, every meter on one connection, no interval left out."""

from collections import defaultdict
from itertools import pairwise

import pytest

from loadtests.flood_frames import FIRST_STEP, Frames, Mode, PacketIds, Part, Roster, encode_part, part_columns
from loadtests.population import STEP_MS
from meter_sim.edges.bulk import take_packets
from protocols.columns import ABSENT
from protocols.native import Readings, decode_uplink, encode_readings

ROSTER = Roster(meters=40, connections=3, opened_ms=1_790_000_000_000)


def _encoded(mode: Mode, first: int, count: int, *, warm_up: bool = False) -> Frames:
    part = Part(mode=mode, first=first, count=count, warm_up=warm_up)
    return encode_part(ROSTER, part, PacketIds(connections=ROSTER.connections))


def _messages(frames: Frames) -> list[tuple[int, int, Readings]]:
    """Return connection, packet id and readings of each message."""
    found = []
    for write, data in enumerate(frames.writes):
        for first, body in take_packets(bytearray(data)):
            assert first == 0x32, "a PUBLISH at QoS 1, sent for the first time"
            length = int.from_bytes(body[:2])
            topic, packet_id = body[2 : 2 + length].decode(), int.from_bytes(body[2 + length : 4 + length])
            readings = decode_uplink(topic, body[4 + length :])
            assert isinstance(readings, Readings)
            assert body[4 + length :] == encode_readings(readings), "byte for byte what a meter's encoder writes"
            found.append((frames.connection_of(write), packet_id, readings))
    return found


@pytest.mark.parametrize("mode", list(Mode))
def test_frames_of_two_bursts_leave_out_no_interval_of_any_meter(mode: Mode) -> None:
    """Wherever a burst is cut, each meter's intervals follow each other from the warm-up on."""
    instants = defaultdict(list)
    bursts = [_encoded(mode, 0, 40, warm_up=True), _encoded(mode, 0, 70), _encoded(mode, 70, 50)]
    for frames in bursts:
        for _, _, readings in _messages(frames):
            instants[readings.serial] += readings.read_at_ms
    assert len(instants) == ROSTER.meters
    for read_at_ms in instants.values():
        assert read_at_ms[:2] == [ROSTER.opened_ms + STEP_MS, ROSTER.opened_ms + FIRST_STEP * STEP_MS]
        assert {after - before for before, after in pairwise(read_at_ms)} == {STEP_MS}
        assert len(read_at_ms) == 1 + 3 * mode.intervals


@pytest.mark.parametrize("mode", list(Mode))
def test_frames_of_a_meter_are_all_of_one_connection_with_ids_of_their_own(mode: Mode) -> None:
    """A meter stays with its connection, and a connection uses each packet id once."""
    frames = _encoded(mode, 0, 120)
    messages = _messages(frames)
    assert [packet_id for _, packet_id, _ in messages] == list(frames.packet_ids)
    assert len({(connection, packet_id) for connection, packet_id, _ in messages}) == len(messages) == 120
    of_meter = defaultdict(set)
    for connection, _, readings in messages:
        of_meter[readings.serial].add(connection)
    assert {len(connections) for connections in of_meter.values()} == {1}
    assert set().union(*of_meter.values()) == set(range(ROSTER.connections))


@pytest.mark.parametrize("mode", list(Mode))
def test_columns_of_a_part_are_the_readings_of_its_frames(mode: Mode) -> None:
    """What is copied bare beside a run are the rows that the run has sent, in their order."""
    part = Part(mode=mode, first=30, count=60)
    rows = [
        (columns.meter_id[row], columns.at_ms[row], columns.import_wh[row], columns.voltage_mv[row])
        for columns in part_columns(ROSTER, part)
        for row in range(len(columns))
        if columns.voltage_mv[row] != ABSENT
    ]
    sent = [
        (int(readings.serial.removeprefix("BN-")), at_ms, import_wh, voltage_mv)
        for _, _, readings in _messages(_encoded(mode, 30, 60))
        for at_ms, import_wh, voltage_mv in zip(
            readings.read_at_ms, readings.import_wh, readings.voltage_mv, strict=True
        )
    ]
    assert rows == sent
    assert len(rows) == part.readings


def test_packet_ids_begin_again_at_one_after_the_last() -> None:
    """An id of 16 bits is never 0."""
    ids = PacketIds(connections=2)
    assert [ids.next_of(1) for _ in range(65_536)] == [*range(1, 65_536), 1]
    assert ids.next_of(0) == 1
