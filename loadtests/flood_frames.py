"""What the meters of `bench ingest` publish, as frames of MQTT: numbered, encoded before any clock starts.

Stage: below the flood's process; pure. A roster and a shape enter; the bytes of each write leave, with the packet ids
of the messages in it. Messages are numbered from 0 over all of a mode's bursts: number `k` is of the meter at place
`k % meters` of the roster's order, in its turn `k // meters`, so a meter's readings follow each other without a gap
however a burst is cut.

Payloads are those of `protocols.native`, byte for byte; single ones are formatted here, in a third of the time that the
encoder takes with its checks. They carry no clock and no sequence number: instants are of the last month, which is no
drift of a meter's clock.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

import numpy as np

from loadtests.population import SERIAL_DIGITS, SERIAL_PREFIX, STEP_MS, readings_at, serial_of
from meter_sim.edges.bulk import PACKET_ID_MAX, encode_publish
from protocols.columns import Int64Column, ReadingColumns
from protocols.native import Readings, encode_readings
from protocols.topics import reading_topic

# Turn 0 of the measured messages begins here; each meter's first half hour is the warm-up.
FIRST_STEP: Final = 2
WARM_UP_STEP: Final = 1
# Columns of so many meters are made at a time: 100,000 of a block are 350 MB.
_METERS_AT_ONCE: Final = 5_000
_SINGLE: Final = (
    b'{"v":1,"meter":"' + SERIAL_PREFIX.encode() + b"%0" + str(SERIAL_DIGITS).encode() + b'd","at":%d,"import_wh":%d,'
    b'"voltage_mv":%d,"current_ma":%d,"power_w":%d,"pf_milli":%d,"freq_mhz":%d}'
)


class Mode(Enum):
    """How meters report: one reading a message and write, ten such publishes a write, or a day's block a message."""

    SINGLE = "single"
    GATEWAY = "gateway"
    BLOCK48 = "block48"

    @property
    def intervals(self) -> int:
        """Readings in a message."""
        return 48 if self is Mode.BLOCK48 else 1

    @property
    def messages_per_write(self) -> int:
        """Publishes that leave a connection in one piece, each of another meter."""
        return 10 if self is Mode.GATEWAY else 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Roster:
    """Who reports, over how many connections, and since when. Units: UTC milliseconds of the accounts' opening."""

    meters: int
    connections: int
    opened_ms: int
    seed: int = 1

    def order(self) -> Int64Column:
        """Return the meters' numbers in the order in which they report, turn after turn."""
        return np.random.default_rng(self.seed).permutation(np.arange(1, self.meters + 1, dtype=np.int64))


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Messages `first` to `first + count - 1` of a mode; `warm_up` is one reading of each meter instead."""

    mode: Mode
    first: int
    count: int
    warm_up: bool = False

    @property
    def intervals(self) -> int:
        """Readings in a message."""
        return 1 if self.warm_up else self.mode.intervals

    @property
    def readings(self) -> int:
        """Readings in all messages."""
        return self.count * self.intervals

    def steps(self, turn: int) -> range:
        """Return the half hours since the opening that a message of a turn holds."""
        begin = WARM_UP_STEP if self.warm_up else FIRST_STEP + turn * self.intervals
        return range(begin, begin + self.intervals)

    def turns(self, meters: int) -> range:
        """Return the turns of which any message is in it."""
        return range(self.first // meters, -(-(self.first + self.count) // meters))


@dataclass(slots=True, kw_only=True)
class PacketIds:
    """The next packet id of every connection; it goes on from burst to burst."""

    connections: int
    _used: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self._used = [0] * self.connections

    def next_of(self, connection: int) -> int:
        """Return another id of a connection."""
        self._used[connection] = used = self._used[connection] % PACKET_ID_MAX + 1
        return used


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Frames:
    """A part, encoded: one piece of bytes a write, one packet id a message, in the order of their numbers.

    Invariants: all messages of a write are of one connection, and so are all of a meter.
    """

    part: Part
    meters: int
    connections: int
    writes: list[bytes]
    packet_ids: array[int]

    def connection_of(self, write: int) -> int:
        """Return the connection that a write is of."""
        return connection_of(self.part, write, self.meters, self.connections)


def connection_of(part: Part, write: int, meters: int, connections: int) -> int:
    """Return the connection of a part's write: places of the roster are dealt out to the connections in turn."""
    each = part.mode.messages_per_write
    return (part.first + write * each) % meters // each % connections


def encode_part(roster: Roster, part: Part, ids: PacketIds) -> Frames:
    """Encode messages. `meters`, `first` and `count` have to be whole writes."""
    each = part.mode.messages_per_write
    assert roster.meters % each == part.first % each == part.count % each == 0, "a write is of one turn"
    packet_ids = array("H")
    writes: list[bytes] = []
    waiting: list[bytes] = []
    connection = 0
    for topic, payload in _messages(roster, part):
        if not waiting:
            connection = connection_of(part, len(writes), roster.meters, roster.connections)
        packet_ids.append(ids.next_of(connection))
        waiting.append(encode_publish(topic, payload, packet_ids[-1]))
        if len(waiting) == each:
            writes.append(waiting[0] if each == 1 else b"".join(waiting))
            waiting.clear()
    return Frames(part=part, meters=roster.meters, connections=roster.connections, writes=writes, packet_ids=packet_ids)


def part_columns(roster: Roster, part: Part) -> Iterator[ReadingColumns]:
    """Yield the readings of a part in the order of its messages, for some thousand messages at a time."""
    order = roster.order()
    end = part.first + part.count
    for turn in part.turns(roster.meters):
        began = turn * roster.meters
        places = order[max(part.first - began, 0) : min(end - began, roster.meters)]
        for first in range(0, len(places), _METERS_AT_ONCE):
            yield _by_message(places[first : first + _METERS_AT_ONCE], part.steps(turn), roster.opened_ms)


def _by_message(numbers: Int64Column, steps: range, opened_ms: int) -> ReadingColumns:
    """Return all steps of the first meter, then those of the next."""
    every = [readings_at(numbers, step, opened_ms) for step in steps]
    if len(every) == 1:
        return every[0]
    names = [name for name, _ in every[0].named()]
    return ReadingColumns(**{name: np.stack([getattr(each, name) for each in every], axis=1).ravel() for name in names})


def _messages(roster: Roster, part: Part) -> Iterator[tuple[str, bytes]]:
    """Yield topic and payload of each message."""
    for columns in part_columns(roster, part):
        yield from _singles(columns) if part.intervals == 1 else _blocks(columns, part.intervals)


def _singles(columns: ReadingColumns) -> Iterator[tuple[str, bytes]]:
    present = (columns.voltage_mv, columns.current_ma, columns.power_w, columns.pf_milli, columns.freq_mhz)
    lists = (column.tolist() for column in (columns.meter_id, columns.at_ms, columns.import_wh, *present))
    for values in zip(*lists, strict=True):
        yield reading_topic(serial_of(values[0])), _SINGLE % values


def _blocks(columns: ReadingColumns, intervals: int) -> Iterator[tuple[str, bytes]]:
    lists = {name: column.tolist() for name, column in columns.named()}
    for first in range(0, len(columns), intervals):
        of = slice(first, first + intervals)
        serial = serial_of(lists["meter_id"][first])
        readings = Readings(
            serial=serial,
            seq=None,
            clock_ms=None,
            read_at_ms=lists["at_ms"][of],
            import_wh=lists["import_wh"][of],
            export_wh=[None] * intervals,
            voltage_mv=lists["voltage_mv"][of],
            current_ma=lists["current_ma"][of],
            power_w=lists["power_w"][of],
            pf_milli=lists["pf_milli"][of],
            freq_mhz=lists["freq_mhz"][of],
            relay=None,
            credit_minor=None,
            events=(),
        )
        yield reading_topic(serial), encode_readings(readings)


def turn_ms(part: Part) -> int:
    """Return the time that one message of a meter covers."""
    return part.intervals * STEP_MS
