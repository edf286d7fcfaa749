"""From what a foreign payload says of a device to native messages: named, joined, rounded.

Stage: above the decoders of the makes, below the bridge. Enters what one payload said (`Observed`) and what is
remembered of its devices; leave native messages, the new memories, and what could not be decoded. Pure: the time of
arrival is an argument, a memory is a value that is passed in and handed back.

What makes have in common is decided here: values that come on topics of their own are joined by device while they are
near in time; the energy of several phases counts when each of them has reported since the last reading; a payload
without a clock counts at its arrival, and then at most every `every_ms`.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Final, Protocol

from protocols.errors import Malformed
from protocols.makes.numbers import round_half_up
from protocols.native import INT64_MAX, Readings, encode_readings
from protocols.topics import SERIAL_LENGTH_MAX, reading_topic

IMPORT: Final = "import_wh"
EXPORT: Final = "export_wh"
POWER: Final = "power_w"
MEASURED: Final = ("voltage_mv", "current_ma", POWER, "pf_milli", "freq_mhz")
CHANNELS: Final = (IMPORT, EXPORT, *MEASURED)
# Power that is older or newer than this beside an energy says nothing of it: a Shelly sends both within a minute.
JOIN_MS: Final = 60_000
# Sources without a clock repeat their register every few seconds; a reading a minute is ample for money.
EVERY_MS: Final = 60_000

_SERIAL: Final = re.compile(rf"[A-Za-z0-9_-]{{1,{SERIAL_LENGTH_MAX}}}", re.ASCII)
# As in native JSON: a register below 0 comes from a faulty meter, and validation names it.
IMPORT_WH_MIN: Final = -(2**62)
_INT32: Final = range(-(2**31), 2**31)
_SHOWN_MAX: Final = 80

# A topic and its payload.
Message = tuple[str, bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """A message as it came from a foreign broker."""

    topic: str
    payload: bytes
    received_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """What one payload says of one device at one instant.

    Invariants: `values` are in the native unit of their channel, not yet rounded; with `phases` registers and
    power stand under `phase_key`; `clock_ms` is None where the payload has no clock.
    """

    device: str
    clock_ms: int | None
    values: Mapping[str, Fraction]
    phases: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What is remembered of a device: its latest values with their instants, and when it last gave a reading."""

    values: Mapping[str, tuple[int, Fraction]] = field(default_factory=dict)
    given_ms: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Naming:
    """How a device of a source gets the serial of a meter of ours.

    Invariants: a device in `serials` has that one; any other the prefix before its own name, if there is a prefix and
    a serial comes of it.
    """

    prefix: str | None = None
    serials: Mapping[str, str] = field(default_factory=dict)

    def serial_of(self, device: str) -> str | None:
        """Return the device's serial; None when it has none."""
        mapped = self.serials.get(device)
        if mapped is not None or self.prefix is None:
            return mapped
        made = self.prefix + device
        return made if _SERIAL.fullmatch(made) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Joining:
    """Within which times values belong together, and how often a device without a clock gives a reading."""

    join_ms: int = JOIN_MS
    every_ms: int = EVERY_MS


@dataclass(frozen=True, slots=True, kw_only=True)
class Translation:
    """What became of one foreign message.

    Invariants: `memories` are those that changed; with a `fault` the bytes belong into quarantine, under `serial` where
    that is known.
    """

    messages: tuple[Message, ...] = ()
    memories: Mapping[str, Memory] = field(default_factory=dict)
    fault: str | None = None
    serial: str | None = None


class Make(Protocol):
    """One make of meter, set up for one source."""

    @property
    def filters(self) -> tuple[str, ...]:
        """The topics to subscribe to."""

    @property
    def timed(self) -> bool:
        """Whether every payload says itself when it was measured, so that it may wait in a broker."""

    def translate(self, arrival: Arrival, memories: Mapping[str, Memory]) -> Translation:
        """Turn a message into native ones; wrong bytes are a fault, never an exception."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Native:
    """The native payloads themselves, from meters that hold their session with another broker: passed on unchanged."""

    filters: tuple[str, ...] = ("amr/+/rd", "amr/+/ev")
    timed: bool = True

    def translate(self, arrival: Arrival, memories: Mapping[str, Memory]) -> Translation:
        """Pass a message on; what is wrong with it is found by ingest."""
        if _NATIVE_TOPIC.fullmatch(arrival.topic) is None:
            return Translation(fault=f"topic: expected amr/<serial>/rd or ev, got {arrival.topic[:_SHOWN_MAX]!r}")
        return Translation(messages=((arrival.topic, arrival.payload),))


_NATIVE_TOPIC: Final = re.compile(rf"amr/{_SERIAL.pattern}/(rd|ev)", re.ASCII)


def phase_key(channel: str, phase: int) -> str:
    """Name the value of one phase."""
    return f"{channel}/{phase}"


def collect(
    rows: Iterable[Observed],
    arrival: Arrival,
    memories: Mapping[str, Memory],
    *,
    naming: Naming,
    joining: Joining,
) -> Translation:
    """Turn what a payload said into native messages, in the order of the payload.

    Rows of one device and instant are one row; of a value that is said twice the later one counts.
    """
    messages: list[Message] = []
    changed: dict[str, Memory] = {}
    fault: str | None = None
    faulty: str | None = None
    for row in _merged(rows):
        serial = naming.serial_of(row.device)
        if serial is None:
            fault, faulty = f"device: expected one with a serial, got {row.device[:_SHOWN_MAX]!r}", None
            continue
        memory = changed.get(row.device) or memories.get(row.device) or Memory()
        try:
            changed[row.device], readings = _take(row, memory, arrival.received_ms, serial, joining)
        except Malformed as error:
            fault, faulty = f"{error}, meter {serial}", serial
            continue
        if readings is not None:
            messages.append((reading_topic(serial), encode_readings(readings)))
    return Translation(messages=tuple(messages), memories=changed, fault=fault, serial=faulty)


def _merged(rows: Iterable[Observed]) -> list[Observed]:
    merged: dict[tuple[str, int | None], Observed] = {}
    for row in rows:
        key = (row.device, row.clock_ms)
        before = merged.get(key)
        values = {**before.values, **row.values} if before else row.values
        merged[key] = Observed(device=row.device, clock_ms=row.clock_ms, values=values, phases=row.phases)
    return list(merged.values())


def _take(
    row: Observed, memory: Memory, received_ms: int, serial: str, joining: Joining
) -> tuple[Memory, Readings | None]:
    """Remember a row; give a reading if its energy is whole and due."""
    at_ms = received_ms if row.clock_ms is None else row.clock_ms
    values = {**memory.values, **{name: (at_ms, value) for name, value in row.values.items()}}
    registers = _names(IMPORT, row.phases)
    heard = any(name in row.values for name in registers) and all(name in values for name in registers)
    too_soon = row.clock_ms is None and memory.given_ms is not None and 0 <= at_ms - memory.given_ms < joining.every_ms
    if not heard or too_soon:
        return Memory(values=values, given_ms=memory.given_ms), None
    near = {name: value for name, (when_ms, value) in values.items() if abs(at_ms - when_ms) <= joining.join_ms}
    export = [near.get(name) for name in _names(EXPORT, row.phases)]
    channels = {name: [_measured(near.get(name))] for name in MEASURED}
    if row.phases:
        power = [near.get(name) for name in _names(POWER, row.phases)]
        channels[POWER] = [None if None in power else _measured(sum(filter(None, power), Fraction(0)))]
    readings = Readings(
        serial=serial,
        seq=None,
        clock_ms=None,
        read_at_ms=[at_ms],
        import_wh=[_register(IMPORT, sum((values[name][1] for name in registers), Fraction(0)), IMPORT_WH_MIN)],
        export_wh=[None if None in export else _register(EXPORT, sum(filter(None, export), Fraction(0)), 0)],
        relay=None,
        credit_minor=None,
        events=(),
        **channels,
    )
    if row.phases:
        # The next sum counts when each phase has reported again.
        values = {name: value for name, value in values.items() if name not in registers}
    return Memory(values=values, given_ms=at_ms), readings


def _names(channel: str, phases: int) -> list[str]:
    return [phase_key(channel, phase) for phase in range(phases)] if phases else [channel]


def _register(name: str, value: Fraction, least: int) -> int:
    """Round a register to Wh.

    Raises: Malformed outside what a register can hold.
    """
    rounded = round_half_up(value)
    if not least <= rounded <= INT64_MAX:
        raise Malformed(f"{name}: expected {least} to {INT64_MAX} Wh, got {rounded}")
    return rounded


def _measured(value: Fraction | None) -> int | None:
    """Round a measured value; one beyond any meter is none."""
    rounded = None if value is None else round_half_up(value)
    return rounded if rounded is not None and rounded in _INT32 else None
